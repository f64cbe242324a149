"""SecAgg+ against a server that may lie: the graph comes from a beacon that each site reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

import numpy as np
from flower_world import Clock, FakeGrid, FakeNode, Site, model, train_message, trained, weight_of
from flwr.app import Message
from flwr.serverapp import strategy as flower
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import BelowThreshold, ConfigurationError
from securefl.flower import SecAggConfig, SecureGrid, Timing, policy
from securefl.flower import beacon as module
from securefl.flower.beacon import Beacon
from securefl.flower.errors import Code, Refusal
from securefl.round import GraphSource, Protocol, RoundConfig

MANY = tuple(range(201, 213))
GENESIS, PERIOD, START = 1_000_000, 30, 2_000_000.0
FLOOR = "experimental_active_graph = true"
HEAD = (
    'identity = "identity.pem"\nroster = "roster.json"\njournal = "node.sqlite"\n'
    'beacon = "../beacon.toml"\n'
)


def randomness(number: int, salt: bytes = b"") -> bytes:
    return hashlib.sha256(b"what the sky said" + salt + number.to_bytes(8, "big")).digest()


def line(number: int, salt: bytes = b"") -> str:
    said = {"round": number, "randomness": randomness(number, salt).hex(), "signature": "00"}
    return json.dumps(said) + "\n"


class Sky(Clock):
    """A clock for all, and a beacon that publishes on time into the sites' common file."""

    def __init__(self, outputs: Path, beacon: Beacon) -> None:
        super().__init__()
        self.outputs, self.beacon, self.silent = outputs, beacon, False
        self.last = beacon.round_ahead(0.0) - 1
        outputs.write_text(line(self.last))

    def time(self) -> float:
        return START + self.now

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        while not self.silent and self.beacon.time_of(self.last + 1) <= self.time():
            self.last += 1
            with self.outputs.open("a") as file:
                file.write(line(self.last))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("beacon"), nodes=MANY)


@pytest.fixture
def sky(many: Site, monkeypatch: pytest.MonkeyPatch) -> Sky:
    (many.folder / "beacon.toml").write_text(
        f'schema = "securefl-beacon/1"\nchain = "ours"\ngenesis = {GENESIS}\nperiod = {PERIOD}\n'
        'outputs = "beacon.jsonl"\n'
    )
    many.fresh_journals()
    for node in MANY:
        many.write(node, floor=FLOOR, head=HEAD)
    beacon = Beacon.load(many.folder / "beacon.toml")
    monkeypatch.setattr(module, "unix_time", lambda: START)
    made = Sky(many.folder / "beacon.jsonl", beacon)
    monkeypatch.setattr(module, "unix_time", made.time)
    monkeypatch.setattr(policy, "_BEACON_SECONDS", 0.0)
    return made


def play(
    many: Site,
    sky: Sky,
    deal: Callable[[int, str, int], str] = lambda node, phase, count: "ok",
    on_message: Callable[[int, Message], Message] = lambda node, message: message,
    **changes: Any,
) -> tuple[SecureGrid, FakeGrid, Message]:
    nodes: dict[int, FakeNode] = many.all()
    inner = FakeGrid(nodes, clock=sky, deal=deal)
    inner.on_message = on_message
    fields: dict[str, Any] = {
        "clip_norm": 5.0,
        "max_weight": 100,
        "protocol": "secagg+",
        "experimental_active_graph": True,
        "beacon": many.folder / "beacon.toml",
        "roster": many.roster,
        "max_dropped": 1,
        "timing": Timing(poll=5.0),
    }
    settings = SecAggConfig(**(fields | changes))
    grid = SecureGrid(inner, flower.FedAvg(), settings, clock=sky, sleep=sky.sleep)
    (reply,) = grid.send_and_receive([train_message(node, model()) for node in MANY])
    return grid, inner, reply


