"""The two machines as tables: which message is legal in which phase, and what follows.

So et al. 2022, algorithm 1, with a consistency check against a server that lies. The machines, the
documentation and the tests read these rows and nothing else decides an order of messages. A row's
``gathers`` is what may come any number of times before the message that ends the phase: the coded
shares of the others, which the server passes on one by one and does not keep.
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
    ENCODED_SHARES = 3
    ENCODED_SHARE = 4
    MASKED_INPUT = 5
    SURVIVOR_NOTICE = 6
    SURVIVOR_SIGNATURE = 7
    RECOVERY_REQUEST = 8
    AGGREGATE_SHARE = 9
    SHARE_CLOSE = 10
    ABORT = 255


class Phase(StrEnum):
    """Steps of the protocol; the value is the lower-case name that errors and drivers use."""

    ADVERTISE_KEYS = "advertise_keys"
    SHARE_MASKS = "share_masks"
    MASKED_INPUT_COLLECTION = "masked_input_collection"
    CONSISTENCY_CHECK = "consistency_check"
    RECOVERY = "recovery"
    DONE = "done"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRow:
    """One phase of the client.

    Attributes:
        phase: where it is.
        gathers: what it takes before, once per other client; None for nothing.
        accepts: the frame that moves it on; None where a call (``start()``) does.
        emits: what it sends then.
        then: next phase per adversary; an adversary that is missing never comes here.
    """

    phase: Phase
    gathers: MessageType | None = None
    accepts: MessageType | None
    emits: MessageType
    then: dict[Adversary, Phase]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRow:
    """One phase of the server.

    Attributes:
        phase: where it is.
        accepts: what it collects.
        relays: what it sends to the other clients at once, per message collected; None for nothing.
        emits: what it sends when it closes the phase.
        then: next phase per adversary; an adversary that is missing never comes here.
    """

    phase: Phase
    accepts: MessageType
    relays: MessageType | None = None
    emits: dict[Adversary, MessageType | None]
    then: dict[Adversary, Phase]


_BOTH = (Adversary.SEMI_HONEST, Adversary.ACTIVE)
_AFTER_INPUT = {
    Adversary.SEMI_HONEST: Phase.RECOVERY,
    Adversary.ACTIVE: Phase.CONSISTENCY_CHECK,
}

CLIENT: tuple[ClientRow, ...] = (
    ClientRow(
        phase=Phase.ADVERTISE_KEYS,
        accepts=None,
        emits=MessageType.ADVERTISE_KEYS,
        then=dict.fromkeys(_BOTH, Phase.SHARE_MASKS),
    ),
    ClientRow(
        phase=Phase.SHARE_MASKS,
        accepts=MessageType.KEY_ROSTER,
        emits=MessageType.ENCODED_SHARES,
        then=dict.fromkeys(_BOTH, Phase.MASKED_INPUT_COLLECTION),
    ),
    ClientRow(
        phase=Phase.MASKED_INPUT_COLLECTION,
        gathers=MessageType.ENCODED_SHARE,
        accepts=MessageType.SHARE_CLOSE,
        emits=MessageType.MASKED_INPUT,
        then=_AFTER_INPUT,
    ),
    ClientRow(
        phase=Phase.CONSISTENCY_CHECK,
        accepts=MessageType.SURVIVOR_NOTICE,
        emits=MessageType.SURVIVOR_SIGNATURE,
        then={Adversary.ACTIVE: Phase.RECOVERY},
    ),
    ClientRow(
        phase=Phase.RECOVERY,
        accepts=MessageType.RECOVERY_REQUEST,
        emits=MessageType.AGGREGATE_SHARE,
        then=dict.fromkeys(_BOTH, Phase.DONE),
    ),
)

SERVER_PHASES: tuple[ServerRow, ...] = (
    ServerRow(
        phase=Phase.ADVERTISE_KEYS,
        accepts=MessageType.ADVERTISE_KEYS,
        emits=dict.fromkeys(_BOTH, MessageType.KEY_ROSTER),
        then=dict.fromkeys(_BOTH, Phase.SHARE_MASKS),
    ),
    ServerRow(
        phase=Phase.SHARE_MASKS,
        accepts=MessageType.ENCODED_SHARES,
        relays=MessageType.ENCODED_SHARE,
        emits=dict.fromkeys(_BOTH, MessageType.SHARE_CLOSE),
        then=dict.fromkeys(_BOTH, Phase.MASKED_INPUT_COLLECTION),
    ),
    ServerRow(
        phase=Phase.MASKED_INPUT_COLLECTION,
        accepts=MessageType.MASKED_INPUT,
        emits={
            Adversary.SEMI_HONEST: MessageType.RECOVERY_REQUEST,
            Adversary.ACTIVE: MessageType.SURVIVOR_NOTICE,
        },
        then=_AFTER_INPUT,
    ),
    ServerRow(
        phase=Phase.CONSISTENCY_CHECK,
        accepts=MessageType.SURVIVOR_SIGNATURE,
        emits={Adversary.ACTIVE: MessageType.RECOVERY_REQUEST},
        then={Adversary.ACTIVE: Phase.RECOVERY},
    ),
    ServerRow(
        phase=Phase.RECOVERY,
        accepts=MessageType.AGGREGATE_SHARE,
        emits=dict.fromkeys(_BOTH, None),
        then=dict.fromkeys(_BOTH, Phase.DONE),
    ),
)

_CLIENT_BY_PHASE = {row.phase: row for row in CLIENT}
_SERVER_BY_PHASE = {row.phase: row for row in SERVER_PHASES}


def client_row(phase: Phase) -> ClientRow | None:
    """The client's row of a phase; None for DONE and ABORTED, which accept nothing."""
    return _CLIENT_BY_PHASE.get(phase)


