"""What the server refuses, whom it drops, and what it makes of wrong answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from securefl.errors import (
    BelowThreshold,
    ConfigurationError,
    InvalidShare,
    InvalidSignature,
    UnexpectedMessage,
)
from securefl.primitives.field import PRIME
from securefl.primitives.signing import IdentityDirectory
from securefl.protocols.lightsecagg import LightSecAggServer
from securefl.protocols.machine import ClientDropped, ClientEquivocated, Reason
from securefl.round import ClientId
from securefl.wire import pack_bitmap

ONE = ClientId(1)
BOTH = pytest.mark.parametrize("active", [False, True])


def changed(light: Any, bench: Any, frame: bytes, body: bytes) -> bytes:
    made = light.edit(frame, body=body)
    return bench.signed(ONE, made) if bench.identities else made


def last_words(light: Any, active: bool, phase: str) -> tuple[Any, bytes]:
    """A session in which only client 1's frame of this phase has not reached the server."""
    bench = light.make(active=active)
    if phase == "advertise_keys":
        bench.start(without=[1])
        return bench, bench.clients[ONE].start()[0].frame
    bench.to(phase)
    inbox = bench.inbox.pop(ONE)
    for u in sorted(bench.inbox):
        bench.read(u)
    client, frame = bench.clients[ONE], b""
    for waiting in inbox:
        out = client.receive(waiting)
        if client.wants_input:
            out = client.set_input(bench.vectors[ONE])
        frame = out[-1].frame if out else frame
    return bench, frame


@BOTH
@pytest.mark.parametrize("phase", ["advertise_keys", "share_masks", "masked_input_collection",
                                   "consistency_check", "recovery"])  # fmt: skip
def test_a_wrong_length_drops_its_sender_and_the_round_goes_on(
    light: Any, active: bool, phase: str
) -> None:
    if phase == "consistency_check" and not active:
        return
    for change in (lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""):
        bench, frame = last_words(light, active, phase)
        body = change(light.body_of(frame))
        (event,) = bench.server.receive(changed(light, bench, frame, body))
        assert event == ClientDropped(client=ONE, phase=phase, reason=Reason.MALFORMED)
        with pytest.raises(UnexpectedMessage, match="dropped before"):
            bench.server.receive(frame)
        before_input = phase in ("advertise_keys", "share_masks", "masked_input_collection")
        bench.close()
        inside = range(2, 7) if before_input else range(1, 7)
        assert bench.finish(without=[1]).values.tolist() == bench.plain_sum(inside)


