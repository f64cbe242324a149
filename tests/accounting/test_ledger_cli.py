"""``python -m accounting ledger`` and ``statement``: what they print, and what exit codes say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting import (
    Adjacency,
    BandedMF,
    Compose,
    Event,
    FixedSize,
    Gaussian,
    Head,
    Hierarchical,
    InvalidParameter,
    Ledger,
    LedgerHeader,
    NoiseShares,
    NoteSubject,
    Poisson,
    RDPAccountant,
    Repeat,
    Unit,
    client_statement,
)
from accounting.cli import app
from accounting.statement import without_client_sampling

pytestmark = pytest.mark.filterwarnings("ignore::accounting.errors.OrderAtEdgeWarning")
Run = Callable[..., str]
Evid = dict[str, Any]
STEP = Gaussian(noise_multiplier=10.0)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, checks its exit code and gives its output."""

    def call(*arguments: str | Path, code: int = 0, err: str = "") -> str:
        with pytest.raises(SystemExit) as caught:
            app([str(a) for a in arguments])
        found = capsys.readouterr()
        assert caught.value.code == code, found
        assert "Traceback" not in found.err + found.out
        assert err in found.err + found.out
        return found.out

    return call


@pytest.fixture
def file(ledger: Ledger, release: Gaussian, evidence: Evid) -> Path:
    """A closed ledger: one round settled, one refunded, one open."""
    ledger.settle(ledger.reserve(release, round=0, key="a"), STEP, evidence | {"modulus": 2**32})
    ledger.abort(ledger.reserve(release, round=1, key="b"), opened=False)
    ledger.note("operator: [red]resumed[/red]")
    ledger.reserve(release, round=2, key="c")
    ledger.close()
    return ledger.path


@pytest.fixture
def text(file: Path) -> Path:
    with Ledger.open(file) as ledger:
        ledger.export(file.with_suffix(".jsonl"))
    return file.with_suffix(".jsonl")


def head_of(path: Path) -> str:
    return str(Ledger.verify(path).head)


