"""A secure sum leaks records to a fully honest server.

Adversary: an honest-but-curious server; nobody colludes with it.
Capability: follows the protocol and looks at the opened sum; secure aggregation is on.
Knowledge: the model it sent out, and that each client took one step on one record.

A neuron that exactly one record of the whole sum activates carries that record alone: its rows
divide to the exact image, however many clients were added. No check of a client can see this, for
nothing is wrong. The usual weak attack (one averaged row) finds next to nothing in the same sums;
it is run beside it, because its failure has been taken for safety. What changes the picture is
noise on the sum, with an epsilon: the shipped codec at z = 1.
"""

from __future__ import annotations

import time
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from attackers import gradients
from kit import data, metrics
from kit.result import Attacker, Demo, Expected, Op, Outcome, Result, Run, Setting
from kit.updates import Codec, claim, noisy_codec, open_sum, plain_codec

from securefl.encoding import NoisyCodec
from securefl.round import Adversary

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PAPER = (
    "Marchand, Loeb, Marteau-Ferey, Ogier du Terrail, Pignet 2023, SRATTA: Sample Re-ATTribution "
    "Attack of Secure Aggregation in Federated Learning; Boenisch et al. 2023, When the Curious "
    "Abandon Honesty (there with weights made for it)"
)
SERVER = Attacker(
    role="honest-but-curious server",
    sees="the transcript of a whole round with secure aggregation, so the opened sum",
    knows="the model; one step on one record each",
)
Z = 1.0
_FLOOR_STEPS = 4
"""Rows whose bias gradient is fewer steps of the encoder than this are rounding."""
_CLOSE = 0.8
"""Distance of 20 dB in 64 pixels; two different digits are seldom nearer than 1.5."""


class Found(NamedTuple):
    """What came out of one opened sum."""

    exact: float
    close: float
    rule: float
    precision: float
    averaged: float
    candidates: NDArray[np.float64]


def victims_of(count: int, seed: int, trial: int) -> data.Images:
    """The records of one sum; fixed by the seed before anything is run."""
    rng = np.random.default_rng([seed, trial, count])
    return data.digits().take(rng.choice(np.array(data.PRIVATE), size=count, replace=False))


def attack(total: NDArray[np.float64], hidden: int, floor: float, truth: data.Images) -> Found:
    """Both attacks on one opened sum; ``truth`` is used for scoring only."""
    gW, gb = gradients.first_layer(total, hidden)
    candidates = gradients.exclusive_rows(gW, gb, floor=floor)
    kept = candidates[gradients.looks_like_a_digit(candidates)]
    chosen = gradients.distinct(kept)
    blend = gradients.closed_form(gW, gb)
    averaged = max(metrics.ident(blend, [row]) for row in truth.row) / len(truth.row)
    return Found(
        exact=metrics.exact_fraction(candidates, truth.x),
        close=metrics.exact_fraction(np.clip(candidates, 0, 1), truth.x, within=_CLOSE),
        rule=metrics.exact_fraction(chosen, truth.x),
        precision=gradients.are_records(chosen, truth.row),
        averaged=averaged,
        candidates=candidates,
    )


def _floor(codec: Codec, n: int) -> float:
    """Below it a bias gradient is rounding. Under noise every row counts, for the attack."""
    if isinstance(codec, NoisyCodec):
        return 0.0
    return float(_FLOOR_STEPS * codec.spec.clip_norm / codec.spec.resolution * n**0.5)


def measure(
    settings: Run, hidden: int, n: int, trials: int, codec: Codec
) -> dict[str, list[float]]:
    """Per seed the mean over its sums, one session each."""
    scores: dict[str, list[float]] = defaultdict(list)
    for seed in settings.seeds:
        net = gradients.fresh_net(hidden, seed)
        found = []
        for trial in range(trials):
            truth = victims_of(n, seed, trial)
            updates = gradients.record_gradients(net, truth.x, truth.y)
            opened = open_sum(
                dict(enumerate(updates, start=1)),
                codec,
                settings.transcript(),
                adversary=Adversary.SEMI_HONEST,
            )
            found.append(attack(opened.total(), hidden, _floor(codec, n), truth))
        for name in ("exact", "close", "rule", "precision", "averaged"):
            scores[name].append(float(np.mean([getattr(f, name) for f in found])))
    return scores


