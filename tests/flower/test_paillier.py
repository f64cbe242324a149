"""Rounds under a Paillier key: who opens what, what a liar gets, what is left after trouble."""

from __future__ import annotations

import copy
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

import numpy as np
from flower_holders import (
    CLIENTS,
    HOLDERS,
    IN_APP,
    KEY_HOLDER,
    NEEDED,
    SHORT,
    WITNESS,
    KeyHolderSite,
    PaillierSite,
    short_keys,
    threshold_key,
    whole_key,
)
from flower_world import (
    Clock,
    FakeGrid,
    model,
    train_message,
    trained,
    weight_of,
)
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import BelowThreshold, ConfigurationError, DecryptionRefused
from securefl.flower import SecAggConfig, SecureClientApp, SecureGrid, Timing, holder
from securefl.flower.holder import Courier
from securefl.flower.paillier_setup import PaillierSetup
from securefl.flower.policy import Node
from securefl.flower.records import SESSION_TYPE, frame_of, read_envelope, record_of_frame
from securefl.flower.state import RECORD
from securefl.primitives.channel import sha256
from securefl.primitives.identities import load_identity
from securefl.primitives.paillier import files as key_files
from securefl.primitives.paillier.block import Block
from securefl.primitives.paillier.threshold import ThresholdPublicKey
from securefl.protocols.endpoints import ClientEnd
from securefl.protocols.paillier.checking import multiply
from securefl.protocols.paillier.messages import (
    CheckRequest,
    MessageType,
    OpenRequest,
    ProductStatement,
    list_digest,
    product_digest,
)
from securefl.round import RoundConfig
from securefl.wire import decode_frame, encode_frame

CLIP = 5.0
PHASES = ("check_in", "masked_input_collection", "opening")


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    with short_keys():
        yield


@pytest.fixture(scope="module")
def holders(quick_folder: Path) -> PaillierSite:
    return PaillierSite(quick_folder / "holders")


@pytest.fixture(scope="module")
def keyed(quick_folder: Path) -> Iterator[KeyHolderSite]:
    site = KeyHolderSite(quick_folder / "keyed")
    with site.holder():
        yield site


def make(
    site: PaillierSite, strategy: Any = None, *, nodes: Any = None, deal: Any = None, **changes: Any
) -> tuple[SecureGrid, FakeGrid]:
    clock = Clock()
    inner = FakeGrid(nodes or site.all(), clock=clock)
    if deal is not None:
        inner.deal = deal
    fields: dict[str, Any] = {
        "clip_norm": CLIP,
        "max_weight": 100,
        "protocol": site.protocol,
        "roster": site.roster,
        "paillier": site.setup,
        "timing": Timing(poll=20.0),
    }
    grid = SecureGrid(
        inner,
        strategy or FedAvg(fraction_evaluate=0.0),
        SecAggConfig(**(fields | changes)),
        clock=clock,
        sleep=clock.sleep,
    )
    return grid, inner


def ask(grid: SecureGrid, server_round: int = 1) -> Message:
    (reply,) = grid.send_and_receive([train_message(n, model(), server_round) for n in CLIENTS])
    return reply


def assert_is_mean(reply: Message, survivors: list[int]) -> None:
    """Against the weighted mean in float64 of what the clients would have sent in clear."""
    total = sum(map(weight_of, survivors))
    arrays = next(iter(reply.content.array_records.values()))
    step = CLIP / ((1 << 32) // (2 * 6 * 100)) + 2e-7
    for key in ("w", "b"):
        mean = (
            sum(
                weight_of(n) * trained(model(), n, 1)[key].numpy().astype(np.float64)
                for n in survivors
            )
            / total
        )
        assert np.abs(arrays[key].numpy() - mean).max() <= step
    metrics = next(iter(reply.content.metric_records.values()))
    assert metrics["num-examples"] == total
    assert metrics["securefl-survivors"] == len(survivors)


def codes(inner: FakeGrid, node: int) -> list[str]:
    replies = [sent.reply for sent in inner.log if sent.node == node and sent.reply is not None]
    return [str(reply.error.reason)[9:] for reply in replies if reply.has_error()]


# -- rounds ---------------------------------------------------------------------------------------


def test_share_holders_open_the_weighted_mean_and_are_never_asked_to_train(
    holders: PaillierSite,
) -> None:
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=6, min_available_nodes=6)
    grid, inner = make(holders, strategy)
    result = strategy.start(grid=grid, initial_arrays=model(), num_rounds=2)
    assert result.arrays["w"].numpy().shape == (3, 2)
    assert [len(record.survivors) for record in grid.history] == [6, 6]
    assert list(grid.history[0].seconds) == list(PHASES)
    asked = {(sent.node, sent.phase) for sent in inner.log}
    assert {node for node, phase in asked if phase == "opening"} == set(HOLDERS)
    assert {node for node, phase in asked if phase in PHASES[:2]} == set(CLIENTS)
    assert_is_mean(ask(make(holders)[0]), list(CLIENTS))


