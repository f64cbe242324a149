"""Attacks that a cheating server tries. Each one works on a library without the defence it is
aimed at, executed to the recovered input, and fails on this one. Lies about who takes part have a
file of their own, ``test_rosters.py``.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from securefl.errors import (
    BelowThreshold,
    ConfigurationError,
    DecryptionFailed,
    Equivocation,
    InvalidSignature,
    LocalProtocolError,
)
from securefl.modular import RingVector
from securefl.primitives.signing import IdentityDirectory
from securefl.protocols.machine import ClientDropped, MalformedMessage, Reason, ShareUnreadable
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggServer
from securefl.protocols.secagg import client as client_module
from securefl.protocols.secagg.graph import HararyGraph
from securefl.protocols.secagg.keys import KeySchedule
from securefl.protocols.secagg.messages import EncryptedShares, ShareDelivery, UnmaskShares
from securefl.protocols.secagg.transitions import MessageType, Phase
from securefl.round import Adversary, ClientId

TARGET = ClientId(1)


# -- both lists -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weak", [True, False])
def test_asking_twice_opens_both_secrets_only_of_a_client_that_forgets_having_answered(
    kit: Any, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client restarted from an old state answers a second list, and every input is open."""
    if weak:
        monkeypatch.setattr(SecAggClient, "_wipe", lambda self: None)
    bench = kit.make(6, t=3, D=2).to("unmasking")
    server = kit.attacker(bench)
    for alive in (server.ids, server.ids[1:]):
        for u in server.ids[1:]:
            server.ask(u, alive)
            if weak:
                bench.clients[u]._phase = Phase.UNMASKING
                bench.clients[u]._accepted.pop(MessageType.UNMASK_REQUEST, None)
    assert server.has([TARGET]) is weak
    if not weak:
        assert len(server.refused) == 5
        assert all(isinstance(e, Equivocation) and not e.outbound for e in server.refused)


def answer_two_lists(client: Any, body: bytes) -> list[Any]:
    """A library whose request has one list of seeds and another of mask keys to open."""
    half = len(body) // 2
    seeds, keys = (np.frombuffer(part, dtype=np.bool_) for part in (body[:half], body[half:]))
    secrets = client._secrets
    answer = UnmaskShares(
        readable=client._readable,
        own=None,
        b_shares=secrets.b_shares[seeds],
        s_shares=secrets.s_shares[keys],
    )
    raw = answer.b_shares.tobytes() + answer.s_shares.tobytes()
    return [client._emit(raw, session=client._end.session)]


