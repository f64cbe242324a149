"""Mistake: the weight of the last client is applied to a model that everybody trained in turn.

Two small errors that hide each other. `state_dict()` returns the live parameters, not a copy, so
"load the global weights before each batch" loads the model into itself. And the aggregation stands
after the loop over the clients, where the loop's variables still exist and mean the last client.
The first error makes every round plain training in turn; the second multiplies the model by the
last client's share, every round.

    python examples/common_mistakes/last_client_only.py
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from side_by_side import (
    Comparison,
    Vector,
    accuracy,
    batches,
    compare,
    digits_module,
    plain_sgd,
    vector_of,
)
from torch import nn
from torch.nn import functional

from securefl.training import data
from securefl.training.apply import ServerOptimiser
from securefl.training.data import Dataset
from securefl.training.local import FlatModel, LocalSGD, limit_threads

RATE, ROUNDS, BATCH = 0.5, 5, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Five rounds with two clients that hold a quarter and three quarters of the records.

    Attributes:
        alone: what each client makes of the first global model, trained by itself.
        shares: n_i / n.
        after_first_round: the global model after one round.
        accuracy: of the last global model.
    """

    alone: tuple[Vector, ...]
    shares: tuple[float, ...]
    after_first_round: Vector
    accuracy: float


def wrong() -> Outcome:
    clients, test = unequal_clients()
    module = digits_module()
    alone = []
    for records in clients:
        own = copy.deepcopy(module)
        plain_sgd(own, records, learning_rate=RATE, size=BATCH)
        alone.append(vector_of(own))
    after = [leaky_round(module, clients)[1] for _ in range(ROUNDS)]
    return Outcome(
        alone=tuple(alone),
        shares=_shares(clients),
        after_first_round=after[0],
        accuracy=accuracy(after[-1], test),
    )


def right() -> Outcome:
    """Copies to train on, one update per client, and all the shares in one average."""
    clients, test = unequal_clients()
    model = FlatModel(digits_module())
    trainers = [
        LocalSGD(
            model=model,
            x=records.x,
            y=records.y,
            client=k,
            learning_rate=RATE,
            batch_size=BATCH,
            epochs=1,
        )
        for k, records in enumerate(clients)
    ]
    server, w = ServerOptimiser.sgd(model.dim), model.vector()
    alone: list[tuple[Vector, ...]] = []
    after: list[Vector] = []
    for t in range(ROUNDS):
        updates = [trainer.train(w, round_index=t) for trainer in trainers]
        alone.append(tuple(w + u.values for u in updates))
        mean = np.average([u.values for u in updates], axis=0, weights=[u.weight for u in updates])
        w = server.apply(w, mean)
        after.append(w)
    return Outcome(
        alone=alone[0],
        shares=_shares(clients),
        after_first_round=after[0],
        accuracy=accuracy(after[-1], test),
    )


def check(outcome: Outcome) -> None:
    expected = np.average(outcome.alone, axis=0, weights=outcome.shares)
    apart = float(np.abs(outcome.after_first_round - expected).max())
    assert apart < 1e-6, (
        f"the global model is off by up to {apart:.2g} from the mean of what the clients trained, "
        "weighted by their shares"
    )


def leaky_round(module: nn.Module, clients: Sequence[Dataset]) -> tuple[Vector, Vector]:
    """One wrong round on ``module``: the model before the aggregation, and after it."""
    total = sum(len(records) for records in clients)
    optimiser = torch.optim.SGD(module.parameters(), lr=RATE)
    global_weights = module.state_dict()  # not a copy: these *are* the parameters
    for records in clients:
        for x, y in batches(records, BATCH):
            module.load_state_dict(global_weights)  # "start from the global model": does nothing
            optimiser.zero_grad()
            loss = functional.cross_entropy(module(x), y)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
    trained = vector_of(module)
    share = len(records) / total  # the loop is over: this is the last client's
    module.load_state_dict({k: share * v for k, v in module.state_dict().items()})
    return trained, vector_of(module)


def unequal_clients() -> tuple[list[Dataset], Dataset]:
    """Two clients whose sizes are 1 : 3, and the test records."""
    train, test = data.load("digits")
    order = np.random.default_rng(0).permutation(len(train))[: len(train) // 4 * 4]
    quarter = len(order) // 4
    return [train.subset(order[:quarter]), train.subset(order[quarter:])], test


def _shares(clients: Sequence[Dataset]) -> tuple[float, ...]:
    total = sum(len(records) for records in clients)
    return tuple(len(records) / total for records in clients)


def main() -> int:
    limit_threads()
    return compare(
        Comparison(
            title="Federated averaging, two clients, 1 : 3 records",
            mistake="An aliased state_dict, and a share taken from a loop variable after its loop.",
            rows={
                "shares": lambda o: " and ".join(f"{s:.2f}" for s in o.shares),
                "length of the model after round 1, of the": lambda o: (
                    f"{np.linalg.norm(o.after_first_round):.3f}"
                ),
                "weighted mean of what the clients trained": lambda o: (
                    f"{np.linalg.norm(np.average(o.alone, axis=0, weights=o.shares)):.3f}"
                ),
                "accuracy after five rounds: why nobody notices": lambda o: f"{o.accuracy:.1%}",
            },
            check=check,
        ),
        wrong=wrong(),
        right=right(),
    )


if __name__ == "__main__":
    raise SystemExit(main())
