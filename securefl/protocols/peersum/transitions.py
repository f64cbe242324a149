"""The peer's machine as a table: what each phase sends, what it collects, what closing it needs.

All parties run this one machine. Entering a phase sends its message to every peer; the caller then
ends the phase with ``close_phase()``, because only the caller knows how long to wait. The machine,
the documentation, its diagram and the tests read these rows and nothing else decides an order of
messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

__all__ = [
    "PEER",
    "PHASES",
    "MessageType",
    "PeerRow",
    "Phase",
    "next_phase",
    "peer_table",
    "row_of",
]


class MessageType(IntEnum):
    """Type numbers in the frame header; they ascend with the phases."""

    ADVERTISE_KEYS = 1
    SHARE_INPUT = 2
    REPORT = 3
    CONFIRM = 4
    REVEAL_SUM = 5
    ABORT = 255


class Phase(StrEnum):
    """Steps of the protocol; the value is the lower-case name that errors and drivers use."""

    ADVERTISE_KEYS = "advertise_keys"
    SHARE_INPUT = "share_input"
    REPORT = "report"
    CONFIRM = "confirm"
    REVEAL_SUM = "reveal_sum"
    DONE = "done"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRow:
    """One phase.

    Attributes:
        phase: where the peer is.
        enters: the call that brings it here and sends ``message``.
        message: what it sends to every peer, and collects from every peer.
        needs: what closing the phase needs, in the symbols of the configuration.
        then: the phase after it.
    """

    phase: Phase
    enters: str
    message: MessageType
    needs: str
    then: Phase


PEER: tuple[PeerRow, ...] = (
    PeerRow(
        phase=Phase.ADVERTISE_KEYS,
        enters="start()",
        message=MessageType.ADVERTISE_KEYS,
        needs="keys of max(q, n_min)",
        then=Phase.SHARE_INPUT,
    ),
    PeerRow(
        phase=Phase.SHARE_INPUT,
        enters="close_phase(), set_input()",
        message=MessageType.SHARE_INPUT,
        needs="shares of n_min dealers",
        then=Phase.REPORT,
    ),
    PeerRow(
        phase=Phase.REPORT,
        enters="close_phase()",
        message=MessageType.REPORT,
        needs="q reports with n_min dealers in all of them",
        then=Phase.CONFIRM,
    ),
    PeerRow(
        phase=Phase.CONFIRM,
        enters="close_phase()",
        message=MessageType.CONFIRM,
        needs="q signatures on one list",
        then=Phase.REVEAL_SUM,
    ),
    PeerRow(
        phase=Phase.REVEAL_SUM,
        enters="close_phase()",
        message=MessageType.REVEAL_SUM,
        needs="t sums of shares",
        then=Phase.DONE,
    ),
)

PHASES: tuple[str, ...] = tuple(str(row.phase) for row in PEER)
"""The phases that a session goes through, in order."""

_BY_PHASE = {row.phase: row for row in PEER}


def row_of(phase: Phase) -> PeerRow | None:
    """The row of a phase; None for those in which nothing happens any more."""
    return _BY_PHASE.get(phase)


def next_phase(phase: Phase) -> Phase:
    """Where closing this phase leads."""
    return _BY_PHASE[phase].then


def peer_table() -> str:
    """The rows as a Markdown table (the documentation contains exactly this)."""
    lines = [
        "| phase | entered by | sends and collects | `close_phase()` needs, own included | next |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row.phase.name}` | `{row.enters}` | `{row.message.name}` | {row.needs} "
        f"| `{row.then.name}` |"
        for row in PEER
    ]
    return "\n".join(lines)
