"""The key schedule of LightSecAgg: the shared one, and the key that a mask is expanded from.

What all protocols with a server derive stands in :mod:`securefl.protocols.keys`. A client's mask
and the noise that hides its shares come from one fresh 16-byte seed, which never leaves the client.
Everything here is a pure function of its arguments.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from securefl.primitives.channel import derive
from securefl.primitives.prg import KEY_BYTES
from securefl.protocols.keys import SessionKeys
from securefl.round import ClientId, Usage, dst

__all__ = ["SEED_BYTES", "KeySchedule"]

SEED_BYTES = 16
"""Length of the seed of a client's mask and noise."""

_U32 = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class KeySchedule(SessionKeys):
    """All derivations of LightSecAgg."""

    def expansion_key(self, seed: bytes, session: bytes, u: ClientId) -> bytes:
        """PRG key of u's mask and noise: HKDF(seed, salt session id, info dst(14), u)."""
        info = dst(Usage.LOCAL_EXPANSION, self.protocol) + _U32.pack(u)
        return derive(seed, salt=session, info=info, length=KEY_BYTES)
