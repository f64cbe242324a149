"""What one session is about: everything that gives the integers in its vectors a meaning.

The server writes a plan, every node reads it, checks it against its own policy and hashes it
together with the model into the session's context. That digest enters every mask key, so nodes that
were told different things (another model, codec or training configuration; the attack of Pasquini
et al. 2022) produce noise together, not a sum.

A vector is the encoded update times the client's weight, the weight, and the metrics times the
weight:

    w * encode(update), w, w * level(metric_1), ..., w * level(metric_k)

with w = 1 and no weight entry where clients count alike, and no update in an evaluation. Under
differential privacy it is the encoded update with its share of noise, and nothing else. Nothing
about a single client is ever outside this vector. This module knows no keys and no Flower.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from securefl.encoding.codec import CodecSpec, UpdateCodec
from securefl.encoding.codec import Weighting as CodecWeighting
from securefl.encoding.contract import Codec
from securefl.encoding.fixed_point import Rounding
from securefl.encoding.noisy import Contribution, NoisyCodec, NoisySpec
from securefl.errors import ConfigurationError, PeerProtocolError
from securefl.modular import RingVector
from securefl.primitives.prg import SecureRandom
from securefl.round import AggregateSum

if TYPE_CHECKING:
    from accounting.events import Event

__all__ = [
    "Aggregate",
    "Kind",
    "MetricRange",
    "Plan",
    "TrainIn",
    "Weighting",
    "run_config_digest",
    "session_context",
]

_SCHEMA = "securefl-flower-plan/1"
_MOST_LEVELS = 1 << 24


class Kind(StrEnum):
    """Which of the app's functions a session runs."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class TrainIn(StrEnum):
    """In which phase clients train.

    ``FIRST``: before any key exists, so that slow or failed training leaves no masks to repair; the
    encoded update waits in the node's state. ``MASKED``: just before it is masked, for updates
    that are too large to wait there.
    """

    FIRST = "first"
    MASKED = "masked"


class Weighting(StrEnum):
    """How clients count: alike, or each by its number of examples."""

    UNIFORM = "uniform"
    NUM_EXAMPLES = "num-examples"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class MetricRange(_Strict):
    """A declared metric; what a client reports is clipped to its range."""

    name: str = Field(min_length=1)
    low: float
    high: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.low < self.high and math.isfinite(self.high - self.low)):
            raise ValueError(f"metric {self.name!r}: expected low < high, a finite distance apart")
        return self


class CodecTerms(_Strict):
    """The codec's numbers that the plan does not hold elsewhere."""

    dimension: int
    clip_norm: float
    resolution: float


class PrivacyTerms(_Strict):
    """How much noise a sum carries; see :class:`securefl.flower.privacy.DistributedDP`.

    Attributes:
        noise_multiplier: z.
        honest_shares: h, how many shares carry it.
    """

    noise_multiplier: float
    honest_shares: int


