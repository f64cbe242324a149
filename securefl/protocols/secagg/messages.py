"""Bodies of the messages, one frozen class each, with one encoding each.

Bonawitz et al. 2017, figure 4, with binary layouts (docs/reference/wire-format.md). ``P`` are a
client's peers in the roster, ascending; ``Q`` those of them in U2. Decoders take from the session
what the layout depends on and raise WireError for everything that the encoder does not write. The
answer to an unmask request states per peer *whether* a share follows; *which* of the two kinds
follows from the one survivor list, so "both secrets of one client" cannot be written.
This module knows no keys and makes no decisions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from securefl.errors import WireError
from securefl.primitives.channel import TAG_BYTES
from securefl.primitives.sharing import parse_share_words
from securefl.protocols.messages import (
    Abort,
    SignedUnmaskRequest,
    SurvivorNotice,
    SurvivorSignature,
)
from securefl.protocols.secagg.transitions import MessageType
from securefl.round import MAX_COHORT, ClientId
from securefl.wire import SIGNATURE_BYTES, Buffer, Reader, pack_bitmap

__all__ = [
    "B_WORDS",
    "CIPHERTEXT_BYTES",
    "S_WORDS",
    "Abort",
    "AdvertiseKeys",
    "EncryptedShares",
    "KeyRoster",
    "NeighbourRoster",
    "ProvenEntry",
    "RosterEntry",
    "ShareDelivery",
    "SignedUnmaskRequest",
    "SurvivorNotice",
    "SurvivorSignature",
    "UnmaskRequest",
    "UnmaskShares",
    "message_type",
]

B_WORDS = 5
"""Field elements in a share of b_u (16 bytes)."""
S_WORDS = 9
"""Field elements in a share of s_sk (32 bytes)."""
SHARES_BYTES = 4 * (B_WORDS + S_WORDS)
CIPHERTEXT_BYTES = SHARES_BYTES + TAG_BYTES

_U32 = struct.Struct("<I")
ENTRY_BYTES = 68
SIGNED_ENTRY_BYTES = ENTRY_BYTES + 32 + SIGNATURE_BYTES
_DEEPEST = (MAX_COHORT - 1).bit_length()


def message_type(number: int) -> MessageType:
    """The type with this number. Raises WireError if there is none."""
    try:
        return MessageType(number)
    except ValueError:
        raise WireError(f"unknown message type {number}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvertiseKeys:
    """Client to server: the session's public keys, and a commitment to b_u."""

    c_pk: bytes
    s_pk: bytes
    commitment: bytes

    def encode(self) -> bytes:
        """96 bytes."""
        return self.c_pk + self.s_pk + self.commitment

    @classmethod
    def decode(cls, body: Buffer) -> AdvertiseKeys:
        """Inverse of encode; WireError on any other length."""
        reader = Reader(body)
        c_pk, s_pk, commitment = (bytes(reader.take(32)) for _ in range(3))
        reader.finish()
        return cls(c_pk=c_pk, s_pk=s_pk, commitment=commitment)


class RosterEntry(NamedTuple):
    """One member of U1 as the others see it.

    Attributes:
        client, c_pk, s_pk: who, and its public keys.
        commitment, signature: of its signed AdvertiseKeys frame (active), so that everybody can
            rebuild and verify that frame; empty in semi-honest sessions.
    """

    client: ClientId
    c_pk: bytes
    s_pk: bytes
    commitment: bytes = b""
    signature: bytes = b""

    def encode(self) -> bytes:
        """68 bytes (active 164); also the leaf of the roster's Merkle tree."""
        return _U32.pack(self.client) + self.c_pk + self.s_pk + self.commitment + self.signature

    @classmethod
    def read(cls, reader: Reader, *, signed: bool) -> RosterEntry:
        """The next entry; WireError if it is cut short."""
        raw = bytes(reader.take(SIGNED_ENTRY_BYTES if signed else ENTRY_BYTES))
        client = ClientId(_U32.unpack_from(raw)[0])
        return cls(client, raw[4:36], raw[36:68], raw[68:100], raw[100:])


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRoster:
    """Server to client: the keys of U1 (complete graph)."""

    entries: tuple[RosterEntry, ...]

    def encode(self) -> bytes:
        """4 + 68 · count bytes (active 164)."""
        return _U32.pack(len(self.entries)) + b"".join(e.encode() for e in self.entries)

    @classmethod
    def decode(cls, body: Buffer, *, most: int, signed: bool = False) -> KeyRoster:
        """Inverse of encode; WireError for more than ``most`` entries or another length."""
        reader = Reader(body)
        count = reader.u32()
        if count > most:
            raise WireError(f"a roster of {count} entries, at most {most} are possible")
        entries = tuple(RosterEntry.read(reader, signed=signed) for _ in range(count))
        reader.finish()
        return cls(entries=entries)


