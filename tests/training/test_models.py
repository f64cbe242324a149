"""The models have the announced shapes, depend on their seed, and disturb no generator."""

import numpy as np
import pytest
import torch

from securefl.errors import ConfigurationError
from securefl.training.local import FlatModel
from securefl.training.models import build

CASES = [
    ("softmax", (64,), 10, 650),
    ("softmax", (1, 28, 28), 10, 7850),
    ("logistic", (30,), 2, 62),
    ("mlp", (1, 28, 28), 10, 101_770),
    ("cnn26k", (1, 28, 28), 10, 26_010),
    ("cnn1m6", (1, 28, 28), 10, 1_663_370),
    ("scattering_linear", (3969,), 10, 39_700),
]


@pytest.mark.parametrize(("name", "shape", "classes", "parameters"), CASES)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_each_model_has_its_number_of_parameters_and_classes(
    name, shape, classes, parameters, activation
):
    module = build(name, input_shape=shape, classes=classes, seed=0, activation=activation)
    assert FlatModel(module).dim == parameters
    assert module(torch.zeros(3, *shape)).shape == (3, classes)


@pytest.mark.parametrize("name", ["mlp", "cnn26k"])
def test_the_initial_model_is_a_function_of_the_seed(name):
    def vector(seed):
        module = build(name, input_shape=(1, 28, 28), classes=10, seed=seed)
        return FlatModel(module).vector()

    torch.manual_seed(1)
    first = vector(7)
    torch.manual_seed(2)
    assert np.array_equal(first, vector(7))
    assert not np.array_equal(first, vector(8))


def test_the_softmax_model_starts_at_zero():
    assert not FlatModel(build("softmax", input_shape=(4,), classes=3, seed=5)).vector().any()


def test_building_a_model_leaves_torchs_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build("mlp", input_shape=(8,), classes=3, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_the_activation_is_used():
    for name, kind in (("relu", torch.nn.ReLU), ("tanh", torch.nn.Tanh)):
        module = build("mlp", input_shape=(4,), classes=2, seed=0, activation=name)
        assert any(isinstance(layer, kind) for layer in module)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "message"),
    [
        (
            "resnet",
            (4,),
            2,
            "expected one of softmax, logistic, mlp, cnn26k, cnn1m6, scattering_linear; "
            "found 'resnet'",
        ),
        ("softmax", (4,), 1, "at least 2 classes"),
        ("softmax", (), 2, "positive input shape"),
        ("softmax", (0,), 2, "positive input shape"),
        ("logistic", (4,), 3, "2 classes"),
        ("cnn26k", (64,), 10, "28 x 28"),
        ("cnn1m6", (1, 28, 28), 2, "28 x 28"),
        ("scattering_linear", (1, 28, 28), 10, "scattering features"),
    ],
)
def test_an_impossible_model_is_refused(name, shape, classes, message):
    with pytest.raises(ConfigurationError, match=message):
        build(name, input_shape=shape, classes=classes, seed=0)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ConfigurationError, match="relu, tanh; found 'gelu'"):
        build("mlp", input_shape=(4,), classes=2, seed=0, activation="gelu")
