"""From counted errors to a lower bound on epsilon or mu, with a stated probability of error.

Whoever guesses from a release whether a canary was in it errs in two ways: *false negatives* (it
was in, the guess says out) and *false positives*. Under (epsilon, delta)-differential privacy

    1 - delta <= fn + e^epsilon fp,    1 - delta <= e^epsilon fn + fp

(Kairouz, Oh, Viswanath 2015, arXiv 1311.0776, Theorem 2.1), and under mu-Gaussian differential
privacy Phi^-1(1 - fp) - Phi^-1(fn) <= mu (Dong, Roth, Su 2019, arXiv 1905.02383, section 2.3).
The rates are unknown; their upper confidence limits (Clopper, Pearson 1934) take their place, each
at alpha/(2k) where k canaries were tried, so that all limits hold together except with probability
alpha. A limit that is too large only makes a bound smaller.

This module knows no mechanism. It needs errors counted on runs that nobody used to choose the
guess; a point estimate in place of a limit, or a threshold chosen on the runs that are counted,
refutes correct mechanisms.
"""

from __future__ import annotations

import math
import numbers
import operator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainccinv, betaincinv, ndtri

from accounting.accountant import checked_delta
from accounting.errors import InvalidParameter

__all__ = [
    "ErrorCounts",
    "checked_alpha",
    "checked_count",
    "checked_failure",
    "clopper_pearson",
    "epsilon_from_rates",
    "gaussian_mu",
    "mu_from_rates",
    "shown_down",
    "upper_limit",
]

Floats = NDArray[np.float64]


def checked_count(name: str, value: object, least: int = 0) -> int:
    """A whole number of at least ``least``; booleans are none.

    Raises:
        InvalidParameter: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidParameter(f"{name} must be a whole number, found {value!r}")
    number = operator.index(value)
    if number < least:
        raise InvalidParameter(f"{name} must be at least {least}, found {number}")
    return number


def checked_alpha(alpha: object) -> float:
    """A probability of error strictly between 0 and 1/2.

    Raises:
        InvalidParameter: otherwise.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real):
        raise InvalidParameter(f"alpha must be a number, found {type(alpha).__name__}")
    if not 0 < float(alpha) < 0.5:
        raise InvalidParameter(f"alpha must be strictly between 0 and 1/2, found {alpha!r}")
    return float(alpha)


