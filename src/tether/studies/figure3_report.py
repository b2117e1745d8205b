"""What the study of figure 3 found: the paper's grid, a table, and one file with all of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tether.learning.reports.plots import COLOURS, step_label
from tether.learning.storage.durable import write_json
from tether.studies.control_trials import by_cell, mean_and_deviation
from tether.studies.published import PAPER, REWARD_CHANGES, SOURCES, task
from tether.studies.trials import Result, Trial

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


def write(
    out: Path, settings: Mapping[str, Any], trials: Sequence[Trial], results: Mapping[str, Result]
) -> dict[str, Any]:
    """Gathers the trials, writes ``figure3.json`` and ``figure3.png``; returns the former."""
    cells = by_cell(results, trials)
    found = {
        "settings": dict(settings),
        "sources": [source._asdict() for source in SOURCES],
        "reward_changes": REWARD_CHANGES,
        "hours_of_training": sum(r.get("seconds", 0.0) for r in results.values()) / 3600,
        "scores": {
            env: {method: _score(cells[method, env]) for method in settings["methods"]}
            for env in settings["envs"]
        },
        "trials": {t.name: {"settings": dict(t.settings), **results[t.name]} for t in trials},
    }
    write_json(out / "figure3.json", found, indent=None)
    draw(found, out / "figure3.png")
    return found


def _score(seeds: Sequence[Result]) -> dict[str, Any]:
    """Mean and population deviation over seeds; of those that diverged the end of their curve."""
    finals = [r.get("final", r["last_100"]) for r in seeds]
    tenths = [r["last_tenth"] for r in seeds]
    final, final_std = mean_and_deviation(finals)
    last_tenth, last_tenth_std = mean_and_deviation(tenths)
    return {
        "final": final,
        "final_std": final_std,
        "last_tenth": last_tenth,
        "last_tenth_std": last_tenth_std,
        "finals": finals,
        "diverged": sum("diverged" in r for r in seeds),
    }


def draw(found: Mapping[str, Any], path: Path) -> None:
    """A panel for each task: mean and range over seeds, and the paper's last scores, dashed."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    settings = found["settings"]
    envs, methods = settings["envs"], settings["methods"]
    colours = {
        method: COLOURS[list(LABELS).index(method) if method in LABELS else -1]
        for method in methods
    }
    columns = min(4, len(envs) + 1)
    rows = -(-(len(envs) + 1) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 2.9 * rows), layout="constrained", squeeze=False
    )
    places = list(panels.flat)
    for env, axes in zip(envs, places, strict=False):
        for method in methods:
            curves = _curves(found, method, env)
            if curves:
                steps, values = on_one_grid(curves)
                axes.fill_between(
                    steps,
                    np.nanmin(values, 0),
                    np.nanmax(values, 0),
                    color=colours[method],
                    alpha=0.15,
                    lw=0,
                )
                axes.plot(steps, np.nanmean(values, 0), color=colours[method], lw=1.4)
            papers = PAPER.scores.get(task(env), {}).get(method)
            if papers is not None:
                axes.axhline(papers, color=colours[method], lw=0.8, ls=(0, (4, 3)))
        axes.set_title(env, fontsize=10)
        axes.xaxis.set_major_formatter(lambda x, _: step_label(x))
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in places[len(envs) :]:
        axes.axis("off")
    handles = [Line2D([], [], color=colours[m], label=LABELS.get(m, m)) for m in methods]
    handles.append(
        Line2D([], [], color="0.4", lw=0.8, ls=(0, (4, 3)), label="the paper's last score")
    )
    places[len(envs)].legend(handles=handles, loc="center", frameon=False, fontsize=9)
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("mean return of the last 100 training episodes", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


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


def show(found: Mapping[str, Any]) -> None:
    """The table on stderr: a row for each task and method, with what others published."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    steps = step_label(found["settings"]["steps"])
    title = f"return after {steps} steps, seeds {found['settings']['seeds']}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold")
    table.add_column("method")
    for heading in ("evaluated", "last tenth", *(s["heading"] for s in found["sources"])):
        table.add_column(heading, justify="right", no_wrap=True)
    for env, methods in found["scores"].items():
        for method, score in methods.items():
            others = [s["scores"].get(task(env), {}).get(method) for s in found["sources"]]
            table.add_row(
                env if method == next(iter(methods)) else "",
                method,
                _cell(score),
                number(score["last_tenth"]),
                *(number(other) for other in others),
                end_section=method == list(methods)[-1],
            )
    console = Console(stderr=True)
    console.print(table)
    console.print(
        "evaluated: whole episodes of the last policy, most probable actions; last tenth: of the "
        "learning curve, with sampled ones."
    )
    for source in found["sources"]:
        console.print(
            f"{source['title']}: {source['versions']}, {source['seeds']} seeds, {source['score']}."
        )


def _cell(score: Mapping[str, Any]) -> str:
    diverged = f", {score['diverged']} diverged" if score["diverged"] else ""
    if score["final"] is None:
        return f"no episode{diverged}"
    return f"{number(score['final'])} ± {number(score['final_std'])}{diverged}"


def number(score: float | None) -> str:
    """A score to the digits that mean something; nothing for None."""
    if score is None:
        return ""
    return f"{score:,.1f}" if abs(score) < 100 else f"{score:,.0f}"
