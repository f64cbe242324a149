"""The kit: transcripts, metrics against other ways to compute them, results and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

import accounting
from securefl.round import SERVER, ClientId
from securefl.simulation.network import Direction, Envelope

Program = Callable[[str], ModuleType]
FOLDER = Path(__file__).parents[2] / "examples" / "threat_models"
NAMES = sorted(p.stem for p in FOLDER.glob("t[0-9][0-9]*_*.py"))

envelopes = st.builds(
    Envelope,
    phase=st.text(max_size=20),
    direction=st.sampled_from(list(Direction)),
    sender=st.integers(0, 2**32 - 1).map(ClientId),
    recipient=st.integers(0, 2**32 - 1).map(ClientId),
    frame=st.binary(max_size=60),
)


@given(frames=st.lists(envelopes, max_size=6))
@settings(max_examples=30, deadline=None)
def test_a_transcript_reads_back_as_it_was_written(
    program: Program, tmp_path_factory: pytest.TempPathFactory, frames: list[Envelope]
) -> None:
    transcript = program("kit.transcript")
    path = tmp_path_factory.mktemp("t") / "t.bin"
    transcript.write_transcript(path, frames)
    assert list(transcript.read_transcript(path)) == frames
    whole = path.read_bytes()
    if frames:
        path.write_bytes(whole[:-1])
        with pytest.raises(ValueError, match="ends in the middle"):
            transcript.read_transcript(path)
    path.write_bytes(b"x" + whole)
    with pytest.raises(ValueError, match="is no transcript"):
        transcript.read_transcript(path)


def test_a_plain_update_is_read_from_its_own_frames_only(program: Program) -> None:
    transcript = program("kit.transcript")
    values = np.array([1.5, -2.0], dtype=np.float32)
    sent = transcript.plain_update(3, values)
    assert (sent.sender, sent.recipient) == (3, SERVER)
    assert transcript.plain_vector(sent).tolist() == values.tolist()
    masked = Envelope(phase="unmasking", direction=Direction.UP, sender=ClientId(1),
                      recipient=SERVER, frame=b"1234")  # fmt: skip
    with pytest.raises(ValueError, match="plain_update"):
        transcript.plain_vector(masked)


@given(
    a=st.lists(st.integers(-5, 5), min_size=2, max_size=12),
    b=st.lists(st.integers(-5, 5), min_size=2, max_size=12),
)
@settings(max_examples=100, deadline=None)
def test_auc_counts_pairs(program: Program, a: list[int], b: list[int]) -> None:
    found = program("kit.metrics").auc(a, b)
    pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x in a for y in b]
    assert found.value == pytest.approx(np.mean(pairs))
    assert found.low <= found.value <= found.high


@given(
    members=st.lists(st.integers(0, 30), min_size=1, max_size=30),
    others=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    fpr=st.floats(0.0, 0.99),
)
@settings(max_examples=100, deadline=None)
def test_no_more_non_members_pass_than_allowed(
    program: Program, members: list[int], others: list[int], fpr: float
) -> None:
    found = program("kit.metrics").tpr_at_fpr(members, others, fpr)
    best = 0.0
    for threshold in [-1, *range(31)]:
        if np.mean(np.array(others) > threshold) <= fpr + 1e-12:
            best = max(best, float(np.mean(np.array(members) > threshold)))
    assert found.value == pytest.approx(best)


def test_clopper_pearson_agrees_with_the_accounting_package(program: Program) -> None:
    ours = program("kit.metrics").clopper_pearson(3, 50)
    assert accounting.empirical.bounds.upper_limit(3, 50, 0.025) == pytest.approx(ours.high)


def test_caps_are_those_of_the_normal_shift(program: Program) -> None:
    """The areas and rates of N(0,1) against N(mu,1), by integration and by definition."""
    metrics = program("kit.metrics")
    for mu in (0.25, 1.0, 3.0):
        area = quad(lambda x, mu=mu: norm.cdf(x) * norm.pdf(x - mu), -12, 12 + mu)[0]
        assert metrics.auc_cap(mu) == pytest.approx(area, abs=1e-9)
        threshold = norm.isf(0.01)
        assert metrics.tpr_cap(mu, 0.01) == pytest.approx(norm.sf(threshold - mu))
        epsilon = metrics.gaussian_epsilon(mu)
        assert metrics.gaussian_delta(mu, epsilon) == pytest.approx(1e-5, rel=1e-6)
        assert metrics.tpr_cap_of_epsilon(epsilon, 1e-5, 0.01) >= metrics.tpr_cap(mu, 0.01)
    assert metrics.gaussian_epsilon(1.0) == pytest.approx(4.38, abs=0.005)
    assert metrics.gaussian_epsilon(np.sqrt(2)) == pytest.approx(6.57, abs=0.005)
    assert metrics.auc_cap(1.0) == pytest.approx(0.760, abs=0.0005)


def test_image_metrics_know_the_baselines(program: Program) -> None:
    metrics, data = program("kit.metrics"), program("kit.data")
    victims = data.victims()
    assert not set(victims.row.tolist()) & set(data.public().row.tolist())
    assert metrics.ident(victims.x, victims.row) == 1.0
    assert metrics.psnr(victims.x, victims.x).min() == 120.0
    blind = np.tile(metrics.blind_image(), (len(victims.x), 1))
    assert metrics.ident(blind, victims.row) == 0.0
    assert np.median(metrics.psnr(blind, victims.x)) == pytest.approx(11.4, abs=0.5)
    assert metrics.psnr([[5.0]], [[1.0]])[0] == 120.0, "clamped before the error is taken"
    assert metrics.exact_fraction(victims.x[:10], victims.x) >= 0.2


def result(program: Program, **changes: object) -> object:
    kit = program("kit.result")
    fields = {
        "threat": "t99", "paper": "-", "setting": "defended", "attack": "a", "metric": "m",
        "attacker": kit.Attacker(role="r", sees="s", knows="k"), "per_seed": (0.1, 0.2, 0.3),
        "expected": kit.Expected(op="<=", bound=0.5),
    }  # fmt: skip
    return kit.Result(**{**fields, **changes})


FIELDS = {
    "schema", "threat", "paper", "attacker", "setting", "attack", "metric", "per_seed", "median",
    "min", "max", "ci95", "baseline", "cap", "cap_formula", "expected", "passed", "parameters",
    "epsilon", "seconds", "versions",
}  # fmt: skip


def test_a_result_has_every_field_of_its_schema_and_json_can_carry_it(program: Program) -> None:
    made = result(program, parameters={"mu": np.float64(1.5), "worst": float("inf")})
    record = made.to_json()
    assert set(record) == FIELDS
    again = json.loads(json.dumps(record, allow_nan=False))
    assert (again["schema"], again["median"], again["passed"]) == ("securefl-threat/1", 0.2, True)
    assert again["parameters"] == {"mu": 1.5, "worst": "inf"}


def test_a_result_needs_three_seeds_and_a_cap_its_formula(program: Program) -> None:
    with pytest.raises(ValueError, match="at least 3 seeds"):
        result(program, per_seed=(0.1, 0.2))
    with pytest.raises(ValueError, match="needs the formula"):
        result(program, cap=0.5)


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"per_seed": (0.1, 0.2, 0.6)}, False),
        ({"per_seed": (0.1, 0.2, float("nan"))}, False),
        ({"cap": 0.25, "cap_formula": "c"}, False),
        ({"cap": 0.25, "cap_formula": "c", "ci95": (0.2, 0.3)}, True),
        ({"cap": 0.05, "cap_formula": "c", "ci95": (0.2, 0.22)}, False),
        ({"expected": None}, True),
    ],
)
def test_a_value_over_its_bound_or_cap_fails(
    program: Program, changes: dict[str, object], passed: bool
) -> None:
    assert result(program, **changes).passed is passed


def demo(program: Program, *results: object, needs: tuple[str, ...] = ()) -> object:
    kit = program("kit.result")
    doc = "Title.\n\nAdversary: a.\nCapability: b\n  and c.\nKnowledge: d.\n\nMore: text."
    outcome = kit.Outcome(results=results)
    return kit.Demo(name="t99", doc=doc, run=lambda run: outcome, needs=needs)


def test_the_exit_code_says_what_happened(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = result(program), result(program, per_seed=(0.1, 0.2, 0.6))
    out = ["--out", str(tmp_path)]
    assert demo(program, good).main(out) == 0
    assert json.loads((tmp_path / "t99" / "result.json").read_text())["passed"] is True
    assert demo(program, good, bad).main(out) == 1
    assert demo(program, good, needs=("no_such_module",)).main(out) == 2
    assert "no_such_module" in capsys.readouterr().err
    for wrong in (["--seeds", "0", "1"], ["--seeds", "0", "0", "1"], ["--no-such-flag"]):
        assert demo(program, good).main([*out, *wrong]) == 2
    with pytest.raises(ValueError, match="no demonstration"):
        demo(program).main(out)


def test_the_header_of_a_program_is_read_from_its_docstring(program: Program) -> None:
    header = demo(program, result(program)).header
    assert header == {"Adversary": "a.", "Capability": "b and c.", "Knowledge": "d."}


@pytest.mark.parametrize("name", NAMES)
def test_every_program_says_who_attacks_in_its_first_lines(program: Program, name: str) -> None:
    lines = (FOLDER / f"{name}.py").read_text().splitlines()[:12]
    for heading in ("Adversary:", "Capability:", "Knowledge:"):
        assert any(line.startswith(heading) for line in lines), heading


def test_no_page_or_program_calls_an_experiment_a_proof() -> None:
    """Words for an experiment: recovered, not recovered, cap."""
    page = Path(__file__).parents[2] / "docs" / "threat-models"
    for path in [*FOLDER.glob("t*.py"), *page.glob("*.md")]:
        text = path.read_text().lower()
        for word in ("is safe", "are safe", "impossible", "verified secure", "guaranteed private"):
            assert word not in text, f"{path.name}: {word}"
