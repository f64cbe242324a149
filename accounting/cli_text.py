"""How the commands say things: bounds rounded up, null for infinity in JSON, plain warnings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

__all__ = ["number", "plain_warnings", "shown"]


@contextmanager
def plain_warnings(console: Console) -> Iterator[None]:
    """Warnings as single lines on this console, without file names and source lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: console.print(
            f"warning: {message}", style="yellow", markup=False
        )
        yield


def number(value: float) -> float | None:
    """JSON has no infinity: null."""
    return value if math.isfinite(value) else None


def shown(value: float | None) -> str:
    """Six digits, rounded up, so that no bound is shown smaller than it is."""
    if value is None or not math.isfinite(value):
        return "infinite" if value is None or value > 0 else str(value)
    if value == 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 5)
    return f"{math.ceil(value / step - 1e-9) * step:.6g}"
