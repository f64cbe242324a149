"""One number beside an update: both bounds hold by themselves, one noise and one event for both."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.encoding import Contribution, NoisyCodec, NoisySpec, noisy, sum_encoded
from securefl.encoding.adaptive_clip import AdaptiveClip, AdaptiveCodec
from securefl.encoding.joint import JointCodec, SideEntry, SideEntryCodec
from securefl.errors import ConfigurationError
from securefl.round import AggregateSum, ClientId

SEED = bytes(range(32))


def spec_of(norm, *, dimension=20, clients=4, noise_multiplier=1.0):
    return NoisySpec.plan(
        dimension=dimension + 1,
        clip_norm=norm,
        noise_multiplier=noise_multiplier,
        honest_shares=clients,
        max_clients=clients,
        contribution=Contribution.CLIENT,
        units=clients,
    )


def side_codec(*, kappa=0.5, clip_norm=2.0, **fields):
    side = SideEntry(kappa=kappa)
    return SideEntryCodec(NoisyCodec(spec_of(side.norm, **fields)), side=side, clip_norm=clip_norm)


def without_noise(patch):
    patch.setattr(noisy, "draw", lambda table, count, source: np.zeros(count, np.int64))


def opened(vectors):
    return AggregateSum(
        vector=sum_encoded(vectors),
        survivors=tuple(ClientId(i) for i in range(len(vectors))),
        min_honest=1,
    )


@given(
    kappa=st.floats(0.01, 3.0),
    clip_norm=st.floats(1e-3, 1e3),
    length=st.floats(0.0, 1e6),
    entry=st.floats(-1e9, 1e9),
    share=st.floats(0.0, 1.0),
    adaptive=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_update_and_entry_together_are_never_longer_than_the_event_says(
    kappa, clip_norm, length, entry, share, adaptive, seed
):
    """Whatever a client brings, and whatever it counts; the oracle adds squares in integers."""
    rng = np.random.default_rng(seed)
    update = rng.normal(size=20)
    update *= length * clip_norm / np.linalg.norm(update)
    codec: JointCodec
    if adaptive:
        clip = AdaptiveClip(start=clip_norm, kappa=kappa, expected=4.0)
        codec = AdaptiveCodec(NoisyCodec(spec_of(clip.norm)), clip=clip, clip_norm=clip_norm)
        values = update
    else:
        codec = side_codec(kappa=kappa, clip_norm=clip_norm)
        values = np.append(update, entry)
    with pytest.MonkeyPatch.context() as patch:
        without_noise(patch)
        # What the integers' own test would redraw or cut must not be what keeps the bound.
        drawn = []
        patch.setattr(NoisyCodec, "_is_short", lambda self, integers: drawn.append(1) or True)
        vector = codec.encode(values, share=share, round_seed=SEED, random_bytes=rng.bytes)
    assert len(drawn) == 1
    root = math.sqrt(codec.inner.spec.padded)
    # One rounding adds at most sqrt(D) to the norm r of the vector that was rounded.
    most = Fraction(codec.inner.spec.resolution + root) ** 2 * (1 + Fraction(1, 2**40))
    assert sum(int(v) ** 2 for v in vector.centred()) <= most


@given(length=st.floats(0.0, 100.0), entry=st.floats(-1.0, 2.0), share=st.floats(0.0, 1.0))
def test_the_entry_is_cut_to_its_range_and_a_long_update_does_not_shrink_it(length, entry, share):
    codec = side_codec(clip_norm=2.0)
    update = np.full(20, length / math.sqrt(20))
    with pytest.MonkeyPatch.context() as patch:
        without_noise(patch)
        vector = codec.encode(np.append(update, entry), share=share, round_seed=SEED)
        mean = codec.decode(opened([vector]), round_seed=SEED, denominator=1.0).mean
    resolution = codec.inner.spec.resolution / codec.side.norm  # steps per unit
    rounding = math.sqrt(codec.inner.spec.padded) / resolution
    assert mean[-1] == pytest.approx(
        share * min(max(entry, 0.0), 1.0), abs=rounding / codec.side.kappa
    )
    assert np.linalg.norm(mean[:-1]) == pytest.approx(share * min(length, 2.0), abs=2 * rounding)


def test_a_client_without_part_adds_nothing_to_either_sum():
    codec = side_codec()
    with pytest.MonkeyPatch.context() as patch:
        without_noise(patch)
        assert not codec.encode_zero(round_seed=SEED).values.any()


@given(z=st.floats(0.05, 20.0), expected=st.floats(1.0, 1000.0), noise=st.floats(0.005, 0.5))
def test_kappa_makes_the_noise_of_the_mean_entry_what_was_asked_or_is_one(z, expected, noise):
    side = SideEntry.plan(noise_multiplier=z, expected=expected, noise=noise)
    found = side.noise(noise_multiplier=z, expected=expected)
    assert side.norm == pytest.approx(math.sqrt(1 + side.kappa**2))
    if side.kappa < 1.0:
        assert found == pytest.approx(noise)
    else:
        assert side.kappa == 1.0
        assert found >= noise * (1 - 1e-9)


def test_the_noise_of_the_mean_entry_has_the_stated_deviation():
    """2000 sums of 4 zeros: the deviation is within 5 standard errors (2 in 10^6 runs fail)."""
    codec = side_codec(dimension=2, clients=4, noise_multiplier=1.5)
    entries = [
        codec.decode(
            opened([codec.encode_zero(round_seed=SEED) for _ in range(4)]),
            round_seed=SEED,
            denominator=10.0,
        ).mean[-1]
        for _ in range(2000)
    ]
    stated = codec.side.noise(noise_multiplier=1.5, expected=10.0) * codec.inner.spec.inflation
    assert np.std(entries) == pytest.approx(stated, rel=5 / math.sqrt(2 * 2000))


def test_one_event_pays_and_different_bounds_are_never_summed():
    first = side_codec()
    assert first.event(4, 1) == first.inner.event(4, 1)
    assert first.delta_slack == first.inner.spec.delta_slack > 0
    assert (first.dimension, first.length, first.modulus) == (
        21,
        first.inner.length,
        first.inner.modulus,
    )
    others = [
        SideEntryCodec(first.inner, side=first.side, clip_norm=2.0 + 2**-50),
        SideEntryCodec(first.inner, side=SideEntry(kappa=0.25), clip_norm=2.0),
    ]
    assert len({c.digest() for c in (first, *others)} | {first.inner.digest()}) == 4


def test_what_cannot_keep_its_word_is_refused():
    codec = side_codec()
    with pytest.raises(ConfigurationError, match="plan it with"):
        SideEntryCodec(codec.inner, side=SideEntry(kappa=0.6), clip_norm=1.0)
    for kappa in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigurationError, match="kappa"):
            SideEntry(kappa=kappa)
    with pytest.raises(ConfigurationError, match="clip_norm"):
        SideEntryCodec(codec.inner, side=codec.side, clip_norm=0.0)
    with pytest.raises(ConfigurationError, match="an update and its entry"):
        codec.encode(np.zeros(20), round_seed=SEED)
    with pytest.raises(ConfigurationError, match="NaN or infinite"):
        codec.encode(np.append(np.zeros(20), math.nan), round_seed=SEED)
    for share in (1.5, -0.1, math.nan):
        with pytest.raises(ConfigurationError, match=r"share must be in \[0, 1\]"):
            codec.encode(np.zeros(21), share=share, round_seed=SEED)
