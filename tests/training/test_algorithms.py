"""q-FedAvg, FedNova and SCAFFOLD: the papers' formulas, their limits, and that they converge."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from securefl.encoding.codec import CodecSpec, UpdateCodec, Weighting, sum_encoded
from securefl.errors import CheckpointError, ConfigurationError
from securefl.round import AggregateSum, ClientId
from securefl.training.apply import ServerOptimiser
from securefl.training.fednova import NormalisedAveraging, path_length
from securefl.training.local import LocalSGD, TrainingDiverged, evaluate
from securefl.training.payload import Averaging, bounded
from securefl.training.qfedavg import FairAveraging
from securefl.training.scaffold import Scaffold

C = 5.0
SIZES = (12, 30, 7)


@pytest.fixture
def locals_(softmax, records):
    """`locals_(**settings)`: three clients of different sizes on one model."""

    def make(**settings):
        model = softmax()
        chosen = {"learning_rate": 0.2, "epochs": 1, **settings}
        return model, [
            LocalSGD(model=model, x=x, y=y, client=k, **chosen)
            for k, (x, y) in enumerate(records(n=n, seed=n) for n in SIZES)
        ]

    return make


def plain_mean(updates, weights=None):
    return np.average(
        np.stack([u.values.astype(np.float64) for u in updates]), axis=0, weights=weights
    )


def coded_mean(updates, clip_norm, weights=None):
    """The mean as a server gets it: encoded, added modulo m, decoded."""
    spec = CodecSpec.plan(
        dimension=len(updates[0].values),
        clip_norm=clip_norm,
        max_clients=len(updates),
        bits=52,
        weighting=Weighting.WEIGHTED if weights else Weighting.EQUAL,
        max_weight=max(weights) if weights else 1,
    )
    codec = UpdateCodec(spec)
    vectors = [
        codec.encode(u.values, weight=w)
        for u, w in zip(updates, weights or [1] * len(updates), strict=True)
    ]
    survivors = tuple(ClientId(i) for i in range(len(updates)))
    opened = AggregateSum(vector=sum_encoded(vectors), survivors=survivors, min_honest=1)
    return codec.decode(opened).mean


def one_round(algorithm, clients, start, *, round_index=0, weights=None, optimiser=None):
    """A round through codec and modular sum; returns what the next one starts from."""
    model = clients[0].model
    trainers = [algorithm.trainer(local, clip_norm=C) for local in clients]
    server = algorithm.server(optimiser or ServerOptimiser.sgd(model.dim), clip_norm=C)
    updates = [t.train(start, round_index=round_index) for t in trainers]
    mean = coded_mean(updates, algorithm.clip_norm(C), weights)
    return server.apply(start, mean, survivors=len(updates))


def losses(model, clients, start):
    model.load(start)
    return [evaluate(model, local.x, local.y)[0] for local in clients]


# ---------------------------------------------------------------- q-FedAvg


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_q_fedavg_is_the_papers_step(locals_, q, rate):
    model, clients = locals_(learning_rate=rate, epochs=2, batch_size=5)
    start = model.vector()
    F = losses(model, clients, start)
    deltas = [local.train(start, round_index=0).values.astype(np.float64) for local in clients]
    L = 1.0 / rate
    numerator = sum(f**q * L * d for f, d in zip(F, deltas, strict=True))
    h = sum(q * f ** (q - 1) * (L * d) @ (L * d) + L * f**q for f, d in zip(F, deltas, strict=True))
    expected = start + numerator / h
    algorithm = FairAveraging(q=q, loss_cap=8.0, room=1000.0)
    assert np.abs(one_round(algorithm, clients, start) - expected).max() < 1e-6


@pytest.mark.parametrize("weights", [None, list(SIZES)])
def test_q_zero_is_fedavg(locals_, weights):
    model, clients = locals_(epochs=2, batch_size=5)
    start = model.vector()
    fair = one_round(FairAveraging(q=0.0, loss_cap=2.0), clients, start, weights=weights)
    fedavg = one_round(Averaging(), clients, start, weights=weights)
    assert np.abs(fair - fedavg).max() < 1e-6
    assert np.abs(fedavg - start).max() > 1e-2


def test_a_larger_q_lets_the_client_with_the_larger_loss_decide(locals_):
    model, clients = locals_(learning_rate=0.05)
    start = model.vector()
    worst = int(np.argmax(losses(model, clients, start)))
    direction = clients[worst].train(start, round_index=0).values.astype(np.float64)

    def towards(q):
        step = one_round(FairAveraging(q=q, loss_cap=6.0), clients, start) - start
        return float(step @ direction / np.linalg.norm(step) / np.linalg.norm(direction))

    assert towards(0.0) < towards(1.0) < towards(6.0)


def test_the_loss_cap_bounds_what_a_loss_counts(locals_):
    model, clients = locals_()
    start = model.vector()
    F = losses(model, clients, start)
    cap = 0.5 * min(F)  # every loss counts as the cap: then the factors are equal
    capped = one_round(FairAveraging(q=3.0, loss_cap=cap, room=1e6), clients, start)
    deltas = [local.train(start, round_index=0).values.astype(np.float64) for local in clients]
    h = np.mean([1 + 3.0 / cap * (d @ d) / 0.2 for d in deltas])
    assert np.abs(capped - (start + np.mean(deltas, axis=0) / h)).max() < 1e-6


def test_a_payload_that_is_too_long_is_scaled_as_a_whole(locals_):
    """Clipping then makes the client count less; it never bends the ratio of the two sums."""
    model, clients = locals_(epochs=3)
    start = model.vector()
    one = clients[:1]
    algorithm = FairAveraging(q=2.0, loss_cap=6.0)
    payload = algorithm.trainer(one[0], clip_norm=C).train(start, round_index=0)
    tight = 0.1 * float(np.linalg.norm(payload.values))
    server = algorithm.server(ServerOptimiser.sgd(model.dim), clip_norm=C)
    free = server.apply(start, plain_mean([payload]))
    cut = server.apply(start, coded_mean([payload], tight))
    assert np.abs(cut - free).max() < 1e-5


def test_a_loss_of_zero_is_no_infinite_weight(softmax):
    model = softmax()
    x = np.zeros((4, 6), dtype=np.float32)
    y = np.zeros(4, dtype=np.int64)
    start = np.zeros(model.dim, dtype=np.float32)
    start[18:] = (200.0, 0.0, 0.0)  # the bias says class 0: loss exactly 0
    local = LocalSGD(model=model, x=x, y=y, client=0, learning_rate=0.1, epochs=1)
    update = (
        FairAveraging(q=0.1, loss_cap=1.0).trainer(local, clip_norm=C).train(start, round_index=0)
    )
    assert np.isfinite(update.values).all()


def test_a_global_model_that_overflows_names_the_client(softmax, records):
    x, y = records(n=5)
    model = softmax()
    local = LocalSGD(model=model, x=x, y=y, client=3, learning_rate=0.1, epochs=1)
    trainer = FairAveraging(q=1.0, loss_cap=1.0).trainer(local, clip_norm=C)
    with pytest.raises(TrainingDiverged, match="client 3"):
        trainer.train(np.full(model.dim, 3e38, np.float32), round_index=0)


def test_an_h_that_rounds_to_zero_is_refused():
    server = FairAveraging(q=1.0, loss_cap=1.0).server(ServerOptimiser.sgd(2), clip_norm=C)
    for h in (0.0, float("nan")):
        with pytest.raises(ConfigurationError, match="lower loss_cap"):
            server.apply(np.zeros(2, np.float32), np.array([0.0, 0.0, h]))


# ---------------------------------------------------------------- FedNova


@given(
    steps=st.integers(1, 40),
    rate=st.floats(0.001, 0.5),
    momentum=st.floats(0.01, 0.95),
    proximal=st.floats(0.01, 1.0),
)
def test_path_lengths_are_the_papers_closed_forms(steps, rate, momentum, proximal):
    # Wang et al. (2020), section 4: ||a||_1 for plain, momentum and proximal SGD.
    assert path_length(steps, learning_rate=rate) == steps
    with_momentum = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    assert path_length(steps, learning_rate=rate, momentum=momentum) == pytest.approx(
        with_momentum, rel=1e-9
    )
    with_term = (1 - (1 - rate * proximal) ** steps) / (rate * proximal)
    assert path_length(steps, learning_rate=rate, proximal=proximal) == pytest.approx(
        with_term, rel=1e-9
    )


@pytest.mark.parametrize("weights", [None, list(SIZES)])
@pytest.mark.parametrize("reference", [1.0, 7.0])
def test_fednova_is_the_papers_step(locals_, weights, reference):
    model, clients = locals_(epochs=2, batch_size=5, momentum=0.5)
    start = model.vector()
    updates = [local.train(start, round_index=0) for local in clients]
    assert len({u.steps for u in updates}) == 3
    p = np.array(weights or [1, 1, 1], dtype=np.float64)
    p /= p.sum()
    a = np.array([path_length(u.steps, learning_rate=0.2, momentum=0.5) for u in updates])
    normalised = np.stack(
        [u.values.astype(np.float64) / k for u, k in zip(updates, a, strict=True)]
    )
    expected = start + (p @ a) * (p @ normalised)
    algorithm = NormalisedAveraging(longest=100.0, reference=reference)
    found = one_round(algorithm, clients, start, weights=weights)
    assert np.abs(found - expected).max() < 2e-6


def test_fednova_with_equal_steps_is_fedavg(locals_):
    model, clients = locals_(epochs=None, steps=4, batch_size=5)
    start = model.vector()
    nova = one_round(NormalisedAveraging(longest=10.0, reference=4.0), clients, start)
    fedavg = one_round(Averaging(), clients, start)
    assert np.abs(nova - fedavg).max() < 1e-6


def test_a_long_update_does_not_change_the_path_length(locals_):
    """The update's part is clipped alone; the length beside it stays exact."""
    model, clients = locals_(learning_rate=50.0, epochs=3, batch_size=5)
    start = model.vector()
    algorithm = NormalisedAveraging(longest=20.0, reference=20.0)
    update = algorithm.trainer(clients[1], clip_norm=C).train(start, round_index=0)
    assert np.linalg.norm(update.values[:-1]) == pytest.approx(C, rel=1e-5)
    assert update.values[-1] == pytest.approx(C * 18 / 20.0, rel=1e-6)


