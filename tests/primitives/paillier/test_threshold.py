"""Threshold decryption: every subset, no smaller subset, and blame for every wrong partial."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError, WireError
from securefl.primitives import bigint
from securefl.primitives.paillier import Encryptor, PublicKey, SecretKey, generate_keypair
from securefl.primitives.paillier import threshold as threshold_module
from securefl.primitives.paillier.threshold import (
    KeyShare,
    NotAPlaintext,
    PartialProof,
    ThresholdPublicKey,
    deal,
    default_threshold,
)

Dealt = tuple[ThresholdPublicKey, list[KeyShare]]
MESSAGES = [0, 1, 1 << 200]


@pytest.fixture(scope="module")
def opened(dealt: Dealt) -> tuple[tuple[int, ...], dict[int, tuple[int, ...]]]:
    key, shares = dealt
    sealed = Encryptor(key.public, key.s, window=4).encrypt(MESSAGES)
    return sealed.ciphertexts, {x.index: x.partial(sealed.ciphertexts) for x in shares}


Opened = tuple[tuple[int, ...], dict[int, tuple[int, ...]]]


def test_every_subset_of_t_or_more_opens_the_same_messages(dealt: Dealt, opened: Opened) -> None:
    key, _ = dealt
    _, partials = opened
    for size in range(key.threshold, key.parties + 1):
        for chosen in itertools.combinations(range(1, key.parties + 1), size):
            assert key.combine({i: partials[i] for i in chosen}) == MESSAGES


def test_fewer_than_t_partials_are_refused(dealt: Dealt, opened: Opened) -> None:
    key, _ = dealt
    with pytest.raises(ConfigurationError, match="3 of 5"):
        key.combine({i: opened[1][i] for i in (1, 4)})


def test_t_minus_1_shares_give_no_power_of_one_plus_n(dealt: Dealt, opened: Opened) -> None:
    """Combined as if t-1 were enough, the result is not even 1 modulo n."""
    key, _ = dealt
    weaker = object.__new__(ThresholdPublicKey)
    for name in ("public", "s", "parties", "v", "verification"):
        object.__setattr__(weaker, name, getattr(key, name))
    object.__setattr__(weaker, "threshold", key.threshold - 1)
    for chosen in itertools.combinations(range(1, 6), key.threshold - 1):
        with pytest.raises(NotAPlaintext):
            weaker.combine({i: opened[1][i] for i in chosen})


def deals_of_a_tiny_key(
    monkeypatch: pytest.MonkeyPatch, count: int, seed: int
) -> tuple[int, np.ndarray]:
    """M = n p'q', and the first two shares of ``count`` deals of 3 of 3, int64[count, 2]."""
    tiny = SecretKey(167, 179, PublicKey(167 * 179))  # safe primes; small shares can be counted
    monkeypatch.setattr(threshold_module, "generate_keypair", lambda *_, **__: tiny)
    random_bytes = np.random.default_rng(seed).bytes
    found = []
    for _ in range(count):
        _, shares = deal(threshold=3, parties=3, random_bytes=random_bytes)
        found.append([int(share._value) for share in shares[:2]])
    return 167 * 179 * 83 * 89, np.array(found)


def test_t_minus_1_shares_are_uniform_whatever_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shares of 3-of-3 keys fall evenly over all pairs in Z_M: they say nothing about d.

    Chi squared over 6 x 6 cells of the range and over pairs of residues modulo 2 to 5; a fixed
    seed, and limits that a true dealer exceeds with probability below 10^-6 each.
    """
    modulus, pairs = deals_of_a_tiny_key(monkeypatch, 1800, seed=12)
    # Upper 10^-6 quantiles of chi squared for 35, 3, 8, 15 and 24 degrees of freedom.
    for cells, limit in ((6, 90.0), (-2, 30.7), (-3, 42.8), (-4, 56.5), (-5, 72.7)):
        count = abs(cells)
        placed = pairs * count // modulus if cells > 0 else pairs % count
        seen = np.bincount(placed[:, 0] * count + placed[:, 1], minlength=count**2)
        expected = len(pairs) / count**2
        assert ((seen - expected) ** 2 / expected).sum() < limit


