"""All machines of one session at once: see :mod:`securefl.protocols.parties`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from securefl.primitives.signing import IdentityKey
from securefl.protocols.lightsecagg.client import LightSecAggClient
from securefl.protocols.lightsecagg.server import LightSecAggServer
from securefl.protocols.parties import make_clients
from securefl.protocols.policy import ClientPolicy
from securefl.round import ClientId, RoundConfig

__all__ = ["make_parties"]


def make_parties(
    config: RoundConfig,
    members: Collection[ClientId],
    *,
    context_digest: bytes,
    policy: ClientPolicy,
    identities: Mapping[ClientId, IdentityKey],
) -> tuple[LightSecAggServer, dict[ClientId, LightSecAggClient]]:
    """Fresh machines for the server and these clients.

    Args:
        config: of the session.
        members: cohort members that take part.
        context_digest: 32 bytes; what all of them have in common.
        policy: what each of them demands.
        identities: of the whole cohort in an active session; not used otherwise.

    Raises:
        ConfigurationError: if the configuration is unsafe or weaker than the policy, or an identity
            is missing.
    """
    directory, clients = make_clients(
        LightSecAggClient,
        config,
        members,
        context_digest=context_digest,
        policy=policy,
        identities=identities,
    )
    return LightSecAggServer(config, directory=directory), clients
