"""Correcting wrong shares: Shamir shares over GF(2^31-1) as a Reed-Solomon code word.

M shares of one word are a code word of a generalised Reed-Solomon code of dimension t (McEliece and
Sarwate 1981, "On Sharing Secrets and Reed-Solomon Codes"), so up to floor((M-t)/2) wrong ones can
be found and left out, wherever they are. Syndromes of all words are computed at once; a word's
error locator comes from the Berlekamp-Massey algorithm (Massey 1969), its roots from evaluating it
at every holder's point. Holders that lie about one word usually lie about the others, so a word
that the known locator already explains needs no search of its own.

Within the radius the answer is unique, so it does not depend on how it was found. Beyond it there
is an error, unless, as with every decoder, another code word is itself within the radius. Telling
that apart takes a check of the secret against what its dealer committed to: the caller's part.
The module knows neither dealers nor whose secret it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError, SecureFLError
from securefl.primitives.sharing import (
    PRIME,
    interpolate,
    lagrange_at_zero,
    multipliers,
    secret_from_words,
)

__all__ = ["Corrected", "TooManyErrors", "decode", "decode_secret"]

_P = np.uint64(PRIME)


class TooManyErrors(SecureFLError):
    """More shares are wrong than can be corrected: which ones, nobody can tell.

    Attributes:
        shares: M, how many there were.
        radius: floor((M-t)/2), how many wrong ones could have been corrected.
    """

    def __init__(self, *, shares: int, radius: int) -> None:
        super().__init__(
            f"more than {radius} of {shares} shares are wrong, the most that can be corrected: "
            "nothing was reconstructed; more correct shares would be needed"
        )
        self.shares = shares
        self.radius = radius


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """What the shares were before somebody changed them.

    Attributes:
        words: uint32[words], the polynomials at zero. Secret.
        errors: rows whose share differs from the polynomials' values in some word, ascending.
    """

    words: NDArray[np.uint32]
    errors: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Corrected(words=<secret>, errors={self.errors})"


def decode(shares: NDArray[np.uint32], *, points: Sequence[int], t: int) -> Corrected:
    """The words behind M shares of which at most floor((M-t)/2) are wrong.

    Args:
        shares: uint32[M, words], one row per holder, every value below p.
        points: the holders' x, distinct, in [1, 2^30).
        t: how many shares reconstruct, 1 to M. With M = t nothing can be checked, with M = t + 1
            a wrong share is noticed and not found.

    Returns:
        The words, and the union of all words' error positions, never more than floor((M-t)/2).

    Raises:
        TooManyErrors: if there are no polynomials of degree below t that agree with all but
            floor((M-t)/2) of the rows.
        ConfigurationError: for arguments outside their range.
    """
    _check(shares, points, t)
    x = np.array(points, dtype=np.uint64)
    y = shares.astype(np.uint64)
    failed = TooManyErrors(shares=len(x), radius=(len(x) - t) // 2)
    syndromes = _syndromes(x, y, len(x) - t)
    wrong: set[int] = set()
    locator = _product_of(x, wrong)
    for word in np.flatnonzero(syndromes.any(axis=0)):
        s = syndromes[:, word]
        if not _explains(locator, s):
            rows = _locate(x, s, failed.radius)
            if rows is None:
                raise failed
            wrong |= rows
            if len(wrong) > failed.radius:
                raise failed
            locator = _product_of(x, wrong)
    return _without(shares, points, t, wrong)


def decode_secret(
    shares: NDArray[np.uint32], *, points: Sequence[int], t: int, secret_bytes: int
) -> tuple[bytes, tuple[int, ...]]:
    """The secret behind M shares of which at most floor((M-t)/2) are wrong, and which are.

    Args:
        shares: as in :func:`decode`.
        points: as in :func:`decode`.
        t: as in :func:`decode`.
        secret_bytes: how long the secret is.

    Raises:
        TooManyErrors: as :func:`decode`.
        ConfigurationError: as :func:`decode`.
        Unreconstructable: if the corrected words are no secret of that length.
    """
    found = decode(shares, points=points, t=t)
    return secret_from_words(found.words.tolist(), secret_bytes), found.errors


def _check(shares: NDArray[np.uint32], points: Sequence[int], t: int) -> None:
    M = len(points)
    if shares.ndim != 2 or len(shares) != M:
        raise ConfigurationError(f"{M} points need shares of {M} rows, found {shares.shape}")
    if not 1 <= t <= M:
        raise ConfigurationError(f"t must be in 1..{M}, the number of shares, found {t}")
    if len(set(points)) != M or not all(0 < x < 1 << 30 for x in points):
        raise ConfigurationError("points must be distinct and in [1, 2^30)")
    if shares.size and int(shares.max()) >= PRIME:
        raise ConfigurationError(f"a share holds {int(shares.max())}, which is not below {PRIME}")


def _syndromes(x: NDArray[np.uint64], y: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """S_j = Σ_i v_i y_i x_i^j for j < count, uint64[count, words]; all zero on a code word.

    Written with the errors e_i alone, S_j = Σ_i (v_i e_i) x_i^j: power sums at the wrong points.
    """
    weighted = y * multipliers(x).reshape(-1, 1) % _P
    column = x.reshape(-1, 1)
    syndromes = np.zeros((count, y.shape[1]), dtype=np.uint64)
    for j in range(count):
        syndromes[j] = weighted.sum(axis=0) % _P  # M values below 2^31: no overflow
        weighted = weighted * column % _P
    return syndromes


def _dot(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> int:
    return int((a * b % _P).sum() % _P)


def _product_of(x: NDArray[np.uint64], rows: set[int]) -> NDArray[np.uint64]:
    """Π_{i in rows} (z - x_i), lowest coefficient first."""
    product = np.array([1], dtype=np.uint64)
    for i in sorted(rows):
        shifted = np.concatenate((np.zeros(1, dtype=np.uint64), product))
        shifted[:-1] += _P - product * x[i] % _P
        product = shifted % _P
    return product


def _explains(locator: NDArray[np.uint64], s: NDArray[np.uint64]) -> bool:
    """Whether the rows at the locator's roots can be all that is wrong with this word.

    Σ_l γ_l S_{j+l} = Σ_i v_i y_i γ(x_i) x_i^j is the syndrome of the word without those rows, so
    it is zero for every j exactly if the other rows lie on one polynomial of degree below t.
    """
    return not any(_dot(locator, window) for window in _windows(s, len(locator)))


def _windows(s: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
    if len(s) < width:
        return np.zeros((0, width), dtype=np.uint64)
    return np.lib.stride_tricks.sliding_window_view(s, width)


def _locate(x: NDArray[np.uint64], s: NDArray[np.uint64], radius: int) -> set[int] | None:
    """The rows that are wrong in this word; None if there are more than ``radius``."""
    locator = _shortest_recurrence(s)
    degree = len(locator) - 1
    if degree > radius:
        return None
    rows = np.flatnonzero(_evaluate(locator, x) == 0)
    if len(rows) != degree or not _explains(locator, s):
        return None
    return set(rows.tolist())


def _shortest_recurrence(s: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The monic γ of least degree L with Σ_l γ_l s_{j+l} = 0 for all j (Berlekamp-Massey).

    Lowest coefficient first. For errors within the radius it is Π (z - x_i) over the wrong rows.
    """
    size = len(s) + 1
    C = np.zeros(size, dtype=np.uint64)  # connection polynomial, C_0 = 1: γ read backwards
    C[0] = 1
    B, L, gap, b = C.copy(), 0, 1, 1
    for r in range(len(s)):
        d = _dot(C[: L + 1], s[r - L : r + 1][::-1])
        if d == 0:
            gap += 1
            continue
        factor = np.uint64(d * pow(b, -1, PRIME) % PRIME)
        changed = C.copy()
        changed[gap:] = (changed[gap:] + _P - B[: size - gap] * factor % _P) % _P
        if r >= 2 * L:
            B, L, gap, b = C, r + 1 - L, 1, d
        else:
            gap += 1
        C = changed
    return C[: L + 1][::-1]


def _evaluate(polynomial: NDArray[np.uint64], x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = np.zeros_like(x)
    for coefficient in polynomial[::-1]:
        value = (value * x + coefficient) % _P
    return value


def _without(
    shares: NDArray[np.uint32], points: Sequence[int], t: int, wrong: set[int]
) -> Corrected:
    """The words from the t lowest correct rows."""
    rows = [i for i in range(len(points)) if i not in wrong][:t]
    weights = lagrange_at_zero(tuple(int(points[i]) for i in rows))
    words = interpolate(shares[rows], weights).astype(np.uint32)
    return Corrected(words=words, errors=tuple(sorted(wrong)))
