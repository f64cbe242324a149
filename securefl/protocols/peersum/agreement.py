"""Which survivor list the peers agree on: signatures counted per list, and lies kept as proof.

A list with q valid signatures may be opened. With at most A peers that sign more than one list and
2q > n + A no second list ever has that many, whoever counts, whenever, and whether or not the
signatures of liars are counted (they are: that decides nothing about safety and keeps peers who saw
different lies together). A peer that signed two lists has handed out the proof of it. This module
knows no shares and no phases.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from securefl.errors import ConfigurationError
from securefl.primitives.signing import BadSignature, IdentityDirectory
from securefl.protocols.machine import SignedTwice
from securefl.round import ClientId, Protocol, Usage, dst

__all__ = ["Ballots", "check_signed_twice"]

_LABEL = dst(Usage.SURVIVOR_SIGNATURE, Protocol.PEERSUM)
_SESSION = slice(len(_LABEL), len(_LABEL) + 32)


@dataclass(slots=True, kw_only=True)
class Ballots:
    """Signatures on survivor lists.

    Attributes:
        directory: everybody's identities.
        by_list: bitmap -> signer -> signature; only valid ones.
        statements: bitmap -> what its signers signed.
        blamed: peers whose two signatures were handed out as proof.
    """

    directory: IdentityDirectory
    by_list: dict[bytes, dict[ClientId, bytes]] = field(default_factory=dict)
    statements: dict[bytes, bytes] = field(default_factory=dict)
    blamed: set[ClientId] = field(default_factory=set)

    def add(
        self, u: ClientId, survivors: bytes, statement: bytes, signature: bytes
    ) -> SignedTwice | None:
        """Counts one signature.

        Args:
            u: who is said to have signed.
            survivors: the list's bitmap.
            statement: what a signature on it signs.
            signature: 64 bytes.

        Returns:
            The proof, if u is now known to have signed two lists; once per peer.

        Raises:
            BadSignature: if u did not sign the statement; nothing changes.
        """
        votes = self.by_list.get(survivors, {})
        if votes.get(u) == signature:  # the same one comes back in everybody's certificate
            return None
        self.directory.verify(u, signature, statement)
        self.by_list.setdefault(survivors, {}).setdefault(u, signature)
        self.statements[survivors] = statement
        return self._contradiction(u)

    def _contradiction(self, u: ClientId) -> SignedTwice | None:
        signed = [survivors for survivors, votes in self.by_list.items() if u in votes]
        if len(signed) < 2 or u in self.blamed:
            return None
        self.blamed.add(u)
        first, second = signed[:2]
        return SignedTwice(
            client=u,
            statements=(self.statements[first], self.statements[second]),
            signatures=(self.by_list[first][u], self.by_list[second][u]),
        )

    def most(self) -> tuple[bytes, dict[ClientId, bytes]]:
        """The list with the most signatures, and them; an empty bitmap if there are none."""
        return max(self.by_list.items(), key=lambda item: len(item[1]), default=(b"", {}))


def check_signed_twice(proof: SignedTwice, directory: IdentityDirectory) -> None:
    """Checks that the named peer signed two different survivor lists of one session.

    Anybody with the directory can do this, also without having taken part. An honest peer enters a
    session once and signs one list in it.

    Raises:
        ConfigurationError: if the proof proves nothing: a forged signature, twice the same
            statement, or statements of two sessions or of something else.
    """
    first, second = proof.statements
    if first == second or not (first.startswith(_LABEL) and second.startswith(_LABEL)):
        raise ConfigurationError(
            f"these are not two survivor lists: nothing is proved about peer {proof.client}"
        )
    if first[_SESSION] != second[_SESSION]:
        raise ConfigurationError(
            f"the two lists are of two sessions: nothing is proved about peer {proof.client}"
        )
    for statement, signature in zip(proof.statements, proof.signatures, strict=True):
        try:
            directory.verify(proof.client, signature, statement)
        except BadSignature as error:
            raise ConfigurationError(f"the proof is forged: {error}") from None
