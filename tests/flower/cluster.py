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
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securefl.primitives.identities import Roster, create_identity

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
BIN = Path(sys.executable).parent
RUN_SECONDS = 400


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Recorder:
    """Passes connections on to a port and keeps what went through."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._streams: list[bytearray] = []
        self._upward: list[bytearray] = []
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                link = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, link}
            for ends in ((client, link, True), (link, client, False)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, upward: bool) -> None:
        stream = bytearray()
        with self._lock:
            self._streams.append(stream)
            if upward:
                self._upward.append(stream)
        try:
            while chunk := source.recv(1 << 16):
                stream += chunk
                sink.sendall(chunk)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def traffic(self) -> list[bytes]:
        """Each connection's bytes, one entry per direction."""
        with self._lock:
            return [bytes(stream) for stream in self._streams]

    def totals(self) -> tuple[int, int]:
        """Bytes from the nodes, bytes to them."""
        with self._lock:
            up = sum(map(len, self._upward))
            return up, sum(map(len, self._streams)) - up

    def clear(self) -> None:
        with self._lock:
            for stream in self._streams:
                stream.clear()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            for one in self._sockets:
                one.close()


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
    last: Outcome

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
            f'address = "127.0.0.1:{self.link_port}"\ninsecure = true\n'
        )
        public = [create_identity(folder / f"node{i}", name=f"node-{i}") for i in range(nodes)]
        self.roster = Roster.build(public)
        (folder / "roster.json").write_text(json.dumps(self.roster.to_json()))
        for i in range(nodes):
            self.write_policy(i)

    def write_policy(self, i: int, floor: str = "") -> None:
        (self.folder / f"node{i}" / "node.toml").write_text(
            'schema = "securefl-node/1"\nidentity = "identity.pem"\nroster = "../roster.json"\n'
            f'journal = "node.sqlite"\n[floor]\n{floor}\n'
        )

    def start(self) -> None:
        self._start(
            "link", "flower-superlink", "--insecure", "--host", "127.0.0.1",
            "--port", str(self.link_port), "--disable-runtime-dependency-installation",
        )  # fmt: skip
        self._wait_for_port(self.link_port)
        for i in range(self.count):
            self.start_node(i)

    def start_node(self, i: int) -> None:
        policy = self.folder / f"node{i}" / "node.toml"
        config = f'partition-id={i} num-partitions={self.count} securefl="{policy}"'
        self._start(
            f"node{i}", "flower-supernode", "--insecure",
            "--superlink", f"127.0.0.1:{self.recorder.port}",
            "--port", str(free_port()), "--node-config", config,
        )  # fmt: skip

    def _start(self, name: str, *command: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self._processes[name] = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=self._environment,
            start_new_session=True, cwd=self.folder,
        )  # fmt: skip
        log.close()

    def _wait_for_port(self, port: int) -> None:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.1)
        raise AssertionError(f"nothing listens on {port}: {self.log('link')}")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def end(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends one process with everything it has started."""
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)

    def stop(self) -> None:
        for name in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._processes[name].pid, signal.SIGTERM)
        for name in list(self._processes):
            self.end(name)
        self.recorder.close()

    def begin(self, app: Path | None = None, **config: Any) -> subprocess.Popen[bytes]:
        """Submits a run and returns at once; see :meth:`finish`."""
        self._runs += 1
        folder = self.folder / f"run{self._runs}"
        shutil.copytree(HERE / "app" if app is None else app, folder / "app")
        shutil.copy(REPOSITORY / "LICENSE", folder / "app" / "LICENSE")
        self._marks = [len(self.log(f"node{i}")) for i in range(self.count)]
        fields = config if app else {"result": str(folder / "result.json")} | config
        text = " ".join(f"{key}={json.dumps(value)}" for key, value in fields.items())
        with (folder / "run.log").open("wb") as log:
            return subprocess.Popen(
                ["flwr", "run", ".", "dep", "--stream", "--run-config", text],
                cwd=folder / "app", env=self._environment, start_new_session=True,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def finish(self, process: subprocess.Popen[bytes]) -> Outcome:
        folder = self.folder / f"run{self._runs}"
        try:
            process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)
        log = (folder / "run.log").read_text(errors="replace")
        result = folder / "result.json"
        found = json.loads(result.read_text()) if result.exists() else {}
        started = re.search(r"started run (\d+)", log)
        assert started is not None, log
        return Outcome(status=self.status(started.group(1)), result=found, log=log)

    def status(self, run_id: str) -> str:
        """Of this run. ``flwr run --stream`` exits with 0 also if the run failed."""
        for _ in range(20):
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
            if status.startswith("finished"):
                break
            time.sleep(1)
        return status

    def run(self, app: Path | None = None, **config: Any) -> Outcome:
        return self.finish(self.begin(app, **config))

    def wait_for_phase(self, phase: str, server_round: int, seconds: float = 200) -> None:
        """Until a message of this phase of the run that began last has reached some node."""
        mark = f"ROUND {server_round}.{phase}]"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if any(mark in self.log(f"node{i}")[self._marks[i] :] for i in range(self.count)):
                return
            time.sleep(0.2)
        raise AssertionError(f"no node got {mark}")


@contextmanager
def cluster(folder: Path, nodes: int) -> Iterator[Cluster]:
    made = Cluster(folder, nodes)
    try:
        made.start()
        yield made
    finally:
        made.stop()
