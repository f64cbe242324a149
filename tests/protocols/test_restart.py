"""Kill a process wherever you like: it answers once, or it is a dropout."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from securefl import restart
from securefl.errors import ConfigurationError, SecureFLError, SnapshotError
from securefl.protocols.machine import AggregateReady, Outbound
from securefl.protocols.secagg.messages import UnmaskShares
from securefl.protocols.secagg.transitions import MessageType
from securefl.protocols.snapshot import SECRETS, read_header
from securefl.restart import Keeper, SnapshotStore
from securefl.round import ClientId
from securefl.wire import decode_frame

KEY = bytes(range(32))
ONE = ClientId(1)
SESSION = bytes(32)


class Blobs:
    """Genuine snapshots of one client, numbered 1, 2, 3, ..."""

    def __init__(self, secagg: Any) -> None:
        self.bench = secagg.make().to("share_keys")
        self.session = self.bench.config.digest()
        self._machine = self.bench.clients[ONE]

    def next(self) -> tuple[bytes, int, bytes]:
        blob = self._machine.snapshot(KEY, SECRETS)
        number = read_header(blob).sequence
        self._machine = self.bench.fresh_client(ONE)
        self._machine.restore(KEY, blob, sequence=number)
        return self.session, number, blob


@pytest.fixture
def blobs(secagg: Any) -> Blobs:
    return Blobs(secagg)


# -- the store ------------------------------------------------------------------------------------


def test_what_was_put_is_taken_once(tmp_path: Path, blobs: Blobs) -> None:
    with SnapshotStore(tmp_path / "store") as store:
        assert not store.knows(blobs.session)
        with pytest.raises(SnapshotError, match="there is none"):
            store.take(blobs.session)
        session, number, blob = blobs.next()
        store.put(session, number, blob)
        assert store.knows(session)
        taken = store.take(session)
        assert (taken.sequence, taken.blob) == (number, blob)
        assert "secret" in repr(taken)
        assert blob.hex() not in repr(taken)
        assert store.knows(session)
        with pytest.raises(SnapshotError, match="number 1 was taken"):
            store.take(session)


def test_the_snapshot_is_gone_from_the_disk_before_take_returns(
    tmp_path: Path, blobs: Blobs
) -> None:
    with SnapshotStore(tmp_path) as store:
        session, number, blob = blobs.next()
        store.put(session, number, blob)
        assert any(blob in path.read_bytes() for path in tmp_path.iterdir())
        store.take(session)
        assert not any(blob in path.read_bytes() for path in tmp_path.iterdir())


def test_a_newer_snapshot_replaces_an_older_one(tmp_path: Path, blobs: Blobs) -> None:
    first, second = blobs.next(), blobs.next()
    with SnapshotStore(tmp_path) as store:
        store.put(*first)
        store.put(*second)
        for old in (first, second):
            with pytest.raises(SnapshotError, match="not newer"):
                store.put(*old)
        assert store.take(blobs.session).blob == second[2]


def test_numbers_only_rise_also_after_the_store_was_closed(tmp_path: Path, blobs: Blobs) -> None:
    first, second, third = blobs.next(), blobs.next(), blobs.next()
    with SnapshotStore(tmp_path) as store:
        store.put(*first)
        store.put(*second)
    with SnapshotStore(tmp_path) as store:
        with pytest.raises(SnapshotError, match="not newer"):
            store.put(*first)
        store.take(blobs.session)
    with SnapshotStore(tmp_path) as store:
        for old in (first, second):
            with pytest.raises(SnapshotError, match="not newer"):
                store.put(*old)
        store.put(*third)


@pytest.mark.parametrize("reopen", [False, True])
@pytest.mark.parametrize("taken", [False, True])
def test_a_single_session_that_is_rolled_back_is_refused(
    tmp_path: Path, blobs: Blobs, reopen: bool, taken: bool
) -> None:
    """Somebody copies the session's file and puts it back later."""
    store = SnapshotStore(tmp_path)
    session, number, blob = blobs.next()
    store.put(session, number, blob)
    (file,) = tmp_path.glob("*.snapshot")
    kept = tmp_path / "kept"
    shutil.copy(file, kept)
    if taken:
        store.take(session)
    else:
        store.put(*blobs.next())
    shutil.copy(kept, file)
    if reopen:
        store.close()
        store = SnapshotStore(tmp_path)
    with pytest.raises(SnapshotError, match="put the file back"):
        store.take(session)
    store.close()


