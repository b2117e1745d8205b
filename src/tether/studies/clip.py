"""The clipped surrogate of one action, for both signs of the advantage: figure 1 of the PPO paper.

The lecture's table has six rows: the ratio within the region, below or above it, with a good or a
bad action. Each row is a point of the figure; its value and whether the clip holds it come from the
very functions that train policies.

Source:
    Schulman et al., "Proximal Policy Optimization Algorithms" (2017), equation 7, figure 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tether import objectives
from tether.errors import UserError
from tether.learning.config import Config
from tether.learning.reports.plots import COLOURS
from tether.learning.storage.durable import write_json
from tether.studies.command_line import carry_out


class ClipConfig(Config):
    """Settings of the picture."""

    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """The clip range: the ratio may differ from 1 by this much."""


def run(config: ClipConfig, out: Path) -> dict[str, Any]:
    """Evaluates the table's rows, writes ``clip.json`` and ``clip.png``; returns the former.

    Raises:
        UserError: `out` cannot be written.
    """
    found = {"settings": config.dump(), "rows": rows(config.epsilon)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "clip.json", found)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from error
    draw(found, out / "clip.png")
    return found


def rows(epsilon: float) -> list[dict[str, Any]]:
    """The lecture's table: ratio, advantage, value of the minimum, and whether it is clipped."""
    table: list[dict[str, Any]] = []
    regions = {
        "within": 1.0,
        "r < 1 - epsilon": max(1.0 - 2.0 * epsilon, 0.5 * (1.0 - epsilon)),
        "r > 1 + epsilon": 1.0 + 2.0 * epsilon,
    }
    for region, ratio in regions.items():
        for advantage in (1.0, -1.0):
            log_ratio, weight = np.log([ratio]), np.array([advantage])
            clipped = bool(objectives.clip_active(log_ratio, weight, epsilon)[0])
            bound = "1 + epsilon" if advantage > 0 else "1 - epsilon"
            table.append(
                {
                    "row": len(table) + 1,
                    "region": region,
                    "ratio": ratio,
                    "advantage": advantage,
                    "minimum": f"({bound}) A" if clipped else "r A",
                    "value": float(objectives.clipped_surrogate(log_ratio, weight, epsilon)),
                    "clipped": clipped,
                }
            )
    return table


def draw(found: Mapping[str, Any], path: Path) -> None:
    """One panel for a good action, one for a bad one; the table's rows as numbered points."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    epsilon = found["settings"]["epsilon"]
    ratio = np.linspace(0.01, 2.0, 600)
    figure, panels = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")
    for axes, sign in zip(panels, (1.0, -1.0), strict=True):
        advantage = np.full_like(ratio, sign)
        log_ratio = np.log(ratio)
        clipped = objectives.clipped_surrogate(log_ratio, advantage, epsilon, reduction="none")
        plain = objectives.surrogate(log_ratio, advantage, reduction="none")
        axes.axvspan(1 - epsilon, 1 + epsilon, color="0.93")
        axes.plot(ratio, plain, color="0.6", lw=1.2, ls="--", label="r A")
        axes.plot(ratio, clipped, color=COLOURS[0 if sign > 0 else 1], lw=2.2, label="clipped")
        axes.plot([1.0], [sign], "o", color="0.2", ms=4)
        for row in found["rows"]:
            if row["advantage"] == sign:
                axes.plot([row["ratio"]], [row["value"]], "o", color="white", mec="0.2", ms=13)
                axes.annotate(
                    str(row["row"]),
                    (row["ratio"], row["value"]),
                    ha="center",
                    va="center",
                    fontsize=8,
                )
        axes.set_title("A > 0: a good action" if sign > 0 else "A < 0: a bad action", fontsize=10)
        axes.set_xlabel("ratio r = new probability / old probability")
        axes.set_xticks([0.0, 1 - epsilon, 1.0, 1 + epsilon, 2.0])
        axes.set_xticklabels(["0", f"1 - {epsilon:g}", "1", f"1 + {epsilon:g}", "2"], fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    panels[0].set_ylabel("objective of the action")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(found: Mapping[str, Any]) -> None:
    """The lecture's table on stderr, filled in."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"the clipped surrogate, epsilon = {found['settings']['epsilon']:g}")
    for heading in ("row", "ratio", "advantage", "value of the minimum", "objective is clipped"):
        table.add_column(heading)
    for row in found["rows"]:
        table.add_row(
            str(row["row"]),
            row["region"],
            "+" if row["advantage"] > 0 else "-",
            row["minimum"],
            "yes" if row["clipped"] else "no",
        )
    Console(stderr=True).print(table)


def command(arguments: Sequence[str]) -> None:
    """`tether study clip`."""
    carry_out(
        "clip",
        "Draw the clipped surrogate for both signs of the advantage, the table's rows marked.",
        ClipConfig,
        run,
        show,
        arguments,
        out="Folder of the picture.",
    )
