"""The two machines as tables: which message is legal in which phase, and what follows.

So et al. 2022, algorithm 1, with a consistency check against a server that lies. The machines, the
documentation and the tests read these rows and nothing else decides an order of messages. A row's
``gathers`` is what may come any number of times before the message that ends the phase: the coded
shares of the others, which the server passes on one by one and does not keep.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

from securefl.protocols.tables import BOTH, ClientRow, ServerRow, Tables
from securefl.round import Adversary

__all__ = [
    "CLIENT",
    "SERVER_PHASES",
    "MessageType",
    "Phase",
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


_AFTER_INPUT = {
    Adversary.SEMI_HONEST: Phase.RECOVERY,
    Adversary.ACTIVE: Phase.CONSISTENCY_CHECK,
}

CLIENT: tuple[ClientRow[Phase, MessageType], ...] = (
    ClientRow(
        phase=Phase.ADVERTISE_KEYS,
        accepts=None,
        emits=MessageType.ADVERTISE_KEYS,
        then=dict.fromkeys(BOTH, Phase.SHARE_MASKS),
    ),
    ClientRow(
        phase=Phase.SHARE_MASKS,
        accepts=MessageType.KEY_ROSTER,
        emits=MessageType.ENCODED_SHARES,
        then=dict.fromkeys(BOTH, Phase.MASKED_INPUT_COLLECTION),
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
        then=dict.fromkeys(BOTH, Phase.DONE),
    ),
)

SERVER_PHASES: tuple[ServerRow[Phase, MessageType], ...] = (
    ServerRow(
        phase=Phase.ADVERTISE_KEYS,
        accepts=MessageType.ADVERTISE_KEYS,
        emits=dict.fromkeys(BOTH, MessageType.KEY_ROSTER),
        then=dict.fromkeys(BOTH, Phase.SHARE_MASKS),
    ),
    ServerRow(
        phase=Phase.SHARE_MASKS,
        accepts=MessageType.ENCODED_SHARES,
        relays=MessageType.ENCODED_SHARE,
        emits=dict.fromkeys(BOTH, MessageType.SHARE_CLOSE),
        then=dict.fromkeys(BOTH, Phase.MASKED_INPUT_COLLECTION),
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
        emits=dict.fromkeys(BOTH, None),
        then=dict.fromkeys(BOTH, Phase.DONE),
    ),
)

_TABLES = Tables(CLIENT, SERVER_PHASES)
client_row, server_row = _TABLES.client_row, _TABLES.server_row
next_client_phase, next_server_phase = _TABLES.next_client_phase, _TABLES.next_server_phase
client_table, server_table = _TABLES.client_table, _TABLES.server_table
