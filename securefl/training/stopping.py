"""When a run ends, and why: the first reason that holds, and it is stored.

The rules read the validation figures of the rounds so far and a clock, nothing else, so a resumed
run decides as if it had never been cut off. Budget, divergence and lost rounds are noticed where
they happen (the engine); here are the rules about progress and time. Validation records must be
public, or the figures paid for: a run that stops on private records tells when they were fitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from securefl.errors import ConfigurationError

__all__ = ["StopReason", "StopRules"]


class StopReason(StrEnum):
    """Why a run ended."""

    ROUNDS = "rounds"
    """All rounds were carried out."""
    TARGET = "target"
    """The wanted accuracy was reached, and kept for as long as was asked."""
    PLATEAU = "plateau"
    """The validation loss has not fallen for too long."""
    DEADLINE = "deadline"
    """The time is up."""
    BUDGET = "budget"
    """The next round does not fit the privacy budget."""
    DIVERGED = "diverged"
    """The model left the finite numbers."""
    LOST_ROUNDS = "lost-rounds"
    """Too many rounds in a row fell below their threshold."""
    INTERRUPTED = "interrupted"
    """Somebody asked for it; the run can be resumed."""

    @property
    def succeeded(self) -> bool:
        """Whether the run ended as planned."""
        return self in (
            StopReason.ROUNDS,
            StopReason.TARGET,
            StopReason.PLATEAU,
            StopReason.DEADLINE,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRules:
    """The rules about progress and time; None switches a rule off.

    Attributes:
        target_accuracy: in (0, 1].
        target_patience: rounds in a row that must reach it, >= 1: one lucky round is none.
        plateau_rounds: rounds without a new lowest validation loss, >= 1.
        plateau_improvement: by how much a loss must be lower to count as new, >= 0.
        deadline_seconds: positive; asked before a round is started, never within one.

    >>> rules = StopRules(target_accuracy=0.9, target_patience=2)
    >>> rules.reason(accuracies=[0.8, 0.95, 0.85, 0.91], losses=[1.0] * 4, seconds=0.0) is None
    True
    >>> rules.reason(accuracies=[0.8, 0.95, 0.91], losses=[1.0] * 3, seconds=0.0).value
    'target'
    """

    target_accuracy: float | None = None
    target_patience: int = 1
    plateau_rounds: int | None = None
    plateau_improvement: float = 0.0
    deadline_seconds: float | None = None

    def __post_init__(self) -> None:
        target, deadline = self.target_accuracy, self.deadline_seconds
        if target is not None and not 0.0 < target <= 1.0:
            raise ConfigurationError(f"target_accuracy must be in (0, 1], found {target}")
        for name in ("target_patience", "plateau_rounds"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < 1):
                raise ConfigurationError(f"{name} must be at least 1, found {value}")
        if not (math.isfinite(self.plateau_improvement) and self.plateau_improvement >= 0.0):
            raise ConfigurationError(
                f"plateau_improvement must be >= 0 and finite, found {self.plateau_improvement}"
            )
        if deadline is not None and not (math.isfinite(deadline) and deadline > 0.0):
            raise ConfigurationError(f"deadline_seconds must be positive, found {deadline}")

    @property
    def watches_progress(self) -> bool:
        """Whether validation figures are needed."""
        return self.target_accuracy is not None or self.plateau_rounds is not None

    def reason(
        self,
        *,
        accuracies: Sequence[float | None],
        losses: Sequence[float | None],
        seconds: float,
    ) -> StopReason | None:
        """Why the run should end before its next round; None if it should not.

        Args:
            accuracies: validation accuracy after each round so far, in order.
            losses: validation loss after each round; None where it overflowed, which is worse than
                any number.
            seconds: how long the run has taken.
        """
        if self._reached(accuracies):
            return StopReason.TARGET
        if self._stuck(losses):
            return StopReason.PLATEAU
        if self.deadline_seconds is not None and seconds >= self.deadline_seconds:
            return StopReason.DEADLINE
        return None

    def _reached(self, accuracies: Sequence[float | None]) -> bool:
        target = self.target_accuracy
        if target is None or len(accuracies) < self.target_patience:
            return False
        return all(a is not None and a >= target for a in accuracies[-self.target_patience :])

    def _stuck(self, losses: Sequence[float | None]) -> bool:
        if self.plateau_rounds is None:
            return False
        best, since = math.inf, 0
        for loss in losses:
            value = math.inf if loss is None or math.isnan(loss) else loss
            if value < best - self.plateau_improvement or (best == math.inf > value):
                best, since = value, 0
            else:
                since += 1
        return since >= self.plateau_rounds
