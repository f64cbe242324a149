"""Attacks that a cheating server tries. Each one works on a library without the defence it is
aimed at, executed to the recovered input, and fails on this one.
"""

from __future__ import annotations

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
    RosterMismatch,
)
from securefl.primitives.channel import AgreementKey, PublicKey
from securefl.primitives.sharing import parse_share_words
from securefl.primitives.signing import IdentityDirectory
from securefl.protocols.machine import ClientDropped, Reason
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggServer
from securefl.protocols.secagg import client as client_module
from securefl.protocols.secagg.keys import KeySchedule
from securefl.protocols.secagg.messages import (
    EncryptedShares,
    KeyRoster,
    RosterEntry,
    ShareDelivery,
)
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


# -- keys and identities --------------------------------------------------------------------------


def substitute_keys(kit: Any, active: bool) -> bool:
    """The server puts its own keys into the roster and plays all the target's peers."""
    bench = kit.make(6, t=4, D=1, m=2, b=16, active=active).to("share_keys")
    frame, keys = bench.inbox[TARGET], KeySchedule(bench.config.protocol)
    real = KeyRoster.decode(kit.body_of(frame), most=6, signed=active).entries
    mine = {e.client: (AgreementKey(os.urandom(32)), AgreementKey(os.urandom(32))) for e in real}
    forged = tuple(
        e if e.client == TARGET else e._replace(c_pk=c.public, s_pk=s.public)
        for e, (c, s) in zip(real, mine.values(), strict=True)
    )
    target = bench.clients[TARGET]
    out = target.receive(kit.edit(frame, body=KeyRoster(entries=forged).encode()))
    raw = [e.encode() for e in forged]
    session = keys.session_id(bench.config.digest(), 6, keys.roster_tree(raw).root)
    dealt = EncryptedShares.decode(kit.body_of(out[0].frame), peers=5)
    published = PublicKey(real[0].c_pk)
    words, sealed = [], []
    for ciphertext, v in zip(dealt, target._P, strict=True):
        agreed = mine[v][0].agree(published)
        key = keys.channel_key(agreed, session, TARGET, v)
        plain = keys.open_shares(key, session, TARGET, v, ciphertext.tobytes())
        words.append(parse_share_words(plain))
        sealed.append(keys.seal_shares(agreed, session, v, TARGET, bytes(56)))
    body = ShareDelivery(present=np.ones(5, dtype=np.bool_), ciphertexts=sealed).encode()
    target.receive(kit.edit(frame, type=4, session=session, body=body))
    (sent,) = target.set_input(bench.vectors[TARGET])
    bench.sent[TARGET, "masked_input_collection"] = sent.frame
    server = kit.attacker(bench)
    server.session = session
    for e in forged:
        bench.server._advertised[e.client] = e
    for v, row in zip(target._P, words, strict=True):
        server.b[TARGET][v], server.s[TARGET][v] = row[:5], row[5:]
    return server.has([TARGET])


def test_substituted_keys_open_a_semi_honest_session_and_not_a_signed_one(kit: Any) -> None:
    assert substitute_keys(kit, active=False)
    with pytest.raises(InvalidSignature):
        substitute_keys(kit, active=True)


def test_invented_clients_are_counted_out_only_with_a_directory(kit: Any) -> None:
    """All the target's peers are the server's: it subtracts what it put in itself."""
    bench = kit.make(5, D=1)
    bench.to("share_keys")
    total = bench.finish()
    own = bench.plain_sum([2, 3, 4, 5])
    opened = [int(x) - y for x, y in zip(total.values.tolist(), own, strict=True)]
    assert [x % bench.config.modulus for x in opened] == bench.plain_sum([1])
    signed = kit.make(5, D=1, active=True)
    known = IdentityDirectory({TARGET: signed.identities[TARGET].public})
    with pytest.raises(ConfigurationError, match="4 of the cohort have no identity"):
        SecAggClient(
            TARGET,
            signed.config,
            context_digest=kit.context,
            policy=ClientPolicy(gamma=0),
            identity=signed.identities[TARGET],
            directory=known,
        )


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("what", ["swapped", "duplicated"])
def test_swapped_and_duplicated_entries_are_refused(kit: Any, what: str, active: bool) -> None:
    bench = kit.make(6, t=4, D=1, active=active).to("share_keys")
    frame = bench.inbox[TARGET]
    entries = list(KeyRoster.decode(kit.body_of(frame), most=6, signed=active).entries)
    if what == "swapped":
        a, b = entries[2], entries[3]
        entries[2:4] = [b._replace(client=a.client), a._replace(client=b.client)]
    else:
        entries[3] = RosterEntry(entries[3].client, *entries[2][1:])
    forged = kit.edit(frame, body=KeyRoster(entries=tuple(entries)).encode())
    if what == "swapped" and not active:
        # Without signatures the keys of two peers can be exchanged; their shares will not open.
        bench.clients[TARGET].receive(forged)
        with pytest.raises(DecryptionFailed):
            deliver_everything(kit, bench)
        return
    with pytest.raises((RosterMismatch, InvalidSignature)):
        bench.clients[TARGET].receive(forged)


