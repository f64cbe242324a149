"""The SQLite side of a ledger: its schema, how it is opened, and what SQLite's errors mean.

The tables and triggers are part of the format: :func:`verify_schema` compares them with
``SCHEMA`` word by word. Nothing here knows what an entry says.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accounting.errors import BrokenChain, LedgerUnavailable

__all__ = [
    "APPLICATION_ID",
    "SCHEMA",
    "USER_VERSION",
    "connect",
    "is_sqlite",
    "sync_folder",
    "translated",
    "verify_schema",
]

APPLICATION_ID = 0x53464C4C  # "SFLL"
USER_VERSION = 1
_BUSY_MS = 10_000

SCHEMA: dict[str, str] = {
    "entry": (
        "CREATE TABLE entry ("
        "seq INTEGER PRIMARY KEY, body TEXT NOT NULL, hash BLOB NOT NULL UNIQUE)"
    ),
    "ticket": (
        "CREATE TABLE ticket ("
        "key TEXT PRIMARY KEY, state TEXT NOT NULL, ticks INTEGER NOT NULL) WITHOUT ROWID"
    ),
    "meta": (
        "CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 0), seq INTEGER NOT NULL, "
        "head BLOB NOT NULL, spent INTEGER NOT NULL, reserved INTEGER NOT NULL)"
    ),
    "entry_update": (
        "CREATE TRIGGER entry_update BEFORE UPDATE ON entry "
        "BEGIN SELECT RAISE(ABORT, 'ledger entries are never changed'); END"
    ),
    "entry_delete": (
        "CREATE TRIGGER entry_delete BEFORE DELETE ON entry "
        "BEGIN SELECT RAISE(ABORT, 'ledger entries are never deleted'); END"
    ),
    # Also keeps INSERT OR REPLACE, which fires no delete trigger, from replacing an entry.
    "entry_insert": (
        "CREATE TRIGGER entry_insert BEFORE INSERT ON entry "
        "WHEN NEW.seq IS NOT (SELECT COALESCE(MAX(seq), -1) + 1 FROM entry) "
        "BEGIN SELECT RAISE(ABORT, 'ledger entries are only appended'); END"
    ),
}


def is_sqlite(path: Path) -> bool:
    """Whether the file starts as every SQLite database does.

    Raises:
        LedgerUnavailable: if it cannot be read.
    """
    if not path.is_file():
        raise LedgerUnavailable(f"there is no ledger at {path}")
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError as error:
        raise LedgerUnavailable(f"cannot read {path}: {error}") from error


def connect(path: Path) -> sqlite3.Connection:
    """A connection to an existing file whose commits wait for the disk.

    Raises:
        LedgerUnavailable: if it cannot be opened.
        BrokenChain: if it is no database.
    """
    with translated(path):
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=_BUSY_MS / 1000
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone stops at the cache
            connection.execute("PRAGMA trusted_schema = OFF")
        except BaseException:
            connection.close()
            raise
        return connection


_NOT_DAMAGED = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_IOERR,
}


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours: the file cannot be used now, or cannot be trusted."""
    try:
        yield
    except UnicodeDecodeError as error:  # by the driver, of a damaged text or schema
        raise BrokenChain(f"{path} is damaged: {error}", entry=None) from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in _NOT_DAMAGED:
            raise LedgerUnavailable(
                f"{path} cannot be used now ({error}): nothing was written; try again, or look "
                "for the process that holds it"
            ) from error
        raise BrokenChain(f"{path} is damaged: {error}", entry=None) from error


def sync_folder(folder: Path) -> None:
    """Makes the new file's name durable as well (where the system lets folders be synced)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify_schema(path: Path, connection: sqlite3.Connection) -> None:
    """Checks that the file is a ledger of this version, whole, with our tables and triggers.

    Raises:
        LedgerUnavailable: if it is something else.
        BrokenChain: if it is damaged, or its tables or triggers were changed.
    """
    _verify_identity(path, connection)
    _verify_tables(path, connection)


def _verify_identity(path: Path, connection: sqlite3.Connection) -> None:
    application = _pragma(connection, "application_id")
    version = _pragma(connection, "user_version")
    if application != APPLICATION_ID:
        raise LedgerUnavailable(
            f"{path} is no accounting ledger (application id {application}); if it is "
            "a copy of one, bring its -wal file along: what it recorded was spent"
        )
    if version != USER_VERSION:
        raise LedgerUnavailable(f"{path} has format {version}, this version reads {USER_VERSION}")


def _verify_tables(path: Path, connection: sqlite3.Connection) -> None:
    verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if verdict != "ok":
        raise BrokenChain(f"{path} is damaged: {verdict}", entry=None)
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    if found != SCHEMA:
        names = found.keys() | SCHEMA.keys()  # a damaged name need not be text
        different = sorted(repr(n) for n in names if found.get(n) != SCHEMA.get(n))
        raise BrokenChain(
            f"{path} has other tables or triggers than a ledger: {different}", entry=None
        )


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]
