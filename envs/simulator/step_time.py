"""Step-time law of a profile as a table over the batch size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import ProfileError
from tuner.core.profile import ServingProfile


def seconds_by_batch(profile: ServingProfile) -> NDArray[np.float64]:
    """Seconds of an iteration without prompt and KV terms, by sequences in the batch.

    With a `batch_table`: linear between its points; beyond the last along the last segment; below
    the first the first point's seconds hold, because the line drawn backwards can fall below zero.

    Returns:
        `(batch_size_max + 1,)` float64; entry 0 is no iteration and 0.

    Raises:
        ProfileError: an iteration of some batch size would take no time.
    """
    law = profile.step_time
    sequences = np.arange(profile.limits.batch_size_max + 1, dtype=np.float64)
    if law.batch_table:
        seconds = _along_table(np.array(law.batch_table, dtype=np.float64), sequences)
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


def _along_table(table: NDArray[np.float64], sequences: NDArray[np.float64]) -> NDArray[np.float64]:
    seconds = np.interp(sequences, table[:, 0], table[:, 1])
    if len(table) > 1:
        (b0, s0), (b1, s1) = table[-2:]
        beyond = sequences > b1
        seconds[beyond] = s1 + (s1 - s0) / (b1 - b0) * (sequences[beyond] - b1)
    return seconds


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
