"""Seconds, bytes and messages of a round on Flower's deployment engine: plain, and with ours.

    python benchmarks/flower_rounds.py [--nodes 4] [--numbers 1000000] [--rounds 3] [--json FILE]

A SuperLink and SuperNodes are real processes on 127.0.0.1, as tests/flower/cluster.py starts them.
The app is the same in all rows (``flower_app`` beside this file; its training takes no time), with
FedAvg on Flower's own grid, and on a SecureGrid against a semi-honest and an active server. Bytes
are all that goes over a node's connection during the run, in both directions: messages, the app
itself, and Flower's polling. Message rounds are those of a training round without the hello, which
each node answers once per run against an active server. The protocol itself needs four message
rounds in one training round against a semi-honest server and five against an active one (Bonawitz
et al. 2017, figure 4); training travels with the first, so none comes on top.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from importlib import util
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]
LEAST_MESSAGES = {"plain": 1, "semi-honest": 4, "active": 5}


def cluster_module() -> Any:
    """The tests' harness, and the recorder that it uses."""
    for name in ("traffic", "cluster"):
        path = HERE.parent / "tests" / "flower" / f"{name}.py"
        spec = util.spec_from_file_location(f"flower_{name}", path)
        assert spec is not None and spec.loader is not None
        module = util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return module


def run(site: Any, kind: str, *, nodes: int, numbers: int, rounds: int) -> dict[str, Any]:
    """One run of the app; its figures per round."""
    result = site.folder / f"{kind}.json"
    for i in range(nodes):
        site.write_policy(i, 'adversary = "semi-honest"')
    site.recorder.clear()
    outcome = site.run(
        HERE / "flower_app",
        **{
            "num-server-rounds": rounds,
            "nodes": nodes,
            "numbers": numbers,
            "plain": kind == "plain",
            "result": str(result),
            "securefl-adversary": "active" if kind == "active" else "semi-honest",
            "securefl-roster": str(site.folder / "roster.json"),
        },
    )
    if outcome.status != "finished:completed":
        raise RuntimeError(f"the {kind} run ended as {outcome.status}: {outcome.log[-3000:]}")
    found = json.loads(result.read_text())
    up, down = site.recorder.totals()
    messages = sum("hello" not in group for group in found["groups"]) / rounds
    return {
        "kind": kind,
        "seconds": found["seconds"],
        "seconds_median": statistics.median(found["seconds"]),
        "messages": messages,
        "bytes_up": up / nodes / rounds,
        "bytes_down": down / nodes / rounds,
        # Every round moves the mean number by a thousandth; sums are exact to the encoding's step.
        "error": abs(found["mean"] - 0.001 * rounds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--numbers", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", choices=list(LEAST_MESSAGES), default=LEAST_MESSAGES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if util.find_spec("flwr") is None:
        print("Flower is not installed: pip install 'securefl[flower]'")
        return 0
    sizes = {"nodes": options.nodes, "numbers": options.numbers, "rounds": options.rounds}
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster_module().cluster(Path(folder), options.nodes) as site,
    ):
        rows = [run(site, kind, **sizes) for kind in options.kinds]
    print(f"{options.nodes} nodes, {options.numbers:,} numbers, {options.rounds} rounds")
    print(f"{'':12} {'s/round':>8} {'MB up':>8} {'MB down':>8} {'messages':>9} {'fewest':>7}")
    for row in rows:
        print(
            f"{row['kind']:12} {row['seconds_median']:8.1f} {row['bytes_up'] / 1e6:8.2f} "
            f"{row['bytes_down'] / 1e6:8.2f} {row['messages']:9.1f} "
            f"{LEAST_MESSAGES[row['kind']]:7}"
        )
    if options.json:
        options.json.write_text(json.dumps({"nodes": options.nodes, "rows": rows}, indent=1))
    return 0 if all(row["error"] < 1e-4 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
