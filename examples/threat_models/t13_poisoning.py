"""One client that sends what it likes.

Adversary: one malicious client of 20, then two and three; the server is honest.
Capability: sends any ring elements in place of its update, in every round.
Knowledge: the model and the encoder, as every client.

A secure sum adds what it gets. Honest clients clip, a malicious one does not: the norm bound is a
promise that nobody checks. One client sends -50 times its update and the model is gone. A client
within the bound changes nothing, which is the honest null result. Medians of groups hold while the
bad clients are fewer than half of the groups, at a price: the sums of four are opened, and t02 says
what a sum of four tells. NaN is refused by the encoder and has no place in the ring. Noise for
differential privacy is no help here: its sensitivity is that of clients that clip.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from attackers import gradients
from kit import data
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.rounds import secure_round
from kit.updates import Opened, plain_codec, release

from securefl.encoding import UpdateCodec, clip_by_norm, to_steps
from securefl.errors import ConfigurationError, PeerProtocolError
from securefl.modular import RingVector
from securefl.round import ClientId

if TYPE_CHECKING:
    from attackers.gradients import Net
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

HIDDEN, CLIENTS, GROUPS, TRAIN = 32, 20, 5, 1400
CLIP, STEPS, RATE, FACTOR, UNSEEN = 2.0, 5, 0.5, -50, 0.8
PAPER = (
    "Blanchard, El Mhamdi, Guerraoui, Stainer 2017, Machine Learning with Adversaries: Byzantine "
    "Tolerant Gradient Descent (one of them breaks a mean); Yin, Chen, Ramchandran, Bartlett 2018, "
    "Byzantine-Robust Distributed Learning (medians)"
)
CLIENT = Attacker(
    role="malicious client",
    sees="the model of every round",
    knows="the encoder and its own data",
)
BAD = (0, 4, 8)
"""Bad clients, each in a group of its own."""


class Lie(StrEnum):
    """What a bad client sends."""

    NOTHING = "its update"
    SCALED = "-50 x its update"
    WITHIN = "-50 x its update, clipped like everybody's"
    NAN = "NaN"


class Rule(StrEnum):
    """How updates become a step."""

    FLOATS = "a plain mean of floats"
    MEAN = "a secure sum"
    MEDIAN = "the median of 5 secure sums of 4"


def _flat(net: Net) -> NDArray[np.float64]:
    return np.concatenate([a.ravel() for a in (net.W1, net.b1, net.W2, net.b2)])


def _net(flat: NDArray[np.float64]) -> Net:
    H, P, K = HIDDEN, data.PIXELS, data.CLASSES
    W1, b1, W2, b2 = np.split(flat, np.cumsum([H * P, H, K * H]))
    return gradients.Net(W1.reshape(H, P), b1, W2.reshape(K, H), b2)


def _train(
    flat: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The update after a few full-batch steps."""
    moved = flat.copy()
    for _ in range(STEPS):
        moved -= RATE * gradients.mean_gradient(_net(moved), x, y)
    return np.asarray(moved - flat)


def _error(flat: NDArray[np.float64], test: data.Images) -> float:
    """Test error; a model that is not finite answers with class 0."""
    if not np.isfinite(flat).all():
        return float(np.mean(test.y != 0))
    with np.errstate(over="ignore", invalid="ignore"):
        _, _, p = gradients.forward(_net(flat), test.x)
    return float(np.mean(np.nan_to_num(p).argmax(axis=1) != test.y))


def _encode(codec: UpdateCodec, update: NDArray[np.float64], lie: Lie) -> RingVector:
    """What leaves a client. An honest one is the codec; a bad one writes into the ring itself."""
    if lie is Lie.SCALED:
        spec = codec.spec
        steps = to_steps(
            clip_by_norm(update, spec.clip_norm).values, clip_norm=spec.clip_norm,
            resolution=spec.resolution, rounding=spec.rounding, random_bytes=bytes,
        )  # fmt: skip
        # Entry by entry within what an honest sum can reach, or the library refuses the sum.
        most = int(UNSEEN * spec.max_clients * spec.resolution)
        return RingVector.from_signed(np.clip(steps * FACTOR, -most, most), spec.modulus)
    return codec.encode(_altered(update, lie))


def _altered(update: NDArray[np.float64], lie: Lie) -> NDArray[np.float64]:
    if lie is Lie.NAN:
        return np.full_like(update, np.nan)
    return update * (1 if lie is Lie.NOTHING else FACTOR)


def _secure_mean(
    vectors: Mapping[int, RingVector], codec: UpdateCodec, settings: Run, *, session: bool
) -> NDArray[np.float64]:
    if not session:
        return release(codec, vectors.values()) / len(vectors)
    inputs = {ClientId(u + 1): vector for u, vector in vectors.items()}
    recorded = secure_round(inputs, settings.transcript())
    return Opened(recorded=recorded, codec=codec, seed=b"").total() / len(vectors)


