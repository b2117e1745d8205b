"""Running normalization of observations and rewards.

Statistics are frozen while a rollout is collected and updated between rollouts, so the policy
that acted and the policy that learns see the same numbers, bit for bit. They live in the policy's
own checkpoint: a policy without the statistics it was trained under is another policy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tether.objectives import reverse_linear_recurrence


class RunningMoments:
    """Mean and variance of a stream of batches (Chan, Golub and LeVeque 1979), in float64."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean = np.zeros(shape)
        self.variance = np.ones(shape)
        self.count = 0.0

    def update(self, batch: np.ndarray) -> None:
        """Take in `batch` (B, *shape)."""
        # float32 observations too are summed in float64: NumPy adds along axis 0 one by one.
        mean, variance = batch.mean(axis=0, dtype=float), batch.var(axis=0, dtype=float)
        count = batch.shape[0]
        total = self.count + count
        delta = mean - self.mean
        if self.count == 0:
            self.mean, self.variance = mean, variance
        else:
            self.variance = (
                self.variance * self.count
                + variance * count
                + delta**2 * (self.count * count / total)
            ) / total
            self.mean = self.mean + delta * (count / total)
        self.count = total

    def state(self) -> dict[str, Any]:
        """The statistics as a dictionary of arrays."""
        return {"mean": self.mean, "variance": self.variance, "count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self.mean = np.asarray(state["mean"])
        self.variance = np.asarray(state["variance"])
        self.count = float(state["count"])


class ObservationNormalizer:
    """(o - mean) / std, clipped to +-`clip`, as float32.

    Andrychowicz et al. (2020, section 3.3) find this "crucial"; the clip at 10 is that of
    OpenAI Baselines.

    Attributes:
        moments: the statistics.
        clip: largest magnitude of what comes out.
        fixed: whether `update` leaves the statistics as they are.
    """

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0) -> None:
        self.moments = RunningMoments(shape)
        self.clip = clip
        self.fixed = False
        self._freeze()

    def __call__(self, observation: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Normalize `observation` (..., D) into `out` (float32)."""
        scaled = (observation - self._mean) * self._inverse_std
        np.minimum(scaled, self.clip, out=scaled)
        return np.maximum(scaled, -self.clip, out=out, dtype=np.float32, casting="same_kind")

    def update(self, observations: np.ndarray) -> None:
        """Take in raw observations (B, D), unless fixed; later calls use the new statistics."""
        if not self.fixed:
            self.moments.update(observations)
            self._freeze()

    def state(self) -> dict[str, Any]:
        """The statistics as a dictionary of arrays, and whether they are fixed."""
        return {**self.moments.state(), "fixed": self.fixed}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self.moments.restore(state)
        self.fixed = bool(state.get("fixed", False))  # absent from the first checkpoints
        self._freeze()

    def _freeze(self) -> None:
        self._mean = self.moments.mean
        self._inverse_std = 1.0 / np.sqrt(self.moments.variance + 1e-8)


class RewardScaler:
    """r / std of the discounted return, clipped to +-`clip`; the mean is left alone.

    Engstrom et al. (2020, "Implementation matters", section 3) name it among the details that make
    PPO's scores; OpenAI Baselines' VecNormalize is the original.
    """

    def __init__(self, num_envs: int, gamma: float, clip: float = 10.0) -> None:
        self.moments = RunningMoments(())
        self.gamma = gamma
        self.clip = clip
        self._return = np.zeros(num_envs)

    def __call__(self, reward: np.ndarray, done: np.ndarray) -> np.ndarray:
        """Scale `reward` (T, N) after taking it in; `done` (T, N) ends episodes. float32."""
        # R_t = r_t + gamma (1 - done_{t-1}) R_{t-1}: the backward recurrence, run on reversed time.
        carry = self.gamma * ~done[:-1]
        coefficient = np.concatenate([carry[::-1], np.zeros((1, reward.shape[1]))])
        start = reward.copy()
        start[0] += self.gamma * self._return
        returns = np.asarray(reverse_linear_recurrence(start[::-1], coefficient, axis=0))[::-1]
        self._return = np.where(done[-1], 0.0, returns[-1])
        self.moments.update(returns.ravel())
        scaled = reward / np.sqrt(self.moments.variance + 1e-8)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """The statistics as a dictionary of arrays."""
        return {**self.moments.state(), "return": self._return}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self.moments.restore(state)
        self._return = np.asarray(state["return"])
