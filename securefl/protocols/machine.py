"""What every protocol machine looks like from outside, and what it can tell its driver.

A machine owns one side of one session. It never waits, sends or reads a clock: the driver hands it
frames and decides when a phase ends; the machine answers with :class:`Outbound` frames to send and
events to know. This module knows no protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeAlias, overload

from securefl.errors import (
    BelowThreshold,
    DecryptionFailed,
    Equivocation,
    InvalidSignature,
    PeerProtocolError,
    RosterMismatch,
    WireError,
)
from securefl.modular import RingVector
from securefl.round import AggregateSum, ClientId, SurvivorSets

__all__ = [
    "Aborted",
    "AggregateReady",
    "ClientDropped",
    "ClientEquivocated",
    "ClientMachine",
    "Event",
    "FrameIgnored",
    "MalformedMessage",
    "Outbound",
    "Outbox",
    "PeerMachine",
    "PhaseClosed",
    "Reason",
    "Refused",
    "ServerMachine",
    "ShareMismatch",
    "ShareUnreadable",
    "SignedTwice",
    "abort_reason",
]


class Reason(IntEnum):
    """Why a client was dropped or a session aborted; the number travels in Abort frames."""

    NO_REPLY = 1
    MALFORMED = 2
    INVALID_SIGNATURE = 3
    DUPLICATE_KEY = 4
    TOO_FEW_HOLDERS = 5
    INVALID_SHARE = 6
    LATE = 7
    CLIENT_ABORT = 8
    ROSTER_MISMATCH = 9
    DECRYPTION_FAILED = 10
    EQUIVOCATION = 11
    BELOW_THRESHOLD = 12


class MalformedMessage(PeerProtocolError, WireError):
    """A message of the expected type whose bytes are malformed: its author is known."""


class Refused(Exception):
    """Content that costs its sender the place in the session; it never leaves a server's machine.

    Attributes:
        reason: what the server reports.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


_REASONS: dict[type[Exception], Reason] = {
    RosterMismatch: Reason.ROSTER_MISMATCH,
    DecryptionFailed: Reason.DECRYPTION_FAILED,
    Equivocation: Reason.EQUIVOCATION,
    InvalidSignature: Reason.INVALID_SIGNATURE,
    BelowThreshold: Reason.BELOW_THRESHOLD,
    MalformedMessage: Reason.MALFORMED,
}


