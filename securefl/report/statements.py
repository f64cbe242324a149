"""What a reader of a report may rely on, in sentences.

Every figure of privacy on the page is worded here, so that one module can be read to see that the
report claims no more than the run recorded: each epsilon comes with its unit, adjacency, delta and
trust model, each row without differential privacy says what stays open, and a sweep says what
publishing several of its rows costs (basic composition: Dwork and Roth 2014, "The Algorithmic
Foundations of Differential Privacy", section 3.5). It computes no epsilon of its own except that
sum, and refuses to guess a guarantee for a mode it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from securefl.report.tree import Row, RunRecord, RunTree

__all__ = [
    "NO_DP_SENTENCE",
    "Composition",
    "RowStatement",
    "bytes_text",
    "composition",
    "delta_text",
    "epsilon_text",
    "fidelity_sentence",
    "headline",
    "percent_text",
    "row_label",
    "shared_limits",
    "smallest_sum",
    "statement",
    "view_label",
]

NO_DP_SENTENCE = (
    "Rows without differential privacy protect nothing about the final model: "
    "secure aggregation hides single updates, not what the sum reveals."
)

_NO_DP = "none"
_LOCAL_DP = "local-dp"
_SHARED = ("distributed-dp", "user-level-dp")
_NAMES = {
    _NO_DP: "no DP",
    _LOCAL_DP: "local DP",
    "distributed-dp": "distributed DP",
    "user-level-dp": "user-level DP",
}
_VIEWS = {
    "models": "sees the released models only",
    "server": "is the server: sees every opened sum",
    "server_and_colluders": "is the server, helped by {colluding} of the clients",
    "aggregation_broken": "opened every client's own vector (secure aggregation broken)",
}

_FIDELITY = {
    "protocol": (
        "Every sum was opened by the real protocol machines over real wire bytes; bytes and "
        "dropouts are those of the protocol."
    ),
    "encoded": (
        "The real encoding ran, but the integers were added in the open: accuracy is that of the "
        "protocol, bytes are not measured, and no update was hidden from anyone."
    ),
    "aggregate": (
        "The real encoding ran, but the integers were added in the open and the noise of each sum "
        "was drawn at once in place of one share per client: accuracy is distributed like that of "
        "the protocol, bytes are not measured, and no update was hidden from anyone."
    ),
    "float": (
        "Updates were averaged in floating point: neither encoding nor protocol ran, and no "
        "update was hidden from anyone."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStatement:
    """The promise of one row.

    Attributes:
        label: short name of the row.
        promise: what is guaranteed, and to whom.
        limits: what the promise leaves out or rests on.
        alarms: why the row must not be used as it is; empty in a sound run.
    """

    label: str
    promise: str
    limits: tuple[str, ...]
    alarms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """What publishing every run of a sweep costs.

    Attributes:
        private_runs: runs with differential privacy.
        open_runs: runs without.
        epsilon: sum over the private runs; None if one of them recorded no epsilon.
        delta: sum over the private runs; None if one of them recorded no delta.
    """

    private_runs: int
    open_runs: int
    epsilon: float | None
    delta: float | None


def epsilon_text(value: float | None) -> str:
    """An epsilon to three decimals, rounded up: a claim is never shown smaller than it is.

    >>> epsilon_text(2.98701), epsilon_text(8.0), epsilon_text(None)
    ('2.988', '8.000', '–')
    """
    if value is None:
        return "–"
    # The tolerance keeps a decimal such as 2.988, whose binary double lies a hair above, at 2.988.
    return f"{math.ceil(value * 1000 - 1e-6) / 1000:.3f}"


def delta_text(value: float | None) -> str:
    """A delta to four digits, rounded to nearest.

    >>> delta_text(1e-5), delta_text(6e-5), delta_text(None)
    ('1e-5', '6e-5', 'not recorded')
    """
    return "not recorded" if value is None else f"{value:.4g}".replace("e-0", "e-")


def percent_text(value: float | None) -> str:
    """A fraction as per cent, to one decimal, as the command line prints it.

    >>> percent_text(0.92871), percent_text(1.0), percent_text(None)
    ('92.9 %', '100.0 %', '–')
    """
    return "–" if value is None else f"{100 * value:.1f} %"


def bytes_text(value: float) -> str:
    """A number of bytes in decimal units (1 kB = 1000 B).

    >>> bytes_text(999), bytes_text(15_360), bytes_text(2.5e6)
    ('999 B', '15.4 kB', '2.50 MB')
    """
    if value < 1000:
        return f"{value:.0f} B"
    if value < 1e6:
        return f"{value / 1e3:.1f} kB"
    return f"{value / 1e6:.2f} MB" if value < 1e9 else f"{value / 1e9:.2f} GB"


def row_label(mode: str, target_epsilon: float | None) -> str:
    """The short name of a row.

    >>> row_label("none", None), row_label("local-dp", 8.0)
    ('no DP', 'local DP, ε ≤ 8')
    """
    name = _NAMES.get(mode, mode)
    return name if target_epsilon is None else f"{name}, ε ≤ {target_epsilon:g}"


def headline(tree: RunTree) -> str:
    """One sentence: what was trained by whom, and how good each row is."""
    parts = [
        f"{percent_text(row.accuracy)} with {row_label(row.mode, row.target_epsilon)}"
        + ("" if row.epsilon is None else f" (spent {epsilon_text(row.epsilon)})")
        for row in tree.rows
    ]
    mean = "Mean test accuracy" if any(len(row.seeds) > 1 for row in tree.rows) else "Test accuracy"
    carried_out = {len(run.rounds) for run in tree.runs} - {0} or {tree.rounds}
    rounds = f"{'up to ' if len(carried_out) > 1 else ''}{max(carried_out)}"
    return (
        f"{tree.clients} clients trained on {tree.train_size} records of {tree.dataset} for "
        f"{rounds} rounds. {mean}: {'; '.join(parts)}."
    )


def fidelity_sentence(fidelity: str) -> str:
    """How much of the real protocol ran."""
    if not fidelity:
        return "The run did not record how much of the real protocol ran: assume that none did."
    return _FIDELITY.get(
        fidelity, f"The fidelity {fidelity!r} is unknown to this report: assume nothing about it."
    )


def smallest_sum(tree: RunTree) -> int | None:
    """Fewest clients in any opened sum; None if none was opened or no real protocol ran."""
    if tree.fidelity != "protocol":
        return None
    opened = [r.survivors for run in tree.runs for r in run.rounds if r.status == "ok"]
    return min(opened, default=None)


def statement(row: Row, tree: RunTree) -> RowStatement:
    """What the row promises, what it leaves open, and what is wrong with it."""
    label = row_label(row.mode, row.target_epsilon)
    if row.mode == _NO_DP:
        return _open_statement(label, row, tree)
    if row.mode == _LOCAL_DP:
        return _local_statement(label, row, tree)
    if row.mode in _SHARED:
        return _shared_statement(label, row, tree)
    return RowStatement(
        label=label,
        promise="This report knows no guarantee for this mode: rely on none.",
        limits=(),
        alarms=(),
    )


def shared_limits(said: Sequence[RowStatement]) -> list[tuple[list[str], tuple[str, ...]]]:
    """Each distinct list of limits once, with the labels of the rows it belongs to."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for one in said:
        if one.limits:
            grouped.setdefault(one.limits, []).append(one.label)
    return [(labels, limits) for limits, labels in grouped.items()]


