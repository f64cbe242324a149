"""What the theory of convergence promises, and what is measured: four statements on real data.

The problem is softmax regression with an L2 penalty on handwritten digits: strongly convex, with
known constants mu and L (``theory/strongly_convex.py``, where also the formulas stand). The optimum
comes from Newton's method in float64; all steps that are measured are taken by the library's
trainers and server optimiser, in float32.

1. Exact gradients at a constant rate: ||w_t - w*|| <= (1 - mu eta)^t ||w_0 - w*||.
2. Several local steps on clients that differ: FedAvg goes somewhere else. The distance to the
   optimum grows with eta (E - 1), as in theorem 4 of Li et al. (2020, *On the convergence of FedAvg
   on non-IID data*).
3. Noisy gradients at a constant rate: a floor that only a smaller rate lowers. Bottou, Curtis and
   Nocedal (2018, *Optimization methods for large-scale machine learning*), theorem 4.6.
4. The same noise at a decaying rate: O(1/t), theorem 4.7 of the same paper.

The noise is that of one DP-SGD step over all records (standard deviation z C per coordinate of the
sum). C is a *public* bound on every record's gradient, so clipping never acts here. Where it does,
gradients are biased, and none of these statements covers that. And this program is about
convergence: it spends far more than any privacy budget, and it says how much.

    python examples/convergence.py --plot convergence.png --json convergence.json

The exit code is 1 if a measured value breaks its bound or misses its prediction. The plot needs the
extra `report`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from theory.strongly_convex import Problem, Theory, Vector, first_order_drift

import accounting
from securefl.training import data, models, partition
from securefl.training.apply import ServerOptimiser
from securefl.training.data import Dataset
from securefl.training.local import FlatModel, FullGradient, LocalSGD, Reduction, limit_threads
from securefl.training.randomness import RandomBytes, standard_normal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASSES, FEATURES = 10, 64
PENALTY = 0.1
NOISE_MULTIPLIER = 1.0
CLIENTS = 5
EXACT_STEPS = 200
ROUNDS = 150
LOCAL_STEPS = 5
NOISY_RATES = (1.0, 0.5, 0.25)  # times 1/L
DECAY_STEPS = 2000
EVERY = 5  # F is evaluated at every fifth step of the noisy runs; neighbours hardly differ
DELTA = 1e-5

# Digits are scaled to [-.3, .7] by public bounds, and ||p - y||^2 <= 2 for probabilities p and a
# label y: no record's gradient (p - y)(x, 1)^T is longer, whatever the record and the model.
CLIP_NORM = math.sqrt(2.0 * (1.0 + FEATURES * 0.7**2))


# ---------------------------------------------------------------- the measurement


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drift:
    """One FedAvg run: relative distances to the optimum by round, and the predicted last one."""

    partition: str
    rate: float
    local_steps: int
    distances: list[float]
    predicted: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Floor:
    """One run with noise at a constant rate: the mean of F - F* once it has settled."""

    rate: float
    steps: int
    measured: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """Everything that was measured. Distances are relative to ||w_0 - w*||."""

    linear_rate: float
    linear: list[float]
    rounding: float
    drifts: list[Drift]
    floors: list[Floor]
    decay_steps: list[int]
    decay: list[float]
    longest_gradient: float
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """Records, model, oracle and theory."""

    records: Dataset
    model: FlatModel
    problem: Problem
    optimum: Vector
    theory: Theory


def setting() -> Setting:
    """Digits, the zero model, its optimum, and the constants."""
    limit_threads()
    records, _ = data.load("digits")
    model = FlatModel(models.build("softmax", input_shape=(FEATURES,), classes=CLASSES, seed=0))
    problem = _problem(records)
    optimum = problem.optimum()
    theory = Theory(
        mu=PENALTY,
        L=problem.smoothness(),
        gap=problem.value(np.zeros_like(optimum)) - problem.value(optimum),
        eigenvalues=np.asarray(np.linalg.eigvalsh(problem.hessian(optimum)), dtype=np.float64),
        sigma=NOISE_MULTIPLIER * CLIP_NORM / len(records),
    )
    return Setting(records=records, model=model, problem=problem, optimum=optimum, theory=theory)


def _problem(records: Dataset) -> Problem:
    return Problem.of(records.x, records.y, classes=CLASSES, penalty=PENALTY)


def measure(s: Setting, *, random_bytes: RandomBytes = os.urandom) -> Measured:
    """Runs all four experiments; a few seconds."""
    rate = 1.0 / s.theory.L
    skewed = partition.shards(s.records.y, clients=CLIENTS, per_client=2, seed=0)
    even = partition.iid(len(s.records), clients=CLIENTS, seed=0)
    floors = [_floor(s, factor * rate, random_bytes) for factor in NOISY_RATES]
    decay_steps, decay = zip(*_decaying(s, random_bytes), strict=True)
    return Measured(
        linear_rate=rate,
        linear=list(_exact_descent(s, skewed.indices, rate)),
        # Each step rounds w to float32, with an error of at most 2^-24 per coordinate's magnitude;
        # a contraction by 1 - mu eta lets errors pile up to 1/(mu eta) of them. Twice, for the
        # gradient's own rounding.
        rounding=2.0**-23 / (s.theory.mu * rate),
        drifts=[
            _drift(s, "two classes each", skewed.indices, local_steps=1, rate=rate / 2),
            _drift(s, "two classes each", skewed.indices, local_steps=LOCAL_STEPS, rate=rate / 2),
            _drift(s, "two classes each", skewed.indices, local_steps=LOCAL_STEPS, rate=rate / 4),
            _drift(s, "all classes", even.indices, local_steps=LOCAL_STEPS, rate=rate / 2),
        ],
        floors=floors,
        decay_steps=list(decay_steps),
        decay=list(decay),
        longest_gradient=max(
            s.problem.longest_gradient(w) for w in (np.zeros_like(s.optimum), s.optimum)
        ),
        epsilon=_spent(sum(f.steps for f in floors) + DECAY_STEPS),
    )


def _exact_descent(s: Setting, parts: Sequence[NDArray[np.int64]], rate: float) -> Iterator[float]:
    """FedSGD: the clients' gradients, weighted by n_i/n, are the gradient of the whole."""
    trainers = [
        FullGradient(
            model=s.model,
            x=s.records.x[part],
            y=s.records.y[part],
            client=k,
            reduction=Reduction.MEAN,
        )
        for k, part in enumerate(parts)
    ]
    server = ServerOptimiser.sgd(s.model.dim, learning_rate=rate)
    w, whole = np.zeros(s.model.dim, dtype=np.float32), float(np.linalg.norm(s.optimum))
    for t in range(EXACT_STEPS + 1):
        yield float(np.linalg.norm(w - s.optimum)) / whole
        updates = [trainer.train(w, round_index=t) for trainer in trainers]
        mean = np.average([u.values for u in updates], axis=0, weights=[u.weight for u in updates])
        w = server.apply(w, mean - PENALTY * w)


