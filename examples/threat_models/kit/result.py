"""What a threat-model program reports, how it is run, and when it exits with 1.

A program attacks twice: with the named defence removed, where the attack must work, and against the
library as shipped, where it must fail as far as the theory says. Each of both, per attack, is one
:class:`Result`. :class:`Demo` runs the program from the command line, writes ``result.json`` and
``picture.png``, prints one table and turns the results into an exit code.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Attacker",
    "Demo",
    "Epsilon",
    "Expected",
    "Op",
    "Outcome",
    "Result",
    "Run",
    "Setting",
    "read_json",
    "versions",
]

SCHEMA = "securefl-threat/1"
LEAST_SEEDS = 3
DEFAULT_SEEDS = (0, 1, 2)
HOLDS, FAILS, USAGE = 0, 1, 2
_ROUNDING = 1e-9


class Setting(StrEnum):
    """What stands against the attack."""

    UNDEFENDED = "undefended"
    DEFENDED = "defended"
    NOT_DEFENDED = "not-defended"


class Op(StrEnum):
    """How the values are held against the bound; without ``median``, every single one."""

    AT_LEAST = ">="
    AT_MOST = "<="
    EQUAL = "=="
    MEDIAN_AT_LEAST = "median >="
    MEDIAN_AT_MOST = "median <="


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What must hold for a program to exit with 0.

    >>> Expected(op=Op.AT_LEAST, bound=0.9).holds([0.95, 0.89])
    False
    """

    op: Op
    bound: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "op", Op(self.op))  # also the sign as text
        if math.isnan(self.bound):
            raise ValueError("expected a number as bound, found nan: it would refuse everything")

    def holds(self, values: Sequence[float]) -> bool:
        """Whether it does; never for no values or a NaN."""
        if not values or any(math.isnan(v) for v in values):
            return False
        match self.op:
            case Op.AT_LEAST:
                return min(values) >= self.bound
            case Op.AT_MOST:
                return max(values) <= self.bound
            case Op.EQUAL:
                return all(v == self.bound for v in values)
            case Op.MEDIAN_AT_LEAST:
                return statistics.median(values) >= self.bound
            case Op.MEDIAN_AT_MOST:
                return statistics.median(values) <= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacker:
    """Who attacks.

    Attributes:
        role: "honest-but-curious server", "malicious server", "malicious client", ...
        sees: what reaches it.
        knows: beyond that: model, public data, other clients' inputs.
        colluders: clients that hand over all they know.
        oracle_help: what it is given that no real attacker has; "none", or why it is in favour of
            the attacker.
    """

    role: str
    sees: str
    knows: str
    colluders: int = 0
    oracle_help: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Epsilon:
    """A claim of differential privacy, never a bare number."""

    value: float
    delta: float
    adjacency: str
    rounds: int
    participation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One attack in one setting, over all seeds.

    Attributes:
        threat: the program's name.
        paper: author, year, title.
        attacker: who.
        setting: what stands against it.
        attack: which of the program's attacks.
        metric: what the numbers are, with their unit; more is better for the attacker.
        per_seed: one number per seed, none left out.
        ci95: an interval for the metric over all seeds together, where one is computed.
        baseline: the same metric for an attacker without the transcript.
        cap: the most that theory allows.
        cap_formula: where the cap comes from.
        expected: what must hold; None for a weaker second attack, which is shown and not judged.
        parameters: n, t, bits, noise: all that a reader needs to run it again.
        epsilon: what is claimed, if anything is.
        seconds: of this attack alone.
    """

    threat: str
    paper: str
    attacker: Attacker
    setting: Setting
    attack: str
    metric: str
    per_seed: tuple[float, ...]
    expected: Expected | None
    baseline: float | None = None
    cap: float | None = None
    cap_formula: str = ""
    ci95: tuple[float, float] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    epsilon: Epsilon | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "per_seed", tuple(float(v) for v in self.per_seed))
        object.__setattr__(self, "setting", Setting(self.setting))
        if len(self.per_seed) < LEAST_SEEDS:
            raise ValueError(
                f"{self.threat}, {self.attack}: at least {LEAST_SEEDS} seeds are reported, "
                f"found {len(self.per_seed)}"
            )
        if self.cap is not None and not self.cap_formula:
            raise ValueError(f"{self.threat}, {self.attack}: a cap needs the formula it comes from")

    @property
    def median(self) -> float:
        """Of the seeds."""
        return statistics.median(self.per_seed)

    @property
    def min(self) -> float:
        """The weakest seed."""
        return min(self.per_seed)

    @property
    def max(self) -> float:
        """The strongest seed."""
        return max(self.per_seed)

    @property
    def exceeds_cap(self) -> bool:
        """Whether more was measured than theory allows.

        With an interval: if its middle is three half-widths above the cap, almost six standard
        deviations. An attack that reaches its cap exactly would be outside of one half-width in
        every fortieth run.
        """
        if self.cap is None:
            return False
        if self.ci95 is None:
            return self.max > self.cap + _ROUNDING
        low, high = self.ci95
        return (low + high) / 2 - 1.5 * (high - low) > self.cap + _ROUNDING

    @property
    def judged(self) -> bool:
        """Whether anything is required of this figure; if not, it is only shown."""
        return self.expected is not None or self.cap is not None

    @property
    def passed(self) -> bool:
        """Whether the expectation holds and no cap is exceeded."""
        held = self.expected is None or self.expected.holds(self.per_seed)
        return held and not self.exceeds_cap

    def to_json(self) -> dict[str, Any]:
        """All fields of schema ``securefl-threat/1``; numbers that JSON lacks become text."""
        raw = asdict(self) | {
            "schema": SCHEMA,
            "median": self.median,
            "min": self.min,
            "max": self.max,
            "passed": self.passed,
            "versions": versions(),
        }
        return {key: _plain(raw[key]) for key in ("schema", *(k for k in raw if k != "schema"))}


def _plain(value: Any) -> Any:
    """JSON's types only: no infinities, no NaN, no NumPy scalars."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def versions() -> dict[str, str]:
    """Of everything that could move a figure and is loaded."""
    found = {"python": platform.python_version()}
    for name in ("securefl", "numpy", "scipy", "scikit-learn", "torch", "opacus"):
        module = {"scikit-learn": "sklearn"}.get(name, name)
        # The images are read from scikit-learn's file without importing it.
        if module in sys.modules or (module == "sklearn" and "kit.data" in sys.modules):
            found[name] = importlib.metadata.version(name)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a program measured.

    Attributes:
        results: in the order of the table.
        draw: fills an empty figure; called only where matplotlib is there. It may resize it.
        notes: sentences printed under the table.
    """

    results: tuple[Result, ...]
    draw: Callable[[Figure], None] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How a program is run.

    Attributes:
        name: of the program.
        seeds: at least three.
        quick: smaller parameters, same expectations.
        folder: where its files go; it exists.
    """

    name: str
    seeds: tuple[int, ...]
    quick: bool
    folder: Path

    def transcript(self, label: str = "transcript") -> Path:
        """Where a recording goes: ``transcript.bin``, or another label."""
        return self.folder / f"{label}.bin"


