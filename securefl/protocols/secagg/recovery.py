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
from securefl.protocols.secagg.graph import Edges

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

    Args:
        points: x of every holder, ascending, whether or not it answered.
        answered: positions in ``points`` of those who did, ascending.
        t: shares that reconstruct.
    """

    __slots__ = ("_answered", "_cache", "_points", "t")

    def __init__(self, points: Sequence[int], answered: Sequence[int], t: int) -> None:
        self.t = t
        self._points = tuple(points)
        self._answered = tuple(answered)
        self._cache: dict[bytes, NDArray[np.uint64]] = {}

    def weights(self, holders: NDArray[np.int32]) -> NDArray[np.uint64]:
        """Weights at zero for t holders (positions in ``points``, ascending)."""
        key = holders.tobytes()
        if key not in self._cache:
            self._cache[key] = self._compute(holders)
        return self._cache[key]

    def _compute(self, holders: NDArray[np.int32]) -> NDArray[np.uint64]:
        # On the complete graph all dealers share the t + 1 lowest responders, but for one.
        base = self._answered[: self.t + 1]
        chosen = set(holders.tolist())
        missing = [i for i, x in enumerate(base) if x not in chosen]
        if len(base) == self.t + 1 and len(missing) == 1:
            return weights_without(tuple(self._points[x] for x in base), missing[0])
        return lagrange_at_zero(tuple(self._points[x] for x in holders.tolist()))


class ShareTable:
    """All shares of one kind that arrived, one row per (dealer, holder).

    Args:
        edges: who holds whose shares.
        words: field elements per share.
        secret_bytes: length of the secret behind them.

    Attributes:
        edges: as given.
        words: uint32[edges, words].
        present: bool[edges].
    """

    __slots__ = ("edges", "present", "secret_bytes", "words")

    def __init__(self, edges: Edges, *, words: int, secret_bytes: int) -> None:
        self.edges = edges
        self.words = np.zeros((len(edges), words), dtype=np.uint32)
        self.present = np.zeros(len(edges), dtype=np.bool_)
        self.secret_bytes = secret_bytes

    def put(self, rows: NDArray[np.int32], shares: NDArray[np.uint32]) -> None:
        """Stores shares at these edges."""
        self.words[rows] = shares
        self.present[rows] = True

    def fewest(self, needed: NDArray[np.bool_]) -> int | None:
        """Shares of the needed dealer with the fewest; None if no dealer is needed."""
        counts = np.bincount(self.edges.dealer[self.present], minlength=len(needed))[needed]
        return int(counts.min()) if counts.size else None

    def used_rows(self, dealer: int, t: int) -> NDArray[np.intp]:
        """The edges of the t lowest holders with a share of this dealer."""
        edges = self.edges.of_dealer(dealer)
        rows: NDArray[np.intp] = edges.start + np.flatnonzero(self.present[edges])[:t]
        return rows

    def secret(self, dealer: int, responders: Responders) -> bytes | None:
        """The dealer's secret from the t lowest holders; None if the shares do not fit together.

        None here is not an answer but a mismatch, which the caller turns into InvalidShare.
        """
        rows = self.used_rows(dealer, responders.t)
        weights = responders.weights(self.edges.holder[rows])
        try:
            return reconstruct(self.words[rows], weights, self.secret_bytes)
        except Unreconstructable:
            return None

    def __repr__(self) -> str:
        return f"ShareTable(<{int(self.present.sum())} secret shares>)"