@pytest.mark.parametrize("form", ["file", "text"])
def test_verify_tells_what_it_found_in_either_form(
    form: str, run: Run, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(form)
    out = run("ledger", "verify", path, "--expect-head", head_of(path))
    assert "7 entries, unbroken" in out
    assert f"contains {head_of(path)}" in out
    assert "open reservations: 1" in out
    assert "not checked against a head" in run("ledger", "verify", path)
    body = json.loads(run("ledger", "verify", path, "--json"))
    found = Ledger.verify(path)
    assert body["ok"] is True
    assert (body["entries"], body["head"]) == (7, str(found.head))
    assert (body["spent"], body["reserved"]) == (found.balance.spent, found.balance.reserved)
    assert body["epsilon"]["epsilon"] == found.epsilon.value
    assert body["open"] == ["c"]


@pytest.mark.parametrize("form", ["file", "text"])
@pytest.mark.parametrize("command", ["verify", "show"])
def test_a_changed_or_rolled_back_ledger_exits_with_4(
    form: str, command: str, run: Run, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(form)
    other = Head(sequence=3, hash=bytes(32))
    run("ledger", command, path, "--expect-head", other, code=4, err="does not contain")
    raw = path.read_bytes()
    assert raw.count(b"resumed") == 1
    path.write_bytes(raw.replace(b"resumed", b"RESUMED"))
    run("ledger", command, path, code=4, err="entry 5")
    body = json.loads(run("ledger", command, path, "--json", code=4))
    assert (body["ok"], body["error"], body["entry"]) == (False, "BrokenChain", 5)


def test_an_old_copy_is_found_by_the_head_that_was_kept(file: Path, run: Run) -> None:
    copy = file.with_name("copy.ledger")
    shutil.copy(file, copy)
    with Ledger.open(file) as ledger:
        ledger.note("later")
    run("ledger", "verify", copy)
    out = run("ledger", "verify", copy, "--expect-head", head_of(file), "--json", code=4)
    assert json.loads(out)["error"] == "LedgerRolledBack"


def test_a_torn_export_exits_with_4_unless_it_is_asked_for(text: Path, run: Run) -> None:
    text.write_bytes(text.read_bytes()[:-30])
    run("ledger", "verify", text, code=4, err="last line")
    run("ledger", "verify", text, "--allow-torn", err="cut off")
    head = str(Ledger.verify(text, allow_torn=True).head)
    run("ledger", "verify", text, "--allow-torn", "--expect-head", head, code=2, err="exclude")


@pytest.mark.parametrize("command", ["verify", "show", "recover", "export"])
def test_what_is_no_ledger_exits_with_2(command: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(os.urandom(1000))
    (tmp_path / "prose").write_text("this is no ledger\n" * 100)
    for name in ("missing", "empty", "binary", "prose", "."):
        run("ledger", command, tmp_path / name, code=2, err="error:")
        out = run("ledger", command, tmp_path / name, "--json", code=2)
        assert json.loads(out)["ok"] is False


def test_a_malformed_head_exits_with_2(file: Path, run: Run) -> None:
    for head in ("", "7", "7:abc", "x:" + "0" * 64, "-1:" + "0" * 64, "1:" + "G" * 64):
        run("ledger", "verify", file, f"--expect-head={head}", code=2, err="head")


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(data=st.data())
def test_no_mutation_of_either_form_gives_a_traceback(
    data: st.DataObject, file: Path, text: Path, run: Run
) -> None:
    path = data.draw(st.sampled_from([file, text]))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=30))
    broken = path.with_name("mutated")
    for leftover in path.parent.glob("mutated*"):
        leftover.unlink(missing_ok=True)
    broken.write_bytes(bytes(raw))
    for command in (["ledger", "verify"], ["ledger", "show"], ["statement"]):
        with pytest.raises(SystemExit) as caught:
            app([*command, str(broken), "--json"])
        assert caught.value.code in (0, 2, 4)


def test_show_lists_the_entries_as_they_are(file: Path, run: Run) -> None:
    out = run("ledger", "show", file)
    assert "tests: one record, zero-out adjacency" in out
    assert "9 of 10, 1 assumed colluding, secagg/1" in out
    assert "nothing was seen: refunded" in out
    assert "[red]resumed[/red]" in out
    body = json.loads(run("ledger", "show", file, "--json", "--last", "4"))
    assert [one["kind"] for one in body["log"]] == ["reserve", "abort", "note", "reserve"]
    everything = json.loads(run("ledger", "show", file, "--json"))["log"]
    assert everything[2]["evidence"]["modulus"] == 2**32
    assert everything[3]["event"] == {"type": "gaussian", "noise_multiplier": 10.0}


def test_export_writes_what_verify_reads(file: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    body = json.loads(run("ledger", "export", file, out, "--json"))
    assert body["head"] == head_of(out) == head_of(file)
    assert run("ledger", "export", file) == out.read_text("utf-8")
    run("ledger", "export", file, out, code=2, err="exists")
    run("ledger", "export", out, tmp_path / "y.jsonl", code=2, err="can only be read")
    run("ledger", "export", file, "--json", code=2, err="OUT")
    run("ledger", "export", file, tmp_path / "z", "--expect-head", "9:" + "0" * 64, code=4)
    assert not (tmp_path / "z").exists()


def test_recover_settles_what_is_open_and_says_so(file: Path, text: Path, run: Run) -> None:
    run("ledger", "recover", text, code=2, err="can only be read")
    body = json.loads(run("ledger", "recover", file, "--json"))
    assert [one["key"] for one in body["settled"]] == ["c"]
    assert body["head"] == head_of(file)
    assert Ledger.verify(file).open_tickets == ()
    assert "at their price: 0" in run("ledger", "recover", file)


def test_injected_randomness_and_overspending_are_said(file: Path, run: Run) -> None:
    with Ledger.open(file) as ledger:
        ledger.note("seeded", subject=NoteSubject.INJECTED_RANDOMNESS)
        lost = Head(sequence=99, hash=bytes(32))
        ledger.acknowledge_loss(lost, event=STEP, rounds=50, reason="disk")
    run("ledger", "verify", file, err="no claim may be made")
    run("ledger", "verify", file, err="more was charged than declared")


def test_the_module_runs_as_a_program(text: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "accounting", "ledger", "verify", str(text), "--json"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert json.loads(done.stdout)["ok"] is True


# --- the statement of one client ------------------------------------------------------------------


@pytest.fixture
def client_file(header: LedgerHeader, evidence: Evid, tmp_path: Path) -> Path:
    """A client whose ledger charged amplified prices for three rounds."""
    sampled = Poisson(sample_rate=0.01, event=STEP)
    own = replace(header, unit=Unit.CLIENT, population="client 7")
    with Ledger.create(tmp_path / "own.ledger", own) as ledger:
        for index in range(3):
            ticket = ledger.reserve(sampled, round=index, key=str(index))
            ledger.settle(ticket, sampled, evidence)
    return tmp_path / "own.ledger"


def test_a_client_is_told_its_own_value_without_sampling(client_file: Path, run: Run) -> None:
    made = client_statement(Ledger.verify(client_file))
    expected = RDPAccountant(adjacency=Adjacency.ZERO_OUT)
    expected.compose(STEP, 3)
    assert made.unamplified == expected.epsilon(1e-5)
    assert made.unamplified.value > made.epsilon.value
    assert made.participations == 3
    assert made.within_budget
    out = run("statement", client_file)
    assert "Statement for client 7 alone" in out
    assert "releases that used its data: 3" in out
    assert "counting on sampling" in out
    assert "has room for that" in out


def test_a_client_whose_budget_only_sampling_keeps_is_told(
    header: LedgerHeader, evidence: Evid, tmp_path: Path, run: Run
) -> None:
    sampled = Poisson(sample_rate=0.01, event=Gaussian(noise_multiplier=2.0))
    own = replace(header, unit=Unit.USER)
    with Ledger.create(tmp_path / "own.ledger", own) as ledger:
        ledger.settle(ledger.reserve(sampled, round=0, key="a"), sampled, evidence)
    assert not client_statement(Ledger.verify(tmp_path / "own.ledger")).within_budget
    run("statement", tmp_path / "own.ledger", err="does NOT cover")
    assert json.loads(run("statement", tmp_path / "own.ledger", "--json"))["within_budget"] is False


def test_the_populations_value_and_head_stand_beside_it(
    client_file: Path, file: Path, text: Path, run: Run
) -> None:
    for form in (file, text):
        body = json.loads(
            run(
                *("statement", client_file, "--expect-head", head_of(client_file)),
                *("--population", form, "--population-head", head_of(form), "--json"),
            )
        )
        assert body["population"]["head"] == head_of(file)
        assert body["population"]["epsilon"]["epsilon"] == Ledger.verify(file).epsilon.value
    assert "Population tests" in run("statement", client_file, "--population", file)
    run("statement", client_file, "--population-head", head_of(file), code=2, err="--population")
    run("statement", client_file, "--population", client_file, code=2, err="same ledger")
    wrong = "9:" + "0" * 64
    run("statement", client_file, "--expect-head", wrong, code=4)
    run("statement", client_file, "--population", file, "--population-head", wrong, code=4)


def test_open_reservations_are_part_of_a_statement(file: Path) -> None:
    made = client_statement(Ledger.verify(file))
    assert (made.participations, made.pending) == (1, 1)
    expected = RDPAccountant(adjacency=Adjacency.ZERO_OUT)
    expected.compose(STEP, 2)
    assert made.unamplified == expected.epsilon(1e-5)


def test_a_ledger_is_not_its_own_population(file: Path, text: Path) -> None:
    with pytest.raises(InvalidParameter, match="same ledger"):
        client_statement(Ledger.verify(file), Ledger.verify(text))


SAMPLED = Poisson(sample_rate=0.1, event=STEP)
BANDED = BandedMF(noise_multiplier=3.0, bands=2, steps=8, participations=4, sample_rate=0.1)


@pytest.mark.parametrize(
    ("event", "unit", "expected"),
    [
        (SAMPLED, Unit.CLIENT, STEP),
        (SAMPLED, Unit.RECORD, SAMPLED),
        (FixedSize(population=10, cohort=2, event=STEP), Unit.USER, STEP),
        (Repeat(event=SAMPLED, count=3), Unit.CLIENT, Repeat(event=STEP, count=3)),
        (Compose(events=(SAMPLED, STEP)), Unit.CLIENT, Compose(events=(STEP, STEP))),
        (BANDED, Unit.CLIENT, replace(BANDED, sample_rate=None)),
        (BANDED, Unit.RECORD, BANDED),
        (
            NoiseShares(event=SAMPLED, planned=9, survivors=7),
            Unit.CLIENT,
            NoiseShares(event=STEP, planned=9, survivors=7),
        ),
        (
            Hierarchical(p_client=0.1, steps=5, event=SAMPLED),
            Unit.RECORD,
            Repeat(event=SAMPLED, count=5),
        ),
    ],
)
def test_sampling_of_clients_falls_away_and_sampling_of_records_stays(
    event: Event, unit: Unit, expected: Event
) -> None:
    assert without_client_sampling(event, unit) == expected
