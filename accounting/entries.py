"""What the entries of a ledger are made of, as values: no file, no chain, no rules of order.

:class:`LedgerHeader` is the declaration, :class:`Evidence` what a settlement rests on,
:class:`Ticket` a reservation, :class:`LedgerEntry` one entry as it stands in the chain and
:class:`Balance` where the budget stands. :mod:`accounting.record` writes them as text and says
which entry may follow which; :mod:`accounting.ledger` keeps them in a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from accounting.accountant import checked_delta, checked_epsilon
from accounting.errors import InvalidParameter
from accounting.events import Adjacency, Event
from accounting.filter import (
    budget_ticks,
    check_order,
    checked_reserve,
    less_reserve,
    reserve_ticks,
    to_rdp,
)

__all__ = [
    "MAX_NAME",
    "MAX_NOTE",
    "Balance",
    "EntryKind",
    "Evidence",
    "Head",
    "LedgerEntry",
    "LedgerHeader",
    "NoteSubject",
    "Randomness",
    "Ticket",
    "Unit",
    "checked_text",
    "checked_whole",
    "member_of",
]

_HEX64 = re.compile(r"[0-9a-f]{64}")
_MAX_WHOLE = 1 << 62  # ticks are larger than 2^53; Python's JSON reads whole numbers exactly
_MAX_MODULUS = 1 << 8192
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
        delta_reserve: part of ``delta``, 0 <= reserve < delta, set aside for releases that are
            only (epsilon, delta)-private; the rest is what the Renyi budget is computed for. With
            the default 0 such releases are refused.

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
    delta_reserve: float = 0.0

    def __post_init__(self) -> None:
        checked_text(self.population, "population", most=MAX_NAME)
        _set(self, "unit", member_of(Unit, self.unit, "unit"))
        _set(self, "adjacency", Adjacency.of(self.adjacency))
        _set(self, "epsilon", checked_epsilon(self.epsilon))
        _set(self, "delta", checked_delta(self.delta))
        _set(self, "randomness", member_of(Randomness, self.randomness, "randomness"))
        if isinstance(self.order, bool) or not isinstance(self.order, int | float):
            raise InvalidParameter(f"order must be a number, found {self.order!r}")
        check_order(self.order)
        _set(self, "order", float(self.order))
        if not isinstance(self.plan, str) or not _HEX64.fullmatch(self.plan):
            raise InvalidParameter(f"plan must be 64 hex digits (a digest), found {self.plan!r}")
        _set(self, "delta_reserve", checked_reserve(self.delta_reserve, self.delta))
        _ = self.budget

    @property
    def budget(self) -> int:
        """B in ticks of 2^-40 RDP at the declared order."""
        return budget_ticks(self.epsilon, self.delta_for_rdp, self.order)

    @property
    def delta_for_rdp(self) -> float:
        """What ``delta_reserve`` leaves of delta for the conversion from Renyi divergence."""
        return less_reserve(self.delta, self.delta_reserve)

    @property
    def failure_budget(self) -> int:
        """The reserve of delta in ticks of 2^-64 probability."""
        return reserve_ticks(self.delta_reserve)


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
        modulus: the sum was taken modulo this number, 2..2^8192; None if nothing was reduced.
    """

    planned: int
    survivors: int
    colluding_assumed: int
    protocol: str
    transcript: str
    modulus: int | None = None

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
        if self.modulus is not None:
            _check_modulus(self.modulus)

    @classmethod
    def of(cls, value: Evidence | Mapping[str, Any]) -> Evidence:
        """The evidence in a mapping with exactly these keys; ``modulus`` may be left out.

        Raises:
            InvalidParameter: for other keys (such as client ids) or impossible values.
        """
        if isinstance(value, Evidence):
            return value
        names = {f.name for f in fields(cls)}
        if not isinstance(value, Mapping) or set(value) | {"modulus"} != names:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Where the budget stands, in ticks of 2^-40 RDP at the declared order.

    Attributes:
        budget: what the declaration allows in all.
        spent: charged for good; beyond ``budget`` only after an acknowledged loss.
        reserved: held by open reservations.
        failure_budget: the declared reserve of delta, in ticks of 2^-64 probability.
        failure_spent: charged to it for good.
        failure_reserved: of it held by open reservations.
    """

    budget: int
    spent: int
    reserved: int
    failure_budget: int = 0
    failure_spent: int = 0
    failure_reserved: int = 0

    @property
    def remaining(self) -> int:
        """What a next reservation may cost; negative only after an acknowledged loss."""
        return self.budget - self.spent - self.reserved

    @property
    def failure_remaining(self) -> int:
        """Probability of failure that a next reservation may have, in ticks of 2^-64."""
        return self.failure_budget - self.failure_spent - self.failure_reserved

    @property
    def budget_rdp(self) -> float:
        """The budget as RDP at the declared order."""
        return to_rdp(self.budget)

    @property
    def spent_rdp(self) -> float:
        """The spent part as RDP at the declared order."""
        return to_rdp(self.spent)

    @property
    def reserved_rdp(self) -> float:
        """The reserved part as RDP at the declared order."""
        return to_rdp(self.reserved)

    @property
    def remaining_rdp(self) -> float:
        """What is left as RDP at the declared order."""
        return to_rdp(self.remaining)


def _set(target: object, name: str, value: object) -> None:
    object.__setattr__(target, name, value)


def _check_modulus(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= _MAX_MODULUS:
        raise InvalidParameter(f"evidence.modulus must be an int in 2..2^8192, found {value!r}")


def member_of(cls: Any, value: object, where: str) -> Any:
    """The member of an enumeration that has this value.

    Raises:
        InvalidParameter: if there is none, naming ``where`` and the choices.
    """
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
