"""The loop that sends and takes: how much of a phase is in memory at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

from flower_world import Clock  # sets the task that messages need
from flwr.app import ConfigRecord, Message, RecordDict

from securefl.flower.exchange import Exchange, Letter, Progress


class Ready:
    """A grid on which every node has answered at once, as after a slow phase."""

    def __init__(self) -> None:
        self.sent: dict[str, Message] = {}
        self.given: list[weakref.ref[Message]] = []
        self.asked: list[int] = []
        self.alive: list[int] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        for message in messages:
            name = f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = name
            self.sent[name] = message
        return list(self.sent)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        asked = list(message_ids)
        self.asked.append(len(asked))
        self.alive.append(sum(one() is not None for one in self.given))
        found = [
            Message(RecordDict({"frame": ConfigRecord({"frame": bytes(9)})}), reply_to=message)
            for name in asked
            if (message := self.sent.pop(name, None)) is not None
        ]
        self.given += [weakref.ref(one) for one in found]
        return found


def test_replies_are_taken_a_few_at_a_time_and_let_go() -> None:
    """A hundred masked vectors that come together must not be in the server's memory together."""
    grid: Any = Ready()
    clock = Clock()
    exchange = Exchange(grid, clock=clock, sleep=clock.sleep)
    taken: list[int] = []
    exchange.run(
        [Letter(node=node, content=RecordDict()) for node in range(30)],
        message_type="train.securefl",
        group="1.x",
        deadline=60.0,
        grace=1.0,
        take=lambda node, reply: taken.append(node),
        progress=lambda: Progress.WAITING,
    )
    assert sorted(taken) == list(range(30))
    assert max(grid.asked) <= 8
    assert max(grid.alive) <= 8
    assert clock.now == 0.0, "one look takes all of them"


def test_late_replies_are_thrown_away_a_few_at_a_time_too() -> None:
    grid: Any = Ready()
    clock = Clock()
    exchange = Exchange(grid, clock=clock, sleep=clock.sleep)
    answered = grid.pull_messages
    grid.pull_messages = lambda message_ids: []
    exchange.run(
        [Letter(node=node, content=RecordDict()) for node in range(30)],
        message_type="train.securefl",
        group="1.x",
        deadline=1.0,
        grace=1.0,
        take=lambda node, reply: None,
        progress=lambda: Progress.WAITING,
    )
    assert set(exchange.busy()) == set(range(30))
    grid.pull_messages = answered
    assert not exchange.busy()
    assert max(grid.asked) <= 8
    assert max(grid.alive) <= 8
