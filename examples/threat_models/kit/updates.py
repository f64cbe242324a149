"""Float updates through a codec and a session: what the server can decode, from the file alone.

:func:`open_sum` takes clients' updates through the shipped codec and real machines and leaves the
transcript; :class:`Opened` reads only that file. Where a figure needs thousands of releases,
:func:`release` adds the encoded vectors in the ring instead: it is bit-equal to the session's sum
(a test compares both), hides nothing and is used for no claim about masks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from accounting import Adjacency, RDPAccountant
from kit.metrics import DELTA, gaussian_epsilon, mu_of
from kit.result import Epsilon
from kit.rounds import CONTEXT, Recorded, secure_round
from securefl.encoding import (
    CodecSpec,
    Contribution,
    NoisyCodec,
    NoisySpec,
    UpdateCodec,
    sum_encoded,
)
from securefl.modular import RingVector, ring_dtype
from securefl.round import Adversary, AggregateSum, ClientId

__all__ = [
    "FINE",
    "Opened",
    "claim",
    "client_claim",
    "noisy_codec",
    "open_sum",
    "plain_codec",
    "release",
    "round_seed",
]

Floats = NDArray[np.float64]
Codec = UpdateCodec | NoisyCodec

FINE = 1 << 24
"""Steps per clip norm where rounding must not be taken for a defence."""
_STEPS_PER_NOISE = 4096


def plain_codec(
    dimension: int, clients: int, *, clip_norm: float = 1.0, bits: int | None = None
) -> UpdateCodec:
    """The shipped encoder without noise: clip and round.

    Args:
        dimension: coordinates of an update.
        clients: most in one sum.
        clip_norm: C.
        bits: of one ring element; default as many as :data:`FINE` needs.
    """
    resolution = FINE if bits is None else None
    spec = CodecSpec.plan(
        dimension=dimension,
        clip_norm=clip_norm,
        max_clients=clients,
        bits=bits,
        resolution=resolution,
    )
    return UpdateCodec(spec)


def noisy_codec(dimension: int, clients: int, z: float, *, clip_norm: float = 1.0) -> NoisyCodec:
    """The shipped encoder with noise z C on the sum of all clients' shares.

    So fine that a step is a small part of the noise: rounding must not be credited with what noise
    does, least of all where there is hardly any noise.
    """
    per_share = _STEPS_PER_NOISE * math.sqrt(clients) / z
    planned = NoisySpec.plan(
        dimension=dimension,
        clip_norm=clip_norm,
        noise_multiplier=z,
        honest_shares=clients,
        max_clients=clients,
        units=clients,
        contribution=Contribution.CLIENT,
    )
    if planned.resolution >= per_share:
        return NoisyCodec(planned)
    finer = NoisySpec.plan(
        dimension=dimension,
        clip_norm=clip_norm,
        noise_multiplier=z,
        honest_shares=clients,
        max_clients=clients,
        units=clients,
        contribution=Contribution.CLIENT,
        resolution=per_share,
    )
    return NoisyCodec(finer)


def claim(codec: NoisyCodec, clients: int, *, rounds: int = 1) -> Epsilon:
    """What the library's accountant tells a user of this codec about ``rounds`` opened sums."""
    accountant = RDPAccountant(adjacency=Adjacency.ZERO_OUT)
    accountant.compose(codec.event(clients), rounds)
    return Epsilon(
        value=accountant.epsilon(DELTA).value,
        delta=DELTA,
        adjacency="zero-out, one client",
        rounds=rounds,
        participation="every client in every round",
    )


def client_claim(z: float, *, rounds: int = 1) -> Epsilon:
    """The exact epsilon of Gaussian noise z C on ``rounds`` sums, for caps."""
    return Epsilon(
        value=gaussian_epsilon(mu_of(z, rounds)),
        delta=DELTA,
        adjacency="zero-out, one client",
        rounds=rounds,
        participation="every client in every round",
    )


def round_seed(*labels: object) -> bytes:
    """The public seed of a round: 32 bytes from words and numbers."""
    return hashlib.sha256(repr(labels).encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A session that is over, and how its numbers are to be read. Holds no client's update."""

    recorded: Recorded
    codec: Codec
    seed: bytes

    def total(self, *, without: Mapping[int, RingVector] | None = None) -> Floats:
        """The sum of the survivors' updates as the server decodes it; float64[d].

        Args:
            without: encoded vectors of colluders; they are subtracted, as the server would.

        Raises:
            ValueError: if the transcript does not open.
        """
        view = self.recorded.view()
        members = view.clients
        found = view.sum_of(members)
        if found is None:
            raise ValueError(f"{self.recorded.path}: no sum was opened in this session")
        modulus = self.codec.modulus
        vector = RingVector(found.astype(ring_dtype(modulus)), modulus)
        for u, known in (without or {}).items():
            members.remove(ClientId(u))
            minus = (modulus - known.values.astype(np.uint64)) % np.uint64(modulus)
            vector = vector + RingVector(minus.astype(ring_dtype(modulus)), modulus)
        return _decode(self.codec, vector, members, self.seed)

    def single(self, u: int) -> Floats:
        """Client u's masked input read as if it were an encoded update; float64[d]."""
        words = self.recorded.view().masked(ClientId(u))
        modulus = self.codec.modulus
        signed = RingVector(words.astype(ring_dtype(modulus)), modulus).centred()
        spec = self.codec.spec
        steps = signed[: spec.dimension].astype(np.float64)
        return np.asarray(steps * (spec.clip_norm / spec.resolution), dtype=np.float64)


def _decode(codec: Codec, vector: RingVector, members: Sequence[ClientId], seed: bytes) -> Floats:
    opened = AggregateSum(vector=vector, survivors=tuple(members), min_honest=1)
    return codec.decode(opened, round_seed=seed, denominator=1.0).mean


def open_sum(
    updates: Mapping[int, Floats],
    codec: Codec,
    path: Path,
    *,
    seed: bytes = bytes(32),
    adversary: Adversary = Adversary.ACTIVE,
    context: bytes = CONTEXT,
) -> Opened:
    """One whole round: clip, encode, mask, sum. Everything but the file is thrown away.

    Args:
        updates: float64[d] by client id; each client clips its own.
        codec: of all of them.
        path: of the transcript.
        seed: public, of this round.
        adversary: against whom the session protects.
        context: 32 bytes.
    """
    inputs = {ClientId(u): codec.encode(values, round_seed=seed) for u, values in updates.items()}
    recorded = secure_round(inputs, path, adversary=adversary, context=context)
    return Opened(recorded=recorded, codec=codec, seed=seed)


def release(codec: Codec, encoded: Iterable[RingVector], *, seed: bytes = bytes(32)) -> Floats:
    """What the server decodes of the sum of these encoded vectors, without a session; float64[d].

    It equals :meth:`Opened.total` of a session over the same vectors.
    """
    vectors = list(encoded)
    members = [ClientId(u) for u in range(1, len(vectors) + 1)]
    return _decode(codec, sum_encoded(vectors), members, seed)
