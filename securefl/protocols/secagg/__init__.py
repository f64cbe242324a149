"""Secure aggregation with pairwise masks (Bonawitz et al., CCS 2017).

Read in this order: ``params`` (what must hold), ``transitions`` (the two machines as tables),
``messages`` (what travels), ``keys`` (what is derived from what), ``client``, ``masks``,
``server``, ``unmasking`` and ``reconstruction`` (from shares to secrets), ``recovery`` (from
secrets to masks). Beside them: ``calculator``, ``sizes`` and ``choice`` (which numbers),
``parties`` (all machines at once).
"""

from securefl.protocols.secagg.client import SecAggClient
from securefl.protocols.secagg.params import ClientPolicy, SecAggParams
from securefl.protocols.secagg.server import SecAggServer

__all__ = ["ClientPolicy", "SecAggClient", "SecAggParams", "SecAggServer"]
