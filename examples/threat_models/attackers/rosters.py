"""Lies about who takes part: keys put in, doubled, of low order, of clients from elsewhere.

The server plays all peers of one client, the target, under keys that it knows; the target deals it
enough shares of both secrets. Each attack returns the recovered fraction of the target's input.
Bonawitz et al. 2017, section 6.2, is why active sessions sign keys.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from kit.view import LOW_ORDER

from attackers.lists import reaches
from attackers.stage import TARGET, Case, Plan, Stage, Tape
from securefl.primitives.channel import AgreementKey, PublicKey, derive
from securefl.primitives.signing import IdentityKey
from securefl.protocols.secagg.keys import KeySchedule
from securefl.protocols.secagg.messages import (
    AdvertiseKeys,
    KeyRoster,
    NeighbourRoster,
    ProvenEntry,
    RosterEntry,
    ShareDelivery,
)
from securefl.protocols.secagg.transitions import MessageType
from securefl.round import SERVER, ClientId, Protocol
from securefl.wire import Frame, decode_frame, signed_content

__all__ = [
    "colluders_from_afar",
    "cut_ring",
    "honest_entries",
    "low_order_keys",
    "one_key_many_names",
    "self_signed_keys",
    "signed_entry",
    "substituted_keys",
    "surround",
]

Secrets = Mapping[ClientId, tuple[bytes, bytes]]
"""Secret keys (c, s) by the name under which the target is shown their public halves."""


def honest_entries(stage: Stage) -> dict[ClientId, RosterEntry]:
    """What the clients really advertised, signatures included."""
    found = {}
    for e in stage.network.transcript:
        if e.sender == SERVER:
            continue
        frame = decode_frame(e.frame)
        if frame.type != MessageType.ADVERTISE_KEYS:
            continue
        sent = AdvertiseKeys.decode(bytes(frame.body))
        signed = bool(frame.signature)
        found[e.sender] = RosterEntry(
            e.sender,
            sent.c_pk,
            sent.s_pk,
            sent.commitment if signed else b"",
            frame.signature,
        )
    return dict(sorted(found.items()))


def signed_entry(stage: Stage, u: ClientId, tape: Tape, identity: IdentityKey) -> RosterEntry:
    """The entry of a client that the attacker plays itself, under this identity."""
    c, s, b = os.urandom(32), os.urandom(32), os.urandom(16)
    tape.read[:] = [c, s, b]
    keys, config = KeySchedule(stage.config.protocol), stage.config
    c_pk, s_pk = AgreementKey(c).public, AgreementKey(s).public
    commitment = keys.seed_commitment(config.digest(), u, c_pk, b)
    frame = Frame(
        protocol=config.protocol,
        type=MessageType.ADVERTISE_KEYS,
        sender=u,
        round_id=config.round_id,
        session=config.digest(),
        body=AdvertiseKeys(c_pk=c_pk, s_pk=s_pk, commitment=commitment).encode(),
    )
    statement = keys.frame_statement(SERVER, signed_content(frame))
    return RosterEntry(u, c_pk, s_pk, commitment, identity.sign(statement))


def _roster(
    stage: Stage, everybody: Sequence[RosterEntry], shown: Iterable[ClientId]
) -> tuple[bytes, bytes]:
    """The body that shows these of all entries, and the session that follows from it."""
    keys = KeySchedule(stage.config.protocol)
    tree = keys.roster_tree([e.encode() for e in everybody])
    session = keys.session_id(stage.config.digest(), len(everybody), tree.root)
    if stage.config.protocol is Protocol.SECAGG:
        return KeyRoster(entries=tuple(everybody)).encode(), session
    near = set(shown)
    proven = tuple(
        ProvenEntry(e, i, tree.path(i)) for i, e in enumerate(everybody) if e.client in near
    )
    body = NeighbourRoster(size=len(everybody), root=tree.root, entries=proven).encode()
    return body, session


def surround(
    stage: Stage,
    case: Case,
    everybody: Sequence[RosterEntry],
    secrets: Secrets,
    *,
    shown: Iterable[ClientId] = (),
) -> float:
    """The target sees these entries; the server plays those peers whose secret keys it knows."""
    keys = KeySchedule(stage.config.protocol)
    body, session = _roster(stage, everybody, shown)
    near = set(shown) or {e.client for e in everybody}
    peers = [e.client for e in everybody if e.client in near and e.client != TARGET]
    stage.sessions[TARGET] = stage.config.digest()
    stage.tell(TARGET, MessageType.KEY_ROSTER, body)
    if MessageType.ENCRYPTED_SHARES in _kinds_from_target(stage):
        own = next(e for e in everybody if e.client == TARGET)
        sealed = []
        for v in peers:
            if v in secrets:
                agreed = (
                    bytes(32)
                    if not secrets[v][0]
                    else AgreementKey(secrets[v][0]).agree(PublicKey(own.c_pk))
                )
                sealed.append(keys.seal_shares(agreed, session, v, TARGET, bytes(56)))
        there = np.array([v in secrets for v in peers], dtype=np.bool_)
        stage.sessions[TARGET] = session
        stage.tell(
            TARGET,
            MessageType.SHARE_DELIVERY,
            ShareDelivery(present=there, ciphertexts=sealed).encode(),
        )
    stage.save(case.path)
    known = [key for pair in secrets.values() for key in pair if key]
    return reaches(stage.view(case.path, colluders=(), extra_keys=known), stage, [TARGET])


def _kinds_from_target(stage: Stage) -> set[int]:
    return {decode_frame(e.frame).type for e in stage.network.transcript if e.sender == TARGET}


def _own_pairs(ids: Iterable[ClientId]) -> dict[ClientId, tuple[bytes, bytes]]:
    return {v: (os.urandom(32), os.urandom(32)) for v in ids if v != TARGET}


def substituted_keys(case: Case, *, active: bool = True) -> float:
    """Fresh keys of the server under the names of all peers; their signatures are left as they
    were.
    """
    stage = Stage.of(Plan(n=6, t=4, D=1, active=active), case=case)
    stage.play("share_keys")
    pairs = _own_pairs(stage.ids)
    entries = [
        e._replace(c_pk=AgreementKey(pairs[u][0]).public, s_pk=AgreementKey(pairs[u][1]).public)
        if u in pairs
        else e
        for u, e in honest_entries(stage).items()
    ]
    return surround(stage, case, entries, pairs)


def self_signed_keys(case: Case) -> float:
    """The same with signatures of the server's own making: valid, of an identity nobody lists."""
    stage = Stage.of(Plan(n=6, t=4, D=1), case=case).play("share_keys")
    mine = IdentityKey(os.urandom(32))
    entries, pairs = [], {}
    for u, e in honest_entries(stage).items():
        if u == TARGET:
            entries.append(e)
            continue
        tape = Tape()
        entries.append(signed_entry(stage, u, tape, mine))
        pairs[u] = (tape.keys[0], tape.keys[1])
    return surround(stage, case, entries, pairs)


