"""Keys and ciphertexts of python-paillier (phe), both ways.

phe is licensed under the GPL-3.0. It is imported inside the functions that need it and nowhere
else; a program that you distribute *together with phe* falls under the GPL, SecureFL alone does
not. The JWK functions follow the key files of phe's command line tool and need no phe.

What cannot come in: phe's float encoding writes an exponent beside every ciphertext, in clear,
which tells everyone the magnitude of the number. :func:`from_phe` accepts one exponent, declared
by the caller, for all numbers.
"""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Sequence
from typing import Any

from securefl.errors import ConfigurationError, WireError
from securefl.primitives.paillier.block import are_ciphertexts
from securefl.primitives.paillier.keys import MIN_BITS, PublicKey, SecretKey

__all__ = [
    "from_phe",
    "from_phe_secret_key",
    "public_from_jwk",
    "secret_from_jwk",
    "signed",
    "to_phe",
    "to_phe_public_key",
    "to_phe_secret_key",
]


def _phe() -> Any:  # Any: phe ships no type information
    try:
        return importlib.import_module("phe")
    except ImportError:
        raise ConfigurationError(
            "phe is not installed: install the extra 'phe' (GPL-3.0; see the README)"
        ) from None


def to_phe_public_key(public: PublicKey) -> Any:
    """The same key as a ``phe.PaillierPublicKey``."""
    return _phe().PaillierPublicKey(public.n)


def to_phe_secret_key(secret: SecretKey) -> Any:
    """The same key as a ``phe.PaillierPrivateKey``."""
    return _phe().PaillierPrivateKey(to_phe_public_key(secret.public), *secret.primes())


def from_phe_secret_key(key: Any, *, min_bits: int = MIN_BITS) -> SecretKey:
    """A ``phe.PaillierPrivateKey`` as ours, after full validation.

    Raises:
        ConfigurationError: if the key is refused (phe itself accepts 64-bit keys).
    """
    return SecretKey.from_numbers(int(key.p), int(key.q), min_bits=min_bits)


def to_phe(public: PublicKey, ciphertexts: Sequence[int]) -> list[Any]:
    """Our ciphertexts of degree 1 as ``phe.EncryptedNumber`` with exponent 0.

    A packed plaintext is read with ``private_key.raw_decrypt(x.ciphertext(be_secure=False))``:
    phe's ``decrypt`` takes values above n/3 for negative or invalid numbers.

    Raises:
        ConfigurationError: if a number is no ciphertext of degree 1 under this key; phe would open
            it all the same, to something else.
    """
    phe = _phe()
    if not are_ciphertexts(ciphertexts, public.degree(1)):
        raise ConfigurationError("a number is no ciphertext of degree 1 under this key")
    key = phe.PaillierPublicKey(public.n)
    return [phe.EncryptedNumber(key, int(c), 0) for c in ciphertexts]


def from_phe(public: PublicKey, numbers: Sequence[Any], *, exponent: int) -> tuple[int, ...]:
    """Encrypted numbers of phe as ciphertexts of degree 1, one value per ciphertext.

    Args:
        public: the key they must be under.
        numbers: ``phe.EncryptedNumber``.
        exponent: the one exponent that every number must have (see the module's docstring).

    Raises:
        ConfigurationError: on another key, another exponent, or a number that is no ciphertext.
    """
    if any(x.public_key.n != public.n for x in numbers):
        raise ConfigurationError("a number is encrypted under another key")
    found = {int(x.exponent) for x in numbers}
    if not found <= {exponent}:
        raise ConfigurationError(
            f"every number must have the exponent {exponent}, found {sorted(found)}: exponents "
            "travel in clear and reveal magnitudes; encode with one fixed precision"
        )
    ciphertexts = tuple(int(x.ciphertext(be_secure=False)) for x in numbers)
    if not are_ciphertexts(ciphertexts, public.degree(1)):
        raise ConfigurationError("a number is no ciphertext under this key")
    return ciphertexts


def signed(public: PublicKey, plaintext: int) -> int:
    """A plaintext as phe reads it: above n/2 it is negative."""
    return plaintext - public.n if plaintext > public.n // 2 else plaintext


def _decode(value: object) -> int:
    if not isinstance(value, str):
        raise WireError("a number of a key file must be base64url text")
    try:
        raw = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
    except ValueError:
        raise WireError("a number of a key file is no base64url text") from None
    return int.from_bytes(raw, "big")


def _object(text: str, kind: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # the message could quote a secret key file
        raise WireError(f"a {kind} key file is no JSON, or holds bare or nested numbers") from None
    if not isinstance(found, dict) or found.get("kty") != "DAJ":
        raise WireError(f'a {kind} key file must be a JSON object with "kty": "DAJ"')
    return found


def public_from_jwk(text: str, *, min_bits: int = MIN_BITS) -> PublicKey:
    """Reads a public key file of phe's command line tool (``pheutil extract``).

    Raises:
        WireError: on malformed text.
        ConfigurationError: if the key is refused.
    """
    found = _object(text, "public")
    if found.get("alg") != "PAI-GN1":
        raise WireError('a public key file must have "alg": "PAI-GN1"')
    return PublicKey.from_numbers(_decode(found.get("n")), min_bits=min_bits)


def secret_from_jwk(text: str, *, min_bits: int = MIN_BITS) -> SecretKey:
    """Reads a private key file of phe's command line tool (``pheutil genpkey``).

    Raises:
        WireError: on malformed text.
        ConfigurationError: if the key is refused.
    """
    found = _object(text, "private")
    return SecretKey.from_numbers(
        _decode(found.get("p")), _decode(found.get("q")), min_bits=min_bits
    )
