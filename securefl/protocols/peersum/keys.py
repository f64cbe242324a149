"""The key schedule between peers: two directional channels per pair, and what is signed.

There is no roster that everybody saw, so the configuration's digest names the session and every
channel key also covers both public keys of its pair: a key agreed in another run of the same
configuration is another key. A signature on a survivor list covers the public keys of everybody on
it for the same reason. Everything here is a pure function of its arguments.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from securefl.primitives.channel import derive, open_sealed, seal_once
from securefl.primitives.prg import KEY_BYTES
from securefl.round import ClientId, Protocol, Usage, dst

__all__ = ["SEED_BYTES", "Channel", "KeySchedule"]

SEED_BYTES = 16
"""Length of the seed of a dealer's coefficients."""

_U32 = struct.Struct("<I")
_IDS = struct.Struct("<II")
_PROTOCOL = Protocol.PEERSUM


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One message from one peer to another: what its key and its additional data depend on.

    Attributes:
        session: the configuration's digest.
        sender, recipient: the two peers.
        sender_key, recipient_key: their public channel keys, 32 bytes each.
    """

    session: bytes
    sender: ClientId
    recipient: ClientId
    sender_key: bytes
    recipient_key: bytes

    def _info(self, usage: Usage) -> bytes:
        ids = _IDS.pack(self.sender, self.recipient)
        return dst(usage, _PROTOCOL) + ids + self.sender_key + self.recipient_key

    def _key(self, agreed: bytes, usage: Usage) -> bytes:
        return derive(agreed, salt=self.session, info=self._info(usage), length=32)

    def _aad(self, usage: Usage, what: bytes) -> bytes:
        ids = _IDS.pack(self.sender, self.recipient)
        return dst(usage, _PROTOCOL) + self.session + ids + what

    def seal_share(self, agreed: bytes, share: bytes) -> bytes:
        """The recipient's share; ``agreed`` = X25519 of both keys."""
        key = self._key(agreed, Usage.CHANNEL_KEY)
        return seal_once(key, share, self._aad(Usage.CHANNEL_DATA, b""))

    def open_share(self, agreed: bytes, ciphertext: bytes) -> bytes:
        """Inverse of :meth:`seal_share`. Raises Unopenable for anything else."""
        key = self._key(agreed, Usage.CHANNEL_KEY)
        return open_sealed(key, ciphertext, self._aad(Usage.CHANNEL_DATA, b""))

    def seal_sum(self, agreed: bytes, total: bytes, survivors: bytes) -> bytes:
        """The sender's sum of shares over the list with this bitmap."""
        key = self._key(agreed, Usage.PEERSUM_REVEAL)
        return seal_once(key, total, self._aad(Usage.PEERSUM_REVEAL, survivors))

    def open_sum(self, agreed: bytes, ciphertext: bytes, survivors: bytes) -> bytes:
        """Inverse of :meth:`seal_sum`. Raises Unopenable for anything else."""
        key = self._key(agreed, Usage.PEERSUM_REVEAL)
        return open_sealed(key, ciphertext, self._aad(Usage.PEERSUM_REVEAL, survivors))


class KeySchedule:
    """The derivations that belong to no pair."""

    @staticmethod
    def expansion_key(seed: bytes, session: bytes, u: ClientId) -> bytes:
        """PRG key of u's coefficients: HKDF(seed, salt session, info dst(14), u)."""
        info = dst(Usage.LOCAL_EXPANSION, _PROTOCOL) + _U32.pack(u)
        return derive(seed, salt=session, info=info, length=KEY_BYTES)

    @staticmethod
    def survivor_statement(session: bytes, survivors: bytes, keys: Sequence[bytes]) -> bytes:
        """What a survivor signature signs: dst(9), session, bitmap, the survivors' keys ascending.

        Args:
            session: the configuration's digest.
            survivors: bitmap over the cohort.
            keys: public channel keys of those on it, in cohort order.
        """
        label = dst(Usage.SURVIVOR_SIGNATURE, _PROTOCOL)
        return b"".join((label, session, survivors, *keys))

    @staticmethod
    def frame_statement(recipient: ClientId, content: bytes) -> bytes:
        """What a frame signature signs: dst(10), u32 recipient, header and body."""
        return dst(Usage.FRAME_SIGNATURE, _PROTOCOL) + _U32.pack(recipient) + content
