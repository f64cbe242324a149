"""Sessions against a server that lies: what a client signs, answers for, and refuses."""

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
    Equivocation,
    InvalidSignature,
    LocalProtocolError,
    RosterMismatch,
    SecureFLError,
    UnexpectedMessage,
)
from securefl.primitives.signing import BadSignature, IdentityDirectory, IdentityKey
from securefl.protocols.machine import ClientDropped, MalformedMessage, Reason
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggServer
from securefl.protocols.secagg.messages import (
    KeyRoster,
    NeighbourRoster,
    SignedUnmaskRequest,
    SurvivorNotice,
    UnmaskRequest,
)
from securefl.round import Adversary, ClientId, GraphSource, Layout
from securefl.wire import decode_frame

ONE, TWO = ClientId(1), ClientId(2)


def given_up(client: Any, error: Any, reason: Reason) -> None:
    assert client.phase == "aborted"
    (out,) = error.outbound
    frame = decode_frame(out.frame)
    assert (frame.type, bytes(frame.body)) == (255, int(reason).to_bytes(2, "little"))


# -- identities -----------------------------------------------------------------------------------


def test_ed25519_gives_the_known_answer_of_rfc_8032() -> None:
    secret = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    key = IdentityKey(secret)
    assert key.public.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert key.sign(b"\x72").hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )


def test_a_directory_knows_its_members_only_and_each_once() -> None:
    one, two = IdentityKey(os.urandom(32)), IdentityKey(os.urandom(32))
    directory = IdentityDirectory({ONE: one.public, TWO: two.public})
    directory.verify(ONE, one.sign(b"text"), b"text")
    for u, signature, text in (
        (TWO, one.sign(b"text"), b"text"),
        (ONE, one.sign(b"text"), b"texu"),
        (ONE, bytes(64), b"text"),
        (ClientId(3), one.sign(b"text"), b"text"),
    ):
        with pytest.raises(BadSignature):
            directory.verify(u, signature, text)
    assert list(directory) == [1, 2] and len(directory) == 2 and TWO in directory
    with pytest.raises(ConfigurationError, match="clients 1 and 2 have one identity key"):
        IdentityDirectory({ONE: one.public, TWO: one.public})
    with pytest.raises(ConfigurationError, match="not 32 bytes"):
        IdentityDirectory({ONE: b"short"})


def test_identity_keys_can_be_neither_shown_nor_copied() -> None:
    import copy
    import pickle

    key = IdentityKey(bytes(range(32)))
    assert "secret" in repr(key) and bytes(range(32)).hex() not in repr(key)
    for action in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            action(key)
    with pytest.raises(ValueError, match="32 bytes"):
        IdentityKey(b"")


def test_without_identities_nobody_takes_part(secagg: Any) -> None:
    bench = secagg.make(active=True)
    directory = IdentityDirectory({u: k.public for u, k in bench.identities.items()})
    partial = IdentityDirectory({u: k.public for u, k in bench.identities.items() if u != 5})
    common = {"context_digest": secagg.context, "policy": ClientPolicy(gamma=0)}
    for arguments, what in (
        ({}, "needs its identity key"),
        ({"identity": bench.identities[ONE]}, "needs its identity key"),
        ({"identity": bench.identities[ONE], "directory": partial}, r"first \[5\].*invented"),
        ({"identity": bench.identities[TWO], "directory": directory}, "another identity key"),
    ):
        with pytest.raises(ConfigurationError, match=what):
            SecAggClient(ONE, bench.config, **common, **arguments)
    for wrong in (None, partial):
        with pytest.raises(ConfigurationError, match="every cohort member needs an identity"):
            SecAggServer(bench.config, directory=wrong)


