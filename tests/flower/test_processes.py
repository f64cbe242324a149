"""SuperLink and SuperNodes as real processes on 127.0.0.1: what arrives, and what never leaves.

Most of these are long: a phase takes five to nine seconds, whatever it computes, because every
message meets a new process. The short one runs one round with one failing client.
"""

from __future__ import annotations

import re
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

import numpy as np
from flower_cluster import REPOSITORY, Cluster, Outcome, cluster, module_at, probe_task

from securefl.wire import unpack_words

pytestmark = pytest.mark.timeout(900)
long = pytest.mark.long
task = probe_task()


def active(site: Cluster, **more: Any) -> dict[str, Any]:
    return {"securefl-roster": str(site.folder / "roster.json")} | more


def mean_after(before: np.ndarray, partitions: list[int], server_round: int) -> np.ndarray:
    weights = {p: task.examples(p) for p in partitions}
    parts = [w * task.delta(p, server_round).astype(np.float64) for p, w in weights.items()]
    return before.astype(np.float64) + sum(parts) / sum(weights.values())


def assert_models(outcome: Outcome, survivors: list[list[int]]) -> None:
    """Each round's model is the weighted mean of exactly these clients, to quantisation."""
    assert outcome.status == "finished:completed", outcome.log
    models = [np.array(values) for values in outcome.result["models"]]
    assert np.array_equal(models[0], task.initial())
    # Clip norm 50, at least 2^16 steps per clip norm, and float32 on top.
    tolerance = 50 / (1 << 17) + 1e-6
    for number, partitions in enumerate(survivors, start=1):
        expected = mean_after(models[number - 1], partitions, number)
        assert np.abs(models[number] - expected).max() <= tolerance


def assert_nothing_leaks(site: Cluster, partitions: list[int], rounds: int) -> None:
    """No client's update is in the recorded traffic, plain or correlated with a masked vector."""
    streams = site.recorder.traffic()
    assert any(task.initial().tobytes()[:256] in stream for stream in streams), "control: the model"
    models = [np.array(values, dtype=np.float32) for values in site.last.result["models"]]
    for number in range(1, rounds + 1):
        for partition in partitions:
            update = task.delta(partition, number)
            local = models[number - 1] + update
            for secret in (update, local, update.astype(np.float64), local.astype(np.float64)):
                for start in (0, 1000):
                    piece = secret[start : start + 8].tobytes()
                    assert not any(piece in stream for stream in streams)
    for word in (b"Zaphod", b"FluidError", struct.pack("<d", 424242.125)):
        assert not any(word in stream for stream in streams)
    masked = masked_vectors(streams)
    assert len(masked) >= rounds * (len(partitions) - 2)
    for vector in masked:
        for number in range(1, rounds + 1):
            for partition in partitions:
                rho = np.corrcoef(vector, task.delta(partition, number))[0, 1]
                # 2000 uniform words: |rho| > 7/sqrt(2000) happens with probability below 1e-11.
                assert abs(rho) < 7 / np.sqrt(task.LENGTH)


def masked_vectors(streams: list[bytes]) -> list[np.ndarray]:
    """The entries of every MaskedInput frame in the traffic, centred in their ring.

    A frame of this size stands inside one HTTP body, so its bytes are together. Its header is 60
    bytes: magic, version, protocol, type 5 (masked input), ..., body length in the last four.
    """
    found = []
    for stream in streams:
        for match in re.finditer(rb"SFL1\x01[\x01\x02]\x05", stream):
            start = match.start()
            size = int.from_bytes(stream[start + 56 : start + 60], "little")
            body = stream[start + 60 : start + 60 + size]
            entries = task.LENGTH + 1
            bits = size * 8 // entries
            if len(body) < size or not bits:
                continue
            words = unpack_words(body, entries, bits).astype(np.float64)
            found.append(words[:-1] - (1 << (bits - 1)))
    return found


def test_one_round_on_real_processes_is_exact_and_nothing_leaks(tmp_path: Path) -> None:
    with cluster(tmp_path, nodes=4) as site:
        for i in range(4):
            site.write_policy(i, 'adversary = "semi-honest"')
        outcome = site.run(
            nodes=4, needed=4, faults="raise 2 1", **{"securefl-adversary": "semi-honest"}
        )
        site.last = outcome
        assert_models(outcome, [[0, 1, 3]])
        assert outcome.result["history"][0]["refusals"] == {"E301": 1}
        assert_nothing_leaks(site, [0, 1, 3], rounds=1)
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
    six.last = outcome
    assert_models(outcome, [list(range(6))] * 2)
    assert_nothing_leaks(six, list(range(6)), rounds=2)


@long
def test_training_that_raises_costs_its_client_only(six: Cluster) -> None:
    outcome = six.run(**active(six, faults="raise 4 1", needed=6))
    assert_models(outcome, [[0, 1, 2, 3, 5]])
    assert "Zaphod" not in outcome.log


@long
def test_an_app_process_killed_before_its_masked_input_is_a_dropout(six: Cluster) -> None:
    outcome = six.run(**active(six, faults="kill 1 1", needed=6, **{"securefl-train-in": "masked"}))
    assert_models(outcome, [[0, 2, 3, 4, 5]])


