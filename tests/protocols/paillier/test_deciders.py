"""A server that lies to the deciders: every lie is refused by name, and no second set is opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefl.errors import ConfigurationError, DecryptionRefused, UnexpectedMessage
from securefl.primitives.channel import sha256
from securefl.primitives.paillier import Encryptor, SecretKey, SlotLayout
from securefl.primitives.paillier.block import HEADER_BYTES, Block
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.machine import Outbound
from securefl.protocols.paillier import (
    DeciderPolicy,
    KeyHolder,
    MemoryRoundBook,
    PaillierTerms,
    SqliteRoundBook,
    Witness,
    paillier_config,
)
from securefl.protocols.paillier.checking import SubmissionCheck
from securefl.protocols.paillier.messages import (
    CheckRequest,
    Contributor,
    MessageType,
    OpenRequest,
    ProductStatement,
    Submission,
    product_digest,
)
from securefl.protocols.paillier.terms import WITHOUT_WITNESS, Token
from securefl.round import SERVER, ClientId, Cohort, RoundId, ThreatModel
from securefl.simulation.paillier import Trust
from securefl.wire import Frame, decode_frame, encode_frame

KeyHolderTrust, ThresholdTrust = Trust.KEY_HOLDER, Trust.THRESHOLD


def directory_of(bench: Any) -> IdentityDirectory:
    return bench.made.server._end.directory


def server_frame(bench: Any, kind: MessageType, body: bytes) -> bytes:
    config = bench.made.config
    return encode_frame(
        Frame(
            protocol=config.protocol,
            type=kind,
            sender=SERVER,
            round_id=config.round_id,
            session=config.digest(),
            body=body,
        )
    )


def product_of(bench: Any, frames: Sequence[bytes]) -> bytes:
    """The product block of these submissions, with no check at all: the liar's own arithmetic."""
    terms = bench.made.server._terms
    degree = terms.degree
    size = terms.block_bytes(bench.made.config.m)
    blocks = [
        Block.from_bytes(Submission.decode(decode_frame(f).body, block_bytes=size).block, degree)
        for f in frames
    ]
    product = list(blocks[0].ciphertexts)
    for block in blocks[1:]:
        product = [
            a * b % int(degree.modulus) for a, b in zip(product, block.ciphertexts, strict=True)
        ]
    total = dataclasses.replace(blocks[0], ciphertexts=tuple(product), terms=len(blocks))
    return total.to_bytes(degree)


def check_request(bench: Any, frames: Sequence[bytes], digest: bytes | None = None) -> bytes:
    if digest is None:
        digest = product_digest(product_of(bench, frames)) if frames else bytes(32)
    body = CheckRequest(submissions=tuple(frames), product_digest=digest).encode()
    return server_frame(bench, MessageType.CHECK_REQUEST, body)


def open_request(
    bench: Any, frames: Sequence[bytes], statements: Sequence[bytes], block: bytes | None = None
) -> bytes:
    contributors = tuple(Contributor(decode_frame(f).sender, sha256(f)) for f in frames)
    body = OpenRequest(
        contributors=contributors,
        statements=tuple(statements),
        block=product_of(bench, frames) if block is None else block,
    ).encode()
    return server_frame(bench, MessageType.OPEN_REQUEST, body)


def refusal(machine: Any, frame: bytes) -> str:
    with pytest.raises(DecryptionRefused) as caught:
        machine.receive(frame, SERVER)
    (out,) = caught.value.outbound
    parsed = decode_frame(out.frame)
    # Nothing but one byte leaves: no plaintext, no ciphertext, no text.
    assert parsed.type == MessageType.REFUSAL
    assert len(parsed.body) == 1
    return caught.value.reason


def witness(bench: Any) -> Witness:
    return next(x for x in bench.made.parties.values() if isinstance(x, Witness))


def key_holder(bench: Any) -> KeyHolder:
    return next(x for x in bench.made.parties.values() if isinstance(x, KeyHolder))


