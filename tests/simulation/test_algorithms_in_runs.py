"""Whole runs: every algorithm, who takes part, when a run ends, and what clients tell of it."""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import accounting
from securefl.cli import app
from securefl.config import load_preset
from securefl.errors import CheckpointError, ConfigurationError
from securefl.round import ClientId
from securefl.simulation.checkpoint import latest_checkpoint
from securefl.simulation.cohorts import Cohorts
from securefl.simulation.engine import Engine, read_metrics
from securefl.simulation.schemes import scheme_of
from securefl.simulation.transports import PHASES, DropPlan
from securefl.training.data import load

SMALL = (
    "partition.clients=5",
    "training.rounds=3",
    "training.local_epochs=2",
    "simulation.dropped_per_round=0",
    'sweep.modes=["none"]',
    "sweep.epsilons=[]",
    "sweep.seeds=[0]",
)
ENCODED = 'aggregation.fidelity="encoded"'
EQUAL = 'training.weights="equal"'
FOUR_STEPS = "simulation.local_steps=[4, 4, 4, 4, 4]"


@pytest.fixture(scope="module")
def tumours():
    return load("breast-cancer")


def config(*overrides):
    return load_preset("breast-cancer", [*SMALL, *overrides])


def run(settings, folder, dataset, *, resume=False, **hooks):
    engine = Engine(settings, settings.runs()[0], Path(folder), dataset=dataset, **hooks)
    return engine.run(resume=resume)


def vector(folder):
    with np.load(Path(folder) / "model.npz") as arrays:
        return arrays["vector"]


