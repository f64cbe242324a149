"""What a report says about shared noise: against whom it holds, and what is left if it breaks."""

from __future__ import annotations

from typing import Any

import pytest

from securefl.report import write_report
from securefl.report.statements import fidelity_sentence, row_label, statement, view_label
from securefl.report.tree import RunTree, read_tree

VIEWS = {
    "models": 2.5,
    "server": 2.5,
    "server_and_colluders": 2.98765,
    "aggregation_broken": 14.2,
}


@pytest.fixture
def shared(tree: Any) -> Any:
    """One row of distributed noise, two seeds."""
    tree.row("distributed-dp", 3.0, accuracy=0.93, epsilon=2.98765, seeds=(0, 1))
    for own in tree.runs.values():
        own |= {
            "epsilon_by_view": dict(VIEWS),
            "colluding": 1,
            "fewest_survivors": 8,
            "randomness": "system",
        }
        own["ledgers"][0] |= {"client_index": None, "path": "ledgers/population.sqlite"}
    return tree


def said(shared: Any) -> tuple[RunTree, Any]:
    tree = read_tree(shared.write())
    return tree, statement(tree.rows[0], tree)


def test_the_promise_says_against_whom_it_holds_and_what_it_rests_on(shared: Any) -> None:
    tree, one = said(shared)
    for words in (
        "(2.988, 1e-5)",
        "the server together with 1 of the 10 clients",
        "one record",
        "adjacency: zero-out",
        "rests on secure aggregation",
        "at least 7 clients that add their share",
    ):
        assert words in one.promise
    limits = " ".join(one.limits)
    for words in ("One ledger counts", "adds no noise is not noticed", "one share"):
        assert words in limits
    assert one.alarms == ()
    assert tree.rows[0].views == VIEWS


def test_the_largest_view_of_the_seeds_is_shown(shared: Any) -> None:
    shared.runs["distributed-dp-3-s1"]["epsilon_by_view"]["aggregation_broken"] = 15.0
    tree, _ = said(shared)
    assert tree.rows[0].views["aggregation_broken"] == 15.0


def test_the_page_shows_all_four_onlookers_and_the_one_ledger(shared: Any) -> None:
    page = write_report(shared.write()).read_text(encoding="utf-8")
    for words in (
        "sees the released models only",
        "sees every opened sum",
        "helped by 1 of the clients",
        "secure aggregation broken",
        "14.200",
        "2.988",
        "population.sqlite",
    ):
        assert words in page


@pytest.mark.parametrize("fidelity", ["encoded", "aggregate"])
def test_no_secure_sum_is_claimed_where_none_ran(shared: Any, fidelity: str) -> None:
    shared.summary["fidelity"] = fidelity
    _, one = said(shared)
    assert "added in the open" in one.promise
    assert "opened by the real protocol" not in one.promise
    assert "no update was hidden from anyone" in fidelity_sentence(fidelity)


def test_repeatable_noise_raises_an_alarm(shared: Any) -> None:
    shared.runs["distributed-dp-3-s1"]["randomness"] = "injected"
    _, one = said(shared)
    assert "No guarantee at all" in one.alarms[0]


@pytest.mark.parametrize("missing", ["views", "ledger"])
def test_what_was_not_recorded_is_not_promised(shared: Any, missing: str) -> None:
    for own in shared.runs.values():
        if missing == "views":
            del own["epsilon_by_view"]
        else:
            own["ledgers"] = []
    _, one = said(shared)
    assert one.alarms
    if missing == "views":
        assert one.promise.endswith("rely on no guarantee.")


def test_a_spent_epsilon_above_the_target_raises_an_alarm(shared: Any) -> None:
    shared.summary["rows"][0]["epsilon"] = 3.01
    _, one = said(shared)
    assert "exceeds the target" in one.alarms[0]


def test_users_are_told_that_all_their_data_is_the_unit(shared: Any) -> None:
    shared.summary["rows"][0]["mode"] = "user-level-dp"
    for entry in shared.summary["runs"]:
        entry["mode"] = "user-level-dp"
    for own in shared.runs.values():
        own["unit"] = "client"
    _, one = said(shared)
    assert one.label == row_label("user-level-dp", 3.0) == "user-level DP, ε ≤ 3"
    assert "everything that one client holds" in " ".join(one.limits)


def test_an_onlooker_without_a_recorded_number_is_no_smaller_one() -> None:
    assert view_label("server_and_colluders", None).endswith("an unrecorded number of the clients")
    assert view_label("somebody else", 1) == "somebody else"
