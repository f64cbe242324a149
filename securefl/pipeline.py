"""One private round, top to bottom: the life of a client's update.

    reserve -> train -> clip -> encode -> mask -> wire -> sum -> recover
            -> settle -> decode -> apply

Read :func:`private_round` first: it is the whole story on one page, and the other names here are
its parts. The pipeline is handed a :class:`Scheme`, which makes the protocol's machines for one
round, and a :class:`Transport` that carries frames between them (the in-memory network of
``securefl.simulation``, or a real one). It knows no protocol by name, and nothing of sockets,
files or clocks beyond a stopwatch.

Adversary: the one of the scheme. A semi-honest server follows the protocol and wants to learn a
client's update; an active one may also lie to each client. Either sees hidden vectors and the sum
over the survivors. The sum itself is *not* private unless the clients trained with differential
privacy (a :class:`~securefl.training.dpsgd.ClientBudget` each), or the codec adds a share of noise
on every client and the population pays for the sum
(a :class:`~securefl.population.PopulationBudget`).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

import accounting
from securefl.encoding.codec import Codec, UpdateCodec, Weighting
from securefl.errors import ConfigurationError
from securefl.modular import RingVector
from securefl.population import ParticipationBudget, Payment, PopulationBudget, SharedRelease
from securefl.primitives.prg import SecureRandom
from securefl.primitives.signing import IdentityKey
from securefl.protocols.machine import ClientMachine, PeerMachine, ServerMachine
from securefl.round import AggregateSum, ClientId, Cohort, RoundId
from securefl.training.apply import ServerStep
from securefl.training.dpsgd import ClientBudget
from securefl.training.local import ModelUpdate, Trainer, TrainingDiverged

__all__ = [
    "InputOf",
    "Machines",
    "Participant",
    "Peers",
    "Prepare",
    "Prepared",
    "RoundOutcome",
    "RoundStatus",
    "RoundWork",
    "Scheme",
    "SharesNoise",
    "Stopwatch",
    "Transport",
    "TransportReport",
    "context_digest",
    "encode_update",
    "private_round",
    "round_seed",
]

InputOf: TypeAlias = Callable[[ClientId], RingVector]
NoiseSource: TypeAlias = Callable[[ClientId, int], Callable[[int], bytes]]
"""``f(client, round_index)``: the secret source of one client's encoding in one round."""


