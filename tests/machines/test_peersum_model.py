"""Any schedule, any lie of one peer: what no session among peers may ever do.

A state machine plays scheduler, wire and one lying peer against the real machines: frames are lost,
held back, repeated, changed and misdelivered, peers crash and close phases at any moment, and the
liar signs whatever reports and lists it likes. After every step: nobody says two different things
of one kind to one peer, nobody signs two lists, nobody reveals without q genuine signatures on the
list it reveals for, all sums that were opened are over one list, and each is the plain sum. The
model runs a short time by default and 20,000 examples in `make long`.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from securefl.errors import BelowThreshold, PeerProtocolError, SecureFLError
from securefl.protocols.machine import Outbound
from securefl.protocols.peersum.messages import Confirm, Report, RevealSum
from securefl.protocols.peersum.params import least_quorum
from securefl.protocols.peersum.transitions import MessageType
from securefl.round import ClientId
from securefl.wire import decode_frame, pack_bitmap

_PATH = Path(__file__).parents[1] / "protocols" / "peersum" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("securefl_peersum_model_bench", _PATH)
assert _SPEC is not None and _SPEC.loader is not None
_BENCH = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = _BENCH
_SPEC.loader.exec_module(_BENCH)

SEEN: Counter[str] = Counter()
chances = st.integers(0, 2**32 - 1).map(random.Random)


class Session(RuleBasedStateMachine):
    """One session of 4 to 6 peers, the last of whom lies."""

    @initialize(n=st.integers(5, 7), chance=chances)
    def begin(self, n: int, chance: random.Random) -> None:
        """Mostly with room for faults, so that many sessions survive them."""
        least = least_quorum(n, 1)
        q = least if chance.random() < 0.7 else chance.randint(least, n)
        t = chance.randint(2, q)
        n_min = 3 if chance.random() < 0.7 else chance.randint(3, q)
        self.bench = _BENCH.make(n, A=1, D=n - q, q=q, t=t, n_min=n_min, m=2)
        self.ids = list(self.bench.peers)
        self.liar = self.ids[-1]
        self.said: dict[tuple[ClientId, ClientId, MessageType], bytes] = {}
        self.signed: dict[ClientId, bytes] = {}
        self.faults = 0
        SEEN["examples"] += 1

    # -- what happens ---------------------------------------------------------------------------

    @property
    def wire(self) -> list[tuple[ClientId, ClientId, bytes]]:
        return self.bench.wire

    def take(self, u: ClientId, call: Any) -> None:
        """A call to a machine; what it sends goes on the wire and is looked at."""
        peer = self.bench.peers[u]
        final = peer.final
        try:
            out = call()
        except (BelowThreshold, PeerProtocolError) as error:
            out = getattr(error, "outbound", ())
        except SecureFLError:
            out = ()
        frames = [item for item in out if isinstance(item, Outbound)]
        assert not (final and frames), "a finished machine sent something"
        for item in frames:
            self.look(u, item.recipient, item.frame)
            self.bench.sent[u, item.recipient, _BENCH.kind_of(item.frame)] = item.frame
            self.wire.append((u, item.recipient, item.frame))

    def look(self, u: ClientId, v: ClientId, frame: bytes) -> None:
        kind, body = _BENCH.kind_of(frame), bytes(decode_frame(frame).body)
        assert (u, v, kind) not in self.said, f"{u} told {v} a second {kind.name}"
        self.said[u, v, kind] = body
        n, config = len(self.ids), self.bench.config
        if kind is MessageType.CONFIRM:
            confirm = Confirm.decode(body, n=n)
            assert int(confirm.alive.sum()) >= config.n_min
            list_ = pack_bitmap(confirm.alive)
            assert self.signed.setdefault(u, list_) == list_, "it signed two lists"
        if kind is MessageType.REVEAL_SUM:
            reveal = RevealSum.decode(body, n=n, m=config.m)
            statement = self.bench.peers[u]._ballots.statement(reveal.alive)
            signers = [w for w, there in zip(self.ids, reveal.signers, strict=True) if there]
            for w, signature in zip(signers, reveal.signatures, strict=True):
                self.bench.directory.verify(w, signature, statement)
            assert len(signers) >= config.k, "it revealed without a quorum"

    def hand_over(self, entry: tuple[ClientId, ClientId, bytes], v: ClientId | None = None) -> None:
        _, recipient, frame = entry
        to = recipient if v is None else v
        if to not in self.bench.gone:
            self.take(to, lambda: self.bench.peers[to].receive(frame))

    @rule(chance=chances)
    def start(self, chance: random.Random) -> None:
        for u in chance.sample(self.ids, len(self.ids)):
            if self.bench.peers[u]._phase is None and u not in self.bench.gone:
                self.take(u, self.bench.peers[u].start)
                peer = self.bench.peers[u]
                if chance.random() < 0.7 and not peer._input_given:
                    self.take(u, lambda peer=peer, u=u: peer.set_input(self.bench.vectors[u]))

    @rule(chance=chances)
    def deliver(self, chance: random.Random) -> None:
        """Everything, or a part of it, in any order."""
        share = chance.choice([1.0, 1.0, 0.6])
        chance.shuffle(self.wire)
        here = [entry for entry in self.wire if chance.random() < share]
        self.bench.wire = [entry for entry in self.wire if entry not in here]
        for entry in here:
            self.hand_over(entry)

    @rule(chance=chances)
    def proceed(self, chance: random.Random) -> None:
        """A phase as it should be, but for one thing: all arrives, and everybody closes."""
        self.start(chance)
        if chance.random() < 0.5:
            self.fault(chance)
        while self.wire:
            self.hand_over(self.wire.pop(chance.randrange(len(self.wire))))
        self.close(chance)

    @rule(chance=chances)
    def fault(self, chance: random.Random) -> None:
        if not self.wire:
            return
        fault = chance.choice(["lose", "repeat", "change", "misdeliver"])
        place = chance.randrange(len(self.wire))
        entry = self.wire[place]
        SEEN[fault] += 1
        self.faults += 1
        if fault == "lose":
            self.wire.pop(place)
        elif fault == "repeat":
            self.hand_over(entry)
        elif fault == "misdeliver":
            self.hand_over(entry, chance.choice(self.ids))
        else:
            changed = bytearray(entry[2])
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            self.hand_over((entry[0], entry[1], bytes(changed)))

    @rule(chance=chances)
    def close(self, chance: random.Random) -> None:
        """One peer, or all that can."""
        live = [u for u in self.bench.live() if self.bench.peers[u]._phase is not None]
        if live and chance.random() < 0.2:
            live = [chance.choice(live)]
        for u in live:
            peer = self.bench.peers[u]
            if peer.sufficient or chance.random() < 0.05:
                self.take(u, peer.close_phase)
            if peer.wants_input:
                self.take(u, lambda peer=peer, u=u: peer.set_input(self.bench.vectors[u]))

    @rule(chance=chances)
    def crash(self, chance: random.Random) -> None:
        if chance.random() < 0.2:
            u = chance.choice(self.ids)
            if chance.random() < 0.5:
                self.take(u, self.bench.peers[u].abort)
            self.bench.gone.add(u)
            SEEN["crash"] += 1

    @rule(chance=chances)
    def lie(self, chance: random.Random) -> None:
        """A report or a vote of the liar's own making, to one peer or to all."""
        if (self.liar, self.ids[0], MessageType.ADVERTISE_KEYS) not in self.bench.sent:
            return
        flags = np.array([chance.random() < 0.8 for _ in self.ids])
        honest = [u for u in self.ids if u != self.liar]
        for v in honest if chance.random() < 0.2 else [chance.choice(honest)]:
            if chance.random() < 0.5:
                kind, body = MessageType.REPORT, Report(dealers=flags).encode()
            else:
                statement = self.bench.peers[v]._ballots.statement(flags)
                if statement is None:
                    continue
                signature = self.bench.identities[self.liar].sign(statement)
                kind = MessageType.CONFIRM
                body = Confirm(alive=flags, signature=signature).encode()
            self.wire.append((self.liar, v, self.bench.forged(self.liar, v, kind, body)))
            SEEN["lie"] += 1
            self.faults += 1

    # -- what must hold -------------------------------------------------------------------------

    @invariant()
    def one_list_and_the_plain_sum(self) -> None:
        if not hasattr(self, "bench"):
            return
        results = [(u, p.result) for u, p in self.bench.peers.items() if p.result is not None]
        assert len({result.survivors for _, result in results}) <= 1
        for _, result in results:
            members = result.survivors
            assert result.vector.values.tolist() == self.bench.plain_sum(members)
            assert len(members) >= self.bench.config.n_min
            assert result.min_honest == len(members) - 1
        for peer in self.bench.peers.values():
            assert (peer._secrets is None) is peer.final

    def teardown(self) -> None:
        """To the end, whatever is left."""
        if not hasattr(self, "bench"):
            return
        for _ in range(7):
            for u in self.bench.live():
                if self.bench.peers[u]._phase is None:
                    self.take(u, self.bench.peers[u].start)
            while self.wire:
                self.hand_over(self.wire.pop(0))
            for u in self.bench.live():
                peer = self.bench.peers[u]
                self.take(u, peer.close_phase)
                if peer.wants_input:
                    self.take(u, lambda peer=peer, u=u: peer.set_input(self.bench.vectors[u]))
        self.one_list_and_the_plain_sum()
        opened = [p.result for p in self.bench.peers.values() if p.result is not None]
        SEEN["opened"] += bool(opened)
        SEEN["opened after a fault"] += bool(opened) and bool(self.faults)
        SEEN["nothing opened"] += not opened
        SEEN["opened by some only"] += 0 < len(opened) < len(self.ids) - len(self.bench.gone)
        assert all(self.bench.peers[u].final for u in self.ids if u not in self.bench.gone)


def play(**how: Any) -> Counter[str]:
    SEEN.clear()
    run_state_machine_as_test(Session, settings=settings(deadline=None, **how))
    return Counter(SEEN)


def test_no_short_schedule_breaks_a_session_among_peers() -> None:
    seen = play(max_examples=150, stateful_step_count=14, derandomize=True)
    assert seen["examples"] >= 150
    for what in ("lose", "repeat", "change", "misdeliver", "crash", "lie"):
        assert seen[what] > 10, seen
    assert seen["opened after a fault"] > 10, seen
    assert seen["nothing opened"] > 10, seen


@pytest.mark.long
def test_no_schedule_of_twenty_thousand_breaks_a_session_among_peers() -> None:
    seen = play(max_examples=20_000, stateful_step_count=24)
    print(dict(seen))
    assert seen["examples"] >= 20_000
    assert seen["opened after a fault"] > 1000, seen
    assert seen["nothing opened"] > 500, seen
    assert seen["opened by some only"] > 10, seen
