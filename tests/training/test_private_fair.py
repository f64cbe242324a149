"""q-FedAvg under user-level privacy: bounds from public numbers, the paper's step without noise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.encoding import Contribution, NoisyCodec, NoisySpec, noisy, sum_encoded
from securefl.encoding.joint import SideEntry, SideEntryCodec
from securefl.errors import ConfigurationError
from securefl.round import AggregateSum, ClientId
from securefl.training.apply import ServerOptimiser
from securefl.training.local import FlatModel, LocalSGD, TrainingDiverged, evaluate
from securefl.training.models import build
from securefl.training.qfedavg import PrivateFairAveraging, largest_h

SIZES = (12, 30, 7)
SEED = bytes(range(32))


def clients(learning_rate=0.2, scale=1.0, **settings_):
    """Three clients of different sizes on one softmax model, not at zero."""
    model = FlatModel(build("softmax", input_shape=(6,), classes=3, seed=0))
    model.load(np.random.default_rng(0).normal(0, 0.3, model.dim).astype(np.float32))
    made = []
    for k, n in enumerate(SIZES):
        rng = np.random.default_rng(n)
        x = (scale * rng.normal(size=(n, 6))).astype(np.float32)
        made.append(
            LocalSGD(
                model=model,
                x=x,
                y=rng.integers(3, size=n),
                client=k,
                learning_rate=learning_rate,
                epochs=settings_.get("epochs", 2),
                batch_size=5,
            )
        )
    return model, made


def fair(**changes):
    fields = {"q": 1.0, "loss_cap": 4.0, "clip_norm": 0.5, "learning_rate": 0.2, "floor": 0.01}
    return PrivateFairAveraging(**(fields | changes))


@settings(max_examples=25)
@given(
    q=st.floats(1.0, 6.0),
    loss_cap=st.floats(0.1, 10.0),
    clip_norm=st.floats(0.01, 5.0),
    learning_rate=st.floats(0.01, 1.0),
    scale=st.floats(0.01, 30.0),
)
def test_what_a_client_sends_is_within_public_bounds_whatever_its_records_are(
    q, loss_cap, clip_norm, learning_rate, scale
):
    """For q >= 1 the bound on h is a theorem, so nothing is cut: h is the formula's, in float64."""
    model, locals_ = clients(learning_rate, scale)
    algorithm = fair(q=q, loss_cap=loss_cap, clip_norm=clip_norm, learning_rate=learning_rate)
    start = model.vector()
    for local in locals_:
        update = algorithm.trainer(local).train(start, round_index=3)
        assert len(update.values) == algorithm.payload(model.dim) == model.dim + 1
        model.load(start)
        loss = min(evaluate(model, local.x, local.y)[0], loss_cap)
        raw = local.train(start, round_index=3).values.astype(np.float64)
        clipped = raw * min(1.0, clip_norm / np.linalg.norm(raw))
        f = (loss / loss_cap) ** q
        h = f + q * f / loss * clipped @ clipped / learning_rate
        assert h <= algorithm.room * (1 + 1e-6)
        assert update.values[:-1] == pytest.approx(f * clipped, rel=1e-4, abs=1e-7)
        assert update.values[-1] == pytest.approx(h / algorithm.room, rel=1e-4, abs=1e-9)
        assert 0.0 <= update.values[-1] <= 1.0


def test_a_loss_near_zero_counts_as_the_largest_h_where_q_is_below_one():
    """For q < 1 h grows without bound as the loss falls: it is cut to the public bound."""
    model, (local, *_) = clients()
    local = LocalSGD(
        model=model, x=local.x * 0, y=local.y * 0, client=0, learning_rate=0.2, epochs=1
    )
    start = model.vector()
    start[-3:] = [60.0, 0.0, 0.0]  # all records are of class 0, and the model is sure of it
    algorithm = fair(q=0.1, loss_cap=1.0, clip_norm=1e-3)
    drift = np.full(model.dim, 1.0, dtype=np.float32)

    class Drifting:
        learning_rate, client = local.learning_rate, 0
        model, x, y = local.model, local.x, local.y

        def train(self, start, *, round_index):
            return local.train(start, round_index=round_index, correction=drift)

    update = algorithm.trainer(Drifting()).train(start, round_index=0)
    assert update.values[-1] == 1.0


