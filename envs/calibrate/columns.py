"""Columns of numbers out of a recording: NumPy archive, Parquet, or CSV (packed or not)."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tuner.core.errors import InputError

Columns = Mapping[str, NDArray[np.float64]]


def read_columns(
    path: Path,
    wanted: Mapping[str, Sequence[str]],
    optional: Mapping[str, Sequence[str]],
    what: str,
) -> dict[str, NDArray[np.float64]]:
    """Columns by our name, each from the first of its names in the file that is there.

    Args:
        wanted: our name -> names it may have in the file; one of them must be there.
        optional: the same; left out of the answer if the file has none.
        what: what the file should be, for messages: "a step log".

    Returns:
        Arrays of one length, float64, all finite, at least one row.

    Raises:
        InputError: the file cannot be read, lacks a column, or holds what is no number.
    """
    found = _raw(path, what)
    columns: dict[str, NDArray[np.float64]] = {}
    for name, names in {**wanted, **optional}.items():
        present = next((candidate for candidate in names if candidate in found), None)
        if present is None:
            if name in optional:
                continue
            raise InputError(
                f"{path}: column {names[0]!r} is missing; {what} has the columns "
                f"{', '.join(wanted)}"
            )
        try:
            columns[name] = np.asarray(found[present]).astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: column {present!r} holds what is no number") from error
    rows = {name: len(column) for name, column in columns.items()}
    if len(set(rows.values())) > 1:
        raise InputError(f"{path}: columns differ in length ({rows}); expected one row per entry")
    if not next(iter(rows.values())):
        raise InputError(f"{path} holds no row; expected {what}")
    for name, column in columns.items():
        bad = np.flatnonzero(~np.isfinite(column))
        if len(bad):
            raise InputError(
                f"{path}: row {bad[0] + 1} has {column[bad[0]]} as {name}; expected a number: "
                "leave such rows out"
            )
    return columns


def _raw(path: Path, what: str) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        raise InputError(f"{path} is not a file; expected {what} (.npz, .parquet or .csv)")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        csv = ".csv" in path.suffixes
        table = pc.read_csv(path) if csv else pq.read_table(path)
    except (OSError, ValueError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read ({error}); expected {what}") from error
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
