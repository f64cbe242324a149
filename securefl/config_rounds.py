"""The sections of a configuration about rounds: who takes part, when a run ends, what is measured.

:mod:`securefl.config` reads the file and puts the sections together. This module opens nothing and
knows no other section.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from securefl.config_noise import NonNegativeFloat, PositiveFloat, PositiveInt, Section

__all__ = ["ClientMetricsConfig", "ParticipationConfig", "SimulationConfig", "StopConfig"]


class ParticipationConfig(Section):
    """``[participation]``: which clients are asked in a round; public, and no privacy by itself.

    For modes ``none`` and ``local-dp``; the modes with noise shares say it in their own sections.
    """

    rule: Literal["all", "poisson", "fixed", "batch-partition"] = "all"
    """``poisson``: each client with probability ``rate``; ``fixed``: ``size`` clients, drawn anew;
    ``batch-partition``: ``groups`` of the fixed groups of ``group_size`` clients that always take
    part together, so that sums of several rounds never tell two members apart."""
    rate: Annotated[float, Field(gt=0, le=1)] | None = None
    size: Annotated[int, Field(ge=3)] | None = None
    group_size: Annotated[int, Field(ge=2)] | None = None
    groups: PositiveInt | None = None

    @model_validator(mode="after")
    def _keys_of_the_rule(self) -> ParticipationConfig:
        wanted = {
            "all": (),
            "poisson": ("rate",),
            "fixed": ("size",),
            "batch-partition": ("group_size", "groups"),
        }[self.rule]
        for name in ("rate", "size", "group_size", "groups"):
            given = getattr(self, name) is not None
            if given != (name in wanted):
                keys = " and ".join(wanted) or "no other key"
                raise ValueError(
                    f'rule = "{self.rule}" takes {keys}; {name} is '
                    f"{'given' if given else 'missing'}"
                )
        return self

    def cohort_size(self, clients: int) -> int:
        """Clients in a round's cohort; with ``poisson`` the most there can be."""
        if self.size is not None:
            return self.size
        if self.group_size is not None and self.groups is not None:
            return self.group_size * self.groups
        return clients

    def check(self, clients: int) -> None:
        """Refuses numbers that do not fit the clients there are.

        Raises:
            ValueError: with the numbers.
        """
        if self.cohort_size(clients) > clients:
            raise ValueError(
                f"participation: a cohort of {self.cohort_size(clients)} of {clients} clients"
            )
        if self.group_size is not None:
            if clients % self.group_size:
                raise ValueError(
                    f"participation.group_size = {self.group_size} must divide partition.clients = "
                    f"{clients}: cohorts of one size need groups of one size"
                )
            if self.cohort_size(clients) < 3:
                raise ValueError(
                    "participation: a secure sum needs at least 3 clients, found "
                    f"{self.groups} groups of {self.group_size}"
                )


class StopConfig(Section):
    """``[stop]``: when a run ends before its last round; the first reason holds and is stored.

    ``target_accuracy`` and ``plateau_rounds`` read a validation part of the held-out records, which
    counts as public; the reported accuracy is then that on the rest.
    """

    target_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    target_patience: PositiveInt = 1
    """Rounds in a row that must reach the target."""
    plateau_rounds: PositiveInt | None = None
    """End after so many rounds without a new lowest validation loss."""
    plateau_improvement: NonNegativeFloat = 0.0
    """By how much a loss must be lower to count as new."""
    deadline_seconds: PositiveFloat | None = None
    """Wall-clock time after which no round is started; pauses before a resume do not count."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the held-out records that the rules read."""

    @property
    def watches_progress(self) -> bool:
        """Whether validation figures are needed."""
        return self.target_accuracy is not None or self.plateau_rounds is not None


class ClientMetricsConfig(Section):
    """``[client_metrics]``: how well single clients are served; mode ``none`` only.

    Every client measures the model on its own records; what leaves it is the bin that the result
    falls into, inside a secure sum of all clients' bins.
    """

    every: PositiveInt | None = None
    """After every so many rounds and after the last; default never."""
    bins: Annotated[int, Field(ge=2, le=1000)] = 20
    loss_cap: PositiveFloat = 5.0
    """Losses above it count as it."""
    fine_tune_steps: PositiveInt | None = None
    """After the last round, measure also what so many further steps on the client's own records
    make of the model; the tuned model stays on the client."""


class SimulationConfig(Section):
    """``[simulation]``: what goes wrong on purpose, and in how many processes."""

    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes that train and encode; 1 does it in the engine's own. The results are the same
    bits wherever no secret coin is drawn."""

    dropped_per_round: Annotated[int, Field(ge=0)] = 0
    """Clients that vanish in each round, each in a phase drawn at random."""
    max_lost_rounds: PositiveInt = 3
    """Consecutive rounds below the threshold after which a run stops."""
    evaluate_every: PositiveInt = 1
    """The test set is read after every so many rounds, and at the end of the run; the records of
    the rounds between hold null."""
    delays: tuple[NonNegativeFloat, ...] = ()
    """Mean delay of every client's input in simulated seconds, drawn anew in each round
    (exponential); 0 is never late."""
    deadline: PositiveFloat | None = None
    """Simulated seconds after which an input is late; a late client is a dropped one."""
    local_steps: tuple[PositiveInt, ...] = ()
    """SGD steps of every client in a round, in place of ``training``: unequal compute. Mode
    ``none`` only."""

    @model_validator(mode="after")
    def _together(self) -> SimulationConfig:
        if bool(self.delays) != (self.deadline is not None):
            raise ValueError("delays and deadline belong together; give both or none")
        return self

    def check(self, clients: int) -> None:
        """Refuses lists that do not fit the clients there are.

        Raises:
            ValueError: with the numbers.
        """
        for name in ("delays", "local_steps"):
            given = len(getattr(self, name))
            if given not in (0, clients):
                raise ValueError(
                    f"simulation.{name} has {given} entries, partition.clients is {clients}"
                )
