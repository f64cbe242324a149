"""Paillier under any schedule of accidents and on a hostile wire: the plain sum over U3, or an
error of the library."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import BelowThreshold, SecureFLError
from securefl.modular import RingVector, ring_dtype
from securefl.primitives.paillier import generate_keypair
from securefl.primitives.paillier.threshold import deal
from securefl.protocols.machine import ClientDropped, Outbound
from securefl.protocols.policy import ClientPolicy
from securefl.round import SERVER, ClientId, Cohort, RoundId
from securefl.simulation.network import (
    Delivery,
    Direction,
    Envelope,
    InMemoryNetwork,
    delay,
    drop,
    duplicate,
)
from securefl.simulation.paillier import PaillierParties, Trust, paillier_session
from securefl.simulation.session import SessionRecord, run_session

B, MODULUS = 12, 1 << 12
FEWER = settings.default.max_examples // 3  # every example is a session with proofs
COLLECTION, CHECKING, OPENING = "masked_input_collection", "checking", "opening"


@lru_cache(maxsize=2)
def keys(trust: Trust) -> Any:
    """Small keys: 512-bit safe primes hide nothing but have every algebraic property."""
    random = np.random.default_rng(len(trust)).bytes
    if trust is Trust.KEY_HOLDER:
        return generate_keypair(512, random_bytes=random, min_bits=512)
    public, shares = deal(threshold=3, parties=4, bits=512, random_bytes=random, min_bits=512)
    return public, tuple(shares)


def machines(
    trust: Trust, ids: list[int], alive: int, m: int, *, hybrid: bool = False
) -> PaillierParties:
    return paillier_session(
        trust,
        Cohort.of(ids),
        round_id=RoundId(3),
        alive=alive,
        m=m,
        b=B,
        context_digest=bytes(32),
        policy=ClientPolicy(gamma=0, assume_no_corruption=True),
        keys=keys(trust),
        experimental_hybrid=hybrid,
    )


def vectors_of(ids: list[int], m: int) -> dict[ClientId, RingVector]:
    rng = np.random.default_rng(m)
    return {
        ClientId(u): RingVector(rng.integers(0, MODULUS, m).astype(ring_dtype(MODULUS)), MODULUS)
        for u in ids
    }


def plain(inputs: dict[ClientId, RingVector], who: Any, m: int) -> list[int]:
    return [sum(int(inputs[ClientId(u)].values[i]) for u in who) % MODULUS for i in range(m)]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    trust = draw(st.sampled_from(Trust))
    n = draw(st.integers(3, 6))
    alive = draw(st.integers(3, n))
    phases = ["check_in", COLLECTION]
    phases += [CHECKING, OPENING] if trust is Trust.KEY_HOLDER else [OPENING]
    ids = [10 + i for i in range(n)]
    # Deciders count from 0 in the order of the session: witness, key holder; or the share holders.
    deciders = 2 if trust is Trust.KEY_HOLDER else 4
    hows = st.sampled_from(["vanish", "lose", "late", "deaf"])
    return {
        "trust": trust, "alive": alive, "ids": ids, "phases": phases,
        "m": draw(st.sampled_from([0, 1, 3, 40])),
        "clients": draw(st.dictionaries(
            st.sampled_from(ids), st.tuples(st.sampled_from(phases), hows), max_size=n - alive + 1,
        )),
        "deciders": draw(st.dictionaries(
            st.integers(0, deciders - 1), st.tuples(st.sampled_from(phases[2:]), hows), max_size=2,
        )),
        "seed": draw(st.integers(0, 99)), "twice": draw(st.booleans()),
    }  # fmt: skip


def oracle(case: dict[str, Any]) -> tuple[Any, int, int]:
    """Who is left in each phase, counted by hand: (U3, 0, 0), or (phase, needed, replied)."""
    left, U3 = set(case["ids"]), set()
    key_holder = case["trust"] is Trust.KEY_HOLDER
    there = {CHECKING: {0}, OPENING: {1} if key_holder else {0, 1, 2, 3}}
    fates = case["deciders"]
    for phase in case["phases"]:
        if phase in there:
            needed = 3 if phase == OPENING and not key_holder else 1
            order = case["phases"].index(phase)
            # Who vanished stays away; who was deaf, lost or late in a phase of its own missed it.
            missed = {
                d for d, (when, how) in fates.items()
                if when == phase or (how == "vanish" and case["phases"].index(when) < order)
            }  # fmt: skip
            had = len(there[phase] - missed)
        else:
            # A check-in goes out before the server sends anything: nobody is deaf to it.
            left -= {
                u for u, (when, how) in case["clients"].items()
                if when == phase and (phase, how) != ("check_in", "deaf")
            }  # fmt: skip
            needed, had = case["alive"], len(left)
        if had < needed:
            return phase, needed, had
        if phase == COLLECTION:
            U3 = set(left)
    return U3, 0, 0


@given(cases())
def test_the_sum_is_over_u3_or_the_round_is_below_threshold(case: dict[str, Any]) -> None:
    made = machines(case["trust"], case["ids"], case["alive"], case["m"])
    fates = {ClientId(u): fate for u, fate in case["clients"].items()}
    names = list(made.parties)
    fates |= {names[i]: fate for i, fate in case["deciders"].items()}

    def hit(direction: Direction, how: str) -> Callable[[Envelope], bool]:
        return lambda e: (
            e.direction is direction
            and fates.get(e.sender if direction is Direction.UP else e.recipient) == (e.phase, how)
        )

    policies = [
        drop(hit(Direction.UP, "lose")),
        delay(hit(Direction.UP, "late")),
        drop(hit(Direction.DOWN, "deaf")),
    ]
    if case["twice"]:
        policies.append(duplicate(lambda e: True))
    rng = np.random.default_rng(case["seed"])
    network = InMemoryNetwork(
        policies=policies, reorder=lambda us: [us[i] for i in rng.permutation(len(us))]
    )
    drops = {
        phase: [u for u, fate in fates.items() if fate == (phase, "vanish")]
        for phase in case["phases"]
    }
    inputs, record = vectors_of(case["ids"], case["m"]), SessionRecord()
    expected, needed, had = oracle(case)
    try:
        result = run_session(
            made.server,
            made.clients,
            inputs,
            parties=made.parties,
            network=network,
            drops=drops,
            record=record,
        )
    except BelowThreshold as error:
        assert isinstance(expected, str), "enough were left"
        assert (error.phase, error.needed, error.had) == (expected, needed, had)
        assert made.server.result is None
        return
    assert isinstance(expected, set), f"too few in {expected}, but a sum was opened"
    assert set(result.survivors.U3) == expected == set(result.aggregate.survivors)
    assert result.aggregate.vector.values.tolist() == plain(inputs, expected, case["m"])


@pytest.mark.parametrize("trust", Trust)
@settings(max_examples=FEWER)
@given(seed=st.integers(0, 1 << 32), rate=st.sampled_from([4, 13, 40]))
def test_a_hostile_wire_changes_no_sum(trust: Trust, seed: int, rate: int) -> None:
    """Stronger than for masks: every frame of a client or decider is signed and every request of
    the server is recomputed, so a changed byte costs a place or the round, never the sum."""
    ids = [1, 2, 3, 4, 5]
    made = machines(trust, ids, 3, 3)
    rng = np.random.default_rng(seed)  # frames are fresh every time: hypothesis cannot draw places
    changed: set[ClientId] = set()

    def hostile(envelope: Envelope) -> list[Delivery] | None:
        if rng.integers(rate):
            return None
        changed.add(envelope.client)
        raw = bytearray(envelope.frame)
        raw[rng.integers(len(raw))] ^= int(rng.integers(1, 256))
        return [Delivery(frame=bytes(raw))]

    inputs = vectors_of(ids, 3)
    try:
        result = run_session(
            made.server,
            made.clients,
            inputs,
            parties=made.parties,
            network=InMemoryNetwork(policies=[hostile]),
        ).aggregate
    except SecureFLError:
        assert changed
        assert made.server.result is None
        return
    assert result.vector.values.tolist() == plain(inputs, result.survivors, 3)
    assert set(ids) - set(result.survivors) <= changed


@lru_cache(maxsize=3)
def recorded(trust: Trust, hybrid: bool) -> tuple[bytes, ...]:
    """Every frame of one honest session."""
    ids = [1, 2, 3, 4]
    made = machines(trust, ids, 3, 3, hybrid=hybrid)
    frames: list[bytes] = []

    def listen(envelope: Envelope) -> None:
        frames.append(envelope.frame)

    run_session(
        made.server,
        made.clients,
        vectors_of(ids, 3),
        parties=made.parties,
        network=InMemoryNetwork(policies=[listen]),
    )
    return tuple(frames)


@pytest.mark.parametrize("hybrid", [False, True], ids=["packed", "hybrid"])
@pytest.mark.parametrize("trust", Trust)
@settings(max_examples=FEWER)
@given(seed=st.integers(0, 1 << 32), rate=st.sampled_from([4, 13, 40]))
def test_random_mutated_and_foreign_bytes_raise_errors_of_the_tree_only(
    trust: Trust, hybrid: bool, seed: int, rate: int
) -> None:
    """Any frame to any machine in any phase: the session still ends in the plain sum or an error.

    Frames are also signed anew by their senders, so that what follows the signature check is met
    by changed content too: then a malicious client or decider is at work, and the others go on.
    """
    ids, m = [1, 2, 3, 4], 3
    made = machines(trust, ids, 3, m, hybrid=hybrid)
    frames, inputs = recorded(trust, hybrid), vectors_of(ids, m)
    liars: set[ClientId] = set()
    everybody = {**made.clients, **made.parties}
    rng = np.random.default_rng(seed)

    def hostile(envelope: Envelope) -> list[Delivery] | None:
        if rng.integers(rate):
            return None
        how = ["noise", "foreign", "edited", "signed"][rng.integers(4)]
        liars.add(envelope.client)
        if how == "noise":
            return [Delivery(frame=rng.bytes(rng.integers(200)))]
        if how == "foreign":
            return [Delivery(frame=frames[rng.integers(len(frames))])]
        raw = bytearray(envelope.frame)
        for _ in range(rng.integers(1, 4)):
            raw[rng.integers(6, len(raw))] ^= int(rng.integers(1, 256))
        if how == "signed" and envelope.direction is Direction.UP:
            end = everybody[envelope.sender]._end
            body = bytes(raw[60 : len(raw) - 64])
            out, _ = end.outbound(raw[6], body, session=end.config_digest)
            raw = bytearray(out.frame)
        return [Delivery(frame=bytes(raw))]

    try:
        result = run_session(
            made.server,
            made.clients,
            inputs,
            parties=made.parties,
            network=InMemoryNetwork(policies=[hostile]),
        ).aggregate
    except SecureFLError as error:
        assert str(error)
        assert liars
        return
    if not liars & set(made.parties):
        assert result.vector.values.tolist() == plain(inputs, result.survivors, m)


@settings(max_examples=FEWER)
@given(data=st.data())
def test_frames_in_any_order_leave_the_server_in_a_state_it_knows(data: st.DataObject) -> None:
    """Every frame that honest parties made, in any order, with the phases closed at any time."""
    ids, m = [1, 2, 3, 4], 2
    trust = data.draw(st.sampled_from(Trust))
    made = machines(trust, ids, 3, m)
    server, inputs = made.server, vectors_of(ids, m)
    flying: list[tuple[Any, bytes]] = [
        (u, item.frame) for u, client in made.clients.items() for item in client.start()
    ]
    everybody = {**made.clients, **made.parties}
    accepted: set[ClientId] = set()
    for _ in range(60):
        if server.final:
            break
        if flying and data.draw(st.integers(0, 4)):
            place = data.draw(st.integers(0, len(flying) - 1))
            sender, frame = flying[place]
            if data.draw(st.integers(0, 4)):
                flying.pop(place)  # else it will arrive once more
            if sender == SERVER:
                continue
            try:
                events = server.receive(frame, sender)
            except SecureFLError:
                continue
            assert all(isinstance(e, ClientDropped) and e.reason.name == "LATE" for e in events)
            continue
        try:
            out = server.close_phase()
        except BelowThreshold:
            assert server.phase == "aborted"
            break
        for item in out:
            if isinstance(item, Outbound):
                machine = everybody[item.recipient]
                try:
                    answers = list(machine.receive(item.frame, SERVER))
                except SecureFLError:
                    continue
                if machine.wants_input:
                    accepted.add(item.recipient)
                    answers += machine.set_input(inputs[item.recipient])
                flying += [(item.recipient, x.frame) for x in answers if isinstance(x, Outbound)]
    if server.result is not None:
        survivors = server.result.survivors
        assert len(survivors) >= 3
        assert set(survivors) <= accepted
        assert server.result.vector.values.tolist() == plain(inputs, survivors, m)
