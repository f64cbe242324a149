"""What a real ledger says about a deployment: what was spent, against what was planned.

The ledger is opened as anybody else opens it, so every hash, transition and price is checked again
from the events in it. Nothing that the file says about its own cost is believed. This module knows
no lint's code and no verdict; it states facts and the remarks that follow from them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from accounting.accountant import Bound
from accounting.audit.events import adjacency_of
from accounting.audit.wording import plain, up
from accounting.deployment import Deployment
from accounting.entries import EntryKind, Head, LedgerEntry, LedgerHeader, Randomness
from accounting.events import Compose, Event, Hierarchical, NoiseShares, Poisson, Repeat
from accounting.export import VerifiedLedger
from accounting.filter import less_reserve, spent_epsilon
from accounting.ledger import Ledger

__all__ = ["LedgerView", "Point", "read_ledger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What was spent after one charge.

    Attributes:
        round: training round of the charge; the one before where an entry has none.
        epsilon: what the declared order proves after it, at the ledger's delta.
    """

    round: int
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerView:
    """One ledger, read and verified.

    Attributes:
        path: as given.
        head: its last entry.
        header: its declaration.
        spent: epsilon of everything charged, at the ledger's delta.
        points: the course of it.
        settled: releases that were settled.
        aborted: reservations that ended without a settlement.
        open: reservations that are still open; they stay charged.
        exhausted_at: the round after which a mean charge no longer fits; None if none was made.
        overspent: why the budget or the promise is exceeded; empty if it is not.
        other_adjacency: that the ledger's neighbour relation is not the file's; empty if it is.
        other_unit: that the ledger's unit of protection is not the file's; empty if it is.
        weak_noise: settlements that claim more honest noise than their evidence has.
        injected: whether the noise came from an injected generator: a test, and no claim.
        remarks: differences between the ledger and the file.
    """

    path: str
    head: Head
    header: LedgerHeader
    spent: Bound
    points: tuple[Point, ...]
    settled: int
    aborted: int
    open: int
    exhausted_at: int | None
    overspent: str
    other_adjacency: str
    other_unit: str
    weak_noise: tuple[str, ...]
    injected: bool
    remarks: tuple[str, ...]


def read_ledger(
    path: str | Path, deployment: Deployment, *, expect_head: Head | None = None
) -> LedgerView:
    """Verifies a ledger, the file itself or an export of it, and compares it with the file.

    Raises:
        LedgerUnavailable: if it is no ledger or cannot be opened.
        BrokenChain: if it contradicts itself.
        LedgerRolledBack: if ``expect_head`` is not in it.
    """
    ledger = Ledger.verify(path, expect_head)
    view = LedgerView(
        path=str(path),
        head=ledger.head,
        header=ledger.header,
        spent=ledger.epsilon,
        points=_course(ledger.entries, ledger.header),
        settled=sum(entry.kind is EntryKind.SETTLE for entry in ledger.entries),
        aborted=sum(entry.kind is EntryKind.ABORT for entry in ledger.entries),
        open=len(ledger.open_tickets),
        exhausted_at=_exhausted_at(ledger.entries, ledger.balance.budget),
        overspent=_overspent(deployment, ledger),
        other_adjacency=_other_adjacency(deployment, ledger.header),
        other_unit=_other_unit(deployment, ledger.header),
        weak_noise=tuple(_weak_noise(ledger.entries)),
        injected=ledger.randomness is Randomness.INJECTED,
        remarks=(),
    )
    return _with_remarks(view, deployment)


def _charges(entries: tuple[LedgerEntry, ...]) -> list[tuple[int, int]]:
    """(round, ticks) of everything charged for good, in the order of the chain."""
    last, found = 0, []
    for entry in entries:
        if entry.kind in {EntryKind.SETTLE, EntryKind.ABORT} or entry.lost is not None:
            last = entry.round if entry.round is not None else last
            found.append((last, entry.ticks))
    return found


def _course(entries: tuple[LedgerEntry, ...], header: LedgerHeader) -> tuple[Point, ...]:
    total, found = 0, []
    for number, ticks in _charges(entries):
        total += ticks
        found.append(
            Point(
                round=number,
                epsilon=spent_epsilon(total, delta=header.delta, order=header.order),
            )
        )
    return tuple(found)


