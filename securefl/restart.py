"""Machines whose process may die between two messages: where snapshots lie, and in what order.

What must never happen is that one party goes on twice from one state: it would answer two unmask
requests, and by them open its peers. So a snapshot is deleted before it is handed out, every number
is given out once, and a frame leaves only after the state that sent it is on the disk
(:class:`Keeper`). The store notices a single file that was put back. It cannot notice that the
whole folder was restored from a back-up: do not back it up. This module knows no protocol and no
network.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from securefl.errors import SecureFLError, SnapshotError
from securefl.primitives.at_rest import seal_stored
from securefl.protocols.machine import Event, Outbound
from securefl.protocols.snapshot import SECRETS, Restartable, read_header
from securefl.storage import lock_folder, sync_folder, write_durably

__all__ = ["Keeper", "SnapshotStore", "StoredSnapshot"]

M = TypeVar("M", bound=Restartable)

_LOG = "sequences.log"
_RECORD = struct.Struct("<32sIB")
_CHECK_BYTES = 8
_RECORD_BYTES = _RECORD.size + _CHECK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSnapshot:
    """A snapshot that was taken out of the store.

    Attributes:
        sequence: its number, to be given to ``restore``.
        blob: its bytes; there is no other copy.
    """

    sequence: int
    blob: bytes

    def __repr__(self) -> str:
        return f"StoredSnapshot(sequence={self.sequence}, <secret>)"


class SnapshotStore:
    """One party's snapshots in a folder of its own: the newest of each session, given out once.

    Files have mode 0600. A log beside them remembers the last number of every session for good (45
    bytes each, more while a session runs), also of those that are over. The folder is locked while
    the store is open (not on Windows, which has no such locks).

    Args:
        folder: made with mode 0700 if it does not exist.

    Raises:
        SnapshotError: if another process has the store open, or its log is damaged.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._lock = lock_folder(folder)
        except OSError:
            raise SnapshotError(
                f"the store {folder} is open elsewhere: two processes would answer twice"
            ) from None
        self._folder = folder
        self._open = True
        try:
            self._last = self._read_log()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the folder free. The store cannot be used afterwards."""
        self._open = False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def knows(self, session: bytes) -> bool:
        """Whether this session ever had a snapshot here, taken or not."""
        return session in self._last or self._path(session).exists()

    def put(self, session: bytes, sequence: int, blob: bytes) -> None:
        """Stores a snapshot in the place of the session's earlier one; on the disk on return.

        Args:
            session: the configuration's digest, 32 bytes.
            sequence: the snapshot's number; higher than every one before.
            blob: the snapshot.

        Raises:
            SnapshotError: for a number that is not higher, or a blob of another session or number.
            OSError: if the disk refuses. If it was the log that could not be written, the store is
                closed: open it again.
        """
        self._usable()
        header = read_header(blob)
        if (header.session, header.sequence) != (session, sequence):
            raise SnapshotError(
                f"this snapshot is number {header.sequence} of session {header.session.hex()[:16]}"
                f", not number {sequence} of {session.hex()[:16]}"
            )
        last, _ = self._last.get(session, (0, False))
        if sequence <= last:
            raise SnapshotError(
                f"snapshot {sequence} of session {session.hex()[:16]} is not newer than {last}"
            )
        # The file first: a crash in between leaves a snapshot that is newer than the log says.
        write_durably(self._path(session), blob, mode=0o600)
        self._append(session, sequence, taken=False)

    def take(self, session: bytes) -> StoredSnapshot:
        """The session's newest snapshot. It is deleted before this returns.

        Args:
            session: the configuration's digest, 32 bytes.

        Raises:
            SnapshotError: if there is none, or it was taken before, or is older than the newest.
        """
        self._usable()
        path = self._path(session)
        name = session.hex()[:16]
        last, taken = self._last.get(session, (0, False))
        try:
            blob = path.read_bytes()
        except FileNotFoundError:
            what = f"number {last} was taken" if taken else "there is none"
            raise SnapshotError(f"no snapshot of session {name} is stored: {what}") from None
        header = read_header(blob)
        if header.session != session:
            raise SnapshotError(f"the file of session {name} holds another session's snapshot")
        if header.sequence < last or (header.sequence == last and taken):
            state = "taken before" if header.sequence == last else f"followed by number {last}"
            raise SnapshotError(
                f"snapshot {header.sequence} of session {name} was {state}: somebody put the file "
                "back, and going on from it could answer twice"
            )
        self._append(session, header.sequence, taken=True)
        path.unlink()
        sync_folder(self._folder)
        return StoredSnapshot(sequence=header.sequence, blob=blob)

    def _usable(self) -> None:
        if not self._open:
            raise SnapshotError(f"the store {self._folder} was closed")

    def _path(self, session: bytes) -> Path:
        return self._folder / f"{session.hex()}.snapshot"

    # -- the log: session, number, whether it was taken, check sum -----------------------------

    def _read_log(self) -> dict[bytes, tuple[int, bool]]:
        """The last entry per session; the log is written anew when it is mostly old entries."""
        path = self._folder / _LOG
        raw = path.read_bytes() if path.exists() else b""
        last: dict[bytes, tuple[int, bool]] = {}
        whole = len(raw) - len(raw) % _RECORD_BYTES
        for start in range(0, whole, _RECORD_BYTES):
            body = raw[start : start + _RECORD.size]
            if raw[start + _RECORD.size : start + _RECORD_BYTES] != _check(body):
                if start + _RECORD_BYTES == len(raw):
                    break  # cut off by a crash before anything depended on it
                raise SnapshotError(f"{path} is damaged at byte {start}: do not go on with it")
            session, sequence, taken = _RECORD.unpack(body)
            last[session] = (sequence, bool(taken))
        if len(raw) != _RECORD_BYTES * len(last):
            entries = (_record(s, number, taken) for s, (number, taken) in last.items())
            write_durably(path, b"".join(entries), mode=0o600)
        return last

    def _append(self, session: bytes, sequence: int, *, taken: bool) -> None:
        path = self._folder / _LOG
        is_new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_record(session, sequence, taken))
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            # A full disk may have left half an entry; one more behind it could never be read.
            self.close()
            raise
        if is_new:
            sync_folder(self._folder)
        self._last[session] = (sequence, taken)


def _record(session: bytes, sequence: int, taken: bool) -> bytes:
    body = _RECORD.pack(session, sequence, taken)
    return body + _check(body)


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECK_BYTES]


class Keeper(Generic[M]):
    """Drives one machine so that its process may be killed at any moment.

    Every step: call the machine, snapshot its new state together with the frames it wants sent, put
    the snapshot on the disk, send. After a crash a new ``Keeper`` with the same arguments goes on
    from the last stored state and sends that state's frames again, byte for byte.

    Only a crash while it takes its snapshot out of the store loses the session: between ``take``
    and the next ``put`` nothing is stored, and the party is a dropout.

    Args:
        make: builds the machine, always with the same configuration and identity.
        store: this party's.
        storage_key: 32 random bytes, kept elsewhere than the store.
        send: hands one frame to the network. What it raises is passed on; :meth:`resend` tries
            again.

    Raises:
        SnapshotError: if the session was begun and its snapshot is gone, taken or unusable. Never
            begin it anew: fresh keys under an old session would be a second story.
        ConfigurationError: if the storage key is not 32 bytes. Nothing was taken out of the store.
    """

    def __init__(
        self,
        make: Callable[[], M],
        *,
        store: SnapshotStore,
        storage_key: bytes,
        send: Callable[[Outbound], None],
    ) -> None:
        seal_stored(storage_key, b"", b"")  # a key that cannot be one must not cost the snapshot
        self._make = make
        self._store = store
        self._key = storage_key
        self._send = send
        self._last: list[Outbound] = []
        self._machine = make()
        self._session = self._machine.config_digest
        if store.knows(self._session):
            stored = store.take(self._session)
            self._last = self._machine.restore(storage_key, stored.blob, sequence=stored.sequence)
            self._keep()
            self.resend()

    @property
    def machine(self) -> M:
        """The machine as it is now, to be read. Calls that change it belong into :meth:`step`."""
        return self._machine

    def step(self, act: Callable[[M], Iterable[Outbound | Event]]) -> list[Event]:
        """One call of the machine, stored before any frame of it is sent.

        Args:
            act: the call, for example ``lambda machine: machine.receive(frame, sender)``. If it
                makes several and one raises, the frames of those before are lost.

        Returns:
            The events.

        Raises:
            SecureFLError: what the call raised, after its state was stored and its Abort sent.
        """
        refusal: SecureFLError | None = None
        try:
            out: Sequence[Outbound | Event] = list(act(self._machine))
        except SecureFLError as error:
            refusal, out = error, getattr(error, "outbound", ())
        frames = [item for item in out if isinstance(item, Outbound)]
        self._last = frames or self._last
        self._keep()
        for item in frames:
            self._send(item)
        if refusal is not None:
            raise refusal
        return [item for item in out if not isinstance(item, Outbound)]

    def resend(self) -> None:
        """Sends the last frames again; whoever has them already ignores them."""
        for item in self._last:
            self._send(item)

    def _keep(self) -> None:
        """Stores the state and goes on from the very bytes that a restart would find."""
        blob = self._machine.snapshot(self._key, SECRETS, outbound=self._last)
        sequence = read_header(blob).sequence
        self._store.put(self._session, sequence, blob)
        self._machine = self._make()
        self._machine.restore(self._key, blob, sequence=sequence)
