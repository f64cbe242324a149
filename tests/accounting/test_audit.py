"""The audit: numbers, verdicts, a real ledger, the reports and the commands."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import (
    Adjacency,
    Bound,
    BrokenChain,
    Deployment,
    Gaussian,
    Head,
    Ledger,
    LedgerHeader,
    NoiseShares,
    Poisson,
    Repeat,
    Unit,
    UnsupportedEvent,
    Verdict,
    calibrate,
    digest,
    epsilon,
)
from accounting.accountant import BoundKind, Method
from accounting.audit.bounds import Numbers, numbers
from accounting.audit.difference import difference
from accounting.audit.events import AS_PLANNED, WORST, Scenario, lower_event, total_event
from accounting.audit.lints import Finding, Severity, findings
from accounting.audit.lints.base import changed
from accounting.audit.outlook import attacker
from accounting.audit.planning import plan
from accounting.audit.report import AuditReport, audit, exit_code, judge
from accounting.audit.wording import down, up
from accounting.curves import rdp_at

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "deployments"
KEYBOARD = (EXAMPLES / "keyboard.toml").read_text("utf-8")
Run = Callable[..., str]


@pytest.fixture(scope="module")
def keyboard() -> AuditReport:
    return audit(Deployment.parse(KEYBOARD), command="python -m accounting audit keyboard.toml")


@pytest.fixture(scope="module")
def dropouts() -> AuditReport:
    return Deployment.load(EXAMPLES / "dropouts.toml").audit()


# --- the worked deployments -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "keyboard",
        "shuffled",
        "replace-one",
        "hospital",
        pytest.param("central", marks=pytest.mark.long),
        "dropouts",
    ],
)
def test_a_worked_deployment_has_its_stated_verdict_and_findings(
    name: str, request: pytest.FixtureRequest
) -> None:
    line = (EXAMPLES / f"{name}.toml").read_text("utf-8").splitlines()[0]
    verdict, _, codes = line.removeprefix("# expected: ").partition(", ")
    if name in {"keyboard", "dropouts"}:
        report = request.getfixturevalue(name)
    else:
        report = Deployment.load(EXAMPLES / f"{name}.toml").audit()
    assert report.verdict == verdict
    assert sorted({one.code for one in report.findings}) == codes.split()


def test_every_worked_deployment_is_among_them() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == {
        *("keyboard", "hospital", "central", "shuffled", "dropouts", "replace-one")
    }


def test_the_sample_file_costs_what_the_page_says(keyboard: AuditReport) -> None:
    assert keyboard.numbers is not None and keyboard.numbers.claim is not None
    assert keyboard.numbers.claim.value == pytest.approx(1.3168, abs=1e-3)
    assert keyboard.numbers.claim.order == 13
    planned = KEYBOARD.replace('at = "minimum"', 'at = "planned"')
    found = numbers(Deployment.parse(planned)).claim
    assert found is not None
    assert found.value == pytest.approx(2.2654, abs=1e-3)


def test_the_sample_with_noise_for_everybody_fails() -> None:
    report = Deployment.parse(KEYBOARD.replace('at = "minimum"', 'at = "planned"')).audit()
    assert report.verdict is Verdict.FAIL


def test_the_estimate_of_the_train_phase_is_that_of_the_page() -> None:
    alone = Deployment.parse(re.sub(r"\[\[release\]\].*?(?=\[tuning\])", "", KEYBOARD, flags=re.S))
    (row,) = (row for row in numbers(alone).rows if row.name == "gaussian-estimate")
    assert row.bound is not None
    assert row.bound.value == pytest.approx(0.363, abs=1e-3)
    assert row.bound.kind is BoundKind.ESTIMATE


def test_epsilon_by_dropout_is_that_of_the_page_within_the_discretisation(
    dropouts: AuditReport,
) -> None:
    found = {one.name[:3].strip(): one.epsilon for one in dropouts.changes if "%" in one.name}
    page = {"0%": 0.289, "10%": 0.331, "30%": 0.557, "50%": 1.334}
    assert found == pytest.approx(page, abs=1e-3)


# --- events ---------------------------------------------------------------------------------------


def test_only_the_noise_of_honest_survivors_counts() -> None:
    text = KEYBOARD.replace('at = "minimum"', 'at = "planned"').replace("skellam", "gaussian")
    event = total_event(Deployment.parse(text), WORST)
    (shares,) = (
        part.event.event  # type: ignore[attr-defined]  # repeat, poisson, shares
        for part in event.events  # type: ignore[attr-defined]  # a composition
        if isinstance(part.event, Poisson)
    )
    assert isinstance(shares, NoiseShares)
    assert (shares.planned, shares.survivors, shares.colluding) == (1000, 700, 50)


def test_without_dropout_and_collusion_shares_sized_for_the_fewest_bring_more_noise() -> None:
    deployment = Deployment.parse(KEYBOARD)
    some = total_event(deployment, Scenario(dropout=0.0, collusion=False))
    assert (
        epsilon(some, 1e-8, adjacency="zero-out", method="rdp").value
        < epsilon(total_event(deployment, WORST), 1e-8, adjacency="zero-out", method="rdp").value
    )


def test_the_fewest_eligible_decide_the_rate() -> None:
    text = (EXAMPLES / "central.toml").read_text("utf-8")
    event = total_event(Deployment.parse(text), WORST)
    assert isinstance(event, Repeat) and isinstance(event.event, Poisson)
    assert event.event.sample_rate == 2000 / 200_000


def test_colluders_who_leave_no_honest_noise_are_a_finding_and_cost_everything() -> None:
    text = KEYBOARD.replace("max_colluding = 0.05", "max_colluding = 0.75")
    report = Deployment.parse(text).audit()
    assert report.verdict is Verdict.UNSUPPORTED
    assert "A18" in {one.code for one in report.findings}
    assert report.numbers is not None and report.numbers.claim is not None
    assert report.numbers.claim.value == math.inf


@st.composite
def deployments(draw: st.DrawFn) -> Deployment:
    """Files of one phase with possible values, of every kind of sampling and noise."""
    kind = draw(st.sampled_from(["poisson", "fixed", "shuffle", "cyclic", "all"]))
    where = draw(st.sampled_from(["client-shares", "server", "client"]))
    noise = draw(st.sampled_from(["gaussian", "skellam", "discrete-gaussian", "laplace", "none"]))
    local = draw(st.sampled_from([None, {"rate": 0.5, "steps": 2}]))
    tree = {
        "schema": "securefl-deployment/1",
        "population": {
            "size": 1000,
            "unit": "record" if local else "user",
            "clients": 1000,
            "max_devices_per_unit": draw(st.sampled_from([1, 1, 1, 3])),
        },
        "guarantee": {
            "epsilon": 2.0,
            "delta": 1e-6,
            "adjacency": draw(st.sampled_from(["add-remove", "zero-out", "replace-one"])),
            "plan": draw(st.sampled_from(["fixed", "adaptive"])),
        },
        "trust": {
            "model": draw(st.sampled_from(["central", "local", "distributed"])),
            "max_colluding": draw(st.sampled_from([0.0, 0.1])),
        },
        "phase": [
            {
                "name": "p",
                "rounds": draw(st.integers(1, 12)),
                "dimension": 10,
                "sampling": {"kind": kind, "cohort": 100},
                "clip": {"norm": 1.0, "microbatch": draw(st.sampled_from([1, 4]))},
                "noise": {
                    "kind": noise,
                    "multiplier": draw(st.sampled_from([0.8, 2.0])),
                    "where": where,
                    "scale": 100.0,
                    "at": draw(st.sampled_from(["minimum", "planned"])),
                    "level": draw(st.sampled_from(["fixed", "cohort"])),
                },
                "aggregation": {"protocol": "secagg", "threshold": 60, "max_dropout": 0.4},
            }
        ],
    }
    if local:
        tree["phase"][0]["local"] = local  # type: ignore[index]  # a list of tables
    return Deployment.parse_tree(tree)


@given(deployments())
def test_lost_noise_never_helps_in_any_deployment(
    deployment: Deployment,
) -> None:
    event = lower_event(deployment, deployment.phase[0])
    assert event is None or deployment.phase[0].noise.kind == "gaussian"
    order, adjacency = 4.0, Adjacency(deployment.guarantee.adjacency or "")
    try:
        worst, planned = (
            rdp_at(total_event(deployment, scenario), order, adjacency)
            for scenario in (WORST, AS_PLANNED)
        )
    except UnsupportedEvent:
        return
    assert planned <= worst * (1 + 1e-9)


@pytest.mark.long
@pytest.mark.timeout(1800)  # about a second of processor time for each example
@settings(max_examples=60)
@given(deployments())
def test_a_lower_bound_is_never_above_the_upper_one_and_every_deployment_gets_a_verdict(
    deployment: Deployment,
) -> None:
    found, values = findings(deployment), numbers(deployment)
    if values.lower is not None and values.claim is not None:
        assert values.lower.value <= values.claim.value * (1 + 1e-9)
    judge(deployment, found, values, None)


# --- the verdict ----------------------------------------------------------------------------------


def bound(value: float, kind: BoundKind = BoundKind.UPPER) -> Bound:
    return Bound(
        value=value, kind=kind, method=Method.RDP, delta=1e-8, adjacency=Adjacency.ZERO_OUT
    )


def verdict_of(
    *,
    claim: float | None = 1.0,
    lower: float | None = None,
    bracketed: bool = False,
    severities: str = "",
    measured: tuple[float, float] | None = None,
) -> Verdict:
    text = KEYBOARD
    if measured is not None:
        text += (
            f'\n[[empirical]]\nname = "audit"\nlower = {measured[0]}\ndelta = {measured[1]}\n'
            "confidence = 0.95\n"
        )
    found = tuple(
        Finding(
            code="A01",
            severity=Severity(one),
            where="",
            sentence="",
            evidence=(),
            fix="",
        )
        for one in severities
    )
    values = Numbers(
        rows=(),
        claim=None if claim is None else bound(claim),
        lower=None if lower is None else bound(lower, BoundKind.LOWER),
        bracketed=bracketed,
    )
    return judge(Deployment.parse(text), found, values, None).verdict


def test_the_first_rule_that_applies_gives_the_verdict() -> None:
    assert verdict_of() is Verdict.PASS
    assert verdict_of(severities="WI") is Verdict.PASS
    assert verdict_of(claim=2.5) is Verdict.FAIL
    assert verdict_of(claim=2.5, severities="E") is Verdict.UNSUPPORTED
    assert verdict_of(claim=1.0, severities="E") is Verdict.UNSUPPORTED
    assert verdict_of(claim=5.0, lower=2.5, severities="E") is Verdict.FAIL
    assert verdict_of(claim=2.5, lower=1.0, bracketed=True) is Verdict.UNSUPPORTED
    assert verdict_of(claim=1.5, lower=1.0, bracketed=True) is Verdict.PASS
    assert verdict_of(claim=None) is Verdict.UNSUPPORTED
    assert verdict_of(claim=math.inf) is Verdict.FAIL


def test_a_measured_bound_contradicts_only_at_a_delta_that_the_promise_covers() -> None:
    assert verdict_of(measured=(2.5, 1e-8)) is Verdict.FAIL
    assert verdict_of(measured=(2.5, 1e-5)) is Verdict.FAIL
    assert verdict_of(measured=(2.5, 1e-12)) is Verdict.PASS
    assert verdict_of(measured=(1.5, 1e-5)) is Verdict.PASS


def test_without_an_adjacency_nothing_is_contradicted() -> None:
    text = (EXAMPLES / "replace-one.toml").read_text("utf-8")
    report = Deployment.parse(text.replace('adjacency = "replace-one"\n', "")).audit()
    assert report.verdict is Verdict.UNSUPPORTED
    assert report.numbers is not None and report.numbers.lower is None


def test_what_is_exact_without_amplification_is_no_exact_value_of_a_shuffle() -> None:
    found = numbers(Deployment.load(EXAMPLES / "shuffled.toml"))
    assert {row.bound.kind for row in found.rows if row.bound is not None} == {
        *(BoundKind.UPPER, BoundKind.LOWER)
    }
    assert found.bracketed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rounds = 200\n", 'rounds = 200\nreleased = "final model"\n'),
        ('where = "server"', 'where = "client"'),
        ("[[phase]]", '[tuning]\ndata = "private"\npoisson_mean = 3.0\n\n[[phase]]'),
        (
            '[[phase]]\nname = "train"\n',
            '[[phase]]\nname = "train"\nlocal = { rate = 1.0, steps = 3 }\n',
        ),
    ],
    ids=["only the end", "noise of every client", "the best of several runs", "local steps"],
)
def test_a_lower_bound_is_given_only_for_somebody_who_sees_every_noisy_sum(
    old: str, new: str
) -> None:
    text = (EXAMPLES / "lints" / "A02-silent.toml").read_text("utf-8")
    text = text.replace('unit = "user"', 'unit = "record"\nclients = 100_000')
    phase = Deployment.parse(text).phase[0]
    assert lower_event(Deployment.parse(text), phase) is not None
    assert old in text
    other = Deployment.parse(text.replace(old, new))
    assert lower_event(other, other.phase[0]) is None


@pytest.mark.parametrize("kind", ["skellam", "discrete-gaussian", "laplace"])
def test_shares_of_other_noise_than_gaussian_have_no_lower_bound(kind: str) -> None:
    text = KEYBOARD.replace("skellam", kind).replace('at = "minimum"', 'at = "planned"')
    deployment = Deployment.parse(text)
    assert lower_event(deployment, deployment.phase[0]) is None
    assert numbers(deployment).lower is None


def test_an_adaptive_plan_is_never_bounded_by_a_distribution() -> None:
    text = (EXAMPLES / "hospital.toml").read_text("utf-8")
    adaptive = numbers(Deployment.parse(text))
    fixed = numbers(Deployment.parse(text.replace('plan = "adaptive"', 'plan = "fixed"')))
    assert adaptive.claim is not None and fixed.claim is not None
    assert adaptive.claim.method is Method.RDP
    assert fixed.claim.method is Method.PLD
    assert fixed.claim.value < adaptive.claim.value <= 8.0


def test_an_attacker_of_an_adaptive_plan_is_bounded_at_the_declared_order_only() -> None:
    text = (EXAMPLES / "hospital.toml").read_text("utf-8")
    adaptive = Deployment.parse(text)
    fixed = Deployment.parse(text.replace('plan = "adaptive"', 'plan = "fixed"'))
    claim = numbers(adaptive).claim
    assert claim is not None
    weak, strong = attacker(adaptive, claim), attacker(fixed, claim)
    assert strong.true_positives < weak.true_positives <= 1
    assert strong.advantage <= weak.advantage <= 1


def test_an_attackers_limits_hold_for_the_exact_gaussian() -> None:
    """Its trade-off is known: TPR = Phi(mu - Phi^-1(1 - FPR)), advantage 2 Phi(mu / 2) - 1."""
    from scipy.stats import norm

    text = (EXAMPLES / "lints" / "A09-silent.toml").read_text("utf-8")
    deployment = Deployment.parse(text)
    claim = numbers(deployment).claim
    assert claim is not None
    found, mu = attacker(deployment, claim), 1 / 1.6
    assert norm.cdf(mu - norm.ppf(1 - 1e-3)) <= found.true_positives <= 0.1
    assert 2 * norm.cdf(mu / 2) - 1 <= found.advantage <= 0.7


def test_exit_codes_follow_the_verdict_and_warnings_count_only_if_asked(
    keyboard: AuditReport,
) -> None:
    warning = Finding(code="A13", severity=Severity.W, where="", sentence="", evidence=(), fix="")
    warned = replace(keyboard, findings=(warning,))
    assert exit_code(keyboard) == exit_code(keyboard, fail_on=Severity.W) == 0
    assert (exit_code(warned), exit_code(warned, fail_on=Severity.W)) == (0, 1)
    for verdict, code in ((Verdict.FAIL, 1), (Verdict.UNSUPPORTED, 3)):
        judged = replace(warned, judgement=replace(warned.judgement, verdict=verdict))
        assert exit_code(judged) == exit_code(judged, fail_on=Severity.W) == code


# --- a ledger -------------------------------------------------------------------------------------


@pytest.fixture
def hospital() -> Deployment:
    return Deployment.load(EXAMPLES / "hospital.toml")


@pytest.fixture
def make_run(tmp_path: Path, evidence: dict[str, object]) -> Callable[..., Path]:
    """A ledger of so many rounds of the hospital's plan."""

    def make(
        rounds: int,
        *,
        order: float = 3.473148148148148,
        target: float = 8.0,
        delta: float = 1e-5,
        unit: Unit = Unit.RECORD,
        adjacency: Adjacency = Adjacency.ZERO_OUT,
    ) -> Path:
        event = Repeat(
            event=Poisson(sample_rate=0.178, event=Gaussian(noise_multiplier=1.4672345410561085)),
            count=8,
        )
        header = LedgerHeader(
            population="hospital",
            unit=unit,
            adjacency=adjacency,
            epsilon=target,
            delta=delta,
            order=order,
            plan=digest(event),
        )
        path = tmp_path / f"{rounds}-{target}.ledger"
        with Ledger.create(path, header) as ledger:
            for index in range(rounds):
                ticket = ledger.reserve(event, round=index, key=str(index))
                ledger.settle(ticket, event, evidence)
        return path

    return make


