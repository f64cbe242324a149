"""Changed frames by the thousand: every type, in every phase, against every machine and decoder.

Two ways. *Trials*: before a machine gets its genuine frame it is fed with mutants. What it refuses
must have left no trace, for the machine goes on as it is; what changes it is undone by restoring it
from a snapshot. At the end the session must open the exact sum of everybody. *In earnest*: mutants
take the place of genuine frames, and the world checks what is left of the session. `make long`
feeds 500,000.
"""

from __future__ import annotations

import contextlib
import random
import resource
import tracemalloc
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from securefl.errors import SecureFLError, WireError
from securefl.protocols.machine import Outbound, Reason
from securefl.protocols.secagg.messages import (
    Abort,
    AdvertiseKeys,
    EncryptedShares,
    KeyRoster,
    NeighbourRoster,
    ShareDelivery,
    SignedUnmaskRequest,
    SurvivorNotice,
    SurvivorSignature,
    UnmaskRequest,
    UnmaskShares,
)
from securefl.protocols.secagg.transitions import MessageType, Phase
from securefl.protocols.snapshot import SECRETS
from securefl.round import SERVER, ClientId, Layout, RoundConfig
from securefl.wire import Frame, decode_frame, encode_frame

KEY = bytes(32)
FINAL = ("done", "aborted")


class Fuzzer:
    """Feeds mutants and counts them.

    Attributes:
        seen: how often which (what, which) was met.
    """

    def __init__(self, universe: Any, seed: int) -> None:
        self.universe = universe
        self.chance = random.Random(seed)
        self.seen: Counter[tuple[str, str]] = Counter()

    @property
    def frames(self) -> int:
        return sum(count for (what, _), count in self.seen.items() if what == "mutant of")

    def world(self) -> Any:
        sizes = [(n, a, s) for n in (3, 4, 5, 6) for a in (False, True) for s in (False, True)]
        found = self.universe.variants()
        choices = found[self.chance.choice([size for size in sizes if size in found])]
        m, b = self.chance.choice([0, 1, 3, 7]), self.chance.randint(1, 64)
        world = self.universe.World(self.chance.choice(choices), m, b, self.chance.randrange(2**32))
        for u in world.cohort:
            world.start(u)
        return world

    def mutant(self, world: Any, frame: bytes) -> bytes:
        """A mutant of this frame, of any frame of the session, or of an Abort."""
        where = self.chance.random()
        if where > 0.6:
            frame = self.chance.choice(world.history).frame
        if where > 0.9:
            frame = abort_frame(world, self.chance)
        changed = world.mutated(frame, self.chance)
        self.seen["mutant of", MessageType(decode_frame(frame).type).name] += 1
        return bytes(changed)

    # -- trials ---------------------------------------------------------------------------------

    def trial_session(self, per_delivery: int) -> None:
        world = self.world()
        while not world.server.final:
            while world.flying:
                message = world.flying.pop(self.chance.randrange(len(world.flying)))
                self.try_out(world, message.recipient, message.frame, per_delivery)
                world.deliver(message)
            self.try_out(world, SERVER, world.history[-1].frame, per_delivery)
            world.close()
        for who in [SERVER, *world.cohort]:
            self.try_out(world, who, world.history[-1].frame, per_delivery)
        assert world.opened
        assert not world.spoiled
        assert world.server.result.survivors == world.cohort.ids
        self.seen["session", "exact sum"] += 1
        self.try_out_aborted(world, per_delivery)

    def try_out(self, world: Any, who: ClientId, frame: bytes, count: int) -> None:
        blob = world.machine(who).snapshot(KEY, SECRETS)
        number = world.machine(who)._sequence + 1

        def restored() -> Any:
            machine = world.fresh(who)
            machine.restore(KEY, blob, sequence=number)
            return machine

        machine = restored()
        for _ in range(count):
            if self.feed(world, machine, who, self.mutant(world, frame)):
                machine = restored()
        world.replace(who, machine)

    def try_out_aborted(self, world: Any, count: int) -> None:
        """Machines that gave up in the middle of the session."""
        u = self.chance.choice(world.cohort.ids)
        for who in (u, SERVER):
            machine = world.fresh(who)
            if who == SERVER:
                with pytest.raises(SecureFLError):
                    machine.close_phase()
            else:
                machine.start()
                machine.abort()
            for _ in range(count):
                assert not self.feed(
                    world, machine, who, self.mutant(world, world.history[-1].frame)
                )

    def feed(self, world: Any, machine: Any, who: ClientId, frame: bytes) -> bool:
        """One mutant; whether the machine is another afterwards."""
        role = "server" if who == SERVER else "client"
        before = self.universe.state(machine, who)
        self.seen[f"{role} in", str(machine.phase)] += 1
        error: SecureFLError | None = None
        out: list[Any] = []
        try:
            out = machine.receive(frame)
        except SecureFLError as caught:  # anything else ends the test
            error = caught
            out = list(getattr(caught, "outbound", ()))
        self.seen[f"{role} says", type(error).__name__ if error else "accepted"] += 1
        after = self.universe.state(machine, who)
        if before[0] in FINAL:
            assert after == before
            assert not any(isinstance(item, Outbound) for item in out)
        if self.universe.leaves_no_trace(error):
            assert after == before, "a refused frame left a trace"
        return bool(after != before)

    # -- in earnest -----------------------------------------------------------------------------

    def earnest_session(self, rate: float) -> None:
        world = self.world()
        while not world.server.final:
            while world.flying:
                message = world.flying.pop(self.chance.randrange(len(world.flying)))
                if self.chance.random() < rate:
                    mutant = self.mutant(world, message.frame)
                    message = replace(message, frame=mutant)  # its history stays as it was
                world.deliver(message)
            world.close()
        end = "nothing opened"
        if world.opened:
            end = "another input or U2" if world.spoiled else "exact sum in spite of mutants"
        self.seen["session", end] += 1


