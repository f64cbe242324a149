"""The error tree of SecureFL: you, they, nobody.

Every error raised on purpose derives from :class:`SecureFLError`. The three groups a caller must
tell apart are kept apart by type: *you* (:class:`ConfigurationError`, :class:`LocalProtocolError`),
*they* (:class:`PeerProtocolError`, which names its culprits) and *nobody*
(:class:`BelowThreshold`: too many clients vanished, the round is lost, no sum was opened).
This module knows nothing about protocols, arrays or wire formats.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "BelowThreshold",
    "CheckpointError",
    "ConfigurationError",
    "DataNotFound",
    "DecryptionFailed",
    "DecryptionRefused",
    "Equivocation",
    "InvalidShare",
    "InvalidSignature",
    "LocalProtocolError",
    "PeerProtocolError",
    "ProtocolError",
    "RosterMismatch",
    "SecureFLError",
    "SnapshotError",
    "UnexpectedMessage",
    "WireError",
    "WorkerLost",
]


class SecureFLError(Exception):
    """Root of every error that SecureFL raises on purpose."""


class ConfigurationError(SecureFLError, ValueError):
    """Impossible or unsafe parameters. The message contains the numbers."""


class ProtocolError(SecureFLError):
    """A protocol session cannot go on.

    Attributes:
        outbound: frames the machine still wants sent (its Abort), in order; empty if none.
    """

    def __init__(self, message: str, *, outbound: Iterable[object] = ()) -> None:
        super().__init__(message)
        self.outbound: tuple[object, ...] = tuple(outbound)


class LocalProtocolError(ProtocolError):
    """The caller drove a machine wrongly: a call that its phase does not allow."""


class PeerProtocolError(ProtocolError):
    """Another party broke the protocol.

    Attributes:
        culprits: ids of the parties that broke it (the server by its reserved id).
    """

    def __init__(
        self, message: str, *, culprits: Iterable[int], outbound: Iterable[object] = ()
    ) -> None:
        super().__init__(message, outbound=outbound)
        self.culprits: tuple[int, ...] = tuple(culprits)


class UnexpectedMessage(PeerProtocolError):
    """A message of the wrong type, sender, round or session for the current phase."""


class RosterMismatch(PeerProtocolError):
    """The key roster contradicts the cohort, or this client's own keys."""


class InvalidSignature(PeerProtocolError):
    """A signature does not verify under the key of its claimed author."""


class DecryptionFailed(PeerProtocolError):
    """Too few of the shares addressed to this client could be opened."""


class DecryptionRefused(PeerProtocolError):
    """A decider's policy said no: what it was asked to open is not a sum it agrees to.

    Attributes:
        reason: the code, upper case, e.g. ``TOO_FEW``.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        culprits: Iterable[int],
        outbound: Iterable[object] = (),
    ) -> None:
        super().__init__(message, culprits=culprits, outbound=outbound)
        self.reason = reason


class InvalidShare(PeerProtocolError):
    """Shares do not reconstruct to what their dealer committed to; no sum was opened.

    Attributes:
        pairs: (dealer, holder) pairs that do not fit together. Which of the two lied is not known.
    """

    def __init__(
        self,
        message: str,
        *,
        culprits: Iterable[int],
        pairs: Iterable[tuple[int, int]] = (),
        outbound: Iterable[object] = (),
    ) -> None:
        super().__init__(message, culprits=culprits, outbound=outbound)
        self.pairs: tuple[tuple[int, int], ...] = tuple(pairs)


class Equivocation(PeerProtocolError):
    """One party told two stories: two different messages, or contradicting survivor lists."""


class BelowThreshold(SecureFLError):
    """Too few clients are left. Nobody's fault; the round is lost, no sum was opened.

    Attributes:
        needed: how many clients the phase needs.
        had: how many there were.
        phase: lower-case name of the phase.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        needed: int,
        had: int,
        phase: str,
        outbound: Iterable[object] = (),
    ) -> None:
        super().__init__(
            message
            or f"{had} clients are left in phase {phase}, {needed} are needed: "
            "the round is lost and no sum was opened; run a new round"
        )
        self.needed = needed
        self.had = had
        self.phase = phase
        self.outbound: tuple[object, ...] = tuple(outbound)


class WireError(SecureFLError):
    """Malformed bytes: wrong magic, unknown version, bad length, bytes left over."""


class DataNotFound(SecureFLError, FileNotFoundError):
    """A data set is not where it was looked for. Names the folder and the file expected."""


class CheckpointError(SecureFLError):
    """A checkpoint cannot be resumed: damaged, of another configuration, or ahead of its ledger."""


class SnapshotError(SecureFLError):
    """A machine's snapshot cannot be used: damaged, of another key, party or session, or too old.

    Going on from an old state would answer twice; the party counts as a dropout of that session.
    """


class WorkerLost(SecureFLError):
    """A worker process of a simulation ended before its work was done; the run cannot go on.

    The round that was cut off stays charged, as after a crash, and the run can be resumed.
    """
