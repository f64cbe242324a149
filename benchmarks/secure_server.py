"""Peak memory and CPU seconds of the server alone, in a process of its own.

Run it with:  python benchmarks/secure_server.py [--clients 1000] [--length 1000000] [--json]

The server's machine is the real one. The clients are made up: genuine keys, commitments and shares,
but arbitrary bytes where the server cannot look inside (ciphertexts, masked inputs), because a
thousand real clients would take minutes and change nothing for the server. So the sum is noise.
Dropouts leave before their masked input. A vector is what m words of the sum take; the share
traffic is what the clients' ciphertexts take while the server holds all of them, 72 bytes per edge.
Peaks are those of the resident set, above what the process takes before the first frame; on other
systems than Linux they are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from securefl.primitives.channel import AgreementKey
from securefl.primitives.sharing import PRIME
from securefl.protocols.machine import AggregateReady
from securefl.protocols.secagg import SecAggParams, SecAggServer
from securefl.protocols.secagg.calculator import parameters
from securefl.protocols.secagg.graph import graph_of
from securefl.protocols.secagg.keys import KeySchedule
from securefl.protocols.secagg.messages import (
    CIPHERTEXT_BYTES,
    AdvertiseKeys,
    UnmaskShares,
)
from securefl.protocols.secagg.transitions import MessageType
from securefl.round import Cohort, RoundConfig, RoundId, ThreatModel
from securefl.wire import Frame, encode_frame, packed_bytes

PHASES = ("advertise_keys", "share_keys", "masked_input_collection", "unmasking")
TARGET_VECTORS = 6


def words_of(secret: bytes, count: int) -> list[int]:
    number = int.from_bytes(secret, "little")
    return [number >> (30 * i) & (2**30 - 1) for i in range(count)]


class MadeUpClients:
    """All clients of one semi-honest session in layout ``OTHERS``.

    Args:
        config: the session's.
        dropped: ids that send no masked input.
    """

    def __init__(self, config: RoundConfig, dropped: Iterable[int]) -> None:
        self.config = config
        self.gone = set(dropped)
        self.ids = list(config.cohort)
        self.graph = graph_of(config, config.graph_value)
        self.keys = KeySchedule(config.protocol)
        self.x = {u: 1 + i for i, u in enumerate(self.ids)}
        self.seeds = {u: os.urandom(16) for u in self.ids}
        self.mask_keys = {u: os.urandom(32) for u in self.ids}
        # A straight line through each secret: a polynomial of degree below any t > 1.
        self.lines = {
            u: [
                (words_of(secret, count), os.urandom(4 * count))
                for secret, count in ((self.seeds[u], 5), (self.mask_keys[u], 9))
            ]
            for u in self.ids
        }
        self.masked = os.urandom(packed_bytes(config.m, config.b))
        self.session = b""

    def frames(self, phase: str) -> Iterable[bytes]:
        """What all clients send in this phase, one frame at a time."""
        for u in self.ids:
            if u in self.gone and phase in PHASES[2:]:
                continue
            kind, body = getattr(self, f"_{phase}")(u)
            before = kind is MessageType.ADVERTISE_KEYS
            yield encode_frame(
                Frame(
                    protocol=self.config.protocol,
                    type=kind,
                    sender=u,
                    round_id=self.config.round_id,
                    session=self.config.digest() if before else self.session,
                    body=body,
                )
            )

    def _advertise_keys(self, u: int) -> tuple[MessageType, bytes]:
        c_pk, s_pk = AgreementKey(os.urandom(32)).public, AgreementKey(self.mask_keys[u]).public
        commitment = self.keys.seed_commitment(self.config.digest(), u, c_pk, self.seeds[u])
        message = AdvertiseKeys(c_pk=c_pk, s_pk=s_pk, commitment=commitment)
        return MessageType.ADVERTISE_KEYS, message.encode()

    def _share_keys(self, u: int) -> tuple[MessageType, bytes]:
        peers = len(self.graph.peers(u, set(self.ids)))
        body = peers.to_bytes(4, "little") + os.urandom(CIPHERTEXT_BYTES * peers)
        return MessageType.ENCRYPTED_SHARES, body

    def _masked_input_collection(self, u: int) -> tuple[MessageType, bytes]:
        return MessageType.MASKED_INPUT, self.masked

    def _unmasking(self, u: int) -> tuple[MessageType, bytes]:
        Q = self.graph.peers(u, set(self.ids))
        alive = np.array([v not in self.gone for v in Q])
        message = UnmaskShares(
            readable=np.ones(len(Q), dtype=np.bool_),
            own=None,
            b_shares=self._shares(u, [v for v in Q if v not in self.gone], 0),
            s_shares=self._shares(u, [v for v in Q if v in self.gone], 1),
        )
        return MessageType.UNMASK_SHARES, message.encode(alive=alive)

    def _shares(self, u: int, dealers: list[int], kind: int) -> np.ndarray:
        count = (5, 9)[kind]
        at_zero = np.array([self.lines[v][kind][0] for v in dealers], dtype=np.uint64)
        raw = b"".join(self.lines[v][kind][1] for v in dealers)
        slope = np.frombuffer(raw, dtype="<u4").astype(np.uint64) % np.uint64(PRIME)
        value = at_zero.reshape(-1, count) + slope.reshape(-1, count) * np.uint64(self.x[u])
        return (value % np.uint64(PRIME)).astype(np.uint32)


def configuration(n: int, m: int, *, k: int | None, t: int, percent: int) -> RoundConfig:
    """A semi-honest session with 32-bit words."""
    threat = ThreatModel(corrupt=1, dropped=percent * n // 100)
    if k is None:
        params = SecAggParams.complete(n, threat, t=t)
    else:
        params = SecAggParams.harary(n, threat, k=k, t=t)
    return params.config(
        round_id=RoundId(1),
        cohort=Cohort.of(range(n)),
        m=m,
        b=32,
        context_digest=bytes(32),
        server_nonce=os.urandom(32),
    )


def play(
    config: RoundConfig,
    dropped: Iterable[int],
    receive: Callable[[bytes], None],
    close: Callable[[], bytes],
) -> None:
    """A whole session; ``close`` ends a phase and returns the session id once there is one."""
    clients = MadeUpClients(config, dropped)
    for phase in PHASES:
        for frame in clients.frames(phase):
            receive(frame)
        clients.session = close()


def resident(field: str) -> int | None:
    """Bytes: ``VmRSS`` now, ``VmHWM`` at the most; None where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = [x for x in status.read_text().splitlines() if x.startswith(field + ":")]
    return int(line.split()[1]) * 1024


