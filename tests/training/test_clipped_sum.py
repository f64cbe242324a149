"""Every back end gives the sum of a plain loop over records, and none lets a record exceed C."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from torch import nn
from torch.nn import functional

from securefl.errors import ConfigurationError
from securefl.training import clipped_sum
from securefl.training.clipped_sum import CLIP_SLACK, BackEnd, ClippedSum, clipped_gradient_sum
from securefl.training.local import FlatModel, LocalSGD
from securefl.training.models import build

GENERAL = [BackEnd.GHOST, BackEnd.HOOKS, BackEnd.VMAP]


def one_by_one(model, x, y, clip_norm):
    """The oracle: autograd on one record at a time; norms, factors and the sum in float64."""
    total = np.zeros(model.dim)
    limit = clip_norm * (1 - CLIP_SLACK)
    for record, label in zip(x, y, strict=True):
        logits = model.module(torch.from_numpy(record[None]))
        loss = functional.cross_entropy(logits, torch.tensor([label]))
        gradient = model.gradient(loss).double().numpy()
        norm = np.linalg.norm(gradient)
        if math.isfinite(norm):
            total += gradient * (1.0 if norm <= limit else limit / norm)
    return total


class Attention(nn.Module):
    """Several vectors per record through one linear layer, then a mean over them."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x)).mean(dim=1))


class Scale(nn.Module):
    """A layer that Opacus has no rule for."""

    def __init__(self, size):
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, size))

    def forward(self, x):
        return x * self.factor


class Around(nn.Module):
    """Uses a layer's weight without calling the layer: no hook sees it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.linear(x) @ self.linear.weight))


class Centred(nn.Module):
    """Subtracts the batch mean: mixes records, and is no BatchNorm."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(x - x.mean(dim=0))


def grown(shape, *layers):
    """A model whose parameters are drawn under a fixed seed."""
    module = nn.Sequential(*layers)
    rng = np.random.default_rng(1)
    model = FlatModel(module)
    model.load((0.3 * rng.normal(size=model.dim)).astype(np.float32))
    return model, shape


def of_name(name, shape, classes=10, activation="tanh"):
    module = build(name, input_shape=shape, classes=classes, seed=0, activation=activation)
    model = FlatModel(module)
    rng = np.random.default_rng(2)
    model.load(model.vector() + 0.05 * rng.normal(size=model.dim).astype(np.float32))
    return model, shape


MODELS = {
    "softmax": lambda: of_name("softmax", (6,), 3),
    "softmax of images": lambda: of_name("softmax", (1, 4, 4), 3),
    "without bias": lambda: grown((6,), nn.Linear(6, 3, bias=False)),
    "mlp": lambda: of_name("mlp", (6,), 3, "relu"),
    "cnn26k": lambda: of_name("cnn26k", (1, 28, 28)),
    "group norm": lambda: grown(
        (1, 6, 6), nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3)
    ),
    "layer norm": lambda: grown((6,), nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
    "vectors": lambda: grown((7, 6), Attention()),
    "own layer": lambda: grown((6,), nn.Linear(6, 8), Scale(8), nn.Linear(8, 3)),
}


def batch(shape, n, seed=0, classes=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *shape)).astype(np.float32)
    return x, rng.integers(0, classes, n)


def backends(name):
    closed = name in ("softmax", "softmax of images", "without bias")
    return [BackEnd.CLOSED_FORM, *GENERAL] if closed else GENERAL


# ------------------------------------------------------------------ equal to the loop


@pytest.mark.parametrize(
    ("name", "backend"), [(name, backend) for name in MODELS for backend in backends(name)]
)
def test_the_clipped_sum_equals_a_loop_over_single_records(name, backend):
    model, shape = MODELS[name]()
    n = 7 if name == "cnn26k" else 23
    x, y = batch(shape, n)
    for clip_norm, chunk in ((0.05, 4), (1.0, 64), (100.0, 1)):
        clipped = ClippedSum(
            model=model, input_shape=shape, clip_norm=clip_norm, backend=backend, chunk=chunk
        )
        assert clipped.backend is backend
        found = clipped.of(x, y)
        expected = one_by_one(model, x, y, clip_norm)
        assert found.count == n
        assert np.abs(found.total - expected).max() < 1e-6 * max(1.0, np.abs(expected).max())
        assert found.loss == pytest.approx(loss(model, x, y), rel=1e-5)


