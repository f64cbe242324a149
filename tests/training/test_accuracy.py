"""The parts together learn something: plain mean of the updates, no protocol.

Fixed seeds, so these tests are deterministic on one machine; the limits leave room for others.
"""

import numpy as np
import pytest

import accounting
from accounting.events import Gaussian, Poisson, Repeat
from securefl.training.apply import ServerOptimiser
from securefl.training.data import load
from securefl.training.dpsgd import DPSGD
from securefl.training.local import FlatModel, LocalSGD, evaluate
from securefl.training.models import build
from securefl.training.partition import dirichlet, iid
from securefl.training.scattering import prepared


def federate(model, trainers, *, rounds, absent=0, momentum=0.0, weighted=True):
    """Rounds of training with the plain (weighted) mean; `absent` clients miss each round."""
    server = ServerOptimiser.sgd(model.dim, momentum=momentum)
    rng = np.random.default_rng(0)
    weights = model.vector()
    for round_index in range(rounds):
        present = rng.permutation(len(trainers))[absent:]
        updates = [trainers[k].train(weights, round_index=round_index) for k in present]
        share = [u.weight if weighted else 1 for u in updates]
        mean = np.average([u.values for u in updates], axis=0, weights=share)
        weights = server.apply(weights, mean)
    model.load(weights)


def digits(seed):
    train, test = load("digits", seed=seed)
    parts = iid(len(train), clients=10, seed=seed).indices
    model = FlatModel(build("softmax", input_shape=(64,), classes=10, seed=seed))
    return model, [train.subset(part) for part in parts], test


def test_fedavg_learns_the_digits():
    model, clients, test = digits(seed=1)
    trainers = [
        LocalSGD(
            model=model,
            x=c.x,
            y=c.y,
            client=k,
            seed=1,
            learning_rate=0.5,
            batch_size=16,
            epochs=2,
        )
        for k, c in enumerate(clients)
    ]
    federate(model, trainers, rounds=14, absent=1, momentum=0.5)
    assert evaluate(model, test.x, test.y)[1] >= 0.95


def test_local_differential_privacy_at_epsilon_eight_still_learns_the_digits():
    def whole_run(noise_multiplier):
        step = Poisson(sample_rate=0.178, event=Gaussian(noise_multiplier=noise_multiplier))
        return Repeat(event=step, count=112)

    z = accounting.calibrate(
        whole_run, 8.0, 1e-5, adjacency=accounting.Adjacency.ZERO_OUT, over="noise_multiplier"
    ).value
    assert 1.4 < z < 1.5
    model, clients, test = digits(seed=1)
    rng = np.random.default_rng(7)
    trainers = [
        DPSGD(
            model=model,
            x=c.x,
            y=c.y,
            client=k,
            noise_multiplier=z,
            clip_norm=0.25,
            sample_rate=0.178,
            steps=4,
            learning_rate=2.0,
            momentum=0.5,
            random_bytes=rng.bytes,
        )
        for k, c in enumerate(clients)
    ]
    federate(model, trainers, rounds=28, absent=1, momentum=0.5, weighted=False)
    assert evaluate(model, test.x, test.y)[1] >= 0.90


@pytest.mark.long
@pytest.mark.data
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("alpha", "rounds", "limit"), [(None, 8, 0.98), (0.1, 10, 0.965)])
def test_fedavg_learns_mnist(data_dir, alpha, rounds, limit):
    train, test = load("mnist", data_dir)
    if alpha is None:
        parts = iid(len(train), clients=10, seed=0).indices
    else:
        parts = dirichlet(train.y, clients=10, alpha=alpha, seed=0, min_size=10).indices
    model = FlatModel(build("cnn26k", input_shape=(1, 28, 28), classes=10, seed=0))
    trainers = []
    for k, part in enumerate(parts):
        c = train.subset(part)
        trainers.append(
            LocalSGD(
                model=model, x=c.x, y=c.y, client=k, learning_rate=0.1, batch_size=64, epochs=1
            )
        )
    federate(model, trainers, rounds=rounds, momentum=0.5)
    assert evaluate(model, test.x, test.y)[1] >= limit


@pytest.mark.long
@pytest.mark.data
@pytest.mark.timeout(900)
def test_scattering_features_reach_their_figures_under_central_differential_privacy(data_dir):
    data = prepared(load("mnist", data_dir), "scattering_linear")
    train, test = data
    for target, noise, rate, limit in ((3.0, 1.974, 8.0, 0.983), (1.0, 4.89, 4.0, 0.979)):
        shape = train.input_shape
        model = FlatModel(build("scattering_linear", input_shape=shape, classes=10, seed=0))
        trainer = DPSGD(
            model=model,
            x=train.x,
            y=train.y,
            client=0,
            noise_multiplier=noise,
            clip_norm=0.1,
            sample_rate=4096 / 60_000,
            steps=293,
            learning_rate=rate,
            momentum=0.9,
            random_bytes=np.random.default_rng(0).bytes,
        )
        assert epsilon(trainer.event()) <= target
        model.load(model.vector() + trainer.train(model.vector(), round_index=0).values)
        assert evaluate(model, test.x, test.y)[1] >= limit


def epsilon(event):
    found = accounting.epsilon(event, 1e-5, adjacency=accounting.Adjacency.ZERO_OUT, method="rdp")
    return found.value
