"""What the server refuses, whom it drops, and that it never gives a wrong sum."""

from __future__ import annotations

import importlib.util
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import BelowThreshold, InvalidShare, LocalProtocolError, UnexpectedMessage
from securefl.primitives.channel import AgreementKey
from securefl.protocols.endpoints import ServerEnd
from securefl.protocols.machine import (
    AggregateReady,
    ClientDropped,
    ClientEquivocated,
    Outbound,
    PhaseClosed,
    Reason,
)
from securefl.protocols.secagg import SecAggServer
from securefl.protocols.secagg.messages import Abort, AdvertiseKeys, UnmaskShares
from securefl.protocols.secagg.recovery import IN_FLIGHT, MaskJob, sum_masks
from securefl.round import ClientId, Layout, Protocol, RoundId, SurvivorSets
from securefl.wire import decode_frame

ONE, TWO = ClientId(1), ClientId(2)


def dropped(events: list[Any], reason: Reason) -> list[int]:
    return [e.client for e in events if isinstance(e, ClientDropped) and e.reason is reason]


# -- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("c and s the same", Reason.DUPLICATE_KEY),
        ("another client's c as s", Reason.DUPLICATE_KEY),
        ("another client's keys", Reason.DUPLICATE_KEY),
        ("another client's keys, respelled", Reason.MALFORMED),
        ("degenerate c", Reason.MALFORMED),
        ("degenerate s", Reason.MALFORMED),
        ("too long", Reason.MALFORMED),
        ("too short", Reason.MALFORMED),
    ],
)
def test_bad_keys_drop_their_sender_and_nobody_else(secagg: Any, what: str, reason: Reason) -> None:
    bench = secagg.make()
    bench.start(without=[1])
    other = AdvertiseKeys.decode(secagg.body_of(bench.sent[TWO, "advertise_keys"]))
    (out,) = bench.clients[ONE].start()
    own = AdvertiseKeys.decode(secagg.body_of(out.frame))
    c, s = own.c_pk, own.s_pk
    body = {
        "c and s the same": c + c,
        "another client's c as s": c + other.c_pk,
        "another client's keys": other.c_pk + other.s_pk,
        # X25519 ignores the top bit, so these bytes differ and the keys do not.
        "another client's keys, respelled": b"".join(
            key[:31] + bytes([key[31] ^ 0x80]) for key in (other.c_pk, other.s_pk)
        ),
        "degenerate c": bytes(32) + s,
        "degenerate s": c + bytes(32),
        "too long": c + s + b"x",
        "too short": c + s[:-1],
    }[what] + own.commitment
    assert bench.server.receive(secagg.edit(out.frame, body=body)) == [
        ClientDropped(client=ONE, phase="advertise_keys", reason=reason)
    ]
    with pytest.raises(UnexpectedMessage, match="dropped before"):
        bench.server.receive(out.frame)
    bench.close()
    assert bench.finish(without=[1]).values.tolist() == bench.plain_sum([2, 3, 4, 5])


# -- frames that are not ours ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"sender": ClientId(77)},
        {"round_id": RoundId(4)},
        {"session": bytes(32)},
        {"protocol": Protocol.PEERSUM},
        {"signature": bytes(range(64))},
    ],
)
@pytest.mark.parametrize("phase", ["advertise_keys", "share_keys", "unmasking"])
def test_a_frame_of_another_round_session_or_stranger_changes_nothing(
    secagg: Any, phase: str, changes: dict[str, Any]
) -> None:
    bench = secagg.make()
    if phase == "advertise_keys":
        bench.start()
    else:
        bench.to(phase)
        bench.answer()
    frame = bench.sent[TWO, phase]
    before = bench.server.ready
    with pytest.raises(UnexpectedMessage):
        bench.server.receive(secagg.edit(frame, **changes))
    assert bench.server.ready == before
    bench.close()
    assert bench.server.final or bench.finish().values.tolist() == bench.plain_sum(bench.clients)


