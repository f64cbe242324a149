"""Gossip averaging, for comparison: peers mix their models with those of their neighbours.

**Not private.** A peer sends its model to its neighbours in clear, so each of them sees single
models, and by differences single updates. Nothing here hides anything; the functions say so in
their names and warn when they are called. The sum that peers open without seeing each other's
vectors is :mod:`securefl.protocols.peersum`.

Weights are those of Metropolis, W_ij = 1 / (1 + max(deg_i, deg_j)) along edges (Xiao, Boyd and Lall
2005, "A Scheme for Robust Distributed Sensor Fusion Based on Average Consensus", IPSN): every peer
knows them from its own and its neighbours' degrees. W is symmetric and doubly stochastic, so mixing
keeps the mean, and in every step the distance from it shrinks at least by the second largest
absolute eigenvalue of W. Training between the mixing steps follows Lian et al. 2017, "Can
Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS. This module knows no protocol
and no network.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.round import ClientId
from securefl.training.local import Trainer

__all__ = [
    "GossipRound",
    "NotPrivateWarning",
    "Topology",
    "contraction",
    "metropolis_weights",
    "mix_in_clear",
    "train_in_clear",
]


class NotPrivateWarning(UserWarning):
    """Peers are about to see each other's models."""


@dataclass(frozen=True, slots=True)
class Topology:
    """Who talks to whom: an undirected graph without loops.

    Attributes:
        edges: bool[n, n], symmetric, with an empty diagonal.

    Raises:
        ConfigurationError: if it is not, or has fewer than two peers.
    """

    edges: NDArray[np.bool_]

    def __post_init__(self) -> None:
        edges = self.edges
        if edges.ndim != 2 or edges.shape[0] != edges.shape[1] or edges.dtype != np.bool_:
            raise ConfigurationError(
                f"a topology is a square bool matrix, found {edges.dtype} of shape {edges.shape}"
            )
        if len(edges) < 2 or np.diagonal(edges).any() or not np.array_equal(edges, edges.T):
            raise ConfigurationError(
                f"a topology of {len(edges)} peers must be symmetric, without loops, and have at "
                "least two peers"
            )

    @classmethod
    def ring(cls, n: int) -> Topology:
        """Everybody talks to the two beside it."""
        at = np.arange(n)
        distance = (at[:, None] - at[None, :]) % max(n, 1)
        return cls((distance == 1) | (distance == n - 1))

    @classmethod
    def complete(cls, n: int) -> Topology:
        """Everybody talks to everybody."""
        return cls(~np.eye(n, dtype=np.bool_))

    @property
    def degrees(self) -> NDArray[np.int64]:
        """Neighbours of each peer, int64[n]."""
        degrees: NDArray[np.int64] = self.edges.sum(axis=1, dtype=np.int64)
        return degrees

    @property
    def connected(self) -> bool:
        """Whether everybody can be reached from everybody; else no mixing finds the mean."""
        reached = np.zeros(len(self.edges), dtype=np.bool_)
        reached[0] = True
        for _ in range(len(self.edges)):
            reached |= self.edges[reached].any(axis=0)
        return bool(reached.all())

    def without(self, gone: Sequence[int]) -> Topology:
        """The same peers, but nobody talks to these positions."""
        edges = self.edges.copy()
        edges[list(gone), :] = False
        edges[:, list(gone)] = False
        return Topology(edges)