# -- the roster -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [None, 4])
@pytest.mark.parametrize("what", ["c_pk", "s_pk", "commitment", "signature", "another's"])
def test_a_key_that_its_owner_did_not_sign_is_refused(
    secagg: Any, k: int | None, what: str
) -> None:
    bench = secagg.make(7, k=k, D=1, active=True).to("share_keys")
    client = bench.clients[ONE]
    body = secagg.body_of(bench.inbox[ONE])
    fresh = os.urandom(64)

    def change(entry: Any, other: Any) -> Any:
        if what == "another's":
            return entry._replace(signature=other.signature)
        return entry._replace(**{what: fresh if what == "signature" else fresh[:32]})

    if k is None:
        entries = list(KeyRoster.decode(body, most=7, signed=True).entries)
        entries[2] = change(entries[2], entries[3])
        forged = KeyRoster(entries=tuple(entries)).encode()
        expected: type[SecureFLError] = InvalidSignature
    else:
        roster = NeighbourRoster.decode(body, most=5, signed=True)
        proven = list(roster.entries)
        place = next(i for i in (1, 2) if proven[i].entry.client != 1)
        changed = change(proven[place].entry, proven[place + 1].entry)
        proven[place] = proven[place]._replace(entry=changed)
        # A tree of its own over the changed entries: the paths are right, the signature is not.
        from securefl.protocols.secagg.keys import KeySchedule

        raw = [p.entry.encode() for p in proven]
        tree = KeySchedule(bench.config.protocol).roster_tree(raw)
        own = [p._replace(place=i, path=tree.path(i)) for i, p in enumerate(proven)]
        forged = NeighbourRoster(size=5, root=tree.root, entries=tuple(own)).encode()
        expected = InvalidSignature
    with pytest.raises(expected) as caught:
        client.receive(secagg.edit(bench.inbox[ONE], body=forged))
    given_up(client, caught.value, Reason.INVALID_SIGNATURE)
    assert caught.value.culprits == (0xFFFFFFFF,)


def test_keys_of_another_round_are_refused_although_their_owner_signed_them(secagg: Any) -> None:
    old = secagg.make(active=True, round_id=2).to("share_keys")
    bench = secagg.make(active=True).to("share_keys")
    stale = KeyRoster.decode(secagg.body_of(old.inbox[ONE]), most=5, signed=True).entries
    now = list(KeyRoster.decode(secagg.body_of(bench.inbox[ONE]), most=5, signed=True).entries)
    now[3] = stale[3]
    forged = secagg.edit(bench.inbox[ONE], body=KeyRoster(entries=tuple(now)).encode())
    with pytest.raises(InvalidSignature):
        bench.clients[ONE].receive(forged)


@pytest.mark.parametrize("active", [False, True])
def test_a_roster_of_neighbours_is_proven_entry_by_entry(secagg: Any, active: bool) -> None:
    def attempt(change: Any) -> SecureFLError:
        bench = secagg.make(9, k=4, D=1, active=active).to("share_keys")
        frame = bench.inbox[ONE]
        roster = NeighbourRoster.decode(secagg.body_of(frame), most=5, signed=active)
        forged = change(roster, bench).encode()
        client = bench.clients[ONE]
        with pytest.raises(SecureFLError) as caught:
            client.receive(secagg.edit(frame, body=forged))
        assert client.phase == "aborted"
        return caught.value

    def entries(roster: Any, *proven: Any) -> Any:
        return replace(roster, entries=tuple(proven))

    def another(roster: Any, bench: Any) -> Any:
        """The entry of somebody who is not a neighbour, with a right path."""
        near = {p.entry.client for p in roster.entries}
        far = next(u for u in bench.clients if u not in near)
        body = secagg.body_of(bench.inbox[far])
        shown = NeighbourRoster.decode(body, most=5, signed=active).entries
        proven = next(p for p in shown if p.entry.client == far)
        rest = [p for p in roster.entries if p.entry.client != roster.entries[-1].entry.client]
        rest = [p for p in roster.entries if p.entry.client == 1] + [proven]
        return entries(roster, *sorted(rest, key=lambda p: p.place))

    for change, kind, what in (
        (lambda r, b: replace(r, root=bytes(32)), RosterMismatch, "not in the roster with this"),
        (lambda r, b: replace(r, size=8), RosterMismatch, "root|ascending"),
        (lambda r, b: replace(r, size=10), RosterMismatch, "a roster of 10 in a cohort of 9"),
        (lambda r, b: entries(r, *r.entries[::-1]), RosterMismatch, "places are not ascending"),
        (
            lambda r, b: entries(r, *[p for p in r.entries if p.entry.client != 1]),
            RosterMismatch,
            "own keys",
        ),
        (
            lambda r, b: entries(r, *[p for p in r.entries if p.entry.client == 1]),
            BelowThreshold,
            "",
        ),
        (another, RosterMismatch, "this client's neighbourhood"),
        (
            lambda r, b: entries(r, r.entries[0]._replace(path=(bytes(32),) * 21), *r.entries[1:]),
            MalformedMessage,
            "21 nodes",
        ),
        (lambda r, b: entries(r, *r.entries, r.entries[0]), MalformedMessage, "at most 5"),
    ):
        error = attempt(change)
        assert isinstance(error, kind), (error, what)
        import re

        assert re.search(what, str(error)), (what, error)


