"""The codec with noise: its integers stay short, its noise is what the event says, no sum wraps.

Statistical tests use fixed seeds; a right codec fails each with probability 1e-9 or less, unless
stated.
"""

import dataclasses
import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import accounting
from accounting.closed_forms import rounded_sensitivity
from accounting.curves import rdp_at
from securefl.encoding import (
    MAX_INFLATION,
    RECORDS_MARGIN,
    CodecSpec,
    CompressedCodec,
    Contribution,
    Mechanism,
    NoisyCodec,
    NoisySpec,
    RandomK,
    UpdateCodec,
    noisy,
    sum_encoded,
)
from securefl.encoding.clip import clip_by_norm
from securefl.encoding.noisy import _round
from securefl.encoding.rotation import Rotation
from securefl.encoding.tables import noise_table
from securefl.errors import ConfigurationError
from securefl.modular import RingVector
from securefl.round import AggregateSum, ClientId
from securefl.training.private_weights import capped_share

SEED = bytes(range(32))
FALSE_ALARM = 1e-9
BASE = {
    "dimension": 650,
    "clip_norm": 0.5,
    "noise_multiplier": 1.0,
    "honest_shares": 7,
    "max_clients": 10,
    "contribution": Contribution.CLIENT,
    "units": 10,
}
# Powers of two, the field of one-shot recovery, and slots of other cryptosystems.
MODULI = [1 << 16, 1 << 32, 1 << 64, 2**31 - 1, 10**12 + 39, 1 << 63, (1 << 63) - 25]


def seeded(seed):
    """Bytes for tests that must repeat."""
    return np.random.default_rng(seed).bytes


def opened(vectors, survivors=None):
    n = len(vectors) if survivors is None else survivors
    return AggregateSum(
        vector=sum_encoded(vectors),
        survivors=tuple(ClientId(k) for k in range(1, n + 1)),
        min_honest=1,
    )


def without_noise(monkeypatch):
    monkeypatch.setattr(noisy, "draw", lambda table, count, source: np.zeros(count, np.int64))


@pytest.fixture
def no_noise(monkeypatch):
    without_noise(monkeypatch)


@st.composite
def specs(draw, contribution=None):
    n = draw(st.integers(1, 30))
    return NoisySpec.plan(
        dimension=draw(st.one_of(st.integers(1, 40), st.integers(1, 3000))),
        clip_norm=draw(st.floats(1e-3, 1e3)),
        noise_multiplier=draw(st.floats(0.3, 5)),
        honest_shares=draw(st.integers(1, n)),
        max_clients=n,
        contribution=contribution or draw(st.sampled_from(Contribution)),
        units=draw(st.floats(n, 1000)),
        mechanism=draw(st.sampled_from(Mechanism)),
        max_inflation=draw(st.sampled_from([None, 1.002, 1.05])),
    )


def updates(spec, rng):
    """Vectors that stress rounding: long, short, sparse, dense, all halves, zero."""
    d, C = spec.dimension, spec.clip_norm
    yield rng.normal(size=d) * C * 10
    yield rng.normal(size=d) * C / math.sqrt(d) / 2
    yield np.eye(1, d)[0] * C * -3
    yield np.full(d, C / math.sqrt(d)).astype(np.float32)
    yield np.zeros(d)
    half = np.full(spec.padded, spec.clip_norm / spec.resolution / 2)
    half += rng.integers(0, 2, spec.padded) * spec.clip_norm / spec.resolution
    yield Rotation(dimension=d).invert(half, round_seed=SEED)


# --- the integers of one client stay short ------------------------------------------------------


@given(specs(Contribution.CLIENT), st.integers(0, 2**32))
def test_one_clients_integers_are_never_longer_than_the_event_says(spec, seed):
    codec, rng = NoisyCodec(spec), np.random.default_rng(seed)
    event = spec.event(1)
    with pytest.MonkeyPatch.context() as patch:
        without_noise(patch)
        for update in updates(spec, rng):
            integers = codec.encode(update, round_seed=SEED, random_bytes=rng.bytes).centred()
            squares = sum(int(v) ** 2 for v in integers)
            assert squares <= Fraction(event.l2) ** 2
            assert sum(abs(int(v)) for v in integers) <= event.l1