def _drift(
    s: Setting,
    name: str,
    parts: Sequence[NDArray[np.int64]],
    *,
    local_steps: int,
    rate: float,
) -> Drift:
    """FedAvg, ROUNDS rounds of E full-batch local steps each."""
    clients = [s.records.subset(part) for part in parts]
    trainers = [
        LocalSGD(model=s.model, x=c.x, y=c.y, client=k, learning_rate=rate, steps=1)
        for k, c in enumerate(clients)
    ]
    whole = float(np.linalg.norm(s.optimum))
    w, distances = np.zeros(s.model.dim, dtype=np.float32), []
    for t in range(ROUNDS + 1):
        distances.append(float(np.linalg.norm(w - s.optimum)) / whole)
        ends = [_local_walk(trainer, w, local_steps, rate, t) for trainer in trainers]
        mean = np.average(ends, axis=0, weights=[len(c) for c in clients])
        w = mean.astype(np.float32)
    predicted = first_order_drift(
        [_problem(c) for c in clients], s.optimum, rate=rate, local_steps=local_steps
    )
    return Drift(
        partition=name,
        rate=rate,
        local_steps=local_steps,
        distances=distances,
        predicted=predicted / whole,
    )


def _local_walk(
    trainer: LocalSGD, start: NDArray[np.float32], steps: int, rate: float, t: int
) -> NDArray[np.float32]:
    """E local steps; the trainer knows no penalty, so its part of the step is added here."""
    w = start
    for _ in range(steps):
        moved = w + trainer.train(w, round_index=t).values
        w = (moved - np.float32(rate * PENALTY) * w).astype(np.float32)
    return w