def share_holders(bench: Any) -> list[Any]:
    return [bench.made.parties[u] for u in bench.made.server._terms.share_holders]


def statement(bench: Any, frames: Sequence[bytes]) -> bytes:
    (out,) = witness(bench).receive(check_request(bench, frames), SERVER)
    return out.frame


@pytest.mark.parametrize("trust", Trust)
def test_a_checker_refuses_every_altered_request(bench: Callable[..., Any], trust: Trust) -> None:
    session = bench(trust)
    frames = list(session.submissions().values())
    checker = witness(session) if trust is KeyHolderTrust else share_holders(session)[0]
    changed = bytearray(frames[0])
    changed[-70] ^= 1
    stranger = bytearray(frames[0])
    stranger[12:16] = (77).to_bytes(4, "little")
    cases = {
        "TOO_FEW": [frames[:3], []],
        "BAD_LIST": [[*frames, frames[0]], frames[::-1], [frames[0], *frames[:4]]],
        "BAD_SIGNATURE": [[bytes(changed), *frames[1:]]],
        "BAD_FRAME": [[frames[0][:-1], *frames[1:]], [b"", *frames[1:]]],
    }
    for reason, lies in cases.items():
        for lie in lies:
            request = check_request(session, lie, digest=bytes(32))
            if reason == "BAD_LIST" and len(lie) > 6:
                assert refusal(checker, request) == "BAD_FRAME"  # longer than the cohort
                continue
            assert refusal(checker, request) == reason, reason
    strange = [*frames[1:], bytes(stranger)]
    assert refusal(checker, check_request(session, strange, bytes(32))) == "BAD_LIST"
    assert refusal(checker, check_request(session, frames, bytes(32))) == "PRODUCT_MISMATCH"
    # A refusal binds nothing: the honest request is still answered, and the same one again.
    honest = check_request(session, frames)
    first = checker.receive(honest, SERVER)
    assert checker.receive(honest, SERVER) == first


@pytest.mark.parametrize("trust", Trust)
def test_a_second_set_is_refused_for_ever(bench: Callable[..., Any], trust: Trust) -> None:
    session = bench(trust)
    frames = list(session.submissions().values())
    checkers = [witness(session)] if trust is KeyHolderTrust else share_holders(session)
    for checker in checkers:
        checker.receive(check_request(session, frames), SERVER)
        for left_out in range(len(frames)):
            other = [*frames[:left_out], *frames[left_out + 1 :]]
            assert refusal(checker, check_request(session, other)) == "ROUND_BOUND"


def test_the_key_holder_opens_witnessed_products_only(bench: Callable[..., Any]) -> None:
    session = bench()
    frames = list(session.submissions().values())
    holder = key_holder(session)
    assert refusal(holder, check_request(session, frames)) == "BAD_FRAME"
    assert refusal(holder, open_request(session, frames, [])) == "NO_WITNESS"
    signed = statement(session, frames)
    single = product_of(session, frames[:1])
    lies = {
        # One client's ciphertext instead of the product that was witnessed.
        "PRODUCT_MISMATCH": open_request(session, frames, [signed], block=single),
        "TOO_FEW": open_request(session, frames[:2], [signed], block=single),
        "NO_WITNESS": open_request(session, frames[:5], [signed]),
        "BAD_LIST": open_request(session, frames[::-1], [signed]),
        "BAD_SIGNATURE": open_request(session, frames, [signed[:-1] + bytes([signed[-1] ^ 1])]),
    }
    for reason, lie in lies.items():
        assert refusal(holder, lie) == reason
    not_a_witness = frames[0]
    assert refusal(holder, open_request(session, frames, [not_a_witness])) == "BAD_SIGNATURE"
    (out,) = holder.receive(open_request(session, frames, [signed]), SERVER)
    assert decode_frame(out.frame).type == MessageType.OPENED


