"""The ledger: one SQLite file per population that says what was released and refuses what is not
paid for.

Order of events around one release, which is the whole point of the file:

    reserve   before any noise is drawn: the worst-case price is durable, or nothing happens
    settle    the survivors are final, nothing is opened yet: the true price replaces the reserved
    abort     no settlement: refunded only if nothing can have been opened

A crash between any two lines leaves the reservation charged, never a release unpaid. The file is
opened in WAL mode with ``synchronous=FULL``, so a returned call is on disk; it belongs on a local
disk, not on a network share. Entries cannot be changed or deleted (triggers), form a hash chain,
and are verified completely on every open.

Adversary: a crash at any instant, a second process, bit rot, and somebody who restores an old
copy, provided that the last :class:`Head` is known from elsewhere. Not covered: somebody who may
write the file and rewrites the chain from the start, or a caller who releases without reserving.
This module knows no training and no protocol.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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
)
from accounting.errors import (
    AccountingError,
    BrokenChain,
    BudgetExceeded,
    InvalidEvent,
    InvalidParameter,
    LedgerRolledBack,
    LedgerUnavailable,
    OverReservation,
    TicketError,
)
from accounting.events import Event
from accounting.export import (
    VerifiedLedger,
    last_line_of,
    line_of,
    read_export,
    rolled_back,
    verified,
    write_export,
)
from accounting.filter import (
    FAILURE_TICKS_PER_UNIT,
    MAX_TICKS,
    failure_ticks,
    price,
    refusal,
    refuse_failure,
    to_rdp,
)
from accounting.ledger_file import (
    APPLICATION_ID,
    SCHEMA,
    USER_VERSION,
    connect,
    is_sqlite,
    sync_folder,
    translated,
    verify_schema,
)
from accounting.record import (
    Record,
    abort_body,
    canonical,
    chain_hash,
    header_body,
    loss_body,
    loss_event,
    note_body,
    reserve_body,
    settle_body,
)

__all__ = ["Ledger"]


class Ledger:
    """An open ledger file. Use :meth:`create` or :meth:`open`, and close it (context manager).

    One object belongs to one thread and one process; several processes may open the same file.

    >>> import tempfile, os
    >>> from accounting import Adjacency, Gaussian, Head, Ledger, LedgerHeader, Unit, digest
    >>> release = Gaussian(noise_multiplier=8.0)
    >>> header = LedgerHeader(population="docs", unit=Unit.RECORD, adjacency=Adjacency.ZERO_OUT,
    ...     epsilon=1.0, delta=1e-5, order=20.0, plan=digest(release))
    >>> path = os.path.join(tempfile.mkdtemp(), "docs.ledger")
    >>> with Ledger.create(path, header) as ledger:
    ...     ticket = ledger.reserve(release, round=1, key="round-1")
    ...     head = ledger.settle(ticket, release, {"planned": 1, "survivors": 1,
    ...         "colluding_assumed": 0, "protocol": "example/1", "transcript": "0" * 64})
    ...     ledger.balance.reserved, head.sequence
    (0, 2)
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Internal: use :meth:`create` or :meth:`open`."""
        self._path = path
        self._connection: sqlite3.Connection | None = connection
        self._pid = os.getpid()
        self._record = Record()
        self._keep: list[LedgerEntry] | None = None

    # --- opening and closing ----------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | Path, header: LedgerHeader) -> Ledger:
        """Creates the file with its declaration as entry 0.

        It is made under another name and gets its own in one step, complete and synced: at every
        moment there is either no ledger at ``path`` or one that opens.

        Args:
            path: where; nothing may be there yet.
            header: the declaration, fixed for the life of the data.

        Raises:
            LedgerUnavailable: if the path exists or cannot be written.
        """
        path = Path(path).absolute()
        if path.exists():
            raise _in_the_way(path)
        making = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            os.close(os.open(making, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            raise LedgerUnavailable(f"cannot create {path}: {error}") from error
        try:
            with contextlib.closing(cls(making, connect(making))) as ledger:
                ledger._write_schema(header)
            # Closed, so that nothing is left in the log: the one file is the whole ledger.
            os.link(making, path)  # unlike a rename, it never replaces what is there
        except FileExistsError:
            raise _in_the_way(path) from None
        except OSError as error:
            raise LedgerUnavailable(f"cannot create {path}: {error}") from error
        finally:
            making.unlink()
        sync_folder(path.parent)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path, expect_head: Head | None = None) -> Ledger:
        """Opens a file and verifies all of it: hashes, numbers, transitions, prices, tables.

        Args:
            path: an existing ledger.
            expect_head: an entry somebody has seen (a checkpoint, a report). Give it whenever you
                have it: without it an old copy of the file looks perfectly well.

        Raises:
            LedgerUnavailable: if it is no ledger or cannot be opened.
            BrokenChain: if it contradicts itself.
            LedgerRolledBack: if ``expect_head`` is not in it.
        """
        return cls._opened(Path(path).absolute(), expect_head, keep=None)

    @classmethod
    def _opened(
        cls, path: Path, expect_head: Head | None, *, keep: list[LedgerEntry] | None
    ) -> Ledger:
        if not path.is_file():
            raise LedgerUnavailable(f"there is no ledger at {path}")
        ledger = cls(path, connect(path))
        ledger._keep = keep
        try:
            ledger._verify_file()
            if expect_head is not None:
                ledger._expect(expect_head)
        except BaseException:
            ledger.close()
            raise
        finally:
            ledger._keep = None
        return ledger

    @classmethod
    def verify(
        cls, path: str | Path, expect_head: Head | None = None, *, allow_torn: bool = False
    ) -> VerifiedLedger:
        """Checks a ledger file or an export of one, and says what is in it.

        Hashes, numbers, legal transitions, every price recomputed from its event, the budget, and
        that the file is whole. A ledger file is opened for that as by :meth:`open` (a log that a
        crash left behind is taken in); nothing is appended.

        Args:
            path: a ledger, or what :meth:`export` wrote.
            expect_head: an entry somebody has seen; give it whenever you have it.
            allow_torn: take what is whole of an export that was cut off, and say so in ``torn``.

        Raises:
            LedgerUnavailable: if it is neither, or cannot be read.
            BrokenChain: if it contradicts itself, or is cut off.
            LedgerRolledBack: if ``expect_head`` is not in it.
            InvalidParameter: for ``allow_torn`` together with ``expect_head``.
        """
        path = Path(path).absolute()
        if allow_torn and expect_head is not None:
            raise InvalidParameter(
                "allow_torn and expect_head exclude each other: nobody can tell whether what is "
                "missing was cut off or taken back"
            )
        if not is_sqlite(path):
            return read_export(path, expect_head, allow_torn=allow_torn)
        entries: list[LedgerEntry] = []
        with cls._opened(path, expect_head, keep=entries) as ledger:
            return verified(path, ledger._record, entries)

    def close(self) -> None:
        """Closes the file; open reservations stay charged. Safe to call twice."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            if self._pid == os.getpid():
                connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- the life of a release --------------------------------------------------------------------

    def reserve(self, event: Event, *, round: int, key: str) -> Ticket:  # noqa: A002  # the field's word: a training round
        """Reserves the worst-case price of a release, durably, before anything is released.

        Args:
            event: the dearest event that the round may turn out to be.
            round: training round, >= 0.
            key: name of this attempt, unique in the ledger. The same key with the same event gives
                the same ticket while it is open, so a caller may ask again after a crash.

        Returns:
            The ticket. When this returns, the charge is on disk.

        Raises:
            BudgetExceeded: if it does not fit; nothing was written.
            TicketError: if the key is settled or aborted, or open for another event or round. A
                new attempt draws new noise and needs a new key.
            UnsupportedEvent: if the event has no proved cost, or is only (epsilon, delta)-private
                and the header declares no ``delta_reserve``.
        """
        checked_whole(round, "round", low=0)
        checked_text(key, "key", most=MAX_NAME)
        with self._transaction():
            ticks = self._price(event)
            again = self._record.open.get(key)
            if again is not None and (again.event, again.round) == (event, round):
                return again
            if again is not None or key in self._record.closed:
                state = "open for another event or round" if again else self._record.closed[key][0]
                raise TicketError(f"key {key!r} is used ({state}): a new attempt needs a new key")
            balance = self._record.balance
            if ticks is None or ticks > balance.remaining:
                raise self._exceeded(event, ticks)
            refuse_failure(
                event,
                spent=balance.failure_spent + balance.failure_reserved,
                limit=balance.failure_budget,
            )
            ticket = Ticket(
                key=key,
                sequence=self._record.next_sequence(),
                round=round,
                event=event,
                ticks=ticks,
            )
            self._append(reserve_body(ticket.sequence, _now(), ticket))
        return ticket

    def settle(self, ticket: Ticket, event: Event, evidence: Evidence | Mapping[str, Any]) -> Head:
        """Replaces a reservation by the realised event, before the sum is opened.

        Args:
            ticket: an open ticket of this ledger.
            event: what the survivors make it; at most as dear as reserved.
            evidence: what happened, without client ids.

        Returns:
            The new head. Only now may the sum be opened or the update leave.

        Raises:
            OverReservation: if the event is dearer than reserved. The reservation stays; abort the
                round unopened.
            TicketError: if the ticket is not open in this ledger.
            InvalidParameter: for impossible evidence.
        """
        checked = Evidence.of(evidence)
        with self._transaction():
            ticks = self._price(event)
            self._must_be_open(ticket)
            if ticks is None or ticks > ticket.ticks:
                raise OverReservation(
                    f"round {ticket.round} turned out dearer than reserved ({ticks} ticks against "
                    f"{ticket.ticks}): do not open it, abort",
                    reserved=to_rdp(ticket.ticks),
                    requested=float("inf") if ticks is None else to_rdp(ticks),
                )
            if failure_ticks(event) > failure_ticks(ticket.event):
                raise OverReservation(
                    f"round {ticket.round} may fail more often than reserved: do not open it, "
                    "abort",
                    reserved=failure_ticks(ticket.event) / FAILURE_TICKS_PER_UNIT,
                    requested=failure_ticks(event) / FAILURE_TICKS_PER_UNIT,
                )
            seq = self._record.next_sequence()
            self._append(settle_body(seq, _now(), ticket, event, ticks, checked))
        return self._last_head()

    def abort(self, ticket: Ticket, *, opened: bool) -> Head:
        """Ends a reservation without a settlement.

        Args:
            ticket: an open ticket of this ledger.
            opened: False only if nobody can have seen anything: no update left this process, no
                unmasking request was sent. Only then is the price refunded.

        Raises:
            TicketError: if the ticket is not open in this ledger.
        """
        if not isinstance(opened, bool):
            raise InvalidParameter(f"opened must be True or False, found {opened!r}")
        with self._transaction():
            self._must_be_open(ticket)
            seq = self._record.next_sequence()
            self._append(abort_body(seq, _now(), ticket, opened=opened))
        return self._last_head()

    def recover(self) -> tuple[Ticket, ...]:
        """Settles every open reservation at its price: what to do after a crash.

        Returns:
            The tickets that were open. Their keys cannot be used again.
        """
        with self._transaction():
            tickets = tuple(self._record.open.values())
            for ticket in tickets:
                seq = self._record.next_sequence()
                self._append(settle_body(seq, _now(), ticket, ticket.event, ticket.ticks, None))
        return tickets

    def note(self, text: str, *, subject: NoteSubject = NoteSubject.COMMENT) -> Head:
        """Appends a remark. ``INJECTED_RANDOMNESS`` marks the whole run as no claim, for good.

        Raises:
            InvalidParameter: for an empty, overlong or unprintable text, or the subject LOSS (use
                :meth:`acknowledge_loss`).
        """
        if subject is NoteSubject.LOSS:
            raise InvalidParameter("a loss has a price: use acknowledge_loss")
        checked_text(text, "text", most=MAX_NOTE)
        with self._transaction():
            seq = self._record.next_sequence()
            self._append(note_body(seq, _now(), NoteSubject(subject), text))
        return self._last_head()

    def acknowledge_loss(self, lost: Head, *, event: Event, rounds: int, reason: str) -> Head:
        """Continues after a roll-back by charging the worst case for what the lost part held.

        Open the file without ``expect_head`` first. The charge is made even beyond the budget: it
        has happened. Afterwards :meth:`open` accepts ``lost`` as an expected head.

        Args:
            lost: the head that this file should have contained.
            event: the dearest release of one lost round.
            rounds: how many rounds may be lost, >= 1.
            reason: what happened, for the reader.

        Raises:
            InvalidParameter: if ``lost`` is in this file, or the loss has no finite price.
        """
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise InvalidParameter(f"rounds must be an int >= 1, found {rounds!r}")
        checked_text(reason, "reason", most=MAX_NOTE)
        with self._transaction():
            if self._contains(lost):
                raise InvalidParameter(f"head {lost} is in this ledger: nothing was lost")
            worst = loss_event(event, rounds)
            ticks = self._price(worst)
            if ticks is None or ticks + self._record.spent + self._record.reserved > MAX_TICKS:
                raise InvalidParameter(
                    f"{rounds} lost rounds of {event} have no finite price: retire this ledger"
                )
            seq = self._record.next_sequence()
            self._append(loss_body(seq, _now(), reason, lost=lost, event=worst, ticks=ticks))
        return self._last_head()

    # --- reading ----------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._path

    @property
    def header(self) -> LedgerHeader:
        """The declaration of entry 0."""
        self._refresh()
        return self._record.header

    @property
    def head(self) -> Head:
        """The last entry: keep it wherever the ledger is not."""
        self._refresh()
        return self._last_head()

    @property
    def balance(self) -> Balance:
        """Where the budget stands."""
        self._refresh()
        return self._record.balance

    @property
    def budget(self) -> int:
        """The declared budget in ticks."""
        return self.balance.budget

    @property
    def spent(self) -> int:
        """Ticks charged for good."""
        return self.balance.spent

    @property
    def reserved(self) -> int:
        """Ticks held by open reservations."""
        return self.balance.reserved

    @property
    def remaining(self) -> int:
        """Ticks that a next reservation may cost."""
        return self.balance.remaining

    @property
    def open_tickets(self) -> tuple[Ticket, ...]:
        """Reservations that are neither settled nor aborted, oldest first."""
        self._refresh()
        return tuple(self._record.open.values())

    @property
    def randomness(self) -> Randomness:
        """``injected`` if the header or any note says so: then no claim may be made."""
        self._refresh()
        return self._record.randomness

    def fits(self, event: Event) -> bool:
        """Whether a reservation of this event would be admitted now."""
        ticks, balance = self._price(event), self.balance
        return (
            ticks is not None
            and ticks <= balance.remaining
            and failure_ticks(event) <= balance.failure_remaining
        )

    def accountant(self) -> RDPAccountant:
        """Everything charged, composed anew: settled events and open reservations.

        The ledger is the only copy of that state; the accountant is a view and may be changed.
        """
        self._refresh()
        return self._record.accountant()

    def epsilon(self) -> Bound:
        """Epsilon of everything charged so far, at the declared delta.

        Label it "fixed plan only": it takes the best order now, so it holds for a plan that does
        not depend on the outputs. The declared (epsilon, delta) of the header holds even where
        later rounds, or the decision to stop, depend on earlier ones. Never above the header's
        epsilon unless a loss was acknowledged.
        """
        self._refresh()
        return self._record.epsilon()

    def entries(self) -> Iterator[LedgerEntry]:
        """All entries from the header on, checked again while they are read."""
        replay = Record()
        for text, digest in self._rows(0):
            entry = replay.check(text, digest)
            replay.admit(entry)
            yield entry

    def export_lines(self) -> Iterator[str]:
        """The lines of an export: every entry with its hash, then how it ends; no line ends.

        One consistent state, whatever other processes append meanwhile.
        """
        return self._lines(Record())

    def export(self, path: str | Path) -> Head:
        """Writes the ledger as JSON Lines, which :meth:`verify` checks without the database.

        Args:
            path: where; nothing may be there yet.

        Returns:
            The head that the export ends with.

        Raises:
            LedgerUnavailable: if the path exists or cannot be written.
        """
        replay = Record()
        write_export(Path(path).absolute(), self._lines(replay))
        return self._head_of(replay)

    def __repr__(self) -> str:
        state = "closed" if self._connection is None else f"head {self._record.head}"
        return f"Ledger({str(self._path)!r}, {state})"

    def __reduce__(self) -> Any:
        raise TypeError("a ledger is an open file and cannot be pickled: pass its path and head")

    # --- inside -----------------------------------------------------------------------------------

    def _live(self) -> sqlite3.Connection:
        if self._connection is None:
            raise LedgerUnavailable(f"the ledger {self._path} is closed")
        if self._pid != os.getpid():
            raise LedgerUnavailable(
                "a ledger must not be used across a fork: open it anew in each process"
            )
        return self._connection

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """One write transaction: lock, catch up with other processes, append, commit."""
        connection = self._live()
        before = self._record.head
        with translated(self._path):
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._catch_up()
                yield
                connection.execute("COMMIT")
            except BaseException as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._distrust_memory(error, before)
                raise

    def _refresh(self) -> None:
        """Takes in what other processes appended."""
        connection = self._live()
        with translated(self._path):
            if connection.in_transaction or self._is_current():
                return
            before = self._record.head
            connection.execute("BEGIN")
            try:
                self._catch_up()
            except BaseException as error:
                self._distrust_memory(error, before)
                raise
            finally:
                connection.execute("COMMIT")

    def _distrust_memory(self, error: BaseException, before: Head | None) -> None:
        """After a failure: forget what may not be stored, so that the next call reads all again.

        A refusal of ours before anything was admitted leaves the memory as it was.
        """
        if self._record.head != before or not isinstance(error, AccountingError):
            self._record = Record()

    def _is_current(self) -> bool:
        return self._stored_head() == self._record.head

    def _stored_head(self) -> Head:
        row = self._live().execute("SELECT seq, head FROM meta WHERE id = 0").fetchone()
        if row is None:
            raise BrokenChain(f"{self._path} has lost its head", entry=None)
        try:
            return Head(sequence=row[0], hash=row[1])
        except InvalidParameter as error:
            raise BrokenChain(f"{self._path} has a damaged head: {error}", entry=None) from error

    def _catch_up(self) -> None:
        """Checks and admits every entry behind the known head, inside a transaction."""
        stored = self._stored_head()
        if stored == self._record.head:
            return
        if stored.sequence < self._record.next_sequence():
            raise LedgerRolledBack(
                f"{self._path} ends at entry {stored.sequence}, this process has already seen "
                f"entry {self._record.next_sequence() - 1}: somebody replaced the file"
            )
        for text, digest in self._rows(self._record.next_sequence()):
            entry = self._record.check(text, digest)
            self._record.admit(entry)
            if self._keep is not None:
                self._keep.append(entry)
        if self._record.head != stored:
            raise BrokenChain(
                f"{self._path} says its head is {stored}, its entries end at {self._record.head}",
                entry=self._record.next_sequence(),
            )

    def _rows(self, first: int) -> Iterator[tuple[Any, Any]]:
        """(body, hash) of every entry from number ``first`` on, as stored."""
        return self._live().execute(
            "SELECT body, hash FROM entry WHERE seq >= ? ORDER BY seq", (first,)
        )

    def _lines(self, replay: Record) -> Iterator[str]:
        for text, digest in self._rows(0):
            replay.admit(replay.check(text, digest))
            yield line_of(text, digest)
        yield last_line_of(replay)

    def _append(self, body: dict[str, object]) -> LedgerEntry:
        """Checks an entry by the reader's rules, stores it and updates the tables."""
        connection, record = self._live(), self._record
        text = canonical(body)
        digest = chain_hash(record.previous_hash(), text)
        entry = record.check(text, digest)
        connection.execute(
            "INSERT INTO entry (seq, body, hash) VALUES (?, ?, ?)", (entry.sequence, text, digest)
        )
        if entry.kind is EntryKind.RESERVE:
            connection.execute(
                "INSERT INTO ticket (key, state, ticks) VALUES (?, 'open', ?)",
                (entry.key, entry.ticks),
            )
        elif entry.key is not None:
            connection.execute(
                "UPDATE ticket SET state = ?, ticks = ? WHERE key = ?",
                (entry.kind.value, entry.ticks, entry.key),
            )
        record.admit(entry)
        connection.execute(
            "INSERT INTO meta (id, seq, head, spent, reserved) VALUES (0, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, head = excluded.head, "
            "spent = excluded.spent, reserved = excluded.reserved",
            (entry.sequence, digest, record.spent, record.reserved),
        )
        return entry

    def _write_schema(self, header: LedgerHeader) -> None:
        connection = self._live()
        with translated(self._path):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {USER_VERSION}")
            for statement in SCHEMA.values():
                connection.execute(statement)
            self._append(header_body(header, _now()))
            connection.execute("COMMIT")

    def _verify_file(self) -> None:
        """Everything that can be checked from the file alone, in one consistent snapshot."""
        connection = self._live()
        with translated(self._path):
            connection.execute("BEGIN")
            try:
                verify_schema(self._path, connection)
                self._catch_up()
                self._verify_caches()
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
            if mode != "wal":
                raise BrokenChain(f"{self._path} is in journal mode {mode}, not wal", entry=None)

    def _verify_caches(self) -> None:
        """The tables `ticket` and `meta` are caches of the chain: they must say the same."""
        connection, record = self._live(), self._record
        tickets = {
            key: (state, ticks)
            for key, state, ticks in connection.execute("SELECT key, state, ticks FROM ticket")
        }
        open_now = {key: ("open", ticket.ticks) for key, ticket in record.open.items()}
        closed = {key: (kind.value, ticks) for key, (kind, ticks) in record.closed.items()}
        if tickets != open_now | closed:
            raise BrokenChain(f"{self._path}: table ticket contradicts the entries", entry=None)
        rows = connection.execute("SELECT id, spent, reserved FROM meta").fetchall()
        if rows != [(0, record.spent, record.reserved)]:
            raise BrokenChain(f"{self._path}: table meta contradicts the entries", entry=None)

    def _contains(self, head: Head) -> bool:
        row = (
            self._live()
            .execute("SELECT hash FROM entry WHERE seq = ?", (head.sequence,))
            .fetchone()
        )
        return row is not None and row[0] == head.hash

    def _expect(self, head: Head) -> None:
        with translated(self._path):
            if self._contains(head) or head in self._record.lost:
                return
        raise rolled_back(self._path, self._record.head, head)

    def _last_head(self) -> Head:
        return self._head_of(self._record)

    def _head_of(self, record: Record) -> Head:
        if record.head is None:
            raise BrokenChain(f"{self._path} has no entries", entry=0)
        return record.head

    def _price(self, event: Event) -> int | None:
        if not isinstance(event, Event):
            raise InvalidEvent(f"expected a privacy event, found {type(event).__name__}")
        return price(event, order=self.header.order, adjacency=self.header.adjacency)

    def _must_be_open(self, ticket: Ticket) -> None:
        if not isinstance(ticket, Ticket) or self._record.open.get(ticket.key) != ticket:
            closed = self._record.closed.get(getattr(ticket, "key", ""))
            state = f"already ended by {closed[0]}" if closed else "unknown to this ledger"
            raise TicketError(f"{ticket!r} is {state}: a ticket is good for one release")

    def _exceeded(self, event: Event, ticks: int | None) -> BudgetExceeded:
        record, header = self._record, self.header
        return refusal(
            event,
            order=header.order,
            spent=record.spent + record.reserved,
            requested=ticks,
            limit=record.budget,
            promise=(header.epsilon, header.delta),
        )


def _in_the_way(path: Path) -> LedgerUnavailable:
    return LedgerUnavailable(
        f"{path} exists: open it, a second ledger over the same data hides what was spent"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
