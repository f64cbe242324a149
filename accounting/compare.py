"""Every accountant there is on one event, and whether they contradict each other.

Ours: exact, RDP, PLD. dp-accounting: RDP and PLD (extra ``pld``). Opacus: RDP and PRV (extra
``train``). What another library gets wrong for an event is not asked of it. This module decides
nothing: it is for people who want a second opinion.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from accounting.accountant import BoundKind, Method, checked_delta, epsilon
from accounting.errors import AccountingError, UnsupportedEvent
from accounting.events import Adjacency, Event, Gaussian, Poisson, leaves

__all__ = ["Opinion", "disagreements", "opinions"]

_LOOSE = 1e-3  # relative, between two RDP accountants with different orders
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What one accountant says.

    Attributes:
        name: library and method.
        method: the method.
        epsilon: its value; None if it gave none.
        kind: what the value claims to be.
        remark: why there is none, or how exact it is.
        tolerance: how far below the truth an estimate may be by its own account.
    """

    name: str
    method: str
    epsilon: float | None
    kind: BoundKind
    remark: str = ""
    tolerance: float = 0.0


def opinions(event: Event, delta: float, *, adjacency: Adjacency | str) -> tuple[Opinion, ...]:
    """One opinion per accountant, ours first.

    Raises:
        InvalidParameter: for an impossible delta or adjacency.
    """
    adjacency, delta = Adjacency.of(adjacency), checked_delta(delta)
    found = [_ours(event, delta, adjacency, method) for method in ("exact", "rdp", "pld")]
    found += [_dp_accounting(event, delta, adjacency, method) for method in ("rdp", "pld")]
    found += [_opacus(event, delta, adjacency, method) for method in ("rdp", "prv")]
    return tuple(found)


def _ours(event: Event, delta: float, adjacency: Adjacency, method: str) -> Opinion:
    name = f"accounting {method}"
    kind = BoundKind.EXACT if method == "exact" else BoundKind.UPPER
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bound = epsilon(event, delta, adjacency=adjacency, method=Method.of(method))
    except AccountingError as error:
        return Opinion(name=name, method=method, epsilon=None, kind=kind, remark=_short(error))
    remark = "" if bound.order is None else f"order {bound.order:.4g}"
    if bound.discretisation_error is not None:
        remark = f"grid error {bound.discretisation_error:.2g}"
    return Opinion(name=name, method=method, epsilon=bound.value, kind=kind, remark=remark)


def _dp_accounting(event: Event, delta: float, adjacency: Adjacency, method: str) -> Opinion:
    def ask() -> float:
        import dp_accounting  # noqa: PLC0415  # an extra
        from dp_accounting import pld, rdp  # noqa: PLC0415  # an extra

        from accounting.interop.dp_accounting import relation, to_event  # noqa: PLC0415  # as above

        kind: Literal["rdp", "pld"] = "rdp" if method == "rdp" else "pld"
        theirs = to_event(event, adjacency=adjacency, accountant=kind)
        accountant = (
            rdp.RdpAccountant(neighboring_relation=relation(adjacency))
            if method == "rdp"
            else pld.PLDAccountant(relation(adjacency))
        )
        if not accountant.supports(theirs):
            raise dp_accounting.UnsupportedEventError("has no right counterpart there")
        return float(accountant.compose(theirs).get_epsilon(delta))

    if method == "pld":
        from accounting.pld import pld_fits  # noqa: PLC0415  # needed here only

        if not pld_fits(event, adjacency, 1e-4):
            return _refused("dp-accounting", method, "not right there, or too large a grid")
    return _asked("dp-accounting", method, "dp_accounting", ask, BoundKind.UPPER)


def _opacus(event: Event, delta: float, adjacency: Adjacency, method: str) -> Opinion:
    if adjacency is Adjacency.REPLACE_ONE:
        return _refused("opacus", method, "knows add-remove only")
    history: list[tuple[float, float, int]] = []
    for leaf, count in leaves(event):
        rate, inner = (leaf.sample_rate, leaf.event) if isinstance(leaf, Poisson) else (1.0, leaf)
        if not isinstance(inner, Gaussian):
            return _refused("opacus", method, "knows sampled Gaussians only")
        history.append((inner.noise_multiplier, rate, count))

    def ask() -> float:
        from accounting.interop.opacus import their_epsilon  # noqa: PLC0415  # extra, slow

        return their_epsilon(method, history, delta)

    kind = BoundKind.UPPER if method == "rdp" else BoundKind.ESTIMATE
    return _asked("opacus", method, "opacus", ask, kind, tolerance=0.01 if method == "prv" else 0.0)


def _asked(
    library: str,
    method: str,
    package: str,
    ask: Callable[[], float],
    kind: BoundKind,
    *,
    tolerance: float = 0.0,
) -> Opinion:
    if find_spec(package) is None:
        return _refused(library, method, "not installed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = ask()
    except Exception as error:  # whatever another library raises is its opinion
        return _refused(library, method, _short(error))
    remark = "" if not tolerance else f"up to {tolerance:g} off by its own account"
    return Opinion(
        name=f"{library} {method}",
        method=method,
        epsilon=value,
        kind=kind,
        remark=remark,
        tolerance=tolerance,
    )


def _refused(library: str, method: str, why: str) -> Opinion:
    return Opinion(
        name=f"{library} {method}", method=method, epsilon=None, kind=BoundKind.UPPER, remark=why
    )


def _short(error: BaseException) -> str:
    text = str(error).split("\n", 1)[0] or type(error).__name__
    if isinstance(error, UnsupportedEvent) and "found" in text:
        text = text.split(", found", 1)[0]
    return text if len(text) <= 60 else text[:57] + "..."


def disagreements(found: tuple[Opinion, ...]) -> list[str]:
    """What the methods do not explain, one sentence each; empty if all is well.

    A tight value above an upper bound; an upper bound below the exact value; our RDP above
    another one; distributions that differ by more than their grids; values that are no number.
    """
    known = {one.name: one for one in found if one.epsilon is not None}
    flags = [f"{one.name} gives {one.epsilon}" for one in known.values() if math.isnan(_of(one))]

    def below(low: str, high: str, *, relative: float = _ROUNDING, absolute: float = 0.0) -> None:
        """``low`` should not be above ``high``."""
        if low in known and high in known:
            a, b = known[low], known[high]
            room = relative * abs(_of(b)) + absolute + a.tolerance + b.tolerance
            if _of(a) > _of(b) + room:
                flags.append(
                    f"{low} ({_of(a):.6g}) is above {high} ({_of(b):.6g}) by more than the "
                    "methods explain"
                )

    for upper in (
        "accounting rdp",
        "accounting pld",
        "dp-accounting rdp",
        "dp-accounting pld",
        "opacus rdp",
        "opacus prv",
    ):
        below("accounting exact", upper, absolute=1e-9)
    for theirs in ("dp-accounting rdp", "opacus rdp"):
        below("accounting rdp", theirs, relative=1e-9, absolute=1e-9)
        below("accounting pld", theirs, absolute=2e-3)
    below("accounting pld", "accounting rdp", absolute=2e-3)
    for first, second in (
        ("accounting pld", "dp-accounting pld"),
        ("accounting pld", "opacus prv"),
    ):
        below(first, second, relative=_LOOSE, absolute=5e-3)
        below(second, first, relative=2e-2, absolute=2e-2)
    below("dp-accounting rdp", "accounting rdp", relative=0.15, absolute=2e-3)
    return flags


def _of(one: Opinion) -> float:
    return math.nan if one.epsilon is None else one.epsilon
