"""The lints A01 to A22: a file that fires each, a minimal change that silences it, a page."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from pathlib import Path

import pytest

from accounting import Deployment, Gaussian, Poisson, Repeat, epsilon
from accounting.audit.lints import LINTS, Finding, Severity, findings
from accounting.audit.lints.noise import _telling_bits

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "deployments" / "lints"
CODES = [f"A{number:02}" for number in range(1, 23)]


@lru_cache(maxsize=64)
def found_in(code: str, name: str) -> tuple[Finding, ...]:
    return findings(load(code, name))


def of(code: str, name: str) -> list[Finding]:
    return [one for one in found_in(code, name) if one.code == code]


def load(code: str, name: str) -> Deployment:
    return Deployment.load(FOLDER / f"{code}-{name}.toml")


def expected(path: Path) -> tuple[str, list[str]]:
    """Verdict and codes that the first line of an example states."""
    line = path.read_text("utf-8").splitlines()[0]
    found = re.fullmatch(r"# expected: (PASS|FAIL|UNSUPPORTED)(?:, ([A-Z0-9 ]+))?", line)
    assert found is not None, line
    return found[1], (found[2] or "").split()


def test_there_is_a_lint_for_every_code_and_no_other() -> None:
    assert sorted(LINTS) == CODES


@pytest.mark.parametrize("code", CODES)
def test_a_lint_fires_on_its_example_with_evidence_and_a_fix(code: str) -> None:
    found = of(code, "fires")
    assert found
    for one in found:
        assert one.sentence.endswith((".", ":"))
        assert one.evidence
        assert all(what and value for what, value in one.evidence)
        assert one.fix


@pytest.mark.parametrize("code", CODES)
def test_a_minimal_change_silences_it(code: str) -> None:
    assert of(code, "silent") == []


@pytest.mark.parametrize("code", CODES)
def test_the_two_examples_of_a_lint_differ_in_few_lines(code: str) -> None:
    fires, silent = (
        (FOLDER / f"{code}-{name}.toml").read_text("utf-8").splitlines()[2:]
        for name in ("fires", "silent")
    )
    changed = set(fires) ^ set(silent)
    assert 1 <= len([line for line in changed if not line.startswith("title")]) <= 6


@pytest.mark.parametrize("code", CODES)
def test_nothing_else_of_severity_e_or_w_fires_on_either_example(code: str) -> None:
    for name in ("fires", "silent"):
        _, stated = expected(FOLDER / f"{code}-{name}.toml")
        found = {one.code for one in found_in(code, name) if one.severity is not Severity.I}
        assert found <= {code}
        assert (code in stated) == (name == "fires")


@pytest.mark.parametrize("code", CODES)
def test_every_lint_has_a_page_that_says_what_goes_wrong_how_much_and_how_to_fix_it(
    code: str,
) -> None:
    text = (ROOT / "docs" / "lints" / f"{code}.md").read_text("utf-8")
    assert text.startswith(f"# {code}: {LINTS[code].title}\n")
    for heading in ("What goes wrong", "By how much", "How to fix it"):
        assert f"## {heading}\n" in text
    assert re.search(r"\d", text.split("## By how much")[1].split("##")[0])
    (found, *_) = of(code, "fires")
    for what, shown in found.evidence:
        assert f"| {what} | {shown} |\n" in text
    index = (ROOT / "docs" / "lints" / "index.md").read_text("utf-8")
    assert f"[{code}]({code}.md)" in index


@pytest.mark.long
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_a_lint_example_has_its_stated_verdict(path: Path) -> None:
    verdict, codes = expected(path)
    report = Deployment.load(path).audit()
    assert report.verdict == verdict
    assert set(codes) <= {one.code for one in report.findings}


# --- evidence is computed for the deployment ------------------------------------------------------


def value(finding: Finding, start: str) -> float:
    (text,) = (shown for what, shown in finding.evidence if what.startswith(start))
    return float(text)


def test_the_lint_on_shuffling_shows_a_lower_bound_above_what_poisson_would_cost() -> None:
    (found,) = of("A01", "fires")
    poisson = value(found, "epsilon if it were Poisson")
    event = Repeat(event=Poisson(sample_rate=0.01, event=Gaussian(noise_multiplier=1.0)), count=200)
    tight = epsilon(event, 1e-6, adjacency="zero-out").value
    assert tight <= poisson * (1 + 1e-9) + 0.01
    assert poisson < value(found, "epsilon is at least") <= value(found, "epsilon is at most")


def test_the_pages_figures_of_shuffling_come_out(tmp_path: Path) -> None:
    text = (FOLDER / "A01-fires.toml").read_text("utf-8")
    for old, new in (
        ("rounds = 200", "rounds = 10_000"),
        ("size = 100_000", "size = 1_000_000"),
        ("cohort = 1000", "cohort = 100"),
        ("multiplier = 1.0", "multiplier = 0.4"),
    ):
        text = text.replace(old, new)
    (found,) = (one for one in findings(Deployment.parse(text)) if one.code == "A01")
    assert value(found, "epsilon is at least") == pytest.approx(14.45, abs=0.06)
    assert value(found, "epsilon if it were Poisson") == pytest.approx(5.34, abs=0.06)


def test_the_lint_on_shares_shows_that_lost_noise_costs_epsilon() -> None:
    (found,) = of("A04", "fires")
    values = [float(shown) for _, shown in found.evidence]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_noise_that_follows_a_poisson_cohort_is_not_amplified() -> None:
    text = (FOLDER / "A04-silent.toml").read_text("utf-8").replace('"fixed"', '"cohort"')
    (found,) = (one for one in findings(Deployment.parse(text)) if one.code == "A04")
    assert value(found, "epsilon that is proved") > 10 * value(found, "epsilon if the noise")


def test_the_classic_formula_is_wrong_beyond_epsilon_one() -> None:
    text = (FOLDER / "A09-fires.toml").read_text("utf-8")
    text = text.replace("epsilon = 4.0", "epsilon = 50.0").replace("delta = 1e-6", "delta = 1e-5")
    (found,) = (one for one in findings(Deployment.parse(text)) if one.code == "A09")
    assert value(found, "epsilon that one release") == pytest.approx(96.4, abs=0.1)


def test_the_last_bits_of_a_unit_normal_tell_as_often_as_the_sum_over_its_octaves() -> None:
    assert _telling_bits(1.0) == pytest.approx(0.257, abs=5e-4)
    assert _telling_bits(100.0) < _telling_bits(1.0) < _telling_bits(0.1) < 1


def test_the_adaptive_norm_needs_more_noise_on_the_sum() -> None:
    """Andrew et al. 2021, Theorem 1, with the default of one twentieth of the cohort."""
    text = (FOLDER / "A20-silent.toml").read_text("utf-8")
    text = text.replace("clip = { norm = 1.0 }", "clip = { norm = 1.0, adaptive = true }")
    (found,) = (one for one in findings(Deployment.parse(text)) if one.code == "A10")
    needed = float(found.evidence[1][1].split()[0])
    assert needed == pytest.approx((1 - (2 * 50) ** -2) ** -0.5, rel=1e-3)


def test_a_delta_below_the_population_is_silent_and_above_it_an_error() -> None:
    text = (FOLDER / "A12-silent.toml").read_text("utf-8")
    severities = []
    for delta in (1e-7, 5e-6, 1e-5):
        found = findings(Deployment.parse(text.replace("delta = 1e-6", f"delta = {delta}")))
        severities.append([one.severity.value for one in found if one.code == "A12"])
    assert severities == [[], ["W"], ["E"]]


def test_the_bits_of_a_modulus_hold_what_the_page_says() -> None:
    """2 (n c s + 4 std) with n = 1000, c s = 1000 and the noise of everybody."""
    (found,) = of("A16", "fires")
    noise = 1000.0 * math.sqrt(1000 / 650)
    assert dict(found.evidence)["bits needed for the inputs and four deviations of noise"] == str(
        math.floor(math.log2(2 * (1000 * 1000 + 4 * noise))) + 1
    )