def test_an_honest_partial_is_proved_and_the_proof_survives_its_bytes(
    dealt: Dealt, opened: Opened
) -> None:
    key, shares = dealt
    ciphertexts, expected = opened
    for share in shares:
        partials, proof = share.partial_with_proof(ciphertexts, b"round 1")
        assert partials == expected[share.index]
        proof = PartialProof.from_bytes(proof.to_bytes())
        assert key.verify(share.index, ciphertexts, partials, proof, b"round 1")


def wrong_partials(key: ThresholdPublicKey, partials: Sequence[int]) -> list[list[int]]:
    N, n = int(key.degree.modulus), key.public.n
    shifted = list(partials)
    # Passes the check modulo n and opens to a wrong number: only the proof sees it.
    shifted[1] = shifted[1] * (1 + n * 12345) % N
    negated = list(partials)
    negated[0] = N - negated[0]
    flipped = list(partials)
    flipped[2] ^= 1
    swapped = [partials[1], partials[0], partials[2]]
    return [shifted, flipped, swapped, list(partials[:2]), negated]


def test_a_wrong_partial_is_caught_by_its_proof(dealt: Dealt, opened: Opened) -> None:
    key, shares = dealt
    ciphertexts, _ = opened
    partials, proof = shares[1].partial_with_proof(ciphertexts, b"round 1")
    *others, negated = wrong_partials(key, partials)
    for wrong in others:
        assert not key.verify(2, ciphertexts, wrong, proof, b"round 1")
    # A changed sign changes the batch too, so the proof made for the right one fails.
    assert not key.verify(2, ciphertexts, negated, proof, b"round 1")


def test_the_check_modulo_n_alone_accepts_a_wrong_sum(dealt: Dealt, opened: Opened) -> None:
    key, _ = dealt
    _, partials = opened
    wrong = wrong_partials(key, partials[2])[0]
    result = key.combine({1: partials[1], 2: wrong, 3: partials[3]})
    assert result != MESSAGES
    assert result[0] == MESSAGES[0]


def test_a_sign_of_a_partial_does_not_matter(dealt: Dealt, opened: Opened) -> None:
    """Partials are squared on combination: an honest value and its negative are one."""
    key, _ = dealt
    N = int(key.degree.modulus)
    negated = [N - x for x in opened[1][2]]
    assert key.combine({1: opened[1][1], 2: negated, 5: opened[1][5]}) == MESSAGES


def test_garbage_does_not_combine(dealt: Dealt, opened: Opened) -> None:
    key, _ = dealt
    with pytest.raises(NotAPlaintext):
        key.combine({1: opened[1][1], 2: opened[1][3], 3: opened[1][3]})
    with pytest.raises(ConfigurationError, match="different numbers"):
        key.combine({1: opened[1][1], 2: opened[1][2][:1], 3: opened[1][3]})
    with pytest.raises(ConfigurationError, match="needed"):
        key.combine({0: opened[1][1], 2: opened[1][2], 3: opened[1][3]})


def test_a_proof_is_bound_to_party_context_and_ciphertexts(dealt: Dealt, opened: Opened) -> None:
    key, shares = dealt
    ciphertexts, _ = opened
    partials, proof = shares[0].partial_with_proof(ciphertexts, b"round 1")
    assert not key.verify(2, ciphertexts, partials, proof, b"round 1")
    assert not key.verify(1, ciphertexts, partials, proof, b"round 2")
    assert not key.verify(1, ciphertexts[::-1], partials, proof, b"round 1")
    assert not key.verify(0, ciphertexts, partials, proof, b"round 1")
    assert not key.verify(6, ciphertexts, partials, proof, b"round 1")
    assert not key.verify(1, (), (), proof, b"round 1")


@given(st.integers(0, 1), st.integers(1, 1 << 40))
def test_a_changed_proof_fails(dealt: Dealt, opened: Opened, field: int, change: int) -> None:
    key, shares = dealt
    ciphertexts, _ = opened
    partials, proof = shares[0].partial_with_proof(ciphertexts, b"")
    numbers = [proof.challenge, proof.response]
    numbers[field] += change
    changed = PartialProof(challenge=numbers[0], response=numbers[1])
    assert not key.verify(1, ciphertexts, partials, changed, b"")


