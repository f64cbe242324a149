"""The reconstruction and poisoning programs: their parts here, whole runs in the long profile.

In the long profile each program runs as a reader runs it and must exit with 0; then the defence it
names is taken out of a copy of the library and it must exit with 1. ``t01c`` has no defence to take
out. Statistical expectations and their false-alarm rates stand in the programs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefl.round import Adversary

Program = Callable[[str], ModuleType]
ROOT = Path(__file__).parents[2]
NOISY, CLIP = "securefl/encoding/noisy.py", "securefl/encoding/clip.py"

seeds = st.integers(0, 2**32 - 1)


# -- gradients ------------------------------------------------------------------------------------


@given(seed=seeds, hidden=st.integers(2, 20))
@settings(max_examples=10, deadline=None)
def test_record_gradients_equal_those_of_torch(program: Program, seed: int, hidden: int) -> None:
    import torch

    gradients, data = program("attackers.gradients"), program("kit.data")
    net = gradients.fresh_net(hidden, seed)
    images = data.victims(3)
    parts = [torch.tensor(a, requires_grad=True) for a in net[:4]]
    W1, b1, W2, b2 = parts
    x, y = torch.tensor(images.x), torch.tensor(images.y)
    for k, found in enumerate(gradients.record_gradients(net, images.x, images.y)):
        logits = torch.relu(x[k : k + 1] @ W1.T + b1) @ W2.T + b2
        loss = torch.nn.functional.cross_entropy(logits, y[k : k + 1])
        wanted = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parts)])
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-12)


@given(seed=seeds, bins=st.integers(2, 40))
@settings(max_examples=10, deadline=None)
def test_gradients_of_the_window_equal_those_of_hardtanh(
    program: Program, seed: int, bins: int
) -> None:
    import torch

    gradients, data = program("attackers.gradients"), program("kit.data")
    net = program("t10_imprint").imprint(bins, seed)
    images = data.victims(3)
    parts = [torch.tensor(a, requires_grad=True) for a in net[:4]]
    W1, b1, W2, b2 = parts
    before = torch.tensor(images.x) @ W1.T + b1
    logits = torch.nn.functional.hardtanh(before, 0.0, net.width) @ W2.T + b2
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(images.y))
    wanted = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parts)])
    found = gradients.mean_gradient(net, images.x, images.y)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-12)


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_the_mean_gradient_is_the_mean_of_the_records(program: Program, seed: int) -> None:
    gradients, data = program("attackers.gradients"), program("kit.data")
    net, images = gradients.fresh_net(7, seed), data.victims(4)
    rows = gradients.record_gradients(net, images.x, images.y)
    together = gradients.mean_gradient(net, images.x, images.y)
    np.testing.assert_allclose(rows.mean(axis=0), together, atol=1e-12)
    assert rows.shape[1] == gradients.dimension(7)


def test_every_record_falls_into_exactly_one_bin(program: Program) -> None:
    gradients, data = program("attackers.gradients"), program("kit.data")
    net = program("t10_imprint").imprint(50, 0)
    known = data.public()
    _, gb = zip(
        *(gradients.first_layer(g, 50) for g in
          gradients.record_gradients(net, known.x[:200], known.y[:200])),
        strict=True,
    )  # fmt: skip
    hit = np.abs(np.array(gb)) > 1e-6
    # Records at an end of an interval (the quantiles are public records themselves) have none.
    assert hit.sum(axis=1).max() == 1
    assert hit.any(axis=1).mean() > 0.9


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_a_row_that_one_record_activates_divides_to_that_record(
    program: Program, seed: int
) -> None:
    gradients, data = program("attackers.gradients"), program("kit.data")
    net, images = gradients.fresh_net(256, seed), data.victims(4)
    rows = gradients.record_gradients(net, images.x, images.y)
    active = np.array([gradients.first_layer(g, 256)[1] for g in rows]) != 0
    alone = active.sum(axis=0) == 1
    gW, gb = gradients.first_layer(rows.sum(axis=0), 256)
    owner = active.argmax(axis=0)
    for k in np.flatnonzero(alone):
        np.testing.assert_allclose(gW[k] / gb[k], images.x[owner[k]], atol=1e-7)


def test_the_rule_without_an_oracle_takes_images_and_no_blends(program: Program) -> None:
    gradients, data = program("attackers.gradients"), program("kit.data")
    x = data.victims().x
    assert gradients.looks_like_a_digit(x).all()
    assert not gradients.looks_like_a_digit(0.7 * x[:-1] + 0.3 * x[1:]).any()
    assert not gradients.looks_like_a_digit(x - 0.5).any()
    assert len(gradients.distinct(np.concatenate([x, x, x[:3] + 1e-4]))) == len(x)


# -- codec and session ----------------------------------------------------------------------------


@pytest.mark.parametrize("z", [0.0, 1.0])
@pytest.mark.parametrize("adversary", list(Adversary))
def test_a_session_opens_what_the_ring_sum_opens(
    program: Program, tmp_path: Path, z: float, adversary: Adversary
) -> None:
    updates_module, rounds = program("kit.updates"), program("kit.rounds")
    n, d, seed = 5, 40, bytes(range(32))
    codec = updates_module.noisy_codec(d, n, z) if z else updates_module.plain_codec(d, n)
    rng = np.random.default_rng(3)
    encoded = {u: codec.encode(rng.normal(size=d), round_seed=seed) for u in range(1, n + 1)}
    recorded = rounds.secure_round(encoded, tmp_path / "t.bin", adversary=adversary)
    opened = updates_module.Opened(recorded=recorded, codec=codec, seed=seed)
    wanted = updates_module.release(codec, encoded.values(), seed=seed)
    assert np.array_equal(opened.total(), wanted)
    rest = updates_module.release(codec, list(encoded.values())[1:], seed=seed)
    assert np.array_equal(opened.total(without={1: encoded[1]}), rest)


@given(z=st.floats(1e-4, 4.0), clients=st.integers(2, 40), d=st.integers(2, 5000))
@settings(max_examples=30, deadline=None)
def test_a_noisy_codec_is_fine_beside_its_noise_and_keeps_its_z(
    program: Program, z: float, clients: int, d: int
) -> None:
    spec = program("kit.updates").noisy_codec(d, clients, z).spec
    step_over_noise = clients**-0.5 / spec.share_std
    assert step_over_noise < 1 / (200 * clients**0.5)
    assert spec.share_std * clients**0.5 / spec.l2 == pytest.approx(z, rel=1e-3)


def test_the_claim_of_the_codec_is_not_below_the_gaussian_one(program: Program) -> None:
    updates_module = program("kit.updates")
    for z in (0.5, 1.0, 4.0):
        told = updates_module.claim(updates_module.noisy_codec(65, 4, z), 4)
        exact = updates_module.client_claim(z)
        assert exact.value <= told.value <= 1.15 * exact.value + 0.1
        assert (told.delta, told.adjacency) == (exact.delta, exact.adjacency)


# -- poisoning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [0, 1, 12345])
def test_a_shift_in_the_ring_moves_every_entry_alike(program: Program, by: int) -> None:
    outside = program("t13b_outside_the_range")
    codec = outside._codec(spare=2)
    vector = codec.encode(np.full(outside.DIMENSION, 0.01))
    moved = outside._shifted(vector, by)
    assert set((moved.centred() - vector.centred()).tolist()) == {by}


def test_a_poisoned_vector_stays_within_what_honest_clients_can_reach(program: Program) -> None:
    poisoning, updates_module = program("t13_poisoning"), program("kit.updates")
    codec = updates_module.plain_codec(8, 4, clip_norm=poisoning.CLIP)
    update = np.array([1.9, -0.5, 0.1, 0, 0, 0, 0, 0])
    lie = poisoning._encode(codec, update, poisoning.Lie.SCALED).centred()
    assert np.abs(lie).max() <= 4 * codec.spec.resolution
    assert lie[2] == -50 * codec.encode(update).centred()[2]


def test_the_program_on_the_range_holds(program: Program, tmp_path: Path) -> None:
    outside = program("t13b_outside_the_range")
    assert outside.DEMO.main(["--quick", "--out", str(tmp_path)]) == 0


# -- whole programs -------------------------------------------------------------------------------

NO_NOISE = (
    NOISY,
    "        return draw(noise_table(spec.mechanism, spec.share_ticks), spec.padded, "
    "random_bytes)\n",
    "        return np.zeros(spec.padded, dtype=np.int64)\n",
)
NO_MASKS = (
    "securefl/protocols/secagg/masks.py",
    "    add_mask(words, self_key)\n    for v, key in pair_keys.items():\n",
    "    for v, key in ():\n",
)
MUTATIONS = {
    "t01, masks": ("t01_single_update", (NO_MASKS,)),
    "t01b, masks": ("t01b_iterative_inversion", (NO_MASKS,)),
    "t02, noise": ("t02_sum_leaks_records", (NO_NOISE,)),
    "t02b, noise": ("t02b_dictionary", (NO_NOISE,)),
    "t02c, noise": ("t02c_worst_case", (NO_NOISE,)),
    "t03, noise": ("t03_reconstruction_vs_epsilon", (NO_NOISE,)),
    "t09, the client's own digest": ("t09_model_inconsistency", (
        ("securefl/protocols/policy.py",
         "    if not hmac.compare_digest(context_digest, config.context_digest):\n",
         "    if not context_digest:\n"),
    )),
    "t09, the digest in every key": ("t09_model_inconsistency", (
        ("securefl/round.py",
         "                self.context_digest,\n                self.server_nonce,\n",
         "                bytes(32),\n                self.server_nonce,\n"),
    )),
    "t10, noise": ("t10_imprint", (NO_NOISE,)),
    "t13, the norm of an honest client": ("t13_poisoning", (
        (CLIP, "    if norm <= clip_norm:\n", "    if norm >= 0:\n"),
        ("securefl/encoding/fixed_point.py",
         "    if values.size and not float(np.max(np.abs(values))) <= clip_norm:\n",
         "    if values.size < 0:\n"),
    )),
    "t13b, the reach of a sum": ("t13b_outside_the_range", (
        ("securefl/encoding/codec.py",
         "        _check_reachable(signed, -limit, limit, survivors)\n", ""),
    )),
}  # fmt: skip
PROGRAMS = sorted({name for name, _ in MUTATIONS.values()} | {"t01c_sum_of_two"})


def run(name: str, out: Path, *more: str, library: Path = ROOT) -> subprocess.CompletedProcess[str]:
    script = ROOT / "examples" / "threat_models" / f"{name}.py"
    return subprocess.run(
        [sys.executable, str(script), "--out", str(out), *more],
        check=False, capture_output=True, text=True, timeout=280,
        env={**os.environ, "PYTHONPATH": str(library)},
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_holds_with_all_its_seeds(name: str, tmp_path: Path) -> None:
    done = run(name, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_quick_program_holds_on_other_seeds(name: str, tmp_path: Path) -> None:
    done = run(name, tmp_path, "--quick", "--seeds", "5", "6", "7")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize("mutation", list(MUTATIONS))
def test_without_its_defence_the_program_fails(mutation: str, tmp_path: Path) -> None:
    name, edits = MUTATIONS[mutation]
    library = tmp_path / "library"
    for package in ("securefl", "accounting"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, library / package, ignore=unwanted)
    for file, old, new in edits:
        text = (library / file).read_text()
        assert text.count(old) == 1, f"{file} changed: name the defence anew"
        (library / file).write_text(text.replace(old, new))
    done = run(name, tmp_path / "out", "--quick", library=library)
    assert done.returncode == 1, done.stdout + done.stderr
    result = tmp_path / "out" / name / "result.json"
    assert result.exists(), done.stderr
