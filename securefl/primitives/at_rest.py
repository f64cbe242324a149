"""Secrets on a disk: AES-256-GCM under a key that lives as long as its owner.

NIST SP 800-38D with random 96-bit nonces (section 8.2.2). Unlike the channel's key, a storage key
encrypts many messages, so each gets a nonce of its own; after 2^32 of them under one key the chance
of a repeat would no longer be negligible. This module does not know what is stored, and not whether
it is the newest: the caller puts names and sequence numbers into the additional data, and keeps
count of them elsewhere.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from securefl.errors import ConfigurationError
from securefl.primitives.channel import TAG_BYTES, Unopenable

__all__ = ["OVERHEAD_BYTES", "STORAGE_KEY_BYTES", "open_stored", "seal_stored"]

STORAGE_KEY_BYTES = 32
_NONCE_BYTES = 12
OVERHEAD_BYTES = _NONCE_BYTES + TAG_BYTES
"""How much longer the sealed bytes are than what they hide."""


def _cipher(key: bytes) -> AESGCM:
    if not isinstance(key, bytes) or len(key) != STORAGE_KEY_BYTES:
        raise ConfigurationError(
            f"a storage key is {STORAGE_KEY_BYTES} random bytes; make one with os.urandom and keep "
            "it where the snapshots are not"
        )
    return AESGCM(key)


def seal_stored(key: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """Nonce (12 bytes), ciphertext and tag (16 bytes).

    Args:
        key: 32 random bytes.
        plaintext: what to hide.
        aad: what it belongs to; not in the result, needed to open it.

    Raises:
        ConfigurationError: if the key has another length.
    """
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + _cipher(key).encrypt(nonce, plaintext, aad)


def open_stored(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """Inverse of :func:`seal_stored`.

    Raises:
        ConfigurationError: if the key has another length.
        Unopenable: if key, additional data or a single bit differs, or the bytes are cut short.
    """
    cipher = _cipher(key)
    if len(sealed) < OVERHEAD_BYTES:
        raise Unopenable(f"sealed bytes are at least {OVERHEAD_BYTES}, found {len(sealed)}")
    try:
        return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], aad)
    except InvalidTag:
        raise Unopenable("the stored bytes do not open under this key and context") from None
