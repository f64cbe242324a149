"""What a round is: who takes part, under which parameters, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from securefl.modular import RingVector

__all__ = ["AggregateSum", "ClientId", "RoundId"]

ClientId = NewType("ClientId", int)
RoundId = NewType("RoundId", int)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateSum:
    """The opened sum of one session.

    Attributes:
        vector: sum of the survivors' inputs mod m.
        survivors: U3, ascending: whose inputs are in the sum.
        min_honest: how many of them are honest under the threat model.
        mismatched_pairs: (dealer, holder) pairs whose shares did not fit and were corrected.
        verified: every reconstructed secret matched what its dealer committed to.
        transcript_digest: SHA-256 over the accepted frames in (phase, sender) order; 32 bytes.
    """

    vector: RingVector
    survivors: tuple[ClientId, ...]
    min_honest: int
    mismatched_pairs: tuple[tuple[ClientId, ClientId], ...] = ()
    verified: bool = True
    transcript_digest: bytes = b""
