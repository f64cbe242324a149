"""Privacy-loss distributions through dp-accounting (extra ``pld``), behind a guard.

RDP is loose where units take part rarely; a discretised privacy-loss distribution (Koskela, Jalko,
Honkela 2020; Doroshenko et al. 2022, arXiv 2207.04380) is not. dp-accounting computes it
with losses rounded up, so its epsilon is an upper bound at every grid width. The guard:

* every parameter is validated by our events before dp-accounting sees it (it takes NaN for 0);
* only mechanisms that it gets right are handed over, one by one and composed here: Gaussian and
  Laplace noise, plain or on a Poisson sample, and groups of those as mixtures. Discrete Gaussian
  noise only where one unit moves one coordinate by one (l2 below sqrt(2)): its loss, other than the
  Gaussian's, depends on how a norm is spread over the coordinates. Skellam noise and sums of
  discrete Gaussians have no distribution there; their cost stays an RDP cost;
* replace-one is probed once against the exact Gaussian before it is used;
* grids of more than 2e7 cells are refused instead of filling the memory;
* the value is computed at two grid widths, and their difference is reported.

dp-accounting is imported when the first value is asked for. This module knows no ledger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from accounting.accountant import (
    Bound,
    BoundKind,
    Method,
    RDPAccountant,
    checked_delta,
    gaussian_epsilon,
)
from accounting.curves import combined_gaussian, count_weight
from accounting.derived import group_chances, group_event, survivors_event
from accounting.errors import InvalidParameter, MissingExtra, UnsupportedEvent
from accounting.events import (
    Adjacency,
    Compose,
    DiscreteGaussian,
    Event,
    Gaussian,
    Group,
    Laplace,
    NoiseShares,
    Poisson,
    Repeat,
    leaves,
)

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

__all__ = ["MAX_CELLS", "grid_width", "pld_available", "pld_epsilon", "pld_fits", "pld_supports"]

MAX_CELLS = 20_000_000
_TAIL = 1e-15  # probability outside of the range for which cells are counted
_LARGEST_GROUP = 1000
_MOST_NOISE, _LEAST_RATE = 1e8, 1e-12
_LISTED = 24.0  # outcomes of a discrete Gaussian, in units of sigma; the rest has mass 1e-30


def pld_available() -> bool:
    """Whether dp-accounting is installed. It is not imported."""
    from importlib.util import find_spec  # noqa: PLC0415  # needed here only

    return find_spec("dp_accounting") is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One mechanism that dp-accounting gets right, and how often it runs."""

    kind: type[Gaussian | Laplace | DiscreteGaussian]
    noise: float  # over the contribution's norm bound
    rate: float
    units: int  # of a group
    count: int


def _parts(event: Event, adjacency: Adjacency) -> list[_Part]:
    """The mechanisms of an event tree.

    Raises:
        UnsupportedEvent: for anything without a correct distribution in dp-accounting.
    """
    found: list[_Part] = []
    for leaf, count in leaves(event):
        plain: Event = leaf
        if isinstance(leaf, NoiseShares):
            plain = survivors_event(leaf, adjacency)
        elif isinstance(leaf, Group) and not _is_sampled_gaussian(leaf.event):
            plain = _group_of_sums(leaf)
        if plain is not leaf:
            found += [_times(part, count) for part in _parts(plain, adjacency)]
        else:
            found.append(_part(leaf, count, adjacency))
    return found


def _is_sampled_gaussian(event: Event) -> bool:
    return isinstance(event, Poisson) and isinstance(event.event, Gaussian)


def _group_of_sums(group: Group) -> Event:
    """A group of a composition is the composition of groups; of noise it is less noise."""
    event = group.event
    match event:
        case Repeat():
            return Repeat(event=Group(k=group.k, event=event.event), count=event.count)
        case Compose():
            return Compose(events=tuple(Group(k=group.k, event=part) for part in event.events))
        case _:
            return group_event(group)


def _times(part: _Part, count: int) -> _Part:
    return _Part(
        kind=part.kind, noise=part.noise, rate=part.rate, units=part.units, count=part.count * count
    )


