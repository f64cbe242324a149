"""A whole Paillier session in one process: fresh identities, a witness, a key holder or holders.

The machines and messages are the real ones. One process plays every party, so nobody is protected
from anybody; what it shows is the protocol, its cost and its result. Keys are made once per process
and reused: a key's age does not matter where its owner and its users are the same.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType

from securefl.errors import ConfigurationError
from securefl.primitives.paillier import SecretKey, SlotLayout, generate_keypair
from securefl.primitives.paillier.block import BlockMode
from securefl.primitives.paillier.threshold import (
    KeyShare,
    ThresholdPublicKey,
    deal,
    default_threshold,
)
from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.paillier import (
    DeciderPolicy,
    KeyHolder,
    MemoryRoundBook,
    PaillierClient,
    PaillierServer,
    PaillierTerms,
    ShareHolder,
    Witness,
    paillier_config,
)
from securefl.protocols.paillier.params import check_sum_fits
from securefl.protocols.policy import ClientPolicy
from securefl.round import ClientId, Cohort, RoundConfig, RoundId, ThreatModel

__all__ = ["PaillierParties", "Trust", "paillier_session"]

KEY_BITS = 2048
"""Length of the keys that a simulation makes for itself."""

SHARE_HOLDERS = 5

_WITNESS, _FIRST_HOLDER = ClientId(0xFFFFFF00), 0xFFFFFE00


class Trust(StrEnum):
    """Who opens the sum."""

    KEY_HOLDER = "paillier"
    THRESHOLD = "paillier-threshold"

    @property
    def openers(self) -> tuple[int, int]:
        """How many must work together to open, and of how many."""
        if self is Trust.KEY_HOLDER:
            return 1, 1
        return default_threshold(SHARE_HOLDERS), SHARE_HOLDERS


@dataclass(frozen=True, slots=True, kw_only=True)
class PaillierParties:
    """Everybody of one session, ready for ``run_session``.

    Attributes:
        config: the round's configuration.
        server: its machine.
        clients: by id.
        parties: witness and holders, by id.
    """

    config: RoundConfig
    server: PaillierServer
    clients: Mapping[ClientId, PaillierClient]
    parties: Mapping[ClientId, Witness | KeyHolder | ShareHolder]

    @property
    def names(self) -> dict[ClientId, str]:
        """What each party is, for people."""
        words = {Witness: "witness", KeyHolder: "key holder", ShareHolder: "share holder"}
        counts: dict[str, int] = {}
        names = {}
        for u, machine in self.parties.items():
            word = words[type(machine)]
            counts[word] = counts.get(word, 0) + 1
            names[u] = f"{word} {counts[word]}"
        return names


@lru_cache(maxsize=1)
def _key_holder_key() -> SecretKey:
    return generate_keypair(KEY_BITS)


@lru_cache(maxsize=1)
def _threshold_key() -> tuple[ThresholdPublicKey, tuple[KeyShare, ...]]:
    threshold, parties = Trust.THRESHOLD.openers
    public, shares = deal(threshold=threshold, parties=parties, bits=KEY_BITS)
    return public, tuple(shares)


def paillier_session(
    trust: Trust,
    cohort: Cohort,
    *,
    round_id: RoundId,
    alive: int,
    m: int,
    b: int,
    context_digest: bytes,
    policy: ClientPolicy,
    keys: SecretKey | tuple[ThresholdPublicKey, tuple[KeyShare, ...]] | None = None,
    experimental_hybrid: bool = False,
    corrupt: int = 1,
    present: Collection[ClientId] | None = None,
    identities: Mapping[ClientId, IdentityKey] = MappingProxyType({}),
    threads: int | None = None,
) -> PaillierParties:
    """Fresh machines for one round.

    Args:
        trust: key holder with one witness, or 4 of 5 share holders.
        cohort: who was selected.
        round_id: the training round.
        alive: fewest contributors.
        m: entries of the vector.
        b: inputs are in Z_{2^b}; a slot must hold the sum of the cohort.
        context_digest: 32 bytes.
        policy: what every client demands.
        experimental_hybrid: encrypt short secrets of ring-LWE masks only; see the limitations.
        keys: a secret key, or a threshold key with its shares; default: this process's own.
        corrupt: A, the clients that are assumed to help the server; at most ``alive`` - 2.
        present: members that take part; default all.
        identities: of clients; whoever has none gets a fresh one, like witness and holders.
        threads: in which every holder opens; None: one per processor.

    Raises:
        ConfigurationError: if b bits do not fit a slot, or the numbers protect nobody.
    """
    check_sum_fits(len(cohort), b, hybrid=experimental_hybrid)
    layout = SlotLayout(bound=1 << (b - 1), max_clients=len(cohort))
    mode = BlockMode.HYBRID if experimental_hybrid else BlockMode.PACKED
    terms, secret, shares = _terms(trust, layout, keys, mode)
    config = paillier_config(
        terms,
        round_id=round_id,
        cohort=cohort,
        threat=ThreatModel(corrupt=corrupt, dropped=len(cohort) - alive),
        m=m,
        b=b,
        context_digest=context_digest,
        server_nonce=os.urandom(32),
    )
    names = (*cohort.ids, *terms.deciders)
    known = {u: identities.get(u) or IdentityKey(os.urandom(32)) for u in names}
    directory = IdentityDirectory({u: key.public for u, key in known.items()})
    demands = DeciderPolicy(min_clients=alive, max_colluding_clients=corrupt)
    clients = {
        u: PaillierClient(
            u,
            config,
            terms=terms,
            context_digest=context_digest,
            identity=known[u],
            directory=directory,
            policy=policy,
        )
        for u in (cohort if present is None else present)
    }
    parties: dict[ClientId, Witness | KeyHolder | ShareHolder] = {}
    for u in terms.witnesses:
        parties[u] = Witness(
            u,
            config,
            terms=terms,
            identity=known[u],
            directory=directory,
            book=MemoryRoundBook(),
            policy=demands,
        )
    if terms.key_holder is not None and secret is not None:
        parties[terms.key_holder] = KeyHolder(
            terms.key_holder,
            config,
            terms=terms,
            secret=secret,
            identity=known[terms.key_holder],
            directory=directory,
            book=MemoryRoundBook(),
            policy=demands,
            threads=threads,
        )
    for u, share in zip(terms.share_holders, shares, strict=True):
        parties[u] = ShareHolder(
            u,
            config,
            terms=terms,
            share=share,
            identity=known[u],
            directory=directory,
            book=MemoryRoundBook(),
            policy=demands,
            threads=threads,
        )
    server = PaillierServer(config, terms=terms, directory=directory)
    return PaillierParties(config=config, server=server, clients=clients, parties=parties)


def _terms(
    trust: Trust,
    layout: SlotLayout,
    keys: SecretKey | tuple[ThresholdPublicKey, tuple[KeyShare, ...]] | None,
    mode: BlockMode,
) -> tuple[PaillierTerms, SecretKey | None, tuple[KeyShare, ...]]:
    if trust is Trust.KEY_HOLDER:
        secret = _key_holder_key() if keys is None else keys
        if not isinstance(secret, SecretKey):
            raise ConfigurationError("key-holder mode takes a secret key")
        terms = PaillierTerms(
            key=secret.public,
            layout=layout,
            key_holder=ClientId(_FIRST_HOLDER),
            witnesses=(_WITNESS,),
            mode=mode,
            accept_experimental=True,
        )
        return terms, secret, ()
    dealt = _threshold_key() if keys is None else keys
    if isinstance(dealt, SecretKey):
        raise ConfigurationError("threshold mode takes a threshold key and its shares")
    public, shares = dealt
    holders = tuple(ClientId(_FIRST_HOLDER + i) for i in range(public.parties))
    terms = PaillierTerms(
        key=public,
        layout=layout,
        s=public.s,
        share_holders=holders,
        corrupt_holders=1,
        mode=mode,
        accept_experimental=True,
    )
    return terms, None, shares
