"""The two machines as tables: which message is legal in which phase, and what follows.

Bonawitz et al. 2017, figure 4. The machines, the documentation and the tests read these rows and
nothing else decides an order of messages. The rows of the active adversary are part of the table;
which adversaries a machine implements is the machine's own business.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from securefl.round import Adversary

__all__ = [
    "CLIENT",
    "SERVER_PHASES",
    "ClientRow",
    "MessageType",
    "Phase",
    "ServerRow",
    "client_row",
    "client_table",
    "next_client_phase",
    "next_server_phase",
    "server_row",
    "server_table",
]


class MessageType(IntEnum):
    """Type numbers in the frame header, for both adversaries."""

    ADVERTISE_KEYS = 1
    KEY_ROSTER = 2
    ENCRYPTED_SHARES = 3
    SHARE_DELIVERY = 4
    MASKED_INPUT = 5
    SURVIVOR_NOTICE = 6
    SURVIVOR_SIGNATURE = 7
    UNMASK_REQUEST = 8
    UNMASK_SHARES = 9
    ABORT = 255


class Phase(StrEnum):
    """Steps of the protocol; the value is the lower-case name that errors and drivers use.

    DONE and ABORTED end a session. EXPORTED ends one object: its state went into a snapshot, and
    the session goes on with the machine that is restored from it.
    """

    ADVERTISE_KEYS = "advertise_keys"
    SHARE_KEYS = "share_keys"
    MASKED_INPUT_COLLECTION = "masked_input_collection"
    CONSISTENCY_CHECK = "consistency_check"
    UNMASKING = "unmasking"
    DONE = "done"
    ABORTED = "aborted"
    EXPORTED = "exported"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRow:
    """One phase of the client.

    Attributes:
        phase: where it is.
        accepts: the frame that moves it on; None where a call (``start()``) does.
        emits: what it sends then.
        then: next phase per adversary; an adversary that is missing never comes here.
    """

    phase: Phase
    accepts: MessageType | None
    emits: MessageType
    then: dict[Adversary, Phase]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRow:
    """One phase of the server: what it collects, and what it sends when it closes the phase."""

    phase: Phase
    accepts: MessageType
    emits: dict[Adversary, MessageType | None]
    then: dict[Adversary, Phase]


_BOTH = (Adversary.SEMI_HONEST, Adversary.ACTIVE)

CLIENT: tuple[ClientRow, ...] = (
    ClientRow(
        phase=Phase.ADVERTISE_KEYS,
        accepts=None,
        emits=MessageType.ADVERTISE_KEYS,
        then=dict.fromkeys(_BOTH, Phase.SHARE_KEYS),
    ),
    ClientRow(
        phase=Phase.SHARE_KEYS,
        accepts=MessageType.KEY_ROSTER,
        emits=MessageType.ENCRYPTED_SHARES,
        then=dict.fromkeys(_BOTH, Phase.MASKED_INPUT_COLLECTION),
    ),
    ClientRow(
        phase=Phase.MASKED_INPUT_COLLECTION,
        accepts=MessageType.SHARE_DELIVERY,
        emits=MessageType.MASKED_INPUT,
        then={
            Adversary.SEMI_HONEST: Phase.UNMASKING,
            Adversary.ACTIVE: Phase.CONSISTENCY_CHECK,
        },
    ),
    ClientRow(
        phase=Phase.CONSISTENCY_CHECK,
        accepts=MessageType.SURVIVOR_NOTICE,
        emits=MessageType.SURVIVOR_SIGNATURE,
        then={Adversary.ACTIVE: Phase.UNMASKING},
    ),
    ClientRow(
        phase=Phase.UNMASKING,
        accepts=MessageType.UNMASK_REQUEST,
        emits=MessageType.UNMASK_SHARES,
        then=dict.fromkeys(_BOTH, Phase.DONE),
    ),
)

SERVER_PHASES: tuple[ServerRow, ...] = (
    ServerRow(
        phase=Phase.ADVERTISE_KEYS,
        accepts=MessageType.ADVERTISE_KEYS,
        emits=dict.fromkeys(_BOTH, MessageType.KEY_ROSTER),
        then=dict.fromkeys(_BOTH, Phase.SHARE_KEYS),
    ),
    ServerRow(
        phase=Phase.SHARE_KEYS,
        accepts=MessageType.ENCRYPTED_SHARES,
        emits=dict.fromkeys(_BOTH, MessageType.SHARE_DELIVERY),
        then=dict.fromkeys(_BOTH, Phase.MASKED_INPUT_COLLECTION),
    ),
    ServerRow(
        phase=Phase.MASKED_INPUT_COLLECTION,
        accepts=MessageType.MASKED_INPUT,
        emits={
            Adversary.SEMI_HONEST: MessageType.UNMASK_REQUEST,
            Adversary.ACTIVE: MessageType.SURVIVOR_NOTICE,
        },
        then={
            Adversary.SEMI_HONEST: Phase.UNMASKING,
            Adversary.ACTIVE: Phase.CONSISTENCY_CHECK,
        },
    ),
    ServerRow(
        phase=Phase.CONSISTENCY_CHECK,
        accepts=MessageType.SURVIVOR_SIGNATURE,
        emits={Adversary.ACTIVE: MessageType.UNMASK_REQUEST},
        then={Adversary.ACTIVE: Phase.UNMASKING},
    ),
    ServerRow(
        phase=Phase.UNMASKING,
        accepts=MessageType.UNMASK_SHARES,
        emits=dict.fromkeys(_BOTH, None),
        then=dict.fromkeys(_BOTH, Phase.DONE),
    ),
)

_CLIENT_BY_PHASE = {row.phase: row for row in CLIENT}
_SERVER_BY_PHASE = {row.phase: row for row in SERVER_PHASES}


def client_row(phase: Phase) -> ClientRow | None:
    """The client's row of a phase; None for the three that accept nothing."""
    return _CLIENT_BY_PHASE.get(phase)


