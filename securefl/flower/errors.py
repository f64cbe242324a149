"""Why a node refuses, in a code and nothing more.

Whatever a node says reaches the server. The text of an exception may hold records, paths or
updates, so only the name of one of these codes ever leaves; the text goes to the node's own log.
"""

from __future__ import annotations

from enum import StrEnum

from securefl.errors import SecureFLError

__all__ = ["ERROR_NUMBER", "PREFIX", "Code", "Refusal", "code_of"]

ERROR_NUMBER = 6
"""Flower's number for "a precondition of the client's code does not hold"."""

PREFIX = "securefl:"


class Code(StrEnum):
    """What leaves a node that refuses."""

    UNPROTECTED = "E101"
    MALFORMED = "E102"
    ADVERSARY = "E103"
    COHORT = "E104"
    THRESHOLD = "E105"
    PRIVACY = "E106"
    IDENTITY = "E107"
    METRICS = "E108"
    KEY = "E109"
    BEACON = "E110"
    STATE_LOST = "E201"
    WRONG_PHASE = "E202"
    ANSWERED = "E203"
    STATE_TOO_LARGE = "E204"
    TRAINING = "E301"
    INVALID_UPDATE = "E302"
    INTERNAL = "E901"

    @property
    def meaning(self) -> str:
        """A few words for the server's log and the documentation."""
        return _MEANING[self]

    @property
    def about_state(self) -> bool:
        """Whether the message came at the wrong time, which leaves the session as it is."""
        return self.startswith("E2")


_MEANING = {
    Code.UNPROTECTED: "message type without protection",
    Code.MALFORMED: "malformed or contradictory message, or another run_config",
    Code.ADVERSARY: "protocol or adversary below the node's floor",
    Code.COHORT: "cohort too small for the node's floor",
    Code.THRESHOLD: "thresholds unsafe or below the node's floor, or too few clients left",
    Code.PRIVACY: "privacy floor or budget",
    Code.IDENTITY: "identity, roster or node file",
    Code.METRICS: "metrics or weight",
    Code.KEY: "another key or other deciders than the node's",
    Code.BEACON: "beacon unknown, its round known too early, or not there in time",
    Code.STATE_LOST: "state of the session lost",
    Code.WRONG_PHASE: "wrong phase",
    Code.ANSWERED: "answered before",
    Code.STATE_TOO_LARGE: "state too large",
    Code.TRAINING: "training failed",
    Code.INVALID_UPDATE: "invalid update",
    Code.INTERNAL: "internal error",
}


class Refusal(SecureFLError):
    """This node does not answer; the text is for its own log.

    Attributes:
        code: what the server is told.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def code_of(reason: str | None) -> Code | None:
    """The code in the reason of an error reply; None if it is no refusal of ours."""
    if reason is None or not reason.startswith(PREFIX):
        return None
    try:
        return Code(reason.removeprefix(PREFIX))
    except ValueError:
        return None
