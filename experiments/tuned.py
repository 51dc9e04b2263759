"""What a search found for a rule, as a file: `tuner tune` writes it, `tuner compare` takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isclose
from pathlib import Path
from typing import ClassVar, Literal

import yaml

from experiments.readable import percent
from experiments.search import Search, Trial
from experiments.summary import Figures, figures_from, plain
from policies import POLICIES, Load, Options, OptionValue, Target
from tuner.core.errors import ConfigError
from tuner.core.profile import ServingProfile
from tuner.data.files import replacing
from tuner.data.strict import build, parse_yaml, read_text
from tuner.train.digests import profile_digest

SCHEMA: Literal["tuner.tuned/1"] = "tuner.tuned/1"

_FORBID: Mapping[str, str] = {"extra": "forbid"}


@dataclass(frozen=True)
class Source:
    """What a search ran on."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _FORBID

    name: str
    sha256: str


@dataclass(frozen=True)
class Outcome:
    """One setting and what came of it."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _FORBID

    options: Mapping[str, float | int | str]
    figures: Mapping[str, float | int | None]
    """`experiments.summary.Figures` by name; null where there is nothing to measure."""

    @classmethod
    def of(cls, trial: Trial) -> Outcome:
        figures = {k: None if v != v else v for k, v in asdict(trial.figures).items()}
        return cls(dict(trial.options), figures)

    def trial(self) -> Trial:
        return Trial(self.options, figures_from(self.figures))


@dataclass(frozen=True)
class Tuned:
    """Content of the file."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = _FORBID

    schema: Literal["tuner.tuned/1"]
    policy: str
    goal: float
    """Share of requests (0-1) that had to meet every objective."""
    reached: bool
    """Whether the setting reaches the goal."""
    trials: int
    """Settings tried, the rule as shipped among them."""
    simulated_s: float
    """Time that was simulated for them, s."""
    seed: int
    tuned: Outcome
    """What was taken."""
    shipped: Outcome
    """The rule as its project ships it."""
    trace: Source
    profile: Source
    at_end: bool = False
    """Whether the dial's value lies at an end of those that were tried."""

    def search(self, compared: str, profile: ServingProfile) -> Search:
        """As a comparison takes it.

        Args:
            compared: SHA-256 of the trace that is compared.
            profile: what the comparison simulates.
        """
        shipped, chosen = self.shipped.trial(), self.tuned.trial()
        return Search(
            policy=self.policy,
            trace=self.trace.name,
            hindsight=self.trace.sha256 == compared,
            goal=self.goal,
            budget=self.trials,
            simulated_s=self.simulated_s,
            trials=(shipped, chosen),
            chosen=chosen,
            reached=self.reached,
            elsewhere=self._elsewhere(profile),
            at_end=self.at_end,
        )

    def check(self, goal: float, target: Target, given: Mapping[str, OptionValue]) -> None:
        """Tries what a comparison would do with it, before any run.

        Another goal is refused: the setting would be neither the cheapest that reaches this one,
        nor one that reaches it. Another profile is not: how a rule fares on a fleet that it was
        not tuned for can be asked, and `search` says that it was.

        Args:
            goal: share of requests (0-1) that the comparison wants to meet every objective.
            target: what the rule will be built for.
            given: options that the user has set; they win.

        Raises:
            ConfigError: it is for another goal, or the rule does not take the options.
        """
        if not isclose(self.goal, goal):
            raise ConfigError(
                f"{self.policy} was tuned for a goal of {percent(self.goal)}, and here the goal is "
                f"{percent(goal)}; tune it again with --goal {goal:g}, or set sweep.goal to "
                f"{self.goal:g}"
            )
        for name in self.tuned.options:
            if "." in name:
                raise ConfigError(
                    f"tuned.options: '{name}' names its policy; expected the option alone, "
                    f"'{name.rpartition('.')[2]}'"
                )
        entry, options = POLICIES[self.policy], {**self.tuned.options, **given}
        try:
            entry.build(Options(self.policy, options), target)
            asked = Options(self.policy, options)
            for parameter in entry.search(Load(1, 1, 1, 1, 1, 1)):
                if parameter.name in options and parameter.log:
                    asked.above(parameter.name, 1.0)
                elif parameter.name in options:
                    asked.number(parameter.name, 0.0)
        except ConfigError as error:
            raise ConfigError(f"tuned.options: {error}") from error

    def _elsewhere(self, profile: ServingProfile) -> str:
        if self.profile.sha256 == profile_digest(profile):
            return ""
        if self.profile.name != profile.name:
            return f"with the profile {self.profile.name}, not with {profile.name}"
        return (
            f"with another version of the profile {profile.name}, or another start of its replicas"
        )


def write_tuned(tuned: Tuned, path: Path) -> None:
    """Writes the file, whole or not at all.

    Raises:
        InputError: it cannot be written there.
    """
    text = yaml.safe_dump(plain(asdict(tuned)), sort_keys=False, allow_unicode=True, width=100)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def read_tuned(
    paths: Sequence[Path], check: Callable[[Tuned], None] = lambda tuned: None
) -> dict[str, Tuned]:
    """Policy -> what was found for it, from files and from folders of such files.

    Args:
        paths: the files and folders.
        check: raises ConfigError for what cannot be used; it is told with the name of the file.

    Raises:
        ConfigError: a file cannot be used, a folder holds none, or two are about one policy.
    """
    found: dict[str, Tuned] = {}
    for path in paths:
        files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not files:
            raise ConfigError(f"{path} holds no .yaml file; expected what `tuner tune` writes")
        for file in files:
            tuned = _read(file)
            if tuned.policy in found:
                raise ConfigError(
                    f"{file} is about {tuned.policy}, as another --tuned file is; name one of them"
                )
            try:
                check(tuned)
            except ConfigError as error:
                raise ConfigError(f"{file}: {error}") from error
            found[tuned.policy] = tuned
    return found


def _read(path: Path) -> Tuned:
    hint = f" (schema: {SCHEMA}); `tuner tune` writes such files"
    data = parse_yaml(
        read_text(path, "what `tuner tune` writes", ConfigError), str(path), ConfigError, hint=hint
    )
    if data.get("schema") != SCHEMA:
        raise ConfigError(f"{path}: schema is {data.get('schema')!r}; expected {SCHEMA!r}")
    return build(Tuned, data, str(path), ConfigError, contradictions=_mistakes)


def _mistakes(tuned: Tuned) -> Iterator[str]:
    names = {field.name for field in fields(Figures)}
    for place, outcome in (("tuned", tuned.tuned), ("shipped", tuned.shipped)):
        for name in sorted(names ^ outcome.figures.keys()):
            what = "is missing" if name in names else "is not a known figure"
            yield f"{place}.figures.{name} {what}; tune the policy again"
