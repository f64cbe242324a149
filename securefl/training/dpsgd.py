"""Step 1, privately: record-level DP-SGD of one client, through Opacus.

Algorithm 1 of Abadi et al. (2016, *Deep learning with differential privacy*): sample each record
with probability q, clip each record's gradient to norm C, sum, add Gaussian noise of standard
deviation z C, divide by the fixed number q n, step. Per-record gradients and clipping are Opacus';
the sample and the noise come from cryptographic bytes (``randomness``), never from a generator
with a seed.

Protects: one record of this client, against everyone who sees the client's updates (server and
other clients included, even if secure aggregation is broken), under *zero-out* adjacency: a
neighbouring data set has one record's contribution replaced by zero, n is public. Each step is the
event ``Poisson(q, Gaussian(z))``. Does not protect the client's data as a whole, and does not hold
for models whose layers mix records (BatchNorm is refused; a custom layer that does the same cannot
be recognised). The noise is floating point; ``randomness`` states what that leaves open.

The loss in ``ModelUpdate.metrics`` is not noised and must not leave the client. This module knows
no codec, no protocol and no other client.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor
from torch.nn import functional

from accounting import Ledger, LedgerRolledBack, client_statement
from accounting.events import Gaussian, Poisson, Repeat
from securefl.errors import ConfigurationError
from securefl.training.local import (
    FlatModel,
    ModelUpdate,
    TrainingDiverged,
    as_tensors,
    check_positive,
    check_records,
)
from securefl.training.randomness import RandomBytes, poisson_sample, standard_normal

if TYPE_CHECKING:
    from accounting import (
        Bound,
        ClientStatement,
        Event,
        Evidence,
        Head,
        LedgerHeader,
        Ticket,
        VerifiedLedger,
    )

__all__ = [
    "CLIP_SLACK",
    "DPSGD",
    "ClientBudget",
    "StreamDPOptimizer",
    "clipped_gradient_sum",
    "open_ledger",
]

CLIP_SLACK = 2.0**-10
"""Records are clipped to C (1 - 2^-10), the noise is scaled to C: float32 norms and sums may be off
by less than the difference, so that the bound C holds for the numbers that are really added."""


class StreamDPOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus ships no types: base is Any
    """Opacus' DPOptimizer with noise from cryptographic bytes.

    Differs from its parent in three points: noise is drawn from ``random_bytes`` and added in
    float64; records are clipped a little below the norm that the noise is scaled to
    (:data:`CLIP_SLACK`); a record whose gradient is not finite contributes zero. The last is a
    bounded contribution like any other, whereas letting it through would make the whole sum NaN
    and so announce that the record is there.

    Args:
        optimizer: the torch optimiser that takes the noised mean gradient.
        noise_multiplier: z > 0, noise standard deviation over C.
        clip_norm: C > 0.
        expected_batch_size: q n, the fixed divisor.
        random_bytes: source of the noise.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        clip_norm: float,
        expected_batch_size: float,
        random_bytes: RandomBytes,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm * (1.0 - CLIP_SLACK),
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        self._noise_std = noise_multiplier * clip_norm
        self._random_bytes = random_bytes

    def clip_and_accumulate(self) -> None:
        """Clips each record's gradient and adds the sum to ``summed_grad``."""
        if not all(bool(torch.isfinite(p.grad_sample.sum())) for p in self.params):
            self._zero_non_finite_records()
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """``grad`` = clipped sum + z C N(0, I), one draw for all parameters."""
        count = sum(p.numel() for p in self.params)
        noise = torch.from_numpy(standard_normal(count, self._random_bytes) * self._noise_std)
        offset = 0
        for p in self.params:
            part = noise[offset : offset + p.numel()].view_as(p)
            p.grad = (p.summed_grad.double() + part).to(p.dtype)
            offset += p.numel()

    def _zero_non_finite_records(self) -> None:
        finite = torch.stack(
            [torch.isfinite(p.grad_sample).flatten(start_dim=1).all(dim=1) for p in self.params]
        ).all(dim=0)
        for p in self.params:
            keep = finite.view(-1, *[1] * p.dim())
            p.grad_sample = torch.where(keep, p.grad_sample, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class DPSGD:
    """One client's record-level DP-SGD. See the module's text for what it protects and what not.

    Reserve :meth:`event` in the client's ledger *before* calling :meth:`train`
    (:class:`ClientBudget`): a round that was trained and then lost has been paid.

    Attributes:
        model: the worker's model; wrapped for per-record gradients once and reused.
        x, y: the client's records: float32[n, ...] and int64[n], n >= 1. n is public.
        client: this client's id, for messages.
        noise_multiplier: z > 0, noise standard deviation over C.
        clip_norm: C > 0, norm bound of one record's gradient.
        sample_rate: q in (0, 1], of each record in each step.
        steps: noised steps per round, >= 1.
        learning_rate: positive; acts on the sum over q n.
        momentum: torch's momentum in [0, 1), afresh each round. It is post-processing.
        random_bytes: source of sample and noise.
        weight: integer weight to ask for; a public number, never one that depends on the records'
            contents. Equal by default.
        chunk: most records whose gradients are held at once. A batch larger than that is
            accumulated in chunks of clipped sums; q is not affected.

    Raises:
        ConfigurationError: if a parameter is out of range, or the model has a layer that mixes
            records.
    """

    model: FlatModel
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    client: int
    noise_multiplier: float
    clip_norm: float
    sample_rate: float
    steps: int
    learning_rate: float
    momentum: float = 0.0
    random_bytes: RandomBytes = os.urandom
    weight: int = 1
    chunk: int = 64

    def __post_init__(self) -> None:
        check_records(self.x, self.y, client=self.client)
        for name in ("noise_multiplier", "clip_norm", "learning_rate"):
            check_positive(name, getattr(self, name))
        if not 0.0 < self.sample_rate <= 1.0:
            raise ConfigurationError(f"sample_rate must be in (0, 1], found {self.sample_rate}")
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigurationError(f"momentum must be in [0, 1), found {self.momentum}")
        for name in ("steps", "chunk"):
            value = getattr(self, name)
            if isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"{name} must be at least 1, found {value}")
        _per_record(self.model)

    def __repr__(self) -> str:
        return (
            f"DPSGD(client={self.client}, noise_multiplier={self.noise_multiplier}, "
            f"clip_norm={self.clip_norm}, sample_rate={self.sample_rate}, steps={self.steps}, "
            "records=<private>)"
        )

    def event(self, steps: int | None = None) -> Repeat:
        """What ``steps`` noised steps release (by default one round's), zero-out adjacency."""
        step = Poisson(
            sample_rate=self.sample_rate,
            event=Gaussian(noise_multiplier=self.noise_multiplier),
        )
        return Repeat(event=step, count=self.steps if steps is None else steps)

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        """One round of DP-SGD from ``start``; ``steps`` counts every step, empty ones too.

        Raises:
            TrainingDiverged: if the model is no longer finite. That depends on noised values
                only, so the error itself tells nothing more about a record.
        """
        self.model.load(start)
        x, y = as_tensors(self.x, self.y)
        optimiser = StreamDPOptimizer(
            torch.optim.SGD(self.model.parameters, lr=self.learning_rate, momentum=self.momentum),
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            expected_batch_size=self.sample_rate * len(y),
            random_bytes=self.random_bytes,
        )
        loss_sum, seen, taken = 0.0, 0, 0
        with _hooks(self.model) as module:
            for _ in range(self.steps):
                batch = torch.from_numpy(
                    poisson_sample(len(y), self.sample_rate, self.random_bytes)
                )
                loss_sum += _accumulate(module, optimiser, x[batch], y[batch], self.chunk)
                seen += len(batch)
                taken += 1
        values = self.model.vector() - start
        if not np.isfinite(values).all():
            raise TrainingDiverged(client=self.client, round_index=round_index, what="the model")
        metrics = {"loss": loss_sum / seen} if seen and np.isfinite(loss_sum) else {}
        return ModelUpdate(
            values=values,
            weight=self.weight,
            examples=len(y),
            steps=taken,
            metrics=metrics,
        )


