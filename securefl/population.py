"""The budget of a population whose noise is the sum of its clients' shares: one ledger for all.

Where the noise of a release is a sum of shares, the release costs what its *honest survivors* make
it cost, so nobody can be charged before it is known who they are, and nobody may be asked to train
before it is known that the round fits. Hence two prices: :meth:`PopulationBudget.reserve` takes
that of the worst sum that clients will open, before a record is read;
:meth:`PopulationBudget.settle` replaces it by that of the sum that came about, which is never
dearer, and the difference returns to the budget (Feldman and Zrnic 2021, *Individual privacy
accounting via a Renyi filter*: charges may depend on what was released before).

Every client keeps a copy of this ledger and refuses a round that its own copy does not cover or
whose survivors are fewer than the reservation assumes. Who sees what in a round is the same for
all of them, so the copies are equal; a simulation keeps one file for all. The adversary is the
server together with ``colluding`` clients, who know their own shares of the noise.

This module knows no protocol and no model; the mechanism is a function from honest survivors to an
event.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import accounting
from securefl.errors import BelowThreshold, ConfigurationError
from securefl.round import AggregateSum
from securefl.training.dpsgd import ClientBudget, open_ledger

__all__ = [
    "ParticipationBudget",
    "Payment",
    "PopulationBudget",
    "Realised",
    "SharedRelease",
    "compose_counted",
]

MechanismEvent = Callable[[int, int], accounting.Event]
"""``f(survivors, colluding)``: the unsampled release of one sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRelease:
    """What one round releases, as a function of who is left.

    Attributes:
        mechanism: the codec's ``event``: the noise of survivors - colluding shares.
        sample_rate: q, chance of one unit's secret coin, in (0, 1].
        delta_slack: probability that a release is charged to delta for, besides the event.
        fewest: fewest survivors whose sum a client helps to open.
        colluding: A, survivors assumed to pool what they know with the server, < ``fewest``.
    """

    mechanism: MechanismEvent
    sample_rate: float
    delta_slack: float
    fewest: int
    colluding: int

    def __post_init__(self) -> None:
        if not 0 <= self.colluding < self.fewest:
            raise ConfigurationError(
                f"expected 0 <= colluding < fewest survivors, found {self.colluding} colluding of "
                f"{self.fewest}: without an honest share there is no noise"
            )

    def event(self, survivors: int, colluding: int | None = None) -> accounting.Event:
        """One round with these survivors; ``colluding`` of them know each other's shares.

        The sample is drawn by coins that nobody but the sampled knows, and every client brings its
        share whatever its coins say: so the noise does not follow a coin and the rate counts.
        """
        known = self.colluding if colluding is None else colluding
        sampled = accounting.Poisson(
            sample_rate=self.sample_rate, event=self.mechanism(survivors, known)
        )
        return accounting.Compose(events=(sampled, self._slack))

    def check_survivors(self, survivors: int) -> None:
        """What every client asks before it helps to open a sum.

        Raises:
            BelowThreshold: if fewer survivors bring noise than a reservation pays for.
        """
        if survivors < self.fewest:
            raise BelowThreshold(
                f"{survivors} survivors bring less noise than was reserved for ({self.fewest}, of "
                f"whom {self.colluding} are assumed to collude): the sum must stay closed; lower "
                "the planned dropouts or raise the noise",
                needed=self.fewest,
                had=survivors,
                phase="noise",
            )

    @property
    def dearest(self) -> accounting.Event:
        """The worst round whose sum clients still open: what is reserved."""
        return self.event(self.fewest)

    @property
    def _slack(self) -> accounting.Event:
        return accounting.ApproxDP(
            epsilon=0.0, delta=self.delta_slack, adjacency=accounting.Adjacency.ZERO_OUT
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Realised:
    """What a ledger says about its rounds, as far as costs need it.

    Attributes:
        opened: survivors -> how many rounds were opened with so many.
        charged: rounds charged at the reserved price: lost with inputs under way, or cut off.
        lost: worst cases of rounds whose entries a roll-back took away, as they were acknowledged.
    """

    opened: Counter[int]
    charged: int
    lost: tuple[accounting.Event, ...] = ()

    @property
    def rounds(self) -> int:
        """Rounds in which a client may have sent something."""
        return self.opened.total() + self.charged + sum(map(_rounds_of, self.lost))

    def event(self, release: SharedRelease, colluding: int) -> accounting.Event | None:
        """All charged rounds together against ``colluding`` clients; None if there are none.

        A round that was charged at its reserved price counts with the fewest survivors.
        """
        counted = Counter(self.opened)
        counted[release.fewest] += self.charged
        events: Counter[accounting.Event] = Counter(self.lost)
        for survivors, n in counted.items():
            events[release.event(survivors, colluding)] += n
        return compose_counted(events)


def _rounds_of(lost: accounting.Event) -> int:
    return lost.count if isinstance(lost, accounting.Repeat) else 1


def compose_counted(counted: dict[accounting.Event, int]) -> accounting.Event | None:
    """Each event as often as it says; None if that is never."""
    parts = tuple(
        accounting.Repeat(event=event, count=count) for event, count in counted.items() if count
    )
    return accounting.Compose(events=parts) if parts else None


class PopulationBudget:
    """The ledger of a population: reserve before anything is read, settle before it is decoded.

    After a reservation exactly one of :meth:`settle`, :meth:`lost` and :meth:`withheld` follows;
    until then the reserved price stays charged, also over a crash.

    Args:
        ledger: the population's ledger; it holds the limit.
        release: what a round costs.
    """

    def __init__(self, *, ledger: accounting.Ledger, release: SharedRelease) -> None:
        self.ledger = ledger
        self.release = release
        self._last = -1  # number of the last entry that the counts below have in them
        self._opened: Counter[int] = Counter()
        self._charged = 0
        self._lost: tuple[accounting.Event, ...] = ()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        header: accounting.LedgerHeader,
        release: SharedRelease,
        expect_head: accounting.Head | None = None,
    ) -> PopulationBudget:
        """The budget in the ledger at ``path``: created once, then only ever opened.

        Raises:
            ConfigurationError: if the file holds another declaration.
            accounting.LedgerRolledBack: if a head was kept and the ledger is gone or lacks it.
            accounting.BrokenChain: if the ledger contradicts itself.
        """
        return cls(
            ledger=open_ledger(path, header=header, expect_head=expect_head), release=release
        )

    def close(self) -> None:
        """Closes the ledger; open reservations stay charged."""
        self.ledger.close()

    def reserve(self, round_index: int) -> accounting.Ticket:
        """Pays for the worst sum of one attempt at a round.

        Raises:
            accounting.BudgetExceeded: if it does not fit; nothing was reserved or read.
        """
        # Never one ticket for two attempts: each draws new noise and is a release of its own.
        key = f"round {round_index} {os.urandom(16).hex()}"
        ticket = self.ledger.reserve(self.release.dearest, round=round_index, key=key)
        self._follows(ticket.sequence)
        return ticket

    def settle(
        self, ticket: accounting.Ticket, survivors: int, evidence: accounting.Evidence
    ) -> accounting.Head:
        """Charges what the survivors made of the round; the rest of the reservation returns.

        Raises:
            accounting.OverReservation: if that is dearer than reserved. The sum must not be
                decoded then; the reservation stays.
        """
        head = self.ledger.settle(ticket, self.release.event(survivors), evidence)
        if self._follows(head.sequence):
            self._opened[survivors] += 1
        return head

    def lost(self, ticket: accounting.Ticket) -> accounting.Head:
        """Masked inputs left their clients and no sum was opened: the reserved price stays.

        Masks hide those inputs; the ledger does not lean on that. What it charges is the worst sum
        that anybody could have opened.
        """
        head = self.ledger.abort(ticket, opened=True)
        if self._follows(head.sequence):
            self._charged += 1
        return head

    def withheld(self, ticket: accounting.Ticket) -> accounting.Head:
        """No client sent an input: the price returns."""
        head = self.ledger.abort(ticket, opened=False)
        self._follows(head.sequence)
        return head

    def epsilon(self) -> accounting.Bound:
        """What was spent and reserved so far, against the server and the assumed colluders."""
        return self.ledger.epsilon()

    def realised(self) -> Realised:
        """What was charged so far, by survivors; reservations that are open count as charged.

        Entries that others appended to the ledger count like our own.
        """
        head = self.ledger.head
        if head.sequence != self._last:
            self._last = head.sequence
            self._opened, self._charged, self._lost = _read_realised(self.ledger)
        return Realised(
            opened=Counter(self._opened),
            charged=self._charged + len(self.ledger.open_tickets),
            lost=self._lost,
        )

    def _follows(self, sequence: int) -> bool:
        """Whether our entry is the next one after those that were counted; else all are read."""
        follows = sequence == self._last + 1
        self._last = sequence if follows else -1
        return follows


