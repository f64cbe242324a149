"""What a secure sum and noise add to a simulated round, in CPU seconds: paired rounds, one process.

Run it with:  python benchmarks/simulation.py [--models cnn26k mlp] [--graphs secagg+ complete]
                                              [--pairs 5] [--rounds 2] [--json]

A round: 100 clients with 60 made-up pictures of 28 x 28, one epoch in batches of 20. Both rounds
train the same clients alike, with the same trainers on the same model buffer; then

* plain: the mean of the raw updates, applied by the server's optimiser. No protocol, no privacy.
* private: user-level differential privacy. The population's ledger reserves, every update is
  clipped, rotated, rounded and given its share of exact Skellam noise, the machines of 100 clients
  and of a server run the whole protocol over the in-memory network (all frames are real bytes), the
  opened sum is decoded and applied, and the ledger settles.

The two take turns. ``adds`` is the median over the pairs of (private - plain) / plain, with the
least and the most beside it. The stages are those of the private round; "secure sum" is everything
between an encoded update and the opened sum, on all sides. SecAgg+ has the degree and the threshold
that its calculator chooses for 5 % corrupt and 10 % dropped clients: 16 and 6. CPU time of all
threads: set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A program's own folder comes first on the path: accounting.py there would hide the package.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]

import numpy as np  # noqa: E402  # only now does accounting name the package

import accounting  # noqa: E402  # as above
from securefl.encoding.noisy import Contribution, NoisyCodec, NoisySpec  # noqa: E402  # as above
from securefl.pipeline import Participant, RoundOutcome, RoundStatus, private_round  # noqa: E402  # as above
from securefl.population import PopulationBudget, SharedRelease  # noqa: E402  # as above
from securefl.protocols.secagg.calculator import parameters  # noqa: E402  # as above
from securefl.protocols.secagg.params import SecAggParams  # noqa: E402  # as above
from securefl.round import ClientId, ThreatModel  # noqa: E402  # as above
from securefl.simulation.schemes import SecAggScheme  # noqa: E402  # as above
from securefl.simulation.transports import DropPlan, ProtocolTransport, float_round  # noqa: E402  # as above
from securefl.training.apply import ServerOptimiser  # noqa: E402  # as above
from securefl.training.local import FlatModel, LocalSGD, limit_threads  # noqa: E402  # as above
from securefl.training.models import build  # noqa: E402  # as above
from securefl.training.shared import SecretParticipation  # noqa: E402  # as above

CLIENTS, RECORDS, BATCH, RATE = 100, 60, 20, 0.1
CORRUPT, DROPPED = 5, 10
CLIP_NORM, NOISE_MULTIPLIER, DELTA = 0.3, 1.0, 1e-5
MODELS, GRAPHS = ("cnn26k", "mlp"), ("secagg+", "complete")
# Added share of the plain round at most, for the row that has a target.
TARGETS = {("cnn26k", "secagg+"): 0.50}


def scheme_of(graph: str) -> SecAggScheme:
    """How the sums are formed: SecAgg+ with calculated numbers, or SecAgg's complete graph."""
    threat = ThreatModel(corrupt=CORRUPT, dropped=DROPPED)
    if graph == "complete":
        return SecAggScheme(params=SecAggParams.complete(CLIENTS, threat))
    found = parameters(CLIENTS, threat)
    return SecAggScheme(params=SecAggParams.harary(CLIENTS, threat, k=found.k, t=found.t))


