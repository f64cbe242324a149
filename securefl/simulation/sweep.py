"""A sweep: the same task once per mode, target epsilon and seed, one folder each.

Every run is a deployment of its own with its own ledgers. Publishing the models of several runs
composes: the budgets of runs over the same records add up, and no ledger of a single run can know
of the others. The summary says so, and so does the report.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import securefl
from securefl.config import DataConfig, Mode, RunConfig, RunSpec, load_json
from securefl.errors import CheckpointError
from securefl.simulation.engine import (
    SUMMARY,
    Engine,
    OnRound,
    RunResult,
    make_model,
    make_plan,
)
from securefl.simulation.schemes import scheme_of, secure_sum_facts
from securefl.storage import lock_folder, write_durably
from securefl.training.data import Dataset, TrainTest, load
from securefl.training.leaf import load_leaf
from securefl.training.scattering import Progress, prepared

__all__ = ["CONFIG", "load_stored_config", "run_sweep"]

CONFIG = "config.json"
SCHEMA = "securefl-summary/1"


def run_sweep(
    config: RunConfig,
    out: Path,
    *,
    data_dir: Path | None = None,
    resume: bool = False,
    on_round: OnRound = lambda metrics: None,
    on_features: Progress = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Mapping[str, Any] | None:
    """Carries out every run of ``config`` below ``out`` and writes ``out/summary.json``.

    Args:
        config: what to run.
        out: a new or empty folder; with ``resume`` one of the same configuration.
        data_dir: folder with ``mnist/`` and ``heart_disease/``; default ``SECUREFL_DATA``.
        resume: skip finished runs, continue the one that was cut off.
        on_round: called with the metrics of every round that was carried out.
        on_features: called with images done and images in all, where a model needs features.
        should_stop: asked between rounds.

    Returns:
        The summary, or None if ``should_stop`` ended the sweep early (resume it later).

    Raises:
        CheckpointError: if ``out`` holds results and ``resume`` is False, or those of another
            configuration.
        DataNotFound: if the data set is not there.
    """
    dataset_of = _loader(config, data_dir, on_features)
    train = dataset_of(config.sweep.seeds[0]).train  # before anything is written: may be missing
    _check_targets(config, train)  # an impossible target, too
    with _claimed(config, out, resume=resume):
        return _carry_out(
            config,
            out,
            dataset_of,
            resume=resume,
            on_round=on_round,
            should_stop=should_stop,
        )


def _check_targets(config: RunConfig, train: Dataset) -> None:
    first = {(spec.mode, spec.target_epsilon): spec for spec in reversed(config.runs())}
    dimensions: dict[Mode, int] = {}
    for spec in first.values():
        if spec.mode.shares_noise and spec.mode not in dimensions:
            dimensions[spec.mode] = make_model(config, spec, train).dim
        scheme = scheme_of(config.summed(spec.mode))
        make_plan(config, spec, scheme, dimensions.get(spec.mode, 1), train)


def _carry_out(
    config: RunConfig,
    out: Path,
    dataset_of: Callable[[int], TrainTest],
    *,
    resume: bool,
    on_round: OnRound,
    should_stop: Callable[[], bool],
) -> Mapping[str, Any] | None:
    results: list[RunResult] = []
    for spec in config.runs():
        folder = out / spec.name
        if resume and (folder / SUMMARY).exists():
            results.append(_finished(spec, folder / SUMMARY))
            continue
        engine = Engine(
            config,
            spec,
            folder,
            dataset=dataset_of(spec.seed),
            on_round=on_round,
            should_stop=should_stop,
        )
        result = engine.run(resume=resume and folder.exists())
        if result.stopped == "interrupted":
            return None
        results.append(result)
    summary = _summary(config, dataset_of(config.sweep.seeds[0]), results)
    content = json.dumps(summary, indent=2, allow_nan=False)
    write_durably(out / SUMMARY, content.encode() + b"\n")
    return summary


def _loader(
    config: RunConfig, data_dir: Path | None, on_features: Progress
) -> Callable[[int], TrainTest]:
    """The data set split for a run's seed, as the model takes it; every split is read once."""
    fixed = config.data.split_seed

    @lru_cache(maxsize=4)
    def split(seed: int) -> TrainTest:
        data = _load(config.data, data_dir, seed)
        return prepared(data, config.model.name, progress=on_features)

    # MNIST brings its own test set, the same for every seed.
    same = fixed if fixed is not None else (0 if config.data.name == "mnist" else None)
    return lambda seed: split(seed if same is None else same)


def _load(wanted: DataConfig, data_dir: Path | None, seed: int) -> TrainTest:
    if wanted.path is None:
        return load(wanted.name, data_dir, seed=seed, test_fraction=wanted.test_fraction)
    return load_leaf(
        wanted.path,
        data_dir,
        shape=wanted.shape,
        classes=wanted.classes,
        seed=seed,
        test_fraction=wanted.test_fraction,
    )


