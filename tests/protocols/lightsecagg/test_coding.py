"""The code against plain integers, and why T shares say nothing: rank by rank, every small N."""

from __future__ import annotations

import contextlib
import os
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.primitives.field import PRIME
from securefl.primitives.reed_solomon import TooManyErrors
from securefl.protocols.lightsecagg.coding import MaskCode, accumulate, subtract


def value_at(x: int, nodes: list[int], values: list[int]) -> int:
    """The polynomial through these points, at x: Lagrange's formula with plain integers."""
    total = 0
    for i, node in enumerate(nodes):
        term = values[i]
        for j, other in enumerate(nodes):
            if j != i:
                term = term * (x - other) * pow(node - other, -1, PRIME) % PRIME
        total += term
    return total % PRIME


def rank(rows: list[list[int]]) -> int:
    """Rank over GF(p) by elimination with plain integers."""
    rows, found = [list(row) for row in rows], 0
    for column in range(len(rows[0])):
        pivot = next((r for r in range(found, len(rows)) if rows[r][column] % PRIME), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        scale = pow(rows[found][column], -1, PRIME)
        for r in range(found + 1, len(rows)):
            factor = rows[r][column] * scale % PRIME
            rows[r] = [(a - factor * b) % PRIME for a, b in zip(rows[r], rows[found], strict=True)]
        found += 1
    return found


@st.composite
def codes(draw: st.DrawFn) -> MaskCode:
    N = draw(st.integers(3, 9))
    U = draw(st.integers(2, N))
    T = draw(st.integers(1, U - 1))
    return MaskCode(N=N, U=U, T=T, m=draw(st.integers(0, 20)))


@given(codes(), st.binary(min_size=16, max_size=16))
def test_a_share_is_the_polynomial_of_the_blocks_at_the_holders_point(
    code: MaskCode, key: bytes
) -> None:
    blocks = code.blocks(key)
    assert blocks.shape == (code.U, code.L)
    assert code.mask(blocks).tolist() == blocks[: code.K].reshape(-1).tolist()[: code.m]
    shares = code.encode(blocks, range(code.N))
    betas = [code.N + k for k in range(1, code.U + 1)]
    for j in range(code.N):
        for entry in range(code.L):
            values = [int(row[entry]) for row in blocks]
            assert int(shares[j, entry]) == value_at(j + 1, betas, values)


@given(codes(), st.data())
def test_any_u_answers_open_the_sum_of_any_masks(code: MaskCode, data: st.DataObject) -> None:
    keys = [bytes([i] * 16) for i in range(data.draw(st.integers(1, 4)))]
    dealt = [code.blocks(key) for key in keys]
    answers = np.zeros((code.N, code.L), dtype=np.uint32)
    expected = np.zeros(code.m, dtype=np.uint32)
    for blocks in dealt:
        accumulate(answers, code.encode(blocks, range(code.N)))
        accumulate(expected, code.mask(blocks))
    chosen = sorted(data.draw(st.permutations(range(code.N)))[: code.U])
    assert code.decode(answers[chosen], chosen).tolist() == expected.tolist()


@pytest.mark.parametrize("N", range(3, 9))
def test_the_noise_of_any_t_shares_is_invertible_and_of_any_more_is_not_enough(N: int) -> None:
    """Shares = W_mask z + W_noise r. The T×T part of W_noise is invertible for every T holders, so
    for every mask exactly one noise explains what they hold: uniform, and independent of the mask.
    With T + 1 holders some combination of shares is free of noise, which is why T is a bound.
    """
    for U in range(2, N + 1):
        for T in range(1, U):
            code = MaskCode(N=N, U=U, T=T, m=1)
            W = [[int(w) for w in row] for row in code.matrix]
            for holders in combinations(range(N), T):
                assert rank([W[j][code.K :] for j in holders]) == T
            for holders in combinations(range(N), T + 1):
                assert rank([W[j][code.K :] for j in holders]) == T
                assert rank([W[j] for j in holders]) == T + 1
            for holders in combinations(range(N), U):
                assert rank([W[j] for j in holders]) == U


def test_points_of_shares_and_blocks_never_meet() -> None:
    for N in range(3, 30):
        code = MaskCode(N=N, U=N, T=1, m=1)
        assert not set(code.alphas) & set(code.betas)
        assert len(set(code.alphas)) == N
        assert len(set(code.betas)) == N


def test_masks_and_noise_are_uniform_and_every_key_has_its_own() -> None:
    code = MaskCode(N=10, U=8, T=3, m=50_000)
    blocks = code.blocks(b"sixteen bytes..k")
    bins = np.bincount((blocks.reshape(-1).astype(np.uint64) * 64 // PRIME).astype(int))
    expected = blocks.size / 64
    # Chi squared with 63 degrees of freedom exceeds 140 once in ten million; the key is fixed.
    assert ((bins - expected) ** 2 / expected).sum() < 140
    assert int(blocks.max()) < PRIME
    assert not np.array_equal(blocks, code.blocks(b"sixteen bytes..l"))
    assert np.array_equal(blocks, code.blocks(b"sixteen bytes..k"))


@given(st.data())
def test_wrong_answers_within_the_radius_are_found_and_beyond_it_refused(
    data: st.DataObject,
) -> None:
    U = data.draw(st.integers(2, 8))
    T = data.draw(st.integers(1, U - 1))
    M = data.draw(st.integers(U, 12))
    code = MaskCode(N=12, U=U, T=T, m=7)
    holders = sorted(data.draw(st.permutations(range(12)))[:M])
    blocks = code.blocks(data.draw(st.binary(min_size=16, max_size=16)))
    answers = code.encode(blocks, holders)
    radius = (M - U) // 2
    wrong = sorted(data.draw(st.permutations(range(M)))[: data.draw(st.integers(0, radius + 1))])
    for row in wrong:
        entry = data.draw(st.integers(0, code.L - 1))
        answers[row, entry] = (int(answers[row, entry]) + data.draw(st.integers(1, 99))) % PRIME
    if len(wrong) <= radius:
        assert code.wrong_answers(answers, holders, os.urandom) == tuple(wrong)
        right = [row for row in range(M) if row not in wrong][:U]
        mask = code.decode(answers[right], [holders[row] for row in right])
        assert mask.tolist() == code.mask(blocks).tolist()
    elif M > U:
        # One wrong answer too many is noticed, or looks like other wrong ones: never like none.
        with contextlib.suppress(TooManyErrors):
            assert code.wrong_answers(answers, holders, os.urandom) != ()
    else:
        assert code.wrong_answers(answers, holders, os.urandom) == ()


field_elements = st.one_of(st.sampled_from([0, 1, PRIME - 2, PRIME - 1]), st.integers(0, PRIME - 1))


@given(st.lists(st.tuples(field_elements, field_elements), max_size=9))
def test_adding_and_subtracting_in_place_is_arithmetic_modulo_p(
    pairs: list[tuple[int, int]],
) -> None:
    a, b = (np.array([p[i] for p in pairs], dtype=np.uint32) for i in (0, 1))
    total, difference = a.copy(), a.copy()
    accumulate(total, b)
    subtract(difference, b)
    assert total.tolist() == [(x + y) % PRIME for x, y in pairs]
    assert difference.tolist() == [(x - y) % PRIME for x, y in pairs]
