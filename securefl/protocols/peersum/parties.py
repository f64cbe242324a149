"""All machines of one session at once: see :mod:`securefl.protocols.parties`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.parties import make_clients
from securefl.protocols.peersum.peer import PeerSumPeer
from securefl.protocols.peersum.sessions import MemoryRegister
from securefl.protocols.policy import ClientPolicy
from securefl.round import ClientId, RoundConfig

__all__ = ["make_peers"]


def make_peers(
    config: RoundConfig,
    members: Collection[ClientId],
    *,
    context_digest: bytes,
    policy: ClientPolicy,
    identities: Mapping[ClientId, IdentityKey],
) -> dict[ClientId, PeerSumPeer]:
    """Fresh machines for these peers, with registers that die with the process.

    Args:
        config: of the session.
        members: cohort members that take part.
        context_digest: 32 bytes; what all of them have in common.
        policy: what each of them demands.
        identities: of the whole cohort.

    Raises:
        ConfigurationError: if the configuration is unsafe or weaker than the policy, or an identity
            is missing.
    """

    def make(
        client_id: ClientId,
        config: RoundConfig,
        *,
        context_digest: bytes,
        policy: ClientPolicy,
        identity: IdentityKey | None,
        directory: IdentityDirectory,
    ) -> PeerSumPeer:
        return PeerSumPeer(
            client_id,
            config,
            context_digest=context_digest,
            policy=policy,
            identity=identity,
            directory=directory,
            register=MemoryRegister(),
        )

    _, peers = make_clients(
        make,
        config,
        members,
        context_digest=context_digest,
        policy=policy,
        identities=identities,
    )
    return peers