def one_key_many_names(case: Case) -> float:
    """The keys of one colluder, who may read one share, stand under all the peers' names."""
    colluder = ClientId(6)
    stage = Stage.of(
        Plan(n=6, t=4, D=1, active=False),
        case=case,
        colluders=[colluder],
    ).play("share_keys")
    real = honest_entries(stage)
    entries = [real[u] if u == TARGET else real[colluder]._replace(client=u) for u in stage.ids]
    c, s = stage.tapes[colluder].keys
    return surround(stage, case, entries, {u: (c, s) for u in stage.ids if u != TARGET})


def low_order_keys(case: Case) -> float:
    """Keys with which everybody agrees on zeros. There are five; three clients need four."""
    stage = Stage.of(Plan(n=3, t=2, active=False), case=case)
    stage.play("share_keys")
    low = iter(LOW_ORDER)
    entries = [
        e if u == TARGET else e._replace(c_pk=next(low), s_pk=next(low))
        for u, e in honest_entries(stage).items()
    ]
    return surround(stage, case, entries, {u: (b"", b"") for u in stage.ids if u != TARGET})


FAR = Plan(n=1000, k=52, t=37, A=50, D=50)
"""SecAgg+ against an active server, the library's numbers for 5 % corrupt and 5 % dropped."""


