"""`warmup_requests`: requests sent to a new replica before it takes traffic."""

from __future__ import annotations

from tuner.core.knobs import KnobSpec

SPEC = KnobSpec(
    name="warmup_requests",
    unit="requests",
    low=0,
    high=2048,
    default=0,
    applied="client",
    meaning="for the next replica that starts: a later start against faster first answers",
)
