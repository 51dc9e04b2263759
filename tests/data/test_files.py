"""Files are whole or absent, several of them together."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.core.errors import InputError
from tuner.data.files import refuse_unwritable, write_together


def test_none_is_written_where_one_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("old")
    with pytest.raises(InputError, match=r"folder .*no does not exist"):
        write_together({tmp_path / "a.html": "new", tmp_path / "no" / "b.yaml": "new"})
    assert (tmp_path / "a.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_one_file_for_two_options_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "sub" / ".." / "one"
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match=r"--out and --page are both .*one; name two files"):
        refuse_unwritable({"--out": tmp_path / "one", "--page": other})


def test_asking_leaves_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("old")
    refuse_unwritable({"--out": tmp_path / "one", "--page": None})
    assert (tmp_path / "one").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    with pytest.raises(InputError, match="is a folder"):
        refuse_unwritable({"--out": tmp_path})
