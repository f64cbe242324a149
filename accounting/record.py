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
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from typing import Any

from accounting.accountant import RDPAccountant, checked_delta, checked_epsilon
from accounting.errors import AccountingError, BrokenChain, InvalidParameter
from accounting.events import Adjacency, Event, Repeat, from_json, to_json
from accounting.filter import budget_ticks, floor_ticks

__all__ = [
    "MAX_NAME",
    "MAX_NOTE",
    "SCHEMA",
    "EntryKind",
    "Evidence",
    "Head",
    "LedgerEntry",
    "LedgerHeader",
    "NoteSubject",
    "Randomness",
    "Record",
    "Ticket",
    "Unit",
    "canonical",
    "chain_hash",
    "checked_text",
    "checked_whole",
]

SCHEMA = "accounting-ledger/1"
_GENESIS = bytes(32)
_HEX64 = re.compile(r"[0-9a-f]{64}")
_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_MAX_WHOLE = 1 << 62  # ticks are larger than 2^53; Python's JSON reads whole numbers exactly
MAX_NAME, MAX_NOTE = 200, 2000


class Unit(StrEnum):
    """Whose data a claim protects."""

    RECORD = "record"
    USER = "user"
    CLIENT = "client"


class Randomness(StrEnum):
    """Where the noise came from. Anything but the system's source voids the claim."""

    SYSTEM = "system"
    INJECTED = "injected"


class EntryKind(StrEnum):
    """What an entry records."""

    HEADER = "header"
    RESERVE = "reserve"
    SETTLE = "settle"
    ABORT = "abort"
    NOTE = "note"


class NoteSubject(StrEnum):
    """What a note is about."""

    COMMENT = "comment"
    INJECTED_RANDOMNESS = "injected-randomness"
    LOSS = "loss"


