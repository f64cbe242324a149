"""The images that are attacked: scikit-learn's digits, with victims and public records fixed here.

1797 images of 8 x 8 pixels with values 0..16, divided by 16. Nothing is chosen after a result was
seen: victims are evenly spaced in the private part, the public part is disjoint from it.
"""

from __future__ import annotations

from functools import lru_cache
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

    >>> digits().x.shape, float(digits().x.max())
    ((1797, 64), 1.0)
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415  # an extra, and slow to import

    raw, labels = load_digits(return_X_y=True)
    x, y = raw / 16.0, labels.astype(np.int64)
    index = np.arange(len(x))
    for array in (x, y, index):
        array.setflags(write=False)
    return Images(x, y, index)


def public() -> Images:
    """What the attacker may know of the distribution."""
    return digits().take(list(PUBLIC))


def victims(count: int = len(VICTIMS)) -> Images:
    """The first so many victims. Raises ValueError beyond 50."""
    if not 1 <= count <= len(VICTIMS):
        raise ValueError(f"expected 1..{len(VICTIMS)} victims, found {count}")
    return digits().take(list(VICTIMS[:count]))
