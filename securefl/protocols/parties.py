"""All clients of one session at once, for processes that run every party themselves.

A simulation, a benchmark or a test needs a server and its clients from one configuration. In a
deployment each party builds its own machine from what it received itself; nothing here may replace
that. In particular the directory of identities below comes from the same hands as everything else.
This module knows no protocol.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol, TypeVar

from securefl.primitives.signing import IdentityDirectory, IdentityKey
from securefl.protocols.policy import ClientPolicy
from securefl.round import ClientId, RoundConfig

__all__ = ["make_clients"]

_C = TypeVar("_C")
_C_co = TypeVar("_C_co", covariant=True)


class _Maker(Protocol[_C_co]):
    """The class of a protocol's client."""

    def __call__(
        self,
        client_id: ClientId,
        config: RoundConfig,
        *,
        context_digest: bytes,
        policy: ClientPolicy,
        identity: IdentityKey | None,
        directory: IdentityDirectory,
    ) -> _C_co: ...


def make_clients(
    make: _Maker[_C],
    config: RoundConfig,
    members: Collection[ClientId],
    *,
    context_digest: bytes,
    policy: ClientPolicy,
    identities: Mapping[ClientId, IdentityKey],
) -> tuple[IdentityDirectory, dict[ClientId, _C]]:
    """A directory of these identities, and fresh machines for these clients.

    Args:
        make: the class of the protocol's client.
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
    return directory, {
        u: make(
            u,
            config,
            context_digest=context_digest,
            policy=policy,
            identity=identities.get(u),
            directory=directory,
        )
        for u in members
    }
