"""``python -m accounting``: the forms that programs rely on, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from accounting import BoundKind, FixedSize, Gaussian, Poisson, Repeat, calibrate, dump, epsilon
from accounting.cli import _shown, app
from accounting.compare import Opinion, disagreements

RUN = Repeat(event=Poisson(sample_rate=0.01, event=Gaussian(noise_multiplier=4.0)), count=10000)
TEXT = dump(RUN)
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, checks its exit code and gives its standard output."""

    def call(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as caught:
            app(list(arguments))
        found = capsys.readouterr()
        assert caught.value.code == code, found
        assert "Traceback" not in found.err
        return found.out

    return call


def test_epsilon_prints_exactly_the_documented_object(run: Run) -> None:
    out = run(
        *("epsilon", "--event", TEXT, "--delta", "1e-5", "--adjacency", "add-remove"),
        *("--method", "rdp", "--json"),
    )
    found = json.loads(out)
    assert list(found) == ["epsilon", "kind", "method", "order", "delta", "adjacency"]
    bound = epsilon(RUN, 1e-5, adjacency="add-remove", method="rdp")
    assert found == {
        "epsilon": bound.value,
        "kind": "upper",
        "method": "rdp",
        "order": bound.order,
        "delta": 1e-5,
        "adjacency": "add-remove",
    }


def test_the_module_runs_as_a_program() -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "accounting", "curve", "--event", TEXT),
            *("--adjacency", "add-remove", "--orders", "1.5,2,8", "--json"),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(result.stdout)
    assert list(found) == ["orders", "rdp"]
    assert found["orders"] == [1.5, 2.0, 8.0]
    assert found["rdp"] == sorted(found["rdp"])


def test_the_benchmark_runs_although_it_has_the_name_of_the_package() -> None:
    program = Path(__file__).parents[2] / "benchmarks" / "accounting.py"
    result = subprocess.run(
        [sys.executable, str(program), "--help"], check=True, capture_output=True, timeout=120
    )
    assert b"dp-accounting and Opacus" in result.stdout


def test_calibrate_replaces_the_field_it_searches(run: Run) -> None:
    out = run(
        *("calibrate", "--event", TEXT, "--delta", "1e-5", "--adjacency", "add-remove"),
        *("--epsilon", "1", "--json"),
    )
    found = json.loads(out)
    expected = calibrate(
        lambda z: Repeat(
            event=Poisson(sample_rate=0.01, event=Gaussian(noise_multiplier=z)), count=10000
        ),
        1.0,
        1e-5,
        adjacency="add-remove",
    )
    assert found["value"] == expected.value
    assert found["achieved"]["epsilon"] <= found["target"] == 1.0
    cohort = FixedSize(population=1000, cohort=1, event=Gaussian(noise_multiplier=5.0))
    out = run(
        *("calibrate", "--event", dump(cohort), "--delta", "1e-5", "--adjacency", "replace-one"),
        *("--epsilon", "0.3", "--over", "cohort", "--json"),
    )
    assert 1 < json.loads(out)["value"] < 1000
    run(
        *("calibrate", "--event", TEXT, "--delta", "1e-5", "--adjacency", "add-remove"),
        *("--epsilon", "1", "--over", "cohort"),
        code=2,
    )


def test_an_event_may_come_from_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "event.json"
    path.write_text(TEXT)
    arguments = ("--delta", "1e-5", "--adjacency", "add-remove", "--method", "rdp")
    assert run("epsilon", "--event", f"@{path}", *arguments) == run(
        "epsilon", "--event", TEXT, *arguments
    )
    run("epsilon", "--event", f"@{tmp_path / 'none'}", *arguments, code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--event", '{"type":"gaussian","noise_multiplier":NaN}', "--delta", "1e-5"),
        ("--event", '{"type":"gaussian"}', "--delta", "1e-5"),
        ("--event", TEXT, "--delta", "2"),
        ("--event", TEXT, "--delta", "nan"),
        ("--event", TEXT, "--delta", "1e-5", "--method", "guess"),
        ("--event", TEXT, "--delta", "1e-5", "--method", "exact"),
    ],
)
def test_what_is_impossible_is_one_line_and_code_two(run: Run, arguments: tuple[str, ...]) -> None:
    assert run("epsilon", "--adjacency", "add-remove", "--json", *arguments, code=2) == ""


def test_adjacency_has_no_default_on_the_command_line_either(run: Run) -> None:
    run("epsilon", "--event", TEXT, "--delta", "1e-5", code=2)
    run("epsilon", "--event", TEXT, "--delta", "1e-5", "--adjacency", "none", code=2)


def test_an_infinite_epsilon_is_null_in_json(run: Run) -> None:
    out = run(
        *("epsilon", "--event", '{"type":"non-private"}', "--delta", "1e-5"),
        *("--adjacency", "zero-out", "--json"),
    )
    assert json.loads(out)["epsilon"] is None
    text = run(
        *("epsilon", "--event", '{"type":"non-private"}', "--delta", "1e-5"),
        *("--adjacency", "zero-out"),
    )
    assert "infinite" in text


def test_compare_asks_everybody_and_all_agree(run: Run) -> None:
    event = dump(
        Repeat(event=Poisson(sample_rate=0.05, event=Gaussian(noise_multiplier=2.0)), count=100)
    )
    arguments = ("--event", event, "--delta", "1e-5", "--adjacency", "add-remove")
    found = json.loads(run("compare", *arguments, "--json"))
    assert found["disagreements"] == []
    names = [one["name"] for one in found["accountants"]]
    assert names == [
        *("accounting exact", "accounting rdp", "accounting pld"),
        *("dp-accounting rdp", "dp-accounting pld", "opacus rdp", "opacus prv"),
    ]
    assert "accounting rdp" in run("compare", *arguments)


def opinion(name: str, value: float, kind: BoundKind = BoundKind.UPPER) -> Opinion:
    return Opinion(name=name, method=name.rsplit(" ", maxsplit=1)[-1], epsilon=value, kind=kind)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (opinion("accounting exact", 9.997, BoundKind.EXACT), opinion("dp-accounting rdp", 4.73)),
        (opinion("accounting rdp", 1.1), opinion("opacus rdp", 1.0)),
        (opinion("accounting pld", 1.0), opinion("dp-accounting pld", 0.5)),
        (opinion("accounting rdp", 1.0), opinion("accounting pld", 1.1)),
        (opinion("accounting rdp", 1.0), opinion("dp-accounting rdp", float("nan"))),
    ],
)
def test_disagreement_beyond_the_methods_is_flagged(first: Opinion, second: Opinion) -> None:
    assert disagreements((first, second))


@pytest.mark.parametrize("value", [1.0000001, 0.123456789, 12345.678, 3e-9])
def test_a_printed_epsilon_is_never_smaller_than_it_is(value: float) -> None:
    assert float(_shown(value)) >= value
    assert float(_shown(value)) <= value * (1 + 2e-5)


def test_importing_accounting_loads_no_command_line_and_no_other_library() -> None:
    code = "import accounting, sys; print(sorted(m.split('.')[0] for m in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    for name in ("typer", "rich", "dp_accounting", "opacus", "torch", "pydantic"):
        assert f"'{name}'" not in result.stdout
