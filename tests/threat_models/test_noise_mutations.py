"""A named defence is taken out of a copy of the library: the program's negative control fails.

As ``test_mutations``, for the programs on noise, audits and Paillier.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
NOISY, SPEC = "securefl/encoding/noisy.py", "securefl/encoding/noisy_spec.py"
DECIDER = "securefl/protocols/paillier/decryptor.py"
CHECKING = "securefl/protocols/paillier/checking.py"
SHARE = (
    NOISY,
    "        return draw(noise_table(spec.mechanism, spec.share_ticks), spec.padded, "
    "random_bytes)\n",
    "        return np.zeros(spec.padded, dtype=np.int64)\n",
)
DRAWN = "        np.subtract(_places(table, words, random_bytes), table.bound, out=piece)\n"
MUTATIONS = {
    "colluders' shares count": ("t07_silent_noise_shares", [
        (SPEC, "honest = survivors - colluding\n", "honest = survivors\n")]),
    "noise planned for the wrong number": ("t07_silent_noise_shares", [
        ("securefl/encoding/noise_plan.py", "deviation * deviation / self.honest_shares",
         "deviation * deviation / self.max_clients")]),
    "noise, membership": ("t11_membership", [SHARE]),
    "noise, one run": ("t11b_one_run", [SHARE]),
    "noise, aggregator": ("t12_audit", [SHARE]),
    "fresh noise after fork": ("t12_audit", [
        ("securefl/primitives/prg.py", "        if self._pid != os.getpid():\n",
         "        if self._pid < 0:\n")]),
    "the list's length": ("t15_paillier", [
        (DECIDER, "if len(ids) < max(self._policy.min_clients, self._config.n_min):",
         "if len(ids) < 1:")]),
    "witnesses' statements": ("t15_paillier", [
        (DECIDER, "        product, agreed = product_digest(request.block), set()\n",
         "        return\n        product, agreed = product_digest(request.block), set()\n")]),
    "one list per session": ("t15_paillier", [
        (DECIDER, "if not self._book.bind(self._end.config_digest, self._config.round_id, digest):",
         "if not digest:")]),
    "signature and proof": ("t15_paillier", [
        (CHECKING, "            self._directory.verify(frame.sender, frame.signature, statement)\n",
         "            pass\n"),
        (CHECKING, "if not verify_knowledge(", "if verify_knowledge is None and not ("),
        ("securefl/protocols/endpoints.py",
         "            self.directory.verify(u, frame.signature, statement)\n",
         "            pass\n"),
    ]),
    "one declared exponent": ("t15b_phe_exponent", [
        ("securefl/primitives/phe_interop.py", "    if not found <= {exponent}:\n",
         "    if not found:\n")]),
    "a draw that does not follow its size": ("t18_noise_timing", [
        # 54,000 steps on average for 4096 draws, 15 % of them by their size.
        ("securefl/encoding/noise.py", DRAWN,
         DRAWN + "        for _ in range(max(0, int(np.abs(piece).sum()) // 5 - 600_000)):\n"
         "            pass\n")]),
    "integer noise": ("t17_float_noise", [
        SHARE,
        (NOISY, "        mean = self._rotation.invert(steps, round_seed=round_seed)\n",
         "        mean = self._rotation.invert(steps, round_seed=round_seed)\n"
         "        mean = mean + np.random.default_rng().standard_normal(len(mean))\n")]),
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
    program, changes = MUTATIONS[name]
    library = copy_of_the_library(tmp_path / "library")
    for file, old, new in changes:
        path = library / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} changed: name the defence anew"
        path.write_text(text.replace(old, new))
    done = run(program, library, tmp_path / "out")
    assert done.returncode == 1, done.stdout + done.stderr
    record = json.loads((tmp_path / "out" / program / "result.json").read_text())
    failed = {r["setting"] for r in record["results"] if not r["passed"]}
    assert "defended" in failed, done.stdout


@pytest.mark.parametrize("program", sorted({m[0] for m in MUTATIONS.values()}))
def test_with_an_unchanged_copy_it_holds(tmp_path: Path, program: str) -> None:
    library = copy_of_the_library(tmp_path / "library")
    done = run(program, library, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
