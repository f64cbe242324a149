"""A secure sum among peers, without any server: ``peersum``, for a few institutions.

Every peer shares its input with all others, they agree by signatures on whose inputs are in the
sum, and reveal sums of shares for that one list. Read in this order: ``params`` (what must hold),
``transitions`` (the machine as a table), ``messages`` (what travels), ``keys`` (what is derived
from what), ``polynomials`` (shares and their sums), ``agreement`` (which list), ``sessions`` (what
a peer remembers), ``ends`` and ``peer`` (the machine); ``sizes`` knows what a session costs.
"""

from securefl.protocols.peersum.agreement import check_signed_twice
from securefl.protocols.peersum.params import PeerSumParams
from securefl.protocols.peersum.peer import PeerSumPeer
from securefl.protocols.peersum.sessions import FolderRegister, MemoryRegister, SessionRegister
from securefl.protocols.policy import ClientPolicy

__all__ = [
    "ClientPolicy",
    "FolderRegister",
    "MemoryRegister",
    "PeerSumParams",
    "PeerSumPeer",
    "SessionRegister",
    "check_signed_twice",
]