@BOTH
@pytest.mark.parametrize("phase", ["masked_input_collection", "recovery"])
def test_a_value_that_is_no_field_element_drops_its_sender(
    light: Any, active: bool, phase: str
) -> None:
    bench, frame = last_words(light, active, phase)
    body = np.full(len(light.body_of(frame)) // 4, PRIME, dtype="<u4").tobytes()
    (event,) = bench.server.receive(changed(light, bench, frame, body))
    assert event.reason is Reason.MALFORMED
    if phase == "recovery":
        bench.close()
        assert bench.server.result.vector.values.tolist() == bench.plain_sum(range(1, 7))


def test_duplicate_and_degenerate_keys_and_the_count_of_shares(light: Any) -> None:
    bench = light.make()
    bench.start(without=[1, 2])
    (first,) = bench.clients[ONE].start()
    bench.server.receive(first.frame)
    (second,) = bench.clients[ClientId(2)].start()
    copied = light.edit(second.frame, body=light.body_of(first.frame))
    (event,) = bench.server.receive(copied)
    assert event.reason is Reason.DUPLICATE_KEY
    bench = light.make()
    (first,) = bench.clients[ONE].start()
    (event,) = bench.server.receive(light.edit(first.frame, body=bytes(32)))
    assert event.reason is Reason.MALFORMED
    bench, frame = last_words(light, False, "share_masks")
    body = light.body_of(frame)
    one_less = b"\4\0\0\0" + body[4 : 4 + (len(body) - 4) // 5 * 4]
    (event,) = bench.server.receive(light.edit(frame, body=one_less))
    assert event.reason is Reason.MALFORMED


def test_late_frames_repeats_and_second_versions(light: Any) -> None:
    bench, frame = last_words(light, False, "masked_input_collection")
    other = bench.sent[ClientId(2), "masked_input_collection"]
    assert bench.server.receive(other) == []
    (event,) = bench.server.receive(light.edit(other, body=bytes(20)))
    assert event == ClientEquivocated(client=ClientId(2), phase="masked_input_collection")
    bench.close()
    (event,) = bench.server.receive(frame)
    assert event == ClientDropped(client=ONE, phase="recovery", reason=Reason.LATE)
    assert bench.finish().values.tolist() == bench.plain_sum(range(2, 7))


def test_unsigned_wrongly_signed_and_swapped_signatures_in_active_sessions(light: Any) -> None:
    bench, frame = last_words(light, True, "masked_input_collection")
    with pytest.raises(UnexpectedMessage, match="an unsigned frame"):
        bench.server.receive(light.edit(frame, signature=b""))
    forged = light.edit(frame, body=bytes(20))
    (event,) = bench.server.receive(forged)  # due now: its alleged sender is dropped
    assert event.reason is Reason.INVALID_SIGNATURE
    other = bench.sent[ClientId(2), "masked_input_collection"]
    with pytest.raises(InvalidSignature):
        bench.server.receive(light.edit(other, body=bytes(20)))
    bench, frame = last_words(light, True, "consistency_check")
    identity = bench.identities[ONE]
    elsewhere = bench.server._end.keys.survivor_statement(
        bench.server._end.session, pack_bitmap(np.array([1, 1, 1, 1, 1, 0], dtype=np.bool_))
    )
    body = identity.sign(elsewhere)
    (event,) = bench.server.receive(changed(light, bench, frame, body))
    assert event.reason is Reason.INVALID_SIGNATURE
    with pytest.raises(ConfigurationError, match="needs an identity in directory"):
        LightSecAggServer(bench.config)
    with pytest.raises(ConfigurationError, match="6 have none"):
        LightSecAggServer(bench.config, directory=IdentityDirectory({}))


@BOTH
def test_below_threshold_in_recovery_opens_nothing(light: Any, active: bool) -> None:
    bench = light.make(active=active).to("recovery")
    bench.answer(without=[1, 2])
    assert not bench.server.sufficient
    with pytest.raises(BelowThreshold) as caught:
        bench.server.close_phase()
    assert (caught.value.needed, caught.value.had) == (5, 4)
    assert bench.server.result is None
    assert bench.server._total is None
    assert {o.recipient for o in caught.value.outbound} == {1, 2}


def answers(light: Any, wrong: list[int], *, n: int, U: int, T: int, A: int) -> Any:
    """A session whose clients in ``wrong`` answer with something else."""
    bench = light.make(n, U=U, T=T, A=A, D=n - U, m=7).to("recovery")
    for u in sorted(bench.inbox):
        (frame,) = bench.inbox[u]
        (out,) = bench.clients[u].receive(frame)
        sent = out.frame
        if u in wrong:
            body = bytearray(light.body_of(sent))
            body[0] ^= 1
            sent = light.edit(sent, body=bytes(body))
        bench.server.receive(sent)
    return bench


def test_wrong_answers_are_left_out_and_their_holders_named(light: Any) -> None:
    n, U, T = 9, 5, 2
    for wrong in ([], [4], [1, 9]):
        bench = answers(light, wrong, n=n, U=U, T=T, A=2)
        bench.close()
        result = bench.server.result
        assert result.vector.values.tolist() == bench.plain_sum(range(1, n + 1))
        assert result.survivors == tuple(range(1, n + 1))
        assert {holder for _, holder in result.mismatched_pairs} == set(wrong)
        assert set(result.mismatched_pairs) == {(u, v) for u in range(1, n + 1) for v in wrong}
        assert result.verified
        assert result.min_honest == n - T


def test_too_many_wrong_answers_open_nothing_and_blame_nobody(light: Any) -> None:
    bench = answers(light, [1, 2, 3], n=9, U=5, T=2, A=2)
    with pytest.raises(InvalidShare) as caught:
        bench.server.close_phase()
    assert caught.value.culprits == ()
    assert bench.server.phase == "aborted"
    assert bench.server.result is None
    assert bench.server._answers == {}


@pytest.mark.parametrize(
    ("wrong", "A", "verified"), [(0, 4, True), (1, 3, True), (1, 4, False), (2, 2, True),
                                 (2, 3, False)],
)  # fmt: skip
def test_the_sum_is_verified_only_with_u_plus_a_right_answers(
    light: Any, wrong: int, A: int, verified: bool
) -> None:
    """N = 10, U = 6: M - e >= U + A, for e wrong answers of M = 10."""
    bench = answers(light, list(range(1, wrong + 1)), n=10, U=6, T=A, A=A)
    bench.close()
    assert bench.server.result.vector.values.tolist() == bench.plain_sum(range(1, 11))
    assert bench.server.result.verified is verified


def test_below_u_plus_a_right_answers_colluders_can_change_the_sum_unseen(light: Any) -> None:
    """Why ``verified`` is needed: A = 2 of M = 6 answers, U = 5, add a polynomial that is zero at
    the four honest points. All six lie on one polynomial, the sum is wrong, and it says unverified.
    """
    n, U = 6, 5
    bench = light.make(n, U=U, T=2, A=2, D=1, m=3).to("recovery")
    points = {u: u for u in range(1, n + 1)}  # alpha of client u in the cohort 1..6
    for u in sorted(bench.inbox):
        (out,) = bench.clients[u].receive(bench.inbox[u][0])
        sent = out.frame
        if u in (1, 2):
            shift = 1
            for honest in (3, 4, 5, 6):
                shift = shift * (points[u] - honest) % PRIME
            words = np.frombuffer(light.body_of(sent), dtype="<u4").astype(np.uint64)
            body = ((words + np.uint64(shift)) % np.uint64(PRIME)).astype("<u4").tobytes()
            sent = light.edit(sent, body=body)
        bench.server.receive(sent)
    bench.close()
    result = bench.server.result
    assert result.vector.values.tolist() != bench.plain_sum(range(1, n + 1))
    assert result.mismatched_pairs == ()
    assert not result.verified


def test_a_dealer_that_gives_one_holder_a_wrong_share_shows_up_as_a_wrong_answer(
    light: Any,
) -> None:
    bench = light.make(8, U=5, T=2, A=1, D=3, m=4).to("recovery")
    shares = bench.clients[ONE]._secrets.shares
    shares[ClientId(5)] = (shares[ClientId(5)].astype(np.uint64) * 2 % PRIME).astype(np.uint32)
    vector = bench.finish()
    assert vector.values.tolist() == bench.plain_sum(range(1, 9))
    assert (5, 1) in bench.server.result.mismatched_pairs
    assert {holder for _, holder in bench.server.result.mismatched_pairs} == {1}


def test_the_server_keeps_no_share_and_adds_on_arrival(light: Any) -> None:
    bench = light.make(6, m=1000)
    bench.to("masked_input_collection")
    held = [value for name, value in vars(bench.server).items() if isinstance(value, bytes | list)]
    assert sum(len(value) for value in held) < 1000
    bench.answer()
    assert bench.server._total.nbytes == 4000
