"""The database under a store: SQLite in a file, or PostgreSQL by URL; its errors in one line.

SQLite runs with a write-ahead log and ``synchronous=FULL``, so a transaction that was committed
survives a power cut, and every writing transaction begins with ``BEGIN IMMEDIATE``, so that it
waits for its turn instead of failing halfway.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from tether.errors import StoreError
from tether.learning.storage.durable import sync_folder
from tether.preferences.places import SQLITE_MAGIC, is_url
from tether.preferences.schema import SCHEMA, metadata, store_table

BUSY_SECONDS: Final = 60.0
"""How long a transaction waits for another process's."""

# PostgreSQL: held while answers are appended, so that they appear in the order of their cursors.
_LOG_LOCK: Final = 0x7E7E_0001
_CREATION_LOCK: Final = 0x7E7E_0002


class Database:
    """One store's database.

    Attributes:
        name: as errors name it; without user and password.
        serial: whether it takes one writer at a time (SQLite).
    """

    def __init__(self, location: str | Path, *, create: bool) -> None:
        """Opens it; makes it if it is not there and `create` says so.

        Raises:
            StoreError: none can be used at this place.
        """
        url = _url(location)
        self.serial = url.get_backend_name() == "sqlite"
        if self.serial:
            self.name = str(url.database)
            _prepare_file(Path(self.name), create=create)
            self._engine = _sqlite(Path(self.name))
        else:
            self.name = f"postgresql://{url.host or ''}{_port(url)}/{url.database or ''}"
            self._engine = _postgresql(url)
        self._process = os.getpid()
        self._writing = self._engine.execution_options(immediate=True)
        try:
            if not self.serial:
                self._prepare_server(create=create)
            self._check_schema()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes its connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the store."""
        with self._translated(), self._of_this_process(self._engine).begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that has been committed to the disk when the block has ended well."""
        with self._translated(), self._of_this_process(self._writing).begin() as connection:
            yield connection

    @contextmanager
    def appending(self) -> Iterator[Connection]:
        """A writing transaction that is the only one to append to the log of answers."""
        with self.writing() as connection:
            if not self.serial:
                # Readers go by cursor: a lower one must not appear after a higher one.
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOG_LOCK})
            yield connection

    def _of_this_process(self, engine: Engine) -> Engine:
        if os.getpid() != self._process:
            # A connection of the process we were forked from is not ours to use or to close.
            self._engine.dispose(close=False)
            self._process = os.getpid()
        return engine

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise StoreError(self._line(error)) from error

    def _line(self, error: Exception) -> str:
        original = getattr(error, "orig", None)
        reason = " ".join(str(original or error).split())[:200]
        if not self.serial:
            if isinstance(error, OperationalError):
                return (
                    f"cannot use the PostgreSQL server of store {self.name}: {reason}; is it "
                    "running, and are host, port, database, user and password right?"
                )
            return f"store {self.name}: {reason}"
        for sign, line in _SQLITE_ERRORS.items():
            if sign in reason:
                return f"store {self.name}: {line}"
        return f"store {self.name}: {reason}"

    def _prepare_server(self, *, create: bool) -> None:
        with self.writing() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATION_LOCK})
            if inspect(connection).has_table(store_table.name):
                return
            if not create:
                raise StoreError(f"there is no store in {self.name}")
            _create_tables(connection)

    def _check_schema(self) -> None:
        with self.reading() as connection:
            found = (
                connection.execute(select(store_table.c.schema)).scalar()
                if inspect(connection).has_table(store_table.name)
                else None
            )
        if found is None:
            raise StoreError(f"{self.name} is a database, but not a store of tether")
        if found > SCHEMA:
            raise StoreError(
                f"store {self.name} has schema {found}, newer than the {SCHEMA} that this tether "
                "reads; upgrade tether-rl"
            )


_SQLITE_ERRORS: Final = {
    "database or disk is full": (
        "the disk is full; nothing of this was written, and all that was there before is "
        "untouched: free some space and try again"
    ),
    "readonly database": (
        "it cannot be written to; check the permissions of the file and its folder"
    ),
    "unable to open database file": (
        "it cannot be opened; check the permissions of the file and its folder"
    ),
    "database is locked": (
        f"another process has kept it locked for {BUSY_SECONDS:.0f} seconds; end that process and "
        "try again"
    ),
    "not a database": "the file is damaged or not a store of tether",
    "malformed": "the file is damaged",
}


