"""The machines over TCP and TLS: whole processes once, and the two loops at their edges.

All sockets are on 127.0.0.1, and only processes that a test started are ended. Two tests wait
until a phase's time is up: 3 seconds, in which seven clients need about a tenth of a second.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import os
import re
import signal
import ssl
import subprocess
import sys
import tokenize
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from securefl import SecAggClient, SecAggParams, ThreatModel
from securefl.errors import BelowThreshold, ConfigurationError
from securefl.primitives.identities import Roster, create_identity, load_identity
from securefl.round import Adversary, ClientId, Cohort, RoundConfig, RoundId

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "embed_asyncio"
EIGHT = range(1, 9)


@pytest.fixture(scope="session")
def parties(example: Callable[[str], ModuleType]) -> ModuleType:
    return example("parties")


@pytest.fixture(scope="session")
def folder(example: Callable[[str], ModuleType], tmp_path_factory: Any) -> Path:
    """Keys, certificates and rosters of a server and eight clients."""
    return provisioned(example("run"), tmp_path_factory.mktemp("federation"))


def provisioned(run: ModuleType, path: Path) -> Path:
    run.provision([path / str(u) for u in EIGHT], path / "server")
    return path


# -- processes ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    code: int
    printed: str
    errors: str
    left_over: list[str]
    somebody_lives: bool


@pytest.fixture(scope="session")
def ended(tmp_path_factory: Any) -> Iterator[Ended]:
    """`python run.py` as a user starts it, in a process group of its own."""
    temporary = tmp_path_factory.mktemp("temporary")
    process = subprocess.Popen(
        [sys.executable, "-W", "error", FOLDER / "run.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,
    )
    try:
        printed, errors = process.communicate(timeout=240)
        try:
            os.killpg(process.pid, 0)
            alive = True
        except ProcessLookupError:
            alive = False
        yield Ended(
            code=process.returncode,
            printed=printed,
            errors=errors,
            left_over=[path.name for path in temporary.iterdir()],
            somebody_lives=alive,
        )
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_two_of_eight_processes_are_killed_in_the_round_and_the_sum_is_exact(ended: Ended) -> None:
    assert ended.code == 0, ended.errors
    # The one that was killed after its masked input is in the sum, the other is not.
    assert "exact sum over (1, 2, 4, 5, 6, 7, 8)\n" in ended.printed
    (codes,) = re.findall(r"clients ended with (.*)", ended.printed)
    killed = {3: -signal.SIGKILL, 7: -signal.SIGKILL}
    assert ast.literal_eval(codes) == {u: killed.get(u, 0) for u in EIGHT}


def test_the_killed_ones_are_missing_from_the_phase_that_they_died_in(ended: Ended) -> None:
    heard = re.findall(r"^server: (\w+) (\d)$", ended.printed, re.MULTILINE)
    by_phase = {phase: {int(u) for p, u in heard if p == phase} for phase, _ in heard}
    alive = set(EIGHT) - {3, 7}
    assert by_phase == {
        "advertise_keys": {*EIGHT},
        "share_keys": {*EIGHT},
        "masked_input_collection": {*alive, 7},
        "consistency_check": alive,
        "unmasking": alive,
    }


def test_everything_ends_by_itself_and_no_file_stays(ended: Ended) -> None:
    assert not ended.somebody_lives
    assert ended.left_over == []
    assert ended.errors == ""


def lines_of_code(source: str) -> int:
    """Lines with a token that is no comment, outside of docstrings."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        kinds = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            documented.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in {*silent, tokenize.ENDMARKER}:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - documented)


def test_the_whole_example_has_less_than_150_lines_of_code() -> None:
    assert lines_of_code('"""Text."""\n\n# why\nx = (\n    1\n)  # so\n') == 3
    sources = [path.read_text("utf-8") for path in FOLDER.rglob("*.py")]
    assert len(sources) == 2
    count = sum(map(lines_of_code, sources))
    assert 100 < count < 150
    page = (ROOT / "docs" / "how-to" / "embed.md").read_text("utf-8")
    assert f"in {count} lines of code" in page


# -- the two loops in one process -----------------------------------------------------------------

Log = list[tuple[Any, ...]]


async def with_server(
    parties: ModuleType, folder: Path, act: Callable[[int, Log], Awaitable[Any]]
) -> tuple[Any, Any, Log]:
    """A server and whatever ``act`` does with its port: both results (or errors), and the log."""
    log: Log = []
    listening = asyncio.Event()

    def note(*what: Any) -> None:
        log.append(what)
        listening.set()

    serving = asyncio.create_task(parties.server(folder / "server", note))
    await listening.wait()
    done = await act(log[0][1], log)
    (result,) = await asyncio.gather(serving, return_exceptions=True)
    return result, done, log


def clients(parties: ModuleType, folder: Path, port: int, who: Any) -> Any:
    """These clients' rounds: how each ended, or its error."""
    rounds = [parties.client(folder / str(u), port, 0.0) for u in who]
    return asyncio.gather(*rounds, return_exceptions=True)


