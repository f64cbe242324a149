"""Any cohort, any vector, any schedule of accidents: the plain sum over U3, or BelowThreshold."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import BelowThreshold, ConfigurationError, Equivocation, SecureFLError
from securefl.modular import RingVector, ring_dtype
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.machine import Outbound
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggParams, SecAggServer
from securefl.round import (
    SERVER,
    Adversary,
    ClientId,
    Cohort,
    GraphSource,
    Layout,
    RoundConfig,
    RoundId,
    ThreatModel,
)
from securefl.simulation.network import (
    Delivery,
    Direction,
    Envelope,
    InMemoryNetwork,
    delay,
    drop,
    duplicate,
)
from securefl.simulation.session import Refused, SessionRecord, run_session

PHASES = ["advertise_keys", "share_keys", "masked_input_collection", "unmasking"]
CONTEXT = bytes(32)


def machines(
    n: int,
    alive: int,
    m: int,
    b: int,
    layout: Layout = Layout.OTHERS,
    *,
    k: int | None = None,
    active: bool = False,
    ids: list[int] | None = None,
) -> tuple[SecAggServer, dict[ClientId, SecAggClient], RoundConfig]:
    cohort = Cohort.of(range(10, 10 + n) if ids is None else ids)
    adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
    threat = ThreatModel(adversary=adversary, corrupt=1, dropped=n - alive)
    if k is None:
        params = SecAggParams.complete(n, threat, layout=layout)
    else:
        params = SecAggParams.harary(n, threat, k=k)
    config = params.config(
        round_id=RoundId(1),
        cohort=cohort,
        m=m,
        b=b,
        context_digest=CONTEXT,
        server_nonce=bytes(32),
    )
    policy = ClientPolicy(gamma=0, experimental_active_graph=True)
    identities = {u: IdentityKey(bytes([u] * 32)) for u in cohort}
    directory = IdentityDirectory({u: key.public for u, key in identities.items()})
    clients = {
        u: SecAggClient(
            u,
            config,
            context_digest=CONTEXT,
            policy=policy,
            identity=identities[u],
            directory=directory,
            random_bytes=np.random.default_rng(u).bytes,  # hypothesis repeats sessions exactly
        )
        for u in cohort
    }
    server = SecAggServer(config, directory=directory)
    if config.graph_source is GraphSource.BEACON:
        for machine in (server, *clients.values()):
            machine.set_beacon(bytes(32))
    return server, clients, config


def random_vector(draw: st.DrawFn, m: int, b: int) -> list[int]:
    top = (1 << b) - 1
    edge = st.sampled_from([0, 1, top, top // 2])
    return draw(st.lists(st.one_of(edge, st.integers(0, top)), min_size=m, max_size=m))


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    n = draw(st.integers(3, 12))
    m, b = draw(st.sampled_from([0, 1, 2, 3, 7, 8])), draw(st.integers(1, 64))
    layout = draw(st.sampled_from(Layout))
    alive = draw(st.integers(3, n))
    ids = [10 + i for i in range(n)]
    # Each client meets its fate in one phase: it vanishes, its frame is lost or comes late.
    fates = draw(
        st.dictionaries(
            st.sampled_from(ids),
            st.tuples(st.sampled_from(PHASES), st.sampled_from(["vanish", "lose", "late"])),
            max_size=n - alive + draw(st.integers(0, 2)),
        )
    )
    vectors = {u: random_vector(draw, m, b) for u in ids}
    return {
        "n": n, "m": m, "b": b, "layout": layout, "alive": alive, "fates": fates,
        "vectors": vectors, "order": draw(st.permutations(ids)),
        "twice": draw(st.booleans()),
    }  # fmt: skip


def oracle(ids: list[int], fates: dict[int, tuple[str, str]], alive: int) -> tuple[object, int]:
    """Who is left in each phase, counted by hand: (U3, 0), or (phase, how many had replied)."""
    left, U3 = set(ids), set()
    for phase in PHASES:
        left -= {u for u, (when, _) in fates.items() if when == phase}
        if len(left) < alive:
            return phase, len(left)
        if phase == "masked_input_collection":
            U3 = set(left)
    return U3, 0


@given(cases())
def test_the_sum_is_over_u3_or_the_round_is_below_threshold(case: dict) -> None:
    ids, fates, alive = list(case["vectors"]), case["fates"], case["alive"]
    server, clients, config = machines(case["n"], alive, case["m"], case["b"], case["layout"])

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
        for phase in PHASES
    }
    inputs = {
        ClientId(u): RingVector(np.array(x, dtype=ring_dtype(config.modulus)), config.modulus)
        for u, x in case["vectors"].items()
    }
    record = SessionRecord()
    expected, had = oracle(ids, fates, alive)
    try:
        result = run_session(server, clients, inputs, network=network, drops=drops, record=record)
    except BelowThreshold as error:
        assert isinstance(expected, str), f"{len(ids)} clients were enough"
        assert (error.phase, error.had) == (expected, had)
        assert error.needed == alive
        assert server.result is None
        return
    assert isinstance(expected, set), f"too few in {expected}, but a sum was opened"
    assert set(result.survivors.U3) == expected
    plain = [sum(case["vectors"][u][i] for u in expected) for i in range(case["m"])]
    assert result.aggregate.vector.values.tolist() == [x % (1 << case["b"]) for x in plain]
    assert result.aggregate.survivors == tuple(sorted(expected))
    sets = [result.survivors.U1, result.survivors.U2, result.survivors.U3, result.survivors.U5]
    for larger, smaller in pairwise(sets):
        assert set(smaller) <= set(larger)
    gone = {u for u, fate in fates.items() if PHASES.index(fate[0]) < 2}
    gone |= {u for u, fate in fates.items() if fate == ("masked_input_collection", "vanish")}
    assert record.sent_input == set(ids) - gone


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_clients_are_refused(n: int) -> None:
    with pytest.raises(ConfigurationError, match="3"):
        machines(n, n, 1, 8, Layout.OTHERS)


# -- noise on the wire ----------------------------------------------------------------------------


VARIANTS = {
    "secagg": {"n": 4, "alive": 3},
    "secagg, active": {"n": 4, "alive": 4, "active": True},
    "secagg+": {"n": 6, "alive": 5, "k": 4},
    "secagg+, active": {"n": 6, "alive": 5, "k": 4, "active": True},
}
PLACES = [
    (variant, phase)
    for variant, what in VARIANTS.items()
    for phase in [*PHASES[:3], *["consistency_check"] * ("active" in what), PHASES[3]]
]


def prepared(
    variant: str, phase: str
) -> tuple[SecAggServer, dict[ClientId, SecAggClient], list[bytes]]:
    """Machines waiting in a phase, and genuine frames to mutate."""
    server, clients, config = machines(m=3, b=16, **VARIANTS[variant])
    frames: list[bytes] = []
    waiting = {u: c.start() for u, c in clients.items()}
    for here in server.phases:
        frames += [o.frame for out in waiting.values() for o in out if isinstance(o, Outbound)]
        if here == phase:
            break
        for out in waiting.values():
            for item in out:
                server.receive(item.frame)
        waiting = {}
        for item in server.close_phase():
            if isinstance(item, Outbound):
                frames.append(item.frame)
                client = clients[item.recipient]
                waiting[item.recipient] = client.receive(item.frame)
                if client.wants_input:
                    waiting[item.recipient] = client.set_input(
                        RingVector.zeros(config.m, config.modulus)
                    )
    return server, clients, frames


@pytest.mark.parametrize(("variant", "phase"), PLACES)
@given(data=st.data())
def test_random_and_mutated_bytes_raise_errors_of_the_tree_only(
    variant: str, phase: str, data: st.DataObject
) -> None:
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
@given(data=st.data())
def test_tampered_sessions_end_in_the_right_sum_or_an_error(
    variant: str, data: st.DataObject
) -> None:
    """A hostile wire changes all but two kinds of frames: a right sum, or an error.

    A changed MaskedInput is a changed input, which nothing can detect. A changed ShareDelivery
    tells a client another U2, so its masks do not cancel: see the next test.
    """
    m = 3
    server, clients, config = machines(m=m, b=16, **VARIANTS[variant])
    rate = data.draw(st.sampled_from([5, 20]))
    changed: set[ClientId] = set()

    def hostile(envelope: Envelope) -> list[Delivery] | None:
        if envelope.phase == "masked_input_collection":
            return None
        if data.draw(st.integers(0, rate)):
            return None
        changed.add(envelope.client)
        raw = bytearray(envelope.frame)
        place = data.draw(st.integers(60, len(raw) - 1)) if len(raw) > 60 else 0
        raw[place] ^= data.draw(st.integers(1, 255))
        return [Delivery(frame=bytes(raw))]

    vectors = {u: [int(u), 7, 1] for u in clients}
    inputs = {
        u: RingVector(np.array(x, dtype=np.uint32), config.modulus) for u, x in vectors.items()
    }
    network = InMemoryNetwork(policies=[hostile])
    try:
        result = run_session(server, clients, inputs, network=network)
    except SecureFLError:
        assert changed
        return
    U3 = result.aggregate.survivors
    plain = [sum(vectors[u][i] for u in U3) % config.modulus for i in range(m)]
    assert result.aggregate.vector.values.tolist() == plain
    assert changed or tuple(clients) == U3


def test_a_client_that_was_told_another_u2_notices_and_says_so() -> None:
    """The limit of the semi-honest version, pinned: frames of the server must arrive unchanged.

    Client 14 is shown client 13 in U2 in the place of client 12. Its masks towards 12 are missing,
    so the sum is noise. The client finds out from the survivor list and aborts, but the others can
    open the sum without it.
    """
    server, clients, config = machines(5, 3, 1, 16, Layout.OTHERS)

    def another_u2(envelope: Envelope) -> list[Delivery] | None:
        delivery = envelope.direction is Direction.DOWN and envelope.recipient == 14
        if not delivery or envelope.phase != "masked_input_collection":
            return None
        raw = bytearray(envelope.frame)
        assert raw[60] == 0b0111  # of its peers 10, 11, 12, 13 the last one is missing
        raw[60] = 0b1011
        return [Delivery(frame=bytes(raw))]

    inputs = {u: RingVector.zeros(1, config.modulus) for u in clients}
    network = InMemoryNetwork(policies=[another_u2])
    record = SessionRecord()
    drops = {"share_keys": [ClientId(13)]}
    result = run_session(server, clients, inputs, network=network, drops=drops, record=record)
    (refused,) = [e for e in record.events if isinstance(e, Refused)]
    assert refused.by == 14
    assert isinstance(refused.error, Equivocation)
    assert clients[ClientId(14)].phase == "aborted"
    assert 14 in result.aggregate.survivors


def test_the_server_is_never_the_sender_of_a_clients_frame() -> None:
    server, clients, _ = machines(3, 3, 1, 8, Layout.OTHERS)
    (out,) = next(iter(clients.values())).start()
    assert out.recipient == SERVER
    assert server.receive(out.frame) == []
