"""TRPO: the Fisher matrix is the Fisher matrix, and no step leaves the trust region."""

import functools
import itertools

import jax
import numpy as np
import pytest
from comparisons import mean_kl
from gymnasium import spaces
from jax import numpy as jnp
from jax.flatten_util import ravel_pytree
from test_methods import QUICK, learner_of, on_chain
from toy_environments import Copy

from tether.control.critic import batch
from tether.control.methods.trpo import compiled, fisher_product, fisher_rows
from tether.control.networks import forward
from tether.control.policy import PolicySpec

SEES = spaces.Box(-1, 1, (2,))


def test_the_fisher_matrix_sees_every_environment_and_every_time() -> None:
    for num_envs, every in itertools.product((1, 2, 5, 8, 10, 16, 20), (1, 2, 3, 4, 5, 8)):
        horizon = 40
        chosen = np.arange(horizon * num_envs)[fisher_rows(horizon * num_envs, num_envs, every)]
        assert abs(len(chosen) - horizon * num_envs / every) < num_envs
        by_environment = np.bincount(chosen % num_envs, minlength=num_envs)
        assert by_environment.max() - by_environment.min() <= 1, (num_envs, every)
        first, last = chosen.min() // num_envs, chosen.max() // num_envs
        assert first < every
        assert last >= horizon - every
    # Where the flat order mixes environments by itself it stays what it was.
    np.testing.assert_array_equal(np.arange(1024)[fisher_rows(1024, 16, 5)], np.arange(0, 1024, 5))


@pytest.mark.parametrize(
    "space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)], ids=str
)
def test_the_fisher_product_is_that_of_the_explicit_matrix(space: spaces.Space) -> None:
    rng = np.random.default_rng(0)
    spec = PolicySpec.of(SEES, space, (3,), False)
    parameters = jax.tree.map(
        lambda p: (p + 0.3 * rng.normal(size=p.shape)).astype(np.float32), spec.init(rng, -0.4)
    )
    theta, unravel = ravel_pytree(parameters)
    observation = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    outputs = lambda flat: forward(unravel(flat).network, observation)  # noqa: E731
    jacobian = np.asarray(jax.jacobian(outputs)(theta), np.float64)  # (5, outputs, P)
    if isinstance(space, spaces.Box):
        # The score of a mean is (a - mu) / sigma^2, that of a log deviation z^2 - 1, of variance 2.
        precision = np.exp(-2 * parameters.log_std.astype(np.float64))
        fisher = np.einsum("sap,a,saq->pq", jacobian, precision, jacobian) / 5
        stds = np.asarray(jax.jacobian(lambda flat: unravel(flat).log_std)(theta), np.float64)
        fisher += 2 * stds.T @ stds
    elif isinstance(space, spaces.MultiBinary):
        p = 1 / (1 + np.exp(-np.asarray(outputs(theta), np.float64)))
        fisher = np.einsum("sap,sa,saq->pq", jacobian, p * (1 - p), jacobian) / 5
    else:
        logits = np.asarray(outputs(theta), np.float64)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        score = jacobian - np.einsum("sa,sap->sp", p, jacobian)[:, None]
        fisher = np.einsum("sa,sap,saq->pq", p, score, score) / 5
    product = jax.jit(fisher_product(spec, parameters, observation))
    ours = np.stack([product(v) for v in np.eye(theta.size, dtype=np.float32)])
    np.testing.assert_allclose(ours, fisher, rtol=1e-3, atol=1e-5)


