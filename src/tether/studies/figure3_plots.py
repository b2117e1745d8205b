"""Pictures of the study of figure 3: the paper's grid of curves, and the methods over all tasks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tether.learning.reports.plots import COLOURS, step_label
from tether.studies.dots import draw_dots
from tether.studies.published import PAPER, task
from tether.studies.statistics import mean_band

WHOLE: Final = 0.9
"""A curve that ends before this part of the longest is of a training that diverged."""
LABELS: Final = {
    "ppo": "PPO (clip)",
    "trpo": "TRPO",
    "a2c": "A2C",
    "a2c-tr": "A2C + trust region",
    "vpg": "vanilla PG, adaptive",
    "cem": "CEM",
}
STRIP: Final = 0.38
"""Width of the strip of final scores, as a part of the curves'."""


def colour_of(method: str) -> str:
    """The same colour for a method in every picture."""
    return COLOURS[list(LABELS).index(method) if method in LABELS else -1]


def draw(found: Mapping[str, Any], path: Path) -> None:
    """A panel for each task: learning curves, and beside them every seed's final score."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    settings = found["settings"]
    envs = settings["envs"]
    columns = min(4, len(envs) + 1)
    rows = -(-(len(envs) + 1) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(4.3 * columns, 3.1 * rows), layout="constrained", squeeze=False
    )
    places = list(panels.flat)
    for env, axes in zip(envs, places, strict=False):
        _panel(axes, found, env)
    for axes in places[len(envs) :]:
        axes.axis("off")
    _legend(places[len(envs)], settings["methods"])
    figure.supxlabel("environment steps, then the evaluation of the last policy", fontsize=9)
    figure.supylabel("return", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axes: Any, found: Mapping[str, Any], env: str) -> None:
    methods, steps = found["settings"]["methods"], found["settings"]["steps"]
    for method in methods:
        colour = colour_of(method)
        curves = _curves(found, method, env)
        if curves:
            x, values = on_one_grid(curves)
            if len(curves) > 1:
                axes.fill_between(x, *mean_band(values), color=colour, alpha=0.18, lw=0)
            axes.plot(x, np.nanmean(values, 0), color=colour, lw=1.4)
        papers = PAPER.scores.get(task(env), {}).get(method)
        if papers is not None:
            axes.plot([0, steps], [papers] * 2, color=colour, lw=0.8, ls=(0, (4, 3)))
    axes.axvspan(1.04 * steps, (1.04 + STRIP) * steps, color="0.955", lw=0, zorder=0)
    width = STRIP * steps / len(methods)
    for place, method in enumerate(methods):
        score = found["scores"][env][method]
        x = 1.04 * steps + (place + 0.5) * width
        draw_dots(axes, x, score["finals"], score["summary"], colour_of(method), width=0.7 * width)
    axes.set_xlim(0, (1.04 + STRIP) * steps)
    axes.set_xticks([0, 0.5 * steps, steps])
    axes.set_title(env, fontsize=10)
    axes.xaxis.set_major_formatter(lambda x, _: step_label(x))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}".replace("-", "\u2212"))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Any, methods: Sequence[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grey = "0.4"
    handles: list[Any] = [
        Line2D([], [], color=colour_of(m), label=LABELS.get(m, m)) for m in methods
    ]
    handles += [
        Patch(color=grey, alpha=0.3, lw=0, label="95 % interval of the mean"),
        Line2D([], [], color=grey, marker="o", ms=3.5, lw=0, label="a seed's last policy"),
        Line2D([], [], color=grey, marker="_", ms=10, mew=2, lw=0, label="their mean"),
        Line2D([], [], color=grey, lw=0.8, ls=(0, (4, 3)), label="the paper's last score"),
    ]
    axes.legend(handles=handles, loc="center", frameon=False, fontsize=9)


def draw_over_tasks(found: Mapping[str, Any], path: Path) -> None:
    """Left: normalized scores over all tasks. Right: probability of improvement of the first.

    With one method there is no right panel.
    """
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    methods = found["settings"]["methods"]
    over = found["improvement"]["over"]
    others = [other for other in over if over[other]["probability"] is not None]
    panels = 2 if others else 1
    figure, grid = plt.subplots(
        1,
        panels,
        figsize=(4.8 * panels, 0.42 * len(methods) + 1.3),
        layout="constrained",
        squeeze=False,
    )
    _draw_normalized(grid[0, 0], found, methods)
    if others:
        _draw_improvement(grid[0, 1], found["improvement"], others)
    for axes in grid.flat:
        axes.margins(y=0.12)
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_normalized(axes: Any, found: Mapping[str, Any], methods: Sequence[str]) -> None:
    places = np.arange(len(methods))
    for shift, name, marker in ((-0.16, "iqm", "o"), (0.16, "mean", "D")):
        for place, method in zip(places, methods, strict=True):
            summary = found["over_tasks"][method]
            if summary[name] is None:
                continue
            style = {"color": colour_of(method), "solid_capstyle": "round"}
            if summary[f"{name}_interval"] is not None:
                axes.plot(
                    summary[f"{name}_interval"], [place + shift] * 2, lw=3, alpha=0.4, **style
                )
            axes.plot(summary[name], place + shift, marker, ms=5, color=colour_of(method))
    for place, method in zip(places, methods, strict=True):
        seeds = [np.mean(own) for own in zip(*found["normalized"][method].values(), strict=False)]
        axes.plot(seeds, [place] * len(seeds), "o", ms=3, mew=0, alpha=0.6, color=colour_of(method))
    for marker, size, label in (("o", 5, "interquartile mean"), ("D", 5, "mean"), ("o", 3, "seed")):
        axes.plot([], [], marker, color="0.4", ms=size, label=label)
    axes.set_yticks(places, [LABELS.get(m, m) for m in methods], fontsize=9)
    axes.set_xlabel("normalized score: random policy 0, best training 1", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _draw_improvement(axes: Any, improvement: Mapping[str, Any], others: Sequence[str]) -> None:
    for row, other in enumerate(others):
        chance, colour = improvement["over"][other], colour_of(other)
        by_task = list(chance["by_task"].values())
        axes.plot(by_task, [row + 0.22] * len(by_task), "o", ms=3, color=colour, alpha=0.5)
        if chance["interval"] is not None:
            axes.plot(chance["interval"], [row] * 2, lw=3, alpha=0.4, color=colour)
        axes.plot(chance["probability"], row, "o", ms=6, color=colour)
    for size, label in ((6, "over all tasks"), (3, "a task")):
        axes.plot([], [], "o", color="0.4", ms=size, label=label)
    first = improvement["of"]
    axes.legend(frameon=False, fontsize=8, loc="best")
    axes.axvline(0.5, color="0.6", lw=0.8, ls=":")
    axes.set_xlim(-0.03, 1.03)
    axes.set_yticks(range(len(others)), [LABELS.get(m, m) for m in others], fontsize=9)
    axes.set_xlabel(f"probability that {LABELS.get(first, first)} is better than", fontsize=9)


def _curves(found: Mapping[str, Any], method: str, env: str) -> list[np.ndarray]:
    return [
        np.array(trial["curve"], float)
        for trial in found["trials"].values()
        if (trial["settings"]["method"], trial["settings"]["env"]) == (method, env)
        and trial["curve"]
    ]


def on_one_grid(curves: Sequence[np.ndarray], points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Curves (P_i, 2) of several seeds at the same steps: (points,) and (curves, points).

    A training that diverged has NaN from there on, and the others go on without it.
    """
    ends = np.array([curve[-1, 0] for curve in curves])
    first = max(curve[0, 0] for curve in curves)
    last = ends[ends >= WHOLE * ends.max()].min()
    steps = np.linspace(first, last, points)
    return steps, np.stack(
        [np.interp(steps, curve[:, 0], curve[:, 1], right=np.nan) for curve in curves]
    )
