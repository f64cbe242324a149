"""The driver: inputs when they are needed, nothing before, and a record that survives errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from securefl.errors import BelowThreshold, ConfigurationError, InvalidShare
from securefl.modular import RingVector
from securefl.protocols.machine import Aborted, ClientDropped, Reason, ShareMismatch
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggParams, SecAggServer
from securefl.round import SERVER, ClientId, Cohort, RoundId, ThreatModel
from securefl.simulation.network import Direction, InMemoryNetwork, drop, tamper
from securefl.simulation.session import Refused, SessionRecord, run_session

N = 5


def build(present: int = N) -> tuple[SecAggServer, dict[ClientId, SecAggClient]]:
    config = SecAggParams.complete(N, ThreatModel(corrupt=1, dropped=2)).config(
        round_id=RoundId(0),
        cohort=Cohort.of(range(N)),
        m=2,
        b=16,
        context_digest=bytes(32),
        server_nonce=bytes(32),
    )
    clients = {
        u: SecAggClient(u, config, context_digest=bytes(32), policy=ClientPolicy(gamma=0))
        for u in config.cohort.ids[:present]
    }
    return SecAggServer(config), clients


def vector(u: ClientId) -> RingVector:
    return RingVector(np.array([u, 100], dtype=np.uint32), 1 << 16)


class Inputs:
    """Remembers for whom an input was computed, and in which phase."""

    def __init__(self, server: SecAggServer) -> None:
        self.server, self.calls = server, []

    def __call__(self, u: ClientId) -> RingVector:
        self.calls.append((u, str(self.server.phase)))
        return vector(u)


def test_inputs_are_computed_once_when_the_shares_are_there() -> None:
    server, clients = build()
    inputs = Inputs(server)
    drops = {"share_keys": [ClientId(0)], "masked_input_collection": [ClientId(1)]}
    result = run_session(server, clients, inputs, drops=drops)
    assert inputs.calls == [(u, "masked_input_collection") for u in (2, 3, 4)]
    assert result.sent_input == {2, 3, 4}
    assert result.aggregate.vector.values.tolist() == [9, 300]


def test_a_client_that_vanishes_at_the_input_can_have_computed_it() -> None:
    server, clients = build()
    inputs = Inputs(server)
    drops = {"share_keys": [ClientId(0)], "masked_input_collection": [ClientId(1)]}
    result = run_session(server, clients, inputs, drops=drops, compute_for_dropped=True)
    assert [u for u, _ in inputs.calls] == [1, 2, 3, 4]
    assert result.sent_input == {2, 3, 4}
    assert result.aggregate.survivors == (2, 3, 4)


def test_an_input_that_left_its_client_counts_even_if_it_never_arrives() -> None:
    server, clients = build()
    lost = drop(lambda e: e.phase == "masked_input_collection" and e.sender == ClientId(1))
    result = run_session(server, clients, vector, network=InMemoryNetwork(policies=[lost]))
    assert result.sent_input == {0, 1, 2, 3, 4}
    assert result.aggregate.survivors == (0, 2, 3, 4)


@pytest.mark.parametrize(
    ("phase", "sent"),
    [
        ("advertise_keys", set()),
        ("share_keys", set()),
        ("masked_input_collection", {3, 4}),
        ("unmasking", {0, 1, 2, 3, 4}),
    ],
)
def test_the_record_tells_who_sent_an_input_also_when_the_round_is_lost(
    phase: str, sent: set[int]
) -> None:
    server, clients = build()
    record = SessionRecord()
    with pytest.raises(BelowThreshold) as caught:
        run_session(
            server, clients, vector, drops={phase: [ClientId(u) for u in range(3)]}, record=record
        )
    assert caught.value.phase == phase
    assert record.sent_input == sent
    assert set(record.bytes_up) == ({3, 4} if phase == "advertise_keys" else {0, 1, 2, 3, 4})
    assert record.transcript
    aborted = [e for e in record.events if isinstance(e, Aborted)]
    assert len(aborted) == (0 if phase == "unmasking" else 2)
    assert all(clients[ClientId(u)].phase in ("aborted", "done") for u in (3, 4))


def test_cohort_members_without_a_machine_are_absent() -> None:
    server, clients = build(present=4)
    result = run_session(server, clients, vector)
    assert result.aggregate.survivors == (0, 1, 2, 3)
    assert ClientDropped(
        client=ClientId(4), phase="advertise_keys", reason=Reason.NO_REPLY
    ) in list(result.events)


def test_a_client_that_refuses_a_frame_is_recorded_and_dropped() -> None:
    server, clients = build()

    def own_key_changed(frame: bytes) -> bytes:
        return frame[:70] + bytes([frame[70] ^ 1]) + frame[71:]

    broken = tamper(
        lambda e: e.direction is Direction.DOWN and e.recipient == 0 and e.phase == "share_keys",
        own_key_changed,
    )
    result = run_session(server, clients, vector, network=InMemoryNetwork(policies=[broken]))
    (refused,) = [e for e in result.events if isinstance(e, Refused)]
    assert (refused.by, refused.phase) == (0, "share_keys")
    assert (
        ClientDropped(client=ClientId(0), phase="share_keys", reason=Reason.CLIENT_ABORT)
        in result.events
    )
    assert result.aggregate.survivors == (1, 2, 3, 4)


def test_bytes_that_are_no_frame_are_recorded_and_ignored_by_the_server() -> None:
    server, clients = build()
    broken = tamper(lambda e: e.sender == 0 and e.phase == "share_keys", lambda frame: b"junk")
    result = run_session(server, clients, vector, network=InMemoryNetwork(policies=[broken]))
    (refused,) = [e for e in result.events if isinstance(e, Refused)]
    assert refused.by == SERVER
    assert result.aggregate.survivors == (1, 2, 3, 4)


def wrong_shares(*senders: int) -> Any:
    """These clients' shares of the last client's seed arrive with one bit flipped."""
    return tamper(
        lambda e: e.sender in senders and e.phase == "unmasking",
        lambda frame: frame[:-12] + bytes([frame[-12] ^ 1]) + frame[-11:],
    )


def test_a_wrong_share_is_corrected_and_its_pair_is_told() -> None:
    server, clients = build()
    network = InMemoryNetwork(policies=[wrong_shares(0)])
    result = run_session(server, clients, vector, network=network)
    assert result.aggregate.vector.values.tolist() == [10, 500]
    assert result.aggregate.mismatched_pairs == ((4, 0),)
    told = ShareMismatch(dealer=ClientId(4), holders=(ClientId(0),), located=True)
    assert told in result.events


def test_too_many_wrong_shares_end_the_session_without_a_sum() -> None:
    server, clients = build()
    record = SessionRecord()
    network = InMemoryNetwork(policies=[wrong_shares(0, 1)])
    with pytest.raises(InvalidShare) as caught:
        run_session(server, clients, vector, network=network, record=record)
    assert {dealer for dealer, _ in caught.value.pairs} == {4}
    assert record.sent_input == {0, 1, 2, 3, 4}
    assert server.result is None


def test_each_phase_is_announced_with_its_events() -> None:
    server, clients = build()
    told: list[tuple[str, list[Any]]] = []
    run_session(
        server,
        clients,
        vector,
        drops={"unmasking": [ClientId(0)]},
        on_phase=lambda phase, events: told.append((phase, list(events))),
    )
    assert [phase for phase, _ in told] == list(server.phases)
    assert told[-1][1][0] == ClientDropped(
        client=ClientId(0), phase="unmasking", reason=Reason.NO_REPLY
    )


def test_seconds_are_measured_per_phase_and_side() -> None:
    server, clients = build()
    result = run_session(server, clients, vector)
    assert set(result.client_seconds) == set(server.phases)
    assert set(result.server_seconds) == set(server.phases)
    assert all(s >= 0 for s in [*result.client_seconds.values(), *result.server_seconds.values()])


def test_impossible_sessions_are_refused_before_anything_is_sent() -> None:
    server, clients = build()
    network = InMemoryNetwork()
    some = {u: vector(u) for u in list(clients)[:3]}
    swapped = {**clients, ClientId(0): clients[ClientId(1)]}
    for what, kwargs in (
        ("unknown phases", {"drops": {"lunch": []}}),
        ("who take no part", {"drops": {"unmasking": [ClientId(77)]}}),
        ("no input for clients", {"inputs": some}),
        ("belongs to", {"clients": swapped}),
    ):
        arguments = {"clients": clients, "inputs": vector, **kwargs}
        with pytest.raises(ConfigurationError, match=what):
            run_session(server, network=network, **arguments)
    assert not network.bytes_up


def documented_bytes(n: int, m: int, b: int) -> tuple[int, int]:
    """Up and down per client, nobody dropped (docs/explanation/secure-aggregation.md)."""
    P = n - 1
    up = 340 + 92 * P + -(-m * b // 8) + -(-P // 8)
    return up, 188 + 68 * n + 72 * P + 2 * -(-P // 8)


def test_a_session_costs_the_documented_bytes() -> None:
    server, clients = build()
    result = run_session(server, clients, vector)
    up, down = documented_bytes(N, 2, 16)
    assert set(result.bytes_up.values()) == {up}
    assert set(result.bytes_down.values()) == {down}


@pytest.mark.parametrize(
    ("n", "m", "b", "paper", "ours"),
    [
        (1 << 10, 1 << 20, 26, 1.73, 1.7386),
        (1 << 14, 1 << 24, 30, 1.98, 1.9885),
        (1 << 14, 1 << 20, 30, 3.62, 3.6906),
    ],
)
def test_the_expansion_over_plain_16_bit_inputs_is_close_to_the_papers(
    n: int, m: int, b: int, paper: float, ours: float
) -> None:
    """Bonawitz et al. 2017 print the first number; ours adds headers and the seed commitment."""
    expansion = sum(documented_bytes(n, m, b)) / (2 * m)
    assert round(expansion, 4) == ours
    assert ours - paper < 0.08


def test_a_session_that_breaks_off_leaves_no_client_with_secrets() -> None:
    server, clients = build()

    def break_off(u: ClientId) -> RingVector:
        if u == 3:
            raise KeyboardInterrupt
        return vector(u)

    with pytest.raises(KeyboardInterrupt):
        run_session(server, clients, break_off)
    assert all(client._secrets is None for client in clients.values())
