"""Reading a run directory: nothing missing, nothing impossible, nothing from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from securefl.errors import ConfigurationError
from securefl.report.tree import read_tree


def test_all_rows_runs_and_rounds_are_read(sweep: Any) -> None:
    tree = read_tree(sweep.write())
    assert [(row.mode, row.target_epsilon) for row in tree.rows] == [
        ("none", None),
        ("local-dp", 8.0),
        ("local-dp", 3.0),
    ]
    assert len(tree.runs) == 9
    assert all(len(run.rounds) == 4 for run in tree.runs)
    assert tree.rows[1].runs[0].ledgers[0].head == "9:" + "ab" * 32
    assert tree.rows[1].runs[0].adjacency == "zero-out"
    assert tree.rows[1].runs[0].rounds[2].dropped == {"share_keys": 7, "unmasking": 0}


def test_a_missing_summary_is_named_and_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"summary\.json is missing.*securefl train"):
        read_tree(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
def test_a_missing_file_of_a_run_is_named(sweep: Any, name: str) -> None:
    out = sweep.write()
    (out / "local-dp-3-s1" / name).unlink()
    with pytest.raises(ConfigurationError, match=f"local-dp-3-s1/{name} is missing"):
        read_tree(out)


@pytest.mark.parametrize(
    "key",
    ["dataset", "train_size", "test_size", "clients", "rounds", "delta", "rows", "runs"],
)
def test_a_missing_key_of_the_summary_is_named(sweep: Any, key: str) -> None:
    del sweep.summary[key]
    with pytest.raises(ConfigurationError, match=f"summary.json: the key '{key}' is missing"):
        read_tree(sweep.write())


@pytest.mark.parametrize(
    "key",
    [
        "mode",
        "target_epsilon",
        "epsilon",
        "accuracy",
        "accuracy_min",
        "seeds",
        "dropped",
        "bytes_up_per_client",
        "seconds",
    ],
)
def test_a_missing_key_of_a_row_is_named(sweep: Any, key: str) -> None:
    del sweep.summary["rows"][1][key]
    with pytest.raises(ConfigurationError, match=rf"rows\[1\]: the key '{key}' is missing"):
        read_tree(sweep.write())


@pytest.mark.parametrize("key", ["round", "cohort", "survivors", "status", "epsilon", "accuracy"])
def test_a_missing_key_of_a_round_is_named_with_its_line(sweep: Any, key: str) -> None:
    del sweep.metrics["none-inf-s0"][3][key]
    with pytest.raises(
        ConfigurationError, match=f"none-inf-s0/metrics.jsonl, line 4: the key '{key}' is missing"
    ):
        read_tree(sweep.write())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("survivors", 11),
        ("survivors", -1),
        ("survivors", True),
        ("cohort", 9.0),
        ("accuracy", 1.01),
        ("accuracy", "0.9"),
        ("epsilon", -0.1),
        ("epsilon", True),
        ("loss", float("nan")),
        ("loss", float("inf")),
        ("status", None),
        ("dropped", {"unmasking": -1}),
        ("dropped", [1]),
        ("seconds", {"train": "soon"}),
        ("bytes_up", 1.5),
        ("clipped_fraction", 2),
        ("round", 0),
        ("round", 7),
    ],
)
def test_an_impossible_value_of_a_round_is_refused(sweep: Any, key: str, value: object) -> None:
    sweep.metrics["local-dp-8-s2"][1][key] = value
    with pytest.raises(ConfigurationError, match=r"local-dp-8-s2/metrics\.jsonl"):
        read_tree(sweep.write())


@pytest.mark.parametrize(
    ("key", "value"),
    [("rows", []), ("rows", {}), ("runs", None), ("delta", 1.5), ("clients", -1), ("versions", 3)],
)
def test_an_impossible_value_of_the_summary_is_refused(sweep: Any, key: str, value: object) -> None:
    sweep.summary[key] = value
    with pytest.raises(ConfigurationError, match=r"summary\.json"):
        read_tree(sweep.write())


def test_a_number_too_large_for_a_double_is_refused(sweep: Any) -> None:
    out = sweep.write()
    text = (out / "summary.json").read_text().replace("7.98765", "1e999")
    (out / "summary.json").write_text(text)
    with pytest.raises(ConfigurationError, match="finite"):
        read_tree(out)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_json_is_refused_even_under_an_unknown_key(
    sweep: Any, value: float
) -> None:
    sweep.metrics["none-inf-s1"][2]["later"] = value
    with pytest.raises(ConfigurationError, match=r"line 3.*written as null"):
        read_tree(sweep.write())


def test_a_torn_last_line_is_refused_with_advice(sweep: Any) -> None:
    out = sweep.write()
    path = out / "none-inf-s1" / "metrics.jsonl"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ConfigurationError, match=r"line 4.*--resume"):
        read_tree(out)


def test_a_row_whose_seeds_are_not_those_of_its_runs_is_refused(sweep: Any) -> None:
    sweep.summary["rows"][0]["seeds"] = [0, 1, 2, 3]
    with pytest.raises(ConfigurationError, match=r"seeds \[0, 1, 2, 3\].*have seeds \[0, 1, 2\]"):
        read_tree(sweep.write())


def test_a_run_that_belongs_to_no_row_is_not_hidden(sweep: Any) -> None:
    del sweep.summary["rows"][2]
    with pytest.raises(ConfigurationError, match=r"local-dp-3-s0.*belong to no row"):
        read_tree(sweep.write())


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "none-inf-s0/../../elsewhere"])
def test_a_run_outside_the_directory_is_not_read(sweep: Any, path: str) -> None:
    out = sweep.write()
    elsewhere = out.parent / "elsewhere"
    elsewhere.mkdir()
    for name in ("summary.json", "metrics.jsonl"):
        (elsewhere / name).write_text((out / "none-inf-s0" / name).read_text())
    sweep.summary["runs"][0]["path"] = path
    (out / "summary.json").write_text(json.dumps(sweep.summary))
    with pytest.raises(ConfigurationError, match="leads out of the run directory"):
        read_tree(out)


def test_unknown_keys_and_absent_optional_ones_are_fine(sweep: Any) -> None:
    for key in (
        "fidelity", "protocol", "adversary", "threshold", "config_digest", "versions",
        "graph", "degree", "shares", "assumed_corrupt", "min_honest",
    ):  # fmt: skip
        del sweep.summary[key]
    sweep.summary["later"] = {"new": 1}
    sweep.runs["none-inf-s0"] = {}
    for line in sweep.metrics["none-inf-s0"]:
        for key in ("loss", "dropped", "seconds", "update_norm", "clipped_fraction"):
            del line[key]
    tree = read_tree(sweep.write())
    assert tree.fidelity == tree.graph == ""
    assert tree.degree is tree.shares is tree.assumed_corrupt is tree.min_honest is None
    assert tree.runs[0].ledgers == ()
    assert tree.runs[0].rounds[0].loss is None
