"""The sum of clipped per-record gradients: what noise is added to, without the noise.

``sum_i g_i min(1, C'/||g_i||)`` over a batch, as in algorithm 1 of Abadi et al. (2016, *Deep
learning with differential privacy*), lines "compute gradient" and "clip gradient". Four back ends
compute the same sum; each clips every record by itself and none ever clips a batch:

- ``closed_form``: one linear layer under cross-entropy has ||g|| = ||p - y|| sqrt(||x||^2 + 1);
- ``ghost``: norms without gradients where layers allow it, then one weighted backward pass, through
  Opacus (Goodfellow 2015, *Efficient per-example gradient computations*; Li et al. 2022, *Large
  language models can be strong differentially private learners*);
- ``hooks``: per-record gradients through Opacus, a chunk at a time;
- ``vmap``: per-record gradients of the whole model as one function, through ``torch.func``.

``auto`` takes the closed form where it applies, ``ghost`` for more than :data:`GHOST_ABOVE`
parameters (per-record gradients of a chunk would leave the caches), else ``hooks``; what a model
cannot have falls back to ``hooks``, then ``vmap``. Before a back end serves a model it has to
reproduce a plain loop's clipped sum of three fixed probes, and the model's outputs on them must not
depend on the other records of the batch. So a layer that goes round the hooks, and one that mixes
records, are found even if nobody knows them.

The adversary chooses records, and wants one of them to move the sum by more than C. The bound is
for real numbers plus what floats add: records are clipped to C' = C (1 - 2^-10), norms and sums
over records are float64 (``ghost`` sums a chunk in float32; :meth:`ClippedSum.eta` says what that
may add). A record whose gradient is not finite counts as zero: a bounded contribution like any
other, where NaN would announce it. Not covered: kernels of a chip whose last bits for one record
depend on the rest of the batch. The sum is not private. This module draws no coins, and knows no
noise, codec or other client.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleModuleFastGradientClipping,
)
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd

from securefl.errors import ConfigurationError
from securefl.training.local import FlatModel, as_tensors, check_labels, check_positive

__all__ = [
    "CLIP_SLACK",
    "GHOST_ABOVE",
    "BackEnd",
    "ClippedGradients",
    "ClippedSum",
    "clipped_gradient_sum",
]

CLIP_SLACK: Final = 2.0**-10
"""Records are clipped to C (1 - 2^-10), noise is scaled to C: norms and sums of floats may be off
by less than the difference, so that the bound C holds for the numbers that are really added."""

GHOST_ABOVE: Final = 32_768
"""Parameters above which ``auto`` takes ``ghost``: gradients of 64 records then pass 8 MiB."""

_ROWS: Final = 256
"""Records that the closed form holds in float64 at once."""

_COLUMNS: Final = 16_384
"""Columns of a matrix of per-record gradients that are float64 at once."""

_SAFE: Final = (1e-15, 1e15)
"""Norms that a product of float32 squares states truly; others are computed one by one."""


class BackEnd(StrEnum):
    """How per-record norms and the clipped sum are computed."""

    AUTO = "auto"
    CLOSED_FORM = "closed_form"
    GHOST = "ghost"
    HOOKS = "hooks"
    VMAP = "vmap"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClippedGradients:
    """A clipped sum. Everything in it is private until noise is added.

    Attributes:
        total: float64[d] in the order of the flat vector, norm at most count times C.
        count: records summed. Never sent: it tells the size of the sample.
        loss: sum of the records' losses at the loaded parameters (nats), NaN where one is.
    """

    total: NDArray[np.float64] = field(repr=False)
    count: int = field(repr=False)
    loss: float = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClippedSum:
    """Sums clipped gradients of a model's cross-entropy loss at the parameters it has loaded.

    Attributes:
        model: the worker's model, from float32[n, *input_shape] to logits [n, classes].
        input_shape: shape of one record.
        clip_norm: C > 0, bound on one record's contribution (L2).
        backend: which one to use; after construction, the one that is used.
        chunk: most records whose gradients are held at once, >= 1.

    Raises:
        ConfigurationError: if a parameter is out of range, if a layer mixes records, or if the back
            end (for ``auto``: every back end) cannot do this model; the message says why.

    >>> from securefl.training.models import build
    >>> model = FlatModel(build("softmax", input_shape=(2,), classes=2, seed=0))
    >>> clipped = ClippedSum(model=model, input_shape=(2,), clip_norm=1.0)
    >>> clipped.backend.value
    'closed_form'
    >>> x, y = np.array([[3.0, 4.0]], dtype=np.float32), np.array([0])
    >>> sums = clipped.of(x, y)  # p - y = (-.5, .5): norm sqrt(26) / sqrt(2), hence clipped
    >>> sums.count, bool(abs(np.linalg.norm(sums.total) - (1 - CLIP_SLACK)) < 1e-12)
    (1, True)
    """

    model: FlatModel
    input_shape: tuple[int, ...]
    clip_norm: float
    backend: BackEnd = BackEnd.AUTO
    chunk: int = 64

    def __post_init__(self) -> None:
        check_positive("clip_norm", self.clip_norm)
        if isinstance(self.chunk, bool) or self.chunk < 1:
            raise ConfigurationError(f"chunk must be at least 1, found {self.chunk}")
        if self.backend not in list(BackEnd):
            raise ConfigurationError(
                f"backend: expected one of {', '.join(BackEnd)}; found {self.backend!r}"
            )
        wanted, shape = BackEnd(self.backend), tuple(self.input_shape)
        object.__setattr__(self, "input_shape", shape)
        object.__setattr__(self, "backend", _resolve(self.model, shape, wanted))

    def of(
        self,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        select: NDArray[np.int64] | None = None,
    ) -> ClippedGradients:
        """The clipped sum over the records, or over those that ``select`` names.

        Args:
            x: float32[n, *input_shape]. A record with NaN or infinity counts as zero.
            y: int64[n], labels.
            select: int64[k], indices of records; they are gathered a chunk at a time. None takes
                all. No records give zero.

        Raises:
            ConfigurationError: on another shape, or if any label, selected or not, has no output.
        """
        if tuple(x.shape[1:]) != self.input_shape or len(x) != len(y):
            raise ConfigurationError(
                f"expected records of shape {self.input_shape} with a label each, found x "
                f"{x.shape} and y {y.shape}"
            )
        if len(y):
            # All of them, whichever are selected: an error must not follow the sample.
            check_labels(self.model, x, y, client=None)
        tensor_x, tensor_y = as_tensors(x, y)
        index = None if select is None else torch.from_numpy(np.asarray(select, dtype=np.int64))
        count = len(y) if index is None else len(index)
        total = torch.zeros(self.model.dim, dtype=torch.float64, device=self.model.device)
        loss = 0.0
        size = _ROWS if self.backend is BackEnd.CLOSED_FORM else self.chunk
        with _session(self.model, self.backend) as kernel:
            for first in range(0, count, size):
                part: Any = slice(first, first + size)
                part = part if index is None else index[part]
                records, labels = (t[part].to(total.device) for t in (tensor_x, tensor_y))
                added, lost = kernel(records, labels, self.limit)
                total += added
                loss += lost
        return ClippedGradients(total=total.cpu().numpy(), count=count, loss=loss)

    @property
    def limit(self) -> float:
        """C' = C (1 - 2^-10), the norm that records are scaled down to."""
        return self.clip_norm * (1.0 - CLIP_SLACK)

    def eta(self, batch: int) -> float:
        """What rounding may add to one record's effect on a sum of ``batch`` records, over C.

        Zero-out adjacency: the neighbour has a zero in the record's place, so that only the sums
        the record is in are rounded otherwise. A sum of m vectors of norm at most C in arithmetic
        of unit roundoff u is off by at most m u times m C, on either side of the comparison:
        2 m^2 u. ``ghost`` has u = 2^-24 and m = ``chunk`` (more inside convolutions: a stated
        residual), the others u = 2^-53 and m = batch. Were the record removed, all later ones would
        move up, and ``ghost`` would have batch/m times as much.
        """
        if self.backend is BackEnd.GHOST:
            return 2.0 * min(batch, self.chunk) ** 2 * 2.0**-24
        return 2.0 * batch**2 * 2.0**-53

    def sensitivity(self, batch: int) -> float:
        """Most that one record moves a sum of up to ``batch`` records (L2): C' + eta C."""
        return self.limit + self.eta(batch) * self.clip_norm

    def inflation(self, batch: int) -> float:
        """Factor on C for the noise: 1 while eta takes at most half the slack, else 1 + eta.

        The other half is for whoever rotates and rounds the sum afterwards. It is 1 for ``ghost``
        with chunks of up to 64, and for the others with batches of up to 1.4 million.
        """
        eta = self.eta(batch)
        return 1.0 if eta <= CLIP_SLACK / 2 else 1.0 + eta