class Plan(_Strict):
    """See the module.

    Attributes:
        kind: training or evaluation.
        train_in: in which phase the app's function runs.
        clients: n, most vectors in one sum.
        bits: b of the ring Z_{2^b}.
        codec: of the update; None in an evaluation.
        weighting: how clients count.
        weight_key: name of the weight among the metrics that the app's function returns.
        max_weight: largest weight; 1 where clients count alike.
        metrics: which metrics are averaged, by name.
        levels: integer steps between low and high of a metric; 0 without metrics.
        privacy: noise under the sum; None without differential privacy.
        arrays_key, config_key: names of the app's records.
        run_config: digest of the run's configuration that the ServerApp has, hexadecimal.
        train_config: the app's configuration, each value with its type in front.

    Raises:
        ConfigurationError: by :meth:`build` and :meth:`parse`, if the numbers do not fit together.
    """

    kind: Kind = Field(strict=False)
    train_in: TrainIn = Field(strict=False)
    clients: int = Field(ge=3)
    bits: int = Field(ge=1, le=64)
    codec: CodecTerms | None
    weighting: Weighting = Field(strict=False)
    weight_key: str = Field(min_length=1)
    max_weight: int = Field(ge=1)
    metrics: tuple[MetricRange, ...] = Field(strict=False)
    levels: int = Field(ge=0, le=_MOST_LEVELS)
    privacy: PrivacyTerms | None
    arrays_key: str = Field(min_length=1)
    config_key: str = Field(min_length=1)
    train_config: dict[str, list[Any]]
    run_config: str = Field(default_factory=lambda: run_config_digest({}), pattern="^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.codec is None) is not (self.kind is Kind.EVALUATE):
            raise ValueError("training has a codec, evaluation has none")
        if self.kind is Kind.EVALUATE and not self.metrics:
            raise ValueError("an evaluation without declared metrics has no result")
        if self.weighting is Weighting.UNIFORM and self.max_weight != 1:
            raise ValueError(f"uniform weights mean max_weight = 1, found {self.max_weight}")
        if self.arrays_key == self.config_key:
            raise ValueError(f"model and configuration have one name, {self.arrays_key!r}")
        names = [metric.name for metric in self.metrics]
        if len({*names, self.weight_key}) != len(names) + 1:
            raise ValueError(f"metrics {names} are not distinct, or one is the weight")
        if bool(self.levels) is not bool(self.metrics):
            raise ValueError("levels belong to metrics")
        most = self.clients * self.max_weight * max(self.levels, 1)
        if most >= 1 << self.bits:
            raise ValueError(
                f"a sum could wrap: {self.clients} clients * weight {self.max_weight} * "
                f"{self.levels} levels need more than {self.bits} bits"
            )
        if self.privacy is not None and (
            self.kind is Kind.EVALUATE or self.metrics or self.weighting is Weighting.NUM_EXAMPLES
        ):
            raise ValueError(
                "under differential privacy clients count alike and report no metrics: a weight "
                "or a metric would be one more release"
            )
        config_of(self.train_config)
        self._codec()
        return self

    @classmethod
    def build(cls, **fields: Any) -> Plan:
        """A checked plan.

        Raises:
            ConfigurationError: with the numbers.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ConfigurationError(f"the plan of a session: {_brief(error)}") from None

    @classmethod
    def parse(cls, raw: bytes) -> Plan:
        """Inverse of :meth:`canonical`.

        Raises:
            ConfigurationError: for anything that :meth:`canonical` does not write.
        """
        try:
            fields = json.loads(raw)
            if not isinstance(fields, dict) or fields.pop("schema", None) != _SCHEMA:
                raise ConfigurationError(f"a plan is a JSON object of schema {_SCHEMA}")
            plan = cls(**fields)
        except ValidationError as error:
            raise ConfigurationError(f"the plan of a session: {_brief(error)}") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigurationError(f"this is no plan: {error}") from None
        if plan.canonical() != raw:
            raise ConfigurationError("a plan in another spelling than the canonical one")
        return plan

    def canonical(self) -> bytes:
        """JSON with sorted keys and no spaces; equal plans and only they have equal bytes."""
        fields = {"schema": _SCHEMA, **self.model_dump(mode="json")}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return text.encode()

    def digest(self) -> bytes:
        """SHA-256 of :meth:`canonical`."""
        return hashlib.sha256(self.canonical()).digest()

    # -- vectors ----------------------------------------------------------------------------------

    @property
    def modulus(self) -> int:
        """Size of the ring."""
        return 1 << self.bits

    @property
    def weighted(self) -> bool:
        """Whether the vector carries a weight."""
        return self.weighting is Weighting.NUM_EXAMPLES

    @property
    def length(self) -> int:
        """Entries of a vector."""
        codec = self._codec()
        head = int(self.weighted) if codec is None else codec.length
        return head + len(self.metrics)

    def _codec(self) -> Codec | None:
        """Of the update; None in an evaluation."""
        if self.codec is None:
            return None
        if self.privacy is not None:
            return NoisyCodec(
                NoisySpec(
                    dimension=self.codec.dimension,
                    clip_norm=self.codec.clip_norm,
                    noise_multiplier=self.privacy.noise_multiplier,
                    honest_shares=self.privacy.honest_shares,
                    max_clients=self.clients,
                    contribution=Contribution.CLIENT,
                    units=self.clients,
                    resolution=self.codec.resolution,
                    modulus=self.modulus,
                )
            )
        if not self.codec.resolution.is_integer():
            raise ConfigurationError(
                f"the plain codec's resolution must be whole, found {self.codec.resolution}"
            )
        return UpdateCodec(
            CodecSpec(
                dimension=self.codec.dimension,
                clip_norm=self.codec.clip_norm,
                resolution=int(self.codec.resolution),
                max_clients=self.clients,
                modulus=self.modulus,
                weighting=CodecWeighting.WEIGHTED if self.weighted else CodecWeighting.EQUAL,
                max_weight=self.max_weight,
                rounding=Rounding.NEAREST,
            )
        )

    @property
    def may_wrap(self) -> bool:
        """Whether noise can carry one client's entry around the modulus.

        Modulo m that is a rare wrong number. Where the numbers themselves are added, as in the
        slots of Paillier, it moves the sum by m, and the sum tells more than the sum.
        """
        codec = self._codec()
        return isinstance(codec, NoisyCodec) and 2 * codec.spec.reach >= self.modulus

    def event(self, survivors: int, colluding: int) -> Event:
        """What opening a sum costs under :attr:`privacy`, the sampler's distance included.

        Raises:
            ConfigurationError: without differential privacy, or for impossible counts.
        """
        from securefl.flower.privacy import round_event  # noqa: PLC0415  # keeps scipy out

        codec = self._codec()
        if not isinstance(codec, NoisyCodec):
            raise ConfigurationError("this session has no differential privacy")
        return round_event(codec.event(survivors, colluding), codec.spec.delta_slack)

    def encode(
        self,
        update: NDArray[np.float64] | None,
        *,
        weight: int,
        metrics: Mapping[str, float],
        round_seed: bytes,
    ) -> RingVector:
        """One client's vector. With noise it is a new release each time, never used twice.

        Args:
            update: float64[dimension], finite; None in an evaluation.
            weight: 1..max_weight; 1 where clients count alike.
            metrics: a finite number for each declared metric; others are left out.
            round_seed: public, 32 bytes; the noisy codec's rotation follows from it.

        Raises:
            ConfigurationError: if something is missing or out of its range.
        """
        if not 1 <= weight <= self.max_weight:
            raise ConfigurationError(
                f"a weight must be in 1..{self.max_weight}, found {weight}: it is refused, not "
                "clipped; raise max_weight if it is right"
            )
        parts: list[NDArray[np.int64]] = []
        codec = self._codec()
        if codec is not None:
            if update is None:
                raise ConfigurationError("training without an update")
            encoded = codec.encode(
                update,
                weight=weight,
                round_seed=round_seed,
                random_bytes=SecureRandom().random_bytes,
            )
            parts.append(encoded.values.astype(np.uint64).view(np.int64))
        elif self.weighted:
            parts.append(np.array([weight], dtype=np.int64))
        levels = [weight * self._level(metric, metrics) for metric in self.metrics]
        parts.append(np.array(levels, dtype=np.int64))
        words = np.concatenate(parts).view(np.uint64)
        dtype = RingVector.zeros(0, self.modulus).values.dtype
        return RingVector(words.astype(dtype), self.modulus)

    def _level(self, metric: MetricRange, metrics: Mapping[str, float]) -> int:
        value = metrics.get(metric.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigurationError(
                f"the function reports no number under the declared metric {metric.name!r}"
            )
        if not math.isfinite(value):
            raise ConfigurationError(f"the declared metric {metric.name!r} is {value}")
        clipped = min(max(float(value), metric.low), metric.high)
        return round((clipped - metric.low) / (metric.high - metric.low) * self.levels)

    def decode(self, aggregate: AggregateSum, *, round_seed: bytes) -> Aggregate:
        """The opened sum as means.

        Args:
            aggregate: the sum.
            round_seed: as in :meth:`encode`.

        Raises:
            ConfigurationError: if the sum is in another ring or of another length.
            PeerProtocolError: if it lies outside what its survivors could have sent.
        """
        vector, survivors = aggregate.vector, aggregate.survivors
        if vector.modulus != self.modulus or len(vector) != self.length:
            raise ConfigurationError(
                f"expected {self.length} entries mod {self.modulus}, found {len(vector)} mod "
                f"{vector.modulus}"
            )
        head = self.length - len(self.metrics)
        mean: NDArray[np.float64] | None = None
        weight = len(survivors)
        codec = self._codec()
        if codec is not None:
            opened = AggregateSum(
                vector=RingVector(vector.values[:head], self.modulus),
                survivors=survivors,
                min_honest=aggregate.min_honest,
            )
            decoded = codec.decode(opened, round_seed=round_seed)
            mean, weight = decoded.mean, round(decoded.weight)
        elif self.weighted:
            weight = int(vector.values[0])
        if not len(survivors) <= weight <= len(survivors) * self.max_weight:
            raise PeerProtocolError(
                f"the weights of {len(survivors)} survivors add up to {weight}, out of reach: one "
                "of them sent something else (the sum hides which); discard the round",
                culprits=(),
            )
        return Aggregate(
            mean=mean,
            weight=weight,
            metrics={
                metric.name: self._mean_of(metric, int(total), weight)
                for metric, total in zip(self.metrics, vector.values[head:], strict=True)
            },
        )

    def _mean_of(self, metric: MetricRange, total: int, weight: int) -> float:
        if total > weight * self.levels:
            raise PeerProtocolError(
                f"metric {metric.name!r} lies outside its range: a survivor did not encode it (the "
                "sum hides which); discard the round",
                culprits=(),
            )
        return metric.low + total / (weight * self.levels) * (metric.high - metric.low)


class Aggregate:
    """What a session came to.

    Attributes:
        mean: float64[dimension], the weighted mean update; None in an evaluation.
        weight: sum of weights.
        metrics: weighted mean of each declared metric.
    """

    __slots__ = ("mean", "metrics", "weight")

    def __init__(
        self, *, mean: NDArray[np.float64] | None, weight: int, metrics: Mapping[str, float]
    ) -> None:
        self.mean, self.weight, self.metrics = mean, weight, dict(metrics)


def session_context(plan: bytes, model: bytes) -> bytes:
    """SHA-256(plan's digest, model's digest): the context in the configuration; 32 bytes each."""
    return hashlib.sha256(hashlib.sha256(plan).digest() + model).digest()


def run_config_digest(run_config: Mapping[str, Any]) -> str:
    """SHA-256 of a run's configuration, 64 hexadecimal digits.

    Flower fuses the app's defaults and the submitter's overrides alike for the ServerApp and on
    every node, so all of its keys are common; what differs from node to node is in ``node_config``.

    Raises:
        ConfigurationError: for a value that is none of Flower's.

    >>> run_config_digest({"lr": 0.1, "on": True}) == run_config_digest({"on": True, "lr": 0.1})
    True
    >>> run_config_digest({"lr": 1}) == run_config_digest({"lr": 1.0})
    False
    """
    text = json.dumps(typed_config(run_config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(b"securefl flower run config" + text.encode()).hexdigest()


def metric_levels(*, clients: int, max_weight: int, bits: int) -> int:
    """As many steps between low and high of a metric as a sum can hold, at most 2^24.

    Raises:
        ConfigurationError: if not even one fits.
    """
    levels = min(_MOST_LEVELS, ((1 << bits) - 1) // (clients * max_weight))
    if levels < 1:
        raise ConfigurationError(
            f"{bits} bits hold no metric of {clients} clients with weights up to {max_weight}; "
            "take more bits"
        )
    return levels


# -- the app's configuration in JSON --------------------------------------------------------------

_TAGS: dict[str, type] = {"b": bool, "i": int, "f": float, "s": str, "x": bytes}


def typed_config(config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Flower's configuration values with their types: what JSON cannot tell apart is spelled out.

    >>> typed_config({"lr": 0.5, "key": b"a", "sizes": [1, 2]})
    {'key': ['x', '61'], 'lr': ['f', '0x1.0000000000000p-1'], 'sizes': ['i', [1, 2]]}
    """
    return {key: _typed(key, config[key]) for key in sorted(config)}


def _typed(key: str, value: Any) -> list[Any]:
    several = isinstance(value, list)
    kinds = {type(one) for one in value} if several else {type(value)}
    tag = next((t for t, kind in _TAGS.items() if kinds <= {kind}), None)
    if tag is None or len(kinds) > 1:
        raise ConfigurationError(f"the configuration's {key!r} is no value of Flower's: {value!r}")
    texts = [_text(one) for one in value] if several else _text(value)
    return [tag, texts]


def _text(value: Any) -> Any:
    if isinstance(value, float):
        return value.hex()
    return value.hex() if isinstance(value, bytes) else value


def config_of(typed: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Inverse of :func:`typed_config`.

    Raises:
        ValueError: for anything that it does not make.

    >>> config_of(typed_config({"lr": 0.1, "on": True, "empty": []}))
    {'empty': [], 'lr': 0.1, 'on': True}
    """
    found = {key: _untyped(key, pair) for key, pair in typed.items()}
    if typed_config(found) != typed:
        raise ValueError("the configuration of a plan is in another spelling")
    return found


def _untyped(key: str, pair: list[Any]) -> Any:
    if len(pair) != 2 or pair[0] not in _TAGS:
        raise ValueError(f"the configuration's {key!r} has no type")
    tag, value = pair
    if isinstance(value, list):
        return [_value(tag, one) for one in value]
    return _value(tag, value)


def _value(tag: str, value: Any) -> Any:
    if tag in ("f", "x"):
        if not isinstance(value, str):
            raise ValueError("a number or bytes of a plan's configuration is no text")
        try:
            return float.fromhex(value) if tag == "f" else bytes.fromhex(value)
        except OverflowError as error:  # no ValueError, and pydantic passes on nothing else
            raise ValueError(f"a number of a plan's configuration: {error}") from None
    if type(value) is not _TAGS[tag]:
        raise ValueError(f"a value of a plan's configuration is no {_TAGS[tag].__name__}")
    return value


def _brief(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])
