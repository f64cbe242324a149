"""``python -m accounting ledger verify|show|export|recover`` and ``statement``.

Both forms of a ledger are read, the file and its export. Exit codes: 0 done; 2 usage, or a file
that cannot be read or is no ledger; 4 a ledger that is broken, cut off or was rolled back. With
``--json``, the findings of a ledger that fails are printed as an object too.

This module computes nothing: it reads, asks the package, and prints.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from accounting.accountant import Bound
from accounting.cli_text import number, plain_warnings, shown
from accounting.entries import Head, LedgerEntry, LedgerHeader, Randomness
from accounting.errors import (
    AccountingError,
    BrokenChain,
    InvalidParameter,
    LedgerRolledBack,
    LedgerUnavailable,
)
from accounting.events import Event, to_json
from accounting.export import VerifiedLedger
from accounting.filter import to_rdp
from accounting.ledger import Ledger
from accounting.ledger_file import is_sqlite
from accounting.statement import ClientStatement, client_statement

__all__ = ["EXIT_LEDGER", "ledger_app", "statement"]

EXIT_USAGE, EXIT_LEDGER = 2, 4

ledger_app = typer.Typer(
    name="ledger",
    help="Check, read, export and recover a ledger.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_errors_to = Console(stderr=True)

File = Annotated[Path, typer.Argument(metavar="LEDGER", help="A ledger, or an export of one.")]
HeadText = Annotated[
    str | None,
    typer.Option(
        "--expect-head",
        metavar="SEQ:HASH",
        help="A head seen before; the ledger must contain it.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@contextmanager
def _refusals(as_json: bool) -> Iterator[None]:
    """Exit codes instead of tracebacks; 4 only if the ledger is at fault."""
    try:
        with plain_warnings(_errors_to):
            yield
    except (AccountingError, OSError) as error:
        code = EXIT_LEDGER if isinstance(error, BrokenChain | LedgerRolledBack) else EXIT_USAGE
        if as_json:
            body = {
                "ok": False,
                "error": type(error).__name__,
                "message": str(error),
                "entry": getattr(error, "entry", None),
            }
            _print_json(body)
        else:
            _errors_to.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(code) from None


def _print_json(body: object) -> None:
    typer.echo(json.dumps(body, allow_nan=False, ensure_ascii=True))


def _head(text: str | None) -> Head | None:
    return None if text is None else Head.parse(text)


# --- ledger ---------------------------------------------------------------------------------------


@ledger_app.command()
def verify(
    file: File,
    expect_head: HeadText = None,
    allow_torn: Annotated[
        bool,
        typer.Option("--allow-torn", help="Take what is whole of an export that was cut off."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Checks everything that can be checked from the file alone; with a head, also its age."""
    with _refusals(as_json):
        found = Ledger.verify(file, _head(expect_head), allow_torn=allow_torn)
        if as_json:
            _print_json({"ok": True, **_summary(found)})
            return
        typer.echo(f"{file}: {len(found.entries)} entries, unbroken")
        if expect_head is None:
            typer.echo("  not checked against a head: an old copy would look the same")
        else:
            typer.echo(f"  contains {expect_head}")
        _print_summary(found)


