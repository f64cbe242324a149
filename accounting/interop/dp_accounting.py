"""dp-accounting: our events as theirs, and theirs as ours.

Their two accountants mean different things by the same event under replace-one: the distribution
doubles the sensitivity of a Gaussian, the RDP accountant does not (issue 378 there). ``to_event``
therefore asks for which of them the event is made, and halves z where it has to be. What one of
them gets wrong becomes their ``UnsupportedDpEvent``, which their accountants refuse. They have no
event for integer Gaussian noise, nor for trees with several participations of one unit; we have
none for truncated batches. A sampled group is a mixture of Gaussians there, and a mixture whose
probabilities are not binomial is not read.

Reading goes by exact types and through our own validation. Their events as named tuples, which name
a module to import, are not read.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import dp_accounting
from dp_accounting import dp_event as events

from accounting.derived import group_chances, mean_runs
from accounting.errors import UnsupportedEvent
from accounting.events import (
    ZCDP,
    Adjacency,
    Compose,
    Event,
    FixedSize,
    Gaussian,
    Group,
    Laplace,
    NonPrivate,
    Poisson,
    Repeat,
    Select,
    Tree,
)

__all__ = ["from_event", "relation", "to_event"]


def relation(adjacency: Adjacency | str) -> Any:
    """Their neighbouring relation; zero-out is ``REPLACE_SPECIAL``."""
    return {
        Adjacency.ADD_REMOVE: dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        Adjacency.ZERO_OUT: dp_accounting.NeighboringRelation.REPLACE_SPECIAL,
        Adjacency.REPLACE_ONE: dp_accounting.NeighboringRelation.REPLACE_ONE,
    }[Adjacency.of(adjacency)]


def to_event(
    event: Event, *, adjacency: Adjacency | str, accountant: Literal["rdp", "pld"] = "rdp"
) -> Any:
    """Our event as a ``DpEvent``.

    Args:
        event: any event.
        adjacency: the relation under which theirs will account for it.
        accountant: which of their accountants will.

    Returns:
        A ``DpEvent``; ``UnsupportedDpEvent`` in place of every part that has no right counterpart
        (integer noise, noise shares, clients and records, groups, sampled zCDP, ...).
    """
    adjacency = Adjacency.of(adjacency)
    halved = adjacency is Adjacency.REPLACE_ONE and accountant == "rdp"

    def gaussian(z: float) -> Any:
        return events.GaussianDpEvent(z / 2 if halved else z)

    def made(part: Event) -> Any:
        match part:
            case Gaussian(noise_multiplier=z):
                return gaussian(z)
            case NonPrivate():
                return events.NonPrivateDpEvent()
            case Repeat():
                return events.SelfComposedDpEvent(made(part.event), part.count)
            case Compose():
                return events.ComposedDpEvent([made(one) for one in part.events])
            case Poisson(event=Gaussian(noise_multiplier=z)) if not halved:
                return events.PoissonSampledDpEvent(part.sample_rate, gaussian(z))
            case Group(event=Poisson(event=Gaussian(noise_multiplier=z), sample_rate=q)) if (
                accountant == "pld" and adjacency is not Adjacency.REPLACE_ONE
            ):
                return events.MixtureOfGaussiansDpEvent(
                    z, [float(k) for k in range(part.k + 1)], group_chances(part.k, q)
                )
            case FixedSize(event=Gaussian(noise_multiplier=z)) if accountant == "rdp":
                if adjacency is Adjacency.REPLACE_ONE:
                    return events.SampledWithoutReplacementDpEvent(
                        part.population, part.cohort, gaussian(z)
                    )
            case Laplace() if adjacency is not Adjacency.REPLACE_ONE:
                return events.LaplaceDpEvent(part.b)
            case ZCDP() if accountant == "rdp" and part.adjacency is adjacency:
                return events.ZCDpEvent(part.rho)
            case Tree(participations=1) if adjacency is Adjacency.ZERO_OUT and accountant == "rdp":
                return events.SingleEpochTreeAggregationDpEvent(part.noise_multiplier, part.steps)
            case Select() if accountant == "rdp":
                return _select(part, made(part.event))
        return events.UnsupportedDpEvent()

    return made(event)


def _select(event: Select, inner: Any) -> Any:
    if event.poisson_mean is not None:
        mean, shape = event.poisson_mean, math.inf
    else:
        assert event.eta is not None and event.gamma is not None  # noqa: S101  # checked when built
        mean, shape = mean_runs(event.eta, event.gamma), event.eta
    if mean < 1 or shape < 0:
        return events.UnsupportedDpEvent()
    return events.RepeatAndSelectDpEvent(inner, mean, shape)


def from_event(event: Any, *, adjacency: Adjacency | str) -> Event:
    """A ``DpEvent`` as our event.

    Args:
        event: theirs; noise multipliers are read as std over C, as everywhere here.
        adjacency: the relation of the claim; a zCDP event is taken to be proved under it.

    Raises:
        UnsupportedEvent: for kinds of events that are not known here, or that one of their
            accountants gets wrong (randomised response: its count is lost).
        InvalidEvent: for impossible values.
    """
    adjacency = Adjacency.of(adjacency)
    name, kind = type(event).__name__, type(event)
    if kind is events.GaussianDpEvent:
        if event.noise_multiplier == 0:
            return NonPrivate()
        return Gaussian(noise_multiplier=event.noise_multiplier)
    if kind is events.LaplaceDpEvent:
        return NonPrivate() if event.noise_multiplier == 0 else Laplace(b=event.noise_multiplier)
    if kind is events.NonPrivateDpEvent:
        return NonPrivate()
    if kind is events.SelfComposedDpEvent:
        return Repeat(event=from_event(event.event, adjacency=adjacency), count=event.count)
    if kind is events.ComposedDpEvent:
        return Compose(events=tuple(from_event(one, adjacency=adjacency) for one in event.events))
    if kind is events.PoissonSampledDpEvent:
        inner = from_event(event.event, adjacency=adjacency)
        return Poisson(sample_rate=event.sampling_probability, event=inner)
    if kind is events.SampledWithoutReplacementDpEvent:
        return FixedSize(
            population=event.source_dataset_size,
            cohort=event.sample_size,
            event=from_event(event.event, adjacency=adjacency),
        )
    if kind is events.ZCDpEvent and event.xi == 0:
        return ZCDP(rho=event.rho, adjacency=adjacency)
    if kind is events.SingleEpochTreeAggregationDpEvent:
        steps = event.step_counts
        longest = max(steps) if isinstance(steps, list | tuple) and steps else steps
        return Tree(
            noise_multiplier=event.noise_multiplier, steps=longest, participations=1, min_sep=1
        )
    if kind is events.MixtureOfGaussiansDpEvent:
        return _sampled_group(event)
    if kind is events.RepeatAndSelectDpEvent:
        inner = from_event(event.event, adjacency=adjacency)
        if event.shape == math.inf:
            return Select(event=inner, poisson_mean=event.mean)
        return Select(event=inner, eta=event.shape, gamma=_gamma_of(event.shape, event.mean))
    raise UnsupportedEvent(f"{name} of dp-accounting has no counterpart here", event=event)


def _sampled_group(event: Any) -> Event:
    """A mixture whose shifts are 0..k with binomial probabilities; no other one is a group."""
    chances = [float(chance) for chance in event.sampling_probs]
    k = len(chances) - 1
    if k >= 1 and list(event.sensitivities) == list(range(k + 1)) and 0 < chances[0] < 1:
        rate = chances[1] if k == 1 else -math.expm1(math.log(chances[0]) / k)
        same = 0 < rate < 1 and all(
            math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-15)
            for a, b in zip(chances, group_chances(k, rate), strict=True)
        )
        if same:
            sample = Poisson(
                sample_rate=rate, event=Gaussian(noise_multiplier=event.standard_deviation)
            )
            return sample if k == 1 else Group(k=k, event=sample)
    raise UnsupportedEvent(
        "a mixture of Gaussians is read if its sensitivities are 0, 1, .., k and their "
        "probabilities binomial: a sampled group",
        event=event,
    )


def _gamma_of(eta: float, mean: float) -> float:
    """The gamma with this mean, rounded down: fewer stops, more runs, a larger cost."""
    low, high = 1e-300, 1.0
    if not mean >= 1:
        return math.nan  # refused by the event
    for _ in range(200):
        middle = math.sqrt(low * high)
        if mean_runs(eta, middle) >= mean:
            low = middle
        else:
            high = middle
    return low
