"""Differencing: two correct secure sums over almost the same clients.

Adversary: an honest-but-curious server, or anybody who is told both sums.
Capability: it sees two or more rounds of the same clients with the same inputs.
Knowledge: who took part in which round; for the second attack under DP, all other inputs.

The difference of a sum over n clients and one over n - 1 is the missing client's input, exactly. A
minimum cohort does not help: both sums are large. Random selection does not help: after enough
rounds the matrix of who took part has full rank. Noise does: then each release has its price, and
the two prices add up for whoever is in both.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attackers import inputs as input_attacks
from attackers.measure import ALL, NONE, measured
from attackers.stage import BITS, TARGET, Case
from attackers.weakened import MasksTwice
from kit import metrics
from kit.result import Attacker, Demo, Epsilon, Expected, Op, Outcome, Result, Run, Setting
from kit.rounds import as_image, images_as_inputs, plain_sum, secure_round
from kit.view import Ring
from numpy.typing import NDArray

from securefl.encoding.noisy import Contribution, NoisyCodec, NoisySpec
from securefl.modular import RingVector
from securefl.primitives.prg import SecureRandom
from securefl.protocols.secagg import ClientPolicy
from securefl.round import AggregateSum, ClientId

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N = 8
Z, NOISY_N, DIMENSION, TRIALS = 1.0, 3, 4, 1500
SERVER = Attacker(
    role="honest-but-curious server", sees="two or more sums", knows="who is in which sum"
)
SO = (
    "So et al. 2023, Securing Secure Aggregation: Mitigating Multi-Round Privacy Leakage in "
    "Federated Learning"
)


def two_rounds(case: Case, *, n_min: int = 3) -> float:
    """A round with everybody, a round without the target; both as the library runs them.

    Every client refuses a round of fewer than n_min.
    """
    given = images_as_inputs(N, bits=BITS, seed=case.seed)
    rest = {u: v for u, v in given.items() if u != TARGET}
    policy = ClientPolicy(gamma=0, n_min=n_min)
    first = secure_round(given, case.path, policy=policy)
    later = case.path.with_suffix(".second.bin")
    second = secure_round(rest, later, round_id=1, policy=policy)
    one, two = first.view().sum_of(given), second.view().sum_of(rest)
    assert one is not None and two is not None, "honest rounds open"
    difference: Ring = (one - two) & np.uint64((1 << BITS) - 1)
    case.found.append(difference)
    return metrics.equal_fraction(difference, plain_sum(given, [TARGET]))


def selected_at_random(case: Case, *, rounds: int) -> float:
    """Half of the clients in every round, inputs unchanged: solve for each of them.

    Returns:
        The fraction of clients whose whole input is recovered, entry by entry.
    """
    given = images_as_inputs(N, bits=BITS, seed=case.seed)
    rng = np.random.default_rng(case.seed)
    present, sums = [], []
    for r in range(rounds):
        members = sorted(rng.choice(list(given), size=N // 2, replace=False).tolist())
        chosen = {ClientId(u): given[ClientId(u)] for u in members}
        done = secure_round(chosen, case.path.with_suffix(f".{r}.bin"), round_id=r)
        opened = done.view().sum_of(chosen)
        assert opened is not None, "honest rounds open"
        present.append([u in chosen for u in given])
        sums.append(opened.astype(np.float64))
    solved = np.linalg.lstsq(np.array(present, dtype=float), np.array(sums), rcond=None)[0]
    rounded: NDArray[np.int64] = np.round(np.asarray(solved)).astype(np.int64)
    right = [
        np.array_equal(row, plain_sum(given, [u]).astype(np.int64))
        for u, row in zip(given, rounded, strict=True)
    ]
    return float(np.mean(right))


def noisy_codec(clients: int) -> NoisyCodec:
    """The shipped codec: noise of standard deviation z C in a sum over these clients."""
    return NoisyCodec(
        NoisySpec.plan(
            dimension=DIMENSION,
            clip_norm=1.0,
            noise_multiplier=Z,
            honest_shares=clients,
            max_clients=clients,
            units=clients,
            contribution=Contribution.CLIENT,
        )
    )


def _release(
    codec: NoisyCodec, updates: NDArray[np.float64], seed: bytes, random: SecureRandom
) -> NDArray[np.float64]:
    """The noisy sum over these clients' updates: encoded, added in the ring, decoded.

    Masks cancel in the ring sum to the last bit, so they are left out of these thousands of sums.
    """
    shares = [codec.encode(u, round_seed=seed, random_bytes=random.random_bytes) for u in updates]
    total: RingVector = shares[0]
    for share in shares[1:]:
        total = total + share
    ids = tuple(ClientId(u) for u in range(1, len(shares) + 1))
    opened = AggregateSum(vector=total, survivors=ids, min_honest=len(ids))
    return np.asarray(codec.decode(opened, round_seed=seed, denominator=1.0).mean, dtype=float)


def noisy_scores(seed: int, trials: int) -> dict[str, tuple[list[float], list[float]]]:
    """Scores of two attackers who decide whether the victim sent v or nothing (zero-out).

    ``difference``: the two sums are subtracted, both noises stay. ``all others known``: only the
    round with the victim is used, and everybody else's update is subtracted.
    """
    rng = np.random.default_rng(seed)
    codecs, random = (noisy_codec(NOISY_N), noisy_codec(NOISY_N - 1)), SecureRandom()
    victim = np.zeros(DIMENSION)
    victim[0] = 1.0
    found: dict[str, tuple[list[float], list[float]]] = {
        "difference": ([], []), "all others known": ([], []),
    }  # fmt: skip
    for trial in range(2 * trials):
        there = trial % 2 == 0
        others = rng.normal(size=(NOISY_N - 1, DIMENSION)) * 0.3
        others /= np.maximum(1.0, np.linalg.norm(others, axis=1, keepdims=True))
        seeds = [rng.bytes(32), rng.bytes(32)]
        with_victim = np.vstack([victim if there else np.zeros(DIMENSION), others])
        one = _release(codecs[0], with_victim, seeds[0], random)
        two = _release(codecs[1], others, seeds[1], random)
        found["difference"][not there].append(float((one - two)[0]))
        found["all others known"][not there].append(float((one - others.sum(axis=0))[0]))
    return found


def noisy(run: Run) -> list[Result]:
    """The same differencing under distributed noise, two attackers; the stronger decides."""
    trials = 300 if run.quick else TRIALS
    begin = time.perf_counter()
    mu = metrics.mu_of(Z)
    cap = metrics.auc_cap(mu)
    expected_difference = metrics.auc_cap(mu / np.sqrt(2))
    scores = [noisy_scores(seed, trials) for seed in run.seeds]
    seconds = time.perf_counter() - begin
    results = []
    for name, predicted in (("difference", expected_difference), ("all others known", cap)):
        areas = [metrics.auc(*s[name]).value for s in scores]
        pooled = metrics.auc(
            [x for s in scores for x in s[name][0]], [x for s in scores for x in s[name][1]]
        )
        # The standard error of an area is at most sqrt(1 / (4 trials)): five of them, 1e-6.
        slack = 5 * 0.5 / np.sqrt(trials)
        results.append(
            Result(
                threat=run.name, paper="Dong, Roth, Su 2022, Gaussian Differential Privacy",
                attacker=SERVER if name == "difference" else Attacker(
                    role="honest-but-curious server", sees="the sum with the victim",
                    knows="all other clients' updates",
                ),
                setting=Setting.DEFENDED, attack=f"{name}, z={Z:g}", metric="AUC",
                per_seed=tuple(areas), ci95=(pooled.low, pooled.high), baseline=0.5, cap=cap,
                cap_formula="Phi(1 / (z sqrt 2))",
                expected=Expected(op=Op.AT_MOST, bound=float(predicted + slack)),
                epsilon=Epsilon(
                    value=metrics.gaussian_epsilon(mu), delta=metrics.DELTA, adjacency="zero-out",
                    rounds=1, participation="the victim is in one of both sums",
                ),
                parameters={
                    "z": Z, "n": NOISY_N, "trials": 2 * trials, "predicted": predicted,
                    "epsilon for clients in both": metrics.gaussian_epsilon(metrics.mu_of(Z, 2)),
                },
                seconds=seconds,
            )
        )  # fmt: skip
    return results


def run(run: Run) -> Outcome:
    """Measures."""
    pictures: dict[str, Ring] = {}
    dp = noisy(run)
    results = [
        measured(
            run, two_rounds, name="two rounds, n and n - 1", setting=Setting.UNDEFENDED,
            expected=ALL, attacker=SERVER, parameters={"n": N}, pictures=pictures,
        ),
        measured(
            run, partial(two_rounds, n_min=N - 1), name=f"the same, cohorts of at least {N - 1}",
            setting=Setting.NOT_DEFENDED, expected=ALL, attacker=SERVER,
            parameters={"n": N, "n_min": N - 1},
        ),
        measured(
            run, partial(selected_at_random, rounds=4 * N), paper=SO,
            name=f"{4 * N} rounds of a random half", setting=Setting.NOT_DEFENDED, expected=ALL,
            attacker=SERVER, metric="fraction of clients recovered exactly",
            parameters={"n": N, "rounds": 4 * N},
        ),
        *dp,
        measured(
            run, input_attacks.second_input, name="one client masks twice",
            setting=Setting.UNDEFENDED, expected=ALL, attacker=SERVER, client=MasksTwice,
            parameters={"check": "set_input"},
        ),
        measured(
            run, input_attacks.second_input, name="one client masks twice",
            setting=Setting.DEFENDED, expected=NONE, attacker=SERVER,
            parameters={"check": "set_input"},
        ),
    ]  # fmt: skip

    def draw(figure: Figure) -> None:
        from kit import plots  # noqa: PLC0415  # matplotlib is an extra

        figure.set_size_inches(9, 3.2)
        left, right = figure.subfigures(1, 2, width_ratios=[1, 1.5], squeeze=False)[0]
        truth = images_as_inputs(1, bits=BITS, seed=run.seeds[0])[TARGET].values
        axes = left.subplots(1, 2)
        shown = (("the client's image", truth), ("sum 1 - sum 2", next(iter(pictures.values()))))
        for ax, (label, vector) in zip(axes, shown, strict=True):
            ax.imshow(as_image(vector, BITS).reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            ax.set_title(label, fontsize=8)
            ax.set_axis_off()
        left.suptitle(f"Honest server, two correct\nsecure sums, n={N} and {N - 1}", fontsize=10)
        rows = [
            ("no noise", 1.0, plots.BAD),
            ("no noise, large cohorts only", 1.0, plots.BAD),
            (f"noise z={Z:g}: difference", dp[0].median, plots.GOOD),
            (f"noise z={Z:g}: others known", dp[1].median, plots.GOOD),
        ]
        ax = right.subplots()
        ax.axvline(dp[0].cap, color="black", ls="--", lw=1)
        ax.text(dp[0].cap, 1.0, "cap at eps 4.38", fontsize=7, ha="center", va="bottom",
                transform=ax.get_xaxis_transform())  # fmt: skip
        plots.bars(ax, rows, xlabel="AUC: was the victim in the first sum?", title="",
                   baseline=0.5, most=1.0)  # fmt: skip

    return Outcome(
        results=tuple(results),
        draw=draw,
        notes=(
            "A minimum cohort is no defence against differences of sums. What helps is noise that "
            "is paid for in every round, a ledger that adds the rounds up, or fixed groups.",
        ),
    )


DEMO = Demo(name=Path(__file__).stem, doc=__doc__ or "", run=run, needs=("sklearn",))

if __name__ == "__main__":
    sys.exit(DEMO.main())
