"""Small models for the data sets at hand, with an initialisation that is a function of a seed.

``cnn26k`` is the convolutional network that Papernot et al. (2021, *Tempered sigmoid activations
for deep learning with differential privacy*) and Opacus' MNIST example use; with differential
privacy take ``activation="tanh"``, whose bounded outputs keep gradients small. ``cnn1m6`` is the
network of McMahan et al. (2017, section 3). ``scattering_linear`` is a linear layer on the fixed
features of ``scattering`` (Tramèr and Boneh 2021), which are computed beforehand. No model keeps
running statistics or mixes records, so each works with per-record clipping. The initial model is
public. This module knows no data and no training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

import torch
from torch import nn

from securefl.errors import ConfigurationError

__all__ = ["Activation", "ModelName", "build"]

_E = TypeVar("_E", bound=StrEnum)


class ModelName(StrEnum):
    """The models that :func:`build` knows."""

    SOFTMAX = "softmax"
    LOGISTIC = "logistic"
    MLP = "mlp"
    CNN26K = "cnn26k"
    CNN1M6 = "cnn1m6"
    SCATTERING_LINEAR = "scattering_linear"


class Activation(StrEnum):
    """Between layers: relu, or tanh with differential privacy."""

    RELU = "relu"
    TANH = "tanh"


_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    Activation.RELU: nn.ReLU,
    Activation.TANH: nn.Tanh,
}


def build(
    name: ModelName | str,
    *,
    input_shape: tuple[int, ...],
    classes: int,
    seed: int,
    activation: Activation | str = Activation.RELU,
) -> nn.Module:
    """A model from input_shape (without the batch axis) to logits float32[n, classes].

    Args:
        name: ``softmax``: one linear layer, initially zero. ``logistic``: the same for two
            classes. ``mlp``: one hidden layer of 128. ``cnn26k``, ``cnn1m6``: 26,010 and 1,663,370
            parameters for 1 x 28 x 28 images and 10 classes. ``scattering_linear``: like softmax,
            on records that :func:`securefl.training.scattering.prepared` made.
        input_shape: for example (64,) or (1, 28, 28).
        classes: at least 2.
        seed: of the initial parameters. Torch's global generators are left as they were.
        activation: between the layers of ``mlp``, ``cnn26k`` and ``cnn1m6``.

    Raises:
        ConfigurationError: on an unknown name, or a shape that the model cannot take.

    >>> model = build("softmax", input_shape=(64,), classes=10, seed=0)
    >>> sum(p.numel() for p in model.parameters())
    650
    """
    kind, act = _member(ModelName, name), _ACTIVATIONS[_member(Activation, activation)]
    if classes < 2 or not input_shape or min(input_shape) < 1:
        raise ConfigurationError(
            f"a classifier needs at least 2 classes and a positive input shape, found {classes} "
            f"classes and {input_shape}"
        )
    if kind is ModelName.LOGISTIC and classes != 2:
        raise ConfigurationError(f"logistic regression has 2 classes, found {classes}; use softmax")
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also reseed the accelerators, which are not forked here.
        torch.default_generator.manual_seed(seed)
        if kind is ModelName.MLP:
            return _mlp(input_shape, classes, act)
        if kind is ModelName.CNN26K:
            return _cnn26k(input_shape, classes, act)
        if kind is ModelName.CNN1M6:
            return _cnn1m6(input_shape, classes, act)
        if kind is ModelName.SCATTERING_LINEAR:
            _refuse_images(input_shape)
        return _softmax(input_shape, classes)


def _softmax(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    linear = nn.Linear(math.prod(input_shape), classes)
    # The loss is convex: zero is the neutral start, and no noise budget goes into undoing a draw.
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear if len(input_shape) == 1 else nn.Sequential(nn.Flatten(), linear)


def _mlp(input_shape: tuple[int, ...], classes: int, act: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(input_shape), 128), act(), nn.Linear(128, classes)
    )


def _refuse_images(input_shape: tuple[int, ...]) -> None:
    if len(input_shape) != 1:
        raise ConfigurationError(
            "scattering_linear takes scattering features, found records of shape "
            f"{input_shape}; pass the data through securefl.training.scattering.prepared first"
        )


def _check_mnist(name: str, input_shape: tuple[int, ...], classes: int) -> None:
    if input_shape != (1, 28, 28) or classes != 10:
        raise ConfigurationError(
            f"{name} takes 1 x 28 x 28 images of 10 classes, found {input_shape} and {classes}"
        )


def _cnn26k(input_shape: tuple[int, ...], classes: int, act: Callable[[], nn.Module]) -> nn.Module:
    _check_mnist("cnn26k", input_shape, classes)
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=8, stride=2, padding=3),
        act(),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(16, 32, kernel_size=4, stride=2),
        act(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(512, 32),
        act(),
        nn.Linear(32, classes),
    )


def _cnn1m6(input_shape: tuple[int, ...], classes: int, act: Callable[[], nn.Module]) -> nn.Module:
    _check_mnist("cnn1m6", input_shape, classes)
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=5, padding=2),
        act(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=5, padding=2),
        act(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 512),
        act(),
        nn.Linear(512, classes),
    )


def _member(kind: type[_E], value: str) -> _E:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(kind)
        raise ConfigurationError(f"expected one of {known}; found {value!r}") from None
