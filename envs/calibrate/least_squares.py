"""Least squares with non-negative coefficients, and for simulated figures that have no gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TOLERANCE = 1e-10
"""Of the largest gradient: below it a coefficient at 0 stays there."""
_STEP = 0.1
"""Finite differences move a logarithm by 0.1: with 0.02 the jumps that finishing orders make sent
fits astray (a known law: cost 3.9 where 2.5 was to be had)."""
_LEAST_GAIN = 1e-3
"""Levenberg-Marquardt stops when a step no longer lowers the sum of squares by 0.1 %."""


def non_negative(gram: Floats, moment: Floats, near: Floats | None = None) -> Floats:
    """The x >= 0 that minimises |A x - b|^2, from A'A and A'b.

    Active sets (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23) on the normal
    equations, so that a bootstrap adds up small matrices and not rows again. Columns are scaled to
    unit length first.

    Args:
        gram: `(k, k)`.
        moment: `(k,)`.
        near: `(k,)` >= 0 to begin from, the solution of a problem much like this one; None: zeros.

    Returns:
        `(k,)`; 0 for a column without data.
    """
    length = np.sqrt(np.diag(gram))
    scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    gram = gram * scale[:, None] * scale
    moment = moment * scale
    k = len(moment)
    x = np.zeros(k)
    if near is not None:
        x = np.divide(near, scale, out=np.zeros(k), where=scale > 0)
    free = x > 0
    if free.any():
        x, free = _downhill(gram, moment, x, free)
    for _ in range(3 * k):  # ends after a few per column; the bound is for rounding that cycles
        gradient = np.where(free, -np.inf, moment - gram @ x)
        entering = int(np.argmax(gradient))
        if gradient[entering] <= _TOLERANCE * np.abs(moment).max(initial=0.0):
            break
        free[entering] = True
        x, free = _downhill(gram, moment, x, free)
    solution: Floats = x * scale
    return solution


def _downhill(
    gram: Floats, moment: Floats, x: Floats, free: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.bool_]]:
    """The best x over the free columns, and those that are still free: one that would fall below 0
    on the way stays at 0."""
    while True:
        trial = np.zeros(len(x))
        trial[free] = np.linalg.lstsq(gram[np.ix_(free, free)], moment[free], rcond=1e-12)[0]
        leaving = free & (trial <= 0)
        if not leaving.any():
            return trial, free
        share = float(np.min(x[leaving] / (x[leaving] - trial[leaving])))
        x = x + share * (trial - x)
        free = free & (x > 1e-14)


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where the squares are least, and how steep their valley is."""

    at: Floats
    residuals: Floats
    jacobian: Floats
    """`(residuals, parameters)`."""

    @property
    def cost(self) -> float:
        """Sum of squares."""
        return float(self.residuals @ self.residuals)

    def deviations(self) -> Floats:
        """Standard error of each parameter: Laplace's approximation, residuals of unit variance."""
        covariance = np.linalg.pinv(self.jacobian.T @ self.jacobian)
        errors: Floats = np.sqrt(np.diag(covariance))
        return errors


def levenberg_marquardt(
    residuals: Callable[[Floats], Floats], start: Floats, rounds: int = 40
) -> Minimum:
    """Least squares of a function that is only simulated, by finite differences.

    Args:
        residuals: parameters -> residuals.
        start: parameters, on a scale on which 0.1 is a small change: logarithms.
    """
    at, current = start, residuals(start)
    jacobian = _jacobian(residuals, at, current)
    damping = 1e-2
    for _ in range(rounds):
        normal = jacobian.T @ jacobian
        step = None
        while damping <= 1e6:
            damped = normal + damping * np.diag(np.diag(normal) + 1e-9)
            tried = at + np.clip(np.linalg.solve(damped, -jacobian.T @ current), -1.0, 1.0)
            found = residuals(tried)
            if found @ found < current @ current:
                step = tried
                break
            damping *= 10
        if step is None:
            break
        gain = 1 - (found @ found) / (current @ current)
        at, current, damping = step, found, damping / 3
        jacobian = _jacobian(residuals, at, current)
        if gain < _LEAST_GAIN:
            break
    return Minimum(at, current, jacobian)


def _jacobian(residuals: Callable[[Floats], Floats], at: Floats, current: Floats) -> Floats:
    jacobian = np.empty((len(current), len(at)))
    for column in range(len(at)):
        moved = at.copy()
        moved[column] += _STEP
        jacobian[:, column] = (residuals(moved) - current) / _STEP
    return jacobian
