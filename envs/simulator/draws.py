"""Counter-based draws: a pure function of (seed, stream, number).

No draw depends on how many others were made before it, so an env's result depends on its own seed
alone, whatever runs beside it. The mixer is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable
pseudorandom number generators", figure 15, with Stafford's variant 13 constants).
"""

from __future__ import annotations

import math

import numpy as np

from envs.simulator.compiled import inlined

COLD_START = np.uint64(1)
JITTER = np.uint64(2)
THINNING = np.uint64(3)
SCRAPE_PHASE = np.uint64(4)
SCRAPE_LOSS = np.uint64(5)

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53
# Coefficients of AS 241: numerator, then denominator, highest power first.
_CENTRE = (
    *(2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4),
    *(4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3),
    *(1.3314166789178437745e2, 3.3871328727963666080e0),
    *(5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4),
    *(2.1213794301586595867e4, 5.3941960214247511077e3, 6.8718700749205790830e2),
    *(4.2313330701600911252e1, 1.0),
)
_NEAR = (
    *(7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1),
    *(1.27045825245236838258e0, 3.64784832476320460504e0, 5.76949722146069140550e0),
    *(4.63033784615654529590e0, 1.42343711074968357734e0),
    *(1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2),
    *(1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0),
    *(2.05319162663775882187e0, 1.0),
)
_FAR = (
    *(2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3),
    *(2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580e0),
    *(5.46378491116411436990e0, 6.65790464350110377720e0),
    *(2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5),
    *(7.86869131145613259100e-4, 1.48753612908506148525e-2, 1.36929880922735805310e-1),
    *(5.99832206555887937690e-1, 1.0),
)
_SMALL = 0.5
_EXP = tuple(1.0 / math.factorial(power) for power in range(15, -1, -1))
"""Series of the exponential function, whose rest is below 1e-16 for a small argument; a call of the
library costs twice as much."""
_TRUNCATION = 3.0
"""A truncated normal draw lies within so many standard deviations."""


@inlined
def _mixed(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> np.uint64(30))) * _MIX_1
    word = (word ^ (word >> np.uint64(27))) * _MIX_2
    return word ^ (word >> np.uint64(31))


@inlined
def uniform(seed: np.uint64, stream: np.uint64, number: int) -> float:
    """Draw in (0, 1)."""
    word = _mixed(seed + _GAMMA * stream)
    word = _mixed(word + _GAMMA * (np.uint64(number) + np.uint64(1)))
    return (float(word >> np.uint64(11)) + 0.5) * _TO_UNIT


@inlined
def normal(seed: np.uint64, stream: np.uint64, number: int) -> float:
    """Standard normal draw, by inversion: one uniform, and in 85 of 100 cases no logarithm.

    Algorithm AS 241 of Wichura 1988, "The percentage points of the normal distribution", Applied
    Statistics 37(3), PPND16: exact to about 1e-16. Box-Muller took a third of an env's time.
    """
    share = uniform(seed, stream, number)
    q = share - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        return q * _ratio(_CENTRE, r)
    r = math.sqrt(-math.log(min(share, 1.0 - share)))
    tail = _ratio(_NEAR, r - 1.6) if r <= 5.0 else _ratio(_FAR, r - 5.0)
    return tail if q > 0.0 else -tail


@inlined
def _ratio(terms: tuple[float, ...], r: float) -> float:
    """Ratio of two polynomials of degree 7, whose coefficients stand highest first."""
    return _polynomial(terms, 0, r) / _polynomial(terms, 8, r)


@inlined
def _polynomial(terms: tuple[float, ...], first: int, r: float) -> float:
    """In Estrin's order: its products do not wait for one another."""
    square = r * r
    high = (terms[first] * r + terms[first + 1]) * square + terms[first + 2] * r + terms[first + 3]
    low = (terms[first + 4] * r + terms[first + 5]) * square
    return high * (square * square) + (low + (terms[first + 6] * r + terms[first + 7]))


@inlined
def truncated_normal(seed: np.uint64, stream: np.uint64, number: int) -> float:
    """Standard normal draw given that it lies within 3 standard deviations."""
    attempt = 0
    draw = normal(seed, stream, number << 8)
    while abs(draw) > _TRUNCATION:
        attempt += 1
        draw = normal(seed, stream, (number << 8) + attempt)
    return draw


@inlined
def lognormal_of_mean_one(seed: np.uint64, stream: np.uint64, number: int, sigma: float) -> float:
    """Lognormal factor with mean 1; `sigma` is that of its logarithm."""
    logarithm = sigma * normal(seed, stream, number) - 0.5 * sigma * sigma
    if abs(logarithm) > _SMALL:
        return math.exp(logarithm)
    return _polynomial(_EXP, 0, logarithm) * logarithm**8 + _polynomial(_EXP, 8, logarithm)
