"""Gradient inversion by optimisation, on a small convolutional network with sigmoids.

The attacker looks for an image whose gradient is the observed one. Two objectives: the squared
distance by L-BFGS (Zhu, Liu, Han 2019, "Deep Leakage from Gradients", with the label read off
first: Zhao, Mopuri, Bilen 2020, "iDLG"), and the cosine distance plus total variation by signed
Adam (Geiping et al. 2020, "Inverting Gradients"). Float64 throughout. It knows the network and one
observed vector; it never sees a record.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from kit.data import CLASSES
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["Net", "cosine", "fresh_convnet", "lbfgs", "record_gradients"]

Floats = NDArray[np.float64]
Net = nn.Sequential
_TV = 1e-3


def fresh_convnet(seed: int) -> nn.Sequential:
    """8 x 8 image, two convolutions of 12 channels, one linear layer; weights in +-0.5."""
    made = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 3, padding=1, stride=2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(12 * 16, CLASSES),
    ).double()
    with torch.no_grad():
        for p in net.parameters():
            p.uniform_(-0.5, 0.5, generator=made)
    return net


def _gradient(net: nn.Module, x: Tensor, y: Tensor, *, differentiable: bool = False) -> Tensor:
    """Of the mean cross-entropy, flat."""
    loss = nn.functional.cross_entropy(net(x.reshape(-1, 1, 8, 8)), y)
    parts = torch.autograd.grad(loss, tuple(net.parameters()), create_graph=differentiable)
    return torch.cat([p.reshape(-1) for p in parts])


def record_gradients(net: nn.Module, x: Floats, y: NDArray[np.int64]) -> Floats:
    """One client's gradient per record; float64[n, d]."""
    images, labels = torch.tensor(x), torch.tensor(y)
    each = [_gradient(net, images[i : i + 1], labels[i : i + 1]) for i in range(len(x))]
    return np.asarray(torch.stack(each).numpy())


def read_label(observed: Tensor) -> Tensor:
    """The class whose last bias gradient is the lowest: p - 1 is negative, p is not."""
    return observed[-CLASSES:].argmin()[None]


def lbfgs(
    net: nn.Module,
    observed: Floats,
    start: Sequence[int],
    *,
    labels: Sequence[int] | None = None,
    weight: float = 1.0,
    steps: int = 8,
) -> Floats:
    """Images whose (weighted) gradient is the observed vector; float64[k, 64], or [64] for one.

    Args:
        net: the network.
        observed: float64[d].
        start: seeds of the first guess.
        labels: of the images, one each; by default one image whose label is read off.
        weight: observed = weight times the gradient of the mean loss.
        steps: outer steps of 20 iterations each.
    """
    target = torch.tensor(observed) / weight
    y = read_label(target) if labels is None else torch.tensor(list(labels))
    made = torch.Generator().manual_seed(
        int(np.random.SeedSequence(list(start)).generate_state(1)[0])
    )
    x = torch.rand((len(y), 64), generator=made, dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [x], lr=1.0, max_iter=20, history_size=50, tolerance_grad=1e-14, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    scale = 1.0 / float(target.square().sum())

    def closure() -> Tensor:
        optimiser.zero_grad()
        distance = scale * (_gradient(net, x, y, differentiable=True) - target).square().sum()
        distance.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
        return distance

    for _ in range(steps):
        left = optimiser.step(closure)  # type: ignore[no-untyped-call]  # torch ships no type for it
        if float(left.detach()) < 1e-22:
            break
    found = np.asarray(x.detach().numpy())
    return found[0] if labels is None else found


def cosine(net: nn.Module, observed: Floats, start: Sequence[int], *, steps: int) -> Floats:
    """The image whose gradient points the same way and that varies least; float64[64]."""
    target = torch.tensor(observed)
    y = read_label(target)
    made = torch.Generator().manual_seed(
        int(np.random.SeedSequence(list(start)).generate_state(1)[0])
    )
    x = torch.rand((1, 64), generator=made, dtype=torch.float64).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.1)
    falling = torch.optim.lr_scheduler.MultiStepLR(
        optimiser, [int(steps * f) for f in (3 / 8, 5 / 8, 7 / 8)], gamma=0.1
    )
    unit = target / target.norm()
    for _ in range(steps):
        optimiser.zero_grad()
        gradient = _gradient(net, x, y, differentiable=True)
        image = x.reshape(8, 8)
        variation = image.diff(dim=0).abs().mean() + image.diff(dim=1).abs().mean()
        (1 - gradient @ unit / gradient.norm() + _TV * variation).backward()
        assert x.grad is not None
        x.grad.sign_()
        optimiser.step()
        falling.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return np.asarray(x.detach().numpy()[0])
