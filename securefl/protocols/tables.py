"""A protocol's two machines as tables: rows, how to look them up, and how a page shows them.

One row per phase and side, after the figures in which the papers list their rounds (for instance
Bonawitz et al. 2017, figure 4). Each protocol has its own rows, message types and phases in its
``transitions``; this module knows none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Generic, TypeVar

from securefl.round import Adversary

__all__ = ["BOTH", "ClientRow", "ServerRow", "Tables"]

BOTH = (Adversary.SEMI_HONEST, Adversary.ACTIVE)
"""The adversaries, in the order in which a table names them."""

_P = TypeVar("_P", bound=StrEnum)
_M = TypeVar("_M", bound=IntEnum)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRow(Generic[_P, _M]):
    """One phase of the client.

    Attributes:
        phase: where it is.
        gathers: what it takes before, once per other client; None for nothing.
        accepts: the frame that moves it on; None where a call (``start()``) does.
        emits: what it sends then.
        then: next phase per adversary; an adversary that is missing never comes here.
    """

    phase: _P
    gathers: _M | None = None
    accepts: _M | None
    emits: _M
    then: dict[Adversary, _P]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRow(Generic[_P, _M]):
    """One phase of the server.

    Attributes:
        phase: where it is.
        accepts: what it collects.
        relays: what it sends to the other clients at once, per message collected; None for nothing.
        emits: what it sends when it closes the phase.
        then: next phase per adversary; an adversary that is missing never comes here.
    """

    phase: _P
    accepts: _M
    relays: _M | None = None
    emits: dict[Adversary, _M | None]
    then: dict[Adversary, _P]


class Tables(Generic[_P, _M]):
    """The rows of both sides.

    Args:
        client: one row per phase, in order.
        server: likewise.
    """

    def __init__(
        self, client: Sequence[ClientRow[_P, _M]], server: Sequence[ServerRow[_P, _M]]
    ) -> None:
        self._client = {row.phase: row for row in client}
        self._server = {row.phase: row for row in server}

    def client_row(self, phase: _P) -> ClientRow[_P, _M] | None:
        """The client's row of a phase; None for those that accept nothing."""
        return self._client.get(phase)

    def server_row(self, phase: _P) -> ServerRow[_P, _M] | None:
        """The server's row of a phase; None for those that accept nothing."""
        return self._server.get(phase)

    def next_client_phase(self, phase: _P, adversary: Adversary) -> _P:
        """Where the client goes after emitting the row's message."""
        return self._client[phase].then[adversary]

    def next_server_phase(self, phase: _P, adversary: Adversary) -> _P:
        """Where the server goes after closing the phase."""
        return self._server[phase].then[adversary]

    def client_table(self) -> str:
        """The client's rows as a Markdown table (the documentation contains exactly this)."""
        lines = [
            "| client phase | accepts | emits | next (semi-honest / active) |",
            "|---|---|---|---|",
        ]
        for row in self._client.values():
            accepts = f"`{row.accepts.name}`" if row.accepts is not None else "`start()`"
            if row.gathers is not None:
                accepts = f"any `{row.gathers.name}`, then {accepts}"
            then = _cell(row.then)
            lines.append(f"| `{row.phase.name}` | {accepts} | `{row.emits.name}` | {then} |")
        return "\n".join(lines)

    def server_table(self) -> str:
        """The server's rows as a Markdown table (the documentation contains exactly this)."""
        lines = [
            "| server phase | collects | emits on `close_phase()` | next (semi-honest / active) |",
            "|---|---|---|---|",
        ]
        for row in self._server.values():
            collects = f"`{row.accepts.name}`"
            if row.relays is not None:
                collects += f", passed on as `{row.relays.name}`"
            emits, then = _cell(row.emits), _cell(row.then)
            lines.append(f"| `{row.phase.name}` | {collects} | {emits} | {then} |")
        return "\n".join(lines)


def _cell(values: Mapping[Adversary, StrEnum] | Mapping[Adversary, IntEnum | None]) -> str:
    """Semi-honest / active, or one word if they agree."""
    found = [values.get(adversary) for adversary in BOTH]
    words = [f"`{value.name}`" if value is not None else "-" for value in found]
    return words[0] if words[0] == words[1] else " / ".join(words)
