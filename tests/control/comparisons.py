"""What two runs of one seed must share: every bit of their state, every number but the clock's."""

from pathlib import Path
from typing import Any

import numpy as np

from tether.learning import Run, read_metrics


def assert_equal_states(ours: Any, theirs: Any) -> None:
    """Two nested states hold the same bits."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert_equal_states(ours[name], theirs[name])
    elif isinstance(ours, np.ndarray | np.generic):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()
    else:
        assert ours == theirs


def measurements(run: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in read_metrics(run)
    ]


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    assert measurements(ours) == measurements(theirs)
    assert_equal_states(Run.open(ours).load(), Run.open(theirs).load())


def mean_kl(old: Any, new: Any) -> float:
    """Mean KL divergence of independent normals, or of one category, by definition in float64."""
    if hasattr(old, "mean"):
        (m, s), (n, t) = (
            (d.mean.astype(float), np.exp(d.log_std.astype(float))) for d in (old, new)
        )
        return float((np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5).sum(-1).mean())
    p, q = (np.exp(d.logits.astype(float)) for d in (old, new))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return float((p * np.log(p / q)).sum(-1).mean())
