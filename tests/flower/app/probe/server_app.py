"""A ServerApp as in any Flower app, plus the lies that tests ask for."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from probe.lies import Liar
from probe.task import initial
from securefl.flower import SecAggConfig, SecureGrid

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    Path(str(config["result"]) + ".pid").write_text(str(os.getpid()))
    liar = Liar(grid, str(config["lies"]).split()) if config["lies"] else None
    needed = int(config["needed"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=needed, min_available_nodes=needed)
    wait_for(grid, int(config["nodes"]))
    secure = SecureGrid(grid, strategy, SecAggConfig.from_run_config(config))
    models = []

    def keep(server_round: int, arrays: ArrayRecord) -> None:
        models.append(arrays["w"].numpy().tolist())

    try:
        strategy.start(
            grid=secure,
            initial_arrays=ArrayRecord({"w": Array(initial())}),
            num_rounds=int(config["num-server-rounds"]),
            evaluate_fn=keep,
        )
        if liar is not None:
            liar.wait(90)
    finally:
        history = [
            {
                "survivors": record.survivors,
                "cohort": record.cohort,
                "refusals": dict(record.refusals),
                "failures": dict(record.failures),
                "seconds": record.seconds,
                "lost": record.lost,
            }
            for record in secure.history
        ]
        answers = [] if liar is None else liar.answers
        content = json.dumps({"models": models, "history": history, "answers": answers})
        Path(str(config["result"])).write_text(content)


def wait_for(grid: Grid, count: int) -> None:
    """Until exactly so many nodes are there, so that a test knows who is in its first cohort.

    A SuperNode that was killed counts for about a minute longer.
    """
    while len(list(grid.get_node_ids())) != count:
        time.sleep(0.5)
