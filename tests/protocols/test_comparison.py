"""The advice is what follows from its own estimates; the estimates move where they must.

Whether the estimates are right on a machine is measured by ``benchmarks/lightsecagg.py``.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.protocols.comparison import UNIT_COSTS, compare, estimate
from securefl.protocols.lightsecagg.calculator import plan_round as plan_light
from securefl.protocols.secagg.calculator import GraphKind
from securefl.protocols.secagg.calculator import plan_round as plan_secagg
from securefl.round import Adversary, ThreatModel


def plans(n: int, A: int, D: int, m: int, adversary: Adversary = Adversary.SEMI_HONEST):
    threat = ThreatModel(adversary=adversary, corrupt=A, dropped=D)
    given = {"length": m, "input_bits": 16}
    return plan_secagg(n, threat, **given), plan_light(n, threat, **given)


@st.composite
def rounds(draw: st.DrawFn):
    n = draw(st.integers(6, 60))
    A = draw(st.integers(1, max(1, n // 5)))
    D = draw(st.integers(0, max(0, (n - A) // 2 - 2)))
    adversary = draw(st.sampled_from(Adversary))
    return plans(n, A, D, draw(st.sampled_from([100, 10**4, 10**6])), adversary)


@given(rounds(), st.floats(1e5, 1e11))
def test_the_thresholds_of_the_advice_are_where_the_winner_changes(
    both: tuple, bandwidth: float
) -> None:
    secagg, light = both
    found = compare(secagg, light, bandwidth=bandwidth)

    def wins(gone: int, rate: float = bandwidth) -> bool:
        times = [estimate(p, gone=gone, bandwidth=rate).total for p in (light, secagg)]
        return times[0] < times[1]

    D = found.dropped
    assert found.light_is_faster == wins(D)
    first = found.from_dropouts
    assert not any(wins(gone) for gone in range(D + 1 if first is None else first))
    if first is not None:
        assert wins(first)
    if found.from_bandwidth is None:
        assert not wins(D, 1e30)
    elif found.from_bandwidth == 0:  # short vectors: it sends less, too
        assert wins(D, 1e-3)
        assert wins(D, 1e30)
    else:
        assert wins(D, found.from_bandwidth * 1.001)
        assert not wins(D, found.from_bandwidth * 0.999)


@given(rounds())
def test_dropouts_cost_secagg_and_never_lightsecagg(both: tuple) -> None:
    secagg, light = both
    D = secagg.parameters.threat.dropped
    coded = [estimate(light, gone=gone, bandwidth=1e8).total for gone in range(D + 1)]
    assert coded == sorted(coded, reverse=True)
    if D:
        none, all_gone = (estimate(secagg, gone=g, bandwidth=1e8).recovery for g in (0, 1))
        assert secagg.length < 10**4 or all_gone > none


def test_bytes_are_those_of_the_plans_and_time_is_inversely_proportional_to_bandwidth() -> None:
    secagg, light = plans(100, 5, 30, 10**5)
    for plan, traffic in ((secagg, secagg.traffic), (light, light.traffic)):
        slow = estimate(plan, gone=0, bandwidth=1e6)
        bits = 8 * (traffic.upload_bytes + traffic.download_bytes)
        assert slow.transfer == pytest.approx(bits / 1e6)
        assert estimate(plan, gone=0, bandwidth=1e7).transfer == pytest.approx(slow.transfer / 10)
        assert slow.total == slow.client + slow.transfer + slow.server
        assert 0 < slow.recovery < slow.client + slow.server


def test_every_unit_cost_counts_in_the_protocol_that_it_belongs_to() -> None:
    secagg, light = plans(40, 2, 10, 10**4, Adversary.ACTIVE)
    shared = {"mask_word", "signature"}
    only_light = {"peer", "member", "element", "product", "byte", "frame", "plain_word"}
    for name in UnitNames:
        dearer = replace(UNIT_COSTS, **{name: 10 * getattr(UNIT_COSTS, name)})
        moved = [
            estimate(p, gone=5, bandwidth=1e9, costs=dearer).total
            > estimate(p, gone=5, bandwidth=1e9).total
            for p in (secagg, light)
        ]
        if name in only_light:
            assert moved == [False, True], name
        elif name in shared:
            assert moved == [True, True], name
        else:  # entries of 26 bits are packed, none of them is a whole word
            assert moved == [True, False], name


UnitNames = tuple(UNIT_COSTS.__slots__)


def test_different_rounds_too_many_dropouts_and_no_bandwidth_are_refused() -> None:
    secagg, light = plans(40, 2, 10, 1000)
    other = plans(40, 2, 10, 1001)[1]
    with pytest.raises(ConfigurationError, match="different cohorts, threat models or vectors"):
        compare(secagg, other, bandwidth=1e6)
    for plan in (secagg, light):
        with pytest.raises(ConfigurationError, match="for 0 to 10 dropouts, found 11"):
            estimate(plan, gone=11, bandwidth=1e6)
        for bandwidth in (0, -1.0, float("inf"), float("nan")):
            with pytest.raises(ConfigurationError, match="positive number of bits/s"):
                estimate(plan, gone=0, bandwidth=bandwidth)


def test_the_advice_names_the_winner_the_rival_and_the_way_to_change_it() -> None:
    secagg, light = plans(100, 5, 50, 50_000)
    slow, fast = (compare(secagg, light, bandwidth=x) for x in (1e7, 1e10))
    assert "SecAgg+ finishes before LightSecAgg" in slow.explain()
    assert "LightSecAgg would be faster with 50 dropouts from" in slow.explain()
    assert "LightSecAgg finishes before SecAgg+" in fast.explain()
    assert f"LightSecAgg is faster from {fast.from_dropouts} dropouts on" in fast.explain()
    assert slow.summary()["faster"] == "secagg"
    assert fast.summary()["faster"] == "lightsecagg"
    none = compare(*plans(100, 5, 0, 1000), bandwidth=1e6)
    assert "a faster link would not change that" in none.explain()
    whole = plan_secagg(
        100, light.params.threat, length=50_000, input_bits=16, graph=GraphKind.COMPLETE
    )
    complete = compare(whole, light, bandwidth=2.5e2)
    assert "SecAgg finishes before LightSecAgg" in complete.explain()
    assert "250 bit/s per client" in complete.explain()
