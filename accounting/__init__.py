"""Privacy accounting: what was released, what it costs, and a record that refuses the unpaid.

Start at :mod:`accounting.events` (what was released), then :mod:`accounting.curves` (what it
costs), :mod:`accounting.accountant` (what it costs together) and :mod:`accounting.ledger` (the
file). The package stands alone: it needs numpy and scipy and never imports the rest of the
library. A number of this package is a claim about an idealised mechanism; secure aggregation,
clipping or compression alone earn none.
"""

from accounting.accountant import Bound, BoundKind, Method, RDPAccountant, RDPCurve, epsilon
from accounting.calibration import Calibration, Over, calibrate
from accounting.errors import (
    AccountingError,
    AdjacencyMismatch,
    BrokenChain,
    BudgetExceeded,
    CalibrationError,
    InvalidEvent,
    InvalidParameter,
    LedgerRolledBack,
    LedgerUnavailable,
    OrderAtEdgeWarning,
    OverReservation,
    TicketError,
    UnsupportedEvent,
)
from accounting.events import (
    Adjacency,
    Compose,
    Event,
    Gaussian,
    NonPrivate,
    Poisson,
    Repeat,
    digest,
    dump,
    parse,
)
from accounting.ledger import Balance, Ledger
from accounting.record import (
    EntryKind,
    Evidence,
    Head,
    LedgerEntry,
    LedgerHeader,
    NoteSubject,
    Randomness,
    Ticket,
    Unit,
)

__all__ = [
    "AccountingError",
    "Adjacency",
    "AdjacencyMismatch",
    "Balance",
    "Bound",
    "BoundKind",
    "BrokenChain",
    "BudgetExceeded",
    "Calibration",
    "CalibrationError",
    "Compose",
    "EntryKind",
    "Event",
    "Evidence",
    "Gaussian",
    "Head",
    "InvalidEvent",
    "InvalidParameter",
    "Ledger",
    "LedgerEntry",
    "LedgerHeader",
    "LedgerRolledBack",
    "LedgerUnavailable",
    "Method",
    "NonPrivate",
    "NoteSubject",
    "OrderAtEdgeWarning",
    "Over",
    "OverReservation",
    "Poisson",
    "RDPAccountant",
    "RDPCurve",
    "Randomness",
    "Repeat",
    "Ticket",
    "TicketError",
    "Unit",
    "UnsupportedEvent",
    "calibrate",
    "digest",
    "dump",
    "epsilon",
    "parse",
]