def test_a_path_beyond_the_public_bound_is_not_sent(locals_):
    model, clients = locals_(epochs=3, batch_size=5)
    trainer = NormalisedAveraging(longest=4.0).trainer(clients[0], clip_norm=C)
    with pytest.raises(ConfigurationError, match=r"client 0, round 2: 9 local steps.* bound is 4"):
        trainer.train(model.vector(), round_index=2)
    with pytest.raises(ConfigurationError, match="steps must be at least 1"):
        path_length(0, learning_rate=0.1)


# ---------------------------------------------------------------- SCAFFOLD


class Federation:
    """SCAFFOLD over rounds, with whoever survives each of them."""

    def __init__(self, clients, **settings):
        self.clients = clients
        self.algorithm = Scaffold(clients=len(clients), **settings)
        self.trainers = [self.algorithm.trainer(local, clip_norm=C) for local in clients]
        self.server = self.algorithm.server(ServerOptimiser.sgd(clients[0].model.dim), clip_norm=C)

    def round(self, state, round_index, survivors=None):
        chosen = range(len(self.clients)) if survivors is None else survivors
        updates = [t.train(state, round_index=round_index) for t in self.trainers]
        for k, trainer in enumerate(self.trainers):
            trainer.settle(included=k in chosen)
        if not chosen:
            return state
        mean = plain_mean([updates[k] for k in chosen])
        return self.server.apply(state, mean, survivors=len(chosen))


