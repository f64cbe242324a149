"""What one client can say about itself, from its own ledger and, if it has one, the population's.

A client knows in which rounds it took part, so for itself it gets nothing from the secrecy of a
client sample: its own value composes what was done with its contributions, unamplified, against
its own declared budget (the filter of :mod:`accounting.filter` at the ledger's order). The
population's value, which may count on sampling, stands beside it with the head it was read at.

The statement is about this client only, and as true as its ledger; it sums nothing over clients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from accounting.accountant import Bound, RDPAccountant
from accounting.entries import Head, LedgerHeader, Randomness, Unit
from accounting.errors import InvalidParameter
from accounting.events import (
    BandedMF,
    Compose,
    Event,
    FixedSize,
    Group,
    Hierarchical,
    NoiseShares,
    Poisson,
    Repeat,
    Select,
)
from accounting.export import VerifiedLedger
from accounting.filter import failure_ticks, price

__all__ = ["ClientStatement", "PopulationValue", "client_statement", "without_client_sampling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationValue:
    """What the population's ledger says, for everybody in it.

    Attributes:
        header: its declaration.
        epsilon: of everything charged there, for a fixed plan.
        head: where its ledger stood.
        randomness: ``injected`` if it is marked as no claim.
    """

    header: LedgerHeader
    epsilon: Bound
    head: Head
    randomness: Randomness


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStatement:
    """What was done with one client's data, and what that can have told.

    Attributes:
        header: the declaration of the client's own ledger.
        participations: releases that were charged for good.
        pending: reservations that are still open; they are in all figures.
        epsilon: what the client's ledger charges, at its declared delta.
        unamplified: the same releases without any sampling of clients: the client's own value.
        within_budget: whether the client's own filter, at its declared order, has room for the
            unamplified releases. If not, only the population's promise covers this client.
        head: where the client's ledger stood.
        randomness: ``injected`` if it is marked as no claim.
        population: the population's value; None if no ledger of it was given.
    """

    header: LedgerHeader
    participations: int
    pending: int
    epsilon: Bound
    unamplified: Bound
    within_budget: bool
    head: Head
    randomness: Randomness
    population: PopulationValue | None = None


def client_statement(
    own: VerifiedLedger, population: VerifiedLedger | None = None
) -> ClientStatement:
    """Makes the statement from verified ledgers (:meth:`accounting.Ledger.verify`).

    Args:
        own: the client's ledger.
        population: the ledger of the population that the client is part of.

    Raises:
        InvalidParameter: if both are the same ledger.
    """
    if population is not None and population.entries[0].hash == own.entries[0].hash:
        raise InvalidParameter(
            f"{own.path} and {population.path} are the same ledger: the client's own and the "
            "population's are two"
        )
    unit, adjacency = own.header.unit, own.header.adjacency
    released = [entry.event for entry in own.charged if entry.event is not None]
    released += [ticket.event for ticket in own.open_tickets]
    events = [without_client_sampling(event, unit) for event in released]
    accountant = RDPAccountant(adjacency=adjacency)
    for event in events:
        accountant.compose(event)
    return ClientStatement(
        header=own.header,
        participations=len(own.charged),
        pending=len(own.open_tickets),
        epsilon=own.epsilon,
        unamplified=accountant.epsilon(own.header.delta),
        within_budget=_within(own.header, events),
        head=own.head,
        randomness=own.randomness,
        population=None if population is None else _value(population),
    )


def without_client_sampling(event: Event, unit: Unit) -> Event:
    """The event as it is for a client that knows it took part.

    Where the unit is a client or a user, samples of units are samples of clients and fall away;
    where it is a record, the client's own sample of its records stays.
    """
    if isinstance(event, Hierarchical):  # its unit is a record, its first coin a client's
        return Repeat(event=event.event, count=event.steps)
    if unit is not Unit.RECORD:
        if isinstance(event, Poisson | FixedSize):
            return without_client_sampling(event.event, unit)
        if isinstance(event, BandedMF):
            return replace(event, sample_rate=None)
    if isinstance(event, Compose):
        return replace(event, events=tuple(without_client_sampling(e, unit) for e in event.events))
    if isinstance(event, Repeat | NoiseShares | Group | Select):
        return replace(event, event=without_client_sampling(event.event, unit))
    return event


def _within(header: LedgerHeader, events: list[Event]) -> bool:
    left, reserve = header.budget, header.failure_budget
    for event in events:
        ticks = price(event, order=header.order, adjacency=header.adjacency)
        if ticks is None:
            return False
        left -= ticks
        reserve -= failure_ticks(event)
    return left >= 0 and reserve >= 0


def _value(ledger: VerifiedLedger) -> PopulationValue:
    return PopulationValue(
        header=ledger.header,
        epsilon=ledger.epsilon,
        head=ledger.head,
        randomness=ledger.randomness,
    )
