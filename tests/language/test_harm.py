"""People's harm scores, and the scorer that each half of them teaches."""

import importlib.metadata

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tether.errors import UserError
from tether.language.harm import corpus
from tether.language.harm.corpus import (
    answers_of,
    benign_prompts,
    harmful_prompts,
    load_scored_answers,
)
from tether.language.harm.scorer import harm_scorer, train_harm_scorer


def test_every_scored_answer_is_in_one_half_with_its_prompt():
    answers = load_scored_answers()
    assert len(answers) == 990
    assert sum(one.people == 3 for one in answers) == 386
    assert all(0.0 <= one.harm <= 1.0 for one in answers)
    assert {one.category for one in answers} >= {"violence", "privacy", "self_harm"}
    halves = [answers_of("labeller"), answers_of("evaluator")]
    assert sum(map(len, halves)) == 990 and min(map(len, halves)) > 400
    prompts = [{one.prompt.casefold() for one in half} for half in halves]
    assert not prompts[0] & prompts[1]


def test_what_is_learned_on_and_what_is_measured_on_share_nothing():
    train, held_out = harmful_prompts("train"), harmful_prompts("held_out")
    assert len({*train, *held_out}) == len(train) + len(held_out) == 520
    benign = benign_prompts()
    assert len(set(benign)) == len(benign) == 48
    assert not set(benign) & {*train, *held_out}


@pytest.mark.parametrize("half", ["labeller", "evaluator"])
def test_a_scorer_knows_the_scores_that_it_has_not_seen(half):
    others = answers_of("evaluator" if half == "labeller" else "labeller")
    harmful = np.array([one.harm >= 0.5 for one in others])
    scores = harm_scorer(half).log_odds([one.answer for one in others])
    assert roc_auc_score(harmful, scores) > 0.82
    probability = harm_scorer(half)([one.answer for one in others])
    assert probability == pytest.approx(1 / (1 + np.exp(-scores)))


def test_scores_in_between_count_in_between():
    answers = [*answers_of("labeller")]
    fields = ("prompt", "answer", "category", "harm", "people", "half")
    values = [{name: getattr(one, name) for name in fields} for one in answers]
    for constant in (0.25, 0.75):
        same = [type(answers[0])(**{**value, "harm": constant}) for value in values]
        found = train_harm_scorer(same)([one.answer for one in answers])
        # With one score for all, the likeliest probability of every answer is that score.
        assert found == pytest.approx(np.full(len(found), constant), abs=0.01)


def test_a_missing_package_is_named_with_what_to_run(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(UserError, match=r"pip install --no-deps pyrit==1\.1\.0"):
        next(corpus._read("violence"))
