"""The ends of a session's wire: whose frame it is, who signed it, and how one's own are made.

What a client's and a server's machine do with a frame before they look at its content, and after
they have made some. A machine of a protocol stands on one of these ends; phases, messages and
decisions are its own. Against an active server client frames are signed; the server signs nothing,
because nothing that clients check depends on its word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from securefl.errors import ConfigurationError, InvalidSignature, UnexpectedMessage
from securefl.primitives.channel import sha256
from securefl.primitives.signing import BadSignature, IdentityDirectory, IdentityKey
from securefl.protocols.keys import SessionKeys
from securefl.protocols.machine import Outbound
from securefl.round import SERVER, Adversary, ClientId, RoundConfig, Usage, dst
from securefl.wire import Buffer, Frame, encode_frame, signed_content

__all__ = ["ClientEnd", "ServerEnd"]


def _frame(
    config: RoundConfig, *, kind: int, sender: ClientId, session: bytes, body: Buffer
) -> Frame:
    return Frame(
        protocol=config.protocol,
        type=kind,
        sender=sender,
        round_id=config.round_id,
        session=session,
        body=body,
    )


class ClientEnd:
    """A client's end.

    Args:
        u: whose it is.
        config: of the session.
        identity: the client's long-term key; unused in a semi-honest session.
        directory: everybody's public identity keys; unused likewise.
    """

    def __init__(
        self,
        u: ClientId,
        config: RoundConfig,
        *,
        identity: IdentityKey | None,
        directory: IdentityDirectory | None,
    ) -> None:
        active = config.adversary is Adversary.ACTIVE
        self.u = u
        self.config = config
        self.keys = SessionKeys(config.protocol)
        self.config_digest = config.digest()
        self.session: bytes | None = None
        self.identity = identity if active else None
        self.directory = directory if active else None

    def check_origin(
        self,
        frame: Frame,
        *,
        sender: ClientId | None,
        before_session: bool,
        what: str = "a frame",
    ) -> None:
        """Refuses a frame that is not the server's, or not of this session.

        Args:
            frame: what came.
            sender: whom the transport authenticated; None if it does not.
            before_session: whether frames of this type name the configuration and no session.
            what: how errors call it where they know nothing else of it.

        Raises:
            UnexpectedMessage: if it is not for this machine; nothing has changed.
        """
        if frame.sender != SERVER or sender not in (None, SERVER):
            who = frame.sender if sender is None else sender
            raise UnexpectedMessage(f"a frame from {who}, not from the server", culprits=[who])
        config = self.config
        if frame.protocol is not config.protocol or frame.round_id != config.round_id:
            raise self.unexpected(
                f"protocol {frame.protocol.name} round {frame.round_id}; this session is "
                f"{config.protocol.name} round {config.round_id}"
            )
        if frame.signature:
            raise self.unexpected("a signed frame from the server, which signs nothing")
        if frame.session != (self.config_digest if before_session else self.session):
            raise self.unexpected(f"{what} of another session")

    def unexpected(self, what: str) -> UnexpectedMessage:
        """The error for a frame that the server should not have sent now."""
        return UnexpectedMessage(f"client {self.u} got {what}", culprits=[SERVER])

    def outbound(self, kind: int, body: Buffer, *, session: bytes) -> tuple[Outbound, bytes]:
        """A frame to the server, signed where signatures are due, and its signature (or b"")."""
        frame = _frame(self.config, kind=kind, sender=self.u, session=session, body=body)
        if self.identity is not None:
            statement = self.keys.frame_statement(SERVER, signed_content(frame))
            frame = replace(frame, signature=self.identity.sign(statement))
        return Outbound(recipient=SERVER, frame=encode_frame(frame)), frame.signature

    def verify(self, v: ClientId, signature: bytes, statement: bytes, what: str) -> None:
        """Checks a peer's signature that the server passed on.

        Raises:
            InvalidSignature: client v never made it; whoever passed it on is known to cheat.
        """
        assert self.directory is not None  # noqa: S101  # active machines have one
        try:
            self.directory.verify(v, signature, statement)
        except BadSignature as error:
            raise InvalidSignature(f"{what}: {error}", culprits=[SERVER]) from None

    def verify_advertised(self, v: ClientId, signature: bytes, *, kind: int, body: bytes) -> None:
        """Rebuilds a peer's first frame from its roster entry and verifies its signature.

        Raises:
            InvalidSignature: as :meth:`verify`.
        """
        frame = _frame(self.config, kind=kind, sender=v, session=self.config_digest, body=body)
        statement = self.keys.frame_statement(SERVER, signed_content(frame))
        self.verify(v, signature, statement, "the keys in the roster")


class ServerEnd:
    """The server's end.

    Args:
        config: of the session.
        directory: everybody's public identity keys; unused in a semi-honest session.

    Raises:
        ConfigurationError: against an active adversary, if a cohort member has no identity.
    """

    def __init__(self, config: RoundConfig, *, directory: IdentityDirectory | None) -> None:
        self.active = config.adversary is Adversary.ACTIVE
        unknown = [u for u in config.cohort if directory is None or u not in directory]
        if self.active and unknown:
            raise ConfigurationError(
                f"against an active adversary every cohort member needs an identity in directory=, "
                f"{len(unknown)} have none, first {unknown[:3]}"
            )
        self.config = config
        self.keys = SessionKeys(config.protocol)
        self.config_digest = config.digest()
        self.session: bytes | None = None
        self.directory = directory if self.active else None

    def origin(
        self,
        frame: Frame,
        *,
        sender: ClientId | None,
        before_session: bool,
        what: str = "a frame",
    ) -> ClientId:
        """The client whose frame of this session it is, by what the header claims.

        Args:
            frame: what came.
            sender: whom the transport authenticated; None if it does not.
            before_session: whether frames of this type name the configuration and no session.
            what: how errors call it where they know nothing else of it.

        Raises:
            UnexpectedMessage: if it is not for this machine; nothing has changed.
        """
        u, config = frame.sender, self.config
        if sender is not None and sender != u:
            raise self.unexpected(sender, f"a frame that claims to come from {u}")
        if u not in config.cohort:
            raise self.unexpected(u, "a frame of a client that is not in the cohort")
        if frame.protocol is not config.protocol or frame.round_id != config.round_id:
            raise self.unexpected(u, f"protocol {frame.protocol.name} round {frame.round_id}")
        if bool(frame.signature) is not self.active:
            wrong = "an unsigned" if self.active else "a signed"
            raise self.unexpected(u, f"{wrong} frame in a session against {config.adversary.name}")
        if frame.session != (self.config_digest if before_session else self.session):
            raise self.unexpected(u, f"{what} of another session")
        return u

    def forged(self, frame: Frame, u: ClientId) -> BadSignature | None:
        """Why u did not sign this frame; None if it did, or nobody signs in this session."""
        if self.directory is None:
            return None
        statement = self.keys.frame_statement(SERVER, signed_content(frame))
        try:
            self.directory.verify(u, frame.signature, statement)
        except BadSignature as error:
            return error
        return None

    def frame(self, kind: int, body: Buffer, *, session: bytes) -> bytes:
        """A frame of the server."""
        return encode_frame(
            _frame(self.config, kind=kind, sender=SERVER, session=session, body=body)
        )

    def to_all(
        self, recipients: Iterable[ClientId], kind: int, body: Buffer, *, session: bytes
    ) -> list[Outbound]:
        """One frame for several clients."""
        frame = self.frame(kind, body, session=session)
        return [Outbound(recipient=u, frame=frame) for u in recipients]

    def unexpected(self, u: ClientId, what: str) -> UnexpectedMessage:
        """The error for a frame that u should not have sent now."""
        return UnexpectedMessage(f"the server got {what} from {u}", culprits=[u])

    def transcript_digest(self, accepted: Mapping[tuple[int, ClientId], bytes]) -> bytes:
        """SHA-256(dst(16), then per accepted frame: u8 type, u32 sender, SHA-256 of the frame).

        Args:
            accepted: digests by type and sender; types ascend in the order of the phases.
        """
        return sha256(
            dst(Usage.TRANSCRIPT, self.config.protocol),
            *(
                bytes([kind]) + int(u).to_bytes(4, "little") + digest
                for (kind, u), digest in sorted(accepted.items())
            ),
        )
