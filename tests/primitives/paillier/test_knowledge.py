"""The proof of plaintext knowledge: complete, bound to its context, and what it is there for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import ConfigurationError, WireError
from securefl.primitives import bigint
from securefl.primitives.paillier import Encryptor, Randomness, SecretKey, SlotLayout, knowledge
from securefl.primitives.paillier.knowledge import (
    KnowledgeProof,
    multi_power,
    prove_knowledge,
    verify_knowledge,
)

pytestmark = pytest.mark.filterwarnings("ignore:gmpy2 is not installed:RuntimeWarning")


@given(
    st.integers(1, 3),
    st.sampled_from([Randomness.HALF, Randomness.FULL]),
    st.integers(1, 12),
    st.integers(0, 1 << 30),
)
@settings(max_examples=25)
def test_an_honest_proof_holds_and_survives_its_bytes(
    small_key: SecretKey, s: int, randomness: Randomness, count: int, seed: int
) -> None:
    encryptor = Encryptor(small_key.public, s, randomness=randomness, window=3)
    rng = np.random.default_rng(seed)
    messages = [int.from_bytes(rng.bytes(40), "big") for _ in range(count)]
    sealed = encryptor.encrypt(messages)
    proof = prove_knowledge(encryptor, messages, sealed, b"context")
    again = KnowledgeProof.from_bytes(proof.to_bytes())
    assert again == proof
    # A verifier with other tables reads the same statement.
    verifier = Encryptor(small_key.public, s, randomness=randomness, window=4, split=False)
    assert verify_knowledge(verifier, sealed.ciphertexts, again, b"context")


@pytest.fixture(scope="module")
def statement(small_key: SecretKey) -> tuple[Encryptor, tuple[int, ...], KnowledgeProof]:
    encryptor = Encryptor(small_key.public, window=4)
    sealed = encryptor.encrypt([1, 2, 3])
    return encryptor, sealed.ciphertexts, prove_knowledge(encryptor, [1, 2, 3], sealed, b"context")


def test_a_proof_is_bound_to_everything_it_is_about(
    statement: tuple[Encryptor, tuple[int, ...], KnowledgeProof],
    small_key: SecretKey,
    other_key: SecretKey,
) -> None:
    encryptor, ciphertexts, proof = statement
    assert verify_knowledge(encryptor, ciphertexts, proof, b"context")
    N, n = int(encryptor.degree.modulus), small_key.public.n
    (fresh,) = encryptor.encrypt([1]).ciphertexts
    for altered in (
        ciphertexts[::-1],
        ciphertexts[:2],
        (*ciphertexts, fresh),
        (fresh, *ciphertexts[1:]),
        (ciphertexts[0] * (1 + n) % N, *ciphertexts[1:]),
        (),
    ):
        assert not verify_knowledge(encryptor, altered, proof, b"context")
    assert not verify_knowledge(encryptor, ciphertexts, proof, b"another client")
    full = Encryptor(small_key.public, randomness="full", window=4)
    assert not verify_knowledge(full, ciphertexts, proof, b"context")
    other = Encryptor(other_key.public, window=4)
    assert not verify_knowledge(other, ciphertexts, proof, b"context")


@given(st.data())
def test_a_changed_proof_fails(
    statement: tuple[Encryptor, tuple[int, ...], KnowledgeProof], data: st.DataObject
) -> None:
    encryptor, ciphertexts, proof = statement
    name = data.draw(st.sampled_from(["seed", "z", "zeta"]))
    if name == "seed":
        raw = bytearray(proof.seed)
        raw[data.draw(st.integers(0, 31))] ^= data.draw(st.integers(1, 255))
        change: bytes | int = bytes(raw)
    else:
        change = getattr(proof, name) + data.draw(st.integers(1, 1 << 64))
    changed = dataclasses.replace(proof, **{name: change})
    assert not verify_knowledge(encryptor, ciphertexts, changed, b"context")


def test_responses_out_of_range_fail(
    statement: tuple[Encryptor, tuple[int, ...], KnowledgeProof],
) -> None:
    encryptor, ciphertexts, proof = statement
    plaintexts = int(encryptor.degree.plaintexts)
    for changed in (
        # The same residue, written with a larger number: one statement, one proof.
        dataclasses.replace(proof, z=proof.z + plaintexts),
        dataclasses.replace(proof, z=-1),
        dataclasses.replace(proof, zeta=-proof.zeta),
        dataclasses.replace(proof, zeta=proof.zeta + (1 << 5000)),
    ):
        assert not verify_knowledge(encryptor, ciphertexts, changed, b"context")


def test_mauling_reads_a_victim_without_the_proof_and_is_caught_with_it(
    small_key: SecretKey,
) -> None:
    """A colluder shifts the victim's ciphertext into slots that nobody uses."""
    layout = SlotLayout(bound=127, max_clients=4)
    encryptor = Encryptor(small_key.public, window=4)
    degree, w = encryptor.degree, layout.width
    victim_values = np.array([99, -42, 7, 0, 5])
    plain = layout.pack(victim_values, layout.slots(degree))
    victim = encryptor.encrypt(plain)
    proof = prove_knowledge(encryptor, plain, victim, b"victim")
    (blank,) = encryptor.encrypt([0]).ciphertexts
    shift = 1 << (w * 20)
    mauled = pow(victim.ciphertexts[0], shift, int(degree.modulus)) * blank % int(degree.modulus)
    opened = small_key.decrypt(victim.ciphertexts[0] * mauled % int(degree.modulus))
    stolen = [(opened >> (w * (20 + k)) & ((1 << w) - 1)) - 127 for k in range(5)]
    assert stolen == victim_values.tolist()
    for context in (b"victim", b"colluder"):
        assert not verify_knowledge(encryptor, [mauled], proof, context)


