"""Mistake: references to the parameters are stored, and read when they mean something else.

`stored.append(list(model.parameters()))` after each batch keeps the same tensors every time. When
their `.grad` is read at the end, each entry holds the gradient of the very last batch, at a model
that has moved meanwhile. The "global gradient" is then (batches / clients) times that one batch's.

    python examples/common_mistakes/aliased_gradients.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import Comparison, batches, compare, digits_module
from torch import nn
from torch.nn import functional

from securefl.training import data, partition
from securefl.training.data import Dataset
from securefl.training.local import FlatModel, FullGradient, Reduction, limit_threads

CLIENTS, RATE, BATCH = 4, 0.1, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One round of federated SGD at the zero model.

    Attributes:
        global_gradient: what the server believes to be the mean gradient of all records.
        pooled_gradient: what that is, computed on all records in one place.
        batches: over all clients.
        last_batch_gradient: the gradient of the last client's last batch.
    """

    global_gradient: NDArray[np.float64]
    pooled_gradient: NDArray[np.float64]
    batches: int
    last_batch_gradient: NDArray[np.float64]


def wrong() -> Outcome:
    clients = _clients()
    module = digits_module()
    optimiser = torch.optim.SGD(module.parameters(), lr=RATE)
    stored: list[list[nn.Parameter]] = []
    for records in clients:
        for x, y in batches(records, BATCH):
            optimiser.zero_grad()
            loss = functional.cross_entropy(module(x), y)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            stored.append(list(module.parameters()))  # "this batch's gradients"
    total = sum(_gradient_of(parameters) for parameters in stored)
    return Outcome(
        global_gradient=np.asarray(total / len(clients)),
        pooled_gradient=_pooled(clients),
        batches=len(stored),
        last_batch_gradient=_gradient_of(list(module.parameters())),
    )


def right() -> Outcome:
    """Each client's gradient at the one global model, by value, added as sums over records."""
    clients = _clients()
    model = FlatModel(digits_module())
    start = model.vector()
    sums = [
        FullGradient(
            model=model, x=records.x, y=records.y, client=k, reduction=Reduction.SUM
        ).train(start, round_index=0)
        for k, records in enumerate(clients)
    ]
    records_in_all = sum(u.examples for u in sums)
    last = clients[-1].subset(np.arange(len(clients[-1]) // BATCH * BATCH, len(clients[-1])))
    return Outcome(
        # An update is what the server adds: minus the gradient.
        global_gradient=np.asarray(
            -np.sum([u.values.astype(np.float64) for u in sums], axis=0) / records_in_all
        ),
        pooled_gradient=_pooled(clients),
        batches=sum(-(-len(records) // BATCH) for records in clients),
        last_batch_gradient=_pooled([last]),
    )


def check(outcome: Outcome) -> None:
    apart = _apart(outcome)
    assert apart < 1e-5, (
        f"the global gradient is off from that of all records by {apart:.0%} of its length"
    )


def _apart(outcome: Outcome) -> float:
    """Relative distance from the pooled gradient."""
    difference = outcome.global_gradient - outcome.pooled_gradient
    return float(np.linalg.norm(difference) / np.linalg.norm(outcome.pooled_gradient))


def _gradient_of(parameters: Sequence[nn.Parameter]) -> NDArray[np.float64]:
    parts = [p.grad.reshape(-1).double() for p in parameters if p.grad is not None]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)


def _pooled(clients: Sequence[Dataset]) -> NDArray[np.float64]:
    """The mean gradient of these records at the zero model, in one place."""
    module = digits_module()
    x = torch.cat([torch.from_numpy(records.x) for records in clients])
    y = torch.cat([torch.from_numpy(records.y) for records in clients])
    loss = functional.cross_entropy(module(x), y)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return _gradient_of(list(module.parameters()))


def _clients() -> list[Dataset]:
    train, _ = data.load("digits")
    parts = partition.quantity(len(train), clients=CLIENTS, alpha=2.0, seed=0, min_size=100)
    return [train.subset(part) for part in parts.indices]


def _ratio(outcome: Outcome) -> str:
    """How many times the last batch's gradient the global one is, if it is a multiple."""
    last = outcome.last_batch_gradient
    factor = float(outcome.global_gradient @ last / (last @ last))
    exact = np.allclose(outcome.global_gradient, factor * last, rtol=1e-5, atol=1e-8)
    return f"{factor:.2f} = {outcome.batches}/{CLIENTS}" if exact else "no multiple of it"


def main() -> int:
    limit_threads()
    return compare(
        Comparison(
            title=f"The gradient of {CLIENTS} clients at one global model",
            mistake="Parameters are stored per batch; their gradients are read after all batches.",
            rows={
                "off from the gradient of all records by": lambda o: f"{_apart(o):.2g}",
                "times the last batch's gradient": _ratio,
            },
            check=check,
        ),
        wrong=wrong(),
        right=right(),
    )


if __name__ == "__main__":
    raise SystemExit(main())
