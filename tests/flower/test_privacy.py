"""Shares of noise through Flower: the law of the sum, and who is charged for what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

import numpy as np
from flower_world import NODES, Clock, FakeGrid, Site, train_message
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.exception import PrivacyBudgetExhausted
from flwr.serverapp.strategy import FedAvg

import accounting
from securefl.errors import BelowThreshold, ConfigurationError
from securefl.flower import DistributedDP, SecAggConfig, SecureClientApp, SecureGrid, Timing
from securefl.flower.plan import Plan
from securefl.flower.privacy import Budget, best_order
from securefl.round import RoundConfig

LENGTH = 2000
FLOOR = (
    '[floor.privacy]\nunit = "client"\nmin_noise_multiplier = 0.9\nmax_clip_norm = 1.0\n'
    "epsilon = {epsilon}\ndelta = 1e-6\n"
)


def big_model() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(LENGTH))})


def update_of(node: int) -> np.ndarray:
    """float64[LENGTH] of norm 1: nothing is clipped."""
    values = np.random.default_rng(node).normal(size=LENGTH)
    return np.asarray(values / np.linalg.norm(values) * (1 - 1e-9))


def app() -> ClientApp:
    made = SecureClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        arrays = ArrayRecord({"w": Array(update_of(context.node_id))})
        content = RecordDict({"a": arrays, "m": MetricRecord({"num-examples": 5, "loss": 1.0})})
        return Message(content, reply_to=message)

    return made


@pytest.fixture
def fresh(quick_folder: Path, request: pytest.FixtureRequest) -> Site:
    return Site(quick_folder / f"privacy-{abs(hash(request.node.name))}")


def private(site: Site, **changes: Any) -> tuple[SecureGrid, FakeGrid, accounting.Ledger]:
    clock = Clock()
    inner = FakeGrid({n: site.node(n, app()) for n in site.nodes}, clock=clock)
    terms = {
        "noise_multiplier": 1.0,
        "epsilon": 20.0,
        "delta": 1e-6,
        "ledger": site.folder / "population.ledger",
    } | {k: changes.pop(k) for k in ("noise_multiplier", "epsilon") if k in changes}
    fields: dict[str, Any] = {"clip_norm": 1.0, "weighting": "uniform", "roster": site.roster}
    fields |= changes
    config = SecAggConfig(
        privacy=DistributedDP(**terms),
        timing=Timing(poll=20.0),
        **fields,
    )
    grid = SecureGrid(inner, FedAvg(), config, clock=clock, sleep=clock.sleep)
    return grid, inner, accounting.Ledger.open(site.folder / "population.ledger")


def run(grid: SecureGrid) -> Message:
    (reply,) = grid.send_and_receive([train_message(node, big_model()) for node in NODES])
    return reply


def agreed(inner: FakeGrid) -> tuple[RoundConfig, Plan]:
    head: Any = next(
        s.message.content["securefl"] for s in inner.log if s.phase == "advertise_keys"
    )
    return RoundConfig.decode(head["config"]), Plan.parse(head["plan"])


def survivors_settled(ledger: accounting.Ledger) -> list[int]:
    entries = [e for e in ledger.entries() if e.kind is accounting.EntryKind.SETTLE]
    return [entry.evidence.survivors for entry in entries if entry.evidence is not None]


def test_the_noise_of_a_round_has_the_law_of_its_survivors_shares(fresh: Site) -> None:
    grid, inner, ledger = private(fresh)
    reply = run(grid)
    found = next(iter(reply.content.array_records.values()))["w"].numpy()
    mean = sum(map(update_of, NODES)) / len(NODES)
    config, plan = agreed(inner)
    assert plan.privacy is not None
    assert plan.privacy.honest_shares == config.n_min - config.A == 4
    # Six shares, of which four carry z = 1 of clip norm 1; divided by six survivors.
    expected = np.sqrt(6 / 4) / 6
    ratio = float(np.std(found - mean)) / expected
    # 2000 coordinates: one standard deviation of the ratio is 1.6 %; ten false alarms in 10^9. The
    # integers are up to 0.5 % longer than the vector, and rounding adds a little.
    assert 0.9 < ratio < 1.12
    ledger.close()


def test_a_population_is_charged_for_the_survivors_and_nothing_more(fresh: Site) -> None:
    grid, inner, ledger = private(fresh)
    inner.deal = lambda node, phase, count: (
        "lost" if (node, phase) == (105, "masked_input_collection") else "ok"
    )
    reply = run(grid)
    config, plan = agreed(inner)
    assert ledger.open_tickets == ()
    assert survivors_settled(ledger) == [5]
    accountant = accounting.RDPAccountant(adjacency=accounting.Adjacency.ZERO_OUT)
    accountant.compose(plan.event(5, config.A))
    metrics = next(iter(reply.content.metric_records.values()))
    assert metrics["securefl-epsilon"] == pytest.approx(accountant.epsilon(1e-6).value, rel=2e-2)
    assert metrics["num-examples"] == 5, "clients count alike"
    ledger.close()


def test_a_spent_budget_stops_the_run_before_anything_is_sent(fresh: Site) -> None:
    grid, inner, ledger = private(fresh, epsilon=6.0)
    rounds = 0
    with pytest.raises(PrivacyBudgetExhausted):
        for _ in range(50):
            run(grid)
            rounds += 1
    assert rounds >= 1
    asked = [s for s in inner.log if s.phase == "advertise_keys"]
    assert len(asked) == rounds * len(NODES)
    assert ledger.epsilon().value <= 6.0
    ledger.close()


@pytest.mark.parametrize(
    ("phase", "charged"),
    [("share_keys", False), ("masked_input_collection", True), ("unmasking", True)],
)
def test_a_lost_round_is_charged_once_inputs_may_have_left(
    phase: str, charged: bool, fresh: Site
) -> None:
    grid, inner, ledger = private(fresh)
    inner.deal = lambda node, at, count: "lost" if at == phase and node < 104 else "ok"
    with pytest.raises(BelowThreshold):
        run(grid)
    assert ledger.open_tickets == ()
    assert (ledger.spent > 0) is charged
    ledger.close()


def test_a_node_keeps_its_own_ledger_and_refuses_when_it_is_spent(fresh: Site) -> None:
    for node in NODES:
        fresh.write(node, floor=FLOOR.format(epsilon=30.0))
    fresh.write(103, floor=FLOOR.format(epsilon=6.0))
    grid, inner, ledger = private(fresh, epsilon=50.0)
    refused = 0
    for _ in range(4):
        before = len(inner.log)
        run(grid)
        codes = [
            str(s.reply.error.reason)
            for s in inner.log[before:]
            if s.node == 103 and s.reply is not None and s.reply.has_error()
        ]
        refused += codes == ["securefl:E106"]
        assert all(code == "securefl:E106" for code in codes)
    assert 1 <= refused < 4
    with accounting.Ledger.open(fresh.folder / "103" / "node.ledger") as own:
        assert own.epsilon().value <= 6.0
        assert own.open_tickets == ()
    with accounting.Ledger.open(fresh.folder / "104" / "node.ledger") as other:
        assert survivors_settled(other) == [len(record.survivors) for record in grid.history]
    ledger.close()


def test_a_node_charges_before_its_masked_vector_leaves(fresh: Site) -> None:
    fresh.write(103, floor=FLOOR.format(epsilon=30.0))
    grid, inner, ledger = private(fresh)
    spent_before: list[int] = []

    def watch(node: int, message: Message) -> Message:
        head: Any = message.content.get("securefl")
        if (
            node == 103
            and head is not None
            and head["phase"] in ("share_keys", "consistency_check")
        ):
            path = fresh.folder / "103" / "node.ledger"
            with accounting.Ledger.open(path) as own:
                spent_before.append(own.reserved + own.spent)
        return message

    inner.on_message = watch
    inner.deal = lambda node, at, count: "lost" if (node, at) == (103, "unmasking") else "ok"
    run(grid)
    assert spent_before[0] == 0
    assert spent_before[1] > 0
    with accounting.Ledger.open(fresh.folder / "103" / "node.ledger") as own:
        assert own.reserved == spent_before[1], "never asked again, so left charged"
    ledger.close()


@pytest.mark.parametrize(
    ("floor", "changes"),
    [
        (FLOOR.format(epsilon=30.0), {"noise_multiplier": 0.8}),
        (FLOOR.format(epsilon=30.0), {"clip_norm": 1.5}),
        (FLOOR.format(epsilon=1.0), {}),
    ],
)
def test_a_plan_below_a_nodes_privacy_floor_is_refused_before_training(
    floor: str, changes: dict[str, Any], fresh: Site
) -> None:
    fresh.write(103, floor=floor)
    grid, inner, ledger = private(fresh, **changes)
    run(grid)
    replies = [s.reply for s in inner.log if s.node == 103 and s.phase == "advertise_keys"]
    assert [str(r.error.reason) for r in replies if r is not None] == ["securefl:E106"]
    ledger.close()


@pytest.mark.parametrize("bad", [np.nan, -np.inf, None])
def test_failed_training_under_noise_is_zeros_and_noise_and_no_refusal(
    bad: float | None, fresh: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal would be an answer about single records that no ledger was charged for."""
    grid, inner, ledger = private(fresh)

    def diverged(message: Message, context: Context) -> Message:
        if bad is None:
            raise FloatingPointError("the loss of record 17 is not finite")
        values = np.array([bad, *update_of(context.node_id)[1:]])
        content = RecordDict({"a": ArrayRecord({"w": Array(values)})})
        return Message(content, reply_to=message)

    made = SecureClientApp()
    made.train()(diverged)
    inner.nodes[103].app = made
    reply = run(grid)
    assert grid.history[0].survivors == (1, 2, 3, 4, 5, 6)
    assert not any(s.reply.has_error() for s in inner.log if s.reply is not None)
    found = next(iter(reply.content.array_records.values()))["w"].numpy()
    mean = sum(update_of(node) for node in NODES if node != 103) / len(NODES)
    # Six shares of sigma 1/2 (z = 1 over four), divided by six: 0.204 per entry, and rounding.
    # False alarm: below 2^-40 for eight deviations of the norm.
    spread = 0.204 * len(mean) ** 0.5
    assert np.linalg.norm(found - mean) < spread + 8 * 0.204
    assert "zeros and noise go in its place" in caplog.text, "its owner can find it"
    ledger.close()


