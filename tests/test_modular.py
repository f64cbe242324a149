"""RingVector against plain Python integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.modular import MAX_MODULUS, RingVector, reduce_in_place, ring_dtype

POWERS = st.integers(1, 64).map(lambda b: 1 << b)
MODULI = st.one_of(POWERS, st.integers(2, 1 << 63), st.just((1 << 31) - 1))


def vector(values: list[int], modulus: int) -> RingVector:
    return RingVector(np.array(values, dtype=ring_dtype(modulus)), modulus)


@given(st.data(), MODULI)
def test_addition_is_addition_of_integers_modulo_m(data: st.DataObject, modulus: int) -> None:
    entries = st.lists(st.integers(0, modulus - 1), min_size=3, max_size=3)
    a, b = data.draw(entries), data.draw(entries)
    total = vector(a, modulus) + vector(b, modulus)
    assert total.values.tolist() == [(x + y) % modulus for x, y in zip(a, b, strict=True)]


@given(st.data(), POWERS)
def test_centred_undoes_from_signed(data: st.DataObject, modulus: int) -> None:
    low, high = -(modulus // 2), modulus - modulus // 2 - 1
    signed = data.draw(st.lists(st.integers(low, high), max_size=5))
    ring = RingVector.from_signed(signed, modulus)
    assert ring.values.tolist() == [x % modulus for x in signed]
    assert ring.centred().tolist() == signed


def test_an_integer_that_would_wrap_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="do not fit modulus 16"):
        RingVector.from_signed([8], modulus=16)
    with pytest.raises(ConfigurationError, match="do not fit modulus 16"):
        RingVector.from_signed([-9], modulus=16)


@pytest.mark.parametrize("modulus", [0, 1, -4, MAX_MODULUS + 1, True, 2.0])
def test_an_impossible_modulus_is_refused(modulus: int) -> None:
    with pytest.raises(ConfigurationError, match="modulus"):
        ring_dtype(modulus)


def test_wrong_words_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be uint32"):
        RingVector(np.zeros(2, dtype=np.uint64), 16)
    with pytest.raises(ConfigurationError, match="one axis"):
        RingVector(np.zeros((2, 2), dtype=np.uint32), 16)
    with pytest.raises(ConfigurationError, match="below the modulus 16, found 16"):
        vector([3, 16], 16)


def test_sums_of_different_rings_or_lengths_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot add"):
        _ = vector([1], 16) + vector([1], 32)
    with pytest.raises(ConfigurationError, match="cannot add"):
        _ = vector([1], 16) + vector([1, 2], 16)


@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=9), st.integers(2, 1 << 32))
def test_reduction_in_place_is_the_remainder(values: list[int], modulus: int) -> None:
    words = np.array(values, dtype=np.uint32)
    reduce_in_place(words, modulus)
    assert words.tolist() == [x % modulus for x in values]


def test_equality_needs_the_same_ring() -> None:
    assert vector([1], 16) == vector([1], 16)
    assert vector([1], 16) != vector([1], 32)
    assert vector([1], 16) != [1]


@pytest.mark.parametrize("given_values", [[1.5, -2.0], [2**70], [True], ["1"], [None]])
def test_only_integers_within_64_bits_become_ring_elements(given_values: list[object]) -> None:
    with pytest.raises(ConfigurationError):
        RingVector.from_signed(given_values, modulus=1 << 32)


def test_an_unsigned_value_beyond_63_bits_is_refused_and_not_taken_for_a_negative_one() -> None:
    with pytest.raises(ConfigurationError, match="do not fit"):
        RingVector.from_signed(np.array([2**64 - 1], dtype=np.uint64), modulus=1 << 64)


def test_array_subclasses_are_refused() -> None:
    masked = np.ma.array([1, 2], mask=[0, 1], dtype=np.uint32)
    with pytest.raises(ConfigurationError, match="MaskedArray"):
        RingVector(masked, 1 << 32)