def test_scaffold_with_zero_controls_is_fedavg(locals_):
    model, clients = locals_(epochs=2, batch_size=5)
    start = model.vector()
    algorithm = Scaffold(clients=3)
    after = one_round(algorithm, clients, algorithm.begin(start))
    fedavg = one_round(Averaging(), clients, start)
    assert np.abs(after[: model.dim] - fedavg).max() < 1e-6
    payloads = [
        algorithm.trainer(c, clip_norm=C).train(algorithm.begin(start), round_index=0)
        for c in clients
    ]
    for payload, local in zip(payloads, clients, strict=True):
        # The model's half is bit-equal: a correction of zero is no correction.
        expected = local.train(start, round_index=0).values
        assert np.array_equal(payload.values[: model.dim], expected)


def test_scaffold_is_the_papers_listing(locals_):
    """Three rounds against option II in float64, with torch's gradients and explicit loops."""
    model, clients = locals_(epochs=None, steps=3, learning_rate=0.1)  # full batches
    federation = Federation(clients, control_scale=0.3)
    state = federation.algorithm.begin(model.vector())
    w, c = model.vector().astype(np.float64), np.zeros(model.dim)
    controls = [np.zeros(model.dim) for _ in clients]

    def gradient(y, local):
        x, labels = local.x.astype(np.float64), local.y
        logits = x @ y[:18].reshape(3, 6).T + y[18:]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(labels)), labels] -= 1
        return np.concatenate([(p.T @ x).reshape(-1), p.sum(axis=0)]) / len(labels)

    for r in range(3):
        state = federation.round(state, r)
        dw, dc = np.zeros(model.dim), np.zeros(model.dim)
        for k, local in enumerate(clients):
            y = w.copy()
            for _ in range(3):
                y -= 0.1 * (gradient(y, local) - controls[k] + c)
            new = controls[k] - c + (w - y) / (3 * 0.1)
            dw, dc = dw + (y - w) / 3, dc + (new - controls[k]) / 3
            controls[k] = new
        w, c = w + dw, c + dc
        assert np.abs(state[: model.dim] - w).max() < 2e-6
        assert np.abs(state[model.dim :] - c).max() < 1e-5


