"""The files of a run, read and checked.

A run directory holds ``summary.json`` (the table of rows) and one folder per run with
``summary.json`` and ``metrics.jsonl`` (one line per round); ``docs/tutorial`` walks through them.
This module turns them into frozen values and refuses what is missing, of the wrong type or out of
range: a report must not quietly show less than the run recorded. Unknown keys are ignored, so that
a later writer may add some. It knows neither how a figure came about nor what it will look like.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from securefl.errors import ConfigurationError

__all__ = ["LedgerRecord", "RoundRecord", "Row", "RunRecord", "RunTree", "read_tree"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """One training round, as one line of ``metrics.jsonl``.

    Attributes:
        index: the round, from 0.
        status: ``ok``, ``below-threshold`` or ``skipped``.
        cohort: clients selected.
        survivors: clients whose input is in the sum.
        dropped: phase name to the number of clients that vanished there.
        accuracy: on the test set after the round, in [0, 1]; None if not evaluated.
        loss: None if it was not recorded or not finite.
        epsilon: largest over the clients so far; None without differential privacy.
        bytes_up_per_client: mean over the cohort.
        bytes_down_per_client: mean over the cohort.
        bytes_up: of all clients together.
        bytes_down: of all clients together.
        seconds: stage name to seconds.
        update_norm: L2 norm of the applied mean update; None if there was none.
        clipped_fraction: share of updates that were clipped, in [0, 1]; None if not recorded.
    """

    index: int
    status: str
    cohort: int
    survivors: int
    dropped: Mapping[str, int]
    accuracy: float | None
    loss: float | None
    epsilon: float | None
    bytes_up_per_client: float
    bytes_down_per_client: float
    bytes_up: int
    bytes_down: int
    seconds: Mapping[str, float]
    update_norm: float | None
    clipped_fraction: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRecord:
    """Where a ledger lies and how far it had come.

    Attributes:
        client_index: whose it is, from 0; None for the one ledger of a population.
        path: as written by the run, relative to the run's folder or the run directory.
        head: number and hash of the ledger's last entry.
        spent_epsilon: what that ledger charges at its own delta; None if not recorded.
    """

    client_index: int | None
    path: str
    head: str
    spent_epsilon: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run: one mode, one target, one seed; a deployment of its own.

    Attributes:
        path: folder of the run, relative to the run directory.
        mode: ``none``, ``local-dp``, ``distributed-dp`` or ``user-level-dp``; other names are shown
            as they are.
        target_epsilon: None without differential privacy.
        seed: of initialisation, partition and plain shuffling (never of noise).
        accuracy: on the test set at the end, in [0, 1]; None if never evaluated.
        epsilon: largest over the clients; None without differential privacy.
        delta: None if not recorded.
        status: why the run ended.
        adjacency: the neighbour relation of epsilon; empty if not recorded.
        unit: whose presence epsilon hides; empty if not recorded.
        noise_multiplier: None without differential privacy.
        sample_rate: Poisson rate of a record per step; None if there is no one value.
        steps_per_round: None if there is no one value.
        ledgers: one per client under local differential privacy, one for all where the noise is
            shared, else empty.
        rounds: in order.
        views: onlooker -> epsilon at the end, where the noise is shared; else empty.
        colluding: clients assumed to help the server, in those views; None if not recorded.
        fewest_survivors: fewest clients of a sum that was paid for; None if not recorded.
        randomness: ``system``, or ``injected`` for a run that protects nobody; empty if not
            recorded.
    """

    path: str
    mode: str
    target_epsilon: float | None
    seed: int
    accuracy: float | None
    epsilon: float | None
    delta: float | None
    status: str
    adjacency: str
    unit: str
    noise_multiplier: float | None
    sample_rate: float | None
    steps_per_round: float | None
    ledgers: tuple[LedgerRecord, ...]
    rounds: tuple[RoundRecord, ...]
    views: Mapping[str, float]
    colluding: int | None
    fewest_survivors: int | None
    randomness: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: all seeds of one mode and target.

    Attributes:
        mode: as of its runs.
        target_epsilon: None without differential privacy.
        epsilon: largest over clients and seeds; None without differential privacy.
        accuracy: mean over the seeds, in [0, 1].
        accuracy_min: worst seed, in [0, 1].
        seeds: which ones.
        dropped: client-drops in all runs together.
        bytes_up_per_client: mean, whole run.
        seconds: of all runs together.
        runs: the runs behind the line, in the order of the summary.
    """

    mode: str
    target_epsilon: float | None
    epsilon: float | None
    accuracy: float
    accuracy_min: float
    seeds: tuple[int, ...]
    dropped: int
    bytes_up_per_client: float
    seconds: float
    runs: tuple[RunRecord, ...]

    @property
    def views(self) -> Mapping[str, float]:
        """Onlooker -> largest epsilon of the runs; empty where the noise is not shared."""
        names = dict.fromkeys(name for run in self.runs for name in run.views)
        return {name: max(run.views.get(name, 0.0) for run in self.runs) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTree:
    """Everything a report is made of.

    Attributes:
        dataset: name of the data set.
        train_size: records in training, all clients together.
        test_size: records in the test set.
        clients: how many.
        rounds: planned for each run.
        delta: of every epsilon in the table; None if no row has differential privacy.
        fidelity: how much of the real protocol ran; empty if not recorded.
        protocol: name of the aggregation protocol; empty if not recorded.
        adversary: what the protocol defends against; empty if not recorded.
        threshold: fewest clients alive in every phase; None if not recorded.
        graph: who shares masks with whom; empty if not recorded.
        degree: with how many others each client does; None if not recorded.
        shares: how many rebuild a secret or open a sum; None if not recorded.
        opened_by: whom that takes besides the server; empty if not recorded.
        experimental: what about the sums nobody has proved or reviewed; empty if nothing.
        assumed_corrupt: clients assumed to help the server; None if not recorded.
        min_honest: fewest honest updates in any opened sum; None if not recorded.
        config_digest: of the configuration; empty if not recorded.
        versions: package name to version.
        rows: lines of the table; at least one.
    """

    dataset: str
    train_size: int
    test_size: int
    clients: int
    rounds: int
    delta: float | None
    fidelity: str
    protocol: str
    adversary: str
    threshold: int | None
    graph: str
    degree: int | None
    shares: int | None
    opened_by: str
    experimental: str
    assumed_corrupt: int | None
    min_honest: int | None
    config_digest: str
    versions: Mapping[str, str]
    rows: tuple[Row, ...]

    @property
    def shares_noise(self) -> bool:
        """Whether some row's noise is the sum of its clients' shares."""
        return any(row.views for row in self.rows)

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All runs, in the order of the table."""
        return tuple(run for row in self.rows for run in row.runs)


