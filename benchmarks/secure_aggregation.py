"""CPU seconds and bytes of our SecAgg: clients, server, mask expansion. One process, no network.

Run it with:  python benchmarks/secure_aggregation.py [--clients 100 500] [--json]

Dropouts leave after they have dealt their shares and before their masked input: the server's worst
case, since it must expand one mask per (dropout, survivor) pair. Client seconds are per client, the
mean over all that finish. CPU time of this process, so that other load on the machine shows less;
still, compare numbers from one run only. All sums are checked against plain additions.
"""

import argparse
import json
import os
import platform
import time

import numpy as np

from securefl.modular import RingVector
from securefl.primitives.prg import add_mask
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggParams, SecAggServer
from securefl.round import Cohort, RoundId, ThreatModel
from securefl.simulation.network import InMemoryNetwork
from securefl.simulation.session import run_session

CONTEXT = bytes(32)


def session(n: int, m: int, b: int, percent: int) -> dict[str, object]:
    """One session with ``percent`` % of the clients leaving before their masked input."""
    planned = 30 * n // 100
    params = SecAggParams.complete(n, ThreatModel(corrupt=max(1, n // 20), dropped=planned))
    config = params.config(
        round_id=RoundId(1),
        cohort=Cohort.of(range(n)),
        m=m,
        b=b,
        context_digest=CONTEXT,
        server_nonce=os.urandom(32),
    )
    policy = ClientPolicy(gamma=0)
    clients = {
        u: SecAggClient(u, config, context_digest=CONTEXT, policy=policy) for u in config.cohort
    }
    dropped = config.cohort.ids[: percent * n // 100]
    generator = np.random.default_rng(0)  # public test inputs
    base = generator.integers(0, 1 << b, size=m, dtype=np.uint64).astype(np.uint32)
    vector = RingVector(base, 1 << b)
    result = run_session(
        SecAggServer(config),
        clients,
        lambda u: vector,
        network=InMemoryNetwork(keep_transcript=False),
        drops={"masked_input_collection": dropped},
    )
    survivors = n - len(dropped)
    expected = (base.astype(np.uint64) * np.uint64(survivors)) % np.uint64(1 << b)
    assert np.array_equal(result.aggregate.vector.values.astype(np.uint64), expected)
    last = config.cohort.ids[-1]
    return {
        "n": n,
        "m": m,
        "b": b,
        "t": params.t,
        "dropped": len(dropped),
        "client_cpu_s": sum(result.client_seconds.values()) / survivors,
        "server_cpu_s": sum(result.server_seconds.values()),
        "server_cpu_s_by_phase": result.server_seconds,
        "bytes_up_per_client": result.bytes_up[last],
        "bytes_down_per_client": result.bytes_down[last],
    }


def mask_expansion(m: int) -> dict[str, object]:
    """Expanding a mask and adding it, on one core."""
    total = np.zeros(m, dtype=np.uint32)
    key = bytes(range(16))
    add_mask(total, key)
    repeats = max(3, 100_000_000 // m)
    begin = time.process_time()
    for _ in range(repeats):
        add_mask(total, key)
    seconds = (time.process_time() - begin) / repeats
    return {"m": m, "us_per_mask": seconds * 1e6, "gb_per_s": 4 * m / seconds / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--dropouts", type=int, nargs="+", default=[0, 10, 30], help="percent")
    parser.add_argument("--length", type=int, default=100_000)
    parser.add_argument("--bits", type=int, default=32)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    masks = [mask_expansion(m) for m in (1_000, 100_000, 1_000_000)]
    sessions = []
    if not arguments.json:
        for row in masks:
            print(
                f"mask of {row['m']:>9,} words: {row['us_per_mask']:8.1f} us, "
                f"{row['gb_per_s']:.2f} GB/s"
            )
        print("    n  dropped    t   client s   server s   bytes up   bytes down")
    for n in arguments.clients:
        for percent in arguments.dropouts:
            row = session(n, arguments.length, arguments.bits, percent)
            sessions.append(row)
            if not arguments.json:
                print(
                    f"{n:5}  {row['dropped']:7}  {row['t']:3}   {row['client_cpu_s']:8.4f}"
                    f"   {row['server_cpu_s']:8.3f}   {row['bytes_up_per_client']:8,}"
                    f"   {row['bytes_down_per_client']:10,}"
                )
    if arguments.json:
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        print(json.dumps({**machine, "masks": masks, "sessions": sessions}, indent=1))


if __name__ == "__main__":
    main()
