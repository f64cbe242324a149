"""SuperLink and SuperNodes as real processes on 127.0.0.1: what arrives, and what never leaves.

What happens when something fails stands in ``test_failures.py``. All but the first are long: a
phase takes five to nine seconds, whatever it computes, because every message meets a new process.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

import numpy as np
from flower_cluster import (
    REPOSITORY,
    Cluster,
    active,
    assert_models,
    assert_nothing_leaks,
    cluster,
    module_at,
    survivors_of,
)
from flower_traffic import LIMIT, correlations, holds, masked_vectors, without

pytestmark = pytest.mark.timeout(2400)
long = pytest.mark.long


def test_one_round_on_real_processes_is_exact_and_nothing_leaks(tmp_path: Path) -> None:
    with cluster(tmp_path, nodes=4) as site:
        for i in range(4):
            site.write_policy(i, 'adversary = "semi-honest"')
        outcome = site.run(
            nodes=4, needed=4, faults="raise 2 1", **{"securefl-adversary": "semi-honest"}
        )
        if sys.platform == "linux":
            assert site.listening() == {"127.0.0.1"}
        assert_models(outcome, [[0, 1, 3]])
        assert outcome.result["history"][0]["refusals"] == {"E301": 1}
        assert_nothing_leaks(site, outcome, inputs=3)
        assert "Zaphod" in site.log("node2"), "the reason is in the node's own log"
        assert "Zaphod" not in outcome.log


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("six"), nodes=6) as site:
        yield site


@long
def test_two_rounds_against_a_lying_server_are_the_plain_mean(six: Cluster) -> None:
    six.recorder.clear()
    outcome = six.run(**active(six, **{"num-server-rounds": 2, "needed": 6}))
    assert_models(outcome, [list(range(6))] * 2)
    assert_nothing_leaks(six, outcome, inputs=12)


# -- a server that lies ---------------------------------------------------------------------------


@long
def test_a_server_that_lies_to_one_client_gets_its_refusal_and_no_update(six: Cluster) -> None:
    """Another model, no protection, a smaller cohort, another's key: one lie per round."""
    expected = {
        "another-model": "E102",
        "in-clear": "E101",
        "shrunk-cohort": "E104",
        "swapped-key": "E107",
    }
    for i in range(6):
        six.write_policy(i, "min_cohort = 5")
    six.recorder.clear()
    try:
        outcome = six.run(
            **active(six, lies=" ".join(expected), needed=6, **{"num-server-rounds": len(expected)})
        )
    finally:
        for i in range(6):
            six.write_policy(i)
    assert_models(outcome, survivors_of(outcome))
    history = outcome.result["history"]
    assert [one["refusals"] for one in history] == [{code: 1} for code in expected.values()]
    victims = {frozenset(one["cohort"]) - frozenset(one["survivors"]) for one in history}
    assert len(victims) == 1, "always the same one"
    assert all(len(one["survivors"]) == 5 for one in history)
    # Whoever refuses masks nothing.
    assert_nothing_leaks(six, outcome, inputs=5 * len(expected))


@long
def test_a_server_that_lies_about_survivors_gets_one_sum_or_none(six: Cluster) -> None:
    """Both shares of a client, two lists, and a list too short to hide anybody."""
    six.recorder.clear()
    outcome = six.run(
        **active(
            six,
            lies="both-shares two-lists short-list",
            needed=6,
            **{"num-server-rounds": 3, "securefl-on-abort": "skip"},
        )
    )
    everybody = list(range(6))
    assert survivors_of(outcome) == [everybody, everybody, []]
    assert_models(outcome, [everybody, everybody, []])
    both, two, short = outcome.result["history"]
    assert both["refusals"] == {}
    assert two["refusals"] == {}
    # Three are on the list and find it too short; three find that it leaves them out.
    assert sum(short["refusals"].values()) == 6
    assert short["lost"]
    answers = [tuple(one) for one in outcome.result["answers"]]
    # Each node: a second list to sign, and a second request to open.
    assert (
        sorted(a for a in answers if a[0] == "both-shares")
        == [("both-shares", "securefl:E203")] * 12
    )
    # The one that signed another list is shown the others' signatures, which are not over its own.
    assert [a for a in answers if a[0] == "two-lists"] == [("two-lists", "securefl:E107")]
    assert_nothing_leaks(six, outcome, inputs=18)


# -- the example ----------------------------------------------------------------------------------

EXAMPLES = REPOSITORY / "examples" / "flower_app"


