"""The ledger and the filter: does the cost of a round grow with the number of rounds?

    python benchmarks/ledger.py [--json FILE] [--quick] [--folder DIR]

Medians of one process: would-it-fit, reserve and settle (both with the sync to disk, in DIR) after
10 and after 10,000 rounds (their ratio is what counts), the filter in memory, and how long a ledger
of 100,000 entries and its export take to verify, with 100 different events (survivor counts of a
plan) and, a tenth of it, with an event of its own for every round. Set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A program's own folder comes first on the path, and with it benchmarks/accounting.py: it would
# hide the package of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]

from accounting import (  # noqa: E402  # only now does accounting name the package
    Adjacency,
    Event,
    Filter,
    Gaussian,
    Ledger,
    LedgerHeader,
    Poisson,
    Unit,
    digest,
)

ORDER, ADD = 4.0, Adjacency.ADD_REMOVE
EVIDENCE = {
    "planned": 100,
    "survivors": 90,
    "colluding_assumed": 5,
    "protocol": "benchmark/1",
    "transcript": "0" * 64,
    "modulus": 2**32,
}
LIMITS = {"would it fit": 50e-6, "reserve": 10e-3, "settle": 10e-3, "verify": 5.0}


def event(index: int, *, sampled: bool = True) -> Event:
    """A different event each time."""
    noise = Gaussian(noise_multiplier=20.0 + index * 1e-6)
    return Poisson(sample_rate=0.01, event=noise) if sampled else noise


def header() -> LedgerHeader:
    return LedgerHeader(
        population="benchmark",
        unit=Unit.RECORD,
        adjacency=ADD,
        epsilon=10_000.0,
        delta=1e-5,
        order=ORDER,
        plan=digest(event(0)),
    )


def median(task: Callable[[int], Any], first: int, runs: int) -> float:
    """Median wall seconds of one call."""
    times = []
    for index in range(first, first + runs):
        start = time.perf_counter()
        task(index)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def one_round(book: Ledger, index: int, *, different: int) -> None:
    release = event(index % different)
    book.settle(book.reserve(release, round=index, key=str(index)), release, EVIDENCE)


def measure(book: Ledger, rounds: int, runs: int) -> dict[str, float]:
    """Figures of a ledger with so many rounds; a few more are carried out."""
    asked = event(-1 - rounds)
    book.fits(asked)
    found = {
        "would it fit, known event": median(lambda _: book.fits(asked), 0, 10 * runs),
        "would it fit, new event": median(lambda i: book.fits(event(-9 * rounds - i)), 1, runs),
    }
    tickets = {}

    def reserve(index: int) -> None:
        tickets[index] = book.reserve(event(index), round=index, key=f"timed {index}")

    found["reserve"] = median(reserve, rounds, runs)
    found["settle"] = median(
        lambda i: book.settle(tickets[i], tickets[i].event, EVIDENCE), rounds, runs
    )
    return found


def ledger_rows(folder: Path, counts: list[int], runs: int) -> dict[int, dict[str, float]]:
    rows = {}
    with Ledger.create(folder / "bench.ledger", header()) as book:
        done = 0
        for rounds in counts:
            for index in range(done, rounds):
                one_round(book, index, different=counts[-1])
            rows[rounds] = measure(book, rounds, runs)
            done = rounds + runs
    return rows


def filter_rows(counts: list[int], runs: int) -> dict[int, dict[str, float]]:
    rows = {}
    gate = Filter(None, 10_000.0, 1e-5, adjacency=ADD, orders=[ORDER])
    known = event(0, sampled=False)
    for rounds in counts:
        while gate.releases < rounds:
            gate.admit(event(gate.releases, sampled=False))
        rows[rounds] = {
            "would it fit, known event": median(lambda _: gate.fits(known), 0, 100 * runs),
            "admit, known event": median(lambda _: gate.admit(known), 0, runs),
        }
    return rows


def verify_rows(folder: Path, entries: int, different: int) -> dict[str, float]:
    """CPU seconds to verify a ledger of so many entries and its export."""
    path, text = folder / f"{different}.ledger", folder / f"{different}.jsonl"
    with Ledger.create(path, header()) as book:
        # Written for speed; what is measured is how it is read.
        book._live().execute("PRAGMA synchronous = OFF")
        for index in range((entries - 1) // 2):
            one_round(book, index, different=different)
        book.note("the last entry")
        book.export(text)
    found = {}
    for name, file in (("file", path), ("export", text)):
        start = time.process_time()
        count = len(Ledger.verify(file).entries)
        found[f"{name}, {count} entries, {different} events"] = time.process_time() - start
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and entries")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to measure")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # remarks about the edge of the grid of orders
    counts, entries = ([10, 1000], 5_001) if options.quick else ([10, 10_000], 100_001)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        ledger = ledger_rows(folder, counts, 50)
        gate = filter_rows(counts, 50)
        verify = verify_rows(folder, entries, 100) | verify_rows(folder, entries // 10, entries)
    few, many = counts
    for title, rows in (("ledger", ledger), ("filter", gate)):
        for task in rows[few]:
            before, after = rows[few][task], rows[many][task]
            print(
                f"{title + ': ' + task:36} after {few} {before * 1e6:9.1f} us, "
                f"after {many} {after * 1e6:9.1f} us, ratio {after / before:.2f}"
            )
    for task, seconds in verify.items():
        print(f"verify: {task:44} {seconds:.2f} s CPU")
    if options.json:
        body = {"ledger": ledger, "filter": gate, "verify": verify, "limits": LIMITS}
        options.json.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
