"""What was released: a frozen tree of privacy events, and its strict JSON form.

An event says which mechanism ran, never what it costs: the cost stands in :mod:`accounting.curves`
as one function per event, so that a second opinion on a cost needs only the event. Adding an event
later means one class here and one curve function there. This module knows no RDP order, no delta
and no budget.

Vocabulary: ``noise_multiplier`` is Opacus' own, the standard deviation of the noise over the norm
bound C of one unit's contribution to the sum; ``sample_rate`` is the probability with which one
unit takes part, independently of all others.
"""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar, get_type_hints

from accounting.errors import InvalidEvent, InvalidParameter

__all__ = [
    "MAX_COUNT",
    "MAX_DEPTH",
    "MAX_NODES",
    "Adjacency",
    "Compose",
    "Event",
    "Gaussian",
    "NonPrivate",
    "Poisson",
    "Repeat",
    "digest",
    "dump",
    "from_json",
    "leaves",
    "parse",
    "to_json",
]

MAX_DEPTH = 16
MAX_NODES = 10_000
MAX_COUNT = 1 << 53  # the largest range in which every JSON reader agrees on integers
_MAX_TEXT = 4 << 20


class Adjacency(StrEnum):
    """Which pairs of data sets are neighbours. There is no default: the claim depends on it."""

    ADD_REMOVE = "add-remove"
    """The unit is absent. For central noise and Poisson sampling."""

    ZERO_OUT = "zero-out"
    """The unit's contribution becomes zero, counts and cohorts stay. Needed for noise shares."""

    REPLACE_ONE = "replace-one"
    """The unit's contribution becomes any other: twice the sensitivity of the other two."""

    @classmethod
    def of(cls, value: Adjacency | str) -> Adjacency:
        """The member with this name.

        Raises:
            InvalidParameter: for an unknown name.
        """
        try:
            return cls(value)
        except ValueError:
            names = ", ".join(member.value for member in cls)
            raise InvalidParameter(f"adjacency must be one of {names}, found {value!r}") from None


# --- field kinds: what a field accepts, and its two translations --------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How one field is checked when an event is built, and how it travels through JSON."""

    check: Callable[[Any, str], Any]
    to_json: Callable[[Any], Any]
    from_json: Callable[[Any, str, _Reader], Any]


