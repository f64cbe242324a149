"""The sentences: each epsilon with its conditions, no promise where there is none."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.report.statements import (
    composition,
    epsilon_text,
    fidelity_sentence,
    headline,
    shared_limits,
    smallest_sum,
    statement,
)
from securefl.report.tree import read_tree


@given(st.floats(min_value=0, max_value=1e6))
def test_an_epsilon_is_never_shown_smaller_than_it_is(value: float) -> None:
    shown = float(epsilon_text(value))
    assert value - 2e-9 <= shown <= value + 0.001 + 1e-6


@given(st.integers(min_value=0, max_value=100_000))
def test_a_decimal_epsilon_is_shown_as_it_is(thousandths: int) -> None:
    assert epsilon_text(thousandths / 1000) == f"{thousandths / 1000:.3f}"


def test_the_headline_names_every_row(sweep: Any) -> None:
    said = headline(read_tree(sweep.write()))
    assert said == (
        "10 clients trained on 1437 records of digits for 4 rounds. Mean test accuracy: "
        "94.9 % with no DP; 92.1 % with local DP, ε ≤ 8 (spent 7.988); "
        "87.6 % with local DP, ε ≤ 3 (spent 2.988)."
    )


def test_a_local_dp_row_states_unit_adjacency_delta_model_and_the_float_weakness(
    sweep: Any,
) -> None:
    tree = read_tree(sweep.write())
    said = statement(tree.rows[1], tree)
    for words in ("(7.988, 1e-5)", "one record", "adjacency: zero-out", "local model", "not rest"):
        assert words in said.promise
    limits = " ".join(said.limits)
    for words in ("One ledger per client", "largest epsilon over clients", "floating point"):
        assert words in limits
    assert said.alarms == ()


def test_a_row_without_noise_promises_nothing(sweep: Any) -> None:
    tree = read_tree(sweep.write())
    said = statement(tree.rows[0], tree)
    assert said.promise.startswith("No guarantee about the model. A server that follows")


def test_a_run_against_an_active_server_says_what_that_rests_on(sweep: Any) -> None:
    sweep.summary["adversary"] = "active"
    tree = read_tree(sweep.write())
    promise = statement(tree.rows[0], tree).promise
    assert "even one that lies to clients, could open one sum per round" in promise
    assert "identities are not of its making" in promise


@pytest.mark.parametrize(
    ("adversary", "graph", "named"),
    [
        ("semi-honest", "harary", False),
        ("active", "complete", False),
        ("active", "harary", True),
    ],
)
def test_the_missing_proof_is_named_for_a_sparse_graph_against_an_active_server_only(
    sweep: Any, adversary: str, graph: str, named: bool
) -> None:
    sweep.summary |= {"adversary": adversary, "graph": graph}
    tree = read_tree(sweep.write())
    assert ("no published proof" in statement(tree.rows[0], tree).promise) is named


@pytest.mark.parametrize("adversary", ["semi-honest", "active"])
@pytest.mark.parametrize("fidelity", ["encoded", "float", "strange", None])
def test_no_secrecy_is_claimed_where_the_protocol_did_not_run(
    sweep: Any, fidelity: str | None, adversary: str
) -> None:
    sweep.summary["fidelity"] = fidelity
    sweep.summary["adversary"] = adversary
    tree = read_tree(sweep.write())
    assert "not hidden" in statement(tree.rows[0], tree).promise
    assert smallest_sum(tree) is None
    assert "real protocol machines" not in fidelity_sentence(tree.fidelity)


def test_an_unknown_mode_gets_no_guarantee_even_with_an_epsilon(tree: Any) -> None:
    tree.row("quantum", 1.0, accuracy=0.9, epsilon=0.5)
    read = read_tree(tree.write())
    assert "rely on none" in statement(read.rows[0], read).promise


def test_a_dp_row_without_epsilon_gets_no_guarantee_and_an_alarm(tree: Any) -> None:
    tree.row("local-dp", 1.0, accuracy=0.9, epsilon=None)
    read = read_tree(tree.write())
    said = statement(read.rows[0], read)
    assert "rely on no guarantee" in said.promise
    assert said.alarms == ("A row with differential privacy has no epsilon.",)


def test_an_overspent_target_raises_an_alarm(tree: Any) -> None:
    tree.row("local-dp", 3.0, accuracy=0.9, epsilon=3.0000001)
    read = read_tree(tree.write())
    assert "exceeds the target" in statement(read.rows[0], read).alarms[0]


def test_a_target_met_exactly_raises_none(tree: Any) -> None:
    tree.row("local-dp", 3.0, accuracy=0.9, epsilon=3.0)
    read = read_tree(tree.write())
    assert statement(read.rows[0], read).alarms == ()


@pytest.mark.parametrize("where", ["run", "round", "ledger"])
def test_a_run_that_spent_more_than_its_row_says_raises_an_alarm(sweep: Any, where: str) -> None:
    if where == "run":
        sweep.summary["runs"][4]["epsilon"] = 7.99
    elif where == "round":
        sweep.metrics["local-dp-8-s1"][3]["epsilon"] = 7.99
    else:
        sweep.runs["local-dp-8-s1"]["ledgers"][0]["spent_epsilon"] = 7.99
    tree = read_tree(sweep.write())
    (alarm,) = statement(tree.rows[1], tree).alarms
    assert "local-dp-8-s1 recorded a larger epsilon" in alarm


def test_another_delta_in_a_run_raises_an_alarm(sweep: Any) -> None:
    sweep.runs["local-dp-8-s1"]["delta"] = 1e-3
    tree = read_tree(sweep.write())
    (alarm,) = statement(tree.rows[1], tree).alarms
    assert "local-dp-8-s1 used another delta" in alarm


def test_a_local_dp_run_without_ledgers_raises_an_alarm(sweep: Any) -> None:
    sweep.runs["local-dp-8-s1"]["ledgers"] = []
    tree = read_tree(sweep.write())
    assert "recorded no ledger" in statement(tree.rows[1], tree).alarms[0]


def test_an_epsilon_beside_no_noise_raises_an_alarm(tree: Any) -> None:
    tree.row("none", None, accuracy=0.9, epsilon=1.0)
    read = read_tree(tree.write())
    assert "ignore that number" in statement(read.rows[0], read).alarms[0]


def test_differing_adjacencies_are_all_named(sweep: Any) -> None:
    sweep.runs["local-dp-8-s1"]["adjacency"] = "add-remove"
    tree = read_tree(sweep.write())
    assert "adjacency: add-remove / zero-out" in statement(tree.rows[1], tree).promise


def test_publishing_a_sweep_costs_the_sum_over_every_run_seeds_included(sweep: Any) -> None:
    for run, spent in zip(
        sweep.summary["runs"][3:], [7.0, 7.5, 7.98765, 2, 2.5, 2.98765], strict=True
    ):
        run["epsilon"] = spent
    sweep.runs["local-dp-3-s0"]["delta"] = None  # falls back to the table's
    total = composition(read_tree(sweep.write()))
    assert (total.private_runs, total.open_runs) == (6, 3)
    assert total.epsilon == pytest.approx(7.0 + 7.5 + 7.98765 + 2 + 2.5 + 2.98765, abs=1e-12)
    assert total.delta == pytest.approx(6e-5, rel=1e-12)


def test_no_sum_is_given_where_one_epsilon_is_unknown(sweep: Any) -> None:
    sweep.summary["runs"][4]["epsilon"] = None
    assert composition(read_tree(sweep.write())).epsilon is None


def test_the_smallest_opened_sum_ignores_lost_rounds(sweep: Any) -> None:
    sweep.metrics["none-inf-s2"][1]["survivors"] = 8
    assert smallest_sum(read_tree(sweep.write())) == 8


def test_limits_shared_by_rows_are_listed_once(sweep: Any) -> None:
    tree = read_tree(sweep.write())
    groups = shared_limits([statement(row, tree) for row in tree.rows])
    assert [labels for labels, _ in groups] == [
        ["no DP"],
        ["local DP, ε ≤ 8", "local DP, ε ≤ 3"],
    ]


def test_rounding_up_keeps_an_infinite_looking_decimal() -> None:
    assert epsilon_text(math.nextafter(2.988, 3)) == "2.988"
    assert epsilon_text(2.98800001) == "2.989"
