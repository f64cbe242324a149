from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from securefl.errors import CheckpointError
from securefl.simulation.checkpoint import Checkpoint, latest_checkpoint, write_checkpoint
from securefl.storage import write_durably


def checkpoint(next_round: int = 3) -> Checkpoint:
    return Checkpoint(
        next_round=next_round,
        config_digest="c" * 64,
        run="none-inf-s0",
        partition_digest="p" * 64,
        ledger_heads={"0": "4:" + "a" * 64},
        lost_in_a_row=1,
        arrays={
            "model": np.arange(5, dtype=np.float32),
            "optimiser/optimiser": np.array("SGD"),
        },
    )


def assert_same(a: Checkpoint | None, b: Checkpoint) -> None:
    assert a is not None
    assert {k: getattr(a, k) for k in a.__slots__ if k != "arrays"} == {
        k: getattr(b, k) for k in b.__slots__ if k != "arrays"
    }
    assert a.arrays.keys() == b.arrays.keys()
    for name, value in a.arrays.items():
        assert value.dtype == b.arrays[name].dtype
        assert np.array_equal(value, b.arrays[name])


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint())
    assert_same(latest_checkpoint(tmp_path), checkpoint())


def test_no_folder_means_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nothing") is None
    assert latest_checkpoint(tmp_path) is None


def test_only_the_newest_is_kept_even_for_the_same_round(tmp_path: Path) -> None:
    for next_round in (1, 2, 2):
        write_checkpoint(tmp_path, checkpoint(next_round))
    assert len(list(tmp_path.iterdir())) == 1
    assert_same(latest_checkpoint(tmp_path), checkpoint(2))


def test_a_torn_write_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    torn = tmp_path / "00000002.tmp"
    torn.mkdir()
    (torn / "arrays.npz").write_bytes(b"half")
    assert_same(latest_checkpoint(tmp_path), checkpoint(1))
    write_checkpoint(tmp_path, checkpoint(2))
    assert_same(latest_checkpoint(tmp_path), checkpoint(2))


@pytest.mark.parametrize("name", ["manifest.json", "arrays.npz"])
def test_any_flipped_byte_is_noticed_or_means_the_same(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path, checkpoint()) / name
    content = path.read_bytes()
    noticed = 0
    for position in range(0, len(content), 1 if name == "manifest.json" else 37):
        damaged = bytearray(content)
        damaged[position] ^= 0x01
        path.write_bytes(damaged)
        try:
            found = latest_checkpoint(tmp_path)
        except CheckpointError as error:
            assert str(path.parent) in str(error)
            noticed += 1
        else:  # white space of the JSON
            assert_same(found, checkpoint())
    assert noticed > 10


def test_a_missing_file_or_key_is_a_damaged_checkpoint(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, checkpoint())
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["ledger_heads"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="digest"):
        latest_checkpoint(tmp_path)
    (path / "arrays.npz").unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        latest_checkpoint(tmp_path)


def test_pickled_arrays_are_neither_written_nor_read(tmp_path: Path) -> None:
    hostile = Checkpoint(
        **{
            **{k: getattr(checkpoint(), k) for k in checkpoint().__slots__},
            "arrays": {"model": np.array([{"a": 1}], dtype=object)},
        }
    )
    with pytest.raises(ValueError, match="pickle"):
        write_checkpoint(tmp_path, hostile)


def test_a_durable_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