def _combine(
    rule: Rule, updates: Mapping[int, NDArray[np.float64]], lies: Mapping[int, Lie],
    settings: Run, *, session: bool,
) -> tuple[NDArray[np.float64], float]:  # fmt: skip
    """The step, and the norm of the sum over what honest clients can reach."""
    if rule is Rule.FLOATS:
        sent = [_altered(values, lies.get(u, Lie.NOTHING)) for u, values in updates.items()]
        return np.mean(sent, axis=0), 0.0
    size = CLIENTS if rule is Rule.MEAN else CLIENTS // GROUPS
    codec = plain_codec(len(next(iter(updates.values()))), size, clip_norm=CLIP)
    vectors: dict[int, RingVector] = {}
    for u, values in updates.items():
        try:
            vectors[u] = _encode(codec, values, lies.get(u, Lie.NOTHING))
        except ConfigurationError:
            continue  # the encoder refused; this client takes no part
    groups = [{u: v for u, v in vectors.items() if u // size == g} for g in range(CLIENTS // size)]
    means = []
    for group in groups:
        try:
            means.append(_secure_mean(group, codec, settings, session=session))
        except PeerProtocolError:
            continue  # the decoder refused the sum: this group's round is lost
    if not means:
        return np.zeros(codec.dimension), 0.0
    share = max(float(np.linalg.norm(mean)) / CLIP for mean in means)
    return np.median(means, axis=0), share


def learn(
    settings: Run, seed: int, rule: Rule, lie: Lie, bad: int, rounds: int
) -> tuple[float, float]:
    """Test error after all rounds, and the largest norm of a mean over C."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.digits().x))
    train, test = data.digits().take(order[:TRAIN]), data.digits().take(order[TRAIN:])
    parts = np.array_split(np.arange(TRAIN), CLIENTS)
    lies = dict.fromkeys(BAD[:bad], lie)
    flat = _flat(gradients.fresh_net(HIDDEN, seed))
    largest = 0.0
    for r in range(rounds):
        with np.errstate(over="ignore", invalid="ignore"):
            updates = {
                u: _train(flat, train.x[part], train.y[part]) for u, part in enumerate(parts)
            }
        if not all(np.isfinite(v).all() for v in updates.values()):
            break  # nothing can be learnt any more
        # The first round runs through whole sessions, the others through the bit-equal ring sum.
        step, share = _combine(rule, updates, lies, settings, session=r == 0)
        largest = max(largest, share)
        flat = flat + step
    return _error(flat, test), largest


def run(settings: Run) -> Outcome:
    """Every rule against every lie that says something about it."""
    rounds = 10 if settings.quick else 15
    breaks = Expected(op=Op.AT_LEAST, bound=0.7)
    holds = Expected(op=Op.AT_MOST, bound=0.2 if settings.quick else 0.12)
    cases = [
        (Rule.MEAN, Lie.NOTHING, 0, Setting.DEFENDED, holds),
        (Rule.FLOATS, Lie.SCALED, 1, Setting.UNDEFENDED, breaks),
        (Rule.FLOATS, Lie.NAN, 1, Setting.UNDEFENDED, breaks),
        (Rule.MEAN, Lie.SCALED, 1, Setting.NOT_DEFENDED, breaks),
        (Rule.MEAN, Lie.WITHIN, 1, Setting.DEFENDED, holds),
        (Rule.MEAN, Lie.NAN, 1, Setting.DEFENDED, holds),
        (Rule.MEDIAN, Lie.SCALED, 1, Setting.DEFENDED, holds),
        (Rule.MEDIAN, Lie.SCALED, 2, Setting.DEFENDED, holds),
        (Rule.MEDIAN, Lie.SCALED, 3, Setting.NOT_DEFENDED, breaks),
    ]
    results: list[Result] = []
    base = partial(Result, threat=settings.name, paper=PAPER, attacker=CLIENT)
    for rule, lie, bad, setting, expected in cases:
        begin = time.perf_counter()
        errors, shares = zip(
            *(learn(settings, seed, rule, lie, bad, rounds) for seed in settings.seeds),
            strict=True,
        )
        results.append(
            base(
                setting=setting,
                attack=f"{bad} of {CLIENTS}: {lie}; {rule}" if bad else f"nobody lies; {rule}",
                metric="test error",
                per_seed=errors,
                expected=expected,
                baseline=results[0].median if results else None,
                parameters={"n": CLIENTS, "bad": bad, "rounds": rounds, "clip norm": CLIP,
                            "norm of the mean over C": [round(s, 3) for s in shares]},
                seconds=time.perf_counter() - begin,
            )
        )  # fmt: skip
        if (rule, lie) == (Rule.MEAN, Lie.SCALED):
            results.append(
                base(
                    setting=Setting.NOT_DEFENDED,
                    attack="the same, seen by a bound on the aggregate",
                    metric="norm of the mean over what honest clients can reach",
                    per_seed=shares,
                    expected=Expected(op=Op.AT_LEAST, bound=1.0),
                    parameters={"rule": "norm of the mean <= C; an attacker stays below it"},
                )
            )

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        errors = [r for r in results if r.metric == "test error"]
        figure.set_size_inches(8.6, 3.6)
        plots.bars(
            figure.subplots(),
            [
                (r.attack, r.median, plots.GOOD if r.setting is Setting.DEFENDED else plots.BAD)
                for r in errors
            ],
            xlabel=f"test error after {rounds} rounds (a guess errs at .9)",
            title=f"t13: malicious clients of n = {CLIENTS}, secure sums or not",
            baseline=errors[0].median,
            most=1.0,
        )

    notes = (
        "Not defended: there is no proof of range or norm. A bound on the norm of the decoded mean "
        "notices -50 x and costs the round; an attacker just below the bound is not noticed.",
        "Medians of groups open sums of four: see t02 and t01c before you choose them.",
    )
    return Outcome(results=tuple(results), draw=draw, notes=notes)


DEMO = Demo(name="t13_poisoning", doc=__doc__, run=run)

if __name__ == "__main__":
    raise SystemExit(DEMO.main())
