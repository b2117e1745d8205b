"""Collecting experience: the policy acts in a vector of environments for a number of steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tether.control.envs import Step, VectorEnv
from tether.control.initial_policy import InitialPolicy
from tether.control.normalization import RewardScaler
from tether.control.policy import Policy
from tether.errors import BadEnvironmentError


class Rollout(NamedTuple):
    """Partial trajectories of N environments over T steps, time first.

    Attributes:
        observation: (T, N, *obs), normalized, as the policy saw them.
        raw_observation: (T, N, *obs), the same before normalization.
        action: (T, N, *act), as the policy chose them (Box actions before clipping).
        reward: (T, N) float32, as learned from: clipped, charged for leaving the initial policy and
            scaled where the method does so.
        terminated: (T, N) bool; nothing follows, so nothing is bootstrapped.
        truncated: (T, N) bool; cut by a time limit: the value of what would have followed counts.
        last_observation: (N, *obs); what follows the last step.
        cut_observation: (S, *obs); the true last observations of truncated episodes.
        cut_index: (S,) int32; the flat index t * N + n each belongs to, T * N for unused slots.
        episode_returns: undiscounted, unscaled returns of the episodes that ended, in their order;
            those that were shortened to stagger the environments are left out.
        episode_lengths: their lengths in environment steps.
        episode_true_returns: their undiscounted sums of the true reward; None where the
            environments do not report it.
        episode_statistics: what the environments said of each at its end.
    """

    observation: np.ndarray
    raw_observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    last_observation: np.ndarray
    cut_observation: np.ndarray
    cut_index: np.ndarray
    episode_returns: np.ndarray
    episode_lengths: np.ndarray
    episode_true_returns: np.ndarray | None = None
    episode_statistics: tuple[Mapping[str, float], ...] = ()


class _Ended(NamedTuple):
    """Where (t, n) whole episodes ended, and what they came to."""

    places: list[tuple[int, int]]
    returns: Any
    true_returns: Any
    lengths: Any


class Experience(NamedTuple):
    """What truly happened in a rollout of N environments over T steps: nothing is normalized.

    Attributes:
        observation: (T, N, *obs), before each step.
        action: (T, N, *act), as the environment took them.
        next_observation: (T, N, *obs), what followed each step, before any reset.
        reward: (T, N) float64.
        terminated: (T, N) bool.
        truncated: (T, N) bool.
        coordinates: (T, N, nq + nv), MuJoCo's positions and velocities before each step; of no
            width where the environments have none.
    """

    observation: np.ndarray
    action: np.ndarray
    next_observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    coordinates: np.ndarray


Judge: TypeAlias = Callable[[Experience], np.ndarray | None]
"""Pays for experience: rewards (T, N) in place of the environment's, or None for no pay at all."""


