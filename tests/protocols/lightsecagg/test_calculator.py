"""The planned numbers: the cheapest that the rules allow, and refused where the rules refuse."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.protocols.lightsecagg import LightSecAggParams
from securefl.protocols.lightsecagg.calculator import plan_round
from securefl.protocols.lightsecagg.sizes import SessionShape, traffic
from securefl.round import Adversary, ThreatModel


def threat(A: int, D: int, *, active: bool = False) -> ThreatModel:
    adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
    return ThreatModel(adversary=adversary, corrupt=A, dropped=D, assume_no_corruption=A == 0)


@given(st.integers(3, 14), st.data())
def test_no_other_u_and_t_that_the_rules_allow_are_cheaper(n: int, data: st.DataObject) -> None:
    A, D = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    active, m = data.draw(st.booleans()), data.draw(st.integers(1, 500))
    model = threat(A, D, active=active)
    allowed: list[int] = []
    for U in range(2, n + 1):
        for T in range(1, U):
            try:
                LightSecAggParams.of(n, model, U=U, T=T)
            except ConfigurationError:
                continue
            allowed.append(traffic(SessionShape(n=n, U=U, T=T, m=m)).upload_bytes)
    try:
        plan = plan_round(n, model, length=m, input_bits=8)
    except ConfigurationError:
        assert not allowed
        return
    found = traffic(SessionShape(n=n, U=plan.params.U, T=plan.params.T, m=m)).upload_bytes
    assert found == min(allowed)


def test_every_number_of_the_plan_is_explained() -> None:
    plan = plan_round(200, threat(50, 40, active=True), length=10**6, input_bits=16)
    text = plan.explain()
    numbers = {int(x.replace(",", "")) for x in re.findall(r"\d[\d,]*", text)}
    for name, value in plan.summary().items():
        if isinstance(value, int) and name != "modulus":
            assert value in numbers, name
    assert f"2U = {2 * 160} > N+T = 250" in text
    assert f"{plan.expansion:.4f} times" in text
    assert "2^31-1" in text


def test_nobody_corrupt_still_leaves_one_noise_block() -> None:
    plan = plan_round(10, threat(0, 2), length=10, input_bits=8)
    assert (plan.params.T, plan.params.U) == (1, 8)


def test_impossible_rounds_are_refused_with_the_numbers() -> None:
    for n, A, D, active, bits, message in (
        (2, 1, 0, False, 8, "3 to 1048576 clients, found 2"),
        (10, 5, 4, False, 8, "n_min - T >= 2"),
        (10, 4, 3, True, 8, "2U must exceed N \\+ T = 10 \\+ 4"),
        (10, 1, 1, False, 28, r"10 inputs of 28 bits .* use 1 to 27 bits"),
        (10, 1, 1, False, 0, "use 1 to 27 bits"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            plan_round(n, threat(A, D, active=active), length=10, input_bits=bits)
    with pytest.raises(ConfigurationError, match="at least 1 entry"):
        plan_round(10, threat(1, 1), length=0, input_bits=8)
    with pytest.raises(ConfigurationError, match="need a frame of"):
        plan_round(200, threat(100, 90), length=10**8, input_bits=8)
