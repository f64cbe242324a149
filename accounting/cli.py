"""``python -m accounting``: costs, ledgers, statements, audits; ``--json`` beside every output.

Events come as JSON (``--event``, or ``--event @FILE``). Epsilons are printed rounded up; JSON has
all digits. Exit codes: 0 done; 1 the accountants disagree (``compare``); 2 usage, an impossible
event or one without a proved cost.

This module computes nothing: it reads, asks the package, and prints.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from accounting import (
    AccountingError,
    Bound,
    Event,
    InvalidEvent,
    InvalidParameter,
    Over,
    RDPAccountant,
    calibrate,
    epsilon,
    parse,
)
from accounting.cli_audit import register as _register_audit
from accounting.cli_empirical import audit_mechanism
from accounting.cli_ledger import ledger_app, statement
from accounting.cli_text import number as _number
from accounting.cli_text import plain_warnings
from accounting.cli_text import shown as _shown
from accounting.compare import Opinion, disagreements, opinions

__all__ = ["app", "main"]

EXIT_DISAGREE, EXIT_USAGE = 1, 2

app = typer.Typer(
    name="accounting",
    help="What a release costs: differential privacy accounting.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_register_audit(app)  # audit, plan, diff
console = Console(stderr=True)

EventText = Annotated[
    str, typer.Option("--event", metavar="JSON", help="The event as JSON, or @FILE.")
]
AdjacencyName = Annotated[
    str, typer.Option("--adjacency", help="add-remove, zero-out or replace-one; no default.")
]
Delta = Annotated[float, typer.Option(help="Target delta, strictly between 0 and 1.")]
MethodName = Annotated[str, typer.Option("--method", help="auto, rdp, pld or exact.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@contextmanager
def _errors() -> Iterator[None]:
    """One line instead of a traceback for what the package refuses; warnings go to stderr."""
    try:
        with plain_warnings(console):
            yield
    except (AccountingError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_USAGE) from None


def _read(text: str) -> Event:
    return parse(Path(text[1:]).read_bytes() if text.startswith("@") else text)


def _fields(bound: Bound) -> dict[str, Any]:
    body: dict[str, Any] = {
        "epsilon": _number(bound.value),
        "kind": bound.kind.value,
        "method": bound.method.value,
        "order": bound.order,
        "delta": bound.delta,
        "adjacency": bound.adjacency.value,
    }
    if bound.discretisation is not None:
        body["discretisation"] = bound.discretisation
        body["discretisation_error"] = bound.discretisation_error
    return body


def _print_json(body: object) -> None:
    typer.echo(json.dumps(body, allow_nan=False))


@app.command(name="epsilon")
def _epsilon(
    event: EventText,
    adjacency: AdjacencyName,
    delta: Delta,
    method: MethodName = "auto",
    as_json: AsJson = False,
) -> None:
    """The epsilon of an event at a delta."""
    with _errors():
        bound = epsilon(_read(event), delta, adjacency=adjacency, method=method)
    if as_json:
        _print_json(_fields(bound))
        return
    order = "" if bound.order is None else f" at order {bound.order:.6g}"
    typer.echo(f"epsilon {_shown(bound.value)}")
    typer.echo(f"  {bound.kind} bound by {bound.method}{order}")
    typer.echo(f"  at delta {bound.delta:g}, {bound.adjacency} adjacency")
    if bound.discretisation_error is not None:
        typer.echo(
            f"  grid width {bound.discretisation:.3g}; halving it moved the value by "
            f"{bound.discretisation_error:.3g}"
        )


@app.command(name="calibrate")
def _calibrate(
    event: EventText,
    adjacency: AdjacencyName,
    delta: Delta,
    target: Annotated[float, typer.Option("--epsilon", help="Target epsilon, > 0.")],
    over: Annotated[
        str,
        typer.Option(help="noise_multiplier, steps, sample_rate or cohort: what to search."),
    ] = "noise_multiplier",
    method: MethodName = "rdp",
    as_json: AsJson = False,
) -> None:
    """The least noise, the most steps or the largest rate or cohort that meets a target.

    The searched value replaces every field of that name in the event (steps: the count of every
    repeat), whatever stands there.
    """
    with _errors():
        make = _template(_read(event), Over.of(over))
        found = calibrate(make, target, delta, adjacency=adjacency, over=over, method=method)
    body = {
        "over": Over.of(over).value,
        "value": found.value,
        "target": found.target,
        "achieved": _fields(found.achieved),
    }
    if as_json:
        _print_json(body)
        return
    typer.echo(f"{body['over']} {found.value!r}")
    typer.echo(f"  achieves epsilon {_shown(found.achieved.value)} of {found.target:g}")
    typer.echo(f"  at delta {delta:g}, {found.achieved.adjacency} adjacency")


_FIELD = {
    Over.NOISE_MULTIPLIER: "noise_multiplier",
    Over.STEPS: "count",
    Over.SAMPLE_RATE: "sample_rate",
    Over.COHORT: "cohort",
}


def _template(event: Event, over: Over) -> Callable[[Any], Event]:
    """The event as a function of one of its fields, wherever that field stands."""
    from accounting.events import from_json, to_json  # noqa: PLC0415  # of the low-level interface

    name = _FIELD[over]
    places = 0

    def put(body: Any, value: Any) -> Any:
        nonlocal places
        if isinstance(body, list):
            return [put(one, value) for one in body]
        if not isinstance(body, dict):
            return body
        places += name in body
        return {k: value if k == name else put(v, value) for k, v in body.items()}

    body = to_json(event)
    put(body, 1)
    if not places:
        raise InvalidEvent(f"the event has no field {name} to search over")
    return lambda value: from_json(put(body, value))


@app.command()
def curve(
    event: EventText,
    adjacency: AdjacencyName,
    orders: Annotated[str, typer.Option(help="Orders, separated by commas, increasing.")],
    as_json: AsJson = False,
) -> None:
    """The Renyi curve of an event at given orders."""
    with _errors():
        try:
            values = [float(part) for part in orders.split(",")]
        except ValueError:
            raise InvalidParameter(
                f"orders must be numbers separated by commas, found {orders!r}"
            ) from None
        accountant = RDPAccountant(adjacency=adjacency, orders=values)
        accountant.compose(_read(event))
        found = accountant.curve()
    if as_json:
        body: dict[str, Any] = {
            "orders": list(found.orders),
            "rdp": [_number(value) for value in found.values],
        }
        if found.delta:
            body["delta"] = found.delta
        _print_json(body)
        return
    for order, value in zip(found.orders, found.values, strict=True):
        typer.echo(f"{order:>10g}  {value:.12g}")
    if found.delta:
        typer.echo(f"outside of a failure of probability {found.delta:g}")


@app.command()
def compare(
    event: EventText,
    adjacency: AdjacencyName,
    delta: Delta,
    as_json: AsJson = False,
) -> None:
    """Every accountant there is, side by side; disagreement beyond the methods is flagged."""
    with _errors():
        found = opinions(_read(event), delta, adjacency=adjacency)
        flags = disagreements(found)
    if as_json:
        _print_json(
            {
                "delta": delta,
                "adjacency": adjacency,
                "accountants": [_opinion(one) for one in found],
                "disagreements": flags,
            }
        )
    else:
        table = Table(box=box.SIMPLE)
        for heading in ("accountant", "epsilon", "kind", "remark"):
            table.add_column(heading)
        for one in found:
            value = "-" if one.epsilon is None else _shown(one.epsilon)
            table.add_row(one.name, value, one.kind.value, one.remark)
        Console(width=None if sys.stdout.isatty() else 100).print(table)
        for flag in flags:
            typer.echo(f"disagreement: {flag}")
    if flags:
        raise typer.Exit(EXIT_DISAGREE)


def _opinion(one: Opinion) -> dict[str, Any]:
    value = None if one.epsilon is None else _number(one.epsilon)
    return {"name": one.name, "epsilon": value, "kind": one.kind.value, "remark": one.remark}


app.add_typer(ledger_app, name="ledger")
app.command(name="statement")(statement)
app.command(name="audit-mechanism")(_errors()(audit_mechanism))


def main() -> None:
    """The entry of ``python -m accounting``."""
    app()
