"""Agreement: against published values, scikit-learn, and cases that can be counted by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from tether.errors import UserError
from tether.preferences.agreement import agreement, cohen_kappa, krippendorff_alpha
from tether.preferences.records import Answer


def test_kappa_of_a_published_table() -> None:
    # 50 proposals, two readers: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no; kappa = 0.4.
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_kappa_is_scikit_learn_s() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        first = random.integers(0, 3, size=30).tolist()
        second = [a if random.random() < 0.6 else int(random.integers(0, 3)) for a in first]
        assert cohen_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))
    assert math.isnan(cohen_kappa([1, 1], [1, 1]))
    with pytest.raises(UserError, match="1 and 2 labels"):
        cohen_kappa([1], [1, 2])


def test_alpha_of_krippendorff_s_example() -> None:
    # "Computing Krippendorff's Alpha-Reliability" (2011), section D: nominal alpha = 0.743.
    rows = (
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    )
    table = [[None if word == "." else int(word) for word in row.split()] for row in rows]
    assert krippendorff_alpha(table) == pytest.approx(0.743, abs=5e-4)
    assert math.isnan(krippendorff_alpha([[1, 1], [1, None]]))


def answers(annotator: str, *said: float | None) -> list[Answer]:
    return [Answer(f"{number:032x}", value, annotator) for number, value in enumerate(said)]


def test_annotators_are_compared_by_what_both_have_judged() -> None:
    found = agreement(
        answers("ada", 1.0, 0.0, 0.5, 0.9, None)
        + answers("bob", 0.8, 0.0, 1.0, None, 1.0)
        + answers("cleo", None, None, None, None, 1.0)
    )
    by_names = {(pair.first, pair.second): pair for pair in found.pairs}
    assert by_names.keys() == {("ada", "bob"), ("bob", "cleo")}
    one = by_names["ada", "bob"]
    assert (one.judgements, one.same) == (3, pytest.approx(2 / 3))
    # Shares: ada 1/3 each; bob 2/3 first, 1/3 second; chance 1/3.
    assert one.kappa == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))
    assert found.judgements == 4 and found.same == pytest.approx(3 / 4)
    assert -1 <= found.alpha <= 1


def test_rankings_are_compared_by_their_pairs() -> None:
    query = "0" * 32
    found = agreement(
        [
            Answer(query, None, "ada", ranking=(0, 1, 2)),
            Answer(query, None, "bob", ranking=(0, 2, 1)),
        ]
    )
    assert (found.judgements, found.same) == (3, pytest.approx(2 / 3))


def test_one_annotator_agrees_with_nobody() -> None:
    found = agreement(answers("ada", 1.0, 0.0))
    assert found.pairs == () and found.judgements == 0
    assert math.isnan(found.same) and math.isnan(found.alpha)
