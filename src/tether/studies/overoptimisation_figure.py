"""The figure of the study of over-optimisation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tether.learning.reports.plots import COLOURS
from tether.studies.dots import draw_dots
from tether.studies.overoptimisation_fits import Form, curve

_REMEDIES: Final = {
    "kl-penalty": "KL penalty",
    "budget": "KL budget",
    "ensemble-mean": "ensemble, mean",
    "ensemble-lowest": "ensemble, lowest",
    "ensemble-mean-variance": "ensemble, mean − variance",
    "clip": "clipped scores",
    "early-stop": "early stop",
}


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Gold reward by the square root of the divergence, with fits; truth with each remedy.

    Dots are the measurements of every seed. Dashed lines are Gao's forms through all of them.
    """
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    figure, ((chosen, learned), (truth, lost)) = plt.subplots(
        2, 2, figsize=(11.0, 8.4), layout="constrained"
    )
    sizes = sorted(int(name) for name in found["best_of_n"] if name.isdigit())
    colours = dict(
        zip(sizes, plt.get_cmap("viridis")(np.linspace(0.0, 0.88, len(sizes))), strict=True)
    )
    for size in sizes:
        label = f"{size:,} comparisons"
        one = found["best_of_n"][f"{size}"]
        _points(chosen, [one["points"]], "log_odds", colours[size], label)
        _fitted(chosen, one["fit"]["log_odds"], one["points"][-1]["kl"], "best-of-n", colours[size])
        arm = found["ppo"][f"ppo-{size}"]
        curves = _curves(arm)
        _points(learned, curves, "log_odds", colours[size], label)
        reach = max(row["kl"] for rows in curves for row in rows)
        _fitted(learned, arm["fit"]["log_odds"], reach, "rl", colours[size])
    chosen.set_title("best of n", fontsize=10)
    learned.set_title("PPO without a KL penalty", fontsize=10)
    for axes in (chosen, learned):
        axes.set_ylabel("gold log-odds, counted from the reference")
        axes.axhline(0.0, color="0.6", linewidth=0.8, linestyle=":")
    _draw_truth(truth, found)
    _draw_lost(lost, found)
    for axes in (chosen, learned, truth):
        axes.set_xlabel("√KL(policy || reference), √nats")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    for axes in (chosen, learned, truth, lost):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_truth(axes: Any, found: Mapping[str, Any]) -> None:
    """The truth along every training from the one reward model."""
    size = found["settings"]["remedy_comparisons"]
    plain = found["ppo"][f"ppo-{size}"]
    _line(axes, _curves(plain), "0.25", "no remedy", width=2.2)
    for (name, label), colour in zip(_REMEDIES.items(), COLOURS, strict=True):
        one = found["ppo"][name]
        if name == "early-stop":
            kl, kept = one["end"]["kl"]["mean"], one["end"]["truth"]["mean"]
            axes.plot(np.sqrt(kl), kept, "*", ms=13, color=colour, label=label, zorder=5)
        else:
            _line(axes, _curves(one), colour, label)
    axes.set_ylabel("truth: share positive and fluent")
    axes.set_title(f"the reward model of {size:,} comparisons, with each remedy", fontsize=10)


def _draw_lost(axes: Any, found: Mapping[str, Any]) -> None:
    """What the truth has lost since its peak, every seed a dot."""
    size = found["settings"]["remedy_comparisons"]
    rows = {f"ppo-{size}": "no remedy", **_REMEDIES}
    for place, (name, colour) in enumerate(zip(rows, ("0.25", *COLOURS), strict=True)):
        one = found["ppo"][name]
        values = [
            own["turn"] if name == "early-stop" else own["turn"]["truth"]
            for own in one["seeds"].values()
        ]
        draw_dots(axes, place, values, one["turn"]["truth"], colour, horizontal=True)
        axes.annotate(
            f"ends at {one['end']['truth']['mean']:.2f}, {one['end']['kl']['mean']:.1f} nats",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    axes.axvline(0.0, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), list(rows.values()), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("truth lost since its peak")
    axes.set_title("mean, its 95 % interval, and every seed", fontsize=10)


def _curves(arm: Mapping[str, Any]) -> list[list[Mapping[str, float]]]:
    return [own["points"] for own in arm["seeds"].values()]


def _points(
    axes: Any,
    curves: Sequence[Sequence[Mapping[str, float]]],
    measure: str,
    colour: Any,
    label: str,
) -> None:
    for number, rows in enumerate(curves):
        axes.plot(
            [np.sqrt(row["kl"]) for row in rows],
            [row[measure] - rows[0][measure] for row in rows],
            "o",
            ms=4,
            mew=0,
            alpha=0.75,
            color=colour,
            label=label if number == 0 else None,
        )


def _fitted(
    axes: Any, fit: Mapping[str, Any] | None, reach: float, form: Form, colour: Any
) -> None:
    if fit is None:
        return
    kl = np.linspace(0.0, np.sqrt(reach), 200) ** 2
    fitted = curve(kl, fit["alpha"], fit["beta"], form)
    axes.plot(np.sqrt(kl), fitted, "--", color=colour, linewidth=1.3)


def _line(
    axes: Any,
    curves: Sequence[Sequence[Mapping[str, float]]],
    colour: str,
    label: str,
    *,
    width: float = 1.5,
) -> None:
    """The mean of the seeds at every measurement that all have, and each seed's points."""
    count = min(map(len, curves))
    kl, truth = (
        np.array([[row[name] for row in rows[:count]] for rows in curves])
        for name in ("kl", "truth")
    )
    axes.plot(np.sqrt(kl.mean(0)), truth.mean(0), color=colour, linewidth=width, label=label)
    for rows in curves:
        x, y = [np.sqrt(row["kl"]) for row in rows], [row["truth"] for row in rows]
        axes.plot(x, y, "o", ms=2.8, mew=0, alpha=0.6, color=colour)
