"""Where load goes: a few addresses, the one with the fewest requests in flight first.

The list may come from a file that whoever starts and stops engines rewrites. A request in flight
stays where it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tuner.core.errors import ConfigError


@dataclass
class Endpoint:
    """One address and the requests that are there now."""

    url: str
    in_flight: int = 0
    sent: int = 0
    """Since the start; of two with equally many in flight, the one with fewer is next."""


class Endpoints:
    """The addresses in use.

    Args:
        urls: scheme, host and port each.
        file: JSON list of addresses, followed by `refresh`; used instead of `urls`.

    Raises:
        ConfigError: none of the two, or both, are given; an address or the file cannot be used.
    """

    def __init__(self, urls: Sequence[str] = (), *, file: Path | None = None) -> None:
        if bool(urls) == (file is not None):
            raise ConfigError("give --url (once or more) or --endpoints FILE, and not both")
        self._file = file
        self._seen: tuple[int, int] | None = None
        self._known: dict[str, Endpoint] = {}
        self._used: list[Endpoint] = []
        self.trouble: str | None = None
        """Why the file could not be used at the last look; the list before stays in use."""
        if file is None:
            self._use(read_urls("--url", urls))
        else:
            self.refresh()
            if self.trouble is not None:
                raise ConfigError(self.trouble)

    @property
    def urls(self) -> tuple[str, ...]:
        """In use now."""
        return tuple(endpoint.url for endpoint in self._used)

    @property
    def all_urls(self) -> tuple[str, ...]:
        """Ever used."""
        return tuple(self._known)

    def refresh(self) -> None:
        """Read the file again if it is another one than last time."""
        if self._file is None:
            return
        try:
            stat = self._file.stat()
            version = (stat.st_mtime_ns, stat.st_ino)
            if version == self._seen:
                return
            self._use(read_urls(str(self._file), json.loads(self._file.read_text("utf-8"))))
            self._seen = version
            self.trouble = None
        except OSError as error:
            self.trouble = f"{self._file}: {error.strerror}; expected a JSON list of addresses"
        except ValueError as error:
            self.trouble = f"{self._file} is not JSON ({error}); expected a list of addresses"
        except ConfigError as error:
            self.trouble = str(error)

    def pick(self) -> Endpoint | None:
        """The next request's; None where the list is empty."""
        return min(self._used, key=lambda one: (one.in_flight, one.sent), default=None)

    def _use(self, urls: Sequence[str]) -> None:
        self._used = [self._known.setdefault(url, Endpoint(url)) for url in urls]


def read_urls(where: str, given: object) -> tuple[str, ...]:
    """Addresses without a slash at their end, each once.

    Raises:
        ConfigError: it is no list of `http://HOST:PORT`.
    """
    if not isinstance(given, list | tuple) or not all(isinstance(url, str) for url in given):
        raise ConfigError(f"{where}: expected a list of addresses such as http://127.0.0.1:8000")
    for url in given:
        if not _is_address(url):
            raise ConfigError(f"{where}: {url!r} is no address; expected http://HOST:PORT")
    return tuple(dict.fromkeys(url.rstrip("/") for url in given))


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # A port above 65535 or no number, or brackets that do not close.
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
