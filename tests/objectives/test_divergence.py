"""Divergences against sums and integrals; estimators by enumerating every sample."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from array_api_compat import array_namespace

import tether.objectives as o


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(x):
    xp = array_namespace(x)
    return x - xp.log(xp.sum(xp.exp(x), axis=-1, keepdims=True))


def test_categorical_forms_are_the_sums(backend, rng):
    a, b = rng.normal(0, 3, size=(2, 5, 4))
    p, q = softmax(a), softmax(b)
    kl = backend.value(o.categorical_kl, a + 100.0, b - 100.0)
    np.testing.assert_allclose(kl, (p * np.log(p / q)).sum(1), rtol=1e-10)
    np.testing.assert_allclose(
        backend.value(o.categorical_entropy, a), -(p * np.log(p)).sum(1), rtol=1e-12
    )
    turned = backend.value(lambda x, y: o.categorical_kl(x, y, axis=0), a.T, b.T)
    np.testing.assert_allclose(turned, kl, rtol=1e-10)
    assert np.all(backend.value(o.categorical_kl, a, a) == 0)
    uniform = backend.value(o.categorical_entropy, np.zeros((1, 8)))
    assert uniform == pytest.approx(np.log(8))


def test_excluded_categories_cost_nothing_and_spoil_nothing(autodiff, rng):
    a, b = rng.normal(size=(2, 3, 4))
    a[:, 1], b[:, 1] = -np.inf, -np.inf
    kept = [0, 2, 3]
    for function, inputs in ((o.categorical_kl, (a, b)), (o.categorical_entropy, (a,))):
        without = [x[:, kept] for x in inputs]
        np.testing.assert_allclose(
            autodiff.value(function, *inputs), autodiff.value(function, *without), rtol=1e-12
        )
        pairs = zip(
            autodiff.gradient(lambda *xs, f=function: f(*xs).sum(), *inputs),
            autodiff.gradient(lambda *xs, f=function: f(*xs).sum(), *without),
            strict=True,
        )
        for found, expected in pairs:
            np.testing.assert_allclose(found[:, kept], expected, rtol=1e-12, atol=1e-15)
            assert np.all(found[:, 1] == 0)
    one_sided = autodiff.value(o.categorical_kl, np.where(np.isinf(a), 0.0, a), b)
    assert np.all(np.isposinf(one_sided))


def test_no_gradient_is_spent_on_the_shift_of_the_logits():
    """The derivative of a maximum compares; a shift that cancels has no need of one."""
    logits = jnp.zeros((3, 4))
    text = str(jax.make_jaxpr(jax.grad(lambda x: o.categorical_entropy(x).sum()))(logits))
    assert "reduce_max" in text
    assert " eq " not in text
    pending = [o.categorical_entropy(torch.zeros((3, 4), requires_grad=True)).grad_fn]
    names = set()
    while pending:
        node = pending.pop()
        names.add(node.name())
        pending += [following for following, _ in node.next_functions if following is not None]
    assert "ExpBackward0" in names
    assert not [name for name in names if "max" in name.lower()]


def log_density(x, mean, log_std):
    return -0.5 * ((x - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)


def test_gaussian_forms_are_the_integrals(backend, rng):
    mean_p, log_std_p, mean_q, log_std_q = rng.normal(0, 0.7, size=(4, 6, 2))
    x = np.linspace(-60, 60, 200_001)
    kl, entropy = np.zeros(6), np.zeros(6)
    for i, j in np.ndindex(6, 2):
        log_p = log_density(x, mean_p[i, j], log_std_p[i, j])
        log_q = log_density(x, mean_q[i, j], log_std_q[i, j])
        kl[i] += np.trapezoid(np.exp(log_p) * (log_p - log_q), x)
        entropy[i] -= np.trapezoid(np.exp(log_p) * log_p, x)
    found = backend.value(o.diagonal_gaussian_kl, mean_p, log_std_p, mean_q, log_std_q)
    np.testing.assert_allclose(found, kl, rtol=1e-8)
    np.testing.assert_allclose(
        backend.value(o.diagonal_gaussian_entropy, log_std_p), entropy, rtol=1e-8
    )


def test_a_deviation_may_be_shared_by_all_states(backend, rng):
    mean_p, mean_q = rng.normal(size=(2, 6, 3))
    log_std_p, log_std_q = rng.normal(size=(2, 3))
    wide = [np.broadcast_to(x, (6, 3)).copy() for x in (log_std_p, log_std_q)]
    np.testing.assert_allclose(
        backend.value(o.diagonal_gaussian_kl, mean_p, log_std_p, mean_q, log_std_q),
        backend.value(o.diagonal_gaussian_kl, mean_p, wide[0], mean_q, wide[1]),
        rtol=1e-12,
    )


def test_tiny_gaussian_divergences_keep_their_digits(single):
    """log_std apart by 1e-3: KL is 1e-6, far below the rounding error of the terms it sums."""
    gap = np.full((1, 2), 2.0**-10)
    found = single.value(o.diagonal_gaussian_kl, gap, gap, gap, 0 * gap)
    exact = 2 * (0.5 * np.expm1(2.0**-9) - 2.0**-10)
    np.testing.assert_allclose(found, exact, rtol=2e-4)


def test_bernoulli_forms_are_the_categorical_ones_of_two(backend, rng):
    a, b = rng.normal(0, 4, size=(2, 5, 3))
    two_a, two_b = (np.stack([x, np.zeros_like(x)], -1) for x in (a, b))
    np.testing.assert_allclose(
        backend.value(o.bernoulli_kl, a, b), o.categorical_kl(two_a, two_b).sum(-1), rtol=1e-9
    )
    np.testing.assert_allclose(
        backend.value(o.bernoulli_entropy, a), o.categorical_entropy(two_a).sum(-1), rtol=1e-9
    )
    far = backend.value(o.bernoulli_kl, np.array([800.0]), np.array([-800.0]))
    assert far == pytest.approx(800.0)


def test_the_gradient_of_the_trust_region_vanishes_at_the_old_policy(autodiff, rng):
    a = rng.normal(size=(5, 4))
    for slope in autodiff.gradient(lambda x, y: o.categorical_kl(x, y).sum(), a, a.copy()):
        np.testing.assert_allclose(slope, 0, atol=1e-15)
    for slope in autodiff.gradient(
        lambda m, s: o.diagonal_gaussian_kl(m * 0 + 1.0, s * 0 - 0.5, m, s).sum(),
        np.ones((3, 2)),
        np.full((3, 2), -0.5),
    ):
        np.testing.assert_allclose(slope, 0, atol=1e-15)


LOGITS, REFERENCE = np.random.default_rng(0).normal(size=(2, 5))
POLICY = softmax(LOGITS)
LOG_REFERENCE = np.log(softmax(REFERENCE))
LOG_RATIO = np.log(POLICY) - LOG_REFERENCE
KL = (POLICY * LOG_RATIO).sum()


def test_values_of_the_estimators_by_enumeration(backend):
    k1, k2, k3 = (backend.value(k, LOG_RATIO) for k in (o.kl_k1, o.kl_k2, o.kl_k3))
    assert (POLICY * k1).sum() == pytest.approx(KL, rel=1e-12)
    assert (POLICY * k3).sum() == pytest.approx(KL, rel=1e-12)
    assert (POLICY * k2).sum() == pytest.approx((POLICY * LOG_RATIO**2).sum() / 2, rel=1e-12)
    assert abs((POLICY * k2).sum() - KL) > 0.01
    assert k1.min() < 0 <= min(k2.min(), k3.min())
    np.testing.assert_allclose(k3, np.exp(-LOG_RATIO) - 1 + LOG_RATIO, rtol=1e-10)


def expected_gradient(autodiff, estimator):
    """E over y ~ pi of the gradient of the estimator, taken as a loss."""

    def loss(logits):
        xp = array_namespace(logits)
        log_ratio = log_softmax(logits) - xp.asarray(LOG_REFERENCE)
        return xp.sum(xp.asarray(POLICY) * estimator(log_ratio))

    return autodiff.gradient(loss, LOGITS)[0]


def test_gradients_of_the_estimators_by_enumeration(autodiff):
    forward = autodiff.gradient(o.categorical_kl, LOGITS, REFERENCE)[0]
    backward = autodiff.gradient(o.categorical_kl, REFERENCE, LOGITS)[1]
    assert np.abs(forward - backward).max() > 0.05
    np.testing.assert_allclose(expected_gradient(autodiff, o.kl_k1), 0, atol=1e-15)
    np.testing.assert_allclose(expected_gradient(autodiff, o.kl_k2), forward, rtol=1e-10)
    np.testing.assert_allclose(expected_gradient(autodiff, o.kl_k3), backward, rtol=1e-10)


def test_only_k1_in_the_reward_has_the_gradient_of_a_sequences_kl(autodiff, rng):
    """Two tokens of three: the first token decides which distribution the second comes from."""
    first, second = rng.normal(size=3), rng.normal(size=(3, 3))
    ref_first, ref_second = rng.normal(size=3), rng.normal(size=(3, 3))
    log_pi = np.stack(
        np.broadcast_arrays(np.log(softmax(first))[:, None], np.log(softmax(second))), -1
    )
    log_ref = np.stack(
        np.broadcast_arrays(np.log(softmax(ref_first))[:, None], np.log(softmax(ref_second))), -1
    )
    chance = np.exp(log_pi.sum(-1))
    assert chance.sum() == pytest.approx(1)

    def tokens(a, b):
        """log pi of both tokens of every sequence; shape (3, 3, 2)."""
        xp = array_namespace(a)
        first_token = xp.broadcast_to(log_softmax(a)[:, None], (3, 3))
        return xp.stack([first_token, log_softmax(b)], axis=-1)

    def exact(a, b):
        xp = array_namespace(a)
        log_prob = tokens(a, b)
        gap = xp.sum(log_prob - xp.asarray(log_ref), axis=-1)
        return xp.sum(xp.exp(xp.sum(log_prob, axis=-1)) * gap)

    def in_reward(a, b):
        xp = array_namespace(a)
        to_go = o.discounted_return(o.kl_k1(log_pi - log_ref), 1.0, axis=-1)
        terms = o.policy_gradient(tokens(a, b), xp.asarray(to_go), reduction="none")
        return xp.sum(xp.asarray(chance[..., None]) * terms)

    def token_k2(a, b):
        xp = array_namespace(a)
        terms = o.kl_k2(tokens(a, b) - xp.asarray(log_ref))
        return xp.sum(xp.asarray(chance[..., None]) * terms)

    true = autodiff.gradient(exact, first, second)
    for found, expected in zip(autodiff.gradient(in_reward, first, second), true, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    # What the first token is paid does not depend on the second.
    reward = np.stack(np.broadcast_arrays(rng.normal(size=(3, 1)), rng.normal(size=(3, 3))), -1)

    def penalized(a, b):
        xp = array_namespace(a)
        charged = o.kl_penalized_reward(reward, log_pi - log_ref, 0.7)
        to_go = o.discounted_return(charged, 1.0, axis=-1)
        terms = o.policy_gradient(tokens(a, b), xp.asarray(to_go), reduction="none")
        return xp.sum(xp.asarray(chance[..., None]) * terms)

    def worth(a, b):
        xp = array_namespace(a)
        weight = xp.exp(xp.sum(tokens(a, b), axis=-1))
        return xp.sum(weight * xp.asarray(reward.sum(-1))) - 0.7 * exact(a, b)

    wanted = autodiff.gradient(worth, first, second)
    for found, expected in zip(autodiff.gradient(penalized, first, second), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    short = autodiff.gradient(token_k2, first, second)
    np.testing.assert_allclose(short[1], true[1], rtol=1e-9, atol=1e-12)
    assert np.abs(short[0] - true[0]).max() > 1e-2


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.006, 0.5), (0.0067, 1.0), (0.01, 1.0), (0.0149, 1.0), (0.016, 2.0), (np.nan, 1.0)],
)
def test_ppos_rule_halves_and_doubles(kl, expected, backend):
    found = backend.value(lambda b, k: o.ppo_adaptive_beta(b, k, 0.01), np.array(3.0), np.array(kl))
    assert found == pytest.approx(3.0 * expected)
    assert float(o.ppo_adaptive_beta(3.0, kl, 0.01)) == pytest.approx(3.0 * expected)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.01, 1.0), (0.019, 1.0), (0.021, 1 / 1.5), (9.0, 1 / 1.5), (0.006, 1.0), (0.004, 1.5)],
)
def test_the_step_size_follows_the_divergence(kl, expected, backend):
    found = backend.value(
        lambda r, k: o.kl_adaptive_step_size(r, k, 0.01), np.array(3.0), np.array(kl)
    )
    assert found == pytest.approx(3.0 * expected)
    assert float(o.kl_adaptive_step_size(3.0, kl, 0.01)) == pytest.approx(3.0 * expected)
    assert float(o.kl_adaptive_step_size(3.0, float("nan"), 0.01)) == 3.0


@pytest.mark.parametrize(
    ("kl", "error"), [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (60.0, 0.2), (0.0, -0.2), (-3.0, -0.2)]
)
def test_zieglers_rule_is_proportional_and_bounded(kl, error, backend):
    found = backend.value(
        lambda b, k: o.ziegler_adaptive_beta(b, k, 6.0, 512, 10_000), np.array(0.15), np.array(kl)
    )
    expected = 0.15 * (1 + error * 512 / 10_000)
    assert found == pytest.approx(expected, rel=1e-12)
    assert float(o.ziegler_adaptive_beta(0.15, kl, 6.0, 512, 10_000)) == pytest.approx(expected)


def test_zieglers_rule_never_comes_to_pay_for_leaving_the_reference():
    with pytest.raises(ValueError, match="horizon is 10 with n = 64: give more than n / 5"):
        o.ziegler_adaptive_beta(0.05, 0.0, 6.0, 64, 10)
    assert float(o.ziegler_adaptive_beta(0.05, 0.0, 6.0, 64, 13)) > 0


def test_a_price_is_a_plain_number_or_an_array_as_it_came(single):
    for rule in (
        lambda b, k: o.ppo_adaptive_beta(b, k, 0.01),
        lambda b, k: o.ziegler_adaptive_beta(b, k, 0.01, 8, 100),
    ):
        found = single.raw(rule, np.array(3.0), np.array(0.5))
        assert str(found.dtype).removeprefix("torch.") == "float32"
        assert isinstance(rule(3.0, 0.5), float)
