"""Streams of bytes that follow from a seed, so that a figure can be reproduced.

The code path is that of a deployment: the library's samplers take their bytes from an argument, and
here they take an AES keystream under a key that everybody can compute. **Noise from these bytes
hides nothing from anybody who knows the seed**; attacks in this folder do not use it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from securefl.primitives.prg import KEY_BYTES, expand

__all__ = ["RandomBytes", "keyed"]

RandomBytes = Callable[[int], bytes]
_WORDS = 1 << 13


def keyed(seed: int, *labels: object) -> RandomBytes:
    """``f(n)``: the next n bytes of the stream of this seed and these labels.

    >>> keyed(1, "noise")(4) == keyed(1, "noise")(4), keyed(1, "a")(8) == keyed(1, "b")(8)
    (True, False)
    """
    material = "\0".join(map(repr, ("threat model", seed, *labels))).encode()
    key = hashlib.sha256(material).digest()[:KEY_BYTES]
    start, buffer = 0, b""

    def random_bytes(count: int) -> bytes:
        nonlocal start, buffer
        if len(buffer) < count:
            words = max(_WORDS, -(-count // 8))
            buffer += expand(key, words, np.uint64, start=start).astype("<u8").tobytes()
            start += words
        made, buffer = buffer[:count], buffer[count:]
        return made

    return random_bytes
