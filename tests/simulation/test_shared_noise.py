"""Whole runs in which the clients share the noise of a sum: real machines, one real ledger."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import accounting
from securefl.config import Mode, RunConfig, load_preset
from securefl.encoding.codec import Codec, UpdateCodec
from securefl.encoding.compression import CompressedCodec, RandomK
from securefl.encoding.noisy import NoisyCodec
from securefl.errors import CheckpointError, ConfigurationError
from securefl.pipeline import private_round
from securefl.population import PopulationBudget
from securefl.round import AggregateSum, ClientId
from securefl.simulation.checkpoint import latest_checkpoint
from securefl.simulation.engine import Engine, RunResult, read_metrics
from securefl.simulation.insecure import InsecureRandomness
from securefl.simulation.sweep import run_sweep
from securefl.simulation.transports import DropPlan
from securefl.training.apply import ServerOptimiser
from securefl.training.data import TrainTest, load

SMALL = (
    "partition.clients=6",
    "aggregation.threshold=4",
    "simulation.dropped_per_round=1",
    "distributed_dp.steps=5",
    "distributed_dp.sample_rate=0.1",
    "user_level_dp.steps=5",
    "user_level_dp.sample_rate=0.5",
    "user_level_dp.clip_norm=1.0",
    "distributed_dp.planned_dropouts=0",
    "distributed_dp.at=minimum",
    "sweep.epsilons=[20.0]",
    "sweep.seeds=[0]",
)
BOTH = pytest.mark.parametrize("mode", ["distributed-dp", "user-level-dp"])


@pytest.fixture(scope="module")
def digits() -> TrainTest:
    return load("digits")


def config(mode: str, *overrides: str) -> RunConfig:
    return load_preset("digits", [*SMALL, f'sweep.modes=["{mode}"]', *overrides])


def engine(settings: RunConfig, folder: Path, dataset: TrainTest, **arguments: Any) -> Engine:
    return Engine(settings, settings.runs()[0], folder, dataset=dataset, **arguments)


def run(
    settings: RunConfig,
    folder: Path,
    dataset: TrainTest,
    *,
    stop_after: int | None = None,
    resume: bool = False,
    insecure: InsecureRandomness | None = None,
) -> RunResult:
    lines: list[Mapping[str, Any]] = []
    made = engine(
        settings,
        folder,
        dataset,
        on_round=lines.append,
        should_stop=lambda: stop_after is not None and len(lines) >= stop_after,
        insecure=insecure,
    )
    return made.run(resume=resume)


def ledger(folder: Path) -> accounting.VerifiedLedger:
    return accounting.Ledger.verify(folder / "ledgers" / "population.sqlite")


def epsilon_of(*events: accounting.Event) -> float:
    whole = accounting.Compose(events=events)
    return accounting.epsilon(whole, 1e-5, adjacency="zero-out", method="rdp").value


# -- the ledger and the target -------------------------------------------------------------------


@BOTH
def test_a_run_ends_when_the_next_reservation_does_not_fit_and_never_above_its_target(
    tmp_path: Path, digits: TrainTest, mode: str
) -> None:
    settings = config(mode)
    made = engine(settings, tmp_path / "run", digits)
    result = made.run()
    assert (result.stopped, result.summary["status"]) == ("budget", "ok")
    assert result.summary["rounds"] >= 5  # planned at the minimum, so what was left trained on
    assert 0 < result.summary["epsilon"] <= 20.0
    assert made.shared is not None
    release = made.shared.plan.release
    entries = ledger(tmp_path / "run").entries
    settled = [e for e in entries if e.kind is accounting.EntryKind.SETTLE]
    reserved = [e for e in entries if e.kind is accounting.EntryKind.RESERVE]
    assert len(settled) == len(reserved) == result.summary["rounds"]
    assert {e.event for e in reserved} == {release.dearest}
    lines = read_metrics(tmp_path / "run")
    # The ledger is the composition of what the survivors made of each round ...
    realised = [release.event(line["survivors"]) for line in lines]
    assert [e.event for e in settled] == realised
    assert result.summary["epsilon"] == pytest.approx(epsilon_of(*realised), rel=1e-6)
    # ... and one more round at the reserved price would pass the target.
    assert epsilon_of(*realised, release.dearest) > 20.0 * (1 - 1e-3)


@BOTH
def test_nothing_is_read_before_the_round_is_paid_for(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    from securefl.training import shared as training

    made = engine(config(mode), tmp_path / "run", digits)
    assert made.shared is not None
    held: list[int] = []
    for kind in (training.RecordSum, training.SecretParticipation):
        original = kind.train

        def train(self: Any, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            assert made.shared is not None
            held.append(made.shared.budget.ledger.reserved)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(kind, "train", train)
    made.run()
    assert held
    assert min(held) > 0


@BOTH
def test_a_run_without_budget_for_a_round_trains_nobody(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    settings = config(mode)
    made = engine(settings, tmp_path / "run", digits)
    monkeypatch.setattr(PopulationBudget, "reserve", _refuse)
    result = made.run()
    assert (result.stopped, result.summary["rounds"]) == ("budget", 0)
    assert result.summary["status"] == "budget"
    assert result.summary["epsilon"] == 0.0


def _refuse(_self: PopulationBudget, _round: int) -> accounting.Ticket:
    raise accounting.BudgetExceeded("spent", spent=1.0, requested=1.0, limit=1.0)


def test_planned_attendance_uses_up_exactly_the_planned_steps(
    tmp_path: Path, digits: TrainTest
) -> None:
    """Calibrated for one dropout and one colluder of six; drops fall before the input here."""
    settings = config(
        "distributed-dp",
        "distributed_dp.at=planned",
        "distributed_dp.planned_dropouts=1",
        "distributed_dp.steps=20",
    )
    made = engine(settings, tmp_path / "run", digits)
    always_early = _EarlyDrops(seed=0, per_round=1)
    made.transport = replace(made.transport, plan=always_early)
    result = made.run()
    assert {line["survivors"] for line in read_metrics(tmp_path / "run")} == {5}
    rounds = result.summary["rounds"]
    assert made.shared is not None
    release = made.shared.plan.release
    settled = [release.event(5)] * 20
    assert epsilon_of(*settled) == pytest.approx(20.0, rel=1e-3)
    # It ends where the next reservation, at the minimum, does not fit any more.
    assert epsilon_of(*settled[: rounds - 1], release.dearest) <= 20.0
    assert epsilon_of(*settled[:rounds], release.dearest) > 20.0 * (1 - 1e-3)
    assert 15 < rounds < 20


class _EarlyDrops(DropPlan):
    """Everybody who vanishes does so before its input."""

    def drops(self, round_index: int, present: Any) -> Any:
        gone = [c for clients in super().drops(round_index, present).values() for c in clients]
        return {"share_keys": tuple(gone)}


def test_steps_end_a_run_that_asks_for_no_more(tmp_path: Path, digits: TrainTest) -> None:
    result = run(config("distributed-dp", "distributed_dp.stop=steps"), tmp_path / "run", digits)
    assert (result.stopped, result.summary["rounds"]) == ("rounds", 5)
    assert result.summary["epsilon"] < 20.0


# -- lost rounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fidelity", ["protocol", "encoded"])
def test_a_sum_with_less_noise_than_was_paid_for_stays_closed(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch, fidelity: str
) -> None:
    """The protocol would open sums of four; the ledger pays for sums of six only."""
    from securefl.protocols.secagg.server import SecAggServer

    settings = config(
        "distributed-dp", f"aggregation.fidelity={fidelity}", "simulation.max_lost_rounds=1"
    )
    made = engine(settings, tmp_path / "run", digits)
    assert made.shared is not None
    made.shared.plan = replace(made.shared.plan, fewest=6)
    made.transport = replace(made.transport, plan=_EarlyDrops(seed=0, per_round=1))
    decoded: list[object] = []
    monkeypatch.setattr(NoisyCodec, "decode", lambda *a, **k: decoded.append(a))
    phases: list[str] = []
    original = SecAggServer.receive

    def receive(self: Any, *args: Any) -> Any:
        phases.append(str(self.phase))
        return original(self, *args)

    monkeypatch.setattr(SecAggServer, "receive", receive)
    result = made.run()
    assert result.stopped == "lost-rounds"
    assert not decoded
    assert "unmasking" not in phases  # no client answered a request
    # The inputs were under way: the reserved price stays.
    assert made.shared.plan.release.dearest in [e.event for e in ledger(tmp_path / "run").entries]
    assert result.summary["rounds_charged"] == 1
    assert 0 < result.summary["epsilon"] <= 20.0


def test_a_round_below_the_threshold_is_charged_and_changes_nothing(
    tmp_path: Path, digits: TrainTest
) -> None:
    settings = config("distributed-dp", "simulation.max_lost_rounds=1")
    made = engine(settings, tmp_path / "run", digits)
    made.transport = replace(made.transport, plan=_LateDrops(seed=0, per_round=4))
    before = made.model.vector()
    result = made.run()
    assert result.stopped == "lost-rounds"
    assert result.summary["rounds_charged"] == 1
    with np.load(tmp_path / "run" / "model.npz") as arrays:
        assert np.array_equal(arrays["vector"], before)


class _LateDrops(DropPlan):
    """Everybody who vanishes does so after its input."""

    def drops(self, round_index: int, present: Any) -> Any:
        gone = [c for clients in super().drops(round_index, present).values() for c in clients]
        return {"unmasking": tuple(gone)}


# -- same bits, whatever sums --------------------------------------------------------------------


@BOTH
def test_the_protocol_and_a_plain_sum_of_the_same_integers_give_the_same_bits(
    tmp_path: Path, digits: TrainTest, mode: str
) -> None:
    found = {}
    for fidelity in ("protocol", "encoded"):
        settings = config(mode, f"aggregation.fidelity={fidelity}")
        folder = tmp_path / fidelity
        found[fidelity] = run(settings, folder, digits, insecure=InsecureRandomness(7)).summary
    assert found["protocol"]["model_sha256"] == found["encoded"]["model_sha256"]
    assert found["protocol"]["epsilon"] == found["encoded"]["epsilon"]
    assert found["protocol"]["bytes_up_per_client"] > 0 == found["encoded"]["bytes_up_per_client"]
    assert {found[f]["fidelity"] for f in found} == {"protocol", "encoded"}


def test_two_runs_with_the_systems_coins_differ(tmp_path: Path, digits: TrainTest) -> None:
    hashes = {
        run(
            config("distributed-dp", "distributed_dp.steps=1", "distributed_dp.stop=steps"),
            tmp_path / str(i),
            digits,
        ).summary["model_sha256"]
        for i in range(2)
    }
    assert len(hashes) == 2


def test_repeatable_coins_mark_the_ledger_the_summary_and_the_report(tmp_path: Path) -> None:
    settings = config("distributed-dp", "distributed_dp.steps=2")
    dataset = load("digits")
    result = run(settings, tmp_path / "run", dataset, insecure=InsecureRandomness(1))
    assert result.summary["randomness"] == "injected"
    assert ledger(tmp_path / "run").header.randomness is accounting.Randomness.INJECTED
    # An honest run cannot go on with that ledger.
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="another plan"):
        run(settings, tmp_path / "run", dataset, resume=True)


def test_repeatable_coins_are_refused_where_they_would_go_unmarked(
    tmp_path: Path, digits: TrainTest
) -> None:
    with pytest.raises(ConfigurationError, match="share their noise"):
        run(config("local-dp"), tmp_path / "run", digits, insecure=InsecureRandomness(1))


@BOTH
def test_one_draw_for_the_sum_runs_and_says_so_in_every_record(
    tmp_path: Path, digits: TrainTest, mode: str
) -> None:
    settings = config(mode, "aggregation.fidelity=aggregate")
    summary = run(settings, tmp_path / "run", digits).summary
    assert summary["fidelity"] == "aggregate"
    assert "one draw of noise" in summary["protocol"]
    assert {line["fidelity"] for line in read_metrics(tmp_path / "run")} == {"aggregate"}
    last = [e.evidence for e in ledger(tmp_path / "run").entries if e.evidence is not None][-1]
    assert "one draw of noise" in last.protocol
    assert 0 < summary["epsilon"] <= 20.0


@pytest.mark.usefixtures("small_keys")
@pytest.mark.parametrize(
    "protocol", ["secagg+", "lightsecagg", "paillier", "paillier-threshold", "peersum"]
)
def test_every_protocol_carries_the_noise(tmp_path: Path, digits: TrainTest, protocol: str) -> None:
    settings = config(
        "distributed-dp",
        f'aggregation.protocol="{protocol}"',
        "distributed_dp.steps=2",
        "distributed_dp.stop=steps",
        "partition.clients=9",
        "aggregation.threshold=6",
    )
    summary = run(settings, tmp_path / "run", digits).summary
    assert summary["rounds"] == 2
    assert summary["rounds_lost"] == 0
    assert 0 < summary["epsilon"] <= 20.0


@pytest.mark.parametrize("mode", ["distributed-dp", "user-level-dp"])
def test_slots_that_hold_numbers_are_so_wide_that_no_clients_wrap_is_seen(
    tmp_path: Path, digits: TrainTest, mode: str
) -> None:
    residues = engine(config(mode), tmp_path / "a", digits)
    numbers = engine(config(mode, "aggregation.protocol=paillier"), tmp_path / "b", digits)
    assert residues.shared is not None
    assert numbers.shared is not None
    assert 2 * numbers.shared.plan.spec.reach < numbers.shared.plan.spec.modulus
    # Wider, not finer: the integers are the same.
    assert numbers.shared.plan.spec.bits >= residues.shared.plan.spec.bits
    assert numbers.shared.plan.spec.resolution == residues.shared.plan.spec.resolution
    bits = (2 * residues.shared.plan.spec.reach).bit_length() - 1
    section = mode.replace("-", "_")
    with pytest.raises(ConfigurationError, match=r"adds numbers|bits"):
        engine(
            config(mode, "aggregation.protocol=paillier", f"{section}.bits={bits}"),
            tmp_path / "c",
            digits,
        )


# -- the law of the noise ------------------------------------------------------------------------


@pytest.mark.parametrize("fidelity", ["protocol", "aggregate"])
def test_the_decoded_noise_of_a_whole_round_has_the_law_of_the_central_mechanism(
    tmp_path: Path, digits: TrainTest, fidelity: str
) -> None:
    """Nobody's record is sampled, so the decoded sum is noise alone: s shares of variance mu.

    650 coordinates of each of 6 rounds against the normal law of that variance (rounding error is
    a 400th of the standard deviation); Kolmogorov-Smirnov at 1e-5.
    """
    settings = config(
        "distributed-dp",
        "distributed_dp.sample_rate=1e-9",
        "distributed_dp.steps=6",
        "distributed_dp.stop=steps",
        "sweep.epsilons=[0.001]",
        f"aggregation.fidelity={fidelity}",
    )
    made = engine(settings, tmp_path / "run", digits)
    assert made.shared is not None
    plan = made.shared.plan
    drawn: list[np.ndarray] = []
    for index in range(6):
        survivors = 5
        codec = made.shared.codec
        vectors = [
            codec.encode_zero(random_bytes=os.urandom, round_seed=bytes(32))
            for _ in range(survivors)
        ]
        total = vectors[0]
        for vector in vectors[1:]:
            total = total + vector
        if fidelity == "aggregate":
            total = made.shared.finish(total, survivors, index)
        aggregate = AggregateSum(
            vector=total,
            survivors=tuple(ClientId(i) for i in range(survivors)),
            min_honest=4,
        )
        drawn.append(codec.decode(aggregate, round_seed=bytes(32), denominator=1.0).mean)
    spec = plan.spec
    std = np.sqrt(5 * spec.mu_share) * spec.clip_norm / spec.resolution
    assert std == pytest.approx(
        spec.noise_multiplier * spec.clip_norm * spec.inflation * np.sqrt(5 / spec.honest_shares)
    )
    assert stats.kstest(np.concatenate(drawn) / std, "norm").pvalue > 1e-5


# -- views ---------------------------------------------------------------------------------------


@BOTH
def test_every_line_and_the_summary_tell_what_each_onlooker_learns(
    tmp_path: Path, digits: TrainTest, mode: str
) -> None:
    result = run(config(mode), tmp_path / "run", digits)
    lines = read_metrics(tmp_path / "run")
    for line in lines:
        seen = line["epsilon_by_view"]
        assert seen["models"] == seen["server"] < seen["server_and_colluders"]
        assert seen["server_and_colluders"] == pytest.approx(line["epsilon"], rel=1e-6)
        assert seen["aggregation_broken"] > seen["server_and_colluders"]
    assert result.summary["epsilon_by_view"] == lines[-1]["epsilon_by_view"]
    survivors = Counter(line["survivors"] for line in lines)
    made = engine(config(mode), tmp_path / "other", digits)
    assert made.shared is not None
    release = made.shared.plan.release
    outsider = epsilon_of(*(e for s, n in survivors.items() for e in [release.event(s, 0)] * n))
    assert result.summary["epsilon_by_view"]["models"] == pytest.approx(outsider)


# -- secret participation ------------------------------------------------------------------------


def test_what_a_client_sends_and_when_does_not_depend_on_its_coin(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths, senders, recipients, phases and order of all frames, for coins always and never."""
    from securefl.simulation import transports

    def transcript(rate: float, folder: str) -> list[tuple[Any, ...]]:
        settings = config("user-level-dp", "user_level_dp.steps=1", "user_level_dp.stop=steps")
        made = engine(settings, tmp_path / folder, digits)
        assert made.shared is not None
        seen: list[tuple[Any, ...]] = []

        class Recording(transports.InMemoryNetwork):
            def __init__(self, **_: Any) -> None:
                super().__init__(keep_transcript=False)

            def send(self, sender: Any, recipient: Any, frame: bytes, *, phase: str) -> None:
                seen.append((sender, recipient, len(frame), phase))
                super().send(sender, recipient, frame, phase=phase)

        with monkeypatch.context() as patch:
            patch.setattr(transports, "InMemoryNetwork", Recording)
            coins = "securefl.training.shared.poisson_sample"
            patch.setattr(coins, lambda n, q, source: np.arange(n if rate else 0))
            made.run()
        return seen

    always, never = transcript(1.0, "always"), transcript(0.0, "never")
    assert len(always) > 30
    assert always == never


