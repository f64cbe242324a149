"""Record-level DP-SGD: the sum is bounded, the noise is ours, every step counts."""

import math
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from scipy import stats
from torch import nn
from torch.nn import functional

import accounting
from accounting.events import Gaussian, Poisson, Repeat
from securefl.errors import ConfigurationError
from securefl.training.dpsgd import (
    CLIP_SLACK,
    DPSGD,
    ClientBudget,
    clipped_gradient_sum,
)
from securefl.training.local import FlatModel, LocalSGD, TrainingDiverged, evaluate
from securefl.training.models import build


class Coins:
    """A seeded byte stream that counts; for tests only, where repeatability is wanted."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.drawn = 0

    def __call__(self, count):
        self.drawn += count
        return self.rng.bytes(count)


def one_by_one(model, x, y, clip_norm):
    """Sum of clipped gradients, one record at a time, by plain autograd, in float64."""
    total = np.zeros(model.dim)
    norms = []
    for record, label in zip(x, y, strict=True):
        logits = model.module(torch.from_numpy(record[None]))
        loss = functional.cross_entropy(logits, torch.tensor([label]))
        gradient = model.gradient(loss).double().numpy()
        norm = np.linalg.norm(gradient)
        norms.append(norm)
        total += gradient * min(1.0, clip_norm * (1 - CLIP_SLACK) / (norm))
    return total, np.array(norms)


def dpsgd(model, x, y, **changed):
    settings = {
        "client": 3,
        "noise_multiplier": 1.0,
        "clip_norm": 0.5,
        "sample_rate": 0.25,
        "steps": 4,
        "learning_rate": 0.5,
        **changed,
    }
    return DPSGD(model=model, x=x, y=y, **settings)


@pytest.fixture
def cnn():
    return FlatModel(
        build("cnn26k", input_shape=(1, 28, 28), classes=10, seed=0, activation="tanh")
    )


# ------------------------------------------------------------------ the clipped sum


@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_a_record_changes_the_sum_by_at_most_the_clip_norm(request, records, name):
    model = request.getfixturevalue(name)()
    x, y = records(n=30)
    x[7] *= 1e5
    without = np.arange(30) != 7
    whole = clipped_gradient_sum(model, x, y, clip_norm=0.5).astype(np.float64)
    less = clipped_gradient_sum(model, x[without], y[without], clip_norm=0.5).astype(np.float64)
    assert np.linalg.norm(whole - less) <= 0.5


# ------------------------------------------------------------------ the noise


def test_a_step_is_clipped_sum_plus_noise_over_the_expected_batch_size(softmax, records):
    x, y = records(n=40)
    model = softmax()
    start = model.vector()
    trainer = dpsgd(model, x, y, steps=1, learning_rate=2.0, random_bytes=Coins(5))
    update = trainer.train(start, round_index=0)
    replay = Coins(5)
    from securefl.training.randomness import poisson_sample, standard_normal

    batch = poisson_sample(40, 0.25, replay)
    noise = 1.0 * 0.5 * standard_normal(model.dim, replay)
    model.load(start)
    total, _ = one_by_one(model, x[batch], y[batch], 0.5)
    expected = -2.0 * (total + noise) / (0.25 * 40)
    assert np.abs(update.values - expected).max() < 1e-5


def test_the_noise_has_the_announced_standard_deviation(softmax, records):
    x, y = records(n=8)
    model = softmax()
    start = model.vector()
    # Clipping to 1e-6 leaves (almost) nothing but noise, whatever the records are.
    trainer = dpsgd(
        model,
        x,
        y,
        clip_norm=1e-6,
        noise_multiplier=3.0,
        sample_rate=1.0,
        steps=1,
        learning_rate=1e6,
        random_bytes=Coins(1),
    )
    draws = np.array([trainer.train(start, round_index=0).values for _ in range(400)])
    total, _ = one_by_one(model, x, y, 1e-6)
    noise = (draws * 8 + total * 1e6) / 3.0
    # Fixed seed; each line would fail once in 10^6 runs with fresh coins. The tolerance of float32
    # sums is far below the resolution of the test.
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-6
    assert 1e-6 < stats.chi2.cdf((noise**2).sum(), noise.size) < 1 - 1e-6
    correlation = np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]
    assert abs(correlation) < 4.9 / math.sqrt(400)
    rounds = np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]
    assert abs(rounds) < 4.9 / math.sqrt(399)


def test_two_clients_seeded_alike_draw_different_noise(softmax, records):
    x, y = records()
    model = softmax()
    start = model.vector()
    updates = []
    for client in (0, 1):
        torch.manual_seed(0)
        np.random.seed(0)
        updates.append(dpsgd(model, x, y, client=client).train(start, round_index=0).values)
    assert not np.array_equal(updates[0], updates[1])
    assert np.abs(updates[0] - updates[1]).min() > 0


def test_opacus_own_noise_repeats_with_the_seed_which_is_why_ours_does_not():
    noises = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        optimiser = DPOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=1,
        )
        for p in model.parameters():
            p.summed_grad = torch.zeros_like(p)
        optimiser.add_noise()
        noises.append(model.weight.grad.clone())
    assert torch.equal(*noises)


def test_training_leaves_the_global_generators_alone(softmax, records):
    x, y = records()
    model = softmax()
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    dpsgd(model, x, y).train(model.vector(), round_index=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_every_coin_comes_from_the_argument(softmax, records):
    x, y = records(n=40)
    model = softmax()
    start = model.vector()
    coins = Coins(2)
    first = dpsgd(model, x, y, steps=6, random_bytes=coins).train(start, round_index=0)
    assert coins.drawn == 6 * 8 * (40 + model.dim)
    again = dpsgd(model, x, y, steps=6, random_bytes=Coins(2)).train(start, round_index=0)
    assert np.array_equal(first.values, again.values)


def test_without_noise_and_clipping_it_is_plain_sgd(softmax, records):
    x, y = records(n=20)
    model = softmax()
    start = model.vector()
    private = dpsgd(
        model,
        x,
        y,
        noise_multiplier=1e-9,
        clip_norm=1e3,
        sample_rate=1.0,
        steps=5,
        momentum=0.9,
    ).train(start, round_index=0)
    plain = LocalSGD(model=model, x=x, y=y, client=0, learning_rate=0.5, steps=5, momentum=0.9)
    assert np.allclose(private.values, plain.train(start, round_index=0).values, atol=1e-4)


# ------------------------------------------------------------------ batches and steps


def nothing_sampled(count):
    """Large words: no record falls below a rate of .25, and every normal is the same .16."""
    return b"\xe0" * count


def test_empty_batches_are_noised_steps_and_are_counted(softmax, cnn, records):
    x, y = records(n=5)
    image = np.zeros((2, 1, 28, 28), np.float32)
    for model, data_x, data_y in ((softmax(), x, y), (cnn, image, np.zeros(2, np.int64))):
        start = model.vector()
        trainer = dpsgd(model, data_x, data_y, steps=7, random_bytes=nothing_sampled)
        update = trainer.train(start, round_index=0)
        assert update.steps == 7
        assert "loss" not in update.metrics
        # Each of the 7 steps moved every parameter by the same deterministic "noise".
        from securefl.training.randomness import standard_normal

        noise = 0.5 * standard_normal(model.dim, nothing_sampled)
        expected = -0.5 * 7 * noise / (0.25 * len(data_y))
        assert np.abs(update.values - expected).max() < 1e-4 * np.abs(expected).max()


def test_one_record_batches_work(softmax, records):
    x, y = records(n=1)
    model = softmax()
    update = dpsgd(model, x, y, sample_rate=0.5, steps=20).train(model.vector(), round_index=0)
    assert update.steps == 20
    assert np.isfinite(update.values).all()
    assert all(math.isfinite(v) for v in update.metrics.values())


@pytest.mark.parametrize("records_n", [64, 65, 130])
def test_chunks_change_neither_rate_nor_step(records, records_n):
    x, y = records(n=records_n)
    updates = []
    for chunk in (64, 10, 1000):
        model = FlatModel(build("mlp", input_shape=(6,), classes=3, seed=0))
        trainer = dpsgd(
            model, x, y, sample_rate=1.0, steps=3, chunk=chunk, momentum=0.5, random_bytes=Coins(4)
        )
        update = trainer.train(model.vector(), round_index=0)
        assert update.steps == 3
        assert trainer.event() == Repeat(
            event=Poisson(sample_rate=1.0, event=Gaussian(noise_multiplier=1.0)), count=3
        )
        updates.append(update.values)
    assert np.abs(updates[0] - updates[1]).max() < 1e-5
    assert np.abs(updates[0] - updates[2]).max() < 1e-5


def test_the_loss_is_a_plain_mean_over_the_records_seen(softmax, records):
    x, y = records(n=30)
    model = softmax()
    start = model.vector()
    update = dpsgd(model, x, y, sample_rate=1.0, steps=1).train(start, round_index=0)
    model.load(start)
    assert update.metrics["loss"] == pytest.approx(evaluate(model, x, y)[0], rel=1e-5)


# ------------------------------------------------------------------ what Opacus needs of us


def test_the_model_is_wrapped_once_and_serves_many_clients(softmax, records):
    model = softmax()
    start = model.vector()
    names = [name for name, _ in model.module.named_parameters()]
    for client in range(5):
        x, y = records(seed=client)
        dpsgd(model, x, y, client=client).train(start, round_index=0)
    assert [name for name, _ in model.module.named_parameters()] == names
    assert len(model.module._forward_hooks) <= 1


def test_hooks_sleep_outside_private_training(softmax, records):
    x, y = records()
    model = softmax()
    start = model.vector()
    plain = LocalSGD(model=model, x=x, y=y, client=0, learning_rate=0.1, batch_size=4, epochs=2)
    before = plain.train(start, round_index=0).values
    dpsgd(model, x, y).train(start, round_index=0)
    assert np.array_equal(plain.train(start, round_index=0).values, before)
    for p in model.parameters:
        assert p.grad is None
        assert getattr(p, "grad_sample", None) is None
    assert not getattr(model.module, "activations", [])


def test_an_error_in_a_step_leaves_the_model_usable(softmax, records):
    x, y = records()
    model = softmax()
    start = model.vector()
    with pytest.raises(ConfigurationError, match="returned 0 bytes"):
        dpsgd(model, x, y, random_bytes=lambda n: b"").train(start, round_index=0)
    good = dpsgd(model, x, y, random_bytes=Coins(1)).train(start, round_index=0)
    fresh = softmax()
    expected = dpsgd(fresh, x, y, random_bytes=Coins(1)).train(start, round_index=0)
    assert np.array_equal(good.values, expected.values)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(6, track_running_stats=False), nn.BatchNorm1d(6, affine=False)]
)
def test_batch_norm_is_refused(records, layer):
    x, y = records()
    module = nn.Sequential(layer, nn.Linear(6, 3))
    with pytest.raises(ConfigurationError, match="GroupNorm"):
        dpsgd(FlatModel(module), x, y)


def test_group_norm_is_accepted(records):
    x, y = records()
    model = FlatModel(nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Linear(8, 3)))
    found = clipped_gradient_sum(model, x, y, clip_norm=0.2)
    expected, _ = one_by_one(model, x, y, 0.2)
    assert np.abs(found - expected).max() < 1e-5


def test_no_warning_reaches_the_user(softmax, records):
    x, y = records()
    model = softmax()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dpsgd(model, x, y).train(model.vector(), round_index=0)


# ------------------------------------------------------------------ contract


def test_the_event_says_rate_noise_and_steps(softmax, records):
    x, y = records()
    trainer = dpsgd(softmax(), x, y, noise_multiplier=1.3, sample_rate=0.1, steps=9)
    step = Poisson(sample_rate=0.1, event=Gaussian(noise_multiplier=1.3))
    assert trainer.event() == Repeat(event=step, count=9)
    assert trainer.event(40) == Repeat(event=step, count=40)
    update = trainer.train(trainer.model.vector(), round_index=0)
    assert trainer.event(update.steps) == trainer.event()


def test_equal_weights_are_the_default(softmax, records):
    x, y = records(n=33)
    model = softmax()
    update = dpsgd(model, x, y).train(model.vector(), round_index=0)
    assert (update.weight, update.examples) == (1, 33)


@pytest.mark.parametrize(
    "changed",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"clip_norm": 0.0},
        {"clip_norm": math.inf},
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"sample_rate": math.nan},
        {"steps": 0},
        {"chunk": 0},
        {"learning_rate": 0.0},
        {"momentum": 1.0},
    ],
)
def test_impossible_settings_are_refused(softmax, records, changed):
    with pytest.raises(ConfigurationError):
        dpsgd(softmax(), *records(), **changed)


def test_divergence_names_the_client(softmax, records):
    x, y = records()
    model = softmax()
    trainer = dpsgd(model, x, y, learning_rate=1e38, steps=30, noise_multiplier=100.0)
    with pytest.raises(TrainingDiverged, match="client 3 in round 8"):
        trainer.train(model.vector(), round_index=8)


def test_records_do_not_print(softmax, records):
    text = repr(dpsgd(softmax(), *records()))
    assert "<private>" in text
    assert "array" not in text


def test_records_are_clipped_below_the_norm_that_the_noise_is_scaled_to(softmax, records):
    x, y = records(n=1)
    model = softmax()
    start = model.vector()
    settings = {"clip_norm": 1e-3, "sample_rate": 1.0, "steps": 1, "learning_rate": 1.0}
    quiet = dpsgd(model, x, y, noise_multiplier=1e-9, **settings).train(start, round_index=0)
    assert np.linalg.norm(quiet.values) == pytest.approx(1e-3 * (1 - 2**-10), rel=1e-4)
    coins = Coins(5)
    loud = dpsgd(model, x, y, noise_multiplier=1e6, random_bytes=coins, **settings)
    values = loud.train(start, round_index=0).values
    replay = Coins(5)
    replay(8)  # the sample
    from securefl.training.randomness import standard_normal

    assert np.allclose(
        values, -1e6 * 1e-3 * standard_normal(model.dim, replay), rtol=1e-4, atol=0.1
    )


def test_the_noise_grows_where_floats_could_exceed_the_clip_norm(records):
    x, y = records(n=1024)
    from securefl.training.randomness import standard_normal

    values = {}
    for chunk in (64, 1024):
        model = FlatModel(build("mlp", input_shape=(6,), classes=3, seed=0))
        trainer = dpsgd(
            model,
            x,
            y,
            noise_multiplier=1e6,
            sample_rate=1.0,
            steps=1,
            chunk=chunk,
            backend="ghost",
            random_bytes=Coins(5),
        )
        values[chunk] = trainer.train(model.vector(), round_index=0).values
    replay = Coins(5)
    replay(8 * 1024)
    noise = -0.5 * 0.5 * 1e6 * standard_normal(len(values[64]), replay) / 1024
    assert np.allclose(values[64], noise, rtol=1e-4, atol=0.1)
    assert np.allclose(values[1024], noise * (1 + 2 * 1024**2 / 2**24), rtol=1e-4, atol=0.1)


@pytest.mark.long
def test_a_step_of_a_small_model_takes_little_time(records):
    x, y = records(n=144, features=64, classes=10)
    model = FlatModel(build("softmax", input_shape=(64,), classes=10, seed=0))
    trainer = dpsgd(model, x, y, sample_rate=0.178, steps=300)
    trainer.train(model.vector(), round_index=0)
    began = time.process_time()
    trainer.train(model.vector(), round_index=0)
    assert (time.process_time() - began) / 300 < 3e-3


# ------------------------------------------------------------------ budget


EVIDENCE = {
    "planned": 4,
    "survivors": 4,
    "colluding_assumed": 3,
    "protocol": "secagg/1",
    "transcript": "0" * 64,
}


@pytest.fixture
def budget(tmp_path, softmax, records):
    """A budget on a real ledger file that has room for three rounds, not for four."""
    trainer = dpsgd(softmax(), *records())
    round_event = trainer.event()
    limit = accounting.epsilon(
        trainer.event(3 * trainer.steps),
        1e-5,
        adjacency=accounting.Adjacency.ZERO_OUT,
        method="rdp",  # the method that names the order a ledger needs
    )
    header = accounting.LedgerHeader(
        population="records of client 3",
        unit=accounting.Unit.RECORD,
        adjacency=accounting.Adjacency.ZERO_OUT,
        epsilon=limit.value * 1.001,
        delta=1e-5,
        order=limit.order,
        plan=accounting.digest(trainer.event(3 * trainer.steps)),
    )
    with accounting.Ledger.create(tmp_path / "client-3.ledger", header) as ledger:
        yield ClientBudget(ledger=ledger, client=3, event=round_event)


def test_a_round_that_no_longer_fits_is_refused_before_training(budget):
    for round_index in range(3):
        assert budget.fits()
        budget.released(budget.reserve(round_index), EVIDENCE)
    spent = budget.epsilon().value
    assert not budget.fits()
    with pytest.raises(accounting.BudgetExceeded):
        budget.reserve(3)
    assert budget.epsilon().value == spent
    expected = accounting.epsilon(
        Repeat(event=budget.event, count=3),
        1e-5,
        adjacency=accounting.Adjacency.ZERO_OUT,
        method="rdp",
    )
    assert spent == pytest.approx(expected.value, rel=1e-3)


def test_a_reservation_is_charged_until_it_is_withheld(budget):
    before = budget.ledger.balance.remaining
    ticket = budget.reserve(0)
    assert budget.ledger.balance.remaining < before
    budget.withheld(ticket)
    assert budget.ledger.balance.remaining == before


def test_a_lost_round_stays_paid_for_and_its_retry_pays_again(budget):
    before = budget.ledger.balance.remaining
    budget.lost(budget.reserve(0))
    once = before - budget.ledger.balance.remaining
    assert once > 0
    budget.released(budget.reserve(0), EVIDENCE)
    assert before - budget.ledger.balance.remaining == 2 * once


def test_every_reservation_is_an_attempt_of_its_own(budget):
    first, second = budget.reserve(0), budget.reserve(0)
    assert first.key != second.key
    assert budget.ledger.balance.reserved == first.ticks + second.ticks


def test_a_budget_lives_in_its_file_and_refuses_over_restarts(budget, tmp_path):
    path, header = tmp_path / "own" / "client-3.ledger", budget.ledger.header
    how = {"header": header, "client": 3, "event": budget.event}
    head = None
    for round_index in range(3):
        own = ClientBudget.open(path, **how, expect_head=head)
        head = own.released(own.reserve(round_index), EVIDENCE)
        own.close()
    own = ClientBudget.open(path, **how, expect_head=head)
    with pytest.raises(accounting.BudgetExceeded):
        own.reserve(3)
    made = own.statement()
    own.close()
    assert (made.participations, made.head) == (3, head)
    assert made.within_budget
    # The client samples its own records: their secrecy is its own, and stays.
    assert made.unamplified.value == pytest.approx(own_epsilon(budget.event, 3), rel=1e-9)


def own_epsilon(event, count):
    accountant = accounting.RDPAccountant(adjacency=accounting.Adjacency.ZERO_OUT)
    accountant.compose(event, count)
    return accountant.epsilon(1e-5).value


def test_a_crash_in_a_round_is_charged_when_the_budget_is_opened_again(budget):
    path, header = budget.ledger.path, budget.ledger.header
    ticket = budget.reserve(0)
    budget.close()
    again = ClientBudget.open(path, header=header, client=3, event=budget.event)
    assert again.ledger.open_tickets == ()
    assert again.ledger.spent == ticket.ticks
    again.close()


def test_a_lost_or_foreign_ledger_is_refused(budget, tmp_path):
    path, header = budget.ledger.path, budget.ledger.header
    head = budget.released(budget.reserve(0), EVIDENCE)
    how = {"client": 3, "event": budget.event}
    with pytest.raises(accounting.LedgerRolledBack, match="gone"):
        ClientBudget.open(tmp_path / "none.ledger", header=header, expect_head=head, **how)
    assert not (tmp_path / "none.ledger").exists()
    with pytest.raises(ConfigurationError, match="another plan or client"):
        ClientBudget.open(path, header=replace(header, epsilon=99.0), **how)
    with pytest.raises(accounting.LedgerRolledBack):
        unseen = accounting.Head(sequence=9, hash=bytes(32))
        ClientBudget.open(path, header=header, expect_head=unseen, **how)


def test_two_owners_of_one_ledger_never_share_a_ticket(budget, monkeypatch):
    # Both look at the same head before either writes: whatever names the ticket, it must differ.
    with accounting.Ledger.open(budget.ledger.path) as other:
        twin = ClientBudget(ledger=other, client=3, event=budget.event)
        head = budget.ledger.head
        assert head == twin.ledger.head
        monkeypatch.setattr(type(other), "head", property(lambda _self: head))
        tickets = [budget.reserve(0), twin.reserve(0)]
        assert tickets[0].key != tickets[1].key
    assert budget.ledger.reserved == sum(t.ticks for t in tickets)
