"""Encryption and decryption against the textbook formulas on plain integers."""

from __future__ import annotations

import concurrent.futures
import copy
import itertools
import multiprocessing
import os
import pickle
from math import lcm

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.primitives import bigint
from securefl.primitives.paillier import Encryptor, RandomizerPool, Randomness, SecretKey
from securefl.primitives.paillier.algebra import Degree, Logarithm
from securefl.primitives.paillier.table import Digits, PlainTable, SplitTable

pytestmark = pytest.mark.filterwarnings("ignore:gmpy2 is not installed:RuntimeWarning")

degrees = st.integers(1, 3)


def textbook_decrypt(key: SecretKey, c: int, s: int) -> int:
    """Damgard, Jurik 2001: d = 1 mod n^s, d = 0 mod lambda; then the logarithm by brute algebra."""
    p, q = key.primes()
    n, order = p * q, lcm(p - 1, q - 1)
    N, plaintexts = n ** (s + 1), n**s
    d = order * pow(order, -1, plaintexts)
    x = pow(c, d, N)
    # Solve (1+n)^m = x one power of n at a time: m mod n^j determines (1+n)^m mod n^(j+1).
    m = 0
    for j in range(1, s + 1):
        modulus = n ** (j + 1)
        rest = x * pow(pow(1 + n, m, modulus), -1, modulus) % modulus
        m += (rest - 1) // n**j * n ** (j - 1)
    return m % plaintexts


@given(degrees, st.data())
def test_powers_of_one_plus_n_and_their_logarithm(s: int, data: st.DataObject) -> None:
    n = 1_000_003 * 1_000_033
    degree = Degree(n, s)
    m = data.draw(st.integers(0, n**s - 1))
    x = degree.one_plus_n(bigint.integer(m))
    assert x == pow(1 + n, m, n ** (s + 1))
    assert degree.log(x) == m
    for prime in (1_000_003, 1_000_033):
        assert Logarithm(n, prime, s)(x % prime ** (s + 1)) == m % prime**s


@given(degrees, st.sampled_from(Randomness), st.integers(0, 8), st.booleans(), st.data())
def test_decryption_inverts_encryption_and_agrees_with_the_textbook(
    small_key: SecretKey,
    s: int,
    randomness: Randomness,
    window: int,
    split: bool,
    data: st.DataObject,
) -> None:
    encryptor = Encryptor(
        small_key.public, s, randomness=randomness, window=min(window, 4), split=split
    )
    top = int(encryptor.degree.plaintexts) - 1
    message = data.draw(st.one_of(st.sampled_from([0, 1, top]), st.integers(0, top)))
    (c,) = encryptor.encrypt([message]).ciphertexts
    assert small_key.decrypt(c, s) == message == textbook_decrypt(small_key, c, s)


@given(degrees, st.lists(st.integers(0, 1 << 500), min_size=2, max_size=5))
def test_products_of_ciphertexts_open_to_sums(
    small_key: SecretKey, s: int, messages: list[int]
) -> None:
    encryptor = Encryptor(small_key.public, s, window=4)
    sealed = encryptor.encrypt(messages)
    product = bigint.product_mod(sealed.ciphertexts, encryptor.degree.modulus)
    assert small_key.decrypt(product, s) == sum(messages) % int(encryptor.degree.plaintexts)


def test_degree_one_is_paillier(small_key: SecretKey) -> None:
    p, q = small_key.primes()
    n, order = p * q, lcm(p - 1, q - 1)
    (c,) = Encryptor(small_key.public).encrypt([12345]).ciphertexts
    # Paillier 1999: L(c^lambda mod n^2) / lambda mod n, L(x) = (x - 1) / n.
    assert (pow(c, order, n * n) - 1) // n * pow(order, -1, n) % n == 12345


