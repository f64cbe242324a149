"""A machine's state in bytes that can be stored: what all protocols' snapshots have in common.

A snapshot is secret and single-use. A client that went on from an old state would answer a second
request, or sign a second list of survivors; so taking one consumes the machine, each carries a
sequence number that is bound to its bytes, and who goes on from it says which number it expects.
Bytes: ``dst(13)``, u32 role, session (the configuration's digest, 32), u32 sequence, all of which
is authenticated, then nonce, ciphertext and tag (:mod:`securefl.primitives.at_rest`). This module
knows no machine's fields, and cannot know which sequence number is the newest: that is the business
of :class:`securefl.restart.SnapshotStore`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from securefl.errors import LocalProtocolError, SnapshotError, WireError
from securefl.primitives.at_rest import OVERHEAD_BYTES, open_stored, seal_stored
from securefl.primitives.channel import Unopenable
from securefl.protocols.machine import Outbound
from securefl.round import SERVER, ClientId, Cohort, Usage, dst
from securefl.round import Protocol as WireProtocol
from securefl.wire import Reader, pack_bitmap

__all__ = [
    "MAX_SEQUENCE",
    "SECRETS",
    "AllowSecrets",
    "Restartable",
    "SecretsToken",
    "SnapshotHeader",
    "StateReader",
    "StateWriter",
    "open_snapshot",
    "read_header",
    "seal_snapshot",
]

MAX_SEQUENCE = 0xFFFFFFFF
_HEADER = struct.Struct("<8sI32sI")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class AllowSecrets(Enum):
    """The type of the token :data:`SECRETS`; it has no other value."""

    SECRETS = "the caller keeps these bytes as it keeps a private key"


SecretsToken: TypeAlias = Literal[AllowSecrets.SECRETS]
SECRETS: Final = AllowSecrets.SECRETS
"""Says, where it can be searched for, that the result of a call holds secrets."""


class Restartable(Protocol):
    """A machine of either side whose process may restart between two messages."""

    @property
    def config_digest(self) -> bytes:
        """What names the session from its first moment; 32 bytes."""

    def snapshot(
        self,
        storage_key: bytes,
        allow_secrets: SecretsToken,
        *,
        outbound: Sequence[Outbound] = (),
    ) -> bytes:
        """The state, encrypted; the machine cannot be used any more."""

    def restore(self, storage_key: bytes, blob: bytes, *, sequence: int) -> list[Outbound]:
        """Takes the state over, into a fresh machine; returns the frames to send again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotHeader:
    """What a snapshot belongs to. It stands in clear before the ciphertext, and is authenticated.

    Attributes:
        protocol: whose machine.
        role: a client's id, or the server's reserved one.
        session: the configuration's digest, 32 bytes.
        sequence: 1 for a machine's first snapshot, then one more each time.
    """

    protocol: WireProtocol
    role: ClientId
    session: bytes
    sequence: int

    def encode(self) -> bytes:
        """48 bytes: dst(13), u32 role, session, u32 sequence."""
        label = dst(Usage.STATE_EXPORT, self.protocol)
        return _HEADER.pack(label, self.role, self.session, self.sequence)


def read_header(blob: bytes) -> SnapshotHeader:
    """The header in front of a snapshot. Nothing is authenticated yet.

    Raises:
        SnapshotError: if the bytes are no snapshot of this library.
    """
    if len(blob) < _HEADER.size + OVERHEAD_BYTES:
        raise SnapshotError(f"a snapshot of {len(blob)} bytes is cut short")
    label, role, session, sequence = _HEADER.unpack_from(blob)
    for protocol in WireProtocol:
        if label == dst(Usage.STATE_EXPORT, protocol):
            return SnapshotHeader(
                protocol=protocol, role=ClientId(role), session=session, sequence=sequence
            )
    raise SnapshotError("these bytes are no snapshot of this version of the library")


def seal_snapshot(
    storage_key: bytes, allow_secrets: object, header: SnapshotHeader, state: bytes
) -> bytes:
    """The stored form of a state.

    Raises:
        TypeError: without the token.
        ConfigurationError: if the storage key is not 32 bytes.
        LocalProtocolError: after 2^32 - 1 snapshots of one machine.
    """
    if allow_secrets is not SECRETS:
        raise TypeError(
            "a snapshot holds the session's secrets: say allow_secrets=SECRETS "
            "(securefl.protocols.snapshot) and keep it like a private key"
        )
    if header.sequence > MAX_SEQUENCE:
        raise LocalProtocolError("the sequence numbers of this machine's snapshots are used up")
    raw = header.encode()
    return raw + seal_stored(storage_key, state, raw)


