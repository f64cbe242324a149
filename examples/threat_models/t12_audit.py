"""Auditing the library's own aggregator, and broken ones.

Adversary: an auditor in the place of the server; it may be anybody who sees the opened sums.
Capability: it runs the aggregator thousands of times, with a canary client and without.
Knowledge: the inputs of all other clients, the codec's specification, every released sum.

Secure aggregation is not tested here: a masked sum opens to the plain ring sum, bit by bit. What is
tested is whether the noise in it is what the accountant was told. The correct aggregator must not
be refuted, and every broken one must be: an auditor that cannot fail shows nothing. An audit can
only refute.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from attackers.codecs import SilentCodec, SourceOfRepeats, StaleRandom, weighted_after_clipping
from kit.aggregator import ADJACENCY, Aggregator, aggregator_mechanism, claim_of, spec_of
from kit.metrics import DELTA
from kit.result import Attacker, Demo, Epsilon, Expected, Op, Outcome, Result, Run, Setting
from kit.streams import RandomBytes, keyed

from accounting.empirical import Claim, MechanismAudit, Noise, Verdict, audit
from accounting.events import Poisson
from securefl.encoding.noisy import Contribution, NoisyCodec
from securefl.primitives.prg import SecureRandom
from securefl.training.randomness import poisson_sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = (
    "Jagielski, Ullman, Oprea 2020, Auditing Differentially Private Machine Learning: How Private "
    "is Private SGD?; Nasr et al. 2023, Tight Auditing of Differentially Private Machine Learning"
)
AUDITOR = Attacker(
    role="auditor in the place of an honest-but-curious server",
    sees="every opened sum",
    knows="inputs of all other clients, specification of the codec",
    oracle_help="it runs the aggregator as often as it likes, on inputs of its choice",
)
CLIENTS, ROUNDS, DIMENSION = 4, 2, 40
RATE = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One aggregator, what it claims, and how many runs show the difference.

    Attributes:
        name: for the table.
        broken: whether the claim is false.
        build: z and the seed to the aggregator and the claim that a user would be told.
        trials: per canary, at z = 2 and at z = 1.
    """

    name: str
    broken: bool
    build: Callable[[float, int], tuple[Aggregator, Claim]]
    trials: tuple[int, int] = (400, 200)


def _codec(z: float) -> NoisyCodec:
    return NoisyCodec(spec_of(z=z, clients=CLIENTS))


def _told(codec: NoisyCodec, survivors: int = CLIENTS) -> Claim:
    """What a user is told: the accountant's number for the codec's own event."""
    return claim_of(codec.event(survivors), rounds=ROUNDS)


def _stream(seed: int, *labels: object) -> Callable[[int], RandomBytes]:
    one = keyed(seed, "t12", *labels)
    return lambda _round: one


def correct(z: float, seed: int) -> tuple[Aggregator, Claim]:
    """As shipped."""
    codec = _codec(z)
    return Aggregator(codec=codec, source=_stream(seed, z)), _told(codec)


def no_noise(z: float, seed: int) -> tuple[Aggregator, Claim]:
    """Nobody adds a share."""
    right, claim = correct(z, seed)
    return replace(right, codec=SilentCodec(right.codec.spec)), claim


def clip_twice_as_wide(z: float, seed: int) -> tuple[Aggregator, Claim]:
    """Clients clip to 2 and add the noise for 1."""
    _, claim = correct(z, seed)
    wide = NoisyCodec(spec_of(z=z / 2, clients=CLIENTS, clip_norm=2.0))
    return Aggregator(codec=wide, source=_stream(seed, z, "clip")), claim


def half_the_shares(z: float, seed: int) -> tuple[Aggregator, Claim]:
    """Two of four clients drop out, and the claim stays that of the plan."""
    right, claim = correct(z, seed)
    return replace(right, missing=(1, 2)), claim


def half_the_shares_accounted(z: float, seed: int) -> tuple[Aggregator, Claim]:
    """Two of four clients drop out, and the event counts who survived."""
    right, _ = correct(z, seed)
    return replace(right, missing=(1, 2)), _told(right.codec, 2)


def _unclipped(z: float) -> NoisyCodec:
    spec = spec_of(z=z, clients=CLIENTS, contribution=Contribution.RECORDS, units=40.0)
    return NoisyCodec(spec)


