"""The two machines as tables: which message is legal in which phase, and what follows.

Bonawitz et al. 2017, figure 4. The machines, the documentation and the tests read these rows and
nothing else decides an order of messages. The rows of the active adversary are part of the table;
which adversaries a machine implements is the machine's own business.
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


CLIENT: tuple[ClientRow[Phase, MessageType], ...] = (
    ClientRow(
        phase=Phase.ADVERTISE_KEYS,
        accepts=None,
        emits=MessageType.ADVERTISE_KEYS,
        then=dict.fromkeys(BOTH, Phase.SHARE_KEYS),
    ),
    ClientRow(
        phase=Phase.SHARE_KEYS,
        accepts=MessageType.KEY_ROSTER,
        emits=MessageType.ENCRYPTED_SHARES,
        then=dict.fromkeys(BOTH, Phase.MASKED_INPUT_COLLECTION),
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
        then=dict.fromkeys(BOTH, Phase.DONE),
    ),
)

SERVER_PHASES: tuple[ServerRow[Phase, MessageType], ...] = (
    ServerRow(
        phase=Phase.ADVERTISE_KEYS,
        accepts=MessageType.ADVERTISE_KEYS,
        emits=dict.fromkeys(BOTH, MessageType.KEY_ROSTER),
        then=dict.fromkeys(BOTH, Phase.SHARE_KEYS),
    ),
    ServerRow(
        phase=Phase.SHARE_KEYS,
        accepts=MessageType.ENCRYPTED_SHARES,
        emits=dict.fromkeys(BOTH, MessageType.SHARE_DELIVERY),
        then=dict.fromkeys(BOTH, Phase.MASKED_INPUT_COLLECTION),
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
        emits=dict.fromkeys(BOTH, None),
        then=dict.fromkeys(BOTH, Phase.DONE),
    ),
)

_TABLES = Tables(CLIENT, SERVER_PHASES)
client_row, server_row = _TABLES.client_row, _TABLES.server_row
next_client_phase, next_server_phase = _TABLES.next_client_phase, _TABLES.next_server_phase
client_table, server_table = _TABLES.client_table, _TABLES.server_table
