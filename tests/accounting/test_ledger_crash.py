"""Crashes: a log cut anywhere, a process killed at any moment, two processes and one budget."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accounting import Gaussian, Head, Ledger, LedgerHeader, LedgerRolledBack

ROOT = Path(__file__).resolve().parents[2]
Evid = dict[str, Any]


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _open_cut(
    folder: Path, database: bytes, log: bytes, heads: tuple[Head, Head]
) -> tuple[Head, int]:
    """Opens a ledger from these bytes; returns (its head, its charged ticks)."""
    before, after = heads
    path = folder / "cut.ledger"
    for leftover in folder.iterdir():
        leftover.unlink()
    path.write_bytes(database)
    _wal(path).write_bytes(log)
    with Ledger.open(path, expect_head=before) as ledger:
        found = (ledger.head, ledger.spent + ledger.reserved)
    if found[0] != after:
        path.write_bytes(database)
        _wal(path).write_bytes(log)
        with pytest.raises(LedgerRolledBack):
            Ledger.open(path, expect_head=after)
    return found


def _two_transactions(
    ledger: Ledger, release: Gaussian, evidence: Evid
) -> tuple[bytes, bytes, bytes, tuple[Head, Head], tuple[int, int]]:
    """The database, its log before and after one settlement, the two heads and two charges."""
    first = ledger.reserve(release, round=1, key="a")
    ledger.settle(first, release, evidence)
    before, charged_before = ledger.head, ledger.spent + ledger.reserved
    log_before = _wal(ledger.path).read_bytes()
    ledger.reserve(release, round=2, key="b")
    after, charged_after = ledger.head, ledger.spent + ledger.reserved
    log_after = _wal(ledger.path).read_bytes()
    assert log_after.startswith(log_before)
    return (
        ledger.path.read_bytes(),
        log_before,
        log_after,
        (before, after),
        (charged_before, charged_after),
    )


def _cuts_are_transaction_boundaries(
    ledger: Ledger, release: Gaussian, evidence: Evid, folder: Path, stride: int
) -> None:
    database, log_before, log_after, heads, charges = _two_transactions(ledger, release, evidence)
    folder.mkdir()
    seen = set()
    ends = {len(log_before), len(log_after) - 1, len(log_after)}
    frames = range(len(log_before), len(log_after), 4096 + 24)
    cuts: Iterable[int] = sorted(
        ends | {*frames} | {*range(len(log_before), len(log_after), stride)}
    )
    for cut in cuts:
        for log in (log_after[:cut], log_after[:cut] + bytes(len(log_after) - cut)):
            head, charged = _open_cut(folder, database, log, heads)
            if log == log_after:
                assert (head, charged) == (heads[1], charges[1])
            assert (head, charged) in {(heads[0], charges[0]), (heads[1], charges[1])}
            seen.add(head)
    assert seen == set(heads)


def test_a_log_cut_or_blanked_in_its_last_transaction_opens_at_a_boundary(
    ledger: Ledger, release: Gaussian, evidence: Evid, tmp_path: Path
) -> None:
    """Every 131st byte and all frame borders; the full acceptance tries every byte."""
    _cuts_are_transaction_boundaries(ledger, release, evidence, tmp_path / "cut", 131)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_log_cut_at_every_byte_of_its_last_transaction_opens_at_a_boundary(
    ledger: Ledger, release: Gaussian, evidence: Evid, tmp_path: Path
) -> None:
    _cuts_are_transaction_boundaries(ledger, release, evidence, tmp_path / "cut", 1)


WORKER = """
import random, sys
from accounting import BudgetExceeded, Gaussian, Ledger
path, name, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = random.Random(seed)
evidence = {"planned": 3, "survivors": 3, "colluding_assumed": 0, "protocol": "kill",
            "transcript": "0" * 64}
with Ledger.open(path) as ledger:
    print("ready", flush=True)
    if name != "killed":
        sys.stdin.readline()
    for index in range(100000):
        try:
            ticket = ledger.reserve(Gaussian(noise_multiplier=10.0), round=index,
                                    key=f"{name}-{seed}-{index}")
        except BudgetExceeded:
            break
        print("reserved", ticket.key, flush=True)
        if name == "killed":
            done = rng.choice(["settle", "abort", "leave"])
            if done == "settle":
                ledger.settle(ticket, Gaussian(noise_multiplier=20.0), evidence)
            elif done == "abort":
                ledger.abort(ticket, opened=True)
            print(done, ticket.key, flush=True)