def test_a_key_holder_in_its_own_process_opens_what_a_witness_has_signed(
    keyed: KeyHolderSite,
) -> None:
    grid, inner = make(keyed)
    assert sorted(grid.get_node_ids()) == list(CLIENTS)
    assert_is_mean(ask(grid), list(CLIENTS))
    assert list(grid.history[0].seconds)[-2:] == ["checking", "opening"]
    asked = {(sent.node, sent.phase) for sent in inner.log}
    assert (WITNESS, "checking") in asked
    assert (KEY_HOLDER, "opening") in asked
    assert (KEY_HOLDER, "checking") not in asked


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    clients=st.dictionaries(
        st.sampled_from(CLIENTS),
        st.tuples(st.sampled_from(PHASES[:2]), st.sampled_from(["lost", "error", "crash", "late"])),
        max_size=3,
    ),
    lost=st.dictionaries(
        st.sampled_from(HOLDERS), st.sampled_from(["lost", "error", "crash", "late"]), max_size=2
    ),
    twice=st.sampled_from([*CLIENTS, *HOLDERS]),
)
def test_any_schedule_gives_the_exact_mean_of_the_survivors_or_no_sum(
    clients: dict[int, tuple[str, str]],
    lost: dict[int, str],
    twice: int,
    holders: PaillierSite,
) -> None:
    def deal(node: int, phase: str, count: int) -> str:
        if node in clients and clients[node][0] == phase:
            return clients[node][1]
        if node in lost and phase == "opening":
            return lost[node]
        return "twice" if node == twice and phase in PHASES else "ok"

    grid, _inner = make(holders, deal=deal, max_dropped=2)
    survivors = [node for node in CLIENTS if node not in clients]
    if len(clients) <= 2 and len(HOLDERS) - len(lost) >= NEEDED:
        assert_is_mean(ask(grid), survivors)
        assert grid.history[0].survivors == tuple(sorted(holders.id_of[n] for n in survivors))
        return
    with pytest.raises(BelowThreshold) as caught:
        ask(grid)
    assert caught.value.phase == ("opening" if len(clients) <= 2 else clients_phase(clients))
    assert grid.history[0].survivors == ()


def clients_phase(clients: dict[int, tuple[str, str]]) -> str:
    early = sum(phase == "check_in" for phase, _ in clients.values())
    return PHASES[0] if early > 2 else PHASES[1]


def test_without_enough_holders_nobody_trains(holders: PaillierSite) -> None:
    nodes = holders.all()
    for node in HOLDERS[:2]:
        del nodes[node]
    grid, inner = make(holders, nodes=nodes)
    with pytest.raises(BelowThreshold, match="2 of 4 share holders are connected, 3 are needed"):
        ask(grid)
    assert not {sent.phase for sent in inner.log} & set(PHASES)


def test_a_lost_round_is_tried_again_in_a_fresh_session(holders: PaillierSite) -> None:
    def deal(node: int, phase: str, count: int) -> str:
        return "lost" if node in HOLDERS[:2] and phase == "opening" and count == 1 else "ok"

    grid, inner = make(holders, deal=deal, retries=1)
    assert_is_mean(ask(grid), list(CLIENTS))
    first, second = grid.history
    assert "phase opening" in first.lost
    assert first.session != second.session
    sent = [s.reply for s in inner.log if s.node == 101 and s.phase == PHASES[1]]
    assert all(reply is not None for reply in sent)
    one, two = (frame_of(reply.content) for reply in sent if reply is not None)
    assert one != two


# -- state ----------------------------------------------------------------------------------------


def test_a_node_that_lost_its_state_is_a_dropout_and_a_decider_has_none_to_lose(
    holders: PaillierSite,
) -> None:
    grid, inner = make(holders, max_dropped=1)

    def forgets(node: int, message: Message) -> Message:
        if node == 103 or node in HOLDERS:
            inner.nodes[node].state = RecordDict()
        return message

    inner.on_message = forgets
    assert_is_mean(ask(grid), [node for node in CLIENTS if node != 103])
    assert codes(inner, 103) == ["E201"]
    assert all(inner.nodes[node].state == RecordDict() for node in HOLDERS)


def test_between_its_two_messages_a_node_keeps_no_secret_and_then_nothing(
    holders: PaillierSite,
) -> None:
    grid, inner = make(holders)
    kept: list[ConfigRecord] = []

    def look(node: int, message: Message) -> Message:
        record = inner.nodes[node].state.get(RECORD)
        if node == 101 and isinstance(record, ConfigRecord):
            kept.append(record)
        return message

    inner.on_message = look
    ask(grid)
    (record,) = kept
    assert record["machine"] == b""
    after = inner.nodes[101].state[RECORD]
    assert isinstance(after, ConfigRecord)
    assert set(after) == {"v", "attempt", "phase"}
    assert after["phase"] == "over"


def test_every_message_is_answered_once_whatever_became_of_the_state(
    holders: PaillierSite, keyed: KeyHolderSite
) -> None:
    for site in (holders, keyed):
        grid, inner = make(site)
        ask(grid)
        asked = [sent for sent in inner.log if sent.phase in (*PHASES, "checking")]
        for sent in asked:
            reply = inner.answer(sent.node, sent.message)
            assert reply.has_error()
            assert reply.error.reason == "securefl:E203"


