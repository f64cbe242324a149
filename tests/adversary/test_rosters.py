"""Lies about who takes part: keys put in, doubled, exchanged or left out, invented clients.

Each attack is run to the recovered input (or the spoiled sum) on a library without the defence it
is aimed at, and fails on this one.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from securefl.errors import (
    BelowThreshold,
    ConfigurationError,
    DecryptionFailed,
    InvalidSignature,
    RosterMismatch,
)
from securefl.primitives.channel import AgreementKey, PublicKey
from securefl.primitives.sharing import parse_share_words
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.secagg import ClientPolicy, SecAggClient, SecAggServer
from securefl.protocols.secagg.keys import KeySchedule
from securefl.protocols.secagg.messages import (
    EncryptedShares,
    KeyRoster,
    NeighbourRoster,
    ProvenEntry,
    RosterEntry,
    ShareDelivery,
    UnmaskRequest,
)
from securefl.round import ClientId

TARGET = ClientId(1)

Known = dict[ClientId, tuple[AgreementKey, AgreementKey]]  # private parts (c, s) by roster id


def entry_of(bench: Any, u: ClientId, *, like: ClientId | None = None) -> RosterEntry:
    """What the server publishes of u; ``like``: another client's keys under u's id."""
    whose = u if like is None else like
    sent = bench.server._advertised[whose]
    active = bool(bench.identities)
    return RosterEntry(
        u,
        sent.c_pk,
        sent.s_pk,
        sent.commitment if active else b"",
        bench.server._signatures[1, whose] if active else b"",
    )


def encode_roster(bench: Any, entries: list[RosterEntry]) -> tuple[bytes, bytes]:
    """The body that shows the target these entries, and the session id that follows from it."""
    keys, target = KeySchedule(bench.config.protocol), bench.clients[TARGET]
    tree = keys.roster_tree([e.encode() for e in entries])
    session = keys.session_id(bench.config.digest(), len(entries), tree.root)
    if target._complete:
        return KeyRoster(entries=tuple(entries)).encode(), session
    near = {TARGET, *target._graph.peers(TARGET, bench.config.cohort.ids)}
    proven = tuple(
        ProvenEntry(e, i, tree.path(i)) for i, e in enumerate(entries) if e.client in near
    )
    return NeighbourRoster(size=len(entries), root=tree.root, entries=proven).encode(), session


def surround(kit: Any, bench: Any, entries: list[RosterEntry], known: Known) -> bool:
    """The target sees these entries; the server plays those peers whose private keys it knows."""
    frame, keys = bench.inbox[TARGET], KeySchedule(bench.config.protocol)
    target = bench.clients[TARGET]
    body, session = encode_roster(bench, entries)
    out = target.receive(kit.edit(frame, body=body))
    dealt = EncryptedShares.decode(kit.body_of(out[0].frame), peers=len(target._P))
    own = next(e for e in entries if e.client == TARGET)
    words, sealed = {}, []
    for ciphertext, v in zip(dealt, target._P, strict=True):
        if v not in known:
            continue
        agreed = known[v][0].agree(PublicKey(own.c_pk))
        key = keys.channel_key(agreed, session, TARGET, v)
        words[v] = parse_share_words(
            keys.open_shares(key, session, TARGET, v, ciphertext.tobytes())
        )
        sealed.append(keys.seal_shares(agreed, session, v, TARGET, bytes(56)))
    there = np.array([v in known for v in target._P])
    delivery = ShareDelivery(present=there, ciphertexts=sealed).encode()
    target.receive(kit.edit(frame, type=4, session=session, body=delivery))
    (sent,) = target.set_input(bench.vectors[TARGET])
    bench.sent[TARGET, "masked_input_collection"] = sent.frame
    server = kit.attacker(bench)
    server.session, server.ids = session, [TARGET, *known]
    for e in entries:
        bench.server._advertised[e.client] = e
    for v, row in words.items():
        server.b[TARGET][v], server.s[TARGET][v] = row[:5], row[5:]
    return server.has([TARGET])


# -- keys of its own ------------------------------------------------------------------------------


def substitute_keys(kit: Any, active: bool) -> bool:
    """The server puts fresh keys of its own under the names of all the target's peers."""
    bench = kit.make(6, t=4, D=1, m=2, b=16, active=active).to("share_keys")
    known = {v: (AgreementKey(os.urandom(32)), AgreementKey(os.urandom(32))) for v in bench.clients}
    entries = [
        entry_of(bench, v)._replace(c_pk=known[v][0].public, s_pk=known[v][1].public)
        if v != TARGET
        else entry_of(bench, v)
        for v in bench.clients
    ]
    del known[TARGET]
    return surround(kit, bench, entries, known)


