"""`securefl plan`: JSON for programs, sentences for people, one message and exit code 2 else."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from typer.testing import CliRunner

from securefl.cli import app
from securefl.errors import ConfigurationError

DOCS = Path(__file__).parents[1] / "docs"
FIELDS = [
    "graph",
    "degree",
    "threshold",
    "corrupt",
    "dropped",
    "min_honest",
    "modulus_bits",
    "upload_bytes",
    "download_bytes",
    "expansion",
]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "securefl.cli", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def plan(clients: int, corrupt: str, dropout: str, adversary: str, *more: str):
    given = ("--clients", str(clients), "--corrupt", corrupt, "--dropout", dropout)
    return run("plan", *given, "--adversary", adversary, *more)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1000, "0.05", "0.33", "semi-honest"), ("harary", 72, 24, 50, 330, 620)),
        ((1000, "5%", "1/20", "active"), ("harary", 52, 37, 50, 50, 18)),
        ((100, "33", "33", "semi-honest"), ("harary", 68, 34, 33, 33, 34)),
    ],
)
def test_the_fields_of_the_worked_rows(
    given: tuple[int, str, str, str], expected: tuple[object, ...]
) -> None:
    done = plan(*given, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == FIELDS
    assert tuple(found.values())[:6] == expected


ROWS = {  # gamma, delta, adversary -> degree, threshold for 100 and for 1000 clients
    ("0.05", "0.10", "semi-honest"): ((16, 6), (36, 19)),
    ("0.05", "0.33", "semi-honest"): ((28, 6), (72, 24)),
    ("0.2", "0.1", "semi-honest"): ((32, 21), (68, 44)),
    ("0.33", "0.33", "semi-honest"): ((68, 34), (286, 150)),
    ("0.05", "0.05", "active"): ((16, 11), (52, 37)),
    ("0.1", "0.1", "active"): ((32, 22), (96, 67)),
    ("0.05", "0.33", "active"): ((72, 39), (398, 223)),
}


@pytest.mark.parametrize("rates", list(ROWS))
def test_every_worked_row_comes_out_of_the_command(rates: tuple[str, str, str]) -> None:
    gamma, delta, adversary = rates
    for n, (degree, threshold) in zip((100, 1000), ROWS[rates], strict=True):
        words = ["plan", "--clients", str(n), "--corrupt", gamma, "--dropout", delta]
        done = CliRunner().invoke(app, [*words, "--adversary", adversary, "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        A, D = math.ceil(Fraction(gamma) * n), math.ceil(Fraction(delta) * n)
        assert (found["degree"], found["threshold"]) == (degree, threshold)
        assert (found["corrupt"], found["dropped"]) == (A, D)


def test_rates_are_rounded_up_and_numbers_taken_as_they_are() -> None:
    found = json.loads(plan(10, "5%", "0.11", "semi-honest", "--json").stdout)
    assert (found["corrupt"], found["dropped"]) == (1, 2)
    found = json.loads(plan(10, "1", "1/3", "semi-honest", "--json").stdout)
    assert (found["corrupt"], found["dropped"]) == (1, 4)


def test_bytes_follow_from_length_and_input_bits() -> None:
    more = ("--length", str(2**20), "--input-bits", "16", "--graph", "complete", "--json")
    found = json.loads(plan(1024, "1", "1", "semi-honest", *more).stdout)
    assert (found["modulus_bits"], found["degree"]) == (26, 1023)
    assert round(found["expansion"], 4) == 1.7386
    assert found["upload_bytes"] == 340 + 92 * 1023 + 26 * 2**17 + 128
    assert found["download_bytes"] == 188 + 68 * 1024 + 72 * 1023 + 2 * 128


def test_demands_change_the_plan() -> None:
    low = json.loads(plan(1000, "0.05", "0.1", "semi-honest", "--json").stdout)
    more = ("--sigma", "80", "--eta", "40", "--json")
    high = json.loads(plan(1000, "0.05", "0.1", "semi-honest", *more).stdout)
    assert low["degree"] < high["degree"]
    assert low["threshold"] < high["threshold"]


def test_the_words_are_those_of_the_documentation() -> None:
    page = (DOCS / "how-to" / "plan-a-round.md").read_text("utf-8")
    said = re.findall(r"^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    *commands, fails = re.findall(r"^\$ securefl (.*)$", page, re.MULTILINE)
    assert [run(*command.split()).stdout for command in commands] == said
    (error,) = re.findall(r"^error: .*\n", page, re.MULTILINE)
    refused = run(*fails.split())
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", error)
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (printed,) = re.findall(r"# (\d.*)$", code, re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == printed


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((100, "0", "0.1", "active"), "say --assume-no-corruption"),
        ((100, "none", "0.1", "active"), "--corrupt takes a whole number of clients, or a rate"),
        ((100, "1", "1.5", "active"), "--dropout takes"),
        ((100, "1", "-0.1", "active"), "--dropout takes"),
        ((100, "1/0", "0.1", "active"), "--corrupt takes"),
        ((100, "1.0", "0", "semi-honest"), "honest inputs would be left"),
        ((100, "200", "0", "semi-honest"), "honest inputs would be left"),
        ((2, "1", "0", "semi-honest"), "3 to 1048576 clients"),
        ((100, "1", "0", "malicious"), "--adversary"),
        ((100, "1", "0", "active", "--input-bits", "60"), "at most 57 bits per entry"),
        ((100, "1", "0", "active", "--length", "0"), "at least 1 entry"),
        ((100, "1", "0", "active", "--length", "9999999999"), "do not fit one frame"),
    ],
)
def test_bad_demands_are_one_clear_message_and_exit_code_2(
    given: tuple[int, str, str, str], words: str
) -> None:
    done = plan(*given)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_no_corruption_is_planned_only_when_said() -> None:
    done = plan(50, "0", "5", "semi-honest", "--assume-no-corruption", "--json")
    assert json.loads(done.stdout)["corrupt"] == 0


def test_planning_loads_neither_training_nor_statistics() -> None:
    code = (
        "import sys; sys.argv = ['securefl', 'plan', '--clients', '9', '--corrupt', '1',"
        " '--dropout', '1', '--adversary', 'active']\n"
        "from securefl.cli import app\n"
        "app(standalone_mode=False)\n"
        "print({'torch', 'opacus', 'sklearn', 'scipy', 'accounting'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_peersum_is_planned_without_a_server_and_its_bytes_are_those_of_its_sizes() -> None:
    given = (10, "1", "30%", "semi-honest", "--protocol", "peersum", "--length", "1000", "--json")
    done = plan(*given)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = {"protocol": "peersum", "quorum": 7, "threshold": 7, "corrupt": 1, "dropped": 3}
    assert {key: found[key] for key in expected} == expected
    assert (found["min_honest"], found["modulus"]) == (6, 2**31 - 1)
    # Nine frames of each of the five messages, as docs/reference/wire-format.md counts them.
    bodies = 32 + (4000 + 16) + 2 + (2 + 64) + (2 * 2 + 64 * 10 + 4000 + 16)
    assert found["upload_bytes"] == 9 * (5 * (60 + 64) + bodies)
    assert found["expansion"] == (found["upload_bytes"] + found["download_bytes"]) / 2000


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("10", "3", "4"), "only 6 peers are left to sign"),
        (("10", "1", "9"), "t must be at least 2"),
        (("10", "1", "1", "--input-bits", "28"), "use 1 to 27 bits"),
        (("10", "1", "1", "--length", "0"), "at least 1 entry"),
        (("10", "1", "1", "--length", str(2**30)), "do not fit"),
        (("2", "1", "0"), "3 to 1048576 peers"),
    ],
)
def test_a_sum_among_peers_that_cannot_be_is_refused(given: tuple[str, ...], words: str) -> None:
    clients, corrupt, dropout, *more = given
    command = ["plan", "--clients", clients, "--corrupt", corrupt, "--dropout", dropout]
    command += ["--adversary", "active", "--protocol", "peersum", *more]
    done = CliRunner().invoke(app, command)
    assert done.exit_code != 0
    assert isinstance(done.exception, ConfigurationError) or words in done.output
    assert words in f"{done.output}{done.exception}"


def test_lightsecagg_is_planned_and_compared() -> None:
    given = (100, "5%", "50%", "semi-honest", "--protocol", "lightsecagg", "--length", "50000")
    slow = json.loads(plan(*given, "--bandwidth", "10", "--json").stdout)
    expected = {"protocol": "lightsecagg", "U": 50, "T": 5, "share_length": 1112}
    assert {name: slow[name] for name in expected} == expected
    assert slow["faster"] == "secagg"
    assert slow["faster_from_bandwidth"] > 1e7
    words = plan(*given, "--bandwidth", "10000").stdout
    assert "LightSecAgg finishes before SecAgg+" in words
    assert "any U=50 answers open the sum" in words
    assert words.endswith("differential privacy.\n")
    refused = plan(*given, "--input-bits", "30")
    assert refused.returncode == 2
    assert "use 1 to 24 bits" in refused.stderr
