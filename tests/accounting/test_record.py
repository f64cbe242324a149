"""The chain's rules, on text alone: what may follow what, and how a reader finds out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting import (
    Adjacency,
    BrokenChain,
    EntryKind,
    Evidence,
    Gaussian,
    Head,
    InvalidParameter,
    LedgerHeader,
    NonPrivate,
    Randomness,
    Unit,
    digest,
)
from accounting.events import to_json
from accounting.filter import TICKS_PER_UNIT, budget_ticks, floor_ticks, price
from accounting.record import Record, canonical, chain_hash, header_body

UTC = "2026-01-01T00:00:00.000Z"
CHEAP, DEAR = Gaussian(noise_multiplier=20.0), Gaussian(noise_multiplier=10.0)


def cost(event: Gaussian) -> int:
    ticks = price(event, order=20.0, adjacency=Adjacency.ZERO_OUT)
    assert ticks is not None
    return ticks


def add(record: Record, **body: Any) -> None:
    """Adds an entry whose hash is right, whatever else it says."""
    body = {"seq": record.next_sequence(), "utc": UTC, **body}
    text = canonical(body)
    record.admit(record.check(text, chain_hash(record.previous_hash(), text)))


@pytest.fixture
def record(header: LedgerHeader) -> Record:
    record = Record()
    add(record, **header_body(header, UTC))
    return record


def reserve(key: str = "a", event: Gaussian = DEAR, **more: Any) -> dict[str, Any]:
    return {
        "kind": "reserve",
        "round": 1,
        "key": key,
        "event": to_json(event),
        "ticks": cost(event),
    } | more


def settle(key: str = "a", event: Gaussian = CHEAP, **more: Any) -> dict[str, Any]:
    return {
        "kind": "settle",
        "round": 1,
        "key": key,
        "event": to_json(event),
        "ticks": cost(event),
        "evidence": None,
    } | more


def abort(key: str = "a", **more: Any) -> dict[str, Any]:
    return {"kind": "abort", "round": 1, "key": key, "opened": False, "ticks": 0} | more


def note(**more: Any) -> dict[str, Any]:
    return {"kind": "note", "subject": "comment", "text": "x"} | more


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


def test_a_legal_history_adds_up(record: Record) -> None:
    add(record, **reserve("a"))
    add(record, **reserve("b"))
    assert (record.spent, record.reserved) == (0, 2 * cost(DEAR))
    add(record, **settle("a"))
    assert (record.spent, record.reserved) == (cost(CHEAP), cost(DEAR))
    add(record, **abort("b", opened=True, ticks=cost(DEAR)))
    add(record, **reserve("c"))
    add(record, **abort("c"))
    assert (record.spent, record.reserved) == (cost(CHEAP) + cost(DEAR), 0)
    assert dict(record.settled.events) == {CHEAP: 1, DEAR: 1}
    add(record, **note())
    add(record, **note(subject="injected-randomness"))
    assert record.randomness is Randomness.INJECTED


ILLEGAL: dict[str, list[dict[str, Any]]] = {
    "a second header": [{"kind": "header"}],
    "an unknown kind": [note(kind="remark")],
    "no kind": [without(note(), "kind")],
    "a settlement without a reservation": [settle("zzz")],
    "an abort without a reservation": [abort("zzz")],
    "a settlement after a settlement": [reserve(), settle(), settle()],
    "a settlement after an abort": [reserve(), abort(), settle()],
    "an abort after a settlement": [reserve(), settle(), abort()],
    "the same key twice": [reserve(), reserve()],
    "a key used again after its settlement": [reserve(), settle(), reserve()],
    "a settlement of another round": [reserve(), settle(round=2)],
    "a dearer settlement": [reserve("a", CHEAP), settle("a", DEAR)],
    "a settlement charged more than reserved": [reserve(), settle(ticks=cost(DEAR) + 1)],
    "a reservation below its price": [reserve(ticks=cost(DEAR) - 5000)],
    "a settlement below its price": [reserve(), settle(ticks=cost(CHEAP) - 5000)],
    "a free reservation": [reserve(ticks=0)],
    "a negative price": [reserve(ticks=-1)],
    "a price that is no whole number": [reserve(ticks=float(cost(DEAR)))],
    "a price that is a truth value": [reserve(ticks=True)],
    "a refund beyond the reservation": [reserve(), abort(ticks=-5)],
    "an opened abort that is refunded": [reserve(), abort(opened=True, ticks=0)],
    "an unopened abort that is charged": [reserve(), abort(ticks=1)],
    "an abort that does not say whether it was opened": [reserve(), abort(opened=None)],
    "an event of infinite price": [reserve() | {"event": to_json(NonPrivate())}],
    "an unknown event": [reserve() | {"event": {"type": "magic"}}],
    "an unsupported event": [
        reserve()
        | {"event": {"type": "poisson", "sample_rate": 0.5, "event": {"type": "non-private"}}}
    ],
    "more than the budget": [reserve(f"k{i}") for i in range(11)],
    "a reservation far beyond the budget": [
        reserve() | {"event": to_json(Gaussian(noise_multiplier=0.1)), "ticks": 1 << 52}
    ],
    "client ids in an entry": [reserve(clients=[1, 2, 3])],
    "client ids in the evidence": [
        reserve(),
        settle(
            evidence={
                "planned": 3,
                "survivors": 3,
                "colluding_assumed": 0,
                "protocol": "p",
                "transcript": "0" * 64,
                "clients": [1, 2],
            }
        ),
    ],
    "evidence with a field missing": [reserve(), settle(evidence={"planned": 3})],
    "an empty key": [reserve("")],
    "a key with control characters": [reserve("a\nb")],
    "a negative round": [reserve(round=-1)],
    "a note without text": [note(text="")],
    "a note of unknown subject": [note(subject="gossip")],
    "a loss without a price": [note(subject="loss")],
    "a loss with a malformed head": [
        note(subject="loss", lost="7", event=to_json(DEAR), ticks=cost(DEAR))
    ],
    "a missing field": [without(reserve(), "round")],
    "a time that is no time": [note(utc="yesterday")],
    "a wrong number": [note(seq=7)],
    "a number that is a truth value": [note(seq=True)],
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_a_chain_with_right_hashes_but_an_illegal_entry_is_broken(
    name: str, record: Record
) -> None:
    *legal, illegal = ILLEGAL[name]
    for body in legal:
        add(record, **body)
    before = (record.head, record.spent, record.reserved, dict(record.open))
    with pytest.raises(BrokenChain) as caught:
        add(record, **illegal)
    assert caught.value.entry == record.next_sequence()
    assert (record.head, record.spent, record.reserved, dict(record.open)) == before


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "accounting-ledger/2"},
        {"epsilon": -1.0},
        {"epsilon": 9.0},
        {"delta": 0.5},
        {"epsilon": 1e308},
        {"order": 1.0},
        {"order": 10**400},
        {"adjacency": "none"},
        {"plan": "xyz"},
        {"ticks": 1 << 50},
        {"population": ""},
        {"unit": "household"},
        {"randomness": "dice"},
        {"kind": "note"},
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    change: dict[str, Any], header: LedgerHeader
) -> None:
    with pytest.raises(BrokenChain) as caught:
        add(Record(), **(header_body(header, UTC) | change))
    assert caught.value.entry == 0


def test_a_chain_cannot_start_with_anything_but_a_header() -> None:
    with pytest.raises(BrokenChain):
        add(Record(), **note())


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + " ",
        lambda text: text.replace(":", ": ", 1),
        lambda text: json.dumps(json.loads(text)),
        lambda text: text.replace('"kind"', '"kind":"note","kind"', 1),
        lambda text: text.replace("}", ',"x":NaN}'),
        lambda text: "[" + text + "]",
        lambda text: "",
        lambda text: None,
        lambda text: text.encode(),
    ],
)
def test_only_the_canonical_text_of_an_entry_is_accepted(
    change: Callable[[str], Any], record: Record
) -> None:
    text = canonical({"seq": 1, "utc": UTC, **note()})
    changed = change(text)
    raw = changed if isinstance(changed, str) else text
    with pytest.raises(BrokenChain):
        record.check(changed, chain_hash(record.previous_hash(), raw))


@given(st.integers(0, 255), st.integers(0, 31))
def test_any_other_hash_is_refused(value: int, position: int) -> None:
    header = LedgerHeader(
        population="p",
        unit=Unit.USER,
        adjacency=Adjacency.ADD_REMOVE,
        epsilon=1.0,
        delta=1e-5,
        order=20.0,
        plan=digest(DEAR),
    )
    record = Record()
    text = canonical(header_body(header, UTC))
    right = bytearray(chain_hash(bytes(32), text))
    if right[position] == value:
        return
    right[position] = value
    with pytest.raises(BrokenChain, match="hash"):
        record.check(text, bytes(right))


def test_the_hash_is_that_of_the_documented_formula(header: LedgerHeader) -> None:
    import hashlib

    text = canonical(header_body(header, UTC))
    first = hashlib.sha256(b"accounting-ledger/1\x00" + b"\x00" * 32 + text.encode()).digest()
    assert chain_hash(bytes(32), text) == first
    record = Record()
    record.admit(record.check(text, first))
    assert str(record.head) == f"0:{first.hex()}"


@given(st.integers(0, 1 << 50), st.binary(min_size=32, max_size=32))
def test_a_head_survives_its_text_form(sequence: int, raw: bytes) -> None:
    head = Head(sequence=sequence, hash=raw)
    assert Head.parse(str(head)) == head


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1:",
        ":" + "0" * 64,
        "01:" + "0" * 64,
        "-1:" + "0" * 64,
        "1:" + "0" * 63,
        "1:" + "G" * 64,
        "1:" + "0" * 64 + "\n",
    ],
)
def test_a_malformed_head_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        Head.parse(text)


@pytest.mark.parametrize(
    "change",
    [
        {"planned": 0},
        {"survivors": 0},
        {"survivors": True},
        {"colluding_assumed": -1},
        {"colluding_assumed": 11},
        {"protocol": ""},
        {"transcript": "AB" * 32},
        {"transcript": b"ab"},
        {"clients": [1]},
    ],
)
def test_impossible_evidence_is_refused(change: dict[str, Any], evidence: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter):
        Evidence.of(evidence | change)


# --- the ticks ------------------------------------------------------------------------------------


@given(st.floats(1e-3, 1e3), st.floats(1.01, 4096))
def test_a_price_is_the_cost_rounded_up_after_the_factor(z: float, order: float) -> None:
    from fractions import Fraction

    from accounting.curves import rdp_at

    event = Gaussian(noise_multiplier=z)
    exact = Fraction(rdp_at(event, order, Adjacency.ADD_REMOVE))
    ticks = price(event, order=order, adjacency=Adjacency.ADD_REMOVE)
    least = floor_ticks(event, order=order, adjacency=Adjacency.ADD_REMOVE)
    if ticks is None:
        assert exact > 1 << 20
        return
    scaled = exact * TICKS_PER_UNIT * (1 + Fraction(1, 1 << 29))
    assert scaled <= ticks < scaled + 1
    assert least is not None
    assert exact * TICKS_PER_UNIT <= least <= ticks


def test_no_event_is_priced_at_zero() -> None:
    event = Gaussian(noise_multiplier=1e200)
    assert price(event, order=2.0, adjacency=Adjacency.ADD_REMOVE) == 1


@given(st.floats(0.01, 100), st.floats(1e-12, 1e-2), st.floats(1.05, 1000))
def test_the_budget_is_the_conversion_turned_around(eps: float, delta: float, order: float) -> None:
    """Spending exactly B at order a* converts to at most eps, and one more RDP to more."""
    import mpmath as mp

    try:
        ticks = budget_ticks(eps, delta, order)
    except InvalidParameter:
        return
    with mp.workdps(40):
        a = mp.mpf(order)
        back = (
            mp.mpf(ticks) / TICKS_PER_UNIT
            + mp.log(1 - 1 / a)
            - (mp.log(delta) + mp.log(a)) / (a - 1)
        )
    assert float(back) == pytest.approx(eps, abs=1e-11, rel=1e-12)


def test_an_order_that_leaves_no_budget_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="achieved"):
        budget_ticks(0.1, 1e-5, 2.0)
    with pytest.raises(InvalidParameter, match="order"):
        budget_ticks(1.0, 1e-5, 1.0)


def test_entry_kinds_are_those_of_the_format() -> None:
    assert {kind.value for kind in EntryKind} == {"header", "reserve", "settle", "abort", "note"}
