"""A reference run of another simulator, from files: a load, and TTFT and E2E of each request."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.fidelity.runs import Latencies
from experiments.result import Floats
from tuner.core.errors import InputError
from tuner.core.trace import Trace

LOAD_COLUMNS = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")
TIME_COLUMNS = ("ttft_s", "e2e_s")


def read_load(path: Path) -> Trace:
    """The load in a CSV file (also gzipped) with LOAD_COLUMNS, as Vidur (microsoft/vidur) reads it.

    Raises:
        InputError: the file cannot be read or lacks a column.
    """
    arrived, prompt, output = _columns(path, LOAD_COLUMNS)
    return Trace(arrived, prompt.astype(np.int32), output.astype(np.int32), name=path.name)


def read_times(path: Path, trace: Trace) -> Latencies:
    """TTFT and E2E of each request of the load, in its order, in a CSV file (also gzipped).

    Raises:
        InputError: the file cannot be read, lacks a column or has another number of rows.
    """
    ttft_s, e2e_s = _columns(path, TIME_COLUMNS)
    if len(ttft_s) != len(trace):
        raise InputError(
            f"{path} has {len(ttft_s)} rows, {trace.name} has {len(trace)} requests; "
            "expected one row for each request"
        )
    return Latencies.of(trace, ttft_s, e2e_s)


def _columns(path: Path, names: tuple[str, ...]) -> list[Floats]:
    try:
        rows = np.genfromtxt(path, delimiter=",", names=True)
        return [np.atleast_1d(rows[name]).astype(np.float64) for name in names]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); expected a CSV file") from error
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(
            f"{path} does not have the columns {', '.join(names)}; expected a CSV file with a "
            "header that names them"
        ) from error


def largest_error_s(reference: Latencies, simulated: Latencies) -> float:
    """Largest difference of any request's TTFT or E2E, s."""
    return max(
        float(np.abs(simulated.ttft_s - reference.ttft_s).max()),
        float(np.abs(simulated.e2e_s - reference.e2e_s).max()),
    )
