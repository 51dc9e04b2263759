"""Reads what a report page holds: its words, its elements and its packed plots."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from typing import Any


def plots_of(html: str) -> dict[str, Any]:
    """The plots of a page, unpacked."""
    found = re.search(r'id="plots">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    plots: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(found[1])))
    return plots


class Page(HTMLParser):
    """Text outside of scripts and styles, elements, and what they fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.fetched: list[str] = []
        self.ids: set[str | None] = set()
        self._inside: list[str] = []
        self.feed(html)

    @property
    def text(self) -> str:
        """In one line."""
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside.append(tag)
        given = dict(attrs)
        self.ids.add(given.get("id"))
        links = [given.get(key) for key in ("src", "href", "srcset", "data")]
        self.fetched += [link for link in links if link and not link.startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._inside):
            self.words.append(data)
