"""The named defence is taken out of a copy of the library: the program's negative control fails.

The copy lies in a temporary folder and the program runs in a process of its own. A program without
a defence (metadata) has none to take out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
CLIENT = "securefl/protocols/secagg/client.py"
PARAMS = "securefl/protocols/secagg/params.py"
MUTATIONS = {
    "threshold above colluders": (
        "t04_collusion", PARAMS, "    if t <= c:\n", "    if t <= -1:\n"),
    "two thirds": (
        "t05_survivor_lists", PARAMS, "and 2 * t <= h + c:", "and 2 * t <= -1:"),
    "t signatures": (
        "t05_survivor_lists", CLIENT, "if signers + self._own_share < self._config.t:",
        "if signers < 0:"),
    "signed keys": (
        "t06_key_substitution", CLIENT,
        "        if not self._active:\n            return\n        for entry in entries:",
        "        for entry in ():"),
    "noise": (
        "t08_differencing", "securefl/encoding/noisy.py",
        "        return draw(noise_table(spec.mechanism, spec.share_ticks), spec.padded, "
        "random_bytes)\n", "        return np.zeros(spec.padded, dtype=np.int64)\n"),
    "room in the ring": (
        "t14_overflow", "securefl/encoding/codec.py", "        if needed > self.modulus:",
        "        if needed < 0:"),
    "own mask": (
        "t16_late_input", CLIENT, "return self._keys.self_mask_key(b, session, self._u)",
        "return bytes(16)"),
    "identities": (
        "t20_sybils", "securefl/protocols/policy.py",
        "    unknown = [v for v in config.cohort if v not in directory]\n", "    unknown = []\n"),
    "beacon": (
        "t21_chosen_neighbourhood", PARAMS,
        "if active and not complete and config.graph_source is not GraphSource.BEACON:",
        "if False:"),
    "checked secrets": (
        "t23_denial_of_service", "securefl/protocols/secagg/server.py",
        "return hmac.compare_digest(commitment, published.commitment)", "return True"),
}  # fmt: skip


def run(program: str, library: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "threat_models" / f"{program}.py"), "--quick",
         "--out", str(out)],
        check=False, capture_output=True, text=True, timeout=280,
        env={**os.environ, "PYTHONPATH": str(library)},
    )  # fmt: skip


def copy_of_the_library(folder: Path) -> Path:
    for package in ("securefl", "accounting"):
        shutil.copytree(ROOT / package, folder / package,
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    return folder


@pytest.mark.parametrize("name", list(MUTATIONS))
def test_without_its_defence_the_program_fails(tmp_path: Path, name: str) -> None:
    program, file, old, new = MUTATIONS[name]
    library = copy_of_the_library(tmp_path / "library")
    path = library / file
    text = path.read_text()
    assert text.count(old) == 1, f"{file} changed: name the defence anew"
    path.write_text(text.replace(old, new))
    done = run(program, library, tmp_path / "out")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (tmp_path / "out" / program / "result.json").exists(), done.stderr


@pytest.mark.parametrize("program", sorted({m[0] for m in MUTATIONS.values()}))
def test_with_an_unchanged_copy_it_holds(tmp_path: Path, program: str) -> None:
    library = copy_of_the_library(tmp_path / "library")
    assert run(program, library, tmp_path / "out").returncode == 0
