"""TLS and Flower's own node authentication under our identities, on real processes.

An authenticated SuperNode keeps its node id when it is started anew, so the next message of a
session still reaches it. That is the one way in which a node is asked about a session that it has
lost; without authentication it would be another node (``test_failures.py``).
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra 'flower' is not installed")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flower_cluster import Cluster, active, assert_models, cluster

pytestmark = [pytest.mark.timeout(1200), pytest.mark.long]


class AuthenticatedCluster(Cluster):
    """The SuperLink has a certificate for 127.0.0.1, and takes nodes whose keys it was told."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self._tls = folder / "tls"
        self._tls.mkdir(parents=True)
        _write_certificates(self._tls)
        for i in range(nodes):
            _write_node_key(self._tls / f"node{i}")
        super().__init__(folder, nodes)

    def _connection(self) -> str:
        return f'root-certificates = "{self._tls / "ca.pem"}"'

    def _link_flags(self) -> list[str]:
        tls = self._tls
        return [
            "--ssl-ca-certfile", str(tls / "ca.pem"), "--ssl-certfile", str(tls / "link.pem"),
            "--ssl-keyfile", str(tls / "link.key"), "--enable-supernode-auth",
        ]  # fmt: skip

    def _node_flags(self, i: int) -> list[str]:
        key = self._tls / f"node{i}"
        return [
            "--root-certificates", str(self._tls / "ca.pem"),
            "--auth-supernode-private-key", str(key),
        ]  # fmt: skip

    def start_link(self) -> None:
        super().start_link()
        for i in range(self.count):
            subprocess.run(
                ["flwr", "supernode", "register", str(self._tls / f"node{i}.pub"), "dep"],
                env=self._environment, cwd=self.folder, check=True, timeout=60,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip

    def wait_until_online(self, seconds: float = 120) -> None:
        """Until the SuperLink counts all nodes as online; one that starts is not, for a moment."""
        end = time.monotonic() + seconds
        while True:
            listed = subprocess.run(
                ["flwr", "supernode", "list", "dep", "--format", "json"],
                env=self._environment, cwd=self.folder, timeout=60, check=True,
                capture_output=True, text=True,
            )  # fmt: skip
            nodes = json.loads(listed.stdout)["nodes"]
            if sum(node["status"] == "online" for node in nodes) == self.count:
                return
            assert time.monotonic() < end, f"not all online: {nodes}"
            time.sleep(0.5)


def _write_node_key(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    path.with_suffix(".pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )


def _write_certificates(folder: Path) -> None:
    """One authority and one server of it, for a day."""
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.datetime.now(datetime.UTC)

    def certificate(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> bytes:
        is_authority = key is authority
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False
            )
        )
        if not is_authority:
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), False)
        return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    (folder / "ca.pem").write_bytes(certificate(name, authority))
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    (folder / "link.pem").write_bytes(certificate(own, server))
    (folder / "link.key").write_bytes(
        server.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def test_an_authenticated_supernode_started_anew_has_lost_its_session(tmp_path: Path) -> None:
    """Its secrets were in memory only: E201, and the round is the others' mean.

    One node's training holds the phase open until the other is back.
    """
    with cluster(tmp_path, nodes=5, kind=AuthenticatedCluster) as site:
        process = site.begin(
            **active(site, nodes=5, needed=5, faults="hold 4 1", **{"securefl-grace": 150.0})
        )
        site.wait_for("node2", r"ROUND 1\.advertise_keys\].*Sending.*Sent successfully")
        before = len(site.log("node2"))
        site.end("node2")
        site.start_node(2)
        site.wait_for("node2", "SuperNode ID", since=before)
        site.wait_until_online()
        (tmp_path / "node4" / "go").touch()
        outcome = site.finish(process)
        assert_models(outcome, [[0, 1, 3, 4]])
        history = outcome.result["history"][0]
        assert history["refusals"] == {"E201": 1}
        assert history["failures"] == {}
