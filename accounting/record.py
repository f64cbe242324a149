"""The ledger's entries, their hash chain and the rules by which one may follow another.

Pure logic on text: no file, no clock. :class:`Record` is the state after a prefix of the chain; it
checks an entry completely before it changes, whether the entry was just written here, was read
from a file, or comes from an export. What is stored is canonical JSON; the hash of an entry is
SHA-256("accounting-ledger/1\\0" || previous hash || canonical body), the first previous hash is 32
zero bytes.

    reserve --> settle          the release happened, at most at the reserved price
            \\-> abort           nothing was opened (refunded), or it may have been (kept)
    note                        a remark; a loss after a roll-back is charged here

The chain shows tampering to those who know a later hash (:class:`Head`): who can write the file can
also rewrite all of it, so heads belong into checkpoints, reports and other people's hands.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

from accounting.accountant import Bound, RDPAccountant
from accounting.entries import (
    MAX_NAME,
    MAX_NOTE,
    Balance,
    EntryKind,
    Evidence,
    Head,
    LedgerEntry,
    LedgerHeader,
    NoteSubject,
    Randomness,
    Ticket,
    checked_text,
    checked_whole,
    member_of,
)
from accounting.errors import AccountingError, BrokenChain, InvalidParameter
from accounting.events import Event, Repeat, from_json, to_json
from accounting.filter import failure_ticks, floor_ticks, spent_epsilon

__all__ = ["SCHEMA", "Record", "canonical", "chain_hash"]

SCHEMA = "accounting-ledger/1"
_GENESIS = bytes(32)
_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


# --- text ---------------------------------------------------------------------------------------


_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical(body: Mapping[str, object]) -> str:
    """Canonical JSON: sorted keys, no spaces, shortest floats, no NaN."""
    return _CANONICAL.encode(body)


def chain_hash(previous: bytes, text: str) -> bytes:
    """The hash of an entry with this canonical text after an entry with hash ``previous``."""
    return hashlib.sha256(SCHEMA.encode() + b"\0" + previous + text.encode()).digest()


def _stated(value: LedgerHeader | Evidence) -> dict[str, object]:
    """The fields, without those that came later and hold their default: old ledgers stay valid."""
    later = {"delta_reserve": 0.0, "modulus": None}
    body = asdict(value)
    return {name: x for name, x in body.items() if name not in later or x != later[name]}


def header_body(header: LedgerHeader, utc: str) -> dict[str, object]:
    """Entry 0."""
    return {
        "seq": 0,
        "kind": EntryKind.HEADER.value,
        "utc": utc,
        "schema": SCHEMA,
        "ticks": header.budget,
        **_stated(header),
    }


def reserve_body(seq: int, utc: str, ticket: Ticket) -> dict[str, object]:
    """A reservation."""
    return {
        "seq": seq,
        "kind": EntryKind.RESERVE.value,
        "utc": utc,
        "round": ticket.round,
        "key": ticket.key,
        "event": to_json(ticket.event),
        "ticks": ticket.ticks,
    }


def settle_body(
    seq: int, utc: str, ticket: Ticket, event: Event, ticks: int, evidence: Evidence | None
) -> dict[str, object]:
    """A settlement; without evidence where a crash left only the reservation."""
    return {
        "seq": seq,
        "kind": EntryKind.SETTLE.value,
        "utc": utc,
        "round": ticket.round,
        "key": ticket.key,
        "event": to_json(event),
        "ticks": ticks,
        "evidence": None if evidence is None else _stated(evidence),
    }


def abort_body(seq: int, utc: str, ticket: Ticket, *, opened: bool) -> dict[str, object]:
    """An abort; charged in full if something may have been opened."""
    return {
        "seq": seq,
        "kind": EntryKind.ABORT.value,
        "utc": utc,
        "round": ticket.round,
        "key": ticket.key,
        "opened": opened,
        "ticks": ticket.ticks if opened else 0,
    }


def note_body(seq: int, utc: str, subject: NoteSubject, text: str) -> dict[str, object]:
    """A remark without cost."""
    return {
        "seq": seq,
        "kind": EntryKind.NOTE.value,
        "utc": utc,
        "subject": subject.value,
        "text": text,
    }


def loss_body(
    seq: int, utc: str, text: str, *, lost: Head, event: Event, ticks: int
) -> dict[str, object]:
    """A loss after a roll-back, charged even beyond the budget: it has happened."""
    return {
        **note_body(seq, utc, NoteSubject.LOSS, text),
        "lost": str(lost),
        "event": to_json(event),
        "ticks": ticks,
    }


# --- the state ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Charges:
    """Sums over the chain so far."""

    spent: int = 0
    reserved: int = 0
    failure_spent: int = 0
    failure_reserved: int = 0
    open: dict[str, Ticket] = field(default_factory=dict)
    closed: dict[str, tuple[EntryKind, int]] = field(default_factory=dict)
    lost: set[Head] = field(default_factory=set)


class Record:
    """The state after a prefix of a chain.

    ``check`` reads one more entry and raises unless every rule holds; ``admit`` then takes it in.
    Two steps, so that a writer can check, store durably, and only then believe.
    """

    def __init__(self) -> None:
        self.head: Head | None = None
        self._header: LedgerHeader | None = None
        self._charges = _Charges()
        self._settled: RDPAccountant | None = None
        self.budget = 0
        self.randomness = Randomness.SYSTEM

    @property
    def header(self) -> LedgerHeader:
        """The declaration of entry 0."""
        if self._header is None:
            raise BrokenChain("the chain has no header", entry=0)
        return self._header

    @property
    def settled(self) -> RDPAccountant:
        """Everything charged for good, composed. Not to be changed by the reader."""
        if self._settled is None:
            raise BrokenChain("the chain has no header", entry=0)
        return self._settled

    @property
    def spent(self) -> int:
        """Ticks charged for good."""
        return self._charges.spent

    @property
    def reserved(self) -> int:
        """Ticks of open reservations."""
        return self._charges.reserved

    @property
    def balance(self) -> Balance:
        """Where the budget stands."""
        charges = self._charges
        return Balance(
            budget=self.budget,
            spent=charges.spent,
            reserved=charges.reserved,
            failure_budget=self.header.failure_budget,
            failure_spent=charges.failure_spent,
            failure_reserved=charges.failure_reserved,
        )

    def accountant(self) -> RDPAccountant:
        """Everything charged, composed anew: settled events and open reservations."""
        view = RDPAccountant(adjacency=self.header.adjacency) + self.settled
        for ticket in self.open.values():
            view.compose(ticket.event)
        return view

    def epsilon(self) -> Bound:
        """Epsilon of everything charged so far, at the declared delta; see ``Ledger.epsilon``."""
        header, balance = self.header, self.balance
        pending = [ticket.event for ticket in self.open.values()]
        free = self.settled.epsilon_if(pending, header.delta)
        taken = balance.spent + balance.reserved
        declared = spent_epsilon(taken, delta=header.delta_for_rdp, order=header.order)
        if balance.failure_remaining < 0:
            return free  # after a loss: the reserve of delta does not cover what happened
        if taken <= balance.budget:
            declared = min(declared, header.epsilon)  # that is what the budget means
        if free.value <= declared:
            return free
        return replace(free, value=declared, order=header.order)

    @property
    def open(self) -> Mapping[str, Ticket]:
        """Open reservations by key."""
        return self._charges.open

    @property
    def closed(self) -> Mapping[str, tuple[EntryKind, int]]:
        """How each finished ticket ended and the ticks it was charged, by key."""
        return self._charges.closed

    @property
    def lost(self) -> frozenset[Head]:
        """Heads whose loss was acknowledged."""
        return frozenset(self._charges.lost)

    def next_sequence(self) -> int:
        """The number the next entry must have."""
        return 0 if self.head is None else self.head.sequence + 1

    def previous_hash(self) -> bytes:
        """The hash the next entry must build on."""
        return _GENESIS if self.head is None else self.head.hash

    def check(self, text: object, digest: object) -> LedgerEntry:
        """Reads the entry that follows; changes nothing.

        Raises:
            BrokenChain: naming the entry, if its text is not canonical, its hash or number is
                wrong, its transition is not legal, or its price is too low or beyond the budget.
        """
        seq = self.next_sequence()
        try:
            if not isinstance(text, str):
                raise InvalidParameter("its text is not text")
            expected = chain_hash(self.previous_hash(), text)
            if expected != digest:
                raise InvalidParameter("its hash does not follow from the entry before it")
            body = json.loads(text)
            if not isinstance(body, dict) or canonical(body) != text:
                raise InvalidParameter("its text is not canonical JSON")
            if body.get("seq") != seq or isinstance(body["seq"], bool):
                raise InvalidParameter(f"its number is {body.get('seq')!r}")
            if not _UTC.fullmatch(str(body.get("utc"))):
                raise InvalidParameter(f"its time is {body.get('utc')!r}")
            return self._read(body, expected)
        except BrokenChain:
            raise
        except (
            AccountingError,
            ArithmeticError,
            ValueError,
            KeyError,
            TypeError,
            RecursionError,
        ) as error:
            raise BrokenChain(f"entry {seq} cannot be trusted: {error}", entry=seq) from error

    def _read(self, body: dict[str, Any], digest: bytes) -> LedgerEntry:
        kind = member_of(EntryKind, body["kind"], "kind")
        if (kind is EntryKind.HEADER) != (self.head is None):
            raise InvalidParameter(f"a {kind} entry cannot stand here")
        reader = {
            EntryKind.HEADER: self._read_header,
            EntryKind.RESERVE: self._read_reserve,
            EntryKind.SETTLE: self._read_settle,
            EntryKind.ABORT: self._read_abort,
            EntryKind.NOTE: self._read_note,
        }[kind]
        common = {"sequence": body["seq"], "kind": kind, "utc": body["utc"], "hash": digest}
        return LedgerEntry(**common, **reader(body))

    def _read_header(self, body: dict[str, Any]) -> dict[str, Any]:
        own = {"seq", "kind", "utc", "schema", "ticks"}
        if body["schema"] != SCHEMA:
            raise InvalidParameter(f"schema must be {SCHEMA}, found {body['schema']!r}")
        header = LedgerHeader(**{name: x for name, x in body.items() if name not in own})
        _keys(body, "schema", "ticks", *_stated(header))
        # A tick more or less may come from another library's logarithm; never more than that.
        if abs(checked_whole(body["ticks"], "ticks", low=1) - header.budget) > 1:
            raise InvalidParameter(
                f"the budget must be {header.budget} ticks, found {body['ticks']}"
            )
        return {"ticks": body["ticks"], "header": header}

    def _read_reserve(self, body: dict[str, Any]) -> dict[str, Any]:
        _keys(body, "round", "key", "event", "ticks")
        key = checked_text(body["key"], "key", most=MAX_NAME)
        if key in self._charges.open or key in self._charges.closed:
            raise InvalidParameter(f"key {key!r} is reserved a second time")
        event, ticks = self._priced(body)
        taken = self.spent + self.reserved
        if taken + ticks > self.budget:
            raise InvalidParameter(f"it passes the budget: {taken} + {ticks} > {self.budget} ticks")
        if failure_ticks(event) > self.balance.failure_remaining:
            raise InvalidParameter(f"{event} passes the reserve of delta")
        number = checked_whole(body["round"], "round", low=0)
        return {"round": number, "key": key, "event": event, "ticks": ticks}

    def _read_settle(self, body: dict[str, Any]) -> dict[str, Any]:
        _keys(body, "round", "key", "event", "ticks", "evidence")
        ticket = self._open_ticket(body)
        event, ticks = self._priced(body)
        if ticks > ticket.ticks:
            raise InvalidParameter(f"it settles {ticks} ticks, {ticket.ticks} were reserved")
        if failure_ticks(event) > failure_ticks(ticket.event):
            raise InvalidParameter("it settles a larger probability of failure than was reserved")
        raw = body["evidence"]
        evidence = None if raw is None else Evidence.of(raw)
        return {
            "round": ticket.round,
            "key": ticket.key,
            "event": event,
            "ticks": ticks,
            "evidence": evidence,
        }

    def _read_abort(self, body: dict[str, Any]) -> dict[str, Any]:
        _keys(body, "round", "key", "opened", "ticks")
        ticket = self._open_ticket(body)
        opened = _truth(body["opened"])
        if checked_whole(body["ticks"], "ticks", low=0) != (ticket.ticks if opened else 0):
            raise InvalidParameter(f"it charges {body['ticks']} of {ticket.ticks} ticks")
        return {
            "round": ticket.round,
            "key": ticket.key,
            "event": ticket.event if opened else None,
            "opened": opened,
            "ticks": body["ticks"],
        }

    def _read_note(self, body: dict[str, Any]) -> dict[str, Any]:
        subject = member_of(NoteSubject, body["subject"], "subject")
        text = checked_text(body["text"], "text", most=MAX_NOTE)
        if subject is not NoteSubject.LOSS:
            _keys(body, "subject", "text")
            return {"subject": subject, "text": text, "ticks": 0}
        _keys(body, "subject", "text", "lost", "event", "ticks")
        event, ticks = self._priced(body)
        return {
            "subject": subject,
            "text": text,
            "lost": Head.parse(body["lost"]),
            "event": event,
            "ticks": ticks,
        }

    def _open_ticket(self, body: dict[str, Any]) -> Ticket:
        ticket = self._charges.open.get(body["key"])
        if ticket is None or ticket.round != body["round"]:
            raise InvalidParameter(f"it closes {body['key']!r}, which is not open")
        return ticket

    def _priced(self, body: dict[str, Any]) -> tuple[Event, int]:
        event = _event_of(canonical(body["event"]))
        ticks = checked_whole(body["ticks"], "ticks", low=1)
        least = floor_ticks(event, order=self.header.order, adjacency=self.header.adjacency)
        if least is None or ticks < least:
            raise InvalidParameter(f"it charges {ticks} ticks for an event that costs {least}")
        return event, ticks

    def admit(self, entry: LedgerEntry) -> None:
        """Takes in an entry that ``check`` returned."""
        charges = self._charges
        match entry.kind:
            case EntryKind.HEADER:
                self._header = entry.header
                self.budget = entry.ticks
                self._settled = RDPAccountant(adjacency=self.header.adjacency)
                self.randomness = self.header.randomness
            case EntryKind.RESERVE:
                ticket = _ticket_of(entry)
                charges.open[ticket.key] = ticket
                charges.reserved += ticket.ticks
                charges.failure_reserved += failure_ticks(ticket.event)
            case EntryKind.SETTLE | EntryKind.ABORT:
                closed = charges.open.pop(str(entry.key))
                charges.reserved -= closed.ticks
                charges.failure_reserved -= failure_ticks(closed.event)
                charges.closed[closed.key] = (entry.kind, entry.ticks)
                self._charge(entry)
            case EntryKind.NOTE:
                self._charge(entry)
                if entry.lost is not None:
                    charges.lost.add(entry.lost)
                if entry.subject is NoteSubject.INJECTED_RANDOMNESS:
                    self.randomness = Randomness.INJECTED
        self.head = Head(sequence=entry.sequence, hash=entry.hash)

    def _charge(self, entry: LedgerEntry) -> None:
        self._charges.spent += entry.ticks
        if entry.ticks and entry.event is not None:
            self._charges.failure_spent += failure_ticks(entry.event)
            self.settled.compose(entry.event)


def _ticket_of(entry: LedgerEntry) -> Ticket:
    if entry.key is None or entry.round is None or entry.event is None:
        raise BrokenChain(f"entry {entry.sequence} is no reservation", entry=entry.sequence)
    return Ticket(
        key=entry.key,
        sequence=entry.sequence,
        round=entry.round,
        event=entry.event,
        ticks=entry.ticks,
    )


def loss_event(event: Event, rounds: int) -> Event:
    """The worst case of several lost rounds as one event."""
    return event if rounds == 1 else Repeat(event=event, count=rounds)


@lru_cache(maxsize=4096)
def _event_of(text: str) -> Event:
    return from_json(json.loads(text))


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidParameter(f"opened must be true or false, found {value!r}")
    return value


def _keys(body: Mapping[str, object], *names: str) -> None:
    expected = {"seq", "kind", "utc", *names}
    if body.keys() != expected:
        raise InvalidParameter(f"its keys must be {sorted(expected)}, found {sorted(body)}")
