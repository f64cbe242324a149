"""Gossip averaging: what it computes, how fast it agrees, and that it says it is not private."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.round import ClientId
from securefl.simulation.gossip import (
    NotPrivateWarning,
    Topology,
    contraction,
    metropolis_weights,
    mix_in_clear,
    train_in_clear,
)
from securefl.training.local import ModelUpdate


@st.composite
def topologies(draw: Any) -> Topology:
    """A connected graph: a random tree and some more edges."""
    n = draw(st.integers(2, 9))
    edges = np.zeros((n, n), dtype=np.bool_)
    for i in range(1, n):
        j = draw(st.integers(0, i - 1))
        edges[i, j] = edges[j, i] = True
    for i, j in draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=8)):
        if i != j:
            edges[i, j] = edges[j, i] = True
    return Topology(edges)


def distance(models: np.ndarray) -> float:
    return float(np.linalg.norm(models - models.mean(axis=0)))


@given(topology=topologies())
def test_weights_are_metropolis_weights_symmetric_and_stochastic(topology: Topology) -> None:
    W, n = metropolis_weights(topology), len(topology.edges)
    degrees = [int(row.sum()) for row in topology.edges]
    for i in range(n):
        for j in range(n):
            if i != j:
                expected = 1 / (1 + max(degrees[i], degrees[j])) if topology.edges[i, j] else 0.0
                assert W[i, j] == expected
    assert np.array_equal(W, W.T)
    assert np.allclose(W.sum(axis=1), 1) and (W >= -1e-15).all()
    assert topology.connected and contraction(W) < 1


@given(topology=topologies(), seed=st.integers(0, 2**32 - 1), steps=st.integers(0, 12))
def test_mixing_keeps_the_mean_and_shrinks_the_rest_by_lambda_per_step(
    topology: Topology, seed: int, steps: int
) -> None:
    W = metropolis_weights(topology)
    models = np.random.default_rng(seed).normal(size=(len(W), 3))
    mixed = mix_in_clear(models, W, steps=steps)
    assert np.allclose(mixed.mean(axis=0), models.mean(axis=0))
    assert distance(mixed) <= contraction(W) ** steps * distance(models) + 1e-12


@pytest.mark.parametrize("n", [3, 4, 5, 8, 13])
def test_the_slowest_direction_shrinks_by_exactly_lambda_2(n: int) -> None:
    """On a ring W = (I + shifts) / 3: eigenvalues (1 + 2 cos(2 pi k / n)) / 3, closed form."""
    W = metropolis_weights(Topology.ring(n))
    spectrum = np.abs((1 + 2 * np.cos(2 * np.pi * np.arange(1, n) / n)) / 3)
    expected = spectrum.max()
    assert contraction(W) == pytest.approx(expected, abs=1e-12)
    k = 1 + int(spectrum.argmax())
    slowest = np.cos(2 * np.pi * k * np.arange(n) / n).reshape(-1, 1)
    for steps in range(1, 4):
        mixed = mix_in_clear(slowest, W, steps=steps)
        assert distance(mixed) == pytest.approx(expected**steps * distance(slowest), abs=1e-12)


def test_on_the_complete_graph_one_step_is_the_mean_and_apart_there_is_none() -> None:
    W = metropolis_weights(Topology.complete(5))
    models = np.arange(10.0).reshape(5, 2)
    assert np.allclose(mix_in_clear(models, W), models.mean(axis=0))
    assert contraction(W) == pytest.approx(0, abs=1e-12)
    apart = Topology.ring(6).without([0, 3])
    assert not apart.connected
    assert contraction(metropolis_weights(apart)) == pytest.approx(1)


def pulled_towards(target: float) -> Any:
    def train(vector: np.ndarray, *, round_index: int) -> ModelUpdate:
        assert vector.dtype == np.float32
        step = 0.5 * (target - vector)
        return ModelUpdate(values=step.astype(np.float32), weight=1, examples=1, steps=round_index)

    return SimpleNamespace(train=train)


def test_training_converges_to_the_common_optimum_and_warns_that_it_is_not_private() -> None:
    trainers = {ClientId(u): pulled_towards(float(u)) for u in range(6)}
    with pytest.warns(NotPrivateWarning, match="every neighbour sees them"):
        rounds = train_in_clear(
            trainers, np.zeros(2, dtype=np.float32), Topology.ring(6), rounds=40, mixing_steps=8
        )
    *_, last = rounds
    assert last.round_index == 39
    assert np.allclose(last.mean, 2.5, atol=1e-4)
    assert last.disagreement < 0.2
    assert last.vectors_sent == 8 * 12


def test_whoever_is_away_neither_trains_nor_mixes() -> None:
    trainers = {ClientId(u): pulled_towards(4.0) for u in range(4)}
    with pytest.warns(NotPrivateWarning):
        rounds = train_in_clear(
            trainers, np.zeros(1, dtype=np.float32), Topology.complete(4), rounds=1,
            gone={0: [ClientId(2)]},
        )  # fmt: skip
    (only,) = rounds
    assert only.models[:, 0].tolist() == pytest.approx([2.0, 2.0, 0.0, 2.0])
    assert only.vectors_sent == 6


@pytest.mark.parametrize(
    "edges",
    [
        np.zeros((2, 3), dtype=np.bool_),
        np.zeros((3, 3)),
        np.eye(3, dtype=np.bool_),
        np.triu(np.ones((3, 3), dtype=np.bool_), 1),
        np.zeros((1, 1), dtype=np.bool_),
    ],
)
def test_what_is_no_topology_is_refused(edges: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match="topology"):
        Topology(edges)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"topology": Topology.ring(5)}, "5 peers, there are 4 trainers"),
        ({"topology": Topology.ring(4).without([1])}, "not connected"),
        ({"mixing_steps": 0}, "mixing_steps >= 1"),
    ],
)
def test_training_that_cannot_agree_is_refused(how: dict[str, Any], text: str) -> None:
    trainers = {ClientId(u): pulled_towards(0.0) for u in range(4)}
    arguments: dict[str, Any] = {"topology": Topology.ring(4), "rounds": 1, **how}
    with pytest.raises(ConfigurationError, match=text):
        train_in_clear(trainers, np.zeros(1, dtype=np.float32), **arguments)
