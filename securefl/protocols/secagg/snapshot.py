"""The state of both machines as bytes, field by field, and back.

What can be derived again from the configuration (graph, edges, places) is derived again; identity
keys and directories are the owner's and are given to the new machine as they were to the old one.
Frames in the snapshot are sent again as they are, because a second encryption under one channel key
would give two plaintexts away. Whether a snapshot may be used at all is decided by
:mod:`securefl.protocols.snapshot`; this module knows the fields and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from securefl.errors import SnapshotError, WireError
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
    SnapshotHeader,
    StateReader,
    StateWriter,
    open_snapshot,
    seal_snapshot,
)
from securefl.round import SERVER, AggregateSum, ClientId, RoundConfig
from securefl.wire import SIGNATURE_BYTES, Reader, packed_bytes

if TYPE_CHECKING:
    from securefl.protocols.secagg.client import SecAggClient
    from securefl.protocols.secagg.server import SecAggServer

__all__ = ["export_client", "export_server", "restore_client", "restore_server"]

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


def _header(config: RoundConfig, role: ClientId, sequence: int) -> SnapshotHeader:
    return SnapshotHeader(
        protocol=config.protocol, role=role, session=config.digest(), sequence=sequence
    )


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


def export_client(
    machine: SecAggClient, storage_key: bytes, allow_secrets: object, outbound: Sequence[Outbound]
) -> bytes:
    """The sealed state of a client. See :meth:`SecAggClient.snapshot`."""
    out = StateWriter()
    _begin(out, machine._phase, machine._beacon)
    out.u32(len(machine._accepted))
    for kind, digest in sorted(machine._accepted.items()):
        out.u8(kind)
        out.raw(digest)
    out.optional(machine._session)
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
    out.outbound(outbound)
    header = _header(machine._config, machine._u, machine._sequence + 1)
    return seal_snapshot(storage_key, allow_secrets, header, out.finish())


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


def restore_client(
    machine: SecAggClient, storage_key: bytes, blob: bytes, sequence: int
) -> list[Outbound]:
    """Fills a fresh client. See :meth:`SecAggClient.restore`."""
    raw = open_snapshot(storage_key, blob, _header(machine._config, machine._u, sequence))
    try:
        outbound = _read_client(machine, StateReader(raw))
    except WireError as error:
        raise SnapshotError(f"the snapshot's content is not understood: {error}") from None
    machine._sequence = sequence
    return outbound


def _read_client(machine: SecAggClient, state: StateReader) -> list[Outbound]:
    config = machine._config
    phase, beacon = _read_begin(state)
    machine._beacon = _same_beacon(config, machine._beacon, beacon)
    if machine._beacon is not None:
        machine._graph = graph_of(config, machine._beacon)
    machine._accepted = {
        message_type(state.u8()): state.raw(32) for _ in range(state.count(len(MessageType)))
    }
    machine._session = state.optional(32)
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


def export_server(
    machine: SecAggServer, storage_key: bytes, allow_secrets: object, outbound: Sequence[Outbound]
) -> bytes:
    """The sealed state of a server. See :meth:`SecAggServer.snapshot`."""
    out = StateWriter()
    _begin(out, machine._phase, machine._beacon)
    out.optional(machine._session)
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
    out.outbound(outbound)
    header = _header(machine._config, SERVER, machine._sequence + 1)
    return seal_snapshot(storage_key, allow_secrets, header, out.finish())


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


def restore_server(
    machine: SecAggServer, storage_key: bytes, blob: bytes, sequence: int
) -> list[Outbound]:
    """Fills a fresh server. See :meth:`SecAggServer.restore`."""
    raw = open_snapshot(storage_key, blob, _header(machine._config, SERVER, sequence))
    try:
        outbound = _read_server(machine, StateReader(raw))
    except WireError as error:
        raise SnapshotError(f"the snapshot's content is not understood: {error}") from None
    machine._sequence = sequence
    return outbound


def _read_server(machine: SecAggServer, state: StateReader) -> list[Outbound]:
    config = machine._config
    phase, beacon = _read_begin(state)
    machine._beacon = _same_beacon(config, machine._beacon, beacon)
    if machine._beacon is not None:
        machine._maybe_graph = graph_of(config, machine._beacon)
    machine._session = state.optional(32)
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
