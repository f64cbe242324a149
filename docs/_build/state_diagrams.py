"""Draws the state diagrams of the secure aggregation machines from their transition tables.

``python docs/_build/state_diagrams.py`` writes the pictures that the pages show; a test compares
them with what the tables give now. Nothing about the protocol is written down here: phases,
messages and who comes where are read from the protocols' ``transitions``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from xml.sax.saxutils import escape

from securefl.protocols.peersum.transitions import PEER
from securefl.protocols.secagg.transitions import CLIENT, SERVER_PHASES, Phase
from securefl.round import Adversary

PICTURES = Path(__file__).parents[1] / "explanation"

_LEFT, _TOP, _WIDTH, _HEIGHT, _STEP = 250, 20, 250, 40, 96
_MIDDLE = _LEFT + _WIDTH // 2
_SEMI, _ACTIVE = Adversary.SEMI_HONEST, Adversary.ACTIVE
_INK, _BLUE, _RED, _PAPER, _GREY = "#1f2933", "#1d4ed8", "#b91c1c", "#ffffff", "#eef2f7"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row: a phase, what moves it on, and what is sent then, per adversary."""

    phase: StrEnum
    on: str
    sends: dict[Adversary, str]
    then: dict[Adversary, StrEnum]


def client_steps() -> list[Step]:
    """The client's table."""
    return [
        Step(
            phase=row.phase,
            on=row.accepts.name if row.accepts is not None else "start()",
            sends=dict.fromkeys(row.then, row.emits.name),
            then=dict(row.then),
        )
        for row in CLIENT
    ]


def server_steps() -> list[Step]:
    """The server's table; a phase collects until it is closed."""
    return [
        Step(
            phase=row.phase,
            on=f"{row.accepts.name}, close_phase()",
            sends={
                adversary: message.name if message is not None else "AggregateReady"
                for adversary, message in row.emits.items()
            },
            then=dict(row.then),
        )
        for row in SERVER_PHASES
    ]


def peer_steps() -> list[Step]:
    """The peer's table; a phase collects until it is closed, and closing it sends the next."""
    sends = [row.message.name for row in PEER[1:]] + ["AggregateReady"]
    return [
        Step(
            phase=row.phase,
            on=f"{row.message.name}, close_phase()",
            sends={_ACTIVE: sent, _SEMI: sent},
            then=dict.fromkeys((_SEMI, _ACTIVE), row.then),
        )
        for row, sent in zip(PEER, sends, strict=True)
    ]


def diagram(title: str, steps: list[Step], aborts: str) -> str:
    """The machine as SVG.

    Args:
        title: for readers who do not see the picture.
        steps: the rows, in order. A phase that only one adversary reaches has a broken border;
            the other adversary's arrow passes it by on the left.
        aborts: what leads to ABORTED from everywhere.
    """
    order: list[StrEnum] = [*(step.phase for step in steps), Phase.DONE]
    reached = {_SEMI: {steps[0].phase}, _ACTIVE: {steps[0].phase}}
    parts: list[str] = []
    for step in steps:
        for adversary, phase in step.then.items():
            reached[adversary].add(phase)
    for i, phase in enumerate(order):
        parts.append(_box(i, phase.name, broken=phase not in reached[_SEMI]))
    for i, step in enumerate(steps):
        parts += _arrows(i, step, order)
    bottom = _TOP + len(order) * _STEP
    parts.append(
        f'<rect x="{_LEFT}" y="{bottom}" width="{_WIDTH}" height="{_HEIGHT}" rx="8" '
        f'fill="{_GREY}" stroke="{_RED}"/>'
        + _text(_MIDDLE, bottom + 25, Phase.ABORTED.name, anchor="middle", weight="600")
        + _text(_LEFT + _WIDTH + 14, bottom + 25, f"from every phase: {aborts}", colour=_RED)
    )
    height = bottom + _HEIGHT + _TOP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 {height}" role="img" '
        f'font-family="ui-monospace, monospace" font-size="13">\n<title>{escape(title)}</title>\n'
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z" fill="context-stroke"/>'
        f'</marker></defs>\n<rect width="1000" height="{height}" fill="{_PAPER}"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _box(i: int, name: str, *, broken: bool) -> str:
    y = _TOP + i * _STEP
    dashes = ' stroke-dasharray="6 4"' if broken else ""
    return (
        f'<rect x="{_LEFT}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="{_GREY}" '
        f'stroke="{_BLUE if broken else _INK}"{dashes}/>'
        + _text(_MIDDLE, y + 25, name, anchor="middle", weight="600")
    )


def _arrows(i: int, step: Step, order: list[StrEnum]) -> list[str]:
    """One arrow if both adversaries go the same way, else one for each."""
    below = _TOP + i * _STEP + _HEIGHT
    parts = []
    for adversary in (_SEMI, _ACTIVE):
        if adversary not in step.then:
            continue
        target = order.index(step.then[adversary])
        same = step.then.get(_SEMI) == step.then.get(_ACTIVE)
        if same and adversary is _ACTIVE:
            continue
        colour = _INK if same else (_BLUE if adversary is _ACTIVE else _INK)
        whose = "" if same else f" ({'active' if adversary is _ACTIVE else 'semi-honest'})"
        said, sent = f"{step.on}{whose}", f"→ {step.sends[adversary]}"
        top = _TOP + target * _STEP
        if target == i + 1:
            parts.append(_line(f"M{_MIDDLE} {below}V{top}", colour))
            parts.append(_text(_MIDDLE + 14, below + 24, said, colour=colour))
            parts.append(_text(_MIDDLE + 14, below + 42, sent, colour=colour))
        else:
            start, end = below - _HEIGHT // 2, top + _HEIGHT // 2
            parts.append(_line(f"M{_LEFT} {start}H{_LEFT - 16}V{end}H{_LEFT}", colour))
            middle = (start + end) // 2
            for k, text in enumerate((step.on, whose.strip(), sent)):
                at = middle - 18 + 18 * k
                parts.append(_text(_LEFT - 24, at, text, anchor="end", colour=colour))
    return parts


def _line(path: str, colour: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{colour}" marker-end="url(#tip)"/>'


def _text(
    x: int, y: int, text: str, *, anchor: str = "start", weight: str = "400", colour: str = _INK
) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}">{escape(text)}</text>'
    )


def pictures() -> dict[Path, str]:
    """Every picture: where it lies, and what it should contain."""
    return {
        PICTURES / "secagg-client.svg": diagram(
            "The client's machine", client_steps(), "ABORT, abort(), a failed check"
        ),
        PICTURES / "secagg-server.svg": diagram(
            "The server's machine", server_steps(), "too few clients, wrong shares"
        ),
        PICTURES / "peersum-peer.svg": diagram(
            "The peer's machine", peer_steps(), "abort(), too few agree, wrong sums"
        ),
    }


if __name__ == "__main__":
    for path, content in pictures().items():
        path.write_text(content, encoding="utf-8")
