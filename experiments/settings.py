"""What each policy of a comparison was set to, and what it would be set to by default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from experiments.comparison import Comparison, PolicyOutcome
from experiments.readable import setting_text
from experiments.run import target_knobs
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

    @property
    def changed(self) -> bool:
        return self.value != self.default


def settings_of(comparison: Comparison, outcome: PolicyOutcome) -> list[Setting]:
    """Every option of a rule, the changed ones first; of a bundle what it says of itself."""
    tuned = _tuned(comparison, outcome)
    entry = POLICIES.get(outcome.policy)
    if entry is None:
        said = {**outcome.options, **outcome.runs[0].settings}
        return [Setting(name, value, None, name in tuned) for name, value in said.items()]
    run = comparison.config.run
    options = Options(outcome.policy, outcome.options)
    knobs = target_knobs(comparison.profile, max_replicas=run.max_replicas)
    # Only a builder knows which options there are: it is asked, and what it builds is dropped.
    entry.build(options, Target(knobs, run.tick_s, comparison.profile, run.slo))
    known = {**options.defaults, **outcome.options}
    found = [
        Setting(name, value, options.defaults.get(name), name in tuned)
        for name, value in known.items()
    ]
    return sorted(found, key=lambda setting: (not setting.tuned, not setting.changed))


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
