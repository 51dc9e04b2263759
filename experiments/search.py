"""Searching a rule's parameters: the cheapest setting that reaches the goal, in a fixed budget.

Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011; Watanabe 2023,
arXiv:2304.11127) proposes, runs answer. Trial 0 is the rule as its project ships it. The next walk
the rule's dial over its range with everything else as shipped, because the dial decides most and a
blind start wastes a small budget. While the best setting lies at an end of that range, the range
grows there and a batch walks what is new; the rest is the estimator's. Attainment is a constraint:
settings that reach the goal are ordered by cost, the others by how far they miss it.

Each trial is drawn by its own sampler, seeded by its number, from what is known when its batch
begins. So neither the number of processes nor being killed and resumed changes any trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np

from experiments.readable import brief, figure, percent
from experiments.summary import Figures, figures_from, plain
from experiments.sweep import AT_END, BELOW_GOAL, at_end, rounded, towards
from policies import POLICIES, Load, Options, OptionValue, Parameter, Target
from tuner.core.errors import ConfigError, InputError
from tuner.core.trace import Trace

if TYPE_CHECKING:
    from optuna import Study
    from optuna import Trial as Asked
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

BATCH = 4
"""Trials drawn from the same knowledge: as many as small machines run at once. Fixed, because with
it the trials would change."""
WALK = 2 * BATCH - 1
"""Trials along the dial, before the estimator takes over."""
EDGE = 1 / WALK
"""Share of the dial's range at either end in which the best setting asks for more range."""
GROWTH = 0.5
"""What the range grows by, of its length."""
MOST_GROWTHS = 3
MOST_DRAWS = 100
"""Settings drawn for one trial until one can be built."""


@dataclass(frozen=True)
class Trial:
    """One setting of a rule, tried once."""

    options: Mapping[str, OptionValue]
    """What was searched; empty for the rule as it is shipped."""
    figures: Figures


@dataclass(frozen=True)
class Search:
    """What was tried for one rule, and what was taken."""

    policy: str
    trace: str
    """Name of the trace that it was searched on."""
    hindsight: bool
    """Whether that is the very trace that is compared."""
    goal: float
    budget: int
    """Trials that were spent."""
    simulated_s: float
    """Time that was simulated for them, s."""
    trials: tuple[Trial, ...]
    """In the order in which they were tried, the rule as shipped first; of a search of before, only
    that one and the chosen one."""
    chosen: Trial
    """With every searched option in it, also where that is the rule as shipped."""
    reached: bool
    """Whether the chosen trial reaches the goal; else it is the one with the best attainment."""
    elsewhere: str = ""
    """What else it was tuned with than is compared, in words; empty where with the same."""
    at_end: bool = False
    """Whether the dial's value lies at an end of those that were tried."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know of the setting, in words."""
        searched = POLICIES[self.policy].search(Load(1, 1, 1, 1, 1, 1))
        notes = [p.note for p in searched if p.note and p.name in self.chosen.options]
        return (AT_END, *notes) if self.at_end else tuple(notes)

    @property
    def setting(self) -> str:
        """What was taken, in words: `hpa with target 1,580, tolerance 0.05`."""
        given = "with " if self.chosen.options else ""
        return f"{self.policy} {given}{options_in_words(self.chosen.options)}"

    @property
    def sentence(self) -> str:
        """What was chosen and why, in words."""
        reaches = _reaches(self.chosen.figures)
        tried = f"{self.budget} settings tried on {self.trace}"
        end = f" ({'; '.join(self.remarks)})" if self.remarks else ""
        if not self.reached:
            return (
                f"None of {tried} meets the objectives for {percent(self.goal)} of the requests; "
                f"{self.setting}{end} comes closest: {reaches}, {BELOW_GOAL}"
            )
        return (
            f"{self.setting}{end} is the cheapest of {tried} that meets the "
            f"objectives for {percent(self.goal)} of the requests: {reaches}; "
            f"as shipped it reaches {_reaches(self.trials[0].figures)}"
        )


def options_in_words(options: Mapping[str, OptionValue]) -> str:
    """`target 1,580, tolerance 0.05`; `as shipped` where nothing is set."""
    if not options:
        return "as shipped"
    shown = (f"{k} {v if isinstance(v, str) else brief(v)}" for k, v in options.items())
    return ", ".join(shown)