def abort_frame(world: Any, chance: random.Random) -> bytes:
    return encode_frame(
        Frame(
            protocol=world.config.protocol,
            type=MessageType.ABORT,
            sender=chance.choice([SERVER, *world.cohort]),
            round_id=world.config.round_id,
            session=world.config.digest(),
            body=Abort(reason=chance.choice(list(Reason))).encode(),
        )
    )


def campaign(universe: Any, frames: int, *, seed: int, per_delivery: int) -> Fuzzer:
    """At least this many mutated frames, and a check that they went everywhere."""
    fuzzer = Fuzzer(universe, seed)
    while fuzzer.frames < frames:
        fuzzer.trial_session(per_delivery)
        for _ in range(4):
            fuzzer.earnest_session(fuzzer.chance.choice([0.02, 0.05, 0.2]))
    seen = fuzzer.seen
    assert {name for what, name in seen if what == "mutant of"} == {
        kind.name for kind in MessageType
    }
    phases = {str(phase) for phase in Phase} - {"exported"}
    assert {name for what, name in seen if what == "server in"} == phases
    assert {name for what, name in seen if what == "client in"} == phases - {"advertise_keys"}
    return fuzzer


def test_no_changed_frame_leads_to_a_wrong_sum_or_a_foreign_error(universe: Any) -> None:
    seen = campaign(universe, 8_000, seed=3, per_delivery=16).seen
    said = {name for what, name in seen if what == "client says"}
    assert said >= {
        "accepted", "WireError", "UnexpectedMessage", "MalformedMessage", "RosterMismatch",
        "Equivocation", "InvalidSignature",
    }, said  # fmt: skip
    assert seen["server says", "InvalidSignature"]
    assert seen["server says", "accepted"]


