"""The configuration of a training run: TOML in, one frozen and validated object out.

A configuration describes a *sweep*: one data set, one partition and one model, run once per
(mode, target epsilon, seed). Unknown keys are refused with the nearest known one; every default
is written down here, so that ``RunConfig.to_json()`` is a complete record of what was run.
This module knows no torch and opens no data; it only says what shall happen.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from securefl.config_noise import (
    DistributedDPConfig,
    LearningRate,
    Momentum,
    PositiveFloat,
    PositiveInt,
    Section,
    SeedInt,
    UserLevelDPConfig,
)
from securefl.config_rounds import (
    ClientMetricsConfig,
    ParticipationConfig,
    SimulationConfig,
    StopConfig,
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


class Mode(StrEnum):
    """What protects the released model of a run."""

    NONE = "none"
    """No differential privacy: single updates are hidden, the sum and the model are not."""
    LOCAL_DP = "local-dp"
    """Record-level DP-SGD on every client: each update is private by itself, from everyone."""
    DISTRIBUTED_DP = "distributed-dp"
    """Record-level DP-SGD by all clients together: the noise is the sum of their shares."""
    USER_LEVEL_DP = "user-level-dp"
    """DP-FedAvg: a client's whole data, with the noise as the sum of all clients' shares."""

    @property
    def private(self) -> bool:
        """Whether its runs have a target epsilon and ledgers."""
        return self is not Mode.NONE

    @property
    def shares_noise(self) -> bool:
        """Whether the noise of its guarantee is the sum of shares, and one ledger counts."""
        return self in (Mode.DISTRIBUTED_DP, Mode.USER_LEVEL_DP)


class Fidelity(StrEnum):
    """How much of the real system a simulated sum goes through."""

    PROTOCOL = "protocol"
    """The real machines over real wire bytes."""
    ENCODED = "encoded"
    """The real codec, then a plain modular sum of the same integers: same bits, no protocol."""
    AGGREGATE = "aggregate"
    """As ``encoded``, but with one draw of the summed noise in place of one share per client: the
    same distribution, for sweeps. Modes with noise shares only."""
    FLOAT = "float"
    """A floating-point sum of the raw updates: the baseline that shows what encoding costs."""


class DataConfig(Section):
    """``[data]``: which records, and how many are held out for the test set."""

    name: Literal["digits", "breast-cancer", "mnist", "heart-disease", "leaf"]
    path: str | None = None
    """For ``leaf``: the data set's folder, below the data folder."""
    shape: tuple[PositiveInt, ...] | None = None
    """For ``leaf``: shape of one record, if it is stored flat."""
    classes: Annotated[int, Field(ge=2)] | None = None
    """For ``leaf``: number of labels; default the largest label and one more."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of records held out; ignored by data sets that come with a test set (mnist)."""
    split_seed: SeedInt | None = None
    """Seed of the train/test split; default: the run's own seed, so that the mean over seeds is
    also one over splits (a single small test set can be two points too easy or too hard)."""
    standardise: Literal["public", "federated"] = "public"
    """``public``: features are scaled by public bounds only. ``federated``: then also by their mean
    and variance over all clients' training records, from one secure sum without noise; mode
    ``none`` only, and data sets with named features."""

    @model_validator(mode="after")
    def _leaf_alone_has_a_path(self) -> DataConfig:
        given = [key for key in ("path", "shape", "classes") if getattr(self, key) is not None]
        if self.name != "leaf" and given:
            raise ValueError(f'{", ".join(given)}: for name = "leaf" only, found "{self.name}"')
        if self.name == "leaf" and self.path is None:
            raise ValueError('name = "leaf" needs path, a folder below the data folder')
        return self

    @property
    def label(self) -> str:
        """The data set's name, for records and reports."""
        return self.name if self.path is None else f"{self.name}:{self.path}"


class PartitionConfig(Section):
    """``[partition]``: which client holds which records."""

    kind: Literal["iid", "dirichlet", "shards", "quantity", "natural"] = "iid"
    clients: Annotated[int, Field(ge=3)] = 10
    alpha: PositiveFloat = 0.5
    """Concentration of ``dirichlet`` (labels) and ``quantity`` (sizes): smaller is more skewed."""
    shards_per_client: PositiveInt = 2
    """For ``shards``: label-sorted shards given to each client."""
    minimum: PositiveInt = 1
    """Fewest records a client may hold."""


class ModelConfig(Section):
    """``[model]``: the network that is trained."""

    name: Literal["softmax", "mlp", "cnn26k", "cnn1m6", "scattering_linear"] = "softmax"
    activation: Literal["relu", "tanh"] = "relu"