def test_a_decider_whose_journal_is_gone_opens_no_second_list(holders: PaillierSite) -> None:
    """The round book binds the session to one list, and its request can be asked for again."""
    grid, inner = make(holders)
    ask(grid)
    sent = next(s for s in inner.log if s.node == HOLDERS[0] and s.phase == "opening")
    (holders.folder / str(HOLDERS[0]) / "node.sqlite").unlink()
    same = inner.answer(HOLDERS[0], sent.message)
    assert reason_of(same) is None
    (holders.folder / str(HOLDERS[0]) / "node.sqlite").unlink()
    other = inner.answer(HOLDERS[0], with_request(sent.message, without_last))
    assert reason_of(other) == 2, "ROUND_BOUND"


# -- a server that lies ---------------------------------------------------------------------------


def with_request(message: Message, change: Callable[[CheckRequest], CheckRequest]) -> Message:
    """The message with another request in its frame."""
    frame = decode_frame(frame_of(message.content))
    found = change(CheckRequest.decode(frame.body, most=6))
    changed = copy.deepcopy(message)
    changed.content["frame"] = record_of_frame(encode_frame(replace(frame, body=found.encode())))
    return changed


def product_of(frames: tuple[bytes, ...]) -> bytes:
    """Digest of the product that honest code makes of these submissions of a round."""
    key = threshold_key()[0]
    total: Any = None
    for data in frames:
        body = decode_frame(data).body
        size = int.from_bytes(body[:4], "little")
        block = Block.from_bytes(bytes(body[4 : 4 + size]), key.degree)
        total = (
            block
            if total is None
            else replace(
                block,
                ciphertexts=tuple(
                    map(int, multiply(total.ciphertexts, block.ciphertexts, key.degree.modulus))
                ),
            )
        )
    return product_digest(replace(total, terms=len(frames)).to_bytes(key.degree))


def only(count: int) -> Callable[[CheckRequest], CheckRequest]:
    """A request for the sum of the first submissions, honest but for the number."""

    def change(request: CheckRequest) -> CheckRequest:
        frames = request.submissions[:count]
        return CheckRequest(submissions=frames, product_digest=product_of(frames))

    return change


def without_last(request: CheckRequest) -> CheckRequest:
    return only(len(request.submissions) - 1)(request)


def reason_of(reply: Message) -> int | None:
    """The number in a decider's signed refusal; None for an answer that opens."""
    assert not reply.has_error(), reply.error
    frame = decode_frame(frame_of(reply.content))
    return frame.body[0] if frame.type == 9 else None


def opening_lie(
    site: PaillierSite, lie: Callable[[int, Message], Message], **changes: Any
) -> tuple[SecureGrid, FakeGrid]:
    """A round in which every message that asks to open goes through a lie."""
    grid, inner = make(site, **changes)
    phases = ("opening",)

    def on_message(node: int, message: Message) -> Message:
        head = message.content.get("securefl")
        opens = isinstance(head, ConfigRecord) and head["phase"] in phases
        return lie(node, message) if opens else message

    inner.on_message = on_message
    return grid, inner


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (only(1), "TOO_FEW"),
        (only(2), "TOO_FEW"),
        (lambda r: replace(r, submissions=r.submissions[:1] * 5), "BAD_LIST"),
        (lambda r: replace(r, submissions=r.submissions[::-1]), "BAD_LIST"),
        (lambda r: replace(r, product_digest=bytes(32)), "PRODUCT_MISMATCH"),
        (lambda r: replace(r, submissions=r.submissions[:5]), "PRODUCT_MISMATCH"),
    ],
)
def test_a_request_that_is_no_sum_of_enough_clients_is_refused_by_every_holder(
    change: Callable[[CheckRequest], CheckRequest], reason: str, holders: PaillierSite
) -> None:
    grid, _inner = opening_lie(holders, lambda _, message: with_request(message, change))
    with pytest.raises(DecryptionRefused, match=reason):
        ask(grid)
    assert grid.history[0].survivors == ()


def test_different_lists_for_different_holders_open_neither(holders: PaillierSite) -> None:
    """With 3 of 4 a server needs five answers for two sums, and each holder gives one."""
    grid, inner = opening_lie(
        holders,
        lambda node, message: (
            with_request(message, without_last) if node in HOLDERS[:2] else message
        ),
    )
    with pytest.raises(BelowThreshold, match="phase opening"):
        ask(grid)
    opened = [s.reply for s in inner.log if s.node in HOLDERS and s.phase == "opening"]
    assert [reason_of(reply) for reply in opened if reply is not None] == [None] * 4


