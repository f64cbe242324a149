"""One round: who trains, who is charged, and that the sum is the plain sum."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import accounting
from securefl.encoding.codec import CodecSpec, UpdateCodec, Weighting
from securefl.errors import ConfigurationError
from securefl.pipeline import (
    Participant,
    RoundOutcome,
    RoundStatus,
    context_digest,
    private_round,
)
from securefl.primitives.signing import IdentityKey
from securefl.protocols.secagg import SecAggParams
from securefl.round import Adversary, ClientId, ThreatModel
from securefl.simulation.network import Envelope
from securefl.simulation.schemes import SecAggScheme
from securefl.simulation.transports import PHASES, DropPlan, EncodedTransport, ProtocolTransport
from securefl.training.apply import ServerOptimiser
from securefl.training.dpsgd import ClientBudget
from securefl.training.local import ModelUpdate

DIM, CLIENTS, THRESHOLD = 4, 6, 5
EVENT = accounting.Gaussian(noise_multiplier=2.0)


@dataclass
class Recorder:
    """A trainer that notes when it was called and what its ledger said then."""

    client: int
    ledger: accounting.Ledger | None = None
    open_when_called: list[int] = field(default_factory=list)

    def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
        self.open_when_called.append(-1 if self.ledger is None else len(self.ledger.open_tickets))
        values = np.full(DIM, 0.01 * (self.client + 1), dtype=np.float32)
        return ModelUpdate(values=values, weight=self.client + 1, examples=1, steps=1)


@dataclass(frozen=True)
class FixedDrops(DropPlan):
    """Exactly these clients vanish in these phases."""

    schedule: Mapping[str, tuple[ClientId, ...]] = field(default_factory=dict)

    def drops(self, round_index: int, present: object) -> Mapping[str, tuple[ClientId, ...]]:
        return self.schedule


def plan(**schedule: tuple[int, ...]) -> FixedDrops:
    return FixedDrops(
        seed=0,
        per_round=0,
        schedule={phase: tuple(map(ClientId, ids)) for phase, ids in schedule.items()},
    )


class Round:
    """Six clients with real ledgers that have room for `rounds` rounds each."""

    def __init__(self, folder: Path, *, rounds: int = 2) -> None:
        cost = accounting.RDPAccountant(adjacency="zero-out")
        cost.compose(EVENT, rounds)
        bound = cost.epsilon(1e-5)
        assert bound.order is not None
        self.stack = ExitStack()
        self.trainers: dict[ClientId, Recorder] = {}
        self.participants: dict[ClientId, Participant] = {}
        for client in map(ClientId, range(CLIENTS)):
            ledger = accounting.Ledger.create(
                folder / f"{client}.sqlite",
                accounting.LedgerHeader(
                    population=f"client {client}",
                    unit=accounting.Unit.RECORD,
                    adjacency=accounting.Adjacency.ZERO_OUT,
                    epsilon=bound.value * (1 + 1e-6),
                    delta=1e-5,
                    order=bound.order,
                    plan="0" * 64,
                ),
            )
            self.stack.callback(ledger.close)
            self.trainers[client] = Recorder(client, ledger)
            self.participants[client] = Participant(
                client=client,
                trainer=self.trainers[client],
                budget=ClientBudget(ledger=ledger, client=client, event=EVENT),
            )
        probe = self.ledger(0).reserve(EVENT, round=99, key="probe")
        self.ledger(0).abort(probe, opened=False)
        self.price = probe.ticks

    def ledger(self, client: int) -> accounting.Ledger:
        budget = self.participants[ClientId(client)].budget
        assert budget is not None
        return budget.ledger

    def charged(self) -> list[int]:
        """How many rounds each client has paid for."""
        return [self.ledger(client).spent // self.price for client in range(CLIENTS)]

    def run(
        self,
        drops: FixedDrops,
        *,
        encoded: bool = False,
        index: int = 0,
        params: SecAggParams | None = None,
    ) -> RoundOutcome:
        transport = (
            EncodedTransport(plan=drops, threshold=THRESHOLD)
            if encoded
            else ProtocolTransport(plan=drops)
        )
        return private_round(
            round_index=index,
            vector=np.zeros(DIM, dtype=np.float32),
            participants=self.participants,
            scheme=SecAggScheme(
                params=params
                or SecAggParams.complete(
                    CLIENTS, ThreatModel(corrupt=1, dropped=CLIENTS - THRESHOLD)
                )
            ),
            codec=UpdateCodec(
                CodecSpec.plan(dimension=DIM, clip_norm=1.0, max_clients=CLIENTS, bits=32)
            ),
            optimiser=ServerOptimiser.sgd(DIM),
            transport=transport,
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Round]:
    made = Round(tmp_path)
    with made.stack:
        yield made


def test_mean_of_the_survivors_is_applied(world: Round) -> None:
    outcome = world.run(plan(masked_input_collection=(5,)))
    assert outcome.status is RoundStatus.OK
    assert outcome.survivors == (0, 1, 2, 3, 4)
    assert np.allclose(outcome.vector, 0.03, atol=1e-6)


def test_an_active_round_needs_an_identity_of_every_participant(world: Round) -> None:
    params = SecAggParams.complete(
        CLIENTS, ThreatModel(adversary=Adversary.ACTIVE, corrupt=1, dropped=1)
    )
    everybody = dict(world.participants)
    for client, participant in everybody.items():
        key = IdentityKey(bytes([client + 1]) * 32)
        world.participants[client] = replace(participant, identity=key)
    outcome = world.run(plan(masked_input_collection=(5,)), params=params)
    assert outcome.survivors == (0, 1, 2, 3, 4)
    assert np.allclose(outcome.vector, 0.03, atol=1e-6)
    world.participants[ClientId(3)] = everybody[ClientId(3)]
    with pytest.raises(ConfigurationError, match="identit"):
        world.run(plan(), params=params, index=1)


def test_reservation_is_on_disk_before_training_starts(world: Round) -> None:
    world.run(plan())
    assert all(trainer.open_when_called == [1] for trainer in world.trainers.values())


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("phase", PHASES)
def test_a_client_is_charged_exactly_if_its_input_left_it(
    world: Round, phase: str, encoded: bool
) -> None:
    outcome = world.run(plan(**{phase: (2,)}), encoded=encoded)
    sent = phase == "unmasking"
    assert outcome.status is RoundStatus.OK
    assert (2 in outcome.survivors) == sent
    assert world.charged() == [1, 1, 1 if sent else 0, 1, 1, 1]
    assert (world.trainers[ClientId(2)].open_when_called == [1]) == sent
    assert not any(world.ledger(client).open_tickets for client in range(CLIENTS))


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("phase", PHASES)
def test_a_lost_round_charges_whoever_had_sent_and_moves_nothing(
    world: Round, phase: str, encoded: bool
) -> None:
    outcome = world.run(plan(**{phase: (1, 3)}), encoded=encoded)
    assert outcome.status is RoundStatus.BELOW_THRESHOLD
    assert not outcome.vector.any()
    if phase == "unmasking":
        assert world.charged() == [1] * CLIENTS
    elif phase == "masked_input_collection":
        assert world.charged() == [1, 0, 1, 0, 1, 1]
    else:
        assert world.charged() == [0] * CLIENTS


def test_the_evidence_says_what_the_aggregation_really_did(world: Round) -> None:
    world.run(plan(masked_input_collection=(5,)))
    (entry,) = [e for e in world.ledger(0).entries() if e.kind is accounting.EntryKind.SETTLE]
    assert entry.evidence is not None
    assert (entry.evidence.planned, entry.evidence.survivors) == (CLIENTS, CLIENTS - 1)
    assert entry.evidence.modulus == 2**32
    assert entry.evidence.protocol == ProtocolTransport(plan=plan()).protocol
    assert entry.evidence.transcript != "0" * 64


def test_a_client_without_budget_refuses_and_the_others_go_on(world: Round) -> None:
    ledger = world.ledger(4)
    for attempt in range(2):
        ledger.abort(ledger.reserve(EVENT, round=0, key=f"earlier {attempt}"), opened=True)
    outcome = world.run(plan())
    assert outcome.refused == (4,)
    assert outcome.survivors == (0, 1, 2, 3, 5)
    assert world.trainers[ClientId(4)].open_when_called == []
    assert world.charged() == [1, 1, 1, 1, 2, 1]


def test_nobody_trains_or_pays_if_too_few_have_budget_left(world: Round) -> None:
    for client in (1, 4):
        ledger = world.ledger(client)
        for attempt in range(2):
            ledger.abort(ledger.reserve(EVENT, round=0, key=f"earlier {attempt}"), opened=True)
    outcome = world.run(plan())
    assert outcome.status is RoundStatus.BUDGET
    assert outcome.refused == (1, 4)
    assert world.charged() == [0, 2, 0, 0, 2, 0]
    assert all(trainer.open_when_called == [] for trainer in world.trainers.values())


def test_budget_is_never_exceeded_however_often_the_server_asks(world: Round) -> None:
    statuses = [world.run(plan(), index=index).status for index in range(5)]
    assert statuses == [RoundStatus.OK, RoundStatus.OK, *[RoundStatus.BUDGET] * 3]
    assert world.charged() == [2] * CLIENTS


def test_an_error_in_the_middle_leaves_every_reservation_charged(
    world: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_args: object, **_kwargs: object) -> ModelUpdate:
        raise RuntimeError("power cut")

    monkeypatch.setattr(world.trainers[ClientId(3)], "train", explode, raising=False)
    with pytest.raises(RuntimeError, match="power cut"):
        world.run(plan())
    for client in range(CLIENTS):
        ledger = world.ledger(client)
        assert len(ledger.open_tickets) == 1
        assert ledger.reserved > 0


def test_a_repeated_round_is_paid_again(world: Round) -> None:
    world.run(plan(unmasking=(0, 1)), index=0)
    world.run(plan(), index=0)
    assert world.charged() == [2] * CLIENTS


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    schedule=st.dictionaries(st.integers(0, CLIENTS - 1), st.sampled_from(PHASES), max_size=4),
    encoded=st.booleans(),
)
def test_any_schedule_charges_as_the_oracle_says(
    tmp_path_factory: pytest.TempPathFactory, schedule: dict[int, str], encoded: bool
) -> None:
    world = Round(tmp_path_factory.mktemp("ledgers"))
    with world.stack:
        by_phase: dict[str, tuple[int, ...]] = {}
        for client, phase in schedule.items():
            by_phase[phase] = (*by_phase.get(phase, ()), client)
        outcome = world.run(plan(**by_phase), encoded=encoded)
        left, lost_in = set(range(CLIENTS)), None
        for phase in PHASES:
            left -= set(by_phase.get(phase, ()))
            if len(left) < THRESHOLD:
                lost_in = phase
                break
        senders = {c for c in range(CLIENTS) if schedule.get(c, "unmasking") == "unmasking"}
        if lost_in in PHASES[:2]:
            senders = set()
        assert world.charged() == [int(client in senders) for client in range(CLIENTS)]
        assert (outcome.status is RoundStatus.OK) == (lost_in is None)
        if lost_in is None:
            assert set(outcome.survivors) == senders
            mean = np.mean([0.01 * (client + 1) for client in senders])
            assert np.allclose(outcome.vector, mean, atol=1e-6)


def test_weights_are_inside_the_vector_and_the_mean_is_weighted() -> None:
    participants = {
        ClientId(c): Participant(client=ClientId(c), trainer=Recorder(c)) for c in range(CLIENTS)
    }
    outcome = private_round(
        round_index=0,
        vector=np.zeros(DIM, dtype=np.float32),
        participants=participants,
        scheme=SecAggScheme(
            params=SecAggParams.complete(CLIENTS, ThreatModel(corrupt=1, dropped=1))
        ),
        codec=UpdateCodec(
            CodecSpec.plan(
                dimension=DIM,
                clip_norm=1.0,
                max_clients=CLIENTS,
                bits=32,
                weighting=Weighting.WEIGHTED,
                max_weight=10,
            )
        ),
        optimiser=ServerOptimiser.sgd(DIM),
        transport=ProtocolTransport(plan=plan()),
    )
    weights = np.arange(1, CLIENTS + 1)
    assert np.allclose(outcome.vector, np.average(0.01 * weights, weights=weights), atol=1e-6)


def test_the_frames_of_a_round_are_not_kept(tmp_path: Path) -> None:
    """A transcript of a training round would hold the masked vectors of the whole cohort."""
    alive: list[int] = []

    class Counting(Recorder):
        def train(self, start: NDArray[np.float32], *, round_index: int) -> ModelUpdate:
            alive.append(sum(type(item) is Envelope for item in gc.get_objects()))
            return super().train(start, round_index=round_index)

    before = sum(type(item) is Envelope for item in gc.get_objects())
    session = Round(tmp_path)
    for client, participant in session.participants.items():
        session.participants[client] = replace(participant, trainer=Counting(client))
    session.run(plan())
    assert len(alive) == CLIENTS
    # Before the last one trains, rosters, shares and vectors have come and gone, four per client.
    assert max(alive) - before <= CLIENTS


def test_context_depends_on_model_codec_and_plan_and_on_their_borders() -> None:
    vector = np.arange(3, dtype=np.float32)
    digests = {
        context_digest(vector, b"codec", b"plan"),
        context_digest(vector + 1, b"codec", b"plan"),
        context_digest(vector, b"codecp", b"lan"),
        context_digest(vector, b"codec"),
        context_digest(vector[:2], b"codec", b"plan"),
    }
    assert len(digests) == 5
    assert context_digest(vector[::1], b"c") == context_digest(vector.copy(), b"c")