def _url(location: str | Path) -> URL:
    if isinstance(location, Path) or "://" not in location:
        return URL.create("sqlite", database=str(Path(location).expanduser()))
    expected = "expected a file, sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    scheme = location.partition(":")[0]
    if not is_url(location):
        raise StoreError(f"a store cannot be at a {scheme}: URL; {expected}")
    try:
        url = make_url(location)
    except (ArgumentError, ValueError):
        # The URL may hold a password, so it is not repeated.
        raise StoreError(f"the {scheme}: URL of the store cannot be read; {expected}") from None
    if url.get_backend_name() == "sqlite":
        if not url.database or url.database == ":memory:" or url.query:
            raise StoreError(f"a sqlite: URL must name a file and no more; {expected}")
        return url
    # Any other driver that is named would have to be installed and tested.
    return url.set(drivername="postgresql+psycopg")


def _port(url: URL) -> str:
    return "" if url.port is None else f":{url.port}"


def _postgresql(url: URL) -> Engine:
    try:
        return create_engine(
            url, pool_pre_ping=True, max_overflow=40, isolation_level="READ COMMITTED"
        )
    except ModuleNotFoundError as error:
        raise StoreError(
            f"a store in PostgreSQL needs {error.name}, which is not installed; run: pip install "
            "'tether-rl[postgres]'"
        ) from error


def _sqlite(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        max_overflow=40,
    )

    @event.listens_for(engine, "connect")
    def begin(connection: Any, _: Any) -> None:
        # Python's sqlite3 would begin transactions of its own, and too late.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def immediate(connection: Connection) -> None:
        if connection.get_execution_options().get("immediate", False):
            _begin_immediate(connection)
        else:
            connection.exec_driver_sql("BEGIN")

    return engine


def _begin_immediate(connection: Connection) -> None:
    """Begins to write as soon as nobody else does.

    SQLite's own waiting sleeps longer after each attempt, up to a tenth of a second, so that those
    who have waited longest look least often: under load some would wait for many seconds.
    """
    driver = connection.connection.driver_connection
    assert driver is not None
    deadline = time.monotonic() + BUSY_SECONDS
    driver.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                # The extended codes of a busy database end in its code.
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0.0002, 0.002))
    finally:
        driver.execute(f"PRAGMA busy_timeout={1000 * BUSY_SECONDS:.0f}")


def _prepare_file(path: Path, *, create: bool) -> None:
    """Checks that the file is a database; makes it whole or not at all if there is none."""
    try:
        if path.is_dir():
            raise StoreError(f"store {path} is a folder; give a file in it")
        if path.exists():
            with path.open("rb") as file:
                if file.read(len(SQLITE_MAGIC)) != SQLITE_MAGIC:
                    raise StoreError(f"{path} is not a store of tether")
            return
        if not create:
            raise StoreError(f"there is no store {path}")
        if not path.parent.is_dir():
            raise StoreError(f"cannot make store {path}: there is no folder {path.parent}")
        _create_file(path)
    except OSError as error:
        raise StoreError(f"cannot open store {path}: {error.strerror or error}") from error


def _create_file(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        engine = _sqlite(temporary)
        try:
            # Kept in the file's header, so that whoever opens it has it too. Inside a transaction
            # it would do nothing.
            raw = engine.raw_connection()
            (mode,) = raw.cursor().execute("PRAGMA journal_mode=WAL").fetchone()
            raw.close()
            if mode != "wal":
                raise StoreError(
                    f"cannot make store {path}: its file system has no write-ahead log; choose a "
                    "folder of a local disk"
                )
            with engine.execution_options(immediate=True).begin() as connection:
                _create_tables(connection)
        finally:
            engine.dispose()
        with contextlib.suppress(FileExistsError):
            # Fails where another process was faster; its store is as good.
            os.link(temporary, path)
    except (SQLAlchemyError, sqlite3.Error) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
        line = next((said for sign, said in _SQLITE_ERRORS.items() if sign in reason), reason)
        raise StoreError(f"cannot make store {path}: {line}") from error
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
    sync_folder(path.parent)


def _create_tables(connection: Connection) -> None:
    metadata.create_all(connection)
    connection.execute(store_table.insert().values(schema=SCHEMA))
