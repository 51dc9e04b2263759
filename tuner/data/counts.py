"""Counted load: how many requests each client sent in each 10 minutes, and how long they were.

Two kinds of Parquet files, those that ServeGen's profiles come to (alibaba/ServeGen, Apache-2.0;
Xiang et al., arXiv 2505.09999); other columns are ignored:

    counts   client_id       whole number
             window_start_s  whole number, a multiple of 600
             requests        whole number > 0; a client that sent nothing has no row
             iat_family      "Gamma" or "Weibull": how gaps between its requests are distributed
             iat_shape       shape of that distribution, > 0
    lengths  client_id       whole number
             window_start_s  from when on the distribution holds
             field           "input_tokens" or "output_tokens"; other fields are ignored
             value           tokens, >= 1
             prob            share of the requests, > 0; those of one distribution add up to 1
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tuner.core.errors import TraceError
from tuner.core.trace import LONGEST_S, MAX_TOKENS

WINDOW_S = 600.0
"""Seconds of a window of the counts."""

FAMILIES = ("Gamma", "Weibull")
FIELDS = ("input_tokens", "output_tokens")


@dataclass(frozen=True, eq=False)
class ClientCounts:
    """Requests by client and window, as columns `(rows,)`, earliest window first."""

    name: str
    client_id: NDArray[np.int64]
    window: NDArray[np.int64]
    """Window w goes from w x WINDOW_S to (w + 1) x WINDOW_S."""
    requests: NDArray[np.int64]
    weibull: NDArray[np.bool_]
    """Whether the gaps are Weibull distributed; else they are Gamma distributed."""
    shape: NDArray[np.float64]
    """Of that distribution."""

    @property
    def windows(self) -> int:
        """From the first second to the end of the last counted window."""
        return int(self.window[-1]) + 1

    def totals(self) -> NDArray[np.int64]:
        """`(windows,)` requests of all clients; 0 where nothing was counted."""
        totals = np.zeros(self.windows, np.int64)
        np.add.at(totals, self.window, self.requests)
        return totals


@dataclass(frozen=True, eq=False)
class Distribution:
    """Some lengths and how often each occurs."""

    tokens: NDArray[np.int32]
    """`(values,)` rising."""
    share: NDArray[np.float64]
    """`(values,)` of the requests, 0-1, adding up to 1."""


@dataclass(frozen=True, eq=False)
class ClientLengths:
    """Lengths of one client's requests from some time on."""

    client_id: int
    start_s: float
    requests: float
    """How many were measured: the rarest length is taken for a single request."""
    prompt: Distribution
    output: Distribution