def coded(algorithm, updates, *, side, clip_norm, denominator):
    """The means as the server gets them, without the noise."""
    spec = NoisySpec.plan(
        dimension=len(updates[0].values),
        clip_norm=side.norm,
        noise_multiplier=1e-4,
        honest_shares=len(updates),
        max_clients=len(updates),
        contribution=Contribution.CLIENT,
        units=len(updates),
        resolution=2.0**28,
    )
    codec = SideEntryCodec(NoisyCodec(spec), side=side, clip_norm=clip_norm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noisy, "draw", lambda table, count, source: np.zeros(count, np.int64))
        vectors = [codec.encode(u.values, share=u.share, round_seed=SEED) for u in updates]
    opened = AggregateSum(
        vector=sum_encoded(vectors),
        survivors=tuple(ClientId(i) for i in range(len(vectors))),
        min_honest=1,
    )
    return codec.decode(opened, round_seed=SEED, denominator=denominator).mean


@pytest.mark.parametrize("q", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("denominator", [3.0, 7.5])
def test_without_noise_the_step_is_the_papers_with_clipped_updates(q, denominator):
    """Whatever the public denominator is: it cancels between the two means."""
    C, rate = 0.3, 0.2
    model, locals_ = clients(rate)
    start = model.vector()
    L = 1.0 / rate
    numerator, h = np.zeros(model.dim), 0.0
    for local in locals_:
        model.load(start)
        loss = evaluate(model, local.x, local.y)[0]
        delta = local.train(start, round_index=0).values.astype(np.float64)
        delta *= min(1.0, C / np.linalg.norm(delta))
        numerator += loss**q * L * delta
        h += q * loss ** (q - 1) * (L * delta) @ (L * delta) + L * loss**q
    algorithm = fair(q=q, clip_norm=C, learning_rate=rate, floor=1e-6)
    updates = [algorithm.trainer(local).train(start, round_index=0) for local in locals_]
    mean = coded(
        algorithm, updates, side=SideEntry(kappa=0.7), clip_norm=C, denominator=denominator
    )
    found = algorithm.server(ServerOptimiser.sgd(model.dim)).apply(start, mean)
    assert np.abs(found - (start + numerator / h)).max() < 1e-5


def test_noise_in_h_cannot_make_a_step_longer_than_its_floor_allows():
    algorithm = fair(floor=0.05)
    start = np.zeros(3, np.float32)
    for entry in (-2.0, 0.0, 1e-12, 0.05 / algorithm.room / 2):
        server = algorithm.server(ServerOptimiser.sgd(3))
        moved = server.apply(start, np.array([0.01, 0.0, -0.01, entry]))
        assert moved == pytest.approx([0.2, 0.0, -0.2])
    assert server.apply(start, np.array([0.01, 0.0, -0.01, 1.0]))[0] == pytest.approx(
        0.01 / algorithm.room
    )


def test_the_largest_h_is_public_arithmetic():
    assert largest_h(2.0, 4.0, 0.5, 0.1) == 1 + 2 * 0.25 / 0.4
    assert fair(q=2.0, learning_rate=0.1).room == largest_h(2.0, 4.0, 0.5, 0.1)


def test_a_global_model_that_overflows_names_the_client():
    model, (local, *_) = clients()
    x = np.array(local.x)
    x *= np.float32(1e38)
    spoilt = LocalSGD(model=model, x=x, y=local.y, client=5, learning_rate=0.1, epochs=1)
    with pytest.raises(TrainingDiverged, match="client 5"):
        fair().trainer(spoilt).train(model.vector() * np.float32(1e3), round_index=0)


@pytest.mark.parametrize("name", ["q", "loss_cap", "clip_norm", "learning_rate", "floor"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_impossible_numbers_are_refused(name, value):
    with pytest.raises(ConfigurationError, match=name):
        fair(**{name: value})
