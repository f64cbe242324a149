"""Step 1: train on one client's records and say how the model moved.

Local SGD as in FederatedAveraging (McMahan et al. 2017, *Communication-efficient learning of deep
networks from decentralized data*, algorithm 1, ClientUpdate), with the proximal term of FedProx
(Li et al. 2020, *Federated optimization in heterogeneous networks*, equation 2), and the single
full-batch gradient of FedSGD. Every trainer returns an update that the server *adds* to the model,
so a server optimiser needs to know nothing about which of them ran.

Nothing here is private: the update of :class:`LocalSGD` depends on every record without bound, and
its shuffles follow a public seed. Hiding one client among others is the protocol's work; bounding
what the sum tells about a record is that of ``dpsgd``. This module knows no codec, no protocol and
no other client.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from securefl.errors import ConfigurationError

__all__ = [
    "FlatModel",
    "FullGradient",
    "LocalSGD",
    "ModelUpdate",
    "ParameterSlot",
    "Reduction",
    "Trainer",
    "TrainingDiverged",
    "best_device",
    "evaluate",
    "limit_threads",
]


class TrainingDiverged(ConfigurationError):
    """A client's model left the finite numbers. Lower the learning rate or check the data.

    Attributes:
        client: whose training it was.
        round_index: the training round.
        what: which values were not finite.
    """

    def __init__(self, *, client: int, round_index: int, what: str) -> None:
        super().__init__(
            f"training of client {client} in round {round_index} diverged: {what} contains NaN or "
            "infinity; lower the learning rate or check the client's data (nothing was sent)"
        )
        self.client = client
        self.round_index = round_index
        self.what = what


class Reduction(StrEnum):
    """Whether a full-batch gradient is the mean or the sum over the client's records."""

    MEAN = "mean"
    SUM = "sum"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelUpdate:
    """What one client's training produced. It is private until it is masked or noised.

    Attributes:
        values: float32[d], what the server should add: local minus global model, or minus the
            gradient for FedSGD; float64[d] for a sum of clipped gradients.
        weight: integer weight that this client asks for, >= 0.
        share: factor in [0, 1] that the codec puts on the update after clipping it, and on no
            divisor; 1 unless clients count by a capped share.
        examples: records the client holds.
        steps: SGD steps really taken.
        metrics: local measurements such as the mean training loss. They read private data without
            protection and must not leave the client.
    """

    values: NDArray[np.floating[Any]] = field(repr=False)
    weight: int
    examples: int
    steps: int
    share: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict, repr=False)


class Trainer(Protocol):
    """One client's training, bound to its data."""

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        """Trains from the global model ``start`` (float32[d], left unchanged)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSlot:
    """Where one parameter lies in the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int


# A module whose parameters already are views of some FlatModel's vector: a second FlatModel would
# pull them away from the first, which would then train a vector that nobody reads.
_OWNED: WeakSet[nn.Module] = WeakSet()