def test_a_rounding_that_is_too_long_is_drawn_again_and_at_last_cut_towards_zero(no_noise):
    """All entries are 2.5: a ninth of the fair roundings is too long, and all that only go up."""
    d, r = 1024, 80.0
    spec = NoisySpec.plan(**BASE | {"dimension": d, "clip_norm": 1.0}, resolution=r)
    codec = NoisyCodec(spec)
    update = Rotation(dimension=d).invert(np.full(d, 2.5 / r), round_seed=SEED)
    asked = []

    def upwards(n):
        asked.append(n)
        return b"\xff" * n

    integers = codec.encode(update * (1 - 1e-12), round_seed=SEED, random_bytes=upwards).centred()
    assert len(asked) == 32
    assert set(integers.tolist()) == {2}
    rng = np.random.default_rng(1)
    once = [_round(np.full(d, 2.5), rng.bytes) for _ in range(400)]
    assert 5 < sum(int(np.dot(q, q)) > Fraction(spec.l2) ** 2 for q in once) < 100
    asked.clear()

    def fair(n):
        asked.append(n)
        return rng.bytes(n)

    for _ in range(400):
        q = codec.encode(update, round_seed=SEED, random_bytes=fair).centred()
        assert int(np.dot(q, q)) <= Fraction(spec.l2) ** 2
    assert 405 < len(asked) < 500


def test_rounding_is_unbiased_up_to_its_repetition(no_noise):
    """The mean of 4,000 roundings is within 6.2 standard errors of the vector (1,024 entries)."""
    spec = NoisySpec.plan(**BASE)
    turned = np.random.default_rng(3).normal(size=1024) * 4
    rng = np.random.default_rng(4)
    mean = sum(_round(turned, rng.bytes) for _ in range(4000)) / 4000
    assert np.abs(mean - turned).max() < 6.2 * 0.5 / math.sqrt(4000)
    assert spec.beta == pytest.approx(math.exp(-0.5))


# --- sums of records ----------------------------------------------------------------------------

GRID = 8


class Grid:
    """Coins at chosen multiples of 1/8."""

    def __init__(self, eighths):
        self.eighths = eighths

    def __call__(self, n):
        assert n == 8 * len(self.eighths)
        return b"".join((e << 61).to_bytes(8, "little") for e in self.eighths)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_over_all_coins_a_record_moves_the_sum_like_its_own_rounding(dimension):
    """For every sum v, record g and coin on a grid: the law of the shift does not know v."""
    rng = np.random.default_rng(dimension)
    coins = list(itertools.product(range(GRID), repeat=dimension))
    for _ in range(12):
        v, g = rng.integers(-40, 41, (2, dimension)) / GRID
        shifts = Counter(
            tuple((_round(v + g, Grid(u)) - _round(v, Grid(u))).tolist()) for u in coins
        )
        expected = Counter()
        for up in itertools.product((0, 1), repeat=dimension):
            low, fraction = np.floor(g).astype(int), g - np.floor(g)
            p = math.prod(
                Fraction(float(f)) if b else 1 - Fraction(float(f))
                for f, b in zip(fraction, up, strict=True)
            )
            expected[tuple((low + up).tolist())] += int(p * len(coins))
        assert +shifts == +expected


@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
@pytest.mark.parametrize("beta", [0.3, 0.05, 0.004])
def test_a_rounded_record_is_longer_than_the_bound_at_most_with_probability_beta(dimension, beta):
    """Exact probabilities of all roundings of vectors of norm r, for the formula of Delta2."""
    rng = np.random.default_rng(dimension)
    for r in (0.3, 1.0, 2.5, 7.0):
        c = math.sqrt(2 * math.log(1 / beta))
        bound = r * r + dimension / 4 + c * (r + math.sqrt(dimension) / 2)
        for _ in range(30):
            g = rng.normal(size=dimension)
            g *= r / np.linalg.norm(g)
            low, f = np.floor(g), g - np.floor(g)
            failure = sum(
                math.prod(np.where(up, f, 1 - f))
                for up in itertools.product((0, 1), repeat=dimension)
                if np.sum((low + up) ** 2) > bound
            )
            assert failure <= beta