def assert_mean(reply: Message, alive: list[int]) -> None:
    total = sum(map(weight_of, alive))
    arrays = next(iter(reply.content.array_records.values()))
    for key in ("w", "b"):
        mean = sum(
            weight_of(node) * trained(model(), node, 1)[key].numpy().astype(np.float64)
            for node in alive
        )
        step = 5.0 / ((1 << 32) // (2 * len(MANY) * 100)) + 2e-7
        assert np.abs(arrays[key].numpy() - mean / total).max() <= step
    metrics = next(iter(reply.content.metric_records.values()))
    assert metrics["securefl-survivors"] == len(alive)


def codes(inner: FakeGrid, node: int) -> list[str]:
    errors = [
        s.reply.error for s in inner.log if s.node == node and s.reply and s.reply.has_error()
    ]
    return [str(error.reason).removeprefix("securefl:") for error in errors]


def config_of(inner: FakeGrid) -> RoundConfig:
    heads: list[Any] = [s.message.content.get("securefl") for s in inner.log]
    return RoundConfig.decode(next(h["config"] for h in heads if h and "config" in h))


def rewritten(config: Callable[[RoundConfig], RoundConfig], victim: int) -> Any:
    """A server that tells one node another configuration."""

    def lie(node: int, message: Message) -> Message:
        head: Any = message.content.get("securefl")
        if node == victim and head is not None and "config" in head:
            other = config(RoundConfig.decode(head["config"]))
            head["config"], head["attempt"] = other.encode(), other.digest()
        return message

    return lie


# -- rounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["share_keys", "masked_input_collection", "unmasking"])
def test_a_round_on_a_graph_of_the_beacons_is_the_exact_mean(
    phase: str, many: Site, sky: Sky
) -> None:
    grid, inner, reply = play(
        many, sky, lambda node, p, _: "lost" if (node, p) == (205, phase) else "ok"
    )
    gone = {205} if phase != "unmasking" else set()
    assert_mean(reply, [node for node in MANY if node not in gone])
    config = config_of(inner)
    assert (config.protocol, config.graph_source) == (Protocol.SECAGG_PLUS, GraphSource.BEACON)
    assert sum(grid.history[0].refusals.values()) == 0
    number = sky.beacon.round_of(config.graph_value)
    assert START < sky.beacon.time_of(number) <= sky.time(), "a round to come, then waited for"
    dealt = [s for s in inner.log if s.phase == "share_keys"]
    assert len(dealt) == len(MANY), "nobody was asked to deal before the beacon spoke"


def test_an_output_that_never_comes_loses_the_round(many: Site, sky: Sky) -> None:
    sky.silent = True
    with pytest.raises(BelowThreshold, match=r"is not in .*beacon.jsonl 90 s after its time"):
        play(many, sky)


@pytest.mark.parametrize("lead", [-1, 0])
def test_a_round_that_could_be_known_is_refused_before_training(
    lead: int, many: Site, sky: Sky
) -> None:
    """By its time, also if this site's file does not have it yet."""
    known = sky.last + lead
    if lead == 0:
        sky.outputs.write_text("")
    lie = rewritten(lambda c: replace(c, graph_value=sky.beacon.graph_value(known)), 203)
    grid, inner, reply = play(many, sky, on_message=lie)
    assert codes(inner, 203) == ["E110"]
    assert grid.history[0].refusals == {"E110": 1}
    assert_mean(reply, [node for node in MANY if node != 203])


def test_a_round_that_is_in_the_sites_file_is_refused(many: Site, sky: Sky) -> None:
    """A clock that goes wrong does not help a server: the output is there."""
    ahead = sky.beacon.round_ahead(60.0)
    sky.outputs.write_text(line(ahead))
    with pytest.raises(BelowThreshold, match="12 of 12 clients refused: E110"):
        play(many, sky)


def test_another_beacon_is_refused(many: Site, sky: Sky) -> None:
    other = replace(sky.beacon, chain="the server's own")
    number = sky.beacon.round_ahead(60.0)
    lie = rewritten(lambda c: replace(c, graph_value=other.graph_value(number)), 203)
    _, inner, reply = play(many, sky, on_message=lie)
    assert codes(inner, 203) == ["E110"]
    assert_mean(reply, [node for node in MANY if node != 203])


def test_a_node_does_not_wait_for_a_round_that_is_far_ahead(many: Site, sky: Sky) -> None:
    """A server that names the next century and asks for shares now would hold its process."""
    _, inner, _ = play(many, sky)
    far = replace(config_of(inner), graph_value=sky.beacon.graph_value(10**9))
    node = policy.Node.load(many.folder / "203" / "node.toml")
    begin = sky.time()
    with pytest.raises(Refusal, match="is not in") as refused:
        node.beacon_output(far)
    assert refused.value.code is Code.BEACON
    assert sky.time() == begin


def another_file(many: Site, node: int, text: str) -> None:
    """This node's own copy of the outputs."""
    folder = many.folder / str(node)
    there = (many.folder / "beacon.toml").read_text()
    (folder / "own.toml").write_text(there)
    (folder / "beacon.jsonl").write_text(text)
    many.write(node, floor=FLOOR, head=HEAD.replace("../beacon.toml", "own.toml"))


def test_a_site_without_the_output_refuses_and_the_others_go_on(many: Site, sky: Sky) -> None:
    another_file(many, 203, line(1))
    _, inner, reply = play(many, sky)
    assert codes(inner, 203) == ["E110"]
    assert_mean(reply, [node for node in MANY if node != 203])


def test_a_site_that_was_given_another_output_is_in_no_sum(many: Site, sky: Sky) -> None:
    ahead = sky.beacon.round_ahead(60.0)

    def planted(node: int, message: Message) -> Message:
        head: Any = message.content.get("securefl")
        if node == 203 and head is not None and head["phase"] == "share_keys":
            (many.folder / "203" / "beacon.jsonl").write_text(line(ahead, salt=b"chosen"))
        return message

    another_file(many, 203, "")
    _, inner, reply = play(many, sky, on_message=planted)
    assert codes(inner, 203) == ["E107"], "it is shown others than its neighbours"
    assert_mean(reply, [node for node in MANY if node != 203])


@pytest.mark.parametrize(
    ("floor", "head", "code"),
    [
        ("", HEAD, "E105"),  # the words are missing
        (FLOOR, HEAD.replace('beacon = "../beacon.toml"\n', ""), "E107"),  # words without a beacon
    ],
)
def test_a_node_that_did_not_ask_for_it_takes_no_part(
    floor: str, head: str, code: str, many: Site, sky: Sky
) -> None:
    many.write(203, floor=floor, head=head)
    _, inner, reply = play(many, sky)
    assert set(codes(inner, 203)) == {code}
    assert_mean(reply, [node for node in MANY if node != 203])


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "secagg+"},
        {"protocol": "secagg+", "experimental_active_graph": True},
        {"protocol": "secagg+", "beacon": "beacon.toml"},
        {"protocol": "secagg", "beacon": "beacon.toml"},
        {"protocol": "secagg+", "adversary": "semi-honest", "experimental_active_graph": True},
    ],
)
def test_both_words_and_beacon_are_needed_and_only_there(
    changes: dict[str, Any], many: Site
) -> None:
    fields: dict[str, Any] = {"clip_norm": 1.0, "max_weight": 1, "roster": many.roster}
    with pytest.raises(ConfigurationError, match=r"experimental_active_graph"):
        SecAggConfig(**(fields | changes))


