"""Overflow: honest clients, a ring that is one client too small.

Adversary: nobody; everybody is honest.
Capability: none; a planner who counts bits per client and forgets the sum.
Knowledge: none.

A sum modulo R of n clients with levels 0..L is right as long as n L < R. One client more, and a
coordinate wraps around: the mean jumps by a large amount, and nothing reports an error. The codec's
constructor refuses every plan that could wrap, so the boundary is n = floor((R - 1) / L).
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
from attackers.measure import measured
from attackers.stage import TARGET, Case
from kit.result import Attacker, Demo, Expected, Op, Outcome, Run, Setting
from kit.rounds import secure_round

from securefl.encoding import codec as codec_module
from securefl.encoding.codec import CodecSpec, UpdateCodec
from securefl.errors import ConfigurationError
from securefl.round import AggregateSum, ClientId

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BITS, RESOLUTION, DIMENSION = 20, 32767, 16
LEVELS = 2 * RESOLUTION
LAST = ((1 << BITS) - 1) // LEVELS
"""The most clients whose sum fits: 16."""
NOBODY = Attacker(role="nobody: honest clients and server", sees="-", knows="-")


def worst_error(case: Case, *, n: int, checked: bool) -> float:
    """A real round in which all clients are at the clip norm in one coordinate.

    Returns:
        The largest error of a decoded mean, in clip norms; 0 where the plan is refused.
    """
    rule = "_needed_modulus"
    intact = getattr(codec_module, rule)
    try:
        with mock.patch.object(codec_module, rule, intact if checked else lambda *_: 0):
            spec = CodecSpec(
                dimension=DIMENSION, clip_norm=1.0, resolution=RESOLUTION, max_clients=n,
                modulus=1 << BITS,
            )  # fmt: skip
            codec = UpdateCodec(spec)
    except ConfigurationError as error:
        case.refused.append((TARGET, error))
        return 0.0
    rng = np.random.default_rng(case.seed)
    place = int(rng.integers(DIMENSION))
    updates = np.zeros((n, DIMENSION))
    updates[:, place] = 1.0 if case.seed % 2 == 0 else -1.0
    seed = rng.bytes(32)
    given = {
        ClientId(u): codec.encode(row, round_seed=seed) for u, row in enumerate(updates, start=1)
    }
    opened = secure_round(given, case.path).view().sum_of(given)
    assert opened is not None, "an honest round opens"
    vector = next(iter(given.values()))
    total = type(vector)(opened.astype(vector.values.dtype), vector.modulus)
    aggregate = AggregateSum(vector=total, survivors=tuple(given), min_honest=n - 1)
    with mock.patch.object(codec_module, rule, intact if checked else lambda *_: 0):
        mean = codec.decode(aggregate, round_seed=seed).mean
    return float(np.abs(np.asarray(mean) - updates.mean(axis=0)).max())


def refusal_boundary(case: Case) -> float:
    """The most clients that the constructor accepts in this ring."""
    accepted = 0
    for n in range(2, 4 * LAST):
        try:
            CodecSpec(
                dimension=DIMENSION, clip_norm=1.0, resolution=RESOLUTION, max_clients=n,
                modulus=1 << BITS,
            )  # fmt: skip
        except ConfigurationError as error:
            case.refused.append((TARGET, error))
        else:
            accepted = n
    return float(accepted)


def run(run: Run) -> Outcome:
    """Measures."""
    metric = "largest error of the mean, in clip norms"
    rounding = UpdateCodec(
        CodecSpec(dimension=DIMENSION, clip_norm=1.0, resolution=RESOLUTION, max_clients=LAST,
                  modulus=1 << BITS)
    ).mean_error_bound  # fmt: skip
    numbers = {"R": 1 << BITS, "L": LEVELS, "floor((R-1)/L)": LAST}
    paper = "-"
    results = [
        measured(
            run, partial(worst_error, n=LAST, checked=False), paper=paper,
            name=f"n = {LAST}: it fits", setting=Setting.UNDEFENDED, attacker=NOBODY,
            expected=Expected(op=Op.AT_MOST, bound=rounding), metric=metric, baseline=None,
            parameters=numbers,
        ),
        measured(
            run, partial(worst_error, n=LAST + 1, checked=False), paper=paper,
            name=f"n = {LAST + 1}: it wraps", setting=Setting.UNDEFENDED, attacker=NOBODY,
            expected=Expected(op=Op.AT_LEAST, bound=0.5), metric=metric, baseline=None,
            parameters=numbers,
        ),
        measured(
            run, partial(worst_error, n=LAST + 1, checked=True), paper=paper,
            name=f"n = {LAST + 1}: refused", setting=Setting.DEFENDED, attacker=NOBODY,
            expected=Expected(op=Op.EQUAL, bound=0.0), metric=metric, baseline=None,
            parameters=numbers,
        ),
        measured(
            run, refusal_boundary, paper=paper, name="most clients accepted",
            setting=Setting.DEFENDED, attacker=NOBODY,
            expected=Expected(op=Op.EQUAL, bound=float(LAST)), metric="clients", baseline=None,
            cap=float(LAST), cap_formula="floor((R - 1) / L)", parameters=numbers,
        ),
    ]  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        ns = list(range(LAST - 3, LAST + 4))
        errors = [
            worst_error(Case(seed=0, path=run.transcript("picture")), n=n, checked=False)
            for n in ns
        ]
        ax = figure.subplots()
        ax.axvspan(LAST + 0.5, ns[-1] + 0.5, color="#fde0dd", zorder=0)
        ax.text(LAST + 0.6, 0.05, "refused by the library", fontsize=8, color=plots.BAD)
        ax.plot(ns, errors, "o", color=plots.BAD)
        ax.axvline(LAST + 0.5, color="black", ls="--", lw=1)
        ax.set_xlabel("clients n, all of them honest")
        ax.set_ylabel("error of the mean, in clip norms")
        ax.set_title(
            f"Nobody attacks: ring of 2^{BITS}, 16-bit levels, right up to n = floor((R-1)/L) = "
            f"{LAST}, then wrong"
        )
        ax.axhline(0, color=plots.NEUTRAL, lw=1, ls=":", label="baseline: the true mean")
        ax.legend(fontsize=8, loc="center left")

    return Outcome(results=tuple(results), draw=draw)


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run)

if __name__ == "__main__":
    sys.exit(DEMO.main())
