"""A client's part where the noise is shared: a clipped sum over a secret sample, or a coin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.encoding import noisy
from securefl.errors import ConfigurationError
from securefl.training.dpsgd import clipped_gradient_sum
from securefl.training.local import FlatModel, ModelUpdate, TrainingDiverged
from securefl.training.models import build
from securefl.training.randomness import poisson_sample
from securefl.training.shared import RECORDS_MARGIN, RecordSum, SecretParticipation

DIMENSION = 8 * 3 + 3


@pytest.fixture(scope="module")
def model() -> FlatModel:
    return FlatModel(build("softmax", input_shape=(8,), classes=3, seed=0))


def records(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 8)).astype(np.float32), rng.integers(3, size=count)


def seeded(seed: int) -> object:
    return lambda round_index: np.random.default_rng((seed, round_index)).bytes


def record_sum(model: FlatModel, count: int = 200, **changes: Any) -> RecordSum:
    x, y = records(count)
    fields: dict[str, Any] = {
        "clip_norm": 0.5,
        "sample_rate": 0.3,
        "randomness": seeded(1),
        **changes,
    }
    return RecordSum(model=model, x=x, y=y, client=0, **fields)


@given(rate=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_the_update_is_minus_the_clipped_sum_over_the_sample_one_record_at_a_time(
    model: FlatModel, rate: float, seed: int
) -> None:
    trainer = record_sum(model, sample_rate=rate, randomness=seeded(seed))
    start = model.vector()
    update = trainer.train(start, round_index=4)
    sample = poisson_sample(200, rate, np.random.default_rng((seed, 4)).bytes)
    x, y = records(200)
    total = np.zeros(DIMENSION)
    for index in sample:
        total += clipped_gradient_sum(model, x[[index]], y[[index]], clip_norm=0.5)
    assert np.allclose(update.values, -total, atol=1e-5)
    assert update.values.dtype == np.float64
    assert np.linalg.norm(update.values) <= 0.5 * len(sample)


def test_one_record_moves_the_sum_by_less_than_what_the_codec_allows(model: FlatModel) -> None:
    x, y = records(100)
    x *= 100.0  # every gradient is clipped
    start = model.vector()
    for index in range(0, 100, 7):
        sums = []
        for scale in (1.0, 0.0):
            # A zero gradient: the record's own contribution is replaced by nothing.
            kept = np.delete(np.arange(100), index) if scale == 0.0 else np.arange(100)
            trainer = RecordSum(
                model=model, x=x[kept], y=y[kept], client=0, clip_norm=0.5, sample_rate=1.0
            )
            sums.append(trainer.train(start, round_index=0).values)
        moved = np.linalg.norm(sums[0] - sums[1])
        assert 0.49 < moved <= 0.5 * (1 - noisy.RECORDS_MARGIN)


def test_the_margin_is_the_codecs() -> None:
    assert RECORDS_MARGIN == noisy.RECORDS_MARGIN


def test_the_size_of_the_sample_is_in_no_field(model: FlatModel) -> None:
    def shape(update: ModelUpdate) -> tuple[object, ...]:
        return (update.weight, update.examples, update.steps, dict(update.metrics))

    start = model.vector()
    shapes = {
        str(shape(record_sum(model, randomness=seeded(s)).train(start, round_index=0)))
        for s in range(20)
    }
    assert len(shapes) == 1


def test_an_empty_sample_is_an_update_of_zeros(model: FlatModel) -> None:
    trainer = record_sum(model, count=1, sample_rate=1e-9)
    update = trainer.train(model.vector(), round_index=0)
    assert not update.values.any()
    assert update.weight == 1


def test_fresh_coins_every_round_from_the_system(model: FlatModel) -> None:
    trainer = record_sum(model, randomness=lambda _round: __import__("os").urandom)
    start = model.vector()
    first = trainer.train(start, round_index=0).values
    assert not np.array_equal(first, trainer.train(start, round_index=0).values)


def test_so_many_records_that_rounding_passes_the_margin_are_refused(model: FlatModel) -> None:
    x, y = np.zeros((1, 8), np.float32), np.zeros(1, np.int64)
    many = 3_000_000
    with pytest.raises(ConfigurationError, match="too many for one client"):
        RecordSum(
            model=model,
            x=np.broadcast_to(x, (many, 8)),
            y=np.broadcast_to(y, (many,)),
            client=0,
            clip_norm=1.0,
            sample_rate=0.1,
        )


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_rates_are_refused(model: FlatModel, rate: float) -> None:
    with pytest.raises(ConfigurationError, match="sample_rate"):
        record_sum(model, sample_rate=rate)
    with pytest.raises(ConfigurationError, match="sample_rate"):
        SecretParticipation(trainer=Counting(), dimension=3, client=0, sample_rate=rate)


def test_records_do_not_show_in_the_repr(model: FlatModel) -> None:
    assert repr(record_sum(model)).endswith("records=<private>)")


# -- coins ---------------------------------------------------------------------------------------


class Counting:
    """A trainer that counts its calls, or diverges."""

    def __init__(self, *, diverges: bool = False) -> None:
        self.calls = 0
        self.diverges = diverges

    def train(self, start: np.ndarray, *, round_index: int) -> ModelUpdate:
        self.calls += 1
        if self.diverges:
            raise TrainingDiverged(client=0, round_index=round_index, what="the model")
        return ModelUpdate(values=np.ones(3, np.float32), weight=7, examples=5, steps=2)


def test_a_client_trains_if_its_coin_falls_and_asks_for_a_zero_if_not() -> None:
    """400 coins of rate .3; by Hoeffding the bound below fails with probability below 1e-9."""
    inner = Counting()
    client = SecretParticipation(
        trainer=inner,
        dimension=3,
        client=0,
        sample_rate=0.3,
        randomness=seeded(5),  # type: ignore[arg-type]  # bytes of a seeded generator
    )
    updates = [client.train(np.zeros(3, np.float32), round_index=r) for r in range(400)]
    taken = [update for update in updates if update.weight]
    assert len(taken) == inner.calls
    assert abs(len(taken) - 120) < 66
    assert {update.weight for update in updates} == {0, 1}  # never a weight by size
    assert all(not u.values.any() for u in updates if not u.weight)


def test_training_that_diverged_looks_like_a_coin_that_fell_the_other_way() -> None:
    client = SecretParticipation(
        trainer=Counting(diverges=True), dimension=3, client=0, sample_rate=1.0
    )
    update = client.train(np.zeros(3, np.float32), round_index=0)
    assert update.weight == 0
    assert not update.values.any()


def test_two_clients_with_system_coins_do_not_agree() -> None:
    """64 rounds at rate 1/2: equal by chance with probability 2^-64."""

    def coins() -> list[int]:
        client = SecretParticipation(trainer=Counting(), dimension=3, client=0, sample_rate=0.5)
        return [client.train(np.zeros(3, np.float32), round_index=r).weight for r in range(64)]

    np.random.seed(0)  # the point: seeds of generators do not matter
    first = coins()
    np.random.seed(0)
    assert first != coins()