class FlatModel:
    """A module whose trainable parameters are views of one float32 vector.

    One per worker, not per client: a client's turn starts with :meth:`load`. The order of the
    parameters is that of ``module.named_parameters()``.

    Args:
        module: float32 parameters, no persistent buffers.
        device: where parameters and computations live; the module is moved there. Vectors and
            records are given and returned on the CPU. See :func:`best_device`.

    Raises:
        ConfigurationError: if the module keeps state outside its parameters (running statistics,
            as in BatchNorm): such state would stay with one worker, be averaged wrongly or leak
            records; if it has no trainable parameters, or some that are not float32; if it already
            belongs to another FlatModel.
    """

    def __init__(self, module: nn.Module, *, device: torch.device | str = "cpu") -> None:
        _refuse_state_outside_parameters(module)
        if module in _OWNED:
            raise ConfigurationError(
                "this module already belongs to a FlatModel; build one module per worker"
            )
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        if not named:
            raise ConfigurationError("the model has no trainable parameters")
        for name, parameter in named:
            if parameter.dtype != torch.float32:
                raise ConfigurationError(
                    f"parameter {name} must be float32, found {parameter.dtype}"
                )
        self.device = torch.device(device)
        module.to(self.device)
        # Moving may have put new parameters into the module.
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        self.module = module
        self.parameters: tuple[nn.Parameter, ...] = tuple(p for _, p in named)
        self.layout: tuple[ParameterSlot, ...] = _layout(named)
        self.dim: int = sum(slot.size for slot in self.layout)
        self.flat: Tensor = torch.empty(self.dim, dtype=torch.float32, device=self.device)
        for slot, parameter in zip(self.layout, self.parameters, strict=True):
            view = self.flat[slot.offset : slot.offset + slot.size].view(slot.shape)
            view.copy_(parameter.detach())
            parameter.data = view
        self._classes: dict[tuple[int, ...], int] = {}
        _OWNED.add(module)

    def load(self, values: NDArray[np.floating[Any]]) -> None:
        """Overwrites the parameters with a float vector of length ``dim``.

        Raises:
            ConfigurationError: on another shape, or if a value is not finite.
        """
        if values.shape != (self.dim,):
            raise ConfigurationError(
                f"this model has {self.dim} parameters, found a vector of shape {values.shape}"
            )
        if not np.isfinite(values).all():
            raise ConfigurationError("the model to load contains NaN or infinity")
        self.flat.copy_(torch.from_numpy(np.array(values, dtype=np.float32)))

    def vector(self) -> NDArray[np.float32]:
        """A copy of the parameters, float32[d]."""
        return np.array(self.flat.cpu().numpy(), dtype=np.float32)

    def classes(self, input_shape: tuple[int, ...]) -> int:
        """How many labels the model tells apart: its outputs for records of this shape.

        Raises:
            ConfigurationError: if it cannot take such records.
        """
        if input_shape not in self._classes:
            was_training = self.module.training
            self.module.eval()
            try:
                with torch.no_grad():
                    # Two records: a layer that compares the records of a batch takes no single one.
                    logits = self.module(torch.zeros((2, *input_shape), device=self.device))
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise ConfigurationError(
                    f"the model cannot take records of shape {input_shape}: {error}"
                ) from error
            finally:
                self.module.train(was_training)
            self._classes[input_shape] = int(logits.shape[1])
        return self._classes[input_shape]

    def gradient(self, loss: Tensor) -> Tensor:
        """The gradient of a scalar loss with respect to the flat vector, float32[d]."""
        parts = torch.autograd.grad(loss, self.parameters)
        return torch.cat([part.reshape(-1) for part in parts])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalSGD:
    """FederatedAveraging's client: E epochs or a number of steps of minibatch SGD.

    Momentum is torch's (v <- momentum v + g, w <- w - lr v) and starts afresh each round. Batches
    come from a permutation seeded by (seed, client, round): public randomness, for repeatability.

    Attributes:
        model: the worker's model.
        x, y: the client's records: float32[n, ...] and int64[n], n >= 1.
        client: this client's id, for seeds and messages.
        seed: public seed.
        learning_rate: positive.
        batch_size: records per step; None takes all n. The last batch of an epoch may be smaller.
        epochs, steps: give exactly one.
        momentum: in [0, 1).
        proximal: FedProx' mu >= 0 in the term mu/2 ||w - start||^2; 0 is bit-equal to leaving it
            out.
        weight: integer weight to ask for; None asks for n.
    """

    model: FlatModel
    x: NDArray[np.float32] = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)
    client: int
    learning_rate: float
    seed: int = 0
    batch_size: int | None = None
    epochs: int | None = None
    steps: int | None = None
    momentum: float = 0.0
    proximal: float = 0.0
    weight: int | None = None

    def __post_init__(self) -> None:
        check_records(self.x, self.y, client=self.client)
        check_labels(self.model, self.x, self.y, client=self.client)
        check_positive("learning_rate", self.learning_rate)
        if (self.epochs is None) == (self.steps is None):
            raise ConfigurationError(
                f"give exactly one of epochs and steps, found {self.epochs} and {self.steps}"
            )
        for name in ("epochs", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < 1):
                raise ConfigurationError(f"{name} must be at least 1, found {value}")
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigurationError(f"momentum must be in [0, 1), found {self.momentum}")
        if not (math.isfinite(self.proximal) and self.proximal >= 0.0):
            raise ConfigurationError(f"proximal must be >= 0 and finite, found {self.proximal}")

    def train(
        self,
        start: NDArray[np.float32],
        *,
        round_index: int,
        correction: NDArray[np.float32] | None = None,
    ) -> ModelUpdate:
        """One round of local SGD from ``start``.

        correction: float32[d], added to the gradient of every step (SCAFFOLD); None adds nothing.

        Raises:
            TrainingDiverged: if the model is no longer finite; names the client.
        """
        self.model.load(start)
        self.model.module.train()
        x, y = as_tensors(self.x, self.y, self.model.device)
        anchor = self.model.flat.clone()
        drift = None if correction is None else torch.from_numpy(_writeable(correction))
        velocity: Tensor | None = None
        losses: list[float] = []
        for batch in self._batches(len(self.y), round_index):
            loss = functional.cross_entropy(self.model.module(x[batch]), y[batch])
            step = self.model.gradient(loss)
            losses.append(loss.item())
            if drift is not None:
                step.add_(drift)
            if self.proximal:
                step.add_(self.model.flat - anchor, alpha=self.proximal)
            if self.momentum:
                velocity = step if velocity is None else velocity.mul_(self.momentum).add_(step)
                step = velocity
            self.model.flat.add_(step, alpha=-self.learning_rate)
        values = self.model.vector() - start
        if not np.isfinite(values).all():
            raise TrainingDiverged(client=self.client, round_index=round_index, what="the model")
        return ModelUpdate(
            values=values,
            weight=len(self.y) if self.weight is None else self.weight,
            examples=len(self.y),
            steps=len(losses),
            metrics={"loss": float(np.mean(losses))},
        )

    def _batches(self, records: int, round_index: int) -> Iterator[Tensor]:
        """Index tensors of the round's batches: whole epochs, or epochs cut off after ``steps``."""
        rng = np.random.default_rng([self.seed, self.client, round_index])
        size = min(self.batch_size or records, records)
        left = self.steps if self.steps is not None else -(-records // size) * (self.epochs or 1)
        while left > 0:
            # A full batch keeps the records' order, so that it is FedSGD's gradient bit for bit.
            order = np.arange(records) if size == records else rng.permutation(records)
            for first in range(0, records, size):
                if left == 0:
                    return
                yield torch.from_numpy(order[first : first + size])
                left -= 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FullGradient:
    """FedSGD's client: one gradient over all its records, sent with a minus sign.

    values = -gradient, so that a server step w <- w + rate * mean(values) descends, exactly as it
    follows the mean of local-minus-global updates. With ``reduction="mean"`` the clients are to be
    weighted by their number of records, with ``"sum"`` equally and the server divides by the
    total: the two mean the same and must not be mixed up, hence no default.

    FedAvg with one epoch, full batch and local rate r equals r times this update.
    """

    model: FlatModel
    x: NDArray[np.float32] = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)
    client: int
    reduction: Reduction
    chunk: int = 4096

    def __post_init__(self) -> None:
        check_records(self.x, self.y, client=self.client)
        check_labels(self.model, self.x, self.y, client=self.client)
        object.__setattr__(self, "reduction", Reduction(self.reduction))
        if self.chunk < 1:
            raise ConfigurationError(f"chunk must be at least 1, found {self.chunk}")

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        """The negative full-batch gradient at ``start``.

        Raises:
            TrainingDiverged: if the gradient is not finite; names the client.
        """
        self.model.load(start)
        self.model.module.train()
        x, y = as_tensors(self.x, self.y, self.model.device)
        total, loss_sum = torch.zeros_like(self.model.flat), 0.0
        for first in range(0, len(y), self.chunk):
            part = slice(first, first + self.chunk)
            loss = functional.cross_entropy(self.model.module(x[part]), y[part], reduction="sum")
            total += self.model.gradient(loss)
            loss_sum += loss.item()
        if self.reduction is Reduction.MEAN:
            total /= len(y)
        if not bool(torch.isfinite(total).all()):
            raise TrainingDiverged(client=self.client, round_index=round_index, what="the gradient")
        return ModelUpdate(
            values=-total.cpu().numpy(),
            weight=len(y) if self.reduction is Reduction.MEAN else 1,
            examples=len(y),
            steps=1,
            metrics={"loss": loss_sum / len(y)},
        )


