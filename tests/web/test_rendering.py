"""The process that draws: what is waited for comes first, and its death is survived."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")

from tether.errors import UserError
from tether.preferences.items import Segment
from tether.web.rendering import Priority, Renderer


class Scribe:
    """Writes down in which order it was asked, slowly; sent to the worker process by pickle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, item: str, format: str) -> Path:
        return self.folder / f"{item}.{format}"

    def make(self, segment: Segment, format: str) -> Path:
        if segment.origin == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        if segment.origin == "bad":
            raise UserError("it cannot be drawn")
        with (self.folder / "order").open("a") as log:
            log.write(f"{segment.origin} {os.getpid()}\n")
        time.sleep(0.2)
        path = self.path(segment.id, format)
        path.write_text("drawn")
        return path


def segment(name: str) -> Segment:
    return Segment(env="X-v0", observation=np.zeros((1, 1)), action=np.zeros(1), origin=name)


@pytest.fixture
def renderer(tmp_path: Path) -> Any:
    made = Renderer(Scribe(tmp_path))
    yield made
    made.close()


def order(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / "order").read_text().splitlines()]


def test_what_a_person_waits_for_is_drawn_first(renderer: Renderer, tmp_path: Path) -> None:
    renderer.clip(segment("begun"), "mp4", Priority.POLICY)
    while not (tmp_path / "order").exists():
        time.sleep(0.01)
    later = [renderer.clip(segment(n), "mp4", Priority.NEXT) for n in ("next1", "next2", "next3")]
    policy = renderer.clip(segment("policy"), "mp4", Priority.POLICY)
    shown = renderer.clip(segment("shown"), "mp4", Priority.SHOWN)
    # Asked for by the page itself now, and drawn once all the same.
    moved = renderer.clip(segment("next3"), "mp4", Priority.SHOWN)
    assert moved is later[2]
    for future in (shown, moved, *later, policy):
        assert future.result(30).read_text() == "drawn"
    assert order(tmp_path) == ["begun", "shown", "next3", "next1", "next2", "policy"]
    pids = {line.split()[1] for line in (tmp_path / "order").read_text().splitlines()}
    assert len(pids) == 1
    assert str(os.getpid()) not in pids
    # What is there is not drawn again.
    assert renderer.clip(segment("shown"), "mp4", Priority.SHOWN).done()


def test_a_worker_that_dies_is_replaced(renderer: Renderer) -> None:
    with pytest.raises(UserError, match="has ended unexpectedly"):
        renderer.clip(segment("deadly"), "mp4", Priority.SHOWN).result(30)
    with pytest.raises(UserError, match="it cannot be drawn"):
        renderer.clip(segment("bad"), "mp4", Priority.SHOWN).result(30)
    assert renderer.clip(segment("good"), "mp4", Priority.SHOWN).result(30).exists()


def test_closing_ends_the_process_and_fails_what_waits(tmp_path: Path) -> None:
    renderer = Renderer(Scribe(tmp_path))
    renderer.clip(segment("one"), "mp4", Priority.SHOWN).result(30)
    pid = int((tmp_path / "order").read_text().split()[1])
    waiting = [renderer.clip(segment(str(i)), "mp4", Priority.NEXT) for i in range(5)]
    renderer.close()
    for future in waiting:
        assert future.done() or future.exception(5)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "zombie" in Path(f"/proc/{pid}/status").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the worker process is still there")
