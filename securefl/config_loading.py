"""From the text of a configuration to a validated object, or to one message with every problem.

TOML with overrides, strict JSON, and how a failed validation reads: each problem with its key, what
was found, and for an unknown key the nearest known one. The model is an argument; this module knows
no section.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from securefl.errors import ConfigurationError

__all__ = ["explain", "hint", "parse_toml", "validate_json"]

Model = TypeVar("Model", bound=BaseModel)


def parse_toml(model: type[Model], text: str, source: str, overrides: Iterable[str]) -> Model:
    """The object that a TOML text describes.

    Args:
        model: what to validate as.
        text: TOML.
        source: where it comes from, for messages.
        overrides: ``section.key=value`` strings, value in TOML syntax (bare words are strings).

    Raises:
        ConfigurationError: bad syntax, unknown key, or a value out of range.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source}: not valid TOML: {error}") from error
    for override in overrides:
        _override(tree, override)
    # JSON mode: strict about numbers and strings, yet arrays become tuples, strings enums.
    return validate_json(model, json.dumps(tree, default=str), source)


def validate_json(model: type[Model], content: str | bytes, source: str) -> Model:
    """The object that a JSON text describes.

    Raises:
        ConfigurationError: with every problem of the content.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise ConfigurationError(explain(model, error, source)) from error


def _override(tree: dict[str, Any], override: str) -> None:
    key, found, value = override.partition("=")
    parts = key.strip().split(".")
    if not found or not all(parts):
        raise ConfigurationError(
            f"--set {override!r}: expected section.key=value, e.g. partition.kind=dirichlet"
        )
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigurationError(f"--set {override!r}: {part} is a value, not a section")
        node = child
    node[parts[-1]] = parsed


def explain(model: type[BaseModel], error: ValidationError, source: str) -> str:
    """All problems of one validation, a line each."""
    lines = []
    for problem in error.errors():
        location = ".".join(str(part) for part in problem["loc"]) or "the configuration"
        if problem["type"] == "extra_forbidden":
            *path, key = (str(part) for part in problem["loc"])
            lines.append(f"{location}: unknown key{hint(key, _known_keys(model, path))}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            found = "" if isinstance(problem["input"], dict | BaseModel) else _found(problem)
            lines.append(f"{location}: {message}{found}")
    return "\n".join([f"{source}: {len(lines)} problem(s)", *(f"  {line}" for line in lines)])


def _found(problem: Mapping[str, Any]) -> str:
    return "" if problem["type"] == "missing" else f", found {problem['input']!r}"


def _known_keys(model: type[BaseModel], path: list[str]) -> tuple[str, ...]:
    for part in path:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ()
        model = annotation
    return tuple(field.alias or name for name, field in model.model_fields.items())


def hint(word: str, known: Iterable[str]) -> str:
    """What somebody may have meant: the nearest known word, or all of them."""
    options = tuple(known)
    near = difflib.get_close_matches(word, options, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(options)}" if options else ""