def loss(model, x, y):
    logits = model.module(torch.from_numpy(x))
    return functional.cross_entropy(logits, torch.from_numpy(y), reduction="sum").item()


@pytest.mark.parametrize("backend", list(BackEnd))
def test_no_records_give_zero_and_one_record_is_the_loop(backend):
    model, shape = MODELS["softmax"]()
    clipped = ClippedSum(model=model, input_shape=shape, clip_norm=0.3, backend=backend)
    x, y = batch(shape, 1)
    assert np.abs(clipped.of(x, y).total - one_by_one(model, x, y, 0.3)).max() < 1e-7
    nothing = clipped.of(x[:0], y[:0])
    assert (nothing.count, nothing.loss, nothing.total.any()) == (0, 0.0, False)
    assert clipped.of(x, y, np.zeros(0, dtype=np.int64)).count == 0


@pytest.mark.parametrize("backend", [BackEnd.CLOSED_FORM, *GENERAL])
def test_selected_records_are_gathered_in_chunks(backend):
    model, shape = MODELS["softmax"]()
    x, y = batch(shape, 600)
    select = np.random.default_rng(3).permutation(600)[:530]
    clipped = ClippedSum(model=model, input_shape=shape, clip_norm=0.3, backend=backend)
    found = clipped.of(x, y, select)
    assert np.allclose(found.total, clipped.of(x[select], y[select]).total, atol=1e-12)
    assert np.abs(found.total - one_by_one(model, x[select], y[select], 0.3)).max() < 1e-5


@given(
    backend=st.sampled_from([BackEnd.CLOSED_FORM, *GENERAL]),
    scale=st.floats(1e-3, 1e30),
    seed=st.integers(0, 50),
    clip_norm=st.floats(1e-2, 1e2),
)
def test_one_record_never_contributes_more_than_the_clip_norm(backend, scale, seed, clip_norm):
    rng = np.random.default_rng(seed)
    x = (scale * rng.normal(size=(1, 5))).astype(np.float32)
    y = rng.integers(0, 3, 1)
    name = "softmax" if backend is BackEnd.CLOSED_FORM else "mlp"
    model = FlatModel(build(name, input_shape=(5,), classes=3, seed=seed))
    clipped = ClippedSum(model=model, input_shape=(5,), clip_norm=clip_norm, backend=backend)
    found = clipped.of(x, y).total
    assert np.linalg.norm(found) <= clip_norm
    assert np.abs(found - one_by_one(model, x, y, clip_norm)).max() <= 1e-5 * clip_norm


@pytest.mark.parametrize("backend", [BackEnd.CLOSED_FORM, *GENERAL])
@pytest.mark.parametrize("what", [3e38, math.nan, math.inf, 1e18, 1e25])
def test_a_record_beyond_the_floats_is_bounded_and_spares_the_others(backend, what):
    name = "softmax" if backend is BackEnd.CLOSED_FORM else "mlp"
    model = of_name(name, (6,), 3)[0]
    model.load(model.vector() * np.float32(100))
    x, y = batch((6,), 12)
    bad = x.copy()
    bad[4] = np.float32(what)
    others = np.arange(12) != 4
    clipped = ClippedSum(model=model, input_shape=(6,), clip_norm=0.5, backend=backend)
    found = clipped.of(bad, y).total
    rest = clipped.of(x[others], y[others]).total
    assert np.linalg.norm(found - rest) <= 0.5
    assert np.abs(found - one_by_one(model, bad, y, 0.5)).max() < 1e-6
    if not math.isfinite(what):
        assert np.abs(found - rest).max() < 1e-12
    # and the next batch is as if nothing had happened
    assert np.allclose(clipped.of(x[others], y[others]).total, rest, atol=1e-12)


@pytest.mark.parametrize("backend", GENERAL)
def test_norms_below_the_squares_of_float32_are_not_taken_for_zero(backend):
    model = of_name("mlp", (6,), 3)[0]
    x, y = batch((6,), 4)
    # All factors are about 1e-24: a norm whose square is lost would leave the record unclipped.
    clipped = ClippedSum(model=model, input_shape=(6,), clip_norm=1e-24, backend=backend)
    assert np.linalg.norm(clipped.of(x, y).total) <= 4e-24
    model.load(model.vector() * np.float32(1e-13))  # gradients of about 1e-26 in the first layer
    assert np.linalg.norm(clipped.of(x[:1], y[:1]).total) <= 1e-24


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22, 1e30])
def test_norms_of_layers_without_a_rule_survive_overflow_and_underflow(scale):
    # Opacus squares these in float32: a lost square would leave a record unclipped, an infinite
    # one would take it out.
    model, shape = grown((6,), Scale(6), nn.Linear(6, 3, bias=False))
    x, y = batch(shape, 5)
    x[2] *= np.float32(scale)
    for clip_norm in (1e-25, 1.0):
        clipped = ClippedSum(
            model=model, input_shape=shape, clip_norm=clip_norm, backend=BackEnd.GHOST
        )
        for rows in (slice(None), slice(2, 3)):
            found = clipped.of(x[rows], y[rows]).total
            expected = one_by_one(model, x[rows], y[rows], clip_norm)
            assert np.abs(found - expected).max() <= 1e-5 * clip_norm


