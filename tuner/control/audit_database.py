"""The database under the audit log: opened, checked, and its troubles in one sentence.

SQLite in a file by default, PostgreSQL by URL. SQLite runs with a write-ahead log, so that
`tuner status` reads while the controller writes, and with synchronous FULL: a commit is on the disk
when it returns. With NORMAL a power cut could take back an intent whose action had already
happened, and an intent comes before acting only if it stays. It costs one flush per commit, two per
tick (https://sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from tuner.core.errors import ConfigError, PermanentError, TemporaryError, TunerError

SCHEMA_VERSION = 1
"""Of the tables below. A change of them raises it and says here how an older one is read; a table
that is only added keeps it, and is made where it is missing."""

TIMEOUT_S = 5.0
"""Longest wait for a connection, a lock or an answer: a third of the usual tick."""

RETRY_S = 5.0
"""When to try again after trouble that passes."""

_metadata = MetaData()
_Id = BigInteger().with_variant(Integer, "sqlite")

schema_table = Table("tuner_schema", _metadata, Column("version", Integer, nullable=False))

decisions_table = Table(
    "tuner_decisions",
    _metadata,
    Column("id", _Id, primary_key=True),
    Column("target", Text, nullable=False),
    Column("at_s", Double, nullable=False),  # on the controller's clock
    Column("recorded_at_s", Double, nullable=False),  # on the wall clock; they differ in a sandbox
    Column("mode", Text, nullable=False),
    Column("policy", Text, nullable=False),
    Column("policy_digest", Text),
    Column("config_digest", Text, nullable=False),
    Column("authority", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("sentence", Text, nullable=False),
    Column("tripped", Boolean, nullable=False),
    Column("clamped", Boolean, nullable=False),
    Column("moved", Boolean, nullable=False),
    Column("log_prob", Double),
    Column("read_faults", Integer, nullable=False),
    Column("write_faults", Integer),  # of the receipt, refusals of shadow mode left out
    Column("intent", Text, nullable=False),  # JSON: observation and decision
    Column("receipt", Text),  # JSON; null until the cluster answered
    Column("receipt_at_s", Double),
    # An id is never given twice, even after rows were removed by hand.
    sqlite_autoincrement=True,
)
Index("tuner_decisions_by_target", decisions_table.c.target, decisions_table.c.id)

promotions_table = Table(
    "tuner_promotions",
    _metadata,
    Column("id", _Id, primary_key=True),
    Column("target", Text, nullable=False),
    Column("at_s", Double, nullable=False),
    Column("kind", Text, nullable=False),
    Column("policy", Text),
    Column("policy_digest", Text),
    Column("config_digest", Text),
    Column("who", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("evidence", Text, nullable=False),  # JSON
    sqlite_autoincrement=True,
)
Index("tuner_promotions_by_target", promotions_table.c.target, promotions_table.c.id)

claims_table = Table(
    "tuner_claims",
    _metadata,
    Column("target", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("renewed_at_s", Double, nullable=False),  # on the wall clock
    Column("lasts_s", Double, nullable=False),
)

_CREATION_LOCK = 0x74756E6572
"""Key of the advisory lock under which PostgreSQL's tables are made: "tuner" in ASCII."""


