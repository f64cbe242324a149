"""Exports: what a reader of nothing but the text can and cannot be told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting import (
    AccountingError,
    ApproxDP,
    BrokenChain,
    BudgetExceeded,
    EntryKind,
    Gaussian,
    Head,
    InvalidParameter,
    Ledger,
    LedgerHeader,
    LedgerRolledBack,
    LedgerUnavailable,
    NoteSubject,
    OverReservation,
    Randomness,
)
from accounting.filter import floor_ticks
from accounting.record import canonical, chain_hash

CHEAP = Gaussian(noise_multiplier=20.0)
pytestmark = pytest.mark.filterwarnings("ignore::accounting.errors.OrderAtEdgeWarning")
Evid = dict[str, Any]
Make = Callable[..., Ledger]


@pytest.fixture
def written(ledger: Ledger, release: Gaussian, evidence: Evid) -> Ledger:
    """A ledger with every kind of entry."""
    ledger.settle(ledger.reserve(release, round=0, key="a"), CHEAP, evidence | {"modulus": 2**32})
    ledger.abort(ledger.reserve(release, round=1, key="b"), opened=False)
    ledger.abort(ledger.reserve(release, round=2, key="Bärbel"), opened=True)
    ledger.note("operator: resumed")
    ledger.reserve(CHEAP, round=3, key="open")
    return ledger


@pytest.fixture
def exported(written: Ledger, tmp_path: Path) -> Path:
    written.export(tmp_path / "a.jsonl")
    return tmp_path / "a.jsonl"


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def chained(bodies: list[dict[str, Any]]) -> bytes:
    """An export of these bodies with all hashes right: what an attacker can always write."""
    previous, text = bytes(32), ""
    for body in bodies:
        entry = canonical(body)
        previous = chain_hash(previous, entry)
        text += f'{{"body":{entry},"hash":"{previous.hex()}"}}\n'
    text += f'{{"entries":{len(bodies)},"head":"{len(bodies) - 1}:{previous.hex()}"}}\n'
    return text.encode()


def refused(path: Path) -> bool:
    """Like `pytest.raises`, which is too slow for thousands of files."""
    try:
        Ledger.verify(path)
    except AccountingError:
        return True
    return False


def bodies_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["body"] for line in lines_of(path)[:-1]]


def test_an_export_says_what_the_ledger_says(written: Ledger, exported: Path) -> None:
    found = Ledger.verify(exported, expect_head=written.head)
    assert found.header == written.header
    assert found.head == written.head
    assert found.balance == written.balance
    assert found.epsilon == written.epsilon()
    assert found.open_tickets == written.open_tickets
    assert found.entries == tuple(written.entries())
    assert found.torn is None
    assert not found.overspent
    assert [e.key for e in found.charged] == ["a", "Bärbel"]
    settled = found.entries[2].evidence
    assert settled is not None
    assert settled.modulus == 2**32
    assert list(written.export_lines()) == exported.read_text("utf-8").splitlines()


def test_file_and_export_are_verified_to_the_same_findings(written: Ledger, exported: Path) -> None:
    written.close()
    by_file = Ledger.verify(written.path, expect_head=Ledger.verify(exported).head)
    by_text = Ledger.verify(exported)
    assert replace(by_file, path=exported) == by_text
    for name in ("header", "head", "balance", "epsilon", "randomness", "open_tickets", "lost"):
        assert getattr(by_file, name) == getattr(by_text, name)


def test_verifying_a_file_leaves_its_entries_and_open_reservations_alone(written: Ledger) -> None:
    before = (written.head, written.open_tickets)
    Ledger.verify(written.path)
    assert (written.head, written.open_tickets) == before


def test_an_export_never_replaces_a_file(written: Ledger, exported: Path) -> None:
    before = exported.read_bytes()
    with pytest.raises(LedgerUnavailable, match="exists"):
        written.export(exported)
    assert exported.read_bytes() == before
    with pytest.raises(LedgerUnavailable, match="cannot write"):
        written.export(exported.parent / "no" / "folder.jsonl")
    assert sorted(p.suffix for p in exported.parent.iterdir() if p.name.startswith(".")) == []


@pytest.fixture
def short(ledger: Ledger, release: Gaussian, evidence: Evid, tmp_path: Path) -> Path:
    """One round and a remark, exported."""
    ledger.settle(ledger.reserve(release, round=0, key="a"), CHEAP, evidence)
    ledger.note("operator: resumed")
    ledger.export(tmp_path / "short.jsonl")
    return tmp_path / "short.jsonl"


def _every_flip_is_found(path: Path, masks_at: Callable[[int], Iterable[int]]) -> int:
    intact = path.read_bytes()
    tried = 0
    for position in range(len(intact)):
        for mask in masks_at(position):
            damaged = bytearray(intact)
            damaged[position] ^= mask
            path.write_bytes(bytes(damaged))
            assert refused(path), (position, mask)
            tried += 1
    path.write_bytes(intact)
    Ledger.verify(path)
    return tried


def test_a_changed_byte_at_every_position_is_found(short: Path) -> None:
    """Every single bit, and all of them."""
    masks = [*(1 << bit for bit in range(8)), 255]
    assert _every_flip_is_found(short, lambda _: masks) > 9000


@pytest.mark.long
def test_every_other_byte_at_every_position_is_found(short: Path) -> None:
    assert _every_flip_is_found(short, lambda _: range(1, 256)) > 250_000


def test_every_truncation_is_found(short: Path) -> None:
    intact = short.read_bytes()
    for length in range(len(intact)):
        short.write_bytes(intact[:length])
        assert refused(short), length


def test_a_torn_export_is_taken_only_on_request_and_never_against_a_head(
    exported: Path, written: Ledger
) -> None:
    intact, lines = exported.read_bytes(), lines_of(exported)
    first = Ledger.verify(exported).entries
    for length in (len(intact) - 1, len(intact) - 100, len(intact) - len(lines[-1]), len(lines[0])):
        exported.write_bytes(intact[:length])
        with pytest.raises(BrokenChain, match="last line"):
            Ledger.verify(exported)
        found = Ledger.verify(exported, allow_torn=True)
        assert found.torn is not None
        assert found.entries == first[: len(found.entries)]
        with pytest.raises(BrokenChain):
            Ledger.verify(exported, expect_head=found.head)
        with pytest.raises(InvalidParameter, match="exclude"):
            Ledger.verify(exported, expect_head=found.head, allow_torn=True)
    exported.write_bytes(intact[: len(lines[0]) - 1])
    with pytest.raises(LedgerUnavailable):
        Ledger.verify(exported, allow_torn=True)
    exported.write_bytes(intact)
    assert Ledger.verify(exported, allow_torn=True).torn is None


def test_every_line_removed_doubled_or_moved_is_found(exported: Path) -> None:
    lines = lines_of(exported)
    for i in range(len(lines)):
        changed = [lines[:i] + lines[i + 1 :], [*lines[:i], lines[i], *lines[i:]]]
        for j in range(i):
            swapped = list(lines)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            changed.append(swapped)
        for variant in changed:
            exported.write_bytes(b"".join(variant))
            with pytest.raises(AccountingError):
                Ledger.verify(exported)


def test_lines_spliced_in_from_another_ledger_are_found(
    exported: Path, make_ledger: Make, release: Gaussian, evidence: Evid, tmp_path: Path
) -> None:
    """The other ledger has the same declaration and nearly the same history."""
    other = make_ledger("other.ledger")
    other.settle(other.reserve(release, round=0, key="a"), CHEAP, evidence | {"modulus": 2**32})
    other.abort(other.reserve(release, round=1, key="b"), opened=False)
    other.export(tmp_path / "other.jsonl")
    ours, theirs = lines_of(exported), lines_of(tmp_path / "other.jsonl")
    for index in range(min(len(ours), len(theirs)) - 1):
        exported.write_bytes(b"".join([*ours[:index], theirs[index], *ours[index + 1 :]]))
        with pytest.raises(AccountingError):
            Ledger.verify(exported)
        exported.write_bytes(b"".join([*ours[:index], *theirs[index:]]))
        if index:
            with pytest.raises(AccountingError):
                Ledger.verify(exported)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw + b"\n",
        lambda raw: raw + b" ",
        lambda raw: raw + raw,
        lambda raw: b"\xef\xbb\xbf" + raw,
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: raw.replace(b'{"body":', b'{"body": ', 1),
        lambda raw: b"\n" + raw,
        lambda raw: b"",
        lambda raw: b"\0" * 300,
        lambda raw: b"[" * 100_000,
        lambda raw: b'{"body":' + b"[" * 100_000 + b"\n",
        lambda raw: b'{"entries":0,"head":"None"}\n',
    ],
)
def test_other_bytes_are_refused(change: Callable[[bytes], bytes], exported: Path) -> None:
    exported.write_bytes(change(exported.read_bytes()))
    with pytest.raises((BrokenChain, LedgerUnavailable)):
        Ledger.verify(exported)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=400))
def test_any_bytes_give_one_of_our_errors(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any"
    for content in (raw, b'{"body":' + raw + b"\n", b"SQLite format 3\0" + raw):
        path.write_bytes(content)
        with pytest.raises(AccountingError):
            Ledger.verify(path)


# --- an attacker that computes all hashes anew ----------------------------------------------------


def test_a_rewritten_history_is_found_by_whoever_knows_a_head(
    exported: Path, written: Ledger
) -> None:
    bodies = bodies_of(exported)
    assert chained(bodies) == exported.read_bytes()
    bodies[2]["evidence"]["survivors"] = 10
    exported.write_bytes(chained(bodies))
    Ledger.verify(exported)  # nothing in the file can tell
    for seen in (
        written.head,
        *(Head(sequence=e.sequence, hash=e.hash) for e in written.entries()),
    ):
        if seen.sequence >= 2:
            with pytest.raises(LedgerRolledBack):
                Ledger.verify(exported, expect_head=seen)


def test_a_shortened_history_is_found_by_whoever_knows_a_head(
    exported: Path, written: Ledger
) -> None:
    exported.write_bytes(chained(bodies_of(exported)[:5]))
    old = Ledger.verify(exported).head
    assert old.sequence == 4
    with pytest.raises(LedgerRolledBack, match="seen before"):
        Ledger.verify(exported, expect_head=written.head)
    Ledger.verify(exported, expect_head=old)


def cheapest(header: LedgerHeader, event: Gaussian) -> int:
    ticks = floor_ticks(event, order=header.order, adjacency=header.adjacency)
    assert ticks is not None
    return ticks


def test_prices_are_recomputed_from_the_events_and_not_taken_from_the_file(
    exported: Path, written: Ledger
) -> None:
    """The attacker of this test knows how to compute hashes."""
    bodies = bodies_of(exported)
    least = cheapest(written.header, CHEAP)
    bodies[2]["ticks"] = least
    exported.write_bytes(chained(bodies))
    assert Ledger.verify(exported).entries[2].ticks == least  # another library's last bit
    bodies[2]["ticks"] = least - 1
    exported.write_bytes(chained(bodies))
    with pytest.raises(BrokenChain, match="costs") as caught:
        Ledger.verify(exported)
    assert caught.value.entry == 2


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        (lambda b: b[2].update(key="zzz"), 2),
        (lambda b: b[4].update(opened=True), 4),
        (lambda b: b[6].update(ticks=0), 6),
        (lambda b: b[8].update(seq=9), 8),
        (lambda b: b[8].update(round=-1), 8),
        (lambda b: b[0].update(epsilon=100.0), 0),
        (lambda b: b[0].update(ticks=b[0]["ticks"] + 2), 0),
        (lambda b: b[0].update(delta_reserve=1e-6), 0),
        (lambda b: b[2]["evidence"].update(clients=[1, 2]), 2),
        (lambda b: b[2]["evidence"].update(modulus=1), 2),
        (lambda b: b[2]["evidence"].update(modulus=2.0), 2),
        (lambda b: b[2]["evidence"].pop("transcript"), 2),
        (lambda b: b.insert(3, b[1] | {"seq": 3}), 3),
    ],
)
def test_an_illegal_history_with_right_hashes_is_found_at_its_entry(
    change: Callable[[Any], Any], entry: int, exported: Path
) -> None:
    bodies = bodies_of(exported)
    change(bodies)
    exported.write_bytes(chained(bodies))
    with pytest.raises(BrokenChain) as caught:
        Ledger.verify(exported)
    assert caught.value.entry == entry


def test_nothing_beyond_the_budget_is_accepted_whatever_the_hashes(
    exported: Path, ledger: Ledger
) -> None:
    bodies = bodies_of(exported)
    for number in range(20):
        bodies.append(bodies[1] | {"seq": len(bodies), "key": f"more {number}"})
    exported.write_bytes(chained(bodies))
    with pytest.raises(BrokenChain, match="budget"):
        Ledger.verify(exported)


def test_an_acknowledged_loss_and_injected_randomness_are_in_the_export(
    ledger: Ledger, release: Gaussian, tmp_path: Path
) -> None:
    lost = Head(sequence=99, hash=bytes(range(32)))
    ledger.acknowledge_loss(lost, event=release, rounds=50, reason="disk")
    ledger.note("seeded", subject=NoteSubject.INJECTED_RANDOMNESS)
    ledger.export(tmp_path / "x.jsonl")
    found = Ledger.verify(tmp_path / "x.jsonl", expect_head=lost)
    assert found.lost == {lost}
    assert found.overspent
    assert found.randomness is Randomness.INJECTED
    assert [e.kind for e in found.charged] == [EntryKind.NOTE]


# --- ledgers from before `modulus` and `delta_reserve` --------------------------------------------


def test_an_entry_without_the_later_fields_reads_and_writes_as_it_always_did(
    ledger: Ledger, release: Gaussian, evidence: Evid, tmp_path: Path
) -> None:
    ledger.settle(ledger.reserve(release, round=0, key="a"), release, evidence)
    ledger.export(tmp_path / "x.jsonl")
    header, _, settled = bodies_of(tmp_path / "x.jsonl")
    assert "delta_reserve" not in header
    assert "modulus" not in settled["evidence"]
    found = Ledger.verify(tmp_path / "x.jsonl")
    assert found.header.delta_reserve == 0.0
    assert found.entries[2].evidence is not None
    assert found.entries[2].evidence.modulus is None


# --- releases that are only (epsilon, delta)-private ----------------------------------------------


def test_a_reserve_of_delta_pays_for_what_can_fail_and_for_no_more(
    header: LedgerHeader, evidence: Evid, tmp_path: Path
) -> None:
    reserve = 2.0**-18
    failing = ApproxDP(epsilon=0.01, delta=2.0**-20, adjacency=header.adjacency)
    declared = replace(header, delta_reserve=reserve)
    assert declared.budget < header.budget
    with Ledger.create(tmp_path / "r.ledger", declared) as ledger:
        for index in range(4):
            assert ledger.fits(failing)
            ticket = ledger.reserve(failing, round=index, key=str(index))
            ledger.settle(ticket, failing, evidence)
        assert ledger.balance.failure_remaining == 0
        assert not ledger.fits(failing)
        with pytest.raises(BudgetExceeded, match="reserve of delta") as caught:
            ledger.reserve(failing, round=4, key="4")
        assert caught.value.limit == reserve
        assert ledger.fits(CHEAP)
        ledger.abort(ledger.reserve(CHEAP, round=4, key="4"), opened=False)
        assert 0 < ledger.epsilon().value <= declared.epsilon
        ledger.export(tmp_path / "r.jsonl")
    found = Ledger.verify(tmp_path / "r.jsonl")
    assert found.balance.failure_spent == 2**46
    bodies = bodies_of(tmp_path / "r.jsonl")
    bodies.append(bodies[1] | {"seq": len(bodies), "key": "one more"})
    (tmp_path / "r.jsonl").write_bytes(chained(bodies))
    with pytest.raises(BrokenChain, match="reserve of delta"):
        Ledger.verify(tmp_path / "r.jsonl")


def test_a_settlement_cannot_fail_more_often_than_was_reserved(
    header: LedgerHeader, evidence: Evid, tmp_path: Path
) -> None:
    likely = ApproxDP(epsilon=0.01, delta=2.0**-19, adjacency=header.adjacency)
    declared = replace(header, delta_reserve=2.0**-18)
    with Ledger.create(tmp_path / "r.ledger", declared) as ledger:
        ticket = ledger.reserve(CHEAP, round=0, key="a")
        with pytest.raises(OverReservation, match="more often"):
            ledger.settle(ticket, likely, evidence)
        assert ledger.open_tickets == (ticket,)
