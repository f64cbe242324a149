"""Inputs that an outsider tried: each one is refused by an error of the library, or counts."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefl.errors import (
    ConfigurationError,
    DecryptionRefused,
    LocalProtocolError,
    UnexpectedMessage,
)
from securefl.primitives import bigint
from securefl.primitives.channel import sha256
from securefl.primitives.paillier import Encryptor, RandomizerPool, SecretKey, SlotLayout
from securefl.protocols.machine import ClientDropped, ClientEquivocated, Outbound, Reason
from securefl.protocols.messages import Abort
from securefl.protocols.paillier import (
    DeciderPolicy,
    KeyHolder,
    MemoryRoundBook,
    PaillierClient,
    PaillierTerms,
    SqliteRoundBook,
    Witness,
    paillier_config,
)
from securefl.protocols.paillier.messages import (
    CheckRequest,
    Contributor,
    MessageType,
    OpenRequest,
    ProductStatement,
    RefusalReason,
    product_digest,
)
from securefl.protocols.paillier.terms import check_config
from securefl.protocols.policy import ClientPolicy
from securefl.round import SERVER, ClientId, Cohort, Protocol, RoundId, ThreatModel
from securefl.simulation.paillier import Trust, paillier_session
from securefl.wire import decode_frame, encode_frame, signed_content


def client_with(session: Any, u: int, **more: Any) -> PaillierClient:
    old = session.made.clients[ClientId(u)]
    return PaillierClient(
        ClientId(u),
        session.made.config,
        terms=session.made.server._terms,
        context_digest=bytes(32),
        identity=old._end.identity,
        directory=old._end.directory,
        policy=ClientPolicy(gamma=0),
        **more,
    )


def test_a_pool_that_nobody_would_accept_is_refused_before_anything_is_sent(
    bench: Callable[..., Any], secret_key: SecretKey
) -> None:
    session = bench()
    for encryptor in (
        Encryptor(secret_key.public, randomness="full"),
        Encryptor(secret_key.public, 2),
    ):
        with pytest.raises(ConfigurationError, match="length of exponents"):
            client_with(session, 1, pool=RandomizerPool(encryptor))
    pool = RandomizerPool(Encryptor(secret_key.public))
    pool.fill(1)
    session.made.clients[ClientId(1)] = client_with(session, 1, pool=pool)
    session.submissions()
    assert len(pool) == 0


def test_everything_that_a_client_sends_follows_from_its_randomness(
    bench: Callable[..., Any],
) -> None:
    session = bench()
    sent = []
    for _ in range(2):
        client = client_with(session, 1, random_bytes=np.random.default_rng(9).bytes)
        session.made.server.receive(client.start()[0].frame, ClientId(1))
        client.set_input(session.inputs[ClientId(1)])
        end = session.made.server._end
        (opened,) = end.to_all(
            [ClientId(1)],
            MessageType.ROUND_OPEN,
            session.made.server._terms.digest(),
            session=end.config_digest,
        )
        sent += [x.frame for x in client.receive(opened.frame) if isinstance(x, Outbound)]
    assert sent[0] == sent[1]


def test_an_entry_of_a_round_book_survives_a_power_cut(tmp_path: Path) -> None:
    # 3 is EXTRA: also the folder is synchronised before an entry counts.
    with closing(SqliteRoundBook(tmp_path / "book.db")._connect()) as database:
        assert database.execute("PRAGMA synchronous").fetchone() == (3,)


def test_a_decider_whose_book_cannot_be_written_answers_nothing(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    session = bench()
    server = session.made.server
    for u, frame in session.submissions().items():
        server.receive(frame, u)
    (request,) = [x for x in server.close_phase() if isinstance(x, Outbound)]
    machine: Witness = session.made.parties[request.recipient]
    machine._book = SqliteRoundBook(tmp_path / "book.db")
    with closing(sqlite3.connect(tmp_path / "book.db")) as database:
        database.execute("DROP TABLE bound")
    with pytest.raises(ConfigurationError, match="nothing was answered"):
        machine.receive(request.frame, SERVER)
    assert machine.phase == "unseen"
    # Repaired, the same request is answered.
    machine._book = SqliteRoundBook(tmp_path / "book.db")
    (answer,) = machine.receive(request.frame, SERVER)
    assert decode_frame(answer.frame).type == MessageType.PRODUCT_STATEMENT


@pytest.mark.parametrize(
    "change",
    [
        {"statements": 0},
        {"statements": 2},
        {"statements": -1},
        {"corrupt_holders": -1},
        {"corrupt_holders": 1 << 40},
        {"layout": SlotLayout(bound=1, max_clients=1 << 40)},
        {"key_holder": ClientId(91)},
        {"key_holder": SERVER},
        {"witnesses": (ClientId(91), ClientId(91))},
        {"witnesses": (ClientId(-1),)},
        {"s": 4},
        {"s": True},
    ],
)
def test_impossible_terms_are_refused_with_an_error_of_the_library(
    secret_key: SecretKey, change: dict[str, Any]
) -> None:
    good = {
        "key": secret_key.public,
        "layout": SlotLayout(bound=1 << 15, max_clients=6),
        "key_holder": ClientId(90),
        "witnesses": (ClientId(91),),
    }
    PaillierTerms(**good).digest()
    with pytest.raises(ConfigurationError):
        PaillierTerms(**{**good, **change})


def terms_of(secret_key: SecretKey) -> PaillierTerms:
    layout = SlotLayout(bound=1 << 15, max_clients=100)
    return PaillierTerms(
        key=secret_key.public, layout=layout, key_holder=ClientId(900), witnesses=(ClientId(901),)
    )


def config_with(secret_key: SecretKey, **change: Any) -> Any:
    numbers = {
        "round_id": RoundId(1),
        "cohort": Cohort.of(range(6)),
        "threat": ThreatModel(corrupt=1, dropped=2),
        "m": 5,
        "b": 16,
        "context_digest": bytes(32),
        "server_nonce": bytes(32),
    }
    return paillier_config(terms_of(secret_key), **{**numbers, **change})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"b": 17}, "slot holds"),
        ({"cohort": Cohort.of(range(101))}, "sized for 100"),
        ({"cohort": Cohort.of([1, 2, 3, 4, 5, 900])}, "separate ids"),
        ({"cohort": Cohort.of([1, 2, 3, 4, 5, 901])}, "separate ids"),
        ({"n_min": 2}, "hide each other"),
        # 100 submissions of 64 MB: found out now, not when all of them have been sent.
        ({"cohort": Cohort.of(range(100)), "m": 1 << 24}, "one frame"),
    ],
)
def test_impossible_rounds_are_refused_before_anybody_sends(
    secret_key: SecretKey, change: dict[str, Any], why: str
) -> None:
    config_with(secret_key)
    with pytest.raises(ConfigurationError, match=why):
        config_with(secret_key, **change)


def test_that_nobody_colludes_must_be_said_by_everybody(secret_key: SecretKey) -> None:
    nobody = ThreatModel(corrupt=0, dropped=2, assume_no_corruption=True)
    config = config_with(secret_key, threat=nobody)
    with pytest.raises(ConfigurationError, match="A = 0"):
        check_config(config, terms_of(secret_key))
    check_config(config, terms_of(secret_key), assume_no_corruption=True)
    for field, value in (("k", 2), ("t", 2)):
        with pytest.raises(ConfigurationError, match="openers"):
            check_config(dataclasses.replace(config, **{field: value}), terms_of(secret_key))


def test_a_client_refuses_other_terms_other_contexts_and_missing_deciders(
    bench: Callable[..., Any], secret_key: SecretKey
) -> None:
    session = bench()
    made = session.made
    terms, old = made.server._terms, made.clients[ClientId(1)]
    other = dataclasses.replace(terms, witnesses=(ClientId(77),))
    bare = type(old._end.directory)({u: old._end.directory.public(u) for u in made.config.cohort})
    good = {
        "terms": terms,
        "context_digest": bytes(32),
        "identity": old._end.identity,
        "directory": old._end.directory,
        "policy": ClientPolicy(gamma=0),
    }
    for change, why in (
        ({"terms": other}, "pinned"),
        ({"context_digest": bytes(31) + b"\1"}, "another model"),
        ({"directory": bare}, "no identity"),
        ({"policy": ClientPolicy(gamma=0, n_min=5)}, "5"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            PaillierClient(ClientId(1), made.config, **{**good, **change})


def test_parties_with_the_wrong_key_share_or_place_are_refused(
    bench: Callable[..., Any], dealt_key: Any
) -> None:
    session, threshold = bench(), bench(Trust.THRESHOLD)
    one = session.made.parties[session.made.server._terms.witnesses[0]]
    common = {"directory": one._directory, "book": one._book, "policy": DeciderPolicy()}
    terms, config = session.made.server._terms, session.made.config
    holder = terms.key_holder
    identity = session.made.parties[holder]._end.identity
    with pytest.raises(ConfigurationError, match="no witness"):
        Witness(holder, config, terms=terms, identity=identity, **common)
    with pytest.raises(ConfigurationError, match="another identity key"):
        Witness(terms.witnesses[0], config, terms=terms, identity=identity, **common)
    first = threshold.made.server._terms.share_holders[0]
    machine = threshold.made.parties[first]
    with pytest.raises(ConfigurationError, match="holds share 2"):
        type(machine)(
            first,
            threshold.made.config,
            terms=threshold.made.server._terms,
            share=dealt_key[1][1],
            identity=machine._end.identity,
            directory=machine._directory,
            book=machine._book,
        )


def holder_of(session: Any) -> Any:
    return session.made.parties[session.made.server._terms.key_holder]


def witness_of(session: Any, **change: Any) -> Witness:
    """A witness that forgot everything, or was never honest: it signs a second list too."""
    old = session.made.parties[session.made.server._terms.witnesses[0]]
    return Witness(
        old.client_id,
        session.made.config,
        **{
            "terms": old._terms,
            "identity": old._end.identity,
            "directory": old._directory,
            "book": MemoryRoundBook(),
            "policy": old._policy,
            **change,
        },
    )


def check(session: Any, frames: list[bytes]) -> bytes:
    digest = product_digest(product(session, frames))
    body = CheckRequest(submissions=tuple(frames), product_digest=digest).encode()
    return served(session, MessageType.CHECK_REQUEST, body)


def opening(session: Any, frames: list[bytes], statements: list[bytes]) -> bytes:
    body = OpenRequest(
        contributors=tuple(Contributor(decode_frame(f).sender, sha256(f)) for f in frames),
        statements=tuple(statements),
        block=product(session, frames),
    ).encode()
    return served(session, MessageType.OPEN_REQUEST, body)


def product(session: Any, frames: list[bytes]) -> bytes:
    checker, total = session.made.server._check, None
    for frame in frames:
        total = checker.multiply(total, checker.frame(frame).ciphertexts)
    return checker.product_block(total or [], terms=len(frames))


def served(session: Any, kind: MessageType, body: bytes) -> bytes:
    end = session.made.server._end
    return end.frame(kind, body, session=end.config_digest)


def refused(machine: Any, frame: bytes) -> str:
    with pytest.raises(DecryptionRefused) as caught:
        machine.receive(frame, SERVER)
    return caught.value.reason


def test_the_key_holder_opens_one_list_even_if_witnesses_sign_two(
    bench: Callable[..., Any], secret_key: SecretKey, tmp_path: Path
) -> None:
    """Its own book, not the witness's, is what stands between the server and a difference."""
    session = bench()
    frames = list(session.submissions().values())
    two = [frames, frames[1:]]
    signed = [
        witness_of(session).receive(check(session, some), SERVER)[0].frame for some in two
    ]  # fmt: skip
    old = holder_of(session)

    def reborn() -> KeyHolder:
        return KeyHolder(
            old.client_id,
            session.made.config,
            terms=old._terms,
            secret=secret_key,
            identity=old._end.identity,
            directory=old._directory,
            book=SqliteRoundBook(tmp_path / "rounds.db"),
        )

    machine = reborn()
    first = opening(session, two[0], signed)
    (answer,) = machine.receive(first, SERVER)
    second = opening(session, two[1], signed)
    assert refused(machine, second) == "ROUND_BOUND"
    assert refused(reborn(), second) == "ROUND_BOUND"
    # The lost answer can be asked for again, after a restart too, and says nothing new.
    assert [x.frame for x in reborn().receive(first, SERVER)] == [answer.frame]


