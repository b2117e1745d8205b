"""The study of lambda: its exact biases against sampled episodes and other ways to them."""

import json

import numpy as np
import pytest

from tether import cli
from tether.studies import finite_mdp, gae_lambda

GAMMA = 0.9


@pytest.fixture(scope="module")
def table():
    return finite_mdp.table_of("FrozenLake-v1", 0.1)


@pytest.fixture(scope="module")
def policy(table):
    return finite_mdp.softmax(np.random.default_rng(3).normal(size=table.reward.shape))


@pytest.fixture(scope="module")
def critic(table, policy):
    v, _ = finite_mdp.values(table, policy, GAMMA)
    return v + np.random.default_rng(4).normal(size=v.shape)


def test_lambda_one_leaves_the_gradient_unbiased_whatever_the_critic(table, policy, critic) -> None:
    truth = finite_mdp.true_gradient(table, policy, GAMMA)
    assert gae_lambda.expected_gradient(table, policy, critic, GAMMA, 1.0) == pytest.approx(truth)
    with_less = gae_lambda.expected_gradient(table, policy, critic, GAMMA, 0.9)
    assert np.abs(with_less - truth).max() > 0.01 * np.abs(truth).max()


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_an_exact_critic_leaves_it_unbiased_whatever_lambda(table, policy, lam: float) -> None:
    v, q = finite_mdp.values(table, policy, GAMMA)
    advantage = gae_lambda.expected_advantage(table, policy, v, GAMMA, lam)
    assert advantage == pytest.approx(q - v[:, None], abs=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_the_exact_mean_is_that_of_sampled_episodes(table, policy, critic, lam: float) -> None:
    episodes = finite_mdp.sample(table, policy, 30_000, np.random.default_rng(5))
    each = gae_lambda.sampled_gradients(policy, episodes, critic, GAMMA, lam)
    exact = gae_lambda.expected_gradient(table, policy, critic, GAMMA, lam)
    deviation = each.std(0) / len(each) ** 0.5
    assert (np.abs(each.mean(0) - exact) <= 4.5 * deviation + 1e-12).all()
    assert np.abs(exact).max() > 5 * deviation.max()


def test_the_command_finds_a_smaller_lambda_for_a_better_critic(tmp_path) -> None:
    settings = "--episodes 256 --critics 2 --step-costs 0.1 --lambdas 0 0.5 0.95 1"
    options = [*settings.split(), "--critic-errors", "0", "1", "--workers", "1"]
    assert cli.main(["study", "lambda", "--out", str(tmp_path), *options]) == 0
    found = json.loads((tmp_path / "lambda.json").read_text())
    for best in found["best_lambda"].values():
        assert best["0"]["4096"] < best["1"]["4096"]
    for result in found["policies"].values():
        bias = [point["squared_bias"] for point in result["points"]["1"]]
        assert bias == sorted(bias, reverse=True)
        assert bias[-1] < 1e-12 < bias[0]
    assert (tmp_path / "lambda.png").stat().st_size > 10_000
