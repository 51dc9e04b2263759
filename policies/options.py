"""Options of a policy as given on a command line or in a file, and the errors they deserve."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from math import isfinite
from typing import TypeVar

from tuner.core.errors import ConfigError
from tuner.core.figures import figure
from tuner.core.knobs import KnobSpec

OptionValue = float | int | str
Choice = TypeVar("Choice", bound=str)


class Options:
    """The options given to one policy; a builder asks for those it knows, then calls `finish`.

    `given` holds `name: value` or `policy.name: value`, which wins; entries with the name of
    another policy are not for this one and are passed over. Numbers may be text.
    """

    def __init__(self, policy: str, given: Mapping[str, OptionValue]) -> None:
        self._policy = policy
        self._known: list[str] = []
        self.defaults: dict[str, OptionValue] = {}
        """What a builder has asked for so far -> what holds where it is not given."""
        shared = {key: value for key, value in given.items() if "." not in key}
        own = {
            key.removeprefix(f"{policy}."): value
            for key, value in given.items()
            if key.startswith(f"{policy}.")
        }
        self._given: dict[str, OptionValue] = {**shared, **own}

    def text(self, name: str, default: str) -> str:
        """An option that is any text."""
        self._known.append(name)
        self.defaults[name] = default
        return str(self._given.get(name, default))

    def choice(self, name: str, known: tuple[Choice, ...], default: Choice) -> Choice:
        """An option that is one of a few words.

        Raises:
            ConfigError: it is another word.
        """
        value = self.text(name, default)
        for word in known:
            if value == word:
                return word
        raise ConfigError(
            f"{self._policy}: {name} is '{value}'; expected one of {', '.join(known)}"
        )

    def number(self, name: str, default: float) -> float:
        """An option that is a finite number.

        Raises:
            ConfigError: it is not.
        """
        self._known.append(name)
        self.defaults[name] = default
        value = self._given.get(name, default)
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not isfinite(number):
            raise ConfigError(f"{self._policy}: {name} is '{value}'; expected a number")
        return number

    def whole(self, name: str, default: int) -> int:
        """An option that is a whole number.

        Raises:
            ConfigError: it is not.
        """
        number = self.number(name, default)
        if not number.is_integer():
            raise ConfigError(
                f"{self._policy}: {name} is {self._given[name]}; expected a whole number"
            )
        return int(number)

    def inside(self, name: str, default: int, spec: KnobSpec) -> int:
        """An option that is a value of a knob.

        Raises:
            ConfigError: it is not whole, or outside the knob's range.
        """
        value = self.whole(name, default)
        if not spec.low <= value <= spec.high:
            raise ConfigError(
                f"{self._policy}: {name} {value} is outside {spec.low}..{spec.high}, the range of "
                f"the knob {spec.name}; widen that range or change the option"
            )
        return value

    def above(self, name: str, default: float, least: float = 0.0) -> float:
        """An option that is a number above `least`.

        Raises:
            ConfigError: it is not.
        """
        value = self.number(name, default)
        if not value > least:
            raise ConfigError(
                f"{self._policy}: {name} is {figure(value)}; expected above {figure(least)}"
            )
        return value

    def span(self, name: str, default: float, most: float, least: float = 0.0) -> float:
        """An option that is a length of time from `least` to `most`, s.

        Raises:
            ConfigError: it is not.
        """
        value = self.number(name, default)
        if not least <= value <= most:
            raise ConfigError(
                f"{self._policy}: {name} is {figure(value)} s; expected {figure(least)} to "
                f"{figure(most)}"
            )
        return value

    def share(self, name: str, default: float) -> float:
        """An option that is a share.

        Raises:
            ConfigError: it is not from 0 to 1.
        """
        value = self.number(name, default)
        if not 0 <= value <= 1:
            raise ConfigError(f"{self._policy}: {name} is {figure(value)}; expected 0 to 1")
        return value

    def gives(self, name: str) -> bool:
        """Whether the option was given at all."""
        self._known.append(name)
        return name in self._given

    def finish(self) -> None:
        """Refuse what no one asked for.

        Raises:
            ConfigError: an option is unknown; the message names the nearest known one.
        """
        for name in self._given:
            if name not in self._known:
                near = get_close_matches(name, self._known, n=1)
                known = ", ".join(dict.fromkeys(self._known))
                hint = f"did you mean '{near[0]}'?" if near else f"known options: {known}"
                raise ConfigError(f"{self._policy}: unknown option '{name}'; {hint}")
