"""Drives one session: real machines, in-memory network, phases closed when nobody is left to wait
for.

The driver knows the surface of machines and no protocol: it hands over frames, asks for an input
when a machine wants one, and closes phases. What happened stays readable in a
:class:`SessionRecord` also when the session ends in an error, because a client whose masked input
has left it must be charged for the round whether or not a sum was opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from securefl.errors import (
    BelowThreshold,
    ConfigurationError,
    PeerProtocolError,
    SecureFLError,
    WireError,
)
from securefl.modular import RingVector
from securefl.protocols.machine import ClientMachine, Event, Outbound, ServerMachine
from securefl.round import SERVER, AggregateSum, ClientId, SurvivorSets
from securefl.simulation.network import Envelope, InMemoryNetwork

__all__ = ["INPUT_PHASE", "Refused", "SessionRecord", "SessionResult", "run_session"]

INPUT_PHASE = "masked_input_collection"
"""The phase in which inputs leave the clients."""

Inputs: TypeAlias = Mapping[ClientId, RingVector] | Callable[[ClientId], RingVector]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A machine refused a frame.

    Attributes:
        by: whose machine; the server by its reserved id.
        phase: the server's phase.
        error: why.
    """

    by: ClientId
    phase: str
    error: SecureFLError


@dataclass(slots=True, kw_only=True)
class SessionRecord:
    """What a session did so far; filled while it runs, readable after an error.

    Attributes:
        bytes_up, bytes_down: bytes per client.
        transcript: what the server saw, in order (empty if the network keeps none).
        events: of the server's and the clients' machines, and refusals, in order.
        sent_input: clients whose MaskedInput frame left them, whether or not it arrived.
        client_seconds, server_seconds: process CPU seconds in the machines, per phase. Computing
            the inputs is not in them.
    """

    bytes_up: dict[ClientId, int] = field(default_factory=dict)
    bytes_down: dict[ClientId, int] = field(default_factory=dict)
    transcript: list[Envelope] = field(default_factory=list)
    events: list[Event | Refused] = field(default_factory=list)
    sent_input: set[ClientId] = field(default_factory=set)
    client_seconds: dict[str, float] = field(default_factory=dict)
    server_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResult:
    """A finished session: the sum, and everything of :class:`SessionRecord`."""

    aggregate: AggregateSum
    survivors: SurvivorSets
    bytes_up: dict[ClientId, int]
    bytes_down: dict[ClientId, int]
    transcript: tuple[Envelope, ...]
    events: tuple[Event | Refused, ...]
    sent_input: frozenset[ClientId]
    client_seconds: dict[str, float]
    server_seconds: dict[str, float]


def run_session(
    server: ServerMachine,
    clients: Mapping[ClientId, ClientMachine],
    inputs: Inputs,
    *,
    parties: Mapping[ClientId, ClientMachine] = MappingProxyType({}),
    network: InMemoryNetwork | None = None,
    drops: Mapping[str, Collection[ClientId]] = MappingProxyType({}),
    on_phase: Callable[[str, Sequence[Event]], None] | None = None,
    compute_for_dropped: bool = False,
    record: SessionRecord | None = None,
) -> SessionResult:
    """Runs a session from the first message to the opened sum.

    Args:
        server: a fresh machine.
        clients: fresh machines by id; cohort members that are not here are absent from the start.
        inputs: by client, or a function that makes them. It is called once per client, exactly
            when that client's machine has its shares and is about to send the masked input.
        parties: others who take part and give no input, by id: witnesses, holders of keys.
        network: what carries the frames; default: everything arrives, in order, once.
        drops: phase name -> clients and parties that vanish before they send that phase's message.
        on_phase: told after each closed phase: its name, and the events of closing it.
        compute_for_dropped: also call ``inputs`` for a client that vanishes in
            ``masked_input_collection``; its input is thrown away.
        record: filled as the session goes; give one to read bytes and ``sent_input`` after an
            error.

    Returns:
        The sum over the survivors, and what happened.

    Raises:
        ConfigurationError: for unknown phases or clients in ``drops``, machines under the wrong
            id, or a missing input. Nothing was sent then.
        BelowThreshold: too few clients were left in a phase; no sum was opened.
        InvalidShare: shares did not match; no sum was opened.
    """
    driver = _Driver(
        server=server,
        clients={**clients, **parties},
        without_input=frozenset(parties),
        inputs=inputs,
        network=network if network is not None else InMemoryNetwork(),
        drops={phase: frozenset(ids) for phase, ids in drops.items()},
        on_phase=on_phase,
        compute_for_dropped=compute_for_dropped,
        record=record if record is not None else SessionRecord(),
    )
    driver.check()
    try:
        aggregate = driver.run()
    finally:
        driver.finish_record()
        for machine in (*clients.values(), *parties.values()):
            machine.abort()  # whoever is not done forgets its secrets; nothing is sent any more
    done = driver.record
    return SessionResult(
        aggregate=aggregate,
        survivors=server.survivors,
        bytes_up=done.bytes_up,
        bytes_down=done.bytes_down,
        transcript=tuple(done.transcript),
        events=tuple(done.events),
        sent_input=frozenset(done.sent_input),
        client_seconds=done.client_seconds,
        server_seconds=done.server_seconds,
    )


class _Clock:
    """Adds the CPU seconds of a block to those of a phase; thousands of blocks in a session."""

    __slots__ = ("_begin", "_phase", "_seconds")

    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self._seconds, self._phase = seconds, phase

    def __enter__(self) -> None:
        self._begin = time.process_time()

    def __exit__(self, *_: object) -> None:
        spent = time.process_time() - self._begin
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + spent


