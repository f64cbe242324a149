"""What the server and the checkers refuse although everything else about a frame is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from securefl.errors import (
    DecryptionRefused,
    Equivocation,
    LocalProtocolError,
    UnexpectedMessage,
)
from securefl.modular import RingVector, ring_dtype
from securefl.primitives.paillier import SecretKey
from securefl.protocols.machine import ClientDropped, MalformedMessage, Outbound
from securefl.protocols.paillier.messages import (
    CheckRequest,
    MessageType,
    Opened,
    Partials,
)
from securefl.protocols.policy import ClientPolicy
from securefl.round import SERVER, ClientId, Cohort, Protocol, RoundId
from securefl.simulation.paillier import Trust, paillier_session
from securefl.wire import Frame, decode_frame, encode_frame, signed_content


def asked(session: Any) -> list[Outbound]:
    """Plays honestly until the openers have been asked; their requests."""
    server = session.made.server
    for u, frame in session.submissions().items():
        server.receive(frame, u)
    out = [x for x in server.close_phase() if isinstance(x, Outbound)]
    if server._terms.witnesses:
        for answer in session.ask(*out):
            server.receive(answer, decode_frame(answer).sender)
        out = [x for x in server.close_phase() if isinstance(x, Outbound)]
    return out


def said(session: Any, u: ClientId, kind: MessageType, body: bytes) -> list[Any]:
    """What the server makes of this signed frame of a decider."""
    end = session.made.parties[u]._end
    frame = end.outbound(kind, body, session=end.config_digest)[0].frame
    events: list[Any] = session.made.server.receive(frame, u)
    return events


@pytest.mark.parametrize("lie", ["list", "count", "slot", "largest slot"])
def test_an_opening_of_another_list_or_beyond_its_slots_is_named(
    bench: Callable[..., Any], lie: str
) -> None:
    session = bench()
    (request,) = asked(session)
    server, who = session.made.server, request.recipient
    (answer,) = session.made.parties[who].receive(request.frame, SERVER)
    layout = server._terms.block_layout
    honest = Opened.decode(decode_frame(answer.frame).body, m=5, width=layout.width)
    most = 2 * layout.bound * 6
    assert most + 1 < 1 << layout.width
    beyond, edge = honest.slots.copy(), honest.slots.copy()
    beyond[2], edge[2] = most + 1, most
    found = {
        "list": dataclasses.replace(honest, list_digest=bytes(32)),
        "count": dataclasses.replace(honest, count=5),
        "slot": dataclasses.replace(honest, slots=beyond),
        "largest slot": dataclasses.replace(honest, slots=edge),
    }[lie]
    events = said(session, who, MessageType.OPENED, found.encode(layout.width))
    if lie == "largest slot":  # six honest clients can give it
        assert events == []
        return
    (event,) = events
    assert isinstance(event, ClientDropped)
    assert (event.client, event.reason.name) == (
        who, "MALFORMED" if lie == "slot" else "EQUIVOCATION",
    )  # fmt: skip
    assert not server.sufficient


def test_partials_for_another_list_are_named(bench: Callable[..., Any]) -> None:
    session = bench(Trust.THRESHOLD)
    first, *others = asked(session)
    server, width = session.made.server, session.made.server._terms.degree.ciphertext_bytes
    (answer,) = session.made.parties[first.recipient].receive(first.frame, SERVER)
    honest = Partials.decode(decode_frame(answer.frame).body, count=1, width=width)
    body = dataclasses.replace(honest, list_digest=bytes(32)).encode(width)
    (event,) = said(session, first.recipient, MessageType.PARTIALS, body)
    assert (event.client, event.reason.name) == (first.recipient, "EQUIVOCATION")
    for item in others:
        (answer,) = session.made.parties[item.recipient].receive(item.frame, SERVER)
        server.receive(answer.frame, item.recipient)
    server.close_phase()
    assert server.result.vector.values.tolist() == session.expected(1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("forgery", ["flipped", "another's", "none"])
def test_a_frame_that_somebody_else_may_have_written_costs_nobody_a_place(
    bench: Callable[..., Any], forgery: str
) -> None:
    session = bench()
    server, frames = session.made.server, session.submissions()
    honest = decode_frame(frames[ClientId(2)])
    stranger = session.made.clients[ClientId(3)]._end
    signature = {
        "flipped": bytes([honest.signature[0] ^ 1]) + honest.signature[1:],
        "another's": stranger.identity.sign(
            stranger.keys.frame_statement(SERVER, signed_content(honest))
        ),
        "none": b"",
    }[forgery]
    forged = encode_frame(dataclasses.replace(honest, signature=signature))
    why = "unsigned" if forgery == "none" else "wrong signature"
    with pytest.raises(UnexpectedMessage, match=why):
        server.receive(forged, ClientId(2))
    for u, frame in frames.items():
        assert server.receive(frame, u) == []
    assert server.ready


@pytest.mark.parametrize("change", [{"round_id": RoundId(5)}, {"protocol": Protocol.SECAGG}])
@pytest.mark.parametrize("trust", Trust)
def test_a_submission_that_names_its_session_and_another_round_or_protocol_is_refused(
    bench: Callable[..., Any], trust: Trust, change: dict[str, Any]
) -> None:
    """Its author signed it so; the session alone does not make it one of this round."""
    session = bench(trust)
    frames = session.submissions()
    end = session.made.clients[ClientId(1)]._end
    frame: Frame = dataclasses.replace(decode_frame(frames[ClientId(1)]), **change)
    signature = end.identity.sign(end.keys.frame_statement(SERVER, signed_content(frame)))
    lie = encode_frame(dataclasses.replace(frame, signature=signature))
    terms, server_end = session.made.server._terms, session.made.server._end
    machine = session.made.parties[(*terms.witnesses, *terms.share_holders)[0]]
    handed = (lie, *(f for u, f in frames.items() if u != ClientId(1)))
    body = CheckRequest(submissions=handed, product_digest=bytes(32)).encode()
    request = server_end.frame(
        MessageType.CHECK_REQUEST, body, session=server_end.config_digest
    )  # fmt: skip
    with pytest.raises(DecryptionRefused) as caught:
        machine.receive(request, SERVER)
    assert caught.value.reason == "BAD_FRAME"


def opened_with(session: Any, body: bytes) -> bytes:
    end = session.made.server._end
    frame: bytes = end.frame(MessageType.ROUND_OPEN, body, session=end.config_digest)
    return frame


def test_a_client_encrypts_nothing_for_a_round_of_other_terms_or_for_two_openings(
    bench: Callable[..., Any],
) -> None:
    session = bench()
    digest = session.made.server._terms.digest()
    for first, error in ((bytes(32), MalformedMessage), (digest, Equivocation)):
        client = session.made.clients[ClientId(1 if error is MalformedMessage else 2)]
        client.start()
        if error is Equivocation:
            assert client.receive(opened_with(session, first), SERVER) == []
            with pytest.raises(Equivocation, match="two RoundOpen") as caught:
                client.receive(opened_with(session, bytes(32)), SERVER)
        else:
            with pytest.raises(MalformedMessage, match="other terms") as caught:
                client.receive(opened_with(session, first), SERVER)
        assert caught.value.culprits == (SERVER,)
        (out,) = caught.value.outbound
        assert decode_frame(out.frame).type == MessageType.ABORT
        assert str(client.phase) == "aborted"
        with pytest.raises(LocalProtocolError, match="aborted"):
            client.set_input(session.inputs[ClientId(1)])


@pytest.mark.parametrize("change", [b"\0", b""])
def test_a_masked_body_of_another_length_costs_its_sender_only(
    secret_key: SecretKey, change: bytes
) -> None:
    """Hybrid mode: one byte more, or one fewer, of an otherwise honest body."""
    made = paillier_session(
        Trust.KEY_HOLDER,
        Cohort.of(range(1, 7)),
        round_id=RoundId(4),
        alive=4,
        m=9,
        b=14,
        context_digest=bytes(32),
        policy=ClientPolicy(gamma=0),
        keys=secret_key,
        experimental_hybrid=True,
    )
    for u, client in made.clients.items():
        made.server.receive(client.start()[0].frame, u)
    vector = RingVector(np.arange(9).astype(ring_dtype(1 << 14)), 1 << 14)
    for item in [x for x in made.server.close_phase() if isinstance(x, Outbound)]:
        client = made.clients[item.recipient]
        client.set_input(vector)
        submission, body = client.receive(item.frame, SERVER)
        made.server.receive(submission.frame, item.recipient)
        sent, cheat = body.frame, item.recipient == ClientId(2)
        if cheat:
            honest, end = bytes(decode_frame(sent).body), client._end
            wrong = honest + change if change else honest[:-1]
            sent = end.outbound(MessageType.MASKED_BODY, wrong, session=end.config_digest)[0].frame
        events = made.server.receive(sent, item.recipient)
        assert [(x.client, x.reason.name) for x in events] == (
            [(ClientId(2), "MALFORMED")] if cheat else []
        )
    assert made.server.sufficient
