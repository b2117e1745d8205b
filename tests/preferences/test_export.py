"""Export: everything and back, pairs that language methods read, references into Minari."""

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_stores import Clock, fill

from tether import cli
from tether.errors import RunError, UserError
from tether.language.data.formats import Comparison, read_data
from tether.preferences.export import export, import_jsonl
from tether.preferences.records import Answer, MinariReference, Query, Segment, Text
from tether.preferences.store import Store


def segment(number: int) -> Segment:
    return Segment(
        env="D/pointmaze-v0",
        observation=np.full((2, 3), number, np.float32),
        action=np.zeros((2, 1)),
        reward=[0.1, number],
        minari=MinariReference("D/pointmaze/umaze-v2", number, 10, 12),
    )


@pytest.fixture
def filled(place: str, clock: Clock) -> Any:
    """Every kind of row: segments, texts, rankings, superseded, undone, late, can't tell."""
    with Store.open(place, clock=clock) as store:
        (first, second), (three,) = fill(store, 2), fill(store, 1, items=3)
        turns = [{"role": "user", "content": "hi é"}]
        chat = [Text(turns, "yes\0"), Text(turns, "no")]
        segments = [segment(1), segment(2)]
        store.add_items([*chat, *segments])
        talk = Query(tuple(text.id for text in chat), context="c", source="uniform", step=3)
        clips = Query(tuple(one.id for one in segments), nonce="again")
        store.add_queries([talk, clips])
        (lease,) = store.claim("ada", seconds=1)
        clock.now += 2
        store.answer(Answer(first.id, 0.7, "ada", latency=0.1 + 0.2), lease.id)
        store.answer(Answer(second.id, 1.0, "ada"))
        store.answer(Answer(second.id, 0.2, "ada"))
        store.answer(Answer(second.id, 0.5, "bob"))
        store.answer(Answer(three.id, None, "ada", ranking=(2, 0, 1)))
        store.answer(Answer(talk.id, 0.0, "ada"))
        store.answer(Answer(clips.id, 1.0, "ada"))
        store.answer(Answer(first.id, None, "bob"))
        store.answer(Answer(talk.id, 1.0, "bob"))
        store.undo("bob", str(uuid.uuid4()))
        store.note("goal", 700)
        yield store


def contents(store: Store) -> tuple[Any, ...]:
    log = [(answer, late) for _, answer, late in store.log()]
    return (
        list(store.all_items()),
        list(store.queries()),
        log,
        list(store.standing()),
        store.annotators(),
        store.notes(),
    )