def test_a_frame_under_a_false_name_is_refused(secagg: Any) -> None:
    bench = secagg.make()
    (out,) = bench.clients[ONE].start()
    with pytest.raises(UnexpectedMessage) as caught:
        bench.server.receive(out.frame, TWO)
    assert caught.value.culprits == (2,)
    with pytest.raises(UnexpectedMessage) as caught:
        bench.server.receive(out.frame, ClientId(0))
    assert caught.value.culprits == (0,)
    assert not bench.server.receive(out.frame, ONE)


def test_a_second_different_message_is_reported_and_the_first_counts(secagg: Any) -> None:
    bench = secagg.make().to("masked_input_collection")
    bench.answer()
    frame = bench.sent[ONE, "masked_input_collection"]
    assert bench.server.receive(frame) == []
    other = secagg.edit(frame, body=bytes(len(secagg.body_of(frame))))
    assert bench.server.receive(other) == [
        ClientEquivocated(client=ONE, phase="masked_input_collection")
    ]
    bench.close()
    assert bench.finish().values.tolist() == bench.plain_sum(bench.clients)


@pytest.mark.parametrize("phase", ["share_keys", "masked_input_collection", "unmasking"])
@given(data=st.data())
def test_malformed_content_drops_its_sender(secagg: Any, phase: str, data: st.DataObject) -> None:
    bench = secagg.make().to(phase)
    bench.answer(without=[1])
    out = [*bench.clients[ONE].receive(bench.inbox[ONE])]
    if bench.clients[ONE].wants_input:
        out = bench.clients[ONE].set_input(bench.vectors[ONE])
    good = secagg.body_of(out[0].frame)
    cut = data.draw(st.integers(1, len(good)))
    bad = data.draw(st.sampled_from([good[:-cut], good + bytes(cut), os.urandom(len(good) + 1)]))
    events = bench.server.receive(secagg.edit(out[0].frame, body=bad))
    assert events == [ClientDropped(client=ONE, phase=phase, reason=Reason.MALFORMED)]
    assert bench.server.ready
    bench.close()
    result = bench.server.result.vector if bench.server.final else bench.finish(without=[1])
    survivors = [1, 2, 3, 4, 5] if phase == "unmasking" else [2, 3, 4, 5]
    assert result.values.tolist() == bench.plain_sum(survivors)


# -- late and lost --------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["advertise_keys", "share_keys", "masked_input_collection"])
def test_a_late_frame_is_discarded_and_its_sender_stays_out(secagg: Any, phase: str) -> None:
    bench = secagg.make()
    client = bench.clients[ONE]
    if phase == "advertise_keys":
        late = client.start()
        bench.start(without=[1])
    else:
        bench.to(phase)
        late = client.receive(bench.inbox[ONE])
        if client.wants_input:
            late = client.set_input(bench.vectors[ONE])
        bench.answer(without=[1])
    assert not bench.server.ready
    bench.close()
    assert dropped(bench.events, Reason.NO_REPLY) == [1]
    (event,) = bench.server.receive(late[-1].frame)
    assert (event.client, event.reason) == (1, Reason.LATE)
    assert bench.finish(without=[1]).values.tolist() == bench.plain_sum([2, 3, 4, 5])
    assert bench.server.result.survivors == (2, 3, 4, 5)


