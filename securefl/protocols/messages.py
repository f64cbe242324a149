"""Bodies of the messages that several protocols have: one frozen class, one encoding each.

Who survived, who signed that list, and the early end of a session. Decoders
take from the session what the layout depends on and raise WireError for everything that the encoder
does not write. This module knows no keys and makes no decisions.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefl.errors import WireError
from securefl.protocols.machine import Reason
from securefl.round import ClientId
from securefl.wire import SIGNATURE_BYTES, Buffer, Reader, pack_bitmap

__all__ = ["Abort", "SignedUnmaskRequest", "SurvivorNotice", "SurvivorSignature"]

_U32 = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivorNotice:
    """Server to client (active): who is in U3, over the whole cohort, the same for everybody."""

    alive: NDArray[np.bool_]

    def encode(self) -> bytes:
        """⌈n/8⌉ bytes."""
        return pack_bitmap(self.alive)

    @classmethod
    def decode(cls, body: Buffer, *, n: int) -> SurvivorNotice:
        """Inverse of encode for a cohort of n; else WireError."""
        reader = Reader(body)
        alive = reader.bitmap(n)
        reader.finish()
        return cls(alive=alive)


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivorSignature:
    """Client to server (active): its signature over the one list of survivors it agrees to."""

    signature: bytes

    def encode(self) -> bytes:
        """64 bytes."""
        return self.signature

    @classmethod
    def decode(cls, body: Buffer) -> SurvivorSignature:
        """Inverse of encode; WireError on any other length."""
        reader = Reader(body)
        signature = bytes(reader.take(SIGNATURE_BYTES))
        reader.finish()
        return cls(signature=signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedUnmaskRequest:
    """Server to client (active): signatures of its peers over the list that it signed itself."""

    signatures: tuple[tuple[ClientId, bytes], ...]

    def encode(self) -> bytes:
        """4 + 68 · count bytes."""
        signed = b"".join(_U32.pack(v) + signature for v, signature in self.signatures)
        return _U32.pack(len(self.signatures)) + signed

    @classmethod
    def decode(cls, body: Buffer, *, most: int) -> SignedUnmaskRequest:
        """Inverse of encode; WireError for more than ``most`` signatures or another length."""
        reader = Reader(body)
        count = reader.u32()
        if count > most:
            raise WireError(f"{count} signatures, at most {most} are possible")
        signatures = tuple(
            (ClientId(reader.u32()), bytes(reader.take(SIGNATURE_BYTES))) for _ in range(count)
        )
        reader.finish()
        return cls(signatures=signatures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Either way: the sender has given up."""

    reason: Reason

    def encode(self) -> bytes:
        """2 bytes."""
        return int(self.reason).to_bytes(2, "little")

    @classmethod
    def decode(cls, body: Buffer) -> Abort:
        """Inverse of encode; WireError for an unknown reason."""
        reader = Reader(body)
        number = reader.u16()
        reader.finish()
        try:
            return cls(reason=Reason(number))
        except ValueError:
            raise WireError(f"unknown abort reason {number}") from None