def _reaches(figures: Figures) -> str:
    return (
        f"{figure('slo_attainment', figures.slo_attainment)} for "
        f"{figure('gpu_hours', figures.gpu_hours)} GPU hours"
    )


@dataclass(frozen=True)
class Space:
    """What can be searched of a rule."""

    policy: str
    parameters: tuple[Parameter, ...]
    """The first is the dial."""
    defaults: Mapping[str, float]
    """Parameter -> the rule's own value; absent where it depends on what else is set."""
    target: Target = field(repr=False)
    given: Mapping[str, OptionValue]
    """Options that are not searched."""

    @classmethod
    def of(cls, policy: str, load: Load, target: Target, given: Mapping[str, OptionValue]) -> Space:
        """The space of a rule around a load, without what the user has set.

        Raises:
            ConfigError: the rule cannot be built with what the user has set.
        """
        entry = POLICIES[policy]
        asked = Options(policy, given)
        entry.build(asked, target)
        parameters = _beside(policy, entry.search(load), target, given)
        defaults = {}
        for parameter in parameters:
            default = asked.defaults.get(parameter.name)
            if isinstance(default, int | float) and (default > 0 or not parameter.log):
                defaults[parameter.name] = float(default)
        return cls(policy, parameters, defaults, target, given)

    @property
    def dial(self) -> Parameter:
        return self.parameters[0]

    @property
    def shipped(self) -> dict[str, OptionValue]:
        """The rule's own values, as far as they are known, as options."""
        whole = {parameter.name for parameter in self.parameters if parameter.whole}
        return {k: round(value) if k in whole else value for k, value in self.defaults.items()}

    def start(self, number: int) -> dict[str, float] | None:
        """Values of an early trial; None: the estimator's to draw."""
        if len(self.defaults) < len(self.parameters) or number > WALK:
            return None
        if number == 0:
            return dict(self.defaults)
        values = {**self.defaults, self.dial.name: self._at((number - 0.5) / WALK)}
        return values if self.builds(self.options(values)) else None

    def grown(self, trials: Sequence[Trial], goal: float) -> tuple[Space, list[float]] | None:
        """The space with more of the dial where the best trial is at an end of it, and values to
        walk what is new; None: it is not, or there is no more."""
        dial, (best, _) = self.dial, cheapest(trials, goal)
        value = best.options.get(dial.name, self.defaults.get(dial.name))
        if value is None:
            return None
        upwards = float(value) >= self._at(1 - EDGE)
        if not upwards and float(value) > self._at(EDGE):
            return None
        # As shares of the range: 0 is low, 1 is high, and what is new lies beyond.
        beyond = [GROWTH * (place + 0.5) / BATCH for place in range(BATCH)]
        bound = self._at(1 + GROWTH if upwards else -GROWTH)
        walk = [self._at(1 + share if upwards else -share) for share in beyond]
        if not self.builds({self.dial.name: bound}):
            return None
        wider = replace(dial, high=bound) if upwards else replace(dial, low=bound)
        return replace(self, parameters=(wider, *self.parameters[1:])), walk

    def _at(self, share: float) -> float:
        """The dial's value at a share of its range; below 0 and above 1 it lies beyond."""
        value = towards(self.dial.low, self.dial.high, share, self.dial.log)
        return round(value) if self.dial.whole else value

    def options(self, values: Mapping[str, float]) -> dict[str, OptionValue]:
        """A value of each parameter as options."""
        return {
            p.name: round(values[p.name]) if p.whole else rounded(values[p.name])
            for p in self.parameters
        }

    def builds(self, options: Mapping[str, OptionValue]) -> bool:
        """Whether the rule takes these options: some contradict each other, such as a distance to
        a threshold that is more than the threshold."""
        try:
            given = Options(self.policy, {**options, **self.given})
            POLICIES[self.policy].build(given, self.target)
        except ConfigError:
            return False
        return True


