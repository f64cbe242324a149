"""A run ends for the first reason that holds, and only then."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.training.stopping import StopReason, StopRules

FIGURES = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=12)


@given(FIGURES, FIGURES, st.floats(0, 1e9))
def test_without_rules_a_run_only_ends_by_its_rounds(accuracies, losses, seconds):
    assert StopRules().reason(accuracies=accuracies, losses=losses, seconds=seconds) is None
    assert not StopRules().watches_progress


@given(FIGURES, st.floats(0.05, 1), st.integers(1, 4))
def test_the_target_must_be_kept_for_as_many_rounds_as_asked(accuracies, target, patience):
    rules = StopRules(target_accuracy=target, target_patience=patience)
    last = accuracies[-patience:]
    kept = len(last) == patience and all(a is not None and a >= target for a in last)
    found = rules.reason(accuracies=accuracies, losses=[], seconds=0)
    assert found is (StopReason.TARGET if kept else None)


@given(FIGURES, st.integers(1, 5), st.sampled_from([0.0, 0.1]))
def test_a_plateau_is_too_many_rounds_since_the_lowest_loss(losses, patience, improvement):
    rules = StopRules(plateau_rounds=patience, plateau_improvement=improvement)
    numbers = [math.inf if x is None else x for x in losses]
    best, newest = math.inf, -1
    for index, value in enumerate(numbers):
        if math.isfinite(value) and (best == math.inf or value < best - improvement):
            best, newest = value, index
    stuck = len(numbers) - 1 - newest >= patience
    found = rules.reason(accuracies=[], losses=losses, seconds=0)
    assert found is (StopReason.PLATEAU if stuck else None)


def test_a_model_that_never_had_a_finite_loss_is_stuck():
    rules = StopRules(plateau_rounds=2)
    assert rules.reason(accuracies=[], losses=[None], seconds=0) is None
    assert rules.reason(accuracies=[], losses=[None, math.nan], seconds=0) is StopReason.PLATEAU


def test_the_deadline_is_asked_between_rounds_and_last():
    rules = StopRules(target_accuracy=0.9, deadline_seconds=60.0)
    assert rules.reason(accuracies=[0.1], losses=[1.0], seconds=59.9) is None
    assert rules.reason(accuracies=[0.1], losses=[1.0], seconds=60.0) is StopReason.DEADLINE
    assert rules.reason(accuracies=[0.9], losses=[1.0], seconds=60.0) is StopReason.TARGET


def test_ends_that_were_planned_are_told_from_the_others():
    planned = {r for r in StopReason if r.succeeded}
    assert planned == {"rounds", "target", "plateau", "deadline"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_accuracy": 0.0},
        {"target_accuracy": 1.1},
        {"target_accuracy": math.nan},
        {"target_patience": 0},
        {"plateau_rounds": 0},
        {"plateau_improvement": -0.1},
        {"plateau_improvement": math.inf},
        {"deadline_seconds": 0.0},
        {"deadline_seconds": math.inf},
    ],
)
def test_impossible_rules_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        StopRules(**wrong)