@given(degrees, st.integers(1, 8), st.integers(1, 5), st.integers(0, 1 << 60))
@settings(max_examples=20)
def test_tables_give_the_plain_power(
    small_key: SecretKey, s: int, window: int, count: int, seed: int
) -> None:
    degree = Degree(small_key.public.n, s)
    base = bigint.powmod(small_key.public.base, degree.plaintexts, degree.modulus)
    digits = Digits(count=count, window=window)
    draw = digits.draw(np.random.default_rng(seed).bytes)
    exponent = digits.exponent(draw)
    # Digits from 1 to 2^f: the exponent rebuilt digit by digit.
    assert exponent == sum((d + 1) * 2 ** (window * i) for i, d in enumerate(draw))
    assert exponent < digits.bound
    expected = pow(int(base), exponent, int(degree.modulus))
    for table in (PlainTable(degree, base, digits), SplitTable(degree, base, digits)):
        assert table.power(draw) == expected
        public = seed % (1 << (window * count + 40))
        assert table.public_power(public) == pow(int(base), public, int(degree.modulus))


@given(degrees)
@settings(max_examples=3)
def test_every_entry_of_a_split_table_is_the_power_it_stands_for(
    small_key: SecretKey, s: int
) -> None:
    degree = Degree(small_key.public.n, s)
    base = bigint.powmod(small_key.public.base, degree.plaintexts, degree.modulus)
    table = SplitTable(degree, base, Digits(count=3, window=3))
    for row, digit in itertools.product(range(3), range(1, 9)):
        expected = pow(int(base), digit * 8**row, int(degree.modulus))
        t, tau = table._t[row][digit - 1], table._tau[row][digit - 1]
        assert 1 <= t < degree.n
        assert t * pow(1 + int(degree.n), int(tau), int(degree.modulus)) % degree.modulus == (
            expected
        )
        assert table.entry(row, digit) == expected


def test_every_back_end_and_table_gives_the_same_bytes(small_key: SecretKey) -> None:
    results = set()
    for name, split in itertools.product(bigint.available(), (True, False)):
        with bigint.using(name):
            encryptor = Encryptor(
                small_key.public, window=4, split=split, random_bytes=np.random.default_rng(5).bytes
            )
            results.add(encryptor.encrypt([1, 2, 3]).ciphertexts)
    assert len(results) == 1


def test_two_encryptions_differ_and_nothing_is_left_unblinded(small_key: SecretKey) -> None:
    encryptor = Encryptor(small_key.public)
    seen = encryptor.encrypt([7] * 50).ciphertexts
    assert len(set(seen)) == 50
    assert all(c % small_key.public.n != 1 for c in seen)


def test_a_process_pool_gives_the_same_plaintexts_in_order(small_key: SecretKey) -> None:
    encryptor = Encryptor(small_key.public, window=4)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        sealed = encryptor.encrypt(list(range(150)), executor=executor)
    assert [small_key.decrypt(c) for c in sealed.ciphertexts] == list(range(150))
    assert len(set(sealed.exponents or ())) == 150


def test_a_pool_never_repeats_and_a_fork_inherits_nothing(small_key: SecretKey) -> None:
    encryptor = Encryptor(small_key.public, window=4)
    pool = RandomizerPool(encryptor)
    pool.fill(20)
    sealed = encryptor.encrypt(list(range(10)), pool=pool)
    assert len(pool) == 10
    assert [small_key.decrypt(c) for c in sealed.ciphertexts] == list(range(10))
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            pool.take()
        except ConfigurationError:
            os.write(write, b"empty")
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as answer:
        assert answer.read() == b"empty"
    rest = [pool.take()[1] for _ in range(10)]
    assert len({*rest, *(sealed.exponents or ())}) == 20
    with pytest.raises(ConfigurationError, match="empty"):
        pool.take()


