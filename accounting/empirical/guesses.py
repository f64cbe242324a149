"""The audit from one training run (Steinke, Nasr, Jagielski 2023, arXiv 2305.08846).

m canaries are put into one run, each by a fair secret coin. Afterwards every canary has a score;
the highest are guessed "in", the lowest "out", the rest are left open. Under (epsilon, delta)
privacy, v right guesses of r have probability at most

    p(eps) = min(1, beta + 2 m delta max(0, max_{1<=i<=v} (P[Bin(r, q) >= v - i] - beta) / i)),
    beta = P[Bin(r, q) >= v],   q = e^eps / (1 + e^eps)

(Theorem 5.2). The bound is where p reaches 1 - confidence. It is
loose: on Gaussian noise it shows about a third of the true epsilon.

If the unit of privacy is a client, canaries are clients, and what is scored is the opened
aggregate or the model. This module trains nothing and knows no mechanism.
"""

from __future__ import annotations

import math
import numbers
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc

from accounting.accountant import checked_epsilon
from accounting.empirical.bounds import checked_count, checked_failure
from accounting.errors import InvalidParameter

__all__ = ["Guesses", "canary_coins", "guess_members", "guess_p_value", "one_run"]

_STEP = 0.125  # of the search; the bound is refined inside of one


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """What was guessed about the canaries of one run.

    Attributes:
        canaries: m, all that had a coin, >= 1.
        guessed: r of them, for which a guess was made.
        correct: v of those that were right.

    Raises:
        InvalidParameter: unless 0 <= v <= r <= m.
    """

    canaries: int
    guessed: int
    correct: int

    def __post_init__(self) -> None:
        m = checked_count("canaries", self.canaries, 1)
        r = checked_count("guessed", self.guessed)
        v = checked_count("correct", self.correct)
        if not v <= r <= m:
            raise InvalidParameter(
                f"of {m} canaries {r} were guessed and {v} right: each must be at most the one "
                "before"
            )


def canary_coins(canaries: int) -> NDArray[np.bool_]:
    """bool[m] fair coins from the operating system: which canaries go into the run.

    Whoever trains must not know them otherwise than by the data, and the guesses must not depend
    on them otherwise than by the run.
    """
    m = checked_count("canaries", canaries, 1)
    bits = np.unpackbits(np.frombuffer(os.urandom((m + 7) // 8), dtype=np.uint8))
    return bits[:m].astype(np.bool_)


def guess_members(
    scores: ArrayLike, included: ArrayLike, *, guess_in: int, guess_out: int
) -> Guesses:
    """Guesses the ``guess_in`` highest scores "in" and the ``guess_out`` lowest "out".

    Equal scores are ordered by index. Both numbers must be fixed before the coins are looked at;
    for the best of several, state how many were tried to :func:`one_run`.

    Args:
        scores: float[m], larger where the canary seems to be in; no NaN.
        included: bool[m], the coins.
        guess_in: k+, >= 0.
        guess_out: k-, >= 0.

    Raises:
        InvalidParameter: if shapes differ, a score is NaN, or more is guessed than there is.
    """
    found, coins = np.asarray(scores, dtype=np.float64), np.asarray(included)
    if found.ndim != 1 or found.shape != coins.shape or coins.dtype != np.bool_:
        raise InvalidParameter(
            f"scores must be float[m] and included bool[m], found {found.dtype}{found.shape} and "
            f"{coins.dtype}{coins.shape}"
        )
    if np.isnan(found).any():
        raise InvalidParameter("scores must not be NaN: a canary without a score cannot be guessed")
    top, bottom = checked_count("guess_in", guess_in), checked_count("guess_out", guess_out)
    if top + bottom > len(found):
        raise InvalidParameter(f"{top} + {bottom} guesses were asked for {len(found)} canaries")
    order = np.argsort(found, kind="stable")
    right = int(np.count_nonzero(~coins[order[:bottom]]))
    right += int(np.count_nonzero(coins[order[len(found) - top :]]))
    return Guesses(canaries=len(found), guessed=top + bottom, correct=right)


def guess_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """p(eps): how probable so many right guesses are at most, if the claim is true.

    Args:
        guesses: counts of one run.
        epsilon: of the claim, finite, >= 0.
        delta: of the claim, in [0, 1).

    Raises:
        InvalidParameter: for arguments out of range.
    """
    eps, m, r, v = checked_epsilon(epsilon), guesses.canaries, guesses.guessed, guesses.correct
    failure = checked_failure(delta)
    q = 1 / (1 + math.exp(-eps))
    tails = _tails(r, q)
    beta = float(tails[v])
    if failure == 0 or v == 0:
        return min(1.0, beta)
    i = np.arange(1, v + 1)
    slope = float(np.max((tails[v - i] - beta) / i))
    return min(1.0, beta + 2 * m * failure * max(0.0, slope))


def _tails(r: int, q: float) -> NDArray[np.float64]:
    """P[Bin(r, q) >= j] for j = 0..r."""
    j = np.arange(1, r + 1)
    return np.concatenate(([1.0], betainc(j, r - j + 1, q)))


def _error_of(confidence: object) -> float:
    if isinstance(confidence, bool) or not isinstance(confidence, numbers.Real):
        raise InvalidParameter(f"confidence must be a number, found {type(confidence).__name__}")
    if not 0.5 < float(confidence) < 1:
        raise InvalidParameter(
            f"confidence must be strictly between 1/2 and 1, found {confidence!r}"
        )
    return 1 - float(confidence)


def one_run(
    guesses: Guesses, delta: float, *, confidence: float = 0.95, settings: int = 1
) -> float:
    """A lower bound on epsilon at ``delta`` from one run: sup{eps: p(eps) <= 1 - confidence}.

    0 if nothing is shown. The probability that it is above the truth is at most 1 - confidence.

    Args:
        guesses: counts of one run, see :func:`guess_members`.
        delta: of the claim, in [0, 1).
        confidence: strictly between 1/2 and 1.
        settings: how many (k+, k-), or scores, were tried on this run; each shares the error.

    Raises:
        InvalidParameter: for arguments out of range.

    >>> round(one_run(Guesses(canaries=1000, guessed=100, correct=90), 1e-5), 3)
    1.626
    """
    error = _error_of(confidence) / checked_count("settings", settings, 1)
    # p rises with eps, provably where 2 m delta <= 1; the end of its first stretch is taken.
    low, high = 0.0, 0.0
    while guess_p_value(guesses, high, delta) <= error:
        low, high = high, high + _STEP
    if high == 0:
        return 0.0
    while high - low > 1e-12 * max(1.0, high):
        middle = (low + high) / 2
        if guess_p_value(guesses, middle, delta) <= error:
            low = middle
        else:
            high = middle
    return low