def test_a_gradient_that_cancels_keeps_its_norm_in_ghost_mode():
    # One large vector and almost its opposite: a Gram matrix in float32 would add 1e8 and -1e8.
    model, shape = grown((2, 6), Attention())
    x, y = batch(shape, 3)
    x[0, 0], x[0, 1] = 1e-3, -1e-3
    for clip_norm in (1e-6, 1e-3):
        clipped = ClippedSum(
            model=model, input_shape=shape, clip_norm=clip_norm, backend=BackEnd.GHOST
        )
        expected = one_by_one(model, x, y, clip_norm)
        assert np.abs(clipped.of(x, y).total - expected).max() <= 1e-5 * clip_norm


# ------------------------------------------------------------------ which back end


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("softmax", BackEnd.CLOSED_FORM),
        ("softmax of images", BackEnd.CLOSED_FORM),
        ("without bias", BackEnd.CLOSED_FORM),
        ("mlp", BackEnd.HOOKS),
        ("cnn26k", BackEnd.HOOKS),
        ("own layer", BackEnd.HOOKS),
    ],
)
def test_auto_takes_the_closed_form_or_hooks_for_small_models(name, expected):
    model, shape = MODELS[name]()
    assert ClippedSum(model=model, input_shape=shape, clip_norm=1.0).backend is expected


def test_auto_takes_ghost_for_large_models():
    model, shape = of_name("mlp", (1, 28, 28))
    assert model.dim > clipped_sum.GHOST_ABOVE
    assert ClippedSum(model=model, input_shape=shape, clip_norm=1.0).backend is BackEnd.GHOST


def test_a_layer_that_ghost_cannot_do_falls_back_to_hooks(monkeypatch):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.linear(torch.tanh(self.linear(x)))))

    monkeypatch.setattr(clipped_sum, "GHOST_ABOVE", 10)
    model, shape = grown((6,), Twice())
    clipped = ClippedSum(model=model, input_shape=shape, clip_norm=0.1)
    assert clipped.backend is BackEnd.HOOKS
    x, y = batch(shape, 9)
    assert np.abs(clipped.of(x, y).total - one_by_one(model, x, y, 0.1)).max() < 1e-6
    with pytest.raises(ConfigurationError, match="ghost: NotImplementedError"):
        ClippedSum(model=model, input_shape=shape, clip_norm=0.1, backend=BackEnd.GHOST)


def test_a_weight_used_behind_the_hooks_falls_back_to_vmap():
    model, shape = grown((6,), Around())
    clipped = ClippedSum(model=model, input_shape=shape, clip_norm=0.1)
    assert clipped.backend is BackEnd.VMAP
    x, y = batch(shape, 9)
    assert np.abs(clipped.of(x, y).total - one_by_one(model, x, y, 0.1)).max() < 1e-6
    with pytest.raises(ConfigurationError, match=r"hooks: .*off by"):
        ClippedSum(model=model, input_shape=shape, clip_norm=0.1, backend=BackEnd.HOOKS)


def test_a_layer_that_mixes_records_is_refused_though_nobody_knows_it():
    model, shape = grown((6,), Centred())
    for backend in BackEnd:
        with pytest.raises(ConfigurationError, match=r"mixes records|closed_form needs"):
            ClippedSum(model=model, input_shape=shape, clip_norm=1.0, backend=backend)


def test_batch_norm_is_refused_with_advice():
    model = FlatModel(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False)))
    with pytest.raises(ConfigurationError, match="GroupNorm"):
        ClippedSum(model=model, input_shape=(6,), clip_norm=1.0)


def test_the_closed_form_is_refused_for_other_models():
    model, shape = MODELS["mlp"]()
    with pytest.raises(ConfigurationError, match="one linear layer"):
        ClippedSum(model=model, input_shape=shape, clip_norm=1.0, backend=BackEnd.CLOSED_FORM)


