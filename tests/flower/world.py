"""Flower without Flower's processes: a grid that runs the nodes' apps itself.

Like the deployment engine it gives every message a fresh context, keeps the state that an app
leaves behind, answers for apps that raise, and delivers replies when the test says so. Messages are
copied, so nothing is shared that a network would not share.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from securefl.flower import SecureClientApp
from securefl.primitives.identities import PublicIdentity, Roster, create_identity

try:
    # Flower makes messages inside a task only. There is no public way to say which.
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:  # pragma: no cover
    pytest.skip("Flower's TaskIdentity has moved", allow_module_level=True)

RUN_ID = 77
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 1, 1

Deal = Callable[[int, str, int], str]
"""(node, phase or type, how often asked) -> "ok", "lost", "error", "late", "twice", "crash"."""


def always_ok(node: int, phase: str, count: int) -> str:
    del node, phase, count
    return "ok"


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class FakeNode:
    app: ClientApp
    config: dict[str, Any]
    state: RecordDict = field(default_factory=RecordDict)
    run_config: dict[str, Any] = field(default_factory=dict)


@dataclass
class Sent:
    node: int
    message: Message
    reply: Message | None
    phase: str


class FakeGrid(Grid):
    def __init__(self, nodes: dict[int, FakeNode], *, clock: Clock, deal: Deal = always_ok) -> None:
        self.nodes = nodes
        self.clock = clock
        self.deal = deal
        self.log: list[Sent] = []
        self.replies: list[tuple[float, Message]] = []
        self.ids = itertools.count(1)
        self.asked: dict[tuple[int, str], int] = {}
        self.on_message: Callable[[int, Message], Message] = lambda node, message: message
        self.order: Callable[[list[Message]], list[Message]] = lambda replies: replies

    @property
    def run(self) -> Any:
        return SimpleNamespace(run_id=RUN_ID)

    def set_run(self, run: Any) -> None:
        raise AssertionError("nobody sets the run")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return Message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        message_id = f"m{next(self.ids)}"
        node = message.metadata.dst_node_id
        sent = copy.deepcopy(message)
        sent.metadata.__dict__["_message_id"] = message_id
        phase = phase_of(sent)
        count = self.asked[node, phase] = self.asked.get((node, phase), 0) + 1
        what = self.deal(node, phase, count)
        if what == "lost":
            self.log.append(Sent(node, sent, None, phase))
            return message_id
        reply = None if what == "crash" else self.answer(node, sent)
        if what in ("error", "crash"):
            code = 8 if what == "crash" else 2
            reply = Message(Error(code, "scripted"), reply_to=sent)
        assert reply is not None
        self.log.append(Sent(node, sent, reply, phase))
        due = self.clock() + (10_000.0 if what == "late" else 0.0)
        self.replies.append((due, reply))
        if what == "twice":
            self.replies.append((due, copy.deepcopy(reply)))
        return message_id

    def answer(self, node: int, message: Message) -> Message:
        """What this node's process makes of a message."""
        message = self.on_message(node, message)
        there = self.nodes[node]
        context = Context(
            run_id=RUN_ID,
            node_id=node,
            node_config=dict(there.config),
            state=copy.deepcopy(there.state),
            run_config=dict(there.run_config),
        )
        try:
            reply = there.app(copy.deepcopy(message), context)
        except Exception as error:
            reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
        there.state = context.state
        return copy.deepcopy(reply)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        found, kept = [], []
        for due, reply in self.replies:
            asked = due <= self.clock() and reply.metadata.reply_to_message_id in wanted
            (found if asked else kept).append((due, reply))
        self.replies = kept
        return self.order([reply for _, reply in found])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return list(self.pull_messages(self.push_messages(messages)))


def phase_of(message: Message) -> str:
    """The phase that a message of a session asks for; its type for others."""
    head = message.content.get("securefl")
    return str(head["phase"]) if head is not None else message.metadata.message_type


# -- a model and clients that train on it ---------------------------------------------------------


def model(seed: int = 1) -> ArrayRecord:
    random = np.random.default_rng(seed)
    return ArrayRecord(
        {
            "w": Array(random.normal(size=(3, 2)).astype(np.float32)),
            "seen": Array(np.array(5, dtype=np.int64)),
            "b": Array(random.normal(size=2).astype(np.float64)),
        }
    )


def trained(arrays: ArrayRecord, node: int, server_round: int) -> ArrayRecord:
    """What a client's training makes of a model: deterministic, different for each."""
    found = {}
    for key, array in arrays.items():
        random = np.random.default_rng([node, server_round, *key.encode()])
        values = array.numpy()
        if values.dtype.kind == "f":
            values = (values + random.uniform(-0.2, 0.2, size=values.shape)).astype(values.dtype)
        elif key == "seen":
            values = values + 16
        found[key] = Array(np.asarray(values))
    return ArrayRecord(found)


def weight_of(node: int) -> int:
    return 10 + node % 7


def loss_of(node: int, server_round: int) -> float:
    return 1.0 + node % 5 / 10 + server_round


def make_app(kind: type[ClientApp] = SecureClientApp) -> ClientApp:
    app = kind()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        asked: Any = message.content["config"]
        server_round = int(asked["server-round"])
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        metrics = MetricRecord(
            {
                "num-examples": weight_of(context.node_id),
                "loss": loss_of(context.node_id, server_round),
                "marker": 4242.5,
            }
        )
        content = RecordDict(
            {"arrays": trained(arrays, context.node_id, server_round), "metrics": metrics}
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord(
            {"num-examples": weight_of(context.node_id), "loss": loss_of(context.node_id, 0)}
        )
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def train_message(node: int, arrays: ArrayRecord, server_round: int = 1) -> Message:
    config = ConfigRecord({"server-round": server_round, "lr": 0.1})
    content = RecordDict({"arrays": arrays, "config": config})
    return Message(content, dst_node_id=node, message_type="train")


# -- nodes with files -----------------------------------------------------------------------------

NODES = (101, 102, 103, 104, 105, 106)


class Site:
    """One set of identities and node files, made once per folder."""

    def __init__(self, folder: Path, nodes: Iterable[int] = NODES) -> None:
        self.folder = folder
        self.nodes = tuple(nodes)
        public: list[PublicIdentity] = [
            create_identity(folder / str(node), name=f"node-{node}") for node in self.nodes
        ]
        self.roster = Roster.build(public)
        import json

        for node in self.nodes:
            (folder / str(node) / "roster.json").write_text(json.dumps(self.roster.to_json()))
            self.write(node)

    def write(self, node: int, floor: str = "", more: str = "", head: str = "") -> Path:
        path = self.folder / str(node) / "node.toml"
        default = (
            'identity = "identity.pem"\nroster = "roster.json"\njournal = "node.sqlite"\n'
            'ledger = "node.ledger"\n'
        )
        path.write_text(f'schema = "securefl-node/1"\n{head or default}[floor]\n{floor}\n{more}\n')
        return path

    def fresh_journals(self) -> None:
        for node in self.nodes:
            (self.folder / str(node) / "node.sqlite").unlink(missing_ok=True)

    def node(self, node: int, app: ClientApp | None = None) -> FakeNode:
        return FakeNode(
            app=make_app() if app is None else app,
            config={"securefl": str(self.folder / str(node) / "node.toml")},
        )

    def all(self) -> dict[int, FakeNode]:
        return {node: self.node(node) for node in self.nodes}
