"""Key checks: what is refused, and that generated keys have what is claimed of them."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError, WireError
from securefl.primitives import bigint
from securefl.primitives.paillier import PublicKey, SecretKey, generate_keypair, keys

PRIME_1024 = 2**1024 - 105  # the largest prime below 2^1024


def test_a_safe_key_has_full_length_and_safe_primes(small_key: SecretKey) -> None:
    p, q = small_key.primes()
    assert small_key.public.bits == 512
    for prime in (p, q):
        assert prime.bit_length() == 256
        assert prime >> 254 == 3
        assert bigint.is_prime(prime)
        assert bigint.is_prime((prime - 1) // 2)


def test_a_blum_key_has_the_congruences_it_is_named_after(blum_key: SecretKey) -> None:
    p, q = blum_key.primes()
    assert (p % 4, q % 4) == (3, 3)
    assert bigint.gcd(p - 1, q - 1) == 2


def test_generation_is_a_function_of_its_randomness_in_every_back_end(
    small_key: SecretKey,
) -> None:
    import numpy as np

    for name in bigint.available():
        with bigint.using(name):
            random_bytes = np.random.default_rng(1).bytes
            again = generate_keypair(512, random_bytes=random_bytes, min_bits=512)
        assert again.public == small_key.public


def test_the_base_is_a_square_that_anyone_recomputes(small_key: SecretKey) -> None:
    n = small_key.public.n
    assert bigint.jacobi(small_key.public.base, n) == 1
    p, q = small_key.primes()
    assert pow(small_key.public.base, (p - 1) // 2, p) == 1
    assert pow(small_key.public.base, (q - 1) // 2, q) == 1
    assert PublicKey(n).base == small_key.public.base


@pytest.mark.parametrize(
    ("n", "reason"),
    [
        (0, "positive"),
        (True, "positive"),
        ((1 << 1023) + 12345, "2048 to"),
        (1 << 2047, "divisible by 2"),
        (PRIME_1024 * 65521, "multiple of 8|2048 to"),
        (PRIME_1024**2 * 65521, "divisible by 65521"),
        (PRIME_1024**2, "perfect power"),
        (2**2203 - 1, "multiple of 8"),
        (2**3217 - 1, "multiple of 8"),
        (1 << 9000, "to 8192"),
    ],
)
def test_a_weak_modulus_is_refused(n: int, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        PublicKey.from_numbers(n)


def test_a_prime_modulus_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="prime"):
        PublicKey.from_numbers(PRIME_1024, min_bits=1024)


def test_a_short_key_is_refused_by_default(small_key: SecretKey) -> None:
    with pytest.raises(ConfigurationError, match="2048 to"):
        PublicKey.from_numbers(small_key.public.n)
    with pytest.raises(ConfigurationError, match="2048"):
        SecretKey.from_numbers(*small_key.primes())
    with pytest.raises(ConfigurationError, match="2048"):
        generate_keypair(1024)


def test_a_secret_key_with_wrong_factors_is_refused(
    small_key: SecretKey, blum_key: SecretKey
) -> None:
    p, q = small_key.primes()
    for bad in [(p, p), (p, q + 2), (p, 1), (p, -q), (p * q, 1 << 511 | 1), (p, q >> 1)]:
        with pytest.raises(ConfigurationError) as caught:
            SecretKey.from_numbers(*bad, min_bits=512)
        assert str(p) not in str(caught.value)


def test_close_primes_are_refused() -> None:
    # Two neighbouring primes of 256 bits: Fermat's method factors their product at once.
    p = (1 << 256) - 189
    q = next(x for x in range(p - 2, 0, -2) if bigint.is_prime(x))
    with pytest.raises(ConfigurationError, match="too close"):
        SecretKey.from_numbers(p, q, min_bits=512)


def test_keys_survive_their_bytes(small_key: SecretKey) -> None:
    public = PublicKey.from_bytes(small_key.public.to_bytes(), min_bits=512)
    assert public == small_key.public
    assert public.key_id == small_key.public.key_id
    secret = SecretKey.from_bytes(small_key.to_secret_bytes(), min_bits=512)
    assert secret.primes() == small_key.primes()


@given(st.data())
def test_malformed_key_bytes_raise_only_errors_of_the_library(
    small_key: SecretKey, data: st.DataObject
) -> None:
    good = bytearray(
        data.draw(st.sampled_from([small_key.public.to_bytes(), small_key.to_secret_bytes()]))
    )
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "noise"]))
    if kind == "flip":
        good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        good = good[: data.draw(st.integers(0, len(good) - 1))]
    elif kind == "extend":
        good += data.draw(st.binary(min_size=1, max_size=9))
    else:
        good = bytearray(data.draw(st.binary(max_size=99)))
    for read in (PublicKey.from_bytes, SecretKey.from_bytes):
        try:
            key = read(bytes(good), min_bits=512)
        except (WireError, ConfigurationError):
            continue
        written = key.to_bytes() if isinstance(key, PublicKey) else key.to_secret_bytes()
        assert written == bytes(good)


def test_one_kind_of_key_is_not_read_as_the_other(small_key: SecretKey) -> None:
    with pytest.raises(WireError, match="expected a public"):
        PublicKey.from_bytes(small_key.to_secret_bytes(), min_bits=512)
    with pytest.raises(WireError, match="expected a secret"):
        SecretKey.from_bytes(small_key.public.to_bytes(), min_bits=512)


def test_a_secret_key_shows_and_copies_nothing(small_key: SecretKey) -> None:
    p, q = small_key.primes()
    assert str(p) not in repr(small_key)
    assert hex(q)[2:] not in repr(small_key)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            leak(small_key)
    with pytest.raises(TypeError, match="cannot be pickled"):
        small_key.__getstate__()


def test_public_bytes_contain_no_factor(small_key: SecretKey) -> None:
    public = small_key.public.to_bytes()
    for secret in small_key.primes():
        assert secret.to_bytes(32, "big") not in public


def test_a_modulus_whose_derived_base_is_no_unit_is_refused() -> None:
    # 66931 * 8343659, found by search: the hash of this modulus is divisible by its first factor.
    n = 558449440529
    assert PublicKey(n).base % 66931 == 0
    with pytest.raises(ConfigurationError, match="derived base"):
        PublicKey.from_numbers(n, min_bits=40)


def test_factors_of_unequal_length_or_that_are_composite_are_refused() -> None:
    short, long = (bigint_prime(bits) for bits in (248, 264))
    with pytest.raises(ConfigurationError, match="half of"):
        SecretKey.from_numbers(short, long, min_bits=512)
    one, two = (1 << 256) - 189, bigint_prime(128) * bigint_prime(128, skip=1)
    assert two.bit_length() == 256
    with pytest.raises(ConfigurationError, match="not prime"):
        SecretKey.from_numbers(one, two, min_bits=512)


def bigint_prime(bits: int, skip: int = 0) -> int:
    """A prime of that length with its two highest bits set."""
    found = (x for x in range((3 << (bits - 2)) + 1, 1 << bits, 2) if bigint.is_prime(x))
    return next(x for i, x in enumerate(found) if i == skip)


def test_a_modulus_whose_derived_base_is_one_modulo_a_factor_is_refused() -> None:
    # 65537 * 8507209, found by search: the hash of this modulus is 1 or -1 modulo its first factor.
    n = 557536956233
    assert PublicKey(n).base % 65537 == 1
    with pytest.raises(ConfigurationError, match="derived base"):
        PublicKey.from_numbers(n, min_bits=40)


@given(st.integers(0, 1 << 60))
def test_the_modulus_of_an_accepted_key_is_coprime_to_its_totient(seed: int) -> None:
    """What makes decryption unique follows from unequal primes of one length."""
    import numpy as np

    rng = np.random.default_rng(seed)
    found: list[int] = []
    while len(set(found)) < 2:
        candidate = int(rng.integers(1 << 31, 1 << 32)) | 3 << 30 | 1
        found += [candidate] * bigint.is_prime(candidate)
    p, q = sorted(set(found))[:2]
    assert math.gcd(p * q, (p - 1) * (q - 1)) == 1


def test_a_number_of_a_key_is_written_in_one_way_only(small_key: SecretKey) -> None:
    n = small_key.public.n.to_bytes(64, "big")
    p, q = (x.to_bytes(32, "big") for x in small_key.primes())
    public, secret = small_key.public.to_bytes(), small_key.to_secret_bytes()
    assert public == b"SFLP\1\1" + (64).to_bytes(2, "big") + n
    assert secret == b"SFLP\1\2" + (32).to_bytes(2, "big") + p + q
    with pytest.raises(WireError, match="zero byte"):
        PublicKey.from_bytes(public[:6] + (65).to_bytes(2, "big") + b"\0" + n, min_bits=512)
    longer = secret[:6] + (33).to_bytes(2, "big") + b"\0" + p + b"\0" + q
    with pytest.raises(WireError, match="zero byte"):
        SecretKey.from_bytes(longer, min_bits=512)


def test_primes_with_more_than_the_factor_two_in_common_are_drawn_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gcd(p-1, q-1) = 2, or squares would not be one cycle for either kind of primes."""
    start = bigint_prime(256)
    blum = [x for x in range(start, start + 20_000, 2) if x % 4 == 3 and bigint.is_prime(x)]
    three = [x for x in blum if x % 3 == 1][:2]
    other = next(x for x in blum if bigint.gcd(x - 1, three[0] - 1) == 2)
    # Neighbouring primes are too close for a key, so one of each pair is moved far away.
    far = next(
        x for x in range((1 << 256) - 1, 0, -4)
        if x % 3 == 1 and bigint.gcd(x - 1, three[0] - 1) > 2 and bigint.is_prime(x)
    )  # fmt: skip
    fine = next(
        x for x in range((1 << 256) - 1, 0, -4)
        if bigint.gcd(x - 1, other - 1) == 2 and bigint.is_prime(x)
    )  # fmt: skip
    drawn = iter([three[0], far, other, fine])
    monkeypatch.setattr(keys, "_blum_prime", lambda bits, random_bytes: next(drawn))
    made = generate_keypair(512, primes="blum", min_bits=512)
    assert set(made.primes()) == {other, fine}
    # Such a pair is a key all the same if somebody brings it: only blinding assumes more.
    SecretKey.from_numbers(three[0], far, min_bits=512)