def test_only_a_statement_of_a_witness_about_this_list_and_session_counts(
    bench: Callable[..., Any],
) -> None:
    session = bench()
    frames = list(session.submissions().values())
    honest = witness_of(session).receive(check(session, frames), SERVER)[0].frame
    about_fewer = witness_of(session).receive(check(session, frames[1:]), SERVER)[0].frame
    good = ProductStatement.decode(decode_frame(honest).body)
    machine, author = holder_of(session), witness_of(session)._end

    def by(end: Any, kind: MessageType = MessageType.PRODUCT_STATEMENT, **change: Any) -> bytes:
        where = change.pop("session", end.config_digest)
        return end.outbound(kind, dataclasses.replace(good, **change).encode(), session=where)[
            0
        ].frame

    cases = [
        # An honest statement of the same witness about another list says nothing about this one.
        (about_fewer, "NO_WITNESS"),
        (by(author, list_digest=bytes(32)), "NO_WITNESS"),
        (by(author, count=5), "NO_WITNESS"),
        (by(author, product_digest=bytes(32)), "PRODUCT_MISMATCH"),
        (by(author, session=bytes(32)), "BAD_SIGNATURE"),
        (by(author, MessageType.REFUSAL), "BAD_SIGNATURE"),
        # Everybody has an identity; only the witnesses of the terms may vouch.
        (by(session.made.clients[ClientId(1)]._end), "BAD_SIGNATURE"),
        (by(machine._end), "BAD_SIGNATURE"),
        (b"", "BAD_SIGNATURE"),
    ]
    for statement, reason in cases:
        assert refused(machine, opening(session, frames, [statement])) == reason
    assert machine.receive(opening(session, frames, [about_fewer, honest]), SERVER)


