"""A machine that is stored and restored is the same machine, and there is never a second one."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import (
    BelowThreshold,
    ConfigurationError,
    LocalProtocolError,
    SecureFLError,
    SnapshotError,
)
from securefl.protocols.machine import Outbound
from securefl.protocols.secagg.snapshot import VERSION
from securefl.protocols.snapshot import (
    MAX_SEQUENCE,
    SECRETS,
    SnapshotHeader,
    open_snapshot,
    read_header,
    seal_snapshot,
)
from securefl.round import SERVER, ClientId, Layout

KEY = bytes(range(32))
ONE = ClientId(1)
VARIANTS: dict[str, dict[str, Any]] = {
    "secagg": {},
    "secagg, own share": {"layout": Layout.ALL},
    "secagg, active": {"active": True},
    "secagg, own share, active": {"active": True, "layout": Layout.ALL},
    "secagg+": {"n": 6, "k": 4},
    "secagg+, active": {"n": 6, "k": 4, "active": True},
}
PHASES = ["share_keys", "masked_input_collection", "consistency_check", "unmasking"]
CHANGING = {"start", "receive", "set_input", "close_phase"}


class Restarting:
    """A machine whose process restarts after every call. Everything it ever sent is in ``log``."""

    def __init__(self, machine: Any, fresh: Any, log: list[bytes]) -> None:
        self._now, self._fresh, self._log = machine, fresh, log

    def __getattr__(self, name: str) -> Any:
        if name not in CHANGING:
            return getattr(self._now, name)

        def call(*args: Any) -> Any:
            out = list(getattr(self._now, name)(*args))
            frames = [item for item in out if isinstance(item, Outbound)]
            self._log += [item.frame for item in frames]
            if self._fresh is not None:
                self.restart(frames)
            return out

        return call

    def restart(self, frames: list[Outbound]) -> None:
        before = self._now._sequence
        blob = self._now.snapshot(KEY, SECRETS, outbound=frames)
        self._now = self._fresh()
        assert self._now.restore(KEY, blob, sequence=before + 1) == frames


def streams(u: int) -> Any:
    return np.random.default_rng(u).bytes


def run(secagg: Any, variant: str, *, restarts: bool, absent: dict[str, list[int]]) -> Any:
    bench = secagg.make(**VARIANTS[variant], random_of=streams, m=5, b=37)
    frames: list[bytes] = []
    bench.server = Restarting(bench.server, bench.fresh_server if restarts else None, frames)
    for u, client in bench.clients.items():
        fresh = (lambda u=u: bench.fresh_client(u)) if restarts else None
        bench.clients[u] = Restarting(client, fresh, frames)
    bench.start(absent.get("advertise_keys", []))
    while not bench.server.final:
        bench.close()
        bench.answer(absent.get(str(bench.server.phase), []))
    return frames, bench.server.result, bench


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("phase", ["advertise_keys", "share_keys", "masked_input_collection"])
def test_restarts_between_any_two_calls_change_no_bit(
    secagg: Any, variant: str, phase: str
) -> None:
    absent = {phase: [2]}
    frames, result, _ = run(secagg, variant, restarts=False, absent=absent)
    again, result_again, bench = run(secagg, variant, restarts=True, absent=absent)
    assert again == frames
    assert result_again.transcript_digest == result.transcript_digest
    assert result_again == result
    survivors = [u for u in bench.clients if u != 2]
    assert result.vector.values.tolist() == bench.plain_sum(survivors)


@given(data=st.data())
def test_an_input_given_early_survives_a_restart(secagg: Any, data: st.DataObject) -> None:
    b = data.draw(st.sampled_from([1, 17, 32, 33, 64]))
    m = data.draw(st.sampled_from([0, 1, 7]))
    bench = secagg.make(m=m, b=b)
    fresh = {u: (lambda u=u: bench.fresh_client(u)) for u in bench.clients}
    for u, client in bench.clients.items():
        client.set_input(bench.vectors[u])
        bench.clients[u] = Restarting(client, fresh[u], [])
        bench.clients[u].restart([])
    bench.to("unmasking")
    assert bench.finish().values.tolist() == bench.plain_sum(bench.clients)


def machine_in(secagg: Any, phase: str, role: str, **options: Any) -> tuple[Any, Any, Any]:
    """A session whose server has opened ``phase``; the machine, and what makes a fresh one."""
    bench = secagg.make(**options).to(phase)
    if role == "server":
        bench.answer(without=[2])
        return bench, bench.server, bench.fresh_server
    return bench, bench.clients[ONE], lambda: bench.fresh_client(ONE)


PLACES = [(phase, role) for phase in PHASES for role in ("client", "server")]


@pytest.mark.parametrize(("phase", "role"), PLACES)
def test_a_stored_machine_refuses_every_call_and_holds_nothing(
    secagg: Any, phase: str, role: str
) -> None:
    bench, machine, _ = machine_in(secagg, phase, role, active=True)
    machine.snapshot(KEY, SECRETS)
    frame = bench.inbox[ONE] if role == "client" else bench.sent[ONE, "advertise_keys"]
    calls = [
        lambda: machine.receive(frame),
        lambda: machine.snapshot(KEY, SECRETS),
        lambda: machine.restore(KEY, b"", sequence=1),
        lambda: machine.set_beacon(bytes(32)),
    ]
    if role == "client":
        calls += [machine.start, machine.abort, lambda: machine.set_input(bench.vectors[ONE])]
        assert machine._secrets is None
    else:
        calls.append(machine.close_phase)
        held = (machine._total, machine._unmasking, machine._ciphertexts, machine._probe)
        assert held == (None,) * 4
        assert machine.final
        assert not machine.ready
        assert not machine.sufficient
    for call in calls:
        with pytest.raises(LocalProtocolError):
            call()


def test_without_the_token_there_are_no_bytes(secagg: Any) -> None:
    bench = secagg.make().to("share_keys")
    for machine in (bench.clients[ONE], bench.server):
        with pytest.raises(TypeError):
            machine.snapshot(KEY)
        for wrong in (True, None, "SECRETS", 1):
            with pytest.raises(TypeError, match="SECRETS"):
                machine.snapshot(KEY, wrong)
        assert machine.phase == "share_keys"
    bench.finish()  # a refused call consumed nothing


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), "k" * 32, None])
def test_a_storage_key_has_32_bytes(secagg: Any, key: Any) -> None:
    client = secagg.make().to("share_keys").clients[ONE]
    with pytest.raises(ConfigurationError, match="32"):
        client.snapshot(key, SECRETS)
    blob = client.snapshot(KEY, SECRETS)
    with pytest.raises(ConfigurationError, match="32"):
        secagg.make().clients[ONE].restore(key, blob, sequence=1)


@pytest.mark.parametrize("role", ["client", "server"])
def test_another_key_role_session_or_number_is_refused(secagg: Any, role: str) -> None:
    bench, machine, fresh = machine_in(secagg, "unmasking", role)
    first = machine.snapshot(KEY, SECRETS)
    machine = fresh()
    machine.restore(KEY, first, sequence=1)
    second = machine.snapshot(KEY, SECRETS)

    other = secagg.make(nonce=os.urandom(32))
    two = bench.clients[ClientId(2)]
    theirs = other.clients[ONE] if role == "client" else other.server
    for blob, sequence, words in [
        (first, 2, "snapshot 1 where 2 was expected"),
        (second, 1, "snapshot 2 where 1 was expected"),
        (second, MAX_SEQUENCE, "expected"),
        (two.snapshot(KEY, SECRETS), 1, "client 2"),
        (theirs.snapshot(KEY, SECRETS), 1, "session"),
    ]:
        with pytest.raises(SnapshotError, match=words):
            fresh().restore(KEY, blob, sequence=sequence)
    with pytest.raises(SnapshotError, match="another storage key"):
        fresh().restore(bytes(32), second, sequence=2)
    fresh().restore(KEY, second, sequence=2)


def test_a_header_that_is_rewritten_to_fit_does_not_open(secagg: Any) -> None:
    """The number, role and session are authenticated, not only compared."""
    bench, machine, _ = machine_in(secagg, "unmasking", "client")
    blob = machine.snapshot(KEY, SECRETS)
    for field, value in [("sequence", 2), ("role", ClientId(2)), ("session", bytes(32))]:
        old = read_header(blob)
        changed = SnapshotHeader(**{n: getattr(old, n) for n in old.__slots__} | {field: value})
        raw = changed.encode()
        with pytest.raises(SnapshotError, match="does not open"):
            open_snapshot(KEY, raw + blob[len(raw) :], changed)
    assert bench.config.digest() == read_header(blob).session


@pytest.mark.parametrize("role", ["client", "server"])
def test_every_changed_byte_and_every_cut_is_refused(secagg: Any, role: str) -> None:
    _, machine, fresh = machine_in(secagg, "unmasking", role, n=4)
    blob = machine.snapshot(KEY, SECRETS)
    for place in range(len(blob)):
        changed = bytearray(blob)
        changed[place] ^= 1 << place % 8
        with pytest.raises(SnapshotError):
            fresh().restore(KEY, bytes(changed), sequence=1)
    for size in {*range(0, len(blob), 7), 47, 48, 75, 76, len(blob) - 1}:
        with pytest.raises(SnapshotError):
            fresh().restore(KEY, blob[:size], sequence=1)
    with pytest.raises(SnapshotError):
        fresh().restore(KEY, blob + b"\0", sequence=1)
    fresh().restore(KEY, blob, sequence=1)


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_failed_restore_ends_the_machine(secagg: Any, role: str) -> None:
    """Otherwise its driver could start over: fresh keys under an old session."""
    _, machine, fresh = machine_in(secagg, "unmasking", role)
    blob = machine.snapshot(KEY, SECRETS)
    victim = fresh()
    with pytest.raises(SnapshotError):
        victim.restore(bytes(32), blob, sequence=1)
    assert victim.phase == "aborted"
    with pytest.raises(LocalProtocolError):
        victim.start() if role == "client" else victim.close_phase()


@pytest.mark.parametrize("role", ["client", "server"])
def test_only_a_fresh_machine_takes_a_state_over(secagg: Any, role: str) -> None:
    bench, machine, fresh = machine_in(secagg, "unmasking", role)
    blob = machine.snapshot(KEY, SECRETS)
    restored = fresh()
    restored.restore(KEY, blob, sequence=1)
    used = secagg.make().to("share_keys")
    begun = used.clients[ONE] if role == "client" else used.server
    for busy in (restored, begun):
        with pytest.raises(LocalProtocolError, match="fresh"):
            busy.restore(KEY, blob, sequence=1)
    assert bench.config.n == 5


@pytest.mark.parametrize(("phase", "role"), PLACES)
def test_a_sealed_state_that_no_machine_wrote_is_refused_cleanly(
    secagg: Any, phase: str, role: str
) -> None:
    """Whoever has the key can seal anything: lengths, flags and names are checked all the same."""
    _, machine, fresh = machine_in(secagg, phase, role, active=True, m=3)
    blob = machine.snapshot(KEY, SECRETS)
    header = read_header(blob)
    state = open_snapshot(KEY, blob, header)

    def refused(changed: bytes) -> bool:
        try:
            fresh().restore(KEY, seal_snapshot(KEY, SECRETS, header, changed), sequence=1)
        except SnapshotError as error:
            assert "not understood" in str(error)
            return True
        return False

    refusals = 0
    for place in range(len(state)):
        changed = bytearray(state)
        changed[place] ^= 1 + place % 255
        refusals += refused(bytes(changed))  # another secret is as good as the right one
    assert refusals > 20
    assert refused(bytes([VERSION + 1]) + state[1:])
    assert refused(state + b"\0")
    assert all(refused(state[:size]) for size in range(0, len(state), 11))
    assert not refused(state)


@pytest.mark.parametrize("end", ["done", "aborted"])
def test_a_sealed_state_of_a_finished_server_is_checked_like_any_other(
    secagg: Any, end: str
) -> None:
    """Among other things a sum outside the ring, and shares of survivors that nobody ever named."""
    bench = secagg.make(m=3, b=20)
    if end == "done":
        bench.to("unmasking").finish()
    else:
        with pytest.raises(BelowThreshold):
            bench.server.close_phase()
    blob = bench.server.snapshot(KEY, SECRETS)
    header = read_header(blob)
    state = open_snapshot(KEY, blob, header)
    refusals = 0
    for place in range(len(state)):
        for value in (0, 1, 255):
            changed = bytearray(state)
            changed[place] = value
            machine = bench.fresh_server()
            sealed = seal_snapshot(KEY, SECRETS, header, bytes(changed))
            try:
                machine.restore(KEY, sealed, sequence=1)
            except SnapshotError as error:
                refusals += 1
                assert "not understood" in str(error)
                assert machine.phase == "aborted"
    assert refusals > 20


@pytest.mark.parametrize("end", ["done", "aborted"])
def test_a_finished_client_has_frames_to_send_and_no_secrets_to_store(
    secagg: Any, end: str
) -> None:
    drawn: list[bytes] = []

    def recording(u: int) -> Any:
        def random_bytes(size: int) -> bytes:
            value = os.urandom(size)
            if u == 1:
                drawn.append(value)
            return value

        return random_bytes

    bench = secagg.make(random_of=recording).to("unmasking")
    client = bench.clients[ONE]
    held = [client._secrets.b_shares.tobytes(), client._secrets.s_shares.tobytes()]
    out = client.receive(bench.inbox[ONE]) if end == "done" else client.abort()
    frames = [item for item in out if isinstance(item, Outbound)]
    assert client.phase == end
    blob = client.snapshot(KEY, SECRETS, outbound=frames)
    state = open_snapshot(KEY, blob, read_header(blob))
    for item in frames:
        state = state.replace(item.frame, b"")  # the answer opens shares: that is what it is for
    for secret in [*drawn[:3], *held]:
        assert secret not in state
    again = bench.fresh_client(ONE)
    assert again.restore(KEY, blob, sequence=1) == frames
    assert again.phase == end
    if end == "done":
        assert again.receive(bench.inbox[ONE]) == []  # a byte-identical repeat
        changed = secagg.edit(bench.inbox[ONE], body=b"another list")
        with pytest.raises(SecureFLError):
            again.receive(changed)


def test_a_restored_client_answers_no_second_request(secagg: Any) -> None:
    bench = secagg.make().to("unmasking")
    client = bench.clients[ONE]
    client.receive(bench.inbox[ONE])
    again = bench.fresh_client(ONE)
    again.restore(KEY, client.snapshot(KEY, SECRETS), sequence=1)
    body = bytearray(secagg.body_of(bench.inbox[ONE]))
    body[0] -= 1
    body[4] ^= 1
    with pytest.raises(SecureFLError) as caught:
        again.receive(secagg.edit(bench.inbox[ONE], body=bytes(body)))
    assert caught.value.outbound == ()


def test_a_result_survives_a_restart(secagg: Any) -> None:
    bench = secagg.make(b=40).to("unmasking")
    bench.finish()
    result = bench.server.result
    again = bench.fresh_server()
    again.restore(KEY, bench.server.snapshot(KEY, SECRETS), sequence=1)
    assert again.result == result
    assert result.survivors == again.survivors.U3
    with pytest.raises(LocalProtocolError):
        again.close_phase()


def test_a_restored_server_still_loses_a_round_below_the_threshold(secagg: Any) -> None:
    bench = secagg.make().to("unmasking")
    bench.answer(without=[2, 3])
    again = bench.fresh_server()
    again.restore(KEY, bench.server.snapshot(KEY, SECRETS), sequence=1)
    with pytest.raises(BelowThreshold):
        again.close_phase()
    assert again.result is None


def test_a_snapshot_under_another_beacon_is_refused(secagg: Any) -> None:
    options = {"n": 6, "k": 4, "active": True}
    bench = secagg.make(**options).to("share_keys")
    other = secagg.make(**options, beacon=bytes(32))
    pairs = [(bench.clients[ONE], other.clients[ONE]), (bench.server, other.server)]
    for machine, stranger in pairs:
        with pytest.raises(SnapshotError, match="beacon"):
            stranger.restore(KEY, machine.snapshot(KEY, SECRETS), sequence=1)


def test_the_numbers_of_snapshots_end_before_they_repeat(secagg: Any) -> None:
    client = secagg.make().clients[ONE]
    client._sequence = MAX_SEQUENCE
    with pytest.raises(LocalProtocolError, match="used up"):
        client.snapshot(KEY, SECRETS)


def test_the_header_says_whose_snapshot_it_is(secagg: Any) -> None:
    bench = secagg.make().to("share_keys")
    for machine, role in [(bench.clients[ONE], ONE), (bench.server, SERVER)]:
        header = read_header(machine.snapshot(KEY, SECRETS))
        assert (header.role, header.sequence) == (role, 1)
        assert header.session == machine.config_digest == bench.config.digest()


def test_a_frame_for_everybody_is_stored_once(secagg: Any) -> None:
    bench = secagg.make(n=12)
    bench.start()
    out = [item for item in bench.server.close_phase() if isinstance(item, Outbound)]
    assert len(out) == 12
    blob = bench.server.snapshot(KEY, SECRETS, outbound=out)
    state = open_snapshot(KEY, blob, read_header(blob))
    assert state.count(out[0].frame) == 1
    assert bench.fresh_server().restore(KEY, blob, sequence=1) == out