def test_an_altered_partial_opening_is_not_taken_and_the_others_open(
    holders: PaillierSite,
) -> None:
    grid, inner = make(holders)
    answer = inner.answer

    def corrupt(node: int, message: Message) -> Message:
        reply = answer(node, message)
        if node == HOLDERS[1] and "securefl" in message.content:
            frame = bytearray(frame_of(reply.content))
            frame[-100] ^= 1
            reply.content["frame"] = record_of_frame(bytes(frame))
        return reply

    inner.answer = corrupt  # type: ignore[method-assign]  # alters replies on the way
    assert_is_mean(ask(grid), list(CLIENTS))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: replace(r, statements=()), "NO_WITNESS"),
        (lambda r: replace(r, statements=(flipped(r.statements[0]),)), "BAD_SIGNATURE"),
        (lambda r: replace(r, contributors=r.contributors[:5]), "NO_WITNESS"),
        (lambda r: replace(r, contributors=r.contributors[:1]), "TOO_FEW"),
    ],
)
def test_a_key_holder_opens_nothing_without_its_witness(
    change: Callable[[OpenRequest], OpenRequest], reason: str, keyed: KeyHolderSite
) -> None:
    def lie(_: int, message: Message) -> Message:
        frame = decode_frame(frame_of(message.content))
        found = change(OpenRequest.decode(frame.body, most=6))
        message.content["frame"] = record_of_frame(
            encode_frame(replace(frame, body=found.encode()))
        )
        return message

    grid, _ = opening_lie(keyed, lie)
    with pytest.raises(DecryptionRefused, match=reason):
        ask(grid)


def test_whoever_reads_the_identity_of_the_witness_has_one_update_opened_as_a_sum(
    keyed: KeyHolderSite,
) -> None:
    """Why no app gets it: the holder's checks all pass, and the "mean" is one client's update."""
    identity = load_identity(keyed.folder / str(WITNESS) / "identity.pem")
    setup = PaillierSetup.load(keyed.setup, keyed.roster)

    def lie(_: int, message: Message) -> Message:
        frame = decode_frame(frame_of(message.content))
        request = OpenRequest.decode(frame.body, most=6)
        config = RoundConfig.decode(read_envelope(message.content).config or b"")
        terms = setup.terms(bits=config.b, clients=6)
        product = Block.from_bytes(seen[0], terms.degree).ciphertexts
        layout, nothing = terms.block_layout, np.zeros(config.m, dtype=np.int64)
        for _ in range(5):  # zeros of the server's own where the other five should be
            plain = layout.pack(nothing, layout.slots(terms.degree))
            zeros = terms.encryptor().encrypt(plain).ciphertexts
            product = tuple(map(int, multiply(product, zeros, terms.degree.modulus)))
        alone = terms.block_of(config.m, product, terms=6)
        statement = ProductStatement(
            list_digest=list_digest(config.digest(), request.contributors),
            product_digest=product_digest(alone),
            count=6,
        )
        end = ClientEnd(
            keyed.id_of[WITNESS], config, identity=identity, directory=keyed.roster.directory()
        )
        forged = end.outbound(
            MessageType.PRODUCT_STATEMENT, statement.encode(), session=config.digest()
        )[0]
        body = replace(request, statements=(forged.frame,), block=alone).encode()
        message.content["frame"] = record_of_frame(encode_frame(replace(frame, body=body)))
        return message

    grid, inner = opening_lie(keyed, lie)
    seen: list[bytes] = []
    answer = inner.answer

    def listen(node: int, message: Message) -> Message:
        reply = answer(node, message)
        if node == 101 and message.metadata.message_type == SESSION_TYPE:
            frame = decode_frame(frame_of(reply.content))
            if frame.type != MessageType.SUBMISSION:
                return reply
            size = int.from_bytes(frame.body[:4], "little")
            seen.append(bytes(frame.body[4 : 4 + size]))
        return reply

    inner.answer = listen  # type: ignore[method-assign]  # reads replies on the way
    arrays = next(iter(ask(grid).content.array_records.values()))
    for key in ("w", "b"):
        mine = trained(model(), 101, 1)[key].numpy()
        assert np.abs(arrays[key].numpy() - mine).max() <= 1e-4


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_a_key_holder_takes_no_message_with_submissions(keyed: KeyHolderSite) -> None:
    grid, inner = make(keyed)
    ask(grid)
    opening = next(s for s in inner.log if s.node == KEY_HOLDER and s.phase == "opening")
    checking = next(s for s in inner.log if s.node == WITNESS and s.phase == "checking")
    (keyed.folder / str(KEY_HOLDER) / "node.sqlite").unlink()
    message = copy.deepcopy(opening.message)
    message.content["frame"] = checking.message.content["frame"]
    assert reason_of(inner.answer(KEY_HOLDER, message)) == 1, "BAD_FRAME"


@pytest.mark.parametrize("what", ["key", "holders"])
def test_a_server_with_another_key_or_other_holders_gets_no_ciphertext(
    what: str, holders: PaillierSite, quick_folder: Path
) -> None:
    setup = PaillierSetup.load(holders.setup, holders.roster)
    if what == "holders":
        mine = (*setup.share_holders[1:], setup.share_holders[0])
        setup = replace(setup, share_holders=mine)
    else:
        from securefl.primitives.paillier.threshold import deal as deal_key

        other, _ = deal_key(
            threshold=3,
            parties=4,
            bits=SHORT,
            min_bits=SHORT,
            random_bytes=np.random.default_rng(4).bytes,
        )
        setup = replace(setup, key=other)
    grid, inner = make(holders, paillier=setup)
    with pytest.raises(BelowThreshold, match="6 of 6 clients refused: E109"):
        ask(grid)
    assert {sent.phase for sent in inner.log} & set(PHASES) == {"check_in"}


