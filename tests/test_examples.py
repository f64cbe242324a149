"""Every example runs as a user runs it, and the README's code prints what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
# Both have tests of their own: of what they print, and (tests/examples) of what they measure.
ELSEWHERE = {"quickstart.py", "convergence.py"}
CLAIM = re.compile(
    r"(secure (aggregation|sum)s?|clipping|compression|quanti[sz]ation)\s+"
    r"(is|are|gives?|provides?|guarantees?|implies)\s+(also\s+)?"
    r"(differential(ly)? priva|DP\b|private\b|privacy\b|anonym)",
    flags=re.IGNORECASE,
)


def python(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_examples() -> None:
    assert {"quickstart.py", "secure_sum.py"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize(
    "path", [p for p in EXAMPLES if p.name not in ELSEWHERE], ids=lambda path: path.name
)
def test_example_runs(path: Path) -> None:
    assert python(path).strip()


def test_quickstart_loses_one_client_and_stays_within_its_budget() -> None:
    printed = python(ROOT / "examples" / "quickstart.py")
    survivors = re.search(r"survivors \(([\d, ]+)\) of 5 clients, round ok", printed)
    assert survivors is not None
    assert len(survivors[1].split(",")) == 4
    spent = [float(value) for value in re.findall(r"epsilon ([\d.]+) of 8\.0 spent", printed)]
    assert len(spent) == 5
    assert max(spent) <= 8.0
    # The client that vanished before it sent has paid nothing and sent no update.
    assert sorted(spent)[0] == 0.0


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_code_on_the_first_screen_prints_what_its_comments_say(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"block{number}.py"
        path.write_text(block)
        printed = python(path).splitlines()
        expected = re.findall(r"^print\([^#\n]*\)\s+# ([^:\n]*)", block, flags=re.MULTILINE)
        assert expected, "a print without its result beside it proves nothing"
        for line in expected:
            assert line.strip() in printed


def test_pages_do_not_claim_that_secure_aggregation_or_clipping_is_differential_privacy() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    assert len(pages) > 5
    for page in pages:
        found = CLAIM.search(" ".join(page.read_text(encoding="utf-8").split()))
        assert found is None, f"{page}: {found and found[0]}"


@pytest.mark.parametrize(
    ("sentence", "caught"),
    [
        ("Secure aggregation is differentially private.", True),
        ("Clipping provides privacy.", True),
        ("Secure aggregation is not differential privacy.", False),
    ],
)
def test_the_claim_check_catches_what_it_is_for(sentence: str, caught: bool) -> None:
    assert (CLAIM.search(sentence) is not None) is caught
