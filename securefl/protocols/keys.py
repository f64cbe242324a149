"""The derivations that all protocols with a server share, each with its own usage label.

Bonawitz et al. 2017 with the session bound into every key: the session id is recomputed by every
client from the configuration and the roster it saw, so a server cannot make two sessions share a
key, and two clients that saw different rosters cannot understand each other. Labels carry the
protocol's number, so no two protocols share a key either. Everything here is a pure function of its
arguments; a protocol adds its own derivations in its own ``keys`` module.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from securefl.primitives.channel import derive, open_sealed, seal_once, sha256
from securefl.round import ClientId, Protocol, Usage, dst

__all__ = ["MerkleTree", "SessionKeys", "audit_root"]

_U32 = struct.Struct("<I")
_IDS = struct.Struct("<II")


class MerkleTree:
    """Merkle tree of RFC 6962, section 2.1, with the audit path of every leaf.

    Attributes:
        root: 32 bytes.
    """

    __slots__ = ("_levels", "root")

    def __init__(self, leaves: Sequence[bytes]) -> None:
        level = [sha256(b"\x00" + leaf) for leaf in leaves]
        self._levels = [level]
        while len(level) > 1:
            # Pairing from the left and carrying an odd last node up equals the RFC's recursive
            # split at the largest power of two.
            paired = [
                sha256(b"\x01" + a + b) for a, b in zip(level[::2], level[1::2], strict=False)
            ]
            level = paired + level[len(paired) * 2 :]
            self._levels.append(level)
        self.root = level[0] if level else sha256()

    def path(self, index: int) -> tuple[bytes, ...]:
        """The siblings from leaf ``index`` up to the root, 32 bytes each."""
        siblings = []
        for level in self._levels[:-1]:
            if index ^ 1 < len(level):
                siblings.append(level[index ^ 1])
            index >>= 1
        return tuple(siblings)


def audit_root(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that this path leads to from a leaf; None if its length does not fit the tree.

    Args:
        leaf: the leaf's content.
        index: its place, 0 <= index < size.
        size: leaves in the tree.
        path: siblings, from the leaf upwards.
    """
    # Every client checks some hundred nodes: the function itself, without a layer around it.
    node = hashlib.sha256(b"\x00" + leaf).digest()
    used = 0
    while size > 1:
        if index ^ 1 < size:
            if used == len(path):
                return None
            pair = path[used] + node if index & 1 else node + path[used]
            node = hashlib.sha256(b"\x01" + pair).digest()
            used += 1
        index >>= 1
        size = (size + 1) >> 1
    return node if used == len(path) else None


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The derivations of one protocol.

    Attributes:
        protocol: its number is part of every label.
    """

    protocol: Protocol

    def roster_leaf(self, entry: bytes) -> bytes:
        """Content of a leaf of the roster's tree: dst(2) ‖ entry."""
        return dst(Usage.ROSTER_LEAF, self.protocol) + entry

    def roster_tree(self, entries: Sequence[bytes]) -> MerkleTree:
        """Tree over the roster's entries, U1 ascending."""
        return MerkleTree([self.roster_leaf(entry) for entry in entries])

    def session_id(self, config_digest: bytes, size: int, roster_root: bytes) -> bytes:
        """SHA-256(dst(3), config_digest, u32 #U1, roster_root).

        The count is there because an RFC 6962 root alone does not fix the size of its tree.
        """
        label = dst(Usage.SESSION_ID, self.protocol)
        return sha256(label, config_digest, _U32.pack(size), roster_root)

    def channel_key(
        self, agreed: bytes, session: bytes, sender: ClientId, recipient: ClientId
    ) -> bytes:
        """Key of the one message from sender to recipient; ``agreed`` = X25519(c_u, c_v)."""
        info = dst(Usage.CHANNEL_KEY, self.protocol) + _IDS.pack(sender, recipient)
        return derive(agreed, salt=session, info=info, length=32)

    def _aad(self, session: bytes, sender: ClientId, recipient: ClientId) -> bytes:
        return dst(Usage.CHANNEL_DATA, self.protocol) + session + _IDS.pack(sender, recipient)

    def seal_shares(
        self, agreed: bytes, session: bytes, sender: ClientId, recipient: ClientId, plaintext: bytes
    ) -> bytes:
        """The shares for one recipient, encrypted and bound to session, sender and recipient."""
        key = self.channel_key(agreed, session, sender, recipient)
        return seal_once(key, plaintext, self._aad(session, sender, recipient))

    def open_shares(
        self, key: bytes, session: bytes, sender: ClientId, recipient: ClientId, ciphertext: bytes
    ) -> bytes:
        """Opens what :func:`seal_shares` made; ``key`` from :func:`channel_key`.

        Raises:
            Unopenable: if it was made for another session, sender, recipient, or changed.
        """
        return open_sealed(key, ciphertext, self._aad(session, sender, recipient))

    def survivor_statement(self, session: bytes, survivors: bytes) -> bytes:
        """What a survivor signature signs: dst(9), session id, bitmap of U3 over the cohort."""
        return dst(Usage.SURVIVOR_SIGNATURE, self.protocol) + session + survivors

    def frame_statement(self, recipient: ClientId, content: bytes) -> bytes:
        """What a frame signature signs: dst(10), u32 recipient, header and body."""
        return dst(Usage.FRAME_SIGNATURE, self.protocol) + _U32.pack(recipient) + content