class LocalDPConfig(Section):
    """``[local_dp]``: record-level DP-SGD on every client. Weights are always equal here.

    The noise multiplier is calibrated from the target epsilon of the run, ``delta``,
    ``sample_rate`` and ``rounds * steps_per_round``.
    """

    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Chance of each record to be in a step's batch; public, the same for every client."""
    steps_per_round: PositiveInt = 8
    clip_norm: PositiveFloat = 1.0
    """Bound on one record's gradient (L2)."""
    learning_rate: LearningRate = 0.5
    momentum: Momentum = 0.0
    activation: Literal["relu", "tanh"] = "tanh"


class EncodingConfig(Section):
    """``[encoding]``: from floats to integers of ``bits`` bits.

    ``bits`` says how fine the integers are: as many steps as sums modulo 2^bits have room for.
    """

    clip_norm: PositiveFloat = 10.0
    """Bound on one client's update (L2). A bound of the encoding, not a privacy guarantee."""
    bits: Annotated[int, Field(ge=2, le=64)] | None = None
    """Default 32, or the most that the protocol carries if that is less: see
    :attr:`RunConfig.bits`."""
    max_weight: PositiveInt | None = None
    """Largest weight a client may bring (public); default: the number of training records."""
    rounding: Literal["nearest", "stochastic"] = "nearest"


class AggregationConfig(Section):
    """``[aggregation]``: the secure sum."""

    protocol: Literal[
        "secagg", "secagg+", "lightsecagg", "paillier", "paillier-threshold", "peersum"
    ] = "secagg"
    """``secagg``: every client shares masks with every other; ``secagg+``: with ``degree`` others
    on a random ring; ``lightsecagg``: coded shares of one mask per client; ``paillier``: encrypted
    for a key holder with a witness; ``paillier-threshold``: for share holders, 4 of 5 open;
    ``peersum``: no server, every peer shares its vector with every other."""
    adversary: Literal["semi-honest", "active"] = "semi-honest"
    """``active``: the server may also lie, to each client in another way. With Paillier it always
    may, and in peersum the peers always may, whatever stands here."""
    threshold: Annotated[int, Field(ge=3)] | None = None
    """Fewest clients alive in every phase; default floor(2n/3)+1, or what the adversary needs."""
    degree: Annotated[int, Field(ge=2)] | None = None
    """Neighbours per client, even, ``secagg+`` only; default the smallest that is safe."""
    experimental_active_graph: bool = False
    """Needed for ``secagg+`` against an active server, for which there is no published proof."""
    experimental_hybrid: bool = False
    """Paillier only: encrypt short secrets of ring-LWE masks in place of the vectors. The lattice
    parameters have been neither estimated nor reviewed."""
    opening_threads: Annotated[int, Field(ge=1, le=256)] | None = None
    """Paillier only: threads in which every holder opens; default one per processor. The sums are
    the same."""
    fidelity: Fidelity = Fidelity.PROTOCOL

    @property
    def encrypted(self) -> bool:
        """Whether sums are opened by holders of a Paillier key."""
        return self.protocol in ("paillier", "paillier-threshold")

    @model_validator(mode="after")
    def _by_name(self) -> AggregationConfig:
        if self.experimental_hybrid and not self.encrypted:
            raise ValueError(
                'experimental_hybrid = true belongs to protocols "paillier" and '
                f'"paillier-threshold", found "{self.protocol}"'
            )
        if self.opening_threads is not None and not self.encrypted:
            raise ValueError(
                f'opening_threads = {self.opening_threads} belongs to protocols "paillier" and '
                f'"paillier-threshold", found "{self.protocol}"'
            )
        unjoined = self.encrypted or self.protocol in ("lightsecagg", "peersum")
        if self.degree is not None and unjoined:
            raise ValueError(
                f'degree = {self.degree} belongs to protocol "secagg+"; "{self.protocol}" has no '
                "neighbour graph"
            )
        active_ring = self.protocol == "secagg+" and self.adversary == "active"
        if active_ring and not self.experimental_active_graph:
            raise ValueError(
                'protocol "secagg+" with adversary "active" has no published proof: '
                "set experimental_active_graph = true to run it all the same"
            )
        return self


class SweepConfig(Section):
    """``[sweep]``: one run per mode, target epsilon (private modes only) and seed."""

    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = (Mode.NONE,)
    epsilons: tuple[PositiveFloat, ...] = ()
    seeds: Annotated[tuple[SeedInt, ...], Field(min_length=1)] = (0,)

    @model_validator(mode="after")
    def _distinct(self) -> SweepConfig:
        for name, values in (
            ("modes", self.modes),
            ("epsilons", self.epsilons),
            ("seeds", self.seeds),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} has a value twice: {list(values)}")
        private = [mode.value for mode in self.modes if mode.private]
        if private and not self.epsilons:
            raise ValueError(f"mode {private[0]} needs at least one target in epsilons")
        return self


