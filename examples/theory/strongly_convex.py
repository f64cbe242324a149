"""A strongly convex problem whose constants are known, and what the theory says about it.

Softmax regression with an L2 penalty, in float64: value, gradient, Hessian, optimum. It shares no
code with the library's trainers, so that what they do can be measured against it. The bounds are
theorems 4.6 and 4.7 of Bottou, Curtis and Nocedal (2018, *Optimization methods for large-scale
machine learning*); the predictions are second orders around the optimum, derived where they stand.
This module trains nothing and knows no client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """F(w): mean cross-entropy of a softmax regression plus penalty/2 ||w||^2.

    A vector w has the order of the model's flat vector: classes x features weights, then one bias
    per class.

    Attributes:
        x: float64[n, features + 1], the last column is one.
        y: int64[n], labels.
        classes: at least 2.
        penalty: positive. It is mu: the softmax has a flat direction (the same vector added to
            every class), so its own curvature adds nothing to it.
    """

    x: Vector
    y: NDArray[np.int64]
    classes: int
    penalty: float

    @classmethod
    def of(
        cls, x: NDArray[np.float32], y: NDArray[np.int64], *, classes: int, penalty: float
    ) -> Problem:
        """The problem of these records: x float32[n, features], y int64[n]."""
        with_one = np.hstack([x.astype(np.float64), np.ones((len(x), 1))])
        return cls(x=with_one, y=y, classes=classes, penalty=penalty)

    @property
    def dimension(self) -> int:
        """Parameters: classes x (features + 1)."""
        return self.classes * self.x.shape[1]

    def value(self, w: Vector) -> float:
        """F(w)."""
        scores = self.x @ self._rows(w).T
        top = scores.max(axis=1)
        log_sum = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
        loss = log_sum - scores[np.arange(len(self.y)), self.y]
        return float(loss.mean() + 0.5 * self.penalty * (w @ w))

    def gradient(self, w: Vector) -> Vector:
        """The gradient of F at w, float64[d]."""
        return _flat(self._errors(w).T @ self.x / len(self.y)) + self.penalty * w

    def longest_gradient(self, w: Vector) -> float:
        """The longest gradient of one record's cross-entropy: ||p - y|| ||(x, 1)||."""
        lengths = np.linalg.norm(self._errors(w), axis=1) * np.linalg.norm(self.x, axis=1)
        return float(lengths.max())

    def hessian(self, w: Vector) -> Vector:
        """The Hessian, float64[d, d]; block (a, b) is the mean of p_a (1[a = b] - p_b) x x^T."""
        p = self._probabilities(w)
        k, width = self.classes, self.x.shape[1]
        blocks = np.empty((k, width, k, width))
        for a in range(k):
            for b in range(a, k):
                curvature = p[:, a] * ((a == b) - p[:, b])
                block = (self.x * curvature[:, None]).T @ self.x / len(self.y)
                blocks[a, :, b, :] = block
                blocks[b, :, a, :] = block
        d = self.dimension
        order = _flat(np.arange(d, dtype=np.float64).reshape(k, width)).astype(np.int64)
        whole = blocks.reshape(d, d)[np.ix_(order, order)]
        return np.asarray(whole + self.penalty * np.eye(d), dtype=np.float64)

    def smoothness(self) -> float:
        """L, an upper bound on the Hessian's largest eigenvalue at every w.

        The penalty plus half the largest eigenvalue of the mean of x x^T (Boehning 1992,
        *Multinomial logistic regression algorithm*).
        """
        moment = self.x.T @ self.x / len(self.y)
        return self.penalty + 0.5 * float(np.linalg.eigvalsh(moment)[-1])

    def optimum(self) -> Vector:
        """w*, by Newton's method from zero, to a gradient below 1e-12."""
        w = np.zeros(self.dimension)
        for _ in range(50):
            slope = self.gradient(w)
            if float(np.linalg.norm(slope)) < 1e-12:
                return w
            w -= np.linalg.solve(self.hessian(w), slope)
        raise RuntimeError("Newton's method did not converge in 50 steps")

    def _errors(self, w: Vector) -> Vector:
        """Probabilities minus one-hot labels, float64[n, classes]."""
        errors = self._probabilities(w)
        errors[np.arange(len(self.y)), self.y] -= 1.0
        return errors

    def _probabilities(self, w: Vector) -> Vector:
        scores = self.x @ self._rows(w).T
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def _rows(self, w: Vector) -> Vector:
        """float64[classes, features + 1]: one row per class, the bias last."""
        weights, biases = w[: -self.classes], w[-self.classes :]
        return np.hstack([weights.reshape(self.classes, -1), biases[:, None]])


