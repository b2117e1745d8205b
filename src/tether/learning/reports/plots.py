"""Learning curves from the metrics of runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

from tether.errors import RunError, UserError
from tether.learning.output.metrics import read_metrics
from tether.learning.run import Run

USUAL: Final = ("return/mean", "reward/mean", "reward/accuracy", "held_out/loss", "loss")
"""Measurements that are drawn where none is named, the first that a run has."""

Band: TypeAlias = Literal["range", "deviation", "interval"]

# Okabe and Ito's palette: distinguishable in print and by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def learning_curves(
    runs: Sequence[str | Path],
    path: Path,
    *,
    metric: str | None = None,
    by: str | None = None,
    band: Band = "range",
    smooth: int = 1,
) -> Path:
    """Draw a measurement of several runs against steps and write `path` (PNG, SVG or PDF).

    Args:
        runs: run folders.
        path: the picture; its suffix decides the format.
        metric: a name that `metrics.jsonl` holds; None: the first of :data:`USUAL` that the first
            run has.
        by: None draws one line for each run. "env", "method" or "folder" (that the runs lie in,
            as the seeds of one training do) groups them: a line for their mean, and a band.
        band: what the band shows: "range" from the least to the greatest, "deviation" one standard
            deviation to either side, "interval" the 95 % bootstrap interval of the mean.
        smooth: average over so many neighbouring points; 1 draws the points as they are.

    Raises:
        UserError: a run without that metric, an unknown grouping, band or format.
    """
    if not runs:
        raise UserError("no runs to draw; give at least one run folder")
    if by not in (None, "env", "method", "folder"):
        raise UserError(f"by is {by!r}; expected env, method, folder or nothing")
    if band not in get_args(Band):
        raise UserError(f"band is {band!r}; expected {', '.join(get_args(Band))}")
    if smooth < 1:
        raise UserError(f"smooth is {smooth}; expected at least 1 point")
    if not path.suffix:
        raise UserError(f"the picture is {path}; expected a name that ends in .png, .svg or .pdf")
    opened = [(Run.open(folder), Path(folder)) for folder in runs]
    metric = metric if metric is not None else _usual(opened[0][0])
    groups: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for run, folder in opened:
        curve = _smoothed(*_curve(run, metric), smooth)
        groups.setdefault(_label(run, folder, by), []).append(curve)

    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
    for i, (label, curves) in enumerate(groups.items()):
        _draw(axes, label, curves, COLOURS[i % len(COLOURS)], band)
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


def _draw(
    axes: Any, label: str, curves: list[tuple[np.ndarray, np.ndarray]], colour: str, band: Band
) -> None:
    if len(curves) == 1:
        # One point makes no line.
        marker = "o" if len(curves[0][0]) == 1 else None
        axes.plot(*curves[0], color=colour, label=label, lw=1.6, marker=marker)
        return
    first = max(steps[0] for steps, _ in curves)
    last = min(steps[-1] for steps, _ in curves)
    grid = np.linspace(first, last, 400)
    values = np.stack([np.interp(grid, *curve) for curve in curves])
    low, high = _band(values, band)
    axes.fill_between(grid, low, high, color=colour, alpha=0.2, lw=0)
    label = f"{label} (mean and {_BANDS[band]} of {len(curves)} runs)"
    axes.plot(grid, values.mean(0), color=colour, label=label, lw=1.6)


_BANDS: dict[str, str] = {
    "range": "range",
    "deviation": "standard deviation",
    "interval": "95 % interval",
}


def _band(values: np.ndarray, band: Band) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge for values (runs, points)."""
    if band == "range":
        return values.min(0), values.max(0)
    mean = values.mean(0)
    if band == "deviation":
        return mean - values.std(0), mean + values.std(0)
    drawn = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    means = np.stack([values[rows].mean(0) for rows in drawn])
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


def _smoothed(steps: np.ndarray, values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over `window` neighbours, fewer at the ends; the steps stay."""
    window = min(window, len(values))
    if window == 1:
        return steps, values
    sums = np.convolve(values, np.ones(window), mode="same")
    counts = np.convolve(np.ones(len(values)), np.ones(window), mode="same")
    return steps, sums / counts


def _usual(run: Run) -> str:
    rows = list(read_metrics(run.metrics_path)) if run.metrics_path.exists() else []
    names = {name for row in rows for name, value in row.items() if value is not None}
    found = next((name for name in USUAL if name in names), None)
    if found is None:
        others = ", ".join(sorted(names - {"step"})) or "nothing yet"
        raise UserError(
            f"run {run.path} has none of {', '.join(USUAL)}; choose a --metric; it has: {others}"
        )
    return found


def step_label(x: float) -> str:
    """A number of steps, short: 300k, 1.5M."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:g}{suffix}"
    return f"{x:g}"