def test_more_contributors_than_the_slots_hold_are_refused(
    bench: Callable[..., Any],
) -> None:
    """The configuration refuses such a cohort already; the decider does not rely on it."""
    for trust in Trust:
        session = bench(trust)
        frames = list(session.submissions().values())
        terms = session.made.server._terms
        machines = [session.made.parties[u] for u in terms.deciders]
        layout, smaller = terms.layout, SlotLayout(bound=1 << 15, max_clients=5)
        for machine in machines:
            asked = opening if machine is session.made.parties.get(terms.key_holder) else None
            request = opening(session, frames, []) if asked else check(session, frames)
            object.__setattr__(terms, "layout", smaller)
            try:
                assert refused(machine, request) == "TOO_MANY"
            finally:
                object.__setattr__(terms, "layout", layout)


def test_a_checker_refuses_what_is_no_ciphertext_although_its_author_signed_it(
    bench: Callable[..., Any],
) -> None:
    for trust in Trust:
        session = bench(trust)
        frames = list(session.submissions().values())
        terms = session.made.server._terms
        width = terms.degree.ciphertext_bytes
        start = 4 + terms.block_bytes(session.made.config.m) - width
        honest = check(session, frames)
        for number in (0, terms.public.n, int(terms.degree.modulus)):
            body = bytearray(decode_frame(frames[0]).body)
            body[start : start + width] = number.to_bytes(width, "big")
            end = session.made.clients[ClientId(1)]._end
            lie, _ = end.outbound(MessageType.SUBMISSION, bytes(body), session=end.config_digest)
            request = CheckRequest(
                submissions=(lie.frame, *frames[1:]), product_digest=bytes(32)
            ).encode()
            for u in terms.witnesses or terms.share_holders:
                machine = session.made.parties[u]
                frame = served(session, MessageType.CHECK_REQUEST, request)
                assert refused(machine, frame) == "BAD_CIPHERTEXT"
        # A refusal has bound nothing.
        for u in terms.witnesses or terms.share_holders:
            assert session.made.parties[u].receive(honest, SERVER)


