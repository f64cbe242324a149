"""The sections of a configuration about training without privacy, and the server's step.

:mod:`securefl.config` reads the file and puts the sections together. This module opens nothing and
knows no other section.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from securefl.config_noise import (
    LearningRate,
    Momentum,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)

__all__ = ["ServerConfig", "TrainingConfig"]


class TrainingConfig(Section):
    """``[training]``: what a client does in one round without differential privacy."""

    algorithm: Literal["fedavg", "fedsgd", "q-fedavg", "fednova", "scaffold"] = "fedavg"
    """``fedsgd``: one full gradient; ``q-fedavg``: clients with a large loss count more;
    ``fednova``: steps may differ between clients; ``scaffold``: control variates against drift."""
    rounds: PositiveInt = 10
    local_epochs: PositiveInt | None = None
    local_steps: PositiveInt | None = None
    batch_size: PositiveInt = 64
    learning_rate: LearningRate = 0.1
    momentum: Momentum = 0.0
    proximal: NonNegativeFloat = 0.0
    """FedProx's mu: pull of every local step towards the round's global model; 0 is FedAvg."""
    weights: Literal["examples", "equal", "steps", "quality"] = "examples"
    """``examples``: n_i/n; ``steps``: by the SGD steps taken; ``quality``: by the local model's
    accuracy on the client's held-out records; all carried inside the masked vector. ``equal``:
    every client counts 1."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each client's records kept out of its training, for ``weights = "quality"`` and for
    ``[client_metrics]``."""
    q: NonNegativeFloat | None = None
    """Fairness of ``q-fedavg``: 0 is FedAvg; default 1."""
    loss_cap: PositiveFloat | None = None
    """Largest loss that ``q-fedavg`` tells apart, public; default 2 ln(classes)."""

    @model_validator(mode="after")
    def _fits_the_algorithm(self) -> TrainingConfig:
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError("give local_epochs or local_steps, not both")
        for name in ("q", "loss_cap"):
            if getattr(self, name) is not None and self.algorithm != "q-fedavg":
                raise ValueError(
                    f'{name} belongs to algorithm = "q-fedavg", found "{self.algorithm}"'
                )
        if self.algorithm == "scaffold":
            if self.weights != "equal":
                raise ValueError(
                    f'algorithm "scaffold" counts clients alike: set weights = "equal", found '
                    f'"{self.weights}"'
                )
            if self.momentum or self.proximal:
                raise ValueError(
                    'algorithm "scaffold" takes plain SGD steps: momentum and proximal must be 0, '
                    f"found {self.momentum} and {self.proximal}"
                )
        if self.weights == "quality" and not self.held_out:
            raise ValueError('weights = "quality" needs held_out > 0: records to measure it on')
        return self


class ServerConfig(Section):
    """``[server]``: the optimiser that applies the decoded mean update."""

    optimizer: Literal["sgd", "adam", "adagrad", "fedadam", "fedyogi", "fedadagrad"] = "sgd"
    """``adam`` and ``adagrad`` are torch's; ``fedadam``, ``fedyogi`` and ``fedadagrad`` those of
    Reddi et al. (2021)."""
    learning_rate: LearningRate = 1.0
    momentum: Momentum = 0.0
    """Counts with ``sgd`` only."""
    beta1: Momentum | None = None
    """Memory of the mean; default 0.9, and 0 with ``fedadagrad``."""
    beta2: Momentum | None = None
    """Memory of the squares; default 0.99."""
    tau: PositiveFloat | None = None
    """Added below the line by ``fedadam``, ``fedyogi`` and ``fedadagrad``; default 1e-3."""

    @model_validator(mode="after")
    def _keys_of_the_optimizer(self) -> ServerConfig:
        takes = {
            "beta1": ("adam", "fedadam", "fedyogi", "fedadagrad"),
            "beta2": ("adam", "fedadam", "fedyogi"),
            "tau": ("fedadam", "fedyogi", "fedadagrad"),
        }
        for name, optimizers in takes.items():
            if getattr(self, name) and self.optimizer not in optimizers:
                raise ValueError(
                    f'{name} belongs to optimizer {", ".join(optimizers)}; found "{self.optimizer}"'
                )
        return self
