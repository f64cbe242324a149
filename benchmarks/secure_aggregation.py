"""CPU seconds and bytes of our SecAgg: clients, server, mask expansion. One process, no network.

Run it with:  python benchmarks/secure_aggregation.py [--clients 100 500] [--json]
The published tables:  python benchmarks/secure_aggregation.py --clients 100 300 500 600 1000
The server's memory, and what worker processes gain:  python benchmarks/secure_server.py

Dropouts leave after they have dealt their shares and before their masked input: the server's worst
case, since it must expand one mask per (dropout, survivor) pair. Client seconds are per client, the
mean over all that finish. CPU time of this process, so that other load on the machine shows less;
still, compare numbers from one run only. All sums are checked against plain additions.

With 100,000 entries each row stands beside what others published for it, other machines and
languages included, and beside our own target:
  2017: Bonawitz et al., CCS 2017: Java, Xeon E5-1650 v3.
  FTSA: Mansouri et al., ACSAC 2022, artefact: SecAgg in Python, Xeon E5-2697 v4.
Bytes come from the size model, which the tests tie to real frames.

Where ``flwr`` is installed, its unmodified SecAgg is run in this process beside ours with 100
clients, 10 % of them dropped: minutes, most of them Flower's. See ``flower_comparison.py`` for what
is measured; ``--no-flower`` leaves it out.
"""

import argparse
import json
import os
import platform
import time

import flower_comparison
import numpy as np

from securefl.modular import RingVector
from securefl.primitives.prg import add_mask
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggParams, SecAggServer
from securefl.protocols.secagg.calculator import modulus_bits
from securefl.protocols.secagg.sizes import SessionShape, expansion, traffic
from securefl.round import Adversary, Cohort, RoundId, ThreatModel
from securefl.simulation.network import InMemoryNetwork
from securefl.simulation.session import run_session

CONTEXT = bytes(32)

TABLE_LENGTH = 100_000
# (clients, percent dropped) -> source, client, server; seconds. A range is given by its lower end.
PUBLISHED = {
    (100, 0): ("FTSA", 9.5, 10.7),
    (100, 10): ("FTSA", 9.5, 100.8),
    (100, 30): ("FTSA", 9.5, 280.3),
    (300, 0): ("FTSA", 29.3, 35.7),
    (300, 10): ("FTSA", 29.3, 876.0),
    (300, 30): ("FTSA", 29.3, 2527.9),
    (500, 0): ("2017", 0.849, 2.018),
    (500, 10): ("2017", 0.849, 62.2),
    (500, 30): ("2017", 0.849, 143.4),
    (600, 0): ("FTSA", 51.6, 100.7),
    (600, 10): ("FTSA", 51.6, 4303.0),
    (600, 30): ("FTSA", 51.6, 11715.0),
    (1000, 0): ("2017", 1.699, 4.887),
    (1000, 10): ("2017", 1.699, 180.9),
    (1000, 30): ("2017", 1.699, 413.8),
}
# (clients, percent dropped) -> most CPU seconds of our client, of our server in one process.
TARGETS = {
    (500, 0): (0.2, 1.0),
    (500, 10): (0.2, 3.0),
    (500, 30): (0.2, 7.0),
    (600, 0): (0.25, 1.0),
    (600, 10): (0.25, 5.0),
    (600, 30): (0.25, 10.0),
    (1000, 0): (0.4, 2.0),
    (1000, 10): (0.4, 12.0),
    (1000, 30): (0.4, 25.0),
}
# clients, entries, neighbours (0: all) -> the 2017 paper's expansion, our target; 16-bit inputs.
EXPANSION = {
    (1 << 10, 1 << 20, 0): (1.73, 1.74),
    (1 << 14, 1 << 24, 0): (1.98, 1.99),
    (1 << 14, 1 << 20, 0): (3.62, 3.70),
    (1 << 10, 1 << 20, 72): (None, 1.65),
}


