"""What the programs of this folder share: a fresh model, the usual local training, and one table.

Each program has ``wrong()`` and ``right()``, which return the same kind of outcome, and ``check``,
an assertion that anybody could have had in a test: it fails on the wrong outcome and passes on the
right one. :func:`compare` shows both and says what the assertion said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional

from securefl.training import models
from securefl.training.data import Dataset
from securefl.training.local import FlatModel, evaluate

T = TypeVar("T")

Vector = NDArray[np.float32]


def digits_module() -> nn.Module:
    """Softmax regression on 64 pixels and 10 classes, 650 parameters, all zero."""
    return models.build("softmax", input_shape=(64,), classes=10, seed=0)


def vector_of(module: nn.Module) -> Vector:
    """A copy of the parameters, float32[d]."""
    parts = [p.detach().reshape(-1) for p in module.parameters()]
    return np.array(torch.cat(parts).numpy(), dtype=np.float32)


def accuracy(vector: NDArray[np.floating], test: Dataset) -> float:
    """Share of the test records that the model with these parameters gets right."""
    model = FlatModel(digits_module())
    model.load(vector)
    return evaluate(model, test.x, test.y)[1]


def batches(records: Dataset, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The records in their order, ``size`` at a time."""
    x, y = torch.from_numpy(records.x), torch.from_numpy(records.y)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(y), size)]


def plain_sgd(
    module: nn.Module, records: Dataset, *, learning_rate: float, epochs: int = 1, size: int = 32
) -> None:
    """The usual loop: minibatch SGD on the module, in place."""
    optimiser = torch.optim.SGD(module.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for x, y in batches(records, size):
            optimiser.zero_grad()
            loss = functional.cross_entropy(module(x), y)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the assertion said; ``complaint`` is empty where it passed."""

    complaint: str

    @property
    def passed(self) -> bool:
        """Whether the assertion held."""
        return not self.complaint


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison(Generic[T]):
    """Both versions, how to judge them, and what to show of them.

    Attributes:
        title: one line.
        mistake: what goes wrong, in plain words.
        rows: label to what is shown of an outcome.
        check: raises AssertionError, with a message, on an outcome that has the mistake.
    """

    title: str
    mistake: str
    rows: Mapping[str, Callable[[T], str]]
    check: Callable[[T], None]


def verdict(check: Callable[[T], None], outcome: T) -> Verdict:
    """Runs the assertion on one outcome."""
    try:
        check(outcome)
    except AssertionError as error:
        return Verdict(complaint=str(error) or "failed")
    return Verdict(complaint="")


def compare(c: Comparison[T], *, wrong: T, right: T) -> int:
    """Prints both versions side by side. 0 if the assertion tells them apart, else 1."""
    on_wrong, on_right = verdict(c.check, wrong), verdict(c.check, right)
    table = Table(title=c.title, title_justify="left")
    for column in ("", "wrong", "right"):
        table.add_column(column, overflow="fold")
    for label, show in c.rows.items():
        table.add_row(label, show(wrong), show(right))
    table.add_section()
    table.add_row("the assertion", *(v.complaint or "passes" for v in (on_wrong, on_right)))
    console = Console(width=100, markup=False)  # [1, 2] is a list, not a style
    console.print(c.mistake, highlight=False)
    console.print(table)
    return 0 if on_right.passed and not on_wrong.passed else 1