def run(settings: Run) -> Outcome:
    """Every size of sum, then 16 bits, then noise."""
    quick = settings.quick
    sizes = [(1024, 16)] if quick else [(1024, n) for n in (8, 16, 32, 64)]
    sizes += [(128, n) for n in ((8,) if quick else (4, 8, 16, 32, 64))]
    results, by_size = [], {}
    base = partial(Result, threat=settings.name, paper=PAPER, attacker=SERVER)
    for hidden, n in sizes:
        begin = time.perf_counter()
        main = (hidden, n) == (1024, 16)
        codec = plain_codec(gradients.dimension(hidden), n)
        trials = (3 if quick else 5) if main else (1 if n * hidden > 20_000 else 2)
        scores = measure(settings, hidden, n, trials, codec)
        by_size[hidden, n] = scores
        row = partial(
            base,
            setting=Setting.UNDEFENDED,
            baseline=0.0,
            parameters={
                "n": n,
                "hidden": hidden,
                "sums per seed": trials,
                "z": 0,
                "ring bits": codec.spec.bits,
            },
            seconds=time.perf_counter() - begin,
        )
        label = f"secure sum of {n}, {hidden} neurons"
        results.append(
            row(
                attack=f"exclusive neuron, {label}",
                metric="records recovered exactly",
                per_seed=tuple(scores["exact"]),
                expected=Expected(op=Op.MEDIAN_AT_LEAST, bound=0.85) if main else None,
            )
        )
        if main:
            results += [
                row(
                    attack=f"the same without an oracle, {label}",
                    metric="records recovered exactly",
                    per_seed=tuple(scores["rule"]),
                    expected=Expected(op=Op.MEDIAN_AT_LEAST, bound=0.8),
                ),
                row(
                    attack=f"the same without an oracle, {label}",
                    metric="precision",
                    per_seed=tuple(scores["precision"]),
                    expected=Expected(op=Op.AT_LEAST, bound=0.99),
                ),
            ]
        results.append(
            row(
                attack=f"one averaged row, {label}",
                metric="records identified",
                per_seed=tuple(scores["averaged"]),
                expected=None,
            )
        )
    results += _beside(settings, base)
    results += _defended(settings, base)
    noisy = results[-3]
    assert noisy.epsilon is not None
    told = noisy.epsilon
    exact = results[0] if quick else next(r for r in results if "sum of 16, 1024" in r.attack)
    truth = victims_of(16, settings.seeds[0], 0)
    pictures = _pictures(settings, truth)

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        rows = [("the records in the sum", truth.x[:8]), *pictures]
        captions = (
            "",
            f"{exact.median:.0%} exact",
            "one picture per sum",
            f"{noisy.median:.0%} exact, eps {told.value:.2f}",
            "0 % identified",
        )
        plots.image_rows(
            figure, rows, captions=captions,
            title="t02: an honest server divides rows of a secure sum, n = 16, 1024 neurons",
        )  # fmt: skip

    notes = (
        "Secure aggregation is on in every row. It hides who sent what, not what was sent.",
        f"Epsilon {told.value:.2f} at delta {told.delta:g}, zero-out, one round, "
        "all clients; a model trained with it is another question.",
        "The rule without an oracle uses that pixels are whole sixteenths, a property of this set.",
    )
    return Outcome(results=tuple(results), draw=draw, notes=notes)


def _beside(settings: Run, base: partial[Result]) -> list[Result]:
    """A coarse ring: shown so that nobody takes rounding for a defence, or for none."""
    begin = time.perf_counter()
    codec = plain_codec(gradients.dimension(1024), 16, bits=16)
    scores = measure(settings, 1024, 16, 1, codec)
    return [
        base(
            setting=Setting.NOT_DEFENDED,
            attack="exclusive neuron, secure sum of 16, 1024 neurons, ring of 16 bits",
            metric="records recovered above 20 dB",
            per_seed=tuple(scores["close"]),
            expected=None,
            baseline=0.0,
            parameters={"n": 16, "hidden": 1024, "ring bits": 16, "sums per seed": 1, "z": 0},
            seconds=time.perf_counter() - begin,
        )
    ]


def _defended(settings: Run, base: partial[Result]) -> list[Result]:
    begin = time.perf_counter()
    codec = noisy_codec(gradients.dimension(1024), 16, Z)
    trials = 1 if settings.quick else 2
    scores = measure(settings, 1024, 16, trials, codec)
    row = partial(
        base,
        setting=Setting.DEFENDED,
        baseline=0.0,
        parameters={
            "n": 16,
            "hidden": 1024,
            "ring bits": codec.spec.bits,
            "sums per seed": trials,
            "z": Z,
        },
        epsilon=claim(codec, 16),
        seconds=time.perf_counter() - begin,
    )
    return [
        row(
            attack="exclusive neuron, secure sum of 16, 1024 neurons, noise z = 1",
            metric="records recovered exactly",
            per_seed=tuple(scores["exact"]),
            expected=Expected(op=Op.AT_MOST, bound=0.02),
        ),
        row(
            attack="exclusive neuron, secure sum of 16, 1024 neurons, noise z = 1",
            metric="records recovered above 20 dB",
            per_seed=tuple(scores["close"]),
            expected=Expected(op=Op.AT_MOST, bound=0.02),
        ),
        row(
            attack="one averaged row, secure sum of 16, 1024 neurons, noise z = 1",
            metric="records identified",
            per_seed=tuple(scores["averaged"]),
            expected=Expected(op=Op.AT_MOST, bound=0.02),
        ),
    ]


def _pictures(settings: Run, truth: data.Images) -> list[tuple[str, NDArray[np.float64]]]:
    """For the eyes: for each record the nearest candidate, which favours the attacker."""
    seed, n, hidden = settings.seeds[0], 16, 1024
    net = gradients.fresh_net(hidden, seed)
    updates = dict(enumerate(gradients.record_gradients(net, truth.x, truth.y), start=1))
    shown = []
    size = gradients.dimension(hidden)
    for codec in (plain_codec(size, n), noisy_codec(size, n, Z)):
        total = open_sum(updates, codec, settings.transcript()).total()
        gW, gb = gradients.first_layer(total, hidden)
        candidates = gradients.exclusive_rows(gW, gb, floor=_floor(codec, n))
        apart = np.linalg.norm(np.clip(candidates, 0, 1)[:, None] - truth.x[None, :8], axis=2)
        shown.append((candidates[apart.argmin(axis=0)], gradients.closed_form(gW, gb)))
    (clear, blend), (noisy, _) = shown
    return [
        ("no noise, exclusive neuron", clear),
        ("no noise, averaged row", np.tile(blend, (8, 1))),
        ("noise z = 1, best row by oracle", noisy),
        ("guess without transcript", np.tile(metrics.blind_image(), (8, 1))),
    ]


DEMO = Demo(name="t02_sum_leaks_records", doc=__doc__, run=run)

if __name__ == "__main__":
    raise SystemExit(DEMO.main())
