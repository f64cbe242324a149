"""A first layer made to sort records into bins.

Adversary: a malicious server; nobody colludes with it.
Capability: chooses the model that all clients get, the same for all; follows the protocol.
Knowledge: 797 public images of the same kind, for the bins; secure aggregation is on.

Every row of the first layer answers to one interval of one random projection, with intervals that
hold equally many public records (Fowl et al. 2022). A record alone in its interval lies bare in the
secure sum. The head is scaled so that the first layer has the whole norm: clipping scales all rows
of a client alike and divides out, and rounding to a ring stays far below the rows. So neither is a
defence; an attack without this adaptation "was defeated" by both. Noise on the sum is another
matter, from z = .1 on for this attack, and an epsilon says what it is worth against others.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from attackers import gradients
from attackers.gradients import Activation, Net
from kit import data, metrics
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.updates import claim, noisy_codec, open_sum, plain_codec

from securefl.encoding import NoisyCodec
from securefl.round import Adversary

if TYPE_CHECKING:
    from kit.updates import Codec
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PAPER = (
    "Fowl, Geiping, Czaja, Goldblum, Goldstein 2022, Robbing the Fed: Directly Obtaining Private "
    "Data in Federated Learning with Modified Models"
)
SERVER = Attacker(
    role="malicious server",
    sees="the transcript of a whole round with secure aggregation, so the opened sum",
    knows="797 public images disjoint from the victims; the model, which it made",
    oracle_help="each record is held against its best row, in favour of the attacker",
)
BATCH, WIDTH, CLOSE_DB = 8, 1e-3, 30.0
CARRY = 4
"""More bits in the ring than in an entry, so that a sum of ten does not wrap."""
UNCLIPPED = 1000.0
"""A clip norm that no update reaches."""


def imprint(bins: int, seed: int) -> Net:
    """One interval per row, ends from public quantiles; Hardtanh(0, WIDTH); a head of +-1."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=data.PIXELS) / 8
    ends = np.quantile(data.public().x @ direction, np.linspace(0, 1, bins + 1))
    ends[0] -= 0.01
    ends[-1] += 0.01
    width = np.maximum(np.diff(ends), 1e-9)
    head = np.where(np.arange(data.CLASSES) < 5, 1.0, -1.0)
    alternating = np.where(np.arange(bins) % 2, -1.0, 1.0)
    return Net(
        W1=WIDTH * direction[None, :] / width[:, None],
        b1=-WIDTH * ends[:-1] / width,
        W2=head[:, None] * alternating[None, :],
        b2=np.zeros(data.CLASSES),
        activation=Activation.WINDOW,
        width=WIDTH,
    )


class Round(NamedTuple):
    """One round under attack: how many records came out, and the best rows for a picture."""

    division: float
    prior: float
    best: NDArray[np.float64]


