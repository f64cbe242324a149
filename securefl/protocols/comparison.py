"""Which protocol finishes a round sooner: SecAgg+ or LightSecAgg, for given dropouts and bandwidth.

SecAgg and SecAgg+ send little and expand masks again for everybody who vanished; LightSecAgg sends
coded shares between all pairs of clients and then does not care who vanished. Which is faster
depends on the machine as much as on the numbers, so the times here are estimates: counts of
operations times unit costs, which were measured (``benchmarks/lightsecagg.py`` compares the result
with whole sessions on your machine). Of the network only one client's link is counted: the server's
is assumed to be as wide as all clients' together. This module knows plans, no keys and no messages.
"""

from __future__ import annotations

from dataclasses import dataclass

from securefl.errors import ConfigurationError
from securefl.protocols.lightsecagg.calculator import LightPlan
from securefl.protocols.secagg.calculator import GraphKind, RoundPlan
from securefl.round import Adversary

__all__ = ["UNIT_COSTS", "Comparison", "Estimate", "UnitCosts", "compare", "estimate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCosts:
    """CPU seconds of one operation, in one process.

    Attributes:
        mask_word: expand a word of a mask and add it.
        packed_word: pack or unpack an entry that is no whole machine word.
        plain_word: hash, check and add an entry that is one.
        neighbour: SecAgg, per neighbour of a client: two key agreements, shares, encryption.
        rebuilt_pair: SecAgg, server, per pair mask of a vanished client, without its words.
        client: SecAgg, server, per client: its frames, its keys, its secret.
        peer: LightSecAgg, per peer of a client: a key agreement, two keys, encryption.
        member: LightSecAgg, server, per client: its frames, its key.
        element: LightSecAgg, expand a field element.
        product: LightSecAgg, multiply and add two field elements.
        byte: encrypt or decrypt, hash and copy a byte.
        frame: pass on one frame.
        signature: verify one.
    """

    mask_word: float = 0.5e-9
    packed_word: float = 11e-9
    plain_word: float = 3e-9
    neighbour: float = 110e-6
    rebuilt_pair: float = 60e-6
    client: float = 450e-6
    peer: float = 90e-6
    member: float = 150e-6
    element: float = 6e-9
    product: float = 0.23e-9
    byte: float = 0.9e-9
    frame: float = 4e-6
    signature: float = 100e-6


UNIT_COSTS = UnitCosts()
"""Measured on one core of an AMD EPYC server (AES-NI, SHA-NI, AVX-512)."""

_NATIVE = (8, 16, 32, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Where the time of a round goes, in seconds.

    Attributes:
        client: CPU of one client; all work at the same time.
        transfer: both directions over one client's link.
        server: CPU, in one process.
        recovery: the part of ``client`` and ``server`` that begins when the last input is in. The
            rest of LightSecAgg can run before the inputs are known, for instance while the clients
            still train.
    """

    client: float
    transfer: float
    server: float
    recovery: float

    @property
    def total(self) -> float:
        """Client, transfer and server, one after the other."""
        return self.client + self.transfer + self.server


def _transfer(upload: int, download: int, bandwidth: float) -> float:
    return 8 * (upload + download) / bandwidth


def _estimate_secagg(plan: RoundPlan, gone: int, bandwidth: float, costs: UnitCosts) -> Estimate:
    chosen = plan.parameters
    n, k, m, b = chosen.n, chosen.k, plan.length, plan.modulus_bits
    alive = n - gone
    wire_word = costs.plain_word if b in _NATIVE else costs.packed_word
    # Active: each neighbour's key and survivor signature; the server: every frame.
    signed = costs.signature if chosen.threat.adversary is Adversary.ACTIVE else 0.0
    client = k * (costs.neighbour + 2 * signed) + m * ((k + 1) * costs.mask_word + wire_word)
    pairs = gone * k * alive / n  # masks that do not cancel, on average over the graph
    recovery = alive * m * costs.mask_word
    recovery += pairs * (costs.rebuilt_pair + m * costs.mask_word)
    traffic = plan.traffic if gone == 0 else plan.traffic_dropouts
    return Estimate(
        client=client,
        transfer=_transfer(traffic.upload_bytes, traffic.download_bytes, bandwidth),
        server=n * (costs.client + 6 * signed) + alive * m * wire_word + recovery,
        recovery=recovery,
    )


def _estimate_light(plan: LightPlan, gone: int, bandwidth: float, costs: UnitCosts) -> Estimate:
    shape = plan.shape
    n, U, T, m, L = shape.n, shape.U, shape.T, shape.m, shape.share_length
    alive, peers = n - gone, n - 1
    share = 4 * L * costs.byte
    signed = costs.signature if shape.adversary is Adversary.ACTIVE else 0.0
    client = peers * (costs.peer + 2 * share + 2 * signed)  # one share dealt, one received
    client += U * L * (costs.element + n * costs.product) + m * costs.plain_word
    answer = alive * L * costs.mask_word
    # Interpolation at K points, and two random combinations of every answer to look for wrong ones.
    decode = L * ((U - T) * U + 2 * alive) * costs.product + alive * L * costs.plain_word
    server = n * (costs.member + 6 * signed) + alive * m * costs.plain_word
    server += n * peers * (costs.frame + share)
    return Estimate(
        client=client + answer,
        transfer=_transfer(plan.traffic.upload_bytes, plan.traffic.download_bytes, bandwidth),
        server=server + decode,
        recovery=answer + decode,
    )


def estimate(
    plan: RoundPlan | LightPlan, *, gone: int, bandwidth: float, costs: UnitCosts = UNIT_COSTS
) -> Estimate:
    """How long a planned round takes if ``gone`` clients vanish before their input.

    Args:
        plan: of either protocol.
        gone: clients that dealt their shares and vanished, 0 to the D of the plan.
        bandwidth: of one client's link, bits per second in each direction.
        costs: of the machines.

    Raises:
        ConfigurationError: for more dropouts than planned, or no bandwidth.
    """
    chosen = plan.params if isinstance(plan, LightPlan) else plan.parameters
    most = chosen.threat.dropped
    if not 0 <= gone <= most:
        raise ConfigurationError(f"the plan is for 0 to {most} dropouts, found {gone}")
    if not 0 < bandwidth < float("inf"):
        raise ConfigurationError(f"a bandwidth is a positive number of bits/s, found {bandwidth}")
    if isinstance(plan, LightPlan):
        return _estimate_light(plan, gone, bandwidth, costs)
    return _estimate_secagg(plan, gone, bandwidth, costs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both protocols for one threat model, with all D planned dropouts and with none.

    Attributes:
        bandwidth: bits per second of one client's link, each direction.
        dropped: D.
        secagg, light: estimates with D dropouts.
        secagg_none, light_none: estimates with no dropout.
        from_dropouts: the fewest dropouts with which LightSecAgg finishes sooner; None if even D
            of them do not make it so.
        from_bandwidth: the bandwidth from which on LightSecAgg finishes sooner with D dropouts; 0
            if it does at every one; None if a faster link does not make it so.
        rival: "SecAgg+", or "SecAgg" where the plan has the complete graph.
    """

    bandwidth: float
    dropped: int
    secagg: Estimate
    light: Estimate
    secagg_none: Estimate
    light_none: Estimate
    from_dropouts: int | None
    from_bandwidth: float | None
    rival: str

    @property
    def light_is_faster(self) -> bool:
        """Whether LightSecAgg finishes sooner with D dropouts."""
        return self.light.total < self.secagg.total

    def summary(self) -> dict[str, str | int | float | None]:
        """The comparison as flat fields, ready for JSON."""
        return {
            "bandwidth": self.bandwidth,
            "faster": "lightsecagg" if self.light_is_faster else "secagg",
            "seconds_lightsecagg": self.light.total,
            "seconds_secagg": self.secagg.total,
            "recovery_seconds_lightsecagg": self.light.recovery,
            "recovery_seconds_secagg": self.secagg.recovery,
            "faster_from_dropouts": self.from_dropouts,
            "faster_from_bandwidth": self.from_bandwidth,
        }

    def explain(self) -> str:
        """The advice in words."""
        rival, light, secagg = self.rival, self.light, self.secagg
        first, second = ("LightSecAgg", rival) if self.light_is_faster else (rival, "LightSecAgg")
        if self.from_dropouts is not None:
            when = f"LightSecAgg is faster from {self.from_dropouts} dropouts on"
        elif self.from_bandwidth:
            when = (
                f"LightSecAgg would be faster with {self.dropped} dropouts from "
                f"{_rate(self.from_bandwidth)} on"
            )
        else:
            when = "a faster link would not change that"
        return (
            f"Time: with {self.dropped} dropouts and {_rate(self.bandwidth)} per client {first} "
            f"finishes before {second}: LightSecAgg takes about {light.total:.3g} s, {rival} "
            f"{secagg.total:.3g} s (without dropouts {self.light_none.total:.3g} s against "
            f"{self.secagg_none.total:.3g} s); {when}. After the last input LightSecAgg needs "
            f"{light.recovery:.3g} s of computing, {rival} {secagg.recovery:.3g} s. "
            "Estimates, from unit costs of another machine."
        )


def _rate(bandwidth: float) -> str:
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bandwidth >= size:
            return f"{bandwidth / size:.3g} {unit}"
    return f"{bandwidth:.3g} bit/s"


def compare(
    secagg: RoundPlan, light: LightPlan, *, bandwidth: float, costs: UnitCosts = UNIT_COSTS
) -> Comparison:
    """Both plans against each other.

    Args:
        secagg: a plan of SecAgg or SecAgg+.
        light: a plan of LightSecAgg for the same clients, threat model and vector.
        bandwidth: of one client's link, bits per second in each direction.
        costs: of the machines.

    Raises:
        ConfigurationError: if the plans are for different rounds, or for no bandwidth.
    """
    chosen = secagg.parameters
    same = (chosen.n, chosen.threat, secagg.length) == (
        light.params.n,
        light.params.threat,
        light.length,
    )
    if not same:
        raise ConfigurationError("the plans are for different cohorts, threat models or vectors")
    D = chosen.threat.dropped

    def both(gone: int) -> tuple[Estimate, Estimate]:
        return (
            estimate(secagg, gone=gone, bandwidth=bandwidth, costs=costs),
            estimate(light, gone=gone, bandwidth=bandwidth, costs=costs),
        )

    def wins(gone: int) -> bool:
        pairwise, coded = both(gone)
        return coded.total < pairwise.total

    (pairwise, coded), (pairwise_none, coded_none) = both(D), both(0)
    return Comparison(
        bandwidth=bandwidth,
        dropped=D,
        secagg=pairwise,
        light=coded,
        secagg_none=pairwise_none,
        light_none=coded_none,
        from_dropouts=next((gone for gone in range(D + 1) if wins(gone)), None),
        from_bandwidth=_break_even(pairwise, coded, bandwidth),
        rival="SecAgg" if chosen.graph is GraphKind.COMPLETE else "SecAgg+",
    )


def _break_even(secagg: Estimate, light: Estimate, bandwidth: float) -> float | None:
    """Where the bits that LightSecAgg sends more take as long as the computing that it saves."""
    saved = (secagg.client + secagg.server) - (light.client + light.server)
    more_bits = (light.transfer - secagg.transfer) * bandwidth
    return max(0.0, more_bits) / saved if saved > 0 else None
