"""Aggregation under Paillier encryption: one message per client, opened by somebody who is not the
server.

Adversary: a server that lies, with up to A clients (and, in threshold mode, c < t share holders).
Clients send packed ciphertexts; the server multiplies them. *Key-holder mode*: a witness without
the key recomputes the product from the signed submissions, and the key holder opens only what
enough witnesses signed. *Threshold mode*: any t of l share holders open, none of them alone. The
server together with the key holder (or with t share holders) reads every update: choose them so
that this does not happen. The opened sum is exact and not private. Not post-quantum.
"""

from securefl.protocols.paillier.book import MemoryRoundBook, RoundBook, SqliteRoundBook
from securefl.protocols.paillier.client import PaillierClient
from securefl.protocols.paillier.decryptor import DeciderPolicy, KeyHolder, ShareHolder, Witness
from securefl.protocols.paillier.params import PaillierParams
from securefl.protocols.paillier.server import PaillierServer
from securefl.protocols.paillier.terms import PaillierTerms, paillier_config

__all__ = [
    "DeciderPolicy",
    "KeyHolder",
    "MemoryRoundBook",
    "PaillierClient",
    "PaillierParams",
    "PaillierServer",
    "PaillierTerms",
    "RoundBook",
    "ShareHolder",
    "SqliteRoundBook",
    "Witness",
    "paillier_config",
]