def test_a_whole_store_that_is_rolled_back_is_not_noticed(tmp_path: Path, blobs: Blobs) -> None:
    """The limit, pinned: docs/security/limitations.md says so."""
    with SnapshotStore(tmp_path / "store") as store:
        store.put(*blobs.next())
    shutil.copytree(tmp_path / "store", tmp_path / "backup")
    with SnapshotStore(tmp_path / "store") as store:
        first = store.take(blobs.session)
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(tmp_path / "backup", tmp_path / "store")
    with SnapshotStore(tmp_path / "store") as store:
        assert store.take(blobs.session) == first


def test_a_snapshot_under_another_name_is_refused(tmp_path: Path, blobs: Blobs) -> None:
    session, number, blob = blobs.next()
    with SnapshotStore(tmp_path) as store:
        for name, count in [(SESSION, number), (session, number + 1)]:
            with pytest.raises(SnapshotError, match="not number"):
                store.put(name, count, blob)
        store.put(session, number, blob)
        (tmp_path / f"{session.hex()}.snapshot").rename(tmp_path / f"{SESSION.hex()}.snapshot")
        with pytest.raises(SnapshotError, match="another session"):
            store.take(SESSION)


def test_files_are_for_their_owner_only(tmp_path: Path, blobs: Blobs) -> None:
    folder = tmp_path / "store"
    previous = os.umask(0)
    try:
        with SnapshotStore(folder) as store:
            store.put(*blobs.next())
            assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
            assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(previous)


def test_a_store_is_open_once(tmp_path: Path) -> None:
    with SnapshotStore(tmp_path), pytest.raises(SnapshotError, match="open elsewhere"):
        SnapshotStore(tmp_path)
    SnapshotStore(tmp_path).close()


def test_a_closed_store_is_of_no_use(tmp_path: Path, blobs: Blobs) -> None:
    store = SnapshotStore(tmp_path)
    store.close()
    with pytest.raises(SnapshotError, match="closed"):
        store.put(*blobs.next())
    with pytest.raises(SnapshotError, match="closed"):
        store.take(blobs.session)


@pytest.mark.parametrize("cut", range(1, 45))
def test_a_log_that_a_crash_cut_off_loses_its_last_entry_only(
    tmp_path: Path, blobs: Blobs, cut: int
) -> None:
    with SnapshotStore(tmp_path) as store:
        store.put(*blobs.next())
        store.put(*blobs.next())
    log = tmp_path / "sequences.log"
    log.write_bytes(log.read_bytes()[:-cut])
    with SnapshotStore(tmp_path) as store:  # the file was written first, and is newer than the log
        assert store.take(blobs.session).sequence == 2
    with SnapshotStore(tmp_path) as store, pytest.raises(SnapshotError, match="was taken"):
        store.take(blobs.session)


def test_a_last_entry_of_full_length_that_was_never_written_out_is_lost_alone(
    tmp_path: Path, blobs: Blobs
) -> None:
    with SnapshotStore(tmp_path) as store:
        store.put(*blobs.next())
        store.put(*blobs.next())
    log = tmp_path / "sequences.log"
    log.write_bytes(log.read_bytes()[:-8] + bytes(8))
    with SnapshotStore(tmp_path) as store:
        assert store.take(blobs.session).sequence == 2


def test_a_damaged_log_is_refused(tmp_path: Path, blobs: Blobs) -> None:
    with SnapshotStore(tmp_path) as store:
        store.put(*blobs.next())
        store.put(*blobs.next())
    log = tmp_path / "sequences.log"
    raw = bytearray(log.read_bytes())
    raw[3] ^= 1
    log.write_bytes(raw)
    for _ in range(2):
        with pytest.raises(SnapshotError, match="damaged"):
            SnapshotStore(tmp_path)


