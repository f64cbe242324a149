"""Bodies of the messages, one frozen class each, with one encoding each.

So et al. 2022, algorithm 1, with binary layouts (docs/reference/wire-format.md). ``P`` are a
client's peers in the roster, ascending; L is the length of a coded share. Decoders take from the
session what the layout depends on and raise WireError for everything that the encoder does not
write. Notice, signature and abort are those of :mod:`securefl.protocols.messages`.
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
from securefl.protocols.lightsecagg.transitions import MessageType
from securefl.protocols.messages import SurvivorNotice
from securefl.round import ClientId
from securefl.wire import SIGNATURE_BYTES, Buffer, Reader

__all__ = [
    "AdvertiseKeys",
    "EncodedShare",
    "EncodedShares",
    "KeyRoster",
    "RecoveryRequest",
    "RosterEntry",
    "ShareClose",
    "decode_elements",
    "encode_elements",
    "message_type",
    "share_bytes",
]

_U32 = struct.Struct("<I")
ENTRY_BYTES = 36


def message_type(number: int) -> MessageType:
    """The type with this number. Raises WireError if there is none."""
    try:
        return MessageType(number)
    except ValueError:
        raise WireError(f"unknown message type {number}") from None


def share_bytes(L: int) -> int:
    """Length of an encrypted coded share: L field elements and a tag."""
    return 4 * L + TAG_BYTES


def encode_elements(values: NDArray[np.uint32]) -> bytes:
    """Field elements as u32 little-endian each: the body of MaskedInput and AggregateShare."""
    return values.astype("<u4", copy=False).tobytes()


def decode_elements(body: Buffer, *, count: int) -> NDArray[np.uint32]:
    """Inverse of encode_elements, uint32[count] (a view); WireError if a value is not below p."""
    if len(body) != 4 * count:
        raise WireError(f"{count} field elements are {4 * count} bytes, found {len(body)}")
    return parse_share_words(memoryview(body))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvertiseKeys:
    """Client to server: the session's public channel key."""

    c_pk: bytes

    def encode(self) -> bytes:
        """32 bytes."""
        return self.c_pk

    @classmethod
    def decode(cls, body: Buffer) -> AdvertiseKeys:
        """Inverse of encode; WireError on any other length."""
        reader = Reader(body)
        c_pk = bytes(reader.take(32))
        reader.finish()
        return cls(c_pk=c_pk)


class RosterEntry(NamedTuple):
    """One member of U1 as the others see it.

    Attributes:
        client, c_pk: who, and its public key.
        signature: of its signed AdvertiseKeys frame (active), so that everybody can rebuild and
            verify that frame; empty in semi-honest sessions.
    """

    client: ClientId
    c_pk: bytes
    signature: bytes = b""

    def encode(self) -> bytes:
        """36 bytes (active 100); also the leaf of the roster's Merkle tree."""
        return _U32.pack(self.client) + self.c_pk + self.signature

    @classmethod
    def read(cls, reader: Reader, *, signed: bool) -> RosterEntry:
        """The next entry; WireError if it is cut short."""
        raw = bytes(reader.take(ENTRY_BYTES + (SIGNATURE_BYTES if signed else 0)))
        return cls(ClientId(_U32.unpack_from(raw)[0]), raw[4:36], raw[36:])


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRoster:
    """Server to client: the keys of U1."""

    entries: tuple[RosterEntry, ...]

    def encode(self) -> bytes:
        """4 + 36 · count bytes (active 100)."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedShares:
    """Client to server: one encrypted coded share per member of P, in P's order."""

    ciphertexts: Sequence[Buffer]

    def encode(self) -> bytes:
        """4 + #P (4L + 16) bytes."""
        return b"".join((_U32.pack(len(self.ciphertexts)), *self.ciphertexts))

    @classmethod
    def decode(cls, body: Buffer, *, peers: int, L: int) -> EncodedShares:
        """Inverse of encode (views, no copies); WireError unless they are exactly ``peers``."""
        reader = Reader(body)
        count = reader.u32()
        if count != peers:
            raise WireError(f"shares for {count} peers, expected {peers}")
        ciphertexts = [reader.take(share_bytes(L)) for _ in range(count)]
        reader.finish()
        return cls(ciphertexts=ciphertexts)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedShare:
    """Server to client: one dealer's encrypted coded share for this client."""

    dealer: ClientId
    ciphertext: Buffer

    def encode(self) -> bytes:
        """4 + 4L + 16 bytes."""
        return b"".join((_U32.pack(self.dealer), self.ciphertext))

    @classmethod
    def decode(cls, body: Buffer, *, L: int) -> EncodedShare:
        """Inverse of encode; WireError on any other length."""
        reader = Reader(body)
        dealer = ClientId(reader.u32())
        ciphertext = bytes(reader.take(share_bytes(L)))
        reader.finish()
        return cls(dealer=dealer, ciphertext=ciphertext)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareClose(SurvivorNotice):
    """Server to client: who dealt shares in time, U2, over the whole cohort."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryRequest(SurvivorNotice):
    """Server to client (semi-honest): whose inputs are in the sum, U3, over the whole cohort."""
