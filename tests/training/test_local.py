"""Local training: limits, equivalences, and refusals that name the client."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from securefl.errors import ConfigurationError
from securefl.training.local import (
    FlatModel,
    FullGradient,
    LocalSGD,
    TrainingDiverged,
    as_tensors,
    best_device,
    evaluate,
    limit_threads,
)
from securefl.training.models import build


def reference_sgd(model, start, batches, x, y, *, lr, momentum=0.0, mu=0.0):
    """Local SGD by torch's own optimiser on a separate module."""
    model.load(start)
    copy = build_like(model)
    optimiser = torch.optim.SGD(copy.parameters(), lr=lr, momentum=momentum)
    anchor = [p.detach().clone() for p in copy.parameters()]
    for batch in batches:
        optimiser.zero_grad()
        loss = functional.cross_entropy(
            copy(torch.from_numpy(x[batch])), torch.from_numpy(y[batch])
        )
        for p, a in zip(copy.parameters(), anchor, strict=True):
            loss = loss + mu / 2 * ((p - a) ** 2).sum()
        loss.backward()
        optimiser.step()
    return torch.cat([p.detach().reshape(-1) for p in copy.parameters()]).numpy()


def build_like(model):
    import copy

    return copy.deepcopy(model.module)


def test_parameters_are_views_of_one_vector(mlp):
    model = mlp()
    assert model.dim == sum(p.numel() for p in model.module.parameters())
    values = np.arange(model.dim, dtype=np.float32)
    model.load(values)
    assert np.array_equal(model.vector(), values)
    for slot, (name, p) in zip(model.layout, model.module.named_parameters(), strict=True):
        assert slot.name == name
        assert slot.shape == tuple(p.shape)
        expected = values[slot.offset : slot.offset + slot.size].reshape(slot.shape)
        assert np.array_equal(p.detach().numpy(), expected)
    model.flat[0] = -1.0
    assert next(model.module.parameters()).reshape(-1)[0] == -1.0


def test_the_loaded_and_the_returned_vector_are_copies(softmax):
    model = softmax()
    values = np.zeros(model.dim, dtype=np.float32)
    model.load(values)
    model.flat.fill_(3.0)
    assert not values.any()
    model.vector()[:] = 7.0
    assert (model.vector() == 3.0).all()


def test_the_flat_gradient_follows_the_layout(mlp, records):
    x, y = records()
    model = mlp()
    loss = functional.cross_entropy(model.module(torch.from_numpy(x)), torch.from_numpy(y))
    flat = model.gradient(loss)
    loss = functional.cross_entropy(model.module(torch.from_numpy(x)), torch.from_numpy(y))
    loss.backward()
    expected = torch.cat([p.grad.reshape(-1) for p in model.module.parameters()])
    assert torch.equal(flat, expected)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, track_running_stats=True)),
    ],
)
def test_running_statistics_are_refused(module):
    with pytest.raises(ConfigurationError, match=r"running_mean.*GroupNorm"):
        FlatModel(module)


def test_a_model_that_cannot_be_flattened_is_refused():
    with pytest.raises(ConfigurationError, match="no trainable parameters"):
        FlatModel(nn.ReLU())
    with pytest.raises(ConfigurationError, match="must be float32"):
        FlatModel(nn.Linear(2, 2).double())
    module = nn.Linear(2, 2)
    FlatModel(module)
    with pytest.raises(ConfigurationError, match="already belongs"):
        FlatModel(module)


def test_frozen_parameters_stay_out_of_the_vector():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    for p in module[0].parameters():
        p.requires_grad_(False)
    assert FlatModel(module).dim == 8


def test_a_wrong_vector_is_not_loaded(softmax):
    model = softmax()
    with pytest.raises(ConfigurationError, match="21 parameters"):
        model.load(np.zeros(20, dtype=np.float32))
    with pytest.raises(ConfigurationError, match="NaN"):
        model.load(np.full(21, np.nan, dtype=np.float32))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_local_sgd_equals_torch_sgd_on_the_same_batches(mlp, records, momentum, mu):
    x, y = records(n=33)
    model = mlp()
    start = model.vector()
    trainer = LocalSGD(
        model=model,
        x=x,
        y=y,
        client=4,
        seed=7,
        learning_rate=0.2,
        batch_size=8,
        epochs=3,
        momentum=momentum,
        proximal=mu,
    )
    update = trainer.train(start, round_index=2)
    batches = [b.numpy() for b in trainer._batches(33, 2)]
    expected = reference_sgd(model, start, batches, x, y, lr=0.2, momentum=momentum, mu=mu)
    assert np.abs(update.values - (expected - start)).max() < 1e-6
    assert update.steps == 15
    assert (update.weight, update.examples) == (33, 33)


