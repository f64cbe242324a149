"""The library's client with one check taken out, by one overridden method each.

``GUARDS`` lists every check that guards an input's secrecy: what it refuses, the client without it,
and the attack that then works. ``OTHERS`` lists the remaining checks with the reason why no attack
on secrecy is known without them. A test walks through the client's methods: a check that is in
neither table fails it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attackers import inputs, lists, rosters
from attackers.stage import Case
from securefl.errors import RosterMismatch
from securefl.modular import RingVector
from securefl.protocols.machine import Event, Outbound
from securefl.protocols.secagg import SecAggClient
from securefl.protocols.secagg.messages import (
    RosterEntry,
    SignedUnmaskRequest,
)
from securefl.protocols.secagg.transitions import MessageType, Phase
from securefl.round import ClientId
from securefl.wire import Buffer

__all__ = ["GUARDS", "OTHERS", "Guard"]

Out = list[Outbound | Event]

# -- the roster -----------------------------------------------------------------------------------


class AnyKeys(SecAggClient):
    """Believes whatever keys the server shows."""

    def _check_key_signatures(self, entries: tuple[RosterEntry, ...]) -> None:
        pass


class SameKeysTwice(SecAggClient):
    """Lets one key pair stand under several names."""

    def _check_distinct_keys(self, entries: tuple[RosterEntry, ...]) -> None:
        pass


class AnyMembers(SecAggClient):
    """Shares its secrets with whoever is in the roster, neighbour or not."""

    def _check_members(self, ids: Sequence[ClientId]) -> None:
        pass


class LowOrderKeys(SecAggClient):
    """Goes on when a key agreement gives nothing but zeros."""

    def _agree(self, entry: RosterEntry) -> tuple[bytes, bytes]:
        try:
            return super()._agree(entry)
        except RosterMismatch:
            return bytes(32), bytes(32)


# -- survivor lists -------------------------------------------------------------------------------


class ForgetsItsAnswer(SecAggClient):
    """Answers a second request, like a client restarted from an old state."""

    def receive(self, frame: bytes, sender: ClientId | None = None) -> Out:
        """The answer of the library's client, and then back to where it was."""
        phase, secrets = self._phase, copy(self._secrets)
        out = super().receive(frame, sender)
        if phase is Phase.UNMASKING:
            self._phase, self._secrets = phase, secrets
            self._accepted.pop(MessageType.UNMASK_REQUEST, None)
        return out


class TwoLists(SecAggClient):
    """Takes a request with one list of seeds and another of mask keys to open."""

    def _on_unmask_request(self, body: Buffer) -> Out:
        half = len(body) // 2
        raw = bytes(body)
        seeds, keys = (np.frombuffer(part, dtype=np.bool_) for part in (raw[:half], raw[half:]))
        secrets = self._live()
        assert secrets.b_shares is not None and secrets.s_shares is not None
        opened = secrets.b_shares[seeds].tobytes() + secrets.s_shares[keys].tobytes()
        assert self._end.session is not None
        return [self._emit(opened, session=self._end.session)]


class AnySignatures(SecAggClient):
    """Counts signatures without looking whether they are any."""

    def _check_list_signatures(self, request: SignedUnmaskRequest) -> None:
        pass


class OneSignerManyTimes(SecAggClient):
    """Counts one signer as often as it is named."""

    def _check_signers_differ(self, signers: Sequence[ClientId]) -> None:
        pass


class OwnSignatureCounts(SecAggClient):
    """Counts signatures of clients that hold no share of its secrets, its own among them."""

    def _check_signers_hold_shares(self, signers: Sequence[ClientId]) -> None:
        pass


class FewSignatures(SecAggClient):
    """Opens shares for a list that hardly anybody signed."""

    def _enough_signatures(self, signers: int) -> None:
        pass


class FewInputs(SecAggClient):
    """Does not mind among how many it is hidden."""

    def _enough_inputs(self, size: int) -> None:
        pass


class AbsentSurvivors(SecAggClient):
    """Believes in survivors that never dealt a share."""

    def _check_dealt(self, alive: Sequence[ClientId]) -> None:
        pass


class CutRing(SecAggClient):
    """Signs a list whose survivors fall into parts."""

    def _check_one_piece(self, U3: object) -> None:
        pass


# -- its own input --------------------------------------------------------------------------------


class MasksTwice(SecAggClient):
    """Masks a second input under the same masks."""

    def set_input(self, vector: RingVector) -> Out:
        """As the library's, as often as asked."""
        kept, phase = self.__dict__.get("_kept"), self._phase
        if kept is not None:
            self._secrets, self._phase = kept, Phase.MASKED_INPUT_COLLECTION
            self._input_given = False
        self.__dict__["_kept"] = copy(self._secrets)
        out = super().set_input(vector)
        if kept is not None:
            self._phase = phase
        return out


