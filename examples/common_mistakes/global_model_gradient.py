"""Mistake: clients train local models, and the server uses the gradient of the global one.

Each client fits a copy for some epochs; then the code calls `loss.backward()` on the *global* model
and collects its gradient, once, in a list of one. Without the local training the result is the
same, bit for bit: the work of the clients is thrown away, and what is sent is one plain gradient of
whichever records were left in the variable.

    python examples/common_mistakes/global_model_gradient.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from side_by_side import (
    Comparison,
    Vector,
    accuracy,
    compare,
    digits_module,
    plain_sgd,
    vector_of,
)
from torch.nn import functional

from securefl.training import data, partition
from securefl.training.apply import ServerOptimiser
from securefl.training.data import Dataset
from securefl.training.local import FlatModel, LocalSGD, limit_threads

CLIENTS, EPOCHS, RATE = 4, 5, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The global model after one round.

    Attributes:
        trained: with EPOCHS epochs on every client.
        idle: with clients that leave the model as they got it.
        accuracy: of ``trained``.
    """

    trained: Vector
    idle: Vector
    accuracy: float


def wrong() -> Outcome:
    clients, test = _clients()
    trained = _wrong_round(clients, epochs=EPOCHS)
    idle = _wrong_round(clients, epochs=0)
    return Outcome(trained=trained, idle=idle, accuracy=accuracy(trained, test))


def right() -> Outcome:
    """What a client sends is how far its own model moved."""
    clients, test = _clients()
    model = FlatModel(digits_module())
    start = model.vector()

    def moved(k: int, records: Dataset) -> Vector:
        trainer = LocalSGD(
            model=model,
            x=records.x,
            y=records.y,
            client=k,
            learning_rate=RATE,
            batch_size=32,
            epochs=EPOCHS,
        )
        return trainer.train(start, round_index=0).values

    trained = _right_round(start, clients, moved)
    idle = _right_round(start, clients, lambda _k, _records: np.zeros_like(start))
    return Outcome(trained=trained, idle=idle, accuracy=accuracy(trained, test))


def check(outcome: Outcome) -> None:
    assert not np.array_equal(outcome.trained, outcome.idle), (
        "the clients' training makes no difference, not even in the last bit"
    )


def _wrong_round(clients: Sequence[Dataset], *, epochs: int) -> Vector:
    model = digits_module()
    gradients = []
    for records in clients:
        local = copy.deepcopy(model)
        plain_sgd(local, records, learning_rate=RATE, epochs=epochs)  # never looked at again
    model.zero_grad()
    x, y = torch.from_numpy(records.x), torch.from_numpy(records.y)
    loss = functional.cross_entropy(model(x), y)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    gradients.append([p.grad for p in model.parameters()])
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            mean = sum(g for one in gradients if (g := one[i]) is not None) / len(gradients)
            p.sub_(RATE * mean)
    return vector_of(model)


def _right_round(
    start: Vector, clients: Sequence[Dataset], moved: Callable[[int, Dataset], Vector]
) -> Vector:
    updates = [moved(k, records) for k, records in enumerate(clients)]
    mean = np.average(updates, axis=0, weights=[len(records) for records in clients])
    return ServerOptimiser.sgd(len(start)).apply(start, mean)


def _clients() -> tuple[list[Dataset], Dataset]:
    train, test = data.load("digits")
    parts = partition.iid(len(train), clients=CLIENTS, seed=0)
    return [train.subset(part) for part in parts.indices], test


def main() -> int:
    limit_threads()
    return compare(
        Comparison(
            title=f"One round, {CLIENTS} clients, {EPOCHS} local epochs",
            mistake="Local models are trained; the global model's gradient is what gets applied.",
            rows={
                "changed by leaving out all local training": lambda o: (
                    f"{np.abs(o.trained - o.idle).max():.2g}"
                ),
                "accuracy": lambda o: f"{o.accuracy:.1%}",
            },
            check=check,
        ),
        wrong=wrong(),
        right=right(),
    )


if __name__ == "__main__":
    raise SystemExit(main())
