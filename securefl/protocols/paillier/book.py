"""The round book: a decider's memory of what it has agreed to open, one set per session, for ever.

A decider that forgot would open a second, overlapping set, and the difference of two sums is one
client's update. So it writes down the request *before* it answers, and survives restarts with it.
Restoring an old copy of the file makes it forget; that cannot be detected from inside.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Protocol

from securefl.errors import ConfigurationError

__all__ = ["MemoryRoundBook", "RoundBook", "SqliteRoundBook"]


class RoundBook(Protocol):
    """What a decider needs."""

    def bind(self, session: bytes, round_id: int, digest: bytes) -> bool:
        """Binds a session to one request, durably, before returning.

        Args:
            session: 32 bytes, the configuration's digest.
            round_id: the training round.
            digest: 32 bytes, what was asked for.

        Returns:
            True if the session is bound to this digest, now or already; False if to another.
        """


class MemoryRoundBook:
    """A book that dies with its process: for simulations, where every party does."""

    def __init__(self) -> None:
        self._bound: dict[tuple[bytes, int], bytes] = {}

    def bind(self, session: bytes, round_id: int, digest: bytes) -> bool:
        """See :class:`RoundBook`."""
        return self._bound.setdefault((session, round_id), digest) == digest


class SqliteRoundBook:
    """A book on disk; every entry is synchronised before it counts.

    Args:
        path: the file; created if it is not there. On a local disk, one per decider.

    Raises:
        ConfigurationError: if the file is no round book.
    """

    _APPLICATION_ID = 0x53464C42  # "SFLB"

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with closing(self._connect()) as database:
                (found,) = database.execute("PRAGMA application_id").fetchone()
                (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if tables and found != self._APPLICATION_ID:
                    raise ConfigurationError(f"{path} is another program's database")
                database.execute(f"PRAGMA application_id = {self._APPLICATION_ID}")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS bound (session BLOB, round INTEGER, digest BLOB, "
                    "PRIMARY KEY (session, round)) WITHOUT ROWID"
                )
        except sqlite3.Error as error:
            raise ConfigurationError(f"{path} is no round book: {error}") from None

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=10, isolation_level=None)
        # EXTRA: FULL does not synchronise the folder after the journal is deleted, and a power cut
        # at that moment would bring the journal back and undo an entry that was already answered.
        database.execute("PRAGMA synchronous = EXTRA")
        return database

    def bind(self, session: bytes, round_id: int, digest: bytes) -> bool:
        """See :class:`RoundBook`. Two processes with one book agree on the first request.

        Raises:
            ConfigurationError: if the file cannot be written; then nothing may be answered.
        """
        # Rounds are unsigned 64-bit numbers, SQLite's integers are signed.
        key = (session, round_id - (1 << 64) if round_id >> 63 else round_id)
        try:
            with closing(self._connect()) as database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("INSERT OR IGNORE INTO bound VALUES (?, ?, ?)", (*key, digest))
                (found,) = database.execute(
                    "SELECT digest FROM bound WHERE session = ? AND round = ?", key
                ).fetchone()
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"the round book {self._path} cannot be written ({error}): nothing was answered; "
                "repair the disk or the file and let the server ask again"
            ) from None
        return bool(found == digest)
