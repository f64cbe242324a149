"""Secure aggregation with one-shot recovery (So et al., MLSys 2022): LightSecAgg.

Every client hides its input behind one mask of its own and gives each other client a coded share of
that mask; the survivors answer with the sum of the shares they hold, and any U answers open the sum
of the masks. The server's work does not depend on how many clients drop out. Read in this order:
``params`` (what must hold), ``transitions`` (the two machines as tables), ``messages`` (what
travels), ``keys`` (what is derived from what), ``coding`` (masks, shares, answers), ``client``,
``server``; ``sizes`` and ``calculator`` know what a session costs.
"""

from securefl.protocols.lightsecagg.client import LightSecAggClient
from securefl.protocols.lightsecagg.params import LightSecAggParams
from securefl.protocols.lightsecagg.server import LightSecAggServer
from securefl.protocols.policy import ClientPolicy

__all__ = ["ClientPolicy", "LightSecAggClient", "LightSecAggParams", "LightSecAggServer"]