ALGORITHMS = {
    "fedavg": (),
    "q-fedavg": ("training.q=0.5",),
    "fednova": ("training.momentum=0.3",),
    "scaffold": (EQUAL,),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_learns_and_gives_the_same_bits_with_and_without_the_protocol(
    tmp_path, tumours, name
):
    chosen = (f'training.algorithm="{name}"', *ALGORITHMS[name], "simulation.dropped_per_round=1")
    real = run(config(*chosen), tmp_path / "protocol", tumours)
    bare = run(config(*chosen, ENCODED), tmp_path / "encoded", tumours)
    floats = run(config(*chosen, 'aggregation.fidelity="float"'), tmp_path / "float", tumours)
    assert real.summary["model_sha256"] == bare.summary["model_sha256"]
    assert real.summary["accuracy"] > 0.85
    assert real.summary["algorithm"] == name
    assert vector(tmp_path / "protocol").shape == (62,)
    # The float baseline is the same algorithm without rounding; it loses a round that the secure
    # sum would lose, and survivors are the same.
    assert floats.summary["accuracy"] == pytest.approx(real.summary["accuracy"], abs=0.05)


@pytest.mark.parametrize(
    ("chosen", "plain"),
    [
        (('training.algorithm="q-fedavg"', "training.q=0.0"), ()),
        (('training.algorithm="fednova"', FOUR_STEPS), (FOUR_STEPS,)),
        (("training.weights=steps", FOUR_STEPS), (EQUAL, FOUR_STEPS)),
        (
            ('training.algorithm="scaffold"', EQUAL, "training.rounds=1"),
            (EQUAL, "training.rounds=1"),
        ),
    ],
)
def test_every_limit_of_a_run_is_the_run_of_fedavg(tmp_path, tumours, chosen, plain):
    for name, overrides in (("special", chosen), ("fedavg", plain)):
        run(config(ENCODED, "encoding.bits=48", *overrides), tmp_path / name, tumours)
    special, fedavg = vector(tmp_path / "special"), vector(tmp_path / "fedavg")
    assert np.abs(special - fedavg).max() < 2e-6
    assert np.abs(fedavg).max() > 0.1


def test_a_scaffold_run_with_cohorts_resumes_to_the_same_bits(tmp_path, tumours):
    chosen = config(
        'training.algorithm="scaffold"',
        EQUAL,
        ENCODED,
        "training.rounds=4",
        'participation.rule="fixed"',
        "participation.size=4",
        "simulation.dropped_per_round=1",
    )
    run(chosen, tmp_path / "whole", tumours)
    calls = iter([False, False, True])
    half = run(chosen, tmp_path / "cut", tumours, should_stop=lambda: next(calls))
    assert half.stopped == "interrupted"
    rest = run(chosen, tmp_path / "cut", tumours, resume=True)
    whole = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert rest.summary["model_sha256"] == whole["model_sha256"]
    assert rest.summary["clients_exposed"] == whole["clients_exposed"]
    elapsed = [line["elapsed"] for line in read_metrics(tmp_path / "cut")]
    assert elapsed == sorted(elapsed)


def test_a_checkpoint_that_forgot_its_clients_is_refused(tmp_path, tumours):
    chosen = config('training.algorithm="scaffold"', EQUAL, ENCODED)
    engine = Engine(chosen, chosen.runs()[0], tmp_path / "a", dataset=tumours)
    engine.plain.restore({})
    with pytest.raises(CheckpointError, match="client 2: expected a control"):
        engine.plain.trainer(ClientId(2))
    with pytest.raises(CheckpointError, match="who was in the opened sums"):
        engine.cohorts.restore({})


def test_after_a_run_the_global_control_is_the_mean_of_the_clients(tmp_path, tumours):
    chosen = config('training.algorithm="scaffold"', EQUAL, ENCODED, "training.rounds=5")
    chosen = chosen.model_copy(
        update={"simulation": chosen.simulation.model_copy(update={"dropped_per_round": 1})}
    )
    run(chosen, tmp_path / "run", tumours)
    arrays = latest_checkpoint(tmp_path / "run" / "checkpoints").arrays
    controls = [arrays[f"client/{client}/control"] for client in range(5)]
    assert all(np.abs(control).max() > 1e-3 for control in controls)
    assert np.abs(arrays["model"][62:] - np.mean(controls, axis=0)).max() < 1e-4


def test_a_resumed_run_remembers_who_was_in_the_opened_sums():
    settings = config()
    make = partial(Cohorts, settings, seed=0, clients=5, scheme=scheme_of(settings))
    whole, resumed = make(), make()
    whole.opened([ClientId(c) for c in (0, 1, 2, 3)])
    resumed.restore(whole.state())
    for cohorts in (whole, resumed):
        assert cohorts.exposed == 0
        cohorts.opened([ClientId(c) for c in range(5)])
        assert cohorts.exposed == 1


@pytest.mark.parametrize("kind", ["steps", "quality"])
def test_weights_that_clients_compute_are_carried_in_the_sum(tmp_path, tumours, kind):
    chosen = config(f"training.weights={kind}", "training.held_out=0.2", ENCODED)
    assert run(chosen, tmp_path / "run", tumours).summary["accuracy"] > 0.85
    run(config(EQUAL, "training.held_out=0.2", ENCODED), tmp_path / "equal", tumours)
    off = np.abs(vector(tmp_path / "run") - vector(tmp_path / "equal")).max()
    # IID clients take equally many steps; their accuracies differ.
    assert off < 1e-5 if kind == "steps" else off > 1e-4


def test_held_out_records_are_a_clients_own_and_are_not_trained_on(tmp_path, tumours):
    engine = Engine(
        config("training.held_out=0.25", ENCODED),
        config().runs()[0],
        tmp_path / "run",
        dataset=tumours,
    )
    for client in engine.clients:
        trained, held_out = engine.plain.records(client)
        mine = tumours.train.subset(engine.partition.indices[client])
        assert len(trained) + len(held_out) == len(mine)
        assert len(held_out) == round(0.25 * len(mine))
        rows = {row.tobytes() for row in trained.x} | {row.tobytes() for row in held_out.x}
        assert rows == {row.tobytes() for row in mine.x}
    with pytest.raises(ConfigurationError, match="leaves none to train on"):
        Engine(
            config("training.held_out=0.999"),
            config().runs()[0],
            tmp_path / "b",
            dataset=tumours,
        ).plain.records(ClientId(0))


# ---------------------------------------------------------------- who takes part


def test_a_fixed_cohort_is_summed_alone_and_several_cohorts_expose_clients(tmp_path, tumours):
    chosen = config('participation.rule="fixed"', "participation.size=3", "training.rounds=12")
    found = run(chosen, tmp_path / "run", tumours)
    lines = read_metrics(tmp_path / "run")
    assert {line["cohort"] for line in lines} == {3}
    assert {line["survivors"] for line in lines} == {3}
    assert found.summary["threshold"] == 3
    assert found.summary["clients_exposed"] == found.summary["clients_exposed_planned"] == 5


@pytest.mark.parametrize(("dropped", "exposed"), [(0, 0), (1, 5)])
def test_the_command_says_whom_several_sums_expose(tmp_path, monkeypatch, dropped, exposed):
    monkeypatch.setenv("COLUMNS", "300")
    settings = (f"simulation.dropped_per_round={dropped}", "training.rounds=12", ENCODED)
    arguments = [a for o in (*SMALL, *settings) for a in ("--set", o)]
    done = CliRunner().invoke(
        app, ["train", "--preset", "breast-cancer", "--out", str(tmp_path / "out"), *arguments]
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["clients_exposed"] == exposed
    assert (f"update of up to {exposed} of 5 clients" in done.output) == bool(exposed)


def test_batch_partition_exposes_nobody(tmp_path, tumours):
    chosen = load_preset(
        "breast-cancer",
        [
            *SMALL,
            "partition.clients=9",
            'participation.rule="batch-partition"',
            "participation.group_size=3",
            "participation.groups=2",
            "training.rounds=8",
            ENCODED,
        ],
    )
    found = run(chosen, tmp_path / "run", tumours)
    assert {line["cohort"] for line in read_metrics(tmp_path / "run")} == {6}
    assert found.summary["clients_exposed"] == found.summary["clients_exposed_planned"] == 0


def test_a_poisson_cohort_that_is_too_small_is_a_lost_round(tmp_path, tumours):
    chosen = config(
        'participation.rule="poisson"',
        "participation.rate=0.6",
        "training.rounds=10",
        "simulation.max_lost_rounds=10",
    )
    run(chosen, tmp_path / "run", tumours)
    lines = read_metrics(tmp_path / "run")
    for line in lines:
        lost = line["cohort"] < 3
        assert line["status"] == ("below-threshold" if lost else "ok")
        assert line["survivors"] == (0 if lost else line["cohort"])
    assert {line["status"] for line in lines} == {"below-threshold", "ok"}
    assert len({line["cohort"] for line in lines}) > 2


def test_every_size_of_cohort_has_thresholds_of_its_own():
    settings = load_preset(
        "breast-cancer",
        [*SMALL, "partition.clients=40", 'participation.rule="poisson"', "participation.rate=0.5"],
    )
    cohorts = Cohorts(settings, seed=0, clients=40, scheme=scheme_of(settings))
    assert cohorts.scheme(40).n_min == 27
    for size in (3, 10, 21):
        assert cohorts.scheme(size).n_min == 2 * size // 3 + 1
        assert cohorts.scheme(size).facts()["assumed_corrupt"] == -(-size // 20)
    assert cohorts.scheme(2) is None


def test_a_client_that_is_not_asked_spends_nothing(tmp_path, tumours):
    chosen = load_preset(
        "breast-cancer",
        [
            *(o for o in SMALL if not o.startswith("sweep")),
            'sweep.modes=["local-dp"]',
            "sweep.epsilons=[8.0]",
            "sweep.seeds=[0]",
            'participation.rule="fixed"',
            "participation.size=3",
            "training.rounds=1",
            ENCODED,
        ],
    )
    found = run(chosen, tmp_path / "run", tumours)
    spent = [ledger["spent_epsilon"] for ledger in found.summary["ledgers"]]
    assert len(spent) == 5
    assert sum(epsilon > 0 for epsilon in spent) == 3
    # The calibration counts every round for everybody: a public cohort amplifies nothing.
    engine = Engine(chosen, chosen.runs()[0], tmp_path / "b", dataset=tumours)
    assert isinstance(engine.plan.round_event, accounting.Repeat)


def test_late_clients_are_dropped_ones_and_the_prompt_ones_never_late(tmp_path, tumours):
    chosen = config("simulation.delays=[0.0, 0.0, 0.0, 0.0, 100.0]", "simulation.deadline=0.001")
    run(chosen, tmp_path / "run", tumours)
    for line in read_metrics(tmp_path / "run"):
        assert (line["late"], line["survivors"]) == (1, 4)
        assert line["dropped"] == {"masked_input_collection": 1}


def test_delays_follow_their_mean_and_no_one_elses_presence():
    """20,000 draws of a rate of e^-1: within 5 standard deviations, a false alarm in 10^6 runs."""
    plan = DropPlan(seed=3, per_round=0, delays=(1.0, 2.0, 0.0), deadline=1.0)
    everybody = [ClientId(i) for i in range(3)]
    late = np.zeros(3)
    for r in range(20_000):
        found = plan.late(r, everybody)
        late[list(found)] += 1
        if r < 50:
            assert plan.late(r, everybody[1:]) == tuple(c for c in found if c != 0)
            assert plan.drops(r, everybody).get(PHASES[2], ()) == found
    expected = np.array([np.exp(-1), np.exp(-0.5), 0.0])
    assert np.abs(late / 20_000 - expected).max() < 5 * 0.5 / np.sqrt(20_000)
    assert late[2] == 0


def test_clients_with_unequal_compute_take_their_own_number_of_steps(tmp_path, tumours):
    engine = Engine(
        config('training.algorithm="fednova"', "simulation.local_steps=[1, 2, 3, 4, 40]"),
        config().runs()[0],
        tmp_path / "run",
        dataset=tumours,
    )
    start = engine.model.vector()
    steps = [engine.plain.trainer(c).train(start, round_index=0).steps for c in engine.clients]
    assert steps == [1, 2, 3, 4, 40]


# ---------------------------------------------------------------- when a run ends


def test_a_run_ends_at_its_target_and_tells_accuracy_on_other_records(tmp_path, tumours):
    chosen = config("training.rounds=20", "stop.target_accuracy=0.9", "stop.target_patience=2")
    found = run(chosen, tmp_path / "run", tumours)
    lines = read_metrics(tmp_path / "run")
    assert (found.stopped, found.summary["status"]) == ("target", "ok")
    assert 2 <= len(lines) < 20
    reached = [line["validation_accuracy"] >= 0.9 for line in lines]
    assert reached[-2:] == [True, True]
    assert not any(a and b for a, b in pairwise(reached[:-1]))
    engine = Engine(chosen, chosen.runs()[0], tmp_path / "b", dataset=tumours)
    assert len(engine.validation) + len(engine.dataset.test) == len(tumours.test)
    rows = {row.tobytes() for row in engine.validation.x}
    assert rows.isdisjoint(row.tobytes() for row in engine.dataset.test.x)


def test_a_run_ends_on_a_plateau_and_decides_alike_after_a_resume(tmp_path, tumours):
    chosen = config(
        "training.rounds=9", "stop.plateau_rounds=2", "stop.plateau_improvement=10.0", ENCODED
    )
    found = run(chosen, tmp_path / "run", tumours)
    assert (found.stopped, found.summary["rounds"]) == ("plateau", 3)
    calls = iter([False, False, True])
    run(chosen, tmp_path / "cut", tumours, should_stop=lambda: next(calls))
    again = run(chosen, tmp_path / "cut", tumours, resume=True)
    assert (again.stopped, again.summary["rounds"]) == ("plateau", 3)


def test_a_run_ends_at_its_deadline_before_the_next_round(tmp_path, tumours):
    chosen = config("stop.deadline_seconds=1e-9", ENCODED)
    found = run(chosen, tmp_path / "run", tumours)
    assert (found.stopped, found.summary["rounds"]) == ("deadline", 0)


# ---------------------------------------------------------------- what clients tell


def test_clients_figures_come_from_a_secure_histogram_and_say_so(tmp_path, tumours):
    chosen = config(
        "client_metrics.every=2",
        "client_metrics.bins=50",
        "client_metrics.fine_tune_steps=5",
        "training.held_out=0.3",
        "training.rounds=2",
    )
    found = run(chosen, tmp_path / "run", tumours)
    lines = read_metrics(tmp_path / "run")
    assert "clients" not in lines[0]
    served = lines[1]["clients"]
    assert served == found.summary["clients_served"]
    assert served["source"] == "secure histogram (secagg), 50 bins, no noise"
    assert served["measured_on"] == "held-out records"
    assert served["clients"] == 5
    engine = Engine(chosen, chosen.runs()[0], tmp_path / "b", dataset=tumours)
    accuracies = []
    for client in engine.clients:
        _, held_out = engine.plain.records(client)
        w = vector(tmp_path / "run").astype(np.float64)
        logits = held_out.x @ w[:60].reshape(2, 30).T + w[60:]
        accuracies.append((logits.argmax(axis=1) == held_out.y).mean())
    width = served["accuracy"]["resolution"]
    assert width == pytest.approx(0.02)
    assert served["accuracy"]["worst_tenth"] == pytest.approx(min(accuracies), abs=width / 2 + 1e-6)
    assert served["accuracy"]["median"] == pytest.approx(np.median(accuracies), abs=width + 1e-6)
    assert found.summary["clients_fine_tuned"]["clients"] == 5
    assert found.summary["clients_fine_tuned"] != served


def test_below_full_fidelity_the_same_figures_say_that_nothing_hid_them(tmp_path, tumours):
    real = run(config("client_metrics.every=3"), tmp_path / "a", tumours)
    bare = run(config("client_metrics.every=3", ENCODED), tmp_path / "b", tumours)
    a, b = real.summary["clients_served"], bare.summary["clients_served"]
    assert b["source"] == "histogram summed in clear (simulation), 20 bins, no noise"
    assert a["accuracy"] == pytest.approx(b["accuracy"], abs=1e-6)
    assert real.summary["clients_fine_tuned"] is None


# ---------------------------------------------------------------- standardisation


@pytest.mark.parametrize("fidelity", ["protocol", "encoded"])
def test_federated_standardisation_equals_that_of_the_pooled_records(tmp_path, tumours, fidelity):
    chosen = config('data.standardise="federated"', f'aggregation.fidelity="{fidelity}"')
    engine = Engine(chosen, chosen.runs()[0], tmp_path / "run", dataset=tumours)
    x = tumours.train.x.astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0)
    assert np.abs(engine.dataset.train.x - (x - mean) / std).max() < 1e-4
    test = (tumours.test.x.astype(np.float64) - mean) / std
    assert np.abs(engine.dataset.test.x - test).max() < 1e-4
    assert run(chosen, tmp_path / "b", tumours).summary["accuracy"] > 0.9


@pytest.mark.data
def test_the_hospitals_missing_cells_become_the_federated_mean(tmp_path):
    settings = load_preset(
        "heart-disease",
        [
            'sweep.modes=["none"]',
            "sweep.epsilons=[]",
            "sweep.seeds=[0]",
            "training.rounds=1",
            'data.standardise="federated"',
        ],
    )
    dataset = load("heart-disease")
    engine = Engine(settings, settings.runs()[0], tmp_path / "run", dataset=dataset)
    names = dataset.train.feature_names
    chol, gap = names.index("chol"), names.index("chol missing")
    missing = dataset.train.x[:, gap] == 1
    assert missing.sum() > 100
    assert not engine.dataset.train.x[missing, chol].any()
    kept = dataset.train.x[~missing, chol].astype(np.float64)
    found = engine.dataset.train.x[~missing, chol]
    assert np.abs(found - (kept - kept.mean()) / kept.std()).max() < 1e-4
    codes = [i for i, name in enumerate(names) if "=" in name or name.endswith(" missing")]
    assert np.array_equal(engine.dataset.train.x[:, codes], dataset.train.x[:, codes])
    assert engine.run().summary["accuracy"] > 0.6


# ---------------------------------------------------------------- refusals


PRIVATE = ('sweep.modes=["local-dp"]', "sweep.epsilons=[8.0]")
SHARED = ('sweep.modes=["distributed-dp"]', "sweep.epsilons=[8.0]")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (('training.algorithm="scaffold"',), 'set weights = "equal"'),
        (('training.algorithm="scaffold"', EQUAL, "training.momentum=0.5"), "plain SGD"),
        (("training.q=1.0",), 'q belongs to algorithm = "q-fedavg"'),
        (("training.loss_cap=1.0",), "loss_cap belongs"),
        (("training.weights=quality",), "needs held_out > 0"),
        (("server.tau=0.1",), "tau belongs to optimizer fedadam"),
        (('server.optimizer="fedadagrad"', "server.beta2=0.9"), "beta2 belongs"),
        (('participation.rule="poisson"',), "takes rate; rate is missing"),
        (("participation.size=3",), "takes no other key; size is given"),
        (('participation.rule="fixed"', "participation.size=6"), "a cohort of 6 of 5 clients"),
        (('participation.rule="fixed"', "participation.size=2"), "greater than or equal to 3"),
        (
            (
                'participation.rule="batch-partition"',
                "participation.group_size=2",
                "participation.groups=2",
            ),
            "must divide partition.clients = 5",
        ),
        (("simulation.delays=[1.0]", "simulation.deadline=1.0"), "delays has 1 entries"),
        (("simulation.deadline=1.0",), "belong together"),
        (("simulation.local_steps=[1, 2]",), "local_steps has 2 entries"),
        (("client_metrics.fine_tune_steps=3",), "needs client_metrics.every"),
        ((*PRIVATE, 'data.standardise="federated"'), "reads all records without noise"),
        ((*PRIVATE, "client_metrics.every=1"), "reads private records without noise"),
        ((*PRIVATE, "simulation.local_steps=[1, 1, 1, 1, 1]"), "local_steps is for mode none"),
        (
            (*SHARED, 'participation.rule="fixed"', "participation.size=3"),
            "have their own sampling",
        ),
        (("aggregation.threshold=4", 'participation.rule="fixed"', "participation.size=3"), "4"),
        (("stop.target_accuracy=1.5",), "target_accuracy"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(ConfigurationError, match=message):
        config(*overrides)


def test_standardisation_needs_named_columns(tmp_path, tumours):
    nameless = type(tumours)(
        train=replace(tumours.train, feature_names=()), test=replace(tumours.test, feature_names=())
    )
    settings = config('data.standardise="federated"')
    with pytest.raises(ConfigurationError, match="needs named features"):
        Engine(settings, settings.runs()[0], tmp_path / "run", dataset=nameless)
