"""Timetables: from a file or a line of text to a Timetable, or one clear sentence.

| file | what it holds |
| --- | --- |
| `.csv` | a header; the first column says when, a column `replicas` or `nodes` how many; others are
  passed over |
| `.yaml`, `.yml` | `when: how many`, one per line |

When is `HH:MM`, `HH:MM:SS`, seconds into the period, or in CSV a date with a time: the day of the
first row is the first of the period.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from io import StringIO
from math import isfinite
from pathlib import Path

from tuner.core.errors import ConfigError
from tuner.core.timetable import Timetable
from tuner.data.strict import parse_yaml, read_text

DAY_S = 86_400.0

COUNTS = ("replicas", "nodes")
"""Names of the column that says how many."""

_CLOCK = re.compile(r"(\d{1,3}):([0-5]\d)(?::([0-5]\d))?")

_EXAMPLE = "08:00=12,20:00=6"

Entry = tuple[str, str, str]
"""Where it stands, when, and how many, as they were written."""


def seconds(text: str) -> float | None:
    """Seconds of `HH:MM`, `HH:MM:SS` or a plain number >= 0; None for anything else."""
    clock = _CLOCK.fullmatch(text.strip())
    if clock:
        hours, minutes, rest = (int(part or 0) for part in clock.groups())
        return 3600.0 * hours + 60.0 * minutes + rest
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) and value >= 0 else None


def parse_timetable(text: str, period_s: float = DAY_S) -> Timetable:
    """A timetable in one line, such as `08:00=12,20:00=6`.

    Raises:
        ConfigError: it is none.
    """
    entries = []
    for part in text.split(","):
        when, equals, count = part.partition("=")
        if not equals:
            raise ConfigError(f"times: '{part}' is no WHEN=REPLICAS; expected such as {_EXAMPLE}")
        entries.append((f"times: '{part}'", when, count))
    return _timetable("times", _by_clock(entries, period_s), period_s)


def read_timetable(path: Path, period_s: float = DAY_S) -> Timetable:
    """The timetable of a file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".yaml", ".yml"):
        raise ConfigError(f"{path} ends in '{suffix}'; expected a timetable as .csv or .yaml")
    text = read_text(path, "a timetable", ConfigError)
    if suffix == ".csv":
        return _timetable(str(path), _csv(text, str(path), period_s), period_s)
    hint = ' such as "08:00": 12, one per line'
    data = parse_yaml(text, str(path), ConfigError, hint=hint)
    entries = ((f"{path}: {when}", when, str(count)) for when, count in data.items())
    return _timetable(str(path), _by_clock(entries, period_s), period_s)


Step = tuple[str, float, float]
"""Where it stands, seconds into the period, and how many."""


def _csv(text: str, source: str, period_s: float) -> Iterator[Step]:
    rows = [row for row in csv.reader(StringIO(text)) if any(cell.strip() for cell in row)]
    header = [cell.strip() for cell in rows[0]] if rows else []
    column = next((header.index(name) for name in COUNTS if name in header[1:]), None)
    if column is None:
        found = f"its header is {','.join(header)}" if header else "it is empty"
        raise ConfigError(
            f"{source}: {found}; expected when in the first column and how many in one named "
            f"{' or '.join(COUNTS)}, as in time,replicas"
        )
    entries = []
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise ConfigError(
                f"{source}: row {line} has {len(row)} columns; expected the {len(header)} of the "
                "header"
            )
        entries.append((f"{source}: row {line}", row[0], row[column]))
    dated = bool(entries) and seconds(entries[0][1]) is None
    return (_by_date if dated else _by_clock)(entries, period_s)


def _by_clock(entries: Iterable[Entry], period_s: float) -> Iterator[Step]:
    for where, when, count in entries:
        at_s = seconds(when)
        if at_s is None or at_s >= period_s:
            raise ConfigError(
                f"{where}: '{when.strip()}' is no time of the period; expected HH:MM, or seconds "
                f"below {period_s:g}"
            )
        yield where, at_s, _count(where, count)


def _by_date(entries: Iterable[Entry], period_s: float) -> Iterator[Step]:
    first: datetime | None = None
    for where, when, count in entries:
        try:
            # The wall clock is what a timetable is about, whatever its zone.
            at = datetime.fromisoformat(when.strip()).replace(tzinfo=None)
        except ValueError:
            raise ConfigError(
                f"{where}: '{when.strip()}' is no time; expected HH:MM, seconds, or a date with a "
                "time such as 2026-11-20T08:00"
            ) from None
        first = first or at
        gone_s = (at - first).total_seconds()
        if not 0 <= gone_s < period_s:
            raise ConfigError(
                f"{where}: {when.strip()} lies outside the period of {period_s:g} s that begins "
                f"with the first row, {first.isoformat()}; cut the file or set another period_s"
            )
        midnight = first.replace(hour=0, minute=0, second=0, microsecond=0)
        yield where, (at - midnight).total_seconds() % period_s, _count(where, count)


def _count(where: str, text: str) -> float:
    try:
        count = float(text)
    except ValueError:
        count = -1.0
    if not (isfinite(count) and count >= 0):
        raise ConfigError(f"{where}: '{text.strip()}' is no count; expected a number, 0 or more")
    return count


def _timetable(source: str, steps: Iterable[Step], period_s: float) -> Timetable:
    counts: dict[float, float] = {}
    for where, at_s, count in steps:
        if at_s in counts:
            raise ConfigError(f"{where}: that time of the period is given twice; give it once")
        counts[at_s] = count
    if not counts:
        raise ConfigError(f"{source}: there is no time in it; expected such as {_EXAMPLE}")
    if not any(counts.values()):
        raise ConfigError(f"{source}: every count is 0; give the replicas that are wanted")
    starts = tuple(sorted(counts))
    return Timetable(starts, tuple(counts[start] for start in starts), period_s)