def clipped_gradient_sum(
    model: FlatModel,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    clip_norm: float,
    chunk: int = 64,
) -> NDArray[np.float64]:
    """The clipped sum over the given records at the loaded parameters; see :class:`ClippedSum`.

    float64[d] in the order of the flat vector. Without noise it is not private.
    """
    shape = tuple(x.shape[1:])
    clipped = ClippedSum(model=model, input_shape=shape, clip_norm=clip_norm, chunk=chunk)
    return clipped.of(x, y).total


# ---------------------------------------------------------------- back ends

_Kernel = Callable[[Tensor, Tensor, float], tuple[Tensor, float]]
"""From x [m, ...], y [m] and C' to the clipped sum float64[d] and the sum of losses."""


@contextmanager
def _session(model: FlatModel, backend: BackEnd) -> Iterator[_Kernel]:
    """The kernel of one back end; hooks are awake only in here."""
    if backend is BackEnd.CLOSED_FORM:
        yield partial(_closed_form, model)
    elif backend is BackEnd.VMAP:
        _unwrap(model)  # torch.func cannot pass through Opacus' hooks, not even sleeping ones
        model.module.train()
        yield partial(_vmap, model)
    else:
        with _awake(model, backend) as wrapped:
            yield partial(_ghost if backend is BackEnd.GHOST else _hooks, model, wrapped)