class ParticipationBudget(ClientBudget):
    """One client's budget where the server draws the cohort: its own participations, in full.

    The server knows who takes part, so nothing is gained from the draw: each participation is
    reserved at the worst sum that clients open and settled at the survivors there were, less the
    assumed colluders. As :class:`~securefl.training.dpsgd.ClientBudget` otherwise.
    """

    def __init__(self, *, ledger: accounting.Ledger, client: int, release: SharedRelease) -> None:
        super().__init__(ledger=ledger, client=client, event=release.dearest)
        self.release = release

    def released(
        self,
        ticket: accounting.Ticket,
        evidence: accounting.Evidence | Mapping[str, Any],
    ) -> accounting.Head:
        """The sum is there: charged for the noise of its survivors."""
        seen = replace(accounting.Evidence.of(evidence), colluding_assumed=self.release.colluding)
        return self.ledger.settle(ticket, self.release.event(seen.survivors), seen)

    def realised(self) -> Realised:
        """This client's own rounds, read from its ledger."""
        opened, charged, lost = _read_realised(self.ledger)
        return Realised(opened=opened, charged=charged + len(self.ledger.open_tickets), lost=lost)


def _read_realised(
    ledger: accounting.Ledger,
) -> tuple[Counter[int], int, tuple[accounting.Event, ...]]:
    """Rounds by survivors, rounds ended at the reserved price, and acknowledged losses."""
    opened: Counter[int] = Counter()
    charged = 0
    lost: list[accounting.Event] = []
    for entry in ledger.entries():
        if entry.kind is accounting.EntryKind.SETTLE and entry.evidence is not None:
            opened[entry.evidence.survivors] += 1
        elif entry.kind is accounting.EntryKind.SETTLE or (
            entry.kind is accounting.EntryKind.ABORT and entry.opened
        ):
            charged += 1
        elif entry.subject is accounting.NoteSubject.LOSS and entry.event is not None:
            lost.append(entry.event)
    return opened, charged, tuple(lost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """What a population pays for one attempt at a round; nothing where no noise is shared.

    Attributes:
        population: who pays; None if nobody has to.
        ticket: the reservation.
    """

    population: PopulationBudget | None
    ticket: accounting.Ticket | None

    @classmethod
    def reserve(cls, population: PopulationBudget | None, round_index: int) -> Payment | None:
        """The reservation; None if the round does not fit the budget."""
        if population is None:
            return cls(population=None, ticket=None)
        try:
            return cls(population=population, ticket=population.reserve(round_index))
        except accounting.BudgetExceeded:
            return None

    def may_open(self, survivors: int) -> None:
        """See :meth:`SharedRelease.check_survivors`."""
        if self.population is not None:
            self.population.release.check_survivors(survivors)

    def withheld(self) -> None:
        """Nobody sent anything."""
        if self.population is not None and self.ticket is not None:
            self.population.withheld(self.ticket)

    def settle(
        self,
        aggregate: AggregateSum | None,
        *,
        sent: int,
        planned: int,
        protocol: str,
        modulus: int,
    ) -> None:
        """Ends the reservation by what happened.

        Args:
            aggregate: the sum; None if none was opened.
            sent: clients whose masked input left them.
            planned: clients that the round was planned with.
            protocol: for the evidence.
            modulus: for the evidence.
        """
        if self.population is None or self.ticket is None:
            return
        if aggregate is not None:
            survivors = len(aggregate.survivors)
            evidence = accounting.Evidence(
                planned=planned,
                survivors=survivors,
                colluding_assumed=self.population.release.colluding,
                protocol=protocol,
                transcript=aggregate.transcript_digest.hex(),
                modulus=modulus,
            )
            self.population.settle(self.ticket, survivors, evidence)
        elif sent:
            self.population.lost(self.ticket)
        else:
            self.population.withheld(self.ticket)
