"""Opacus: ``PrivacyEngine(accountant="securefl")`` after importing this module.

Opacus samples by Poisson coins (unless told otherwise) and claims add-remove; so does this
accountant. It refuses what Opacus' own ones take: rates above 1 (Opacus multiplies the rate by the
number of accumulated steps), NaN, and a checkpoint with fewer steps than were already taken. It
cannot see ``poisson_sampling=False``: an epsilon for such a run is not one.

The only module of the package that may import Opacus, and with it torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opacus.accountants import IAccountant, create_accountant, register_accountant

from accounting.accountant import Bound, Method, epsilon
from accounting.errors import InvalidParameter
from accounting.events import Adjacency, Compose, Event, Gaussian, NonPrivate, Poisson, Repeat

__all__ = ["NAME", "SecureFLAccountant", "history_event", "their_epsilon"]

NAME = "securefl"


def history_event(history: list[tuple[float, float, int]]) -> Event | None:
    """Opacus' history [(noise_multiplier, sample_rate, steps)] as one event; None if empty.

    Raises:
        InvalidEvent: for NaN, negative noise, rates outside (0, 1] or steps below 1.
    """
    parts: list[Event] = []
    for noise, rate, steps in history:
        release: Event = NonPrivate()
        if noise != 0:
            release = Poisson(sample_rate=rate, event=Gaussian(noise_multiplier=noise))
        parts.append(Repeat(event=release, count=steps))
    return Compose(events=tuple(parts)) if parts else None


def their_epsilon(mechanism: str, history: list[tuple[float, float, int]], delta: float) -> float:
    """What an accountant of Opacus (``rdp``, ``prv``) says about a history, for comparison only."""
    accountant = create_accountant(mechanism)
    accountant.history = list(history)
    return float(accountant.get_epsilon(delta))


class SecureFLAccountant(IAccountant):  # type: ignore[misc]  # Opacus ships no type information
    """An Opacus accountant with the costs of this package, under add-remove.

    Attributes:
        history: [(noise_multiplier, sample_rate, steps)], as Opacus' own accountants keep it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.history: list[tuple[float, float, int]] = []

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
        """One optimiser step.

        Raises:
            InvalidEvent: for values that are no possible release; then nothing is recorded.
        """
        history_event([(noise_multiplier, sample_rate, 1)])
        if self.history and self.history[-1][:2] == (noise_multiplier, sample_rate):
            self.history[-1] = (noise_multiplier, sample_rate, self.history[-1][2] + 1)
        else:
            self.history.append((noise_multiplier, sample_rate, 1))

    def bound(self, delta: float, *, method: Method | str = Method.RDP) -> Bound | None:
        """The whole statement; None before the first step."""
        event = history_event(self.history)
        if event is None:
            return None
        return epsilon(event, delta, adjacency=Adjacency.ADD_REMOVE, method=method)

    def get_epsilon(self, delta: float, *, method: Method | str = Method.RDP, **_: Any) -> float:
        """Epsilon spent so far; 0 before the first step.

        Args:
            delta: 0 < delta < 1.
            method: ``rdp`` is fast; ``auto`` is tighter and takes seconds.

        Raises:
            InvalidParameter: for an impossible delta.
            InvalidEvent: if the history was filled with impossible values.
        """
        found = self.bound(delta, method=method)
        return 0.0 if found is None else found.value

    def __len__(self) -> int:
        return sum(steps for _, _, steps in self.history)

    @classmethod
    def mechanism(cls) -> str:
        """The name under which Opacus knows this accountant."""
        return NAME

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint.

        Raises:
            ValueError: as Opacus, for a state of another accountant.
            InvalidParameter: for fewer steps than this accountant has already seen: what was
                released stays released.
            InvalidEvent: for a history of impossible values.
        """
        before = self.history
        super().load_state_dict(state_dict)
        found = [(z, q, steps) for z, q, steps in self.history]
        self.history = before
        history_event(found)
        if sum(steps for _, _, steps in found) < len(self):
            raise InvalidParameter(
                f"a state of {sum(n for _, _, n in found)} steps cannot replace {len(self)} steps "
                "already taken: load it into a new accountant, or keep this one"
            )
        self.history = found


register_accountant(NAME, SecureFLAccountant, force=True)
