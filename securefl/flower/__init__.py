"""Secure aggregation in a Flower app, in a few changed lines.

On the clients ``SecureClientApp`` takes the place of ``flwr.clientapp.ClientApp``; on the server
``SecureGrid(grid, strategy, SecAggConfig(...))`` takes the place of the grid. Flower carries the
messages, SecureFL decides what is in them. docs/how-to/flower.md goes from an existing app to a
private one; docs/security/limitations.md says what this cannot protect against, first of all that
the code which runs on a node arrives from the server's side.

Only this package and ``accounting.interop.flower`` know Flower, through its public modules.
"""

from __future__ import annotations

import warnings
from importlib import import_module, metadata, util
from typing import TYPE_CHECKING, Any

if util.find_spec("flwr") is None:
    raise ImportError(
        "securefl.flower needs Flower: install the extra, pip install 'securefl[flower]'",
        name="flwr",
    )

if TYPE_CHECKING:
    from securefl.flower.client import SecureClientApp, secagg_mod
    from securefl.flower.config import DistributedDP, OnAbort, SecAggConfig, Timing
    from securefl.flower.errors import Code
    from securefl.flower.grid import RoundRecord, SecureGrid
    from securefl.flower.plan import Weighting
    from securefl.flower.policy import SumProtocol

# A node starts a new process for every message: it loads the client's side only.
_LAZY = {
    "Code": "errors",
    "DistributedDP": "config",
    "OnAbort": "config",
    "RoundRecord": "grid",
    "SecAggConfig": "config",
    "SecureClientApp": "client",
    "SecureGrid": "grid",
    "SumProtocol": "policy",
    "Timing": "config",
    "Weighting": "plan",
    "secagg_mod": "client",
}

__all__ = [
    "TESTED_MINORS",
    "Code",
    "DistributedDP",
    "OnAbort",
    "RoundRecord",
    "SecAggConfig",
    "SecureClientApp",
    "SecureGrid",
    "SumProtocol",
    "Timing",
    "Weighting",
    "secagg_mod",
]

TESTED_MINORS = ("1.41",)
"""The versions of Flower that the tests were run with."""

_VERSION = metadata.version("flwr")
if ".".join(_VERSION.split(".")[:2]) not in TESTED_MINORS:
    warnings.warn(
        f"securefl.flower was tested with Flower {', '.join(TESTED_MINORS)}, found {_VERSION}; "
        "run the tests of your app before you rely on it",
        stacklevel=2,
    )


def __getattr__(name: str) -> Any:
    try:
        module = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module 'securefl.flower' has no attribute {name!r}") from None
    return getattr(import_module(f"securefl.flower.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
