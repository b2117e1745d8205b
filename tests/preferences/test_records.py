"""Records: the same content has the same id, and what is wrong is refused in one line."""

import dataclasses
import subprocess
import sys
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.errors import UserError
from tether.preferences.records import (
    Answer,
    MinariReference,
    Query,
    Segment,
    Text,
    check_fits,
    standing,
)

A, B, C = (Text("p", word) for word in "abc")


def segment(**changes: object) -> Segment:
    values = {
        "env": "Hopper-v5",
        "observation": np.arange(6.0).reshape(3, 2),
        "action": np.ones((3, 1), np.float32),
        "reward": [1, 2, 3.5],
    }
    return Segment(**values | changes)  # type: ignore[arg-type]


def test_the_same_content_has_the_same_id() -> None:
    assert segment() == segment() and segment().id == segment().id
    assert len(segment().id) == 32 and len({segment(), segment()}) == 1
    assert Text("a", "b").id == Text("a", "b").id != Text("b", "a").id
    turns = [{"role": "user", "content": "a"}]
    assert Text(turns, "b").id != Text("a", "b").id


@pytest.mark.parametrize(
    "change",
    [
        {"env": "Hopper-v4"},
        {"observation": np.arange(1.0, 7.0).reshape(3, 2)},
        {"observation": np.arange(6).reshape(3, 2)},
        {"observation": np.arange(6.0).reshape(3, 1, 2)},
        {"action": np.ones((3, 1))},
        {"reward": [1, 2, 3.6]},
        {"reward": None},
        {"qpos": np.zeros((3, 4))},
        {"qvel": np.zeros((3, 4))},
        {"dt": 0.008},
        {"origin": "run"},
        {"step": 1},
        {"terminated": True},
        {"env_kwargs": {"gravity": 1}},
        {"minari": MinariReference("a/b-v0", 1, 2, 5)},
    ],
    ids=str,
)
def test_every_field_of_a_segment_is_its_content(change: dict[str, object]) -> None:
    assert segment(**change).id != segment().id


def test_ids_are_the_same_in_every_process() -> None:
    script = "from tether.preferences.records import *; print(Query((Text('p','a').id, '0'*32)).id)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == Query((A.id, "0" * 32)).id


def test_arrays_of_a_segment_are_its_own() -> None:
    mine = np.zeros((3, 2))
    made = segment(observation=mine)
    mine += 1
    assert not made.observation.any()
    with pytest.raises(ValueError, match="read-only"):
        made.action[:] = 0
    assert made.reward is not None and made.reward.dtype == np.float64
    assert made.true_return == 6.5 and len(made) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"action": np.ones((2, 1))}, "action has 2 steps, but observation has 3"),
        ({"observation": np.zeros((0, 2)), "action": np.zeros((0, 1)), "reward": None}, "no steps"),
        ({"observation": np.full((3, 2), np.nan)}, "observation holds a NaN or an infinity"),
        ({"reward": [1, 2, np.inf]}, "reward holds a NaN or an infinity"),
        ({"reward": np.zeros((3, 1))}, r"reward has the shape \(3, 1\)"),
        ({"qpos": np.zeros(3)}, r"qpos has the shape \(3,\)"),
        ({"observation": np.array(["a"] * 3)}, "observation holds <U1"),
        ({"observation": 1.0}, "observation is 1.0; expected an array"),
        ({"dt": 0.0}, "dt is 0.0; expected seconds above 0"),
        ({"step": -1}, "step is -1"),
        ({"env": ""}, "env is empty"),
        ({"env_kwargs": {"f": print}}, "env_kwargs is"),
        ({"minari": MinariReference("a/b-v0", 0, 0, 2)}, "names 2 steps, but the segment has 3"),
    ],
)
def test_bad_segments_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        segment(**change)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Text("p", ""), "completion is empty"),
        (lambda: Text("p", "\ud800"), "half of a surrogate pair"),
        (lambda: Text([{"role": "user"}], "a"), "prompt holds"),
        (lambda: Text(3, "a"), "prompt is 3"),  # type: ignore[arg-type]
        (lambda: Query((A.id,)), "1 items; expected at least 2"),
        (lambda: Query((A.id, A.id)), "the same item twice"),
        (lambda: Query((A.id, "x")), "items holds 'x'; expected an id"),
        (lambda: Query(A.id), "expected ids of at least two items"),  # type: ignore[arg-type]
        (lambda: MinariReference("a", 0, 3, 3), "stop is 3; expected more than start"),
    ],
)
def test_bad_texts_and_queries_are_refused(make: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"preference": float("nan")}, "preference is nan"),
        ({"preference": 1.01}, "preference is 1.01; expected the probability"),
        ({"preference": "left"}, "preference is 'left'"),
        ({"preference": None, "ranking": (0, 2)}, r"ranking is \(0, 2\); expected each position"),
        ({"preference": None, "ranking": (0, 0, 1)}, "expected each position"),
        ({"ranking": (1, 0, 2)}, "a preference and a ranking"),
        ({"annotator": " "}, "annotator is empty"),
        ({"annotator": "a" * 201}, "201 characters; expected at most 200"),
        ({"annotator": "a\0"}, "without control characters"),
        ({"uuid": "1"}, "uuid is '1'; expected a UUID"),
        ({"time": float("inf")}, "time is inf"),
        ({"latency": -1.0}, "latency is -1.0"),
        ({"retracted": True}, "a retracted answer says nothing"),
        ({"query": "../../etc"}, "query holds '../../etc'"),
    ],
)
def test_bad_answers_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        Answer(**{"query": "0" * 32, "preference": 1.0, "annotator": "me"} | change)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_an_answer_must_be_of_its_query_s_kind() -> None:
    pair, three = Query((A.id, B.id)), Query((A.id, B.id, C.id))
    check_fits(Answer(pair.id, 0.5, "me"), pair)
    check_fits(Answer(three.id, None, "me", ranking=(2, 0, 1)), three)
    check_fits(Answer(three.id, None, "me"), three)
    for query, preference, ranking in (
        (three, 0.5, None),
        (pair, None, (0, 1)),
        (three, None, (0, 1)),
    ):
        with pytest.raises(UserError, match=f"query {query.id} has"):
            check_fits(Answer(query.id, preference, "me", ranking=ranking), query)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from([0.0, 1.0, None])),
        max_size=12,
    )
)
def test_what_stands_is_the_newest_of_each_annotator(log: list[tuple[str, str, object]]) -> None:
    answers = [
        Answer(name * 32, said, who, retracted=said is None)  # type: ignore[arg-type]
        for name, who, said in log
    ]
    expected = {}
    for (name, who, said), answer in zip(log, answers, strict=True):
        expected[name * 32, who] = None if said is None else answer
    assert standing(answers) == {key: a for key, a in expected.items() if a is not None}


def test_records_and_teachers_need_neither_jax_nor_torch_nor_sqlalchemy() -> None:
    script = """
        import sys
        import tether.preferences.teachers, tether.preferences.records, tether.preferences.export
        import tether.preferences.agreement
        heavy = {"jax", "torch", "sqlalchemy", "gymnasium", "datasets"} & set(sys.modules)
        assert not heavy, heavy
    """.replace("\n        ", "\n")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_uuid_has_one_spelling() -> None:
    mine = uuid.uuid4()
    answer = Answer("0" * 32, 1, "me", uuid=mine.hex.upper())
    assert answer.uuid == str(mine) and answer.preference == 1.0
    assert dataclasses.replace(answer) == answer
