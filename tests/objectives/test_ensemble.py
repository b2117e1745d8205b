"""What an ensemble says together, against closed forms."""

import numpy as np
import pytest

import tether.objectives as o


def test_four_members_by_hand():
    scores = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [6.0, 8.0]])
    np.testing.assert_array_equal(o.worst_case(scores), [1.0, 0.0])
    # Means 3 and 2; squared distances 4, 1, 0, 9 and 4, 4, 4, 36.
    np.testing.assert_array_equal(o.ensemble_variance(scores), [3.5, 12.0])
    np.testing.assert_array_equal(o.uncertainty_weighted(scores, 0.5), [1.25, -4.0])
    np.testing.assert_array_equal(o.uncertainty_weighted(scores, 0.0), [3.0, 2.0])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_numpys_own_statistics_along_any_axis(axis):
    scores = np.random.default_rng(0).normal(size=(5, 7))
    mean, variance = scores.mean(axis), scores.var(axis)
    np.testing.assert_allclose(o.worst_case(scores, axis=axis), scores.min(axis))
    np.testing.assert_allclose(o.ensemble_variance(scores, axis=axis), variance)
    found = o.uncertainty_weighted(scores, 0.3, axis=axis)
    np.testing.assert_allclose(found, mean - 0.3 * variance)


def test_members_without_a_score_take_no_part():
    scores = np.array([[1.0, np.nan], [np.nan, np.nan], [5.0, 2.0]])
    there = ~np.isnan(scores)
    np.testing.assert_array_equal(o.worst_case(scores, there), [1.0, 2.0])
    np.testing.assert_array_equal(o.ensemble_variance(scores, there), [4.0, 0.0])
    np.testing.assert_array_equal(o.uncertainty_weighted(scores, 0.5, there), [1.0, 2.0])


def test_what_nobody_scored_is_seen():
    scores, nobody = np.ones((3, 1)), np.zeros((3, 1), bool)
    assert np.isinf(o.worst_case(scores, nobody)).all()
    with np.errstate(invalid="ignore"):
        assert np.isnan(o.uncertainty_weighted(scores, 0.1, nobody)).all()


def test_agreement_costs_nothing_and_a_doubtful_gain_does():
    """The choice that the three make between a sure and a doubtful completion."""
    sure, doubtful = np.full(5, 1.0), np.array([4.0, 0.5, 0.5, 0.5, 0.5])
    scores = np.stack([sure, doubtful], axis=1)
    assert np.argmax(o.uncertainty_weighted(scores, 0.0)) == 1
    assert np.argmax(o.worst_case(scores)) == 0
    assert np.argmax(o.uncertainty_weighted(scores, 0.5)) == 0
    assert o.uncertainty_weighted(scores, 100.0)[0] == 1.0
