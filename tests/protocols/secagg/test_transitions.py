"""The tables are the machines: every (phase, message) pair is tried against both."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from securefl.errors import Equivocation, UnexpectedMessage
from securefl.protocols.machine import ClientDropped, Reason
from securefl.protocols.secagg.transitions import (
    CLIENT,
    SERVER_PHASES,
    MessageType,
    Phase,
    client_table,
    next_client_phase,
    server_table,
)
from securefl.round import SERVER, Adversary, ClientId

LIVE = ["advertise_keys", "share_keys", "masked_input_collection", "unmasking"]


def frames_of_all_types(
    secagg: Any,
) -> tuple[Any, dict[MessageType, bytes], dict[MessageType, bytes]]:
    """One complete session with a valid frame of each type, for client 1 and from client 1."""
    seeds: dict[int, Any] = {}

    def random_of(u: ClientId) -> Any:
        import numpy as np

        seeds[u] = np.random.default_rng(u)
        return seeds[u].bytes

    down: dict[MessageType, bytes] = {}
    up: dict[MessageType, bytes] = {}
    bench = secagg.make(random_of=random_of)
    bench.start()
    for row in SERVER_PHASES:
        if row.phase is Phase.CONSISTENCY_CHECK:
            continue
        up[row.accepts] = bench.sent[ClientId(1), row.phase]
        bench.close()
        emits = row.emits[Adversary.SEMI_HONEST]
        if emits is not None:
            down[emits] = bench.inbox[ClientId(1)]
            bench.answer()
    return random_of, down, up


def client_in(secagg: Any, phase: str, random_of: Any) -> Any:
    """A fresh session, the same randomness, played until client 1 waits in ``phase``."""
    bench = secagg.make(random_of=random_of)
    if phase == "advertise_keys":
        return bench.clients[ClientId(1)]
    bench.start()
    for here in LIVE[1:]:
        if here == phase:
            break
        bench.close()
        bench.answer()
    assert bench.clients[ClientId(1)].phase == phase
    return bench.clients[ClientId(1)]


@pytest.mark.parametrize("phase", LIVE)
@pytest.mark.parametrize("kind", list(MessageType))
def test_the_client_accepts_exactly_the_pairs_of_its_table(
    secagg: Any, phase: str, kind: MessageType
) -> None:
    random_of, down, up = frames_of_all_types(secagg)
    client = client_in(secagg, phase, random_of)
    row = next(r for r in CLIENT if r.phase == phase)
    frame = down.get(kind) or secagg.edit(up[MessageType.ADVERTISE_KEYS], type=kind, sender=SERVER)
    seen = [
        r.accepts for r in CLIENT if r.accepts in down and LIVE.index(r.phase) < LIVE.index(phase)
    ]
    if kind is MessageType.ABORT:
        client.receive(secagg.edit(frame, body=b"\x08\x00"))
        assert client.phase == "aborted"
    elif kind in seen:
        assert client.receive(frame) == []  # a byte-identical repeat
        assert client.phase == phase
    elif kind is row.accepts:
        client.set_input(secagg.make().vectors[ClientId(1)]) if phase != "unmasking" else None
        client.receive(frame)
        assert client.phase == next_client_phase(row.phase, Adversary.SEMI_HONEST)
    else:
        with pytest.raises(UnexpectedMessage) as caught:
            client.receive(frame)
        assert caught.value.culprits == (SERVER,)
        assert client.phase == phase


@pytest.mark.parametrize("phase", LIVE)
@pytest.mark.parametrize("kind", list(MessageType))
def test_the_server_accepts_exactly_the_pairs_of_its_table(
    secagg: Any, phase: str, kind: MessageType
) -> None:
    random_of, _, up = frames_of_all_types(secagg)
    bench = secagg.make(random_of=random_of)
    # Client 1 is served last: its frame of this phase is still to come.
    for u, client in bench.clients.items():
        if u != 1:
            bench.up(u, client.start())
    if phase != "advertise_keys":
        bench.up(ClientId(1), bench.clients[ClientId(1)].start())
        for here in LIVE[1:]:
            bench.close()
            bench.answer(without=[1] if here == phase else [])
            if here == phase:
                break
    assert bench.server.phase == phase
    row = next(r for r in SERVER_PHASES if r.phase == phase)
    frame = up.get(kind) or secagg.edit(up[MessageType.ENCRYPTED_SHARES], type=kind)
    before = LIVE[: LIVE.index(phase)]
    earlier = [r.accepts for r in SERVER_PHASES if r.phase in before]
    assert not bench.server.ready
    if kind is MessageType.ABORT:
        abort = secagg.edit(up[MessageType.ADVERTISE_KEYS], type=kind, body=b"\x08\x00")
        (event,) = bench.server.receive(abort)
        assert event == ClientDropped(client=ClientId(1), phase=phase, reason=Reason.CLIENT_ABORT)
        assert bench.server.ready
    elif kind in earlier:
        assert bench.server.receive(frame) == []
    elif kind is row.accepts:
        assert bench.server.receive(frame) == []
        assert bench.server.ready
    else:
        with pytest.raises(UnexpectedMessage) as caught:
            bench.server.receive(frame)
        assert caught.value.culprits == (1,)
        assert not bench.server.ready


@pytest.mark.parametrize(
    "kind",
    [r.accepts for r in CLIENT if r.accepts is not None and Adversary.SEMI_HONEST in r.then],
)
def test_a_second_different_message_of_an_accepted_type_is_equivocation(
    secagg: Any, kind: MessageType
) -> None:
    random_of, down, _ = frames_of_all_types(secagg)
    bench = secagg.make(random_of=random_of)
    client = bench.clients[ClientId(1)]
    bench.start()
    order = [MessageType.KEY_ROSTER, MessageType.SHARE_DELIVERY, MessageType.UNMASK_REQUEST]
    for _ in range(order.index(kind) + 1):
        bench.close()
        bench.answer()
    done = client.phase == "done"
    with pytest.raises(Equivocation) as caught:
        client.receive(secagg.edit(down[kind], body=b"another story"))
    assert caught.value.culprits == (SERVER,)
    assert client.phase == ("done" if done else "aborted")
    assert len(caught.value.outbound) == (0 if done else 1)


def test_the_active_rows_are_data_and_reach_the_end() -> None:
    for adversary in Adversary:
        phase, visited = Phase.ADVERTISE_KEYS, []
        while phase is not Phase.DONE:
            visited.append(phase)
            phase = next_client_phase(phase, adversary)
        checks = Phase.CONSISTENCY_CHECK in visited
        assert checks == (adversary is Adversary.ACTIVE)
        server = [r.phase for r in SERVER_PHASES if adversary in r.then]
        assert server == visited


def test_type_numbers_are_fixed() -> None:
    assert {kind.name: int(kind) for kind in MessageType} == {
        "ADVERTISE_KEYS": 1,
        "KEY_ROSTER": 2,
        "ENCRYPTED_SHARES": 3,
        "SHARE_DELIVERY": 4,
        "MASKED_INPUT": 5,
        "SURVIVOR_NOTICE": 6,
        "SURVIVOR_SIGNATURE": 7,
        "UNMASK_REQUEST": 8,
        "UNMASK_SHARES": 9,
        "ABORT": 255,
    }
    for phase in Phase:
        assert phase.name.lower() == phase.value


def test_the_documentation_shows_these_tables() -> None:
    page = Path(__file__).parents[3] / "docs" / "explanation" / "secure-aggregation.md"
    text = page.read_text()
    assert client_table() in text
    assert server_table() in text


DRAWN = Path(__file__).parents[3] / "docs" / "_build" / "state_diagrams.py"


@pytest.fixture(scope="module")
def drawing() -> Any:
    spec = importlib.util.spec_from_file_location("securefl_state_diagrams", DRAWN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_state_diagrams_are_what_the_tables_give_now(drawing: Any) -> None:
    pages = {"secagg": "secure-aggregation.md", "peersum": "peersum.md"}
    for path, content in drawing.pictures().items():
        page = path.with_name(pages[path.stem.split("-")[0]])
        assert path.read_text("utf-8") == content, f"run python {DRAWN.name} in docs/_build"
        assert f"({path.name})" in page.read_text()


def test_the_state_diagrams_follow_the_tables(drawing: Any) -> None:
    """A table with one phase less, and one with another message, give other pictures."""
    steps = drawing.client_steps()
    whole = drawing.diagram("x", steps, "y")
    for row in CLIENT:
        assert f">{row.phase.name}<" in whole
        assert f"→ {row.emits.name}<" in whole
    shorter = [step for step in steps if step.phase is not Phase.CONSISTENCY_CHECK]
    shorter[2] = replace(shorter[2], then={Adversary.SEMI_HONEST: Phase.UNMASKING})
    without = drawing.diagram("x", shorter, "y")
    assert "CONSISTENCY_CHECK" not in without
    assert "stroke-dasharray" in whole
    assert "stroke-dasharray" not in without


def test_a_frame_that_no_type_has_is_refused(secagg: Any) -> None:
    from securefl.errors import WireError

    bench = secagg.make()
    bench.start()
    frame = bench.sent[ClientId(1), "advertise_keys"]
    for machine, sender in ((bench.server, ClientId(1)), (bench.clients[ClientId(1)], SERVER)):
        with pytest.raises(WireError, match="unknown message type 77"):
            machine.receive(secagg.edit(frame, type=77, sender=sender))
