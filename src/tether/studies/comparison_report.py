"""What a study of learning from comparisons found: curves, a table, and one file with all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tether.learning.reports.plots import COLOURS, step_label
from tether.learning.storage.durable import write_json
from tether.studies.comparison_trials import TRUE, Training
from tether.studies.figure3_plots import on_one_grid
from tether.studies.figure3_report import number
from tether.studies.statistics import summarize
from tether.studies.trials import Result


def gather(
    settings: Mapping[str, Any],
    protocol: Mapping[str, Any],
    chosen: Sequence[Training],
    results: Mapping[str, Result],
) -> dict[str, Any]:
    """The trainings by task and variant, with their scores."""
    cells: dict[str, dict[str, list[Result]]] = {}
    for variant, env, trial in chosen:
        cells.setdefault(env, {}).setdefault(variant, []).append(results[trial.name])
    return {
        "protocol": dict(protocol),
        "settings": dict(settings),
        "hours_of_training": sum(r.get("seconds", 0.0) for r in results.values()) / 3600,
        "scores": {
            env: {name: score(found, variants.get(TRUE, [])) for name, found in variants.items()}
            for env, variants in cells.items()
        },
        "trials": {
            trial.name: {
                "variant": variant,
                "env": env,
                "settings": dict(trial.settings),
                **results[trial.name],
            }
            for variant, env, trial in chosen
        },
    }


def write(
    path: Path, found: dict[str, Any], envs: Sequence[str], curves: Mapping[str, str]
) -> dict[str, Any]:
    """Writes what was found, and beside it a figure of the curves; returns what was found.

    Args:
        path: of the JSON file; the figure has its name, but for the ending.
        found: of :func:`gather`.
        envs: tasks that are drawn.
        curves: variants that are drawn, with their names in the legend.
    """
    write_json(path, found, indent=None)
    draw(found, path.with_suffix(".png"), envs, curves)
    return found


def score(found: Sequence[Result], true: Sequence[Result]) -> dict[str, Any]:
    """Of one variant on one task, over seeds.

    Returns:
        ``returns``, one for each seed; ``mean``, its standard ``error`` and 95 % bootstrap
        ``interval``, the interquartile mean ``iqm``; ``untrained``, the return with which training
        begins; and of the true reward's mean return ``share`` (which says nothing where that is
        negative) and ``share_of_rise``, (mean - untrained) / (true - untrained). What
        diverged counts with the end of its curve.
    """
    returns, theirs = _returns(found), _returns(true)
    begins = [r["curve"][0][1] for r in (*found, *true) if r["curve"]]
    over_seeds = summarize(returns)
    summary: dict[str, Any] = {
        "returns": returns,
        "n": len(returns),
        "mean": over_seeds["mean"],
        "error": over_seeds["standard_error"],
        "iqm": over_seeds["iqm"],
        "interval": over_seeds["mean_interval"],
        "untrained": summarize(begins)["mean"],
        "share": None,
        "share_of_rise": None,
        "diverged": sum("diverged" in result for result in found),
    }
    if returns and theirs:
        mean, goal, start = np.mean(returns), np.mean(theirs), summary["untrained"]
        if goal > 0:
            summary["share"] = float(mean / goal)
        if start is not None and goal > start:
            summary["share_of_rise"] = float((mean - start) / (goal - start))
    return summary


def _returns(results: Sequence[Result]) -> list[float]:
    found = [result.get("final", result["last_100"]) for result in results]
    return [value for value in found if value is not None]


def draw(
    found: Mapping[str, Any], path: Path, envs: Sequence[str], curves: Mapping[str, str]
) -> None:
    """A panel for each task: mean and range over seeds of each variant.

    Source:
        Christiano et al. (2017), figure 2.
    """
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    colours = dict(zip(curves, ["0.3", *COLOURS], strict=False))
    columns = min(3, len(envs) + 1)
    rows = -(-(len(envs) + 1) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3.9 * columns, 2.9 * rows), layout="constrained", squeeze=False
    )
    places = list(panels.flat)
    for env, axes in zip(envs, places, strict=False):
        for variant in curves:
            seen = [
                np.array(trial["curve"], float)
                for trial in found["trials"].values()
                if (trial["variant"], trial["env"]) == (variant, env) and trial["curve"]
            ]
            if not seen:
                continue
            steps, values = on_one_grid(seen)
            low, high = np.nanmin(values, 0), np.nanmax(values, 0)
            axes.fill_between(steps, low, high, color=colours[variant], alpha=0.12, lw=0)
            axes.plot(steps, np.nanmean(values, 0), color=colours[variant], lw=1.5)
        axes.set_title(env, fontsize=10)
        axes.xaxis.set_major_formatter(lambda x, _: step_label(x))
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in places[len(envs) :]:
        axes.axis("off")
    handles = [Line2D([], [], color=colours[v], label=name) for v, name in curves.items()]
    places[len(envs)].legend(handles=handles, loc="center", frameon=False, fontsize=9)
    figure.supxlabel("environment steps", fontsize=9)
    figure.supylabel("true return, mean of the last 100 training episodes", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def show(found: Mapping[str, Any], name_of: Callable[[str], str]) -> None:
    """The table on stderr: a row for each task and variant.

    Args:
        found: of :func:`gather`.
        name_of: a variant, as people read it.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    settings = found["settings"]
    steps = step_label(settings["steps"])
    table = Table(
        title=f"true return after {steps} steps, seeds {settings['seeds']}", box=SIMPLE_HEAD
    )
    table.add_column("task", overflow="fold")
    table.add_column("learns from")
    for heading in ("return", "95 % interval", "of the true reward's", "of its rise"):
        table.add_column(heading, justify="right")
    for env, variants in found["scores"].items():
        for variant, cell in variants.items():
            error = "" if cell["error"] is None else f" ± {number(cell['error'])}"
            low_high = cell["interval"]
            table.add_row(
                env if variant == next(iter(variants)) else "",
                name_of(variant),
                number(cell["mean"]) + error,
                "" if low_high is None else f"{number(low_high[0])} to {number(low_high[1])}",
                _percent(cell["share"]),
                _percent(cell["share_of_rise"]),
                end_section=variant == list(variants)[-1],
            )
    console = Console(stderr=True)
    console.print(table)
    console.print(
        "return: whole episodes of the last policy, most probable actions; ± one standard error of "
        "the mean over seeds; rise: from the untrained policy."
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
