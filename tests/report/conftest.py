"""A synthetic run directory, written file by file as `securefl train` writes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Json = dict[str, Any]


def metrics(
    *, rounds: int, cohort: int, accuracy: float, epsilon: float | None, lost: int | None
) -> list[Json]:
    lines = []
    for index in range(rounds):
        is_lost = index == lost
        survivors = 0 if is_lost else cohort - 1
        lines.append(
            {
                "round": index,
                "mode": "x",
                "seed": 0,
                "target_epsilon": None,
                "cohort": cohort,
                "survivors": survivors,
                "dropped": {"share_keys": 7 if is_lost else 0, "unmasking": 0 if is_lost else 1},
                "status": "below-threshold" if is_lost else "ok",
                "loss": None if is_lost else 2.0 / (index + 1),
                "accuracy": accuracy * (index + 1) / rounds,
                "epsilon": None if epsilon is None else epsilon * (index + 1) / rounds,
                "bytes_up_per_client": 4321.5,
                "bytes_down_per_client": 1234.5,
                "bytes_up": 43215,
                "bytes_down": 12345,
                "seconds": {"train": 0.012, "protocol": 0.034, "evaluate": 1.5},
                "update_norm": 0.5,
                "clipped_fraction": None if epsilon is not None else 0.25,
                "fidelity": "protocol",
            }
        )
    return lines


class Tree:
    """A run directory under construction: change the dictionaries, then `write()`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.summary: Json = {
            "dataset": "digits",
            "train_size": 1437,
            "test_size": 360,
            "clients": 10,
            "rounds": 4,
            "delta": 1e-5,
            "rows": [],
            "runs": [],
            "fidelity": "protocol",
            "protocol": "secagg",
            "adversary": "semi-honest",
            "threshold": 7,
            "graph": "complete",
            "degree": 9,
            "shares": 6,
            "opened_by": "clients",
            "experimental": "",
            "assumed_corrupt": 1,
            "min_honest": 6,
            "config_digest": "c0ffee" * 8,
            "versions": {"securefl": "0.1.0", "torch": "2.13"},
        }
        self.runs: dict[str, Json] = {}
        self.metrics: dict[str, list[Json]] = {}

    def row(
        self,
        mode: str,
        target: float | None,
        *,
        accuracy: float,
        epsilon: float | None,
        seeds: tuple[int, ...] = (0, 1, 2),
        lost: int | None = None,
    ) -> Tree:
        self.summary["rows"].append(
            {
                "mode": mode,
                "target_epsilon": target,
                "epsilon": epsilon,
                "accuracy": accuracy,
                "accuracy_min": accuracy - 0.01,
                "seeds": list(seeds),
                "dropped": 4 * len(seeds),
                "bytes_up_per_client": 17286.0,
                "seconds": 3.25,
            }
        )
        for seed in seeds:
            path = f"{mode}-{'inf' if target is None else f'{target:g}'}-s{seed}"
            self.summary["runs"].append(
                {
                    "path": path,
                    "mode": mode,
                    "target_epsilon": target,
                    "seed": seed,
                    "accuracy": accuracy,
                    "epsilon": epsilon,
                    "status": "rounds",
                }
            )
            self.runs[path] = {
                "mode": mode,
                "target_epsilon": target,
                "epsilon": epsilon,
                "delta": 1e-5,
                "adjacency": "zero-out" if target else None,
                "unit": "record" if target else None,
                "accuracy": accuracy,
                "loss": None,
                "rounds": 4,
                "noise_multiplier": 1.5 if target else None,
                "sample_rate": 0.178 if target else None,
                "steps_per_round": 4 if target else None,
                "ledgers": [
                    {
                        "client_index": 0,
                        "path": "ledgers/client-0.sqlite",
                        "head": "9:" + "ab" * 32,
                        "spent_epsilon": epsilon,
                    }
                ]
                if target
                else [],
            }
            self.metrics[path] = metrics(
                rounds=4, cohort=10, accuracy=accuracy, epsilon=epsilon, lost=lost
            )
        return self

    def write(self) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "summary.json").write_text(json.dumps(self.summary), encoding="utf-8")
        for path, own in self.runs.items():
            folder = self.root / path
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "summary.json").write_text(json.dumps(own), encoding="utf-8")
            text = "".join(json.dumps(line) + "\n" for line in self.metrics[path])
            (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
        return self.root


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An empty tree: no rows yet."""
    return Tree(tmp_path / "out")


@pytest.fixture
def sweep(tree: Tree) -> Tree:
    """The demo's shape: no DP, epsilon 8 and epsilon 3, three seeds each, one round lost."""
    tree.row("none", None, accuracy=0.949, epsilon=None)
    tree.row("local-dp", 8.0, accuracy=0.921, epsilon=7.98765, lost=2)
    return tree.row("local-dp", 3.0, accuracy=0.876, epsilon=2.98765)


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[[str], Tree]:
    """Empty trees in folders of their own, for property tests."""
    return lambda name: Tree(tmp_path / name)
