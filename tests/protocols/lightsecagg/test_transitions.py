"""The machines do exactly what the tables say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefl.errors import Equivocation, UnexpectedMessage, WireError
from securefl.protocols.lightsecagg.transitions import (
    CLIENT,
    SERVER_PHASES,
    MessageType,
    Phase,
    client_table,
    next_client_phase,
    server_table,
)
from securefl.protocols.machine import ClientDropped, Outbound, Reason
from securefl.round import SERVER, Adversary, ClientId

ONE = ClientId(1)
LIVE = [str(row.phase) for row in CLIENT]
FIVE = [*LIVE]
FOUR = [phase for phase in LIVE if phase != "consistency_check"]
PLACES = [(False, p) for p in FOUR] + [(True, p) for p in FIVE]


def random_of(u: ClientId) -> Any:
    return np.random.default_rng(u).bytes


def played(
    light: Any, active: bool
) -> tuple[dict[MessageType, list[bytes]], dict[MessageType, bytes]]:
    """One complete session: every frame to client 1 and from client 1, by type."""
    bench = light.make(random_of=random_of, active=active)
    bench.start()
    while not bench.server.final:
        bench.close()
        bench.answer()
    down: dict[MessageType, list[bytes]] = {}
    for (u, _), frames in bench.seen.items():
        for frame in frames if u == ONE else []:
            down.setdefault(light.kind_of(frame), []).append(frame)
    up = {light.kind_of(f): f for (u, _), f in bench.sent.items() if u == ONE}
    return down, up


def waiting(light: Any, active: bool, phase: str) -> Any:
    """A fresh session, the same randomness: client 1 waits in ``phase`` with a full inbox."""
    bench = light.make(random_of=random_of, active=active)
    if phase != "advertise_keys":
        bench.to(phase)
    assert bench.clients[ONE].phase == phase
    return bench


@pytest.mark.parametrize(("active", "phase"), PLACES)
@pytest.mark.parametrize("kind", list(MessageType))
def test_the_client_accepts_exactly_the_pairs_of_its_table(
    light: Any, active: bool, phase: str, kind: MessageType
) -> None:
    down, up = played(light, active)
    client = waiting(light, active, phase).clients[ONE]
    row = next(r for r in CLIENT if r.phase == phase)
    before = [r for r in CLIENT if LIVE.index(r.phase) < LIVE.index(phase)]
    seen = {kind for r in before for kind in (r.accepts, r.gathers)}
    invented = light.edit(up[MessageType.ADVERTISE_KEYS], type=kind, sender=SERVER, signature=b"")
    frame = down.get(kind, [invented])[0]
    if kind is MessageType.ABORT:
        client.receive(light.edit(frame, body=b"\x08\x00"))
        assert client.phase == "aborted"
    elif kind in seen and kind in down:
        assert client.receive(frame) == []  # a byte-identical repeat
        assert client.phase == phase
    elif kind is row.gathers:
        assert client.receive(frame) == []
        assert client.phase == phase
    elif kind is row.accepts:
        if kind is MessageType.SHARE_CLOSE:
            client.set_input(light.make().vectors[ONE])
            for share in down[MessageType.ENCODED_SHARE]:
                client.receive(share)
        (out,) = [o for o in client.receive(frame) if isinstance(o, Outbound)]
        assert light.kind_of(out.frame) is row.emits
        adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
        assert client.phase == next_client_phase(row.phase, adversary)
    else:
        with pytest.raises(UnexpectedMessage) as caught:
            client.receive(frame)
        assert caught.value.culprits == (SERVER,)
        assert client.phase == phase


@pytest.mark.parametrize(("active", "phase"), PLACES)
@pytest.mark.parametrize("kind", list(MessageType))
def test_the_server_accepts_exactly_the_pairs_of_its_table(
    light: Any, active: bool, phase: str, kind: MessageType
) -> None:
    _, up = played(light, active)
    bench = light.make(random_of=random_of, active=active)
    phases = FIVE if active else FOUR
    bench.start(without=[1] if phase == "advertise_keys" else [])
    for here in phases[1 : phases.index(phase) + 1]:
        bench.close()
        bench.answer(without=[1] if here == phase else [])
    server = bench.server
    assert server.phase == phase
    assert not server.ready
    row = next(r for r in SERVER_PHASES if r.phase == phase)
    earlier = [r.accepts for r in SERVER_PHASES if r.phase in phases[: phases.index(phase)]]

    def frame_of(body: bytes) -> bytes:
        made = light.edit(up[MessageType.ADVERTISE_KEYS], type=kind, body=body, signature=b"")
        return bench.signed(ONE, made) if active else made

    frame = up.get(kind) or frame_of(b"")
    if kind is MessageType.ABORT:
        (event,) = server.receive(frame_of(b"\x08\x00"))
        assert event == ClientDropped(client=ONE, phase=phase, reason=Reason.CLIENT_ABORT)
        assert server.ready
    elif kind in earlier:
        assert server.receive(frame) == []
    elif kind is row.accepts:
        out = server.receive(frame)
        relayed = [light.kind_of(o.frame) for o in out if isinstance(o, Outbound)]
        assert relayed == ([row.relays] * 5 if row.relays else [])
        assert server.ready
    else:
        with pytest.raises(UnexpectedMessage) as caught:
            server.receive(frame)
        assert caught.value.culprits == (1,)
        assert not server.ready


@pytest.mark.parametrize("active", [False, True])
def test_a_second_different_message_is_equivocation_also_of_one_dealers_share(
    light: Any, active: bool
) -> None:
    down, _ = played(light, active)
    for kind, frames in down.items():
        bench = light.make(random_of=random_of, active=active)
        client = bench.clients[ONE]
        bench.start()
        while client.phase != "done":
            bench.close()
            bench.answer()
            if any(k is kind for k, _ in client._accepted):
                break
        done = client.phase == "done"
        body = light.body_of(frames[0])
        other = light.edit(frames[0], body=body[:-1] + bytes([body[-1] ^ 1]))
        with pytest.raises(Equivocation) as caught:
            client.receive(other)
        assert caught.value.culprits == (SERVER,)
        assert client.phase == ("done" if done else "aborted")
        assert len(caught.value.outbound) == (0 if done else 1)


def test_type_numbers_are_fixed_and_ascend_with_the_phases() -> None:
    assert {kind.name: int(kind) for kind in MessageType} == {
        "ADVERTISE_KEYS": 1,
        "KEY_ROSTER": 2,
        "ENCODED_SHARES": 3,
        "ENCODED_SHARE": 4,
        "MASKED_INPUT": 5,
        "SURVIVOR_NOTICE": 6,
        "SURVIVOR_SIGNATURE": 7,
        "RECOVERY_REQUEST": 8,
        "AGGREGATE_SHARE": 9,
        "SHARE_CLOSE": 10,
        "ABORT": 255,
    }
    for phase in Phase:
        assert phase.name.lower() == phase.value
    collected = [int(row.accepts) for row in SERVER_PHASES]
    assert collected == sorted(collected)  # the transcript's order is that of the phases


def test_both_adversaries_reach_the_end_on_the_same_phases_on_both_sides() -> None:
    for adversary in Adversary:
        phase, visited = Phase.ADVERTISE_KEYS, []
        while phase is not Phase.DONE:
            visited.append(phase)
            phase = next_client_phase(phase, adversary)
        assert (Phase.CONSISTENCY_CHECK in visited) == (adversary is Adversary.ACTIVE)
        assert [r.phase for r in SERVER_PHASES if adversary in r.then] == visited


def test_the_documentation_shows_these_tables() -> None:
    page = Path(__file__).parents[3] / "docs" / "explanation" / "lightsecagg.md"
    text = page.read_text()
    assert client_table() in text
    assert server_table() in text


def test_a_frame_that_no_type_has_is_refused(light: Any) -> None:
    bench = light.make()
    bench.start()
    frame = bench.sent[ONE, "advertise_keys"]
    for machine, sender in ((bench.server, ONE), (bench.clients[ONE], SERVER)):
        with pytest.raises(WireError, match="unknown message type 77"):
            machine.receive(light.edit(frame, type=77, sender=sender))
