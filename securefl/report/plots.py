"""The pictures of a report: accuracy, epsilon, survivors and bytes by round.

Each panel is drawn by one function on axes it is given, once into ``plot.png`` (four panels) and
once each into SVG for the page. Only matplotlib's object interface is used, never pyplot, so a
caller's own figures and settings stay as they are. Lines differ in colour, dash and marker; the
colours are those of Okabe and Ito (2008, "Color Universal Design"), which people with the common
colour-vision deficiencies tell apart. The module knows the run's values, not its files.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from securefl.report.statements import bytes_text, row_label
from securefl.report.tree import RoundRecord, RunTree

__all__ = ["PANELS", "PNG_SIZE", "plot_png", "plot_svgs"]

PNG_SIZE = (1400, 1000)
"""Width and height of ``plot.png`` in pixels."""

_DPI = 140
_STYLES: tuple[tuple[str, str, str], ...] = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#E69F00", "-", "v"),
    ("#56B4E9", "--", "P"),
)
# Two inks that occur nowhere else: the page replaces them by colours of its light or dark theme.
_INK, _GRID = "#010203", "#D0D1D2"
_SETTINGS: dict[str, object] = {
    "text.parse_math": False,  # a name such as $x$ is a name, not a formula
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same pixels everywhere
    "svg.fonttype": "none",
    "svg.hashsalt": "securefl",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """One row of the table over the rounds: middle, low and high of its seeds."""

    label: str
    style: tuple[str, str, str]
    rounds: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def _series(tree: RunTree, value: Callable[[RoundRecord], float | None]) -> Iterator[_Series]:
    """Rows in which ``value`` is recorded at all; a round that lacks it is left out."""
    for index, row in enumerate(tree.rows):
        by_round: dict[int, list[float]] = {}
        for run in row.runs:
            for record in run.rounds:
                found = value(record)
                if found is not None:
                    by_round.setdefault(record.index + 1, []).append(found)
        if by_round:
            groups = sorted(by_round.items())
            yield _Series(
                label=_plain(row_label(row.mode, row.target_epsilon)),
                style=_STYLES[index % len(_STYLES)],
                rounds=tuple(number for number, _ in groups),
                mean=tuple(sum(values) / len(values) for _, values in groups),
                low=tuple(min(values) for _, values in groups),
                high=tuple(max(values) for _, values in groups),
            )


def _plain(label: str) -> str:
    """The label without characters that the font may lack; never hidden by a leading underscore."""
    kept = "".join(c if (c.isascii() and c.isprintable()) or c in "ε≤–" else "?" for c in label)
    return f" {kept}" if kept.startswith("_") else kept


def _line(axes: Axes, one: _Series, values: Sequence[float]) -> None:
    colour, dash, marker = one.style
    axes.plot(
        one.rounds,
        values,
        color=colour,
        linestyle=dash,
        marker=marker,
        markersize=4,
        markevery=max(1, len(one.rounds) // 12),
        label=one.label,
    )


def _band(axes: Axes, one: _Series) -> None:
    if one.low != one.high:
        axes.fill_between(
            one.rounds, one.low, one.high, color=one.style[0], alpha=0.18, linewidth=0
        )


def _finish(axes: Axes, title: str, *, legend: bool = False) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel("round")
    axes.set_xlim(left=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.patch.set_visible(False)
    if legend:
        axes.legend(fontsize=9, framealpha=0, loc="best")


def _note(axes: Axes, text: str) -> None:
    """Words in place of a plot: an empty grid with arbitrary numbers would look like data."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=10)


def _accuracy(axes: Axes, tree: RunTree) -> None:
    series = list(_series(tree, lambda record: record.accuracy))
    for one in series:
        _line(axes, one, one.mean)
        _band(axes, one)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    _mark_lost_rounds(axes, tree)
    if not series:
        _note(axes, "no accuracy was recorded")
    _finish(axes, "Test accuracy (band: all seeds)", legend=bool(series))


