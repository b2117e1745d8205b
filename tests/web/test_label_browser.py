"""The labelling page in a real browser: watched, answered, cut off, come back to.

The server is `tether label` in a process of its own, so that it can be killed.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filled_store import add_pairs, random_segments, texts

from tether.preferences.records import Query
from tether.preferences.store import Store

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        if (found := shutil.which(name))
    ),
    None,
)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed (apt-get install chromium)", allow_module_level=True)

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=60_000)

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += [
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]
TETHER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    from tether.cli import main
    sys.exit(main())
"""


class Server:
    """`tether label` in a process of its own."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.path, self.port = folder, store, 0
        self.program = folder / "tether_program.py"
        self.program.write_text(TETHER)
        self.process: subprocess.Popen[str] | None = None

    def start(self, *more: str) -> str:
        """Starts it, at the same port as before, and returns the printed address."""
        command = [sys.executable, str(self.program), "label", str(self.path), "--json"]
        command += ["--port", str(self.port), "--size", "96", *more]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        address: str = json.loads(self.process.stdout.readline())["url"]
        self.port = int(address.partition("127.0.0.1:")[2].partition("/")[0])
        return address

    def stop(self, how: int = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        code = self.process.wait(30)
        self.process.stdout.close()  # type: ignore[union-attr]
        self.process = None
        return code


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    one = Server(tmp_path, tmp_path / "labels.sqlite")
    yield one
    if one.process is not None:
        one.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page in a profile of its own, as one person; a fault in its script fails the test."""
    contexts: list[Any] = []
    faults: list[str] = []

    def start(address: str, name: str = "ann", **settings: Any) -> Any:
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        page.get_by_label("Name", exact=True).fill(name)
        page.keyboard.press("Enter")
        return page

    yield start
    for context in contexts:
        context.close()
    assert faults == []


def shown(page: Any) -> list[str]:
    """Ids of the items that the page shows, from left to right, once they have been drawn."""
    expect(page.locator(".card")).not_to_have_count(0)
    return [card.get_attribute("data-item") for card in page.locator(".card").all()]


def press(page: Any, key: str) -> list[str]:
    """Presses a key once the clips are there, waits for the next ones, returns what was shown."""
    before = shown(page)
    page.keyboard.press(key)
    expect(page.locator(f'.card[data-item="{before[0]}"]')).to_have_count(0)
    return before


def wait_until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, f"not within 60 s: {what}"
        time.sleep(0.05)


def axe(page: Any) -> list[str]:
    """What axe-core finds wrong and calls serious or critical."""
    package = pytest.importorskip("axe_playwright_python")
    script = (Path(package.__file__).parent / "axe.min.js").read_text()
    # Through the debugger, since the page's policy forbids scripts of others.
    session = page.context.new_cdp_session(page)
    session.send("Runtime.evaluate", {"expression": script})
    run = "axe.run(document, {resultTypes: ['violations']}).then(r => JSON.stringify(r.violations))"
    reply = session.send("Runtime.evaluate", {"expression": run, "awaitPromise": True})
    found = json.loads(reply["result"]["value"])
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def test_watch_answer_undo_skip_and_finish_by_keys(server: Server, open_page: Any) -> None:
    with Store.open(server.path) as store:
        add_pairs(store, random_segments("Hopper-v5", 10, 60))
        store.note("goal", 4)
        page = open_page(server.start())
        expect(page.locator(".card.ready")).to_have_count(2)
        assert "token" not in page.url
        videos = page.locator(".card video")
        expect(videos).to_have_count(2)
        # Both play together, and the shorter one waits at its end until both begin again.
        read = "all => all.map(v => [v.currentTime, v.paused || v.ended, v.videoWidth])"
        time.sleep(1.0)
        moments = []
        for _ in range(20):
            moments.append(videos.evaluate_all(read))
            time.sleep(0.05)
        gaps = [abs(one[0] - two[0]) for one, two in moments if not one[1] and not two[1]]
        assert len(gaps) > 2
        assert statistics.median(gaps) < 0.06
        assert max(clip[0] for moment in moments for clip in moment) > 0.4
        assert sum(one[1] != two[1] for one, two in moments) > 2
        assert all(width == 96 for moment in moments for *_, width in moment)

        given = {}
        for key, preference in (("ArrowLeft", 1.0), ("ArrowRight", 0.0), ("ArrowDown", 0.5)):
            given[tuple(press(page, key))] = preference
        expect(page.locator("#state-text")).to_have_text("All answers saved")
        # What is stored is what was shown.
        wait_until(lambda: store.counts().answered == 3, "three answers in the store")
        assert {q.items: a.preference for q, a in store.standing()} == given
        assert all(a.annotator == "ann" and a.latency > 0 for _, a in store.standing())

        last = next(items for items, preference in given.items() if preference == 0.5)
        page.keyboard.press("u")
        expect(page.locator(".card").first).to_have_attribute("data-item", last[0])
        wait_until(lambda: store.counts().answered == 2, "the undo in the store")
        press(page, "ArrowRight")
        wait_until(lambda: store.counts().answered == 3, "the new answer")
        assert {q.items: a.preference for q, a in store.standing()}[last] == 0.0

        skipped = press(page, "s")
        press(page, "ArrowUp")
        wait_until(lambda: store.counts().skipped == 1, "can't tell")
        expect(page.locator("#empty-title")).to_have_text("Only skipped ones are left")
        assert store.counts().answered == 3
        assert skipped not in [list(q.items) for q, _ in store.standing()]
        expect(page.locator("#answered")).to_have_text("3")
        expect(page.locator("#goal")).to_have_text("of 4 labels")
    assert server.stop() == 130