@pytest.mark.parametrize("weak", [True, False])
def test_both_secrets_of_one_client_can_be_asked_at_once_only_where_there_are_two_lists(
    kit: Any, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One list decides the kind of every share: a request for both cannot be written."""
    if weak:
        monkeypatch.setattr(SecAggClient, "_on_unmask_request", answer_two_lists)
    bench = kit.make(6, t=3, D=2).to("unmasking")
    server = kit.attacker(bench)
    everybody = np.ones(5, dtype=np.bool_)
    for u in server.ids[1:]:
        body = everybody.tobytes() * 2
        raw = server._send(u, body, 8)
        if raw is None:
            continue
        b_rows = np.frombuffer(raw[:100], dtype="<u4").reshape(5, 5)
        s_rows = np.frombuffer(raw[100:], dtype="<u4").reshape(5, 9)
        for dealer, b_row, s_row in zip(bench.clients[u]._P, b_rows, s_rows, strict=True):
            server.b[dealer][u], server.s[dealer][u] = b_row, s_row
    assert server.has([TARGET]) is weak
    if not weak:
        assert len(server.refused) == 5
        assert all(isinstance(e, MalformedMessage) for e in server.refused)


# -- shares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weak", [True, False])
def test_reflected_shares_give_a_client_away_only_without_directional_channels(
    kit: Any, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target's own ciphertexts come back to it as its peers': one answer holds 2t shares."""
    if weak:
        monkeypatch.setattr(KeySchedule, "_aad", lambda self, session, u, v: b"")
        directional = KeySchedule.channel_key
        monkeypatch.setattr(
            KeySchedule,
            "channel_key",
            lambda self, agreed, session, u, v: directional(
                self, agreed, session, min(u, v), max(u, v)
            ),
        )
    bench = kit.make(9, t=4, D=4, n_min=5).to("share_keys")
    bench.answer()
    target = bench.clients[TARGET]
    dealt = EncryptedShares.decode(kit.body_of(bench.sent[TARGET, "share_keys"]), peers=8)
    bench.close()
    body = ShareDelivery(
        present=np.ones(8, dtype=np.bool_), ciphertexts=[row.tobytes() for row in dealt]
    ).encode()
    reflected = kit.edit(bench.inbox[TARGET], body=body)
    if not weak:
        with pytest.raises(DecryptionFailed, match="only 0 of 8"):
            target.receive(reflected)
        return
    target.receive(reflected)
    bench.up(TARGET, target.set_input(bench.vectors[TARGET]))
    bench.answer(without=[1])
    bench.close()
    server = kit.attacker(bench)
    server.ask(TARGET, server.ids[:5])
    mine = {"b": [server.b[v][TARGET] for v in server.ids[1:5]],
            "s": [server.s[v][TARGET] for v in server.ids[5:]]}  # fmt: skip
    server.b[TARGET] = dict(zip(server.ids[1:5], mine["b"], strict=True))
    server.s[TARGET] = dict(zip(server.ids[5:], mine["s"], strict=True))
    assert server.has([TARGET])


def long_term_channels(u: ClientId) -> Any:
    """Randomness of a client that keeps one channel key for all its sessions."""
    first = [hashlib.sha256(b"channel key of %d" % u).digest()]
    return lambda size: first.pop() if first else os.urandom(size)


@pytest.mark.parametrize("weak", [True, False])
def test_replayed_shares_open_an_old_input_only_where_channels_forget_their_session(
    kit: Any, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holders opened the target's seed in one session; in the next, where the target is said
    to be missing, they are given its old ciphertexts and open its old mask key.

    The channel keys are long-lived in both variants: it is the session id that must keep the two
    sessions apart.
    """
    if weak:
        bound = KeySchedule.channel_key
        monkeypatch.setattr(KeySchedule, "_aad", lambda self, session, u, v: b"")
        monkeypatch.setattr(
            KeySchedule,
            "channel_key",
            lambda self, agreed, session, u, v: bound(self, agreed, bytes(32), u, v),
        )
    old = kit.make(6, t=3, D=2, random_of=long_term_channels).to("unmasking")
    server = kit.attacker(old)
    for u in server.ids[1:]:
        server.ask(u, server.ids)
    dealt = EncryptedShares.decode(kit.body_of(old.sent[TARGET, "share_keys"]), peers=5)
    new = kit.make(6, t=3, D=2, random_of=long_term_channels, round_id=4, nonce=bytes([7] * 32))
    new.to("masked_input_collection")
    for u, ciphertext in zip(server.ids[1:], dealt, strict=True):
        body = kit.body_of(new.inbox[u])
        genuine = ShareDelivery.decode(body, peers=5)
        place = new.clients[u]._P.index(TARGET)
        sealed = [ciphertext.tobytes() if i == place else c for i, c in
                  enumerate(bytes(c) for c in genuine.ciphertexts)]  # fmt: skip
        forged = ShareDelivery(present=genuine.present, ciphertexts=sealed).encode()
        new.inbox[u] = kit.edit(new.inbox[u], body=forged)
    new.answer(without=[1])
    unreadable = [e for e in new.events if isinstance(e, ShareUnreadable)]
    assert [e.dealer for e in unreadable] == ([] if weak else [TARGET] * 5)
    new.close()
    again = kit.attacker(new)
    for u in again.ids[1:]:
        P, readable = new.clients[u]._P, new.clients[u]._readable
        if readable[P.index(TARGET)]:
            again.ask(u, again.ids[1:])
    server.s[TARGET] = again.s[TARGET]
    assert server.has([TARGET]) is weak


@pytest.mark.parametrize("weak", [True, False])
def test_a_late_input_is_stripped_only_without_self_masks(
    kit: Any, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weak:
        monkeypatch.setattr(KeySchedule, "self_mask_key", lambda self, b, session, u: bytes(16))
    bench = kit.make(6, t=3, D=2).to("masked_input_collection")
    bench.answer(without=[1])
    target = bench.clients[TARGET]
    target.receive(bench.inbox[TARGET])
    (late,) = target.set_input(bench.vectors[TARGET])
    bench.close()
    (event,) = bench.server.receive(late.frame)
    assert event == ClientDropped(client=TARGET, phase="unmasking", reason=Reason.LATE)
    bench.sent[TARGET, "masked_input_collection"] = late.frame
    server = kit.attacker(bench)
    for u in server.ids[1:]:
        server.ask(u, server.ids[1:])
    assert len(server.s[TARGET]) == 5 and not server.b[TARGET]
    s_sk = server._secret(server.s, TARGET, 32)
    stripped = server.masked(TARGET) - server.expand(bytes(16))
    for v in server.ids[1:]:
        stripped += server.pair_mask(TARGET, v, s_sk)  # the target has the lowest id: it subtracted
    opened = [int(x) % bench.config.modulus for x in stripped]
    assert (opened == bench.plain_sum([TARGET])) is weak


# -- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weak", [True, False])
def test_clients_with_different_models_are_summed_only_if_keys_forget_the_context(
    kit: Any, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model inconsistency (Pasquini et al. 2022): the target alone works on a model of its own.

    The others' model is one on which every gradient is zero, so the exact sum is the target's.
    """
    bench = kit.make(5, D=1)
    for u in list(bench.clients)[1:]:
        bench.vectors[u] = RingVector(np.zeros_like(bench.vectors[u].values), bench.config.modulus)
    lone = replace(bench.config, context_digest=bytes(32))
    policy = ClientPolicy(gamma=0)
    with pytest.raises(ConfigurationError, match="another context"):
        SecAggClient(TARGET, bench.config, context_digest=bytes(32), policy=policy)
    victim = SecAggClient(TARGET, lone, context_digest=bytes(32), policy=policy)
    if weak:
        monkeypatch.setattr(KeySchedule, "session_id", lambda self, digest, n, root: bytes(32))
        monkeypatch.setattr(
            KeySchedule, "seed_commitment", lambda self, digest, u, c_pk, b: bytes(32)
        )

    def for_server(frame: bytes) -> bytes:
        session = bench.server._end.session or bench.config.digest()
        return kit.edit(frame, session=session)

    def for_victim(frame: bytes) -> bytes:
        return kit.edit(frame, session=victim._end.session or lone.digest())

    bench.clients[TARGET].abort()
    bench.start(without=[1])
    bench.server.receive(for_server(victim.start()[0].frame))
    bench.close()
    bench.server.receive(for_server(victim.receive(for_victim(bench.inbox[TARGET]))[0].frame))
    bench.answer(without=[1])
    bench.close()
    delivery = for_victim(bench.inbox[TARGET])
    if not weak:
        with pytest.raises(DecryptionFailed, match="only 0 of 4"):
            victim.receive(delivery)
        return
    victim.receive(delivery)
    bench.server.receive(for_server(victim.set_input(bench.vectors[TARGET])[0].frame))
    bench.answer(without=[1])
    bench.close()
    opened = bench.finish(without=[1]).values.tolist()
    assert opened == bench.plain_sum([TARGET]) == bench.vectors[TARGET].values.tolist()


# -- signatures -----------------------------------------------------------------------------------


SMALL = 5  # inputs in the sum that the server wants to open, of n=10 with n_min=7


def shrink_with(kit: Any, kind: str) -> Any:
    """Own lists for everybody (n=10, t=6: sum of 5), with signatures that are not t.

    ``duplicated``: client 10 colludes, is on every list, and signs whatever it is asked to.
    """
    bench = kit.make(10, t=6, D=3, m=1, active=True).to("consistency_check")
    colluders = [10] if kind == "duplicated" else []
    server = kit.attacker(bench, colluders)
    server.small = [*server.ids[: SMALL - len(colluders)], *server.colluders]
    wanted = 6 - len(colluders)  # lists that must leave out each client outside
    left_out: dict[ClientId, list[ClientId]] = {u: [] for u in server.honest}
    for outside in (u for u in server.honest if u not in server.small):
        free = sorted(
            (u for u in server.honest if u != outside), key=lambda u: (len(left_out[u]), -u)
        )
        for u in free[:wanted]:
            left_out[u].append(outside)
    lists = {u: [v for v in server.ids if v not in left_out[u]] for u in server.honest}
    assert min(map(len, lists.values())) >= bench.config.n_min > SMALL
    for u in server.honest:
        assert server.get_signature(u, lists[u]) is not None
    for u in server.honest:
        others = [v for v in lists[u] if v != u]
        if kind == "forged":
            signatures = [(v, bytes(64)) for v in others]
        else:
            signatures = [(server.colluders[0], server.collude(ClientId(10), lists[u]))] * 6
        server.ask_signed(u, lists[u], signatures)
    return server


@pytest.mark.parametrize(("kind", "asked"), [("forged", 10), ("duplicated", 9)])
def test_signatures_that_are_not_t_shrink_the_sum_only_where_nobody_looks_at_them(
    kit: Any, kind: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = shrink_with(kit, kind)
    assert not server.has(server.small)
    assert len(server.refused) == asked
    assert all(isinstance(error, InvalidSignature) for error in server.refused)
    if kind == "forged":
        monkeypatch.setattr(IdentityDirectory, "verify", lambda self, u, signature, message: None)
    else:
        monkeypatch.setattr(client_module, "pairwise", lambda items: ())
    server = shrink_with(kit, kind)
    assert not server.refused
    assert server.has(server.small)
    assert len(server.small) == SMALL


# -- the ring -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_a_server_that_chooses_the_ring_surrounds_its_target(kit: Any) -> None:
    """Two colluders among twelve, k = 4, t = 2: a few tries put both beside the target."""
    tries = 0
    while True:
        tries += 1
        bench = kit.make(12, k=4, t=2, D=0, n_min=12, nonce=os.urandom(32))
        near = bench.server._graph.peers(TARGET, bench.clients)
        if {11, 12} <= set(near):
            break
    assert tries < 1000
    bench.to("unmasking")
    server = kit.attacker(bench, [11, 12])
    assert server.has([TARGET])


def test_the_ring_that_surrounds_is_refused_by_its_numbers_and_by_its_source(kit: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"c\*=2"):
        kit.make(12, k=4, t=2, A=2, D=0, n_min=12)
    good = kit.make(12, k=6, A=1, D=1).config
    with pytest.raises(ConfigurationError, match="surrounds its target"):
        SecAggServer(replace(good, adversary=Adversary.ACTIVE, t=5))


def cut_ring(kit: Any, active: bool) -> tuple[Any, list[ClientId], list[ClientId]]:
    """The target and its two ring neighbours, cut off by two runs of two missing clients."""
    bench = kit.make(14, k=4, t=2, D=0, n_min=10, active=active)
    order = bench.server._graph._ring
    at = order.index(TARGET)
    arc = [order[(at + d) % 14] for d in (-1, 0, 1)]
    gone = {order[(at + d) % 14] for d in (-3, -2, 2, 3)}
    bench.to("masked_input_collection")
    bench.answer(without=gone)
    bench.close()
    server = kit.attacker(bench)
    return server, arc, [u for u in server.ids if u not in gone]


@pytest.mark.usefixtures("unchecked")
def test_semi_honest_clients_see_their_neighbours_only_and_are_cut_off(kit: Any) -> None:
    """What a lying server does to a semi-honest session whose degree is below every rule."""
    server, arc, alive = cut_ring(kit, active=False)
    for u in alive:
        server.ask(u, alive)
    assert not server.refused
    assert server.has(arc)
    assert len(arc) == 3 < server.bench.config.n_min


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("weak", [True, False])
def test_two_missing_runs_cut_a_small_sum_off_only_without_the_connectivity_check(
    kit: Any, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One list, signed by everybody alive, and yet two sums behind it."""
    if weak:
        monkeypatch.setattr(HararyGraph, "fragments", lambda self, members, t: None)
    server, arc, alive = cut_ring(kit, active=True)
    signed = {u: server.get_signature(u, alive) for u in alive}
    if not weak:
        assert list(signed.values()) == [None] * 10
        assert all(isinstance(e, BelowThreshold) and "2 parts" in str(e) for e in server.refused)
        return
    for u in alive:
        near = server.bench.server._graph.peers(u, alive)
        server.ask_signed(u, alive, [(v, signed[v]) for v in near])
    assert not server.refused
    assert server.has(arc)


def isolate(kit: Any, active: bool) -> Any:
    """Every client hears that a few of the target's neighbours are missing, none the same ones.

    All numbers are the defaults of their threat model, and every list passes all local checks.
    """
    numbers = {"t": 4, "D": 2} if active else {"t": 3, "D": 3}
    bench = kit.make(12, k=6, active=active, **numbers)
    graph, t, room = bench.server._graph, bench.config.t, bench.config.D
    ids = list(bench.clients)
    left_out: dict[ClientId, list[ClientId]] = {u: [] for u in ids}
    for v in graph.peers(TARGET, ids):
        for u in sorted(graph.peers(v, ids), key=lambda u: (len(left_out[u]), -u))[:t]:
            if len(left_out[u]) < room:
                left_out[u].append(v)
    lists = {u: [v for v in ids if v not in left_out[u]] for u in ids}
    server = kit.attacker(bench.to("consistency_check" if active else "unmasking"))
    if not active:
        for u in ids:
            server.ask(u, lists[u])
        return server
    signed = {u: server.get_signature(u, lists[u]) for u in ids}
    assert None not in signed.values()
    for u in ids:
        near = [v for v in graph.peers(u, lists[u]) if lists[v] == lists[u]]
        server.ask_signed(u, lists[u], [(v, signed[v]) for v in near])
    return server


def test_lists_of_their_own_isolate_a_target_only_where_nobody_signs_them(kit: Any) -> None:
    server = isolate(kit, active=False)
    assert not server.refused
    assert server.has([TARGET])
    server = isolate(kit, active=True)
    assert not server.has([TARGET])
    assert len(server.refused) == 12
    assert all(isinstance(error, BelowThreshold) for error in server.refused)


# -- few inputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weak", [True, False])
def test_a_sum_of_few_is_opened_only_by_clients_that_do_not_count(
    kit: Any, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of eight inputs arrived, the clients want to be hidden among six, t is three."""
    if weak:
        monkeypatch.setattr(SecAggClient, "_enough_survivors", lambda self, size, peers: None)
    bench = kit.make(8, t=3, D=2).to("unmasking")
    assert bench.config.n_min == 6
    server = kit.attacker(bench)
    for u in server.ids[:4]:
        server.ask(u, server.ids[:4])
    assert server.has(server.ids[:4]) is weak
    if not weak:
        assert len(server.refused) == 4
        assert all(isinstance(error, BelowThreshold) for error in server.refused)


def test_two_rounds_that_differ_by_one_client_give_its_input_away(kit: Any) -> None:
    """No secure sum prevents this: what helps is noise, as the limitations say.

    The machines only see to it that each of them masks one input once.
    """
    bench = kit.make(6, t=3, D=2).to("unmasking")
    whole = bench.finish().values.tolist()
    again = kit.make(6, t=3, D=2, nonce=bytes([1] * 32))
    again.start(without=[1])
    again.close()
    rest = again.finish().values.tolist()
    difference = [(x - y) % bench.config.modulus for x, y in zip(whole, rest, strict=True)]
    assert difference == bench.plain_sum([TARGET])
    with pytest.raises(LocalProtocolError, match="give away their difference"):
        bench.clients[TARGET].set_input(bench.vectors[TARGET])
