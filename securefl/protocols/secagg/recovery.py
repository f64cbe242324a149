"""From opened secrets to the sum of their masks: derive the keys, expand, add.

Bonawitz et al. 2017, figure 4, last round, the part that costs time: D(n - D) pair masks. A pure
function that runs here or in worker processes. The server's machine calls it; this module knows no
frames, no phases and no shares.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Executor, Future, wait
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from securefl.modular import Words
from securefl.primitives.channel import AgreementKey, PublicKey, derive
from securefl.primitives.prg import KEY_BYTES, add_mask, subtract_mask

__all__ = ["MaskJob", "agreement_key_matches", "sum_masks"]

PART_JOBS = 512
"""Jobs that cross to a worker together: some tenths of a second of work for one vector back."""

IN_FLIGHT = 8
"""Parts handed out and not yet added: enough for a few workers; bounds the vectors that wait."""


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
    jobs: Iterable[MaskJob],
    length: int,
    dtype: type[np.unsignedinteger],
    executor: Executor | None = None,
    *,
    part_jobs: int = PART_JOBS,
) -> Words:
    """Σ sign · PRG(key) over all jobs, wrapping around.

    Args:
        jobs: what to expand; the order does not change the result. Read as it is needed.
        length: words per mask.
        dtype: ``np.uint32`` or ``np.uint64``.
        executor: where to expand. Use processes: the cipher holds the interpreter lock, so
            threads gain nothing. None expands here.
        part_jobs: how many jobs a worker is handed at a time; it adds them up into one vector.

    Returns:
        dtype[length], not reduced modulo anything but the word.
    """
    if executor is None:
        return _sum_part(jobs, length, dtype)
    total: Words = np.zeros(length, dtype=dtype)
    running: set[Future[bytes]] = set()
    for part in _parts(jobs, part_jobs):
        if len(running) == IN_FLIGHT:
            running = _add_finished(total, running, FIRST_COMPLETED)
        width = total.dtype.itemsize
        running.add(executor.submit(_sum_part_as_bytes, part, length, width))
    _add_finished(total, running, ALL_COMPLETED)
    return total


def _parts(jobs: Iterable[MaskJob], size: int) -> Iterator[list[tuple[Any, ...]]]:
    """The jobs in pieces, as plain tuples: only bytes and ints cross into other processes."""
    source = iter(jobs)
    while part := list(islice(source, size)):
        yield [tuple(job) for job in part]


def _add_finished(total: Words, running: set[Future[bytes]], when: str) -> set[Future[bytes]]:
    """Adds what workers have finished to ``total``; returns what they have not."""
    finished, unfinished = wait(running, return_when=when)
    while finished:
        np.add(total, np.frombuffer(finished.pop().result(), dtype=total.dtype), out=total)
    return unfinished


def _sum_part_as_bytes(part: list[tuple[Any, ...]], length: int, width: int) -> bytes:
    dtype = np.uint32 if width == 4 else np.uint64
    return _sum_part([MaskJob(*job) for job in part], length, dtype).tobytes()


def _sum_part(jobs: Iterable[MaskJob], length: int, dtype: type[np.unsignedinteger]) -> Words:
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
