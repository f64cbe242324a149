"""Parts of peersum on their own: shares, messages, keys, numbers and sizes, with other oracles."""

from __future__ import annotations

import hashlib
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError, WireError
from securefl.primitives.field import PRIME
from securefl.primitives.reed_solomon import TooManyErrors
from securefl.protocols.peersum import FolderRegister, PeerSumParams
from securefl.protocols.peersum.messages import (
    AdvertiseKeys,
    Confirm,
    Report,
    RevealSum,
    ShareInput,
)
from securefl.protocols.peersum.params import (
    check_sum_fits,
    least_quorum,
    most_corrupt,
    most_input_bits,
    two_lists_possible,
)
from securefl.protocols.peersum.polynomials import coefficients, deal, open_sum, wrong_rows
from securefl.protocols.peersum.sizes import SessionShape, traffic
from securefl.protocols.peersum.transitions import PHASES, MessageType
from securefl.round import ClientId, Cohort, RoundId
from securefl.wire import decode_frame

entries = st.integers(0, PRIME - 1)


# -- shares -------------------------------------------------------------------------------------


@given(data=st.data(), n=st.integers(2, 9), m=st.integers(0, 5), dealers=st.integers(1, 4))
def test_sums_of_shares_open_the_sum_and_are_plain_polynomials(
    data: Any, n: int, m: int, dealers: int
) -> None:
    t = data.draw(st.integers(2, n))
    secrets = np.array(
        data.draw(st.lists(st.lists(entries, min_size=m, max_size=m), min_size=dealers,
                           max_size=dealers)), dtype=np.uint32).reshape(dealers, m)  # fmt: skip
    total = np.zeros((n, m), dtype=np.uint64)
    for u in range(dealers):
        noise = coefficients(bytes([u]) * 16, t=t, m=m)
        shares = deal(secrets[u], noise, list(range(n)))
        for h in range(n):  # plain integers
            expected = [
                sum(int(c) * (h + 1) ** (j + 1) for j, c in enumerate(noise[:, i])) + int(x)
                for i, x in enumerate(secrets[u])
            ]
            assert shares[h].tolist() == [e % PRIME for e in expected]
        total += shares
    sums = (total % PRIME).astype(np.uint32)
    holders = data.draw(st.permutations(range(n)))[: data.draw(st.integers(t, n))]
    opened = open_sum(sums[holders], holders, t)
    assert opened.tolist() == [sum(map(int, column)) % PRIME for column in secrets.T]
    assert wrong_rows(sums[holders], holders, t, np.random.default_rng(1).bytes) == ()


def test_t_minus_1_shares_are_explained_by_every_secret() -> None:
    """The coefficients' part of any t - 1 shares is invertible: n = 8, all t, all holders."""
    for t in range(2, 9):
        for holders in combinations(range(8), t - 1):
            V = [[pow(1 + h, j, PRIME) for j in range(1, t)] for h in holders]
            det = 1  # Vandermonde: product of points and of their differences
            for h in holders:
                det = det * (1 + h) % PRIME
            for a, b in combinations(holders, 2):
                det = det * (b - a) % PRIME
            assert det and len(V) == t - 1


def test_wrong_rows_are_found_up_to_half_the_redundancy() -> None:
    rng = np.random.default_rng(4)
    n, t, m = 9, 4, 3
    shares = deal(np.arange(m, dtype=np.uint32), coefficients(bytes(16), t=t, m=m), list(range(n)))
    for wrong in ((), (0,), (3, 7)):
        bad = shares.copy()
        for row in wrong:
            bad[row, rng.integers(m)] ^= np.uint32(1 + rng.integers(1 << 20))
        assert wrong_rows(bad, list(range(n)), t, rng.bytes) == wrong
    bad = shares.copy()
    bad[[1, 4, 6], 0] ^= np.array([5, 77, 1001], dtype=np.uint32)
    with pytest.raises(TooManyErrors):
        wrong_rows(bad, list(range(n)), t, rng.bytes)


