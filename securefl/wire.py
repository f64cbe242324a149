"""The wire: the 60-byte frame header, strict readers and writers, bitmaps and bit packing.

Everything is little-endian and has exactly one encoding: unknown versions, set reserved or padding
bits, wrong lengths and left-over bytes raise :class:`~securefl.errors.WireError`, and every
announced length is checked against the bytes that are really there before anything is allocated.
This module knows no message; each protocol's ``messages.py`` builds its bodies from these parts.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from securefl.errors import WireError
from securefl.modular import Words
from securefl.round import SUITE, WIRE_VERSION, ClientId, Protocol, RoundId

__all__ = [
    "FLAG_SIGNED",
    "HEADER_BYTES",
    "SIGNATURE_BYTES",
    "Buffer",
    "Frame",
    "Reader",
    "add_packed",
    "decode_frame",
    "encode_frame",
    "pack_bitmap",
    "pack_words",
    "packed_bytes",
    "signed_content",
    "unpack_words",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

_HEADER = struct.Struct("<4sBBBBHHIQ32sI")
HEADER_BYTES = _HEADER.size
SIGNATURE_BYTES = 64
FLAG_SIGNED = 1
_MAGIC = b"SFL1"
_U32 = struct.Struct("<I")
_U16 = struct.Struct("<H")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One message with its header.

    Attributes:
        protocol: which protocol's messages.
        type: message number, meaning given by the protocol; u8.
        sender: client id, or the server's reserved id; u32. Only a claim.
        round_id: u64.
        session: 32 bytes, configuration digest or session id.
        body: the message's bytes (a view, not a copy, after decoding).
        signature: 64 bytes if the frame is signed, else empty.
    """

    protocol: Protocol
    type: int
    sender: ClientId
    round_id: RoundId
    session: bytes
    body: Buffer
    signature: bytes = b""


def _header(frame: Frame, flags: int) -> bytes:
    return _HEADER.pack(
        _MAGIC,
        WIRE_VERSION,
        frame.protocol,
        frame.type,
        flags,
        SUITE,
        0,
        frame.sender,
        frame.round_id,
        frame.session,
        len(frame.body),
    )


def encode_frame(frame: Frame) -> bytes:
    """The bytes of a frame: header, body, signature if there is one."""
    flags = FLAG_SIGNED if frame.signature else 0
    return b"".join((_header(frame, flags), frame.body, frame.signature))


def signed_content(frame: Frame) -> bytes:
    """Header and body as a signature covers them: the header already says that one follows."""
    return b"".join((_header(frame, FLAG_SIGNED), frame.body))


def decode_frame(data: Buffer) -> Frame:
    """The frame in these bytes, all of them.

    Raises:
        WireError: wrong magic, unknown version, protocol, flag or suite, a set reserved field, or
            a length that is not exactly the announced one.
    """
    if len(data) < HEADER_BYTES:
        raise WireError(f"a frame has at least {HEADER_BYTES} bytes, found {len(data)}")
    magic, version, protocol, kind, flags, suite, zero, sender, round_id, session, size = (
        _HEADER.unpack_from(data)
    )
    if magic != _MAGIC:
        raise WireError("not a SecureFL frame: wrong magic")
    if version != WIRE_VERSION:
        raise WireError(f"this library reads wire version {WIRE_VERSION}, found {version}")
    if protocol not in Protocol.__members__.values():
        raise WireError(f"unknown protocol {protocol}")
    if flags & ~FLAG_SIGNED or suite != SUITE or zero:
        raise WireError(f"unknown flags {flags:#x}, suite {suite} or reserved field {zero}")
    end = HEADER_BYTES + size
    expected = end + (SIGNATURE_BYTES if flags & FLAG_SIGNED else 0)
    if len(data) != expected:
        raise WireError(f"the header announces a frame of {expected} bytes, found {len(data)}")
    view = memoryview(data)
    return Frame(
        protocol=Protocol(protocol),
        type=kind,
        sender=ClientId(sender),
        round_id=RoundId(round_id),
        session=session,
        body=view[HEADER_BYTES:end],
        signature=bytes(view[end:]),
    )


