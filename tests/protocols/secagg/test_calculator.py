"""The parameter calculator against exact fractions, and its promises as properties."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.protocols.secagg.calculator import (
    GraphKind,
    Parameters,
    _log2_disconnected,
    _quantile,
    complete_graph,
    modulus_bits,
    parameters,
    plan_round,
)
from securefl.protocols.secagg.params import (
    SecAggParams,
    corrupt_neighbours,
    dropped_neighbours,
    ring_stays_connected,
)
from securefl.round import Adversary, Layout, ThreatModel

SEMI, ACTIVE = Adversary.SEMI_HONEST, Adversary.ACTIVE

RATES = {
    "g.05 d.10": ("0.05", "0.10", SEMI),
    "g.05 d.33": ("0.05", "0.33", SEMI),
    "g.2 d.1": ("0.2", "0.1", SEMI),
    "g.33 d.33": ("0.33", "0.33", SEMI),
    "active .05/.05": ("0.05", "0.05", ACTIVE),
    "active .1/.1": ("0.1", "0.1", ACTIVE),
    "active .05/.33": ("0.05", "0.33", ACTIVE),
}
ROWS = {  # k, t, c*, t_max
    100: [
        (16, 6, 5, 7),
        (28, 6, 5, 7),
        (32, 21, 20, 22),
        (68, 34, 33, 35),
        (16, 11, 5, 11),
        (32, 22, 10, 22),
        (72, 39, 5, 39),
    ],
    1000: [
        (36, 19, 18, 19),
        (72, 24, 23, 24),
        (68, 44, 43, 44),
        (286, 150, 149, 151),
        (52, 37, 20, 37),
        (96, 67, 37, 67),
        (398, 223, 46, 223),
    ],
}
WORKED = [
    pytest.param(n, *RATES[name], row, id=f"{n} {name}")
    for n, rows in ROWS.items()
    for name, row in zip(RATES, rows, strict=True)
]


def threat(A: int, D: int, adversary: Adversary = SEMI) -> ThreatModel:
    return ThreatModel(adversary=adversary, corrupt=A, dropped=D, assume_no_corruption=True)


def numbers(found: Parameters) -> tuple[str, int, int, int, int]:
    return found.graph.value, found.k, found.t, found.c_star, found.t_max


def more_than(population: int, marked: int, draws: int, x: int) -> Fraction:
    """Pr[X > x], exactly; x may be negative."""
    ways = sum(
        math.comb(marked, y) * math.comb(population - marked, draws - y)
        for y in range(max(0, x + 1), min(marked, draws) + 1)
    )
    return Fraction(ways, math.comb(population, draws))


def at_degree(
    n: int, k: int, A: int, D: int, active: bool, sigma: int, eta: int
) -> tuple[bool, int, int, int]:
    """Connected, t_min, c*, t_max of degree k, as the definitions say."""
    B = A + D
    isolated = Fraction(n * (n - k - 1), 2) * Fraction(math.comb(B, k), math.comb(n, k))
    connected = k > B or isolated < Fraction(1, 2 ** (sigma + 1))
    c = next(x for x in range(k + 1) if more_than(n - 1, A, k, x) <= Fraction(1, n * 2**sigma * 2))
    alive = n - 1 - D
    t_max = max(
        y
        for y in range(k + 1)
        if 1 - more_than(n - 1, alive, k, y - 1) <= Fraction(1, n * 2**eta)  # Pr[Y < y]
    )
    t_min = max(2, (k + c) // 2 + 1 if active else c + 1)
    return connected, t_min, c, t_max


def oracle(
    n: int, A: int, D: int, active: bool, sigma: int, eta: int
) -> tuple[str, int, int, int, int] | None:
    """Linear scan over every even degree in exact fractions, then the complete graph."""
    if n - D - A < 2:
        return None
    for k in range(2, n - 1, 2):
        connected, t_min, c, t_max = at_degree(n, k, A, D, active, sigma, eta)
        if connected and t_min <= t_max:
            return "harary", k, t_min, c, t_max
    t = max(2, (n - 1 + A) // 2 + 1 if active else A + 1)
    return ("complete", n - 1, t, A, n - 1 - D) if t <= n - 1 - D else None


@pytest.mark.parametrize(("n", "gamma", "delta", "adversary", "row"), WORKED)
def test_the_worked_rows_come_out(
    n: int, gamma: str, delta: str, adversary: Adversary, row: tuple[int, int, int, int]
) -> None:
    model = ThreatModel.from_rates(n, gamma=gamma, delta=delta, adversary=adversary)
    assert numbers(parameters(n, model)) == ("harary", *row)


@pytest.mark.parametrize(("n", "gamma", "delta", "adversary", "row"), WORKED[:7])
def test_the_worked_rows_of_100_clients_are_exact(
    n: int, gamma: str, delta: str, adversary: Adversary, row: tuple[int, int, int, int]
) -> None:
    model = ThreatModel.from_rates(n, gamma=gamma, delta=delta, adversary=adversary)
    exact = oracle(n, model.corrupt, model.dropped, adversary is ACTIVE, 40, 20)
    assert exact == ("harary", *row)


@pytest.mark.long
@pytest.mark.parametrize(("n", "gamma", "delta", "adversary", "row"), WORKED[7:])
def test_the_worked_rows_of_1000_clients_are_exact(
    n: int, gamma: str, delta: str, adversary: Adversary, row: tuple[int, int, int, int]
) -> None:
    model = ThreatModel.from_rates(n, gamma=gamma, delta=delta, adversary=adversary)
    exact = oracle(n, model.corrupt, model.dropped, adversary is ACTIVE, 40, 20)
    assert exact == ("harary", *row)


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(3, 30),
    A=st.integers(0, 30),
    D=st.integers(0, 30),
    active=st.booleans(),
    sigma=st.integers(1, 45),
    eta=st.integers(1, 25),
)
@example(n=30, A=2, D=2, active=True, sigma=1, eta=1)
@example(n=3, A=1, D=0, active=False, sigma=40, eta=20)
@example(n=3, A=1, D=1, active=False, sigma=40, eta=20)
def test_small_cohorts_agree_with_exact_fractions(
    n: int, A: int, D: int, active: bool, sigma: int, eta: int
) -> None:
    exact = oracle(n, A, D, active, sigma, eta)
    model = threat(A, D, ACTIVE if active else SEMI)
    if exact is None:
        with pytest.raises(ConfigurationError, match="no graph is safe"):
            parameters(n, model, sigma=sigma, eta=eta)
    else:
        assert numbers(parameters(n, model, sigma=sigma, eta=eta)) == exact


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(31, 400),
    gamma=st.fractions(0, Fraction(1, 2), max_denominator=50),
    delta=st.fractions(0, Fraction(1, 2), max_denominator=50),
    active=st.booleans(),
    sigma=st.integers(1, 60),
    eta=st.integers(1, 40),
)
def test_no_smaller_even_degree_qualifies(
    n: int, gamma: Fraction, delta: Fraction, active: bool, sigma: int, eta: int
) -> None:
    """The search skips degrees; a scan over all of them finds the same one."""
    A, D = math.ceil(gamma * n), math.ceil(delta * n)
    try:
        found = parameters(n, threat(A, D, ACTIVE if active else SEMI), sigma=sigma, eta=eta)
    except ConfigurationError:
        last = n - 2
    else:
        last = found.k - 1
    for k in range(2, last + 1, 2):
        c = _quantile(n - 1, A, k, -(sigma + 1) - math.log2(n)).x
        t_max = k - _quantile(n - 1, D, k, -eta - math.log2(n)).x
        t = max(2, (k + c) // 2 + 1 if active else c + 1)
        separated = k <= A + D and log2_separated(n, A + D, k) >= -(sigma + 1)
        assert separated or t > t_max


def log2_separated(n: int, B: int, k: int) -> float:
    """The connectivity bound by log-gamma, as the literature writes it."""
    logs = math.log(n) + math.log(n - k - 1) - math.log(2) + math.lgamma(B + 1)
    logs += math.lgamma(n - k + 1) - math.lgamma(n + 1) - math.lgamma(B - k + 1)
    return logs / math.log(2)


@given(st.integers(6, 3000), st.data())
def test_the_connectivity_bound_is_the_published_one(n: int, data: st.DataObject) -> None:
    B = data.draw(st.integers(2, n - 2))
    k = data.draw(st.integers(1, min(B, n - 2)))
    assert _log2_disconnected(n, B)[k] == pytest.approx(log2_separated(n, B, k), abs=1e-6)


@pytest.mark.parametrize(
    ("n", "marked", "draws"),
    [(10**6, 50_000, 150), (10**6, 330_000, 64), (4000, 1300, 900), (10**6, 3, 10**4)],
)
def test_tails_are_exact_for_large_cohorts_too(n: int, marked: int, draws: int) -> None:
    for bound in (-5.5, -20.3, -61.7):
        x, log2 = _quantile(n - 1, marked, draws, bound)
        here = more_than(n - 1, marked, draws, x)
        before = more_than(n - 1, marked, draws, x - 1)
        limit = Fraction(2.0**bound)
        assert here <= limit < before
        if here:
            exact = math.log2(here.numerator) - math.log2(here.denominator)
            assert log2 == pytest.approx(exact, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 300), st.data(), st.sampled_from([SEMI, ACTIVE]))
def test_degree_and_threshold_never_fall_when_the_demands_grow(
    n: int, data: st.DataObject, adversary: Adversary
) -> None:
    A, D = data.draw(st.integers(0, n // 3)), data.draw(st.integers(0, n // 3))
    sigma, eta = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 40))
    more = data.draw(st.sampled_from(["A", "D", "sigma", "eta"]))
    step = data.draw(st.integers(1, max(1, n // 5)))
    try:
        high = parameters(
            n,
            threat(A + step * (more == "A"), D + step * (more == "D"), adversary),
            sigma=min(128, sigma + step * (more == "sigma")),
            eta=min(128, eta + step * (more == "eta")),
        )
    except ConfigurationError:
        return
    low = parameters(n, threat(A, D, adversary), sigma=sigma, eta=eta)
    assert low.k <= high.k
    assert low.t <= high.t


@given(st.integers(3, 500), st.data(), st.sampled_from([SEMI, ACTIVE]))
def test_every_answer_keeps_the_rules_of_the_threat_model(
    n: int, data: st.DataObject, adversary: Adversary
) -> None:
    A, D = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    try:
        found = parameters(n, threat(A, D, adversary))
    except ConfigurationError:
        return
    assert 2 <= found.t <= found.t_max <= min(found.k, n - 1 - D)
    assert found.c_star < found.t
    assert found.c_star <= A
    assert found.n_min == n - D >= found.t + 1
    assert found.min_honest >= 2
    if adversary is ACTIVE:
        assert 2 * found.t > found.k + found.c_star
    assert found.failure.privacy <= -41
    assert found.failure.connectivity < -41
    assert found.failure.loss <= -20
    if found.graph is GraphKind.HARARY:
        assert found.k % 2 == 0
        assert found.k <= n - 2
        honest = found.t + 1 - found.c_star if adversary is ACTIVE else n - D - A
        assert found.min_honest == honest
    else:
        assert (found.k, found.c_star, found.t_max) == (n - 1, A, n - 1 - D)
        assert found.min_honest == n - D - A


@settings(max_examples=200)
@given(
    n=st.integers(3, 600),
    sigma=st.integers(1, 100),
    eta=st.integers(1, 60),
    data=st.data(),
)
def test_the_calculator_and_the_machines_draw_the_same_lines(
    n: int, sigma: int, eta: int, data: st.DataObject
) -> None:
    """Floating-point tails here, whole numbers in the machines' own check; no line differs."""
    k = data.draw(st.integers(1, n - 1))
    A, D = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    corrupt = _quantile(n - 1, A, k, -(sigma + 1) - math.log2(n)).x
    gone = _quantile(n - 1, D, k, -eta - math.log2(n)).x
    assert corrupt_neighbours(n, k, A, sigma=sigma) == corrupt
    assert dropped_neighbours(n, k, D, eta=eta) == gone
    B = data.draw(st.integers(0, n - 2))
    apart = k <= B and _log2_disconnected(n, B)[k] >= -(sigma + 1)
    assert ring_stays_connected(n, k, B, sigma=sigma) is not bool(apart)