def test_a_product_of_another_shape_is_refused_by_whoever_opens(
    bench: Callable[..., Any],
) -> None:
    """A witness that lies with the server cannot have a number opened that is no ciphertext."""
    session = bench()
    frames = list(session.submissions().values())
    machine, author = holder_of(session), witness_of(session)._end
    block = product(session, frames)
    listed = ProductStatement.decode(
        decode_frame(witness_of(session).receive(check(session, frames), SERVER)[0].frame).body
    ).list_digest
    n = session.made.server._terms.public.n
    width = session.made.server._terms.degree.ciphertext_bytes
    for bad in (
        block[:-1],
        block + b"\0",
        block[:-width] + bytes(width),
        block[:-width] + n.to_bytes(width, "big"),
        bytes(32) + block[32:],
        block[:34] + bytes([block[34] + 1]) + block[35:],
    ):
        body = ProductStatement(
            list_digest=listed, product_digest=product_digest(bad), count=len(frames)
        ).encode()
        signed, _ = author.outbound(
            MessageType.PRODUCT_STATEMENT, body, session=author.config_digest
        )
        request = OpenRequest(
            contributors=tuple(Contributor(decode_frame(f).sender, sha256(f)) for f in frames),
            statements=(signed.frame,),
            block=bad,
        ).encode()
        frame = served(session, MessageType.OPEN_REQUEST, request)
        assert refused(machine, frame) == "BAD_CIPHERTEXT"