def test_a_decider_is_asked_in_its_phase_about_its_session_and_nothing_else(
    holders: PaillierSite,
) -> None:
    grid, inner = make(holders)
    ask(grid)
    first = next(s.message for s in inner.log if s.node == 101 and s.phase == "check_in")
    opening = next(s.message for s in inner.log if s.node == HOLDERS[0] and s.phase == "opening")
    holders.forget()

    def code(node: int, message: Message) -> str:
        reply = inner.answer(node, message)
        assert reply.has_error()
        return str(reply.error.reason).removeprefix("securefl:")

    def head(**changes: Any) -> Message:
        found = copy.deepcopy(opening)
        old = found.content["securefl"]
        assert isinstance(old, ConfigRecord)
        found.content["securefl"] = ConfigRecord({**old, **changes})
        return found

    assert code(HOLDERS[0], first) == "E102", "a client's message"
    assert code(101, opening) == "E201", "a decider's message at a node with data"
    assert code(HOLDERS[0], head(phase="opening2")) == "E202"
    assert code(HOLDERS[0], head(phase="checking")) == "E202"
    assert code(HOLDERS[0], head(attempt=bytes(32))) == "E102"
    assert code(HOLDERS[0], head(model=bytes(32))) == "E102"
    bare = copy.deepcopy(opening)
    del bare.content["frame"]
    assert code(HOLDERS[0], bare) == "E102"
    taught = copy.deepcopy(opening)
    taught.content["securefl.arrays"] = model()
    assert code(HOLDERS[0], taught) == "E102"
    plain = train_message(HOLDERS[0], model())
    assert code(HOLDERS[0], plain) == "E101"
    assert reason_of(inner.answer(HOLDERS[0], opening)) is None, "the unchanged one"


def test_a_session_with_a_key_cannot_be_opened_in_another_phase(
    holders: PaillierSite, played: FakeGrid
) -> None:
    first = next(s.message for s in played.log if s.node == 101 and s.phase == "check_in")
    holders.forget()
    message = copy.deepcopy(first)
    head = message.content["securefl"]
    assert isinstance(head, ConfigRecord)
    message.content["securefl"] = ConfigRecord({**head, "phase": "advertise_keys"})
    reply = played.answer(101, message)
    assert reply.has_error()
    assert reply.error.reason == "securefl:E102"
    assert not played.answer(101, first).has_error()


def test_training_happens_after_the_server_has_shown_the_right_terms(
    holders: PaillierSite,
) -> None:
    grid, inner = make(holders)

    def lie(node: int, message: Message) -> Message:
        head = message.content.get("securefl")
        if node == 101 and isinstance(head, ConfigRecord) and head["phase"] == PHASES[1]:
            frame = decode_frame(frame_of(message.content))
            message.content["frame"] = record_of_frame(encode_frame(replace(frame, body=bytes(32))))
        return message

    inner.on_message = lie
    trained_on: list[int] = []
    app = SecureClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        trained_on.append(context.node_id)
        return message

    inner.nodes[101].app = app
    assert_is_mean(ask(grid), list(CLIENTS[1:]))
    assert trained_on == []
    assert codes(inner, 101) == ["E102"]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    place=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
    cut=st.booleans(),
    node=st.sampled_from([101, HOLDERS[0]]),
)
def test_malformed_frames_get_a_code_or_a_signed_refusal_and_nothing_is_opened(
    place: float, flip: int, cut: bool, node: int, holders: PaillierSite, played: FakeGrid
) -> None:
    phase = "opening" if node in HOLDERS else PHASES[1]
    sent = next(s for s in played.log if s.node == node and s.phase == phase)
    holders.forget()
    message = copy.deepcopy(sent.message)
    frame = bytearray(frame_of(message.content))
    at = int(place * len(frame))
    frame[at] ^= flip
    changed = bytes(frame[:at]) if cut else bytes(frame)
    message.content["frame"] = record_of_frame(changed)
    if node == 101:
        first = next(s for s in played.log if s.node == node and s.phase == "check_in")
        assert not played.answer(node, first.message).has_error()
    reply = played.answer(node, message)
    if reply.has_error():
        assert reply.error.code == 6
        assert str(reply.error.reason) in {f"securefl:{c}" for c in ("E102", "E105", "E107")}
    else:
        assert list(reply.content) == ["frame"]
        assert reason_of(reply) is not None


@pytest.fixture(scope="module")
def played(holders: PaillierSite) -> FakeGrid:
    """A round in which nothing goes wrong."""
    grid, inner = make(holders)
    ask(grid)
    return inner


def test_nothing_but_frames_leaves_and_no_update_is_in_them(
    holders: PaillierSite, played: FakeGrid
) -> None:
    for sent in played.log:
        if sent.phase not in PHASES:
            continue
        assert sent.reply is not None
        assert list(sent.reply.content) == ["frame"]
        data = frame_of(sent.reply.content)
        for node in CLIENTS:
            values = trained(model(), node, 1)
            assert values["w"].numpy().tobytes()[:8] not in data
            assert values["b"].numpy().tobytes()[:8] not in data
        for word in (struct.pack("<d", 4242.5), b"Traceback"):
            assert word not in data