def _closed_form(model: FlatModel, x: Tensor, y: Tensor, limit: float) -> tuple[Tensor, float]:
    """Softmax regression: g = (p - y) (x, 1)^T, so no gradient is ever formed. All in float64."""
    weight = model.parameters[0].detach().double()
    records = x.flatten(start_dim=1).double()
    logits = records @ weight.T
    squares = records.square().sum(dim=1)
    biased = len(model.parameters) > 1
    if biased:
        logits += model.parameters[1].detach().double()
        squares += 1.0
    residual = torch.softmax(logits, dim=1)
    # Not cross_entropy: it would form the logarithms again.
    losses = -residual.gather(1, y[:, None]).clamp_min(torch.finfo(torch.float64).tiny).log()
    residual[torch.arange(len(y), device=y.device), y] -= 1.0
    norms = squares.sqrt() * residual.norm(dim=1)
    # Beyond float32 the other back ends see infinity; the rule is one for all.
    fits = norms.float().isfinite() & logits.float().isfinite().all(dim=1)
    if not bool(fits.all()):
        records = torch.where(fits[:, None], records, 0.0)
        residual = torch.where(fits[:, None], residual, 0.0)
        norms = torch.where(fits, norms, 0.0)
    residual *= _factors(norms, limit)[:, None]
    parts = [(residual.T @ records).reshape(-1)]
    if biased:
        parts.append(residual.sum(dim=0))
    return torch.cat(parts), float(losses.sum())