@pytest.mark.parametrize(
    "phase", ["advertise_keys", "share_keys", "masked_input_collection", "unmasking"]
)
def test_exactly_the_threshold_is_enough_in_every_phase(secagg: Any, phase: str) -> None:
    for gone, lost in ((2, False), (3, True)):
        bench = secagg.make(7, t=4, D=2)
        absent = list(range(1, gone + 1))
        if phase == "advertise_keys":
            bench.start(without=absent)
        else:
            bench.to(phase)
            bench.answer(without=absent)
        assert bench.server.sufficient is not lost
        if lost:
            with pytest.raises(BelowThreshold) as caught:
                bench.server.close_phase()
            error = caught.value
            assert (error.needed, error.had, error.phase) == (5, 4, phase)
            assert bench.server.phase == "aborted"
            waiting = absent if phase == "unmasking" else list(bench.clients)
            assert [o.recipient for o in error.outbound] == waiting
            assert Abort.decode(decode_frame(error.outbound[0].frame).body).reason is (
                Reason.BELOW_THRESHOLD
            )
            with pytest.raises(LocalProtocolError):
                bench.server.close_phase()
            with pytest.raises(UnexpectedMessage):
                bench.server.receive(secagg.edit(bench.sent[ClientId(7), phase], body=b""), None)
            assert bench.server.result is None
            assert not bench.server.sufficient
        else:
            bench.close()
            result = bench.server.result
            vector = result.vector if result else bench.finish(without=absent)
            inside = range(1, 8) if phase == "unmasking" else range(3, 8)
            assert vector.values.tolist() == bench.plain_sum(inside)


def test_survivor_sets_and_events_tell_who_left_when(secagg: Any) -> None:
    bench = secagg.make(9, t=3, D=4)
    bench.start(without=[1])
    for gone in ([1, 2], [1, 2, 3], [1, 2, 3, 4]):
        bench.close()
        bench.answer(without=gone)
    bench.close()
    everybody = tuple(ClientId(u) for u in range(1, 10))
    assert bench.server.survivors == SurvivorSets(
        U1=everybody[1:], U2=everybody[2:], U3=everybody[3:], U4=everybody[3:], U5=everybody[4:]
    )
    assert dropped(bench.events, Reason.NO_REPLY) == [1, 2, 3, 4]
    closed = [e.phase for e in bench.events if isinstance(e, PhaseClosed)]
    assert closed == list(bench.server.phases)
    result = bench.server.result
    assert bench.events[-1] == AggregateReady(aggregate=result)
    assert result.survivors == everybody[3:]
    assert (result.min_honest, result.verified, result.mismatched_pairs) == (5, True, ())
    assert result.vector.values.tolist() == bench.plain_sum(range(4, 10))


def test_an_aborting_client_is_not_waited_for(secagg: Any) -> None:
    bench = secagg.make().to("masked_input_collection")
    bench.answer(without=[1])
    frame = bench.clients[ONE].abort()[0].frame
    assert dropped(bench.server.receive(frame), Reason.CLIENT_ABORT) == [1]
    assert bench.server.receive(frame) == []
    assert bench.server.ready
    bench.close()
    assert bench.finish(without=[1]).values.tolist() == bench.plain_sum([2, 3, 4, 5])


def test_an_abort_after_the_masked_input_leaves_the_input_in_the_sum(secagg: Any) -> None:
    bench = secagg.make().to("masked_input_collection")
    bench.answer()
    bench.server.receive(bench.clients[ONE].abort()[0].frame)
    bench.close()
    assert bench.finish(without=[1]).values.tolist() == bench.plain_sum(bench.clients)


# -- shares ---------------------------------------------------------------------------------------


