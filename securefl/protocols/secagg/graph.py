"""Who shares masks and secrets with whom: the neighbour graph, and what is left of it.

Bonawitz et al. 2017 uses the complete graph; Bell et al. 2020 thins it out to a k-regular one, a
Harary graph on a random ring. A graph answers: who are u's neighbours, how many holders of u's
secrets are in a set, and which members remain once everybody with too few holders is peeled off.
It knows ids only, no keys.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from securefl.primitives.channel import sha256
from securefl.round import ClientId, Cohort, Layout, RoundConfig, Usage, dst
from securefl.round import Protocol as WireProtocol

__all__ = [
    "CompleteGraph",
    "Edges",
    "HararyGraph",
    "NeighbourGraph",
    "Positions",
    "graph_of",
    "graph_seed",
    "peel",
]

Ids = NDArray[np.int64]
Positions = NDArray[np.uint16 | np.uint32]
"""Places in an ascending list of clients."""


class NeighbourGraph(Protocol):
    """Neighbours are symmetric; a holder of u's secrets is a neighbour, in `ALL` also u itself."""

    @property
    def holders(self) -> int:
        """The h of the thresholds: how many clients of the cohort hold shares of one secret."""

    def peers(self, u: ClientId, members: Collection[ClientId]) -> list[ClientId]:
        """U's neighbours among the members, ascending, never u."""

    def positions(self, u: ClientId, members: Ids) -> NDArray[np.intp]:
        """The same as positions in an ascending array of members."""

    def holder_count(self, u: ClientId, members: AbstractSet[ClientId]) -> int:
        """How many holders of u's secrets are members."""

    def fragments(self, members: AbstractSet[ClientId], t: int) -> str | None:
        """What keeps a survivor list from being one well-connected piece; None if nothing does."""


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

    @property
    def holders(self) -> int:
        """All others; in `ALL` everybody."""
        return len(self.cohort) - (self.layout is Layout.OTHERS)

    def peers(self, u: ClientId, members: Collection[ClientId]) -> list[ClientId]:
        """All members but u, ascending."""
        return sorted(v for v in members if v != u)

    def positions(self, u: ClientId, members: Ids) -> NDArray[np.intp]:
        """All positions but u's."""
        return np.flatnonzero(members != u)

    def holder_count(self, u: ClientId, members: AbstractSet[ClientId]) -> int:
        """The members; in `OTHERS` without u."""
        own = self.layout is Layout.OTHERS and u in members
        return len(members) - own

    def fragments(self, members: AbstractSet[ClientId], t: int) -> str | None:
        """Nothing: a part of a complete graph is complete."""
        return None