def colluders_from_afar(case: Case) -> float:
    """50 of 1000 clients collude, 37 shares open a secret, few colluders are neighbours.

    The target is shown colluders from all over the ring in place of its neighbours, with their own,
    genuine signatures. Only the target runs: nobody else is needed.
    """
    identities = {ClientId(u): IdentityKey(_identity(u)) for u in range(1, FAR.n + 1)}
    stage = Stage.of(
        FAR,
        case=case,
        absent=[u for u in identities if u != TARGET],
        identities=identities,
    )
    stage.start()
    helpers = [ClientId(u) for u in range(FAR.n - FAR.A + 1, FAR.n + 1)]
    entries, pairs = honest_entries(stage), {}
    for u in helpers:
        tape = Tape()
        entries[u] = signed_entry(stage, u, tape, identities[u])
        pairs[u] = (tape.keys[0], tape.keys[1])
    # The rest of the cohort only fills the tree: the target sees a root and paths.
    filler = [
        RosterEntry(u, os.urandom(32), os.urandom(32), bytes(32), bytes(64))
        for u in identities
        if u not in entries
    ]
    everybody = sorted([*entries.values(), *filler])
    return surround(stage, case, everybody, pairs, shown=[TARGET, *helpers])


def _identity(u: int) -> bytes:
    return derive(bytes(32), salt=b"", info=b"identity %d" % u, length=32)


def cut_ring(case: Case) -> float:
    """Two runs of missing clients cut three clients off: one signed list, two sums behind it."""
    plan = Plan(n=14, k=4, t=2, n_min=10, active=True, checked=False)
    stage = Stage.of(plan, case=case)
    order = ring_order(stage)
    at = order.index(TARGET)
    arc = [order[(at + d) % plan.n] for d in (-1, 0, 1)]
    gone = {order[(at + d) % plan.n] for d in (-3, -2, 2, 3)}
    stage.play("masked_input_collection")
    stage.answer(without=gone)
    stage.close()
    alive = [u for u in stage.ids if u not in gone]
    signed = {u: stage.signature(u, alive) for u in alive}
    for u in alive:
        near = stage.graph.peers(u, alive)
        stage.ask_signed(u, [(v, signed[v]) for v in near])
    stage.save(case.path)
    return reaches(stage.view(case.path), stage, arc)


def ring_order(stage: Stage) -> list[ClientId]:
    """The ring, walked from neighbour to neighbour: whoever shares most neighbours is next.

    For n >= 2k + 2, so that neighbourhoods overlap on one side only.
    """
    ids = stage.config.cohort.ids
    near = {u: set(stage.graph.peers(u, ids)) for u in ids}
    order = [ids[0]]
    while len(order) < len(ids):
        last = order[-1]
        fresh = [v for v in near[last] if v not in order]
        order.append(max(fresh, key=lambda v: (len(near[v] & near[last]), -v)))
    return order


def _only_target(case: Case) -> tuple[Stage, dict[ClientId, IdentityKey]]:
    """A cohort of 1000 with identities, of whom only the target runs."""
    identities = {ClientId(u): IdentityKey(_identity(u)) for u in range(1, FAR.n + 1)}
    absent = [u for u in identities if u != TARGET]
    stage = Stage.of(FAR, case=case, absent=absent, identities=identities)
    stage.start()
    return stage, identities


def neighbouring_colluders(case: Case) -> list[ClientId]:
    """Which of the last 50 ids the graph puts beside the target."""
    stage, _ = _only_target(case)
    helpers = [ClientId(u) for u in range(FAR.n - FAR.A + 1, FAR.n + 1)]
    return stage.graph.peers(TARGET, helpers)


def genuine_neighbours(case: Case, *, placed: bool) -> float:
    """The target is shown its true neighbours, all entries genuine; colluders are among them.

    ``placed``: the colluders enrolled when the graph was known, as neighbours of the target.
    Otherwise they are the last 50 ids, fixed before the beacon. Neighbours that do not collude are
    called dropped.
    """
    stage, identities = _only_target(case)
    near = stage.graph.peers(TARGET, identities)
    last = [ClientId(u) for u in range(FAR.n - FAR.A + 1, FAR.n + 1)]
    helpers = near[: FAR.A] if placed else [v for v in near if v in last]
    entries, pairs = honest_entries(stage), {}
    for u in near:
        tape = Tape()
        entries[u] = signed_entry(stage, u, tape, identities[u])
        if u in helpers:
            pairs[u] = (tape.keys[0], tape.keys[1])
    filler = [
        RosterEntry(u, os.urandom(32), os.urandom(32), bytes(32), bytes(64))
        for u in identities
        if u not in entries
    ]
    everybody = sorted([*entries.values(), *filler])
    return surround(stage, case, everybody, pairs, shown=[TARGET, *near])
