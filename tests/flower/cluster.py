"""A SuperLink and its SuperNodes as real processes on 127.0.0.1, with an ear on their wire.

Every process is started in a group of its own, and only these groups are ended. Between nodes and
SuperLink stands a proxy that records every byte in both directions. Ports are free ones.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flower_traffic import (
    LIMIT,
    Recorder,
    correlations,
    free_port,
    holds,
    masked_vectors,
    without,
)

from securefl.primitives.identities import Roster, create_identity

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
BIN = Path(sys.executable).parent
RUN_SECONDS = 900


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    status: str
    result: dict[str, Any]
    log: str


def module_at(name: str, path: Path) -> Any:
    """A module of an app, by its file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def probe_task() -> Any:
    """What the test app's two sides have in common."""
    return module_at("probe_task", HERE / "app" / "probe" / "task.py")


class Cluster:
    """Processes, their files, and the runs that are submitted to them."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.count = nodes
        self.link_port = free_port()
        self.recorder = Recorder(self.link_port)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._runs = 0
        self._environment = os.environ | {
            "FLWR_HOME": str(folder / ".flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
        }
        (folder / ".flwr").mkdir()
        (folder / ".flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "dep"\n[superlink.dep]\n'
            f'address = "127.0.0.1:{self.link_port}"\n{self._connection()}\n'
        )
        public = [create_identity(folder / f"node{i}", name=f"node-{i}") for i in range(nodes)]
        self.roster = Roster.build(public)
        (folder / "roster.json").write_text(json.dumps(self.roster.to_json()))
        for i in range(nodes):
            self.write_policy(i)

    def write_policy(self, i: int, floor: str = "", *, journal: str = "node.sqlite") -> None:
        (self.folder / f"node{i}" / "node.toml").write_text(
            'schema = "securefl-node/1"\nidentity = "identity.pem"\nroster = "../roster.json"\n'
            f'journal = "{journal}"\nledger = "node.ledger"\n[floor]\n{floor}\n'
        )

    def start(self) -> None:
        self.start_link()
        for i in range(self.count):
            self.start_node(i)

    # Plain HTTP, which loopback allows; a subclass has certificates.

    def _connection(self) -> str:
        return "insecure = true"

    def _link_flags(self) -> list[str]:
        return ["--insecure"]

    def _node_flags(self, i: int) -> list[str]:
        return ["--insecure"]

    def start_link(self) -> None:
        self._start(
            "link", "flower-superlink", *self._link_flags(), "--host", "127.0.0.1",
            "--port", str(self.link_port), "--disable-runtime-dependency-installation",
        )  # fmt: skip
        self._wait_for_port(self.link_port)

    def start_node(self, i: int, *, files_of: int | None = None) -> None:
        """A SuperNode for partition i, with its own node file or that of another one."""
        folder = self.folder / f"node{i if files_of is None else files_of}"
        config = f'partition-id={i} num-partitions={self.count} securefl="{folder / "node.toml"}"'
        self._start(
            f"node{i}", "flower-supernode", *self._node_flags(i),
            "--superlink", f"127.0.0.1:{self.recorder.port}",
            "--port", str(free_port()), "--node-config", config,
            PROBE_NODE=str(folder),
        )  # fmt: skip

    def _start(self, name: str, *command: str, **environment: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self._processes[name] = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=self._environment | environment,
            start_new_session=True, cwd=self.folder,
        )  # fmt: skip
        log.close()

    def _wait_for_port(self, port: int) -> None:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.1)
        raise AssertionError(f"nothing listens on {port}: {self.log('link')}")

    def listening(self) -> set[str]:
        """Addresses at which this cluster's processes accept connections; Linux only."""
        owned = set()
        for pid in self._ours():
            for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
                with contextlib.suppress(OSError):
                    owned.add(str(descriptor.readlink()))
        found = set()
        for table, family, size in (("tcp", socket.AF_INET, 8), ("tcp6", socket.AF_INET6, 32)):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in owned:
                    # Words of four bytes in the machine's order, which is little-endian here.
                    raw = bytes.fromhex(fields[1][:size])
                    words = [raw[i : i + 4][::-1] for i in range(0, len(raw), 4)]
                    found.add(socket.inet_ntop(family, b"".join(words)))
        return found

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def end(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends one process with everything it has started."""
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)

    def stop(self) -> None:
        for name in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._processes[name].pid, signal.SIGTERM)
        for name in list(self._processes):
            self.end(name)
        self._end_the_rest()
        self.recorder.close()

    def _end_the_rest(self) -> None:
        """What Flower detached from the groups above; it would end by itself after a while."""
        end = time.monotonic() + 15
        while (left := self._ours()) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        assert not left, f"processes {left} cannot be ended"

    def _ours(self) -> list[int]:
        """Living processes whose environment names this cluster's own folder; Linux only."""
        mark = f"FLWR_HOME={self.folder / '.flwr'}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def begin(self, app: Path | None = None, **config: Any) -> subprocess.Popen[bytes]:
        """Submits a run when all nodes are free, and returns at once; see :meth:`finish`."""
        self._wait_until_free()
        self._runs += 1
        folder = self.folder / f"run{self._runs}"
        shutil.copytree(HERE / "app" if app is None else app, folder / "app")
        shutil.copy(REPOSITORY / "LICENSE", folder / "app" / "LICENSE")
        self._marks = [len(self.log(f"node{i}")) for i in range(self.count)]
        fields = config if app else {"result": str(folder / "result.json")} | config
        self._declare(folder / "app" / "pyproject.toml", fields)
        text = " ".join(f"{key}={json.dumps(value)}" for key, value in fields.items())
        with (folder / "run.log").open("wb") as log:
            return subprocess.Popen(
                ["flwr", "run", ".", "dep", "--stream", "--run-config", text],
                cwd=folder / "app", env=self._environment, start_new_session=True,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @staticmethod
    def _declare(project: Path, fields: dict[str, Any]) -> None:
        """Flower takes keys that the app has; others go into its file, whose last table it is."""
        known = tomllib.loads(project.read_text())["tool"]["flwr"]["app"]["config"]
        with project.open("a") as file:
            for key in fields.keys() - known.keys():
                file.write(f"{key} = {json.dumps(fields[key])}\n")
        whole = tomllib.loads(project.read_text())["tool"]["flwr"]["app"]["config"]
        assert whole.keys() == known.keys() | fields.keys()

    def finish(self, process: subprocess.Popen[bytes], seconds: float = RUN_SECONDS) -> Outcome:
        folder = self.folder / f"run{self._runs}"
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)
        log = (folder / "run.log").read_text(errors="replace")
        result = folder / "result.json"
        found = json.loads(result.read_text()) if result.exists() else {}
        started = re.search(r"started run (\d+)", log)
        assert started is not None, log
        return Outcome(status=self.status(started.group(1)), result=found, log=log)

    def _wait_until_free(self, seconds: float = 150) -> None:
        """A node whose app was killed or is still at work would miss the next run's messages."""
        end = time.monotonic() + seconds
        for name in [name for name in self._processes if name != "link"]:
            while True:
                log = self.log(name).rpartition("Starting Flower SuperNode")[2]
                if log.count("Receiving: ") == log.count("Sending: "):
                    break
                assert time.monotonic() < end, f"{name} is still busy"
                time.sleep(0.2)

    def restart_node(self, i: int) -> None:
        """Ends a SuperNode in good order, which its SuperLink is told, and starts it anew."""
        self.end(f"node{i}")
        self.start_node(i)

    def forget(self, process: subprocess.Popen[bytes]) -> str:
        """Ends ``flwr run`` itself, whose SuperLink is gone; what it had printed."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
        return (self.folder / f"run{self._runs}" / "run.log").read_text(errors="replace")

    def server_app(self) -> int:
        """Process id of the test app's ServerApp in the run that began last."""
        return int((self.folder / f"run{self._runs}" / "result.json.pid").read_text())

    def heard(self, phase: str, server_round: int) -> int:
        """How many nodes got a message of this phase of the run that began last."""
        mark = f"ROUND {server_round}.{phase}]"
        return sum(mark in self.log(f"node{i}")[at:] for i, at in enumerate(self._marks))

    def wait_until_gone(self, pid: int, seconds: float = 60) -> None:
        """Until a process of this cluster has ended."""
        end = time.monotonic() + seconds
        while pid in self._ours():
            assert time.monotonic() < end, f"process {pid} is still there"
            time.sleep(0.2)

    def status(self, run_id: str) -> str:
        """Of this run. ``flwr run --stream`` exits with 0 also if the run failed."""
        end = time.monotonic() + 150
        while True:
            listed = subprocess.run(
                ["flwr", "ls", "dep", "--format", "json"],
                cwd=self.folder,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            runs = json.loads(listed.stdout)["runs"]
            status = next(str(run["status"]) for run in runs if str(run["run-id"]) == run_id)
            if status.startswith("finished") or time.monotonic() > end:
                return status
            time.sleep(1)

    def run(
        self, app: Path | None = None, *, seconds: float = RUN_SECONDS, **config: Any
    ) -> Outcome:
        return self.finish(self.begin(app, **config), seconds)

    def wait_for(self, name: str, pattern: str, *, since: int = 0, seconds: float = 200) -> None:
        """Until this stands in a process's log, from this character on."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.log(name)[since:], re.DOTALL):
            assert time.monotonic() < end, f"{name} never printed {pattern}"
            time.sleep(0.2)

    def wait_for_phase(self, phase: str, server_round: int, seconds: float = 200) -> None:
        """Until a message of this phase of the run that began last has reached some node."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.heard(phase, server_round):
                return
            time.sleep(0.2)
        raise AssertionError(f"no node got a message of {phase} in round {server_round}")


task = probe_task()


def active(site: Cluster, **more: Any) -> dict[str, Any]:
    """A run's configuration for sessions against a server that may lie."""
    return {"securefl-roster": str(site.folder / "roster.json")} | more


def assert_models(outcome: Outcome, survivors: list[list[int]]) -> None:
    """Each round's model is the weighted mean of exactly these clients, to quantisation.

    Nobody stands for a lost round, which leaves the model as it was.
    """
    assert outcome.status == "finished:completed", outcome.log
    models = [np.array(values) for values in outcome.result["models"]]
    assert len(models) == len(survivors) + 1
    assert np.array_equal(models[0], task.initial())
    # Clip norm 50, at least 2^16 steps per clip norm, and float32 on top.
    tolerance = 50 / (1 << 17) + 1e-6
    for number, partitions in enumerate(survivors, start=1):
        expected = models[number - 1].astype(np.float64)
        weights = {p: task.examples(p) for p in partitions}
        for p, weight in weights.items():
            expected = expected + weight / sum(weights.values()) * task.delta(p, number)
        assert np.abs(models[number] - expected).max() <= tolerance


def survivors_of(outcome: Outcome) -> list[list[int]]:
    """Partitions of each attempt's survivors: client i + 1 of the roster is partition i."""
    return [[client - 1 for client in one["survivors"]] for one in outcome.result["history"]]


def assert_nothing_leaks(site: Cluster, outcome: Outcome, *, inputs: int) -> None:
    """No client's update or model is in the recorded traffic, as it is or in any correlation.

    Args:
        site: whose wire was recorded during this run only.
        outcome: of the run.
        inputs: fewest masked vectors that must have gone over the wire.
    """
    models = [np.array(values, dtype=np.float32) for values in outcome.result["models"]]
    updates = [task.delta(p, r) for r in range(1, len(models)) for p in range(site.count)]
    locals_ = [models[i // site.count] + update for i, update in enumerate(updates)]
    up, down = site.recorder.up(), site.recorder.down()
    assert holds(down, models[0]), "control: the model itself goes over this wire"
    for secret in (*updates, *locals_):
        assert not holds(up + down, secret)
    for word in (b"Zaphod", b"FluidError", struct.pack("<d", 424242.125)):
        assert not any(word in stream for stream in up + down)
    masked = masked_vectors(up, length=task.LENGTH)
    assert len(masked) >= inputs
    wanted = np.stack([*updates, *locals_])
    # Both ends of a 2000-entry vector's ring: |rho| > 7/sqrt(2000) has probability below 1e-10.
    found = np.corrcoef(np.stack(masked), np.stack(updates))[: len(masked), len(masked) :]
    assert np.abs(found).max() < 7 / np.sqrt(task.LENGTH)
    assert correlations(up, wanted).max() < LIMIT
    # The published models, means of many, go down in clear and are taken out of the search. A lie
    # about the model changes its first number.
    known = [model[1:].tobytes() for model in models]
    assert correlations(without(down, known), wanted).max() < LIMIT


@contextmanager
def cluster(folder: Path, nodes: int, kind: type[Cluster] = Cluster) -> Iterator[Cluster]:
    """Started, and stopped at the end with all that it started."""
    made = kind(folder, nodes)
    try:
        made.start()
        yield made
    finally:
        made.stop()
