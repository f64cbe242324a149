"""From a threat model to U, T, the length of a share and a price.

So et al. 2022, section 4: the conditions are plain inequalities, nothing is left to chance. U = N-D
and T = A are the most and the fewest that the threat model allows, so K = U - T is largest and the
shares are shortest. This module knows numbers only; whether a session may start is decided by
``params`` on both sides, never by who computed the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from securefl.errors import ConfigurationError
from securefl.primitives.field import PRIME
from securefl.protocols.lightsecagg.params import LightSecAggParams, check_sum_fits
from securefl.protocols.lightsecagg.sizes import SessionShape, traffic
from securefl.protocols.traffic import Traffic, expansion
from securefl.round import MAX_COHORT, Adversary, ThreatModel

__all__ = ["LightPlan", "plan_round"]

Json: TypeAlias = dict[str, str | int | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LightPlan:
    """Parameters and bytes of a round.

    Attributes:
        params: U, T and the threat model.
        length: entries of the vector, m.
        input_bits: bits of one client's entry.
        shape: the counts that decide how long messages are.
        traffic: bytes of one client; dropouts never add to them.
        expansion: (up + down) over the plain input's bytes.
    """

    params: LightSecAggParams
    length: int
    input_bits: int
    shape: SessionShape
    traffic: Traffic
    expansion: float

    def summary(self) -> Json:
        """The plan as flat fields, ready for JSON."""
        params = self.params
        return {
            "protocol": "lightsecagg",
            "U": params.U,
            "T": params.T,
            "blocks": params.blocks,
            "share_length": self.shape.share_length,
            "corrupt": params.threat.corrupt,
            "dropped": params.threat.dropped,
            "min_honest": params.n_min - params.T,
            "modulus": PRIME,
            "upload_bytes": self.traffic.upload_bytes,
            "download_bytes": self.traffic.download_bytes,
            "expansion": self.expansion,
        }

    def explain(self) -> str:
        """The choice in words; every number and why it is what it is."""
        params, threat = self.params, self.params.threat
        n, U, T, A, D = params.n, params.U, params.T, threat.corrupt, threat.dropped
        active = threat.adversary is Adversary.ACTIVE
        server = (
            "one that may tell each client something else (active)"
            if active
            else "one that follows the protocol (semi-honest)"
        )
        lists = f"; 2U = {2 * U} > N+T = {n + T}, so only one survivor list is answered"
        spare = max(0, n - U)
        return "\n".join(
            (
                f"Assumed: n={n} clients, at most A={A} of them corrupt, at most D={D} gone at the "
                f"end; the server is {server}.",
                f"Shares: T={T} clients together learn nothing about a mask (T = A, at least 1); "
                f"any U={U} answers open the sum (U = n-D){lists if active else ''}. A mask is cut "
                "into "
                f"K = U-T = {params.blocks} blocks, so a share has L = {self.shape.share_length:,} "
                "entries. Nothing is left to chance.",
                f"Wrong answers: if nobody drops out, up to {spare // 2} are corrected; with all "
                f"D={D} gone none is noticed.",
                f"Sum: opened over at least n_min = {params.n_min} inputs or not at all; "
                f"min_honest={params.n_min - T} of them are honest for sure (n_min-T).",
                f"Field: entries mod 2^31-1; {n} inputs of {self.input_bits} bits cannot wrap "
                "around it.",
                f"Bytes: a client sends {self.traffic.upload_bytes:,} and receives "
                f"{self.traffic.download_bytes:,} for {self.length:,} entries, "
                f"{self.expansion:.4f} times the plain input in both directions together, "
                "whoever vanishes.",
            )
        )


def plan_round(n: int, threat: ThreatModel, *, length: int, input_bits: int) -> LightPlan:
    """Parameters and bytes of a round.

    Args:
        n: cohort size, 3 to 2^20.
        threat: adversary, A and D.
        length: entries of the vector, at least 1.
        input_bits: bits of one client's entry, at least 1; n (2^input_bits - 1) < 2^31 - 1.

    Raises:
        ConfigurationError: infeasible bounds, inputs that do not fit the field, or shares that fit
            no frame.

    >>> plan = plan_round(200, ThreatModel(corrupt=100, dropped=60), length=10**6, input_bits=16)
    >>> plan.params.U, plan.params.T, plan.shape.share_length
    (140, 100, 25000)
    """
    if not 3 <= n <= MAX_COHORT:
        raise ConfigurationError(f"a cohort has 3 to {MAX_COHORT} clients, found {n}")
    if length < 1:
        raise ConfigurationError(f"a vector has at least 1 entry, found {length}")
    if threat.corrupt == 0:
        params = LightSecAggParams.of(n, threat, T=1)
    else:
        params = LightSecAggParams.of(n, threat)
    check_sum_fits(n, input_bits)
    shape = SessionShape(n=n, U=params.U, T=params.T, m=length, adversary=threat.adversary)
    bytes_of_all = traffic(shape)
    return LightPlan(
        params=params,
        length=length,
        input_bits=input_bits,
        shape=shape,
        traffic=bytes_of_all,
        expansion=expansion(bytes_of_all, length=length, input_bits=input_bits),
    )
