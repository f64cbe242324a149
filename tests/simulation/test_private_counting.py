"""Whole user-level runs in which clients count by a capped share, or by their loss."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import accounting
from securefl.config import RunConfig, load_preset
from securefl.encoding import noisy
from securefl.encoding.clip import clip_by_norm
from securefl.encoding.joint import SideEntryCodec
from securefl.encoding.noisy import NoisyCodec
from securefl.errors import ConfigurationError
from securefl.pipeline import Participant, RoundOutcome, private_round
from securefl.population import PopulationBudget
from securefl.round import ClientId
from securefl.simulation.engine import Engine
from securefl.simulation.insecure import InsecureRandomness
from securefl.training.data import TrainTest, load
from securefl.training.local import ModelUpdate, Trainer, TrainingDiverged

SMALL = (
    "partition.clients=6",
    'partition.kind="quantity"',
    "aggregation.threshold=4",
    "simulation.dropped_per_round=0",
    'aggregation.fidelity="encoded"',
    "user_level_dp.steps=4",
    "user_level_dp.sample_rate=0.5",
    "user_level_dp.clip_norm=0.5",
    "sweep.epsilons=[20.0]",
    "sweep.seeds=[0]",
    'sweep.modes=["user-level-dp"]',
)
CAPPED = ('user_level_dp.weighting="capped-examples"', "user_level_dp.example_cap=300")
FAIR = ('user_level_dp.algorithm="q-fedavg"',)


@pytest.fixture(scope="module")
def digits() -> TrainTest:
    return load("digits")


def config(*overrides: str) -> RunConfig:
    return load_preset("digits", [*SMALL, *overrides])


def engine(settings: RunConfig, folder: Path, dataset: TrainTest, **arguments: Any) -> Engine:
    return Engine(settings, settings.runs()[0], folder, dataset=dataset, **arguments)


def no_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(noisy, "draw", lambda table, count, source: np.zeros(count, np.int64))


def summary(settings: RunConfig, folder: Path, dataset: TrainTest, seed: int = 3) -> Any:
    return engine(settings, folder, dataset, insecure=InsecureRandomness(seed)).run().summary


def first_round(made: Engine, folder: Path, **changes: Any) -> RoundOutcome:
    """One round of the engine's own parts."""
    assert made.shared is not None
    shared = made.shared
    with ExitStack() as stack:
        made.folder.mkdir(parents=True)
        participants = made._participants(made._first(), stack)
        trainer: Mapping[ClientId, Trainer] = changes.pop("trainers", {})
        arguments: dict[str, Any] = {
            "round_index": 0,
            "vector": made.model.vector(),
            "participants": {
                client: replace(one, trainer=trainer.get(client, one.trainer))
                for client, one in participants.items()
            },
            "scheme": made.scheme,
            "codec": shared.codec,
            "optimiser": made.optimiser,
            "transport": made.transport,
            "plan_digest": shared.plan.digest,
            "population": shared.budget,
            "denominator": shared.plan.denominator,
        }
        return private_round(**(arguments | changes))


# -- a capped share ------------------------------------------------------------------------------


