"""The convergence program: its measurements hold, and its checks fail on wrong constants.

One run is shared by all tests. Its noise comes from a fixed stream; with fresh noise the averages
scatter by .025 where .15 is allowed, six standard deviations.
"""

from __future__ import annotations

import hashlib
import json
import re
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.training.dpsgd import clipped_gradient_sum
from securefl.training.local import FullGradient, Reduction

Example = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def program(example: Example) -> ModuleType:
    return example("convergence")


@pytest.fixture(scope="module")
def setting(program: ModuleType) -> Any:
    return program.setting()


@pytest.fixture(scope="module")
def measured(program: ModuleType, setting: Any) -> Any:
    calls = 0

    def random_bytes(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(calls.to_bytes(8, "little")).digest(count)

    return program.measure(setting, random_bytes=random_bytes)


def broken(program: ModuleType, measured: Any, theory: Any) -> set[str]:
    """The statements that fail: their numbers, and 0 for clipping."""
    return {
        c.statement[0] if c.statement[0].isdigit() else "0"
        for c in program.judge(measured, theory)
        if not c.holds
    }


def test_every_measurement_holds(program: ModuleType, setting: Any, measured: Any) -> None:
    assert broken(program, measured, setting.theory) == set()
    assert len(program.judge(measured, setting.theory)) == 14


def test_a_mu_ten_times_too_large_is_noticed(
    program: ModuleType, setting: Any, measured: Any
) -> None:
    wrong = replace(setting.theory, mu=10 * setting.theory.mu)
    assert broken(program, measured, wrong) >= {"1", "2"}


def test_half_the_noise_is_noticed(program: ModuleType, setting: Any, measured: Any) -> None:
    wrong = replace(setting.theory, sigma=0.5 * setting.theory.sigma)
    assert broken(program, measured, wrong) == {"3", "4"}


def test_a_bound_below_the_measured_floor_is_noticed(
    program: ModuleType, setting: Any, measured: Any
) -> None:
    wrong = replace(setting.theory, L=0.01 * setting.theory.L)
    names = [c.statement for c in program.judge(measured, wrong) if not c.holds]
    assert any("floor / bound" in name for name in names)


def test_drift_as_if_local_steps_were_counted_one_too_many_is_noticed(
    program: ModuleType, setting: Any, measured: Any
) -> None:
    E = program.LOCAL_STEPS
    drifts = [replace(d, predicted=d.predicted * E / (E - 1)) for d in measured.drifts]
    assert broken(program, replace(measured, drifts=drifts), setting.theory) == {"2"}


def test_gradients_longer_than_the_clip_norm_are_noticed(
    program: ModuleType, setting: Any, measured: Any
) -> None:
    longer = replace(measured, longest_gradient=1.01 * program.CLIP_NORM)
    assert broken(program, longer, setting.theory) == {"0"}


def test_a_result_that_is_not_a_number_does_not_hold(program: ModuleType) -> None:
    check = program.Check(statement="", measured=float("nan"), low=0.0, high=1.0)
    assert not check.holds


def test_a_rate_beyond_the_theory_is_refused(setting: Any) -> None:
    with pytest.raises(ValueError, match="exceeds 2/"):
        setting.theory.contraction(1.0)


def test_fedavg_ends_where_an_independent_fedavg_ends(
    program: ModuleType, setting: Any, measured: Any
) -> None:
    """The same rounds in float64 with the oracle's gradients, from the optimum."""
    run = measured.drifts[1]
    parts = program.partition.shards(
        setting.records.y, clients=program.CLIENTS, per_client=2, seed=0
    )
    clients = [program._problem(setting.records.subset(part)) for part in parts.indices]
    w = setting.optimum.copy()
    for _ in range(60):
        total = np.zeros_like(w)
        for client in clients:
            local = w.copy()
            for _ in range(run.local_steps):
                local -= run.rate * client.gradient(local)
            total += len(client.y) * local
        w = total / len(setting.records)
    distance = np.linalg.norm(w - setting.optimum) / np.linalg.norm(setting.optimum)
    assert run.distances[-1] == pytest.approx(float(distance), rel=1e-3)


def test_one_local_step_ends_closer_than_five_and_equal_clients_drift_less(measured: Any) -> None:
    one, five, slower, alike = (d.distances[-1] for d in measured.drifts)
    assert one < 0.2 * five
    assert slower == pytest.approx(five / 2, rel=0.1)
    assert alike < 0.05 * five


def test_at_this_clip_norm_the_clipped_sum_is_the_plain_sum(
    program: ModuleType, setting: Any
) -> None:
    records = setting.records.subset(np.arange(200))
    setting.model.load(setting.optimum)
    clipped = clipped_gradient_sum(setting.model, records.x, records.y, clip_norm=program.CLIP_NORM)
    plain = FullGradient(
        model=setting.model, x=records.x, y=records.y, client=0, reduction=Reduction.SUM
    ).train(setting.optimum.astype(np.float32), round_index=0)
    np.testing.assert_allclose(clipped, -plain.values, atol=1e-3)


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 4), features=st.integers(1, 5))
def test_gradient_hessian_and_constants_agree_with_differences_of_the_value(
    program: ModuleType, seed: int, classes: int, features: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(7, features)).astype(np.float32)
    y = rng.integers(0, classes, 7)
    p = program.Problem.of(x, y, classes=classes, penalty=0.3)
    w, v = rng.normal(size=(2, p.dimension))
    h = 1e-5
    slope = (p.value(w + h * v) - p.value(w - h * v)) / (2 * h)
    assert slope == pytest.approx(float(p.gradient(w) @ v), rel=1e-6, abs=1e-7)
    bend = (p.gradient(w + h * v) - p.gradient(w - h * v)) / (2 * h)
    np.testing.assert_allclose(p.hessian(w) @ v, bend, rtol=1e-5, atol=1e-7)
    spectrum = np.linalg.eigvalsh(p.hessian(w))
    assert spectrum[0] == pytest.approx(0.3, abs=1e-9)  # the flat direction
    assert spectrum[-1] <= p.smoothness() + 1e-9
    assert np.linalg.norm(p.gradient(p.optimum())) < 1e-11


