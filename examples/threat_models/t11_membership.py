"""Membership inference on a trained model: LiRA and a loss threshold.

Adversary: whoever gets the trained model, the honest-but-curious server among them.
Capability: it evaluates the model on records that it has; it trains shadow models the same way.
Knowledge: 200 candidate records, how the model is trained, with which defence; not who is in.

Secure aggregation hides single updates and not what the model remembers. Every model here is
trained on a random half of the candidates; some labels are wrong, and a model that knows such a
record has seen it. Shadow models are trained with the defence on. Accuracies are printed: a model
that learnt nothing has nothing to tell, and is no success of a defence.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from kit import data
from kit.aggregator import ADJACENCY, claim_of, ring_sum, spec_of
from kit.metrics import DELTA, Estimate, auc, auc_cap, mu_of, tpr_at_fpr, tpr_cap
from kit.result import Attacker, Demo, Epsilon, Expected, Op, Outcome, Result, Run, Setting
from kit.streams import keyed
from numpy.typing import NDArray
from scipy.special import logsumexp

from securefl.encoding.noisy import RECORDS_MARGIN, Contribution, NoisyCodec
from securefl.round import AggregateSum, ClientId

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = "Carlini et al. 2022, Membership Inference Attacks From First Principles"
READER = Attacker(
    role="whoever gets the trained model",
    sees="the model at the end",
    knows="200 candidates and their labels, how the model is trained",
    oracle_help="its shadow models know the membership of everybody else's candidates",
)
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

POOL, TARGETS, MODELS, HIDDEN = 200, 32, 64, 32
CLIENTS = 4
CLIP, MOMENTUM = 2.0, 0.9
SIZES = ((data.PIXELS, HIDDEN), (1, HIDDEN), (HIDDEN, data.CLASSES), (1, data.CLASSES))
PARAMETERS = sum(a * b for a, b in SIZES)
FPR = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the model is trained.

    Attributes:
        name: for the table.
        steps: full-batch gradient steps.
        rate: learning rate, for the mean over 100 records.
        clip: of every record's gradient; None: not clipped.
        z: noise over clip in every step's sum; 0: none.
    """

    name: str
    steps: int
    rate: float
    clip: float | None = None
    z: float = 0.0


PLAIN = Training(name="no defence", steps=200, rate=0.5)
CLIPPED = Training(name="clipping only", steps=50, rate=0.25, clip=CLIP)
NOISY = (
    Training(name="distributed DP, z=5", steps=50, rate=0.25, clip=CLIP, z=5.0),
    Training(name="distributed DP, z=20", steps=50, rate=0.1, clip=CLIP, z=20.0),
)


class Candidates(NamedTuple):
    """200 records; the targets and, among them, the canaries with a wrong label."""

    x: Floats
    y: NDArray[np.int64]
    targets: NDArray[np.int64]
    canary: Bools


