"""Which segments are cut, which of them are asked about, and when."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tether.control.preferences.history import History
from tether.control.preferences.queries import (
    coverage,
    disagreement,
    distinct,
    entropy,
    probabilities,
    uniform,
)
from tether.control.preferences.schedule import Schedule
from tether.control.rollout import Experience

NOTHING = np.zeros((0, 1))


def sums_of(p: np.ndarray) -> np.ndarray:
    """Sums (M, Q, 2) of which each member says that the first is better with probability p."""
    margin = np.log(p / (1 - p))
    return np.stack([margin, np.zeros_like(margin)], axis=-1)


def test_probabilities_are_bradley_terrys() -> None:
    sums = np.random.default_rng(0).standard_normal((2, 3, 4)) * 3
    found = probabilities(sums)
    for place, (i, j) in enumerate(itertools.combinations(range(4), 2)):
        e = np.exp(sums)
        assert found[..., place] == pytest.approx(e[..., i] / (e[..., i] + e[..., j]))


def test_disagreement_takes_the_greatest_variance() -> None:
    p = np.array([[0.5, 0.9, 0.2, 0.6], [0.5, 0.1, 0.3, 0.9], [0.5, 0.5, 0.2, 0.6]])
    # Variances by hand: 0, 0.1067, 0.0022, 0.02.
    assert disagreement(2, sums_of(p), NOTHING, NOTHING).tolist() == [1, 3]


def test_entropy_takes_the_least_sure_mean() -> None:
    p = np.array([[0.9, 0.45, 0.99, 0.2], [0.9, 0.45, 0.01, 0.4]])
    # Means: 0.9, 0.45, 0.5, 0.3; the members of the third are sure of the opposite.
    assert entropy(3, sums_of(p), NOTHING, NOTHING).tolist() == [2, 1, 3]


def test_uniform_takes_what_comes() -> None:
    assert uniform(2, np.zeros((1, 5, 2)), NOTHING, NOTHING).tolist() == [0, 1]


def test_coverage_is_the_greedy_k_centre() -> None:
    rng = np.random.default_rng(0)
    features, asked = rng.standard_normal((12, 3)), rng.standard_normal((2, 3))
    found = coverage(5, np.zeros((1, 12, 2)), features, asked).tolist()
    centres, left = [*asked], set(range(12))
    for chosen in found:
        far = {i: min(np.linalg.norm(features[i] - c) for c in centres) for i in left}
        assert far[chosen] == max(far.values())
        centres.append(features[chosen])
        left.remove(chosen)
    assert len(set(coverage(12, np.zeros((1, 12, 2)), features, asked))) == 12


def test_rows_of_candidates_have_different_segments() -> None:
    rows = distinct(np.random.default_rng(0), 4, 2000, 3)
    assert all(len(set(row)) == 3 for row in rows.tolist())
    counts = np.bincount(rows[:, 0], minlength=4)
    assert counts.min() > 420


def history_of(done: np.ndarray, parts: list[int], keep: int = 10_000) -> History:
    """A history of an environment whose reward is the number of the step, in several rollouts."""
    history, first = History(), 0
    steps, count = done.shape
    reward = np.arange(steps)[:, None] + 1000.0 * np.arange(count)
    for length in parts:
        rows = slice(first, first + length)
        observation = np.repeat(reward[rows, :, None], 2, axis=2)
        never = np.zeros((length, count), bool)
        seen = Experience(
            observation, observation, observation, reward[rows], done[rows], never, observation
        )
        history.add(seen, first * count, keep)
        first += length
    return history


def test_segments_are_all_windows_within_an_episode_and_short_episodes() -> None:
    done = np.zeros((30, 2), bool)
    done[[3, 5, 20], 0] = True
    done[[29], 1] = True
    history = history_of(done, [7, 7, 16])
    found = {tuple(map(int, window)) for window in history.windows(6)}
    expected = set()
    for n in range(2):
        first = 0
        for end in [*np.flatnonzero(done[:, n]).tolist(), 29]:
            for start in range(first, end + 1):
                if end - start + 1 >= 6:
                    expected.add((start, n, 6))
            # Whether the history's first episode is whole nobody knows.
            if 0 < end - first + 1 < 6 and done[end, n] and first > 0:
                expected.add((first, n, end - first + 1))
            first = end + 1
    assert found == expected


def test_a_history_keeps_the_newest_steps() -> None:
    history = history_of(np.zeros((30, 2), bool), [10, 10, 10], keep=15)
    assert history.reward[:, 0].tolist() == list(range(15, 30))
    assert history.step[[0, 4, 5]].tolist() == [20, 20, 40]
    again = History()
    again.restore(history.state())
    assert np.array_equal(again.reward, history.reward)


def test_labels_follow_the_papers_rate() -> None:
    schedule = Schedule(700, 175, 20_000, 5_000_000, 2_000_000, refits=40)
    assert schedule.due(0) == 0
    assert schedule.due(20_000) == 175
    assert schedule.due(5_000_000) == 700
    steps = np.linspace(20_000, 5_000_000, 20_001)
    rate = 1 / (steps - 20_000 + 2_000_000)
    share = np.concatenate([[0], np.cumsum((rate[1:] + rate[:-1]) / 2)])
    wanted = 175 + 525 * share / share[-1]
    found = [schedule.due(int(step)) for step in steps]
    assert np.abs(found - wanted).max() <= 1


def test_fits_follow_the_labels() -> None:
    schedule = Schedule(1000, 100, 1000, 21_000, 2000, refits=9)
    fits = np.array([schedule.fits(steps) for steps in range(21_001)])
    assert fits[1000] == 0 and fits[21_000] == 9
    # Each falls where a tenth more of the labels is there.
    at = [int(np.argmax(fits == k)) for k in range(1, 10)]
    assert [schedule.due(steps) for steps in at] == [190, 280, 370, 460, 550, 640, 730, 820, 910]
    # c = 2000: half of them in the first sixth.
    assert fits[4500] == 4
