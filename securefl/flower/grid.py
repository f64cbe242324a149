"""The server's side in an app: a grid that runs a whole secure session inside one call.

``Strategy.start`` talks to clients through ``grid.send_and_receive`` and nothing else. So this grid
takes the strategy's messages, runs every phase of the protocol with the nodes, and hands back one
reply: the weighted mean, as if a single client had trained on everything. The server that runs this
code sees masked vectors, who took part, and the opened aggregate. The aggregate itself is not
differentially private, unless the configuration asks for shares of noise (``privacy=``).

This module is the honest server's; what clients accept from a dishonest one is decided on the nodes
(:mod:`securefl.flower.session`).
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import PrivacyBudgetExhausted
from flwr.serverapp.strategy import Strategy

from accounting import BudgetExceeded, Evidence
from securefl.encoding.noisy import Contribution, NoisySpec
from securefl.errors import (
    BelowThreshold,
    ConfigurationError,
    PeerProtocolError,
    SecureFLError,
    WireError,
)
from securefl.flower.config import OnAbort, SecAggConfig
from securefl.flower.errors import Code, code_of
from securefl.flower.exchange import Exchange, Letter, Progress
from securefl.flower.hello import NONCE_BYTES, hello_content, verified_hello
from securefl.flower.logs import printable
from securefl.flower.plan import (
    CodecTerms,
    Kind,
    Plan,
    PrivacyTerms,
    TrainIn,
    Weighting,
    metric_levels,
    run_config_digest,
    session_context,
    typed_config,
)
from securefl.flower.privacy import Budget
from securefl.flower.records import (
    HELLO_TYPE,
    SESSION_TYPE,
    ArrayLayout,
    Envelope,
    frame_of,
    model_digest,
    with_dtypes,
)
from securefl.flower.strategies import check_strategy
from securefl.flower.sums import (
    PaillierNumbers,
    decider_nodes,
    opens,
    server_of,
    trains_in,
)
from securefl.modular import ring_dtype
from securefl.protocols.machine import Outbound, ServerMachine
from securefl.protocols.secagg.params import SecAggParams
from securefl.protocols.secagg.server import SecAggServer
from securefl.protocols.secagg.transitions import Phase
from securefl.round import AggregateSum, ClientId, Cohort, RoundConfig, RoundId

__all__ = ["RoundRecord", "SecureGrid"]

logger = logging.getLogger(__name__)

_LOST = (BelowThreshold, PeerProtocolError)


@dataclass(slots=True, kw_only=True)
class RoundRecord:
    """What one attempt at a secure round came to; nothing in it is about a single update.

    Attributes:
        round: number of the call, from 1; retries keep it.
        kind: training or evaluation.
        session: the configuration's digest in hexadecimal digits; empty if none was agreed.
        cohort, survivors: ids in the session.
        seconds: per phase.
        refusals: how often each code came.
        failures: how often each other error of Flower's came, by its number.
        lost: why no sum was opened; empty if one was.
    """

    round: int
    kind: str
    session: str = ""
    cohort: tuple[int, ...] = ()
    survivors: tuple[int, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    failures: Counter[int] = field(default_factory=Counter)
    lost: str = ""

    def complaints(self) -> str:
        """Refusals and errors in words, for messages."""
        refused = sum(self.refusals.values())
        parts = []
        if refused:
            codes = ", ".join(
                f"{code} {Code(code).meaning} ({count})"
                for code, count in sorted(self.refusals.items())
            )
            parts.append(f"{refused} of {len(self.cohort) or 'the'} clients refused: {codes}")
        for code, count in sorted(self.failures.items()):
            what = _FLOWER_ERRORS.get(code, f"Flower's error {code}")
            parts.append(f"{count} failed: {what}")
        return "; ".join(parts)


_FLOWER_ERRORS = {
    1: "the node's app could not be loaded, or runs no SecureFL client",
    2: "the node runs no SecureFL client, or its app raised outside of it",
    3: "the reply was incomplete",
    5: "the node is gone",
    8: "the node's app process ended",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What the strategy asks for: one model and configuration for several nodes."""

    kind: Kind
    nodes: tuple[int, ...]
    arrays: ArrayRecord
    layout: ArrayLayout
    arrays_key: str
    config_key: str
    config: Mapping[str, Any]
    first: Message


