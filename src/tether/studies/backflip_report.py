"""How often the Hopper of the backflip study turned and landed: a table and the curves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tether.learning.reports.plots import COLOURS, step_label
from tether.learning.storage.durable import write_json
from tether.studies.statistics import summarize
from tether.studies.trials import Result


def write(
    out: Path,
    settings: Mapping[str, Any],
    protocol: Mapping[str, Any],
    results: Mapping[str, Result],
) -> dict[str, Any]:
    """Gathers the trials, writes ``backflip.json`` and ``backflip.png``; returns the former."""
    found = {
        "protocol": dict(protocol),
        "settings": dict(settings),
        "turns": summarize([float(np.mean(r["turns"])) for r in results.values()]),
        "landed": summarize([float(np.mean(r["landed"])) for r in results.values()]),
        "trials": dict(results),
    }
    write_json(out / "backflip.json", found, indent=None)
    draw(found, out / "backflip.png")
    return found


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Turns and landed turns of an episode while the policies learned, a line for each seed."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(7.6, 3.0), layout="constrained", sharey=True)
    for column, (axes, title) in enumerate(
        zip(panels, ("turns backwards", "landed upright"), strict=True)
    ):
        for i, (name, trial) in enumerate(found["trials"].items()):
            if not trial["curve"]:
                continue
            curve = np.array(trial["curve"], float)
            axes.plot(
                curve[:, 0],
                curve[:, 1 + column],
                color=COLOURS[i % len(COLOURS)],
                lw=1.4,
                label=name.replace("-", " "),
            )
        axes.set_title(title, fontsize=10)
        axes.xaxis.set_major_formatter(lambda x, _: step_label(x))
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("in an episode of 8 seconds", fontsize=9)
    panels[1].legend(frameon=False, fontsize=8)
    figure.supxlabel("environment steps", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def show(found: Mapping[str, Any]) -> None:
    """The table on stderr: a row for each seed."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{found['settings']['labels']} comparisons, "
        f"{step_label(found['settings']['steps'])} steps",
        box=SIMPLE_HEAD,
    )
    table.add_column("training")
    for heading in ("turns backwards", "landed upright", "time on the ground"):
        table.add_column(heading, justify="right")
    for name, trial in found["trials"].items():
        table.add_row(
            name.replace("-", " "),
            f"{np.mean(trial['turns']):.1f}",
            f"{np.mean(trial['landed']):.1f}",
            f"{np.mean(trial['lying']):.0%}",
        )
    console = Console(stderr=True)
    console.print(table)
    console.print("Means over episodes of 8 seconds, with the policy's most probable actions.")