def no_clipping(z: float, seed: int) -> tuple[Aggregator, Claim]:
    """The codec is told that the caller clips, and nobody does."""
    _, claim = correct(z, seed)
    return Aggregator(codec=_unclipped(z), source=_stream(seed, z, "unclipped")), claim


def weight_after_clipping(z: float, seed: int) -> tuple[Aggregator, Claim]:
    """Clipped, then multiplied by 3."""
    broken, claim = no_clipping(z, seed)
    return replace(broken, prepare=weighted_after_clipping), claim


def same_noise_every_round(z: float, seed: int) -> tuple[Aggregator, Claim]:
    """Every client draws round 2 from the state in which it began round 1."""
    right, claim = correct(z, seed)
    return replace(right, source=SourceOfRepeats(seed)), claim


def sampled(z: float, seed: int) -> tuple[Aggregator, Claim]:
    """Every client takes part by its own coin; z is not used, since the claim must stay small."""
    del z
    codec, coins = _codec(1.0), keyed(seed, "t12", "coins")
    event = Poisson(sample_rate=RATE, event=codec.event(CLIENTS))
    claim = claim_of(event, rounds=ROUNDS, noise=Noise.ANY)

    def coin(_client: int) -> bool:
        return len(poisson_sample(1, RATE, coins)) == 1

    return Aggregator(codec=codec, source=_stream(seed, "sampled"), takes_part=coin), claim


def always_there(z: float, seed: int) -> tuple[Aggregator, Claim]:
    """The claim is that of a sample, and the canary's client takes part in every round."""
    right, claim = sampled(z, seed)
    return replace(right, takes_part=None), claim


CASES = (
    Case(name="correct", broken=False, build=correct, trials=(1200, 300)),
    Case(name="half the shares missing, accounted", broken=False,
         build=half_the_shares_accounted, trials=(1200, 300)),
    Case(name="sampled clients", broken=False, build=sampled, trials=(600, 300)),
    Case(name="no noise", broken=True, build=no_noise),
    Case(name="clip to 2, noise for 1", broken=True, build=clip_twice_as_wide,
         trials=(1500, 400)),
    Case(name="half the shares missing", broken=True, build=half_the_shares,
         trials=(8000, 2500)),
    Case(name="no clipping", broken=True, build=no_clipping),
    Case(name="weight 3 after clipping", broken=True, build=weight_after_clipping),
    Case(name="same noise every round", broken=True, build=same_noise_every_round),
    Case(name="always there, claimed as sampled", broken=True, build=always_there,
         trials=(600, 400)),
)  # fmt: skip


def audited(case: Case, z: float, seed: int, trials: int) -> MechanismAudit:
    """One audit of one case. The seed fixes coins and noise, so that the figure repeats."""
    aggregator, claim = case.build(z, seed)
    return audit(
        aggregator_mechanism(aggregator),
        claim,
        n_trials=trials,
        rounds=ROUNDS,
        clients=CLIENTS,
        dimension=DIMENSION,
        seed=seed,
    )


def _bound(found: MechanismAudit) -> float:
    """The bound; no number if so few runs could not have refuted anything."""
    return float("nan") if found.verdict is Verdict.INCONCLUSIVE else found.bound


def judged(run: Run, case: Case, z: float, trials: int) -> Result:
    """All seeds of one case."""
    begin = time.perf_counter()
    found = [audited(case, z, seed, trials) for seed in run.seeds]
    claim = found[0].claim
    claimed = claim.epsilon
    op = Op.AT_LEAST if case.broken else Op.AT_MOST
    return Result(
        threat=run.name,
        paper=PAPER,
        attacker=AUDITOR,
        setting=Setting.UNDEFENDED if case.broken else Setting.DEFENDED,
        attack=case.name,
        metric=f"lower bound on epsilon, claim {claimed:.2f}",
        per_seed=tuple(map(_bound, found)),
        baseline=0.0,
        cap=None if case.broken else claimed,
        cap_formula="" if case.broken else "the claim, that is the accountant's epsilon",
        expected=Expected(op=op, bound=claimed),
        parameters={
            "z": z, "clients": CLIENTS, "rounds": ROUNDS, "trials_per_canary": trials,
            "assumption": str(claim.noise), "ceiling": found[0].ceiling,
            "clopper_pearson": [max(c.clopper_pearson for c in one.canaries) for one in found],
            "verdicts": [str(one.verdict) for one in found],
            "canary": [one.strongest.canary for one in found],
            "score": [one.strongest.score for one in found],
        },
        epsilon=Epsilon(value=claimed, delta=DELTA, adjacency=ADJACENCY, rounds=ROUNDS,
                        participation="full" if claim.noise is Noise.GAUSSIAN else f"q={RATE}"),
        seconds=time.perf_counter() - begin,
    )  # fmt: skip


