"""The adaptive server optimisers equal the published formulas, computed in plain float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from securefl.errors import CheckpointError, ConfigurationError
from securefl.training.apply import ServerOptimiser
from securefl.training.fedopt import FedAdagrad, FedAdam, FedYogi

FOLLOW = {
    "fedadagrad": lambda v, d, b2: v + d**2,
    "fedyogi": lambda v, d, b2: v - (1 - b2) * d**2 * np.sign(v - d**2),
    "fedadam": lambda v, d, b2: b2 * v + (1 - b2) * d**2,
}


def oracle(name, start, means, *, rate, beta1, beta2, tau):
    """Algorithm 2 of Reddi et al. (2021), line by line, in float64."""
    x = start.astype(np.float64)
    m, v = np.zeros_like(x), np.full_like(x, tau**2)
    for delta in means:
        m = beta1 * m + (1 - beta1) * delta
        v = FOLLOW[name](v, delta, beta2)
        x = x + rate * m / (np.sqrt(v) + tau)
    return x


def server(name, dimension, *, rate, beta1, beta2, tau):
    if name == "fedadagrad":
        return ServerOptimiser.fedadagrad(dimension, learning_rate=rate, beta1=beta1, tau=tau)
    make = getattr(ServerOptimiser, name)
    return make(dimension, learning_rate=rate, betas=(beta1, beta2), tau=tau)


@given(
    name=st.sampled_from(sorted(FOLLOW)),
    seed=st.integers(0, 10_000),
    rounds=st.integers(1, 12),
    rate=st.sampled_from([0.01, 0.1, 1.0]),
    beta1=st.sampled_from([0.0, 0.5, 0.9]),
    beta2=st.sampled_from([0.0, 0.9, 0.99]),
    tau=st.sampled_from([1e-3, 1e-1]),
)
def test_every_step_is_the_papers_formula(name, seed, rounds, rate, beta1, beta2, tau):
    rng = np.random.default_rng(seed)
    start = rng.normal(size=9).astype(np.float32)
    # Float32 means: the oracle must see the numbers that the optimiser sees.
    means = rng.normal(0, 0.3, (rounds, 9)).astype(np.float32).astype(np.float64)
    numbers = {"rate": rate, "beta1": beta1, "beta2": beta2, "tau": tau}
    optimiser, weights = server(name, 9, **numbers), start
    for mean in means:
        weights = optimiser.apply(weights, mean)
    expected = oracle(name, start, means, **numbers)
    # One float32 rounding of the model per round (6e-8 of its size), and the step's own.
    scale = 1.0 + np.abs(expected).max() + rate * rounds
    assert np.abs(weights - expected).max() < 1e-6 * scale


def test_yogi_steps_up_or_down_by_the_same_amount_whatever_v_is():
    """The additive rule: from v far above the square, v falls by (1 - beta2) of the square only."""
    for v0, sign in ((4.0, -1), (0.01, +1)):
        parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimiser = FedYogi([parameter], beta2=0.9)
        optimiser.state[parameter] = {
            "m": torch.zeros(1, dtype=torch.float64),
            "v": torch.full((1,), v0, dtype=torch.float64),
        }
        parameter.grad = torch.ones(1, dtype=torch.float64)
        optimiser.step()
        assert optimiser.state[parameter]["v"].item() == pytest.approx(v0 + sign * 0.1, abs=1e-12)


def test_torchs_adagrad_is_available_under_its_own_name():
    rng = np.random.default_rng(3)
    start, means = rng.normal(size=4).astype(np.float32), rng.normal(size=(5, 4))
    ours, weights = ServerOptimiser.adagrad(4, learning_rate=0.2), start
    reference = nn.Parameter(torch.from_numpy(start.copy()))
    theirs = torch.optim.Adagrad([reference], lr=0.2)
    for mean in means:
        weights = ours.apply(weights, mean)
        reference.grad = torch.from_numpy(-mean).float()
        theirs.step()
    assert np.abs(weights - reference.detach().numpy()).max() < 1e-6


@pytest.mark.parametrize("name", sorted(FOLLOW))
def test_a_run_continues_exactly_from_its_saved_state(name):
    means = np.random.default_rng(2).normal(size=(6, 4))
    numbers = {"rate": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}
    whole, weights = server(name, 4, **numbers), np.zeros(4, dtype=np.float32)
    for mean in means[:3]:
        weights = whole.apply(weights, mean)
    resumed, other = server(name, 4, **numbers), weights
    resumed.load_state_dict(whole.state_dict())
    for mean in means[3:]:
        weights, other = whole.apply(weights, mean), resumed.apply(other, mean)
    assert np.array_equal(weights, other)


def test_the_state_of_one_rule_is_not_taken_for_another():
    adam, yogi = ServerOptimiser.fedadam(2), ServerOptimiser.fedyogi(2)
    adam.apply(np.zeros(2, np.float32), np.ones(2))
    with pytest.raises(CheckpointError, match=r"FedAdam.*FedYogi"):
        yogi.load_state_dict(adam.state_dict())


def test_impossible_numbers_are_refused():
    parameter = [nn.Parameter(torch.zeros(1))]
    for make, message in (
        (lambda: FedAdam(parameter, lr=0.0), "lr"),
        (lambda: FedAdam(parameter, tau=0.0), "tau"),
        (lambda: FedYogi(parameter, beta1=1.0), "beta1"),
        (lambda: FedYogi(parameter, beta2=-0.1), "beta2"),
        (lambda: FedAdagrad(parameter, lr=float("nan")), "lr"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make()


def test_a_parameter_without_a_gradient_stays():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimiser = FedAdam([a, b])
    a.grad = torch.ones(1)
    optimiser.step()
    assert a.item() < 1.0
    assert b.item() == 1.0
