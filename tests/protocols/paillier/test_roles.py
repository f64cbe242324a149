"""Who may take which part: wrong keys, places and requests; share holders with witnesses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from securefl.errors import BelowThreshold, ConfigurationError, DecryptionRefused
from securefl.modular import RingVector, ring_dtype
from securefl.primitives.channel import sha256
from securefl.primitives.paillier import SecretKey, SlotLayout, generate_keypair
from securefl.primitives.paillier.block import HEADER_BYTES
from securefl.primitives.paillier.threshold import deal
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.machine import ClientDropped, Outbound
from securefl.protocols.paillier import (
    DeciderPolicy,
    KeyHolder,
    MemoryRoundBook,
    PaillierClient,
    PaillierServer,
    PaillierTerms,
    ShareHolder,
    Witness,
    paillier_config,
)
from securefl.protocols.paillier.messages import (
    CheckRequest,
    Contributor,
    MessageType,
    OpenRequest,
    ProductStatement,
    product_digest,
)
from securefl.protocols.policy import ClientPolicy
from securefl.round import SERVER, ClientId, Cohort, RoundId, ThreatModel
from securefl.simulation.paillier import Trust
from securefl.wire import decode_frame

WITNESSES = (ClientId(801), ClientId(802))
HOLDERS = tuple(ClientId(901 + i) for i in range(5))
CLIENTS = tuple(map(ClientId, range(1, 7)))
M, B = 5, 16


class Witnessed:
    """Threshold mode in which two witnesses recompute the product and share holders see only it.

    Attributes:
        terms: what all pinned.
        server: its machine.
        clients, parties: machines by id.
        inputs: by client.
    """

    def __init__(self, dealt_key: Any) -> None:
        public, shares = dealt_key
        self.terms = PaillierTerms(
            key=public,
            layout=SlotLayout(bound=1 << 15, max_clients=6),
            share_holders=HOLDERS,
            witnesses=WITNESSES,
            statements=2,
        )
        config = paillier_config(
            self.terms,
            round_id=RoundId(9),
            cohort=Cohort.of(CLIENTS),
            threat=ThreatModel(corrupt=1, dropped=2),
            m=M,
            b=B,
            context_digest=bytes(32),
            server_nonce=bytes(32),
        )
        everybody = (*CLIENTS, *self.terms.deciders)
        identities = {u: IdentityKey(sha256(b"role", bytes([u % 251]))) for u in everybody}
        directory = IdentityDirectory({u: key.public for u, key in identities.items()})
        self.server = PaillierServer(config, terms=self.terms, directory=directory)
        self.config = config
        self.clients = {
            u: PaillierClient(
                u,
                config,
                terms=self.terms,
                context_digest=bytes(32),
                identity=identities[u],
                directory=directory,
                policy=ClientPolicy(gamma=0),
            )
            for u in CLIENTS
        }
        self.parties: dict[ClientId, Any] = {}
        common = {"terms": self.terms, "directory": directory, "policy": DeciderPolicy()}
        for u in WITNESSES:
            self.parties[u] = Witness(
                u, config, identity=identities[u], book=MemoryRoundBook(), **common
            )
        for u, share in zip(HOLDERS, shares, strict=True):
            self.parties[u] = ShareHolder(
                u, config, share=share, identity=identities[u], book=MemoryRoundBook(), **common
            )
        rng = np.random.default_rng(2)
        self.inputs = {
            u: RingVector(rng.integers(0, 1 << B, M).astype(ring_dtype(1 << B)), 1 << B)
            for u in CLIENTS
        }

    def collect(self) -> None:
        """Until all submissions are in."""
        for u, client in self.clients.items():
            self.server.receive(client.start()[0].frame, u)
        for item in self.server.close_phase():
            if isinstance(item, Outbound):
                client = self.clients[item.recipient]
                client.set_input(self.inputs[item.recipient])
                (out,) = client.receive(item.frame, SERVER)
                self.server.receive(out.frame, item.recipient)

    def requests(self) -> list[Outbound]:
        """What the server sends when the phase closes."""
        return [x for x in self.server.close_phase() if isinstance(x, Outbound)]

    def answer(self, item: Outbound) -> bytes:
        (out,) = self.parties[item.recipient].receive(item.frame, SERVER)
        frame: bytes = out.frame
        return frame

    def served(self, kind: MessageType, body: bytes) -> bytes:
        end = self.server._end
        return end.frame(kind, body, session=end.config_digest)

    def expected(self) -> list[int]:
        total = sum(x.values.astype(np.int64) for x in self.inputs.values())
        return (total % (1 << B)).tolist()


@pytest.fixture
def witnessed(dealt_key: Any) -> Witnessed:
    session = Witnessed(dealt_key)
    session.collect()
    return session


def refused(machine: Any, frame: bytes) -> str:
    with pytest.raises(DecryptionRefused) as caught:
        machine.receive(frame, SERVER)
    return caught.value.reason


def test_share_holders_with_witnesses_see_the_product_only_and_open_the_sum(
    witnessed: Witnessed,
) -> None:
    session = witnessed
    submissions = dict(session.server._frames)
    for item in session.requests():
        assert item.recipient in WITNESSES
        assert session.server.receive(session.answer(item), item.recipient) == []
    opening = session.requests()
    assert {item.recipient for item in opening} == set(HOLDERS)
    for item in opening:
        body = bytes(decode_frame(item.frame).body)
        for frame in submissions.values():
            assert bytes(decode_frame(frame).body)[100:200] not in body
    for item in opening[1:]:
        assert session.server.receive(session.answer(item), item.recipient) == []
    session.requests()
    assert session.server.result.vector.values.tolist() == session.expected()


def test_share_holders_with_witnesses_refuse_submissions_and_unwitnessed_products(
    witnessed: Witnessed,
) -> None:
    session = witnessed
    frames = tuple(session.server._frames.values())
    checks = session.requests()
    statements = [session.answer(item) for item in checks]
    block = session.server._block
    contributors = tuple(Contributor(decode_frame(f).sender, sha256(f)) for f in frames)
    holder = session.parties[HOLDERS[0]]

    def request(block: bytes = block, signed: Any = statements, names: Any = contributors) -> bytes:
        body = OpenRequest(contributors=names, statements=tuple(signed), block=block).encode()
        return session.served(MessageType.OPEN_REQUEST, body)

    check = CheckRequest(submissions=frames, product_digest=product_digest(block)).encode()
    assert refused(holder, session.served(MessageType.CHECK_REQUEST, check)) == "BAD_FRAME"
    assert refused(holder, request(signed=statements[:1])) == "NO_WITNESS"
    assert refused(holder, request(signed=[statements[0]] * 2)) == "NO_WITNESS"
    assert refused(holder, request(names=contributors[1:])) == "NO_WITNESS"
    assert refused(holder, request(names=contributors[:2])) == "TOO_FEW"
    single = session.server._terms.block_of(M, session.server._check.frame(frames[0]).ciphertexts)
    assert refused(holder, request(block=single)) == "PRODUCT_MISMATCH"
    # Two witnesses that lie about the count do not make a share holder believe it.
    lying = block[: HEADER_BYTES - 4] + (5).to_bytes(4, "big") + block[HEADER_BYTES:]
    forged = []
    for u, frame in zip(WITNESSES, statements, strict=True):
        found = ProductStatement.decode(decode_frame(frame).body)
        lie = dataclasses.replace(found, product_digest=product_digest(lying))
        end = session.parties[u]._end
        forged.append(
            end.outbound(MessageType.PRODUCT_STATEMENT, lie.encode(), session=end.config_digest)[
                0
            ].frame
        )
    assert refused(holder, request(block=lying, signed=forged)) == "BAD_CIPHERTEXT"
    assert holder.receive(request(), SERVER)


@pytest.mark.parametrize("trust", Trust)
def test_a_request_of_another_kind_is_refused_whatever_its_body_says(
    bench: Callable[..., Any], trust: Trust
) -> None:
    """The type decides, not what the body happens to look like."""
    session = bench(trust)
    server, made = session.made.server, session.made
    for u, frame in session.submissions().items():
        server.receive(frame, u)
    while not server.final:
        for item in [x for x in server.close_phase() if isinstance(x, Outbound)]:
            machine, end = made.parties[item.recipient], server._end
            right = MessageType(decode_frame(item.frame).type)
            body = bytes(decode_frame(item.frame).body)
            for kind in set(MessageType) - {right, MessageType.ABORT}:
                frame = end.frame(kind, body, session=end.config_digest)
                assert refused(machine, frame) == "BAD_FRAME"
            (answer,) = machine.receive(item.frame, SERVER)
            server.receive(answer.frame, item.recipient)
    assert server.result.vector.values.tolist() == session.expected(1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("trust", Trust)
def test_a_lenient_decider_still_keeps_to_the_minimum_that_clients_agreed_to(
    bench: Callable[..., Any], trust: Trust
) -> None:
    session = bench(trust, alive=5)
    frames = tuple(session.submissions(1, 2, 3, 4).values())
    terms, end = session.made.server._terms, session.made.server._end
    machine = session.made.parties[(*terms.witnesses, *terms.share_holders)[0]]
    machine._policy = DeciderPolicy(min_clients=3)
    body = CheckRequest(submissions=frames, product_digest=bytes(32)).encode()
    request = end.frame(MessageType.CHECK_REQUEST, body, session=end.config_digest)
    assert refused(machine, request) == "TOO_FEW"


def parts(session: Any, who: ClientId) -> dict[str, Any]:
    """What a machine of this party takes beside its key."""
    old = session.made.parties[who]
    return {
        "terms": session.made.server._terms,
        "identity": old._end.identity,
        "directory": old._directory,
        "book": MemoryRoundBook(),
    }


def test_a_key_holder_with_another_key_or_in_another_place_is_refused(
    bench: Callable[..., Any], secret_key: SecretKey
) -> None:
    session = bench()
    terms, config = session.made.server._terms, session.made.config
    common = parts(session, terms.key_holder)
    other = generate_keypair(512, random_bytes=np.random.default_rng(77).bytes, min_bits=512)
    with pytest.raises(ConfigurationError, match="does not belong to the terms' public key"):
        KeyHolder(terms.key_holder, config, secret=other, **common)
    with pytest.raises(ConfigurationError, match="not the key holder"):
        KeyHolder(terms.witnesses[0], config, secret=secret_key, **common)
    KeyHolder(terms.key_holder, config, secret=secret_key, **common)


def test_a_share_holder_with_a_share_of_another_key_or_no_place_is_refused(
    bench: Callable[..., Any], dealt_key: Any
) -> None:
    session = bench(Trust.THRESHOLD)
    terms, config = session.made.server._terms, session.made.config
    first = terms.share_holders[0]
    common = parts(session, first)
    random_bytes = np.random.default_rng(78).bytes
    _, others = deal(threshold=4, parties=5, bits=512, random_bytes=random_bytes, min_bits=512)
    with pytest.raises(ConfigurationError, match="does not belong to the terms' threshold key"):
        ShareHolder(first, config, share=others[0], **common)
    with pytest.raises(ConfigurationError, match="no share holder"):
        ShareHolder(ClientId(1), config, share=dealt_key[1][0], **common)
    ShareHolder(first, config, share=dealt_key[1][0], **common)


def test_a_decider_without_its_cohort_in_the_directory_is_refused(
    bench: Callable[..., Any],
) -> None:
    session = bench()
    terms, config = session.made.server._terms, session.made.config
    common = parts(session, terms.witnesses[0])
    full: Mapping[ClientId, Any] = {
        u: common["directory"].public(u) for u in (*config.cohort, *terms.deciders)
    }
    for missing in (ClientId(3), terms.key_holder):
        partial = IdentityDirectory({u: key for u, key in full.items() if u != missing})
        with pytest.raises(ConfigurationError, match="1 clients or deciders have no identity"):
            Witness(terms.witnesses[0], config, **{**common, "directory": partial})


def test_with_one_of_two_witnesses_missing_nothing_is_opened(witnessed: Witnessed) -> None:
    session = witnessed
    first, _ = session.requests()
    session.server.receive(session.answer(first), first.recipient)
    assert not session.server.sufficient
    with pytest.raises(BelowThreshold, match="checking"):
        session.server.close_phase()
    assert session.server.result is None


def test_a_share_holder_that_vanishes_is_named_and_not_missed(witnessed: Witnessed) -> None:
    session = witnessed
    for item in session.requests():
        session.server.receive(session.answer(item), item.recipient)
    *present, gone = session.requests()
    for item in present:
        session.server.receive(session.answer(item), item.recipient)
    events = [x for x in session.server.close_phase() if isinstance(x, ClientDropped)]
    assert [(x.client, x.reason.name) for x in events] == [(gone.recipient, "NO_REPLY")]
    assert session.server.result.vector.values.tolist() == session.expected()
