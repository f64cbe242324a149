"""The state of both machines as bytes, field by field, and back.

What can be derived again from the configuration (graph, edges, places) is derived again; identity
keys and directories are the owner's and are given to the new machine as they were to the old one.
Frames in the snapshot are sent again as they are, because a second encryption under one channel key
would give two plaintexts away. Whether a snapshot may be used at all is decided by
:mod:`securefl.protocols.snapshot`; this module knows the fields, and that a machine ends with one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from securefl.errors import LocalProtocolError, SnapshotError, WireError
from securefl.modular import RingVector, Words, ring_dtype
from securefl.primitives.channel import AgreementKey
from securefl.primitives.prg import KEY_BYTES
from securefl.protocols.machine import Outbound
from securefl.protocols.secagg.graph import Edges, graph_of
from securefl.protocols.secagg.keys import SEED_BYTES
from securefl.protocols.secagg.messages import (
    B_WORDS,
    CIPHERTEXT_BYTES,
    ENTRY_BYTES,
    S_WORDS,
    SIGNED_ENTRY_BYTES,
    AdvertiseKeys,
    RosterEntry,
    message_type,
)
from securefl.protocols.secagg.transitions import SERVER_PHASES, MessageType, Phase
from securefl.protocols.snapshot import (
    SecretsToken,
    SnapshotHeader,
    StateReader,
    StateWriter,
    open_snapshot,
    seal_snapshot,
)
from securefl.round import AggregateSum, ClientId, RoundConfig
from securefl.wire import SIGNATURE_BYTES, Reader, packed_bytes

if TYPE_CHECKING:
    from securefl.protocols.secagg.client import SecAggClient
    from securefl.protocols.secagg.server import SecAggServer

__all__ = ["RestartableMachine", "read_client", "read_server", "write_client", "write_server"]

VERSION = 1
"""Of the layout below; a state of another version is refused, never guessed at."""

_PHASES = (
    Phase.ADVERTISE_KEYS,
    Phase.SHARE_KEYS,
    Phase.MASKED_INPUT_COLLECTION,
    Phase.CONSISTENCY_CHECK,
    Phase.UNMASKING,
    Phase.DONE,
    Phase.ABORTED,
)
_CHANNEL_KEY_BYTES = 32
_ADVERTISED_BYTES = 96


class RestartableMachine(ABC):
    """What both machines do with their state: see :class:`securefl.protocols.snapshot.Restartable`.

    A machine says what its state is; everything that makes a snapshot single-use is here.
    """

    _config: RoundConfig
    _phase: Phase
    _sequence: int = 0  # of the snapshot that it was restored from

    def snapshot(
        self,
        storage_key: bytes,
        allow_secrets: SecretsToken,
        *,
        outbound: Sequence[Outbound] = (),
    ) -> bytes:
        """The state of this machine, encrypted. **Consumes the machine**: no call works afterwards.

        Store the bytes before a frame of ``outbound`` leaves (:class:`securefl.restart.Keeper` does
        it in that order). In DONE and ABORTED there are no secrets left; the token is asked for all
        the same.

        Args:
            storage_key: 32 random bytes that are kept elsewhere than the snapshot.
            allow_secrets: :data:`securefl.protocols.snapshot.SECRETS`.
            outbound: the frames that the last call returned; :meth:`restore` hands them out again.

        Raises:
            TypeError: without the token.
            ConfigurationError: if the storage key is not 32 bytes. The machine can still be used.
            LocalProtocolError: for a second snapshot of one machine.
        """
        self._usable()
        out = StateWriter()
        self._write_state(out)
        out.outbound(outbound)
        header = self._header(self._sequence + 1)
        blob = seal_snapshot(storage_key, allow_secrets, header, out.finish())
        self._phase = Phase.EXPORTED
        self._wipe()
        return blob

    def restore(self, storage_key: bytes, blob: bytes, *, sequence: int) -> list[Outbound]:
        """Goes on from a snapshot; only on a fresh machine, made with the same arguments.

        Args:
            storage_key: as given to :meth:`snapshot`.
            blob: what it returned.
            sequence: number of the newest snapshot, as the store has it.

        Returns:
            The frames to send again, byte for byte; whoever has them already ignores them.

        Raises:
            SnapshotError: for a wrong key, role, session or sequence number, or changed bytes. The
                machine is ABORTED then: starting over could answer twice.
            ConfigurationError: if the storage key is not 32 bytes.
            LocalProtocolError: if this machine was used before.
        """
        if not self._fresh:
            raise LocalProtocolError("a snapshot is restored into a fresh machine only")
        try:
            return self._take_over(storage_key, blob, sequence)
        except SnapshotError:
            self._phase = Phase.ABORTED
            self._wipe()
            raise

    def _take_over(self, storage_key: bytes, blob: bytes, sequence: int) -> list[Outbound]:
        raw = open_snapshot(storage_key, blob, self._header(sequence))
        try:
            outbound = self._read_state(StateReader(raw))
        except WireError as error:
            raise SnapshotError(f"the snapshot's content is not understood: {error}") from None
        self._sequence = sequence
        return outbound

    def _header(self, sequence: int) -> SnapshotHeader:
        config = self._config
        return SnapshotHeader(
            protocol=config.protocol, role=self._role, session=config.digest(), sequence=sequence
        )

    def _usable(self) -> None:
        if self._phase is Phase.EXPORTED:
            raise LocalProtocolError(
                "this machine's state went into a snapshot: go on with one restored from it"
            )

    @property
    @abstractmethod
    def _role(self) -> ClientId:
        """Whose machine it is."""

    @property
    @abstractmethod
    def _fresh(self) -> bool:
        """Whether nothing has happened to this machine."""

    @abstractmethod
    def _write_state(self, out: StateWriter) -> None:
        """Writes every field that cannot be derived again."""

    @abstractmethod
    def _read_state(self, state: StateReader) -> list[Outbound]:
        """Takes over what :meth:`_write_state` wrote; the frames to send again."""

    @abstractmethod
    def _wipe(self) -> None:
        """Drops every secret."""


def _largest_frame(config: RoundConfig) -> int:
    """No frame of the session is longer: a roster, the shares for everybody, or a vector."""
    per_peer = 5 + SIGNED_ENTRY_BYTES + 32 * 32
    return 256 + config.n * per_peer + packed_bytes(config.m, config.b)


def _begin(out: StateWriter, phase: Phase, beacon: bytes | None) -> None:
    out.u8(VERSION)
    out.u8(_PHASES.index(phase))
    out.optional(beacon)


def _read_begin(state: StateReader) -> tuple[Phase, bytes | None]:
    version = state.u8()
    if version != VERSION:
        raise WireError(f"this library reads snapshots of version {VERSION}, found {version}")
    phase = state.u8()
    if phase >= len(_PHASES):
        raise WireError(f"unknown phase {phase}")
    return _PHASES[phase], state.optional(32)


def _same_beacon(config: RoundConfig, given: bytes | None, stored: bytes | None) -> bytes | None:
    if given is not None and stored is not None and given != stored:
        raise WireError("the snapshot was made with another beacon than this machine was given")
    return given if stored is None else stored


# -- the client -----------------------------------------------------------------------------------


def write_client(machine: SecAggClient, out: StateWriter) -> None:
    """The state of a client, without the frames to send again."""
    _begin(out, machine._phase, machine._beacon)
    out.u32(len(machine._accepted))
    for kind, digest in sorted(machine._accepted.items()):
        out.u8(kind)
        out.raw(digest)
    out.optional(machine._end.session)
    out.optional(None if machine._own_entry is None else machine._own_entry.encode())
    out.ids(machine._P)
    out.bits(machine._in_U2)
    out.bits(machine._in_U3)
    out.optional(machine._survivors)
    out.bits(machine._readable)
    out.u8(machine._input_given)
    out.u8(machine._emitted_input)
    out.u8(machine._secrets is not None)
    if machine._secrets is not None:
        _write_secrets(out, machine)


def _write_secrets(out: StateWriter, machine: SecAggClient) -> None:
    secrets = machine._secrets
    assert secrets is not None  # noqa: S101  # the caller looked
    out.optional(None if secrets.c is None else secrets.c.secret())
    out.optional(secrets.s_sk)
    out.optional(secrets.b)
    for keys in (secrets.pair_keys, secrets.channel_keys):
        out.ids(list(keys))
        for key in keys.values():
            out.raw(key)
    for array in (secrets.words, secrets.own_b_share, secrets.b_shares, secrets.s_shares):
        out.optional(None if array is None else _little(array))


def read_client(machine: SecAggClient, state: StateReader) -> list[Outbound]:
    """Fills a fresh client; the frames to send again."""
    config = machine._config
    phase, beacon = _read_begin(state)
    machine._beacon = _same_beacon(config, machine._beacon, beacon)
    if machine._beacon is not None:
        machine._graph = graph_of(config, machine._beacon)
    machine._accepted = {
        message_type(state.u8()): state.raw(32) for _ in range(state.count(len(MessageType)))
    }
    machine._end.session = state.optional(32)
    entry = state.optional(SIGNED_ENTRY_BYTES if machine._active else ENTRY_BYTES)
    if entry is not None:
        machine._own_entry = RosterEntry.read(Reader(entry), signed=machine._active)
    machine._P = state.ids(config.cohort)
    machine._in_U2 = state.bits(len(machine._P))
    machine._in_U3 = state.bits(len(machine._P))
    machine._survivors = state.optional(-(-config.n // 8))
    Q = 0 if machine._in_U2 is None else int(machine._in_U2.sum())
    machine._readable = state.bits(Q)
    machine._input_given = state.flag()
    machine._emitted_input = state.flag()
    if state.flag():
        _read_secrets(machine, state, Q)
    else:
        machine._wipe()
    outbound = state.outbound(2, _largest_frame(config))
    state.finish()
    machine._phase = phase
    return outbound


def _read_secrets(machine: SecAggClient, state: StateReader, Q: int) -> None:
    secrets = machine._live()
    config = machine._config
    c_sk = state.optional(32)
    secrets.c = None if c_sk is None else AgreementKey(c_sk)
    secrets.s_sk = state.optional(32)
    secrets.s = None if secrets.s_sk is None else AgreementKey(secrets.s_sk)
    secrets.b = state.optional(SEED_BYTES)
    secrets.pair_keys = {v: state.raw(KEY_BYTES) for v in state.ids(config.cohort)}
    secrets.channel_keys = {v: state.raw(_CHANNEL_KEY_BYTES) for v in state.ids(config.cohort)}
    secrets.words = _read_words(state, config)
    secrets.own_b_share = _read_shares(state, (B_WORDS,))
    secrets.b_shares = _read_shares(state, (Q, B_WORDS))
    secrets.s_shares = _read_shares(state, (Q, S_WORDS))


# -- the server -----------------------------------------------------------------------------------


def write_server(machine: SecAggServer, out: StateWriter) -> None:
    """The state of a server, without the frames to send again."""
    _begin(out, machine._phase, machine._beacon)
    out.optional(machine._end.session)
    signed = {key: signature for key, signature in machine._signatures.items() if signature}
    for table in (machine._accepted, signed):
        out.u32(len(table))
        for (kind, u), value in sorted(table.items()):
            out.u8(kind)
            out.u32(u)
            out.raw(value)
    out.ids(sorted(machine._replied))
    out.ids(sorted(machine._gone))
    out.u8(len(machine._U))
    for members in machine._U:
        out.ids(members)
    out.ids(sorted(machine._advertised))
    for _, message in sorted(machine._advertised.items()):
        out.raw(message.encode())
    ciphertexts = machine._ciphertexts
    out.optional(None if ciphertexts is None else ciphertexts.tobytes())
    out.block(machine._survivor_bitmap)
    out.optional(None if machine._total is None else _little(machine._total))
    out.u8(machine._unmasking is not None)
    if machine._unmasking is not None:
        for shares in (machine._unmasking.b, machine._unmasking.s):
            out.raw(_little(shares.words))
            out.bits(shares.present)
    _write_result(out, machine._result)


def _write_result(out: StateWriter, result: AggregateSum | None) -> None:
    out.u8(result is not None)
    if result is None:
        return
    out.optional(_little(result.vector.values))
    out.ids(result.survivors)
    out.u32(result.min_honest)
    out.u32(len(result.mismatched_pairs))
    for pair in result.mismatched_pairs:
        for u in pair:
            out.u32(u)
    out.u8(result.verified)
    out.raw(result.transcript_digest)


def read_server(machine: SecAggServer, state: StateReader) -> list[Outbound]:
    """Fills a fresh server; the frames to send again."""
    config = machine._config
    phase, beacon = _read_begin(state)
    machine._beacon = _same_beacon(config, machine._beacon, beacon)
    if machine._beacon is not None:
        machine._maybe_graph = graph_of(config, machine._beacon)
    machine._end.session = state.optional(32)
    most = config.n * len(MessageType)
    machine._accepted = {_key(state, config): state.raw(32) for _ in range(state.count(most))}
    machine._signatures = {
        _key(state, config): state.raw(SIGNATURE_BYTES) for _ in range(state.count(most))
    }
    machine._replied, machine._gone = set(state.ids(config.cohort)), set(state.ids(config.cohort))
    machine._U = [state.ids(config.cohort) for _ in range(state.u8())]
    passed = [row.phase for row in SERVER_PHASES if config.adversary in row.then]
    if phase in passed and passed.index(phase) != len(machine._U):
        raise WireError(f"{len(machine._U)} closed phases in phase {phase}")
    machine._advertised = {
        u: AdvertiseKeys.decode(state.raw(_ADVERTISED_BYTES)) for u in state.ids(config.cohort)
    }
    machine._public_keys = {
        key for message in machine._advertised.values() for key in (message.c_pk, message.s_pk)
    }
    if phase is not Phase.ADVERTISE_KEYS:
        machine._probe = None
    if machine._U:
        machine._place = {u: i for i, u in enumerate(machine._U[0])}
    if phase in (Phase.SHARE_KEYS, Phase.MASKED_INPUT_COLLECTION):
        machine._edges = Edges(machine._graph, machine._U[0], machine._U[0])
    edges = 0 if machine._edges is None else len(machine._edges)
    raw = state.optional(edges * CIPHERTEXT_BYTES)
    if raw is not None:
        flat = np.frombuffer(bytearray(raw), dtype=np.uint8)
        machine._ciphertexts = flat.reshape(edges, CIPHERTEXT_BYTES)
    machine._survivor_bitmap = state.block(-(-config.n // 8))
    machine._total = _read_words(state, config)
    if state.flag():
        if len(machine._U) < 3:  # U1, U2, U3
            raise WireError("shares for unmasking before U3 is closed")
        machine._unmasking = machine._tables(machine._U[2])
        for shares in (machine._unmasking.b, machine._unmasking.s):
            _read_shares_into(shares.words, shares.present, state)
    machine._result = _read_result(state, config)
    outbound = state.outbound(config.n, _largest_frame(config))
    state.finish()
    machine._phase = phase
    return outbound


def _key(state: StateReader, config: RoundConfig) -> tuple[MessageType, ClientId]:
    return message_type(state.u8()), state.client(config.cohort)


def _read_shares_into(
    words: NDArray[np.uint32], present: NDArray[np.bool_], state: StateReader
) -> None:
    raw = state.raw(words.size * 4)
    words[:] = np.frombuffer(raw, dtype="<u4").reshape(words.shape)
    bits = state.bits(len(present))
    if bits is None:
        raise WireError("a table of shares lacks its bitmap")
    present[:] = bits


def _read_result(state: StateReader, config: RoundConfig) -> AggregateSum | None:
    if not state.flag():
        return None
    words = _read_words(state, config)
    if words is None:
        raise WireError("a result without its vector")
    if words.size and int(words.max()) >= config.modulus:
        raise WireError(f"a result holds {int(words.max())}, which is not below {config.modulus}")
    survivors = state.ids(config.cohort)
    min_honest = state.u32()
    cohort = config.cohort
    pairs = [(state.client(cohort), state.client(cohort)) for _ in range(state.count(config.n**2))]
    return AggregateSum(
        vector=RingVector(words, config.modulus),
        survivors=survivors,
        min_honest=min_honest,
        mismatched_pairs=tuple(pairs),
        verified=state.flag(),
        transcript_digest=state.raw(32),
    )


# -- arrays ---------------------------------------------------------------------------------------


def _little(array: Words | NDArray[np.uint32]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _read_words(state: StateReader, config: RoundConfig) -> Words | None:
    """One vector of m native words, writable, or None."""
    dtype = np.dtype(ring_dtype(config.modulus))
    raw = state.optional(config.m * dtype.itemsize)
    if raw is None:
        return None
    return np.frombuffer(raw, dtype=dtype.newbyteorder("<")).astype(dtype)


def _read_shares(state: StateReader, shape: tuple[int, ...]) -> NDArray[np.uint32] | None:
    raw = state.optional(4 * int(np.prod(shape)))
    if raw is None:
        return None
    return np.frombuffer(raw, dtype="<u4").astype(np.uint32).reshape(shape)
