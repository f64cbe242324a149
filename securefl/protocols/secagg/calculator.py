"""From a threat model to a graph, a threshold and a price: the parameter calculator.

Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", section 4.2,
in a strict form: the one client that is looked at is honest and alive and holds no share of its
own, so everybody else is a population of n - 1; bounds on clients are rounded up; probabilities
are tails of the exact hypergeometric law, with no approximation. Where no sparse graph qualifies,
the complete graph of Bonawitz et al. 2017 is taken, whose conditions are plain inequalities.
This module knows numbers only: no keys, no messages, no machine. Whether a session may start is
decided by ``params`` on both sides, never by who computed the numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.protocols.secagg.sizes import SessionShape, Traffic, expansion, traffic
from securefl.round import MAX_COHORT, Adversary, ThreatModel

__all__ = [
    "Failure",
    "GraphKind",
    "Parameters",
    "RoundPlan",
    "complete_graph",
    "modulus_bits",
    "parameters",
    "plan_round",
]

Json: TypeAlias = dict[str, str | int | float]

_MOST_BITS = 128
"""Largest sigma and eta: beyond, the operating system's generator is the weaker part."""

_TIE = 1e-9
"""Relative room for rounding: a probability this close to its bound counts as above it."""


class GraphKind(StrEnum):
    """Who is whose neighbour: everybody, or k others in a random Harary graph."""

    COMPLETE = "complete"
    HARARY = "harary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """log2 of what the parameters leave to chance in one round; -inf is "cannot happen".

    Attributes:
        privacy: some client has more than c* corrupt neighbours.
        connectivity: the honest survivors' graph falls apart (semi-honest: the sum of each part
            would be opened).
        loss: some client has fewer than t neighbours left, and the round with it is lost.
    """

    privacy: float
    connectivity: float
    loss: float


_IMPOSSIBLE = Failure(privacy=-math.inf, connectivity=-math.inf, loss=-math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Degree and threshold for one threat model, with the numbers they come from.

    Attributes:
        n: cohort size.
        threat: adversary, A corrupt, D dropped.
        sigma: privacy fails with probability at most 2^-sigma.
        eta: a round is lost with probability at most 2^-eta while at most D clients drop.
        graph: complete, or Harary (SecAgg+).
        k: neighbours per client; n - 1 is the complete graph.
        t: shares that rebuild a secret, the least that is safe; up to ``t_max`` is allowed.
        c_star: most corrupt holders of one client's secrets.
        t_max: holders of one client's secrets that are left for sure.
        n_min: fewest survivors, n - D.
        min_honest: fewest honest inputs in any sum that is opened.
        failure: what remains to chance.
    """

    n: int
    threat: ThreatModel
    sigma: int
    eta: int
    graph: GraphKind
    k: int
    t: int
    c_star: int
    t_max: int
    n_min: int
    min_honest: int
    failure: Failure

    def explain(self) -> str:
        """The choice in words; every number and why it is what it is."""
        return "\n".join((self._assumed(), self._degree(), self._threshold(), self._settled()))

    def _assumed(self) -> str:
        A, D = self.threat.corrupt, self.threat.dropped
        server = (
            "one that follows the protocol (semi-honest)"
            if self.threat.adversary is Adversary.SEMI_HONEST
            else "one that may tell each client something else (active)"
        )
        return (
            f"Assumed: n={self.n} clients, at most A={A} of them corrupt, at most D={D} gone at "
            f"the end; the server is {server}."
        )

    def _degree(self) -> str:
        if self.graph is GraphKind.COMPLETE:
            return (
                f"Graph: complete, everybody has k = n-1 = {self.k} neighbours; all A={self.c_star}"
                f" corrupt clients hold shares of every secret and t_max = n-1-D = {self.t_max} "
                "holders are left. Nothing is left to chance."
            )
        text = (
            f"Graph: Harary (SecAgg+), k={self.k} of {self.n - 1} possible neighbours, the fewest "
            f"for which privacy fails with probability at most 2^-{self.sigma} and a round is lost "
            f"with at most 2^-{self.eta}. At most c*={self.c_star} neighbours of any client are "
            f"corrupt (fails: {_chance(self.failure.privacy)}); the graph of the honest survivors "
            f"is connected (fails: {_chance(self.failure.connectivity)}); at least "
            f"t_max={self.t_max} neighbours of any client stay."
        )
        if self.threat.adversary is Adversary.ACTIVE:
            text += (
                " Against an active server this graph is experimental: its shape must come from "
                "a public beacon, and the security argument has no published proof."
            )
        return text

    def _threshold(self) -> str:
        if self.threat.adversary is Adversary.ACTIVE:
            why = (
                f"the least with 2t > k + c* = {self.k + self.c_star}, so that no two survivor "
                "lists can both be opened"
            )
        elif self.t == self.c_star + 1:
            why = f"one more than the c*={self.c_star} holders that may collude"
        else:
            why = "the least at which no client alone can rebuild a secret"
        return (
            f"Threshold: t={self.t} shares rebuild a secret, {why}; every t up to {self.t_max} "
            f"would do. A round of at most D={self.threat.dropped} dropouts is lost to missing "
            f"shares: {_chance(self.failure.loss)}."
        )

    def _settled(self) -> str:
        if self.graph is GraphKind.HARARY and self.threat.adversary is Adversary.ACTIVE:
            why = f"t+1-c* = {self.t}+1-{self.c_star}"
        else:
            why = f"n_min-A = {self.n_min}-{self.threat.corrupt}"
        return (
            f"Sum: opened over at least n_min = n-D = {self.n_min} inputs or not at all; "
            f"min_honest={self.min_honest} of them are honest for sure ({why})."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """Parameters, ring and bytes of a round.

    Attributes:
        parameters: degree, threshold and what follows.
        length: entries of the vector, m.
        input_bits: bits of one client's entry.
        modulus_bits: b of the ring Z_{2^b} that n such entries fit.
        traffic: bytes of one client, nobody dropping out.
        traffic_dropouts: the same if D clients drop after they have dealt their shares.
        expansion: (up + down) over the plain input's bytes, nobody dropping out.
    """

    parameters: Parameters
    length: int
    input_bits: int
    modulus_bits: int
    traffic: Traffic
    traffic_dropouts: Traffic
    expansion: float

    def summary(self) -> Json:
        """The plan as flat fields, ready for JSON."""
        chosen = self.parameters
        return {
            "graph": chosen.graph.value,
            "degree": chosen.k,
            "threshold": chosen.t,
            "corrupt": chosen.threat.corrupt,
            "dropped": chosen.threat.dropped,
            "min_honest": chosen.min_honest,
            "modulus_bits": self.modulus_bits,
            "upload_bytes": self.traffic.upload_bytes,
            "download_bytes": self.traffic.download_bytes,
            "expansion": self.expansion,
        }

    def explain(self) -> str:
        """The choice in words; every number and why it is what it is."""
        up, down = self.traffic.upload_bytes, self.traffic.download_bytes
        return (
            f"{self.parameters.explain()}\n"
            f"Ring: entries mod 2^{self.modulus_bits}, the smallest power of two that a sum of "
            f"{self.parameters.n} inputs of {self.input_bits} bits cannot wrap around.\n"
            f"Bytes: a client sends {up:,} and receives {down:,} for {self.length:,} entries, "
            f"{self.expansion:.4f} times the plain input in both directions together; "
            f"it sends at most {self.traffic_dropouts.upload_bytes:,} if clients vanish after "
            "dealing their shares."
        )


def parameters(n: int, threat: ThreatModel, *, sigma: int = 40, eta: int = 20) -> Parameters:
    """The smallest degree, and for it the smallest threshold, that the threat model allows.

    With B = A + D, X ~ Hypergeometric(n-1, A, k) corrupt and Y ~ Hypergeometric(n-1, n-1-D, k)
    living neighbours of one client, a Harary graph of even degree k <= n - 2 qualifies if

    * it stays connected: k > B, or n (n-k-1)/2 · C(B, k)/C(n, k) < 2^-(sigma+1);
    * c* = min{x: Pr[X > x] <= 2^-(sigma+1)/n} and t_min = c*+1 (semi-honest) or
      floor((k+c*)/2)+1 (active), at least 2;
    * t_min <= t_max = max{y: Pr[Y < y] <= 2^-eta/n}.

    If none does: the complete graph, c* = A and t_max = n-1-D.

    Args:
        n: cohort size, 3 to 2^20.
        threat: adversary, A and D.
        sigma: security parameter in bits, 1 to 128.
        eta: correctness parameter in bits, 1 to 128.

    Raises:
        ConfigurationError: if not even the complete graph qualifies. The message says which
            condition fails and which numbers would do.

    >>> one = parameters(100, ThreatModel.from_rates(100, gamma="0.05", delta="0.1"))
    >>> one.graph.value, one.k, one.t, one.c_star, one.t_max
    ('harary', 16, 6, 5, 7)
    """
    _check(n, sigma, eta)
    A, D = threat.corrupt, threat.dropped
    if n - D - A < 2:
        raise _infeasible(n, threat)
    k = _first_connected(n, A + D, sigma)
    while k <= n - 2:
        found = _holders(n, k, threat, sigma, eta)
        t = _least_threshold(k, found.c_star, threat.adversary)
        missing = t - found.t_max
        if missing <= 0:
            return _harary(n, threat, sigma, eta, k, t, found)
        # One neighbour more raises t_max by at most one and never lowers c*, so it closes the gap
        # by at most one (active: two neighbours raise t_min by one as well). Every degree that is
        # passed over here would have failed: the result is that of the scan over all degrees.
        step = missing * (1 if threat.adversary is Adversary.SEMI_HONEST else 2)
        k += step + step % 2
    return complete_graph(n, threat, sigma=sigma, eta=eta)


def complete_graph(n: int, threat: ThreatModel, *, sigma: int = 40, eta: int = 20) -> Parameters:
    """The complete graph with its smallest threshold: nothing in it is left to chance.

    Args:
        n: cohort size, 3 to 2^20.
        threat: adversary, A and D.
        sigma: only recorded, as every failure is impossible here.
        eta: likewise.

    Raises:
        ConfigurationError: as :func:`parameters`.
    """
    _check(n, sigma, eta)
    A, D = threat.corrupt, threat.dropped
    t = _least_threshold(n - 1, A, threat.adversary)
    if t > n - 1 - D or n - D - A < 2:
        raise _infeasible(n, threat)
    return Parameters(
        n=n,
        threat=threat,
        sigma=sigma,
        eta=eta,
        graph=GraphKind.COMPLETE,
        k=n - 1,
        t=t,
        c_star=A,
        t_max=n - 1 - D,
        n_min=n - D,
        min_honest=n - D - A,
        failure=_IMPOSSIBLE,
    )


def modulus_bits(n: int, input_bits: int) -> int:
    """The least b with n (2^input_bits - 1) < 2^b: the largest sum does not wrap around.

    Raises:
        ConfigurationError: if input_bits is below 1 or the sum needs more than 64 bits.

    >>> modulus_bits(1024, 16)
    26
    """
    if input_bits < 1:
        raise ConfigurationError(f"an input has at least 1 bit per entry, found {input_bits}")
    bits = (n * ((1 << input_bits) - 1)).bit_length()
    if bits > 64:
        raise ConfigurationError(
            f"the sum of {n} inputs of {input_bits} bits needs {bits} bits, the ring has at most "
            f"64; use at most {64 - (n - 1).bit_length()} bits per entry"
        )
    return bits


def plan_round(
    n: int,
    threat: ThreatModel,
    *,
    length: int,
    input_bits: int,
    sigma: int = 40,
    eta: int = 20,
    graph: GraphKind | None = None,
) -> RoundPlan:
    """Parameters, ring and bytes of a round.

    Args:
        n: cohort size, 3 to 2^20.
        threat: adversary, A and D.
        length: entries of the vector, at least 1.
        input_bits: bits of one client's entry, at least 1.
        sigma: security parameter in bits; see :func:`parameters`.
        eta: correctness parameter in bits.
        graph: ``COMPLETE`` to have the complete graph where a sparse one would do; ``HARARY`` to
            refuse the complete one. Default: whatever :func:`parameters` finds.

    Raises:
        ConfigurationError: infeasible bounds, or a vector that fits no frame.
    """
    if length < 1:
        raise ConfigurationError(f"a vector has at least 1 entry, found {length}")
    if graph is GraphKind.COMPLETE:
        chosen = complete_graph(n, threat, sigma=sigma, eta=eta)
    else:
        chosen = parameters(n, threat, sigma=sigma, eta=eta)
    if graph is GraphKind.HARARY and chosen.graph is not graph:
        raise ConfigurationError(
            f"no Harary graph of even degree up to n-2 = {n - 2} satisfies sigma={sigma} and "
            f"eta={eta} for n={n}, A={threat.corrupt}, D={threat.dropped}, "
            f"{_words(threat.adversary)}; the complete graph does, with t={chosen.t}"
        )
    b = modulus_bits(n, input_bits)
    shape = SessionShape(n=n, k=chosen.k, m=length, b=b, adversary=threat.adversary)
    bytes_of_all = traffic(shape)
    return RoundPlan(
        parameters=chosen,
        length=length,
        input_bits=input_bits,
        modulus_bits=b,
        traffic=bytes_of_all,
        traffic_dropouts=traffic(shape, dropped=min(threat.dropped, chosen.k)),
        expansion=expansion(bytes_of_all, length=length, input_bits=input_bits),
    )


def _check(n: int, sigma: int, eta: int) -> None:
    if not 3 <= n <= MAX_COHORT:
        raise ConfigurationError(f"a cohort has 3 to {MAX_COHORT} clients, found {n}")
    for name, value in (("sigma", sigma), ("eta", eta)):
        if not 1 <= value <= _MOST_BITS:
            raise ConfigurationError(f"{name} must be in 1..{_MOST_BITS} bits, found {value}")


def _least_threshold(k: int, c_star: int, adversary: Adversary) -> int:
    """t_min: more than the colluding holders; active: also 2t > k + c*, for one list only."""
    least = c_star + 1 if adversary is Adversary.SEMI_HONEST else (k + c_star) // 2 + 1
    return max(2, least)


class _Holders(NamedTuple):
    c_star: int
    log2_more_corrupt: float
    t_max: int


def _holders(n: int, k: int, threat: ThreatModel, sigma: int, eta: int) -> _Holders:
    """C* and t_max of one client in a graph of degree k."""
    log2_n = math.log2(n)
    corrupt = _quantile(n - 1, threat.corrupt, k, -(sigma + 1) - log2_n)
    # Y = k - Z with Z ~ Hypergeometric(n-1, D, k), so Pr[Y < k-z] = Pr[Z > z].
    gone = _quantile(n - 1, threat.dropped, k, -eta - log2_n)
    return _Holders(corrupt.x, corrupt.log2, k - gone.x)


def _harary(
    n: int, threat: ThreatModel, sigma: int, eta: int, k: int, t: int, found: _Holders
) -> Parameters:
    A, D = threat.corrupt, threat.dropped
    log2_n = math.log2(n)
    active = threat.adversary is Adversary.ACTIVE
    return Parameters(
        n=n,
        threat=threat,
        sigma=sigma,
        eta=eta,
        graph=GraphKind.HARARY,
        k=k,
        t=t,
        c_star=found.c_star,
        t_max=found.t_max,
        n_min=n - D,
        # An active server chooses who drops, knowing the graph: only what one client sees counts.
        min_honest=t + 1 - found.c_star if active else n - D - A,
        failure=Failure(
            privacy=log2_n + found.log2_more_corrupt,
            connectivity=float(_log2_disconnected(n, A + D)[k]) if k <= A + D else -math.inf,
            loss=log2_n + _log2_more_than(n - 1, D, k, k - t),
        ),
    )


def _log2_disconnected(n: int, B: int) -> NDArray[np.float64]:
    """log2 of n (n-k-1)/2 · C(B, k)/C(n, k) for k = 0..B; float64[B + 1], falling."""
    i = np.arange(B, dtype=np.float64)
    chosen = np.concatenate(([0.0], np.cumsum(np.log2((B - i) / (n - i)))))
    k = np.arange(B + 1, dtype=np.float64)
    return np.asarray(chosen + np.log2(n * (n - k - 1) / 2), dtype=np.float64)


def _first_connected(n: int, B: int, sigma: int) -> int:
    """Smallest even k whose graph stays connected when B nodes leave, but for 2^-(sigma+1)."""
    enough = _log2_disconnected(n, B) < -(sigma + 1) - _TIE
    k = max(2, int(np.argmax(enough)) if enough.any() else B + 1)
    return k + k % 2


class _Quantile(NamedTuple):
    x: int
    log2: float


class _Law(NamedTuple):
    """Weights of a hypergeometric law on ``first``, ``first`` + 1, ...; ``above`` without x."""

    first: int
    above: NDArray[np.float64]
    total: float


def _law(population: int, marked: int, draws: int, log2_bound: float) -> _Law:
    """Hypergeometric(population, marked, draws) relative to its mode, wherever it matters.

    Weights are running products of exact ratios of neighbours, from the mode outwards, and are
    summed from the smallest on: relative errors stay below 1e-11 for a million clients, without a
    logarithm of a factorial. Left out is what Hoeffding's inequality for draws without replacement,
    Pr[|X - mean| >= s] <= 2 exp(-2 s²/draws), puts below 2^(log2_bound - 60).
    """
    low, high = max(0, draws - (population - marked)), min(marked, draws)
    mode = min(high, max(low, (draws + 1) * (marked + 1) // (population + 2)))
    radius = math.ceil(math.sqrt(draws / 2 * (61 - log2_bound) * math.log(2))) + 2
    first, last = max(low, mode - radius), min(high, mode + radius)
    x = np.arange(first, last, dtype=np.int64)
    rise = (marked - x) * (draws - x)  # w(x+1) / w(x) = rise / fall
    fall = (x + 1) * (population - marked - draws + x + 1)
    split = mode - first
    up = np.cumprod(rise[split:] / fall[split:])
    down = np.cumprod((fall[:split] / rise[:split])[::-1])[::-1]
    weights = np.concatenate((down, [1.0], up))
    from_x = np.cumsum(weights[::-1])[::-1]
    return _Law(first, np.append(from_x[1:], 0.0), float(from_x[0]))


def _quantile(population: int, marked: int, draws: int, log2_bound: float) -> _Quantile:
    """min{x: Pr[X > x] <= 2^log2_bound}, and log2 of that probability."""
    law = _law(population, marked, draws, log2_bound)
    too_likely = law.above > 2.0**log2_bound * law.total * (1 - _TIE)
    index = int(np.count_nonzero(too_likely))
    return _Quantile(law.first + index, _log2(float(law.above[index]) / law.total))


def _log2_more_than(population: int, marked: int, draws: int, x: int) -> float:
    """log2 Pr[X > x]; -inf where it is zero or below 2^-600."""
    law = _law(population, marked, draws, -600.0)
    index = x - law.first
    return _log2(float(law.above[index]) / law.total) if index < len(law.above) else -math.inf


def _log2(value: float) -> float:
    return math.log2(value) if value > 0 else -math.inf


def _chance(log2: float) -> str:
    """A probability in words, never below the true one."""
    return "impossible" if log2 == -math.inf else f"at most 2^{math.ceil(log2 * 10) / 10:.1f}"


def _words(adversary: Adversary) -> str:
    return "semi-honest server" if adversary is Adversary.SEMI_HONEST else "active server"


def _infeasible(n: int, threat: ThreatModel) -> ConfigurationError:
    """Which condition of the complete graph fails, and the nearest numbers that would do."""
    A, D = threat.corrupt, threat.dropped
    given = f"n={n}, A={A} corrupt, D={D} dropped, {_words(threat.adversary)}"
    t = _least_threshold(n - 1, A, threat.adversary)
    if n - D - A < 2:
        fails = (
            f"n-D-A = {n - D - A} honest inputs would be left in the smallest sum, "
            "at least 2 are needed"
        )
    else:
        bound = (
            f"2t > n-1+A = {n - 1 + A} (else two survivor lists can be opened)"
            if threat.adversary is Adversary.ACTIVE
            else "t > A and t >= 2 (else the colluders can rebuild secrets)"
        )
        fails = (
            f"the threshold needs {bound}, so t >= {t}, but after {D} dropouts only "
            f"n-1-D = {n - 1 - D} holders of a secret are left"
        )
    return ConfigurationError(
        f"no graph is safe for {given}: {fails}. {_would_do(n, threat)}; "
        "or take a larger cohort with the same A and D"
    )


def _would_do(n: int, threat: ThreatModel) -> str:
    """The largest A for this D and the largest D for this A; both from the complete graph."""
    A, D = threat.corrupt, threat.dropped
    active = threat.adversary is Adversary.ACTIVE
    most_corrupt = n - 2 - 2 * D if active else n - 2 - D
    most_dropped = min(n - 2 - A, n - 1 - _least_threshold(n - 1, A, threat.adversary))
    options = []
    if most_corrupt >= 1:
        options.append(f"A <= {most_corrupt} ({most_corrupt / n:.1%}) with D={D}")
    if most_dropped >= 0:
        options.append(f"D <= {most_dropped} ({most_dropped / n:.1%}) with A={A}")
    if not options:
        both = (n - 2) // (3 if active else 2)
        if both < 1:
            return "No numbers with A >= 1 and D >= 1 would do for so few clients"
        options.append(f"A = D = {both} ({both / n:.1%})")
    return f"Feasible: {' or '.join(options)}"
