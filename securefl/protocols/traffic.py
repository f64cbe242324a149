"""What a session costs one client in bytes, whatever the protocol.

Each protocol's ``sizes`` module fills a :class:`Traffic` from its own messages. This module knows
none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["Traffic", "expansion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes of one client's frames, headers and signatures included.

    Attributes:
        upload, download: message name -> bytes of its one frame (or of all its frames, where there
            are several), in the protocol's order.
    """

    upload: MappingProxyType[str, int]
    download: MappingProxyType[str, int]

    @property
    def upload_bytes(self) -> int:
        """All that the client sends."""
        return sum(self.upload.values())

    @property
    def download_bytes(self) -> int:
        """All that the client receives."""
        return sum(self.download.values())


def expansion(bytes_of: Traffic, *, length: int, input_bits: int) -> float:
    """(up + down) over the ``length · input_bits`` bits of the plain input.

    Bonawitz et al. 2017, section 7.2, measure what the client sends and receives against sending
    its vector in the clear.
    """
    return 8 * (bytes_of.upload_bytes + bytes_of.download_bytes) / (length * input_bits)