def test_classic_randomness_has_nothing_to_prove(small_key: SecretKey) -> None:
    encryptor = Encryptor(small_key.public, randomness="classic")
    sealed = encryptor.encrypt([1])
    with pytest.raises(ConfigurationError, match="classic"):
        prove_knowledge(encryptor, [1], sealed, b"")
    half = Encryptor(small_key.public, window=4)
    with pytest.raises(ConfigurationError, match="one plaintext"):
        prove_knowledge(half, [1, 2], half.encrypt([1]), b"")


def test_responses_hide_the_secrets_statistically(small_key: SecretKey) -> None:
    """The response's top bits come from alpha: they are the same for tiny and for huge secrets."""
    encryptor = Encryptor(small_key.public, window=4)
    spread = []
    for message in (0, small_key.public.n - 1):
        sealed = encryptor.encrypt([message] * 2)
        proofs = [prove_knowledge(encryptor, [message] * 2, sealed, b"") for _ in range(200)]
        tops = [p.zeta >> 400 for p in proofs]
        spread.append(sum(t / 2**230 for t in tops))
        assert len({p.z for p in proofs}) == 200
    assert spread[0] > 0
    assert 0.8 < spread[0] / spread[1] < 1.25  # means of 200 uniforms: 6 standard deviations


@given(st.lists(st.tuples(st.integers(1, 1 << 90), st.integers(0, 1 << 70)), max_size=12))
def test_multi_powers_equal_the_product_of_powers(pairs: list[tuple[int, int]]) -> None:
    modulus = (1 << 127) - 1
    expected = 1
    for base, exponent in pairs:
        expected = expected * pow(base, exponent, modulus) % modulus
    bases, exponents = [b for b, _ in pairs], [e for _, e in pairs]
    for name in bigint.available():
        with bigint.using(name):
            assert multi_power(bases, exponents, modulus) == expected


def test_multi_powers_of_many_bases_use_larger_buckets_with_the_same_result() -> None:
    rng = np.random.default_rng(0)
    modulus = (1 << 127) - 1
    bases = [int(x) for x in rng.integers(1, 1 << 62, 300)]
    exponents = [int(x) for x in rng.integers(0, 1 << 62, 300)]
    expected = 1
    for base, exponent in zip(bases, exponents, strict=True):
        expected = expected * pow(base, exponent, modulus) % modulus
    assert multi_power(bases, exponents, modulus) == expected


