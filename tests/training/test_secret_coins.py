"""The private paths name no generator with a seed: checked in their syntax trees."""

import ast
from pathlib import Path

import pytest

import securefl.encoding
import securefl.training

ENCODING = sorted(Path(securefl.encoding.__file__).parent.glob("*.py"))
TRAINING = Path(securefl.training.__file__).parent
NAMES = ("randomness.py", "dpsgd.py", "clipped_sum.py")
PRIVATE = [*ENCODING, *(TRAINING / name for name in NAMES)]

FORBIDDEN_MODULES = {"random", "secrets", "numpy.random", "torch.random"}
# torch.manual_seed, torch.randn, tensor.normal_, opacus' _generate_noise, rng.permutation, ...
FORBIDDEN_NAMES = {
    "random",
    "default_rng",
    "RandomState",
    "Generator",
    "manual_seed",
    "seed",
    "normal",
    "normal_",
    "randn",
    "randn_like",
    "rand",
    "rand_like",
    "randint",
    "randperm",
    "bernoulli",
    "bernoulli_",
    "multinomial",
    "poisson",
    "uniform_",
    "shuffle",
    "permutation",
    "choice",
    "_generate_noise",
}


def offences(source):
    """Every import or use of a seeded generator in a module's source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{a.name}" for a in node.names} | {node.module}
            found += sorted(names & FORBIDDEN_MODULES)
            found += [a.name for a in node.names if a.name in FORBIDDEN_NAMES]
        elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_NAMES:
            found.append(node.attr)
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            found.append(node.id)
    return found


@pytest.mark.parametrize("path", PRIVATE, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_private_paths_use_no_generator_with_a_seed(path):
    assert offences(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "import numpy.random",
        "from numpy import random",
        "from torch import randn",
        "import numpy as np\nnp.random.normal(0, 1)",
        "import torch\ntorch.normal(0.0, 1.0, (3,))",
        "x.normal_()",
        "from opacus.optimizers.optimizer import _generate_noise",
    ],
)
def test_the_check_sees_what_it_is_for(source):
    assert offences(source)


def test_the_check_covers_files_that_exist():
    assert len(ENCODING) >= 4
    assert all(path.is_file() for path in PRIVATE)


def test_encoding_imports_neither_torch_nor_protocols():
    for path in ENCODING:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] not in {"torch", "opacus", "cryptography", "sklearn"}
                assert not name.startswith(("securefl.training", "securefl.protocols"))
