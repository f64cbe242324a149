"""Secrets do not outlive the session: none can be reached from a machine in DONE or ABORTED."""

from __future__ import annotations

import gc
import os
from types import FrameType, FunctionType, MethodType, ModuleType, TracebackType
from typing import Any

import numpy as np
import pytest

from securefl.errors import InvalidShare, SecureFLError
from securefl.protocols.secagg.messages import ShareDelivery
from securefl.round import ClientId

ONE = ClientId(1)


def reachable_bytes(root: object) -> bytes:
    """Everything byte-like that is reachable from an object, joined; code is not followed."""
    seen: set[int] = set()
    found: list[bytes] = []
    stack = [root]
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, type | ModuleType | FunctionType | MethodType):
            continue
        seen.add(id(item))
        if isinstance(item, bytes | bytearray):
            found.append(bytes(item))
        elif isinstance(item, memoryview | np.ndarray):
            found.append(np.asarray(item).tobytes())
        if isinstance(item, BaseException):
            stack += [item.__traceback__, item.__cause__, item.__context__]
        if isinstance(item, TracebackType):
            stack += [item.tb_frame, item.tb_next]
            continue
        if isinstance(item, FrameType):
            # The test's own frames know the secrets; those of the library must not.
            if (
                "securefl" in item.f_globals.get("__name__", "")
                and "tests" not in item.f_code.co_filename
            ):
                stack.append(item.f_locals)
            continue
        stack.extend(gc.get_referents(item))
    return b"|".join(found)


def session(secagg: Any, phase: str) -> tuple[Any, dict[str, bytes]]:
    """A session in ``phase``, and what client 1 must forget."""
    drawn: dict[ClientId, list[bytes]] = {}

    def random_of(u: ClientId) -> Any:
        def random_bytes(n: int) -> bytes:
            drawn.setdefault(u, []).append(os.urandom(n))
            return drawn[u][-1]

        return random_bytes

    bench = secagg.make(m=64, b=32, random_of=random_of)
    bench.clients[ONE].set_input(bench.vectors[ONE])
    bench.to(phase)
    secrets = dict(zip(["c_sk", "s_sk", "b"], drawn[ONE], strict=False))
    secrets["input"] = bench.vectors[ONE].values.tobytes()
    return bench, secrets


def held(machine: object, secrets: dict[str, bytes]) -> set[str]:
    blob = reachable_bytes(machine)
    return {name for name, secret in secrets.items() if secret in blob}


def received_shares(client: Any) -> dict[str, bytes]:
    return {
        "b-share": client._secrets.b_shares[0].tobytes(),
        "s-share": client._secrets.s_shares[0].tobytes(),
    }


def test_the_search_finds_secrets_while_the_session_lives(secagg: Any) -> None:
    """The control: without it the tests below could pass by looking in the wrong place."""
    bench, secrets = session(secagg, "share_keys")
    assert held(bench.clients[ONE], secrets) == {"s_sk", "b", "input"}  # c_sk sits in OpenSSL
    bench.answer()
    bench.close()
    assert held(bench.clients[ONE], secrets) == {"b", "input"}
    bench.answer()
    bench.close()
    assert held(bench.clients[ONE], secrets) == set()
    shares = received_shares(bench.clients[ONE])
    assert held(bench.clients[ONE], shares) == set(shares)


def test_nothing_is_left_after_done(secagg: Any) -> None:
    bench, secrets = session(secagg, "unmasking")
    secrets |= received_shares(bench.clients[ONE])
    bench.finish()
    assert bench.clients[ONE].phase == "done"
    assert held(bench.clients[ONE], secrets) == set()
    everybody = {str(u): v.values.tobytes() for u, v in bench.vectors.items()}
    assert held(bench.server, {**secrets, **everybody}) == set()


@pytest.mark.parametrize("phase", ["share_keys", "masked_input_collection", "unmasking"])
@pytest.mark.parametrize("how", ["abort()", "a malformed message"])
def test_nothing_is_left_after_an_abort(secagg: Any, phase: str, how: str) -> None:
    bench, secrets = session(secagg, phase)
    client = bench.clients[ONE]
    if phase == "unmasking":
        secrets |= received_shares(client)
    if how == "abort()":
        client.abort()
    else:
        with pytest.raises(SecureFLError) as caught:
            client.receive(secagg.edit(bench.inbox[ONE], body=b"?"))
        # Errors are logged and kept: they must not carry what the machine has forgotten.
        assert held(caught.value, secrets) == set()
    assert client.phase == "aborted"
    assert held(client, secrets) == set()


def test_the_server_forgets_shares_and_masked_sums_after_an_abort(secagg: Any) -> None:
    bench, _ = session(secagg, "unmasking")
    bench.answer(without=[2, 3])
    total = bench.server._total.tobytes()
    share = bench.server._unmasking.b.words[2].tobytes()
    secrets = {"total": total, "share": share}
    assert held(bench.server, secrets) == set(secrets)
    with pytest.raises(SecureFLError):
        bench.server.close_phase()
    assert held(bench.server, secrets) == set()


def test_ciphertexts_are_freed_at_delivery(secagg: Any) -> None:
    bench = secagg.make().to("share_keys")
    bench.answer()
    kept = ShareDelivery.decode
    assert bench.server._ciphertexts is not None
    bench.close()
    assert bench.server._ciphertexts is None
    first = kept(secagg.body_of(bench.inbox[ONE]), peers=4).ciphertexts[0]
    assert held(bench.server, {"ciphertext": first}) == set()


def test_an_error_of_a_content_check_carries_no_secrets(secagg: Any) -> None:
    bench, secrets = session(secagg, "share_keys")
    roster = bytearray(secagg.body_of(bench.inbox[ONE]))
    roster[4:8] = (999).to_bytes(4, "little")
    with pytest.raises(SecureFLError) as caught:
        bench.clients[ONE].receive(secagg.edit(bench.inbox[ONE], body=bytes(roster)))
    assert held(caught.value, secrets) == set()


def test_the_servers_error_about_wrong_shares_carries_no_reconstructed_secrets(
    secagg: Any,
) -> None:
    bench, secrets = session(secagg, "unmasking")
    bench.answer()
    table = bench.server._unmasking.b
    table.words[table.rows(1, table.present), 1] ^= 1  # of dealer 2; the seed of 1 is opened
    opened: list[bytes] = []
    matches = bench.server._seed_matches

    def recording(u: ClientId, b_u: bytes) -> bool:
        opened.append(b_u)
        return bool(matches(u, b_u))

    bench.server._seed_matches = recording
    seen = {"share": table.words[1, 0].tobytes(), "seed": secrets["b"]}
    assert held(bench.server, seen) == {"share"}
    with pytest.raises(InvalidShare) as caught:
        bench.server.close_phase()
    del bench.server._seed_matches
    assert secrets["b"] in opened
    assert held(caught.value, seen) == set()
    assert held(bench.server, seen) == set()
