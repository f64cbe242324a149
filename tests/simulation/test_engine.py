"""Whole runs on small data: the real machines, the real ledgers, interrupted and resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import accounting
from securefl.config import Mode, RunConfig, load_preset
from securefl.errors import CheckpointError, ConfigurationError, DataNotFound
from securefl.protocols.secagg import SecAggParams
from securefl.round import Adversary, RoundConfig
from securefl.simulation.engine import Engine, RunResult, make_partition, read_metrics
from securefl.simulation.sweep import _row, load_stored_config, run_sweep
from securefl.training.data import TrainTest, load
from securefl.training.local import TrainingDiverged

SMALL = (
    "training.rounds=3",
    "training.local_epochs=1",
    "training.batch_size=128",
    "local_dp.steps_per_round=2",
    "partition.clients=5",
    'sweep.modes=["none", "local-dp"]',
    "sweep.epsilons=[8.0]",
    'sweep.modes=["none", "local-dp"]',
    "sweep.seeds=[0]",
)


@pytest.fixture(scope="module")
def digits() -> TrainTest:
    return load("digits")


def config(*overrides: str) -> RunConfig:
    return load_preset("digits", [*SMALL, *overrides])


def run(
    settings: RunConfig,
    folder: Path,
    dataset: TrainTest,
    *,
    index: int = 0,
    stop_after: int | None = None,
    resume: bool = False,
) -> RunResult:
    lines: list[Mapping[str, Any]] = []
    engine = Engine(
        settings,
        settings.runs()[index],
        folder,
        dataset=dataset,
        on_round=lines.append,
        should_stop=lambda: stop_after is not None and len(lines) >= stop_after,
    )
    return engine.run(resume=resume)


def model(folder: Path) -> np.ndarray:
    with np.load(folder / "model.npz", allow_pickle=False) as arrays:
        return np.array(arrays["vector"])


def test_protocol_and_plain_sum_of_the_same_integers_give_the_same_bits(
    tmp_path: Path, digits: TrainTest
) -> None:
    results = {}
    for fidelity in ("protocol", "encoded"):
        settings = config(f"aggregation.fidelity={fidelity}")
        results[fidelity] = run(settings, tmp_path / fidelity, digits)
    assert np.array_equal(model(tmp_path / "protocol"), model(tmp_path / "encoded"))
    assert results["protocol"].summary["model_sha256"] == results["encoded"].summary["model_sha256"]
    assert results["protocol"].summary["bytes_up_per_client"] > 3 * 650 * 4 * 0.5
    assert results["encoded"].summary["bytes_up_per_client"] == 0


VARIANTS = {
    "complete, semi-honest": (),
    "complete, active": ("aggregation.adversary=active",),
    "ring, semi-honest": ("aggregation.protocol=secagg+",),
    "ring, active": (
        "aggregation.protocol=secagg+",
        "aggregation.adversary=active",
        "aggregation.experimental_active_graph=true",
    ),
}


def test_every_graph_and_adversary_gives_the_same_model_from_the_same_seed(
    tmp_path: Path, digits: TrainTest
) -> None:
    """Nine clients, two of them lost in every round: the sum is exact whatever hides it."""
    common = ("partition.clients=9", "simulation.dropped_per_round=2")
    found: dict[str, Mapping[str, Any]] = {}
    for name, overrides in VARIANTS.items():
        folder = tmp_path / name
        summary = run(config(*common, *overrides), folder, digits).summary
        assert summary["rounds_lost"] == 0
        assert summary["dropped"] == 6
        found[name] = summary
    assert len({summary["model_sha256"] for summary in found.values()}) == 1
    facts = {
        name: tuple(s[key] for key in ("protocol", "adversary", "graph", "degree", "shares"))
        for name, s in found.items()
    }
    assert facts == {
        "complete, semi-honest": ("secagg", "semi-honest", "complete", 8, 6),
        "complete, active": ("secagg, active server", "active", "complete", 8, 6),
        "ring, semi-honest": ("secagg+", "semi-honest", "harary", 4, 2),
        "ring, active": ("secagg+, active server", "active", "harary", 6, 4),
    }
    up = {name: summary["bytes_up_per_client"] for name, summary in found.items()}
    assert up["ring, semi-honest"] < up["complete, semi-honest"] < up["complete, active"]


def test_clients_of_an_active_run_refuse_a_server_that_offers_less(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config("aggregation.adversary=active")
    engine = Engine(settings, settings.runs()[0], tmp_path / "run", dataset=digits)
    offered = SecAggParams.config

    def weaker(self: SecAggParams, **fields: Any) -> RoundConfig:
        return replace(offered(self, **fields), adversary=Adversary.SEMI_HONEST)

    monkeypatch.setattr(SecAggParams, "config", weaker)
    with pytest.raises(ConfigurationError, match="demands protection against an ACTIVE server"):
        engine.run()


def test_a_private_active_run_says_so_in_its_ledgers(tmp_path: Path, digits: TrainTest) -> None:
    settings = config("aggregation.adversary=active", "simulation.dropped_per_round=0")
    result = run(settings, tmp_path / "run", digits, index=1)
    for ledger in result.summary["ledgers"]:
        with accounting.Ledger.open(tmp_path / "run" / ledger["path"]) as led:
            evidence = [e.evidence for e in led.entries() if getattr(e, "evidence", None)]
        assert {one.protocol for one in evidence} == {"secagg, active server"}
        assert len(evidence) == 3


def test_encoding_costs_next_to_nothing_against_floating_point(
    tmp_path: Path, digits: TrainTest
) -> None:
    for fidelity in ("protocol", "float"):
        run(config(f"aggregation.fidelity={fidelity}"), tmp_path / fidelity, digits)
    exact = model(tmp_path / "float")
    error = np.linalg.norm(model(tmp_path / "protocol") - exact)
    assert 0 < error < 1e-3 * np.linalg.norm(exact)


def test_floating_point_baseline_refuses_to_bypass_a_ledger(
    tmp_path: Path, digits: TrainTest
) -> None:
    settings = config("aggregation.fidelity=float")
    with pytest.raises(ConfigurationError, match="mode none only"):
        run(settings, tmp_path / "run", digits, index=1)


@pytest.mark.parametrize("server", ["sgd", "adam"])
def test_an_interrupted_run_resumes_to_the_same_bits(
    tmp_path: Path, digits: TrainTest, server: str
) -> None:
    settings = config(f"server.optimizer={server}", "server.learning_rate=0.1")
    whole = run(settings, tmp_path / "whole", digits)
    for stop_after in (0, 1, 2):
        folder = tmp_path / f"stopped-{stop_after}"
        stopped = run(settings, folder, digits, stop_after=stop_after)
        assert stopped.stopped == "interrupted"
        assert not (folder / "summary.json").exists()
        resumed = run(settings, folder, digits, resume=True)
        assert resumed.stopped == "rounds"
        assert np.array_equal(model(folder), model(tmp_path / "whole"))
        assert [line["round"] for line in read_metrics(folder)] == [0, 1, 2]
        for key in ("accuracy", "loss", "dropped", "model_sha256", "bytes_up_per_client"):
            assert resumed.summary[key] == whole.summary[key]


def test_private_run_stays_within_its_target_and_charges_every_release(
    tmp_path: Path, digits: TrainTest
) -> None:
    settings = config()
    result = run(settings, tmp_path / "run", digits, index=1)
    assert 0 < result.summary["epsilon"] <= 8.0
    charged = []
    for ledger in result.summary["ledgers"]:
        path = tmp_path / "run" / ledger["path"]
        with accounting.Ledger.open(path, expect_head=accounting.Head.parse(ledger["head"])) as led:
            bound = led.epsilon()
            assert bound.value == ledger["spent_epsilon"] <= 8.0
            charged.append(bound.value)
    assert result.summary["epsilon"] == max(charged)
    # A client that vanished before it sent has paid for less than one that never did.
    assert min(charged) <= max(charged)


def test_resumed_private_run_keeps_what_was_spent(tmp_path: Path, digits: TrainTest) -> None:
    settings = config("simulation.dropped_per_round=0")
    folder = tmp_path / "run"
    stopped = run(settings, folder, digits, index=1, stop_after=2)
    spent = stopped.summary["epsilon"]
    resumed = run(settings, folder, digits, index=1, resume=True)
    assert spent < resumed.summary["epsilon"] <= 8.0
    assert resumed.stopped == "rounds"
    lines = read_metrics(folder)
    assert [line["epsilon"] for line in lines] == sorted(line["epsilon"] for line in lines)


def test_ledger_from_before_the_checkpoint_is_refused(tmp_path: Path, digits: TrainTest) -> None:
    settings = config()
    folder = tmp_path / "run"
    run(settings, folder, digits, index=1, stop_after=1)
    backup = tmp_path / "backup"
    shutil.copytree(folder / "ledgers", backup)
    run(settings, folder, digits, index=1, stop_after=1, resume=True)
    shutil.rmtree(folder / "ledgers")
    shutil.copytree(backup, folder / "ledgers")
    with pytest.raises(accounting.LedgerRolledBack):
        run(settings, folder, digits, index=1, resume=True)


def test_missing_ledger_is_refused(tmp_path: Path, digits: TrainTest) -> None:
    settings = config()
    folder = tmp_path / "run"
    run(settings, folder, digits, index=1, stop_after=1)
    (folder / "ledgers" / "client-3.sqlite").unlink()
    with pytest.raises(accounting.LedgerRolledBack, match="client-3"):
        run(settings, folder, digits, index=1, resume=True)


def test_round_cut_off_after_its_reservations_stays_charged_and_is_not_reused(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config("simulation.dropped_per_round=0")
    folder = tmp_path / "run"
    engine = Engine(settings, settings.runs()[1], folder, dataset=digits)

    def cut_off(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(engine.transport), "carry", cut_off)
        with pytest.raises(KeyboardInterrupt):
            engine.run()
    resumed = run(settings, folder, digits, index=1, resume=True)
    # Three rounds were planned and the cut one is paid: only two more fit.
    assert resumed.stopped == "budget"
    assert resumed.summary["rounds"] == 2
    assert resumed.summary["epsilon"] <= 8.0
    for ledger in resumed.summary["ledgers"]:
        with accounting.Ledger.open(folder / ledger["path"]) as led:
            assert led.epsilon().value == pytest.approx(resumed.summary["epsilon"])


def test_lost_rounds_end_the_run_and_leave_the_model_alone(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config("simulation.max_lost_rounds=2")
    engine = Engine(settings, settings.runs()[0], tmp_path / "run", dataset=digits)
    start = engine.model.vector()
    monkeypatch.setattr(
        type(engine.drops), "drops", lambda _self, _round, present: {"unmasking": present[:3]}
    )
    result = engine.run()
    assert result.stopped == "lost-rounds"
    assert result.summary["rounds_lost"] == 2
    assert np.array_equal(model(tmp_path / "run"), start)
    assert all(line["status"] == "below-threshold" for line in read_metrics(tmp_path / "run"))
    assert all(line["bytes_up"] > 0 for line in read_metrics(tmp_path / "run"))


def test_a_folder_with_results_is_never_overwritten(tmp_path: Path, digits: TrainTest) -> None:
    settings = config()
    run(settings, tmp_path / "run", digits)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match="already holds a run"):
        run(settings, tmp_path / "run", digits)
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_a_checkpoint_of_another_configuration_is_refused(
    tmp_path: Path, digits: TrainTest
) -> None:
    run(config(), tmp_path / "run", digits, stop_after=1)
    with pytest.raises(CheckpointError, match="another configuration"):
        run(config("training.learning_rate=0.01"), tmp_path / "run", digits, resume=True)


@pytest.mark.parametrize(
    "override",
    [
        "training.algorithm=fedsgd",
        "training.proximal=0.1",
        "training.weights=equal",
        "server.momentum=0.5",
        "partition.kind=dirichlet",
        "partition.kind=shards",
        "partition.kind=quantity",
        "model.name=mlp",
        "encoding.bits=48",
        "encoding.rounding=stochastic",
        "training.rounds=1",
    ],
)
def test_every_choice_of_the_configuration_runs_and_learns(
    tmp_path: Path, digits: TrainTest, override: str
) -> None:
    settings = config("training.batch_size=16", override)
    result = run(settings, tmp_path / "run", digits)
    assert result.stopped == "rounds"
    assert result.summary["accuracy"] > 0.2


def test_a_number_of_steps_may_take_the_place_of_epochs(tmp_path: Path, digits: TrainTest) -> None:
    tree = json.loads(config().to_json())
    tree["training"] |= {"local_epochs": None, "local_steps": 4, "rounds": 2}
    settings = RunConfig.model_validate_json(json.dumps(tree))
    result = run(settings, tmp_path / "run", digits)
    assert result.summary["rounds"] == 2
    assert result.summary["accuracy"] > 0.5


def test_weights_travel_only_inside_the_masked_vector(tmp_path: Path, digits: TrainTest) -> None:
    # Sizes differ widely; the weighted mean is right although no message holds a size.
    settings = config("partition.kind=quantity", "partition.alpha=0.5", "partition.minimum=5")
    sizes = make_partition(settings, 0, digits.train).sizes
    assert max(sizes) > 2 * min(sizes)
    run(settings, tmp_path / "protocol", digits)
    float_settings = config(
        "partition.kind=quantity",
        "partition.alpha=0.5",
        "partition.minimum=5",
        "aggregation.fidelity=float",
    )
    run(float_settings, tmp_path / "float", digits)
    difference = np.abs(model(tmp_path / "protocol") - model(tmp_path / "float"))
    assert difference.max() < 1e-3


def test_natural_partition_needs_sites(digits: TrainTest) -> None:
    with pytest.raises(ConfigurationError, match="sites"):
        make_partition(config("partition.kind=natural"), 0, digits.train)


# -- sweeps --------------------------------------------------------------------------------------


def test_sweep_writes_the_contract_and_resumes_where_it_stopped(tmp_path: Path) -> None:
    settings = config("sweep.seeds=[0, 1]", "sweep.epsilons=[8.0, 3.0]")
    out = tmp_path / "out"
    lines: list[Mapping[str, Any]] = []
    stopped = run_sweep(settings, out, on_round=lines.append, should_stop=lambda: len(lines) >= 8)
    assert stopped is None
    assert not (out / "summary.json").exists()
    assert load_stored_config(out) == settings
    summary = run_sweep(settings, out, resume=True, on_round=lines.append)
    assert summary is not None
    assert summary == json.loads((out / "summary.json").read_text())
    assert len(lines) == 6 * 3  # nothing was run twice
    for key in ("dataset", "train_size", "test_size", "clients", "rounds", "delta"):
        assert key in summary
    assert (summary["train_size"], summary["test_size"]) == (1437, 360)
    assert [(row["mode"], row["target_epsilon"]) for row in summary["rows"]] == [
        ("none", None),
        ("local-dp", 8.0),
        ("local-dp", 3.0),
    ]
    for row in summary["rows"]:
        assert row["seeds"] == [0, 1]
        assert row["dropped"] == 2 * 3
        assert row["accuracy_min"] <= row["accuracy"] <= 1
        assert row["bytes_up_per_client"] > 650 * 4
        assert row["seconds"] > 0
        if row["target_epsilon"] is None:
            assert row["epsilon"] is None
        else:
            assert 0 < row["epsilon"] <= row["target_epsilon"]
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert folders == {run["path"] for run in summary["runs"]}
    assert len(list(out.glob("local-dp-*/ledgers/client-*.sqlite"))) == 4 * 5


def test_sweep_refuses_a_folder_in_use_and_another_configuration(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        run_sweep(config(), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    out = tmp_path / "out"
    run_sweep(config("training.rounds=1"), out, should_stop=lambda: True)
    with pytest.raises(CheckpointError, match="another configuration"):
        run_sweep(config("training.rounds=2"), out, resume=True)
    with pytest.raises(CheckpointError, match="no run that can be resumed"):
        run_sweep(config(), tmp_path / "nothing", resume=True)


def test_missing_data_leaves_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECUREFL_DATA", raising=False)
    with pytest.raises(DataNotFound):
        run_sweep(load_preset("mnist"), tmp_path / "out", data_dir=tmp_path)
    assert not (tmp_path / "out").exists()


# -- what a review found -------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["sweep.epsilons=[9.0]", "local_dp.delta=1e-4"])
def test_ledgers_of_another_plan_are_refused(tmp_path: Path, digits: TrainTest, other: str) -> None:
    run(config(other), tmp_path / "other", digits, index=1, stop_after=0)
    folder = tmp_path / "run"
    run(config(), folder, digits, index=1, stop_after=0)
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "ledgers")
    shutil.copytree(tmp_path / "other" / "ledgers", folder / "ledgers")
    with pytest.raises(CheckpointError, match="another plan or client"):
        run(config(), folder, digits, index=1, resume=True)


def test_ledgers_of_two_clients_cannot_change_places(tmp_path: Path, digits: TrainTest) -> None:
    folder = tmp_path / "run"
    run(config(), folder, digits, index=1, stop_after=0)
    shutil.rmtree(folder / "checkpoints")
    first, second = (folder / "ledgers" / f"client-{i}.sqlite" for i in (0, 1))
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    with pytest.raises(CheckpointError, match="another plan or client"):
        run(config(), folder, digits, index=1, resume=True)


def test_ledgers_are_known_to_a_checkpoint_before_anything_is_trained(
    tmp_path: Path, digits: TrainTest
) -> None:
    folder = tmp_path / "run"
    run(config(), folder, digits, index=1, stop_after=0)
    assert not read_metrics(folder)
    shutil.rmtree(folder / "ledgers")
    with pytest.raises(accounting.LedgerRolledBack):
        run(config(), folder, digits, index=1, resume=True)


def test_budget_that_is_gone_before_the_first_round_is_a_result_and_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config("training.rounds=1", 'sweep.modes=["local-dp"]')
    out = tmp_path / "out"

    def cut_off(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("securefl.simulation.transports.ProtocolTransport.carry", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(settings, out)
    summary = run_sweep(settings, out, resume=True)
    assert summary is not None
    assert summary["runs"][0]["status"] == "budget"
    assert summary["rows"][0]["accuracy"] == pytest.approx(0.1, abs=0.05)  # the starting model
    assert 0 < summary["rows"][0]["epsilon"] <= 8.0
    write_report = pytest.importorskip(
        "securefl.report", reason="the report is an extra of its own"
    ).write_report
    assert write_report(out).exists()


def test_targets_that_differ_in_the_last_digit_have_folders_of_their_own() -> None:
    settings = config("sweep.epsilons=[3.0, 3.0000001, 2.999996, 0.5]")
    names = [spec.name for spec in settings.runs()]
    assert len(set(names)) == len(names) == 5
    assert names[1] == "local-dp-3-s0"
    assert names[4] == "local-dp-0.5-s0"


def test_two_processes_never_work_in_one_folder(tmp_path: Path) -> None:
    settings = config('sweep.modes=["none"]')
    out = tmp_path / "out"

    def intrude() -> bool:
        with pytest.raises(CheckpointError, match="another process"):
            run_sweep(settings, out, resume=True)
        return True

    assert run_sweep(settings, out, should_stop=intrude) is None
    assert run_sweep(settings, out, resume=True) is not None


def test_a_configuration_that_was_cut_off_while_it_was_written_is_no_result(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json.tmp").write_text("{")
    assert run_sweep(config('sweep.modes=["none"]', "training.rounds=1"), out) is not None


@pytest.mark.parametrize("where", ["client", "server"])
def test_a_diverged_run_ends_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    settings = config('sweep.modes=["local-dp"]')

    def diverge(*_args: object, **_kwargs: object) -> Any:
        if where == "client":
            raise TrainingDiverged(client=1, round_index=0, what="the model")
        return np.full(650, np.inf, dtype=np.float32)

    name = (
        "training.dpsgd.DPSGD.train"
        if where == "client"
        else "training.apply.ServerOptimiser.apply"
    )
    with monkeypatch.context() as patch:
        patch.setattr(f"securefl.{name}", diverge)
        summary = run_sweep(settings, tmp_path / "out")
    assert summary is not None
    assert summary["runs"][0]["status"] == "diverged"
    assert 0 < summary["rows"][0]["epsilon"] <= 8.0  # what was charged stays charged
    assert np.isfinite(model(tmp_path / "out" / "local-dp-8-s0")).all()
    again = run_sweep(settings, tmp_path / "out", resume=True)
    assert again is not None
    assert again["rows"] == summary["rows"]


def test_an_impossible_target_is_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(accounting.CalibrationError):
        run_sweep(config("sweep.epsilons=[1e-9]"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"run": "x", "target_epsilon": null}'])
def test_a_damaged_summary_of_a_finished_run_is_a_clear_error(tmp_path: Path, content: str) -> None:
    settings = config('sweep.modes=["none"]', "training.rounds=1")
    run_sweep(settings, tmp_path / "out")
    (tmp_path / "out" / "none-inf-s0" / "summary.json").write_text(content)
    with pytest.raises(CheckpointError, match="none-inf-s0"):
        run_sweep(settings, tmp_path / "out", resume=True)


@pytest.mark.parametrize("step", ["_record", "_save"])
def test_a_crash_around_the_end_of_a_round_loses_no_line_and_doubles_none(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    settings = config()
    folder = tmp_path / "run"
    original = getattr(Engine, step)

    def crash_after_round_one(self: Engine, state: Any, *rest: Any) -> None:
        if step == "_record":
            original(self, state, *rest)  # the line is written, the checkpoint is not
        if state.next_round == (1 if step == "_record" else 2):
            raise KeyboardInterrupt
        if step == "_save":
            original(self, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, step, crash_after_round_one)
        with pytest.raises(KeyboardInterrupt):
            run(settings, folder, digits)
    assert len(read_metrics(folder)) == 2
    resumed = run(settings, folder, digits, resume=True)
    whole = run(settings, tmp_path / "whole", digits)
    assert [line["round"] for line in read_metrics(folder)] == [0, 1, 2]
    assert resumed.summary["model_sha256"] == whole.summary["model_sha256"]


def test_metrics_that_lost_a_finished_round_are_refused(tmp_path: Path, digits: TrainTest) -> None:
    folder = tmp_path / "run"
    run(config(), folder, digits, stop_after=2)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0])
    with pytest.raises(CheckpointError, match="1 lines, the checkpoint has 2 rounds"):
        run(config(), folder, digits, resume=True)


def test_a_checkpoint_of_another_partition_is_refused(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    run(config(), folder, digits, stop_after=1)
    engine = Engine(config(), config().runs()[0], folder, dataset=digits)
    engine.partition = make_partition(config(), 1, digits.train)
    with pytest.raises(CheckpointError, match="another partition"):
        engine.run(resume=True)


def test_the_privacy_plan_is_part_of_every_rounds_context(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    import securefl.pipeline as pipeline

    seen: list[bytes] = []
    original = pipeline.context_digest

    def spy(vector: Any, codec: bytes, plan: bytes = b"") -> bytes:
        seen.append(plan)
        return original(vector, codec, plan)

    monkeypatch.setattr(pipeline, "context_digest", spy)
    for index in (0, 1):
        run(config("training.rounds=1"), tmp_path / str(index), digits, index=index)
    assert seen[0] == b""
    assert len(seen[1]) == 32


def test_private_runs_weigh_all_clients_alike(tmp_path: Path, digits: TrainTest) -> None:
    engine = Engine(config(), config().runs()[1], tmp_path / "run", dataset=digits)
    assert engine.codec.length == engine.model.dim
    plain = Engine(config(), config().runs()[0], tmp_path / "other", dataset=digits)
    assert plain.codec.length == plain.model.dim + 1


def test_a_rows_epsilon_is_the_largest_of_its_runs() -> None:
    runs = [
        {
            "epsilon": epsilon,
            "accuracy": 0.5,
            "rounds": 3,
            "seed": seed,
            "dropped": 1,
            "bytes_up_per_client": 1.0,
            "seconds": 1.0,
        }
        for seed, epsilon in enumerate([2.5, 2.9, 2.7])
    ]
    assert _row(Mode.LOCAL_DP, 3.0, runs)["epsilon"] == 2.9
