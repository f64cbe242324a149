"""A secure sum of two records is not private.

Adversary: an honest-but-curious server that colludes with one of three clients.
Capability: follows the protocol; subtracts the colluder's vector from the opened sum.
Knowledge: the model, the colluder's input, and the labels of the two other records.

Three clients, one of them the server's: what is left of the sum are two honest updates, and the
optimisation of t01b finds both images at once. The library's smallest cohorts are no crowd.
Nothing is removed here and nothing is defended: the size of the honest part of a sum is no privacy,
large or small (t02); noise with an epsilon is (t03).
"""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from attackers import optimise
from kit import data, metrics
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.updates import open_sum, plain_codec

from securefl.round import Adversary

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PAPER = "Zhu, Liu, Han 2019, Deep Leakage from Gradients"
SERVER = Attacker(
    role="honest-but-curious server",
    sees="the transcript of a whole round with secure aggregation, so the opened sum",
    knows="the model; one colluder's input; one step on one record each",
    colluders=1,
    oracle_help="the labels of both records, in favour of the attacker",
)
CLIP = 16.0
"""No update reaches it: clipping is not what this program is about."""
RESTARTS = 5


def _score(
    found: NDArray[np.float64], truth: data.Images
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """PSNR of both and identified fraction, under the better order of the two."""
    orders = [found[list(order)] for order in itertools.permutations(range(len(found)))]
    best = max(orders, key=lambda images: float(metrics.psnr(images, truth.x).sum()))
    return metrics.psnr(best, truth.x), metrics.ident(best, truth.row), best


def run(settings: Run) -> Outcome:
    """One session per seed, two victims in each."""
    images = data.victims(2 * len(settings.seeds))
    decibels, identified, shown = [], [], []
    begin = time.perf_counter()
    for s, seed in enumerate(settings.seeds):
        truth = images.take([2 * s, 2 * s + 1])
        net = optimise.fresh_convnet(seed)
        grads = optimise.record_gradients(net, truth.x, truth.y)
        rng = np.random.default_rng(seed)
        colluder = 0.01 * rng.standard_normal(size=(grads.shape[1],), dtype=np.float64)
        codec = plain_codec(grads.shape[1], 3, clip_norm=CLIP)
        opened = open_sum(
            {1: grads[0], 2: grads[1], 3: colluder},
            codec,
            settings.transcript(),
            adversary=Adversary.SEMI_HONEST,
        )
        rest = opened.total(without={3: codec.encode(colluder)})
        found = _invert(net, rest, truth.y, seed)
        psnr, ident, best = _score(found, truth)
        decibels.append(float(np.median(psnr)))
        identified.append(ident)
        shown.append(best)
    mean = np.tile(metrics.blind_image(), (len(images.x), 1))
    classes = np.array([metrics.class_image(int(y)) for y in images.y])
    row = partial(
        Result,
        threat=settings.name,
        paper=PAPER,
        attacker=SERVER,
        setting=Setting.NOT_DEFENDED,
        attack="L-BFGS on the honest rest of a secure sum of 3",
        parameters={"n": 3, "colluders": 1, "clip norm": CLIP, "ring bits": codec.spec.bits},
        seconds=time.perf_counter() - begin,
    )
    known_label = float(np.median(metrics.psnr(classes, images.x)))
    results = (
        row(metric="PSNR, dB (median of the two)", per_seed=tuple(decibels), baseline=known_label,
            expected=Expected(op=Op.MEDIAN_AT_LEAST, bound=40.0)),
        row(metric="identified", per_seed=tuple(identified),
            baseline=metrics.ident(classes, images.row),
            expected=Expected(op=Op.MEDIAN_AT_LEAST, bound=1.0)),
    )  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        plots.image_rows(
            figure,
            [("the records, two per sum", images.x), ("from the secure sum", np.concatenate(shown)),
             ("class mean (label known)", classes), ("guess without transcript", mean)],
            captions=("", f"{np.median(decibels):.0f} dB, {np.mean(identified):.0%} identified",
                      f"{known_label:.1f} dB: the baseline",
                      f"{np.median(metrics.psnr(mean, images.x)):.1f} dB"),
            title="t01c: an honest server and one colluder, secure sums of n = 3: not defended",
        )  # fmt: skip

    notes = ("NOT DEFENDED: two honest clients are not a crowd, and no number of them is privacy.",)
    return Outcome(results=results, draw=draw, notes=notes)


def _invert(
    net: optimise.Net, rest: NDArray[np.float64], labels: NDArray[np.int64], seed: int
) -> NDArray[np.float64]:
    """The start whose gradient comes closest; the attacker can see that without an oracle."""
    found = []
    for restart in range(RESTARTS):
        guess = optimise.lbfgs(
            net, rest, [seed, restart], labels=list(labels), weight=2.0, steps=20
        )
        apart = optimise.record_gradients(net, guess, labels).sum(axis=0) - rest
        found.append((float(np.linalg.norm(apart) / np.linalg.norm(rest)), guess))
        if found[-1][0] < 1e-4:
            break
    return min(found, key=lambda pair: pair[0])[1]


DEMO = Demo(name="t01c_sum_of_two", doc=__doc__, run=run, needs=("torch",))

if __name__ == "__main__":
    raise SystemExit(DEMO.main())