def test_coefficients_are_uniform_words_of_the_keys_stream() -> None:
    """Against AES in counter mode from the library below, word by word."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = hashlib.sha256(b"key").digest()[:16]
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * 60))
    words = [int.from_bytes(stream[4 * i : 4 * i + 4], "little") & PRIME for i in range(60)]
    found = coefficients(key, t=4, m=20)
    assert found.shape == (3, 20)
    assert found.reshape(-1).tolist() == words  # none of them is p with this key


# -- messages -----------------------------------------------------------------------------------

N, M = 11, 3
flags = st.lists(st.booleans(), min_size=N, max_size=N).map(np.array)
DECODERS = {
    AdvertiseKeys: AdvertiseKeys.decode,
    ShareInput: lambda body: ShareInput.decode(body, m=M),
    Report: lambda body: Report.decode(body, n=N),
    Confirm: lambda body: Confirm.decode(body, n=N),
    RevealSum: lambda body: RevealSum.decode(body, n=N, m=M),
}


@given(data=st.data())
def test_messages_are_read_as_they_were_written(data: Any) -> None:
    alive, signers = data.draw(flags), data.draw(flags)
    blob = st.binary(min_size=4 * M + 16, max_size=4 * M + 16)
    signatures = tuple(bytes([i]) * 64 for i in range(int(signers.sum())))
    for message in (
        AdvertiseKeys(c_pk=data.draw(st.binary(min_size=32, max_size=32))),
        ShareInput(ciphertext=data.draw(blob)),
        Report(dealers=alive),
        Confirm(alive=alive, signature=bytes(64)),
        RevealSum(alive=alive, signers=signers, signatures=signatures,
                  ciphertext=data.draw(blob)),
    ):  # fmt: skip
        body = message.encode()
        assert DECODERS[type(message)](body).encode() == body
        for wrong in (body[:-1], body + b"\0"):
            with pytest.raises(WireError):
                DECODERS[type(message)](wrong)


@given(body=st.binary(max_size=400), kind=st.sampled_from(list(DECODERS)))
@example(body=bytes(2) + bytes(64), kind=Confirm)
@example(body=b"\xff\xff", kind=Report)
def test_any_bytes_are_a_message_in_its_one_encoding_or_a_wire_error(
    body: bytes, kind: type
) -> None:
    try:
        message = DECODERS[kind](body)
    except WireError:
        return
    assert message.encode() == body


def test_padding_bits_must_be_zero() -> None:
    for kind in (Report, Confirm, RevealSum):
        good = {
            Report: bytes(2),
            Confirm: bytes(66),
            RevealSum: bytes(4 + 4 * M + 16),
        }[kind]
        DECODERS[kind](good)
        with pytest.raises(WireError, match="padding"):
            DECODERS[kind](good[:1] + b"\x80" + good[2:])


# -- numbers ------------------------------------------------------------------------------------


@given(n=st.integers(3, 40), data=st.data())
def test_parameters_leave_room_for_one_list_and_two_honest_inputs(n: int, data: Any) -> None:
    A = data.draw(st.integers(1, n))
    D = data.draw(st.integers(0, n))
    try:
        params = PeerSumParams.of(n, corrupt=A, dropped=D)
    except ConfigurationError:
        # Only where no numbers would do.
        assert n - D < least_quorum(n, A) or n - D - A < 2 or n - D < A + 1
        return
    assert A < params.t <= params.q <= n - D
    assert 2 * params.q > n + A
    assert not two_lists_possible(n, params.q, A)
    assert params.min_honest == params.n_min - A >= 2
    assert most_corrupt(n, n - D) >= A


def test_the_quorum_is_the_least_that_rules_out_two_lists_by_trying_all_votes() -> None:
    for n in range(3, 9):
        for c in range(1, n):
            for q in range(1, n + 1):
                possible = any(
                    first + c >= q and (n - c - first) + c >= q for first in range(n - c + 1)
                )
                assert two_lists_possible(n, q, c) is (possible or q <= c)
                assert (q >= least_quorum(n, c)) is (not two_lists_possible(n, q, c))


def test_the_most_corrupt_peers_are_borne_and_one_more_is_not() -> None:
    for n in range(3, 21):
        for alive in range(least_quorum(n, 1), n + 1):
            A = most_corrupt(n, alive)
            if A < 1:
                continue
            assert PeerSumParams.of(n, corrupt=A, dropped=n - alive).q == alive
            with pytest.raises(ConfigurationError):
                PeerSumParams.of(n, corrupt=A + 1, dropped=n - alive)


def test_sums_that_could_wrap_are_refused_with_the_numbers() -> None:
    for n in (3, 10, 200):
        bits = most_input_bits(n)
        check_sum_fits(n, bits)
        assert n * (2**bits - 1) < PRIME <= n * (2 ** (bits + 1) - 1)
        with pytest.raises(ConfigurationError, match=f"use 1 to {bits} bits"):
            check_sum_fits(n, bits + 1)


def test_vectors_that_fit_no_frame_and_foreign_cohorts_are_refused() -> None:
    params = PeerSumParams.of(5, corrupt=1, dropped=1)
    common = {"round_id": RoundId(0), "context_digest": bytes(32), "nonce": bytes(32)}
    with pytest.raises(ConfigurationError, match="do not fit"):
        params.config(cohort=Cohort.of(range(5)), m=1 << 30, **common)
    with pytest.raises(ConfigurationError, match="for 5 peers, the cohort has 4"):
        params.config(cohort=Cohort.of(range(4)), m=1, **common)


def test_a_register_on_disk_remembers_and_knows_its_sessions_apart(tmp_path: Path) -> None:
    folder = tmp_path / "entered"
    assert FolderRegister(folder).enter(bytes(32))
    assert not FolderRegister(folder).enter(bytes(32))
    assert FolderRegister(folder).enter(b"\1" * 32)
    assert folder.stat().st_mode & 0o777 == 0o700


# -- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "gone"), [(3, 0, 0), (5, 7, 0), (6, 4, 1), (9, 33, 2)])
def test_the_size_model_counts_the_bytes_of_real_sessions(
    kit: Any, n: int, m: int, gone: int
) -> None:
    bench = kit.make(n, m=m, D=gone)
    bench.start()
    for _ in PHASES[:1]:
        bench.deliver()
        bench.close()
    bench.deliver()
    bench.gone = {ClientId(u) for u in range(n - gone + 1, n + 1)}
    bench.close()
    bench.finish()
    expected = traffic(SessionShape(n=n, m=m), dropped=gone)
    kinds = dict(zip(MessageType, ("AdvertiseKeys", "ShareInput", "Report", "Confirm",
                                   "RevealSum"), strict=False))  # fmt: skip
    up: dict[str, int] = {}
    down: dict[str, int] = {}
    for (u, v, kind), frame in bench.sent.items():
        assert len(frame) == 124 + len(decode_frame(frame).body)
        if u == 1:
            up[kinds[kind]] = up.get(kinds[kind], 0) + len(frame)
        if v == 1:
            down[kinds[kind]] = down.get(kinds[kind], 0) + len(frame)
    assert up == dict(expected.upload)
    assert down == dict(expected.download)


def test_sizes_of_impossible_sessions_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="n >= 3"):
        SessionShape(n=2, m=1)
    with pytest.raises(ConfigurationError, match="fewer than two"):
        traffic(SessionShape(n=4, m=1), dropped=3)
