"""The labelling server: what it keeps, and what it refuses."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filled_store import add_pairs, random_segments, texts
from page_requests import ORIGIN, TOKEN, Page
from starlette.testclient import TestClient

from tether.control.clips import Clips, ClipStyle
from tether.preferences.items import Segment
from tether.preferences.store import Store
from tether.web.app import create_app
from tether.web.guard import LARGEST_BODY, Hosts


def told(reply: Any) -> str:
    """The one line of an error."""
    line = reply.json()["error"]
    assert line
    assert "\n" not in line
    return str(line)


@contextmanager
def opened(store: Store, folder: Path, **settings: Any) -> Iterator[Page]:
    app = create_app(store, Clips(folder, ClipStyle(size=64)), TOKEN, **settings)
    with TestClient(app, base_url=ORIGIN) as client:
        client.get(f"/?token={TOKEN}")
        yield Page(client)


# --- who may speak with it


@pytest.mark.parametrize("path", ["/", "/?token=wrong", "/?token=", "/api/session", "/clips/x.mp4"])
def test_without_the_token_nothing_is_shown(client: TestClient, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code == 401
    assert "open the address that tether label has printed" in told(reply)
    assert "set-cookie" not in reply.headers


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_cannot_use(
    client: TestClient,
) -> None:
    reply = client.get(f"/?token={TOKEN}")
    assert reply.status_code == 200
    cookie = reply.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert client.get("/api/session").status_code == 200
    client.cookies.clear()
    assert client.get("/api/session").status_code == 401
    client.cookies.set(cookie.partition("=")[0], "another")
    assert client.get("/api/session").status_code == 401


def test_the_token_in_the_address_opens_the_page_and_nothing_else(client: TestClient) -> None:
    assert client.get(f"/api/session?token={TOKEN}").status_code == 401
    body = {"annotator": "ann"}
    reply = client.post(f"/api/next?token={TOKEN}", json=body, headers={"Origin": ORIGIN})
    assert reply.status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "https://127.0.0.1:8765"},
        {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"},
        {"Origin": ORIGIN, "Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_post_from_another_site_is_refused(
    page: Page, store: Store, headers: dict[str, str]
) -> None:
    pair = page.next()["pairs"][0]
    body = {"uuid": str(uuid.uuid4()), "query": pair["query"], "annotator": "ann"}
    reply = page.client.post("/api/answers", json={**body, "preference": 1.0}, headers=headers)
    assert reply.status_code == 403
    assert "only this server's own page may write" in told(reply)
    assert store.counts().answered == 0
    # Forms can send text/plain across sites without asking.
    plain = {"Origin": ORIGIN, "Content-Type": "text/plain"}
    reply = page.client.post("/api/answers", content=json.dumps(body), headers=plain)
    assert reply.status_code == 415


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "a@127.0.0.1", "", "[:"]
)
def test_a_foreign_host_is_refused_whatever_cookie_it_has(page: Page, host: str) -> None:
    reply = page.client.get("/api/session", headers={"Host": host})
    assert reply.status_code == 421
    assert "--allow-host" in told(reply)


def test_hosts_know_their_names() -> None:
    here = Hosts({"proxy.lab"})
    for name in ("127.0.0.1:1", "localhost", "[::1]:8765", "proxy.lab", "PROXY.lab:80"):
        assert name in here
    assert "10.0.0.3" not in here
    everywhere = Hosts(any_address=True)
    assert "10.0.0.3:8765" in everywhere
    assert "evil.example" not in everywhere


def test_every_reply_forbids_what_the_page_does_not_need(page: Page) -> None:
    for path in ("/", "/static/label.js", "/api/session", "/nowhere"):
        headers = page.client.get(path, params={"token": TOKEN} if path == "/" else None).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    for path in ("/docs", "/openapi.json", "/redoc"):
        assert page.client.get(path).status_code == 404


@pytest.mark.parametrize(
    "name",
    [
        "../labels.sqlite",
        "..%2flabels.sqlite",
        "%2e%2e%2flabels.sqlite",
        "0" * 31 + "/.mp4",
        "clips_evil.mp4",
        "0" * 32 + ".mp4",
        "0" * 32 + ".sqlite",
        "0" * 32 + ".mp4%00",
        "A" * 32 + ".mp4",
        "x" * 5000 + ".mp4",
    ],
)
def test_a_clip_is_found_in_the_store_or_not_at_all(page: Page, tmp_path: Path, name: str) -> None:
    (tmp_path / "clips_evil.mp4").write_text("secret")
    reply = page.client.get(f"/clips/{name}")
    assert reply.status_code == 404
    told(reply)


@pytest.mark.parametrize("name", ["../guard.py", "%2e%2e/guard.py", "..%2fguard.py"])
def test_static_files_are_those_of_the_page(page: Page, name: str) -> None:
    assert page.client.get(f"/static/{name}").status_code == 404


# --- bad input


@pytest.mark.parametrize(
    ("content", "status", "line"),
    [
        ("{", 400, "the request is not JSON"),
        ("", 422, "the request"),
        ("[]", 422, "the request"),
        ('{"annotator": "ann"}', 422, "uuid: Field required"),
        ('{"uuid": "1", "query": "2", "annotator": "ann"}', 422, "uuid: "),
        (b'{"annotator": "\xff"}', 400, "the request is not JSON"),
        ("[" * 5000, 400, "the request is not JSON"),
    ],
)
def test_malformed_requests_are_one_line(page: Page, content: Any, status: int, line: str) -> None:
    headers = {"Origin": ORIGIN, "Content-Type": "application/json"}
    reply = page.client.post("/api/answers", content=content, headers=headers)
    assert reply.status_code == status
    assert told(reply).startswith(line)


@pytest.mark.parametrize(
    "change",
    [
        {"preference": 1.5},
        {"preference": "left"},
        {"preference": True},
        {"annotator": ""},
        {"annotator": "  "},
        {"annotator": "x" * 65},
        {"ranking": [0, 1, 2]},
        {"ranking": list(range(65))},
        {"latency": -1},
        {"lease": "../x"},
        {"reward": 1},
    ],
)
def test_an_answer_that_fits_nothing_is_refused(
    page: Page, store: Store, change: dict[str, Any]
) -> None:
    reply = page.answer(page.next()["pairs"][0], **{"preference": 1.0, **change})
    assert reply.status_code == 422
    told(reply)
    assert store.counts().answered == 0


def test_large_requests_are_refused_unread(page: Page) -> None:
    headers = {"Origin": ORIGIN, "Content-Type": "application/json"}
    large = b" " * (LARGEST_BODY + 1)
    reply = page.client.post("/api/answers", content=large, headers=headers)
    assert reply.status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(LARGEST_BODY // 1024 + 1):
            yield b" " * 1024

    reply = page.client.post("/api/answers", content=chunks(), headers=headers)
    assert reply.status_code == 413


# --- what it keeps


def test_an_answer_is_in_the_store_when_it_is_confirmed(page: Page, store: Store) -> None:
    pair = page.next()["pairs"][0]
    reply = page.answer(pair, 0.0, latency=2.5).json()
    [(cursor, answer)] = store.answers()
    assert reply == {"cursor": cursor, "late": False, "duplicate": False}
    assert (answer.query, answer.preference, answer.annotator) == (pair["query"], 0.0, "ann")
    assert answer.latency == 2.5
    assert abs(answer.time - time.time()) < 10
    assert page.next()["pairs"][0]["query"] != pair["query"]


def test_the_same_uuid_twice_gives_the_same_receipt(page: Page, store: Store) -> None:
    pair, mine = page.next()["pairs"][0], str(uuid.uuid4())
    first = page.answer(pair, uuid=mine).json()
    second = page.answer(pair, uuid=mine)
    assert second.status_code == 200
    assert second.json() == {**first, "duplicate": True}
    assert len(store.answers()) == 1
    assert page.answer(pair, 0.0, uuid=mine).status_code == 422
    assert len(store.answers()) == 1


def test_an_answer_whose_lease_ran_out_is_kept_and_marked(tmp_path: Path) -> None:
    now = [1000.0]
    with Store.open(tmp_path / "labels.sqlite", clock=lambda: now[0]) as store:
        add_pairs(store, texts(2))
        with opened(store, tmp_path / "clips", lease_seconds=60) as page:
            pair = page.next()["pairs"][0]
            now[0] += 61
            assert page.answer(pair).json()["late"] is True
            assert store.counts().answered == 1
            [ann] = page.client.get("/api/annotators").json()["annotators"]
            assert (ann["answers"], ann["late"]) == (1, 1)


def test_undo_gives_the_same_comparison_back(page: Page, store: Store) -> None:
    pairs = page.next(3)["pairs"]
    page.answer(pairs[0])
    page.answer(pairs[1], 0.0)
    undo = {"uuid": str(uuid.uuid4()), "annotator": "ann"}
    back = page.post("/api/undo", undo).json()["pair"]
    assert back["query"] == pairs[1]["query"]
    assert back["items"] == pairs[1]["items"]
    assert store.counts().answered == 1
    # A reply that was lost: the same undo again takes back no other answer.
    again = page.post("/api/undo", undo).json()["pair"]
    assert again["query"] == back["query"]
    assert store.counts().answered == 1
    # Nobody else is given it meanwhile, though it is older than what is open.
    others = {p["query"] for p in Page(page.client, "bob").next(8)["pairs"]}
    assert others
    assert back["query"] not in others
    assert page.answer(back, 1.0).json()["late"] is False
    assert [a.preference for _, a in store.standing()] == [1.0, 1.0]


def test_with_nothing_to_undo_nothing_happens(page: Page, store: Store) -> None:
    undo = {"uuid": str(uuid.uuid4()), "annotator": "ann"}
    assert page.post("/api/undo", undo).json() == {"pair": None}
    assert store.answers() == []


def test_a_skipped_comparison_goes_to_others_and_not_back(page: Page) -> None:
    pair = page.next()["pairs"][0]
    skip = {
        "uuid": str(uuid.uuid4()),
        "lease": pair["lease"],
        "query": pair["query"],
        "annotator": "ann",
        "skip": True,
    }
    assert page.post("/api/release", skip).json() == {"released": True}
    assert pair["query"] not in {p["query"] for p in page.next(8)["pairs"]}
    bob = Page(page.client, "bob")
    assert bob.next()["pairs"][0]["query"] == pair["query"]
    for held in [*page.next(8)["pairs"], *bob.next(8)["pairs"]][:-1]:
        page.answer(held) if held["query"] != pair["query"] else None
    assert page.post("/api/release", skip).json() == {"released": False}


def test_two_annotators_never_get_the_same_comparison(page: Page) -> None:
    bob = Page(page.client, "bob")
    seen = [p["query"] for one in (page, bob) for p in one.next(4)["pairs"]]
    assert len(seen) == len(set(seen)) == 6
    assert page.next(4)["pairs"] != []
    assert Page(page.client, "cyd").next() == {"pairs": [], "why": "others"}


def test_two_servers_serve_one_store(tmp_path: Path, page: Page, store: Store) -> None:
    with (
        Store.open(tmp_path / "labels.sqlite") as other,
        opened(other, tmp_path / "clips") as there,
    ):
        there.name = "bob"
        mine, theirs = page.next(3)["pairs"], there.next(3)["pairs"]
        assert not {p["query"] for p in mine} & {p["query"] for p in theirs}
        assert page.answer(mine[0]).status_code == there.answer(theirs[0]).status_code == 200
    assert store.counts().answered == 2


def test_it_waits_for_a_training_that_has_not_asked_yet(store: Store, tmp_path: Path) -> None:
    with opened(store, tmp_path / "clips") as page:
        assert page.next() == {"pairs": [], "why": "asking"}
        add_pairs(store, texts(2))
        assert len(page.next()["pairs"]) == 1


def test_the_goal_comes_from_the_store(store: Store, tmp_path: Path) -> None:
    add_pairs(store, texts(2))
    store.note("goal", 1)
    store.note("instruction", "Which answer is <i>kinder</i>?")
    with opened(store, tmp_path / "clips") as page:
        session = page.client.get("/api/session").json()
        assert (session["goal"], session["instruction"]) == (1, "Which answer is <i>kinder</i>?")
        page.answer(page.next()["pairs"][0])
        assert page.next() == {"pairs": [], "why": "done"}
        progress = page.client.get("/api/progress", params={"annotator": "ann"}).json()
        assert (progress["answered"], progress["goal"], progress["mine"]) == (1, 1, 1)


def test_texts_arrive_as_they_are(page: Page) -> None:
    item = page.next()["pairs"][0]["items"][0]
    assert item["kind"] == "text"
    assert "<script>" in item["completion"]
    assert item["prompt"] == [
        {"role": "user", "content": "What makes a good film? <b>Be brief.</b>"}
    ]


def test_rewards_and_origins_stay_with_the_oracle(store: Store, tmp_path: Path) -> None:
    add_pairs(store, random_segments("Hopper-v5", 2, 6), source="disagreement")
    with opened(store, tmp_path / "clips") as page:
        pair = page.next()["pairs"][0]
        assert set(pair) == {"query", "lease", "seconds", "context", "items"}
        assert all(set(i) == {"id", "kind", "prompt", "completion"} for i in pair["items"])
        assert all(i["kind"] == "clip" and i["prompt"] is None for i in pair["items"])


# --- clips


def test_a_pair_of_clips_is_drawn_and_kept(store: Store, tmp_path: Path) -> None:
    import av

    add_pairs(store, random_segments("Hopper-v5", 2, 12))
    with opened(store, tmp_path / "clips") as page:
        pair = page.next()["pairs"][0]
        for item in pair["items"]:
            reply = page.client.get(f"/clips/{item['id']}.mp4")
            assert reply.status_code == 200, reply.text
            assert reply.headers["content-type"] == "video/mp4"
            assert "immutable" in reply.headers["cache-control"]
        files = sorted(path.name for path in (tmp_path / "clips").iterdir())
        assert len(files) == 2
        assert all(name.endswith(".mp4") for name in files)
        with av.open(str(tmp_path / "clips" / files[0])) as film:
            assert film.streams.video[0].codec_context.name == "h264"
        part = page.client.get(f"/clips/{item['id']}.mp4", headers={"Range": "bytes=0-9"})
        assert part.status_code == 206
        assert page.client.get("/api/training").json()["policy"]["item"] == item["id"]


def test_what_cannot_be_drawn_is_one_line_and_the_server_goes_on(
    store: Store, tmp_path: Path
) -> None:
    given = random_segments("Hopper-v5", 2, 6)
    bare = [Segment(env="CartPole-v1", observation=s.observation, action=s.action) for s in given]
    add_pairs(store, bare)
    with opened(store, tmp_path / "clips") as page:
        pair = page.next()["pairs"][0]
        reply = page.client.get(f"/clips/{pair['items'][0]['id']}.mp4")
        assert reply.status_code == 503
        assert "CartPole-v1 hold neither MuJoCo states nor pictures" in told(reply)
        assert "--teacher oracle" in told(reply)
        assert page.answer(pair).status_code == 200


def test_a_clip_that_finds_no_space_is_507(store: Store, tmp_path: Path) -> None:
    add_pairs(store, random_segments("Hopper-v5", 2, 6))
    with opened(store, Path("/dev/full/clips")) as page:
        pair = page.next()["pairs"][0]
        reply = page.client.get(f"/clips/{pair['items'][0]['id']}.mp4")
        assert reply.status_code in (503, 507)
        assert "cannot be written" in told(reply)
        assert page.answer(pair).status_code == 200


def test_a_full_disk_loses_nothing(page: Page, store: Store, tmp_path: Path) -> None:
    """SQLite is given no page more, as on a full disk; then space is made."""
    from sqlalchemy import event

    engine = store._database._engine
    limit = {"pages": 1}

    @event.listens_for(engine, "checkout")
    def full(connection: sqlite3.Connection, *_: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={limit['pages']}")

    pairs = page.next(6)["pairs"]
    kept, refused, mine = 0, None, ""
    for _ in range(400):
        mine = str(uuid.uuid4())
        reply = page.answer(pairs[0], uuid=mine, preference=kept % 2)
        if reply.status_code != 200:
            refused = reply
            break
        kept += 1
    assert refused is not None
    assert refused.status_code == 507
    assert "the disk is full" in told(refused)
    assert len(store.answers()) == kept
    limit["pages"] = 1_000_000
    assert page.answer(pairs[0], uuid=mine, preference=kept % 2).json()["duplicate"] is False
    assert len(store.answers()) == kept + 1


# --- the training beside it


def test_curves_follow_the_run_while_it_writes(store: Store, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with opened(store, tmp_path / "clips", run=run) as page:
        assert page.client.get("/api/training").json()["curves"] == []
        rows = [{"step": 100 * i, "return/mean": float(i)} for i in range(600)]
        metrics = run / "metrics.jsonl"
        metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 60000, "re')
        [curve] = page.client.get("/api/training").json()["curves"]
        assert curve["title"] == "Policy return"
        assert len(curve["points"]) == 240
        steps = [step for step, _ in curve["points"]]
        assert steps == sorted(steps)
        assert all(abs(value - step / 100) < 1e-6 for step, value in curve["points"])
        # A run that was resumed has cut its metrics back.
        metrics.write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
        [curve] = page.client.get("/api/training").json()["curves"]
        assert [value for _, value in curve["points"]] == [0, 1, 2, 3, 4]
