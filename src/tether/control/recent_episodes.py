"""The last episodes of a training: their returns, what was meant, and what was said of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from tether.learning.learner import Metrics, State

RETURN_WINDOW = 100
"""Episodes over which the training return is averaged (the paper's "last 100 episodes")."""

LEAST_FOR_CORRELATION = 10
"""Episodes below which the correlation of return and true return says nothing."""


class Episode(NamedTuple):
    """An episode that ended; undiscounted returns."""

    returned: float
    length: int
    true_return: float | None
    statistics: Mapping[str, float]


class RecentEpisodes:
    """The last :data:`RETURN_WINDOW` episodes, and how many there were in all."""

    def __init__(self) -> None:
        self._recent: deque[Episode] = deque(maxlen=RETURN_WINDOW)
        self._count = 0

    def extend(
        self,
        returns: Sequence[float],
        lengths: Sequence[int],
        true_returns: Sequence[float] | None = None,
        statistics: Iterable[Mapping[str, float]] = (),
    ) -> None:
        """Take in episodes in the order in which they ended."""
        truths: Iterable[float | None] = repeat(None, len(returns))
        if true_returns is not None:
            truths = true_returns
        said = list(statistics) or [{}] * len(returns)
        ended = [Episode(*one) for one in zip(returns, lengths, truths, said, strict=True)]
        self._recent.extend(ended)
        self._count += len(ended)

    def metrics(self) -> Metrics:
        """`return/...`, `episode/...` and, where it is reported, `true_return/...`.

        Only the count until an episode has ended. `true_return/correlation` is Pearson's
        correlation of return and true return over the episodes; where the environments say
        numbers about their episodes, `episode/NAME` is the mean of each.
        """
        if not self._recent:
            return {"episode/count": self._count}
        returns = [one.returned for one in self._recent]
        metrics: Metrics = {
            **_spread("return", returns),
            "episode/length": float(np.mean([one.length for one in self._recent])),
            "episode/count": self._count,
        }
        pairs = [(e.returned, e.true_return) for e in self._recent if e.true_return is not None]
        if pairs:
            proxies, truths = np.array(pairs, float).T
            metrics |= _spread("true_return", truths)
            if len(pairs) >= LEAST_FOR_CORRELATION and proxies.std() > 0 and truths.std() > 0:
                correlation = np.corrcoef(proxies, truths)[0, 1]
                metrics["true_return/correlation"] = float(correlation)
        for name in sorted({name for one in self._recent for name in one.statistics}):
            values = [one.statistics[name] for one in self._recent if name in one.statistics]
            metrics[f"episode/{name}"] = float(np.mean(values))
        return metrics

    def state(self) -> State:
        """The window and the count."""
        recent = self._recent
        return {
            "episodes": self._count,
            "recent_returns": np.array([one.returned for one in recent], float),
            "recent_lengths": np.array([one.length for one in recent], np.int64),
            # NaN stands for an episode without.
            "recent_true_returns": np.array(
                [np.nan if one.true_return is None else one.true_return for one in recent], float
            ),
            "recent_statistics": {
                name: np.array([one.statistics.get(name, np.nan) for one in recent], float)
                for name in sorted({name for one in recent for name in one.statistics})
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self._count = int(state["episodes"])
        returns, lengths = (state[f"recent_{name}"].tolist() for name in ("returns", "lengths"))
        # The two below are absent from the first checkpoints.
        truths = state.get("recent_true_returns", np.full(len(returns), np.nan)).tolist()
        said: dict[str, Any] = state.get("recent_statistics", {})
        self._recent.clear()
        for i, (returned, length, truth) in enumerate(zip(returns, lengths, truths, strict=True)):
            numbers = {k: float(v[i]) for k, v in said.items() if not np.isnan(v[i])}
            self._recent.append(
                Episode(returned, length, None if np.isnan(truth) else truth, numbers)
            )


def _spread(name: str, values: Any) -> Metrics:
    return {
        f"{name}/mean": float(np.mean(values)),
        f"{name}/std": float(np.std(values)),
        f"{name}/min": float(np.min(values)),
        f"{name}/max": float(np.max(values)),
    }