# -- floors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("floor", "code"), [("min_cohort = 6", "E104"), ("max_corrupt = 3", "E105")]
)
def test_a_deciders_own_floor_refuses(floor: str, code: str, holders: PaillierSite) -> None:
    for node in HOLDERS[:2]:
        holders.write(node, floor)
    try:
        grid, inner = make(holders)
        with pytest.raises(BelowThreshold, match=f"refused: {code}"):
            ask(grid)
    finally:
        for node in HOLDERS[:2]:
            holders.write(node)
    assert codes(inner, HOLDERS[0]) == [code]


def test_a_decider_opens_no_fewer_than_its_floor_and_the_session_allow(
    holders: PaillierSite,
) -> None:
    for node in HOLDERS[:2]:
        holders.write(node, "min_cohort = 5\nmax_corrupt = 1")
    try:
        grid, _ = make(holders, n_min=5, max_dropped=1)
        assert_is_mean(ask(grid), list(CLIENTS))
        grid, _ = opening_lie(holders, lambda _, m: with_request(m, only(4)), n_min=5)
        with pytest.raises(DecryptionRefused, match="TOO_FEW"):
            ask(grid)
    finally:
        for node in HOLDERS[:2]:
            holders.write(node)


PRIVATE = (
    "[floor.privacy]\nunit = 'client'\nmin_noise_multiplier = 0.5\nmax_clip_norm = 5.0\n"
    "epsilon = 20.0\ndelta = 1e-5\n"
)


def test_under_noise_everybody_who_demands_it_keeps_a_ledger(
    quick_folder: Path, tmp_path: Path
) -> None:
    """A node with data stays charged for the fewest survivors, a holder for those it counted."""
    from securefl.flower import DistributedDP, Weighting

    site = PaillierSite(quick_folder / "private")
    for node in (101, HOLDERS[0]):
        site.write(node, more=PRIVATE)
    grid, _ = make(
        site,
        weighting=Weighting.UNIFORM,
        max_weight=None,
        max_dropped=2,
        privacy=DistributedDP(
            noise_multiplier=2.0, epsilon=20.0, delta=1e-5, ledger=tmp_path / "population.ledger"
        ),
    )
    ask(grid)

    def spent(node: int) -> float:
        loaded = Node.load(site.folder / str(node) / "node.toml")
        assert loaded.budget is not None
        return loaded.budget.epsilon()

    assert len(grid.history[0].survivors) == 6
    assert 0 < spent(HOLDERS[0]) < spent(101)
    for node in CLIENTS:
        site.write(node)
    site.write(HOLDERS[1], more=PRIVATE)
    plain, inner = make(site, max_dropped=2)
    with pytest.raises(BelowThreshold, match="refused: E106"):
        ask(plain)
    assert codes(inner, HOLDERS[0]) == codes(inner, HOLDERS[1]) == ["E106"]


# -- set-ups that are refused ---------------------------------------------------------------------


def load_error(site: PaillierSite, node: int, section: str, floor: str = "") -> str:
    path = site.folder / str(node) / "changed.toml"
    text = (site.folder / str(node) / "node.toml").read_text()
    head, _, _ = text.partition("[paillier]")
    path.write_text(head + section)
    with pytest.raises(ConfigurationError) as caught:
        Node.load(path)
    return str(caught.value)


def test_whoever_has_data_holds_nothing_that_opens_it(holders: PaillierSite) -> None:
    path = holders.folder / "101" / "stray.share"
    if not path.exists():
        key_files.write_secret(path, threshold_key()[1][0].to_secret_bytes())
    setup = '[paillier]\nsetup = "paillier.toml"\n'
    found = load_error(holders, 101, setup + 'share = "stray.share"\nbook = "b"\n')
    assert "a node with data names no secret and no book beside its setup" in found
    found = load_error(holders, HOLDERS[0], setup)
    assert "a share holder names ['book', 'share']" in found
    more = 'secret = "my.share"\nshare = "my.share"\nbook = "book.sqlite"\n'
    assert "found ['book', 'secret', 'share']" in load_error(holders, HOLDERS[0], setup + more)


def test_a_share_of_another_place_or_readable_by_others_is_refused(
    holders: PaillierSite,
) -> None:
    home = holders.folder / str(HOLDERS[0])
    section = '[paillier]\nsetup = "paillier.toml"\nshare = "x.share"\nbook = "book.sqlite"\n'
    path = home / "x.share"
    path.unlink(missing_ok=True)
    key_files.write_secret(path, threshold_key()[1][2].to_secret_bytes())
    assert "is share 3, the setup gives this node 1" in load_error(holders, HOLDERS[0], section)
    path.chmod(0o644)
    assert "chmod 600" in load_error(holders, HOLDERS[0], section)


