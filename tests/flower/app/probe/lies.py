"""A ServerApp that lies: what the honest code sends is changed on its way out, and more is asked.

One lie per round. The liar sees all that a server sees, and lies to the node with the lowest id
unless a lie is meant for everybody. What it asks beside the protocol it asks of the nodes directly,
and writes down what they say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message

from probe.task import initial
from securefl.flower.records import SESSION_TYPE, Envelope, frame_of, record_of_frame
from securefl.primitives.channel import AgreementKey
from securefl.protocols.messages import SignedUnmaskRequest, SurvivorNotice
from securefl.protocols.secagg.messages import KeyRoster
from securefl.protocols.secagg.transitions import MessageType, Phase
from securefl.round import ClientId, Cohort, RoundConfig
from securefl.wire import Frame, decode_frame, encode_frame

FIRST = str(Phase.ADVERTISE_KEYS)
ROSTER = str(Phase.SHARE_KEYS)
NOTICE = str(Phase.CONSISTENCY_CHECK)
REQUEST = str(Phase.UNMASKING)


class Liar:
    """Stands between a SecureGrid and Flower's grid.

    Args:
        grid: Flower's; its two methods for messages are replaced.
        lies: names of this module's lies, one per round.

    Attributes:
        answers: (lie, code or "answered") for each question beside the protocol.
    """

    def __init__(self, grid: Any, lies: list[str]) -> None:
        self._push, self._pull = grid.push_messages, grid.pull_messages
        grid.push_messages, grid.pull_messages = self.push, self.pull
        self._lies = lies
        self._asked: dict[str, str] = {}
        self.answers: list[tuple[str, str]] = []
        self.config: RoundConfig | None = None
        self.clients: dict[int, ClientId] = {}
        self.signatures: dict[ClientId, bytes] = {}
        self.later: list[Message] = []
        self.told: Any = None
        self.deceived: Message | None = None

    def push(self, messages: Iterable[Message]) -> Any:
        given = list(messages)
        heads = [message.content.get("securefl") for message in given]
        if None in heads:
            return self._push(given)
        phase, number = str(heads[0]["phase"]), int(given[0].metadata.group_id.split(".")[0])
        if phase == FIRST:
            self.config = RoundConfig.decode(heads[0]["config"])
            self.clients = {m.metadata.dst_node_id: m.content["securefl"]["client"] for m in given}
            self.signatures = {}
            self._ask(self._lies[number - 2], self.later)
            self.later = []
        lie = self._lies[number - 1]
        victim = min(given, key=lambda message: message.metadata.dst_node_id)
        more = LIES[lie](self, phase, victim, given)
        ids = self._push(given)
        self._ask(lie, more)
        return ids

    def _ask(self, lie: str, messages: list[Message]) -> None:
        if messages:
            self._asked |= dict.fromkeys(self._push(messages), lie)

    def pull(self, ids: Iterable[str]) -> list[Message]:
        found = []
        for reply in self._pull([*ids, *self._asked]):
            lie = self._asked.pop(reply.metadata.reply_to_message_id, None)
            if lie is None:
                found.append(reply)
                self._listen(reply)
            else:
                self.answers.append((lie, reply.error.reason if reply.has_error() else "answered"))
        return found

    def _listen(self, reply: Message) -> None:
        if reply.has_error():
            return
        try:
            frame = decode_frame(frame_of(reply.content))
        except Exception:
            return
        if frame.type == MessageType.SURVIVOR_SIGNATURE:
            self.signatures[frame.sender] = bytes(frame.body)

    def wait(self, seconds: float) -> None:
        """Until all questions are answered."""
        end = time.monotonic() + seconds
        while self._asked and time.monotonic() < end:
            self.pull([])
            time.sleep(0.5)

    # -- what lies are made of --------------------------------------------------------------------

    def frame(self, message: Message) -> Frame:
        return decode_frame(frame_of(message.content))

    def alive(self, message: Message) -> Any:
        """bool[n] of a SurvivorNotice, over the cohort."""
        assert self.config is not None
        return SurvivorNotice.decode(self.frame(message).body, n=self.config.n).alive

    def question(self, message: Message, phase: str, kind: MessageType, body: bytes) -> Message:
        """Another message to the same node in the same session."""
        head: Any = message.content["securefl"]
        frame = encode_frame(replace(self.frame(message), type=kind, body=body))
        return Message(
            Envelope(phase=phase, attempt=head["attempt"], frame=frame).content(),
            dst_node_id=message.metadata.dst_node_id,
            message_type=SESSION_TYPE,
            group_id="lie",
        )


def _put(message: Message, frame: Frame, body: bytes) -> None:
    message.content["frame"] = record_of_frame(encode_frame(replace(frame, body=body)))


def another_model(liar: Liar, phase: str, victim: Message, all_: list[Message]) -> list[Message]:
    """One client gets another model than the configuration names."""
    if phase == FIRST:
        changed = initial()
        changed[0] += 1.0
        victim.content["securefl.arrays"] = ArrayRecord({"w": Array(changed)})
    return []


def in_clear(liar: Liar, phase: str, victim: Message, all_: list[Message]) -> list[Message]:
    """One client is asked to train without protection."""
    if phase == FIRST:
        victim.metadata.message_type = "train"
        victim.content["arrays"] = ArrayRecord({"w": Array(np.asarray(initial()))})
        victim.content["config"] = ConfigRecord({"server-round": 1})
    return []


def shrunk_cohort(liar: Liar, phase: str, victim: Message, all_: list[Message]) -> list[Message]:
    """One client is to hide among two others, with everything else made to fit."""
    if phase == FIRST:
        head: Any = victim.content["securefl"]
        own = liar.clients[victim.metadata.dst_node_id]
        others = [client for client in sorted(liar.clients.values()) if client != own][:2]
        config = replace(
            RoundConfig.decode(head["config"]),
            cohort=Cohort.of([own, *others]), k=2, t=2, D=0, n_min=3,
        )  # fmt: skip
        head["config"], head["attempt"] = config.encode(), config.digest()
    return []


def swapped_key(liar: Liar, phase: str, victim: Message, all_: list[Message]) -> list[Message]:
    """One client sees keys of the server's under the name of another."""
    if phase == ROSTER:
        assert liar.config is not None
        frame = liar.frame(victim)
        entries = list(KeyRoster.decode(frame.body, most=liar.config.n, signed=True).entries)
        own = liar.clients[victim.metadata.dst_node_id]
        at = next(i for i, entry in enumerate(entries) if entry.client != own)
        keys = [AgreementKey(os.urandom(32)).public for _ in range(2)]
        entries[at] = entries[at]._replace(c_pk=keys[0], s_pk=keys[1])
        _put(victim, frame, KeyRoster(entries=tuple(entries)).encode())
    return []


