"""What the plugin takes from the environment, checked before anything listens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PORT = "TUNER_CONTROL_PORT"
HOST = "TUNER_CONTROL_HOST"
TOKEN_FILE = "TUNER_CONTROL_TOKEN_FILE"
MIN_INTERVAL = "TUNER_CONTROL_MIN_INTERVAL_S"


class SettingsError(ValueError):
    """A setting that is missing or wrong; the message names it."""


@dataclass(frozen=True)
class Settings:
    port: int
    """Of run-time control; never the serving port."""
    token_file: Path
    """Bearer token, from a mounted Secret; read anew at each request."""
    host: str = "0.0.0.0"
    """Address to listen on: in a pod the controller comes from outside."""
    min_interval_s: float = 1.0
    """Shortest time between two changes."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """
        Raises:
            SettingsError: naming the variable, what was found and what is expected.
        """
        for name in (PORT, TOKEN_FILE):
            if not environ.get(name):
                raise SettingsError(f"{name} is not set; see the plugin's README")
        port = environ[PORT]
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise SettingsError(f"{PORT} = {port!r} is not a port; 1..65535 is expected")
        token_file = Path(environ[TOKEN_FILE])
        try:
            empty = not token_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as trouble:
            raise SettingsError(f"{TOKEN_FILE}: {token_file} cannot be read: {trouble}") from None
        if empty:
            raise SettingsError(f"{TOKEN_FILE}: {token_file} is empty; a token is expected")
        return cls(int(port), token_file, environ.get(HOST, cls.host), _interval_s(environ))


def _interval_s(environ: Mapping[str, str]) -> float:
    text = environ.get(MIN_INTERVAL, str(Settings.min_interval_s))
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise SettingsError(f"{MIN_INTERVAL} = {text!r} is not a number of seconds in 0..3600")
    return seconds
