"""Stores that cannot be used: one line that names the store and what to do, and nothing lost."""

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from small_stores import fill
from sqlalchemy import create_engine, text

from tether import cli
from tether.errors import StoreError, UserError
from tether.preferences.records import Answer, Text
from tether.preferences.store import Store


def refused(location: str | Path, *, create: bool = True) -> str:
    with pytest.raises(StoreError) as caught:
        Store.open(location, create=create)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_store_of_a_newer_schema(place: str, tmp_path: Path) -> None:
    Store.open(place).close()
    url = place.replace("postgresql:", "postgresql+psycopg:")
    engine = create_engine(url if "://" in url else f"sqlite:///{url}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE tether_store SET schema = 99"))
    engine.dispose()
    assert "has schema 99, newer than the 1 that this tether reads; upgrade" in refused(place)


def test_files_that_are_no_stores(tmp_path: Path) -> None:
    words = tmp_path / "words.sqlite"
    words.write_text("these are words")
    empty = tmp_path / "empty.sqlite"
    empty.touch()
    foreign = tmp_path / "foreign.sqlite"
    with contextlib.closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE tracks (title)")
    before = foreign.read_bytes()
    assert refused(words) == f"{words} is not a store of tether"
    assert refused(empty) == f"{empty} is not a store of tether"
    assert refused(foreign) == f"{foreign} is a database, but not a store of tether"
    assert foreign.read_bytes() == before
    assert "is a folder" in refused(tmp_path)
    assert "there is no folder" in refused(tmp_path / "none" / "a.sqlite")
    assert "there is no store" in refused(tmp_path / "a.sqlite", create=False)
    assert not (tmp_path / "a.sqlite").exists()


def test_a_store_is_written_ahead_and_through(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with Store.open(path) as store, store._database.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        # 2 is FULL.
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    assert {file.name for file in tmp_path.iterdir()} == {"a.sqlite"}


def test_a_damaged_store(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with Store.open(path) as store:
        fill(store, 200)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"store {path}: the file is damaged"):  # noqa: SIM117
        with Store.open(path) as store:
            list(store.queries())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://u:secret@h/d", "cannot be at a mysql: URL"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("postgresql://u:secret@h:port/d", "cannot be read"),
    ],
)
def test_urls_that_name_no_store(url: str, says: str) -> None:
    said = refused(url)
    assert says in said and "expected a file" in said and "secret" not in said


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = refused(f"postgresql://ada:secret@127.0.0.1:{port}/labels?connect_timeout=5")
    assert f"server of store postgresql://127.0.0.1:{port}/labels" in said
    assert "refused" in said and "secret" not in said


def test_no_traceback_holds_the_password() -> None:
    script = textwrap.dedent("""
        from tether.preferences.store import Store
        Store.open("postgresql://ada:secret@127.0.0.1:1/labels?connect_timeout=5")
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "StoreError: cannot use the PostgreSQL server" in done.stderr
    # The line of the script that holds it is not shown: it was given by -c.
    assert "secret" not in done.stderr


def test_a_server_that_goes_away_and_comes_back(new_database: Callable[[], str]) -> None:
    place = new_database()
    with Store.open(place) as store:
        (query,) = fill(store, 1)
        engine = create_engine(place.replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND datname = current_database()"
                )
            )
        engine.dispose()
        store.answer(Answer(query.id, 1.0, "ada"))
        assert len(store.answers()) == 1


def test_a_database_without_a_store_is_left_alone(new_database: Callable[[], str]) -> None:
    place = new_database()
    said = refused(place, create=False)
    assert said.startswith("there is no store in postgresql://")
    Store.open(place).close()
    Store.open(place, create=False).close()


@pytest.mark.parametrize(("module", "extra"), [("sqlalchemy", "label"), ("psycopg", "postgres")])
def test_a_missing_package_is_named_with_its_extra(module: str, extra: str) -> None:
    script = textwrap.dedent(f"""
        import sys
        sys.modules[{module!r}] = None
        from tether.preferences.store import Store
        Store.open("postgresql://u:secret@127.0.0.1:1/d")
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert "StoreError" in last and f"needs {module}, which is not installed" in last
    assert f"pip install 'tether-rl[{extra}]'" in last and "secret" not in last


def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.sqlite") as store:
        queries = fill(store, 50)
        limit_pages(store, extra=3)
        acknowledged = []
        with pytest.raises(StoreError, match="the disk is full; nothing of this was written"):
            for number in range(2000):
                answer = Answer(queries[number % 50].id, 1.0, f"annotator {number}")
                store.answer(answer)
                acknowledged.append(answer.uuid)
        assert acknowledged
        with pytest.raises(StoreError, match="the disk is full"):
            store.add_items([Text("long", "x" * 100_000)])
        limit_pages(store, extra=1000)
        late = store.answer(Answer(queries[0].id, 0.0, "ada"))
        kept = [answer.uuid for _, answer in store.answers()]
        assert kept[:-1] == acknowledged and late.cursor == store.answers()[-1][0]


def limit_pages(store: Store, *, extra: int) -> None:
    """Gives the one connection of a store's pool a disk that ends some pages further on."""
    with store._database.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + extra}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_store_that_cannot_be_made_leaves_no_file(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        from tether.preferences.store import Store
        Store.open({str(tmp_path / "a.sqlite")!r})
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "StoreError: cannot make store" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def as_nobody(script: str) -> subprocess.CompletedProcess[str]:
    """Runs Python as a user who is not the owner of the files; root may write everywhere."""
    # All that opening a store imports is imported while it may be read.
    start = (
        "import os, tempfile\nfrom tether.preferences.store import Store\n"
        "with tempfile.TemporaryDirectory() as folder:\n    Store.open(folder + '/a').close()\n"
    )
    drop = "os.getuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))"
    return subprocess.run(
        [sys.executable, "-c", f"{start}\n{drop}\n{textwrap.dedent(script)}"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_store_that_may_only_be_read(tmp_path: Path) -> None:
    folder = Path("/tmp") / f"tether-read-only-{os.getpid()}"
    folder.mkdir()
    try:
        path = folder / "a.sqlite"
        with Store.open(path) as store:
            (query,) = fill(store, 1)
        path.chmod(0o444)
        folder.chmod(0o555)
        done = as_nobody(f"""
            from tether.preferences.records import Answer
            store = Store.open({str(path)!r})
            store.answer(Answer({query.id!r}, 1.0, "ada"))
        """)
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"tether.errors.StoreError: store {path}: it cannot be"), last
        assert "check the permissions of the file and its folder" in last
        done = as_nobody(f"Store.open({str(folder / 'b.sqlite')!r})")
        last = done.stderr.splitlines()[-1]
        assert "StoreError: cannot make store" in last and "permissions" in last, last
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_the_command_line_says_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words.sqlite"
    words.write_text("these are words")
    assert cli.main(["preferences", str(words)]) == 2
    assert capsys.readouterr().err == f"tether: {words} is not a store of tether\n"


def test_claims_are_checked(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.sqlite") as store:
        for mistake in ({"count": 0}, {"overlap": 0}, {"seconds": 0.0}, {"seconds": float("nan")}):
            with pytest.raises(UserError, match="expected at least 1, at least 1"):
                store.claim("ada", **mistake)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="annotator is empty"):
            store.claim("")