def test_a_ledger_within_its_plan_passes_and_shows_what_was_spent(
    hospital: Deployment, make_run: Callable[..., Path]
) -> None:
    report = hospital.audit(make_run(10))
    assert report.verdict is Verdict.PASS
    assert report.ledger is not None
    assert (report.ledger.settled, report.ledger.open) == (10, 0)
    assert report.ledger.exhausted_at == 14
    values = [point.epsilon for point in report.ledger.points]
    assert values == sorted(values) and len(values) == 10
    # What ten of fourteen rounds cost at the ledger's order, recomputed from the events alone.
    assert report.ledger.spent.value < 8.0
    assert dict(report.facts)["ledger head"] == str(report.ledger.head)


def test_an_export_of_a_ledger_gives_the_same_report_and_a_changed_one_none(
    hospital: Deployment, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    path, copy = make_run(10), tmp_path / "run.jsonl"
    with Ledger.open(path) as ledger:
        head = ledger.export(copy)
    ours, theirs = hospital.audit(path).ledger, hospital.audit(copy, expect_head=head).ledger
    assert ours is not None and theirs is not None
    assert replace(theirs, path=ours.path) == ours
    text = copy.read_text("utf-8")
    copy.write_text(text.replace('"count":8', '"count":7', 1), "utf-8")
    with pytest.raises(BrokenChain):
        hospital.audit(copy)


def test_a_ledger_that_spent_more_than_is_promised_fails(
    hospital: Deployment, make_run: Callable[..., Path]
) -> None:
    report = hospital.audit(make_run(20, target=12.0))
    assert report.verdict is Verdict.FAIL
    assert "overspent" in report.judgement.reason
    assert report.ledger is not None
    assert any("would admit more" in remark for remark in report.ledger.remarks)
    assert any("20 releases were settled, 14" in remark for remark in report.ledger.remarks)


@pytest.mark.parametrize(
    ("other", "code"),
    [({"adjacency": Adjacency.ADD_REMOVE}, "A02"), ({"unit": Unit.USER}, "A14")],
    ids=["adjacency", "unit"],
)
def test_a_ledger_of_another_promise_supports_none_and_contradicts_none(
    hospital: Deployment, make_run: Callable[..., Path], other: dict[str, Any], code: str
) -> None:
    for rounds, target in ((1, 8.0), (20, 12.0)):
        report = hospital.audit(make_run(rounds, target=target, **other))
        assert (code, Severity.E, "ledger") in {
            (one.code, one.severity, one.where) for one in report.findings
        }
        assert report.verdict is Verdict.UNSUPPORTED


def test_a_ledger_is_compared_at_the_delta_of_the_file(
    hospital: Deployment, make_run: Callable[..., Path]
) -> None:
    # More than 8 at the ledger's delta of 1e-7, less at the promised one of 1e-5.
    report = hospital.audit(make_run(10, target=12.0, delta=1e-7))
    assert report.ledger is not None
    assert report.ledger.spent.value > 8.0
    assert report.verdict is Verdict.PASS


def test_a_plan_that_adapts_is_charged_at_the_declared_order(
    hospital: Deployment, make_run: Callable[..., Path]
) -> None:
    path = make_run(10, order=8.0, target=20.0)
    fixed = changed(hospital, "guarantee.plan", "fixed")
    assert fixed.audit(path).verdict is Verdict.PASS
    assert hospital.audit(path).verdict is Verdict.FAIL


def test_settling_more_honest_noise_than_the_evidence_has_is_a_finding(
    tmp_path: Path, evidence: dict[str, object]
) -> None:
    claimed = NoiseShares(event=Gaussian(noise_multiplier=20.0), planned=10, survivors=10)
    header = LedgerHeader(
        population="keyboard",
        unit=Unit.USER,
        adjacency=Adjacency.ZERO_OUT,
        epsilon=2.0,
        delta=1e-8,
        order=16.0,
        plan=digest(claimed),
    )
    with Ledger.create(tmp_path / "a.ledger", header) as ledger:
        ticket = ledger.reserve(claimed, round=0, key="0")
        ledger.settle(ticket, claimed, evidence)  # nine survivors, one of them assumed to collude
    report = Deployment.parse(KEYBOARD).audit(tmp_path / "a.ledger")
    (found,) = (one for one in report.findings if one.where == "ledger")
    assert (found.code, found.severity) == ("A04", Severity.E)
    assert report.verdict is Verdict.UNSUPPORTED


def test_a_ledger_of_injected_noise_supports_no_claim(
    hospital: Deployment, make_run: Callable[..., Path]
) -> None:
    from accounting import NoteSubject

    path = make_run(1)
    with Ledger.open(path) as ledger:
        ledger.note("a test", subject=NoteSubject.INJECTED_RANDOMNESS)
    report = hospital.audit(path)
    assert ("A13", "ledger") in {(one.code, one.where) for one in report.findings}
    assert report.verdict is Verdict.UNSUPPORTED


@pytest.mark.data
def test_the_run_of_the_preset_is_within_the_hospitals_promise(
    hospital: Deployment, tmp_path: Path, data_dir: Path
) -> None:
    from securefl.config import load_preset
    from securefl.simulation.sweep import run_sweep

    settings = load_preset(
        "heart-disease", ['sweep.modes=["local-dp"]', "sweep.epsilons=[8.0]", "sweep.seeds=[0]"]
    )
    run_sweep(settings, tmp_path / "run", data_dir=data_dir)
    ledger = tmp_path / "run" / "local-dp-8-s0" / "ledgers" / "client-0.sqlite"
    report = hospital.audit(ledger)
    assert report.verdict is Verdict.PASS
    assert report.ledger is not None
    assert report.ledger.settled == 14
    assert report.ledger.remarks == ()
    assert report.ledger.spent.value == pytest.approx(8.0, abs=1e-3)


def test_the_tutorial_shows_what_the_audits_say(
    keyboard: AuditReport, dropouts: AuditReport
) -> None:
    text = (ROOT / "docs" / "tutorial" / "audit-a-deployment.md").read_text("utf-8")
    shown = dict(
        re.findall(
            r"audit examples/deployments/([\w-]+)\.toml[^\n]*\n((?:PASS|FAIL)[^\n]*)\n", text
        )
    )
    assert set(shown) == {"keyboard", "dropouts", "shuffled", "replace-one"}
    reports = {"keyboard": keyboard, "dropouts": dropouts}
    for name, line in shown.items():
        report = reports.get(name) or Deployment.load(EXAMPLES / f"{name}.toml").audit()
        assert line == f"{report.verdict.value}: {report.judgement.reason}."


# --- reports --------------------------------------------------------------------------------------


def test_the_json_has_everything_and_no_infinity(keyboard: AuditReport) -> None:
    body = json.loads(keyboard.to_json())
    assert body["schema"] == "securefl-audit/1"
    assert body["verdict"] == "PASS"
    assert body["epsilon"]["order"] == 13
    assert {row["name"] for row in body["numbers"]} == {
        *("rdp", "pld", "gaussian-estimate", "lower", "planned", "unamplified", "server")
    }
    assert body["timeline"]["exhausted_at"] > 2000
    assert 1e-3 < body["attacker"]["max_true_positive_rate"] < 0.01
    assert "declaration" in body["note"]
    assert "Infinity" not in keyboard.to_json()


class Page(HTMLParser):
    """Tags, attributes and whether every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_has_its_plots_and_loads_nothing(dropouts: AuditReport) -> None:
    text = dropouts.to_html()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.links == []
    assert "script" not in page.tags
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|url\(|@import", text)
    for title in ("Epsilon by round", "Epsilon by dropout", "Epsilon by Rényi order"):
        assert f'aria-label="{title}' in text
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S).lower().split()


def test_names_in_a_file_stay_text_in_both_reports() -> None:
    evil = "<script>alert(1)</script> | **x** [y](http://z)"
    text = (EXAMPLES / "replace-one.toml").read_text("utf-8")
    text = text.replace('name = "count"', f'name = "{evil}"')
    text = text.replace('title = "', f'title = "{evil}')
    report = Deployment.parse(text).audit()
    page = Page()
    page.feed(report.to_html())
    assert "script" not in page.tags
    markdown = report.to_markdown()
    assert not re.search(r"(?<!\\)<script", markdown)
    assert not re.search(r"(?<!\\)\]\(", markdown)


def test_upper_bounds_are_rounded_up_and_lower_bounds_down() -> None:
    assert (up(1.3160001), down(1.3169999)) == ("1.32", "1.31")
    assert (up(2.0), down(2.0)) == ("2", "2")
    assert (up(0.3), down(0.3)) == ("0.3", "0.3")
    assert up(math.inf) == "infinite"
    assert up(99.99) == "100"


def test_the_reports_say_that_the_file_is_a_declaration(keyboard: AuditReport) -> None:
    assert "judges a declaration" in keyboard.to_markdown()
    assert "judges a declaration" in keyboard.to_html()
    assert "python -m accounting audit keyboard.toml" in keyboard.to_markdown()


def test_the_claim_names_who_what_and_under_which_assumptions(keyboard: AuditReport) -> None:
    for words in (
        "For each user of 1,000,000",
        "(2, 1e-08)-differential privacy",
        "contributes zero instead",
        "at least 700 of 1,000 clients stay",
        "at most 5 % of them (50) collude",
        "but not who took part",
    ):
        assert words in keyboard.claim


def test_the_server_that_draws_the_cohort_gets_no_amplification(keyboard: AuditReport) -> None:
    assert keyboard.numbers is not None
    rows = {row.name: row.bound for row in keyboard.numbers.rows}
    assert rows["server"] == rows["unamplified"]
    assert rows["rdp"] is not None and rows["server"] is not None
    assert rows["server"].value > 100 * rows["rdp"].value
    secret = KEYBOARD.replace("cohort = 1000 }", 'cohort = 1000, coins = "secret" }')
    found = {row.name: row.bound for row in numbers(Deployment.parse(secret)).rows}
    assert found["server"] == rows["rdp"]


# --- plan and diff --------------------------------------------------------------------------------


def test_a_plan_meets_the_promise_under_the_stated_dropout_and_collusion() -> None:
    planned = KEYBOARD.replace('at = "minimum"', 'at = "planned"')
    deployment = Deployment.parse(planned)
    answers = {one.over.value: one for one in plan(deployment)}
    assert set(answers) == {"noise_multiplier", "cohort", "steps"}
    noise = answers["noise_multiplier"]
    assert noise.value is not None and noise.value > 1.0
    again = Deployment.parse(planned.replace("multiplier = 1.0", f"multiplier = {noise.value!r}"))
    found = numbers(again).claim
    assert found is not None
    assert 0.999 * 2.0 <= found.value <= 2.0
    assert answers["cohort"].value is not None and answers["cohort"].value < 1000


def test_the_noise_of_a_plan_is_that_of_calibrating_the_same_release() -> None:
    text = (EXAMPLES / "lints" / "A02-silent.toml").read_text("utf-8")
    (noise, *_) = plan(Deployment.parse(text))
    direct = calibrate(
        lambda z: Repeat(
            event=Poisson(sample_rate=0.01, event=Gaussian(noise_multiplier=z)), count=200
        ),
        *(4.0, 1e-6),
        adjacency="add-remove",
    )
    assert noise.value == pytest.approx(direct.value, rel=1e-9)


def test_a_difference_names_every_changed_key_and_what_it_costs_by_itself() -> None:
    other = KEYBOARD.replace('at = "minimum"', 'at = "planned"').replace("2000", "1000")
    found = difference(Deployment.parse(KEYBOARD), Deployment.parse(other))
    alone = {one.key: one.alone.value for one in found.changes if one.alone is not None}
    assert set(alone) == {"phase[train].rounds", "phase[train].noise.at"}
    assert alone["phase[train].noise.at"] == pytest.approx(2.2654, abs=1e-3)
    assert alone["phase[train].rounds"] < 1.3168
    assert (found.first.verdict, found.second.verdict) == (Verdict.PASS, Verdict.FAIL)


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, checks its exit code and gives its standard output."""
    from accounting.cli import app

    def call(*arguments: str | Path, code: int = 0) -> str:
        with pytest.raises(SystemExit) as caught:
            app([str(one) for one in arguments])
        found = capsys.readouterr()
        assert caught.value.code == code, found
        assert "Traceback" not in found.out + found.err
        return found.out + found.err

    return call


def test_audit_writes_every_form_of_the_report(run: Run, tmp_path: Path) -> None:
    html, markdown = tmp_path / "a.html", tmp_path / "a.md"
    out = run(
        *("audit", EXAMPLES / "keyboard.toml", "--json", "--html", html, "--markdown", markdown)
    )
    assert json.loads(out)["verdict"] == "PASS"
    assert html.read_text("utf-8").startswith("<!doctype html>")
    assert markdown.read_text("utf-8").startswith("# Keyboard, cross-device: PASS")


def test_audit_of_a_false_claim_exits_1_and_says_why(run: Run) -> None:
    out = run("audit", EXAMPLES / "replace-one.toml", code=1)
    assert out.startswith("FAIL: the true epsilon is at least")
    assert "A02 (E) count" in out


def test_fail_on_takes_a_severity_and_nothing_else(run: Run) -> None:
    assert "severity must be one of" in run(
        *("audit", EXAMPLES / "keyboard.toml", "--fail-on", "X"), code=2
    )


def test_a_broken_and_a_rolled_back_ledger_exit_4(run: Run, make_run: Callable[..., Path]) -> None:
    path = make_run(2)
    file = EXAMPLES / "hospital.toml"
    missing = Head(sequence=99, hash=bytes(32))
    run("audit", file, "--ledger", path, "--expect-head", missing, code=4)
    body = path.read_bytes()
    place = body.index(b"reserve")
    path.write_bytes(body[:place] + b"R" + body[place + 1 :])
    run("audit", file, "--ledger", path, code=4)


def test_what_is_no_ledger_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    file = EXAMPLES / "hospital.toml"
    run("audit", file, "--ledger", tmp_path / "nothing", code=2)
    run("audit", file, "--ledger", tmp_path, code=2)
    run("audit", file, "--html", tmp_path / "no" / "folder.html", code=2)
    run("audit", file, "--expect-head", "1:" + "0" * 64, code=2)


def test_plan_and_diff_print_text_and_json(run: Run) -> None:
    keyboard, dropouts = EXAMPLES / "keyboard.toml", EXAMPLES / "lints" / "A04-silent.toml"
    assert "phase[train].noise.multiplier (now 1): at least 0.82" in run("plan", keyboard)
    answers = json.loads(run("plan", keyboard, "--json", "--epsilon", "1.5"))
    assert [one["over"] for one in answers] == ["noise_multiplier", "cohort", "steps"]
    assert "phase[train].rounds: 2000 -> 200" in run("diff", keyboard, dropouts)
    assert json.loads(run("diff", keyboard, keyboard, "--json"))["changes"] == []
    run("plan", keyboard, "--phase", "nothing", code=2)


def test_securefl_audit_is_the_same_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from securefl.cli import main

    monkeypatch.setattr(
        "sys.argv", ["securefl", "audit", str(EXAMPLES / "replace-one.toml"), "--json"]
    )
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "FAIL"
