"""Flower's own SecAgg and SecAgg+ against ours: every figure that has a target, in one table.

    python benchmarks/flower_targets.py [--json FILE] [--cells all-1e5 all-1e6 sparse-1e6]

Cohorts of 100 clients, of which 30 leave just before their masked input. Per cell one session of
each library in one process, their unmodified workflow and our machines as our own benchmark drives
them (``flower_comparison.py`` says what is measured and what is left out), in turns if ``--pairs``
asks for more. In ``sparse-1e6`` ours runs under Flower's numbers, 30 neighbours and a threshold of
16 with the client's own share; our defaults refuse them for so many dropouts. Both CPU seconds of
one process. A session against an active server, which has no counterpart there, is run beside each
all-to-all one.

A cell with 10^6 entries takes minutes, nearly all of them Flower's. With ``--json`` the cells of
earlier calls are read from the file and new ones written to it, so that the table can grow.

Memory of the server: what its process takes at most above what it took before the first masked
vector came. Theirs: the replies in memory, and the workflow on top. Ours: the server's machine in a
process of its own, which sums on arrival (``secure_server.py``), plus the masked vectors that
``SecureGrid`` asks Flower for at once.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import json
import multiprocessing
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE] + [str(HERE)]

import flower_comparison  # noqa: E402  # benchmarks/accounting.py must not be found first
import secure_aggregation  # noqa: E402  # as above
import secure_server  # noqa: E402  # as above

from securefl.errors import BelowThreshold  # noqa: E402  # as above
from securefl.round import Adversary  # noqa: E402  # as above

N, PERCENT = 100, 30
SPARSE = (30, 15)
CELLS: dict[str, tuple[int, tuple[int, int] | None]] = {
    "all-1e5": (100_000, None),
    "all-1e6": (1_000_000, None),
    "sparse-1e6": (1_000_000, SPARSE),
}
APPS = HERE.parent / "examples" / "flower_app"
# what, cell, field of the sessions, target; ratios of theirs to ours are at least, of ours to
# theirs at most.
AT_LEAST = [
    ("server, all-to-all, d=1e5, total", "all-1e5", "server", 100.0),
    ("server, all-to-all, d=1e6, total", "all-1e6", "server", 40.0),
    ("server, all-to-all, d=1e5, masks only", "all-1e5", "masks", 6.0),
    ("server, all-to-all, d=1e6, masks only", "all-1e6", "masks", 4.0),
    ("server, 30 neighbours, d=1e6, total", "sparse-1e6", "server", 15.0),
    ("server, 30 neighbours, d=1e6, masks only", "sparse-1e6", "masks", 4.0),
    ("client, all-to-all, d=1e5", "all-1e5", "client", 20.0),
    ("client, all-to-all, d=1e6", "all-1e6", "client", 8.0),
]
AT_MOST = [
    ("upload of a client, d=1e6", "all-1e6", "bytes_up", 0.51),
    ("server's peak memory, d=1e6", "all-1e6", "server_peak_bytes", 0.1),
]
MOST_LINES = 5


def ours(m: int, sparse: tuple[int, int] | None, adversary: Adversary) -> dict[str, Any]:
    """One session of ours; another one if the random graph cut somebody off, as theirs does."""

    def session() -> dict[str, Any]:
        return secure_aggregation.session(N, m, 32, PERCENT, adversary=adversary, sparse=sparse)

    for _ in range(20):
        try:
            return flower_comparison.ours(session)
        except BelowThreshold:
            continue
    raise RuntimeError("no graph kept everybody connected")


def theirs(m: int, sparse: tuple[int, int] | None, t: int) -> dict[str, Any]:
    """One session of Flower's; another graph if the last one lost the round."""
    neighbours, threshold = (0, t + 1) if sparse is None else (sparse[0], sparse[1] + 1)
    for _ in range(5):
        try:
            return flower_comparison.theirs(N, m, threshold, PERCENT * N // 100, neighbours)
        except AssertionError as error:
            if sparse is None:
                raise
            print(f"Flower's round was lost ({error}), again", file=sys.stderr)
    raise RuntimeError("Flower's workflow lost every round")


def memory(m: int, t: int) -> dict[str, Any]:
    """The server's machine in a process of its own, above what it held before masked inputs."""
    config = secure_server.configuration(N, m, k=None, t=t, percent=PERCENT)
    row: dict[str, Any] = secure_server.in_a_process_of_its_own(config, range(PERCENT * N // 100))
    peaks = [peak for peak in row["peak_bytes_by_phase"].values() if peak is not None]
    machine = max(peaks) if peaks else 0
    from securefl.flower.exchange import PULL_BATCH

    return {"machine": machine, "pulled": PULL_BATCH * 4 * m}


def cell(name: str, pairs: int) -> dict[str, Any]:
    """The sessions of one cell."""
    m, sparse = CELLS[name]
    t = SPARSE[1] if sparse else N - 1 - 30 * N // 100
    mine: list[dict[str, Any]] = []
    active: list[dict[str, Any]] = []
    other: list[dict[str, Any]] = []
    for turn in range(pairs):
        for who in ("ours", "theirs")[:: -1 if turn % 2 else 1]:
            gc.collect()
            gc.disable()
            try:
                if who == "theirs":
                    other.append(theirs(m, sparse, t))
                else:
                    mine.append(ours(m, sparse, Adversary.SEMI_HONEST))
                    if sparse is None:
                        active.append(ours(m, None, Adversary.ACTIVE))
            finally:
                gc.enable()
    held = memory(m, t) if sparse is None else None
    if held is not None:
        for row in mine:
            row["server_peak_bytes"] = held["machine"] + held["pulled"]
    return {
        "flwr": flower_comparison.installed(), "n": N, "m": m, "dropped": PERCENT * N // 100,
        "t": t, "ours": mine, "active": active, "flower": other, "memory": held,
    }  # fmt: skip


def apart(name: str, pairs: int) -> dict[str, Any]:
    """A cell in a process of its own, whose memory holds nothing of other cells.

    Freed vectors go back to the system at once there, so that a peak is what is really held.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "262144"
    # Not a Pool, whose processes may start none of their own.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(cell, name, pairs).result()


def changed_lines() -> int:
    """Lines that the secure example app changes or adds in the plain one."""
    count = {"+": 0, "-": 0}
    for path in sorted((APPS / "plain").rglob("*.*")):
        other = APPS / "secure" / path.relative_to(APPS / "plain")
        if path.suffix not in (".py", ".toml"):
            continue
        before, after = path.read_text().splitlines(), other.read_text().splitlines()
        for line in difflib.unified_diff(before, after, lineterm="", n=0):
            if line[:1] in count and line[:3] not in ("+++", "---"):
                count[line[0]] += 1
    return max(count.values())


def figure(found: dict[str, Any], who: str, field: str) -> float:
    """The median of a field over the sessions of one library."""
    return float(statistics.median(row[field] for row in found[who]))


def table(cells: dict[str, Any]) -> list[dict[str, Any]]:
    """Every figure with a target, as far as its cell was run."""
    rows: list[dict[str, Any]] = []
    for sign, listed in ((1, AT_LEAST), (-1, AT_MOST)):
        for what, name, field, target in listed:
            if name not in cells:
                rows.append({"what": what, "target": target, "at_least": sign > 0})
                continue
            mine, other = (figure(cells[name], who, field) for who in ("ours", "flower"))
            ratio = other / mine if sign > 0 else mine / other
            met = sign * ratio >= sign * target
            rows.append(
                {"what": what, "target": target, "at_least": sign > 0, "ours": mine,
                 "flower": other, "ratio": ratio, "met": met}
            )  # fmt: skip
    lines = changed_lines()
    rows.append(
        {"what": "changed lines in the example app", "target": MOST_LINES, "at_least": False,
         "ours": lines, "flower": None, "ratio": lines, "met": lines <= MOST_LINES}
    )  # fmt: skip
    return rows


def text(rows: list[dict[str, Any]], cells: dict[str, Any]) -> list[str]:
    """The table, and the active sessions beside it."""
    lines = [f"{'':42} {'ours':>10} {'Flower':>10} {'ratio':>8} {'target':>9}"]
    for row in rows:
        unit = 1e6 if "upload" in row["what"] or "memory" in row["what"] else 1
        target = f"{'>=' if row['at_least'] else '<='} {row['target']:g}"
        if "ratio" not in row:
            lines.append(f"{row['what']:42} {'not run':>30} {target:>9}")
            continue
        shown = [
            "" if row[who] is None else f"{row[who] / unit:10.4g}" for who in ("ours", "flower")
        ]
        lines.append(
            f"{row['what']:42} {shown[0]:>10} {shown[1]:>10} {row['ratio']:8.3g} {target:>9}   "
            f"{'PASS' if row['met'] else 'MISS'}"
        )
    for name, found in cells.items():
        if found["active"]:
            server, client = (figure(found, "active", what) for what in ("server", "client"))
            lines.append(
                f"{name}: against an active server ours takes {server:.3f} s, a client {client:.4f}"
            )
    lines.append("CPU s, MB; ours against a semi-honest server, as Flower's is")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="*", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--pairs", type=int, default=1, help="sessions of each, in turns")
    parser.add_argument("--json", type=Path, help="read earlier cells from here, write all to it")
    options = parser.parse_args()
    if flower_comparison.installed() is None:
        print("Flower is not installed: pip install 'securefl[flower]'")
        return 0
    cells: dict[str, Any] = {}
    if options.json and options.json.exists():
        cells = json.loads(options.json.read_text())["cells"]
    for name in options.cells:
        cells[name] = apart(name, options.pairs)
        if options.json:
            options.json.write_text(json.dumps({"cells": cells, "rows": table(cells)}, indent=1))
    rows = table(cells)
    print("\n".join(text(rows, cells)))
    return 0 if all(row.get("met", False) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
