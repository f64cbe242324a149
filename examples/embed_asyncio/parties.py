"""A server and a client of secure aggregation over TCP and TLS: each is a loop around a machine.

The adversary is the server. It moves frames and decides when a phase is over, and whatever it says,
the clients check: their own machines, keys, roster and policy keep their inputs from it. TLS tells
both ends whom they talk to, so that nobody else can spoil a round.

    python parties.py FOLDER PORT SECONDS    one client; SECONDS stand for local training
"""

import asyncio
import os
import ssl
import sys
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256, shake_256
from pathlib import Path

import securefl as fl
from securefl.primitives.identities import Roster, load_identity
from securefl.protocols.machine import Outbound
from securefl.round import SERVER, Adversary

HOST, M, B = "127.0.0.1", 200, 32  # M numbers, modulo 2^B
# Whoever works on something else derives another digest and is refused.
CONTEXT = sha256(b"one byte for each of 200 diagnoses; sums modulo 2^32").digest()
# The server may lie, one client may help it and two may vanish: six inputs or more in any sum.
THREAT = fl.ThreatModel(adversary=Adversary.ACTIVE, corrupt=1, dropped=2)
POLICY = fl.ClientPolicy(adversary=Adversary.ACTIVE, gamma="1/8", n_min=6)
SECONDS = 60.0  # for a phase; for the one in which clients train as long as that takes


def tls(purpose: ssl.Purpose, home: Path) -> ssl.SSLContext:
    """Each end shows the certificate in tls.pem and trusts those in trusted.pem, no others."""
    context = ssl.create_default_context(purpose, cafile=home / "trusted.pem")
    context.verify_mode = ssl.CERT_REQUIRED  # of clients, too
    context.load_cert_chain(home / "tls.pem")
    return context


async def read(reader: asyncio.StreamReader) -> bytes:
    """The next frame. Raises EOFError or OSError if there will be none."""
    size = int.from_bytes(await reader.readexactly(4), "little")
    # No frame of this round has so many (securefl.protocols.secagg.sizes); no memory is taken yet.
    if size > 1 << 16:
        raise ConnectionError(f"a frame of {size} bytes was announced, 65536 are the most")
    return await reader.readexactly(size)


def send(out: Iterable[object], writers: Mapping[int, asyncio.StreamWriter]) -> None:
    """The frames among what a machine returned, each behind its length.

    Nobody waits until they are gone: one slow client must not hold up the others, and a machine
    has one frame for each of them in a phase.
    """
    for item in out:
        if isinstance(item, Outbound) and item.recipient in writers:
            writers[item.recipient].write(len(item.frame).to_bytes(4, "little") + item.frame)


def local_input(u: int) -> fl.RingVector:
    """What client u adds to the sum. In earnest it trains, clips and encodes here."""
    return fl.RingVector.from_signed(list(shake_256(f"cases at {u}".encode()).digest(M)), 1 << B)


async def client(home: Path, port: int, seconds: float) -> str:
    """One client's round. Returns how it ended for the machine: "done" or "aborted"."""
    roster, key = Roster.load(home / "roster.json"), load_identity(home / "identity.pem")
    me, known = roster.member_of(key.public), roster.directory()
    if me is None:
        raise fl.ConfigurationError(f"{home}: roster.json does not list the key in identity.pem")
    secure = tls(ssl.Purpose.SERVER_AUTH, home)
    reader, writer = await asyncio.open_connection(HOST, port, ssl=secure, server_hostname="server")
    try:
        config = fl.RoundConfig.decode(await read(reader))
        machine = fl.SecAggClient(
            me.client, config, context_digest=CONTEXT, policy=POLICY, identity=key, directory=known
        )
        send(machine.start(), {SERVER: writer})
        while machine.phase not in ("done", "aborted"):
            send(machine.receive(await read(reader), SERVER), {SERVER: writer})
            if machine.wants_input:
                await asyncio.sleep(seconds)
                send(machine.set_input(local_input(me.client)), {SERVER: writer})
        return machine.phase
    except fl.SecureFLError as error:  # refused; the server is told, and the secrets are forgotten
        send(getattr(error, "outbound", ()), {SERVER: writer})
        raise
    finally:
        writer.close()
        await writer.wait_closed()  # until the last frame is out


async def server(home: Path, log: Callable[..., None] = print) -> fl.AggregateSum:
    """One round: the exact sum over whoever sent an input, or an error, never another sum."""
    roster = Roster.load(home / "roster.json")
    cohort = fl.Cohort.of(member.client for member in roster.members)
    config = fl.SecAggParams.complete(len(cohort), THREAT).config(
        round_id=1, cohort=cohort, m=M, b=B, context_digest=CONTEXT, server_nonce=os.urandom(32)
    )
    machine = fl.SecAggServer(config, directory=roster.directory())
    readers = {u: asyncio.get_running_loop().create_future() for u in cohort}
    writers: dict[int, asyncio.StreamWriter] = {}

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A new connection, of whom its certificate names."""
        u = int(writer.get_extra_info("peercert")["subjectAltName"][0][1])
        if u not in readers or readers[u].done():  # a stranger, too late, or here already
            writer.close()
        else:
            writers[u] = writer
            send([Outbound(recipient=u, frame=config.encode())], writers)
            readers[u].set_result(reader)

    async def hear(u: int) -> None:
        """The one frame that client u owes the phase, if it comes in time."""
        try:
            async with asyncio.timeout(SECONDS):
                frame = await read(await readers[u])
            log(machine.phase, u, *machine.receive(frame, u))
        except (EOFError, OSError, fl.PeerProtocolError, fl.WireError) as error:
            log(machine.phase, "without", u, repr(error))

    secure = tls(ssl.Purpose.CLIENT_AUTH, home)
    async with await asyncio.start_server(greet, HOST, 0, ssl=secure) as listening:
        log("listening", listening.sockets[0].getsockname()[1])
        try:
            while not machine.final:
                await asyncio.gather(*map(hear, machine.expected))
                send(machine.close_phase(), writers)
        except (fl.BelowThreshold, fl.PeerProtocolError) as error:
            send(error.outbound, writers)  # the others are told, and forget their secrets
            raise
        finally:
            for writer in writers.values():
                writer.close()
    return machine.result


if __name__ == "__main__":
    round_ = client(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
    sys.exit(asyncio.run(asyncio.wait_for(round_, timeout=6 * SECONDS)) != "done")