@settings(max_examples=15)
@given(
    st.lists(st.sets(st.integers(0, 2)), min_size=1, max_size=6),
    st.sampled_from([0.05, 5.0]),
)
def test_the_global_control_stays_the_mean_of_all_controls_whoever_drops(rounds, rate):
    from securefl.training.local import FlatModel
    from securefl.training.models import build

    model = FlatModel(build("softmax", input_shape=(2,), classes=2, seed=0))
    rng = np.random.default_rng(0)
    clients = [
        LocalSGD(
            model=model,
            x=rng.normal(k, 1, (8, 2)).astype(np.float32),
            y=(np.arange(8) % 2).astype(np.int64),
            client=k,
            learning_rate=rate,  # 5.0 makes updates so long that they are clipped
            steps=2,
            batch_size=4,
        )
        for k in range(3)
    ]
    federation = Federation(clients)
    state = federation.algorithm.begin(model.vector())
    for r, survivors in enumerate(rounds):
        state = federation.round(state, r, sorted(survivors))
    mean = np.mean([t.control for t in federation.trainers], axis=0)
    assert np.abs(state[model.dim :] - mean).max() < 1e-5


def test_a_client_keeps_the_control_that_it_sent_also_where_clipping_cut_it(locals_):
    model, clients = locals_()
    algorithm = Scaffold(clients=3, control_scale=0.5)
    trainer = algorithm.trainer(clients[0], clip_norm=0.01)
    update = trainer.train(algorithm.begin(model.vector()), round_index=0)
    sent = update.values[model.dim :]
    assert np.linalg.norm(sent) == pytest.approx(0.01, rel=1e-4)
    assert np.linalg.norm(update.values[: model.dim]) == pytest.approx(0.01, rel=1e-4)
    trainer.settle(included=True)
    assert trainer.control == pytest.approx(sent / 0.5, rel=1e-5)


