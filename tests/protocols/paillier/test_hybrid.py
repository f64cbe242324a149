"""The experimental hybrid mode: opt-in by name, exact, bodies tied to their submissions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from securefl.errors import ConfigurationError, DecryptionRefused
from securefl.modular import RingVector, ring_dtype
from securefl.primitives import rlwe
from securefl.primitives.channel import sha256
from securefl.primitives.paillier import SecretKey, SlotLayout
from securefl.primitives.paillier.block import BlockMode
from securefl.primitives.paillier.knowledge import prove_knowledge
from securefl.protocols.machine import ClientDropped, Outbound
from securefl.protocols.paillier import PaillierTerms
from securefl.protocols.paillier.checking import knowledge_context
from securefl.protocols.paillier.messages import MessageType, Submission
from securefl.protocols.policy import ClientPolicy
from securefl.round import SERVER, ClientId, Cohort, RoundId
from securefl.simulation.paillier import Trust, paillier_session
from securefl.wire import decode_frame

B = 14


@pytest.fixture
def hybrid(secret_key: SecretKey, dealt_key: Any) -> Callable[..., Any]:
    def build(m: int = 100, *, b: int = B, n: int = 6, trust: Trust = Trust.KEY_HOLDER) -> Any:
        return paillier_session(
            trust,
            Cohort.of(range(1, n + 1)),
            round_id=RoundId(4),
            alive=4,
            m=m,
            b=b,
            context_digest=bytes(32),
            policy=ClientPolicy(gamma=0),
            keys=secret_key if trust is Trust.KEY_HOLDER else dealt_key,
            experimental_hybrid=True,
        )

    return build


def vector(u: int, m: int, b: int = B) -> RingVector:
    values = np.random.default_rng(u).integers(0, 1 << b, m)
    return RingVector(values.astype(ring_dtype(1 << b)), 1 << b)


def submissions(session: Any) -> dict[ClientId, list[bytes]]:
    for u, client in session.clients.items():
        for item in client.start():
            session.server.receive(item.frame, u)
    found = {}
    for item in session.server.close_phase():
        if isinstance(item, Outbound):
            client = session.clients[item.recipient]
            client.receive(item.frame, SERVER)
            out = client.set_input(vector(item.recipient, session.config.m))
            found[item.recipient] = [x.frame for x in out]
    return found


def finish(session: Any, frames: Mapping[ClientId, list[bytes]]) -> tuple[list[int], list[Any]]:
    events = [
        event
        for u, both in frames.items()
        for frame in both
        for event in session.server.receive(frame, u)
    ]
    while not session.server.final:
        for item in session.server.close_phase():
            if isinstance(item, Outbound):
                try:
                    answers = session.parties[item.recipient].receive(item.frame, SERVER)
                except DecryptionRefused as no:
                    answers = no.outbound
                for out in answers:
                    session.server.receive(out.frame, item.recipient)
            else:
                events.append(item)
    return session.server.result.vector.values.tolist(), events


def plain(session: Any, *who: int) -> list[int]:
    total = sum(vector(u, session.config.m).values.astype(np.int64) for u in who)
    return (total % (1 << B)).tolist()


def test_the_mode_needs_its_name_and_consent(secret_key: SecretKey) -> None:
    layout = SlotLayout(bound=1 << 13, max_clients=6)
    terms = {
        "key": secret_key.public,
        "layout": layout,
        "key_holder": ClientId(90),
        "witnesses": (ClientId(91),),
        "mode": BlockMode.HYBRID,
    }
    for consent in (False, None, 1, "yes"):
        with pytest.raises(ConfigurationError, match="experimental"):
            PaillierTerms(**terms, accept_experimental=consent)
    accepted = PaillierTerms(**terms, accept_experimental=True)
    packed = PaillierTerms(**{**terms, "mode": BlockMode.PACKED})
    assert accepted.digest() != packed.digest()


@pytest.mark.parametrize("m", [1, 2047, 2048, 2049])
def test_sums_are_exact_whatever_the_order_of_the_two_frames(
    hybrid: Callable[..., Any], m: int
) -> None:
    session = hybrid(m)
    frames = submissions(session)
    turned = {u: both[::-1] if u % 2 else both for u, both in frames.items()}
    result, _ = finish(session, turned)
    assert result == plain(session, 1, 2, 3, 4, 5, 6)


def test_a_body_of_somebody_else_or_none_costs_its_sender_only(hybrid: Callable[..., Any]) -> None:
    session = hybrid()
    frames = submissions(session)
    two = session.clients[ClientId(2)]
    stolen = bytes(decode_frame(frames[ClientId(1)][1]).body)
    end = two._end
    swapped = end.outbound(MessageType.MASKED_BODY, stolen, session=end.config_digest)[0].frame
    lies = {
        **frames,
        ClientId(2): [frames[ClientId(2)][0], swapped],
        ClientId(3): frames[ClientId(3)][:1],
    }
    result, events = finish(session, lies)
    dropped = {e.client: e.reason.name for e in events if isinstance(e, ClientDropped)}
    assert dropped == {ClientId(2): "EQUIVOCATION", ClientId(3): "NO_REPLY"}
    assert result == plain(session, 1, 4, 5, 6)


def test_every_client_computes_the_public_polynomials_itself(hybrid: Callable[..., Any]) -> None:
    one, other = hybrid(), hybrid()
    a, b = (x.server._terms.public_polynomials(x.config) for x in (one, other))
    # Another nonce, other polynomials: no server can choose or repeat them.
    assert (a != b).mean() > 0.99
    assert a.shape == (1, rlwe.DEGREE)


def test_what_the_mode_cannot_sum_is_refused(hybrid: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="24"):
        hybrid(b=23)
    with pytest.raises(ConfigurationError, match="127"):
        hybrid(b=8, n=128)
    with pytest.raises(ConfigurationError, match="dimension"):
        hybrid(0)


def test_a_submission_is_one_use_and_masks_are_fresh(hybrid: Callable[..., Any]) -> None:
    session = hybrid()
    frames = submissions(session)
    bodies = {bytes(decode_frame(both[1]).body) for both in frames.values()}
    assert len(bodies) == 6
    with pytest.raises(Exception, match="twice"):
        session.clients[ClientId(1)].set_input(vector(1, 100))


def test_a_proof_does_not_go_with_another_body(hybrid: Callable[..., Any]) -> None:
    """Also its own author cannot take it along to other masks: retries encrypt anew."""
    session = hybrid()
    frames = submissions(session)
    end = session.clients[ClientId(2)]._end
    body, other = (bytes(decode_frame(frames[ClientId(u)][1]).body) for u in (2, 1))
    content = bytes(decode_frame(frames[ClientId(2)][0]).body)
    assert content[:32] == sha256(body)
    lie = end.outbound(
        MessageType.SUBMISSION, sha256(other) + content[32:], session=end.config_digest
    )[0].frame
    (event,) = session.server.receive(lie, ClientId(2))
    assert event.reason.name == "INVALID_SHARE"


# Six clients' slots sum to at most 12 of 255: 13 and more are noticed. What wraps into a neighbour,
# or borrows from it, can look like an honest sum, and is a wrong input like any other.
@pytest.mark.parametrize("wild", [13, 127, 128, 200, 254, 255, 256, 1 << 40, -7, -300])
@pytest.mark.parametrize("trust", Trust)
def test_a_secret_beyond_the_bound_is_noticed_and_crashes_nobody(
    hybrid: Callable[..., Any], trust: Trust, wild: int
) -> None:
    """A client that knows what it encrypts may encrypt anything; nobody crashes over it."""
    session = hybrid(trust=trust)
    frames = submissions(session)
    cheat = ClientId(6)
    terms, end = session.server._terms, session.clients[cheat]._end
    layout = terms.block_layout
    slots = layout.slots(terms.degree)
    honest = layout.pack(np.zeros(rlwe.DEGREE, np.int64), slots)
    plain = [honest[0] + (wild << (3 * layout.width)), *honest[1:]]
    encryptor = terms.encryptor()
    sealed = encryptor.encrypt(plain)
    block = terms.block_of(session.config.m, sealed.ciphertexts)
    body = frames[cheat][1]
    digest = sha256(bytes(decode_frame(body).body))
    context = knowledge_context(session.config.digest(), cheat, block, digest)
    proof = prove_knowledge(encryptor, plain, sealed, context)
    content = Submission(block=block, proof=proof, body_digest=digest).encode()
    lie = end.outbound(MessageType.SUBMISSION, content, session=end.config_digest)[0].frame
    frames[cheat] = [lie, body]
    try:
        finish(session, frames)
    except DecryptionRefused as no:
        assert no.reason == "BAD_PLAINTEXT"
        assert session.server.result is None
        return
    assert not 13 <= wild <= 200
    assert session.server.final
