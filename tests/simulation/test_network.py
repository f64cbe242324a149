"""The in-memory network counts, records, and misbehaves as told."""

from __future__ import annotations

from securefl.round import SERVER, ClientId
from securefl.simulation.network import (
    Direction,
    InMemoryNetwork,
    delay,
    drop,
    duplicate,
    tamper,
)

ONE, TWO = ClientId(1), ClientId(2)


def frames(network: InMemoryNetwork, recipient: ClientId) -> list[bytes]:
    return [envelope.frame for envelope in network.deliver(recipient)]


def test_frames_arrive_once_in_order() -> None:
    network = InMemoryNetwork()
    network.send(ONE, SERVER, b"a", phase="x")
    network.send(TWO, SERVER, b"bb", phase="x")
    assert frames(network, SERVER) == [b"a", b"bb"]
    assert frames(network, SERVER) == []


def test_bytes_are_counted_as_sent_even_if_lost() -> None:
    network = InMemoryNetwork(policies=[drop(lambda e: e.sender == ONE)])
    network.send(ONE, SERVER, b"abc", phase="x")
    network.send(TWO, SERVER, b"d", phase="y")
    network.send(SERVER, ONE, b"ee", phase="y")
    assert frames(network, SERVER) == [b"d"]
    assert network.bytes_up == {ONE: 3, TWO: 1}
    assert network.bytes_down == {ONE: 2}
    assert network.bytes_by_phase == {
        ("x", Direction.UP, ONE): 3,
        ("y", Direction.UP, TWO): 1,
        ("y", Direction.DOWN, ONE): 2,
    }


def test_the_transcript_is_what_the_server_saw() -> None:
    network = InMemoryNetwork(policies=[drop(lambda e: e.sender == ONE)])
    network.send(ONE, SERVER, b"lost", phase="x")
    network.send(TWO, SERVER, b"up", phase="x")
    network.send(SERVER, ONE, b"down", phase="x")
    network.deliver(SERVER)
    seen = [(e.direction, e.sender, e.recipient, e.frame, e.client) for e in network.transcript]
    assert seen == [
        (Direction.DOWN, SERVER, ONE, b"down", ONE),
        (Direction.UP, TWO, SERVER, b"up", TWO),
    ]
    silent = InMemoryNetwork(keep_transcript=False)
    silent.send(SERVER, ONE, b"down", phase="x")
    assert silent.transcript == []
    assert silent.bytes_down == {ONE: 4}


def test_delayed_frames_come_a_phase_later() -> None:
    network = InMemoryNetwork(policies=[delay(lambda e: e.frame == b"slow", phases=2)])
    network.send(ONE, SERVER, b"slow", phase="x")
    network.send(ONE, SERVER, b"fast", phase="x")
    assert frames(network, SERVER) == [b"fast"]
    network.tick()
    assert frames(network, SERVER) == []
    network.tick()
    assert frames(network, SERVER) == [b"slow"]


def test_policies_work_one_after_the_other() -> None:
    policies = [
        duplicate(lambda e: True, times=3),
        tamper(lambda e: e.direction is Direction.UP, lambda frame: frame[::-1]),
        delay(lambda e: e.frame == b"ba"),
        delay(lambda e: e.frame == b"ba"),
    ]
    network = InMemoryNetwork(policies=policies)
    network.send(ONE, SERVER, b"ab", phase="x")
    assert network.bytes_up == {ONE: 2}
    network.tick()
    assert frames(network, SERVER) == []
    network.tick()
    assert frames(network, SERVER) == [b"ba"] * 3


def test_clients_are_served_ascending_or_as_told() -> None:
    assert InMemoryNetwork().order([TWO, ONE]) == [ONE, TWO]
    assert InMemoryNetwork(reorder=lambda us: us[::-1]).order([TWO, ONE]) == [TWO, ONE]
