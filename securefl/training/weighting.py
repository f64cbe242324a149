"""How much each client counts in the mean: integer weights that ride inside the masked vector.

The weight of a client is an integer in 0..w_max that the client computes for itself. The codec
carries it as one more entry, (w_k x_k, w_k), so that a secure sum opens the weighted mean and the
sum of all weights, and no message holds a single one. w_max is public and bounds what a client that
lies about its weight can do; nobody can check the claim below it.

Under differential privacy a weight by the number of records is refused: see
:func:`check_private_weights`. There clients count alike, or by :func:`capped_share` with a public
cap (:class:`CappedTrainer`), and the divisor is public. This module knows no codec and no protocol.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.training.local import (
    FlatModel,
    ModelUpdate,
    Trainer,
    TrainingDiverged,
    check_records,
    evaluate,
)
from securefl.training.private_weights import WeightKind, capped_share, check_private_weights

__all__ = [
    "QUALITY_STEPS",
    "CappedTrainer",
    "ScoredTrainer",
    "WeightKind",
    "WeightRule",
    "WeightedTrainer",
    "capped_share",
    "check_private_weights",
    "weight_rule",
]

WeightRule: TypeAlias = Callable[[ModelUpdate, int], int]
"""``rule(update, round_index)``: the weight of one client in one round, an integer >= 0."""

QUALITY_STEPS = 1000
"""Weight of an update of quality 1; quality 0 does not count at all."""

_QUALITY = "quality"


def weight_rule(kind: WeightKind | str) -> WeightRule:
    """The rule behind a name.

    >>> update = ModelUpdate(values=np.zeros(2, np.float32), weight=1, examples=60, steps=4)
    >>> [weight_rule(kind)(update, 0) for kind in ("examples", "equal", "steps")]
    [60, 1, 4]
    """
    try:
        return _RULES[WeightKind(kind)]
    except ValueError:
        known = ", ".join(WeightKind)
        raise ConfigurationError(
            f"weights are one of {known}, or a function of your own; found {kind!r}"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedTrainer:
    """A trainer whose updates ask for the weight that a rule gives them.

    Attributes:
        trainer: does the training.
        rule: see :data:`WeightRule`; may change from round to round.
        max_weight: w_max, public, >= 1.
        client: whose it is, for messages.
    """

    trainer: Trainer
    rule: WeightRule
    max_weight: int
    client: int

    def __post_init__(self) -> None:
        if isinstance(self.max_weight, bool) or self.max_weight < 1:
            raise ConfigurationError(f"max_weight must be at least 1, found {self.max_weight}")

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        """The inner trainer's update with the rule's weight.

        Raises:
            ConfigurationError: if the rule gives anything but an integer in 0..max_weight. It is
                never cut down to the bound: a client that counts for less than everybody was told
                would be a silent change of the algorithm.
        """
        update = self.trainer.train(start, round_index=round_index)
        weight = self.rule(update, round_index)
        if isinstance(weight, bool) or not isinstance(weight, int | np.integer):
            raise ConfigurationError(
                f"client {self.client}, round {round_index}: a weight must be an integer, found "
                f"{weight!r} ({type(weight).__name__}); scale and round it in the rule"
            )
        if not 0 <= weight <= self.max_weight:
            raise ConfigurationError(
                f"client {self.client}, round {round_index}: the weight must be in "
                f"0..{self.max_weight} (the public max_weight), found {weight}"
            )
        return dataclasses.replace(update, weight=int(weight))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredTrainer:
    """A trainer that also measures its local model on records kept out of its training.

    The score is the accuracy, in ``metrics["quality"]``. It stays on the client, except inside a
    weight. A client can claim any score; ``max_weight`` bounds what the claim is worth.

    Attributes:
        trainer: does the training, on other records.
        model: the worker's model.
        x, y: the client's held-out records: float32[n, ...] and int64[n], n >= 1.
        client: this client's id, for messages.
    """

    trainer: Trainer
    model: FlatModel
    x: NDArray[np.float32] = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)
    client: int

    def __post_init__(self) -> None:
        check_records(self.x, self.y, client=self.client)

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        """The inner trainer's update with its score.

        Raises:
            TrainingDiverged: if the local model is not finite; names the client.
        """
        update = self.trainer.train(start, round_index=round_index)
        trained = start + update.values
        if not np.isfinite(trained).all():
            raise TrainingDiverged(client=self.client, round_index=round_index, what="the model")
        self.model.load(trained)
        _, accuracy = evaluate(self.model, self.x, self.y)
        return dataclasses.replace(update, metrics={**update.metrics, _QUALITY: accuracy})


@dataclass(frozen=True, slots=True, kw_only=True)
class CappedTrainer:
    """A trainer whose updates count by the capped share of their records: min(n_k / cap, 1).

    The update itself is left as it is: whoever clips it scales it afterwards. Scaling first and
    clipping then would be another rule, in which a client with few records is clipped less.

    Attributes:
        trainer: does the training.
        cap: public, >= 1.
    """

    trainer: Trainer
    cap: int

    def __post_init__(self) -> None:
        capped_share(0, self.cap)

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        """The inner trainer's update with its share."""
        update = self.trainer.train(start, round_index=round_index)
        return dataclasses.replace(update, share=capped_share(update.examples, self.cap))


def _examples(update: ModelUpdate, round_index: int) -> int:
    del round_index
    return update.examples


def _equal(update: ModelUpdate, round_index: int) -> int:
    del update, round_index
    return 1


def _steps(update: ModelUpdate, round_index: int) -> int:
    del round_index
    return update.steps


def _by_quality(update: ModelUpdate, round_index: int) -> int:
    score = update.metrics.get(_QUALITY, math.nan)
    if not 0.0 <= score <= 1.0:  # also catches NaN
        raise ConfigurationError(
            f'round {round_index}: weights "quality" need metrics["quality"] in [0, 1], found '
            f"{score}; wrap the trainer in ScoredTrainer"
        )
    return round(score * QUALITY_STEPS)


_RULES: dict[WeightKind, WeightRule] = {
    WeightKind.EXAMPLES: _examples,
    WeightKind.EQUAL: _equal,
    WeightKind.STEPS: _steps,
    WeightKind.QUALITY: _by_quality,
}
