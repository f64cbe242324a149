"""Collusion up to and at the threshold.

Adversary: a server that follows the protocol, and c clients that hand over everything they know.
Capability: it reads every frame that reaches or leaves it, and decrypts what is for a colluder.
Knowledge: the colluders' keys and seeds, the public configuration; no input of anybody honest.

Shares of the target's mask key are held by the other clients. With t of them the server removes
all masks of the target: no lie is needed, and nobody notices. With t - 1 it has nothing. A plan for
A colluders with a threshold t <= A is therefore refused. On a sparse graph the same holds inside of
a neighbourhood: only colluders beside the target count, and a server that knows the graph before
ids are given out, or before keys are committed, puts them there (t21).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from attackers.lists import reaches
from attackers.measure import ALL, NONE, measured
from attackers.neighbourhoods import RING_K, RING_N, collude_beside
from attackers.stage import BITS, TARGET, Case, Plan, Stage
from kit.result import Attacker, Demo, Outcome, Run, Setting
from kit.rounds import as_image, images_as_inputs
from kit.view import Ring

from securefl.errors import ConfigurationError
from securefl.round import ClientId, Layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N, T, MAP_N = 10, 7, 12
BELL = "Bell et al. 2020, Secure Single-Server Aggregation with (Poly)Logarithmic Overhead"


def collude(case: Case, *, n: int, t: int, c: int, A: int = 1, checked: bool = True) -> float:
    """A whole honest session; afterwards c clients hand over what they know."""
    colluders = [ClientId(v) for v in range(n - c + 1, n + 1)]
    try:
        stage = Stage.of(
            Plan(n=n, t=t, A=A, D=0, active=False, checked=checked), case=case, colluders=colluders
        )
    except ConfigurationError as error:
        case.refused.append((TARGET, error))
        return 0.0
    stage.play("unmasking")
    stage.answer()
    stage.save(case.path)
    return reaches(stage.view(case.path), stage, [TARGET])


def boundary(case: Case, layout: Layout, thresholds: range) -> dict[tuple[int, int], bool]:
    """One session per threshold, and in it every number of colluders."""
    executed = {}
    everybody = [ClientId(v) for v in range(2, MAP_N + 1)]
    for t in thresholds:
        least = max(3, t + (layout is Layout.OTHERS))
        plan = Plan(n=MAP_N, t=t, n_min=least, layout=layout, active=False, checked=False)
        stage = Stage.of(plan, case=case, colluders=everybody).play("unmasking")
        stage.answer()
        stage.save(case.path)
        for c in range(MAP_N - 1):
            view = stage.view(case.path, colluders=everybody[len(everybody) - c :])
            executed[t, c] = reaches(view, stage, [TARGET]) == 1.0
    return executed


def run(run: Run) -> Outcome:
    """Measures."""
    server = Attacker(
        role="server that follows the protocol, with colluding clients",
        sees="all frames",
        knows="the colluders' keys and seeds",
        colluders=T,
    )
    fewer = Attacker(role=server.role, sees=server.sees, knows=server.knows, colluders=T - 1)
    maps: dict[Layout, dict[tuple[int, int], bool]] = {}
    pictures: dict[str, Ring] = {}
    ring: dict[tuple[int, int], bool] = {}
    thresholds = range(2, MAP_N, 3 if run.quick else 1)
    ring_thresholds = range(2, RING_K + 1)

    def agreement(layout: Layout) -> Callable[[Case], float]:
        """Fraction of the points of the map that are as predicted."""

        def one(case: Case) -> float:
            whole = layout not in maps
            found = boundary(case, layout, thresholds if whole else range(4, MAP_N, 3))
            if whole:
                maps[layout] = found
            return sum(won is (c >= t) for (t, c), won in found.items()) / len(found)

        return one

    def ring_agreement(case: Case) -> float:
        """Fraction of the points of a neighbourhood's map that are as predicted."""
        right = []
        for t in ring_thresholds:
            found = collude_beside(case, t=t)
            ring.update({(t, c): won for (c, beside), won in found.items() if beside})
            right += [won is (beside and c >= t) for (c, beside), won in found.items()]
        return sum(right) / len(right)

    numbers = {"n": N, "t": T}
    results = [
        measured(
            run, lambda case: collude(case, n=N, t=T, c=T), name=f"{T} colluders = t",
            setting=Setting.UNDEFENDED, expected=ALL, attacker=server, parameters=numbers,
            pictures=pictures,
        ),
        measured(
            run, lambda case: collude(case, n=N, t=T, c=T - 1), name=f"{T - 1} colluders = t - 1",
            setting=Setting.DEFENDED, expected=NONE, attacker=fewer, parameters=numbers,
            pictures=pictures,
        ),
        measured(
            run, lambda case: collude(case, n=N, t=T, c=T, A=T, checked=False),
            name="a plan for A = t, accepted", setting=Setting.UNDEFENDED, expected=ALL,
            attacker=server, parameters=numbers,
        ),
        measured(
            run, lambda case: collude(case, n=N, t=T, c=T, A=T),
            name="a plan for A = t", setting=Setting.DEFENDED, expected=NONE, attacker=server,
            parameters=numbers,
        ),
        *(
            measured(
                run, agreement(layout), name=f"map over (t, c), layout {layout.name}",
                setting=Setting.UNDEFENDED, expected=ALL, attacker=server, baseline=None,
                metric="points as predicted (recovered iff c >= t)",
                parameters={"n": MAP_N, "t": list(thresholds), "c": list(range(MAP_N - 1))},
            )
            for layout in Layout
        ),
        measured(
            run, ring_agreement, name=f"map over (t, c) of a neighbourhood, k={RING_K}",
            setting=Setting.UNDEFENDED, expected=ALL, attacker=server, baseline=None, paper=BELL,
            metric="points as predicted (recovered iff c >= t of the k neighbours collude)",
            parameters={"n": RING_N, "k": RING_K, "t": list(ring_thresholds),
                        "c beside": list(range(RING_K + 1)),
                        "c elsewhere, never recovered": RING_N - 1 - RING_K},
        ),
    ]  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        figure.set_size_inches(10.4, 3.6)
        left, right = figure.subfigures(1, 2, width_ratios=[1, 2.1], squeeze=False)[0]
        truth = images_as_inputs(1, bits=BITS, seed=run.seeds[0])[TARGET].values
        rows = [truth, *pictures.values()]
        labels = ["its image", f"c = {T}:\nrecovered", f"c = {T - 1}:\nnothing"]
        axes = left.subplots(1, 3)
        for ax, label, row in zip(axes, labels, rows, strict=True):
            ax.imshow(as_image(row, BITS).reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            ax.set_title(label, fontsize=8)
            ax.set_axis_off()
        left.suptitle(f"Passive server and c clients\nagainst one, n={N}, t={T}", fontsize=10)
        whole, beside = right.subplots(1, 2, width_ratios=[1.5, 1])
        for ax, ts, cs, executed, title in (
            (whole, list(range(2, MAP_N)), list(range(MAP_N - 1)), maps[Layout.OTHERS],
             f"complete graph, n={MAP_N}"),
            (beside, list(ring_thresholds), list(range(RING_K + 1)), ring,
             f"neighbourhood, k={RING_K}, n={RING_N}"),
        ):  # fmt: skip
            predicted = [[c >= t for t in ts] for c in cs]
            plots.breach_map(ax, predicted, executed, thresholds=ts, colluders=cs, title=title)
        beside.set_ylabel("colluders c beside the target")
        right.suptitle(
            "Shaded red: theory says recovered (c >= t). Dots: executed, recovered. "
            "Crosses: executed, nothing", fontsize=9,
        )  # fmt: skip

    return Outcome(
        results=tuple(results),
        draw=draw,
        notes=("The threshold is the whole protection against colluders: choose t > A.",),
    )


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("sklearn",))

if __name__ == "__main__":
    sys.exit(DEMO.main())
