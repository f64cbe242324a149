"""Drives one session among peers: real machines, in-memory network, no server anywhere.

All peers go through the phases together: in each one they send, everything arrives, and then each
of them closes the phase by itself. A peer that has not seen enough waits for what the others send
on closing, and tries again; one that still has not is out. The driver knows the surface of machines
and no protocol; below it stand the machines of peersum for those who run all of them at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from securefl.errors import (
    BelowThreshold,
    ConfigurationError,
    InvalidShare,
    PeerProtocolError,
    SecureFLError,
    WireError,
)
from securefl.modular import RingVector
from securefl.primitives.signing import IdentityKey
from securefl.protocols.machine import Event, Outbound, PeerMachine
from securefl.protocols.peersum.params import PeerSumParams, least_quorum, most_corrupt
from securefl.protocols.peersum.parties import make_peers
from securefl.protocols.peersum.peer import PeerSumPeer
from securefl.protocols.policy import ClientPolicy
from securefl.round import AggregateSum, ClientId, Cohort, RoundConfig, RoundId
from securefl.simulation.network import InMemoryNetwork
from securefl.simulation.session import Refused, SessionRecord, SessionResult

__all__ = ["PeersResult", "fresh_peers", "run_peers", "strongest"]

Inputs: TypeAlias = Mapping[ClientId, RingVector] | Callable[[ClientId], RingVector]
_Failure: TypeAlias = BelowThreshold | PeerProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersResult(SessionResult):
    """A finished session among peers.

    Attributes:
        aggregates: what every peer that came to the end opened; all vectors are equal.
        failures: why the others did not, by peer. Peers that vanished are in neither.
        events_of: the events of each peer's machine, in order.
    """

    aggregates: dict[ClientId, AggregateSum]
    failures: dict[ClientId, _Failure]
    events_of: dict[ClientId, tuple[Event, ...]]


def run_peers(
    peers: Mapping[ClientId, PeerMachine],
    inputs: Inputs,
    *,
    network: InMemoryNetwork | None = None,
    drops: Mapping[str, Collection[ClientId]] = MappingProxyType({}),
    may_open: Callable[[int], None] = lambda survivors: None,
    record: SessionRecord | None = None,
) -> PeersResult:
    """Runs a session from the first message to the opened sums.

    Args:
        peers: fresh machines by id; cohort members that are not here are absent from the start.
        inputs: by peer, or a function that makes them. It is called once per peer, exactly when
            that peer's machine is about to share its input.
        network: what carries the frames; default: everything arrives, in order, once.
        drops: phase name -> peers that vanish before they send that phase's message.
        may_open: called with the number of survivors once a peer knows them and before anything
            that opens their sum is handed over; it raises to leave the sum unopened.
        record: filled as the session goes; give one to read bytes and ``sent_input`` after an
            error.

    Returns:
        The sum over the survivors, which every peer that came to the end has, and what happened.

    Raises:
        ConfigurationError: for unknown phases or peers in ``drops``, machines under the wrong id,
            or a missing input. Nothing was sent then.
        BelowThreshold: no peer came to the end; no sum was opened.
        InvalidShare: shares did not match and no peer came to the end; or peers opened different
            sums, as lying dealers can bring about.
    """
    driver = _Driver(
        peers=peers,
        inputs=inputs,
        network=network if network is not None else InMemoryNetwork(),
        drops={phase: frozenset(ids) for phase, ids in drops.items()},
        may_open=may_open,
        record=record if record is not None else SessionRecord(),
    )
    driver.check()
    try:
        driver.run()
    finally:
        driver.finish_record()
        for machine in peers.values():
            machine.abort()  # whoever is not done forgets its secrets; nothing is sent any more
    return driver.result()


@dataclass(kw_only=True)
class _Driver:
    peers: Mapping[ClientId, PeerMachine]
    inputs: Inputs
    network: InMemoryNetwork
    drops: dict[str, frozenset[ClientId]]
    may_open: Callable[[int], None]
    record: SessionRecord
    phase: str = ""
    gone: set[ClientId] = field(default_factory=set)
    failures: dict[ClientId, _Failure] = field(default_factory=dict)
    events_of: dict[ClientId, list[Event]] = field(default_factory=dict)

    @property
    def phases(self) -> tuple[str, ...]:
        """Those of the protocol."""
        return next(iter(self.peers.values())).phases

    def check(self) -> None:
        """Refuses what cannot run, before anything is sent."""
        if not self.peers:
            raise ConfigurationError("a session needs peers, found none")
        unknown = [phase for phase in self.drops if phase not in self.phases]
        if unknown:
            raise ConfigurationError(
                f"unknown phases {unknown}; this protocol has {list(self.phases)}"
            )
        for phase, ids in self.drops.items():
            strangers = sorted(u for u in ids if u not in self.peers)
            if strangers:
                raise ConfigurationError(f"drops[{phase!r}] names {strangers}, who take no part")
        for u, machine in self.peers.items():
            if machine.client_id != u:
                raise ConfigurationError(f"the machine under {u} belongs to {machine.client_id}")
        if isinstance(self.inputs, Mapping):
            missing = sorted(u for u in self.peers if u not in self.inputs)
            if missing:
                raise ConfigurationError(f"there is no input for peers {missing}")

    def run(self) -> None:
        """Phases, one after the other: enter, deliver; at the end the last one is closed."""
        for place, phase in enumerate(self.phases):
            self.phase = phase
            self.gone |= self.drops.get(phase, frozenset())
            if place == 0:
                for u in self._served():
                    self._step(u, self.peers[u].start)
            else:
                self._close()
            self._deliver()
            self.network.tick()
        self._deliver()
        self._close()

    def result(self) -> PeersResult:
        """What the peers opened, if any did."""
        opened = {u: sum_ for u, p in sorted(self.peers.items()) if (sum_ := p.result) is not None}
        if not opened:
            if self.failures:
                raise self.failures[min(self.failures)]
            raise BelowThreshold(needed=1, had=0, phase=self.phase)  # everybody vanished
        first = opened[min(opened)]
        other = [u for u, aggregate in opened.items() if aggregate.vector != first.vector]
        if other:
            raise InvalidShare(
                f"peers {other[:5]} opened another sum than peer {min(opened)}: shares of some "
                "dealer lie on no polynomial; use none of them and run a new session",
                culprits=(),
            )
        done = self.record
        return PeersResult(
            aggregate=first,
            survivors=self.peers[min(opened)].survivors,
            bytes_up=done.bytes_up,
            bytes_down=done.bytes_down,
            transcript=tuple(done.transcript),
            events=tuple(done.events),
            sent_input=frozenset(done.sent_input),
            client_seconds=done.client_seconds,
            server_seconds={},
            aggregates=opened,
            failures=self.failures,
            events_of={u: tuple(events) for u, events in self.events_of.items()},
        )

    def finish_record(self) -> None:
        """What the network counted."""
        self.record.bytes_up = dict(self.network.bytes_up)
        self.record.bytes_down = dict(self.network.bytes_down)
        self.record.transcript = self.network.transcript

    def _served(self) -> list[ClientId]:
        return [u for u in self.network.order(list(self.peers)) if u not in self.gone]

    def _close(self) -> None:
        """Closes everybody's phase; who has too little first waits for the frames of the others."""
        open_ = [u for u in self._served() if not self.peers[u].final]
        first = [u for u in open_ if self.peers[u].sufficient]
        for u in first:
            self._step(u, self.peers[u].close_phase)
        if len(first) < len(open_):
            self._deliver()
        for u in open_:
            if u not in first:
                self._step(u, self.peers[u].close_phase)

    def _step(self, u: ClientId, call: Callable[[], Iterable[object]]) -> None:
        """A call that moves a peer on; one that fails is out, and the others are told."""
        machine = self.peers[u]
        try:
            with self._clock():
                out = call()
        except (BelowThreshold, PeerProtocolError) as error:
            error.__context__ = None
            self.failures[u] = error.with_traceback(None)
            self._dispatch(u, error.outbound)
            return
        if machine.survivors.U3 is not None and machine.result is None:
            self.may_open(len(machine.survivors.U3))
        self._dispatch(u, out)
        if machine.wants_input:
            vector = self.inputs[u] if isinstance(self.inputs, Mapping) else self.inputs(u)
            with self._clock():
                out = machine.set_input(vector)
            self._dispatch(u, out)
        if machine.masked_input_emitted:
            self.record.sent_input.add(u)

    def _deliver(self) -> None:
        """Hands over all that has arrived, until nothing is on its way."""
        busy = True
        while busy:
            busy = False
            for u in self.network.order(list(self.peers)):
                for envelope in self.network.deliver(u):
                    busy = True
                    if u not in self.gone:
                        self._hand_over(u, envelope.frame, envelope.sender)

    def _hand_over(self, u: ClientId, frame: bytes, sender: ClientId) -> None:
        try:
            with self._clock():
                out = self.peers[u].receive(frame, sender)
        except (PeerProtocolError, WireError) as error:
            self._refused(u, error)
        else:
            self._dispatch(u, out)

    @contextmanager
    def _clock(self) -> Iterator[None]:
        begin = time.process_time()
        try:
            yield
        finally:
            spent = time.process_time() - begin
            seconds = self.record.client_seconds
            seconds[self.phase] = seconds.get(self.phase, 0.0) + spent

    def _dispatch(self, u: ClientId, out: Iterable[object]) -> None:
        for item in out:
            if isinstance(item, Outbound):
                self.network.send(u, item.recipient, item.frame, phase=self.phase)
            else:
                self.record.events.append(item)  # type: ignore[arg-type]  # frames and events only
                self.events_of.setdefault(u, []).append(item)  # type: ignore[arg-type]  # likewise

    def _refused(self, by: ClientId, error: SecureFLError) -> None:
        # Without its traceback, whose frames hold the machine and what it was given.
        error.__context__ = None
        kept = error.with_traceback(None)
        self.record.events.append(Refused(by=by, phase=self.phase, error=kept))


def strongest(n: int, alive: int) -> PeerSumParams:
    """The parameters that this many alive can open, against as many corrupt peers as they bear.

    Raises:
        ConfigurationError: if so few bear none.
    """
    least = least_quorum(n, 1)
    if alive < least:
        raise ConfigurationError(
            f"threshold must be an integer in {least}..{n} among {n} peers of whom one may lie, "
            f"found {alive}: fewer could sign two survivor lists"
        )
    return PeerSumParams.of(n, corrupt=most_corrupt(n, alive), dropped=n - alive)


def fresh_peers(
    params: PeerSumParams, cohort: Cohort, *, m: int, context_digest: bytes, policy: ClientPolicy
) -> tuple[RoundConfig, dict[ClientId, PeerSumPeer]]:
    """A configuration and all machines of one session, with fresh identities."""
    config = params.config(
        round_id=RoundId(0),
        cohort=cohort,
        m=m,
        context_digest=context_digest,
        nonce=os.urandom(32),
    )
    peers = make_peers(
        config,
        cohort.ids,
        context_digest=context_digest,
        policy=policy,
        identities={u: IdentityKey(os.urandom(32)) for u in cohort},
    )
    return config, peers