def test_a_key_that_is_held_down_answers_once(server: Server, open_page: Any) -> None:
    with Store.open(server.path) as store:
        add_pairs(store, texts(12))
        page = open_page(server.start())
        shown(page)
        page.keyboard.down("ArrowLeft")
        for _ in range(10):
            page.keyboard.down("ArrowLeft")  # the browser marks it as a repetition
            time.sleep(0.05)
        page.keyboard.up("ArrowLeft")
        wait_until(lambda: store.counts().answered >= 1, "an answer")
        time.sleep(0.5)
        assert store.counts().answered == 1


def test_an_answer_is_not_asked_for_again_by_a_late_reply(server: Server, open_page: Any) -> None:
    with Store.open(server.path) as store:
        add_pairs(store, texts(6))
        page = open_page(server.start())
        shown(page)
        held: list[Any] = []

        page.route("**/api/next", lambda route: held.append((route, route.fetch())))
        # The page asks for more after an answer, and the server's reply has the second pair.
        press(page, "ArrowLeft")
        end = time.monotonic() + 30
        while not held and time.monotonic() < end:
            page.wait_for_timeout(20)
        second = press(page, "ArrowRight")
        wait_until(lambda: store.counts().answered == 2, "two answers in the store")
        expect(page.locator("#state-text")).to_have_text("All answers saved")
        route, response = held[0]
        assert second[0] in response.text()
        route.fulfill(response=response)
        page.wait_for_timeout(300)
        press(page, "ArrowLeft")
        page.wait_for_timeout(300)
        expect(page.locator(f'.card[data-item="{second[0]}"]')).to_have_count(0)
        wait_until(lambda: store.counts().answered == 3, "three answers in the store")


def test_an_undo_is_quicker_than_its_reply(server: Server, open_page: Any) -> None:
    with Store.open(server.path) as store:
        add_pairs(store, texts(8))
        page = open_page(server.start())
        first = press(page, "ArrowLeft")
        wait_until(lambda: store.counts().answered == 1, "an answer")
        held: list[Any] = []
        page.route("**/api/undo", lambda route: held.append((route, route.fetch())))
        page.keyboard.press("u")
        expect(page.locator(".card").first).to_have_attribute("data-item", first[0])
        wait_until(lambda: store.counts().answered == 0, "the undo in the store")
        assert press(page, "ArrowRight") == first
        while not held:
            page.wait_for_timeout(20)
        route, response = held[0]
        route.fulfill(response=response)
        expect(page.locator("#state-text")).to_have_text("All answers saved")
        wait_until(lambda: store.counts().answered == 1, "the new answer")
        page.wait_for_timeout(300)
        expect(page.locator(f'.card[data-item="{first[0]}"]')).to_have_count(0)
        ((query, answer),) = store.standing()
        assert (list(query.items), answer.preference) == (first, 0.0)