def test_a_frozen_layer_keeps_the_closed_form_away():
    head = nn.Linear(6, 3)
    head.bias.requires_grad_(False)
    model = FlatModel(head)
    clipped = ClippedSum(model=model, input_shape=(6,), clip_norm=0.1)
    assert clipped.backend is BackEnd.HOOKS
    x, y = batch((6,), 9)
    assert np.abs(clipped.of(x, y).total - one_by_one(model, x, y, 0.1)).max() < 1e-6


def test_a_parameter_without_use_gets_zero():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.used(x)

    x, y = batch((6,), 9)
    totals = []
    for backend in GENERAL:
        model = FlatModel(Spare())
        model.load(np.linspace(-1, 1, model.dim))
        clipped = ClippedSum(model=model, input_shape=(6,), clip_norm=0.1, backend=backend)
        totals.append(clipped.of(x, y).total)
        assert not totals[-1][21:].any()
    assert np.allclose(totals[0], totals[1], atol=1e-6)
    assert np.allclose(totals[1], totals[2], atol=1e-6)


def test_the_probe_leaves_model_and_dropout_as_they_were():
    module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.25), nn.Linear(8, 3))
    model = FlatModel(module)
    before = model.vector()
    for backend in GENERAL:
        ClippedSum(model=model, input_shape=(6,), clip_norm=1.0, backend=backend)
    assert np.array_equal(model.vector(), before)
    assert module[1].p == 0.25
    assert all(p.grad is None for p in model.parameters)


def test_back_ends_of_one_model_can_take_turns_with_each_other_and_with_plain_training():
    model, shape = MODELS["mlp"]()
    x, y = batch(shape, 20)
    start = model.vector()
    plain = LocalSGD(model=model, x=x, y=y, client=0, learning_rate=0.1, batch_size=4, epochs=2)
    before = plain.train(start, round_index=0).values
    for backend in [*GENERAL, *reversed(GENERAL), BackEnd.HOOKS]:
        model.load(start)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns where sleeping hooks are passed through
            clipped = ClippedSum(model=model, input_shape=shape, clip_norm=0.2, backend=backend)
        expected = one_by_one(model, x, y, 0.2)
        assert np.abs(clipped.of(x, y).total - expected).max() < 1e-6
        assert np.array_equal(plain.train(start, round_index=0).values, before)


def test_an_interrupted_pass_does_not_spoil_the_next():
    class Interrupting(nn.Module):
        armed = False

        def forward(self, x):
            if Interrupting.armed:
                raise KeyboardInterrupt
            return x

    for backend in (BackEnd.GHOST, BackEnd.HOOKS, BackEnd.VMAP):
        model, shape = grown((6,), nn.Linear(6, 8), Interrupting(), nn.Linear(8, 3))
        x, y = batch(shape, 9)
        clipped = ClippedSum(model=model, input_shape=shape, clip_norm=0.1, backend=backend)
        Interrupting.armed = True
        with pytest.raises(KeyboardInterrupt):
            clipped.of(x, y)
        Interrupting.armed = False
        assert np.abs(clipped.of(x, y).total - one_by_one(model, x, y, 0.1)).max() < 1e-6


# ------------------------------------------------------------------ what floats add


def test_eta_is_two_m_squared_u_for_ghost_and_negligible_for_the_others():
    model, shape = MODELS["mlp"]()
    ghost = ClippedSum(
        model=model, input_shape=shape, clip_norm=3.0, backend=BackEnd.GHOST, chunk=64
    )
    assert ghost.eta(10_000) == 2 * 64 * 64 / 2**24 == CLIP_SLACK / 2
    assert ghost.inflation(10_000) == 1.0
    assert ghost.sensitivity(10_000) == 3.0 * (1 - 2**-10) + 3.0 * 2**-11
    wide = ClippedSum(
        model=model, input_shape=shape, clip_norm=3.0, backend=BackEnd.GHOST, chunk=256
    )
    assert wide.inflation(10_000) == 1 + 2 * 256 * 256 / 2**24
    assert wide.inflation(32) == 1.0
    hooks = ClippedSum(model=model, input_shape=shape, clip_norm=3.0, backend=BackEnd.HOOKS)
    assert hooks.eta(60_000) < 1e-6
    assert hooks.inflation(1_000_000) == 1.0


