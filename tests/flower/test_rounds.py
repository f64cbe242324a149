"""Whole rounds in one process: what strategies get, and what any schedule of trouble comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

import numpy as np
from flower_world import (
    NODES,
    Clock,
    FakeGrid,
    FakeNode,
    Site,
    loss_of,
    make_app,
    model,
    train_message,
    trained,
    weight_of,
)
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.errors import BelowThreshold, ConfigurationError, PeerProtocolError
from securefl.flower import SecAggConfig, SecureGrid, Timing, Weighting
from securefl.flower.records import HELLO_TYPE
from securefl.flower.strategies import ACCEPTED, REFUSED

CLIP = 5.0
FAST = Timing(poll=20.0)


def config(site: Site, **changes: Any) -> SecAggConfig:
    fields: dict[str, Any] = {
        "clip_norm": CLIP,
        "max_weight": 100,
        "roster": site.roster,
        "timing": FAST,
    }
    return SecAggConfig(**(fields | changes))


def secure_grid(
    site: Site, settings: SecAggConfig, strategy: Any = None, **kwargs: Any
) -> tuple[SecureGrid, FakeGrid]:
    clock = Clock()
    inner = FakeGrid(kwargs.pop("nodes", None) or site.all(), clock=clock, **kwargs)
    chosen = flower.FedAvg(fraction_evaluate=0.0) if strategy is None else strategy
    return SecureGrid(inner, chosen, settings, clock=clock, sleep=clock.sleep), inner


def run(grid: SecureGrid, server_round: int = 1, nodes: tuple[int, ...] = NODES) -> Message:
    replies = list(
        grid.send_and_receive([train_message(node, model(), server_round) for node in nodes])
    )
    assert len(replies) == 1
    return replies[0]


def expected(survivors: list[int], *, uniform: bool = False) -> tuple[dict[str, Any], int]:
    """The weighted mean in float64, from the models the clients would have sent in clear."""
    weights = {node: 1 if uniform else weight_of(node) for node in survivors}
    total = sum(weights.values())
    base = model()
    mean = {}
    for key in ("w", "b"):
        parts = [
            weight * trained(base, node, 1)[key].numpy().astype(np.float64)
            for node, weight in weights.items()
        ]
        mean[key] = sum(parts) / total
    return mean, total


def assert_is_mean(reply: Message, survivors: list[int], *, uniform: bool = False) -> None:
    mean, total = expected(survivors, uniform=uniform)
    arrays = next(iter(reply.content.array_records.values()))
    # 32 bits, six clients of weight up to 100: 2^32 / 1200 steps per clip norm; float32 on top.
    step = CLIP / ((1 << 32) // (2 * 6 * 100)) + 2e-7
    for key, values in mean.items():
        assert np.abs(arrays[key].numpy() - values).max() <= step
    metrics = next(iter(reply.content.metric_records.values()))
    assert metrics["num-examples"] == total
    assert metrics["securefl-survivors"] == len(survivors)


# -- strategies -----------------------------------------------------------------------------------


def fresh(kind: type[flower.FedAvg]) -> flower.FedAvg:
    more = {"proximal_mu": 0.1} if kind is flower.FedProx else {}
    return kind(fraction_evaluate=0.0, min_train_nodes=6, min_available_nodes=6, **more)


@pytest.mark.parametrize("kind", ACCEPTED, ids=lambda kind: kind.__name__)
def test_an_accepted_strategy_computes_on_the_sum_what_it_does_on_single_replies(
    kind: type[flower.FedAvg], site: Site
) -> None:
    plain_nodes = {node: FakeNode(app=make_app(ClientApp), config={}) for node in NODES}
    strategy = fresh(kind)
    plain = strategy.start(
        grid=FakeGrid(plain_nodes, clock=Clock()), initial_arrays=model(), num_rounds=3
    )
    strategy = fresh(kind)
    grid, _ = secure_grid(site, config(site, metrics={"loss": (0.0, 10.0)}), strategy)
    secure = strategy.start(grid=grid, initial_arrays=model(), num_rounds=3)
    for key in ("w", "b", "seen"):
        ours, theirs = secure.arrays[key].numpy(), plain.arrays[key].numpy()
        assert ours.shape == theirs.shape
        if key == "seen":
            assert ours == model()["seen"].numpy()
        else:
            # Adaptive strategies divide by small numbers; three rounds amplify one rounding step.
            assert np.abs(ours - theirs).max() <= 2e-4
    for number in (1, 2, 3):
        found = secure.train_metrics_clientapp[number]["loss"]
        total = sum(map(weight_of, NODES))
        mean = sum(weight_of(node) * loss_of(node, number) for node in NODES) / total
        assert found == pytest.approx(mean, abs=1e-4)


def made(kind: type[Any]) -> Any:
    """A strategy with plausible numbers, whatever its constructor asks for."""
    if kind.__name__.startswith("DifferentialPrivacy"):
        more = {"clipped_count_stddev": 5.0}
        if "Fixed" in kind.__name__:
            more = {"clipping_norm": 1.0}
        return kind(strategy=flower.FedAvg(), noise_multiplier=1.0, num_sampled_clients=6, **more)
    return kind(client_learning_rate=0.1) if kind is flower.QFedAvg else kind()


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_a_strategy_that_needs_single_updates_is_refused_with_its_reason(
    kind: type[Any], site: Site
) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot run on a secure sum: it") as caught:
        secure_grid(site, config(site), made(kind))
    assert kind.__name__ in str(caught.value)
    assert REFUSED[kind] in str(caught.value)


def test_every_strategy_of_flower_is_accepted_or_refused_by_name() -> None:
    named = {getattr(flower, name) for name in flower.__all__ if name not in ("Result", "Strategy")}
    assert named == {*ACCEPTED, *REFUSED}


class _Overrides(flower.FedAvg):
    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return super().aggregate_train(server_round, list(replies)[:1])


class _Configures(flower.FedAvg):
    def configure_train(self, *args: Any, **kwargs: Any) -> Any:
        return super().configure_train(*args, **kwargs)


class _OverridesEvaluation(flower.FedAvg):
    def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
        return None


def test_what_decides_is_whose_aggregation_runs(site: Site) -> None:
    for kind in (_Overrides, _OverridesEvaluation):
        with pytest.raises(ConfigurationError, match="with_custom_strategy"):
            secure_grid(site, config(site), kind())
    patched = flower.FedAvg()
    patched.aggregate_train = lambda *_: (None, None)  # type: ignore[method-assign]  # a user's patch
    with pytest.raises(ConfigurationError, match="with_custom_strategy"):
        secure_grid(site, config(site), patched)
    secure_grid(site, config(site), _Configures())


def test_a_custom_strategy_is_its_users_word(site: Site) -> None:
    clock = Clock()
    grid = SecureGrid.with_custom_strategy(
        FakeGrid(site.all(), clock=clock), config(site), clock=clock, sleep=clock.sleep
    )
    assert_is_mean(run(grid), list(NODES))


# -- what goes through the grid -------------------------------------------------------------------


def test_training_in_clear_cannot_be_pushed(site: Site) -> None:
    grid, inner = secure_grid(site, config(site))
    for message_type in ("train", "train.custom", "evaluate"):
        message = train_message(101, model())
        message.metadata.message_type = message_type
        with pytest.raises(ConfigurationError, match="in clear"):
            grid.push_messages([message])
    assert inner.log == []


def test_evaluation_without_declared_metrics_is_refused(site: Site) -> None:
    grid, inner = secure_grid(site, config(site))
    message = train_message(101, model())
    message.metadata.message_type = "evaluate"
    with pytest.raises(ConfigurationError, match=r"fraction_evaluate=0\.0"):
        grid.send_and_receive([message])
    assert inner.log == []


def test_declared_metrics_are_evaluated_through_a_sum(site: Site) -> None:
    grid, inner = secure_grid(site, config(site, metrics={"loss": (0.0, 10.0)}))
    messages = [train_message(node, model()) for node in NODES]
    for message in messages:
        message.metadata.message_type = "evaluate"
    (reply,) = grid.send_and_receive(messages)
    metrics = next(iter(reply.content.metric_records.values()))
    total = sum(map(weight_of, NODES))
    mean = sum(weight_of(node) * loss_of(node, 0) for node in NODES) / total
    assert metrics["loss"] == pytest.approx(mean, abs=1e-4)
    assert metrics["num-examples"] == total
    assert {sent.message.metadata.message_type for sent in inner.log} == {
        "query.securefl",
        "train.securefl",
    }


def test_nodes_with_different_models_are_refused(site: Site) -> None:
    grid, _ = secure_grid(site, config(site))
    messages = [train_message(node, model(seed=node % 2)) for node in NODES]
    with pytest.raises(ConfigurationError, match="different models"):
        grid.send_and_receive(messages)


def test_no_messages_mean_no_session(site: Site) -> None:
    grid, inner = secure_grid(site, config(site))
    assert list(grid.send_and_receive([])) == []
    assert inner.log == []


@pytest.mark.parametrize("train_in", ["first", "masked"])
@pytest.mark.parametrize("weighting", list(Weighting))
def test_a_round_is_the_mean_in_either_phase_of_training_and_weighting(
    train_in: str, weighting: Weighting, site: Site
) -> None:
    uniform = weighting is Weighting.UNIFORM
    settings = config(
        site, train_in=train_in, weighting=weighting, max_weight=None if uniform else 100
    )
    grid, inner = secure_grid(site, settings)
    assert_is_mean(run(grid), list(NODES), uniform=uniform)
    with_model = [s.phase for s in inner.log if "securefl.arrays" in s.message.content]
    phase = "advertise_keys" if train_in == "first" else "masked_input_collection"
    assert with_model == [phase] * len(NODES)


@pytest.mark.parametrize("protocol", ["secagg", "secagg+"])
def test_a_semi_honest_round_needs_no_identities(protocol: str, tmp_path: Any) -> None:
    nodes = {}
    many = range(101, 121)
    for node in many:
        path = tmp_path / f"{node}.toml"
        path.write_text(
            f'schema = "securefl-node/1"\njournal = "{node}.sqlite"\n'
            '[floor]\nadversary = "semi-honest"\nmax_corrupt = 1\n'
        )
        nodes[node] = FakeNode(app=make_app(), config={"securefl": str(path)})
    clock = Clock()
    inner = FakeGrid(nodes, clock=clock)
    settings = SecAggConfig(
        clip_norm=CLIP,
        max_weight=20,
        protocol=protocol,  # type: ignore[arg-type]  # text is taken, too
        adversary="semi-honest",
        max_dropped=2,
        timing=FAST,
    )
    grid = SecureGrid(inner, flower.FedAvg(), settings, clock=clock, sleep=clock.sleep)
    inner.deal = lambda node, phase, count: (
        "lost" if node == 105 and phase == "masked_input_collection" else "ok"
    )
    reply = run(grid, nodes=tuple(many))
    assert_is_mean(reply, [node for node in many if node != 105])
    assert {sent.phase for sent in inner.log} == {
        "advertise_keys", "share_keys", "masked_input_collection", "unmasking"
    }  # fmt: skip


# -- trouble --------------------------------------------------------------------------------------

PHASES = (
    "advertise_keys",
    "share_keys",
    "masked_input_collection",
    "consistency_check",
    "unmasking",
)
TROUBLE = ("lost", "error", "late", "twice", "crash")


@pytest.fixture(scope="module")
def any_site(quick_folder: Path) -> Site:
    made = Site(quick_folder / "any")
    for node in NODES:
        made.write(node, floor='adversary = "semi-honest"')
    return made


@given(
    script=st.dictionaries(
        st.tuples(st.sampled_from(NODES), st.sampled_from(("query.securefl", *PHASES))),
        st.sampled_from(TROUBLE),
        max_size=4,
    ),
    reverse=st.booleans(),
    train_in=st.sampled_from(["first", "masked"]),
    adversary=st.sampled_from(["active", "semi-honest"]),
)
@settings(max_examples=40)
def test_any_schedule_gives_the_exact_mean_of_the_survivors_or_a_clear_loss(
    script: dict[tuple[int, str], str],
    reverse: bool,
    train_in: str,
    adversary: str,
    any_site: Site,
) -> None:
    # Six clients tolerate one dropout against a server that lies, two against one that does not.
    dropped = 1 if adversary == "active" else 2
    grid, inner = secure_grid(
        any_site,
        config(any_site, max_dropped=dropped, train_in=train_in, adversary=adversary),
        deal=lambda node, phase, count: script.get((node, phase), "ok"),
    )
    if reverse:
        inner.order = lambda replies: replies[::-1]
    try:
        reply = run(grid)
    except BelowThreshold as error:
        assert error.had < error.needed
        assert grid.history[-1].lost == str(error)
    else:
        ids: dict[int, int] = dict(enumerate(sorted(NODES)))
        if adversary == "active":
            ids = {int(m.client): int(m.name[5:]) for m in any_site.roster.members}
        survivors = [ids[client] for client in grid.history[-1].survivors]
        assert set(survivors) <= set(NODES)
        assert len(survivors) >= len(NODES) - dropped
        assert_is_mean(reply, survivors)
        silent = {n for (n, p), what in script.items() if p in PHASES[:3] and what != "twice"}
        assert not silent & set(survivors)


def test_a_lost_round_can_be_tried_again_or_skipped(site: Site) -> None:
    lost = {101, 102, 103}

    def deal(node: int, phase: str, count: int) -> str:
        return "lost" if phase == "share_keys" and node in lost and count == 1 else "ok"

    grid, inner = secure_grid(site, config(site, retries=1), deal=deal)
    inner.deal = deal
    grid._exchange._unanswered.clear()
    assert_is_mean(run(grid), list(NODES))
    first, second = grid.history
    assert "share_keys" in first.lost
    assert second.lost == ""
    assert first.session != second.session
    asked = [sent for sent in inner.log if sent.phase == "advertise_keys"]
    assert len(asked) == 2 * len(NODES), "a new attempt trains again"

    grid, _ = secure_grid(
        site, config(site, on_abort="skip"), deal=lambda n, p, c: "lost" if n in lost else "ok"
    )
    assert list(grid.send_and_receive([train_message(node, model()) for node in NODES])) == []
    assert grid.history[0].lost
    grid, _ = secure_grid(site, config(site), deal=lambda n, p, c: "lost" if n in lost else "ok")
    with pytest.raises(BelowThreshold):
        run(grid)


def test_a_slow_node_is_left_out_until_it_is_free(site: Site) -> None:
    grid, inner = secure_grid(
        site,
        config(site),
        deal=lambda n, p, c: "late" if n == 104 and p == "share_keys" else "ok",
    )
    assert_is_mean(run(grid), [node for node in NODES if node != 104])
    assert 104 not in grid.get_node_ids()
    inner.clock.now += 121  # past deadline and slack: the message has expired
    assert 104 in grid.get_node_ids()


def test_a_late_answer_frees_its_node_and_is_thrown_away(site: Site) -> None:
    grid, inner = secure_grid(
        site,
        config(site),
        deal=lambda n, p, c: "late" if n == 104 and p == "masked_input_collection" else "ok",
    )
    run(grid)
    assert 104 not in grid.get_node_ids()
    inner.replies = [(0.0, reply) for _, reply in inner.replies]
    assert 104 in grid.get_node_ids()
    assert inner.replies == []


def test_the_grace_period_ends_a_phase_and_a_full_house_ends_it_at_once(site: Site) -> None:
    timing = Timing(poll=1.0, grace=15.0)
    grid, inner = secure_grid(site, config(site, timing=timing))
    run(grid)
    assert inner.clock.now == 0
    grid, inner = secure_grid(
        site,
        config(site, timing=timing),
        deal=lambda n, p, c: "lost" if n == 104 and p == "share_keys" else "ok",
    )
    run(grid)
    assert inner.clock.now == 15


def test_the_strategys_timeout_caps_the_whole_round(site: Site) -> None:
    grid, inner = secure_grid(
        site,
        config(site, timing=Timing(poll=1.0)),
        deal=lambda n, p, c: "lost" if p == "share_keys" else "ok",
    )
    with pytest.raises(BelowThreshold, match="share_keys"):
        grid.send_and_receive([train_message(n, model()) for n in NODES], timeout=40)
    assert inner.clock.now == 40


def test_refusals_are_counted_in_the_error(site: Site) -> None:
    for node in NODES[:3]:
        site.write(node, floor="min_cohort = 6")
    try:
        grid, _ = secure_grid(site, config(site))
        with pytest.raises(BelowThreshold, match=r"3 of 6 clients refused: E104 .*\(3\)"):
            run(grid)
    finally:
        for node in NODES:
            site.write(node)


def test_two_nodes_that_claim_one_identity_are_both_out(site: Site) -> None:
    nodes = site.all()
    nodes[999] = site.node(101)
    grid, _ = secure_grid(site, config(site, max_dropped=2, n_min=5), nodes=nodes)
    reply = run(grid, nodes=(*NODES, 999))
    assert_is_mean(reply, [node for node in NODES if node != 101])
    assert grid.history[0].refusals["E107"] == 2


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1, "could not be loaded"),
        (2, "runs no SecureFL client"),
        (3, "incomplete"),
        (5, "node is gone"),
        (8, "process ended"),
    ],
)
@pytest.mark.parametrize("phase", ["query.securefl", "share_keys", "unmasking"])
def test_an_error_counts_for_the_node_that_was_asked_whoever_sends_it(
    number: int, words: str, phase: str, site: Site
) -> None:
    """For a node that is gone the SuperLink answers itself, under its own id."""

    def send(replies: list[Message]) -> list[Message]:
        for reply in replies:
            if reply.has_error():
                reply.error = Error(number, "whatever Flower says")
                reply.metadata.__dict__["_src_node_id"] = 1
        return replies

    grid, inner = secure_grid(
        site, config(site), deal=lambda n, p, c: "error" if (n, p) == (104, phase) else "ok"
    )
    inner.order = send
    survivors = [node for node in NODES if node != 104 or phase == "unmasking"]
    assert_is_mean(run(grid), survivors)
    assert grid.history[0].failures == {number: 1}
    assert words in grid.history[0].complaints()
    assert 104 in grid.get_node_ids(), "its answer came, so it is free"


def test_plain_client_apps_send_nothing_and_are_named(site: Site) -> None:
    nodes = {n: FakeNode(app=make_app(ClientApp), config={}) for n in NODES}
    grid, inner = secure_grid(site, config(site), nodes=nodes)
    with pytest.raises(BelowThreshold, match="runs no SecureFL client"):
        run(grid)
    assert all(sent.reply is not None and sent.reply.has_error() for sent in inner.log)


def _array(data: bytes, stype: str = "numpy.ndarray") -> RecordDict:
    array = Array(dtype="uint8", shape=(3,), stype=stype, data=data)
    return RecordDict({"frame": ArrayRecord({"frame": array})})


def _npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize(
    "content",
    [
        _array(b""),
        _array(b"garbage"),
        _array(b"garbage", stype="pickle"),
        _array(_npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4611686018427387904,)}\n")),
        _array(_npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}\n") + b"cos\nsystem"),
        _array(_npy("[" * 3000 + "\n")),
        RecordDict(),
        RecordDict({"frame": ConfigRecord({"frame": b""})}),
        RecordDict({"frame": ConfigRecord({"frame": [1.5, 2.5]})}),
        RecordDict({"frame": MetricRecord({"frame": 1})}),
    ],
)
def test_no_reply_of_a_node_can_end_the_run_of_the_others(content: RecordDict, site: Site) -> None:
    nodes = site.all()
    honest = nodes[103].app

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == HELLO_TYPE:
            return honest(message, context)
        return Message(content, reply_to=message)

    nodes[103].app = answer  # type: ignore[assignment]  # an app of its own
    grid, _ = secure_grid(site, config(site), nodes=nodes)
    assert run(grid).content["metrics"]["securefl-survivors"] == 5
    assert 3 not in grid.history[0].survivors


def test_a_vector_that_no_client_could_have_sent_is_no_model(site: Site) -> None:
    """A client that encodes by other rules loses the round; it never becomes a wrong model."""
    from securefl.flower.plan import Plan

    original = Plan.encode

    def lies(self: Plan, update: Any, **kwargs: Any) -> Any:
        vector = original(self, update, **kwargs)
        vector.values[-1] = 1 << 20
        return vector

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "encode", lies)
        grid, _ = secure_grid(site, config(site))
        with pytest.raises(PeerProtocolError):
            run(grid)


def test_metrics_without_a_range_and_everything_else_stay_on_the_node(site: Site) -> None:
    grid, _ = secure_grid(site, config(site, metrics={"loss": (0.0, 10.0)}))
    reply = run(grid)
    assert set(reply.content) == {"arrays", "metrics"}
    metrics = reply.content["metrics"]
    assert isinstance(metrics, MetricRecord)
    assert set(metrics) == {"num-examples", "securefl-survivors", "loss"}
    arrays = reply.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    assert list(arrays) == list(model())
    assert {k: v.numpy().dtype for k, v in arrays.items()} == {
        k: v.numpy().dtype for k, v in model().items()
    }