async def connect(
    parties: ModuleType, home: Path, port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    secure = parties.tls(ssl.Purpose.SERVER_AUTH, home)
    return await asyncio.open_connection("127.0.0.1", port, ssl=secure, server_hostname="server")


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def plain_sum(parties: ModuleType, who: Any) -> list[int]:
    """In Python's integers."""
    return [
        sum(x) for x in zip(*(parties.local_input(u).values.tolist() for u in who), strict=True)
    ]


def machine_of(parties: ModuleType, home: Path, config: RoundConfig, u: int) -> SecAggClient:
    return SecAggClient(
        ClientId(u),
        config,
        context_digest=parties.CONTEXT,
        policy=parties.POLICY,
        identity=load_identity(home / "identity.pem"),
        directory=Roster.load(home / "roster.json").directory(),
    )


def test_with_everybody_there_the_sum_is_that_of_python_integers(
    parties: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = []
    really = asyncio.start_server

    async def start_server(greet: Any, host: Any, port: Any, **options: Any) -> Any:
        hosts.append(host)
        return await really(greet, host, port, **options)

    monkeypatch.setattr(asyncio, "start_server", start_server)
    result, phases, _ = asyncio.run(
        with_server(parties, folder, lambda port, _: clients(parties, folder, port, EIGHT))
    )
    assert phases == ["done"] * 8
    assert result.survivors == tuple(EIGHT)
    assert result.vector.values.tolist() == plain_sum(parties, EIGHT)
    assert hosts == ["127.0.0.1"]


def test_a_silent_client_is_left_out_when_its_time_is_up(
    parties: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parties, "SECONDS", 3.0)

    async def act(port: int, _: Log) -> Any:
        reader, writer = await connect(parties, folder / "8", port)
        config = RoundConfig.decode(await parties.read(reader))
        machine = machine_of(parties, folder / "8", config, 8)
        parties.send(machine.start(), {0xFFFFFFFF: writer})  # and then nothing
        ended = await clients(parties, folder, port, range(1, 8))
        await hang_up(writer)
        return ended

    result, phases, log = asyncio.run(with_server(parties, folder, act))
    assert phases == ["done"] * 7
    assert result.survivors == tuple(range(1, 8))
    assert result.vector.values.tolist() == plain_sum(parties, range(1, 8))
    assert ("share_keys", "without", 8, "TimeoutError()") in log


def test_below_the_threshold_there_is_no_sum_and_the_clients_are_told(
    parties: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parties, "SECONDS", 3.0)
    result, phases, _ = asyncio.run(
        with_server(parties, folder, lambda port, _: clients(parties, folder, port, range(1, 6)))
    )
    assert isinstance(result, BelowThreshold)
    assert (result.needed, result.had, result.phase) == (6, 5, "advertise_keys")
    assert phases == ["aborted"] * 5


def test_a_frame_in_anothers_name_costs_its_sender_the_round_and_nobody_else(
    parties: ModuleType, folder: Path
) -> None:
    async def act(port: int, log: Log) -> Any:
        reader, writer = await connect(parties, folder / "2", port)
        config = RoundConfig.decode(await parties.read(reader))
        other = machine_of(parties, folder / "5", config, 5)  # its key was stolen
        parties.send(other.start(), {0xFFFFFFFF: writer})
        while len(log) < 2:  # until the server has dealt with it
            await asyncio.sleep(0.01)
        ended = await clients(parties, folder, port, [u for u in EIGHT if u != 2])
        await hang_up(writer)
        return ended

    result, phases, log = asyncio.run(with_server(parties, folder, act))
    assert log[1][:3] == ("advertise_keys", "without", 2)
    assert "UnexpectedMessage" in log[1][3]
    assert phases == ["done"] * 7
    assert result.vector.values.tolist() == plain_sum(parties, [u for u in EIGHT if u != 2])


def test_a_second_connection_of_one_client_is_closed_and_the_first_goes_on(
    parties: ModuleType, folder: Path
) -> None:
    async def act(port: int, _: Log) -> Any:
        reader, writer = await connect(parties, folder / "4", port)
        config = RoundConfig.decode(await parties.read(reader))
        second, closed = await connect(parties, folder / "4", port)
        with pytest.raises(EOFError):
            await parties.read(second)
        await hang_up(closed)
        machine = machine_of(parties, folder / "4", config, 4)
        others = asyncio.ensure_future(clients(parties, folder, port, [u for u in EIGHT if u != 4]))
        parties.send(machine.start(), {0xFFFFFFFF: writer})
        for _ in range(4):
            out = [*machine.receive(await parties.read(reader))]
            if machine.wants_input:
                out += machine.set_input(parties.local_input(4))
            parties.send(out, {0xFFFFFFFF: writer})
        ended = await others
        await hang_up(writer)
        return ended

    result, phases, _ = asyncio.run(with_server(parties, folder, act))
    assert phases == ["done"] * 7
    assert result.survivors == tuple(EIGHT)


def test_a_frame_announced_too_long_costs_its_sender_the_round(
    parties: ModuleType, folder: Path
) -> None:
    async def act(port: int, _: Log) -> Any:
        reader, writer = await connect(parties, folder / "6", port)
        await parties.read(reader)
        writer.write((0xFFFFFFFF).to_bytes(4, "little"))
        ended = await clients(parties, folder, port, [u for u in EIGHT if u != 6])
        await hang_up(writer)
        return ended

    result, phases, log = asyncio.run(with_server(parties, folder, act))
    assert phases == ["done"] * 7
    assert 6 not in result.survivors
    (said,) = [what[3] for what in log if what[:3] == ("advertise_keys", "without", 6)]
    assert "4294967295 bytes was announced" in said


def test_who_is_not_in_the_lists_of_certificates_gets_no_connection(
    parties: ModuleType, folder: Path, example: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    others = provisioned(example("run"), tmp_path)
    # A third one trusts the server, and the server does not know it.
    stranger = tmp_path / "stranger"
    create_identity(stranger, name="stranger")
    example("run").certificate(stranger)
    (stranger / "trusted.pem").write_bytes((folder / "1" / "trusted.pem").read_bytes())

    async def act(port: int, _: Log) -> Any:
        (of_another,) = await clients(parties, others, port, [1])
        reader, writer = await connect(parties, stranger, port)
        with pytest.raises((EOFError, OSError)):
            await parties.read(reader)
        await hang_up(writer)
        return of_another, await clients(parties, folder, port, EIGHT)

    result, (of_another, phases), _ = asyncio.run(with_server(parties, folder, act))
    assert isinstance(of_another, ssl.SSLCertVerificationError)
    assert phases == ["done"] * 8
    assert result.survivors == tuple(EIGHT)


# -- what a client refuses ------------------------------------------------------------------------


def proposal(parties: ModuleType, **changes: Any) -> RoundConfig:
    """What the example's server proposes, changed."""
    threat = changes.pop("threat", parties.THREAT)
    n = changes.pop("n", 8)
    config = SecAggParams.complete(n, threat, n_min=changes.pop("n_min", None)).config(
        round_id=RoundId(1),
        cohort=Cohort.of(range(1, n + 1)),
        m=parties.M,
        b=parties.B,
        context_digest=parties.CONTEXT,
        server_nonce=bytes(32),
    )
    return replace(config, **changes)


def weak(adversary: Adversary, corrupt: int, dropped: int) -> ThreatModel:
    return ThreatModel(
        adversary=adversary,
        corrupt=corrupt,
        dropped=dropped,
        assume_no_corruption=corrupt == 0,
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"threat": weak(Adversary.SEMI_HONEST, 1, 2)}, "against an ACTIVE server"),
        ({"threat": weak(Adversary.ACTIVE, 0, 2)}, "A=0"),
        ({"n": 10, "threat": weak(Adversary.ACTIVE, 2, 2)}, "have no identity in the directory"),
        ({"n": 5, "threat": weak(Adversary.ACTIVE, 1, 1)}, "at least 6 inputs"),
        ({"context_digest": sha256(b"salaries").digest()}, "another context"),
    ],
)
def test_a_client_sends_nothing_to_a_server_that_proposes_less(
    parties: ModuleType, folder: Path, changes: dict[str, Any], complaint: str
) -> None:
    heard: list[bytes] = []

    async def meet() -> None:
        over = asyncio.Event()

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            frame = proposal(parties, **changes).encode()
            writer.write(len(frame).to_bytes(4, "little") + frame)
            heard.append(await reader.read(1))  # nothing, because the client hangs up
            await hang_up(writer)
            over.set()

        secure = parties.tls(ssl.Purpose.CLIENT_AUTH, folder / "server")
        async with await asyncio.start_server(greet, "127.0.0.1", 0, ssl=secure) as lying:
            port = lying.sockets[0].getsockname()[1]
            with pytest.raises(ConfigurationError, match=complaint):
                await parties.client(folder / "1", port, 0.0)
            await over.wait()

    asyncio.run(meet())
    assert heard == [b""]


def test_a_client_whose_key_is_not_in_its_roster_says_so(
    parties: ModuleType, folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "stranger"
    create_identity(home, name="stranger")
    (home / "roster.json").write_bytes((folder / "1" / "roster.json").read_bytes())
    with pytest.raises(ConfigurationError, match="does not list the key"):
        asyncio.run(parties.client(home, 1, 0.0))


# -- the page -------------------------------------------------------------------------------------


def test_the_pages_loop_prints_what_its_comment_says() -> None:
    page = (ROOT / "docs" / "how-to" / "embed.md").read_text("utf-8")
    codes = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    for code in codes:
        said = re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "embed.md", "exec"), {})
        assert said
        assert printed.getvalue().splitlines() == said
    assert len(codes) == 2