def two_lists(liar: Liar, phase: str, victim: Message, all_: list[Message]) -> list[Message]:
    """One client signs a list without a neighbour; the others' signatures are shown to it."""
    assert liar.config is not None
    if phase == NOTICE:
        frame, alive = liar.frame(victim), liar.alive(victim)
        alive[_another(liar.config, alive, liar.clients[victim.metadata.dst_node_id])] = False
        liar.told, liar.deceived = alive, victim
        _put(victim, frame, SurvivorNotice(alive=alive).encode())
    if phase == REQUEST:
        assert liar.deceived is not None
        own = liar.clients[liar.deceived.metadata.dst_node_id]
        told = {u for u, there in zip(liar.config.cohort, liar.told, strict=True) if there}
        signed = sorted((u, s) for u, s in liar.signatures.items() if u in told and u != own)
        body = SignedUnmaskRequest(signatures=tuple(signed)).encode()
        return [liar.question(liar.deceived, REQUEST, MessageType.UNMASK_REQUEST, body)]
    return []


def both_shares(liar: Liar, phase: str, victim: Message, all_: list[Message]) -> list[Message]:
    """All sign one list and open it; then they are asked for the same with one client missing."""
    assert liar.config is not None
    if phase == NOTICE:
        alive = liar.alive(victim)
        alive[_another(liar.config, alive, liar.clients[victim.metadata.dst_node_id])] = False
        liar.told = alive
    if phase == REQUEST:
        notice = SurvivorNotice(alive=liar.told).encode()
        request = SignedUnmaskRequest(signatures=tuple(sorted(liar.signatures.items()))).encode()
        liar.later = [liar.question(m, REQUEST, MessageType.UNMASK_REQUEST, request) for m in all_]
        return [liar.question(m, NOTICE, MessageType.SURVIVOR_NOTICE, notice) for m in all_]
    return []


def short_list(liar: Liar, phase: str, victim: Message, all_: list[Message]) -> list[Message]:
    """Everybody is to agree to a sum of three."""
    if phase == NOTICE:
        for message in all_:
            frame, alive = liar.frame(message), liar.alive(message)
            alive[np.flatnonzero(alive)[3:]] = False
            _put(message, frame, SurvivorNotice(alive=alive).encode())
    return []


def _another(config: RoundConfig, alive: Any, own: int) -> int:
    """The place in the cohort of somebody else on the list."""
    return next(i for i, u in enumerate(config.cohort) if alive[i] and u != own)


def honest(liar: Liar, phase: str, victim: Message, all_: list[Message]) -> list[Message]:
    return []


LIES = {
    name.__name__.replace("_", "-"): name
    for name in (
        another_model, in_clear, shrunk_cohort, swapped_key, two_lists, both_shares, short_list,
        honest,
    )
}  # fmt: skip
