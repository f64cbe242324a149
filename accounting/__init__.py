"""Privacy accounting: what was released, what it costs, and a record that refuses the unpaid.

Start at :mod:`accounting.events` (what was released), then :mod:`accounting.curves` (what it
costs), :mod:`accounting.accountant` (what it costs together) and :mod:`accounting.ledger` (the
file). The package stands alone: it needs numpy and scipy and never imports the rest of the
library. A number of this package is a claim about an idealised mechanism; secure aggregation,
clipping or compression alone earn none.
"""

import importlib
from typing import TYPE_CHECKING

import accounting.derived  # noqa: F401  # registers its curves
from accounting import empirical
from accounting.accountant import Bound, BoundKind, Method, RDPAccountant, RDPCurve, epsilon
from accounting.calibration import Calibration, Over, calibrate
from accounting.closed_forms import rounded_sensitivity
from accounting.entries import (
    Balance,
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
from accounting.errors import (
    AccountingError,
    AdjacencyMismatch,
    BrokenChain,
    BudgetExceeded,
    CalibrationError,
    InvalidDeployment,
    InvalidEvent,
    InvalidParameter,
    LedgerRolledBack,
    LedgerUnavailable,
    MissingExtra,
    OrderAtEdgeWarning,
    OverReservation,
    TicketError,
    UnsupportedEvent,
)
from accounting.events import (
    ZCDP,
    Adjacency,
    ApproxDP,
    BandedMF,
    Compose,
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    Event,
    FixedSize,
    Gaussian,
    Group,
    Hierarchical,
    Laplace,
    NoiseShares,
    NonPrivate,
    Poisson,
    PureDP,
    Repeat,
    Select,
    Shuffled,
    Skellam,
    Tree,
    digest,
    dump,
    parse,
)
from accounting.export import VerifiedLedger
from accounting.filter import Filter, Odometer
from accounting.intervals import Interval, interval
from accounting.ledger import Ledger
from accounting.statement import ClientStatement, client_statement

if TYPE_CHECKING:
    from accounting.audit.report import AuditReport, Verdict
    from accounting.deployment import Deployment

_LATE = {
    "AuditReport": "accounting.audit.report",
    "Deployment": "accounting.deployment",
    "Verdict": "accounting.audit.report",
}


def __getattr__(name: str) -> object:
    """Deployment files and audits load pydantic, so they load when they are asked for."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name]), name)


__all__ = [
    "ZCDP",
    "AccountingError",
    "Adjacency",
    "AdjacencyMismatch",
    "ApproxDP",
    "AuditReport",
    "Balance",
    "BandedMF",
    "Bound",
    "BoundKind",
    "BrokenChain",
    "BudgetExceeded",
    "Calibration",
    "CalibrationError",
    "ClientStatement",
    "Compose",
    "Deployment",
    "DiscreteGaussian",
    "DistributedDiscreteGaussian",
    "EntryKind",
    "Event",
    "Evidence",
    "Filter",
    "FixedSize",
    "Gaussian",
    "Group",
    "Head",
    "Hierarchical",
    "Interval",
    "InvalidDeployment",
    "InvalidEvent",
    "InvalidParameter",
    "Laplace",
    "Ledger",
    "LedgerEntry",
    "LedgerHeader",
    "LedgerRolledBack",
    "LedgerUnavailable",
    "Method",
    "MissingExtra",
    "NoiseShares",
    "NonPrivate",
    "NoteSubject",
    "Odometer",
    "OrderAtEdgeWarning",
    "Over",
    "OverReservation",
    "Poisson",
    "PureDP",
    "RDPAccountant",
    "RDPCurve",
    "Randomness",
    "Repeat",
    "Select",
    "Shuffled",
    "Skellam",
    "Ticket",
    "TicketError",
    "Tree",
    "Unit",
    "UnsupportedEvent",
    "Verdict",
    "VerifiedLedger",
    "calibrate",
    "client_statement",
    "digest",
    "dump",
    "empirical",
    "epsilon",
    "interval",
    "parse",
    "rounded_sensitivity",
]
