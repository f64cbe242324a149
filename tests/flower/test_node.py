"""One node against any server: what it answers, what it keeps, what it refuses with which code."""

from __future__ import annotations

import copy
import os
import pickle
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

import numpy as np
from flower_world import (
    NODES,
    RUN_ID,
    Clock,
    FakeGrid,
    FakeNode,
    Site,
    make_app,
    model,
    train_message,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import BelowThreshold, ConfigurationError
from securefl.flower import SecAggConfig, SecureClientApp, SecureGrid, Timing, secagg_mod
from securefl.flower import session as session_module
from securefl.flower import state as state_module
from securefl.flower.errors import Code, Refusal
from securefl.flower.plan import Plan, run_config_digest, session_context
from securefl.flower.policy import SIMULATION, Node
from securefl.flower.records import model_digest
from securefl.flower.state import MAX_STATE_BYTES, RECORD, SessionState, SqliteJournal
from securefl.round import ClientId, Cohort, RoundConfig
from securefl.wire import decode_frame

PHASES = (
    "advertise_keys",
    "share_keys",
    "masked_input_collection",
    "consistency_check",
    "unmasking",
)


def play(
    site: Site, *, on_message: Callable[[int, Message], Message] | None = None, **changes: Any
) -> tuple[SecureGrid, FakeGrid, Message | None]:
    """One round; None instead of a reply if it was lost."""
    clock = Clock()
    nodes = changes.pop("nodes", None) or site.all()
    inner = FakeGrid(nodes, clock=clock)
    if on_message is not None:
        inner.on_message = on_message
    fields: dict[str, Any] = {"max_weight": 100, "roster": site.roster} | changes
    config = SecAggConfig(clip_norm=5.0, timing=Timing(poll=20.0), **fields)
    grid = SecureGrid(inner, FedAvg(), config, clock=clock, sleep=clock.sleep)
    try:
        (reply,) = grid.send_and_receive([train_message(node, model()) for node in NODES])
    except BelowThreshold:
        return grid, inner, None
    return grid, inner, reply


def codes(inner: FakeGrid, node: int) -> list[str]:
    """What this node refused with, in order."""
    replies = [sent.reply for sent in inner.log if sent.node == node and sent.reply is not None]
    return [str(reply.error.reason)[9:] for reply in replies if reply.has_error()]


@pytest.fixture(scope="module")
def normal(site: Site) -> FakeGrid:
    """The messages of a round in which nothing goes wrong."""
    _, inner, reply = play(site)
    assert reply is not None
    return inner


def messages_of(inner: FakeGrid, node: int) -> dict[str, Message]:
    return {s.phase: s.message for s in inner.log if s.node == node and s.phase in PHASES}


class Bench:
    """One node alone with messages that somebody recorded, and a journal of its own."""

    def __init__(self, site: Site, folder: Path, node: int, app: ClientApp | None = None) -> None:
        own = folder / "node.toml"
        home = site.folder / str(node)
        own.write_text(
            f'schema = "securefl-node/1"\nidentity = "{home}/identity.pem"\n'
            f'roster = "{home}/roster.json"\njournal = "node.sqlite"\n'
        )
        self.node = node
        self.fake = FakeNode(app=app or make_app(), config={"securefl": str(own)})
        self.grid = FakeGrid({node: self.fake}, clock=Clock())

    def ask(self, message: Message) -> Message:
        return self.grid.answer(self.node, copy.deepcopy(message))

    def code(self, message: Message) -> str:
        reply = self.ask(message)
        assert reply.has_error(), "it answered"
        assert reply.error.code == 6
        assert reply.error.reason is not None
        return reply.error.reason.removeprefix("securefl:")


@pytest.fixture
def bench(site: Site, quick_folder: Path, request: pytest.FixtureRequest) -> Bench:
    folder = quick_folder / f"bench-{abs(hash(request.node.name))}"
    folder.mkdir()
    return Bench(site, folder, 103)


# -- state ----------------------------------------------------------------------------------------


def test_every_message_twice_is_answered_once(site: Site, bench: Bench, normal: FakeGrid) -> None:
    """The second copy gets E203 whatever became of the state in between."""
    first = messages_of(normal, 103)["advertise_keys"]
    assert not bench.ask(first).has_error()
    kept = bench.fake.state
    assert bench.code(first) == "E203"
    assert bench.fake.state == kept
    bench.fake.state = RecordDict()
    assert bench.code(first) == "E203"


def test_a_whole_round_in_which_every_message_comes_twice(site: Site) -> None:
    seen: dict[tuple[int, str], list[Message]] = {}

    class Doubling(FakeGrid):
        def answer(self, node: int, message: Message) -> Message:
            reply = super().answer(node, message)
            seen.setdefault((node, message.metadata.group_id), []).append(
                super().answer(node, message)
            )
            return reply

    clock = Clock()
    inner = Doubling(site.all(), clock=clock)
    config = SecAggConfig(clip_norm=5.0, max_weight=100, roster=site.roster)
    grid = SecureGrid(inner, FedAvg(), config, clock=clock, sleep=clock.sleep)
    (reply,) = grid.send_and_receive([train_message(node, model()) for node in NODES])
    assert reply.has_content()
    second = [m for (_, group), found in seen.items() if "hello" not in group for m in found]
    assert len(second) == len(NODES) * len(PHASES)
    assert {m.error.reason for m in second} == {"securefl:E203"}


def _lost(found: dict[str, RecordDict], at: str) -> RecordDict:
    return RecordDict()


def _foreign(found: dict[str, RecordDict], at: str) -> RecordDict:
    state = RecordDict()
    SessionState(
        attempt=bytes(32), phase=at, client=1, config=b"c", plan=b"p", model=b"m", machine=b"x"
    ).store(state)
    return state


def _older(found: dict[str, RecordDict], at: str) -> RecordDict:
    return found[PHASES[PHASES.index(at) - 1]]


@pytest.mark.parametrize("at", PHASES[1:])
@pytest.mark.parametrize("replacement", [_lost, _foreign, _older])
def test_a_lost_a_foreign_and_an_old_state_answer_nothing(
    at: str, replacement: Any, site: Site
) -> None:
    states: dict[str, RecordDict] = {}
    clock = Clock()
    inner = FakeGrid(site.all(), clock=clock)

    def watch(node: int, message: Message) -> Message:
        head: Any = message.content.get("securefl")
        if node == 103 and head is not None:
            states[head["phase"]] = copy.deepcopy(inner.nodes[103].state)
            if head["phase"] == at:
                inner.nodes[103].state = replacement(states, at)
        return message

    inner.on_message = watch
    config = SecAggConfig(
        clip_norm=5.0, max_weight=100, roster=site.roster, timing=Timing(poll=20.0)
    )
    grid = SecureGrid(inner, FedAvg(), config, clock=clock, sleep=clock.sleep)
    (reply,) = grid.send_and_receive([train_message(node, model()) for node in NODES])
    assert reply.has_content(), "the round goes on without it"
    survivors = grid.history[0].survivors
    assert (3 in survivors) == (at in ("consistency_check", "unmasking"))
    older = replacement is _older and at != "share_keys"
    assert codes(inner, 103)[0] == ("E202" if older else "E201")


def test_going_back_to_an_older_state_and_asking_again_gets_no_second_answer(site: Site) -> None:
    """The deployment engine can lose the newest state; the journal on the disk cannot."""
    before: list[RecordDict] = []
    asked: list[Message] = []

    def watch(node: int, message: Message) -> Message:
        head = message.content.get("securefl")
        if node == 103 and head is not None and head["phase"] == "unmasking":
            before.append(copy.deepcopy(inner.nodes[103].state))
            asked.append(copy.deepcopy(message))
        return message

    clock = Clock()
    inner = FakeGrid(site.all(), clock=clock)
    inner.on_message = watch
    config = SecAggConfig(clip_norm=5.0, max_weight=100, roster=site.roster)
    grid = SecureGrid(inner, FedAvg(), config, clock=clock, sleep=clock.sleep)
    list(grid.send_and_receive([train_message(node, model()) for node in NODES]))
    inner.nodes[103].state = before[0]
    again = inner.answer(103, asked[0])
    assert again.error.reason == "securefl:E203"


def test_after_the_last_message_no_secret_is_left_in_the_state(normal: FakeGrid) -> None:
    for node in NODES:
        record = normal.nodes[node].state[RECORD]
        assert isinstance(record, ConfigRecord)
        assert set(record) == {"v", "attempt", "phase"}
        assert record["phase"] == "over"


def test_a_refusal_inside_a_session_leaves_a_tombstone(site: Site) -> None:
    def flip(node: int, message: Message) -> Message:
        head = message.content.get("securefl")
        if node == 103 and head is not None and head["phase"] == "share_keys":
            frame = message.content["frame"]
            assert isinstance(frame, ConfigRecord)
            sent = frame["frame"]
            assert isinstance(sent, bytes)
            raw = bytearray(sent)
            raw[70] ^= 1
            message.content["frame"] = ConfigRecord({"frame": bytes(raw)})
        return message

    _, inner, reply = play(site, on_message=flip)
    assert reply is not None
    assert codes(inner, 103) == ["E107"]
    record = inner.nodes[103].state[RECORD]
    assert isinstance(record, ConfigRecord)
    assert set(record) == {"v", "attempt", "phase"}


STEPS = (
    (session_module, "read_envelope"),
    (session_module, "_machine"),
    (session_module, "_input"),
    (session_module, "_only_frame"),
    (session_module, "reply_content"),
    (session_module.SecAggClient, "snapshot"),
    (session_module.SecAggClient, "restore"),
    (session_module.SecAggClient, "receive"),
    (SqliteJournal, "answered"),
    (SqliteJournal, "commit"),
    (state_module.SessionState, "store"),
)


@pytest.mark.parametrize(("where", "name"), STEPS, ids=lambda one: getattr(one, "__name__", one))
def test_an_exception_anywhere_leaves_the_old_record_and_a_code(
    where: Any, name: str, site: Site
) -> None:
    """Flower keeps in-place changes of the state when an app fails, so there must be none."""
    original = getattr(where, name)
    armed = [False]

    def fails(*args: Any, **kwargs: Any) -> Any:
        if armed[0]:
            raise ZeroDivisionError("the patient's name")
        return original(*args, **kwargs)

    broken: list[tuple[RecordDict, RecordDict, Message]] = []

    class Breaking(FakeGrid):
        def answer(self, node: int, message: Message) -> Message:
            if node == 103 and message.content.get("securefl") is not None:
                old = copy.deepcopy(self.nodes[node].state)
                armed[0] = True
                reply = super().answer(node, message)
                armed[0] = False
                if reply.has_error():
                    broken.append((old, copy.deepcopy(self.nodes[node].state), reply))
                    self.nodes[node].state = old
                    if name == "commit":
                        return reply
                else:
                    return reply
            return super().answer(node, message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, fails)
        clock = Clock()
        inner = Breaking(site.all(), clock=clock)
        config = SecAggConfig(clip_norm=5.0, max_weight=100, roster=site.roster,
                              timing=Timing(poll=20.0))  # fmt: skip
        grid = SecureGrid(inner, FedAvg(), config, clock=clock, sleep=clock.sleep)
        list(grid.send_and_receive([train_message(node, model()) for node in NODES]))
    assert broken
    for old, new, reply in broken:
        assert old == new
        assert reply.error.reason in ("securefl:E901", "securefl:E301")


def test_a_state_that_flower_might_lose_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = RecordDict()
    session = SessionState(
        attempt=bytes(32), phase="x", config=b"c", plan=b"p", model=b"m",
        machine=bytes(MAX_STATE_BYTES),
    )  # fmt: skip
    with pytest.raises(Refusal) as caught:
        session.store(state)
    assert caught.value.code is Code.STATE_TOO_LARGE
    assert RECORD not in state


@given(
    st.dictionaries(
        st.sampled_from(["v", "attempt", "phase", "client", "config", "machine"]),
        st.one_of(st.integers(0, 2), st.text(max_size=3), st.binary(max_size=3)),
    )
)
def test_any_record_is_a_session_or_none(fields: dict[str, Any]) -> None:
    state = RecordDict({RECORD: ConfigRecord(fields)})
    found = SessionState.load(state)
    assert found is None or found.over


def test_the_journal_survives_a_power_cut_after_its_commit(tmp_path: Path) -> None:
    """SQLite syncs the folder of a deleted rollback journal under EXTRA (3) only."""
    journal = SqliteJournal(tmp_path / "node.sqlite")
    with closing(journal._open()) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (3,)


# -- what leaves a node ---------------------------------------------------------------------------

MARKER = "PATIENT-9071"


class _Leaky(SecureClientApp):
    pass


def leaky_app(kind: type[ClientApp] = _Leaky) -> ClientApp:
    app = kind()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays: Any = message.content["arrays"]
        context.state["mine"] = ConfigRecord({"note": MARKER})
        if message.content["config"]["lr"] == 0.1 and context.node_id == 104:
            raise ValueError(MARKER)
        metrics = MetricRecord({"num-examples": 37, "loss": 1.25, MARKER: 3.0})
        extra = ConfigRecord({"note": MARKER})
        return Message(
            RecordDict({"arrays": arrays, "metrics": metrics, "extra": extra}), reply_to=message
        )

    return app


def texts_of(message: Message) -> bytes:
    """Every byte that Flower would send for this message."""
    parts = [repr(message.metadata).encode()]
    if message.has_error():
        return parts[0] + str(message.error.reason).encode()
    for name, record in message.content.items():
        parts.append(name.encode())
        for key, value in record.items():
            parts.append(key.encode())
            parts.append(value.data if isinstance(value, Array) else pickle.dumps(value))
    return b"".join(parts)


def test_nothing_in_clear_leaves_a_node(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    nodes = {node: site.node(node, leaky_app()) for node in NODES}
    _, inner, reply = play(site, nodes=nodes)
    assert reply is not None
    values = model()["w"].numpy()
    for sent in inner.log:
        assert sent.reply is not None
        raw = texts_of(sent.reply)
        assert MARKER.encode() not in raw
        assert struct.pack("<d", 1.25) not in raw
        assert values[0].tobytes() not in raw
        if sent.reply.has_content():
            assert list(sent.reply.content) == ["frame"]
    assert codes(inner, 104) == ["E301"]
    assert MARKER in caplog.text, "the node's own log has the reason"


@pytest.mark.parametrize(
    ("message_type", "more"),
    [
        ("train", ""),
        ("train.custom", ""),
        ("evaluate", ""),
        ("query.custom", ""),
        ("query", ""),
    ],
)
def test_messages_without_protection_are_refused(message_type: str, more: str, site: Site) -> None:
    grid = FakeGrid(site.all(), clock=Clock())
    message = train_message(103, model())
    message.metadata.message_type = message_type
    reply = grid.answer(103, message)
    assert reply.error.reason == "securefl:E101"


def test_a_node_can_allow_evaluation_and_named_queries_in_clear(site: Site) -> None:
    site.write(103, more='[clear]\nevaluate = true\nquery = ["status"]')
    try:
        app = make_app()

        @app.query("status")
        def status(message: Message, context: Context) -> Message:
            return Message(RecordDict({"ok": ConfigRecord({"up": True})}), reply_to=message)

        grid = FakeGrid({103: site.node(103, app)}, clock=Clock())
        message = train_message(103, model())
        for message_type, allowed in (
            ("evaluate", True), ("query.status", True), ("query.other", False), ("train", False)
        ):  # fmt: skip
            message.metadata.message_type = message_type
            assert grid.answer(103, message).has_content() is allowed
    finally:
        site.write(103)


def test_the_mod_runs_a_session_on_a_plain_client_app(site: Site) -> None:
    def with_mod() -> ClientApp:
        app = ClientApp()

        @app.query("securefl", mods=[secagg_mod])
        def hello(message: Message, context: Context) -> Message:
            raise AssertionError("never called")

        @app.train("securefl", mods=[secagg_mod])
        def train(message: Message, context: Context) -> Message:
            assert message.metadata.message_type == "train"
            arrays: Any = message.content["arrays"]
            metrics = MetricRecord({"num-examples": 10})
            return Message(RecordDict({"a": arrays, "m": metrics}), reply_to=message)

        return app

    _, inner, reply = play(site, nodes={node: site.node(node, with_mod()) for node in NODES})
    assert reply is not None
    assert all(list(sent.reply.content) == ["frame"] for sent in inner.log if sent.reply)


# -- a server that lies ---------------------------------------------------------------------------


def first_message(normal: FakeGrid, **changes: Any) -> Message:
    """The first message to node 103, with some of its parts replaced and the rest made to fit."""
    message = copy.deepcopy(messages_of(normal, 103)["advertise_keys"])
    head: Any = message.content["securefl"]
    config = RoundConfig.decode(head["config"])
    plan = Plan.parse(head["plan"])
    fields = changes.pop("config", {})
    plan_fields = changes.pop("plan", {})
    arrays = changes.pop("arrays", None)
    if plan_fields:
        plan = Plan.parse(plan.canonical()).model_copy(update=plan_fields)
        head["plan"] = plan.canonical()
    if arrays is not None:
        message.content["securefl.arrays"] = arrays
        head["model"] = model_digest(arrays)
    context = session_context(head["plan"], head["model"])
    if fields or plan_fields or arrays is not None:
        config = replace(
            config, **({"context_digest": context, "server_nonce": os.urandom(32)} | fields)
        )
        head["config"], head["attempt"] = config.encode(), config.digest()
    for name in changes.pop("without", ()):
        del head[name]
    for name, value in changes.items():
        head[name] = value
    return message


def test_the_unchanged_first_message_is_answered(bench: Bench, normal: FakeGrid) -> None:
    assert bench.ask(first_message(normal)).has_content()
    fresh = first_message(normal, config={"round_id": 99})
    assert bench.ask(fresh).has_content(), "a new attempt takes the old one's place"


def test_against_a_lying_server_a_node_is_who_its_roster_says(
    bench: Bench, normal: FakeGrid
) -> None:
    """Whatever id the server hands out, the node speaks under its own and signs as itself."""
    reply = bench.ask(first_message(normal, config={"round_id": 7}, client=5))
    frame: Any = reply.content["frame"]
    assert decode_frame(frame["frame"]).sender == 3


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"config": {"n_min": 3, "t": 2}}, "E105"),
        ({"config": {"cohort": Cohort.of([1, 2, 4, 5, 6, 7])}}, "E104"),
        ({"config": {"cohort": Cohort.of([1, 2, 3, 4, 5, 9])}}, "E107"),
        ({"config": {"A": 0}}, "E105"),
        ({"config": {"m": 3}}, "E102"),
        ({"config": {"context_digest": bytes(32)}}, "E102"),
        ({"plan": {"clients": 3}}, "E102"),
        ({"plan": {"max_weight": 5}}, "E108"),
        ({"attempt": bytes(32)}, "E102"),
        ({"model": bytes(32)}, "E102"),
        ({"without": ["config"]}, "E102"),
        ({"without": ["plan"]}, "E102"),
        ({"without": ["model"]}, "E102"),
        ({"without": ["client"]}, "E102"),
        ({"without": ["client", "config", "plan", "model"]}, "E102"),
        ({"v": 2}, "E102"),
        ({"phase": "unmasking"}, "E201"),
        ({"more": 1}, "E102"),
    ],
)
def test_a_first_message_that_contradicts_itself_or_the_floor_is_refused(
    changes: dict[str, Any], code: str, bench: Bench, normal: FakeGrid
) -> None:
    assert bench.code(first_message(normal, **changes)) == code
    assert RECORD not in bench.fake.state


