"""Finite Markov decision processes out of Gymnasium's tables: solved exactly, sampled quickly."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import gymnasium as gym
import numpy as np

from tether.errors import UserError

LONGEST: Final = 20_000
"""Steps after which an episode that has not ended is an error: the table never leads out."""


class Table(NamedTuple):
    """A finite Markov decision process: S states, A actions, at most K outcomes of each.

    Attributes:
        follows: (S, A, S) probability of what follows; with the rest the episode ends.
        reward: (S, A) expected reward.
        start: (S,) probability of beginning there.
        chance: (S, A, K) probability of an outcome.
        state: (S, A, K) the state it leads to.
        gain: (S, A, K) its reward.
        end: (S, A, K) whether the episode ends with it.
    """

    follows: np.ndarray
    reward: np.ndarray
    start: np.ndarray
    chance: np.ndarray
    state: np.ndarray
    gain: np.ndarray
    end: np.ndarray


class Episodes(NamedTuple):
    """Whole episodes, padded to the longest: (T, E)."""

    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    alive: np.ndarray


def table_of(env_id: str, step_cost: float = 0.0) -> Table:
    """The transitions of a Gymnasium environment, every step costing `step_cost`.

    Raises:
        UserError: no such environment, or one without a table.
    """
    try:
        env: Any = gym.make(env_id).unwrapped
    except gym.error.Error as error:
        raise UserError(f"cannot make {env_id}: {error}") from error
    if not hasattr(env, "P") or not hasattr(env, "initial_state_distrib"):
        raise UserError(f"{env_id} has no table of transitions; expected one such as FrozenLake-v1")
    states, actions = int(env.observation_space.n), int(env.action_space.n)
    most = max(len(env.P[s][a]) for s in range(states) for a in range(actions))
    shape = (states, actions, most)
    chance, gain = np.zeros(shape), np.zeros(shape)
    state, end = np.zeros(shape, np.int64), np.ones(shape, bool)
    for s in range(states):
        for a in range(actions):
            for k, (p, follows, reward, done) in enumerate(env.P[s][a]):
                chance[s, a, k], state[s, a, k] = p, follows
                gain[s, a, k], end[s, a, k] = reward - step_cost, done
    follows = np.zeros((states, actions, states))
    places = np.indices(shape)
    np.add.at(follows, (places[0], places[1], state), chance * ~end)
    start = np.asarray(env.initial_state_distrib, float)
    return Table(follows, (chance * gain).sum(-1), start, chance, state, gain, end)


def softmax(logits: np.ndarray) -> np.ndarray:
    """pi(a|s) of logits (S, A)."""
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    policy: np.ndarray = exponents / exponents.sum(-1, keepdims=True)
    return policy


def values(table: Table, policy: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """V (S,) and Q (S, A) of a policy (S, A), by solving Bellman's equations."""
    follows = np.einsum("sa,sat->st", policy, table.follows)
    reward = (policy * table.reward).sum(-1)
    v = np.linalg.solve(np.eye(len(reward)) - gamma * follows, reward)
    return v, table.reward + gamma * table.follows @ v


def discounted_visits(table: Table, policy: np.ndarray, gamma: float) -> np.ndarray:
    """Expected sum over t of gamma^t [s_t = s], (S,)."""
    follows = np.einsum("sa,sat->st", policy, table.follows)
    visits: np.ndarray = np.linalg.solve(np.eye(len(table.start)) - gamma * follows.T, table.start)
    return visits


def true_gradient(table: Table, policy: np.ndarray, gamma: float) -> np.ndarray:
    """dJ/dlogits, (S, A): sum_s d(s) pi(a|s) A(s, a), d the discounted visits of a state."""
    visits = discounted_visits(table, policy, gamma)
    v, q = values(table, policy, gamma)
    gradient: np.ndarray = visits[:, None] * policy * (q - v[:, None])
    return gradient


def best_return(table: Table, gamma: float) -> float:
    """J of the best policy, by value iteration."""
    v = np.zeros(len(table.start))
    for _ in range(10_000):
        better = (table.reward + gamma * table.follows @ v).max(-1)
        if np.abs(better - v).max() < 1e-12:
            break
        v = better
    return float(table.start @ v)


def half_way(table: Table, gamma: float) -> np.ndarray:
    """Logits (S, A) by exact natural gradients, half-way from the uniform policy's return."""
    logits = np.zeros(table.reward.shape)
    start = float(table.start @ values(table, softmax(logits), gamma)[0])
    goal = 0.5 * (start + best_return(table, gamma))
    for _ in range(100_000):
        policy = softmax(logits)
        v, q = values(table, policy, gamma)
        if table.start @ v >= goal:
            break
        # The natural gradient of a softmax over a table is the advantage (Kakade 2002).
        logits = logits + 0.05 * (q - v[:, None]) / max(1e-12, float(np.abs(q - v[:, None]).max()))
    return logits


def sample(table: Table, policy: np.ndarray, episodes: int, rng: np.random.Generator) -> Episodes:
    """Whole episodes of a policy (S, A)."""
    state = rng.choice(len(table.start), episodes, p=table.start)
    alive = np.ones(episodes, bool)
    choose, happen = policy.cumsum(-1), table.chance.cumsum(-1)
    steps: list[tuple[np.ndarray, ...]] = []
    while alive.any():
        if len(steps) == LONGEST:
            raise UserError(f"an episode did not end within {LONGEST} steps; choose another env")
        action = _drawn(choose[state], rng)
        outcome = _drawn(happen[state, action], rng)
        reward = np.where(alive, table.gain[state, action, outcome], 0.0)
        steps.append((state, action, reward, alive))
        ended = table.end[state, action, outcome]
        state = np.where(alive, table.state[state, action, outcome], state)
        alive = alive & ~ended
    return Episodes(*(np.stack(column) for column in zip(*steps, strict=True)))


def score_sums(
    policy: np.ndarray, state: np.ndarray, action: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Sum over t of weight grad log pi(a_t|s_t), (E, S, A); grad log pi = 1_a - pi(.|s)."""
    episodes, (states, actions) = state.shape[1], policy.shape
    episode = np.broadcast_to(np.arange(episodes), state.shape)
    place = (episode * states + state) * actions + action
    flat = np.bincount(place.ravel(), weight.ravel(), episodes * states * actions)
    sums = flat.reshape(episodes, states, actions)
    scores: np.ndarray = sums - sums.sum(-1, keepdims=True) * policy
    return scores


def _drawn(cumulative: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One index for each row of cumulative probabilities (E, K)."""
    below = rng.random(len(cumulative))[:, None] * cumulative[:, -1:] >= cumulative
    drawn: np.ndarray = np.minimum(below.sum(-1), cumulative.shape[1] - 1)
    return drawn
