"""Static: the same settings for ever, what most fleets run and every rule has to beat.

`static-best` is the same rule under a name that promises where its count is from: it was the best
on other traces than the one it runs on. That is what an operator can know; the best count on the
very trace is hindsight, and a comparison shows both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from policies.entry import Entry, Load, Parameter, Target
from policies.options import Options
from policies.rule import RulePolicy, RuleResult
from tuner.core.errors import ConfigError
from tuner.core.knobs import KnobSettings
from tuner.core.observation import ObservationArrays
from tuner.core.protocols import FloatArray


@dataclass(frozen=True)
class StaticRule:
    """Fixed settings for n targets; knobs that are not named stay as they are.

    It does not look at the load, so `need` is NaN.
    """

    settings: Mapping[str, int]

    @property
    def memory_size(self) -> int:
        return 0

    def why(self, row: int) -> str:
        """See `RuleResult.why`."""
        return "fixed settings" if self.settings else "no settings of its own: all stays as it is"

    def decide(self, now: ObservationArrays, memory: FloatArray) -> RuleResult:
        n = len(now.at_s)
        return RuleResult(
            settings=np.tile(now.knobs.row(self.settings), (n, 1)),
            raw=np.full(n, self.settings.get("replicas", np.nan)),
            need=np.full(n, np.nan),
            memory=memory,
            why=self.why,
        )


def build(options: Options, target: Target) -> RulePolicy:
    """Policy `static`. Options: any knob by name; without `replicas` it is the knob's default.

    Raises:
        ConfigError: an option is no knob, or its value lies outside the knob's range.
    """
    settings = {}
    for spec in target.knobs.specs:
        if not (options.gives(spec.name) or spec.name == "replicas"):
            continue
        settings[spec.name] = options.inside(spec.name, spec.default, spec)
    options.finish()
    return RulePolicy("static", StaticRule(KnobSettings(settings)))


def build_best(options: Options, target: Target) -> RulePolicy:
    """Policy `static-best`: `static`, whose `replicas` has to be given.

    Raises:
        ConfigError: it is not, an option is no knob, or its value lies outside the knob's range.
    """
    if not options.gives("replicas"):
        raise ConfigError(
            "static-best: its count is chosen on another trace, and none is given; name that trace "
            "(`tuner compare --train-trace`) or the count (static-best.replicas)"
        )
    return RulePolicy("static-best", build(options, target).rule)


def search(load: Load) -> tuple[Parameter, ...]:
    """The count, from a quarter of the best to twice as many."""
    low, high = max(1.0, load.replicas // 4), 2.0 * load.replicas
    return (Parameter("replicas", low, high, "replicas", whole=True),)


ENTRY = Entry(build, search)
BEST_ENTRY = Entry(build_best, search)