# -- the file -------------------------------------------------------------------------------------


@given(
    now=st.floats(0, 1e10),
    lead=st.floats(0, 1e5),
    genesis=st.integers(0, 2**33),
    period=st.integers(1, 10**5),
)
def test_the_round_ahead_is_the_first_one_after(
    now: float, lead: float, genesis: int, period: int
) -> None:
    beacon = Beacon(chain="c", genesis=genesis, period=period, outputs=Path("none"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "unix_time", lambda: now)
        number = beacon.round_ahead(lead)
        assert number >= 1
        assert beacon.time_of(number) > now + lead
        assert number == 1 or beacon.time_of(number - 1) <= now + lead
        beacon.check_future(number)
        if number > 1 and lead == 0:
            with pytest.raises(ConfigurationError, match="could have known"):
                beacon.check_future(number - 1)
    assert beacon.round_of(beacon.graph_value(number)) == number
    for other in (
        replace(beacon, chain="d"),
        replace(beacon, genesis=genesis + 1),
        replace(beacon, period=period + 1),
    ):
        with pytest.raises(ConfigurationError, match="another beacon"):
            other.round_of(beacon.graph_value(number))


GOOD = line(7)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        (line(6) + line(8), None),
        (line(6) + GOOD + line(8), randomness(7)),
        (GOOD + GOOD, randomness(7)),
        ("\n" + GOOD, randomness(7)),
        (GOOD.rstrip("\n"), None),  # being written
        (GOOD + line(7, salt=b"2"), "two outputs"),
        (line(3) * 20_000 + GOOD, randomness(7)),  # more than is read
        ("7\n", "found b'7'"),
        ("{}\n" + GOOD, "found b'{}'"),
        (GOOD + '{"round": true, "randomness": "' + "00" * 32 + '"}\n', "true"),
        ('{"round": 7, "randomness": "' + "00" * 31 + '"}\n', "expected lines"),
        ('{"round": 7, "randomness": 5}\n', "expected lines"),
        ("[" * 10**5 + "\n", "expected lines"),
    ],
)
def test_the_file_of_outputs(text: str, found: bytes | str | None, tmp_path: Path) -> None:
    path = tmp_path / "outputs"
    beacon = Beacon(chain="c", genesis=0, period=1, outputs=path)
    assert beacon.output(7) is None, "no file yet"
    path.write_text(text)
    if isinstance(found, str):
        with pytest.raises(ConfigurationError, match=found):
            beacon.output(7)
    else:
        assert beacon.output(7) == found


@pytest.mark.parametrize(
    "text",
    [
        None,
        "schema = ",
        'schema = "securefl-beacon/1"',
        'schema = "securefl-beacon/1"\nchain = "c"\ngenesis = 1\nperiod = 0\noutputs = "o"',
        'schema = "securefl-beacon/2"\nchain = "c"\ngenesis = 1\nperiod = 1\noutputs = "o"',
        'schema = "securefl-beacon/1"\nchain = "c"\ngenesis = 1\nperiod = 1\noutputs = "o"\nx = 1',
    ],
)
def test_a_file_that_describes_no_beacon_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "beacon.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"beacon\.toml"):
        Beacon.load(path)
