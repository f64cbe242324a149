"""From a deployment file to privacy events: what is released, by scenario.

A file is not one event. Who vanishes, who colludes, who sees the cohort: each answer gives another
release, so every function here takes a :class:`Scenario`. Where no cost of the real sampling is
proved (shuffled batches, a cohort whose noise follows it), the event is the same release without
amplification, which is an upper bound by convexity (``docs/proofs/shuffled.md``), and
:func:`is_bracketed` says so.

Values are expected to be possible (:func:`accounting.deployment.impossible_values`). This module
knows no order, no delta and no verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from accounting.closed_forms import rounded_sensitivity
from accounting.deployment import Deployment, Mechanism, Phase
from accounting.events import (
    ZCDP,
    Adjacency,
    ApproxDP,
    BandedMF,
    Compose,
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    Event,
    FixedSize,
    Gaussian,
    Group,
    Hierarchical,
    Laplace,
    NoiseShares,
    NonPrivate,
    Poisson,
    PureDP,
    Repeat,
    Select,
    Shuffled,
    Skellam,
    Tree,
)

__all__ = [
    "AS_PLANNED",
    "WORST",
    "Amplification",
    "Scenario",
    "adjacency_of",
    "base_event",
    "bits_needed",
    "charged_releases",
    "client_count",
    "colluders",
    "eligible",
    "epochs_of",
    "fewest_survivors",
    "is_bracketed",
    "lower_event",
    "noise_multiplier",
    "participations",
    "phase_event",
    "release_event",
    "releases_per_round",
    "sample_rate",
    "sensitivity_factor",
    "share_count",
    "total_event",
]


class Amplification(StrEnum):
    """Which coins an observer does not see."""

    ALL = "all"
    """Neither who takes part nor which records: whoever sees only what is released."""

    CLIENTS_KNOWN = "clients-known"
    """Who takes part is known, the records of a local step are not: the server's view."""

    NONE = "none"
    """Nothing is hidden by sampling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One answer to who vanishes, who colludes and who sees what.

    Attributes:
        dropout: fraction of the planned cohort that vanishes; None: down to the fewest survivors
            that the protocol accepts.
        collusion: whether the assumed colluders know their shares of the noise.
        amplification: which coins are hidden.
        gaussian: integer noise replaced by Gaussian noise of equal size: an estimate, no bound.
    """

    dropout: float | None = None
    collusion: bool = True
    amplification: Amplification = Amplification.ALL
    gaussian: bool = False


WORST = Scenario()
AS_PLANNED = Scenario(dropout=0.0, collusion=False)


# --- numbers of one phase -----------------------------------------------------------------------


def adjacency_of(deployment: Deployment) -> Adjacency:
    """The declared adjacency; zero-out where it is missing, which A02 makes no claim."""
    return Adjacency(deployment.guarantee.adjacency or Adjacency.ZERO_OUT.value)


def client_count(deployment: Deployment, phase: Phase) -> int:
    """How many there are of what a cohort counts: units, or clients where records are local."""
    if phase.local is not None and deployment.population.clients is not None:
        return deployment.population.clients
    return deployment.population.size


def eligible(deployment: Deployment, phase: Phase) -> int:
    """The fewest of them that were eligible in any round: the rate is largest there."""
    said = (phase.sampling.available, deployment.population.smallest_eligible)
    return min([client_count(deployment, phase), *(n for n in said if n is not None)])


def sample_rate(deployment: Deployment, phase: Phase) -> float:
    """The largest chance of one client (or unit) to take part in one round."""
    if phase.sampling.kind == "all" or phase.sampling.cohort is None:
        return 1.0
    return phase.sampling.cohort / eligible(deployment, phase)


def releases_per_round(phase: Phase) -> int:
    """Noisy releases in one round: the local steps, or one sum."""
    return 1 if phase.local is None else phase.local.steps


