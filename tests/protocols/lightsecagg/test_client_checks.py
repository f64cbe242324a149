"""What a client refuses from the server and its peers, and that nothing secret survives it."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
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
    RosterMismatch,
    SecureFLError,
)
from securefl.modular import RingVector
from securefl.primitives.field import PRIME
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.lightsecagg import ClientPolicy, LightSecAggClient
from securefl.protocols.lightsecagg.messages import (
    EncodedShare,
    KeyRoster,
    ShareClose,
)
from securefl.protocols.lightsecagg.transitions import MessageType
from securefl.protocols.machine import Aborted, MalformedMessage, Outbound, ShareUnreadable
from securefl.round import SERVER, ClientId

ONE, TWO, THREE = ClientId(1), ClientId(2), ClientId(3)
BOTH = pytest.mark.parametrize("active", [False, True])


def refused(bench: Any, frame: bytes, error: type[SecureFLError]) -> Any:
    """Client 1 refuses this frame for good: one Abort frame, secrets gone, silence."""
    client = bench.clients[ONE]
    with pytest.raises(error) as caught:
        client.receive(frame)
    assert client.phase == "aborted"
    assert client._secrets is None
    (out,) = caught.value.outbound
    assert out.recipient == SERVER
    with pytest.raises(LocalProtocolError):
        client.set_input(bench.vectors[ONE])
    return caught.value


@BOTH
@pytest.mark.parametrize(
    "change",
    [
        lambda e: e[1:],
        lambda e: [e[1], e[0], *e[2:]],
        lambda e: [*e, e[-1]._replace(client=ClientId(99))],
        lambda e: [*e[:3], e[3]._replace(c_pk=e[4].c_pk), *e[4:]],
        lambda e: [e[0]._replace(c_pk=bytes(31) + b"\x09"), *e[1:]],
        lambda e: [e[0], e[0], *e[1:]],
    ],
    ids=["without oneself", "swapped", "stranger", "key twice", "own key replaced", "entry twice"],
)
def test_a_changed_roster_is_refused_before_anything_is_dealt(
    light: Any, active: bool, change: Callable[[list[Any]], list[Any]]
) -> None:
    bench = light.make(active=active).to("share_masks")
    (frame,) = bench.inbox[ONE]
    entries = list(KeyRoster.decode(light.body_of(frame), most=6, signed=active).entries)
    body = KeyRoster(entries=tuple(change(entries))).encode()
    over = len(change(entries)) > 6
    error = refused(
        bench, light.edit(frame, body=body), MalformedMessage if over else RosterMismatch
    )
    assert error.culprits == (SERVER,)


def test_a_substituted_key_is_noticed_by_its_signature_and_only_by_it(light: Any) -> None:
    for active in (False, True):
        bench = light.make(active=active).to("share_masks")
        (frame,) = bench.inbox[ONE]
        entries = list(KeyRoster.decode(light.body_of(frame), most=6, signed=active).entries)
        entries[1] = entries[1]._replace(c_pk=bytes([9]) + bytes(31))
        forged = light.edit(frame, body=KeyRoster(entries=tuple(entries)).encode())
        if active:
            refused(bench, forged, InvalidSignature)
        else:
            (out,) = bench.clients[ONE].receive(forged)
            # Another roster is another session: nobody understands this client any more.
            with pytest.raises(SecureFLError):
                bench.server.receive(out.frame)


def test_a_degenerate_key_names_its_owner(light: Any) -> None:
    bench = light.make().to("share_masks")
    (frame,) = bench.inbox[ONE]
    entries = list(KeyRoster.decode(light.body_of(frame), most=6).entries)
    entries[1] = entries[1]._replace(c_pk=bytes(32))
    body = KeyRoster(entries=tuple(entries)).encode()
    error = refused(bench, light.edit(frame, body=body), RosterMismatch)
    assert error.culprits == (TWO,)


@BOTH
def test_a_short_roster_is_below_threshold(light: Any, active: bool) -> None:
    bench = light.make(active=active).to("share_masks")
    (frame,) = bench.inbox[ONE]
    entries = KeyRoster.decode(light.body_of(frame), most=6, signed=active).entries
    body = KeyRoster(entries=entries[:4]).encode()
    error = refused(bench, light.edit(frame, body=body), BelowThreshold)
    assert (error.needed, error.had) == (5, 4)


def collected(light: Any, **options: Any) -> tuple[Any, dict[ClientId, bytes], bytes]:
    """Client 1 has read nothing yet; the coded shares for it by dealer, and the ShareClose."""
    bench = light.make(**options)
    bench.start()
    bench.close()
    bench.answer()
    bench.close()
    *shares, close = bench.inbox[ONE]
    assert light.kind_of(close) is MessageType.SHARE_CLOSE
    by_dealer = {ClientId(int.from_bytes(light.body_of(f)[:4], "little")): f for f in shares}
    return bench, by_dealer, close


def with_ciphertext(light: Any, frame: bytes, dealer: int, ciphertext: bytes) -> bytes:
    body = EncodedShare(dealer=ClientId(dealer), ciphertext=ciphertext).encode()
    return light.edit(frame, body=body)


def test_a_share_of_another_dealer_direction_session_or_with_one_bit_changed_does_not_open(
    light: Any,
) -> None:
    bench, shares, _ = collected(light)
    _, others, _ = collected(light)
    raw = {v: light.body_of(f)[4:] for v, f in shares.items()}
    to_two = [light.body_of(f) for f in bench.seen[TWO, "share_masks"]]
    own = next(body[4:] for body in to_two if body[:4] == b"\1\0\0\0")
    flipped = bytes([raw[TWO][0] ^ 1]) + raw[TWO][1:]
    cases = [raw[THREE], own, light.body_of(others[TWO])[4:], flipped, bytes(len(own))]
    for ciphertext in cases:
        again = copy_of_client(light, bench)
        (event,) = again.receive(with_ciphertext(light, shares[TWO], 2, ciphertext))
        assert event == ShareUnreadable(dealer=TWO)
        assert TWO not in again._secrets.shares
    assert bench.clients[ONE].receive(shares[TWO]) == []


def copy_of_client(light: Any, bench: Any) -> Any:
    """Client 1 in the state before its first coded share: played again on the same frames."""
    again = LightSecAggClient(
        ONE,
        bench.config,
        context_digest=light.context,
        policy=ClientPolicy(gamma=0),
        random_bytes=lambda n: bytes([7]) * n,
    )
    again.start()
    # Its machine cannot be copied; what it agreed on is taken from the genuine one.
    source = bench.clients[ONE]
    again._end.session, again._P, again._phase = source._end.session, source._P, source._phase
    again._secrets.channel_keys = dict(source._secrets.channel_keys)
    return again


def test_shares_of_strangers_of_oneself_and_of_the_wrong_length_are_malformed(light: Any) -> None:
    for dealer, size in ((99, None), (1, None), (2, -1), (2, 1)):
        bench, shares, _ = collected(light)
        raw = light.body_of(shares[TWO])[4:]
        raw = raw if size is None else raw[:size] if size < 0 else raw + b"\0"
        refused(bench, with_ciphertext(light, shares[TWO], dealer, raw), MalformedMessage)


def test_a_share_word_that_is_no_field_element_makes_the_share_unreadable(light: Any) -> None:
    bench, shares, _ = collected(light)
    client, sender = bench.clients[ONE], TWO
    key = client._secrets.channel_keys[sender]
    from securefl.primitives.channel import seal_once

    words = np.full(client._code.L, PRIME, dtype="<u4").tobytes()
    aad = client._keys._aad(client._end.session, sender, ONE)
    frame = with_ciphertext(light, shares[sender], sender, seal_once(key, words, aad))
    assert client.receive(frame) == [ShareUnreadable(dealer=sender)]


@BOTH
def test_an_unreadable_or_missing_share_stops_only_its_holder_and_only_if_the_dealer_stays(
    light: Any, active: bool
) -> None:
    for dropped in (False, True):
        bench, shares, _ = collected(light, active=active)
        flipped = light.body_of(shares[TWO])[4:]
        bad = with_ciphertext(light, shares[TWO], 2, bytes(len(flipped)))
        bench.inbox[ONE] = [bad if f == shares[TWO] else f for f in bench.inbox[ONE]]
        bench.answer(without=[2] if dropped else [])
        if dropped:
            assert bench.finish().values.tolist() == bench.plain_sum([1, 3, 4, 5, 6])
            continue
        bench.close()
        (frame,) = bench.inbox.pop(ONE)
        error = refused(bench, frame, DecryptionFailed)
        assert error.culprits == (TWO,)
        bench.server.receive(error.outbound[0].frame)
        # The others open the sum, and client 1's input is in it.
        assert bench.finish().values.tolist() == bench.plain_sum(range(1, 7))


def test_no_share_is_taken_after_the_shares_were_closed(light: Any) -> None:
    bench, shares, close = collected(light)
    client = bench.clients[ONE]
    client.receive(shares[TWO])
    client.receive(close)
    assert client.receive(shares[TWO]) == []  # a repeat
    with pytest.raises(SecureFLError, match="ENCODED_SHARE in phase"):
        client.receive(shares[THREE])
    assert client.phase == "masked_input_collection"


@pytest.mark.parametrize(
    ("U2", "error"),
    [([2, 3, 4, 5, 6], Equivocation), ([1, 2, 3, 4], BelowThreshold)],
    ids=["without oneself", "too few"],
)
def test_a_wrong_list_of_dealers_is_refused(
    light: Any, U2: list[int], error: type[SecureFLError]
) -> None:
    bench, _, close = collected(light)
    flags = np.array([u in U2 for u in range(1, 7)])
    refused(bench, light.edit(close, body=ShareClose(alive=flags).encode()), error)


def test_dealers_without_keys_are_refused_and_padding_bits_too(light: Any) -> None:
    bench = light.make(D=1)
    bench.start(without=[6])
    bench.close()
    bench.answer()
    bench.close()
    close = bench.inbox[ONE][-1]
    everybody = ShareClose(alive=np.ones(6, dtype=np.bool_)).encode()
    refused(bench, light.edit(close, body=everybody), Equivocation)
    bench, _, close = collected(light)
    refused(bench, light.edit(close, body=b"\xff"), MalformedMessage)


@BOTH
def test_survivors_must_have_dealt(light: Any, active: bool) -> None:
    bench = light.make(active=active, D=2, U=4)
    bench.start()
    bench.close()
    for _ in range(2):
        bench.answer(without=[6])
        bench.close()
    (frame,) = bench.inbox[ONE]
    refused(bench, light.edit(frame, body=b"\x3f"), Equivocation)


@BOTH
def test_an_input_is_taken_once_in_the_right_shape_and_early_if_one_likes(
    light: Any, active: bool
) -> None:
    bench = light.make(active=active)
    client, vector = bench.clients[ONE], bench.vectors[ONE]
    for wrong in (
        RingVector(vector.values[:-1].copy(), PRIME),
        RingVector(vector.values // np.uint32(2), 1 << 31),
    ):
        with pytest.raises(LocalProtocolError, match="expected 5 entries modulo 2147483647"):
            client.set_input(wrong)
    assert client.set_input(vector) == []
    with pytest.raises(LocalProtocolError, match="difference"):
        client.set_input(vector)
    bench.to("masked_input_collection")
    bench.answer()
    assert client.masked_input_emitted
    bench.close()
    assert bench.finish().values.tolist() == bench.plain_sum(range(1, 7))


def test_the_context_the_cohort_and_identities_are_checked_before_anything_is_sent(
    light: Any,
) -> None:
    bench = light.make(active=True)
    key = IdentityKey(bytes(32))
    directory = IdentityDirectory({u: k.public for u, k in bench.identities.items()})
    good = {"context_digest": light.context, "policy": ClientPolicy(gamma=0)}
    for u, changes, message in (
        (99, {}, "not in the cohort"),
        (1, {"context_digest": bytes(32)}, "another context"),
        (1, {}, "needs its identity key"),
        (1, {"identity": key, "directory": directory}, "another identity key"),
        (1, {"identity": key, "directory": IdentityDirectory({})}, "no identity in the directory"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            LightSecAggClient(ClientId(u), bench.config, **{**good, **changes})


@BOTH
def test_nothing_secret_survives_the_end_and_nothing_can_be_copied(
    light: Any, active: bool
) -> None:
    bench = light.make(active=active)
    machine = bench.clients[ONE]
    bench.to("recovery" if not active else "consistency_check")
    held = machine._secrets
    assert held.mask is None
    assert held.words is None
    assert held.c is None
    assert held.channel_keys == {}
    arrays = [a for a in held.shares.values() if a.base is None]
    bench.finish()
    assert machine.phase == "done"
    assert machine._secrets is None
    assert held.shares == {}
    for array in arrays:
        owners = [o for o in gc.get_referrers(array) if isinstance(o, dict) and o is not held]
        assert not owners
    for text in (repr(machine), repr(bench.server)):
        assert "array" not in text
    for copying in (pickle.dumps, copy.copy, copy.deepcopy):
        for whole in (machine, bench.server):
            with pytest.raises(TypeError, match="cannot be pickled or copied"):
                copying(whole)


def test_an_abort_of_either_side_wipes_and_is_told_once(light: Any) -> None:
    bench = light.make().to("recovery")
    client = bench.clients[ONE]
    out, event = client.abort()
    assert isinstance(out, Outbound)
    assert event == Aborted(reason=event.reason, by=ONE)
    assert client._secrets is None
    assert client.abort() == []
    frame = light.edit(bench.inbox[TWO][0], type=255, body=b"\x08\x00")
    frame = light.edit(frame, session=bench.config.digest())
    (event,) = bench.clients[TWO].receive(frame)
    assert event.by == SERVER
    assert bench.clients[TWO].phase == "aborted"
    refused_frame = light.edit(frame, body=b"\x08\x00\x00")
    with pytest.raises(MalformedMessage):
        bench.clients[THREE].receive(refused_frame)