@ledger_app.command()
def show(
    file: File,
    expect_head: HeadText = None,
    last: Annotated[
        int | None, typer.Option("--last", min=1, help="Only so many of the newest entries.")
    ] = None,
    allow_torn: Annotated[
        bool,
        typer.Option("--allow-torn", help="Take what is whole of an export that was cut off."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The declaration, where the budget stands, and the entries. The ledger is verified first."""
    with _refusals(as_json):
        found = Ledger.verify(file, _head(expect_head), allow_torn=allow_torn)
        entries = found.entries[-last:] if last else found.entries
        if as_json:
            _print_json({"ok": True, **_summary(found), "log": [_entry(one) for one in entries]})
            return
        _print_header(found.header)
        _print_summary(found)
        _print_entries(entries)


@ledger_app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="LEDGER", help="A ledger file.")],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="[OUT]", help="Where to write; standard output if left out."),
    ] = None,
    expect_head: HeadText = None,
    as_json: AsJson = False,
) -> None:
    """Writes JSON Lines that `ledger verify` checks without the database."""
    with _refusals(as_json):
        if as_json and out is None:
            raise InvalidParameter("--json reports on a written export: name OUT")
        with _open(file, expect_head) as ledger:
            if out is None:
                for line in ledger.export_lines():
                    typer.echo(line.encode() + b"\n", nl=False)
                return
            head = ledger.export(out)
    if as_json:
        _print_json({"ok": True, "file": str(out), "entries": head.sequence + 1, "head": str(head)})
        return
    typer.echo(f"{out}: {head.sequence + 1} entries, head {head}")


@ledger_app.command()
def recover(
    file: Annotated[Path, typer.Argument(metavar="LEDGER", help="A ledger file.")],
    expect_head: HeadText = None,
    as_json: AsJson = False,
) -> None:
    """Settles every open reservation at its price: what to do after a crash.

    Only if no run is using the ledger: a round that is still going on would lose its reservation.
    """
    with _refusals(as_json), _open(file, expect_head) as ledger:
        tickets = ledger.recover()
        head, balance = ledger.head, ledger.balance
    if as_json:
        settled = [{"key": t.key, "round": t.round, "ticks": t.ticks} for t in tickets]
        _print_json({"ok": True, "settled": settled, "head": str(head), "spent": balance.spent})
        return
    typer.echo(f"open reservations settled at their price: {len(tickets)}")
    for ticket in tickets:
        typer.echo(f"  round {ticket.round}: RDP {to_rdp(ticket.ticks):.6g}")
    typer.echo(f"head {head}")


def _open(file: Path, expect_head: str | None) -> Ledger:
    head = _head(expect_head)
    if not is_sqlite(file):
        raise LedgerUnavailable(f"{file} is no ledger file; an export can only be read")
    return Ledger.open(file, expect_head=head)


# --- statement ------------------------------------------------------------------------------------


def statement(
    file: Annotated[
        Path, typer.Argument(metavar="LEDGER", help="The client's own ledger, or its export.")
    ],
    expect_head: HeadText = None,
    population: Annotated[
        Path | None,
        typer.Option("--population", metavar="LEDGER", help="The population's, or its export."),
    ] = None,
    population_head: Annotated[
        str | None,
        typer.Option("--population-head", metavar="SEQ:HASH", help="A head of it seen before."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What was done with one client's data and what it can have told, for that client."""
    with _refusals(as_json):
        if population is None and population_head is not None:
            raise InvalidParameter("--population-head needs --population")
        own = Ledger.verify(file, _head(expect_head))
        other = None
        if population is not None:
            other = Ledger.verify(population, _head(population_head))
        made = client_statement(own, other)
        if as_json:
            _print_json({"ok": True, **_statement(made)})
            return
        _print_statement(made)


def _statement(made: ClientStatement) -> dict[str, Any]:
    other = made.population
    return {
        "header": _header(made.header),
        "participations": made.participations,
        "pending": made.pending,
        "epsilon": _bound(made.epsilon),
        "unamplified": _bound(made.unamplified),
        "within_budget": made.within_budget,
        "head": str(made.head),
        "randomness": made.randomness.value,
        "population": None
        if other is None
        else {
            "header": _header(other.header),
            "epsilon": _bound(other.epsilon),
            "head": str(other.head),
            "randomness": other.randomness.value,
        },
    }


def _print_statement(made: ClientStatement) -> None:
    header, own = made.header, made.unamplified
    typer.echo(f"Statement for {header.population} alone")
    pending = f", and {made.pending} reserved" if made.pending else ""
    typer.echo(f"  releases that used its data: {made.participations}{pending}")
    typer.echo(
        f"  together they are ({shown(own.value)}, {own.delta:g})-differentially private for one "
        f"{header.unit}, {own.adjacency} adjacency, for a fixed plan, without sampling of clients"
    )
    if made.epsilon.value < own.value:
        charged = shown(made.epsilon.value)
        typer.echo(f"  its ledger charged epsilon {charged}, counting on sampling")
    room = "has room for that" if made.within_budget else "does NOT cover that"
    typer.echo(f"  its own budget of epsilon {header.epsilon:g} at delta {header.delta:g} {room}")
    typer.echo(f"  head of its ledger {made.head}")
    _warn_of_randomness(made.randomness)
    other = made.population
    if other is None:
        return
    typer.echo(f"Population {other.header.population}")
    typer.echo(
        f"  epsilon {shown(other.epsilon.value)} at delta {other.epsilon.delta:g} for one "
        f"{other.header.unit}, {other.epsilon.adjacency} adjacency, for a fixed plan; declared "
        f"{other.header.epsilon:g}"
    )
    typer.echo(f"  head of its ledger {other.head}")
    _warn_of_randomness(other.randomness)


# --- how things are said --------------------------------------------------------------------------


def _bound(bound: Bound) -> dict[str, Any]:
    return {
        "epsilon": number(bound.value),
        "delta": bound.delta,
        "adjacency": bound.adjacency.value,
        "kind": bound.kind.value,
        "method": bound.method.value,
        "order": bound.order,
    }


def _header(header: LedgerHeader) -> dict[str, Any]:
    return {
        "population": header.population,
        "unit": header.unit.value,
        "adjacency": header.adjacency.value,
        "epsilon": header.epsilon,
        "delta": header.delta,
        "delta_reserve": header.delta_reserve,
        "order": header.order,
        "plan": header.plan,
        "randomness": header.randomness.value,
    }


def _summary(found: VerifiedLedger) -> dict[str, Any]:
    balance = found.balance
    return {
        "file": str(found.path),
        "entries": len(found.entries),
        "head": str(found.head),
        "header": _header(found.header),
        "budget": balance.budget,
        "spent": balance.spent,
        "reserved": balance.reserved,
        "failure_budget": balance.failure_budget,
        "failure_spent": balance.failure_spent,
        "failure_reserved": balance.failure_reserved,
        "epsilon": _bound(found.epsilon),
        "overspent": found.overspent,
        "open": [ticket.key for ticket in found.open_tickets],
        "lost": sorted(map(str, found.lost)),
        "randomness": found.randomness.value,
        "torn": found.torn,
    }


def _print_header(header: LedgerHeader) -> None:
    typer.echo(f"{header.population}: one {header.unit}, {header.adjacency} adjacency")
    typer.echo(
        f"  declared epsilon {header.epsilon:g} at delta {header.delta:g}, order {header.order:g}"
    )


def _print_summary(found: VerifiedLedger) -> None:
    balance = found.balance
    typer.echo(f"  head {found.head}")
    typer.echo(
        f"  {100 * balance.spent / balance.budget:.4g} % of the budget spent, "
        f"{100 * balance.reserved / balance.budget:.4g} % reserved"
    )
    typer.echo(
        f"  charged so far: epsilon {shown(found.epsilon.value)} at delta {found.epsilon.delta:g} "
        "for a fixed plan"
    )
    if found.open_tickets:
        typer.echo(f"  open reservations: {len(found.open_tickets)}")
    if found.torn is not None:
        _warn(f"the export was cut off: {found.torn}")
    if found.overspent:
        _warn("more was charged than declared, after an acknowledged loss")
    _warn_of_randomness(found.randomness)


def _print_entries(entries: tuple[LedgerEntry, ...]) -> None:
    table = Table(box=box.SIMPLE)
    for heading in ("entry", "time (UTC)", "kind", "round", "RDP", "what"):
        table.add_column(heading, overflow="fold")
    for one in entries:
        table.add_row(
            str(one.sequence),
            one.utc[:19].replace("T", " "),
            one.kind.value,
            "" if one.round is None else str(one.round),
            f"{to_rdp(one.ticks):.6g}" if one.ticks else "",
            _what(one),
        )
    Console(width=None if sys.stdout.isatty() else 120, markup=False).print(table)


def _warn_of_randomness(randomness: Randomness) -> None:
    if randomness is Randomness.INJECTED:
        _warn("the noise did not come from the system's source: no claim may be made")


def _warn(text: str) -> None:
    _errors_to.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)


def _entry(one: LedgerEntry) -> dict[str, Any]:
    body: dict[str, Any] = {
        "seq": one.sequence,
        "utc": one.utc,
        "kind": one.kind.value,
        "ticks": one.ticks,
        "hash": one.hash.hex(),
    }
    if one.key is not None:
        body |= {"round": one.round, "key": one.key}
    if one.event is not None:
        body["event"] = to_json(one.event)
    if one.evidence is not None:
        evidence = one.evidence
        body["evidence"] = {
            "planned": evidence.planned,
            "survivors": evidence.survivors,
            "colluding_assumed": evidence.colluding_assumed,
            "protocol": evidence.protocol,
            "transcript": evidence.transcript,
            "modulus": evidence.modulus,
        }
    if one.opened is not None:
        body["opened"] = one.opened
    if one.subject is not None:
        body |= {"subject": one.subject.value, "text": one.text}
    if one.lost is not None:
        body["lost"] = str(one.lost)
    return body


def _what(one: LedgerEntry) -> str:
    if one.evidence is not None:
        evidence = one.evidence
        return (
            f"{evidence.survivors} of {evidence.planned}, {evidence.colluding_assumed} assumed "
            f"colluding, {evidence.protocol}"
        )
    if one.subject is not None:
        return f"{one.subject}: {one.text}"
    if one.opened is not None:
        return "something may have been seen" if one.opened else "nothing was seen: refunded"
    return "" if one.event is None else _short(one.event)


def _short(event: Event) -> str:
    text = str(event)
    return text if len(text) <= 120 else text[:117] + "..."
