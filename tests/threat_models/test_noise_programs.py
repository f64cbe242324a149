"""Audits, noise, membership and Paillier: what the programs rest on, and each program as a whole.

Random tests are seeded. Statistical programs take their noise from a keystream under the seed, so
that a figure repeats; by itself an audit of a correct mechanism is wrong in at most 5 % of runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.encoding.noisy import NoisyCodec
from securefl.primitives.prg import SecureRandom
from securefl.round import ClientId

Program = Callable[[str], ModuleType]


# --- what the programs rest on -------------------------------------------------------------------


def test_a_masked_sum_is_the_plain_ring_sum_in_twenty_sessions(
    program: Program, tmp_path: Path
) -> None:
    """So the auditor may leave the masks out: bit by bit the same, whoever vanishes."""
    aggregator, rounds = program("kit.aggregator"), program("kit.rounds")
    rng = np.random.default_rng(3)
    codec = NoisyCodec(aggregator.spec_of(z=1.0, clients=5, dimension=40))
    for index in range(20):
        inputs = {
            ClientId(u): codec.encode(rng.normal(size=40), round_seed=index.to_bytes(16, "big"))
            for u in range(1, 6)
        }
        gone = [ClientId(5)] if index % 2 else []
        recorded = rounds.secure_round(
            inputs, tmp_path / "t.bin", dropped=1, drops={"masked_input_collection": gone}
        )
        survivors = [u for u in inputs if u not in gone]
        plain = aggregator.ring_sum([inputs[u] for u in survivors])
        opened = recorded.view().sum_of(survivors)
        assert opened is not None
        assert np.array_equal(opened, plain.values.astype(np.uint64))


@pytest.mark.parametrize(("n", "k"), [(10, 0), (10, 1), (10, 5), (10, 9), (100, 33), (100, 99)])
def test_silent_shares_lower_z_by_the_root_of_the_honest_fraction(
    program: Program, n: int, k: int
) -> None:
    aggregator = program("kit.aggregator")
    codec = NoisyCodec(aggregator.spec_of(z=1.0, clients=n, dimension=4096))
    event: Any = codec.event(n, k)
    assert np.sqrt(event.mu) / event.l2 == pytest.approx(np.sqrt((n - k) / n), rel=1e-3)


@pytest.mark.parametrize("k", [1, 5, 9])
def test_noise_planned_for_the_honest_shares_is_that_of_the_claim(program: Program, k: int) -> None:
    aggregator = program("kit.aggregator")
    codec = NoisyCodec(aggregator.spec_of(z=1.0, clients=10, honest=10 - k, dimension=4096))
    event: Any = codec.event(10, k)
    assert np.sqrt(event.mu) / event.l2 == pytest.approx(1.0, rel=1e-3)
    assert np.sqrt(event.mu) / event.l2 >= 1.0


@given(st.integers(0, 2**32), st.lists(st.integers(0, 40_000), max_size=5))
def test_a_keyed_stream_does_not_depend_on_how_it_is_read(seed: int, counts: list[int]) -> None:
    from kit.streams import keyed  # the folder is on the path while these tests run

    pieces, whole = keyed(seed, "a"), keyed(seed, "a")
    assert b"".join(map(pieces, counts)) == whole(sum(counts))
    assert keyed(seed, "b")(16) != keyed(seed, "a")(16)


@given(st.floats(0.5, 1.5), st.booleans())
def test_the_precision_event_cannot_come_from_one(noise: float, single: bool) -> None:
    """1 + n is a multiple of 2^-53 (2^-24) wherever it lies below 1/2: Sterbenz, for the sum."""
    from t17_float_noise import too_fine

    n = np.float32(-noise) if single else np.float64(-noise)
    y = np.array([n + n.dtype.type(1)])
    assert y.dtype == n.dtype
    assert not too_fine(y).any()


@given(st.integers(-(2**20), 2**20), st.integers(10, 20))
def test_the_precision_event_never_occurs_on_a_grid(steps: int, bits: int) -> None:
    from t17_float_noise import too_fine

    assert not too_fine(np.array([steps * 2.0**-bits])).any()
    assert too_fine(np.array([2.0**-60, 0.25 + 2.0**-54])).all()


def test_forked_workers_share_no_noise_unless_the_look_at_the_process_is_gone(
    program: Program,
) -> None:
    """False alarm: 32 of 64 equal bytes by chance, below 2^-180."""
    audit, codecs = program("t12_audit"), program("attackers.codecs")
    assert audit.children_agree(codecs.StaleRandom()) == 1.0
    assert audit.children_agree(SecureRandom()) < 0.5


def test_every_broken_aggregator_differs_from_the_correct_one_in_what_it_claims_or_does(
    program: Program,
) -> None:
    audit = program("t12_audit")
    right, claim = audit.correct(2.0, 0)
    for case in audit.CASES:
        other, told = case.build(2.0, 0)
        if case.broken:
            assert told.epsilon <= claim.epsilon
        assert callable(other.source)
    assert right.missing == ()
    assert {case.broken for case in audit.CASES} == {False, True}


def test_records_are_clipped_as_the_library_clips_them(program: Program) -> None:
    """The closed form for 64 models at once, against per-record gradients from autograd."""
    torch = pytest.importorskip("torch")
    t11 = program("t11_membership")
    rng = np.random.default_rng(0)
    x, y = rng.random((12, 64)), rng.integers(0, 10, 12)
    weights = [rng.normal(0, 0.3, (2, *size)) for size in t11.SIZES]
    member = rng.random((2, 12)) < 0.6
    clip = 0.7
    found = t11.flat_sums(x, *t11.record_factors(weights, x, y, member, clip))
    for m in range(2):
        leaves = [torch.tensor(w[m], requires_grad=True) for w in weights]
        total = torch.zeros(t11.PARAMETERS, dtype=torch.float64)
        for i in np.flatnonzero(member[m]):
            hidden = torch.relu(torch.tensor(x[i : i + 1]) @ leaves[0] + leaves[1])
            loss = torch.nn.functional.cross_entropy(
                hidden @ leaves[2] + leaves[3], torch.tensor(y[i : i + 1])
            )
            g = torch.cat([p.flatten() for p in torch.autograd.grad(loss, leaves)])
            total += g * min(1.0, clip / float(g.norm()))
        assert np.allclose(found[m], total.numpy(), rtol=1e-9, atol=1e-12)


def test_lira_of_shuffled_memberships_is_a_guess(program: Program) -> None:
    """Scores that know nothing: the interval of the AUC holds 1/2 (seeded; 5 % otherwise)."""
    t11, metrics = program("t11_membership"), program("kit.metrics")
    rng = np.random.default_rng(5)
    odds, member = rng.normal(size=(24, 10)), rng.random((24, 10)) < 0.5
    ratio = t11.lira(odds, member)
    area = metrics.auc(ratio[member], ratio[~member])
    assert area.low <= 0.5 <= area.high
    shifted = t11.lira(odds + 8 * member, member)
    assert metrics.auc(shifted[member], shifted[~member]).value > 0.99


def test_a_weakened_decider_differs_in_exactly_one_method(program: Program) -> None:
    import inspect

    paillier = program("attackers.paillier")
    for name in ("AnyList", "AnyListWitness", "AnyProduct", "Forgetful", "ForgetfulWitness"):
        own = [n for n, v in vars(getattr(paillier, name)).items() if inspect.isfunction(v)]
        assert len(own) == 1, name


def test_code_that_nobody_approved_is_not_run(program: Program) -> None:
    t19 = program("t19_supplied_code")
    with pytest.raises(t19.NotApproved, match="was not approved"):
        t19.installed("raise SystemExit", object(), {t19.digest_of(t19.PLAIN_CODE)})


# --- whole programs ------------------------------------------------------------------------------


def result_of(program: Program, name: str, folder: Path, *more: str) -> dict[str, Any]:
    code = program(name).DEMO.main(["--out", str(folder), *more])
    record = json.loads((folder / name / "result.json").read_text())
    failed = [r for r in record["results"] if not r["passed"]]
    assert code == 0, failed
    return record


def rows(record: dict[str, Any], **wanted: str) -> list[dict[str, Any]]:
    exact = wanted.pop("setting", None)  # "defended" is a part of "undefended"
    found = [r for r in record["results"] if exact is None or r["setting"] == exact]
    return [r for r in found if all(v in str(r[k]) for k, v in wanted.items())]


@pytest.mark.parametrize("name", ["t19_supplied_code", "t15b_phe_exponent"])
def test_a_quick_program_holds(program: Program, tmp_path: Path, name: str) -> None:
    if name == "t15b_phe_exponent":
        pytest.importorskip("phe")
    result_of(program, name, tmp_path, "--quick")


@pytest.mark.long
def test_t07_a_silent_share_costs_what_the_formula_says(program: Program, tmp_path: Path) -> None:
    record = result_of(program, "t07_silent_noise_shares", tmp_path)
    for r in rows(record, setting="undefended", attack="silent"):
        if "audit" not in r["attack"]:
            formula = r["parameters"]["epsilon_by_formula"]
            assert all(abs(v / formula - 1) < 0.03 for v in r["per_seed"])
    assert all(r["max"] < 4.52 for r in rows(record, setting="defended", metric="opened sum"))


@pytest.mark.long
def test_t11_canaries_are_found_and_no_attack_on_private_models_passes_its_cap(
    program: Program, tmp_path: Path
) -> None:
    record = result_of(program, "t11_membership", tmp_path)
    (found,) = rows(record, attack="no defence: LiRA, canaries", metric="TPR")
    assert found["median"] >= 0.9
    for r in rows(record, setting="defended"):
        assert r["ci95"][0] <= r["cap"]
        assert r["epsilon"]["delta"] == 1e-5
    (plain,) = rows(record, attack="no defence: loss", metric="AUC")[:1]
    assert min(plain["parameters"]["accuracy_test"]) > 0.7  # a model that learnt


@pytest.mark.long
def test_t11b_one_run_claims_too_much_in_at_most_one_run_of_twenty(
    program: Program, tmp_path: Path
) -> None:
    record = result_of(program, "t11b_one_run", tmp_path)
    for r in rows(record, metric="runs whose bound"):
        assert r["ci95"][0] <= 0.05


@pytest.mark.long
def test_t12_the_program_holds(program: Program, tmp_path: Path) -> None:
    result_of(program, "t12_audit", tmp_path)


AT_FOUR = {
    "no noise": 400, "clip to 2, noise for 1": 6000, "half the shares missing": 24000,
    "no clipping": 400, "weight 3 after clipping": 1500, "same noise every round": 400,
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", AT_FOUR)
def test_t12_broken_aggregators_are_refuted_at_z_4_with_five_seeds_of_five(
    program: Program, name: str
) -> None:
    t12 = program("t12_audit")
    case = next(c for c in t12.CASES if c.name == name)
    found = [t12.audited(case, 4.0, seed, AT_FOUR[name]) for seed in range(5)]
    assert [str(one.verdict) for one in found] == ["REFUTED"] * 5, [one.bound for one in found]


@pytest.mark.long
@pytest.mark.parametrize("z", [4.0, 2.0])
def test_t12_the_correct_aggregator_is_flagged_at_most_once_in_twenty(
    program: Program, z: float
) -> None:
    t12 = program("t12_audit")
    found = [t12.audited(t12.CASES[0], z, seed, 4000 if seed < 5 else 1000) for seed in range(20)]
    assert all(str(one.verdict) != "INCONCLUSIVE" for one in found)
    assert not [one for one in found[:5] if str(one.verdict) == "REFUTED"]
    assert len([one for one in found if str(one.verdict) == "REFUTED"]) <= 1


@pytest.mark.long
def test_t15_single_updates_stay_closed_and_sums_unchanged(
    program: Program, tmp_path: Path
) -> None:
    record = result_of(program, "t15_paillier", tmp_path)
    assert "1000.6 or -0.6" in " ".join(record["notes"])


@pytest.mark.long
def test_t15b_all_numbers_share_one_exponent(program: Program, tmp_path: Path) -> None:
    pytest.importorskip("phe")
    record = result_of(program, "t15b_phe_exponent", tmp_path)
    assert record["results"][0]["parameters"]["exponents"] == [-21, -16, -14, -13, -11, -6]


@pytest.mark.long
def test_t17_floats_break_their_claim_and_integers_do_not(program: Program, tmp_path: Path) -> None:
    record = result_of(program, "t17_float_noise", tmp_path)
    (event,) = rows(record, metric="releases with the precision event")
    assert event["per_seed"] == [0.0, 0.0, 0.0]
    for r in rows(record, setting="undefended", attack="precision event"):
        assert r["min"] > 9.0
        assert r["parameters"]["event_rate_x1"] == 0.0


@pytest.mark.long
def test_t18_reports_its_attacks_whatever_the_machine_is_doing(
    program: Program, tmp_path: Path
) -> None:
    """No assertion on times: the program itself says if the page is out of date."""
    name = "t18_noise_timing"
    assert program(name).DEMO.main(["--quick", "--out", str(tmp_path)]) in (0, 1)
    record = json.loads((tmp_path / name / "result.json").read_text())
    assert len(record["results"]) == 5