def _open_statement(label: str, row: Row, tree: RunTree) -> RowStatement:
    surprising = row.epsilon is not None or row.target_epsilon is not None
    return RowStatement(
        label=label,
        promise=f"No guarantee about the model. {_hidden(tree)}",
        limits=(
            "Records can be read back out of a sum or out of the final model; a larger cohort "
            "makes that harder, it does not rule it out.",
        ),
        alarms=("The run recorded an epsilon for a mode that adds no noise: ignore that number.",)
        if surprising
        else (),
    )


def _hidden(tree: RunTree) -> str:
    """What the secure sum kept from the server."""
    if tree.fidelity != "protocol":
        return "Single updates were not hidden either: the real protocol did not run."
    if tree.opened_by == "peers":
        return (
            "There was no server: every peer could open one sum per round over the survivors and "
            f"no single update, as long as at most {tree.assumed_corrupt} peers lie and identities "
            "are not of their making (in a simulation they come from the same process)."
        )
    if tree.adversary == "active":
        claim = (
            "A server, even one that lies to clients, could open one sum per round over the "
            "survivors and no single update, as long as identities are not of its making "
            f"(in a simulation they come from the same process).{_trusted(tree)}"
        )
        if tree.graph in ("complete", "none"):
            return claim
        return f"{claim} On a sparse graph there is an argument for that and no published proof."
    return (
        "A server that follows the protocol saw the sum over the survivors of each round in place "
        "of single updates."
    )


def _trusted(tree: RunTree) -> str:
    """What the promise rests on besides the clients, and what in it is experimental."""
    said = ""
    if tree.opened_by not in ("", "clients"):
        said += f" The server together with {tree.opened_by} could read every update."
    if tree.experimental:
        said += f" Experimental, so do not rely on it: {tree.experimental}."
    return said


def _local_statement(label: str, row: Row, tree: RunTree) -> RowStatement:
    if row.epsilon is None:
        return RowStatement(
            label=label,
            promise="The run recorded no epsilon: rely on no guarantee.",
            limits=(),
            alarms=("A row with differential privacy has no epsilon.",),
        )
    unit = _agreed(row.runs, "unit") or "unit not recorded"
    adjacency = _agreed(row.runs, "adjacency") or "not recorded"
    return RowStatement(
        label=label,
        promise=(
            f"Each run is ({epsilon_text(row.epsilon)}, {delta_text(tree.delta)})-differentially "
            f"private; unit: one {unit}; adjacency: {adjacency}. Each client adds the noise itself "
            "(local model), so the guarantee holds against everybody who sees its messages, the "
            "server included, and does not rest on secure aggregation."
        ),
        limits=(
            "One ledger per client; the figure is the largest epsilon over clients and seeds.",
            "It holds for settings that were fixed before the run. Where a later choice depends on "
            "what came out, stopping early included, the ledgers' declared budget is the figure.",
            "The noise is drawn in floating point, which leaks more than the Gaussian that is "
            "accounted: read epsilon as the figure of that ideal mechanism until integer noise "
            "takes its place (see security/limitations in the documentation).",
            "The unit is one record. A client whose records all describe one person gets no "
            "guarantee for that person from this figure.",
        ),
        alarms=_alarms(row, tree),
    )


