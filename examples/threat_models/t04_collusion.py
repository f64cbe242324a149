"""Collusion up to and at the threshold.

Adversary: a server that follows the protocol, and c clients that hand over everything they know.
Capability: it reads every frame that reaches or leaves it, and decrypts what is for a colluder.
Knowledge: the colluders' keys and seeds, the public configuration; no input of anybody honest.

Shares of the target's mask key are held by the other clients. With t of them the server removes
all masks of the target: no lie is needed, and nobody notices. With t - 1 it has nothing. A plan for
A colluders with a threshold t <= A is therefore refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from attackers.lists import reaches
from attackers.measure import ALL, NONE, measured
from attackers.stage import BITS, TARGET, Case, Plan, Stage
from kit.result import Attacker, Demo, Outcome, Run, Setting
from kit.rounds import as_image, images_as_inputs
from kit.view import Ring

from securefl.errors import ConfigurationError
from securefl.round import ClientId, Layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N, T, MAP_N = 10, 7, 12


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
    thresholds = range(2, MAP_N, 3 if run.quick else 1)

    def agreement(layout: Layout) -> Callable[[Case], float]:
        """Fraction of the points of the map that are as predicted."""

        def one(case: Case) -> float:
            whole = layout not in maps
            found = boundary(case, layout, thresholds if whole else range(4, MAP_N, 3))
            if whole:
                maps[layout] = found
            return sum(won is (c >= t) for (t, c), won in found.items()) / len(found)

        return one

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
    ]  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        figure.set_size_inches(9, 3.4)
        left, right = figure.subfigures(1, 2, width_ratios=[1, 1.25], squeeze=False)[0]
        truth = images_as_inputs(1, bits=BITS, seed=run.seeds[0])[TARGET].values
        rows = [truth, *pictures.values()]
        labels = [
            "the client's image",
            f"{T} colluders = t\nrecovered",
            f"{T - 1} colluders\nnothing",
        ]
        axes = left.subplots(1, 3)
        for ax, label, row in zip(axes, labels, rows, strict=True):
            ax.imshow(as_image(row, BITS).reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            ax.set_title(label, fontsize=8)
            ax.set_axis_off()
        left.suptitle(f"passive server, n={N}, t={T}")
        ax = right.subplots()
        ts, cs = list(range(2, MAP_N)), list(range(MAP_N - 1))
        predicted = [[c >= t for t in ts] for c in cs]
        title = f"n={MAP_N}: red = one client's input recovered (c >= t)"
        executed = maps[Layout.OTHERS]
        plots.breach_map(ax, predicted, executed, thresholds=ts, colluders=cs, title=title)

    return Outcome(
        results=tuple(results),
        draw=draw,
        notes=("The threshold is the whole protection against colluders: choose t > A.",),
    )


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("sklearn",))

if __name__ == "__main__":
    sys.exit(DEMO.main())
