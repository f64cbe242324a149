"""An audit from a single run: what it shows, and how much less than the truth.

Adversary: an auditor that put many canaries into one run, each by a secret coin.
Capability: it sees the one released sum and guesses for some canaries whether they were in.
Knowledge: the canaries, the codec's specification, the number of guesses, fixed beforehand.

Training cannot be repeated thousands of times; one run with 2000 canaries can be audited. The bound
is sound and loose: where the accountant says 4.75 it shows about a third of that, so that a
mechanism with half the noise passes. It finds noise that is missing, not noise that is a little too
small. And it has a ceiling: so many right guesses show 4.84 and no more, whatever is audited.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attackers.codecs import SilentCodec
from kit.aggregator import ADJACENCY, claim_of, ring_sum, spec_of
from kit.metrics import DELTA, clopper_pearson
from kit.result import Attacker, Demo, Epsilon, Expected, Op, Outcome, Result, Run, Setting
from kit.streams import keyed
from numpy.typing import NDArray

from accounting.empirical import Guesses, guess_members, one_run
from securefl.encoding.noisy import RECORDS_MARGIN, Contribution, NoisyCodec
from securefl.round import AggregateSum, ClientId

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = "Steinke, Nasr, Jagielski 2023, Privacy Auditing with One (1) Training Run"
AUDITOR = Attacker(
    role="auditor of one run",
    sees="one released sum",
    knows="the canaries and the specification",
    oracle_help="every canary has a coordinate of its own: the easiest case for it",
)
CANARIES, CLIENTS = 2000, 4
SHARE = 0.1  # of the canaries are guessed "in", and as many "out"; fixed before any run


def codec_of(z: float) -> NoisyCodec:
    """The unit is a record; every client sums the canaries that it holds."""
    return NoisyCodec(
        spec_of(z=z, clients=CLIENTS, dimension=CANARIES, contribution=Contribution.RECORDS,
                units=CANARIES)
    )  # fmt: skip


def scores(codec: NoisyCodec, coins: NDArray[np.bool_], seed: int, index: int,
           missing: int = 0) -> NDArray[np.float64]:  # fmt: skip
    """One run: the decoded sum, one number per canary.

    Args:
        codec: of every client.
        coins: which canaries are in.
        seed: of the noise.
        index: of the run.
        missing: clients whose share does not arrive; the first ones send, and hold all canaries.
    """
    public = index.to_bytes(16, "little")
    random_bytes = keyed(seed, "t11b", index, codec.spec.noise_multiplier)
    senders = CLIENTS - missing
    owner = np.arange(CANARIES) % senders
    # Clipped by whoever holds the record, with the margin that the codec asks for.
    values = coins * (codec.spec.clip_norm * (1 - RECORDS_MARGIN))
    vectors = [
        codec.encode(np.where(owner == u, values, 0.0), round_seed=public,
                     random_bytes=random_bytes)
        for u in range(senders)
    ]  # fmt: skip
    survivors = tuple(ClientId(u + 1) for u in range(senders))
    opened = AggregateSum(vector=ring_sum(vectors), survivors=survivors, min_honest=1)
    return codec.decode(opened, round_seed=public, denominator=1.0).mean


def bounds(codec: NoisyCodec, seed: int, runs: int, missing: int = 0) -> NDArray[np.float64]:
    """One bound per run."""
    rng = np.random.default_rng([seed, 11])  # which canaries are in: public after the audit
    guessed = int(SHARE * CANARIES)
    found = []
    for index in range(runs):
        coins = rng.random(CANARIES) < 0.5
        seen = scores(codec, coins, seed, index, missing)
        guesses = guess_members(seen, coins, guess_in=guessed, guess_out=guessed)
        found.append(one_run(guesses, DELTA))
    return np.array(found)


def run(run: Run) -> Outcome:
    """Measures."""
    runs = 15 if run.quick else 60
    results, points = [], {}
    sure = 2 * int(SHARE * CANARIES)
    ceiling = one_run(Guesses(canaries=CANARIES, guessed=sure, correct=sure), DELTA)
    correct = {z: codec_of(z) for z in (1.0, 2.0, 3.0, 0.5)}
    silent = SilentCodec(correct[1.0].spec)
    plans = [(f"correct, z={z:g}", Setting.DEFENDED, codec, 0) for z, codec in correct.items()]
    plans += [
        ("no noise, claimed z=1", Setting.UNDEFENDED, silent, 0),
        ("half the shares missing, claimed z=1", Setting.NOT_DEFENDED, correct[1.0], 2),
    ]
    for name, setting, codec, missing in plans:
        begin = time.perf_counter()
        claim = claim_of(codec.event(CLIENTS)).epsilon
        attack = name if ceiling > claim else f"{name}: INCONCLUSIVE, at most {ceiling:.2f}"
        per_seed = [bounds(codec, seed, runs, missing) for seed in run.seeds]
        points[name] = (np.concatenate(per_seed), claim)
        above = int(sum((one > claim).sum() for one in per_seed))
        common = {
            "threat": run.name, "paper": PAPER, "attacker": AUDITOR, "setting": setting,
            "attack": attack, "baseline": 0.0, "seconds": time.perf_counter() - begin,
            "parameters": {"canaries": CANARIES, "guesses": sure,
                           "runs_per_seed": runs, "clients": CLIENTS, "ceiling": ceiling},
            "epsilon": Epsilon(value=claim, delta=DELTA, adjacency=ADJACENCY, rounds=1,
                               participation="full"),
        }  # fmt: skip
        op = Op.AT_LEAST if setting is Setting.UNDEFENDED else Op.AT_MOST
        # Where not even flawless guesses reach the claim, a lower bound is no expectation.
        wanted = Expected(op=op, bound=claim) if ceiling > claim else None
        results.append(
            Result(**common, metric=f"median bound on epsilon, claim {claim:.2f}",
                   per_seed=tuple(float(np.median(one)) for one in per_seed), expected=wanted)
        )  # fmt: skip
        if setting is Setting.DEFENDED:
            rate = clopper_pearson(above, runs * len(run.seeds))
            results.append(
                Result(**common, metric="runs whose bound exceeds the claim",
                       per_seed=tuple(float((one > claim).mean()) for one in per_seed),
                       expected=Expected(op=Op.MEDIAN_AT_MOST, bound=0.05),
                       cap=0.05, cap_formula="1 - confidence",
                       ci95=(rate.low, rate.high))
            )  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        figure.set_size_inches(7.5, 3.4)
        ax = figure.subplots()
        jitter = np.random.default_rng(0)
        for place, (name, (values, claim)) in enumerate(points.items()):
            colour = plots.GOOD if name.startswith("correct") else plots.BAD
            y = place + jitter.uniform(-0.25, 0.25, len(values))
            ax.plot(values, y, ".", ms=3, color=colour, alpha=0.5)
            ax.plot([claim, claim], [place - 0.4, place + 0.4], color="black", lw=1.6)
        ax.axvline(ceiling, color="black", ls="--", lw=1)
        ax.text(ceiling + 0.08, -0.55, "ceiling of this audit", fontsize=8, va="center")
        ax.set_ylim(len(points) - 0.4, -0.8)
        ax.set_yticks(range(len(points)), list(points))
        ax.set_xlim(left=-0.2)
        ax.axvline(0.0, color=plots.NEUTRAL, ls=":", lw=1.2)
        ax.set_xlabel("lower bound on epsilon from one run (a dot each); black: the claim")
        ax.set_title(f"Auditor with {CANARIES} canaries in one sum of n={CLIENTS}; baseline 0")

    note = (
        "Half the noise is not noticed: a bound below the claim shows nothing about the claim. "
        "The audit over many runs (t12) finds it."
    )
    return Outcome(results=tuple(results), draw=draw, notes=(note,))


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run)

if __name__ == "__main__":
    sys.exit(DEMO.main())
