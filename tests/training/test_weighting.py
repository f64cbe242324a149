"""Weights are integers inside the masked vector; under differential privacy most are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.encoding.codec import CodecSpec, UpdateCodec, Weighting, sum_encoded
from securefl.errors import ConfigurationError
from securefl.round import AggregateSum, ClientId
from securefl.training.local import LocalSGD, ModelUpdate, TrainingDiverged
from securefl.training.weighting import (
    QUALITY_STEPS,
    ScoredTrainer,
    WeightedTrainer,
    weight_rule,
)


class Fixed:
    """A trainer that always comes to the same update."""

    def __init__(self, values, *, examples=1, steps=1, metrics=None):
        self.update = ModelUpdate(
            values=np.array(values, dtype=np.float32),
            weight=99,
            examples=examples,
            steps=steps,
            metrics=metrics or {},
        )

    def train(self, start, *, round_index):
        return self.update


def opened_mean(trainers, max_weight):
    """The mean through the codec and a modular sum, as a server sees it."""
    spec = CodecSpec.plan(
        dimension=3,
        clip_norm=10.0,
        max_clients=len(trainers),
        weighting=Weighting.WEIGHTED,
        max_weight=max_weight,
        bits=48,
    )
    codec = UpdateCodec(spec)
    updates = [t.train(np.zeros(3, np.float32), round_index=0) for t in trainers]
    total = sum_encoded([codec.encode(u.values, weight=u.weight) for u in updates])
    ids = tuple(ClientId(i) for i in range(len(trainers)))
    return codec.decode(AggregateSum(vector=total, survivors=ids, min_honest=1)).mean


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (weight_rule("examples"), [2.2, 3.2, 4.2]),
        (weight_rule("equal"), [2.5, 3.5, 4.5]),
        (weight_rule("steps"), [3.25, 4.25, 5.25]),
        (weight_rule("quality"), [1.6, 2.6, 3.6]),
        (lambda update, round_index: 7 if update.examples == 6 else 0, [1.0, 2.0, 3.0]),
    ],
)
def test_the_opened_mean_follows_the_weights(rule, expected):
    clients = [
        Fixed([1.0, 2.0, 3.0], examples=6, steps=1, metrics={"quality": 0.8}),
        Fixed([4.0, 5.0, 6.0], examples=4, steps=3, metrics={"quality": 0.2}),
    ]
    weighted = [
        WeightedTrainer(trainer=t, rule=rule, max_weight=QUALITY_STEPS, client=i)
        for i, t in enumerate(clients)
    ]
    assert opened_mean(weighted, QUALITY_STEPS) == pytest.approx(expected, abs=1e-6)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 500), st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3)
        ),
        min_size=1,
        max_size=6,
    ).filter(lambda clients: any(weight for weight, _ in clients))
)
def test_any_integer_weights_give_the_weighted_mean(clients):
    trainers = [
        WeightedTrainer(
            trainer=Fixed(values, examples=w),
            rule=weight_rule("examples"),
            max_weight=500,
            client=i,
        )
        for i, (w, values) in enumerate(clients)
    ]
    weights = np.array([w for w, _ in clients], dtype=np.float64)
    values = np.array([v for _, v in clients], dtype=np.float64)
    expected = (weights[:, None] * values).sum(axis=0) / weights.sum()
    # 48 bits, six clients of weight 500: a step is 10 / 4.7e10.
    assert opened_mean(trainers, 500) == pytest.approx(expected, abs=1e-6)


def test_a_rule_may_change_from_round_to_round():
    trainer = WeightedTrainer(
        trainer=Fixed([0.0], examples=10),
        rule=lambda update, round_index: update.examples if round_index >= 2 else 1,
        max_weight=10,
        client=0,
    )
    start = np.zeros(1, np.float32)
    assert [trainer.train(start, round_index=r).weight for r in range(4)] == [1, 1, 10, 10]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (11, r"client 5, round 3: the weight must be in 0\.\.10 .* found 11"),
        (-1, "found -1"),
        (0.5, "must be an integer, found 0.5"),
        (True, "must be an integer, found True"),
        (None, "must be an integer"),
    ],
)
def test_a_weight_that_is_no_integer_in_range_is_refused_and_never_cut(weight, message):
    trainer = WeightedTrainer(
        trainer=Fixed([0.0]), rule=lambda update, round_index: weight, max_weight=10, client=5
    )
    with pytest.raises(ConfigurationError, match=message):
        trainer.train(np.zeros(1, np.float32), round_index=3)


def test_names_and_bounds_are_checked():
    with pytest.raises(ConfigurationError, match="examples, equal, steps, quality"):
        weight_rule("size")
    with pytest.raises(ConfigurationError, match="max_weight"):
        WeightedTrainer(trainer=Fixed([0.0]), rule=weight_rule("equal"), max_weight=0, client=0)


def test_quality_is_the_accuracy_on_records_that_were_not_trained_on(softmax, records):
    x, y = records(n=60)
    model = softmax()
    local = LocalSGD(model=model, x=x[:40], y=y[:40], client=1, learning_rate=0.5, epochs=3)
    start = model.vector()
    scored = ScoredTrainer(trainer=local, model=model, x=x[40:], y=y[40:], client=1)
    update = scored.train(start, round_index=0)
    model.load(start + update.values)
    w = model.vector().astype(np.float64)
    logits = x[40:] @ w[:18].reshape(3, 6).T + w[18:]
    accuracy = float((logits.argmax(axis=1) == y[40:]).mean())
    assert update.metrics["quality"] == pytest.approx(accuracy)
    assert update.metrics["loss"] == local.train(start, round_index=0).metrics["loss"]
    assert weight_rule("quality")(update, 0) == round(accuracy * QUALITY_STEPS)


def test_quality_without_a_score_is_refused():
    for metrics in ({}, {"quality": float("nan")}, {"quality": 1.5}):
        update = Fixed([0.0], metrics=metrics).update
        with pytest.raises(ConfigurationError, match="ScoredTrainer"):
            weight_rule("quality")(update, 0)


def test_a_model_that_overflows_is_not_scored(softmax, records):
    x, y = records(n=10)
    model = softmax()
    huge = Fixed(np.full(model.dim, 3e38))
    scored = ScoredTrainer(trainer=huge, model=model, x=x, y=y, client=4)
    with pytest.raises(TrainingDiverged, match="client 4"), np.errstate(over="ignore"):
        scored.train(np.full(model.dim, 3e38, np.float32), round_index=0)