def _mark_lost_rounds(axes: Axes, tree: RunTree) -> None:
    lost = sorted(
        {record.index + 1 for run in tree.runs for record in run.rounds if record.status != "ok"}
    )
    if lost:
        axes.plot(
            lost,
            [0.02] * len(lost),
            transform=axes.get_xaxis_transform(),
            color=_INK,
            marker="x",
            linestyle="",
            markersize=5,
            label="round without a sum",
        )


def _epsilon(axes: Axes, tree: RunTree) -> None:
    series = list(_series(tree, lambda record: record.epsilon))
    for one in series:
        _line(axes, one, one.high)  # not the mean: each run's guarantee has to hold by itself
    targets = {row.target_epsilon for row in tree.rows} - {None}
    for target in targets:
        if target is not None:
            axes.axhline(target, color=_INK, linestyle=(0, (6, 4)), linewidth=1)
            axes.annotate(
                f"target {target:g}",
                (0.6, target),  # where no concave curve passes just above its own target
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=9,
            )
    if series:
        axes.set_ylim(bottom=0, top=1.12 * max([*filter(None, targets), *_tops(series)]))
    else:
        _note(axes, "no row adds noise:\nthere is no finite epsilon")
    _finish(axes, "Spent ε (largest over clients and seeds)")


def _tops(series: Sequence[_Series]) -> Iterator[float]:
    return (max(one.high) for one in series)


def _survivors(axes: Axes, tree: RunTree) -> None:
    for one in _series(tree, lambda record: record.survivors):
        _line(axes, one, one.low)  # the smallest crowd that an update was hidden in
    cohort = max((r.cohort for run in tree.runs for r in run.rounds), default=0)
    axes.set_ylim(0, max(1, cohort) * 1.1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, f"Clients in the sum (fewest over seeds, of {cohort})")


def _bytes(axes: Axes, tree: RunTree) -> None:
    series = list(_series(tree, lambda record: record.bytes_up_per_client))
    top = max([0.0, *_tops(series)])
    if top:
        for one in series:
            _line(axes, one, one.mean)
        axes.set_ylim(0, top * 1.1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value)))
    else:
        _note(axes, "no bytes were sent")
    _finish(axes, "Upload per client and round")


PANELS: Mapping[str, Callable[[Axes, RunTree], None]] = {
    "accuracy": _accuracy,
    "epsilon": _epsilon,
    "survivors": _survivors,
    "bytes": _bytes,
}
"""Panel name to the function that draws it, in reading order."""


def plot_png(tree: RunTree) -> bytes:
    """All panels in one PNG of :data:`PNG_SIZE` pixels on white."""
    with rc_context(_SETTINGS):  # type: ignore[arg-type]  # the stubs list keys as literals only
        width, height = PNG_SIZE
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, layout="constrained")
        for axes, draw in zip(figure.subplots(2, 2).flat, PANELS.values(), strict=True):
            draw(axes, tree)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def plot_svgs(tree: RunTree) -> dict[str, str]:
    """Each panel as an ``<svg>`` element that follows the page's colours and needs nothing else."""
    return {name: _svg(name, draw, tree) for name, draw in PANELS.items()}


def _svg(name: str, draw: Callable[[Axes, RunTree], None], tree: RunTree) -> str:
    with rc_context(_SETTINGS):  # type: ignore[arg-type]  # the stubs list keys as literals only
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        figure.patch.set_visible(False)
        draw(figure.subplots(), tree)
        out = io.StringIO()
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=empty)
    return _inline(name, out.getvalue())


def _inline(name: str, document: str) -> str:
    """The ``<svg>`` element alone: no document type (it names a URL), no fixed size, own inks.

    Ids get the panel's name in front, since all panels share one page.
    """
    element = document[document.index("<svg") :].strip()
    element = re.sub(r'(<svg [^>]*?)width="[^"]*pt" height="[^"]*pt"', r"\1", element, count=1)
    element = element.replace("<svg ", f'<svg role="img" aria-label="{name} by round" ', 1)
    element = element.replace(' id="', f' id="{name}-').replace('="#', f'="#{name}-')
    element = element.replace("url(#", f"url(#{name}-").replace("'DejaVu Sans'", "sans-serif")
    return element.replace(_INK, "currentColor").replace(_GRID.lower(), "var(--line)")
