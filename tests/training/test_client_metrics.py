"""Per-client figures leave the clients as a sum of bins only, and say what the clients measured."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accounting
from securefl.errors import ConfigurationError
from securefl.simulation.statistics import (
    StatisticPrivacy,
    private_statistic,
    secure_statistic,
)
from securefl.training.client_metrics import (
    ClientFigures,
    ClientMetricsQuery,
    measure_client,
)
from securefl.training.local import evaluate

QUERY = ClientMetricsQuery(bins=25, loss_cap=4.0)


def records_of(figures):
    return {c: QUERY.record(f) for c, f in enumerate(figures)}


def opened(figures):
    return secure_statistic(QUERY, records_of(figures), max_records=1, min_count=1).value


@given(
    st.lists(
        st.builds(ClientFigures, loss=st.floats(0, 6), accuracy=st.floats(0, 1)),
        min_size=3,
        max_size=9,
    )
)
def test_the_summary_is_right_to_a_bin(figures):
    found = opened(figures).summary()
    assert found["clients"] == len(figures)
    accuracies = np.sort([f.accuracy for f in figures])
    losses = np.sort([min(f.loss, 4.0) for f in figures])
    # fewer than ten clients: the worst tenth is the worst client
    assert found["accuracy"]["worst_tenth"] == pytest.approx(accuracies[0], abs=0.5 / 25 + 1e-6)
    assert found["accuracy"]["best_tenth"] == pytest.approx(accuracies[-1], abs=0.5 / 25 + 1e-6)
    assert found["loss"]["worst_tenth"] == pytest.approx(losses[-1], abs=2 / 25 + 1e-6)
    middle = accuracies[(len(figures) - 1) // 2 : len(figures) // 2 + 1]
    width = found["accuracy"]["resolution"]
    assert middle[0] - width - 1e-6 <= found["accuracy"]["median"] <= middle[-1] + width + 1e-6


def test_no_clients_figure_is_in_the_transcript_and_each_vector_is_zeros_and_ones():
    """What a client adds to the sum has one 1 per histogram, whatever it measured."""
    for figures in (
        ClientFigures(loss=0.0, accuracy=1.0),
        ClientFigures(loss=math.inf, accuracy=0.0),
        ClientFigures(loss=4.0, accuracy=0.5),
    ):
        vector = QUERY.total(QUERY.record(figures))
        assert sorted(set(vector)) == [0.0, 1.0]
        assert vector[:25].sum() == vector[25:].sum() == 1.0


def test_a_client_measures_on_its_own_records(softmax, records):
    x, y = records()
    model = softmax()
    start = model.vector()
    found = measure_client(model, start, x, y)
    model.load(start)
    assert (found.loss, found.accuracy) == evaluate(model, x, y)
    with np.errstate(over="ignore"):
        broken = measure_client(model, np.full(model.dim, 3e38, np.float32), x, y)
    assert broken.loss == math.inf


def test_client_metrics_can_be_noised_and_then_cost_something():
    rng = np.random.default_rng(0)
    figures = [ClientFigures(loss=1.0, accuracy=float(a)) for a in rng.uniform(0.4, 0.9, 30)]
    found = private_statistic(
        QUERY,
        records_of(figures),
        privacy=StatisticPrivacy(epsilon=8.0),
        max_records=1,
        min_count=1,
    )
    assert accounting.epsilon(found.event, delta=1e-5, adjacency="zero-out").value <= 8.0
    assert not np.array_equal(np.rint(found.value.accuracy.counts), found.value.accuracy.counts)
    assert 0.3 < found.value.accuracy.median < 1.0  # 30 clients against noise of about 1 per bin


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClientMetricsQuery(bins=1), "bins"),
        (lambda: ClientMetricsQuery(loss_cap=0.0), "loss_cap"),
        (lambda: QUERY.total(np.zeros((1, 3))), "accuracy and loss"),
        (lambda: QUERY.result(np.zeros(3), min_count=1), "50 counts"),
    ],
)
def test_impossible_questions_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
