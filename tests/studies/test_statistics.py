"""Statistics over seeds against rliable's own figures, SciPy, enumeration and closed forms."""

import itertools
import time

import numpy as np
import pytest
from scipy import stats

from tether.studies import statistics

# Three tasks; ten and five runs.
X = np.array(
    [
        [0.4, 0.89, 0.06], [0.31, 0.66, -0.3], [0.41, 1.2, -0.05], [0.34, 0.95, 0.38],
        [0.41, 0.52, 0.19], [0.47, 0.4, -0.03], [0.21, 0.41, -0.72], [0.38, 0.42, 0.34],
        [0.42, 0.74, -1.06], [0.35, 0.79, 0.26],
    ]
)  # fmt: skip
Y = np.array(
    [[0.15, 0.56, -0.09], [0.22, 1.02, 0.0], [0.3, 0.97, 0.11], [0.29, 0.73, 0.43],
     [0.18, 0.72, 1.08]]
)  # fmt: skip

# rliable 1.2.0 (github.com/google-research/rliable) on X and Y with NumPy 2.4.6: get_interval_
# estimates of metrics.aggregate_mean, aggregate_median and aggregate_iqm, 200,000 repetitions,
# after numpy.random.seed(0).
RLIABLE = {
    "x": {
        "mean": (0.325, 0.212333, 0.427333),
        "median": (0.37, 0.325, 0.409),
        "iqm": (0.369375, 0.323125, 0.414375),
    },
    "y": {
        "mean": (0.444667, 0.324667, 0.589333),
        "median": (0.306, 0.192, 0.71),
        "iqm": (0.397778, 0.276667, 0.588889),
    },
    "first task of x": {
        "mean": (0.37, 0.324, 0.409),
        "iqm": (0.381667, 0.328333, 0.413333),
    },
}
SCORES = {"x": X, "y": Y, "first task of x": X[:, :1]}


def by_task(scores):
    return {str(task): scores[:, task] for task in range(scores.shape[1])}


@pytest.mark.parametrize("name", RLIABLE)
def test_estimates_and_intervals_are_rliables(name):
    found = statistics.summarize_tasks(by_task(SCORES[name]))
    for statistic, (point, low, high) in RLIABLE[name].items():
        assert found[statistic] == pytest.approx(point, abs=1e-6)
        if statistic != "median":
            assert found[f"{statistic}_interval"] == pytest.approx([low, high], abs=0.006)


def test_the_interval_of_the_median_is_rliables():
    for name in ("x", "y"):
        _, low, high = RLIABLE[name]["median"]
        tasks = list(by_task(SCORES[name]).values())
        assert statistics.interval(tasks, statistics._median) == pytest.approx(
            [low, high], abs=0.01
        )


def test_probability_of_improvement_is_rliables():
    # metrics.probability_of_improvement with 20,000 repetitions of get_interval_estimates.
    found = statistics.probability_of_improvement(by_task(X), by_task(Y))
    assert found["probability"] == pytest.approx(0.54, abs=1e-6)
    assert found["interval"] == pytest.approx([0.4, 0.693333], abs=0.01)


def test_ties_count_half_as_in_mann_and_whitney():
    x, y = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 2.0, 3.0])
    found = statistics.probability_of_improvement({"a": x}, {"a": y, "b": y})
    expected = stats.mannwhitneyu(x, y, alternative="greater").statistic / 12
    assert found["probability"] == found["by_task"]["a"] == pytest.approx(expected)
    assert statistics.probability_of_improvement({"a": x}, {"a": x})["probability"] == 0.5
    assert statistics.probability_of_improvement({"a": x}, {"b": x})["probability"] is None


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 10, 11])
def test_interquartile_mean_is_scipys_trimmed_mean(count):
    scores = np.random.default_rng(count).normal(size=(3, count))
    found = statistics.interquartile_mean(scores)
    assert found == pytest.approx(stats.trim_mean(scores, 0.25, axis=-1))