def test_a_pool_belongs_to_one_encryptor(small_key: SecretKey, other_key: SecretKey) -> None:
    pool = RandomizerPool(Encryptor(small_key.public, window=4))
    pool.fill(1)
    with pytest.raises(ConfigurationError, match="another encryptor"):
        Encryptor(other_key.public, window=4).encrypt([1], pool=pool)
    assert len(pool) == 1


def test_secrets_of_encryption_are_not_shown_or_copied(small_key: SecretKey) -> None:
    encryptor = Encryptor(small_key.public, window=4)
    sealed = encryptor.encrypt([1])
    pool = RandomizerPool(encryptor)
    pool.fill(1)
    assert str(sealed.exponents) not in repr(sealed)
    for secret in (sealed, pool):
        for leak in (pickle.dumps, copy.copy):
            with pytest.raises(TypeError, match="cannot be pickled"):
                leak(secret)


@pytest.mark.parametrize(
    "change",
    [{"s": 0}, {"s": 4}, {"s": True}, {"randomness": "short"}, {"window": 9}, {"window": -1}],
)
def test_impossible_settings_are_refused(small_key: SecretKey, change: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Encryptor(small_key.public, **change)  # type: ignore[arg-type]  # wrong on purpose


def test_a_plaintext_out_of_range_is_refused(small_key: SecretKey) -> None:
    encryptor = Encryptor(small_key.public)
    for bad in (-1, small_key.public.n):
        with pytest.raises(ConfigurationError, match="outside"):
            encryptor.encrypt([bad])


def test_injected_randomness_and_processes_do_not_mix(small_key: SecretKey) -> None:
    encryptor = Encryptor(small_key.public, random_bytes=np.random.default_rng(0).bytes)
    with (
        concurrent.futures.ThreadPoolExecutor(1) as executor,
        pytest.raises(ConfigurationError, match="injected"),
    ):
        encryptor.encrypt([1], executor=executor)


@pytest.mark.skipif("gmpy2" not in bigint.available(), reason="spies on gmpy2")
def test_every_secret_exponent_of_decryption_goes_through_the_constant_time_power(
    small_key: SecretKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, q = small_key.primes()
    seen: list[int] = []
    public: list[int] = []
    secret_power, power = bigint.powmod_secret, bigint.powmod
    monkeypatch.setattr(
        bigint, "powmod_secret", lambda b, e, m: seen.append(int(e)) or secret_power(b, e, m)
    )
    monkeypatch.setattr(bigint, "powmod", lambda b, e, m: public.append(int(e)) or power(b, e, m))
    (c,) = Encryptor(small_key.public, window=3).encrypt([5]).ciphertexts
    public.clear()
    assert SecretKey.from_numbers(p, q, min_bits=512).decrypt(c) == 5
    assert set(seen) == {p - 1, q - 1}
    assert not public


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_open_the_same_in_the_same_order(
    small_key: SecretKey, threads: int, backend: str
) -> None:
    messages = list(range(23))
    ciphertexts = Encryptor(small_key.public, window=4).encrypt(messages).ciphertexts
    key = SecretKey.from_numbers(*small_key.primes(), min_bits=512)
    assert key.decrypt_all(ciphertexts, threads=threads) == messages
    with pytest.raises(ZeroDivisionError):
        bigint.map_in_threads(lambda x: bigint.invert(x, 9), [1, 2, 3, 4, 5, 7, 8], threads)


def test_classic_randomness_is_a_unit_also_when_the_source_gives_a_factor(
    small_key: SecretKey,
) -> None:
    """A ciphertext under r = p would hand p to whoever takes one greatest common divisor."""
    p, q = small_key.primes()
    drawn = iter([p, 3 * q, 12345])
    encryptor = Encryptor(
        small_key.public,
        randomness="classic",
        random_bytes=lambda count: next(drawn).to_bytes(count, "big"),
    )
    (c,) = encryptor.encrypt([7]).ciphertexts
    n = small_key.public.n
    assert c == (1 + 7 * n) * pow(12345, n, n * n) % (n * n)
