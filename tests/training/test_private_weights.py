"""How much a client counts under differential privacy: alike, or by a capped share."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError
from securefl.training.local import ModelUpdate
from securefl.training.private_weights import (
    PrivateWeighting,
    WeightKind,
    capped_share,
    check_private_weights,
)
from securefl.training.shared import SecretParticipation
from securefl.training.weighting import CappedTrainer


class Fixed:
    def __init__(self, examples):
        self.examples = examples

    def train(self, start, *, round_index):
        return ModelUpdate(
            values=np.full(3, 7.0, np.float32), weight=1, examples=self.examples, steps=2
        )


@given(examples=st.integers(0, 10**9), cap=st.integers(1, 10**9))
def test_a_share_is_the_records_over_the_cap_and_never_above_one(examples, cap):
    share = capped_share(examples, cap)
    assert share == (1.0 if examples >= cap else examples / cap)
    assert 0.0 <= share <= 1.0


@given(examples=st.integers(0, 200), cap=st.integers(1, 100))
def test_the_share_rides_beside_an_update_that_is_left_for_the_codec_to_clip(examples, cap):
    trainer = CappedTrainer(trainer=Fixed(examples), cap=cap)
    coin = SecretParticipation(trainer=trainer, dimension=3, client=0, sample_rate=1.0)
    for made in (trainer, coin):
        update = made.train(np.zeros(3, np.float32), round_index=0)
        assert update.values.tolist() == [7.0] * 3
        assert update.share == capped_share(examples, cap)
        assert (update.weight, update.steps) == (1, 2)


@pytest.mark.parametrize(("examples", "cap"), [(-1, 5), (3, 0), (3, -2), (3, True)])
def test_impossible_caps_are_refused(examples, cap):
    with pytest.raises(ConfigurationError, match="public cap >= 1"):
        capped_share(examples, cap)
    if examples > 0:
        with pytest.raises(ConfigurationError, match="public cap >= 1"):
            CappedTrainer(trainer=Fixed(1), cap=cap)


def test_equal_and_capped_are_all_that_differential_privacy_allows():
    check_private_weights("equal")
    check_private_weights(PrivateWeighting.CAPPED_EXAMPLES, cap=5)
    check_private_weights(WeightKind.EXAMPLES, cap=5)
    for kind, cap, message in (
        ("examples", None, "no fixed sensitivity"),
        ("capped-examples", None, "need a public cap"),
        ("capped-examples", 0, "public cap >= 1"),
        ("equal", 5, '"equal" take no cap, found 5'),
        ("steps", None, "computed from the records"),
        ("quality", 9, "computed from the records"),
        ("exmaples", None, "weights are one of equal, capped-examples"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            check_private_weights(kind, cap=cap)


def test_the_rule_loads_no_torch_since_configurations_need_it():
    program = "import sys, securefl.training.private_weights as p; sys.exit('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], env=dict(os.environ), check=False)
    assert ran.returncode == 0
