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
from functools import lru_cache
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar, get_type_hints

from accounting.choice import Choice
from accounting.errors import InvalidEvent

__all__ = [
    "MAX_COUNT",
    "MAX_DEPTH",
    "MAX_NODES",
    "ZCDP",
    "Adjacency",
    "ApproxDP",
    "BandedMF",
    "Compose",
    "DiscreteGaussian",
    "DistributedDiscreteGaussian",
    "Event",
    "FixedSize",
    "Gaussian",
    "Group",
    "Hierarchical",
    "Laplace",
    "NoiseShares",
    "NonPrivate",
    "Poisson",
    "PureDP",
    "Repeat",
    "Select",
    "Shuffled",
    "Skellam",
    "Tree",
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


class Adjacency(Choice):
    """Which pairs of data sets are neighbours. There is no default: the claim depends on it."""

    ADD_REMOVE = "add-remove"
    """The unit is absent. For central noise and Poisson sampling."""

    ZERO_OUT = "zero-out"
    """The unit's contribution becomes zero, counts and cohorts stay. Needed for noise shares."""

    REPLACE_ONE = "replace-one"
    """The unit's contribution becomes any other: twice the sensitivity of the other two."""


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


def _non_negative(value: object, where: str) -> float:
    number = _real(value, where)
    if number < 0:
        raise InvalidEvent(f"{where} must be >= 0, found {number!r}")
    return abs(number)  # a negative zero would be another JSON text for the same number


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


def _whole(value: object, where: str) -> int:
    if not isinstance(value, bool | float) and value == 0:
        return 0
    return _count(value, where)


def _probability(value: object, where: str) -> float:
    number = _real(value, where)
    if not 0 <= number < 1:
        raise InvalidEvent(f"{where} must be in [0, 1), found {number!r}")
    return number


def _shape(value: object, where: str) -> float:
    number = _real(value, where)
    if number <= -1:
        raise InvalidEvent(f"{where} must be > -1, found {number!r}")
    return number


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidEvent(f"{where} must be true or false, found {type(value).__name__}")
    return value


def _adjacency(value: object, where: str) -> Adjacency:
    try:
        return Adjacency(value)  # type: ignore[arg-type]  # anything else is refused here
    except ValueError:
        names = ", ".join(member.value for member in Adjacency)
        raise InvalidEvent(f"{where} must be one of {names}, found {value!r}") from None


def _optional(check: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    def checked(value: object, where: str) -> object:
        return None if value is None else check(value, where)

    return checked


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


def _dump_adjacency(value: Adjacency) -> str:
    return value.value


def _dump_event(value: Event) -> dict[str, object]:
    return to_json(value)


def _dump_events(value: tuple[Event, ...]) -> list[dict[str, object]]:
    return [to_json(item) for item in value]


_POSITIVE = _Kind(check=_positive, to_json=_identity, from_json=_same)
_NON_NEGATIVE = _Kind(check=_non_negative, to_json=_identity, from_json=_same)
_RATE = _Kind(check=_rate, to_json=_identity, from_json=_same)
_COUNT = _Kind(check=_count, to_json=_identity, from_json=_same)
_WHOLE = _Kind(check=_whole, to_json=_identity, from_json=_same)
_PROBABILITY = _Kind(check=_probability, to_json=_identity, from_json=_same)
_FLAG = _Kind(check=_flag, to_json=_identity, from_json=_same)
_ADJACENCY = _Kind(check=_adjacency, to_json=_dump_adjacency, from_json=_same)
_OPTIONAL_RATE = _Kind(check=_optional(_rate), to_json=_identity, from_json=_same)
_OPTIONAL_POSITIVE = _Kind(check=_optional(_positive), to_json=_identity, from_json=_same)
_OPTIONAL_SHAPE = _Kind(check=_optional(_shape), to_json=_identity, from_json=_same)
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
        self._check()
        depth, nodes = _size(self)
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            raise InvalidEvent(
                f"an event tree may be {MAX_DEPTH} deep and have {MAX_NODES} nodes, "
                f"found depth {depth} and {nodes} nodes: use Repeat for equal events"
            )

    def _check(self) -> None:
        """What holds between fields; each field alone is already checked."""


_E = TypeVar("_E", bound=Event)
_NAMES: dict[type[Event], str] = {}
_TYPES: dict[str, type[Event]] = {}
_KINDS: dict[type[Event], dict[str, _Kind]] = {}
_REQUIRED: dict[type[Event], frozenset[str]] = {}  # keys that JSON may not leave out


def _register(name: str, *, alternatives: tuple[str, ...] = ()) -> Callable[[type[_E]], type[_E]]:
    """Gives an event class its JSON name and reads its field kinds from the annotations.

    A field must stand in the JSON even if its class has a default for it: nobody who reads a claim
    should have to know that no colluders were assumed. Only ``alternatives``, of which the class
    itself demands some, may be left out.
    """

    def add(cls: type[_E]) -> type[_E]:
        cls.type_name = name
        hints = get_type_hints(cls, include_extras=True)
        _KINDS[cls] = {
            field.name: next(m for m in hints[field.name].__metadata__ if isinstance(m, _Kind))
            for field in fields(cls)  # type: ignore[arg-type]  # every event class is a dataclass
        }
        _REQUIRED[cls] = frozenset(_KINDS[cls]) - frozenset(alternatives)
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


@_register("fixed-size")
@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSize(Event):
    """The inner event on a cohort of a fixed size, drawn without replacement.

    Attributes:
        population: units there are, 1..2^53, public.
        cohort: units drawn, 1..population.
        event: what is done with the cohort.
    """

    population: Annotated[int, _COUNT]
    cohort: Annotated[int, _COUNT]
    event: Annotated[Event, _EVENT]

    def _check(self) -> None:
        if self.cohort > self.population:
            raise InvalidEvent(
                f"FixedSize.cohort must be at most the population {self.population}, "
                f"found {self.cohort}"
            )


@_register("shuffled")
@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffled(Event):
    """Every epoch the units are shuffled into batches of one size; one release per batch.

    No tight cost is known: :func:`accounting.interval` brackets it, everything else refuses it.

    Attributes:
        batches: batches per epoch, 1..2^53.
        epochs: 1..2^53.
        event: the release of one batch; a ``Gaussian``.
        reshuffle: whether each epoch has an order of its own.
    """

    batches: Annotated[int, _COUNT]
    epochs: Annotated[int, _COUNT]
    event: Annotated[Event, _EVENT]
    reshuffle: Annotated[bool, _FLAG]


@_register("hierarchical")
@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchical(Event):
    """A client takes part by its own coin and then makes several releases on its records.

    The unit is one record. A client that stays out withdraws its other records too, so this is not
    a Poisson sample of records at rate p_client * q.

    Attributes:
        p_client: probability of one client's coin, 0 < p_client <= 1.
        steps: releases of a client that takes part, 1..2^53.
        event: one of them, such as ``Poisson(sample_rate=q, event=Gaussian(...))``.
    """

    p_client: Annotated[float, _RATE]
    steps: Annotated[int, _COUNT]
    event: Annotated[Event, _EVENT]


@_register("laplace")
@dataclass(frozen=True, slots=True, kw_only=True)
class Laplace(Event):
    """A query with Laplace noise of scale ``b`` in units of its L1 sensitivity.

    Attributes:
        b: scale > 0 over the largest L1 change when one unit is absent or zero (under replace-one
            too: the curve halves b).
    """

    b: Annotated[float, _POSITIVE]


@_register("pure-dp")
@dataclass(frozen=True, slots=True, kw_only=True)
class PureDP(Event):
    """Any release that is proved (epsilon, 0)-differentially private.

    Attributes:
        epsilon: > 0.
        adjacency: the relation under which that is proved; no other one may be claimed.
    """

    epsilon: Annotated[float, _POSITIVE]
    adjacency: Annotated[Adjacency, _ADJACENCY]


@_register("approx-dp")
@dataclass(frozen=True, slots=True, kw_only=True)
class ApproxDP(Event):
    """Any release that is proved (epsilon, delta)-differentially private.

    Its delta is taken off the target delta; a ledger refuses it unless a ``delta_reserve`` was
    declared.

    Attributes:
        epsilon: >= 0; with 0 all of the cost is the delta.
        delta: in [0, 1).
        adjacency: the relation under which that is proved; no other one may be claimed.
    """

    epsilon: Annotated[float, _NON_NEGATIVE]
    delta: Annotated[float, _PROBABILITY]
    adjacency: Annotated[Adjacency, _ADJACENCY]


@_register("zcdp")
@dataclass(frozen=True, slots=True, kw_only=True)
class ZCDP(Event):
    """Any release that is proved rho-zero-concentrated differentially private.

    Attributes:
        rho: > 0.
        adjacency: the relation under which that is proved; no other one may be claimed.
    """

    rho: Annotated[float, _POSITIVE]
    adjacency: Annotated[Adjacency, _ADJACENCY]


@_register("discrete-gaussian")
@dataclass(frozen=True, slots=True, kw_only=True)
class DiscreteGaussian(Event):
    """A sum of integer vectors with discrete Gaussian noise on every coordinate.

    Attributes:
        sigma: the parameter of the noise > 0, in integer units.
        l2: bound > 0 on the Euclidean norm of one unit's integer vector.
    """

    sigma: Annotated[float, _POSITIVE]
    l2: Annotated[float, _POSITIVE]


@_register("distributed-discrete-gaussian")
@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedDiscreteGaussian(Event):
    """A sum of integer vectors with several independent discrete Gaussian shares of noise.

    The sum of the shares is not a discrete Gaussian; what that costs is part of the curve.

    Attributes:
        sigma_share: the parameter of one share, in integer units; below 1/2 nothing is proved.
        shares: shares in the sum, 1..2^53.
        l2: bound > 0 on the Euclidean norm of one unit's integer vector.
        l1: bound > 0 on its L1 norm.
        dim: coordinates, 1..2^53.
    """

    sigma_share: Annotated[float, _POSITIVE]
    shares: Annotated[int, _COUNT]
    l2: Annotated[float, _POSITIVE]
    l1: Annotated[float, _POSITIVE]
    dim: Annotated[int, _COUNT]


@_register("skellam")
@dataclass(frozen=True, slots=True, kw_only=True)
class Skellam(Event):
    """A sum of integer vectors with symmetric Skellam noise on every coordinate.

    Attributes:
        mu: total variance of the noise per coordinate > 0, all shares together, in integer units.
        l2: bound > 0 on the Euclidean norm of one unit's integer vector.
        l1: bound > 0 on its L1 norm.
    """

    mu: Annotated[float, _POSITIVE]
    l2: Annotated[float, _POSITIVE]
    l1: Annotated[float, _POSITIVE]


@_register("tree")
@dataclass(frozen=True, slots=True, kw_only=True)
class Tree(Event):
    """Prefix sums of ``steps`` steps by a binary tree with Gaussian noise at every node.

    A tree that is restarted is a ``Repeat`` (of what one unit may take part in).

    Attributes:
        noise_multiplier: z > 0 of one node.
        steps: leaves of the tree, 1..2^53.
        participations: most steps in which one unit takes part, 1..steps.
        min_sep: least distance between two of them, >= 1; 1 allows neighbouring steps.
    """

    noise_multiplier: Annotated[float, _POSITIVE]
    steps: Annotated[int, _COUNT]
    participations: Annotated[int, _COUNT]
    min_sep: Annotated[int, _COUNT]

    def _check(self) -> None:
        most = (self.steps - 1) // self.min_sep + 1
        if self.participations > most:
            raise InvalidEvent(
                f"Tree.participations must be at most {most} for {self.steps} steps at least "
                f"{self.min_sep} apart, found {self.participations}"
            )


@_register("banded-mf")
@dataclass(frozen=True, slots=True, kw_only=True)
class BandedMF(Event):
    """Correlated noise from a banded factorisation whose columns have norm at most 1.

    Attributes:
        noise_multiplier: z > 0 of the uncorrelated noise.
        bands: non-zero diagonals, 1..2^53; a unit's participations are at least that far apart.
        steps: 1..2^53.
        participations: most steps in which one unit takes part.
        sample_rate: q of cyclic Poisson sampling (in its turn every unit is in by its own coin), or
            None if participations are fixed otherwise.
    """

    noise_multiplier: Annotated[float, _POSITIVE]
    bands: Annotated[int, _COUNT]
    steps: Annotated[int, _COUNT]
    participations: Annotated[int, _COUNT]
    sample_rate: Annotated[float | None, _OPTIONAL_RATE] = None

    def _check(self) -> None:
        most = (self.steps - 1) // self.bands + 1
        if self.participations > most:
            raise InvalidEvent(
                f"BandedMF.participations must be at most {most} for {self.steps} steps and "
                f"{self.bands} bands, found {self.participations}"
            )


@_register("select", alternatives=("eta", "gamma", "poisson_mean"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Select(Event):
    """The best of a random number of independent runs; all other runs stay unseen.

    The number of runs is truncated negative binomial (``eta``, ``gamma``; eta 1 is geometric,
    eta 0 logarithmic) or Poisson (``poisson_mean``), never a number chosen by looking.

    Attributes:
        event: one run, with its score.
        eta: shape > -1, with gamma.
        gamma: in (0, 1], with eta.
        poisson_mean: > 0, in place of both.
    """

    event: Annotated[Event, _EVENT]
    eta: Annotated[float | None, _OPTIONAL_SHAPE] = None
    gamma: Annotated[float | None, _OPTIONAL_RATE] = None
    poisson_mean: Annotated[float | None, _OPTIONAL_POSITIVE] = None

    def _check(self) -> None:
        given = tuple(x is not None for x in (self.eta, self.gamma, self.poisson_mean))
        if given not in ((True, True, False), (False, False, True)):
            raise InvalidEvent(
                "Select needs either eta and gamma or poisson_mean, found "
                f"eta={self.eta}, gamma={self.gamma}, poisson_mean={self.poisson_mean}"
            )


@_register("group")
@dataclass(frozen=True, slots=True, kw_only=True)
class Group(Event):
    """The inner event, claimed for groups of up to ``k`` units at once.

    Attributes:
        k: largest group, 1..2^53.
        event: the release, described for one unit.
    """

    k: Annotated[int, _COUNT]
    event: Annotated[Event, _EVENT]


@_register("noise-shares")
@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseShares(Event):
    """The inner event whose noise is the sum of equal shares, not all of which arrived.

    Only the shares of honest survivors count: survivors - colluding of the planned ones.

    Attributes:
        event: the release as planned, its noise that of all ``planned`` shares.
        planned: shares that make up the event's noise, 1..2^53.
        survivors: shares that arrived; may exceed ``planned`` if that was a minimum.
        colluding: of them, shares that the adversary knows, 0..survivors - 1.
    """

    event: Annotated[Event, _EVENT]
    planned: Annotated[int, _COUNT]
    survivors: Annotated[int, _COUNT]
    colluding: Annotated[int, _WHOLE] = 0

    def _check(self) -> None:
        if self.colluding >= self.survivors:
            raise InvalidEvent(
                f"NoiseShares.colluding must be below the survivors {self.survivors}, "
                f"found {self.colluding}: no honest noise would be left"
            )


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
        InvalidEvent: for anything that is not exactly one event: unknown types or keys, missing
            keys (also of fields with a default; of a ``Select`` the keys of one alternative are
            enough), duplicate keys, NaN or Infinity, values out of range, depth > 16, > 10,000
            nodes.
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
        found = value.keys() - {"type"}
        if not _REQUIRED[cls] <= found <= kinds.keys():
            expected = ", ".join(["type", *kinds])
            raise InvalidEvent(f"{where} must have the keys {expected}, found {list(value)}")
        read = {
            name: kind.from_json(value[name], f"{where}.{name}", self)
            for name, kind in kinds.items()
            if name in found
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