@given(st.data())
def test_malformed_proof_bytes_are_refused(
    statement: tuple[Encryptor, tuple[int, ...], KnowledgeProof], data: st.DataObject
) -> None:
    good = bytearray(statement[2].to_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "zero"]))
    if kind == "flip":
        good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        good = good[: data.draw(st.integers(0, len(good) - 1))]
    elif kind == "extend":
        good += data.draw(st.binary(min_size=1, max_size=9))
    else:  # a leading zero: the same number, written longer
        good[33] += 1
        good[36:36] = b"\0"
    try:
        proof = KnowledgeProof.from_bytes(bytes(good))
    except WireError:
        return
    assert proof.to_bytes() == bytes(good)
    assert not verify_knowledge(*statement[:2], proof, b"context")


def test_ciphertexts_without_an_inverse_fail_and_do_not_crash(small_key: SecretKey) -> None:
    encryptor = Encryptor(small_key.public)
    p, n = small_key.primes()[0], small_key.public.n
    proof = KnowledgeProof(seed=bytes(range(32)), z=5, zeta=7)
    for number in (0, p, n, n * n):
        assert not verify_knowledge(encryptor, [number], proof, b"")


def test_no_secret_of_a_proof_is_an_exponent_in_variable_time(
    small_key: SecretKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    encryptor = Encryptor(small_key.public)
    sealed = encryptor.encrypt([3, 4])
    secret: list[int] = []
    variable: list[int] = []
    secret_power, power = bigint.powmod_secret, bigint.powmod
    monkeypatch.setattr(
        bigint, "powmod_secret", lambda b, e, m: secret.append(int(e)) or secret_power(b, e, m)
    )
    monkeypatch.setattr(bigint, "powmod", lambda b, e, m: variable.append(int(e)) or power(b, e, m))
    prove_knowledge(encryptor, [3, 4], sealed, b"here")
    assert len(secret) == 1
    assert variable == []


def test_ciphertexts_chosen_after_the_challenges_are_refused(small_key: SecretKey) -> None:
    """The attack on a hash that forgets the ciphertexts: c_1 = victim^-e_2, c_2 = victim^e_1.

    Their batch is 1 whatever the victim encrypted, so nobody needs to know it.
    """
    encryptor = Encryptor(small_key.public)
    degree = encryptor.degree
    N = int(degree.modulus)
    (victim,) = encryptor.encrypt([123456]).ciphertexts
    y, alpha = 5, 1 << 400
    hs = pow(small_key.public.base, int(degree.plaintexts), N)
    U = int(degree.one_plus_n(y)) * pow(hs, alpha, N) % N
    guessed = (victim, victim)
    seed = knowledge._seed(encryptor, b"here", guessed, U)
    e_1, e_2 = knowledge._challenges(seed, 2)
    forged = (pow(victim, -e_2, N), pow(victim, e_1, N))
    proof = KnowledgeProof(seed=seed, z=y, zeta=alpha)
    assert multi_power(forged, [e_1, e_2], N) == 1
    assert not verify_knowledge(encryptor, forged, proof, b"here")
    # What the proof is about and what was hashed agree here, and the equation fails.
    assert not verify_knowledge(encryptor, guessed, proof, b"here")


def test_a_true_proof_with_a_response_too_long_is_refused(small_key: SecretKey) -> None:
    """Its equation holds; the bound is what keeps verification cheap for everybody."""
    encryptor = Encryptor(small_key.public)
    degree = encryptor.degree
    N, plain = int(degree.modulus), [9]
    sealed = encryptor.encrypt(plain)
    hs = pow(small_key.public.base, int(degree.plaintexts), N)
    bound = knowledge._response_bound(encryptor, 1)
    for alpha, holds in ((1 << 400, True), (bound, False), (1 << 20_000, False)):
        U = int(degree.one_plus_n(3)) * pow(hs, alpha, N) % N
        seed = knowledge._seed(encryptor, b"", sealed.ciphertexts, U)
        (e,) = knowledge._challenges(seed, 1)
        proof = KnowledgeProof(
            seed=seed,
            z=(3 + e * plain[0]) % int(degree.plaintexts),
            zeta=alpha + e * sealed.exponents[0],
        )
        assert verify_knowledge(encryptor, sealed.ciphertexts, proof, b"") is holds