def test_the_opened_sum_is_that_of_clipped_updates_times_capped_shares(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a float64 oracle, without noise; the divisor is the public expected number."""
    no_noise(monkeypatch)
    made = engine(
        config(*CAPPED, "user_level_dp.sample_rate=1.0", "user_level_dp.bits=30"),
        tmp_path / "run",
        digits,
    )
    outcome = first_round(made, tmp_path)
    C, cap = 0.5, 300
    sizes = [len(indices) for indices in made.partition.indices]
    assert min(sizes) < cap < max(sizes)
    total = np.zeros(made.model.dim)
    for client, update in outcome.updates.items():
        norm = np.linalg.norm(update.values.astype(np.float64))
        total += update.values * min(1.0, C / norm) * min(1.0, sizes[client] / cap)
        assert update.share == min(1.0, sizes[client] / cap)
    assert outcome.mean_update is not None
    assert np.linalg.norm(outcome.mean_update - total / 6.0) < 0.02 * C
    assert made.shared is not None
    assert made.shared.plan.denominator == 6.0


def test_a_cap_costs_no_privacy_and_clients_with_another_cap_are_never_summed(
    tmp_path: Path, digits: TrainTest
) -> None:
    plans = []
    for index, weighting in enumerate([(), CAPPED, (*CAPPED, "user_level_dp.example_cap=301")]):
        made = engine(config(*weighting), tmp_path / str(index), digits)
        assert made.shared is not None
        plans.append(made.shared.plan)
    assert len({plan.spec for plan in plans}) == 1
    assert len({plan.release.dearest for plan in plans}) == 1
    assert len({plan.digest for plan in plans}) == 3


@pytest.mark.parametrize("clipping", ["fixed", "adaptive"])
def test_a_run_with_capped_shares_keeps_its_target_and_says_how_clients_count(
    tmp_path: Path, digits: TrainTest, clipping: str
) -> None:
    settings = config(*CAPPED, f'user_level_dp.clipping="{clipping}"')
    capped = summary(settings, tmp_path / "capped", digits)
    equal = summary(config(f'user_level_dp.clipping="{clipping}"'), tmp_path / "equal", digits)
    assert 0 < capped["epsilon"] <= 20.0
    assert capped["epsilon_by_view"] == equal["epsilon_by_view"]
    assert (capped["weighting"], capped["example_cap"]) == ("capped-examples", 300)
    assert (equal["weighting"], equal["example_cap"]) == ("equal", None)
    assert capped["model_sha256"] != equal["model_sha256"]


# -- q-FedAvg ------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), CAPPED])
def test_q_zero_is_dp_fedavg_bit_for_bit(
    tmp_path: Path, digits: TrainTest, more: tuple[str, ...]
) -> None:
    fedavg = summary(config(*more), tmp_path / "fedavg", digits)
    zero = summary(config(*more, *FAIR, "user_level_dp.q=0.0"), tmp_path / "zero", digits)
    for key in ("model_sha256", "epsilon", "epsilon_by_view", "rounds", "noise_multiplier"):
        assert zero[key] == fedavg[key]


def test_the_noise_is_for_update_and_h_together(tmp_path: Path, digits: TrainTest) -> None:
    made = engine(config(*FAIR, "user_level_dp.q=2.0"), tmp_path / "run", digits)
    assert made.shared is not None
    plan, codec = made.shared.plan, made.shared.codec
    assert isinstance(codec, SideEntryCodec)
    assert plan.side is not None
    assert plan.fair is not None
    assert plan.spec.clip_norm == pytest.approx(np.hypot(1.0, plan.side.kappa), rel=1e-12)
    assert plan.spec.dimension == made.model.dim + 1
    assert plan.fair.loss_cap == pytest.approx(2 * np.log(10))
    assert plan.fair.room == 1 + 2 * 0.25 / (plan.fair.loss_cap * plan.fair.learning_rate)
    assert codec.event(5, 1) == plan.release.mechanism(5, 1)
    plain = engine(config(), tmp_path / "plain", digits)
    assert plain.shared is not None
    # z is over the joint sensitivity: the same z, and the price in accuracy is the longer vector.
    assert plan.spec.noise_multiplier == pytest.approx(
        plain.shared.plan.spec.noise_multiplier, rel=0.02
    )


def test_plans_with_another_q_cap_or_rate_are_never_summed(
    tmp_path: Path, digits: TrainTest
) -> None:
    digests = set()
    variants = ((), ("q=0.5",), ("loss_cap=3.0",), ("local_learning_rate=0.03",), ("q=0.0",))
    for index, changes in enumerate(variants):
        settings = config(*FAIR, *(f"user_level_dp.{change}" for change in changes))
        made = engine(settings, tmp_path / str(index), digits)
        assert made.shared is not None
        digests.add(made.shared.plan.digest)
    assert len(digests) == len(variants)


def test_a_fair_run_keeps_its_target_and_resumes_to_the_same_bits(
    tmp_path: Path, digits: TrainTest
) -> None:
    settings = config(*FAIR, *CAPPED, "user_level_dp.momentum=0.5")
    whole = summary(settings, tmp_path / "whole", digits)
    assert 0 < whole["epsilon"] <= 20.0
    assert (whole["algorithm"], whole["q"]) == ("q-fedavg", 1.0)
    lines: list[Mapping[str, Any]] = []
    for resume in (False, True):
        cut = engine(
            settings,
            tmp_path / "cut",
            digits,
            insecure=InsecureRandomness(3),
            on_round=lines.append,
            should_stop=lambda resume=resume: not resume and len(lines) >= 2,
        ).run(resume=resume)
    assert cut.summary["model_sha256"] == whole["model_sha256"]
    assert cut.summary["epsilon"] == whole["epsilon"]


def test_every_limit_of_an_opened_vector_holds_for_losses_that_overflow(
    tmp_path: Path, digits: TrainTest
) -> None:
    """One client's loss is infinite in every round: it brings zeros, and the run goes on."""
    settings = config(*FAIR, "user_level_dp.sample_rate=1.0")
    x = np.array(digits.train.x)
    target = engine(settings, tmp_path / "unused", digits).partition.indices[0]
    x[target] *= np.float32(1e37)
    spoilt = replace(digits, train=replace(digits.train, x=x))
    assert summary(settings, tmp_path / "run", spoilt)["rounds"] >= 4


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (('user_level_dp.weighting="examples"',), "no fixed sensitivity"),
        (('user_level_dp.weighting="steps"',), "computed from the records"),
        (('user_level_dp.weighting="caped-examples"',), "weights are one of"),
        (('user_level_dp.weighting="capped-examples"',), "need a public cap"),
        (("user_level_dp.example_cap=5",), '"equal" take no cap, found 5'),
        ((CAPPED[0], "user_level_dp.example_cap=0"), "greater than or equal to 1"),
        (("user_level_dp.q=1.0",), 'q belongs to algorithm = "q-fedavg"'),
        (("user_level_dp.loss_cap=1.0",), 'loss_cap belongs to algorithm = "q-fedavg"'),
        ((*FAIR, 'user_level_dp.clipping="adaptive"'), 'needs clipping = "fixed"'),
        ((*FAIR, "user_level_dp.q=-1.0"), "user_level_dp.q"),
        (('user_level_dp.algorithm="fednova"',), "user_level_dp.algorithm"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(
    overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        config(*overrides)


# -- no abort, and no price, that depends on data ------------------------------------------------


class Failing:
    """A trainer whose failure would tell about its records."""

    def __init__(self, client: int, how: str) -> None:
        self.client, self.how = client, how

    def train(self, start: np.ndarray, *, round_index: int) -> ModelUpdate:
        if self.how == "diverged":
            raise TrainingDiverged(client=self.client, round_index=round_index, what="the model")
        values = {
            "nan": np.full(len(start), np.nan),
            "infinite": np.full(len(start), np.inf),
            "huge": np.full(len(start), 1.7e308),
        }[self.how]
        return ModelUpdate(values=values, weight=1, examples=1, steps=1)


@pytest.mark.parametrize("how", ["diverged", "nan", "infinite", "huge"])
def test_a_client_whose_training_fails_sends_a_bounded_vector_like_any_other(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Whatever trainer somebody writes: an abort would be a release that nobody pays for."""
    no_noise(monkeypatch)
    made = engine(config("user_level_dp.sample_rate=1.0"), tmp_path / "run", digits)
    trainers = {client: Failing(client, how) for client in made.clients}
    outcome = first_round(made, tmp_path, trainers=trainers)
    assert len(outcome.survivors) == 6
    assert outcome.mean_update is not None
    expected = 0.5 if how == "huge" else 0.0
    assert np.linalg.norm(outcome.mean_update) == pytest.approx(expected, abs=0.01)
    assert made.shared is not None


def test_without_shared_noise_failed_training_still_stops_the_round(
    tmp_path: Path, digits: TrainTest
) -> None:
    settings = config('sweep.modes=["none"]', "sweep.epsilons=[]")
    made = engine(settings, tmp_path / "run", digits)
    with ExitStack() as stack, pytest.raises(TrainingDiverged):
        participants = made._participants(made._begin(), stack)
        private_round(
            round_index=0,
            vector=made.model.vector(),
            participants={
                c: Participant(client=c, trainer=Failing(c, "diverged")) for c in participants
            },
            scheme=made.scheme,
            codec=made.codec,
            optimiser=made.optimiser,
            transport=made.transport,
        )


@pytest.mark.parametrize("algorithm", ["fedavg", "q-fedavg"])
def test_a_budget_that_leaves_out_the_codecs_slack_is_refused(
    tmp_path: Path, digits: TrainTest, algorithm: str
) -> None:
    """Its delta would be stated too small; one that charges more is welcome."""
    made = engine(config(f'user_level_dp.algorithm="{algorithm}"'), tmp_path / "run", digits)
    assert made.shared is not None
    plan, slack = made.shared.plan, made.shared.plan.release.delta_slack
    header = plan.header("population", randomness=accounting.Randomness.SYSTEM)
    for name, charged in (("less", slack * 0.999), ("more", slack * 1.001)):
        budget = PopulationBudget.open(
            tmp_path / f"{name}.sqlite",
            header=header,
            release=replace(plan.release, delta_slack=charged),
        )
        with budget.ledger:
            folder = tmp_path / name
            again = engine(config(f'user_level_dp.algorithm="{algorithm}"'), folder, digits)
            if name == "more":
                assert first_round(again, folder, population=budget).survivors
                continue
            with pytest.raises(ConfigurationError, match="delta_slack of this codec"):
                first_round(again, folder, population=budget)
            assert not budget.ledger.reserved


def test_the_clip_comes_before_the_share() -> None:
    """A client with a tenth of the records counts a tenth, however long its update was."""
    made = load_preset("digits", [*SMALL, *CAPPED])
    assert made.user_level_dp.example_cap == 300
    from securefl.encoding import Contribution, NoisySpec

    spec = NoisySpec.plan(
        dimension=20,
        clip_norm=1.0,
        noise_multiplier=1.0,
        honest_shares=3,
        max_clients=3,
        contribution=Contribution.CLIENT,
        units=3,
        bits=40,
    )
    long = np.full(20, 100.0)
    with pytest.MonkeyPatch.context() as patch:
        no_noise(patch)
        vector = NoisyCodec(spec).encode(long, share=0.1, round_seed=bytes(32))
    norm = np.linalg.norm(vector.centred().astype(float)) / spec.resolution
    assert norm == pytest.approx(0.1 * np.linalg.norm(clip_by_norm(long, 1.0).values), rel=0.02)
