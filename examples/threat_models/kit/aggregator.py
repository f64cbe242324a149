"""The library's own noisy sum as a black box, for the mechanism auditor.

Everything between a client's update and the decoded sum is the shipped code: clip, rotate, round,
noise share, ring sum, decode. Only masking is left out, since a masked sum opens to exactly this
one (a test compares both, bit by bit, for whole sessions). A broken aggregator is the same with
one stage replaced: another codec, another preparation, other clients present, another source.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import accounting
from accounting.empirical import Claim, Noise
from accounting.events import Event, Repeat
from kit.metrics import DELTA
from kit.streams import RandomBytes
from securefl.encoding.noisy import Contribution, NoisyCodec, NoisySpec
from securefl.modular import RingVector
from securefl.round import AggregateSum, ClientId

__all__ = ["Aggregator", "aggregator_mechanism", "claim_of", "ring_sum", "spec_of"]

Floats = NDArray[np.float64]
ADJACENCY = "zero-out"


def spec_of(
    *,
    z: float,
    clients: int,
    honest: int | None = None,
    dimension: int = 40,
    clip_norm: float = 1.0,
    contribution: Contribution = Contribution.CLIENT,
    units: float | None = None,
    resolution: float | None = None,
) -> NoisySpec:
    """A codec specification as a deployment plans it; by default nobody colludes or vanishes."""
    return NoisySpec.plan(
        dimension=dimension,
        clip_norm=clip_norm,
        noise_multiplier=z,
        honest_shares=clients if honest is None else honest,
        max_clients=clients,
        contribution=contribution,
        units=clients if units is None else units,
        resolution=resolution,
    )


def claim_of(
    event: Event, *, rounds: int = 1, delta: float = DELTA, noise: Noise = Noise.GAUSSIAN
) -> Claim:
    """What a user would be told about so many releases: the accountant's number."""
    found = accounting.epsilon(Repeat(event=event, count=rounds), delta, adjacency=ADJACENCY)
    return Claim(epsilon=found.value, delta=delta, adjacency=found.adjacency, noise=noise)


def ring_sum(vectors: list[RingVector]) -> RingVector:
    """The sum that secure aggregation would open."""
    total = vectors[0]
    for vector in vectors[1:]:
        total += vector
    return total


def _unchanged(update: Floats) -> Floats:
    return update


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregator:
    """One aggregator, correct unless told otherwise.

    Attributes:
        codec: of every client whose index has no entry in ``others``.
        source: called once per run; gives one source of bytes per round.
        others: codecs of single clients, by index.
        missing: clients whose vector does not arrive.
        prepare: what a client does to its update before it encodes it.
        takes_part: tells for a run's client whether its coin let it in; a client that stays out
            sends zero and its share of noise, as the library does.
    """

    codec: NoisyCodec
    source: Callable[[int], RandomBytes]
    others: dict[int, NoisyCodec] | None = None
    missing: Collection[int] = ()
    prepare: Callable[[Floats], Floats] = _unchanged
    takes_part: Callable[[int], bool] | None = None

    def round(self, updates: Floats, index: int) -> Floats:
        """One round: float64[n, d] to the decoded sum, float64[d]."""
        seed = index.to_bytes(16, "little")  # public: it gives the rotation's signs
        random_bytes = self.source(index)
        vectors, present = [], []
        for i, update in enumerate(updates):
            if i in self.missing:
                continue
            codec = self.codec if self.others is None else self.others.get(i, self.codec)
            present.append(ClientId(i + 1))
            if self.takes_part is not None and not self.takes_part(i):
                vectors.append(codec.encode_zero(round_seed=seed, random_bytes=random_bytes))
                continue
            prepared = self.prepare(update)
            vectors.append(codec.encode(prepared, round_seed=seed, random_bytes=random_bytes))
        opened = AggregateSum(vector=ring_sum(vectors), survivors=tuple(present), min_honest=1)
        return self.codec.decode(opened, round_seed=seed, denominator=1.0).mean


def aggregator_mechanism(
    aggregator: Aggregator,
) -> Callable[[Floats, np.random.Generator], Floats]:
    """``mechanism(updates[T, n, d], rng) -> released[T, d]``; the generator is not used."""

    def mechanism(updates: Floats, _rng: np.random.Generator) -> Floats:
        return np.stack([aggregator.round(one, t) for t, one in enumerate(updates)])

    return mechanism
