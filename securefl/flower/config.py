"""What a ServerApp says about its secure rounds: :class:`SecAggConfig`.

Two numbers nobody can guess for you: how long an update may be, and how many examples a client may
have. The rest has defaults on the safe side: SecAgg, a server that may lie, one client in twenty
corrupt. Numbers that depend on the cohort are worked out per round, when the strategy has chosen
it. Whatever is written here, each node holds it against its own file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from securefl.errors import ConfigurationError
from securefl.flower.beacon import Beacon
from securefl.flower.paillier_setup import PaillierSetup
from securefl.flower.plan import MetricRange, TrainIn, Weighting, run_config_digest
from securefl.flower.policy import SumProtocol
from securefl.flower.sums import PaillierNumbers
from securefl.primitives.identities import Roster
from securefl.protocols.secagg.choice import strongest
from securefl.protocols.secagg.params import SecAggParams
from securefl.round import Adversary, ThreatModel, ceil_rate

__all__ = ["DistributedDP", "OnAbort", "SecAggConfig", "Timing"]

_PREFIX = "securefl-"
_LEAST_BITS = 32
_STEPS = 1 << 16


class OnAbort(StrEnum):
    """What a lost round does to the run: end it with an error, or leave the model as it was."""

    RAISE = "raise"
    SKIP = "skip"


class TrainChoice(StrEnum):
    """When clients train: see :class:`~securefl.flower.plan.TrainIn`; AUTO goes by the size."""

    AUTO = "auto"
    FIRST = "first"
    MASKED = "masked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long a phase may take, in seconds.

    Attributes:
        deadline: of a phase without training.
        train_deadline: of the phase with it.
        grace: how much longer to wait once a quorum has answered and the phase could close.
        poll: between two looks for replies.
        beacon_lead: how far ahead a beacon's round is chosen: nodes that read the configuration
            later than that refuse.
    """

    deadline: float = 90.0
    train_deadline: float = 600.0
    grace: float = 15.0
    poll: float = 0.25
    beacon_lead: float = 60.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, bool) or not math.isfinite(value) or value < 0:
                raise ConfigurationError(f"{one.name} must be seconds, at least 0, found {value}")
        if not self.deadline or not self.train_deadline:
            raise ConfigurationError("a deadline of 0 seconds ends every phase unanswered")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedDP:
    """Differential privacy for one client's updates, by shares of noise under the secure sum.

    Attributes:
        noise_multiplier: z: standard deviation of the noise in the worst sum that may be opened
            (``n_min`` survivors, of whom the corrupt ones' shares count for nothing) over the
            sensitivity of the integers.
        epsilon, delta: the budget of the population, for the life of the ledger.
        ledger: its file; made at the first use, never to be deleted.
        population: whose data, in words.

    Raises:
        ConfigurationError: for numbers out of their range.
    """

    noise_multiplier: float
    epsilon: float
    delta: float
    ledger: Path | str
    population: str = "flower"

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "epsilon", "delta"):
            value = getattr(self, name)
            if isinstance(value, bool) or not math.isfinite(value) or value <= 0:
                raise ConfigurationError(f"{name} must be positive and finite, found {value!r}")
        if self.delta >= 1:
            raise ConfigurationError(f"delta must be below 1, found {self.delta}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecAggConfig:
    """How rounds are summed.

    Attributes:
        clip_norm: C, the largest Euclidean norm of one client's update; longer ones are scaled down
            on the client. Clipping alone is not privacy.
        max_weight: largest weight of a client, its largest number of examples; needed where clients
            count by examples. A client above it refuses.
        protocol: SecAgg; SecAgg+ for large cohorts; or encryption under a Paillier key that a key
            holder ("paillier") or holders of shares ("paillier-threshold") open, each a SuperNode
            of its own.
        experimental_active_graph: SecAgg+ against a server that may lie: no published proof covers
            it. Needs a beacon, and the same words in every node's floor.
        beacon: for that, the file ``beacon.toml`` (:mod:`securefl.flower.beacon`) or what it says.
        paillier: for these two: the file with key and deciders, the same at every node
            (:mod:`securefl.flower.paillier_setup`). No secret belongs on this machine.
        adversary: what the server may do: "active", the default, or "semi-honest".
        max_corrupt: A, the most clients that help the server; default ⌈n/20⌉. 0 is refused.
        max_dropped: D, the most clients that may be lost on the way; default ⌈n/10⌉.
        n_min: fewest clients in an opened sum; default n - D.
        degree: neighbours in SecAgg+; default the fewest that are safe.
        roster: the file that lists everybody, or the roster itself; needed against an active
            server.
        weighting: by "num-examples" or "uniform".
        metrics: name to (low, high): which metrics are averaged with the model, and their ranges.
            All others stay on the nodes.
        privacy: differential privacy by shares of noise; needs weighting="uniform" and no metrics,
            and a clip_norm that is meant. None: the opened mean is not private.
        bits: b of the ring; default at least 32, and enough for 2^16 steps per clip norm.
        train_in: in which phase clients train.
        timing: deadlines and grace.
        quorum: replies that start the grace period; default n - D.
        on_abort: what a lost round does.
        retries: fresh attempts of a lost round; clients train again, nothing is reused.
        run_config: the ServerApp's ``context.run_config``. A node whose own is another one
            refuses, so that no node trains under other settings than its neighbours. None stands
            for an app without any.

    Raises:
        ConfigurationError: with the numbers.
    """

    clip_norm: float
    max_weight: int | None = None
    protocol: SumProtocol = SumProtocol.SECAGG
    experimental_active_graph: bool = False
    beacon: Beacon | Path | str | None = None
    paillier: PaillierSetup | Path | str | None = None
    adversary: str = "active"
    max_corrupt: int | None = None
    max_dropped: int | None = None
    n_min: int | None = None
    degree: int | None = None
    roster: Roster | Path | str | None = None
    weighting: Weighting = Weighting.NUM_EXAMPLES
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    privacy: DistributedDP | None = None
    bits: int | None = None
    train_in: TrainChoice = TrainChoice.AUTO
    timing: Timing = field(default_factory=Timing)
    quorum: int | None = None
    on_abort: OnAbort = OnAbort.RAISE
    retries: int = 0
    run_config: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, kind in (
            ("protocol", SumProtocol),
            ("weighting", Weighting),
            ("train_in", TrainChoice),
            ("on_abort", OnAbort),
        ):
            object.__setattr__(self, name, _choice(name, kind, getattr(self, name)))
        if not math.isfinite(self.clip_norm) or self.clip_norm <= 0:
            raise ConfigurationError(
                f"clip_norm must be positive and finite, found {self.clip_norm}"
            )
        if self.adversary not in ("active", "semi-honest"):
            raise ConfigurationError(
                f'adversary must be "active" or "semi-honest", found {self.adversary!r}'
            )
        self._check_beacon()
        if self.active and self.roster is None:
            raise ConfigurationError(
                "against an active server the ServerApp needs the roster of identities, too: give "
                'roster="roster.json" (securefl roster build), or adversary="semi-honest"'
            )
        counted = self.weighting is Weighting.NUM_EXAMPLES
        if counted and self.max_weight is None:
            raise ConfigurationError(
                "clients count by examples: give max_weight, the most examples that one client "
                'has, or weighting="uniform"'
            )
        if not counted and self.max_weight not in (None, 1):
            raise ConfigurationError(f"uniform weights have no max_weight, found {self.max_weight}")
        if self.privacy is not None and (counted or self.metrics):
            raise ConfigurationError(
                "under differential privacy clients count alike and report no metrics: give "
                'weighting="uniform" and no metrics; a weight or a metric would be one more release'
            )
        _at_least("max_weight", self.max_weight, 1)
        _at_least("max_corrupt", self.max_corrupt, 1)
        _at_least("max_dropped", self.max_dropped, 0)
        _at_least("n_min", self.n_min, 3)
        _at_least("quorum", self.quorum, 1)
        _at_least("retries", self.retries, 0)
        self.metric_ranges()
        run_config_digest(self.run_config or {})
        if isinstance(self.roster, str | Path):
            object.__setattr__(self, "roster", Roster.load(Path(self.roster)))
        self._check_setup()

    def _check_beacon(self) -> None:
        """Reads the beacon, where one shapes the graph."""
        needed = self.active and self.protocol is SumProtocol.SECAGG_PLUS
        if needed and not (self.experimental_active_graph and self.beacon is not None):
            raise ConfigurationError(
                "SecAgg+ against an active server has no published proof, and a public beacon must "
                'shape its graph: use protocol="secagg" or adversary="semi-honest", or give both '
                'experimental_active_graph=True and beacon="beacon.toml"'
            )
        if not needed and (self.experimental_active_graph or self.beacon is not None):
            raise ConfigurationError(
                "beacon and experimental_active_graph belong to SecAgg+ against an active server; "
                f"found protocol {self.protocol.value!r} and adversary {self.adversary!r}"
            )
        if isinstance(self.beacon, str | Path):
            object.__setattr__(self, "beacon", Beacon.load(Path(self.beacon)))

    def _check_setup(self) -> None:
        """Reads key and deciders, where the protocol has them."""
        if not self.protocol.encrypts:
            if self.paillier is not None:
                raise ConfigurationError(
                    f'paillier= names a key, and protocol="{self.protocol.value}" has none'
                )
            return
        if not self.active or self.paillier is None:
            raise ConfigurationError(
                f'protocol="{self.protocol.value}" needs paillier="paillier.toml", the file with '
                'key and deciders, and adversary="active": who must not see an update signs and '
                "proves, whatever the server is assumed to be"
            )
        if self.degree is not None or self.train_in is TrainChoice.FIRST:
            raise ConfigurationError(
                "under Paillier there are no neighbours, and clients train just before they "
                'encrypt: leave out degree and train_in="first"'
            )
        roster = self.known_roster
        assert roster is not None  # noqa: S101  # needed against an active server, see above
        if isinstance(self.paillier, str | Path):
            path = Path(self.paillier)
            found = PaillierSetup.load(path, roster)
            found.refuse_secrets_beside(path)
            object.__setattr__(self, "paillier", found)
        threshold = self.protocol is SumProtocol.PAILLIER_THRESHOLD
        setup = self.setup
        assert setup is not None  # noqa: S101  # read above
        if setup.threshold is not threshold:
            raise ConfigurationError(
                f'protocol="{self.protocol.value}" and the setup of '
                f"{'holders of shares' if setup.threshold else 'one key holder'} do not fit"
            )

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any], **changes: Any) -> Self:
        """From the keys ``securefl-<field>`` of a run's configuration.

        Flower's configurations are flat. Privacy is ``securefl-noise-multiplier``,
        ``securefl-epsilon``, ``securefl-delta`` and ``securefl-ledger``; the times are
        ``securefl-deadline``, ``securefl-train-deadline``, ``securefl-grace`` and
        ``securefl-poll``; metrics are a text: ``securefl-metrics = "loss 0 10, accuracy 0 1"``. An
        empty text stands for the default.

        Args:
            run_config: ``context.run_config``.
            changes: fields that replace what is read.

        Raises:
            ConfigurationError: for an unknown key, or what the constructor refuses.
        """
        times = {one.name: one.name for one in fields(Timing)}
        known = {one.name for one in fields(cls)} - {"timing", "privacy", "run_config"}
        private = {one.name: one.name for one in fields(DistributedDP)}
        found: dict[str, Any] = {"run_config": dict(run_config)}
        timing: dict[str, float] = {}
        privacy: dict[str, Any] = {}
        for key, value in run_config.items():
            if not key.startswith(_PREFIX):
                continue
            name = key.removeprefix(_PREFIX).replace("-", "_")
            if name not in known and name not in times and name not in private:
                raise ConfigurationError(f"unknown key {key!r} in the run's configuration")
            if value == "":
                continue
            if name in times:
                timing[name] = value
            elif name in private:
                privacy[name] = value
            else:
                found[name] = _metrics_of(value) if name == "metrics" else value
        if timing:
            found["timing"] = Timing(**timing)
        if privacy:
            missing = {"noise_multiplier", "epsilon", "delta", "ledger"} - set(privacy)
            if missing:
                raise ConfigurationError(
                    f"differential privacy needs {sorted(missing)} too, as keys securefl-<name>"
                )
            found["privacy"] = DistributedDP(**privacy)
        found |= changes
        if "clip_norm" not in found:
            raise ConfigurationError(
                "give securefl-clip-norm: the largest Euclidean norm that one client's update may "
                "have (local model minus global model)"
            )
        return cls(**found)

    @property
    def active(self) -> bool:
        """Whether the server may lie."""
        return self.adversary == "active"

    @property
    def known_roster(self) -> Roster | None:
        """The roster, read."""
        assert not isinstance(self.roster, str | Path)  # noqa: S101  # __post_init__ read it
        return self.roster

    @property
    def known_beacon(self) -> Beacon | None:
        """The beacon, read."""
        assert not isinstance(self.beacon, str | Path)  # noqa: S101  # __post_init__ read it
        return self.beacon

    @property
    def setup(self) -> PaillierSetup | None:
        """Key and deciders, read."""
        assert not isinstance(self.paillier, str | Path)  # noqa: S101  # __post_init__ read it
        return self.paillier

    def metric_ranges(self) -> tuple[MetricRange, ...]:
        """The declared metrics, by name."""
        try:
            return tuple(
                MetricRange(name=name, low=float(low), high=float(high))
                for name, (low, high) in sorted(self.metrics.items())
            )
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"metrics are name: (low, high); {error}") from None

    def least(self, sampled: int) -> int:
        """Fewest clients in an opened sum, when the strategy chose this many nodes."""
        return sampled - self._dropped(sampled) if self.n_min is None else self.n_min

    def _dropped(self, n: int) -> int:
        return ceil_rate("1/10", n) if self.max_dropped is None else self.max_dropped

    def params(self, *, sampled: int, cohort: int) -> SecAggParams | PaillierNumbers:
        """Graph and thresholds of one session, or what stands for them.

        Args:
            sampled: nodes that the strategy chose.
            cohort: those of them that are in the session; whoever is missing counts among the
                dropouts that are allowed.

        Raises:
            ConfigurationError: if nothing safe exists for these numbers; the message has them.
        """
        n_min = self.least(sampled)
        corrupt = ceil_rate("1/20", sampled) if self.max_corrupt is None else self.max_corrupt
        threat = ThreatModel(
            adversary=Adversary.ACTIVE if self.active else Adversary.SEMI_HONEST,
            corrupt=corrupt,
            dropped=max(0, min(self._dropped(sampled), cohort - n_min)),
        )
        if self.setup is not None:
            return PaillierNumbers(setup=self.setup, n=cohort, n_min=n_min, threat=threat)
        sparse = self.protocol is SumProtocol.SECAGG_PLUS
        chosen = strongest(cohort, threat, sparse=sparse, degree=self.degree)
        # A floor above n - D is the caller's wish; one below it would promise less than D does.
        return replace(chosen, n_min=max(n_min, chosen.n_min))

    def ring_bits(self, n: int) -> int:
        """Bits of the ring for sums of n clients."""
        if self.bits is not None:
            return self.bits
        needed = 2 * n * (self.max_weight or 1) * _STEPS + 1
        return max(_LEAST_BITS, min(64, (needed - 1).bit_length()))

    def phase_of_training(self, packed_words: int) -> TrainIn:
        """When to train, for a vector of this many bytes in a node's state."""
        if self.protocol.encrypts:
            return TrainIn.MASKED  # nothing has to be repaired when somebody is lost
        if self.train_in is TrainChoice.AUTO:
            return TrainIn.FIRST if packed_words <= 8 << 20 else TrainIn.MASKED
        return TrainIn(self.train_in.value)


def _choice(name: str, kind: type[StrEnum], value: object) -> StrEnum:
    try:
        return kind(str(value))
    except ValueError:
        known = ", ".join(repr(one.value) for one in kind)
        raise ConfigurationError(f"{name} must be one of {known}, found {value!r}") from None


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name} must be an int >= {least}, found {value!r}")


def _metrics_of(text: object) -> dict[str, tuple[float, float]]:
    found = {}
    for part in str(text).split(","):
        words = part.split()
        try:
            name, low, high = words
            found[name] = (float(low), float(high))
        except ValueError:
            raise ConfigurationError(
                f'securefl-metrics is a text like "loss 0 10, accuracy 0 1", found {part!r}'
            ) from None
    return found
