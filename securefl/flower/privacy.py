"""Distributed differential privacy in a Flower run: shares of noise, and two kinds of ledger.

Each client adds one share of Skellam noise to its clipped, rotated and rounded update before it is
masked (Agarwal, Kairouz, Liu 2021); only the sum carries enough of it. The server keeps a ledger of
the population, and a node that demands privacy keeps its own for its whole life: both reserve the
price of the worst sum that may be opened before anything leaves, and settle it by the survivors.
Flower's strategies draw a fixed number of nodes, which everybody sees, so no amplification by
sampling is counted. The protected unit is one client's whole update in a round, adjacency zero-out:
against whoever sees the opened sums, together with the assumed corrupt clients, who know their own
shares. A client that adds no noise is invisible in a sum; honest clients are assumed, A of them
excepted. This module knows no Flower and no vectors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import accounting
from securefl.errors import ConfigurationError

__all__ = ["Budget", "best_order", "round_event"]

_RESERVED_PART = 1000
"""One part in so many of delta is set aside for the sampler's distance from its law."""


def round_event(mechanism: accounting.Event, delta_slack: float) -> accounting.Event:
    """What one opened sum costs: the mechanism, and the sampler's distance from its law."""
    slack = accounting.ApproxDP(
        epsilon=0.0, delta=delta_slack, adjacency=accounting.Adjacency.ZERO_OUT
    )
    return accounting.Compose(events=(mechanism, slack))


def best_order(epsilon: float, delta: float) -> float:
    """The Renyi order at which most rounds of Gaussian-like noise fit into a budget.

    Such a round costs rho a at order a, so the order is the one with the largest budget per a.

    Raises:
        ConfigurationError: if no order leaves a budget.

    >>> best_order(8.0, 1e-6)
    4.5
    """
    orders = [1 + i / 4 for i in range(1, 40)] + [float(a) for a in range(11, 257)]
    kept = delta * (1 - 1 / _RESERVED_PART)

    def per_order(a: float) -> float:
        return (epsilon - math.log1p(-1 / a) + (math.log(kept) + math.log(a)) / (a - 1)) / a

    found = max(orders, key=per_order)
    if per_order(found) <= 0:
        raise ConfigurationError(
            f"epsilon {epsilon} at delta {delta} leaves no budget at any order up to 256"
        )
    return found


class Budget:
    """One ledger of a population or of a node, opened for one step.

    Args:
        path: made at the first use.
        population: whose data.
        epsilon: the budget.
        delta: the budget.

    Raises:
        ConfigurationError: if the file is a ledger of another declaration: a budget that was
            promised is not changed by editing a configuration.
        accounting.AccountingError: if it is no ledger, or a broken one.
    """

    def __init__(self, path: Path, *, population: str, epsilon: float, delta: float) -> None:
        header = accounting.LedgerHeader(
            population=population,
            unit=accounting.Unit.CLIENT,
            adjacency=accounting.Adjacency.ZERO_OUT,
            epsilon=epsilon,
            delta=delta,
            delta_reserve=delta / _RESERVED_PART,
            order=best_order(epsilon, delta),
            # Whole life, so there is no planned event; the declaration itself stands for it.
            plan=hashlib.sha256(b"securefl flower budget").hexdigest(),
        )
        self._header, self._path = header, path

    def _with(self, act: Callable[[accounting.Ledger], float | None]) -> float | None:
        opened = (
            accounting.Ledger.open(self._path)
            if self._path.exists()
            else accounting.Ledger.create(self._path, self._header)
        )
        with opened as ledger:
            if ledger.header != self._header:
                raise ConfigurationError(
                    f"{self._path} is the ledger of another promise (epsilon "
                    f"{ledger.header.epsilon}, delta {ledger.header.delta}, population "
                    f"{ledger.header.population!r}); a spent budget cannot be declared anew"
                )
            return act(ledger)

    def fits(self, event: accounting.Event) -> bool:
        """Whether a round would be covered now."""
        return bool(self._with(lambda ledger: float(ledger.fits(event))))

    def reserve(self, event: accounting.Event, *, number: int, key: str) -> None:
        """Charges the worst case; the key names the attempt and is used once.

        Raises:
            accounting.BudgetExceeded: if it does not fit; nothing was charged.
        """

        def act(ledger: accounting.Ledger) -> None:
            ledger.reserve(event, round=number, key=key)

        self._with(act)

    def settle(self, event: accounting.Event, *, key: str, evidence: accounting.Evidence) -> None:
        """Replaces the reservation of this key by what the survivors made of it.

        Raises:
            accounting.OverReservation: if that is dearer; the sum must stay closed.
            accounting.TicketError: if the key has no open reservation.
        """

        def act(ledger: accounting.Ledger) -> None:
            ledger.settle(_ticket(ledger, key), event, evidence)

        self._with(act)

    def abort(self, *, key: str, seen: bool) -> None:
        """Ends the reservation of this key: charged if anybody may have seen something."""

        def act(ledger: accounting.Ledger) -> None:
            ledger.abort(_ticket(ledger, key), opened=seen)

        self._with(act)

    def epsilon(self) -> float:
        """What was spent and reserved so far."""
        found = self._with(lambda ledger: ledger.epsilon().value)
        assert found is not None  # noqa: S101  # the function returns a number
        return found


def _ticket(ledger: accounting.Ledger, key: str) -> accounting.Ticket:
    for ticket in ledger.open_tickets:
        if ticket.key == key:
            return ticket
    raise accounting.TicketError(f"no open reservation of {key[:16]} in this ledger")