class Collector:
    """Steps a vector environment with a policy and remembers where every episode stands.

    Attributes:
        judge: gives the rewards that the policy learns from, in place of the environment's; the
            returns of episodes are the environment's all the same. None: the environment's.
    """

    def __init__(
        self,
        env: VectorEnv,
        policy: Policy,
        rng: np.random.Generator,
        reward_scaler: RewardScaler | None = None,
        *,
        clip_reward: float | None = None,
        initial: InitialPolicy | None = None,
        initial_kl_coefficient: float = 0.0,
    ) -> None:
        self.env = env
        self.policy = policy
        self.reward_scaler = reward_scaler
        self.judge: Judge | None = None
        self.clip_reward = clip_reward
        self.initial = initial
        self.initial_kl_coefficient = initial_kl_coefficient
        self.steps = 0
        self._rng = rng
        self._slots = env.num_envs
        self._returns = np.zeros(env.num_envs)
        self._true_returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, np.int64)

    def reset(self, seed: int | Sequence[int], *, stagger: bool = False) -> None:
        """Start the first episodes; environment i gets `seed` + i or `seed[i]`.

        With `stagger` the first episodes are cut at different times, and not counted as episodes;
        see :meth:`tether.control.envs.VectorEnv.reset`.
        """
        self._observation = self.env.reset(seed, stagger=stagger).copy()

    def collect(self, horizon: int) -> Rollout:
        """Act for `horizon` steps in every environment.

        Raises:
            BadEnvironmentError: an observation or a reward is NaN or infinite.
        """
        env, policy, head = self.env, self.policy, self.policy.spec.head
        space, count = policy.spec.observation_space, env.num_envs
        raw = np.empty((horizon, count, *space.shape), space.dtype)
        vector = raw.ndim == 3
        seen = np.empty(raw.shape, np.float32 if vector else raw.dtype)
        action = np.empty((horizon, count, *head.shape), head.dtype)
        reward = np.empty((horizon, count))
        truth: np.ndarray | None = None
        said: dict[tuple[int, int], Mapping[str, float]] = {}
        terminated = np.empty((horizon, count), bool)
        truncated = np.empty((horizon, count), bool)
        shortened = np.empty((horizon, count), bool)
        cut: list[tuple[int, np.ndarray]] = []
        noise = head.noise(self._rng, (horizon, count))
        watch = _Watch(env, horizon) if self.judge is not None else None

        observation = self._observation
        for t in range(horizon):
            raw[t] = observation
            seen[t] = policy.normalize(raw[t])
            action[t] = policy.distribution(seen[t]).sample(noise[t])
            chosen = head.to_environment(action[t])
            if watch is not None:
                watch.before(t, chosen)
            step = env.step(chosen)
            observation = step.observation
            reward[t], terminated[t], truncated[t] = step.reward, step.terminated, step.truncated
            shortened[t] = step.shortened
            if step.true_reward is not None:
                if truth is None:
                    truth = np.zeros((horizon, count))
                truth[t] = step.true_reward
            if step.final_observation is not step.observation:
                only_cut = step.truncated & ~step.terminated
                for n in np.flatnonzero(only_cut):
                    cut.append((t * count + int(n), step.final_observation[n].copy()))
                said.update({(t, n): numbers for n, numbers in step.statistics.items()})
                if watch is not None:
                    watch.ended(t, step)

        self._observation = observation.copy()
        if vector:
            self._check_observations(raw, cut)
        self._check_finite("reward", reward, 0)
        done = terminated | truncated
        ended = self._episodes(reward, truth, done, shortened)
        cut_observation, cut_index = self._cut(cut, horizon * count, space.shape, raw.dtype)
        paid: np.ndarray | None = reward
        if watch is not None and self.judge is not None:
            following = np.concatenate([raw[1:], self._observation[None]])
            paid = self.judge(watch.experience(raw, following, reward, terminated, truncated))
        learned = None if paid is None else self._learned(paid, raw, seen, action)
        rollout = Rollout(
            observation=seen,
            raw_observation=raw,
            action=action,
            reward=self._scaled(learned, done),
            terminated=terminated,
            truncated=truncated,
            last_observation=policy.normalize(self._observation),
            cut_observation=policy.normalize(cut_observation),
            cut_index=cut_index,
            episode_returns=ended.returns,
            episode_lengths=ended.lengths,
            episode_true_returns=ended.true_returns if truth is not None else None,
            episode_statistics=tuple(said.get(place, {}) for place in ended.places),
        )
        if policy.normalizer is not None:
            policy.normalizer.update(raw.reshape(-1, *space.shape))
        self.steps += horizon * count
        return rollout

    def _learned(
        self, reward: np.ndarray, raw: np.ndarray, seen: np.ndarray, action: np.ndarray
    ) -> np.ndarray:
        """The rewards that are learned from, (T, N), before they are scaled."""
        if self.clip_reward is not None:
            reward = np.clip(reward, -self.clip_reward, self.clip_reward)
        price = self.initial_kl_coefficient
        if self.initial is not None and price:
            reward = self.initial.penalized(reward, self.policy, raw, seen, action, price)
        return reward

    def state(self) -> dict[str, Any]:
        """Everything that decides the next rollout, but for the policy and the generator."""
        return {
            "env": self.env.state(),
            "steps": self.steps,
            "slots": self._slots,
            "returns": self._returns.copy(),
            "true_returns": self._true_returns.copy(),
            "lengths": self._lengths.copy(),
            "reward_scaler": self.reward_scaler.state() if self.reward_scaler else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`: the environments continue in the middle of their episodes."""
        self._observation = self.env.restore(state["env"]).copy()
        self.steps = int(state["steps"])
        self._slots = int(state["slots"])
        self._returns = np.array(state["returns"])
        # Absent from the first checkpoints, whose environments reported none.
        self._true_returns = np.array(state.get("true_returns", np.zeros_like(self._returns)))
        self._lengths = np.array(state["lengths"])
        if self.reward_scaler is not None:
            self.reward_scaler.restore(state["reward_scaler"])

    def _scaled(self, reward: np.ndarray | None, done: np.ndarray) -> np.ndarray:
        """Rewards as the method takes them; where nothing is paid, no statistics see it."""
        if reward is None:
            return np.zeros(done.shape, np.float32)
        if self.reward_scaler is None:
            return reward.astype(np.float32)
        return self.reward_scaler(reward, done)

    def _episodes(
        self, reward: np.ndarray, truth: np.ndarray | None, done: np.ndarray, shortened: np.ndarray
    ) -> _Ended:
        """The whole episodes that ended; what is left runs on."""
        ended, start = _Ended([], [], [], []), np.zeros(self.env.num_envs, np.int64)
        true = np.zeros_like(reward) if truth is None else truth
        for t, n in zip(*(place.tolist() for place in np.nonzero(done)), strict=True):
            first = start[n]
            if not shortened[t, n]:
                ended.places.append((t, n))
                ended.returns.append(self._returns[n] + reward[first : t + 1, n].sum())
                ended.true_returns.append(self._true_returns[n] + true[first : t + 1, n].sum())
                ended.lengths.append(self._lengths[n] + t + 1 - first)
            start[n], self._returns[n], self._lengths[n] = t + 1, 0.0, 0
            self._true_returns[n] = 0.0
        horizon = len(reward)
        running = np.arange(horizon)[:, None] >= start
        self._returns += np.where(running, reward, 0.0).sum(axis=0)
        self._true_returns += np.where(running, true, 0.0).sum(axis=0)
        self._lengths += horizon - start
        return _Ended(
            ended.places,
            np.array(ended.returns, float),
            np.array(ended.true_returns, float),
            np.array(ended.lengths, np.int64),
        )

    def _cut(
        self, cut: list[tuple[int, np.ndarray]], unused: int, shape: tuple[int, ...], dtype: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Final observations of truncated episodes in a fixed number of slots.

        The number of slots doubles when it does not suffice, so that the compiled update sees few
        shapes; it is part of the state, since another shape may round differently.
        """
        while len(cut) > self._slots:
            self._slots *= 2
        observations = np.zeros((self._slots, *shape), dtype)
        index = np.full(self._slots, unused, np.int32)
        for slot, (position, observation) in enumerate(cut):
            observations[slot], index[slot] = observation, position
        return observations, index

    def _check_observations(self, raw: np.ndarray, cut: list[tuple[int, np.ndarray]]) -> None:
        followed = (self._observation, *(observation for _, observation in cut))
        if all(np.isfinite(array).all() for array in (raw, *followed)):
            return
        # Row t + 1 is what step t returned; row 0 came before this rollout.
        returned = np.concatenate([raw, self._observation[None]])
        for position, observation in cut:
            if not np.isfinite(observation).all():
                t, n = divmod(position, self.env.num_envs)
                returned[t + 1, n] = observation
        self._check_finite("observation", returned, -1)

    def _check_finite(self, name: str, array: np.ndarray, first: int) -> None:
        """Raise unless all is finite; `first` is the step of this rollout that gave array[0]."""
        if np.isfinite(array).all():
            return
        t, n = (int(i) for i in np.argwhere(~np.isfinite(array))[0][:2])
        value = array[t, n][~np.isfinite(array[t, n])].ravel()[0]
        step = self.steps + max(0, t + first) * self.env.num_envs + n
        raise BadEnvironmentError(
            f"{self.env.id} returned {value} in its {name} at step {step} (environment {n}); "
            "training stopped before learning from it"
        )


class _Watch:
    """Notes of a rollout what only a judge needs."""

    def __init__(self, env: VectorEnv, horizon: int) -> None:
        self._coordinates = getattr(env, "coordinates", np.empty((env.num_envs, 0)))
        self._before = np.empty((horizon, *self._coordinates.shape))
        self._action: list[np.ndarray] = []
        self._ends: list[tuple[int, np.ndarray, np.ndarray]] = []

    def before(self, t: int, action: np.ndarray) -> None:
        self._before[t] = self._coordinates
        self._action.append(action.copy())

    def ended(self, t: int, step: Step) -> None:
        ended = step.terminated | step.truncated
        self._ends.append((t, ended, step.final_observation[ended].copy()))

    def experience(
        self,
        observation: np.ndarray,
        following: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> Experience:
        for t, ended, final in self._ends:
            following[t, ended] = final
        action = np.stack(self._action)
        return Experience(
            observation, action, following, reward, terminated, truncated, self._before
        )