class RunSpec(Section):
    """One run of a sweep: a deployment of its own, with ledgers of its own."""

    mode: Mode
    target_epsilon: float | None
    seed: int

    @property
    def name(self) -> str:
        """The folder of the run: ``<mode>-<epsilon>-s<seed>``."""
        target = self.target_epsilon
        # Every digit: two targets never share a folder, and with it their ledgers.
        epsilon = "inf" if target is None else repr(target).removesuffix(".0")
        return f"{self.mode.value}-{epsilon}-s{self.seed}"


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
        try:
            return RunConfig.model_validate_json(json.dumps(tree))
        except ValidationError as error:
            raise ConfigurationError(_explain(error, f"a cohort of {size} clients")) from error

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
            from securefl.protocols.lightsecagg.params import FIELD_BITS  # noqa: PLC0415

            return FIELD_BITS  # sums that fit modulo 2^31 fit modulo 2^31 - 1: their span is odd
        if self.aggregation.encrypted:
            from securefl.protocols.paillier.params import most_input_bits  # noqa: PLC0415

            return most_input_bits(self.cohort_size, hybrid=self.aggregation.experimental_hybrid)
        return 64

    def sum_params(self) -> SecAggParams | LightSecAggParams | PaillierParams | PeerSumParams:
        """Thresholds, colluders, graph and what follows, for every round of every run.

        Raises:
            ConfigurationError: if no safe parameters exist for these numbers.
        """
        from securefl.round import Adversary, ThreatModel  # noqa: PLC0415

        clients, wanted = self.cohort_size, self.aggregation
        if wanted.encrypted:
            from securefl.protocols.paillier.params import PaillierParams  # noqa: PLC0415

            return PaillierParams.of(
                clients,
                corrupt=self.assumed_corrupt,
                dropped=clients - self.threshold,
                b=self.bits,
                hybrid=wanted.experimental_hybrid,
            )
        if wanted.protocol == "peersum":
            from securefl.protocols.peersum.params import PeerSumParams  # noqa: PLC0415

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
            from securefl.protocols.lightsecagg.params import (  # noqa: PLC0415
                LightSecAggParams,
                most_colluders,
            )

            T = most_colluders(clients, self.threshold, threat.adversary)
            return LightSecAggParams.of(clients, threat, T=max(T, threat.corrupt))
        from securefl.protocols.secagg.choice import strongest  # noqa: PLC0415

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
    return _parse(text, str(path), overrides)


def load_json(path: Path) -> RunConfig:
    """Reads a complete configuration as :meth:`RunConfig.to_json` wrote it.

    Raises:
        ConfigurationError: as :func:`load_config`.
    """
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration {path}: {error}") from error
    except ValidationError as error:
        raise ConfigurationError(_explain(error, str(path))) from error


def load_preset(name: str, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads one of the configurations that come with the library (see :func:`preset_names`)."""
    known = preset_names()
    if name not in known:
        raise ConfigurationError(f"unknown preset {name!r}{_hint(name, known)}")
    text = (resources.files("securefl") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return _parse(text, f"preset {name}", overrides)


def preset_names() -> tuple[str, ...]:
    """Names of the presets, sorted."""
    folder = resources.files("securefl") / "presets"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


def _parse(text: str, source: str, overrides: Iterable[str]) -> RunConfig:
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source}: not valid TOML: {error}") from error
    for override in overrides:
        _override(tree, override)
    try:
        # JSON mode: strict about numbers and strings, yet arrays become tuples, strings enums.
        return RunConfig.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise ConfigurationError(_explain(error, source)) from error


def _override(tree: dict[str, Any], override: str) -> None:
    key, found, value = override.partition("=")
    parts = key.strip().split(".")
    if not found or not all(parts):
        raise ConfigurationError(
            f"--set {override!r}: expected section.key=value, e.g. partition.kind=dirichlet"
        )
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigurationError(f"--set {override!r}: {part} is a value, not a section")
        node = child
    node[parts[-1]] = parsed


def _explain(error: ValidationError, source: str) -> str:
    lines = []
    for problem in error.errors():
        location = ".".join(str(part) for part in problem["loc"]) or "the configuration"
        if problem["type"] == "extra_forbidden":
            *path, key = (str(part) for part in problem["loc"])
            lines.append(f"{location}: unknown key{_hint(key, _known_keys(path))}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            found = "" if isinstance(problem["input"], dict | BaseModel) else _found(problem)
            lines.append(f"{location}: {message}{found}")
    return "\n".join([f"{source}: {len(lines)} problem(s)", *(f"  {line}" for line in lines)])


def _found(problem: Mapping[str, Any]) -> str:
    return "" if problem["type"] == "missing" else f", found {problem['input']!r}"


def _known_keys(path: list[str]) -> tuple[str, ...]:
    model: type[BaseModel] = RunConfig
    for part in path:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ()
        model = annotation
    return tuple(field.alias or name for name, field in model.model_fields.items())


def _hint(word: str, known: Iterable[str]) -> str:
    options = tuple(known)
    near = difflib.get_close_matches(word, options, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(options)}" if options else ""
