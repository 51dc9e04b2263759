"""Non-negative least squares and Levenberg-Marquardt, against what is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from envs.calibrate.least_squares import levenberg_marquardt, non_negative


def best_of_all_supports(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The optimum by trying every set of columns that may be above 0."""
    k = a.shape[1]
    best, cost = np.zeros(k), float(b @ b)
    for size in range(1, k + 1):
        for columns in itertools.combinations(range(k), size):
            x = np.zeros(k)
            x[list(columns)] = np.linalg.lstsq(a[:, columns], b, rcond=None)[0]
            found = float(np.sum((a @ x - b) ** 2))
            if (x >= 0).all() and found < cost:
                best, cost = x, found
    return best


@pytest.mark.parametrize("seed", range(20))
def test_non_negative_is_the_best_of_all_supports(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(30, 6)) * 10.0 ** rng.integers(-8, 3, 6)
    b = rng.normal(size=30)
    x = non_negative(a.T @ a, a.T @ b)
    assert (x >= 0).all()
    np.testing.assert_allclose(
        a @ x, a @ non_negative(a.T @ a, a.T @ b, near=np.ones(6)), atol=1e-6
    )
    np.testing.assert_allclose(a @ x, a @ best_of_all_supports(a, b), atol=1e-6)


def test_a_column_without_data_stays_at_zero() -> None:
    a = np.array([[1.0, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(non_negative(a.T @ a, a.T @ np.array([3.0, 6.0])), [3.0, 0.0])


def test_levenberg_marquardt_finds_a_curved_minimum_and_its_width() -> None:
    t = np.linspace(0, 2, 40)
    noise = 0.01
    rng = np.random.default_rng(3)
    seen = 2.0 * np.exp(-1.5 * t) + rng.normal(0, noise, len(t))

    def residuals(at: np.ndarray) -> np.ndarray:
        a, b = np.exp(at)
        return (a * np.exp(-b * t) - seen) / noise

    found = levenberg_marquardt(residuals, np.log([0.5, 5.0]))
    wide = 3 * found.deviations()
    assert (np.abs(found.at - np.log([2.0, 1.5])) < wide).all()
    assert (wide < 0.1).all()