@given(seed=st.integers(0, 1000), n=st.integers(1, 200), size=st.integers(1, 40))
def test_a_float32_sum_of_clipped_vectors_is_within_eta(seed, n, size):
    # The statement behind eta, against exact float64 sums: m vectors of norm 1, any signs.
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, size)) * 10.0 ** rng.integers(-3, 4, size=(n, size))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    single = np.zeros(size, dtype=np.float32)
    for vector in vectors:
        single += vector
    off = np.linalg.norm(single.astype(np.float64) - vectors.astype(np.float64).sum(axis=0))
    assert off <= n * n * 2.0**-24


@pytest.mark.parametrize("backend", [BackEnd.CLOSED_FORM, *GENERAL])
def test_zeroing_one_record_moves_the_sum_by_at_most_the_stated_sensitivity(backend):
    name = "softmax" if backend is BackEnd.CLOSED_FORM else "mlp"
    model, shape = MODELS[name]()
    x, y = batch(shape, 130)
    bad = x.copy()
    x[7] *= 1e5
    bad[7] = np.nan  # counts as zero, in the same place
    clipped = ClippedSum(model=model, input_shape=shape, clip_norm=0.5, backend=backend)
    moved = np.linalg.norm(clipped.of(x, y).total - clipped.of(bad, y).total)
    assert 0.49 < moved <= clipped.sensitivity(130) <= 0.5


# ------------------------------------------------------------------ contract


@pytest.mark.parametrize(
    "changed",
    [
        {"clip_norm": 0.0},
        {"clip_norm": math.nan},
        {"clip_norm": math.inf},
        {"chunk": 0},
        {"chunk": True},
        {"backend": "batch"},
    ],
)
def test_impossible_settings_are_refused(changed):
    model, shape = MODELS["softmax"]()
    with pytest.raises(ConfigurationError):
        ClippedSum(**{"model": model, "input_shape": shape, "clip_norm": 1.0, **changed})


def test_records_of_another_shape_are_refused_by_their_numbers():
    model, shape = MODELS["mlp"]()
    with pytest.raises(ConfigurationError, match=r"cannot take records of shape \(5,\)"):
        ClippedSum(model=model, input_shape=(5,), clip_norm=1.0)
    clipped = ClippedSum(model=model, input_shape=shape, clip_norm=1.0)
    with pytest.raises(ConfigurationError, match=r"shape \(6,\) with a label each, found"):
        clipped.of(np.zeros((3, 5), np.float32), np.zeros(3, np.int64))
    with pytest.raises(ConfigurationError, match="with a label each"):
        clipped.of(np.zeros((3, 6), np.float32), np.zeros(2, np.int64))


def test_a_clipped_sum_does_not_print_what_it_holds():
    model, shape = MODELS["softmax"]()
    x, y = batch(shape, 3)
    clipped = ClippedSum(model=model, input_shape=shape, clip_norm=1.0)
    assert repr(clipped.of(x, y)) == "ClippedGradients()"


def test_the_short_form_is_the_same_sum():
    model, shape = MODELS["mlp"]()
    x, y = batch(shape, 23)
    clipped = ClippedSum(model=model, input_shape=shape, clip_norm=0.2)
    assert np.array_equal(clipped_gradient_sum(model, x, y, clip_norm=0.2), clipped.of(x, y).total)


# ------------------------------------------------------------------ facts about Opacus


def test_opacus_refuses_to_wrap_a_module_twice_and_renames_its_parameters():
    module = nn.Linear(6, 3)
    wrapped = GradSampleModule(module)
    with pytest.raises(ValueError, match="add hooks twice"):
        GradSampleModule(module)
    assert [name for name, _ in wrapped.named_parameters()] == ["_module.weight", "_module.bias"]


def test_opacus_own_ghost_norm_of_several_vectors_cancels_in_float32():
    from opacus.grad_sample.linear import compute_linear_norm_sample

    layer = nn.Linear(1, 1, bias=False)
    # Gradient: 1e4 * 1e4 - 1e4 * (1e4 - 1) = 1e4, hidden below terms of 1e16.
    a, b = torch.full((1, 2, 1), 1e4), torch.tensor([[[1e4], [-(1e4 - 1)]]])
    opacus = float(compute_linear_norm_sample(layer, [a], b)[layer.weight])
    ours = float(clipped_sum._linear_norms(layer, [a], b)[layer.weight])
    assert ours == pytest.approx(1e4, rel=1e-6)
    assert abs(opacus - 1e4) > 1e3