@settings(max_examples=60)
@given(st.integers(4, 400), st.data(), st.sampled_from([SEMI, ACTIVE]))
def test_the_machines_accept_what_the_calculator_chooses_and_nothing_weaker(
    n: int, data: st.DataObject, adversary: Adversary
) -> None:
    A, D = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    model = ThreatModel(adversary=adversary, corrupt=A, dropped=D)
    try:
        found = parameters(n, model)
    except ConfigurationError:
        return
    if found.graph is GraphKind.COMPLETE:
        SecAggParams.complete(n, model, t=found.t)
        below = SecAggParams.complete
        more: dict[str, int] = {}
    else:
        params = SecAggParams.harary(n, model, k=found.k, t=found.t)
        assert params.n_min == found.n_min
        assert SecAggParams.harary(n, model, k=found.k).t == found.t_max
        below = SecAggParams.harary
        more = {"k": found.k}
    with pytest.raises(ConfigurationError):
        below(n, model, t=found.t - 1, **more)
    with pytest.raises(ConfigurationError):
        below(n, model, t=found.t_max + 1, **more)


def test_a_self_share_rule_would_be_off_by_one_and_is_not_used() -> None:
    """k = 72, c* = 5: 2t = 78 > 77 suffices because nobody holds a share of its own."""
    found = parameters(100, threat(5, 33, ACTIVE))
    assert (found.k, found.c_star, found.t) == (72, 5, 39)
    assert 2 * found.t == found.k + found.c_star + 1