def _exhausted_at(entries: tuple[LedgerEntry, ...], budget: int) -> int | None:
    """Rounds in which charges like the mean one so far use the budget up."""
    charges = [ticks for _, ticks in _charges(entries) if ticks]
    return budget * len(charges) // sum(charges) if charges else None


def _overspent(deployment: Deployment, ledger: VerifiedLedger) -> str:
    guarantee, header = deployment.guarantee, ledger.header
    if ledger.overspent:
        return "more was charged than the ledger's budget allows (a loss was acknowledged)"
    if _other_adjacency(deployment, header) or _other_unit(deployment, header):
        return ""  # its epsilon is another promise's
    if header.delta > guarantee.delta:
        return (
            f"the ledger's budget is for delta {header.delta:g}, the file promises "
            f"{guarantee.delta:g}: nothing it admits keeps that promise"
        )
    spent = _spent_of_promise(deployment, ledger)
    if spent > guarantee.epsilon:
        return (
            f"epsilon {up(spent)} is spent at delta {guarantee.delta:g}, "
            f"{plain(guarantee.epsilon)} is promised"
        )
    return ""


def _spent_of_promise(deployment: Deployment, ledger: VerifiedLedger) -> float:
    """Epsilon of everything charged at the file's delta, which is no smaller than the ledger's.

    A plan that adapts has no other order than the declared one.
    """
    header, balance, delta = ledger.header, ledger.balance, deployment.guarantee.delta
    taken = balance.spent + balance.reserved
    left = less_reserve(delta, header.delta_reserve)
    declared = spent_epsilon(taken, delta=left, order=header.order)
    if taken <= balance.budget:
        declared = min(declared, header.epsilon)  # that is what the budget means
    if deployment.guarantee.plan == "adaptive":
        return declared
    return min(declared, ledger.record.accountant().epsilon(delta).value)


def _other_adjacency(deployment: Deployment, header: LedgerHeader) -> str:
    declared = deployment.guarantee.adjacency
    if declared is None or header.adjacency is adjacency_of(deployment):
        return ""
    return (
        f"the ledger is under {header.adjacency} adjacency, the file under {declared}: their "
        "numbers cannot be compared"
    )


def _other_unit(deployment: Deployment, header: LedgerHeader) -> str:
    unit = deployment.population.unit
    if header.unit.value == unit:
        return ""
    return f"the ledger protects one {header.unit.value}, the file one {unit}"


def _weak_noise(entries: tuple[LedgerEntry, ...]) -> list[str]:
    """Settlements whose event claims more honest shares than the evidence counted."""
    found = []
    for entry in entries:
        evidence = entry.evidence
        if entry.kind is not EntryKind.SETTLE or evidence is None or entry.event is None:
            continue
        honest = evidence.survivors - evidence.colluding_assumed
        found += [
            f"entry {entry.sequence} settles {shares.survivors - shares.colluding} honest shares, "
            f"its evidence has {honest}"
            for shares in _shares(entry.event)
            if shares.survivors - shares.colluding > honest
        ]
    return found


def _shares(event: Event) -> list[NoiseShares]:
    if isinstance(event, NoiseShares):
        return [event]
    if isinstance(event, Compose):
        return [one for part in event.events for one in _shares(part)]
    if isinstance(event, Repeat | Poisson | Hierarchical):
        return _shares(event.event)
    return []


def _with_remarks(view: LedgerView, deployment: Deployment) -> LedgerView:
    header, guarantee = view.header, deployment.guarantee
    planned = sum(phase.rounds for phase in deployment.phase)
    remarks = []
    remarks += [text for text in (view.other_adjacency, view.other_unit) if text]
    if header.epsilon > guarantee.epsilon:
        remarks.append(
            f"the ledger's budget is epsilon {plain(header.epsilon)}, the file promises "
            f"{plain(guarantee.epsilon)}: the ledger would admit more than is promised"
        )
    if view.settled > planned:
        remarks.append(f"{view.settled} releases were settled, {planned} rounds are planned")
    if view.open:
        remarks.append(f"{view.open} reservations are still open; they stay charged")
    return replace(view, remarks=tuple(remarks))
