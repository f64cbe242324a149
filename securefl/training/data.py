"""The data sets: digits, breast cancer, MNIST and Heart Disease, read strictly.

Every scaling uses *public* bounds written down here, never a statistic of the records: a mean
pooled over clients would leak from each of them, and one over all records would leak the test set.
The readers trust no file: magic, dimensions, exact length, value ranges and pinned SHA-256 digests
are checked, and a size is capped before memory is taken for it. Splits are public functions of a
seed. This module is NumPy only (scikit-learn brings two of the data sets) and knows no model.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError, DataNotFound, SecureFLError

__all__ = [
    "HEART_SITES",
    "MAX_IDX_BYTES",
    "Dataset",
    "DatasetName",
    "HeartView",
    "MalformedData",
    "TrainTest",
    "load",
    "read_heart_site",
    "read_idx",
    "stratified_split",
]

DATA_VARIABLE: Final = "SECUREFL_DATA"
MAX_IDX_BYTES: Final = 64 << 20
"""Most bytes of one unpacked IDX file, and of its packed form; MNIST's largest has 47 MB."""

_MAX_HEART_BYTES: Final = 1 << 20

_E = TypeVar("_E", bound=StrEnum)


class MalformedData(SecureFLError, ValueError):
    """A data file is not what it should be: wrong magic, length, values or digest."""


class DatasetName(StrEnum):
    """The data sets that :func:`load` knows, and ``leaf``, which has a loader of its own."""

    DIGITS = "digits"
    BREAST_CANCER = "breast-cancer"
    MNIST = "mnist"
    HEART_DISEASE = "heart-disease"
    LEAF = "leaf"


