"""The error tree of `accounting`: its own root, because the package stands alone.

Three groups: the arguments are impossible (those that are also ``ValueError``), the budget says no
(:class:`BudgetExceeded`, :class:`OverReservation`), and the record cannot be trusted
(:class:`BrokenChain`, :class:`LedgerRolledBack`, :class:`LedgerUnavailable`). Nothing here is ever
replaced by a return value: a privacy cost that is not known is an error, not zero.
"""

from __future__ import annotations

__all__ = [
    "AccountingError",
    "AdjacencyMismatch",
    "BrokenChain",
    "BudgetExceeded",
    "CalibrationError",
    "InvalidDeployment",
    "InvalidEvent",
    "InvalidParameter",
    "LedgerRolledBack",
    "LedgerUnavailable",
    "MissingExtra",
    "OrderAtEdgeWarning",
    "OverReservation",
    "TicketError",
    "UnsupportedEvent",
]


class AccountingError(Exception):
    """Root of every error that `accounting` raises on purpose."""


class InvalidDeployment(AccountingError, ValueError):
    """A deployment file cannot be read: syntax, an unknown key, a wrong type, a missing key."""


class InvalidEvent(AccountingError, ValueError):
    """An event, or its JSON, does not describe a possible release."""


class InvalidParameter(AccountingError, ValueError):
    """An argument other than an event is impossible, such as a delta outside (0, 1)."""


class UnsupportedEvent(AccountingError):
    """No proved cost is known for this event under this adjacency. Refused, never guessed.

    Attributes:
        event: the event that was refused.
    """

    def __init__(self, message: str, *, event: object) -> None:
        super().__init__(message)
        self.event = event


class AdjacencyMismatch(AccountingError, ValueError):
    """Two quantities under different adjacency relations were to be added or compared."""


class CalibrationError(AccountingError, ValueError):
    """No value of the searched parameter meets the target."""


class BudgetExceeded(AccountingError):
    """The release does not fit into the declared budget. Nothing was written, nothing is charged.

    Where the reserve of delta for (epsilon, delta)-private releases is what is used up, the three
    numbers are probabilities instead of RDP.

    Attributes:
        spent: RDP at the declared order already charged or reserved.
        requested: RDP at the declared order that this release would cost; may be infinite.
        limit: RDP at the declared order that the budget allows in all.
    """

    def __init__(self, message: str, *, spent: float, requested: float, limit: float) -> None:
        super().__init__(message)
        self.spent = spent
        self.requested = requested
        self.limit = limit


class OverReservation(AccountingError):
    """The realised event costs more than was reserved. The reservation stays charged.

    Attributes:
        reserved: RDP at the declared order that the reservation holds.
        requested: RDP at the declared order of the realised event; may be infinite.
    """

    def __init__(self, message: str, *, reserved: float, requested: float) -> None:
        super().__init__(message)
        self.reserved = reserved
        self.requested = requested


class TicketError(AccountingError, ValueError):
    """A ticket is unknown to this ledger, or not open any more."""


class BrokenChain(AccountingError):
    """A ledger contradicts itself.

    Attributes:
        entry: sequence number of the first entry that cannot be trusted; None if the damage is
            not in one entry (tables, triggers or pages of the file).
    """

    def __init__(self, message: str, *, entry: int | None) -> None:
        super().__init__(message)
        self.entry = entry


class LedgerRolledBack(AccountingError):
    """A ledger does not contain an entry that somebody has already seen."""


class LedgerUnavailable(AccountingError):
    """The file is no ledger, exists already, is locked by another process, or was closed."""


class MissingExtra(AccountingError, ImportError):
    """An optional package is needed and not installed. The message names the extra."""


class OrderAtEdgeWarning(UserWarning):
    """The best RDP order is the smallest or the largest one tried: the epsilon may be loose.

    The bound itself is valid. Give other orders, or doubt the parameters.
    """