class Rounds:
    """The two kinds of round over one cohort.

    Args:
        name: of the model.
        graph: of the private round.
        folder: for its ledger.
    """

    def __init__(self, name: str, graph: str, folder: Path) -> None:
        self.model = FlatModel(build(name, input_shape=(1, 28, 28), classes=10, seed=0))
        self.scheme = scheme_of(graph)
        self.spec = NoisySpec.plan(
            dimension=self.model.dim,
            clip_norm=CLIP_NORM,
            noise_multiplier=NOISE_MULTIPLIER,
            honest_shares=self.scheme.n_min - CORRUPT,
            max_clients=CLIENTS,
            units=CLIENTS,
            contribution=Contribution.CLIENT,
        )
        self.budget = self._budget(folder)
        self.participants = self._participants()
        self.optimiser = ServerOptimiser.sgd(self.model.dim, learning_rate=1.0)
        self.start = self.model.vector()
        self.plan = DropPlan(seed=0, per_round=0)
        self.count = 0

    def _participants(self) -> dict[ClientId, Participant]:
        rng = np.random.default_rng(0)
        participants = {}
        for client in map(ClientId, range(CLIENTS)):
            local = LocalSGD(
                model=self.model,
                x=rng.standard_normal((RECORDS, 1, 28, 28), dtype=np.float32),
                y=rng.integers(0, 10, RECORDS),
                client=client,
                learning_rate=RATE,
                batch_size=BATCH,
                epochs=1,
                weight=1,
            )
            trainer = SecretParticipation(
                trainer=local, dimension=self.model.dim, client=client, sample_rate=1.0
            )
            participants[client] = Participant(client=client, trainer=trainer)
        return participants

    def _budget(self, folder: Path) -> PopulationBudget:
        """A ledger with room for every round that could be measured."""
        release = SharedRelease(
            mechanism=self.spec.event,
            sample_rate=1.0,
            delta_slack=self.spec.delta_slack,
            fewest=self.scheme.n_min,
            colluding=CORRUPT,
        )
        whole = accounting.Repeat(event=release.event(release.fewest), count=1000)
        header = accounting.LedgerHeader(
            population="benchmark",
            unit=accounting.Unit.CLIENT,
            adjacency=accounting.Adjacency.ZERO_OUT,
            epsilon=1e6,
            delta=DELTA,
            delta_reserve=2000 * self.spec.delta_slack,
            order=2.0,
            plan=accounting.digest(whole),
        )
        return PopulationBudget.open(folder / "population.sqlite", header=header, release=release)

    def plain(self) -> RoundOutcome:
        """Training and a mean in float64."""
        self.count += 1
        return float_round(
            round_index=self.count,
            vector=self.start,
            participants=self.participants,
            plan=self.plan,
            threshold=self.scheme.n_min,
            weighted=False,
            optimiser=self.optimiser,
        )

    def private(self) -> RoundOutcome:
        """The same training, noise, the machines, the ledger."""
        self.count += 1
        return private_round(
            round_index=self.count,
            vector=self.start,
            participants=self.participants,
            scheme=self.scheme,
            codec=NoisyCodec(self.spec),
            optimiser=self.optimiser,
            transport=ProtocolTransport(plan=self.plan, protocol=self.scheme.name),
            population=self.budget,
            denominator=float(CLIENTS),
        )


def timed(one_round: Callable[[], RoundOutcome], rounds: int) -> tuple[float, dict[str, float]]:
    """Mean CPU seconds of a round, and by stage."""
    stages: dict[str, float] = {}
    begin = time.process_time()
    for _ in range(rounds):
        outcome = one_round()
        if outcome.status is not RoundStatus.OK:
            raise SystemExit(f"a round ended with {outcome.status}: nothing was measured")
        for stage, seconds in outcome.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds / rounds
    return (time.process_time() - begin) / rounds, stages


def measure(name: str, graph: str, *, rounds: int, pairs: int) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        both = Rounds(name, graph, Path(folder))
        both.plain(), both.private()
        plain, private, by_stage = [], [], []
        for _ in range(pairs):
            plain.append(timed(both.plain, rounds)[0])
            seconds, stages = timed(both.private, rounds)
            private.append(seconds)
            by_stage.append(stages)
        both.budget.close()
    adds = [b / a - 1.0 for a, b in zip(plain, private, strict=True)]
    params = both.scheme.params
    row: dict[str, Any] = {
        "model": name,
        "graph": graph,
        "parameters": both.model.dim,
        "entries": both.spec.length,
        "bits": both.spec.bits,
        "degree": params.k,
        "threshold": params.t,
        "plain": plain,
        "private": private,
        "stages": {s: float(np.median([one[s] for one in by_stage])) for s in by_stage[0]},
        "adds": adds,
        "adds_median": float(np.median(adds)),
    }
    target = TARGETS.get((name, graph))
    if target is not None:
        row |= {"target": target, "met": row["adds_median"] <= target}
    return row


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    stages = dict(row["stages"])
    stages["secure sum"] = stages.pop("protocol")
    rest = ", ".join(f"{name} {seconds:.3f}" for name, seconds in stages.items())
    verdict = ""
    if "target" in row:
        verdict = f", target {row['target']:.0%}: {'met' if row['met'] else 'MISSED'}"
    least, most = min(row["adds"]), max(row["adds"])
    return (
        f"{row['model']:7} {row['graph']:8} k={row['degree']:<3} t={row['threshold']:<3} "
        f"{row['entries']:,} x {row['bits']} bits: plain {np.median(row['plain']):.3f}, "
        f"private {np.median(row['private']):.3f} CPU s, adds {row['adds_median']:.1%} "
        f"({least:.1%} - {most:.1%}){verdict}\n    of the private round: {rest}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=GRAPHS)
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each kind")
    parser.add_argument("--rounds", type=int, default=2, help="rounds per measurement")
    parser.add_argument("--json", action="store_true", help="print JSON")
    wanted = parser.parse_args()
    limit_threads()
    rows = []
    for name in wanted.models:
        for graph in wanted.graphs:
            rows.append(measure(name, graph, rounds=wanted.rounds, pairs=wanted.pairs))
            if not wanted.json:
                print(line(rows[-1]), flush=True)
    if wanted.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