class Database:
    """An open database whose tables fit.

    Args:
        url: SQLAlchemy URL, `sqlite:///FILE` or `postgresql://USER@HOST:PORT/NAME`.
        read_only: never write; a file that does not exist is not made.
        timeout_s: longest wait for a connection, a lock or an answer.

    Raises:
        ConfigError: the URL is none of these, the database cannot be reached, opened or written,
            or its tables are of a newer tuner.
    """

    def __init__(self, url: str, *, read_only: bool = False, timeout_s: float = TIMEOUT_S) -> None:
        parsed = _parse(url)
        self.name = shown(parsed)
        """The URL without anything secret, for people."""
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._secrets = _secrets(parsed)
        if self.is_sqlite:
            _check_file(parsed, self.name, read_only=read_only)
        self._engine = _engine(parsed, timeout_s, read_only=read_only)
        try:
            if self.is_sqlite:
                _set_up_sqlite(self._engine, timeout_s, read_only=read_only)
            with self.connection("opened") as connection:
                self._prepare(connection, read_only=read_only)
        except ConfigError:
            self.close()
            raise
        except (TemporaryError, PermanentError) as error:
            self.close()
            raise ConfigError(str(error)) from error

    def close(self) -> None:
        """Give the connections back; a connection in use is closed when it is done."""
        self._engine.dispose()

    @contextmanager
    def connection(self, doing: str) -> Iterator[Connection]:
        """A connection whose work is committed when the block ends well, else undone.

        Args:
            doing: what cannot be done if it fails, as in "cannot be written".

        Raises:
            TemporaryError: locked, or not reachable now.
            PermanentError: full, read-only, damaged, or anything else that a person must see to.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise self._trouble(error, doing) from error

    def _prepare(self, connection: Connection, *, read_only: bool) -> None:
        """Refuse tables of a newer version; make them where there are none."""
        if not read_only:
            self._lock(connection)
        if inspect(connection).has_table(schema_table.name):
            self._check_version(connection)
        elif read_only:
            raise ConfigError(
                f"audit log {self.name} holds no decisions; name the one that `tuner run` writes"
            )
        else:
            _metadata.create_all(connection)
            connection.execute(insert(schema_table).values(version=SCHEMA_VERSION))
        if not read_only:
            _metadata.create_all(connection)  # what has been added since; asks before each
            # What cannot be written is refused now, not at the first decision.
            connection.execute(update(schema_table).values(version=schema_table.c.version))

    def _lock(self, connection: Connection) -> None:
        """Two controllers that start at once make the tables once."""
        if self.is_sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATION_LOCK})

    def _check_version(self, connection: Connection) -> None:
        found = connection.scalar(select(schema_table.c.version))
        if found is None or not 1 <= found <= SCHEMA_VERSION:
            raise ConfigError(
                f"audit log {self.name} has schema {found}; this tuner knows 1 to "
                f"{SCHEMA_VERSION}, so update tuner or name another audit log"
            )

    def _trouble(self, error: SQLAlchemyError, doing: str) -> TunerError:
        said = str(error.orig) if isinstance(error, DBAPIError) else str(error)
        lines = said.strip().splitlines()
        said = lines[0] if lines else type(error).__name__
        for secret in self._secrets:
            said = said.replace(secret, "***")
        passes, move = _next_move(error)
        message = f"audit log {self.name} cannot be {doing} ({said}); {move}"
        return TemporaryError(message, delay_s=RETRY_S) if passes else PermanentError(message)


def shown(url: URL) -> str:
    """The URL for people: no password, and no query, which may hold one."""
    kind = url.get_backend_name()
    return url.set(drivername=kind, query={}).render_as_string(hide_password=True)


def place_trouble(url: str) -> str | None:
    """Why no log can be written there from this machine; None where it can, as far as is seen.

    Nothing is opened: a server is not asked, and a file is not made.

    Raises:
        ConfigError: the URL is wrong wherever the controller runs.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() != "sqlite":
        return None
    try:
        _check_file(parsed, shown(parsed), read_only=False)
    except ConfigError as error:
        return str(error)
    return None


def _parse(url: str) -> URL:
    """Raises ConfigError; the text itself, which may hold a password, is never repeated."""
    expected = "expected sqlite:///FILE or postgresql://USER@HOST:PORT/NAME"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError(f"audit is no database URL; {expected}") from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise ConfigError(f"audit names a database of kind {parsed.drivername!r}; {expected}")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError(
            f"audit {shown(parsed)} is kept in memory and would not outlive the controller; "
            "name a file, as in sqlite:///tuner-audit.db"
        )
    return parsed


def _secrets(url: URL) -> tuple[str, ...]:
    """What must never be shown, should a driver repeat it."""
    query = [value for key, value in url.query.items() if "pass" in key.lower()]
    found = [str(url.password) if url.password else "", *(v for v in query if isinstance(v, str))]
    return tuple(secret for secret in found if secret)


