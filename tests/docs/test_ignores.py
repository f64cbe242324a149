"""Whoever switches a rule off says which one and why, in the same comment."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("securefl", "accounting", "tests", "examples", "benchmarks", "docs")
FEWEST_LETTERS = 5  # of a reason; "above" is the shortest
CODE = r"[a-z]+[0-9]+"
NOQA = re.compile(rf"#\s*(?:ruff:\s*|flake8:\s*)?noqa\b(\s*:\s*{CODE}(?:[\s,]+{CODE})*)?", re.I)
TYPE_IGNORE = re.compile(r"#\s*type:\s*ignore\b(\[[^\]]+\])?")


def complaint(comment: str) -> str | None:
    """What a comment that switches something off leaves out; None if nothing, or it is no such."""
    found = [*NOQA.finditer(comment), *TYPE_IGNORE.finditer(comment)]
    if not found:
        return None
    if any(one[1] is None for one in found):
        return "does not say which rule it switches off"
    reason = TYPE_IGNORE.sub("", NOQA.sub("", comment))
    if sum(map(str.isalpha, reason)) < FEWEST_LETTERS:
        return "has no reason"
    return None


def sources() -> Iterator[Path]:
    yield ROOT / "conftest.py"
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(part.startswith(".") for part in path.relative_to(ROOT).parts):
                yield path


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and texts of the comments of a file; nothing where no word of interest occurs."""
    raw = path.read_bytes()
    if re.search(rb"noqa|type:\s*ignore", raw, re.I) is None:
        return
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


@pytest.mark.parametrize(
    ("comment", "wrong"),
    [
        ("# no directive, though noqa and type: ignore are named", None),
        ("# noqa: S101  # set on the roster", None),
        ("# noqa: S101, E402  # set on the roster", None),
        ("# noqa: PLW0603  (one warning per process)", None),
        ("# noqa: S704 - above", None),
        ("# type: ignore[misc, attr-defined]  # as above", None),
        ("# noqa: S101  # type: ignore[misc]  # as above", None),
        ("# noqa", "rule"),
        ("#noqa  # set on the roster", "rule"),
        ("# ruff: noqa  # made by a program", "rule"),
        ("# type: ignore", "rule"),
        ("# type: ignore  # set on the roster", "rule"),
        ("# noqa: S101", "reason"),
        ("# NOQA: S101,E402", "reason"),
        ("# noqa: S101  # U1", "reason"),
        ("# type: ignore[arg-type]", "reason"),
        ("# noqa: S101  # type: ignore[arg-type]", "reason"),
    ],
)
def test_what_is_asked_of_a_comment(comment: str, wrong: str | None) -> None:
    found = complaint(comment)
    assert found is None if wrong is None else found is not None and wrong in found


def test_every_ignore_names_its_rule_and_its_reason() -> None:
    files = list(sources())
    assert {path.relative_to(ROOT).parts[0] for path in files} == {*FOLDERS, "conftest.py"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {comment!r} {found}"
        for path in files
        for line, comment in comments(path)
        if (found := complaint(comment)) is not None
    ]
    assert wrong == [], "\n".join(wrong)