def test_a_changed_model_is_refused_before_training(bench: Bench, normal: FakeGrid) -> None:
    message = first_message(normal)
    changed = model()
    changed["b"] = Array(changed["b"].numpy() + 1e-9)
    message.content["securefl.arrays"] = changed
    assert bench.code(message) == "E102"


def test_arrays_that_change_places_are_another_model(bench: Bench, normal: FakeGrid) -> None:
    """An app that takes the arrays as a list would train another network than its neighbours."""
    message = first_message(normal)
    changed = ArrayRecord({key: model()[key] for key in reversed(list(model()))})
    assert {k: a.data for k, a in changed.items()} == {k: a.data for k, a in model().items()}
    message.content["securefl.arrays"] = changed
    assert bench.code(message) == "E102"


def test_the_attack_of_another_model_for_one_client_gets_no_sum(site: Site) -> None:
    """Model inconsistency: one client gets another model, its configuration made to fit."""

    def other(node: int, message: Message) -> Message:
        head: Any = message.content.get("securefl")
        if node == 103 and head is not None and "config" in head:
            arrays = model(seed=9)
            message.content["securefl.arrays"] = arrays
            head["model"] = model_digest(arrays)
            config = RoundConfig.decode(head["config"])
            config = replace(config, context_digest=session_context(head["plan"], head["model"]))
            head["config"], head["attempt"] = config.encode(), config.digest()
        return message

    grid, inner, reply = play(site, on_message=other)
    assert reply is not None
    assert 3 not in grid.history[0].survivors
    assert codes(inner, 103) == [], "it answered in a session of its own, which is nobody's"


