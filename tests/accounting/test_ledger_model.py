"""The ledger against a model of it: a dictionary and three numbers, driven at random."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from accounting import (
    Adjacency,
    ApproxDP,
    BudgetExceeded,
    Compose,
    Event,
    Gaussian,
    Ledger,
    LedgerHeader,
    NonPrivate,
    OverReservation,
    Poisson,
    PureDP,
    Repeat,
    Ticket,
    TicketError,
    Unit,
    digest,
)
from accounting.curves import rdp_at

ORDER, DELTA = 20.0, 1e-5
EVENTS: list[Event] = [
    Gaussian(noise_multiplier=20.0),
    Gaussian(noise_multiplier=10.0),
    Gaussian(noise_multiplier=6.0),
    Repeat(event=Gaussian(noise_multiplier=12.0), count=3),
    Repeat(event=Poisson(sample_rate=0.1, event=Gaussian(noise_multiplier=2.0)), count=4),
    Compose(events=(Gaussian(noise_multiplier=15.0), Gaussian(noise_multiplier=25.0))),
    NonPrivate(),
    ApproxDP(epsilon=0.02, delta=2.0**-19, adjacency=Adjacency.ZERO_OUT),
    Repeat(event=ApproxDP(epsilon=0.01, delta=2.0**-21, adjacency=Adjacency.ZERO_OUT), count=2),
]
RESERVE = 2.0**-18
EVIDENCE = {
    "planned": 5,
    "survivors": 4,
    "colluding_assumed": 0,
    "protocol": "model",
    "transcript": "00" * 32,
}


def cost(event: Event) -> float:
    """Outside of a failure, an (epsilon, delta)-private release is an (epsilon, 0)-private one."""
    if isinstance(event, Repeat):
        return event.count * cost(event.event)
    if isinstance(event, ApproxDP):
        event = PureDP(epsilon=event.epsilon, adjacency=event.adjacency)
    return rdp_at(event, ORDER, Adjacency.ZERO_OUT)


def failure(event: Event) -> float:
    """The probability of failure, in powers of two: the sums below are exact."""
    if isinstance(event, Repeat):
        return event.count * failure(event.event)
    return event.delta if isinstance(event, ApproxDP) else 0.0


class LedgerMachine(RuleBasedStateMachine):
    """Every rule does to the model what the documentation says it does to the file."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-model-"))
        header = LedgerHeader(
            population="model",
            unit=Unit.CLIENT,
            adjacency=Adjacency.ZERO_OUT,
            epsilon=1.5,
            delta=DELTA,
            order=ORDER,
            plan=digest(EVENTS[0]),
            delta_reserve=RESERVE,
        )
        self.ledgers = [Ledger.create(self.folder / "m.ledger", header)]
        self.open: dict[str, Ticket] = {}
        self.closed: list[Ticket] = []
        self.charged: list[Event] = []
        self.spent = 0
        self.failed = 0.0
        self.entries = 1
        self.names = 0

    @initialize()
    def a_second_user_opens_the_file(self) -> None:
        self.ledgers.append(Ledger.open(self.ledgers[0].path))

    def teardown(self) -> None:
        for ledger in self.ledgers:
            ledger.close()
        shutil.rmtree(self.folder)

    @property
    def reserved(self) -> int:
        return sum(ticket.ticks for ticket in self.open.values())

    @rule(event=st.sampled_from(EVENTS), user=st.integers(0, 1))
    def reserve(self, event: Event, user: int) -> None:
        ledger = self.ledgers[user]
        self.names += 1
        key, exact = f"k{self.names}", cost(event)
        left = ledger.budget - self.spent - self.reserved
        held = self.failed + sum(failure(ticket.event) for ticket in self.open.values())
        fits = (
            exact != float("inf")
            and Fraction(exact) * 2**40 * (1 + Fraction(1, 1 << 29)) <= left
            and held + failure(event) <= RESERVE
        )
        assert ledger.fits(event) == fits
        if not fits:
            with pytest.raises(BudgetExceeded):
                ledger.reserve(event, round=self.names, key=key)
            return
        ticket = ledger.reserve(event, round=self.names, key=key)
        assert 1 <= ticket.ticks / (exact * 2**40) <= 1 + 3e-9
        self.open[key] = ticket
        self.entries += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data(), user=st.integers(0, 1))
    def reserve_again_under_the_same_key(self, data: st.DataObject, user: int) -> None:
        ticket = data.draw(st.sampled_from(list(self.open.values())))
        again = self.ledgers[user].reserve(ticket.event, round=ticket.round, key=ticket.key)
        assert again == ticket

    @precondition(lambda self: self.open)
    @rule(data=st.data(), event=st.sampled_from(EVENTS), user=st.integers(0, 1))
    def settle(self, data: st.DataObject, event: Event, user: int) -> None:
        ticket = data.draw(st.sampled_from(list(self.open.values())))
        if cost(event) > cost(ticket.event) or failure(event) > failure(ticket.event):
            with pytest.raises(OverReservation):
                self.ledgers[user].settle(ticket, event, EVIDENCE)
            return
        before = self.ledgers[user].spent
        self.ledgers[user].settle(ticket, event, EVIDENCE)
        charge = self.ledgers[user].spent - before
        assert cost(event) * 2**40 <= charge <= ticket.ticks
        self._close(ticket, event, charge)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), opened=st.booleans(), user=st.integers(0, 1))
    def abort(self, data: st.DataObject, opened: bool, user: int) -> None:
        ticket = data.draw(st.sampled_from(list(self.open.values())))
        self.ledgers[user].abort(ticket, opened=opened)
        self._close(ticket, ticket.event if opened else None, ticket.ticks if opened else 0)

    @precondition(lambda self: self.closed)
    @rule(data=st.data(), user=st.integers(0, 1))
    def use_a_closed_ticket(self, data: st.DataObject, user: int) -> None:
        ticket, ledger = data.draw(st.sampled_from(self.closed)), self.ledgers[user]
        for call in (
            lambda: ledger.settle(ticket, ticket.event, EVIDENCE),
            lambda: ledger.abort(ticket, opened=False),
            lambda: ledger.reserve(ticket.event, round=ticket.round, key=ticket.key),
        ):
            with pytest.raises(TicketError):
                call()

    @rule(user=st.integers(0, 1))
    def note(self, user: int) -> None:
        self.ledgers[user].note("a remark")
        self.entries += 1

    @rule(user=st.integers(0, 1))
    def recover(self, user: int) -> None:
        settled = self.ledgers[user].recover()
        assert settled == tuple(self.open.values())
        for ticket in settled:
            self._close(ticket, ticket.event, ticket.ticks)

    @rule(user=st.integers(0, 1))
    def close_and_open_again(self, user: int) -> None:
        head = self.ledgers[user].head
        self.ledgers[user].close()
        self.ledgers[user] = Ledger.open(self.ledgers[user].path, expect_head=head)

    @rule(user=st.integers(0, 1))
    def export_and_verify(self, user: int) -> None:
        ledger = self.ledgers[user]
        path = self.folder / f"export-{self.entries}-{user}.jsonl"
        path.unlink(missing_ok=True)
        head = ledger.export(path)
        found = Ledger.verify(path, expect_head=head)
        assert (found.head, found.balance) == (ledger.head, ledger.balance)
        assert found.open_tickets == ledger.open_tickets
        # Equal events are added up in the order in which each reader met them: the last bit may
        # differ, the ticks above do not.
        theirs, ours = found.epsilon, ledger.epsilon()
        assert theirs.value == pytest.approx(ours.value, rel=1e-12, abs=0)
        assert replace(theirs, value=ours.value) == ours

    def _close(self, ticket: Ticket, event: Event | None, charge: int) -> None:
        del self.open[ticket.key]
        self.closed.append(ticket)
        self.spent += charge
        self.entries += 1
        if event is not None:
            self.charged.append(event)
            self.failed += failure(event)

    @invariant()
    def file_and_model_agree(self) -> None:
        for ledger in self.ledgers:
            balance = ledger.balance
            assert (balance.spent, balance.reserved) == (self.spent, self.reserved)
            assert balance.failure_spent == self.failed * 2**64
            assert balance.failure_remaining >= 0
            assert balance.remaining >= 0
            assert ledger.head.sequence == self.entries - 1
            assert set(ledger.open_tickets) == set(self.open.values())

    @invariant()
    def epsilon_covers_everything_charged_and_stays_within_the_declaration(self) -> None:
        ledger = self.ledgers[0]
        charged = [*self.charged, *(ticket.event for ticket in self.open.values())]
        order_cost = sum(cost(event) for event in charged)
        assert order_cost * 2**40 <= (self.spent + self.reserved) * (1 + 1e-12) + 1e-3
        found = ledger.epsilon().value
        assert found <= ledger.header.epsilon
        expected = ledger.accountant().epsilon(DELTA).value
        assert found <= expected * (1 + 1e-12)
        assert (found > 0) == (bool(charged) and expected > 0)


LedgerMachine.TestCase.settings = settings(
    settings.get_profile("default"), max_examples=40, stateful_step_count=30
)
TestLedgerModel = pytest.mark.filterwarnings("ignore::accounting.errors.OrderAtEdgeWarning")(
    LedgerMachine.TestCase
)


class LongLedgerMachine(LedgerMachine):
    """The same, for the full acceptance."""


LongLedgerMachine.TestCase.settings = settings(
    max_examples=400, stateful_step_count=60, deadline=None
)
TestLedgerModelLong = pytest.mark.long(
    pytest.mark.filterwarnings("ignore::accounting.errors.OrderAtEdgeWarning")(
        LongLedgerMachine.TestCase
    )
)