def _flat(rows: Vector) -> Vector:
    """The flat vector of a matrix of rows."""
    return np.concatenate([rows[:, :-1].ravel(), rows[:, -1]])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Theory:
    """The constants, and what follows from them.

    Attributes:
        mu, L: strong convexity and smoothness.
        gap: F(w_0) - F*, at the start w_0 = 0.
        eigenvalues: of the Hessian at the optimum, float64[d].
        sigma: standard deviation of the noise on one coordinate of the mean gradient.
    """

    mu: float
    L: float
    gap: float
    eigenvalues: Vector
    sigma: float

    @property
    def noise(self) -> float:
        """M = d sigma^2, the expected squared length of the noise."""
        return len(self.eigenvalues) * self.sigma**2

    def contraction(self, rate: float) -> float:
        """1 - mu eta, an upper bound on ||w_{t+1} - w*|| / ||w_t - w*||, for eta <= 2/(mu + L).

        A step multiplies the distance by I - eta H with mu <= H <= L (H: the mean Hessian on the
        way from w* to w_t).
        """
        if rate > 2.0 / (self.mu + self.L):
            raise ValueError(f"eta = {rate} exceeds 2/(mu + L) = {2.0 / (self.mu + self.L)}")
        return 1.0 - self.mu * rate

    def floor_bound(self, rate: float) -> float:
        """The bound eta L M / (2 mu): theorem 4.6 with unbiased gradients and additive noise.

        For eta <= 1/L.
        """
        return rate * self.L * self.noise / (2.0 * self.mu)

    def floor(self, rate: float) -> float:
        """The floor itself, to second order around the optimum.

        Along an eigenvector with eigenvalue h the error e <- (1 - eta h) e + eta sigma N(0, 1)
        settles at variance eta sigma^2 / (h (2 - eta h)), which costs h/2 times that: in sum
        eta sigma^2 sum_i 1 / (2 (2 - eta h_i)), and eta d sigma^2 / 4 for small eta.
        """
        shares = 1.0 / (2.0 * (2.0 - rate * self.eigenvalues))
        return float(rate * self.sigma**2 * shares.sum())

    @property
    def decay(self) -> tuple[float, float]:
        """The beta and gamma of the rate beta / (gamma + t): 2/mu, and 1/L at t = 0."""
        return 2.0 / self.mu, 2.0 * self.L / self.mu

    def decay_bound(self, steps: Vector) -> Vector:
        """The bound nu / (gamma + t): theorem 4.7 for the rates of :attr:`decay`."""
        beta, gamma = self.decay
        settled = beta**2 * self.L * self.noise / (2.0 * (beta * self.mu - 1.0))
        return max(settled, (gamma + 1.0) * self.gap) / (gamma + steps)

    @property
    def decay_constant(self) -> float:
        """The limit of (gamma + t) E[F(w_t) - F*], to second order around the optimum.

        Along an eigenvector with eigenvalue h the variance V(t) ~ v/t solves
        V(t+1) = (1 - beta h/t)^2 V(t) + beta^2 sigma^2/t^2, so v = beta^2 sigma^2/(2 beta h - 1)
        (Chung 1954, *On a stochastic approximation method*).
        """
        beta, _ = self.decay
        h = self.eigenvalues
        variances = beta**2 * self.sigma**2 / (2.0 * beta * h - 1.0)
        return float(0.5 * (h * variances).sum())


def first_order_drift(
    clients: Sequence[Problem], optimum: Vector, *, rate: float, local_steps: int
) -> float:
    """||w_FedAvg - w*|| to first order in eta (E - 1), for full-batch local steps.

    A client that walks from w sees the gradient g - k eta H g after k steps, so its E steps add up
    to -eta (E g - eta E (E - 1)/2 H g). The weighted mean of that vanishes where
    H delta = eta (E - 1)/2 sum_i p_i H_i g_i, with the clients' gradients and Hessians at w*.
    """
    total = sum(len(c.y) for c in clients)
    hessians = [c.hessian(optimum) * (len(c.y) / total) for c in clients]
    pull = sum(H @ c.gradient(optimum) for H, c in zip(hessians, clients, strict=True))
    delta = 0.5 * rate * (local_steps - 1) * np.linalg.solve(sum(hessians), pull)
    return float(np.linalg.norm(delta))