def open_snapshot(storage_key: bytes, blob: bytes, expected: SnapshotHeader) -> bytes:
    """The state in a snapshot.

    Args:
        storage_key: 32 bytes.
        blob: from :func:`seal_snapshot`.
        expected: whose it must be, and which.

    Raises:
        SnapshotError: for another protocol, role, session or sequence number, a wrong key, or if
            a single bit was changed.
        ConfigurationError: if the storage key is not 32 bytes.
    """
    found = read_header(blob)
    if found.sequence != expected.sequence:
        raise SnapshotError(
            f"snapshot {found.sequence} where {expected.sequence} was expected: "
            "going on from another one could answer twice"
        )
    if found != expected:
        raise SnapshotError(
            f"a snapshot of {_who(found.role)} in {found.protocol.name} session "
            f"{found.session.hex()[:16]}, expected {_who(expected.role)} in "
            f"{expected.protocol.name} session {expected.session.hex()[:16]}"
        )
    raw = expected.encode()
    try:
        return open_stored(storage_key, blob[len(raw) :], raw)
    except Unopenable:
        raise SnapshotError(
            "the snapshot does not open: another storage key, or changed bytes"
        ) from None


def _who(role: ClientId) -> str:
    return "the server" if role == SERVER else f"client {role}"


class StateWriter:
    """Collects a state's fields in order; :class:`StateReader` reads them in the same order."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def raw(self, value: bytes) -> None:
        """Bytes whose length the reader knows."""
        self._parts.append(value)

    def u8(self, value: int) -> None:
        """One byte."""
        self.raw(bytes([value]))

    def u32(self, value: int) -> None:
        """Four bytes."""
        self.raw(_U32.pack(value))

    def block(self, value: bytes) -> None:
        """Bytes with their length (u64) in front."""
        self.raw(_U64.pack(len(value)))
        self.raw(value)

    def optional(self, value: bytes | None) -> None:
        """A flag, then the bytes if they are there."""
        self.u8(value is not None)
        self.raw(value or b"")

    def ids(self, members: Sequence[ClientId]) -> None:
        """A count and u32 ids."""
        self.u32(len(members))
        self.raw(np.array(members, dtype="<u4").tobytes())

    def bits(self, values: NDArray[np.bool_] | None) -> None:
        """A flag, then a bitmap whose length the reader knows."""
        self.optional(None if values is None else pack_bitmap(values))

    def outbound(self, frames: Sequence[Outbound]) -> None:
        """Frames to send again, with their recipients; one that many get (a roster) stands once."""
        places = {frame: i for i, frame in enumerate(dict.fromkeys(f.frame for f in frames))}
        self.u32(len(places))
        for frame in places:
            self.block(frame)
        self.u32(len(frames))
        for item in frames:
            self.u32(item.recipient)
            self.u32(places[item.frame])

    def finish(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)


class StateReader:
    """Reads a state's fields; every length is checked before anything of it is taken.

    Raises:
        WireError: by every method, for what the writer does not write.
    """

    __slots__ = ("_reader",)

    def __init__(self, state: bytes) -> None:
        self._reader = Reader(state)

    def raw(self, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        return bytes(self._reader.take(size))

    def u8(self) -> int:
        """One byte."""
        return self.raw(1)[0]

    def flag(self) -> bool:
        """One byte, 0 or 1."""
        value = self.u8()
        if value > 1:
            raise WireError(f"a flag of a snapshot is {value}")
        return value == 1

    def u32(self) -> int:
        """Four bytes."""
        return self._reader.u32()

    def count(self, most: int) -> int:
        """Four bytes that announce at most ``most`` things."""
        found = self.u32()
        if found > most:
            raise WireError(f"a snapshot announces {found} entries, at most {most} are possible")
        return found

    def block(self, most: int) -> bytes:
        """Bytes that know their length, at most ``most``."""
        (size,) = _U64.unpack(self.raw(8))
        if size > most:
            raise WireError(f"a snapshot announces {size} bytes, at most {most} are possible")
        return self.raw(size)

    def optional(self, size: int) -> bytes | None:
        """``size`` bytes or None."""
        return self.raw(size) if self.flag() else None

    def client(self, cohort: Cohort) -> ClientId:
        """A member of the cohort."""
        u = ClientId(self.u32())
        if u not in cohort:
            raise WireError(f"a snapshot names client {u}, who is not in the cohort")
        return u

    def ids(self, cohort: Cohort) -> tuple[ClientId, ...]:
        """Members of the cohort, each at most once."""
        found = tuple(self.client(cohort) for _ in range(self.count(len(cohort))))
        if len(set(found)) != len(found):
            raise WireError("a snapshot names one client twice")
        return found

    def bits(self, size: int) -> NDArray[np.bool_] | None:
        """A bitmap of ``size`` bits or None."""
        return self._reader.bitmap(size) if self.flag() else None

    def outbound(self, most: int, largest: int) -> list[Outbound]:
        """At most ``most`` frames of at most ``largest`` bytes."""
        different = [self.block(largest) for _ in range(self.count(most))]
        found = []
        for _ in range(self.count(most)):
            recipient, place = ClientId(self.u32()), self.u32()
            if place >= len(different):
                raise WireError(f"a snapshot sends frame {place} of {len(different)}")
            found.append(Outbound(recipient=recipient, frame=different[place]))
        return found

    def finish(self) -> None:
        """Raises WireError if bytes are left over."""
        self._reader.finish()
