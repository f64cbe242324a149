"""Fixtures of the accounting tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from accounting import Adjacency, Gaussian, Ledger, LedgerHeader, Unit, digest


@pytest.fixture
def evidence() -> dict[str, object]:
    return {
        "planned": 10,
        "survivors": 9,
        "colluding_assumed": 1,
        "protocol": "secagg/1",
        "transcript": "ab" * 32,
    }


@pytest.fixture
def release() -> Gaussian:
    return Gaussian(noise_multiplier=10.0)


@pytest.fixture
def header(release: Gaussian) -> LedgerHeader:
    """Room for exactly ten of `release`: 10 * 20/(2*100) = 1 RDP at order 20."""
    import math

    delta, order = 1e-5, 20.0
    epsilon = (
        1.0
        + 10 * 2**-29
        + 1e-6
        + math.log1p(-1 / order)
        - (math.log(delta) + math.log(order)) / (order - 1)
    )
    return LedgerHeader(
        population="tests",
        unit=Unit.RECORD,
        adjacency=Adjacency.ZERO_OUT,
        epsilon=epsilon,
        delta=delta,
        order=order,
        plan=digest(release),
    )


@pytest.fixture
def make_ledger(tmp_path: Path, header: LedgerHeader) -> Callable[..., Ledger]:
    opened: list[Ledger] = []

    def make(name: str = "a.ledger") -> Ledger:
        opened.append(Ledger.create(tmp_path / name, header))
        return opened[-1]

    yield make  # type: ignore[misc]  # a generator fixture: pytest hands on what it yields
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(make_ledger: Callable[..., Ledger]) -> Ledger:
    return make_ledger()
