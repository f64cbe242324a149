"""The configuration of a training run: TOML in, one frozen and validated object out.

A configuration describes a *sweep*: one data set, one partition and one model, run once per
(mode, target epsilon, seed). Unknown keys are refused with the nearest known one; every default
is written down here, so that ``RunConfig.to_json()`` is a complete record of what was run.
This module knows no torch and opens no data; it only says what shall happen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from securefl.config_loading import hint, parse_toml, validate_json
from securefl.config_noise import DistributedDPConfig, Section, UserLevelDPConfig
from securefl.config_rounds import (
    ClientMetricsConfig,
    ParticipationConfig,
    SimulationConfig,
    StopConfig,
)
from securefl.config_sections import (
    AggregationConfig,
    DataConfig,
    EncodingConfig,
    Fidelity,
    LocalDPConfig,
    Mode,
    ModelConfig,
    PartitionConfig,
    RunSpec,
    SweepConfig,
)
from securefl.config_training import ServerConfig, TrainingConfig
from securefl.errors import ConfigurationError

if TYPE_CHECKING:
    from securefl.protocols.lightsecagg.params import LightSecAggParams
    from securefl.protocols.paillier.params import PaillierParams
    from securefl.protocols.peersum.params import PeerSumParams
    from securefl.protocols.secagg.params import SecAggParams
    from securefl.round import ThreatModel

__all__ = [
    "AggregationConfig",
    "ClientMetricsConfig",
    "DataConfig",
    "DistributedDPConfig",
    "EncodingConfig",
    "Fidelity",
    "LocalDPConfig",
    "Mode",
    "ModelConfig",
    "ParticipationConfig",
    "PartitionConfig",
    "RunConfig",
    "RunSpec",
    "ServerConfig",
    "SimulationConfig",
    "StopConfig",
    "SweepConfig",
    "TrainingConfig",
    "UserLevelDPConfig",
    "load_config",
    "load_json",
    "load_preset",
    "preset_names",
]


class RunConfig(Section):
    """The whole configuration; see the sections for their keys."""

    schema_: Literal["securefl-train/1"] = Field(default="securefl-train/1", alias="schema")
    data: DataConfig
    partition: PartitionConfig = PartitionConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    local_dp: LocalDPConfig = LocalDPConfig()
    distributed_dp: DistributedDPConfig = DistributedDPConfig()
    user_level_dp: UserLevelDPConfig = UserLevelDPConfig()
    server: ServerConfig = ServerConfig()
    encoding: EncodingConfig = EncodingConfig()
    aggregation: AggregationConfig = AggregationConfig()
    participation: ParticipationConfig = ParticipationConfig()
    stop: StopConfig = StopConfig()
    client_metrics: ClientMetricsConfig = ClientMetricsConfig()
    simulation: SimulationConfig = SimulationConfig()
    sweep: SweepConfig = SweepConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        self.participation.check(self.partition.clients)
        self.simulation.check(self.partition.clients)
        self._check_without_privacy()
        self._check_workers()
        clients, dropped = self.cohort_size, self.simulation.dropped_per_round
        threshold = self.threshold
        wanted = self.aggregation
        if threshold > clients:
            cohort = "partition.clients" if clients == self.partition.clients else "a cohort"
            raise ValueError(f"aggregation.threshold is {threshold}, but {cohort} is {clients}")
        if clients - dropped < threshold:
            raise ValueError(
                f"simulation.dropped_per_round = {dropped} of {clients} clients leaves "
                f"{clients - dropped}, fewer than aggregation.threshold = {threshold}: "
                "every round would be lost"
            )
        if self.bits > self.most_bits:
            raise ValueError(
                f'encoding.bits is {self.bits}; aggregation.protocol = "{wanted.protocol}"'
                f"{', hybrid,' if wanted.experimental_hybrid else ''} carries sums of {clients} "
                f"vectors of at most {self.most_bits} bits"
            )
        self._check_shared_noise()
        try:
            self.sum_params()
        except ConfigurationError as error:
            raise ValueError(
                f'aggregation.protocol = "{wanted.protocol}", adversary = "{wanted.adversary}" '
                f"with {clients} clients and threshold {threshold}: {error}"
            ) from None
        return self

    def _check_workers(self) -> None:
        scaffold = self.training.algorithm == "scaffold" and Mode.NONE in self.sweep.modes
        if self.simulation.workers > 1 and scaffold:
            raise ValueError(
                f"simulation.workers = {self.simulation.workers}: SCAFFOLD's clients remember "
                "something from round to round, which worker processes do not keep; use 1"
            )

    def _check_without_privacy(self) -> None:
        """What reads private records without paying for it has no place beside private modes."""
        private = [mode.value for mode in self.sweep.modes if mode.private]
        shared = [mode.value for mode in self.sweep.modes if mode.shares_noise]
        if private and self.data.standardise == "federated":
            raise ValueError(
                f'data.standardise = "federated" reads all records without noise; modes {private} '
                "would claim an epsilon that it breaks; use public bounds, or standardise before "
                "with securefl.simulation.statistics and a privacy budget of its own"
            )
        if private and self.client_metrics.every is not None:
            raise ValueError(
                f"client_metrics reads private records without noise; modes {private} would claim "
                "an epsilon that it breaks"
            )
        if private and self.simulation.local_steps:
            raise ValueError(f"simulation.local_steps is for mode none, found modes {private}")
        if shared and self.participation.rule != "all":
            raise ValueError(
                f'participation.rule = "{self.participation.rule}" is for modes none and local-dp; '
                f"{shared} have their own sampling in their own sections"
            )
        if self.client_metrics.fine_tune_steps and self.client_metrics.every is None:
            raise ValueError("client_metrics.fine_tune_steps needs client_metrics.every")

    @property
    def cohort_size(self) -> int:
        """Clients that a round's sum is planned for; with Poisson cohorts the most there can be."""
        return self.participation.cohort_size(self.partition.clients)

    def for_cohort(self, size: int) -> RunConfig:
        """The same configuration for sums of exactly ``size`` clients: thresholds, degree, A."""
        fixed = ParticipationConfig.model_construct(rule="fixed", size=size)
        return self.model_copy(update={"participation": fixed})

    def _check_shared_noise(self) -> None:
        """What the modes of the sweep and the sections of their noise must agree on."""
        deltas = {mode.value: self._delta_of(mode) for mode in self.sweep.modes if mode.private}
        if len(set(deltas.values())) > 1:
            raise ValueError(f"one table of results has one delta, found {deltas}")
        shared = [mode for mode in self.sweep.modes if mode.shares_noise]
        others = [mode.value for mode in self.sweep.modes if not mode.shares_noise]
        if self.aggregation.fidelity is Fidelity.AGGREGATE:
            if others:
                raise ValueError(
                    'aggregation.fidelity = "aggregate" draws the noise of a whole sum at once; '
                    f'modes {others} add none or each its own: use "encoded"'
                )
            for mode in shared:
                if self.noise_shares(mode).mechanism != "skellam":
                    raise ValueError(
                        'aggregation.fidelity = "aggregate" needs mechanism = "skellam": a sum of '
                        "discrete Gaussian shares is no discrete Gaussian"
                    )
        for mode in shared:
            try:
                self.summed(mode)
            except ConfigurationError as error:
                raise ValueError(str(error)) from None
            if self.cohort(mode) not in (None, self.partition.clients):
                continue  # checked with the cohort's own numbers
            left = self.partition.clients - self.noise_shares(mode).planned_dropouts
            if left < self.threshold:
                raise ValueError(
                    f"{mode.value}: planned_dropouts = "
                    f"{self.noise_shares(mode).planned_dropouts} of {self.partition.clients} "
                    f"clients leaves {left}, fewer than the threshold {self.threshold}"
                )

    def cohort(self, mode: Mode) -> int | None:
        """Clients that the server draws for each round of this mode; None if all take part."""
        return self.user_level_dp.cohort if mode is Mode.USER_LEVEL_DP else None

    def summed(self, mode: Mode) -> RunConfig:
        """This configuration as a round of ``mode`` sees it: with the clients of one sum.

        Raises:
            ConfigurationError: if no safe sum of that many clients exists.
        """
        size = self.cohort(mode)
        if size is None or size == self.partition.clients:
            return self
        if size > self.partition.clients:
            raise ConfigurationError(
                f"user_level_dp.cohort is {size}, but partition.clients is {self.partition.clients}"
            )
        tree = json.loads(self.to_json())
        tree["partition"]["clients"] = size
        return validate_json(RunConfig, json.dumps(tree), f"a cohort of {size} clients")

    def noise_shares(self, mode: Mode) -> DistributedDPConfig | UserLevelDPConfig:
        """The section of a mode whose noise is shared.

        Raises:
            ConfigurationError: for another mode.
        """
        if not mode.shares_noise:
            raise ConfigurationError(f"mode {mode.value} shares no noise")
        return self.distributed_dp if mode is Mode.DISTRIBUTED_DP else self.user_level_dp

    @property
    def delta(self) -> float:
        """Delta of every epsilon of the sweep."""
        return next((self._delta_of(mode) for mode in self.sweep.modes if mode.private), 1e-5)

    def _delta_of(self, mode: Mode) -> float:
        return self.local_dp.delta if mode is Mode.LOCAL_DP else self.noise_shares(mode).delta

    def activation(self, mode: Mode) -> Literal["relu", "tanh"]:
        """Of the model's hidden layers, in runs of this mode."""
        if mode is Mode.NONE:
            return self.model.activation
        return (self.local_dp if mode is Mode.LOCAL_DP else self.noise_shares(mode)).activation

    def rounds(self, mode: Mode) -> int:
        """Rounds that are planned for a run of this mode."""
        return self.noise_shares(mode).steps if mode.shares_noise else self.training.rounds

    @property
    def assumed_corrupt(self) -> int:
        """A: one client in twenty, at least one, is assumed to help the server."""
        return -(-self.cohort_size // 20)

    @property
    def threshold(self) -> int:
        """Fewest clients alive in every phase: the configured one, or floor(2n/3)+1.

        Without a configured one it is higher where ``secagg`` against an active server needs more.
        """
        if self.aggregation.threshold is not None:
            return self.aggregation.threshold
        clients = self.cohort_size
        usual = 2 * clients // 3 + 1
        if self.aggregation.adversary == "active" and self.aggregation.protocol == "secagg":
            from securefl.protocols.secagg.choice import least_alive  # noqa: PLC0415  # see below

            return max(usual, least_alive(clients, self.assumed_corrupt))
        return usual

    @property
    def bits(self) -> int:
        """Bits of the encoded integers: the configured ones, or 32, or what the protocol carries.

        Equal bits are equal quantisation, whatever the ring: one seed then gives one model in
        every protocol, up to the 31 bits that all of them but the hybrid mode carry.
        """
        wanted = self.encoding.bits
        return min(32, self.most_bits) if wanted is None else wanted

    @property
    def most_bits(self) -> int:
        """The most bits of one entry that sums of all clients have room for in this protocol."""
        # Loaded late, here and below: naming the presets must not load ciphers.
        if self.aggregation.protocol in ("lightsecagg", "peersum"):
            from securefl.protocols.lightsecagg.params import FIELD_BITS  # noqa: PLC0415  # see above

            return FIELD_BITS  # sums that fit modulo 2^31 fit modulo 2^31 - 1: their span is odd
        if self.aggregation.encrypted:
            from securefl.protocols.paillier.params import most_input_bits  # noqa: PLC0415  # see above

            return most_input_bits(self.cohort_size, hybrid=self.aggregation.experimental_hybrid)
        return 64

    def sum_params(self) -> SecAggParams | LightSecAggParams | PaillierParams | PeerSumParams:
        """Thresholds, colluders, graph and what follows, for every round of every run.

        Raises:
            ConfigurationError: if no safe parameters exist for these numbers.
        """
        from securefl.round import Adversary, ThreatModel  # noqa: PLC0415  # numpy: load late

        clients, wanted = self.cohort_size, self.aggregation
        if wanted.encrypted:
            from securefl.protocols.paillier.params import PaillierParams  # noqa: PLC0415  # ciphers: load late

            return PaillierParams.of(
                clients,
                corrupt=self.assumed_corrupt,
                dropped=clients - self.threshold,
                b=self.bits,
                hybrid=wanted.experimental_hybrid,
            )
        if wanted.protocol == "peersum":
            from securefl.protocols.peersum.params import PeerSumParams  # noqa: PLC0415  # as above

            return PeerSumParams.of(
                clients, corrupt=self.assumed_corrupt, dropped=clients - self.threshold
            )
        threat = ThreatModel(
            adversary=Adversary.ACTIVE if wanted.adversary == "active" else Adversary.SEMI_HONEST,
            corrupt=self.assumed_corrupt,
            dropped=clients - self.threshold,
        )
        return self._masked(threat)

    def _masked(self, threat: ThreatModel) -> SecAggParams | LightSecAggParams:
        """The protocols in which the clients themselves open the sum."""
        clients, wanted = self.cohort_size, self.aggregation
        if wanted.protocol == "lightsecagg":
            from securefl.protocols.lightsecagg.params import (  # noqa: PLC0415  # ciphers: load late
                LightSecAggParams,
                most_colluders,
            )

            T = most_colluders(clients, self.threshold, threat.adversary)
            return LightSecAggParams.of(clients, threat, T=max(T, threat.corrupt))
        from securefl.protocols.secagg.choice import strongest  # noqa: PLC0415  # as above

        return strongest(clients, threat, sparse=wanted.protocol == "secagg+", degree=wanted.degree)

    def runs(self) -> tuple[RunSpec, ...]:
        """Every run of the sweep, in the order in which it is carried out."""
        return tuple(
            RunSpec(mode=mode, target_epsilon=epsilon, seed=seed)
            for mode in self.sweep.modes
            for epsilon in (self.sweep.epsilons if mode.private else (None,))
            for seed in self.sweep.seeds
        )

    def to_json(self) -> str:
        """The complete configuration, defaults included, as canonical JSON."""
        return json.dumps(
            self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":")
        )

    def digest(self) -> str:
        """SHA-256 (hex) of :meth:`to_json` without the number of workers, which changes no run."""
        tree = self.model_dump(mode="json", by_alias=True)
        del tree["simulation"]["workers"]
        text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def load_config(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a TOML file.

    Args:
        path: the file.
        overrides: ``section.key=value`` strings, value in TOML syntax (bare words are strings).

    Raises:
        ConfigurationError: unreadable file, bad syntax, unknown key, or a value out of range;
            the message names the file and the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the configuration {path}: {error}") from error
    return parse_toml(RunConfig, text, str(path), overrides)


def load_json(path: Path) -> RunConfig:
    """Reads a complete configuration as :meth:`RunConfig.to_json` wrote it.

    Raises:
        ConfigurationError: as :func:`load_config`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration {path}: {error}") from error
    return validate_json(RunConfig, content, str(path))


def load_preset(name: str, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads one of the configurations that come with the library (see :func:`preset_names`)."""
    known = preset_names()
    if name not in known:
        raise ConfigurationError(f"unknown preset {name!r}{hint(name, known)}")
    text = (resources.files("securefl") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return parse_toml(RunConfig, text, f"preset {name}", overrides)


def preset_names() -> tuple[str, ...]:
    """Names of the presets, sorted."""
    folder = resources.files("securefl") / "presets"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))
