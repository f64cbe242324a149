from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from securefl.config import (
    Mode,
    RunConfig,
    load_config,
    load_json,
    load_preset,
    preset_names,
)
from securefl.encoding.codec import CodecSpec
from securefl.errors import ConfigurationError
from securefl.protocols.secagg import SecAggParams
from securefl.round import Adversary
from securefl.simulation.schemes import scheme_of


def test_presets_are_the_four_data_sets_and_three_with_shared_noise() -> None:
    assert preset_names() == (
        "breast-cancer",
        "digits",
        "heart-disease",
        "heart-disease-sites",
        "mnist",
        "mnist-distributed-dp",
        "mnist-user-level",
    )


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_survives_json(name: str, tmp_path: Path) -> None:
    config = load_preset(name)
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    assert load_json(path) == config
    assert load_json(path).digest() == config.digest()


def test_demo_is_the_contract() -> None:
    config = load_preset("digits")
    assert config.data.name == "digits"
    assert config.partition.clients == 10
    assert config.simulation.dropped_per_round == 1
    assert config.local_dp.delta == 1e-5
    rows = ["none-inf"] + [f"{m}-{e}" for m in ("local-dp", "distributed-dp") for e in (8, 3, 1)]
    assert [run.name for run in config.runs()] == [
        f"{row}-s{seed}" for row in rows for seed in (0, 1, 2)
    ]
    assert config.delta == config.distributed_dp.delta == 1e-5


def test_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigurationError, match=r"training\.lerning_rate.*learning_rate\?"):
        load_preset("digits", ["training.lerning_rate=1"])


def test_unknown_preset_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigurationError, match="did you mean digits"):
        load_preset("digit")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.rounds=0", "rounds"),
        ("training.rounds=1.5", "rounds"),
        ("training.rounds=true", "rounds"),
        ("training.learning_rate=nan", "learning_rate"),
        ("training.local_steps=1", "not both"),
        ("local_dp.delta=0", "delta"),
        ("local_dp.delta=1.0", "delta"),
        ("local_dp.sample_rate=1.01", "sample_rate"),
        ("partition.clients=2", "clients"),
        ("aggregation.adversary=malicious", "adversary"),
        ("aggregation.protocol=gossip", "protocol"),
        ("aggregation.degree=4", 'belongs to protocol "secagg\\+"'),
        ("aggregation.degree=1", "degree"),
        ("aggregation.threshold=11", "threshold"),
        ("aggregation.threshold=2", "threshold"),
        ("simulation.dropped_per_round=4", "every round would be lost"),
        ("sweep.epsilons=[]", "epsilons"),
        ("sweep.epsilons=[3.0, 3.0]", "twice"),
        ("sweep.seeds=[-1]", "seeds"),
        ("sweep.modes=[]", "modes"),
        ("data.name=cifar", "data.name"),
        ("encoding.bits=65", "bits"),
        ("nonsense=1", "unknown key"),
        ("training", "section.key=value"),
        ("=3", "section.key=value"),
        ("data.name.x=3", "not a section"),
    ],
)
def test_values_out_of_range_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_preset("digits", [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adversary=active", "threshold=6"], r"2t must exceed h \+ c = 9 \+ 1.*found 2t=10"),
        (["protocol=secagg+", "degree=5"], "even number of neighbours in 2..n-2, found k=5"),
        (["protocol=secagg+", "degree=2"], r"1 corrupt clients and 3 dropouts could cut a ring"),
        (["protocol=secagg+", "degree=10"], "found k=10, n=10"),
        (["protocol=secagg+", "threshold=3"], "no neighbour graph on 10 clients .* 7 dropped"),
        (["protocol=secagg+", "adversary=active"], "experimental_active_graph = true"),
        (["protocol=lightsecagg", "degree=4"], '"lightsecagg" has no neighbour graph'),
        (["protocol=paillier", "degree=4"], 'degree = 4 belongs to .* "paillier" has no'),
        (["protocol=lightsecagg", "adversary=active", "threshold=5"], "2U must exceed N . T = 10"),
        (["opening_threads=2"], 'belongs to protocols "paillier" .* found "secagg"'),
        (["protocol=paillier", "opening_threads=0"], "greater than or equal to 1"),
        (["protocol=paillier", "opening_threads=257"], "less than or equal to 256"),
        (["experimental_hybrid=true"], 'belongs to protocols "paillier" .* found "secagg"'),
    ],
)
def test_secure_sums_that_cannot_be_safe_are_refused_with_the_numbers(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_preset("digits", [f"aggregation.{override}" for override in overrides])
    if "threshold" in message or "could" in message:
        assert "with 10 clients and threshold" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ("SECAGG", 9, 6, 7, 1, 6)),
        (["adversary=active"], ("SECAGG", 9, 6, 7, 1, 6)),
        (["adversary=active", "threshold=9"], ("SECAGG", 9, 8, 9, 1, 8)),
        (["protocol=secagg+"], ("SECAGG_PLUS", 6, 3, 7, 1, 6)),
        (["protocol=secagg+", "degree=8"], ("SECAGG_PLUS", 8, 5, 7, 1, 6)),
        (
            ["protocol=secagg+", "adversary=active", "experimental_active_graph=true"],
            ("SECAGG_PLUS", 8, 5, 7, 1, 5),
        ),
    ],
)
def test_graph_and_threshold_follow_from_a_few_words(
    overrides: list[str], expected: tuple[str, int, int, int, int, int]
) -> None:
    config = load_preset("digits", [f"aggregation.{override}" for override in overrides])
    found = config.sum_params()
    assert isinstance(found, SecAggParams)
    assert (
        found.protocol.name,
        found.k,
        found.t,
        found.n_min,
        found.threat.corrupt,
        found.min_honest,
    ) == expected
    assert (found.threat.adversary.name == "ACTIVE") is ("adversary=active" in overrides)


