"""Key agreement and the one-message channel: X25519, HKDF-SHA256, AES-256-GCM.

Bonawitz et al. 2017, section 3.1 (key agreement) and 3.2 (authenticated encryption). The channel's
nonce is constant, which is safe for exactly one reason: a channel key belongs to one direction of
one pair in one session and encrypts one message. This module does not know who talks to whom; the
caller puts ids and session into the derivation (``info``) and the additional data.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from securefl.errors import SecureFLError

__all__ = [
    "TAG_BYTES",
    "AgreementKey",
    "DegenerateKey",
    "PublicKey",
    "Unopenable",
    "derive",
    "open_sealed",
    "public_key",
    "seal_once",
    "sha256",
]

TAG_BYTES = 16
_NONCE = bytes(12)
_FIELD = (1 << 255) - 19


class DegenerateKey(SecureFLError):
    """A public key of small order, whose secrets everybody knows, or a second way to write one.

    X25519 ignores the top bit of a public key and reduces the rest modulo p = 2^255 - 19 (RFC 7748,
    section 5), so somebody else's key could be passed on in other bytes and not be recognised.
    """


_SHA256 = hashes.SHA256()


class Unopenable(SecureFLError):
    """A ciphertext that was not made under this key for this context."""


def sha256(*parts: bytes) -> bytes:
    """SHA-256 of the parts joined; the caller's formats make the joints unambiguous."""
    state = hashlib.sha256(*parts[:1])  # one call in place of two, which is most of a short hash
    for part in parts[1:]:
        state.update(part)
    return state.digest()


class PublicKey:
    """A parsed X25519 public key; parsing costs, so it is done once per key.

    Attributes:
        raw: the 32 bytes it came from.

    Raises:
        DegenerateKey: if they are not below p, as those of every library's own keys are.
    """

    __slots__ = ("_key", "raw")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != 32:
            raise ValueError(f"an X25519 public key has 32 bytes, found {len(raw)}")
        if int.from_bytes(raw, "little") >= _FIELD:
            raise DegenerateKey("a public key that is not reduced: another spelling of some key")
        self.raw = raw
        self._key = X25519PublicKey.from_public_bytes(raw)


@lru_cache(maxsize=1 << 12)
def public_key(raw: bytes) -> PublicKey:
    """A :class:`PublicKey`, kept: whoever plays many clients parses every key once for all of them.

    Raises:
        DegenerateKey: as the class.
    """
    return PublicKey(raw)


class AgreementKey:
    """An X25519 private key. Its repr shows nothing and it cannot be pickled.

    Attributes:
        public: the 32 bytes to publish.
    """

    __slots__ = ("_key", "public")

    def __init__(self, secret: bytes) -> None:
        """``secret``: 32 random bytes (clamped as RFC 7748, section 5, says)."""
        if len(secret) != 32:
            raise ValueError(f"an X25519 private key has 32 bytes, found {len(secret)}")
        self._key = X25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    def agree(self, peer: PublicKey) -> bytes:
        """X25519(this key, peer): 32 bytes, to be used only as HKDF input.

        Raises:
            DegenerateKey: if the result is all zero (RFC 7748, section 6.1).
        """
        try:
            return self._key.exchange(peer._key)
        except ValueError:
            raise DegenerateKey("a public key of small order: it agrees on nothing") from None

    def secret(self) -> bytes:
        """The 32 bytes it was made from: for a snapshot of the session, and for nothing else."""
        return self._key.private_bytes_raw()

    def __repr__(self) -> str:
        return "AgreementKey(<secret>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key cannot be pickled or copied")


def derive(ikm: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869): ``length`` bytes bound to ``salt`` and ``info``."""
    return HKDF(algorithm=_SHA256, length=length, salt=salt, info=info).derive(ikm)


def seal_once(key: bytes, plaintext: bytes, aad: bytes) -> bytes:
    """AES-256-GCM under the zero nonce: ciphertext and 16-byte tag.

    Never call it twice with one key: two messages under one nonce give both away.
    """
    if len(key) != 32:
        raise ValueError(f"a channel key has 32 bytes, found {len(key)}")
    return AESGCM(key).encrypt(_NONCE, plaintext, aad)


def open_sealed(key: bytes, ciphertext: bytes, aad: bytes) -> bytes:
    """Inverse of :func:`seal_once`.

    Raises:
        Unopenable: if key, additional data or a single bit differs.
    """
    try:
        return AESGCM(key).decrypt(_NONCE, ciphertext, aad)
    except InvalidTag:
        raise Unopenable("the ciphertext does not open under this key and context") from None