@given(st.integers(3, 60), st.data())
def test_the_machines_accept_what_the_calculator_says_about_the_complete_graph(
    n: int, data: st.DataObject
) -> None:
    A, D = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    model = ThreatModel(corrupt=A, dropped=D)
    try:
        found = complete_graph(n, model)
    except ConfigurationError:
        with pytest.raises(ConfigurationError):
            SecAggParams.complete(n, model)
        return
    params = SecAggParams.complete(n, model, t=found.t)
    assert (params.k, params.n_min, params.layout) == (found.k, found.n_min, Layout.OTHERS)
    with pytest.raises(ConfigurationError):
        SecAggParams.complete(n, model, t=found.t_max + 1)


@given(st.integers(3, 80), st.data(), st.sampled_from([SEMI, ACTIVE]))
def test_what_an_error_calls_feasible_is_feasible_and_the_most(
    n: int, data: st.DataObject, adversary: Adversary
) -> None:
    A, D = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    try:
        parameters(n, threat(A, D, adversary))
        return
    except ConfigurationError as error:
        words = str(error)
    assert f"n={n}, A={A} corrupt, D={D} dropped" in words

    def works(A: int, D: int) -> bool:
        try:
            complete_graph(n, threat(A, D, adversary))
        except ConfigurationError:
            return False
        return True

    most_corrupt = max((a for a in range(1, n) if works(a, D)), default=None)
    most_dropped = max((d for d in range(n) if works(A, d)), default=None)
    if most_corrupt is not None:
        assert f"A <= {most_corrupt} (" in words
    if most_dropped is not None:
        assert f"D <= {most_dropped} (" in words
    if most_corrupt is None and most_dropped is None:
        both = max((x for x in range(1, n) if works(x, x)), default=None)
        assert ("No numbers" if both is None else f"A = D = {both} (") in words


