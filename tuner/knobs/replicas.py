"""`replicas`: how many serving units run."""

from __future__ import annotations

from tuner.core.knobs import KnobSpec

SPEC = KnobSpec(
    name="replicas",
    unit="replicas",
    low=1,
    high=32,
    default=4,
    applied="scale",
    meaning="serving units wanted; a unit may be many GPUs, starts cold and drains",
)