def test_an_unsettled_update_counts_as_lost(locals_):
    model, clients = locals_()
    trainer = Scaffold(clients=3).trainer(clients[0], clip_norm=C)
    state = Scaffold(clients=3).begin(model.vector())
    first = trainer.train(state, round_index=0)
    again = trainer.train(state, round_index=0)
    assert np.array_equal(first.values, again.values)
    assert not trainer.control.any()
    trainer.settle(included=True)
    assert trainer.control.any()
    kept = trainer.control
    trainer.settle(included=True)  # nothing is pending any more
    assert np.array_equal(trainer.control, kept)


def test_a_control_survives_a_checkpoint(locals_):
    model, clients = locals_()
    algorithm = Scaffold(clients=3)
    whole = algorithm.trainer(clients[0], clip_norm=C)
    whole.train(algorithm.begin(model.vector()), round_index=0)
    whole.settle(included=True)
    resumed = algorithm.trainer(clients[0], clip_norm=C)
    resumed.load_state_dict(whole.state_dict())
    state = algorithm.begin(model.vector())
    a, b = whole.train(state, round_index=1), resumed.train(state, round_index=1)
    assert np.array_equal(a.values, b.values)
    for wrong in (
        {},
        {"control": np.zeros(3, np.float32)},
        {"control": np.zeros(model.dim)},
        {"control": np.full(model.dim, np.nan, np.float32)},
    ):
        with pytest.raises(CheckpointError, match="client 0: expected a control of 21"):
            resumed.load_state_dict(wrong)


def test_scaffold_refuses_what_its_controls_cannot_follow(locals_):
    _, with_momentum = locals_(momentum=0.5)
    _, with_term = locals_(proximal=0.1)
    for clients in (with_momentum, with_term):
        with pytest.raises(ConfigurationError, match="momentum and proximal must be 0"):
            Scaffold(clients=3).trainer(clients[0], clip_norm=C)
    server = Scaffold(clients=3).server(ServerOptimiser.sgd(2), clip_norm=C)
    for survivors in (0, 4):
        with pytest.raises(ConfigurationError, match=r"survivors must be in 1\.\.3"):
            server.apply(np.zeros(4, np.float32), np.zeros(4), survivors=survivors)
    with pytest.raises(ConfigurationError, match="control contains NaN"):
        server.apply(np.zeros(4, np.float32), np.array([0.0, 0.0, np.nan, 0.0]))


# ---------------------------------------------------------------- all of them


@pytest.fixture
def skewed(softmax):
    """Three clients whose label rule differs, so that their own optima lie far apart."""

    def make(**settings):
        model = softmax(features=2, classes=2)
        rng = np.random.default_rng(7)
        clients = []
        for k in range(3):
            x = rng.normal(0, 1, (40, 2)).astype(np.float32)
            score = x @ np.array([np.cos(k), np.sin(k)]) + (k - 1)
            y = (score + rng.logistic(0, 1, 40) > 0).astype(np.int64)
            per = {name: value[k] for name, value in settings.items()}
            clients.append(LocalSGD(model=model, x=x, y=y, client=k, **per))
        return model, clients

    return make


def gradient_norm(model, clients, w):
    """Norm of the gradient of the mean of the clients' losses."""
    model.load(w)
    total = torch.zeros(model.dim)
    for local in clients:
        loss = functional.cross_entropy(
            model.module(torch.from_numpy(local.x)), torch.from_numpy(local.y)
        )
        total += model.gradient(loss) / len(clients)
    return float(total.norm())


