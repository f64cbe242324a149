"""Lies about who survived: what a server can open by choosing the list that each client answers.

One survivor list decides which share of each peer a client gives away: of the self-mask seed if the
peer is on it, of the mask key if not. Both kinds of one client, t times each, are its input. Every
function plays one session to that point, lies, and returns the fraction of the target's (or the
small sum's) ring elements that the transcript then gives away: 1 or 0. Bonawitz et al. 2017,
"Practical Secure Aggregation for Privacy-Preserving Machine Learning", section 6; the bounds for
clients without shares of their own are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil

import numpy as np
from kit.metrics import equal_fraction
from kit.rounds import plain_sum
from kit.view import View

from attackers.stage import TARGET, Case, Plan, Stage
from securefl.errors import ConfigurationError
from securefl.protocols.policy import ClientPolicy
from securefl.protocols.secagg.transitions import MessageType
from securefl.round import ClientId, Layout
from securefl.wire import decode_frame

__all__ = [
    "asked_twice",
    "both_kinds_at_once",
    "duplicated_signer",
    "forged_signatures",
    "keys_used_again",
    "own_signature",
    "padded_list",
    "reaches",
    "shrink",
    "shrink_lists",
    "smallest_signed",
    "smallest_sum",
    "split_view",
    "too_few_inputs",
    "too_few_signatures",
]

Lists = Mapping[ClientId, Sequence[ClientId]]


def reaches(view: View, stage: Stage, chosen: Iterable[ClientId]) -> float:
    """Fraction of the true sum over these clients that the view gives away."""
    members = list(chosen)
    opened = view.sum_of(members)
    best = opened if opened is not None else view.best_of(members)
    if best is not None:
        stage.found.append(best)
    return equal_fraction(opened, plain_sum(stage.inputs, members))


def _judge(stage: Stage, case: Case, chosen: Iterable[ClientId] = (TARGET,)) -> float:
    stage.save(case.path)
    return reaches(stage.view(case.path), stage, chosen)


# -- both secrets of one client -----------------------------------------------------------------


def asked_twice(case: Case) -> float:
    """First everybody survived, then the target did not: the second request gets the other kind."""
    stage = Stage.of(Plan(n=6, t=3, D=2, active=False), case=case)
    stage.play("unmasking")
    for alive in (stage.ids, stage.ids[1:]):
        for u in stage.ids[1:]:
            stage.ask(u, alive, peers=stage.peers(u))
    return _judge(stage, case)


def both_kinds_at_once(case: Case) -> float:
    """A request with two lists, one per kind of share, both with the target on it."""
    stage = Stage.of(Plan(n=6, t=3, D=2, active=False), case=case)
    stage.play("unmasking")
    answers: dict[ClientId, bytes] = {}
    for u in stage.ids[1:]:
        everybody = np.ones(len(stage.peers(u)), dtype=np.bool_).tobytes()
        got = stage.tell(u, MessageType.UNMASK_REQUEST, everybody * 2)
        if got:
            answers[u] = bytes(decode_frame(got[-1]).body)
    stage.save(case.path)
    view = stage.view(case.path)
    for u, raw in answers.items():
        peers = stage.peers(u)
        cut = 4 * 5 * len(peers)
        b_rows = np.frombuffer(raw[:cut], dtype="<u4").reshape(-1, 5)
        s_rows = np.frombuffer(raw[cut:], dtype="<u4").reshape(-1, 9)
        for dealer, b, s in zip(peers, b_rows, s_rows, strict=True):
            view.add_shares(dealer, u, b=b, s=s)
    return reaches(view, stage, [TARGET])


def split_view(
    case: Case,
    *,
    n: int,
    t: int,
    c: int = 0,
    layout: Layout,
    signed: bool = False,
    checked: bool = False,
) -> float:
    """Some honest clients hear that the target dropped out, the others that it did not.

    ``signed``: every client wants t signatures on its list; colluders sign both. ``checked``: the
    rules for thresholds hold; else they are off, as in a library that only documents them.
    """
    least = max(3, t + (layout is Layout.OTHERS))
    plan = Plan(n=n, t=t, A=max(1, c), n_min=least, layout=layout, active=signed, checked=checked)
    colluders = [ClientId(v) for v in range(n - c + 1, n + 1)]
    try:
        stage = Stage.of(plan, case=case, colluders=colluders)
    except ConfigurationError as error:
        case.refused.append((TARGET, error))
        return 0.0
    stage.play("consistency_check" if signed else "unmasking")
    others = [u for u in stage.honest if u != TARGET]
    needs = t - c + (signed and layout is Layout.OTHERS)  # an own signature does not count
    first = min(len(others), max(0, needs))
    without = [v for v in stage.ids if v != TARGET]
    for group, alive in ((others[:first], without), ([*others[first:], TARGET], stage.ids)):
        _show(stage, group, alive, signed=signed)
    return _judge(stage, case)


def _show(
    stage: Stage, group: Sequence[ClientId], alive: Sequence[ClientId], *, signed: bool
) -> None:
    """Shows the group one list, collects their signatures on it, and asks for shares."""
    if not signed:
        for u in group:
            stage.ask(u, alive, peers=stage.peers(u))
        return
    signers = {u: stage.signature(u, alive) for u in (*group, *stage.colluders)}
    for u in group:
        stage.ask_signed(u, [(v, s) for v, s in sorted(signers.items()) if v != u])


def keys_used_again(case: Case) -> float:
    """Two honest rounds; the target drops out of the second one, after it dealt its shares.

    The first opens its seed, the second its mask key. Each is harmless while keys are fresh.
    """
    plan = Plan(n=6, t=3, D=2, active=False)
    first = Stage.of(plan, case=case)
    first.play("unmasking")
    first.answer()
    second = Stage.of(plan, case=replace(case, seed=case.seed + 1000), round_id=1)
    second.play("masked_input_collection")
    second.answer(without=[TARGET])
    second.close()
    second.answer(without=[TARGET])
    first.save(case.path)
    later = second.save(case.path.with_suffix(".second.bin"))
    opened = second.view(later).mask_key(TARGET)
    view = first.view(case.path, extra_keys=[] if opened is None else [opened.secret()])
    return reaches(view, first, [TARGET])


# -- the shrinking survivor set -----------------------------------------------------------------


def smallest_sum(n: int, t: int, c: int, layout: Layout) -> int:
    """Fewest honest clients in a sum that can be opened where no common list is signed.

    Counting: an honest client outside the sum needs t - c honest holders that call it dropped;
    every list has room for h - t such holders besides. Holds for c < t and 2t > h + c.
    """
    h = n - (layout is Layout.OTHERS)
    return ceil((n - c) * (2 * t - h - c) / (t - c))


def shrink_lists(n: int, t: int, c: int, layout: Layout, kept: int) -> Lists | None:
    """Lists of the honest clients 1..n-c that open the sum of the first ``kept`` of them alone.

    Each outsider is left off t - c lists of others, as evenly as possible; each list keeps as many
    names as its owner checks for, colluders among them. None if there is no room.
    """
    room = n - t - (layout is Layout.OTHERS)
    left_out: dict[int, set[int]] = {i: set() for i in range(1, n - c + 1)}
    for outside in range(kept + 1, n - c + 1):
        free = sorted((i for i in left_out if i != outside), key=lambda i: (len(left_out[i]), -i))
        for i in free[: t - c]:
            left_out[i].add(outside)
    if left_out and max(map(len, left_out.values())) > room:
        return None
    everybody = range(1, n + 1)
    return {
        ClientId(i): [ClientId(v) for v in everybody if v not in out] for i, out in left_out.items()
    }


def shrink(
    case: Case, *, n: int, t: int, c: int = 0, layout: Layout, signed: bool = False
) -> float:
    """Every client a list of its own that passes all its checks; the smallest sum is opened.

    ``signed``: clients want t signatures over the very list that they signed; they get those there
    are. The sum has :func:`smallest_sum` honest clients.
    """
    kept = smallest_sum(n, t, c, layout)
    lists = shrink_lists(n, t, c, layout, kept)
    if lists is None:
        raise ConfigurationError(f"no lists open a sum of {kept} for n={n}, t={t}, c={c}")
    least = max(3, t + (layout is Layout.OTHERS))
    plan = Plan(n=n, t=t, n_min=least, layout=layout, active=signed, checked=False)
    colluders = [ClientId(v) for v in range(n - c + 1, n + 1)]
    stage = Stage.of(plan, case=case, colluders=colluders)
    stage.play("consistency_check" if signed else "unmasking")
    mine = {u: stage.signature(u, alive) for u, alive in lists.items()} if signed else {}
    for u, alive in lists.items():
        if signed:
            helpers = [(v, stage.signature(v, alive)) for v in stage.colluders]
            same = [(v, mine[v]) for v in alive if v in lists and v != u and lists[v] == alive]
            stage.ask_signed(u, sorted([*same, *helpers]))
        else:
            stage.ask(u, alive, peers=stage.peers(u))
    return _judge(stage, case, stage.honest[:kept])


def smallest_signed(case: Case, *, n: int, t: int, layout: Layout) -> float:
    """Fewest clients in a sum that is opened from one list that all of them signed.

    The clients ask for no more than the thresholds do; the server tries ever longer lists.
    Colluders among the names would be taken off.
    """
    for size in range(t - 1, n + 1):
        plan = Plan(n=n, t=t, n_min=3, layout=layout, active=True, checked=False)
        stage = Stage.of(plan, case=case).play("consistency_check")
        if _opened_by_all(stage, case, stage.ids[:size], stage.ids[:size]) == 1.0:
            return float(size)
    return float("nan")


# -- the same lies against clients that want signatures -----------------------------------------

_N, _T = 10, 6


def _shrink_signed(
    case: Case,
    signatures: Callable[[Stage, ClientId, Lists], Sequence[tuple[ClientId, bytes | None]]],
    *,
    c: int = 0,
) -> float:
    """Ten clients, t = 6, everybody signs a list of its own; then each is asked to open it."""
    kept = smallest_sum(_N, _T, c, Layout.OTHERS)
    lists = None
    while lists is None:  # the bound is reached only where the division comes out even
        lists = shrink_lists(_N, _T, c, Layout.OTHERS, kept)
        kept += lists is None
    plan = Plan(n=_N, t=_T, A=1, D=3, active=True)
    colluders = [ClientId(v) for v in range(_N - c + 1, _N + 1)]
    stage = Stage.of(plan, case=case, colluders=colluders)
    stage.play("consistency_check")
    for u, alive in lists.items():
        stage.signature(u, alive)
    for u in lists:
        stage.ask_signed(u, signatures(stage, u, lists))
    return _judge(stage, case, stage.honest[:kept])


def too_few_signatures(case: Case) -> float:
    """Nobody signed anybody's list: the request has no signatures at all."""
    return _shrink_signed(case, lambda stage, u, lists: [])