def candidates(seed: int) -> Candidates:
    """The same records for all seeds, fixed beforehand; which wrong label is drawn."""
    rows = np.arange(0, 1000, 1000 // POOL)
    pool = data.digits().take(rows)
    labels = pool.y.copy()
    targets = np.arange(0, TARGETS * 6, 6)
    wrong = targets[::5]  # 7 of 32
    rng = np.random.default_rng([seed, 1])
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return Candidates(pool.x, labels, targets, np.isin(targets, wrong))


# -- 64 models at once -------------------------------------------------------------------------

Weights = list[Floats]
"""[M, 64, H], [M, 1, H], [M, H, 10], [M, 1, 10]."""


def forward(weights: Weights, x: Floats) -> tuple[Floats, Floats]:
    """Hidden layer and class probabilities of all models, [M, n, H] and [M, n, 10]."""
    hidden, out = logits(weights, x)
    out = np.exp(out - out.max(axis=-1, keepdims=True))
    return hidden, out / out.sum(axis=-1, keepdims=True)


def logits(weights: Weights, x: Floats) -> tuple[Floats, Floats]:
    """Hidden layer and what goes into the softmax."""
    hidden = np.maximum(x @ weights[0] + weights[1], 0.0)
    return hidden, hidden @ weights[2] + weights[3]


def record_factors(
    weights: Weights, x: Floats, y: NDArray[np.int64], member: Bools, clip: float | None
) -> tuple[Floats, Floats, Floats]:
    """Hidden layer, and both layers' errors of every record, scaled to its clipped gradient.

    A record's gradient is error1 x (x, 1) and error2 x (hidden, 1), so its norm needs no gradient.
    """
    hidden, p = forward(weights, x)
    error2 = (p - np.eye(data.CLASSES)[y]) * member[:, :, None]
    error1 = (error2 @ weights[2].transpose(0, 2, 1)) * (hidden > 0)
    if clip is not None:
        square = np.square(error1).sum(-1) * (np.square(x).sum(-1) + 1)
        square += np.square(error2).sum(-1) * (np.square(hidden).sum(-1) + 1)
        scale = np.minimum(1.0, clip / np.sqrt(np.maximum(square, 1e-300)))[:, :, None]
        error1, error2 = error1 * scale, error2 * scale
    return hidden, error1, error2


def flat_sums(x: Floats, hidden: Floats, error1: Floats, error2: Floats) -> Floats:
    """Sums of the records' gradients, one row per model: [M, parameters]."""
    parts = (
        x.T @ error1, error1.sum(1, keepdims=True),
        hidden.transpose(0, 2, 1) @ error2, error2.sum(1, keepdims=True),
    )  # fmt: skip
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


Sum = Callable[[Floats, Floats, Floats, int], Floats]
"""(hidden, error1, error2, step) -> the summed gradient of each model, [M, parameters]."""


def plain_sum(x: Floats) -> Sum:
    """What an exact secure sum opens."""
    return lambda hidden, error1, error2, _step: flat_sums(x, hidden, error1, error2)


def noisy_sum(x: Floats, codec: NoisyCodec, seed: int) -> Sum:
    """What clients with the library's noisy codec open, model by model: 50 records each."""
    random_bytes = keyed(seed, "t11", codec.spec.noise_multiplier)
    owner = np.arange(POOL) % CLIENTS
    survivors = tuple(ClientId(u + 1) for u in range(CLIENTS))

    def total(hidden: Floats, error1: Floats, error2: Floats, step: int) -> Floats:
        public = step.to_bytes(16, "little")
        shares = [
            flat_sums(x[owner == u], hidden[:, owner == u], error1[:, owner == u],
                      error2[:, owner == u])
            for u in range(CLIENTS)
        ]  # fmt: skip
        opened = np.empty((len(hidden), PARAMETERS))
        for m in range(len(hidden)):
            vectors = [
                codec.encode(one[m], round_seed=public, random_bytes=random_bytes) for one in shares
            ]
            aggregate = AggregateSum(vector=ring_sum(vectors), survivors=survivors, min_honest=1)
            opened[m] = codec.decode(aggregate, round_seed=public, denominator=1.0).mean
        return opened

    return total


def codec_of(training: Training) -> NoisyCodec:
    """The unit is a record."""
    assert training.clip is not None
    return NoisyCodec(
        spec_of(z=training.z, clients=CLIENTS, dimension=PARAMETERS, clip_norm=training.clip,
                contribution=Contribution.RECORDS, units=POOL)
    )  # fmt: skip


def train(training: Training, pool: Candidates, member: Bools, seed: int) -> Weights:
    """One model per row of ``member``, all with the same training and different starts."""
    rng = np.random.default_rng([seed, 2])
    models = len(member)
    scale = (1.4 / 8, 0.0, HIDDEN**-0.5, 0.0)
    weights = [rng.normal(0, 1, (models, *size)) * s for size, s in zip(SIZES, scale, strict=True)]
    speed = [np.zeros_like(w) for w in weights]
    summed = plain_sum(pool.x)
    clip = training.clip
    if training.z:
        summed = noisy_sum(pool.x, codec_of(training), seed)
        assert clip is not None
        clip *= 1 - RECORDS_MARGIN
    for step in range(training.steps):
        gradient = summed(*record_factors(weights, pool.x, pool.y, member, clip), step)
        at = 0
        for i, w in enumerate(weights):
            piece = gradient[:, at : at + w[0].size].reshape(w.shape)
            at += w[0].size
            speed[i] = MOMENTUM * speed[i] - training.rate * piece / (POOL / 2)
            weights[i] = w + speed[i]
    return weights


# -- the attacks -------------------------------------------------------------------------------


def confidence(weights: Weights, pool: Candidates) -> Floats:
    """Log odds of the given label, [M, targets]."""
    _, out = logits(weights, pool.x[pool.targets])
    at = (slice(None), np.arange(len(pool.targets)), pool.y[pool.targets])
    given = out[at].copy()
    out[at] = -np.inf
    # Not by way of probabilities: they saturate, and ties at the top would hide members.
    odds: Floats = given - logsumexp(out, axis=-1)
    return odds


def lira(odds: Floats, member: Bools) -> Floats:
    """Log likelihood ratio per model and target, from all other models as shadow models."""
    scores = np.empty_like(odds)
    others = ~np.eye(len(odds), dtype=bool)
    for i in range(odds.shape[1]):
        for m in range(len(odds)):
            inside = odds[others[m] & member[:, i], i]
            outside = odds[others[m] & ~member[:, i], i]
            scores[m, i] = log_density(odds[m, i], inside) - log_density(odds[m, i], outside)
    return scores


def log_density(value: float, sample: Floats) -> float:
    """Of the normal distribution with the sample's mean and widened spread, up to a constant."""
    spread = float(sample.std()) + 0.1
    return -0.5 * ((value - float(sample.mean())) / spread) ** 2 - math.log(spread)


class Attacked(NamedTuple):
    """One seed of one training: scores of both attacks, truth, accuracies."""

    odds: Floats
    ratio: Floats
    member: Bools
    canary: Bools
    accuracy: tuple[float, float]

    def scores(self, attack: str, *, canaries: bool) -> tuple[Floats, Floats]:
        """Of members and of others; of all targets, or of the canaries alone."""
        found = self.ratio if attack == "LiRA" else self.odds
        member = self.member
        if canaries:
            found, member = found[:, self.canary], member[:, self.canary]
        return found[member], found[~member]


def attacked(training: Training, seed: int, models: int) -> Attacked:
    """Trains, attacks, and measures what the models learnt."""
    pool = candidates(seed)
    member = np.random.default_rng([seed, 3]).random((models, POOL)) < 0.5
    weights = train(training, pool, member, seed)
    odds, inside = confidence(weights, pool), member[:, pool.targets]
    _, p = forward(weights, pool.x)
    _, fresh = forward(weights, data.public().x)
    accuracy = (
        float((p.argmax(-1) == pool.y)[member].mean()),
        float((fresh.argmax(-1) == data.public().y).mean()),
    )
    return Attacked(odds, lira(odds, inside), inside, pool.canary, accuracy)


def pooled(
    measure: Callable[[Floats, Floats], Estimate], found: list[Attacked], attack: str,
    *, canaries: bool,
) -> Estimate:  # fmt: skip
    """Over all seeds together."""
    sides = [one.scores(attack, canaries=canaries) for one in found]
    return measure(np.concatenate([a for a, _ in sides]), np.concatenate([b for _, b in sides]))


def rows_of(run: Run, training: Training, found: list[Attacked], seconds: float) -> list[Result]:
    """Both attacks, both metrics, on all targets and on the canaries."""
    setting = Setting.DEFENDED if training.z else Setting.UNDEFENDED
    mu = mu_of(training.z, training.steps) if training.z else None
    claim = None
    if training.z:
        event = codec_of(training).event(CLIENTS)
        claim = Epsilon(
            value=claim_of(event, rounds=training.steps).epsilon, delta=DELTA,
            adjacency=ADJACENCY, rounds=training.steps, participation="full",
        )  # fmt: skip
    accuracy = [one.accuracy for one in found]
    rows = []
    for attack in ("LiRA", "loss threshold"):
        for canaries in (False, True):
            for metric, measure, cap in (
                ("AUC", auc, None if mu is None else auc_cap(mu)),
                (f"TPR at {FPR:.0%} FPR", tpr_at_fpr, None if mu is None else tpr_cap(mu, FPR)),
            ):
                sides = [one.scores(attack, canaries=canaries) for one in found]
                whole = pooled(measure, found, attack, canaries=canaries)
                expected = None
                judged = attack == "LiRA"  # the stronger one without noise
                if cap is not None:
                    # Few canaries: there the interval over all seeds is held against the cap.
                    expected = None if canaries else Expected(op=Op.MEDIAN_AT_MOST, bound=cap)
                elif training is PLAIN and judged:
                    expected = _must_work(metric, canaries=canaries)
                rows.append(
                    Result(
                        threat=run.name, paper=PAPER, attacker=READER, setting=setting,
                        attack=f"{training.name}: {attack}{', canaries' if canaries else ''}",
                        metric=metric, per_seed=tuple(measure(a, b).value for a, b in sides),
                        expected=expected, baseline=0.5 if metric == "AUC" else FPR,
                        cap=cap, ci95=(whole.low, whole.high),
                        cap_formula="" if cap is None else "Gaussian DP, mu = sqrt(T) / z",
                        parameters={
                            "models": len(found[0].odds), "targets": TARGETS, "pool": POOL,
                            "canaries": int(found[0].canary.sum()), "steps": training.steps,
                            "clip": training.clip, "z": training.z, "clients": CLIENTS,
                            "accuracy_train": [a for a, _ in accuracy],
                            "accuracy_test": [b for _, b in accuracy],
                        },
                        epsilon=claim, seconds=seconds,
                    )
                )  # fmt: skip
    return rows


def _must_work(metric: str, *, canaries: bool) -> Expected:
    if canaries:
        return Expected(op=Op.MEDIAN_AT_LEAST, bound=0.95 if metric == "AUC" else 0.9)
    return Expected(op=Op.MEDIAN_AT_LEAST, bound=0.8 if metric == "AUC" else 0.2)


def run(run: Run) -> Outcome:
    """Measures."""
    models = 32 if run.quick else MODELS
    chosen = (PLAIN, CLIPPED, NOISY[0]) if run.quick else (PLAIN, CLIPPED, *NOISY)
    results: list[Result] = []
    kept: dict[str, list[Attacked]] = {}
    notes = []
    for training in chosen:
        begin = time.perf_counter()
        found = [attacked(training, seed, models) for seed in run.seeds]
        kept[training.name] = found
        results += rows_of(run, training, found, time.perf_counter() - begin)
        train_, test = np.median([one.accuracy for one in found], axis=0)
        claim = results[-1].epsilon
        told = "" if claim is None else f", epsilon {claim.value:.2f} at delta {DELTA:g} (records)"
        useless = ": this model is useless" if test < 0.3 else ""
        notes.append(
            f"{training.name}{told}: accuracy {train_:.2f} on its records, {test:.2f} on "
            f"others{useless}"
        )

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        left, right = figure.subplots(1, 2)
        colours = ("#b2182b", "#e08214", "#2166ac", "#542788")
        rates = np.logspace(-3, 0, 120)
        for training, colour in zip(chosen, colours, strict=False):
            for ax, canaries in ((left, False), (right, True)):
                sides = [one.scores("LiRA", canaries=canaries) for one in kept[training.name]]
                inside = np.sort(np.concatenate([a for a, _ in sides]))
                outside = np.sort(np.concatenate([b for _, b in sides]))[::-1]
                at = np.unique(np.logspace(0, np.log10(len(outside)), 90).astype(int)) - 1
                tpr = 1 - np.searchsorted(inside, outside[at], side="left") / len(inside)
                ax.plot((at + 1) / len(outside), tpr, color=colour, lw=1.4, label=training.name)
                if training.z:
                    mu = mu_of(training.z, training.steps)
                    cap = [tpr_cap(mu, min(float(f), 1 - 1e-12)) for f in rates]
                    ax.plot(rates, cap, "--", color=colour, lw=1)
        for ax, title in ((left, "all 32 targets"), (right, "7 canaries with wrong labels")):
            ax.plot(rates, rates, ":", color=plots.NEUTRAL, lw=1.2)
            ax.set_xscale("log")
            ax.set_xlim(0.002, 1)
            ax.set_title(title)
            ax.set_xlabel("non-members accused")
        left.set_ylabel("members found")
        left.legend(fontsize=7, title="LiRA; dashed: cap; dotted: baseline", title_fontsize=7)
        figure.suptitle("Who gets the trained model asks: was this record in? (n=4 clients)")

    return Outcome(results=tuple(results), draw=draw, notes=tuple(notes))


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("sklearn",))

if __name__ == "__main__":
    sys.exit(DEMO.main())
