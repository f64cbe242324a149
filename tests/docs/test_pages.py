"""The documentation keeps its word: its code runs, its tables are complete, its evidence exists."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import re
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

import accounting
from securefl.config import RunConfig, preset_names

with warnings.catch_warnings():
    # typer reaches for a name that newer releases of click deprecate; nothing of ours.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="click|typer")
    from typer.main import get_command

    from accounting import cli as accounting_cli
    from securefl import cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES = sorted(DOCS.rglob("*.md"))
EVERYTHING = [*FRONT, *PAGES]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.M)


def run(code: str, *, names: dict[str, object] | None = None) -> str:
    """What the code prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<documentation>", "exec"), {} if names is None else names)
    return printed.getvalue()


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_every_python_block_parses(path: Path) -> None:
    for code in blocks(path, "python"):
        ast.parse(code)


def test_the_threshold_pages_code_prints_what_its_comment_says() -> None:
    (code,) = blocks(DOCS / "how-to" / "choose-a-threshold.md", "python")
    (said,) = re.findall(r"# (.*)$", code, re.MULTILINE)
    assert run(code).strip() == said


def test_the_restart_page_prints_what_its_comment_says() -> None:
    (code,) = blocks(DOCS / "how-to" / "survive-a-restart.md", "python")
    said = re.findall(r"# (.*)$", code, re.MULTILINE)[-1]
    assert run(code).strip() == said


def test_the_encoding_page_prints_what_its_comment_says() -> None:
    *_, code = blocks(DOCS / "explanation" / "encoding.md", "python")
    (said,) = re.findall(r"# (\d.*)$", code, re.MULTILINE)
    assert run(code).strip() == said


def test_the_tutorials_sum_is_what_it_says() -> None:
    *_, code = blocks(DOCS / "tutorial" / "first-private-round.md", "python")
    (said,) = re.findall(r"# (\[.*)$", code, re.MULTILINE)
    assert run(code).strip() == said


def test_the_ledger_page_works_on_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_folder = tmp_path / "runs" / "demo" / "local-dp-8-s0"
    (run_folder / "ledgers").mkdir(parents=True)
    event = accounting.Repeat(event=accounting.Gaussian(noise_multiplier=5.0), count=3)
    header = accounting.LedgerHeader(
        population="test",
        unit=accounting.Unit.RECORD,
        adjacency=accounting.Adjacency.ZERO_OUT,
        epsilon=8.0,
        delta=1e-5,
        order=8.0,
        plan=accounting.digest(event),
    )
    with accounting.Ledger.create(run_folder / "ledgers" / "client-0.sqlite", header) as ledger:
        ledger.reserve(event, round=0, key="0")
        head = ledger.head
    (run_folder / "summary.json").write_text(
        f'{{"ledgers": [{{"path": "ledgers/client-0.sqlite", "head": "{head}"}}]}}'
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed = [
        run(code, names=names) for code in blocks(DOCS / "how-to/read-the-ledger.md", "python")
    ]
    assert "unit: record" in printed[0]
    assert str(head) in printed[0]
    assert printed[1] == "1 ledgers contain the head that the run reported\n"
    assert printed[2].startswith(str(head))
    assert [line.split()[1] for line in printed[3].splitlines()] == ["header", "reserve"]


def test_the_example_configuration_is_valid() -> None:
    (text,) = blocks(DOCS / "how-to" / "run-your-own-config.md", "toml")
    tree = tomllib.loads(text)
    config = RunConfig.model_validate_json(json.dumps(tree))
    assert [run.name for run in config.runs()] == ["none-inf-s0", "local-dp-4-s0"]


def documented_keys() -> dict[tuple[str, str], str]:
    """(section, key) -> default, as the configuration page states them."""
    keys: dict[tuple[str, str], str] = {}
    section = ""
    for line in (DOCS / "reference" / "config.md").read_text("utf-8").splitlines():
        if heading := re.fullmatch(r"## `\[(\w+)\]`", line):
            section = heading[1]
        elif row := re.match(r"\| `(\w+)` \| ([^|]+) \|", line):
            keys[section, row[1]] = row[2].strip()
    return keys


def test_the_configuration_page_lists_every_key_with_its_default() -> None:
    actual: dict[tuple[str, str], str] = {}
    for section, field in RunConfig.model_fields.items():
        model = field.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        for key, inner in model.model_fields.items():
            default = inner.get_default()
            if inner.is_required():
                actual[section, key] = "required"
            elif default is None:
                actual[section, key] = "none"
            elif isinstance(default, tuple):
                inside = ", ".join(f'"{x}"' if isinstance(x, str) else str(x) for x in default)
                actual[section, key] = f"`[{inside}]`"
            elif isinstance(default, str):
                actual[section, key] = f'`"{default}"`'
            elif isinstance(default, bool):
                actual[section, key] = f"`{str(default).lower()}`"  # as TOML writes it
            else:
                actual[section, key] = f"`{default}`".replace("e-0", "e-")
    assert documented_keys() == actual


def test_the_command_line_page_lists_every_option_preset_and_exit_code() -> None:
    page = (DOCS / "reference" / "cli.md").read_text("utf-8")
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]  # a group
    headings = re.findall(r"^## `securefl (\w+)`$", page, re.MULTILINE)
    assert headings == list(commands)
    for name, section in zip(headings, re.split(r"^## `.*`$", page, flags=re.M)[1:], strict=True):
        inner = getattr(commands[name], "commands", {})
        for word in inner:
            assert f"securefl {name} {word}" in section
        for command in (commands[name], *inner.values()):
            for parameter in command.params:
                for option in parameter.opts:
                    if option != "--help":
                        assert f"`{option}" in section or option.upper() in section, option
    for preset in preset_names():
        assert f"`{preset}`" in page
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    stated = {value for name, value in vars(cli).items() if name.startswith("EXIT_")}
    assert codes == {0} | stated


