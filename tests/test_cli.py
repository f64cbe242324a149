"""The command as a process: output, files, exit codes, Ctrl-C and kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import accounting

FAST = (
    "training.rounds=4",
    "partition.clients=4",
    "simulation.dropped_per_round=0",
    "local_dp.steps_per_round=2",
    "sweep.seeds=[0]",
    "sweep.epsilons=[8.0]",
)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "securefl.cli", *map(str, arguments)]


def sets(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def securefl(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "SECUREFL_DATA"}
    return subprocess.run(
        command(*arguments),
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        cwd=cwd,
    )


def test_train_writes_everything_and_prints_json_on_request(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = securefl("train", "--preset", "digits", "--out", out, "--json", *sets(*FAST))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    for name in ("config.json", "report.html", "plot.png"):
        assert (out / name).stat().st_size > 100
    run = out / "local-dp-8-s0"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert {
        "loss",
        "accuracy",
        "epsilon",
        "survivors",
        "bytes_up_per_client",
        "bytes_down_per_client",
        "seconds",
        "fidelity",
    } <= line.keys()
    assert {"protocol", "apply", "evaluate", "ledger"} <= line["seconds"].keys()


def test_human_output_is_a_table_with_its_caveats(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = securefl("train", "--preset", "digits", "--out", out, *sets(*FAST))
    assert done.returncode == 0, done.stderr
    assert "local-dp" in done.stdout
    assert "hides single updates, not what the sum" in " ".join(done.stdout.split())
    assert str(out / "report.html") in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--out", "x"], "give a configuration file or --preset"),
        (["train", "--preset", "digit", "--out", "x"], "did you mean digits"),
        (["train", "nowhere.toml", "--out", "x"], "nowhere.toml"),
        (["train", "a.toml", "--preset", "digits", "--out", "x"], "not both"),
        (["train", "--preset", "digits", "--out", "x", "--set", "data.nam=1"], "did you mean name"),
        (["train", "--preset", "digits", "--out", "x", "--set", "training.rounds=-1"], "rounds"),
        (["train", "--resume", "--out", "x"], "no run that can be resumed"),
        (["train", "--preset", "mnist", "--out", "x"], "SECUREFL_DATA"),
        (["train", "--preset", "mnist", "--data", ".", "--out", "x"], "train-images-idx3-ubyte"),
        (["train", "--preset", "digits"], "--out"),
        (["trian"], "trian"),
    ],
)
def test_bad_usage_is_one_clear_message_and_exit_code_2(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = securefl(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_results_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    done = securefl("train", "--preset", "digits", "--out", tmp_path)
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_an_unusable_folder_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        done = securefl("train", "--preset", "digits", "--out", out, *sets(*FAST))
        assert done.returncode == 2
        assert str(out) in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_an_impossible_target_is_exit_code_2_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = securefl("train", "--preset", "digits", "--out", out, "--set", "sweep.epsilons=[1e-9]")
    assert done.returncode == 2
    assert "CalibrationError" in done.stderr
    assert not out.exists()


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    pytest.fail(f"{path} never had {lines} lines")


def start(out: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("train", "--preset", "digits", "--out", out, *sets(*FAST, *overrides)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


LONG_RUN = ("training.rounds=400", 'sweep.modes=["local-dp"]')


def test_ctrl_c_leaves_a_state_that_resumes_with_the_budget_spent(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, *LONG_RUN)
    metrics = out / "local-dp-8-s0" / "metrics.jsonl"
    wait_for(metrics, 3, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"securefl train --resume --out {out}" in " ".join(stderr.split())
    done = metrics.read_text().splitlines()
    spent = json.loads(done[-1])["epsilon"]

    again = start_resumed(out)
    wait_for(metrics, len(done) + 2, again)
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=60)
    assert again.returncode == 130
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(len(lines)))
    assert metrics.read_text().splitlines()[: len(done)] == done
    assert lines[len(done)]["epsilon"] > spent


def start_resumed(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("train", "--resume", "--out", out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_resumes_and_every_reservation_stays_charged(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, *LONG_RUN)
    run = out / "local-dp-8-s0"
    wait_for(run / "metrics.jsonl", 3, process)
    process.kill()
    process.communicate(timeout=60)
    reserved = {}
    for path in sorted((run / "ledgers").glob("*.sqlite")):
        with accounting.Ledger.open(path) as ledger:
            reserved[path.name] = ledger.spent + ledger.reserved
            assert ledger.spent + ledger.reserved > 0
    # Rounds are quick: the killed run may have more of them by now than it was waited for.
    lines = len((run / "metrics.jsonl").read_text().splitlines())
    again = start_resumed(out)
    wait_for(run / "metrics.jsonl", lines + 2, again)
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=60)
    assert again.returncode == 130
    for path in sorted((run / "ledgers").glob("*.sqlite")):
        with accounting.Ledger.open(path) as ledger:
            assert ledger.spent > reserved[path.name]
            assert not ledger.open_tickets


def test_a_rolled_back_ledger_is_exit_code_4(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, *LONG_RUN)
    run = out / "local-dp-8-s0"
    wait_for(run / "metrics.jsonl", 1, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    for path in (run / "ledgers").glob("client-2.sqlite*"):
        path.unlink()
    done = securefl("train", "--resume", "--out", out)
    assert done.returncode == 4
    assert "client-2" in done.stderr
    assert "Traceback" not in done.stderr


def test_version() -> None:
    done = securefl("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("securefl 0.")