def abort_reason(error: PeerProtocolError | BelowThreshold) -> Reason:
    """What the Abort frame says of a client that this error ends."""
    return _REASONS.get(type(error), Reason.MALFORMED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """One frame that the machine wants sent.

    Attributes:
        recipient: a client, or the server's reserved id.
        frame: header, body and signature, ready for the wire.
    """

    recipient: ClientId
    frame: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientDropped:
    """The server goes on without this client."""

    client: ClientId
    phase: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientEquivocated:
    """This client sent two different messages of one type; the first one counts."""

    client: ClientId
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseClosed:
    """A phase ended with these clients, ascending."""

    phase: str
    members: tuple[ClientId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareUnreadable:
    """A share from this dealer did not open; the session can go on without it."""

    dealer: ClientId


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareMismatch:
    """A dealer's secret was had and verified although some of its shares are wrong.

    Who lied cannot be told: the dealer when it dealt these shares, or the holders when they gave
    them back.

    Attributes:
        dealer: whose secret.
        holders: ascending. If ``located``, exactly those whose share is wrong (as long as no more
            than floor((M-t)/2) of the M are); otherwise all M: too many are wrong to tell which.
        located: whether the wrong shares were told from the right ones.
    """

    dealer: ClientId
    holders: tuple[ClientId, ...]
    located: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameIgnored:
    """A frame changed nothing: too late, not signed by whom it names, or of no use here.

    Attributes:
        sender: whom the header names.
        phase: the receiver's phase.
        reason: why it does not count.
    """

    sender: ClientId
    phase: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTwice:
    """A peer signed two different survivor lists of one session, and here is the proof.

    Attributes:
        client: who.
        statements: the two that it signed.
        signatures: its signatures on them, in the same order.
    """

    client: ClientId
    statements: tuple[bytes, bytes]
    signatures: tuple[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateReady:
    """The sum is open and every secret behind it was checked."""

    aggregate: AggregateSum


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    """The session ended without a result on this machine."""

    reason: Reason
    by: ClientId


Event: TypeAlias = (
    ClientDropped
    | ClientEquivocated
    | PhaseClosed
    | ShareUnreadable
    | ShareMismatch
    | FrameIgnored
    | SignedTwice
    | AggregateReady
    | Aborted
)


class Outbox(Sequence[Outbound | Event]):
    """Events and frames of one step; each frame is encoded when it is read, and not kept.

    A server's frames to a large cohort together can be many times a model's vector. Whoever sends
    them one by one never has more than one in memory. Reading one again gives the same bytes.

    Args:
        ready: what comes first, as it is.
        recipients: one frame for each, after that.
        frame: encodes it. It must not depend on anything that changes later.
    """

    __slots__ = ("_frame", "_ready", "_recipients")

    def __init__(
        self,
        ready: Sequence[Outbound | Event],
        recipients: Sequence[ClientId] = (),
        frame: Callable[[ClientId], bytes] = lambda _: b"",
    ) -> None:
        self._ready = tuple(ready)
        self._recipients = tuple(recipients)
        self._frame = frame

    def after(self, first: Sequence[Outbound | Event]) -> Outbox:
        """The same behind something else."""
        return Outbox((*first, *self._ready), self._recipients, self._frame)

    def __len__(self) -> int:
        return len(self._ready) + len(self._recipients)

    @overload
    def __getitem__(self, index: int) -> Outbound | Event: ...

    @overload
    def __getitem__(self, index: slice) -> list[Outbound | Event]: ...

    def __getitem__(self, index: int | slice) -> Outbound | Event | list[Outbound | Event]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        if i < len(self._ready):
            return self._ready[i]
        u = self._recipients[i - len(self._ready)]
        return Outbound(recipient=u, frame=self._frame(u))

    def __repr__(self) -> str:
        return f"Outbox({len(self._ready)} ready, {len(self._recipients)} frames to encode)"


class ClientMachine(Protocol):
    """One client's side of one session. Use it once."""

    @property
    def client_id(self) -> ClientId:
        """Whose side this is."""

    @property
    def phase(self) -> str:
        """The phase it is in."""

    @property
    def wants_input(self) -> bool:
        """Whether the session now waits for :meth:`set_input` and for nothing else."""

    @property
    def masked_input_emitted(self) -> bool:
        """Whether the masked input was handed out for sending (stays True afterwards)."""

    def start(self) -> Sequence[Outbound | Event]:
        """The first message."""

    def receive(self, frame: bytes, sender: ClientId | None = None) -> Sequence[Outbound | Event]:
        """Takes a frame; ``sender`` is whom the transport authenticated, if it did."""

    def set_input(self, vector: RingVector) -> Sequence[Outbound | Event]:
        """Gives the input, once."""

    def abort(self) -> Sequence[Outbound | Event]:
        """Gives up and forgets all secrets."""


class ServerMachine(Protocol):
    """The server's side of one session. Use it once."""

    @property
    def phase(self) -> str:
        """The phase it is in."""

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases that a session goes through, in order."""

    @property
    def final(self) -> bool:
        """Whether nothing can change any more."""

    @property
    def ready(self) -> bool:
        """Whether every client that can still reply in this phase has done so."""

    @property
    def sufficient(self) -> bool:
        """Whether closing the phase now would meet its threshold."""

    @property
    def survivors(self) -> SurvivorSets:
        """Who was there, per closed phase."""

    @property
    def result(self) -> AggregateSum | None:
        """The opened sum, once there is one."""

    def receive(self, frame: bytes, sender: ClientId | None = None) -> Sequence[Outbound | Event]:
        """Takes a frame; ``sender`` is whom the transport authenticated, if it did."""

    def close_phase(self) -> Sequence[Outbound | Event]:
        """Ends the phase: no later frame of it counts."""


class PeerMachine(ClientMachine, Protocol):
    """One side of a session without a server: a client that also collects and opens."""

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases that a session goes through, in order."""

    @property
    def final(self) -> bool:
        """Whether nothing can change any more."""

    @property
    def ready(self) -> bool:
        """Whether every peer that can still reply in this phase has done so."""

    @property
    def sufficient(self) -> bool:
        """Whether closing the phase now would meet its threshold."""

    @property
    def survivors(self) -> SurvivorSets:
        """Who was there, per closed phase, as this peer saw it."""

    @property
    def result(self) -> AggregateSum | None:
        """The opened sum, once there is one."""

    def close_phase(self) -> Sequence[Outbound | Event]:
        """Ends the phase: no later frame of it counts. Sends the next phase's message."""
