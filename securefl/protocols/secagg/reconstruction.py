"""From shares to secrets: reconstruct, verify, correct what is wrong, and say whose share it was.

Bonawitz et al. 2017, figure 4, last round, reconstructs from any t shares. Here every secret is
checked against what its dealer published, and all M shares that arrived are compared with each
other: up to floor((M-t)/2) wrong ones are corrected (McEliece and Sarwate 1981) and named. In the
ordinary case that takes two sums per secret, for whole groups of dealers at once: one over the t
lowest holders, the secret, and one over all M, zero for shares of one polynomial. The second has
random weights (a random word of the dual code), so wrong shares pass it with probability 2^-31,
and only as far as blame is concerned: the secret has its own check.

Who of dealer and holder lied cannot be told from shares, hence pairs. The module knows positions,
not ids, and neither frames nor phases.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefl.primitives.reed_solomon import TooManyErrors, decode
from securefl.primitives.sharing import (
    PRIME,
    Unreconstructable,
    interpolate,
    inverse,
    multipliers,
    residue,
    secret_from_words,
    uniform,
    weights_at_zero,
)
from securefl.protocols.secagg.graph import Edges, Positions

__all__ = ["Opened", "ShareTable", "Weights", "open_secrets"]

_P = np.uint64(PRIME)

CHUNK_SHARES = 1 << 14
"""Shares looked at together: enough to keep numpy busy, small beside a model's vector."""

MOST_SET_ASIDE = 16
"""Liars whose shares are set aside together; with more, decoding dealer by dealer is cheaper.

It also bounds what lies cost: a coalition that lets every decoding name one more of its members
would otherwise have all dealers looked at again for each of them.
"""

Check = Callable[[int, bytes], bool]


