"""The server's last collection: shares of b and of s as they come in, and what they open.

Bonawitz et al. 2017, figure 4, last round: b_u of the survivors, s_sk of those who dropped out
after they had dealt shares, never both of one client. This module puts ids on what
``reconstruction`` finds by position; it knows no frames, no phases and not what a secret must
match.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefl.protocols.machine import ShareMismatch
from securefl.protocols.secagg.graph import Edges, NeighbourGraph
from securefl.protocols.secagg.messages import B_WORDS, S_WORDS, UnmaskShares
from securefl.protocols.secagg.reconstruction import Opened, ShareTable, open_secrets
from securefl.round import ClientId, RoundConfig

__all__ = ["Opening", "Unmasking"]

Matches = Callable[[ClientId, bytes], bool]


@dataclass(slots=True, kw_only=True)
class Opening:
    """All secrets that shares gave, and whose shares did not fit.

    Attributes:
        seeds: b_u by survivor.
        mask_keys: s_sk by dropped client.
        mismatches: dealers whose secret was had although shares contradict each other.
        failed: (dealer, holder) for all shares of secrets that could not be had.
    """

    seeds: dict[ClientId, bytes] = field(default_factory=dict, repr=False)
    mask_keys: dict[ClientId, bytes] = field(default_factory=dict, repr=False)
    mismatches: list[ShareMismatch] = field(default_factory=list)
    failed: list[tuple[ClientId, ClientId]] = field(default_factory=list)

    @property
    def pairs(self) -> tuple[tuple[ClientId, ClientId], ...]:
        """All (dealer, holder) pairs whose share is known to be wrong, ascending."""
        known = ((m.dealer, holder) for m in self.mismatches if m.located for holder in m.holders)
        return tuple(sorted(known))


class Unmasking:
    """Shares as they come in.

    Args:
        graph: who is whose neighbour.
        U2: who dealt shares, ascending.
        U3: whose inputs are in the sum, ascending.
        own: whether clients hold a share of their own seed (layout ``ALL``).

    Attributes:
        U3: ids of the survivors, and their positions among the dealers of b and all holders.
        dropped: U2 \\ U3, the dealers of s.
        b, s: the shares.
        needed: bool[dealers] for b and for s: all survivors, and those dropped clients that a
            survivor shared a mask with.
    """

    __slots__ = ("U3", "b", "dropped", "needed", "s")

    def __init__(
        self,
        graph: NeighbourGraph,
        U2: Sequence[ClientId],
        U3: Sequence[ClientId],
        *,
        own: bool,
    ) -> None:
        there = set(U3)
        self.U3 = {u: i for i, u in enumerate(U3)}
        self.dropped = tuple(u for u in U2 if u not in there)
        b = Edges(graph, U3, U3, own=own)
        s = Edges(graph, self.dropped, U3)
        self.b = ShareTable(b, words=B_WORDS, secret_bytes=16)
        self.s = ShareTable(s, words=S_WORDS, secret_bytes=32)
        self.needed = (np.ones(len(U3), dtype=np.bool_), s.counts > 0)

    def put(self, u: ClientId, message: UnmaskShares, alive: NDArray[np.bool_]) -> None:
        """Stores what u opened; ``alive``: bool[#Q], who of its peers is in U3."""
        row = self.U3[u]
        b_rows = self.b.edges.of_holder(row)
        if message.own is not None:
            is_own = self.b.edges.dealer[b_rows] == row
            self.b.put(b_rows[is_own], message.own.reshape(1, -1))
            b_rows = b_rows[~is_own]
        self.b.put(b_rows[message.readable[alive]], message.b_shares)
        s_rows = self.s.edges.of_holder(row)
        self.s.put(s_rows[message.readable[~alive]], message.s_shares)

    def fewest(self) -> int:
        """Shares of the needed secret with the fewest."""
        counts = [self.b.fewest(self.needed[0]), self.s.fewest(self.needed[1])]
        return min(c for c in counts if c is not None)

    def open(
        self, config: RoundConfig, seed_matches: Matches, mask_key_matches: Matches
    ) -> Opening:
        """All needed secrets, each checked by the function for its kind."""
        survivors = tuple(self.U3)
        places = np.searchsorted(np.array(config.cohort.ids), np.array(survivors))
        points = 1 + places.astype(np.uint64)
        opening = Opening()
        suspected: set[int] = set()

        def open_kind(
            shares: ShareTable,
            dealers: Sequence[ClientId],
            needed: NDArray[np.bool_],
            matches: Matches,
        ) -> dict[ClientId, bytes]:
            opened = open_secrets(
                shares,
                needed,
                points=points,
                t=config.t,
                check=lambda place, secret: matches(dealers[place], secret),
                suspected=suspected,
            )
            suspected.update(*opened.wrong.values())
            for place, located, who in _blamed(shares, opened):
                holders = tuple(survivors[i] for i in who)
                opening.mismatches.append(
                    ShareMismatch(dealer=dealers[place], holders=holders, located=located)
                )
            for place in opened.failed:
                opening.failed += [(dealers[place], survivors[i]) for i in shares.holders(place)]
            return {dealers[place]: secret for place, secret in opened.secrets.items()}

        opening.seeds = open_kind(self.b, survivors, self.needed[0], seed_matches)
        opening.mask_keys = open_kind(self.s, self.dropped, self.needed[1], mask_key_matches)
        return opening

    def __repr__(self) -> str:
        return f"Unmasking({self.b}, {self.s})"


def _blamed(shares: ShareTable, opened: Opened) -> list[tuple[int, bool, tuple[int, ...]]]:
    """(dealer, whether the wrong ones were told from the right ones, holders), ascending."""
    located = [(place, True, who) for place, who in opened.wrong.items()]
    return sorted(located + [(place, False, shares.holders(place)) for place in opened.unclear])
