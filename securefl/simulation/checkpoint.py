"""Checkpoints of a run: everything that is needed to go on, and nothing secret.

A checkpoint is a folder ``NNNNNNNN`` (a serial number) with a JSON manifest and one ``.npz`` of
plain arrays (no pickle). It is written into a temporary folder, synced, then renamed, so that a
crash leaves
either the old checkpoint or the new one. Private randomness is never stored: a resumed round
draws afresh. Ledgers are not copied either; the manifest holds their heads, so that a ledger that
was rolled back behind its checkpoint is noticed (:class:`accounting.LedgerRolledBack`).
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefl.errors import CheckpointError
from securefl.storage import sync_folder, write_durably

__all__ = ["Checkpoint", "latest_checkpoint", "write_checkpoint"]

SCHEMA = "securefl-checkpoint/1"
MANIFEST, ARRAYS = "manifest.json", "arrays.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state of a run between two rounds.

    Attributes:
        next_round: the round to carry out next.
        config_digest: SHA-256 (hex) of the configuration of the sweep.
        run: folder name of the run within the sweep.
        partition_digest: digest (hex) of who holds which records.
        ledger_heads: per client, the head ``sequence:hash`` of its ledger; empty without DP.
        lost_in_a_row: consecutive rounds below the threshold so far.
        arrays: ``model`` float32[d], and the server optimiser's state under ``optimizer/...``.
    """

    next_round: int
    config_digest: str
    run: str
    partition_digest: str
    ledger_heads: Mapping[str, str]
    lost_in_a_row: int
    arrays: Mapping[str, NDArray[Any]]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes ``checkpoint`` below ``folder`` and removes the older ones. Returns its folder."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **checkpoint.arrays)
    content = buffer.getvalue()
    manifest = {
        "schema": SCHEMA,
        **_plain(checkpoint),
        "arrays_sha256": hashlib.sha256(content).hexdigest(),
    }
    manifest["sha256"] = _digest(manifest)
    serial = 1 + max((int(p.name) for p in _complete(folder)), default=0)
    final = folder / f"{serial:08d}"
    temporary = folder / f"{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_durably(temporary / ARRAYS, content)
    write_durably(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
    temporary.rename(final)
    sync_folder(folder)
    for old in folder.iterdir():
        if old != final:
            shutil.rmtree(old)
    return final


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint below ``folder``; None if there is none.

    Raises:
        CheckpointError: if the newest one is damaged or of an unknown schema.
    """
    complete = _complete(folder)
    return _read(complete[-1]) if complete else None


def _complete(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.isdecimal())


def _read(path: Path) -> Checkpoint:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        content = (path / ARRAYS).read_bytes()
        if manifest["schema"] != SCHEMA:
            raise CheckpointError(f"{path}: not a checkpoint of this version ({SCHEMA})")
        if manifest.pop("sha256") != _digest(manifest):
            raise CheckpointError(f"{path / MANIFEST}: does not match its own digest")
        del manifest["schema"]
        if hashlib.sha256(content).hexdigest() != manifest.pop("arrays_sha256"):
            raise CheckpointError(f"{path / ARRAYS}: does not match the digest in {MANIFEST}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return Checkpoint(arrays=dict(arrays), **manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint: {error}") from error


def _plain(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        name: getattr(checkpoint, name)
        for name in (
            "next_round",
            "config_digest",
            "run",
            "partition_digest",
            "lost_in_a_row",
        )
    } | {"ledger_heads": dict(checkpoint.ledger_heads)}


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
