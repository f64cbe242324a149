"""How many bytes a session costs a client: every message of every variant, frame by frame.

The formulas are those of docs/reference/wire-format.md: a header of 60 bytes, the body, and in the
active variant 64 bytes of signature behind each frame of a client. They follow from counts alone
(cohort, neighbours, survivors, entries), so a round can be priced before anybody has a key. This
module knows no message's content; a test compares it with the frames of real sessions.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from securefl.errors import ConfigurationError
from securefl.protocols.traffic import Traffic, expansion
from securefl.round import Adversary, Layout
from securefl.wire import HEADER_BYTES, SIGNATURE_BYTES, packed_bytes

__all__ = ["SessionShape", "Traffic", "audit_path_length", "expansion", "traffic"]

_ID = _COUNT = 4
_KEY = _HASH = 32
_B_SHARE = 20
_S_SHARE = 36
_CIPHERTEXT = _B_SHARE + _S_SHARE + 16
_MOST_BODY = (1 << 32) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionShape:
    """The counts that decide how long messages are.

    Attributes:
        n: cohort size, at least 3; everybody is in U1.
        k: neighbours per client, 2 to n - 1; n - 1 is the complete graph.
        m: entries of the vector.
        b: bits per entry in the ring, 1..64.
        adversary: the active variant signs client frames and has a consistency check.
        layout: with ``ALL`` a client answers with a share of its own, too (complete graph only).

    Raises:
        ConfigurationError: if a number is out of range, or the vector fits no frame.
    """

    n: int
    k: int
    m: int
    b: int
    adversary: Adversary = Adversary.SEMI_HONEST
    layout: Layout = Layout.OTHERS

    def __post_init__(self) -> None:
        if self.n < 3 or not 2 <= self.k < self.n:
            raise ConfigurationError(
                f"a session needs n >= 3 clients of 2 to n-1 neighbours, found n={self.n}, "
                f"k={self.k}"
            )
        if self.layout is Layout.ALL and not self.complete:
            raise ConfigurationError(
                f"layout ALL needs the complete graph, found k={self.k} of {self.n - 1}"
            )
        if self.m < 0 or not 1 <= self.b <= 64:
            raise ConfigurationError(
                f"a vector has m >= 0 entries of 1 to 64 bits, found m={self.m}, b={self.b}"
            )
        if packed_bytes(self.m, self.b) > _MOST_BODY:
            raise ConfigurationError(
                f"m={self.m} entries of b={self.b} bits do not fit one frame of {_MOST_BODY} bytes"
            )

    @property
    def complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self.k == self.n - 1


def audit_path_length(index: int, size: int) -> int:
    """Hashes in the audit path of leaf ``index`` in a Merkle tree of ``size`` leaves (RFC 6962).

    At most ⌈log2 size⌉; less for the last leaves of a tree that is not full.

    Raises:
        ConfigurationError: if there is no such leaf.

    >>> [audit_path_length(i, 5) for i in range(5)]
    [3, 3, 3, 3, 1]
    """
    if not 0 <= index < size:
        raise ConfigurationError(f"a tree of {size} leaves has no leaf {index}")
    length = 0
    while size > 1:
        left = 1 << (size - 1).bit_length() - 1  # the largest power of two below size
        index, size = (index, left) if index < left else (index - left, size - left)
        length += 1
    return length


def traffic(
    shape: SessionShape, *, dropped: int = 0, path_lengths: tuple[int, ...] | None = None
) -> Traffic:
    """What one client that stays to the end sends and receives.

    Args:
        shape: the session's counts.
        dropped: how many of this client's neighbours dealt their shares and vanished before their
            masked input. 0 is the figure of the papers' communication tables; each one more is
            answered with a longer share, and in the active variant signs nothing.
        path_lengths: hashes in the audit paths of the k + 1 roster entries of a Harary graph; see
            :func:`audit_path_length`. Default: ⌈log2 n⌉ each, which is exact where n is a power of
            two and otherwise the most it can be.

    Raises:
        ConfigurationError: for more dropouts than neighbours, or not k + 1 path lengths.

    >>> both = traffic(SessionShape(n=1024, k=1023, m=2**20, b=26))
    >>> both.upload_bytes, both.download_bytes
    (3502456, 143732)
    """
    if not 0 <= dropped <= shape.k:
        raise ConfigurationError(f"{dropped} of {shape.k} neighbours cannot be dropped")
    alive = shape.k - dropped
    signature = SIGNATURE_BYTES if shape.adversary is Adversary.ACTIVE else 0
    up = {
        "AdvertiseKeys": 2 * _KEY + _HASH,
        "EncryptedShares": _COUNT + _CIPHERTEXT * shape.k,
        "MaskedInput": packed_bytes(shape.m, shape.b),
    }
    down = {
        "KeyRoster": _roster(shape, path_lengths),
        "ShareDelivery": packed_bytes(shape.k, 1) + _CIPHERTEXT * shape.k,
    }
    if shape.adversary is Adversary.ACTIVE:
        up["SurvivorSignature"] = SIGNATURE_BYTES
        down["SurvivorNotice"] = packed_bytes(shape.n, 1)
        down["UnmaskRequest"] = _COUNT + (_ID + SIGNATURE_BYTES) * alive
    else:
        down["UnmaskRequest"] = _COUNT + packed_bytes(shape.k, 1)
    own = _B_SHARE if shape.layout is Layout.ALL else 0
    up["UnmaskShares"] = packed_bytes(shape.k, 1) + own + _B_SHARE * alive + _S_SHARE * dropped
    return Traffic(
        upload=MappingProxyType({k: HEADER_BYTES + v + signature for k, v in up.items()}),
        download=MappingProxyType({k: HEADER_BYTES + v for k, v in down.items()}),
    )


def _roster(shape: SessionShape, path_lengths: tuple[int, ...] | None) -> int:
    """Body of KeyRoster: everybody's keys, or the own and the neighbours' with audit paths."""
    entry = _ID + 2 * _KEY
    if shape.adversary is Adversary.ACTIVE:
        entry += _HASH + SIGNATURE_BYTES
    if shape.complete:
        return _COUNT + entry * shape.n
    if path_lengths is None:
        path_lengths = ((shape.n - 1).bit_length(),) * (shape.k + 1)
    if len(path_lengths) != shape.k + 1:
        raise ConfigurationError(
            f"a roster of {shape.k + 1} entries has as many audit paths, found {len(path_lengths)}"
        )
    # Size of U1, root, count; per entry its leaf index (4), its path's length (1) and its path.
    return _COUNT + _HASH + _COUNT + (entry + 5) * (shape.k + 1) + _HASH * sum(path_lengths)
