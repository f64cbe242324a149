"""Survivor lists: what a lying server opens by choosing what each client hears.

Adversary: a malicious server, with up to c colluding clients.
Capability: it sends every client its own story of who dropped out, several times if it likes.
Knowledge: every frame, the colluders' keys and seeds; no input of anybody honest.

A survivor's self-mask seed is opened, a dropout's mask key: both of one client are its input. Split
view: half of the clients hear that the target dropped out. Shrinking: everybody hears another
list, and a sum of a handful is left. Each rule of the client is taken out once, and the attack that
it stops recovers its victim; the library's client, same attack, same seeds, gives nothing.
On a sparse graph the split view is one of a neighbourhood: k holders, colluders beside the target.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attackers.lists import shrink, smallest_signed, smallest_sum, split_view
from attackers.measure import ALL, NONE, both_sides, measured
from attackers.neighbourhoods import RING_K, RING_N, highest_beside, split_beside
from attackers.stage import Case
from attackers.weakened import GUARDS
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting

from securefl.round import Layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAP_N = 12
SERVER = Attacker(
    role="malicious server", sees="all frames", knows="the configuration; colluders' secrets"
)
PLACED = Attacker(
    role="malicious server", sees="all frames",
    knows="the graph when it enrols its colluders: all of them are beside the target",
)  # fmt: skip
BELL = "Bell et al. 2020, Secure Single-Server Aggregation with (Poly)Logarithmic Overhead"
SMALL = ((10, 6), (10, 7), (10, 8), (30, 16))
"""Where the smallest sum is opened, and one client fewer has no lists."""

Key = tuple[Layout, bool]


def highest(layout: Layout, c: int, *, signed: bool) -> int:
    """The highest threshold at which the split view works: floor of (h + c) / 2.

    With t signatures on each list and no own ones among them, one holder less.
    """
    holders = MAP_N - (layout is Layout.OTHERS)
    return (holders + c - (signed and layout is Layout.OTHERS)) // 2


def guards(run: Run) -> list[Result]:
    """Every check of the client that a list attack meets, taken out and put back."""
    mine = [guard for guard in GUARDS if guard.program == run.name]
    return [result for guard in mine for result in both_sides(run, guard, SERVER)]


def run(run: Run) -> Outcome:
    """Measures."""
    maps: dict[Key, dict[tuple[int, int], bool]] = {}
    rings: dict[bool, dict[tuple[int, int], bool]] = {}
    some = (0, 2, 8) if run.quick else (0, 1, 2, 5, 8)

    def agreement(case: Case, layout: Layout, signed: bool) -> float:
        """Both sides of the boundary, for every number of colluders."""
        first = (layout, signed) not in maps
        found = {}
        for c in range(MAP_N - 1) if first and not run.quick else some:
            top = highest(layout, c, signed=signed)
            for t in (top, top + 1):
                if 2 <= t <= MAP_N - 1:
                    value = split_view(case, n=MAP_N, t=t, c=c, layout=layout, signed=signed)
                    found[t, c] = value == 1.0
        if first:
            maps[layout, signed] = found
        right = sum(
            won is (t <= highest(layout, c, signed=signed)) for (t, c), won in found.items()
        )
        return right / len(found)

    def ring_agreement(case: Case, signed: bool) -> float:
        """Every threshold and number of colluders of a neighbourhood; later seeds the boundary."""
        found = {
            (t, c): split_beside(case, t=t, c=c, signed=signed) == 1.0
            for t in range(2, RING_K + 1)
            for c in range(RING_K - 1)
            if (signed not in rings and not run.quick) or t - highest_beside(c) in (0, 1)
        }
        rings.setdefault(signed, found)
        return sum(won is (t <= highest_beside(c)) for (t, c), won in found.items()) / len(found)

    def shrunk(case: Case, layout: Layout) -> float:
        """Fraction of (n, t) whose smallest sum, by the formula, was opened."""
        rows = SMALL[:3] if run.quick else SMALL
        return sum(shrink(case, n=n, t=t, layout=layout) for n, t in rows) / len(rows)

    others, everybody = Layout.OTHERS, Layout.ALL
    n, t = (30, 16) if run.quick else (50, 26)
    few = smallest_sum(n, t, 0, others)
    results = [
        *(
            measured(
                run, partial(split_view, n=10, t=t, layout=layout),
                name=f"split view, n=10, t={t}, {layout.name}",
                setting=Setting.UNDEFENDED if won else Setting.DEFENDED,
                expected=ALL if won else NONE, attacker=SERVER,
                parameters={"n": 10, "t": t, "layout": layout.name},
            )
            for t, layout, won in (
                (4, others, True), (5, everybody, True), (5, others, False), (6, everybody, False),
                (6, others, False), (7, others, False),
            )
        ),
        measured(
            run, partial(split_view, n=10, t=5, layout=everybody, signed=True, checked=True),
            name="split view, n=10, t=5, ALL: refused plan", setting=Setting.DEFENDED,
            expected=NONE, attacker=SERVER, parameters={"n": 10, "t": 5},
        ),
        measured(
            run, partial(shrink, n=n, t=t, layout=others), name=f"shrinking {n} to {few}",
            setting=Setting.UNDEFENDED, expected=ALL, attacker=SERVER,
            parameters={"n": n, "t": t, "clients in the sum": few, "mode": "semi-honest"},
        ),
        measured(
            run, partial(shrink, n=n, t=t, layout=others, signed=True),
            name=f"shrinking {n} to {few}", setting=Setting.DEFENDED, expected=NONE,
            attacker=SERVER, parameters={"n": n, "t": t, "mode": "active"},
        ),
        *(
            measured(
                run, partial(smallest_signed, n=n, t=t, layout=layout),
                name=f"one signed list, n={n}, t={t}, {layout.name}", setting=Setting.DEFENDED,
                expected=Expected(op=Op.EQUAL, bound=float(t + (layout is others))),
                attacker=SERVER, metric="fewest clients in a sum that is opened", baseline=None,
                parameters={"n": n, "t": t, "layout": layout.name, "by theory": "t, or t + 1"},
            )
            for n, t, layout in (
                (10, 6, others), (10, 6, everybody), *([] if run.quick else [(50, 26, others)]),
            )
        ),
        *guards(run),
        *(
            measured(
                run, partial(agreement, layout=layout, signed=signed),
                name=f"map, {'signed' if signed else 'unsigned'} lists, {layout.name}",
                setting=Setting.UNDEFENDED, expected=ALL, attacker=SERVER, baseline=None,
                metric="points of the boundary as predicted", parameters={"n": MAP_N},
            )
            for layout in Layout for signed in (False, True)
        ),
        *(
            measured(
                run, partial(ring_agreement, signed=signed), paper=BELL,
                name=f"map of a neighbourhood, {'signed' if signed else 'unsigned'} lists",
                setting=Setting.UNDEFENDED, expected=ALL, attacker=PLACED, baseline=None,
                metric="points as predicted (recovered iff 2t <= k + c)",
                parameters={"n": RING_N, "k": RING_K},
            )
            for signed in (False, True)
        ),
        *(
            measured(
                run, partial(shrunk, layout=layout), name=f"smallest sums, {layout.name}",
                setting=Setting.UNDEFENDED, expected=ALL, attacker=SERVER, baseline=None,
                metric="sums of predicted size opened",
                parameters={"rows": [[n, t, smallest_sum(n, t, 0, layout)] for n, t in SMALL]},
            )
            for layout in Layout
        ),
    ]  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        figure.set_size_inches(10.4, 5.6)
        axes = figure.subplots(2, 3, width_ratios=[1, 1, 0.65])
        ts, cs = list(range(2, MAP_N)), list(range(MAP_N - 1))
        for ax, layout, signed in (
            (axes[0][0], others, False), (axes[0][1], others, True),
            (axes[1][0], everybody, False), (axes[1][1], everybody, True),
        ):  # fmt: skip
            predicted = [[t <= highest(layout, c, signed=signed) for t in ts] for c in cs]
            what = "t signatures per list" if signed else "lists not signed"
            own = "own shares count" if layout is everybody else "own shares do not exist"
            plots.breach_map(ax, predicted, maps[layout, signed], thresholds=ts, colluders=cs,
                             title=f"{what}; {own}")  # fmt: skip
        ts, cs = list(range(2, RING_K + 1)), list(range(RING_K - 1))
        for ax, signed in ((axes[0][2], False), (axes[1][2], True)):
            predicted = [[t <= highest_beside(c) for t in ts] for c in cs]
            what = "t signatures per list" if signed else "lists not signed"
            plots.breach_map(ax, predicted, rings[signed], thresholds=ts, colluders=cs,
                             title=f"ring, k={RING_K}; {what}")  # fmt: skip
            ax.set_ylabel("colluders c beside the target")
        figure.suptitle(
            "A lying server and c colluders split the clients' view, complete graph n="
            f"{MAP_N}, ring n={RING_N}.\nShaded red: theory says that one client is recovered. "
            "Dots: executed, recovered. Crosses: executed, nothing."
        )

    return Outcome(
        results=tuple(results),
        draw=draw,
        notes=(
            "Signatures on one common list end the shrinking; only the threshold ends the split "
            "view. The library demands both against an active server, and 2t > h + c.",
            "On a ring signatures do not even move the bound by one, as they do on the complete "
            "graph without own shares: neighbours of the target's holders sign, and hold no share "
            "of the target. The library's rule 2t > h + c is right for both.",
        ),
    )


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("sklearn",))

if __name__ == "__main__":
    sys.exit(DEMO.main())
