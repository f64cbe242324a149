"""The images that are attacked: scikit-learn's digits, with victims and public records fixed here.

1797 images of 8 x 8 pixels with values 0..16, divided by 16. Nothing is chosen after a result was
seen: victims are evenly spaced in the private part, the public part is disjoint from it.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLASSES", "PIXELS", "PRIVATE", "PUBLIC", "VICTIMS", "Images", "digits", "public"]
__all__ += ["victims"]

PIXELS, CLASSES = 64, 10
PRIVATE = range(1000)
PUBLIC = range(1000, 1797)
"""797 records that an attacker may know; no victim is among them."""
VICTIMS = tuple(range(0, 1000, 20))
"""50 private records, fixed before any run."""


class Images(NamedTuple):
    """Pixels float64[n, 64] in [0, 1], labels int64[n], and which records of the set they are."""

    x: NDArray[np.float64]
    y: NDArray[np.int64]
    row: NDArray[np.int64]

    def take(self, rows: object) -> Images:
        """Those rows."""
        at = np.asarray(rows)
        return Images(self.x[at], self.y[at], self.row[at])


@lru_cache(maxsize=1)
def digits() -> Images:
    """All 1797, in scikit-learn's order; read-only.

    Read from the file that scikit-learn installs: importing it takes longer than many a program.

    >>> digits().x.shape, float(digits().x.max())
    ((1797, 64), 1.0)
    """
    table = np.loadtxt(_file(), delimiter=",")
    x, y = table[:, :PIXELS] / 16.0, table[:, PIXELS].astype(np.int64)
    index = np.arange(len(x))
    for array in (x, y, index):
        array.setflags(write=False)
    return Images(x, y, index)


def _file() -> Path:
    found = importlib.util.find_spec("sklearn")  # finds it without importing it
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            return path
    raise FileNotFoundError(
        "the images are scikit-learn's digits, and its datasets/data/digits.csv.gz was not found: "
        "install the extra 'train', pip install 'securefl[train]'"
    )


def public() -> Images:
    """What the attacker may know of the distribution."""
    return digits().take(list(PUBLIC))


def victims(count: int = len(VICTIMS)) -> Images:
    """The first so many victims. Raises ValueError beyond 50."""
    if not 1 <= count <= len(VICTIMS):
        raise ValueError(f"expected 1..{len(VICTIMS)} victims, found {count}")
    return digits().take(list(VICTIMS[:count]))