def test_infeasible_rates_say_which_condition_fails() -> None:
    with pytest.raises(ConfigurationError, match=r"2t > n-1\+A = 149 .* t >= 75.*n-1-D = 69"):
        parameters(100, threat(50, 30, ACTIVE))
    with pytest.raises(ConfigurationError, match=r"n-D-A = 1 honest inputs"):
        parameters(100, threat(50, 49))
    with pytest.raises(ConfigurationError, match=r"t > A and t >= 2 .*n-1-D = 1 holders"):
        parameters(3, threat(0, 1))


def test_numbers_outside_their_range_are_refused() -> None:
    for n in (2, (1 << 20) + 1):
        with pytest.raises(ConfigurationError, match="3 to 1048576 clients"):
            parameters(n, threat(1, 0))
    for name in ("sigma", "eta"):
        for value in (0, 129):
            with pytest.raises(ConfigurationError, match=f"{name} must be in 1..128"):
                parameters(10, threat(1, 0), **{name: value})
    with pytest.raises(ConfigurationError, match="at least 1 entry"):
        plan_round(10, threat(1, 0), length=0, input_bits=16)
    with pytest.raises(ConfigurationError, match=r"no Harary graph .* t=2"):
        plan_round(3, threat(1, 0), length=1, input_bits=16, graph=GraphKind.HARARY)