class ProvenEntry(NamedTuple):
    """A roster entry with the proof that it is in the roster.

    Attributes:
        entry: the keys.
        place: its index in U1.
        path: its audit path, 32 bytes per sibling, from the leaf upwards.
    """

    entry: RosterEntry
    place: int
    path: tuple[bytes, ...]

    def encode(self) -> bytes:
        """73 + 32 · len bytes (active 169)."""
        head = self.entry.encode() + _U32.pack(self.place) + bytes([len(self.path)])
        return head + b"".join(self.path)

    @classmethod
    def read(cls, reader: Reader, *, signed: bool) -> ProvenEntry:
        """The next entry; WireError if it is cut short or its path longer than any tree's."""
        entry = RosterEntry.read(reader, signed=signed)
        place = reader.u32()
        (length,) = reader.take(1)
        if length > _DEEPEST:
            raise WireError(f"an audit path of {length} nodes, at most {_DEEPEST} are possible")
        nodes = bytes(reader.take(32 * length))
        return cls(entry, place, tuple(nodes[i : i + 32] for i in range(0, len(nodes), 32)))


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourRoster:
    """Server to client: the keys of the client and its neighbours in U1 (Harary graph).

    Attributes:
        size: of U1.
        root: of the Merkle tree over all of U1's entries.
        entries: ascending, the client's own among them.
    """

    size: int
    root: bytes
    entries: tuple[ProvenEntry, ...]

    def encode(self) -> bytes:
        """40 + (73 + 32 · len) · count bytes (active 169)."""
        head = _U32.pack(self.size) + self.root + _U32.pack(len(self.entries))
        return head + b"".join(e.encode() for e in self.entries)

    @classmethod
    def decode(cls, body: Buffer, *, most: int, signed: bool = False) -> NeighbourRoster:
        """Inverse of encode; WireError for more than ``most`` entries or another length."""
        reader = Reader(body)
        size = reader.u32()
        root = bytes(reader.take(32))
        count = reader.u32()
        if count > most:
            raise WireError(f"a roster of {count} entries, at most {most} are possible")
        entries = tuple(ProvenEntry.read(reader, signed=signed) for _ in range(count))
        reader.finish()
        return cls(size=size, root=root, entries=entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptedShares:
    """Client to server: one ciphertext per member of P, in P's order."""

    ciphertexts: tuple[bytes, ...]

    def encode(self) -> bytes:
        """4 + 72 · #P bytes."""
        return _U32.pack(len(self.ciphertexts)) + b"".join(self.ciphertexts)

    @staticmethod
    def decode(body: Buffer, *, peers: int) -> NDArray[np.uint8]:
        """The ciphertexts as uint8[#P, 72]; WireError unless they are exactly ``peers``."""
        reader = Reader(body)
        count = reader.u32()
        if count != peers:
            raise WireError(f"shares for {count} peers, expected {peers}")
        raw = reader.take(count * CIPHERTEXT_BYTES)
        reader.finish()
        return np.frombuffer(raw, dtype=np.uint8).reshape(count, CIPHERTEXT_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareDelivery:
    """Server to client: who of P is in U2, and their ciphertexts for this client."""

    present: NDArray[np.bool_]
    ciphertexts: Sequence[bytes]

    def encode(self) -> bytes:
        """⌈#P/8⌉ + 72 · #Q bytes."""
        return pack_bitmap(self.present) + b"".join(self.ciphertexts)

    @classmethod
    def decode(cls, body: Buffer, *, peers: int) -> ShareDelivery:
        """Inverse of encode for #P = ``peers``; else WireError."""
        reader = Reader(body)
        present = reader.bitmap(peers)
        ciphertexts = [bytes(reader.take(CIPHERTEXT_BYTES)) for _ in range(int(present.sum()))]
        reader.finish()
        return cls(present=present, ciphertexts=ciphertexts)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmaskRequest:
    """Server to client (semi-honest): the size of U3, and who of P is in it."""

    size: int
    alive: NDArray[np.bool_]

    def encode(self) -> bytes:
        """4 + ⌈#P/8⌉ bytes."""
        return _U32.pack(self.size) + pack_bitmap(self.alive)

    @classmethod
    def decode(cls, body: Buffer, *, peers: int) -> UnmaskRequest:
        """Inverse of encode for #P = ``peers``; else WireError."""
        reader = Reader(body)
        size = reader.u32()
        alive = reader.bitmap(peers)
        reader.finish()
        return cls(size=size, alive=alive)


def _kinds(readable: NDArray[np.bool_], alive: NDArray[np.bool_]) -> tuple[NDArray[np.intp], ...]:
    """Word offsets of the b-shares and of the s-shares behind the bitmap, and their total."""
    is_b = alive[readable]
    widths = np.where(is_b, B_WORDS, S_WORDS)
    ends = np.cumsum(widths)
    starts = ends - widths
    total = ends[-1:] if ends.size else np.zeros(1, dtype=np.intp)
    return starts[is_b], starts[~is_b], total


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmaskShares:
    """Client to server: for each readable dealer of Q one share, of the kind U3 decides.

    Attributes:
        readable: bool[#Q], whose shares follow.
        own: uint32[5], the share of the own seed (layout ``ALL`` only), else None.
        b_shares: uint32[a, 5], for the readable members of U3, ascending.
        s_shares: uint32[d, 9], for the readable others, ascending.
    """

    readable: NDArray[np.bool_]
    own: NDArray[np.uint32] | None
    b_shares: NDArray[np.uint32]
    s_shares: NDArray[np.uint32]

    def encode(self, *, alive: NDArray[np.bool_]) -> bytes:
        """⌈#Q/8⌉ + 20a + 36d bytes, plus 20 if there is an own share.

        Args:
            alive: bool[#Q], who of Q is in U3.
        """
        b_at, s_at, total = _kinds(self.readable, alive)
        words = np.zeros(int(total[0]), dtype="<u4")
        words[b_at.reshape(-1, 1) + np.arange(B_WORDS)] = self.b_shares
        words[s_at.reshape(-1, 1) + np.arange(S_WORDS)] = self.s_shares
        own = b"" if self.own is None else self.own.astype("<u4").tobytes()
        return pack_bitmap(self.readable) + own + words.tobytes()

    @classmethod
    def decode(cls, body: Buffer, *, alive: NDArray[np.bool_], own: bool) -> UnmaskShares:
        """Inverse of encode; WireError on another length or a share word not below p."""
        reader = Reader(body)
        readable = reader.bitmap(len(alive))
        own_share = parse_share_words(reader.take(4 * B_WORDS)) if own else None
        b_at, s_at, total = _kinds(readable, alive)
        words = parse_share_words(reader.take(4 * int(total[0])))
        reader.finish()
        return cls(
            readable=readable,
            own=own_share,
            b_shares=words[b_at.reshape(-1, 1) + np.arange(B_WORDS)],
            s_shares=words[s_at.reshape(-1, 1) + np.arange(S_WORDS)],
        )

    def __repr__(self) -> str:
        return f"UnmaskShares(<{int(self.readable.sum())} secret shares>)"