def test_answers_outlive_an_outage(server: Server, open_page: Any) -> None:
    with Store.open(server.path) as store:
        add_pairs(store, texts(16))
        page = open_page(server.start())
        press(page, "ArrowLeft")
        wait_until(lambda: store.counts().answered == 1, "the first answer")
        page.context.set_offline(True)
        press(page, "ArrowRight")
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#state-text")).to_have_text("Not connected, 2 answers kept here")
        assert store.counts().answered == 1
        page.context.set_offline(False)
        expect(page.locator("#state-text")).to_have_text("All answers saved")
        wait_until(lambda: store.counts().answered == 3, "all three")
        assert [a.preference for _, a in store.standing()] == [1.0, 0.0, 1.0]


def test_answers_outlive_the_server_and_the_page(server: Server, open_page: Any) -> None:
    """The server is killed, the page closed; a new server at the same place gets the answers."""
    with Store.open(server.path) as store:
        add_pairs(store, texts(16))
        page = open_page(server.start())
        press(page, "ArrowLeft")
        wait_until(lambda: store.counts().answered == 1, "the first answer")
        server.stop(signal.SIGKILL)
        press(page, "ArrowRight")
        expect(page.locator("#state")).to_contain_text("1 answer kept here")
        address = server.start()
        # The token is new, so this page may not speak with the server any more; it says so.
        expect(page.locator("#state")).to_contain_text("Link no longer valid, 1 answer kept here")
        expect(page.locator("#unsent")).to_contain_text(
            "Open the link that tether label has printed"
        )
        assert store.counts().answered == 1
        context = page.context
        page.close()
        again = context.new_page()
        again.goto(address)
        expect(again.locator("#state-text")).to_have_text("All answers saved")
        wait_until(lambda: store.counts().answered == 2, "the answer that was kept")
        assert [a.preference for _, a in store.standing()] == [1.0, 0.0]
        press(again, "ArrowDown")
        wait_until(lambda: store.counts().answered == 3, "one more, under the same name")
        assert {a.annotator for _, a in store.standing()} == {"ann"}


def test_a_reply_that_is_lost_doubles_nothing(server: Server, open_page: Any) -> None:
    with Store.open(server.path) as store:
        add_pairs(store, texts(12))
        page = open_page(server.start())
        lost = []

        def lose(route: Any) -> None:
            if not lost:
                lost.append(route.fetch())  # the server has kept it, and its reply gets lost
                route.abort()
            else:
                route.continue_()

        page.route("**/api/answers", lose)
        press(page, "ArrowLeft")
        expect(page.locator("#state-text")).to_have_text("All answers saved")
        assert lost
        assert len(store.answers()) == 1


def test_two_annotators_at_once(server: Server, open_page: Any) -> None:
    with Store.open(server.path) as store:
        add_pairs(store, texts(24))
        address = server.start()
        ann, bob = open_page(address), open_page(address, "bob")
        for _ in range(5):
            assert set(shown(ann)).isdisjoint(shown(bob))
            press(ann, "ArrowLeft")
            press(bob, "ArrowRight")
        wait_until(lambda: store.counts().answered == 10, "ten answers")
        assert sorted(a.annotator for _, a in store.standing()) == ["ann"] * 5 + ["bob"] * 5
        assert len(store.answers()) == 10
        ann.get_by_role("link", name="People").click()
        expect(ann.locator("#people-rows tr")).to_have_count(2)
        expect(ann.locator("#people-rows tr").nth(1)).to_contain_text("bob")
        # A name that is in use is asked about, and not taken silently.
        page = open_page(address, "bob")
        expect(page.locator("#name-taken")).to_contain_text("bob has answered before")


def test_texts_are_shown_and_never_interpreted(server: Server, open_page: Any) -> None:
    with Store.open(server.path) as store:
        add_pairs(store, texts(4))
        store.note("instruction", "Which answer is <i>kinder</i>?")
        page = open_page(server.start())
        expect(page.locator("h1").first).to_have_text("Which answer is <i>kinder</i>?")
        expect(page.locator(".card .text").first).to_contain_text("<script>document.title='hacked'")
        expect(page.locator("#context")).to_contain_text("What makes a good film? <b>Be brief.</b>")
        assert page.title() == "tether: compare"
        page.get_by_role("button", name="Second is better").click()
        wait_until(lambda: store.counts().answered == 1, "the answer by click")
        assert next(store.standing())[1].preference == 0.0


