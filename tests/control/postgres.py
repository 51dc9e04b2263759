"""A real PostgreSQL for one test run: its own data, a free port on loopback, nobody's root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

from tests.ports import free_port

USER = "tuner"
PASSWORD = "s3cret-word"
START_S = 60.0


@dataclass
class Postgres:
    """A running server."""

    port: int
    databases: int = 0

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        self.databases += 1
        name = f"audit_{self.databases}"
        self.execute("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, database: str, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)


def missing() -> str | None:
    """Why no server can be started here; None if one can."""
    if find_spec("psycopg") is None:
        return "psycopg is not installed (pip install 'deepseek-tuner[postgres]')"
    if _programs() is None:
        return "PostgreSQL's initdb is not on this machine (Debian: apt-get install postgresql)"
    return None


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Starts a server, and stops it with its data."""
    programs = _programs()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="tuner-postgres-"))
    # PostgreSQL refuses to run as root.
    user = _unprivileged()
    try:
        data = folder / "data"
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if user is not None:
            for path in (folder, secret):
                os.chown(path, user.pw_uid, user.pw_gid)
        _call(
            [
                str(programs / "initdb"),
                f"--pgdata={data}",
                f"--username={USER}",
                "--auth=scram-sha-256",
                f"--pwfile={secret}",
                "--no-sync",
                "--no-locale",
                "--encoding=UTF8",
            ],
            user,
        )
        port = free_port()
        server = subprocess.Popen(
            [
                *(str(programs / "postgres"), "-D", str(data), "-p", str(port)),
                *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
                *("-c", "fsync=off"),
            ],
            stdout=(folder / "log").open("wb"),
            stderr=subprocess.STDOUT,
            cwd=folder,
            **_as(user),
        )
        try:
            _wait(port, server, folder / "log")
            yield Postgres(port)
        finally:
            server.send_signal(subprocess.signal.SIGINT)  # fast shutdown
            server.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    """The folder with initdb and postgres, of the newest version there is."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3])
    )
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def _unprivileged() -> pwd.struct_passwd | None:
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")


def _as(user: pwd.struct_passwd | None) -> dict[str, object]:
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _call(command: list[str], user: pwd.struct_passwd | None) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd="/", check=False, **_as(user)
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")


def _wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    url, until = Postgres(port).url("postgres"), monotonic() + START_S
    pause = threading.Event()
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or monotonic() > until:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}") from None
            pause.wait(0.1)