def test_every_refusal_reason_is_met_in_these_tests() -> None:
    folder = Path(__file__).parent
    text = "".join(path.read_text() for path in folder.glob("test_*.py"))
    missing = [reason.name for reason in RefusalReason if f'"{reason.name}"' not in text]
    assert not missing


def test_frames_of_another_session_round_or_type_change_nothing_at_the_server(
    bench: Callable[..., Any],
) -> None:
    """Signed by their true author, but for something else: also a check-in, also an abort."""
    session = bench()
    server, client = session.made.server, session.made.clients[ClientId(1)]
    end = client._end
    for kind in (MessageType.CHECK_IN, MessageType.ABORT, MessageType.SUBMISSION):
        body = Abort(reason=Reason.CLIENT_ABORT).encode() if kind is MessageType.ABORT else b""
        old, _ = end.outbound(kind, body, session=bytes(32))
        with pytest.raises(UnexpectedMessage, match="another session"):
            server.receive(old.frame, ClientId(1))
        for change in ({"round_id": RoundId(5)}, {"protocol": Protocol.SECAGG}):
            frame = dataclasses.replace(
                decode_frame(end.outbound(kind, body, session=end.config_digest)[0].frame),
                signature=b"",
                **change,
            )
            signature = end.identity.sign(
                end.keys.frame_statement(SERVER, signed_content(frame))
            )  # fmt: skip
            with pytest.raises(UnexpectedMessage, match="round"):
                server.receive(
                    encode_frame(dataclasses.replace(frame, signature=signature)), ClientId(1)
                )
    assert server.expected == session.made.config.cohort.ids
    assert server.receive(client.start()[0].frame, ClientId(1)) == []


