"""A clipping norm that follows the updates, inside the sum that is paid for anyway."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.encoding import Contribution, NoisyCodec, NoisySpec, sum_encoded
from securefl.encoding.adaptive_clip import AdaptiveClip, AdaptiveCodec
from securefl.errors import ConfigurationError
from securefl.modular import RingVector
from securefl.round import AggregateSum, ClientId

SEED = bytes(range(32))


def codec(
    *, clients: int, noise_multiplier: float, clip_norm: float, dimension: int = 50
) -> AdaptiveCodec:
    clip = AdaptiveClip.plan(
        start=clip_norm, noise_multiplier=noise_multiplier, expected=float(clients)
    )
    spec = NoisySpec.plan(
        dimension=dimension + 1,
        clip_norm=clip.norm,
        noise_multiplier=noise_multiplier,
        honest_shares=clients,
        max_clients=clients,
        contribution=Contribution.CLIENT,
        units=clients,
    )
    return AdaptiveCodec(NoisyCodec(spec), clip=clip, clip_norm=clip_norm)


def opened(vectors: list[RingVector]) -> AggregateSum:
    return AggregateSum(
        vector=sum_encoded(vectors),
        survivors=tuple(ClientId(i) for i in range(len(vectors))),
        min_honest=len(vectors),
    )


@given(z=st.floats(0.05, 20.0), expected=st.floats(1.0, 1000.0))
def test_kappa_makes_the_noise_of_the_share_a_twentieth_or_is_two(
    z: float, expected: float
) -> None:
    clip = AdaptiveClip.plan(start=1.0, noise_multiplier=z, expected=expected)
    noise_of_share = z * clip.norm / (clip.kappa * expected)
    if clip.kappa < 2.0:
        assert noise_of_share == pytest.approx(1 / 20)
    else:
        assert clip.kappa == 2.0
        assert noise_of_share > 1 / 20 * (1 - 1e-9)
    assert clip.norm == pytest.approx(math.hypot(1.0, clip.kappa / 2))


def test_one_vector_carries_update_and_bit_and_both_come_out() -> None:
    """100 clients; noise of the mean is below .02 per entry, so .1 is more than five of them."""
    adaptive = codec(clients=100, noise_multiplier=1.0, clip_norm=2.0)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=50)
    directions /= np.linalg.norm(directions)
    # 70 clients below the norm of 2, 30 above.
    norms = np.array([1.0] * 70 + [5.0] * 30)
    vectors = [adaptive.encode(directions * norm, round_seed=SEED) for norm in norms]
    decoded = adaptive.decode(opened(list(vectors)), round_seed=SEED, denominator=100.0)
    assert np.abs(decoded.mean - directions * (0.7 * 1.0 + 0.3 * 2.0)).max() < 0.1
    # 70 % are short, the target is half: the norm shrinks by exp(-.2 (.7 - .5)), up to its noise.
    assert adaptive.next_clip_norm == pytest.approx(2.0 * math.exp(-0.2 * 0.2), rel=0.06)


def test_a_client_without_part_counts_neither_as_short_nor_as_long() -> None:
    adaptive = codec(clients=100, noise_multiplier=0.5, clip_norm=1.0)
    vectors = [adaptive.encode_zero(round_seed=SEED) for _ in range(100)]
    adaptive.decode(opened(list(vectors)), round_seed=SEED, denominator=100.0)
    # b = 1/2 up to noise of 1/20: the norm stays.
    assert adaptive.next_clip_norm == pytest.approx(1.0, rel=0.06)


def test_the_norm_finds_the_median() -> None:
    adaptive = codec(clients=200, noise_multiplier=1.0, clip_norm=0.1, dimension=10)
    rng = np.random.default_rng(3)
    norm = 0.1
    for _ in range(60):
        adaptive = AdaptiveCodec(adaptive.inner, clip=adaptive.clip, clip_norm=norm)
        lengths = rng.uniform(0.5, 1.5, size=200)
        vectors = [
            adaptive.encode(np.full(10, x / math.sqrt(10)), round_seed=SEED) for x in lengths
        ]
        adaptive.decode(opened(list(vectors)), round_seed=SEED, denominator=200.0)
        norm = adaptive.next_clip_norm
    assert 0.85 < norm < 1.15


@given(entry=st.floats(-1e6, 1e6), norm=st.floats(1e-6, 1e6))
def test_one_round_moves_the_norm_by_a_bounded_factor_whatever_the_noise(
    entry: float, norm: float
) -> None:
    clip = AdaptiveClip(start=1.0, kappa=0.5, expected=10.0)
    found = clip.next_norm(norm, entry)
    # A share of 0 or 1 against a target of one half, at rate .2.
    assert norm * math.exp(-0.1) * (1 - 1e-9) <= found <= norm * math.exp(0.1) * (1 + 1e-9)


def test_clients_with_different_norms_are_never_summed() -> None:
    first = codec(clients=10, noise_multiplier=1.0, clip_norm=1.0)
    second = AdaptiveCodec(first.inner, clip=first.clip, clip_norm=1.0 + 2**-52)
    assert first.digest() != second.digest()
    assert first.digest() != first.inner.digest()
    assert len(first.digest()) == 32


def test_the_event_is_that_of_one_vector() -> None:
    adaptive = codec(clients=10, noise_multiplier=1.0, clip_norm=1.0)
    assert adaptive.event(9, 1) == adaptive.inner.event(9, 1)
    assert (adaptive.dimension, adaptive.inner.dimension) == (50, 51)


def test_another_denominator_would_bias_the_share_and_is_refused() -> None:
    adaptive = codec(clients=3, noise_multiplier=1.0, clip_norm=1.0)
    vectors = [adaptive.encode_zero(round_seed=SEED) for _ in range(3)]
    for wrong in (None, 2.0):
        with pytest.raises(ConfigurationError, match="expected 3"):
            adaptive.decode(opened(list(vectors)), round_seed=SEED, denominator=wrong)


@pytest.mark.parametrize(
    "fields",
    [
        {"start": 0.0},
        {"kappa": -1.0},
        {"expected": float("nan")},
        {"target_quantile": 1.0},
        {"rate": float("inf")},
    ],
)
def test_impossible_numbers_are_refused(fields: dict[str, float]) -> None:
    good = {"start": 1.0, "kappa": 1.0, "expected": 10.0}
    with pytest.raises(ConfigurationError, match=next(iter(fields))):
        AdaptiveClip(**(good | fields))
    inner = codec(clients=3, noise_multiplier=1.0, clip_norm=1.0)
    with pytest.raises(ConfigurationError, match="clip_norm"):
        AdaptiveCodec(inner.inner, clip=inner.clip, clip_norm=0.0)