def test_everything_comes_back(filled: Store, tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    exported = export(filled, "jsonl", path)
    assert exported.rows == len(path.read_text().splitlines()) and exported.left_out == {}
    with Store.open(tmp_path / "copy.sqlite") as copy:
        assert import_jsonl(path, copy) == 10
        assert contents(copy) == contents(filled)
        before, after = filled.counts(), copy.counts()
        assert (after.queries, after.answered, after.skipped) == (
            before.queries,
            before.answered,
            before.skipped,
        )
        # What is there already does no harm.
        assert import_jsonl(path, copy) == 10
        assert contents(copy) == contents(filled)
    with pytest.raises(RunError, match="there is a file"):
        export(filled, "jsonl", path)


def test_pairs_are_what_language_methods_read(filled: Store, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    exported = export(filled, "pairs", path)
    assert exported.left_out == {"can't tell": 1, "not a comparison of texts": 1}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    short = {(r["chosen"], r["rejected"], round(r["label"], 9), r["annotator"]) for r in rows}
    assert short == {
        ("answer 0", "answer 1", 0.7, "ada"),
        ("answer 1", "answer 0", 0.8, "ada"),
        ("answer 0", "answer 1", 0.5, "bob"),
        ("answer 2", "answer 0", 1.0, "ada"),
        ("answer 2", "answer 1", 1.0, "ada"),
        ("answer 0", "answer 1", 1.0, "ada"),
        ("no", "yes\0", 1.0, "ada"),
    }
    assert rows[-1]["prompt"] == [{"role": "user", "content": "hi é"}]
    expected = [sample for _, sample in read_data(path, ["comparison"])]
    assert all(isinstance(sample, Comparison) for sample in expected) and len(expected) == 7
    assert [sample for _, sample in read_data(filled, ["comparison"])] == expected


def test_segments_are_written_as_references(filled: Store, tmp_path: Path) -> None:
    path = tmp_path / "minari.jsonl"
    exported = export(filled, "minari", path)
    assert exported.left_out == {"not segments of a Minari data set": 5, "can't tell": 1}
    (row,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert row == {
        "segments": [
            {"dataset_id": "D/pointmaze/umaze-v2", "episode": n, "start": 10, "stop": 12}
            for n in (1, 2)
        ],
        "preference": 1.0,
        "ranking": None,
        "annotator": "ada",
    }


def test_what_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Store.open(tmp_path / "a.sqlite") as store:
        store.add_items([segment(1), segment(2)])
        query = Query((segment(1).id, segment(2).id))
        store.add_queries([query])
        store.answer(Answer(query.id, 1.0, "ada"))
        with pytest.raises(UserError, match=r"nothing to write as pairs .*1 not a comparison"):
            export(store, "pairs", out)
        with pytest.raises(UserError, match="to is 'csv'; expected jsonl or pairs or minari"):
            export(store, "csv", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[1:], "line 1: expected the first line"),
        (lambda rows: [{**rows[0], "format": 9}], "format 9 is newer than the 1"),
        (lambda rows: [rows[0], {"kind": "video"}], "line 2: kind is 'video'"),
        (lambda rows: [rows[0], {"kind": "item"}], "line 2: not a line of an exported store"),
        (lambda rows: [rows[0], {**rows[1], "id": "f" * 32}], "line 2: the item's id is"),
        (lambda rows: [rows[0], {"kind": "answer", "late": False, "query": 1}], "line 2: not a li"),
        (lambda rows: [], "is empty"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    path = tmp_path / "all.jsonl"
    with Store.open(tmp_path / "a.sqlite") as store:
        fill(store, 1)
        export(store, "jsonl", path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    with Store.open(tmp_path / "b.sqlite") as store, pytest.raises(UserError, match=says):
        import_jsonl(path, store)


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    with Store.open(run / "preferences.sqlite") as store:
        for query, said in zip(fill(store, 4), (1.0, 0.0, 0.5, None), strict=True):
            store.answer(Answer(query.id, said, "ada", latency=2.0))
            store.answer(Answer(query.id, 1.0 if said == 0.5 else said, "bob"))
    assert cli.main(["preferences", "run"]) == 0
    shown = capsys.readouterr().out
    assert "4 queries: 3 answered, 1 skipped, 0 being looked at, 0 open" in shown
    assert "3 judgements by several annotators: 67% the same, Krippendorff's alpha" in shown
    assert "ada and bob: 67% of 3, Cohen's kappa 0.50" in shown
    assert cli.main(["preferences", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["answered"] == 3
    assert found["agreement"]["pairs"][0]["kappa"] == pytest.approx(0.5)
    assert [one["seconds"] for one in found["annotators"]] == [2.0, None]
    export_all = ["preferences", "export", "run", "--to", "jsonl", "--out", "all.jsonl"]
    assert cli.main(export_all) == 0 and "written: all.jsonl" in capsys.readouterr().err
    assert cli.main(["preferences", "import", "all.jsonl", "copy.sqlite"]) == 0
    assert cli.main(["preferences", "copy.sqlite", "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again == found
    pairs = ["preferences", "export", "run", "--to", "pairs", "--out", "pairs.jsonl", "--json"]
    assert cli.main(pairs) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["rows"] == 6 and "left out: 2 (can't tell)" in said.err
    assert cli.main(["preferences", "none.sqlite"]) == 2
    assert capsys.readouterr().err == "tether: there is no store none.sqlite\n"
    assert cli.main(export_all) == 2
