"""Every label is checked before anything is sampled: an error must not follow a secret coin."""

import numpy as np
import pytest
from torch import nn

from securefl.errors import ConfigurationError
from securefl.training.clipped_sum import ClippedSum
from securefl.training.dpsgd import DPSGD
from securefl.training.local import FlatModel, FullGradient, LocalSGD, Reduction, evaluate
from securefl.training.shared import RecordSum


def private(kind):
    def make(**data):
        common = {**data, "clip_norm": 1.0, "sample_rate": 1e-6}
        if kind is DPSGD:
            return DPSGD(**common, noise_multiplier=1.0, steps=1, learning_rate=0.1)
        return RecordSum(**common)

    return make


TRAINERS = {
    "local": lambda **data: LocalSGD(**data, learning_rate=0.1, epochs=1),
    "gradient": lambda **data: FullGradient(**data, reduction=Reduction.MEAN),
    "dpsgd": private(DPSGD),
    "record sum": private(RecordSum),
}


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("bad", [3, -1, 10**6])
def test_a_label_without_an_output_is_refused_before_any_record_is_drawn(
    softmax, records, name, bad
):
    """At rate 1e-6 the record would be drawn in one step of a million, and only then fail."""
    x, y = records(n=30)
    model = softmax()
    TRAINERS[name](model=model, x=x, y=y, client=4)
    y[17] = bad
    with pytest.raises(ConfigurationError, match=r"client 4's data: labels must be in 0..2"):
        TRAINERS[name](model=model, x=x, y=y, client=4)


@pytest.mark.parametrize("select", [None, [], [0, 1]])
def test_a_sum_refuses_by_all_labels_whichever_are_selected(softmax, records, select):
    x, y = records(n=30)
    y[17] = 3
    clipped = ClippedSum(model=softmax(), input_shape=(6,), clip_norm=1.0)
    chosen = None if select is None else np.array(select, dtype=np.int64)
    with pytest.raises(ConfigurationError, match="found labels from 0 to 3"):
        clipped.of(x, y, chosen)


def test_evaluation_refuses_a_label_without_an_output(softmax, records):
    x, y = records(n=5)
    y[0] = 7
    with pytest.raises(ConfigurationError, match="this model has 3 outputs"):
        evaluate(softmax(), x, y)


def test_the_number_of_outputs_is_asked_once_and_leaves_the_model_as_it_was(records):
    asked = []

    class Counting(nn.Linear):
        def forward(self, x):
            asked.append((tuple(x.shape), self.training))
            return super().forward(x)

    model = FlatModel(Counting(6, 3))
    model.module.train()
    before = model.vector()
    assert [model.classes((6,)) for _ in range(3)] == [3, 3, 3]
    assert asked == [((2, 6), False)]
    assert model.module.training
    assert np.array_equal(model.vector(), before)
    with pytest.raises(ConfigurationError, match=r"records of shape \(5,\)"):
        model.classes((5,))
    assert model.module.training
