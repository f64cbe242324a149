"""Mistake: "decentralised" training in which no message is ever sent.

Every peer trains its own model on its own records, round after round, and the list of neighbours is
never read. Nothing leaks, because nothing is exchanged, and nothing is learnt from anybody either.
It shows as soon as peers hold different classes: each then knows its own. Count the bytes.

The right version sums the peers' updates without a server, so that nobody sees a single one and
all learn the sum. The sum is not private by that: hiding what it says about one record takes noise,
which is another step.

    python examples/common_mistakes/no_exchange.py
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from side_by_side import Comparison, Vector, accuracy, compare, digits_module

from securefl import AggregateSum, CodecSpec, RingVector, UpdateCodec, secure_sum
from securefl.round import ClientId
from securefl.training import data, partition
from securefl.training.apply import ServerOptimiser
from securefl.training.data import Dataset
from securefl.training.local import FlatModel, LocalSGD, ModelUpdate, limit_threads

PEERS, ROUNDS, RATE, BITS = 5, 12, 0.2, 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The peers after the last round.

    Attributes:
        models: one per peer.
        bytes_sent: by each peer, over all rounds.
        accuracies: of each peer's model on test records of all ten classes.
    """

    models: tuple[Vector, ...]
    bytes_sent: tuple[int, ...]
    accuracies: tuple[float, ...]


def wrong() -> Outcome:
    trainers, test = _peers()
    neighbours = {k: [(k - 1) % PEERS, (k + 1) % PEERS] for k in range(PEERS)}
    own = [trainers[0].model.vector() for _ in range(PEERS)]
    bytes_sent = [0] * PEERS
    for t in range(ROUNDS):
        for k in range(PEERS):
            own[k] = own[k] + trainers[k].train(own[k], round_index=t).values
            for _neighbour in neighbours[k]:
                pass  # "exchange the models with the neighbours"
    return _outcome(own, bytes_sent, test)


def right() -> Outcome:
    """Each round one secure sum of the updates; every peer adds the same mean."""
    trainers, test = _peers()
    dim = trainers[0].model.dim
    codec = UpdateCodec(
        CodecSpec.plan(
            dimension=dim, clip_norm=20.0, max_clients=PEERS, resolution=(1 << (BITS - 1)) - 1
        )
    )
    own = [trainers[0].model.vector() for _ in range(PEERS)]
    bytes_sent = [0] * PEERS
    for t in range(ROUNDS):
        updates = [trainers[k].train(own[k], round_index=t) for k in range(PEERS)]
        mean, sent = _exchange(codec, updates)
        for k in range(PEERS):
            own[k] = ServerOptimiser.sgd(dim).apply(own[k], mean)
            bytes_sent[k] += sent[k]
    return _outcome(own, bytes_sent, test)


def check(outcome: Outcome) -> None:
    silent = [k for k, sent in enumerate(outcome.bytes_sent) if sent == 0]
    assert not silent, f"peers {silent} have sent 0 bytes in {ROUNDS} rounds"
    assert all(np.array_equal(m, outcome.models[0]) for m in outcome.models), (
        "the peers hold different models"
    )
    assert min(outcome.accuracies) > 0.8, (
        f"a peer knows {min(outcome.accuracies):.0%} of the test records"
    )


def _exchange(
    codec: UpdateCodec, updates: list[ModelUpdate]
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], dict[int, int]]:
    """The mean update, and the bytes that each peer sent for it."""
    # Peers add up plain integers: shifted by Q, the encoded steps -Q..Q are not negative.
    Q = codec.spec.resolution
    total = secure_sum(
        {k: codec.encode(u.values).centred() + Q for k, u in enumerate(updates)},
        protocol="peersum",
        bits=BITS,
    )
    steps = total.sum.astype(np.int64) - Q * len(total.survivors)
    opened = AggregateSum(
        vector=RingVector.from_signed(steps, codec.modulus),
        survivors=tuple(ClientId(k) for k in total.survivors),
        min_honest=len(total.survivors) - 1,
    )
    return codec.decode(opened).mean, total.bytes_up


def _outcome(own: list[Vector], bytes_sent: list[int], test: Dataset) -> Outcome:
    return Outcome(
        models=tuple(own),
        bytes_sent=tuple(bytes_sent),
        accuracies=tuple(accuracy(w, test) for w in own),
    )


def _peers() -> tuple[list[LocalSGD], Dataset]:
    """Five peers with two shards, of about two classes, each."""
    train, test = data.load("digits")
    model = FlatModel(digits_module())
    parts = partition.shards(train.y, clients=PEERS, per_client=2, seed=0)
    trainers = [
        LocalSGD(
            model=model,
            x=train.x[part],
            y=train.y[part],
            client=k,
            learning_rate=RATE,
            batch_size=64,
            epochs=1,
        )
        for k, part in enumerate(parts.indices)
    ]
    return trainers, test


def main() -> int:
    limit_threads()
    return compare(
        Comparison(
            title=f"{PEERS} peers with two classes each, {ROUNDS} rounds",
            mistake="Peers have neighbours, and never send them anything.",
            rows={
                "bytes sent by each peer": lambda o: ", ".join(str(b) for b in o.bytes_sent),
                "different models": lambda o: str(len({m.tobytes() for m in o.models})),
                "accuracy of each on all ten classes": lambda o: ", ".join(
                    f"{a:.0%}" for a in o.accuracies
                ),
            },
            check=check,
        ),
        wrong=wrong(),
        right=right(),
    )


if __name__ == "__main__":
    raise SystemExit(main())