def test_a_roster_below_n_min_is_refused_however_few_neighbours_it_shows(secagg: Any) -> None:
    bench = secagg.make(9, k=4, D=1, n_min=9)
    bench.start()
    bench.server._config = replace(bench.config, n_min=8)  # a server with rules of its own
    bench.server._replied.discard(ClientId(9))
    out = bench.server.close_phase()
    frame = next(o.frame for o in out if getattr(o, "recipient", None) == ONE)
    with pytest.raises(BelowThreshold) as caught:
        bench.clients[ONE].receive(frame)
    assert (caught.value.needed, caught.value.had) == (9, 8)


# -- the list of survivors ------------------------------------------------------------------------


def notice(secagg: Any, bench: Any, *alive: int) -> bytes:
    body = SurvivorNotice(alive=np.array([u in alive for u in bench.clients])).encode()
    return secagg.edit(bench.inbox[ONE], body=body)


def test_a_client_signs_no_list_without_itself_with_strangers_or_too_short(secagg: Any) -> None:
    for alive, kind, reason in (
        ([2, 3, 4, 5, 6], Equivocation, Reason.EQUIVOCATION),
        ([1, 2, 3, 4, 5, 6, 7], Equivocation, Reason.EQUIVOCATION),  # 7 never dealt shares
        ([1, 2, 3, 4, 5], BelowThreshold, Reason.BELOW_THRESHOLD),
    ):
        bench = secagg.make(7, t=5, D=1, active=True).to("share_keys")
        bench.answer(without=[7])
        bench.close()
        bench.answer()
        bench.close()
        with pytest.raises(kind) as caught:
            bench.clients[ONE].receive(notice(secagg, bench, *alive))
        given_up(bench.clients[ONE], caught.value, reason)


def test_on_a_ring_names_without_keys_cannot_pad_the_list(secagg: Any) -> None:
    """A neighbour that is not in U2 is noticed although the roster never showed it."""
    bench = secagg.make(9, k=4, D=1, active=True)
    near = bench.clients[ONE]._graph.peers(ONE, bench.clients)
    bench.start(without=[near[0]])
    for _ in range(3):
        bench.close()
        bench.answer() if bench.server.phase != "consistency_check" else None
    with pytest.raises(Equivocation, match="not in U2"):
        bench.clients[ONE].receive(notice(secagg, bench, *bench.clients))


def test_on_a_ring_nobody_signs_a_list_that_falls_apart(secagg: Any) -> None:
    bench = secagg.make(30, k=12, A=1, D=4, n_min=11, t=8, active=True).to("consistency_check")
    order = bench.clients[ONE]._graph._ring
    at = order.index(ONE)
    gone = {order[(at + d) % 30] for d in [*range(7, 13), *range(20, 26)]}
    alive = [u for u in order if u not in gone]
    with pytest.raises(BelowThreshold, match="fall into 2 parts"):
        bench.clients[ONE].receive(notice(secagg, bench, *alive))
    assert bench.clients[ONE].phase == "aborted"


# -- the request ----------------------------------------------------------------------------------


def requests(
    secagg: Any, layout: Layout = Layout.OTHERS
) -> tuple[Any, list[tuple[ClientId, bytes]]]:
    bench = secagg.make(7, t=5, D=1, active=True, layout=layout).to("unmasking")
    most = SignedUnmaskRequest.decode(secagg.body_of(bench.inbox[ONE]), most=6)
    return bench, list(most.signatures)


