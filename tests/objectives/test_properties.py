"""What must hold for every input, tried on inputs nobody chose."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tether.objectives as o

settings.register_profile("objectives", max_examples=60, deadline=None, derandomize=True)
EXAMPLES = settings.get_profile("objectives")


def numbers(bound: float, shape: tuple[int, ...] = (6, 2)):
    return arrays(np.float64, shape, elements=st.floats(-bound, bound, allow_subnormal=False))


FLAGS = arrays(np.bool_, (6, 2))
EPSILONS = st.floats(0.01, 2.0)


@EXAMPLES
@given(numbers(20), numbers(50), EPSILONS)
def test_the_clipped_objective_never_promises_more_than_the_surrogate(x, advantage, epsilon):
    clipped = o.clipped_surrogate(x, advantage, epsilon, reduction="none")
    plain = o.surrogate(x, advantage, reduction="none")
    active = o.clip_active(x, advantage, epsilon)
    assert np.all(clipped <= plain + 1e-12 * np.abs(plain))
    np.testing.assert_allclose(clipped[~active], plain[~active], rtol=1e-12)
    assert np.all(clipped[active] < plain[active])


@EXAMPLES
@given(numbers(5), numbers(5), numbers(5), numbers(5), FLAGS, FLAGS, FLAGS, st.data())
def test_gae_is_linear_in_rewards_and_values(r, s, v, n, terminated, done, mask, data):
    lam, gamma = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))

    def gae(reward, value, next_value):
        return o.gae(reward, value, next_value, terminated=terminated, done=done,
                     gamma=gamma, lam=lam, mask=mask)  # fmt: skip

    zero = np.zeros_like(r)
    parts = gae(r, zero, zero) + 2 * gae(s, zero, zero) + gae(zero, v, n)
    np.testing.assert_allclose(gae(r + 2 * s, v, n), parts, atol=1e-9)


@EXAMPLES
@given(numbers(5), FLAGS, st.integers(0, 5), st.floats(-5, 5))
def test_the_past_never_changes_the_future(reward, done, time, change):
    zero = np.zeros_like(reward)
    flags = {"terminated": done, "done": done, "gamma": 0.9, "lam": 0.9}
    before = o.gae(reward, zero, zero, **flags)
    reward = reward.copy()
    reward[time, 0] += change
    after = o.gae(reward, zero, zero, **flags)
    np.testing.assert_array_equal(after[time + 1 :], before[time + 1 :])
    np.testing.assert_array_equal(after[:, 1], before[:, 1])
    ends = np.flatnonzero(done[:time, 0])
    if len(ends):
        np.testing.assert_array_equal(after[: ends[-1] + 1], before[: ends[-1] + 1])


@EXAMPLES
@given(numbers(30), numbers(30))
def test_divergences_are_never_negative(a, b):
    assert np.all(o.categorical_kl(a, b) >= -1e-12)
    assert np.all(o.bernoulli_kl(a, b) >= -1e-12)
    assert np.all(o.diagonal_gaussian_kl(a, b / 10, b, a / 10) >= 0)
    assert np.all(o.diagonal_gaussian_kl(a, b / 10, a, b / 10) == 0)
    assert np.all(o.kl_k2(a) >= 0) and np.all(o.kl_k3(a) >= 0)


@EXAMPLES
@given(numbers(30), st.floats(-50, 50))
def test_shifting_the_logits_changes_nothing(a, shift):
    np.testing.assert_allclose(
        o.categorical_entropy(a + shift), o.categorical_entropy(a), atol=1e-9
    )
    np.testing.assert_allclose(o.categorical_kl(a, a + shift), 0, atol=1e-9)
    assert np.all(o.categorical_entropy(a) <= np.log(2) + 1e-12)


@EXAMPLES
@given(numbers(50), numbers(50), st.floats(-1000, 1000), st.floats(0, 1), st.floats(0, 0.9))
def test_only_differences_of_scores_matter(a, b, shift, label, noise):
    there = o.bradley_terry(a, b, label, noise=noise)
    moved = o.bradley_terry(a + shift, b + shift, label, noise=noise)
    np.testing.assert_allclose(moved, there, atol=1e-8)
    np.testing.assert_allclose(o.k_wise(a + shift), o.k_wise(a), atol=1e-8)
    assert there >= 0


@EXAMPLES
@given(numbers(50), st.data())
def test_a_better_ranking_never_costs_more(scores, data):
    row = data.draw(st.integers(0, len(scores) - 1))
    sorted_row = np.sort(scores[:, 0])[::-1]
    assert o.k_wise(sorted_row) <= o.k_wise(scores[:, 0]) + 1e-9
    better = scores.copy()
    better[row, 0] += 1.0
    assert o.bradley_terry(better[:, 0], better[:, 1]) <= o.bradley_terry(
        scores[:, 0], scores[:, 1]
    )


@EXAMPLES
@given(numbers(300), FLAGS)
def test_the_effective_sample_size_lies_between_one_and_all(x, mask):
    if mask.any():
        found = o.effective_sample_size(x, mask)
        assert 1 - 1e-9 <= found <= mask.sum() + 1e-9


@EXAMPLES
@given(numbers(10), FLAGS)
def test_the_mean_is_the_sum_over_the_count(x, mask):
    if mask.any():
        np.testing.assert_allclose(o.masked_mean(x, mask) * mask.sum(), o.masked_sum(x, mask))
