"""One ledger for a population: what is reserved, what is settled, and what each onlooker learns."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import accounting
from securefl.errors import BelowThreshold, ConfigurationError
from securefl.population import Payment, PopulationBudget, Realised, SharedRelease
from securefl.round import AggregateSum
from securefl.simulation.shared import VIEWS, views

DELTA, ORDER, L2 = 1e-5, 12.0, 200.0
CLIENTS, FEWEST, COLLUDING = 10, 7, 1


def skellam(survivors: int, colluding: int) -> accounting.Skellam:
    """Shares that make z = 3 out of six honest ones."""
    share = (3.0 * L2) ** 2 / 6
    return accounting.Skellam(mu=share * (survivors - colluding), l2=L2, l1=20 * L2)


RELEASE = SharedRelease(
    mechanism=skellam, sample_rate=0.2, delta_slack=2.0**-60, fewest=FEWEST, colluding=COLLUDING
)


def header(epsilon: float = 2.0) -> accounting.LedgerHeader:
    return accounting.LedgerHeader(
        population="test",
        unit=accounting.Unit.RECORD,
        adjacency=accounting.Adjacency.ZERO_OUT,
        epsilon=epsilon,
        delta=DELTA,
        delta_reserve=1e-12,
        order=ORDER,
        plan="0" * 64,
    )


def evidence(survivors: int) -> accounting.Evidence:
    return accounting.Evidence(
        planned=CLIENTS,
        survivors=survivors,
        colluding_assumed=COLLUDING,
        protocol="test",
        transcript="0" * 64,
    )


def budget(path: Path, epsilon: float = 2.0) -> PopulationBudget:
    return PopulationBudget.open(path, header=header(epsilon), release=RELEASE)


def epsilon_of(event: accounting.Event) -> float:
    return accounting.epsilon(event, DELTA, adjacency="zero-out", method="rdp").value


# None: lost with inputs under way; 0: nobody had sent anything.
schedules = st.lists(
    st.one_of(st.integers(FEWEST, CLIENTS), st.none(), st.just(0)), min_size=1, max_size=12
)


@given(schedule=schedules)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_ledger_is_the_composition_of_what_happened_and_never_above_what_was_reserved(
    tmp_path_factory: pytest.TempPathFactory, schedule: list[int | None]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "population.sqlite"
    happened: list[accounting.Event] = []
    reserved = 0
    account = budget(path, epsilon=50.0)
    for index, survivors in enumerate(schedule):
        ticket = account.reserve(index)
        reserved += ticket.ticks
        # The dearest price is charged before anybody knows how the round ends.
        assert account.ledger.reserved == ticket.ticks
        if survivors is None:
            account.lost(ticket)
            happened.append(RELEASE.event(FEWEST))
        elif survivors == 0:
            account.withheld(ticket)
        else:
            account.settle(ticket, survivors, evidence(survivors))
            happened.append(RELEASE.event(survivors))
    oracle = epsilon_of(accounting.Compose(events=tuple(happened))) if happened else 0.0
    assert account.epsilon().value == pytest.approx(oracle, rel=1e-9)
    assert account.ledger.spent <= reserved
    realised = account.realised()
    opened = Counter(s for s in schedule if s)
    assert realised == Realised(opened=opened, charged=schedule.count(None))
    account.close()
    # Another process reads the same from the file alone.
    again = budget(path, epsilon=50.0)
    assert again.realised() == realised
    again.close()


def test_a_settlement_frees_exactly_the_difference(tmp_path: Path) -> None:
    account = budget(tmp_path / "l.sqlite")
    ticket = account.reserve(0)
    assert ticket.event == RELEASE.event(FEWEST)
    account.settle(ticket, CLIENTS, evidence(CLIENTS))
    alone = epsilon_of(RELEASE.event(CLIENTS))
    assert account.epsilon().value == pytest.approx(alone)
    assert alone < epsilon_of(RELEASE.event(FEWEST))


def test_fewer_survivors_than_were_paid_for_are_refused_before_the_sum_is_opened(
    tmp_path: Path,
) -> None:
    account = budget(tmp_path / "l.sqlite")
    account.release.check_survivors(FEWEST)
    with pytest.raises(BelowThreshold, match="6 survivors bring less noise") as caught:
        account.release.check_survivors(FEWEST - 1)
    assert (caught.value.needed, caught.value.had) == (FEWEST, FEWEST - 1)
    ticket = account.reserve(0)
    with pytest.raises(accounting.OverReservation):
        account.settle(ticket, FEWEST - 1, evidence(FEWEST - 1))
    assert account.ledger.reserved == ticket.ticks


def test_a_round_that_does_not_fit_is_refused_and_charges_nothing(tmp_path: Path) -> None:
    account = budget(tmp_path / "l.sqlite", epsilon=0.9)
    rounds = 0
    while (payment := Payment.reserve(account, rounds)) is not None:
        assert payment.ticket is not None
        account.settle(payment.ticket, CLIENTS, evidence(CLIENTS))
        rounds += 1
    assert rounds > 1
    assert account.ledger.reserved == 0
    assert account.epsilon().value <= 0.9


def test_two_attempts_at_one_round_have_two_tickets(tmp_path: Path) -> None:
    account = budget(tmp_path / "l.sqlite")
    first, second = account.reserve(3), account.reserve(3)
    assert first.key != second.key
    assert account.ledger.reserved == first.ticks + second.ticks
    # Open reservations count in every view: something may be under way.
    assert account.realised().charged == 2


def test_a_crash_leaves_the_reserved_price_charged(tmp_path: Path) -> None:
    account = budget(tmp_path / "l.sqlite")
    ticket = account.reserve(0)
    account.close()
    again = budget(tmp_path / "l.sqlite")
    assert again.ledger.spent == ticket.ticks
    assert again.realised() == Realised(opened=Counter(), charged=1)


def test_the_ledger_of_another_plan_is_refused(tmp_path: Path) -> None:
    budget(tmp_path / "l.sqlite").close()
    with pytest.raises(ConfigurationError, match="another plan"):
        budget(tmp_path / "l.sqlite", epsilon=3.0)


def test_a_payment_without_a_population_asks_and_charges_nothing() -> None:
    payment = Payment.reserve(None, 0)
    assert payment is not None
    payment.may_open(0)
    payment.withheld()
    payment.settle(None, sent=3, planned=3, protocol="x", modulus=2)


@pytest.mark.parametrize(("sent", "charged"), [(3, 1), (0, 0)])
def test_a_lost_round_is_charged_if_and_only_if_an_input_left(
    tmp_path: Path, sent: int, charged: int
) -> None:
    account = budget(tmp_path / "l.sqlite")
    payment = Payment.reserve(account, 0)
    assert payment is not None
    payment.settle(None, sent=sent, planned=CLIENTS, protocol="test", modulus=1 << 17)
    assert account.realised() == Realised(opened=Counter(), charged=charged)
    assert (account.ledger.spent > 0) is bool(charged)


def test_the_evidence_of_a_settlement_says_who_was_there(tmp_path: Path) -> None:
    from securefl.modular import RingVector
    from securefl.round import ClientId

    account = budget(tmp_path / "l.sqlite")
    payment = Payment.reserve(account, 0)
    assert payment is not None
    aggregate = AggregateSum(
        vector=RingVector.zeros(1, 1 << 17),
        survivors=tuple(ClientId(i) for i in range(9)),
        min_honest=8,
        transcript_digest=bytes(32),
    )
    payment.settle(aggregate, sent=9, planned=10, protocol="test", modulus=1 << 17)
    last = list(account.ledger.entries())[-1].evidence
    assert last is not None
    assert (last.planned, last.survivors, last.colluding_assumed) == (10, 9, 1)


def test_shares_of_colluders_never_count_and_nobody_honest_is_no_plan() -> None:
    assert RELEASE.event(9) == RELEASE.event(9, COLLUDING) != RELEASE.event(9, 0)
    for colluding in (FEWEST, FEWEST + 1, -1):
        with pytest.raises(ConfigurationError, match="without an honest share"):
            SharedRelease(
                mechanism=skellam,
                sample_rate=0.2,
                delta_slack=0.0,
                fewest=FEWEST,
                colluding=colluding,
            )


def test_what_another_process_charged_is_in_the_views(tmp_path: Path) -> None:
    first = budget(tmp_path / "ledger")
    first.settle(first.reserve(0), 9, evidence(9))
    assert first.realised() == Realised(opened=Counter({9: 1}), charged=0)
    second = budget(tmp_path / "ledger")
    second.settle(second.reserve(1), 8, evidence(8))
    second.reserve(2)
    assert first.realised() == Realised(opened=Counter({9: 1, 8: 1}), charged=1)
    found = views(first.realised(), RELEASE, DELTA)["server_and_colluders"]
    events = (RELEASE.event(9), RELEASE.event(8), RELEASE.dearest)
    assert found == pytest.approx(epsilon_of(accounting.Compose(events=events)))
    first.close()
    second.close()


@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_that_a_roll_back_lost_are_in_every_view(tmp_path: Path, rounds: int) -> None:
    """The ledger charges an acknowledged loss; no onlooker may be said to know less of it."""
    one = budget(tmp_path / "ledger")
    one.settle(one.reserve(0), 9, evidence(9))
    gone = accounting.Head(sequence=99, hash=bytes(32))
    one.ledger.acknowledge_loss(gone, event=RELEASE.dearest, rounds=rounds, reason="a back-up")
    realised = one.realised()
    assert realised.rounds == 1 + rounds
    whole = [RELEASE.event(9), *[RELEASE.dearest] * rounds]
    found = views(realised, RELEASE, DELTA)
    assert found["server_and_colluders"] == pytest.approx(
        epsilon_of(accounting.Compose(events=tuple(whole)))
    )
    assert found["aggregation_broken"] > found["server_and_colluders"] >= found["models"]
    one.close()


# -- views ---------------------------------------------------------------------------------------


def test_views_are_the_compositions_that_their_names_say() -> None:
    realised = Realised(opened=Counter({9: 30, 8: 5}), charged=2)
    found = views(realised, RELEASE, DELTA)
    assert tuple(found) == VIEWS

    def composed(colluding: int) -> float:
        rounds = (
            [RELEASE.event(9, colluding)] * 30
            + [RELEASE.event(8, colluding)] * 5
            + [RELEASE.event(FEWEST, colluding)] * 2
        )
        return epsilon_of(accounting.Compose(events=tuple(rounds)))

    assert found["models"] == found["server"] == pytest.approx(composed(0))
    assert found["server_and_colluders"] == pytest.approx(composed(COLLUDING))
    alone = [RELEASE.event(1, 0)] * 37
    assert found["aggregation_broken"] == pytest.approx(
        epsilon_of(accounting.Compose(events=tuple(alone)))
    )
    assert found["models"] < found["server_and_colluders"] < found["aggregation_broken"]


def test_nothing_was_learned_before_the_first_round() -> None:
    nothing = Realised(opened=Counter(), charged=0)
    assert views(nothing, RELEASE, DELTA) == dict.fromkeys(VIEWS, 0.0)


def test_own_share_alone_is_that_much_weaker_than_the_sum() -> None:
    """Unsampled, one release: a ninth of the variance is nine times the RDP of a Gaussian."""
    unsampled = SharedRelease(
        mechanism=skellam, sample_rate=1.0, delta_slack=0.0, fewest=FEWEST, colluding=0
    )

    def at_two(event: accounting.Event) -> float:
        accountant = accounting.RDPAccountant(adjacency="zero-out")
        accountant.compose(event)
        curve = accountant.curve()
        return curve.values[curve.orders.index(2.0)]

    ratio = at_two(unsampled.event(1, 0)) / at_two(unsampled.event(9, 0))
    assert math.isclose(ratio, 9.0, rel_tol=0.01)
