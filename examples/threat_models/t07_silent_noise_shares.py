"""Silent noise shares: clients that send no noise, and the noise that drops out with them.

Adversary: a server with k Sybils among n clients; or k clients that simply vanish.
Capability: the k send vectors without a share of noise, or none at all; the protocol is kept.
Knowledge: the opened sum, the inputs of all clients but one.

With noise planned for n shares, the sum has that of the n - k honest ones: z falls by a factor
sqrt((n - k) / n), and nobody can see it in any single message. The remedy is in the plan:
the noise must be right for those honest shares that arrive in the worst sum that clients open,
and the event must count no others.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attackers.codecs import SilentCodec
from kit.aggregator import ADJACENCY, Aggregator, aggregator_mechanism, claim_of, ring_sum, spec_of
from kit.metrics import DELTA, gaussian_epsilon, mu_of
from kit.result import Attacker, Demo, Epsilon, Expected, Op, Outcome, Result, Run, Setting
from kit.rounds import secure_round
from kit.streams import RandomBytes, keyed

from accounting.empirical import Verdict, audit
from accounting.events import Skellam
from securefl.encoding.noisy import NoisyCodec
from securefl.modular import RingVector
from securefl.round import ClientId

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = (
    "Kairouz, Liu, Steinke 2021, The Distributed Discrete Gaussian Mechanism for Federated "
    "Learning with Secure Aggregation; Dwork et al. 2006, Our Data, Ourselves"
)
SYBILS = Attacker(
    role="server with k Sybils",
    sees="the opened sum",
    knows="all inputs but one; which clients are silent",
    oracle_help="worst case: all other inputs are known, here all are zero",
)
Z = 1.0
ENTRIES = 1 << 14  # the measured z has a relative standard error of 1/sqrt(2 entries) = 0.55 %
TOLERANCE = 0.03
IN_SESSIONS = 10  # clients up to which the sum comes out of whole sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """n clients, k of them without noise: silent, or gone before they send."""

    n: int
    k: int
    vanish: bool = False

    @property
    def name(self) -> str:
        """For the table."""
        return f"n={self.n}, k={self.k} {'vanish' if self.vanish else 'silent'}"


CASES = (
    Case(n=10, k=1), Case(n=10, k=5), Case(n=10, k=3, vanish=True), Case(n=10, k=9),
    Case(n=100, k=33), Case(n=100, k=99),
)  # fmt: skip


def inputs_of(case: Case, codec: NoisyCodec, seed: int) -> dict[ClientId, RingVector]:
    """What every client hands to the protocol; all updates are zero, k of them without noise."""
    silent, update = SilentCodec(codec.spec), np.zeros(codec.dimension)
    public = seed.to_bytes(16, "little")
    found = {}
    for i in range(case.n):
        encoder = silent if i < case.k and not case.vanish else codec
        random_bytes = keyed(seed, "t07", case.n, case.k, i)
        found[ClientId(i + 1)] = encoder.encode(
            update, round_seed=public, random_bytes=random_bytes
        )
    return found


def opened(case: Case, inputs: Mapping[ClientId, RingVector], path: Path) -> RingVector:
    """The sum that the server opens: from a whole session's transcript, or the plain ring sum."""
    gone = [u for u in inputs if u <= case.k] if case.vanish else []
    survivors = [u for u in inputs if u not in gone]
    if case.n > IN_SESSIONS:
        return ring_sum([inputs[u] for u in survivors])
    modulus = next(iter(inputs.values())).modulus
    # The threshold must be reachable without those who vanish.
    recorded = secure_round(
        inputs, path, dropped=len(gone), drops={"masked_input_collection": gone} if gone else None
    )
    total = recorded.view().sum_of(survivors)
    assert total is not None, "an honest server opens this sum"
    return RingVector(total.astype(inputs[survivors[0]].values.dtype), modulus)


def epsilon_measured(codec: NoisyCodec, total: RingVector) -> float:
    """Epsilon of the noise that is in the opened sum, by its standard deviation."""
    z = float(np.std(total.centred().astype(float))) / codec.spec.l2
    return gaussian_epsilon(mu_of(z))


def z_accounted(case: Case, codec: NoisyCodec) -> float:
    """The z in the accountant's event for a sum with k silent shares."""
    event = codec.event(case.n, case.k)
    assert isinstance(event, Skellam), "the mechanism of these specifications"
    return math.sqrt(event.mu) / codec.spec.l2


def judged(run: Run, case: Case, setting: Setting) -> Result:
    """Noise planned for all n shares, or for the n - k honest ones."""
    begin = time.perf_counter()
    defended = setting is Setting.DEFENDED
    honest = case.n - case.k if defended else case.n
    spec = spec_of(z=Z, clients=case.n, honest=honest, dimension=ENTRIES)
    codec = NoisyCodec(spec)
    values = [
        epsilon_measured(codec, opened(case, inputs_of(case, codec, seed), run.transcript()))
        for seed in run.seeds
    ]
    claimed = gaussian_epsilon(mu_of(Z))
    z_eff = Z * math.sqrt((case.n - case.k) / case.n)
    truth = gaussian_epsilon(mu_of(z_eff))
    if defended:
        told = claim_of(
            codec.event(case.n - case.k) if case.vanish else codec.event(case.n, case.k)
        ).epsilon
        wanted = Expected(op=Op.AT_MOST, bound=claimed * (1 + TOLERANCE))
    else:
        told, wanted = claimed, Expected(op=Op.AT_LEAST, bound=truth * (1 - TOLERANCE))
    return Result(
        threat=run.name, paper=PAPER, attacker=SYBILS, setting=setting, attack=case.name,
        metric="epsilon of the noise in the opened sum", per_seed=tuple(values),
        baseline=claimed, expected=wanted,
        cap=told if defended else None,
        cap_formula="the accountant's epsilon for n - k shares" if defended else "",
        parameters={
            "n": case.n, "k": case.k, "z": Z, "honest_shares": honest, "entries": ENTRIES,
            "z_effective": Z if defended else z_eff, "epsilon_by_formula": truth,
            "event_z": z_accounted(case, codec),
            "whole_sessions": case.n <= IN_SESSIONS,
        },
        epsilon=Epsilon(value=told, delta=DELTA, adjacency=ADJACENCY, rounds=1,
                        participation="full"),
        seconds=time.perf_counter() - begin,
    )  # fmt: skip