def ask(secagg: Any, bench: Any, signatures: list[tuple[ClientId, bytes]]) -> Any:
    body = SignedUnmaskRequest(signatures=tuple(signatures)).encode()
    return bench.clients[ONE].receive(secagg.edit(bench.inbox[ONE], body=body))


@pytest.mark.parametrize("layout", list(Layout))
def test_t_signatures_are_enough_and_one_fewer_is_not(secagg: Any, layout: Layout) -> None:
    others = 5 - (layout is Layout.ALL)
    bench, signatures = requests(secagg, layout)
    assert len(signatures) == 6
    assert len(ask(secagg, bench, signatures[:others])) == 1
    bench, signatures = requests(secagg, layout)
    with pytest.raises(BelowThreshold) as caught:
        ask(secagg, bench, signatures[: others - 1])
    assert (caught.value.needed, caught.value.had) == (5, 4)
    given_up(bench.clients[ONE], caught.value, Reason.BELOW_THRESHOLD)


@pytest.mark.parametrize(
    "what", ["twice", "own", "stranger", "another's", "zeros", "descending", "other list", "frame"]
)
def test_a_signature_that_does_not_count_ends_the_session(secagg: Any, what: str) -> None:
    bench, good = requests(secagg)
    keys = bench.clients[ONE]._keys
    session = bench.server._end.session
    other_list = keys.survivor_statement(session, b"\x3f")
    own = bench.identities[ONE].sign(keys.survivor_statement(session, b"\x7f"))
    frame = bench.sent[TWO, "consistency_check"]
    bad = {
        "twice": [good[0], *good[:4]],
        "own": [(ONE, own), *good],
        "stranger": [*good[:-1], (ClientId(99), good[-1][1])],
        "another's": [(TWO, good[1][1]), *good[1:]],
        "zeros": [(TWO, bytes(64)), *good[1:]],
        "descending": good[::-1],
        "other list": [(TWO, bench.identities[TWO].sign(other_list)), *good[1:]],
        "frame": [(TWO, decode_frame(frame).signature), *good[1:]],
    }[what]
    with pytest.raises((InvalidSignature, MalformedMessage)) as caught:
        ask(secagg, bench, bad)
    assert bench.clients[ONE].phase == "aborted"
    assert caught.value.culprits == (0xFFFFFFFF,)


def test_signatures_over_another_session_do_not_count(secagg: Any) -> None:
    """The same clients, the same list, another round."""
    _, old = requests(secagg)
    bench = secagg.make(7, t=5, D=1, active=True, round_id=4).to("unmasking")
    with pytest.raises(InvalidSignature):
        ask(secagg, bench, old)


def test_a_client_answers_one_signed_request_only(secagg: Any) -> None:
    bench, signatures = requests(secagg)
    (answer,) = ask(secagg, bench, signatures)
    assert ask(secagg, bench, signatures) == []
    with pytest.raises(Equivocation) as caught:
        ask(secagg, bench, signatures[:5])
    assert caught.value.outbound == () and answer.frame


# -- the server -----------------------------------------------------------------------------------


def test_a_frame_with_a_wrong_signature_costs_its_sender_the_place(secagg: Any) -> None:
    bench = secagg.make(7, t=5, D=1, active=True)
    frames = {u: c.start()[0].frame for u, c in bench.clients.items()}
    bad = bytearray(frames[ONE])
    bad[-1] ^= 1
    (event,) = bench.server.receive(bytes(bad))
    assert event == ClientDropped(
        client=ONE, phase="advertise_keys", reason=Reason.INVALID_SIGNATURE
    )
    bench.server.receive(frames[TWO])
    changed = secagg.edit(frames[TWO], body=os.urandom(96))
    # Client 2 has replied: a forged second frame must not count as its equivocation.
    with pytest.raises(InvalidSignature):
        bench.server.receive(changed)
    abort = secagg.edit(frames[TWO], type=255, body=b"\x08\x00")
    with pytest.raises(InvalidSignature):
        bench.server.receive(abort)
    with pytest.raises(UnexpectedMessage, match="an unsigned frame"):
        bench.server.receive(secagg.edit(frames[ClientId(3)], signature=b""))
    for u in list(frames)[2:]:
        assert bench.server.receive(frames[u]) == []
    bench.close()
    vector = bench.finish(without=[1])
    assert vector.values.tolist() == bench.plain_sum(range(2, 8))