def forged_signatures(case: Case) -> float:
    """Bytes under everybody's name that nobody signed."""
    return _shrink_signed(
        case, lambda stage, u, lists: [(v, bytes(64)) for v in lists[u] if v != u]
    )


def duplicated_signer(case: Case) -> float:
    """One colluder is on every list, signs each of them, and is counted t times."""

    def six_times(
        stage: Stage, u: ClientId, lists: Lists
    ) -> Sequence[tuple[ClientId, bytes | None]]:
        (helper,) = stage.colluders
        return [(helper, stage.signature(helper, lists[u]))] * _T

    return _shrink_signed(case, six_times, c=1)


def own_signature(case: Case) -> float:
    """N = 10, t = 5, no corruption assumed: with its own, everybody holds five signatures.

    Clients 1..5 are shown {1..5, 10}, clients 6..10 {6..10, 1}: six names, as many as they want.
    The answers give the seeds of 1 and 10 and the mask keys of everybody else: the sum of these two
    is open. Without signatures on lists at all, and with own shares counted, it would be client 1.
    """
    policy = ClientPolicy(gamma=0, assume_no_corruption=True)
    plan = Plan(n=10, t=5, A=0, D=4, n_min=6, active=True, policy=policy)
    stage = Stage.of(plan, case=case)
    stage.play("consistency_check")
    low, high = stage.ids[:5], stage.ids[5:]
    for group, alive in ((low, [*low, high[-1]]), (high, [*high, TARGET])):
        signed = {u: stage.signature(u, alive) for u in group}
        for u in group:
            stage.ask_signed(u, sorted(signed.items()))
    return _judge(stage, case, [TARGET, high[-1]])


# -- sums of fewer than promised ----------------------------------------------------------------


def _opened_by_all(
    stage: Stage, case: Case, real: Sequence[ClientId], named: Sequence[ClientId]
) -> float:
    signed = {u: stage.signature(u, named) for u in real}
    for u in real:
        stage.ask_signed(u, [(v, s) for v, s in sorted(signed.items()) if v != u])
    return _judge(stage, case, real)


def too_few_inputs(case: Case) -> float:
    """The clients want to hide among eight; the server opens the sum of six that it picked."""
    plan = Plan(n=8, t=5, A=1, n_min=8, active=True)
    stage = Stage.of(plan, case=case).play("consistency_check")
    picked = stage.ids[:6]
    return _opened_by_all(stage, case, picked, picked)


def padded_list(case: Case) -> float:
    """Six clients ever dealt shares; the list names eight, as many as the clients want."""
    plan = Plan(n=8, t=5, A=1, n_min=8, active=True)
    stage = Stage.of(plan, case=case).play("share_keys")
    there = stage.ids[:6]
    stage.answer(without=stage.ids[6:])
    for u, body in stage.deliveries(there).items():
        stage.tell(u, MessageType.SHARE_DELIVERY, body)
    return _opened_by_all(stage, case, there, stage.ids)
