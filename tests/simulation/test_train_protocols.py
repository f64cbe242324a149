"""Training runs in every protocol: one model per seed, the same ledgers, honest records."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import accounting
from securefl.config import RunConfig, load_preset
from securefl.encoding.codec import CodecSpec, UpdateCodec
from securefl.errors import ConfigurationError
from securefl.modular import RingVector
from securefl.pipeline import Participant, RoundStatus, private_round
from securefl.primitives import bigint
from securefl.primitives.signing import IdentityKey
from securefl.protocols.paillier.messages import Phase
from securefl.round import ClientId, Cohort, RoundId
from securefl.simulation.engine import Engine, read_metrics
from securefl.simulation.schemes import SecAggScheme, scheme_of
from securefl.simulation.sweep import run_sweep
from securefl.simulation.transports import (
    PHASES,
    DropPlan,
    EncodedTransport,
    ProtocolTransport,
    phases_of,
)
from securefl.training.apply import ServerOptimiser
from securefl.training.data import TrainTest, load
from securefl.training.local import ModelUpdate

pytestmark = pytest.mark.usefixtures("small_keys")

SMALL = (
    "training.rounds=2",
    "training.local_epochs=1",
    "training.batch_size=128",
    "local_dp.steps_per_round=1",
    "partition.clients=9",
    "simulation.dropped_per_round=2",
    'sweep.modes=["none"]',
    "sweep.seeds=[0, 1]",
    "encoding.bits=31",
)
RING = ("protocol=secagg+", "adversary=active", "experimental_active_graph=true")
VARIANTS = {
    "secagg": (),
    "secagg, active server": ("adversary=active",),
    "secagg+": ("protocol=secagg+",),
    "secagg+, active server": RING,
    "lightsecagg": ("protocol=lightsecagg",),
    "lightsecagg, active server": ("protocol=lightsecagg", "adversary=active"),
    "paillier, active server": ("protocol=paillier",),
    "paillier-threshold, active server": ("protocol=paillier-threshold",),
}
NEW = ["lightsecagg", "paillier", "paillier-threshold"]


@pytest.fixture(scope="module")
def digits() -> TrainTest:
    return load("digits")


def config(*aggregation: str, others: tuple[str, ...] = ()) -> RunConfig:
    return load_preset("digits", [*SMALL, *(f"aggregation.{x}" for x in aggregation), *others])


def identity(client: int) -> IdentityKey:
    return IdentityKey(bytes([client + 1]) * 32)


def run(settings: RunConfig, folder: Path, digits: TrainTest, *, index: int = 0) -> dict[str, Any]:
    return dict(Engine(settings, settings.runs()[index], folder, dataset=digits).run().summary)


def test_one_seed_gives_one_model_in_every_protocol(tmp_path: Path, digits: TrainTest) -> None:
    models: dict[int, set[str]] = {0: set(), 1: set()}
    drops: dict[int, set[str]] = {0: set(), 1: set()}
    for name, overrides in VARIANTS.items():
        settings = config(*overrides)
        for index, spec in enumerate(settings.runs()):
            folder = tmp_path / f"{name} {index}"
            summary = run(settings, folder, digits, index=index)
            assert summary["protocol"] == name
            assert summary["rounds_lost"] == 0
            assert summary["dropped"] == 4
            models[spec.seed].add(summary["model_sha256"])
            lines = read_metrics(folder)
            drops[spec.seed].add(json.dumps([(x["dropped"], x["survivors"]) for x in lines]))
    assert [len(found) for found in models.values()] == [1, 1]
    assert [len(found) for found in drops.values()] == [1, 1]
    assert models[0] != models[1]


@pytest.mark.parametrize("protocol", ["paillier", "paillier-threshold"])
def test_the_configuration_says_in_how_many_threads_holders_open_and_the_model_is_the_same(
    tmp_path: Path, digits: TrainTest, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[int] = set()
    in_threads = bigint.map_in_threads
    monkeypatch.setattr(bigint, "_processors", lambda: 3)
    monkeypatch.setattr(
        bigint, "map_in_threads", lambda f, v, n: used.add(n) or in_threads(f, v, n)
    )
    models, automatic = set(), 3 if bigint.backend_name() == "gmpy2" else 1
    for wanted, expected in (("", automatic), ("1", 1), ("2", 2)):
        used.clear()
        threads = [f"opening_threads={wanted}"] if wanted else []
        settings = config(f"protocol={protocol}", *threads, others=("training.rounds=1",))
        models.add(run(settings, tmp_path / f"run {wanted}", digits)["model_sha256"])
        assert used == {expected}
    assert len(models) == 1


@pytest.mark.parametrize("protocol", NEW)
def test_the_protocol_gives_the_bits_of_the_plain_sum_of_the_same_integers(
    tmp_path: Path, digits: TrainTest, protocol: str
) -> None:
    found = set()
    for fidelity in ("protocol", "encoded"):
        settings = config(f"protocol={protocol}", f"fidelity={fidelity}")
        found.add(run(settings, tmp_path / fidelity, digits)["model_sha256"])
    assert len(found) == 1


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("lightsecagg", ("semi-honest", "none", None, 7, "clients", 2**31 - 1)),
        ("paillier", ("active", "none", None, 1, "the key holder", 2**31)),
        ("paillier-threshold", ("active", "none", None, 4, "4 of 5 share holders", 2**31)),
    ],
)
def test_a_private_run_says_in_ledgers_and_summary_how_it_was_summed(
    tmp_path: Path, digits: TrainTest, protocol: str, expected: tuple[Any, ...]
) -> None:
    private = ('sweep.modes=["local-dp"]', "sweep.epsilons=[8.0]")
    settings = config(f"protocol={protocol}", others=private)
    summary = run(settings, tmp_path / "run", digits)
    keys = ("adversary", "graph", "degree", "shares", "opened_by")
    assert (*(summary[key] for key in keys), summary["codec"]["modulus"]) == expected
    assert 0 < summary["epsilon"] <= 8.0
    plan = DropPlan(seed=0, per_round=2)
    clients = tuple(map(ClientId, range(9)))
    for ledger in summary["ledgers"]:
        with accounting.Ledger.open(tmp_path / "run" / ledger["path"]) as led:
            evidence = [e.evidence for e in led.entries() if getattr(e, "evidence", None)]
            assert not led.open_tickets
        sent = sum(ledger["client_index"] in plan.senders(r, clients) for r in range(2))
        assert len(evidence) == sent
        for one in evidence:
            assert (one.protocol, one.modulus) == (summary["protocol"], expected[-1])


@pytest.mark.parametrize("protocol", NEW)
def test_an_interrupted_run_resumes_to_the_same_bits(
    tmp_path: Path, digits: TrainTest, protocol: str
) -> None:
    settings = config(f"protocol={protocol}")
    whole = run(settings, tmp_path / "whole", digits)
    spec, folder, lines = settings.runs()[0], tmp_path / "cut", []
    first = Engine(
        settings, spec, folder, dataset=digits,
        on_round=lines.append, should_stop=lambda: bool(lines),
    )  # fmt: skip
    assert first.run().stopped == "interrupted"
    resumed = Engine(settings, spec, folder, dataset=digits).run(resume=True).summary
    # Not the bytes: a proof of Paillier is as short as its random numbers happen to be.
    for key in ("model_sha256", "accuracy", "dropped", "rounds"):
        assert resumed[key] == whole[key]


def test_the_hybrid_mode_needs_its_key_and_is_named_wherever_the_run_is_described(
    tmp_path: Path,
) -> None:
    hybrid = config(
        "protocol=paillier", "experimental_hybrid=true",
        others=("encoding.bits=20", "sweep.seeds=[0]"),
    )  # fmt: skip
    plain = config(others=("encoding.bits=20", "sweep.seeds=[0]"))
    summary = run_sweep(hybrid, tmp_path / "hybrid")
    other = run_sweep(plain, tmp_path / "plain")
    assert summary is not None and other is not None
    runs = [
        json.loads((tmp_path / name / "none-inf-s0" / "summary.json").read_text())
        for name in ("hybrid", "plain")
    ]
    assert runs[0]["protocol"] == "paillier, experimental hybrid, active server"
    assert "unreviewed" in summary["experimental"] and other["experimental"] == ""
    assert runs[0]["model_sha256"] == runs[1]["model_sha256"]
    report = pytest.importorskip("securefl.report", reason="the report is an extra of its own")
    page = report.write_report(tmp_path / "hybrid").read_text()
    assert "unreviewed lattice parameters" in page
    assert "The server together with the key holder could read every update" in page
    assert "unreviewed" not in report.write_report(tmp_path / "plain").read_text()


def test_moments_fall_in_phases_that_the_protocol_has() -> None:
    masks = {"share_keys": "share_masks", "unmasking": "recovery"}
    for overrides in VARIANTS.values():
        machines = machines_of(config(*overrides))
        found = phases_of(machines.server)
        assert tuple(found) == PHASES
        assert set(found.values()) <= set(machines.server.phases)
        if "protocol=lightsecagg" in overrides:
            assert found == {phase: masks.get(phase, phase) for phase in PHASES}
        elif machines.parties:
            assert list(found.values()) == [
                Phase.CHECK_IN, Phase.CHECK_IN, Phase.MASKED_INPUT_COLLECTION, Phase.OPENING
            ]  # fmt: skip
        else:
            assert found == {phase: phase for phase in PHASES}


def machines_of(settings: RunConfig) -> Any:
    cohort = Cohort.of(range(9))
    return scheme_of(settings).machines(
        round_id=RoundId(0),
        cohort=cohort,
        present=cohort.ids,
        length=3,
        modulus=scheme_of(settings).modulus(31),
        context_digest=bytes(32),
        identities={u: identity(u) for u in cohort},
    )


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize(("protocol", "lost"), [("lightsecagg", True), ("paillier", False)])
def test_whoever_vanishes_after_its_input_costs_the_round_only_where_clients_open_the_sum(
    protocol: str, lost: bool, encoded: bool
) -> None:
    settings = config(f"protocol={protocol}")
    scheme = scheme_of(settings)
    ring = scheme.modulus(31)
    spec = CodecSpec.plan(dimension=2, clip_norm=1.0, max_clients=9, modulus=ring)

    def train(_vector: Any, *, round_index: int) -> ModelUpdate:
        return ModelUpdate(
            values=np.full(2, 0.5, dtype=np.float32), weight=1, examples=1, steps=1 + round_index
        )

    gone = tuple(map(ClientId, range(4)))  # of nine, of whom seven must stay
    fixed: Any = SimpleNamespace(
        drops=lambda *_: {"unmasking": gone},
        senders=lambda _round, present: present,
        alive=lambda *_: dict(zip(PHASES, (9, 9, 9, 5), strict=True)),
    )
    outcome = private_round(
        round_index=0,
        vector=np.zeros(2, dtype=np.float32),
        participants={
            ClientId(c): Participant(
                client=ClientId(c), trainer=SimpleNamespace(train=train), identity=identity(c)
            )
            for c in range(9)
        },
        scheme=scheme,
        codec=UpdateCodec(spec),
        optimiser=ServerOptimiser.sgd(2),
        transport=(
            EncodedTransport(plan=fixed, threshold=7, clients_open=scheme.clients_open)
            if encoded
            else ProtocolTransport(plan=fixed)
        ),
    )
    assert (outcome.status is RoundStatus.BELOW_THRESHOLD) is lost
    assert np.allclose(outcome.vector, 0.0 if lost else 0.5, atol=1e-6)
    if not encoded:
        assert set(outcome.bytes_up) == set(range(9))  # and neither witness nor key holder


@pytest.mark.parametrize("protocol", ["secagg", *NEW])
def test_a_codec_of_another_ring_is_refused(protocol: str) -> None:
    settings = config(f"protocol={protocol}")
    scheme = scheme_of(settings)
    cohort = Cohort.of(range(9))
    other = 2**31 if protocol == "lightsecagg" else 2**31 - 1
    with pytest.raises(ConfigurationError, match="modulo"):
        scheme.machines(
            round_id=RoundId(0), cohort=cohort, present=cohort.ids, length=3, modulus=other,
            context_digest=bytes(32), identities={},
        )  # fmt: skip
    assert isinstance(scheme, SecAggScheme) is (protocol == "secagg")


@pytest.mark.parametrize("protocol", NEW)
def test_clients_of_two_moments_that_share_a_phase_all_vanish(protocol: str) -> None:
    settings = config(f"protocol={protocol}")
    plan: Any = SimpleNamespace(
        drops=lambda *_: {"advertise_keys": (ClientId(2),), "share_keys": (ClientId(5),)}
    )
    modulus = scheme_of(settings).modulus(31)
    report = ProtocolTransport(plan=plan).carry(
        machines_of(settings),
        lambda client: RingVector.from_signed([client, -client, 1], modulus),
        round_index=0,
    )
    stayed = [0, 1, 3, 4, 6, 7, 8]
    assert report.aggregate is not None
    assert report.aggregate.survivors == tuple(stayed)
    assert report.aggregate.vector.centred().tolist() == [sum(stayed), -sum(stayed), len(stayed)]
    assert report.sent_input == frozenset(stayed)
