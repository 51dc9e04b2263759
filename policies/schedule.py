"""Schedule: a person's timetable, what a fleet whose days are alike is often run by.

It looks at the clock alone. Clock time is `at_s` plus `start`: for a recorded or drawn trace
`start` is the time of day of its second 0, for a live target (seconds since 1970, UTC) the offset
of the time zone that the timetable is in. Zones with daylight saving are not followed.

DeepSeek published such a curve, the nodes of one day (deepseek-ai/open-infra-index@56d8685, day 6
of the open source week): with `peak` it fits any fleet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.entry import Entry, Load, Parameter, Target
from policies.options import Options
from policies.rule import RulePolicy, RuleResult
from tuner.core.errors import ConfigError
from tuner.core.figures import figure
from tuner.core.observation import ObservationArrays
from tuner.core.protocols import FloatArray, IntArray
from tuner.core.timetable import Timetable
from tuner.data.timetables import DAY_S, parse_timetable, read_timetable, seconds

FLOAT_DIGITS = 9
"""Digits of a scaled count that exist; 278 x (12 / 278) is 12, not 12.000000000000002."""


@dataclass(frozen=True)
class ScheduleRule:
    """A timetable over n targets. It does not look at the load, so `need` is NaN."""

    timetable: Timetable
    scale: float = 1.0
    """Replicas per unit of the timetable, > 0."""
    lead_s: float = 0.0
    """More replicas come so much before their time, one cold start ahead; fewer come on time."""
    start_s: float = 0.0
    """Clock time of second 0, s since midnight."""

    @property
    def most(self) -> int:
        """The largest count that it asks for, whatever is allowed."""
        return int(np.ceil(np.round(max(self.timetable.counts) * self.scale, FLOAT_DIGITS)))

    @property
    def memory_size(self) -> int:
        return 0

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        clock_s = now.at_s + self.start_s
        place = self.timetable.soon(clock_s, self.lead_s)
        counts = np.array(self.timetable.counts)[place] * self.scale
        asked = np.ceil(np.round(counts, FLOAT_DIGITS))

        spec = now.knobs["replicas"]
        settings = np.full(now.settings.shape, np.nan)
        settings[:, now.knobs.column("replicas")] = np.clip(asked, spec.low, spec.high)
        return RuleResult(
            settings=settings,
            raw=asked,
            need=np.full(len(asked), np.nan),
            memory=memory,
            why=ScheduleWords(self, clock_s, place, asked, spec.low, spec.high),
        )


@dataclass(frozen=True)
class ScheduleWords:
    """What one call of ScheduleRule worked with; called with a row, it tells that row."""

    rule: ScheduleRule
    clock_s: FloatArray
    place: IntArray
    asked: FloatArray
    low: int
    high: int

    def __call__(self, row: int) -> str:
        """See `RuleResult.why`."""
        table, asked = self.rule.timetable, float(self.asked[row])
        place = int(self.place[row])
        holds = int(table.now(self.clock_s[row : row + 1])[0])
        said = f"timetable {figure(table.counts[place])} {self._when(place)}"
        if place != holds:
            ahead_s = (table.starts_s[place] - float(self.clock_s[row])) % table.period_s
            said += f", {ahead_s:.0f} s ahead of it"
        if self.rule.scale != 1:
            said += f", x {figure(self.rule.scale)}"
        said += f": {asked:.0f}"
        if asked < self.low:
            return f"{said}, at least {self.low} allowed"
        if asked > self.high:
            return f"{said}, at most {self.high} allowed"
        return said

    def _when(self, place: int) -> str:
        starts = self.rule.timetable.starts_s
        if len(starts) == 1:
            return "at all times"
        return f"from {_clock(starts[place])} to {_clock(starts[(place + 1) % len(starts)])}"


def _clock(at_s: float) -> str:
    """Seconds into a period as HH:MM, with seconds where there are some."""
    hours, rest_s = divmod(at_s, 3600)
    minutes, rest_s = divmod(rest_s, 60)
    return f"{hours:02.0f}:{minutes:02.0f}" + (f":{rest_s:02.0f}" if rest_s else "")


def build(options: Options, target: Target) -> RulePolicy:
    """Policy `schedule`.

    Options: `times` such as 08:00=12,20:00=6, or `file` (see `tuner.data.timetables`); `period_s`
    (default a day); `scale`, replicas per unit of the timetable, or `peak`, replicas at its largest
    count; `lead_s`; `start`, the clock time of second 0, HH:MM or seconds.

    Raises:
        ConfigError: there is no timetable, it cannot be read, or an option does not fit.
    """
    period_s = options.above("period_s", DAY_S)
    timetable = _timetable(options, period_s)
    if options.gives("scale") and options.gives("peak"):
        raise ConfigError("schedule: scale and peak are both given; give one of them")
    scale = options.above("scale", 1.0)
    if options.gives("peak"):
        scale = options.above("peak", 1.0) / max(timetable.counts)
    lead_s = options.span("lead_s", 0.0, period_s)
    start = options.text("start", "00:00")
    start_s = seconds(start)
    if start_s is None:
        raise ConfigError(
            f"schedule: start is '{start}'; expected the clock time of second 0, such as 08:30"
        )
    options.finish()
    return RulePolicy("schedule", ScheduleRule(timetable, scale, lead_s, start_s))


def _timetable(options: Options, period_s: float) -> Timetable:
    times, file = options.text("times", ""), options.text("file", "")
    if bool(times) == bool(file):
        found = "times and file are both given" if times else "there is no timetable"
        raise ConfigError(
            f"schedule: {found}; give times, as in --set schedule.times=08:00=12,20:00=6, or the "
            "file of one"
        )
    try:
        return parse_timetable(times, period_s) if times else read_timetable(Path(file), period_s)
    except ConfigError as error:
        raise ConfigError(f"schedule: {error}") from error


def search(load: Load) -> tuple[Parameter, ...]:
    """Replicas at the timetable's largest count, and how far ahead of time they are asked for."""
    kept = "only the shape of its timetable is kept, schedule.scale=1 keeps the counts"
    peak = Parameter("peak", load.replicas / 2, 3 * load.replicas, "replicas", log=True, note=kept)
    return (
        peak,
        Parameter("lead_s", 0.0, 1800.0, "s"),
    )


ENTRY = Entry(build, search)
