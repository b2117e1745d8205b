"""Losses from comparisons: closed forms, and what a person would expect of them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

import tether.objectives as o

BETA = 0.3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_bradley_terry_is_the_cross_entropy(noise, backend, rng):
    a, b = rng.normal(0, 2, size=(2, 20))
    label = rng.random(20)
    p = (1 - noise) * sigmoid(a - b) + noise / 2
    expected = -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean()
    found = backend.value(lambda *x: o.bradley_terry(*x, noise=noise), a, b, label)
    assert found == pytest.approx(expected, rel=1e-12)


def test_christianos_noise_is_nine_tenths_and_a_twentieth(backend):
    found = backend.value(
        lambda a, b: o.bradley_terry(a, b, noise=0.1), np.array([np.log(3.0)]), np.zeros(1)
    )
    assert found == pytest.approx(-np.log(0.9 * 0.75 + 0.05))


def test_swapping_the_items_and_the_label_changes_nothing(backend, rng):
    a, b = rng.normal(size=(2, 20))
    label = rng.random(20)
    for function in (o.bradley_terry, lambda *x: o.dpo(*x[:2], BETA, x[2]),
                     lambda *x: o.ipo(*x[:2], BETA, x[2])):  # fmt: skip
        there = backend.value(function, a, b, label)
        assert backend.value(function, b, a, 1 - label) == pytest.approx(there, rel=1e-12)


def test_a_soft_label_is_a_mixture_of_hard_ones(backend, rng):
    a, b = rng.normal(size=(2, 20))
    for function in (o.bradley_terry, lambda a, b, p: o.dpo(a, b, BETA, p),
                     lambda a, b, p: o.ipo(a, b, BETA, p)):  # fmt: skip
        first, second, mixed = (
            backend.value(lambda a, b, p=p, f=function: f(a, b, p), a, b) for p in (1, 0, 0.3)
        )
        assert mixed == pytest.approx(0.3 * first + 0.7 * second, rel=1e-12)


def test_a_tie_pulls_the_scores_together(autodiff):
    a, b = np.array([2.0, -1.0]), np.zeros(2)
    slope = autodiff.gradient(lambda a, b: o.bradley_terry(a, b, 0.5), a, b)[0]
    assert slope[0] > 0 > slope[1]
    np.testing.assert_allclose(slope, (sigmoid(a) - 0.5) / 2, rtol=1e-12)


@pytest.mark.parametrize("margin", [1e3, -1e3])
def test_margins_of_any_size_are_safe(margin, single):
    a, b = np.array([margin]), np.zeros(1)
    assert single.value(o.bradley_terry, a, b) == pytest.approx(max(-margin, 0))
    assert single.value(lambda a, b: o.dpo(a, b, 1.0), a, b) == pytest.approx(max(-margin, 0))
    noisy = single.value(lambda a, b: o.bradley_terry(a, b, noise=0.1), a, b)
    assert noisy == pytest.approx(-np.log(0.95 if margin > 0 else 0.05), rel=1e-5)
    if single.name != "numpy":
        for slope in single.gradient(o.bradley_terry, a, b):
            assert abs(slope.item()) == pytest.approx(float(margin < 0))


@pytest.mark.parametrize("k", [2, 4, 9])
def test_k_wise_is_the_mean_over_all_pairs(k, backend, rng):
    scores = rng.normal(size=(5, k))
    expected = [
        np.mean([-np.log(sigmoid(row[i] - row[j])) for i, j in combinations(range(k), 2)])
        for row in scores
    ]
    found = backend.value(lambda s: o.k_wise(s, reduction="none"), scores)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert backend.value(o.k_wise, scores) == pytest.approx(np.mean(expected), rel=1e-12)


def test_two_items_ranked_are_one_comparison(backend, rng):
    scores = rng.normal(size=(7, 2))
    expected = backend.value(lambda s: o.bradley_terry(s[:, 0], s[:, 1]), scores)
    assert backend.value(o.k_wise, scores) == pytest.approx(expected, rel=1e-12)


def test_prompts_with_fewer_items_weigh_their_own_pairs(autodiff, rng):
    scores = rng.normal(size=(4, 5))
    count = [5, 3, 1, 0]
    mask = np.arange(5) < np.array(count)[:, None]
    mask[1] = [True, False, True, False, True]  # which places are empty does not matter
    alone = [o.k_wise(scores[i][mask[i]]) for i in range(2)]
    spoilt = np.where(mask, scores, np.nan)
    rows = autodiff.value(lambda s, m: o.k_wise(s, m, reduction="none"), spoilt, mask)
    np.testing.assert_allclose(rows, [*alone, 0, 0], rtol=1e-12)
    assert autodiff.value(o.k_wise, spoilt, mask) == pytest.approx(np.mean(alone), rel=1e-12)
    slope = autodiff.gradient(o.k_wise, spoilt, mask)[0]
    assert np.all(slope[~mask] == 0) and np.all(slope[2:] == 0)
    assert np.all(slope[:2][mask[:2]] != 0)


def test_dpo_at_the_reference_is_log_two_with_half_the_pull(autodiff):
    zero = np.zeros(6)

    def loss(a, b):
        return o.dpo(a, b, BETA)

    assert autodiff.value(loss, zero, zero) == pytest.approx(np.log(2), rel=1e-12)
    chosen, rejected = autodiff.gradient(loss, zero, zero)
    np.testing.assert_allclose(chosen, -BETA / 2 / 6, rtol=1e-12)
    np.testing.assert_allclose(rejected, BETA / 2 / 6, rtol=1e-12)


def test_the_gradient_of_dpo_is_weighted_by_how_wrong_the_ranking_is(autodiff, rng):
    a, b = rng.normal(0, 5, size=(2, 30))
    weight = BETA * sigmoid(-BETA * (a - b))
    chosen, rejected = autodiff.gradient(lambda a, b: o.dpo(a, b, BETA), a, b)
    np.testing.assert_allclose(chosen, -weight / 30, rtol=1e-10)
    np.testing.assert_allclose(rejected, weight / 30, rtol=1e-10)


def test_dpo_is_bradley_terry_of_the_implicit_rewards(backend, rng):
    a, b = rng.normal(size=(2, 10))
    label = rng.random(10)
    expected = backend.value(
        lambda a, b, p: o.bradley_terry(
            o.dpo_implicit_reward(a, BETA), o.dpo_implicit_reward(b, BETA), p
        ),
        a, b, label,
    )  # fmt: skip
    found = backend.value(lambda a, b, p: o.dpo(a, b, BETA, p), a, b, label)
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_implicit_reward_of_the_best_policy_is_the_reward(backend, rng):
    """pi = ref exp(r / beta) / Z: rewards come back up to the constant beta log Z."""
    reference, reward = rng.dirichlet(np.ones(6)), rng.normal(size=6)
    best = reference * np.exp(reward / BETA)
    best /= best.sum()
    found = backend.value(lambda x: o.dpo_implicit_reward(x, BETA), np.log(best / reference))
    np.testing.assert_allclose(found - found[0], reward - reward[0], atol=1e-12)


@pytest.mark.parametrize("loss", [o.dpo, o.ipo])
def test_label_smoothing_flips_that_share_of_the_labels(loss, backend, rng):
    a, b = rng.normal(size=(2, 10))
    label = rng.random(10)
    smoothed = backend.value(lambda a, b, p: loss(a, b, BETA, p, 0.1), a, b, label)
    expected = backend.value(lambda a, b, p: loss(a, b, BETA, 0.9 * p + 0.1 * (1 - p)), a, b, label)
    assert smoothed == pytest.approx(expected, rel=1e-12)
    hard = backend.value(lambda a, b: loss(a, b, BETA, label_smoothing=0.1), a, b)
    assert hard == pytest.approx(backend.value(lambda a, b: loss(a, b, BETA, 0.9), a, b), rel=1e-12)


@pytest.mark.parametrize("label", [1.0, 0.7, 0.5, 0.0])
def test_ipo_is_least_at_a_finite_margin(label, autodiff):
    best = (2 * label - 1) / (2 * BETA)
    zero = np.zeros(1)

    def loss(a, b):
        return o.ipo(a, b, BETA, label)

    slope = autodiff.gradient(loss, np.array([best]), zero)[0]
    assert slope.item() == pytest.approx(0, abs=1e-12)
    slope = autodiff.gradient(loss, np.array([best + 0.5]), zero)[0]
    assert slope.item() == pytest.approx(1.0, rel=1e-12)
    assert autodiff.value(loss, zero, zero) == pytest.approx(1 / (2 * BETA) ** 2, rel=1e-12)
