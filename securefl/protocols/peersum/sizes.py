"""How many bytes a session costs a peer: every message, frame by frame.

The formulas are those of docs/reference/wire-format.md: a header of 60 bytes, the body, and 64
bytes of signature behind every frame. They follow from counts alone, so a session can be priced
before anybody has a key. This module knows no message's content; a test compares it with the frames
of real sessions.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from securefl.errors import ConfigurationError
from securefl.protocols.traffic import Traffic
from securefl.wire import HEADER_BYTES, SIGNATURE_BYTES, packed_bytes

__all__ = ["SessionShape", "traffic"]

_KEY = 32
_TAG = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionShape:
    """The counts that decide how long messages are.

    Attributes:
        n: cohort size, at least 3.
        m: entries of the vector.

    Raises:
        ConfigurationError: if a number is out of range.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if self.n < 3 or self.m < 0:
            raise ConfigurationError(
                f"a session has n >= 3 peers and m >= 0, found n={self.n}, m={self.m}"
            )


def traffic(shape: SessionShape, *, dropped: int = 0) -> Traffic:
    """What one peer that stays to the end sends and receives.

    Every frame goes point to point: what one sends n - 1 times, it receives n - 1 times.

    Args:
        shape: the session's counts.
        dropped: how many others dealt their shares and vanished before their report. Frames are
            still sent to them.

    Raises:
        ConfigurationError: if they leave fewer than two.

    >>> traffic(SessionShape(n=10, m=100_000)).upload_bytes
    7212564
    """
    n, m, alive = shape.n, shape.m, shape.n - dropped
    if not 0 <= dropped <= n - 2:
        raise ConfigurationError(f"{dropped} dropouts of {n} peers leave fewer than two")
    everybody = packed_bytes(n, 1)
    bodies = {
        "AdvertiseKeys": _KEY,
        "ShareInput": 4 * m + _TAG,
        "Report": everybody,
        "Confirm": everybody + SIGNATURE_BYTES,
        "RevealSum": 2 * everybody + SIGNATURE_BYTES * alive + 4 * m + _TAG,
    }
    frames = {name: HEADER_BYTES + body + SIGNATURE_BYTES for name, body in bodies.items()}
    early = ("AdvertiseKeys", "ShareInput")
    return Traffic(
        upload=MappingProxyType({name: (n - 1) * size for name, size in frames.items()}),
        download=MappingProxyType(
            {name: (n - 1 if name in early else alive - 1) * size for name, size in frames.items()}
        ),
    )
