"""A ledger as text: JSON Lines that anybody can check with nothing but the file.

    {"body":<canonical entry>,"hash":"<64 hex digits>"}      one line per entry, from number 0 on
    {"entries":<how many>,"head":"<sequence>:<hash>"}        the last line

A reader accepts exactly these bytes: the chain vouches for each body, the last line for the end.
So no changed, missing, doubled or moved byte goes unnoticed. Somebody who writes a whole new chain
is noticed only by those who know a :class:`~accounting.Head`. This module knows no SQLite.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from accounting.accountant import Bound
from accounting.entries import (
    Balance,
    EntryKind,
    Head,
    LedgerEntry,
    LedgerHeader,
    Randomness,
    Ticket,
)
from accounting.errors import BrokenChain, LedgerRolledBack, LedgerUnavailable
from accounting.ledger_file import sync_folder
from accounting.record import Record

__all__ = [
    "VerifiedLedger",
    "last_line_of",
    "line_of",
    "read_export",
    "rolled_back",
    "verified",
    "write_export",
]

_OPEN, _MIDDLE, _CLOSE, _LAST = b'{"body":', b',"hash":"', b'"}\n', b'{"entries":'
_TAIL = len(_MIDDLE) + 64 + len(_CLOSE)
_HEX64 = re.compile(rb"[0-9a-f]{64}")
_MAX_LINE = 1 << 24  # an event has at most 10,000 nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedLedger:
    """What a ledger says, after all of it was checked.

    Attributes:
        path: the file.
        entries: all of them, the header first.
        record: the state after the last of them; not to be changed.
        torn: what is missing from an export that was cut off; None if it is whole.
    """

    path: Path
    entries: tuple[LedgerEntry, ...]
    record: Record = field(repr=False, compare=False)
    torn: str | None = None

    @property
    def header(self) -> LedgerHeader:
        """The declaration."""
        return self.record.header

    @property
    def head(self) -> Head:
        """The last entry; keep it somewhere else."""
        return Head(sequence=self.entries[-1].sequence, hash=self.entries[-1].hash)

    @property
    def balance(self) -> Balance:
        """Where the budget stands."""
        return self.record.balance

    @property
    def epsilon(self) -> Bound:
        """Of everything charged so far at the declared delta, for a fixed plan.

        Computed when asked for: many different events take longer to add up than to check.
        """
        return self.record.epsilon()

    @property
    def randomness(self) -> Randomness:
        """``injected`` if the header or any note says so: then no claim may be made."""
        return self.record.randomness

    @property
    def open_tickets(self) -> tuple[Ticket, ...]:
        """Reservations that were neither settled nor aborted, oldest first."""
        return tuple(self.record.open.values())

    @property
    def lost(self) -> frozenset[Head]:
        """Heads whose loss was acknowledged."""
        return self.record.lost

    @property
    def charged(self) -> tuple[LedgerEntry, ...]:
        """The entries that were charged for good: settlements, opened aborts and losses."""
        ends = (EntryKind.SETTLE, EntryKind.ABORT, EntryKind.NOTE)
        return tuple(e for e in self.entries if e.kind in ends and e.ticks)

    @property
    def overspent(self) -> bool:
        """Whether more was charged than declared; only an acknowledged loss can do that."""
        return self.balance.remaining < 0 or self.balance.failure_remaining < 0


def line_of(text: str, digest: bytes) -> str:
    """The line of one entry, without a line end."""
    return f'{{"body":{text},"hash":"{digest.hex()}"}}'


def last_line_of(record: Record) -> str:
    """The line that ends an export of this chain, without a line end."""
    return f'{{"entries":{record.next_sequence()},"head":"{record.head}"}}'


def write_export(path: Path, lines: Iterable[str]) -> None:
    """Writes an export durably, under its name only once it is whole; never over another file.

    Raises:
        LedgerUnavailable: if the path exists or cannot be written.
    """
    making = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with making.open("x", encoding="utf-8", newline="\n") as file:
            for line in lines:
                file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(making, path)  # unlike a rename, it never replaces what is there
    except FileExistsError:
        raise LedgerUnavailable(f"{path} exists: an export never replaces a file") from None
    except OSError as error:
        raise LedgerUnavailable(f"cannot write {path}: {error}") from error
    finally:
        making.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_export(path: Path, expect_head: Head | None, *, allow_torn: bool) -> VerifiedLedger:
    """Checks an export, see :meth:`accounting.Ledger.verify`."""
    try:
        with path.open("rb") as file:
            record, entries, torn = _read(path, file)
    except OSError as error:
        raise LedgerUnavailable(f"cannot read {path}: {error}") from error
    if torn is not None and not allow_torn:
        raise BrokenChain(f"{path}: {torn}", entry=record.next_sequence())
    found = verified(path, record, entries, torn=torn)
    if expect_head is not None:
        numbered = expect_head.sequence < len(entries)
        same = numbered and entries[expect_head.sequence].hash == expect_head.hash
        if not same and expect_head not in found.lost:
            raise rolled_back(path, found.head, expect_head)
    return found


def verified(
    path: Path, record: Record, entries: Sequence[LedgerEntry], *, torn: str | None = None
) -> VerifiedLedger:
    """The findings about a chain that was read to its end."""
    if not entries:
        raise BrokenChain(f"{path} has no entries", entry=0)
    return VerifiedLedger(path=path, entries=tuple(entries), record=record, torn=torn)


def rolled_back(path: Path, found: Head | None, expected: Head) -> LedgerRolledBack:
    """The error for a file that lacks an entry somebody has seen."""
    return LedgerRolledBack(
        f"{path} ends at {found} and does not contain {expected}, which was seen before: restore "
        "the newer file, or open without expect_head and acknowledge_loss"
    )


def _read(path: Path, file: BinaryIO) -> tuple[Record, list[LedgerEntry], str | None]:
    """(the state at the end, the entries, what is missing)."""
    record, entries = Record(), list[LedgerEntry]()
    while line := file.readline(_MAX_LINE):
        number = record.next_sequence()
        if not line.endswith(b"\n"):
            if not entries or len(line) == _MAX_LINE:
                raise _no_export(path)
            return record, entries, f"its last line is cut off, after entry {number - 1}"
        if not entries and not line.startswith(_OPEN):
            raise _no_export(path)
        if line.startswith(_LAST):
            if line != f"{last_line_of(record)}\n".encode() or file.read(1):
                raise BrokenChain(f"{path} does not end as its last line says", entry=number)
            return record, entries, None
        entry = record.check(*_parts(path, line, number))
        record.admit(entry)
        entries.append(entry)
    if not entries:
        raise _no_export(path)
    return record, entries, f"its last line is missing, after entry {len(entries) - 1}"


def _parts(path: Path, line: bytes, number: int) -> tuple[str, bytes]:
    """(text, hash) of a line, which must have exactly the form that :func:`line_of` gives it."""
    text, tail = line[len(_OPEN) : -_TAIL], line[-_TAIL:]
    digits = tail[len(_MIDDLE) : -len(_CLOSE)]
    whole = line[: len(_OPEN)] == _OPEN and tail == _MIDDLE + digits + _CLOSE
    if not whole or not _HEX64.fullmatch(digits):
        raise BrokenChain(f"{path}: line {number + 1} is no line of an export", entry=number)
    try:
        return text.decode(), bytes.fromhex(digits.decode())
    except UnicodeDecodeError as error:
        raise BrokenChain(f"{path}: line {number + 1}: {error}", entry=number) from error


def _no_export(path: Path) -> LedgerUnavailable:
    return LedgerUnavailable(f"{path} is neither a ledger nor an export of one")