def _hooks(
    model: FlatModel, wrapped: Any, x: Tensor, y: Tensor, limit: float
) -> tuple[Tensor, float]:
    """Per-record gradients from Opacus' hooks."""
    loss = functional.cross_entropy(wrapped(x), y, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    parts = [_grad_sample(p, len(y)) for p in model.parameters]
    _drop(model)
    return _weighted(parts, limit), loss.item()


def _vmap(model: FlatModel, x: Tensor, y: Tensor, limit: float) -> tuple[Tensor, float]:
    """Per-record gradients of the model as one function of its parameters and one record."""
    names = [slot.name for slot in model.layout]
    parameters = {n: p.detach() for n, p in zip(names, model.parameters, strict=True)}

    def loss_of(values: dict[str, Tensor], record: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model.module, values, (record[None],))
        return functional.cross_entropy(logits, label[None])

    each = vmap(grad_and_value(loss_of), in_dims=(None, 0, 0), randomness="different")
    gradients, losses = each(parameters, x, y)
    parts = [gradients[name].flatten(start_dim=1) for name in names]
    return _weighted(parts, limit), float(losses.detach().sum())


def _ghost(
    model: FlatModel, wrapped: Any, x: Tensor, y: Tensor, limit: float
) -> tuple[Tensor, float]:
    """Norms first, then the gradient of the losses weighted by each record's factor."""
    losses = functional.cross_entropy(wrapped(x), y, reduction="none")
    loss_sum = float(losses.detach().sum())
    losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]  # as above
    squares = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    for p in model.parameters:
        norms = getattr(p, "_norm_sample", None)  # a parameter that no layer used has none
        if norms is not None:
            squares += norms.double().square()
    norms = squares.sqrt()
    _drop(model)
    plain = (norms > _SAFE[0]) & (norms < _SAFE[1])
    if bool(plain.all()):
        return _weighted_backward(model, wrapped, losses, norms, limit), float(
            losses.detach().sum()
        )
    # Overflow of one record would turn the weighted sum into NaN, and an underflow would hide a
    # norm: those go one by one, and the pass is repeated for the rest.
    total = torch.zeros(model.dim, dtype=torch.float64, device=y.device)
    wrapped.disable_hooks()
    if bool(plain.any()):
        rest = functional.cross_entropy(wrapped(x[plain]), y[plain], reduction="none")
        total += _weighted_backward(model, wrapped, rest, norms[plain], limit)
    for i in torch.nonzero(~plain).flatten():
        loss = functional.cross_entropy(wrapped(x[i : i + 1]), y[i : i + 1])
        total += _weighted([_gradient(model, loss)[None]], limit)
    wrapped.enable_hooks()
    return total, loss_sum


def _weighted_backward(
    model: FlatModel, wrapped: Any, losses: Tensor, norms: Tensor, limit: float
) -> Tensor:
    wrapped.disable_hooks()
    loss = (_factors(norms, limit).to(losses.dtype) * losses).sum()
    total = _gradient(model, loss).double()
    wrapped.enable_hooks()
    return total


