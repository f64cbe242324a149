"""The masked input y_u, made in place.

y_u = x_u + PRG(self_u) + Σ_{v∈Q} Δ_{u,v} PRG(pair_{u,v}), Δ = +1 if u > v, else -1
(Bonawitz et al. 2017, section 4; the sign convention is ours). The pair masks cancel in the sum
over both ends; the self mask stays until the survivors open it, so that an input which arrives
after its sender was declared dropped (and its pair masks were opened) is still hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

from securefl.modular import Words, reduce_in_place
from securefl.primitives.prg import add_mask, subtract_mask
from securefl.round import ClientId

__all__ = ["mask_in_place", "sign"]


def sign(u: ClientId, v: ClientId) -> int:
    """Δ_{u,v}: +1 if u > v, else -1; so Δ_{u,v} = -Δ_{v,u}."""
    return 1 if u > v else -1


def mask_in_place(
    words: Words,
    *,
    u: ClientId,
    self_key: bytes,
    pair_keys: Mapping[ClientId, bytes],
    modulus: int,
) -> None:
    """Turns x_u into y_u.

    Args:
        words: uint32[m] or uint64[m], values in [0, modulus); changed.
        u: whose input it is.
        self_key: 16 bytes.
        pair_keys: 16 bytes per member of Q.
        modulus: 2^b.
    """
    add_mask(words, self_key)
    for v, key in pair_keys.items():
        if sign(u, v) > 0:
            add_mask(words, key)
        else:
            subtract_mask(words, key)
    reduce_in_place(words, modulus)
