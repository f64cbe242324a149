"""Steps 2, 3 and 8 of a round: clip, encode, decode.

The encoding turns a float update into integers modulo m that a secure sum can add, and turns the
opened sum back into a mean. It is NumPy only: it knows no torch, no keys, no masks and no sockets.
It hides nothing by itself: clipping bounds a vector and rounding loses digits, and neither is
differential privacy. Read ``clip``, ``fixed_point`` and ``codec`` in this order.
"""

from securefl.encoding.clip import Clipped, clip_by_norm, l2_norm
from securefl.encoding.codec import (
    AggregateUpdate,
    CodecSpec,
    UpdateCodec,
    Weighting,
    sum_encoded,
)
from securefl.encoding.fixed_point import MAX_RESOLUTION, Rounding, from_steps, to_steps

__all__ = [
    "MAX_RESOLUTION",
    "AggregateUpdate",
    "Clipped",
    "CodecSpec",
    "Rounding",
    "UpdateCodec",
    "Weighting",
    "clip_by_norm",
    "from_steps",
    "l2_norm",
    "sum_encoded",
    "to_steps",
]