@pytest.fixture(scope="module")
def digits() -> Any:
    """The example's training, for its results by other means."""
    for name in ("torch", "sklearn"):
        pytest.importorskip(name)
    return module_at("digits_task", EXAMPLES / "secure" / "digits_app" / "task.py")


FIVE = {"securefl-n-min": 5, "securefl-grace": 60.0, "securefl-deadline": 240.0}
"""Five needed in every sum; and time, since every message starts a process."""
WEIGHT = "1.weight"
"""The example's large array: 640 numbers."""


@long
def test_the_example_app_survives_a_killed_supernode_and_nothing_leaks(
    six: Cluster, digits: Any
) -> None:
    """Three rounds against a server that may lie, five nodes needed, one killed in mid-round."""
    six.recorder.clear()
    out = six.folder / "digits.npz"
    # By default one in ten may be missing, so four of five would do: on a busy machine the slowest
    # of the last round's five was left out as well.
    process = six.begin(EXAMPLES / "secure", out=str(out), **active(six, **FIVE))
    for killed in (2, 3):
        six.wait_for_phase("share_keys", killed, seconds=400)
        # Flower may list five of six for a while: without one of those nothing could be summed.
        if six.heard("advertise_keys", killed) == 6:
            break
    six.end("node4", signal.SIGKILL)
    outcome = six.finish(process)
    six.start_node(4)
    assert outcome.status == "finished:completed", outcome.log
    models = _models(out)
    assert len(models) == 4
    secrets: list[Any] = []
    for number in (1, 2, 3):
        before, after = models[number - 1], _flat(models[number])
        assert not np.array_equal(_flat(before), after), f"round {number} was lost: {outcome.log}"
        locals_ = {p: digits.train(before, p, 6, number)[:2] for p in range(6)}
        # Which five or six were in the sum is not in the model's file: exactly one choice fits.
        errors = {}
        for left_out in (None, *range(6)):
            alive = [p for p in range(6) if p != left_out]
            total = sum(locals_[p][1] for p in alive)
            mean = sum(_flat(locals_[p][0]) * locals_[p][1] for p in alive) / total
            errors[left_out] = float(np.abs(mean - after).max())
        fits = [left_out for left_out, error in errors.items() if error <= 9 / (1 << 17) + 1e-6]
        assert len(fits) == 1, (number, errors, outcome.log[-4000:])
        if number >= killed:
            assert fits == [4]
        secrets += [state[WEIGHT].numpy().reshape(-1) for state, _ in locals_.values()]
        secrets += [s - before[WEIGHT].numpy().reshape(-1) for s in secrets[-6:]]
    _assert_no_trace(six, models, np.stack(secrets))


def _assert_no_trace(six: Cluster, models: list[dict[str, Any]], secrets: np.ndarray) -> None:
    """Neither updates nor local models, in any direction; see LIMIT for how rare an alarm is."""
    up, down = six.recorder.up(), six.recorder.down()
    length = sum(tensor.numel() for tensor in models[0].values())
    masked = masked_vectors(up, length=length)
    assert len(masked) >= 5 + 5 + 5
    assert holds(down, models[0][WEIGHT].numpy().reshape(-1)), "control: models go down this wire"
    assert not any(holds(up + down, secret) for secret in secrets)
    assert correlations(up, secrets).max() < LIMIT
    known = [tensor.numpy().tobytes() for model in models for tensor in model.values()]
    assert correlations(without(down, known), secrets).max() < LIMIT


@long
def test_the_same_search_finds_every_update_of_the_plain_example(six: Cluster, digits: Any) -> None:
    """The positive control: Flower's own app over the same wire."""
    six.recorder.clear()
    out = six.folder / "plain.npz"
    outcome = six.run(EXAMPLES / "plain", out=str(out), **{"num-server-rounds": 1, "min-nodes": 6})
    assert outcome.status == "finished:completed", outcome.log
    before = _models(out)[0]
    locals_ = [digits.train(before, p, 6, 1)[0][WEIGHT].numpy().reshape(-1) for p in range(6)]
    up = six.recorder.up()
    assert all(holds(up, values) for values in locals_)
    assert correlations(up, np.stack(locals_)).min() > 0.99


def _models(path: Path) -> list[dict[str, Any]]:
    import torch

    raw = np.load(path)
    found: dict[int, dict[str, Any]] = {}
    for name in raw.files:
        number, key = name.split(" ")
        found.setdefault(int(number), {})[key] = torch.tensor(raw[name], dtype=torch.float32)
    return [found[number] for number in sorted(found)]


def _flat(state: dict[str, Any]) -> np.ndarray:
    parts = [state[key].numpy().astype(np.float64).reshape(-1) for key in sorted(state)]
    return np.concatenate(parts)
