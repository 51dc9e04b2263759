"""Random numbers that depend on a seed and a place only, never on what was drawn before.

SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) as
a hash: the n-th draw of a seed is the same however many environments or threads run beside it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, elementwise."""
    z = values + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def child_seeds(seeds: NDArray[np.uint64], place: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """The seeds' children at a place (one for all, or one each): independent streams."""
    places = np.broadcast_to(np.asarray(place, dtype=np.uint64), seeds.shape)
    return mix(mix(seeds) ^ mix(places))


def uniform(seeds: NDArray[np.uint64], place: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) per seed, 53 random bits."""
    return (child_seeds(seeds, place) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(seeds: NDArray[np.uint64], place: int) -> NDArray[np.float64]:
    """One standard normal number per seed (Box and Muller, 1958)."""
    pair = child_seeds(seeds, place)
    # 1 - u lies in (0, 1]: its logarithm is finite.
    radius = np.sqrt(-2.0 * np.log1p(-uniform(pair, 0)))
    return np.asarray(radius * np.cos(2.0 * np.pi * uniform(pair, 1)))