def _system_randomness(_client: ClientId, _round_index: int) -> Callable[[int], bytes]:
    return SecureRandom().random_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundWork:
    """Steps 1 to 3 of a round's clients, as they are handed to somebody else to carry out.

    Attributes:
        round_index: number of the round.
        vector: float32[d], what every client starts from.
        clients: who takes part, in the order in which they are likely to be asked.
        codec: floats to ring elements; None asks for the updates only.
        round_seed: the round's public seed.
    """

    round_index: int
    vector: NDArray[np.float32] = field(repr=False)
    clients: tuple[ClientId, ...]
    codec: Codec | None
    round_seed: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What became of one client's steps 1 to 3.

    Attributes:
        update: what its training came to.
        vector: the encoded update; None if no codec was given.
        seconds: CPU seconds by stage, wherever they were spent.
    """

    update: ModelUpdate
    vector: RingVector | None = field(repr=False)
    seconds: Mapping[str, float]


Prepare: TypeAlias = Callable[[RoundWork], AbstractContextManager[Callable[[ClientId], Prepared]]]
"""Begins a round's work and gives a function that waits for one client's part, once per client."""


class RoundStatus(StrEnum):
    """How a round ended."""

    OK = "ok"
    BELOW_THRESHOLD = "below-threshold"
    """Too few clients were left: no sum was opened, the model is unchanged."""
    BUDGET = "budget"
    """Too few clients had budget left to start: nobody trained, the model is unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """What one client brings to a round; everything in here stays on the client.

    Attributes:
        client: its id in the cohort.
        trainer: turns the global model into an update from the client's own records.
        budget: its privacy budget and ledger; None without differential privacy.
        identity: its long-term signing key, which sessions against an active server need. Here
            the public halves of all participants are the directory; in a deployment that comes
            from somewhere the server has no hand in.
    """

    client: ClientId
    trainer: Trainer
    budget: ClientBudget | None = None
    identity: IdentityKey | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportReport:
    """What carrying one session came to.

    Attributes:
        aggregate: the opened sum; None if the round fell below its threshold.
        sent_input: clients whose (masked) input left the client, whether or not it was opened.
        bytes_up: bytes each client sent.
        bytes_down: bytes each client was sent.
    """

    aggregate: AggregateSum | None
    sent_input: frozenset[ClientId]
    bytes_up: Mapping[ClientId, int]
    bytes_down: Mapping[ClientId, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """Everybody's machine for one session.

    Attributes:
        server: the server's.
        clients: of the clients that take part, by id.
        parties: of others, who give no input: witnesses and holders of keys, by id.
    """

    server: ServerMachine
    clients: Mapping[ClientId, ClientMachine]
    parties: Mapping[ClientId, ClientMachine] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """Everybody's machine for one session without a server.

    Attributes:
        clients: of the peers that take part, by id. Each opens the same sum.
    """

    clients: Mapping[ClientId, PeerMachine]


class Scheme(Protocol):
    """One way to sum vectors without showing them: its numbers, and fresh machines on request."""

    @property
    def n_min(self) -> int:
        """Fewest clients in an opened sum; with fewer a round does not start."""
        ...

    def machines(
        self,
        *,
        round_id: RoundId,
        cohort: Cohort,
        present: Sequence[ClientId],
        length: int,
        modulus: int,
        context_digest: bytes,
        identities: Mapping[ClientId, IdentityKey],
    ) -> Machines | Peers:
        """Fresh machines for one session.

        Args:
            round_id: the training round.
            cohort: who was selected.
            present: its members that take part.
            length: entries of a vector.
            modulus: of their ring.
            context_digest: 32 bytes; what all clients have in common, see :func:`context_digest`.
            identities: long-term keys of the cohort, as far as there are any.

        Raises:
            ConfigurationError: if the numbers are unsafe, do not fit together, or are weaker than
                what a client demands; or if an identity is missing.
        """
        ...


@runtime_checkable
class SharesNoise(Protocol):
    """A codec in which every client adds a share of the noise."""

    def encode_zero(
        self, *, round_seed: bytes = b"", random_bytes: Callable[[int], bytes] = os.urandom
    ) -> RingVector:
        """A share and nothing else."""


class Transport(Protocol):
    """Carries the frames of one session between the machines."""

    @property
    def protocol(self) -> str:
        """What hides the inputs on the way, for the evidence in the ledgers."""
        ...

    def carry(
        self,
        machines: Machines | Peers,
        input_of: InputOf,
        *,
        round_index: int,
        may_open: Callable[[int], None],
    ) -> TransportReport:
        """Runs the session to its end.

        Args:
            machines: everybody's.
            input_of: the input of one client; asked for at most once, when its machine wants it.
            round_index: number of the training round.
            may_open: called with the number of survivors once they are fixed and before anybody
                helps to open their sum. It raises BelowThreshold to keep the sum closed.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOutcome:
    """What a round came to.

    Attributes:
        status: see :class:`RoundStatus`.
        vector: float32[d], the new global model (the old one unless status is OK).
        survivors: whose updates are in the sum.
        refused: clients whose own budget did not cover the round.
        cohort: all clients the round was planned with.
        bytes_up: bytes each client sent.
        bytes_down: bytes each client was sent.
        mean_update: float64[d], the decoded mean update; None if there was none.
        updates: what the clients that trained came to. Private to each client: it is here for the
            simulation's own measurements and must not be shown to the server.
        seconds: CPU seconds by stage.
    """

    status: RoundStatus
    vector: NDArray[np.float32]
    survivors: tuple[ClientId, ...] = ()
    refused: tuple[ClientId, ...] = ()
    cohort: tuple[ClientId, ...] = ()
    bytes_up: Mapping[ClientId, int] = field(default_factory=dict)
    bytes_down: Mapping[ClientId, int] = field(default_factory=dict)
    mean_update: NDArray[np.float64] | None = None
    updates: Mapping[ClientId, ModelUpdate] = field(default_factory=dict, repr=False)
    seconds: Mapping[str, float] = field(default_factory=dict)


def private_round(
    *,
    round_index: int,
    vector: NDArray[np.float32],
    participants: Mapping[ClientId, Participant],
    scheme: Scheme,
    codec: Codec,
    optimiser: ServerStep,
    transport: Transport,
    plan_digest: bytes = b"",
    population: PopulationBudget | None = None,
    denominator: float | None = None,
    noise_source: NoiseSource = _system_randomness,
    prepare: Prepare | None = None,
) -> RoundOutcome:
    """Carries out one round: every stage of an update's life, in order.

    Args:
        round_index: number of the round, from 0.
        vector: float32[d], the global model that every client starts from (with some algorithms
            the model and more, see :mod:`securefl.training.payload`).
        participants: the cohort.
        scheme: how updates are summed; its numbers come from the threat model.
        codec: floats to ring elements and back; may carry the weights inside the vector, or add
            the client's share of the noise.
        optimiser: applies the decoded mean update.
        transport: carries the frames.
        plan_digest: digest of the privacy plan that all clients agreed to.
        population: pays for the sum where the noise is shared; with a codec that adds shares and
            with no other.
        denominator: public divisor of the sum in place of the number of survivors.
        noise_source: secret coins of the encoding, fresh for every client and round.
        prepare: who trains and encodes in place of the participants' own trainers, with coins of
            its own: the worker processes of a simulation. It begins once everything is reserved.

    Returns:
        The outcome. A lost round is an outcome, not an error.

    Raises:
        PeerProtocolError: if a party broke the protocol. Reservations then stay charged.
        ConfigurationError: if the parameters do not fit together.
    """
    _check_who_pays(codec, population, participants)
    watch = Stopwatch()
    updates: dict[ClientId, ModelUpdate] = {}

    # 10, first half: record before anything is computed. A client whose own ledger does not cover
    # the round refuses, whatever the server says. The reservation is durable before a gradient
    # exists, so a crash can only overstate what was spent.
    with watch("ledger"):
        tickets, refused = _reserve(participants, round_index)
        payment = Payment.reserve(population, round_index)
    present = [client for client in participants if client not in refused]
    if payment is None or len(present) < scheme.n_min:
        with watch("ledger"):
            _withhold(participants, tickets)
            if payment is not None:
                payment.withheld()
        return RoundOutcome(
            status=RoundStatus.BUDGET, vector=vector, refused=refused, seconds=watch.seconds
        )

    # The configuration's digest enters every key, so clients with another model, codec or privacy
    # plan cannot be summed. In a deployment every client computes it from what it received itself.
    context = context_digest(vector, codec.digest(), plan_digest)
    seed = round_seed(context, round_index)

    def input_of(client: ClientId) -> RingVector:
        """Runs on the client, once the protocol has its keys and asks for the input."""
        try:
            if elsewhere is not None:
                made = elsewhere(client)
                updates[client] = made.update
                for stage, seconds in made.seconds.items():
                    spent[stage] = spent.get(stage, 0.0) + seconds
                assert made.vector is not None  # noqa: S101  # a codec was given
                return made.vector
            with watch("train"):  # 1 train
                update = participants[client].trainer.train(vector, round_index=round_index)
        except TrainingDiverged:
            if not isinstance(codec, SharesNoise):
                raise
            # Who stops here tells, without noise, what kind of records it has: a zero instead.
            update = ModelUpdate(values=np.zeros(codec.dimension), weight=0, examples=0, steps=0)
        updates[client] = update
        with watch("encode"):  # 2 clip, 3 encode; weight or noise become a part of the vector
            return encode_update(
                codec, update, round_seed=seed, random_bytes=noise_source(client, round_index)
            )

    def may_open(survivors: int) -> None:
        """Runs on every client, once the survivors are fixed: is their noise what was paid for?"""
        payment.may_open(survivors)
        for client in present:
            budget = participants[client].budget
            if isinstance(budget, ParticipationBudget):
                budget.release.check_survivors(survivors)

    # 4 mask, 5 wire, 6 sum, 7 recover: the machines do it, the transport only carries frames.
    spent: dict[str, float] = {}
    with ExitStack() as stack, watch("protocol"):
        elsewhere = None
        if prepare is not None:
            elsewhere = stack.enter_context(
                prepare(
                    RoundWork(
                        round_index=round_index,
                        vector=vector,
                        clients=tuple(present),
                        codec=codec,
                        round_seed=seed,
                    )
                )
            )
        machines = scheme.machines(
            round_id=RoundId(round_index),
            cohort=Cohort.of(participants),
            present=present,
            length=codec.length,
            modulus=codec.modulus,
            context_digest=context,
            identities={c: p.identity for c, p in participants.items() if p.identity is not None},
        )
        report = transport.carry(machines, input_of, round_index=round_index, may_open=may_open)
    watch.subtract("protocol", "train", "encode")
    watch.add(spent)  # not inside the protocol's time: other processes spent it

    # 10, second half: charge exactly the clients whose input left them, opened or not; and the
    # population for the noise that the survivors really brought.
    with watch("ledger"):
        _settle(participants, tickets, report, protocol=transport.protocol, modulus=codec.modulus)
        payment.settle(
            report.aggregate,
            sent=len(report.sent_input),
            planned=len(participants),
            protocol=transport.protocol,
            modulus=codec.modulus,
        )

    outcome = RoundOutcome(
        status=RoundStatus.BELOW_THRESHOLD,
        vector=vector,
        refused=refused,
        cohort=tuple(participants),
        bytes_up=report.bytes_up,
        bytes_down=report.bytes_down,
        updates=updates,
        seconds=watch.seconds,
    )
    if report.aggregate is None:
        return outcome
    with watch("apply"):
        mean = codec.decode(  # 8 decode
            report.aggregate, round_seed=seed, denominator=denominator
        ).mean
        new_vector = optimiser.apply(  # 9 apply
            vector, mean, survivors=len(report.aggregate.survivors)
        )
    return replace(
        outcome,
        status=RoundStatus.OK,
        vector=new_vector,
        survivors=report.aggregate.survivors,
        mean_update=mean,
    )


def context_digest(
    vector: NDArray[np.float32], codec_digest: bytes, plan_digest: bytes = b""
) -> bytes:
    """What all clients of a round must have in common, as 32 bytes that enter every key.

    Clients that were sent different models, codecs or privacy plans derive different keys, so
    their updates cannot be summed: the attack is "model inconsistency" (Pasquini et al. 2022,
    *Eluding secure aggregation in federated learning via model inconsistency*).

    >>> import numpy as np
    >>> a = context_digest(np.zeros(3, dtype=np.float32), b"codec")
    >>> b = context_digest(np.ones(3, dtype=np.float32), b"codec")
    >>> len(a), a == b
    (32, False)
    """
    digest = hashlib.sha256(b"securefl-context/1\0")
    for part in (np.ascontiguousarray(vector, dtype="<f4").tobytes(), codec_digest, plan_digest):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def round_seed(context: bytes, round_index: int) -> bytes:
    """32 public bytes that every client of a round derives alike: signs of the rotation.

    They need not be unpredictable: no guarantee of privacy depends on them.
    """
    return hashlib.sha256(
        b"securefl-round-seed/1\0" + context + round_index.to_bytes(8, "little")
    ).digest()


class Stopwatch:
    """CPU seconds by stage: ``with watch("train"): ...``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the CPU time of the block to ``stage``."""
        begin = time.process_time()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - begin

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds what was measured elsewhere."""
        for stage, more in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + more

    def subtract(self, stage: str, *inner: str) -> None:
        """Takes the stages ``inner``, which ran inside ``stage``, out of it."""
        self.seconds[stage] -= sum(self.seconds.get(name, 0.0) for name in inner)


def encode_update(
    codec: Codec,
    update: ModelUpdate,
    *,
    round_seed: bytes,
    random_bytes: Callable[[int], bytes],
) -> RingVector:
    """One update as ring elements; weight 0 of a codec without weights is an encoded zero.

    So is, where the noise is shared, an update that is not finite: whether training failed follows
    from the records, and a client that refuses tells it without noise.
    """
    weighted = isinstance(codec, UpdateCodec) and codec.spec.weighting is Weighting.WEIGHTED
    if isinstance(codec, SharesNoise) and (
        update.weight == 0 or not np.isfinite(update.values).all()
    ):
        return codec.encode_zero(round_seed=round_seed, random_bytes=random_bytes)
    return codec.encode(
        update.values,
        weight=update.weight if weighted else 1,
        share=update.share,
        round_seed=round_seed,
        random_bytes=random_bytes,
    )


def _check_who_pays(
    codec: Codec,
    population: PopulationBudget | None,
    participants: Mapping[ClientId, Participant],
) -> None:
    """Noise without a ledger is not accounted for, a ledger without noise accounts for nothing."""
    noisy = isinstance(codec, SharesNoise)
    paying = [isinstance(p.budget, ParticipationBudget) for p in participants.values()]
    each = bool(paying) and all(paying)
    if noisy != (population is not None or each) or (population is not None and any(paying)):
        who = "a population" if population is not None else "every client's" if each else "no"
        raise ConfigurationError(
            f"a codec that adds {'shares of noise' if noisy else 'no noise'} was given with {who} "
            "budget for shares: noise is paid for by the population or by every client, once"
        )
    budgets = [population, *(p.budget for p in participants.values())]
    for budget in budgets:
        if isinstance(budget, PopulationBudget | ParticipationBudget):
            _check_price(codec, budget.release)


def _check_price(codec: Codec, release: SharedRelease) -> None:
    """A ledger that charges for other noise than the codec adds would state an epsilon too low."""
    charged = release.mechanism(release.fewest, release.colluding)
    added = codec.event(release.fewest, release.colluding)
    if charged != added:
        raise ConfigurationError(
            f"the budget charges {charged} for a sum of {release.fewest} survivors, of whom "
            f"{release.colluding} collude, but the codec's sum is {added}: give the budget the "
            "event of this codec"
        )
    if release.delta_slack < codec.delta_slack:
        raise ConfigurationError(
            f"the budget charges {release.delta_slack:.4g} of delta for each sum besides its "
            f"event, but the codec's rounding and samplers take {codec.delta_slack:.4g}: give the "
            "budget the delta_slack of this codec"
        )


Tickets = Mapping[ClientId, accounting.Ticket]


def _reserve(
    participants: Mapping[ClientId, Participant], round_index: int
) -> tuple[Tickets, tuple[ClientId, ...]]:
    tickets: dict[ClientId, accounting.Ticket] = {}
    refused: list[ClientId] = []
    for client, participant in participants.items():
        if participant.budget is not None:
            try:
                tickets[client] = participant.budget.reserve(round_index)
            except accounting.BudgetExceeded:
                refused.append(client)
    return tickets, tuple(refused)


def _settle(
    participants: Mapping[ClientId, Participant],
    tickets: Tickets,
    report: TransportReport,
    *,
    protocol: str,
    modulus: int,
) -> None:
    aggregate = report.aggregate
    for client, ticket in tickets.items():
        budget = participants[client].budget
        if budget is None:
            continue
        if client not in report.sent_input:
            budget.withheld(ticket)
        elif aggregate is None:
            budget.lost(ticket)
        else:
            evidence = accounting.Evidence(
                planned=len(participants),
                survivors=len(aggregate.survivors),
                # The client's own noise holds against everybody else together.
                colluding_assumed=len(aggregate.survivors),
                protocol=protocol,
                transcript=aggregate.transcript_digest.hex(),
                modulus=modulus,
            )
            budget.released(ticket, evidence)


def _withhold(participants: Mapping[ClientId, Participant], tickets: Tickets) -> None:
    for client, ticket in tickets.items():
        budget = participants[client].budget
        if budget is not None:
            budget.withheld(ticket)