def answers(secagg: Any, bench: Any, u: ClientId, gone: list[int]) -> tuple[bytes, UnmaskShares]:
    frame = bench.clients[u].receive(bench.inbox[u])[0].frame
    alive = np.array([v not in gone for v in bench.clients if v != u])
    own = bench.config.layout is Layout.ALL
    return frame, UnmaskShares.decode(secagg.body_of(frame), alive=alive, own=own)


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("kind", ["b", "s"])
def test_a_wrong_share_never_gives_a_wrong_sum(secagg: Any, layout: Layout, kind: str) -> None:
    bench = secagg.make(6, t=3, D=2, layout=layout).to("masked_input_collection")
    bench.answer(without=[6])
    bench.close()
    bench.answer(without=[1])
    frame, good = answers(secagg, bench, ONE, gone=[6])
    shares = good.b_shares.copy() if kind == "b" else good.s_shares.copy()
    shares[0, 3] ^= 1
    wrong = UnmaskShares(
        readable=good.readable,
        own=good.own,
        b_shares=shares if kind == "b" else good.b_shares,
        s_shares=shares if kind == "s" else good.s_shares,
    )
    body = wrong.encode(alive=np.array([1, 1, 1, 1, 0], dtype=np.bool_))
    assert bench.server.receive(secagg.edit(frame, body=body)) == []
    dealer = 2 if kind == "b" else 6
    if kind == "s" or layout is Layout.ALL:  # five shares, three needed: one may be wrong
        bench.close()
        assert bench.server.result.vector.values.tolist() == bench.plain_sum(range(1, 6))
        assert bench.server.result.mismatched_pairs == ((dealer, 1),)
        return
    with pytest.raises(InvalidShare, match="no sum was opened") as caught:
        bench.server.close_phase()
    assert set(caught.value.pairs) == {(dealer, h) for h in (1, 3, 4, 5)}
    assert caught.value.culprits == ()
    assert caught.value.outbound == ()
    assert bench.server.phase == "aborted"
    assert bench.server.result is None


