"""LightSecAgg under any schedule of accidents: the plain sum over U3, or BelowThreshold."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import BelowThreshold, SecureFLError
from securefl.modular import RingVector
from securefl.primitives.field import PRIME
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.lightsecagg import (
    ClientPolicy,
    LightSecAggClient,
    LightSecAggParams,
    LightSecAggServer,
)
from securefl.protocols.lightsecagg.transitions import MessageType
from securefl.protocols.machine import Outbound
from securefl.round import Adversary, ClientId, Cohort, RoundConfig, RoundId, ThreatModel
from securefl.simulation.network import (
    Delivery,
    Direction,
    Envelope,
    InMemoryNetwork,
    delay,
    drop,
    duplicate,
)
from securefl.simulation.session import SessionRecord, run_session
from securefl.wire import decode_frame

FOUR = ["advertise_keys", "share_masks", "masked_input_collection", "recovery"]
FIVE = [*FOUR[:3], "consistency_check", "recovery"]
CONTEXT = bytes(32)
FEWER = settings.default.max_examples // 3  # every example is a session with signatures
Machines = tuple[LightSecAggServer, dict[ClientId, LightSecAggClient], RoundConfig]


def machines(params: LightSecAggParams, m: int) -> Machines:
    cohort = Cohort.of(range(10, 10 + params.n))
    config = params.config(
        round_id=RoundId(1),
        cohort=cohort,
        m=m,
        context_digest=CONTEXT,
        server_nonce=bytes(32),
    )
    identities = {u: IdentityKey(bytes([u] * 32)) for u in cohort}
    directory = IdentityDirectory({u: key.public for u, key in identities.items()})
    clients = {
        u: LightSecAggClient(
            u,
            config,
            context_digest=CONTEXT,
            policy=ClientPolicy(gamma=0),
            identity=identities[u],
            directory=directory,
            random_bytes=np.random.default_rng(u).bytes,  # hypothesis repeats sessions exactly
        )
        for u in cohort
    }
    return LightSecAggServer(config, directory=directory), clients, config


def params_of(n: int, U: int, T: int, *, active: bool, n_min: int | None = None) -> object:
    adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
    threat = ThreatModel(adversary=adversary, corrupt=1, dropped=n - U)
    return LightSecAggParams.of(n, threat, U=U, T=T, n_min=n_min)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    n, active = draw(st.integers(3, 12)), draw(st.booleans())
    possible = [
        (U, T)
        for U in range(3, n + 1)
        for T in range(1, U - 1)
        if not active or n + T < 2 * U
    ]  # fmt: skip
    U, T = draw(st.sampled_from(possible))
    n_min = draw(st.integers(U, n))
    m = draw(st.sampled_from([0, 1, 2, 3, 7, 8]))
    ids = [10 + i for i in range(n)]
    # Each client meets its fate in one phase: it vanishes, its frame is lost or comes late.
    phases = FIVE if active else FOUR
    fates = draw(
        st.dictionaries(
            st.sampled_from(ids),
            st.tuples(st.sampled_from(phases), st.sampled_from(["vanish", "lose", "late"])),
            max_size=n - U + draw(st.integers(0, 2)),
        )
    )
    entry = st.one_of(st.sampled_from([0, 1, PRIME - 1]), st.integers(0, PRIME - 1))
    return {
        "params": params_of(n, U, T, active=active, n_min=n_min), "m": m, "fates": fates,
        "phases": phases, "ids": ids, "order": draw(st.permutations(ids)),
        "vectors": {u: draw(st.lists(entry, min_size=m, max_size=m)) for u in ids},
        "twice": draw(st.booleans()),
    }  # fmt: skip


def oracle(case: dict) -> tuple[object, int, int]:
    """Who is left in each phase, counted by hand: (U3, 0, 0), or (phase, needed, replied)."""
    left, U3 = set(case["ids"]), set()
    for phase in case["phases"]:
        left -= {u for u, (when, _) in case["fates"].items() if when == phase}
        inputs_in = phase in ("consistency_check", "recovery")
        needed = case["params"].U if inputs_in else case["params"].n_min
        if len(left) < needed:
            return phase, needed, len(left)
        if phase == "masked_input_collection":
            U3 = set(left)
    return U3, 0, 0


@given(cases())
def test_the_sum_is_over_u3_or_the_round_is_below_threshold(case: dict) -> None:
    fates, params = case["fates"], case["params"]
    server, clients, _ = machines(params, case["m"])

    def hit(how: str):  # a policy's predicate
        return lambda e: e.direction is Direction.UP and fates.get(e.sender) == (e.phase, how)

    policies = [drop(hit("lose")), delay(hit("late"))]
    if case["twice"]:
        policies.append(duplicate(lambda e: True))
    place = {u: i for i, u in enumerate(case["order"])}
    network = InMemoryNetwork(
        policies=policies, reorder=lambda us: sorted(us, key=lambda u: place[u])
    )
    drops = {
        phase: [ClientId(u) for u, fate in fates.items() if fate == (phase, "vanish")]
        for phase in case["phases"]
    }
    inputs = {
        ClientId(u): RingVector(np.array(x, dtype=np.uint32), PRIME)
        for u, x in case["vectors"].items()
    }
    record = SessionRecord()
    expected, needed, had = oracle(case)
    try:
        result = run_session(server, clients, inputs, network=network, drops=drops, record=record)
    except BelowThreshold as error:
        assert isinstance(expected, str), "enough clients were left"
        assert (error.phase, error.needed, error.had) == (expected, needed, had)
        assert server.result is None
        return
    assert isinstance(expected, set), f"too few in {expected}, but a sum was opened"
    aggregate, sets = result.aggregate, result.survivors
    assert set(sets.U3) == expected
    plain = [sum(case["vectors"][u][i] for u in expected) % PRIME for i in range(case["m"])]
    assert aggregate.vector.values.tolist() == plain
    assert aggregate.survivors == tuple(sorted(expected))
    assert aggregate.min_honest == len(expected) - params.T
    assert aggregate.verified == (len(sets.U5) >= params.U + 1)
    assert aggregate.mismatched_pairs == ()
    for larger, smaller in pairwise([sets.U1, sets.U2, sets.U3, sets.U4, sets.U5]):
        assert set(smaller) <= set(larger)


VARIANTS = {"semi-honest": False, "active": True}


def prepared(variant: str, phase: str) -> tuple[object, dict, list[bytes]]:
    """Machines waiting in a phase, and genuine frames to mutate."""
    server, clients, config = machines(params_of(5, 4, 1, active=VARIANTS[variant]), 3)
    frames: list[bytes] = []
    waiting: list[Outbound] = [o for c in clients.values() for o in c.start()]
    while True:
        frames += [o.frame for o in waiting]
        if server.phase == phase:
            return server, clients, frames
        down = [o for item in waiting for o in server.receive(item.frame)]
        down += [o for o in server.close_phase() if isinstance(o, Outbound)]
        waiting = []
        for item in down:
            frames.append(item.frame)
            client = clients[item.recipient]
            waiting += client.receive(item.frame)
            if client.wants_input:
                waiting += client.set_input(RingVector.zeros(config.m, config.modulus))


@pytest.mark.parametrize("variant", list(VARIANTS))
@settings(max_examples=FEWER)
@given(data=st.data())
def test_random_and_mutated_bytes_raise_errors_of_the_tree_only(
    variant: str, data: st.DataObject
) -> None:
    phase = data.draw(st.sampled_from(FIVE if VARIANTS[variant] else FOUR))
    server, clients, frames = prepared(variant, phase)
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.integers(0, 9)) == 0:
            raw = bytearray(data.draw(st.binary(max_size=200)))
        else:
            raw = bytearray(data.draw(st.sampled_from(frames)))
            for _ in range(data.draw(st.integers(0, 3))):
                raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
            cut = data.draw(st.integers(0, 3))
            raw = raw[: len(raw) - cut]
        machine = data.draw(st.sampled_from([server, *clients.values()]))
        try:
            machine.receive(bytes(raw))
        except SecureFLError as error:
            assert str(error)


@pytest.mark.parametrize("variant", list(VARIANTS))
@settings(max_examples=FEWER)
@given(data=st.data())
def test_tampered_sessions_end_in_the_right_sum_or_say_unverified(
    variant: str, data: st.DataObject
) -> None:
    """A hostile wire changes all but masked inputs: a right sum, an error, or an unverified sum.

    A changed MaskedInput is a changed input, which nothing can detect. A changed answer among
    exactly U is found by nothing either, and then the sum says so.
    """
    server, clients, _ = machines(params_of(6, 4, 1, active=VARIANTS[variant]), 3)
    rate = data.draw(st.sampled_from([5, 20]))
    changed: set[ClientId] = set()

    def hostile(envelope: Envelope) -> list[Delivery] | None:
        if decode_frame(envelope.frame).type == MessageType.MASKED_INPUT:
            return None
        if data.draw(st.integers(0, rate)):
            return None
        changed.add(envelope.client)
        raw = bytearray(envelope.frame)
        place = data.draw(st.integers(60, len(raw) - 1)) if len(raw) > 60 else 0
        raw[place] ^= data.draw(st.integers(1, 255))
        return [Delivery(frame=bytes(raw))]

    vectors = {u: [int(u), 7, 1] for u in clients}
    inputs = {u: RingVector(np.array(x, dtype=np.uint32), PRIME) for u, x in vectors.items()}
    network = InMemoryNetwork(policies=[hostile])
    try:
        result = run_session(server, clients, inputs, network=network).aggregate
    except SecureFLError:
        assert changed
        return
    plain = [sum(vectors[u][i] for u in result.survivors) % PRIME for i in range(3)]
    right = result.vector.values.tolist() == plain
    assert right or not result.verified
    assert changed or (right and result.survivors == tuple(clients))