@pytest.mark.parametrize("way", ["keys", "drag"])
def test_several_are_ranked(server: Server, open_page: Any, way: str) -> None:
    with Store.open(server.path) as store:
        items = store.add_items(texts(4))
        store.add_queries([Query(items=tuple(items))])
        page = open_page(server.start(), viewport={"width": 1200, "height": 1400})
        expect(page.locator(".card")).to_have_count(4)
        if way == "keys":
            # Choice 4 to the top, by Tab and Enter alone.
            up = page.get_by_role("button", name="Move choice 4 up")
            up.focus()
            for _ in range(3):
                page.keyboard.press("Enter")
            page.get_by_role("button", name="Save this order").focus()
            page.keyboard.press("Enter")
        else:
            start, end = (page.locator(".card .head").nth(i).bounding_box() for i in (3, 0))
            page.mouse.move(start["x"] + 20, start["y"] + 12)
            page.mouse.down()
            page.mouse.move(end["x"] + 30, end["y"] + 6, steps=8)
            page.mouse.up()
            page.keyboard.press("Enter")
        wait_until(lambda: store.counts().answered == 1, "the ranking")
        assert next(store.standing())[1].ranking == (3, 0, 1, 2)


def test_a_phone_answers_by_touch(server: Server, open_page: Any) -> None:
    with Store.open(server.path) as store:
        add_pairs(store, random_segments("Hopper-v5", 4, 8))
        phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
        page = open_page(server.start(), **phone)
        expect(page.locator(".card.ready")).to_have_count(2)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360
        buttons = page.locator("#choices button").all()
        for button in buttons:
            box = button.bounding_box()
            assert box["height"] >= 44
            assert box["y"] + box["height"] < 740
        page.locator(".card .screen").nth(1).tap()
        wait_until(lambda: store.counts().answered == 1, "the answer by touch")
        assert next(store.standing())[1].preference == 0.0


def test_who_wants_no_motion_gets_none(server: Server, open_page: Any) -> None:
    with Store.open(server.path) as store:
        add_pairs(store, random_segments("Hopper-v5", 2, 8))
        page = open_page(server.start(), reduced_motion="reduce")
        expect(page.locator(".card.ready")).to_have_count(2)
        time.sleep(0.5)
        videos = page.locator(".card video")
        assert [v.evaluate("v => v.currentTime") for v in videos.all()] == [0, 0]
        page.keyboard.press(" ")
        expect(page.get_by_role("button", name="Pause")).to_be_visible()
        wait_until(lambda: videos.first.evaluate("v => v.currentTime") > 0, "it plays when asked")


def test_a_page_waits_for_the_training(server: Server, open_page: Any) -> None:
    with Store.open(server.path) as store:
        page = open_page(server.start())
        expect(page.locator("#empty-title")).to_have_text("Waiting for the training to ask")
        add_pairs(store, texts(2))
        expect(page.locator(".card")).to_have_count(2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(server: Server, open_page: Any, scheme: str) -> None:
    with Store.open(server.path) as store:
        add_pairs(store, random_segments("Hopper-v5", 2, 8))
        add_pairs(store, texts(2))
        items = store.add_items(texts(5)[2:])
        store.add_queries([Query(items=tuple(items))])
        address = server.start()
        page = open_page(address, color_scheme=scheme)
        expect(page.locator(".card.ready")).to_have_count(2)
        assert axe(page) == []
        press(page, "ArrowLeft")
        assert axe(page) == []
        press(page, "ArrowLeft")
        expect(page.locator(".card")).to_have_count(3)
        assert axe(page) == []
        page.keyboard.press("Enter")
        expect(page.locator("#empty")).to_be_visible()
        assert axe(page) == []
        page.get_by_role("link", name="People").click()
        expect(page.locator("#people-rows tr")).to_have_count(1)
        assert axe(page) == []
        page.get_by_role("button", name="You label as").click()
        assert axe(page) == []


def test_ctrl_c_during_answers_loses_none(server: Server, open_page: Any) -> None:
    with Store.open(server.path) as store:
        add_pairs(store, texts(40))
        page = open_page(server.start())
        for _ in range(3):
            press(page, "ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert server.stop(signal.SIGINT) == 130
        expect(page.locator("#state")).to_have_attribute("data-kind", "offline")
        kept = json.loads(page.evaluate("JSON.stringify(Object.entries(localStorage))"))
        unsent = [json.loads(value) for key, value in kept if key.endswith(".unsent")]
        waiting = {one["body"]["uuid"] for box in unsent for one in box}
        assert len(waiting | {answer.uuid for _, answer in store.answers()}) == 4