def _floor(s: Setting, rate: float, random_bytes: RandomBytes) -> Floor:
    """From the optimum, 3/(mu eta) steps to settle, then the mean over 5/(mu eta)."""
    settle, count = math.ceil(3 / (PENALTY * rate)), math.ceil(5 / (PENALTY * rate))
    walk = _noisy_walk(s, s.optimum, lambda _: rate, settle + count, random_bytes)
    excess = [value for t, value in walk if t > settle]
    return Floor(rate=rate, steps=settle + count, measured=float(np.mean(excess)))


def _decaying(s: Setting, random_bytes: RandomBytes) -> Iterator[tuple[int, float]]:
    """Pairs of t and F(w_t) - F*, with w_1 = 0."""
    beta, gamma = s.theory.decay
    start = np.zeros_like(s.optimum)
    return _noisy_walk(s, start, lambda t: beta / (gamma + t), DECAY_STEPS, random_bytes)


def _noisy_walk(
    s: Setting,
    start: Vector,
    rate_of: Callable[[int], float],
    steps: int,
    random_bytes: RandomBytes,
) -> Iterator[tuple[int, float]]:
    """Pairs of t and F(w_t) - F* along steps on all records' gradient sum + z C N(0, I), over n."""
    trainer = FullGradient(
        model=s.model, x=s.records.x, y=s.records.y, client=0, reduction=Reduction.SUM
    )
    server = ServerOptimiser.sgd(s.model.dim)
    least, n = s.problem.value(s.optimum), len(s.records)
    w = start.astype(np.float32)
    for t in range(1, steps + 1):
        if t % EVERY == 1:
            yield t, s.problem.value(w.astype(np.float64)) - least
        noise = NOISE_MULTIPLIER * CLIP_NORM * standard_normal(s.model.dim, random_bytes)
        noised = (trainer.train(w, round_index=t).values + noise) / n
        server.learning_rate = rate_of(t)
        w = server.apply(w, noised - PENALTY * w)


def _spent(steps: int) -> float:
    """The epsilon of all noisy steps together, which nobody should spend."""
    accountant = accounting.RDPAccountant(adjacency=accounting.Adjacency.ZERO_OUT)
    gaussian = accounting.Gaussian(noise_multiplier=NOISE_MULTIPLIER)
    accountant.compose(gaussian, steps)
    return float(accountant.epsilon(DELTA).value)


# ---------------------------------------------------------------- the verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One measured number and where the theory says it must lie."""

    statement: str
    measured: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        """Whether it lies there. NaN does not."""
        return self.low <= self.measured <= self.high


