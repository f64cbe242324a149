"""What happens when something fails, on real processes where a row is about processes.

Which row of the page's table each test belongs to stands in ``test_failure_table.py``. All of them
are long. One cluster serves them all; who kills one of its processes starts it anew.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

from flower_cluster import (
    Cluster,
    active,
    assert_models,
    assert_nothing_leaks,
    cluster,
    survivors_of,
    task,
)
from flower_traffic import holds

import accounting

pytestmark = [pytest.mark.timeout(2400), pytest.mark.long]

TWO_FAIL = {"securefl-n-min": 4, "securefl-max-dropped": 2}
"""One may be out before the session and one in it, and one may be corrupt."""


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("six"), nodes=6) as site:
        yield site


# -- what a node does -----------------------------------------------------------------------------


def test_training_that_raises_costs_its_client_only(six: Cluster) -> None:
    outcome = six.run(**active(six, faults="raise 4 1", needed=6))
    assert_models(outcome, [[0, 1, 2, 3, 5]])
    assert outcome.result["history"][0]["refusals"] == {"E301": 1}
    assert outcome.result["history"][0]["failures"] == {}
    assert "Zaphod" not in outcome.log


@pytest.mark.parametrize("fault", ["kill", "exit"])
def test_an_app_process_that_ends_is_a_dropout(fault: str, six: Cluster) -> None:
    outcome = six.run(
        **active(six, faults=f"{fault} 1 1", needed=6, **{"securefl-train-in": "masked"})
    )
    six.restart_node(1)  # it would wait for its process for another minute
    assert_models(outcome, [[0, 2, 3, 4, 5]])
    assert outcome.result["history"][0]["refusals"] == {}, "it said nothing"


def test_a_slow_client_is_left_out_and_comes_back(six: Cluster) -> None:
    outcome = six.run(
        **active(
            six,
            faults="slow 3 1",
            needed=5,
            **{"num-server-rounds": 3, "securefl-train-deadline": 50.0, "securefl-grace": 12.0},
        )
    )
    assert outcome.status == "finished:completed", outcome.log
    history = outcome.result["history"]
    assert 4 in history[0]["cohort"]
    assert 4 not in history[0]["survivors"]
    assert 4 in history[2]["survivors"]
    assert_models(outcome, survivors_of(outcome))


def test_too_few_clients_end_the_run_as_failed(six: Cluster) -> None:
    outcome = six.run(**active(six, faults="raise 0 1,raise 1 1", needed=6))
    assert outcome.status == "finished:failed"
    assert "4 clients are left" in outcome.log
    assert "2 of 6 clients refused: E301" in outcome.log
    assert len(outcome.result["models"]) == 1, "no model came out"


def test_plain_client_apps_answer_with_an_error_and_no_update(six: Cluster) -> None:
    six.recorder.clear()
    outcome = six.run(plain=True, needed=6, **{"securefl-adversary": "semi-honest"})
    assert outcome.status == "finished:failed"
    assert "runs no SecureFL client" in outcome.log
    streams = six.recorder.traffic()
    for partition in range(6):
        update = task.delta(partition, 1)
        assert not holds(streams, update)
        assert not holds(streams, task.initial() + update)


def test_a_node_without_the_library_is_left_out(six: Cluster) -> None:
    """The app's import fails there: Flower's code 2, whose text is not in our hands."""
    six.recorder.clear()
    broken = six.folder / "node3" / "without-module"
    broken.touch()
    try:
        outcome = six.run(**active(six, needed=6))
    finally:
        broken.unlink()
    assert_models(outcome, [[0, 1, 2, 4, 5]])
    assert outcome.result["history"][0]["failures"] == {"2": 1}
    assert any(b"No module named 'securefl'" in stream for stream in six.recorder.up())
    assert "No module named" not in outcome.log, "but the ServerApp's log does not repeat it"


def test_a_node_with_a_stricter_floor_refuses_and_the_round_survives(six: Cluster) -> None:
    six.write_policy(5, "min_cohort = 6")
    try:
        outcome = six.run(**active(six, needed=6))
    finally:
        six.write_policy(5)
    assert_models(outcome, [[0, 1, 2, 3, 4]])
    assert outcome.result["history"][0]["refusals"] == {"E104": 1}


def test_a_node_that_cannot_write_its_journal_answers_nothing(six: Cluster) -> None:
    """One has no folder for it, which shows at once; another's disk is full when it has trained."""
    six.write_policy(5, journal="missing/node.sqlite")
    before = _answers(six, 2)
    try:
        outcome = six.run(**active(six, needed=6, faults="full 2 1", **TWO_FAIL))
    finally:
        six.write_policy(5)
    assert_models(outcome, [[0, 1, 3, 4]])
    history = outcome.result["history"][0]
    assert history["refusals"] == {"E107": 1, "E901": 1}
    assert history["cohort"] == [1, 2, 3, 4, 5]
    assert _answers(six, 2) == before, "a hello is no answer of a session"


def _answers(six: Cluster, i: int) -> int:
    with closing(sqlite3.connect(six.folder / f"node{i}" / "node.sqlite")) as journal:
        found = journal.execute("SELECT COUNT(*) FROM answered").fetchone()
    return int(found[0])