class _Fields:
    """One JSON object, read with checks; a complaint names file, place and key."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise ConfigurationError(
                f"{where}: expected a JSON object, found {type(data).__name__}; "
                "was this file written by securefl train?"
            )
        self._data: dict[str, object] = data
        self.where = where

    def _get(self, key: str) -> object:
        if key not in self._data:
            raise ConfigurationError(
                f"{self.where}: the key {key!r} is missing; run securefl train again "
                "(--resume continues a run that was interrupted)"
            )
        return self._data[key]

    def _wrong(self, key: str, expected: str, found: object) -> NoReturn:
        raise ConfigurationError(f"{self.where}: {key!r} must be {expected}, found {found!r}")

    def text(self, key: str) -> str:
        value = self._get(key)
        return value if isinstance(value, str) else self._wrong(key, "a text", value)

    def text_or_empty(self, key: str) -> str:
        return "" if self._data.get(key) is None else self.text(key)

    def count(self, key: str) -> int:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self._wrong(key, "an integer of at least 0", value)
        return value

    def count_or_none(self, key: str) -> int | None:
        return None if self._data.get(key) is None else self.count(key)

    def integer(self, key: str) -> int:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong(key, "an integer", value)
        return value

    def real(self, key: str, *, top: float = math.inf) -> float:
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._wrong(key, "a number", value)
        if not (0 <= value <= top and math.isfinite(value)):
            self._wrong(key, f"in [0, {top:g}]" if top < math.inf else "finite, at least 0", value)
        return float(value)

    def real_or_none(self, key: str, *, top: float = math.inf) -> float | None:
        return None if self._data.get(key) is None else self.real(key, top=top)

    def required_or_none(self, key: str, *, top: float = math.inf) -> float | None:
        """The key must be there, but its value may be null."""
        return None if self._get(key) is None else self.real(key, top=top)

    def objects(self, key: str) -> tuple[_Fields, ...]:
        value = self._get(key)
        if not isinstance(value, list):
            self._wrong(key, "a list", value)
        return tuple(
            _Fields(item, f"{self.where}, {key}[{index}]") for index, item in enumerate(value)
        )

    def objects_or_none(self, key: str) -> tuple[_Fields, ...]:
        return () if self._data.get(key) is None else self.objects(key)

    def integers(self, key: str) -> tuple[int, ...]:
        value = self._get(key)
        if not isinstance(value, list):
            self._wrong(key, "a list of integers", value)
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int):
                self._wrong(key, "a list of integers", value)
        return tuple(value)

    def _mapping(self, key: str) -> _Fields:
        return _Fields(self._data.get(key) or {}, f"{self.where}, {key}")

    def counts_by_name(self, key: str) -> dict[str, int]:
        inner = self._mapping(key)
        return {name: inner.count(name) for name in inner._data}

    def reals_by_name(self, key: str) -> dict[str, float]:
        inner = self._mapping(key)
        return {name: inner.real(name) for name in inner._data}

    def texts_by_name(self, key: str) -> dict[str, str]:
        inner = self._mapping(key)
        return {name: inner.text(name) for name in inner._data}


def read_tree(out_dir: Path) -> RunTree:
    """The run directory ``out_dir`` as checked values.

    Raises:
        ConfigurationError: naming the file and key that is missing, of the wrong type or out of
            range; also if a run's path leaves ``out_dir``, or a run belongs to no row.
    """
    summary = _Fields(_load(out_dir / "summary.json"), "summary.json")
    runs = [_read_run(out_dir, entry) for entry in summary.objects("runs")]
    rows = tuple(_read_row(fields, runs) for fields in summary.objects("rows"))
    if not rows:
        raise ConfigurationError("summary.json: 'rows' is empty; there is nothing to report")
    shown = {run.path for row in rows for run in row.runs}
    orphans = [run.path for run in runs if run.path not in shown]
    if orphans:
        raise ConfigurationError(
            f"summary.json: runs {orphans} belong to no row of the table; a report would hide them"
        )
    return RunTree(
        dataset=summary.text("dataset"),
        train_size=summary.count("train_size"),
        test_size=summary.count("test_size"),
        clients=summary.count("clients"),
        rounds=summary.count("rounds"),
        delta=summary.required_or_none("delta", top=1.0),
        fidelity=summary.text_or_empty("fidelity"),
        protocol=summary.text_or_empty("protocol"),
        adversary=summary.text_or_empty("adversary"),
        threshold=summary.count_or_none("threshold"),
        graph=summary.text_or_empty("graph"),
        degree=summary.count_or_none("degree"),
        shares=summary.count_or_none("shares"),
        opened_by=summary.text_or_empty("opened_by"),
        experimental=summary.text_or_empty("experimental"),
        assumed_corrupt=summary.count_or_none("assumed_corrupt"),
        min_honest=summary.count_or_none("min_honest"),
        config_digest=summary.text_or_empty("config_digest"),
        versions=summary.texts_by_name("versions"),
        rows=rows,
    )


def _read_row(fields: _Fields, runs: Sequence[RunRecord]) -> Row:
    mode = fields.text("mode")
    target = fields.required_or_none("target_epsilon")
    seeds = fields.integers("seeds")
    own = tuple(run for run in runs if run.mode == mode and run.target_epsilon == target)
    if sorted(run.seed for run in own) != sorted(seeds):
        raise ConfigurationError(
            f"{fields.where}: the row says seeds {sorted(seeds)}, but the runs of mode {mode!r} "
            f"and target {target} have seeds {sorted(run.seed for run in own)}"
        )
    return Row(
        mode=mode,
        target_epsilon=target,
        epsilon=fields.required_or_none("epsilon"),
        accuracy=fields.real("accuracy", top=1.0),
        accuracy_min=fields.real("accuracy_min", top=1.0),
        seeds=seeds,
        dropped=fields.count("dropped"),
        bytes_up_per_client=fields.real("bytes_up_per_client"),
        seconds=fields.real("seconds"),
        runs=own,
    )


def _read_run(out_dir: Path, entry: _Fields) -> RunRecord:
    path = entry.text("path")
    folder = out_dir / path
    if not folder.resolve().is_relative_to(out_dir.resolve()):
        raise ConfigurationError(
            f"{entry.where}: the path {path!r} leads out of the run directory; it is not read"
        )
    own = _Fields(_load(folder / "summary.json"), f"{path}/summary.json")
    return RunRecord(
        path=path,
        mode=entry.text("mode"),
        target_epsilon=entry.required_or_none("target_epsilon"),
        seed=entry.integer("seed"),
        accuracy=entry.required_or_none("accuracy", top=1.0),
        epsilon=entry.required_or_none("epsilon"),
        delta=own.real_or_none("delta", top=1.0),
        status=entry.text("status"),
        adjacency=own.text_or_empty("adjacency"),
        unit=own.text_or_empty("unit"),
        noise_multiplier=own.real_or_none("noise_multiplier"),
        sample_rate=own.real_or_none("sample_rate", top=1.0),
        steps_per_round=own.real_or_none("steps_per_round"),
        ledgers=tuple(_read_ledger(fields) for fields in own.objects_or_none("ledgers")),
        rounds=_read_rounds(folder / "metrics.jsonl", f"{path}/metrics.jsonl"),
        views=own.reals_by_name("epsilon_by_view"),
        colluding=own.count_or_none("colluding"),
        fewest_survivors=own.count_or_none("fewest_survivors"),
        randomness=own.text_or_empty("randomness"),
    )


def _read_ledger(fields: _Fields) -> LedgerRecord:
    return LedgerRecord(
        client_index=fields.count_or_none("client_index"),
        path=fields.text("path"),
        head=fields.text("head"),
        spent_epsilon=fields.real_or_none("spent_epsilon"),
    )


def _read_rounds(path: Path, where: str) -> tuple[RoundRecord, ...]:
    lines = _read_text(path).splitlines()
    rounds = tuple(
        _read_round(_Fields(_parse(line, f"{where}, line {number}"), f"{where}, line {number}"))
        for number, line in enumerate(lines, start=1)
    )
    indices = [record.index for record in rounds]
    if indices != list(range(len(indices))):
        raise ConfigurationError(
            f"{where}: rounds must count 0, 1, 2, ... without gap or repeat, found {indices}"
        )
    return rounds


def _read_round(fields: _Fields) -> RoundRecord:
    cohort, survivors = fields.count("cohort"), fields.count("survivors")
    if survivors > cohort:
        raise ConfigurationError(
            f"{fields.where}: {survivors} survivors of a cohort of {cohort} are impossible"
        )
    return RoundRecord(
        index=fields.count("round"),
        status=fields.text("status"),
        cohort=cohort,
        survivors=survivors,
        dropped=fields.counts_by_name("dropped"),
        accuracy=fields.required_or_none("accuracy", top=1.0),
        loss=fields.real_or_none("loss"),
        epsilon=fields.required_or_none("epsilon"),
        bytes_up_per_client=fields.real("bytes_up_per_client"),
        bytes_down_per_client=fields.real("bytes_down_per_client"),
        bytes_up=fields.count("bytes_up"),
        bytes_down=fields.count("bytes_down"),
        seconds=fields.reals_by_name("seconds"),
        update_norm=fields.real_or_none("update_norm"),
        clipped_fraction=fields.real_or_none("clipped_fraction", top=1.0),
    )


def _load(path: Path) -> object:
    return _parse(_read_text(path), str(path))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} is missing: a report needs a folder written by "
            "securefl train CONFIG.toml --out DIR (--resume finishes an interrupted one)"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: {error}") from None


def _parse(text: str, where: str) -> object:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ConfigurationError(
            f"{where} is not valid JSON ({error}); a torn last line means that the run was "
            "interrupted: continue it with securefl train --resume"
        ) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; a value that is not finite is written as null")
