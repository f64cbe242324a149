"""A neighbourhood chosen by the server: SecAgg+ when the graph is known too early.

Adversary: a malicious server with 50 of 1000 clients.
Capability: it decides under which ids its clients enrol, and who is called dropped.
Knowledge: the neighbour graph before ids are given out, or only after; its clients' keys.

On a sparse graph a secret has k = 52 holders, and t = 37 shares open it: fewer than the colluders.
Placed at random, 2.6 of them sit beside the target on average. Placed by somebody who knows the
graph, all of them do, with nothing but genuine messages. So against an active server the graph must
come from a beacon that nobody could predict when ids were fixed. A second way to use the ring: call
two runs of clients dropped, and the sum falls into two sums.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attackers import rosters
from attackers.measure import ALL, NONE, measured
from attackers.stage import TARGET, Case
from attackers.weakened import CutRing
from kit.result import Attacker, Demo, Expected, Op, Outcome, Run, Setting

from securefl.errors import ConfigurationError
from securefl.protocols.secagg.params import check_config, corrupt_neighbours
from securefl.round import Adversary, GraphSource

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAR = rosters.FAR
BELL = "Bell et al. 2020, Secure Single-Server Aggregation with (Poly)Logarithmic Overhead"
PLACED = Attacker(
    role="malicious server", sees="all frames", knows="the graph when it enrols its clients",
    colluders=FAR.A,
)  # fmt: skip
BLIND = Attacker(
    role="malicious server", sees="all frames", knows="the graph after ids are fixed",
    colluders=FAR.A,
)  # fmt: skip


def beside_target(case: Case) -> float:
    """How many of 50 colluders with fixed ids the beacon puts beside the target."""
    return float(len(rosters.neighbouring_colluders(case)))


def graph_of_the_server(case: Case) -> float:
    """Whether an active session on a graph of the server's choice is accepted at all."""
    config = replace(FAR.config(m=1), graph_source=GraphSource.SERVER)
    assert config.adversary is Adversary.ACTIVE
    try:
        check_config(config)
    except ConfigurationError as error:
        case.refused.append((TARGET, error))
        return 0.0
    return 1.0


def run(run: Run) -> Outcome:
    """Measures."""
    limit = corrupt_neighbours(FAR.n, FAR.k or 0, FAR.A)
    numbers = {"n": FAR.n, "k": FAR.k, "t": FAR.t, "colluders": FAR.A, "c*": limit}
    beside: list[float] = []

    def counted(case: Case) -> float:
        beside.append(beside_target(case))
        return beside[-1]

    results = [
        measured(
            run, partial(rosters.genuine_neighbours, placed=True), paper=BELL,
            name="colluders placed on a known graph", setting=Setting.NOT_DEFENDED, expected=ALL,
            attacker=PLACED, parameters=numbers,
        ),
        measured(
            run, partial(rosters.genuine_neighbours, placed=False), paper=BELL,
            name="colluders enrolled before the beacon", setting=Setting.DEFENDED, expected=NONE,
            attacker=BLIND, parameters=numbers,
        ),
        measured(
            run, counted, paper=BELL, name="colluders beside the target, ids before the beacon",
            setting=Setting.DEFENDED, expected=Expected(op=Op.AT_MOST, bound=float(limit)),
            attacker=BLIND, metric="neighbours", baseline=FAR.A * (FAR.k or 0) / (FAR.n - 1),
            cap=float(limit), cap_formula="c*: exceeded with probability 2^-41 at most",
            parameters=numbers,
        ),
        measured(
            run, graph_of_the_server, paper=BELL,
            name="active session on the server's own graph", setting=Setting.DEFENDED,
            expected=NONE, attacker=PLACED, metric="accepted", parameters=numbers,
        ),
        measured(
            run, rosters.cut_ring, paper=BELL, name="two runs dropped: the ring is cut",
            setting=Setting.UNDEFENDED, expected=ALL, attacker=BLIND, client=CutRing,
            parameters={"n": 14, "k": 4, "t": 2, "check": "_check_one_piece"},
        ),
        measured(
            run, rosters.cut_ring, paper=BELL, name="two runs dropped: the ring is cut",
            setting=Setting.DEFENDED, expected=NONE, attacker=BLIND,
            parameters={"n": 14, "k": 4, "t": 2, "check": "_check_one_piece"},
        ),
    ]  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        rows = [
            ("graph known before ids", float(FAR.A), plots.BAD),
            *((f"ids before the beacon, seed {s}", b, plots.GOOD)
              for s, b in zip(run.seeds, beside, strict=True)),
        ]  # fmt: skip
        ax = figure.subplots()
        plots.bars(
            ax, rows, xlabel="colluders that hold a share of the target's secrets",
            title=f"A malicious server with {FAR.A} of n={FAR.n} clients on a graph with k={FAR.k}",
            baseline=FAR.A * (FAR.k or 0) / (FAR.n - 1), most=60,
        )  # fmt: skip
        ax.axvline(FAR.t or 0, color="black", ls="--", lw=1)
        ax.text(FAR.t or 0, 2.5, f" t = {FAR.t}: recovered\n from here on", fontsize=8)
        ax.axvline(limit, color=plots.GOOD, ls="--", lw=1)
        ax.text(limit, 1.5, f" c* = {limit}:\n the plan's most", fontsize=8, color=plots.GOOD)

    return Outcome(
        results=tuple(results),
        draw=draw,
        notes=(
            "Give out ids before the graph can be known. The library demands a beacon against an "
            "active server; it cannot see when ids were given out.",
        ),
    )


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("sklearn",))

if __name__ == "__main__":
    sys.exit(DEMO.main())
