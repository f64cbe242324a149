"""A network in memory: queues, counted bytes, a transcript, and every way a wire can misbehave.

Policies look at each frame on its way and say what arrives instead: nothing, the frame later, the
frame twice, other bytes. A policy sees both directions, so it is also the place where a test's
malicious server or client tampers. The network knows bytes and names, no protocol.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from securefl.round import SERVER, ClientId

__all__ = [
    "Delivery",
    "Direction",
    "Envelope",
    "InMemoryNetwork",
    "Policy",
    "delay",
    "drop",
    "duplicate",
    "tamper",
]


class Direction(StrEnum):
    """Which way a frame goes."""

    UP = "up"
    DOWN = "down"
    ACROSS = "across"


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One frame and its journey.

    Attributes:
        phase: the server's phase when the frame was sent; without a server, the driver's.
        direction: UP to the server, DOWN to a client, ACROSS from one peer to another.
        sender: who really sent it, whatever the header claims.
        recipient: for whom it is.
        frame: its bytes.
    """

    phase: str
    direction: Direction
    sender: ClientId
    recipient: ClientId
    frame: bytes

    @property
    def client(self) -> ClientId:
        """The end that is not the server; between peers, the sender."""
        return self.recipient if self.direction is Direction.DOWN else self.sender


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What arrives of a frame: these bytes, ``phases_late`` phases later than sent."""

    frame: bytes
    phases_late: int = 0


Policy: TypeAlias = Callable[[Envelope], Sequence[Delivery] | None]
"""What arrives instead of a frame; an empty sequence loses it, None leaves it alone."""

Where: TypeAlias = Callable[[Envelope], bool]


def drop(where: Where) -> Policy:
    """Loses the frames that ``where`` picks."""
    return lambda envelope: () if where(envelope) else None


def delay(where: Where, *, phases: int = 1) -> Policy:
    """Delivers the picked frames ``phases`` phases later."""
    return lambda e: (Delivery(frame=e.frame, phases_late=phases),) if where(e) else None


def duplicate(where: Where, *, times: int = 2) -> Policy:
    """Delivers the picked frames several times."""
    return lambda e: (Delivery(frame=e.frame),) * times if where(e) else None


def tamper(where: Where, change: Callable[[bytes], bytes]) -> Policy:
    """Changes the bytes of the picked frames."""
    return lambda e: (Delivery(frame=change(e.frame)),) if where(e) else None


@dataclass(slots=True)
class _Waiting:
    envelope: Envelope
    phases_late: int


@dataclass(kw_only=True)
class InMemoryNetwork:
    """Carries frames between one server and its clients, or between peers.

    Args:
        policies: applied in order; each sees what the ones before let through.
        reorder: permutes the clients before each phase, and so the order in which their frames
            arrive; None serves them ascending.
        keep_transcript: whether ``transcript`` is kept. It holds every frame, so training runs turn
            it off; bytes are counted either way.

    Attributes:
        bytes_up, bytes_down: bytes per client, as sent; lost frames were sent too. Between peers a
            frame is the sender's upload and the recipient's download.
        bytes_by_phase: the same per (phase, direction, client).
        transcript: what the server saw, in its order: frames that reached it, frames it sent.
            Between peers: every frame, as it was sent.
    """

    policies: Sequence[Policy] = ()
    reorder: Callable[[list[ClientId]], list[ClientId]] | None = None
    keep_transcript: bool = True
    bytes_up: dict[ClientId, int] = field(default_factory=lambda: defaultdict(int), init=False)
    bytes_down: dict[ClientId, int] = field(default_factory=lambda: defaultdict(int), init=False)
    bytes_by_phase: dict[tuple[str, Direction, ClientId], int] = field(
        default_factory=lambda: defaultdict(int), init=False
    )
    transcript: list[Envelope] = field(default_factory=list, init=False)
    _queues: dict[ClientId, list[_Waiting]] = field(
        default_factory=lambda: defaultdict(list), init=False, repr=False
    )

    def send(self, sender: ClientId, recipient: ClientId, frame: bytes, *, phase: str) -> None:
        """Puts a frame on its way, through all policies."""
        direction = Direction.DOWN if sender == SERVER else Direction.ACROSS
        if recipient == SERVER:
            direction = Direction.UP
        envelope = Envelope(
            phase=phase, direction=direction, sender=sender, recipient=recipient, frame=frame
        )
        if direction is not Direction.DOWN:
            self.bytes_up[sender] += len(frame)
            self.bytes_by_phase[phase, Direction.UP, sender] += len(frame)
        if direction is not Direction.UP:
            self.bytes_down[recipient] += len(frame)
            self.bytes_by_phase[phase, Direction.DOWN, recipient] += len(frame)
        if direction is not Direction.UP and self.keep_transcript:
            self.transcript.append(envelope)
        for arriving, late in self._through_policies(envelope):
            self._queues[recipient].append(_Waiting(arriving, late))

    def _through_policies(self, envelope: Envelope) -> list[tuple[Envelope, int]]:
        travelling = [(envelope, 0)]
        for policy in self.policies:
            arrived: list[tuple[Envelope, int]] = []
            for current, late in travelling:
                deliveries = policy(current)
                if deliveries is None:
                    arrived.append((current, late))
                    continue
                for delivery in deliveries:
                    changed = Envelope(
                        phase=current.phase,
                        direction=current.direction,
                        sender=current.sender,
                        recipient=current.recipient,
                        frame=delivery.frame,
                    )
                    arrived.append((changed, late + delivery.phases_late))
            travelling = arrived
        return travelling

    def deliver(self, recipient: ClientId) -> list[Envelope]:
        """What has arrived for ``recipient`` and was not fetched yet."""
        waiting = self._queues[recipient]
        here = [w.envelope for w in waiting if w.phases_late <= 0]
        self._queues[recipient] = [w for w in waiting if w.phases_late > 0]
        if recipient == SERVER and self.keep_transcript:
            self.transcript += here
        return here

    def tick(self) -> None:
        """A phase has passed: delayed frames come one phase closer."""
        for queue in self._queues.values():
            for waiting in queue:
                waiting.phases_late -= 1

    def order(self, clients: Sequence[ClientId]) -> list[ClientId]:
        """The order in which clients are served, and so in which their frames arrive."""
        ordered = sorted(clients)
        return ordered if self.reorder is None else self.reorder(ordered)