@dataclass(kw_only=True)
class _Driver:
    server: ServerMachine
    clients: dict[ClientId, ClientMachine]
    without_input: frozenset[ClientId]
    inputs: Inputs
    network: InMemoryNetwork
    drops: dict[str, frozenset[ClientId]]
    on_phase: Callable[[str, Sequence[Event]], None] | None
    compute_for_dropped: bool
    record: SessionRecord
    gone: set[ClientId] = field(default_factory=set)
    lost_inputs: set[ClientId] = field(default_factory=set)

    def check(self) -> None:
        """Refuses what cannot run, before anything is sent."""
        known = self.server.phases
        unknown = [phase for phase in self.drops if phase not in known]
        if unknown:
            raise ConfigurationError(f"unknown phases {unknown}; this protocol has {list(known)}")
        for phase, ids in self.drops.items():
            strangers = sorted(u for u in ids if u not in self.clients)
            if strangers:
                raise ConfigurationError(f"drops[{phase!r}] names {strangers}, who take no part")
        for u, machine in self.clients.items():
            if machine.client_id != u:
                raise ConfigurationError(f"the machine under {u} belongs to {machine.client_id}")
        if isinstance(self.inputs, Mapping):
            given = self.without_input.union(self.inputs)
            missing = sorted(u for u in self.clients if u not in given)
            if missing:
                raise ConfigurationError(f"there is no input for clients {missing}")

    def run(self) -> AggregateSum:
        """Phases, one after the other."""
        self._vanish()
        for u in self._served():
            with self._clock(self.record.client_seconds):
                out = self.clients[u].start()
            self._from_client(u, out)
        while not self.server.final:
            self._hand_to_server()
            self._close_phase()
            self._vanish()
            for u in self.network.order(list(self.clients)):
                self._hand_to_client(u)
        assert self.server.result is not None  # noqa: S101  # final without an error means opened
        return self.server.result

    def finish_record(self) -> None:
        """What the network counted."""
        self.record.bytes_up = dict(self.network.bytes_up)
        self.record.bytes_down = dict(self.network.bytes_down)
        self.record.transcript = self.network.transcript

    def _vanish(self) -> None:
        self.gone |= self.drops.get(self.server.phase, frozenset())

    def _served(self) -> list[ClientId]:
        return self.network.order([u for u in self.clients if u not in self.gone])

    def _clock(self, seconds: dict[str, float]) -> _Clock:
        return _Clock(seconds, str(self.server.phase))

    def _close_phase(self) -> None:
        phase = str(self.server.phase)
        try:
            with self._clock(self.record.server_seconds):
                out = self.server.close_phase()
        except (BelowThreshold, PeerProtocolError) as error:
            # The clients still waiting are told, so that they forget their secrets.
            self._dispatch(SERVER, error.outbound)
            for u in self._served():
                self._hand_to_client(u)
            raise
        self.network.tick()
        events = self._dispatch(SERVER, out)
        if self.on_phase is not None:
            self.on_phase(phase, events)

    def _hand_to_server(self) -> None:
        for envelope in self.network.deliver(SERVER):
            try:
                with self._clock(self.record.server_seconds):
                    out = self.server.receive(envelope.frame, envelope.sender)
            except (PeerProtocolError, WireError) as error:
                self._refused(SERVER, error)
            else:
                self._dispatch(SERVER, out)

    def _hand_to_client(self, u: ClientId) -> None:
        for envelope in self.network.deliver(u):
            if u in self.gone:
                self._lose_input(u)
                continue
            machine = self.clients[u]
            try:
                with self._clock(self.record.client_seconds):
                    out = machine.receive(envelope.frame, envelope.sender)
            except (BelowThreshold, PeerProtocolError, WireError) as error:
                self._refused(u, error)
                self._from_client(u, getattr(error, "outbound", ()))
                continue
            self._from_client(u, out)
            if machine.wants_input:
                vector = self._input_of(u)
                with self._clock(self.record.client_seconds):
                    out = machine.set_input(vector)
                self._from_client(u, out)

    def _lose_input(self, u: ClientId) -> None:
        """The client that vanished with its input computed and not sent."""
        vanished_here = u in self.drops.get(INPUT_PHASE, frozenset())
        if not self.compute_for_dropped or not vanished_here or u in self.lost_inputs:
            return
        if self.server.phase == INPUT_PHASE:
            self.lost_inputs.add(u)
            self._input_of(u)

    def _input_of(self, u: ClientId) -> RingVector:
        return self.inputs[u] if isinstance(self.inputs, Mapping) else self.inputs(u)

    def _from_client(self, u: ClientId, out: Iterable[object]) -> None:
        self._dispatch(u, out)
        if self.clients[u].masked_input_emitted:
            self.record.sent_input.add(u)
        self._hand_to_server()  # at once: frames do not pile up, the server adds on arrival

    def _dispatch(self, sender: ClientId, out: Iterable[object]) -> list[Event]:
        events: list[Event] = []
        for item in out:
            if isinstance(item, Outbound):
                self.network.send(sender, item.recipient, item.frame, phase=str(self.server.phase))
            else:
                events.append(item)  # type: ignore[arg-type]  # machines emit frames and events only
        self.record.events += events
        return events

    def _refused(self, by: ClientId, error: SecureFLError) -> None:
        # Without its traceback, whose frames hold the machine and what it was given.
        error.__context__ = None
        kept = error.with_traceback(None)
        self.record.events.append(Refused(by=by, phase=str(self.server.phase), error=kept))