def serve(frames: Connection, config: RoundConfig, processes: int) -> None:
    """The server's process. An empty frame closes the phase; the last answer is the measurement."""
    executor = None
    if processes > 1:
        executor = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
        list(executor.map(abs, range(processes)))  # start the workers before the clock
    server = SecAggServer(config, executor=executor)
    stream = os.fdopen(os.dup(frames.fileno()), "rb")  # Connection would hold a frame twice
    baseline = resident("VmRSS")
    cpu, seconds, wall = time.process_time(), 0.0, 0.0
    peaks: dict[str, int | None] = {}
    while not server.final:
        frame = stream.read(int.from_bytes(stream.read(8), "little"))
        if frame:
            server.receive(frame)
            continue
        phase = str(server.phase)
        begin, began = time.process_time(), time.perf_counter()
        done = False
        for item in server.close_phase():  # sent one by one, as a driver on a network would
            done = isinstance(item, AggregateReady)
        seconds, wall = time.process_time() - begin, time.perf_counter() - began
        at_most = resident("VmHWM")
        peaks[phase] = None if at_most is None or baseline is None else at_most - baseline
        assert done is server.final
        frames.send_bytes(server._session or b"")
    if executor is not None:
        executor.shutdown()
    frames.send(
        {
            "server_cpu_s": time.process_time() - cpu,
            "recovery_cpu_s": seconds,
            "recovery_wall_s": wall,
            "peak_bytes_by_phase": peaks,
        }
    )


def measure(n: int, m: int, *, percent: int, sparse: bool, processes: int = 1) -> dict[str, object]:
    """One row: the server in a child process, made-up clients here."""
    k, t = None, 2 * n // 3 + 1
    if sparse:
        found = parameters(n, ThreatModel(corrupt=max(1, n // 20), dropped=33 * n // 100))
        k, t = found.k, found.t
    config = configuration(n, m, k=k, t=min(t, n - 1 - percent * n // 100), percent=percent)
    dropped = range(percent * n // 100)
    here, there = get_context("spawn").Pipe()
    stream = os.fdopen(os.dup(here.fileno()), "wb")

    def send(frame: bytes) -> None:
        stream.write(len(frame).to_bytes(8, "little") + frame)
        stream.flush()

    child = get_context("spawn").Process(target=serve, args=(there, config, processes))
    child.start()
    try:

        def close() -> bytes:
            send(b"")
            return here.recv_bytes()

        play(config, dropped, send, close)
        row = here.recv()
    finally:
        child.join(60)
    vector, edges = 4 * m, n * (k or n - 1)
    traffic = 0 if sparse else CIPHERTEXT_BYTES * edges
    allowed = TARGET_VECTORS * vector + traffic
    known = [p for p in row["peak_bytes_by_phase"].values() if p is not None]
    peak = max(known) if known else None
    return {
        "n": n,
        "m": m,
        "k": config.k,
        "t": config.t,
        "dropped": len(dropped),
        "processes": processes,
        **row,
        "peak_bytes": peak,
        "vector_bytes": vector,
        "share_traffic_bytes": CIPHERTEXT_BYTES * edges,
        "target_bytes": allowed,
        "met": None if peak is None else peak <= allowed,
    }


def words(row: dict[str, object]) -> str:
    """A row as a line."""
    line = (
        f"n={row['n']:5}  k={row['k']:5}  m={row['m']:9,}  dropped={row['dropped']:4}  "
        f"processes={row['processes']}  server {row['server_cpu_s']:7.2f} CPU s, last phase "
        f"{row['recovery_cpu_s']:7.2f} CPU s, {row['recovery_wall_s']:7.2f} wall s"
    )
    if row["peak_bytes"] is None:
        return line
    verdict = "met" if row["met"] else "MISSED"
    return (
        f"{line}; peak {row['peak_bytes'] / 1e6:.1f} MB = "
        f"{row['peak_bytes'] / row['vector_bytes']:.1f} vectors, "
        f"at most {row['target_bytes'] / 1e6:.1f} MB: {verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--length", type=int, default=1_000_000)
    parser.add_argument("--dropouts", type=int, default=30, help="percent")
    parser.add_argument("--graph", choices=["sparse", "complete", "both"], default="both")
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    graphs = {"sparse": [True], "complete": [False], "both": [True, False]}[arguments.graph]
    rows = []
    for sparse in graphs:
        for processes in arguments.processes:
            row = measure(
                arguments.clients,
                arguments.length,
                percent=arguments.dropouts,
                sparse=sparse,
                processes=processes,
            )
            rows.append(row)
            if not arguments.json:
                print(words(row), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
