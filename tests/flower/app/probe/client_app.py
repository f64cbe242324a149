"""A client that trains in a known way, and fails when the run's configuration says so."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from probe.task import delta, examples
from securefl.flower import SecureClientApp

# Where the test puts files for this node; nowhere while the module is only looked at.
NODE = Path(os.environ.get("PROBE_NODE", os.devnull))
if (NODE / "without-module").exists():
    raise ModuleNotFoundError("No module named 'securefl'")

# Spelled backwards, because this file travels over the recorded wire itself.
SECRET = "dohpaZ-dellac-tneitap-a"[::-1]
Trouble = type("rorrEdiulF"[::-1], (RuntimeError,), {})


class _Either(SecureClientApp):
    """The secure app, or Flower's own where a test wants to see what that does."""

    def __call__(self, message: Message, context: Context) -> Message:
        if context.run_config["plain"]:
            return ClientApp.__call__(self, message, context)
        return super().__call__(message, context)


app = _Either()


def _faults(context: Context, partition: int, server_round: int) -> list[str]:
    text = str(context.run_config["faults"])
    parts = [part.split() for part in text.split(",") if part.strip()]
    return [what for what, p, r in parts if (int(p), int(r)) == (partition, server_round)]


@app.train()
def train(msg: Message, context: Context) -> Message:
    partition = int(context.node_config["partition-id"])
    config: Any = msg.content["config"]
    server_round = int(config["server-round"])
    for fault in _faults(context, partition, server_round):
        if fault == "raise":
            raise Trouble(f"record 17 is {SECRET}")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "exit":
            sys.exit(1)
        if fault == "slow":
            time.sleep(75)
        if fault == "hold":
            while not (NODE / "go").exists():
                time.sleep(0.1)
        if fault == "full":
            # From here on this process can write no file beyond 1 KiB: a disk without room.
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, most))
    arrays: Any = msg.content["arrays"]
    found = ArrayRecord({"w": Array(arrays["w"].numpy() + delta(partition, server_round))})
    metrics = MetricRecord({"num-examples": examples(partition), SECRET: 424242.125})
    return Message(RecordDict({"arrays": found, "metrics": metrics}), reply_to=msg)
