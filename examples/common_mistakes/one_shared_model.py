"""Mistake: all clients hold the same model object, so their average is whoever trained last.

`clients = [(model, records) for ...]` copies a reference, not a model. Each client goes on where
the one before it stopped, and the "average" at the end adds up N copies of one set of weights.
What looks like federated averaging is training in turn: it depends on the order of the clients, the
last one counts most, and a client starts from a model that shows what the others' records did.

    python examples/common_mistakes/one_shared_model.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from side_by_side import Comparison, Vector, accuracy, compare, digits_module, plain_sgd, vector_of

from securefl.training import data, partition
from securefl.training.apply import ServerOptimiser
from securefl.training.data import Dataset
from securefl.training.local import FlatModel, LocalSGD, limit_threads

CLIENTS, RATE = 4, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One round.

    Attributes:
        average: the new global model.
        last: the weights of the client that trained last.
        reversed_average: the new global model had the clients trained in reverse order.
        accuracy: of the new global model.
    """

    average: Vector
    last: Vector
    reversed_average: Vector
    accuracy: float


def wrong() -> Outcome:
    clients, test = _clients()
    average, last = _shared_round(clients)
    reversed_average, _ = _shared_round(clients[::-1])
    return Outcome(
        average=average,
        last=last,
        reversed_average=reversed_average,
        accuracy=accuracy(average, test),
    )


def right() -> Outcome:
    """Every client starts from the same global model; what is averaged are their updates."""
    clients, test = _clients()
    average, last = _separate_round(clients)
    reversed_average, _ = _separate_round(clients[::-1])
    return Outcome(
        average=average,
        last=last,
        reversed_average=reversed_average,
        accuracy=accuracy(average, test),
    )


def check(outcome: Outcome) -> None:
    assert not np.array_equal(outcome.average, outcome.last), (
        "the average is, bit for bit, the model of the client that trained last"
    )
    apart = float(np.abs(outcome.average - outcome.reversed_average).max())
    assert apart < 1e-6, f"the order of the clients changes the average by up to {apart:.2g}"


def _shared_round(clients: Sequence[tuple[int, Dataset]]) -> tuple[Vector, Vector]:
    """The average, and the weights of the last client."""
    shared = digits_module()
    members = [(shared, records) for _, records in clients]  # one module, four names
    for module, records in members:
        plain_sgd(module, records, learning_rate=RATE)
    models = torch.stack([torch.from_numpy(vector_of(module)) for module, _ in members])
    return models.mean(dim=0).numpy(), vector_of(members[-1][0])


def _separate_round(clients: Sequence[tuple[int, Dataset]]) -> tuple[Vector, Vector]:
    model = FlatModel(digits_module())
    start = model.vector()
    updates = [
        LocalSGD(
            model=model,
            x=records.x,
            y=records.y,
            client=k,
            learning_rate=RATE,
            batch_size=32,
            epochs=1,
        ).train(start, round_index=0)
        for k, records in clients
    ]
    mean = np.average([u.values for u in updates], axis=0, weights=[u.weight for u in updates])
    return ServerOptimiser.sgd(model.dim).apply(start, mean), start + updates[-1].values


def _clients() -> tuple[list[tuple[int, Dataset]], Dataset]:
    """Clients with their numbers, and the test records."""
    train, test = data.load("digits")
    parts = partition.iid(len(train), clients=CLIENTS, seed=0)
    return [(k, train.subset(part)) for k, part in enumerate(parts.indices)], test


def main() -> int:
    limit_threads()
    return compare(
        Comparison(
            title="One round of federated averaging, four clients",
            mistake="Four clients share one model object and step it in turn.",
            rows={
                "average = last client's model": lambda o: str(
                    bool(np.array_equal(o.average, o.last))
                ),
                "changed by reversing the clients": lambda o: (
                    f"{np.abs(o.average - o.reversed_average).max():.2g}"
                ),
                "accuracy: why nobody notices": lambda o: f"{o.accuracy:.1%}",
            },
            check=check,
        ),
        wrong=wrong(),
        right=right(),
    )


if __name__ == "__main__":
    raise SystemExit(main())
