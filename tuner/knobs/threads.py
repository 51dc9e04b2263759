"""`threads`: CPU-side workers in front of the engine."""

from __future__ import annotations

from tuner.core.knobs import KnobSpec

SPEC = KnobSpec(
    name="threads",
    unit="workers",
    low=1,
    high=64,
    default=4,
    applied="restart",
    meaning="API server and tokenizer workers of a replica; most engines read it at start-up, "
    "so a change is a rolling restart",
)
