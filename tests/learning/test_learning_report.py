"""The report: one page that holds everything it shows, and interprets nothing it was given."""

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tether import cli
from tether.errors import UserError
from tether.learning import Run
from tether.learning.output.evaluations import keep_evaluation
from tether.learning.output.metrics import format_line
from tether.learning.reports.report import _thinned, write_report


class Page(HTMLParser):
    """What a browser would see: tables as rows of texts, pictures by name, and all tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.marked: list[str] = []
        self.pictures: dict[str, bytes] = {}
        self.tables: list[list[list[str]]] = []
        self.links: list[str] = []
        self._cell = False
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
            self._marked = given.get("class") == "differs"
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True
        elif tag == "img":
            kind, _, data = given["src"].partition(",")
            assert kind == "data:image/svg+xml;base64"
            self.pictures[given["alt"].removesuffix(" against steps")] = base64.b64decode(data)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False
            if self._marked and len(self.tables[-1][-1]) == 1:
                self.marked.append(self.tables[-1][-1][0])

    def handle_data(self, data):
        if self._cell:
            self.tables[-1][-1][-1] += data


def made(folder: Path, *, steps=(10, 20, 30), samples=(), **config) -> Path:
    """A run's folder, as a method leaves it."""
    with Run.create(folder, method="m<b>", config=config, spec={"setup": {"seed": 3}}) as run:
        lines = [
            format_line(s, {"reward/mean": s / 7, "loss": float("nan"), "time/seconds": 61 * s})
            for s in steps
        ]
        run.metrics_path.write_bytes(b"".join(lines))
        if samples:
            rows = "".join(json.dumps(row) + "\n" for row in samples)
            (folder / "samples.jsonl").write_text(rows)
    return folder


HOSTILE = "<script>alert(1)</script> & <img src=http://x/y>"


def test_a_page_shows_settings_curves_and_samples_and_needs_nothing_else(tmp_path):
    samples = [
        {"step": step, "prompt": f"p{step}", "completion": HOSTILE, "score": 1.25, "ids": None,
         "prompt_ids": [1], "finished": True}
        for step in range(100, 1000, 100) for _ in range(6)
    ]  # fmt: skip
    folder = made(tmp_path / "run", rate=0.5, name=HOSTILE, samples=samples)
    path = write_report([folder])
    assert path == folder / "report.html"
    page = Page(path)
    assert page.links == [] and "script" not in page.tags
    assert page.tags.count("img") == len(page.pictures) == 2
    # NaN alone is no curve.
    assert set(page.pictures) == {"reward/mean", "time/seconds"}
    for picture in page.pictures.values():
        assert ElementTree.fromstring(picture).tag.endswith("svg")
    overview, shown, settings = page.tables
    assert overview[0] == ["run", "method", "begun", "steps", "time", "reward/mean"]
    assert overview[1][:2] == ["run", "m<b>"] and overview[1][3:] == ["30", "0:30:30", "4.286"]
    assert shown[0] == ["step", "prompt", "completion", "score", "ids", "finished"]
    assert [row[0] for row in shown[1::4]] == ["100", "300", "500", "700", "900"]
    assert len(shown) == 21 and shown[1][2] == HOSTILE and shown[1][3] == "1.25"
    assert ["rate", "0.5"] in settings and ["name", HOSTILE] in settings
    assert ["run.setup.seed", "3"] in settings


def evaluated(folder: Path, *, step: int, other: float | None, **settings) -> None:
    rows = [
        {"title": "score", "value": 1.25, "interval": [1.0, 1.5], "other": other,
         "cannot_tell": HOSTILE},
        {"title": "length", "value": 7, "interval": None, "other": None, "cannot_tell": "Why."},
    ]  # fmt: skip
    keep_evaluation(folder, step=step, settings=settings, found={"prompts": 64}, attributes=rows)


def test_a_page_shows_what_evaluations_found_the_latest_first(tmp_path):
    folder = made(tmp_path / "run")
    evaluated(folder, step=10, other=None, reward=["a"], against=None)
    evaluated(folder, step=30, other=0.5, reward=["a", "b"], against="tiny")
    evaluated(folder, step=20, other=None, reward=["a"], against=None)
    page = Page(write_report([folder]))
    _, first, second, _ = page.tables
    assert first == [
        ["attribute", "value", "95 % interval", "what it can't tell"],
        ["score", "1.25", "1 to 1.5", HOSTILE],
        ["length", "7", "", "Why."],
    ]
    assert second[0][3] == "the other" and [row[3] for row in second[1:]] == ["0.5", ""]
    assert "script" not in page.tags
    assert page.text.index("at step 20, 64 prompts, reward a<") < page.text.index(
        "at step 30, 64 prompts, reward a b, against tiny<"
    )
    assert "at step 10" not in page.text and "<h2>Evaluation</h2>" in page.text
    both = write_report([folder, made(tmp_path / "other")], tmp_path / "page.html")
    assert Page(both).text.count("<h2>Evaluation of run</h2>") == 1


def test_several_runs_are_told_apart_and_their_differences_marked(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    one = made(tmp_path / "a" / "seed-0", rate=0.5, kind="x", old=1)
    two = made(tmp_path / "b" / "seed-0", rate=0.25, kind="x", steps=())
    assert cli.main(["report", str(one), str(two), "--json"]) == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert told["report"] == "report.html"
    page = Page(Path("report.html"))
    overview, settings = page.tables
    assert [row[0] for row in overview[1:]] == ["a/seed-0", "b/seed-0"]
    assert overview[2][3] == "none yet"
    assert settings[0] == ["setting", "a/seed-0", "b/seed-0"]
    assert ["rate", "0.5", "0.25"] in settings and ["old", "1", ""] in settings
    assert page.marked == ["rate", "old"]


def test_thousands_of_points_become_the_means_of_neighbours():
    steps = np.arange(1, 4001, dtype=float)
    values = np.sin(steps / 300)
    short_steps, short = _thinned(steps, values)
    assert len(short) == 500
    np.testing.assert_allclose(short_steps[0], np.mean(steps[:8]))
    np.testing.assert_allclose(short[-1], np.mean(values[-8:]))
    few = _thinned(steps[:500], values[:500])
    assert few[0] is not None and len(few[1]) == 500 and few[1][3] == values[3]


def test_mistakes_are_told(tmp_path, capfd):
    assert cli.main(["report"]) == 2
    assert "no runs given" in capfd.readouterr().err
    assert cli.main(["report", str(tmp_path / "missing")]) == 2
    assert "there is no run folder" in capfd.readouterr().err
    folder = made(tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "file" / "page.html")]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
    (folder / "samples.jsonl").write_text("[1\n")
    with pytest.raises(UserError, match=r"samples.jsonl, line 1: not a JSON object"):
        write_report([folder])
