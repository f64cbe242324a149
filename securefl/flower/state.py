"""What a node remembers between two messages of a session, and what it may never forget.

Under Flower each message meets a new process. The session's state travels in ``context.state``: one
record, assigned once, at the end of a message. The deployment engine pushes the reply first and the
state afterwards, so a process killed in between has answered and forgotten; going on from the older
state would answer twice, with a second share or a second signature. What was answered is therefore
written to a journal on the disk before the reply exists. The journal holds no secrets; the record
holds the machine's sealed snapshot.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flwr.app import ConfigRecord, RecordDict

from securefl.errors import ConfigurationError, WireError
from securefl.flower.errors import Code, Refusal
from securefl.flower.plan import session_context
from securefl.round import RoundConfig

__all__ = ["MAX_STATE_BYTES", "RECORD", "Journal", "MemoryJournal", "SessionState", "SqliteJournal"]

RECORD = "securefl.session"
MAX_STATE_BYTES = 9 << 20
"""Flower's push of a node's state is cut off after five seconds; a larger one may be lost."""

_VERSION = 1
_OVER = "over"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """One session, waiting for its next message; or over.

    Attributes:
        attempt: the configuration's digest, 32 bytes.
        phase: whose message comes next; ``"over"`` after the last one, or after a refusal.
        client: this node's id in the session.
        config: canonical bytes of the RoundConfig; empty if over.
        plan: canonical bytes of the plan; empty if over.
        model: the model's digest; empty if over.
        machine: the machine's snapshot, sealed; empty if over.
        survivors: inputs in the sum, once this node has signed their list; 0 before.
    """

    attempt: bytes
    phase: str
    client: int = 0
    config: bytes = b""
    plan: bytes = b""
    model: bytes = b""
    machine: bytes = b""
    survivors: int = 0

    @classmethod
    def tombstone(cls, attempt: bytes) -> SessionState:
        """Of a session that is over: no secrets."""
        return cls(attempt=attempt, phase=_OVER)

    @property
    def over(self) -> bool:
        """Whether no message of this session is answered any more."""
        return self.phase == _OVER

    def round_config(self) -> RoundConfig:
        """The configuration, after a look whether the record's parts belong together.

        Raises:
            Refusal: STATE_LOST, if they do not.
        """
        try:
            config = RoundConfig.decode(self.config)
        except WireError as error:
            raise Refusal(Code.STATE_LOST, f"the stored configuration: {error}") from None
        if (
            config.digest() != self.attempt
            or session_context(self.plan, self.model) != config.context_digest
        ):
            raise Refusal(Code.STATE_LOST, "the stored parts of the session do not belong together")
        return config

    def store(self, state: RecordDict) -> None:
        """Puts the record into a context's state, in one assignment.

        Raises:
            Refusal: STATE_TOO_LARGE; nothing changes then.
        """
        fields: dict[str, int | str | bytes] = {
            "v": _VERSION,
            "attempt": self.attempt,
            "phase": self.phase,
        }
        if not self.over:
            fields |= {
                "client": self.client,
                "config": self.config,
                "plan": self.plan,
                "model": self.model,
                "machine": self.machine,
                "survivors": self.survivors,
            }
        size = sum(len(value) for value in fields.values() if isinstance(value, bytes))
        if size > MAX_STATE_BYTES:
            raise Refusal(
                Code.STATE_TOO_LARGE,
                f"the state of a session would have {size} bytes, at most {MAX_STATE_BYTES} are "
                'safe under Flower; set train_in = "masked", or fewer bits or neighbours',
            )
        state[RECORD] = ConfigRecord(dict(fields))

    @classmethod
    def load(cls, state: RecordDict) -> SessionState | None:
        """The record in a context's state; None if there is none, or none that is understood."""
        record = state.get(RECORD)
        if not isinstance(record, ConfigRecord) or record.get("v") != _VERSION:
            return None
        names = ("attempt", "phase", "client", "config", "plan", "model", "machine", "survivors")
        fields = {name: record[name] for name in names if name in record}
        kinds = {"phase": str, "client": int, "survivors": int}
        if any(type(value) is not kinds.get(name, bytes) for name, value in fields.items()):
            return None
        if len(fields) not in (2, len(names)) or not {"attempt", "phase"} <= set(fields):
            return None
        found = cls(**fields)  # type: ignore[arg-type]  # the types were compared above
        return found if found.over or len(fields) == len(names) else None


class Journal(Protocol):
    """Which messages of which sessions were answered; it never forgets."""

    @property
    def durable(self) -> bool:
        """Whether it outlives the process."""

    def answered(self, attempt: bytes, phase: str) -> bool:
        """Whether an answer to this phase of this attempt was ever made."""

    def commit(self, attempt: bytes, phase: str) -> None:
        """Writes that an answer is made now.

        Raises:
            Refusal: ANSWERED, if one was made before.
        """


class SqliteJournal:
    """A journal in a file, about 60 bytes per message.

    Args:
        path: made with mode 0600 if it does not exist.

    Raises:
        ConfigurationError: if it cannot be written, or is something else.
    """

    durable = True

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # SQLite would make the file with the process's umask.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            with closing(self._open()) as journal, journal:
                journal.execute(
                    "CREATE TABLE IF NOT EXISTS answered "
                    "(attempt BLOB NOT NULL, phase TEXT NOT NULL, PRIMARY KEY (attempt, phase))"
                )
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(f"cannot write the journal {path}: {error}") from None

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=30)
        # FULL leaves the folder unsynced: after a power cut the old journal file could be back, and
        # roll back what was answered.
        connection.execute("PRAGMA synchronous = EXTRA")
        return connection

    def answered(self, attempt: bytes, phase: str) -> bool:
        """See :class:`Journal`."""
        query = "SELECT 1 FROM answered WHERE attempt = ? AND phase = ?"
        with closing(self._open()) as journal:
            return journal.execute(query, (attempt, phase)).fetchone() is not None

    def commit(self, attempt: bytes, phase: str) -> None:
        """See :class:`Journal`."""
        try:
            with closing(self._open()) as journal, journal:
                journal.execute("INSERT INTO answered VALUES (?, ?)", (attempt, phase))
        except sqlite3.IntegrityError:
            raise Refusal(Code.ANSWERED, f"phase {phase} was answered before") from None


class MemoryJournal:
    """A journal that ends with the process: for simulations, and nodes that face no liar."""

    durable = False

    def __init__(self) -> None:
        self._answered: set[tuple[bytes, str]] = set()
        self._lock = threading.Lock()

    def answered(self, attempt: bytes, phase: str) -> bool:
        """See :class:`Journal`."""
        return (attempt, phase) in self._answered

    def commit(self, attempt: bytes, phase: str) -> None:
        """See :class:`Journal`."""
        with self._lock:
            if (attempt, phase) in self._answered:
                raise Refusal(Code.ANSWERED, f"phase {phase} was answered before")
            self._answered.add((attempt, phase))
