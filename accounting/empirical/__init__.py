"""Lower bounds on what really leaks: a mechanism or a trained model is attacked, errors counted.

An audit can only refute. ``REFUTED`` says that a claim is false, up to the stated probability of
error; ``NOT_REFUTED`` says that these canaries, at this number of runs, found nothing. No answer
here means "verified", and none may take the place of an accountant.

* :func:`audit` runs a mechanism thousands of times with and without a canary
  (:mod:`accounting.empirical.mechanism`);
* :func:`one_run` reads one training run into which many canaries were put by coin
  (:mod:`accounting.empirical.guesses`);
* :func:`clopper_pearson` and :func:`gaussian_mu` turn counted errors into bounds
  (:mod:`accounting.empirical.bounds`).
"""

from accounting.empirical.bounds import ErrorCounts, clopper_pearson, gaussian_mu
from accounting.empirical.canaries import Canary, default_canaries
from accounting.empirical.guesses import (
    Guesses,
    canary_coins,
    guess_members,
    guess_p_value,
    one_run,
)
from accounting.empirical.mechanism import (
    CanaryResult,
    Claim,
    Mechanism,
    MechanismAudit,
    Noise,
    Verdict,
    audit,
    from_aggregator,
)

__all__ = [
    "Canary",
    "CanaryResult",
    "Claim",
    "ErrorCounts",
    "Guesses",
    "Mechanism",
    "MechanismAudit",
    "Noise",
    "Verdict",
    "audit",
    "canary_coins",
    "clopper_pearson",
    "default_canaries",
    "from_aggregator",
    "gaussian_mu",
    "guess_members",
    "guess_p_value",
    "one_run",
]
