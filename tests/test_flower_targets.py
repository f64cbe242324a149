"""The table of figures with targets, as far as it goes without Flower: verdicts, lines, memory."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "flower_targets.py"


@pytest.fixture(scope="module")
def targets() -> Any:
    spec = importlib.util.spec_from_file_location("securefl_flower_targets", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


def cell(ours: float, flower: float) -> dict[str, Any]:
    fields = ("server", "masks", "client", "bytes_up", "server_peak_bytes")
    return {
        "ours": [dict.fromkeys(fields, ours)],
        "active": [],
        "flower": [dict.fromkeys(fields, flower)],
    }


def test_each_row_has_a_verdict_and_what_was_not_run_has_none(targets: Any) -> None:
    cells = {"all-1e5": cell(1.0, 99.0), "all-1e6": cell(1.0, 40.0)}
    rows = {row["what"]: row for row in targets.table(cells)}
    assert len(rows) == len(targets.AT_LEAST) + len(targets.AT_MOST) + 1
    assert not rows["server, all-to-all, d=1e5, total"]["met"]
    assert rows["server, all-to-all, d=1e6, total"]["met"]
    assert rows["upload of a client, d=1e6"]["ratio"] == 1 / 40
    assert "met" not in rows["server, 30 neighbours, d=1e6, total"]
    text = targets.text(list(rows.values()), cells)
    assert sum(line.endswith("PASS") for line in text) == 8
    assert sum(line.endswith("MISS") for line in text) == 1
    assert sum("not run" in line for line in text) == 2


def test_a_row_at_most_is_missed_above_its_target(targets: Any) -> None:
    rows = targets.table({"all-1e6": cell(52.0, 100.0)})
    (upload,) = (row for row in rows if row["what"].startswith("upload"))
    assert upload["ratio"] == 0.52
    assert not upload["met"]


def test_the_example_app_changes_in_at_most_five_lines(targets: Any) -> None:
    assert 0 < targets.changed_lines() <= targets.MOST_LINES


def test_a_medians_row_is_no_mean(targets: Any) -> None:
    found = {"ours": [{"server": value} for value in (1.0, 2.0, 300.0)]}
    assert targets.figure(found, "ours", "server") == 2.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_memory_that_was_freed_before_the_last_reply_is_not_counted(targets: Any) -> None:
    memory = targets.flower_comparison.Memory()
    memory.begin()
    passing = bytearray(b"\1") * (64 << 20)
    del passing
    kept = bytearray(b"\1") * (32 << 20)
    memory.forget_peak()
    # Whatever else the interpreter does in between takes far less than 16 MiB.
    assert (32 << 20) <= memory.peak() < (48 << 20)
    assert len(kept) == 32 << 20
