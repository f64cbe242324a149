"""Any schedule, any lie: what no session of secure aggregation may ever do.

Hypothesis plays scheduler, wire and server against real machines (the world in ``conftest.py``
checks every call). The same model runs a short time by default and 20,000 examples in `make long`;
both assert how many really ran and that sessions come to all kinds of ends.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from securefl.round import SERVER

SEEDS = st.integers(0, 2**16 - 1)
INDEX = st.integers(0, 2**10)
SELDOM = st.sampled_from([True, False, False, False, False, False])


def model(universe: Any, seen: Counter[str], pairs: set[tuple[str, str, str]]) -> Any:
    """The state machine; what happened is counted in ``seen``."""

    class Session(RuleBasedStateMachine):
        world: Any = None

        @initialize(
            n=st.sampled_from([3, 4, 4, 5, 5, 6, 6, 7, 8, 9, 10, 11, 12]),
            active=st.booleans(),
            sparse=st.booleans(),
            which=INDEX,
            m=st.sampled_from([0, 1, 3, 7]),
            b=st.integers(1, 64),
            seed=SEEDS,
            absent=st.sampled_from([0, 0, 1, 2]),
            quiet=st.integers(0, 4),
        )
        def begin(
            self, n: int, active: bool, sparse: bool, which: int, m: int, b: int, seed: int,
            absent: int, quiet: int,
        ) -> None:  # fmt: skip
            """Some phases pass in quiet, so that trouble begins everywhere."""
            choices = universe.variants()
            found = choices.get((n, active, sparse)) or choices[n, active, False]
            self.world = universe.World(found[which % len(found)], m, b, seed)
            self.ids = list(self.world.cohort)
            self.late: list[Any] = []
            for u in self.ids[absent:]:
                self.world.start(u)
            for _ in range(quiet):
                self.next_phase(seed)

        def next_phase(self, seed: int) -> None:
            self.world.deliver_all(random.Random(seed))
            if not self.world.server.final:
                self.world.close()

        def some(self, which: int) -> Any:
            return self.ids[which % len(self.ids)]

        def anybody(self, which: int) -> Any:
            return [SERVER, *self.ids][which % (len(self.ids) + 1)]

        def fault(self, what: str) -> None:
            self.world.faults += 1
            seen[what] += 1

        @rule(seed=SEEDS)
        def everything_arrives_and_the_phase_closes(self, seed: int) -> None:
            self.next_phase(seed)

        @rule(seed=SEEDS)
        def everything_arrives(self, seed: int) -> None:
            self.world.deliver_all(random.Random(seed))

        @rule(rashly=SELDOM)
        def the_phase_closes(self, rashly: bool) -> None:
            if rashly or self.world.server.sufficient:
                self.world.close()

        @precondition(lambda self: self.world.flying)
        @rule(which=INDEX)
        def one_frame_arrives(self, which: int) -> None:
            self.world.deliver(self.world.flying.pop(which % len(self.world.flying)))

        @precondition(lambda self: self.world.flying)
        @rule(which=INDEX)
        def one_frame_is_lost(self, which: int) -> None:
            self.fault("lost")
            del self.world.flying[which % len(self.world.flying)]

        @precondition(lambda self: self.world.flying)
        @rule(which=INDEX)
        def one_frame_is_held_back(self, which: int) -> None:
            self.fault("held back")
            self.late.append(self.world.flying.pop(which % len(self.world.flying)))

        @precondition(lambda self: self.late)
        @rule()
        def what_was_held_back_arrives(self) -> None:
            self.what_is_late()

        def what_is_late(self) -> None:
            for message in self.late:
                self.world.deliver(message)
            self.late = []

        @precondition(lambda self: self.world.history)
        @rule(which=INDEX)
        def an_old_frame_arrives_again(self, which: int) -> None:
            """Duplicates, and frames that are late by any number of phases."""
            self.fault("repeated")
            self.world.deliver(self.world.history[which % len(self.world.history)])

        @precondition(lambda self: self.world.history)
        @rule(which=INDEX, who=INDEX)
        def a_frame_arrives_elsewhere(self, which: int, who: int) -> None:
            self.fault("misdelivered")
            old = self.world.history[which % len(self.world.history)]
            self.world.deliver(universe.Message(old.sender, self.anybody(who), old.frame))

        @precondition(lambda self: self.world.flying)
        @rule(which=INDEX, seed=SEEDS, keep=st.booleans())
        def one_frame_is_changed(self, which: int, seed: int, keep: bool) -> None:
            self.fault("changed")
            place = which % len(self.world.flying)
            old = self.world.flying[place] if keep else self.world.flying.pop(place)
            changed = self.world.mutated(old.frame, random.Random(seed))
            self.world.deliver(universe.Message(old.sender, old.recipient, changed))

        @rule(which=INDEX, seed=SEEDS)
        def the_server_lies_to_one(self, which: int, seed: int) -> None:
            u = self.some(which)
            frame = self.world.lie(u, random.Random(seed))
            if frame is not None:
                self.fault("lied")
                self.world.deliver(universe.Message(SERVER, u, frame))

        @rule(seed=SEEDS, really=SELDOM)
        def the_server_lies_to_half_of_them(self, seed: int, really: bool) -> None:
            """The same chances for all: a split view."""
            for u in self.ids[:: 1 + seed % 2] if really else []:
                frame = self.world.lie(u, random.Random(seed))
                if frame is not None:
                    self.fault("lied")
                    self.world.deliver(universe.Message(SERVER, u, frame))

        @rule(which=INDEX, resend=st.booleans())
        def a_process_restarts(self, which: int, resend: bool) -> None:
            seen["restarted"] += 1
            self.world.restart(self.anybody(which), resend=resend)

        @rule(which=INDEX, really=SELDOM)
        def a_client_gives_up(self, which: int, really: bool) -> None:
            if really:
                self.fault("gave up")
                self.world.act(self.some(which), lambda machine: machine.abort())

        @rule(which=INDEX)
        def an_input_comes_early_or_twice(self, which: int) -> None:
            self.world.give_input(self.some(which))

        @rule(which=INDEX)
        def a_client_starts_late_or_twice(self, which: int) -> None:
            self.world.start(self.some(which))

        def teardown(self) -> None:
            if self.world is None:
                return
            for _ in range(5):  # whatever happened, the session goes on to its end
                self.next_phase(len(self.world.history))
                self.what_is_late()
            seen["examples"] += 1
            pairs.update(self.world.pairs)
            end = str(self.world.server.phase)
            if self.world.opened:
                end = "spoiled sum" if self.world.spoiled else "exact sum"
                seen["exact sum after a fault"] += not self.world.spoiled and self.world.faults > 0
            seen[end] += 1

    return Session


def play(universe: Any, **options: Any) -> tuple[Counter[str], set[tuple[str, str, str]]]:
    seen: Counter[str] = Counter()
    pairs: set[tuple[str, str, str]] = set()
    run_state_machine_as_test(
        model(universe, seen, pairs),
        settings=settings(
            deadline=None, suppress_health_check=list(HealthCheck), database=None, **options
        ),
    )
    return seen, pairs


ROWS = {
    ("server", "advertise_keys", "ADVERTISE_KEYS"),
    ("server", "share_keys", "ENCRYPTED_SHARES"),
    ("server", "masked_input_collection", "MASKED_INPUT"),
    ("server", "consistency_check", "SURVIVOR_SIGNATURE"),
    ("server", "unmasking", "UNMASK_SHARES"),
    ("client", "share_keys", "KEY_ROSTER"),
    ("client", "masked_input_collection", "SHARE_DELIVERY"),
    ("client", "consistency_check", "SURVIVOR_NOTICE"),
    ("client", "unmasking", "UNMASK_REQUEST"),
}


def test_no_short_schedule_breaks_a_session(universe: Any) -> None:
    seen, pairs = play(universe, max_examples=250, stateful_step_count=25, derandomize=True)
    assert seen["examples"] >= 250
    assert pairs == ROWS
    for what in ("lost", "held back", "repeated", "misdelivered", "changed", "lied", "restarted"):
        assert seen[what] > 10, seen
    assert seen["exact sum after a fault"] > 20, seen
    assert seen["aborted"] > 20, seen


@pytest.mark.long
def test_no_schedule_of_twenty_thousand_breaks_a_session(universe: Any) -> None:
    seen, pairs = play(universe, max_examples=20_000, stateful_step_count=30)
    print(dict(seen))
    assert seen["examples"] >= 20_000
    assert pairs == ROWS
    assert seen["exact sum after a fault"] > 1000, seen
    assert seen["aborted"] > 500, seen


def test_an_undisturbed_world_opens_its_sum(universe: Any) -> None:
    """The control: without faults every variant comes to its end, also with restarts everywhere."""
    for (n, active, sparse), choices in universe.variants().items():
        if n > 7:
            continue
        world = universe.World(choices[len(choices) // 2], 3, 20, n)
        for u in world.cohort:
            world.start(u)
        while not world.server.final:
            world.deliver_all()
            for who in [SERVER, *world.cohort]:
                world.restart(who, resend=True)
            world.close()
        assert world.opened, (n, active, sparse)
        assert not world.spoiled
