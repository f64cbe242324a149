"""Malformed ciphertexts in a session: the sender loses its place by name, the others get their sum.

Each case is one submission, signed by its true author. The server refuses it; a checker that a
dishonest server hands it to refuses the whole request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from securefl.errors import DecryptionRefused, UnexpectedMessage
from securefl.primitives.paillier import Encryptor, SecretKey, generate_keypair
from securefl.primitives.paillier.block import HEADER_BYTES
from securefl.primitives.paillier.knowledge import prove_knowledge
from securefl.protocols.machine import ClientDropped, Outbound
from securefl.protocols.paillier.checking import knowledge_context
from securefl.protocols.paillier.messages import CheckRequest, MessageType, Submission
from securefl.round import SERVER, ClientId
from securefl.simulation.paillier import Trust
from securefl.wire import decode_frame

CHEAT = ClientId(2)
OTHERS = (1, 3, 4, 5, 6)


@pytest.fixture(scope="module")
def threshold_primes(dealt_key: Any) -> tuple[int, int]:
    """The factors of the dealt key, which its dealer forgot: dealt again from the same stream."""
    again = generate_keypair(512, random_bytes=np.random.default_rng(22).bytes, min_bits=512)
    assert again.public == dealt_key[0].public
    return again.primes()


def altered(session: Any, frame: bytes, change: Callable[[bytes, int], bytes]) -> bytes:
    """The submission with another block, sized as it now is, signed by its author."""
    terms = session.made.server._terms
    parsed = decode_frame(frame)
    size = terms.block_bytes(session.made.config.m)
    found = Submission.decode(parsed.body, block_bytes=size)
    block = change(found.block, terms.degree.ciphertext_bytes)
    body = Submission(block=block, proof=found.proof).encode()
    end = session.made.clients[parsed.sender]._end
    out: bytes = end.outbound(MessageType.SUBMISSION, body, session=end.config_digest)[0].frame
    return out


def last(number: int) -> Callable[[bytes, int], bytes]:
    """Writes a number in place of the last ciphertext."""
    return lambda block, width: block[:-width] + number.to_bytes(width, "big")


def finish(session: Any) -> list[int]:
    server = session.made.server
    while not server.final:
        out = [x for x in server.close_phase() if isinstance(x, Outbound)]
        for answer in session.ask(*out):
            server.receive(answer, decode_frame(answer).sender)
    found: list[int] = server.result.vector.values.tolist()
    return found


def checker(session: Any) -> Any:
    terms = session.made.server._terms
    return session.made.parties[(*terms.witnesses, *terms.share_holders)[0]]


def refused(session: Any, frames: list[bytes]) -> str:
    body = CheckRequest(submissions=tuple(frames), product_digest=bytes(32)).encode()
    end = session.made.server._end
    with pytest.raises(DecryptionRefused) as caught:
        checker(session).receive(
            end.frame(MessageType.CHECK_REQUEST, body, session=end.config_digest), SERVER
        )
    return caught.value.reason


CASES = [
    "zero", "n", "n^2", "n^2 - n", "p", "7 p", "q^3", "one byte short", "one byte long",
    "one ciphertext short", "one ciphertext long", "empty", "key id of another", "another degree",
    "another mode", "another width", "another bound", "another dimension", "another count",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("trust", Trust)
def test_a_malformed_submission_is_refused_by_name_and_the_round_goes_on(
    bench: Callable[..., Any],
    secret_key: SecretKey,
    threshold_primes: tuple[int, int],
    trust: Trust,
    case: str,
) -> None:
    session = bench(trust)
    server = session.made.server
    n, N = server._terms.public.n, int(server._terms.degree.modulus)
    p, q = secret_key.primes() if trust is Trust.KEY_HOLDER else threshold_primes
    assert p * q == n
    numbers = {"zero": 0, "n": n, "n^2": N, "n^2 - n": N - n, "p": p, "7 p": 7 * p, "q^3": q**3}
    places = {
        "another mode": 32, "another degree": 33, "another width": 34, "another bound": 42,
        "another dimension": 46, "another count": 50,
    }  # fmt: skip

    def flip(place: int) -> Callable[[bytes, int], bytes]:
        return lambda b, _: b[:place] + bytes([b[place] ^ 3]) + b[place + 1 :]

    shapes: dict[str, Callable[[bytes, int], bytes]] = {
        "one byte short": lambda b, _: b[:-1],
        "one byte long": lambda b, _: b + b"\1",
        "one ciphertext short": lambda b, w: b[:-w],
        "one ciphertext long": lambda b, w: b + b[-w:],
        "empty": lambda _, __: b"",
        "key id of another": lambda b, _: bytes(32) + b[32:],
        **{name: flip(place) for name, place in places.items()},
        **{name: last(number) for name, number in numbers.items()},
    }
    frames = session.submissions()
    lie = altered(session, frames[CHEAT], shapes[case])
    for u, frame in frames.items():
        events = server.receive(lie if u == CHEAT else frame, u)
        assert [type(x) for x in events] == ([ClientDropped] if u == CHEAT else [])
        if u == CHEAT:
            assert (events[0].client, events[0].reason.name) == (CHEAT, "MALFORMED")
    handed = [lie if u == CHEAT else frame for u, frame in frames.items()]
    assert refused(session, handed) in ("BAD_CIPHERTEXT", "BAD_FRAME")
    assert finish(session) == session.expected(*OTHERS)
    assert server.result.survivors == OTHERS


@pytest.mark.parametrize("trust", Trust)
def test_a_ciphertext_under_another_key_is_refused_by_its_proof(
    bench: Callable[..., Any], trust: Trust
) -> None:
    """A number under another modulus of the same length is a unit here; nobody knows its content.

    Its author proves it under the other key, in this session's context: the proof does not hold.
    """
    session = bench(trust)
    terms, config = session.made.server._terms, session.made.config
    frames = session.submissions()
    random_bytes = np.random.default_rng(31).bytes
    other = generate_keypair(512, random_bytes=random_bytes, min_bits=512)
    foreign = Encryptor(other.public)
    limit = min(int(foreign.degree.modulus), int(terms.degree.modulus))
    sealed = foreign.encrypt([5])
    while sealed.ciphertexts[0] >= limit:
        sealed = foreign.encrypt([5])
    block = terms.block_of(config.m, sealed.ciphertexts)
    context = knowledge_context(config.digest(), CHEAT, block)
    proof = prove_knowledge(foreign, [5], sealed, context)
    end = session.made.clients[CHEAT]._end
    body = Submission(block=block, proof=proof).encode()
    lie = end.outbound(MessageType.SUBMISSION, body, session=end.config_digest)[0].frame
    server = session.made.server
    for u, frame in frames.items():
        events = server.receive(lie if u == CHEAT else frame, u)
        if u == CHEAT:
            assert (events[0].client, events[0].reason.name) == (CHEAT, "INVALID_SHARE")
    handed = [lie if u == CHEAT else frame for u, frame in frames.items()]
    assert refused(session, handed) == "BAD_PROOF"
    assert finish(session) == session.expected(*OTHERS)


@pytest.mark.parametrize("trust", Trust)
def test_a_replayed_submission_counts_for_nothing_wherever_it_is_played(
    bench: Callable[..., Any], trust: Trust
) -> None:
    """The frame of another session is refused; its block and proof, signed anew, are no proof."""
    old, session = bench(trust), bench(trust)
    stale, frames = old.submissions()[CHEAT], session.submissions()
    server = session.made.server
    with pytest.raises(UnexpectedMessage, match="another session"):
        server.receive(stale, CHEAT)
    assert refused(session, [stale if u == CHEAT else f for u, f in frames.items()]) == "BAD_FRAME"
    end = session.made.clients[CHEAT]._end
    body = bytes(decode_frame(stale).body)
    again = end.outbound(MessageType.SUBMISSION, body, session=end.config_digest)[0].frame
    for u, frame in frames.items():
        events = server.receive(again if u == CHEAT else frame, u)
        if u == CHEAT:
            assert (events[0].client, events[0].reason.name) == (CHEAT, "INVALID_SHARE")
    handed = [again if u == CHEAT else f for u, f in frames.items()]
    assert refused(session, handed) == "BAD_PROOF"
    assert finish(session) == session.expected(*OTHERS)


def test_the_places_of_the_header_are_the_ones_that_these_tests_change(
    bench: Callable[..., Any],
) -> None:
    session = bench()
    terms = session.made.server._terms
    block = terms.block_of(session.made.config.m, [1])
    assert (block[:32], block[32], block[33]) == (terms.key.key_id, 1, 1)
    assert block[34] == terms.layout.width
    assert int.from_bytes(block[35:43], "big") == terms.layout.bound
    assert [int.from_bytes(block[i : i + 4], "big") for i in (43, 47, 51)] == [5, 1, 1]
    assert len(block) == HEADER_BYTES + terms.degree.ciphertext_bytes
