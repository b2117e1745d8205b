"""The policy gradient theorem by enumeration, and PPO's objectives row by row."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from array_api_compat import array_namespace

import tether.objectives as o

STATES, ACTIONS, HORIZON, GAMMA = 3, 2, 3, 0.9
rng = np.random.default_rng(0)
START = rng.dirichlet(np.ones(STATES))
MOVE = rng.dirichlet(np.ones(STATES), size=(STATES, ACTIONS))
REWARD = rng.normal(size=(STATES, ACTIONS))
LOGITS = rng.normal(size=(STATES, ACTIONS))
POLICY = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
EPSILON = 0.2


def log_policy(logits):
    xp = array_namespace(logits)
    return logits - xp.log(xp.sum(xp.exp(logits), axis=1, keepdims=True))


def constants(like, *arrays):
    xp = array_namespace(like)
    return [xp.asarray(x) for x in arrays]


def exact_objective(logits):
    """J = start . (I - gamma P)^-1 r, the discounted return of the endless problem."""
    xp = array_namespace(logits)
    policy = xp.exp(log_policy(logits))
    start, move, reward, eye = constants(logits, START, MOVE, REWARD, np.eye(STATES))
    chain = xp.sum(policy[:, :, None] * move, axis=1)
    value = xp.linalg.solve(eye - GAMMA * chain, xp.sum(policy * reward, axis=1)[:, None])
    return xp.sum(start[:, None] * value)


def endless_values():
    chain = np.einsum("sa,sax->sx", POLICY, MOVE)
    value = np.linalg.solve(np.eye(STATES) - GAMMA * chain, (POLICY * REWARD).sum(1))
    visits = np.linalg.solve(np.eye(STATES) - GAMMA * chain.T, START)
    return value, REWARD + GAMMA * MOVE @ value, visits


@pytest.mark.parametrize("weight", ["action value", "advantage"])
def test_policy_gradient_theorem_for_discounted_state_visits(weight, autodiff):
    """grad J = sum_s p(s) sum_a pi(a|s) grad log pi(a|s) w(s, a), w = Q or A."""
    value, action_value, visits = endless_values()
    weights = action_value - (value[:, None] if weight == "advantage" else 0.0)
    probability = visits[:, None] * POLICY

    def objective(logits):
        w, p = constants(logits, weights, probability)
        return (p * o.policy_gradient(log_policy(logits), w, reduction="none")).sum()

    expected = autodiff.gradient(exact_objective, LOGITS)[0]
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(autodiff.gradient(objective, LOGITS)[0], expected, rtol=1e-10)


def trajectories():
    """Every trajectory of HORIZON steps: states, actions and probability under POLICY."""
    states, actions, chances = [], [], []
    for path in product(*[range(STATES), range(ACTIONS)] * HORIZON):
        s, a = path[0::2], path[1::2]
        chance = START[s[0]]
        for t in range(HORIZON):
            chance *= POLICY[s[t], a[t]]
            if t + 1 < HORIZON:
                chance *= MOVE[s[t], a[t], s[t + 1]]
        states.append(s), actions.append(a), chances.append(chance)
    return np.array(states), np.array(actions), np.array(chances)


def finite_values():
    """V_t and Q_t of the problem that ends after HORIZON steps."""
    value, action_value = np.zeros((HORIZON + 1, STATES)), np.zeros((HORIZON, STATES, ACTIONS))
    for t in reversed(range(HORIZON)):
        action_value[t] = REWARD + GAMMA * MOVE @ value[t + 1]
        value[t] = (POLICY * action_value[t]).sum(1)
    return value, action_value


@pytest.mark.parametrize("weight", ["return", "action value", "advantage"])
def test_the_lectures_three_weights_have_one_expected_gradient(weight, autodiff):
    states, actions, chances = trajectories()
    assert abs(chances.sum() - 1) < 1e-12
    value, action_value = finite_values()
    steps = np.arange(HORIZON)
    weights = {
        "return": o.discounted_return(REWARD[states, actions], GAMMA, axis=1),
        "action value": action_value[steps, states, actions],
        "advantage": action_value[steps, states, actions] - value[steps, states],
    }[weight]
    chosen = np.eye(STATES * ACTIONS)[states * ACTIONS + actions]

    def exact(logits):
        """J as the plain sum over trajectories of probability times discounted return."""
        xp = array_namespace(logits)
        pick, old, total, chance = constants(
            logits,
            chosen,
            np.log(POLICY[states, actions]),
            (REWARD[states, actions] * GAMMA**steps).sum(1),
            chances,
        )
        log_prob = xp.sum(pick * xp.reshape(log_policy(logits), (-1,)), axis=-1)
        return xp.sum(chance * xp.exp(xp.sum(log_prob - old, axis=1)) * total)

    def objective(logits):
        xp = array_namespace(logits)
        pick, w, chance = constants(logits, chosen, weights, chances[:, None] * GAMMA**steps)
        log_prob = xp.sum(pick * xp.reshape(log_policy(logits), (-1,)), axis=-1)
        return (chance * o.policy_gradient(log_prob, w, reduction="none")).sum()

    np.testing.assert_allclose(
        autodiff.gradient(objective, LOGITS)[0],
        autodiff.gradient(exact, LOGITS)[0],
        rtol=1e-10,
        atol=1e-13,
    )


def test_importance_sampling_identity(backend):
    """E_new[A] = E_old[r A], for every state of a categorical policy."""
    old, new = np.random.default_rng(1).dirichlet(np.ones(4), size=(2, 3))
    advantage = np.random.default_rng(2).normal(size=(3, 4))
    terms = backend.value(
        lambda x, a: o.surrogate(x, a, reduction="none"), np.log(new / old), advantage
    )
    np.testing.assert_allclose((old * terms).sum(1), (new * advantage).sum(1), rtol=1e-12)


def test_the_surrogates_have_the_policy_gradient_where_the_policies_agree(autodiff):
    log_prob, advantage = np.random.default_rng(3).normal(size=(2, 40))
    expected = autodiff.gradient(o.policy_gradient, log_prob, advantage)[0]
    for objective in (
        o.surrogate,
        lambda x, a: o.clipped_surrogate(x, a, EPSILON),
        lambda x, a: o.kl_penalized_surrogate(x, a, o.kl_k2(x), 0.7),
    ):
        found = autodiff.gradient(
            lambda x, a, f=objective: f(x - log_prob_of(x), a), log_prob, advantage
        )
        np.testing.assert_allclose(found[0], expected, rtol=1e-12)


def log_prob_of(x):
    """The old log-probabilities: the same numbers without a gradient."""
    if hasattr(x, "detach"):
        return x.detach()
    import jax

    return jax.lax.stop_gradient(x)


# The lecture's table: ratio, advantage, is the objective clipped?
TABLE = [
    (1.1, 2.0, False),
    (0.9, -2.0, False),
    (0.5, 2.0, False),
    (0.5, -2.0, True),
    (1.5, 2.0, True),
    (1.5, -2.0, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "clipped"), TABLE)
def test_the_lectures_table_of_the_clipped_objective(ratio, advantage, clipped, autodiff):
    inputs = (np.log([ratio]), np.array([advantage]))
    bound = 1 + EPSILON if ratio > 1 else 1 - EPSILON
    expected = (bound if clipped else ratio) * advantage
    assert expected == pytest.approx(
        min(ratio * advantage, np.clip(ratio, 1 - EPSILON, 1 + EPSILON) * advantage)
    )

    def objective(x, a):
        return o.clipped_surrogate(x, a, EPSILON)

    assert autodiff.value(objective, *inputs) == pytest.approx(expected, rel=1e-12)
    slope = autodiff.gradient(objective, *inputs)[0].item()
    assert slope == pytest.approx(0.0 if clipped else ratio * advantage, rel=1e-12)
    active = autodiff.value(lambda x, a: o.clip_active(x, a, EPSILON), *inputs)
    assert active.dtype == bool
    assert active.item() is clipped
    held = autodiff.value(lambda x, a: o.clip_fraction(x, a, EPSILON), *inputs)
    assert held == clipped
    outside = autodiff.value(lambda x: o.clip_fraction(x, None, EPSILON), inputs[0])
    assert outside == (abs(ratio - 1) > EPSILON)


def test_the_clipped_objective_is_the_textbooks_minimum(backend):
    x, advantage = np.random.default_rng(4).normal(size=(2, 500))
    for epsilon in (0.1, 0.3, 1.0, 1.7):
        ratio = np.exp(x)
        expected = np.minimum(
            ratio * advantage, np.clip(ratio, 1 - epsilon, 1 + epsilon) * advantage
        )
        # At epsilon >= 1 the lower bound lies below every ratio.
        found = backend.value(
            lambda x, a, e=epsilon: o.clipped_surrogate(x, a, e, reduction="none"), x, advantage
        )
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_epsilon_may_be_an_array(backend):
    x, advantage = np.random.default_rng(5).normal(size=(2, 50))
    for epsilon in (0.2, 1.5):
        found = backend.value(o.clipped_surrogate, x, advantage, np.array(epsilon))
        expected = o.clipped_surrogate(x, advantage, epsilon)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_ratio_that_overflows_does_no_harm_where_it_is_clipped(autodiff):
    x, advantage = np.array([1e4, -1e4]), np.array([1.0, -1.0])
    value = autodiff.value(lambda x, a: o.clipped_surrogate(x, a, EPSILON), x, advantage)
    assert value == pytest.approx((1.2 - 0.8) / 2)
    for slope in autodiff.gradient(lambda x, a: o.clipped_surrogate(x, a, EPSILON), x, advantage):
        assert np.all(np.isfinite(slope))


def test_on_policy_nothing_is_clipped(backend):
    zero, advantage = np.zeros(64), np.random.default_rng(6).normal(size=64)
    assert backend.value(lambda x: o.clip_fraction(x, None, EPSILON), zero) == 0
    assert backend.value(lambda x, a: o.clip_fraction(x, a, EPSILON), zero, advantage) == 0
    assert backend.value(o.effective_sample_size, zero) == pytest.approx(64)
    found = backend.value(lambda x, a: o.clipped_surrogate(x, a, EPSILON), zero, advantage)
    assert found == pytest.approx(advantage.mean(), rel=1e-12)


def test_clip_active_is_false_where_masked(backend):
    ratio, advantage, _ = map(np.array, zip(*TABLE, strict=True))
    mask = np.array([True, True, True, False, True, True])
    found = backend.value(
        lambda x, a, m: o.clip_active(x, a, EPSILON, m), np.log(ratio), advantage, mask
    )
    np.testing.assert_array_equal(found, [False, False, False, False, True, False])


def test_the_kl_penalty_costs_beta_a_nat(autodiff):
    x, advantage, kl = np.random.default_rng(7).normal(size=(3, 30))
    beta = 0.7

    def objective(x, a, k):
        return o.kl_penalized_surrogate(x, a, k, beta)

    expected = (np.exp(x) * advantage - beta * kl).mean()
    assert autodiff.value(objective, x, advantage, kl) == pytest.approx(expected, rel=1e-12)
    slopes = autodiff.gradient(objective, x, advantage, kl)
    np.testing.assert_allclose(slopes[0], np.exp(x) * advantage / 30, rtol=1e-12)
    np.testing.assert_allclose(slopes[2], np.full(30, -beta / 30), rtol=1e-12)


def test_the_value_loss_pulls_by_the_error(autodiff):
    value, target = np.random.default_rng(8).normal(size=(2, 30))
    found = autodiff.value(o.value_loss, value, target)
    assert found == pytest.approx(0.5 * ((value - target) ** 2).mean(), rel=1e-12)
    slope = autodiff.gradient(o.value_loss, value, target)[0]
    np.testing.assert_allclose(slope, (value - target) / 30, rtol=1e-12)


@pytest.mark.parametrize(
    "row",  # value, old value, target, loss, slope
    [
        (1.1, 1.0, 3.0, 0.5 * 1.9**2, -1.9),  # inside: the plain error
        (1.5, 1.0, 3.0, 0.5 * 1.8**2, 0.0),  # moved far towards the target: held
        (0.5, 1.0, 3.0, 0.5 * 2.5**2, -2.5),  # moved far away from it: pulled back
        (5.0, 1.0, 3.0, 0.5 * 2.0**2, 2.0),  # overshot by more than the bound leaves: pulled back
    ],
)
def test_the_clipped_value_loss_holds_only_what_went_the_right_way(row, autodiff):
    value, old, target, loss, slope = row
    inputs = [np.array([x]) for x in (value, old, target)]

    def function(v, w, t):
        return o.clipped_value_loss(v, w, t, EPSILON)

    assert autodiff.value(function, *inputs) == pytest.approx(loss)
    assert autodiff.gradient(function, *inputs)[0].item() == pytest.approx(slope, abs=1e-12)


def test_explained_variance(backend):
    target, noise = np.random.default_rng(9).normal(size=(2, 200))
    assert backend.value(o.explained_variance, target + 5, target) == pytest.approx(1)
    assert backend.value(o.explained_variance, 0 * target, target) == pytest.approx(0)
    found = backend.value(o.explained_variance, target + noise, target)
    assert found == pytest.approx(1 - noise.var() / target.var())
    assert np.isnan(backend.value(o.explained_variance, noise, np.ones(200)))


def test_effective_sample_size(backend):
    ratio = np.array([1.0, 2.0, 3.0, 0.5])
    expected = ratio.sum() ** 2 / (ratio**2).sum()
    for shift in (0.0, 900.0, -900.0):  # beyond what exp can hold
        found = backend.value(o.effective_sample_size, np.log(ratio) + shift)
        assert found == pytest.approx(expected)
    mask = np.array([True, True, False, False])
    assert backend.value(o.effective_sample_size, np.log(ratio), mask) == pytest.approx(9 / 5)


def test_normalized_advantages_have_mean_zero_and_deviation_one(backend):
    advantage = np.random.default_rng(10).normal(3.0, 7.0, size=(20, 5))
    mask = np.random.default_rng(11).random((20, 5)) < 0.5
    found = backend.value(o.normalize_advantage, advantage)
    np.testing.assert_allclose(found, (advantage - advantage.mean()) / advantage.std(), rtol=1e-7)
    kept = backend.value(o.normalize_advantage, advantage, mask)[mask]
    assert kept.mean() == pytest.approx(0, abs=1e-12)
    assert kept.std() == pytest.approx(1, rel=1e-7)
    assert np.all(backend.value(o.normalize_advantage, np.full(9, 4.0)) == 0)
    # The mean of equal numbers need not be equal to them.
    equal = np.full((48, 100), 0.1, np.float32)
    assert np.all(backend.value(o.normalize_advantage, equal) == 0)
    assert np.all(o.normalize_advantage(np.full(64, 0.1)) == 0)


def test_behaviour_cloning_is_the_negative_log_likelihood(autodiff):
    log_prob = np.log(np.random.default_rng(12).random(10))
    mask = np.arange(10) < 6
    found = autodiff.value(o.behaviour_cloning, log_prob, mask)
    assert found == pytest.approx(-log_prob[:6].mean(), rel=1e-12)
    slope = autodiff.gradient(o.masked_negative_log_likelihood, log_prob, mask)[0]
    np.testing.assert_allclose(slope, np.where(mask, -1 / 6, 0.0))