def server_row(phase: Phase) -> ServerRow | None:
    """The server's row of a phase; None for DONE and ABORTED."""
    return _SERVER_BY_PHASE.get(phase)


def next_client_phase(phase: Phase, adversary: Adversary) -> Phase:
    """Where the client goes after emitting the row's message."""
    return _CLIENT_BY_PHASE[phase].then[adversary]


def next_server_phase(phase: Phase, adversary: Adversary) -> Phase:
    """Where the server goes after closing the phase."""
    return _SERVER_BY_PHASE[phase].then[adversary]


def _cell(values: dict[Adversary, Phase] | dict[Adversary, MessageType | None]) -> str:
    """Semi-honest / active, or one word if they agree."""
    found = [values.get(adversary) for adversary in _BOTH]
    words = [f"`{value.name}`" if value is not None else "-" for value in found]
    return words[0] if words[0] == words[1] else " / ".join(words)


def client_table() -> str:
    """The client's rows as a Markdown table (the documentation contains exactly this)."""
    lines = [
        "| client phase | accepts | emits | next (semi-honest / active) |",
        "|---|---|---|---|",
    ]
    for row in CLIENT:
        accepts = f"`{row.accepts.name}`" if row.accepts is not None else "`start()`"
        if row.gathers is not None:
            accepts = f"any `{row.gathers.name}`, then {accepts}"
        lines.append(f"| `{row.phase.name}` | {accepts} | `{row.emits.name}` | {_cell(row.then)} |")
    return "\n".join(lines)


def server_table() -> str:
    """The server's rows as a Markdown table (the documentation contains exactly this)."""
    lines = [
        "| server phase | collects | emits on `close_phase()` | next (semi-honest / active) |",
        "|---|---|---|---|",
    ]
    for row in SERVER_PHASES:
        collects = f"`{row.accepts.name}`"
        if row.relays is not None:
            collects += f", passed on as `{row.relays.name}`"
        emits, then = _cell(row.emits), _cell(row.then)
        lines.append(f"| `{row.phase.name}` | {collects} | {emits} | {then} |")
    return "\n".join(lines)
