"""Flower's ``PrivacyAccountant`` protocol (1.41) with the costs of this package.

Nothing of Flower is imported: a configuration and an event are read by their attributes, so any
objects of that shape will do. Two differences a user can notice: under replace-one the sensitivity
is 2C, so our number is larger than that of Flower's own accountant; and a check whether one more
release fits costs the new curve only, not a replay of all rounds.

``would_exceed`` takes the best order afresh. If releases depend on earlier outputs that is no
privacy filter; :class:`accounting.Ledger` is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from accounting.accountant import RDPAccountant, checked_delta, checked_epsilon
from accounting.errors import InvalidParameter
from accounting.events import Adjacency, Event, FixedSize, Gaussian, Poisson, Repeat

__all__ = ["BACKEND", "FlowerAccountant", "FlowerConfig", "FlowerEvent", "Spent"]

BACKEND = "securefl-rdp"
_SCHEMA = 1
_ADJACENCY = {
    "add-or-remove-one": Adjacency.ADD_REMOVE,
    "replace-one": Adjacency.REPLACE_ONE,
}
_CONFIG_KEYS = (
    "target_delta",
    "population_size",
    "neighboring_relation",
    "sampling_method",
    "max_epsilon",
)
_EVENT_KEYS = ("noise_multiplier", "sample_size", "population_size")


class FlowerConfig(Protocol):
    """The attributes of Flower's ``PrivacyConfig``; relation and method are str enums or text."""

    @property
    def target_delta(self) -> float:
        """The delta where a call gives none."""

    @property
    def population_size(self) -> int:
        """Clients from which each round's are sampled."""

    @property
    def neighboring_relation(self) -> Any:
        """``"add-or-remove-one"`` or ``"replace-one"``."""

    @property
    def sampling_method(self) -> Any:
        """``"poisson"``, ``"without-replacement"`` or ``"no-amplification"``."""

    @property
    def max_epsilon(self) -> float | None:
        """The limit where a call gives none; None is no limit."""


class FlowerEvent(Protocol):
    """The attributes of Flower's ``GaussianPrivacyEvent``."""

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over the clip norm."""

    @property
    def sample_size(self) -> int:
        """Clients of the round; with Poisson sampling their expected number."""

    @property
    def population_size(self) -> int:
        """As in the configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was spent, with the attributes of Flower's ``PrivacySpent``."""

    epsilon: float
    delta: float
    num_releases: int
    accounting_method: str
    optimal_order: float | None = None


