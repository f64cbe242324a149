"""The deployment file: what is an error of reading, what is a finding, and every key documented."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting import Deployment, InvalidDeployment
from accounting.audit.lints import findings
from accounting.deployment import impossible_values, known_keys

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "deployments"
WORKED = sorted(EXAMPLES.glob("*.toml"))
KEYBOARD = (EXAMPLES / "keyboard.toml").read_text("utf-8")


# --- reading ------------------------------------------------------------------------------------


def test_every_protocol_of_this_library_can_be_declared_and_hides_contributions_alike() -> None:
    verdicts = set()
    for protocol in ("secagg", "secagg+", "lightsecagg", "paillier", "peersum"):
        text = KEYBOARD.replace('protocol = "secagg"', f'protocol = "{protocol}"')
        deployment = Deployment.parse(text)
        assert {phase.aggregation.protocol for phase in deployment.phase} == {protocol}
        verdicts.add(tuple(finding.code for finding in findings(deployment)))
    assert len(verdicts) == 1
    with pytest.raises(InvalidDeployment, match="peersum"):
        Deployment.parse(KEYBOARD.replace('protocol = "secagg"', 'protocol = "peersums"'))


@pytest.mark.parametrize("path", WORKED, ids=lambda path: path.stem)
def test_a_worked_deployment_reads_and_has_only_possible_values(path: Path) -> None:
    assert impossible_values(Deployment.load(path)) == ()


def test_a_missing_file_says_which_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidDeployment, match=r"nowhere\.toml"):
        Deployment.load(tmp_path / "nowhere.toml")


def test_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "a.toml"):
        with pytest.raises(InvalidDeployment, match="cannot read"):
            Deployment.load(path)


def test_a_file_larger_than_any_deployment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("#" * (1 << 20) + "\n")
    with pytest.raises(InvalidDeployment, match="bytes"):
        Deployment.load(tmp_path / "a.toml")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    with contextlib.suppress(InvalidDeployment):
        Deployment.parse(text)


@given(st.integers(0, len(KEYBOARD) - 1), st.sampled_from('"[]{}=,.#\n0a-'))
def test_one_character_elsewhere_is_read_or_refused_and_the_lints_never_fail(
    place: int, character: str
) -> None:
    text = KEYBOARD[:place] + character + KEYBOARD[place + 1 :]
    try:
        deployment = Deployment.parse(text)
    except InvalidDeployment:
        return
    findings(deployment)


def test_syntax_errors_name_the_file_and_the_line() -> None:
    with pytest.raises(InvalidDeployment, match=r"mine\.toml.*line 2"):
        Deployment.parse('schema = "securefl-deployment/1"\n[population\n', source="mine.toml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rounds =", "runds =", r"phase\.0\.runds: unknown key; did you mean rounds\?"),
        ("[guarantee]", "[guarante]", r"guarante: unknown key; did you mean guarantee\?"),
        ('kind = "poisson"', 'kind = "poison"', r"did you mean poisson\?"),
        ('"zero-out"', '"zero_out"', r"did you mean zero-out\?"),
        ("cohort = 1000", 'cohort = "1000"', r"phase\.0\.sampling\.cohort: .*found '1000'"),
        ("rounds = 2000", "rounds = 2000.5", r"phase\.0\.rounds"),
        ("epsilon = 2.0", "epsilon = true", r"guarantee\.epsilon"),
        ("size = 1_000_000\n", "", r"population\.size: this key is missing"),
        ("dimension = 26010\n", "", "dimension is needed for skellam noise"),
        ("b = 50.0", "rho = 50.0", "a laplace mechanism takes b"),
        ("securefl-deployment/1", "securefl-deployment/2", "securefl-deployment/1"),
    ],
)
def test_what_cannot_be_read_names_the_key_and_a_suggestion(old: str, new: str, said: str) -> None:
    with pytest.raises(InvalidDeployment, match=said):
        Deployment.parse(KEYBOARD.replace(old, new, 1))


def test_two_files_that_say_the_same_have_one_digest_and_others_do_not() -> None:
    first = Deployment.parse(KEYBOARD)
    assert first.digest() == Deployment.parse(f"# a comment\n{KEYBOARD}").digest()
    assert first.digest() != Deployment.parse(KEYBOARD.replace("2000", "2001")).digest()


def test_defaults_that_a_file_leaves_out_are_reported() -> None:
    assumed = dict(Deployment.parse(KEYBOARD).assumed())
    assert assumed["phase[train].clip.denominator"] == "fixed"
    assert "phase[train].clip.norm" not in assumed
    assert "guarantee.adjacency" not in assumed


# --- a hundred mutations of the examples ----------------------------------------------------------

Change = Callable[[str], str]


def _replace(pattern: str, new: str) -> Change:
    return lambda text: re.sub(pattern, new, text, count=1, flags=re.M)


UNREADABLE: dict[str, Change] = {
    "an open bracket": _replace(r"^\[guarantee\]", "[guarantee"),
    "an open quote": _replace(r'^unit = "(\w+)"', r'unit = "\1'),
    "a value without a key": _replace(r"^size", ""),
    "a key twice": _replace(r"^size = (.*)$", r"size = \1\nsize = \1"),
    "an unknown section": _replace(r"^\[trust\]", "[turst]"),
    "an unknown key": _replace(r"^delta", "dleta"),
    "an unknown key in a table": _replace(r"\brng = ", "rgn = "),
    "an unknown word": _replace(r'^unit = "\w+"', 'unit = "usr"'),
    "a word for a number": _replace(r"^epsilon = .*$", 'epsilon = "two"'),
    "a number for a word": _replace(r'^model = "\w+"', "model = 3"),
    "a truth value for a number": _replace(r"^rounds = .*$", "rounds = true"),
    "a fraction for a count": _replace(r"^size = .*$", "size = 10.5"),
    "a date for a number": _replace(r"^epsilon = .*$", "epsilon = 2024-01-01"),
    "a section for a list": _replace(r"^\[\[phase\]\]", "[phase]"),
    "another schema": _replace(r"^schema = .*$", 'schema = "securefl-train/1"'),
}
FINDINGS: dict[str, tuple[Change, str]] = {
    "no adjacency": (_replace(r"^adjacency = .*$", ""), "A02"),
    "NaN": (_replace(r"^epsilon = .*$", "epsilon = nan"), "A18"),
    "infinity": (_replace(r"^delta = .*$", "delta = inf"), "A18"),
    "a negative count": (_replace(r"^rounds = .*$", "rounds = -1"), "A18"),
    "zero noise": (_replace(r"multiplier = [\d.]+", "multiplier = 0.0"), "A18"),
    "a delta above 1": (_replace(r"^delta = .*$", "delta = 2.0"), "A18"),
    "a norm of zero": (_replace(r"norm = [\d.]+", "norm = 0.0"), "A18"),
}
MUTATIONS = [
    *((path, name, change, None) for path in WORKED for name, change in UNREADABLE.items()),
    *((path, name, change, code) for path in WORKED for name, (change, code) in FINDINGS.items()),
]


def test_there_are_a_hundred_mutations() -> None:
    assert len(MUTATIONS) >= 100


@pytest.mark.parametrize(
    ("path", "name", "change", "code"),
    MUTATIONS,
    ids=[f"{path.stem}-{name}" for path, name, _, _ in MUTATIONS],
)
def test_a_mutated_example_is_refused_or_unsupported_and_never_a_traceback(
    path: Path,
    name: str,
    change: Change,
    code: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from accounting.cli import app

    text = path.read_text("utf-8")
    mutated = change(text)
    assert mutated != text, name
    (tmp_path / "mutated.toml").write_text(mutated, "utf-8")
    if name == "no adjacency":  # the one mutation whose numbers are all computed
        assert code in {one.code for one in findings(Deployment.parse(mutated))}
        if path.stem not in {"keyboard", "replace-one"}:
            return
    with pytest.raises(SystemExit) as caught:
        app(["audit", str(tmp_path / "mutated.toml")])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    if code is None:
        assert caught.value.code == 2
        assert "mutated.toml" in err.replace("\n", "")
        assert not re.search(r"PASS|FAIL|UNSUPPORTED", out)
    else:
        assert caught.value.code == 3
        assert "UNSUPPORTED" in out
        assert f"{code} (E)" in out


# --- the schema page ------------------------------------------------------------------------------


def test_the_schema_page_lists_every_key_with_its_kind_and_default() -> None:
    text = (ROOT / "docs" / "reference" / "deployment-file.md").read_text("utf-8")
    found: list[tuple[str, ...]] = []
    section = ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"## (?:`\[+([\w.]+)\]+`|Top of the file)", line):
            section = heading[1] or ""
        elif row := re.fullmatch(r"\| `(\w+)` \| (.+?) \| (.+?) \| (.+) \|", line):
            found.append((section, *row.groups()))
    assert found == [
        (key.section, key.name, key.kind, key.default, key.text) for key in known_keys()
    ]
