"""What the documentation says about Flower is what the code does."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

from securefl.flower.config import DistributedDP, SecAggConfig, Timing
from securefl.flower.errors import Code
from securefl.flower.paillier_setup import SETUP_SCHEMA, SetupFile
from securefl.flower.policy import NodeFile, PaillierSection

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "flower.md").read_text()
APPS = ROOT / "examples" / "flower_app"


def difference() -> list[str]:
    lines: list[str] = []
    names = sorted(
        p.relative_to(APPS / "plain") for p in (APPS / "plain").rglob("*") if p.is_file()
    )
    others = sorted(
        p.relative_to(APPS / "secure") for p in (APPS / "secure").rglob("*") if p.is_file()
    )
    names = [n for n in names if "__pycache__" not in n.parts]
    assert names == [n for n in others if "__pycache__" not in n.parts]
    for name in sorted(names, key=lambda n: (len(n.parts), n)):
        before = (APPS / "plain" / name).read_text().splitlines()
        after = (APPS / "secure" / name).read_text().splitlines()
        lines += difflib.unified_diff(
            before, after, f"plain/{name}", f"secure/{name}", lineterm="", n=0
        )
    return lines


def test_the_page_shows_the_whole_difference_between_the_two_apps() -> None:
    shown = re.search(r"```diff\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    assert shown.group(1).splitlines() == difference()


def test_at_most_five_lines_change() -> None:
    lines = [line for line in difference() if not line.startswith(("---", "+++", "@@"))]
    added = sum(line.startswith("+") for line in lines)
    removed = sum(line.startswith("-") for line in lines)
    assert max(added, removed) <= 5


def test_the_node_file_on_the_page_is_one() -> None:
    shown = re.search(r"```toml\n(schema.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    file = NodeFile(**tomllib.loads(shown.group(1)))
    assert file.floor.privacy is not None


def test_the_files_of_a_session_with_a_key_on_the_page_are_some() -> None:
    blocks = [tomllib.loads(one) for one in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]
    setups = [one for one in blocks if one.get("schema") == SETUP_SCHEMA]
    assert [SetupFile(**one).corrupt_holders for one in setups] == [1]
    with_key = [one for one in blocks if "paillier" in one]
    for block in with_key:
        NodeFile(**({"schema": "securefl-node/1"} | block))
    assert [sorted(one["paillier"]) for one in with_key] == [
        ["setup"],
        ["book", "setup", "share"],
        ["socket"],
    ]
    for key in ("share_in_app", "witness_in_app"):
        (written,) = get_args(PaillierSection.model_fields[key].annotation)[0].__args__
        assert f'{key} = "{written}"' in PAGE


def test_every_code_and_every_key_stands_in_a_table() -> None:
    assert set(re.findall(r"^\| (E\d{3}) \|", PAGE, re.MULTILINE)) == {code.value for code in Code}
    found = set(re.findall(r"`securefl-([a-z-]+)`", PAGE))
    known = {f.name for kind in (SecAggConfig, Timing, DistributedDP) for f in fields(kind)}
    assert found == {name.replace("_", "-") for name in known - {"timing", "privacy", "run_config"}}
