"""Any schedule, any lie: what no session of secure aggregation may ever do.

Hypothesis plays scheduler, wire and server against real machines (the world in ``conftest.py``
checks every call). The same model runs a short time by default and 20,000 examples in `make long`;
both assert how many really ran and that sessions come to all kinds of ends.
"""

from __future__ import annotations

from typing import Any

import pytest

from securefl.round import SERVER

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
    seen, pairs = universe.play(max_examples=250, stateful_step_count=25, derandomize=True)
    assert seen["examples"] >= 250
    assert pairs == ROWS
    for what in ("lost", "held back", "repeated", "misdelivered", "changed", "lied", "restarted"):
        assert seen[what] > 10, seen
    assert seen["exact sum after a fault"] > 20, seen
    assert seen["aborted"] > 20, seen


@pytest.mark.long
def test_no_schedule_of_twenty_thousand_breaks_a_session(universe: Any) -> None:
    seen, pairs = universe.play(max_examples=20_000, stateful_step_count=30)
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
