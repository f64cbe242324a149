"""The sections of a configuration whose modes share their noise, and what all sections stand on.

:mod:`securefl.config` reads the file and puts the sections together; here stands what the keys of
``[distributed_dp]`` and ``[user_level_dp]`` mean and which of them exclude each other. This module
opens nothing and knows no other section.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from securefl.training.private_weights import PrivateWeighting, check_private_weights

__all__ = [
    "DistributedDPConfig",
    "LearningRate",
    "Momentum",
    "NoiseSharesConfig",
    "NonNegativeFloat",
    "PositiveFloat",
    "PositiveInt",
    "Section",
    "SeedInt",
    "UserLevelDPConfig",
]

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LearningRate = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
SeedInt = Annotated[int, Field(ge=0, lt=1 << 32)]


class Section(BaseModel):
    """One table of the file: unknown keys are refused, nothing is converted, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NoiseSharesConfig(Section):
    """What the modes with noise shares have in common.

    The noise multiplier is calibrated from the target epsilon of the run and the keys below, so
    that ``steps`` rounds fit the target if as many honest shares are in each sum as ``at`` says.
    """

    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    steps: PositiveInt = 100
    """Rounds that the noise is calibrated for; ``training.rounds`` does not count here."""
    stop: Literal["budget", "steps"] = "budget"
    """``budget``: train until the next reservation does not fit, at most four times ``steps``;
    rounds with more noise than planned leave budget for more of them. ``steps``: never more."""
    at: Literal["minimum", "planned"] = "minimum"
    """Honest shares that carry the noise: those of the smallest sum that clients accept, or those
    of a round in which exactly ``planned_dropouts`` clients vanish (fewer survivors then cost
    more than planned, and the run ends earlier; the target holds all the same)."""
    planned_dropouts: Annotated[int, Field(ge=0)] = 0
    """Only for ``at = "planned"``."""
    mechanism: Literal["skellam", "discrete-gaussian"] = "skellam"
    bits: Annotated[int, Field(ge=2, le=64)] | None = None
    """Bits of one integer of the sum; default the fewest whose rounding costs next to nothing."""
    clip_norm: PositiveFloat = 1.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    """The server's; what it does with a noised sum is post-processing."""
    learning_rate: LearningRate = 1.0
    """The server's."""
    final_learning_rate: LearningRate | None = None
    """Where the rate falls linearly within ``steps`` rounds, and stays; default: no fall."""
    momentum: Momentum = 0.0
    """The server's, ``sgd`` only."""
    activation: Literal["relu", "tanh"] = "tanh"

    @model_validator(mode="after")
    def _planned(self) -> NoiseSharesConfig:
        if self.planned_dropouts and self.at != "planned":
            raise ValueError(
                f'planned_dropouts = {self.planned_dropouts} needs at = "planned"; with '
                'at = "minimum" the smallest accepted sum carries the noise'
            )
        return self

    def learning_rate_of(self, round_index: int) -> float:
        """The server's rate in a round, counted from 0.

        >>> config = NoiseSharesConfig(steps=5, learning_rate=1.0, final_learning_rate=0.5)
        >>> [config.learning_rate_of(i) for i in (0, 2, 4, 9)]
        [1.0, 0.75, 0.5, 0.5]
        """
        if self.final_learning_rate is None:
            return self.learning_rate
        fallen = min(1.0, round_index / max(1, self.steps - 1))
        return self.learning_rate + fallen * (self.final_learning_rate - self.learning_rate)