def test_a_submission_in_a_frame_of_another_kind_counts_for_nobody(
    bench: Callable[..., Any],
) -> None:
    session = bench()
    frames = list(session.submissions().values())
    end = session.made.clients[ClientId(1)]._end
    body = bytes(decode_frame(frames[0]).body)
    for kind, where in (
        (MessageType.MASKED_BODY, end.config_digest),
        (MessageType.SUBMISSION, bytes(32)),
    ):
        lie = end.outbound(kind, body, session=where)[0].frame
        request = CheckRequest(submissions=(lie, *frames[1:]), product_digest=bytes(32))
        frame = served(session, MessageType.CHECK_REQUEST, request.encode())
        assert refused(witness_of(session), frame) == "BAD_FRAME"


@pytest.mark.parametrize("trust", Trust)
def test_a_second_answer_of_anybody_leaves_the_first_in_force(
    bench: Callable[..., Any], trust: Trust
) -> None:
    """Two submissions, two statements, two openings: the first counts, and the second is seen."""
    session = bench(trust)
    server = session.made.server
    frames = session.submissions()
    for u, frame in frames.items():
        assert server.receive(frame, u) == []
    again = client_with(session, 2)
    again.start()
    end = server._end
    again.set_input(session.inputs[ClientId(1)])
    opened = end.frame(
        MessageType.ROUND_OPEN, server._terms.digest(), session=end.config_digest
    )  # fmt: skip
    (other,) = [x for x in again.receive(opened, SERVER) if isinstance(x, Outbound)]
    assert server.receive(frames[ClientId(2)], ClientId(2)) == []  # the same again is no second one
    (event,) = server.receive(other.frame, ClientId(2))
    assert isinstance(event, ClientEquivocated)
    while not server.final:
        for item in server.close_phase():
            if not isinstance(item, Outbound):
                continue
            machine = session.made.parties[item.recipient]
            (answer,) = machine.receive(item.frame, SERVER)
            assert server.receive(answer.frame, item.recipient) == []
            kind = MessageType(decode_frame(answer.frame).type)
            body = bytes(decode_frame(answer.frame).body)
            second, _ = machine._end.outbound(kind, body + b"x", session=end.config_digest)
            (event,) = server.receive(second.frame, item.recipient)
            assert isinstance(event, ClientEquivocated)
    assert server.result.vector.values.tolist() == session.expected(1, 2, 3, 4, 5, 6)


def test_late_frames_are_discarded_and_said_to_be_late(bench: Callable[..., Any]) -> None:
    session = bench()
    server = session.made.server
    frames = session.submissions()
    for u in (1, 2, 3, 4):
        server.receive(frames[ClientId(u)], ClientId(u))
    late = frames[ClientId(5)]
    while not server.final:
        for item in server.close_phase():
            if isinstance(item, Outbound):
                (answer,) = session.made.parties[item.recipient].receive(item.frame, SERVER)
                server.receive(answer.frame, item.recipient)
        (event,) = server.receive(late, ClientId(5))
        assert isinstance(event, ClientDropped)
        assert (event.client, event.reason) == (ClientId(5), Reason.LATE)
    assert server.result.survivors == (1, 2, 3, 4)
    assert server.result.vector.values.tolist() == session.expected(1, 2, 3, 4)


