"""Which survivor list the peers agree on: signatures counted per list, and lies kept as proof.

A list with q valid signatures may be opened. With at most A peers that sign more than one list and
2q > n + A no second list ever has that many, whoever counts, whenever, and whether or not the
signatures of liars are counted (they are: that decides nothing about safety and keeps peers who saw
different lies together). A peer that signed two lists has handed out the proof of it. This module
knows no shares and no phases.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError
from securefl.primitives.signing import BadSignature, IdentityDirectory
from securefl.protocols.machine import Reason, SignedTwice
from securefl.protocols.peersum.keys import KeySchedule
from securefl.round import ClientId, Protocol, RoundConfig, Usage, dst
from securefl.wire import pack_bitmap

__all__ = ["Ballots", "NoVote", "check_signed_twice"]

_LABEL = dst(Usage.SURVIVOR_SIGNATURE, Protocol.PEERSUM)
_SESSION = slice(len(_LABEL), len(_LABEL) + 32)


class NoVote(Exception):
    """A signature that does not count; it never leaves a peer's machine.

    Attributes:
        reason: what the peer reports.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class Ballots:
    """Signatures on survivor lists, as one peer knows them.

    Args:
        config: of the session.
        directory: everybody's identities.
        c_pk: the public channel keys that this peer knows; it grows while keys arrive.

    Attributes:
        by_list: bitmap -> signer -> signature; only valid ones.
    """

    def __init__(
        self,
        config: RoundConfig,
        *,
        directory: IdentityDirectory,
        c_pk: Mapping[ClientId, bytes],
    ) -> None:
        self._config = config
        self._session = config.digest()
        self._directory = directory
        self._c_pk = c_pk
        self._statements: dict[bytes, bytes] = {}
        self._blamed: set[ClientId] = set()
        self.by_list: dict[bytes, dict[ClientId, bytes]] = {}

    def statement(self, alive: NDArray[np.bool_]) -> bytes | None:
        """What a signature on this list signs; None if a key of somebody on it never came."""
        members = [v for v, there in zip(self._config.cohort, alive, strict=True) if there]
        if not all(v in self._c_pk for v in members):
            return None
        keys = [self._c_pk[v] for v in members]
        return KeySchedule.survivor_statement(self._session, pack_bitmap(alive), keys)

    def vote(self, u: ClientId, alive: NDArray[np.bool_], signature: bytes) -> SignedTwice | None:
        """Counts one signature.

        Args:
            u: who is said to have signed.
            alive: the list, bool[n].
            signature: 64 bytes.

        Returns:
            The proof, if u is now known to have signed two lists; once per peer.

        Raises:
            NoVote: for a list that this peer would never open, of too few or of dealers whose keys
                it does not have; for more lists of a liar than there are peers; or a signature that
                is not u's on the list with these keys. That need not be u's fault: somebody on the
                list may have given u another key.
        """
        survivors = pack_bitmap(alive)
        if self.by_list.get(survivors, {}).get(u) == signature:
            return None  # the same one comes back in everybody's certificate
        if u in self._blamed and len(self._signed(u)) >= self._config.n:
            # Honest peers sign fewer lists; the rest would only fill this peer's memory.
            raise NoVote(Reason.EQUIVOCATION)
        statement = self.statement(alive)
        if statement is None or int(alive.sum()) < self._config.n_min:
            raise NoVote(Reason.ROSTER_MISMATCH)
        try:
            self._directory.verify(u, signature, statement)
        except BadSignature:
            raise NoVote(Reason.INVALID_SIGNATURE) from None
        self.by_list.setdefault(survivors, {}).setdefault(u, signature)
        self._statements[survivors] = statement
        return self._contradiction(u)

    def _signed(self, u: ClientId) -> list[bytes]:
        return [survivors for survivors, votes in self.by_list.items() if u in votes]

    def _contradiction(self, u: ClientId) -> SignedTwice | None:
        signed = self._signed(u)
        if len(signed) < 2 or u in self._blamed:
            return None
        self._blamed.add(u)
        first, second = signed[:2]
        return SignedTwice(
            client=u,
            statements=(self._statements[first], self._statements[second]),
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
