"""How a simulated round's vectors are summed: the real protocol, or only its arithmetic.

:class:`ProtocolTransport` runs the machines over the in-memory network. :class:`EncodedTransport`
adds up the same encoded integers without any protocol: same survivors, same bits, no privacy from
the server whatsoever; it exists to show that the protocol changes nothing, and for sweeps. Which
one ran stands in every record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefl.encoding.codec import sum_encoded
from securefl.errors import BelowThreshold, ConfigurationError
from securefl.pipeline import (
    InputOf,
    Participant,
    RoundOutcome,
    RoundStatus,
    Stopwatch,
    TransportReport,
)
from securefl.protocols.machine import ClientMachine, ServerMachine
from securefl.round import AggregateSum, ClientId
from securefl.simulation.network import InMemoryNetwork
from securefl.simulation.session import SessionRecord, run_session
from securefl.training.apply import ServerOptimiser
from securefl.training.local import ModelUpdate

__all__ = ["PHASES", "DropPlan", "EncodedTransport", "ProtocolTransport", "float_round"]

PHASES = ("advertise_keys", "share_keys", "masked_input_collection", "unmasking")
"""The phases that every variant has; a client may vanish before its message of any of them."""

Drops = Mapping[str, tuple[ClientId, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DropPlan:
    """Which clients vanish when: a simulated accident, reproducible from its seed.

    Attributes:
        seed: of the schedule; public, nothing private depends on it.
        per_round: how many clients vanish in each round.
    """

    seed: int
    per_round: int

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
        return drops

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolTransport:
    """The in-memory network with the real machines; clients vanish as planned.

    Attributes:
        plan: who vanishes when. It knows the phases that all variants have, so that one seed loses
            the same clients whatever the adversary.
        protocol: name for the evidence.
    """

    plan: DropPlan
    protocol: str = "secagg"

    def carry(
        self,
        server: ServerMachine,
        clients: Mapping[ClientId, ClientMachine],
        input_of: InputOf,
        *,
        round_index: int,
    ) -> TransportReport:
        """See :class:`securefl.pipeline.Transport`."""
        drops = self.plan.drops(round_index, tuple(clients))
        record = SessionRecord()
        # A transcript would hold every masked vector of the cohort, and nobody reads it here.
        network = InMemoryNetwork(keep_transcript=False)
        try:
            aggregate = run_session(
                server, clients, input_of, network=network, drops=drops, record=record
            ).aggregate
        except BelowThreshold:
            aggregate = None
        return TransportReport(
            aggregate=aggregate,
            sent_input=frozenset(record.sent_input),
            bytes_up=record.bytes_up,
            bytes_down=record.bytes_down,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedTransport:
    """A plain modular sum of the encoded integers. **No protocol: the server would see them all.**

    Attributes:
        plan: who vanishes when.
        threshold: fewest clients alive in every phase, as in the protocol.
    """

    plan: DropPlan
    threshold: int
    protocol: str = "none (encoded integers summed in clear)"

    def carry(
        self,
        server: ServerMachine,
        clients: Mapping[ClientId, ClientMachine],
        input_of: InputOf,
        *,
        round_index: int,
    ) -> TransportReport:
        """See :class:`securefl.pipeline.Transport`; the machines are not used."""
        del server
        present = tuple(clients)
        alive = self.plan.alive(round_index, present)
        senders = self.plan.senders(round_index, present)
        if any(alive[phase] < self.threshold for phase in PHASES[:2]):
            return _nothing(frozenset())
        vectors = {client: input_of(client) for client in senders}
        if any(alive[phase] < self.threshold for phase in PHASES[2:]):
            return _nothing(frozenset(senders))
        total = sum_encoded(list(vectors.values()))
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
    optimiser: ServerOptimiser,
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
    with watch("train"):
        for client in plan.senders(round_index, present):
            updates[client] = participants[client].trainer.train(vector, round_index=round_index)
    with watch("apply"):
        values = np.stack([update.values.astype(np.float64) for update in updates.values()])
        weights = [update.weight if weighted else 1 for update in updates.values()]
        mean = np.average(values, axis=0, weights=weights)
        new_vector = optimiser.apply(vector, mean)
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
