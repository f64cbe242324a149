"""Who shares masks and secrets with whom: the neighbour graph, and what is left of it.

Bonawitz et al. 2017 uses the complete graph; Bell et al. 2020 thins it out. A graph answers three
questions: who are u's neighbours, how many holders of u's secrets are in a set, and which members
remain once everybody with too few holders is peeled off. It knows ids only, no keys.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from typing import Protocol

from securefl.round import ClientId, Cohort, Layout

__all__ = ["CompleteGraph", "NeighbourGraph", "peel"]


class NeighbourGraph(Protocol):
    """Neighbours are symmetric; a holder of u's secrets is a neighbour, in `ALL` also u itself."""

    def peers(self, u: ClientId, members: Collection[ClientId]) -> list[ClientId]:
        """U's neighbours among the members, ascending, never u."""

    def holder_count(self, u: ClientId, members: AbstractSet[ClientId]) -> int:
        """How many holders of u's secrets are members."""


class CompleteGraph:
    """Everybody is everybody's neighbour.

    Attributes:
        cohort: all clients of the round.
        layout: whether a client holds a share of its own secrets.
    """

    __slots__ = ("cohort", "layout")

    def __init__(self, cohort: Cohort, layout: Layout) -> None:
        self.cohort = cohort
        self.layout = layout

    def peers(self, u: ClientId, members: Collection[ClientId]) -> list[ClientId]:
        """All members but u, ascending."""
        return sorted(v for v in members if v != u)

    def holder_count(self, u: ClientId, members: AbstractSet[ClientId]) -> int:
        """The members; in `OTHERS` without u."""
        own = self.layout is Layout.OTHERS and u in members
        return len(members) - own


def peel(members: Collection[ClientId], graph: NeighbourGraph, t: int) -> set[ClientId]:
    """Removes everybody with fewer than t holders in the set, until nobody is left to remove.

    A client whose secrets could not be reconstructed any more would turn one dropout into the loss
    of the round; it is better left out before anything depends on it.
    """
    left = set(members)
    while weak := {u for u in left if graph.holder_count(u, left) < t}:
        left -= weak
    return left
