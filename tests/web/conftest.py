"""A labelling server over a real store, spoken to as a browser would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from filled_store import add_pairs, texts
from page_requests import ORIGIN, TOKEN, Page
from starlette.testclient import TestClient

from tether.control.clips import Clips, ClipStyle
from tether.preferences.store import Store
from tether.web.app import create_app


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "labels.sqlite") as opened:
        yield opened


@pytest.fixture
def client(store: Store, tmp_path: Path) -> Iterator[TestClient]:
    add_pairs(store, texts(12))
    clips = Clips(tmp_path / "clips", ClipStyle(size=64))
    with TestClient(create_app(store, clips, TOKEN, lease_seconds=60), base_url=ORIGIN) as opened:
        yield opened


@pytest.fixture
def page(client: TestClient) -> Page:
    """A page that has been opened with the printed address."""
    assert client.get(f"/?token={TOKEN}").status_code == 200
    return Page(client)