FLOORS = [
    ("min_cohort = 6", "E104"),
    ("max_corrupt = 2", "E105"),
    ('max_corrupt = "2/6"', "E105"),
    ('protocols = ["secagg+"]', "E103"),
    ("max_examples = 101", "E108"),
    (
        '[floor.privacy]\nunit = "client"\nmin_noise_multiplier = 0.8\nmax_clip_norm = 1.0\n'
        "epsilon = 8.0\ndelta = 1e-6",
        "E106",
    ),
]


@pytest.mark.parametrize(("floor", "code"), FLOORS)
def test_each_floor_alone_refuses_in_the_first_phase(floor: str, code: str, site: Site) -> None:
    site.write(103, floor=floor)
    try:
        grid, inner, reply = play(site)
    finally:
        site.write(103)
    assert reply is not None
    assert codes(inner, 103) == [code]
    assert grid.history[0].refusals == {code: 1}
    assert 3 not in grid.history[0].survivors


def test_a_plan_that_allows_the_nodes_most_examples_is_answered(site: Site) -> None:
    site.write(103, floor="max_examples = 100")
    try:
        grid, _, _ = play(site)
    finally:
        site.write(103)
    assert 3 in grid.history[0].survivors


def test_the_floor_against_an_active_server_refuses_a_semi_honest_session(site: Site) -> None:
    _, inner, reply = play(site, adversary="semi-honest")
    assert reply is None
    assert {code for node in NODES for code in codes(inner, node)} == {"E103"}


