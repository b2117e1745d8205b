"""Running statistics against NumPy over everything seen, and rewards against a plain loop."""

import numpy as np
import pytest

from tether.control.normalization import ObservationNormalizer, RewardScaler, RunningMoments


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_moments_are_those_of_everything_seen(rng: np.random.Generator) -> None:
    # A large mean beside a small spread is where the naive sum of squares loses every digit.
    batches = [1e6 + rng.normal(i, 1 + i, (size, 2, 3)) for i, size in enumerate((1, 5, 300, 2))]
    moments = RunningMoments((2, 3))
    for i, batch in enumerate(batches):
        moments.update(batch)
        everything = np.concatenate(batches[: i + 1])
        np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.variance, everything.var(0), rtol=1e-7, atol=1e-12)
        assert moments.count == len(everything)


def test_observations_are_standardized_and_clipped(rng: np.random.Generator) -> None:
    seen = rng.normal([3.0, -200.0], [0.1, 50.0], (500, 2))
    normalizer = ObservationNormalizer((2,), clip=2.5)
    np.testing.assert_array_equal(normalizer(np.array([[9.0, -1.0]])), [[2.5, -1.0]])
    normalizer.update(seen)
    expected = np.clip((seen - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8), -2.5, 2.5)
    assert (np.abs(expected) == 2.5).any()
    ours = normalizer(seen)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)
    out = np.empty((500, 2), np.float32)
    assert normalizer(seen, out) is out
    np.testing.assert_array_equal(out, ours)


def test_float32_observations_are_normalized_as_exactly(rng: np.random.Generator) -> None:
    seen = (1e4 + rng.normal(size=(100, 2))).astype(np.float32)
    normalizer = ObservationNormalizer((2,))
    normalizer.update(seen)
    wide = seen.astype(np.float64)
    expected = (wide - wide.mean(0)) / wide.std(0)
    np.testing.assert_allclose(normalizer(seen), expected, rtol=1e-3, atol=1e-3)


class PlainScaler:
    """The same in a loop: a discounted return for each environment, reset where episodes end."""

    def __init__(self, num_envs: int, gamma: float, clip: float) -> None:
        self.gamma, self.clip = gamma, clip
        self.current = [0.0] * num_envs
        self.seen: list[float] = []

    def __call__(self, reward: np.ndarray, done: np.ndarray) -> np.ndarray:
        for rewards, dones in zip(reward, done, strict=True):
            for n, (r, ended) in enumerate(zip(rewards, dones, strict=True)):
                self.current[n] = r + self.gamma * self.current[n]
                self.seen.append(self.current[n])
                if ended:
                    self.current[n] = 0.0
        return np.clip(reward / np.sqrt(np.var(self.seen) + 1e-8), -self.clip, self.clip)


@pytest.mark.parametrize("gamma", [0.99, 0.5, 0.0, 1.0])
def test_rewards_are_scaled_as_a_plain_loop_does(rng: np.random.Generator, gamma: float) -> None:
    scaler, plain = RewardScaler(3, gamma, clip=2.0), PlainScaler(3, gamma, clip=2.0)
    for horizon in (7, 1, 20, 2):
        reward = rng.normal(0.3, 4.0, (horizon, 3))
        done = rng.random((horizon, 3)) < 0.25
        given = reward.copy()
        ours = scaler(reward, done)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, plain(reward, done), rtol=1e-5)
        np.testing.assert_array_equal(reward, given)


def test_state_and_restore_continue_the_same(rng: np.random.Generator) -> None:
    reward, done = rng.normal(size=(3, 9, 2)), rng.random((3, 9, 2)) < 0.2
    done[1, -1] = [False, True]
    scaler, normalizer = RewardScaler(2, 0.9), ObservationNormalizer((2,))
    for i in range(2):
        scaler(reward[i], done[i])
        normalizer.update(reward[i])
    other_scaler, other_normalizer = RewardScaler(2, 0.9), ObservationNormalizer((2,))
    other_scaler.restore(scaler.state())
    other_normalizer.restore(normalizer.state())
    np.testing.assert_array_equal(other_normalizer(reward[2]), normalizer(reward[2]))
    np.testing.assert_array_equal(other_scaler(reward[2], done[2]), scaler(reward[2], done[2]))
    normalizer.update(reward[2])
    other_normalizer.update(reward[2])
    np.testing.assert_array_equal(other_normalizer(reward[0]), normalizer(reward[0]))
