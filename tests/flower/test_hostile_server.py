"""What a server may try that is no part of the protocol: run settings, log lines, odd plans."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

from flower_world import (
    NODES,
    Clock,
    FakeGrid,
    Site,
    model,
    train_message,
    trained,
    weight_of,
)
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import BelowThreshold, ConfigurationError
from securefl.flower import SecAggConfig, SecureClientApp, SecureGrid, Timing
from securefl.flower.logs import printable, traceback_of
from securefl.flower.plan import Plan, run_config_digest
from securefl.flower.policy import Node

SETTINGS = {"lr": 0.1, "epochs": 3, "augment": True, "optimizer": "sgd"}


def play(site: Site, *, server: Any, nodes: dict[int, Any], **changes: Any) -> Any:
    """One round: the grid, its fake, and the reply; None if the round was lost."""
    clock = Clock()
    found = site.all()
    for node, run_config in nodes.items():
        found[node].run_config = run_config
    inner = FakeGrid(found, clock=clock)
    if "on_message" in changes:
        inner.on_message = changes.pop("on_message")
    fields: dict[str, Any] = {"max_weight": 100, "roster": site.roster, "run_config": server}
    config = SecAggConfig(clip_norm=5.0, timing=Timing(poll=20.0), **(fields | changes))
    grid = SecureGrid(inner, FedAvg(), config, clock=clock, sleep=clock.sleep)
    try:
        (reply,) = grid.send_and_receive([train_message(node, model()) for node in NODES])
    except BelowThreshold as error:
        return grid, inner, error
    return grid, inner, reply


def codes(inner: FakeGrid, node: int) -> list[str]:
    replies = [sent.reply for sent in inner.log if sent.node == node and sent.reply is not None]
    return [str(reply.error.reason)[9:] for reply in replies if reply.has_error()]


# -- the run's configuration ----------------------------------------------------------------------


def test_nodes_with_the_servers_run_config_take_part(site: Site) -> None:
    shuffled = dict(reversed(SETTINGS.items()))
    grid, _, reply = play(site, server=SETTINGS, nodes=dict.fromkeys(NODES, shuffled))
    assert isinstance(reply, Message)
    assert grid.history[0].survivors == (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    "other",
    [
        SETTINGS | {"lr": 100.0},
        SETTINGS | {"epochs": 3.0},
        SETTINGS | {"augment": 1},
        SETTINGS | {"optimizer": "SGD"},
        SETTINGS | {"more": 0},
        {key: SETTINGS[key] for key in list(SETTINGS)[:-1]},
        {},
    ],
)
def test_a_node_with_another_run_config_refuses_before_it_trains(
    other: dict[str, Any], site: Site
) -> None:
    """A server that tells one node other settings gets nothing from it; the round goes on."""
    nodes = dict.fromkeys(NODES, SETTINGS) | {103: other}
    grid, inner, reply = play(site, server=SETTINGS, nodes=nodes)
    assert isinstance(reply, Message)
    assert codes(inner, 103) == ["E102"]
    assert 3 not in grid.history[0].survivors


@pytest.mark.parametrize("phase", ["share_keys", "masked_input_collection", "unmasking"])
@pytest.mark.parametrize("train_in", ["first", "masked"])
def test_a_run_config_that_changes_during_a_session_ends_it(
    phase: str, train_in: str, site: Site
) -> None:
    """Training may come two messages after the plan was accepted; it must still be the same run."""

    def change(node: int, message: Message) -> Message:
        head = message.content.get("securefl")
        if node == 103 and head is not None and head["phase"] == phase:
            inner_nodes[0][103].run_config = SETTINGS | {"lr": 1e9}
        return message

    clock = Clock()
    found = site.all()
    inner_nodes = [found]
    for one in found.values():
        one.run_config = dict(SETTINGS)
    inner = FakeGrid(found, clock=clock)
    inner.on_message = change
    config = SecAggConfig.from_run_config(
        SETTINGS, clip_norm=5.0, max_weight=100, roster=site.roster, train_in=train_in
    )
    grid = SecureGrid(inner, FedAvg(), config, clock=clock, sleep=clock.sleep)
    (reply,) = grid.send_and_receive([train_message(node, model()) for node in NODES])
    assert reply.has_content()
    assert codes(inner, 103)[0] == "E102"
    assert set(codes(inner, 103)[1:]) <= {"E201"}


def test_a_server_that_forgot_its_run_config_is_told_so(site: Site) -> None:
    _, _, error = play(site, server=None, nodes=dict.fromkeys(NODES, SETTINGS))
    assert isinstance(error, BelowThreshold)
    assert "6 of 6 clients refused: E102" in str(error)
    assert "run_config" in str(error)


def test_the_configuration_takes_the_whole_run_config() -> None:
    run = SETTINGS | {"securefl-clip-norm": 5.0, "securefl-adversary": "semi-honest"}
    config = SecAggConfig.from_run_config(run, max_weight=10)
    assert config.run_config == run


def test_a_run_config_that_is_none_of_flowers_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no value of Flower's"):
        SecAggConfig(
            clip_norm=1.0, max_weight=1, adversary="semi-honest", run_config={"a": object()}
        )


scalars = st.one_of(st.booleans(), st.integers(-3, 3), st.floats(-3, 3), st.text(max_size=2))
configs = st.dictionaries(st.text(max_size=2), scalars, max_size=3)


@given(configs, configs)
def test_run_configs_have_one_digest_only_if_values_and_types_agree(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    def typed(config: dict[str, Any]) -> dict[str, str]:
        return {key: f"{type(value).__name__} {value!r}" for key, value in config.items()}

    assert (run_config_digest(one) == run_config_digest(other)) is (typed(one) == typed(other))


# -- what leaves outside the budget ---------------------------------------------------------------

PRIVATE = (
    '[floor.privacy]\nunit = "client"\nmin_noise_multiplier = 0.8\nmax_clip_norm = 1.0\n'
    "epsilon = 8.0\ndelta = 1e-6\n"
)


@pytest.mark.parametrize(
    ("clear", "door"),
    [("evaluate = true", "evaluate"), ('query = ["counts"]', "counts")],
)
def test_a_node_that_promises_epsilon_answers_nothing_in_clear(
    clear: str, door: str, site: Site
) -> None:
    try:
        path = site.write(103, floor=PRIVATE, more=f"[clear]\n{clear}")
        with pytest.raises(ConfigurationError, match=f"epsilon 8.0 .* lets {door} leave"):
            Node.load(path)
        grid = FakeGrid(site.all(), clock=Clock())
        message = train_message(103, model())
        message.metadata.message_type = "evaluate"
        assert grid.answer(103, message).error.reason == "securefl:E107"
        assert Node.load(site.write(103, floor=PRIVATE)).floor.privacy is not None
        assert Node.load(site.write(103, more=f"[clear]\n{clear}")).floor.privacy is None
    finally:
        site.write(103)


# -- logs -----------------------------------------------------------------------------------------

FORGED = "x\nINFO :      every key was verified\r\x1b[2J\u202egnp.exe\u2028end"


@given(st.text(max_size=60), st.integers(1, 40))
def test_whatever_is_logged_is_one_printable_line_of_bounded_length(text: str, most: int) -> None:
    line = printable(text, most)
    assert line.isprintable()
    # An escape takes at most ten characters.
    assert len(line) <= 10 * most + len("... ( characters)") + 2


def test_an_exception_without_a_text_does_not_stop_its_own_report() -> None:
    class Mute(RuntimeError):
        def __str__(self) -> str:
            raise ZeroDivisionError

    assert "Mute without a text" in traceback_of(Mute())


def test_a_traceback_has_all_causes_and_no_line_of_anybody_elses() -> None:
    def chain() -> None:
        try:
            raise ValueError(FORGED)
        except ValueError as error:
            raise KeyError(FORGED) from error

    try:
        chain()
    except KeyError as error:
        text = traceback_of(error)
    assert "ValueError" in text
    assert "KeyError" in text
    assert "test_hostile_server.py" in text
    assert not any(line.startswith("INFO") for line in text.splitlines())
    assert "\x1b" not in text


def test_a_chain_of_causes_that_bites_its_tail_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert traceback_of(one).count("caused by") == 1


def _forged_type(message: Message) -> None:
    # Flower itself takes identifiers only, of any length.
    message.metadata.message_type = "query." + "a" * 100_000


def _forged_record(message: Message) -> None:
    message.content[FORGED] = ConfigRecord({})


def _forged_field(message: Message) -> None:
    message.content["securefl"] = ConfigRecord({"v": 1, FORGED: "a" * 100_000})


def _forged_phase(message: Message) -> None:
    head: Any = message.content["securefl"]
    head["phase"] = FORGED * 1000


def _forged_plan(message: Message) -> None:
    head: Any = message.content["securefl"]
    if "plan" in head:
        plan = json.loads(head["plan"]) | {FORGED: 1}
        head["plan"] = json.dumps(plan).encode()
    else:
        head["phase"] = FORGED


def _forged_model(message: Message) -> None:
    arrays: Any = message.content.get("securefl.arrays")
    if arrays is not None:
        message.content["securefl.arrays"] = ArrayRecord({FORGED: arrays["w"], "b": arrays["b"]})


@pytest.mark.parametrize(
    "forge",
    [_forged_type, _forged_record, _forged_field, _forged_phase, _forged_plan, _forged_model],
)
def test_no_text_of_the_servers_starts_a_line_in_a_nodes_log(
    forge: Any, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    def lie(node: int, message: Message) -> Message:
        if node == 103 and "securefl" in message.content:
            forge(message)
        return message

    caplog.set_level(logging.INFO)
    _, inner, _ = play(site, server=None, nodes={}, on_message=lie)
    assert codes(inner, 103)
    for record in caplog.records:
        text = record.getMessage()
        assert record.exc_info is None, "the handler would print the text as it is"
        assert len(text) < 30_000
        for line in text.split("\n"):
            assert line.isprintable()
            assert not line.startswith("INFO")


def test_an_app_that_repeats_the_servers_text_forges_no_line_either(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    app = SecureClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise RuntimeError(FORGED)

    clock = Clock()
    nodes = site.all() | {103: site.node(103, app)}
    config = SecAggConfig(clip_norm=5.0, max_weight=100, roster=site.roster)
    inner = FakeGrid(nodes, clock=clock)
    grid = SecureGrid(inner, FedAvg(), config, clock=clock, sleep=clock.sleep)
    list(grid.send_and_receive([train_message(node, model()) for node in NODES]))
    assert codes(inner, 103)[0] == "E301"
    assert "every key was verified" in caplog.text, "the owner can still read it"
    assert not any(line.startswith("INFO :") for line in caplog.text.splitlines())
    assert "\x1b" not in caplog.text


# -- plans ----------------------------------------------------------------------------------------


def test_a_server_cannot_ask_about_a_metric_by_calling_it_the_weight(site: Site) -> None:
    """A refusal would tell whether the metric is a whole number between 1 and max_weight."""
    trainings: list[int] = []
    app = SecureClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        trainings.append(context.node_id)
        arrays: Any = message.content["arrays"]
        metrics = MetricRecord({"num-examples": weight_of(context.node_id), "positives": 7})
        found = trained(arrays, context.node_id, 1)
        return Message(RecordDict({"arrays": found, "metrics": metrics}), reply_to=message)

    clock = Clock()
    inner = FakeGrid({node: site.node(node, app) for node in NODES}, clock=clock)
    config = SecAggConfig(clip_norm=5.0, max_weight=100, roster=site.roster)
    strategy = FedAvg(weighted_by_key="positives")
    grid = SecureGrid(inner, strategy, config, clock=clock, sleep=clock.sleep)
    messages = [train_message(node, model()) for node in NODES]
    with pytest.raises(BelowThreshold, match=r"6 of 6 clients refused: E108"):
        grid.send_and_receive(messages)
    assert not trainings
    try:
        for node in NODES:
            site.write(node, floor='weight_key = "positives"')
        (reply,) = grid.send_and_receive(messages)
    finally:
        for node in NODES:
            site.write(node)
    assert reply.content["metrics"]["positives"] == 7 * len(NODES)


def test_an_app_sees_no_group_id_and_flower_gets_it_back(site: Site) -> None:
    """It is no part of the plan, and a server could give each node another."""
    seen: set[str] = set()
    plain = SecureClientApp()

    @plain.train()
    def train(message: Message, context: Context) -> Message:
        seen.add(message.metadata.group_id)
        arrays: Any = message.content["arrays"]
        metrics = MetricRecord({"num-examples": 5})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    clock = Clock()
    inner = FakeGrid({node: site.node(node, plain) for node in NODES}, clock=clock)
    config = SecAggConfig(clip_norm=5.0, max_weight=100, roster=site.roster)
    grid = SecureGrid(inner, FedAvg(), config, clock=clock, sleep=clock.sleep)
    list(grid.send_and_receive([train_message(node, model()) for node in NODES]))
    assert seen == {""}
    groups = {sent.reply.metadata.group_id for sent in inner.log if sent.reply is not None}
    assert "1.advertise_keys" in groups


GOOD: dict[str, Any] = {
    "schema": "securefl-flower-plan/1", "kind": "train", "train_in": "first", "clients": 6,
    "bits": 32, "codec": {"dimension": 8, "clip_norm": 5.0, "resolution": 1000.0},
    "weighting": "num-examples", "weight_key": "num-examples", "max_weight": 100,
    "metrics": [{"name": "loss", "low": 0.0, "high": 10.0}], "levels": 1000, "privacy": None,
    "arrays_key": "arrays", "config_key": "config",
    "train_config": {"lr": ["f", "0x1.0000000000000p-1"]}, "run_config": run_config_digest({}),
}  # fmt: skip


def spelled(plan: Any) -> bytes:
    return json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()


def test_the_plan_of_these_tests_is_one() -> None:
    assert Plan.parse(spelled(GOOD)).canonical() == spelled(GOOD)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"train_config": {"lr": ["f", "0x1p99999"]}}, "too large"),
        ({"config_key": "arrays"}, "one name"),
        ({"metrics": [{"name": "loss", "low": -1.7e308, "high": 1.7e308}]}, "finite distance"),
        ({"run_config": "00"}, "run_config"),
        ({"run_config": run_config_digest({}).upper()}, "run_config"),
    ],
)
def test_a_plan_that_only_a_hostile_server_writes_is_none(change: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Plan.parse(spelled(GOOD | change))


ODD: list[Any] = [
    0, -1, 1 << 70, 1e308, -1e308, 1e-320, float("inf"), float("nan"), "", None, True, [], {},
    ["f", "0x1p99999"], ["s", [[]]], [["f"], 1], ["i", 10**30],
]  # fmt: skip


@given(st.sampled_from(sorted(GOOD)), st.sampled_from(range(len(ODD))), st.booleans())
@settings(max_examples=150)
def test_an_odd_value_anywhere_in_a_plan_is_refused_or_means_something(
    field: str, which: int, inside: bool
) -> None:
    changed = json.loads(json.dumps(GOOD))
    if inside and isinstance(changed[field], dict):
        changed[field][sorted(changed[field])[0]] = ODD[which]
    else:
        changed[field] = ODD[which]
    try:
        plan = Plan.parse(spelled(changed))
    except ConfigurationError:
        return
    assert plan.canonical() == spelled(changed)


def test_the_node_file_of_the_docs_keeps_its_weight_key(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        'schema = "securefl-node/1"\njournal = "j"\n[floor]\nadversary = "semi-honest"\n'
    )
    assert Node.load(path).floor.weight_key == "num-examples"