def test_a_signature_on_another_list_costs_its_author_the_answer(secagg: Any) -> None:
    bench = secagg.make(7, t=4, D=1, active=True, A=1).to("consistency_check")
    wrong = bench.identities[ONE].sign(b"something else")
    bench.answer(without=[1])
    frame = bench.clients[ONE].receive(bench.inbox[ONE])[0].frame
    (event,) = bench.server.receive(bench.signed(ONE, secagg.edit(frame, body=wrong)))
    assert (event.client, event.reason) == (1, Reason.INVALID_SIGNATURE)
    bench.close()
    assert bench.server.survivors.U4 == (2, 3, 4, 5, 6, 7)
    assert bench.finish(without=[1]).values.tolist() == bench.plain_sum(bench.clients)
    assert bench.server.survivors.U3 == (1, 2, 3, 4, 5, 6, 7)
    assert bench.server.survivors.U5 == (2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize("silent", [3, 4])
def test_on_a_ring_every_secret_needs_t_neighbours_that_signed(secagg: Any, silent: int) -> None:
    """Of 8 neighbours of client 1, with t = 5, three may be silent and not four."""
    bench = secagg.make(20, k=8, t=5, A=1, D=1, n_min=12, active=True).to("consistency_check")
    graph = bench.clients[ONE]._graph
    near = graph.peers(ONE, bench.clients)[:silent]
    bench.answer(without=near)
    most = min(graph.holder_count(u, set(bench.clients) - set(near)) for u in bench.clients)
    if most < 5:
        with pytest.raises(BelowThreshold) as caught:
            bench.server.close_phase()
        assert (caught.value.needed, caught.value.had) == (5, most)
        assert caught.value.phase == "consistency_check"
        return
    assert silent == 3
    bench.close()
    assert bench.finish(without=near).values.tolist() == bench.plain_sum(bench.clients)


# -- the beacon -----------------------------------------------------------------------------------


def test_the_graph_waits_for_the_beacon(secagg: Any) -> None:
    bench = secagg.make(9, k=4, D=1, active=True, beacon=None)
    assert bench.config.graph_source is GraphSource.BEACON
    bench.start()
    assert not bench.server.sufficient
    with pytest.raises(LocalProtocolError, match="set_beacon"):
        bench.server.close_phase()
    with pytest.raises(LocalProtocolError, match="32 bytes"):
        bench.server.set_beacon(b"")
    value = os.urandom(32)
    bench.server.set_beacon(value)
    with pytest.raises(LocalProtocolError, match="has one already"):
        bench.server.set_beacon(value)
    bench.close()
    client = bench.clients[ONE]
    with pytest.raises(LocalProtocolError, match="before the beacon"):
        client.receive(bench.inbox[ONE])
    assert client.phase == "share_keys"
    with pytest.raises(LocalProtocolError, match="32 bytes"):
        client.set_beacon("no bytes")
    for machine in bench.clients.values():
        machine.set_beacon(value)
    with pytest.raises(LocalProtocolError, match="has one already"):
        client.set_beacon(value)
    assert bench.finish().values.tolist() == bench.plain_sum(bench.clients)
    dead = secagg.make(9, k=4, D=1, active=True, beacon=None).clients[ONE]
    dead.abort()
    with pytest.raises(LocalProtocolError, match="in phase aborted"):
        dead.set_beacon(value)


def test_a_server_with_another_beacon_value_gets_nothing(secagg: Any) -> None:
    bench = secagg.make(20, k=4, D=1, active=True, beacon=None)
    bench.server.set_beacon(hashlib.sha256(b"chosen").digest())
    for client in bench.clients.values():
        client.set_beacon(hashlib.sha256(b"public").digest())
    bench.start()
    bench.close()
    for u, client in bench.clients.items():
        with pytest.raises((RosterMismatch, BelowThreshold)):
            client.receive(bench.inbox[u])


def test_a_ring_chosen_by_an_active_server_is_refused(secagg: Any) -> None:
    config = secagg.make(9, k=4, D=1).config
    lying = replace(config, adversary=Adversary.ACTIVE, t=3)
    with pytest.raises(ConfigurationError, match="surrounds its target"):
        SecAggServer(lying)
    beacon = secagg.make(9, k=4, D=1, active=True).config
    with pytest.raises(ConfigurationError, match="no published proof"):
        SecAggClient(ONE, beacon, context_digest=secagg.context, policy=ClientPolicy(gamma=0))


# -- a ring needs more than enough clients --------------------------------------------------------


def ring_of_twelve(secagg: Any) -> tuple[Any, list[ClientId]]:
    """k = 6, t = 3, nine inputs wanted; and the neighbours of client 1."""
    bench = secagg.make(12, k=6, t=3, D=1, n_min=8)
    return bench, bench.clients[ONE]._graph.peers(ONE, bench.clients)


@pytest.mark.parametrize("gone", [3, 4])
def test_on_a_ring_inputs_are_collected_only_while_every_secret_has_t_holders(
    secagg: Any, gone: int
) -> None:
    bench, near = ring_of_twelve(secagg)
    bench.to("masked_input_collection")
    bench.answer(without=near[:gone])
    left = [u for u in bench.clients if u not in near[:gone]]
    fewest = min(bench.server._graph.holder_count(u, set(left)) for u in bench.clients)
    assert bench.server.sufficient is (fewest >= 3)
    if gone == 4:
        assert len(left) == 8 == bench.config.n_min
        with pytest.raises(BelowThreshold, match="holders") as caught:
            bench.server.close_phase()
        assert (caught.value.needed, caught.value.had) == (3, fewest)
        assert caught.value.phase == "masked_input_collection"


def test_on_a_ring_a_client_answers_only_with_t_surviving_neighbours(secagg: Any) -> None:
    for alive, enough in ((3, True), (2, False)):
        bench, near = ring_of_twelve(secagg)
        bench.to("unmasking")
        flags = np.array([i < alive for i in range(len(near))])
        body = UnmaskRequest(size=8, alive=flags).encode()
        forged = secagg.edit(bench.inbox[ONE], body=body)
        if enough:
            assert len(bench.clients[ONE].receive(forged)) == 1
            continue
        with pytest.raises(BelowThreshold) as caught:
            bench.clients[ONE].receive(forged)
        assert (caught.value.needed, caught.value.had) == (4, 3)
        given_up(bench.clients[ONE], caught.value, Reason.BELOW_THRESHOLD)


@pytest.mark.parametrize("size", [3, 4, 9, 10])
def test_on_a_ring_a_claimed_size_must_be_possible(secagg: Any, size: int) -> None:
    """Three neighbours of six are alive: between 4 and 3 + 1 + 5 clients survive."""
    bench = secagg.make(12, k=6, t=3, D=1, n_min=4).to("unmasking")
    flags = np.array([True, True, True, False, False, False])
    body = UnmaskRequest(size=size, alive=flags).encode()
    forged = secagg.edit(bench.inbox[ONE], body=body)
    if 4 <= size <= 9:
        assert len(bench.clients[ONE].receive(forged)) == 1
        return
    with pytest.raises(Equivocation, match=f"claims {size}"):
        bench.clients[ONE].receive(forged)


def test_on_a_ring_a_dropout_that_shared_no_mask_with_a_survivor_needs_no_opening(
    secagg: Any,
) -> None:
    """All six neighbours of one client are gone, two of them after dealing shares, as is itself."""
    bench = secagg.make(16, k=6, t=2, D=1, n_min=9)
    order = bench.server._graph._ring
    bench.start(without=[order[d] for d in (-3, -1, 1, 3)])
    bench.close()
    bench.answer()
    bench.close()
    bench.answer(without=[order[d] for d in (-2, 0, 2)])
    bench.close()
    assert set(bench.server._unmasking.needed[1].tolist()) == {True, False}
    vector = bench.finish()
    survivors = [u for u in bench.clients if u not in {order[d] for d in range(-3, 4)}]
    assert vector.values.tolist() == bench.plain_sum(survivors)