def _gradient(model: FlatModel, loss: Tensor) -> Tensor:
    """float32[d]; zero for parameters that the model does not use."""
    parts = torch.autograd.grad(loss, model.parameters, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


def _weighted(parts: list[Tensor], limit: float) -> Tensor:
    """The clipped sum float64[d] of per-record gradients, given as [m, size] per parameter."""
    # Float64 copies of a block each: one of a whole layer costs ten times as much, in page faults.
    blocks = [p[:, i : i + _COLUMNS] for p in parts for i in range(0, p.shape[1], _COLUMNS)]
    squares = [torch.linalg.vector_norm(b, dim=1, dtype=torch.float64).square() for b in blocks]
    norms = torch.stack(squares).sum(dim=0).sqrt()
    finite = norms.isfinite()
    if not bool(finite.all()):
        blocks = [torch.where(finite[:, None], b, 0.0) for b in blocks]
        norms = torch.where(finite, norms, 0.0)
    factors = _factors(norms, limit)
    return torch.cat([factors @ b.double() for b in blocks])


def _factors(norms: Tensor, limit: float) -> Tensor:
    """min(1, C'/||g||), 1 for the zero gradient."""
    return limit / norms.clamp_min(limit)


def _grad_sample(parameter: Tensor, count: int) -> Tensor:
    """Opacus' per-record gradients as [m, size]; zero for a parameter that no layer used."""
    found: Tensor | list[Tensor] | None = getattr(parameter, "grad_sample", None)
    if found is None:
        return parameter.new_zeros((count, parameter.numel()))
    if isinstance(found, list) or len(found) != count:
        raise NotImplementedError("gradients do not belong to one record each")
    return found.flatten(start_dim=1)


# ---------------------------------------------------------------- Opacus' hooks


def _linear_norms(layer: Any, activations: list[Tensor], backprops: Tensor) -> dict[Any, Tensor]:
    """||b a^T|| = ||b|| ||a|| for one vector per record.

    Several vectors per record would need a Gram matrix, whose terms cancel in floats and then
    understate the norm: their gradients are formed instead.
    """
    if backprops.dim() != 2:
        return _formed_norms(layer, activations, backprops)
    b = torch.linalg.vector_norm(backprops, dim=1, dtype=torch.float64)
    a = torch.linalg.vector_norm(activations[0], dim=1, dtype=torch.float64)
    norms = {layer.weight: a * b}
    return norms if layer.bias is None else {**norms, layer.bias: b}


def _formed_norms(layer: Any, activations: list[Tensor], backprops: Tensor) -> dict[Any, Tensor]:
    """Norms of one layer's per-record gradients, which live no longer than this call."""
    formed = GradSampleModule.GRAD_SAMPLERS[type(layer)](layer, activations, backprops)
    return {
        p: torch.linalg.vector_norm(g.flatten(start_dim=1), dim=1, dtype=torch.float64)
        for p, g in formed.items()
    }


class _GhostModule(GradSampleModuleFastGradientClipping):  # type: ignore[misc]  # no types: Any
    """Opacus' ghost clipping with norms in float64, and without Gram matrices."""

    NORM_SAMPLERS = {  # noqa: RUF012  # the parent's name; read only
        **dict.fromkeys(GradSampleModule.GRAD_SAMPLERS, _formed_norms),
        nn.Linear: _linear_norms,
    }


# One wrapper per model at a time: Opacus refuses to add its hooks to a module twice.
_WRAPPED: WeakKeyDictionary[FlatModel, tuple[BackEnd, Any]] = WeakKeyDictionary()


def _wrap(model: FlatModel, backend: BackEnd) -> Any:
    """The model with the back end's hooks, asleep."""
    kind, wrapped = _WRAPPED.get(model, (None, None))
    if kind is not backend:
        _unwrap(model)
        wrapper = _GhostModule if backend is BackEnd.GHOST else GradSampleModule
        wrapped = wrapper(model.module, loss_reduction="sum")
        wrapped.disable_hooks()
        _WRAPPED[model] = (backend, wrapped)
    return wrapped


def _unwrap(model: FlatModel) -> None:
    """Takes the hooks off, with everything that Opacus glued onto parameters and layers."""
    if model not in _WRAPPED:
        return
    _WRAPPED.pop(model)[1].remove_hooks()
    for layer in model.module.modules():
        for name in ("activations", "max_batch_len"):
            layer.__dict__.pop(name, None)
    for p in model.parameters:
        p.grad = None
        for name in ("grad_sample", "_current_grad_sample", "_norm_sample", "_forward_counter"):
            p.__dict__.pop(name, None)


@contextmanager
def _awake(model: FlatModel, backend: BackEnd) -> Iterator[Any]:
    """The wrapper with its hooks switched on; off again afterwards, and gone after an error."""
    wrapped = _wrap(model, backend)
    wrapped.train()
    wrapped.enable_hooks()
    try:
        with warnings.catch_warnings():
            # The first layer's input needs no gradient; torch mentions it, Opacus relies on it.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield wrapped
    except BaseException:
        _unwrap(model)  # half a pass leaves activations and counters that would poison the next
        raise
    finally:
        wrapped.disable_hooks()
        _drop(model)


def _drop(model: FlatModel) -> None:
    """Forgets gradients, whole and per record."""
    for p in model.parameters:
        p.grad = None
        p.grad_sample = None  # type: ignore[attr-defined]  # glued on by Opacus
        p.__dict__.pop("_norm_sample", None)


# ---------------------------------------------------------------- which one

_RESOLVED: WeakKeyDictionary[FlatModel, dict[tuple[tuple[int, ...], BackEnd], BackEnd]] = (
    WeakKeyDictionary()
)


def _resolve(model: FlatModel, shape: tuple[int, ...], wanted: BackEnd) -> BackEnd:
    """The first candidate that passes its probe; remembered per model and shape."""
    known = _RESOLVED.setdefault(model, {})
    if (shape, wanted) in known:
        return known[shape, wanted]
    _unwrap(model)
    _refuse_known_mixers(model)
    reasons = []
    with _probe(model, shape) as probe:
        for candidate in _candidates(model, wanted):
            reason = _fault(model, candidate, probe)
            if reason is None:
                known[shape, wanted] = candidate
                return candidate
            reasons.append(f"{candidate.value}: {reason}")
    raise ConfigurationError(
        "this model cannot be trained with per-record privacy, the gradients of single records "
        f"could not be had ({'; '.join(reasons)})"
    )


def _candidates(model: FlatModel, wanted: BackEnd) -> tuple[BackEnd, ...]:
    if wanted is BackEnd.CLOSED_FORM and not _is_softmax_linear(model.module):
        raise ConfigurationError(
            "back end closed_form needs a model of one linear layer with nothing but a Flatten "
            f"before it, found {type(model.module).__name__}; take auto"
        )
    if wanted is not BackEnd.AUTO:
        return (wanted,)
    general = (BackEnd.HOOKS, BackEnd.VMAP)
    if _is_softmax_linear(model.module):
        return (BackEnd.CLOSED_FORM, *general)
    return (BackEnd.GHOST, *general) if model.dim > GHOST_ABOVE else general


def _is_softmax_linear(module: nn.Module) -> bool:
    layers = list(module) if type(module) is nn.Sequential else [module]
    *before, last = layers or [module]
    return (
        type(last) is nn.Linear
        and all(type(b) is nn.Flatten and (b.start_dim, b.end_dim) == (1, -1) for b in before)
        and all(p.requires_grad for p in module.parameters())
    )


def _refuse_known_mixers(model: FlatModel) -> None:
    model.module.train()  # Opacus validates modules in training mode only
    problems = ModuleValidator.validate(model.module, strict=False)
    if problems:
        raise ConfigurationError(
            "this model cannot be trained with per-record privacy: "
            + "; ".join(str(problem) for problem in problems)
            + ". Use GroupNorm instead of BatchNorm, and no layer that mixes records"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Probe:
    """Three fixed records, and the clipped sum of their gradients from a plain loop."""

    x: Tensor
    y: Tensor
    limit: float
    expected: Tensor


@contextmanager
def _probe(model: FlatModel, shape: tuple[int, ...]) -> Iterator[_Probe]:
    """The probes, at fixed parameters near the loaded ones, which come back bit for bit.

    Nearby, because many a fault does not show at zero weights. Dropout is off meanwhile, by its
    rate, since the back ends switch the model to training.

    Raises:
        ConfigurationError: if the model cannot take such records, or its outputs for one record
            depend on the others.
    """
    saved = model.flat.clone()
    dropouts = [m for m in model.module.modules() if isinstance(m, _DropoutNd)]
    rates = [m.p for m in dropouts]
    angles = torch.arange(model.dim, dtype=torch.float32, device=model.device)
    model.flat.add_(0.05 * torch.cos(1.7 * angles))
    for m in dropouts:
        m.p = 0.0
    try:
        yield _made_probe(model, shape)
    finally:
        model.flat.copy_(saved)
        for m, rate in zip(dropouts, rates, strict=True):
            m.p = rate


def _made_probe(model: FlatModel, shape: tuple[int, ...]) -> _Probe:
    angles = 0.7 * torch.arange(3 * math.prod(shape), dtype=torch.float32) + 0.3
    scales = torch.tensor([0.5, 1.0, 2.0]).view(3, *[1] * len(shape))
    x = (scales * torch.cos(angles).view(3, *shape)).to(model.device)
    try:
        together = model.module(x)
        alone = [model.module(x[i : i + 1]) for i in range(3)]
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ConfigurationError(
            f"the model cannot take records of shape {shape}: {error}"
        ) from error
    off = float((together - torch.cat(alone)).detach().abs().max())
    if not off <= 1e-3 * float(together.detach().abs().max()):
        raise ConfigurationError(
            "this model cannot be trained with per-record privacy: its outputs for one record "
            f"change with the other records of the batch, by up to {off:.3g} on probes; use no "
            "layer that mixes records"
        )
    y = torch.arange(3, device=x.device) % together.shape[1]
    gradients = torch.stack(
        [_gradient(model, functional.cross_entropy(alone[i], y[i : i + 1])) for i in range(3)]
    )
    norms = torch.linalg.vector_norm(gradients, dim=1, dtype=torch.float64)
    # Every record is clipped, so that each norm enters the sum.
    limit = 0.5 * float(norms.min()) or 1.0
    return _Probe(x=x, y=y, limit=limit, expected=_factors(norms, limit) @ gradients.double())


def _fault(model: FlatModel, backend: BackEnd, probe: _Probe) -> str | None:
    """Why the back end cannot do this model; None if it reproduces the loop's clipped sum."""
    try:
        with _session(model, backend) as kernel:
            found, _ = kernel(probe.x, probe.y, probe.limit)
    except Exception as error:  # whatever a layer raises, the next one is tried
        return f"{type(error).__name__}: {error}"
    off = float(torch.linalg.vector_norm(found - probe.expected))
    if off <= 1e-3 * probe.limit:
        return None
    return (
        f"its clipped sum of three probes is off by {off:.3g}, the norm bound is {probe.limit:.3g}"
    )