def view_label(view: str, colluding: int | None) -> str:
    """Who an onlooker is, as the end of "An onlooker who ...".

    >>> view_label("server_and_colluders", 1)
    'is the server, helped by 1 of the clients'
    """
    number = "an unrecorded number" if colluding is None else str(colluding)
    return _VIEWS.get(view, view).format(colluding=number)


def _shared_statement(label: str, row: Row, tree: RunTree) -> RowStatement:
    if row.epsilon is None or not row.views:
        return RowStatement(
            label=label,
            promise="The run recorded no epsilon by onlooker: rely on no guarantee.",
            limits=(),
            alarms=("A row with differential privacy has no epsilon.",),
        )
    unit = _agreed(row.runs, "unit") or "unit not recorded"
    adjacency = _agreed(row.runs, "adjacency") or "not recorded"
    colluding = max((run.colluding or 0 for run in row.runs), default=0)
    fewest = min((run.fewest_survivors or 0 for run in row.runs), default=0)
    hidden = (
        "the sums were opened by the real protocol"
        if tree.fidelity == "protocol"
        else "for a deployment whose sums are secure; in this run the integers were added in the "
        "open, so against whoever saw them only the last line of the table holds"
    )
    return RowStatement(
        label=label,
        promise=(
            f"Each run is ({epsilon_text(row.epsilon)}, {delta_text(tree.delta)})-differentially "
            f"private against the server together with {colluding} of the {tree.clients} clients; "
            f"unit: one {unit}; adjacency: {adjacency}. Every client adds a share of integer noise "
            "and only their sum carries all of it, so the guarantee rests on secure aggregation "
            f"({hidden}) and on at least {fewest - colluding} clients that add their share."
        ),
        limits=(
            "One ledger counts for the whole population: each round is reserved at the noise of "
            "the fewest survivors that clients accept and settled at that of the survivors there "
            "were.",
            f"A client that adds no noise is not noticed. The figures hold while at most "
            f"{colluding} do that or help the server.",
            "Whoever opens a client's own vector finds the noise of one share: see the last line "
            "of the table of onlookers.",
            "The unit is one record. A client whose records all describe one person gets no "
            "guarantee for that person from this figure."
            if unit == "record"
            else "The unit is everything that one client holds, in all rounds together.",
        ),
        alarms=_alarms(row, tree),
    )


def _alarms(row: Row, tree: RunTree) -> tuple[str, ...]:
    alarms = []
    if any(run.randomness == "injected" for run in row.runs):
        alarms.append(
            "The noise was repeatable: whoever knows its seed subtracts it. No guarantee at all."
        )
    target, spent = row.target_epsilon, row.epsilon
    if target is not None and spent is not None and spent > target:
        alarms.append(f"The spent epsilon {spent!r} exceeds the target {target!r}.")
    higher = [run.path for run in row.runs if _highest(run) > (spent or 0.0)]
    if higher:
        alarms.append(f"The runs {', '.join(higher)} recorded a larger epsilon than their row.")
    other = [run.path for run in row.runs if run.delta is not None and run.delta != tree.delta]
    if other:
        alarms.append(f"The runs {', '.join(other)} used another delta than the table says.")
    if any(not run.ledgers for run in row.runs):
        kind = "local" if row.mode == _LOCAL_DP else "shared"
        alarms.append(f"A run under {kind} differential privacy recorded no ledger.")
    return tuple(alarms)


def _highest(run: RunRecord) -> float:
    """The largest epsilon that any of the run's own files mentions; 0 if none does."""
    seen = [run.epsilon, *(r.epsilon for r in run.rounds), *(x.spent_epsilon for x in run.ledgers)]
    return max((value for value in seen if value is not None), default=0.0)


def _agreed(runs: tuple[RunRecord, ...], field: str) -> str:
    """The one value of a text field in all runs; all of them, joined, if they differ."""
    return " / ".join(sorted({getattr(run, field) for run in runs} - {""}))


def composition(tree: RunTree) -> Composition:
    """The price of publishing all runs together, by basic composition.

    Each run used the same records, so epsilons and deltas add up, seeds included. A run without
    differential privacy has no finite epsilon: published beside the others it leaves no bound.
    """
    private = [run for run in tree.runs if run.mode != _NO_DP]
    epsilons = [run.epsilon for run in private]
    deltas = [run.delta if run.delta is not None else tree.delta for run in private]
    return Composition(
        private_runs=len(private),
        open_runs=len(tree.runs) - len(private),
        epsilon=None if None in epsilons else math.fsum(e for e in epsilons if e is not None),
        delta=None if None in deltas else math.fsum(d for d in deltas if d is not None),
    )