def test_overrides_take_bare_words_numbers_and_lists() -> None:
    config = load_preset(
        "digits",
        ["partition.kind=dirichlet", "partition.alpha=0.1", 'sweep.modes=["none"]'],
    )
    assert config.partition.kind == "dirichlet"
    assert config.partition.alpha == 0.1
    assert config.sweep.modes == (Mode.NONE,)


def test_a_file_that_is_missing_or_no_toml_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("[data\n")
    with pytest.raises(ConfigurationError, match=r"bad\.toml: not valid TOML"):
        load_config(bad)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"binary\.toml"):
        load_config(binary)


@given(st.integers(3, 400))
def test_default_threshold_is_two_thirds_and_one(clients: int) -> None:
    config = RunConfig.model_validate_json(
        f'{{"data": {{"name": "digits"}}, "partition": {{"clients": {clients}}}}}'
    )
    assert config.threshold == 2 * clients // 3 + 1
    assert 3 <= config.threshold <= clients


@given(st.integers(3, 400))
@example(4)  # the one cohort whose usual threshold is too low
def test_the_default_threshold_is_enough_against_an_active_server_too(clients: int) -> None:
    config = RunConfig.model_validate_json(
        f'{{"data": {{"name": "digits"}}, "partition": {{"clients": {clients}}},'
        ' "aggregation": {"adversary": "active"}}'
    )
    params = config.sum_params()
    assert isinstance(params, SecAggParams)
    assert params.n_min == config.threshold
    assert 2 * params.t > clients - 1 + params.threat.corrupt
    usual = 2 * clients // 3 + 1
    assert config.threshold >= usual
    if config.threshold > usual:  # then one less would not do
        assert 2 * (params.t - 1) <= clients - 1 + params.threat.corrupt


def test_naming_presets_loads_no_ciphers() -> None:
    code = (
        "import sys\nfrom securefl.config import preset_names\npreset_names()\n"
        "print(sorted({'cryptography', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n"


@given(st.text(max_size=60))
def test_any_text_is_a_valid_configuration_or_a_configuration_error(text: str) -> None:
    try:
        load_preset("digits", [text])
    except ConfigurationError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("protocol", "hybrid", "default", "most"),
    [
        ("secagg", False, 32, 64),
        ("lightsecagg", False, 31, 31),
        ("paillier", False, 32, 58),
        ("paillier-threshold", False, 32, 58),
        ("paillier", True, 20, 20),
    ],
)
def test_bits_that_the_protocol_cannot_carry_are_refused_with_the_numbers(
    protocol: str, hybrid: bool, default: int, most: int
) -> None:
    common = [
        f"aggregation.protocol={protocol}",
        f"aggregation.experimental_hybrid={str(hybrid).lower()}",
    ]
    assert load_preset("digits", common).bits == default
    assert load_preset("digits", [*common, f"encoding.bits={most}"]).bits == most
    # 64 bits are the most that a key of the configuration can say at all.
    message = "less than or equal to 64" if most == 64 else f"{most + 1};.*at most {most} bits"
    with pytest.raises(ConfigurationError, match=message):
        load_preset("digits", [*common, f"encoding.bits={most + 1}"])


def test_paillier_refuses_a_sum_in_which_the_honest_do_not_hide_each_other() -> None:
    common = ["aggregation.protocol=paillier", "partition.clients=100"]
    found = load_preset("digits", [*common, "aggregation.threshold=7"]).sum_params()
    assert (found.threat.corrupt, found.n_min, found.min_honest) == (5, 7, 2)
    with pytest.raises(ConfigurationError, match="n_min = 6 with A = 5 corrupt of n = 100"):
        load_preset("digits", [*common, "aggregation.threshold=6"])


def test_the_hybrid_mode_takes_no_more_clients_than_it_can_sum() -> None:
    wanted = ["aggregation.protocol=paillier", "aggregation.experimental_hybrid=true"]
    assert load_preset("digits", [*wanted, "partition.clients=127"]).bits == 17
    with pytest.raises(ConfigurationError, match="at most 127 clients, found 128"):
        load_preset("digits", [*wanted, "partition.clients=128"])


@given(
    st.integers(3, 400),
    st.integers(2, 64),
    st.sampled_from(["secagg", "lightsecagg", "paillier", "paillier-threshold"]),
    st.sampled_from(["semi-honest", "active"]),
)
def test_every_accepted_configuration_sums_without_wrapping(
    clients: int, bits: int, protocol: str, adversary: str
) -> None:
    wanted = {"protocol": protocol, "adversary": adversary}
    text = json.dumps(
        {
            "data": {"name": "digits"},
            "partition": {"clients": clients},
            "encoding": {"bits": bits},
            "aggregation": wanted,
        }
    )
    try:
        config = RunConfig.model_validate_json(text)
    except ValueError as error:
        assert "bits" in str(error)
        assert bits > (31 if protocol == "lightsecagg" else 61 - clients.bit_length())
        return
    scheme = scheme_of(config)
    assert scheme.n_min == config.threshold
    assert scheme.facts()["min_honest"] >= 2
    assert (scheme.adversary is Adversary.ACTIVE) is (
        adversary == "active" or protocol.startswith("paillier")
    )
    if (1 << bits) - 1 >= 2 * clients:  # one step per clip norm, or the codec refuses
        plan = CodecSpec.plan(dimension=1, clip_norm=1.0, max_clients=clients, bits=bits)
        assert replace(plan, modulus=scheme.modulus(bits)).resolution == plan.resolution
