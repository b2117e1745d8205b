"""Reward models and DPO from a store of comparisons: the same as from the pairs it exports."""

import json
from pathlib import Path

import pytest

import tether
from tether.errors import UserError
from tether.language.data.formats import read_data
from tether.preferences.export import export
from tether.preferences.places import lasting_place
from tether.preferences.records import Answer, Query, Text
from tether.preferences.store import Store

SMALL = {"model": "tiny", "total_steps": 8, "batch_size": 4, "sinks": (), "progress": False}


@pytest.fixture
def store_file(tmp_path: Path) -> Path:
    path = tmp_path / "labels.sqlite"
    with Store.open(path) as store:
        for number in range(8):
            texts = [Text(f"The film {number}", word) for word in (" is good.", " is bad.")]
            store.add_items(texts)
            query = Query(tuple(text.id for text in texts))
            store.add_queries([query])
            store.answer(Answer(query.id, (1.0, 0.0, 0.5, 0.8)[number % 4], "ada"))
    return path


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_a_store_is_data(method: str, store_file: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    with Store.open(store_file) as store:
        export(store, "pairs", pairs)
    runs = [
        tether.train(method, data=str(data), out=tmp_path / data.stem, **SMALL)
        for data in (store_file, pairs)
    ]
    from_store, from_pairs = (measured(one.run) for one in runs)
    assert from_store == from_pairs and len(from_store) >= 2


def measured(run: Path) -> list[dict[str, float]]:
    """What a run has measured, but for times."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_a_store_without_comparisons_of_texts_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    Store.open(path).close()
    with pytest.raises(UserError, match=f"data {path} is empty"):
        read_data(path, ["comparison"])
    with pytest.raises(UserError, match="there is no data file"):
        read_data(tmp_path / "none.sqlite", ["comparison"])


def test_a_run_s_folder_stands_for_its_store(store_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match="is a folder"):
        read_data(run, ["comparison"])
    store_file.rename(run / "preferences.sqlite")
    assert len(list(read_data(run, ["comparison"]))) == 8
    assert lasting_place(run) == str(run / "preferences.sqlite")


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("postgresql://ada:s3:cr@et@h:1/d?x=1", "postgresql://ada@h:1/d?x=1"),
        ("postgresql://h:5432/d?application_name=a", "postgresql://h:5432/d?application_name=a"),
        ("postgresql:///d?host=/s&password=secret", "postgresql:///d?host=/s"),
    ],
)
def test_a_run_keeps_no_password(url: str, kept: str) -> None:
    assert lasting_place(url) == kept