def test_the_program_writes_json_and_a_plot_and_says_by_its_code_what_it_found(
    program: ModuleType,
    setting: Any,
    measured: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(program, "setting", lambda: setting)
    monkeypatch.setattr(program, "measure", lambda _: measured)
    picture, numbers = tmp_path / "c.png", tmp_path / "c.json"
    assert program.main(["--plot", str(picture), "--json", str(numbers)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    tree = json.loads(numbers.read_text("utf-8"))
    assert tree["constants"]["mu"] == 0.1
    assert len(tree["measured"]["linear"]) == program.EXACT_STEPS + 1
    assert all(c["holds"] for c in tree["checks"])
    assert "would cost epsilon" in capsys.readouterr().out
    wrong = replace(setting, theory=replace(setting.theory, mu=1.0))
    monkeypatch.setattr(program, "setting", lambda: wrong)
    assert program.main([]) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_the_pages_table_of_drifts_is_what_is_measured(measured: Any) -> None:
    page = (Path(__file__).parents[2] / "docs/explanation/convergence.md").read_text("utf-8")
    rows = re.findall(
        r"^\| ([a-z ]+) \| (\d) \| (\.\d+) \| (\.\d+)[a-z, ]* \| (\.?\d+) \|$", page, re.MULTILINE
    )
    assert len(rows) == len(measured.drifts)
    for (clients, local_steps, *numbers), d in zip(rows, measured.drifts, strict=True):
        assert (clients, int(local_steps)) == (d.partition, d.local_steps)
        for said, found in zip(numbers, (d.rate, d.distances[-1], d.predicted), strict=True):
            digits = len(said.partition(".")[2])
            assert float(said) == pytest.approx(found, abs=0.51 * 10.0**-digits)


def test_it_starts_as_a_program(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.__file__ is not None
    monkeypatch.setattr("sys.argv", ["convergence.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(program.__file__, run_name="__main__")
    assert stopped.value.code == 0
    assert "--json" in capsys.readouterr().out
