"""A ServerApp as in any Flower app, plus the lies that tests ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from probe.task import initial
from securefl.flower import SecAggConfig, SecureGrid

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    if config["lies"]:
        lie(grid, str(config["lies"]))
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
        content = json.dumps({"models": models, "history": history})
        Path(str(config["result"])).write_text(content)


def wait_for(grid: Grid, count: int) -> None:
    """Until so many nodes are there, so that a test knows who is in its first cohort."""
    import time

    while len(list(grid.get_node_ids())) < count:
        time.sleep(0.5)


def lie(grid: Any, what: str) -> None:
    """Makes the honest code's messages to the lowest node id dishonest on their way out."""
    honest = grid.push_messages
    victims: list[int] = []

    def push(messages: list[Message]) -> Any:
        victims.append(min(message.metadata.dst_node_id for message in messages))
        victim = victims[0]
        for message in messages:
            if message.metadata.dst_node_id == victim:
                LIES[what](message)
        return honest(messages)

    grid.push_messages = push


def _another_model(message: Message) -> None:
    if "securefl.arrays" in message.content:
        changed = initial()
        changed[0] += 1.0
        message.content["securefl.arrays"] = ArrayRecord({"w": Array(changed)})


def _in_clear(message: Message) -> None:
    if message.metadata.message_type == "train.securefl":
        message.metadata.message_type = "train"
        arrays = ArrayRecord({"w": Array(np.asarray(initial()))})
        message.content["arrays"] = arrays
        message.content["config"] = ConfigRecord({"server-round": 1})


LIES = {"another-model": _another_model, "in-clear": _in_clear}
