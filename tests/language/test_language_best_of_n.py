"""Best of n: the winner wins, the divergence is bounded, the estimate is the average it claims."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from preference_toys import LIKED, model
from random_models import EOS

from tether.errors import UserError
from tether.language.methods.best_of_n import (
    best_of_n,
    best_of_n_kl,
    expected_best_of_n,
    observed_best_of_n_kl,
)
from tether.language.models.reward_model import RewardModel
from tether.language.models.scoring import score_texts

PROMPTS = [[3, 4], [5], [6, 7, 8]]


def count_liked(completions):
    return [sum(token == LIKED for token in item.completion_ids) for item in completions]


def test_the_winner_is_the_candidate_with_the_highest_score():
    found = best_of_n(model(), PROMPTS, count_liked, 20, max_new_tokens=8, seed=1)
    assert len(found.completions) == 3 and found.candidate_scores.shape == (3, 20)
    for prompt, best, score, row, scores in zip(PROMPTS, *found[:2], *found[2:], strict=True):
        assert all(item.prompt_ids == tuple(prompt) for item in row)
        assert count_liked(row) == scores.tolist()
        assert score == max(scores) == count_liked([best])[0]
        assert best is row[int(np.argmax(scores))]
    assert found.scores.mean() > found.candidate_scores.mean()


def test_more_candidates_add_to_the_fewer():
    few, many = (
        best_of_n(model(), PROMPTS, count_liked, n, max_new_tokens=5, seed=4, batch_size=size)
        for n, size in ((3, 64), (7, 2))
    )
    assert [row[:3] for row in many.candidates] == few.candidates
    other = best_of_n(model(), PROMPTS, count_liked, 3, max_new_tokens=5, seed=5)
    assert other.candidates != few.candidates
    assert len({item.completion_ids for item in many.candidates[0]}) > 1


def test_a_reward_model_and_a_function_of_texts_are_scorers():
    policy = model()
    reward_model = RewardModel(model(seed=3))
    found = best_of_n(policy, PROMPTS, reward_model, 6, max_new_tokens=5)
    np.testing.assert_allclose(found.scores, reward_model(found.completions), rtol=1e-5)
    texts = []

    def lengths(batch):
        texts.extend(batch)
        return [len(text.split()) for text in batch]

    found = best_of_n(policy, [[3, 4]], score_texts(policy.tokenizer, lengths), 4, max_new_tokens=5)
    assert all(text.startswith("w3 w4") and "<eos>" not in text for text in texts)
    longest = [2 + sum(token not in (0, EOS) for token in item.completion_ids)
               for item in found.candidates[0]]  # fmt: skip
    assert found.scores[0] == max(longest)
    score_texts(policy.tokenizer, lengths, with_prompt=False)(found.completions)
    assert not texts[-1].startswith("w3 w4") or found.completions[0].completion_ids[:2] == (3, 4)


def test_the_divergence_is_the_integral():
    """Best of n of a uniform score has density n u^(n-1)."""
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (1, 2, 4, 16, 128):
        density = n * u ** (n - 1)
        kl = np.mean(density * np.log(np.maximum(density, 1e-300)))
        assert best_of_n_kl(n) == pytest.approx(kl, abs=1e-4)
    np.testing.assert_allclose(best_of_n_kl(np.array([1, 2])), [0.0, math.log(2) - 0.5])


def test_the_divergence_is_a_bound_for_any_few_completions():
    p = np.array([0.5, 0.2, 0.2, 0.1])
    for n in (2, 3, 5):
        best = np.zeros(4)
        for drawn in product(range(4), repeat=n):
            best[max(drawn)] += np.prod(p[list(drawn)])
        assert 0 < np.sum(best * np.log(best / p)) < best_of_n_kl(n)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_estimate_is_the_average_over_every_choice(n):
    draw = np.random.default_rng(n)
    scores, gold = draw.normal(size=(2, 3, 6))
    expected = [[max(row[list(chosen)]) for chosen in combinations(range(6), n)] for row in scores]
    np.testing.assert_allclose(expected_best_of_n(scores, n), np.mean(expected, axis=1))
    expected = [
        [values[max(chosen, key=lambda i: row[i])] for chosen in combinations(range(6), n)]
        for row, values in zip(scores, gold, strict=True)
    ]
    np.testing.assert_allclose(expected_best_of_n(scores, n, gold), np.mean(expected, axis=1))


def test_samples_of_equal_score_share_their_chances():
    scores, values = np.array([1.0, 1.0, 0.0]), np.array([4.0, 8.0, 0.0])
    assert expected_best_of_n(scores, 2, values) == pytest.approx(6.0)
    assert expected_best_of_n(scores[::-1], 2, values[::-1]) == pytest.approx(6.0)
    assert expected_best_of_n(np.ones(5), 3, np.arange(5.0)) == pytest.approx(2.0)


def test_the_estimate_of_many_samples_is_the_expectation():
    scores = np.random.default_rng(0).random((1, 4000))
    for n in (1, 16, 256):
        assert expected_best_of_n(scores, n)[0] == pytest.approx(n / (n + 1), abs=0.01)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: best_of_n(model(), PROMPTS, count_liked, 0, max_new_tokens=3), "n is 0"),
        (
            lambda: best_of_n(model(), PROMPTS, lambda c: [1.0], 2, max_new_tokens=3),
            r"\(1,\) for 6",
        ),
        (
            lambda: best_of_n(model(), PROMPTS, lambda c: [math.nan] * 6, 2, max_new_tokens=3),
            "gave nan",
        ),
        (lambda: best_of_n_kl(0), "n is 0"),
        (lambda: expected_best_of_n(np.ones(4), 5), "of 4 samples"),
        (lambda: expected_best_of_n(np.ones(4), 2, np.ones(3)), r"\(4,\) and values \(3,\)"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_a_seed_below_zero_is_refused():
    with pytest.raises(UserError, match="seed is -1; expected at least 0"):
        best_of_n(model(), PROMPTS, count_liked, 2, max_new_tokens=2, seed=-1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_observed_divergence_is_that_of_all_draws(n):
    scores = np.array([0.3, 1.0, 1.0, -2.0])
    # All ways to draw n samples with replacement, and the score of the best of each.
    drawn = [max(choice) for choice in product(scores, repeat=n)]
    kl = 0.0
    for score in (-2.0, 0.3, 1.0):
        p, b = np.mean(scores == score), np.mean(np.array(drawn) == score)
        kl += b * math.log(b / p)
    assert observed_best_of_n_kl(scores, n) == pytest.approx(kl)
    assert observed_best_of_n_kl(np.stack([scores, scores + 1]), n).tolist() == [
        pytest.approx(kl),
        pytest.approx(kl),
    ]


def test_observed_divergence_nears_the_bound_from_below():
    scores = np.random.default_rng(0).normal(size=4096)
    for n in (2, 8, 32):
        found = float(observed_best_of_n_kl(scores, n))
        assert found <= best_of_n_kl(n)
        assert found == pytest.approx(best_of_n_kl(n), abs=0.02)
