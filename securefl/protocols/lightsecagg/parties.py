"""All machines of one session at once, for processes that run every party themselves.

A simulation or a test needs a server and its clients from one configuration. In a deployment each
party builds its own machine from what it received itself; nothing here may replace that. In
particular the directory of identities below comes from the same hands as everything else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.lightsecagg.client import LightSecAggClient
from securefl.protocols.lightsecagg.server import LightSecAggServer
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
    directory = IdentityDirectory({u: key.public for u, key in identities.items()})
    clients = {
        u: LightSecAggClient(
            u,
            config,
            context_digest=context_digest,
            policy=policy,
            identity=identities.get(u),
            directory=directory,
        )
        for u in members
    }
    return LightSecAggServer(config, directory=directory), clients
