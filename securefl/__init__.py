"""SecureFL: federated learning that is private for real. Start here.

One client's update lives through these stages, and the folders stand in this order:

    train -> clip -> encode -> mask -> wire -> server sum -> recover -> decode -> apply -> record

* ``securefl.pipeline``: one private round, top to bottom, in one function;
* ``securefl.training``: train and apply (needs the extra ``train``);
* ``securefl.encoding``: floats to integers modulo m, and back;
* ``securefl.protocols``: sans-IO machines that mask, sum and recover; no floats, no sockets;
* ``securefl.simulation``: many clients on one machine, and :func:`secure_sum`;
* ``accounting``: what every release costs, and the ledger that it is charged to.

Importing this package loads none of torch, opacus, flwr, gmpy2, phe or matplotlib: names below
come from light modules, or are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from securefl.errors import (
    BelowThreshold,
    CheckpointError,
    ConfigurationError,
    DataNotFound,
    LocalProtocolError,
    PeerProtocolError,
    ProtocolError,
    SecureFLError,
    WireError,
)

if TYPE_CHECKING:
    from securefl.encoding.codec import CodecSpec, UpdateCodec
    from securefl.modular import RingVector
    from securefl.pipeline import Participant, private_round
    from securefl.primitives.signing import IdentityDirectory, IdentityKey
    from securefl.protocols.secagg import (
        ClientPolicy,
        SecAggClient,
        SecAggParams,
        SecAggServer,
    )
    from securefl.round import AggregateSum, Cohort, RoundConfig, ThreatModel
    from securefl.simulation.secure_sum import SecureSum, secure_sum

__version__ = "0.1.0"

_LAZY = {
    "AggregateSum": "securefl.round",
    "ClientPolicy": "securefl.protocols.secagg",
    "CodecSpec": "securefl.encoding.codec",
    "Cohort": "securefl.round",
    "IdentityDirectory": "securefl.primitives.signing",
    "IdentityKey": "securefl.primitives.signing",
    "Participant": "securefl.pipeline",
    "RingVector": "securefl.modular",
    "RoundConfig": "securefl.round",
    "SecAggClient": "securefl.protocols.secagg",
    "SecAggParams": "securefl.protocols.secagg",
    "SecAggServer": "securefl.protocols.secagg",
    "SecureSum": "securefl.simulation.secure_sum",
    "ThreatModel": "securefl.round",
    "UpdateCodec": "securefl.encoding.codec",
    "private_round": "securefl.pipeline",
    "secure_sum": "securefl.simulation.secure_sum",
}

__all__ = [
    "AggregateSum",
    "BelowThreshold",
    "CheckpointError",
    "ClientPolicy",
    "CodecSpec",
    "Cohort",
    "ConfigurationError",
    "DataNotFound",
    "IdentityDirectory",
    "IdentityKey",
    "LocalProtocolError",
    "Participant",
    "PeerProtocolError",
    "ProtocolError",
    "RingVector",
    "RoundConfig",
    "SecAggClient",
    "SecAggParams",
    "SecAggServer",
    "SecureFLError",
    "SecureSum",
    "ThreatModel",
    "UpdateCodec",
    "WireError",
    "__version__",
    "private_round",
    "secure_sum",
]


def __getattr__(name: str) -> Any:
    try:
        module = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module 'securefl' has no attribute {name!r}") from None
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