def test_the_errors_page_names_the_errors_a_caller_must_tell_apart() -> None:
    page = (DOCS / "reference" / "errors.md").read_text("utf-8")
    named = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    known = set(importlib.import_module("securefl.errors").__all__)
    known |= set(importlib.import_module("accounting.errors").__all__)
    assert named <= known
    for name in ("ConfigurationError", "BelowThreshold", "BudgetExceeded", "LedgerRolledBack"):
        assert name in named


@pytest.mark.parametrize("path", FRONT, ids=name_of)
def test_links_and_paths_on_the_front_pages_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    targets += re.findall(r"`((?:docs|examples|securefl|accounting|tests)/[\w./-]+)`", text)
    for target in targets:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", ["README.md", "docs/index.md"])
def test_the_first_screen_says_what_is_not_privacy(name: str) -> None:
    text = " ".join((ROOT / name).read_text("utf-8").split())
    assert "differential privacy, clipping is not privacy, compression is not privacy" in text


def claims() -> list[list[str]]:
    """Rows of the table of claims: claim, docstring, argument, test."""
    text = (DOCS / "security" / "claims.md").read_text("utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    return [row for row in rows if row[1:] != ["stated in", "argument", "test"]]


def test_every_claim_has_three_homes() -> None:
    assert len(claims()) > 15
    for row in claims():
        assert len(row) == 4, row
        assert all(cell not in {"", "-", "–"} for cell in row), row


def test_every_claim_is_stated_in_a_docstring_that_exists() -> None:
    for claim, where, *_ in claims():
        for dotted in re.findall(r"`([\w.]+)`", where):
            assert resolve(dotted).__doc__, (claim, dotted)


def resolve(dotted: str) -> object:
    """The module, class or function of that name."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"there is no {dotted}")


def test_every_test_that_a_claim_names_exists() -> None:
    defined = {
        node.name
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    for claim, _, _, tests in claims():
        names = re.findall(r"`(\w+)`", tests)
        assert names, claim
        for name in names:
            assert name in defined, (claim, name)


def test_the_audit_page_finds_what_it_says() -> None:
    function, mechanism, one_run = blocks(DOCS / "how-to" / "audit-a-mechanism.md", "python")
    names: dict[str, Any] = {}
    run(function, names=names)
    names["rng"] = np.random.default_rng(1)  # or a true claim is refuted once in a thousand tests
    claim = accounting.empirical.Claim(epsilon=1.0, delta=1e-5, adjacency="zero-out")
    for name, verdict in (("noisy_sum", "NOT_REFUTED"), ("forgot_to_clip", "REFUTED")):
        audited = accounting.empirical.from_aggregator(names[name])
        found = accounting.empirical.audit(audited, claim, n_trials=2000, seed=1)
        assert found.verdict.value == verdict
    (said,) = re.findall(r"print\(found.verdict\)  # (.*)$", mechanism, re.MULTILINE)
    assert run(mechanism.replace("rounds=2)", "rounds=2, seed=1)")).strip() == said == "NOT_REFUTED"
    assert 0 <= float(run(one_run)) < 4.38


def test_the_accounting_page_lists_every_option_of_the_audit() -> None:
    page = (DOCS / "reference" / "accounting-cli.md").read_text("utf-8")
    (section,) = re.findall(r"^## audit-mechanism$(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    command = get_command(accounting_cli.app).commands["audit-mechanism"]  # type: ignore[attr-defined]  # a group
    for parameter in command.params:
        for option in parameter.opts:
            if option != "--help" and option.startswith("--"):
                assert re.search(rf"{option}\b", section), option
                if parameter.default not in {None, False} and f"[{option} " in section:
                    stated = re.findall(rf"\[{option} ([^\]|]+)", section)
                    assert stated == [str(parameter.default)], option