@settings(max_examples=30)
@given(specs(Contribution.RECORDS), st.integers(0, 2**32))
def test_one_record_more_moves_the_integers_by_at_most_the_sensitivity(spec, seed):
    """The coins are those of the sum without it (fails by chance with probability 2^-60)."""
    codec, rng = NoisyCodec(spec), np.random.default_rng(seed)
    others = rng.normal(size=spec.dimension) * spec.clip_norm * rng.choice([0.01, 1, 100])
    with pytest.MonkeyPatch.context() as patch:
        without_noise(patch)
        for record in updates(spec, rng):
            g = clip_by_norm(record, spec.clip_norm * (1 - RECORDS_MARGIN)).values
            coins = int(rng.integers(2**32))
            a, b = (
                codec.encode(x, round_seed=SEED, random_bytes=seeded(coins)).centred()
                for x in (others, others + g)
            )
            # In the ring: a large sum may have wrapped, and the noise is added modulo m, too.
            moved = (a - b + spec.modulus // 2) % spec.modulus - spec.modulus // 2
            assert sum(int(v) ** 2 for v in moved) <= Fraction(spec.l2) ** 2
            assert np.abs(moved).sum() <= spec.l1


def test_a_sum_of_records_is_not_clipped_until_float64_would_blur_a_record(no_noise):
    spec = NoisySpec.plan(**BASE | {"contribution": "records", "units": 1000})
    codec = NoisyCodec(spec)
    total = np.eye(1, 650)[0] * 300.0
    vector = codec.encode(total, round_seed=SEED)
    decoded = codec.decode(opened([vector]), round_seed=SEED, denominator=1).mean
    assert np.linalg.norm(decoded - total) < 0.5
    longest = 2.0**42 * 0.5 * RECORDS_MARGIN / 4 / math.sqrt(1024)
    codec = NoisyCodec(dataclasses.replace(spec, modulus=1 << 64))
    for scale, expected in ((0.99, 0.99), (1.01, 1.0), (1e200, 1.0), (1e300, 1.0)):
        vector = codec.encode(np.eye(1, 650)[0] * longest * scale, round_seed=SEED)
        decoded = codec.decode(opened([vector]), round_seed=SEED, denominator=1).mean
        assert np.linalg.norm(decoded) == pytest.approx(expected * longest, rel=1e-6)


@pytest.mark.parametrize("scale", [0.999999, 1.0, 1.0000001, 1.5, 1e12, 1e300])
def test_one_record_more_moves_a_sum_of_any_length_by_at_most_the_sensitivity(scale):
    """Beyond the longest sum that float64 resolves the vector is projected, which moves no two sums
    apart. Directions of the record: along the sum, across it, and against it."""
    spec = NoisySpec.plan(**BASE | {"contribution": "records", "units": 1000})
    codec, rng = NoisyCodec(spec), np.random.default_rng(7)
    longest = 2.0**42 * spec.clip_norm * RECORDS_MARGIN / 4 / math.sqrt(spec.padded)
    direction = rng.normal(size=650)
    direction /= np.linalg.norm(direction)
    across = rng.normal(size=650)
    across -= across @ direction * direction
    g = spec.clip_norm * (1 - RECORDS_MARGIN)
    with pytest.MonkeyPatch.context() as patch:
        without_noise(patch)
        for record in (direction, -direction, across / np.linalg.norm(across)):
            for coins in range(3):
                a, b = (
                    codec.encode(x, round_seed=SEED, random_bytes=seeded(coins)).centred()
                    for x in (
                        direction * longest * scale,
                        direction * longest * scale + record * g,
                    )
                )
                moved = (a - b + spec.modulus // 2) % spec.modulus - spec.modulus // 2
                assert sum(int(v) ** 2 for v in moved) <= Fraction(spec.l2) ** 2


# --- clients that count by a capped share -------------------------------------------------------


@given(specs(Contribution.CLIENT), st.integers(0, 2000), st.integers(1, 1000), st.integers(0, 99))
def test_however_many_records_a_client_has_its_integers_stay_within_the_sensitivity(
    spec, records, cap, seed
):
    codec, rng = NoisyCodec(spec), np.random.default_rng(seed)
    share = capped_share(records, cap)
    with pytest.MonkeyPatch.context() as patch:
        without_noise(patch)
        for update in updates(spec, rng):
            vector = codec.encode(update, share=share, round_seed=SEED, random_bytes=rng.bytes)
            assert sum(int(v) ** 2 for v in vector.centred()) <= Fraction(spec.l2) ** 2
            # The clip comes first: a client counts by its share of what it would count fully.
            if codec.modulus > 4 * spec.reach:
                decoded = codec.decode(opened([vector]), round_seed=SEED, denominator=1).mean
                expected = clip_by_norm(update, spec.clip_norm).values * min(records / cap, 1)
                rounding = math.sqrt(spec.padded) * spec.clip_norm / spec.resolution
                assert np.linalg.norm(decoded - expected) <= rounding * (1 + 1e-6)


@pytest.mark.parametrize("share", [1.0000001, 30.0, -0.5, math.nan, math.inf, True])
def test_a_share_that_could_lengthen_an_update_is_refused(share):
    for codec in (
        NoisyCodec(NoisySpec.plan(**BASE)),
        CompressedCodec(RandomK(dimension=900, kept=650), NoisyCodec(NoisySpec.plan(**BASE))),
        UpdateCodec(CodecSpec.plan(dimension=650, clip_norm=1.0, max_clients=3)),
    ):
        with pytest.raises(ConfigurationError, match=r"share must be in \[0, 1\]"):
            codec.encode(np.zeros(codec.dimension), share=share, round_seed=SEED)


def test_a_sum_of_records_has_no_share():
    codec = NoisyCodec(NoisySpec.plan(**BASE | {"contribution": "records", "units": 100}))
    with pytest.raises(ConfigurationError, match="a sum of records is not scaled"):
        codec.encode(np.zeros(650), share=0.5, round_seed=SEED)


def test_every_codec_puts_the_share_on_the_clipped_update_and_on_no_divisor(no_noise):
    update = np.full(650, 1.0)  # of norm 25, clipped to 0.5
    plain = CodecSpec.plan(dimension=650, clip_norm=0.5, max_clients=3, bits=48)
    fine = NoisySpec.plan(**BASE, bits=40)
    everything = RandomK(dimension=650, kept=650)
    for codec in (
        NoisyCodec(fine),
        CompressedCodec(everything, NoisyCodec(fine)),
        UpdateCodec(plain),
    ):
        vectors = [codec.encode(update, share=s, round_seed=SEED) for s in (1.0, 0.25)]
        mean = codec.decode(opened(vectors), round_seed=SEED).mean
        assert mean == pytest.approx(np.full(650, 0.5 / math.sqrt(650) * 1.25 / 2), abs=1e-3)


# --- decoding -----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(specs(), st.integers(0, 2**32), st.sampled_from([None, *MODULI[1:]]), st.data())
def test_without_noise_the_mean_comes_back_within_the_rounding(spec, seed, modulus, data):
    if modulus is not None:
        spec = dataclasses.replace(spec, modulus=modulus)
    codec, rng = NoisyCodec(spec), np.random.default_rng(seed)
    n = data.draw(st.integers(1, spec.max_clients))
    clients = [rng.normal(size=spec.dimension) for _ in range(n)]
    clients = [x * spec.clip_norm / np.linalg.norm(x) * rng.uniform() for x in clients]
    with pytest.MonkeyPatch.context() as patch:
        without_noise(patch)
        vectors = [codec.encode(x, round_seed=SEED, random_bytes=rng.bytes) for x in clients]
    assert all(len(v) == codec.length and v.modulus == codec.modulus for v in vectors)
    decoded = codec.decode(opened(vectors), round_seed=SEED)
    step = spec.clip_norm / spec.resolution
    error = np.linalg.norm(decoded.mean - np.mean(clients, axis=0))
    assert error <= math.sqrt(spec.padded) * step * (1 + 1e-6)
    assert (decoded.weight, len(decoded.survivors)) == (n, n)
    by_public = codec.decode(opened(vectors), round_seed=SEED, denominator=2.5 * n)
    assert np.allclose(by_public.mean * 2.5, decoded.mean, rtol=0, atol=1e-13 * spec.clip_norm)
    assert by_public.weight == 2.5 * n


@given(specs(), st.integers(0, 2**32))
def test_no_client_reaches_further_than_stated_with_any_update_and_any_noise(spec, seed):
    """Spikes along the rotation's own axes, all of them in one direction, and extreme words."""
    wide = dataclasses.replace(spec, modulus=1 << 64)
    codec, rng = NoisyCodec(wide), np.random.default_rng(seed)
    scale = spec.clip_norm * (1 if spec.contribution == "client" else spec.units)
    axis = np.eye(1, spec.padded, int(rng.integers(spec.padded)))[0] * scale
    update = Rotation(dimension=spec.dimension).invert(axis, round_seed=SEED)
    for value in (update, -update, axis[: spec.dimension]):
        for extreme in (b"\x00", b"\xff"):
            sent = codec.encode(value, round_seed=SEED, random_bytes=lambda n, e=extreme: e * n)
            assert np.abs(sent.centred()).max() <= spec.reach
    noise = noise_table(spec.mechanism, spec.share_ticks).bound
    assert spec.reach <= scale / spec.clip_norm * spec.l2 + noise + 2


def test_every_modulus_carries_the_same_integers():
    spec = NoisySpec.plan(**BASE, resolution=300.0)
    update = np.random.default_rng(1).normal(size=650)
    means = []
    for modulus in MODULI:
        codec = NoisyCodec(dataclasses.replace(spec, modulus=modulus))
        vectors = [codec.encode(update, round_seed=SEED, random_bytes=seeded(k)) for k in range(9)]
        means.append(codec.decode(opened(vectors), round_seed=SEED).mean)
    assert all(np.array_equal(mean, means[0]) for mean in means)


@pytest.mark.parametrize("mechanism", Mechanism)
@pytest.mark.parametrize("shares", [1, 3, 10])
def test_the_decoded_noise_of_any_number_of_shares_is_the_central_noise(mechanism, shares):
    """KS against the Gaussian of the event's variance and rounding, and the variance itself.

    At 40 steps of standard deviation the integers' law is within 1e-5 of it, far below what
    20,000 values can show.
    """
    spec = NoisySpec.plan(**BASE | {"mechanism": mechanism, "dimension": 20_000})
    codec, rng = NoisyCodec(spec), np.random.default_rng(shares)
    vectors = [codec.encode_zero(round_seed=SEED, random_bytes=rng.bytes) for _ in range(shares)]
    noise = codec.decode(opened(vectors), round_seed=SEED, denominator=1).mean
    step = spec.clip_norm / spec.resolution
    event = codec.event(shares)
    variance = event.mu if mechanism == "skellam" else event.sigma_share**2 * event.shares
    deviation = step * math.sqrt(variance)
    assert stats.kstest(noise / deviation, "norm").pvalue > FALSE_ALARM
    assert abs(np.var(noise) / deviation**2 - 1) < 6.2 * math.sqrt(2 / len(noise))
    raw = opened(vectors).vector.centred()
    assert stats.kstest((raw + rng.random(len(raw)) - 0.5) / math.sqrt(variance), "norm").pvalue > (
        FALSE_ALARM
    )


def test_two_clients_and_two_rounds_never_share_noise():
    codec = NoisyCodec(NoisySpec.plan(**BASE | {"dimension": 20_000}))
    noises = []
    for _ in range(4):
        np.random.seed(0)
        noises.append(codec.encode_zero(round_seed=SEED).centred().astype(float))
    bound = 6.2 / math.sqrt(len(noises[0]))
    for a, b in itertools.combinations(noises, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < bound


def test_a_client_without_data_asks_for_the_same_bytes_as_one_with():
    codec = NoisyCodec(NoisySpec.plan(**BASE))
    asked = {}
    for name, update in (("zero", None), ("small", np.full(650, 1e-3))):
        asked[name] = []
        rng = np.random.default_rng(0)

        def source(n, name=name, rng=rng):
            asked[name].append(n)
            return rng.bytes(n)

        if update is None:
            codec.encode_zero(round_seed=SEED, random_bytes=source)
        else:
            codec.encode(update, round_seed=SEED, random_bytes=source)
    assert asked["zero"] == asked["small"] == [8 * 1024, 8 * 1024]


# --- the cost of the whole mechanism ------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize("mechanism", Mechanism)
@pytest.mark.parametrize("contribution", Contribution)
def test_the_exact_divergence_of_one_coordinate_is_within_the_events_cost(
    contribution, mechanism, rate
):
    """The law of what a client sends, with its unit and without, summed over all integers.

    Noise from the table in use, rounding by its probabilities, sampling by a coin; whole orders,
    both directions.
    """
    spec = NoisySpec.plan(
        **BASE
        | {"dimension": 1, "honest_shares": 1, "max_clients": 1, "units": 1}
        | {"contribution": contribution, "mechanism": mechanism, "noise_multiplier": 0.8},
        max_inflation=1.05,
    )
    table = noise_table(spec.mechanism, spec.share_ticks)
    numbers = [(int(h) << 64) | int(v) for h, v in zip(table.high, table.low, strict=False)]
    noise = [float(Fraction(b - a, 1 << 128)) for a, b in itertools.pairwise(numbers)]
    centre = np.pad(noise, math.ceil(spec.l2) + 1)  # of -(K - 1) .. K - 1
    event = spec.event(1)
    if rate < 1:
        event = accounting.Poisson(sample_rate=rate, event=event)
    for length in (spec.resolution, spec.resolution - 0.5, 0.3):
        low, up = math.floor(length), length - math.floor(length)
        moved = (1 - up) * np.roll(centre, low)
        if contribution == "client" and low + 1 > spec.l2:
            moved = np.roll(centre, low)
        else:
            moved += up * np.roll(centre, low + 1)
        mixed = rate * moved + (1 - rate) * centre
        inside = (centre > 1e-40) & (mixed > 1e-40)
        p, q = mixed[inside], centre[inside]
        for a in (2, 3, 8, 16):
            stated = rdp_at(event, a, accounting.Adjacency.ZERO_OUT)
            for one, other in ((p, q), (q, p)):
                exact = math.log(np.sum(one * (one / other) ** (a - 1))) / (a - 1)
                assert exact <= stated * (1 + 1e-9)
                if length == spec.resolution and rate == 1 and a <= 3:
                    assert exact > 0.7 * stated  # the event is not far from what happens


# --- range --------------------------------------------------------------------------------------


def test_no_sum_wraps_more_often_than_stated_and_a_smaller_modulus_would():
    """All clients send the same full-length vector. p = .02 in 600 rounds: 12 expected at most.

    33 or more have probability below 1e-6 at p = .02.
    """
    d, n, rounds, p = 64, 20, 600, 0.02
    spec = NoisySpec.plan(
        **BASE | {"dimension": d, "max_clients": n, "honest_shares": n, "units": n},
        wrap_probability=p,
    )
    needed = spec._plan.needed_modulus(spec.resolution)
    update = np.random.default_rng(0).normal(size=d)
    unit = update / np.linalg.norm(update) * spec.resolution
    rng = np.random.default_rng(1)
    extremes = []
    for _ in range(rounds):
        turned = Rotation(dimension=d).apply(unit, round_seed=rng.bytes(32))
        noise = rng.normal(size=d) * math.sqrt(n * (spec.mu_share + 0.25))
        extremes.append(np.abs(n * turned + noise).max())
    assert sum(e >= needed / 2 for e in extremes) <= 33
    assert sum(e >= needed / 5 for e in extremes) > 33
    codec = NoisyCodec(dataclasses.replace(spec, modulus=math.ceil(needed)))
    vectors = [codec.encode(update, round_seed=SEED) for _ in range(n)]
    mean = codec.decode(opened(vectors), round_seed=SEED).mean
    clipped = update / np.linalg.norm(update) * spec.clip_norm
    noise = math.sqrt(spec.padded * spec.mu_share / n) * spec.clip_norm / spec.resolution
    assert np.linalg.norm(mean - clipped) < 2 * noise


@given(specs(), st.sampled_from([None, 1.002, 1.05]))
def test_a_plan_is_the_smallest_that_holds(spec, max_inflation):
    fields = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    fields |= {"modulus": None, "resolution": None, "max_inflation": max_inflation}
    spec = NoisySpec.plan(**fields)
    limit = max_inflation or spec.contribution.default_inflation
    assert spec.inflation <= limit
    coarser = spec.resolution * (1 - 1e-9)
    if spec._plan.l2(coarser) / coarser <= limit:  # then small shares ask for more
        assert spec.mechanism == "discrete-gaussian"
        per_share = spec.noise_multiplier / math.sqrt(spec.honest_shares)
        assert spec.resolution * per_share == pytest.approx(2)
    assert spec.modulus == 1 << spec.bits
    with pytest.raises(ConfigurationError, match="a sum could wrap"):
        dataclasses.replace(spec, modulus=spec.modulus // 2)


@given(specs(), st.sampled_from(MODULI[1:]))
def test_with_a_given_modulus_the_resolution_is_the_largest_that_is_worth_having(spec, modulus):
    fields = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    planned = NoisySpec.plan(**fields | {"modulus": modulus, "resolution": None})
    assert planned.modulus == modulus
    assert 1 < planned.inflation <= MAX_INFLATION
    if planned.inflation > 1.0005 * (1 + 1e-9):
        with pytest.raises(ConfigurationError):
            dataclasses.replace(planned, resolution=planned.resolution * (1 + 1e-9))


def test_fixed_bits_give_the_largest_resolution():
    fields = BASE | {"dimension": 26_010, "max_clients": 100, "honest_shares": 100, "units": 100}
    found = {bits: NoisySpec.plan(**fields, bits=bits).resolution for bits in (14, 15, 16, 20)}
    assert found[14] < found[15] < found[16] <= found[20]
    for bits in (14, 15):
        with pytest.raises(ConfigurationError, match="a sum could wrap"):
            NoisySpec.plan(**fields, bits=bits, resolution=found[bits] * 1.0001)
    with pytest.raises(ConfigurationError, match="a sum could wrap"):
        NoisySpec.plan(**fields, bits=10)


@pytest.mark.parametrize(
    ("dimension", "n", "units", "contribution", "bits"),
    [
        (26_010, 100, 100, "client", 15),
        (26_010, 1000, 1000, "client", 18),
        (26_010, 10, 1024 + 6 * 32, "records", 19),
        (39_700, 10, 4096 + 6 * 64, "records", 20),
    ],
)
def test_five_steps_per_root_of_the_dimension_take_the_expected_bits(
    dimension, n, units, contribution, bits
):
    fields = BASE | {"dimension": dimension, "max_clients": n, "honest_shares": n, "units": units}
    D = NoisySpec.plan(**fields | {"contribution": contribution}).padded
    fields |= {"contribution": contribution, "resolution": 5 * math.sqrt(D)}
    spec = NoisySpec.plan(**fields)
    assert spec.bits == bits
    assert spec.inflation < 1.02


# --- what the specification says ----------------------------------------------------------------


@given(specs(), st.data())
def test_the_event_is_the_noise_of_the_honest_survivors_over_the_integers_norm(spec, data):
    survivors = data.draw(st.integers(1, spec.max_clients))
    colluding = data.draw(st.integers(0, survivors - 1))
    event = spec.event(survivors, colluding)
    honest = survivors - colluding
    wanted = (spec.noise_multiplier * spec.l2) ** 2 * honest / spec.honest_shares
    if spec.mechanism == "skellam":
        assert isinstance(event, accounting.Skellam)
        assert Fraction(event.mu) <= Fraction(honest * spec.share_ticks, 1 << 20)
        assert event.mu == pytest.approx(wanted, rel=1e-9, abs=honest * 2**-20)
        variance = event.mu
    else:
        assert isinstance(event, accounting.DistributedDiscreteGaussian)
        assert event.dim == spec.padded
        assert event.shares == honest
        assert event.sigma_share**2 <= spec.mu_share
        variance = event.sigma_share**2 * event.shares
    assert variance >= wanted * (1 - 1e-12)
    D, r = spec.padded, spec.resolution
    c = math.sqrt(2 * math.log(1 / spec.beta))
    exact = min(r + math.sqrt(D), math.sqrt(r * r + D / 4 + c * (r + math.sqrt(D) / 2)))
    assert exact <= event.l2 <= exact * (1 + 1e-14)
    assert event.l1 == pytest.approx(min(math.sqrt(D), event.l2) * event.l2)
    if spec.contribution == "client":
        assert (event.l2, event.l1) == pytest.approx(rounded_sensitivity(r, 1.0, D))


def test_the_resolution_costs_accuracy_and_not_epsilon():
    """At any resolution the event's z is the one asked for; Skellam's own terms are below 2 %."""
    zero_out = accounting.Adjacency.ZERO_OUT

    def epsilon(event):
        return accounting.epsilon(event, 1e-5, adjacency=zero_out, method="rdp").value

    gaussian = epsilon(accounting.Gaussian(noise_multiplier=1.0))
    for inflation in (1.001, 1.05):
        event = NoisySpec.plan(**BASE, max_inflation=inflation).event(7)
        assert math.sqrt(event.mu) / event.l2 == pytest.approx(1.0, rel=1e-6)
        assert gaussian <= epsilon(event) < gaussian * 1.02


def test_failures_that_the_event_does_not_contain_are_stated():
    client, records = (
        NoisySpec.plan(**BASE | {"contribution": c}).delta_slack for c in Contribution
    )
    assert records - client == pytest.approx(2.0**-60)
    # Each of the release's noise values, within 2^-106 of its law, at epsilon up to 20.
    assert client >= 1024 * 10 * 2.0**-106 * (1 + math.exp(20))
    assert client < 1e-17


def test_every_field_enters_the_digest():
    spec = NoisySpec.plan(**BASE, modulus=1 << 40, resolution=400.0)
    other = {
        "dimension": 651,
        "clip_norm": 0.25,
        "noise_multiplier": 1.5,
        "honest_shares": 6,
        "max_clients": 11,
        "contribution": Contribution.RECORDS,
        "units": 11,
        "resolution": 401.0,
        "modulus": 1 << 41,
        "mechanism": Mechanism.DISCRETE_GAUSSIAN,
        "wrap_probability": 1e-7,
    }
    assert set(other) == {f.name for f in dataclasses.fields(spec)}
    digests = {dataclasses.replace(spec, **{k: v}).digest() for k, v in other.items()}
    digests.add(spec.digest())
    assert len(digests) == len(other) + 1
    assert NoisyCodec(spec).digest() == spec.digest()
    assert NoisySpec.plan(**BASE | {"units": 10.0}).digest() == NoisySpec.plan(**BASE).digest()


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 0}, "dimension must be an int >= 1, found 0"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"clip_norm": math.nan}, "clip_norm must be positive"),
        ({"noise_multiplier": 0.0}, "noise_multiplier must be positive"),
        ({"noise_multiplier": math.inf}, "noise_multiplier must be positive"),
        ({"resolution": -1.0}, "resolution must be positive"),
        ({"resolution": math.nan}, "resolution must be positive"),
        ({"honest_shares": 0}, "honest_shares must be an int >= 1"),
        ({"honest_shares": 11}, "at most max_clients = 10, found 11"),
        ({"max_clients": 2.0}, "max_clients must be an int"),
        ({"units": 0.5}, r"units must be in 1\.\.2\^40"),
        ({"wrap_probability": 1.0}, "wrap_probability must be below 1"),
        ({"modulus": 2**63 + 1}, r"modulus must be in 2\.\.2\^63"),
        ({"modulus": 1}, r"modulus must be in 2\.\.2\^63"),
        ({"modulus": 512}, "a sum could wrap: 10 units"),
        ({"resolution": 30.0}, "expected at most 1.05"),
        ({"resolution": 2.0**31}, r"at most 2\^30 steps"),
        ({"noise_multiplier": 1e6}, r"standard deviation of at most 2\^16"),
        ({"mechanism": "discrete-gaussian", "noise_multiplier": 0.01}, "at least 2 steps"),
        ({"mechanism": "gaussian"}, "gaussian"),
    ],
)
def test_a_specification_that_cannot_keep_its_word_is_refused(change, message):
    fields = BASE | {"resolution": 400.0, "modulus": 1 << 40}
    with pytest.raises(ValueError, match=message):
        NoisySpec(**fields | change)
    with pytest.raises(ValueError, match=message):
        NoisySpec.plan(**fields | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 16, "modulus": 1 << 16}, "not both"),
        ({"bits": 65}, r"bits must be an int in 1\.\.64"),
        ({"bits": 8}, "a sum could wrap"),
        ({"max_inflation": 1.06}, "at most 1.05, found 1.06"),
        ({"max_inflation": 1.0}, "above 1"),
        ({"units": 1e300}, r"units must be in 1\.\.2\^40"),
        (
            {"units": 1e12, "dimension": 1, "resolution": 1e8, "noise_multiplier": 1e-4},
            "at most 64 are possible",
        ),
        ({"max_inflation": 1.01, "resolution": 100.0}, r"expected at most 1\.01"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(change, message):
    with pytest.raises(ConfigurationError, match=message):
        NoisySpec.plan(**BASE | change)


@pytest.mark.parametrize("contribution", Contribution)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_refused_and_never_zeroed(contribution, bad):
    codec = NoisyCodec(NoisySpec.plan(**BASE | {"contribution": contribution}))
    values = np.zeros(650, dtype=np.float32)
    values[17] = bad
    with pytest.raises(ConfigurationError, match="NaN or infinite, the first at index 17"):
        codec.encode(values, round_seed=SEED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": np.zeros(651)}, "650 coordinates, found an update of shape"),
        ({"values": [0.0] * 650}, "shape list"),
        ({"values": np.zeros(650, dtype=int)}, "float32 or float64"),
        ({"weight": 2}, "carries no weights"),
        ({"weight": 0}, "carries no weights"),
        ({"round_seed": b""}, "at least 16 bytes"),
        ({"random_bytes": lambda n: bytes(n - 1)}, "bytes where"),
    ],
)
def test_what_cannot_be_encoded_is_refused(arguments, message):
    codec = NoisyCodec(NoisySpec.plan(**BASE))
    given = {"values": np.zeros(650), "round_seed": SEED} | arguments
    with pytest.raises(ConfigurationError, match=message):
        codec.encode(given.pop("values"), **given)


def test_a_sum_of_more_clients_another_ring_or_length_is_refused():
    codec = NoisyCodec(NoisySpec.plan(**BASE))
    vector = codec.encode_zero(round_seed=SEED)
    codec.decode(opened([vector] * 10), round_seed=SEED)
    with pytest.raises(ConfigurationError, match=r"1\.\.10 clients, found 11"):
        codec.decode(opened([vector] * 11), round_seed=SEED)
    for other in (RingVector.zeros(1024, 2**31 - 1), RingVector.zeros(1023, codec.modulus)):
        with pytest.raises(ConfigurationError, match="expected 1024 entries"):
            codec.decode(opened([other]), round_seed=SEED)
    for denominator in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigurationError, match="denominator must be positive"):
            codec.decode(opened([vector]), round_seed=SEED, denominator=denominator)


@pytest.mark.parametrize(("survivors", "colluding"), [(0, 0), (11, 0), (5, 5), (5, -1), (5.0, 0)])
def test_an_event_without_honest_noise_is_refused(survivors, colluding):
    with pytest.raises(ConfigurationError, match=r"colluding|must be an int"):
        NoisyCodec(NoisySpec.plan(**BASE)).event(survivors, colluding)