def _real(value: object, where: str) -> float:
    """A finite float from any real number that is no bool."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidEvent(f"{where} must be a real number, found {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidEvent(f"{where} must be finite, found {value!r}")
    return number


def _positive(value: object, where: str) -> float:
    number = _real(value, where)
    if number <= 0:
        raise InvalidEvent(f"{where} must be > 0, found {number!r}")
    return number


def _rate(value: object, where: str) -> float:
    number = _real(value, where)
    if not 0 < number <= 1:
        raise InvalidEvent(f"{where} must be in (0, 1], found {number!r}")
    return number


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidEvent(f"{where} must be an int, found {type(value).__name__}")
    number = operator.index(value)
    if not 1 <= number <= MAX_COUNT:
        raise InvalidEvent(f"{where} must be in 1..2^53, found {number}")
    return number


def _event(value: object, where: str) -> Event:
    if not isinstance(value, Event) or type(value) not in _NAMES:
        raise InvalidEvent(f"{where} must be a privacy event, found {type(value).__name__}")
    return value


def _events(value: object, where: str) -> tuple[Event, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidEvent(f"{where} must be a tuple of events, found {type(value).__name__}")
    if not value:
        raise InvalidEvent(f"{where} must hold at least one event, found none")
    return tuple(_event(item, f"{where}[{i}]") for i, item in enumerate(value))


def _same(value: object, _where: str, _reader: _Reader) -> object:
    return value  # the constructor checks it


def _read_event(value: object, where: str, reader: _Reader) -> Event:
    return reader.event(value, where)


def _read_events(value: object, where: str, reader: _Reader) -> tuple[Event, ...]:
    if not isinstance(value, list):
        raise InvalidEvent(f"{where} must be a list of events, found {type(value).__name__}")
    return tuple(reader.event(item, f"{where}[{i}]") for i, item in enumerate(value))


def _identity(value: object) -> object:
    return value


def _dump_event(value: Event) -> dict[str, object]:
    return to_json(value)


def _dump_events(value: tuple[Event, ...]) -> list[dict[str, object]]:
    return [to_json(item) for item in value]


_POSITIVE = _Kind(check=_positive, to_json=_identity, from_json=_same)
_RATE = _Kind(check=_rate, to_json=_identity, from_json=_same)
_COUNT = _Kind(check=_count, to_json=_identity, from_json=_same)
_EVENT = _Kind(check=_event, to_json=_dump_event, from_json=_read_event)
_EVENTS = _Kind(check=_events, to_json=_dump_events, from_json=_read_events)


# --- the events ---------------------------------------------------------------------------------


class Event:
    """Base of all events: frozen, hashable, equal by value, checked when built.

    Raises:
        InvalidEvent: on construction, for a value out of range, of a wrong type, or a tree deeper
            than MAX_DEPTH or larger than MAX_NODES.
    """

    __slots__ = ()
    type_name: ClassVar[str]

    def __post_init__(self) -> None:
        kinds = _KINDS.get(type(self))
        if kinds is None:
            raise InvalidEvent(f"{type(self).__name__} is not one of the events with a known cost")
        for name, kind in kinds.items():
            checked = kind.check(getattr(self, name), f"{type(self).__name__}.{name}")
            object.__setattr__(self, name, checked)
        depth, nodes = _size(self)
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            raise InvalidEvent(
                f"an event tree may be {MAX_DEPTH} deep and have {MAX_NODES} nodes, "
                f"found depth {depth} and {nodes} nodes: use Repeat for equal events"
            )


_E = TypeVar("_E", bound=Event)
_NAMES: dict[type[Event], str] = {}
_TYPES: dict[str, type[Event]] = {}
_KINDS: dict[type[Event], dict[str, _Kind]] = {}


def _register(name: str) -> Callable[[type[_E]], type[_E]]:
    """Gives an event class its JSON name and reads its field kinds from the annotations."""

    def add(cls: type[_E]) -> type[_E]:
        cls.type_name = name
        hints = get_type_hints(cls, include_extras=True)
        _KINDS[cls] = {
            field.name: next(m for m in hints[field.name].__metadata__ if isinstance(m, _Kind))
            for field in fields(cls)  # type: ignore[arg-type]  # every event class is a dataclass
        }
        _NAMES[cls] = name
        _TYPES[name] = cls
        return cls

    return add


@_register("gaussian")
@dataclass(frozen=True, slots=True, kw_only=True)
class Gaussian(Event):
    """One sum with Gaussian noise of standard deviation ``noise_multiplier`` * C.

    Attributes:
        noise_multiplier: z > 0; the standard deviation over C, the norm bound of one unit's
            contribution to the sum (under replace-one too: the curve halves z, callers never do).
    """

    noise_multiplier: Annotated[float, _POSITIVE]


@_register("poisson")
@dataclass(frozen=True, slots=True, kw_only=True)
class Poisson(Event):
    """The inner event on a Poisson sample: every unit is in it by its own coin.

    Attributes:
        sample_rate: probability q of one unit's coin, 0 < q <= 1.
        event: what is done with the sample. Its noise must not follow the coins.
    """

    sample_rate: Annotated[float, _RATE]
    event: Annotated[Event, _EVENT]


@_register("repeat")
@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat(Event):
    """The same event ``count`` times, with fresh randomness each time.

    Attributes:
        event: the repeated event.
        count: how often, 1..2^53.
    """

    event: Annotated[Event, _EVENT]
    count: Annotated[int, _COUNT]


@_register("compose")
@dataclass(frozen=True, slots=True, kw_only=True)
class Compose(Event):
    """Several events on the same data, each with its own randomness.

    Attributes:
        events: at least one event.
    """

    events: Annotated[tuple[Event, ...], _EVENTS]


@_register("non-private")
@dataclass(frozen=True, slots=True, kw_only=True)
class NonPrivate(Event):
    """A release without any privacy guarantee. Its cost is infinite, and so is every sum with it.

    An exact secure sum is this event: secure aggregation hides who sent what, not what the sum
    says about one of them.
    """


def _children(event: Event) -> tuple[Event, ...]:
    found: list[Event] = []
    for name, kind in _KINDS[type(event)].items():
        if kind is _EVENT:
            found.append(getattr(event, name))
        elif kind is _EVENTS:
            found.extend(getattr(event, name))
    return tuple(found)


def _size(event: Event) -> tuple[int, int]:
    """(depth, nodes); a leaf is (1, 1). Children are already checked, so this never goes deep."""
    depth, nodes = 0, 1
    for child in _children(event):
        child_depth, child_nodes = _size(child)
        depth, nodes = max(depth, child_depth), nodes + child_nodes
    return depth + 1, nodes


@lru_cache(maxsize=4096)
def leaves(event: Event) -> tuple[tuple[Event, int], ...]:
    """The tree as (leaf, how often) pairs: RDP adds up, so ``Repeat`` and ``Compose`` are sums.

    A Poisson sample at rate 1 is everybody, so ``Poisson(1, e)`` counts as ``e``. Equal leaves are
    merged; the order is that of first appearance.
    """
    found: dict[Event, int] = {}

    def walk(node: Event, times: int) -> None:
        if isinstance(node, Compose):
            for child in node.events:
                walk(child, times)
        elif isinstance(node, Repeat):
            walk(node.event, times * node.count)
        elif isinstance(node, Poisson) and node.sample_rate == 1.0:
            walk(node.event, times)
        else:
            found[node] = found.get(node, 0) + times

    walk(event, 1)
    return tuple(found.items())


# --- JSON ---------------------------------------------------------------------------------------


def to_json(event: Event) -> dict[str, object]:
    """The event as JSON values: ``{"type": ..., field: ...}``, fields spelled as in the class."""
    cls = type(event)
    if cls not in _NAMES:
        raise InvalidEvent(f"expected a privacy event, found {cls.__name__}")
    body: dict[str, object] = {"type": _NAMES[cls]}
    for name, kind in _KINDS[cls].items():
        body[name] = kind.to_json(getattr(event, name))
    return body


def dump(event: Event) -> str:
    """The canonical JSON text: sorted keys, no spaces, shortest float form. ``parse`` inverts it.

    >>> dump(Repeat(event=Gaussian(noise_multiplier=1.1), count=3))
    '{"count":3,"event":{"noise_multiplier":1.1,"type":"gaussian"},"type":"repeat"}'
    """
    return json.dumps(
        to_json(event),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )


def digest(event: Event) -> str:
    """SHA-256 of the canonical JSON text in UTF-8, as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(dump(event).encode()).hexdigest()


