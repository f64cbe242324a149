"""Line plots as inline SVG, drawn by hand: no package to install, nothing to load.

Colours come from the page (light or dark); lines differ in dash as well as in colour. A plot has a
title and a description for those who do not see it. This module knows curves, not privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

__all__ = ["Line", "line_plot"]

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 34, 46
# Okabe and Ito (2008): told apart with the common colour-vision deficiencies.
_STYLES = (("#0072B2", ""), ("#D55E00", "6 4"), ("#009E73", "2 3"), ("#CC79A7", "9 3 2 3"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line: (x, y) points with x rising."""

    label: str
    points: tuple[tuple[float, float], ...]


def line_plot(
    title: str,
    lines: tuple[Line, ...],
    *,
    x_label: str,
    y_label: str,
    level: tuple[str, float] | None = None,
    log_x: bool = False,
    x_percent: bool = False,
) -> str:
    """An ``<svg>`` element, or an empty string if there is nothing to draw.

    Args:
        title: heading and name for screen readers.
        lines: at least one line with a point; values must be finite, x > 0 for ``log_x``.
        x_label: what x is.
        y_label: what y is; y starts at 0.
        level: a horizontal line with its label, such as the promise; left out if it would flatten
            everything else.
        log_x: logarithmic x.
        x_percent: x are fractions, to be shown as percentages.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    highest = max(y for _, y in points)
    shown = level if level is not None and level[1] <= 20 * max(highest, 1e-300) else None
    top = 1.12 * max(highest, 0.0 if shown is None else shown[1], 1e-12)
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    frame = _Frame(low=low, high=high if high > low else low + 1, top=top, log_x=log_x)
    parts = [
        f'<svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        _text(_LEFT, 18, title, "start", "t"),
        *_axes(frame, x_label, y_label, x_percent=x_percent),
    ]
    if shown is not None:
        y = frame.y(shown[1])
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(_text(_WIDTH - _RIGHT, y - 5, shown[0], "end"))
    for index, line in enumerate(lines):
        parts += _line(frame, line, index, named=len(lines) > 1)
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """From values to pixels."""

    low: float
    high: float
    top: float
    log_x: bool

    def x(self, value: float) -> float:
        span = _WIDTH - _LEFT - _RIGHT
        if self.log_x:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return round(_LEFT + span * part, 1)

    def y(self, value: float) -> float:
        span = _HEIGHT - _TOP - _BOTTOM
        return round(_TOP + span * (1 - value / self.top), 1)


def _axes(frame: _Frame, x_label: str, y_label: str, *, x_percent: bool) -> list[str]:
    parts = []
    for value in _ticks(0.0, frame.top):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(_text(_LEFT - 8, y + 4, _short(value), "end"))
    xs = _powers(frame.low, frame.high) if frame.log_x else []
    if len(xs) < 3:
        xs = _ticks(frame.low, frame.high)
    for value in xs:
        label = f"{100 * value:.3g} %" if x_percent else _short(value)
        parts.append(_text(frame.x(value), _HEIGHT - _BOTTOM + 18, label, "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_label, "middle", "s"))
    parts.append(_text(_WIDTH - _RIGHT, 18, y_label, "end", "s"))
    return parts


def _line(frame: _Frame, line: Line, index: int, *, named: bool) -> list[str]:
    colour, dash = _STYLES[index % len(_STYLES)]
    path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in line.points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>']
    if len(line.points) == 1:
        x, y = line.points[0]
        parts.append(f'<circle cx="{frame.x(x)}" cy="{frame.y(y)}" r="4" fill="{colour}"/>')
    if named:
        y = _TOP + 14 + 18 * index
        parts.append(
            f'<line x1="{_LEFT + 10}" x2="{_LEFT + 40}" y1="{y - 4}" y2="{y - 4}" '
            f'stroke="{colour}" stroke-width="2"{dashes}/>'
        )
        parts.append(_text(_LEFT + 48, y, line.label, "start"))
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from low to high."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, .. inside of a range."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
    return [value for value in found if low <= value <= high]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{escape(text)}</text>'