@pytest.mark.parametrize("mode", ["local-dp", "distributed-dp", "user-level-dp"])
def test_no_line_tells_how_long_the_clients_trained(
    tmp_path: Path, digits: TrainTest, mode: str
) -> None:
    """That time is proportional to how many coins fell; the whole run's is told, also resumed."""
    settings = config(mode, 'aggregation.fidelity="encoded"', "training.rounds=4")
    run(settings, tmp_path, digits, stop_after=2)
    saved = latest_checkpoint(tmp_path / "checkpoints")
    assert saved is not None
    before = float(saved.arrays["clock"][1])
    assert before > 0
    summary = run(settings, tmp_path, digits, resume=True).summary
    lines = read_metrics(tmp_path)
    for line in lines:
        assert not {"train", "encode"} & line["seconds"].keys()
        assert "elapsed" not in line
    told = sum(sum(line["seconds"].values()) for line in lines)
    assert summary["seconds"] > told + before


def test_the_noise_does_not_follow_the_coins(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no client sampled at all, the sum still holds a share of every survivor."""
    settings = config("user-level-dp", "user_level_dp.steps=1", "user_level_dp.stop=steps")
    made = engine(settings, tmp_path / "run", digits)
    monkeypatch.setattr(
        "securefl.training.shared.poisson_sample", lambda n, q, source: np.arange(0)
    )
    before = made.model.vector()
    made.run()
    with np.load(tmp_path / "run" / "model.npz") as arrays:
        moved = arrays["vector"] - before
    assert made.shared is not None
    spec, plan = made.shared.plan.spec, made.shared.plan
    survivors = read_metrics(tmp_path / "run")[0]["survivors"]
    std = np.sqrt(survivors * spec.mu_share) * spec.clip_norm / spec.resolution / plan.denominator
    # 650 coordinates: the standard error of the ratio is 2.8 %; ten of them.
    assert np.std(moved) == pytest.approx(std, rel=0.28)


def test_adaptive_clipping_moves_the_norm_and_survives_a_restart(
    tmp_path: Path, digits: TrainTest
) -> None:
    settings = config("user-level-dp", 'user_level_dp.clipping="adaptive"')

    def norms(folder: Path) -> list[float]:
        return [line["clip_norm"] for line in read_metrics(folder)]

    run(settings, tmp_path / "whole", digits, insecure=InsecureRandomness(4))
    run(settings, tmp_path / "run", digits, stop_after=2, insecure=InsecureRandomness(4))
    assert norms(tmp_path / "run") == norms(tmp_path / "whole")[:2]
    run(settings, tmp_path / "run", digits, resume=True, insecure=InsecureRandomness(4))
    assert norms(tmp_path / "run") == norms(tmp_path / "whole")
    assert len(set(norms(tmp_path / "run"))) > 2


# -- killed and resumed --------------------------------------------------------------------------


@BOTH
def test_an_interrupted_run_resumes_to_the_same_bits(
    tmp_path: Path, digits: TrainTest, mode: str
) -> None:
    settings = config(mode, f"{mode.replace('-', '_')}.momentum=0.9")
    whole = run(settings, tmp_path / "whole", digits, insecure=InsecureRandomness(3)).summary
    for stop_after in (0, 1, 3):
        folder = tmp_path / str(stop_after)
        first = run(settings, folder, digits, stop_after=stop_after, insecure=InsecureRandomness(3))
        assert first.stopped == "interrupted"
        resumed = run(settings, folder, digits, resume=True, insecure=InsecureRandomness(3))
        for key in ("model_sha256", "epsilon", "epsilon_by_view", "rounds", "rounds_charged"):
            assert resumed.summary[key] == whole[key]


@pytest.mark.parametrize("where", ["carry", "decode", "_record", "_save"])
def test_a_run_that_is_killed_anywhere_pays_for_every_round_it_ever_reserved(
    tmp_path: Path, digits: TrainTest, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    settings = config("distributed-dp")
    folder = tmp_path / "run"
    made = engine(settings, folder, digits)
    owner: Any = {"carry": type(made.transport), "decode": NoisyCodec}.get(where, Engine)
    original = getattr(owner, where)
    calls = 0

    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, killed)
        with pytest.raises(KeyboardInterrupt):
            made.run()
    resumed = run(settings, folder, digits, resume=True)
    reserved = [e for e in ledger(folder).entries if e.kind is accounting.EntryKind.RESERVE]
    # Where the kill fell inside a round or before its checkpoint, that round was carried out twice.
    assert resumed.summary["rounds_charged"] == len(reserved) == resumed.summary["rounds"] + 1
    assert resumed.summary["epsilon"] <= 20.0
    assert [line["round"] for line in read_metrics(folder)] == list(
        range(resumed.summary["rounds"])
    )


def test_a_population_ledger_from_before_the_checkpoint_is_refused(
    tmp_path: Path, digits: TrainTest
) -> None:
    settings, folder = config("distributed-dp"), tmp_path / "run"
    run(settings, folder, digits, stop_after=1)
    shutil.copytree(folder / "ledgers", tmp_path / "backup")
    run(settings, folder, digits, stop_after=1, resume=True)
    shutil.rmtree(folder / "ledgers")
    with pytest.raises(accounting.LedgerRolledBack):
        run(settings, folder, digits, resume=True)
    shutil.copytree(tmp_path / "backup", folder / "ledgers")
    with pytest.raises(accounting.LedgerRolledBack):
        run(settings, folder, digits, resume=True)


# -- sweeps and configurations -------------------------------------------------------------------


def test_a_sweep_shows_all_modes_and_what_each_onlooker_learns(tmp_path: Path) -> None:
    settings = config(
        "distributed-dp",
        'sweep.modes=["none", "local-dp", "distributed-dp", "user-level-dp"]',
        "training.rounds=2",
        "local_dp.steps_per_round=1",
    )
    summary = run_sweep(settings, tmp_path / "out")
    assert summary is not None
    rows = {row["mode"]: row for row in summary["rows"]}
    assert list(rows) == ["none", "local-dp", "distributed-dp", "user-level-dp"]
    for mode in ("distributed-dp", "user-level-dp"):
        assert rows[mode]["epsilon_by_view"]["server_and_colluders"] <= 20.0
        assert rows[mode]["colluding"] == 1
        folder = tmp_path / "out" / f"{mode}-20-s0"
        assert json.loads((folder / "summary.json").read_text())["unit"] == (
            "record" if mode == "distributed-dp" else "client"
        )
    write_report = pytest.importorskip(
        "securefl.report", reason="the report is an extra of its own"
    ).write_report
    page = write_report(tmp_path / "out").read_text()
    assert "An onlooker" in page or "an onlooker" in page
    assert "A client that adds no noise is not noticed" in page


def test_floating_point_is_refused_with_a_ledger(tmp_path: Path, digits: TrainTest) -> None:
    with pytest.raises(ConfigurationError, match="mode none only"):
        run(config("distributed-dp", "aggregation.fidelity=float"), tmp_path / "run", digits)


def test_a_small_target_is_met_although_the_search_looks_where_no_codec_exists(
    tmp_path: Path, digits: TrainTest
) -> None:
    """The search asks for z = 256, whose shares no codec carries, before it finds its answer."""
    settings = config("distributed-dp", "sweep.epsilons=[0.1]", "distributed_dp.steps=1000")
    made = engine(settings, tmp_path / "run", digits)
    assert made.shared is not None
    assert 64 < made.shared.plan.spec.noise_multiplier < 227


def test_a_target_beyond_what_is_set_aside_for_the_samplers_is_refused(
    tmp_path: Path, digits: TrainTest
) -> None:
    """Their distance to the true law counts 1 + e^epsilon times; the slack has e^20."""
    with pytest.raises(ConfigurationError, match="at most 20"):
        engine(config("distributed-dp", "sweep.epsilons=[20.5]"), tmp_path, digits)


def test_noise_that_no_share_can_carry_is_refused_with_its_numbers(
    tmp_path: Path, digits: TrainTest
) -> None:
    settings = config("distributed-dp", "sweep.epsilons=[0.1]", "distributed_dp.steps=10000")
    with pytest.raises(ConfigurationError, match="standard deviation of at most"):
        engine(settings, tmp_path / "run", digits)


def test_an_impossible_target_is_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(accounting.CalibrationError):
        run_sweep(config("distributed-dp", "sweep.epsilons=[1e-9]"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@BOTH
def test_plans_that_differ_in_anything_agreed_have_another_digest(
    tmp_path: Path, digits: TrainTest, mode: str
) -> None:
    section = mode.replace("-", "_")
    changes = (
        (),
        (f"{section}.clip_norm=0.7",),
        (f"{section}.sample_rate=0.2",),
        (f"{section}.steps=6",),
        (f"{section}.delta=1e-6",),
        ("aggregation.threshold=5",),
        ("sweep.epsilons=[19.0]",),
        (f"{section}.mechanism=discrete-gaussian",),
    )
    digests = set()
    for index, change in enumerate(changes):
        made = engine(config(mode, *change), tmp_path / str(index), digits)
        assert made.shared is not None
        digests.add(made.shared.plan.digest)
    assert len(digests) == len(changes)


@pytest.mark.parametrize("at", ["minimum", "planned"])
def test_the_noise_is_that_of_the_shares_that_were_counted_on(
    tmp_path: Path, digits: TrainTest, at: str
) -> None:
    made = engine(config("distributed-dp", f"distributed_dp.at={at}"), tmp_path / "run", digits)
    assert made.shared is not None
    plan = made.shared.plan
    # Six clients, one of them corrupt, sums of at least four.
    assert plan.spec.honest_shares == (3 if at == "minimum" else 5)
    assert (plan.fewest, plan.colluding) == (4, 1)
    sampled = accounting.Poisson(sample_rate=0.1, event=plan.spec.event(plan.spec.honest_shares))
    whole = epsilon_of(accounting.Repeat(event=sampled, count=5))
    assert 20.0 * 0.999 <= whole <= 20.0


@pytest.mark.parametrize(
    ("mode", "override", "message"),
    [
        ("distributed-dp", "distributed_dp.planned_dropouts=1", 'needs at = "planned"'),
        ("distributed-dp", "local_dp.delta=1e-6", None),
        ("local-dp", "aggregation.fidelity=aggregate", "draws the noise of a whole sum"),
        ("user-level-dp", "user_level_dp.cohort=3", "belongs to participation"),
        ("user-level-dp", "user_level_dp.participations=3", "secret participation"),
        ("distributed-dp", "sweep.epsilons=[]", "needs at least one target"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(
    mode: str, override: str, message: str | None
) -> None:
    if message is None:
        config(mode, override)  # the delta of a mode that does not run does not matter
        return
    with pytest.raises(ConfigurationError, match=message):
        config(mode, override)


def test_one_table_has_one_delta() -> None:
    with pytest.raises(ConfigurationError, match="one delta"):
        config(
            "distributed-dp", 'sweep.modes=["local-dp", "distributed-dp"]', "local_dp.delta=1e-6"
        )


def test_modes_know_what_they_share() -> None:
    assert [m for m in Mode if m.shares_noise] == [Mode.DISTRIBUTED_DP, Mode.USER_LEVEL_DP]
    assert [m for m in Mode if not m.private] == [Mode.NONE]
    with pytest.raises(ConfigurationError, match="shares no noise"):
        config("local-dp").noise_shares(Mode.LOCAL_DP)


def test_a_codec_with_noise_and_no_ledger_is_refused(tmp_path: Path, digits: TrainTest) -> None:
    made = engine(config("distributed-dp"), tmp_path / "run", digits)
    with pytest.raises(ConfigurationError, match="no budget for shares"):
        private_round(
            round_index=0,
            vector=made.model.vector(),
            participants={},
            scheme=made.scheme,
            codec=made.codec,
            optimiser=made.optimiser,
            transport=made.transport,
        )


@pytest.mark.parametrize("codec", ["weaker noise", "no noise"])
def test_a_budget_that_charges_for_another_codec_is_refused(
    tmp_path: Path, digits: TrainTest, codec: str
) -> None:
    """Else the ledger would state an epsilon for noise that is not in the sum."""
    made = engine(config("distributed-dp"), tmp_path / "run", digits)
    assert made.shared is not None
    plan = made.shared.plan
    header = plan.header("population", randomness=accounting.Randomness.SYSTEM)
    if codec == "weaker noise":
        used: Codec = NoisyCodec(
            replace(plan.spec, noise_multiplier=plan.spec.noise_multiplier / 2)
        )
    else:
        inner = UpdateCodec(made._plain_codec.spec)
        keep = RandomK(dimension=inner.dimension, kept=inner.dimension)
        used = CompressedCodec(keep, inner)
    budget = PopulationBudget.open(tmp_path / "p.sqlite", header=header, release=plan.release)
    with ExitStack() as stack, pytest.raises(ConfigurationError, match="the codec's sum is"):
        stack.callback(budget.close)
        participants = made._participants(made._begin(), stack)
        private_round(
            round_index=0,
            vector=made.model.vector(),
            participants=participants,
            scheme=made.scheme,
            codec=used,
            optimiser=made.optimiser,
            transport=made.transport,
            population=budget,
        )
    assert not accounting.Ledger.verify(tmp_path / "p.sqlite").entries[1:]


# -- cohorts that the server draws ---------------------------------------------------------------

COHORT = (
    "partition.clients=12",
    'user_level_dp.participation="cohort"',
    "user_level_dp.cohort=6",
    "user_level_dp.steps=6",
)


def test_a_cohort_pays_each_for_itself_without_gain_from_the_draw(
    tmp_path: Path, digits: TrainTest
) -> None:
    result = run(config("user-level-dp", *COHORT), tmp_path / "run", digits)
    assert result.summary["rounds"] >= 4
    made = engine(config("user-level-dp", *COHORT), tmp_path / "other", digits)
    assert made.shared is not None
    release = made.shared.plan.release
    assert release.sample_rate == 1.0
    dearest = 0.0
    for one in result.summary["ledgers"]:
        path = tmp_path / "run" / one["path"]
        with accounting.Ledger.open(path, expect_head=accounting.Head.parse(one["head"])) as own:
            settled = [e for e in own.entries() if e.kind is accounting.EntryKind.SETTLE]
            assert own.epsilon().value == one["spent_epsilon"] <= 20.0
            if settled:
                events = [release.event(e.evidence.survivors) for e in settled if e.evidence]
                assert [e.event for e in settled] == events
                assert one["spent_epsilon"] == pytest.approx(epsilon_of(*events), rel=1e-6)
                dearest = max(dearest, epsilon_of(*events))
    seen = result.summary["epsilon_by_view"]
    assert seen["server_and_colluders"] == pytest.approx(dearest, rel=1e-6)
    assert seen["models"] <= seen["server"] < seen["server_and_colluders"]
    assert seen["aggregation_broken"] > seen["server_and_colluders"]
    assert result.summary["epsilon"] == pytest.approx(dearest, rel=1e-6)
    assert not (tmp_path / "run" / "ledgers" / "population.sqlite").exists()


def test_a_client_that_was_drawn_too_often_refuses_and_the_others_go_on(
    tmp_path: Path, digits: TrainTest
) -> None:
    """Noise for one participation, cohorts of all clients but one: most are drawn twice."""
    settings = config(
        "user-level-dp",
        *COHORT,
        "partition.clients=8",
        "user_level_dp.cohort=7",
        "aggregation.threshold=5",
        "user_level_dp.participations=1",
    )
    result = run(settings, tmp_path / "run", digits)
    assert result.stopped == "budget"
    assert all(one["spent_epsilon"] <= 20.0 for one in result.summary["ledgers"])


def test_a_run_with_cohorts_resumes_and_knows_every_ledger(
    tmp_path: Path, digits: TrainTest
) -> None:
    settings = config("user-level-dp", *COHORT)
    whole = run(settings, tmp_path / "whole", digits, insecure=InsecureRandomness(2)).summary
    folder = tmp_path / "run"
    run(settings, folder, digits, stop_after=2, insecure=InsecureRandomness(2))
    again = run(settings, folder, digits, resume=True, insecure=InsecureRandomness(2)).summary
    for key in ("model_sha256", "epsilon", "epsilon_by_view", "rounds"):
        assert again[key] == whole[key]
    shutil.rmtree(folder / "ledgers")
    with pytest.raises(accounting.LedgerRolledBack):
        run(settings, folder, digits, resume=True, insecure=InsecureRandomness(2))


def test_one_clients_data_cannot_stop_a_run_with_cohorts(tmp_path: Path, digits: TrainTest) -> None:
    """Its training overflows whenever it is drawn: the run goes on like any other."""
    settings = config("user-level-dp", *COHORT, 'aggregation.fidelity="encoded"')
    ordinary = run(settings, tmp_path / "ordinary", digits)
    target = engine(settings, tmp_path / "unused", digits).partition.indices[0]
    x = np.array(digits.train.x)
    x[target] *= np.float32(1e30)
    spoilt = replace(digits, train=replace(digits.train, x=x))
    result = run(settings, tmp_path / "run", spoilt)
    assert [result.stopped, result.summary["rounds"], result.summary["epsilon"]] == [
        ordinary.stopped,
        ordinary.summary["rounds"],
        ordinary.summary["epsilon"],
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("user_level_dp.cohort=13", "partition.clients is 12"),
        ("user_level_dp.cohort=3", "threshold"),
        ('user_level_dp.clipping="adaptive"', "participation"),
    ],
)
def test_impossible_cohorts_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        config("user-level-dp", *COHORT, override)


def test_the_servers_rate_falls_over_the_planned_rounds_and_a_resumed_run_has_it_too(
    tmp_path: Path, digits: TrainTest
) -> None:
    settings = config("distributed-dp", "distributed_dp.final_learning_rate=0.25")
    wanted = settings.distributed_dp
    rates = [wanted.learning_rate_of(i) for i in range(4 * wanted.steps)]
    assert rates[0] == wanted.learning_rate
    assert set(rates[wanted.steps - 1 :]) == {0.25}
    assert np.ptp(np.diff(rates[: wanted.steps])) == pytest.approx(0, abs=1e-12)
    used: list[float] = []
    apply = ServerOptimiser.apply

    def watched(self: ServerOptimiser, *args: Any, **kwargs: Any) -> Any:
        used.append(self.learning_rate)
        return apply(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServerOptimiser, "apply", watched)
        run(settings, tmp_path, digits, stop_after=2)
        run(settings, tmp_path, digits, resume=True)
    assert used == rates[: len(used)]
    assert len(used) >= wanted.steps


def test_the_test_set_may_be_read_in_some_rounds_only_and_is_at_the_end(
    tmp_path: Path, digits: TrainTest
) -> None:
    every = run(config("distributed-dp", "simulation.evaluate_every=3"), tmp_path, digits)
    lines = read_metrics(tmp_path)
    assert [line["round"] for line in lines if line["accuracy"] is not None] == [
        line["round"] for line in lines if line["round"] % 3 == 2
    ]
    assert 0 < every.summary["accuracy"] <= 1
