"""The filter and the odometer against exact laws of adaptive transcripts.

The adversary picks every release in view of all earlier outputs. Its mechanisms have few outcomes
(randomised response; with a failure that tells everything), so that the law of whole transcripts
on two neighbours can be written down, and the promise checked without any accounting.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting import (
    Adjacency,
    ApproxDP,
    BudgetExceeded,
    Event,
    Filter,
    Gaussian,
    InvalidParameter,
    Ledger,
    LedgerHeader,
    NonPrivate,
    Odometer,
    Poisson,
    PureDP,
    Repeat,
    Unit,
    UnsupportedEvent,
    digest,
    epsilon,
)
from accounting.accountant import gaussian_delta
from accounting.curves import rdp_at
from accounting.filter import budget_ticks, failure_ticks, price, reserve_ticks

pytestmark = pytest.mark.filterwarnings("ignore::accounting.errors.OrderAtEdgeWarning")
ZERO = Adjacency.ZERO_OUT
Outcomes = list[tuple[float, float]]
"""(probability on D, probability on D') of each outcome of one release."""
Path_ = tuple[int, ...]


def pure(level: float) -> PureDP:
    return PureDP(epsilon=level, adjacency=ZERO)


def failing(level: float, delta: float) -> ApproxDP:
    return ApproxDP(epsilon=level, delta=delta, adjacency=ZERO)


def outcomes(event: PureDP | ApproxDP) -> Outcomes:
    """Randomised response; with probability delta the outcome names the data set."""
    delta = event.delta if isinstance(event, ApproxDP) else 0.0
    yes = 1 / (1 + math.exp(-event.epsilon))
    told = [(delta, 0.0), (0.0, delta)] if delta else []
    no = 1 - yes
    kept = 1 - delta
    return [(kept * yes, kept * no), (kept * no, kept * yes), *told]


def leaves_of(
    gate: Filter, policy: Callable[[Path_], PureDP | ApproxDP | None], depth: int
) -> Iterator[tuple[float, float]]:
    """The probabilities of every transcript on D and on D'."""

    def walk(gate: Filter, seen: Path_, p: float, q: float) -> Iterator[tuple[float, float]]:
        event = policy(seen) if len(seen) < depth else None
        if event is None or not gate.fits(event):
            yield p, q
            return
        for index, (on_d, on_other) in enumerate(outcomes(event)):
            after = copy.deepcopy(gate)
            after.admit(event)
            yield from walk(after, (*seen, index), p * on_d, q * on_other)

    return walk(gate, (), 1.0, 1.0)


def adaptive(table: list[PureDP | ApproxDP | None]) -> Callable[[Path_], PureDP | ApproxDP | None]:
    """A policy that reads its next choice at a place that all outputs so far decide."""

    def policy(seen: Path_) -> PureDP | ApproxDP | None:
        place = 0
        for outcome in seen:
            place = place * 5 + outcome + 1
        return table[place % len(table)]

    return policy


LEVELS = st.sampled_from([0.2, 0.5, 0.9, 1.5])
CHOICES = st.one_of(st.none(), LEVELS.map(pure), LEVELS.map(pure))
FAILING = st.one_of(CHOICES, st.builds(failing, LEVELS, st.sampled_from([0.01, 0.03])))
ORDERS = st.sampled_from([(3.0,), (6.0,), (2.5, 5.0), (2.0, 4.0, 9.0)])


@given(
    table=st.lists(CHOICES, min_size=1, max_size=11),
    orders=ORDERS,
    target=st.floats(0.8, 3.0),
    delta=st.floats(0.02, 0.3),
)
def test_whatever_is_asked_adaptively_the_transcript_keeps_the_promise(
    table: list[PureDP | None], orders: tuple[float, ...], target: float, delta: float
) -> None:
    try:
        gate = Filter(None, target, delta, adjacency=ZERO, orders=orders)
    except InvalidParameter:
        return  # no budget at that order
    laws = list(leaves_of(gate, adaptive(table), depth=6))
    assert sum(p for p, _ in laws) == pytest.approx(1.0)
    for first, second in ((0, 1), (1, 0)):
        found = sum(max(0.0, law[first] - math.exp(target) * law[second]) for law in laws)
        assert found <= delta + 1e-12


@given(
    table=st.lists(FAILING, min_size=1, max_size=9),
    orders=st.sampled_from([(3.0,), (2.5, 5.0)]),
    target=st.floats(0.8, 3.0),
)
def test_with_releases_that_may_fail_the_transcript_keeps_the_promise(
    table: list[PureDP | ApproxDP | None], orders: tuple[float, ...], target: float
) -> None:
    delta, reserve = 0.2, 0.06
    try:
        gate = Filter(None, target, delta, adjacency=ZERO, orders=orders, delta_reserve=reserve)
    except InvalidParameter:
        return
    laws = list(leaves_of(gate, adaptive(table), depth=4))
    for first, second in ((0, 1), (1, 0)):
        found = sum(max(0.0, law[first] - math.exp(target) * law[second]) for law in laws)
        assert found <= delta + 1e-12
        # All certainty beyond a factor e^epsilon of the sums comes from failures.
        assert sum(law[first] for law in laws if law[second] == 0) <= reserve + 1e-12


@given(
    table=st.lists(LEVELS.map(pure), min_size=1, max_size=11),
    orders=st.sampled_from([(3.0,), (8.0,), (2.0, 4.0, 9.0)]),
    delta=st.floats(0.02, 0.5),
)
def test_the_odometer_is_passed_at_any_time_with_at_most_its_probability(
    table: list[PureDP], orders: tuple[float, ...], delta: float
) -> None:
    policy = adaptive(list(table))

    def passed(odometer: Odometer, seen: Path_, p: float, q: float) -> float:
        """The probability that the loss passes the bound now or later."""
        if p > 0 and math.log(p / q) > odometer.loss_bound:
            return p
        event = policy(seen) if len(seen) < 6 else None
        if event is None:
            return 0.0
        total = 0.0
        for index, (on_d, on_other) in enumerate(outcomes(event)):
            after = copy.deepcopy(odometer)
            after.charge(event)
            total += passed(after, (*seen, index), p * on_d, q * on_other)
        return total

    assert passed(Odometer(orders, delta, adjacency=ZERO), (), 1.0, 1.0) <= delta


@given(z=st.floats(1.0, 50.0), target=st.floats(0.3, 6.0), order=st.sampled_from([4.0, 12.0, 40.0]))
def test_a_full_filter_of_gaussians_is_within_the_exact_delta(
    z: float, target: float, order: float
) -> None:
    step = Gaussian(noise_multiplier=z)
    try:
        gate = Filter(None, target, 1e-5, adjacency=ZERO, orders=[order])
    except InvalidParameter:
        return
    while gate.releases < 200 and gate.fits(step):
        gate.admit(step)
    if gate.releases:
        assert gaussian_delta(math.sqrt(gate.releases) / z, target) <= 1e-5


@given(
    zs=st.lists(st.floats(2.0, 60.0), max_size=40),
    orders=st.sampled_from([(4.0,), (4.0, 16.0)]),
)
def test_a_release_is_admitted_exactly_while_some_order_has_room(
    zs: list[float], orders: tuple[float, ...]
) -> None:
    """The oracle adds exact fractions of a/(2 z^2), each rounded up."""
    target, delta = 4.0, 1e-3
    gate = Filter(None, target, delta, adjacency=ZERO, orders=orders)
    k = len(orders)
    room = {
        a: math.floor(
            2**40 * (target - math.log(k / delta) / (a - 1))
            if k > 1
            else 2**40 * (target - math.log(1 - 1 / a) + (math.log(delta) + math.log(a)) / (a - 1))
        )
        for a in orders
    }
    for a, limit in zip(orders, gate.limits, strict=True):
        assert abs(room[a] - limit) <= 2  # another way round a logarithm
        room[a] = limit
    for z in zs:
        event = Gaussian(noise_multiplier=z)
        cost = {
            a: math.ceil(Fraction(rdp_at(event, a, ZERO)) * 2**40 * (1 + Fraction(1, 2**29)))
            for a in orders
        }
        fits = any(cost[a] <= room[a] for a in orders)
        assert gate.fits(event) == fits
        before = (gate.spent, gate.releases)
        if not fits:
            with pytest.raises(BudgetExceeded) as caught:
                gate.admit(event)
            assert caught.value.spent + caught.value.requested > caught.value.limit
            assert (gate.spent, gate.releases) == before
            continue
        gate.admit(event)
        for a in orders:
            room[a] -= cost[a]


def test_an_order_that_ran_out_stays_out() -> None:
    """What the best order of each round would admit: the classic error."""
    gate = Filter(None, 3.0, 1e-5, adjacency=ZERO, orders=[8.0, 64.0])
    many, large = Gaussian(noise_multiplier=4.5), pure(2.7)
    while gate.fits(many):
        gate.admit(many)
    assert gate.spent[1] is not None
    assert gate.spent[1] > gate.limits[1]
    assert not gate.fits(large)
    assert Filter(None, 3.0, 1e-5, adjacency=ZERO, orders=[64.0]).fits(large)


def test_the_plans_best_order_is_declared_and_the_plan_fits() -> None:
    step = Poisson(sample_rate=0.05, event=Gaussian(noise_multiplier=1.2))
    plan = Repeat(event=step, count=400)
    bound = epsilon(plan, 1e-6, adjacency=ZERO, method="rdp")
    gate = Filter(plan, bound.value * (1 + 1e-6), 1e-6, adjacency="zero-out")
    assert gate.orders == (bound.order,)
    for _ in range(400):
        gate.admit(step)
    assert not gate.fits(step)
    assert gate.releases == 400


def test_a_filter_and_a_ledger_of_the_same_declaration_decide_alike(tmp_path: Path) -> None:
    events: list[Event] = [
        Gaussian(noise_multiplier=6.0),
        failing(0.05, 1e-6),
        Gaussian(noise_multiplier=15.0),
        failing(0.01, 3e-6),
        NonPrivate(),
    ]
    header = LedgerHeader(
        population="p",
        unit=Unit.CLIENT,
        adjacency=ZERO,
        epsilon=1.5,
        delta=1e-5,
        order=16.0,
        plan=digest(events[0]),
        delta_reserve=5e-6,
    )
    gate = Filter(None, 1.5, 1e-5, adjacency=ZERO, orders=[16.0], delta_reserve=5e-6)
    assert gate.limits == (header.budget,)
    with Ledger.create(tmp_path / "a.ledger", header) as ledger:
        for index in range(40):
            event = events[index * index % 5]
            assert gate.fits(event) == ledger.fits(event)
            if gate.fits(event):
                gate.admit(event)
                ledger.reserve(event, round=index, key=str(index))
        assert gate.spent == (ledger.reserved,)


def test_failures_are_added_up_exactly_and_rounded_against_the_user() -> None:
    delta = 0.1
    event = Repeat(event=failing(1.0, delta), count=3)
    assert failure_ticks(event) == math.ceil(3 * Fraction(delta) * 2**64)
    assert reserve_ticks(0.3) < failure_ticks(event)  # three times 0.1 is more than 0.3 in floats
    assert failure_ticks(failing(1.0, 1e-300)) == 1
    assert failure_ticks(pure(1.0)) == 0
    assert price(failing(0.3, delta), order=5.0, adjacency=ZERO) == price(
        pure(0.3), order=5.0, adjacency=ZERO
    )


def test_what_may_fail_needs_a_declared_reserve() -> None:
    gate = Filter(None, 1.0, 1e-5, adjacency=ZERO, orders=[20.0])
    for call in (gate.fits, gate.admit, Odometer(20.0, 1e-5, adjacency=ZERO).charge):
        with pytest.raises(UnsupportedEvent, match="delta_reserve"):
            call(failing(0.1, 1e-9))
    assert gate.fits(failing(0.1, 0.0))


def test_the_reserve_is_taken_off_the_delta_of_the_budget() -> None:
    with_reserve = Filter(None, 1.0, 1e-5, adjacency=ZERO, orders=[20.0], delta_reserve=9e-6)
    assert with_reserve.limits[0] <= budget_ticks(1.0, 1e-5 - 9e-6, 20.0)
    assert with_reserve.limits[0] < Filter(None, 1.0, 1e-5, adjacency=ZERO, orders=[20.0]).limits[0]


def test_an_unbounded_release_is_refused_by_the_filter_and_infinite_on_the_odometer() -> None:
    gate = Filter(None, 1.0, 1e-5, adjacency=ZERO, orders=[20.0])
    with pytest.raises(BudgetExceeded) as caught:
        gate.admit(NonPrivate())
    assert math.isinf(caught.value.requested)
    odometer = Odometer([10.0, 20.0], 1e-5, adjacency=ZERO)
    assert odometer.loss_bound == 0.0
    odometer.charge(Gaussian(noise_multiplier=10.0))
    finite = odometer.loss_bound
    assert finite == pytest.approx(
        min(a / 200 + math.log(2 / 1e-5) / (a - 1) for a in (10.0, 20.0)), rel=1e-8
    )
    odometer.charge(NonPrivate())
    odometer.charge(Gaussian(noise_multiplier=10.0))
    assert math.isinf(odometer.loss_bound)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Filter(None, 1.0, 1e-5, adjacency=ZERO),
        lambda: Filter(pure(0.1), 1.0, 1e-5, adjacency=ZERO, orders=[4.0]),
        lambda: Filter(NonPrivate(), 1.0, 1e-5, adjacency=ZERO),
        lambda: Filter(None, 1.0, 1e-5, adjacency=ZERO, orders=[]),
        lambda: Filter(None, 1.0, 1e-5, adjacency=ZERO, orders=[20.0, 20.0]),
        lambda: Filter(None, 1.0, 1e-5, adjacency=ZERO, orders=[1.0]),
        lambda: Filter(None, 1.0, 1e-5, adjacency=ZERO, orders=[2.0]),
        lambda: Filter(None, 1.0, 1e-5, adjacency=ZERO, orders=[20.0, 2.0]),
        lambda: Filter(None, -1.0, 1e-5, adjacency=ZERO, orders=[20.0]),
        lambda: Filter(None, 1.0, 1.0, adjacency=ZERO, orders=[20.0]),
        lambda: Filter(None, 1.0, 1e-5, adjacency="none", orders=[20.0]),
        lambda: Filter(None, 1.0, 1e-5, adjacency=ZERO, orders=[20.0], delta_reserve=1e-5),
        lambda: Filter(None, 1.0, 1e-5, adjacency=ZERO, orders=[20.0], delta_reserve=-1e-9),
        lambda: Odometer([], 1e-5, adjacency=ZERO),
        lambda: Odometer(20.0, 0.0, adjacency=ZERO),
    ],
)
def test_impossible_declarations_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidParameter):
        make()