@given(st.integers(3, 1 << 20), st.integers(1, 44))
def test_the_largest_sum_fits_and_half_the_ring_would_be_too_small(n: int, bits: int) -> None:
    b = modulus_bits(n, bits)
    largest = n * (2**bits - 1)
    assert largest < 2**b
    assert largest >= 2 ** (b - 1)


def test_a_sum_beyond_64_bits_is_refused_with_the_most_that_would_do() -> None:
    with pytest.raises(ConfigurationError, match=r"needs 65 bits.*at most 54 bits"):
        modulus_bits(1024, 55)
    assert modulus_bits(1024, 54) == 64
    with pytest.raises(ConfigurationError, match="at least 1 bit"):
        modulus_bits(1024, 0)


@pytest.mark.parametrize("adversary", [SEMI, ACTIVE])
@pytest.mark.parametrize(("n", "A", "D"), [(1000, 50, 330), (1000, 50, 50), (12, 2, 2)])
def test_the_explanation_names_every_number(n: int, A: int, D: int, adversary: Adversary) -> None:
    plan = plan_round(n, threat(A, D, adversary), length=12_345, input_bits=16)
    words = plan.explain()
    p = plan.parameters
    for text in (
        f"n={n}",
        f"A={A}",
        f"D={D}",
        f"{p.k}",
        f"t={p.t}",
        f"{p.c_star}",
        f"{p.t_max}",
        f"= {p.n_min} inputs",
        f"min_honest={p.min_honest}",
        f"2^{plan.modulus_bits}",
        f"{plan.traffic.upload_bytes:,}",
        f"{plan.traffic.download_bytes:,}",
        f"{plan.traffic_dropouts.upload_bytes:,}",
        f"{plan.expansion:.4f}",
    ):
        assert text in words
    assert ("experimental" in words) == (adversary is ACTIVE and p.graph is GraphKind.HARARY)
    assert ("2^-40" in words) == (p.graph is GraphKind.HARARY)


def test_the_complete_graph_can_be_asked_for() -> None:
    plan = plan_round(
        1000, threat(50, 330), length=1, input_bits=1, graph=GraphKind.COMPLETE
    ).parameters
    assert (plan.graph, plan.k, plan.t, plan.t_max) == (GraphKind.COMPLETE, 999, 51, 669)


@pytest.mark.parametrize(("n", "seconds"), [(10**4, 0.1), (10**6, 2.0)])
@pytest.mark.parametrize("adversary", [SEMI, ACTIVE])
def test_the_calculator_is_fast_enough_to_be_asked_before_every_round(
    n: int, seconds: float, adversary: Adversary
) -> None:
    """CPU time; the hard cases are those whose demands nearly cannot be met."""
    worst = 0.0
    for gamma, delta in (("0.05", "0.33"), ("0.33", "0.3"), ("0.49", "0.5"), ("0.01", "0.01")):
        begin = time.process_time()
        try:
            parameters(n, ThreatModel.from_rates(n, gamma=gamma, delta=delta, adversary=adversary))
        except ConfigurationError:
            assert adversary is ACTIVE
        worst = max(worst, time.process_time() - begin)
    assert worst < seconds