class HeartView(StrEnum):
    """Two ways to handle Heart Disease's missing cells."""

    IMPUTED = "imputed"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Records with labels.

    Attributes:
        name: of the data set.
        x: float32[n, ...], finite.
        y: int64[n], labels in 0..classes-1.
        classes: number of labels.
        groups: int64[n], the site of each record, or None.
        feature_names: one per column of a two-axis x, else empty.
    """

    name: DatasetName
    x: NDArray[np.float32] = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)
    classes: int
    groups: NDArray[np.int64] | None = field(default=None, repr=False)
    feature_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.x.dtype != np.float32 or self.y.dtype != np.int64:
            raise ConfigurationError(
                f"x must be float32 and y int64, found {self.x.dtype} and {self.y.dtype}"
            )
        if len(self.x) != len(self.y) or (
            self.groups is not None and len(self.groups) != len(self.y)
        ):
            raise ConfigurationError(f"{len(self.x)} records but {len(self.y)} labels, or groups")
        if self.feature_names and self.x.shape[1:] != (len(self.feature_names),):
            raise ConfigurationError(
                f"{len(self.feature_names)} feature names for records of shape {self.x.shape[1:]}"
            )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record."""
        return tuple(self.x.shape[1:])

    def subset(self, indices: NDArray[np.int64]) -> Dataset:
        """The records at ``indices``, copied."""
        return Dataset(
            name=self.name,
            x=self.x[indices],
            y=self.y[indices],
            classes=self.classes,
            groups=None if self.groups is None else self.groups[indices],
            feature_names=self.feature_names,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainTest:
    """A data set in two disjoint parts; iterable, so ``train, test = load(...)`` works."""

    train: Dataset
    test: Dataset

    def __iter__(self) -> Iterator[Dataset]:
        return iter((self.train, self.test))


def load(
    name: DatasetName | str,
    data_dir: str | Path | None = None,
    *,
    seed: int = 0,
    test_fraction: float = 0.2,
    view: HeartView | str = HeartView.IMPUTED,
    allow_unknown: bool = False,
) -> TrainTest:
    """Loads a data set, scaled by public bounds and split.

    Args:
        name: ``digits`` (1797 x 64, pixels x/16 - .3), ``breast-cancer`` (569 x 30 in [-1, 1]),
            ``mnist`` (60,000 + 10,000 x 1 x 28 x 28, normalised by the published mean .1307 and
            deviation .3081), ``heart-disease`` (four hospitals as groups; label: any disease).
        data_dir: folder with ``mnist/`` and ``heart_disease/``; by default the environment's
            ``SECUREFL_DATA``. The other two come with scikit-learn.
        seed: of the split, stratified by label (and by site where there are sites). MNIST brings
            its own split.
        test_fraction: in (0, 1); the test part is rounded up. Unread for MNIST.
        view: Heart Disease only. ``imputed``: all 920 records, missing cells at mid-range with an
            indicator. ``complete``: slope, ca and thal dropped, then records with missing cells.
        allow_unknown: accept files whose SHA-256 is not the pinned one. They are still parsed
            strictly.

    Raises:
        DataNotFound: naming folder and file.
        MalformedData: if a file is not what it should be.
        ConfigurationError: on an unknown name or a fraction out of range.

    >>> train, test = load("digits")
    >>> train.x.shape, test.x.shape
    ((1437, 64), (360, 64))
    """
    kind, heart_view = _member(DatasetName, name), _member(HeartView, view)
    if kind is DatasetName.LEAF:
        raise ConfigurationError("a LEAF data set has a path: use securefl.training.leaf.load_leaf")
    if kind is DatasetName.MNIST:
        return _load_mnist(_folder(data_dir, "mnist"), allow_unknown=allow_unknown)
    if kind is DatasetName.DIGITS:
        whole = _load_digits()
    elif kind is DatasetName.BREAST_CANCER:
        whole = _load_breast_cancer()
    else:
        folder = _folder(data_dir, "heart_disease")
        whole = _load_heart(folder, heart_view, allow_unknown=allow_unknown)
    sites = np.zeros(len(whole), dtype=np.int64) if whole.groups is None else whole.groups
    train, test = stratified_split(
        sites * whole.classes + whole.y, test_fraction=test_fraction, seed=seed
    )
    return TrainTest(train=whole.subset(train), test=whole.subset(test))


def stratified_split(
    strata: NDArray[np.int64], *, test_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ascending indices of train and test records, each stratum in proportion.

    The test part has ceil(n test_fraction) records, shared out by largest remainders.

    Raises:
        ConfigurationError: unless 0 < test_fraction < 1 and both parts are non-empty.
    """
    if not 0.0 < test_fraction < 1.0:
        raise ConfigurationError(f"test_fraction must be in (0, 1), found {test_fraction}")
    wanted = math.ceil(len(strata) * test_fraction)
    if not 0 < wanted < len(strata):
        raise ConfigurationError(f"{len(strata)} records cannot be split at {test_fraction}")
    values, sizes = np.unique(strata, return_counts=True)
    shares = sizes * (wanted / len(strata))
    taken = np.floor(shares).astype(np.int64)
    largest = np.argsort(taken - shares, kind="stable")
    taken[largest[: wanted - int(taken.sum())]] += 1
    rng = np.random.Generator(np.random.PCG64(seed))
    is_test = np.zeros(len(strata), dtype=bool)
    for value, count in zip(values, taken, strict=True):
        is_test[rng.permutation(np.flatnonzero(strata == value))[:count]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


# ---------------------------------------------------------------- scikit-learn's two


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits  # noqa: PLC0415  # slow import, optional dependency

    bunch = load_digits()
    return Dataset(
        name=DatasetName.DIGITS,
        x=(bunch.data / 16.0 - 0.3).astype(np.float32),
        y=bunch.target.astype(np.int64),
        classes=10,
        feature_names=tuple(str(name) for name in bunch.feature_names),
    )


# Smallest and largest value of each feature as printed in the data set's published description
# (Wolberg, Street, Mangasarian 1995; the "Summary Statistics" of scikit-learn's copy). The order is
# scikit-learn's: ten features as mean, then as standard error, then as worst.
_BREAST_CANCER_BOUNDS: Final = np.array(
    [
        *((6.981, 28.11), (9.71, 39.28), (43.79, 188.5), (143.5, 2501.0), (0.053, 0.163)),
        *((0.019, 0.345), (0.0, 0.427), (0.0, 0.201), (0.106, 0.304), (0.05, 0.097)),
        *((0.112, 2.873), (0.36, 4.885), (0.757, 21.98), (6.802, 542.2), (0.002, 0.031)),
        *((0.002, 0.135), (0.0, 0.396), (0.0, 0.053), (0.008, 0.079), (0.001, 0.03)),
        *((7.93, 36.04), (12.02, 49.54), (50.41, 251.2), (185.2, 4254.0), (0.071, 0.223)),
        *((0.027, 1.058), (0.0, 1.252), (0.0, 0.291), (0.156, 0.664), (0.055, 0.208)),
    ]
)


def _load_breast_cancer() -> Dataset:
    from sklearn.datasets import (  # noqa: PLC0415  # slow import, optional dependency
        load_breast_cancer,
    )

    bunch = load_breast_cancer()
    low, high = _BREAST_CANCER_BOUNDS.T
    return Dataset(
        name=DatasetName.BREAST_CANCER,
        x=_scale(bunch.data, low, high).astype(np.float32),
        y=bunch.target.astype(np.int64),
        classes=2,
        feature_names=tuple(str(name) for name in bunch.feature_names),
    )


def _scale(
    values: NDArray[np.float64], low: NDArray[np.float64] | float, high: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """[low, high] to [-1, 1]; values beyond public bounds are clipped to them."""
    return np.clip((2.0 * values - low - high) / (np.asarray(high) - low), -1.0, 1.0)


# ---------------------------------------------------------------- MNIST

# SHA-256 of the published .gz files and of what is in them, for folders with unpacked files.
_MNIST_DIGESTS: Final = {
    "train-images-idx3-ubyte": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
_MNIST_MEAN, _MNIST_STD = 0.1307, 0.3081


def _load_mnist(folder: Path, *, allow_unknown: bool) -> TrainTest:
    parts = [
        _mnist_part(folder, prefix, count, allow_unknown=allow_unknown)
        for prefix, count in (("train", 60_000), ("t10k", 10_000))
    ]
    return TrainTest(train=parts[0], test=parts[1])


def _mnist_part(folder: Path, prefix: str, count: int, *, allow_unknown: bool) -> Dataset:
    images = _mnist_file(folder, f"{prefix}-images-idx3-ubyte", allow_unknown=allow_unknown)
    labels = _mnist_file(folder, f"{prefix}-labels-idx1-ubyte", allow_unknown=allow_unknown)
    if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise MalformedData(
            f"{folder}: expected {prefix} images [n, 28, 28] and labels [n], found "
            f"{images.shape} and {labels.shape}"
        )
    if len(labels) != count and not allow_unknown:
        raise MalformedData(f"{folder}: expected {count} {prefix} images, found {len(labels)}")
    if int(labels.max()) > 9:
        raise MalformedData(f"{folder}: a {prefix} label is {int(labels.max())}, expected 0..9")
    x = images.reshape(-1, 1, 28, 28).astype(np.float32)
    x /= np.float32(255.0)
    x -= np.float32(_MNIST_MEAN)
    x /= np.float32(_MNIST_STD)
    return Dataset(name=DatasetName.MNIST, x=x, y=labels.astype(np.int64), classes=10)


def _mnist_file(folder: Path, name: str, *, allow_unknown: bool) -> NDArray[np.uint8]:
    packed, plain = folder / f"{name}.gz", folder / name
    for path, digest in zip((packed, plain), _MNIST_DIGESTS[name], strict=True):
        if path.is_file():
            return read_idx(path, sha256=None if allow_unknown else digest)
    raise DataNotFound(f"folder {folder} has neither {packed.name} nor {plain.name}")


def read_idx(
    path: Path, *, max_bytes: int = MAX_IDX_BYTES, sha256: str | None = None
) -> NDArray[np.uint8]:
    """Reads an IDX file of unsigned bytes, packed with gzip if its name ends in ``.gz``.

    The format: bytes 0, 0, 8 and the number of axes (1..4), then each axis' length as a big-endian
    32-bit number, then exactly their product of bytes.

    Args:
        path: the file.
        max_bytes: most bytes of contents (and of the packed file); checked before allocation.
        sha256: expected digest of the file as it lies on disk, in hex; None skips the check.

    Returns:
        uint8 array of the announced shape.

    Raises:
        MalformedData: on anything else than that.
    """
    raw = _read_capped(path, max_bytes + 4096, sha256=sha256)
    stream: IO[bytes] | gzip.GzipFile = io.BytesIO(raw)
    if path.suffix == ".gz":
        stream = gzip.GzipFile(fileobj=stream, mode="rb")
    try:
        return _parse_idx(stream, str(path), max_bytes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise MalformedData(f"{path} is not a whole gzip file: {error}") from error


def _parse_idx(stream: IO[bytes] | gzip.GzipFile, name: str, max_bytes: int) -> NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) != 4 or magic[:3] != b"\x00\x00\x08" or not 1 <= magic[3] <= 4:
        raise MalformedData(
            f"{name}: expected the magic bytes 0, 0, 8 and 1..4 axes, found {list(magic)}"
        )
    header = stream.read(4 * magic[3])
    if len(header) != 4 * magic[3]:
        raise MalformedData(f"{name}: the header ends early, after {4 + len(header)} bytes")
    shape = tuple(int(length) for length in np.frombuffer(header, dtype=">u4"))
    size = math.prod(shape)
    if not 0 < size <= max_bytes:
        raise MalformedData(
            f"{name}: the header announces {shape}, {size} bytes; expected 1..{max_bytes}"
        )
    body = stream.read(size)
    if len(body) != size:
        raise MalformedData(f"{name}: expected {size} bytes of contents, found {len(body)}")
    if stream.read(1):
        raise MalformedData(f"{name}: bytes are left over after the announced {size}")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


# ---------------------------------------------------------------- Heart Disease

HEART_SITES: Final = ("cleveland", "hungarian", "switzerland", "va")
"""The four hospitals; a record's group is the index in this tuple."""

_HEART_DIGESTS: Final = {
    "cleveland": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "hungarian": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "switzerland": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "va": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """One column of the processed Heart Disease files.

    Attributes:
        name: as in the data set's description.
        levels: the codes of a binary or categorical column; empty for a measured one.
        low, high: public bounds of a measured column, from what is clinically plausible.
        may_miss: whether ``?`` is allowed.
        zero_is_missing: a measured zero that no living patient has.
    """

    name: str
    levels: tuple[int, ...] = ()
    low: float = 0.0
    high: float = 1.0
    may_miss: bool = True
    zero_is_missing: bool = False


_HEART_COLUMNS: Final = (
    _Column(name="age", low=20.0, high=90.0, may_miss=False),
    _Column(name="sex", levels=(0, 1), may_miss=False),
    _Column(name="cp", levels=(1, 2, 3, 4), may_miss=False),
    _Column(name="trestbps", low=80.0, high=220.0, zero_is_missing=True),
    _Column(name="chol", low=80.0, high=600.0, zero_is_missing=True),
    _Column(name="fbs", levels=(0, 1)),
    _Column(name="restecg", levels=(0, 1, 2)),
    _Column(name="thalach", low=60.0, high=220.0),
    _Column(name="exang", levels=(0, 1)),
    _Column(name="oldpeak", low=-3.0, high=7.0),
    _Column(name="slope", levels=(1, 2, 3)),
    _Column(name="ca", low=0.0, high=3.0),
    _Column(name="thal", levels=(3, 6, 7)),
    _Column(name="num", levels=(0, 1, 2, 3, 4), may_miss=False),
)
_HEART_DROPPED: Final = frozenset({"slope", "ca", "thal"})
_NUMBER: Final = re.compile(r"-?(\d+(\.\d*)?|\.\d+)")


def read_heart_site(path: Path, *, sha256: str | None = None) -> NDArray[np.float64]:
    """Reads one ``processed.*.data`` file: float64[n, 14], NaN where the file has ``?``.

    Raises:
        MalformedData: on a line without 14 fields, a field that is neither a number nor ``?``, a
            code the column does not have, or a missing cell where none may be.
    """
    raw = _read_capped(path, _MAX_HEART_BYTES, sha256=sha256)
    try:
        lines = raw.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise MalformedData(f"{path} is not ASCII text: {error}") from error
    rows = [_heart_row(line, f"{path}, line {i}") for i, line in enumerate(lines, start=1)]
    if not rows:
        raise MalformedData(f"{path} has no records")
    return np.array(rows, dtype=np.float64)


def _heart_row(line: str, where: str) -> list[float]:
    cells = line.split(",")
    if len(cells) != len(_HEART_COLUMNS):
        raise MalformedData(f"{where}: expected 14 fields, found {len(cells)}")
    return [
        _heart_cell(cell, column, where) for cell, column in zip(cells, _HEART_COLUMNS, strict=True)
    ]


def _heart_cell(cell: str, column: _Column, where: str) -> float:
    if cell == "?":
        if not column.may_miss:
            raise MalformedData(f"{where}: {column.name} must not be missing")
        return math.nan
    if len(cell) > 12 or _NUMBER.fullmatch(cell) is None:
        raise MalformedData(f"{where}: {column.name} must be a number or ?, found {cell!r}")
    value = float(cell)
    if column.levels and value not in column.levels:
        raise MalformedData(f"{where}: {column.name} must be in {column.levels}, found {cell}")
    return value


def _load_heart(folder: Path, view: HeartView, *, allow_unknown: bool) -> Dataset:
    tables, groups = [], []
    for number, site in enumerate(HEART_SITES):
        path = folder / f"processed.{site}.data"
        table = read_heart_site(path, sha256=None if allow_unknown else _HEART_DIGESTS[site])
        if view is HeartView.COMPLETE:
            kept = [i for i, c in enumerate(_HEART_COLUMNS) if c.name not in _HEART_DROPPED]
            table = table[~np.isnan(table[:, kept]).any(axis=1)]
        tables.append(table)
        groups.append(np.full(len(table), number, dtype=np.int64))
    together = np.concatenate(tables)
    x, names = _heart_features(together, view)
    return Dataset(
        name=DatasetName.HEART_DISEASE,
        x=x,
        y=(together[:, -1] > 0).astype(np.int64),
        classes=2,
        groups=np.concatenate(groups),
        feature_names=names,
    )


def _heart_features(
    table: NDArray[np.float64], view: HeartView
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Columns as features: measured ones in [-1, 1], codes one-hot, missing cells at mid-range."""
    features: list[NDArray[np.float64]] = []
    names: list[str] = []
    for cells, column in zip(table.T[:-1], _HEART_COLUMNS[:-1], strict=True):
        if view is HeartView.COMPLETE and column.name in _HEART_DROPPED:
            continue
        missing = np.isnan(cells)
        if view is HeartView.IMPUTED and column.zero_is_missing:
            missing |= cells == 0
        if len(column.levels) > 2:
            for level in column.levels:
                features.append((cells == level).astype(np.float64))
                names.append(f"{column.name}={level}")
        else:
            low, high = (0.0, 1.0) if column.levels else (column.low, column.high)
            features.append(np.where(missing, 0.0, _scale(np.nan_to_num(cells), low, high)))
            names.append(column.name)
        if view is HeartView.IMPUTED and column.may_miss:
            features.append(missing.astype(np.float64))
            names.append(f"{column.name} missing")
    return np.stack(features, axis=1).astype(np.float32), tuple(names)


# ---------------------------------------------------------------- files


_FIRST_FILE = {
    "mnist": "train-images-idx3-ubyte.gz",
    "heart_disease": "processed.cleveland.data",
}


def _folder(data_dir: str | Path | None, name: str) -> Path:
    """The folder of one data set under the data directory."""
    root = data_dir if data_dir is not None else os.environ.get(DATA_VARIABLE)
    if not root:
        raise DataNotFound(
            f"no data folder given: pass data_dir (--data) or set {DATA_VARIABLE} to the folder "
            f"that contains {name}/"
        )
    folder = Path(root).absolute() / name
    if not folder.is_dir():
        raise DataNotFound(
            f"folder {folder} does not exist; expected {_FIRST_FILE[name]} and its companions in it"
        )
    return folder


def _read_capped(path: Path, max_bytes: int, *, sha256: str | None) -> bytes:
    """The file's bytes, if there are at most ``max_bytes`` and the digest fits."""
    if not path.is_file():
        raise DataNotFound(f"folder {path.parent} has no file {path.name}")
    with path.open("rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise MalformedData(f"{path} is larger than {max_bytes} bytes")
    if sha256 is not None:
        found = hashlib.sha256(raw).hexdigest()
        if found != sha256:
            raise MalformedData(
                f"{path} has SHA-256 {found}, expected {sha256}; fetch the published file, or pass "
                "allow_unknown=True if you know that yours is right"
            )
    return raw


def _member(kind: type[_E], value: str) -> _E:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(kind)
        raise ConfigurationError(f"expected one of {known}; found {value!r}") from None
