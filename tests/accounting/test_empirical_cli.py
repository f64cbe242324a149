"""``python -m accounting audit-mechanism``: exit codes, the JSON object, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from accounting.cli import app

SOURCE = """
import numpy as np

rng = np.random.default_rng()


def clipped(update):
    return update / max(1.0, np.linalg.norm(update))


def right(updates):
    return sum(map(clipped, updates)) + 4 * rng.standard_normal(len(updates[0]))


def unclipped(updates):
    return sum(updates) + 4 * rng.standard_normal(len(updates[0]))


def mechanism(updates, rng):
    return np.stack([right(list(one)) for one in updates])


def fails(updates):
    raise RuntimeError("no quorum")


def leaves(updates):
    raise SystemExit(0)


class Service:
    @staticmethod
    def total(updates):
        return right(updates)


number = 3
"""

Run = Callable[..., str]
CLAIM = ("--epsilon", "2.5", "--delta", "1e-5")
FAST = ("--trials", "400", "--dimension", "5")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command on the functions above, checks its exit code, gives what it printed."""
    (tmp_path / "audited_functions.py").write_text(SOURCE)
    (tmp_path / "audited_broken.py").write_text("import nowhere_to_be_found")
    (tmp_path / "audited_leaving.py").write_text("import sys\nsys.exit(0)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(function: str, *arguments: str, code: int) -> str:
        target = function if ":" in function or not function else f"audited_functions:{function}"
        with pytest.raises(SystemExit) as caught:
            app(["audit-mechanism", *([target] if target else []), *arguments])
        found = capsys.readouterr()
        assert caught.value.code == code, found
        assert "Traceback" not in found.err
        return found.out or found.err

    yield call  # type: ignore[misc]  # a generator fixture: pytest hands on what it yields
    sys.modules.pop("audited_functions", None)


def test_exit_codes_tell_the_three_verdicts_apart(run: Run) -> None:
    assert run("right", *CLAIM, *FAST, code=0).startswith("NOT_REFUTED: nothing against")
    assert run("unclipped", *CLAIM, *FAST, code=1).startswith("REFUTED: the claim epsilon 2.5")
    out = run("unclipped", "--epsilon", "60", "--delta", "1e-5", *FAST, code=3)
    assert out.startswith("INCONCLUSIVE")


def test_the_json_object_has_exactly_the_documented_fields(run: Run) -> None:
    found = json.loads(run("unclipped", *CLAIM, *FAST, "--seed", "5", "--json", code=1))
    assert list(found) == [
        *("mechanism", "verdict", "epsilon", "delta", "adjacency", "noise", "bound", "ceiling"),
        *("alpha", "trials", "runs", "seed", "canaries"),
    ]
    assert found["mechanism"] == "audited_functions:unclipped"
    assert found["verdict"] == "REFUTED"
    assert found["bound"] > found["epsilon"] == 2.5
    assert (found["trials"], found["runs"], found["seed"]) == (400, 1200, 5)
    assert list(found["canaries"][0]) == [
        *("canary", "score", "clopper_pearson", "gaussian"),
        *("false_negatives", "trials_in", "false_positives", "trials_out"),
    ]
    assert len(found["canaries"]) == 5


def test_every_form_of_function_can_be_audited(run: Run) -> None:
    run("mechanism", *CLAIM, *FAST, "--form", "mechanism", "--rounds", "2", code=0)
    run("Service.total", *CLAIM, *FAST, "--noise", "any", "--adjacency", "add-remove", code=0)


def test_a_printed_bound_is_rounded_down(run: Run) -> None:
    out = run("unclipped", *CLAIM, *FAST, "--seed", "5", code=1)
    ceiling = json.loads(run("unclipped", *CLAIM, *FAST, "--seed", "5", "--json", code=1))[
        "ceiling"
    ]
    (shown,) = [line.split()[-1] for line in out.splitlines() if "at most" in line]
    assert ceiling - 0.01 < float(shown) <= ceiling
    assert "whoever could choose it" in out


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("", CLAIM, "MODULE:FUNCTION"),
        ("right", ("--epsilon", "1"), "--delta"),
        (":right", CLAIM, "expected MODULE:FUNCTION"),
        ("absent", CLAIM, "has no attribute 'absent'"),
        ("number", CLAIM, "no function but int"),
        ("nowhere_to_be_found:f", CLAIM, "cannot be imported"),
        ("audited_broken:f", CLAIM, "cannot be imported: ModuleNotFoundError"),
        ("fails", CLAIM, "failed: RuntimeError: no quorum"),
        ("leaves", CLAIM, "failed: SystemExit: 0"),
        ("audited_leaving:f", CLAIM, "cannot be imported: SystemExit: 0"),
        ("right", (*CLAIM, "--form", "sum"), "form must be one of aggregator, mechanism"),
        ("right", (*CLAIM, "--noise", "white"), "noise must be one of gaussian, any"),
        ("right", (*CLAIM, "--adjacency", "near"), "adjacency must be one of"),
        ("right", ("--epsilon", "-1", "--delta", "1e-5"), "epsilon must be finite"),
        ("right", ("--epsilon", "1", "--delta", "0"), "no epsilon at delta 0"),
        ("right", (*CLAIM, "--trials", "10"), "n_trials must be at least 40"),
        ("right", (*CLAIM, "--form", "mechanism"), "failed: TypeError"),
    ],
)
def test_what_cannot_be_audited_is_one_line_and_exit_code_2(
    run: Run, function: str, arguments: tuple[str, ...], message: str
) -> None:
    assert message in " ".join(run(function, *arguments, code=2).split())


def test_the_command_finds_modules_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "mine_to_audit.py").write_text(SOURCE)
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "accounting", "audit-mechanism", "mine_to_audit:unclipped"),
            *(*CLAIM, *FAST),
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 1, result.stderr
    assert result.stdout.startswith("REFUTED")