def _part(leaf: Event, count: int, adjacency: Adjacency) -> _Part:
    rate, units, inner = 1.0, 1, leaf
    if isinstance(inner, Group):
        units, inner = inner.k, inner.event
    while isinstance(inner, Poisson):
        rate, inner = rate * inner.sample_rate, inner.event
    if rate < 1 and (z := combined_gaussian(inner, adjacency)) is not None:
        inner = Gaussian(noise_multiplier=z)
    if isinstance(inner, Gaussian):
        if units > _LARGEST_GROUP or (units > 1 and adjacency is Adjacency.REPLACE_ONE):
            raise UnsupportedEvent(
                f"sampled groups have a distribution up to {_LARGEST_GROUP} units under add-remove "
                f"and zero-out, found {leaf} under {adjacency}",
                event=leaf,
            )
        return _Part(
            kind=Gaussian, noise=inner.noise_multiplier, rate=rate, units=units, count=count
        )
    if isinstance(inner, Laplace) and units == 1:
        if rate < 1 and adjacency is Adjacency.REPLACE_ONE:
            raise UnsupportedEvent(
                "sampled Laplace noise has no distribution under replace-one", event=leaf
            )
        scale = 2.0 if adjacency is Adjacency.REPLACE_ONE else 1.0
        return _Part(kind=Laplace, noise=inner.b / scale, rate=rate, units=1, count=count)
    if isinstance(inner, DiscreteGaussian) and units == 1:
        if inner.l2 * inner.l2 >= 2 or adjacency is Adjacency.REPLACE_ONE:
            raise UnsupportedEvent(
                "discrete Gaussian noise has a distribution under add-remove and zero-out where a "
                f"unit moves one coordinate by one (l2 below sqrt(2)), found {leaf} under "
                f"{adjacency}: use rdp",
                event=leaf,
            )
        return _Part(kind=DiscreteGaussian, noise=inner.sigma, rate=rate, units=1, count=count)
    raise UnsupportedEvent(
        f"no privacy-loss distribution is known to be right for {leaf}: use rdp", event=leaf
    )


def pld_supports(event: Event, adjacency: Adjacency) -> bool:
    """Whether the guard lets this event pass."""
    try:
        _parts(event, adjacency)
    except UnsupportedEvent:
        return False
    return True


def pld_fits(event: Event, adjacency: Adjacency, width: float) -> bool:
    """Whether the guard lets this event pass at this grid width."""
    try:
        _refuse_large_grids(event, _parts(event, adjacency), adjacency, width)
    except UnsupportedEvent:
        return False
    return True


def grid_width(event: Event, rdp_value: float) -> float:
    """The coarser grid width: max(1e-5, min(1e-3, eps_rdp/2000, 1e-2/sqrt(T)))."""
    if rdp_value == 0:
        return 1e-3  # nothing to refine
    steps = float(sum(count_weight(count) for _, count in leaves(event)))
    return max(1e-5, min(1e-3, rdp_value / 2000, 1e-2 / math.sqrt(steps)))


def pld_epsilon(
    event: Event, delta: float, *, adjacency: Adjacency | str, width: float | None = None
) -> Bound:
    """Epsilon by a privacy-loss distribution: an upper bound with its discretisation.

    Args:
        event: what is released in all.
        delta: 0 < delta < 1.
        adjacency: the neighbour relation of the claim; no default.
        width: grid width; None takes :func:`grid_width` and half of it and reports the difference.

    Returns:
        The bound; ``discretisation`` is the grid width of the value, ``discretisation_error`` how
        much the value moved when the width was halved (None for a given width).

    Raises:
        MissingExtra: if dp-accounting is not installed.
        UnsupportedEvent: for events that have no correct distribution, or grids too large.
        InvalidParameter: for impossible arguments.
    """
    adjacency, delta = Adjacency.of(adjacency), checked_delta(delta)
    parts = _parts(event, adjacency)
    if width is not None and not 1e-7 <= width <= 1e-1:
        raise InvalidParameter(f"width must be in [1e-7, 0.1], found {width!r}")
    if not pld_available():
        raise MissingExtra(
            "privacy-loss distributions need dp-accounting: pip install 'securefl[pld]'"
        )
    if adjacency is Adjacency.REPLACE_ONE:
        _probe_replace_one()
    coarse = width or grid_width(event, _rdp_size(parts, adjacency, delta))
    fine = width or coarse / 2
    _refuse_large_grids(event, parts, adjacency, fine)
    found = _composed_epsilon(tuple(parts), adjacency, fine, delta)
    error = None
    if width is None:
        at_coarse = _composed_epsilon(tuple(parts), adjacency, coarse, delta)
        error = abs(at_coarse - found)
        if at_coarse < found:
            found, fine = at_coarse, coarse
    return Bound(
        value=found,
        kind=BoundKind.UPPER,
        method=Method.PLD,
        delta=delta,
        adjacency=adjacency,
        discretisation=fine,
        discretisation_error=error,
    )


