"""Steps 2, 3 and 8 of a round: clip, encode, decode.

The encoding turns a float update into integers modulo m that a secure sum can add, and turns the
opened sum back into a mean. It is NumPy only: it knows no torch, no keys, no masks and no sockets.
It hides nothing by itself: clipping bounds a vector, rounding loses digits and compression leaves
coordinates out, and none of these is differential privacy. Noise is, once enough shares of it are
in the sum and nothing but the sum is seen.

Read ``clip``, ``fixed_point`` and ``codec`` for the plain codec; ``rotation``, ``tables``,
``noise``, ``noise_plan``, ``noisy_spec`` and ``noisy`` for the one with noise; ``compression``
works with both, and ``contract`` says what they have in common.
"""

from securefl.encoding.clip import Clipped, clip_by_norm, l2_norm
from securefl.encoding.codec import (
    AggregateUpdate,
    Codec,
    CodecSpec,
    UpdateCodec,
    Weighting,
    sum_encoded,
)
from securefl.encoding.compression import (
    CompressedCodec,
    Compression,
    RandomK,
    SharedTopK,
    Sketch,
)
from securefl.encoding.fixed_point import MAX_RESOLUTION, Rounding, from_steps, to_steps
from securefl.encoding.noisy import (
    MAX_INFLATION,
    RECORDS_MARGIN,
    Contribution,
    Mechanism,
    NoisyCodec,
    NoisySpec,
)

__all__ = [
    "MAX_INFLATION",
    "MAX_RESOLUTION",
    "RECORDS_MARGIN",
    "AggregateUpdate",
    "Clipped",
    "Codec",
    "CodecSpec",
    "CompressedCodec",
    "Compression",
    "Contribution",
    "Mechanism",
    "NoisyCodec",
    "NoisySpec",
    "RandomK",
    "Rounding",
    "SharedTopK",
    "Sketch",
    "UpdateCodec",
    "Weighting",
    "clip_by_norm",
    "from_steps",
    "l2_norm",
    "sum_encoded",
    "to_steps",
]
