"""Output files that are whole or absent: written beside their place, then moved into it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tuner.core.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path in `path`'s folder; moves it to `path` when the block ends well.

    If the block raises, the temporary file is removed and a file that was at `path` stays as it
    was. A reader sees the old file or the new one, never a part: the move is one rename in one
    folder.

    Raises:
        InputError: `path` is a folder, or its folder does not exist or cannot be written.
    """
    temporary = _begun(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_unwritable(outputs: Mapping[str, Path | None]) -> None:
    """Whether files can be written, before the work whose result they will hold.

    Args:
        outputs: option -> file; None: not asked for.

    Raises:
        InputError: see `replacing`; or two options name one file.
    """
    taken: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        _begun(path).unlink()
        other = taken.setdefault(path.resolve(), option)
        if other != option:
            raise InputError(f"{other} and {option} are both {path}; name two files")


def write_together(texts: Mapping[Path, str]) -> None:
    """Write text files; none of them moves to its place before all are written.

    Raises:
        InputError: see `replacing`.
    """
    with ExitStack() as stack:
        for path, text in texts.items():
            stack.enter_context(replacing(path)).write_text(text, encoding="utf-8")


def _begun(path: Path) -> Path:
    """An empty temporary file beside `path`."""
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: folder {folder} does not exist; create it or name another file")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file to write")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path}: folder {folder} is not writable; name another file")
    temporary = folder / f".{path.name}.{os.getpid()}.part"
    try:
        # For root, access() calls every folder writable: /proc and read-only mounts too.
        temporary.touch()
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); name another file"
        ) from error
    return temporary