"""


def _start(path: Path, name: str, seed: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), name, str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def _kill_and_check(path: Path, seed: int, known: dict[str, str]) -> None:
    """Kills two writers of one file at random moments: what either announced must be charged."""
    children = [_start(path, "killed", 2 * seed + which) for which in range(2)]
    rng = random.Random(seed)
    heard: list[str] = []
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        heard += [child.stdout.readline() for _ in range(rng.randint(0, 20))]
    for child in rng.sample(children, 2):
        time.sleep(rng.uniform(0.0, 0.004))
        child.kill()
    for child in children:
        heard += child.communicate()[0].splitlines()
    for line in heard:
        parts = line.split()
        if len(parts) == 2:  # the last line may be torn
            known[parts[1]] = parts[0]
    found = Ledger.verify(path)
    with Ledger.open(path, expect_head=found.head) as ledger:
        tickets = {entry.key for entry in ledger.entries() if entry.key is not None}
        opened = {ticket.key for ticket in ledger.open_tickets}
        assert set(known) <= tickets
        assert {key for key, state in known.items() if state == "leave"} <= opened
        closed = sum(1 for key in tickets if key not in opened)
        cheapest = 20.0 / (2 * 20.0**2) * 2**40  # what `settle` makes of a reservation
        assert ledger.spent >= closed * cheapest
        assert ledger.reserved > 0 or not opened
        ledger.recover()
        assert ledger.reserved == 0
    for key in known:
        known[key] = "recovered"


def _kill_many(header: LedgerHeader, folder: Path, kills: int) -> None:
    """Two kills at a time; a fresh file now and then, since opening reads all of it."""
    for first in range(0, kills // 2, 25):
        path = folder / f"{first}.ledger"
        Ledger.create(path, replace(header, epsilon=5000.0)).close()
        known: dict[str, str] = {}
        for seed in range(first, min(first + 25, kills // 2)):
            _kill_and_check(path, seed, known)
        assert known


def test_two_writers_killed_at_any_moment_leave_nothing_uncharged(
    header: LedgerHeader, tmp_path: Path
) -> None:
    _kill_many(header, tmp_path, 20)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_writers_killed_five_hundred_times_leave_nothing_uncharged(
    header: LedgerHeader, tmp_path: Path
) -> None:
    _kill_many(header, tmp_path, 500)


def test_two_processes_racing_for_the_last_budget_get_exactly_the_budget(
    ledger: Ledger,
) -> None:
    children = [_start(ledger.path, f"racer{n}", n) for n in range(2)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    won = [
        line
        for child in children
        for line in child.communicate(timeout=60)[0].splitlines()
        if line.startswith("reserved")
    ]
    assert [child.returncode for child in children] == [0, 0]
    assert len(won) == len(set(won)) == 10
    assert len(ledger.open_tickets) == 10
    assert {ticket.key for ticket in ledger.open_tickets} == {line.split()[1] for line in won}


def test_a_copy_taken_while_the_ledger_is_open_is_an_older_ledger(
    ledger: Ledger, release: Gaussian, tmp_path: Path
) -> None:
    """Database and log copied together: a consistent, older state, refused by a later head."""
    ledger.reserve(release, round=1, key="a")
    old = ledger.head
    copy = tmp_path / "backup.ledger"
    shutil.copy(ledger.path, copy)
    shutil.copy(_wal(ledger.path), _wal(copy))
    ledger.reserve(release, round=2, key="b")
    Ledger.open(copy, expect_head=old).close()
    with pytest.raises(LedgerRolledBack):
        Ledger.open(copy, expect_head=ledger.head)


def test_a_copy_without_its_log_is_refused_by_the_head_it_lacks(
    ledger: Ledger, release: Gaussian, tmp_path: Path
) -> None:
    """The sharp edge of copying only the main file of an open ledger."""
    ledger.close()
    with Ledger.open(ledger.path) as live:
        live.reserve(release, round=1, key="a")
        copy = tmp_path / "partial.ledger"
        shutil.copy(live.path, copy)
        with pytest.raises(LedgerRolledBack):
            Ledger.open(copy, expect_head=live.head)