def test_a_disk_that_is_full_in_the_middle_of_an_entry_costs_no_other_session(
    tmp_path: Path, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = restart._record
    first, second = blobs.next(), blobs.next()
    with SnapshotStore(tmp_path) as store:
        store.put(*first)
        with monkeypatch.context() as full:

            def no_space(descriptor: int) -> None:
                if os.fstat(descriptor).st_size % 45:
                    raise OSError(errno.ENOSPC, "no space")

            full.setattr(restart, "_record", lambda *entry: whole(*entry)[:20])
            full.setattr(os, "fsync", no_space)
            with pytest.raises(OSError, match="no space"):
                store.take(blobs.session)
        with pytest.raises(SnapshotError, match="closed"):  # nothing goes behind half an entry
            store.put(*second)
    with SnapshotStore(tmp_path) as store:
        store.put(*second)
    with SnapshotStore(tmp_path) as store:
        assert store.take(blobs.session).sequence == 2


def test_the_log_keeps_one_entry_per_session_when_it_is_opened(
    tmp_path: Path, blobs: Blobs
) -> None:
    with SnapshotStore(tmp_path) as store:
        for _ in range(20):
            store.put(*blobs.next())
            store.take(blobs.session)
    long = (tmp_path / "sequences.log").stat().st_size
    with SnapshotStore(tmp_path) as store:
        assert (tmp_path / "sequences.log").stat().st_size * 40 == long
        with pytest.raises(SnapshotError, match="number 20 was taken"):
            store.take(blobs.session)


# -- the order of a step --------------------------------------------------------------------------


def test_the_state_is_on_the_disk_before_a_frame_leaves(tmp_path: Path, secagg: Any) -> None:
    bench = secagg.make()
    seen: list[tuple[int, str]] = []
    with SnapshotStore(tmp_path) as store:

        def send(item: Outbound) -> None:
            (file,) = tmp_path.glob("*.snapshot")
            blob = file.read_bytes()
            twin = bench.fresh_client(ONE)
            assert twin.restore(KEY, blob, sequence=read_header(blob).sequence) == [item]
            seen.append((decode_frame(item.frame).type, twin.phase))

        keeper = Keeper(lambda: bench.fresh_client(ONE), store=store, storage_key=KEY, send=send)
        keeper.step(lambda machine: machine.start())
    assert seen == [(MessageType.ADVERTISE_KEYS, "share_keys")]


def test_a_send_that_fails_can_be_tried_again(tmp_path: Path, secagg: Any) -> None:
    bench = secagg.make()
    sent: list[bytes] = []

    def send(item: Outbound) -> None:
        sent.append(item.frame)
        if len(sent) == 1:
            raise ConnectionError

    with SnapshotStore(tmp_path) as store:
        keeper = Keeper(lambda: bench.fresh_client(ONE), store=store, storage_key=KEY, send=send)
        with pytest.raises(ConnectionError):
            keeper.step(lambda machine: machine.start())
        keeper.resend()
    assert sent[0] == sent[1]


def test_a_step_without_frames_forgets_none_that_may_still_be_unsent(
    tmp_path: Path, secagg: Any
) -> None:
    bench = secagg.make()
    sent: list[bytes] = []

    def keeper(store: SnapshotStore) -> Keeper[Any]:
        return Keeper(
            lambda: bench.fresh_client(ONE),
            store=store,
            storage_key=KEY,
            send=lambda item: sent.append(item.frame),
        )

    with SnapshotStore(tmp_path) as store:
        first = keeper(store)
        first.step(lambda machine: machine.start())
        first.step(lambda machine: machine.set_input(bench.vectors[ONE]))
    with SnapshotStore(tmp_path) as store:
        keeper(store)
    assert len(sent) == 2
    assert sent[0] == sent[1]


def test_an_error_is_raised_after_its_abort_was_stored_and_sent(
    tmp_path: Path, secagg: Any
) -> None:
    sent: list[bytes] = []
    bench = secagg.make().to("share_keys")
    with SnapshotStore(tmp_path) as store:
        keeper = Keeper(
            lambda: bench.fresh_client(ONE),
            store=store,
            storage_key=KEY,
            send=lambda item: sent.append(item.frame),
        )
        keeper.step(lambda machine: machine.start())
        with pytest.raises(SecureFLError):
            keeper.step(lambda m: m.receive(secagg.edit(bench.inbox[ONE], body=b"?")))
        assert keeper.machine.phase == "aborted"
    assert decode_frame(sent[-1]).type == MessageType.ABORT
    with SnapshotStore(tmp_path) as store:
        again: list[bytes] = []
        keeper = Keeper(
            lambda: bench.fresh_client(ONE),
            store=store,
            storage_key=KEY,
            send=lambda item: again.append(item.frame),
        )
        assert again == sent[-1:]
        assert keeper.machine.phase == "aborted"


def test_a_session_whose_snapshot_is_gone_is_never_begun_again(tmp_path: Path, secagg: Any) -> None:
    bench = secagg.make()

    def keeper(store: SnapshotStore) -> Keeper[Any]:
        return Keeper(
            lambda: bench.fresh_client(ONE), store=store, storage_key=KEY, send=lambda item: None
        )

    with SnapshotStore(tmp_path) as store:
        keeper(store).step(lambda machine: machine.start())
        store.take(bench.config.digest())  # and the process dies here
    for _ in range(2):
        with SnapshotStore(tmp_path) as store, pytest.raises(SnapshotError, match="was taken"):
            keeper(store)


@pytest.mark.parametrize("key", [b"", bytes(31), "k" * 32])
def test_a_storage_key_of_the_wrong_length_costs_no_session(
    tmp_path: Path, secagg: Any, key: Any
) -> None:
    bench = secagg.make()

    def keeper(store: SnapshotStore, storage_key: Any) -> Keeper[Any]:
        return Keeper(
            lambda: bench.fresh_client(ONE),
            store=store,
            storage_key=storage_key,
            send=lambda item: None,
        )

    with SnapshotStore(tmp_path) as store:
        keeper(store, KEY).step(lambda machine: machine.start())
    with SnapshotStore(tmp_path) as store, pytest.raises(ConfigurationError, match="32"):
        keeper(store, key)
    with SnapshotStore(tmp_path) as store:
        assert keeper(store, KEY).machine.phase == "share_keys"


@pytest.mark.parametrize("options", [{}, {"n": 6, "k": 4, "active": True}])
def test_a_server_that_restarts_after_every_step_opens_the_same_sum(
    tmp_path: Path, secagg: Any, options: dict[str, Any]
) -> None:
    bench = secagg.make(**options)
    waiting = {u: bench.clients[u].start() for u in bench.clients}
    result = None
    while result is None:
        frames = [item.frame for out in waiting.values() for item in out]
        waiting, arrived = {}, {}

        def send(item: Outbound, inbox: dict[ClientId, bytes] = arrived) -> None:
            inbox[item.recipient] = item.frame

        for act in [*[lambda s, f=f: s.receive(f) for f in frames], lambda s: s.close_phase()]:
            with SnapshotStore(tmp_path) as store:
                arrived.clear()
                keeper = Keeper(bench.fresh_server, store=store, storage_key=KEY, send=send)
                arrived.clear()  # the last phase's frames, sent again
                events = keeper.step(act)
        result = next((e.aggregate for e in events if isinstance(e, AggregateReady)), None)
        for u, frame in arrived.items():
            waiting[u] = bench.clients[u].receive(frame)
            if bench.clients[u].wants_input:
                waiting[u] = bench.clients[u].set_input(bench.vectors[u])
    assert result.vector.values.tolist() == bench.plain_sum(bench.clients)


# -- killed processes -----------------------------------------------------------------------------


@dataclass
class Life:
    """One client in processes of its own; ``wire`` collects what it ever sent."""

    bench: Any
    folder: Path
    wire: Path
    lost: bool = False
    kills: int = 0
    sent: list[bytes] = field(default_factory=list)

    def child(self, frames: list[bytes], arm: Callable[[], None]) -> None:
        """What the process does: go on where it was, read the frames, answer."""

        def send(item: Outbound) -> None:
            descriptor = os.open(self.wire, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, len(item.frame).to_bytes(4, "little") + item.frame)
            os.close(descriptor)

        arm()
        with SnapshotStore(self.folder) as store:
            keeper = Keeper(
                lambda: self.bench.fresh_client(ONE), store=store, storage_key=KEY, send=send
            )
            if keeper.machine.phase == "advertise_keys":
                keeper.step(lambda machine: machine.start())
            for frame in frames:
                keeper.step(lambda machine, frame=frame: machine.receive(frame))
                if keeper.machine.wants_input:
                    keeper.step(lambda machine: machine.set_input(self.bench.vectors[ONE]))

    def run(self, frames: list[bytes], arm: Callable[[], None], delay: float | None = None) -> bool:
        """Runs a process; True if it was killed, before or after it had done its work."""
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads; no thread here holds a lock of ours.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self.child(frames, arm)
                code = 0
            except SnapshotError:
                code = 3
            finally:
                os._exit(code)
        if delay is not None:
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            self.kills += 1
            return True
        assert os.WEXITSTATUS(status) in (0, 3)
        self.lost |= os.WEXITSTATUS(status) == 3
        return False

    def new_frames(self) -> list[bytes]:
        """What was sent since the last call; checks the promise over everything sent so far."""
        raw = self.wire.read_bytes() if self.wire.exists() else b""
        frames = []
        while len(raw) >= 4:
            size = int.from_bytes(raw[:4], "little")
            frames.append(raw[4 : 4 + size])
            raw = raw[4 + size :]
        new = frames[len(self.sent) :]
        self.sent = frames
        by_type: dict[int, set[bytes]] = {}
        for frame in frames:
            by_type.setdefault(decode_frame(frame).type, set()).add(frame)
        assert {kind: len(different) for kind, different in by_type.items()} == dict.fromkeys(
            by_type, 1
        )
        return new


def live(secagg: Any, folder: Path, run: Callable[[Life, str, list[bytes]], None]) -> Life:
    """A session in which client 1 lives in processes that ``run`` starts, and kills."""
    bench = secagg.make(n=4, D=1)
    life = Life(bench=bench, folder=folder / "store", wire=folder / "wire")
    bench.start(without=[1])
    frames: list[bytes] = []
    while not bench.server.final:
        run(life, str(bench.server.phase), frames)
        for frame in life.new_frames():
            bench.server.receive(frame, ONE)
        bench.close()
        frames = [bench.inbox[ONE]] if ONE in bench.inbox else []
        bench.answer(without=[1])
    U3 = bench.server.survivors.U3
    assert bench.server.result.vector.values.tolist() == bench.plain_sum(U3)
    answers = [f for f in life.sent if decode_frame(f).type == MessageType.UNMASK_SHARES]
    for frame in answers[:1]:
        alive = [v in U3 for v in bench.server.survivors.U2 if v != ONE]
        shares = UnmaskShares.decode(decode_frame(frame).body, alive=np.array(alive), own=False)
        assert len(shares.b_shares) + len(shares.s_shares) == len(alive)  # one kind per peer
    return life


def killing_at(moment: int) -> Callable[[], None]:
    """Arms a process: it kills itself before its n-th dealing with the disk or the wire, or at its
    end."""

    def arm() -> None:
        left = moment

        def mortal(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return wrapped

        for name in ("open", "fsync", "replace", "unlink", "write", "_exit"):
            setattr(os, name, mortal(getattr(os, name)))

    return arm


def peaceful() -> None:
    pass


PHASES = ["advertise_keys", "share_keys", "masked_input_collection", "unmasking"]


@pytest.mark.parametrize("phase", PHASES)
def test_a_client_killed_at_any_point_of_a_step_answers_once(
    tmp_path: Path, secagg: Any, phase: str
) -> None:
    outcomes: dict[bool, int] = {True: 0, False: 0}
    for moment in range(1, 400):
        folder = tmp_path / str(moment)
        folder.mkdir()
        killed = False

        def run(life: Life, here: str, frames: list[bytes], moment: int = moment) -> None:
            nonlocal killed
            if life.lost:
                return
            if here == phase:
                killed = life.run(frames, killing_at(moment))
            if here != phase or killed:
                life.run(frames, peaceful)

        life = live(secagg, folder, run)
        shutil.rmtree(folder)
        if not killed:
            break
        outcomes[life.lost] += 1
    else:
        pytest.fail("the process never came to the end of its work")
    assert outcomes[False] > 10
    if phase == "advertise_keys":
        assert outcomes[True] == 0  # nothing is taken out of the store before the first frame
    else:
        assert outcomes[True] > 0  # between take and put


@pytest.mark.long
def test_a_client_killed_at_random_moments_answers_once(tmp_path: Path, secagg: Any) -> None:
    generator = random.Random(20)
    killed = lost = 0
    for number in range(300):
        folder = tmp_path / str(number)
        folder.mkdir()

        def run(life: Life, here: str, frames: list[bytes]) -> None:
            for _ in range(3):
                if not life.lost and not life.run(
                    frames, peaceful, delay=generator.uniform(0, 0.03)
                ):
                    return
            if not life.lost:
                life.run(frames, peaceful)

        life = live(secagg, folder, run)
        shutil.rmtree(folder)
        killed += life.kills
        lost += life.lost
    assert killed > 100
    assert lost < 300