def judge(m: Measured, theory: Theory) -> list[Check]:
    """Every measurement against its bound (a ratio of at most 1), or its prediction (near 1).

    Bounds hold from the first step on. Those under noise are about expectations, and lie so far
    above that a single run does not reach them. Predictions are first or second orders: a tenth is
    allowed for what they leave out, and .15 where noise is averaged (more than five standard
    deviations of such an average).
    """
    checks = [
        _at_most_one(
            "a record's gradient / C: clipping never acts", m.longest_gradient / CLIP_NORM
        ),
        _at_most_one(
            "1. exact gradients: distance / (1 - mu eta)^t",
            _over_bound(m.linear, theory.contraction(m.linear_rate), m.rounding),
        ),
    ]
    for d in m.drifts:
        name = f"2. E = {d.local_steps}, {d.partition}, eta = {d.rate:.3f}"
        if d.local_steps == 1:
            ratio = _over_bound(d.distances, theory.contraction(d.rate), m.rounding)
            checks.append(_at_most_one(f"{name}: distance / (1 - mu eta)^t", ratio))
        else:
            checks.append(
                _near_one(f"{name}: drift / predicted", d.distances[-1] / d.predicted, 0.1)
            )
    for f in m.floors:
        name = f"3. noise, eta = {f.rate:.3f}: floor"
        checks.append(_at_most_one(f"{name} / bound", f.measured / theory.floor_bound(f.rate)))
        checks.append(_near_one(f"{name} / predicted", f.measured / theory.floor(f.rate), 0.15))
    t, gaps = np.array(m.decay_steps, dtype=np.float64), np.array(m.decay)
    late = t > DECAY_STEPS / 2
    scaled = (theory.decay[1] + t) * gaps / theory.decay_constant
    checks.append(
        _at_most_one(
            "4. decaying rate: F - F* / bound", float((gaps / theory.decay_bound(t))[1:].max())
        )
    )
    checks.append(
        _near_one(
            "4. decaying rate: (gamma + t)(F - F*) / predicted", float(scaled[late].mean()), 0.15
        )
    )
    return checks


def _over_bound(distances: Sequence[float], contraction: float, rounding: float) -> float:
    """The largest quotient of a distance, less what float32 explains, and contraction^t."""
    return max((d - rounding) / contraction**t for t, d in enumerate(distances) if t > 0)


def _at_most_one(statement: str, measured: float) -> Check:
    return Check(statement=statement, measured=measured, low=-math.inf, high=1.0)


def _near_one(statement: str, measured: float, tolerance: float) -> Check:
    return Check(statement=statement, measured=measured, low=1.0 - tolerance, high=1.0 + tolerance)


# ---------------------------------------------------------------- what comes out


def show(checks: Sequence[Check], m: Measured, theory: Theory) -> None:
    """The table on the terminal."""
    table = Table(title="Measured over promised", title_justify="left")
    for column in ("statement", "measured", "must lie in", ""):
        table.add_column(column, justify="left" if column in ("statement", "") else "right")
    for c in checks:
        between = f"<= {c.high:.3g}" if math.isinf(c.low) else f"{c.low:.2f} .. {c.high:.2f}"
        table.add_row(c.statement, f"{c.measured:.3f}", between, "ok" if c.holds else "BROKEN")
    console = Console(width=110)
    console.print(
        f"mu = {theory.mu:g}, L = {theory.L:.3f}, d = {len(theory.eigenvalues)}, "
        f"C = {CLIP_NORM:.2f}, z = {NOISE_MULTIPLIER:g}"
    )
    console.print(table)
    console.print(
        f"As a private training all noisy steps together would cost epsilon {m.epsilon:.0f} at "
        f"delta {DELTA:g}. They are here to be measured, not to protect."
    )


def as_json(checks: Sequence[Check], m: Measured, theory: Theory) -> dict[str, Any]:
    """Everything that the table and the plot are made from; null for "no lower limit"."""
    return {
        "constants": {
            "mu": theory.mu,
            "L": theory.L,
            "gap": theory.gap,
            "dimension": len(theory.eigenvalues),
            "sigma": theory.sigma,
            "clip_norm": CLIP_NORM,
            "noise_multiplier": NOISE_MULTIPLIER,
        },
        "measured": asdict(m),
        "checks": [
            {**asdict(c), "low": None if math.isinf(c.low) else c.low, "holds": c.holds}
            for c in checks
        ],
    }


