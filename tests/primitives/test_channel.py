"""Key agreement, derivation and the one-message channel."""

from __future__ import annotations

import copy
import hashlib
import hmac
import os
import pickle

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from securefl.primitives.channel import (
    AgreementKey,
    DegenerateKey,
    PublicKey,
    Unopenable,
    derive,
    open_sealed,
    seal_once,
    sha256,
)

# Points of small order on Curve25519 and its twist: https://cr.yp.to/ecdh.html#validate
SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def test_agreement_gives_the_answer_of_rfc_7748() -> None:
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    agreed = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert AgreementKey(scalar).agree(PublicKey(point)).hex() == agreed


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_both_sides_agree(a: bytes, b: bytes) -> None:
    alice, bob = AgreementKey(a), AgreementKey(b)
    assert alice.agree(PublicKey(bob.public)) == bob.agree(PublicKey(alice.public))


@given(st.binary(min_size=32, max_size=32))
def test_a_key_has_one_spelling(secret: bytes) -> None:
    """X25519 ignores the top bit and reduces modulo p; two spellings would pass for two keys."""
    own, peer = AgreementKey(os.urandom(32)), AgreementKey(secret).public
    assert PublicKey(peer).raw == peer
    respelled = peer[:31] + bytes([peer[31] | 0x80])
    theirs = X25519PublicKey.from_public_bytes(respelled)
    assert X25519PrivateKey.from_private_bytes(own.secret()).exchange(theirs) == own.agree(
        PublicKey(peer)
    )
    with pytest.raises(DegenerateKey, match="spelling"):
        PublicKey(respelled)


@pytest.mark.parametrize("low", range(19))
def test_a_key_that_is_not_reduced_is_refused(low: int) -> None:
    p = 2**255 - 19
    with pytest.raises(DegenerateKey, match="spelling"):
        PublicKey((p + low).to_bytes(32, "little"))
    PublicKey((p - 2 - low).to_bytes(32, "little"))


@pytest.mark.parametrize("raw", SMALL_ORDER)
def test_a_key_of_small_order_is_refused(raw: str) -> None:
    with pytest.raises(DegenerateKey):
        AgreementKey(os.urandom(32)).agree(PublicKey(bytes.fromhex(raw)))


@given(st.binary(min_size=1, max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_derivation_is_hkdf_of_rfc_5869(ikm: bytes, salt: bytes, info: bytes) -> None:
    prk = hmac.digest(salt or bytes(32), ikm, "sha256")
    first = hmac.digest(prk, info + b"\1", "sha256")
    second = hmac.digest(prk, first + info + b"\2", "sha256")
    assert derive(ikm, salt=salt, info=info, length=16) == first[:16]
    assert derive(ikm, salt=salt, info=info, length=40) == (first + second)[:40]


@given(st.binary(max_size=80), st.binary(max_size=40), st.data())
def test_a_sealed_message_opens_only_unchanged(
    plaintext: bytes, aad: bytes, data: st.DataObject
) -> None:
    key = bytes(range(32))
    sealed = seal_once(key, plaintext, aad)
    assert len(sealed) == len(plaintext) + 16
    assert open_sealed(key, sealed, aad) == plaintext
    broken = bytearray(sealed)
    broken[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    for wrong in (
        (key, bytes(broken), aad),
        (key, sealed, aad + b"x"),
        (key[::-1], sealed, aad),
        (key, sealed[:-1], aad),
        (key, b"", aad),
    ):
        with pytest.raises(Unopenable):
            open_sealed(*wrong)


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        AgreementKey(bytes(31))
    with pytest.raises(ValueError, match="32 bytes"):
        PublicKey(bytes(33))
    with pytest.raises(ValueError, match="32 bytes"):
        seal_once(bytes(16), b"", b"")


def test_private_keys_can_be_neither_shown_nor_copied() -> None:
    key = AgreementKey(bytes(range(32)))
    assert repr(key) == "AgreementKey(<secret>)"
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            copier(key)


def test_sha256_joins_its_parts() -> None:
    assert sha256(b"ab", b"", b"c") == hashlib.sha256(b"abc").digest()
