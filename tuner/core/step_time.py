"""Step-time law of a profile as tables over the batch size and the prompt tokens.

A table given as points is linear between them, and goes on along its last segment beyond the last
one; below the first the first point's value holds, because the line drawn backwards can fall below
zero. It is spread out over every size that can occur: 8 bytes per sequence and prompt token, once
per fleet, against a search among the points in every iteration.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import ProfileError
from tuner.core.profile import ServingProfile


def seconds_by_batch(profile: ServingProfile) -> NDArray[np.float64]:
    """Seconds of an iteration without prompt, KV and straggler terms, by sequences in the batch.

    Returns:
        `(batch_size_max + 1,)` float64; entry 0 is no iteration and 0.

    Raises:
        ProfileError: an iteration of some batch size would take no time.
    """
    law = profile.step_time
    sequences = np.arange(profile.limits.batch_size_max + 1, dtype=np.float64)
    if law.batch_table:
        seconds = _along_table(law.batch_table, sequences)
    else:
        seconds = law.base_s + law.per_sequence_s * sequences
    bad = np.flatnonzero(~(seconds[1:] > 0) | ~np.isfinite(seconds[1:]))
    if len(bad):
        batch = int(bad[0]) + 1
        raise ProfileError(
            f"profile {profile.name}: step_time gives {seconds[batch]} s for an iteration of "
            f"{batch} sequences; expected more than 0: raise base_s or mend batch_table"
        )
    seconds[0] = 0.0
    return seconds


def seconds_by_prefill(profile: ServingProfile) -> NDArray[np.float64]:
    """Seconds that prompt tokens add to an iteration, by their number, without prefill_base_s.

    Returns:
        `(chunk_tokens + 1,)` float64; entry 0 is 0.

    Raises:
        ProfileError: some number of prompt tokens would take less than no time.
    """
    law = profile.step_time
    tokens = np.arange(profile.limits.chunk_tokens + 1, dtype=np.float64)
    if law.prefill_table:
        seconds = _along_table(law.prefill_table, tokens)
    else:
        seconds = law.per_prefill_token_s * tokens
    seconds[0] = 0.0
    bad = np.flatnonzero(~(seconds >= 0) | ~np.isfinite(seconds))
    if len(bad):
        raise ProfileError(
            f"profile {profile.name}: step_time gives {seconds[bad[0]]} s for {bad[0]} prompt "
            "tokens; expected at least 0: mend prefill_table or per_prefill_token_s"
        )
    return seconds


def straggler_by_batch(profile: ServingProfile) -> NDArray[np.float64]:
    """Factor on all seconds of an iteration, by sequences in the batch.

    Returns:
        `(batch_size_max + 1,)` float64, 1 everywhere without a `straggler` table.

    Raises:
        ProfileError: some factor is below 1: the slowest of the ranks is not faster than all.
    """
    points = profile.step_time.straggler
    sequences = np.arange(profile.limits.batch_size_max + 1, dtype=np.float64)
    if not points:
        return np.ones(len(sequences))
    factors = _along_table(points, sequences)
    bad = np.flatnonzero(~(factors >= 1) | ~np.isfinite(factors))
    if len(bad):
        raise ProfileError(
            f"profile {profile.name}: step_time.straggler gives a factor of {factors[bad[0]]:g} "
            f"for {bad[0]} sequences; expected at least 1"
        )
    return factors


def _along_table(
    points: tuple[tuple[int, float], ...], sizes: NDArray[np.float64]
) -> NDArray[np.float64]:
    table = np.array(points, dtype=np.float64)
    values = np.interp(sizes, table[:, 0], table[:, 1])
    if len(table) > 1:
        (x0, y0), (x1, y1) = table[-2:]
        beyond = sizes > x1
        values[beyond] = y1 + (y1 - y0) / (x1 - x0) * (sizes[beyond] - x1)
    return values


def decode_seconds(profile: ServingProfile) -> NDArray[np.float64]:
    """`(batch_size_max + 1,)` seconds of an iteration of decodes over an empty cache."""
    return seconds_by_batch(profile) * straggler_by_batch(profile)


def check_step_time(profile: ServingProfile) -> None:
    """Refuse a profile for which some iteration would take no time.

    Raises:
        ProfileError: see the tables.
    """
    decode_seconds(profile)
    seconds_by_prefill(profile)
    ramp_table(profile)


def ramp_table(profile: ServingProfile) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Stages of the warm-up ramp: requests admitted up to which each lasts, and its speed (0-1]."""
    stages = profile.startup.ramp if profile.startup is not None else ()
    requests = np.cumsum(np.array([count for count, _ in stages], dtype=np.int64))
    speed = np.array([speed for _, speed in stages], dtype=np.float64)
    if np.any(~(speed > 0)):
        raise ProfileError(
            f"profile {profile.name}: startup.ramp has speed {speed.min()}; expected more than 0"
        )
    return requests, speed