_HEADINGS = ("Adversary", "Capability", "Knowledge")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """One program.

    Attributes:
        name: its file without ``.py``.
        doc: the module's docstring. Its first line is the title; further down stand three lines
            ``Adversary: ...``, ``Capability: ...``, ``Knowledge: ...``.
        run: measures.
        needs: modules of extras without which it cannot run, e.g. ``("torch",)``.
        extra: the extra that brings them.
    """

    name: str
    doc: str
    run: Callable[[Run], Outcome]
    needs: tuple[str, ...] = ()
    extra: str = "train"

    @property
    def title(self) -> str:
        """The docstring's first line."""
        return self.doc.strip().splitlines()[0].rstrip(".")

    @property
    def header(self) -> dict[str, str]:
        """Adversary, capability and knowledge. Raises ValueError if one is missing."""
        found: dict[str, str] = {}
        current = ""
        for line in (raw.strip() for raw in self.doc.splitlines()):
            name, colon, rest = line.partition(":")
            if colon and name in _HEADINGS:
                current = name
                found[current] = rest.strip()
            elif not line:
                current = ""
            elif current:
                found[current] += f" {line}"
        missing = [name for name in _HEADINGS if not found.get(name)]
        if missing:
            raise ValueError(f"{self.name}: the docstring has no line for {', '.join(missing)}")
        return found

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs it. 0: all holds; 1: an expectation failed; 2: usage, or an extra is missing."""
        run_arguments = self._parse(argv)
        if run_arguments is None:
            return USAGE
        run, as_json = run_arguments
        missing = [m for m in self.needs if importlib.util.find_spec(m) is None]
        if missing:
            print(
                f"{self.name} needs {', '.join(missing)}: install the extra {self.extra!r}, "
                f"pip install 'securefl[{self.extra}]'",
                file=sys.stderr,
            )
            return USAGE
        run.folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        outcome = self.run(run)
        seconds = time.perf_counter() - begin
        record = self._record(run, outcome, seconds)
        (run.folder / "result.json").write_text(json.dumps(record, indent=1) + "\n")
        note = self._picture(run, outcome)
        if as_json:
            print(json.dumps(record, indent=1))
        else:
            self._print(outcome, seconds, note)
        return HOLDS if record["passed"] else FAILS

    def _parse(self, argv: Sequence[str] | None) -> tuple[Run, bool] | None:
        parser = argparse.ArgumentParser(prog=self.name, description=self.title)
        parser.add_argument("--seeds", type=int, nargs="+", default=list(DEFAULT_SEEDS))
        parser.add_argument("--quick", action="store_true", help="smaller, a few seconds")
        parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "out")
        parser.add_argument("--json", action="store_true", help="print JSON, not a table")
        try:
            given = parser.parse_args(argv)
        except SystemExit as stop:
            if not stop.code:
                raise  # --help
            return None
        seeds = tuple(given.seeds)
        if len(set(seeds)) < LEAST_SEEDS or len(set(seeds)) != len(seeds) or min(seeds) < 0:
            print(
                f"{self.name}: expected at least {LEAST_SEEDS} different seeds >= 0, found "
                f"{list(seeds)}: one lucky seed proves nothing",
                file=sys.stderr,
            )
            return None
        folder = given.out / self.name
        run = Run(name=self.name, seeds=seeds, quick=given.quick, folder=folder)
        return run, given.json

    def _record(self, run: Run, outcome: Outcome, seconds: float) -> dict[str, Any]:
        if not outcome.results:
            raise ValueError(f"{self.name} reported nothing: that is no demonstration")
        return {
            "schema": SCHEMA,
            "threat": self.name,
            "title": self.title,
            **{heading.lower(): text for heading, text in self.header.items()},
            "seeds": list(run.seeds),
            "quick": run.quick,
            "results": [r.to_json() for r in outcome.results],
            "notes": list(outcome.notes),
            "passed": all(r.passed for r in outcome.results),
            "seconds": round(seconds, 3),
        }

    def _picture(self, run: Run, outcome: Outcome) -> str:
        if outcome.draw is None:
            return ""
        if importlib.util.find_spec("matplotlib") is None:
            return "no picture: it needs the extra 'report' (matplotlib)"
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        plots.save(outcome.draw, run.folder / "picture.png")
        return ""

    def _print(self, outcome: Outcome, seconds: float, note: str) -> None:
        console = Console(width=120)
        console.print(f"[bold]{escape(self.title)}[/]")
        for heading, text in self.header.items():
            console.print(f"[dim]{heading}:[/] {escape(text)}", highlight=False)
        table = Table()
        for column in ("setting", "attack", "metric", "median", "min..max", "baseline", "cap",
                       "expected", "holds"):  # fmt: skip
            table.add_column(column, overflow="fold")
        for r in outcome.results:
            wanted = "at most the cap" if r.judged else "shown"
            if r.expected is not None:
                wanted = f"{r.expected.op} {_short(r.expected.bound)}"
            cells = [r.setting, r.attack, r.metric, _short(r.median),
                     f"{_short(r.min)}..{_short(r.max)}", _short(r.baseline), _short(r.cap),
                     wanted, ("yes" if r.passed else "NO") if r.judged else "-"]  # fmt: skip
            table.add_row(*(escape(str(cell)) for cell in cells))
        console.print(table)
        for line in (*outcome.notes, note, f"{seconds:.1f} s"):
            if line:
                console.print(line, highlight=False, markup=False)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def read_json(path: Path) -> dict[str, Any]:
    """A program's ``result.json``. Raises ValueError if it is not of this schema."""
    record = json.loads(path.read_text())
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA!r}")
    return record
