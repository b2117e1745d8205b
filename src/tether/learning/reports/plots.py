"""Learning curves from the metrics of runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tether.errors import RunError, UserError
from tether.learning.output.metrics import read_metrics
from tether.learning.run import Run

# Okabe and Ito's palette: told apart in print and by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def learning_curves(
    runs: Sequence[str | Path], path: Path, *, metric: str = "return/mean", by: str | None = None
) -> Path:
    """Draw `metric` of several runs against steps and write `path` (PNG, SVG or PDF).

    Args:
        runs: run folders.
        path: the picture; its suffix decides the format.
        metric: a name that `metrics.jsonl` holds.
        by: None draws one line for each run. "env", "method" or "folder" (that the runs lie in,
            as the seeds of one training do) groups them: a line for their mean and a band from
            their least to their greatest.

    Raises:
        UserError: a run without that metric, an unknown grouping or format.
    """
    if not runs:
        raise UserError("no runs to draw; give at least one run folder")
    if by not in (None, "env", "method", "folder"):
        raise UserError(f"by is {by!r}; expected env, method, folder or nothing")
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for folder in runs:
        run = Run.open(folder)
        groups.setdefault(_label(run, Path(folder), by), []).append(_curve(run, metric))

    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
    for i, (label, curves) in enumerate(groups.items()):
        _draw(axes, label, curves, COLOURS[i % len(COLOURS)])
    axes.set_xlabel("steps")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_formatter(lambda x, _: step_label(x))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(groups) > 1 or by is not None:
        axes.legend(frameon=False)
    else:
        axes.set_title(next(iter(groups)), fontsize=10)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (ValueError, OSError) as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        plt.close(figure)
    return path


def _label(run: Run, folder: Path, by: str | None) -> str:
    if by == "method":
        return run.method
    if by == "env":
        return str(run.spec.get("env_name", run.method))
    return folder.resolve().parent.name if by == "folder" else folder.name


def _curve(run: Run, metric: str) -> tuple[np.ndarray, np.ndarray]:
    if not run.metrics_path.exists():
        raise RunError(f"run {run.path} has no metrics yet")
    rows = list(read_metrics(run.metrics_path))
    points = [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]
    if not points:
        names = sorted({name for row in rows for name in row} - {"step"})
        raise UserError(
            f"run {run.path} has no values of {metric!r}; it has: {', '.join(names) or 'nothing'}"
        )
    steps, values = np.array(points, float).T
    return steps, values


def _draw(axes: Any, label: str, curves: list[tuple[np.ndarray, np.ndarray]], colour: str) -> None:
    if len(curves) == 1:
        axes.plot(*curves[0], color=colour, label=label, lw=1.6)
        return
    first = max(steps[0] for steps, _ in curves)
    last = min(steps[-1] for steps, _ in curves)
    grid = np.linspace(first, last, 400)
    values = np.stack([np.interp(grid, *curve) for curve in curves])
    axes.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)
    axes.plot(grid, values.mean(0), color=colour, label=f"{label} ({len(curves)} runs)", lw=1.6)


def step_label(x: float) -> str:
    """A number of steps, short: 300k, 1.5M."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:g}{suffix}"
    return f"{x:g}"