def _check_file(url: URL, name: str, *, read_only: bool) -> None:
    if "uri" in url.query:
        return  # a file name in SQLite's own URI form; SQLite itself says what is wrong with it
    path = Path(str(url.database))
    if path.is_dir():
        raise ConfigError(f"audit log {name} is a folder; name a file")
    if read_only and not path.exists():
        raise ConfigError(
            f"audit log {name} does not exist; `tuner run` writes it, or name another with --audit"
        )
    if not path.parent.is_dir():
        raise ConfigError(
            f"audit log {name}: folder {path.parent} does not exist; create it or name another file"
        )


def _engine(url: URL, timeout_s: float, *, read_only: bool) -> Engine:
    """An engine whose every wait ends."""
    common: dict[str, Any] = {"pool_timeout": timeout_s, "hide_parameters": True}
    if url.get_backend_name() == "sqlite":
        return create_engine(url, connect_args={"timeout": timeout_s}, **common)
    milliseconds = round(1000 * timeout_s)
    options = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
    if read_only:
        options += " -c default_transaction_read_only=on"
    try:
        return create_engine(
            url,
            # A PostgreSQL that was restarted must not cost a decision.
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": max(2, round(timeout_s)),
                "tcp_user_timeout": milliseconds,
                "options": options,
                "application_name": "tuner",
            },
            **common,
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"audit log {shown(url)}: {error.name} is not installed; "
            "pip install 'deepseek-tuner[postgres]'"
        ) from None


def _set_up_sqlite(engine: Engine, timeout_s: float, *, read_only: bool) -> None:
    @event.listens_for(engine, "connect")
    def _(connection: sqlite3.Connection, _record: object) -> None:
        cursor = connection.cursor()
        try:
            cursor.execute(f"PRAGMA busy_timeout = {round(1000 * timeout_s)}")
            if read_only:
                cursor.execute("PRAGMA query_only = ON")
                return
            # Stays in the file; asking again is free.
            (mode,) = cursor.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise sqlite3.OperationalError(
                    f"journal mode is {mode}, expected wal; is it on a network file system?"
                )
            cursor.execute("PRAGMA synchronous = FULL")
        finally:
            cursor.close()


_SQLITE_MOVES = {
    sqlite3.SQLITE_BUSY: (True, "another process holds its lock; is a second controller running?"),
    sqlite3.SQLITE_LOCKED: (
        True,
        "another connection holds its lock; is a second controller running?",
    ),
    sqlite3.SQLITE_FULL: (False, "free disk space, or move the file and name its new place"),
    sqlite3.SQLITE_READONLY: (False, "make file and folder writable for this user"),
    sqlite3.SQLITE_CANTOPEN: (False, "make file and folder readable and writable for this user"),
    sqlite3.SQLITE_IOERR: (False, "look at the disk it is on"),
    sqlite3.SQLITE_CORRUPT: (False, "the file is damaged: move it away, and a new one is begun"),
    sqlite3.SQLITE_NOTADB: (False, "the file is something else: name another"),
}
"""Primary result code (https://sqlite.org/rescode.html) -> whether it passes, and what to do."""

_POSTGRES_MOVES = {
    "53": (False, "it is out of disk, memory or connections"),
    "25": (False, "it takes no writes; is it a standby?"),
    "42": (False, "grant this user the right to create and write the tables"),
    "55": (True, "another session holds a lock"),
    "57": (True, "it was busy for too long, or is shutting down"),
}
"""Class of an SQLSTATE (PostgreSQL's manual, appendix A) -> the same."""


def _next_move(error: SQLAlchemyError) -> tuple[bool, str]:
    """Whether the trouble passes by itself, and what to do about it."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    code = getattr(cause, "sqlite_errorcode", None)
    if isinstance(code, int):
        return _SQLITE_MOVES.get(code & 0xFF, (False, "look at the file"))
    state = getattr(cause, "sqlstate", None)
    if isinstance(state, str):
        return _POSTGRES_MOVES.get(state[:2], (False, "look at the database's own log"))
    if isinstance(cause, sqlite3.Error):
        return False, "use a local disk, or PostgreSQL"
    if "FATAL:" in str(cause):
        # It answered and turned us away; the driver gives no SQLSTATE for that.
        return False, (
            "check user, password and database (PGPASSWORD or PGPASSFILE keep the password out of "
            "the file)"
        )
    return True, "is it up, and reachable from here?"
