"""Worker processes do the clients' work: same bits, own coins, and a clear end when one dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import accounting
from securefl.cli import EXIT_INTERRUPTED
from securefl.config import RunConfig, load_preset
from securefl.encoding.codec import UpdateCodec
from securefl.errors import ConfigurationError, WorkerLost
from securefl.pipeline import RoundWork
from securefl.round import ClientId
from securefl.simulation.checkpoint import latest_checkpoint
from securefl.simulation.engine import Engine, read_metrics
from securefl.simulation.insecure import InsecureRandomness
from securefl.simulation.workers import ElsewhereTrainer, WorkerPool
from securefl.training.data import TrainTest, load
from securefl.training.local import TrainingDiverged

SMALL = (
    "partition.clients=6",
    "aggregation.threshold=4",
    "simulation.dropped_per_round=1",
    "training.rounds=2",
    "encoding.rounding=nearest",
    "local_dp.steps_per_round=2",
    "distributed_dp.steps=2",
    "distributed_dp.sample_rate=0.1",
    "distributed_dp.planned_dropouts=0",
    "distributed_dp.at=minimum",
    "distributed_dp.stop=steps",
    "user_level_dp.steps=2",
    "user_level_dp.stop=steps",
    "user_level_dp.sample_rate=0.5",
    "user_level_dp.clip_norm=1.0",
    "sweep.epsilons=[20.0]",
    "sweep.seeds=[0]",
)


@pytest.fixture(scope="module")
def digits() -> TrainTest:
    return load("digits")


def config(mode: str, *overrides: str, workers: int = 2) -> RunConfig:
    given = [*SMALL, f'sweep.modes=["{mode}"]', f"simulation.workers={workers}", *overrides]
    return load_preset("digits", given)


def engine(settings: RunConfig, folder: Path, data: TrainTest, **arguments: Any) -> Engine:
    return Engine(settings, settings.runs()[0], folder, dataset=data, **arguments)


def told(folder: Path) -> list[dict[str, Any]]:
    """The record without what a clock says."""
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "elapsed")}
        for line in read_metrics(folder)
    ]


# -- the same bits --------------------------------------------------------------------------------


MANY = pytest.mark.long  # every case starts processes, which takes seconds


@pytest.mark.parametrize(
    ("mode", "fidelity", "more"),
    [
        pytest.param("none", "protocol", (), marks=MANY),
        pytest.param(
            "none", "float", ("training.algorithm=q-fedavg", "training.q=1.0"), marks=MANY
        ),
        pytest.param(
            "none", "encoded", ("training.held_out=0.2", "training.weights=quality"), marks=MANY
        ),
        pytest.param(
            "user-level-dp", "aggregate", ("user_level_dp.clipping=adaptive",), marks=MANY
        ),
        pytest.param(
            "user-level-dp",
            "encoded",
            (
                "user_level_dp.algorithm=q-fedavg",
                "user_level_dp.q=1.0",
                "user_level_dp.loss_cap=4.0",
                "user_level_dp.weighting=capped-examples",
                "user_level_dp.example_cap=300",
            ),
            marks=MANY,
        ),
        ("user-level-dp", "protocol", ()),
        pytest.param("distributed-dp", "encoded", (), marks=MANY),
    ],
)
def test_two_workers_give_the_same_bits_as_none(
    tmp_path: Path, digits: TrainTest, mode: str, fidelity: str, more: tuple[str, ...]
) -> None:
    results, lines = [], []
    for workers in (1, 2):
        settings = config(mode, f"aggregation.fidelity={fidelity}", *more, workers=workers)
        coins = {} if mode == "none" else {"insecure": InsecureRandomness(7)}
        folder = tmp_path / str(workers)
        results.append(engine(settings, folder, digits, **coins).run().summary)
        lines.append(told(folder))
    assert results[0]["rounds"] == 2
    assert results[0]["model_sha256"] == results[1]["model_sha256"]
    assert lines[0] == lines[1]


@pytest.mark.long
def test_local_differential_privacy_works_with_workers_and_charges_the_same(
    tmp_path: Path, digits: TrainTest
) -> None:
    spent = []
    for workers in (1, 2):
        settings = config("local-dp", workers=workers)
        summary = engine(settings, tmp_path / str(workers), digits).run().summary
        spent.append([one["spent_epsilon"] for one in summary["ledgers"]])
    assert spent[0] == spent[1]


def test_the_number_of_workers_is_no_part_of_what_a_run_is() -> None:
    assert config("none", workers=1).digest() == config("none", workers=3).digest()
    assert config("none").digest() != config("none", "training.rounds=3").digest()


def test_clients_that_remember_something_cannot_be_shared_out() -> None:
    with pytest.raises(ConfigurationError, match=r"workers = 2: SCAFFOLD's clients remember"):
        config("none", "training.algorithm=scaffold", "training.weights=equal")
    config("none", "training.algorithm=scaffold", "training.weights=equal", workers=1)


def test_a_trainer_that_lives_elsewhere_refuses_to_train_here() -> None:
    with pytest.raises(ConfigurationError, match="client 3 trains in a worker process"):
        ElsewhereTrainer(client=ClientId(3)).train(np.zeros(2, dtype=np.float32), round_index=0)


# -- one pool ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(digits: TrainTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine without privacy and with two workers, between two rounds."""
    made = engine(config("none"), tmp_path_factory.mktemp("plain") / "run", digits)
    with ExitStack() as stack:
        made._start_workers(made._first(), stack)
        yield made


