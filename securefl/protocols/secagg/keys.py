"""The key schedule: what is derived from what, each with its own usage label.

Bonawitz et al. 2017 with the session bound into every key: the session id is recomputed by every
client from the configuration and the roster it saw, so a server cannot make two sessions share a
key, and two clients that saw different rosters cannot understand each other. Everything here is a
pure function of its arguments.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from securefl.primitives.channel import derive, open_sealed, seal_once, sha256
from securefl.primitives.prg import KEY_BYTES
from securefl.round import ClientId, Protocol, Usage, dst

__all__ = [
    "SEED_BYTES",
    "channel_key",
    "merkle_root",
    "open_shares",
    "pair_mask_info",
    "pair_mask_key",
    "roster_root",
    "seal_shares",
    "seed_commitment",
    "self_mask_info",
    "self_mask_key",
    "session_id",
]

SEED_BYTES = 16
"""Length of b_u, the self-mask seed of client u (Bonawitz et al. 2017, section 4)."""

_P = Protocol.SECAGG
_U32 = struct.Struct("<I")
_IDS = struct.Struct("<II")


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Merkle tree hash of RFC 6962, section 2.1; 32 bytes."""
    if not leaves:
        return sha256()
    level = [sha256(b"\x00", leaf) for leaf in leaves]
    while len(level) > 1:
        # Pairing from the left and carrying an odd last node up equals the RFC's recursive split
        # at the largest power of two.
        paired = [sha256(b"\x01", a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


def roster_root(entries: Sequence[bytes]) -> bytes:
    """Root over the roster's entries, U1 ascending, leaves dst(2) ‖ entry."""
    label = dst(Usage.ROSTER_LEAF, _P)
    return merkle_root([label + entry for entry in entries])


def session_id(config_digest: bytes, entries: Sequence[bytes]) -> bytes:
    """SHA-256(dst(3), config_digest, u32 #U1, roster_root).

    The count is there because an RFC 6962 root alone does not fix the size of its tree.
    """
    return sha256(
        dst(Usage.SESSION_ID, _P), config_digest, _U32.pack(len(entries)), roster_root(entries)
    )


def pair_mask_info(u: ClientId, v: ClientId) -> bytes:
    """HKDF info of the pair's mask key: the same from both sides."""
    return dst(Usage.PAIR_MASK, _P) + _IDS.pack(min(u, v), max(u, v))


def pair_mask_key(agreed: bytes, session: bytes, u: ClientId, v: ClientId) -> bytes:
    """PRG key of the mask that u and v cancel; ``agreed`` = X25519(s_u, s_v)."""
    return derive(agreed, salt=session, info=pair_mask_info(u, v), length=KEY_BYTES)


def self_mask_info(u: ClientId) -> bytes:
    """HKDF info of the self-mask key."""
    return dst(Usage.SELF_MASK, _P) + _U32.pack(u)


def self_mask_key(b_u: bytes, session: bytes, u: ClientId) -> bytes:
    """PRG key of u's own mask, from its seed b_u."""
    return derive(b_u, salt=session, info=self_mask_info(u), length=KEY_BYTES)


def seed_commitment(config_digest: bytes, u: ClientId, c_pk: bytes, b_u: bytes) -> bytes:
    """What u publishes of b_u before anybody knows the roster; 16 random bytes hide in it."""
    return sha256(dst(Usage.SEED_COMMITMENT, _P), config_digest, _U32.pack(u), c_pk, b_u)


def channel_key(agreed: bytes, session: bytes, sender: ClientId, recipient: ClientId) -> bytes:
    """Key of the one message from sender to recipient; ``agreed`` = X25519(c_u, c_v)."""
    info = dst(Usage.CHANNEL_KEY, _P) + _IDS.pack(sender, recipient)
    return derive(agreed, salt=session, info=info, length=32)


def _aad(session: bytes, sender: ClientId, recipient: ClientId) -> bytes:
    return dst(Usage.CHANNEL_DATA, _P) + session + _IDS.pack(sender, recipient)


def seal_shares(
    agreed: bytes, session: bytes, sender: ClientId, recipient: ClientId, plaintext: bytes
) -> bytes:
    """The shares for one recipient, encrypted and bound to session, sender and recipient."""
    key = channel_key(agreed, session, sender, recipient)
    return seal_once(key, plaintext, _aad(session, sender, recipient))


def open_shares(
    key: bytes, session: bytes, sender: ClientId, recipient: ClientId, ciphertext: bytes
) -> bytes:
    """Opens what :func:`seal_shares` made; ``key`` from :func:`channel_key`.

    Raises:
        Unopenable: if it was made for another session, sender, recipient, or changed.
    """
    return open_sealed(key, ciphertext, _aad(session, sender, recipient))
