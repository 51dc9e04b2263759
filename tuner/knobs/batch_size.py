"""`batch_size`: most sequences that one replica runs at once."""

from __future__ import annotations

from tuner.core.knobs import KnobSpec

SPEC = KnobSpec(
    name="batch_size",
    unit="sequences",
    low=1,
    high=1024,
    default=1024,
    applied="hot",
    meaning="admission cap of a replica; its ceiling is the engine's start-up argument, and "
    "lowering it never evicts",
)
