"""Where tests run when there are two processes for them."""

from __future__ import annotations

from pathlib import Path

import pytest

REAL = Path(__file__).parent / "real"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share its fixtures, so they stay in one process; those with real servers share
    one engine, so they all do, and they begin, because nothing else takes as long."""
    items.sort(key=lambda item: REAL not in item.path.parents)
    for item in items:
        group = "real" if REAL in item.path.parents else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