def counted(run: Run, cases: Sequence[Case]) -> Result:
    """The accountant's z for a sum with k silent shares, beside the formula: no noise is drawn."""
    begin, apart = time.perf_counter(), []
    for case in cases:
        codec = NoisyCodec(spec_of(z=Z, clients=case.n, honest=case.n, dimension=ENTRIES))
        z = z_accounted(case, codec)
        apart.append(abs(z / (Z * math.sqrt((case.n - case.k) / case.n)) - 1))
    return Result(
        threat=run.name, paper=PAPER, attacker=SYBILS, setting=Setting.DEFENDED,
        attack="the accountant's event for n - k shares, all cases",
        metric="largest relative distance of its z from sqrt((n-k)/n)",
        per_seed=(max(apart),) * len(run.seeds), expected=Expected(op=Op.AT_MOST, bound=1e-3),
        parameters={"cases": [case.name for case in cases], "z": Z},
        seconds=time.perf_counter() - begin,
    )  # fmt: skip


def one_stream(random_bytes: RandomBytes) -> Callable[[int], RandomBytes]:
    """Every round of every run goes on reading from this one source."""
    return lambda _round: random_bytes


def audits(run: Run) -> list[Result]:
    """The second attack: the auditor of t12 on ten clients of which nine are silent."""
    rows, (n, k) = [], (10, 9)
    trials = 200 if run.quick else 400
    for setting, honest in ((Setting.UNDEFENDED, n), (Setting.DEFENDED, n - k)):
        begin, values = time.perf_counter(), []
        codec = NoisyCodec(spec_of(z=Z, clients=n, honest=honest))
        silent: dict[int, NoisyCodec] = dict.fromkeys(range(1, k + 1), SilentCodec(codec.spec))
        told = codec.event(n) if setting is Setting.UNDEFENDED else codec.event(n, k)
        claim = claim_of(told)
        for seed in run.seeds:
            source = one_stream(keyed(seed, "t07", "audit", honest))
            one = Aggregator(codec=codec, source=source, others=silent)
            found = audit(aggregator_mechanism(one), claim, n_trials=trials, clients=n, seed=seed)
            values.append(math.nan if found.verdict is Verdict.INCONCLUSIVE else found.bound)
        op = Op.AT_LEAST if setting is Setting.UNDEFENDED else Op.AT_MOST
        rows.append(
            Result(
                threat=run.name, paper=PAPER, attacker=SYBILS, setting=setting,
                attack=f"audit, n={n}, k={k} silent", per_seed=tuple(values), baseline=0.0,
                metric=f"lower bound on epsilon, claim {claim.epsilon:.2f}",
                expected=Expected(op=op, bound=claim.epsilon),
                cap=claim.epsilon if setting is Setting.DEFENDED else None,
                cap_formula="the claim" if setting is Setting.DEFENDED else "",
                parameters={"n": n, "k": k, "z": Z, "trials_per_canary": trials},
                epsilon=Epsilon(value=claim.epsilon, delta=DELTA, adjacency=ADJACENCY, rounds=1,
                                participation="full"),
                seconds=time.perf_counter() - begin,
            )
        )  # fmt: skip
    return rows


def run(run: Run) -> Outcome:
    """Measures."""
    cases = [c for c in CASES if not (run.quick and c.k in (33,))]
    bare = [judged(run, case, Setting.UNDEFENDED) for case in cases]
    planned = [judged(run, case, Setting.DEFENDED) for case in cases]
    results = [row for pair in zip(bare, planned, strict=True) for row in pair]
    results += [counted(run, cases), *audits(run)]

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        ax = figure.subplots()
        fraction = np.linspace(0, 0.992, 200)
        line = [gaussian_epsilon(mu_of(Z * math.sqrt(1 - f))) for f in fraction]
        ax.plot(fraction, line, color="black", lw=1.2, label="formula: z falls by sqrt((n-k)/n)")
        for rows, colour, label in (
            (bare, plots.BAD, "noise planned for all n shares"),
            (planned, plots.GOOD, "planned for n - k honest shares"),
        ):
            for i, row in enumerate(rows):
                at = row.parameters["k"] / row.parameters["n"]
                ax.plot([at] * len(row.per_seed), row.per_seed, "o", color=colour, ms=5,
                        label=label if i == 0 else None)  # fmt: skip
        ax.axhline(gaussian_epsilon(mu_of(Z)), color=plots.NEUTRAL, ls=":", lw=1.2,
                   label="baseline: the claim, epsilon 4.38")  # fmt: skip
        ax.set_yscale("log")
        ax.set_xlabel("fraction k/n of clients without noise (n = 10 and 100)")
        ax.set_ylabel("epsilon of the noise in the opened sum")
        ax.set_title("Server with k of n clients that add no noise; z=1, delta 1e-5, one round")
        ax.legend(fontsize=8)

    notes = (
        "The library plans noise for honest_shares and its event counts survivors less colluders; "
        "who those are is an assumption of the plan, and no message shows it.",
    )
    return Outcome(results=tuple(results), draw=draw, notes=notes)


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run)

if __name__ == "__main__":
    sys.exit(DEMO.main())