def session(
    n: int,
    m: int,
    b: int,
    percent: int,
    *,
    adversary: Adversary = Adversary.SEMI_HONEST,
    sparse: tuple[int, int] | None = None,
) -> dict[str, object]:
    """One session with ``percent`` % of the clients leaving before their masked input.

    ``sparse`` is (neighbours, threshold) of a graph that is taken as it is: a peer's, which our own
    defaults may refuse. ``adversary`` is the semi-honest server or the active one.
    """
    planned = 30 * n // 100
    threat = ThreatModel(adversary=adversary, corrupt=max(1, n // 20), dropped=planned)
    params, sigma = SecAggParams.complete(n, threat), 40
    if sparse is not None:
        sigma = 1
        params = SecAggParams.harary(n, threat, k=sparse[0], t=sparse[1], sigma=sigma, eta=1)
    config = params.config(
        round_id=RoundId(1),
        cohort=Cohort.of(range(n)),
        m=m,
        b=b,
        context_digest=CONTEXT,
        server_nonce=os.urandom(32),
    )
    policy = ClientPolicy(gamma=0, sigma=sigma)
    identities: dict[int, IdentityKey] = {}
    directory = None
    if adversary is Adversary.ACTIVE:
        identities = {u: IdentityKey(os.urandom(32)) for u in config.cohort}
        directory = IdentityDirectory({u: key.public for u, key in identities.items()})
    clients = {
        u: SecAggClient(
            u,
            config,
            context_digest=CONTEXT,
            policy=policy,
            identity=identities.get(u),
            directory=directory,
        )
        for u in config.cohort
    }
    dropped = config.cohort.ids[: percent * n // 100]
    generator = np.random.default_rng(0)  # public test inputs
    base = generator.integers(0, 1 << b, size=m, dtype=np.uint64).astype(np.uint32)
    vector = RingVector(base, 1 << b)
    result = run_session(
        SecAggServer(config, directory=directory),
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


def beside(row: dict[str, object], percent: int) -> dict[str, object]:
    """What was published for this row, how many times faster we are, and our targets."""
    key = (row["n"], percent)
    if row["m"] != TABLE_LENGTH or key not in PUBLISHED:
        return {}
    source, client, server = PUBLISHED[key]
    compared: dict[str, object] = {
        "source": source,
        "client_published_s": client,
        "client_ratio": client / row["client_cpu_s"],
        "server_published_s": server,
        "server_ratio": server / row["server_cpu_s"],
    }
    if key in TARGETS:
        client_target, server_target = TARGETS[key]
        compared |= {
            "client_target_s": client_target,
            "server_target_s": server_target,
            "met": row["client_cpu_s"] <= client_target and row["server_cpu_s"] <= server_target,
        }
    return compared


def words(row: dict[str, object]) -> str:
    """The comparison of a row as the rest of its line."""
    if "source" not in row:
        return ""
    line = (
        f"   {row['source']}: client {row['client_published_s']:g} (x{row['client_ratio']:.0f}),"
        f" server {row['server_published_s']:g} (x{row['server_ratio']:.0f})"
    )
    if "met" in row:
        verdict = "met" if row["met"] else "MISSED"
        line += f"; target {row['client_target_s']:g}, {row['server_target_s']:g}: {verdict}"
    return line


def communication() -> list[dict[str, object]]:
    """(up + down) over the plain input, nobody dropping out, both adversaries."""
    rows = []
    for (n, m, k), (paper, target) in EXPANSION.items():
        b = modulus_bits(n, 16)
        found = {}
        for adversary in Adversary:
            shape = SessionShape(n=n, k=k or n - 1, m=m, b=b, adversary=adversary)
            found[adversary] = expansion(traffic(shape), length=m, input_bits=16)
        rows.append(
            {
                "n": n,
                "m": m,
                "k": k or n - 1,
                "b": b,
                "published": paper,
                "target": target,
                "semi_honest": found[Adversary.SEMI_HONEST],
                "active": found[Adversary.ACTIVE],
                "met": found[Adversary.SEMI_HONEST] <= target,
            }
        )
    return rows


def beside_flower(arguments: argparse.Namespace) -> dict[str, object] | None:
    """The comparison with Flower; None where it is not wanted or not installed."""
    if arguments.no_flower or flower_comparison.installed() is None:
        return None
    n, m = arguments.flower_clients, arguments.flower_length
    return flower_comparison.compare(
        lambda: session(n, m, 32, 10), n=n, m=m, percent=10, pairs=arguments.flower_pairs
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--dropouts", type=int, nargs="+", default=[0, 10, 30], help="percent")
    parser.add_argument("--length", type=int, default=100_000)
    parser.add_argument("--bits", type=int, default=32)
    parser.add_argument("--no-flower", action="store_true", help="leave Flower out")
    parser.add_argument("--flower-clients", type=int, default=100)
    parser.add_argument("--flower-length", type=int, default=1_000_000)
    parser.add_argument("--flower-pairs", type=int, default=1, help="runs of each, in turns")
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
            row |= beside(row, percent)
            sessions.append(row)
            if not arguments.json:
                print(
                    f"{n:5}  {row['dropped']:7}  {row['t']:3}   {row['client_cpu_s']:8.4f}"
                    f"   {row['server_cpu_s']:8.3f}   {row['bytes_up_per_client']:8,}"
                    f"   {row['bytes_down_per_client']:10,}{words(row)}"
                )
    expansions = communication()
    if not arguments.json:
        print("communication, 16-bit inputs: (up + down) / plain    2017   target   ours   active")
        for row in expansions:
            paper = f"{row['published']:.2f}" if row["published"] else "-"
            print(
                f"n={row['n']:6,}  m={row['m']:10,}  k={row['k']:6,}  b={row['b']}"
                f"           {paper:>4}     {row['target']:.2f}   {row['semi_honest']:.4f}"
                f"   {row['active']:.4f}{'' if row['met'] else '   MISSED'}"
            )
    flower = beside_flower(arguments)
    if not arguments.json and flower is not None:
        print("\n".join(flower_comparison.lines(flower)))
    elif not arguments.json and not arguments.no_flower:
        print("flwr is not installed: no comparison with Flower's SecAgg")
    if arguments.json:
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        print(
            json.dumps(
                {
                    **machine,
                    "masks": masks,
                    "sessions": sessions,
                    "communication": expansions,
                    "flower": flower,
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
