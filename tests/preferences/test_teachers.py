"""Teachers: the oracle against closed forms and frequencies, functions, files, people."""

import itertools
import json
import math
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tether.errors import UserError
from tether.preferences.records import Answer, Item, Query, Segment, Text
from tether.preferences.store import Store
from tether.preferences.teachers import CallableTeacher, FileTeacher, OracleTeacher, StoreTeacher

Asked = tuple[Query, Sequence[Item]]


def segment(*reward: float) -> Segment:
    zeros = np.zeros((len(reward), 1))
    return Segment(env="E-v0", observation=zeros, action=zeros, reward=np.array(reward))


def asked(*items: Item, times: int = 1) -> list[Asked]:
    ids = tuple(item.id for item in items)
    return [(Query(ids, nonce=str(number)), items) for number in range(times)]


def preferences(teacher: OracleTeacher, queries: list[Asked]) -> list[float | None]:
    return [answer.preference for answer in teacher.answers(queries) if answer is not None]


def share(said: list[float | None], value: float | None) -> float:
    return sum(one == value for one in said) / len(said)


def within(observed: float, expected: float, times: int) -> bool:
    """Whether a frequency is within four standard errors."""
    return abs(observed - expected) <= 4 * math.sqrt(max(expected * (1 - expected), 1e-9) / times)


def test_without_noise_the_larger_sum_wins_and_equal_sums_tie() -> None:
    good, bad, same = segment(1, 2), segment(2.5, 0), segment(2, 1)
    teacher = OracleTeacher(0)
    assert preferences(teacher, asked(good, bad)) == [1.0]
    assert preferences(teacher, asked(bad, good)) == [0.0]
    assert preferences(teacher, asked(good, same)) == [0.5]


TIMES = 4000


@pytest.mark.parametrize(("beta", "mistake"), [(0.5, 0.0), (2.0, 0.0), (0.5, 0.2), (1e6, 0.1)])
def test_a_rational_teacher_is_bradley_terry_and_errs_once(beta: float, mistake: float) -> None:
    first, second = segment(1.0, 0.5), segment(0.2, 0.3)
    said = preferences(
        OracleTeacher(3, beta=beta, mistake=mistake), asked(first, second, times=TIMES)
    )
    right = 1 / (1 + math.exp(-beta * 1.0))
    expected = right * (1 - mistake) + (1 - right) * mistake
    assert set(said) <= {0.0, 1.0}
    assert within(share(said, 1.0), expected, TIMES)


def test_a_myopic_teacher_weighs_the_last_steps_most() -> None:
    early, late = segment(1.0, 0, 0), segment(0, 0, 0.9)
    assert preferences(OracleTeacher(), asked(early, late)) == [1.0]
    assert preferences(OracleTeacher(gamma=0.9), asked(early, late)) == [0.0]
    # 0.9^2 * 1 against 0.9: the difference decides how often.
    said = preferences(OracleTeacher(gamma=0.9, beta=5.0), asked(early, late, times=TIMES))
    expected = 1 / (1 + math.exp(-5.0 * (0.81 - 0.9)))
    assert within(share(said, 1.0), expected, TIMES)


def test_thresholds_are_the_share_of_what_the_policy_gets_not_its_square() -> None:
    # Two steps at 1 a step: the average return is 2, and a share of 0.1 is 0.2.
    close, equal, apart = segment(1, 1.05), segment(1, 1), segment(1, 1.21)
    teacher = OracleTeacher(equal=0.1, reward_per_step=1.0)
    assert preferences(teacher, asked(close, equal)) == [0.5]
    assert preferences(teacher, asked(apart, equal)) == [1.0]
    # With the share multiplied twice, the threshold would be 0.02 and 0.15 would be no tie.
    assert preferences(teacher, asked(segment(1, 1.15), equal)) == [0.5]
    teacher = OracleTeacher(skip=0.1, reward_per_step=1.0)
    poor, poorer, fair = segment(0.1, 0.09), segment(0, 0.05), segment(0.1, 0.11)
    assert preferences(teacher, asked(poor, poorer)) == [None]
    assert preferences(teacher, asked(poor, fair)) == [0.0]
    teacher.reward_per_step = 2.0
    assert preferences(teacher, asked(poor, fair)) == [None]
    # A share of a negative return is no threshold: nearly everything would be below it.
    teacher.reward_per_step = -1.0
    assert preferences(teacher, asked(segment(-3, -2), segment(-1, -2))) == [0.0]


