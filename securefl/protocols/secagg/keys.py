"""The key schedule: what is derived from what, each with its own usage label.

Bonawitz et al. 2017. What all protocols with a server derive stands in
:mod:`securefl.protocols.keys`; here are the keys of pairwise and own masks. Labels carry the
protocol's number, so SecAgg and SecAgg+ share no key. Everything here is a pure function of its
arguments.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from securefl.primitives.channel import derive, sha256
from securefl.primitives.prg import KEY_BYTES
from securefl.protocols.keys import MerkleTree, SessionKeys, audit_root
from securefl.round import ClientId, Usage, dst

__all__ = ["SEED_BYTES", "KeySchedule", "MerkleTree", "audit_root"]

SEED_BYTES = 16
"""Length of b_u, the self-mask seed of client u (Bonawitz et al. 2017, section 4)."""

_U32 = struct.Struct("<I")
_IDS = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class KeySchedule(SessionKeys):
    """All derivations of SecAgg or SecAgg+."""

    def pair_mask_info(self, u: ClientId, v: ClientId) -> bytes:
        """HKDF info of the pair's mask key: the same from both sides."""
        return dst(Usage.PAIR_MASK, self.protocol) + _IDS.pack(min(u, v), max(u, v))

    def pair_mask_key(self, agreed: bytes, session: bytes, u: ClientId, v: ClientId) -> bytes:
        """PRG key of the mask that u and v cancel; ``agreed`` = X25519(s_u, s_v)."""
        return derive(agreed, salt=session, info=self.pair_mask_info(u, v), length=KEY_BYTES)

    def self_mask_info(self, u: ClientId) -> bytes:
        """HKDF info of the self-mask key."""
        return dst(Usage.SELF_MASK, self.protocol) + _U32.pack(u)

    def self_mask_key(self, b_u: bytes, session: bytes, u: ClientId) -> bytes:
        """PRG key of u's own mask, from its seed b_u."""
        return derive(b_u, salt=session, info=self.self_mask_info(u), length=KEY_BYTES)

    def seed_commitment(self, config_digest: bytes, u: ClientId, c_pk: bytes, b_u: bytes) -> bytes:
        """What u publishes of b_u before anybody knows the roster; 16 random bytes hide in it."""
        return sha256(
            dst(Usage.SEED_COMMITMENT, self.protocol), config_digest, _U32.pack(u), c_pk, b_u
        )
