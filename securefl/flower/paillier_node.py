"""A node's part in a Paillier session: with data it encrypts, as a decider it opens or refuses.

A decider is a SuperNode of its own with an identity of its own. It takes one message per session,
with everything that was agreed and the server's request in it, holds it against its own copy of key
and deciders and its own floor, and answers with one signed frame: a statement, an opened sum, a
partial opening, or a refusal with its number. What it agreed to is in two files before that frame
exists: the round book (one list of contributors per session, for ever) and the journal (one answer
per session). It keeps no state between messages, so nothing is lost with it.

The adversary is a server that lies, with up to A clients and, in threshold mode, c share holders.
Against one that may also choose the code of the apps, keys, shares and the identity of a witness
must be out of the app's reach: in a process of their own (:mod:`securefl.flower.holder`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from securefl.errors import ConfigurationError, DecryptionRefused, WireError
from securefl.flower.errors import Code, Refusal
from securefl.flower.logs import printable
from securefl.flower.paillier_setup import PaillierSetup
from securefl.modular import RingVector
from securefl.primitives.identities import Roster
from securefl.primitives.paillier import SecretKey
from securefl.primitives.paillier import files as key_files
from securefl.primitives.paillier.threshold import KeyShare, ThresholdPublicKey
from securefl.primitives.signing import IdentityKey
from securefl.protocols.machine import Event, Outbound
from securefl.protocols.paillier import (
    DeciderPolicy,
    KeyHolder,
    PaillierClient,
    PaillierTerms,
    ShareHolder,
    SqliteRoundBook,
    Witness,
)
from securefl.protocols.paillier.messages import (
    CheckRequest,
    MessageType,
    OpenRequest,
    Phase,
)
from securefl.protocols.paillier.terms import check_config
from securefl.protocols.policy import ClientPolicy, check_demands
from securefl.round import SERVER, ClientId, RoundConfig
from securefl.wire import decode_frame

if TYPE_CHECKING:
    from securefl.flower.plan import Plan
    from securefl.flower.policy import Node, PaillierSection

__all__ = [
    "FIRST_PHASE",
    "INPUT_PHASE",
    "PaillierPart",
    "check_in",
    "check_numbers",
    "decide",
    "submit",
]

logger = logging.getLogger(__name__)

FIRST_PHASE: Final = str(Phase.CHECK_IN)
INPUT_PHASE: Final = str(Phase.MASKED_INPUT_COLLECTION)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaillierPart:
    """What a node has to do with Paillier.

    Attributes:
        setup: key and deciders, this node's own copy.
        own: this node's id in the roster.
        book: what was agreed to; None on a node with data.
        secret: the whole key, on the key holder's only.
        share: on a share holder's only.
        in_app: whether its owner wrote that this decider may answer in the SuperNode's app.
    """

    setup: PaillierSetup
    own: ClientId
    book: SqliteRoundBook | None = None
    secret: SecretKey | None = None
    share: KeyShare | None = None
    in_app: bool = False

    def __repr__(self) -> str:
        return f"PaillierPart(own={self.own}, decides={self.decides}, <secrets>)"

    @classmethod
    def load(
        cls,
        section: PaillierSection | None,
        folder: Path,
        *,
        roster: Roster | None,
        identity: IdentityKey | None,
    ) -> Self:
        """Reads what ``[paillier]`` in a node file names.

        Raises:
            ConfigurationError: if something is missing, can be read by others, or is at the wrong
                node: whoever has data must not hold what opens it.
        """
        member = None
        if roster is not None and identity is not None:
            member = roster.member_of(identity.public)
        if section is None or section.setup is None or roster is None or member is None:
            raise ConfigurationError(
                'sessions with a Paillier key need identity, roster and [paillier] setup = "..." '
                "in the node file: the key and its holders are never taken from the server"
            )
        own = member.client
        setup = PaillierSetup.load(folder / section.setup, roster)
        wanted = _wanted(setup, own)
        given = {name for name in ("secret", "share", "book") if getattr(section, name) is not None}
        if section.in_app is not None and (not wanted or "secret" in wanted):
            raise ConfigurationError(
                f"[paillier] of {member.name}: in_app is for share holders and witnesses, this is "
                f"{_role(setup, own)}"
            )
        if given != wanted:
            raise ConfigurationError(
                f"[paillier] of {member.name}: {_role(setup, own)} names "
                f"{sorted(wanted) or 'no secret and no book'} beside its setup, found "
                f"{sorted(given)}; nodes with data, witnesses and holders are different nodes with "
                "different identities"
            )
        try:
            secret, share = _secrets(setup, section, folder, own)
        except WireError as error:
            raise ConfigurationError(f"[paillier] of {member.name}: {error}") from None
        return cls(
            setup=setup,
            own=own,
            book=None if section.book is None else SqliteRoundBook(folder / section.book),
            secret=secret,
            share=share,
            in_app=section.in_app is not None,
        )

    def refuse_in_app(self) -> None:
        """Refuses deciders in the process of an app, whose code comes from the server's side.

        The app reads what its node holds: a whole key, a share, or the identity with which a
        witness signs. A run goes to all nodes at once, so all share holders in their apps are no
        harder to read than one, and a witness in its app signs what the submitter wants.

        Raises:
            ConfigurationError: for a whole key; for others, unless their owner wrote otherwise.
        """
        if not self.decides or (self.secret is None and self.in_app):
            return
        raise ConfigurationError(
            f"the node file has an app decide as {_role(self.setup, self.own)}, and the app's code "
            "comes from the server's side: keep keys and identity in a process of their own, "
            "python -m securefl.flower hold, and give the SuperNode a file with the socket only "
            "(docs/how-to/flower.md)"
        )

    @property
    def decides(self) -> bool:
        """Whether this node opens or vouches, and has no data."""
        return self.own in self.setup.deciders

    @property
    def phase(self) -> str:
        """In which phase this decider is asked."""
        return str(Phase.CHECKING if self.own in self.setup.witnesses else Phase.OPENING)

    @property
    def description(self) -> str:
        """What this node is, for people."""
        key = self.setup.key.key_id.hex()[:16]
        return f"{_role(self.setup, self.own)} (id {self.own}) of key {key}"

    def terms(self, config: RoundConfig, plan: Plan) -> PaillierTerms:
        """The terms of a session, from this node's own copy.

        Raises:
            Refusal: KEY, if the configuration is for other terms; THRESHOLD for impossible numbers.
        """
        try:
            terms = self.setup.terms(bits=config.b, clients=plan.clients)
        except ConfigurationError as error:
            raise Refusal(Code.THRESHOLD, str(error)) from None
        if config.graph_value != terms.digest():
            raise Refusal(
                Code.KEY, "the session is for another key or other deciders than this node's setup"
            )
        return terms

    def decider(
        self, config: RoundConfig, terms: PaillierTerms, node: Node, demands: DeciderPolicy
    ) -> Witness | KeyHolder | ShareHolder:
        """The machine of this node's part.

        Raises:
            ConfigurationError: if the configuration is unsafe.
        """
        identity, directory, book = node.identity, node.directory, self.book
        if identity is None or directory is None or book is None:
            raise ConfigurationError("a decider needs identity, roster and book")
        if self.secret is not None:
            return KeyHolder(
                self.own,
                config,
                terms=terms,
                secret=self.secret,
                identity=identity,
                directory=directory,
                book=book,
                policy=demands,
            )
        if self.share is not None:
            return ShareHolder(
                self.own,
                config,
                terms=terms,
                share=self.share,
                identity=identity,
                directory=directory,
                book=book,
                policy=demands,
            )
        return Witness(
            self.own,
            config,
            terms=terms,
            identity=identity,
            directory=directory,
            book=book,
            policy=demands,
        )


def _wanted(setup: PaillierSetup, own: ClientId) -> set[str]:
    if own == setup.key_holder:
        return {"secret", "book"}
    if own in setup.share_holders:
        return {"share", "book"}
    return {"book"} if own in setup.witnesses else set()


def _role(setup: PaillierSetup, own: ClientId) -> str:
    if own == setup.key_holder:
        return "the key holder"
    if own in setup.share_holders:
        return "a share holder"
    return "a witness" if own in setup.witnesses else "a node with data"


def _secrets(
    setup: PaillierSetup, section: PaillierSection, folder: Path, own: ClientId
) -> tuple[SecretKey | None, KeyShare | None]:
    """The whole key, or the share, where the node has one."""
    secret = share = None
    if section.secret is not None:
        secret = SecretKey.from_bytes(_private(folder / section.secret))
        if secret.public != setup.key:
            raise ConfigurationError(f"{section.secret} is not the key of {section.setup}")
    if section.share is not None:
        assert isinstance(setup.key, ThresholdPublicKey)  # noqa: S101  # it has share holders
        share = KeyShare.from_bytes(_private(folder / section.share), setup.key)
        place = setup.share_holders.index(own) + 1
        if share.index != place:
            raise ConfigurationError(
                f"{section.share} is share {share.index}, the setup gives this node {place}"
            )
    return secret, share


def _private(path: Path) -> bytes:
    data = key_files.read(path)
    complaint = key_files.describe_permissions(path, key_files.kind_of(data))
    if complaint is not None:
        raise ConfigurationError(complaint)
    return data


# -- a node with data -----------------------------------------------------------------------------


def check_numbers(config: RoundConfig, plan: Plan, node: Node, policy: ClientPolicy) -> None:
    """Whether a configuration is of this node's key and deciders, safe, and meets its floor.

    Raises:
        Refusal: KEY or THRESHOLD.
    """
    terms = _part(node).terms(config, plan)
    try:
        check_config(config, terms, assume_no_corruption=policy.assume_no_corruption)
        check_demands(config, policy)
    except ConfigurationError as error:
        raise Refusal(Code.THRESHOLD, str(error)) from None
    if plan.may_wrap:
        raise Refusal(
            Code.THRESHOLD,
            f"one client's update and noise may pass {config.b} bits, and a sum of numbers that "
            "are not reduced would show it",
        )


def check_in(config: RoundConfig, plan: Plan, u: ClientId, node: Node) -> bytes:
    """The first frame of a node with data; nothing secret remains behind it.

    Raises:
        Refusal: with the code of what does not fit.
    """
    return _only_frame(_client(config, plan, u, node).start())


def submit(
    config: RoundConfig,
    plan: Plan,
    u: ClientId,
    node: Node,
    *,
    frame: bytes,
    vector: Callable[[], RingVector],
) -> list[Outbound | Event]:
    """The frame with the encrypted vector, if the server's frame is what the terms say.

    Args:
        config: as agreed and checked, as are the next three.
        plan: what is summed.
        u: this node's id.
        node: its keys and rules.
        frame: the server's RoundOpen.
        vector: trains and encodes; called after the frame was accepted.

    Raises:
        PeerProtocolError, WireError: for another frame; nothing was trained.
        Refusal: from ``vector``.
    """
    machine = _client(config, plan, u, node)
    machine.start()
    machine.receive(frame)
    if not machine.wants_input:
        raise Refusal(Code.MALFORMED, "the server's frame opens no round")
    return machine.set_input(vector())


def _client(config: RoundConfig, plan: Plan, u: ClientId, node: Node) -> PaillierClient:
    part = _part(node)
    if part.decides:
        raise Refusal(Code.IDENTITY, "this node decides what is opened and has no data")
    identity, directory = node.identity, node.directory
    if identity is None or directory is None:
        raise Refusal(Code.IDENTITY, "a Paillier session needs identity and roster")
    terms = part.terms(config, plan)
    try:
        return PaillierClient(
            u,
            config,
            terms=terms,
            context_digest=config.context_digest,  # compared with plan and model by the callers
            identity=identity,
            directory=directory,
            policy=node.floor.client_policy(config.n),
        )
    except ConfigurationError as error:
        raise Refusal(Code.THRESHOLD, str(error)) from None


def _part(node: Node) -> PaillierPart:
    if node.paillier is None:
        raise Refusal(Code.KEY, "the node file has no [paillier]: no key is known here")
    return node.paillier


# -- a decider ------------------------------------------------------------------------------------


def decide(
    *,
    attempt: bytes,
    phase: str,
    config: RoundConfig,
    plan: Plan,
    frame: bytes,
    node: Node,
) -> bytes:
    """A decider's one answer in a session: what it agrees to, or a signed refusal.

    Args:
        attempt: the configuration's digest.
        phase: that the message asks for.
        config: as the server says.
        plan: likewise; they belong together (the caller looked).
        frame: the server's request.
        node: this decider.

    Raises:
        Refusal: if there is nothing to decide: a session that is not this node's, or below its
            floor, answered before, or bytes that are no request of it.
    """
    part = _part(node)
    if phase != part.phase:
        raise Refusal(Code.WRONG_PHASE, f"a message of phase {phase}, expected {part.phase}")
    if node.journal.answered(attempt, phase):
        raise Refusal(Code.ANSWERED, f"phase {phase} was answered before")
    demands = node.check_opening(config, plan)
    try:
        machine = part.decider(config, part.terms(config, plan), node, demands)
    except ConfigurationError as error:
        raise Refusal(Code.THRESHOLD, str(error)) from None
    node.check_budget(config, plan)
    try:
        found = _only_frame(machine.receive(frame, SERVER))
    except DecryptionRefused as refused:
        logger.warning("refused to open: %s", printable(refused))
        found = _only_frame(refused.outbound)
    else:
        # What is paid for before it leaves; nobody can take a partial opening back.
        node.reserve(config, plan, attempt)
        node.settle(config, plan, attempt, _count(frame, config))
    node.journal.commit(attempt, phase)
    return found


def _count(frame: bytes, config: RoundConfig) -> int:
    """How many inputs are in the sum of a request that the machine has accepted."""
    parsed = decode_frame(frame)
    if parsed.type == MessageType.CHECK_REQUEST:
        return len(CheckRequest.decode(parsed.body, most=config.n).submissions)
    return len(OpenRequest.decode(parsed.body, most=config.n).contributors)


def _only_frame(out: Iterable[object]) -> bytes:
    frames = [item.frame for item in out if isinstance(item, Outbound)]
    if len(frames) != 1:
        raise Refusal(Code.MALFORMED, f"one message makes one frame, found {len(frames)}")
    return frames[0]
