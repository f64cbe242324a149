"""What the server sent and received, on disk: the only thing that an attack may read.

Programs write what the in-memory network recorded and throw the machines away; attacks start from
the file. So an attack cannot look into a client by accident. Format: the magic, then per frame
u8 direction, u8 length of the phase's name and the name, u32 sender, u32 recipient, u64 length and
the frame; little-endian, nothing after the last frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from securefl.round import SERVER, ClientId
from securefl.simulation.network import Direction, Envelope

__all__ = ["plain_update", "plain_vector", "read_transcript", "write_transcript"]

MAGIC = b"securefl transcript 1\n"
_HEAD = struct.Struct("<BB")
_REST = struct.Struct("<IIQ")
_DIRECTIONS = tuple(Direction)
PLAIN = "plain_update"
"""The phase of an update that goes to the server as it is, without secure aggregation."""


def write_transcript(path: Path, envelopes: Iterable[Envelope]) -> Path:
    """Writes the frames in their order. Returns the path."""
    with path.open("wb") as out:
        out.write(MAGIC)
        for e in envelopes:
            phase = e.phase.encode()
            out.write(_HEAD.pack(_DIRECTIONS.index(e.direction), len(phase)) + phase)
            out.write(_REST.pack(e.sender, e.recipient, len(e.frame)))
            out.write(e.frame)
    return path


def read_transcript(path: Path) -> tuple[Envelope, ...]:
    """The frames again. Raises ValueError for bytes that :func:`write_transcript` never wrote."""
    raw = memoryview(path.read_bytes())
    if bytes(raw[: len(MAGIC)]) != MAGIC:
        raise ValueError(f"{path} is no transcript: expected {MAGIC!r} at its start")
    at = len(MAGIC)
    found: list[Envelope] = []

    def take(size: int) -> memoryview:
        nonlocal at
        if at + size > len(raw):
            raise ValueError(f"{path} ends in the middle of frame {len(found)}")
        at += size
        return raw[at - size : at]

    while at < len(raw):
        direction, length = _HEAD.unpack(take(_HEAD.size))
        if direction >= len(_DIRECTIONS):
            raise ValueError(f"{path}, frame {len(found)}: unknown direction {direction}")
        phase = bytes(take(length)).decode()
        sender, recipient, size = _REST.unpack(take(_REST.size))
        found.append(
            Envelope(
                phase=phase,
                direction=_DIRECTIONS[direction],
                sender=ClientId(sender),
                recipient=ClientId(recipient),
                frame=bytes(take(size)),
            )
        )
    return tuple(found)


def plain_update(client: int, vector: ArrayLike) -> Envelope:
    """An update sent without secure aggregation, for the undefended side: float32 on the wire."""
    return Envelope(
        phase=PLAIN,
        direction=Direction.UP,
        sender=ClientId(client),
        recipient=SERVER,
        frame=np.ascontiguousarray(vector, dtype="<f4").tobytes(),
    )


def plain_vector(envelope: Envelope) -> NDArray[np.float32]:
    """What :func:`plain_update` put on the wire. Raises ValueError for any other frame."""
    if envelope.phase != PLAIN or len(envelope.frame) % 4:
        raise ValueError(f"expected a frame of phase {PLAIN!r}, found {envelope.phase!r}")
    return np.frombuffer(envelope.frame, dtype="<f4")