def _child(source: SecureRandom, count: int, out: multiprocessing.connection.Connection) -> None:
    out.send_bytes(source.random_bytes(count))


def children_agree(source: SecureRandom, count: int = 64) -> float:
    """Fraction of equal bytes in what two forked workers draw from one inherited source."""
    source.random_bytes(1)  # parents that train have drawn before
    context = multiprocessing.get_context("fork")
    drawn = []
    for _ in range(2):
        there, here = context.Pipe(duplex=False)
        worker = context.Process(target=_child, args=(source, count, here))
        with warnings.catch_warnings():
            # Newer Pythons warn of forks beside threads. The child only draws bytes and ends.
            warnings.simplefilter("ignore", DeprecationWarning)
            worker.start()
        drawn.append(there.recv_bytes())
        worker.join()
    return sum(a == b for a, b in zip(*drawn, strict=True)) / count


def forked(run: Run) -> list[Result]:
    """Noise of workers that were forked from one process."""
    rows = []
    for setting, kind, op, bound in (
        (Setting.UNDEFENDED, StaleRandom, Op.EQUAL, 1.0),
        (Setting.DEFENDED, SecureRandom, Op.AT_MOST, 0.1),
    ):
        begin = time.perf_counter()
        rows.append(
            Result(
                threat=run.name, paper=PAPER, attacker=AUDITOR, setting=setting,
                attack="noise after fork", metric="equal bytes of noise in two workers",
                per_seed=tuple(children_agree(kind()) for _ in run.seeds), baseline=1 / 256,
                expected=Expected(op=op, bound=bound),
                parameters={"bytes": 64, "source": kind.__name__},
                seconds=time.perf_counter() - begin,
            )
        )  # fmt: skip
    return rows


def run(run: Run) -> Outcome:
    """Measures."""
    z = 1.0 if run.quick else 2.0
    rows = [judged(run, case, z, case.trials[run.quick]) for case in CASES]
    shown = list(rows)
    rows += forked(run)

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        figure.set_size_inches(7.5, 4.6)
        ax = figure.subplots()
        widest = 1.3
        for place, row in enumerate(shown):
            colour = plots.GOOD if row.setting is Setting.DEFENDED else plots.BAD
            assert row.expected is not None
            claimed = row.expected.bound
            widest = max(widest, row.max / claimed)
            ratio = [value / claimed for value in row.per_seed]
            ax.barh(place, row.median / claimed, color=colour, height=0.55, alpha=0.75)
            ax.plot(ratio, [place] * len(ratio), "|", color="black", ms=8)
            ax.text(max(ratio) + 0.05, place, f"{row.median:.2f} of {claimed:.2f}",
                    va="center", fontsize=8, bbox=plots.WHITE)  # fmt: skip
        ax.set_yticks(range(len(shown)), [row.attack for row in shown])
        ax.axvline(1.0, color="black", ls="--", lw=1.2)
        ax.text(1.03, -0.75, "the claim", fontsize=8, va="center")
        ax.set_ylim(len(shown) - 0.4, -1.1)
        ax.axvline(0.0, color=plots.NEUTRAL, ls=":", lw=1.2)
        ax.set_xlim(0, widest * 1.2)
        ax.set_xlabel("proved lower bound on epsilon / claimed epsilon (95 %; |: seeds)")
        ax.set_title(
            f"Auditor, n={CLIENTS}, z={z:g}, {ROUNDS} rounds: correct sums (blue) stay below\n"
            "their claim, broken ones (red) are refuted; baseline 0"
        )

    notes = (
        "Bounds are the larger of Clopper-Pearson's and of one that assumes a Gaussian mechanism; "
        "Skellam noise and rounding are close to that, not equal. Sampled clients: "
        "Clopper-Pearson only.",
        "A bound below the claim is no evidence for the claim: an audit can refute, never verify.",
    )
    return Outcome(results=tuple(rows), draw=draw, notes=notes)


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run)

if __name__ == "__main__":
    sys.exit(DEMO.main())
