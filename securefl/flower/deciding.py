"""A decider's messages, in the app or in the holder's own process: one in, one signed frame out.

Both ways lead through the same checks. The app of a courier has no keys and checks nothing; the
holder's process trusts neither the app nor the server.
"""

from __future__ import annotations

import struct
from pathlib import Path

from securefl.errors import ConfigurationError, PeerProtocolError, WireError
from securefl.flower.agreement import opening
from securefl.flower.errors import Code, Refusal
from securefl.flower.hello import NONCE_BYTES, hello_answer
from securefl.flower.holder import Request
from securefl.flower.policy import Node
from securefl.flower.records import Envelope

__all__ = ["answer_envelope", "answer_request", "part_of"]

_ID = struct.Struct("<Q")


def answer_envelope(envelope: Envelope, node: Node) -> bytes:
    """A decider's answer to one message of a session.

    Raises:
        Refusal: if there is nothing to decide; see :func:`securefl.flower.paillier_node.decide`.
    """
    if envelope.frame is None or envelope.arrays is not None:
        raise Refusal(Code.MALFORMED, "a message to a decider has a request and no model")
    agreement = opening(envelope)
    if node.courier is not None:
        return node.courier.ask(
            b"decide",
            envelope.attempt,
            envelope.phase.encode(),
            _ID.pack(agreement.offered % (1 << 64)),
            agreement.raw_config,
            agreement.raw_plan,
            agreement.model,
            envelope.frame,
        )
    from securefl.flower.paillier_node import decide  # noqa: PLC0415  # big integers load late

    try:
        return decide(
            attempt=envelope.attempt,
            phase=envelope.phase,
            config=agreement.config,
            plan=agreement.plan,
            frame=envelope.frame,
            node=node,
        )
    except (PeerProtocolError, WireError) as error:
        raise Refusal(Code.MALFORMED, f"{type(error).__name__}: {error}") from None


def part_of(node_file: Path) -> str:
    """What a decider is, for people.

    Raises:
        ConfigurationError: if the file is no decider's, or what it names cannot be used.
    """
    part = _decider(node_file).paillier
    assert part is not None  # noqa: S101  # it decides
    return part.description


def _decider(node_file: Path) -> Node:
    node = Node.load(node_file)
    if node.courier is not None or not node.decides:
        raise ConfigurationError(f"{node_file} is no decider's: its setup gives it nothing to open")
    return node


def answer_request(request: Request, node_file: Path) -> bytes:
    """The answer of a holder's own process to its courier.

    Args:
        request: what :class:`securefl.flower.holder.Courier` sends.
        node_file: the holder's.

    Raises:
        Refusal: as in the app; MALFORMED for another request.
        ConfigurationError: if the node file or what it names cannot be used.
    """
    node = _decider(node_file)
    match request:
        case (b"hello", nonce, run, name) if _fits(nonce, run, name):
            (run_id,), (node_id,) = _ID.unpack(run), _ID.unpack(name)
            return hello_answer(node, nonce, run_id=run_id, node_id=node_id)
        case (b"decide", attempt, phase, client, config, plan, model, frame) if (
            len(client) == _ID.size and len(attempt) == NONCE_BYTES
        ):
            envelope = Envelope(
                phase=phase.decode(errors="replace"),
                attempt=attempt,
                client=_ID.unpack(client)[0],
                config=config,
                plan=plan,
                model=model,
                frame=frame,
            )
            return answer_envelope(envelope, node)
    raise Refusal(Code.MALFORMED, "no request of a courier")


def _fits(nonce: bytes, run: bytes, name: bytes) -> bool:
    return (len(nonce), len(run), len(name)) == (NONCE_BYTES, _ID.size, _ID.size)