class SecureGrid(Grid):
    """Flower's grid, with a secure sum in place of single replies.

    Args:
        grid: Flower's, as ``@app.main()`` gets it.
        strategy: the one that will use this grid; refused if it needs more than a mean.
        config: how rounds are summed.
        clock: seconds that only grow.
        sleep: waits.

    Attributes:
        history: one :class:`RoundRecord` per attempt.

    Raises:
        ConfigurationError: if the strategy is refused.
    """

    def __init__(
        self,
        grid: Grid,
        strategy: Strategy,
        config: SecAggConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        check_strategy(strategy)
        self._set_up(
            grid,
            config,
            weight_key=str(getattr(strategy, "weighted_by_key", "num-examples")),
            clock=clock,
            sleep=sleep,
        )

    def _set_up(
        self,
        grid: Grid,
        config: SecAggConfig,
        *,
        weight_key: str,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._grid = grid
        self._config = config
        self._weight_key = weight_key
        self._exchange = Exchange(grid, clock=clock, sleep=sleep, poll=config.timing.poll)
        self._members: dict[int, ClientId] = {}
        self._asked: dict[int, float] = {}
        self._met = RoundRecord(round=0, kind="hello")
        self._calls = 0
        self._kept: Mapping[str, Any] = {}
        self._budget: Budget | None = None
        if config.privacy is not None:
            terms = config.privacy
            self._budget = Budget(
                Path(terms.ledger),
                population=terms.population,
                epsilon=terms.epsilon,
                delta=terms.delta,
            )
            self._budget.epsilon()  # a ledger that cannot be used must not cost a round
        self.history: list[RoundRecord] = []

    @classmethod
    def with_custom_strategy(
        cls,
        grid: Grid,
        config: SecAggConfig,
        *,
        weight_key: str = "num-examples",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Self:
        """A grid for a strategy of your own; you answer for it.

        Its contract: the same content for every node, with exactly one ArrayRecord and at most one
        ConfigRecord; and an aggregation that computes from the single reply
        (arrays = weighted mean of all clients, ``weight_key`` = sum of their weights, survivors'
        count under ``securefl-survivors``) what it would have computed from all replies. Medians,
        trimmed means, distances between updates, votes, per-client state: none of them do.

        Args:
            grid: Flower's.
            config: how rounds are summed.
            weight_key: name of a client's weight among its metrics.
            clock: seconds that only grow.
            sleep: waits.
        """
        self = cls.__new__(cls)
        self._set_up(grid, config, weight_key=weight_key, clock=clock, sleep=sleep)
        return self

    # -- what Flower's own grid does --------------------------------------------------------------

    def set_run(self, run: Any) -> None:
        """Flower's own."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Flower's own."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Flower's own."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are there and free: one that still owes an answer would miss the round."""
        busy = self._exchange.busy()
        free = [node for node in self._grid.get_node_ids() if node not in busy]
        return self._with_data(free)

    def get_nodes(self) -> Iterable[Any]:
        """As :meth:`get_node_ids`."""
        busy = self._exchange.busy()
        free = {node.node_id: node for node in self._grid.get_nodes() if node.node_id not in busy}
        return [free[node] for node in self._with_data(list(free))]

    def _with_data(self, nodes: list[int]) -> list[int]:
        """Those that a strategy may choose: not the ones that decide what is opened.

        Who is who must be known before the strategy chooses, so strangers are asked here.
        """
        setup = self._config.setup
        if setup is None:
            return nodes
        self._meet(nodes, None)
        members = self._members
        return [node for node in nodes if node in members and members[node] not in setup.deciders]

    def _meet(self, nodes: Iterable[int], until: float | None) -> None:
        """Asks strangers who they are; who does not say is asked again after a while."""
        now = self._exchange.clock()
        strangers = [
            node
            for node in nodes
            if node not in self._members and self._asked.get(node, now) <= now
        ]
        if strangers:
            self._asked |= dict.fromkeys(strangers, now + self._config.timing.deadline)
            self._ask_names(strangers, self._met, until)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Flower's own, for queries only.

        Raises:
            ConfigurationError: for messages that ask for training or evaluation in clear.
        """
        given = list(messages)
        for message in given:
            self._only_query(message.metadata.message_type, "push_messages")
        return self._grid.push_messages(given)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Flower's own; only answers to queries can be asked for."""
        return self._grid.pull_messages(message_ids)

    @staticmethod
    def _only_query(message_type: str, method: str) -> None:
        if message_type.partition(".")[0] != "query":
            raise ConfigurationError(
                f"{method} would ask for {message_type!r} in clear; a SecureGrid runs it through "
                "send_and_receive, where single replies cannot be seen"
            )

    # -- secure rounds ----------------------------------------------------------------------------

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Runs a secure session with these nodes.

        Args:
            messages: the strategy's: all of type "train" or all of type "evaluate", one model and
                one configuration for all of them. Queries go to Flower's grid as they are.
            timeout: seconds for the whole session.

        Returns:
            One reply with the weighted mean; an empty list for no messages, or for a lost round
            under ``on_abort="skip"``.

        Raises:
            BelowThreshold: too few clients were left, and no attempt is; no sum was opened.
            PeerProtocolError: somebody broke the protocol, and no attempt is left.
            ConfigurationError: messages that cannot be summed, or numbers that are not safe.
        """
        given = list(messages)
        if not given:
            return []
        types = {message.metadata.message_type for message in given}
        if all(kind.partition(".")[0] == "query" for kind in types):
            return self._grid.send_and_receive(given, timeout=timeout)
        request = self._request(given, types)
        self._calls += 1
        until = None if timeout is None else self._exchange.clock() + timeout
        for left in range(self._config.retries, -1, -1):
            record = RoundRecord(round=self._calls, kind=str(request.kind))
            self.history.append(record)
            try:
                return [self._attempt(request, record, until)]
            except _LOST as error:
                record.lost = printable(error)
                logger.warning("secure round %s lost: %s", self._calls, record.lost)
                if left == 0 and self._config.on_abort is OnAbort.RAISE:
                    raise
        return []

    def _request(self, messages: list[Message], types: set[str]) -> _Request:
        if types not in ({Kind.TRAIN.value}, {Kind.EVALUATE.value}):
            raise ConfigurationError(
                f"a secure session runs 'train' or 'evaluate' messages, found {sorted(types)}"
            )
        kind = Kind(types.pop())
        if kind is Kind.EVALUATE and not self._config.metrics:
            raise ConfigurationError(
                "federated evaluation would send metrics in clear: set fraction_evaluate=0.0 in "
                "the strategy, or declare metrics in SecAggConfig so that they are summed securely"
            )
        nodes = [message.metadata.dst_node_id for message in messages]
        if len(set(nodes)) != len(nodes):
            raise ConfigurationError(f"a node gets two messages of one round: {sorted(nodes)}")
        content = messages[0].content
        if any(message.content != content for message in messages[1:]):
            raise ConfigurationError(
                "the nodes get different models or configurations; a sum of their updates would "
                "mean nothing"
            )
        models, configs = content.array_records, content.config_records
        if len(models) != 1 or len(configs) > 1 or len(content) != len(models) + len(configs):
            raise ConfigurationError(
                "a message to be summed has one ArrayRecord and at most one ConfigRecord, found "
                f"the records {sorted(content)}"
            )
        (arrays_key, arrays), *_ = models.items()
        config_key, config = next(iter(configs.items()), ("config", ConfigRecord()))
        arrays = with_dtypes(arrays, self._kept)
        layout = ArrayLayout(arrays)
        if not self._kept and layout.kept:
            self._kept = layout.kept
            logger.warning("integers are not averaged and stay as they are: %s", list(layout.kept))
        return _Request(
            kind=kind,
            nodes=tuple(nodes),
            arrays=arrays,
            layout=layout,
            arrays_key=arrays_key,
            config_key=config_key,
            config=config,
            first=messages[0],
        )

    def _attempt(self, request: _Request, record: RoundRecord, until: float | None) -> Message:
        """One fresh session, from the cohort to the reply."""
        members = self._cohort(request.nodes, record, until)
        least = max(3, self._config.least(len(request.nodes)))
        if len(members) < least:
            raise _with_complaints(
                BelowThreshold(needed=least, had=len(members), phase="hello"), record
            )
        deciders = self._deciders(record, until)
        params = self._config.params(sampled=len(request.nodes), cohort=len(members))
        plan = self._plan(request, params)
        config = self._round_config(request, plan, params, members)
        record.session = config.digest().hex()
        record.cohort = tuple(config.cohort.ids)
        session = _Session(
            grid_config=self._config,
            exchange=self._exchange,
            record=record,
            request=request,
            plan=plan,
            config=config,
            members=members,
            numbers=params,
            deciders=deciders,
            until=until,
            budget=self._budget,
        )
        aggregate = session.run()
        record.survivors = tuple(aggregate.survivors)
        return self._reply(request, plan, aggregate, seed=config.digest())

    def _round_config(
        self,
        request: _Request,
        plan: Plan,
        params: SecAggParams | PaillierNumbers,
        members: Mapping[int, ClientId],
    ) -> RoundConfig:
        shaped = {}
        beacon = self._config.known_beacon
        if beacon is not None:
            shaped["graph_value"] = beacon.graph_value(
                beacon.round_ahead(self._config.timing.beacon_lead)
            )
        return params.config(
            round_id=RoundId(len(self.history)),
            cohort=Cohort.of(members.values()),
            m=plan.length,
            b=plan.bits,
            context_digest=session_context(plan.canonical(), model_digest(request.arrays)),
            server_nonce=os.urandom(32),
            **shaped,
        )

    def _plan(self, request: _Request, params: SecAggParams | PaillierNumbers) -> Plan:
        config, clients = self._config, params.n
        counted = config.weighting is Weighting.NUM_EXAMPLES
        max_weight = (config.max_weight or 1) if counted else 1
        metrics = config.metric_ranges()
        bits, codec, privacy = config.ring_bits(clients), None, None
        if config.privacy is not None:
            spec = NoisySpec.plan(
                dimension=request.layout.length,
                clip_norm=config.clip_norm,
                noise_multiplier=config.privacy.noise_multiplier,
                honest_shares=params.n_min - params.threat.corrupt,
                max_clients=clients,
                contribution=Contribution.CLIENT,
                units=clients,
                bits=config.bits,
            )
            bits, resolution, length = spec.bits, spec.resolution, spec.length
            if isinstance(params, PaillierNumbers):
                bits = _unwrapped(spec, fixed=config.bits)
            privacy = PrivacyTerms(
                noise_multiplier=spec.noise_multiplier, honest_shares=spec.honest_shares
            )
        else:
            most = ((1 << bits) - 1) // (2 * clients * max_weight)
            resolution, length = float(max(1, min(1 << 32, most))), request.layout.length
        if request.kind is Kind.TRAIN:
            codec = CodecTerms(
                dimension=request.layout.length, clip_norm=config.clip_norm, resolution=resolution
            )
        words = (length + len(metrics) + 1) * ring_dtype(1 << bits)().itemsize
        return Plan.build(
            kind=request.kind,
            train_in=config.phase_of_training(words),
            clients=clients,
            bits=bits,
            codec=codec,
            weighting=config.weighting,
            weight_key=self._weight_key,
            max_weight=max_weight,
            metrics=metrics,
            levels=metric_levels(clients=clients, max_weight=max_weight, bits=bits)
            if metrics
            else 0,
            privacy=privacy,
            arrays_key=request.arrays_key,
            config_key=request.config_key,
            train_config=typed_config(request.config),
            run_config=run_config_digest(config.run_config or {}),
        )

    def _reply(
        self, request: _Request, plan: Plan, aggregate: AggregateSum, *, seed: bytes
    ) -> Message:
        """What the strategy gets: one reply for all clients."""
        opened = plan.decode(aggregate, round_seed=seed)
        metrics: dict[str, int | float] = {
            self._weight_key: opened.weight,
            "securefl-survivors": len(aggregate.survivors),
            **opened.metrics,
        }
        if self._budget is not None:
            metrics["securefl-epsilon"] = self._budget.epsilon()
        content = RecordDict({"metrics": MetricRecord(dict(metrics))})
        if opened.mean is not None:
            content[request.arrays_key] = request.layout.moved(request.arrays, opened.mean)
        return Message(content, reply_to=request.first)

    # -- who is who -------------------------------------------------------------------------------

    def _cohort(
        self, nodes: tuple[int, ...], record: RoundRecord, until: float | None
    ) -> dict[int, ClientId]:
        """Each node's id in the session; nodes that did not identify themselves are left out."""
        roster = self._config.known_roster
        if not self._config.active or roster is None:
            return {node: ClientId(i) for i, node in enumerate(sorted(nodes))}
        strangers = [node for node in nodes if node not in self._members]
        if strangers:
            self._ask_names(strangers, record, until)
        known = {node: self._members[node] for node in nodes if node in self._members}
        setup = self._config.setup
        if setup is not None:
            known = {node: u for node, u in known.items() if u not in setup.deciders}
        claimed = Counter(known.values())
        for client, count in claimed.items():
            if count > 1:
                logger.warning("%s nodes claim to be client %s: all of them are out", count, client)
                record.refusals[Code.IDENTITY] += count
        return {node: client for node, client in known.items() if claimed[client] == 1}

    def _deciders(self, record: RoundRecord, until: float | None) -> dict[int, ClientId]:
        """Node ids of those who open, with their ids in the session; none without a key.

        Raises:
            BelowThreshold: if too few are there; nobody has trained for nothing then.
        """
        setup = self._config.setup
        if setup is None:
            return {}
        connected = list(self._grid.get_node_ids())
        self._meet(connected, until)
        record.refusals += self._met.refusals
        record.failures += self._met.failures
        self._met = RoundRecord(round=0, kind="hello")
        found = decider_nodes(connected, self._members, setup.deciders)
        for needed, among, what in setup.needs():
            had = len(set(found.values()) & set(among))
            if had < needed:
                error = BelowThreshold(
                    f"{had} of {len(among)} {what} are connected, {needed} are needed",
                    needed=needed,
                    had=had,
                    phase="hello",
                )
                raise _with_complaints(error, record)
        return found

    def _ask_names(self, nodes: list[int], record: RoundRecord, until: float | None) -> None:
        roster = self._config.known_roster
        assert roster is not None  # noqa: S101  # the caller looked
        run_id = int(self._grid.run.run_id)
        nonces = {node: os.urandom(NONCE_BYTES) for node in nodes}
        begin = self._exchange.clock()

        def take(node: int, reply: Message) -> None:
            if _is_error(reply, record):
                return
            try:
                self._members[node] = verified_hello(
                    reply.content, roster, run_id=run_id, node_id=node, nonce=nonces[node]
                )
            except ConfigurationError as error:
                record.refusals[Code.IDENTITY] += 1
                logger.warning("node %s is left out: %s", node, printable(error))

        def progress() -> Progress:
            known = sum(node in self._members for node in nodes)
            return Progress.QUORUM if known >= len(nodes) - 1 else Progress.WAITING

        self._exchange.run(
            [Letter(node=node, content=hello_content(nonces[node])) for node in nodes],
            message_type=HELLO_TYPE,
            group=f"{self._calls}.hello",
            deadline=_seconds_left(self._config.timing.deadline, until, begin),
            grace=self._config.timing.grace,
            take=take,
            progress=progress,
        )
        record.seconds["hello"] = self._exchange.clock() - begin


@dataclass(slots=True, kw_only=True)
class _Session:
    """One session's phases on the server."""

    grid_config: SecAggConfig
    exchange: Exchange
    record: RoundRecord
    request: _Request
    plan: Plan
    config: RoundConfig
    members: Mapping[int, ClientId]
    numbers: SecAggParams | PaillierNumbers
    deciders: Mapping[int, ClientId]
    until: float | None
    budget: Budget | None
    answered: int = 0
    asked_for_inputs: bool = False
    settled: bool = False

    def run(self) -> AggregateSum:
        """All phases, paid for before anything is sent; the opened sum.

        Raises:
            PrivacyBudgetExhausted: if the population's ledger does not cover the session.
        """
        if self.budget is None:
            return self._phases()
        key = self.config.digest().hex()
        worst = self.plan.event(self.config.n_min, self.config.A)
        try:
            self.budget.reserve(worst, number=self.record.round, key=key)
        except BudgetExceeded as error:
            self.record.lost = str(error)
            raise PrivacyBudgetExhausted(str(error)) from None
        try:
            return self._phases()
        finally:
            if not self.settled:
                # Whether a masked vector arrived or was lost on the way, it may have left a node.
                self.budget.abort(key=key, seen=self.asked_for_inputs)

    def _settle(self, survivors: int) -> None:
        """Charges what the survivors make of the session, before anybody is asked to open it."""
        if self.budget is None or self.settled:
            return
        self.budget.settle(
            self.plan.event(survivors, self.config.A),
            key=self.config.digest().hex(),
            evidence=Evidence(
                planned=self.config.n,
                survivors=survivors,
                colluding_assumed=self.config.A,
                protocol=self.config.protocol.name.lower(),
                transcript=self.config.digest().hex(),
                modulus=self.config.modulus,
            ),
        )
        self.settled = True

    def _phases(self) -> AggregateSum:
        server = server_of(self.numbers, self.config, self.grid_config.known_roster)
        node_of = {client: node for node, client in {**self.members, **self.deciders}.items()}
        letters = self._first_letters(str(server.phase))
        while True:
            phase = str(server.phase)
            self._exchange_phase(server, phase, letters)
            if phase == str(Phase.ADVERTISE_KEYS):
                self._shape(server)
            try:
                out = server.close_phase()
            except BelowThreshold as error:
                raise _with_complaints(error, self.record) from None
            if server.result is not None:
                return server.result
            if server.survivors.U3 is not None:
                self._settle(len(server.survivors.U3))
            letters = [
                Letter(node=node_of[item.recipient], content=self._later(server, item))
                for item in out
                if isinstance(item, Outbound) and item.recipient in node_of
            ]

    def _shape(self, server: ServerMachine) -> None:
        """Where a beacon shapes the graph: waits for its output, which nobody knew until now.

        Raises:
            BelowThreshold: if it does not come; the round is lost.
        """
        beacon = self.grid_config.known_beacon
        if beacon is None or not isinstance(server, SecAggServer):
            return
        number = beacon.round_of(self.config.graph_value)
        own = beacon.seconds_until(number) + self.grid_config.timing.deadline
        seconds = _seconds_left(own, self.until, self.exchange.clock())
        try:
            server.set_beacon(beacon.awaited(number, seconds=seconds, sleep=self.exchange.sleep))
        except ConfigurationError as error:
            raise BelowThreshold(
                f"{error} The round is lost.", needed=1, had=0, phase=str(Phase.ADVERTISE_KEYS)
            ) from None

    def _first_letters(self, phase: str) -> list[Letter]:
        config, plan = self.config.encode(), self.plan.canonical()
        model = model_digest(self.request.arrays)
        return [
            Letter(
                node=node,
                content=Envelope(
                    phase=phase,
                    attempt=self.config.digest(),
                    client=client,
                    config=config,
                    plan=plan,
                    model=model,
                    arrays=self.request.arrays if self.plan.train_in is TrainIn.FIRST else None,
                ).content(),
            )
            for node, client in sorted(self.members.items(), key=lambda one: one[1])
        ]

    def _later(self, server: ServerMachine, item: Outbound) -> RecordDict:
        phase = str(server.phase)
        if item.recipient in self.deciders.values():  # who has not heard of the session
            return Envelope(
                phase=phase,
                attempt=self.config.digest(),
                client=item.recipient,
                config=self.config.encode(),
                plan=self.plan.canonical(),
                model=model_digest(self.request.arrays),
                frame=item.frame,
            ).content()
        trains = trains_in(phase, self.plan.train_in)
        return Envelope(
            phase=phase,
            attempt=self.config.digest(),
            frame=item.frame,
            arrays=self.request.arrays if trains else None,
        ).content()

    def _exchange_phase(self, server: ServerMachine, phase: str, letters: list[Letter]) -> None:
        timing = self.grid_config.timing
        begin = self.exchange.clock()
        self.answered = 0
        self.asked_for_inputs |= phase == str(Phase.MASKED_INPUT_COLLECTION)
        # Opening under Paillier takes seconds to minutes per decider, as training does.
        computes = trains_in(phase, self.plan.train_in) or (self.deciders and opens(phase))
        own = timing.train_deadline if computes else timing.deadline
        self.exchange.run(
            letters,
            message_type=SESSION_TYPE,
            group=f"{self.record.round}.{phase}",
            deadline=_seconds_left(own, self.until, begin),
            grace=timing.grace,
            take=lambda node, reply: self._take(server, node, reply),
            progress=lambda: self._progress(server, phase),
        )
        self.record.seconds[phase] = self.exchange.clock() - begin

    def _take(self, server: ServerMachine, node: int, reply: Message) -> None:
        if _is_error(reply, self.record):
            return
        client = self.members[node] if node in self.members else self.deciders[node]
        try:
            events = server.receive(frame_of(reply.content), client)
        except (PeerProtocolError, WireError, ConfigurationError) as error:
            logger.warning("a reply of client %s is not taken: %s", client, printable(error))
            return
        for event in events:
            logger.info("%s", printable(event))
        self.answered += 1

    def _progress(self, server: ServerMachine, phase: str) -> Progress:
        if server.ready or (opens(phase) and server.sufficient):
            return Progress.COMPLETE
        quorum = self.grid_config.quorum
        enough = max(self.config.n_min, self.config.n - self.config.D if quorum is None else quorum)
        if server.sufficient and self.answered >= enough:
            return Progress.QUORUM
        return Progress.WAITING


def _seconds_left(own: float, until: float | None, now: float) -> float:
    return own if until is None else max(0.0, min(own, until - now))


def _is_error(reply: Message, record: RoundRecord) -> bool:
    """Counts an error reply; its text is not repeated, whatever it holds."""
    if not reply.has_error():
        return False
    code = code_of(reply.error.reason)
    if code is None:
        record.failures[reply.error.code] += 1
    else:
        record.refusals[code] += 1
    return True


def _unwrapped(spec: NoisySpec, *, fixed: int | None) -> int:
    """Bits in which no client's update and noise wrap: for sums of numbers and not of residues.

    Raises:
        ConfigurationError: if a fixed number of bits is too small for that.
    """
    needed = (2 * spec.reach).bit_length()
    if fixed is not None and needed > spec.bits:
        raise ConfigurationError(
            f"with Paillier the numbers themselves are added: one client's update and noise reach "
            f"{spec.reach}, which {spec.bits} bits do not hold; leave them out, or give {needed}"
        )
    return max(spec.bits, needed)


def _with_complaints(error: BelowThreshold, record: RoundRecord) -> SecureFLError:
    complaints = record.complaints()
    if not complaints:
        return error
    return BelowThreshold(
        f"{error}. {complaints}", needed=error.needed, had=error.had, phase=error.phase
    )
