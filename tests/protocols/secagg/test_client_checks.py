"""What a client refuses: one test per check, against a server that cheats."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import (
    BelowThreshold,
    ConfigurationError,
    DecryptionFailed,
    Equivocation,
    LocalProtocolError,
    RosterMismatch,
    SecureFLError,
    UnexpectedMessage,
    WireError,
)
from securefl.modular import RingVector
from securefl.protocols.machine import (
    Aborted,
    MalformedMessage,
    Outbound,
    Reason,
    ShareUnreadable,
)
from securefl.protocols.secagg import ClientPolicy, SecAggClient
from securefl.protocols.secagg.messages import (
    Abort,
    KeyRoster,
    RosterEntry,
    ShareDelivery,
    UnmaskRequest,
)
from securefl.round import SERVER, Adversary, ClientId, GraphSource, Layout, Protocol, RoundId
from securefl.wire import decode_frame, pack_bitmap

ONE = ClientId(1)


def bits(*flags: int) -> np.ndarray:
    return np.array(flags, dtype=np.bool_)


def expect_abort(client: Any, error: Any, reason: Reason) -> None:
    """The machine has given up: one Abort frame with this reason, and nothing any more."""
    assert client.phase == "aborted"
    (outbound,) = error.outbound
    frame = decode_frame(outbound.frame)
    assert (frame.type, Abort.decode(frame.body).reason) == (255, reason)
    assert outbound.recipient == SERVER
    assert client.abort() == []
    with pytest.raises(LocalProtocolError):
        client.start()


# -- before anything is sent ----------------------------------------------------------------------


def test_another_context_emits_nothing(secagg: Any) -> None:
    config = secagg.make().config
    with pytest.raises(ConfigurationError, match="another context"):
        SecAggClient(ONE, config, context_digest=bytes(32), policy=ClientPolicy(gamma=0))


def test_a_stranger_to_the_cohort_is_refused(secagg: Any) -> None:
    config = secagg.make().config
    with pytest.raises(ConfigurationError, match="client 9 is not in the cohort"):
        SecAggClient(ClientId(9), config, context_digest=secagg.context)


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        ({"gamma": "0.5"}, "at least 3 corrupt clients among 5"),
        ({"n_min": 5}, "at least 5 inputs"),
        ({"adversary": Adversary.ACTIVE}, "demands protection against an ACTIVE server"),
    ],
)
def test_a_configuration_weaker_than_the_clients_policy_is_refused(
    secagg: Any, policy: dict[str, Any], what: str
) -> None:
    config = secagg.make().config
    with pytest.raises(ConfigurationError, match=what):
        SecAggClient(ONE, config, context_digest=secagg.context, policy=ClientPolicy(**policy))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"t": 1}, "t must be at least 2"),
        ({"A": 3}, "t must exceed the number of corrupt clients"),
        ({"D": 2}, "only 2 holders"),
        ({"n_min": 3}, "n_min must be in 4..5"),
        ({"n_min": 6}, "n_min must be in 4..5"),
        ({"A": 0}, "assume_no_corruption"),
        ({"k": 2}, "SECAGG is the complete graph"),
        ({"graph_source": GraphSource.BEACON}, "takes no beacon"),
        ({"adversary": Adversary.ACTIVE}, "identit"),
        ({"adversary": Adversary.ACTIVE, "A": 2}, r"2t must exceed h \+ c = 4 \+ 2.*least t=4"),
        ({"protocol": Protocol.SECAGG_PLUS}, "SECAGG"),
        ({"protocol": Protocol.PEERSUM}, "not PEERSUM"),
        ({"m": 1 << 40}, "do not fit one frame"),
    ],
)
def test_an_unsafe_configuration_is_refused_by_both_sides(
    secagg: Any, changes: dict[str, Any], what: str
) -> None:
    from securefl.protocols.secagg import SecAggServer

    config = replace(secagg.make().config, **changes)
    with pytest.raises(ConfigurationError, match=what):
        SecAggClient(ONE, config, context_digest=secagg.context, policy=ClientPolicy(gamma=0))
    with pytest.raises(ConfigurationError, match=what):
        SecAggServer(config)


# -- the roster -----------------------------------------------------------------------------------


def roster_of(secagg: Any, frame: bytes) -> list[RosterEntry]:
    return list(KeyRoster.decode(secagg.body_of(frame), most=100).entries)


def forge_roster(secagg: Any, frame: bytes, entries: list[RosterEntry]) -> bytes:
    return secagg.edit(frame, body=KeyRoster(entries=tuple(entries)).encode())


def respelled(key: bytes) -> bytes:
    """The same X25519 key in other bytes: its top bit is ignored."""
    return key[:31] + bytes(x ^ 0x80 for x in key[31:])


def edits_of_a_roster(entries: list[RosterEntry]) -> dict[str, list[RosterEntry]]:
    own, second, third, *rest = entries
    fresh = os.urandom(32)
    return {
        "own keys swapped": [own._replace(c_pk=own.s_pk, s_pk=own.c_pk), second, third, *rest],
        "own key replaced": [own._replace(s_pk=fresh), second, third, *rest],
        "own entry missing": [second, third, *rest],
        "not ascending": [second, own, third, *rest],
        "one id twice": [own, second, second._replace(c_pk=fresh, s_pk=os.urandom(32)), *rest],
        "a stranger": [*entries[:-1], RosterEntry(ClientId(77), fresh, os.urandom(32))],
        "one key for both uses": [own, second._replace(s_pk=second.c_pk), third, *rest],
        "one key for two clients": [own, second._replace(c_pk=third.c_pk), third, *rest],
        "one channel key, respelled": [
            own,
            second._replace(c_pk=respelled(third.c_pk)),
            third,
            *rest,
        ],
        "one mask key, respelled": [own, second._replace(s_pk=respelled(third.s_pk)), third, *rest],
        "own key given to another": [own, second._replace(s_pk=own.s_pk), third, *rest],
        "a degenerate channel key": [own, second._replace(c_pk=bytes(32)), third, *rest],
        "a degenerate mask key": [own, second._replace(s_pk=bytes(32)), third, *rest],
    }


@pytest.mark.parametrize("what", list(edits_of_a_roster([RosterEntry(ONE, b"", b"")] * 3)))
def test_a_tampered_roster_emits_nothing_but_an_abort(secagg: Any, what: str) -> None:
    bench = secagg.make().to("share_keys")
    client, frame = bench.clients[ONE], bench.inbox[ONE]
    forged = forge_roster(secagg, frame, edits_of_a_roster(roster_of(secagg, frame))[what])
    with pytest.raises(RosterMismatch) as caught:
        client.receive(forged)
    expect_abort(client, caught.value, Reason.ROSTER_MISMATCH)


def test_a_roster_below_n_min_is_refused(secagg: Any) -> None:
    bench = secagg.make(6, t=2, D=2).to("share_keys")
    client, frame = bench.clients[ONE], bench.inbox[ONE]
    with pytest.raises(BelowThreshold) as caught:
        client.receive(forge_roster(secagg, frame, roster_of(secagg, frame)[:3]))
    assert (caught.value.needed, caught.value.had) == (4, 3)
    assert caught.value.phase == "share_keys"
    expect_abort(client, caught.value, Reason.BELOW_THRESHOLD)


def test_a_roster_of_billions_is_refused_before_it_is_read(secagg: Any) -> None:
    bench = secagg.make().to("share_keys")
    body = b"\xff\xff\xff\xff" + bytes(68)
    with pytest.raises(MalformedMessage, match="4294967295 entries"):
        bench.clients[ONE].receive(secagg.edit(bench.inbox[ONE], body=body))


# -- shares ---------------------------------------------------------------------------------------


def delivery_of(bench: Any, secagg: Any) -> ShareDelivery:
    peers = bench.config.n - 1
    return ShareDelivery.decode(secagg.body_of(bench.inbox[ONE]), peers=peers)


def test_too_few_peers_with_shares_end_the_session(secagg: Any) -> None:
    bench = secagg.make().to("masked_input_collection")
    delivery = delivery_of(bench, secagg)
    forged = ShareDelivery(present=bits(1, 1, 0, 0), ciphertexts=delivery.ciphertexts[:2])
    with pytest.raises(BelowThreshold) as caught:
        bench.clients[ONE].receive(secagg.edit(bench.inbox[ONE], body=forged.encode()))
    assert (caught.value.needed, caught.value.had) == (4, 3)
    expect_abort(bench.clients[ONE], caught.value, Reason.BELOW_THRESHOLD)


def test_one_unreadable_share_is_an_event_and_not_the_end(secagg: Any) -> None:
    bench = secagg.make().to("masked_input_collection")
    delivery = delivery_of(bench, secagg)
    broken = [bytes(72), *delivery.ciphertexts[1:]]
    forged = ShareDelivery(present=delivery.present, ciphertexts=broken)
    (event,) = bench.clients[ONE].receive(secagg.edit(bench.inbox[ONE], body=forged.encode()))
    assert event == ShareUnreadable(dealer=ClientId(2))
    assert bench.clients[ONE].wants_input


def test_a_share_word_that_is_no_field_element_is_unreadable(secagg: Any) -> None:
    from securefl.primitives.channel import AgreementKey, PublicKey
    from securefl.protocols.secagg.keys import KeySchedule

    secrets: dict[ClientId, list[bytes]] = {}

    def random_of(u: ClientId) -> Any:
        def random_bytes(n: int) -> bytes:
            secrets.setdefault(u, []).append(os.urandom(n))
            return secrets[u][-1]

        return random_bytes

    bench = secagg.make(random_of=random_of).to("masked_input_collection")
    session = bench.server._end.session
    agreed = AgreementKey(secrets[ClientId(2)][0]).agree(
        PublicKey(AgreementKey(secrets[ONE][0]).public)
    )
    plain = b"\xff\xff\xff\x7f" + bytes(52)  # the value p
    sealed = KeySchedule(Protocol.SECAGG).seal_shares(agreed, session, ClientId(2), ONE, plain)
    delivery = delivery_of(bench, secagg)
    forged = ShareDelivery(
        present=delivery.present, ciphertexts=[sealed, *delivery.ciphertexts[1:]]
    )
    (event,) = bench.clients[ONE].receive(secagg.edit(bench.inbox[ONE], body=forged.encode()))
    assert event == ShareUnreadable(dealer=ClientId(2))


def test_too_few_readable_shares_end_the_session(secagg: Any) -> None:
    bench = secagg.make().to("masked_input_collection")
    delivery = delivery_of(bench, secagg)
    broken = [bytes(72), bytes(72), *delivery.ciphertexts[2:]]
    forged = ShareDelivery(present=delivery.present, ciphertexts=broken)
    with pytest.raises(DecryptionFailed) as caught:
        bench.clients[ONE].receive(secagg.edit(bench.inbox[ONE], body=forged.encode()))
    assert caught.value.culprits == (2, 3)
    expect_abort(bench.clients[ONE], caught.value, Reason.DECRYPTION_FAILED)


def test_reflected_swapped_and_foreign_ciphertexts_never_open(secagg: Any) -> None:
    """Change sender, recipient or session of every ciphertext: none can be read."""
    bench = secagg.make()
    bench.to("masked_input_collection")
    other = secagg.make(nonce=bytes([1] * 32)).to("masked_input_collection")
    inbox = {u: ShareDelivery.decode(secagg.body_of(f), peers=4) for u, f in bench.inbox.items()}
    ids = list(bench.clients)
    sealed = {
        (v, u): inbox[u].ciphertexts[[w for w in ids if w != u].index(v)]
        for u, v in itertools.permutations(ids, 2)
    }
    foreign = ShareDelivery.decode(secagg.body_of(other.inbox[ONE]), peers=4).ciphertexts
    wrong = {
        "swapped senders": [sealed[3, 1], sealed[2, 1], sealed[5, 1], sealed[4, 1]],
        "reflected": [sealed[1, 2], sealed[1, 3], sealed[1, 4], sealed[1, 5]],
        "another recipient's": [sealed[2, 3], sealed[3, 2], sealed[4, 2], sealed[5, 2]],
        "another session's": foreign,
    }
    frame = bench.inbox[ONE]
    for what, ciphertexts in wrong.items():
        fresh = secagg.make(
            random_of=lambda u: np.random.default_rng(u).bytes  # the same client again and again
        ).to("masked_input_collection")
        forged = ShareDelivery(present=inbox[ONE].present, ciphertexts=ciphertexts)
        body = forged.encode()
        client = bench.clients[ONE] if what == "another session's" else fresh.clients[ONE]
        target = frame if client is bench.clients[ONE] else fresh.inbox[ONE]
        with pytest.raises(DecryptionFailed, match="only 0 of 4"):
            client.receive(secagg.edit(target, body=body))


# -- unmasking ------------------------------------------------------------------------------------


def forge_request(secagg: Any, bench: Any, size: int, *alive: int) -> bytes:
    body = UnmaskRequest(size=size, alive=bits(*alive)).encode()
    return secagg.edit(bench.inbox[ONE], body=body)


def test_a_survivor_list_with_somebody_outside_u2_is_equivocation(secagg: Any) -> None:
    bench = secagg.make(6, t=2, D=2).to("share_keys")
    bench.answer(without=[6])
    bench.close()
    bench.answer()
    bench.close()
    client = bench.clients[ONE]
    with pytest.raises(Equivocation, match="not in U2") as caught:
        client.receive(forge_request(secagg, bench, 6, 1, 1, 1, 1, 1))
    expect_abort(client, caught.value, Reason.EQUIVOCATION)


@pytest.mark.parametrize("size", [0, 3, 4, 6])
def test_a_survivor_count_that_does_not_fit_the_list_is_equivocation(
    secagg: Any, size: int
) -> None:
    bench = secagg.make().to("unmasking")
    client = bench.clients[ONE]
    with pytest.raises(Equivocation, match="claims") as caught:
        client.receive(forge_request(secagg, bench, size, 1, 1, 1, 1))
    expect_abort(client, caught.value, Reason.EQUIVOCATION)


@pytest.mark.parametrize("n_min", [4, 5])
def test_no_client_unmasks_below_n_min(secagg: Any, n_min: int) -> None:
    bench = secagg.make(6, t=3, D=1, n_min=n_min).to("unmasking")
    client = bench.clients[ONE]
    alive = [1] * (n_min - 2) + [0] * (7 - n_min)
    with pytest.raises(BelowThreshold) as caught:
        client.receive(forge_request(secagg, bench, n_min - 1, *alive))
    assert (caught.value.needed, caught.value.had) == (n_min, n_min - 1)
    assert caught.value.phase == "unmasking"
    expect_abort(client, caught.value, Reason.BELOW_THRESHOLD)


@pytest.mark.parametrize("layout", list(Layout))
@given(data=st.data())
def test_no_sequence_of_server_messages_makes_a_client_reveal_both_kinds_of_share(
    secagg: Any, layout: Layout, data: st.DataObject
) -> None:
    """A cheating server forges deliveries and requests as it likes; at most one answer leaves."""
    n = 6
    bench = secagg.make(n, t=2, D=2, layout=layout).to("masked_input_collection")
    client, frame = bench.clients[ONE], bench.inbox[ONE]
    delivery = ShareDelivery.decode(secagg.body_of(frame), peers=n - 1)
    flags = st.lists(st.booleans(), min_size=n - 1, max_size=n - 1)

    def deliver() -> bytes:
        present = np.array(data.draw(flags))
        chosen = [c for c, p in zip(delivery.ciphertexts, present, strict=True) if p]
        return secagg.edit(frame, body=ShareDelivery(present=present, ciphertexts=chosen).encode())

    def request() -> bytes:
        alive = np.array(data.draw(flags))
        size = data.draw(st.sampled_from([int(alive.sum()) + 1, int(alive.sum()), n]))
        body = UnmaskRequest(size=size, alive=alive).encode()
        return secagg.edit(frame, type=8, body=body)

    answers: dict[int, list[bytes]] = {}
    kinds: dict[int, set[str]] = {}
    deliveries, requests = [frame], []
    for step in data.draw(st.lists(st.sampled_from("drRI"), min_size=1, max_size=8)):
        if step == "I":
            try:
                out = client.set_input(bench.vectors[ONE])
            except LocalProtocolError:
                continue
        else:
            if step == "d":
                deliveries.append(deliver())
                sent = data.draw(st.sampled_from(deliveries))
            elif step == "r" or not requests:
                requests.append(request())
                sent = requests[-1]
            else:
                sent = data.draw(st.sampled_from(requests))
            try:
                out = client.receive(sent)
            except (SecureFLError, WireError) as error:
                out = list(getattr(error, "outbound", ()))
                assert all(decode_frame(o.frame).type == 255 for o in out)
        for item in out:
            if isinstance(item, Outbound):
                parsed = decode_frame(item.frame)
                answers.setdefault(parsed.type, []).append(item.frame)
                if parsed.type == 9:
                    asked = UnmaskRequest.decode(decode_frame(sent).body, peers=n - 1)
                    for v, alive in zip([2, 3, 4, 5, 6], asked.alive, strict=True):
                        kinds.setdefault(v, set()).add("b" if alive else "s")
                    assert asked.size >= bench.config.n_min
    for kind, frames in answers.items():
        assert len(frames) == 1, f"type {kind} left the client {len(frames)} times"
    assert all(len(k) == 1 for k in kinds.values())


def test_a_client_answers_one_request_only(secagg: Any) -> None:
    bench = secagg.make(6, t=2, D=2).to("unmasking")
    client = bench.clients[ONE]
    first = forge_request(secagg, bench, 6, 1, 1, 1, 1, 1)
    assert len(client.receive(first)) == 1
    assert client.receive(first) == []
    with pytest.raises(Equivocation) as caught:
        client.receive(forge_request(secagg, bench, 5, 0, 1, 1, 1, 1))
    assert caught.value.outbound == ()
    assert client.phase == "done"


# -- frames that are not ours ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"sender": ClientId(2)},
        {"round_id": RoundId(4)},
        {"session": bytes(32)},
        {"protocol": Protocol.LIGHTSECAGG},
        {"signature": bytes(range(64))},
    ],
)
@pytest.mark.parametrize("phase", ["share_keys", "masked_input_collection", "unmasking"])
def test_a_frame_of_another_sender_round_or_session_changes_nothing(
    secagg: Any, phase: str, changes: dict[str, Any]
) -> None:
    bench = secagg.make().to(phase)
    client = bench.clients[ONE]
    with pytest.raises(UnexpectedMessage) as caught:
        client.receive(secagg.edit(bench.inbox[ONE], **changes))
    assert caught.value.outbound == ()
    assert bench.finish().values.tolist() == bench.plain_sum(bench.clients)


def test_a_frame_that_another_party_delivered_is_refused(secagg: Any) -> None:
    bench = secagg.make().to("share_keys")
    with pytest.raises(UnexpectedMessage) as caught:
        bench.clients[ONE].receive(bench.inbox[ONE], ClientId(2))
    assert caught.value.culprits == (2,)
    assert bench.clients[ONE].phase == "share_keys"


# -- calls ----------------------------------------------------------------------------------------


def test_an_input_is_taken_once_and_only_if_it_fits(secagg: Any) -> None:
    bench = secagg.make()
    client = bench.clients[ONE]
    good = bench.vectors[ONE]
    for wrong in (RingVector.zeros(3, 1 << 20), RingVector.zeros(4, 1 << 21)):
        with pytest.raises(LocalProtocolError, match="expected 4 entries modulo 1048576"):
            client.set_input(wrong)
    assert client.set_input(good) == []
    with pytest.raises(LocalProtocolError, match="already"):
        client.set_input(good)
    bench.to("unmasking")
    with pytest.raises(LocalProtocolError, match="already"):
        client.set_input(good)
    assert bench.finish().values.tolist() == bench.plain_sum(bench.clients)


def test_an_early_input_is_masked_when_the_shares_come(secagg: Any) -> None:
    bench = secagg.make()
    for u, client in bench.clients.items():
        client.set_input(bench.vectors[u])
    bench.to("masked_input_collection")
    assert not bench.clients[ONE].wants_input
    assert bench.finish().values.tolist() == bench.plain_sum(bench.clients)


def test_the_callers_vector_is_copied_and_not_changed(secagg: Any) -> None:
    bench = secagg.make().to("masked_input_collection")
    before = bench.vectors[ONE].values.copy()
    assert bench.finish().values.tolist() == bench.plain_sum(bench.clients)
    assert np.array_equal(bench.vectors[ONE].values, before)


def test_start_is_called_once(secagg: Any) -> None:
    client = secagg.make().clients[ONE]
    client.start()
    with pytest.raises(LocalProtocolError, match="start"):
        client.start()


@pytest.mark.parametrize(
    "phase", ["advertise_keys", "share_keys", "masked_input_collection", "unmasking"]
)
def test_abort_ends_the_session_from_every_phase(secagg: Any, phase: str) -> None:
    bench = secagg.make()
    client = bench.clients[ONE]
    if phase != "advertise_keys":
        bench.to(phase)
    outbound, event = client.abort()
    assert event == Aborted(reason=Reason.CLIENT_ABORT, by=ONE)
    assert decode_frame(outbound.frame).type == 255
    assert client.phase == "aborted"
    assert client.abort() == []
    with pytest.raises(LocalProtocolError):
        client.set_input(bench.vectors[ONE])
    if bench.inbox:
        with pytest.raises(UnexpectedMessage):
            client.receive(bench.inbox[ONE])
        assert bench.server.receive(outbound.frame) != []


def test_the_servers_abort_ends_the_session(secagg: Any) -> None:
    bench = secagg.make().to("share_keys")
    frame = bench.inbox[ONE]
    abort = secagg.edit(frame, type=255, body=Abort(reason=Reason.INVALID_SHARE).encode())
    assert bench.clients[ONE].receive(abort) == [Aborted(reason=Reason.INVALID_SHARE, by=SERVER)]
    assert bench.clients[ONE].phase == "aborted"
    for late in (frame, secagg.edit(abort, body=b"\x01\x00")):
        with pytest.raises(UnexpectedMessage):
            bench.clients[ONE].receive(late)
    malformed = secagg.edit(abort, body=b"\x63\x00")
    with pytest.raises(MalformedMessage, match="unknown abort reason 99"):
        bench.clients[ClientId(2)].receive(malformed)


def test_a_machine_can_be_neither_shown_nor_copied(secagg: Any) -> None:
    bench = secagg.make().to("unmasking")
    for machine in (bench.clients[ONE], bench.server):
        for copier in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot be pickled or copied"):
                copier(machine)
    assert repr(bench.clients[ONE]) == "SecAggClient(client_id=1, phase=unmasking, <secrets>)"
    assert repr(bench.server) == "SecAggServer(n=5, phase=unmasking)"


def test_padding_bits_in_a_request_are_malformed(secagg: Any) -> None:
    bench = secagg.make().to("unmasking")
    body = (5).to_bytes(4, "little") + pack_bitmap(bits(1, 1, 1, 1, 1))
    with pytest.raises(MalformedMessage, match="padding") as caught:
        bench.clients[ONE].receive(secagg.edit(bench.inbox[ONE], body=body))
    expect_abort(bench.clients[ONE], caught.value, Reason.MALFORMED)
