"""What secure aggregation adds to a round of a Flower app: messages, bytes and processor time.

    python benchmarks/flower.py [--json FILE] [--quick]

The same app (a training function that returns a model of d float32 numbers at once), the same
strategy (FedAvg), plain and secure, through a grid in this process that copies every message and
keeps every node's state. Measured per round: messages per node, bytes of message contents per node
as Flower counts them, and CPU seconds of the process, split by where they are spent (all nodes
together, server). Left out on both sides: the network, Flower's serialisation, the start of a
process per message. On Flower's deployment engine a message takes five to nine seconds whatever is
in it, so there the number of messages is the cost; tests/flower/test_processes.py runs that. The
protocol itself against Flower's own SecAgg is in benchmarks/secure_aggregation.py.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# A program's own folder comes first on the path, and with it benchmarks/accounting.py.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]

import numpy as np  # noqa: E402  # after the path is right

ROUNDS = 3
SIZES = [(6, 10_000), (6, 100_000), (20, 100_000), (20, 1_000_000)]
UPLOAD_TARGET = 0.51  # of Flower's own SecAgg, which sends 8 bytes per number


def run(n: int, d: int, kind: str, folder: Path) -> dict[str, Any]:
    """One setting: "plain", "semi-honest" or "active"."""
    from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg
    from flwr.supercore.task_identity import TaskIdentity

    from securefl.flower import SecAggConfig, SecureClientApp, SecureGrid
    from securefl.flower.records import content_bytes
    from securefl.primitives.identities import Roster, create_identity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    update = np.random.default_rng(0).normal(size=d).astype(np.float32) / np.float32(d**0.5)
    app = ClientApp() if kind == "plain" else SecureClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays: Any = message.content["arrays"]
        new = ArrayRecord({"w": Array(arrays["w"].numpy() + update)})
        content = RecordDict({"arrays": new, "metrics": MetricRecord({"num-examples": 10})})
        return Message(content, reply_to=message)

    class Memory(Grid):
        def __init__(self) -> None:
            self.states = {node: RecordDict() for node in range(n)}
            self.replies: dict[str, Message] = {}
            self.ids = itertools.count()
            self.client_seconds = 0.0
            self.seconds = 0.0
            self.up = self.down = self.messages = 0

        @property
        def run(self) -> Any:
            return SimpleNamespace(run_id=1)

        def set_run(self, run: Any) -> None:
            raise NotImplementedError

        def create_message(self, *args: Any, **kwargs: Any) -> Message:
            return Message(*args, **kwargs)

        def get_node_ids(self) -> Iterable[int]:
            return list(self.states)

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            begin = time.process_time()
            ids = [self._push(message) for message in messages]
            self.seconds += time.process_time() - begin
            return ids

        def _push(self, message: Message) -> str:
            name, node = f"m{next(self.ids)}", message.metadata.dst_node_id
            sent = copy.deepcopy(message)
            sent.metadata.__dict__["_message_id"] = name
            self.messages += 1
            self.down += content_bytes(sent.content)
            policy = {"securefl": str(folder / str(node) / "node.toml")}
            context = Context(1, node, policy, copy.deepcopy(self.states[node]), {})
            begin = time.process_time()
            reply = app(sent, context)
            self.client_seconds += time.process_time() - begin
            if reply.has_error():
                raise RuntimeError(f"a node refused: {reply.error.reason}")
            self.up += content_bytes(reply.content)
            self.states[node] = context.state
            self.replies[name] = copy.deepcopy(reply)
            return name

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return [self.replies.pop(one) for one in message_ids if one in self.replies]

        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            return self.pull_messages(self.push_messages(messages))

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=n, min_available_nodes=n)
    memory = Memory()
    grid: Grid = memory
    if kind != "plain":
        public = [create_identity(folder / str(node), name=f"n{node:04}") for node in range(n)]
        roster = Roster.build(public)
        for node in range(n):
            (folder / str(node) / "roster.json").write_text(json.dumps(roster.to_json()))
            (folder / str(node) / "node.toml").write_text(
                'schema = "securefl-node/1"\nidentity = "identity.pem"\nroster = "roster.json"\n'
                f'journal = "node.sqlite"\n[floor]\nadversary = "{kind}"\n'
            )
        settings = SecAggConfig(clip_norm=10.0, max_weight=10, adversary=kind, roster=roster)
        grid = SecureGrid(memory, strategy, settings)
    begin = time.process_time()
    arrays = ArrayRecord({"w": Array(np.zeros(d, dtype=np.float32))})
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=ROUNDS)
    total = time.process_time() - begin
    error = float(np.abs(result.arrays["w"].numpy() - ROUNDS * update).max())
    return {
        "n": n,
        "d": d,
        "kind": kind,
        "messages_per_node_and_round": memory.messages / n / ROUNDS,
        "bytes_up": round(memory.up / n / ROUNDS),
        "bytes_down": round(memory.down / n / ROUNDS),
        "node_cpu_s": memory.client_seconds / n / ROUNDS,
        "server_cpu_s": (total - memory.seconds) / ROUNDS,
        "error": error,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes only")
    options = parser.parse_args()
    if util.find_spec("flwr") is None:
        print("Flower is not installed: pip install 'securefl[flower]'")
        return 0
    logging.disable(logging.CRITICAL)
    rows = []
    print(f"{'':>4} {'':>9} {'':>12} {'messages':>9} {'kB up':>9} {'kB down':>9} "
          f"{'node s':>8} {'server s':>9} {'max error':>10}")  # fmt: skip
    for n, d in SIZES[: 2 if options.quick else None]:
        for kind in ("plain", "semi-honest", "active"):
            with tempfile.TemporaryDirectory() as folder:
                row = run(n, d, kind, Path(folder))
            rows.append(row)
            print(
                f"{n:>4} {d:>9} {kind:>12} {row['messages_per_node_and_round']:>9.2f} "
                f"{row['bytes_up'] / 1e3:>9.1f} {row['bytes_down'] / 1e3:>9.1f} "
                f"{row['node_cpu_s']:>8.3f} {row['server_cpu_s']:>9.3f} {row['error']:>10.1e}"
            )
    largest = rows[-1]
    share = largest["bytes_up"] / (8 * largest["d"])
    met = share <= UPLOAD_TARGET
    print(f"upload against 8 bytes per number: {share:.3f} (target {UPLOAD_TARGET}, "
          f"{'met' if met else 'MISSED'})")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "upload_share": share}, indent=2))
    return 0 if met and all(row["error"] < 1e-2 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
