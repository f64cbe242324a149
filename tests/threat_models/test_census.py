"""Every program has its defence taken out somewhere, and every client's refusals are accounted for.

Two lists that must stay complete. A program without an entry, or a method of a client's machine
that refuses something and is in no table, fails here: whoever adds one writes down where its attack
is, or why there is none.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "examples" / "threat_models"
PROGRAMS = {path.stem for path in FOLDER.glob("t[0-9][0-9]*_*.py")}

NOTHING_TO_TAKE_OUT = {
    "t01c_sum_of_two": "not defended: nothing in the library is said to stop it",
    "t19_supplied_code": "the list of approved code is the owner's and the program's own",
    "t22_metadata": "not defended: nothing in the library is said to stop it",
}


def sibling(name: str) -> ModuleType:
    """Another test module of this folder, whose tables are read."""
    spec = importlib.util.spec_from_file_location(f"census_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_program_has_its_defence_taken_out_of_the_library_or_a_reason() -> None:
    tables = [
        sibling(name).MUTATIONS
        for name in ("test_mutations", "test_noise_mutations", "test_reconstruction_programs")
    ]
    covered = {entry[0] for table in tables for entry in table.values()}
    assert covered <= PROGRAMS
    assert covered | set(NOTHING_TO_TAKE_OUT) == PROGRAMS
    assert not covered & set(NOTHING_TO_TAKE_OUT)


# -- clients other than secure aggregation's, which has a table of its own ------------------------
# attack: without the check (or with the numbers that it enforces broken) an attack succeeds there.
# refused: a test shows the refusal; no attack without it is executed.
# reason: why no input's secrecy hangs on it.

LIGHT, PAILLIER = "tests/protocols/lightsecagg", "tests/protocols/paillier"
PEER, LIARS = "tests/protocols/peersum/test_peer.py", "tests/adversary/test_lying_peers.py"
CHEATING, ROSTER = f"{LIGHT}/test_cheating_server.py", f"{LIGHT}/test_client_checks.py"
T15 = "examples/threat_models/t15_paillier.py"
USE = "its own caller's mistake: nothing has been sent"
LOCAL = "the end of a session, or a call after it"
PICKLE = "a copy would answer twice; tested in test_restart, not an attack over the wire"

CENSUS: dict[str, dict[str, tuple[str, str]]] = {
    "lightsecagg/client.py:LightSecAggClient": {
        "start": ("reason", USE),
        "set_input": ("reason", USE),
        "receive": ("refused", f"{CHEATING}::test_an_active_client_takes_no_second_notice"),
        "_on_key_roster": ("refused", f"{ROSTER}::test_a_short_roster_is_below_threshold"),
        "_check_entries": (
            "refused",
            f"{ROSTER}::test_a_substituted_key_is_noticed_by_its_signature_and_only_by_it",
        ),
        "_agree": ("refused", f"{ROSTER}::test_a_degenerate_key_names_its_owner"),
        "_on_encoded_share": (
            "refused",
            f"{ROSTER}::test_shares_of_strangers_of_oneself_and_of_the_wrong_length_are_malformed",
        ),
        "_on_share_close": ("refused", f"{ROSTER}::test_a_wrong_list_of_dealers_is_refused"),
        "_on_signed_request": (
            "attack",
            f"{CHEATING}::test_without_signatures_a_second_list_leaks_equations_although_it_is_not_"
            "opened",
        ),
        "_check_survivors": (
            "attack", f"{CHEATING}::test_two_lists_are_both_opened_exactly_if_the_bound_is_broken"
        ),
        "_on_abort": ("reason", LOCAL),
        "_live": ("reason", LOCAL),
        "__reduce__": ("reason", PICKLE),
        "__getstate__": ("reason", PICKLE),
    },
    "paillier/client.py:PaillierClient": {
        "__init__": (
            "refused",
            f"{PAILLIER}/test_hostile.py::test_a_client_refuses_other_terms_other_contexts_and_"
            "missing_deciders",
        ),
        "start": ("reason", USE),
        "receive": ("reason", "a client of this protocol is told nothing that it answers to"),
        "set_input": ("reason", USE),
        "__reduce__": ("reason", PICKLE),
    },
    "paillier/decryptor.py:_Decider": {
        "__init__": (
            "refused",
            f"{PAILLIER}/test_roles.py::test_a_decider_without_its_cohort_in_the_directory_is_"
            "refused",
        ),
        "set_input": ("reason", USE),
        "receive": (
            "refused",
            f"{PAILLIER}/test_roles.py::test_a_request_of_another_kind_is_refused_whatever_its_"
            "body_says",
        ),
        "_admit": ("attack", T15),
        "_recompute": (
            "refused", f"{PAILLIER}/test_deciders.py::test_a_checker_refuses_every_altered_request"
        ),
        "_bind": ("attack", T15),
        "_check_statements": ("attack", T15),
        "_verify_witness": (
            "refused", f"{PAILLIER}/test_deciders.py::test_one_witness_is_not_counted_twice"
        ),
        "__reduce__": ("reason", PICKLE),
    },
    "peersum/peer.py:PeerSumPeer": {
        "start": ("refused", f"{PEER}::test_no_peer_enters_a_session_twice"),
        "set_input": ("reason", USE),
        "receive": (
            "refused", f"{PEER}::test_a_second_different_message_leaves_the_first_in_force"
        ),
        "close_phase": (
            "attack",
            f"{LIARS}::test_a_second_list_is_revealed_for_exactly_where_the_quorum_bound_is_broken",
        ),
        "_on_advertise_keys": (
            "refused", f"{PEER}::test_a_public_key_of_small_order_drops_its_owner"
        ),
        "_wrong": ("reason", "a wrong sum, not an opened input"),
        "_live": ("reason", LOCAL),
        "__reduce__": ("reason", PICKLE),
        "__getstate__": ("reason", PICKLE),
    },
}  # fmt: skip


def refusing_methods(place: str) -> set[str]:
    """Methods of this class with a ``raise`` in them."""
    file, name = place.split(":")
    tree = ast.parse((ROOT / "securefl" / "protocols" / file).read_text())
    (found,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    return {
        method.name
        for method in found.body
        if isinstance(method, ast.FunctionDef)
        and any(isinstance(node, ast.Raise) for node in ast.walk(method))
    }


@pytest.mark.parametrize("place", list(CENSUS))
def test_every_method_of_a_client_that_refuses_is_in_the_census(place: str) -> None:
    missing = refusing_methods(place) - set(CENSUS[place])
    assert not missing, f"{place}: say where its attack is, or why there is none"


@pytest.mark.parametrize("place", list(CENSUS))
def test_what_the_census_names_exists(place: str) -> None:
    file, name = place.split(":")
    source = (ROOT / "securefl" / "protocols" / file).read_text()
    for method, (kind, where) in CENSUS[place].items():
        assert f"def {method}(" in source, f"{name}.{method} is gone"
        assert kind in ("attack", "refused", "reason")
        if kind != "reason":
            path, _, test = where.partition("::")
            text = (ROOT / path).read_text()
            assert not test or f"def {test}(" in text, where