@long
def test_a_slow_client_is_left_out_and_comes_back(six: Cluster) -> None:
    outcome = six.run(
        **active(
            six,
            faults="slow 3 1",
            needed=5,
            **{"num-server-rounds": 2, "securefl-train-deadline": 50.0, "securefl-grace": 12.0},
        )
    )
    assert outcome.status == "finished:completed", outcome.log
    first, second = outcome.result["history"]
    assert 4 not in first["survivors"]
    assert len(second["survivors"]) >= 4


@long
def test_too_few_clients_end_the_run_as_failed(six: Cluster) -> None:
    outcome = six.run(**active(six, faults="raise 0 1,raise 1 1", needed=6))
    assert outcome.status == "finished:failed"
    assert "4 clients are left" in outcome.log
    assert "2 of 6 clients refused: E301" in outcome.log
    assert len(outcome.result["models"]) == 1, "no model came out"


@long
def test_plain_client_apps_answer_with_an_error_and_no_update(six: Cluster) -> None:
    six.recorder.clear()
    outcome = six.run(plain=True, needed=6, **{"securefl-adversary": "semi-honest"})
    assert outcome.status == "finished:failed"
    assert "runs no SecureFL client" in outcome.log
    streams = six.recorder.traffic()
    for partition in range(6):
        local = (task.initial() + task.delta(partition, 1)).tobytes()
        assert not any(local[:64] in stream for stream in streams)


@long
def test_a_node_with_a_stricter_floor_refuses_and_the_round_survives(six: Cluster) -> None:
    six.write_policy(5, "min_cohort = 6")
    try:
        outcome = six.run(**active(six, needed=6))
    finally:
        six.write_policy(5)
    assert_models(outcome, [[0, 1, 2, 3, 4]])
    assert outcome.result["history"][0]["refusals"] == {"E104": 1}


@long
@pytest.mark.parametrize(("lie", "code"), [("another-model", "E102"), ("in-clear", "E101")])
def test_a_lying_server_app_gets_refusals_and_no_update(six: Cluster, lie: str, code: str) -> None:
    six.recorder.clear()
    outcome = six.run(**active(six, lies=lie, needed=6))
    six.last = outcome
    assert outcome.status == "finished:completed", outcome.log
    assert outcome.result["history"][0]["refusals"][code] >= 1
    assert len(outcome.result["history"][0]["survivors"]) == 5
    assert_nothing_leaks(six, list(range(6)), rounds=1)


@long
def test_a_supernode_killed_in_mid_round_and_one_restarted_are_dropouts(six: Cluster) -> None:
    process = six.begin(
        **active(six, needed=5, **{"num-server-rounds": 2, "securefl-train-in": "masked"})
    )
    six.wait_for_phase("share_keys", 1)
    six.end("node0", signal.SIGKILL)
    outcome = six.finish(process)
    six.start_node(0)
    assert outcome.status == "finished:completed", outcome.log
    history = outcome.result["history"]
    assert 1 not in history[0]["survivors"]
    assert_models(outcome, [[c - 1 for c in one["survivors"]] for one in history])


@long
def test_a_node_restarted_between_two_messages_has_lost_its_state(six: Cluster) -> None:
    """The journal outlives the SuperNode's memory, so its secrets are gone and used once."""
    process = six.begin(**active(six, needed=6, nodes=6, **{"securefl-deadline": 60.0}))
    six.wait_for_phase("share_keys", 1)
    six.end("node2", signal.SIGKILL)
    six.start_node(2)
    outcome = six.finish(process)
    survivors = outcome.result["history"][0]["survivors"]
    assert 3 not in survivors
    assert_models(outcome, [[client - 1 for client in survivors]])


@long
def test_the_example_app_survives_a_killed_supernode_and_equals_the_plain_mean(
    six: Cluster,
) -> None:
    """Three rounds against a server that may lie, five nodes needed, one killed in mid-round."""
    example = REPOSITORY / "examples" / "flower_app" / "secure"
    digits = module_at("digits_task", example / "digits_app" / "task.py")
    for name in ("torch", "sklearn"):
        pytest.importorskip(name)
    six.recorder.clear()
    out = six.folder / "digits.npz"
    process = six.begin(example, out=str(out), **active(six))
    six.wait_for_phase("share_keys", 2)
    six.end("node4", signal.SIGKILL)
    outcome = six.finish(process)
    six.start_node(4)
    assert outcome.status == "finished:completed", outcome.log
    streams = six.recorder.traffic()
    models = _models(out)
    assert len(models) == 4
    for number in (1, 2, 3):
        locals_ = {p: digits.train(models[number - 1], p, 6, number)[:2] for p in range(6)}
        found = _flat(models[number])
        # Which five or six were in the sum is not in the model's file: exactly one choice fits.
        fits = []
        for left_out in (None, *range(6)):
            alive = [p for p in range(6) if p != left_out]
            total = sum(locals_[p][1] for p in alive)
            mean = sum(_flat(locals_[p][0]) * locals_[p][1] for p in alive) / total
            if np.abs(mean - found).max() <= 9 / (1 << 17) + 1e-6:
                fits.append(left_out)
        assert len(fits) == 1
        if number > 1:
            assert fits == [4]
        for state, _ in locals_.values():
            for tensor in state.values():
                piece = tensor.numpy().reshape(-1)[:10].tobytes()
                assert not any(piece in stream for stream in streams)


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