class HararyGraph:
    """K neighbours each: the cohort on a ring in pseudorandom order, joined at distance 1..k/2.

    The ring is made of the cohort and not of those who advertised keys, so that nobody can shape
    neighbourhoods by choosing who arrives. (Bell et al. 2020; the order by hash is ours.)

    Args:
        cohort: all clients of the round.
        k: neighbours per client, even, 2 <= k <= n - 2.
        seed: 32 bytes, see :func:`graph_seed`.
    """

    __slots__ = ("_place", "_ring", "cohort", "k")

    def __init__(self, cohort: Cohort, k: int, seed: bytes) -> None:
        label = dst(Usage.RING_RANK, WireProtocol.SECAGG_PLUS) + seed
        self.cohort = cohort
        self.k = k
        self._ring = sorted(cohort, key=lambda u: (sha256(label, int(u).to_bytes(4, "little")), u))
        self._place = {u: i for i, u in enumerate(self._ring)}

    @property
    def holders(self) -> int:
        """The k neighbours."""
        return self.k

    def _neighbours(self, u: ClientId) -> list[ClientId]:
        i, n = self._place[u], len(self._ring)
        steps = range(1, self.k // 2 + 1)
        return sorted(self._ring[(i + sign * d) % n] for d in steps for sign in (1, -1))

    def peers(self, u: ClientId, members: Collection[ClientId]) -> list[ClientId]:
        """U's neighbours among the members, ascending."""
        inside = members if isinstance(members, AbstractSet) else set(members)
        return [v for v in self._neighbours(u) if v in inside]

    def positions(self, u: ClientId, members: Ids) -> NDArray[np.intp]:
        """Positions of u's neighbours in an ascending array of members."""
        neighbours = np.array(self._neighbours(u), dtype=np.int64)
        at = np.searchsorted(members, neighbours)
        there = at < len(members)
        there[there] = members[at[there]] == neighbours[there]
        return at[there]

    def holder_count(self, u: ClientId, members: AbstractSet[ClientId]) -> int:
        """Neighbours of u among the members."""
        return sum(v in members for v in self._neighbours(u))

    def fragments(self, members: AbstractSet[ClientId], t: int) -> str | None:
        """Why these survivors are not one piece in which everybody has t neighbours; else None.

        Two runs of k/2 missing clients cut the ring, and the sum falls into the sums of two arcs
        although every client sees one and the same survivor list. One run does not: the ring is
        still joined the other way round.
        """
        alive = np.array([u in members for u in self._ring], dtype=np.bool_)
        places = np.flatnonzero(alive)
        if not places.size:
            return "nobody is left"
        steps = np.diff(places, append=places[0] + len(alive))
        cuts = int((steps > self.k // 2).sum())
        if cuts > 1:
            return f"the survivors fall into {cuts} parts"
        half = self.k // 2
        around = np.concatenate([alive[-half:], alive, alive[:half]]).astype(np.int64)
        window = np.convolve(around, np.ones(2 * half + 1, dtype=np.int64), mode="valid")
        fewest = int(window[alive].min()) - 1  # the window counts the client itself
        if fewest < t:
            return f"a survivor has only {fewest} surviving neighbours, {t} are needed"
        return None


def graph_seed(config_digest: bytes, value: bytes) -> bytes:
    """SHA-256(dst(11), config_digest, value); value is the configuration's or the beacon's."""
    return sha256(dst(Usage.GRAPH_SEED, WireProtocol.SECAGG_PLUS), config_digest, value)


def graph_of(config: RoundConfig, value: bytes) -> NeighbourGraph:
    """The session's graph; ``value``: 32 bytes, the server's graph value or the beacon's output."""
    if config.protocol is WireProtocol.SECAGG:
        return CompleteGraph(config.cohort, config.layout)
    return _harary(config.cohort, config.k, graph_seed(config.digest(), value))


@lru_cache(maxsize=4)
def _harary(cohort: Cohort, k: int, seed: bytes) -> HararyGraph:
    """One ring for all machines of a process: it is public, never changed, and n hashes to make."""
    return HararyGraph(cohort, k, seed)


class Edges:
    """All pairs (dealer, holder) of two sets, in one flat order that can be walked from both ends.

    Edge e of dealer i is one share of i's secret; the edges of a dealer are contiguous and ascend
    by holder. What is stored per edge lies in one array, so memory follows the number of edges and
    no step of a session loops over pairs in Python.

    Args:
        graph: who is whose neighbour.
        dealers: ids, ascending.
        holders: ids, ascending.
        own: whether a dealer that is also a holder has an edge to itself (layout ``ALL``).

    Attributes:
        dealer, holder: uint16[edges] (uint32 beyond 2^16 clients), positions in ``dealers`` and
            in ``holders``.
        counts: int64[dealers], edges per dealer.
    """

    __slots__ = ("_by_holder", "_holder_starts", "_starts", "counts", "dealer", "holder")

    def __init__(
        self,
        graph: NeighbourGraph,
        dealers: Sequence[ClientId],
        holders: Sequence[ClientId],
        *,
        own: bool = False,
    ) -> None:
        ids = np.array(holders, dtype=np.int64)
        # Narrow at once: a thousand clients have a million edges.
        small = max(len(dealers), len(holders)) <= 1 << 16
        narrow = np.dtype(np.uint16 if small else np.uint32)
        rows = [_positions(graph, u, ids, own=own).astype(narrow) for u in dealers]
        empty = np.zeros(0, dtype=narrow)
        self.holder: Positions = np.concatenate([empty, *rows])
        self.counts = np.array([len(row) for row in rows], dtype=np.int64)
        self.dealer: Positions = np.repeat(np.arange(len(rows), dtype=narrow), self.counts)
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._by_holder = np.argsort(self.holder, kind="stable").astype(np.int32)
        per_holder = np.bincount(self.holder, minlength=len(ids))
        self._holder_starts = np.concatenate([[0], np.cumsum(per_holder)])

    def __len__(self) -> int:
        return len(self.holder)

    def of_dealer(self, i: int) -> slice:
        """The edges of the dealer at position i, ascending by holder."""
        return slice(int(self._starts[i]), int(self._starts[i + 1]))

    def of_holder(self, j: int) -> NDArray[np.int32]:
        """The edges of the holder at position j, ascending by dealer."""
        return self._by_holder[self._holder_starts[j] : self._holder_starts[j + 1]]


def _positions(graph: NeighbourGraph, u: ClientId, ids: Ids, *, own: bool) -> NDArray[np.intp]:
    """Positions of the holders of u's secrets."""
    positions = graph.positions(u, ids)
    return np.union1d(positions, np.flatnonzero(ids == u)) if own else positions


def peel(members: Collection[ClientId], graph: NeighbourGraph, t: int) -> set[ClientId]:
    """Removes everybody with fewer than t holders in the set, until nobody is left to remove.

    A client whose secrets could not be reconstructed any more would turn one dropout into the loss
    of the round; it is better left out before anything depends on it.
    """
    left = set(members)
    while weak := {u for u in left if graph.holder_count(u, left) < t}:
        left -= weak
    return left
