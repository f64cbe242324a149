"""Sessions of the library for a program: real machines, the in-memory network, a file at the end.

:func:`secure_round` runs one session as it is meant to be run and leaves the transcript. What the
honest server then knows is :class:`kit.view.View` of that file. Attacks by a server that does not
follow the protocol drive the clients themselves, see ``attackers.stage``.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kit import data
from kit.transcript import read_transcript, write_transcript
from kit.view import Ring, View
from securefl.modular import RingVector, ring_dtype
from securefl.primitives.signing import IdentityKey
from securefl.protocols.secagg import ClientPolicy, SecAggParams
from securefl.protocols.secagg.parties import make_parties
from securefl.round import Adversary, ClientId, Cohort, RoundConfig, RoundId, ThreatModel
from securefl.simulation.session import run_session

__all__ = [
    "CONTEXT",
    "Recorded",
    "as_image",
    "images_as_inputs",
    "plain_sum",
    "ring",
    "secure_round",
]

CONTEXT = bytes(range(32))
"""What model, codec and plan hash to, where a program has none."""
_LOW_BITS = 12
_NO_DEMANDS = ClientPolicy(gamma=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A session that is over: its public configuration and the file."""

    config: RoundConfig
    path: Path

    def view(self) -> View:
        """All that the server can know, from the file alone."""
        return View(self.config, read_transcript(self.path))


def ring(values: ArrayLike, bits: int) -> RingVector:
    """Integers as a vector modulo 2^bits; negative ones wrap around."""
    whole = np.asarray(values).astype(np.int64).astype(np.uint64) & np.uint64((1 << bits) - 1)
    return RingVector(whole.astype(ring_dtype(1 << bits)), 1 << bits)


def images_as_inputs(count: int, *, bits: int, seed: int) -> dict[ClientId, RingVector]:
    """One digit per client 1..count: pixel times 2^12 plus 12 random bits, 64 entries.

    The image is there to be seen; the random bits are there so that an equal entry was recovered
    and not guessed. The first client's image is the first victim. The sum of 100 fits 24 bits.
    """
    rng = np.random.default_rng(seed)
    x = data.digits().x[[20 * i % 1000 for i in range(count)]]
    pixels = np.round(x * 16).astype(np.int64) << _LOW_BITS
    noisy = pixels + rng.integers(0, 1 << _LOW_BITS, size=pixels.shape)
    return {ClientId(u): ring(row, bits) for u, row in enumerate(noisy, start=1)}


def as_image(vector: Ring | None, bits: int) -> NDArray[np.float64]:
    """Ring elements as a picture: an input of :func:`images_as_inputs` looks like its digit."""
    if vector is None:
        return np.full(data.PIXELS, np.nan)
    most = 16 << _LOW_BITS
    shown = np.asarray(vector, dtype=float)
    return np.where(shown <= most * 1.1, shown / most, shown / (1 << bits))


def plain_sum(inputs: Mapping[ClientId, RingVector], chosen: Iterable[int]) -> Ring:
    """The truth that an attack is held against; no attack is given it."""
    members = [inputs[ClientId(u)] for u in chosen]
    total = np.zeros(len(members[0]), dtype=np.uint64)
    for vector in members:
        total += vector.values.astype(np.uint64)
    result: Ring = total & np.uint64(members[0].modulus - 1)
    return result


def secure_round(
    inputs: Mapping[ClientId, RingVector],
    path: Path,
    *,
    adversary: Adversary = Adversary.ACTIVE,
    t: int | None = None,
    corrupt: int = 1,
    dropped: int = 0,
    drops: Mapping[str, Collection[ClientId]] | None = None,
    round_id: int = 0,
    context: bytes = CONTEXT,
    policy: ClientPolicy = _NO_DEMANDS,
) -> Recorded:
    """Runs one session of SecAgg as shipped, and records it.

    Args:
        inputs: by client id, all of one length and modulus 2^b.
        path: of the transcript.
        adversary: against whom the session protects.
        t: the threshold; default the strongest that ``dropped`` leaves reachable.
        corrupt: the plan's A.
        dropped: the plan's D.
        drops: phase to clients that vanish before it.
        round_id: of training.
        context: 32 bytes.
        policy: what every client demands.

    Returns:
        Configuration and file. The opened sum is in the file: ``view().sum_of(survivors)``.
    """
    cohort = Cohort.of(inputs)
    first = next(iter(inputs.values()))
    threat = ThreatModel(adversary=adversary, corrupt=corrupt, dropped=dropped)
    config = SecAggParams.complete(len(cohort), threat, t=t).config(
        round_id=RoundId(round_id),
        cohort=cohort,
        m=len(first),
        b=first.modulus.bit_length() - 1,
        context_digest=context,
        server_nonce=os.urandom(32),
    )
    active = adversary is Adversary.ACTIVE
    server, clients = make_parties(
        config,
        cohort.ids,
        context_digest=context,
        policy=policy,
        identities={u: IdentityKey(os.urandom(32)) for u in cohort} if active else {},
        beacon=os.urandom(32),
    )
    result = run_session(server, clients, inputs, drops=drops or {})
    write_transcript(path, result.transcript)
    return Recorded(config=config, path=path)