def server_row(phase: Phase) -> ServerRow | None:
    """The server's row of a phase; None for the three that accept nothing."""
    return _SERVER_BY_PHASE.get(phase)


def next_client_phase(phase: Phase, adversary: Adversary) -> Phase:
    """Where the client goes after emitting the row's message."""
    return _CLIENT_BY_PHASE[phase].then[adversary]


def next_server_phase(phase: Phase, adversary: Adversary) -> Phase:
    """Where the server goes after closing the phase."""
    return _SERVER_BY_PHASE[phase].then[adversary]


def _cell(values: dict[Adversary, Phase] | dict[Adversary, MessageType | None]) -> str:
    """Semi-honest / active, or one word if they agree."""
    words = []
    for adversary in _BOTH:
        value = values.get(adversary)
        words.append(f"`{value.name}`" if value is not None else "-")
    return words[0] if words[0] == words[1] else " / ".join(words)


def client_table() -> str:
    """The client's rows as a Markdown table (the documentation contains exactly this)."""
    lines = [
        "| client phase | accepts | emits | next (semi-honest / active) |",
        "|---|---|---|---|",
    ]
    for row in CLIENT:
        accepts = f"`{row.accepts.name}`" if row.accepts is not None else "`start()`"
        lines.append(f"| `{row.phase.name}` | {accepts} | `{row.emits.name}` | {_cell(row.then)} |")
    return "\n".join(lines)


def server_table() -> str:
    """The server's rows as a Markdown table (the documentation contains exactly this)."""
    lines = [
        "| server phase | collects | emits on `close_phase()` | next (semi-honest / active) |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{row.phase.name}` | `{row.accepts.name}` | {_cell(row.emits)} | {_cell(row.then)} |"
        for row in SERVER_PHASES
    ]
    return "\n".join(lines)
