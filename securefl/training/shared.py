"""Step 1 where the noise is shared: a clipped sum over a secret sample, or an update by a coin.

:class:`RecordSum` is one client's part of one step of DP-SGD (Abadi et al. 2016, *Deep learning
with differential privacy*, algorithm 1) over the records of all clients: a Poisson sample of its
own records, each gradient clipped to norm C, summed. :class:`SecretParticipation` is one client's
part of DP-FedAvg (McMahan et al. 2018, *Learning differentially private recurrent language
models*), with the coin tossed by the client instead of the server: it trains if its coin falls, and
asks for an encoded zero if not, so that nobody can tell from what it sends.

Neither adds noise and neither is private by itself: the codec adds a share of the noise to what
comes out here, and only the sum over enough honest clients carries the noise that is accounted for.
Sample and coin are secret: from cryptographic bytes, never in a message, not even their count. This
module knows no codec, no protocol and no other client.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.training.clipped_sum import ClippedSum
from securefl.training.local import (
    FlatModel,
    ModelUpdate,
    Trainer,
    TrainingDiverged,
    check_labels,
    check_positive,
    check_records,
)
from securefl.training.randomness import RandomBytes, poisson_sample

__all__ = ["RECORDS_MARGIN", "RecordSum", "RoundRandomness", "SecretParticipation"]

RECORDS_MARGIN = 2.0**-11
"""Part of C that the codec needs for its own rounding (``securefl.encoding.noisy`` has the same
number; a test compares them)."""

RoundRandomness = Callable[[int], RandomBytes]
"""``f(round_index)``: the client's secret source for that round; of the system unless injected."""


def _system(_round_index: int) -> RandomBytes:
    return os.urandom


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class RecordSum:
    """A client whose records are sampled one by one; one round is one step.

    Attributes:
        model: the worker's model.
        x, y: the client's records: float32[n, ...] and int64[n], n >= 1.
        client: this client's id, for messages.
        clip_norm: C > 0, norm bound of one record's gradient.
        sample_rate: q in (0, 1], of each record.
        randomness: source of the sample.

    Raises:
        ConfigurationError: if a parameter is out of range, the model has a layer that mixes
            records or no output for a label, or there are so many records that the rounding of
            their sum could pass the margin that the codec relies on.
    """

    model: FlatModel
    x: NDArray[np.float32] = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)
    client: int
    clip_norm: float
    sample_rate: float
    randomness: RoundRandomness = _system
    _clipped: ClippedSum = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_records(self.x, self.y, client=self.client)
        check_positive("clip_norm", self.clip_norm)
        _check_rate(self.sample_rate)
        clipped = ClippedSum(
            model=self.model, input_shape=tuple(self.x.shape[1:]), clip_norm=self.clip_norm
        )
        object.__setattr__(self, "_clipped", clipped)
        check_labels(self.model, self.x, self.y, client=self.client)
        if clipped.sensitivity(len(self.y)) > self.clip_norm * (1.0 - RECORDS_MARGIN):
            raise ConfigurationError(
                f"{len(self.y)} records are too many for one client: one record could move their "
                f"rounded sum by {clipped.sensitivity(len(self.y)):.6g}, more than clip_norm "
                f"{self.clip_norm:g} less the codec's margin; split them over several clients"
            )

    def __repr__(self) -> str:
        return (
            f"RecordSum(client={self.client}, clip_norm={self.clip_norm}, "
            f"sample_rate={self.sample_rate}, records=<private>)"
        )

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        """Minus the sum of the sample's clipped gradients at ``start``: what the server adds.

        An empty sample gives zeros and is an update like any other. The sample's size is in no
        field.
        """
        self.model.load(start)
        sample = poisson_sample(len(self.y), self.sample_rate, self.randomness(round_index))
        total = self._clipped.of(self.x, self.y, sample).total
        return ModelUpdate(values=-total, weight=1, examples=len(self.y), steps=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class SecretParticipation:
    """A client that takes part by its own coin and tells nobody.

    Its update has weight 1 or 0, and 0 asks for an encoded zero. Training that diverged counts as
    a coin that fell the other way: a client that reports failure instead would announce that it
    was sampled, and a zero is a bounded contribution like any other.

    Attributes:
        trainer: trains if the coin falls.
        dimension: entries of an update: the model's parameters, and what an algorithm adds.
        client: this client's id.
        sample_rate: q in (0, 1]; 1 where the server draws who takes part.
        randomness: source of the coin.
    """

    trainer: Trainer
    dimension: int
    client: int
    sample_rate: float
    randomness: RoundRandomness = _system

    def __post_init__(self) -> None:
        _check_rate(self.sample_rate)

    def __repr__(self) -> str:
        return f"SecretParticipation(client={self.client}, sample_rate={self.sample_rate})"

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        """The trainer's update with weight 1 (and its share), or zeros with weight 0."""
        if len(poisson_sample(1, self.sample_rate, self.randomness(round_index))):
            try:
                update = self.trainer.train(start, round_index=round_index)
            except TrainingDiverged:
                pass
            else:
                return replace(update, weight=1)
        zeros = np.zeros(self.dimension, dtype=np.float32)
        return ModelUpdate(values=zeros, weight=0, examples=0, steps=0)


def _check_rate(rate: float) -> None:
    if not 0.0 < rate <= 1.0:
        raise ConfigurationError(f"sample_rate must be in (0, 1], found {rate}")
