"""What the study of step sizes found: one step of every length, and trainings at every size."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tether.learning.reports.plots import COLOURS
from tether.learning.storage.durable import write_json
from tether.studies.control_trials import mean_and_deviation
from tether.studies.statistics import summarize
from tether.studies.trials import Result, Trial

DIRECTIONS: Final = {"gradient": "along the gradient", "natural": "along the natural gradient"}
METHODS: Final = {"vpg": "plain policy gradient, Adam", "trpo": "trust region (TRPO)"}
SIZE_OF: Final = {"vpg": "learning_rate", "trpo": "max_kl"}


def write(
    out: Path,
    settings: Mapping[str, Any],
    protocol: Mapping[str, Any],
    trials: Sequence[Trial],
    results: Mapping[str, Result],
) -> dict[str, Any]:
    """Gathers the trials, writes ``cliff.json`` and ``cliff.png``; returns the former."""
    sweeps: dict[str, dict[float, list[Result]]] = {method: {} for method in METHODS}
    for trial in trials:
        method = trial.settings["method"]
        size = trial.settings["settings"][SIZE_OF[method]]
        sweeps[method].setdefault(size, []).append(results[trial.name])
    found = {
        "settings": dict(settings),
        "protocol": dict(protocol),
        "one_step": results["one-step"]["points"],
        "trainings": {
            method: [{"size": size, **_summary(seeds)} for size, seeds in sizes.items()]
            for method, sizes in sweeps.items()
        },
    }
    write_json(out / "cliff.json", found)
    draw(found, out / "cliff.png")
    return found


def _summary(seeds: Sequence[Result]) -> dict[str, Any]:
    """Where the seeds ended, and the highest point of their curves; None for no episode at all."""
    ends = [r["last_100"] for r in seeds]
    tops = [max((value for _, value in r["curve"]), default=None) for r in seeds]
    return {
        "end": mean_and_deviation(ends)[0],
        "ends": ends,
        "tops": tops,
        "summary": summarize(ends),
        "diverged": sum("diverged" in r for r in seeds),
    }


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Left: one step of every length. Middle and right: trainings at every step size."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    settings = found["settings"]
    figure, panels = plt.subplots(
        1, 3, figsize=(12.5, 3.9), layout="constrained", width_ratios=(1.4, 1, 1)
    )
    _one_step(panels[0], found)
    for axes, (method, colour) in zip(
        panels[1:], (("vpg", COLOURS[1]), ("trpo", COLOURS[0])), strict=True
    ):
        rows = found["trainings"][method]
        sizes = [row["size"] for row in rows]
        for row in rows:
            ends = np.array(row["ends"], float)
            axes.plot([row["size"]] * len(ends), ends, "o", color=colour, ms=3.5, mew=0)
            if row["summary"]["mean_interval"] is not None:
                span = row["summary"]["mean_interval"]
                axes.plot([row["size"]] * 2, span, color=colour, lw=5, alpha=0.25)
        axes.plot(sizes, np.array([row["end"] for row in rows], float), color=colour, lw=1.6)
        axes.set_xscale("log")
        axes.set_title(METHODS[method], fontsize=10)
        axes.set_xlabel("Adam's step size" if method == "vpg" else "largest KL of a step, nats")
    panels[1].set_ylabel(f"return after {settings['steps']:,} steps")
    every = [row["ends"] for rows in found["trainings"].values() for row in rows]
    found_ends = [end for ends in every for end in ends if end is not None]
    low, top = min([0.0, *found_ends]), max([0.0, *found_ends])
    margin = 0.08 * (top - low)
    for axes in panels[1:]:
        axes.set_ylim(low - margin * (low < 0), top + margin)
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(settings["env"], fontsize=11)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _one_step(axes: Any, found: Mapping[str, Any]) -> None:
    promised = axes.twinx()
    for (name, label), colour in zip(DIRECTIONS.items(), (COLOURS[1], COLOURS[0]), strict=True):
        points = found["one_step"][name][1:]
        lengths = [p["length"] for p in points]
        earned = [p["return"] for p in points]
        errors = [p["return_error"] for p in points]
        axes.errorbar(
            lengths, earned, errors, color=colour, marker="o", ms=3.5, lw=1.6, label=label
        )
        promised.plot(lengths, [p["promise"] for p in points], color=colour, lw=1.0, ls="--")
    start = found["one_step"]["gradient"][0]["return"]
    axes.axhline(start, color="0.5", lw=0.8, ls=":")
    axes.axvspan(0.0, found["settings"]["max_kl"], color="0.93")
    axes.set_xscale("log")
    if axes.get_ylim()[0] > 0:
        axes.set_ylim(bottom=0.0)
    promised.set_ylabel("promised by the surrogate (dashed)")
    promised.spines[["top"]].set_visible(False)
    axes.set_title("one step from a policy half-way up", fontsize=10)
    axes.set_xlabel("length of the step: KL divergence to second order, nats")
    axes.set_ylabel("return of the new policy")
    axes.legend(frameon=False, fontsize=9, loc="center left")


def show(found: Mapping[str, Any]) -> None:
    """Both tables on stderr."""
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True)
    one = Table(title="one step: promised by the surrogate, and earned")
    for heading in (
        "length, nats",
        *(f"{d}: {w}" for d in DIRECTIONS for w in ("promise", "return")),
    ):
        one.add_column(heading, justify="right")
    for pair in zip(*(found["one_step"][name] for name in DIRECTIONS), strict=True):
        cells = [f"{p['promise']:.3f}|{p['return']:,.0f}".split("|") for p in pair]
        one.add_row(f"{pair[0]['length']:g}", *(cell for cells_ in cells for cell in cells_))
    console.print(one)
    for method, label in METHODS.items():
        table = Table(title=label)
        for heading in ("step size", "return at the end", "95 %", "seeds"):
            table.add_column(heading, justify="right")
        for row in found["trainings"][method]:
            end, *seeds = (
                "no episode" if score is None else f"{score:,.0f}"
                for score in (row["end"], *row["ends"])
            )
            span = row["summary"]["mean_interval"]
            interval = "" if span is None else f"{span[0]:,.0f} … {span[1]:,.0f}"
            table.add_row(f"{row['size']:g}", end, interval, ", ".join(seeds))
        console.print(table)