class Filter:
    """Public mean and covariance, for rows with noise in them."""

    def __init__(self) -> None:
        known = data.public().x
        self.mean, self.cov = known.mean(axis=0), np.cov(known.T)
        self.values, self.vectors = np.linalg.eigh(self.cov)

    def apply(
        self, rows: NDArray[np.float64], variance: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Wiener's estimate of every row from its own noise variance; float64[k, 64]."""
        inside = (rows - self.mean) @ self.vectors
        kept = self.values / (self.values + variance[:, None])
        return np.asarray(self.mean + (inside * kept) @ self.vectors.T)


def attack(total: NDArray[np.float64], bins: int, z: float, truth: data.Images) -> Round:
    """Divides every row; with noise also the filter. Nothing is left out by a threshold."""
    gW, gb = gradients.first_layer(total, bins)
    used = np.abs(gb) > 0
    divided = gW[used] / gb[used, None]
    plain = np.clip(divided, 0, 1)
    filtered = plain
    if z:
        filtered = np.clip(Filter().apply(divided, (z / gb[used]) ** 2), 0, 1)
    distance = _distances(plain, truth.x)
    return Round(
        division=_recovered(distance),
        prior=_recovered(_distances(filtered, truth.x)),
        best=plain[distance.argmin(axis=0)],
    )


def _distances(rows: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    square = np.square(rows).sum(1)[:, None] - 2 * rows @ x.T + np.square(x).sum(1)
    return np.asarray(np.maximum(square, 0))


def _recovered(squares: NDArray[np.float64]) -> float:
    """Records that some row shows above 30 dB."""
    return float(np.mean(squares.min(axis=0) / data.PIXELS < 10 ** (-CLOSE_DB / 10)))


def play(
    settings: Run, seed: int, n: int, bins: int, codec: Codec, z: float
) -> tuple[Round, data.Images]:
    """One session; every client one gradient over its batch."""
    rng = np.random.default_rng([seed, n])
    truth = data.digits().take(rng.choice(np.array(data.PRIVATE), size=n * BATCH, replace=False))
    net = imprint(bins, seed)
    updates = {
        u + 1: gradients.mean_gradient(
            net, truth.x[u * BATCH :][:BATCH], truth.y[u * BATCH :][:BATCH]
        )
        for u in range(n)
    }
    opened = open_sum(updates, codec, settings.transcript(), adversary=Adversary.SEMI_HONEST)
    return attack(opened.total(), bins, z, truth), truth


def run(settings: Run) -> Outcome:
    """No clipping, clipping, coarse rings, then noise."""
    d = gradients.dimension
    levels = (1e-4, 1e-3, 0.01, 0.1, 1.0)
    cases: list[tuple[str, int, int, Codec, float]] = [
        ("secure aggregation only", 10, 1024, plain_codec(d(1024), 10, clip_norm=UNCLIPPED), 0.0),
        ("and clipping", 10, 1024, plain_codec(d(1024), 10), 0.0),
        ("and a ring of 16 bits", 10, 1024, plain_codec(d(1024), 10, bits=16), 0.0),
        ("and 8 bits per client", 10, 1024, plain_codec(d(1024), 10, bits=8 + CARRY), 0.0),
        ("and a ring of 8 bits", 10, 1024, plain_codec(d(1024), 10, bits=8), 0.0),
    ]
    cases += [(f"and noise z = {z:g}", 10, 1024, noisy_codec(d(1024), 10, z), z) for z in levels]
    if not settings.quick:
        cases += [
            (f"and clipping, {k} bins", 50, k, plain_codec(d(k), 50), 0.0) for k in (1024, 4096)
        ]
    results: list[Result] = []
    pictures: dict[str, Round] = {}
    for name, n, bins, codec, z in cases:
        begin = time.perf_counter()
        rounds = []
        for seed in settings.seeds:
            found, truth = play(settings, seed, n, bins, codec, z)
            rounds.append(found)
            if seed == settings.seeds[0] and n == 10:
                pictures[name], original = found, truth
        division = [r.division for r in rounds]
        expected, setting = _judged(name, z, n, results)
        row = partial(
            Result,
            threat=settings.name,
            paper=PAPER,
            attacker=SERVER,
            metric="records recovered above 30 dB",
            setting=setting,
            baseline=0.0,
            parameters={"n": n, "records per client": BATCH, "bins": bins, "z": z,
                        "clip norm": codec.spec.clip_norm, "ring bits": codec.spec.bits},
            epsilon=claim(codec, n) if isinstance(codec, NoisyCodec) else None,
            seconds=time.perf_counter() - begin,
        )  # fmt: skip
        results.append(
            row(attack=f"imprint, n = {n}, {name}", per_seed=tuple(division), expected=expected)
        )
        if z:
            results.append(
                row(
                    attack=f"imprint and public prior, n = {n}, {name}",
                    per_seed=tuple(r.prior for r in rounds),
                    expected=expected,
                )
            )

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        names = [
            "secure aggregation only",
            "and a ring of 16 bits",
            "and noise z = 0.001",
            "and noise z = 0.1",
        ]
        told = [_caption(results, f"imprint, n = 10, {name}") for name in names]
        plots.image_rows(
            figure,
            [("the records", original.x[:8]),
             *((name, pictures[name].best[:8]) for name in names),
             ("guess without transcript", np.tile(metrics.blind_image(), (8, 1)))],
            captions=("", *told, "0 % recovered"),
            title="t10: a malicious server's first layer, secure sum of n = 10 x 8 records",
        )  # fmt: skip

    notes = (
        "The picture's rows are the best ones by oracle; noisy rows look worse to a real server.",
        "'0 above 30 dB' is this attack's end, not a proof: epsilon is the claim.",
    )
    return Outcome(results=tuple(results), draw=draw, notes=notes)


def _judged(name: str, z: float, n: int, before: list[Result]) -> tuple[Expected | None, Setting]:
    if z >= 0.1:
        return Expected(op=Op.EQUAL, bound=0.0), Setting.DEFENDED
    if name == "secure aggregation only":
        return Expected(op=Op.MEDIAN_AT_LEAST, bound=0.8), Setting.UNDEFENDED
    if name == "and clipping":  # within .02 of what the same rounds give without it
        return Expected(op=Op.MEDIAN_AT_LEAST, bound=before[0].median - 0.02), Setting.NOT_DEFENDED
    if name == "and 8 bits per client":
        return Expected(op=Op.MEDIAN_AT_LEAST, bound=0.7), Setting.NOT_DEFENDED
    if name == "and a ring of 16 bits":
        return Expected(op=Op.MEDIAN_AT_LEAST, bound=0.8), Setting.NOT_DEFENDED
    return None, Setting.NOT_DEFENDED


def _caption(results: list[Result], attack: str) -> str:
    """What came out, with the epsilon of any noise."""
    found = next(r for r in results if r.attack == attack)
    epsilon = "" if found.epsilon is None else f", eps {found.epsilon.value:,.0f}"
    return f"{found.median:.0%} recovered{epsilon}"


DEMO = Demo(name="t10_imprint", doc=__doc__, run=run)

if __name__ == "__main__":
    raise SystemExit(DEMO.main())
