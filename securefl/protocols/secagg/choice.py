"""The strongest session for a threat model: graph by name, degree and threshold by calculation.

``securefl train`` and ``secure_sum`` come here, so that both mean the same by "secagg" and
"secagg+". The calculator knows what is least, ``params`` what is allowed; this module takes the
fewest neighbours that are safe and the largest threshold that the dropouts leave reachable, which
hides most against clients that help the server. It makes no keys and no machines.
"""

from __future__ import annotations

from securefl.errors import ConfigurationError
from securefl.protocols.secagg.calculator import GraphKind, parameters
from securefl.protocols.secagg.params import SecAggParams
from securefl.round import ThreatModel

__all__ = ["least_alive", "strongest"]


def strongest(
    n: int, threat: ThreatModel, *, sparse: bool, degree: int | None = None
) -> SecAggParams:
    """Parameters for one of the two graphs.

    Args:
        n: cohort size, at least 3.
        threat: adversary, A and D.
        sparse: SecAgg+ (a random ring) instead of SecAgg (everybody with everybody).
        degree: neighbours on the ring, even; default the smallest that is safe.

    Returns:
        With the largest t that D dropouts leave reachable (on a ring: except with 2^-20).

    Raises:
        ConfigurationError: if nothing safe exists, or the degree is not; the message has the
            numbers.

    >>> strongest(10, ThreatModel(corrupt=1, dropped=3), sparse=False).t
    6
    >>> ring = strongest(10, ThreatModel(corrupt=1, dropped=3), sparse=True)
    >>> ring.k, ring.t
    (6, 3)
    """
    if not sparse:
        if degree is not None:
            raise ConfigurationError(
                f'degree={degree!r} belongs to protocol "secagg+"; "secagg" joins everybody'
            )
        return SecAggParams.complete(n, threat)
    if degree is not None:
        return SecAggParams.harary(n, threat, k=degree)
    found = parameters(n, threat)
    if found.graph is GraphKind.COMPLETE:
        raise ConfigurationError(
            f"no neighbour graph on {n} clients is safe with {threat.corrupt} corrupt and "
            f"{threat.dropped} dropped ones against an {threat.adversary.name} server; "
            'raise threshold or use protocol "secagg"'
        )
    return SecAggParams.harary(n, threat, k=found.k)


def least_alive(n: int, corrupt: int) -> int:
    """Fewest clients that must stay in SecAgg against an active server.

    t of the n - 1 others rebuild a secret, t + 1 clients must stay, and 2t > n - 1 + A.

    >>> least_alive(10, 1)
    7
    """
    return (n - 1 + corrupt) // 2 + 2
