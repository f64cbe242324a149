"""The mask generator and a stream of secret randomness, both AES-128 in counter mode.

The mask generator is the PRG of Bonawitz et al. 2017, section 3.3: a 128-bit big-endian counter
from 0, and word i of a mask is bytes [wi, wi+w) of the key stream, little-endian, w = 4 or 8. All
2^(8w) words are equally likely, so no residue modulo a power of two is favoured, and the output
does not depend on how it is cut into chunks. This module does not know what a mask hides.
"""

from __future__ import annotations

import os
import threading
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from securefl.modular import Words

__all__ = ["CHUNK_WORDS", "KEY_BYTES", "SecureRandom", "add_mask", "expand", "subtract_mask"]

KEY_BYTES = 16
_BLOCK = 16

CHUNK_WORDS = 1 << 15
"""Words expanded at a time: key stream and accumulator chunk stay in the core's own cache."""

_ZEROS = bytes(CHUNK_WORDS * 8)


def _stream(key: bytes, first_block: int = 0) -> CipherContext:
    """The key stream from byte 16 · ``first_block`` on."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a mask key has {KEY_BYTES} bytes, found {len(key)}")
    counter = first_block.to_bytes(_BLOCK, "big")
    # Counter mode carries no integrity here on purpose: it is the generator, not a cipher.
    return Cipher(algorithms.AES128(key), modes.CTR(counter)).encryptor()


class _Scratch(threading.local):
    """One reused key stream buffer per thread (``update_into`` wants one block of slack)."""

    def __init__(self) -> None:
        self.buffer = bytearray(CHUNK_WORDS * 8 + _BLOCK)


_SCRATCH = _Scratch()


def expand(key: bytes, length: int, dtype: type[np.unsignedinteger], *, start: int = 0) -> Words:
    """Words ``start`` to ``start + length`` of the mask of ``key``.

    Args:
        key: 16 bytes.
        length: how many words.
        dtype: ``np.uint32`` or ``np.uint64``.
        start: index of the first word, at least 0; any place can be reached at once.

    Returns:
        dtype[length], uniform over all words.
    """
    words: Words = np.zeros(length, dtype=dtype)
    add_mask(words, key, start=start)
    return words


def add_mask(total: Words, key: bytes, *, start: int = 0) -> None:
    """Adds words ``start``.. of the mask of ``key`` to ``total`` in place, wrapping around.

    Args:
        total: uint32[m] or uint64[m], changed.
        key: 16 bytes.
        start: index of the first word.
    """
    _combine(np.add, total, key, start)


def subtract_mask(total: Words, key: bytes, *, start: int = 0) -> None:
    """Subtracts where :func:`add_mask` adds."""
    _combine(np.subtract, total, key, start)


def _combine(operation: np.ufunc, total: Words, key: bytes, start: int) -> None:
    width = total.dtype.itemsize
    block, skip = divmod(start * width, _BLOCK)
    stream = _stream(key, block)
    if skip:
        stream.update(_ZEROS[:skip])
    buffer = _SCRATCH.buffer
    little = total.dtype.newbyteorder("<")
    for first in range(0, len(total), CHUNK_WORDS):
        piece = total[first : first + CHUNK_WORDS]
        size = len(piece) * width
        stream.update_into(memoryview(_ZEROS)[:size], buffer)
        operation(piece, np.frombuffer(buffer, dtype=little, count=len(piece)), out=piece)


class SecureRandom:
    """A stream of secret random bytes under one fresh key from the operating system.

    Much faster than asking the operating system for every noise value, and as unpredictable. Every
    byte is given out once. A child process that inherits the object by ``fork`` takes a new key
    before its first byte, so parent and child never share randomness. The object cannot be pickled
    or copied (a copy would repeat the stream) and its repr shows nothing. Safe to use from several
    threads.

    >>> random = SecureRandom()
    >>> len(random.random_bytes(5)), random.random_bytes(16) == random.random_bytes(16)
    (5, False)
    """

    __slots__ = ("_buffer", "_lock", "_pid", "_position", "_stream")

    _BUFFER = 1 << 16

    def __init__(self) -> None:
        self._rekey()

    def _rekey(self) -> None:
        # A lock held by another thread at the moment of the fork would never be released in the
        # child: the child gets its own.
        self._lock = threading.Lock()
        self._stream = _stream(os.urandom(KEY_BYTES))
        self._buffer = b""
        self._position = 0
        self._pid = os.getpid()

    def random_bytes(self, n: int) -> bytes:
        """The next n secret bytes, n >= 0."""
        if n < 0:
            raise ValueError(f"cannot give {n} bytes")
        if self._pid != os.getpid():
            self._rekey()
        with self._lock:
            end = self._position + n
            if end <= len(self._buffer):
                piece = self._buffer[self._position : end]
                self._position = end
                return piece
            rest = self._buffer[self._position :]
            missing = n - len(rest)
            # Not much more than was asked for: a large request is hardly copied.
            size = missing if missing >= self._BUFFER else self._BUFFER
            zeros = _ZEROS if size <= len(_ZEROS) else bytes(size)
            fresh = self._stream.update(memoryview(zeros)[:size])
            self._buffer = fresh[missing:]
            self._position = 0
            return rest + fresh[:missing] if rest or size > missing else fresh

    def __repr__(self) -> str:
        return "SecureRandom(<secret>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecureRandom cannot be pickled or copied: the copy would repeat it")

    def __getstate__(self) -> NoReturn:
        self.__reduce__()