@given(
    n=st.integers(1, 50), size=st.one_of(st.none(), st.integers(1, 60)), epochs=st.integers(1, 4)
)
def test_every_epoch_sees_every_record_once(n, size, epochs):
    model = FlatModel(nn.Linear(2, 2))
    trainer = LocalSGD(
        model=model,
        x=np.zeros((n, 2), np.float32),
        y=np.zeros(n, np.int64),
        client=0,
        learning_rate=0.1,
        batch_size=size,
        epochs=epochs,
    )
    seen = np.concatenate([b.numpy() for b in trainer._batches(n, 0)])
    assert len(seen) == n * epochs
    for e in range(epochs):
        assert sorted(seen[e * n : (e + 1) * n]) == list(range(n))


@pytest.mark.parametrize("steps", [1, 5, 13])
def test_a_number_of_steps_is_kept_exactly(softmax, records, steps):
    x, y = records(n=10)
    model = softmax()
    trainer = LocalSGD(
        model=model, x=x, y=y, client=0, learning_rate=0.1, batch_size=4, steps=steps
    )
    assert trainer.train(model.vector(), round_index=0).steps == steps


def test_shuffles_follow_seed_client_and_round_only(softmax, records):
    x, y = records()
    model = softmax()
    start = model.vector()

    def update(seed=0, client=0, round_index=0):
        trainer = LocalSGD(
            model=model,
            x=x,
            y=y,
            client=client,
            seed=seed,
            learning_rate=0.5,
            batch_size=4,
            epochs=1,
        )
        return trainer.train(start, round_index=round_index).values

    torch.manual_seed(1)
    first = update()
    torch.manual_seed(2)
    assert np.array_equal(first, update())
    for other in (update(seed=1), update(client=1), update(round_index=1)):
        assert not np.array_equal(first, other)


def test_training_leaves_the_start_unchanged(softmax, records):
    x, y = records()
    model = softmax()
    start = model.vector()
    before = start.copy()
    LocalSGD(model=model, x=x, y=y, client=0, learning_rate=1.0, epochs=2).train(
        start, round_index=0
    )
    assert np.array_equal(start, before)


def test_fedprox_with_mu_zero_is_bit_equal_to_fedavg(mlp, records):
    x, y = records()
    model = mlp()
    start = model.vector()
    common = {
        "model": model,
        "x": x,
        "y": y,
        "client": 1,
        "learning_rate": 0.3,
        "batch_size": 8,
        "epochs": 2,
        "momentum": 0.5,
    }
    plain = LocalSGD(**common).train(start, round_index=0).values
    zero = LocalSGD(**common, proximal=0.0).train(start, round_index=0).values
    pulled = LocalSGD(**common, proximal=1.0).train(start, round_index=0).values
    assert np.array_equal(plain, zero)
    assert np.linalg.norm(pulled) < np.linalg.norm(plain)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_fedavg_with_one_full_batch_step_is_fedsgd(mlp, records, reduction):
    clients = [records(n=n, seed=n) for n in (12, 30, 7)]
    total = sum(len(y) for _, y in clients)
    model = mlp()
    start = model.vector()
    fedavg = np.zeros(model.dim)
    fedsgd = np.zeros(model.dim)
    for k, (x, y) in enumerate(clients):
        local = LocalSGD(model=model, x=x, y=y, client=k, learning_rate=0.5, epochs=1)
        update = local.train(start, round_index=0)
        fedavg += update.weight / total * update.values
        full = FullGradient(model=model, x=x, y=y, client=k, reduction=reduction)
        gradient = full.train(start, round_index=0)
        share = gradient.weight / total if reduction == "mean" else 1 / total
        fedsgd += share * gradient.values
    # FedSGD with the server's rate equal to the local rate; FedAvg with server rate 1.
    assert np.abs(fedavg - 0.5 * fedsgd).max() < 1e-6
    # Both are one step of central full-batch gradient descent.
    x, y = np.concatenate([x for x, _ in clients]), np.concatenate([y for _, y in clients])
    central = reference_sgd(model, start, [np.arange(total)], x, y, lr=0.5) - start
    assert np.abs(fedavg - central).max() < 1e-6


def test_fedsgd_in_chunks_equals_one_batch(mlp, records):
    x, y = records(n=50)
    model = mlp()
    start = model.vector()
    whole = FullGradient(model=model, x=x, y=y, client=0, reduction="sum")
    parts = FullGradient(model=model, x=x, y=y, client=0, reduction="sum", chunk=7)
    a, b = whole.train(start, round_index=0), parts.train(start, round_index=0)
    assert np.abs(a.values - b.values).max() < 1e-4 * np.abs(a.values).max()
    assert a.metrics["loss"] == pytest.approx(b.metrics["loss"], rel=1e-5)


def test_fedsgd_demands_a_reduction(softmax, records):
    x, y = records()
    with pytest.raises(TypeError, match="reduction"):
        FullGradient(model=softmax(), x=x, y=y, client=0)
    with pytest.raises(ValueError, match="median"):
        FullGradient(model=softmax(), x=x, y=y, client=0, reduction="median")


