"""What a run without shared noise is made of: its algorithm, its clients' training, its codec.

The engine asks this module for everything in which FedAvg, q-FedAvg, FedNova and SCAFFOLD differ:
what clients start from and send, how long and how large that is, and what a client remembers from
round to round. Where the clients train with local differential privacy the algorithm is plain
averaging with equal weights. All clients live in one process; what :meth:`PlainRun.state` keeps of
a client would stay on that client in a deployment.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefl.config import RunConfig
from securefl.encoding.codec import CodecSpec, Weighting
from securefl.encoding.fixed_point import Rounding
from securefl.errors import ConfigurationError
from securefl.round import ClientId
from securefl.training.apply import ServerOptimiser, ServerStep
from securefl.training.data import Dataset
from securefl.training.fednova import NormalisedAveraging, path_length
from securefl.training.local import FlatModel, FullGradient, LocalSGD, Reduction, Trainer
from securefl.training.partition import Partition
from securefl.training.payload import Algorithm, Averaging
from securefl.training.qfedavg import FairAveraging
from securefl.training.scaffold import Scaffold, ScaffoldTrainer
from securefl.training.weighting import (
    QUALITY_STEPS,
    ScoredTrainer,
    WeightedTrainer,
    weight_rule,
)

__all__ = ["PlainRun", "averaging_server", "codec_spec"]

_CLIENT = "client/"
_HELD_OUT_TAG = 0x4E1D


class PlainRun:
    """One run without differential privacy.

    Args:
        config: of the sweep.
        model: the worker's model.
        train: all training records.
        partition: who holds which of them.
        seed: of the run, public.

    Raises:
        ConfigurationError: if a client would have no records left to train or to measure on.
    """

    def __init__(
        self,
        config: RunConfig,
        model: FlatModel,
        train: Dataset,
        partition: Partition,
        *,
        seed: int,
    ) -> None:
        self.config, self.model = config, model
        self._train, self._partition, self._seed = train, partition, seed
        self.algorithm = self._algorithm()
        self._kept: dict[ClientId, ScaffoldTrainer] = {}
        self._restored: dict[str, dict[str, NDArray[Any]]] | None = None

    # -- the algorithm ---------------------------------------------------------------------------

    def _algorithm(self) -> Algorithm:
        training = self.config.training
        match training.algorithm:
            case "q-fedavg":
                cap = training.loss_cap or 2.0 * math.log(self._train.classes)
                return FairAveraging(q=1.0 if training.q is None else training.q, loss_cap=cap)
            case "fednova":
                return NormalisedAveraging(
                    longest=self._path(self._most_steps()),
                    reference=self._path(self._usual_steps()),
                )
            case "scaffold":
                return Scaffold(
                    clients=len(self._partition.indices),
                    control_scale=training.learning_rate * self._usual_steps(),
                )
        return Averaging()

    def _path(self, steps: int) -> float:
        training = self.config.training
        return path_length(
            steps,
            learning_rate=training.learning_rate,
            momentum=training.momentum,
            proximal=training.proximal,
        )

    def _most_steps(self) -> int:
        """A public bound on one client's steps: nobody holds more than all training records."""
        if self.config.simulation.local_steps:
            return max(self.config.simulation.local_steps)
        return self._steps_of(self.config.encoding.max_weight or len(self._train))

    def _usual_steps(self) -> int:
        return self._steps_of(-(-len(self._train) // len(self._partition.indices)))

    def _steps_of(self, records: int) -> int:
        training = self.config.training
        if training.local_steps is not None:
            return training.local_steps
        return (training.local_epochs or 1) * -(-records // training.batch_size)

    @property
    def clip_norm(self) -> float:
        """Norm bound of what a client sends."""
        return self.algorithm.clip_norm(self.config.encoding.clip_norm)

    def server(self, optimiser: ServerOptimiser) -> ServerStep:
        """The server's step."""
        return self.algorithm.server(optimiser, clip_norm=self.config.encoding.clip_norm)

    def codec_spec(self, modulus: int) -> CodecSpec:
        """The codec of the run's vectors, summed modulo ``modulus``."""
        weighted = self.config.training.weights != "equal"
        return codec_spec(
            self.config,
            dimension=self.algorithm.payload(self.model.dim),
            clip_norm=self.clip_norm,
            max_weight=self.max_weight if weighted else None,
            modulus=modulus,
        )

    @property
    def max_weight(self) -> int:
        """Largest weight that a client may bring, public."""
        if self.config.encoding.max_weight is not None:
            return self.config.encoding.max_weight
        match self.config.training.weights:
            case "quality":
                return QUALITY_STEPS
            case "steps":
                return self._most_steps()
        # No client can hold more than all the training records.
        return len(self._train)

    # -- the clients -----------------------------------------------------------------------------

    def records(self, client: ClientId) -> tuple[Dataset, Dataset | None]:
        """What a client trains on, and what it keeps out of training; None where it keeps nothing.

        The split is a public function of the seed. Each client keeps out at least one record.
        """
        indices, share = self._partition.indices[client], self.config.training.held_out
        if not share:
            return self._train.subset(indices), None
        count = max(1, round(share * len(indices)))
        if count >= len(indices):
            raise ConfigurationError(
                f"client {client} has {len(indices)} records; training.held_out = {share:g} leaves "
                "none to train on; raise partition.minimum or lower held_out"
            )
        order = np.random.default_rng((self._seed, client, _HELD_OUT_TAG)).permutation(indices)
        kept = np.sort(order[:count]), np.sort(order[count:])
        return self._train.subset(kept[1]), self._train.subset(kept[0])

    def local(self, client: ClientId, *, steps: int | None = None) -> LocalSGD:
        """A client's own SGD; ``steps`` in place of the configured length."""
        training, slow = self.config.training, self.config.simulation.local_steps
        records, _ = self.records(client)
        if steps is None and slow:
            steps = slow[client]
        if steps is None:
            steps = training.local_steps
        return LocalSGD(
            model=self.model,
            x=records.x,
            y=records.y,
            client=client,
            seed=self._seed,
            learning_rate=training.learning_rate,
            batch_size=training.batch_size,
            epochs=(training.local_epochs or 1) if steps is None else None,
            steps=steps,
            momentum=training.momentum,
            proximal=training.proximal,
        )

    def trainer(self, client: ClientId) -> Trainer:
        """What one client does in a round."""
        training = self.config.training
        records, held_out = self.records(client)
        trainer: Trainer
        if training.algorithm == "fedsgd":
            trainer = FullGradient(
                model=self.model,
                x=records.x,
                y=records.y,
                client=client,
                reduction=Reduction.MEAN,
            )
        else:
            trainer = self.algorithm.trainer(
                self.local(client), clip_norm=self.config.encoding.clip_norm
            )
        if isinstance(trainer, ScaffoldTrainer):
            self._kept[client] = trainer
            if self._restored is not None:
                trainer.load_state_dict(self._restored.get(str(client), {}))
        if training.weights == "quality" and held_out is not None:
            trainer = self._scored(trainer, client, held_out)
        if training.weights in ("steps", "quality"):
            trainer = WeightedTrainer(
                trainer=trainer,
                rule=weight_rule(training.weights),
                max_weight=self.max_weight,
                client=client,
            )
        return trainer

    def _scored(self, trainer: Trainer, client: ClientId, held_out: Dataset) -> Trainer:
        return ScoredTrainer(
            trainer=trainer, model=self.model, x=held_out.x, y=held_out.y, client=client
        )

    def settle(self, cohort: Collection[ClientId], survivors: Collection[ClientId]) -> None:
        """Tells clients that remember something whether their update is in the opened sum."""
        for client in cohort:
            if client in self._kept:
                self._kept[client].settle(included=client in survivors)

    # -- checkpoints -----------------------------------------------------------------------------

    def state(self) -> dict[str, NDArray[Any]]:
        """What clients remember, for the checkpoint of a simulation."""
        return {
            f"{_CLIENT}{client}/{name}": value
            for client, trainer in self._kept.items()
            for name, value in trainer.state_dict().items()
        }

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Takes its part out of a checkpoint's arrays; trainers made from now on begin with it.

        A client whose part is missing is refused (CheckpointError) when its trainer is made.
        """
        self._restored = {}
        for key in [key for key in arrays if key.startswith(_CLIENT)]:
            client, name = key.removeprefix(_CLIENT).split("/", 1)
            self._restored.setdefault(client, {})[name] = arrays.pop(key)


def codec_spec(
    config: RunConfig,
    *,
    dimension: int,
    clip_norm: float,
    max_weight: int | None,
    modulus: int,
) -> CodecSpec:
    """The plain codec of a configuration; ``max_weight`` None lets clients count alike."""
    spec = CodecSpec.plan(
        dimension=dimension,
        clip_norm=clip_norm,
        max_clients=config.cohort_size,
        bits=config.bits,
        weighting=Weighting.EQUAL if max_weight is None else Weighting.WEIGHTED,
        max_weight=1 if max_weight is None else max_weight,
        rounding=Rounding(config.encoding.rounding),
    )
    # The bits say how fine the integers are, the protocol in which ring they are summed.
    return replace(spec, modulus=modulus)


def averaging_server(optimizer: Mapping[str, Any], dimension: int) -> ServerOptimiser:
    """The server's optimiser from the keys of ``[server]``; None stands for a default."""
    name, rate = optimizer["optimizer"], optimizer["learning_rate"]
    beta1, beta2, tau = (optimizer.get(key) for key in ("beta1", "beta2", "tau"))
    betas = (0.9 if beta1 is None else beta1, 0.99 if beta2 is None else beta2)
    small = 1e-3 if tau is None else tau
    match name:
        case "adam":
            return ServerOptimiser.adam(dimension, learning_rate=rate, betas=betas)
        case "adagrad":
            return ServerOptimiser.adagrad(dimension, learning_rate=rate)
        case "fedadam":
            return ServerOptimiser.fedadam(dimension, learning_rate=rate, betas=betas, tau=small)
        case "fedyogi":
            return ServerOptimiser.fedyogi(dimension, learning_rate=rate, betas=betas, tau=small)
        case "fedadagrad":
            return ServerOptimiser.fedadagrad(
                dimension, learning_rate=rate, beta1=beta1 or 0.0, tau=small
            )
    return ServerOptimiser.sgd(dimension, learning_rate=rate, momentum=optimizer["momentum"])
