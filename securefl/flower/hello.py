"""Which node is which member of the roster: one signed answer per run and node.

A session names its cohort before it begins, and Flower's node ids say nothing about identities. A
node answers a fresh nonce with its roster id and a signature over (run, node, nonce) under a usage
label of its own, so that neither an answer of another run or node nor any other signature of the
same key can stand in for it. The answer only helps an honest server to name the right cohort;
clients rely on their own rosters.
"""

from __future__ import annotations

import struct

from flwr.app import ConfigRecord, RecordDict

from securefl.errors import ConfigurationError
from securefl.flower.errors import Code, Refusal
from securefl.flower.policy import Node
from securefl.flower.records import frame_of, reply_content
from securefl.primitives.identities import Roster
from securefl.primitives.signing import BadSignature
from securefl.round import ClientId, Protocol, Usage, dst

__all__ = ["NONCE_BYTES", "hello_answer", "hello_content", "hello_reply", "verified_hello"]

NONCE_BYTES = 32
_NONCE = "securefl.nonce"
_ANSWER = struct.Struct("<I32s64s")
_NAMES = struct.Struct("<QQ")


def _statement(run_id: int, node_id: int, nonce: bytes) -> bytes:
    """dst(17), u64 run, u64 node, nonce; the label carries SECAGG's number for all protocols."""
    label = dst(Usage.FLOWER_HELLO, Protocol.SECAGG)
    return label + _NAMES.pack(run_id % (1 << 64), node_id % (1 << 64)) + nonce


def hello_content(nonce: bytes) -> RecordDict:
    """The server's question."""
    return RecordDict({_NONCE: ConfigRecord({"nonce": nonce})})


def hello_reply(content: RecordDict, node: Node, *, run_id: int, node_id: int) -> RecordDict:
    """A node's answer: u32 roster id, digest of its roster, signature.

    Raises:
        Refusal: MALFORMED for another question, IDENTITY for a node without identity or roster.
    """
    record = content.get(_NONCE)
    nonce = record.get("nonce") if isinstance(record, ConfigRecord) else None
    if len(content) != 1 or not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
        raise Refusal(Code.MALFORMED, f"a hello asks with a nonce of {NONCE_BYTES} bytes")
    if node.courier is not None:
        names = (run_id.to_bytes(8, "little"), node_id.to_bytes(8, "little"))
        return reply_content(node.courier.ask(b"hello", nonce, *names))
    return reply_content(hello_answer(node, nonce, run_id=run_id, node_id=node_id))


def hello_answer(node: Node, nonce: bytes, *, run_id: int, node_id: int) -> bytes:
    """A node's answer as bytes.

    Raises:
        Refusal: IDENTITY for a node without identity or roster.
    """
    if node.identity is None or node.roster is None:
        raise Refusal(Code.IDENTITY, "a hello needs identity and roster in the node file")
    member = node.roster.member_of(node.identity.public)
    if member is None:
        raise Refusal(Code.IDENTITY, "the roster does not list this node's identity")
    signature = node.identity.sign(_statement(run_id, node_id, nonce))
    return _ANSWER.pack(member.client, node.roster.digest(), signature)


def verified_hello(
    content: RecordDict, roster: Roster, *, run_id: int, node_id: int, nonce: bytes
) -> ClientId:
    """Who answered.

    Raises:
        ConfigurationError: for a malformed answer, another roster, or a signature that is not its
            alleged author's.
    """
    answer = frame_of(content)
    if len(answer) != _ANSWER.size:
        raise ConfigurationError(f"a hello's answer has {_ANSWER.size} bytes, found {len(answer)}")
    raw, digest, signature = _ANSWER.unpack(answer)
    client = ClientId(raw)
    if digest != roster.digest():
        raise ConfigurationError(
            f"client {client} has another roster ({digest.hex()[:16]}) than the server "
            f"({roster.digest().hex()[:16]}); bring the same file to everybody"
        )
    try:
        roster.directory().verify(client, signature, _statement(run_id, node_id, nonce))
    except BadSignature as error:
        raise ConfigurationError(f"a hello's answer: {error}") from None
    return client
