"""How much a client may count under differential privacy: alike, or by a capped share.

A weight by the number of records n_k has no bound that a plan could count on, and dividing by the
sum of all n_k makes every client's part depend on everybody's records. What is left is the rule of
McMahan et al. (2018, *Learning differentially private recurrent language models*, section 3):
min(n_k / cap, 1) with a public cap, over a public divisor. It is a factor in [0, 1] on an update
that was clipped before, so the sensitivity stays what the clip made it. The factor is secret like
the update itself: it is in no message, and the noise that hides a client's whole data hides n_k.

This module is arithmetic: it knows no model, no codec and no torch.
"""

from __future__ import annotations

from enum import StrEnum

from securefl.errors import ConfigurationError

__all__ = ["PrivateWeighting", "WeightKind", "capped_share", "check_private_weights"]


class WeightKind(StrEnum):
    """The weights that have a name."""

    EXAMPLES = "examples"
    """n_k: the number of records, the rule of FederatedAveraging."""
    EQUAL = "equal"
    """1: every client counts the same."""
    STEPS = "steps"
    """The SGD steps really taken: who did more work counts more."""
    QUALITY = "quality"
    """The local model's accuracy on records the client kept out of training; in thousandths."""


class PrivateWeighting(StrEnum):
    """The weights that differential privacy allows."""

    EQUAL = "equal"
    """Every client counts the same."""
    CAPPED_EXAMPLES = "capped-examples"
    """min(n_k / cap, 1), see :func:`capped_share`."""


def capped_share(examples: int, cap: int) -> float:
    """min(n_k / cap, 1): a client's weight under differential privacy, with a public cap.

    A factor in [0, 1] on the client's *clipped* update: it cannot raise the update's norm, so the
    sensitivity stays C, and the divisor stays the public expected sum.

    >>> capped_share(30, 60), capped_share(90, 60)
    (0.5, 1.0)
    """
    if isinstance(cap, bool) or cap < 1 or examples < 0:
        raise ConfigurationError(
            f"expected examples >= 0 and a public cap >= 1, found {examples} and {cap}"
        )
    return min(examples / cap, 1.0)


def check_private_weights(
    kind: WeightKind | PrivateWeighting | str, *, cap: int | None = None
) -> None:
    """Refuses weights that differential privacy does not allow.

    kind: ``equal``; or ``examples`` or ``capped-examples`` with a public ``cap``, both meaning
    :func:`capped_share`.

    Raises:
        ConfigurationError: for everything else, with the reason.
    """
    if kind == PrivateWeighting.EQUAL and cap is None:
        return
    if kind == PrivateWeighting.EQUAL:
        raise ConfigurationError(
            f'weights "equal" take no cap, found {cap}: use "capped-examples" for min(n_i/cap, 1)'
        )
    if kind in (WeightKind.EXAMPLES, PrivateWeighting.CAPPED_EXAMPLES) and cap is not None:
        capped_share(0, cap)
        return
    if kind == PrivateWeighting.CAPPED_EXAMPLES:
        raise ConfigurationError(
            'weights "capped-examples" need a public cap: the number of records at which a client '
            "counts fully, chosen without looking at the clients' numbers"
        )
    if kind == WeightKind.EXAMPLES:
        raise ConfigurationError(
            'weights "examples" (n_i/n) with differential privacy are refused: the weight reveals '
            "n_i, and a record that joins or leaves changes n and with it every client's weight, "
            'so there is no fixed sensitivity; use "equal", or give a public cap for min(n_i/cap, '
            "1), and divide by a public number"
        )
    if kind not in list(WeightKind):
        known = ", ".join(dict.fromkeys([*PrivateWeighting, *WeightKind]))
        raise ConfigurationError(f"weights are one of {known}; found {kind!r}")
    raise ConfigurationError(
        f'weights "{kind}"{"" if cap is None else f" with cap {cap}"} with differential privacy '
        'are refused: they are computed from the records and have no bound in the plan; use "equal"'
    )
