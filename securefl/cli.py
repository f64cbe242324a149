"""The command ``securefl``: human output by default, ``--json`` beside it, exit codes for CI.

Exit codes: 0 done; 1 the run could not be carried to its end (rounds lost, a party broke the
protocol); 2 usage, configuration or data; 4 a ledger that is broken or was rolled back; 130
interrupted, resumable.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import securefl
from securefl.config import RunConfig, load_config, load_preset, preset_names
from securefl.errors import CheckpointError, ConfigurationError, DataNotFound, SecureFLError
from securefl.identity_cli import identity, roster
from securefl.paillier_cli import paillier
from securefl.plan_cli import plan

if TYPE_CHECKING:
    from accounting import AccountingError

__all__ = ["app", "main"]

EXIT_FAILED, EXIT_USAGE, EXIT_LEDGER, EXIT_INTERRUPTED = 1, 2, 4, 130

app = typer.Typer(
    name="securefl",
    help="Federated learning that is private for real.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)


def _version(value: bool) -> None:  # typer hands callbacks their value like this
    if value:
        typer.echo(f"securefl {securefl.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated learning that is private for real."""


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="A configuration (TOML).")] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for results; new, or resumed.")],
    preset: Annotated[
        str | None, typer.Option(help=f"One of: {', '.join(preset_names())}.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with mnist/ and heart_disease/ (default: SECUREFL_DATA)."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. training.rounds=20."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where OUT stopped; what was spent stays spent.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train a model with secure aggregation: one run per mode, target epsilon and seed."""
    settings = _settings(config, preset, out, overrides or [], resume=resume)
    from securefl.simulation.sweep import run_sweep  # noqa: PLC0415  # loads torch: seconds

    with _graceful_interrupt() as should_stop, _progress(settings, quiet=as_json) as on_round:
        summary = run_sweep(
            settings,
            out,
            data_dir=data,
            resume=resume,
            on_round=on_round,
            on_features=_tell_features,
            should_stop=should_stop,
        )
    if summary is None:
        console.print(
            f"Stopped between two rounds. Go on with: securefl train --resume --out {out}"
        )
        raise typer.Exit(EXIT_INTERRUPTED)
    report = _write_report(out)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        _print_summary(summary, out, report)
    if _report_stops(summary):
        raise typer.Exit(EXIT_FAILED)


app.command()(plan)
app.add_typer(paillier, name="paillier")
app.add_typer(identity, name="identity")
app.add_typer(roster, name="roster")


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def audit(context: typer.Context) -> None:
    """Judge a deployment file: the command of ``python -m accounting``, with all its options."""
    from typer.main import get_command  # noqa: PLC0415  # needed here only

    from accounting.cli import app as accounting_app  # noqa: PLC0415  # scipy: load late

    get_command(accounting_app).main(["audit", *context.args], prog_name="securefl")


def _settings(
    config: Path | None, preset: str | None, out: Path, overrides: list[str], *, resume: bool
) -> RunConfig:
    if config is not None and preset is not None:
        raise ConfigurationError(f"give a configuration or a preset, not both: {config}, {preset}")
    if config is not None:
        return load_config(config, overrides)
    if preset is not None:
        return load_preset(preset, overrides)
    if resume:
        from securefl.simulation.sweep import load_stored_config  # noqa: PLC0415  # loads torch

        if overrides:
            raise ConfigurationError("--resume goes on with the configuration in OUT: no --set")
        return load_stored_config(out)
    raise ConfigurationError(
        f"give a configuration file or --preset NAME (one of {', '.join(preset_names())})"
    )


@contextmanager
def _graceful_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C once: finish the round and stop. Twice: stop at once; the round stays charged."""
    asked = False

    def ask(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        console.print(
            "Finishing this round, then stopping. Ctrl-C again stops at once; "
            "the round that is cut off then stays charged."
        )
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _progress(settings: RunConfig, *, quiet: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    runs = settings.runs()
    total = sum(settings.rounds(run.mode) for run in runs)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rounds"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet and not sys.stderr.isatty()) as bar:
        task = bar.add_task("starting", total=total, visible=False)

        def on_round(line: Mapping[str, Any]) -> None:
            epsilon = "" if line["epsilon"] is None else f", epsilon {line['epsilon']:.2f}"
            measured = line["accuracy"]
            accuracy = f"round {line['round']}" if measured is None else f"accuracy {measured:.1%}"
            bar.update(
                task,
                completed=_position(settings, line),
                visible=True,
                description=(
                    f"{line['mode']} {line['target_epsilon'] or ''} seed {line['seed']}: "
                    f"{accuracy}{epsilon}"
                ),
            )

        yield on_round
        bar.update(task, completed=total)


def _tell_features(done: int, total: int) -> None:
    """A line per quarter: features of MNIST take half a minute, before the first round."""
    quarter = max(total // 4, 1)
    if done == total or done // quarter > max(done - 8, 0) // quarter:
        console.print(f"features of {done:,} of {total:,} images")


def _position(settings: RunConfig, line: Mapping[str, Any]) -> int:
    before = 0
    for run in settings.runs():
        planned = settings.rounds(run.mode)
        if (run.mode.value, run.target_epsilon, run.seed) == (
            line["mode"],
            line["target_epsilon"],
            line["seed"],
        ):
            # A run that uses up its budget may have more rounds than planned.
            return before + min(int(line["round"]) + 1, planned)
        before += planned
    return before


def _write_report(out: Path) -> Path | None:
    try:
        from securefl.report import write_report  # noqa: PLC0415  # optional extra
    except ModuleNotFoundError as error:
        if error.name not in {"matplotlib", "jinja2"}:
            raise
        console.print(
            f"No report.html: {error.name} is not installed. Install the extra: "
            "pip install 'securefl[report]'; the numbers are in summary.json and metrics.jsonl"
        )
        return None
    return write_report(out)


_STOPS = {
    "lost-rounds": "too many lost rounds: more clients must stay alive, or "
    "aggregation.threshold must be lower",
    "diverged": "the model left the finite numbers: lower the learning rates",
    "budget": "the budget no longer covers a round (rounds that were cut off stay charged)",
}


def _report_stops(summary: Mapping[str, Any]) -> bool:
    """Says which runs ended early and why; whether one of them failed."""
    failed = False
    for status, why in _STOPS.items():
        runs = [run["path"] for run in summary["runs"] if run["status"] == status]
        if runs:
            # Stopping at the budget is what a budget is for.
            word = "[yellow]note:[/yellow]" if status == "budget" else "[red]error:[/red]"
            console.print(f"{word} {', '.join(runs)} stopped early: {why}")
            failed |= status != "budget"
    return failed


def _rounded_up(epsilon: float) -> str:
    """Three decimals, never less than what was spent."""
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}"


def _server(summary: Mapping[str, Any]) -> str:
    """Whom the protocol defends against, in two words."""
    if summary.get("opened_by") == "peers":
        return "no server"
    return f"{summary['adversary']} server"


def _print_summary(summary: Mapping[str, Any], out: Path, report: Path | None) -> None:
    table = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title=(
            f"{summary['dataset']}: {summary['clients']} clients, {_rounds_of(summary)} rounds, "
            f"{summary['protocol']}, {_server(summary)} ({summary['fidelity']})"
        ),
    )
    table.add_column("mode", no_wrap=True)
    for name in ("target ε", "ε", "accuracy", "worst", "seeds", "drops", "kB up", "CPU s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["rows"]:
        table.add_row(
            row["mode"],
            "none" if row["target_epsilon"] is None else f"{row['target_epsilon']:g}",
            "no bound" if row["epsilon"] is None else _rounded_up(row["epsilon"]),
            f"{row['accuracy']:.1%}",
            f"{row['accuracy_min']:.1%}",
            str(len(row["seeds"])),
            str(row["dropped"]),
            f"{row['bytes_up_per_client'] / 1000:.1f}",
            f"{row['seconds']:.1f}",
        )
    output = Console()
    output.print(table)
    output.print(
        "accuracy: mean of the seeds, and the worst; kB up: sent by one client in a whole run."
    )
    private = [row for row in summary["rows"] if row["epsilon"] is not None]
    if private:
        output.print(f"ε at δ = {summary['delta']:g}. {_whose(private, summary)}")
        output.print("Each run has its own ledgers; publishing several runs adds up.")
    if len(private) < len(summary["rows"]):
        output.print(
            "Without DP the secure sum hides single updates, not what the sum and the model reveal."
        )
    if summary["clients_exposed"]:
        output.print(
            f"Without DP the sums of several rounds together determine the update of up to "
            f"{summary['clients_exposed']} of {summary['clients']} clients, as far as updates "
            "change little between rounds."
        )
    if summary["experimental"]:
        output.print(f"Experimental, do not rely on it: {summary['experimental']}.")
    output.print(f"Summary: {out / 'summary.json'}", soft_wrap=True)
    if report is not None:
        output.print(f"Report:  {report}", soft_wrap=True)


def _rounds_of(summary: Mapping[str, Any]) -> str:
    """How many rounds the runs had; modes may differ."""
    rounds = {row["rounds"] for row in summary["rows"]}
    return str(min(rounds)) if len(rounds) == 1 else f"{min(rounds)} to {max(rounds)}"


_WHOSE = {
    "local-dp": "local-dp: for one record of one client, against everyone who sees its updates.",
    "distributed-dp": "distributed-dp: for one record, against",
    "user-level-dp": "user-level-dp: for all of one client's data, against",
}


def _whose(rows: list[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """Unit and onlooker of each private mode; where the noise is shared, the other views too."""
    said = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        text = _WHOSE.get(mode, f"{mode}:")
        views = [
            row["epsilon_by_view"] for row in rows if row["mode"] == mode and "colluding" in row
        ]
        if views:
            alone = max(view["aggregation_broken"] for view in views)
            text += (
                f" the server and {summary['assumed_corrupt']} of the clients; against somebody "
                f"who opened single vectors up to {_rounded_up(alone)}."
            )
        said.append(text)
    return " ".join(said)


def _fail(error: Exception, code: int) -> NoReturn:
    console.print(f"[red]error:[/red] {type(error).__name__}", end=": ", highlight=False)
    console.print(str(error), markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(code)


def _accounting_exit_code(error: AccountingError) -> int:
    from accounting import (  # noqa: PLC0415  # scipy: load late
        BrokenChain,
        CalibrationError,
        LedgerRolledBack,
        LedgerUnavailable,
    )

    if isinstance(error, BrokenChain | LedgerRolledBack | LedgerUnavailable):
        return EXIT_LEDGER
    return EXIT_USAGE if isinstance(error, CalibrationError) else EXIT_FAILED


def main() -> None:
    """Entry point of the console script: errors of the library become one message and a code."""
    import accounting  # noqa: PLC0415  # scipy: load late

    try:
        app()
    except (ConfigurationError, DataNotFound, CheckpointError) as error:
        _fail(error, EXIT_USAGE)
    except SecureFLError as error:
        _fail(error, EXIT_FAILED)
    except accounting.AccountingError as error:
        _fail(error, _accounting_exit_code(error))
    except OSError as error:
        _fail(error, EXIT_USAGE)
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "opacus", "sklearn"}:
            raise
        _fail(
            ConfigurationError(
                f"training needs {error.name}: install the extra, pip install 'securefl[train]'"
            ),
            EXIT_USAGE,
        )
    except KeyboardInterrupt:
        console.print(
            "Stopped in the middle of a round. Its reservations stay charged. "
            "Go on with: securefl train --resume --out DIR"
        )
        raise SystemExit(EXIT_INTERRUPTED) from None


if __name__ == "__main__":
    main()