@pytest.mark.parametrize("what", ["seed", "mask key"])
def test_a_dealer_that_shared_something_else_never_gives_a_wrong_sum(
    secagg: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Consistent shares of the wrong secret: only the commitment can tell."""
    bench = secagg.make(6, t=3, D=2)
    bench.to("share_keys")
    cheat = bench.clients[ONE]
    if what == "seed":
        genuine = cheat._secrets.b
        cheat._secrets.b = os.urandom(16)
    else:
        cheat._secrets.s_sk = os.urandom(32)
    bench.up(ONE, cheat.receive(bench.inbox[ONE]))
    if what == "seed":
        cheat._secrets.b = genuine
    bench.answer(without=[1])
    bench.close()
    bench.answer(without=[1] if what == "mask key" else [])
    bench.close()
    bench.answer(without=[1])
    with pytest.raises(InvalidShare) as caught:
        bench.server.close_phase()
    assert {dealer for dealer, _ in caught.value.pairs} == {1}
    assert bench.server.result is None


def test_unreadable_shares_are_bridged_as_long_as_t_are_left(secagg: Any) -> None:
    """Two holders cannot read dealer 2's shares: with t = 3 of 5 holders the sum still opens."""
    for unreadable, lost in (([1, 3], False), ([1, 3, 4], True)):
        bench = secagg.make(6, t=3, D=2).to("unmasking")
        bench.answer(without=unreadable)
        for u in unreadable:
            frame, good = answers(secagg, bench, ClientId(u), gone=[])
            keep = np.array([v != 2 for v in bench.clients if v != u])
            partial = UnmaskShares(
                readable=keep, own=None, b_shares=good.b_shares[keep], s_shares=good.s_shares
            )
            body = partial.encode(alive=np.ones(5, dtype=np.bool_))
            assert bench.server.receive(secagg.edit(frame, body=body)) == []
        assert bench.server.sufficient is not lost
        if lost:
            with pytest.raises(BelowThreshold, match="readable shares") as caught:
                bench.server.close_phase()
            assert (caught.value.needed, caught.value.had) == (3, 2)
        else:
            bench.close()
            assert bench.server.result.vector.values.tolist() == bench.plain_sum(bench.clients)


# -- the sum --------------------------------------------------------------------------------------


def some_jobs(count: int) -> list[MaskJob]:
    """Self masks and pair masks."""
    keys = [AgreementKey(os.urandom(32)).public for _ in range(3)]
    return [
        MaskJob((-1) ** i, os.urandom(32), keys[i % 3] if i % 2 else b"", b"salt" * 8, bytes([i]))
        for i in range(count)
    ]


@pytest.mark.parametrize("b", [20, 50])
def test_processes_give_the_same_sum(secagg: Any, b: int) -> None:
    jobs = some_jobs(15)
    dtype = np.uint32 if b <= 32 else np.uint64
    here = sum_masks(jobs, 33, dtype)
    with ProcessPoolExecutor(1) as executor:
        there = sum_masks(iter(jobs), 33, dtype, executor, part_jobs=4)
    assert np.array_equal(here, there)
    assert np.array_equal(sum_masks(jobs[::-1], 33, dtype), here)
    opposite = [job._replace(sign=-job.sign) for job in jobs]
    assert not sum_masks([*jobs, *opposite], 33, dtype).any()
    assert "secret" in repr(jobs[0])


@given(count=st.integers(0, 40), part=st.integers(1, 50), workers=st.integers(1, 4))
def test_the_sum_of_masks_depends_on_neither_executor_nor_chunking(
    count: int, part: int, workers: int
) -> None:
    jobs = some_jobs(count)
    here = sum_masks(jobs, 9, np.uint64)
    with ThreadPoolExecutor(workers) as executor:
        assert np.array_equal(sum_masks(jobs, 9, np.uint64, executor, part_jobs=part), here)
    halves = (jobs[: count // 2], jobs[count // 2 :])
    assert np.array_equal(sum(sum_masks(half, 9, np.uint64) for half in halves), here)


class Recording(ThreadPoolExecutor):
    """Keeps what was submitted, and how many parts were under way at most."""

    def __init__(self) -> None:
        super().__init__(1)
        self.crossed: list[Any] = []
        self.under_way = 0
        self.most = 0

    def submit(self, *arguments: Any, **named: Any) -> Any:
        self.crossed += arguments[1:]
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        future = super().submit(*arguments, **named)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Any) -> None:
        self.crossed.append(future.result())
        self.under_way -= 1


def test_only_bytes_and_ints_cross_and_few_parts_at_a_time() -> None:
    def plain(item: Any) -> bool:
        if isinstance(item, list | tuple):
            return type(item) in (list, tuple) and all(map(plain, item))
        return type(item) in (int, bytes)

    with Recording() as executor:
        sum_masks(some_jobs(60), 9, np.uint32, executor, part_jobs=2)
    assert len(executor.crossed) == 30 * 4
    assert all(map(plain, executor.crossed))
    assert 1 <= executor.most <= IN_FLIGHT


def test_a_pool_that_breaks_leaves_the_session_to_be_closed_again(secagg: Any) -> None:
    class Broken(ThreadPoolExecutor):
        def submit(self, *arguments: Any, **named: Any) -> Any:
            raise BrokenProcessPool("a worker died")

    bench = secagg.make().to("unmasking")
    bench.answer()
    bench.server._executor = Broken(1)
    with pytest.raises(BrokenProcessPool):
        bench.server.close_phase()
    bench.server._executor = None
    bench.close()
    assert bench.server.result.vector.values.tolist() == bench.plain_sum(bench.clients)


def test_vector_memory_does_not_grow_with_the_cohort(secagg: Any) -> None:
    import tracemalloc

    m, peaks = 200_000, []
    for n in (4, 12):
        bench = secagg.make(n, m=m, b=32).to("masked_input_collection")
        frames = {}
        for u, client in bench.clients.items():
            client.receive(bench.inbox[u])
            frames[u] = client.set_input(bench.vectors[u])[0].frame
        tracemalloc.start()
        for frame in frames.values():
            bench.server.receive(frame)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert abs(peaks[1] - peaks[0]) < 4 * m


def test_the_servers_peak_does_not_grow_with_the_cohort() -> None:
    """A whole session over a ring, frames as large as they are: n = 100 and n = 400."""
    import tracemalloc

    benchmark = load_benchmark("secure_server")
    m, peaks = 1_000_000, []
    for n in (100, 400):
        config = benchmark.configuration(n, m, k=20, t=5, percent=5)
        server = SecAggServer(config)

        def close(server: SecAggServer = server) -> bytes:
            for item in server.close_phase():
                assert item is not None
            return server._end.session or b""

        tracemalloc.start()
        benchmark.play(config, range(5 * n // 100), server.receive, close)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert server.result is not None
    assert abs(peaks[1] - peaks[0]) < 4 * m
    assert max(peaks) < 6 * 4 * m


def load_benchmark(name: str) -> Any:
    path = Path(__file__).parents[3] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"securefl_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("what", [{}, {"k": 4}, {"active": True}])
def test_frames_are_encoded_when_read_and_always_to_the_same_bytes(
    secagg: Any, what: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = secagg.make(6, **what)
    bench.start()
    kept, encoded, encode = [], [], ServerEnd.frame
    monkeypatch.setattr(
        ServerEnd, "frame", lambda *args, **rest: encoded.append(1) or encode(*args, **rest)
    )
    while not bench.server.final:
        encoded.clear()
        out = bench.server.close_phase()
        assert len(encoded) <= 1  # the complete graph has one roster for everybody
        kept.append((out, list(out)))
        bench.inbox = {o.recipient: o.frame for o in out if isinstance(o, Outbound)}
        bench.answer()
    for out, first in kept:
        assert list(out) == first
        assert [out[i] for i in range(len(out))] == first
        assert (out[-1], out[1:]) == (first[-1], first[1:])
        with pytest.raises(IndexError):
            out[len(first)]


def test_permuted_and_repeated_arrivals_give_the_same_result_and_transcript(secagg: Any) -> None:
    digests, sums = set(), []
    for seed in range(4):
        order = np.random.default_rng(seed)
        bench = secagg.make(6, t=3, D=2, random_of=lambda u: np.random.default_rng(u).bytes)
        outs = {u: client.start() for u, client in bench.clients.items()}
        while True:
            for u in order.permutation(list(outs)):
                for item in outs[u]:
                    assert bench.server.receive(item.frame) == []
                    for _ in range(int(order.integers(3))):
                        assert bench.server.receive(item.frame) == []
            bench.close()
            if bench.server.final:
                break
            outs = {}
            for u, frame in bench.inbox.items():
                if u == 6 and bench.server.phase == "masked_input_collection":
                    continue
                outs[u] = bench.clients[u].receive(frame)
                assert bench.clients[u].receive(frame) == []
                if bench.clients[u].wants_input:
                    outs[u] = bench.clients[u].set_input(bench.vectors[u])
        digests.add(bench.server.result.transcript_digest)
        sums.append(bench.server.result.vector.values.tolist())
    assert len(digests) == 1
    assert all(s == bench.plain_sum([1, 2, 3, 4, 5]) for s in sums)


def test_the_server_sends_each_client_what_is_addressed_to_it(secagg: Any) -> None:
    bench = secagg.make()
    bench.start()
    out = [o for o in bench.server.close_phase() if isinstance(o, Outbound)]
    assert [o.recipient for o in out] == list(bench.clients)
    assert isinstance(bench.server, SecAggServer)


def test_a_client_that_left_after_its_keys_cannot_come_back_with_an_input(secagg: Any) -> None:
    bench = secagg.make(n=5, D=2)
    bench.start()
    bench.close()
    bench.answer(without=[5])  # 5 is in U1, and will not be in U2
    bench.close()
    bench.answer()
    stray = secagg.edit(bench.sent[1, "masked_input_collection"], sender=5)
    with pytest.raises(UnexpectedMessage) as caught:
        bench.server.receive(stray, 5)
    assert caught.value.culprits == (5,)
    bench.close()
    assert bench.finish().values.tolist() == bench.plain_sum([1, 2, 3, 4])


def test_a_masked_input_of_the_wrong_length_takes_no_memory(secagg: Any) -> None:
    bench = secagg.make(m=1 << 20, b=64)
    bench.to("masked_input_collection")
    bench.answer(without=[1])
    bench.server._total = None
    short = secagg.edit(bench.sent[2, "masked_input_collection"], sender=1, body=b"?")
    (dropped,) = bench.server.receive(short)
    assert (dropped.client, dropped.reason) == (1, Reason.MALFORMED)
    assert bench.server._total is None
