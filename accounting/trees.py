"""The squared sensitivity of a binary tree of partial sums: how many nodes show one unit how often.

A tree over T steps releases a noisy sum for every complete node (one all of whose leaves are among
the steps; Kairouz et al. 2021, arXiv 2103.00039). A unit that takes part in the steps S, at most k
of them and at least ``min_sep`` apart, changes the node v by up to |S in v|, so all nodes together
are one Gaussian release of squared sensitivity V = max over S of the sum over v of |S in v|^2.

V is found exactly by dynamic programming over the heights of the tree. All complete nodes of one
height are alike, so the work does not grow with T but with k; beyond a fixed amount of it an upper
bound is returned, and said to be one. Proof and recursion: ``docs/proofs/tree-and-banded.md``. This
module knows no noise, no order and no adjacency.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TypeAlias

import numpy as np

__all__ = ["MOST_WORK", "TreeSensitivity", "tree_squared_sensitivity"]

MOST_WORK = 40_000_000
"""Combinations looked at before the exact search is given up: some seconds."""

_LONGEST_PACKING = 100_000
_MOST_SEARCHED = 2_000
_FEW_ROOMS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSensitivity:
    """The squared sensitivity of a tree.

    Attributes:
        squared: V, or an upper bound on it; in units of the squared norm bound C^2.
        exact: whether it is V itself.
    """

    squared: int
    exact: bool


# (value, left, right, both): participations inside of one node worth ``value`` there and below,
# that can leave l leaves free on the left and r on the right for all l <= left, r <= right and
# l + r <= both.
_Room: TypeAlias = tuple[int, int, int, int]
_Level: TypeAlias = dict[int, list[_Room]]  # by the number of participations


class _TooMuchError(Exception):
    """The exact search passes its limit; never leaves this module."""


@lru_cache(maxsize=1024)
def tree_squared_sensitivity(steps: int, participations: int, min_sep: int) -> TreeSensitivity:
    """V, or the height-by-height bound on it where the search would take too long.

    Args:
        steps: leaves; a node counts if all its leaves are among them.
        participations: k, at most ceil(steps / min_sep).
        min_sep: least distance between two participations, >= 1.
    """
    above = sum(_by_height(steps, participations, min_sep))
    below = 0
    if participations <= _LONGEST_PACKING:
        below = _densest_packing(steps, participations, min_sep)
        if below == above:
            return TreeSensitivity(squared=above, exact=True)
    if participations <= _MOST_SEARCHED:
        search = _Search(steps=steps, participations=participations, min_sep=min_sep, known=below)
        try:
            search.improve(_FEW_ROOMS)  # the better what is known, the less is left to look at
            return TreeSensitivity(squared=search.improve(None), exact=True)
        except _TooMuchError:
            pass
    return TreeSensitivity(squared=above, exact=False)


def _by_height(steps: int, participations: int, min_sep: int) -> list[int]:
    """An upper bound on the sum of squares at each height.

    A node of 2^h leaves holds at most c = min(k, ceil(2^h / min_sep)) participations, and all
    nodes of a height hold at most k together: at most floor(k/c) c^2 + (k mod c)^2, and at most
    c^2 a node.
    """
    found, size = [], 1
    while size <= steps:
        most = max(1, min(participations, -(-size // min_sep)))
        full, rest = divmod(participations, most)
        nodes = steps // size
        found.append(nodes * most * most if nodes <= full else full * most * most + rest * rest)
        size *= 2
    return found


def _densest_packing(steps: int, participations: int, min_sep: int) -> int:
    """What the participations 0, min_sep, 2 min_sep, ... are worth: a lower bound on V."""
    node = np.arange(participations, dtype=np.int64) * min_sep
    total, height = 0, 0
    while steps >> height:
        complete = node[node < steps >> height]
        counts = np.unique(complete, return_counts=True)[1]
        total += int((counts.astype(np.int64) ** 2).sum())
        node, height = node >> 1, height + 1
    return total


class _Search:
    """The dynamic program of the proof page, from the leaves up, then over the maximal nodes."""

    def __init__(self, *, steps: int, participations: int, min_sep: int, known: int) -> None:
        self._steps, self._most, self._gap = steps, participations, min_sep - 1
        self._min_sep, self._known = min_sep, known
        self._above = _by_height(steps, participations, min_sep)
        self._work = 0
        self._kept: int | None = None

    def improve(self, kept: int | None) -> int:
        """V; or, if only that many rooms are kept everywhere, something between ``known`` and V.

        Raises:
            _TooMuchError: beyond MOST_WORK, both calls together.
        """
        self._kept = kept
        level: _Level = {0: [(0, 0, 0, 0)], 1: [(1, 0, 0, 0)]}
        levels, size = [level], 1
        while 2 * size <= self._steps:
            least = self._least(len(levels))
            level = self._joined(level, level, (size, size), parent=True, least=least)
            levels.append(level)
            size *= 2
        # A complete node lies in one of the maximal ones: the binary digits of steps.
        whole, leaves = levels[-1], size
        for height in reversed(range(len(levels) - 1)):
            if self._steps >> height & 1:
                sizes = (leaves, 1 << height)
                whole = self._joined(
                    whole, levels[height], sizes, parent=False, least=lambda _count: 0
                )
                leaves += 1 << height
        self._known = max([self._known, *(one[0] for rooms in whole.values() for one in rooms)])
        return self._known

    def _least(self, height: int) -> Callable[[int], int]:
        """What a node of this height must be worth to be part of a set worth more than ``known``.

        All other participations are bounded height by height.
        """
        higher = sum(self._above[height + 1 :])

        @cache
        def least(count: int) -> int:
            others = _by_height(self._steps, self._most - count, self._min_sep)[: height + 1]
            return self._known + 1 - higher - sum(others)

        return least

    def _joined(
        self,
        left: _Level,
        right: _Level,
        sizes: tuple[int, int],
        *,
        parent: bool,
        least: Callable[[int], int],
    ) -> _Level:
        """All that two neighbours hold together; ``parent``: below one node, which counts too."""
        found: dict[int, list[_Room]] = {}
        for one, rooms in left.items():
            for other, more in right.items():
                count = one + other
                if not 0 < count <= self._most:
                    continue
                bonus = count * count if parent else 0
                need = least(count) - bonus
                if rooms[0][0] + more[0][0] < need:  # the first one is worth the most
                    self._spend(1)
                elif one and other:
                    joined = self._side_by_side(rooms, more, need)
                    found.setdefault(count, []).extend(_worth_more(joined, bonus))
                else:
                    joined = _beside_nothing(rooms, more, sizes, first_is_empty=one == 0)
                    found.setdefault(count, []).extend(_worth_more(joined, bonus))
        level: _Level = {0: [(0, 0, 0, 0)]}
        level.update((count, self._best_of(rooms)) for count, rooms in found.items() if rooms)
        return level

    def _side_by_side(self, rooms: list[_Room], more: list[_Room], need: int) -> list[_Room]:
        """Between the last one on the left and the first one on the right a gap must stay free."""
        gap, found = self._gap, []
        for v, a, b, both in rooms:
            self._spend(len(more))
            for w, c, d, and_both in more:
                if v + w < need:
                    break
                left = min(a, both, both + c - gap)
                right = min(d, and_both, and_both + b - gap)
                total = both + and_both - gap
                if b + c >= gap and left >= 0 and right >= 0 and total >= 0:
                    found.append((v + w, left, right, total))
        return found

    def _best_of(self, rooms: list[_Room]) -> list[_Room]:
        """Without what another one is at least as good as; parts of one larger room joined."""
        kept: list[_Room] = []
        for value, a, b, both in sorted({self._trimmed(room) for room in rooms}, reverse=True):
            self._spend(len(kept))
            if any(c >= a and d >= b and two >= both for _, c, d, two in kept):
                continue
            left, right = a, b
            while (part := _part_of(kept, value, left, right, both)) is not None:
                left, right = max(left, part[1]), max(right, part[2])
                kept.remove(part)
            kept.append((value, left, right, both))
        return kept[: self._kept]

    def _trimmed(self, room: _Room) -> _Room:
        """More free leaves than a gap on a side are of no use."""
        value, a, b, both = room
        a, b = min(a, self._gap), min(b, self._gap)
        both = min(both, a + b)
        return value, min(a, both), min(b, both), both

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > MOST_WORK:
            raise _TooMuchError


def _beside_nothing(
    rooms: list[_Room], more: list[_Room], sizes: tuple[int, int], *, first_is_empty: bool
) -> list[_Room]:
    if first_is_empty:
        return [(v, a + sizes[0], b, both + sizes[0]) for v, a, b, both in more]
    return [(v, a, b + sizes[1], both + sizes[1]) for v, a, b, both in rooms]


def _worth_more(rooms: list[_Room], bonus: int) -> list[_Room]:
    return [(value + bonus, a, b, both) for value, a, b, both in rooms]


def _part_of(kept: list[_Room], value: int, left: int, right: int, both: int) -> _Room | None:
    """One that is a room together with this one: no (l, r) with l + r <= both is left out."""
    for room in kept:
        same = room[0] == value and room[3] == both
        if same and min(left, room[1]) + min(right, room[2]) + 2 > both:
            return room
    return None
