"""What every protocol without a server must do: the suite of this folder, as peers see it.

The sentences are those of ``test_conformance.py``; where those ask the server, these ask everybody.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from securefl.errors import (
    BelowThreshold,
    LocalProtocolError,
    SecureFLError,
    UnexpectedMessage,
    WireError,
)
from securefl.modular import RingVector
from securefl.primitives.signing import IdentityKey
from securefl.protocols.machine import AggregateReady, Outbound, PeerMachine, PhaseClosed
from securefl.protocols.peersum import ClientPolicy, PeerSumParams
from securefl.protocols.peersum.parties import make_peers
from securefl.round import SERVER, ClientId, Cohort, RoundId
from securefl.simulation.network import Envelope, InMemoryNetwork, delay
from securefl.simulation.peers import PeersResult, run_peers

N, ALIVE = 7, 5


@dataclass
class Instance:
    """One fresh session: 7 peers, 5 of whom must stay; inputs leave in ``input_phase``."""

    peers: dict[ClientId, PeerMachine]
    modulus: int
    m: int
    input_phase: str

    @property
    def phases(self) -> tuple[str, ...]:
        return self.peers[ClientId(1)].phases

    def vector(self, values: list[int]) -> RingVector:
        return RingVector(np.array(values, dtype=np.uint32), self.modulus)

    def inputs(self) -> dict[ClientId, RingVector]:
        return {u: self.vector([u, 2 * u, self.modulus - u]) for u in self.peers}

    def plain(self, ids: list[int]) -> list[int]:
        total = sum(ids)
        return [total, 2 * total, -total % self.modulus]

    def run(self, **how: object) -> PeersResult:
        return run_peers(self.peers, **{"inputs": self.inputs(), **how})


def peersum(**numbers: int) -> Callable[[], Instance]:
    def build() -> Instance:
        params = PeerSumParams.of(N, corrupt=1, dropped=N - ALIVE, **numbers)
        config = params.config(
            round_id=RoundId(9),
            cohort=Cohort.of(range(1, N + 1)),
            m=3,
            context_digest=bytes(32),
            nonce=os.urandom(32),
        )
        peers = make_peers(
            config,
            config.cohort.ids,
            context_digest=bytes(32),
            policy=ClientPolicy(gamma=0),
            identities={u: IdentityKey(os.urandom(32)) for u in config.cohort},
        )
        return Instance(dict(peers), config.modulus, config.m, "share_input")

    return build


PROTOCOLS = {"peersum": peersum()}


@pytest.fixture(params=list(PROTOCOLS))
def instance(request: pytest.FixtureRequest) -> Instance:
    return PROTOCOLS[request.param]()


def test_nobody_drops_and_everybody_has_the_sum_of_all(instance: Instance) -> None:
    result = instance.run()
    everybody = list(range(1, N + 1))
    assert list(result.aggregates) == everybody
    for u in everybody:
        aggregate = result.aggregates[ClientId(u)]
        assert aggregate.vector.values.tolist() == instance.plain(everybody)
        assert aggregate.survivors == tuple(everybody)
        assert aggregate.verified
        assert len(aggregate.transcript_digest) == 32
        events = result.events_of[ClientId(u)]
        closed = [e.phase for e in events if isinstance(e, PhaseClosed)]
        assert tuple(closed) == instance.phases
        assert isinstance(events[-1], AggregateReady)
        assert instance.peers[ClientId(u)].phase == "done"
        assert instance.peers[ClientId(u)].final


@pytest.mark.parametrize("too_many", [0, 1])
@pytest.mark.parametrize("place", range(5))
def test_the_threshold_is_exact_in_every_phase(
    instance: Instance, place: int, too_many: int
) -> None:
    phase = instance.phases[place]
    gone = [ClientId(u) for u in range(1, N - ALIVE + too_many + 1)]
    if too_many:
        with pytest.raises(BelowThreshold) as caught:
            instance.run(drops={phase: gone})
        assert (caught.value.needed, caught.value.had) == (ALIVE, ALIVE - 1)
        assert caught.value.phase == phase
        assert all(p.result is None and p.phase == "aborted" for p in instance.peers.values())
        return
    result = instance.run(drops={phase: gone})
    sent = place > instance.phases.index(instance.input_phase)
    in_sum = list(range(1 if sent else len(gone) + 1, N + 1))
    assert list(result.aggregates) == list(range(len(gone) + 1, N + 1))
    for aggregate in result.aggregates.values():
        assert aggregate.vector.values.tolist() == instance.plain(in_sum)
        assert aggregate.survivors == tuple(in_sum)


@pytest.mark.parametrize("value", ["largest", "zero"])
def test_sums_are_exact_at_the_modulus_limit(instance: Instance, value: str) -> None:
    entry = instance.modulus - 1 if value == "largest" else 0
    result = instance.run(inputs={u: instance.vector([entry] * 3) for u in instance.peers})
    assert result.aggregate.vector.values.tolist() == [N * entry % instance.modulus] * 3


@pytest.mark.parametrize("place", range(5))
def test_a_late_frame_never_changes_the_sum(instance: Instance, place: int) -> None:
    phase = instance.phases[place]

    def late(envelope: Envelope) -> bool:
        return envelope.sender == ClientId(2) and envelope.phase == phase

    result = instance.run(network=InMemoryNetwork(policies=[delay(late)]))
    sent = place > instance.phases.index(instance.input_phase)
    inside = [u for u in range(1, N + 1) if u != 2 or sent]
    for u in range(3, N + 1):
        assert result.aggregates[ClientId(u)].vector.values.tolist() == instance.plain(inside)


def test_unknown_senders_false_names_and_other_rounds_change_nothing(
    instance: Instance, edit: Callable[..., bytes]
) -> None:
    one = instance.peers[ClientId(1)]
    one.start()
    frames = {
        u: next(o.frame for o in peer.start() if isinstance(o, Outbound) and o.recipient == 1)
        for u, peer in instance.peers.items()
        if u != 1
    }
    frame = frames[ClientId(2)]
    for wrong, sender in (
        (edit(frame, sender=ClientId(99)), None),
        (frame, ClientId(3)),
        (edit(frame, round_id=RoundId(8)), None),
        (edit(frame, session=bytes(32)), None),
        (edit(frame, sender=SERVER), None),
    ):
        with pytest.raises(UnexpectedMessage):
            one.receive(wrong, sender)
    for wrong in (b"", frame[:-1], frame + b"\0", b"XXXX" + frame[4:]):
        with pytest.raises(WireError):
            one.receive(wrong)
    for u, good in frames.items():
        assert one.receive(good, u) == []
        assert one.receive(good, u) == []
    assert one.ready


def test_a_recorded_session_replayed_into_a_fresh_one_changes_nothing() -> None:
    for build in PROTOCOLS.values():
        recorded, fresh = build(), build()
        network = InMemoryNetwork()
        recorded.run(network=network)
        for envelope in network.transcript:
            machine = fresh.peers[envelope.recipient]
            with pytest.raises(SecureFLError):
                machine.receive(envelope.frame, envelope.sender)
            assert machine.phase == fresh.phases[0]


def test_calls_in_the_wrong_phase_are_local_errors(instance: Instance) -> None:
    one, two = instance.peers[ClientId(1)], instance.peers[ClientId(2)]
    one.start()
    with pytest.raises(LocalProtocolError):
        one.start()
    one.abort()
    for call in (one.start, one.close_phase, lambda: one.set_input(instance.vector([0] * 3))):
        with pytest.raises(LocalProtocolError):
            call()
    assert one.abort() == []
    two.start()
    with pytest.raises(BelowThreshold):
        two.close_phase()
    with pytest.raises(LocalProtocolError):
        two.close_phase()


def test_finished_machines_are_silent(instance: Instance) -> None:
    network = InMemoryNetwork()
    instance.run(network=network)
    for envelope in network.transcript:
        out = instance.peers[envelope.recipient].receive(envelope.frame, envelope.sender)
        assert not out
    for peer in instance.peers.values():
        assert peer.abort() == []
        assert peer.phase == "done"


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_arrival_changes_nothing(instance: Instance, seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = InMemoryNetwork(reorder=lambda ids: [ids[i] for i in rng.permutation(len(ids))])
    result = instance.run(network=network)
    assert result.aggregate.vector.values.tolist() == instance.plain(list(range(1, N + 1)))


def test_every_input_that_left_is_recorded_also_when_the_session_fails(instance: Instance) -> None:
    from securefl.simulation.session import SessionRecord

    record = SessionRecord()
    drops = {"share_input": [ClientId(1)], "report": [ClientId(u) for u in (2, 3, 4)]}
    with pytest.raises(BelowThreshold):
        instance.run(drops=drops, record=record)
    assert record.sent_input == set(range(2, N + 1))
    assert all(record.bytes_up[ClientId(u)] > 0 for u in instance.peers)