def test_one_witness_is_not_counted_twice(bench: Callable[..., Any]) -> None:
    session = bench()
    frames = list(session.submissions().values())
    signed = statement(session, frames)
    holder = key_holder(session)
    object.__setattr__(holder._terms, "statements", 2)
    try:
        assert refusal(holder, open_request(session, frames, [signed, signed])) == "NO_WITNESS"
    finally:
        object.__setattr__(holder._terms, "statements", 1)


def test_without_a_witness_the_server_reads_one_client(
    bench: Callable[..., Any], secret_key: SecretKey
) -> None:
    """The attack that the witness is there for, on terms that need a dangerous token."""
    honest = bench()
    layout = honest.made.server._terms.layout
    with pytest.raises(ConfigurationError, match="name a witness"):
        PaillierTerms(key=secret_key.public, layout=layout, key_holder=ClientId(900))
    terms = PaillierTerms(
        key=secret_key.public,
        layout=layout,
        key_holder=ClientId(900),
        without_witness=WITHOUT_WITNESS,
    )
    assert "any single update" in Token.WITHOUT_WITNESS.value
    config = paillier_config(
        terms,
        round_id=RoundId(4),
        cohort=Cohort.of(range(1, 7)),
        threat=ThreatModel(corrupt=1, dropped=2),
        m=5,
        b=16,
        context_digest=bytes(32),
        server_nonce=bytes(32),
    )
    keys = {u: IdentityKey(sha256(bytes([u % 251]))) for u in (*range(1, 7), 900)}
    holder = KeyHolder(
        ClientId(900),
        config,
        terms=terms,
        secret=secret_key,
        identity=keys[900],
        directory=IdentityDirectory({ClientId(u): k.public for u, k in keys.items()}),
        book=MemoryRoundBook(),
    )
    victim = np.array([11, -22, 33, -44, 55])
    encryptor = Encryptor(secret_key.public, window=4)
    sealed = encryptor.encrypt(layout.pack(victim, layout.slots(encryptor.degree)))
    # A list of four names that nobody checked, and one ciphertext for all of them: padded with
    # encryptions of zero, which the server makes itself.
    zeros = layout.pack(np.zeros(5, np.int64), layout.slots(encryptor.degree))
    total = list(sealed.ciphertexts)
    N = int(encryptor.degree.modulus)
    for _ in range(3):
        pad = encryptor.encrypt(zeros).ciphertexts
        total = [a * b % N for a, b in zip(total, pad, strict=True)]
    check = SubmissionCheck(config, terms, holder._directory)
    body = OpenRequest(
        contributors=tuple(Contributor(ClientId(u), bytes(32)) for u in (1, 2, 3, 4)),
        statements=(),
        block=check.product_block(total, terms=4),
    ).encode()
    frame = Frame(
        protocol=config.protocol,
        type=MessageType.OPEN_REQUEST,
        sender=SERVER,
        round_id=config.round_id,
        session=config.digest(),
        body=body,
    )
    (out,) = holder.receive(encode_frame(frame), SERVER)
    from securefl.protocols.paillier.messages import Opened

    opened = Opened.decode(decode_frame(out.frame).body, m=5, width=layout.width)
    read = opened.slots.astype(np.int64) - 4 * layout.bound
    assert read.tolist() == victim.tolist()


def test_a_book_on_disk_remembers_over_restarts(bench: Callable[..., Any], tmp_path: Path) -> None:
    session = bench()
    frames = list(session.submissions().values())
    made = session.made
    terms, config = made.server._terms, made.config
    machine = witness(session)

    def reborn() -> Witness:
        return Witness(
            machine.client_id,
            config,
            terms=terms,
            identity=machine._end.identity,
            directory=machine._directory,
            book=SqliteRoundBook(tmp_path / "rounds.db"),
            policy=DeciderPolicy(min_clients=4),
        )

    honest = check_request(session, frames)
    first = reborn().receive(honest, SERVER)
    # After a restart: another list is refused, the lost answer can be asked for again.
    assert refusal(reborn(), check_request(session, frames[1:])) == "ROUND_BOUND"
    assert reborn().receive(honest, SERVER) == first


