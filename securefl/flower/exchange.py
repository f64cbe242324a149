"""Messages out, replies in, with a deadline of our own.

Flower's ``send_and_receive`` looks every three seconds, cannot stop when enough have answered,
and ends a timeout with a short list and no word. This loop knows when to stop, matches replies by
the message they answer and by nothing else, and never takes a late one into a session: an input
that came after its phase may have its masks open already. A node that has not answered is busy with
that very message, so it is kept out of later rounds until the answer comes or the message expires.
Clock and sleep are arguments. This module knows no protocol.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from securefl.errors import ConfigurationError
from securefl.flower.records import content_bytes

__all__ = ["Exchange", "Letter", "Progress"]

_TTL_SLACK = 30.0
PULL_BATCH = 8
"""Replies asked for at once: so many masked vectors are in memory before they are summed."""


class Progress(Enum):
    """Where a phase stands."""

    WAITING = "waiting"
    """Too few have answered."""
    QUORUM = "quorum"
    """It could close; whoever is nearly there gets the grace period."""
    COMPLETE = "complete"
    """Nobody else is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One message to one node.

    Attributes:
        node: Flower's id of it.
        content: what to send.
    """

    node: int
    content: RecordDict


class Exchange:
    """The loop of one SecureGrid.

    Args:
        grid: Flower's.
        clock: seconds that only grow.
        sleep: waits.
        poll: seconds between two looks.

    Attributes:
        bytes_to, bytes_from: bytes of message contents so far, by node.
        messages: messages pushed so far.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        poll: float = 0.25,
    ) -> None:
        self._grid = grid
        self.clock = clock
        self.sleep = sleep
        self._poll = poll
        self._unanswered: dict[str, tuple[int, float]] = {}
        self.bytes_to: dict[int, int] = {}
        self.bytes_from: dict[int, int] = {}
        self.messages = 0

    def run(
        self,
        letters: list[Letter],
        *,
        message_type: str,
        group: str,
        deadline: float,
        grace: float,
        take: Callable[[int, Message], None],
        progress: Callable[[], Progress],
    ) -> None:
        """Sends, and takes replies until nobody else is needed or the time is over.

        Args:
            letters: at most one per node.
            message_type: Flower's.
            group: Flower's group id.
            deadline: seconds from now.
            grace: seconds to wait after the phase first could close.
            take: gets each reply, errors too, and the node it was asked of.
            progress: where the phase stands, asked after every look.

        Raises:
            ConfigurationError: if the SuperLink takes none of the messages.
        """
        begin = self.clock()
        waiting = self._push(letters, message_type, group, deadline)
        quorum_at: float | None = None
        while True:
            self._pull(waiting, take)
            now = self.clock()
            state = progress()
            if state is Progress.QUORUM and quorum_at is None:
                quorum_at = now
            in_grace = quorum_at is not None and now < quorum_at + grace
            if state is Progress.COMPLETE or not waiting or now >= begin + deadline:
                return
            if state is Progress.QUORUM and not in_grace:
                return
            self.sleep(self._poll)

    def _pull(self, waiting: dict[str, int], take: Callable[[int, Message], None]) -> None:
        """One look: hands on what has come, a few replies at a time."""
        asked = list(waiting)
        for start in range(0, len(asked), PULL_BATCH):
            for reply in self._grid.pull_messages(asked[start : start + PULL_BATCH]):
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is None:
                    continue
                self._unanswered.pop(reply.metadata.reply_to_message_id, None)
                if reply.has_content():
                    size = content_bytes(reply.content)
                    self.bytes_from[node] = self.bytes_from.get(node, 0) + size
                take(node, reply)

    def _push(
        self, letters: list[Letter], message_type: str, group: str, deadline: float
    ) -> dict[str, int]:
        ttl = deadline + _TTL_SLACK
        messages = [
            Message(
                letter.content,
                dst_node_id=letter.node,
                message_type=message_type,
                ttl=ttl,
                group_id=group,
            )
            for letter in letters
        ]
        ids: list[str | None] = list(self._grid.push_messages(messages))
        if len(ids) != len(letters):
            raise ConfigurationError(
                f"the SuperLink took {len(ids)} of {len(letters)} messages: they are too large for "
                "one request"
            )
        waiting: dict[str, int] = {}
        until = self.clock() + ttl
        for letter, message_id in zip(letters, ids, strict=True):
            if message_id is None:
                continue  # not pushed: this node is a dropout of the phase
            waiting[message_id] = letter.node
            self._unanswered[message_id] = (letter.node, until)
            size = content_bytes(letter.content)
            self.bytes_to[letter.node] = self.bytes_to.get(letter.node, 0) + size
            self.messages += 1
        return waiting

    def busy(self) -> Mapping[int, float]:
        """Nodes that still owe an answer, with the time until which it may come.

        Answers that have come in the meantime are taken from the SuperLink and thrown away unread.
        """
        now = self.clock()
        if self._unanswered:
            owed = list(self._unanswered)
            for start in range(0, len(owed), PULL_BATCH):
                for reply in self._grid.pull_messages(owed[start : start + PULL_BATCH]):
                    self._unanswered.pop(reply.metadata.reply_to_message_id, None)
        self._unanswered = {
            one: (node, until) for one, (node, until) in self._unanswered.items() if now < until
        }
        return dict(self._unanswered.values())
