"""One draw for a whole sum has the law of all shares together; nothing else is claimed of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from securefl.encoding import Contribution, Mechanism, NoisyCodec, NoisySpec, sum_encoded
from securefl.encoding.summed_noise import SummedNoiseCodec
from securefl.errors import ConfigurationError

SEED = bytes(32)


def spec(**changes: Any) -> NoisySpec:
    fields: dict[str, Any] = {
        "dimension": 4000,
        "clip_norm": 1.0,
        "noise_multiplier": 0.05,
        "honest_shares": 6,
        "max_clients": 10,
        "contribution": Contribution.RECORDS,
        "units": 50,
    }
    return NoisySpec.plan(**(fields | changes))


def test_vectors_are_bare_and_the_noise_comes_with_the_sum() -> None:
    codec = SummedNoiseCodec(spec())
    zero = codec.encode_zero(round_seed=SEED)
    assert not zero.values.any()
    noised = codec.add_noise(zero, 9, np.random.default_rng(0).bytes)
    assert noised.centred().any()


@pytest.mark.parametrize("shares", [1, 9])
def test_one_draw_has_the_law_of_the_sum_of_shares(shares: int) -> None:
    """4096 coordinates against 4096; two-sample Kolmogorov-Smirnov, false alarm 1e-4 each."""
    generator = np.random.default_rng(shares)
    one = SummedNoiseCodec(spec())
    many = NoisyCodec(spec())
    drawn = one.add_noise(one.encode_zero(round_seed=SEED), shares, generator.bytes).centred()
    summed = sum_encoded(
        [many.encode_zero(round_seed=SEED, random_bytes=generator.bytes) for _ in range(shares)]
    ).centred()
    assert stats.ks_2samp(drawn, summed).pvalue > 1e-4
    # And of the central mechanism: variance shares * mu_share, within 5 standard errors.
    expected = shares * spec().mu_share
    assert abs(drawn.var() / expected - 1) < 5 * np.sqrt(2 / len(drawn))


def test_sums_of_discrete_gaussians_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Skellam shares only"):
        SummedNoiseCodec(spec(mechanism=Mechanism.DISCRETE_GAUSSIAN, noise_multiplier=1.0))


@pytest.mark.parametrize("shares", [0, 11])
def test_an_impossible_number_of_shares_is_refused(shares: int) -> None:
    codec = SummedNoiseCodec(spec())
    with pytest.raises(ConfigurationError, match="shares must be"):
        codec.add_noise(codec.encode_zero(round_seed=SEED), shares, np.random.default_rng(0).bytes)