@pytest.mark.long
def test_no_changed_frame_of_half_a_million_leads_to_a_wrong_sum(universe: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fuzzer = campaign(universe, 500_000, seed=20, per_delivery=40)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(fuzzer.frames, dict(fuzzer.seen), f"{grown} KiB more at the peak")
    assert fuzzer.frames >= 500_000
    assert grown < 200 * 1024
    assert fuzzer.seen["session", "exact sum in spite of mutants"] > 20


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_no_announced_number_makes_a_machine_allocate(
    universe: Any, active: bool, sparse: bool
) -> None:
    """Every frame of a session with each of its first numbers turned into a huge one."""
    world = universe.World(universe.variants()[6, active, sparse][0], 7, 20, 5)
    for u in world.cohort:
        world.start(u)
    worst = 0
    tracemalloc.start()
    try:
        while not world.server.final:
            while world.flying:
                message = world.flying.pop(0)
                for place in (56, 60, 64, 92, 96):
                    raw = bytearray(message.frame)
                    raw[place : place + 4] = b"\xff\xff\xff\x7f"[: max(0, len(raw) - place)]
                    blob = world.machine(message.recipient).snapshot(KEY, SECRETS)
                    machine = world.fresh(message.recipient)
                    number = world.machine(message.recipient)._sequence + 1
                    machine.restore(KEY, blob, sequence=number)
                    tracemalloc.reset_peak()
                    start, _ = tracemalloc.get_traced_memory()
                    with contextlib.suppress(SecureFLError):
                        machine.receive(bytes(raw))
                    worst = max(worst, tracemalloc.get_traced_memory()[1] - start)
                    again = world.fresh(message.recipient)
                    again.restore(KEY, blob, sequence=number)
                    world.replace(message.recipient, again)
                world.deliver(message)
            world.close()
    finally:
        tracemalloc.stop()
    assert world.opened
    assert worst < 1 << 20


# -- decoders alone -------------------------------------------------------------------------------


def bodies(world: Any) -> dict[MessageType, list[bytes]]:
    found: dict[MessageType, list[bytes]] = {}
    for message in world.history:
        parsed = decode_frame(message.frame)
        found.setdefault(MessageType(parsed.type), []).append(bytes(parsed.body))
    return found


def again(kind: MessageType, body: bytes, world: Any) -> bytes:
    """Decoded and encoded."""
    config, peers = world.config, world.params.k
    signed = world.active
    if kind is MessageType.ADVERTISE_KEYS:
        return AdvertiseKeys.decode(body).encode()
    if kind is MessageType.KEY_ROSTER:
        roster: Any = KeyRoster if config.k == config.n - 1 else NeighbourRoster
        return bytes(roster.decode(body, most=config.n, signed=signed).encode())
    if kind is MessageType.ENCRYPTED_SHARES:
        rows = EncryptedShares.decode(body, peers=peers)
        return EncryptedShares(ciphertexts=tuple(row.tobytes() for row in rows)).encode()
    if kind is MessageType.SHARE_DELIVERY:
        return ShareDelivery.decode(body, peers=peers).encode()
    if kind is MessageType.SURVIVOR_NOTICE:
        return SurvivorNotice.decode(body, n=config.n).encode()
    if kind is MessageType.SURVIVOR_SIGNATURE:
        return SurvivorSignature.decode(body).encode()
    if kind is MessageType.UNMASK_REQUEST:
        if signed:
            return SignedUnmaskRequest.decode(body, most=peers).encode()
        return UnmaskRequest.decode(body, peers=peers).encode()
    if kind is MessageType.UNMASK_SHARES:
        alive = np.ones(peers, dtype=np.bool_)
        own = world.params.layout is Layout.ALL
        return UnmaskShares.decode(body, alive=alive, own=own).encode(alive=alive)
    assert kind is MessageType.ABORT
    return Abort.decode(body).encode()


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_what_a_decoder_takes_is_what_the_encoder_writes(
    universe: Any, active: bool, sparse: bool
) -> None:
    """One encoding per message: a changed body is refused, or means exactly what it says."""
    chance = random.Random(active + 2 * sparse)
    n = 6
    params = [p for p in universe.variants()[n, active, sparse] if p.n_min <= n]
    kinds: Counter[str] = Counter()
    for layout in Layout:
        fitting = [p for p in params if p.layout is layout]
        if not fitting:
            continue
        world = universe.World(fitting[0], 3, 13, 9)
        for u in world.cohort:
            world.start(u)
        while not world.server.final:
            world.deliver_all()
            world.close()
        found = bodies(world)
        found[MessageType.ABORT] = [Abort(reason=Reason.LATE).encode()]
        for kind, genuine in found.items():
            if kind is MessageType.MASKED_INPUT:
                continue  # any bytes of the right length but padding: see test_wire.py
            assert again(kind, genuine[0], world) == genuine[0]
            for _ in range(150):
                frame = encode_frame(
                    Frame(
                        protocol=world.config.protocol,
                        type=kind,
                        sender=SERVER,
                        round_id=world.config.round_id,
                        session=bytes(32),
                        body=chance.choice(genuine),
                    )
                )
                mutant = chance.choice(universe.mutations)(
                    bytearray(frame), chance.choice(world.history).frame, chance
                )
                body = bytes(mutant[60:])
                try:
                    assert again(kind, body, world) == body
                    kinds["taken"] += 1
                except WireError:
                    kinds["refused"] += 1
    assert min(kinds["taken"], kinds["refused"]) > 100


def test_a_changed_frame_or_configuration_decodes_to_what_it_says_or_not_at_all(
    universe: Any,
) -> None:
    chance = random.Random(4)
    world = universe.World(universe.variants()[5, False, False][0], 3, 13, 9)
    for u in world.cohort:
        world.start(u)
    config = world.config.encode()
    outcomes: Counter[str] = Counter()
    for _ in range(3000):
        frame = chance.choice(world.history).frame
        mutant = chance.choice(universe.mutations)(bytearray(frame), frame, chance)
        changed = bytearray(config)
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        changed = changed[: len(changed) - chance.choice([0, 0, 1, 4])]
        cases: list[tuple[str, Any, Any, bytes | bytearray]] = [
            ("frame", decode_frame, encode_frame, mutant),
            ("config", RoundConfig.decode, RoundConfig.encode, bytes(changed)),
        ]
        for name, decode, encode, raw in cases:
            try:
                assert encode(decode(raw)) == raw
                outcomes[f"{name} taken"] += 1
            except SecureFLError:
                outcomes[f"{name} refused"] += 1
    assert len(outcomes) == 4
    assert min(outcomes.values()) > 100
