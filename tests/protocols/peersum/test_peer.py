"""What a peer does with frames and calls: exact sums, and every check before anything is opened."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import (
    BelowThreshold,
    ConfigurationError,
    InvalidShare,
    LocalProtocolError,
    UnexpectedMessage,
    WireError,
)
from securefl.modular import RingVector
from securefl.primitives.field import PRIME
from securefl.protocols.machine import (
    Aborted,
    AggregateReady,
    ClientDropped,
    ClientEquivocated,
    FrameIgnored,
    Outbound,
    Reason,
    ShareUnreadable,
    SignedTwice,
)
from securefl.protocols.peersum import (
    ClientPolicy,
    FolderRegister,
    MemoryRegister,
    PeerSumPeer,
    check_signed_twice,
)
from securefl.protocols.peersum.messages import Confirm, Report, RevealSum
from securefl.protocols.peersum.transitions import PEER, PHASES, MessageType, next_phase, peer_table
from securefl.round import SERVER, ClientId, RoundId
from securefl.wire import decode_frame

ONE, TWO, THREE, FOUR, FIVE, SIX = map(ClientId, range(1, 7))
PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "peersum.md"


def body_of(frame: bytes) -> bytes:
    return bytes(decode_frame(frame).body)


def of(bench: Any, u: ClientId, kind: type) -> list[Any]:
    return [event for event in bench.events.get(u, []) if isinstance(event, kind)]


# -- sums -------------------------------------------------------------------------------------


@given(data=st.data())
def test_every_peer_opens_the_plain_sum_over_one_list_or_nobody_does(kit: Any, data: Any) -> None:
    n = data.draw(st.integers(3, 7))
    A = data.draw(st.integers(1, max(1, (n - 1) // 3)))
    least = max((n + A) // 2 + 1, A + 2)
    D = data.draw(st.integers(0, max(0, n - least)))
    bench = kit.make(n, A=A, D=D, m=data.draw(st.integers(0, 3)))
    gone_in = {
        ClientId(u): data.draw(st.sampled_from(PHASES))
        for u in data.draw(st.lists(st.integers(1, n), unique=True, max_size=min(n, D + 1)))
    }
    for place, phase in enumerate(PHASES):
        here = [u for u, p in gone_in.items() if p == phase]
        bench.gone |= set(here)
        bench.start() if place == 0 else bench.close()
        bench.deliver()
    bench.close()
    alive = {p: n - sum(PHASES.index(w) <= i for w in gone_in.values())
             for i, p in enumerate(PHASES)}  # fmt: skip
    if min(alive.values()) < n - D:
        assert not bench.opened()
        assert all(isinstance(e, BelowThreshold) for e in bench.errors.values())
        return
    inside = [u for u in bench.peers if PHASES.index(gone_in.get(u, "reveal_sum")) > 1]
    opened = bench.opened()
    assert opened == dict.fromkeys((u for u in bench.peers if u not in gone_in),
                                   bench.plain_sum(inside))  # fmt: skip
    for u in opened:
        assert bench.peers[u].result.survivors == tuple(inside)
        assert bench.peers[u].result.min_honest == len(inside) - A


def test_frames_may_come_in_any_order_and_ahead_of_the_phase(kit: Any) -> None:
    bench = kit.make(5)
    slow = FIVE
    held: list[tuple[ClientId, bytes]] = []

    def keep(u: ClientId, v: ClientId, frame: bytes) -> bytes | None:
        if v == slow:
            held.insert(0, (u, frame))
        return None if v == slow else frame

    for u, peer in bench.peers.items():
        bench.emit(u, peer.set_input(bench.vectors[u]))
    bench.start()
    bench.deliver(keep)
    for _ in PHASES:
        bench.close([u for u in bench.live() if u != slow])
        bench.deliver(keep)
    stayed = bench.plain_sum([1, 2, 3, 4])
    assert bench.opened() == dict.fromkeys([1, 2, 3, 4], stayed)
    # All of it at once, latest first: it sees a list without itself signed, and learns that sum.
    for u, frame in held:
        bench.peers[slow].receive(frame, u)
    for _ in PHASES:
        bench.emit(slow, bench.peers[slow].close_phase())
    assert bench.opened()[slow] == stayed


def test_a_peer_that_lacks_a_share_reveals_nothing_and_still_learns_the_sum(kit: Any) -> None:
    """Two lists are signed; the one with q signatures is opened, by those who can."""
    bench = kit.make(5, D=1)
    lost = {(TWO, FIVE, MessageType.SHARE_INPUT), (FIVE, ONE, MessageType.REPORT),
            (FIVE, TWO, MessageType.REPORT), (FIVE, THREE, MessageType.REPORT),
            (FIVE, FOUR, MessageType.REPORT)}  # fmt: skip
    bench.start()
    bench.finish(lambda u, v, f: None if (u, v, kit.kind_of(f)) in lost else f)
    assert bench.opened() == dict.fromkeys([1, 2, 3, 4, 5], bench.plain_sum([1, 2, 3, 4, 5]))
    assert (FIVE, ONE, MessageType.REVEAL_SUM) not in bench.sent
    assert of(bench, FIVE, ShareUnreadable) == [ShareUnreadable(dealer=TWO)]


def test_peers_that_saw_different_reports_open_nothing(kit: Any) -> None:
    bench = kit.make(6, D=1, n_min=4)
    bench.to("report")
    bodies = {v: Report(dealers=np.array([w != 1 or v < 4 for w in range(1, 7)])).encode()
              for v in bench.peers}  # fmt: skip
    bench.finish(
        lambda u, v, f: (
            bench.forged(SIX, v, MessageType.REPORT, bodies[v])
            if u == SIX and kit.kind_of(f) is MessageType.REPORT
            else f
        )
    )
    assert bench.opened() == {}
    assert {type(e) for e in bench.errors.values()} == {BelowThreshold}
    assert not any(kind is MessageType.REVEAL_SUM for _, _, kind in bench.sent)


# -- the threshold and the policy ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "numbers"),
    [
        ({"t": 1, "A": 1}, "t=1, A=1"),
        ({"t": 2, "A": 2}, "exceed A.*t=2, A=2"),
        ({"q": 3, "t": 3}, r"2q=6, least q=4"),
        ({"D": 3}, "2q must exceed|q must not exceed"),
        ({"t": 6, "D": 1}, "q must not exceed"),
        ({"n_min": 6, "D": 1}, "n_min must be at most n - D = 5"),
        ({"t": 5, "q": 4}, "t must not exceed q"),
        ({"n_min": 2}, "two honest inputs"),
    ],
)
def test_numbers_that_do_not_hold_are_refused_with_the_numbers(
    kit: Any, how: dict[str, int], numbers: str
) -> None:
    with pytest.raises(ConfigurationError, match=numbers):
        kit.make(6, **how)


def test_a_peer_checks_the_configuration_itself(kit: Any) -> None:
    bench = kit.make()
    common = {
        "context_digest": kit.context, "identity": bench.identities[ONE],
        "directory": bench.directory, "register": MemoryRegister(),
    }  # fmt: skip
    loose = ClientPolicy(gamma=0)
    for changes, policy in (
        ({"k": 3}, loose), ({"t": 1}, loose), ({"A": 0}, loose), ({"b": 30}, loose),
        ({"protocol": type(bench.config.protocol).SECAGG}, loose),
        ({"adversary": type(bench.config.adversary).SEMI_HONEST}, loose),
        ({}, ClientPolicy(gamma=0, n_min=6)), ({}, ClientPolicy(gamma="1/3")),
    ):  # fmt: skip
        config = replace(bench.config, **changes)
        with pytest.raises(ConfigurationError):
            PeerSumPeer(ONE, config, policy=policy, **common)
    for wrong in (
        {"context_digest": bytes(32)}, {"identity": None}, {"directory": None},
        {"identity": bench.identities[TWO]},
    ):  # fmt: skip
        with pytest.raises(ConfigurationError):
            PeerSumPeer(ONE, bench.config, policy=loose, **{**common, **wrong})
    with pytest.raises(ConfigurationError, match="not in the cohort"):
        PeerSumPeer(ClientId(99), bench.config, policy=loose, **common)


@pytest.mark.parametrize("disk", [False, True])
def test_no_peer_enters_a_session_twice(kit: Any, tmp_path: Path, disk: bool) -> None:
    bench = kit.make()
    memory = MemoryRegister()

    def peer() -> PeerSumPeer:
        register = FolderRegister(tmp_path / "sessions") if disk else memory
        return PeerSumPeer(
            ONE, bench.config, context_digest=kit.context, identity=bench.identities[ONE],
            directory=bench.directory, register=register, policy=ClientPolicy(gamma=0),
        )  # fmt: skip

    assert len(peer().start()) == 5
    again = peer()
    with pytest.raises(ConfigurationError, match="entered this session before"):
        again.start()
    assert not again.masked_input_emitted
    with pytest.raises(LocalProtocolError):
        again.close_phase()


def test_a_register_that_cannot_be_written_lets_nothing_be_sent(kit: Any, tmp_path: Path) -> None:
    register = FolderRegister(tmp_path / "sessions")
    (tmp_path / "sessions").rmdir()
    with pytest.raises(ConfigurationError, match="nothing was sent"):
        register.enter(bytes(32))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot make the register"):
        FolderRegister(tmp_path / "file")


def test_an_entry_that_may_not_be_on_the_disk_lets_nothing_be_sent(
    kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr("securefl.protocols.peersum.sessions.sync_folder", broken)
    register = FolderRegister(tmp_path / "sessions")
    with pytest.raises(ConfigurationError, match="nothing was sent"):
        register.enter(bytes(32))
    assert not register.enter(bytes(32)), "it counts as entered all the same"


# -- hostile frames -----------------------------------------------------------------------------


def test_frames_of_others_change_nothing(kit: Any) -> None:
    bench = kit.make()
    bench.start()
    frame = bench.sent[TWO, ONE, MessageType.ADVERTISE_KEYS]
    one = bench.peers[ONE]
    for wrong, sender in (
        (kit.edit(frame, sender=ClientId(99)), None),
        (kit.edit(frame, sender=SERVER), None),
        (kit.edit(frame, sender=ONE), None),  # its own, reflected
        (frame, THREE),
        (kit.edit(frame, round_id=RoundId(8)), None),
        (kit.edit(frame, session=bytes(32)), None),
        (kit.edit(frame, signature=b""), None),
    ):
        with pytest.raises(UnexpectedMessage):
            one.receive(wrong, sender)
    for wrong in (b"", frame[:-1], frame + b"\0", kit.edit(frame, type=77)):
        with pytest.raises(WireError):
            one.receive(wrong)
    ignored = FrameIgnored(sender=TWO, phase="advertise_keys", reason=Reason.INVALID_SIGNATURE)
    # Signed for somebody else, under another name, with another body.
    assert one.receive(bench.sent[TWO, THREE, MessageType.ADVERTISE_KEYS]) == [ignored]
    assert one.receive(kit.edit(frame, body=bytes(32))) == [ignored]
    assert one.receive(kit.edit(bench.sent[THREE, ONE, MessageType.ADVERTISE_KEYS], sender=TWO)) \
        == [ignored]  # fmt: skip
    assert one.receive(frame, TWO) == []
    assert one.receive(frame, TWO) == []


def test_nobody_is_blamed_for_a_frame_that_anybody_could_have_sent(kit: Any) -> None:
    bench = kit.make()
    bench.start()
    frame = bench.sent[TWO, ONE, MessageType.ADVERTISE_KEYS]
    for made_up in (kit.edit(frame, signature=b""), kit.edit(frame, session=bytes(32))):
        with pytest.raises(UnexpectedMessage) as caught:
            bench.peers[ONE].receive(made_up)
        assert caught.value.culprits == ()
        with pytest.raises(UnexpectedMessage) as caught:
            bench.peers[ONE].receive(made_up, TWO)  # the transport knows that it is peer 2's
        assert caught.value.culprits == (TWO,)
    bench.peers[ONE].abort()
    with pytest.raises(UnexpectedMessage) as caught:
        bench.peers[ONE].receive(kit.edit(frame, signature=bytes(64)))
    assert caught.value.culprits == ()


def test_replayed_frames_of_another_session_change_nothing(kit: Any) -> None:
    old, new = kit.make(nonce=bytes(32)), kit.make(nonce=b"\1" * 32)
    for bench in (old, new):
        bench.start()
    old.finish()
    for (_, v, _), frame in old.sent.items():
        with pytest.raises(UnexpectedMessage, match="another session"):
            new.peers[v].receive(frame)
    assert new.finish().opened() == dict.fromkeys(range(1, 7), new.plain_sum(range(1, 7)))


@pytest.mark.parametrize("how", ["reflected", "exchanged", "another recipient's", "of a report"])
def test_shares_that_are_not_for_this_peer_do_not_open(kit: Any, how: str) -> None:
    bench = kit.make()
    bench.to("share_input")
    sealed = {
        "reflected": (ONE, TWO), "exchanged": (THREE, ONE), "another recipient's": (TWO, THREE),
    }  # fmt: skip
    body = (
        body_of(bench.sent[(*sealed[how], MessageType.SHARE_INPUT)])
        if how in sealed
        else bytes(16 + 4 * bench.config.m)
    )
    forged = bench.forged(TWO, ONE, MessageType.SHARE_INPUT, body)
    bench.finish(lambda u, v, f: forged if (u, v) == (TWO, ONE) and
                 kit.kind_of(f) is MessageType.SHARE_INPUT else f)  # fmt: skip
    assert of(bench, ONE, ShareUnreadable) == [ShareUnreadable(dealer=TWO)]
    assert bench.opened() == dict.fromkeys(range(1, 7), bench.plain_sum([1, 3, 4, 5, 6]))


def test_a_late_input_is_never_in_the_sum(kit: Any) -> None:
    bench = kit.make()
    bench.to("share_input")
    held = [(u, v, f) for u, v, f in bench.wire if u == TWO]
    bench.wire = [entry for entry in bench.wire if entry[0] != TWO]
    bench.deliver()
    bench.close()
    bench.wire += held
    bench.finish()
    assert bench.opened() == dict.fromkeys(range(1, 7), bench.plain_sum([1, 3, 4, 5, 6]))
    assert [e.reason for e in of(bench, ONE, FrameIgnored)] == [Reason.LATE]


@pytest.mark.parametrize("kind", [k for k in MessageType if k is not MessageType.ABORT])
def test_malformed_bodies_drop_whoever_signed_them(kit: Any, kind: MessageType) -> None:
    bench = kit.make()
    phase = PHASES[int(kind) - 1]
    bench.to(phase)
    good = body_of(bench.sent[SIX, ONE, kind])
    bad = bench.forged(SIX, ONE, kind, good[:-1])
    bench.deliver(lambda u, v, f: bad if (u, v) == (SIX, ONE) else f)
    dropped = ClientDropped(client=SIX, phase=phase, reason=Reason.MALFORMED)
    assert of(bench, ONE, ClientDropped) == [dropped]
    with pytest.raises(UnexpectedMessage, match="dropped before"):
        bench.peers[ONE].receive(bench.sent[SIX, ONE, kind], SIX)
    bench.finish()
    if kind is MessageType.ADVERTISE_KEYS:  # 1 and 6 do not hear each other: two dealers fewer
        assert not bench.opened()
        assert {type(error) for error in bench.errors.values()} == {BelowThreshold}
    else:
        assert len(bench.opened()) >= 5  # the others have enough without it


def test_a_public_key_of_small_order_drops_its_owner(kit: Any) -> None:
    bench = kit.make()
    bench.start()
    forged = bench.forged(SIX, ONE, MessageType.ADVERTISE_KEYS, bytes(32))
    bench.deliver(lambda u, v, f: forged if (u, v) == (SIX, ONE) else f)
    assert of(bench, ONE, ClientDropped)[0].reason is Reason.MALFORMED


def test_a_second_different_message_leaves_the_first_in_force(kit: Any) -> None:
    bench = kit.make()
    bench.to("report")
    other = bench.forged(SIX, ONE, MessageType.REPORT, b"\x01")
    bench.deliver()
    assert bench.peers[ONE].receive(other, SIX) == [ClientEquivocated(client=SIX, phase="report")]
    assert bench.finish().opened() == dict.fromkeys(range(1, 7), bench.plain_sum(range(1, 7)))


def test_an_abort_is_heard_and_what_was_sent_before_stays(kit: Any) -> None:
    bench = kit.make()
    bench.to("confirm")
    bench.deliver()
    out = bench.peers[SIX].abort()
    assert out[-1] == Aborted(reason=Reason.CLIENT_ABORT, by=SIX)
    assert bench.peers[SIX].abort() == []
    bench.emit(SIX, out)
    bench.finish()
    inside = bench.plain_sum(range(1, 7))
    assert bench.opened() == dict.fromkeys(range(1, 6), inside)
    assert of(bench, ONE, ClientDropped)[0].reason is Reason.CLIENT_ABORT


# -- the agreement ------------------------------------------------------------------------------


def signature_on(bench: Any, u: ClientId, alive: list[bool]) -> bytes:
    statement = bench.peers[ONE]._ballots.statement(np.array(alive))
    return bench.identities[u].sign(statement)


def test_q_signatures_are_enough_and_one_fewer_is_not(kit: Any) -> None:
    for signers, enough in (([2, 3, 4, 5], True), ([2, 3, 4], False)):
        bench = kit.make(6, D=1)  # q = 5, its own signature included
        bench.to("confirm")
        bench.deliver(lambda u, v, f, signers=signers: f if v != ONE or u in signers else None)
        assert bench.peers[ONE].sufficient is enough
        bench.close([ONE])
        revealed = (ONE, TWO, MessageType.REVEAL_SUM) in bench.sent
        assert revealed is enough
        if not enough:
            error = bench.errors[ONE]
            assert (error.needed, error.had, error.phase) == (5, 4, "confirm")


def test_signatures_of_others_stand_in_for_lost_ones(kit: Any) -> None:
    """A peer that heard too few signatures learns them from those who heard enough."""
    bench = kit.make(6, D=1)
    bench.to("confirm")
    bench.deliver(lambda u, v, f: None if v == ONE else f)
    assert not bench.peers[ONE].sufficient
    bench.close([2, 3, 4, 5, 6])
    bench.deliver()
    assert bench.peers[ONE].sufficient
    bench.finish()
    assert bench.opened() == dict.fromkeys(range(1, 7), bench.plain_sum(range(1, 7)))


def test_signatures_that_do_not_count(kit: Any) -> None:
    bench = kit.make(6, D=1)
    bench.to("confirm")
    everybody, five = [True] * 6, [True] * 5 + [False]
    cases = {
        "of somebody else": (everybody, signature_on(bench, THREE, everybody)),
        "on another list": (everybody, signature_on(bench, TWO, five)),
        "on too short a list": ([True] * 4 + [False] * 2,
                                signature_on(bench, TWO, [True] * 4 + [False] * 2)),
    }  # fmt: skip
    for name, (alive, signature) in cases.items():
        body = Confirm(alive=np.array(alive), signature=signature).encode()
        one = bench.peers[ONE]
        before = {k: dict(v) for k, v in one._ballots.by_list.items()}
        (event,) = one._on_confirm(TWO, Confirm.decode(body, n=6))
        assert isinstance(event, FrameIgnored), name
        assert one._ballots.by_list == before, name


def test_a_signature_from_another_run_of_the_configuration_does_not_count(kit: Any) -> None:
    """Two runs under one name have other keys, and a signature covers those of all survivors."""
    now, before = (kit.make(6, D=1).to("confirm") for _ in range(2))
    assert now.config.digest() == before.config.digest()
    old = body_of(before.sent[TWO, ONE, MessageType.CONFIRM])
    forged = now.forged(TWO, ONE, MessageType.CONFIRM, old)
    now.deliver(lambda u, v, f: forged if (u, v) == (TWO, ONE) else f)
    assert [e.reason for e in of(now, ONE, FrameIgnored)] == [Reason.INVALID_SIGNATURE]
    assert all(TWO not in votes for votes in now.peers[ONE]._ballots.by_list.values())


def test_two_signed_lists_are_proved_to_anybody_and_one_sum_is_opened_all_the_same(
    kit: Any,
) -> None:
    """Peer 6 tells peer 1 another list than the others; certificates bring it to light."""
    bench = kit.make(6, D=1)
    bench.to("confirm")
    other = [True, True, True, True, False, True]
    lie = Confirm(alive=np.array(other), signature=signature_on(bench, SIX, other)).encode()
    forged = bench.forged(SIX, ONE, MessageType.CONFIRM, lie)
    bench.deliver(lambda u, v, f: forged if (u, v) == (SIX, ONE) else f)
    bench.finish()
    assert bench.opened() == dict.fromkeys(range(1, 7), bench.plain_sum(range(1, 7)))
    (proof,) = of(bench, ONE, SignedTwice)
    assert proof.client == SIX
    check_signed_twice(proof, bench.directory)
    assert not any(of(bench, u, SignedTwice) for u in (TWO, THREE, FOUR, FIVE))
    first, second = proof.statements

    def resigned(*statements: bytes) -> dict[str, Any]:
        signatures = tuple(bench.identities[SIX].sign(s) for s in statements)
        return {"statements": statements, "signatures": signatures}

    for wrong in (
        {"statements": (first, first)},
        {"client": FIVE},
        {"signatures": proof.signatures[::-1]},
        {"statements": (first, second[:8] + bytes(32) + second[40:])},
        {"statements": (first, b"something else")},
        resigned(first, second[:8] + bytes(32) + second[40:]),  # of another session
        resigned(first, b"\0" * 8 + second[8:]),  # another kind of statement
    ):
        with pytest.raises(ConfigurationError):
            check_signed_twice(replace(proof, **wrong), bench.directory)


def test_a_second_confirm_is_evidence_whenever_it_comes(kit: Any) -> None:
    for late in (False, True):
        bench = kit.make(6, D=1)
        bench.to("confirm")
        bench.deliver()
        other = [False, True, True, True, True, True]
        lie = Confirm(alive=np.array(other), signature=signature_on(bench, SIX, other)).encode()
        forged = bench.forged(SIX, ONE, MessageType.CONFIRM, lie)
        if late:
            bench.finish()
        out = bench.peers[ONE].receive(forged, SIX)
        assert [type(event) for event in out] == [ClientEquivocated, SignedTwice]
        check_signed_twice(out[1], bench.directory)


def test_a_liar_that_signs_list_after_list_fills_no_memory(kit: Any) -> None:
    bench = kit.make(8, D=1)
    bench.to("confirm")
    bench.deliver()
    eight = ClientId(8)
    lists = [
        [u not in (a, b) for u in range(8)] for a in range(8) for b in range(a + 1)
    ]  # 36, of seven or six peers
    for number, alive in enumerate(lists):
        if number == 18:
            bench.finish()  # and goes on when all is over
        lie = Confirm(alive=np.array(alive), signature=signature_on(bench, eight, alive)).encode()
        bench.peers[ONE].receive(bench.forged(eight, ONE, MessageType.CONFIRM, lie), eight)
    known = bench.peers[ONE]._ballots.by_list
    assert sum(eight in votes for votes in known.values()) == 8
    assert bench.opened()[ONE] == bench.plain_sum(range(1, 9))


def test_no_sum_of_shares_counts_for_another_list(kit: Any) -> None:
    bench = kit.make(6, D=1)
    bench.to("reveal_sum")
    real = RevealSum.decode(body_of(bench.sent[SIX, ONE, MessageType.REVEAL_SUM]), n=6, m=4)
    other = replace(real, alive=np.array([True] * 5 + [False]))
    forged = bench.forged(SIX, ONE, MessageType.REVEAL_SUM, other.encode())
    bench.deliver(lambda u, v, f: forged if (u, v) == (SIX, ONE) else f)
    assert SIX not in bench.peers[ONE]._secrets.sums
    assert of(bench, ONE, FrameIgnored)[-1].reason is Reason.EQUIVOCATION


# -- wrong shares -------------------------------------------------------------------------------


def lie_about_the_sum(bench: Any, *liars: ClientId) -> None:
    for u in liars:
        total = bench.peers[u]._secrets.shares[u].copy()
        bench.peers[u]._secrets.shares[u] = (total + np.uint32(u * u)) % np.uint32(PRIME)


def test_wrong_sums_of_shares_are_left_out_and_their_holders_named(kit: Any) -> None:
    bench = kit.make(9, D=1, t=4)
    bench.to("confirm")
    lie_about_the_sum(bench, TWO, FIVE)
    bench.finish()
    assert bench.opened() == dict.fromkeys(range(1, 10), bench.plain_sum(range(1, 10)))
    for u in range(1, 10):
        result = bench.peers[ClientId(u)].result
        assert result.verified
        assert {holder for _, holder in result.mismatched_pairs} == {TWO, FIVE}


def test_below_t_plus_a_sums_that_fit_nothing_is_called_verified_and_nobody_is_blamed(
    kit: Any,
) -> None:
    bench = kit.make(8, A=2, D=2, t=5)
    bench.to("confirm")
    lie_about_the_sum(bench, TWO)
    bench.deliver()
    bench.leave(8)
    bench.close()
    bench.finish()
    result = bench.peers[ONE].result
    assert result.vector.values.tolist() == bench.plain_sum(range(1, 9))
    assert (result.verified, result.mismatched_pairs) == (False, ())  # 6 fit, 5 + 2 are needed


def test_more_wrong_sums_than_can_be_corrected_open_nothing(kit: Any) -> None:
    bench = kit.make(6, D=1, t=4)
    bench.to("confirm")
    lie_about_the_sum(bench, TWO, THREE)
    bench.finish()
    assert bench.opened() == {}
    assert {type(e) for e in bench.errors.values()} == {InvalidShare}
    assert all(p.phase == "aborted" for p in bench.peers.values())


def test_with_exactly_t_sums_a_wrong_one_is_not_noticed_and_not_called_verified(kit: Any) -> None:
    bench = kit.make(6, D=1)
    bench.to("confirm")
    lie_about_the_sum(bench, TWO)
    bench.deliver()
    bench.leave(6)
    bench.finish()
    assert bench.opened()[ONE] != bench.plain_sum(range(1, 7))
    assert not bench.peers[ONE].result.verified


# -- calls, tables and the end --------------------------------------------------------------------


def test_calls_in_the_wrong_phase_are_local_errors(kit: Any) -> None:
    bench = kit.make()
    one = bench.peers[ONE]
    with pytest.raises(LocalProtocolError, match="before start"):
        one.close_phase()
    bench.start()
    with pytest.raises(LocalProtocolError):
        one.start()
    bench.deliver()
    bench.emit(ONE, one.close_phase())
    assert one.wants_input and not one.sufficient
    with pytest.raises(LocalProtocolError, match="input is missing"):
        one.close_phase()
    for wrong in (RingVector.zeros(3, PRIME), RingVector.zeros(4, 1 << 31)):
        with pytest.raises(LocalProtocolError, match="expected 4 entries modulo 2147483647"):
            one.set_input(wrong)
    one.set_input(bench.vectors[ONE])
    with pytest.raises(LocalProtocolError, match="given already"):
        one.set_input(bench.vectors[ONE])
    late = bench.peers[TWO]
    late.abort()
    with pytest.raises(LocalProtocolError):
        late.set_input(bench.vectors[TWO])


def test_the_input_leaves_only_when_the_keys_are_in(kit: Any) -> None:
    bench = kit.make()
    one = bench.peers[ONE]
    assert one.set_input(bench.vectors[ONE]) == []
    bench.start()
    assert not one.masked_input_emitted
    bench.deliver()
    out = [o for o in one.close_phase() if isinstance(o, Outbound)]
    assert [kit.kind_of(o.frame) for o in out] == [MessageType.SHARE_INPUT] * 5
    assert one.masked_input_emitted


def test_a_session_has_the_phases_and_messages_of_its_table(kit: Any) -> None:
    bench = kit.make()
    one = bench.peers[ONE]
    bench.start()
    for row in PEER:
        assert one.phase is row.phase
        assert {kit.kind_of(f) for u, _, f in bench.wire if u == ONE} == {row.message}
        assert not one.ready
        bench.deliver()
        assert one.ready and one.sufficient
        bench.close()
        assert one.phase is next_phase(row.phase)
    assert one.phase == "done" and not one.ready and not one.sufficient
    assert of(bench, ONE, AggregateReady) == [AggregateReady(aggregate=one.result)]
    assert [int(row.message) for row in PEER] == [1, 2, 3, 4, 5]


def test_the_documentation_shows_the_table() -> None:
    assert peer_table() in PAGE.read_text()


def test_no_secret_outlives_the_session_and_no_machine_is_copied(kit: Any) -> None:
    bench = kit.make()
    bench.start()
    held = [peer._secrets for peer in bench.peers.values()]
    bench.finish()
    for peer, secrets in zip(bench.peers.values(), held, strict=True):
        assert peer._secrets is None
        assert secrets.c is None and secrets.words is None
        assert not (secrets.agreed or secrets.shares or secrets.sums)
        with pytest.raises(TypeError):
            pickle.dumps(peer)
        assert "secrets" in repr(peer)


def test_a_failed_session_forgets_and_tells_everybody(kit: Any) -> None:
    bench = kit.make()
    bench.start()
    bench.wire.clear()
    bench.close([ONE])
    error = bench.errors[ONE]
    assert (error.needed, error.had, error.phase) == (5, 1, "advertise_keys")
    assert len(error.outbound) == 5 and error.__traceback__ is not None
    assert bench.peers[ONE]._secrets is None
    with pytest.raises(UnexpectedMessage, match="aborted"):
        bench.peers[ONE].receive(bench.sent[TWO, ONE, MessageType.ADVERTISE_KEYS])