def plot(m: Measured, theory: Theory, path: Path) -> None:
    """Four panels: measured points or lines in colour, theory in black."""
    from matplotlib import rc_context  # noqa: PLC0415  # an extra that only this function needs
    from matplotlib.figure import Figure  # noqa: PLC0415  # as above

    panels = (_plot_exact, _plot_drift, _plot_floor, _plot_decay)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "convergence"}):
        figure = Figure(figsize=(11, 8), layout="constrained")
        for axes, draw in zip(figure.subplots(2, 2).ravel(), panels, strict=True):
            draw(axes, m, theory)
            axes.set_yscale("log")
            axes.grid(visible=True, color="#D0D1D2", linewidth=0.6)
            axes.legend(fontsize=8)
        figure.savefig(path, dpi=140)


def _plot_exact(axes: Axes, m: Measured, theory: Theory) -> None:
    t = np.arange(len(m.linear))
    axes.plot(t, m.linear, color="#0072B2", label="measured")
    axes.plot(t, theory.contraction(m.linear_rate) ** t, "k--", label="bound (1 - mu eta)^t")
    axes.set_title("1. Exact gradients: linear convergence", loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel("distance to the optimum, relative")


def _plot_drift(axes: Axes, m: Measured, theory: Theory) -> None:
    del theory  # the predictions stand beside the measurements
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    for d, colour in zip(m.drifts, colours, strict=True):
        label = f"E = {d.local_steps}, {d.partition}, eta = {d.rate:.2f}"
        axes.plot(d.distances, color=colour, label=label)
        if d.predicted:
            axes.axhline(d.predicted, color="black", linestyle="--", linewidth=0.9)
    axes.plot([], [], "k--", linewidth=0.9, label="predicted drift, first order")
    axes.set_title("2. FedAvg: local steps lead elsewhere", loc="left", fontsize=11)
    axes.set_xlabel("round")
    axes.set_ylabel("distance to the optimum, relative")


def _plot_floor(axes: Axes, m: Measured, theory: Theory) -> None:
    rates = np.geomspace(0.5 * m.floors[-1].rate, 1.0 / theory.L, 50)
    axes.plot(
        [f.rate for f in m.floors],
        [f.measured for f in m.floors],
        "o",
        color="#0072B2",
        label="measured",
    )
    axes.plot(rates, [theory.floor(r) for r in rates], "k-", linewidth=0.9, label="predicted")
    axes.plot(
        rates, [theory.floor_bound(r) for r in rates], "k--", label="bound eta L d sigma^2 / (2 mu)"
    )
    axes.set_xscale("log")
    axes.set_title("3. Noise at a constant rate: a floor", loc="left", fontsize=11)
    axes.set_xlabel("rate eta")
    axes.set_ylabel("F - F*, settled")


def _plot_decay(axes: Axes, m: Measured, theory: Theory) -> None:
    t = np.array(m.decay_steps, dtype=np.float64)
    gamma = theory.decay[1]
    axes.plot(t, m.decay, color="#0072B2", label="measured")
    axes.plot(
        t, theory.decay_constant / (gamma + t), "k-", linewidth=0.9, label="predicted for large t"
    )
    axes.plot(t, theory.decay_bound(t), "k--", label="bound nu / (gamma + t)")
    axes.set_xscale("log")
    axes.set_title("4. The same noise, eta = beta / (gamma + t)", loc="left", fontsize=11)
    axes.set_xlabel("step t")
    axes.set_ylabel("F - F*")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convergence, measured against the theory.")
    parser.add_argument("--plot", type=Path, help="draw the four panels (.png or .svg)")
    parser.add_argument("--json", type=Path, help="write constants, measurements and checks")
    chosen = parser.parse_args(arguments)
    here = setting()
    measured = measure(here)
    checks = judge(measured, here.theory)
    show(checks, measured, here.theory)
    if chosen.json is not None:
        text = json.dumps(as_json(checks, measured, here.theory), indent=1, allow_nan=False)
        chosen.json.write_text(text + "\n", encoding="utf-8")
    if chosen.plot is not None:
        plot(measured, here.theory, chosen.plot)
    return 0 if all(c.holds for c in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