# --- values -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One entry of one chain: proof that everything up to it was seen.

    Attributes:
        sequence: number of the entry, 0 for the header.
        hash: 32 bytes.
    """

    sequence: int
    hash: bytes

    def __post_init__(self) -> None:
        checked_whole(self.sequence, "head sequence", low=0)
        if not isinstance(self.hash, bytes) or len(self.hash) != 32:
            raise InvalidParameter(f"a head's hash must be 32 bytes, found {self.hash!r}")

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash.hex()}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Reads the ``sequence:hexadecimal`` form that ``str`` writes.

        Raises:
            InvalidParameter: for any other text.
        """
        if not isinstance(text, str) or not re.fullmatch(r"(0|[1-9]\d{0,15}):[0-9a-f]{64}", text):
            raise InvalidParameter(f"a head reads 'sequence:64 hex digits', found {text!r}")
        sequence, digits = text.split(":")
        return cls(sequence=int(sequence), hash=bytes.fromhex(digits))


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerHeader:
    """The declaration a ledger opens with, fixed before the data are touched.

    Attributes:
        population: whose data, in words or an id; 1..200 characters.
        unit: what one unit of protection is.
        adjacency: the neighbour relation.
        epsilon: the promise, > 0.
        delta: the promise, 0 < delta < 1.
        order: the declared Renyi order a*, in [1.01, 65536]; best the calibrated plan's
            ``achieved.order``.
        plan: digest of the planned event, 64 hexadecimal digits.
        randomness: ``injected`` marks a run that is a test or a simulation and no claim.

    Raises:
        InvalidParameter: for impossible values, or an order that leaves no budget.
    """

    population: str
    unit: Unit
    adjacency: Adjacency
    epsilon: float
    delta: float
    order: float
    plan: str
    randomness: Randomness = Randomness.SYSTEM

    def __post_init__(self) -> None:
        checked_text(self.population, "population", most=MAX_NAME)
        _set(self, "unit", _member(Unit, self.unit, "unit"))
        _set(self, "adjacency", Adjacency.of(self.adjacency))
        _set(self, "epsilon", checked_epsilon(self.epsilon))
        _set(self, "delta", checked_delta(self.delta))
        _set(self, "randomness", _member(Randomness, self.randomness, "randomness"))
        if isinstance(self.order, bool) or not isinstance(self.order, int | float):
            raise InvalidParameter(f"order must be a number, found {self.order!r}")
        _set(self, "order", float(self.order))
        if not isinstance(self.plan, str) or not _HEX64.fullmatch(self.plan):
            raise InvalidParameter(f"plan must be 64 hex digits (a digest), found {self.plan!r}")
        _ = self.budget

    @property
    def budget(self) -> int:
        """B in ticks of 2^-40 RDP at the declared order."""
        return budget_ticks(self.epsilon, self.delta, self.order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What happened in the round that a settlement pays for. No client ids, ever.

    Attributes:
        planned: clients (or noise shares) planned, >= 1.
        survivors: clients in the sum, >= 1; may exceed ``planned`` where noise is sized for the
            fewest accepted.
        colluding_assumed: clients assumed to pool their views with the adversary, < survivors
            or equal where the unit is protected by its own noise only.
        protocol: name and version, 1..200 characters.
        transcript: SHA-256 of the round's transcript, 64 hexadecimal digits.
    """

    planned: int
    survivors: int
    colluding_assumed: int
    protocol: str
    transcript: str

    def __post_init__(self) -> None:
        checked_whole(self.planned, "evidence.planned", low=1)
        checked_whole(self.survivors, "evidence.survivors", low=1)
        checked_whole(self.colluding_assumed, "evidence.colluding_assumed", low=0)
        if self.colluding_assumed > self.survivors:
            raise InvalidParameter(
                f"evidence.colluding_assumed is {self.colluding_assumed}, but there were only "
                f"{self.survivors} survivors"
            )
        checked_text(self.protocol, "evidence.protocol", most=MAX_NAME)
        if not isinstance(self.transcript, str) or not _HEX64.fullmatch(self.transcript):
            raise InvalidParameter(
                f"evidence.transcript must be 64 hex digits (SHA-256), found {self.transcript!r}"
            )

    @classmethod
    def of(cls, value: Evidence | Mapping[str, Any]) -> Evidence:
        """The evidence in a mapping with exactly these five keys.

        Raises:
            InvalidParameter: for other keys (such as client ids) or impossible values.
        """
        if isinstance(value, Evidence):
            return value
        names = {f.name for f in fields(cls)}
        if not isinstance(value, Mapping) or set(value) != names:
            raise InvalidParameter(
                f"evidence must have exactly the keys {sorted(names)}, found {value!r}"
            )
        return cls(**value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A reservation: the right to one release, once, at most at this price.

    Attributes:
        key: the caller's name for the attempt, unique in the ledger.
        sequence: number of the reserving entry.
        round: training round.
        event: the event the price was computed for.
        ticks: the price.
    """

    key: str
    sequence: int
    round: int
    event: Event
    ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One entry as it stands in the chain; fields that its kind does not have are None.

    Attributes:
        sequence: 0, 1, 2, ...
        kind: what it records.
        utc: when, by the writer's clock; informative.
        hash: the chain's hash up to here, 32 bytes.
        ticks: reserved (reserve), charged (settle, abort, loss), or the budget (header).
        round: training round.
        key: the ticket's key.
        event: reserved or released event; for a loss the worst case charged.
        evidence: of a settlement; None where ``recover`` settled it.
        opened: of an abort, whether something may have been opened.
        subject: of a note.
        text: of a note.
        lost: of a loss, the head that this file should have had.
        header: of entry 0.
    """

    sequence: int
    kind: EntryKind
    utc: str
    hash: bytes
    ticks: int
    round: int | None = None
    key: str | None = None
    event: Event | None = None
    evidence: Evidence | None = None
    opened: bool | None = None
    subject: NoteSubject | None = None
    text: str | None = None
    lost: Head | None = None
    header: LedgerHeader | None = None


# --- text ---------------------------------------------------------------------------------------


def canonical(body: Mapping[str, object]) -> str:
    """Canonical JSON: sorted keys, no spaces, shortest floats, no NaN."""
    return json.dumps(
        body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def chain_hash(previous: bytes, text: str) -> bytes:
    """The hash of an entry with this canonical text after an entry with hash ``previous``."""
    return hashlib.sha256(SCHEMA.encode() + b"\0" + previous + text.encode()).digest()


def header_body(header: LedgerHeader, utc: str) -> dict[str, object]:
    """Entry 0."""
    return {
        "seq": 0,
        "kind": EntryKind.HEADER.value,
        "utc": utc,
        "schema": SCHEMA,
        "ticks": header.budget,
        **asdict(header),
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
        "evidence": None if evidence is None else asdict(evidence),
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
        except (AccountingError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BrokenChain(f"entry {seq} cannot be trusted: {error}", entry=seq) from error

    def _read(self, body: dict[str, Any], digest: bytes) -> LedgerEntry:
        kind = _member(EntryKind, body["kind"], "kind")
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
        names = [f.name for f in fields(LedgerHeader)]
        _keys(body, "schema", "ticks", *names)
        if body["schema"] != SCHEMA:
            raise InvalidParameter(f"schema must be {SCHEMA}, found {body['schema']!r}")
        header = LedgerHeader(**{name: body[name] for name in names})
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
        number = checked_whole(body["round"], "round", low=0)
        return {"round": number, "key": key, "event": event, "ticks": ticks}

    def _read_settle(self, body: dict[str, Any]) -> dict[str, Any]:
        _keys(body, "round", "key", "event", "ticks", "evidence")
        ticket = self._open_ticket(body)
        event, ticks = self._priced(body)
        if ticks > ticket.ticks:
            raise InvalidParameter(f"it settles {ticks} ticks, {ticket.ticks} were reserved")
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
        subject = _member(NoteSubject, body["subject"], "subject")
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
            case EntryKind.SETTLE | EntryKind.ABORT:
                closed = charges.open.pop(str(entry.key))
                charges.reserved -= closed.ticks
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


def _set(target: object, name: str, value: object) -> None:
    object.__setattr__(target, name, value)


def _member(cls: Any, value: object, where: str) -> Any:
    try:
        return cls(value)
    except ValueError:
        names = ", ".join(member.value for member in cls)
        raise InvalidParameter(f"{where} must be one of {names}, found {value!r}") from None


def checked_whole(value: object, where: str, *, low: int) -> int:
    """A whole number from ``low`` to 2^62, no bool.

    Raises:
        InvalidParameter: otherwise, naming ``where``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidParameter(f"{where} must be an int, found {type(value).__name__}")
    if not low <= value <= _MAX_WHOLE:
        raise InvalidParameter(f"{where} must be >= {low} and at most 2^62, found {value}")
    return value


def checked_text(value: object, where: str, *, most: int) -> str:
    """A printable text of 1..most characters.

    Raises:
        InvalidParameter: otherwise, naming ``where``.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= most or not value.isprintable():
        raise InvalidParameter(f"{where} must be 1..{most} printable characters, found {value!r}")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidParameter(f"opened must be true or false, found {value!r}")
    return value


def _keys(body: Mapping[str, object], *names: str) -> None:
    expected = {"seq", "kind", "utc", *names}
    if body.keys() != expected:
        raise InvalidParameter(f"its keys must be {sorted(expected)}, found {sorted(body)}")
