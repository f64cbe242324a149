"""The numbers of Paillier sessions that do not depend on a key: who is assumed to be what, and how
many bits an entry may have.

A configuration can be checked with these before a key exists; key, packing and deciders are the
business of ``terms``. A session is always one against a server that may lie: clients sign and
prove whatever the server is assumed to be. This module knows no keys and no messages.
"""

from __future__ import annotations

from dataclasses import dataclass

from securefl.errors import ConfigurationError
from securefl.primitives import rlwe
from securefl.primitives.paillier.slots import MAX_WIDTH
from securefl.round import Adversary, ThreatModel

__all__ = ["PaillierParams", "check_crowd", "check_sum_fits", "most_input_bits"]


def most_input_bits(n: int, *, hybrid: bool = False) -> int:
    """The most bits b with which sums of n vectors over Z_{2^b} fit, read as signed.

    Values reach 2^(b-1), so a slot needs the bits of n 2^b.

    >>> most_input_bits(10), most_input_bits(8), most_input_bits(10, hybrid=True)
    (58, 58, 20)
    """
    return (rlwe.SUM_BITS if hybrid else MAX_WIDTH) - n.bit_length()


def check_sum_fits(n: int, b: int, *, hybrid: bool = False) -> None:
    """Refuses entries whose sum would not fit.

    Raises:
        ConfigurationError: with the numbers.
    """
    widest = most_input_bits(n, hybrid=hybrid)
    if hybrid and n > rlwe.MOST_CLIENTS:
        raise ConfigurationError(
            f"the hybrid mode sums at most {rlwe.MOST_CLIENTS} clients, found {n}"
        )
    if not 1 <= b <= widest:
        what = f"{rlwe.SUM_BITS} bits of the hybrid mode" if hybrid else f"slot of {MAX_WIDTH} bits"
        raise ConfigurationError(
            f"sums of {n} vectors of {b} bits do not fit {'the' if hybrid else 'a'} {what}; "
            f"bits can be at most {widest} with Paillier"
        )


def check_crowd(n: int, n_min: int, A: int) -> None:
    """Refuses a smallest sum in which honest inputs would not hide each other.

    Raises:
        ConfigurationError: unless A + 2 <= n_min <= n.
    """
    if not A + 2 <= n_min <= n:
        raise ConfigurationError(
            f"n_min = {n_min} with A = {A} corrupt of n = {n}: at least two "
            "honest inputs must hide each other, n_min >= A + 2"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PaillierParams:
    """What a session promises, whoever holds its key.

    Attributes:
        n: cohort size.
        n_min: fewest contributors.
        b: inputs are in Z_{2^b}.
        hybrid: whether vectors are hidden by ring-LWE masks (experimental).
        threat: A and D; the adversary is always active.
    """

    n: int
    n_min: int
    b: int
    hybrid: bool
    threat: ThreatModel

    @classmethod
    def of(
        cls, n: int, *, corrupt: int, dropped: int, b: int, hybrid: bool = False
    ) -> PaillierParams:
        """The numbers for a cohort; everybody but the planned dropouts must contribute.

        Raises:
            ConfigurationError: if too few honest inputs hide each other or sums do not fit, with
                the numbers.

        >>> PaillierParams.of(10, corrupt=1, dropped=3, b=32).min_honest
        6
        """
        threat = ThreatModel(adversary=Adversary.ACTIVE, corrupt=corrupt, dropped=dropped)
        check_crowd(n, n - dropped, corrupt)
        check_sum_fits(n, b, hybrid=hybrid)
        return cls(n=n, n_min=n - dropped, b=b, hybrid=hybrid, threat=threat)

    @property
    def min_honest(self) -> int:
        """Fewest honest inputs in any sum that is opened: n_min - A."""
        return self.n_min - self.threat.corrupt
