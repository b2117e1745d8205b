"""Labelling by a judge: rows, stores, audits, and interruptions that cost nothing twice."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from judge_server import ChatServer

from tether.errors import Interrupted, JudgeError, UserError
from tether.language.data.formats import read_data
from tether.language.judge import labelling
from tether.language.judge.audit import (
    Observations,
    agreement,
    audit,
    calibration_error,
    lines,
    wilson,
)
from tether.language.judge.backends import Cost
from tether.language.judge.judgements import with_cache
from tether.language.judge.judges import Asked, Judge, Judgement
from tether.language.judge.labelling import Pair, label
from tether.language.judge.questions import open_attribute
from tether.language.judge.teacher import JudgeTeacher, answer_of
from tether.language.methods import METHODS
from tether.language.models.language_model import load_model
from tether.preferences.items import Text
from tether.preferences.records import Answer, Query
from tether.preferences.store import Store

SECRET = "how to pick a lock"
PAIRS = [
    Pair(f"row {i}", SECRET, f"{'good ' * (i % 3 + 1)}{i}", "bad", 1.0 if i % 2 else None)
    for i in range(10)
]
LIKED = """
name = "liked"
[pointwise]
question = "{completion}\\n"
cue = "Is it"
yes = ["y"]
no = ["n"]
"""
SMALL = ("--model", "tiny", "--shots", "0", "--quiet")


class Counting:
    """A backend that prefers the word "good", and counts what it is asked."""

    name, digest, only_chat = "counting", "1", False

    def __init__(self, first: float = 0.0) -> None:
        self.cost = Cost()
        self.asked: list[str] = []
        self.first = first

    def share(self, readings):
        pass

    def answer(self, readings, sides):
        self.asked += [reading.text for reading in readings]
        self.cost.requests += len(readings)
        found = []
        for reading in readings:
            likes = 0.1 * reading.text.count("good") + self.first
            found.append(np.log([0.9 / (1 + np.exp(-likes)), 0.9 / (1 + np.exp(likes))]))
        return found

    def reason(self, readings, **_):
        raise AssertionError("no reasons are asked for")


def judge(mode="pointwise", **options) -> Judge:
    return Judge(open_attribute("harmless"), mode, Counting(**options))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TETHER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "judgements"


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "pairs.jsonl"
    content = [
        {"prompt": SECRET, "chosen": f"no, {i}", "rejected": "yes", "source": i} for i in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_nothing_is_asked_twice_and_a_torn_line_is_asked_again(cache):
    one = judge()
    first = label(one, PAIRS)
    assert first.paid == len(one.backend.asked) == 11 and first.known == 20 - 11
    again = judge()
    second = label(again, PAIRS)
    assert second.labels == first.labels and again.backend.asked == []
    (file,) = cache.iterdir()
    text = file.read_bytes()
    file.write_bytes(text[:-9])
    third = judge()
    assert label(third, PAIRS).labels == first.labels and len(third.backend.asked) == 1
    assert label(judge(), PAIRS).known == 20
    assert len(file.read_bytes().splitlines()) == 12


def test_another_judge_does_not_take_over_what_this_one_said(cache):
    label(judge(), PAIRS)
    other = Judge(open_attribute("helpful"), "pointwise", Counting())
    label(other, PAIRS)
    assert len(other.backend.asked) == 11 and len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_anywhere_it_goes_on_and_pays_once(monkeypatch, signal_number):
    monkeypatch.setattr(labelling, "CHUNK", 2)
    whole = label(judge(), PAIRS[:0] + PAIRS).labels
    monkeypatch.setenv("TETHER_CACHE", os.environ["TETHER_CACHE"] + "2")
    one = judge()

    def stop(done, _):
        if done == 4:
            os.kill(os.getpid(), signal_number)

    with pytest.raises(Interrupted):
        label(one, PAIRS, on_chunk=stop)
    other = judge()
    assert label(other, PAIRS).labels == whole
    assert set(one.backend.asked).isdisjoint(other.backend.asked)
    assert len(one.backend.asked) + len(other.backend.asked) == 11


def test_a_failure_stops_by_name_or_is_skipped_by_name():
    one = judge()
    answer = one.backend.answer

    def failing(readings, sides):
        found = answer(readings, sides)
        return [
            JudgeError("no words") if "good 3" in reading.text else value
            for reading, value in zip(readings, found, strict=True)
        ]

    one.backend.answer = failing
    with pytest.raises(JudgeError, match=r"^row 3: no words \(--skip-bad"):
        label(one, PAIRS)
    done = label(one, PAIRS, skip_failed=True)
    assert [i for i, one in enumerate(done.labels) if one is None] == [3]
    found = audit(one, done.seen)
    assert found["failed"] == [{"place": "row 3", "reason": "no words"}] and found["pairs"] == 9
    assert SECRET not in json.dumps(found) + "".join(lines(found))


def test_the_place_of_a_text_is_audited():
    fair, unfair = judge("pairwise"), judge("pairwise", first=5.0)
    done = label(unfair, PAIRS)
    found = audit(unfair, done.seen)
    assert found["first_place"] == found["same_position"] == 1.0
    assert any("same_position is 1.00" in line for line in found["warnings"])
    assert audit(judge(), label(judge(), PAIRS).seen)["same_position"] is None
    seen = Observations()
    orders = [(1.0, -1.0), (1.0, 1.0), (-1.0, -1.0), (-1.0, 1.0), (2.0, -2.0)]
    for one, other in orders:
        seen.add(0.5, (Judgement(one, 0.4), Judgement(other, 0.2)), ("a", "b"), None)
    found = audit(fair, seen)
    assert found["first_place"] == 0.5 and found["same_position"] == pytest.approx(0.4)
    assert found["mass"] == pytest.approx(0.3) and "mass is 0.30, below" in found["warnings"][0]


def test_agreement_and_calibration_by_hand():
    labels, human = [0.9, 0.8, 0.3, 0.5, 0.7], [1.0, 0.0, 0.0, 1.0, np.nan]
    found = agreement(labels, human)
    # Right, wrong, right, and half for the tie.
    assert found["agreement"] == pytest.approx(2.5 / 4) and found["human_labels"] == 4
    # From both sides: 0.95 holds of 95 % by construction.
    right = np.arange(100) < 95
    assert calibration_error(np.full(100, 0.95), right) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(np.full(100, 0.75), right) == pytest.approx(0.2)
    assert calibration_error([0.25, 0.75], [False, True]) == pytest.approx(0.25)
    assert agreement([0.4], [np.nan])["agreement"] is None
    assert wilson(8, 10) == pytest.approx([0.4902, 0.9433], abs=1e-4)


def test_the_longer_text_is_audited_beside_people():
    seen = Observations()
    one = (Judgement(0.0, 1.0), Judgement(0.0, 1.0))
    for p, texts, human in (
        (0.9, ("a b", "a"), 0.0),
        (0.9, ("a", "a b"), 1.0),
        (0.9, ("a b c", "b"), None),
        (0.9, ("a", "b"), 1.0),
    ):
        seen.add(p, one, texts, human)
    found = audit(judge(), seen)
    assert found["prefers_longer"] == pytest.approx(2 / 3) and found["people_prefer_longer"] == 0.0


def test_rows_keep_their_columns_and_gain_a_label(tether_, rows, tmp_path):
    done = tether_("judge", *SMALL, "--data", rows, "--attribute", "harmless", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out.splitlines()[-1])
    labelled = read(tmp_path / "judged.jsonl")
    assert [row.pop("label") for row in labelled] == pytest.approx(
        _compared([row["chosen"] for row in labelled]), abs=1e-4
    )
    assert labelled == read(rows)
    assert json.loads((tmp_path / "judged.audit.json").read_text()) == found
    assert found["pairs"] == 4 and found["agreement"] is not None and found["judged_now"] == 5
    assert SECRET not in done.out + done.err


def _compared(chosen: list[str]) -> np.ndarray:
    from tether.language.judge.opening import open_judge

    one = open_judge("tiny", "harmless", shots=0)
    return one.compare([SECRET] * len(chosen), chosen, ["yes"] * len(chosen))


def test_labels_of_people_stay_and_unlabelled_pairs_are_taken(tether_, tmp_path):
    given = [
        {"prompt": "p", "completions": ["a", "b"]},
        {"prompt": "p", "completions": ["b", "a"], "label": 0.0},
    ]
    path = tmp_path / "unlabelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    done = tether_("judge", *SMALL, "--data", path, "--out", "x.jsonl", "--json")
    assert done.code == 0, done.err
    first, second = read(tmp_path / "x.jsonl")
    assert first["label"] == pytest.approx(1 - second["label"], abs=1e-6)
    assert second["human_label"] == 0.0 and "human_label" not in first
    assert json.loads(done.out.splitlines()[-1])["human_labels"] == 1
    read_again = read_data("x.jsonl", METHODS["reward"].formats)
    assert [sample.label for _, sample in read_again] == [first["label"], second["label"]]
    for method in ("reward", "dpo"):
        learned = tether_(
            method, "--model", "tiny", "--data", "x.jsonl", "--total-steps", "2", "--batch-size",
            "2", "--held-out", "0", "--quiet", "--out", method,
        )  # fmt: skip
        assert learned.code == 0, learned.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--data", "none.jsonl"), "there is no data file none.jsonl"),
        (("--attribute", "nice"), "which is no file and no attribute"),
        (("--mode", "sideways"), "mode"),
        (("--shots", "99"), "shots is 99"),
        (("--limit", "0"), "limit is 0"),
        (("--out", "x.csv"), "expected a name that ends in .jsonl"),
        (("--out", "pairs.jsonl"), "there is a file pairs.jsonl already"),
        (("--model", "no/such/model"), "there is no folder"),
        (("--reasons", "3"), "which cot False does not use"),
        (("--key-variable", "KEY"), "is no server's URL"),
        (("--attribute", "broken.toml"), "unknown key 'pointwise.x'"),
        (("--attribute", "fields.toml"), "has the field {answer}; expected {prompt}"),
    ],
)
def test_mistakes_have_one_line_and_leave_nothing(tether_, rows, tmp_path, given, said):
    liked = LIKED.replace("[pointwise]", "[pointwise]\nx = 1")
    (tmp_path / "broken.toml").write_text(liked)
    (tmp_path / "fields.toml").write_text(LIKED.replace("{completion}", "{answer}"))
    before = sorted(tmp_path.iterdir())
    usual = {"--data": str(rows), "--model": "tiny", "--shots": "0"}
    usual |= dict(zip(given[::2], given[1::2], strict=True))
    done = tether_("judge", "--quiet", *(word for pair in usual.items() for word in pair))
    assert done.code == 2 and said in done.err, done.err
    assert done.err.count("\n") == 1 and sorted(tmp_path.iterdir()) == before


def test_a_pair_too_long_is_named_or_left_out(tether_, tmp_path):
    path = tmp_path / "long.jsonl"
    pairs = [("fine", "bad"), ("word " * 300, "bad")]
    path.write_text("".join(json.dumps({"chosen": a, "rejected": b}) + "\n" for a, b in pairs))
    done = tether_("judge", *SMALL, "--data", path)
    assert done.code == 2 and "long.jsonl, line 2: the question takes" in done.err
    assert "word word" not in done.err and not (tmp_path / "judged.jsonl").exists()
    done = tether_("judge", *SMALL, "--data", path, "--skip-bad", "--json")
    assert done.code == 0 and len(read(tmp_path / "judged.jsonl")) == 1
    found = json.loads(done.out.splitlines()[-1])
    assert found["failed"][0]["place"].endswith("long.jsonl, line 2")


def test_a_server_that_stops_answering_costs_only_what_is_left(tether_, rows, tmp_path):
    server = ChatServer(load_model("tiny"))
    (tmp_path / "liked.toml").write_text(LIKED)
    server.lists = 4096
    with server.running() as url:
        given = ("judge", "--model", url, "--attribute", "liked.toml", "--data", rows, "--quiet")
        given += ("--concurrency", "1", "--retries", "0")
        done = tether_(*given)
        assert done.code == 0, done.err
        paid = len(server.requests)
        (tmp_path / "judged.jsonl").unlink()
        (tmp_path / "judged.audit.json").unlink()
        # Nothing is known of another question; the third answer does not come.
        text = (tmp_path / "liked.toml").read_text()
        (tmp_path / "liked.toml").write_text(text.replace("Is it", "Was it"))
        server.faults = [None, None, 503]
        done = tether_(*given)
        assert done.code == 2 and "status 503" in done.err and "goes on" in done.err
        assert not (tmp_path / "judged.jsonl").exists()
        done = tether_(*given)
        assert done.code == 0, done.err
    assert paid == 5 and len(server.requests) == 5 + 3 + 3


def store_of(tmp_path, count=3) -> tuple[Store, list[Query]]:
    store = Store.open(tmp_path / "labels.sqlite")
    queries = []
    for i in range(count):
        items = store.add_items([Text(SECRET, f"good {i}"), Text(SECRET, "bad")])
        queries.append(Query(tuple(items)))
    store.add_queries(queries)
    return store, queries


def test_labels_go_into_a_store_and_stay_one_for_each_query(tether_, tmp_path):
    store, queries = store_of(tmp_path)
    store.answer(Answer(queries[0].id, 1.0, "a person"))
    given = ("judge", *SMALL, "--data", "labels.sqlite", "--attribute", "harmless", "--json")
    done = tether_(*given)
    assert done.code == 0, done.err
    found = json.loads(done.out.splitlines()[-1])
    assert found["human_labels"] == 1 and found["pairs"] == 3
    mine = {q.id: a for q, a in store.standing() if a.annotator == found["judge"]}
    assert set(mine) == {query.id for query in queries}
    assert [mine[q.id].preference for q in queries] == pytest.approx(
        _compared_first(["good 0", "good 1", "good 2"]), abs=1e-4
    )
    assert store.notes()[f"audit {found['judge']}"]["pairs"] == 3
    again = tether_(*given)
    assert again.code == 0 and json.loads(again.out.splitlines()[-1])["pairs"] == 0
    assert len(store.answers()) == 4
    assert SECRET not in done.out + done.err


def _compared_first(firsts: list[str]) -> np.ndarray:
    from tether.language.judge.opening import open_judge

    one = open_judge("tiny", "harmless", shots=0)
    return one.compare([SECRET] * len(firsts), firsts, ["bad"] * len(firsts))


def test_two_judges_cannot_have_one_name(tether_, tmp_path):
    store, _ = store_of(tmp_path)
    given = ("judge", *SMALL, "--data", "labels.sqlite", "--name", "j")
    assert tether_(*given, "--attribute", "harmless").code == 0
    done = tether_(*given, "--attribute", "helpful")
    assert done.code == 2 and "answers of another judge with the name 'j'" in done.err
    assert len(store.answers()) == 3
    done = tether_(*given, "--attribute", "harmless", "--out", "x.jsonl")
    assert done.code == 2 and "leave it out" in done.err


def test_a_judge_is_a_teacher(tmp_path):
    store, queries = store_of(tmp_path)
    one = judge()
    teacher = JudgeTeacher(one)
    answers = teacher.answers([(query, store.items(query.items)) for query in queries])
    assert [answer.preference for answer in answers] == pytest.approx(
        one.compare([SECRET] * 3, ["good 0", "good 1", "good 2"], ["bad"] * 3)
    )
    assert answers[0].uuid == answer_of(one, queries[0], 0.0).uuid
    store.answer_all(answers)
    store.answer_all(answers)
    assert len(store.answers()) == 3
    three = Query((*queries[0].items, queries[1].items[0]))
    with pytest.raises(UserError, match="shows no two texts of one prompt"):
        teacher.answers([(three, store.items(three.items))])


def test_a_judge_of_the_cache_keeps_what_it_says(cache):
    one = judge()
    kept = with_cache(one)
    asked = [Asked("p", ("a",)), Asked("p", ("b",)), Asked("p", ("a",))]
    found = one.ask(asked)
    assert found[0] == found[2] and kept.paid == 2 and kept.known == 1
    kept.close()
    other = judge()
    reopened = with_cache(other)
    assert other.ask(asked) == found and reopened.paid == 0


def test_a_label_belongs_to_two_completions(tmp_path):
    path = tmp_path / "three.jsonl"
    path.write_text(json.dumps({"prompt": "p", "completions": ["a", "b", "c"], "label": 1.0}))
    with pytest.raises(UserError, match="field 'completions': 3 of them with one label"):
        list(read_data(path, ("labelled", "ranked")))