def read_counts(path: str | Path) -> ClientCounts:
    """The counts in a file.

    Raises:
        TraceError: it is missing or not Parquet, lacks a column, or holds an impossible value.
    """
    path = Path(path)
    wanted = ("client_id", "window_start_s", "requests", "iat_family", "iat_shape")
    columns = _read(path, wanted, "counts per client and window")
    for name in ("client_id", "window_start_s", "requests"):
        columns[name] = _whole(path, name, columns[name])
    start_s, family = columns["window_start_s"], columns["iat_family"]
    shape = columns["iat_shape"].astype(np.float64)
    inside = (start_s >= 0) & (start_s % WINDOW_S == 0) & (start_s < LONGEST_S)
    _check(path, "window_start_s", start_s, inside, f"a multiple of {WINDOW_S:.0f}, 0 to a year")
    _check(path, "requests", columns["requests"], columns["requests"] > 0, "at least 1")
    _check(path, "iat_family", family, np.isin(family, FAMILIES), " or ".join(FAMILIES))
    _check(path, "iat_shape", shape, np.isfinite(shape) & (shape > 0), "a number above 0")
    order = np.lexsort((columns["client_id"], start_s))
    window = (start_s[order] // int(WINDOW_S)).astype(np.int64)
    client_id = columns["client_id"][order]
    twice = (np.diff(window) == 0) & (np.diff(client_id) == 0)
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise TraceError(
            f"{path}: client {client_id[row]} has two rows for the window at "
            f"{window[row] * WINDOW_S:.0f} s; add them up"
        )
    return ClientCounts(
        name=path.name,
        client_id=client_id,
        window=window,
        requests=columns["requests"][order],
        weibull=family[order] == "Weibull",
        shape=shape[order],
    )


def read_lengths(path: str | Path) -> tuple[ClientLengths, ...]:
    """The length distributions in a file, by client and time.

    Raises:
        TraceError: it is missing or not Parquet, lacks a column, or holds an impossible value.
    """
    path = Path(path)
    wanted = ("client_id", "window_start_s", "field", "value", "prob")
    columns = _read(path, wanted, "length distributions")
    used = np.isin(columns["field"], FIELDS)
    columns = {name: column[used] for name, column in columns.items()}
    for name in ("client_id", "window_start_s"):
        columns[name] = _whole(path, name, columns[name])
    value, share = columns["value"].astype(np.float64), columns["prob"].astype(np.float64)
    _check(path, "value", value, (value >= 1) & (value <= MAX_TOKENS), f"1 to {MAX_TOKENS} tokens")
    _check(path, "prob", share, (share > 0) & (share < 1.001), "a share above 0, at most 1")
    output = (columns["field"] == FIELDS[1]).astype(np.int64)
    client_id, start_s = columns["client_id"], columns["window_start_s"]
    order = np.lexsort((value, output, start_s, client_id))
    keys = np.stack([client_id, start_s, output], axis=1)[order]
    borders = np.flatnonzero(np.any(np.diff(keys, axis=0) != 0, axis=1)) + 1
    found: dict[tuple[int, int], dict[int, Distribution]] = {}
    for part in np.split(order, borders):
        if len(part):
            key = (int(client_id[part[0]]), int(start_s[part[0]]))
            found.setdefault(key, {})[int(output[part[0]])] = _distribution(
                value[part], share[part]
            )
    if not found:
        raise TraceError(f"{path} holds no distribution of {' and '.join(FIELDS)}")
    return tuple(_lengths(path, *key, both) for key, both in found.items())


def _lengths(
    path: Path, client_id: int, start_s: int, both: dict[int, Distribution]
) -> ClientLengths:
    if len(both) < len(FIELDS):
        missing = FIELDS[0] if 1 in both else FIELDS[1]
        raise TraceError(f"{path}: client {client_id} has no {missing} at {start_s} s; add them")
    prompt, output = both[0], both[1]
    requests = 1 / min(prompt.share.min(), output.share.min())
    return ClientLengths(client_id, float(start_s), float(requests), prompt, output)


def _distribution(tokens: NDArray[np.float64], share: NDArray[np.float64]) -> Distribution:
    return Distribution(np.rint(tokens).astype(np.int32), share / share.sum())


def _read(path: Path, names: Iterable[str], what: str) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise TraceError(f"{path} does not exist or is a folder; expected {what}, Parquet")
    try:
        schema = pq.read_schema(path)
        missing = [name for name in names if name not in schema.names]
        if missing:
            raise TraceError(
                f"{path}: column {missing[0]!r} is missing (found "
                f"{', '.join(schema.names) or 'none'}); expected {what}"
            )
        table = pq.read_table(path, columns=list(names))
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{path} is not a readable Parquet file; expected {what}") from error
    if table.num_rows == 0:
        raise TraceError(f"{path} holds no row; expected {what}")
    columns = {}
    for name in names:
        column = table[name]
        if column.null_count:
            raise TraceError(f"{path}: {name} is missing in {column.null_count} rows; fill them")
        columns[name] = column.to_numpy()
        text = name in ("iat_family", "field")
        if not text and columns[name].dtype.kind not in "iuf":
            raise TraceError(f"{path}: column {name!r} holds {column.type}; expected numbers")
    return columns


def _whole(path: Path, name: str, column: NDArray[Any]) -> NDArray[np.int64]:
    _check(path, name, column, np.isfinite(column) & (column == np.floor(column)), "a whole number")
    return column.astype(np.int64)


def _check(
    path: Path, name: str, column: NDArray[Any], good: NDArray[np.bool_], expected: str
) -> None:
    bad = np.flatnonzero(~good)
    if len(bad):
        row = int(bad[0])
        raise TraceError(f"{path}: {name} is {column[row]} in one row; expected {expected}")
