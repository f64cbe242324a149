"""Lower and upper bounds where no tight value is known: shuffles, fixed cohorts, clients x records.

* Shuffled batches: a lower bound of Chua et al. 2024 (arXiv 2403.17673); above, no amplification.
* Fixed cohorts: the case in which all other units are zero; above, M4.
* Clients and their records: the case without other records; above, the case in which the other
  records show whether the client took part (``docs/proofs/hierarchical.md``). This is the only
  privacy-loss distribution of our own, and it is rounded to the side that each bound needs.

A lower bound is a statement that no proof can beat; an upper bound is one that holds. What lies
between is not known. This module knows no ledger.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr, ndtr

from accounting.accountant import (
    Bound,
    BoundKind,
    Method,
    RDPAccountant,
    checked_delta,
    epsilon,
    gaussian_epsilon,
)
from accounting.curves import Floats, combined_gaussian
from accounting.errors import OrderAtEdgeWarning, UnsupportedEvent
from accounting.events import (
    Adjacency,
    Event,
    FixedSize,
    Gaussian,
    Hierarchical,
    Poisson,
    Shuffled,
    leaves,
)

__all__ = ["Interval", "Losses", "interval", "on_grid", "rounds_epsilon", "shuffled_delta"]

_THRESHOLDS = 6001
_LEAST_NOISE, _MOST_NOISE = 1e-6, 1e12  # of a shuffle's lower end
_PAIR_NOISE = 1e-3, 1e6  # of the distributions of our own
_MAX_CELLS = 1 << 23
_TAIL = 1e-14  # of one composition; added to delta above, left out below


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The true epsilon is not below ``lower`` and not above ``upper``.

    Attributes:
        lower: a bound of kind ``lower`` (or the exact value).
        upper: a bound of kind ``upper`` (or the exact value).
    """

    lower: Bound
    upper: Bound


def interval(event: Event, delta: float, *, adjacency: Adjacency | str) -> Interval:
    """A lower and an upper bound on epsilon.

    Args:
        event: unsampled Gaussians (exact), or one ``Shuffled``, or ``FixedSize`` or
            ``Hierarchical`` events around Gaussians, repeated any number of times.
        delta: 0 < delta < 1.
        adjacency: the neighbour relation of the claim; no default.

    Raises:
        UnsupportedEvent: if no lower bound is known.
        InvalidParameter: for impossible arguments.
    """
    adjacency, delta = Adjacency.of(adjacency), checked_delta(delta)
    found = leaves(event)
    if len(found) == 1:
        leaf, count = found[0]
        if isinstance(leaf, Shuffled) and count == 1:
            return _shuffled(leaf, delta, adjacency)
        if isinstance(leaf, FixedSize):
            return _fixed_size(leaf, count, event, delta, adjacency)
        if isinstance(leaf, Hierarchical):
            return _hierarchical(leaf, count, event, delta, adjacency)
    if combined_gaussian(event, adjacency) is not None:
        exact = epsilon(event, delta, adjacency=adjacency, method=Method.EXACT)
        return Interval(lower=exact, upper=exact)
    raise UnsupportedEvent(
        f"no lower bound is known for {event}: intervals are for one Shuffled, or repeated "
        "FixedSize or Hierarchical events around Gaussians",
        event=event,
    )


def _bound(
    value: float,
    kind: BoundKind,
    delta: float,
    adjacency: Adjacency,
    *,
    method: Method = Method.INTERVAL,
    width: float | None = None,
) -> Bound:
    return Bound(
        value=value,
        kind=kind,
        method=method,
        delta=delta,
        adjacency=adjacency,
        discretisation=width,
    )


# --- M12: shuffled batches ----------------------------------------------------------------------


def _shuffled(event: Shuffled, delta: float, adjacency: Adjacency) -> Interval:
    if not isinstance(event.event, Gaussian):
        raise UnsupportedEvent(
            f"shuffled batches are bracketed for a Gaussian per batch, found {event.event}",
            event=event,
        )
    if adjacency is Adjacency.ADD_REMOVE:
        raise UnsupportedEvent(
            "shuffled batches have no interval under add-remove: with a unit absent the batches of "
            "the others move; use zero-out or replace-one",
            event=event,
        )
    z, root = event.event.noise_multiplier, math.sqrt(event.epochs)
    doubled = 2.0 if adjacency is Adjacency.REPLACE_ONE else 1.0
    upper = gaussian_epsilon(doubled * root / z, delta)
    # In a persistent order every epoch shows the same batch again: that is one epoch at less noise.
    s = z if event.reshuffle else z / root
    lower = _shuffled_lower(s, event.batches, delta)
    return Interval(
        lower=_bound(min(lower, upper), BoundKind.LOWER, delta, adjacency),
        upper=_bound(upper, BoundKind.UPPER, delta, adjacency, method=Method.EXACT),
    )