def checked_failure(delta: object) -> float:
    """Delta in [0, 1); 0 is the delta of a pure claim.

    Raises:
        InvalidParameter: otherwise.
    """
    if isinstance(delta, int | float) and not isinstance(delta, bool) and delta == 0:
        return 0.0
    return checked_delta(delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCounts:
    """How often a guess "in" or "out" was wrong, over independent runs.

    Attributes:
        false_negatives: runs with the canary that were guessed "out".
        trials_in: runs with the canary, >= 1.
        false_positives: runs without it that were guessed "in".
        trials_out: runs without it, >= 1.

    Raises:
        InvalidParameter: if a count is negative or larger than its runs.
    """

    false_negatives: int
    trials_in: int
    false_positives: int
    trials_out: int

    def __post_init__(self) -> None:
        for errors, trials in (
            ("false_negatives", "trials_in"),
            ("false_positives", "trials_out"),
        ):
            runs = checked_count(trials, getattr(self, trials), 1)
            wrong = checked_count(errors, getattr(self, errors))
            if wrong > runs:
                raise InvalidParameter(f"{errors} is {wrong}, more than the {runs} of {trials}")

    def limits(self, alpha: float, canaries: int) -> tuple[float, float]:
        """Upper limits (fn, fp) on both rates, each at alpha/(2k)."""
        tail = checked_alpha(alpha) / (2 * checked_count("canaries", canaries, 1))
        fn = upper_limit(self.false_negatives, self.trials_in, tail)
        fp = upper_limit(self.false_positives, self.trials_out, tail)
        return float(fn), float(fp)


def upper_limit(errors: ArrayLike, trials: int, tail: float) -> Floats:
    """The largest rate p at which so few errors still have probability ``tail``.

    Solves P[Bin(n, p) <= k] = tail, a quantile of Beta(k+1, n-k); 1 where k = n. With k = 0 it is
    1 - tail^(1/n).
    """
    k = np.asarray(errors, dtype=np.float64)
    rest = np.maximum(trials - k, 0.5)  # any positive number where k = n, which is replaced below
    # 1 - x from the complement where that is the small one, so that neither side loses digits.
    limit = betainccinv(k + 1, rest, tail)
    limit = np.where(limit < 0.9, limit, 1 - betaincinv(rest, k + 1, tail))
    return np.asarray(np.where(k >= trials, 1.0, limit), dtype=np.float64)


def epsilon_from_rates(fn: ArrayLike, fp: ArrayLike, delta: float) -> Floats:
    """max{ln((1-delta-fn)/fp), ln((1-delta-fp)/fn)}; negative or -inf where nothing is shown."""
    fn, fp = np.asarray(fn, dtype=np.float64), np.asarray(fp, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.log(np.maximum(1 - delta - fn, 0.0)) - np.log(fp)
        second = np.log(np.maximum(1 - delta - fp, 0.0)) - np.log(fn)
    return np.asarray(np.maximum(first, second), dtype=np.float64)


def mu_from_rates(fn: ArrayLike, fp: ArrayLike) -> Floats:
    """Phi^-1(1-fp) - Phi^-1(fn); negative where nothing is shown."""
    return np.asarray(-ndtri(fp) - ndtri(fn), dtype=np.float64)


def shown_down(value: float) -> str:
    """Four digits, rounded down, so that no lower bound is shown larger than it is."""
    if value == 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.floor(value / step) * step:.4g}"


def clopper_pearson(
    counts: ErrorCounts, delta: float, *, alpha: float = 0.05, canaries: int = 1
) -> float:
    """A lower bound on epsilon at ``delta``, whatever the mechanism; 0 if nothing is shown.

    Without any error it reaches its ceiling ln((1-delta-u)/u), u = 1 - (alpha/(2k))^(1/m): no more
    than about ln(m) can be shown by m runs.

    Args:
        counts: errors on runs that were not used to choose the guess.
        delta: of the claim, in [0, 1).
        alpha: probability that the bound is above the truth.
        canaries: k, how many canaries were tried; each of them counts, also those not reported.

    Raises:
        InvalidParameter: for arguments out of range.

    >>> none = ErrorCounts(false_negatives=0, trials_in=1000, false_positives=0, trials_out=1000)
    >>> round(clopper_pearson(none, 1e-5, canaries=5), 2)
    5.24
    """
    fn, fp = counts.limits(alpha, canaries)
    return max(0.0, float(epsilon_from_rates(fn, fp, checked_failure(delta))))


def gaussian_mu(counts: ErrorCounts, *, alpha: float = 0.05, canaries: int = 1) -> float:
    """A lower bound on mu for a mechanism that claims to be mu-Gaussian private; 0 if none.

    It tests "is mu-GDP", which is more than (epsilon, delta): Laplace noise or randomised response
    can keep an (epsilon, delta) claim and exceed the mu that Gaussian noise of that claim has.
    It needs far fewer runs than :func:`clopper_pearson`, because all errors count, not the rare.

    Args:
        counts: errors on runs that were not used to choose the guess.
        alpha: probability that the bound is above the truth.
        canaries: k, how many canaries were tried.

    Raises:
        InvalidParameter: for arguments out of range.

    >>> counts = ErrorCounts(false_negatives=310, trials_in=1000, false_positives=305,
    ...                      trials_out=1000)
    >>> round(gaussian_mu(counts), 2)
    0.84
    """
    return max(0.0, float(mu_from_rates(*counts.limits(alpha, canaries))))