def deliver_everything(kit: Any, bench: Any) -> None:
    """The genuine ciphertexts of the other clients, in the session that the target believes in."""
    bench.answer(without=[1])
    session = bench.clients[TARGET]._session
    body = pretend_delivery(kit, bench, bench.clients[TARGET]._P)
    bench.clients[TARGET].receive(kit.edit(bench.inbox[TARGET], type=4, session=session, body=body))


def pretend_delivery(kit: Any, bench: Any, P: Any) -> bytes:
    sealed = []
    for v in P:
        dealt = EncryptedShares.decode(kit.body_of(bench.sent[v, "share_keys"]), peers=len(P))
        sealed.append(dealt[bench.clients[v]._P.index(TARGET)].tobytes())
    return ShareDelivery(present=np.ones(len(P), dtype=np.bool_), ciphertexts=sealed).encode()


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
    """Model inconsistency (Pasquini et al. 2022): the target alone works on a model of its own."""
    bench = kit.make(5, D=1)
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
        session = bench.server._session or bench.config.digest()
        return kit.edit(frame, session=session)

    def for_victim(frame: bytes) -> bytes:
        return kit.edit(frame, session=victim._session or lone.digest())

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
    assert bench.finish(without=[1]).values.tolist() == bench.plain_sum(bench.clients)


# -- signatures -----------------------------------------------------------------------------------


def shrink_with(kit: Any, kind: str) -> tuple[Any, bool]:
    """Own lists for everybody (n=10, t=6: sum of 5), with signatures that are not t."""
    bench = kit.make(10, t=6, D=3, m=1, active=True).to("consistency_check")
    server = kit.attacker(bench, [10] if kind == "duplicated" else [])
    left_out: dict[ClientId, list[ClientId]] = {u: [] for u in server.ids}
    for outside in server.ids[5:]:
        free = sorted((u for u in server.ids if u != outside), key=lambda u: (len(left_out[u]), -u))
        for u in free[:6]:
            left_out[u].append(outside)
    lists = {u: [v for v in server.ids if v not in left_out[u]] for u in server.ids}
    for u in server.honest:
        server.get_signature(u, lists[u])
    for u in server.honest:
        others = [v for v in lists[u] if v != u]
        if kind == "forged":
            signatures = [(v, bytes(64)) for v in others]
        else:
            signatures = [(server.colluders[0], server.collude(ClientId(10), lists[u]))] * 6
        server.ask_signed(u, lists[u], signatures)
    return server, server.has(server.ids[:5])


def test_forged_signatures_shrink_the_sum_only_where_nobody_verifies(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, won = shrink_with(kit, "forged")
    assert not won
    assert (
        all(isinstance(e, InvalidSignature) for e in server.refused) and len(server.refused) == 10
    )
    monkeypatch.setattr(IdentityDirectory, "verify", lambda self, u, signature, message: None)
    server, won = shrink_with(kit, "forged")
    assert won and not server.refused


def test_one_colluders_signature_counts_once(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, won = shrink_with(kit, "duplicated")
    assert not won
    assert {type(e) for e in server.refused} <= {InvalidSignature}
    assert len(server.refused) == 9
    monkeypatch.setattr(client_module, "pairwise", lambda items: ())
    server, _ = shrink_with(kit, "duplicated")
    on_list = [u for u in server.honest if ClientId(10) in lists_with(server, u)]
    answered = {u for u in server.honest if any(u in server.b[v] for v in server.ids if v != u)}
    assert set(on_list) == answered and answered


def lists_with(server: Any, u: ClientId) -> set[ClientId]:
    flags = server.bench.clients[u]._in_U3
    return {v for v, there in zip(server.bench.clients[u]._P, flags, strict=True) if there}


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


@pytest.mark.parametrize("active", [False, True])
def test_two_missing_runs_cut_a_small_sum_off_only_without_the_connectivity_check(
    kit: Any, active: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Semi-honest clients see their neighbours only and believe the size; three are cut off."""
    from securefl.protocols.secagg import params

    monkeypatch.setattr(params, "_check_numbers", lambda **numbers: None)
    bench = kit.make(14, k=4, t=2, D=0, n_min=10, active=active)
    order = bench.server._graph._ring
    at = order.index(TARGET)
    arc = [order[(at + d) % 14] for d in (-1, 0, 1)]
    gone = {order[(at + d) % 14] for d in (-3, -2, 2, 3)}
    bench.to("masked_input_collection")
    bench.answer(without=gone)
    bench.close()
    server = kit.attacker(bench)
    alive = [u for u in server.ids if u not in gone]
    if active:
        assert [server.get_signature(u, alive) for u in alive] == [None] * 10
        assert all(isinstance(e, BelowThreshold) and "2 parts" in str(e) for e in server.refused)
        return
    for u in alive:
        server.ask(u, alive)
    assert not server.refused
    assert server.has(arc) and len(arc) == 3 < bench.config.n_min
