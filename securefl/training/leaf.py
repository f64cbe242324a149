"""Federated data sets in LEAF's JSON layout: every record belongs to a user.

LEAF (Caldas et al. 2018, *LEAF: a benchmark for federated settings*) writes one or several files,
each an object ``{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y":
[...]}}}``, in a folder, or in its subfolders ``train`` and ``test``. This reader takes records of
numbers with whole-number labels (FEMNIST, Synthetic, CelebA as arrays), not text. It trusts no
file: sizes are capped, counts, users, shapes and values are checked against each other, and any
contradiction is an error. Users become groups, in the order of files' names and of users in them,
for the natural partition; their names are not kept. Values are taken as they are: nothing is
scaled by a statistic of the records. This module is NumPy only and knows no model.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from securefl.errors import ConfigurationError, DataNotFound
from securefl.training.data import (
    DATA_VARIABLE,
    Dataset,
    DatasetName,
    MalformedData,
    TrainTest,
    stratified_split,
)

__all__ = ["MAX_JSON_BYTES", "load_leaf", "read_leaf_file"]

MAX_JSON_BYTES: Final = 512 << 20
"""Most bytes of one file."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LeafUser:
    """One user's records.

    Attributes:
        name: as in the file.
        x: float32[n, ...], finite.
        y: int64[n], labels >= 0.
    """

    name: str
    x: NDArray[np.float32] = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)


def load_leaf(
    path: str | Path,
    data_dir: str | Path | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    classes: int | None = None,
    seed: int = 0,
    test_fraction: float = 0.2,
    max_bytes: int = MAX_JSON_BYTES,
) -> TrainTest:
    """Loads a data set in LEAF's layout, with users as groups.

    Args:
        path: folder of the data set: relative, below the data folder. It holds ``train/*.json`` and
            ``test/*.json``, or ``*.json``, which are then split.
        data_dir: the data folder; by default the environment's ``SECUREFL_DATA``.
        shape: shape of one record, for records that are stored flat, such as (1, 28, 28). By
            default as stored.
        classes: number of labels; by default the largest label and one more. In a deployment this
            is public knowledge: say it.
        seed: of the split, stratified by user and label. Unread if there are ``train`` and
            ``test``.
        test_fraction: share of records held out by that split.
        max_bytes: cap on each file.

    Raises:
        DataNotFound: naming the folder and what was expected there.
        MalformedData: naming the file, if one is not what it should be.
        ConfigurationError: if the path leaves the data folder, or shape or classes do not fit.
    """
    folder = _folder(path, data_dir)
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        parts = [_read_folder(folder / name, shape, max_bytes) for name in ("train", "test")]
        train_part, test_part = _datasets(parts, classes, folder)
        return TrainTest(train=train_part, test=test_part)
    (whole,) = _datasets([_read_folder(folder, shape, max_bytes)], classes, folder)
    assert whole.groups is not None  # noqa: S101  # _datasets gives every record a group
    train, test = stratified_split(
        whole.groups * whole.classes + whole.y, test_fraction=test_fraction, seed=seed
    )
    return TrainTest(train=whole.subset(train), test=whole.subset(test))


