"""A folder that is there as a whole or not at all, whatever happens while it is written."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tether.errors import UserError
from tether.learning.storage.new_folder import new_folder

WRITER = """
import sys, time
from pathlib import Path
from tether.learning.storage.new_folder import new_folder

with new_folder(Path("a/b/out")) as folder:
    (folder / "weights").write_text("one")
    (folder / "inner").mkdir()
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("exists", [False, True])
def test_the_name_stands_for_the_whole(tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "deep" / "out"
    if exists:
        out.mkdir(parents=True)
    with new_folder(out) as folder:
        (folder / "one").write_text("1")
        (folder / "one").chmod(0o600)
        assert not (out / "one").exists()
        assert folder.parent == out.parent
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "one").read_text() == "1"
    # As any other program of this user writes a folder and a file.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    assert out.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert (out / "one").stat().st_mode == (tmp_path / "other" / "file").stat().st_mode


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(28, "full")])
def test_an_error_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), new_folder(tmp_path / "deep" / "er" / "out") as folder:
        (folder / "one").write_text("1")
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    child = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + WRITER,
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"writing\n"
    assert len(list((tmp_path / "a" / "b").iterdir())) == 1
    began = time.monotonic()
    child.send_signal(number)
    assert child.wait(30) != 0
    assert time.monotonic() - began < 20
    child.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("dear")
    with pytest.raises(UserError, match=r"is not empty \(it has mine\)"), new_folder(tmp_path):
        pass
    with pytest.raises(UserError, match="is a file"), new_folder(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").read_text() == "dear"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), new_folder(tmp_path / "file" / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
