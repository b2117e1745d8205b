"""DPO's relatives against their papers' formulas, written out term by term."""

from __future__ import annotations

import numpy as np
import pytest

import tether.objectives as o

BETA, GAMMA, LAM = 2.5, 0.8, 0.3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


PAIRED = {
    "simpo": lambda *x: o.simpo(*x[:2], BETA, GAMMA, *x[2:]),
    "orpo": lambda *x: o.orpo(*x[:2], LAM, *x[2:]),
    "unlikelihood": lambda *x: o.unlikelihood(*x[:2], 0.4, *x[2:]),
}


@pytest.fixture
def pairs(rng):
    """Mean log-probabilities of better and worse answers, and soft labels."""
    return -rng.gamma(2.0, 1.0, size=20), -rng.gamma(2.0, 1.0, size=20), rng.random(20)


@pytest.mark.parametrize("name", PAIRED)
def test_swapping_the_items_and_the_label_changes_nothing(name, backend, pairs):
    a, b, label = pairs
    there = backend.value(PAIRED[name], a, b, label)
    assert backend.value(PAIRED[name], b, a, 1 - label) == pytest.approx(there, rel=1e-12)


@pytest.mark.parametrize("name", PAIRED)
def test_a_soft_label_is_a_mixture_of_hard_ones(name, backend, pairs):
    a, b, _ = pairs
    first, second, mixed = (
        backend.value(lambda a, b, p=p: PAIRED[name](a, b, p), a, b) for p in (1, 0, 0.3)
    )
    assert mixed == pytest.approx(0.3 * first + 0.7 * second, rel=1e-12)
    smoothed = backend.value(lambda a, b: PAIRED[name](a, b, 1.0, 0.3), a, b)
    assert smoothed == pytest.approx(0.7 * first + 0.3 * second, rel=1e-12)


def test_simpo_is_its_equation_6(backend, pairs):
    a, b, _ = pairs
    expected = -np.log(sigmoid(BETA * a - BETA * b - GAMMA)).mean()
    found = backend.value(lambda a, b: o.simpo(a, b, BETA, GAMMA), a, b)
    assert found == pytest.approx(expected, rel=1e-12)


def test_simpo_without_a_margin_is_bradley_terry_of_the_mean_log_probs(backend, pairs):
    expected = backend.value(lambda a, b, p: o.bradley_terry(BETA * a, BETA * b, p), *pairs)
    found = backend.value(lambda a, b, p: o.simpo(a, b, BETA, 0.0, p), *pairs)
    assert found == pytest.approx(expected, rel=1e-12)


def test_orpo_is_the_likelihood_and_the_odds_ratio(backend, pairs):
    a, b, _ = pairs
    p, q = np.exp(a), np.exp(b)
    ratio = (p / (1 - p)) / (q / (1 - q))
    expected = (-a + LAM * -np.log(sigmoid(np.log(ratio)))).mean()
    found = backend.value(lambda a, b: o.orpo(a, b, LAM), a, b)
    assert found == pytest.approx(expected, rel=1e-10)


def test_the_gradient_of_orpo_is_the_papers_product(autodiff, pairs):
    """Equation 8: grad L_OR = delta(d) h(d), with delta = 1 / (1 + odds_w / odds_l)."""
    a, b, _ = pairs
    p, q = np.exp(a), np.exp(b)
    delta = 1 / (1 + (p / (1 - p)) / (q / (1 - q)))
    chosen, rejected = autodiff.gradient(lambda a, b: o.orpo(a, b, LAM), a, b)
    np.testing.assert_allclose(chosen, (-1 - LAM * delta / (1 - p)) / 20, rtol=1e-10)
    np.testing.assert_allclose(rejected, LAM * delta / (1 - q) / 20, rtol=1e-10)


@pytest.mark.parametrize("sure", [0.0, -1e-12, -200.0, -1e4])
def test_orpo_is_finite_for_certain_and_for_impossible_answers(sure, single):
    for a, b in ((np.array([sure]), np.array([-2.0])), (np.array([-2.0]), np.array([sure]))):
        assert np.isfinite(single.value(lambda a, b: o.orpo(a, b, LAM), a, b))
        if single.name != "numpy":
            slopes = single.gradient(lambda a, b: o.orpo(a, b, LAM), a, b)
            assert all(np.all(np.isfinite(slope)) for slope in slopes)


def test_kto_is_its_equation_8(backend, rng):
    h, z = rng.normal(0, 3, size=12), 0.7
    liked = rng.random(12) < 0.5
    value = np.where(liked, 1.2 * sigmoid(0.4 * (h - z)), 0.9 * sigmoid(0.4 * (z - h)))
    expected = (np.where(liked, 1.2, 0.9) - value).mean()

    def loss(h, liked):
        return o.kto(h, liked, z, 0.4, desirable_weight=1.2, undesirable_weight=0.9)

    assert backend.value(loss, h, liked.astype(float)) == pytest.approx(expected, rel=1e-12)


def test_kto_pulls_most_at_the_reference_point(autodiff):
    h = np.array([0.7, 5.0, -5.0])
    for liked, sign in ((1.0, -1), (0.0, 1)):
        slope = autodiff.gradient(lambda h, p=liked: o.kto(h, p, 0.7, 1.0), h)[0]
        assert np.all(np.sign(slope) == sign)
        assert abs(slope[0]) == pytest.approx(0.25 / 3)
        assert np.all(np.abs(slope[1:]) < 0.25 / 3)


def test_the_reference_point_is_a_constant_and_never_negative(autodiff, rng):
    h = rng.normal(size=9)
    h -= h.mean()
    for shift, expected in ((1.5, 1.5), (-1.5, 0.0)):
        found = autodiff.value(o.kto_reference_point, h + shift)
        assert found == pytest.approx(expected)
        slope = autodiff.gradient(lambda x: o.kto_reference_point(x) + x.sum(), h + shift)[0]
        np.testing.assert_array_equal(slope, np.ones(9))
    assert np.isnan(autodiff.value(o.kto_reference_point, np.array([np.nan, 1.0])))


def test_unlikelihood_is_the_difference_and_preferred_tuning_without_it(backend, pairs):
    a, b, _ = pairs
    found = backend.value(lambda a, b: o.unlikelihood(a, b, 0.4), a, b)
    assert found == pytest.approx((0.4 * b - a).mean(), rel=1e-12)
    expected = backend.value(o.masked_negative_log_likelihood, a)
    found = backend.value(lambda a, b: o.unlikelihood(a, b, 0.0), a, b)
    assert found == pytest.approx(expected, rel=1e-12)