class Reader:
    """Reads a body from front to back and refuses to run past its end or to stop before it."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)
        self._position = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._position

    def take(self, size: int) -> memoryview:
        """The next ``size`` bytes. Raises WireError if there are fewer."""
        if size > self.left:
            raise WireError(f"{size} more bytes were announced, {self.left} are left")
        start = self._position
        self._position += size
        return self._data[start : self._position]

    def u16(self) -> int:
        """The next two bytes as a number."""
        return int(_U16.unpack(self.take(2))[0])

    def u32(self) -> int:
        """The next four bytes as a number."""
        return int(_U32.unpack(self.take(4))[0])

    def bitmap(self, bits: int) -> NDArray[np.bool_]:
        """A bitmap, bit i = bit i mod 8 of byte i div 8; bool[bits].

        Raises:
            WireError: if it is cut short or a padding bit is set.
        """
        raw = np.frombuffer(self.take((bits + 7) // 8), dtype=np.uint8)
        unpacked = np.unpackbits(raw, bitorder="little")
        if unpacked[bits:].any():
            raise WireError("a padding bit of a bitmap is set")
        return unpacked[:bits].astype(np.bool_)

    def finish(self) -> None:
        """Raises WireError if bytes are left over."""
        if self.left:
            raise WireError(f"{self.left} bytes are left over")


def pack_bitmap(bits: NDArray[np.bool_]) -> bytes:
    """Bits as bytes, least significant bit first, padded with zero bits."""
    return np.packbits(bits, bitorder="little").tobytes()


def packed_bytes(count: int, b: int) -> int:
    """Bytes of ``count`` elements of b bits: ⌈count·b/8⌉."""
    return (count * b + 7) // 8


# Bit packing first joins neighbours in pairs, element by element, into elements of w <= 64 bits.
# Every P = 8 / gcd(w, 8) of these fill w P / 8 whole bytes, so element p of all such groups begins
# at the same bit of a byte. If no element then spans nine bytes, one vector operation per p handles
# all groups through a view of overlapping 64-bit words, byte steps apart. For the four widths that
# remain, runs of L elements that fill W words (L b = 64 W) take one operation for each of L places.
# Work is done in blocks that stay inside the cache, and are large enough that the operations are
# not all overhead.
_BLOCK_ELEMENTS = 1 << 15


class _Layout(NamedTuple):
    """How elements of b bits lie in bytes once they are joined.

    Attributes:
        joins: how often neighbours are joined.
        width: w, bits of a joined element.
        groups: joined elements of one group; a group of them has at least eight bytes.
        size: bytes of a group.
    """

    joins: int
    width: int
    groups: int
    size: int


@cache
def _layout(b: int) -> _Layout | None:
    """The most joins with which every element lies in eight bytes; None if none does."""
    for joins in range((64 // b).bit_length() - 1, -1, -1):
        w = b << joins
        period = 8 // gcd(w, 8)
        if all(p * w % 8 + w <= 64 for p in range(period)):
            # Views of one place must not overlap themselves: eight bytes apart at least.
            period *= -(-8 // (w * period // 8))
            return _Layout(joins, w, period, w * period // 8)
    return None


def _places(raw: NDArray[np.uint8], layout: _Layout, groups: int) -> list[tuple[Any, np.uint64]]:
    """For each element of a group, the words that hold it in all groups, and its first bit."""
    bits = [p * layout.width for p in range(layout.groups)]
    return [
        (
            np.ndarray(
                (groups,), dtype="<u8", buffer=raw.data, offset=bit // 8, strides=(layout.size,)
            ),
            np.uint64(bit % 8),
        )
        for bit in bits
    ]


def _run(b: int) -> tuple[int, int]:
    """(L, W): the shortest run of elements that fills whole words."""
    common = gcd(b, 64)
    return 64 // common, b // common


def _native(b: int) -> str | None:
    """Little-endian dtype if elements of b bits are whole machine words."""
    return {8: "<u1", 16: "<u2", 32: "<u4", 64: "<u8"}.get(b)


def pack_words(values: Words, b: int) -> bytes:
    """Element i at bits [ib, ib+b), least significant bit first; padding bits zero.

    Args:
        values: uint32[m] or uint64[m], every value below 2^b.
        b: bits per element, 1..64.

    Returns:
        ⌈mb/8⌉ bytes.
    """
    native = _native(b)
    if native is not None:
        return values.astype(native, copy=False).tobytes()
    L, _ = _run(b)
    step = max(1, _BLOCK_ELEMENTS // L) * L
    parts = [
        # A block ends with a whole word, but for the last one, which ends with padding.
        _pack_block(piece, b)[: packed_bytes(len(piece), b)]
        for piece in (values[start : start + step] for start in range(0, len(values), step))
    ]
    return b"".join(parts)


def _pack_block(values: Words, b: int) -> bytes:
    layout = _layout(b)
    if layout is None:
        return _pack_runs(values, b)
    groups = -(-len(values) // (layout.groups << layout.joins))
    joined = np.zeros(groups * layout.groups << layout.joins, dtype=np.uint64)
    joined[: len(values)] = values
    for step in range(layout.joins):
        high = joined[1::2] << np.uint64(b << step)
        high |= joined[0::2]
        joined = high
    raw = np.zeros(groups * layout.size + 8, dtype=np.uint8)
    elements = joined.reshape(groups, layout.groups)
    for p, (words, first) in enumerate(_places(raw, layout, groups)):
        np.bitwise_or(words, elements[:, p] << first, out=words)
    return raw[: groups * layout.size].tobytes()


def _unpack_block(data: memoryview, count: int, b: int) -> NDArray[np.uint64]:
    layout = _layout(b)
    if layout is None:
        return _unpack_runs(data, count, b)
    groups = -(-count // (layout.groups << layout.joins))
    raw = np.zeros(groups * layout.size + 8, dtype=np.uint8)
    raw[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    elements = np.empty((groups, layout.groups), dtype=np.uint64)
    for p, (words, first) in enumerate(_places(raw, layout, groups)):
        np.right_shift(words, first, out=elements[:, p])
    joined = elements.reshape(-1)
    joined &= np.uint64((1 << layout.width) - 1)
    for step in reversed(range(layout.joins)):
        halves = np.empty((len(joined), 2), dtype=np.uint64)
        np.bitwise_and(joined, np.uint64((1 << (b << step)) - 1), out=halves[:, 0])
        np.right_shift(joined, np.uint64(b << step), out=halves[:, 1])
        joined = halves.reshape(-1)
    return joined[:count]


def _pack_runs(values: Words, b: int) -> bytes:
    L, W = _run(b)
    runs = -(-len(values) // L)
    places = np.zeros((runs, L), dtype=np.uint64)
    places.reshape(-1)[: len(values)] = values
    places = np.ascontiguousarray(places.T)
    words = np.zeros((W, runs), dtype=np.uint64)
    for j in range(L):
        word, shift = divmod(j * b, 64)
        words[word] |= places[j] << np.uint64(shift)
        if shift + b > 64:
            words[word + 1] |= places[j] >> np.uint64(64 - shift)
    return words.T.astype("<u8").tobytes()


def _unpack_runs(data: memoryview, count: int, b: int) -> NDArray[np.uint64]:
    L, W = _run(b)
    runs = -(-count // L)
    raw = np.zeros(runs * W * 8, dtype=np.uint8)
    raw[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    words = np.ascontiguousarray(raw.view("<u8").reshape(runs, W).T).astype(np.uint64, copy=False)
    mask = np.uint64((1 << b) - 1)
    places = np.empty((L, runs), dtype=np.uint64)
    for j in range(L):
        word, shift = divmod(j * b, 64)
        np.right_shift(words[word], np.uint64(shift), out=places[j])
        if shift + b > 64:
            places[j] |= words[word + 1] << np.uint64(64 - shift)
        places[j] &= mask
    return places.T.reshape(-1)[:count]


def _check_packed(data: Buffer, count: int, b: int) -> None:
    """Raises WireError unless ``data`` is exactly ``count`` packed elements."""
    if len(data) != packed_bytes(count, b):
        raise WireError(
            f"{count} elements of {b} bits are {packed_bytes(count, b)} bytes, found {len(data)}"
        )
    used = count * b % 8
    if used and data[len(data) - 1] >> used:
        raise WireError("a padding bit of a packed vector is set")


def add_packed(total: Words, data: Buffer, b: int) -> None:
    """Adds a packed vector to ``total`` in place, by native wrap-around, block by block.

    Nothing is added unless the whole of ``data`` is valid, and no second vector is built.

    Args:
        total: uint32[m] (b <= 32) or uint64[m].
        data: m packed elements.
        b: bits per element, 1..64.

    Raises:
        WireError: on a wrong length or a set padding bit.
    """
    _check_packed(data, len(total), b)
    native = _native(b)
    if native is not None:
        addend = np.frombuffer(data, dtype=native)
        np.add(total, addend, out=total, casting="unsafe")
        return
    L, W = _run(b)
    step = max(1, _BLOCK_ELEMENTS // L) * L
    view = memoryview(data)
    for start in range(0, len(total), step):
        count = min(step, len(total) - start)
        first = start // L * W * 8  # whole runs before this block
        block = view[first : first + packed_bytes(count, b)]
        piece = total[start : start + count]
        # Where b <= 32 the upper half of each unpacked word is zero: nothing is cut off.
        np.add(piece, _unpack_block(block, count, b), out=piece, casting="unsafe")


def unpack_words(data: Buffer, count: int, b: int) -> Words:
    """Inverse of :func:`pack_words`: uint32[count] (b <= 32) or uint64[count].

    Raises:
        WireError: on a wrong length or a set padding bit.
    """
    _check_packed(data, count, b)  # before anything of that size is allocated
    words: Words = np.zeros(count, dtype=np.uint32 if b <= 32 else np.uint64)
    add_packed(words, data, b)
    return words
