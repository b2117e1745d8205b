"""What the frontier study found: a figure, a table, and one file with all of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tether.learning.reports.plots import COLOURS
from tether.learning.storage.durable import write_json

SERIES: Final = {
    "dpo": "DPO",
    "ipo": "IPO",
    "ppo-learned": "PPO, learned reward",
    "ppo-gold": "PPO, gold reward",
    "preferred_ft": "tuned on preferred",
    "unlikelihood": "unlikelihood",
    "best-of-n": "best of N (bound)",
}
"""What is drawn, in this order."""

BUDGETS: Final = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""Divergences at which methods are compared, in nats."""


def write(
    out: Path, settings: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Gathers the trials, writes ``frontier.json`` and ``frontier.png``; returns the former."""
    start = results["sft"]["measured"]
    series = _series(results)
    frontiers = {
        name: frontier(_plane(points), start["gold"], BUDGETS) for name, points in series.items()
    }
    found = {
        "settings": dict(settings),
        "reference": start,
        "pairs": results["rankings"]["pairs"],
        "reward_model_accuracy": results["reward"]["accuracy"],
        "best_of_n": results["best-of-n"]["points"],
        "points": series,
        "budgets": list(BUDGETS),
        "frontiers": frontiers,
        "dpo_at_or_above_ppo": share_at_or_above(
            _plane(series["dpo"]), _plane(series["ppo-learned"]), start["gold"]
        ),
        "greatest_gold": {n: max(p["gold"] for p in points) for n, points in series.items()},
    }
    write_json(out / "frontier.json", found)
    draw(found, out / "frontier.png")
    return found


def _series(results: Mapping[str, Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    series: dict[str, list[dict[str, Any]]] = {name: [] for name in SERIES}
    for trial, result in results.items():
        if trial == "best-of-n":
            for point in result["points"]:
                if point["reward"] == "learned" and point["n"] > 1:
                    series[trial].append({**point, "trial": trial, "kl": point["bound"]})
            continue
        name = next((n for n in SERIES if trial == n or trial.startswith(f"{n}-")), None)
        if name is not None:
            series[name] += [{"trial": trial, **point} for point in result["points"]]
    return series


def _plane(points: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    return [(p["kl"], p["gold"]) for p in points]


def hull(points: Sequence[tuple[float, float]], start: float) -> NDArray[np.float64]:
    """Upper concave hull of policies (KL, reward), with the reference at (0, `start`); (H, 2).

    A mixture of two policies earns the mean of their rewards, and by convexity of the divergence
    at no more than the mean of their KLs. So what lies on the hull can be had.
    """
    ordered = sorted([(0.0, start), *((kl, value) for kl, value in points if kl >= 0.0)])
    upper: list[tuple[float, float]] = []
    for x, y in ordered:
        while len(upper) >= 2:
            (x1, y1), (x2, y2) = upper[-2:]
            if (x2 - x1) * (y - y1) < (x - x1) * (y2 - y1):
                break
            upper.pop()
        if upper and x == upper[-1][0]:
            # Of two policies equally far away the better one counts.
            upper[-1] = (x, max(y, upper[-1][1]))
        else:
            upper.append((x, y))
    best = int(np.argmax([y for _, y in upper]))
    return np.array(upper[: best + 1])


def frontier(
    points: Sequence[tuple[float, float]], start: float, budgets: ArrayLike
) -> list[float | None]:
    """The most reward for at most so much divergence, or None beyond the last policy."""
    edge = hull(points, start)
    budgets = np.asarray(budgets, float)
    values = np.interp(budgets, edge[:, 0], edge[:, 1])
    reach = max((kl for kl, _ in points), default=0.0)
    return [
        float(value) if budget <= reach else None
        for budget, value in zip(budgets, values, strict=True)
    ]


def share_at_or_above(
    one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]], start: float
) -> float | None:
    """Over which share of the divergences that both reach `one` earns at least what `other` does.

    Less by up to 0.005, a third of the standard error of a point, counts as the same.
    """
    reach = min(max((kl for kl, _ in points), default=0.0) for points in (one, other))
    if reach <= 0.0:
        return None
    grid = np.linspace(0.0, reach, 201)[1:]
    first, second = (np.interp(grid, *hull(points, start).T) for points in (one, other))
    return float(np.mean(first >= second - 0.005))


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Every measured policy as a point, and each method's frontier as a line."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    start = found["reference"]["gold"]
    figure, axes = plt.subplots(figsize=(8.0, 5.2), layout="constrained")
    markers = "ooss^vD"
    for (name, label), colour, marker in zip(SERIES.items(), COLOURS, markers, strict=True):
        points = _plane(found["points"][name])
        if not points:
            continue
        edge = hull(points, start)
        axes.plot(*edge.T, color=colour, linewidth=1.4, alpha=0.8)
        kls, rewards = zip(*points, strict=True)
        axes.scatter(kls, rewards, s=16, color=colour, marker=marker, label=label)
    axes.axhline(start, color="0.6", linewidth=0.8, linestyle=":")
    axes.annotate(
        "reference", (0.5, start), xycoords=("axes fraction", "data"), ha="center", va="bottom"
    )
    axes.set_xlim(left=-0.2, right=1.05 * _far(found))
    axes.set_xlabel("KL(policy || reference), nats per sequence")
    axes.set_ylabel("gold reward: mean probability of positive")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _far(found: Mapping[str, Any]) -> float:
    """Where the figure ends: the paper's 20 nats, or sooner."""
    return min(20.0, max(kl for points in found["points"].values() for kl, _ in _plane(points)))


def show(found: Mapping[str, Any]) -> None:
    """The frontiers as a table on stderr."""
    from rich.console import Console
    from rich.table import Table

    budgets = found["budgets"]
    table = Table(title="gold reward for at most so many nats")
    table.add_column("method")
    for budget in budgets:
        table.add_column(f"{budget:g}", justify="right")
    table.add_column("greatest", justify="right")
    for name, label in SERIES.items():
        row = [f"{v:.3f}" if v is not None else "" for v in found["frontiers"][name]]
        table.add_row(label, *row, f"{found['greatest_gold'][name]:.3f}")
    Console(stderr=True).print(table)
