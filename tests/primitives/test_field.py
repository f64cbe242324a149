"""GF(2^31-1) on arrays against plain integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.primitives.field import PRIME, interpolation_matrix, inverse, multiply

elements = st.one_of(st.sampled_from([0, 1, 2, PRIME - 2, PRIME - 1]), st.integers(0, PRIME - 1))


def plain_product(a: list[list[int]], b: list[list[int]]) -> list[list[int]]:
    columns = list(zip(*b, strict=True))
    return [[sum(x * y for x, y in zip(r, c, strict=True)) % PRIME for c in columns] for r in a]


@given(st.data())
def test_products_of_matrices_are_exact(data: st.DataObject) -> None:
    r, s, c = (data.draw(st.integers(1, 6)) for _ in range(3))
    a = [[data.draw(elements) for _ in range(s)] for _ in range(r)]
    b = [[data.draw(elements) for _ in range(c)] for _ in range(s)]
    found = multiply(np.array(a, dtype=np.uint64), np.array(b, dtype=np.uint32))
    assert found.dtype == np.uint32
    assert found.tolist() == plain_product(a, b)


@pytest.mark.parametrize("s", [1, 2047, 2048, 2049, 6001])
def test_products_are_exact_where_every_partial_sum_is_the_largest(s: int) -> None:
    largest = np.full((2, s), PRIME - 1, dtype=np.uint64)
    found = multiply(largest, largest.T.astype(np.uint32))
    assert set(found.reshape(-1).tolist()) == {s * (PRIME - 1) ** 2 % PRIME}
    # All bits of all limbs: 2^31 - 1 itself is no element, 2^30 - 1 and 2^31 - 2 come closest.
    ones = np.full((1, s), (1 << 31) - 2, dtype=np.uint64)
    other = np.full((s, 1), (1 << 30) - 1, dtype=np.uint32)
    expected = s * ((1 << 31) - 2) * ((1 << 30) - 1) % PRIME
    assert multiply(ones, other).tolist() == [[expected]]
    # Odd and above 2^53 if it were summed at once: not a float64.
    odd = np.full((s, 1), PRIME - 2, dtype=np.uint32)
    assert multiply(ones, odd).tolist() == [[s * ((1 << 31) - 2) * (PRIME - 2) % PRIME]]


def test_products_of_more_columns_than_a_block_and_of_none() -> None:
    generator = np.random.default_rng(5)
    a = generator.integers(0, PRIME, (3, 4), dtype=np.uint64)
    b = generator.integers(0, PRIME, (4, 5000), dtype=np.uint32)
    found = multiply(a, b)
    for column in (0, 2047, 2048, 4095, 4096, 4999):
        expected = plain_product(a.tolist(), [[x] for x in b[:, column].tolist()])
        assert [[x] for x in found[:, column].tolist()] == expected
    assert multiply(a, b[:, :0]).shape == (3, 0)


@given(st.lists(elements, min_size=1, max_size=9))
def test_inverses(values: list[int]) -> None:
    found = inverse(np.array(values, dtype=np.uint64)).tolist()
    assert found == [pow(x, -1, PRIME) if x else 0 for x in values]


@given(st.data())
def test_interpolation_reproduces_every_polynomial_of_small_degree(data: st.DataObject) -> None:
    s = data.draw(st.integers(1, 8))
    points = data.draw(st.lists(elements, min_size=s + 1, max_size=s + 5, unique=True))
    nodes, at = points[:s], points[s:]
    coefficients = [data.draw(elements) for _ in range(s)]

    def f(x: int) -> int:
        return sum(c * pow(x, i, PRIME) for i, c in enumerate(coefficients)) % PRIME

    W = interpolation_matrix(at=at, nodes=nodes)
    values = np.array([[f(x)] for x in nodes], dtype=np.uint32)
    assert multiply(W, values).reshape(-1).tolist() == [f(x) for x in at]