class ShareTable:
    """All shares of one kind that arrived, one row per (dealer, holder).

    Args:
        edges: who holds whose shares.
        words: field elements per share.
        secret_bytes: length of the secret behind them.

    Attributes:
        edges: as given.
        words: uint32[edges, words].
        present: bool[edges].
        secret_bytes: as given.
    """

    __slots__ = ("edges", "present", "secret_bytes", "words")

    def __init__(self, edges: Edges, *, words: int, secret_bytes: int) -> None:
        self.edges = edges
        self.words = np.zeros((len(edges), words), dtype=np.uint32)
        self.present = np.zeros(len(edges), dtype=np.bool_)
        self.secret_bytes = secret_bytes

    def put(self, rows: NDArray[np.int32], shares: NDArray[np.uint32]) -> None:
        """Stores shares at these edges."""
        self.words[rows] = shares
        self.present[rows] = True

    def fewest(self, needed: NDArray[np.bool_]) -> int | None:
        """Shares of the needed dealer with the fewest; None if no dealer is needed."""
        counts = self.counts(self.present)[needed]
        return int(counts.min()) if counts.size else None

    def counts(self, available: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Available shares per dealer."""
        return np.bincount(self.edges.dealer[available], minlength=len(self.edges.counts))

    def rows(self, dealer: int, available: NDArray[np.bool_]) -> NDArray[np.intp]:
        """The edges of a dealer's available shares, ascending by holder."""
        edges = self.edges.of_dealer(dealer)
        found: NDArray[np.intp] = edges.start + np.flatnonzero(available[edges])
        return found

    def holders(self, dealer: int) -> tuple[int, ...]:
        """Positions of everybody who gave a share of this dealer."""
        return tuple(self.edges.holder[self.rows(dealer, self.present)].tolist())

    def __repr__(self) -> str:
        return f"ShareTable(<{int(self.present.sum())} secret shares>)"


class Weights:
    """Interpolation weights for many sets of holders, which usually differ in one holder.

    On the complete graph each dealer's shares lie with everybody who answered but itself, so all
    sets come from one by leaving out one point, v_i' = v_i (x_i - x_u). Other sets are computed
    together, those of one size at a time.

    Args:
        points: x of every holder, ascending, whether or not it answered.
        answered: positions in ``points`` of those who did, ascending.
        t: shares that reconstruct.
        random_bytes: where the weights of :meth:`parity` come from. They must be unknown to whoever
            chose the shares.
    """

    __slots__ = ("_answered", "_bases", "_inverse", "_points", "_random", "_tests", "t")

    def __init__(
        self,
        points: NDArray[np.uint64],
        answered: Positions,
        t: int,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.t = t
        self._points = points
        self._answered = answered
        self._inverse = inverse(points)
        self._random = random_bytes
        self._bases: dict[int, NDArray[np.uint64]] = {}
        self._tests: dict[int, NDArray[np.uint64]] = {}

    def at_zero(self, holders: Positions) -> NDArray[np.uint64]:
        """Weights of the value at zero.

        Args:
            holders: [sets, t], positions in ``points``, ascending, all of them answered.

        Returns:
            uint64[sets, t].
        """
        v = self._multipliers(holders)
        return weights_at_zero(self._points[holders], self._inverse[holders], v)

    def parity(self, holders: Positions) -> NDArray[np.uint64]:
        """Weights with which shares of one polynomial of degree below t sum to zero.

        v_i g(x_i) for one uniformly random g of degree below M - t: a sum over wrong shares is
        uniform, so it is zero with probability 1/p. For M = t the weights are zero; nothing can be
        compared then.

        Args:
            holders: [sets, M], as above.

        Returns:
            uint64[sets, M].
        """
        count = holders.shape[1]
        if count not in self._tests:
            value = np.zeros_like(self._points)
            for coefficient in uniform(count - self.t, 1, self._random):
                value = residue(value * self._points + coefficient)
            self._tests[count] = value
        return residue(self._multipliers(holders) * self._tests[count][holders])

    def _multipliers(self, holders: Positions) -> NDArray[np.uint64]:
        count = holders.shape[1]
        base = self._answered[: count + 1]
        if count not in self._bases:
            scattered = np.zeros_like(self._points)
            scattered[base] = multipliers(self._points[base])
            self._bases[count] = scattered
        v = np.empty(holders.shape, dtype=np.uint64)
        inside = holders[:, -1] <= base[-1]  # all holders answered: then the set lies in the base
        sets = holders[inside]
        v[inside] = self._bases[count][sets]
        if len(base) > count:
            left_out = base.sum() - sets.sum(axis=1, keepdims=True)
            v[inside] = residue(v[inside] * (self._points[sets] + (_P - self._points[left_out])))
        v[~inside] = multipliers(self._points[holders[~inside]])
        return v


@dataclass(slots=True, kw_only=True)
class Opened:
    """What the shares of one kind gave; dealers and holders by position.

    Attributes:
        secrets: of every dealer that is not in ``failed``; each matched what was published.
        wrong: dealer -> holders whose share of it is not on the polynomial of the others,
            ascending; never more than floor((M-t)/2).
        unclear: dealers whose secret was verified from the t lowest holders while too many of the
            other shares contradict it to tell which are wrong.
        failed: dealers whose secret could not be had.
    """

    secrets: dict[int, bytes] = field(default_factory=dict, repr=False)
    wrong: dict[int, tuple[int, ...]] = field(default_factory=dict)
    unclear: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)


def open_secrets(
    table: ShareTable,
    needed: NDArray[np.bool_],
    *,
    points: NDArray[np.uint64],
    t: int,
    check: Check,
    suspected: Iterable[int] = (),
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> Opened:
    """The secrets of all needed dealers, each checked, wrong shares corrected and named.

    A secret is taken from the t lowest holders if it passes its check; otherwise from all M shares,
    of which at most floor((M-t)/2) may be wrong, if it passes then.

    Args:
        table: the shares; every needed dealer has at least t.
        needed: bool[dealers].
        points: uint64[holders], x of every holder, ascending.
        t: how many shares reconstruct.
        check: whether a secret is what the dealer at this position published.
        suspected: holders found wrong elsewhere. Changes how fast the answer comes, not the answer.
        random_bytes: see :class:`Weights`.
    """
    opening = _Opening(
        table=table, points=points, t=t, check=check, named=set(suspected), random=random_bytes
    )
    opening.run(np.flatnonzero(needed))
    return opening.opened


@dataclass(slots=True, kw_only=True, repr=False)
class _Opening:
    table: ShareTable
    points: NDArray[np.uint64]
    t: int
    check: Check
    named: set[int]
    random: Callable[[int], bytes]
    opened: Opened = field(default_factory=Opened)

    def run(self, dealers: NDArray[np.intp]) -> None:
        """All dealers: together first, and what does not fit one by one."""
        suspects = self._first(dealers)
        if self.named:
            suspects = self._without_named(suspects)
        while suspects:
            dealer, *suspects = suspects
            if self._decode(dealer) and suspects:
                suspects = self._without_named(suspects)

    def _first(self, dealers: NDArray[np.intp]) -> list[int]:
        """The ordinary case; returns the dealers whose shares contradict each other."""
        suspects: list[int] = []
        for dealer, words, consistent in self._examine(dealers, self.table.present):
            secret = self._verified(dealer, words)
            if secret is not None:
                self.opened.secrets[dealer] = secret
            if not consistent:
                suspects.append(dealer)
            elif secret is None:  # all shares agree on something else: nothing to correct
                self.opened.failed.append(dealer)
        return suspects

    def _examine(
        self, dealers: NDArray[np.intp], available: NDArray[np.bool_]
    ) -> Iterator[tuple[int, NDArray[np.uint64], bool]]:
        """Per dealer the words from its t lowest available shares, and whether all agree.

        Dealers with fewer than t available shares are left out.
        """
        table, t = self.table, self.t
        answered = np.unique(table.edges.holder[available])
        weights = Weights(self.points, answered, t, self.random)
        counts = table.counts(available)[dealers]
        for count in np.unique(counts[counts >= t]).tolist():
            group = dealers[counts == count]
            size = max(1, CHUNK_SHARES // count)
            for first in range(0, len(group), size):
                part = group[first : first + size].tolist()
                rows = np.stack([table.rows(dealer, available) for dealer in part])
                holders = table.edges.holder[rows]
                shares = table.words[rows].astype(np.uint64)
                words = interpolate(shares[:, :t], weights.at_zero(holders[:, :t]))
                parity = interpolate(shares, weights.parity(holders))
                for dealer, its_words, its_parity in zip(part, words, parity, strict=True):
                    yield dealer, its_words, not its_parity.any()

    def _verified(self, dealer: int, words: NDArray[np.integer]) -> bytes | None:
        """The secret of these words, if it is what the dealer published."""
        try:
            secret = secret_from_words(words.tolist(), self.table.secret_bytes)
        except Unreconstructable:
            return None
        return secret if self.check(dealer, secret) else None

    def _decode(self, dealer: int) -> bool:
        """Corrects one dealer's shares, or gives it up; whether that named somebody new."""
        table = self.table
        rows = table.rows(dealer, table.present)
        holders = table.edges.holder[rows]
        try:
            found = decode(table.words[rows], points=self.points[holders].tolist(), t=self.t)
        except TooManyErrors:
            return self._give_up(dealer)
        secret = self._verified(dealer, found.words)
        if secret is None:
            return self._give_up(dealer)
        return self._settle(dealer, secret, holders[list(found.errors)].tolist())

    def _settle(self, dealer: int, secret: bytes, wrong: list[int]) -> bool:
        self.opened.secrets[dealer] = secret
        self.opened.wrong[dealer] = tuple(wrong)
        new = not self.named.issuperset(wrong)
        self.named.update(wrong)
        return new

    def _give_up(self, dealer: int) -> bool:
        verified = dealer in self.opened.secrets
        (self.opened.unclear if verified else self.opened.failed).append(dealer)
        return False

    def _without_named(self, suspects: list[int]) -> list[int]:
        """Settles suspects whose shares agree once those of known liars are set aside.

        One client that lies about all dealers would otherwise cost one decoding per dealer. Only
        what the decoder would find is accepted (at most floor((M-t)/2) wrong of all M): that answer
        is unique, so this is the same one, sooner.
        """
        if len(self.named) > MOST_SET_ASIDE:
            return suspects
        table = self.table
        aside = np.isin(table.edges.holder, sorted(self.named))
        rest = table.present & ~aside
        secrets: dict[int, bytes] = {}
        for dealer, words, consistent in self._examine(_positions(suspects), rest):
            secret = self._verified(dealer, words) if consistent else None
            if secret is not None:
                secrets[dealer] = secret
        wrong: dict[int, list[int]] = {dealer: [] for dealer in secrets}
        for liar in sorted(self.named):
            with_one = rest | (table.present & (table.edges.holder == liar))
            holds = table.edges.dealer[with_one & aside]
            theirs = [dealer for dealer in np.unique(holds).tolist() if dealer in secrets]
            for dealer, _, consistent in self._examine(_positions(theirs), with_one):
                if not consistent:
                    wrong[dealer].append(liar)
        shares = table.counts(table.present)
        for dealer, secret in secrets.items():
            if len(wrong[dealer]) <= (int(shares[dealer]) - self.t) // 2:
                self._settle(dealer, secret, wrong[dealer])
        return [dealer for dealer in suspects if dealer not in self.opened.wrong]


def _positions(dealers: list[int]) -> NDArray[np.intp]:
    return np.array(dealers, dtype=np.intp)
