"""Two deployment files side by side: what changed, and what each change costs by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from accounting.accountant import Bound
from accounting.audit.bounds import best_upper
from accounting.audit.events import WORST
from accounting.audit.report import AuditReport, audit
from accounting.deployment import Deployment, impossible_values
from accounting.errors import InvalidDeployment

__all__ = ["Changed", "Difference", "difference", "shown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """One key that differs.

    Attributes:
        key: dotted, phases and releases by name.
        before: value in the first file; None where it is not there.
        after: value in the second one.
        alone: the claim's bound of the first file with only this change; None where there is none.
        note: why there is none.
    """

    key: str
    before: object
    after: object
    alone: Bound | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two audits and what lies between them.

    Attributes:
        first: the audit of the first file.
        second: the audit of the second one.
        changes: keys that differ, in the order of the file.
    """

    first: AuditReport
    second: AuditReport
    changes: tuple[Changed, ...]


def difference(first: Deployment, second: Deployment) -> Difference:
    """Compares two deployments key by key and audits both."""
    before, after = dict(_flat(first)), dict(_flat(second))
    keys = [*before, *(key for key in after if key not in before)]
    found = tuple(
        _changed(first, key, before.get(key), after.get(key))
        for key in keys
        if before.get(key) != after.get(key)
    )
    return Difference(first=audit(first), second=audit(second), changes=found)


def _flat(deployment: Deployment) -> Iterator[tuple[str, object]]:
    yield from _leaves(deployment.model_dump(mode="python", by_alias=True), "")


def _leaves(value: object, where: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        for inner in value:
            rest = {key: part for key, part in inner.items() if key != "name"}
            yield from _leaves(rest, f"{where}[{inner['name']}]")
    else:
        yield where, value


def _changed(first: Deployment, key: str, before: object, after: object) -> Changed:
    changed = _with(first, key, after)
    if changed is None:
        return Changed(
            key=key, before=before, after=after, alone=None, note="not possible by itself"
        )
    bound, note = best_upper(changed, WORST)
    return Changed(key=key, before=before, after=after, alone=bound, note=note)


def _with(first: Deployment, key: str, value: object) -> Deployment | None:
    """The first file with one key of the second one; None if that is no possible file."""
    tree = first.model_dump(mode="python", by_alias=True)
    *path, last = _steps(key) if "[" in key else key.split(".")
    node: Any = tree
    for step in path:
        node = _child(node, step)
        if node is None:
            return None
    node[last] = value
    try:
        found = Deployment.parse_tree(_without_none(tree))
    except InvalidDeployment:
        return None
    return None if impossible_values(found) else found


def _steps(key: str) -> list[str]:
    """``phase[a.b].noise.kind`` as ``phase``, ``[a.b]``, ``noise``, ``kind``."""
    head, _, rest = key.partition("[")
    name, _, tail = rest.rpartition("]")
    return [head, f"[{name}]", *tail.strip(".").split(".")]


def _child(node: Any, step: str) -> Any:
    if step.startswith("["):
        return next((part for part in node if part["name"] == step[1:-1]), None)
    return node.get(step)


def _without_none(value: Any) -> Any:
    """What was left out of a file is no value of it."""
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_without_none(part) for part in value]
    return value


def shown(value: object) -> str:
    """A value as it stands in a file."""
    return "not there" if value is None else json.dumps(value, default=str)