def test_substituted_keys_open_a_semi_honest_session_and_not_a_signed_one(kit: Any) -> None:
    assert substitute_keys(kit, active=False)
    with pytest.raises(InvalidSignature):
        substitute_keys(kit, active=True)


# -- one colluder under many names ----------------------------------------------------------------


def duplicate_entries(kit: Any, active: bool) -> bool:
    """The keys of one colluder, who may read one share, stand under all the peers' names."""
    bench = kit.make(6, t=4, D=1, m=2, b=16, active=active).to("share_keys")
    colluder = ClientId(6)
    secrets = bench.clients[colluder]._secrets
    entries = [entry_of(bench, v, like=None if v == TARGET else colluder) for v in bench.clients]
    known = {v: (secrets.c, secrets.s) for v in bench.clients if v != TARGET}
    return surround(kit, bench, entries, known)


@pytest.mark.parametrize("active", [False, True])
def test_one_colluder_reads_every_share_only_where_keys_may_appear_twice(
    kit: Any, active: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RosterMismatch, match="appears twice"):
        duplicate_entries(kit, active)
    monkeypatch.setattr(SecAggClient, "_check_entries", lambda self, entries: None)
    assert duplicate_entries(kit, active)


@pytest.mark.parametrize("active", [False, True])
def test_the_signature_alone_refuses_one_duplicated_entry(
    kit: Any, active: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two defences, with the first one looking away."""
    bench = kit.make(6, t=4, D=1, active=active).to("share_keys")
    entries = [entry_of(bench, v, like=ClientId(3) if v == 4 else None) for v in bench.clients]
    body, _ = encode_roster(bench, entries)
    forged = kit.edit(bench.inbox[TARGET], body=body)
    with pytest.raises(RosterMismatch, match="appears twice"):
        bench.clients[TARGET].receive(forged)
    if active:
        bench = kit.make(6, t=4, D=1, active=True).to("share_keys")
        entries = [entry_of(bench, v, like=ClientId(3) if v == 4 else None) for v in bench.clients]
        fresh = AgreementKey(os.urandom(32)).public
        entries[3] = entries[3]._replace(c_pk=fresh, s_pk=fresh[::-1])
        body, _ = encode_roster(bench, entries)
        with pytest.raises(InvalidSignature):
            bench.clients[TARGET].receive(kit.edit(bench.inbox[TARGET], body=body))


# -- exchanged keys -------------------------------------------------------------------------------


def swap_in_the_ring(kit: Any, active: bool) -> bool:
    """Colluders from far away exchange their keys with the target's neighbours.

    Everybody is in the roster once, under keys that somebody really advertised.
    """
    bench = kit.make(14, k=6, t=3, D=0, n_min=14, m=2, b=16, active=active).to("share_keys")
    near = bench.server._graph.peers(TARGET, bench.clients)
    far = [v for v in bench.clients if v != TARGET and v not in near]
    swapped = dict(zip(near[:3], far[:3], strict=True))
    whose = {**swapped, **{w: v for v, w in swapped.items()}}
    entries = [entry_of(bench, v, like=whose.get(v)) for v in bench.clients]
    known = {}
    for v, colluder in swapped.items():
        secrets = bench.clients[colluder]._secrets
        known[v] = (secrets.c, secrets.s)
    return surround(kit, bench, entries, known)


@pytest.mark.usefixtures("unchecked")
def test_keys_exchanged_across_the_ring_surround_the_target_only_without_signatures(
    kit: Any,
) -> None:
    assert swap_in_the_ring(kit, active=False)
    with pytest.raises(InvalidSignature):
        swap_in_the_ring(kit, active=True)


def swap_two(kit: Any, active: bool) -> tuple[Any, bytes]:
    """A complete graph in which the target alone sees the keys of 3 and 4 exchanged."""
    numbers = {"t": 4, "D": 1} if active else {"t": 3, "D": 2, "n_min": 4}
    bench = kit.make(6, active=active, **numbers).to("share_keys")
    whose = {ClientId(3): ClientId(4), ClientId(4): ClientId(3)}
    entries = [entry_of(bench, v, like=whose.get(v)) for v in bench.clients]
    return bench, encode_roster(bench, entries)[0]


def test_exchanged_keys_spoil_a_sum_only_where_sessions_forget_their_roster(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without signatures the roster is believed; what follows from it is another session."""
    bench, forged = swap_two(kit, active=False)
    bench.inbox[TARGET] = kit.edit(bench.inbox[TARGET], body=forged)
    target = bench.clients[TARGET]
    bench.answer(without=[1])
    target.receive(bench.inbox[TARGET])
    assert target._end.session != bench.server._end.session
    delivery = kit.edit(
        bench.inbox[TARGET], type=4, session=target._end.session, body=genuine_shares(kit, bench)
    )
    with pytest.raises(DecryptionFailed, match="only 0 of 5"):
        target.receive(delivery)

    monkeypatch.setattr(KeySchedule, "session_id", lambda self, digest, n, root: bytes(32))
    bench, forged = swap_two(kit, active=False)
    bench.inbox[TARGET] = kit.edit(bench.inbox[TARGET], body=forged)
    wrong = bench.finish().values.tolist()
    assert wrong != bench.plain_sum(bench.clients)


def test_exchanged_keys_are_refused_at_once_where_they_are_signed(kit: Any) -> None:
    bench, forged = swap_two(kit, active=True)
    with pytest.raises(InvalidSignature):
        bench.clients[TARGET].receive(kit.edit(bench.inbox[TARGET], body=forged))


def genuine_shares(kit: Any, bench: Any) -> bytes:
    """What the other clients really dealt to the target."""
    P = bench.clients[TARGET]._P
    sealed = []
    for v in P:
        dealt = EncryptedShares.decode(
            kit.body_of(bench.sent[v, "share_keys"]), peers=len(bench.clients[v]._P)
        )
        sealed.append(dealt[bench.clients[v]._P.index(TARGET)].tobytes())
    return ShareDelivery(present=np.ones(len(P), dtype=np.bool_), ciphertexts=sealed).encode()


# -- left out of the roster -----------------------------------------------------------------------


def test_two_rosters_open_two_sums_unless_thresholds_exceed_a_half(kit: Any) -> None:
    """Each half of the clients is shown its own half only, in one session each."""
    ids = list(kit.make(8).clients)
    for half in (ids[:4], ids[4:]):
        others = [u for u in ids if u not in half]
        session = kit.make(8, t=3, D=4, n_min=4)
        session.start(without=others)
        session.close()
        assert session.finish().values.tolist() == session.plain_sum(half)
    bench = kit.make(8, active=True).to("share_keys")
    for half in (ids[:4], ids[4:]):
        body, _ = encode_roster(bench, [entry_of(bench, u) for u in half])
        for u in half:
            with pytest.raises(BelowThreshold, match=r"4 clients are left .* 7 are needed"):
                bench.clients[u].receive(kit.edit(bench.inbox[u], body=body))


def test_an_entry_that_one_client_is_not_shown_puts_it_into_a_session_of_its_own(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It masks towards fewer peers than mask towards it: noise instead of a sum, or nothing."""

    def without_the_last(bench: Any) -> None:
        entries = [entry_of(bench, u) for u in list(bench.clients)[:-1]]
        body, _ = encode_roster(bench, entries)
        bench.inbox[TARGET] = kit.edit(bench.inbox[TARGET], body=body)

    bench = kit.make(6, t=3, D=2, n_min=4).to("share_keys")
    without_the_last(bench)
    bench.answer(without=[1])
    target = bench.clients[TARGET]
    target.receive(bench.inbox[TARGET])
    body = genuine_shares(kit, bench)
    with pytest.raises(DecryptionFailed, match="only 0 of 4"):
        target.receive(
            kit.edit(bench.inbox[TARGET], type=4, session=target._end.session, body=body)
        )

    monkeypatch.setattr(KeySchedule, "session_id", lambda self, digest, n, root: bytes(32))
    bench = kit.make(6, t=3, D=2, n_min=4).to("share_keys")
    without_the_last(bench)
    for u in list(bench.clients):
        out = bench.clients[u].receive(bench.inbox[u])
        if u == TARGET:  # dealt to four; the server fills the place of the fifth
            dealt = EncryptedShares.decode(kit.body_of(out[0].frame), peers=4)
            padded = [*(row.tobytes() for row in dealt), bytes(72)]
            body = EncryptedShares(ciphertexts=tuple(padded)).encode()
            bench.server.receive(kit.edit(out[0].frame, body=body))
        else:
            bench.up(u, out)
    bench.close()
    there = np.ones(4, dtype=np.bool_)
    frame = bench.inbox[TARGET]
    all_five = ShareDelivery.decode(kit.body_of(frame), peers=5)
    body = ShareDelivery(present=there, ciphertexts=all_five.ciphertexts[:4]).encode()
    bench.inbox[TARGET] = kit.edit(frame, body=body)
    bench.answer()
    bench.close()
    frame = bench.inbox[TARGET]
    five_alive = UnmaskRequest(size=5, alive=there).encode()
    bench.inbox[TARGET] = kit.edit(frame, body=five_alive)
    for u in list(bench.clients)[1:]:
        bench.up(u, bench.clients[u].receive(bench.inbox[u]))
    bench.close()
    assert bench.server.result.vector.values.tolist() != bench.plain_sum(bench.clients)


# -- invented clients -----------------------------------------------------------------------------


def test_invented_clients_are_counted_out_only_with_a_directory(kit: Any) -> None:
    """All the target's peers are the server's: it subtracts what it put in itself."""
    bench = kit.make(5, D=1)
    bench.to("share_keys")
    total = bench.finish()
    own = bench.plain_sum([2, 3, 4, 5])
    opened = [int(x) - y for x, y in zip(total.values.tolist(), own, strict=True)]
    assert [x % bench.config.modulus for x in opened] == bench.plain_sum([1])
    signed = kit.make(5, D=1, active=True)
    known = IdentityDirectory({TARGET: signed.identities[TARGET].public})
    with pytest.raises(ConfigurationError, match="4 of the cohort have no identity"):
        client_with(kit, signed, known)


def client_with(kit: Any, bench: Any, directory: IdentityDirectory) -> SecAggClient:
    return SecAggClient(
        TARGET,
        bench.config,
        context_digest=kit.context,
        policy=ClientPolicy(gamma=0),
        identity=bench.identities[TARGET],
        directory=directory,
    )


def test_one_identity_under_many_ids_is_refused_where_the_directory_is_made(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One real client, invited five times: the others must not count it five times."""
    bench = kit.make(5, D=1, active=True)
    one = IdentityKey(bytes(range(32)))
    listed = {u: one.public if u != TARGET else bench.identities[u].public for u in bench.clients}
    with pytest.raises(ConfigurationError, match="have one identity key"):
        IdentityDirectory(listed)

    def unchecked(self: IdentityDirectory, public_keys: Any) -> None:
        self._raw = dict(public_keys)
        self._keys = {u: Ed25519PublicKey.from_public_bytes(k) for u, k in public_keys.items()}

    monkeypatch.setattr(IdentityDirectory, "__init__", unchecked)
    directory = IdentityDirectory(listed)
    bench.identities = {u: bench.identities[u] if u == TARGET else one for u in bench.clients}
    for u in bench.clients:
        bench.clients[u] = SecAggClient(
            u,
            bench.config,
            context_digest=kit.context,
            policy=ClientPolicy(gamma=0),
            identity=bench.identities[u],
            directory=directory,
        )
    bench.server = SecAggServer(bench.config, directory=directory)
    bench.to("share_keys")
    total = bench.finish()
    invented = bench.plain_sum([2, 3, 4, 5])
    opened = [int(x) - y for x, y in zip(total.values.tolist(), invented, strict=True)]
    assert [x % bench.config.modulus for x in opened] == bench.plain_sum([TARGET])
