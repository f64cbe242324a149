"""Keys and ciphertexts of python-paillier, both ways (skipped where phe is not installed)."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from securefl.errors import ConfigurationError, WireError
from securefl.primitives import phe_interop
from securefl.primitives.paillier import Encryptor, SecretKey, SlotLayout
from securefl.primitives.paillier.block import HEADER_BYTES, Block, BlockMode
from securefl.primitives.paillier.knowledge import prove_knowledge, verify_knowledge
from securefl.primitives.paillier.threshold import KeyShare, ThresholdPublicKey


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


def test_a_key_file_of_another_kind_is_refused_although_its_numbers_would_do(
    small_key: SecretKey,
) -> None:
    p, q = small_key.primes()
    public = {"kty": "DAJ", "alg": "PAI-GN1", "n": encode(p * q)}
    private = {"kty": "DAJ", "p": encode(p), "q": encode(q)}
    for change in ({"kty": "RSA"}, {"kty": None}, {"alg": "RS256"}, {"alg": None}):
        with pytest.raises(WireError):
            phe_interop.public_from_jwk(json.dumps({**public, **change}), min_bits=512)
    for kty in ("RSA", None):
        with pytest.raises(WireError):
            phe_interop.secret_from_jwk(json.dumps({**private, "kty": kty}), min_bits=512)


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


def test_ciphertexts_of_another_degree_do_not_go_out(phe: object, small_key: SecretKey) -> None:
    sealed = Encryptor(small_key.public, 2, window=4).encrypt([7])
    with pytest.raises(ConfigurationError, match="degree 1"):
        phe_interop.to_phe(small_key.public, sealed.ciphertexts)


def test_share_holders_open_what_phe_encrypted(
    phe: object, dealt: tuple[ThresholdPublicKey, list[KeyShare]]
) -> None:
    public, shares = dealt
    if public.s != 1:
        return  # phe knows degree 1 only
    stock = phe_interop.to_phe_public_key(public.public)
    ciphertexts = phe_interop.from_phe(public.public, [stock.encrypt(40) + 2], exponent=0)
    for chosen in (shares[:3], shares[2:]):
        partials = {share.index: share.partial(ciphertexts) for share in chosen}
        assert public.combine(partials) == [42]


def test_phes_exponents_show_magnitudes_and_our_blocks_show_nothing(
    phe: object, small_key: SecretKey
) -> None:
    stock = phe_interop.to_phe_public_key(small_key.public)
    values = [1e-9, 1e-3, 0.5, 1.0, 1000.0, 1e9]
    assert [stock.encrypt(x).exponent for x in values] == [-21, -16, -14, -13, -11, -6]
    assert {stock.encrypt(x, precision=1e-6).exponent for x in values} == {-5}
    layout = SlotLayout(bound=1 << 20, max_clients=4)
    encryptor = Encryptor(small_key.public, window=4)
    for value in (0, 1, -(1 << 20), 1 << 20):
        packed = layout.pack(np.array([value]), layout.slots(encryptor.degree))
        (c,) = encryptor.encrypt(packed).ciphertexts
        block = Block(
            key_id=small_key.public.key_id,
            mode=BlockMode.PACKED,
            s=1,
            width=layout.width,
            bound=layout.bound,
            dimension=1,
            terms=1,
            ciphertexts=(c,),
        ).to_bytes(encryptor.degree)
        assert len(block) == HEADER_BYTES + 128
        assert block[:HEADER_BYTES].endswith(bytes([0, 0, 0, 1] * 3))


def test_phe_lets_anybody_change_a_number_and_our_proof_does_not(
    phe: object, small_key: SecretKey
) -> None:
    """Whoever passes an encrypted 0.6 on turns it into 1000.6 or -0.6, without any key."""
    stock = phe_interop.to_phe_public_key(small_key.public)
    secret = phe_interop.to_phe_secret_key(small_key)
    number = stock.encrypt(0.6)
    assert secret.decrypt(number + 1000) == pytest.approx(1000.6)
    assert secret.decrypt(number * -1) == pytest.approx(-0.6)
    encryptor, n = Encryptor(small_key.public, window=4), small_key.public.n
    sealed = encryptor.encrypt([600])
    proof = prove_knowledge(encryptor, [600], sealed, b"here")
    (c,) = sealed.ciphertexts
    assert verify_knowledge(encryptor, [c], proof, b"here")
    for changed in (c * (1 + 1000 * n) % n**2, pow(c, -1, n**2), c * c % n**2):
        assert not verify_knowledge(encryptor, [changed], proof, b"here")