def read_leaf_file(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> tuple[LeafUser, ...]:
    """One file's users, in its order; users without records are left out.

    Raises:
        DataNotFound: if there is no such file.
        MalformedData: if it is too large, no JSON, or contradicts itself.
    """
    if not path.is_file():
        raise DataNotFound(f"folder {path.parent} has no file {path.name}")
    with path.open("rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise MalformedData(f"{path} is larger than {max_bytes} bytes")
    try:
        tree = json.loads(raw, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedData(f"{path} is not the JSON of a LEAF data set: {error}") from error
    del raw
    return _users(tree, path)


# ---------------------------------------------------------------- one file


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with distinct keys; a user's lists become arrays at once, to save memory."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} stands twice in one object")
    if isinstance(found.get("x"), list) and isinstance(found.get("y"), list):
        found["x"], found["y"] = _numbers(found["x"]), _labels(found["y"])
    return found


def _numbers(values: list[Any]) -> NDArray[np.float32]:
    try:
        array = np.array(values)
        if array.dtype.kind not in "iuf" and array.size:
            raise ValueError(f"found values of kind {array.dtype}")
        with np.errstate(over="ignore"):
            single = array.astype(np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"x must be lists of numbers, all of one shape; texts are not supported ({error})"
        ) from error
    if not np.isfinite(single).all():
        raise ValueError("x has a value beyond float32")
    return single


def _labels(values: list[Any]) -> NDArray[np.int64]:
    # bool is an int in Python, and true is no label.
    wrong = next((v for v in values if type(v) is not int or not 0 <= v < 1 << 31), None)
    if wrong is not None:
        raise ValueError(f"labels must be whole numbers from 0 on, found {wrong!r}")
    return np.array(values, dtype=np.int64)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _users(tree: Any, path: Path) -> tuple[LeafUser, ...]:
    expected = {"users": list, "num_samples": list, "user_data": dict}
    for key, kind in expected.items():
        found = tree.get(key) if isinstance(tree, dict) else None
        if not isinstance(found, kind):
            raise MalformedData(
                f"{path}: expected an object with {', '.join(expected)}; {key} is "
                f"{'missing' if found is None else type(found).__name__}"
            )
    names, counts, data = tree["users"], tree["num_samples"], tree["user_data"]
    if any(not isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise MalformedData(f"{path}: users must be distinct texts")
    if len(names) != len(counts):
        raise MalformedData(f"{path}: {len(names)} users but {len(counts)} num_samples")
    if set(names) != set(data):
        odd = sorted(set(names) ^ set(data))
        raise MalformedData(
            f"{path}: users and user_data name different users, {len(odd)} in all, such as "
            f"{odd[0]!r}"
        )
    users = [
        _user(name, count, data[name], path) for name, count in zip(names, counts, strict=True)
    ]
    return tuple(user for user in users if len(user.y))


def _user(name: str, count: Any, data: Any, path: Path) -> LeafUser:
    x, y = (data.get("x"), data.get("y")) if isinstance(data, dict) else (None, None)
    if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray):
        raise MalformedData(f"{path}: user {name!r} must have lists x and y")
    if type(count) is not int or not len(x) == len(y) == count:
        raise MalformedData(
            f"{path}: user {name!r} has {len(x)} x and {len(y)} y, num_samples says {count!r}"
        )
    return LeafUser(name=name, x=x, y=y)


# ---------------------------------------------------------------- several files


def _read_folder(
    folder: Path, shape: tuple[int, ...] | None, max_bytes: int
) -> tuple[LeafUser, ...]:
    """The users of all files of a folder, each in one file only, records of one shape."""
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not files:
        raise DataNotFound(
            f"folder {folder} has no *.json; expected LEAF files in it, or in train/ and test/"
        )
    users: list[LeafUser] = []
    seen: dict[str, Path] = {}
    for path in files:
        for user in read_leaf_file(path, max_bytes=max_bytes):
            if user.name in seen:
                raise MalformedData(
                    f"user {user.name!r} stands in {seen[user.name]} and in {path.name}"
                )
            seen[user.name] = path
            users.append(_shaped(user, shape, path))
            found, first = (part.x.shape[1:] for part in (users[-1], users[0]))
            if found != first:
                raise MalformedData(
                    f"{path}: records of user {user.name!r} have shape {found}, others {first}"
                )
    if not users:
        raise MalformedData(f"folder {folder} has no records")
    return tuple(users)


def _shaped(user: LeafUser, shape: tuple[int, ...] | None, path: Path) -> LeafUser:
    if shape is not None:
        if min(shape, default=0) < 1 or int(np.prod(shape)) != user.x[0].size:
            raise ConfigurationError(
                f"{path}: a record of user {user.name!r} has {user.x[0].size} numbers, the shape "
                f"{shape} wants {int(np.prod(shape))}"
            )
        return LeafUser(name=user.name, x=user.x.reshape(len(user.x), *shape), y=user.y)
    if user.x.ndim < 2:
        x = user.x[:, None]  # single numbers are records of one feature
        return LeafUser(name=user.name, x=x, y=user.y)
    return user


def _datasets(
    parts: list[tuple[LeafUser, ...]], classes: int | None, folder: Path
) -> list[Dataset]:
    """Each part's records, under one numbering of users and one number of classes."""
    numbers: dict[str, int] = {}
    for user in (user for part in parts for user in part):
        numbers.setdefault(user.name, len(numbers))
    largest = max(int(user.y.max()) for part in parts for user in part)
    count = max(largest + 1, 2) if classes is None else classes
    if not largest < count or count < 2:
        raise ConfigurationError(
            f"{folder}: the largest label is {largest}, classes = {count} has labels 0 to "
            f"{count - 1}"
        )
    made = [_dataset(part, numbers, count) for part in parts]
    if made[0].input_shape != made[-1].input_shape:
        raise MalformedData(
            f"{folder}: records of train have shape {made[0].input_shape}, of test "
            f"{made[-1].input_shape}"
        )
    return made


def _dataset(users: tuple[LeafUser, ...], numbers: dict[str, int], classes: int) -> Dataset:
    groups = [np.full(len(user.y), numbers[user.name], dtype=np.int64) for user in users]
    return Dataset(
        name=DatasetName.LEAF,
        x=np.concatenate([user.x for user in users]),
        y=np.concatenate([user.y for user in users]),
        classes=classes,
        groups=np.concatenate(groups),
    )


def _folder(path: str | Path, data_dir: str | Path | None) -> Path:
    root = data_dir if data_dir is not None else os.environ.get(DATA_VARIABLE)
    if not root:
        raise DataNotFound(
            f"no data folder given: pass data_dir (--data) or set {DATA_VARIABLE} to the folder "
            f"that contains {path}/"
        )
    if Path(path).is_absolute() or ".." in Path(path).parts or not Path(path).parts:
        raise ConfigurationError(
            f"the path of a LEAF data set must lie below the data folder, found {str(path)!r}"
        )
    folder = Path(root).absolute() / path
    if not folder.is_dir():
        raise DataNotFound(f"folder {folder} does not exist; expected LEAF files in it")
    return folder
