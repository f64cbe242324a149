"""Inputs that an outsider tried: each one is refused by an error of the library, or counts."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefl.errors import ConfigurationError
from securefl.primitives.paillier import Encryptor, RandomizerPool, SecretKey, SlotLayout
from securefl.protocols.machine import Outbound
from securefl.protocols.paillier import (
    DeciderPolicy,
    PaillierClient,
    PaillierTerms,
    SqliteRoundBook,
    Witness,
    paillier_config,
)
from securefl.protocols.paillier.messages import MessageType
from securefl.protocols.paillier.terms import check_config
from securefl.protocols.policy import ClientPolicy
from securefl.round import SERVER, ClientId, Cohort, RoundId, ThreatModel
from securefl.simulation.paillier import Trust
from securefl.wire import decode_frame


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
