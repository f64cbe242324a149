"""Which of 1797 known records are in a secure sum.

Adversary: an honest-but-curious server; nobody colludes with it.
Capability: follows the protocol and looks at the opened sum; secure aggregation is on.
Knowledge: the model, and a dictionary of all 1797 candidate records with their labels.

The sum is a linear combination of the dictionary's gradients with weights 0 and 1. Ridge regression
finds the weights, up to sums of hundreds of clients: anonymity in a crowd of 512 is none. A second
attack scores each candidate by itself. With noise the regression is as strong as theory lets any
attack be, no stronger: its area stays below the cap of the noise, and above one half.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from attackers import gradients
from kit import data, metrics
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.updates import claim, noisy_codec, open_sum, plain_codec, release
from scipy.linalg import cho_factor, cho_solve

from securefl.encoding import NoisyCodec
from securefl.round import Adversary

if TYPE_CHECKING:
    from kit.updates import Codec
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

HIDDEN = 64
PAPER = (
    "Homer et al. 2008, Resolving Individuals Contributing Trace Amounts of DNA to Highly Complex "
    "Mixtures (the same question, asked of another sum); Dong, Roth, Su 2022, Gaussian "
    "Differential Privacy (the cap)"
)
SERVER = Attacker(
    role="honest-but-curious server",
    sees="the transcript of a whole round with secure aggregation, so the opened sum",
    knows="the model; 1797 candidate records, among them all that are in the sum",
    oracle_help="the dictionary contains every member, which favours the attacker",
)
LARGEST_SESSION = 32
"""Up to here every sum comes out of a session; beyond, of the bit-equal sum in the ring."""
_TRIALS = {8: 16, 32: 8, 128: 4, 512: 2}
ATTACKS = {"regression": "ridge regression", "correlation": "correlation"}


class Dictionary:
    """Clipped gradients of all candidates, and both attacks."""

    def __init__(self) -> None:
        candidates = data.digits()
        net = gradients.fresh_net(HIDDEN, 0)
        self.rows = gradients.clip_rows(gradients.record_gradients(net, candidates.x, candidates.y))
        self.gram = self.rows @ self.rows.T
        self._factors: dict[float, object] = {}

    def regression(self, total: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
        """Weights of the candidates; float64[1797]."""
        if ridge not in self._factors:
            self._factors[ridge] = cho_factor(self.gram + ridge * np.eye(len(self.gram)))
        weights: NDArray[np.float64] = cho_solve(self._factors[ridge], self.rows @ total)
        return weights

    def correlation(self, total: NDArray[np.float64]) -> NDArray[np.float64]:
        """Each candidate by itself, less what the average candidate gives; float64[1797]."""
        centred = self.rows - self.rows.mean(axis=0)
        scores: NDArray[np.float64] = centred @ total / np.linalg.norm(centred, axis=1)
        return scores


def _sum(
    book: Dictionary, members: NDArray[np.int64], codec: Codec, settings: Run
) -> NDArray[np.float64]:
    n = len(members)
    if n <= LARGEST_SESSION:
        updates = dict(enumerate(book.rows[members], start=1))
        opened = open_sum(updates, codec, settings.transcript(), adversary=Adversary.SEMI_HONEST)
        return opened.total()
    return release(codec, (codec.encode(book.rows[u], round_seed=bytes(32)) for u in members))


def _play(
    settings: Run, book: Dictionary, n: int, z: float, trials: int
) -> tuple[Codec, dict[str, NDArray[np.float64]], list[float]]:
    """Per attack the area of every sum, float64[seeds, trials]; per seed the exact sets."""
    d = gradients.dimension(HIDDEN)
    codec: Codec = noisy_codec(d, n, z) if z else plain_codec(d, n)
    ridge = z * z / 0.02 if z else 1e-9
    areas = {name: np.empty((len(settings.seeds), trials)) for name in ATTACKS}
    exact = []
    for s, seed in enumerate(settings.seeds):
        right = 0
        for trial in range(trials):
            rng = np.random.default_rng([seed, trial, n])
            members = np.sort(rng.choice(len(book.rows), size=n, replace=False))
            total = _sum(book, members, codec, settings)
            others = np.setdiff1d(np.arange(len(book.rows)), members)
            weights = book.regression(total, ridge)
            right += np.array_equal(np.flatnonzero(weights > 0.5), members)
            for name, found in (("regression", weights), ("correlation", book.correlation(total))):
                areas[name][s, trial] = metrics.auc(found[members], found[others]).value
        exact.append(right / trials)
    return codec, areas, exact


def _interval(areas: NDArray[np.float64]) -> tuple[float, float]:
    """95 % for the mean area. Scores of one sum share its noise, so that sums are the sample."""
    each = areas.ravel()
    half = 1.96 * float(each.std(ddof=1)) / len(each) ** 0.5
    return float(each.mean()) - half, float(each.mean()) + half


def run(settings: Run) -> Outcome:
    """Sums of 8 to 512, without noise, with z = 1 and z = 4."""
    book = Dictionary()
    sizes = (8, 128) if settings.quick else (8, 32, 128, 512)
    results: list[Result] = []
    points: dict[float, dict[int, tuple[float, ...]]] = {}
    for z in (0.0, 1.0, 4.0):
        cap = metrics.auc_cap(metrics.mu_of(z))
        points[z] = {}
        for n in sizes:
            begin = time.perf_counter()
            trials = 1 if z == 0 else _TRIALS[n]
            codec, areas, exact = _play(settings, book, n, z, trials)
            row = partial(
                Result,
                threat=settings.name,
                paper=PAPER,
                attacker=SERVER,
                baseline=0.5,
                cap=cap,
                cap_formula="Phi(1 / (z sqrt 2)); 1 without noise",
                parameters={"n": n, "hidden": HIDDEN, "z": z, "sums per seed": trials,
                            "ring bits": codec.spec.bits,
                            "sum": "session" if n <= LARGEST_SESSION else "ring"},
                epsilon=claim(codec, n) if isinstance(codec, NoisyCodec) else None,
            )  # fmt: skip
            undefended = z == 0
            setting = Setting.UNDEFENDED if undefended else Setting.DEFENDED
            for name, what in ATTACKS.items():
                strong = name == "regression"
                low, high = _interval(areas[name])
                expected = Expected(op=Op.AT_LEAST, bound=0.999) if undefended and strong else None
                if not undefended:
                    expected = Expected(op=Op.MEDIAN_AT_MOST, bound=cap + (high - low))
                each = tuple(float(a) for a in areas[name].mean(axis=1))
                results.append(
                    row(
                        setting=setting,
                        attack=f"{what}, sum of {n}, z = {z:g}",
                        metric="AUC over the candidates",
                        per_seed=each,
                        ci95=(low, high),
                        expected=expected,
                        seconds=time.perf_counter() - begin,
                    )
                )
                if strong:
                    points[z][n] = each
            if undefended:
                results.append(
                    row(
                        setting=setting,
                        attack=f"ridge regression, sum of {n}",
                        metric="sums whose exact set of members was named",
                        per_seed=tuple(exact),
                        baseline=0.0,
                        cap=None,
                        expected=Expected(op=Op.EQUAL, bound=1.0),
                    )
                )

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        axes = figure.subplots(1, 3, sharey=True)
        for ax, (z, by_size) in zip(axes, points.items(), strict=True):
            name = "no noise" if z == 0 else f"z = {z:g}"
            plots.under_cap(
                ax,
                list(by_size),
                {name: list(by_size.values())},
                cap=[metrics.auc_cap(metrics.mu_of(z))] * len(by_size),
                baseline=0.5,
                xlabel="clients in the sum",
                ylabel="AUC of membership" if z == 0 else "",
                title=name,
            )
            ax.set_xscale("log", base=2)
            ax.set_ylim(0.4, 1.03)
        figure.suptitle("t02b: an honest server with a dictionary of 1797 records", fontsize=10)

    notes = (
        f"Sums of more than {LARGEST_SESSION} are added in the ring, bit-equal to a session's.",
        "The cap is for an attacker that knows all other members (t02c); this one does not.",
        "An area of .55 is not safety for the one record that an attacker is sure about.",
    )
    return Outcome(results=tuple(results), draw=draw, notes=notes)


DEMO = Demo(name="t02b_dictionary", doc=__doc__, run=run)

if __name__ == "__main__":
    raise SystemExit(DEMO.main())