def test_a_protocol_with_a_key_is_accepted_only_where_it_is_written(
    holders: PaillierSite,
) -> None:
    section = '[paillier]\nsetup = "paillier.toml"\n'
    path = holders.folder / "101" / "changed.toml"
    text = (holders.folder / "101" / "node.toml").read_text()
    path.write_text(text.replace('protocols = ["paillier-threshold"]', ""))
    with pytest.raises(ConfigurationError, match="the floor accepts"):
        Node.load(path)
    path.write_text(text.replace("paillier-threshold", "paillier"))
    with pytest.raises(ConfigurationError, match="'paillier-threshold', the floor accepts"):
        Node.load(path)
    path.write_text(text.partition("[paillier]")[0])
    with pytest.raises(ConfigurationError, match="never taken from the server"):
        Node.load(path)
    path.write_text(text.replace('protocols = ["paillier-threshold"]', "").replace(section, ""))
    assert Node.load(path).paillier is None
    nodes = holders.all()
    for node in CLIENTS:
        nodes[node].config = {"securefl": str(holders.folder / str(node) / "plain.toml")}
        plain = (holders.folder / str(node) / "node.toml").read_text()
        (holders.folder / str(node) / "plain.toml").write_text(
            plain.replace('protocols = ["paillier-threshold"]', "").replace(section, "")
        )
    grid, _ = make(holders, nodes=nodes)
    with pytest.raises(BelowThreshold, match="6 of 6 clients refused: E103"):
        ask(grid)


def test_no_app_decides_unless_the_owner_wrote_so_and_never_with_a_whole_key(
    keyed: KeyHolderSite, holders: PaillierSite
) -> None:
    """The app's code comes from the server's side; the holder's own process has its own."""
    from securefl.flower.errors import Code, Refusal

    home = keyed.folder / str(KEY_HOLDER)
    with pytest.raises(Refusal, match="has an app decide as the key holder") as caught:
        Node.of({"securefl": str(home / "node.toml")}, node_id=1)
    assert caught.value.code is Code.IDENTITY
    for site, node, what in (
        (holders, HOLDERS[0], "a share holder"),
        (keyed, WITNESS, "a witness"),
    ):
        file = site.folder / str(node) / "unmarked.toml"
        text = (file.parent / "node.toml").read_text()
        assert IN_APP in text
        file.write_text(text.replace(f'in_app = "{IN_APP}"', ""))
        with pytest.raises(Refusal, match=f"has an app decide as {what}"):
            Node.of({"securefl": str(file)}, node_id=1)
        assert Node.load(file).decides, "in the holder's own process"
        file.write_text(text.replace(IN_APP, "yes"))
        with pytest.raises(ConfigurationError, match=r"paillier\.in_app"):
            Node.load(file)
    for site, node in ((keyed, KEY_HOLDER), (holders, 101)):
        section = (site.folder / str(node) / "node.toml").read_text().partition("[paillier]")[2]
        word = f'[paillier]{section}in_app = "{IN_APP}"\n'
        assert "in_app is for share holders and witnesses" in load_error(site, node, word)
    both = home / "both.toml"
    both.write_text(
        'schema = "securefl-node/1"\nidentity = "identity.pem"\n'
        '[paillier]\nsocket = "holder.sock"\nbook = "b"\n'
    )
    with pytest.raises(ConfigurationError, match=r"\['identity', 'book'\]"):
        Node.load(both)


def test_a_holder_that_is_away_is_an_error_and_no_key_is_anywhere_else(
    keyed: KeyHolderSite, tmp_path: Path
) -> None:
    from securefl.flower.errors import Refusal

    with pytest.raises(Refusal, match="does not answer"):
        Courier(tmp_path / "nobody.sock").ask(b"hello")


def test_one_who_asks_and_does_not_read_or_sends_a_byte_now_and_then_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = bytes(8 << 20)
    monkeypatch.setattr(holder, "_answer", lambda request, node_file: (b"frame", long))
    monkeypatch.setattr(holder, "_REQUEST_SECONDS", 0.3)
    path = tmp_path / "holder.sock"
    done = threading.Event()
    with holder.listening(path) as listener, ExitStack() as stack:
        serving = threading.Thread(
            target=holder.serve, args=(listener,), kwargs={"node_file": tmp_path}
        )
        serving.start()
        stack.callback(serving.join)
        stack.callback(listener.shutdown, 2)
        silent, slow = (
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) for _ in "ab"
        )
        silent.connect(str(path))
        silent.sendall(struct.pack("<II", 1, 5) + b"hello")
        slow.connect(str(path))
        slow.sendall(struct.pack("<II", 1, 1 << 20))

        def drip() -> None:
            with suppress(OSError):
                while not done.wait(0.02):
                    slow.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        stack.callback(dripping.join)
        stack.callback(done.set)
        assert Courier(path, seconds=30).ask(b"hello") == long


@settings(max_examples=8, deadline=None, derandomize=True)
@given(fields=st.lists(st.binary(max_size=40), max_size=9))
def test_no_request_makes_a_holders_process_say_more_than_a_code(
    fields: list[bytes], keyed: KeyHolderSite
) -> None:
    from securefl.flower.errors import Refusal

    courier = Courier(keyed.folder / str(KEY_HOLDER) / "holder.sock", seconds=20)
    for request in (fields, [b"decide", *fields], [b"hello", *fields]):
        with pytest.raises(Refusal) as caught:
            courier.ask(*request)
        assert str(caught.value) == "refused by the holder's process; its log says why"


