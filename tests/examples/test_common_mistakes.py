"""Each program's assertion fails on its wrong version and passes on its right one.

Beyond that, each mistake is what its text says it is: recomputed here by other means. The right
versions draw their noise from the operating system, as for a user. Two assertions depend on it:
accuracy above .9 (.924 with standard deviation .005 over 40 runs) and the variance of a sum (within
a third, standard deviation .056): five and almost six standard deviations, together less than one
false alarm in a million runs.
"""

from __future__ import annotations

import doctest
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from securefl.training import data

FOLDER = Path(__file__).parents[2] / "examples" / "common_mistakes"
WITHOUT_A_PAIR = {"side_by_side", "small_corrections"}
PROGRAMS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in WITHOUT_A_PAIR)

Example = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def outcomes(example: Example) -> Callable[[str], tuple[ModuleType, Any, Any]]:
    """`outcomes(name)`: the program, what its wrong version gives, what its right one gives."""
    kept: dict[str, tuple[ModuleType, Any, Any]] = {}

    def of(name: str) -> tuple[ModuleType, Any, Any]:
        if name not in kept:
            program = example(name)
            kept[name] = (program, program.wrong(), program.right())
        return kept[name]

    return of


def softmax_gradient(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean cross-entropy gradient in float64, in the order of the flat vector."""
    scores = x @ w[:640].reshape(10, 64).T + w[640:]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    errors = odds / odds.sum(axis=1, keepdims=True) - np.eye(10)[y]
    return np.concatenate([(errors.T @ x).ravel(), errors.sum(axis=0)]) / len(y)


def test_there_are_eight_programs() -> None:
    assert PROGRAMS == [
        "aliased_gradients",
        "global_model_gradient",
        "last_client_only",
        "no_exchange",
        "noise_without_clipping",
        "one_shared_model",
        "same_seed",
        "scaling_is_not_compression",
    ]


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_assertion_fails_on_the_wrong_version(outcomes: Any, name: str) -> None:
    program, wrong, _ = outcomes(name)
    with pytest.raises(AssertionError):
        program.check(wrong)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_assertion_passes_on_the_right_version(outcomes: Any, name: str) -> None:
    program, _, right = outcomes(name)
    program.check(right)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_shows_both_versions_and_what_the_assertion_says(
    outcomes: Any, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, wrong, right = outcomes(name)
    monkeypatch.setattr(program, "wrong", lambda: wrong)
    monkeypatch.setattr(program, "right", lambda: right)
    assert program.main() == 0
    shown = capsys.readouterr().out
    for word in ("wrong", "right", "the assertion", "passes"):
        assert word in shown
    # Both ways of not telling them apart are an exit code of 1.
    monkeypatch.setattr(program, "wrong", lambda: right)
    assert program.main() == 1
    monkeypatch.setattr(program, "wrong", lambda: wrong)
    monkeypatch.setattr(program, "right", lambda: wrong)
    assert program.main() == 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_page_and_the_readme_list_the_program(name: str) -> None:
    page = FOLDER.parents[1] / "docs" / "tutorial" / "common-mistakes.md"
    for text in (page.read_text("utf-8"), (FOLDER / "README.md").read_text("utf-8")):
        assert f"`{name}" in text


# ---------------------------------------------------------------- what each mistake really is


def test_without_clipping_one_record_moves_the_result_as_far_as_it_is_scaled(outcomes: Any) -> None:
    program, wrong, right = outcomes("noise_without_clipping")
    for near, far in zip(wrong.shifts[1:], wrong.shifts[2:], strict=False):
        assert far / near == pytest.approx(10, rel=0.02)  # the bias' part does not scale
    # At the zero model the gradient is known: (1/10 - y)(s x, 1), over the batch, over the noise.
    train, _ = data.load("digits")
    for scale, shift in zip(program.SCALES, wrong.shifts, strict=True):
        length = np.sqrt(0.9 * (scale**2 * float(train.x[0] @ train.x[0]) + 1))
        assert shift == pytest.approx(length / program.BATCH / program.NOISE_STD, rel=1e-3)
    assert wrong.accuracy < 0.3
    assert max(right.shifts) <= 1 / program.claimed_noise_multiplier()
    assert max(right.shifts) == pytest.approx(min(right.shifts), rel=1e-3)


def test_noise_of_a_fixed_stream_trains_the_same_accurate_model(example: Example) -> None:
    program = example("noise_without_clipping")
    first, second = (program.right(random_bytes=fixed_stream()) for _ in range(2))
    assert first == second
    program.check(first)


def test_the_average_of_one_shared_model_is_the_last_clients_weights(outcomes: Any) -> None:
    _, wrong, right = outcomes("one_shared_model")
    assert np.array_equal(wrong.average, wrong.last)
    assert not np.array_equal(wrong.average, wrong.reversed_average)
    assert np.abs(right.average - right.last).max() > 0.01


def test_a_leaky_round_is_sequential_sgd_and_then_a_scaling_by_the_last_share(
    example: Example,
) -> None:
    program, shared = example("last_client_only"), example("side_by_side")
    clients, _ = program.unequal_clients()
    module, central = shared.digits_module(), shared.digits_module()
    for _ in range(2):
        trained, after = program.leaky_round(module, clients)
        for records in clients:  # one model, all records in turn, nothing federated
            shared.plain_sgd(central, records, learning_rate=program.RATE, size=program.BATCH)
        assert np.array_equal(trained, shared.vector_of(central))
        assert np.array_equal(after, np.float32(0.75) * trained)
        with torch.no_grad():
            for p in central.parameters():
                p.mul_(0.75)


def test_without_an_exchange_each_peer_knows_its_own_classes_only(outcomes: Any) -> None:
    program, wrong, right = outcomes("no_exchange")
    assert wrong.bytes_sent == (0,) * program.PEERS
    assert max(wrong.accuracies) < 0.35
    assert len({m.tobytes() for m in wrong.models}) == program.PEERS
    # Not less than the vectors themselves, every round.
    dim = len(right.models[0])
    assert min(right.bytes_sent) > program.ROUNDS * dim * program.BITS // 8


def test_the_exchanged_models_are_those_of_a_plain_weighted_mean(outcomes: Any) -> None:
    program, _, right = outcomes("no_exchange")
    trainers, _ = program._peers()
    w = trainers[0].model.vector()
    for t in range(program.ROUNDS):
        w = w + np.mean([trainer.train(w, round_index=t).values for trainer in trainers], axis=0)
    # ROUNDS times half a step of the encoding, which training may amplify a little.
    assert np.abs(right.models[0] - w).max() < 1e-5


def test_aliased_gradients_are_a_multiple_of_the_last_batchs(outcomes: Any) -> None:
    program, wrong, right = outcomes("aliased_gradients")
    multiple = wrong.batches / program.CLIENTS * wrong.last_batch_gradient
    np.testing.assert_allclose(wrong.global_gradient, multiple, rtol=1e-6, atol=1e-9)
    train, _ = data.load("digits")
    everything = softmax_gradient(np.zeros(650), train.x.astype(np.float64), train.y)
    np.testing.assert_allclose(right.global_gradient, everything, atol=1e-6)
    np.testing.assert_allclose(wrong.pooled_gradient, everything, atol=1e-6)


def test_the_global_models_gradient_does_not_depend_on_local_training(outcomes: Any) -> None:
    program, wrong, right = outcomes("global_model_gradient")
    clients, _ = program._clients()
    last = clients[-1]
    step = -program.RATE * softmax_gradient(np.zeros(650), last.x.astype(np.float64), last.y)
    assert np.array_equal(wrong.trained, wrong.idle)
    np.testing.assert_allclose(wrong.trained, step, atol=1e-6)  # one client's, not four clients'
    assert np.array_equal(right.idle, np.zeros(650, dtype=np.float32))
    assert right.accuracy > wrong.accuracy + 0.1


def test_scaling_sends_as_many_bytes_and_delivers_a_tenth(outcomes: Any) -> None:
    _, wrong, right = outcomes("scaling_is_not_compression")
    assert wrong.bytes_each == 4 * 650
    np.testing.assert_allclose(wrong.decoded, 0.1 * wrong.mean, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(wrong.small, [0.25, 0.35, 0.45], rtol=1e-6)
    assert right.bytes_each == 2 * 650
    np.testing.assert_allclose(right.small, [2.5, 3.5, 4.5], atol=1e-3)
    np.testing.assert_array_equal(right.mean, wrong.mean)


def test_equal_seeds_add_up_to_n_squared_and_hide_nothing(outcomes: Any) -> None:
    program, wrong, right = outcomes("same_seed")
    assert wrong.variance_ratio == pytest.approx(program.CLIENTS**2)
    assert wrong.guessed < 1e-12
    global_noise = torch.Generator().manual_seed(0)
    drawn = torch.randn(650, generator=global_noise).double().numpy()
    assert all(np.array_equal(noise, drawn) for noise in wrong.noises)
    assert right.guessed > 1.0


def test_the_doctests_of_the_small_corrections_pass(example: Example) -> None:
    failed, attempted = doctest.testmod(example("small_corrections"))
    assert attempted > 20
    assert failed == 0


def test_the_small_corrections_print_their_table(
    example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example("small_corrections").main() == 0
    assert "0.604" in capsys.readouterr().out


def fixed_stream() -> Callable[[int], bytes]:
    """SHAKE-256 of a counter; for tests only."""
    calls = 0

    def random_bytes(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(calls.to_bytes(8, "little")).digest(count)

    return random_bytes
