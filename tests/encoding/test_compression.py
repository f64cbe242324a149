"""Compression is one linear map for all clients, and it composes with both codecs."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import accounting
from securefl.encoding import (
    CodecSpec,
    CompressedCodec,
    Contribution,
    NoisyCodec,
    NoisySpec,
    RandomK,
    SharedTopK,
    Sketch,
    UpdateCodec,
    Weighting,
    sum_encoded,
)
from securefl.errors import ConfigurationError
from securefl.round import AggregateSum, ClientId

SEED = bytes(range(32))


def opened(vectors):
    return AggregateSum(
        vector=sum_encoded(vectors),
        survivors=tuple(ClientId(k) for k in range(1, len(vectors) + 1)),
        min_honest=1,
    )


@st.composite
def compressions(draw):
    d = draw(st.one_of(st.integers(1, 60), st.integers(1, 3000)))
    kept = draw(st.integers(1, d))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return draw(
        st.sampled_from(
            [
                RandomK(dimension=d, kept=kept),
                Sketch(dimension=d, kept=kept),
                SharedTopK.of(rng.normal(size=d), kept=kept),
            ]
        )
    )


@given(compressions(), st.integers(0, 2**32))
def test_compression_is_linear_both_ways_and_never_lengthens(compression, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, compression.dimension))

    def small(v):
        return compression.compress(v, round_seed=SEED)

    def back(v):
        return compression.expand(v, round_seed=SEED)

    assert small(x).shape == (compression.kept,)
    assert back(small(x)).shape == x.shape
    assert np.allclose(small(x) + 3 * small(y), small(x + 3 * y), rtol=0, atol=1e-12)
    assert np.allclose(back(small(x)) + back(small(y)), back(small(x) + small(y)), atol=1e-9)
    assert np.linalg.norm(small(x)) <= np.linalg.norm(x) * (1 + 1e-12)
    assert small(x.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("kind", [RandomK, Sketch])
def test_random_coordinates_are_unbiased_over_round_seeds(kind):
    """The mean over 3,000 seeds is within 6.2 standard errors in every coordinate (of 6)."""
    x = np.array([3.0, -1.0, 0.5, 0.0, 2.0, 10.0])
    compression = kind(dimension=6, kept=2)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(3000):
        seed = rng.bytes(16)
        found.append(compression.expand(compression.compress(x, round_seed=seed), round_seed=seed))
    errors = np.std(found, axis=0) / np.sqrt(len(found)) + 1e-12
    assert (np.abs(np.mean(found, axis=0) - x) < 6.2 * errors).all()
    assert (np.abs(np.mean(found, axis=0) / 1.3 - x) > 6.2 * errors).any()


def test_every_subset_of_coordinates_is_as_likely_as_any_other():
    """Chi-square over the 10 pairs of 5, false alarm 1e-9."""
    compression = RandomK(dimension=5, kept=2)
    rng = np.random.default_rng(1)
    counts = Counter(
        tuple(compression.compress(np.arange(5.0), round_seed=rng.bytes(16)).astype(int).tolist())
        for _ in range(5000)
    )
    assert set(counts) == set(itertools.combinations(range(5), 2))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-9


def test_keeping_everything_gives_everything_back():
    x = np.random.default_rng(0).normal(size=2100)
    for compression in (
        RandomK(dimension=2100, kept=2100),
        Sketch(dimension=2100, kept=4096),
        SharedTopK.of(x, kept=2100),
    ):
        back = compression.expand(compression.compress(x, round_seed=SEED), round_seed=SEED)
        assert np.allclose(back, x, atol=1e-12)


def test_the_top_of_the_public_vector_is_kept_and_ties_go_to_the_lower_index():
    top = SharedTopK.of(np.array([1.0, -5.0, 2.0, -2.0, 2.0]), kept=3)
    assert top.indices.tolist() == [1, 2, 3]
    expanded = top.expand(np.array([1.0, 2.0, 3.0]), round_seed=b"")
    assert expanded.tolist() == [0.0, 1.0, 2.0, 3.0, 0.0]


def test_among_many_equal_values_the_first_are_kept():
    public = np.tile([1.0, -2.0], 5000)
    assert SharedTopK.of(public, kept=1000).indices.tolist() == list(range(1, 2000, 2))


@given(compressions(), st.integers(1, 5), st.integers(0, 2**32))
def test_the_plain_codec_decodes_the_expanded_mean_of_what_was_kept(compression, n, seed):
    inner = UpdateCodec(CodecSpec.plan(dimension=compression.kept, clip_norm=100.0, max_clients=5))
    codec = CompressedCodec(compression, inner)
    assert (codec.dimension, codec.length) == (compression.dimension, compression.kept)
    rng = np.random.default_rng(seed)
    clients = rng.normal(size=(n, compression.dimension)) / compression.dimension**0.5
    vectors = [codec.encode(x, round_seed=SEED) for x in clients]
    decoded = codec.decode(opened(vectors), round_seed=SEED)
    exact = compression.expand(
        compression.compress(clients.mean(axis=0), round_seed=SEED), round_seed=SEED
    )
    grown = 2 * compression.dimension / compression.kept
    error = np.linalg.norm(decoded.mean - exact)
    assert error <= inner.mean_error_bound * compression.kept**0.5 * grown + 1e-9
    assert decoded.weight == n


def test_weights_pass_through():
    inner = UpdateCodec(
        CodecSpec.plan(
            dimension=2,
            clip_norm=20.0,
            max_clients=2,
            weighting=Weighting.WEIGHTED,
            max_weight=9,
        )
    )
    codec = CompressedCodec(SharedTopK.of(np.array([1.0, 0.0, 2.0]), kept=2), inner)
    a, b = np.array([1.0, 9.0, 3.0]), np.array([4.0, 9.0, 6.0])
    vectors = [codec.encode(a, weight=6), codec.encode(b, weight=4)]
    assert np.allclose(codec.decode(opened(vectors)).mean, [2.2, 0.0, 4.2], atol=1e-5)


def test_with_noise_selection_comes_before_the_clip():
    """A huge coordinate that is left out must not shrink those that are sent."""
    spec = NoisySpec.plan(
        dimension=64,
        clip_norm=1.0,
        noise_multiplier=0.05,
        honest_shares=1,
        max_clients=1,
        contribution=Contribution.CLIENT,
        units=1,
    )
    public = np.zeros(100)
    public[:64] = 1.0
    codec = CompressedCodec(SharedTopK.of(public, kept=64), NoisyCodec(spec))
    update = np.zeros(100)
    update[3], update[80] = 0.9, 1e6
    decoded = codec.decode(opened([codec.encode(update, round_seed=SEED)]), round_seed=SEED)
    # Six standard deviations of noise and rounding.
    assert decoded.mean[3] == pytest.approx(0.9, abs=6 * 0.052)
    assert decoded.mean[80] == 0
    assert codec.event(1) == spec.event(1)
    assert isinstance(codec.event(1), accounting.Skellam)
    zero = codec.decode(opened([codec.encode_zero(round_seed=SEED)]), round_seed=SEED).mean
    assert 0 < np.abs(zero).max() < 6 * 0.052
    assert codec.modulus == spec.modulus


@pytest.mark.parametrize("kind", [RandomK, Sketch])
def test_numbers_near_the_largest_float_are_bounded_like_any_others(kind):
    """Rotating them would overflow, and an error would tell whoever waits for the vector."""
    spec = NoisySpec.plan(
        dimension=64,
        clip_norm=1.0,
        noise_multiplier=1e-3,
        honest_shares=1,
        max_clients=1,
        contribution=Contribution.CLIENT,
        units=1,
        resolution=2.0**20,
    )
    codec = CompressedCodec(kind(dimension=64, kept=64), NoisyCodec(spec))
    direction = np.random.default_rng(0).uniform(0.5, 1.0, size=64)
    vector = codec.encode(direction * 1.7e308, round_seed=SEED)
    mean = codec.decode(opened([vector]), round_seed=SEED, denominator=1.0).mean
    assert mean == pytest.approx(direction / np.linalg.norm(direction), abs=0.01)


def test_what_differs_has_another_digest():
    def inner(k, bits=32):
        return UpdateCodec(CodecSpec.plan(dimension=k, clip_norm=1.0, max_clients=2, bits=bits))

    codecs = [
        inner(4),
        CompressedCodec(RandomK(dimension=8, kept=4), inner(4)),
        CompressedCodec(RandomK(dimension=8, kept=4), inner(4, bits=16)),
        CompressedCodec(RandomK(dimension=9, kept=4), inner(4)),
        CompressedCodec(RandomK(dimension=8, kept=5), inner(5)),
        CompressedCodec(Sketch(dimension=8, kept=4), inner(4)),
        CompressedCodec(SharedTopK(dimension=8, indices=np.array([0, 1, 2, 3])), inner(4)),
        CompressedCodec(SharedTopK(dimension=8, indices=np.array([0, 1, 2, 4])), inner(4)),
    ]
    assert len({codec.digest() for codec in codecs}) == len(codecs)
    assert all(len(codec.digest()) == 32 for codec in codecs)


def test_a_sum_decoded_with_another_seed_is_something_else():
    compression = RandomK(dimension=100, kept=10)
    x = np.random.default_rng(0).normal(size=100)
    small = compression.compress(x, round_seed=SEED)
    assert not np.allclose(
        compression.expand(small, round_seed=bytes(32)),
        compression.expand(small, round_seed=SEED),
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda: RandomK(dimension=5, kept=6),
        lambda: RandomK(dimension=5, kept=0),
        lambda: RandomK(dimension=0, kept=1),
        lambda: RandomK(dimension=5, kept=2.0),
        lambda: Sketch(dimension=5, kept=9),
        lambda: SharedTopK.of(np.zeros(5), kept=6),
        lambda: SharedTopK.of(np.array([np.nan]), kept=1),
        lambda: SharedTopK(dimension=5, indices=np.array([1, 1])),
        lambda: SharedTopK(dimension=5, indices=np.array([2, 1])),
        lambda: SharedTopK(dimension=5, indices=np.array([4, 5])),
        lambda: SharedTopK(dimension=5, indices=np.array([-1, 0])),
        lambda: SharedTopK(dimension=5, indices=np.array([], dtype=int)),
        lambda: SharedTopK(dimension=5, indices=np.array([0.0])),
        lambda: CompressedCodec(
            RandomK(dimension=5, kept=2),
            UpdateCodec(CodecSpec.plan(dimension=5, clip_norm=1.0, max_clients=1)),
        ),
        lambda: RandomK(dimension=5, kept=2).compress(np.zeros(4), round_seed=SEED),
        lambda: RandomK(dimension=5, kept=2).expand(np.zeros(5), round_seed=SEED),
        lambda: RandomK(dimension=5, kept=2).compress(np.zeros(5), round_seed=b""),
    ],
)
def test_impossible_sizes_and_choices_are_refused(build):
    with pytest.raises(ConfigurationError):
        build()


def test_a_value_that_is_no_number_is_refused_also_where_it_is_left_out():
    inner = UpdateCodec(CodecSpec.plan(dimension=1, clip_norm=1.0, max_clients=1))
    codec = CompressedCodec(SharedTopK.of(np.array([1.0, 0.0]), kept=1), inner)
    with pytest.raises(ConfigurationError, match="NaN or infinite, the first at index 1"):
        codec.encode(np.array([0.0, np.nan]))
    with pytest.raises(ConfigurationError, match="2 coordinates, found"):
        codec.encode(np.zeros(1))
