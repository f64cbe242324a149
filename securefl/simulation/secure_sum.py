"""``secure_sum``: integer vectors in, their sum out, through the whole protocol in memory.

The machines, messages and checks are the real ones; only the network is simulated. What the
"server" of this process learns is in the transcript of the result. A secure sum hides the inputs
behind the sum and does not make the sum private: for that, add noise before (differential privacy).
Against an active server clients need identities that the server did not hand out; here one process
makes fresh ones for the call, which shows what that variant does and costs, and protects nobody.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.modular import RingVector, ring_dtype
from securefl.primitives.field import PRIME
from securefl.primitives.signing import IdentityKey
from securefl.protocols.lightsecagg.client import LightSecAggClient
from securefl.protocols.lightsecagg.params import (
    LightSecAggParams,
    check_sum_fits,
    most_colluders,
    most_input_bits,
)
from securefl.protocols.lightsecagg.parties import make_parties as make_coded_parties
from securefl.protocols.lightsecagg.server import LightSecAggServer
from securefl.protocols.machine import ClientMachine, PeerMachine, ServerMachine
from securefl.protocols.peersum import params as peersum
from securefl.protocols.secagg.choice import least_alive, strongest
from securefl.protocols.secagg.params import ClientPolicy, SecAggParams
from securefl.protocols.secagg.parties import make_parties
from securefl.round import (
    SERVER,
    Adversary,
    ClientId,
    Cohort,
    Protocol,
    RoundConfig,
    RoundId,
    ThreatModel,
)
from securefl.simulation.network import Direction
from securefl.simulation.peers import fresh_peers, run_peers
from securefl.simulation.peers import strongest as strongest_peers
from securefl.simulation.session import SessionResult, run_session

__all__ = ["SecureSum", "TranscriptRecord", "default_threshold", "secure_sum"]

Vector: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]

_PAILLIER = ("paillier", "paillier-threshold")
_PROTOCOLS = ("secagg", "secagg+", "lightsecagg", *_PAILLIER, "peersum")
_ADVERSARIES = {"semi-honest": Adversary.SEMI_HONEST, "active": Adversary.ACTIVE}
_CONTEXT = bytes(32)  # one process, no model: there is nothing that clients could differ in


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptRecord:
    """One frame that the server sent or received; in peersum, that one peer sent to another.

    Attributes:
        phase: lower-case name of the phase.
        direction: "up" to the server, "down" from it, "across" between peers.
        sender, recipient: the caller's client id, "server", or with Paillier "witness 1",
            "key holder 1" or "share holder 1" and so on.
        frame: the bytes.
    """

    phase: str
    direction: Direction
    sender: int | str
    recipient: int | str
    frame: bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SecureSum:
    """The sum and how it came about.

    Attributes:
        sum: uint64[m], the sum of the survivors' vectors modulo 2^bits, or the given modulus
            ("lightsecagg" and "peersum" with bits: as it is).
        survivors: the caller's ids whose vectors are in the sum, ascending.
        transcript: everything the server saw, in its order; in peersum, all frames as sent.
        bytes_up, bytes_down: bytes per client id.
    """

    sum: NDArray[np.uint64]
    survivors: tuple[int, ...]
    transcript: tuple[TranscriptRecord, ...] = field(repr=False)
    bytes_up: dict[int, int]
    bytes_down: dict[int, int]

    @property
    def total_bytes_up(self) -> int:
        """Bytes that all clients sent."""
        return sum(self.bytes_up.values())

    @property
    def total_bytes_down(self) -> int:
        """Bytes that were sent to all clients."""
        return sum(self.bytes_down.values())


def default_threshold(n: int) -> int:
    """⌊2n/3⌋ + 1: the fewest clients that must be alive in every phase unless said otherwise."""
    return 2 * n // 3 + 1


def secure_sum(
    vectors: Mapping[int, Vector],
    *,
    protocol: str = "secagg",
    adversary: str = "semi-honest",
    drop: Mapping[str, Collection[int]] | None = None,
    threshold: int | None = None,
    degree: int | None = None,
    bits: int | None = None,
    modulus: int | None = None,
    processes: int = 1,
    experimental_active_graph: bool = False,
) -> SecureSum:
    """Sums integer vectors so that the server (or a peer) sees hidden vectors and the sum only.

    Args:
        vectors: by client id (any integers), at least 3; equal lengths, 0 is allowed; lists,
            tuples or integer arrays with 0 <= value < 2^bits.
        protocol: "secagg" (every client shares masks with every other), "secagg+" (with
            ``degree`` others on a random ring; one client in twenty, at least one, may collude) or
            "lightsecagg" (coded shares of one mask per client; half of the clients may collude, or
            ``threshold`` - 2 if that is less, or what an active adversary leaves), "paillier" (a
            key holder opens what a witness has checked; one client may collude) or
            "paillier-threshold" (4 of 5 share holders open). With Paillier the server may always
            lie, and this process makes a key of 2048 bits for itself, which takes seconds once.
            "peersum" has no server: every client shares its vector with every other, at most
            2 ``threshold`` - n - 1 of them may lie, and ``threshold`` - 1 may pool what they see.
        adversary: "semi-honest": the server follows the protocol and may collude with fewer than
            ``threshold`` - 1 clients. "active": it may also tell each client something else, and
            collude with at most 2 (``threshold`` - 1) - n; one more phase, signed messages.
        drop: phase ("advertise_keys", "share_keys", "masked_input_collection", with an active
            adversary "consistency_check", "unmasking"; in "lightsecagg" "share_masks" for the
            second and "recovery" for the last; with Paillier "check_in",
            "masked_input_collection"; in peersum "advertise_keys", "share_input", "report",
            "confirm", "reveal_sum") to the clients that vanish before they send that phase's
            message.
        threshold: fewest clients that must be alive in every phase, 3..n; default ⌊2n/3⌋ + 1 (more
            where an active adversary needs more). In "secagg" the secret sharing threshold is one
            less. In "secagg+" it counts until the vectors are in; after that every client needs
            enough of its neighbours.
        degree: neighbours per client in "secagg+", even; default the smallest that is safe.
        bits: the sum is modulo 2^bits, 1..64; default 32. In "lightsecagg" and "peersum" the bits
            of an entry, so few that no sum wraps around 2^31 - 1; default the most. With Paillier
            the sum of all vectors must fit a slot of 62 bits.
        modulus: in place of ``bits``, for entries that are residues already, 0 <= value < modulus,
            and a sum that is one: 2^31 - 1 in "lightsecagg" and "peersum", elsewhere 2^bits.
        processes: worker processes in which the server expands masks, 1..256; 1 has none, and must
            be 1 with Paillier and "peersum", which have no masks. The sum is the same. Pays off for
            many dropouts and long vectors. Workers import the calling script, which therefore needs
            an ``if __name__ == "__main__":`` guard.
        experimental_active_graph: must be True for "secagg+" against an active adversary, for which
            there is an argument and no published proof.

    Returns:
        The sum over the clients that stayed until their vector was sent, exact modulo 2^bits.

    Raises:
        ConfigurationError: for input that cannot be summed; names client, index and value.
        BelowThreshold: fewer than ``threshold`` clients were left in some phase, or fewer
            neighbours than shares are needed. No sum was opened.

    >>> result = secure_sum(
    ...     {1: [1, 2], 2: [10, 20], 3: [100, 200], 4: [1000, 2000]},
    ...     drop={"masked_input_collection": [4]},
    ... )
    >>> result.sum.tolist(), result.survivors
    ([111, 222], (1, 2, 3))
    >>> secure_sum({u: [u] for u in range(12)}, protocol="secagg+", adversary="semi-honest").sum[0]
    np.uint64(66)
    """
    if protocol not in _PROTOCOLS:
        raise ConfigurationError(f"this version has protocols {_PROTOCOLS}, found {protocol!r}")
    if adversary not in _ADVERSARIES:
        raise ConfigurationError(
            f"the adversary is one of {tuple(_ADVERSARIES)} (a server that follows the protocol, "
            f"or one that does not), found {adversary!r}"
        )
    outside = _client_ids(vectors)
    if modulus is not None:
        bits = _residue_bits(protocol, modulus, bits)
    else:
        bits = _entry_bits(len(outside), protocol, bits)
        modulus = 1 << bits
    inside = {theirs: ClientId(i) for i, theirs in enumerate(outside)}
    integers = {inside[c]: _ring_vector(c, vectors[c], modulus) for c in outside}
    lengths = {c: len(integers[inside[c]]) for c in outside}
    m = lengths[outside[0]]
    odd = [c for c in outside if lengths[c] != m]
    if odd:
        raise ConfigurationError(
            f"all vectors need one length: client {outside[0]} has {m} entries, "
            f"client {odd[0]} has {lengths[odd[0]]}"
        )
    workers = _whole("processes", processes, least=1, most=256)
    cohort = Cohort.of(inside.values())
    # The caller chose the threshold for all clients: none of them has a policy of its own.
    policy = ClientPolicy(gamma=0, experimental_active_graph=experimental_active_graph)
    session: _Session | _PeerSession
    with _pool(workers) as executor:
        if protocol in _PAILLIER:
            session = _encrypted(protocol, cohort, policy, threshold, degree, workers, m, bits)
        elif protocol == "peersum":
            session = _among_peers(cohort, policy, threshold, degree, workers, m)
        else:
            params = _params(len(outside), protocol, _ADVERSARIES[adversary], threshold, degree)
            config = _config(params, cohort, m, bits)
            session = _Session(config, *_machines(config, policy, executor))
        ring_of = session.config.modulus
        ring = {u: RingVector(vector.values, ring_of) for u, vector in integers.items()}
        result = session.run(ring, _drops(drop, inside, session.phases))

    def name(u: ClientId) -> int | str:
        if u == SERVER:
            return "server"
        return outside[u] if u in session.clients else session.names[u]

    return SecureSum(
        sum=result.aggregate.vector.values.astype(np.uint64),
        survivors=tuple(outside[u] for u in result.aggregate.survivors),
        transcript=tuple(
            TranscriptRecord(
                phase=e.phase,
                direction=e.direction,
                sender=name(e.sender),
                recipient=name(e.recipient),
                frame=e.frame,
            )
            for e in result.transcript
        ),
        bytes_up={c: result.bytes_up.get(u, 0) for c, u in inside.items()},
        bytes_down={c: result.bytes_down.get(u, 0) for c, u in inside.items()},
    )


def _client_ids(vectors: Mapping[int, Vector]) -> list[int]:
    """The caller's ids, ascending; position is the id inside the protocol."""
    given: object = vectors  # what arrives at run time may be anything
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"vectors must be a mapping from client id to vector, found {type(given).__name__}"
        )
    for c in vectors:
        if not _is_id(c):
            raise ConfigurationError(f"client ids must be integers, found {c!r}")
    if len(vectors) < 3:
        raise ConfigurationError(
            f"a secure sum needs at least 3 clients, found {len(vectors)}: "
            "of two, each learns the other's vector from the sum"
        )
    return sorted(vectors)


