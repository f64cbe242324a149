"""One run: many clients, many rounds, with the real machines, on one machine.

The engine builds the clients of a configuration (data, partition, model, budgets), carries out
the rounds through :func:`securefl.pipeline.private_round`, and keeps the record of each: a line in
``metrics.jsonl``, a checkpoint, and the clients' ledgers. It is a simulation: all clients live in
one process and share one model buffer (or in a few worker processes with one each), which isolates
nobody from anybody; the protocol, the wire
bytes, the noise and the ledgers are real.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import accounting
from securefl.config import Fidelity, Mode, RunConfig, RunSpec
from securefl.encoding.codec import Codec, CodecSpec, UpdateCodec, Weighting
from securefl.errors import CheckpointError, ConfigurationError
from securefl.pipeline import Participant, Prepare, RoundOutcome, RoundStatus, private_round
from securefl.primitives.prg import SecureRandom
from securefl.primitives.signing import IdentityKey
from securefl.round import Adversary, ClientId
from securefl.simulation.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    write_checkpoint,
)
from securefl.simulation.client_view import ClientView, standardised
from securefl.simulation.client_work import make_model, make_trainer
from securefl.simulation.cohort_run import CohortRun
from securefl.simulation.cohorts import Cohorts
from securefl.simulation.insecure import InsecureRandomness
from securefl.simulation.plain import PlainRun, averaging_server, codec_spec
from securefl.simulation.plans import ADJACENCY, PrivacyPlan, SharedPlan
from securefl.simulation.schemes import Scheme, scheme_of
from securefl.simulation.shared import SharedRun
from securefl.simulation.transports import (
    DropPlan,
    EncodedTransport,
    ProtocolTransport,
    float_round,
)
from securefl.simulation.workers import ElsewhereTrainer, WorkerPool
from securefl.storage import write_durably
from securefl.training import partition
from securefl.training.apply import ServerOptimiser, ServerStep
from securefl.training.data import Dataset, TrainTest, stratified_split
from securefl.training.dpsgd import ClientBudget
from securefl.training.local import (
    Trainer,
    TrainingDiverged,
    evaluate,
    limit_threads,
)
from securefl.training.partition import Partition
from securefl.training.stopping import StopReason, StopRules

__all__ = [
    "Engine",
    "PrivacyPlan",
    "RunResult",
    "make_model",
    "make_partition",
    "make_plan",
    "read_metrics",
]

METRICS, SUMMARY, MODEL = "metrics.jsonl", "summary.json", "model.npz"
CHECKPOINTS, LEDGERS = "checkpoints", "ledgers"
UNIT = accounting.Unit.RECORD

UNTOLD = ("train", "encode")
"""Stages whose time follows secret coins: how many clients trained, how many records they drew."""

_CLOCK = "clock"

OnRound = Callable[[Mapping[str, Any]], None]


@dataclass(slots=True, kw_only=True)
class _State:
    """Where a run stands between two rounds."""

    next_round: int
    vector: NDArray[np.float32]
    lost_in_a_row: int = 0
    elapsed: float = 0.0
    untold: float = 0.0  # CPU seconds that no line states
    ledger_heads: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What one run came to: the summary that is written beside its metrics.

    Attributes:
        spec: which run it was.
        stopped: why it ended, a :class:`~securefl.training.stopping.StopReason`.
        summary: the content of the run's ``summary.json``.
    """

    spec: RunSpec
    stopped: str
    summary: Mapping[str, Any]


