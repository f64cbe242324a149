"""Local training: what a simulated round of federated averaging costs, beside pfl-research.

    python benchmarks/training.py [--peer PYTHON] [--rounds N] [--pairs N] [--json]

The task: 1,000 clients of 60 records of 28 x 28 pixels (noise and random labels: the time does not
depend on them), a cohort of 100 drawn each round, one epoch of SGD at rate .1 in batches of 20, the
mean of the updates applied by the server. No evaluation, no protocol, no privacy, one process, one
thread. Printed are CPU seconds per round, and with a peer the ratio peer/ours.

PYTHON is an interpreter that has pfl-research (``pip install "pfl[pytorch]==0.6.0"``, in a virtual
environment of its own), with the same version of torch. It is started once per model and waits
while ours runs: ours and theirs take turns, a round of each to warm up. What is different: ours
shuffles a client's records each round and keeps the mean training loss; the peer cuts the batches
once, in stored order, and keeps counts. Without a peer only ours is measured. Set
OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CLIENTS, RECORDS, COHORT, BATCH, RATE = 1000, 60, 100, 20, 0.1
MODELS = ("mlp", "cnn26k")
Round = Callable[[], None]


def records() -> tuple[Any, Any]:
    """The same public noise for both: float32[clients, records, 1, 28, 28] and int64 labels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((CLIENTS, RECORDS, 1, 28, 28), dtype=np.float32)
    return x, rng.integers(0, 10, (CLIENTS, RECORDS))


def ours(name: str) -> Round:
    """A round of ours: ``LocalSGD`` for each client of the cohort on one flat model."""
    from securefl.training.local import FlatModel, LocalSGD, limit_threads
    from securefl.training.models import build

    limit_threads()
    x, y = records()
    model = FlatModel(build(name, input_shape=(1, 28, 28), classes=10, seed=0))
    state = {"vector": model.vector(), "round": 0}
    rng = np.random.default_rng(1)

    def one_round() -> None:
        total = np.zeros(model.dim, dtype=np.float32)
        for client in rng.choice(CLIENTS, COHORT, replace=False):
            trainer = LocalSGD(
                model=model,
                x=x[client],
                y=y[client],
                client=int(client),
                learning_rate=RATE,
                batch_size=BATCH,
                epochs=1,
            )
            total += trainer.train(state["vector"], round_index=state["round"]).values
        state["vector"] = state["vector"] + total / np.float32(COHORT)
        state["round"] += 1

    return one_round


def theirs(name: str) -> Round:
    """A round of pfl-research's ``FederatedAveraging`` on its ``SimulatedBackend``."""
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    torch.set_num_threads(1)
    x, y = records()
    tensors = [
        PyTorchTensorDataset((torch.from_numpy(a), torch.from_numpy(b)), user_id=str(i))
        for i, (a, b) in enumerate(zip(x, y, strict=True))
    ]
    sampler = get_user_sampler("random", list(range(CLIENTS)))
    data = FederatedDataset(lambda user: tensors[user], sampler)
    network = peer_network(name)
    model = PyTorchModel(
        network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    backend = SimulatedBackend(training_data=data, val_data=data)
    settings = NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH
    )
    algorithm = FederatedAveraging()
    done = 0

    def one_round() -> None:
        nonlocal done
        done += 1
        plan = NNAlgorithmParams(
            central_num_iterations=done,
            evaluation_frequency=1 << 40,  # the first round evaluates; it is the warm-up
            train_cohort_size=COHORT,
            val_cohort_size=0,
        )
        algorithm.run(plan, backend, model, settings, send_metrics_to_platform=False)

    return one_round


def peer_network(name: str) -> Any:
    """The same architecture, with the methods that pfl-research expects of a network."""
    import torch
    from torch import nn

    class Network(nn.Sequential):
        def loss(self, x: Any, y: Any, eval: bool = False) -> Any:  # noqa: A002  # theirs
            self.train(not eval)
            return nn.functional.cross_entropy(self(x), y)

        @torch.no_grad()
        def metrics(self, x: Any, y: Any, eval: bool = False) -> dict[str, Any]:  # noqa: A002  # as above
            return {}

    if name == "mlp":
        return Network(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    return Network(
        *(nn.Conv2d(1, 16, kernel_size=8, stride=2, padding=3), nn.ReLU()),
        nn.MaxPool2d(2, stride=1),
        *(nn.Conv2d(16, 32, kernel_size=4, stride=2), nn.ReLU()),
        *(nn.MaxPool2d(2, stride=1), nn.Flatten()),
        *(nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def timed(one_round: Round, rounds: int) -> float:
    """Mean CPU seconds of a round, all threads of this process."""
    begin = time.process_time()
    for _ in range(rounds):
        one_round()
    return (time.process_time() - begin) / rounds


def answer(name: str) -> None:
    """The peer's process: a number of rounds per line in, CPU seconds per round out."""
    import pfl
    import torch

    one_round = theirs(name)
    one_round()
    print(json.dumps({"pfl": pfl.__version__, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        print(timed(one_round, int(line)), flush=True)


class Peer:
    """The peer's process of one model."""

    def __init__(self, python: Path, name: str) -> None:
        self.process = subprocess.Popen(
            [python, Path(__file__).resolve(), "--as-peer", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions: dict[str, str] = json.loads(self._line())

    def measure(self, rounds: int) -> float:
        """CPU seconds per round."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{rounds}\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("the peer ended without an answer; does its interpreter have pfl and torch?")
        return line


def compare(name: str, python: Path | None, *, rounds: int, pairs: int) -> dict[str, Any]:
    """CPU seconds per round, ours and theirs in turns, and the ratio of their medians."""
    mine = ours(name)
    mine()
    peer = None if python is None else Peer(python, name)
    rows: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(pairs):
        rows["ours"].append(timed(mine, rounds))
        if peer is not None:
            rows["peer"].append(peer.measure(rounds))
    found: dict[str, Any] = {"model": name, "ours": rows["ours"]}
    if peer is not None:
        peer.close()
        ratio = float(np.median(rows["peer"]) / np.median(rows["ours"]))
        found |= {"peer": rows["peer"], "versions": peer.versions, "ratio": ratio}
    return found


def lines(found: list[dict[str, Any]]) -> list[str]:
    """The result as a table."""
    text = [
        f"{CLIENTS} clients x {RECORDS} records, cohort {COHORT}, one epoch, batches of {BATCH}; "
        "CPU s per round, median (least - most)"
    ]
    for row in found:
        parts = [f"{row['model']:8}"]
        for who in ("ours", "peer"):
            if who in row:
                least, middle, most = np.quantile(row[who], (0, 0.5, 1))
                parts.append(f"{who} {middle:.3f} ({least:.3f} - {most:.3f})")
        if "ratio" in row:
            parts.append(f"peer/ours {row['ratio']:.2f}  pfl {row['versions']['pfl']}")
        text.append("   ".join(parts))
    if not any("ratio" in row for row in found):
        text.append("no peer: give --peer PYTHON, an interpreter that has pfl-research")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="an interpreter with pfl")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per measurement")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--as-peer", choices=MODELS, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.as_peer:
        answer(wanted.as_peer)
        return
    found = [
        compare(name, wanted.peer, rounds=wanted.rounds, pairs=wanted.pairs)
        for name in wanted.models
    ]
    print(json.dumps(found, indent=2) if wanted.json else "\n".join(lines(found)))


if __name__ == "__main__":
    main()