def shuffled_delta(value: float, s: float, batches: int) -> float:
    """A lower bound on delta at epsilon ``value`` of one shuffled epoch: the best threshold C.

    max_C [1 - Phi((C-2)/s) Phi(C/s)^(T-1)] - e^eps [1 - Phi((C-1)/s) Phi(C/s)^(T-1)], over 6001
    thresholds in [0, 2 + 12 s + 6 s sqrt(ln T)] (Chua et al. 2024). Every threshold is valid.
    """
    top = 2 + 12 * s + 6 * s * math.sqrt(math.log(batches))
    c = np.linspace(0.0, top, _THRESHOLDS)
    others = (batches - 1) * log_ndtr(c / s)
    hit = -np.expm1(log_ndtr((c - 2) / s) + others)
    with np.errstate(divide="ignore"):
        miss = value + np.log(-np.expm1(log_ndtr((c - 1) / s) + others))
    return float(np.max(hit - np.exp(np.minimum(miss, 700.0))))


def _shuffled_lower(s: float, batches: int, delta: float) -> float:
    """The largest epsilon, rounded down, at which delta is still exceeded."""
    if s > _MOST_NOISE:
        return 0.0  # always a lower bound; the thresholds need numbers that can be squared
    s = max(s, _LEAST_NOISE)  # more noise than there is: still a lower bound
    if shuffled_delta(0.0, s, batches) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while shuffled_delta(high, s, batches) > delta:
        low, high = high, 2 * high
        if high > 1e6:
            return low
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        if shuffled_delta(middle, s, batches) > delta:
            low = middle
        else:
            high = middle
    return low


# --- discretised losses of our own --------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Probabilities of the losses first * h, (first + 1) * h, ...; the rest is infinite or lost."""

    first: int
    mass: Floats


def on_grid(loss: Floats, mass: Floats, h: float, *, up: bool) -> Losses:
    """Each loss moved to a multiple of h, up or down."""
    cells = np.ceil(loss / h - 1e-9) if up else np.floor(loss / h + 1e-9)
    if up:
        cells = np.where(cells * h < loss, cells + 1, cells)
    else:
        cells = np.where(cells * h > loss, cells - 1, cells)
    index = cells.astype(np.int64)
    first = int(index.min())
    return Losses(first=first, mass=np.bincount(index - first, weights=mass).astype(np.float64))


def _compose(losses: Losses, times: int, h: float) -> tuple[Losses, float]:
    """The sum of independent losses by FFT, and a bound on the mass that is lost or wrong.

    The window is chosen by Chernoff bounds on both tails, so that what wraps around in the cyclic
    convolution is at most that mass.
    """
    if times == 1:
        return losses, 0.0
    cells = np.arange(len(losses.mass)) + losses.first
    low, high = _window((cells * h).astype(np.float64), losses.mass, times, h)
    low, high = max(low, losses.first * times), min(high, int(cells[-1]) * times)
    size = 1 << max(high - low + 1, len(losses.mass)).bit_length()
    if size > _MAX_CELLS:
        raise UnsupportedEvent(f"an interval would need {size} cells, too many", event=None)
    spectrum = np.fft.rfft(losses.mass, size)
    total = np.fft.irfft(spectrum**times, size)
    # Cell j of the result stands for losses.first * times + j, modulo size.
    shift = (low - losses.first * times) % size
    mass = np.maximum(np.roll(total, -shift)[: high - low + 1], 0.0)
    # The transforms' rounding, in the 2-norm and then summed over all cells.
    rounding = times * 2**-50 * math.sqrt(size) * float(np.linalg.norm(losses.mass))
    return Losses(first=low, mass=mass), 2 * _TAIL + rounding


def _window(loss: Floats, mass: Floats, times: int, h: float) -> tuple[int, int]:
    """Cells outside of which the sum of ``times`` losses has at most _TAIL on each side."""
    with np.errstate(divide="ignore"):
        log_mass = np.log(mass)

    def log_mgf(t: float) -> float:
        x = log_mass + t * loss
        top = float(x.max())
        return top + math.log(float(np.exp(x - top).sum()))

    target = -math.log(_TAIL)
    rates = np.geomspace(1e-3, 1e4, 60)
    high = min((times * log_mgf(t) + target) / t for t in rates)
    low = -min((times * log_mgf(-t) + target) / t for t in rates)
    return math.floor(low / h), math.ceil(high / h)