def load_stored_config(out: Path) -> RunConfig:
    """The configuration that the runs below ``out`` were started with.

    Raises:
        CheckpointError: if there is none.
    """
    path = out / CONFIG
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing: {out} holds no run that can be resumed. "
            "Start one with securefl train CONFIG.toml --out DIR"
        )
    return load_json(path)


def _finished(spec: RunSpec, path: Path) -> RunResult:
    """A run that an earlier call carried out."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if (summary["run"], summary["target_epsilon"]) == (spec.name, spec.target_epsilon):
            return RunResult(spec=spec, stopped=summary["stopped"], summary=summary)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    raise CheckpointError(f"{path} belongs to another run than {spec.name}")


@contextmanager
def _claimed(config: RunConfig, out: Path, *, resume: bool) -> Iterator[None]:
    """``out`` for this process alone, with its configuration written down."""
    if not resume:
        _refuse_results(out)
        out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        _claim(config, out, resume=resume)
        yield


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keeps a second process away; the lock ends with the process, however it ends."""
    try:
        descriptor = lock_folder(out) if out.is_dir() else None
    except OSError:
        raise CheckpointError(
            f"another process works in {out}: wait for it, or stop it first"
        ) from None
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _refuse_results(out: Path) -> None:
    # A *.tmp is a write that was cut off before it became anything.
    if out.exists() and any(path.suffix != ".tmp" for path in out.iterdir()):
        raise CheckpointError(
            f"{out} is not empty: use --resume to continue what is there, or another folder. "
            "Nothing was changed; a folder of results holds ledgers of budgets that are spent"
        )


def _claim(config: RunConfig, out: Path, *, resume: bool) -> None:
    path = out / CONFIG
    if resume:
        stored = load_stored_config(out)
        if stored.digest() != config.digest():
            raise CheckpointError(
                f"{out} was started with another configuration ({path}); resume it without "
                "changes (securefl train --resume --out DIR needs no configuration)"
            )
        return
    _refuse_results(out)  # again, now that nobody else can write
    write_durably(path, config.to_json().encode() + b"\n")


def _summary(config: RunConfig, dataset: TrainTest, results: Sequence[RunResult]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "dataset": config.data.label,
        "train_size": len(dataset.train),
        "test_size": len(dataset.test),
        "clients": config.partition.clients,
        "rounds": config.rounds(config.sweep.modes[0]),
        "delta": config.delta,
        "rows": [
            _row(mode, epsilon, [r.summary for r in results if _key(r.spec) == (mode, epsilon)])
            for mode, epsilon in dict.fromkeys(_key(result.spec) for result in results)
        ],
        "runs": [
            {
                "path": result.spec.name,
                **{
                    key: result.summary[key]
                    for key in ("mode", "target_epsilon", "seed", "accuracy", "epsilon", "status")
                },
            }
            for result in results
        ],
        # The most clients of one run without DP whose update several sums determine.
        "clients_exposed": max(
            (result.summary.get("clients_exposed", 0) for result in results), default=0
        ),
        "model": config.model.name,
        "fidelity": config.aggregation.fidelity.value,
        "protocol": config.aggregation.protocol,
        **secure_sum_facts(config),
        "config_digest": config.digest(),
        "versions": _versions(),
    }


def _key(spec: RunSpec) -> tuple[Mode, float | None]:
    return spec.mode, spec.target_epsilon


def _row(mode: Mode, epsilon: float | None, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    accuracies = [run["accuracy"] for run in runs]
    return {
        "mode": mode.value,
        "target_epsilon": epsilon,
        # The largest of the runs: each was a deployment of its own.
        "epsilon": None if epsilon is None else max(run["epsilon"] for run in runs),
        "accuracy": math.fsum(accuracies) / len(accuracies),
        "accuracy_min": min(accuracies),
        "seeds": [run["seed"] for run in runs],
        "rounds": max(run["rounds"] for run in runs),
        "dropped": sum(run["dropped"] for run in runs),
        "bytes_up_per_client": math.fsum(run["bytes_up_per_client"] for run in runs) / len(runs),
        "seconds": math.fsum(run["seconds"] for run in runs),
        **_largest_views(runs),
    }


def _largest_views(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Epsilon by onlooker, the largest of the runs; nothing where no noise is shared."""
    views = [run["epsilon_by_view"] for run in runs if "epsilon_by_view" in run]
    if not views:
        return {}
    return {
        "epsilon_by_view": {name: max(one[name] for one in views) for name in views[0]},
        "colluding": runs[0]["colluding"],
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "securefl": securefl.__version__} | {
        name: importlib.metadata.version(name)
        for name in ("numpy", "scipy", "cryptography", "torch", "opacus")
    }
