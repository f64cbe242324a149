"""A round under a threshold key on real processes: four nodes with data, three of four holders.

One holder keeps its share in a process of its own, one is never there, and one client's training
fails; the others open the exact mean of three. Long: every message meets a new process.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

import numpy as np
from flower_cluster import REPOSITORY, Cluster, probe_task
from flower_holders import IN_APP, NEEDED, threshold_key

from securefl.primitives.paillier import files as key_files

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
task = probe_task()

CLIENTS, HOLDERS = 4, 4
AWAY, APART = 7, 4
"""The holder that is never started, and the one with a process of its own."""


class PaillierCluster(Cluster):
    """Nodes 0 to 3 have data, 4 to 7 hold shares."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, CLIENTS + HOLDERS)
        self.write_setup(folder / "server")
        for node, share in zip(range(CLIENTS, self.count), threshold_key(2048)[1], strict=True):
            path = folder / f"node{node}" / "my.share"
            key_files.write_secret(path, share.to_secret_bytes())

    def write_setup(self, home: Path) -> None:
        home.mkdir(exist_ok=True)
        key_files.write_public(home / "key.public", threshold_key(2048)[0].to_bytes())
        names = [f"node-{node}" for node in range(CLIENTS, self.count)]
        (home / "paillier.toml").write_text(
            f'schema = "securefl-paillier/1"\nkey = "key.public"\nshare_holders = {names}\n'
        )

    def write_policy(self, i: int, floor: str = "") -> None:
        super().write_policy(i, 'protocols = ["paillier-threshold"]\n' + floor)
        home = self.folder / f"node{i}"
        if not (home / "paillier.toml").exists():
            self.write_setup(home)
        section = '[paillier]\nsetup = "paillier.toml"\n'
        if i >= CLIENTS:
            section += 'share = "my.share"\nbook = "book.sqlite"\n'
        if i >= CLIENTS and i != APART:
            section += f'in_app = "{IN_APP}"\n'
        path = home / "node.toml"
        path.write_text(path.read_text() + section)
        if i == APART:
            path.rename(home / "holder.toml")
            path.write_text('schema = "securefl-node/1"\n[paillier]\nsocket = "holder.sock"\n')

    def start_node(self, i: int) -> None:
        if i == AWAY:
            (self.folder / f"node{i}.log").touch()
        else:
            super().start_node(i)


@contextmanager
def holders_process(home: Path) -> Iterator[None]:
    """``python -m securefl.flower hold``, until it has removed its socket again."""
    command = [sys.executable, "-m", "securefl.flower", "hold"]
    with (
        (home / "holder.log").open("wb") as log,
        subprocess.Popen(
            [*command, str(home / "holder.toml"), "--socket", str(home / "holder.sock")],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert "a share holder (id 5) of key" in process.stdout.readline()
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    assert not (home / "holder.sock").exists()


def test_holders_on_real_supernodes_open_the_exact_mean_of_those_who_came(tmp_path: Path) -> None:
    site = PaillierCluster(tmp_path)
    with holders_process(tmp_path / f"node{APART}"):
        try:
            site.start()
            outcome = site.run(
                nodes=CLIENTS + HOLDERS - 1,
                needed=CLIENTS,
                faults="raise 2 1",
                **{
                    "securefl-roster": str(tmp_path / "roster.json"),
                    "securefl-protocol": "paillier-threshold",
                    "securefl-paillier": str(tmp_path / "server" / "paillier.toml"),
                },
            )
        finally:
            site.stop()
    assert outcome.status == "finished:completed", outcome.log
    (history,) = outcome.result["history"]
    assert history["refusals"] == {"E301": 1}
    assert history["survivors"] == [1, 2, 4]
    weights = {p: task.examples(p) for p in (0, 1, 3)}
    mean = sum(w * task.delta(p, 1).astype(np.float64) for p, w in weights.items())
    expected = task.initial().astype(np.float64) + mean / sum(weights.values())
    # Clip norm 50, at least 2^16 steps per clip norm, and float32 on top.
    assert np.abs(np.array(outcome.result["models"][1]) - expected).max() <= 50 / (1 << 17) + 1e-6
    streams = site.recorder.traffic()
    assert any(task.initial().tobytes()[:256] in stream for stream in streams), "control: the model"
    for partition in range(CLIENTS):
        update = task.delta(partition, 1)
        for secret in (update, task.initial() + update):
            assert not any(secret[:8].tobytes() in stream for stream in streams)
    for share in threshold_key(2048)[1]:
        assert not any(share.to_secret_bytes()[40:72] in stream for stream in streams)
    assert "Zaphod" not in outcome.log
    assert sum(opened(site, i) for i in range(CLIENTS, CLIENTS + HOLDERS)) >= NEEDED
    assert opened(site, APART) == 1


def opened(site: Cluster, i: int) -> int:
    """How many sessions this holder's round book is bound in."""
    path = site.folder / f"node{i}" / "book.sqlite"
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as book:
        (found,) = book.execute("SELECT count(*) FROM bound").fetchone()
        return int(found)
