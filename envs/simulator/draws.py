"""Counter-based draws: a pure function of (seed, stream, number).

No draw depends on how many others were made before it, so an env's result depends on its own seed
alone, whatever runs beside it. The mixer is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable
pseudorandom number generators", figure 15, with Stafford's variant 13 constants).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from envs.simulator.compiled import inlined
from envs.simulator.places import nth

COLD_START = np.uint64(1)
JITTER = np.uint64(2)
THINNING = np.uint64(3)
SCRAPE_PHASE = np.uint64(4)
SCRAPE_LOSS = np.uint64(5)
CRASH = np.uint64(6)

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53
_TRUNCATION = 3.0
"""A truncated normal draw lies within so many standard deviations."""
_BINS = 512


def _normal_quantiles() -> NDArray[np.float64]:
    """`(_BINS + 1,)` quantiles of the standard normal; the ends such that lines between them have
    variance 1, 3.44 standard deviations out."""
    half = [NormalDist().inv_cdf(k / _BINS) for k in range(_BINS // 2 + 1, _BINS)]
    inner = np.array([*(-quantile for quantile in reversed(half)), 0.0, *half])
    before, after = inner[:-1], inner[1:]
    # A line from a to b has mean square (a^2 + a b + b^2) / 3.
    missing = 1.0 - np.sum(before**2 + before * after + after**2) / (3.0 * _BINS)
    last = inner[-1]
    end = 0.5 * (math.sqrt(6.0 * _BINS * missing - 3.0 * last**2) - last)
    return np.array([-end, *inner, end])


_QUANTILES = _normal_quantiles()


@inlined
def _mixed(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> np.uint64(30))) * _MIX_1
    word = (word ^ (word >> np.uint64(27))) * _MIX_2
    return word ^ (word >> np.uint64(31))


@inlined
def stream_of(seed: np.uint64, stream: np.uint64) -> np.uint64:
    """What the draws of a seed's stream are made of."""
    return _mixed(seed + _GAMMA * stream)


@inlined
def uniform(seed: np.uint64, stream: np.uint64, number: int) -> float:
    """Draw in (0, 1)."""
    return _uniform_in(stream_of(seed, stream), number)


@inlined
def _uniform_in(stream: np.uint64, number: int) -> float:
    word = _mixed(stream + _GAMMA * (np.uint64(number) + np.uint64(1)))
    return (float(word >> np.uint64(11)) + 0.5) * _TO_UNIT


@inlined
def normal(seed: np.uint64, stream: np.uint64, number: int) -> float:
    """Standard normal draw (Box-Muller)."""
    radius = math.sqrt(-2.0 * math.log(uniform(seed, stream, 2 * number)))
    return radius * math.cos(2.0 * math.pi * uniform(seed, stream, 2 * number + 1))


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
def exponential(seed: np.uint64, stream: np.uint64, number: int) -> float:
    """Exponential draw of mean 1."""
    return -math.log(uniform(seed, stream, number))


@inlined
def quick_normal(stream: np.uint64, number: int) -> float:
    """Standard normal draw of a `stream_of`, read off a table of quantiles.

    Every run makes one, and with Box-Muller's method an env step took a fifth longer.
    """
    place = _BINS * _uniform_in(stream, number)
    below = min(int(place), _BINS - 1)  # a uniform draw can round up to 1
    low: float = _QUANTILES[nth(below)]
    high: float = _QUANTILES[nth(below + 1)]
    return low + (place - below) * (high - low)