def metropolis_weights(topology: Topology) -> NDArray[np.float64]:
    """W: W_ij = 1 / (1 + max(deg_i, deg_j)) on edges, the rest of each row on its diagonal.

    Returns:
        float64[n, n], symmetric, every row sums to 1, no entry below 0. A peer without neighbours
        keeps its own value.

    >>> metropolis_weights(Topology.complete(4))[0].tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    degrees = topology.degrees
    weights = np.where(topology.edges, 1 / (1 + np.maximum.outer(degrees, degrees)), 0.0)
    np.fill_diagonal(weights, 1 - weights.sum(axis=1))
    return weights


def contraction(weights: NDArray[np.float64]) -> float:
    """The factor by which the distance from the mean shrinks in one step, or faster.

    The second largest absolute eigenvalue of W: 1 if the peers are not connected, 0 if one step is
    enough.

    >>> round(contraction(metropolis_weights(Topology.ring(6))), 6)
    0.666667
    """
    values = np.sort(np.abs(np.linalg.eigvalsh(weights)))
    return float(values[-2])


def mix_in_clear(
    models: NDArray[np.float64], weights: NDArray[np.float64], *, steps: int = 1
) -> NDArray[np.float64]:
    """Some mixing steps: every peer replaces its model by its weighted mean with its neighbours'.

    Neighbours see each other's models in clear.

    Args:
        models: float64[n, d], one row per peer.
        weights: float64[n, n], see :func:`metropolis_weights`.
        steps: at least 0.
    """
    for _ in range(steps):
        models = weights @ models
    return models


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipRound:
    """What one round of gossip came to.

    Attributes:
        round_index: from 0.
        models: float64[n, d], every peer's own model afterwards.
        disagreement: root mean square distance of the models from their mean.
        vectors_sent: model vectors that went over the wire, in clear.
    """

    round_index: int
    models: NDArray[np.float64]
    disagreement: float
    vectors_sent: int

    @property
    def mean(self) -> NDArray[np.float32]:
        """The mean model, float32[d]; no peer has it."""
        mean: NDArray[np.float32] = self.models.mean(axis=0).astype(np.float32)
        return mean


def train_in_clear(
    trainers: Mapping[ClientId, Trainer],
    start: NDArray[np.float32],
    topology: Topology,
    *,
    rounds: int,
    mixing_steps: int = 1,
    gone: Mapping[int, Sequence[ClientId]] | None = None,
) -> Iterator[GossipRound]:
    """Decentralised training: every peer trains its own model, then mixes with its neighbours.

    Neighbours see each other's models in clear: a warning says so.

    Args:
        trainers: one per peer; in ascending order they are the positions of the topology.
        start: float32[d], everybody's first model.
        topology: who talks to whom; connected.
        rounds: how many.
        mixing_steps: per round.
        gone: per round the peers that are away: they neither train nor mix, and keep their model.

    Yields:
        One round after the other.

    Raises:
        ConfigurationError: if topology and peers do not fit, the topology is not connected, or a
            number is out of range. Nothing was trained then.
    """
    order = sorted(trainers)
    if len(order) != len(topology.edges):
        raise ConfigurationError(
            f"the topology has {len(topology.edges)} peers, there are {len(order)} trainers"
        )
    if not topology.connected:
        raise ConfigurationError("the topology is not connected: its parts would never agree")
    if rounds < 0 or mixing_steps < 1:
        raise ConfigurationError(
            f"gossip needs rounds >= 0 and mixing_steps >= 1, found {rounds}, {mixing_steps}"
        )
    warnings.warn(
        "gossip sends models in clear: every neighbour sees them; for sums that hide single "
        'vectors use protocol "peersum"',
        NotPrivateWarning,
        stacklevel=2,
    )
    return _rounds(trainers, order, start, topology, rounds, mixing_steps, gone or {})


def _rounds(
    trainers: Mapping[ClientId, Trainer],
    order: Sequence[ClientId],
    start: NDArray[np.float32],
    topology: Topology,
    rounds: int,
    mixing_steps: int,
    gone: Mapping[int, Sequence[ClientId]],
) -> Iterator[GossipRound]:
    models = np.tile(start.astype(np.float64), (len(order), 1))
    for index in range(rounds):
        away = {order.index(u) for u in gone.get(index, ())}
        here = topology.without(sorted(away))
        for i, u in enumerate(order):
            if i not in away:
                model = models[i].astype(np.float32)
                models[i] += trainers[u].train(model, round_index=index).values
        models = mix_in_clear(models, metropolis_weights(here), steps=mixing_steps)
        yield GossipRound(
            round_index=index,
            models=models.copy(),
            disagreement=_disagreement(models),
            vectors_sent=mixing_steps * int(here.degrees.sum()),
        )


def _disagreement(models: NDArray[np.float64]) -> float:
    centred = models - models.mean(axis=0)
    return float(np.sqrt((centred**2).sum() / len(models)))