def _is_id(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


_Drops = Mapping[str, Collection[ClientId]]
_Ring = Mapping[ClientId, RingVector]


class _Session(NamedTuple):
    """One session's machines; ``names`` says what the parties without an input are."""

    config: RoundConfig
    server: ServerMachine
    clients: Mapping[ClientId, ClientMachine]
    parties: Mapping[ClientId, ClientMachine] = MappingProxyType({})
    names: Mapping[ClientId, str] = MappingProxyType({})

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases, in order."""
        return self.server.phases

    def run(self, inputs: _Ring, drops: _Drops) -> SessionResult:
        """The whole session."""
        return run_session(self.server, self.clients, inputs, parties=self.parties, drops=drops)


class _PeerSession(NamedTuple):
    """One session's machines without a server."""

    config: RoundConfig
    clients: Mapping[ClientId, PeerMachine]
    names: Mapping[ClientId, str] = MappingProxyType({})

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases, in order."""
        return next(iter(self.clients.values())).phases

    def run(self, inputs: _Ring, drops: _Drops) -> SessionResult:
        """The whole session."""
        return run_peers(self.clients, inputs, drops=drops)


def _among_peers(
    cohort: Cohort,
    policy: ClientPolicy,
    threshold: int | None,
    degree: int | None,
    workers: int,
    m: int,
) -> _PeerSession:
    """A session of peersum, in which peers may always lie."""
    if degree is not None:
        raise ConfigurationError(
            f'degree={degree!r} belongs to protocol "secagg+"; "peersum" joins everybody'
        )
    if workers != 1:
        raise ConfigurationError(f'processes must be 1 with "peersum", found {workers}')
    n = len(cohort)
    wanted = max(default_threshold(n), peersum.least_quorum(n, 1))
    alive = _whole("threshold", wanted if threshold is None else threshold, least=3, most=n)
    params = strongest_peers(n, alive)
    return _PeerSession(*fresh_peers(params, cohort, m=m, context_digest=_CONTEXT, policy=policy))


def _encrypted(
    protocol: str,
    cohort: Cohort,
    policy: ClientPolicy,
    threshold: int | None,
    degree: int | None,
    workers: int,
    m: int,
    bits: int,
) -> _Session:
    """A Paillier session, in which the server may always lie."""
    from securefl.simulation.paillier import Trust, paillier_session  # noqa: PLC0415  # big integers

    if degree is not None:
        raise ConfigurationError(
            f'degree={degree!r} belongs to protocol "secagg+"; {protocol!r} has no graph'
        )
    if workers != 1:
        raise ConfigurationError(f"processes must be 1 with {protocol!r}, found {workers}")
    n = len(cohort)
    wanted = default_threshold(n) if threshold is None else threshold
    made = paillier_session(
        Trust(protocol),
        cohort,
        round_id=RoundId(0),
        alive=_whole("threshold", wanted, least=3, most=n),
        m=m,
        b=bits,
        context_digest=_CONTEXT,
        policy=policy,
    )
    return _Session(made.config, made.server, made.clients, made.parties, made.names)


def _entry_bits(n: int, protocol: str, bits: int | None) -> int:
    if protocol not in ("lightsecagg", "peersum"):
        return _whole("bits", 32 if bits is None else bits, least=1, most=64)
    entry_bits = _whole("bits", most_input_bits(n) if bits is None else bits, least=1, most=64)
    (peersum.check_sum_fits if protocol == "peersum" else check_sum_fits)(n, entry_bits)
    return entry_bits


def _residue_bits(protocol: str, modulus: int, bits: int | None) -> int:
    """The bits of a residue; refuses a ring that is not the protocol's."""
    if bits is not None:
        raise ConfigurationError(f"give bits or modulus, not both: {bits!r} and {modulus!r}")
    whole = _whole("modulus", modulus, least=2, most=1 << 64)
    if protocol in ("lightsecagg", "peersum"):
        if whole != PRIME:
            raise ConfigurationError(f'"{protocol}" sums modulo {PRIME}, found modulus {whole}')
    elif whole & (whole - 1):
        raise ConfigurationError(f'"{protocol}" sums modulo a power of two, found modulus {whole}')
    return (whole - 1).bit_length()


def _config(
    params: SecAggParams | LightSecAggParams, cohort: Cohort, m: int, bits: int
) -> RoundConfig:
    nonce = os.urandom(32)
    if isinstance(params, LightSecAggParams):
        return params.config(
            round_id=RoundId(0), cohort=cohort, m=m, context_digest=_CONTEXT, server_nonce=nonce
        )
    return params.config(
        round_id=RoundId(0), cohort=cohort, m=m, b=bits, context_digest=_CONTEXT, server_nonce=nonce
    )


def _pool(processes: int) -> AbstractContextManager[Executor | None]:
    """Workers that start on the first job. Spawned: a fork would copy all secrets and locks."""
    if processes == 1:
        return nullcontext()
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def _machines(
    config: RoundConfig, policy: ClientPolicy, executor: Executor | None
) -> tuple[ServerMachine, Mapping[ClientId, ClientMachine]]:
    """Fresh machines, with fresh identities and a fresh beacon where the session needs them."""
    if config.protocol is Protocol.LIGHTSECAGG:
        return _coded_machines(config, policy)
    active = config.adversary is Adversary.ACTIVE
    return make_parties(
        config,
        config.cohort.ids,
        context_digest=_CONTEXT,
        policy=policy,
        identities={u: IdentityKey(os.urandom(32)) for u in config.cohort} if active else {},
        beacon=os.urandom(32),
        executor=executor,
    )


def _params(
    n: int, protocol: str, adversary: Adversary, threshold: int | None, degree: int | None
) -> SecAggParams | LightSecAggParams:
    """The strongest parameters with this many alive."""
    active = adversary is Adversary.ACTIVE
    # Against a lying server 2t > n - 1 + A with A >= 1, and t = alive - 1 on the complete graph.
    least = least_alive(n, 1) if active and protocol == "secagg" else 3
    wanted = max(default_threshold(n), least) if threshold is None else threshold
    against = f" against an active server ({n} clients)" if least > 3 else ""
    alive = _whole("threshold", wanted, least=least, most=n, why=against)
    if protocol == "lightsecagg":
        return _coded(n, adversary, alive, degree)
    if protocol == "secagg+":
        return _sparse(n, adversary, alive, degree)
    t = alive - 1
    threat = ThreatModel(
        adversary=adversary, corrupt=2 * t - n if active else t - 1, dropped=n - alive
    )
    return strongest(n, threat, sparse=False, degree=degree)


def _sparse(n: int, adversary: Adversary, alive: int, degree: int | None) -> SecAggParams:
    """SecAgg+ with this degree, or the smallest that is safe and survives the dropouts."""
    threat = ThreatModel(adversary=adversary, corrupt=max(1, -(-n // 20)), dropped=n - alive)
    if degree is not None:
        degree = _whole("degree", degree, least=2, most=n - 1, why=", an even integer")
    return strongest(n, threat, sparse=True, degree=degree)


def _coded(n: int, adversary: Adversary, alive: int, degree: int | None) -> LightSecAggParams:
    """LightSecAgg that everybody alive can open, against as many colluders as it bears."""
    if degree is not None:
        raise ConfigurationError(
            f'degree={degree!r} belongs to protocol "secagg+"; "lightsecagg" joins everybody'
        )
    if adversary is Adversary.ACTIVE:  # 2U > n + T with T >= 1, and U = alive
        why = f" against an active server ({n} clients)"
        alive = _whole("threshold", alive, least=(n + 1) // 2 + 1, most=n, why=why)
    T = most_colluders(n, alive, adversary)
    threat = ThreatModel(adversary=adversary, corrupt=T, dropped=n - alive)
    return LightSecAggParams.of(n, threat)


def _coded_machines(
    config: RoundConfig, policy: ClientPolicy
) -> tuple[LightSecAggServer, dict[ClientId, LightSecAggClient]]:
    """Fresh machines of LightSecAgg, with fresh identities where the session needs them."""
    active = config.adversary is Adversary.ACTIVE
    return make_coded_parties(
        config,
        config.cohort.ids,
        context_digest=_CONTEXT,
        policy=policy,
        identities={u: IdentityKey(os.urandom(32)) for u in config.cohort} if active else {},
    )


def _whole(name: str, value: object, *, least: int, most: int, why: str = "") -> int:
    """An integer of any kind within a range; no bools, no floats."""
    if not isinstance(value, bool | np.bool_) and isinstance(value, int | np.integer):
        whole = operator.index(value)
        if least <= whole <= most:
            return whole
    raise ConfigurationError(f"{name} must be an integer in {least}..{most}{why}, found {value!r}")


def _drops(
    drop: Mapping[str, Collection[int]] | None,
    inside: Mapping[int, ClientId],
    phases: tuple[str, ...],
) -> dict[str, list[ClientId]]:
    drops: dict[str, list[ClientId]] = {}
    given: object = drop  # what arrives at run time may be anything
    if given is not None and not isinstance(given, Mapping):
        raise ConfigurationError(
            f"drop must be a mapping from phase to client ids, found {type(given).__name__}"
        )
    for phase, who in (drop or {}).items():
        if phase not in phases:
            raise ConfigurationError(f"unknown phase {phase!r}; possible are {list(phases)}")
        named: object = who
        if not isinstance(named, Iterable) or isinstance(named, str | bytes):
            raise ConfigurationError(
                f"drop[{phase!r}] must be a collection of client ids, found {named!r}"
            )
        ids = list(named)  # once: a generator is empty the second time
        strangers = [c for c in ids if not _is_id(c) or c not in inside]
        if strangers:
            raise ConfigurationError(
                f"drop[{phase!r}] names clients {strangers[:5]}, who have no vector; "
                f"clients are {_some(list(inside))}"
            )
        drops[phase] = [inside[c] for c in ids]
    return drops


def _some(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 20 else f"{ids[:20]} and {len(ids) - 20} more"


def _ring_vector(client: int, vector: Vector, modulus: int) -> RingVector:
    """The vector's ring elements; refuses what would have to be rounded or would wrap."""
    dtype = ring_dtype(modulus)
    if isinstance(vector, np.ma.MaskedArray):
        raise ConfigurationError(
            f"client {client}: a masked array has no value where it is masked; fill it first"
        )
    if isinstance(vector, np.ndarray):
        if vector.ndim != 1 or vector.dtype.kind not in "iu":
            raise ConfigurationError(
                f"client {client}: expected a one-dimensional array of integers, "
                f"found shape {vector.shape} of {vector.dtype}; floats must be encoded first"
            )
        if vector.size and (int(vector.min()) < 0 or int(vector.max()) >= modulus):
            bad = next(i for i, x in enumerate(vector.tolist()) if not 0 <= x < modulus)
            raise _out_of_range(client, bad, int(vector[bad]), modulus)
        return RingVector(np.asarray(vector).astype(dtype), modulus)
    if not isinstance(vector, Sequence) or isinstance(vector, str | bytes | bytearray):
        raise ConfigurationError(
            f"client {client}: expected a list, tuple or array of integers, "
            f"found {type(vector).__name__}"
        )
    return RingVector(np.array(_integers(client, vector, modulus), dtype=dtype), modulus)


def _integers(client: int, vector: Sequence[int], modulus: int) -> list[int]:
    values: list[int] = []
    for i, x in enumerate(vector):
        if isinstance(x, bool | np.bool_) or not isinstance(x, int | np.integer):
            raise ConfigurationError(
                f"client {client}, index {i}: expected an integer, found {x!r} "
                f"({type(x).__name__}); floats must be encoded first"
            )
        value = operator.index(x)
        if not 0 <= value < modulus:
            raise _out_of_range(client, i, value, modulus)
        values.append(value)
    return values


def _out_of_range(client: int, index: int, value: int, modulus: int) -> ConfigurationError:
    power = modulus & (modulus - 1) == 0
    most = f"2^{modulus.bit_length() - 1}-1" if power else f"{modulus - 1}"
    return ConfigurationError(
        f"client {client}, index {index}: value {value} is not in 0..{most}; "
        "raise bits or encode the values first"
    )