def clipped_gradient_sum(
    model: FlatModel,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    clip_norm: float,
    chunk: int = 64,
) -> NDArray[np.float32]:
    """sum_i g_i min(1, C'/||g_i||) over the given records at the loaded parameters, no noise.

    C' = C (1 - 2^-10). float32[d] in the order of the flat vector, norm at most n C. Without noise
    it is not private; it is the quantity that noise is added to.
    """
    check_positive("clip_norm", clip_norm)
    optimiser = StreamDPOptimizer(
        torch.optim.SGD(model.parameters, lr=1.0),
        noise_multiplier=1.0,
        clip_norm=clip_norm,
        expected_batch_size=1.0,
        random_bytes=os.urandom,
    )
    tensor_x, tensor_y = as_tensors(x, y)
    with _hooks(model) as module:
        for first in range(0, max(len(y), 1), chunk):
            part = slice(first, first + chunk)
            optimiser.signal_skip_step(True)
            _backward(module, model.parameters, tensor_x[part], tensor_y[part])
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        total = torch.cat([p.summed_grad.reshape(-1) for p in optimiser.params])
    return np.asarray(total.numpy(), dtype=np.float32)


def open_ledger(
    path: str | Path, *, header: LedgerHeader, expect_head: Head | None = None
) -> Ledger:
    """The ledger at ``path``: created once, then only ever opened; open reservations are settled.

    Args:
        path: the file, for the life of the data it counts for.
        header: the declaration; what is on file must say the same.
        expect_head: a head that was kept.

    Raises:
        ConfigurationError: if the file holds another declaration.
        accounting.LedgerRolledBack: if a head was kept and the ledger is gone or lacks it.
        accounting.BrokenChain: if the ledger contradicts itself.
    """
    path = Path(path)
    if not path.exists():
        if expect_head is not None:
            raise LedgerRolledBack(
                f"{path} is gone, but it was at {expect_head}: restore the ledger; what it "
                "recorded was spent"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        return Ledger.create(path, header)
    ledger = Ledger.open(path, expect_head=expect_head)
    try:
        if ledger.header != header:
            raise ConfigurationError(
                f"{path} is the ledger of another plan or client ({ledger.header}); "
                f"this run needs {header}"
            )
        ledger.recover()
    except BaseException:
        ledger.close()
        raise
    return ledger


class ClientBudget:
    """One client's privacy budget, for the life of its data.

    Every attempt is reserved before any record is read, so that a crash, a lost round or a retry
    can only over-count. Build it once per client on the client's own ledger file and keep that
    file: an accountant that starts afresh each round forgets what was spent. After a reservation
    exactly one of :meth:`released`, :meth:`lost` and :meth:`withheld` follows; until then the price
    stays charged.

    Args:
        ledger: the client's own ledger; it holds the limit.
        client: this client's id.
        event: what one round releases (:meth:`DPSGD.event`).
    """

    def __init__(self, *, ledger: Ledger, client: int, event: Event) -> None:
        self.ledger = ledger
        self.client = client
        self.event = event

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        header: LedgerHeader,
        client: int,
        event: Event,
        expect_head: Head | None = None,
    ) -> ClientBudget:
        """The budget in the client's ledger at ``path``: created once, then only ever opened.

        Reservations that a crash left open are settled at their price. Keep ``ledger.head`` after
        every round, elsewhere than the ledger, and give it back here.

        Args:
            path: the client's ledger file, for the life of its data.
            header: the declaration; what is on file must say the same.
            client: this client's id.
            event: what one round releases.
            expect_head: a head that was kept.

        Raises:
            ConfigurationError: if the file holds another declaration.
            accounting.LedgerRolledBack: if a head was kept and the ledger is gone or lacks it.
            accounting.BrokenChain: if the ledger contradicts itself.
        """
        ledger = open_ledger(path, header=header, expect_head=expect_head)
        return cls(ledger=ledger, client=client, event=event)

    def close(self) -> None:
        """Closes the ledger; open reservations stay charged."""
        self.ledger.close()

    def fits(self) -> bool:
        """Whether one more round fits the budget. Asked before training; reserves nothing."""
        return self.ledger.fits(self.event)

    def reserve(self, round_index: int) -> Ticket:
        """Pays for one attempt at a round, before training.

        Every call is a new attempt with a ticket of its own: a round that was cut off and is
        carried out again draws new noise, so it is paid again.

        Raises:
            accounting.BudgetExceeded: if it does not fit; nothing was reserved or read.
        """
        # A ledger gives one open ticket to all who ask under one key. Two processes must never
        # agree on a key by chance, for then one charge would pay for two releases.
        key = f"client {self.client} round {round_index} {os.urandom(16).hex()}"
        return self.ledger.reserve(self.event, round=round_index, key=key)

    def released(self, ticket: Ticket, evidence: Evidence | Mapping[str, Any]) -> Head:
        """The update is in an opened sum: the reservation is spent, the evidence on record."""
        return self.ledger.settle(ticket, self.event, evidence)

    def lost(self, ticket: Ticket) -> Head:
        """The update left this process, but no sum was opened: spent all the same.

        The guarantee of :class:`DPSGD` does not rest on masks, so neither may its price.
        """
        return self.ledger.abort(ticket, opened=True)

    def withheld(self, ticket: Ticket) -> Head:
        """Nothing computed from the records left this process: the price is returned."""
        return self.ledger.abort(ticket, opened=False)

    def epsilon(self) -> Bound:
        """What was spent and reserved so far."""
        return self.ledger.epsilon()

    def statement(self, population: VerifiedLedger | None = None) -> ClientStatement:
        """What was done with this client's data and what it can have told, checked anew.

        Args:
            population: the verified ledger of the population, if there is one.
        """
        return client_statement(Ledger.verify(self.ledger.path), population)


