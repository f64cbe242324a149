"""The page's table of failures, row by row: which tests make each of them happen.

Names are those of functions in this folder. Rows about processes have at least one test on real
processes; what is about messages, and all orders in which they can go wrong, is tested in process.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "how-to" / "flower.md"
PROCESSES = (
    "test_processes.py",
    "test_failures.py",
    "test_authenticated.py",
    "test_paillier_processes.py",
)
ABOUT_MESSAGES = ("deciders refuse what they are asked to open",)
"""What only a lying server brings about: no process has to fail for it."""

ROWS = {
    "training raises": [
        "test_training_that_raises_costs_its_client_only",
        "test_one_round_on_real_processes_is_exact_and_nothing_leaks",
        "test_nothing_in_clear_leaves_a_node",
    ],
    "an app's process is killed, or calls `sys.exit`": [
        "test_an_app_process_that_ends_is_a_dropout",
    ],
    "a SuperNode is killed": [
        "test_a_supernode_killed_in_mid_round_is_a_dropout",
        "test_the_example_app_survives_a_killed_supernode_and_nothing_leaks",
        "test_an_error_counts_for_the_node_that_was_asked_whoever_sends_it",
    ],
    "a client is slower than the deadline": [
        "test_a_slow_client_is_left_out_and_comes_back",
        "test_a_slow_node_is_left_out_until_it_is_free",
        "test_a_late_answer_frees_its_node_and_is_thrown_away",
    ],
    "a SuperNode restarts between two messages": [
        "test_an_authenticated_supernode_started_anew_has_lost_its_session",
        "test_a_supernode_started_anew_is_another_node_and_lost_the_session",
        "test_a_lost_a_foreign_and_an_old_state_answer_nothing",
        "test_going_back_to_an_older_state_and_asking_again_gets_no_second_answer",
    ],
    "a node runs the plain ClientApp, or the app cannot be imported there": [
        "test_plain_client_apps_answer_with_an_error_and_no_update",
        "test_a_node_without_the_library_is_left_out",
        "test_plain_client_apps_send_nothing_and_are_named",
        "test_an_error_counts_for_the_node_that_was_asked_whoever_sends_it",
    ],
    "a node cannot write its journal": [
        "test_a_node_that_cannot_write_its_journal_answers_nothing",
        "test_an_exception_anywhere_leaves_the_old_record_and_a_code",
    ],
    "too few clients are left in a phase": [
        "test_too_few_clients_end_the_run_as_failed",
        "test_any_schedule_gives_the_exact_mean_of_the_survivors_or_a_clear_loss",
        "test_refusals_are_counted_in_the_error",
    ],
    "the ServerApp dies": [
        "test_a_serverapp_that_dies_opens_nothing_and_the_next_run_works",
    ],
    "the SuperLink dies": [
        "test_a_superlink_that_dies_opens_nothing_and_the_next_run_works",
    ],
    "two nodes claim one identity": [
        "test_two_nodes_with_one_identity_are_both_out",
        "test_two_nodes_that_claim_one_identity_are_both_out",
    ],
    "a share holder is away, or its process is": [
        "test_holders_on_real_supernodes_open_the_exact_mean_of_those_who_came",
        "test_without_enough_holders_nobody_trains",
        "test_a_holder_that_is_away_is_an_error_and_no_key_is_anywhere_else",
    ],
    "deciders refuse what they are asked to open": [
        "test_a_request_that_is_no_sum_of_enough_clients_is_refused_by_every_holder",
        "test_different_lists_for_different_holders_open_neither",
        "test_a_deciders_own_floor_refuses",
    ],
    "the budget is spent": [
        "test_a_spent_budget_ends_the_run_and_a_nodes_own_budget_its_part",
        "test_a_spent_budget_stops_the_run_before_anything_is_sent",
        "test_a_node_keeps_its_own_ledger_and_refuses_when_it_is_spent",
    ],
}


def test_the_page_has_exactly_these_rows() -> None:
    table = PAGE.read_text().split("| what happened | what you see |\n|---|---|\n")[1]
    rows = table.partition("\n\n")[0].splitlines()
    assert [row.split("|")[1].strip() for row in rows] == list(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_tests_and_one_of_them_runs_real_processes(row: str) -> None:
    found = {
        name: path.name
        for path in HERE.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    files = [found.get(name) for name in ROWS[row]]
    assert None not in files, dict(zip(ROWS[row], files, strict=True))
    assert row in ABOUT_MESSAGES or any(file in PROCESSES for file in files)
