"""`import securefl` stays light: heavy and optional packages load where they are used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "opacus",
    "sklearn",
    "flwr",
    "gmpy2",
    "phe",
    "matplotlib",
    "jinja2",
    "scipy.stats",
    "dp_accounting",
    "typer",
    "rich",
)


def modules_after(statement: str) -> set[str]:
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    return set(json.loads(result.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "import securefl",
        "import accounting",
        "import securefl.config",
        "import securefl; securefl.secure_sum({1: [1], 2: [2], 3: [3]})",
    ],
)
def test_import_loads_nothing_heavy(statement: str) -> None:
    loaded = modules_after(statement)
    assert {name for name in HEAVY if name in loaded} == set()


def test_accounting_never_loads_securefl_or_cryptography() -> None:
    loaded = modules_after("import accounting")
    assert not {name for name in loaded if name.split(".")[0] in {"securefl", "cryptography"}}


def test_every_public_name_can_be_imported() -> None:
    code = "import securefl\nfor name in securefl.__all__: getattr(securefl, name)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import securefl

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = securefl.nonsense
