"""Small records and models shared by the tests of training."""

import numpy as np
import pytest

from securefl.training.local import FlatModel, limit_threads
from securefl.training.models import build

limit_threads()


@pytest.fixture
def records():
    """`records(n, features, classes, seed)`: a small separable problem, float32 and int64."""

    def make(n=40, features=6, classes=3, seed=0):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, classes, n)
        centres = np.random.default_rng(99).normal(0, 1.5, (classes, features))
        x = (centres[y] + rng.normal(0, 1, (n, features))).astype(np.float32)
        return x, y.astype(np.int64)

    return make


@pytest.fixture
def softmax():
    """`softmax(features, classes)`: a fresh FlatModel of one linear layer, not at zero."""

    def make(features=6, classes=3, seed=0):
        model = FlatModel(build("softmax", input_shape=(features,), classes=classes, seed=seed))
        rng = np.random.default_rng(seed)
        model.load(rng.normal(0, 0.3, model.dim).astype(np.float32))
        return model

    return make


@pytest.fixture
def mlp():
    """`mlp(features, classes)`: a fresh FlatModel with one hidden layer."""

    def make(features=6, classes=3, seed=0):
        return FlatModel(build("mlp", input_shape=(features,), classes=classes, seed=seed))

    return make