BOX = functools.partial(Copy, spaces.Box(-1, 1, (2,)))


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_no_step_leaves_the_trust_region(kind: str) -> None:
    # Without damping, and this far, the quadratic model alone would often lead outside.
    far = {"max_kl": 0.3, "damping": 0.0, "fisher_every": 1}
    if kind == "gaussian":
        learner = learner_of("trpo", BOX, **{**QUICK["trpo"], **far, "gamma": 0.5})
    else:
        learner = on_chain("trpo", **far)
    taken, backtracks = [], 0
    for _ in range(20):
        rollout = learner.collector.collect(32)
        seen = rollout.observation.reshape(256, -1)
        before = learner.policy.distribution(seen)
        metrics = learner.update(rollout)
        kl = mean_kl(before, learner.policy.distribution(seen))
        assert kl <= 0.3 * (1 + 1e-3)
        assert metrics["policy/kl"] == pytest.approx(kl, rel=1e-3, abs=1e-6)
        assert (kl > 0) == bool(metrics["trust_region/accepted"])
        if metrics["trust_region/accepted"]:
            assert metrics["trust_region/improvement"] > 0
            taken.append(kl)
            backtracks += metrics["trust_region/backtracks"]
    # The region is used, not merely respected.
    assert np.mean(taken) > 0.06
    assert backtracks > 0


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_no_step_for_less_than_the_least_improvement(scale: float) -> None:
    # The same advantages a thousand times smaller: the same step, for a thousandth of the gain.
    learner = on_chain("trpo", min_improvement=0.0, normalize_reward=False)
    rollout = learner.collector.collect(32)
    data = batch(rollout)
    advantage = np.asarray(learner.critic.judge(data).advantage) * scale
    old = learner.policy.parameters

    def gain(least: float) -> tuple[bool, float]:
        radius = np.sqrt(2 * learner.config.max_kl)
        config = learner.config.model_copy(update={"min_improvement": least / radius})
        new, metrics = compiled(config, learner.spec)(old, data, advantage)
        pi, pi_old = (learner.spec.distribution(p, data.observation) for p in (new, old))
        ratio = np.exp(np.asarray(pi.log_prob(data.action) - pi_old.log_prob(data.action)))
        rise = float(np.mean((ratio - 1) * (advantage - advantage.mean())))
        assert float(metrics["trust_region/improvement"]) == pytest.approx(rise, rel=1e-2, abs=1e-9)
        return bool(metrics["trust_region/accepted"]), rise

    accepted, rise = gain(0.0)
    assert accepted
    assert rise > 0
    assert gain(0.9 * rise) == (True, pytest.approx(rise, rel=1e-3))
    # Shorter candidates gain less still.
    assert gain(1.1 * rise) == (False, 0.0)


def test_a_failed_line_search_takes_no_step_and_is_counted() -> None:
    # One candidate, so long that the quadratic model means nothing.
    learner, failures = on_chain("trpo", max_kl=3.0, backtracks=1, damping=0.0), 0
    for _ in range(15):
        before = learner.policy.state()["parameters"]
        metrics = learner.iterate()
        after = learner.policy.state()["parameters"]
        same = all(
            np.asarray(a).tobytes() == np.asarray(b).tobytes()
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        )
        assert same == (metrics["trust_region/accepted"] == 0.0)
        failures += same
        assert metrics["trust_region/failures"] == failures
        if same:
            assert metrics["policy/kl"] == metrics["trust_region/improvement"] == 0.0
            assert metrics["trust_region/backtracks"] == 1
    assert 0 < failures < 15
    fresh = on_chain("trpo", max_kl=3.0, backtracks=1, damping=0.0)
    fresh.restore(learner.state())
    assert fresh.failures == failures


def test_images_go_through_the_second_derivative() -> None:
    rng = np.random.default_rng(0)
    spec = PolicySpec.of(spaces.Box(0, 255, (8, 8, 1), np.uint8), spaces.Discrete(4), (8,), False)
    parameters = spec.init(rng, 0.0)
    theta, unravel = ravel_pytree(parameters)
    observation = jnp.asarray(rng.integers(0, 256, (5, 8, 8, 1)), jnp.uint8)
    v = rng.normal(size=theta.size).astype(np.float32)
    outputs = lambda flat: forward(unravel(flat).network, observation)  # noqa: E731
    logits, along = jax.jit(lambda v: jax.jvp(outputs, (theta,), (v,)))(v)
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    # v F v is the variance of the score along v.
    variance = (p * along**2).sum(-1) - (p * along).sum(-1) ** 2
    ours = v @ np.asarray(jax.jit(fisher_product(spec, parameters, observation))(v))
    assert ours == pytest.approx(float(variance.mean()), rel=1e-3)
    assert ours > 0
