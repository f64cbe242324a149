"""What a server gets out of an input that was masked badly, twice, or came too late.

Bonawitz et al. 2017, section 4: the second, own mask of each client is there for inputs that
arrive after their pair masks were opened.
"""

from __future__ import annotations

import numpy as np
from kit.metrics import equal_fraction
from kit.rounds import images_as_inputs, plain_sum, ring
from kit.view import Ring, View

from attackers.stage import TARGET, Case, Plan, Stage
from securefl.errors import LocalProtocolError
from securefl.modular import RingVector
from securefl.protocols.secagg.masks import sign
from securefl.round import ClientId

__all__ = [
    "PUBLIC_MASK",
    "late_and_asked_again",
    "late_input",
    "late_vector",
    "second_input",
    "strip_pair_masks",
]

PUBLIC_MASK = bytes(16)
"""The self-mask key of a client that has none: everybody can compute this mask."""


def strip_pair_masks(view: View, u: ClientId) -> Ring | None:
    """U's masked input without its pair masks, as far as they are open; None if one is not."""
    total = view.masked(u).copy()
    for v in view.partners(u):
        mask = view.pair_mask(u, v)
        if mask is None:
            return None
        total += -mask if sign(u, v) > 0 else mask
    result: Ring = total & np.uint64(view.config.modulus - 1)
    return result


def late_vector(
    case: Case, *, bits: int = 24, inputs: dict[ClientId, RingVector] | None = None
) -> tuple[Stage, View]:
    """The target is called dropped, its mask key is opened, and then its input arrives.

    Returns:
        The session, and the view after everybody answered and the late vector came.
    """
    plan = Plan(n=6, t=3, D=2, active=False, bits=bits)
    stage = Stage.of(plan, case=case, inputs=inputs)
    stage.play("masked_input_collection")
    late = stage.inbox[TARGET]
    stage.answer(without=[TARGET])
    stage.close()
    stage.answer(without=[TARGET])
    stage.hand_in(stage.deliver(TARGET, late))
    stage.save(case.path)
    return stage, stage.view(case.path)


def late_input(case: Case) -> float:
    """The late vector without its pair masks and the public mask of a client without its own."""
    stage, view = late_vector(case)
    stripped = strip_pair_masks(view, TARGET)
    if stripped is None:
        return 0.0
    bare: Ring = (stripped - view.expand(PUBLIC_MASK)) & np.uint64(stage.config.modulus - 1)
    case.found.append(bare)
    return equal_fraction(bare, plain_sum(stage.inputs, [TARGET]))


def late_and_asked_again(case: Case) -> float:
    """After the late vector came, everybody is asked for the seed of the target too."""
    stage, _ = late_vector(case)
    for u in stage.ids[1:]:
        stage.ask(u, stage.ids, peers=stage.peers(u))
    stage.save(case.path)
    view = stage.view(case.path)
    return equal_fraction(view.sum_of([TARGET]), plain_sum(stage.inputs, [TARGET]))


def second_input(case: Case) -> float:
    """The target's application gives its machine a second input: what the difference says.

    The first input is public here (all zeros), so the difference is the second one.
    """
    stage = Stage.of(Plan(n=6, t=3, D=2, active=False), case=case)
    secret = images_as_inputs(1, bits=24, seed=case.seed)[TARGET]
    stage.inputs[TARGET] = ring(np.zeros(len(secret), dtype=np.int64), 24)
    stage.play("masked_input_collection")
    stage.answer()
    try:
        stage.up(TARGET, stage.clients[TARGET].set_input(secret))
    except LocalProtocolError as error:  # the library's client refuses: nothing more is sent
        stage.refused.append((TARGET, error))
    stage.save(case.path)
    sent = stage.view(case.path).every_masked(TARGET)
    if len(sent) < 2:
        return 0.0
    difference = (sent[1] - sent[0]) & np.uint64(stage.config.modulus - 1)
    return equal_fraction(difference, plain_sum({TARGET: secret}, [TARGET]))