def test_strangers_and_roles_that_do_not_fit_are_refused(bench: Callable[..., Any]) -> None:
    session = bench()
    server = session.made.server
    frames = session.submissions()
    stranger = bytearray(frames[ClientId(1)])
    stranger[12:16] = (77).to_bytes(4, "little")
    with pytest.raises(UnexpectedMessage, match="no part"):
        server.receive(bytes(stranger), None)
    with pytest.raises(UnexpectedMessage, match="claims"):
        server.receive(frames[ClientId(1)], ClientId(2))
    # A decider that submits, a client that answers for a decider.
    decider = witness_of(session)._end
    body = bytes(decode_frame(frames[ClientId(1)]).body)
    client = session.made.clients[ClientId(1)]._end
    kinds = (MessageType.PRODUCT_STATEMENT, MessageType.OPENED, MessageType.REFUSAL)
    lies = [
        decider.outbound(MessageType.SUBMISSION, body, session=decider.config_digest)[0],
        *(client.outbound(kind, b"", session=client.config_digest)[0] for kind in kinds),
    ]
    for lie in lies:
        with pytest.raises(UnexpectedMessage, match="in phase"):
            server.receive(lie.frame)
    for u, frame in frames.items():
        server.receive(frame, u)
    server.close_phase()
    for lie in lies[1:]:
        with pytest.raises(UnexpectedMessage, match="in phase"):
            server.receive(lie.frame)


def test_an_input_is_taken_once_also_before_the_round_opens(bench: Callable[..., Any]) -> None:
    session = bench()
    client = session.made.clients[ClientId(1)]
    client.start()
    assert client.set_input(session.inputs[ClientId(1)]) == []
    with pytest.raises(LocalProtocolError, match="twice"):
        client.set_input(session.inputs[ClientId(2)])
    end = session.made.server._end
    opened = end.frame(
        MessageType.ROUND_OPEN, session.made.server._terms.digest(), session=end.config_digest
    )
    assert len(client.receive(opened, SERVER)) == 1
    assert client.receive(opened, SERVER) == []  # the same once more sends nothing
    with pytest.raises(LocalProtocolError, match="twice"):
        client.set_input(session.inputs[ClientId(1)])


@pytest.mark.parametrize("trust", Trust)
def test_no_machine_with_secrets_can_be_copied_or_pickled(
    bench: Callable[..., Any], trust: Trust
) -> None:
    made = bench(trust).made
    for machine in (made.clients[ClientId(1)], *made.parties.values()):
        for spread in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="pickled or copied"):
                spread(machine)
        assert len(repr(machine)) < 80


@pytest.mark.parametrize("trust", Trust)
def test_a_holder_answers_the_same_bytes_in_any_number_of_threads(
    bench: Callable[..., Any],
    secret_key: SecretKey,
    dealt_key: Any,
    trust: Trust,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[int] = []
    in_threads = bigint.map_in_threads
    monkeypatch.setattr(bigint, "_processors", lambda: 3)
    monkeypatch.setattr(
        bigint, "map_in_threads", lambda f, v, n: used.append(n) or in_threads(f, v, n)
    )
    session = bench(trust, m=60)
    frames = list(session.submissions().values())
    terms, config = session.made.server._terms, session.made.config
    who = terms.openers[0]
    old = session.made.parties[who]
    if trust is Trust.KEY_HOLDER:
        signed = witness_of(session).receive(check(session, frames), SERVER)[0].frame
        request, key = opening(session, frames, [signed]), {"secret": secret_key}
    else:
        request, key = check(session, frames), {"share": dealt_key[1][0]}
    answers = set()
    for threads in (1, 2, 5, None):
        source = np.random.default_rng(4).bytes
        machine = type(old)(
            who,
            config,
            terms=terms,
            identity=old._end.identity,
            directory=old._directory,
            book=MemoryRoundBook(),
            policy=old._policy,
            threads=threads,
            **key,
            **({} if trust is Trust.KEY_HOLDER else {"random_bytes": source}),
        )
        (answer,) = machine.receive(request, SERVER)
        answers.add(answer.frame)
    assert len(answers) == 1
    assert used == [1, 2, 5, 3 if bigint.backend_name() == "gmpy2" else 1]
    with pytest.raises(ConfigurationError, match="threads must be"):
        paillier_session(
            trust,
            Cohort.of(range(1, 7)),
            round_id=RoundId(4),
            alive=4,
            m=5,
            b=16,
            context_digest=bytes(32),
            policy=ClientPolicy(gamma=0),
            keys=secret_key if trust is Trust.KEY_HOLDER else dealt_key,
            threads=0,
        )
