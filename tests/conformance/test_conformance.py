"""What every protocol must do, whatever it does inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from securefl.errors import (
    BelowThreshold,
    LocalProtocolError,
    SecureFLError,
    UnexpectedMessage,
    WireError,
)
from securefl.modular import RingVector
from securefl.protocols.machine import AggregateReady, Outbound, PhaseClosed
from securefl.round import SERVER, ClientId, RoundId
from securefl.simulation.network import Envelope, InMemoryNetwork, delay

N = 7
Protocol = Callable[[], Any]
INPUT_PHASE = "masked_input_collection"


def inputs_of(instance: Any) -> dict[ClientId, RingVector]:
    return {u: instance.vector([u, 2 * u, instance.modulus - u]) for u in instance.clients}


def plain(instance: Any, ids: list[int]) -> list[int]:
    total = sum(ids)
    return [total, 2 * total, -total % instance.modulus]


def phases(protocol: Protocol) -> tuple[str, ...]:
    return protocol().server.phases


def test_nobody_drops_and_everybody_is_summed(protocol: Protocol) -> None:
    instance = protocol()
    result = instance.run(inputs_of(instance))
    assert result.aggregate.vector.values.tolist() == plain(instance, list(range(1, N + 1)))
    assert result.aggregate.survivors == tuple(range(1, N + 1))
    assert result.aggregate.verified
    assert len(result.aggregate.transcript_digest) == 32
    assert instance.server.final
    closed = [e.phase for e in result.events if isinstance(e, PhaseClosed)]
    assert tuple(closed) == instance.server.phases
    assert isinstance(result.events[-1], AggregateReady)
    assert all(client.phase == "done" for client in instance.clients.values())


@pytest.mark.parametrize("too_many", [0, 1])
@pytest.mark.parametrize("place", range(5))
def test_the_threshold_is_exact_in_every_phase(
    protocol: Protocol, place: int, too_many: int
) -> None:
    instance = protocol()
    if place >= len(instance.server.phases):
        return
    phase = instance.server.phases[place]
    gone = N - instance.alive + too_many
    drops = {phase: [ClientId(u) for u in range(1, gone + 1)]}
    collected = place > instance.server.phases.index(INPUT_PHASE)
    try:
        result = instance.run(inputs_of(instance), drops=drops)
    except BelowThreshold as error:
        assert too_many
        assert error.phase == phase
        if not (instance.sparse and collected):
            assert (error.needed, error.had) == (instance.alive, instance.alive - 1)
        assert instance.server.result is None
        return
    assert not too_many or (instance.sparse and collected)
    in_sum = list(range(1 if collected else gone + 1, N + 1))
    assert result.aggregate.vector.values.tolist() == plain(instance, in_sum)
    assert result.aggregate.survivors == tuple(in_sum)


@pytest.mark.parametrize("value", ["largest", "zero"])
def test_sums_are_exact_at_the_modulus_limit(protocol: Protocol, value: str) -> None:
    instance = protocol()
    entry = instance.modulus - 1 if value == "largest" else 0
    inputs = {u: instance.vector([entry] * instance.m) for u in instance.clients}
    result = instance.run(inputs)
    assert result.aggregate.vector.values.tolist() == [N * entry % instance.modulus] * instance.m


@pytest.mark.parametrize("place", range(5))
def test_a_late_frame_never_changes_the_sum(protocol: Protocol, place: int) -> None:
    instance = protocol()
    if place >= len(instance.server.phases):
        return
    phase = instance.server.phases[place]

    def late(envelope: Envelope) -> bool:
        return envelope.sender == ClientId(2) and envelope.phase == phase

    network = InMemoryNetwork(policies=[delay(late)])
    result = instance.run(inputs_of(instance), network=network)
    collected = place > instance.server.phases.index(INPUT_PHASE)
    inside = [u for u in range(1, N + 1) if u != 2 or collected]
    assert result.aggregate.vector.values.tolist() == plain(instance, inside)


def opening(instance: Any) -> dict[ClientId, bytes]:
    return {
        u: next(o.frame for o in client.start() if isinstance(o, Outbound))
        for u, client in instance.clients.items()
    }


def test_unknown_senders_false_names_and_other_rounds_change_nothing(
    protocol: Protocol, edit: Callable[..., bytes]
) -> None:
    instance = protocol()
    frames = opening(instance)
    frame = frames[ClientId(1)]
    for wrong, sender in (
        (edit(frame, sender=ClientId(99)), None),
        (frame, ClientId(2)),
        (edit(frame, round_id=RoundId(8)), None),
        (edit(frame, session=bytes(32)), None),
        (edit(frame, sender=SERVER), None),
    ):
        with pytest.raises(UnexpectedMessage):
            instance.server.receive(wrong, sender)
    for wrong in (b"", frame[:-1], frame + b"\0", b"XXXX" + frame[4:]):
        with pytest.raises(WireError):
            instance.server.receive(wrong)
    for u, good in frames.items():
        assert instance.server.receive(good, u) == []
        assert instance.server.receive(good, u) == []
    assert instance.server.ready


def test_messages_of_every_phase_are_refused_in_every_other(protocol: Protocol) -> None:
    """A recorded session's frames, replayed into a fresh one: none is accepted."""
    recorded = protocol()
    network = InMemoryNetwork()
    recorded.run(inputs_of(recorded), network=network)
    fresh = protocol()
    for envelope in network.transcript:
        machine = fresh.machine(envelope.recipient)
        phase = machine.phase
        with pytest.raises(SecureFLError):
            machine.receive(envelope.frame, envelope.sender)
        assert machine.phase == phase


def test_calls_in_the_wrong_phase_are_local_errors(protocol: Protocol) -> None:
    instance = protocol()
    client = instance.clients[ClientId(1)]
    client.start()
    with pytest.raises(LocalProtocolError):
        client.start()
    client.abort()
    for call in (client.start, lambda: client.set_input(instance.vector([0] * instance.m))):
        with pytest.raises(LocalProtocolError):
            call()
    assert client.abort() == []
    with pytest.raises(BelowThreshold):
        instance.server.close_phase()
    with pytest.raises(LocalProtocolError):
        instance.server.close_phase()


def test_finished_machines_are_silent(protocol: Protocol) -> None:
    instance = protocol()
    network = InMemoryNetwork()
    instance.run(inputs_of(instance), network=network)
    for envelope in network.transcript:
        again = instance.machine(envelope.recipient).receive(envelope.frame)
        # A decider that answered gives the identical answer again: its first may have been lost.
        assert again == [] or envelope.recipient in instance.parties
    for client in instance.clients.values():
        assert client.abort() == []