class FlowerAccountant:
    """An accountant for Flower's differential-privacy wrappers.

    Args:
        config: Flower's ``PrivacyConfig`` or anything with its attributes.

    Raises:
        InvalidParameter: for an unknown relation or sampling method, or a pair of them for which
            no cost is proved.
    """

    def __init__(self, config: FlowerConfig) -> None:
        self._config = config
        relation, method = _text(config.neighboring_relation), _text(config.sampling_method)
        if relation not in _ADJACENCY:
            raise InvalidParameter(
                f"neighboring_relation must be one of {sorted(_ADJACENCY)}, found {relation!r}"
            )
        known = {
            ("poisson", "add-or-remove-one"),
            ("without-replacement", "replace-one"),
            ("no-amplification", "add-or-remove-one"),
            ("no-amplification", "replace-one"),
        }
        if (method, relation) not in known:
            raise InvalidParameter(f"no cost is proved for {method!r} under {relation!r}")
        checked_delta(config.target_delta)
        self._method = method
        self._accountant = RDPAccountant(adjacency=_ADJACENCY[relation])
        self._releases: list[tuple[tuple[float, int], int]] = []

    @property
    def config(self) -> FlowerConfig:
        """The configuration."""
        return self._config

    @property
    def num_releases(self) -> int:
        """Releases composed so far."""
        return sum(count for _, count in self._releases)

    def compose(self, event: FlowerEvent, count: int = 1) -> None:
        """Adds ``count`` equal releases.

        Raises:
            InvalidEvent: for impossible values.
            InvalidParameter: for another population than the configuration's.
        """
        ours = Repeat(event=self._event(event), count=count)
        self._accountant.compose(ours)
        self._releases.append(((float(event.noise_multiplier), event.sample_size), ours.count))

    def get_epsilon(self, delta: float) -> float:
        """Epsilon so far at this delta."""
        return self._accountant.epsilon(delta).value

    def get_delta(self, epsilon: float) -> float:
        """Delta so far at this epsilon."""
        return self._accountant.delta(epsilon).delta

    def get_privacy_spent(self, delta: float | None = None) -> Spent:
        """Epsilon so far at this delta, or at the configuration's, with its order."""
        bound = self._accountant.epsilon(self._config.target_delta if delta is None else delta)
        return Spent(
            epsilon=bound.value,
            delta=bound.delta,
            num_releases=self.num_releases,
            accounting_method=BACKEND,
            optimal_order=bound.order,
        )

    def would_exceed(
        self, event: FlowerEvent, max_epsilon: float | None = None, count: int = 1
    ) -> bool:
        """Whether the epsilon would be above the limit with ``count`` more releases.

        Raises:
            InvalidParameter: without a limit here or in the configuration.
        """
        limit = self._config.max_epsilon if max_epsilon is None else max_epsilon
        if limit is None:
            raise InvalidParameter("max_epsilon must be given here or in the configuration")
        more = Repeat(event=self._event(event), count=count)
        found = self._accountant.epsilon_if([more], self._config.target_delta)
        return found.value > checked_epsilon(limit)

    def state_dict(self) -> dict[str, object]:
        """The state as JSON values; schema 1 of Flower's, backend ``securefl-rdp``."""
        return {
            "schema_version": _SCHEMA,
            "backend": BACKEND,
            "config": self._config_state(),
            "compositions": [
                {
                    "event": {
                        "noise_multiplier": z,
                        "sample_size": size,
                        "population_size": self._config.population_size,
                    },
                    "count": count,
                }
                for (z, size), count in self._releases
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state of this accountant or of Flower's own ``rdp``; costs are recomputed.

        Raises:
            InvalidParameter: for another schema, backend or configuration, a state that is damaged,
                or one with fewer releases than were already composed. Nothing changes then.
            InvalidEvent: for impossible values; nothing changes then.
        """
        if state.get("schema_version") != _SCHEMA or state.get("backend") not in (BACKEND, "rdp"):
            raise InvalidParameter(
                f"expected schema_version 1 and backend {BACKEND!r} or 'rdp', found "
                f"{state.get('schema_version')!r} and {state.get('backend')!r}"
            )
        if state.get("config") != self._config_state():
            raise InvalidParameter("the state is of another privacy configuration")
        restored = FlowerAccountant(self._config)
        try:
            for one in state["compositions"]:
                body = one["event"]
                event = _Read(**{key: body[key] for key in _EVENT_KEYS})
                restored.compose(event, one["count"])
        except (KeyError, TypeError) as error:
            raise InvalidParameter(f"a composition of the state is damaged: {error!r}") from None
        if restored.num_releases < self.num_releases:
            raise InvalidParameter(
                f"a state of {restored.num_releases} releases cannot replace "
                f"{self.num_releases} that were made"
            )
        self._accountant, self._releases = restored._accountant, restored._releases

    def _config_state(self) -> dict[str, object]:
        found = {key: getattr(self._config, key) for key in _CONFIG_KEYS}
        found["neighboring_relation"] = _text(found["neighboring_relation"])
        found["sampling_method"] = _text(found["sampling_method"])
        return found

    def _event(self, event: FlowerEvent) -> Event:
        if event.population_size != self._config.population_size:
            raise InvalidParameter(
                f"the event's population_size must be {self._config.population_size} as "
                f"configured, found {event.population_size}"
            )
        # Validates sizes under every sampling method.
        gaussian = Gaussian(noise_multiplier=event.noise_multiplier)
        cohort = FixedSize(
            population=event.population_size, cohort=event.sample_size, event=gaussian
        )
        if self._method == "without-replacement":
            return cohort
        if self._method == "poisson":
            return Poisson(sample_rate=cohort.cohort / cohort.population, event=gaussian)
        return gaussian


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    noise_multiplier: float
    sample_size: int
    population_size: int


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))
