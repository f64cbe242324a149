"""What protocols that sum in GF(2^31-1) have in common: the width of an entry and what fits.

LightSecAgg and peersum need a field, for their codes and their polynomials, and take the same one.
An entry has 31 bits; sums of plain numbers must stay below p, residues need not. This module knows
neither protocol.
"""

from __future__ import annotations

from securefl.errors import ConfigurationError
from securefl.primitives.field import PRIME
from securefl.round import GraphSource, Layout, Ring, RoundConfig

__all__ = ["FIELD_BITS", "check_field_config", "check_field_sum", "most_input_bits"]

FIELD_BITS = 31
"""b of every configuration: an entry is an element of GF(2^31-1)."""


def most_input_bits(n: int) -> int:
    """The most bits per entry with n (2^bits - 1) < p; 0 if there are none.

    >>> most_input_bits(10), most_input_bits(200)
    (27, 23)
    """
    return max(0, ((PRIME - 1) // n + 1).bit_length() - 1)


def check_field_sum(protocol: str, n: int, input_bits: int) -> None:
    """Refuses inputs whose sum could wrap around the field: n (2^input_bits - 1) < p must hold.

    Raises:
        ConfigurationError: with the numbers.
    """
    largest = n * ((1 << input_bits) - 1)
    if input_bits < 1 or largest >= PRIME:
        raise ConfigurationError(
            f"{protocol} sums in GF(2^31-1): {n} inputs of {input_bits} bits sum to up to "
            f"{largest}, which is not below p = {PRIME}; use 1 to {most_input_bits(n)} bits"
        )


def check_field_config(config: RoundConfig) -> None:
    """Refuses a configuration in another ring, or with a graph or layouts, which nobody has here.

    Raises:
        ConfigurationError: with what was found.
    """
    protocol = config.protocol.name
    if config.ring is not Ring.PRIME_FIELD or config.b != FIELD_BITS:
        raise ConfigurationError(
            f"{protocol} sums in PRIME_FIELD with b={FIELD_BITS}, found ring {config.ring.name} "
            f"with b={config.b}"
        )
    if config.layout is not Layout.OTHERS or config.graph_source is not GraphSource.SERVER:
        raise ConfigurationError(
            f"{protocol} has no neighbour graph and no share layouts, found layout "
            f"{config.layout.name} and graph source {config.graph_source.name}"
        )
