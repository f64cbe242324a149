"""From shares to masks: reconstruct what the survivors opened, verify it, expand it, sum it.

Bonawitz et al. 2017, figure 4, last round; the checks against commitment and public key are ours:
a wrong share would otherwise give a wrong sum that looks like any other. Both halves are pure.
The server's machine calls them; this module knows no frames and no phases.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from securefl.modular import Words
from securefl.primitives.channel import AgreementKey, PublicKey, derive
from securefl.primitives.prg import KEY_BYTES, add_mask, subtract_mask
from securefl.primitives.sharing import (
    Unreconstructable,
    lagrange_at_zero,
    reconstruct,
    weights_without,
)

__all__ = ["MaskJob", "Responders", "ShareTable", "agreement_key_matches", "sum_masks"]

PARTS = 8
"""Pieces that jobs are cut into for an executor: enough to keep a few workers evenly busy."""


class MaskJob(NamedTuple):
    """One mask to expand; bytes and ints only, because jobs may cross into other processes.

    Attributes:
        sign: +1 adds the mask, -1 subtracts it.
        secret: b_u for a self mask; s_sk of the dropped client for a pair mask.
        public: empty for a self mask; s_pk of the surviving client for a pair mask.
        salt: the session id.
        info: the derivation's label and ids.
    """

    sign: int
    secret: bytes
    public: bytes
    salt: bytes
    info: bytes

    def __repr__(self) -> str:
        return "MaskJob(<secret>)"


def sum_masks(
    jobs: Sequence[MaskJob],
    length: int,
    dtype: type[np.unsignedinteger],
    executor: Executor | None = None,
) -> Words:
    """Σ sign · PRG(key) over all jobs, wrapping around.

    Args:
        jobs: what to expand; the order does not change the result.
        length: words per mask.
        dtype: ``np.uint32`` or ``np.uint64``.
        executor: where to expand. Use processes: the cipher holds the interpreter lock, so
            threads gain nothing. None expands here.

    Returns:
        dtype[length], not reduced modulo anything but the word.
    """
    if executor is None:
        return _sum_part(jobs, length, dtype)
    size = max(1, -(-len(jobs) // PARTS))
    parts = [jobs[i : i + size] for i in range(0, len(jobs), size)]
    total: Words = np.zeros(length, dtype=dtype)
    for raw in executor.map(_sum_part_as_bytes, parts, [length] * len(parts), [dtype] * len(parts)):
        np.add(total, np.frombuffer(raw, dtype=dtype), out=total)
    return total


def _sum_part_as_bytes(
    jobs: Sequence[MaskJob], length: int, dtype: type[np.unsignedinteger]
) -> bytes:
    return _sum_part([MaskJob(*job) for job in jobs], length, dtype).tobytes()


def _sum_part(jobs: Sequence[MaskJob], length: int, dtype: type[np.unsignedinteger]) -> Words:
    total: Words = np.zeros(length, dtype=dtype)
    private: dict[bytes, AgreementKey] = {}
    public: dict[bytes, PublicKey] = {}
    for job in jobs:
        key = _mask_key(job, private, public)
        if job.sign > 0:
            add_mask(total, key)
        else:
            subtract_mask(total, key)
    return total


def _mask_key(
    job: MaskJob, private: dict[bytes, AgreementKey], public: dict[bytes, PublicKey]
) -> bytes:
    """The job's PRG key; parsed keys are kept, each takes part in many pairs."""
    ikm = job.secret
    if job.public:
        own = private.get(job.secret)
        if own is None:
            own = private[job.secret] = AgreementKey(job.secret)
        peer = public.get(job.public)
        if peer is None:
            peer = public[job.public] = PublicKey(job.public)
        ikm = own.agree(peer)
    return derive(ikm, salt=job.salt, info=job.info, length=KEY_BYTES)


def agreement_key_matches(s_sk: bytes, s_pk: bytes) -> bool:
    """Whether a reconstructed private key belongs to the public key its dealer advertised."""
    return hmac.compare_digest(AgreementKey(s_sk).public, s_pk)


class Responders:
    """The share holders who answered, and the interpolation weights of any t of them.

    Attributes:
        points: x of every holder, ascending.
    """

    __slots__ = ("_cache", "points", "t")

    def __init__(self, points: tuple[int, ...], t: int) -> None:
        self.points = points
        self.t = t
        self._cache: dict[bytes, NDArray[np.uint64]] = {}

    def weights(self, rows: NDArray[np.intp]) -> NDArray[np.uint64]:
        """Weights at zero for t rows (positions in ``points``, ascending)."""
        key = rows.tobytes()
        if key not in self._cache:
            self._cache[key] = self._compute(rows)
        return self._cache[key]

    def _compute(self, rows: NDArray[np.intp]) -> NDArray[np.uint64]:
        base = self.points[: self.t + 1]
        missing = sorted(set(range(len(base))) - set(rows.tolist()))
        if len(base) == self.t + 1 and len(missing) == 1:
            return weights_without(base, missing[0])
        return lagrange_at_zero(tuple(self.points[i] for i in rows))


class ShareTable:
    """All shares of one kind that arrived: one row per responder, one column per dealer.

    Attributes:
        words: uint32[holders, dealers, words].
        present: bool[holders, dealers].
    """

    __slots__ = ("present", "secret_bytes", "words")

    def __init__(self, *, holders: int, dealers: int, words: int, secret_bytes: int) -> None:
        self.words = np.zeros((holders, dealers, words), dtype=np.uint32)
        self.present = np.zeros((holders, dealers), dtype=np.bool_)
        self.secret_bytes = secret_bytes

    def fewest(self) -> int | None:
        """Shares of the dealer with the fewest; None if there is no dealer."""
        counts = self.present.sum(axis=0)
        return int(counts.min()) if counts.size else None

    def used_rows(self, column: int, t: int) -> NDArray[np.intp]:
        """The t lowest holders with a share of this dealer."""
        return np.flatnonzero(self.present[:, column])[:t]

    def secret(self, column: int, responders: Responders) -> bytes | None:
        """The dealer's secret from the t lowest holders; None if the shares do not fit together.

        None here is not an answer but a mismatch, which the caller turns into InvalidShare.
        """
        rows = self.used_rows(column, responders.t)
        try:
            return reconstruct(
                self.words[rows, column], responders.weights(rows), self.secret_bytes
            )
        except Unreconstructable:
            return None

    def __repr__(self) -> str:
        return f"ShareTable(<{int(self.present.sum())} secret shares>)"
