"""Flower's records and ours: arrays as one vector, frames as records, messages of a session.

This module knows Flower's containers and no protocol. Everything read from a message is checked
here, and what does not fit is a :class:`~securefl.flower.errors.Refusal` on a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.flower.errors import Code, Refusal
from securefl.primitives.channel import sha256

__all__ = [
    "HELLO_TYPE",
    "SESSION_TYPE",
    "ArrayLayout",
    "Envelope",
    "content_bytes",
    "frame_of",
    "model_digest",
    "only_arrays",
    "read_envelope",
    "record_of_frame",
    "reply_content",
    "with_dtypes",
]

SESSION_TYPE = "train.securefl"
"""Type of every message of a session: a plain ClientApp has no function under this name."""

HELLO_TYPE = "query.securefl"

_ENVELOPE, _FRAME, _ARRAYS = "securefl", "frame", "securefl.arrays"
_INLINE_BYTES = 1 << 16
_VERSION = 1


# -- arrays ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    size: int
    averaged: bool


class ArrayLayout:
    """Which arrays of a model are averaged, and where each stands in the one vector.

    Arrays of floating-point numbers are averaged, in the order of their keys; integers and booleans
    (a batch norm's counter of batches, for one) are not sent, and stay as they are.

    Args:
        arrays: the model as the server sent it.

    Attributes:
        length: entries of the vector.
        kept: what is not averaged, with its dtype.

    Raises:
        ConfigurationError: if no array is of floating-point numbers, or one is of another kind.
    """

    def __init__(self, arrays: ArrayRecord) -> None:
        self._order = tuple(arrays)
        self._parts: list[_Part] = []
        for key in sorted(arrays):
            values = arrays[key].numpy()
            if values.dtype.kind not in "fiub":
                raise ConfigurationError(
                    f"array {key!r} is of dtype {values.dtype}: only real numbers can be averaged"
                )
            self._parts.append(
                _Part(key, values.shape, values.dtype, values.size, values.dtype.kind == "f")
            )
        self.length = sum(part.size for part in self._parts if part.averaged)
        self.kept = {part.key: part.dtype for part in self._parts if not part.averaged}
        if self.length == 0:
            raise ConfigurationError(
                "the model holds no array of floating-point numbers: there is nothing to average"
            )

    def vector(self, arrays: ArrayRecord, *, finite: bool = True) -> NDArray[np.float64]:
        """The averaged arrays of a model of this layout, float64[length].

        Args:
            arrays: the model.
            finite: whether every number must be.

        Raises:
            ConfigurationError: if keys or shapes differ, or a number is not finite.
        """
        if set(arrays) != set(self._order):
            raise ConfigurationError(
                f"expected the arrays {sorted(self._order)}, found {sorted(arrays)}"
            )
        found = np.empty(self.length, dtype=np.float64)
        start = 0
        for part in self._parts:
            if not part.averaged:
                continue
            values = arrays[part.key].numpy()
            if values.shape != part.shape or values.dtype.kind not in "fiub":
                raise ConfigurationError(
                    f"array {part.key!r}: expected shape {part.shape} of real numbers, found "
                    f"{values.shape} of {values.dtype}"
                )
            found[start : start + part.size] = values.reshape(-1)
            start += part.size
        if finite and not np.isfinite(found).all():
            raise ConfigurationError("the model holds a NaN or an infinite number")
        return found

    def moved(self, arrays: ArrayRecord, delta: NDArray[np.float64]) -> ArrayRecord:
        """The model plus a delta: same keys in the same order, same shapes and dtypes.

        Args:
            arrays: the model as the server sent it.
            delta: float64[length].
        """
        vector = self.vector(arrays) + delta
        found: dict[str, Array] = {}
        start = 0
        for part in self._parts:
            if part.averaged:
                values = vector[start : start + part.size].reshape(part.shape)
                found[part.key] = Array(np.asarray(values.astype(part.dtype)))
                start += part.size
            else:
                found[part.key] = arrays[part.key]
        return ArrayRecord({key: found[key] for key in self._order})


def with_dtypes(arrays: ArrayRecord, dtypes: Mapping[str, np.dtype[Any]]) -> ArrayRecord:
    """The same model with some arrays cast back, where that changes no value.

    Flower's mean multiplies every array by a float, so the integers of the first round come back as
    floats in the second; averaging a counter would then eat up the clip norm of the real update.
    """
    found: dict[str, Array] = {}
    for key, array in arrays.items():
        dtype, values = dtypes.get(key), array.numpy()
        if dtype is None or values.dtype == dtype or (values != values.astype(dtype)).any():
            found[key] = array
        else:
            found[key] = Array(np.asarray(values.astype(dtype)))
    return ArrayRecord(found)


def model_digest(arrays: ArrayRecord) -> bytes:
    """SHA-256 over key, dtype, shape and little-endian bytes of every array; 32 bytes.

    Every field has its length in front, so that no two models share their bytes. The arrays count
    in the order of the record: an app that takes them as a list knows them by nothing else, and two
    arrays of one shape that change places are another model.
    """
    fields: list[bytes] = []
    for key in arrays:
        values = arrays[key].numpy()
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        fields += [
            key.encode(),
            values.dtype.newbyteorder("<").str.encode(),
            ",".join(map(str, values.shape)).encode(),
            little.tobytes(),
        ]
    return sha256(*(part for field in fields for part in (len(field).to_bytes(8, "little"), field)))


def only_arrays(content: RecordDict) -> ArrayRecord:
    """The one ArrayRecord of a message.

    Raises:
        ConfigurationError: if there is none, or more than one.
    """
    found = list(content.array_records.values())
    if len(found) != 1:
        raise ConfigurationError(f"expected one ArrayRecord, found {len(found)}")
    return found[0]


# -- frames ---------------------------------------------------------------------------------------


def record_of_frame(frame: bytes) -> ConfigRecord | ArrayRecord:
    """A frame for a message: small ones in one piece, large ones as an array.

    Flower sends a ConfigRecord as one object and arrays in chunks. Who reads it gets the same
    bytes either way.
    """
    if len(frame) <= _INLINE_BYTES:
        return ConfigRecord({_FRAME: frame})
    return ArrayRecord({_FRAME: Array(np.frombuffer(frame, dtype=np.uint8))})


def frame_of(content: RecordDict) -> bytes:
    """The frame in a message.

    Raises:
        ConfigurationError: if there is none, or something else under its name.
    """
    record = content.get(_FRAME)
    if isinstance(record, ConfigRecord):
        frame = record.get(_FRAME)
        if isinstance(frame, bytes) and len(record) == 1:
            return frame
    elif isinstance(record, ArrayRecord) and list(record) == [_FRAME]:
        try:
            values = record[_FRAME].numpy()
        except Exception as error:  # whatever numpy makes of somebody else's bytes
            raise ConfigurationError(f"the frame is no array: {type(error).__name__}") from None
        if values.dtype == np.uint8 and values.ndim == 1:
            return values.tobytes()
    raise ConfigurationError("the message holds no frame")


def reply_content(frame: bytes) -> RecordDict:
    """All that ever leaves a node: one frame."""
    return RecordDict({_FRAME: record_of_frame(frame)})


# -- the server's messages ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """One message of the server to one node of a session.

    Attributes:
        phase: which phase's answer it asks for.
        attempt: names the session: the configuration's digest.
        client: the receiver's id in the session; in the first message only, as the next three are.
        config: canonical bytes of the RoundConfig.
        plan: canonical bytes of the plan.
        model: digest of the model, 32 bytes.
        frame: the machine's frame; None in the first message.
        arrays: the model, in the message that asks for training.
    """

    phase: str
    attempt: bytes
    client: int | None = None
    config: bytes | None = None
    plan: bytes | None = None
    model: bytes | None = None
    frame: bytes | None = None
    arrays: ArrayRecord | None = None

    def content(self) -> RecordDict:
        """As records."""
        head: dict[str, Any] = {"v": _VERSION, "phase": self.phase, "attempt": self.attempt}
        for name in ("client", "config", "plan", "model"):
            value = getattr(self, name)
            if value is not None:
                head[name] = value
        found = RecordDict({_ENVELOPE: ConfigRecord(head)})
        if self.frame is not None:
            found[_FRAME] = record_of_frame(self.frame)
        if self.arrays is not None:
            found[_ARRAYS] = self.arrays
        return found


_FIRST: Mapping[str, type] = {"client": int, "config": bytes, "plan": bytes, "model": bytes}


def read_envelope(content: RecordDict) -> Envelope:
    """Inverse of :meth:`Envelope.content`, for bytes from a server that may send anything.

    Raises:
        Refusal: MALFORMED.
    """
    unknown = set(content) - {_ENVELOPE, _FRAME, _ARRAYS}
    head = content.get(_ENVELOPE)
    if unknown or not isinstance(head, ConfigRecord):
        raise Refusal(Code.MALFORMED, f"a session's message with the records {sorted(content)}")
    if head.get("v") != _VERSION:
        raise Refusal(Code.MALFORMED, f"expected version {_VERSION}, found {head.get('v')!r}")
    phase, attempt = head.get("phase"), head.get("attempt")
    if not isinstance(phase, str) or not isinstance(attempt, bytes) or len(attempt) != 32:
        raise Refusal(Code.MALFORMED, "a session's message without phase or attempt")
    first = {name: head[name] for name in _FIRST if name in head}
    wrong = [name for name, value in first.items() if type(value) is not _FIRST[name]]
    if wrong or len(first) not in (0, len(_FIRST)) or set(head) - {"v", "phase", "attempt", *first}:
        raise Refusal(Code.MALFORMED, f"a session's message with the fields {sorted(head)}")
    arrays = content.get(_ARRAYS)
    if arrays is not None and not isinstance(arrays, ArrayRecord):
        raise Refusal(Code.MALFORMED, "the model is no ArrayRecord")
    frame = None
    if _FRAME in content:
        try:
            frame = frame_of(content)
        except ConfigurationError as error:
            raise Refusal(Code.MALFORMED, str(error)) from None
    return Envelope(phase=phase, attempt=attempt, frame=frame, arrays=arrays, **first)  # type: ignore[arg-type]  # the types were compared above


def content_bytes(content: RecordDict) -> int:
    """Bytes of a message's content as Flower counts them, keys included."""
    total = 0
    for name, record in content.items():
        total += len(name)
        if isinstance(record, ArrayRecord | MetricRecord):
            total += record.count_bytes()
            continue
        for key, value in record.items():
            total += len(key) + (len(value) if isinstance(value, bytes | str | list) else 8)
    return total
