"""Bodies of the messages between peers, one frozen class each, with one encoding each.

Binary layouts as in docs/reference/wire-format.md. All bitmaps are over the whole cohort. Decoders
take from the session what the layout depends on and raise WireError for everything that the encoder
does not write. The early end is :class:`securefl.protocols.messages.Abort`. This module knows no
keys and makes no decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from securefl.errors import WireError
from securefl.primitives.channel import TAG_BYTES
from securefl.primitives.sharing import parse_share_words
from securefl.protocols.peersum.transitions import MessageType
from securefl.wire import SIGNATURE_BYTES, Buffer, Reader, pack_bitmap

__all__ = [
    "AdvertiseKeys",
    "Confirm",
    "Message",
    "Report",
    "RevealSum",
    "ShareInput",
    "decode_elements",
    "decode_message",
    "encode_elements",
    "message_type",
    "sealed_bytes",
]


def message_type(number: int) -> MessageType:
    """The type with this number. Raises WireError if there is none."""
    try:
        return MessageType(number)
    except ValueError:
        raise WireError(f"unknown message type {number}") from None


def sealed_bytes(m: int) -> int:
    """Length of m encrypted field elements: 4m and a tag."""
    return 4 * m + TAG_BYTES


def encode_elements(values: NDArray[np.uint32]) -> bytes:
    """Field elements as u32 little-endian each: what is inside a ciphertext."""
    return values.astype("<u4", copy=False).tobytes()


def decode_elements(data: bytes) -> NDArray[np.uint32]:
    """Inverse of encode_elements; WireError if a value is not below p."""
    return parse_share_words(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvertiseKeys:
    """The session's public channel key."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareInput:
    """The recipient's encrypted share of the sender's input."""

    ciphertext: bytes

    def encode(self) -> bytes:
        """4m + 16 bytes."""
        return self.ciphertext

    @classmethod
    def decode(cls, body: Buffer, *, m: int) -> ShareInput:
        """Inverse of encode; WireError on any other length."""
        reader = Reader(body)
        ciphertext = bytes(reader.take(sealed_bytes(m)))
        reader.finish()
        return cls(ciphertext=ciphertext)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Whose shares the sender holds, its own input included; bool[n]."""

    dealers: NDArray[np.bool_]

    def encode(self) -> bytes:
        """⌈n/8⌉ bytes."""
        return pack_bitmap(self.dealers)

    @classmethod
    def decode(cls, body: Buffer, *, n: int) -> Report:
        """Inverse of encode for a cohort of n; else WireError."""
        reader = Reader(body)
        dealers = reader.bitmap(n)
        reader.finish()
        return cls(dealers=dealers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """The one survivor list that the sender agrees to, bool[n], and its signature on it."""

    alive: NDArray[np.bool_]
    signature: bytes

    def encode(self) -> bytes:
        """⌈n/8⌉ + 64 bytes."""
        return pack_bitmap(self.alive) + self.signature

    @classmethod
    def decode(cls, body: Buffer, *, n: int) -> Confirm:
        """Inverse of encode for a cohort of n; else WireError."""
        reader = Reader(body)
        alive = reader.bitmap(n)
        signature = bytes(reader.take(SIGNATURE_BYTES))
        reader.finish()
        return cls(alive=alive, signature=signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class RevealSum:
    """The sender's sum of shares over a list, encrypted, and everybody's signatures on that list.

    Attributes:
        alive: the list, bool[n].
        signers: who signed it, as far as the sender knows, bool[n].
        signatures: theirs, in cohort order, 64 bytes each.
        ciphertext: 4m + 16 bytes.
    """

    alive: NDArray[np.bool_]
    signers: NDArray[np.bool_]
    signatures: tuple[bytes, ...]
    ciphertext: bytes

    def encode(self) -> bytes:
        """2⌈n/8⌉ + 64 · signers + 4m + 16 bytes."""
        lists = pack_bitmap(self.alive) + pack_bitmap(self.signers)
        return b"".join((lists, *self.signatures, self.ciphertext))

    @classmethod
    def decode(cls, body: Buffer, *, n: int, m: int) -> RevealSum:
        """Inverse of encode for a cohort of n and m entries; else WireError."""
        reader = Reader(body)
        alive, signers = reader.bitmap(n), reader.bitmap(n)
        count = int(signers.sum())
        signatures = tuple(bytes(reader.take(SIGNATURE_BYTES)) for _ in range(count))
        ciphertext = bytes(reader.take(sealed_bytes(m)))
        reader.finish()
        return cls(alive=alive, signers=signers, signatures=signatures, ciphertext=ciphertext)


Message: TypeAlias = AdvertiseKeys | ShareInput | Report | Confirm | RevealSum


def decode_message(kind: MessageType, body: Buffer, *, n: int, m: int) -> Message:
    """The message of this type, but for ABORT, in a session of n peers and m entries.

    Raises:
        WireError: for a body that no such message has.
    """
    match kind:
        case MessageType.ADVERTISE_KEYS:
            return AdvertiseKeys.decode(body)
        case MessageType.SHARE_INPUT:
            return ShareInput.decode(body, m=m)
        case MessageType.REPORT:
            return Report.decode(body, n=n)
        case MessageType.CONFIRM:
            return Confirm.decode(body, n=n)
        case MessageType.REVEAL_SUM:
            return RevealSum.decode(body, n=n, m=m)
        case MessageType.ABORT:
            raise WireError("an ABORT is no message of a phase")
