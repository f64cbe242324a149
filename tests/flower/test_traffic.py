"""The search for updates in recorded traffic: what it must find, and what it must let pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

import numpy as np
from flower_traffic import LEAST, LIMIT, correlations, holds
from hypothesis import example, given, settings
from hypothesis import strategies as st

N = LEAST
BITS = 32


def update(seed: int) -> np.ndarray:
    return np.random.default_rng([1, seed]).normal(scale=0.05, size=N).astype(np.float32)


def as_it_is(values: np.ndarray) -> bytes:
    return values.astype("<f4").tobytes()


def as_doubles_of_another_model(values: np.ndarray) -> bytes:
    model = np.random.default_rng(8).normal(scale=0.02, size=N)
    return (values + model).astype("<f8").tobytes()


def as_small_steps(values: np.ndarray) -> bytes:
    return np.rint(values * 1e5).astype("<i4").tobytes()


def as_weighted_ring_elements(values: np.ndarray) -> bytes:
    """What a client would send whose masks are zero."""
    return (np.rint(240 * values * 1e5).astype(np.int64) % (1 << BITS)).astype("<u4").tobytes()


def as_wide_ring_elements(values: np.ndarray) -> bytes:
    return (np.rint(values * 1e9).astype(np.int64)).astype("<i8").tobytes()


def masked(values: np.ndarray, random: np.random.Generator) -> bytes:
    mask = random.integers(0, 1 << BITS, size=N)
    encoded = np.rint(240 * values * 1e5).astype(np.int64)
    return ((encoded + mask) % (1 << BITS)).astype("<u4").tobytes()


FORMS = (
    as_it_is,
    as_doubles_of_another_model,
    as_small_steps,
    as_weighted_ring_elements,
    as_wide_ring_elements,
)


@given(st.sampled_from(FORMS), st.integers(0, 40_000), st.integers(0, 1000))
@example(as_it_is, 16_384 * 4 - 5, 0)
@settings(max_examples=12, deadline=None)
def test_an_update_is_found_in_every_form_wherever_it_stands(
    form: Callable[[np.ndarray], bytes], before: int, seed: int
) -> None:
    random = np.random.default_rng([2, seed])
    stream = random.bytes(before) + form(update(seed)) + random.bytes(500)
    found = correlations([stream], np.stack([update(seed), update(seed + 1)]))
    assert found[0] > LIMIT
    assert found[1] < LIMIT


def test_masked_vectors_and_texts_are_no_alarm() -> None:
    """Fixed seed, so nothing here is left to chance; LIMIT says how rare an alarm would be."""
    random = np.random.default_rng(3)
    updates = np.stack([update(seed) for seed in range(6)])
    stream = b"".join(
        b"POST /fleet/push-messages HTTP/1.1\r\nContent-Length: 2604\r\n\r\n" * 20
        + masked(values, random)
        + bytes(3000)
        for values in updates
    )
    assert correlations([stream], updates).max() < LIMIT


def test_what_is_sent_in_clear_is_held_and_what_is_masked_is_not() -> None:
    random = np.random.default_rng(4)
    values = update(1)
    assert holds([b"x" + as_it_is(values)], values)
    assert holds([b"x" + values.astype("<f8").tobytes()], values)
    assert not holds([masked(values, random)], values)


def test_too_few_numbers_would_make_the_limit_a_wrong_promise() -> None:
    with pytest.raises(ValueError, match="at least 600"):
        correlations([b""], np.zeros((1, 10)))
