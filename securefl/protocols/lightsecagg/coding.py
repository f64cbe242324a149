"""Masks, their coded shares, and the sum of masks from the sum of shares.

So et al. 2022, section 4, over GF(p), p = 2^31 - 1. Client i cuts its mask z_i into K blocks of L
entries and adds T blocks of uniform noise. f_i is the polynomial of degree below U = K + T, one per
entry of a block, that takes the blocks' values at β_1..β_U; the share of client j is f_i(α_j). The
code is linear: the sum of shares is a share of the sum, and any U of them give Σ z_i back at
β_1..β_K, however many clients have vanished. α_j = 1 + index in the cohort and β_k = N + k are
disjoint, so the noise part of any T shares is an invertible Cauchy-like matrix: T shares are
uniform whatever the mask is. With M > U answers wrong ones are found as errors of a Reed-Solomon
code. This module knows neither frames nor phases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from securefl.primitives import reed_solomon
from securefl.primitives.field import PRIME, interpolation_matrix, multiply, uniform
from securefl.primitives.prg import expand
from securefl.protocols.lightsecagg.params import block_length

__all__ = ["MaskCode", "accumulate", "subtract"]

_CHECKS = 2
"""Random combinations per answer that errors are searched in: one is missed with p^-2 < 2^-61."""


class MaskCode:
    """The code of one session.

    Args:
        N: cohort size.
        U: answers that open the sum.
        T: noise blocks.
        m: entries of a vector.

    Attributes:
        N, U, T, m: as given.
        K: blocks that carry the mask.
        L: entries of a block and of a share.
    """

    def __init__(self, *, N: int, U: int, T: int, m: int) -> None:
        self.N, self.U, self.T, self.m = N, U, T, m
        self.K = U - T
        self.L = block_length(m, U=U, T=T)

    @property
    def alphas(self) -> range:
        """Where the cohort's shares lie, in its order."""
        return range(1, self.N + 1)

    @property
    def betas(self) -> range:
        """Where the blocks lie, those of the mask first."""
        return range(self.N + 1, self.N + self.U + 1)

    @cached_property
    def matrix(self) -> NDArray[np.uint64]:
        """W: share of j = Σ_k W_{jk} block_k; uint64[N, U]."""
        return interpolation_matrix(at=self.alphas, nodes=self.betas)

    def blocks(self, key: bytes) -> NDArray[np.uint32]:
        """The blocks behind an expansion key: uniform, uint32[U, L].

        The words of the key's stream in order, masked to 31 bits; the value p is redrawn after
        the last one. The mask's blocks come first.
        """
        position = 0

        def words(size: int) -> bytes:
            nonlocal position
            start, position = position, position + size // 4
            drawn = expand(key, size // 4, np.uint32, start=start)
            return drawn.astype("<u4", copy=False).tobytes()

        return uniform(self.U, self.L, words).astype(np.uint32)

    def mask(self, blocks: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """z: the first m entries of the mask's blocks, uint32[m]."""
        return blocks[: self.K].reshape(-1)[: self.m].copy()

    def encode(self, blocks: NDArray[np.uint32], holders: Sequence[int]) -> NDArray[np.uint32]:
        """Shares for these positions of the cohort, uint32[#holders, L]."""
        return multiply(self.matrix[list(holders)], blocks)

    def decode(self, answers: NDArray[np.uint32], holders: Sequence[int]) -> NDArray[np.uint32]:
        """The sum of the masks from the first U answers, uint32[m].

        Args:
            answers: uint32[M, L], M >= U, sums of shares.
            holders: whose they are, positions in the cohort, ascending.
        """
        used = holders[: self.U]
        weights = interpolation_matrix(
            at=self.betas[: self.K], nodes=[self.alphas[j] for j in used]
        )
        return multiply(weights, answers[: self.U]).reshape(-1)[: self.m]

    def wrong_answers(
        self,
        answers: NDArray[np.uint32],
        holders: Sequence[int],
        random_bytes: Callable[[int], bytes],
    ) -> tuple[int, ...]:
        """Rows that do not lie on the polynomials of all others; at most ⌊(M-U)/2⌋.

        Each answer is compressed by two fresh random vectors, drawn after all answers are in. That
        keeps shares shares and errors errors, but for a chance of p^-2 per wrong row.

        Args:
            answers: uint32[M, L].
            holders: whose they are, positions in the cohort, ascending.
            random_bytes: source of the random vectors.

        Raises:
            TooManyErrors: if more rows are wrong.
        """
        combinations = uniform(_CHECKS, self.L, random_bytes)
        points = [self.alphas[j] for j in holders]
        compressed = multiply(combinations, np.ascontiguousarray(answers.T)).T
        return reed_solomon.decode(compressed, points=points, t=self.U).errors


def accumulate(total: NDArray[np.uint32], addend: NDArray[np.uint32]) -> None:
    """Adds field elements in place, modulo p; both below p."""
    np.add(total, addend, out=total)  # below 2p < 2^32
    _wrap(total)


def subtract(total: NDArray[np.uint32], other: NDArray[np.uint32]) -> None:
    """Subtracts field elements in place, modulo p; both below p."""
    np.subtract(total, other, out=total)
    np.add(total, np.uint32(PRIME), out=total)  # back from below zero; now below 2p
    _wrap(total)


def _wrap(total: NDArray[np.uint32]) -> None:
    """From [0, 2p) to [0, p): below p the subtraction wraps around and the minimum keeps x."""
    np.minimum(total, total - np.uint32(PRIME), out=total)