def test_public_bytes_contain_no_secret_and_survive(dealt: Dealt) -> None:
    key, shares = dealt
    data = key.to_bytes()
    assert ThresholdPublicKey.from_bytes(data, min_bits=512) == key
    for share in shares:
        value = int(share._value)
        assert value.to_bytes(-(-value.bit_length() // 8), "big") not in data
    # Nothing published is a multiple of the group order: 2 to that power would be 1 modulo n.
    n = key.public.n
    for number in (key.v, *key.verification, n):
        assert pow(2, 2 * number, n) != 1


def test_the_dealer_reuses_nothing(dealt: Dealt) -> None:
    _, shares = dealt
    assert len({int(x._value) for x in shares}) == len(shares)


def test_verification_values_off_the_polynomial_are_refused(dealt: Dealt) -> None:
    key, _ = dealt
    N = int(key.degree.modulus)
    for j in range(key.parties):
        values = list(key.verification)
        values[j] = values[j] * key.v % N
        forged = ThresholdPublicKey(
            public=key.public, s=key.s, threshold=3, parties=5, v=key.v, verification=tuple(values)
        )
        assert not forged.is_consistent()
        with pytest.raises(ConfigurationError, match="one polynomial"):
            ThresholdPublicKey.from_bytes(forged.to_bytes(), min_bits=512)


def test_a_share_of_another_key_or_index_is_refused(dealt: Dealt) -> None:
    key, shares = dealt
    value = int(shares[0]._value)
    for index, wrong in ((2, value), (1, value + 1), (0, value), (6, value), (1, 0), (1, -value)):
        with pytest.raises(ConfigurationError):
            KeyShare(index, wrong, key)
    data = bytearray(shares[0].to_secret_bytes())
    assert KeyShare.from_bytes(bytes(data), key).index == 1
    data[20] ^= 1
    with pytest.raises(ConfigurationError, match="another threshold key"):
        KeyShare.from_bytes(bytes(data), key)


@given(st.data())
def test_malformed_bytes_raise_only_errors_of_the_library(
    dealt: Dealt, data: st.DataObject
) -> None:
    key, shares = dealt
    good = bytearray(
        data.draw(st.sampled_from([key.to_bytes(), shares[0].to_secret_bytes(), b"SFLT", b"SFLS"]))
    )
    kind = data.draw(st.sampled_from(["flip", "cut", "extend"]))
    if kind == "flip":
        good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        good = good[: data.draw(st.integers(0, len(good) - 1))]
    else:
        good += data.draw(st.binary(min_size=1, max_size=9))
    with pytest.raises((WireError, ConfigurationError)):
        KeyShare.from_bytes(bytes(good), key)
    try:
        read = ThresholdPublicKey.from_bytes(bytes(good), min_bits=512)
    except (WireError, ConfigurationError):
        return
    # Only v can change unnoticed by the public; it is another key then, and every holder refuses.
    assert read.v != key.v
    assert read.key_id != key.key_id
    with pytest.raises(ConfigurationError, match="does not belong"):
        KeyShare(1, int(shares[0]._value), read)


def test_empty_bytes_are_no_proof() -> None:
    with pytest.raises(WireError):
        PartialProof.from_bytes(b"")


def test_a_share_shows_and_copies_nothing(dealt: Dealt) -> None:
    _, shares = dealt
    assert str(shares[0]._value) not in repr(shares[0])
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            leak(shares[0])
    with pytest.raises(TypeError, match="cannot be pickled"):
        shares[0].__getstate__()


@pytest.mark.parametrize(("t", "parties"), [(1, 3), (4, 3), (2, 256), (True, 3), (2, 1)])
def test_impossible_numbers_of_parties_are_refused(t: int, parties: int) -> None:
    with pytest.raises(ConfigurationError):
        deal(threshold=t, parties=parties, bits=512, min_bits=512)


@given(st.integers(2, 255))
def test_the_default_threshold_stands_a_third_of_corrupt_holders(parties: int) -> None:
    t = default_threshold(parties)
    assert 2 <= t <= parties
    corrupt = (parties - 1) // 3
    assert corrupt < t
    assert 2 * t > parties + corrupt


@pytest.mark.parametrize("bad", ["zero", "n", "modulus", "negative"])
def test_a_partial_that_is_no_unit_fails_and_does_not_crash(
    dealt: Dealt, opened: Opened, bad: str
) -> None:
    public, shares = dealt
    _, sealed = opened
    partials, proof = shares[0].partial_with_proof(sealed, b"here")
    n, N = public.public.n, int(public.degree.modulus)
    number = {"zero": 0, "n": n, "modulus": N + partials[0], "negative": partials[0] - N}[bad]
    assert public.verify(1, sealed, partials, proof, b"here")
    assert not public.verify(1, sealed, (number, *partials[1:]), proof, b"here")


def test_a_base_of_small_order_is_refused_although_its_polynomial_fits(dealt: Dealt) -> None:
    """With v = v_i = -1 every proof about partials would be true, and the v_i fit together."""
    public, _ = dealt
    n, N = public.public.n, int(public.degree.modulus)
    for v in (N - 1, 1 + n, N - 1 - n):
        with pytest.raises(ConfigurationError, match="generate the squares"):
            dataclasses.replace(public, v=v, verification=(v,) * public.parties)
    non_square = next(x for x in range(2, 100) if bigint.jacobi(x, n) == -1)
    with pytest.raises(ConfigurationError, match="generate the squares"):
        dataclasses.replace(public, v=non_square)


def test_every_secret_exponent_of_a_share_goes_through_the_constant_time_power(
    dealt: Dealt, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, shares = dealt
    _, sealed = opened
    value, delta = int(shares[0]._value), public.delta
    seen: list[int] = []
    variable: list[int] = []
    secret_power, power = bigint.powmod_secret, bigint.powmod
    monkeypatch.setattr(
        bigint, "powmod_secret", lambda b, e, m: seen.append(int(e)) or secret_power(b, e, m)
    )
    monkeypatch.setattr(bigint, "powmod", lambda b, e, m: variable.append(int(e)) or power(b, e, m))
    KeyShare.from_bytes(shares[0].to_secret_bytes(), public)
    assert (seen, variable) == ([delta * value], [])
    seen.clear()
    shares[0].partial_with_proof(sealed, b"here")
    *partials, first, second = seen
    assert partials == [2 * delta * value] * len(sealed)
    assert first == second > delta * value  # the nonce of both commitments, long enough to hide
    assert variable == [4, 2]  # of the statement, which is public


def test_the_dealer_raises_nothing_to_a_share_in_variable_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prime generation tests its candidates in variable time; the limitations say so."""
    made = generate_keypair(512, random_bytes=np.random.default_rng(1).bytes, min_bits=512)
    monkeypatch.setattr(threshold_module, "generate_keypair", lambda *_, **__: made)
    variable: list[int] = []
    power = bigint.powmod
    monkeypatch.setattr(bigint, "powmod", lambda b, e, m: variable.append(int(e)) or power(b, e, m))
    deal(threshold=2, parties=3, bits=512, min_bits=512)
    assert variable == []


def test_a_true_proof_of_partials_with_a_response_too_long_is_refused(
    dealt: Dealt, opened: Opened
) -> None:
    public, shares = dealt
    _, sealed = opened
    N, secret = int(public.degree.modulus), public.delta * int(shares[0]._value)
    partials = shares[0].partial(sealed)
    seed, base, image = threshold_module._batch(public, 1, sealed, partials, b"here")
    bits = threshold_module._nonce_bits(public)
    for r, holds in ((1 << (bits - 1), True), (1 << (bits + 1), False), (1 << 9000, False)):
        values = (base, image, pow(int(base), r, N), pow(public.v, r, N))
        challenge = threshold_module._challenge(public, seed, values)
        proof = PartialProof(challenge=challenge, response=r + challenge * secret)
        assert public.verify(1, sealed, partials, proof, b"here") is holds


def test_threads_make_the_same_partials_and_the_same_proof(dealt: Dealt, opened: Opened) -> None:
    public, shares = dealt
    ciphertexts, expected = opened
    proofs = set()
    for threads in (1, 2, 3, 7):
        assert shares[2].partial(ciphertexts, threads=threads) == expected[3]
        random_bytes = np.random.default_rng(6).bytes
        partials, proof = shares[2].partial_with_proof(
            ciphertexts, b"here", threads=threads, random_bytes=random_bytes
        )
        assert partials == expected[3]
        assert public.verify(3, ciphertexts, partials, proof, b"here")
        proofs.add(proof)
    assert len(proofs) == 1


@pytest.mark.parametrize("s", [1, 2])
def test_no_number_from_which_the_modulus_could_be_factored_is_published(
    s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every secret of the dealing, as bytes in either order, against all that leaves the dealer."""
    made = generate_keypair(512, random_bytes=np.random.default_rng(1).bytes, min_bits=512)
    monkeypatch.setattr(threshold_module, "generate_keypair", lambda *_, **__: made)
    drawn: list[int] = []
    below = bigint.random_below
    monkeypatch.setattr(
        bigint, "random_below", lambda limit, r: drawn.append(below(limit, r)) or drawn[-1]
    )
    public, shares = deal(threshold=3, parties=4, bits=512, s=s, min_bits=512)
    p, q = made.primes()
    n, order = p * q, (p - 1) * (q - 1) // 4
    modulus = n**s * order
    d = order * pow(order, -1, n**s)
    values = [int(share._value) for share in shares]
    assert values == [(d + drawn[0] * i + drawn[1] * i * i) % modulus for i in range(1, 5)]
    secrets = [
        p, q, p - 1, q - 1, (p - 1) // 2, (q - 1) // 2, order, 2 * order, 4 * order, modulus,
        d % modulus, *drawn[:2], *values, *(public.delta * x for x in values),
    ]  # fmt: skip
    data = public.to_bytes()
    assert public.public.n.to_bytes(64, "big") in data
    for secret in secrets:
        for way in ("big", "little"):
            assert secret.to_bytes(-(-secret.bit_length() // 8), way) not in data


def proved_with_a_true_share(
    public: ThresholdPublicKey, share: KeyShare, sealed: Sequence[int], partials: Sequence[int]
) -> PartialProof:
    """The proof that a holder who knows its share can make, whatever it sends as partials."""
    N, secret = int(public.degree.modulus), public.delta * int(share._value)
    seed, base, image = threshold_module._batch(public, share.index, sealed, partials, b"here")
    r = (1 << (threshold_module._nonce_bits(public) - 1)) + 12345
    values = (base, image, pow(int(base), r, N), pow(public.v, r, N))
    challenge = threshold_module._challenge(public, seed, values)
    return PartialProof(challenge=challenge, response=r + challenge * secret)


def test_wrong_partials_do_not_cancel_in_the_batch_also_for_a_holder_who_proves_them(
    dealt: Dealt, opened: Opened
) -> None:
    """Two errors that are each other's inverse: with equal exponents their product is right."""
    public, shares = dealt
    sealed, expected = opened
    n, N = public.public.n, int(public.degree.modulus)
    honest = list(expected[2])
    proof = proved_with_a_true_share(public, shares[1], sealed, honest)
    assert public.verify(2, sealed, honest, proof, b"here")
    for error in (1 + n, 1 + 5 * n, pow(public.v, 7, N)):
        wrong = [honest[0] * error % N, honest[1] * pow(error, -1, N) % N, honest[2]]
        proof = proved_with_a_true_share(public, shares[1], sealed, wrong)
        assert not public.verify(2, sealed, wrong, proof, b"here")


def test_a_verification_value_is_written_in_one_way_only(dealt: Dealt) -> None:
    """The same residue as a larger or negative number would give the same key another id."""
    public, _ = dealt
    N = int(public.degree.modulus)
    for change in (N, -N):
        with pytest.raises(ConfigurationError, match="not a unit"):
            dataclasses.replace(public, v=public.v + change)
        values = (*public.verification[:-1], public.verification[-1] + change)
        with pytest.raises(ConfigurationError, match="not a unit"):
            dataclasses.replace(public, verification=values)


def test_a_challenge_beyond_its_128_bits_or_below_0_proves_nothing(
    dealt: Dealt, opened: Opened
) -> None:
    public, shares = dealt
    sealed, _ = opened
    partials, proof = shares[0].partial_with_proof(sealed, b"here")
    for change in (1 << 128, -(1 << 128)):
        wrong = dataclasses.replace(proof, challenge=proof.challenge + change)
        assert not public.verify(1, sealed, partials, wrong, b"here")
