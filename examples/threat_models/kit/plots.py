"""Pictures that are understood without the code: grids of images, points under a cap, maps.

The only module that imports matplotlib; programs call it from the function they give as
``Outcome.draw``. One look for all: recovered beside original, measured points over the predicted
line, baseline always drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl  # brings Pillow
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

__all__ = [
    "BAD",
    "GOOD",
    "NEUTRAL",
    "WHITE",
    "bars",
    "breach_map",
    "image_rows",
    "save",
    "under_cap",
]

BAD, GOOD, NEUTRAL = "#b2182b", "#2166ac", "#777777"
"""An attack that works, a defence that holds, a baseline."""

WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
"""Behind a number that may lie on a line."""

_STYLE: Any = {  # matplotlib types its keys one by one
    "figure.dpi": 100,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def save(draw: Callable[[Figure], None], path: Path) -> Path:
    """Draws into a fresh figure without a display and writes a PNG with no date in it."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 4.2))
        draw(figure)
        whole = io.BytesIO()
        figure.savefig(whole, format="png")
    # A palette is plenty for flat colours and greys, and half of the bytes.
    flat = Image.open(whole).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    flat.save(path, format="PNG", optimize=True)
    return path


def image_rows(
    figure: Figure,
    rows: Sequence[tuple[str, ArrayLike]],
    *,
    title: str,
    captions: Sequence[str] = (),
) -> None:
    """Rows of 8 x 8 images: (label, float[k, 64]) each; the first row is the original.

    Args:
        figure: empty.
        rows: from above.
        title: who attacks, and n.
        captions: under each row, e.g. "median 98 dB, identified 6 of 6".

    An image of NaN is drawn grey, with the word "nothing": there is no vector to look at.
    """
    columns = max(len(np.atleast_2d(np.asarray(images))) for _, images in rows)
    figure.set_size_inches(2.4 + 0.62 * columns, 0.5 + 0.85 * len(rows))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for r, (label, images) in enumerate(rows):
        pixels = np.atleast_2d(np.asarray(images, float))
        caption = f"\n{captions[r]}" if r < len(captions) and captions[r] else ""
        for k in range(columns):
            ax = axes[r][k]
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
            if k < len(pixels):
                shown = np.clip(np.nan_to_num(pixels[k], nan=0.5), 0, 1).reshape(8, 8)
                if np.isnan(pixels[k]).all():
                    shown = np.full((8, 8), 0.25)
                    ax.text(3.5, 3.5, "nothing", ha="center", va="center", fontsize=7)
                ax.imshow(shown, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes[r][0].set_ylabel(label + caption, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(title, fontsize=10)


def under_cap(
    ax: Axes,
    x: ArrayLike,
    series: Mapping[str, ArrayLike],
    *,
    cap: ArrayLike | None = None,
    baseline: float | None = None,
    xlabel: str,
    ylabel: str,
    title: str,
) -> None:
    """Measured points, one column per seed, over the line that theory predicts.

    Args:
        ax: empty axes.
        x: float[k].
        series: name to float[k] or float[k, seeds].
        cap: float[k].
        baseline: an attacker without the transcript.
        xlabel: words.
        ylabel: words.
        title: attacker and n.
    """
    at = np.asarray(x, float)
    for i, (name, values) in enumerate(series.items()):
        y = np.asarray(values, float).reshape(len(at), -1)
        colour = (BAD, GOOD, "#e08214", "#542788")[i % 4]
        ax.plot(at, np.median(y, axis=1), "-", color=colour, lw=1, alpha=0.6)
        for column in y.T:
            ax.plot(at, column, "o", color=colour, ms=3.5, alpha=0.8)
        ax.plot([], [], "o-", color=colour, label=name)
    if cap is not None:
        ax.plot(at, np.asarray(cap, float), "--", color="black", lw=1.2, label="cap (theory)")
    if baseline is not None:
        ax.axhline(baseline, color=NEUTRAL, lw=1, ls=":", label="baseline: no transcript")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.set_title(title)
    ax.legend(fontsize=8)


def breach_map(
    ax: Axes,
    predicted: ArrayLike,
    executed: Mapping[tuple[int, int], bool],
    *,
    title: str,
    thresholds: Sequence[int],
    colluders: Sequence[int],
) -> None:
    """A map over (threshold, colluders): shaded where theory says that the attack works.

    Args:
        ax: empty axes.
        predicted: bool[colluders, thresholds].
        executed: (t, c) to whether the executed attack recovered its victim.
        title: which attack.
        thresholds: along the bottom.
        colluders: along the side.
    """
    shaded = np.asarray(predicted, bool)
    left, right = thresholds[0] - 0.5, thresholds[-1] + 0.5
    bottom, top = colluders[0] - 0.5, colluders[-1] + 0.5
    rgb = np.where(shaded[..., None], (0.96, 0.80, 0.78), (0.88, 0.93, 0.98))
    ax.imshow(rgb, origin="lower", extent=(left, right, bottom, top), aspect="auto")
    for (t, c), won in executed.items():
        ax.plot(t, c, "o" if won else "x", color=BAD if won else GOOD, ms=4.5)
    ax.set_xlabel("threshold t")
    ax.set_ylabel("colluders c")
    ax.set_title(title)
    ax.set_xticks(list(thresholds)[::2])


def bars(
    ax: Axes,
    rows: Sequence[tuple[str, float, str]],
    *,
    xlabel: str,
    title: str,
    baseline: float | None = None,
    most: float | None = None,
) -> None:
    """One horizontal bar per setting: (label, value, colour), from above."""
    labels = [label for label, _, _ in rows]
    values = [value for _, value, _ in rows]
    span = most if most is not None else max([*values, 1e-9])
    places = range(len(rows))
    ax.barh(places, values, color=[colour for _, _, colour in rows], height=0.6)
    for place, value in zip(places, values, strict=True):
        ax.text(value + 0.01 * span, place, f"{value:.3g}", va="center", fontsize=8, bbox=WHITE)
    ax.set_yticks(list(places), labels)
    ax.invert_yaxis()
    ax.set_xlim(0, span * 1.12)
    if baseline is not None:
        ax.axvline(baseline, color=NEUTRAL, ls=":", lw=1.2)
        ax.text(baseline, 1.0, "baseline", transform=ax.get_xaxis_transform(), color=NEUTRAL,
                fontsize=7, ha="right", va="bottom")  # fmt: skip
    ax.set_xlabel(xlabel)
    ax.set_title(title, pad=12 if baseline is not None else None)