class DistributedDPConfig(NoiseSharesConfig):
    """``[distributed_dp]``: one round is one step of DP-SGD over the records of all clients.

    Every client adds up its clipped gradients over a Poisson sample of its own records; the server
    divides the sum by ``sample_rate`` times the number of all records, which is public.
    """

    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Chance of each record to be in a step; public, the same for every client."""


class UserLevelDPConfig(NoiseSharesConfig):
    """``[user_level_dp]``: a client's whole data is the unit (DP-FedAvg, private q-FedAvg).

    With ``participation = "secret"`` every client sends a noise share in every round, and a coin
    of its own, which nobody else learns, decides whether its update or zero is inside.
    """

    participation: Literal["secret", "cohort"] = "secret"
    """``cohort``: ``cohort`` clients, drawn anew in each round, take part, and the server knows
    which; charged to each without any gain from sampling."""
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Chance of a client's coin, ``secret`` only."""
    cohort: Annotated[int, Field(ge=3)] | None = None
    """Clients in a round, ``cohort`` only."""
    participations: PositiveInt | None = None
    """Rounds that the noise lets one client take part in, ``cohort`` only; default half as many
    again as it is drawn for on average. Its own ledger refuses more."""
    weighting: PrivateWeighting = PrivateWeighting.EQUAL
    """How much a client's clipped update counts: ``equal``, or ``capped-examples`` for
    min(n_k / example_cap, 1). The divisor is the expected number of clients in either case."""
    example_cap: PositiveInt | None = None
    """Records at which a client counts fully, public; for ``capped-examples``, and needed there."""
    algorithm: Literal["fedavg", "q-fedavg"] = "fedavg"
    """``q-fedavg``: clients with a large loss count more; the same noise pays for that."""
    q: NonNegativeFloat | None = None
    """Fairness of ``q-fedavg``: 0 is ``fedavg``; default 1."""
    loss_cap: PositiveFloat | None = None
    """Largest loss that ``q-fedavg`` tells apart, public; default 2 ln(classes)."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    """``adaptive``: the norm follows the median of the updates' norms, which the same noised sum
    tells (Andrew et al. 2021); ``clip_norm`` is where it starts."""
    target_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    clip_rate: PositiveFloat = 0.2
    local_epochs: PositiveInt = 1
    batch_size: PositiveInt = 20
    local_learning_rate: LearningRate = 0.1
    local_momentum: Momentum = 0.0

    @field_validator("weighting", mode="before")
    @classmethod
    def _refused_with_the_reason(cls, value: object) -> object:
        if isinstance(value, str) and value not in list(PrivateWeighting):
            check_private_weights(value)
        return value

    @model_validator(mode="after")
    def _how_much_counts(self) -> UserLevelDPConfig:
        check_private_weights(self.weighting, cap=self.example_cap)
        for name in ("q", "loss_cap"):
            if getattr(self, name) is not None and self.algorithm != "q-fedavg":
                raise ValueError(
                    f'{name} belongs to algorithm = "q-fedavg", found "{self.algorithm}"'
                )
        if self.fairness and self.clipping == "adaptive":
            raise ValueError(
                'algorithm = "q-fedavg" needs clipping = "fixed": the public bound on what a '
                "client sends about its loss is computed from clip_norm"
            )
        return self

    @property
    def fairness(self) -> float:
        """The q of q-FedAvg; 0 for FedAvg."""
        if self.algorithm == "fedavg":
            return 0.0
        return 1.0 if self.q is None else self.q

    @model_validator(mode="after")
    def _who_takes_part(self) -> UserLevelDPConfig:
        if (self.participation == "cohort") != (self.cohort is not None):
            raise ValueError(
                f'cohort (found {self.cohort}) belongs to participation = "cohort" and is needed '
                f'there, found participation = "{self.participation}"'
            )
        if self.participation == "cohort" and self.clipping == "adaptive":
            raise ValueError(
                'clipping = "adaptive" needs participation = "secret": the share of short updates '
                "is read against a fixed expected number of them"
            )
        if self.participation == "secret" and self.participations is not None:
            raise ValueError(
                f"participations = {self.participations} belongs to participation = "
                '"cohort"; with secret participation every round costs every client the same'
            )
        return self

    def most_participations(self, clients: int) -> int:
        """Rounds that one of ``clients`` clients may take part in with a cohort."""
        if self.participations is not None:
            return self.participations
        expected = self.steps * (self.cohort or clients) / clients
        return min(self.steps, math.ceil(1.5 * expected))
