"""What a fit to telemetry cannot know, because the recording does not hold it."""

from __future__ import annotations

import numpy as np

from envs.calibrate.telemetry import KINDS, SHOWN, Recording
from tuner.core.histograms import histogram_quantile

SPREAD = "spread of the fit over blocks of time and reconstructions, not a 95 % interval"
"""What the intervals of a fit to telemetry are: known fleets lay outside of theirs more often than
one time in twenty (see `telemetry`)."""

LEAST_SPREAD = 0.15
"""Standard deviation of the rate over blocks, relative, beyond chance. A load that goes evenly from
one rate to its double has 0.19, one that grows by half 0.12."""


def cautions(recording: Recording) -> list[str]:
    """One sentence for each thing that the recording cannot tell."""
    found = []
    spread = rate_spread(recording)
    if spread < LEAST_SPREAD:
        found.append(
            f"the recording holds one rate only (it varies by {spread:.0%} beyond chance): what a "
            "batch of another size costs is a guess; record low and high load too"
        )
    for kind in KINDS:
        first_s = float(recording.bounds[kind][0])
        pooled = recording.measured.counts[kind][recording.judged].sum(axis=0)[None, :]
        inside = [
            name
            for name, share in SHOWN.items()
            if histogram_quantile(share, recording.bounds[kind], pooled)[0] <= first_s
        ]
        if inside:
            found.append(
                f"{kind.removesuffix('_s').upper()} {', '.join(inside)}: in the first bucket of "
                f"the engine's histogram (0 to {1e3 * first_s:g} ms), so interpolated and not "
                "measured"
            )
    return found


def rate_spread(recording: Recording) -> float:
    """Standard deviation of the finished requests/s over judged blocks, over their mean, less what
    a Poisson process of one rate has. A block counts by its requests: idle time tells nothing."""
    seconds = np.diff(recording.edge_s)[recording.judged]
    requests = recording.measured.counts["e2e_s"].sum(axis=1)[recording.judged]
    rate = requests / seconds
    mean = float(np.average(rate, weights=requests))
    beyond = float(np.average((rate - mean) ** 2 - mean / seconds, weights=requests))
    return float(np.sqrt(max(beyond, 0.0)) / mean)