def evaluate(
    model: FlatModel, x: NDArray[np.float32], y: NDArray[np.int64], *, batch_size: int = 1024
) -> tuple[float, float]:
    """Mean cross-entropy loss (nats) and accuracy in [0, 1] of the loaded parameters.

    x: float32[n, ...], y: int64[n], n >= 1. Batches only bound the memory. Whoever evaluates on
    private records and publishes the result must pay for it.
    """
    check_records(x, y, client=None)
    check_labels(model, x, y, client=None)
    tensor_x, tensor_y = as_tensors(x, y)
    was_training = model.module.training
    model.module.eval()
    loss_sum, correct = 0.0, 0
    try:
        with torch.no_grad():
            for first in range(0, len(y), batch_size):
                part = slice(first, first + batch_size)
                logits = model.module(tensor_x[part].to(model.device))
                target = tensor_y[part].to(model.device)
                loss_sum += functional.cross_entropy(logits, target, reduction="sum").item()
                correct += int((logits.argmax(dim=1) == target).sum())
    finally:
        model.module.train(was_training)
    return loss_sum / len(y), correct / len(y)


def best_device() -> torch.device:
    """A CUDA device if torch has one, else the CPU.

    Opt-in: results of two devices differ in the last digits, and the sums of ``clipped_sum`` need
    float64, which other accelerators lack.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def limit_threads() -> None:
    """One torch thread for this process; every worker calls it before it trains.

    Small models lose more to thread hand-over than they gain: with two threads on two busy cores
    one step can take hundreds of times as long. Parallelism is by processes.
    """
    torch.set_num_threads(1)


def check_records(x: NDArray[np.float32], y: NDArray[np.int64], *, client: int | None) -> None:
    """Refuses records that cannot be trained on; ``client`` is named in the message."""
    whose = "the data" if client is None else f"client {client}'s data"
    if x.dtype != np.float32 or y.dtype != np.int64:
        raise ConfigurationError(
            f"{whose}: x must be float32 and y int64, found {x.dtype} and {y.dtype}"
        )
    if y.ndim != 1 or x.ndim < 2 or len(x) != len(y):
        raise ConfigurationError(
            f"{whose}: x must be [n, ...] and y [n], found shapes {x.shape} and {y.shape}"
        )
    if len(y) == 0:
        raise ConfigurationError(f"{whose}: no records; leave this client out of the cohort")
    if not np.isfinite(x).all():
        raise ConfigurationError(f"{whose}: x contains NaN or infinity; impute or drop the records")


def check_labels(
    model: FlatModel, x: NDArray[np.float32], y: NDArray[np.int64], *, client: int | None
) -> None:
    """Refuses labels that the model has no output for: all of them, before anything is sampled.

    torch fails on such a label once its record is in a batch. Where batches or clients are drawn
    by secret coins, that failure would tell how a coin fell.

    Args:
        model: its outputs for such records say how many classes there are.
        x: records that :func:`check_records` has accepted.
        y: their labels.
        client: whose they are, for the message.
    """
    low, high = int(y.min()), int(y.max())
    classes = model.classes(tuple(x.shape[1:]))
    if low < 0 or high >= classes:
        whose = "the data" if client is None else f"client {client}'s data"
        raise ConfigurationError(
            f"{whose}: labels must be in 0..{classes - 1} (this model has {classes} outputs), "
            f"found labels from {low} to {high}; drop those records or take a model with more "
            "outputs"
        )


def check_positive(name: str, value: float) -> None:
    """Refuses a parameter that is not positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name} must be positive and finite, found {value}")


def as_tensors(
    x: NDArray[np.float32], y: NDArray[np.int64], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """The records as tensors; on the CPU they share memory where the arrays are writeable."""
    return (
        torch.from_numpy(_writeable(x)).to(device),
        torch.from_numpy(_writeable(y)).to(device),
    )


def _writeable(array: NDArray[Any]) -> NDArray[Any]:
    # torch has no read-only tensors and warns about sharing memory with a read-only array.
    return array if array.flags.writeable else array.copy()


def _layout(named: list[tuple[str, nn.Parameter]]) -> tuple[ParameterSlot, ...]:
    slots, offset = [], 0
    for name, parameter in named:
        size = parameter.numel()
        slots.append(
            ParameterSlot(name=name, shape=tuple(parameter.shape), offset=offset, size=size)
        )
        offset += size
    return tuple(slots)


def _refuse_state_outside_parameters(module: nn.Module) -> None:
    buffers = [name for name, _ in module.named_buffers()]
    if buffers:
        raise ConfigurationError(
            f"the model keeps state outside its parameters: {', '.join(buffers)}. Running "
            "statistics are not part of the update and hold traces of records; use GroupNorm "
            "instead of BatchNorm"
        )
