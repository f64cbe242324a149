"""Nodes with data beside nodes that decide what is opened, with real keys and files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_world import FakeNode, Site

from securefl.flower.holder import listening, serve
from securefl.primitives.identities import Roster, create_identity
from securefl.primitives.paillier import PublicKey, SecretKey, generate_keypair
from securefl.primitives.paillier import files as key_files
from securefl.primitives.paillier.threshold import KeyShare, ThresholdPublicKey, deal

CLIENTS = (101, 102, 103, 104, 105, 106)
HOLDERS = (201, 202, 203, 204)
WITNESS, KEY_HOLDER = 301, 302
NEEDED = 3
IN_APP = "whoever may submit runs reads this share"
WITNESS_IN_APP = "whoever may submit runs signs as this witness"


SHORT = 512
"""Bits of the keys in one process; see :func:`short_keys`."""


@cache
def threshold_key(bits: int = SHORT) -> tuple[ThresholdPublicKey, list[KeyShare]]:
    """3 of 4; for tests, so from a fixed seed that finds its primes soon."""
    random_bytes = np.random.default_rng(1).bytes
    return deal(
        threshold=NEEDED,
        parties=len(HOLDERS),
        bits=bits,
        min_bits=bits,
        random_bytes=random_bytes,
    )


@cache
def whole_key(seed: int = 0) -> SecretKey:
    """Likewise."""
    random_bytes = np.random.default_rng(seed).bytes
    return generate_keypair(SHORT, primes="blum", min_bits=SHORT, random_bytes=random_bytes)


@contextmanager
def short_keys() -> Iterator[None]:
    """Key files below the limit are accepted: a round costs a twentieth. Nothing else changes."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (PublicKey, SecretKey, ThresholdPublicKey):
            reader: Any = kind.from_bytes
            patch.setitem(reader.__func__.__kwdefaults__, "min_bits", SHORT)
        yield


class PaillierSite(Site):
    """Six nodes with data and four share holders, or a witness and a key holder."""

    protocol = "paillier-threshold"
    deciders: tuple[int, ...] = HOLDERS

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes = CLIENTS + self.deciders
        public = [create_identity(folder / str(n), name=f"node-{n}") for n in self.nodes]
        self.roster = Roster.build(public)
        self.id_of = {int(m.name[5:]): m.client for m in self.roster.members}
        (folder / "server").mkdir()
        self.setup = folder / "server" / "paillier.toml"
        for node in self.nodes:
            (folder / str(node) / "roster.json").write_text(json.dumps(self.roster.to_json()))
        for home in (folder / "server", *(folder / str(node) for node in self.nodes)):
            self.write_setup(home)
        self.give_secrets()
        for node in self.nodes:
            self.write(node)

    def write_setup(self, home: Path) -> None:
        key_files.write_public(home / "key.public", threshold_key()[0].to_bytes())
        names = [f"node-{node}" for node in HOLDERS]
        (home / "paillier.toml").write_text(
            f'schema = "securefl-paillier/1"\nkey = "key.public"\nshare_holders = {names}\n'
        )

    def give_secrets(self) -> None:
        for node, share in zip(HOLDERS, threshold_key()[1], strict=True):
            path = self.folder / str(node) / "my.share"
            key_files.write_secret(path, share.to_secret_bytes())

    def section(self, node: int) -> str:
        more = ""
        if node in HOLDERS:
            more = f'share = "my.share"\nbook = "book.sqlite"\nshare_in_app = "{IN_APP}"\n'
        return f'[paillier]\nsetup = "paillier.toml"\n{more}'

    def write(self, node: int, floor: str = "", more: str = "", head: str = "") -> Path:
        protocols = f'protocols = ["{self.protocol}"]\n'
        return super().write(node, protocols + floor, more + "\n" + self.section(node), head)

    def forget(self) -> None:
        """Fresh journals and books."""
        for node in self.nodes:
            for name in ("node.sqlite", "book.sqlite"):
                (self.folder / str(node) / name).unlink(missing_ok=True)


class KeyHolderSite(PaillierSite):
    """A witness in its app, and a key holder in a process (here: a thread) of its own."""

    protocol = "paillier"
    deciders = (WITNESS, KEY_HOLDER)

    def write_setup(self, home: Path) -> None:
        key_files.write_public(home / "key.public", whole_key().public.to_bytes())
        (home / "paillier.toml").write_text(
            'schema = "securefl-paillier/1"\nkey = "key.public"\n'
            f'key_holder = "node-{KEY_HOLDER}"\nwitnesses = ["node-{WITNESS}"]\n'
        )

    def give_secrets(self) -> None:
        home = self.folder / str(KEY_HOLDER)
        key_files.write_secret(home / "my.secret", whole_key().to_secret_bytes())
        (home / "courier.toml").write_text(
            'schema = "securefl-node/1"\n[paillier]\nsocket = "holder.sock"\n'
        )

    def section(self, node: int) -> str:
        more = 'book = "book.sqlite"\n' if node in self.deciders else ""
        more += 'secret = "my.secret"\n' if node == KEY_HOLDER else ""
        more += f'witness_in_app = "{WITNESS_IN_APP}"\n' if node == WITNESS else ""
        return f'[paillier]\nsetup = "paillier.toml"\n{more}'

    def node(self, node: int, app: Any = None) -> FakeNode:
        made = super().node(node, app)
        if node == KEY_HOLDER:
            made.config = {"securefl": str(self.folder / str(node) / "courier.toml")}
        return made

    @contextmanager
    def holder(self) -> Iterator[None]:
        """The holder's process listens."""
        home = self.folder / str(KEY_HOLDER)
        with listening(home / "holder.sock") as listener:
            thread = threading.Thread(
                target=serve, args=(listener,), kwargs={"node_file": home / "node.toml"}
            )
            thread.start()
            try:
                yield
            finally:
                listener.shutdown(2)
                thread.join()
