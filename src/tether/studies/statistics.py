"""What several seeds say: point estimates, bootstrap intervals, probability of improvement.

    mean      of the tasks' means over runs
    median    of the tasks' means over runs; for a single task the median of its runs
    IQM       interquartile mean: of all runs of all tasks, without the lowest and highest quarter
    interval  stratified percentile bootstrap: runs are drawn with replacement within each task,
              the statistic is computed of every such draw, and the middle 95 % of them is reported
    P(X > Y)  probability that a run of X beats a run of Y on the same task, ties counting half
              (the Mann-Whitney statistic over the number of pairs), averaged over the tasks

The definitions are those of the package rliable 1.2.0, whose figures the tests compare with. The
package itself is not used: it needs arch, statsmodels, pandas and seaborn, its last release is of
2024, and its resampling ignores the seed it is given.

Source:
    Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021),
    sections 4.1 to 4.3; Efron, "Bootstrap Methods" (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tether.learning.seeding import Stream, seed_sequence

Numbers: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Sequence[Numbers]], Numbers]
"""From one array (D, runs) of each task, of D draws, to (D,)."""

DRAWS: Final = 50_000
"""Bootstrap draws of an interval, as many as rliable takes."""
LEVEL: Final = 0.95
"""The share of the draws that an interval holds."""
_BLOCK: Final = 2_000_000
"""Scores that are drawn at a time, so that memory stays small."""


def interquartile_mean(scores: ArrayLike, axis: int = -1) -> Numbers:
    """The mean without the lowest and the highest quarter, each rounded down to whole scores.

    Args:
        scores: shape (..., N, ...) with the N scores along `axis`.
        axis: what is averaged.

    Returns:
        The same shape without `axis`. With fewer than four scores it is the mean.
    """
    ordered = np.sort(np.moveaxis(np.asarray(scores, float), axis, -1), axis=-1)
    count = ordered.shape[-1]
    cut = count // 4
    found: Numbers = ordered[..., cut : count - cut].mean(-1)
    return found


def summarize(scores: Sequence[float | None], *, seed: int = 0) -> dict[str, Any]:
    """What the seeds of one training say on one task.

    Args:
        scores: one for each seed; None for a training that never had a score, which is left out.
        seed: of the bootstrap.

    Returns:
        ``n``, how many scores there are; ``mean``, ``median`` and ``iqm``; ``standard_error`` of
        the mean (sample deviation over the root of n); ``mean_interval`` and ``iqm_interval``,
        each [low, high], 95 %. What n does not suffice for is None.
    """
    there = np.array([score for score in scores if score is not None], float)
    found = summarize_tasks({"": there}, seed=seed)
    found["median"] = float(np.median(there)) if len(there) else None
    return found


def summarize_tasks(scores: Mapping[str, ArrayLike], *, seed: int = 0) -> dict[str, Any]:
    """What the seeds of one method say over all tasks.

    Args:
        scores: those of the runs, (runs,), by task; comparable between tasks, so normalized. Tasks
            may have different numbers of runs.
        seed: of the bootstrap.

    Returns:
        As :func:`summarize`. ``n`` is the smallest number of runs of a task. ``standard_error`` is
        that of the mean of independent task means.
    """
    tasks = [np.asarray(values, float) for values in scores.values()]
    n = min((len(values) for values in tasks), default=0)
    if n == 0:
        names = ("mean", "standard_error", "median", "iqm", "mean_interval", "iqm_interval")
        return {"n": 0, **dict.fromkeys(names)}
    once = [values[None] for values in tasks]
    found: dict[str, Any] = {
        "n": n,
        "mean": float(_mean(once)[0]),
        "standard_error": None,
        "median": float(_median(once)[0]),
        "iqm": float(_iqm(once)[0]),
        "mean_interval": None,
        "iqm_interval": None,
    }
    if n > 1:
        variances = [values.var(ddof=1) / len(values) for values in tasks]
        found["standard_error"] = float(np.sqrt(sum(variances)) / len(tasks))
        drawn = _draw(tasks, (_mean, _iqm), DRAWS, seed)
        found["mean_interval"], found["iqm_interval"] = (_middle(values, LEVEL) for values in drawn)
    return found


def interval(
    tasks: Sequence[ArrayLike],
    statistic: Statistic,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> list[float]:
    """The stratified percentile bootstrap interval of a statistic.

    Args:
        tasks: scores of each task's runs, (runs,).
        statistic: from drawn scores (D, runs) of each task to (D,).
        draws: how many times the runs are drawn.
        level: the share of the draws that the interval holds.
        seed: the same seed gives the same interval.

    Returns:
        [low, high].
    """
    arrays = [np.asarray(values, float) for values in tasks]
    return _middle(_draw(arrays, (statistic,), draws, seed)[0], level)


def _draw(
    tasks: Sequence[Numbers], statistics: Sequence[Statistic], draws: int, seed: int
) -> list[Numbers]:
    """Every statistic of the same draws, (draws,) each."""
    rng = np.random.default_rng(seed_sequence(seed, Stream.INTERVALS))
    block = max(1, _BLOCK // sum(map(len, tasks)))
    found: list[list[Numbers]] = [[] for _ in statistics]
    for start in range(0, draws, block):
        size = min(block, draws - start)
        drawn = [v[rng.integers(len(v), size=(size, len(v)))] for v in tasks]
        for values, statistic in zip(found, statistics, strict=True):
            values.append(statistic(drawn))
    return [np.concatenate(values) for values in found]


def mean_band(
    curves: ArrayLike, *, draws: int = 2000, level: float = LEVEL, seed: int = 0
) -> tuple[Numbers, Numbers]:
    """The bootstrap interval of the mean of several curves, at every point.

    Args:
        curves: (runs, points); NaN where a run has no value, which its draws then leave out.
        draws: how many times the runs are drawn, each with its whole curve.
        level: the share of the draws that the band holds.
        seed: of the bootstrap.

    Returns:
        Low and high, (points,) each.
    """
    values = np.asarray(curves, float)
    rng = np.random.default_rng(seed_sequence(seed, Stream.INTERVALS))
    times = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws)
    there = np.isfinite(values)
    count = (times @ there).astype(float)
    total = times @ np.where(there, values, 0.0)
    means = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(means, [tail, 100 - tail], axis=0)
    return low, high


def probability_of_improvement(
    ours: Mapping[str, ArrayLike],
    theirs: Mapping[str, ArrayLike],
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Any]:
    """How likely a run of one method is to beat a run of another on the same task.

    Args:
        ours: scores of the runs, (runs,), by task. They need not be normalized.
        theirs: the other method's. Tasks that only one of them has are left out.
        draws: of the bootstrap, in which the runs of both are drawn within each task.
        level: the share of the draws that the interval holds.
        seed: of the bootstrap.

    Returns:
        ``probability``, averaged over the tasks; its ``interval``, [low, high], or None where no
        task has two runs of each; ``by_task``.
    """
    wins = {}
    for task in ours:
        x = np.asarray(ours[task], float)
        y = np.asarray(theirs.get(task, ()), float)
        if len(x) and len(y):
            wins[task] = np.greater.outer(x, y) + 0.5 * np.equal.outer(x, y)
    if not wins:
        return {"probability": None, "interval": None, "by_task": {}}
    by_task = {task: float(pairs.mean()) for task, pairs in wins.items()}
    rng = np.random.default_rng(seed_sequence(seed, Stream.INTERVALS))
    drawn = np.zeros(draws)
    for pairs in wins.values():
        # How often each run is drawn is all that the mean over the drawn pairs depends on.
        one, other = (rng.multinomial(n, np.full(n, 1 / n), size=draws) for n in pairs.shape)
        drawn += ((one @ pairs) * other).sum(-1) / pairs.size
    several = any(min(pairs.shape) > 1 for pairs in wins.values())
    return {
        "probability": float(np.mean(list(by_task.values()))),
        "interval": _middle(drawn / len(wins), level) if several else None,
        "by_task": by_task,
    }


def _middle(values: Numbers, level: float) -> list[float]:
    tail = 50 * (1 - level)
    low, high = np.percentile(values, [tail, 100 - tail])
    return [float(low), float(high)]


def _mean(tasks: Sequence[Numbers]) -> Numbers:
    found: Numbers = np.mean([drawn.mean(-1) for drawn in tasks], axis=0)
    return found


def _median(tasks: Sequence[Numbers]) -> Numbers:
    found: Numbers = np.median([drawn.mean(-1) for drawn in tasks], axis=0)
    return found


def _iqm(tasks: Sequence[Numbers]) -> Numbers:
    return interquartile_mean(np.concatenate(tasks, axis=-1))