class Engine:
    """Carries out one run of a sweep.

    Args:
        config: the configuration of the sweep.
        spec: which run of it.
        folder: where the run's files go; created if missing.
        dataset: train and test records.
        on_round: called with the metrics of every round that was carried out.
        should_stop: asked between rounds; True leaves a state that can be resumed.
        insecure: repeatable coins, for tests of modes that share their noise; the run's ledger is
            marked, and its report refuses to state a guarantee.

    Raises:
        ConfigurationError: if the configuration does not fit the data.
    """

    def __init__(
        self,
        config: RunConfig,
        spec: RunSpec,
        folder: Path,
        *,
        dataset: TrainTest,
        on_round: OnRound = lambda metrics: None,
        should_stop: Callable[[], bool] = lambda: False,
        insecure: InsecureRandomness | None = None,
    ) -> None:
        limit_threads()
        self.config, self.spec, self.folder = config, spec, folder
        self._on_round, self._should_stop = on_round, should_stop
        self.partition = make_partition(config, spec.seed, dataset.train)
        if config.data.standardise == "federated":
            dataset = standardised(config, dataset, self.partition)
        self.stop_rules = _stop_rules(config)
        self.dataset, self.validation = _with_validation(config, dataset, spec.seed)
        self.clients = tuple(ClientId(i) for i in range(len(self.partition.indices)))
        self.model = make_model(config, spec, dataset.train)
        self.scheme = scheme_of(config.summed(spec.mode))
        plan = make_plan(config, spec, self.scheme, self.model.dim, dataset.train)
        self.plan = plan if isinstance(plan, PrivacyPlan) else None
        self.shared = self._shared(plan, insecure) if isinstance(plan, SharedPlan) else None
        if insecure is not None and self.shared is None:
            raise ConfigurationError(
                f"repeatable coins are for modes that share their noise, found {spec.mode.value}"
            )
        self.plain = (
            PlainRun(config, self.model, dataset.train, self.partition, seed=spec.seed)
            if spec.mode is Mode.NONE
            else None
        )
        self.cohorts = Cohorts(
            config, seed=spec.seed, clients=len(self.clients), scheme=self.scheme
        )
        self._plain_codec = UpdateCodec(self._codec_spec())
        self.rounds = (
            config.training.rounds if self.shared is None else self.shared.plan.most_rounds
        )
        self._averaging = make_optimiser(config, spec.mode, self.model.dim)
        algorithm = self.plain or self.shared
        self.optimiser: ServerStep = (
            self._averaging if algorithm is None else algorithm.server(self._averaging)
        )
        self.drops = DropPlan(
            seed=spec.seed,
            per_round=config.simulation.dropped_per_round,
            delays=config.simulation.delays,
            deadline=config.simulation.deadline or math.inf,
        )
        self.transport = self._transport()
        self._workers: WorkerPool | None = None
        self._began = time.monotonic()

    def _shared(self, plan: SharedPlan, insecure: InsecureRandomness | None) -> SharedRun:
        if plan.cohort is None:
            return SharedRun(self.config, plan, insecure=insecure)
        return CohortRun(
            self.config, plan, clients=self.clients, seed=self.spec.seed, insecure=insecure
        )

    def _transport(self) -> ProtocolTransport | EncodedTransport:
        fidelity = self.config.aggregation.fidelity
        if fidelity is Fidelity.PROTOCOL:
            return ProtocolTransport(plan=self.drops, protocol=self.scheme.name)
        plain = EncodedTransport(
            plan=self.drops, threshold=self.scheme.n_min, clients_open=self.scheme.clients_open
        )
        if fidelity is not Fidelity.AGGREGATE or self.shared is None:
            return plain
        return replace(
            plain,
            finish=self.shared.finish,
            protocol="none (bare integers summed in clear, one draw of noise)",
        )

    @property
    def codec(self) -> Codec:
        """The codec of the next round."""
        return self._plain_codec if self.shared is None else self.shared.codec

    # -- the run ---------------------------------------------------------------------------------

    def run(self, *, resume: bool = False) -> RunResult:
        """Carries out the rounds that are left.

        Args:
            resume: continue from the folder's checkpoint. What its ledgers say was spent stays
                spent, including the reservations of a round that was cut off.

        Raises:
            CheckpointError: if the folder holds results and ``resume`` is False, or a checkpoint
                of another configuration.
            accounting.LedgerRolledBack: if a ledger is shorter than the checkpoint says.
        """
        state = self._restore() if resume else self._begin()
        self._began = time.monotonic() - state.elapsed
        with ExitStack() as stack:
            self._start_workers(state, stack)
            participants = self._participants(state, stack)
            (self.folder / METRICS).touch()
            # From here on, before anything is trained, the checkpoint knows every ledger.
            self._save(state, participants)
            stopped = self._rounds(state, participants)
            summary = self._summary(state, participants, stopped)
        np.savez(self.folder / MODEL, allow_pickle=False, vector=self._model_in(state.vector))
        if stopped is not StopReason.INTERRUPTED:
            content = json.dumps(summary, indent=2, allow_nan=False)
            write_durably(self.folder / SUMMARY, content.encode() + b"\n")
        return RunResult(spec=self.spec, stopped=stopped.value, summary=summary)

    def _elapsed(self) -> float:
        """Wall-clock seconds of the run, without the pauses before a resume."""
        return time.monotonic() - self._began

    def _rounds(self, state: _State, participants: Mapping[ClientId, Participant]) -> StopReason:
        while state.next_round < self.rounds:
            if self._should_stop():
                return StopReason.INTERRUPTED
            reason = self._reason()
            if reason is not None:
                return reason
            try:
                outcome = self._round(state, participants)
            except TrainingDiverged:
                # Trying again would charge another round for the same end.
                return StopReason.DIVERGED
            if outcome.status is RoundStatus.BUDGET:
                return StopReason.BUDGET
            if not np.isfinite(outcome.vector).all():
                return StopReason.DIVERGED
            self._settle_clients(state.next_round, outcome)
            lost = outcome.status is not RoundStatus.OK
            state.vector = outcome.vector
            state.lost_in_a_row = state.lost_in_a_row + 1 if lost else 0
            self._record(state, outcome, participants)
            state.next_round += 1
            self._save(state, participants)
            if state.lost_in_a_row >= self.config.simulation.max_lost_rounds:
                return StopReason.LOST_ROUNDS
        # The last round may also have been the one that reached the target.
        return self._reason() or StopReason.ROUNDS

    def _reason(self) -> StopReason | None:
        """Why the run should end before its next round, by what its record says."""
        lines = read_metrics(self.folder) if self.stop_rules.watches_progress else []
        return self.stop_rules.reason(
            accuracies=[line["validation_accuracy"] for line in lines],
            losses=[line["validation_loss"] for line in lines],
            seconds=self._elapsed(),
        )

    def _settle_clients(self, round_index: int, outcome: RoundOutcome) -> None:
        """What clients and onlookers keep of a round, opened or not."""
        if self.plain is not None:
            self.plain.settle(self.cohorts.of(round_index), outcome.survivors)
        if outcome.status is RoundStatus.OK:
            self.cohorts.opened(outcome.survivors)

    def _round(self, state: _State, everybody: Mapping[ClientId, Participant]) -> RoundOutcome:
        if self.shared is not None:
            return self._shared_round(self.shared, state, everybody)
        cohort = self.cohorts.of(state.next_round)
        participants = {client: everybody[client] for client in cohort}
        scheme = self.cohorts.scheme(len(cohort))
        if scheme is None:
            return RoundOutcome(status=RoundStatus.BELOW_THRESHOLD, vector=state.vector)
        if self.config.aggregation.fidelity is Fidelity.FLOAT:
            return float_round(
                round_index=state.next_round,
                vector=state.vector,
                participants=participants,
                plan=self.drops,
                threshold=scheme.n_min,
                weighted=self._plain_codec.spec.weighting is Weighting.WEIGHTED,
                optimiser=self.optimiser,
                prepare=self._prepare,
            )
        return private_round(
            round_index=state.next_round,
            vector=state.vector,
            participants=participants,
            scheme=scheme,
            codec=self.codec,
            optimiser=self.optimiser,
            transport=_with_threshold(self.transport, scheme.n_min),
            plan_digest=b"" if self.plan is None else self.plan.digest,
            prepare=self._prepare,
        )

    def _shared_round(
        self,
        shared: SharedRun,
        state: _State,
        participants: Mapping[ClientId, Participant],
    ) -> RoundOutcome:
        if self.config.aggregation.fidelity is Fidelity.FLOAT:
            raise ConfigurationError(
                "fidelity = float is a baseline without privacy and charges no ledger; "
                "use it with mode none only"
            )
        codec = shared.codec
        rate = self.config.noise_shares(self.spec.mode).learning_rate_of(state.next_round)
        self._averaging.learning_rate = rate  # of the round, so that a resumed run has it too
        with shared.paying(participants, state.next_round) as (taking_part, population):
            outcome = private_round(
                round_index=state.next_round,
                vector=state.vector,
                participants=taking_part,
                scheme=self.scheme,
                codec=codec,
                optimiser=self.optimiser,
                transport=self.transport,
                plan_digest=shared.plan.digest,
                population=population,
                denominator=shared.plan.denominator,
                noise_source=shared.noise_source,
                prepare=self._prepare,
            )
        if outcome.status is RoundStatus.OK:
            shared.advance(codec)
        return outcome

    # -- what a run is made of -------------------------------------------------------------------

    def _participants(self, state: _State, stack: ExitStack) -> Mapping[ClientId, Participant]:
        # Identities last as long as the process: nobody but this process could check older ones.
        active = self.scheme.adversary is Adversary.ACTIVE
        if self.shared is not None:
            self.shared.open(self.folder / LEDGERS, state.ledger_heads, stack)
        return {
            client: Participant(
                client=client,
                trainer=self._trainer(client),
                budget=self._budget(client, state, stack),
                identity=IdentityKey(SecureRandom().random_bytes(32)) if active else None,
            )
            for client in self.clients
        }

    def _trainer(self, client: ClientId) -> Trainer:
        if self._workers is not None:
            return ElsewhereTrainer(client=client)
        return make_trainer(
            client,
            config=self.config,
            seed=self.spec.seed,
            model=self.model,
            train=self.dataset.train,
            partition=self.partition,
            plan=self.plan,
            plain=self.plain,
            shared=self.shared,
        )

    def _start_workers(self, state: _State, stack: ExitStack) -> None:
        """The worker processes, if there are to be any: before anything is reserved."""
        if self.config.simulation.workers == 1:
            return
        algorithm = None if self.plain is None else self.plain.algorithm
        values_length = self.model.dim if algorithm is None else algorithm.payload(self.model.dim)
        if self.shared is not None:
            values_length = self.shared.codec.dimension
        self._workers = WorkerPool(
            self.config,
            self.spec,
            plan=self.plan if self.shared is None else self.shared.plan,
            insecure=None if self.shared is None else self.shared.insecure,
            codec=self._plain_codec.spec,
            train=self.dataset.train,
            partition=self.partition,
            start_length=len(state.vector),
            values_length=values_length,
            entries=self.codec.length,
            modulus=self.codec.modulus,
            senders=self.drops.senders,
        )
        stack.callback(self._stop_workers)

    def _stop_workers(self) -> None:
        if self._workers is not None:
            self._workers.close()
        self._workers = None

    @property
    def _prepare(self) -> Prepare | None:
        """Who trains and encodes, if not this process."""
        if self._workers is None:
            return None
        clip_norm = None if self.shared is None else self.shared.clip_norm
        return partial(self._workers.prepare, clip_norm=clip_norm)

    def _budget(self, client: ClientId, state: _State, stack: ExitStack) -> ClientBudget | None:
        """The client's ledger: created once, for the life of its data, then only ever opened."""
        if self.plan is None:
            return None
        path = self.folder / LEDGERS / f"client-{client}.sqlite"
        header = accounting.LedgerHeader(
            population=f"{self.config.data.label}/client-{client}",
            unit=UNIT,
            adjacency=ADJACENCY,
            epsilon=self.plan.epsilon,
            delta=self.plan.delta,
            order=self.plan.order,
            plan=self.plan.planned,
        )
        head = state.ledger_heads.get(str(client))
        try:
            budget = ClientBudget.open(
                path,
                header=header,
                client=client,
                event=self.plan.round_event,
                expect_head=None if head is None else accounting.Head.parse(head),
            )
        except ConfigurationError as error:
            raise CheckpointError(str(error)) from error
        stack.callback(budget.close)
        return budget

    def _codec_spec(self) -> CodecSpec:
        modulus = self.scheme.modulus(self.config.bits)
        if self.plain is not None:
            return self.plain.codec_spec(modulus)
        # With differential privacy clients count alike.
        return codec_spec(
            self.config,
            dimension=self.model.dim,
            clip_norm=self.config.encoding.clip_norm,
            max_weight=None,
            modulus=modulus,
        )

    # -- the record ------------------------------------------------------------------------------

    def _record(
        self,
        state: _State,
        outcome: RoundOutcome,
        participants: Mapping[ClientId, Participant],
    ) -> None:
        begin = time.process_time()
        measured = (state.next_round + 1) % self.config.simulation.evaluate_every == 0
        loss, accuracy = self._evaluate(state.vector) if measured else (None, None)
        seconds = self._told(state, outcome.seconds) | {"evaluate": time.process_time() - begin}
        cohort = outcome.cohort or self.cohorts.of(state.next_round)
        present = [client for client in cohort if client not in outcome.refused]
        dropped = self.drops.drops(state.next_round, present)
        line = {
            "round": state.next_round,
            "mode": self.spec.mode.value,
            "seed": self.spec.seed,
            "target_epsilon": self.spec.target_epsilon,
            "status": outcome.status.value,
            "cohort": len(cohort),
            "survivors": len(outcome.survivors),
            "refused": len(outcome.refused),
            "dropped": {phase: len(clients) for phase, clients in dropped.items()},
            "late": len(self.drops.late(state.next_round, present)),
            "loss": loss,
            "accuracy": accuracy,
            "epsilon": self._epsilon(participants),
            "bytes_up": sum(outcome.bytes_up.values()),
            "bytes_down": sum(outcome.bytes_down.values()),
            "bytes_up_per_client": sum(outcome.bytes_up.values()) / max(1, len(cohort)),
            "bytes_down_per_client": sum(outcome.bytes_down.values()) / max(1, len(cohort)),
            "update_norm": _norm(outcome.mean_update),
            "clipped_fraction": (
                self._clipped_fraction(outcome) if self.spec.mode is Mode.NONE else None
            ),
            "seconds": {stage: round(value, 6) for stage, value in seconds.items()},
            "fidelity": self.config.aggregation.fidelity.value,
            **({} if self.spec.mode.private else {"elapsed": round(self._elapsed(), 3)}),
            **self._validation_figures(state.vector),
            **self._client_figures(state),
            **({} if self.shared is None else self.shared.metrics()),
        }
        path = self.folder / METRICS
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())  # before the checkpoint that says this round is done
        self._on_round(line)

    def _told(self, state: _State, seconds: Mapping[str, float]) -> dict[str, float]:
        """CPU seconds of a round by stage, without those that tell how its secret coins fell.

        A round's epsilon counts on coins that nobody else knows; a report that says how long the
        clients trained would show them. Only the total of the run has these stages in it.
        """
        if not self.spec.mode.private:
            return dict(seconds)
        state.untold += sum(seconds.get(stage, 0.0) for stage in UNTOLD)
        return {stage: value for stage, value in seconds.items() if stage not in UNTOLD}

    def _epsilon(self, participants: Mapping[ClientId, Participant]) -> float | None:
        """What the ledgers charge so far; None without differential privacy."""
        if self.shared is not None:
            return self.shared.epsilon()
        return _largest_epsilon(participants)

    def _evaluate(self, vector: NDArray[np.float32]) -> tuple[float | None, float]:
        """Test loss (None if it overflows) and accuracy of a model."""
        return self._evaluate_on(vector, self.dataset.test)

    def _evaluate_on(
        self, vector: NDArray[np.float32], records: Dataset
    ) -> tuple[float | None, float]:
        self.model.load(self._model_in(vector))
        loss, accuracy = evaluate(self.model, records.x, records.y)
        return (loss if math.isfinite(loss) else None), accuracy

    def _model_in(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """The model's part of what clients start from."""
        return vector[: self.model.dim]

    def _validation_figures(self, vector: NDArray[np.float32]) -> dict[str, Any]:
        """What the stop rules read, where there are any that read something."""
        if self.validation is None:
            return {}
        loss, accuracy = self._evaluate_on(vector, self.validation)
        return {"validation_loss": loss, "validation_accuracy": accuracy}

    def _client_figures(self, state: _State) -> dict[str, Any]:
        """How single clients are served, in the rounds whose record says so."""
        if self.plain is None:
            return {}
        view = ClientView(self.config, self.plain, self.clients)
        if not view.due(state.next_round):
            return {}
        return {"clients": view.measure(self._model_in(state.vector))}

    def _clipped_fraction(self, outcome: RoundOutcome) -> float | None:
        """Share of the updates that the encoding's norm bound cut.

        A view of the simulation only: in a deployment nobody sees single updates.
        """
        if not outcome.updates:
            return None
        norms = [float(np.linalg.norm(update.values)) for update in outcome.updates.values()]
        return sum(norm > self._plain_codec.spec.clip_norm for norm in norms) / len(norms)

    def _summary(
        self, state: _State, participants: Mapping[ClientId, Participant], stopped: StopReason
    ) -> dict[str, Any]:
        lines = read_metrics(self.folder)
        loss, accuracy = self._evaluate(state.vector)
        summary: dict[str, Any] = {
            "run": self.spec.name,
            "mode": self.spec.mode.value,
            "target_epsilon": self.spec.target_epsilon,
            "seed": self.spec.seed,
            "stopped": stopped.value,
            "status": "ok" if self._as_planned(state, stopped) else stopped.value,
            "rounds": state.next_round,
            "rounds_lost": sum(line["status"] != RoundStatus.OK for line in lines),
            "accuracy": accuracy,
            "loss": loss,
            "epsilon": self._epsilon(participants),
            "dropped": sum(sum(line["dropped"].values()) for line in lines),
            "bytes_up_per_client": sum(line["bytes_up_per_client"] for line in lines),
            "bytes_down_per_client": sum(line["bytes_down_per_client"] for line in lines),
            "seconds": state.untold + sum(sum(line["seconds"].values()) for line in lines),
            "parameters": self.model.dim,
            "model_sha256": hashlib.sha256(
                self._model_in(state.vector).astype("<f4").tobytes()
            ).hexdigest(),
            "partition_digest": self.partition.digest().hex(),
            "codec": self._codec_facts(),
            "fidelity": self.config.aggregation.fidelity.value,
            "protocol": self.transport.protocol,
            **self.scheme.facts(),
        }
        if self.plain is not None:
            summary |= self._plain_summary(self.plain, state)
        if self.plan is not None:
            dp = self.config.local_dp
            summary |= {
                "delta": self.plan.delta,
                "adjacency": ADJACENCY.value,
                "unit": UNIT.value,
                "noise_multiplier": self.plan.noise_multiplier,
                "sample_rate": dp.sample_rate,
                "steps_per_round": dp.steps_per_round,
                "clip_norm": dp.clip_norm,
                "ledgers": [
                    {
                        "client_index": client,
                        "path": f"{LEDGERS}/client-{client}.sqlite",
                        "head": str(budget.ledger.head),
                        "spent_epsilon": budget.epsilon().value,
                    }
                    for client, budget in _budgets(participants)
                ],
            }
        if self.shared is not None:
            summary |= self.shared.summary()
        return summary

    def _plain_summary(self, plain: PlainRun, state: _State) -> dict[str, Any]:
        """What a run without differential privacy says besides the usual."""
        summary: dict[str, Any] = {
            "algorithm": self.config.training.algorithm,
            # Of how many clients the opened sums determine the update, if updates stay the same.
            "clients_exposed": self.cohorts.exposed,
            "clients_exposed_planned": self.cohorts.planned(self.rounds),
        }
        if self.config.client_metrics.every is not None:
            view, model = ClientView(self.config, plain, self.clients), self._model_in(state.vector)
            summary["clients_served"] = view.measure(model)
            summary["clients_fine_tuned"] = view.tuned(model)
        return summary

    def _as_planned(self, state: _State, stopped: StopReason) -> bool:
        """Whether a run ended as it was meant to: a shared budget is there to be used up."""
        if self.shared is None:
            return stopped.succeeded
        section = self.config.noise_shares(self.spec.mode)
        used_up = section.stop == "budget" and stopped is StopReason.BUDGET and state.next_round > 0
        return stopped.succeeded or used_up

    def _codec_facts(self) -> dict[str, Any]:
        if self.shared is not None:
            return self.shared.codec_facts()
        spec = self._plain_codec.spec
        return {
            "bits": self.config.bits,
            "modulus": spec.modulus,
            "steps_per_clip_norm": spec.resolution,
            "digest": spec.digest().hex(),
        }

    # -- checkpoints -----------------------------------------------------------------------------

    def _begin(self) -> _State:
        if self.folder.exists() and any(self.folder.iterdir()):
            raise CheckpointError(
                f"{self.folder} already holds a run: resume it, or choose another folder. "
                "Nothing was changed; its ledgers say what its clients have spent"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        return self._first()

    def _first(self) -> _State:
        model = self.model.vector()
        start = model if self.plain is None else self.plain.algorithm.begin(model)
        return _State(next_round=0, vector=start)

    def _restore(self) -> _State:
        checkpoint = latest_checkpoint(self.folder / CHECKPOINTS)
        if checkpoint is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            truncate_metrics(self.folder, 0)
            return self._first()
        for what, found, expected in (
            ("configuration", checkpoint.config_digest, self._config_digest()),
            ("run", checkpoint.run, self.spec.name),
            ("partition", checkpoint.partition_digest, self.partition.digest().hex()),
        ):
            if found != expected:
                raise CheckpointError(
                    f"{self.folder}: the checkpoint belongs to another {what} "
                    f"({found}, this one is {expected}); resume with the configuration of the run"
                )
        arrays = dict(checkpoint.arrays)
        vector = arrays.pop("model")
        elapsed, untold = arrays.pop(_CLOCK, np.zeros(2))
        self.cohorts.restore(arrays)
        if self.plain is not None:
            self.plain.restore(arrays)
        if self.shared is not None:
            self.shared.restore(arrays)
        self.optimiser.load_state_dict(
            {name.removeprefix("optimiser/"): value for name, value in arrays.items()}
        )
        truncate_metrics(self.folder, checkpoint.next_round)
        return _State(
            next_round=checkpoint.next_round,
            vector=vector,
            elapsed=float(elapsed),
            untold=float(untold),
            lost_in_a_row=checkpoint.lost_in_a_row,
            ledger_heads=checkpoint.ledger_heads,
        )

    def _save(self, state: _State, participants: Mapping[ClientId, Participant]) -> None:
        state.ledger_heads = {
            str(client): str(budget.ledger.head) for client, budget in _budgets(participants)
        } | ({} if self.shared is None else self.shared.heads())
        optimiser = self.optimiser.state_dict()
        write_checkpoint(
            self.folder / CHECKPOINTS,
            Checkpoint(
                next_round=state.next_round,
                config_digest=self._config_digest(),
                run=self.spec.name,
                partition_digest=self.partition.digest().hex(),
                ledger_heads=state.ledger_heads,
                lost_in_a_row=state.lost_in_a_row,
                arrays={
                    "model": state.vector,
                    _CLOCK: np.array([self._elapsed(), state.untold]),
                    **{f"optimiser/{name}": value for name, value in optimiser.items()},
                    **self.cohorts.state(),
                    **({} if self.plain is None else self.plain.state()),
                    **({} if self.shared is None else self.shared.state()),
                },
            ),
        )

    def _config_digest(self) -> str:
        return self.config.digest()


def make_partition(config: RunConfig, seed: int, train: Dataset) -> Partition:
    """Who holds which training records.

    Raises:
        ConfigurationError: if the data cannot be dealt that way.
    """
    wanted = config.partition
    clients, least = wanted.clients, wanted.minimum
    match wanted.kind:
        case "iid":
            return partition.iid(len(train), clients=clients, seed=seed, min_size=least)
        case "dirichlet":
            return partition.dirichlet(
                train.y, clients=clients, alpha=wanted.alpha, seed=seed, min_size=least
            )
        case "shards":
            return partition.shards(
                train.y,
                clients=clients,
                per_client=wanted.shards_per_client,
                seed=seed,
                min_size=least,
            )
        case "quantity":
            return partition.quantity(
                len(train), clients=clients, alpha=wanted.alpha, seed=seed, min_size=least
            )
        case "natural":
            if train.groups is None:
                raise ConfigurationError(
                    f"partition.kind = natural needs records that belong to sites; "
                    f"{config.data.name} has none (heart-disease has four)"
                )
            parts = partition.natural(train.groups, min_size=least)
            if len(parts.indices) != clients:
                raise ConfigurationError(
                    f"{config.data.name} has {len(parts.indices)} sites, "
                    f"partition.clients is {clients}; set it to {len(parts.indices)}"
                )
            return parts


def make_plan(
    config: RunConfig, spec: RunSpec, scheme: Scheme, dimension: int, train: Dataset
) -> PrivacyPlan | SharedPlan | None:
    """What the clients of a run agree to; None without differential privacy.

    Raises:
        accounting.CalibrationError: if no noise attains the target.
        ConfigurationError: if the protocol cannot carry the noise.
    """
    if spec.target_epsilon is None:
        return None
    if not spec.mode.shares_noise:
        return PrivacyPlan.calibrate(config, spec.target_epsilon)
    return SharedPlan.calibrate(
        config,
        spec.mode,
        spec.target_epsilon,
        dimension=dimension,
        records=len(train),
        classes=train.classes,
        scheme=scheme,
    )


def make_optimiser(config: RunConfig, mode: Mode, dimension: int) -> ServerOptimiser:
    """The server's optimiser."""
    server = config.noise_shares(mode) if mode.shares_noise else config.server
    return averaging_server(server.model_dump(), dimension)


def _stop_rules(config: RunConfig) -> StopRules:
    stop = config.stop
    return StopRules(
        target_accuracy=stop.target_accuracy,
        target_patience=stop.target_patience,
        plateau_rounds=stop.plateau_rounds,
        plateau_improvement=stop.plateau_improvement,
        deadline_seconds=stop.deadline_seconds,
    )


def _with_validation(
    config: RunConfig, dataset: TrainTest, seed: int
) -> tuple[TrainTest, Dataset | None]:
    """The held-out records in two parts where stop rules read one: accuracy is told on the other.

    Without that a run would stop on the records that its accuracy is then reported for.
    """
    if not config.stop.watches_progress:
        return dataset, None
    rest, validation = stratified_split(
        dataset.test.y, test_fraction=config.stop.validation_fraction, seed=seed
    )
    kept = TrainTest(train=dataset.train, test=dataset.test.subset(rest))
    return kept, dataset.test.subset(validation)


def _with_threshold(
    transport: ProtocolTransport | EncodedTransport, threshold: int
) -> ProtocolTransport | EncodedTransport:
    """The transport for a cohort whose sums need that many; machines know it by themselves."""
    if isinstance(transport, ProtocolTransport) or transport.threshold == threshold:
        return transport
    return replace(transport, threshold=threshold)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, one per round; empty if there is none."""
    path = folder / METRICS
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def truncate_metrics(folder: Path, rounds: int) -> None:
    """Drops the lines of rounds that are not part of the checkpoint (they are run again)."""
    path = folder / METRICS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    if len(lines) < rounds:
        raise CheckpointError(
            f"{path} has {len(lines)} lines, the checkpoint has {rounds} rounds: "
            "restore the file that belongs to the checkpoint"
        )
    if len(lines) > rounds:
        write_durably(path, "".join(lines[:rounds]).encode())


def _budgets(
    participants: Mapping[ClientId, Participant],
) -> Iterator[tuple[ClientId, ClientBudget]]:
    for client, participant in participants.items():
        if participant.budget is not None:
            yield client, participant.budget


def _largest_epsilon(participants: Mapping[ClientId, Participant]) -> float | None:
    """The largest epsilon of any client; None without differential privacy (no bound at all).

    Clients hold different records, so one record is covered by one client's epsilon (parallel
    composition), and the largest holds for all.
    """
    return max((b.epsilon().value for _, b in _budgets(participants)), default=None)


def _norm(vector: NDArray[np.float64] | None) -> float | None:
    return None if vector is None else float(np.linalg.norm(vector))
