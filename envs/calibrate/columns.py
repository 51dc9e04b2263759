"""Columns of numbers out of a recording: NumPy archive, Parquet, or CSV (packed or not)."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tuner.core.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """What each value of a column must be."""

    unit: str
    """"seconds", "tokens"."""
    least: float
    most: float
    whole: bool = False
    slip: str = ""
    """What a value out of range likely is: "milliseconds"."""

    def refuse(self, path: Path, name: str, values: Floats, rows: NDArray[np.int64]) -> None:
        """Refuse the first value that is out of range.

        Args:
            values: `(rows,)`, NaN of an empty cell.
            rows: number of each value's row in the file, from 1.

        Raises:
            InputError: naming file, column, row and value.
        """
        fits = (values >= self.least) & (values <= self.most)
        if self.whole:
            fits &= values == np.floor(values)
        bad = np.flatnonzero(~fits)
        if not len(bad):
            return
        value, row = values[bad[0]], rows[bad[0]]
        whole = "whole " if self.whole else ""
        other_unit = value > self.most or 0 < value < self.least
        slip = f" ({self.slip}?)" if self.slip and other_unit and np.isfinite(value) else ""
        raise InputError(
            f"{path}: {name} is {value:.10g} in row {row}; expected {whole}{self.unit} from "
            f"{self.least:,.10g} to {self.most:,.10g}{slip}"
        )


def read_columns(
    path: Path,
    wanted: Mapping[str, Sequence[str]],
    optional: Mapping[str, Sequence[str]],
    what: str,
) -> dict[str, Floats]:
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
    columns: dict[str, Floats] = {}
    for name, names in {**wanted, **optional}.items():
        present = next((candidate for candidate in names if candidate in found), None)
        if present is None:
            if name in optional:
                continue
            raise InputError(
                f"{path}: column {names[0]!r} is missing; {what} has the columns "
                f"{', '.join(wanted)}"
            )
        columns[name] = as_numbers(path, present, np.asarray(found[present]))
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


def as_numbers(path: Path, name: str, column: NDArray[np.generic]) -> Floats:
    """The column as float64; an empty cell is NaN. Text is no number, not even "12".

    Raises:
        InputError: the column has rows of several values, or a cell is no number.
    """
    if column.ndim != 1:
        shape = " x ".join(map(str, column.shape)) or "a single value"
        raise InputError(f"{path}: column {name!r} is {shape}; expected one number per row")
    if column.dtype.kind in "iuf":
        return column.astype(np.float64)
    for row, value in enumerate(column.tolist(), 1):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float | Decimal)
        ):
            text = repr(value)
            raise InputError(
                f"{path}: {name} is {text if len(text) <= 40 else f'{text[:40]}...'} in row {row}; "
                "expected a number"
            )
    return np.array([np.nan if v is None else float(v) for v in column.tolist()], np.float64)


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
    twice = next((n for n in table.column_names if table.column_names.count(n) > 1), None)
    if twice is not None:
        raise InputError(f"{path}: column {twice!r} is there twice; expected {what}, each once")
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
