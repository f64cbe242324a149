"""A sum of encoded updates decodes to the mean, for every configuration the codec accepts."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import accounting.events
from securefl.encoding import (
    MAX_RESOLUTION,
    CodecSpec,
    Rounding,
    UpdateCodec,
    Weighting,
    clip_by_norm,
    sum_encoded,
)
from securefl.errors import ConfigurationError, PeerProtocolError
from securefl.modular import RingVector
from securefl.round import AggregateSum, ClientId

MODULI = st.one_of(st.integers(1, 64).map(lambda b: 1 << b), st.just(2**31 - 1))


def opened(vectors, survivors=None):
    n = len(vectors) if survivors is None else survivors
    return AggregateSum(
        vector=sum_encoded(vectors),
        survivors=tuple(ClientId(k) for k in range(1, n + 1)),
        min_honest=n,
    )


@st.composite
def specs(draw):
    weighted = draw(st.booleans())
    n_max = draw(st.integers(1, 20))
    w_max = draw(st.integers(1, 1000)) if weighted else 1
    modulus = draw(MODULI)
    assume(2 * n_max * w_max + 1 <= modulus)
    return CodecSpec.plan(
        dimension=draw(st.integers(1, 30)),
        clip_norm=draw(st.floats(1e-3, 1e3)),
        max_clients=n_max,
        modulus=modulus,
        weighting=Weighting.WEIGHTED if weighted else Weighting.EQUAL,
        max_weight=w_max,
        rounding=draw(st.sampled_from(Rounding)),
    )


@given(specs(), st.data())
def test_the_decoded_mean_is_within_the_stated_error(spec, data):
    codec = UpdateCodec(spec)
    n = data.draw(st.integers(1, spec.max_clients))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scale = data.draw(st.sampled_from([0.01, 0.3, 1.0, 10.0]))
    updates = [rng.normal(0, scale * spec.clip_norm, spec.dimension) for _ in range(n)]
    if data.draw(st.booleans()):  # the extreme corner: all weight on one coordinate, one sign
        updates = [np.eye(1, spec.dimension)[0] * 2 * spec.clip_norm for _ in range(n)]
    weights = [
        data.draw(st.integers(1, spec.max_weight)) if spec.weighting == "weighted" else 1
        for _ in range(n)
    ]
    vectors = [
        codec.encode(u, weight=w, random_bytes=rng.bytes)
        for u, w in zip(updates, weights, strict=True)
    ]
    decoded = codec.decode(opened(vectors))
    clipped = np.array([clip_by_norm(u, spec.clip_norm).values for u in updates])
    exact = np.average(clipped, axis=0, weights=weights)
    assert np.abs(decoded.mean - exact).max() <= codec.mean_error_bound * (1 + 1e-9)
    assert np.abs(decoded.mean - exact).max() * sum(weights) <= codec.error_bound(n) * (1 + 1e-9)
    assert decoded.weight == sum(weights)
    assert len(decoded.survivors) == n


@given(specs())
def test_the_planned_resolution_is_the_largest_that_cannot_wrap(spec):
    n, w, Q = spec.max_clients, spec.max_weight, spec.resolution
    assert 2 * n * w * Q + 1 <= spec.modulus
    if Q < MAX_RESOLUTION:
        with pytest.raises(ConfigurationError, match="a sum could wrap"):
            dataclasses.replace(spec, resolution=Q + 1)
        with pytest.raises(ConfigurationError, match="a sum could wrap"):
            dataclasses.replace(spec, max_clients=2 * n + 1)


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 2**30))
def test_the_planned_bits_are_the_fewest(n, w, Q):
    spec = CodecSpec.plan(
        dimension=3,
        clip_norm=1.0,
        max_clients=n,
        resolution=Q,
        weighting=Weighting.WEIGHTED,
        max_weight=w,
    )
    assert spec.modulus == 1 << spec.bits
    assert 2 * n * w * Q + 1 <= spec.modulus
    assert 2 * n * w * Q + 1 > spec.modulus // 2


@given(specs(), st.data())
def test_every_encoded_vector_is_within_the_stated_sensitivity(spec, data):
    codec = UpdateCodec(spec)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    update = rng.normal(0, spec.clip_norm, spec.dimension)
    weight = spec.max_weight if spec.weighting == "weighted" else 1
    integers = codec.encode(update, weight=weight, random_bytes=rng.bytes).centred()
    square = sum(int(v) ** 2 for v in integers)
    assert square <= Fraction(codec.sensitivity) ** 2 * (1 + Fraction(1, 2**40))


def test_one_client_more_than_the_codec_was_built_for_is_refused():
    codec = UpdateCodec(CodecSpec.plan(dimension=2, clip_norm=1.0, max_clients=3, bits=8))
    vectors = [codec.encode(np.array([1.0, 0.0]))] * 4
    assert codec.decode(opened(vectors[:3])).mean[0] == pytest.approx(1.0)
    with pytest.raises(ConfigurationError, match=r"1\.\.3 clients, found 4"):
        codec.decode(opened(vectors))
    with pytest.raises(ConfigurationError, match=r"1\.\.3, found 4"):
        codec.error_bound(4)
    with pytest.raises(ConfigurationError, match="4 steps"):
        CodecSpec(dimension=2, clip_norm=1.0, resolution=4, max_clients=32, modulus=256)


def test_the_textbook_weights_give_the_textbook_means():
    a, b = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    weighted = UpdateCodec(
        CodecSpec.plan(
            dimension=3, clip_norm=20.0, max_clients=2, weighting=Weighting.WEIGHTED, max_weight=6
        )
    )
    vectors = [weighted.encode(a, weight=6), weighted.encode(b, weight=4)]
    assert np.allclose(weighted.decode(opened(vectors)).mean, [2.2, 3.2, 4.2], atol=1e-5)
    equal = UpdateCodec(CodecSpec.plan(dimension=3, clip_norm=20.0, max_clients=2))
    vectors = [equal.encode(a), equal.encode(b)]
    assert np.allclose(equal.decode(opened(vectors)).mean, [2.5, 3.5, 4.5], atol=1e-5)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=8))
def test_the_sum_of_weights_is_exact(weights):
    codec = UpdateCodec(
        CodecSpec.plan(
            dimension=1,
            clip_norm=1.0,
            max_clients=8,
            bits=64,
            weighting=Weighting.WEIGHTED,
            max_weight=10**9,
        )
    )
    vectors = [codec.encode(np.array([0.5]), weight=w) for w in weights]
    if sum(weights) == 0:
        with pytest.raises(ConfigurationError, match=r"weights of all .* are zero"):
            codec.decode(opened(vectors))
    else:
        decoded = codec.decode(opened(vectors))
        assert decoded.weight == sum(weights)
        assert decoded.mean[0] == pytest.approx(0.5, abs=codec.mean_error_bound)


def test_a_weight_of_zero_sends_zeros_only():
    spec = CodecSpec.plan(
        dimension=2, clip_norm=1.0, max_clients=2, weighting=Weighting.WEIGHTED, max_weight=3
    )
    assert not UpdateCodec(spec).encode(np.array([0.3, 0.4]), weight=0).values.any()


def test_a_public_denominator_replaces_the_number_of_survivors():
    codec = UpdateCodec(CodecSpec.plan(dimension=1, clip_norm=1.0, max_clients=4))
    vectors = [codec.encode(np.array([0.5])), codec.encode(np.array([0.25]))]
    decoded = codec.decode(opened(vectors), denominator=4.0)
    assert decoded.mean[0] == pytest.approx(0.1875, abs=1e-6)
    assert decoded.weight == 4.0
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigurationError, match="denominator must be positive"):
            codec.decode(opened(vectors), denominator=bad)


def test_a_weighted_sum_takes_no_denominator():
    spec = CodecSpec.plan(
        dimension=1, clip_norm=1.0, max_clients=2, weighting=Weighting.WEIGHTED, max_weight=3
    )
    codec = UpdateCodec(spec)
    with pytest.raises(ConfigurationError, match="divided by its own sum of weights"):
        codec.decode(opened([codec.encode(np.zeros(1), weight=2)]), denominator=2.0)


@pytest.mark.parametrize("weight", [-1, 4, 1.0, True])
def test_a_weight_out_of_range_is_refused(weight):
    spec = CodecSpec.plan(
        dimension=1, clip_norm=1.0, max_clients=2, weighting=Weighting.WEIGHTED, max_weight=3
    )
    with pytest.raises(ConfigurationError, match="weight must be"):
        UpdateCodec(spec).encode(np.zeros(1), weight=weight)


def test_an_equal_codec_refuses_a_weight():
    codec = UpdateCodec(CodecSpec.plan(dimension=1, clip_norm=1.0, max_clients=2))
    with pytest.raises(ConfigurationError, match="carries no weights"):
        codec.encode(np.zeros(1), weight=2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_refused(bad):
    codec = UpdateCodec(CodecSpec.plan(dimension=2, clip_norm=1.0, max_clients=2))
    with pytest.raises(ConfigurationError, match="diverged"):
        codec.encode(np.array([0.0, bad]))


def test_a_sum_that_no_honest_clients_could_have_sent_is_refused():
    equal = UpdateCodec(CodecSpec.plan(dimension=1, clip_norm=1.0, max_clients=8, resolution=100))
    honest, forged = equal.encode(np.array([1.0])), RingVector.from_signed([101], equal.modulus)
    assert equal.decode(opened([honest, honest])).mean[0] == 1.0
    with pytest.raises(PeerProtocolError, match="did not encode with this codec"):
        equal.decode(opened([honest, forged]))
    spec = CodecSpec.plan(
        dimension=1,
        clip_norm=1.0,
        max_clients=8,
        resolution=100,
        weighting=Weighting.WEIGHTED,
        max_weight=5,
    )
    weighted = UpdateCodec(spec)
    for values in ([0, 6], [0, -1], [201, 2]):
        forged = RingVector.from_signed(values, weighted.modulus)
        with pytest.raises(PeerProtocolError, match="did not encode with this codec"):
            weighted.decode(opened([forged]))


def test_a_sum_of_another_ring_or_length_is_refused():
    codec = UpdateCodec(CodecSpec.plan(dimension=2, clip_norm=1.0, max_clients=2, bits=16))
    for length, modulus in ((2, 1 << 17), (3, 1 << 16)):
        with pytest.raises(ConfigurationError, match="expected 2 entries mod 65536"):
            codec.decode(opened([RingVector.zeros(length, modulus)]))
    with pytest.raises(ConfigurationError, match="encodes 2 coordinates"):
        codec.encode(np.zeros(3))
    with pytest.raises(ConfigurationError, match="found 0"):
        codec.decode(opened([RingVector.zeros(2, 1 << 16)], survivors=0))


@given(specs())
def test_the_digest_depends_on_every_field(spec):
    digests = {spec.digest(), dataclasses.replace(spec, dimension=spec.dimension + 1).digest()}
    digests.add(dataclasses.replace(spec, clip_norm=spec.clip_norm * 1.5).digest())
    other = {Rounding.NEAREST: Rounding.STOCHASTIC, Rounding.STOCHASTIC: Rounding.NEAREST}
    digests.add(dataclasses.replace(spec, rounding=other[spec.rounding]).digest())
    count = 4
    if spec.resolution > 1:
        digests.add(dataclasses.replace(spec, resolution=spec.resolution - 1).digest())
        count += 1
    if spec.modulus < 1 << 63:
        larger = 1 << (spec.bits + 1)
        digests.add(dataclasses.replace(spec, modulus=larger).digest())
        count += 1
    if spec.max_clients > 1:
        digests.add(dataclasses.replace(spec, max_clients=spec.max_clients - 1).digest())
        count += 1
    if spec.max_weight > 1:
        digests.add(dataclasses.replace(spec, max_weight=spec.max_weight - 1).digest())
        count += 1
    elif spec.weighting is Weighting.WEIGHTED:
        digests.add(dataclasses.replace(spec, weighting=Weighting.EQUAL).digest())
        count += 1
    assert len(digests) == count
    assert all(len(d) == 32 for d in digests)
    assert dataclasses.replace(spec).digest() == spec.digest()


def test_the_digest_is_stable_across_versions():
    spec = CodecSpec(dimension=650, clip_norm=1.0, resolution=1000, max_clients=10, modulus=1 << 16)
    assert spec.digest().hex() == DIGEST


DIGEST = "435e2f464dea221784ae873c2c5cfa8e9b2e568f9b33a535f2483ab79dbcc06a"


@pytest.mark.parametrize("modulus", [2**31, 2**31 - 1, 2**64])
def test_named_moduli_are_accepted(modulus):
    spec = CodecSpec.plan(dimension=1, clip_norm=1.0, max_clients=3, modulus=modulus)
    codec = UpdateCodec(spec)
    vectors = [codec.encode(np.array([v])) for v in (-1.0, -1.0, -1.0)]
    assert codec.decode(opened(vectors)).mean[0] == pytest.approx(-1.0, abs=1e-12)


@pytest.mark.parametrize("modulus", [0, 1, 3, 1000, 2**31 + 1, 2**61 - 1, 2**65, 1.0, True])
def test_other_moduli_are_refused(modulus):
    with pytest.raises(ConfigurationError, match="modulus must"):
        CodecSpec(dimension=1, clip_norm=1.0, resolution=1, max_clients=1, modulus=modulus)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dimension", 0),
        ("dimension", 1.5),
        ("clip_norm", 0.0),
        ("clip_norm", math.nan),
        ("resolution", 0),
        ("max_clients", 0),
        ("max_weight", 0),
        ("max_weight", 2),
    ],
)
def test_an_impossible_field_is_refused(field, value):
    good = CodecSpec(dimension=1, clip_norm=1.0, resolution=1, max_clients=1, modulus=1 << 16)
    with pytest.raises(ConfigurationError):
        dataclasses.replace(good, **{field: value})


def test_a_modulus_too_small_for_one_step_is_refused_with_the_numbers():
    with pytest.raises(ConfigurationError, match="even one step per clip norm needs 21"):
        CodecSpec.plan(dimension=1, clip_norm=1.0, max_clients=10, bits=4)
    with pytest.raises(ConfigurationError, match="more than 64 bits"):
        CodecSpec.plan(
            dimension=1,
            clip_norm=1.0,
            max_clients=2**20,
            resolution=2**32,
            weighting=Weighting.WEIGHTED,
            max_weight=2**20,
        )
    with pytest.raises(ConfigurationError, match="not both"):
        CodecSpec.plan(dimension=1, clip_norm=1.0, max_clients=1, bits=8, modulus=256)
    with pytest.raises(ConfigurationError, match=r"bits must be an int in 1\.\.64"):
        CodecSpec.plan(dimension=1, clip_norm=1.0, max_clients=1, bits=65)


def test_the_codec_claims_no_privacy():
    codec = UpdateCodec(CodecSpec.plan(dimension=1, clip_norm=1.0, max_clients=3))
    assert codec.event(3, 1) == accounting.events.NonPrivate()
    for survivors, colluding in ((0, 0), (4, 0), (2, 3), (2, -1)):
        with pytest.raises(ConfigurationError, match="colluding"):
            codec.event(survivors, colluding)


def test_an_empty_sum_is_refused():
    with pytest.raises(ConfigurationError, match="at least one vector"):
        sum_encoded([])


def test_stochastic_rounding_draws_its_coins_from_the_argument():
    spec = CodecSpec.plan(
        dimension=64, clip_norm=8.0, max_clients=2, bits=8, rounding=Rounding.STOCHASTIC
    )
    codec, update = UpdateCodec(spec), np.full(64, 0.4)
    first = codec.encode(update, random_bytes=np.random.default_rng(1).bytes)
    again = codec.encode(update, random_bytes=np.random.default_rng(1).bytes)
    other = codec.encode(update, random_bytes=np.random.default_rng(2).bytes)
    assert first == again
    assert first != other
    assert codec.encode(update) != codec.encode(update)