def test_the_runs_configuration_has_no_say(site: Site, normal: FakeGrid) -> None:
    """Whoever submits a run writes its run_config; a node looks at its own file only."""
    site.write(103, floor="min_cohort = 6")
    try:
        context = Context(
            run_id=RUN_ID,
            node_id=103,
            node_config={"securefl": str(site.folder / "103" / "node.toml")},
            state=RecordDict(),
            run_config={"securefl": "/dev/null", "min_cohort": 3, "securefl-n-min": 3},
        )
        same = {"run_config": run_config_digest(context.run_config)}
        message = first_message(normal, config={"round_id": 5}, plan=same)
        reply = make_app()(message, context)
        assert reply.error.reason == "securefl:E104"
    finally:
        site.write(103)


def test_without_a_node_file_everything_is_refused(normal: FakeGrid) -> None:
    grid = FakeGrid({103: FakeNode(app=make_app(), config={})}, clock=Clock())
    for message in messages_of(normal, 103).values():
        assert grid.answer(103, message).error.reason == "securefl:E107"


def test_a_simulation_needs_the_environment_and_takes_part(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = {node: FakeNode(app=make_app(), config={}) for node in NODES}
    clock = Clock()
    config = SecAggConfig(clip_norm=5.0, max_weight=100, adversary="semi-honest")
    grid = SecureGrid(
        FakeGrid(nodes, clock=clock), FedAvg(), config, clock=clock, sleep=clock.sleep
    )
    messages = [train_message(node, model()) for node in NODES]
    with pytest.raises(BelowThreshold):
        grid.send_and_receive(messages)
    monkeypatch.setenv(SIMULATION, "1")
    assert len(list(grid.send_and_receive(messages))) == 1
    assert "nothing is protected" in caplog.text


# -- the hello ------------------------------------------------------------------------------------


def test_a_hello_of_another_node_run_or_nonce_is_not_taken(site: Site) -> None:
    from securefl.flower.hello import hello_content, hello_reply, verified_hello

    node = Node.load(site.folder / "103" / "node.toml")
    answer = hello_reply(hello_content(bytes(32)), node, run_id=7, node_id=103)
    good = {"run_id": 7, "node_id": 103, "nonce": bytes(32)}
    assert verified_hello(answer, site.roster, **good) == ClientId(3)
    for name, other in (("run_id", 8), ("node_id", 104), ("nonce", b"\1" * 32)):
        with pytest.raises(ConfigurationError, match="not client 3's"):
            verified_hello(answer, site.roster, **(good | {name: other}))


def test_a_node_with_another_roster_is_left_out(site: Site, quick_folder: Path) -> None:
    other = Site(quick_folder / "other-roster")
    nodes = site.all()
    nodes[103] = other.node(103)
    grid, _, reply = play(site, nodes=nodes)
    assert reply is not None
    assert grid.history[0].refusals == {"E107": 1}
    assert 3 not in grid.history[0].survivors


# -- updates and weights --------------------------------------------------------------------------


def app_that_returns(change: Callable[[ArrayRecord], ArrayRecord], metrics: Any) -> ClientApp:
    app = SecureClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays: Any = message.content["arrays"]
        content = RecordDict({"arrays": change(arrays), "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    return app


def _nan(arrays: ArrayRecord) -> ArrayRecord:
    return ArrayRecord({**arrays, "b": Array(np.array([np.nan, 0.0]))})


def _other_shape(arrays: ArrayRecord) -> ArrayRecord:
    return ArrayRecord({**arrays, "b": Array(np.zeros(3))})


def _fewer(arrays: ArrayRecord) -> ArrayRecord:
    return ArrayRecord({"b": arrays["b"]})


def _same(arrays: ArrayRecord) -> ArrayRecord:
    return arrays


@pytest.mark.parametrize(
    ("change", "metrics", "code"),
    [
        (_nan, {"num-examples": 5}, "E302"),
        (_other_shape, {"num-examples": 5}, "E302"),
        (_fewer, {"num-examples": 5}, "E302"),
        (_same, {"num-examples": 0}, "E108"),
        (_same, {"num-examples": 101}, "E108"),
        (_same, {"num-examples": 2.5}, "E108"),
        (_same, {"num-examples": float("nan")}, "E108"),
        (_same, {"examples": 5}, "E108"),
        (_same, {"num-examples": 5, "loss": float("inf")}, "E108"),
        (_same, {"num-examples": 5, "loss": [1.0]}, "E108"),
    ],
)
def test_an_update_or_weight_that_cannot_be_right_stays_on_the_node(
    change: Any, metrics: Any, code: str, site: Site
) -> None:
    nodes = site.all()
    nodes[103] = site.node(103, app_that_returns(change, {"loss": 1.0} | metrics))
    declared = {"loss": (0.0, 10.0)} if "loss" in metrics else {}
    _, inner, reply = play(site, nodes=nodes, metrics=declared)
    assert reply is not None
    assert codes(inner, 103) == [code]


@given(st.binary(max_size=80))
@settings(max_examples=40)
def test_any_bytes_as_plan_are_no_plan(raw: bytes) -> None:
    with pytest.raises(ConfigurationError):
        Plan.parse(raw)