def test_scaffold_finds_the_common_optimum_where_fedavg_stops_short(skewed):
    """Full batches, ten local steps: FedAvg's fixed point is bent by the local steps."""
    model, clients = skewed(learning_rate=[0.5] * 3, steps=[10] * 3)
    state = model.vector()
    for r in range(150):
        state = one_round(Averaging(), clients, state, round_index=r)
    bent = gradient_norm(model, clients, state)
    federation = Federation(clients)
    state = federation.algorithm.begin(model.vector() * 0)
    for r in range(150):
        state = federation.round(state, r)
    assert gradient_norm(model, clients, state[: model.dim]) < 1e-4
    assert bent > 3e-3


def test_fednova_is_not_bent_by_who_takes_more_steps(skewed):
    model, clients = skewed(learning_rate=[0.02] * 3, steps=[1, 4, 16])
    found = {}
    for name, algorithm in (
        ("fedavg", Averaging()),
        ("fednova", NormalisedAveraging(longest=16.0, reference=7.0)),
    ):
        state = np.zeros(model.dim, dtype=np.float32)
        for r in range(250):
            state = one_round(algorithm, clients, state, round_index=r)
        found[name] = gradient_norm(model, clients, state)
    assert found["fednova"] < 0.1 * found["fedavg"]


@pytest.mark.parametrize(
    "algorithm",
    [FairAveraging(q=1.0, loss_cap=1.4), NormalisedAveraging(longest=8.0), Scaffold(clients=3)],
)
def test_every_algorithm_checks_the_length_of_what_it_is_given(algorithm):
    server = algorithm.server(ServerOptimiser.sgd(2), clip_norm=C)
    start = algorithm.begin(np.zeros(2, dtype=np.float32))
    with pytest.raises(ConfigurationError, match="shape"):
        server.apply(start, np.zeros(algorithm.payload(2) + 1))


@pytest.mark.parametrize(
    ("algorithm", "after"),
    [
        (FairAveraging(q=0.0, loss_cap=1.4), np.array([1.0, 2.0, C / 4.0])),
        (NormalisedAveraging(longest=1.0), np.array([1.0, 2.0, C])),
        (Scaffold(clients=1), np.array([1.0, 2.0, 0.0, 0.0])),
    ],
)
def test_the_servers_optimiser_and_its_state_work_under_every_algorithm(algorithm, after):
    """Two steps with momentum .5: 1 + 1.5 times the update; and a resume in between."""
    start = algorithm.begin(np.zeros(2, dtype=np.float32))
    first = algorithm.server(ServerOptimiser.sgd(2, momentum=0.5), clip_norm=C)
    once = first.apply(start, after)
    resumed = algorithm.server(ServerOptimiser.sgd(2, momentum=0.5), clip_norm=C)
    resumed.load_state_dict(first.state_dict())
    twice = resumed.apply(once, after)
    assert twice[:2] == pytest.approx([2.5, 5.0], rel=1e-6)


def test_bounded_leaves_short_vectors_as_they_are():
    short = np.array([0.3, 0.4], dtype=np.float32)
    assert bounded(short, 0.6) is short
    assert np.linalg.norm(bounded(short, 0.1)) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FairAveraging(q=-1.0, loss_cap=1.0), "q must be"),
        (lambda: FairAveraging(q=1.0, loss_cap=0.0), "loss_cap"),
        (lambda: FairAveraging(q=1.0, loss_cap=1.0, room=0.5), "room"),
        (lambda: NormalisedAveraging(longest=0.0), "longest"),
        (lambda: NormalisedAveraging(longest=1.0, reference=float("inf")), "reference"),
        (lambda: Scaffold(clients=0), "clients"),
        (lambda: Scaffold(clients=1, control_scale=0.0), "control_scale"),
    ],
)
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
