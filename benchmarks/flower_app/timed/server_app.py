"""The same strategy on Flower's grid or on a SecureGrid, with a clock."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from securefl.flower import SecAggConfig, SecureGrid

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Some rounds; the result is a JSON file."""
    run = context.run_config
    nodes = int(run["nodes"])
    while len(list(grid.get_node_ids())) < nodes:
        time.sleep(0.5)
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    used: Any = grid
    if not run["plain"]:
        used = SecureGrid(grid, strategy, SecAggConfig.from_run_config(run))
    groups: list[str] = []
    honest = grid.push_messages

    def push(messages: Any) -> Any:
        given = list(messages)
        groups.extend({message.metadata.group_id for message in given})
        return honest(given)

    grid.push_messages = push  # type: ignore[method-assign]  # notes the group ids on the way
    ends: list[float] = []
    last: list[float] = []

    def keep(server_round: int, arrays: ArrayRecord) -> None:
        ends.append(time.monotonic())
        last[:] = [float(arrays["w"].numpy().mean())]

    start = ArrayRecord({"w": Array(np.zeros(int(run["numbers"]), dtype=np.float32))})
    rounds = int(run["num-server-rounds"])
    strategy.start(grid=used, initial_arrays=start, num_rounds=rounds, evaluate_fn=keep)
    found = {
        "seconds": [after - before for before, after in itertools.pairwise(ends)],
        "groups": groups,
        "mean": last[0],
        "rounds": rounds,
    }
    Path(str(run["result"])).write_text(json.dumps(found))
