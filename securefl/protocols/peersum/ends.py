"""A peer's end of the wire: whose frame it is, who signed it, and how one's own are made.

Every frame goes from one peer to another and is signed for its recipient, so nobody can pass a
frame on and have its author blamed for what it says to somebody else. This module knows no phases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from securefl.errors import UnexpectedMessage
from securefl.primitives.channel import sha256
from securefl.primitives.signing import BadSignature, IdentityDirectory, IdentityKey
from securefl.protocols.machine import Outbound
from securefl.protocols.peersum.keys import KeySchedule
from securefl.round import ClientId, RoundConfig, Usage, dst
from securefl.wire import Buffer, Frame, encode_frame, signed_content

__all__ = ["PeerEnd"]


class PeerEnd:
    """One peer's end.

    Args:
        u: whose it is.
        config: of the session.
        identity: the peer's long-term key.
        directory: everybody's public identity keys.

    Attributes:
        session: the configuration's digest, which names the session.
    """

    def __init__(
        self,
        u: ClientId,
        config: RoundConfig,
        *,
        identity: IdentityKey,
        directory: IdentityDirectory,
    ) -> None:
        self.u = u
        self.config = config
        self.session = config.digest()
        self.identity = identity
        self.directory = directory

    def origin(self, frame: Frame, *, sender: ClientId | None) -> ClientId:
        """The peer whose frame of this session it is, by what the header claims.

        Args:
            frame: what came.
            sender: whom the transport authenticated; None if it does not.

        Raises:
            UnexpectedMessage: if it is not for this machine; nothing has changed.
        """
        v, config = frame.sender, self.config
        if sender is not None and sender != v:
            raise self.unexpected(sender, f"a frame that claims to come from {v}", known=True)
        known = sender is not None
        if v not in config.cohort or v == self.u:
            raise self.unexpected(v, "a frame of somebody that is no peer here", known=known)
        if frame.protocol is not config.protocol or frame.round_id != config.round_id:
            raise self.unexpected(
                v, f"protocol {frame.protocol.name} round {frame.round_id}", known=known
            )
        if not frame.signature:
            raise self.unexpected(v, "an unsigned frame", known=known)
        if frame.session != self.session:
            raise self.unexpected(v, "a frame of another session", known=known)
        return v

    def signed_by(self, frame: Frame, v: ClientId) -> bool:
        """Whether v signed this frame for this peer."""
        statement = KeySchedule.frame_statement(self.u, signed_content(frame))
        try:
            self.directory.verify(v, frame.signature, statement)
        except BadSignature:
            return False
        return True

    def outbound(self, kind: int, body: Buffer, recipient: ClientId) -> Outbound:
        """A frame for one peer, signed."""
        config = self.config
        frame = Frame(
            protocol=config.protocol,
            type=kind,
            sender=self.u,
            round_id=config.round_id,
            session=self.session,
            body=body,
        )
        statement = KeySchedule.frame_statement(recipient, signed_content(frame))
        signed = replace(frame, signature=self.identity.sign(statement))
        return Outbound(recipient=recipient, frame=encode_frame(signed))

    def unexpected(self, v: ClientId, what: str, *, known: bool) -> UnexpectedMessage:
        """The error for a frame that v should not have sent now.

        Args:
            v: whose it seems to be.
            what: what it is.
            known: whether transport or signature say that it is v's; else nobody is blamed.
        """
        return UnexpectedMessage(
            f"peer {self.u} got {what} from {v}", culprits=[v] if known else []
        )

    def transcript_digest(self, accepted: Mapping[tuple[int, ClientId], bytes]) -> bytes:
        """SHA-256(dst(16), then per accepted frame: u8 type, u32 sender, SHA-256 of the frame)."""
        return sha256(
            dst(Usage.TRANSCRIPT, self.config.protocol),
            *(
                bytes([kind]) + int(v).to_bytes(4, "little") + digest
                for (kind, v), digest in sorted(accepted.items())
            ),
        )
