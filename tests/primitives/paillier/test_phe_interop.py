"""Keys and ciphertexts of python-paillier, both ways (skipped where phe is not installed)."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from securefl.errors import ConfigurationError, WireError
from securefl.primitives import phe_interop
from securefl.primitives.paillier import Encryptor, SecretKey, SlotLayout


@pytest.fixture(scope="module")
def phe() -> object:
    return pytest.importorskip("phe", reason="the extra 'phe' is not installed")


def test_a_stock_phe_key_opens_our_packed_ciphertexts(phe: object, small_key: SecretKey) -> None:
    layout = SlotLayout(bound=127, max_clients=4)
    encryptor = Encryptor(small_key.public, window=4)
    values = np.arange(-50, 50)
    slots = layout.slots(encryptor.degree)
    sealed = encryptor.encrypt(layout.pack(values, slots))
    stock = phe_interop.to_phe_secret_key(small_key)
    numbers = phe_interop.to_phe(small_key.public, sealed.ciphertexts)
    opened = [int(stock.raw_decrypt(x.ciphertext(be_secure=False))) for x in numbers]
    assert layout.unpack(opened, count=1, dimension=100, slots=slots).tolist() == values.tolist()


def test_we_open_what_phe_encrypted_and_added(phe: object, small_key: SecretKey) -> None:
    stock = phe_interop.to_phe_public_key(small_key.public)
    numbers = [stock.encrypt(5) + stock.encrypt(-8), stock.encrypt(3) * 4]
    ciphertexts = phe_interop.from_phe(small_key.public, numbers, exponent=0)
    opened = [phe_interop.signed(small_key.public, small_key.decrypt(c)) for c in ciphertexts]
    assert opened == [-3, 12]


def test_phes_own_key_pairs_work_as_ours(phe: object) -> None:
    public, private = phe.paillier.generate_paillier_keypair(n_length=512)  # type: ignore[attr-defined]  # phe ships no type information
    ours = phe_interop.from_phe_secret_key(private, min_bits=512)
    assert ours.public.n == public.n
    (c,) = Encryptor(ours.public, window=4).encrypt([77]).ciphertexts
    assert private.raw_decrypt(c) == 77
    with pytest.raises(ConfigurationError, match="2048"):
        phe_interop.from_phe_secret_key(private)


def test_exponents_that_travel_in_clear_are_refused(phe: object, small_key: SecretKey) -> None:
    stock = phe_interop.to_phe_public_key(small_key.public)
    numbers = [stock.encrypt(1e-9), stock.encrypt(1000.5)]
    # The leak itself: small and large numbers carry different exponents, visible to everyone.
    assert numbers[0].exponent != numbers[1].exponent
    with pytest.raises(ConfigurationError, match="reveal magnitudes"):
        phe_interop.from_phe(small_key.public, numbers, exponent=numbers[0].exponent)


def test_numbers_under_another_key_are_refused(
    phe: object, small_key: SecretKey, other_key: SecretKey
) -> None:
    stock = phe_interop.to_phe_public_key(other_key.public)
    with pytest.raises(ConfigurationError, match="another key"):
        phe_interop.from_phe(small_key.public, [stock.encrypt(1)], exponent=0)


def test_a_number_that_is_no_ciphertext_is_refused(phe: object, small_key: SecretKey) -> None:
    stock = phe_interop.to_phe_public_key(small_key.public)
    bad = phe.EncryptedNumber(stock, small_key.public.n, 0)  # type: ignore[attr-defined]  # phe ships no type information
    with pytest.raises(ConfigurationError, match="no ciphertext"):
        phe_interop.from_phe(small_key.public, [bad], exponent=0)


def encode(number: int) -> str:
    raw = number.to_bytes(-(-number.bit_length() // 8), "big")
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def test_key_files_of_phes_command_line_tool_are_read(small_key: SecretKey) -> None:
    p, q = small_key.primes()
    public = {"kty": "DAJ", "alg": "PAI-GN1", "n": encode(p * q), "key_ops": ["encrypt"]}
    private = {"kty": "DAJ", "p": encode(p), "q": encode(q), "pub": public}
    assert phe_interop.public_from_jwk(json.dumps(public), min_bits=512) == small_key.public
    read = phe_interop.secret_from_jwk(json.dumps(private), min_bits=512)
    assert read.primes() == small_key.primes()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kty": "RSA"}', '{"kty": "DAJ", "alg": "PAI-GN1", "n": 5}']
)
def test_malformed_key_files_are_refused(text: str) -> None:
    with pytest.raises(WireError):
        phe_interop.public_from_jwk(text)
    with pytest.raises(WireError):
        phe_interop.secret_from_jwk(text)


def test_base64_noise_is_refused() -> None:
    for noise in ("ä", "!!!!a", "A"):
        with pytest.raises((WireError, ConfigurationError)):
            phe_interop.public_from_jwk(json.dumps({"kty": "DAJ", "alg": "PAI-GN1", "n": noise}))


def test_bare_or_nested_numbers_in_a_key_file_are_refused_without_quoting_it() -> None:
    long = "7" * 5000
    for text in ('{"kty": "DAJ", "p": %s}' % long, "[" * 200_000):  # noqa: UP031  # braces
        with pytest.raises(WireError) as caught:
            phe_interop.secret_from_jwk(text)
        assert "777" not in str(caught.value)
        assert caught.value.__suppress_context__