def test_two_nodes_with_one_identity_are_both_out(six: Cluster) -> None:
    six.start_node(6, files_of=5)
    try:
        outcome = six.run(**active(six, nodes=7, needed=7, **{"securefl-n-min": 5}))
    finally:
        six.end("node6")
    assert_models(outcome, [[0, 1, 2, 3, 4]])
    assert outcome.result["history"][0]["refusals"] == {"E107": 2}


def test_a_spent_budget_ends_the_run_and_a_nodes_own_budget_its_part(six: Cluster) -> None:
    """Two rounds fit into the population's budget, one into a node's."""
    ledger = six.folder / "population.ledger"
    six.write_policy(
        5,
        '[floor.privacy]\nunit = "client"\nmin_noise_multiplier = 0.9\nmax_clip_norm = 1.0\n'
        "epsilon = 7.0\ndelta = 1e-6",
    )
    try:
        outcome = six.run(
            **active(
                six,
                needed=6,
                **{
                    "num-server-rounds": 5,
                    "securefl-clip-norm": 1.0,
                    "securefl-max-weight": "",
                    "securefl-weighting": "uniform",
                    "securefl-noise-multiplier": 1.0,
                    "securefl-epsilon": 9.0,
                    "securefl-delta": 1e-6,
                    "securefl-ledger": str(ledger),
                },
            )
        )
    finally:
        six.write_policy(5)
    assert outcome.status == "finished:failed"
    assert "PrivacyBudgetExhausted" in outcome.log
    first, second, third = outcome.result["history"]
    assert first["survivors"] == [1, 2, 3, 4, 5, 6]
    assert second["survivors"] == [1, 2, 3, 4, 5]
    assert second["refusals"] == {"E106": 1}
    assert third["lost"]
    assert third["seconds"] == {}, "nothing was sent for it"
    assert six.heard("advertise_keys", 2)
    assert not six.heard("advertise_keys", 3)
    assert len(outcome.result["models"]) == 3
    for path, most, rounds in ((ledger, 9.0, 2), (six.folder / "node5" / "node.ledger", 7.0, 1)):
        with accounting.Ledger.open(path) as opened:
            assert opened.open_tickets == ()
            assert 0 < opened.epsilon().value <= most
            kinds = [entry.kind for entry in opened.entries()]
            assert kinds.count(accounting.EntryKind.SETTLE) == rounds


# -- processes that end ---------------------------------------------------------------------------


def test_a_supernode_killed_in_mid_round_is_a_dropout(six: Cluster) -> None:
    process = six.begin(
        **active(six, needed=5, **{"num-server-rounds": 2, "securefl-train-in": "masked"})
    )
    six.wait_for_phase("share_keys", 1)
    six.end("node0", signal.SIGKILL)
    outcome = six.finish(process)
    six.start_node(0)
    assert 1 not in outcome.result["history"][0]["survivors"]
    assert_models(outcome, survivors_of(outcome))


def test_a_supernode_started_anew_is_another_node_and_lost_the_session(six: Cluster) -> None:
    """Without SuperNode authentication it registers anew. The journal outlives its memory.

    The grace period is longer than Flower takes to report the old node as gone: that error has
    another sender than the node that was asked, and still counts for it.
    """
    process = six.begin(
        **active(six, needed=6, **{"securefl-deadline": 150.0, "securefl-grace": 150.0})
    )
    six.wait_for_phase("share_keys", 1)
    six.end("node2", signal.SIGKILL)
    six.start_node(2)
    outcome = six.finish(process)
    history = outcome.result["history"][0]
    assert history["survivors"] == [1, 2, 4, 5, 6]
    assert history["failures"] == {"5": 1}
    assert_models(outcome, [[0, 1, 3, 4, 5]])


def test_a_serverapp_that_dies_opens_nothing_and_the_next_run_works(six: Cluster) -> None:
    six.recorder.clear()
    process = six.begin(**active(six, needed=6))
    six.wait_for_phase("masked_input_collection", 1)
    os.kill(six.server_app(), signal.SIGKILL)
    outcome = six.finish(process)
    assert outcome.status == "finished:failed"
    assert outcome.result == {}
    assert not six.heard("unmasking", 1), "nobody was asked to open anything"
    again = six.run(**active(six, needed=6))
    assert_models(again, [list(range(6))])
    assert_nothing_leaks(six, again, inputs=6)


def test_a_superlink_that_dies_opens_nothing_and_the_next_run_works(tmp_path: Path) -> None:
    """Its state is in memory, so the run is gone. Nodes do not know the new one: they end."""
    with cluster(tmp_path, nodes=5) as site:
        process = site.begin(**active(site, nodes=5, needed=5))
        site.wait_for_phase("masked_input_collection", 1)
        server_app = site.server_app()
        site.end("link", signal.SIGKILL)
        site.wait_until_gone(server_app)
        assert not site.heard("unmasking", 1), "nobody was asked to open anything"
        site.forget(process)
        assert not (tmp_path / "run1" / "result.json").exists()
        for i in range(5):
            site.end(f"node{i}")
        site.start()
        again = site.run(**active(site, nodes=5, needed=5))
        assert_models(again, [list(range(5))])
        assert_nothing_leaks(site, again, inputs=5)
