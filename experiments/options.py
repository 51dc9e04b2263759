"""`--set` texts of the command line as options of policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policies import OptionValue
from tuner.core.errors import ConfigError


def split_names(text: str, option: str) -> list[str]:
    """Names between commas; none of an empty text.

    Args:
        text: what was given.
        option: of the command line, for the message.

    Raises:
        ConfigError: there is no name beside a comma.
    """
    names = [name.strip() for name in text.split(",")]
    if any(names) and not all(names):
        raise ConfigError(
            f"{option} {text}: there is no name beside one of the commas; expected names with one "
            f"comma between them, as in {option} {','.join(name for name in names if name)}"
        )
    return [name for name in names if name]


def parse_options(pairs: Sequence[str]) -> dict[str, OptionValue]:
    """`KEY=VALUE` texts as a mapping; numbers become numbers.

    Raises:
        ConfigError: a text has no key, no value, or a key comes twice.
    """
    options: dict[str, OptionValue] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"--set {pair}: expected KEY=VALUE, as in --set replicas=4")
        if key in options:
            raise ConfigError(f"--set {key} is given twice; give it once")
        options[key] = _number(value)
    return options


def _number(text: str) -> OptionValue:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def split_options(
    options: Mapping[str, OptionValue], policies: Sequence[str]
) -> dict[str, dict[str, OptionValue]]:
    """Policy -> option -> value from `policy.option` keys; a policy's name may hold dots itself.

    Raises:
        ConfigError: a key names none of the policies.
    """
    split: dict[str, dict[str, OptionValue]] = {}
    for key, value in options.items():
        owners = [name for name in policies if key.startswith(f"{name}.")]
        if not owners:
            raise ConfigError(
                f"--set {key}: expected POLICY.OPTION=VALUE for one of "
                f"{', '.join(dict.fromkeys(policies))}, as in --set static.replicas=4"
            )
        owner = max(owners, key=len)
        split.setdefault(owner, {})[key.removeprefix(f"{owner}.")] = value
    return split
