"""Files that contradict themselves, or leave the adversary more than they say, do not pass."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from accounting import Deployment, InvalidDeployment
from accounting.accountant import gaussian_epsilon
from accounting.audit.bounds import Numbers, numbers
from accounting.audit.lints import findings
from accounting.audit.report import Verdict, judge
from accounting.deployment import impossible_values

BASE: dict[str, Any] = {
    "schema": "securefl-deployment/1",
    "population": {"size": 100_000, "unit": "user"},
    "guarantee": {"epsilon": 2.0, "delta": 1e-8, "adjacency": "zero-out"},
    "trust": {"model": "central"},
    "phase": [
        {
            "name": "p",
            "rounds": 100,
            "dimension": 100,
            "sampling": {"kind": "poisson", "cohort": 1000},
            "clip": {"norm": 1.0},
            "noise": {
                "kind": "gaussian",
                "multiplier": 1.0,
                "where": "server",
                "sampler": "integer",
            },
        }
    ],
}


def tree(**changes: object) -> dict[str, Any]:
    """The base with keys replaced; ``phase__noise__kind`` is ``phase[0].noise.kind``."""
    made = copy.deepcopy(BASE)
    for name, value in changes.items():
        *path, last = name.split("__")
        node = made
        for part in path:
            node = node["phase"][0] if part == "phase" else node.setdefault(part, {})
        node[last] = value
    return made


def read(**changes: object) -> Deployment:
    return Deployment.parse_tree(tree(**changes))


def values_of(**changes: object) -> Numbers:
    deployment = read(**changes)
    assert impossible_values(deployment) == ()
    return numbers(deployment)


def claim(**changes: object) -> float:
    found = values_of(**changes).claim
    assert found is not None
    return found.value


def impossible(**changes: object) -> list[str]:
    return [one.key for one in impossible_values(read(**changes))]


def fired(**changes: object) -> set[str]:
    return {one.code for one in findings(read(**changes))}


UNAMPLIFIED = gaussian_epsilon(math.sqrt(100), 1e-8)


def test_the_base_passes() -> None:
    deployment = read()
    assert judge(deployment, findings(deployment), numbers(deployment), None).verdict is (
        Verdict.PASS
    )


# --- who sees the cohort --------------------------------------------------------------------------


def test_a_local_claim_is_against_a_server_that_knows_its_cohort() -> None:
    found = values_of(trust__model="local", phase__noise__where="client")
    assert found.claim is not None and found.bracketed
    assert found.claim.value == pytest.approx(UNAMPLIFIED, rel=1e-6)


def test_coins_that_the_server_does_not_learn_amplify_a_local_claim() -> None:
    assert claim(
        trust__model="local",
        phase__noise__where="client",
        phase__noise__level="fixed",
        phase__sampling__coins="secret",
    ) == pytest.approx(claim(), rel=1e-9)


def test_noise_that_every_drawn_client_brings_follows_the_cohort() -> None:
    assert claim(phase__noise__where="client") == pytest.approx(UNAMPLIFIED, rel=1e-6)
    assert claim(phase__noise__where="client", phase__noise__level="fixed") < 2


# --- how often a unit takes part ------------------------------------------------------------------


def test_the_smallest_of_all_stated_populations_decides_the_rate() -> None:
    everybody = claim(population__smallest_eligible=1000)
    assert everybody == pytest.approx(UNAMPLIFIED, rel=1e-6)
    assert claim(
        population__smallest_eligible=1000, phase__sampling__available=50_000
    ) == pytest.approx(everybody)
    assert claim(population__smallest_eligible=10**12) == claim()
    assert impossible(phase__sampling__available=10**12) == ["phase[p].sampling.available"]


def test_eligible_records_are_no_population_of_clients() -> None:
    population = {"size": 100_000, "unit": "record", "clients": 10, "smallest_eligible": 90_000}
    local = {
        "phase__sampling": {"kind": "poisson", "cohort": 10},
        "phase__local": {"rate": 0.01},
    }
    assert claim(population=population, **local) == pytest.approx(claim(), rel=1e-3)


@pytest.mark.parametrize("kind", ["shuffle", "cyclic"])
def test_fewer_eligible_units_are_in_more_batches(kind: str) -> None:
    few = claim(phase__sampling__kind=kind, population__smallest_eligible=1000)
    assert few == pytest.approx(UNAMPLIFIED, rel=1e-6)
    assert claim(phase__sampling__kind=kind) < few


@pytest.mark.parametrize(
    ("sampling", "often"),
    [
        ({"kind": "all"}, 100),
        ({"kind": "cyclic", "cohort": 30_000}, 34),
        ({"kind": "shuffle", "cohort": 30_000}, 34),
    ],
)
def test_participations_that_the_sampling_exceeds_are_impossible(
    sampling: dict[str, object], often: int
) -> None:
    tree_of = {"kind": "tree", "participations": often}
    assert impossible(phase__sampling=sampling, phase__correlated=tree_of) == []
    fewer = {"kind": "tree", "participations": often - 1}
    assert impossible(phase__sampling=sampling, phase__correlated=fewer) == [
        "phase[p].correlated.participations"
    ]
    limited = {**fewer, "enforced": "client"}
    assert impossible(phase__sampling=sampling, phase__correlated=limited) == []


# --- how much noise there is ----------------------------------------------------------------------


def test_nobody_outside_of_a_cohort_sends_a_share() -> None:
    shares = {
        "trust": {"model": "distributed", "max_colluding": 0.0},
        "phase__noise__where": "client-shares",
        "phase__noise__level": "fixed",
        "phase__aggregation": {
            "protocol": "secagg",
            "planned": 1001,
            "max_dropout": 0.3,
        },
    }
    assert impossible(**shares) == ["phase[p].aggregation.planned"]
    assert impossible(**shares, phase__sampling__coins="secret") == []
    assert impossible(**shares, phase__aggregation__threshold=700) == []
    assert impossible(**shares, phase__sampling__coins="secret", population__size=1000) == [
        "phase[p].aggregation.planned"
    ]


def test_laplace_noise_pays_for_every_coordinate_of_an_l2_norm() -> None:
    one_round = {"phase__rounds": 1, "phase__sampling": {"kind": "all"}}
    laplace = {**one_round, "phase__noise__kind": "laplace", "phase__noise__multiplier": 2.0}
    assert claim(**laplace, phase__dimension=1) == pytest.approx(1 / 2, rel=1e-3)
    assert claim(**laplace, phase__dimension=16) == pytest.approx(4 / 2, rel=1e-3)


def test_laplace_noise_needs_a_dimension_and_a_norm_that_stays() -> None:
    without = tree(phase__noise__kind="laplace")
    del without["phase"][0]["dimension"]
    with pytest.raises(InvalidDeployment, match="dimension is needed for laplace noise"):
        Deployment.parse_tree(without)
    with pytest.raises(InvalidDeployment, match="adaptive norm with laplace"):
        read(phase__noise__kind="laplace", phase__clip__adaptive=True, phase__clip__count_noise=0.5)


# --- lints that other words of the same mistake must not evade ------------------------------------


@pytest.mark.parametrize("kind", ["shuffle", "cyclic", "all"])
@pytest.mark.parametrize("assumed", ["poisson", "fixed", "product"])
def test_any_amplification_that_is_not_there_fires_a01(kind: str, assumed: str) -> None:
    sampling = {"kind": kind, "cohort": 1000, "account_as": assumed}
    assert "A01" in fired(phase__sampling=sampling)
    assert "A01" not in fired(phase__sampling={**sampling, "account_as": kind})


def test_a_fixed_cohort_accounted_by_a_product_of_rates_fires_a03() -> None:
    sampling = {"kind": "fixed", "cohort": 1000, "account_as": "product"}
    assert "A03" in fired(phase__sampling=sampling)


@pytest.mark.parametrize(("adjacency", "norms"), [("zero-out", 1), ("add-remove", 1)])
def test_a_sensitivity_below_the_norm_fires_a02(adjacency: str, norms: float) -> None:
    changes = {"guarantee__adjacency": adjacency}
    assert "A02" in fired(**changes, phase__accounting__sensitivity=norms / 2)
    assert "A02" not in fired(**changes, phase__accounting__sensitivity=norms)


def test_under_add_remove_noise_of_the_absent_client_is_absent_too() -> None:
    assert "A02" in fired(guarantee__adjacency="add-remove", phase__noise__where="client")
    assert "A02" not in fired(guarantee__adjacency="add-remove")


def test_a_rate_below_the_product_of_both_fires_a06() -> None:
    local = {
        "population": {"size": 100_000, "unit": "record", "clients": 100},
        "phase__sampling": {"kind": "poisson", "cohort": 10},
        "phase__local": {"rate": 0.1},
    }
    assert "A06" in fired(**local, phase__accounting__rate=0.001)
    assert "A06" not in fired(**local, phase__accounting__rate=0.1)


@pytest.mark.parametrize("kind", ["shuffle", "cyclic"])
def test_an_accountant_without_amplification_counts_epochs(kind: str) -> None:
    sampling = {"kind": kind, "cohort": 1000}  # 100 rounds of 100 batches: one epoch
    assert not fired(phase__sampling=sampling, phase__accounting__steps=1) & {"A07", "A09"}
    longer = {"phase__sampling": sampling, "phase__rounds": 300}
    assert "A07" in fired(**longer, phase__accounting__steps=2)
    assert "A07" not in fired(**longer, phase__accounting__steps=3)


@pytest.mark.parametrize("kind", ["shuffle", "cyclic"])
def test_a_rate_given_to_the_accountant_of_shuffled_batches_fires_a01(kind: str) -> None:
    sampling = {"kind": kind, "cohort": 1000}
    for rate, fires in ((0.01, True), (1.0, False)):
        found = fired(phase__sampling=sampling, phase__accounting={"rate": rate})
        assert ("A01" in found) == fires


def test_a_cohort_of_coins_needs_a_threshold_for_its_noise_at_any_level() -> None:
    shares = {
        "trust": {"model": "distributed", "max_colluding": 0.0},
        "phase__noise__where": "client-shares",
        "phase__noise__level": "fixed",
        "phase__noise__at": "planned",
        "phase__aggregation": {"protocol": "secagg", "max_dropout": 0.0},
    }
    assert "A05" in fired(**shares)
    assert "A05" not in fired(**shares, phase__aggregation__threshold=1000)
    assert "A05" not in fired(**shares, phase__sampling__coins="secret")
    assert "A05" not in fired(**shares, phase__sampling__kind="fixed")


# --- what no number and no name may do ------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("phase__noise__multiplier", 1e-300),
        ("phase__noise__multiplier", 1e300),
        ("phase__clip__norm", 1e300),
        ("guarantee__delta", 1e-320),
        ("guarantee__epsilon", 1e308),
    ],
)
def test_numbers_whose_squares_no_float_holds_are_findings(key: str, value: float) -> None:
    deployment = read(**{key: value})
    report = deployment.audit()
    assert report.verdict is Verdict.UNSUPPORTED
    assert {one.code for one in report.findings} == {"A18"}
    assert report.to_json()


def test_hardly_any_noise_takes_neither_memory_nor_time() -> None:
    found = values_of(phase__noise__multiplier=1e-5)
    assert found.claim is not None
    assert found.claim.value > 1e9
    assert found.lower is None


@pytest.mark.parametrize("name", ["\x1b[2K\x1b[32mPASS", "\u202egnp", "two\nlines", "\x07"])
@pytest.mark.parametrize("key", ["title", "phase__name", "population__disjoint_from"])
def test_names_that_could_move_a_cursor_are_refused(name: str, key: str) -> None:
    with pytest.raises(InvalidDeployment, match="only printable characters") as caught:
        read(**{key: [name] if key.endswith("from") else name})
    assert str(caught.value).replace("\n", "").isprintable()


def test_an_unknown_key_that_could_move_a_cursor_is_quoted() -> None:
    with pytest.raises(InvalidDeployment, match="unknown key") as caught:
        read(**{"guarantee__\x1b[2K": 1})
    assert str(caught.value).replace("\n", "").isprintable()