class NoSelfMask(SecAggClient):
    """Hides its input by pair masks only."""

    def _self_mask_key(self, b: bytes, session: bytes) -> bytes:
        return inputs.PUBLIC_MASK


class OldKeys(SecAggClient):
    """Keeps its keys and its seed for all sessions."""

    kept: ClassVar[dict[ClientId, list[bytes]]] = {}

    def start(self) -> Out:
        """As the library's, on the bytes of the first session."""
        fresh = self._random_bytes
        old: Iterator[bytes] = iter(
            self.kept.setdefault(self._u, [fresh(32), fresh(32), fresh(16)])
        )
        self._random_bytes = lambda size: next(old)
        try:
            return super().start()
        finally:
            self._random_bytes = fresh


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """One check that guards secrecy.

    Attributes:
        method: of :class:`securefl.protocols.secagg.SecAggClient`.
        refuses: in words.
        without: the client that lacks it.
        attack: recovers 1.0 from that client and 0.0 from the library's.
        program: where a reader sees it.
    """

    method: str
    refuses: str
    without: type[SecAggClient]
    attack: Callable[[Case], float]
    program: str


_T05, _T06 = "t05_survivor_lists", "t06_key_substitution"

GUARDS = (
    Guard(method="receive", refuses="a second request", without=ForgetsItsAnswer,
          attack=lists.asked_twice, program=_T05),
    Guard(method="_on_unmask_request", refuses="both kinds of share at once", without=TwoLists,
          attack=lists.both_kinds_at_once, program=_T05),
    Guard(method="start", refuses="keys of another session", without=OldKeys,
          attack=lists.keys_used_again, program=_T05),
    Guard(method="_enough_signatures", refuses="fewer than t signatures", without=FewSignatures,
          attack=lists.too_few_signatures, program=_T05),
    Guard(method="_check_list_signatures", refuses="forged signatures", without=AnySignatures,
          attack=lists.forged_signatures, program=_T05),
    Guard(method="_check_signers_differ", refuses="one signer counted twice",
          without=OneSignerManyTimes, attack=lists.duplicated_signer, program=_T05),
    Guard(method="_check_signers_hold_shares", refuses="its own signature",
          without=OwnSignatureCounts, attack=lists.own_signature, program=_T05),
    Guard(method="_enough_inputs", refuses="fewer inputs than n_min", without=FewInputs,
          attack=lists.too_few_inputs, program=_T05),
    Guard(method="_check_dealt", refuses="survivors that never dealt shares",
          without=AbsentSurvivors, attack=lists.padded_list, program=_T05),
    Guard(method="_check_one_piece", refuses="a list that cuts the ring", without=CutRing,
          attack=rosters.cut_ring, program="t21_chosen_neighbourhood"),
    Guard(method="_check_key_signatures", refuses="keys that nobody signed", without=AnyKeys,
          attack=rosters.substituted_keys, program=_T06),
    Guard(method="_check_distinct_keys", refuses="one key under many names",
          without=SameKeysTwice, attack=rosters.one_key_many_names, program=_T06),
    Guard(method="_check_members", refuses="strangers as neighbours", without=AnyMembers,
          attack=rosters.colluders_from_afar, program=_T06),
    Guard(method="_agree", refuses="keys of low order", without=LowOrderKeys,
          attack=rosters.low_order_keys, program=_T06),
    Guard(method="set_input", refuses="a second input", without=MasksTwice,
          attack=inputs.second_input, program="t08_differencing"),
    Guard(method="_self_mask_key", refuses="a late input without its own mask",
          without=NoSelfMask, attack=inputs.late_input, program="t16_late_input"),
)  # fmt: skip

OTHERS: Mapping[str, str] = {
    "_check_entries": "calls the checks of the roster, each of which stands for itself",
    "_check_own_entry": "a roster with another own key is another session, in which this client's "
    "peers cannot read its shares: nothing is opened; where keys are signed they refuse it too",
    "_check_size": "the claimed size is what _enough_inputs is asked about; semi-honest sessions "
    "only, whose server does not lie; with a complete graph it follows from the list",
    "_enough_survivors": "calls _enough_inputs and _enough_holders",
    "_enough_holders": "fewer than t holders cannot rebuild a secret at all: the round would be "
    "lost later; on a ring _check_one_piece demands as many surviving neighbours",
}
