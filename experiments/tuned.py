"""What a search found for a rule, as a file: `tuner tune` writes it, `tuner compare` takes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import yaml

from experiments.search import Search, Trial
from experiments.summary import Figures, figures_from, plain
from tuner.core.errors import ConfigError
from tuner.data.files import replacing
from tuner.data.strict import build, parse_yaml, read_text

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

    def search(self, compared: str) -> Search:
        """As a comparison takes it.

        Args:
            compared: SHA-256 of the trace that is compared.
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
        )


def write_tuned(tuned: Tuned, path: Path) -> None:
    """Writes the file, whole or not at all.

    Raises:
        InputError: it cannot be written there.
    """
    text = yaml.safe_dump(plain(asdict(tuned)), sort_keys=False, allow_unicode=True, width=100)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def read_tuned(paths: Sequence[Path]) -> dict[str, Tuned]:
    """Policy -> what was found for it, from files and from folders of such files.

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
