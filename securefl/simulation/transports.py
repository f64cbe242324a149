"""How a simulated round's vectors are summed: the real protocol, or only its arithmetic.

:class:`ProtocolTransport` runs the machines over the in-memory network. :class:`EncodedTransport`
adds up the same encoded integers without any protocol: same survivors, same bits, no privacy from
the server whatsoever; it exists to show that the protocol changes nothing, and for sweeps. Which
one ran stands in every record.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefl.encoding.codec import sum_encoded
from securefl.errors import BelowThreshold, ConfigurationError
from securefl.modular import RingVector
from securefl.pipeline import (
    InputOf,
    Machines,
    Participant,
    Peers,
    Prepare,
    RoundOutcome,
    RoundStatus,
    RoundWork,
    Stopwatch,
    TransportReport,
)
from securefl.protocols.machine import Event, PeerMachine, ServerMachine
from securefl.round import AggregateSum, ClientId
from securefl.simulation.network import InMemoryNetwork
from securefl.simulation.peers import run_peers
from securefl.simulation.session import INPUT_PHASE, SessionRecord, run_session
from securefl.training.apply import ServerStep
from securefl.training.local import ModelUpdate

__all__ = [
    "PHASES",
    "DropPlan",
    "EncodedTransport",
    "ProtocolTransport",
    "float_round",
    "phases_of",
    "phases_of_peers",
]

PHASES = ("advertise_keys", "share_keys", INPUT_PHASE, "unmasking")
"""The moments of a schedule, named after SecAgg's phases; a client may vanish before its message
of any of them. :func:`phases_of` finds them in the other protocols."""

Drops = Mapping[str, tuple[ClientId, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DropPlan:
    """Which clients vanish when: a simulated accident, reproducible from its seed.

    Attributes:
        seed: of the schedule; public, nothing private depends on it.
        per_round: how many clients vanish in each round.
        delays: mean delay of each client's input in simulated seconds, by id; empty for none. A
            round's delay is drawn from the exponential distribution.
        deadline: simulated seconds after which an input is late, and its client a dropped one.
    """

    seed: int
    per_round: int
    delays: tuple[float, ...] = ()
    deadline: float = math.inf

    def drops(self, round_index: int, present: Sequence[ClientId]) -> Drops:
        """The clients of ``present`` that vanish in this round, by phase."""
        generator = np.random.default_rng((self.seed, round_index, 0xD209))
        count = min(self.per_round, len(present))
        chosen = generator.choice(len(present), size=count, replace=False)
        phases = generator.integers(len(PHASES), size=count)
        drops: dict[str, tuple[ClientId, ...]] = {}
        for index, phase in zip(chosen, phases, strict=True):
            name = PHASES[phase]
            drops[name] = (*drops.get(name, ()), present[index])
        gone = {client for clients in drops.values() for client in clients}
        late = tuple(c for c in self.late(round_index, present) if c not in gone)
        if late:
            drops[INPUT_PHASE] = (*drops.get(INPUT_PHASE, ()), *late)
        return drops

    def late(self, round_index: int, present: Sequence[ClientId]) -> tuple[ClientId, ...]:
        """The clients of ``present`` whose input would come after the deadline."""
        if not self.delays:
            return ()
        # One draw per client there is, so that nobody's delay depends on who else is present.
        generator = np.random.default_rng((self.seed, round_index, 0x51041))
        delays = generator.exponential(self.delays)
        return tuple(client for client in present if delays[client] > self.deadline)

    def senders(self, round_index: int, present: Sequence[ClientId]) -> tuple[ClientId, ...]:
        """Who stays until its input is sent: everybody but those that vanish earlier."""
        drops = self.drops(round_index, present)
        gone = {client for phase in PHASES[:3] for client in drops.get(phase, ())}
        return tuple(client for client in present if client not in gone)

    def alive(self, round_index: int, present: Sequence[ClientId]) -> Mapping[str, int]:
        """How many of ``present`` send their message of each phase."""
        drops = self.drops(round_index, present)
        left, counts = len(present), {}
        for phase in PHASES:
            left -= len(drops.get(phase, ()))
            counts[phase] = left
        return counts


def phases_of_peers(peer: PeerMachine) -> Mapping[str, str]:
    """The same without a server: the inputs go out in the second phase, as shares."""
    first, shares, *_, last = peer.phases
    return dict(zip(PHASES, (first, shares, shares, last), strict=True))


def phases_of(server: ServerMachine) -> Mapping[str, str]:
    """The phase of this session in which each moment of :data:`PHASES` falls.

    The first, the last before inputs, that of the inputs, and the last. The consistency check of
    active sessions has no moment. With Paillier the first two are one, and the last is one in
    which clients send nothing: who vanishes there has done its part.
    """
    phases = server.phases
    before = phases[phases.index(INPUT_PHASE) - 1]
    return dict(zip(PHASES, (phases[0], before, INPUT_PHASE, phases[-1]), strict=True))


def _before_opening(
    server: ServerMachine, may_open: Callable[[int], None]
) -> Callable[[str, Sequence[Event]], None]:
    """Asks once the survivors are fixed: the server's next frames are sent, but nobody has them."""

    def after(phase: str, _events: Sequence[Event]) -> None:
        if phase == INPUT_PHASE:
            may_open(len(server.survivors.U3 or ()))

    return after


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolTransport:
    """The in-memory network with the real machines; clients vanish as planned.

    Attributes:
        plan: who vanishes when. It knows the moments that all variants have, so that one seed loses
            the same clients whatever the protocol and the adversary.
        protocol: name for the evidence.
    """

    plan: DropPlan
    protocol: str = "secagg"

    def carry(
        self,
        machines: Machines | Peers,
        input_of: InputOf,
        *,
        round_index: int,
        may_open: Callable[[int], None] = lambda survivors: None,
    ) -> TransportReport:
        """See :class:`securefl.pipeline.Transport`."""
        phases = (
            phases_of_peers(next(iter(machines.clients.values())))
            if isinstance(machines, Peers)
            else phases_of(machines.server)
        )
        drops: dict[str, tuple[ClientId, ...]] = {}
        for moment, gone in self.plan.drops(round_index, tuple(machines.clients)).items():
            drops[phases[moment]] = (*drops.get(phases[moment], ()), *gone)
        record = SessionRecord()
        # A transcript would hold every hidden vector of the cohort, and nobody reads it here.
        network = InMemoryNetwork(keep_transcript=False)

        try:
            if isinstance(machines, Peers):
                aggregate = run_peers(
                    machines.clients,
                    input_of,
                    network=network,
                    drops=drops,
                    may_open=may_open,
                    record=record,
                ).aggregate
            else:
                aggregate = run_session(
                    machines.server,
                    machines.clients,
                    input_of,
                    parties=machines.parties,
                    network=network,
                    drops=drops,
                    on_phase=_before_opening(machines.server, may_open),
                    record=record,
                ).aggregate
        except BelowThreshold:
            aggregate = None
        # What witnesses and holders of keys send is not a client's cost.
        return TransportReport(
            aggregate=aggregate,
            sent_input=frozenset(record.sent_input),
            bytes_up={u: record.bytes_up.get(u, 0) for u in machines.clients},
            bytes_down={u: record.bytes_down.get(u, 0) for u in machines.clients},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedTransport:
    """A plain modular sum of the encoded integers. **No protocol: the server would see them all.**

    Attributes:
        plan: who vanishes when.
        threshold: fewest clients alive in every phase, as in the protocol.
        clients_open: whether the protocol needs that many clients after the inputs too.
        finish: what becomes of a sum before it counts as opened, from the sum, the number of its
            survivors and the round; where one draw of noise takes the place of all shares, adds it.
    """

    plan: DropPlan
    threshold: int
    clients_open: bool = True
    finish: Callable[[RingVector, int, int], RingVector] = lambda total, _survivors, _round: total
    protocol: str = "none (encoded integers summed in clear)"

    def carry(
        self,
        machines: Machines | Peers,
        input_of: InputOf,
        *,
        round_index: int,
        may_open: Callable[[int], None] = lambda survivors: None,
    ) -> TransportReport:
        """See :class:`securefl.pipeline.Transport`; the machines only say who takes part."""
        present = tuple(machines.clients)
        alive = self.plan.alive(round_index, present)
        senders = self.plan.senders(round_index, present)
        if any(alive[phase] < self.threshold for phase in PHASES[:2]):
            return _nothing(frozenset())
        vectors = {client: input_of(client) for client in senders}
        if any(alive[phase] < self.threshold for phase in PHASES[2 : 3 + self.clients_open]):
            return _nothing(frozenset(senders))
        try:
            may_open(len(senders))
        except BelowThreshold:
            return _nothing(frozenset(senders))
        total = self.finish(sum_encoded(list(vectors.values())), len(senders), round_index)
        return TransportReport(
            aggregate=AggregateSum(
                vector=total,
                survivors=tuple(sorted(senders)),
                min_honest=0,
                verified=False,
                transcript_digest=hashlib.sha256(total.values.tobytes()).digest(),
            ),
            sent_input=frozenset(senders),
            bytes_up={},
            bytes_down={},
        )


def float_round(
    *,
    round_index: int,
    vector: NDArray[np.float32],
    participants: Mapping[ClientId, Participant],
    plan: DropPlan,
    threshold: int,
    weighted: bool,
    optimiser: ServerStep,
    prepare: Prepare | None = None,
) -> RoundOutcome:
    """A round without encoding and without any protocol: the baseline for what encoding costs.

    The weighted mean of the raw updates in float64, same clients, same dropouts. Nothing is hidden
    from anybody, so clients with a privacy budget are refused.

    Raises:
        ConfigurationError: if a participant has a privacy budget.
    """
    if any(participant.budget is not None for participant in participants.values()):
        raise ConfigurationError(
            "fidelity = float is a baseline without privacy and charges no ledger; "
            "use it with mode none only"
        )
    watch = Stopwatch()
    present = tuple(participants)
    if min(plan.alive(round_index, present).values()) < threshold:
        return RoundOutcome(status=RoundStatus.BELOW_THRESHOLD, vector=vector)
    updates: dict[ClientId, ModelUpdate] = {}
    senders = plan.senders(round_index, present)
    if prepare is not None:
        work = RoundWork(round_index=round_index, vector=vector, clients=senders, codec=None)
        with prepare(work) as elsewhere:
            for client in senders:
                made = elsewhere(client)
                updates[client] = made.update
                watch.add(made.seconds)
    else:
        with watch("train"):
            for client in senders:
                trainer = participants[client].trainer
                updates[client] = trainer.train(vector, round_index=round_index)
    with watch("apply"):
        values = np.stack([update.values.astype(np.float64) for update in updates.values()])
        weights = [update.weight if weighted else 1 for update in updates.values()]
        mean = np.average(values, axis=0, weights=weights)
        new_vector = optimiser.apply(vector, mean, survivors=len(updates))
    return RoundOutcome(
        status=RoundStatus.OK,
        vector=new_vector,
        survivors=tuple(sorted(updates)),
        mean_update=mean,
        updates=updates,
        seconds=watch.seconds,
    )


def _nothing(sent: frozenset[ClientId]) -> TransportReport:
    return TransportReport(aggregate=None, sent_input=sent, bytes_up={}, bytes_down={})