def parse(text: str | bytes) -> Event:
    """Reads an event from JSON text.

    Raises:
        InvalidEvent: for anything that is not exactly one event: unknown types or keys, missing or
            duplicate keys, NaN or Infinity, values out of range, depth > 16, > 10,000 nodes.
    """
    if len(text) > _MAX_TEXT:
        raise InvalidEvent(f"an event's JSON may have {_MAX_TEXT} characters, found {len(text)}")
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except InvalidEvent:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"an event must be valid JSON: {error}") from None
    return from_json(value)


def from_json(value: object) -> Event:
    """The event in JSON values already read, as by ``json.loads``. The inverse of ``to_json``.

    Raises:
        InvalidEvent: as :func:`parse`.
    """
    return _Reader().event(value, "event")


class _Reader:
    """Counts nodes and depth while reading, so that a hostile text is refused before it is big."""

    def __init__(self) -> None:
        self.nodes = 0
        self.depth = 0

    def event(self, value: object, where: str) -> Event:
        self.nodes += 1
        self.depth += 1
        if self.nodes > MAX_NODES or self.depth > MAX_DEPTH:
            raise InvalidEvent(
                f"an event tree may be {MAX_DEPTH} deep and have {MAX_NODES} nodes; "
                f"{where} goes beyond"
            )
        if not isinstance(value, dict):
            raise InvalidEvent(f"{where} must be a JSON object, found {type(value).__name__}")
        name = value.get("type")
        cls = _TYPES.get(name) if isinstance(name, str) else None
        if cls is None:
            known = ", ".join(sorted(_TYPES))
            raise InvalidEvent(f"{where}.type must be one of {known}, found {name!r}")
        kinds = _KINDS[cls]
        if value.keys() != kinds.keys() | {"type"}:
            expected = ", ".join(["type", *kinds])
            raise InvalidEvent(f"{where} must have the keys {expected}, found {list(value)}")
        read = {
            name: kind.from_json(value[name], f"{where}.{name}", self)
            for name, kind in kinds.items()
        }
        self.depth -= 1
        return cls(**read)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidEvent(f"duplicate keys in {[key for key, _ in pairs]}")
    return found


def _no_constant(name: str) -> NoReturn:
    raise InvalidEvent(f"{name} is not a JSON number and not a possible value")