def test_the_interval_is_that_of_all_draws_there_are():
    """Three runs have 27 equally likely draws: their percentiles are known exactly."""
    scores = np.array([0.0, 1.0, 10.0])
    means = sorted(np.mean(draw) for draw in itertools.product(scores, repeat=3))
    found = statistics.summarize(list(scores))
    # 1/27 of the draws are all 0 and 1/27 all 10, more than the 2.5 % that are cut.
    assert found["mean_interval"] == [means[0], means[-1]] == [0.0, 10.0]
    narrow = statistics.interval([scores], statistics._mean, level=0.5)
    assert narrow == pytest.approx(np.percentile(np.repeat(means, 1000), [25, 75]))


def test_tasks_are_strata():
    """Runs are drawn within each task, so tasks that lie apart do not widen the interval."""
    apart = {"low": np.zeros(5), "high": np.ones(5)}
    found = statistics.summarize_tasks(apart)
    assert found["mean_interval"] == found["iqm_interval"] == [0.5, 0.5]


def test_standard_error_and_coverage():
    """Of many samples of a normal about as many intervals hold its mean as theory says."""
    rng = np.random.default_rng(0)
    held = []
    for sample in rng.normal(3.0, 2.0, (300, 10)):
        low, high = statistics.interval([sample], statistics._mean, draws=2000)
        held.append(low <= 3.0 <= high)
        sem = stats.sem(sample)
        # The percentile interval is that of a normal with the population deviation.
        assert (high - low) / 2 == pytest.approx(1.96 * sem * np.sqrt(0.9), rel=0.25)
    assert statistics.summarize(list(sample))["standard_error"] == pytest.approx(sem)
    # 1.96 sqrt(0.9) standard errors of ten runs: Student's t with nine degrees of freedom.
    expected = 1 - 2 * stats.t.sf(1.96 * np.sqrt(0.9), 9)
    assert np.mean(held) == pytest.approx(
        expected, abs=4 * np.sqrt(expected * (1 - expected) / 300)
    )


def test_too_few_seeds_have_no_interval():
    one = statistics.summarize([3.0, None])
    assert (one["n"], one["mean"], one["median"], one["iqm"]) == (1, 3.0, 3.0, 3.0)
    assert one["standard_error"] is one["mean_interval"] is one["iqm_interval"] is None
    none = statistics.summarize([None])
    assert none["n"] == 0
    assert set(one) == set(none)
    assert none["mean"] is none["median"] is None


def test_tasks_may_have_different_numbers_of_runs():
    found = statistics.summarize_tasks({"a": [0.0, 0.0, 0.0, 0.0], "b": [1.0, 1.0]})
    assert (found["n"], found["mean"], found["median"]) == (2, 0.5, 0.5)
    assert found["iqm"] == pytest.approx(0.25)


def test_the_same_seed_gives_the_same_interval():
    one, again, other = (statistics.summarize(list(X[:, 2]), seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one["mean_interval"] != other["mean_interval"]


def test_a_band_is_the_interval_at_every_point():
    curves = np.stack([X[:, 0], X[:, 1]], axis=1)
    low, high = statistics.mean_band(curves, draws=50_000)
    for point in range(2):
        one = statistics.interval([curves[:, point]], statistics._mean)
        assert [low[point], high[point]] == pytest.approx(one, abs=0.01)


def test_a_band_goes_on_without_a_run_that_ended():
    curves = np.array([[1.0, 1.0], [3.0, np.nan], [2.0, 2.0]])
    low, high = statistics.mean_band(curves)
    assert (low[0], high[0]) == (1.0, 3.0)
    assert (low[1], high[1]) == (1.0, 2.0)


def test_an_interval_of_seventy_runs_takes_less_than_two_seconds():
    scores = np.random.default_rng(0).normal(size=(10, 7))
    began = time.perf_counter()
    statistics.summarize_tasks(by_task(scores))
    assert time.perf_counter() - began < 2.0