def test_thresholds_look_at_plain_sums_and_a_tie_is_never_a_mistake() -> None:
    early, late = segment(1.0, 0), segment(0, 1.0)
    teacher = OracleTeacher(gamma=0.5, mistake=1.0)
    assert preferences(teacher, asked(early, late)) == [0.5]
    assert preferences(teacher, asked(segment(1.5, 0), late)) == [1.0]


def test_answers_do_not_depend_on_the_order_of_asking() -> None:
    random = np.random.default_rng(0)
    queries = [
        query
        for _ in range(40)
        for query in asked(segment(*random.normal(size=3)), segment(*random.normal(size=3)))
    ]
    options = {"beta": 0.3, "mistake": 0.3}
    together = OracleTeacher(7, **options).answers(queries)
    teacher = OracleTeacher(7, **options)
    alone = [teacher.answers([query])[0] for query in reversed(queries)][::-1]

    def said(answers: list[Answer | None]) -> list[tuple[float | None, str]]:
        return [(a.preference, a.uuid) for a in answers if a is not None]

    assert said(together) == said(alone)
    assert said(together) != said(OracleTeacher(8, **options).answers(queries))


def test_three_items_are_ranked_by_plackett_luce() -> None:
    items = [segment(0.0), segment(1.0), segment(0.5)]
    assert OracleTeacher().answers(asked(*items))[0].ranking == (1, 2, 0)  # type: ignore[union-attr]
    assert OracleTeacher(mistake=1.0).answers(asked(*items))[0].ranking == (0, 2, 1)  # type: ignore[union-attr]
    answers = OracleTeacher(1, beta=1.5).answers(asked(*items, times=TIMES))
    said = [answer.ranking for answer in answers if answer is not None]
    weights = np.exp(1.5 * np.array([0.0, 1.0, 0.5]))
    for ranking in itertools.permutations(range(3)):
        left = list(weights[list(ranking)])
        chance = math.prod(left[i] / sum(left[i:]) for i in range(3))
        assert within(sum(one == ranking for one in said) / TIMES, chance, TIMES)


def test_an_oracle_of_texts_needs_a_reward() -> None:
    long, short = Text("p", "a long answer"), Text("p", "short")
    with pytest.raises(UserError, match=r"is a text, which carries no reward.*reward="):
        OracleTeacher().answers(asked(long, short))

    def length(items: Sequence[Item]) -> list[int]:
        return [len(item.completion) for item in items if isinstance(item, Text)]

    assert preferences(OracleTeacher(reward=length), asked(long, short)) == [1.0]
    with pytest.raises(UserError, match="gave 1 values for 2 items"):
        OracleTeacher(reward=lambda _: [1.0]).answers(asked(long, short))
    with pytest.raises(UserError, match=f"the reward of item {short.id} is"):
        OracleTeacher(reward=lambda _: [1.0, math.nan]).answers(asked(long, short))
    blind = Segment(env="E-v0", observation=[[0.0]], action=[[0.0]])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="does not have its true reward"):
        OracleTeacher().answers(asked(blind, segment(1.0)))


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.0}, {"beta": math.nan}, {"gamma": 0.0}, {"gamma": 1.1}, {"mistake": -0.1}]
    + [{"skip": -1.0}, {"equal": math.nan}],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(UserError, match=f"{name} is {value}; expected"):
        OracleTeacher(**options)  # type: ignore[arg-type]


A, B, C = (Text("p", word) for word in "abc")