def work(made: Engine, **changes: Any) -> RoundWork:
    given = {
        "round_index": 3,
        "vector": np.random.default_rng(1).normal(0, 0.1, made.model.dim).astype(np.float32),
        "clients": made.clients,
        "codec": made.codec,
        "round_seed": bytes(range(32)),
    }
    return RoundWork(**given | changes)


def pool(made: Engine) -> WorkerPool:
    assert made._workers is not None
    return made._workers


def test_clients_may_be_asked_in_any_order_and_get_what_they_would_have_made_here(
    plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plain.plain is not None
    here = work(plain)
    # Two clients of which nobody knew, and two places for results: every path is taken.
    monkeypatch.setattr(pool(plain), "_senders", lambda _round, clients: clients[2:])
    monkeypatch.setattr(pool(plain), "_slots", 2)
    with pool(plain).prepare(here) as of:
        made = {client: of(client) for client in reversed(plain.clients)}
    for client, one in made.items():
        update = plain.plain.trainer(client).train(here.vector, round_index=3)
        assert np.array_equal(one.update.values, update.values)
        assert one.update.weight == update.weight
        assert one.vector == plain._plain_codec.encode(update.values, weight=update.weight)
        assert set(one.seconds) == {"train", "encode"}


def test_a_client_is_served_once_and_strangers_never(plain: Engine) -> None:
    with pool(plain).prepare(work(plain)) as of:
        of(ClientId(1))
        with pytest.raises(ConfigurationError, match=r"client 1 takes no part .* used once"):
            of(ClientId(1))
        with pytest.raises(ConfigurationError, match="client 77 takes no part"):
            of(ClientId(77))
    # What nobody asked for is forgotten, and the next round is as if it had not been.
    assert plain.plain is not None
    later = work(plain, round_index=4, vector=np.ones(plain.model.dim, dtype=np.float32))
    with pool(plain).prepare(later) as of:
        made = of(ClientId(5)).update.values
    expected = plain.plain.trainer(ClientId(5)).train(later.vector, round_index=4)
    assert np.array_equal(made, expected.values)


def test_training_that_diverges_is_told_by_the_client_it_happened_to(plain: Engine) -> None:
    huge = np.full(plain.model.dim, 3e38, dtype=np.float32)
    with (
        pytest.raises(TrainingDiverged, match=r"client 4 in round 3") as caught,
        pool(plain).prepare(work(plain, vector=huge)) as of,
    ):
        of(ClientId(4))
    assert (caught.value.client, caught.value.round_index) == (4, 3)
    with pool(plain).prepare(work(plain)) as of:  # the workers go on
        of(ClientId(4))


def test_another_codec_than_the_workers_is_refused(plain: Engine) -> None:
    spec = replace(plain._plain_codec.spec, clip_norm=0.5 * plain._plain_codec.spec.clip_norm)
    with (
        pytest.raises(ConfigurationError, match="another codec than the round"),
        pool(plain).prepare(work(plain, codec=UpdateCodec(spec))) as of,
    ):
        of(ClientId(0))


# -- coins, and the end ---------------------------------------------------------------------------


def test_no_two_workers_draw_the_same_noise_and_a_lost_one_ends_the_run_charged_once(
    tmp_path: Path, digits: TrainTest
) -> None:
    chosen = ("user_level_dp.sample_rate=0.01", "user_level_dp.steps=3")
    settings = config("user-level-dp", *chosen)
    seen: list[bytes] = []

    def after(_line: Any) -> None:
        """Between two rounds: 24 noise shares, then one worker is gone."""
        for _ in range(4):
            with pool(made).prepare(work(made), clip_norm=made.shared.clip_norm) as of:
                seen.extend(of(client).vector.values.tobytes() for client in made.clients)
        victim = pool(made)._processes[0]
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()

    made = engine(settings, tmp_path / "run", digits, on_round=after)
    with pytest.raises(
        WorkerLost,
        match=r"ended between two rounds: 1 of 2 are gone, exit codes \[-9\].*stays charged",
    ):
        made.run()
    # 24 vectors of a thousand noisy entries each: two equal ones are no coincidence.
    assert len(seen) == 24 == len(set(seen))
    assert len(read_metrics(tmp_path / "run")) == 1

    # With another number of workers: none of them is part of the run.
    again = engine(config("user-level-dp", *chosen, workers=1), tmp_path / "run", digits)
    summary = again.run(resume=True).summary
    assert summary["rounds"] == 3
    ledger = accounting.Ledger.verify(tmp_path / "run" / "ledgers" / "population.sqlite")
    assert summary["rounds_charged"] == 4  # three rounds and the one that was cut off
    assert ledger.header.epsilon >= summary["epsilon"]


@pytest.mark.long
def test_a_worker_that_dies_at_its_work_ends_the_run(tmp_path: Path, digits: TrainTest) -> None:
    made = engine(config("none", "training.rounds=50"), tmp_path / "run", digits)

    def senders(round_index: int, clients: Any) -> Any:
        for process in pool(made)._processes:
            os.kill(process.pid, signal.SIGKILL)
        return clients

    def after(_line: Any) -> None:
        pool(made)._senders = senders

    made._on_round = after
    with pytest.raises(WorkerLost, match="gone"):
        made.run()
    assert made._workers is None


PROGRAM = """
import sys, time
from pathlib import Path
from securefl.config import load_preset
from securefl.simulation.engine import Engine
from securefl.training.data import load

def main():
    settings = load_preset("digits", sys.argv[2:])
    def told(line):
        pids = [p.pid for p in engine._workers._processes] if engine._workers else []
        print(*pids, flush=True)
    engine = Engine(settings, settings.runs()[0], Path(sys.argv[1]), dataset=load("digits"),
                    on_round=told)
    engine.run()

{guard}main()
"""
ARGUMENTS = ('sweep.modes=["none"]', "training.rounds=100000", "simulation.workers=2")


def program(folder: Path, guard: str) -> subprocess.Popen[str]:
    path = folder / "program.py"
    path.write_text(PROGRAM.format(guard=guard))
    return subprocess.Popen(
        [sys.executable, path, folder / "run", *ARGUMENTS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.long
def test_workers_end_with_their_engine_however_it_ends(tmp_path: Path) -> None:
    process = program(tmp_path, 'if __name__ == "__main__": ')
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.communicate()
    for _ in range(600):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return
        time.sleep(0.1)
    pytest.fail(f"the workers {pids} outlive their engine by a minute")


@pytest.mark.long
def test_a_program_that_starts_its_run_on_import_is_told_so(tmp_path: Path) -> None:
    process = program(tmp_path, "")
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert 'without if __name__ == "__main__"' in errors


@pytest.mark.long
def test_an_interrupt_of_the_whole_terminal_lets_the_round_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "securefl.cli", "train", "--preset", "digits", "--out", out]
    given = [x for pair in (("--set", a) for a in ARGUMENTS) for x in pair]
    process = subprocess.Popen([*command, *given], start_new_session=True)
    metrics = out / "none-inf-s0" / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == EXIT_INTERRUPTED
    assert not (out / "none-inf-s0" / "summary.json").exists()
    rounds = len(metrics.read_text().splitlines())
    checkpoint = latest_checkpoint(out / "none-inf-s0" / "checkpoints")
    assert checkpoint is not None and checkpoint.next_round == rounds
