"""Mistake: "compression" that multiplies by .1, sends the same bytes, and is never undone.

A float32 times .1 is a float32. The message is as long as before, and since nobody divides by .1
again the server moves the model by a tenth of the mean. Training still goes on, ten times slower,
which looks like the price of compression.

Fewer bytes come from fewer bits per coordinate: whole steps of a size that all clients agreed on
before, an error that has a bound, and a decoder that undoes the scaling. It compresses. It hides
nothing: privacy comes from neither version.

    python examples/common_mistakes/scaling_is_not_compression.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from side_by_side import Comparison, Vector, compare, digits_module

from securefl import AggregateSum, CodecSpec, UpdateCodec
from securefl.encoding.codec import sum_encoded
from securefl.round import ClientId
from securefl.training import data, partition
from securefl.training.local import FlatModel, LocalSGD, limit_threads
from securefl.wire import packed_bytes

CLIENTS, BITS, CLIP_NORM = 10, 16, 4.0
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Ten updates as the server reads them.

    Attributes:
        decoded: the server's mean update.
        mean: the mean of what the clients computed.
        bytes_each: of one client's message.
        error_bound: on each coordinate of ``decoded``, as announced by the encoder.
        small: the decoded mean of [1, 2, 3], [4, 5, 6].
    """

    decoded: NDArray[np.float64]
    mean: NDArray[np.float64]
    bytes_each: int
    error_bound: float
    small: tuple[float, ...]


SMALL = (np.array([1.0, 2.0, 3.0], dtype=np.float32), np.array([4.0, 5.0, 6.0], dtype=np.float32))


def wrong() -> Outcome:
    updates = _updates()
    messages = [(update * 0.1).astype(np.float32).tobytes() for update in updates]
    return Outcome(
        decoded=_mean_of_messages(messages),
        mean=np.mean(updates, axis=0, dtype=np.float64),
        bytes_each=len(messages[0]),
        error_bound=0.0,  # "multiplying loses nothing"
        small=tuple(_mean_of_messages([(u * np.float32(0.1)).tobytes() for u in SMALL])),
    )


def right() -> Outcome:
    """16 bits per coordinate for the sum of ten clients, and nothing else is sent."""
    updates = _updates()
    codec = _codec(len(updates[0]), clients=CLIENTS, clip_norm=CLIP_NORM)
    small = _codec(3, clients=len(SMALL), clip_norm=10.0)
    return Outcome(
        decoded=_decoded(codec, updates),
        mean=np.mean(updates, axis=0, dtype=np.float64),
        bytes_each=packed_bytes(codec.length, BITS),
        error_bound=codec.mean_error_bound,
        small=tuple(_decoded(small, SMALL)),
    )


def check(outcome: Outcome) -> None:
    uncompressed = FLOAT_BYTES * len(outcome.mean)
    assert outcome.bytes_each < uncompressed, (
        f"a message has {outcome.bytes_each} bytes; plain float32 has {uncompressed}"
    )
    error = float(np.abs(outcome.decoded - outcome.mean).max())
    assert error <= outcome.error_bound, (
        f"the mean is off by {error:.2g}, announced was {outcome.error_bound:.2g}"
    )


def _mean_of_messages(messages: Sequence[bytes]) -> NDArray[np.float64]:
    vectors = [np.frombuffer(message, dtype=np.float32) for message in messages]
    return np.asarray(np.mean(vectors, axis=0, dtype=np.float64))


def _codec(dimension: int, *, clients: int, clip_norm: float) -> UpdateCodec:
    return UpdateCodec(
        CodecSpec.plan(dimension=dimension, clip_norm=clip_norm, max_clients=clients, bits=BITS)
    )


def _decoded(codec: UpdateCodec, updates: Sequence[Vector]) -> NDArray[np.float64]:
    total = sum_encoded([codec.encode(update) for update in updates])
    survivors = tuple(ClientId(k) for k in range(len(updates)))
    opened = AggregateSum(vector=total, survivors=survivors, min_honest=len(updates))
    return codec.decode(opened).mean


def _updates() -> list[Vector]:
    """One epoch on each of ten clients, all shorter than CLIP_NORM."""
    train, _ = data.load("digits")
    model = FlatModel(digits_module())
    start = model.vector()
    parts = partition.iid(len(train), clients=CLIENTS, seed=0)
    updates = [
        LocalSGD(
            model=model,
            x=train.x[part],
            y=train.y[part],
            client=k,
            learning_rate=0.2,
            batch_size=32,
            epochs=1,
        )
        .train(start, round_index=0)
        .values
        for k, part in enumerate(parts.indices)
    ]
    longest = max(float(np.linalg.norm(update)) for update in updates)
    assert longest < CLIP_NORM, f"an update of length {longest:.2f} would be clipped"
    return updates


def main() -> int:
    limit_threads()
    return compare(
        Comparison(
            title=f"Ten updates of 650 coordinates; right: {BITS} bits each",
            mistake='Updates are multiplied by .1 before sending, "to compress them".',
            rows={
                "bytes of one update (float32: 2600)": lambda o: str(o.bytes_each),
                "length of the mean, of what it should be": lambda o: (
                    f"{np.linalg.norm(o.decoded) / np.linalg.norm(o.mean):.3f}"
                ),
                "largest error of a coordinate": lambda o: (
                    f"{np.abs(o.decoded - o.mean).max():.2g}"
                ),
                "announced": lambda o: f"{o.error_bound:.2g}",
                "mean of [1, 2, 3] and [4, 5, 6]": lambda o: str(
                    [round(float(v), 2) for v in o.small]
                ),
            },
            check=check,
        ),
        wrong=wrong(),
        right=right(),
    )


if __name__ == "__main__":
    raise SystemExit(main())
