"""Identities: Ed25519 signatures (RFC 8032), and the directory that says whose key is whose.

Bonawitz et al. 2017, section 6.2, needs a public key infrastructure against a server that lies:
without it a server plays all other clients. How keys get into the directory (an administrator, a
device attestation, a meeting) is outside this library, and whoever fills it is trusted to list
each real participant once. This module does not know what is signed; callers put a usage label
into every message, so that no signature can serve as another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn

from cryptography.exceptions import InvalidSignature as _Invalid
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from securefl.errors import ConfigurationError, SecureFLError
from securefl.primitives.channel import derive
from securefl.round import ClientId

__all__ = ["BadSignature", "IdentityDirectory", "IdentityKey"]


class BadSignature(SecureFLError):
    """A signature that this author did not make over this message."""


class IdentityKey:
    """An Ed25519 private key. Its repr shows nothing and it cannot be pickled.

    Args:
        secret: 32 random bytes (the seed of RFC 8032, section 5.1.5).

    Attributes:
        public: the 32 bytes for the directory.
    """

    __slots__ = ("_key", "public")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise ValueError(f"an Ed25519 private key has 32 bytes, found {len(secret)}")
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64 bytes; deterministic."""
        return self._key.sign(message)

    def derived_key(self, info: bytes) -> bytes:
        """HKDF-SHA256 of the seed, 32 bytes: a key for this owner's own storage.

        Args:
            info: a usage label, so that no two uses share a key.
        """
        return derive(self._key.private_bytes_raw(), salt=b"", info=info, length=32)

    def __repr__(self) -> str:
        return "IdentityKey(<secret>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key cannot be pickled or copied")

    def __getstate__(self) -> NoReturn:
        self.__reduce__()


class IdentityDirectory:
    """Who is who: one Ed25519 public key per client, from a source that the server cannot change.

    Args:
        public_keys: 32 bytes per client id.

    Raises:
        ConfigurationError: for bytes that are no key, or one key under two ids: its owner would
            count twice.
    """

    __slots__ = ("_keys", "_raw")

    def __init__(self, public_keys: Mapping[ClientId, bytes]) -> None:
        self._raw = dict(public_keys)
        owner: dict[bytes, ClientId] = {}
        for u, raw in self._raw.items():
            if raw in owner:
                raise ConfigurationError(f"clients {owner[raw]} and {u} have one identity key")
            owner[raw] = u
        try:
            self._keys = {u: Ed25519PublicKey.from_public_bytes(k) for u, k in self._raw.items()}
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"an identity key is not 32 bytes: {error}") from None

    def public(self, u: ClientId) -> bytes:
        """U's key, 32 bytes. Raises KeyError if u is not listed."""
        return self._raw[u]

    def verify(self, u: ClientId, signature: bytes, message: bytes) -> None:
        """Checks that u signed the message.

        Raises:
            BadSignature: if not, or if u is not listed.
        """
        key = self._keys.get(u)
        if key is None:
            raise BadSignature(f"client {u} is not in the directory of identities")
        try:
            key.verify(signature, message)
        except _Invalid:
            raise BadSignature(f"the signature is not client {u}'s") from None

    def __contains__(self, u: object) -> bool:
        return u in self._keys

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
