"""All machines of one session at once: see :mod:`securefl.protocols.parties`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Executor

from securefl.primitives.signing import IdentityKey
from securefl.protocols.parties import make_clients
from securefl.protocols.secagg.client import SecAggClient
from securefl.protocols.secagg.params import ClientPolicy
from securefl.protocols.secagg.server import SecAggServer
from securefl.round import ClientId, GraphSource, RoundConfig

__all__ = ["make_parties"]


def make_parties(
    config: RoundConfig,
    members: Collection[ClientId],
    *,
    context_digest: bytes,
    policy: ClientPolicy,
    identities: Mapping[ClientId, IdentityKey],
    beacon: bytes,
    executor: Executor | None = None,
) -> tuple[SecAggServer, dict[ClientId, SecAggClient]]:
    """Fresh machines for the server and these clients.

    Args:
        config: of the session.
        members: cohort members that take part.
        context_digest: 32 bytes; what all of them have in common.
        policy: what each of them demands.
        identities: of the whole cohort in an active session; not used otherwise.
        beacon: 32 bytes that were unknown when the configuration was made; used if it asks for a
            beacon.
        executor: where the server expands masks at the end; processes pay off, threads do not.

    Raises:
        ConfigurationError: if the configuration is unsafe or weaker than the policy, or an identity
            is missing.
    """
    directory, clients = make_clients(
        SecAggClient,
        config,
        members,
        context_digest=context_digest,
        policy=policy,
        identities=identities,
    )
    server = SecAggServer(config, directory=directory, executor=executor)
    if config.graph_source is GraphSource.BEACON:
        server.set_beacon(beacon)
        for client in clients.values():
            client.set_beacon(beacon)
    return server, clients