def _epsilon_of(losses: Losses, h: float, delta: float, infinite: float) -> float:
    """The smallest epsilon with infinite + E[(1 - e^(eps - L))+] <= delta; inf if there is none."""
    if infinite > delta:
        return math.inf
    value = (np.arange(len(losses.mass)) + losses.first) * h

    def excess(eps: float) -> float:
        above = value > eps
        return infinite + float((losses.mass[above] * -np.expm1(eps - value[above])).sum())

    if excess(0.0) <= delta:
        return 0.0
    low, high = 0.0, float(value[-1])
    for _ in range(100):
        middle = (low + high) / 2
        if excess(middle) <= delta:
            high = middle
        else:
            low = middle
    return high


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Loss log p/q of a pair on the line, rising in w, and the distribution function of p."""

    loss: Callable[[Floats], Floats]
    p_below: Callable[[Floats], Floats]
    q_below: Callable[[Floats], Floats]
    reach: float


def _sampled_pair(q: float, z: float, adjacency: Adjacency) -> _Pair:
    """(1-q) N(0) + q N(1) against N(0), or against (1-q) N(0) + q N(-1); deviation z."""
    if not _PAIR_NOISE[0] <= z <= _PAIR_NOISE[1]:
        raise UnsupportedEvent(
            f"fixed cohorts and clients have an interval for noise multipliers in "
            f"[{_PAIR_NOISE[0]:g}, {_PAIR_NOISE[1]:g}], found {z!r}",
            event=Gaussian(noise_multiplier=z) if z < math.inf else None,
        )
    against = -1.0 if adjacency is Adjacency.REPLACE_ONE else 0.0

    def ratio(w: Floats, centre: float) -> Floats:
        # log of the mixture's density over that of N(0)
        y = (2 * w * centre - 1) / (2 * z * z)
        if q == 1:
            return y
        found: Floats = np.logaddexp(math.log1p(-q), math.log(q) + y)
        return found

    def loss(w: Floats) -> Floats:
        return ratio(w, 1.0) - (ratio(w, against) if against else 0.0)

    def below(w: Floats, centre: float) -> Floats:
        found: Floats = (1 - q) * ndtr(w / z) + q * ndtr((w - centre) / z)
        return found

    return _Pair(
        loss=loss,
        p_below=lambda w: below(w, 1.0),
        q_below=(lambda w: below(w, against)) if against else (lambda w: ndtr(w / z)),
        reach=9 * z + 1,
    )


def _discretised(pair: _Pair, h: float, *, forward: bool, up: bool) -> tuple[Losses, float, float]:
    """The loss of (P, Q), or of (Q, P), on the grid; the mass outside; the most a loss was moved.

    Cells of w are so small that the loss moves by about h in each; the end of the cell that bounds
    the loss on the needed side is taken, and then the grid point on that side.
    """
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        ends = pair.loss(np.array([-pair.reach, pair.reach]))
        cells = float(ends[1] - ends[0]) / h
    if not cells <= _MAX_CELLS:  # before any memory is taken; not a number neither
        raise UnsupportedEvent(
            f"an interval would need losses from {ends[0]:.3g} to {ends[1]:.3g} in cells of "
            f"{h:.2g}, more than {_MAX_CELLS} of them: so little noise has no interval",
            event=None,
        )
    points = min(max(int(2 * (ends[1] - ends[0]) / h), 4096), _MAX_CELLS)
    w = np.linspace(-pair.reach, pair.reach, points)
    loss = pair.loss(w)
    cumulative = (pair.p_below if forward else pair.q_below)(w)
    mass = np.diff(cumulative)
    right, left = loss[1:], loss[:-1]
    end = (right if up else left) if forward else -(left if up else right)
    # What is outside of the grid of w counts as infinite above, and is left out below.
    return (
        on_grid(end, np.maximum(mass, 0.0), h, up=up),
        max(0.0, 1.0 - float(mass.sum())),
        h + float(np.max(right - left)),
    )


def _own_epsilon(
    pair: _Pair, *, steps: int, p: float, rounds: int, delta: float, h: float, up: bool
) -> float:
    """Epsilon of ``rounds`` of [a client's coin p, then ``steps`` of the pair], worse direction.

    Without the client's coin, p = 1. Rounded to the side that ``up`` says.
    """
    worst = 0.0
    for forward in (True, False):
        one, outside, moved = _discretised(pair, h, forward=forward, up=up)
        found = rounds_epsilon(
            one,
            (outside, moved),
            steps=steps,
            p=p,
            rounds=rounds,
            delta=delta,
            h=h,
            forward=forward,
            up=up,
        )
        worst = max(worst, found)
    return worst


def rounds_epsilon(
    one: Losses,
    lost: tuple[float, float],
    *,
    steps: int,
    p: float,
    rounds: int,
    delta: float,
    h: float,
    forward: bool,
    up: bool,
) -> float:
    """Epsilon in one direction from the discretised loss of one step, whatever the mechanism is.

    Args:
        one: the loss of (P, Q) if ``forward``, else of (Q, P), rounded up or down as ``up`` says.
        lost: probability outside of ``one``; the most that a loss was moved.
        steps: of a client that takes part.
        p: probability of its coin.
        rounds: how often all this happens.
        delta: 0 < delta < 1.
        h: grid width.
        forward: which direction.
        up: an upper bound, else a lower one.
    """
    outside, moved = lost
    inner, inner_error = _compose(one, steps, h)
    if p < 1:
        inner = _with_coin(inner, p, h, steps * moved, forward=forward, up=up)
    total, error = _compose(inner, rounds, h)
    error += rounds * inner_error
    if up:
        return _epsilon_of(total, h, delta, rounds * steps * outside + error)
    # Mass that may be there by error must not prove anything.
    return _epsilon_of(total, h, delta + error, 0.0)


def _with_coin(
    losses: Losses, p: float, h: float, moved: float, *, forward: bool, up: bool
) -> Losses:
    """The loss of ((1-p) R + p P, (1-p) R + p Q) from the loss L of (P, Q).

    Above, R disjoint from both: L with probability p, else 0. Below, R = Q:
    log(1 - p + p e^L) with mass P(L) ((1-p) e^-L + p), and in the other direction, L that of
    (Q, P), -log(1 - p + p e^-L) with mass Q(L). ``moved``: by how much L may have been lowered.
    """
    value = (np.arange(len(losses.mass)) + losses.first) * h
    if up:
        return on_grid(np.append(value, 0.0), np.append(p * losses.mass, 1 - p), h, up=True)
    if forward:
        mass = losses.mass * ((1 - p) * np.exp(-value - moved) + p)  # not above the true mass
        return on_grid(np.logaddexp(math.log1p(-p), math.log(p) + value), mass, h, up=False)
    return on_grid(-np.logaddexp(math.log1p(-p), math.log(p) - value), losses.mass, h, up=False)


# --- M4 and M11 ---------------------------------------------------------------------------------


def _width(total: int) -> float:
    """Every release loses about a cell in a one-sided rounding; within what memory allows."""
    return min(1e-3, max(1e-5, 1e-2 / total))


def _rdp_upper(event: Event, delta: float, adjacency: Adjacency) -> Bound:
    accountant = RDPAccountant(adjacency=adjacency)
    accountant.compose(event)
    with warnings.catch_warnings():  # an interval's end may be loose
        warnings.simplefilter("ignore", OrderAtEdgeWarning)
        return accountant.epsilon(delta)


def _fixed_size(
    leaf: FixedSize, count: int, event: Event, delta: float, adjacency: Adjacency
) -> Interval:
    upper = _rdp_upper(event, delta, adjacency)
    z = combined_gaussian(leaf.event, adjacency)
    if z is None:
        raise UnsupportedEvent(
            f"no lower bound is known for a fixed cohort around {leaf.event}", event=leaf
        )
    unsampled = gaussian_epsilon(
        (2.0 if adjacency is Adjacency.REPLACE_ONE else 1.0) * math.sqrt(count) / z, delta
    )
    if unsampled < upper.value:
        upper = _bound(unsampled, BoundKind.UPPER, delta, adjacency, method=Method.EXACT)
    h = _width(count)
    pair = _sampled_pair(leaf.cohort / leaf.population, z, adjacency)
    lower = _own_epsilon(pair, steps=1, p=1.0, rounds=count, delta=delta, h=h, up=False)
    return Interval(
        lower=_bound(min(lower, upper.value), BoundKind.LOWER, delta, adjacency, width=h),
        upper=upper,
    )


def _hierarchical(
    leaf: Hierarchical, count: int, event: Event, delta: float, adjacency: Adjacency
) -> Interval:
    upper = _rdp_upper(event, delta, adjacency)
    rate, inner = 1.0, leaf.event
    while isinstance(inner, Poisson):
        rate, inner = rate * inner.sample_rate, inner.event
    z = combined_gaussian(inner, adjacency)
    if z is None:
        raise UnsupportedEvent(
            f"clients and their records are bracketed around Gaussians, found {leaf.event}",
            event=leaf,
        )
    h = _width(leaf.steps * count)
    pair = _sampled_pair(rate, z, adjacency)
    values = [
        _own_epsilon(pair, steps=leaf.steps, p=leaf.p_client, rounds=count, delta=delta, h=h, up=up)
        for up in (False, True)
    ]
    if values[1] < upper.value:
        upper = _bound(values[1], BoundKind.UPPER, delta, adjacency, width=h)
    return Interval(
        lower=_bound(min(values[0], upper.value), BoundKind.LOWER, delta, adjacency, width=h),
        upper=upper,
    )
