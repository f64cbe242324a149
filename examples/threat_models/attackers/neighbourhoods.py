"""The bounds of the complete graph, per neighbourhood: SecAgg+ on a small ring.

On a k-regular graph a secret has k holders, the neighbours of its owner. So every count of holders
and colluders is one inside of a neighbourhood, and a colluder elsewhere holds nothing of interest.
The server of this module places its colluders: it knew the graph when ids were given out. Bell et
al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead"; the bounds are ours.
"""

from __future__ import annotations

from collections.abc import Iterable

from kit.view import View

from attackers.lists import reaches
from attackers.rosters import ring_order
from attackers.stage import TARGET, Case, Plan, Stage
from securefl.round import ClientId

__all__ = ["RING_K", "RING_N", "around", "collude_beside", "highest_beside", "split_beside"]

RING_N, RING_K = 16, 6
"""So many clients that both sides of the target's neighbourhood have neighbours of their own."""


def _stage(case: Case, *, t: int, active: bool) -> Stage:
    """A ring whose clients, the target excepted, all could collude; who does is decided later."""
    plan = Plan(n=RING_N, k=RING_K, t=t, n_min=max(3, t + 1), active=active, checked=False)
    candidates = [ClientId(v) for v in range(1, RING_N + 1) if v != TARGET]
    return Stage.of(plan, case=case, colluders=candidates)


def around(stage: Stage) -> tuple[list[ClientId], list[ClientId]]:
    """Everybody but the target, to its left and to its right, nearest first."""
    order = ring_order(stage)
    at = order.index(TARGET)
    turned = order[at + 1 :] + order[:at]
    half = len(turned) // 2
    return turned[half:][::-1], turned[:half]


def _nearest(stage: Stage, count: int) -> list[ClientId]:
    """So many clients beside the target, in turns from both sides."""
    pairs = zip(*around(stage), strict=False)
    return [u for pair in pairs for u in pair][:count]


def collude_beside(case: Case, *, t: int) -> dict[tuple[int, bool], bool]:
    """One honest session; then colluders beside the target, 0 to k of them, or all others.

    Returns:
        (c, beside) to whether the target's input is recovered from c colluders that are all beside
        the target, or all elsewhere.
    """
    stage = _stage(case, t=t, active=False).play("unmasking")
    stage.answer()
    stage.save(case.path)
    beside = _nearest(stage, RING_K)
    elsewhere = [u for u in stage.colluders if u not in beside]

    def recovered(helpers: Iterable[ClientId]) -> bool:
        view: View = stage.view(case.path, colluders=helpers)
        return reaches(view, stage, [TARGET]) == 1.0

    found = {(c, True): recovered(beside[:c]) for c in range(RING_K + 1)}
    return found | {(len(elsewhere), False): recovered(elsewhere)}


def highest_beside(c: int) -> int:
    """The highest threshold at which the split view works: floor of (k + c) / 2, signed or not.

    Signatures cost nothing here: on the complete graph whoever signs a list holds a share, and the
    target's holders must be enough for both lists. On a ring the neighbours of these holders sign
    too, and hold no share of the target's.
    """
    return (RING_K + c) // 2


def split_beside(case: Case, *, t: int, c: int, signed: bool) -> float:
    """The left side of the ring hears that the target dropped out, the right side does not.

    ``signed``: every client wants t signatures of its neighbours on its list; colluders sign both.
    """
    stage = _stage(case, t=t, active=signed)
    stage.play("consistency_check" if signed else "unmasking")
    helpers = _nearest(stage, c)
    stage.tapes = {u: tape for u, tape in stage.tapes.items() if u in helpers}
    left, right = ([u for u in side if u not in helpers] for side in around(stage))
    without = [v for v in stage.ids if v != TARGET]
    near = stage.graph.peers(TARGET, stage.ids)
    for side, alive in ((left, without), ([*right, TARGET], stage.ids)):
        holders = [u for u in side if u in near]
        if not signed:
            for u in holders:
                stage.ask(u, alive, peers=stage.peers(u))
            continue
        signers = {u: stage.signature(u, alive) for u in (*side, *helpers)}
        for u in holders:
            mine = stage.peers(u)
            stage.ask_signed(u, [(v, s) for v, s in sorted(signers.items()) if v in mine])
    stage.save(case.path)
    return reaches(stage.view(case.path), stage, [TARGET])
