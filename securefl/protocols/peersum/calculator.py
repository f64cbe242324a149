"""From the most that lie and the most that vanish to q, t and a price.

The conditions are plain inequalities (see ``params``), nothing is left to chance. q and t are the
most that D dropouts leave: then most peers must pool what they have seen before one input shows.
This module knows numbers only; whether a session may start is decided by every peer for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from securefl.errors import ConfigurationError
from securefl.primitives.field import PRIME
from securefl.protocols.peersum.params import PeerSumParams, check_sum_fits
from securefl.protocols.peersum.sizes import SessionShape, traffic
from securefl.protocols.traffic import Traffic, expansion
from securefl.round import MAX_COHORT, ThreatModel

__all__ = ["PeerPlan", "plan_round"]

Json: TypeAlias = dict[str, str | int | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPlan:
    """Parameters and bytes of a session without a server.

    Attributes:
        params: q, t, n_min and the threat model.
        length: entries of the vector, m.
        input_bits: bits of one peer's entry.
        traffic: bytes of one peer if nobody vanishes; dropouts never add to them.
        expansion: (up + down) over the plain input's bytes.
    """

    params: PeerSumParams
    length: int
    input_bits: int
    traffic: Traffic
    expansion: float

    def summary(self) -> Json:
        """The plan as flat fields, ready for JSON."""
        params = self.params
        return {
            "protocol": "peersum",
            "quorum": params.q,
            "threshold": params.t,
            "corrupt": params.threat.corrupt,
            "dropped": params.threat.dropped,
            "min_honest": params.min_honest,
            "modulus": PRIME,
            "upload_bytes": self.traffic.upload_bytes,
            "download_bytes": self.traffic.download_bytes,
            "expansion": self.expansion,
        }

    def explain(self) -> str:
        """The choice in words; every number and why it is what it is."""
        params = self.params
        n, q, t = params.n, params.q, params.t
        A, D = params.threat.corrupt, params.threat.dropped
        return "\n".join(
            (
                f"Assumed: n={n} peers, at most A={A} of them do anything they like, at most D={D} "
                "gone at the end; there is no server, and messages are always signed.",
                f"Shares: any t={t} sums of shares open the sum (t = n-D), and t-1 = {t - 1} peers "
                "that pool what they have seen learn nothing about one input.",
                f"List: q={q} signatures on one survivor list before anybody reveals anything; "
                f"2q = {2 * q} > n+A = {n + A}, so there is only one such list.",
                f"Wrong sums of shares: if nobody drops out, up to {(n - t) // 2} are corrected; "
                f"with all D={D} gone none is noticed.",
                f"Sum: opened over at least n_min = {params.n_min} inputs or not at all; "
                f"min_honest={params.min_honest} of them are honest for sure (n_min-A).",
                f"Field: entries mod 2^31-1; {n} inputs of {self.input_bits} bits cannot wrap "
                "around it.",
                f"Bytes: a peer sends {self.traffic.upload_bytes:,} and receives "
                f"{self.traffic.download_bytes:,} for {self.length:,} entries, "
                f"{self.expansion:.4f} times the plain input in both directions together; they "
                "grow with n for each peer.",
            )
        )


def plan_round(n: int, threat: ThreatModel, *, length: int, input_bits: int) -> PeerPlan:
    """Parameters and bytes of a session.

    Args:
        n: cohort size, at least 3; sensible for few.
        threat: A and D. Its adversary is not read: peers may always lie.
        length: entries of the vector, at least 1.
        input_bits: bits of one peer's entry, at least 1; n (2^input_bits - 1) < 2^31 - 1.

    Raises:
        ConfigurationError: infeasible bounds, inputs that do not fit the field, or a vector that
            fits no frame.

    >>> plan = plan_round(10, ThreatModel(corrupt=1, dropped=3), length=1000, input_bits=16)
    >>> plan.params.q, plan.params.t, plan.params.min_honest
    (7, 7, 6)
    """
    if not 3 <= n <= MAX_COHORT:
        raise ConfigurationError(f"a cohort has 3 to {MAX_COHORT} peers, found {n}")
    if length < 1:
        raise ConfigurationError(f"a vector has at least 1 entry, found {length}")
    params = PeerSumParams.of(
        n,
        corrupt=threat.corrupt,
        dropped=threat.dropped,
        assume_no_corruption=threat.assume_no_corruption,
    )
    check_sum_fits(n, input_bits)
    params.check_length(length)
    bytes_of_all = traffic(SessionShape(n=n, m=length))
    return PeerPlan(
        params=params,
        length=length,
        input_bits=input_bits,
        traffic=bytes_of_all,
        expansion=expansion(bytes_of_all, length=length, input_bits=input_bits),
    )
