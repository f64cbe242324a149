"""The form of a file's keys: possible values, descriptions, and messages about what is wrong.

Works on any pydantic model whose numbers carry a :class:`Span`; it knows no deployment.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ValidationError

from accounting.events import MAX_COUNT

__all__ = ["KeyInfo", "Span", "Words", "explain", "keys_of"]


def _printable(text: str) -> str:
    """Reports are read on terminals and pages: no text of a file may move their cursor or order."""
    if not text.isprintable():
        raise ValueError("only printable characters, no control or direction marks")
    return text


Words = Annotated[str, AfterValidator(_printable)]
"""Free text in a file that ends up in front of a reader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The values of a number that describe something possible; not a matter of parsing.

    Attributes:
        low: least value.
        high: greatest value.
        low_open: whether ``low`` itself is impossible.
        high_open: whether ``high`` itself is impossible.
    """

    low: float = 0.0
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is finite and inside."""
        try:
            if not math.isfinite(value):
                return False
        except OverflowError:  # a whole number that no float can hold
            return False
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        if self.high in {MAX_COUNT, math.inf}:
            return f"{'above' if self.low_open else 'at least'} {self.low:g}"
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """One key of the file.

    Attributes:
        section: dotted name of its table, empty at the top.
        name: the key.
        kind: type or words, and range.
        default: as in TOML, ``required``, or ``none``.
        text: what it means.
    """

    section: str
    name: str
    kind: str
    default: str
    text: str


def keys_of(model: type[BaseModel]) -> tuple[KeyInfo, ...]:
    """Every key of a model of a file, in the order of the file."""
    return tuple(_keys(model, ""))


def _keys(model: type[BaseModel], section: str) -> Iterator[KeyInfo]:
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, info in model.model_fields.items():
        below = _model_of(info.annotation)
        if below is not None:
            inner.append((f"{section}.{name}" if section else name, below))
            continue
        yield KeyInfo(
            section=section,
            name=info.alias or name,
            kind=_kind(info.annotation, [m for m in info.metadata if isinstance(m, Span)]),
            default="required" if info.is_required() else _toml(info.default),
            text=info.description or "",
        )
    for path, below in inner:
        yield from _keys(below, path)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _kind(annotation: Any, spans: list[Span]) -> str:
    if get_origin(annotation) in {Union, types.UnionType}:
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return ", ".join(f'`"{word}"`' for word in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {_kind(get_args(annotation)[0], [])}"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return ", ".join([names[annotation], *map(str, spans)])


def _toml(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if value == ():
        return "`[]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def explain(error: ValidationError, source: str, model: type[BaseModel]) -> str:
    """What is wrong with a file: one line per problem, with its key and the nearest known word."""
    lines = [_problem(problem, model) for problem in error.errors()]
    return "\n".join([f"{source}: {len(lines)} problem(s)", *(f"  {line}" for line in lines)])


def _problem(problem: Mapping[str, Any], root: type[BaseModel]) -> str:
    path = [part for part in problem["loc"] if not str(part).startswith(("function-", "lax-"))]
    location = ".".join(_plain(str(part)) for part in path) or "the file"
    if problem["type"] == "extra_forbidden":
        *above, key = path
        return f"{location}: unknown key{_nearest(str(key), _names(above, root))}"
    if problem["type"] == "missing":
        return f"{location}: this key is missing"
    if problem["type"] == "literal_error":
        words = tuple(word.strip("' ") for word in _words(str(problem["ctx"]["expected"])))
        return (
            f"{location}: found {_short(problem['input'])}{_nearest(str(problem['input']), words)}"
        )
    message = str(problem["msg"]).removeprefix("Value error, ")
    found = problem["input"]
    shown = "" if isinstance(found, dict | BaseModel) else f", found {_short(found)}"
    return f"{location}: {message}{shown}"


def _plain(key: str) -> str:
    """A key as it stands in the file, or quoted and short where that could mislead a terminal."""
    return key if key.isprintable() and len(key) <= 80 else _short(key)


def _words(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").split(", ")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _names(path: list[Any], root: type[BaseModel]) -> tuple[str, ...]:
    model = root
    for part in path:
        if isinstance(part, int):
            continue
        info = model.model_fields.get(str(part))
        below = None if info is None else _model_of(info.annotation)
        if below is None:
            return ()
        model = below
    return tuple(info.alias or name for name, info in model.model_fields.items())


def _nearest(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if known else ""