def epochs_of(deployment: Deployment, phase: Phase) -> int:
    """Passes over the fewest eligible in the planned rounds, begun ones included."""
    batches = max(1, eligible(deployment, phase) // (phase.sampling.cohort or 1))
    return -(-phase.rounds // batches)


def participations(deployment: Deployment, phase: Phase) -> int:
    """Most rounds in which one unit can take part."""
    if phase.sampling.kind in {"shuffle", "cyclic"}:
        return epochs_of(deployment, phase)
    return phase.rounds


def charged_releases(deployment: Deployment, phase: Phase) -> int:
    """Releases that the phase's accountant has to count, by the sampling it says it assumes.

    Without amplification only those that one unit is in; with it, each round is one.
    """
    assumed = phase.sampling.account_as or phase.sampling.kind
    often = phase.rounds
    if phase.correlated is not None:
        often = min(often, phase.correlated.participations)
    elif assumed in {"shuffle", "cyclic"}:
        often = participations(deployment, phase)
    return often * releases_per_round(phase)


def colluders(deployment: Deployment, phase: Phase) -> int:
    """Clients assumed to collude: the fraction of the planned cohort, rounded up; 0 if not said."""
    fraction = deployment.trust.max_colluding or 0.0
    # A fraction such as .05 is not a float: a millionth of a client is no client.
    return math.ceil(fraction * (phase.planned or 0) - 1e-6)


def fewest_survivors(phase: Phase) -> int:
    """The smallest survivor count that is accepted: the threshold, or what the dropout leaves."""
    planned = phase.planned or 1
    if phase.aggregation.threshold is not None:
        return phase.aggregation.threshold
    if phase.aggregation.max_dropout is not None:
        return max(1, math.floor(planned * (1 - phase.aggregation.max_dropout) + 1e-6))
    return 1


def share_count(deployment: Deployment, phase: Phase) -> int:
    """Honest shares that add up to the declared noise; may be < 1 where colluders are all."""
    if phase.noise.at == "planned":
        return phase.noise.sized_for or phase.planned or 1
    return (phase.noise.sized_for or fewest_survivors(phase)) - colluders(deployment, phase)


def sensitivity_factor(phase: Phase) -> float:
    """What one unit can add to the sum, in multiples of the clipping norm.

    A weight applied behind the clip multiplies it. Two averages over microbatches, each clipped,
    can lie 2C apart although one record differs.
    """
    clip = phase.clip
    weight = clip.max_weight if _is_weighted_behind(phase) else 1.0
    return max(1.0, weight) * (2.0 if clip.microbatch > 1 else 1.0)


def _is_weighted_behind(phase: Phase) -> bool:
    return phase.clip.weights == "examples" and phase.clip.weighted == "after-clip"


def noise_multiplier(phase: Phase) -> float:
    """Z over the norm bound, with the adaptive clip's count composed into it.

    Andrew et al. 2021 (arXiv 1905.03871), Theorem 1: the noisy sum and the noisy count of clients
    below the norm, each count shifted to +-1/2, cost together what one Gaussian of
    (z^-2 + (2 s_b)^-2)^-1/2 costs.
    """
    z = phase.noise.multiplier or 0.0
    if phase.clip.adaptive and phase.clip.count_noise is not None:
        return 1.0 / math.hypot(1.0 / z, 1.0 / (2 * phase.clip.count_noise))
    return z


def bits_needed(deployment: Deployment, phase: Phase) -> int | None:
    """Bits of a coordinate in which planned inputs and four deviations of noise do not wrap.

    2 (n c s + 4 std) < 2^bits, with the noise of everybody who is planned. None without a scale.
    """
    if phase.noise.scale is None or phase.planned is None:
        return None
    step = phase.clip.norm * phase.noise.scale * max(1.0, phase.clip.max_weight)
    deviation = (phase.noise.multiplier or 0.0) * phase.clip.norm * phase.noise.scale
    if phase.noise.where == "client-shares":
        deviation *= math.sqrt(phase.planned / max(1, share_count(deployment, phase)))
    return math.floor(math.log2(2 * (phase.planned * step + 4 * deviation))) + 1


# --- events -------------------------------------------------------------------------------------


def is_bracketed(deployment: Deployment, phase: Phase) -> bool:
    """Whether only an interval is known: shuffles, fixed cohorts, clients and their records."""
    kind = phase.sampling.kind
    if phase.correlated is not None:
        return False
    sampled = kind in {"poisson", "fixed"} and sample_rate(deployment, phase) < 1
    if phase.local is not None:
        return sampled or kind == "shuffle"
    unproved = (
        kind == "fixed" or _noise_follows_cohort(phase) or _cohort_is_known(deployment, phase)
    )
    return kind == "shuffle" or (sampled and unproved)


def _noise_follows_cohort(phase: Phase) -> bool:
    """Whether those who are drawn bring the noise, so that its size tells how many they are."""
    return phase.noise.where != "server" and phase.noise.level == "cohort"


def _cohort_is_known(deployment: Deployment, phase: Phase) -> bool:
    """Whether the claim is against a server that draws the cohort itself."""
    return deployment.trust.model == "local" and phase.sampling.coins == "server"


def total_event(deployment: Deployment, scenario: Scenario) -> Event:
    """Everything the file releases, every phase and release, and the choice of settings."""
    parts = [phase_event(deployment, phase, scenario) for phase in deployment.phase]
    parts += [release_event(one.mechanism, one.times, deployment) for one in deployment.release]
    event = parts[0] if len(parts) == 1 else Compose(events=tuple(parts))
    tuning = deployment.tuning
    if tuning.data == "private":
        if tuning.poisson_mean is not None:
            return Select(event=event, poisson_mean=tuning.poisson_mean)
        if tuning.eta is not None:
            return Select(event=event, eta=tuning.eta, gamma=tuning.gamma)
    return event


def release_event(mechanism: Mechanism, times: int, deployment: Deployment) -> Event:
    """One ``[[release]]``, all its repetitions."""
    adjacency = adjacency_of(deployment)
    one: Event
    match mechanism.kind:
        case "laplace":
            one = Laplace(b=_given(mechanism.b))
        case "gaussian":
            one = Gaussian(noise_multiplier=_given(mechanism.multiplier))
        case "pure":
            one = PureDP(epsilon=_given(mechanism.epsilon), adjacency=adjacency)
        case "approximate":
            one = ApproxDP(
                epsilon=_given(mechanism.epsilon), delta=mechanism.delta or 0.0, adjacency=adjacency
            )
        case "zcdp":
            one = ZCDP(rho=_given(mechanism.rho), adjacency=adjacency)
        case "none":
            one = NonPrivate()
    return one if times == 1 else Repeat(event=one, count=times)


def _given(value: float | None) -> float:
    assert value is not None  # noqa: S101  # the file's parser has asked for it
    return value


def phase_event(deployment: Deployment, phase: Phase, scenario: Scenario) -> Event:
    """One phase in full: its rounds, its sampling, its noise, one unit's devices."""
    event = _rounds(deployment, phase, scenario)
    devices = deployment.population.max_devices_per_unit
    return event if devices == 1 else Group(k=devices, event=event)


def _rounds(deployment: Deployment, phase: Phase, scenario: Scenario) -> Event:
    base = base_event(deployment, phase, scenario)
    if isinstance(base, NonPrivate):
        return base
    if phase.correlated is not None:
        return _correlated(deployment, phase, scenario)
    rate, rounds = sample_rate(deployment, phase), phase.rounds
    kind, hidden = phase.sampling.kind, scenario.amplification
    if hidden is Amplification.ALL and _cohort_is_known(deployment, phase):
        hidden = Amplification.CLIENTS_KNOWN
    if phase.local is not None:
        inner = base
        if hidden is not Amplification.NONE and phase.local.rate < 1:
            inner = Poisson(sample_rate=phase.local.rate, event=base)
        if hidden is Amplification.ALL and kind in {"poisson", "fixed"} and rate < 1:
            event = Hierarchical(p_client=rate, steps=phase.local.steps, event=inner)
            return Repeat(event=event, count=rounds)
        often = participations(deployment, phase) * phase.local.steps
        return Repeat(event=inner, count=often)
    amplified = hidden is Amplification.ALL and rate < 1
    if amplified and kind == "poisson" and not _noise_follows_cohort(phase):
        return Repeat(event=Poisson(sample_rate=rate, event=base), count=rounds)
    if amplified and kind == "fixed":
        return Repeat(event=_fixed(deployment, phase, base), count=rounds)
    return Repeat(event=base, count=participations(deployment, phase))


def _fixed(deployment: Deployment, phase: Phase, base: Event) -> FixedSize:
    return FixedSize(
        population=eligible(deployment, phase), cohort=phase.sampling.cohort or 1, event=base
    )


def _correlated(deployment: Deployment, phase: Phase, scenario: Scenario) -> Event:
    """Trees and banded matrices: one event for all rounds; what clients know changes nothing."""
    correlated = phase.correlated
    assert correlated is not None  # noqa: S101  # the caller asked
    z = noise_multiplier(phase) / sensitivity_factor(phase)
    if phase.noise.where == "client-shares":
        honest, sized = _honest(deployment, phase, scenario), share_count(deployment, phase)
        z *= math.sqrt(honest / sized)
    if correlated.kind == "banded":
        return BandedMF(
            noise_multiplier=z,
            bands=_whole(correlated.bands),
            steps=phase.rounds,
            participations=correlated.participations,
        )
    steps = min(correlated.restart or phase.rounds, phase.rounds)
    tree = Tree(
        noise_multiplier=z,
        steps=steps,
        participations=correlated.participations,
        min_sep=correlated.min_sep,
    )
    return Repeat(event=tree, count=-(-phase.rounds // steps))


def _whole(value: int | None) -> int:
    assert value is not None  # noqa: S101  # the file's parser has asked for it
    return value


def base_event(deployment: Deployment, phase: Phase, scenario: Scenario) -> Event:
    """One noisy sum (or local step) on whoever is in it, without any sampling."""
    if phase.noise.kind == "none" or phase.clip.enforced == "none":
        return NonPrivate()
    if phase.noise.where != "client-shares":
        return _noise(phase, scenario, shares=None)
    sized, honest = share_count(deployment, phase), _honest(deployment, phase, scenario)
    if sized < 1 or honest < 1:
        return NonPrivate()
    event = _noise(phase, scenario, shares=sized)
    if phase.correlated is not None or honest == sized:
        return event
    survivors = _survivors(phase, scenario)
    return NoiseShares(
        event=event, planned=sized, survivors=survivors, colluding=survivors - honest
    )


def _survivors(phase: Phase, scenario: Scenario) -> int:
    if scenario.dropout is None:
        return fewest_survivors(phase)
    return max(1, math.floor((phase.planned or 1) * (1 - scenario.dropout) + 1e-6))


def _honest(deployment: Deployment, phase: Phase, scenario: Scenario) -> int:
    knowing = colluders(deployment, phase) if scenario.collusion else 0
    return _survivors(phase, scenario) - knowing


def _noise(phase: Phase, scenario: Scenario, *, shares: int | None) -> Event:
    z, factor = noise_multiplier(phase), sensitivity_factor(phase)
    kind = phase.noise.kind
    if kind == "laplace":
        # Per coordinate, while the norm bounds L2: L1 is up to sqrt(dimension) times as long.
        return Laplace(b=z / (factor * math.sqrt(_whole(phase.dimension))))
    if kind == "gaussian" or scenario.gaussian:
        return Gaussian(noise_multiplier=z / factor)
    scale, dimension = _given(phase.noise.scale), _padded(_whole(phase.dimension))
    deviation = z * phase.clip.norm * scale
    l2, l1 = _grid_sensitivity(phase, scale, dimension)
    l2, l1 = l2 * factor, l1 * factor
    if kind == "skellam":
        return Skellam(mu=deviation * deviation, l2=l2, l1=l1)
    if shares is None:
        return DiscreteGaussian(sigma=deviation, l2=l2)
    return DistributedDiscreteGaussian(
        sigma_share=deviation / math.sqrt(shares), shares=shares, l2=l2, l1=l1, dim=dimension
    )


def _grid_sensitivity(phase: Phase, scale: float, dimension: int) -> tuple[float, float]:
    """L2 and L1 of one contribution in grid units.

    Rounding that is not repeated may move every coordinate by almost one grid point.
    """
    if phase.clip.rounding == "conditional":
        return rounded_sensitivity(phase.clip.norm, scale, dimension)
    l2 = phase.clip.norm * scale + math.sqrt(dimension)
    return l2, l2 * min(math.sqrt(dimension), l2)


def _padded(dimension: int) -> int:
    """A rotation before rounding works on the next power of two."""
    return 1 << (dimension - 1).bit_length()


def lower_event(deployment: Deployment, phase: Phase) -> Event | None:
    """An event whose interval has a lower bound on this phase; None where nothing is known.

    Leaving a phase's neighbours out can only lower the true epsilon, so any one phase will do. The
    lower bounds are about somebody who sees every noisy sum; where less is released, none is given.
    """
    if not _every_sum_is_seen(deployment, phase):
        return None
    base = base_event(deployment, phase, WORST)
    devices = deployment.population.max_devices_per_unit
    if isinstance(base, NoiseShares):
        from accounting.derived import survivors_event  # noqa: PLC0415  # needed here only

        no_cost = adjacency_of(deployment) is Adjacency.ADD_REMOVE
        if no_cost or not isinstance(base.event, Gaussian):
            return None
        base = survivors_event(base, adjacency_of(deployment))
    if not isinstance(base, Gaussian) or phase.correlated is not None or devices > 1:
        return None
    rate, kind = sample_rate(deployment, phase), phase.sampling.kind
    if phase.local is not None:
        return _lower_of_records(phase, base, rate)
    if rate < 1 and kind in {"poisson", "fixed"}:
        if kind == "poisson" and _noise_follows_cohort(phase):
            return None  # what is proved for a fixed noise level says nothing here
        if adjacency_of(deployment) is Adjacency.ADD_REMOVE:
            return _coin(rate, base, phase.rounds)
        # All others zero, a fixed cohort and a coin are the same pair; this interval is faster.
        return Repeat(event=_fixed(deployment, phase, base), count=phase.rounds)
    if kind == "shuffle":
        batches = max(1, client_count(deployment, phase) // (phase.sampling.cohort or 1))
        epochs = phase.rounds // batches  # complete ones: a partial epoch may miss the unit
        if epochs < 1:
            return None
        return Shuffled(
            batches=batches, epochs=epochs, event=base, reshuffle=phase.sampling.reshuffle
        )
    if kind == "cyclic":
        batches = max(1, client_count(deployment, phase) // (phase.sampling.cohort or 1))
        complete = phase.rounds // batches
        return Repeat(event=base, count=complete) if complete else None
    return Repeat(event=base, count=phase.rounds)


def _every_sum_is_seen(deployment: Deployment, phase: Phase) -> bool:
    """Whether those whom the claim names see each noisy sum by itself.

    Not so if only the end is released, if the local steps of a client stay inside of it, if the
    settings were chosen among runs of which the best is released, or if the noise of each client is
    seen in a sum with that of all others.
    """
    tuning = deployment.tuning
    chosen = tuning.data == "private" and (tuning.poisson_mean or tuning.eta) is not None
    alone = phase.noise.where != "client" or deployment.trust.model == "local"
    whole = phase.released == "every round" or phase.rounds == 1
    return whole and alone and releases_per_round(phase) == 1 and not chosen


def _lower_of_records(phase: Phase, base: Event, rate: float) -> Event | None:
    local = phase.local
    assert local is not None  # noqa: S101  # the caller asked
    if phase.sampling.kind in {"shuffle", "cyclic"}:
        return None
    event = Hierarchical(
        p_client=rate, steps=local.steps, event=Poisson(sample_rate=local.rate, event=base)
    )
    return Repeat(event=event, count=phase.rounds)


def _coin(rate: float, base: Event, rounds: int) -> Event:
    """A Poisson sample of records of a client that is always there: an interval is known for it."""
    event = Hierarchical(p_client=1.0, steps=1, event=Poisson(sample_rate=rate, event=base))
    return Repeat(event=event, count=rounds)
