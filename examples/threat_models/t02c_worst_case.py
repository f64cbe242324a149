"""Is this client in the sum, asked by somebody who knows all others.

Adversary: a server with n - 1 colluding clients; the strongest one that the claim speaks about.
Capability: follows the protocol, subtracts what its colluders sent, looks at what remains.
Knowledge: everything but the victim's participation, and what the victim would send.

The game behind the definition of differential privacy, played on the shipped codec. Nothing can
beat the cap, and here the attack reaches it: the claim is neither broken nor loose.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from kit import metrics
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.updates import claim, noisy_codec, open_sum, plain_codec, release

from securefl.encoding import NoisyCodec
from securefl.round import Adversary

if TYPE_CHECKING:
    from kit.updates import Codec
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PAPER = "Dong, Roth, Su 2022, Gaussian Differential Privacy"
SERVER = Attacker(
    role="honest-but-curious server",
    sees="the transcript of a whole round with secure aggregation, so the opened sum",
    knows="all other inputs, and what the victim would send; not the honest noise",
    colluders=0,
    oracle_help="the other inputs, in favour of the attacker: this is the definition's adversary",
)
DIMENSION, CLIENTS, VICTIM = 2, 3, 1
WITHIN, TRIALS = 0.01, 20_000


def _codec(z: float) -> Codec:
    if z == 0:
        return plain_codec(DIMENSION, CLIENTS)
    return noisy_codec(DIMENSION, CLIENTS, z)


def _vector(codec: Codec, *, present: bool) -> NDArray[np.float64]:
    """The victim spends its whole norm on the first coordinate, or sends zeros."""
    return np.array([codec.spec.clip_norm if present else 0.0, 0.0])


def _scores(codec: Codec, trials: int, *, present: bool) -> NDArray[np.float64]:
    """The first coordinate of so many releases; the others send zeros, which everybody knows."""
    mine, nobody = _vector(codec, present=present), np.zeros(DIMENSION)
    found = np.empty(trials)
    for i in range(trials):
        vectors = [codec.encode(mine, round_seed=bytes(32))]
        vectors += [codec.encode(nobody, round_seed=bytes(32)) for _ in range(CLIENTS - 1)]
        found[i] = release(codec, vectors)[0]
    return found


def _session_scores(
    codec: Codec, settings: Run, trials: int, *, present: bool
) -> NDArray[np.float64]:
    """The same through whole sessions."""
    found = np.empty(trials)
    for i in range(trials):
        updates = {u: np.zeros(DIMENSION) for u in range(1, CLIENTS + 1)}
        updates[VICTIM] = _vector(codec, present=present)
        opened = open_sum(
            updates, codec, settings.transcript(), seed=bytes(32), adversary=Adversary.SEMI_HONEST
        )
        found[i] = opened.total()[0]
    return found


def run(settings: Run) -> Outcome:
    """No noise through sessions; then z = .5, 1 and 4, each seed an equal part of the trials."""
    # Standard error of an area from N trials per side: at most .29 sqrt(2 / N), .003 at 20,000.
    # Rule: |measured - cap| <= .01 fails by chance less than once in 1000 runs.
    each = -(-TRIALS // len(settings.seeds))
    results, points, caps = [], {}, []
    for z in (0.0, 1.0) if settings.quick else (0.0, 0.5, 1.0, 4.0):
        begin = time.perf_counter()
        codec = _codec(z)
        members: list[NDArray[np.float64]] = []
        others: list[NDArray[np.float64]] = []
        for _ in settings.seeds:
            for into, present in ((members, True), (others, False)):
                into.append(
                    _scores(codec, each, present=present)
                    if z
                    else _session_scores(codec, settings, 5, present=present)
                )
        areas = [metrics.auc(a, b).value for a, b in zip(members, others, strict=True)]
        pooled = metrics.auc(np.concatenate(members), np.concatenate(others))
        cap = metrics.auc_cap(metrics.mu_of(z))
        points[z] = areas
        caps.append(cap)
        row = partial(
            Result,
            threat=settings.name,
            paper=PAPER,
            attacker=SERVER,
            attack=f"likelihood ratio, z = {z:g}",
            baseline=0.5,
            cap=cap,
            cap_formula="Phi(1 / (z sqrt 2)); 1 without noise",
            parameters={"n": CLIENTS, "z": z, "trials per side and seed": each if z else 5},
            epsilon=claim(codec, CLIENTS) if isinstance(codec, NoisyCodec) else None,
            seconds=time.perf_counter() - begin,
        )
        results.append(
            row(
                setting=Setting.DEFENDED if z else Setting.UNDEFENDED,
                metric="AUC",
                per_seed=tuple(areas),
                ci95=(pooled.low, pooled.high),
                expected=None if z else Expected(op=Op.EQUAL, bound=1.0),
            )
        )
        if z:
            results.append(
                row(
                    setting=Setting.DEFENDED,
                    metric="|AUC of all seeds together - cap|",
                    per_seed=tuple(abs(pooled.value - cap) for _ in settings.seeds),
                    baseline=None,
                    cap=None,
                    expected=Expected(op=Op.AT_MOST, bound=WITHIN),
                )
            )

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        ax = figure.subplots()
        fine = np.linspace(0.02, max(points), 200)
        line = [metrics.auc_cap(metrics.mu_of(z)) for z in fine]
        ax.plot(fine, line, "--", color="black", lw=1.2, label="cap (theory)")
        for z, areas in points.items():
            colour = plots.GOOD if z else plots.BAD
            label = "library, noise z" if z else "no noise: whole sessions"
            first = z in (0.0, 1.0)
            ax.plot([z] * len(areas), areas, "o", color=colour, ms=5,
                    label=label if first else None)  # fmt: skip
        ax.axhline(0.5, color=plots.NEUTRAL, lw=1, ls=":", label="baseline: no transcript")
        ax.set_xlabel("noise multiplier z on the sum")
        ax.set_ylabel("AUC: is the victim in the sum?")
        ax.set_title(f"t02c: server that knows all but one client, n = {CLIENTS}; a dot per seed")
        ax.legend(fontsize=8)

    notes = (
        "An attack at its cap shows that nothing is wasted, not that the cap is low enough.",
        f"Without noise: {5 * len(settings.seeds)} whole sessions per side. With noise: sums in "
        "the ring, bit-equal to a session's.",
    )
    return Outcome(results=tuple(results), draw=draw, notes=notes)


DEMO = Demo(name="t02c_worst_case", doc=__doc__, run=run)

if __name__ == "__main__":
    raise SystemExit(DEMO.main())