# One wrapper per model: Opacus refuses to add its hooks to a module twice.
_WRAPPED: WeakKeyDictionary[FlatModel, Any] = WeakKeyDictionary()


def _per_record(model: FlatModel) -> Any:
    """The model's Opacus wrapper, with its hooks asleep unless :func:`_hooks` wakes them."""
    wrapped = _WRAPPED.get(model)
    if wrapped is None:
        model.module.train()  # Opacus validates modules in training mode only
        problems = ModuleValidator.validate(model.module, strict=False)
        if problems:
            raise ConfigurationError(
                "this model cannot be trained with per-record privacy: "
                + "; ".join(str(problem) for problem in problems)
                + ". Use GroupNorm instead of BatchNorm, and no layer that mixes records"
            )
        wrapped = GradSampleModule(model.module, loss_reduction="sum")
        wrapped.disable_hooks()
        _WRAPPED[model] = wrapped
    return wrapped


@contextmanager
def _hooks(model: FlatModel) -> Iterator[Any]:
    """The wrapper with per-record gradients switched on; off again afterwards, also on errors."""
    wrapped = _per_record(model)
    wrapped.train()
    wrapped.enable_hooks()
    try:
        with warnings.catch_warnings():
            # The first layer's input needs no gradient; torch mentions it, Opacus relies on it.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield wrapped
    finally:
        wrapped.disable_hooks()
        for p in model.parameters:
            p.grad = None
            p.grad_sample = None  # type: ignore[attr-defined]  # glued on by Opacus
            p.summed_grad = None  # type: ignore[attr-defined]  # glued on by Opacus


def _accumulate(
    module: Any, optimiser: StreamDPOptimizer, x: Tensor, y: Tensor, chunk: int
) -> float:
    """One noised step on one batch, in chunks; returns the sum of losses (private).

    An empty batch is a step like any other: noise on a sum of nothing.
    """
    starts = range(0, max(len(y), 1), chunk)
    loss_sum = 0.0
    for first in starts:
        part = slice(first, first + chunk)
        optimiser.signal_skip_step(first != starts[-1])
        loss_sum += _backward(module, optimiser.params, x[part], y[part])
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return loss_sum


def _backward(module: Any, parameters: Any, x: Tensor, y: Tensor) -> float:
    """Puts per-record gradients into ``grad_sample``; returns the sum of losses."""
    if len(y) == 0:
        # Opacus' samplers disagree on the shape of nothing (convolutions return one zero record).
        for p in parameters:
            p.grad_sample = p.new_zeros((0, *p.shape))
        return 0.0
    loss = functional.cross_entropy(module(x), y, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return loss.item()
