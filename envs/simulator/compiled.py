"""How the simulator's functions are compiled.

`entry` compiles a function that Python calls, and keeps the machine code on disk; `inlined` one
that only compiled functions call, which becomes part of them. Both compile without Numba's
reference counts: the functions allocate nothing and the caller keeps the arrays alive, but Numba
would count every array of every `Memory` that is passed on. Measured on the reference workload
(10,000 requests, 4 replicas), requests per CPU second: 0.15 million with counts, 0.6 without,
4.3 with everything inlined as well.

Numba's cache notices a change in the file of the function it keeps, not in the files of what was
inlined into it; so the cache's folder carries a digest of all sources of the simulator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")


_CONFIG: Any = numba.config
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
_CALLED: dict[str, Any] = _OPTIONS | {"no_cpython_wrapper": True}
INLINED: Any = _CALLED | {"forceinline": True}


def cache_folder(sources: Path) -> Path:
    """Where the machine code of these sources belongs: another folder for every version of them."""
    digest = hashlib.sha256()
    for source in sorted(sources.glob("*.py")):
        digest.update(source.read_bytes())
    base = Path(_CONFIG.CACHE_DIR) if _CONFIG.CACHE_DIR else sources / "__pycache__"
    return base / f"simulator-{digest.hexdigest()[:16]}"


_CACHE_FOLDER = cache_folder(Path(__file__).parent)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a part of entries."""
    compile_function: Any = numba.njit(**INLINED)
    compiled: Callable[P, R] = compile_function(function)
    return compiled


def called(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a part of entries that is called, not inlined: large, and needed a few times an hour.

    Inlined wherever it is named, what starts and ends replicas would be most of the machine code.
    """
    compile_function: Any = numba.njit(**_CALLED)
    compiled: Callable[P, R] = compile_function(function)
    return compiled


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function that Python calls; it runs without the interpreter's lock."""
    folder = _CONFIG.CACHE_DIR
    _CONFIG.CACHE_DIR = str(_CACHE_FOLDER)
    try:
        compile_function: Any = numba.njit(nogil=True, cache=True, **_OPTIONS)
        compiled: Callable[P, R] = compile_function(function)
    except RuntimeError:  # no folder can be written to: compile anew in every process
        compile_function = numba.njit(nogil=True, **_OPTIONS)
        compiled = compile_function(function)
    finally:
        _CONFIG.CACHE_DIR = folder
    return compiled