def _beside(
    policy: str,
    parameters: Sequence[Parameter],
    target: Target,
    given: Mapping[str, OptionValue],
) -> tuple[Parameter, ...]:
    """The most parameters that can stand together beside what the user has set, the first ones of
    several: the peak of a schedule cannot beside its scale, whatever its value."""
    free = tuple(p for p in parameters if p.name not in given)
    if not given:
        return free

    def builds(some: Sequence[Parameter], values: Sequence[float]) -> bool:
        options = {
            p.name: round(value) if p.whole else value
            for p, value in zip(some, values, strict=True)
        }
        try:
            POLICIES[policy].build(Options(policy, {**options, **given}), target)
        except ConfigError:
            return False
        return True

    # Low, middle and high of each: a spare of a threshold goes with a threshold above it alone.
    tried = {p: [towards(p.low, p.high, share, p.log) for share in (0.0, 0.5, 1.0)] for p in free}
    for size in range(len(free), 0, -1):
        for some in combinations(free, size):
            if any(builds(some, values) for values in product(*(tried[p] for p in some))):
                return some
    return ()


class Searching:
    """A search under way: asked for a batch of settings, told their figures, until it is done.

    Args:
        space: what is searched; at least one parameter.
        trials: the budget, >= 1, the rule as shipped included.
        goal: share of requests (0-1) that must meet every objective.
        seed: of the estimator.
        storage: URL of Optuna's storage, where the search goes on from what is there; None: memory.
        study: the search's name in the storage.
    """

    def __init__(
        self,
        space: Space,
        *,
        trials: int,
        goal: float,
        seed: int,
        storage: str | None = None,
        study: str = "search",
    ) -> None:
        self.space = space
        self.trials = trials
        self._goal = goal
        self._seed = seed
        self._study = open_study(storage, study)
        self._batch: list[Asked] = []

    @property
    def known(self) -> int:
        """Trials that are finished."""
        return len(self._trials("COMPLETE"))

    @property
    def done(self) -> bool:
        return self.known >= self.trials

    def batch(self) -> list[Mapping[str, OptionValue]]:
        """The next settings to run; none once the search is done."""
        # Asked before a kill and never told: asked again, in the same order.
        for trial in self._trials("RUNNING"):
            self._study.tell(trial.number, state=_state("FAIL"))
            self._study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
        known = self.known
        again = len(self._trials("WAITING"))
        end = min((known // BATCH + 1) * BATCH, self.trials)
        space, walk = self._planned()
        self._batch = []
        for number in range(known, end):
            start = walk[number % BATCH] if walk else space.start(number)
            waits = number < known + again
            self._batch.append(self._ask(space, number, start, waits=waits))
        return [self._options(trial) for trial in self._batch]

    def _planned(self) -> tuple[Space, list[dict[str, float] | None]]:
        """The space of the next batch, and its values where it walks new range.

        Worked out anew from the finished trials, so that a search that was killed plans as one
        that was not.
        """
        space, walk, growths = self.space, list[dict[str, float] | None](), 0
        trials = [self._trial(trial) for trial in self._trials("COMPLETE")]
        for known in range(WALK + 1, len(trials) + 1, BATCH):
            grown = space.grown(trials[:known], self._goal) if growths < MOST_GROWTHS else None
            walk = []
            if grown is not None:
                space, values = grown
                best, _ = cheapest(trials[:known], self._goal)
                others = {**self.space.defaults, **_numbers(best.options)}
                if len(others) == len(space.parameters):
                    steps = [{**others, space.dial.name: value} for value in values]
                    walk = [s if space.builds(space.options(s)) else None for s in steps]
                growths += 1
        return space, walk

    def tell(self, figures: Sequence[Figures]) -> None:
        """What came of the last batch, in its order."""
        for trial, found in zip(self._batch, figures, strict=True):
            trial.set_user_attr(_FIGURES, plain(asdict(found)))
            trial.set_constraint("goal", self._goal - found.slo_attainment)
            self._study.tell(trial, found.gpu_hours)

    def result(self, trace: Trace, *, hindsight: bool) -> Search:
        """What is known, and what to take of it; after at least one batch."""
        trials = tuple(self._trial(trial) for trial in self._trials("COMPLETE"))
        chosen, reached = cheapest(trials, self._goal)
        if not chosen.options:
            chosen = replace(chosen, options=self.space.shipped)
        return Search(
            policy=self.space.policy,
            trace=trace.name,
            hindsight=hindsight,
            goal=self._goal,
            budget=len(trials),
            simulated_s=len(trials) * trace.last_arrival_s,
            trials=trials,
            chosen=chosen,
            reached=reached,
            at_end=self._at_end(trials, chosen),
        )

    def _at_end(self, trials: Sequence[Trial], chosen: Trial) -> bool:
        """Whether the chosen value of the dial is the least or the greatest that was tried."""
        name = self.space.dial.name
        default = self.space.shipped.get(name)
        values = [trial.options.get(name, default) for trial in trials]
        value = chosen.options.get(name, default)
        known = [float(tried) for tried in values if tried is not None]
        return value is not None and at_end(float(value), known)

    def _ask(
        self, space: Space, number: int, start: Mapping[str, float] | None, *, waits: bool
    ) -> Asked:
        """The trial of a number, with the values to start from where there are some; one that
        waits since before a kill has its values already."""
        from optuna.samplers import TPESampler

        if not waits and (start is not None or number == 0):
            self._study.enqueue_trial(dict(start or {}), user_attrs={_SHIPPED: number == 0})
        for draw in range(MOST_DRAWS):
            seed = _seed(self._seed, number, draw)
            self._study.sampler = TPESampler(seed=seed, n_startup_trials=WALK + 1)
            if number == 0 and start is None:
                return self._study.ask({})  # as shipped, whatever that is in numbers
            trial = self._study.ask(_distributions(space, start or {}))
            if space.builds(self._options(trial)):
                return trial
            self._study.tell(trial, state=_state("FAIL"))
        raise InputError(
            f"{space.policy}: {MOST_DRAWS} settings in a row contradict themselves; set one of "
            f"{', '.join(p.name for p in space.parameters)} by hand"
        )

    def _trial(self, trial: FrozenTrial) -> Trial:
        return Trial(self._options(trial), figures_from(trial.user_attrs[_FIGURES]))

    def _options(self, trial: Asked | FrozenTrial) -> dict[str, OptionValue]:
        if trial.user_attrs.get(_SHIPPED):
            return {}
        return self.space.options(trial.params)

    def _trials(self, state: str) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(_state(state),))


_SHIPPED = "as shipped"
_FIGURES = "figures"


def _state(name: str) -> TrialState:
    from optuna.trial import TrialState

    return TrialState[name]


def _seed(seed: int, number: int, draw: int) -> int:
    """Of a trial's own sampler; a draw after one that cannot be built has another."""
    return int(np.random.SeedSequence((seed, number, draw)).generate_state(1)[0])


def _distributions(space: Space, start: Mapping[str, float]) -> dict[str, BaseDistribution]:
    """The ranges, each wide enough for the value to start from: a rule's own may lie outside."""
    from optuna.distributions import FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for p in space.parameters:
        value = start.get(p.name, p.low)
        low, high = min(p.low, value), max(p.high, value)
        found[p.name] = (
            IntDistribution(round(low), round(high), log=p.log)
            if p.whole
            else FloatDistribution(low, high, log=p.log)
        )
    return found


def _numbers(options: Mapping[str, OptionValue]) -> dict[str, float]:
    return {name: float(value) for name, value in options.items()}


def cheapest(trials: Sequence[Trial], goal: float) -> tuple[Trial, bool]:
    """The cheapest trial that reaches the goal, else the one with the best attainment; of equal
    ones the better served, then the earlier. And whether it reaches the goal."""
    good = [trial for trial in trials if trial.figures.slo_attainment >= goal]
    if good:
        return min(good, key=lambda t: (t.figures.gpu_hours, -t.figures.slo_attainment)), True
    return min(trials, key=lambda t: (-t.figures.slo_attainment, t.figures.gpu_hours)), False


def require_optuna() -> None:
    """Asks for Optuna before minutes of simulation, not after.

    Raises:
        InputError: it is not installed.
    """
    if find_spec("optuna") is None:
        raise InputError(
            "rules are tuned with optuna, which is not installed; install deepseek-tuner[report]"
        )


def open_study(storage: str | None, name: str) -> Study:
    """A study in a storage, made where there is none.

    Raises:
        InputError: the storage cannot be used.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if storage is None:
        return optuna.create_study(study_name=name)
    try:
        return optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError) as error:
        raise InputError(
            f"{storage} cannot be used as storage ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); expected a URL such as sqlite:///tuning.db or "
            "postgresql+psycopg://user@host/name"
        ) from error