def test_divergence_names_the_client_and_the_round(softmax, records):
    x, y = records()
    model = softmax()
    trainer = LocalSGD(
        model=model, x=x * np.float32(1e25), y=y, client=17, learning_rate=1e20, epochs=3
    )
    with pytest.raises(TrainingDiverged, match="client 17 in round 3 diverged") as caught:
        trainer.train(model.vector(), round_index=3)
    assert (caught.value.client, caught.value.round_index) == (17, 3)
    full = FullGradient(model=model, x=x * np.float32(1e30), y=y, client=5, reduction="sum")
    with pytest.raises(TrainingDiverged, match="client 5 in round 0"):
        full.train(np.full(model.dim, 1e30, dtype=np.float32), round_index=0)


def test_impossible_settings_are_refused(softmax, records):
    x, y = records()
    model = softmax()

    def trainer(**changed):
        settings = {"learning_rate": 0.1, "epochs": 1, **changed}
        return LocalSGD(model=model, x=x, y=y, client=9, **settings)

    for changed in (
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"epochs": None},
        {"steps": 3},
        {"epochs": 0},
        {"batch_size": 0},
        {"momentum": 1.0},
        {"proximal": -0.1},
    ):
        with pytest.raises(ConfigurationError):
            trainer(**changed)


def test_impossible_records_are_refused_by_the_clients_name(softmax, records):
    x, y = records()
    bad_value = x.copy()
    bad_value[3, 2] = np.nan
    for bad_x, bad_y, message in (
        (x.astype(np.float64), y, "float32"),
        (x, y.astype(np.int32), "int64"),
        (x[:5], y, "shapes"),
        (x[:0], y[:0], "no records"),
        (bad_value, y, "NaN"),
    ):
        with pytest.raises(ConfigurationError, match=f"client 9's data.*{message}"):
            LocalSGD(model=softmax(), x=bad_x, y=bad_y, client=9, learning_rate=0.1, epochs=1)


def test_read_only_records_can_be_trained_on(softmax, records):
    x, y = records()
    x.setflags(write=False)
    y.setflags(write=False)
    model = softmax()
    LocalSGD(model=model, x=x, y=y, client=0, learning_rate=0.1, epochs=1).train(
        model.vector(), round_index=0
    )


@given(batch_size=st.integers(1, 60))
def test_evaluation_does_not_depend_on_the_batches(batch_size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(53, 4)).astype(np.float32)
    y = rng.integers(0, 3, 53)
    model = FlatModel(build("mlp", input_shape=(4,), classes=3, seed=1))
    loss, accuracy = evaluate(model, x, y, batch_size=batch_size)
    logits = model.module(torch.from_numpy(x)).detach()
    expected = functional.cross_entropy(logits, torch.from_numpy(y)).item()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1).numpy() == y).mean())


def test_evaluation_restores_the_training_mode(softmax, records):
    model = softmax()
    model.module.train()
    evaluate(model, *records())
    assert model.module.training


def test_weights_can_be_set(softmax, records):
    x, y = records()
    model = softmax()
    trainer = LocalSGD(model=model, x=x, y=y, client=0, learning_rate=0.1, epochs=1, weight=3)
    assert trainer.train(model.vector(), round_index=0).weight == 3


def test_records_updates_and_measurements_do_not_print(softmax, records):
    x, y = records()
    model = softmax()
    trainer = LocalSGD(model=model, x=x, y=y, client=0, learning_rate=0.1, epochs=1)
    full = FullGradient(model=model, x=x, y=y, client=0, reduction="sum")
    assert "array" not in repr(trainer) + repr(full)
    update = trainer.train(model.vector(), round_index=0)
    assert "loss" in update.metrics
    assert "loss" not in repr(update)
    assert "values" not in repr(update)


def test_workers_use_one_thread():
    before = torch.get_num_threads()
    try:
        limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------ devices


def test_a_model_and_its_gradient_live_on_the_device_that_was_asked_for():
    # torch's "meta" device computes shapes only: an operation that mixes it with the CPU fails.
    module = build("cnn26k", input_shape=(1, 28, 28), classes=10, seed=0)
    model = FlatModel(module, device="meta")
    assert model.flat.device.type == "meta"
    assert all(p.device.type == "meta" for p in module.parameters())
    x, y = as_tensors(np.zeros((3, 1, 28, 28), np.float32), np.zeros(3, np.int64), model.device)
    gradient = model.gradient(torch.nn.functional.cross_entropy(module(x), y))
    assert (gradient.device.type, gradient.shape) == ("meta", (26_010,))


def test_the_best_device_is_cuda_where_torch_has_it_and_else_the_cpu(monkeypatch):
    for has, kind in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has=has: has)
        assert best_device().type == kind


def test_a_device_changes_nothing_on_the_cpu(records):
    x, y = records()
    updates = []
    for how in ({}, {"device": "cpu"}, {"device": torch.device("cpu")}):
        model = FlatModel(build("mlp", input_shape=(6,), classes=3, seed=0), **how)
        trainer = LocalSGD(model=model, x=x, y=y, client=0, learning_rate=0.1, epochs=2)
        updates.append(trainer.train(model.vector(), round_index=0).values)
    assert np.array_equal(updates[0], updates[1])
    assert np.array_equal(updates[0], updates[2])