def _rdp_size(parts: list[_Part], adjacency: Adjacency, delta: float) -> float:
    """An RDP epsilon of about the size of the answer. For widths and cells only, never a bound."""
    import warnings  # noqa: PLC0415  # needed here only

    accountant = RDPAccountant(adjacency=Adjacency.ADD_REMOVE)
    doubled = 2.0 if adjacency is Adjacency.REPLACE_ONE else 1.0
    for part in parts:
        scale = part.units * (doubled if part.kind is Gaussian else 1.0)
        one: Event = Gaussian(noise_multiplier=part.noise / scale)
        if part.kind is Laplace:
            one = Laplace(b=part.noise)
        elif part.kind is DiscreteGaussian:
            one = DiscreteGaussian(sigma=part.noise, l2=1.0)
        if part.rate < 1:
            one = Poisson(sample_rate=min(1.0, part.rate * part.units), event=one)
        accountant.compose(one, part.count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return accountant.epsilon(delta).value


def _refuse_large_grids(
    event: Event, parts: list[_Part], adjacency: Adjacency, width: float
) -> None:
    """Before any memory is taken: the range of the composed loss and of each single one.

    Beyond noise of 1e8 and below rates of 1e-12 the back end's numbers overflow.
    """
    for part in parts:
        if part.noise > _MOST_NOISE or part.rate < _LEAST_RATE:
            raise UnsupportedEvent(
                f"privacy-loss distributions are for noise of at most {_MOST_NOISE:g} norm bounds "
                f"and rates of at least {_LEAST_RATE:g}, found {event}: use rdp",
                event=event,
            )
    single = 0.0
    for part in parts:
        shift = part.units * (2.0 if adjacency is Adjacency.REPLACE_ONE else 1.0) / part.noise
        reach = shift if part.kind is Laplace else shift * (shift / 2 + _LISTED / 2)
        if part.kind is Gaussian and part.rate == 1:
            root = math.sqrt(count_weight(part.count))
            reach = shift * root * (shift * root / 2 + 10)
        single = max(single, 2 * reach)
    # The outcomes of integer noise are listed one by one.
    listed = max(
        (_LISTED * part.noise for part in parts if part.kind is DiscreteGaussian), default=0
    )
    cells = max(single / width, 2 * _rdp_size(parts, adjacency, _TAIL) / width, listed)
    if not cells <= MAX_CELLS:
        raise UnsupportedEvent(
            f"a privacy-loss distribution of {event} would need {cells:.2g} cells of {width:.2g}, "
            f"more than {MAX_CELLS:.2g}: use rdp",
            event=event,
        )


def _relation(adjacency: Adjacency) -> Any:
    from dp_accounting import NeighboringRelation  # noqa: PLC0415  # extra, slow

    return {
        Adjacency.ADD_REMOVE: NeighboringRelation.ADD_OR_REMOVE_ONE,
        Adjacency.ZERO_OUT: NeighboringRelation.REPLACE_SPECIAL,
        Adjacency.REPLACE_ONE: NeighboringRelation.REPLACE_ONE,
    }[adjacency]


def _distribution(part: _Part, adjacency: Adjacency, width: float) -> PrivacyLossDistribution:
    """One part, all its runs."""
    from dp_accounting.pld import (  # noqa: PLC0415  # extra, slow
        privacy_loss_distribution as backend,
    )

    times = part.count
    if part.units > 1:
        one = backend.from_mixture_gaussian_mechanism(
            standard_deviation=part.noise,
            sensitivities=[float(k) for k in range(part.units + 1)],
            sampling_probs=group_chances(part.units, part.rate),
            value_discretization_interval=width,
        )
    elif part.kind is Laplace:
        one = backend.from_laplace_mechanism(
            part.noise, value_discretization_interval=width, sampling_prob=part.rate
        )
    elif part.kind is DiscreteGaussian:
        one = backend.from_discrete_gaussian_mechanism(
            part.noise, value_discretization_interval=width, sampling_prob=part.rate
        )
    else:
        deviation = part.noise
        if part.rate == 1:  # all runs are one
            deviation, times = part.noise / math.sqrt(count_weight(part.count)), 1
        one = backend.from_gaussian_mechanism(
            deviation,
            value_discretization_interval=width,
            sampling_prob=part.rate,
            neighboring_relation=_relation(adjacency),
        )
    return one if times == 1 else one.self_compose(times)


@lru_cache(maxsize=256)
def _composed_epsilon(
    parts: tuple[_Part, ...], adjacency: Adjacency, width: float, delta: float
) -> float:
    try:
        total = _distribution(parts[0], adjacency, width)
        for part in parts[1:]:
            total = total.compose(_distribution(part, adjacency, width))
        found = float(total.get_epsilon_for_delta(delta))
    except (ArithmeticError, ValueError) as error:
        raise UnsupportedEvent(
            f"dp-accounting found no privacy-loss distribution for {list(parts)}: {error}: use rdp",
            event=None,
        ) from error
    return math.inf if math.isnan(found) else max(0.0, found)


@lru_cache(maxsize=1)
def _probe_replace_one() -> None:
    """Replace-one must double the sensitivity in the installed version, or it is not used."""
    one = _Part(kind=Gaussian, noise=1.0, rate=1.0, units=1, count=1)
    found = _composed_epsilon((one,), Adjacency.REPLACE_ONE, 1e-3, 1e-5)
    exact = gaussian_epsilon(2.0, 1e-5)
    if not exact * (1 - 1e-9) <= found <= exact * 1.01:
        raise UnsupportedEvent(
            f"the installed dp-accounting gives {found:.4g} under replace-one where {exact:.4g} is "
            "exact: use rdp, or another version",
            event=Gaussian(noise_multiplier=1.0),
        )