def test_a_crash_between_the_book_and_the_answer_opens_nothing_else(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    session = bench()
    frames = list(session.submissions().values())
    machine = witness(session)
    book = SqliteRoundBook(tmp_path / "rounds.db")

    class Crash(Exception):
        pass

    class DiesAfterWriting:
        def bind(self, *what: Any) -> bool:
            book.bind(*what)
            raise Crash

    machine._book = DiesAfterWriting()
    with pytest.raises(Crash):
        machine.receive(check_request(session, frames), SERVER)
    machine._book = SqliteRoundBook(tmp_path / "rounds.db")
    assert refusal(machine, check_request(session, frames[1:])) == "ROUND_BOUND"
    assert machine.receive(check_request(session, frames), SERVER)


def test_the_book_is_written_before_the_answer_leaves(bench: Callable[..., Any]) -> None:
    session = bench()
    frames = list(session.submissions().values())
    machine = witness(session)
    written: list[bytes] = []

    class Refuses:
        def bind(self, session: bytes, round_id: int, digest: bytes) -> bool:
            written.append(digest)
            return False

    machine._book = Refuses()
    assert refusal(machine, check_request(session, frames)) == "ROUND_BOUND"
    assert len(written) == 1


def test_two_lists_can_both_be_opened_only_below_the_boundary(dealt_key: Any) -> None:
    """All t and c at l = 10: corrupt holders answer both lists, honest ones the first they see."""
    for t in range(2, 11):
        for c in range(t):
            honest = 10 - c
            # The server splits the honest holders as it likes.
            both = any(min(first + c, honest - first + c) >= t for first in range(honest + 1))
            assert both == (2 * t <= 10 + c)


def test_terms_that_let_the_server_split_the_holders_are_refused(dealt_key: Any) -> None:
    public, _ = dealt_key
    layout = SlotLayout(bound=1 << 15, max_clients=6)
    holders = tuple(ClientId(900 + i) for i in range(5))
    PaillierTerms(key=public, layout=layout, share_holders=holders, corrupt_holders=2)
    for c in (3, 4, 5, -1):
        with pytest.raises(ConfigurationError, match="corrupt share holders"):
            PaillierTerms(key=public, layout=layout, share_holders=holders, corrupt_holders=c)
    for wrong in (holders[:4], (*holders[:4], holders[0])):
        with pytest.raises(ConfigurationError):
            PaillierTerms(key=public, layout=layout, share_holders=wrong)
    with pytest.raises(ConfigurationError, match="degree"):
        PaillierTerms(key=public, layout=layout, share_holders=holders, s=2)


def test_share_holders_with_different_views_open_nothing(bench: Callable[..., Any]) -> None:
    session = bench(ThresholdTrust)
    frames = list(session.submissions().values())
    holders = share_holders(session)
    answered: dict[int, int] = {}
    for lie, chosen in ((frames, holders[:3]), (frames[1:], holders[3:])):
        request = check_request(session, lie)
        for holder in chosen:
            answered[len(lie)] = answered.get(len(lie), 0) + len(holder.receive(request, SERVER))
        for holder in holders:
            if holder not in chosen and holder.phase == "answered":
                assert refusal(holder, request) == "ROUND_BOUND"
    assert max(answered.values()) < session.made.server._terms.openers_needed


def test_a_decider_takes_frames_of_its_session_from_the_server_only(
    bench: Callable[..., Any],
) -> None:
    session, other = bench(), bench()
    frames = list(session.submissions().values())
    request = check_request(session, frames)
    for machine in (witness(other), key_holder(other)):
        with pytest.raises(UnexpectedMessage, match="another session"):
            machine.receive(request, SERVER)
    with pytest.raises(UnexpectedMessage):
        witness(session).receive(request, ClientId(3))


def test_submissions_of_another_round_or_client_do_not_pass(bench: Callable[..., Any]) -> None:
    session, other = bench(), bench()
    frames, foreign = list(session.submissions().values()), list(other.submissions().values())
    mixed = [foreign[0], *frames[1:]]
    assert refusal(witness(session), check_request(session, mixed)) == "BAD_FRAME"


def test_a_policy_that_hides_one_client_is_refused() -> None:
    for least, colluding in ((2, 1), (3, 2), (1, 0), (5, -1)):
        with pytest.raises(ConfigurationError, match="min_clients"):
            DeciderPolicy(min_clients=least, max_colluding_clients=colluding)


def test_a_stricter_decider_is_not_talked_into_fewer_clients(bench: Callable[..., Any]) -> None:
    session = bench()
    frames = list(session.submissions(1, 2, 3, 4).values())
    machine = witness(session)
    machine._policy = DeciderPolicy(min_clients=5)
    assert refusal(machine, check_request(session, frames)) == "TOO_FEW"


@pytest.mark.parametrize("number", ["zero", "n", "p", "modulus"])
@pytest.mark.parametrize("trust", Trust)
def test_a_number_that_is_no_ciphertext_costs_its_sender_the_place_and_nobody_else(
    bench: Callable[..., Any],
    secret_key: SecretKey,
    trust: Trust,
    number: str,
) -> None:
    session = bench(trust)
    frames = session.submissions()
    server, terms = session.made.server, session.made.server._terms
    n, N = terms.public.n, int(terms.degree.modulus)
    p = secret_key.primes()[0] if trust is KeyHolderTrust else n
    bad = {"zero": 0, "n": n, "p": p, "modulus": N}[number]
    cheat = ClientId(2)
    frame = decode_frame(frames[cheat])
    body = bytearray(frame.body)
    width = terms.degree.ciphertext_bytes
    start = 4 + terms.block_bytes(session.made.config.m) - width
    body[start : start + width] = bad.to_bytes(width, "big")
    forged = signed_again(session, cheat, bytes(body))
    (event,) = server.receive(forged, cheat)
    assert event.client == cheat
    assert event.reason.name == "MALFORMED"
    result = finish(session, {u: f for u, f in frames.items() if u != cheat})
    assert result == session.expected(1, 3, 4, 5, 6)


def signed_again(session: Any, u: ClientId, body: bytes) -> bytes:
    end = session.made.clients[u]._end
    return end.outbound(MessageType.SUBMISSION, body, session=end.config_digest)[0].frame


def finish(session: Any, frames: dict[ClientId, bytes]) -> list[int]:
    """Hands the submissions in and plays the rest honestly; the opened sum."""
    server = session.made.server
    for u, frame in frames.items():
        server.receive(frame, u)
    while not server.final:
        out = server.close_phase()
        for answer in session.ask(*(x for x in out if isinstance(x, Outbound))):
            server.receive(answer, decode_frame(answer).sender)
    return server.result.vector.values.tolist()


@pytest.mark.parametrize("terms", [0, 2, 6, 1 << 31])
@pytest.mark.parametrize("trust", Trust)
def test_a_submission_is_one_term_whatever_its_header_says(
    bench: Callable[..., Any], trust: Trust, terms: int
) -> None:
    """A client that stated the count could shift everybody's offset."""
    session = bench(trust)
    frames, cheat = session.submissions(), ClientId(2)
    body = bytearray(decode_frame(frames[cheat]).body)
    place = 4 + HEADER_BYTES - 4
    assert int.from_bytes(body[place : place + 4], "big") == 1
    body[place : place + 4] = terms.to_bytes(4, "big")
    forged = signed_again(session, cheat, bytes(body))
    (event,) = session.made.server.receive(forged, cheat)
    assert (event.client, event.reason.name) == (cheat, "MALFORMED")
    checker = witness(session) if trust is KeyHolderTrust else share_holders(session)[0]
    lie = [forged if u == cheat else frame for u, frame in frames.items()]
    assert refusal(checker, check_request(session, lie, bytes(32))) == "BAD_CIPHERTEXT"
    assert finish(session, {u: f for u, f in frames.items() if u != cheat}) == session.expected(
        1, 3, 4, 5, 6
    )


def with_terms(block: bytes, terms: int) -> bytes:
    return block[: HEADER_BYTES - 4] + terms.to_bytes(4, "big") + block[HEADER_BYTES:]


@pytest.mark.parametrize("terms", [1, 5, 7, (1 << 32) - 1])
def test_a_product_announces_as_many_terms_as_its_list_has_names(
    bench: Callable[..., Any], terms: int
) -> None:
    session = bench()
    frames = list(session.submissions().values())
    block = product_of(session, frames)
    assert with_terms(block, 6) == block
    lying = with_terms(block, terms)
    # Who recomputes the product writes the header itself, so it cannot be talked into another.
    checker, holder = witness(session), key_holder(session)
    request = check_request(session, frames, digest=product_digest(lying))
    assert refusal(checker, request) == "PRODUCT_MISMATCH"
    honest = statement(session, frames)
    request = open_request(session, frames, [honest], block=lying)
    assert refusal(holder, request) == "PRODUCT_MISMATCH"
    # And a witness that signs the lie does not make the key holder believe it.
    found = ProductStatement.decode(decode_frame(honest).body)
    forged = dataclasses.replace(found, product_digest=product_digest(lying))
    end = checker._end
    signed = end.outbound(
        MessageType.PRODUCT_STATEMENT, forged.encode(), session=end.config_digest
    )[0].frame
    request = open_request(session, frames, [signed], block=lying)
    assert refusal(holder, request) == "BAD_CIPHERTEXT"
    assert holder.receive(open_request(session, frames, [honest]), SERVER)


@pytest.mark.parametrize("trust", Trust)
def test_a_proof_of_another_client_or_none_is_refused(
    bench: Callable[..., Any], trust: Trust
) -> None:
    session = bench(trust)
    frames = session.submissions()
    # Client 2 sends client 1's ciphertexts with client 1's proof under its own name.
    copied = signed_again(session, ClientId(2), bytes(decode_frame(frames[ClientId(1)]).body))
    (event,) = session.made.server.receive(copied, ClientId(2))
    assert event.reason.name == "INVALID_SHARE"
    checker = witness(session) if trust is KeyHolderTrust else share_holders(session)[0]
    lie = [frames[ClientId(1)], copied, *[frames[ClientId(u)] for u in (3, 4, 5, 6)]]
    assert refusal(checker, check_request(session, lie)) == "BAD_PROOF"


def test_a_wrong_partial_is_named_and_the_others_succeed(bench: Callable[..., Any]) -> None:
    session = bench(ThresholdTrust)
    frames = session.submissions()
    server, terms = session.made.server, session.made.server._terms
    for u, frame in frames.items():
        server.receive(frame, u)
    requests = [x for x in server.close_phase() if isinstance(x, Outbound)]
    answers = session.ask(*requests)
    liar = terms.share_holders[1]
    n, N = terms.public.n, int(terms.degree.modulus)
    frame = decode_frame(answers[1])
    body = bytearray(frame.body)
    width = terms.degree.ciphertext_bytes
    shifted = int.from_bytes(body[32 : 32 + width], "big") * (1 + 7 * n) % N
    body[32 : 32 + width] = shifted.to_bytes(width, "big")
    end = session.made.parties[liar]._end
    forged = end.outbound(MessageType.PARTIALS, bytes(body), session=end.config_digest)[0].frame
    (event,) = server.receive(forged, liar)
    assert (event.client, event.reason.name) == (liar, "INVALID_SHARE")
    for i, answer in enumerate(answers):
        if i != 1:
            server.receive(answer, terms.share_holders[i])
    server.close_phase()
    assert server.result.vector.values.tolist() == session.expected(1, 2, 3, 4, 5, 6)


def test_every_set_of_t_share_holders_opens_the_same_sum(bench: Callable[..., Any]) -> None:
    for chosen in combinations(range(5), 4):
        session = bench(ThresholdTrust)
        frames = session.submissions()
        server, terms = session.made.server, session.made.server._terms
        for u, frame in frames.items():
            server.receive(frame, u)
        requests = [x for x in server.close_phase() if isinstance(x, Outbound)]
        for i, answer in enumerate(session.ask(*requests)):
            if i in chosen:
                server.receive(answer, terms.share_holders[i])
        server.close_phase()
        assert server.result.vector.values.tolist() == session.expected(1, 2, 3, 4, 5, 6)


def test_writing_across_slots_is_noticed_after_opening(bench: Callable[..., Any]) -> None:
    """A client knows what it encrypts, so the proof holds; the slots do not add up."""
    for trust in Trust:
        session = bench(trust)
        frames = session.submissions()
        client = session.made.clients[ClientId(6)]
        terms, config = client._terms, client._config
        from securefl.primitives.paillier.knowledge import prove_knowledge
        from securefl.protocols.paillier.checking import knowledge_context

        layout = terms.layout
        (plain,) = layout.pack(np.zeros(5, np.int64), layout.slots(terms.degree))
        plain += 1 << (layout.width * 7)  # a slot that nobody uses
        encryptor = terms.encryptor()
        sealed = encryptor.encrypt([plain])
        check = SubmissionCheck(config, terms, directory_of(session))
        block = check.product_block(sealed.ciphertexts, terms=1)
        context = knowledge_context(config.digest(), ClientId(6), block)
        proof = prove_knowledge(encryptor, [plain], sealed, context)
        body = Submission(block=block, proof=proof).encode()
        frames[ClientId(6)] = signed_again(session, ClientId(6), body)
        with pytest.raises(DecryptionRefused) as caught:
            finish_refused(session, frames)
        assert caught.value.reason == "BAD_PLAINTEXT"
        assert session.made.server.result is None


def finish_refused(session: Any, frames: dict[ClientId, bytes]) -> None:
    server = session.made.server
    for u, frame in frames.items():
        server.receive(frame, u)
    while not server.final:
        out = server.close_phase()
        for item in out:
            if not isinstance(item, Outbound):
                continue
            try:
                answers = session.made.parties[item.recipient].receive(item.frame, SERVER)
            except DecryptionRefused as no:
                answers = no.outbound
            for answer in answers:
                server.receive(answer.frame, item.recipient)


def test_a_statement_says_what_the_server_computed_or_its_author_is_named(
    bench: Callable[..., Any],
) -> None:
    session = bench()
    frames = session.submissions()
    server = session.made.server
    for u, frame in frames.items():
        server.receive(frame, u)
    server.close_phase()
    machine = witness(session)
    lie = ProductStatement(list_digest=bytes(32), product_digest=bytes(32), count=6)
    end = machine._end
    forged = end.outbound(MessageType.PRODUCT_STATEMENT, lie.encode(), session=end.config_digest)[
        0
    ].frame
    (event,) = server.receive(forged, machine.client_id)
    assert event.reason.name == "EQUIVOCATION"


def test_round_books_agree_on_the_first_request(tmp_path: Path) -> None:
    for book in (MemoryRoundBook(), SqliteRoundBook(tmp_path / "a.db")):
        assert book.bind(b"s" * 32, 1, b"x" * 32)
        assert book.bind(b"s" * 32, 1, b"x" * 32)
        assert not book.bind(b"s" * 32, 1, b"y" * 32)
        assert book.bind(b"s" * 32, 2, b"y" * 32)
        assert book.bind(b"t" * 32, (1 << 64) - 1, b"y" * 32)
        assert not book.bind(b"t" * 32, (1 << 64) - 1, b"z" * 32)
    two = SqliteRoundBook(tmp_path / "a.db")
    assert not two.bind(b"s" * 32, 1, b"y" * 32)


def test_a_foreign_database_is_no_round_book(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(tmp_path / "b.db")) as database:
        database.execute("CREATE TABLE notes (x)")
    (tmp_path / "c.db").write_bytes(b"no database at all, but long enough to look like one" * 9)
    for name in ("b.db", "c.db"):
        with pytest.raises(ConfigurationError, match=r"round book|another program"):
            SqliteRoundBook(tmp_path / name)
