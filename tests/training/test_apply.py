"""The server's step equals torch's, and its state survives a checkpoint without pickle."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from securefl.errors import CheckpointError, ConfigurationError
from securefl.training.apply import ServerOptimiser

FLOATS = st.floats(-100, 100, width=32)
VECTORS = hnp.arrays(np.float32, st.integers(1, 20), elements=FLOATS)

MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.99)),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


@given(VECTORS, st.data())
def test_sgd_at_rate_one_adds_the_mean(weights, data):
    mean = data.draw(
        hnp.arrays(np.float64, weights.shape, elements=st.floats(-100, 100, allow_subnormal=False))
    )
    after = ServerOptimiser.sgd(len(weights)).apply(weights, mean)
    assert after.dtype == np.float32
    # 1e-6 relative to the size of the numbers: float32 has a unit roundoff of 6e-8.
    scale = 1.0 + np.abs(weights) + np.abs(mean)
    assert (np.abs(after - (weights + mean)) <= 1e-6 * scale).all()


@pytest.mark.parametrize("name", MAKERS)
def test_ten_steps_equal_torchs_optimiser_on_minus_the_mean(name):
    rng = np.random.default_rng(0)
    start = rng.normal(size=13).astype(np.float32)
    server = ServerOptimiser(MAKERS[name], dimension=13)
    reference = nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = MAKERS[name]([reference])
    weights = start
    for _ in range(10):
        mean = rng.normal(size=13)
        weights = server.apply(weights, mean)
        reference.grad = torch.from_numpy(-mean).float()
        optimiser.step()
    assert np.abs(weights - reference.detach().numpy()).max() < 1e-6


def test_the_named_constructors_are_torchs_optimisers():
    rng = np.random.default_rng(1)
    mean, start = rng.normal(size=5), np.zeros(5, dtype=np.float32)
    pairs = (
        (ServerOptimiser.sgd(5, learning_rate=0.5, momentum=0.9), MAKERS["momentum"]),
        (ServerOptimiser.adam(5, learning_rate=0.1, betas=(0.9, 0.99)), MAKERS["adam"]),
    )
    for server, make in pairs:
        expected = ServerOptimiser(make, dimension=5)
        for _ in range(3):
            assert np.array_equal(server.apply(start, mean), expected.apply(start, mean))


def test_the_arguments_are_left_unchanged():
    weights, mean = np.ones(3, dtype=np.float32), np.ones(3)
    ServerOptimiser.sgd(3).apply(weights, mean)
    assert weights.tolist() == [1.0] * 3
    assert mean.tolist() == [1.0] * 3


@pytest.mark.parametrize("name", MAKERS)
def test_a_run_continues_exactly_from_its_saved_state(name):
    rng = np.random.default_rng(2)
    means = rng.normal(size=(6, 4))
    whole = ServerOptimiser(MAKERS[name], dimension=4)
    weights = np.zeros(4, dtype=np.float32)
    for mean in means[:3]:
        weights = whole.apply(weights, mean)
    file = io.BytesIO()
    np.savez(file, **whole.state_dict())
    file.seek(0)
    resumed = ServerOptimiser(MAKERS[name], dimension=4)
    with np.load(file, allow_pickle=False) as state:
        resumed.load_state_dict(dict(state))
    other = weights
    for mean in means[3:]:
        weights, other = whole.apply(weights, mean), resumed.apply(other, mean)
    assert np.array_equal(weights, other)


def test_the_saved_state_is_a_copy():
    server = ServerOptimiser.sgd(2, momentum=0.9)
    server.apply(np.zeros(2, np.float32), np.ones(2))
    state = server.state_dict()
    server.apply(np.zeros(2, np.float32), np.ones(2))
    assert state["momentum_buffer"].tolist() == [-1.0, -1.0]


def test_a_foreign_state_is_refused():
    server = ServerOptimiser.sgd(2, momentum=0.9)
    server.apply(np.zeros(2, np.float32), np.ones(2))
    state = server.state_dict()
    for wrong, message in (
        ({}, "optimiser none"),
        ({**state, "optimiser": np.array("Adam")}, "optimiser Adam"),
        ({**state, "momentum_buffer": np.zeros(3, np.float32)}, "shape"),
        ({**state, "momentum_buffer": np.full(2, np.nan, np.float32)}, "finite"),
        ({**state, "momentum_buffer": np.array(["a", "b"])}, "finite"),
    ):
        with pytest.raises(CheckpointError, match=message):
            ServerOptimiser.sgd(2, momentum=0.9).load_state_dict(wrong)


def test_double_precision_is_available():
    server = ServerOptimiser(MAKERS["momentum"], dimension=2, dtype=torch.float64)
    server.apply(np.zeros(2), np.array([1e-9, 1.0]))
    assert server.state_dict()["momentum_buffer"].dtype == np.float64
    with pytest.raises(ConfigurationError, match="dtype"):
        ServerOptimiser(MAKERS["sgd"], dimension=2, dtype=torch.float16)


def test_the_rate_can_follow_a_schedule():
    server = ServerOptimiser.sgd(1)
    assert server.learning_rate == 1.0
    server.learning_rate = 0.25
    assert server.apply(np.zeros(1, np.float32), np.ones(1)).tolist() == [0.25]
    with pytest.raises(ConfigurationError, match="learning_rate"):
        server.learning_rate = float("nan")


@pytest.mark.parametrize("bad", [np.ones(3), np.array([1.0, np.nan]), np.array([np.inf, 0.0])])
def test_a_wrong_mean_never_reaches_the_model(bad):
    server = ServerOptimiser.sgd(2)
    with pytest.raises(ConfigurationError, match="mean_update"):
        server.apply(np.zeros(2, dtype=np.float32), bad)
    with pytest.raises(ConfigurationError, match="weights"):
        server.apply(bad, np.zeros(2))
    with pytest.raises(ConfigurationError, match="dimension"):
        ServerOptimiser.sgd(0)
