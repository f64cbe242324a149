"""Which of 1797 known records are in a secure sum.

Adversary: an honest-but-curious server; nobody colludes with it.
Capability: follows the protocol and looks at the opened sum; secure aggregation is on.
Knowledge: the model, and a dictionary of all 1797 candidate records with their labels.

The sum is a linear combination of the dictionary's gradients with weights 0 and 1. Ridge regression
finds the weights, up to sums of hundreds of clients: anonymity in a crowd of 512 is none. A second
attack scores each candidate by itself. Every client takes part or sends zeros by a secret coin, and
the question is which: the game behind zero-out adjacency. With noise the area stays below its cap,
and above one half.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

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

    Total = NDArray[np.float64]
    Pair = tuple[Total, Total]
    Clients = tuple[NDArray[np.int64], NDArray[np.bool_]]

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
"""Up to here each seed's first sum comes out of a session; the others are bit-equal ring sums."""
_TRIALS = {8: 24, 32: 12, 128: 6, 512: 2}
ATTACKS = {"regression": "ridge regression", "correlation": "correlation"}


class Dictionary:
    """Clipped gradients of all candidates, and both attacks."""

    def __init__(self) -> None:
        candidates = data.digits()
        net = gradients.fresh_net(HIDDEN, 0)
        self.rows = gradients.clip_rows(gradients.record_gradients(net, candidates.x, candidates.y))
        self.gram = self.rows @ self.rows.T
        self._mean = self.rows.mean(axis=0)
        self._apart = np.linalg.norm(self.rows - self._mean, axis=1)
        self._factors: dict[float, object] = {}

    def regression(self, total: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
        """Weights of the candidates; float64[1797]."""
        if ridge not in self._factors:
            self._factors[ridge] = cho_factor(self.gram + ridge * np.eye(len(self.gram)))
        weights: NDArray[np.float64] = cho_solve(self._factors[ridge], self.rows @ total)
        return weights

    def correlation(self, total: NDArray[np.float64]) -> NDArray[np.float64]:
        """Each candidate by itself, less what the average candidate gives; float64[1797]."""
        scores: NDArray[np.float64] = (self.rows @ total - self._mean @ total) / self._apart
        return scores


class Game(NamedTuple):
    """Sums of one size and noise.

    Attributes:
        codec: of all clients.
        scores: per attack and seed, one pair (active, idle) of score vectors for every sum.
        exact: per seed the fraction of sums whose active set was named without a mistake.
    """

    codec: Codec
    scores: dict[str, list[list[Pair]]]
    exact: list[float]


def _sum(book: Dictionary, clients: Clients, codec: Codec, settings: Run) -> Total:
    """What the server decodes. A client that does not take part sends zeros, and its noise."""
    updates = {
        u: book.rows[record] if active else np.zeros(codec.dimension)
        for u, (record, active) in enumerate(zip(*clients, strict=True), start=1)
    }
    if settings.transcript("session").exists() or len(updates) > LARGEST_SESSION:
        encoded = (codec.encode(values, round_seed=bytes(32)) for values in updates.values())
        return release(codec, encoded)
    path = settings.transcript("session")
    return open_sum(updates, codec, path, adversary=Adversary.SEMI_HONEST).total()


def _play(settings: Run, book: Dictionary, n: int, z: float, trials: int) -> Game:
    """Every client flips a secret coin whether it takes part: the game of zero-out adjacency."""
    d = gradients.dimension(HIDDEN)
    codec: Codec = noisy_codec(d, n, z) if z else plain_codec(d, n)
    ridge = z * z / 0.02 if z else 1e-9
    scores: dict[str, list[list[Pair]]] = {name: [] for name in ATTACKS}
    exact = []
    for seed in settings.seeds:
        settings.transcript("session").unlink(missing_ok=True)  # each seed's first sum has one
        right = 0
        for name in ATTACKS:
            scores[name].append([])
        for trial in range(trials):
            rng = np.random.default_rng([seed, trial, n])
            records = rng.choice(len(book.rows), size=n, replace=False)
            active = rng.permutation(np.arange(n) % 2 == 0) if z == 0 else rng.random(n) < 0.5
            total = _sum(book, (records, active), codec, settings)
            weights = book.regression(total, ridge)
            named = np.flatnonzero(weights > 0.5)
            right += np.array_equal(named, np.sort(records[active]))
            for name, found in (("regression", weights), ("correlation", book.correlation(total))):
                scores[name][-1].append((found[records[active]], found[records[~active]]))
        exact.append(right / trials)
    return Game(codec, scores, exact)


def _area(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Area over pairs of *different* sums, and its standard error by leaving out one sum.

    Two candidates of one sum are another question: "this one or that one" is a replacement, whose
    cap is Phi(1/z) where two records pull in opposite directions.
    """
    k = len(pairs)
    wins, count = np.zeros((k, k)), np.zeros((k, k))
    for a, (active, _) in enumerate(pairs):
        for b, (_, idle) in enumerate(pairs):
            if a != b or k == 1:
                wins[a, b] = (active[:, None] > idle).sum() + (active[:, None] == idle).sum() / 2
                count[a, b] = active.size * idle.size
    whole = float(wins.sum() / max(count.sum(), 1))
    if k < 3:
        return whole, 0.0
    left = np.empty(k)
    for i in range(k):
        others = np.delete(np.arange(k), i)
        left[i] = wins[np.ix_(others, others)].sum() / count[np.ix_(others, others)].sum()
    return whole, float(np.sqrt((k - 1) / k * np.square(left - left.mean()).sum()))


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
            codec, scores, exact = _play(settings, book, n, z, trials)
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
                            "session": "each seed's first" if n <= LARGEST_SESSION else "none"},
                epsilon=claim(codec, n) if isinstance(codec, NoisyCodec) else None,
            )  # fmt: skip
            undefended = z == 0
            setting = Setting.UNDEFENDED if undefended else Setting.DEFENDED
            for name, what in ATTACKS.items():
                strong = name == "regression"
                middle, error = _area([pair for seed in scores[name] for pair in seed])
                low, high = middle - 1.96 * error, middle + 1.96 * error
                expected = Expected(op=Op.AT_LEAST, bound=0.999) if undefended and strong else None
                if not undefended:
                    expected = Expected(op=Op.MEDIAN_AT_MOST, bound=cap + (high - low))
                each = tuple(_area(of_seed)[0] for of_seed in scores[name])
                results.append(
                    row(
                        setting=setting,
                        attack=f"{what}, sum of {n}, z = {z:g}",
                        metric="AUC: did this client take part",
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
                {"regression, by seed": list(by_size.values())},
                cap=[metrics.auc_cap(metrics.mu_of(z))] * len(by_size),
                baseline=0.5,
                xlabel="clients in the sum",
                ylabel="AUC of membership" if z == 0 else "",
                title=name,
            )
            ax.set_xscale("log", base=2)
            ax.set_ylim(0.4, 1.03)
        figure.suptitle(
            f"t02b: an honest server with a dictionary of 1797 records, secure sums of n = "
            f"{sizes[0]} to {sizes[-1]}", fontsize=10,
        )  # fmt: skip

    notes = (
        f"Up to {LARGEST_SESSION} clients each seed's first sum is a session; the others are added "
        "in the ring, bit-equal to it.",
        "Half of the clients take part, by a secret coin; the others send zeros with their noise.",
        "The cap is for an attacker that knows all other members (t02c); this one does not.",
        "An area of .55 is not safety for the one record that an attacker is sure about.",
    )
    return Outcome(results=tuple(results), draw=draw, notes=notes)


DEMO = Demo(name="t02b_dictionary", doc=__doc__, run=run)

if __name__ == "__main__":
    raise SystemExit(DEMO.main())
