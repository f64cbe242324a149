"""Second opinions: who is asked, who is missing, and a wrong one that is found out."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import pytest

pytest.importorskip("dp_accounting", reason="dp-accounting (extra pld) is not installed")

from accounting import Adjacency, Event, Gaussian, Poisson, Repeat, Skellam, compare
from accounting.compare import Opinion, disagreements, opinions

ADD, REPLACE = Adjacency.ADD_REMOVE, Adjacency.REPLACE_ONE
ROUNDS: Event = Repeat(
    event=Poisson(sample_rate=0.05, event=Gaussian(noise_multiplier=2.0)), count=20
)


def by_name(found: tuple[Opinion, ...]) -> dict[str, Opinion]:
    return {one.name: one for one in found}


@pytest.mark.parametrize("missing", ["dp_accounting", "opacus"])
def test_a_library_that_is_not_there_says_so_and_nobody_else_is_disturbed(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str, *more: Any) -> Any:
        return None if name == missing else find_spec(name, *more)

    monkeypatch.setattr(compare, "find_spec", without)
    found = by_name(opinions(ROUNDS, 1e-5, adjacency=ADD))
    prefix = missing.replace("_", "-")
    assert len(found) == 7
    gone = [one for name, one in found.items() if name.startswith(prefix)]
    assert len(gone) == 2
    for one in gone:
        assert one.epsilon is None
        assert one.remark == "not installed"
    assert found["accounting rdp"].epsilon is not None
    assert disagreements(tuple(found.values())) == []


def test_a_library_that_answers_too_little_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    from dp_accounting import rdp

    honest = rdp.RdpAccountant.get_epsilon

    def half(self: Any, delta: float) -> float:
        return float(honest(self, delta)) / 2

    assert disagreements(opinions(ROUNDS, 1e-5, adjacency=ADD)) == []
    monkeypatch.setattr(rdp.RdpAccountant, "get_epsilon", half)
    flags = disagreements(opinions(ROUNDS, 1e-5, adjacency=ADD))
    assert any("dp-accounting rdp" in flag for flag in flags)


def test_a_sensitivity_that_is_not_doubled_is_flagged_by_the_exact_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """dp-accounting's own RDP under replace-one, asked without the bridge's halved noise."""
    from dp_accounting import dp_event

    from accounting.interop import dp_accounting as bridge

    one = Gaussian(noise_multiplier=1.0)
    assert disagreements(opinions(one, 1e-5, adjacency=REPLACE)) == []
    monkeypatch.setattr(bridge, "to_event", lambda _event, **_more: dp_event.GaussianDpEvent(1.0))
    flags = disagreements(opinions(one, 1e-5, adjacency=REPLACE))
    assert any("accounting exact" in flag and "dp-accounting rdp" in flag for flag in flags)


def test_what_others_do_not_know_or_fail_at_is_a_remark_and_no_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = by_name(opinions(Skellam(mu=100, l2=1, l1=1), 1e-5, adjacency=Adjacency.ZERO_OUT))
    assert [name for name, one in found.items() if one.epsilon is not None] == ["accounting rdp"]
    assert all(one.remark for one in found.values())
    from dp_accounting import rdp

    def broken(*_: Any) -> float:
        raise RuntimeError("no such luck\nand more")

    monkeypatch.setattr(rdp.RdpAccountant, "get_epsilon", broken)
    found = by_name(opinions(ROUNDS, 1e-5, adjacency=ADD))
    assert found["dp-accounting rdp"].epsilon is None
    assert found["dp-accounting rdp"].remark == "no such luck"


def test_an_infinite_value_agrees_with_infinity_and_with_nothing_smaller() -> None:
    def pair(first: float, second: float) -> tuple[Opinion, ...]:
        return tuple(
            Opinion(name=name, method="rdp", epsilon=value, kind=compare.BoundKind.UPPER)
            for name, value in (("accounting rdp", first), ("dp-accounting rdp", second))
        )

    assert disagreements(pair(math.inf, math.inf)) == []
    assert disagreements(pair(math.inf, 3.0))