def test_a_server_app_refuses_key_files_that_are_not_its_business(
    holders: PaillierSite, keyed: KeyHolderSite, tmp_path: Path
) -> None:
    def home(name: str, site: PaillierSite) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        site.write_setup(folder)
        return folder

    one = home("one", keyed)
    key_files.write_secret(one / "forgotten", whole_key().to_secret_bytes())
    with pytest.raises(ConfigurationError, match="forgotten is a secret of the key"):
        make(keyed, paillier=one / "paillier.toml")
    two = home("two", holders)
    key_files.write_secret(two / "a.share", threshold_key()[1][0].to_secret_bytes())
    with pytest.raises(ConfigurationError, match=r"a\.share is a secret of the key"):
        make(holders, paillier=two / "paillier.toml")
    three = home("three", keyed)
    key_files.write_secret(three / "of-others", whole_key(1).to_secret_bytes())
    make(keyed, paillier=three / "paillier.toml")
    four = home("four", keyed)
    key_files.write_secret(four / "secret", whole_key().to_secret_bytes())
    text = (four / "paillier.toml").read_text().replace("key.public", "secret")
    (four / "paillier.toml").write_text(text)
    with pytest.raises(ConfigurationError, match="is a secret key; the setup names the public"):
        make(keyed, paillier=four / "paillier.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('witnesses = ["node-301"]', "", "a key holder without a witness"),
        ('witnesses = ["node-301"]', 'witnesses = ["node-302"]', "distinct ids"),
        ('witnesses = ["node-301"]', 'witnesses = ["nobody"]', "does not list"),
        ('key_holder = "node-302"', "", "one key holder"),
        ('key_holder = "node-302"', 'key_holder = "node-302"\ncolour = "red"', "colour"),
        ("securefl-paillier/1", "securefl-paillier/2", "schema"),
        ("key.public", "nothing.public", "cannot read"),
        ('witnesses = ["node-301"]', 'witnesses = ["node-301"]\nstatements = 2', "2 of 1"),
    ],
)
def test_a_setup_that_protects_nobody_is_refused(
    old: str, new: str, message: str, keyed: KeyHolderSite, tmp_path: Path
) -> None:
    keyed.write_setup(tmp_path)
    path = tmp_path / "paillier.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigurationError, match=message):
        PaillierSetup.load(path, keyed.roster)


@pytest.mark.parametrize("corrupt", [0, 2, 3])
def test_holders_that_could_open_two_sums_are_refused(
    corrupt: int, holders: PaillierSite, tmp_path: Path
) -> None:
    """3 of 4 stands one corrupt holder: 2t > l + c."""
    holders.write_setup(tmp_path)
    path = tmp_path / "paillier.toml"
    path.write_text(path.read_text() + f"corrupt_holders = {corrupt}\n")
    with pytest.raises(ConfigurationError, match="corrupt"):
        PaillierSetup.load(path, holders.roster)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adversary": "semi-honest"}, 'adversary="active"'),
        ({"paillier": None}, 'needs paillier="paillier.toml"'),
        ({"protocol": "secagg"}, "names a key"),
        ({"protocol": "paillier"}, "do not fit"),
        ({"train_in": "first"}, "just before they encrypt"),
        ({"degree": 5}, "no neighbours"),
        ({"n_min": 3, "max_corrupt": 2}, "two honest inputs"),
        ({"bits": 62}, "do not fit a slot"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused_with_its_numbers(
    changes: dict[str, Any], message: str, holders: PaillierSite
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        grid, _ = make(holders, **changes)
        ask(grid)


def test_a_key_below_the_limit_is_refused_in_a_setup(holders: PaillierSite) -> None:
    with pytest.MonkeyPatch.context() as patch:
        reader: Any = ThresholdPublicKey.from_bytes
        patch.setitem(reader.__func__.__kwdefaults__, "min_bits", 2048)
        with pytest.raises(ConfigurationError, match="needs 2048 to"):
            PaillierSetup.load(holders.setup, holders.roster)


def test_the_digest_to_compare_covers_key_and_holders(holders: PaillierSite) -> None:
    setup = PaillierSetup.load(holders.setup, holders.roster)
    swapped = replace(setup, share_holders=setup.share_holders[::-1])
    again = PaillierSetup.load(holders.folder / "101" / "paillier.toml", holders.roster)
    assert setup.digest() == again.digest() != swapped.digest()
    assert setup.digest() != sha256(b"")


def test_noise_that_could_wrap_is_refused_by_the_server_and_by_every_node(
    quick_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers themselves are added: a wrap would move the sum by the modulus, and be seen."""
    from securefl.flower import DistributedDP, Weighting
    from securefl.flower import grid as server

    site = PaillierSite(quick_folder / "wraps")

    def asked(bits: int | None) -> SecureGrid:
        noise = DistributedDP(
            noise_multiplier=1.0,
            epsilon=20.0,
            delta=1e-5,
            ledger=tmp_path / f"{bits}-{len(list(tmp_path.iterdir()))}.ledger",
        )
        fields: dict[str, Any] = {"weighting": Weighting.UNIFORM, "max_weight": None, "bits": bits}
        made, _ = make(site, privacy=noise, max_dropped=2, **fields)
        return made

    with pytest.raises(ConfigurationError, match="which 9 bits do not hold"):
        ask(asked(9))
    ask(asked(None))
    monkeypatch.setattr(server, "_unwrapped", lambda spec, fixed: spec.bits)
    with pytest.raises(BelowThreshold, match="refused: E105"):
        ask(asked(9))