def test_weights_metrics_and_evaluation_do_not_go_with_noise(fresh: Site) -> None:
    terms = DistributedDP(noise_multiplier=1.0, epsilon=8.0, delta=1e-6, ledger="x")
    fields: dict[str, Any] = {"clip_norm": 1.0, "roster": fresh.roster, "privacy": terms}
    with pytest.raises(ConfigurationError, match="count alike"):
        SecAggConfig(max_weight=10, **fields)
    with pytest.raises(ConfigurationError, match="count alike"):
        SecAggConfig(weighting="uniform", metrics={"loss": (0.0, 1.0)}, **fields)


def test_a_budget_cannot_be_declared_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.ledger"
    Budget(path, population="p", epsilon=8.0, delta=1e-6).epsilon()
    with pytest.raises(ConfigurationError, match="another promise"):
        Budget(path, population="p", epsilon=9.0, delta=1e-6).epsilon()


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(1.0, 1e-6), (3.0, 1e-5), (8.0, 1e-6), (30.0, 1e-6)]
)
def test_no_other_order_holds_more_gaussian_rounds(epsilon: float, delta: float) -> None:
    """Independent of the formula: count rounds of a Gaussian in real ledgers' headers."""

    def rounds(order: float) -> float:
        header = accounting.LedgerHeader(
            population="p", unit=accounting.Unit.CLIENT, adjacency=accounting.Adjacency.ZERO_OUT,
            epsilon=epsilon, delta=delta, delta_reserve=delta / 1000, order=order, plan="0" * 64,
        )  # fmt: skip
        return header.budget / order

    best = rounds(best_order(epsilon, delta))
    for order in (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.5, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0):
        try:
            other = rounds(order)
        except accounting.AccountingError:
            continue
        assert other <= best * (1 + 1e-9)
