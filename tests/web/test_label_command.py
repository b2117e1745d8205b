"""`tether label`: what it needs, what it refuses, and that nothing outlives it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from filled_store import add_pairs, random_segments, texts

from tether import cli
from tether.learning.run import Run
from tether.preferences.store import Store

TETHER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    from tether.cli import main
    sys.exit(main())
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "labels.sqlite"
    with Store.open(path) as opened:
        add_pairs(opened, texts(4))
    return path


def start(tmp_path: Path, *arguments: object) -> tuple[subprocess.Popen[str], str]:
    program = tmp_path / "tether_program.py"
    program.write_text(TETHER)
    process = subprocess.Popen(
        [sys.executable, str(program), "label", *map(str, arguments), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["url"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--host", "0.0.0.0"], "add --allow-remote if that is meant"),
        (["--host", "203.0.113.7", "--allow-remote"], "cannot listen on 203.0.113.7"),
        (["--port", "70000"], "--port is 70000"),
        (["--overlap", "0"], "--overlap is 0"),
        (["--goal", "0"], "--goal is 0"),
        (["--lease", "1"], "--lease is 1.0"),
        (["--speed", "0"], "--speed is 0.0"),
        (["--size", "9000"], "the size of clips is 9000"),
    ],
)
def test_mistakes_are_one_line(
    store: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["label", str(store), *more]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("tether: ")
    assert error.count("\n") == 1


def test_a_place_that_is_no_store_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("not a database")
    for name in ("nothing.sqlite", "folder", "text.txt"):
        assert cli.main(["label", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert name in error
        assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder", "text.txt"]


def test_a_port_in_use_is_told(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["label", str(store), "--port", str(port)]) == 2
    assert f"port {port} is in use" in capsys.readouterr().err


def test_a_run_without_questions_yet_gets_its_store(tmp_path: Path) -> None:
    run = tmp_path / "run"
    spec = {"env": "Hopper-v5", "env_kwargs": {}}
    Run.create(run, method="ppo", config={}, spec=spec).close()
    process, url = start(tmp_path, run)
    try:
        with Store.open(run / "preferences.sqlite", create=False) as opened:
            assert opened.counts().queries == 0
        with urllib.request.urlopen(url) as reply:
            cookie = reply.headers["Set-Cookie"].partition(";")[0]
        session = url.partition("/?")[0] + "/api/session"
        asked = urllib.request.Request(session, headers={"Cookie": cookie})
        with urllib.request.urlopen(asked) as reply:
            assert json.load(reply)["title"] == "Hopper-v5"
    finally:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the training has made no queries yet; the page waits for them" in error
    assert "ended; 0 labels are in" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_process_that_draws_ends_with_the_server(tmp_path: Path, how: signal.Signals) -> None:
    path = tmp_path / "labels.sqlite"
    with Store.open(path) as opened:
        add_pairs(opened, random_segments("Hopper-v5", 2, 6))
    process, _ = start(tmp_path, path)
    children = Path(f"/proc/{process.pid}/task")

    def drawing() -> list[int]:
        found = [int(c) for t in children.glob("*/children") for c in t.read_text().split()]
        return [c for c in found if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]

    end = time.monotonic() + 30
    while not list((tmp_path / "labels.clips").glob("*.mp4")):
        assert time.monotonic() < end
        time.sleep(0.1)
    [worker] = drawing()
    process.send_signal(how)
    process.communicate(timeout=30)
    end = time.monotonic() + 20
    status = Path(f"/proc/{worker}/status")
    while status.exists() and "zombie" not in status.read_text():
        assert time.monotonic() < end, "the process that draws is still there"
        time.sleep(0.05)


def test_a_new_start_has_a_new_token(tmp_path: Path, store: Path) -> None:
    urls: list[str] = []
    for _ in range(2):
        process, url = start(tmp_path, store)
        urls.append(url)
        if len(urls) == 2:
            old = urls[0].partition("token=")[2]
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(url.partition("token=")[0] + f"token={old}")
            assert refused.value.code == 401
            refused.value.close()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert urls[0].partition("token=")[2] != urls[1].partition("token=")[2]
    assert all(len(url.partition("token=")[2]) >= 40 for url in urls)


def test_the_wheel_holds_the_page(tmp_path: Path) -> None:
    build: Any = pytest.importorskip("hatchling.build")
    root = Path(__file__).parents[2]
    script = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert build is not None
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        names = set(wheel.namelist())
    for name in ("index.html", "label.js", "label.css", "icon.svg"):
        assert f"tether/web/static/{name}" in names
    page = (root / "src/tether/web/static/index.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
