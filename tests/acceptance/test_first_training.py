"""The promises of the first release, at full size (`make long`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from securefl.config import load_preset
from securefl.simulation.sweep import run_sweep

pytestmark = pytest.mark.long


def row(summary: Any, mode: str, epsilon: float | None) -> dict[str, Any]:
    (found,) = [r for r in summary["rows"] if (r["mode"], r["target_epsilon"]) == (mode, epsilon)]
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("demo") / "out"
    summary = run_sweep(load_preset("digits"), out)
    assert summary == json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.parametrize(
    ("mode", "epsilon", "least"),
    [("none", None, 0.93), ("local-dp", 8.0, 0.90), ("local-dp", 3.0, 0.85)],
)
def test_demo_reaches_its_accuracy_within_its_budget(
    demo: Any, mode: str, epsilon: float | None, least: float
) -> None:
    # Noise comes from the operating system, so this cannot be seeded. The means of three seeds lie
    # at least four of their standard deviations above these floors: false alarms below 1e-4.
    found = row(demo, mode, epsilon)
    assert found["accuracy"] >= least
    assert found["dropped"] == 3 * demo["rounds"]  # planned rounds of the modes without sharing
    if epsilon is not None:
        assert 0.99 * epsilon < found["epsilon"] <= epsilon


@pytest.mark.parametrize(("epsilon", "least"), [(8.0, 0.925), (3.0, 0.91), (1.0, 0.80)])
def test_shared_noise_costs_little_and_never_passes_its_target(
    demo: Any, epsilon: float, least: float
) -> None:
    """Means of five sweeps: 94.2, 93.6 and 87.7 % at epsilon 8, 3 and 1 (deviation .2, .3, .7)."""
    found = row(demo, "distributed-dp", epsilon)
    assert found["accuracy"] >= least
    assert 0.97 * epsilon < found["epsilon"] <= epsilon
    # The page's point: at the same epsilon the shared noise is the better model.
    assert found["accuracy"] > row(demo, "local-dp", epsilon)["accuracy"]


@pytest.fixture(scope="module")
def mnist(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    summaries = {}
    for fidelity in ("protocol", "encoded", "float"):
        out = tmp_path_factory.mktemp("mnist") / fidelity
        config = load_preset("mnist", [f"aggregation.fidelity={fidelity}"])
        run_sweep(config, out, data_dir=data_dir)
        summaries[fidelity] = json.loads((out / "none-inf-s0" / "summary.json").read_text())
    return summaries


@pytest.mark.data
def test_mnist_reaches_98_percent_through_the_masked_sum(mnist: dict[str, Any]) -> None:
    assert mnist["protocol"]["parameters"] == 26_010
    assert mnist["protocol"]["accuracy"] >= 0.98


@pytest.mark.data
def test_mnist_model_is_bit_equal_to_the_one_of_a_plain_sum(mnist: dict[str, Any]) -> None:
    assert mnist["protocol"]["model_sha256"] == mnist["encoded"]["model_sha256"]
    assert mnist["protocol"]["model_sha256"] != mnist["float"]["model_sha256"]


@pytest.mark.data
def test_mnist_accuracy_is_that_of_a_floating_point_sum(mnist: dict[str, Any]) -> None:
    assert abs(mnist["protocol"]["accuracy"] - mnist["float"]["accuracy"]) <= 0.003


@pytest.mark.data
def test_mnist_non_iid_reaches_96_5_percent(data_dir: Path, tmp_path: Path) -> None:
    config = load_preset(
        "mnist",
        ["partition.kind=dirichlet", "partition.alpha=0.1", "training.rounds=10"],
    )
    summary = run_sweep(config, tmp_path / "out", data_dir=data_dir)
    assert summary is not None
    assert summary["rows"][0]["accuracy"] >= 0.965


@pytest.mark.data
@pytest.mark.parametrize(
    ("preset", "none", "eight", "three"),
    [("heart-disease", 0.78, 0.7, 0.6), ("breast-cancer", 0.93, 0.88, 0.8)],
)
def test_the_other_presets_learn(
    data_dir: Path, tmp_path: Path, preset: str, none: float, eight: float, three: float
) -> None:
    summary = run_sweep(load_preset(preset), tmp_path / "out", data_dir=data_dir)
    assert row(summary, "none", None)["accuracy"] >= none
    assert row(summary, "local-dp", 8.0)["accuracy"] >= eight
    assert row(summary, "local-dp", 3.0)["accuracy"] >= three
