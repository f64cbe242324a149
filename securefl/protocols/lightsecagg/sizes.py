"""How many bytes a session costs a client: every message of both variants, frame by frame.

The formulas are those of docs/reference/wire-format.md: a header of 60 bytes, the body, and in the
active variant 64 bytes of signature behind each frame of a client. They follow from counts alone,
so a round can be priced before anybody has a key. This module knows no message's content; a test
compares it with the frames of real sessions.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from securefl.errors import ConfigurationError
from securefl.protocols.lightsecagg.params import block_length
from securefl.protocols.traffic import Traffic
from securefl.round import Adversary
from securefl.wire import HEADER_BYTES, SIGNATURE_BYTES, packed_bytes

__all__ = ["SessionShape", "traffic"]

_ID = _COUNT = 4
_KEY = 32
_TAG = 16
_MOST_BODY = (1 << 32) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionShape:
    """The counts that decide how long messages are.

    Attributes:
        n: cohort size, at least 3; everybody deals shares.
        U: answers that open the sum, T < U <= n.
        T: noise blocks, at least 1.
        m: entries of the vector.
        adversary: the active variant signs client frames and has a consistency check.

    Raises:
        ConfigurationError: if a number is out of range, or the shares or the vector fit no frame.
    """

    n: int
    U: int
    T: int
    m: int
    adversary: Adversary = Adversary.SEMI_HONEST

    def __post_init__(self) -> None:
        if self.n < 3 or not 1 <= self.T < self.U <= self.n or self.m < 0:
            raise ConfigurationError(
                f"a session has n >= 3 clients, 1 <= T < U <= n and m >= 0, found n={self.n}, "
                f"U={self.U}, T={self.T}, m={self.m}"
            )
        longest = max(4 * self.m, _COUNT + (self.n - 1) * (4 * self.share_length + _TAG))
        if longest > _MOST_BODY:
            raise ConfigurationError(
                f"m={self.m} entries for n={self.n} clients need a frame of {longest} bytes, the "
                f"most is {_MOST_BODY}"
            )

    @property
    def share_length(self) -> int:
        """L, entries of a coded share."""
        return block_length(self.m, U=self.U, T=self.T)


def traffic(shape: SessionShape, *, dropped: int = 0) -> Traffic:
    """What one client that stays to the end sends and receives.

    Args:
        shape: the session's counts.
        dropped: how many others dealt their shares and vanished before their masked input. They
            cost nothing: in the active variant they are not there to sign.

    Raises:
        ConfigurationError: for more dropouts than leave U clients.

    >>> both = traffic(SessionShape(n=200, U=140, T=100, m=1_200_000))
    >>> both.upload["EncodedShares"], both.upload["MaskedInput"], both.upload["AggregateShare"]
    (23883248, 4800060, 120060)
    """
    if not 0 <= dropped <= shape.n - shape.U:
        raise ConfigurationError(
            f"{dropped} dropouts of {shape.n} clients do not leave the U={shape.U} that are needed"
        )
    n, survivors = shape.n, shape.n - dropped
    share = 4 * shape.share_length
    everybody = packed_bytes(n, 1)
    active = shape.adversary is Adversary.ACTIVE
    signature = SIGNATURE_BYTES if active else 0
    up = {
        "AdvertiseKeys": _KEY,
        "EncodedShares": _COUNT + (n - 1) * (share + _TAG),
        "MaskedInput": 4 * shape.m,
    }
    down = {
        "KeyRoster": _COUNT + (_ID + _KEY + signature) * n,
        "ShareClose": everybody,
    }
    if active:
        up["SurvivorSignature"] = SIGNATURE_BYTES
        down["SurvivorNotice"] = everybody
        down["RecoveryRequest"] = _COUNT + (_ID + SIGNATURE_BYTES) * (survivors - 1)
    else:
        down["RecoveryRequest"] = everybody
    up["AggregateShare"] = share
    frames = {name: HEADER_BYTES + body for name, body in down.items()}
    frames["EncodedShare"] = (n - 1) * (HEADER_BYTES + _ID + share + _TAG)  # one frame per dealer
    return Traffic(
        upload=MappingProxyType({k: HEADER_BYTES + v + signature for k, v in up.items()}),
        download=MappingProxyType(frames),
    )
