"""The constructor's rules, the numbers in every refusal, and the same rules on every config."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.primitives.field import PRIME
from securefl.protocols.lightsecagg import ClientPolicy, LightSecAggParams
from securefl.protocols.lightsecagg.params import (
    block_length,
    check_config,
    check_policy,
    check_sum_fits,
    guaranteed_honest,
    most_input_bits,
)
from securefl.round import (
    Adversary,
    Cohort,
    GraphSource,
    Layout,
    Protocol,
    Ring,
    RoundConfig,
    RoundId,
    ThreatModel,
)


def threat(A: int, D: int, *, active: bool = False) -> ThreatModel:
    adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
    return ThreatModel(adversary=adversary, corrupt=A, dropped=D, assume_no_corruption=A == 0)


def config_of(params: LightSecAggParams, m: int = 4) -> RoundConfig:
    return params.config(
        round_id=RoundId(1),
        cohort=Cohort.of(range(params.n)),
        m=m,
        context_digest=bytes(32),
        server_nonce=bytes(32),
    )


def test_defaults_are_the_most_blocks_that_the_threat_model_allows() -> None:
    params = LightSecAggParams.of(200, threat(100, 60))
    assert (params.U, params.T, params.n_min, params.blocks) == (140, 100, 140, 40)
    config = config_of(params, m=1_200_000)
    assert (config.k, config.t, config.ring, config.b) == (140, 100, Ring.PRIME_FIELD, 31)
    assert config.modulus == PRIME
    assert block_length(1_200_000, U=140, T=100) == 30_000
    assert guaranteed_honest(config, 150) == 50


@pytest.mark.parametrize(
    ("n", "A", "D", "active", "changes", "message"),
    [
        (2, 1, 0, False, {}, "at least 3 clients, found 2"),
        (6, 2, 1, False, {"T": 1}, "T must be at least A"),
        (6, 0, 1, False, {"T": 0}, "T must be at least 1"),
        (6, 1, 1, False, {"T": 5}, r"U must exceed T: K = U - T .*U=5, T=5"),
        (6, 1, 2, False, {"U": 5}, "after 2 dropouts only 4 clients are left"),
        (6, 1, 2, True, {"T": 2}, "2U must exceed N \\+ T = 6 \\+ 2.*2U=8, least U=5"),
        (6, 1, 1, False, {"n_min": 4}, "n_min must be in 5..6"),
        (6, 1, 1, False, {"n_min": 7}, "n_min must be in 5..6"),
        (6, 4, 1, False, {}, "two honest inputs in the sum, n_min - T >= 2"),
    ],
)
def test_contradicting_numbers_are_refused_with_the_numbers(
    n: int, A: int, D: int, active: bool, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LightSecAggParams.of(n, threat(A, D, active=active), **changes)


@given(st.integers(3, 14), st.data())
def test_the_rules_are_these_and_no_others(n: int, data: st.DataObject) -> None:
    A, D = data.draw(st.integers(1, n)), data.draw(st.integers(0, n))
    U, T = data.draw(st.integers(0, n + 1)), data.draw(st.integers(0, n + 1))
    n_min, active = data.draw(st.integers(0, n + 1)), data.draw(st.booleans())
    allowed = n - D >= U > T >= max(1, A) and U <= n_min <= n and n_min - T >= 2
    allowed &= not active or n + T < 2 * U
    try:
        params = LightSecAggParams.of(n, threat(A, D, active=active), U=U, T=T, n_min=n_min)
    except ConfigurationError:
        assert not allowed
        return
    assert allowed
    check_config(config_of(params))


def test_a_configuration_is_checked_like_the_constructor_and_for_its_protocol() -> None:
    good = config_of(LightSecAggParams.of(6, threat(1, 1)))
    check_config(good)
    for changes, message in (
        ({"protocol": Protocol.SECAGG}, "runs LIGHTSECAGG, not SECAGG"),
        ({"ring": Ring.POWER_OF_TWO}, "sums in PRIME_FIELD"),
        ({"b": 30}, "with b=31, found ring PRIME_FIELD with b=30"),
        ({"layout": Layout.ALL}, "no share layouts"),
        ({"graph_source": GraphSource.BEACON}, "no neighbour graph"),
        ({"k": 1}, "U must exceed T"),
        ({"A": 0}, "A=0 assumes"),
        ({"m": 1 << 30}, "entries do not fit"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            check_config(replace(good, **changes))
    check_config(replace(good, A=0), assume_no_corruption=True)


def test_a_clients_policy_is_its_own() -> None:
    config = config_of(LightSecAggParams.of(6, threat(1, 1)))
    check_policy(config, ClientPolicy(gamma="1/6"))
    for policy, message in (
        (ClientPolicy(adversary=Adversary.ACTIVE), "demands protection against an ACTIVE server"),
        (ClientPolicy(gamma="1/3"), "at least 2 corrupt"),
        (ClientPolicy(n_min=6), "at least 6 inputs"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            check_policy(config, policy)


def test_the_cohort_and_the_frames_must_fit() -> None:
    params = LightSecAggParams.of(6, threat(1, 1))
    with pytest.raises(ConfigurationError, match="for 6 clients, the cohort has 5"):
        params.config(
            round_id=RoundId(1),
            cohort=Cohort.of(range(5)),
            m=1,
            context_digest=bytes(32),
            server_nonce=bytes(32),
        )
    with pytest.raises(ConfigurationError, match="m=900000000 entries do not fit"):
        config_of(params, m=900_000_000)


@given(st.integers(3, 1 << 20), st.integers(0, 40))
def test_no_sum_of_fitting_inputs_wraps_around_the_field(n: int, bits: int) -> None:
    fits = bits >= 1 and n * (2**bits - 1) < PRIME
    assert fits == (1 <= bits <= most_input_bits(n))
    if fits:
        check_sum_fits(n, bits)
    else:
        with pytest.raises(ConfigurationError, match=r"GF\(2\^31-1\)"):
            check_sum_fits(n, bits)
