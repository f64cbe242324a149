"""The lints A01 to A22: mistakes that real deployments make, each with evidence and a fix.

Importing this package registers them all in :data:`LINTS`. ``docs/lints/`` has a page for each.
"""

from __future__ import annotations

from accounting.audit.lints import (  # noqa: F401  # registers its lints
    composition,
    noise,
    sampling,
    scope,
    sensitivity,
)
from accounting.audit.lints.base import LINTS, Finding, Lint, Severity
from accounting.deployment import Deployment, impossible_values

__all__ = ["LINTS", "Finding", "Lint", "Severity", "findings"]


def findings(deployment: Deployment) -> tuple[Finding, ...]:
    """What every lint has to say, in the order of their codes."""
    if impossible_values(deployment):
        found = list(LINTS["A18"].check(deployment))
        if deployment.guarantee.adjacency is None:
            found.insert(0, _missing_adjacency())
        return tuple(found)
    return tuple(finding for _, lint in sorted(LINTS.items()) for finding in lint.check(deployment))


def _missing_adjacency() -> Finding:
    """A02 for a file from which nothing can be computed."""
    return Finding(
        code="A02",
        severity=Severity.E,
        where="guarantee.adjacency",
        sentence="The file does not say which data sets are neighbours; no default is safe.",
        evidence=(),
        fix="Add guarantee.adjacency.",
    )
