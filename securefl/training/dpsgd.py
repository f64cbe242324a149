"""Step 1, privately: record-level DP-SGD of one client, through Opacus.

Algorithm 1 of Abadi et al. (2016, *Deep learning with differential privacy*): sample each record
with probability q, clip each record's gradient to norm C, sum, add Gaussian noise of standard
deviation z C, divide by the fixed number q n, step. The clipped sum is ``clipped_sum``'s, with
Opacus behind it; sample and noise come from cryptographic bytes (``randomness``), never from a
generator with a seed, and the noise is added in float64. Where floats could let one record move the
sum by more than C (``ClippedSum.inflation``), the noise grows with it.

Protects: one record of this client, against everyone who sees the client's updates (server and
other clients included, even if secure aggregation is broken), under *zero-out* adjacency: a
neighbouring data set has one record's contribution replaced by zero, n is public. Each step is the
event ``Poisson(q, Gaussian(z))``. Does not protect the client's data as a whole, and does not hold
for models whose layers mix records: BatchNorm is refused by name, others where probes show it. The
noise is floating point; ``randomness`` states what that leaves open.

The loss in ``ModelUpdate.metrics`` is not noised and must not leave the client. This module knows
no codec, no protocol and no other client.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from accounting import Ledger, LedgerRolledBack, client_statement
from accounting.events import Gaussian, Poisson, Repeat
from securefl.errors import ConfigurationError
from securefl.training.clipped_sum import (
    CLIP_SLACK,
    BackEnd,
    ClippedSum,
    clipped_gradient_sum,
)
from securefl.training.local import (
    FlatModel,
    ModelUpdate,
    TrainingDiverged,
    check_labels,
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
    "BackEnd",
    "ClientBudget",
    "clipped_gradient_sum",
    "open_ledger",
]


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
        backend: how the clipped sum is computed; see ``clipped_sum``.

    Raises:
        ConfigurationError: if a parameter is out of range, the model has a layer that mixes
            records, or no output for one of the labels.
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
    backend: BackEnd = BackEnd.AUTO
    _clipped: ClippedSum = field(init=False)

    def __post_init__(self) -> None:
        check_records(self.x, self.y, client=self.client)
        for name in ("noise_multiplier", "clip_norm", "learning_rate"):
            check_positive(name, getattr(self, name))
        if not 0.0 < self.sample_rate <= 1.0:
            raise ConfigurationError(f"sample_rate must be in (0, 1], found {self.sample_rate}")
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigurationError(f"momentum must be in [0, 1), found {self.momentum}")
        if isinstance(self.steps, bool) or self.steps < 1:
            raise ConfigurationError(f"steps must be at least 1, found {self.steps}")
        clipped = ClippedSum(
            model=self.model,
            input_shape=self.x.shape[1:],
            clip_norm=self.clip_norm,
            backend=self.backend,
            chunk=self.chunk,
        )
        object.__setattr__(self, "_clipped", clipped)
        check_labels(self.model, self.x, self.y, client=self.client)

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
        loss_sum, seen, taken = 0.0, 0, 0
        velocity = np.zeros(self.model.dim)
        for _ in range(self.steps):
            batch = poisson_sample(len(self.y), self.sample_rate, self.random_bytes)
            # An empty batch is a step like any other: noise on a sum of nothing.
            sums = self._clipped.of(self.x, self.y, batch)
            velocity = self.momentum * velocity + self._noised_mean(sums.total)
            step = torch.from_numpy(self.learning_rate * velocity).float()
            self.model.flat.sub_(step.to(self.model.device))
            loss_sum += sums.loss
            seen += sums.count
            taken += 1
        values = self.model.vector() - start
        if not np.isfinite(values).all():
            raise TrainingDiverged(client=self.client, round_index=round_index, what="the model")
        metrics = {"loss": loss_sum / seen} if seen and math.isfinite(loss_sum) else {}
        return ModelUpdate(
            values=values,
            weight=self.weight,
            examples=len(self.y),
            steps=taken,
            metrics=metrics,
        )

    def _noised_mean(self, total: NDArray[np.float64]) -> NDArray[np.float64]:
        """(clipped sum + z C N(0, I)) / (q n), one draw for all parameters, float64."""
        noise = standard_normal(len(total), self.random_bytes)
        scale = self.noise_multiplier * self.clip_norm * self._clipped.inflation(len(self.y))
        return (total + scale * noise) / (self.sample_rate * len(self.y))


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
