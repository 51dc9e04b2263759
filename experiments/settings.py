"""What each policy of a comparison was set to, and what it would be set to by default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from experiments.comparison import Comparison, PolicyOutcome
from experiments.readable import setting_text
from experiments.run import target_knobs
from experiments.workbench import ANY_LOAD
from policies import POLICIES, Options, Target, build_policy
from policies.schedule import ScheduleRule


@dataclass(frozen=True)
class Setting:
    """One option of a policy."""

    name: str
    value: object
    """In force."""
    default: object | None
    """None where there is none: the option does nothing unless it is given."""
    tuned: bool
    """Found by tuning."""
    stated: bool
    """Found by tuning, searched and left as shipped, or given: shown whatever its default."""
    unit: str = ""
    """Of the value; empty for a share, a ratio or a word."""

    @property
    def changed(self) -> bool:
        return self.value != self.default

    @property
    def shown(self) -> bool:
        """Whether it has a line of its own."""
        return self.stated or self.changed


def settings_of(comparison: Comparison, outcome: PolicyOutcome) -> list[Setting]:
    """Every option of a rule, those that matter first; of a bundle what it says of itself."""
    tuned = _tuned(comparison, outcome)
    entry = POLICIES.get(outcome.policy)
    if entry is None:
        said = {**outcome.options, **outcome.runs[0].settings}
        return [Setting(name, value, None, name in tuned, True) for name, value in said.items()]
    run = comparison.config.run
    options = Options(outcome.policy, outcome.options)
    knobs = target_knobs(comparison.profile, max_replicas=run.max_replicas)
    # Only a builder knows which options there are: it is asked, and what it builds is dropped.
    entry.build(options, Target(knobs, run.tick_s, comparison.profile, run.slo))
    known = {**options.defaults, **outcome.options}
    units = _units(outcome)
    stated = set(outcome.options)
    if comparison.tuning.searches.keys() & {outcome.name, outcome.policy}:
        stated |= units.keys()
    found = [
        Setting(
            name,
            value,
            options.defaults.get(name),
            tuned=name in tuned,
            stated=name in stated,
            unit=units.get(name, ""),
        )
        for name, value in known.items()
    ]
    return sorted(
        found, key=lambda setting: (not setting.tuned, not setting.stated, not setting.changed)
    )


def value_text(setting: Setting) -> str:
    """The value with its unit: `1,810 output tokens/s per replica`."""
    return f"{setting_text(setting.value)} {setting.unit}".rstrip()


def cut_timetables(comparison: Comparison) -> Iterator[str]:
    """A sentence for each schedule that asks for more replicas than there may be."""
    run = comparison.config.run
    for outcome in comparison.policies:
        if outcome.policy != "schedule":
            continue
        knobs = target_knobs(comparison.profile, max_replicas=run.max_replicas)
        rule = build_policy("schedule", outcome.options, knobs, tick_s=run.tick_s).rule
        if isinstance(rule, ScheduleRule) and rule.most > run.max_replicas:
            yield (
                f"The timetable of {outcome.name} asks for up to {rule.most} replicas; "
                f"run.max_replicas allows {run.max_replicas}, and more it never got."
            )


def default_text(setting: Setting) -> str:
    """The default in words."""
    return "none" if setting.default is None else setting_text(setting.default)


def _units(outcome: PolicyOutcome) -> dict[str, str]:
    """Parameter -> unit; of the dial none where another metric was chosen for it."""
    parameters = POLICIES[outcome.policy].search(ANY_LOAD)
    units = {p.name: "" if p.unit in ("0-1", p.name) else p.unit for p in parameters}
    if outcome.options.keys() & {"metric", "target_type"}:
        units[parameters[0].name] = ""
    return units


def _tuned(comparison: Comparison, outcome: PolicyOutcome) -> set[str]:
    """Options that a sweep or a search chose, unless the user set another value."""
    tuning = comparison.tuning
    chosen: dict[str, object] = {}
    for name in (outcome.policy, outcome.name):
        if name in tuning.sweeps:
            chosen[tuning.sweeps[name].option] = tuning.sweeps[name].chosen.value
        if name in tuning.searches:
            chosen |= tuning.searches[name].chosen.options
        elif name in tuning.options and name not in tuning.sweeps:
            chosen |= tuning.options[name]
    return {name for name, value in chosen.items() if outcome.options.get(name) == value}
