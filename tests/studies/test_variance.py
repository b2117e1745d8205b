"""The study of variance: its exact values and gradients against other ways to them."""

import json

import gymnasium as gym
import numpy as np
import pytest

from tether.errors import UserError
from tether.studies import finite_mdp, variance

GAMMA = 0.9


@pytest.fixture(scope="module")
def table():
    return finite_mdp.table_of("FrozenLake-v1")


@pytest.fixture
def policy(table):
    logits = np.random.default_rng(3).normal(size=table.reward.shape)
    return finite_mdp.softmax(logits)


class TestTable:
    def test_every_action_leads_somewhere(self, table) -> None:
        assert table.chance.sum(-1) == pytest.approx(1.0)
        assert table.start.sum() == pytest.approx(1.0)

    def test_values_are_bellmans_by_iteration(self, table, policy) -> None:
        v = np.zeros(len(table.start))
        for _ in range(400):
            q = table.reward + GAMMA * table.follows @ v
            v = (policy * q).sum(-1)
        solved_v, solved_q = finite_mdp.values(table, policy, GAMMA)
        assert solved_v == pytest.approx(v, abs=1e-12)
        assert solved_q == pytest.approx(q, abs=1e-12)

    def test_gradient_is_the_derivative_of_the_return(self, table) -> None:
        logits = np.random.default_rng(4).normal(size=table.reward.shape)

        def value(at):
            return table.start @ finite_mdp.values(table, finite_mdp.softmax(at), GAMMA)[0]

        numeric = np.zeros_like(logits)
        for place in np.ndindex(logits.shape):
            nudge = np.zeros_like(logits)
            nudge[place] = 1e-5
            numeric[place] = (value(logits + nudge) - value(logits - nudge)) / 2e-5
        exact = finite_mdp.true_gradient(table, finite_mdp.softmax(logits), GAMMA)
        assert exact == pytest.approx(numeric, abs=1e-9)

    def test_best_return_is_that_of_the_greedy_policy(self, table) -> None:
        """The known value of the slippery lake without discount is 0.82353; 14 / 17."""
        assert finite_mdp.best_return(table, 1 - 1e-9) == pytest.approx(14 / 17, abs=1e-4)

    def test_half_way_is_half_way(self, table) -> None:
        policy = finite_mdp.softmax(finite_mdp.half_way(table, 0.99))
        reached = table.start @ finite_mdp.values(table, policy, 0.99)[0]
        uniform = np.full(table.reward.shape, 0.25)
        start = table.start @ finite_mdp.values(table, uniform, 0.99)[0]
        middle = 0.5 * (start + finite_mdp.best_return(table, 0.99))
        assert reached == pytest.approx(middle, rel=0.05)

    def test_episodes_are_gymnasiums(self, table, policy) -> None:
        """Their mean return is the solved one, and every transition is in Gymnasium's table."""
        episodes = finite_mdp.sample(table, policy, 4000, np.random.default_rng(0))
        discounted = (GAMMA ** np.arange(len(episodes.reward))[:, None] * episodes.reward).sum(0)
        expected = table.start @ finite_mdp.values(table, policy, GAMMA)[0]
        error = discounted.std() / np.sqrt(discounted.size)
        assert abs(discounted.mean() - expected) < 4 * error
        env = gym.make("FrozenLake-v1").unwrapped
        for t in range(len(episodes.state) - 1):
            for e in np.flatnonzero(episodes.alive[t + 1])[:5]:
                s, a, after = episodes.state[t, e], episodes.action[t, e], episodes.state[t + 1, e]
                assert any(after == follows for _, follows, _, done in env.P[s][a] if not done)

    def test_no_table_is_said(self) -> None:
        with pytest.raises(UserError, match="CartPole-v1 has no table of transitions"):
            finite_mdp.table_of("CartPole-v1")
        with pytest.raises(UserError, match="cannot make Lake-v9"):
            finite_mdp.table_of("Lake-v9")


def test_every_weight_has_the_true_gradient_as_its_mean(policy) -> None:
    """And less and less variance, from the whole return to the advantage."""
    table = finite_mdp.table_of("FrozenLake-v1", step_cost=0.1)
    truth = finite_mdp.true_gradient(table, policy, GAMMA).ravel()
    episodes = finite_mdp.sample(table, policy, 40_000, np.random.default_rng(1))
    spread = {}
    for name, each in variance.gradients(table, policy, episodes, GAMMA).items():
        flat = each.reshape(len(each), -1)
        error = flat.std(0) / np.sqrt(len(flat))
        apart = np.abs(flat.mean(0) - truth)
        assert (apart < 5 * error + 1e-12).all(), name
        spread[name] = flat.var(0).sum()
    assert spread["return"] > spread["reward-to-go"] > spread["q"] > spread["advantage"]
    assert spread["reward-to-go"] > spread["baseline"] > spread["advantage"]


def test_command_is_repeated_to_the_bit(tmp_path, capsys) -> None:
    options = ["--batch-sizes", "1", "4", "--episodes", "600", "--workers", "1", "--json"]
    found = []
    for name in ("one", "two"):
        variance.command(["--out", str(tmp_path / name), *options])
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        assert (tmp_path / name / "variance.png").stat().st_size > 10_000
    assert found[0] == found[1]
    for policy in found[0]["episodes_needed"].values():
        assert policy["advantage"] == 1.0
        assert policy["return"] > 1.0
    # Averaging four episodes takes three quarters of the variance away.
    for result in found[0]["policies"].values():
        one, four = (point["variance"] for point in result["points"]["advantage"])
        assert four == pytest.approx(one / 4, rel=0.35)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 60)])
def test_batches_that_have_no_variance_are_refused(sizes) -> None:
    with pytest.raises(UserError, match=r"batch_sizes has (0|60).*from 1 to 50"):
        variance.VarianceConfig.load({"episodes": 100, "batch_sizes": sizes})
