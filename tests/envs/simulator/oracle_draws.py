"""The simulator's draws in plain Python integers: SplitMix64, and the library's inverse normal."""

from __future__ import annotations

from statistics import NormalDist

MASK = 2**64 - 1


def mixed(word: int) -> int:
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
    return word ^ (word >> 31)


def uniform(seed: int, stream: int, number: int) -> float:
    word = mixed((seed + 0x9E3779B97F4A7C15 * stream) & MASK)
    word = mixed((word + 0x9E3779B97F4A7C15 * (number + 1)) & MASK)
    return ((word >> 11) + 0.5) * 2.0**-53


def normal(seed: int, stream: int, number: int) -> float:
    return NormalDist().inv_cdf(uniform(seed, stream, number))


def truncated_normal(seed: int, stream: int, number: int) -> float:
    draws = (normal(seed, stream, 256 * number + attempt) for attempt in range(256))
    return next(draw for draw in draws if abs(draw) <= 3.0)
