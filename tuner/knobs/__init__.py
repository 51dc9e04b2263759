"""The knobs. A new one: a file with its SPEC, and a line here."""

from __future__ import annotations

from tuner.core.knobs import KnobSpace, KnobSpec
from tuner.knobs import batch_size, replicas, threads, warmup_requests

KNOBS: dict[str, KnobSpec] = {
    "batch_size": batch_size.SPEC,
    "replicas": replicas.SPEC,
    "threads": threads.SPEC,
    "warmup_requests": warmup_requests.SPEC,
}


def knob_space(**ranges: tuple[int, int]) -> KnobSpace:
    """All knobs in the order of KNOBS, with some ranges narrowed or widened.

    Raises:
        ConfigError: if a range is empty.
        KeyError: if a name is no knob.
    """
    unknown = set(ranges) - set(KNOBS)
    if unknown:
        raise KeyError(sorted(unknown)[0])
    return KnobSpace(
        tuple(
            spec.bounded(*ranges[name]) if name in ranges else spec for name, spec in KNOBS.items()
        )
    )


__all__ = ["KNOBS", "knob_space"]
