"""What the clients of one run do in a round, made alike in the engine and in its worker processes.

A client's trainer follows from the configuration, its own records and what the clients agreed to;
nothing in it depends on the process in which it is made, but for its secret coins: those come from
the operating system, fresh in every process.
"""

from __future__ import annotations

from securefl.config import RunConfig, RunSpec
from securefl.primitives.prg import SecureRandom
from securefl.round import ClientId
from securefl.simulation.plain import PlainRun
from securefl.simulation.plans import PrivacyPlan
from securefl.simulation.shared import SharedRun
from securefl.training import models
from securefl.training.data import Dataset
from securefl.training.dpsgd import DPSGD
from securefl.training.local import FlatModel, Trainer
from securefl.training.partition import Partition

__all__ = ["make_model", "make_trainer"]


def make_model(config: RunConfig, spec: RunSpec, train: Dataset) -> FlatModel:
    """The model that a run starts from."""
    return FlatModel(
        models.build(
            config.model.name,
            input_shape=train.input_shape,
            classes=train.classes,
            seed=spec.seed,
            activation=config.activation(spec.mode),
        )
    )


def make_trainer(
    client: ClientId,
    *,
    config: RunConfig,
    seed: int,
    model: FlatModel,
    train: Dataset,
    partition: Partition,
    plan: PrivacyPlan | None,
    plain: PlainRun | None,
    shared: SharedRun | None,
) -> Trainer:
    """One client's training, by the mode of the run: exactly one of the last three is given."""
    if plain is not None:
        return plain.trainer(client)
    records = train.subset(partition.indices[client])
    if shared is not None:
        return shared.trainer(client, records, model, seed)
    assert plan is not None  # noqa: S101  # the one mode that is left
    dp = config.local_dp
    return DPSGD(
        model=model,
        x=records.x,
        y=records.y,
        client=client,
        noise_multiplier=plan.noise_multiplier,
        clip_norm=dp.clip_norm,
        sample_rate=dp.sample_rate,
        steps=dp.steps_per_round,
        learning_rate=dp.learning_rate,
        momentum=dp.momentum,
        random_bytes=SecureRandom().random_bytes,
    )