@pytest.mark.parametrize(
    ("said", "kept"), [(0.3, 0.3), (True, 1.0), (None, None), (np.float32(0.5), 0.5), (1, 1.0)]
)
def test_a_function_answers(said: Any, kept: float | None) -> None:
    shown: list[tuple[Item, ...]] = []

    def function(*items: Item) -> Any:
        shown.append(items)
        return said

    (answer,) = CallableTeacher(function, name="mine").answers(asked(A, B))
    assert answer is not None and answer.annotator == "mine" and answer.preference == kept
    assert shown == [(A, B)]
    assert CallableTeacher(lambda *_: [2, 0, 1]).answers(asked(A, B, C))[0].ranking == (2, 0, 1)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda *_: math.nan, "preference is nan"),
        (lambda *_: 1.5, "preference is 1.5; expected the probability"),
        (lambda *_: "left", "preference is 'left'"),
        (lambda *_: [0.5, 0.5], r"preference is \[0.5, 0.5\]"),
        (lambda *_: 1 / 0, "raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_function_s_mistake_names_the_query(function: Callable[..., Any], says: str) -> None:
    ((query, items),) = asked(A, B)
    with pytest.raises(UserError, match=f"query {query.id}: teacher function.*{says}"):
        CallableTeacher(function).answers([(query, items)])


def test_a_ranking_of_another_length_is_refused() -> None:
    queries = asked(A, B, C)
    for said in ((0, 1), (0, 1, 2, 3), (0, 1, 1), 0.5):
        with pytest.raises(UserError, match=f"query {queries[0][0].id}: teacher function"):
            CallableTeacher(lambda *_, said=said: said).answers(queries)


def test_a_file_of_answers(tmp_path: Path) -> None:
    (one, two, three) = asked(A, B, times=3)
    path = tmp_path / "answers.jsonl"
    rows: list[dict[str, Any]] = [
        {"query": one[0].id, "preference": 1.0},
        {"query": two[0].id, "preference": 0.0, "annotator": "ada"},
        {"query": two[0].id, "preference": 0.5, "annotator": "ada"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    first, second, missing = FileTeacher(path).answers([one, two, three])
    assert first is not None and (first.preference, first.annotator) == (1.0, "answers")
    assert second is not None and (second.preference, second.annotator) == (0.5, "ada")
    assert missing is None
    again = FileTeacher(path).answers([one])[0]
    assert again is not None and again.uuid == first.uuid


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "line 1: expected a JSON object"),
        ('{"query": "x"}', "expected an answer with query and preference or ranking"),
        ('{"query": "x", "preference": 1}', "line 1: query holds 'x'"),
        ('{"query": "' + "0" * 32 + '", "preference": 2}', "line 1: preference is 2"),
        ("", "holds no answers"),
    ],
)
def test_a_bad_file_of_answers_is_refused(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match=says):
        FileTeacher(path)
    with pytest.raises(UserError, match="cannot read"):
        FileTeacher(tmp_path / "none.jsonl")


def test_people_answer_through_the_store(tmp_path: Path) -> None:
    queries = asked(A, B, times=2)
    with Store.open(tmp_path / "a.sqlite") as store:
        teacher = StoreTeacher(store)
        assert teacher.answers(queries) == [None, None]
        assert teacher.answers(queries) == [None, None] and store.counts().queries == 2
        (lease,) = store.claim("ada")
        store.answer(Answer(lease.query.id, 0.5, "ada"), lease.id)
        first, second = teacher.answers(queries)
        assert first is not None and first.annotator == "ada" and second is None
        store.undo("ada", str(uuid.uuid4()))
        assert teacher.answers(queries) == [None, None]


def test_an_oracle_asked_again_after_a_crash_answers_once(tmp_path: Path) -> None:
    queries = asked(segment(1.0), segment(2.0), times=3)
    with Store.open(tmp_path / "a.sqlite") as store:
        StoreTeacher(store).answers(queries)
        for _ in range(2):
            answers = OracleTeacher(0, beta=1.0).answers(queries)
            receipts = store.answer_all(answer for answer in answers if answer is not None)
        assert all(receipt.duplicate for receipt in receipts) and len(store.answers()) == 3
