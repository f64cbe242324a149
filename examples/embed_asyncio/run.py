"""Eight client processes; two are killed in the middle of the round.

Client 7 is killed when its masked input is in, so it is in the sum. Client 3 is killed at the same
moment, its secrets already shared and its input not sent, so it is not.

    python run.py
"""

import asyncio
import json
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import Popen

import parties
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from securefl.primitives.identities import Roster, create_identity

CLIENTS, BEFORE, AFTER = range(1, 9), 3, 7


def certificate(home: Path) -> bytes:
    """Writes tls.pem, a fresh TLS key and a certificate signed by itself; returns the latter."""
    key, now, day = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC), timedelta(days=1)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, home.name)])
    build = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    build = build.not_valid_before(now - day).not_valid_after(now + day)
    names = x509.SubjectAlternativeName([x509.DNSName(home.name)])
    made = build.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(pem, form, serialization.NoEncryption())
    (home / "tls.pem").write_bytes(secret + made.public_bytes(pem))
    return made.public_bytes(pem)


def provision(homes: list[Path], server: Path) -> None:
    """Everybody's files. In earnest each party makes its keys at home and hands out public halves.

    The server has no hand in the clients' roster: people compare its digest by voice.
    """
    roster = Roster.build([create_identity(home, name=home.name) for home in homes])
    server.mkdir(mode=0o700)
    trusted = b"".join(certificate(home) for home in [server, *homes])
    for home in [server, *homes]:
        (home / "roster.json").write_text(json.dumps(roster.to_json()))
        (home / "trusted.pem").write_bytes(trusted)


def main(folder: Path) -> dict[int, int]:
    """One round. Returns each client's exit code."""
    homes, clients = {u: folder / str(u) for u in CLIENTS}, {}
    provision([*homes.values()], folder / "server")

    def log(*what: object) -> None:
        print("server:", *what)
        if what[0] == "listening":
            for u, home in homes.items():
                words = [home, what[1], 60 if u == BEFORE else 0]
                clients[u] = Popen([sys.executable, parties.__file__, *map(str, words)])
        elif what == ("masked_input_collection", AFTER):
            clients[BEFORE].kill()
            clients[AFTER].kill()

    result = asyncio.run(parties.server(folder / "server", log))
    plain = sum(parties.local_input(u).values for u in result.survivors)
    assert result.vector.values.tolist() == plain.tolist()
    print("exact sum over", result.survivors)
    return {u: process.wait() for u, process in clients.items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print("clients ended with", main(Path(temporary)))
