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
from tether.studies.statistics import mean_band, probability_of_improvement, summarize

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
    out: Path,
    settings: Mapping[str, Any],
    protocol: Mapping[str, Any],
    results: Mapping[int, Mapping[str, Mapping[str, Any]]],
) -> dict[str, Any]:
    """Gathers the trials of every seed, writes ``frontier.json`` and ``frontier.png``.

    Returns:
        What the former says. ``frontiers``, ``greatest_gold``, ``best_of_n`` and the rest are means
        over the seeds; a budget that not every seed reaches has None. ``summaries`` says how sure
        they are; ``seeds`` has each seed's own; ``points`` has every measured policy with its seed.
    """
    seeds = {str(seed): _of_one(own) for seed, own in results.items()}
    series = {
        name: [{"seed": seed, **p} for seed, own in seeds.items() for p in own["points"][name]]
        for name in SERIES
    }
    summaries = {name: _summaries(name, list(seeds.values())) for name in SERIES}
    shares = [own["dpo_at_or_above_ppo"] for own in seeds.values()]
    found = {
        "settings": dict(settings),
        "protocol": dict(protocol),
        **{
            key: _mean([own[key] for own in seeds.values()])
            for key in ("reference", "pairs", "reward_model_accuracy", "best_of_n")
        },
        "points": series,
        "budgets": list(BUDGETS),
        "frontiers": {
            name: [None if one is None else one["mean"] for one in own["frontier"]]
            for name, own in summaries.items()
        },
        "greatest_gold": {name: own["greatest_gold"]["mean"] for name, own in summaries.items()},
        "dpo_at_or_above_ppo": None if None in shares else float(np.mean(shares)),
        "summaries": summaries,
        "improvement": {
            "of": "dpo",
            "over": {
                name: probability_of_improvement(*(_by_budget(n, seeds) for n in ("dpo", name)))
                for name in SERIES
                if name != "dpo"
            },
        },
        "seeds": {
            seed: {key: value for key, value in own.items() if key != "points"}
            for seed, own in seeds.items()
        },
    }
    write_json(out / "frontier.json", found)
    draw(found, out / "frontier.png")
    return found


def _of_one(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What one seed found."""
    start = results["sft"]["measured"]
    series = _series(results)
    return {
        "reference": start,
        "pairs": results["rankings"]["pairs"],
        "reward_model_accuracy": results["reward"]["accuracy"],
        "best_of_n": results["best-of-n"]["points"],
        "points": series,
        "frontiers": {
            name: frontier(_plane(points), start["gold"], BUDGETS)
            for name, points in series.items()
        },
        "dpo_at_or_above_ppo": share_at_or_above(
            _plane(series["dpo"]), _plane(series["ppo-learned"]), start["gold"]
        ),
        "greatest_gold": {n: max(p["gold"] for p in points) for n, points in series.items()},
    }


def _summaries(name: str, seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the seeds say of a method: at every budget that all of them reach, and at its best."""
    at_budgets = zip(*(own["frontiers"][name] for own in seeds), strict=True)
    return {
        "frontier": [None if None in golds else summarize(golds) for golds in at_budgets],
        "greatest_gold": summarize([own["greatest_gold"][name] for own in seeds]),
    }


def _by_budget(name: str, seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """A method's golds, one for each seed, at the budgets that every seed reaches."""
    golds = zip(*(own["frontiers"][name] for own in seeds.values()), strict=True)
    return {
        f"{budget:g}": list(own)
        for budget, own in zip(BUDGETS, golds, strict=True)
        if None not in own
    }


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers, or of the numbers at every place of lists and objects alike."""
    if isinstance(values[0], Mapping):
        return {key: _mean([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], list):
        return [_mean(several) for several in zip(*values, strict=True)]
    if isinstance(values[0], str) or all(value == values[0] for value in values):
        return values[0]
    return float(np.mean(values))


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
    """Every policy of every seed as a dot; each method's mean frontier with its interval."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    start = found["reference"]["gold"]
    figure, axes = plt.subplots(figsize=(8.0, 5.2), layout="constrained")
    markers = "ooss^vD"
    for (name, label), colour, marker in zip(SERIES.items(), COLOURS, markers, strict=True):
        points = found["points"][name]
        if not points:
            continue
        grid, edges = _frontiers(found, name)
        if len(edges) > 1:
            axes.fill_between(grid, *mean_band(edges), color=colour, alpha=0.18, linewidth=0)
        axes.plot(grid, edges.mean(0), color=colour, linewidth=1.6)
        kls, rewards = zip(*_plane(points), strict=True)
        axes.scatter(
            kls, rewards, s=12, color=colour, marker=marker, label=label, alpha=0.6, linewidths=0
        )
    axes.axhline(start, color="0.6", linewidth=0.8, linestyle=":")
    axes.annotate(
        "reference", (0.5, start), xycoords=("axes fraction", "data"), ha="center", va="bottom"
    )
    axes.set_xlim(left=-0.2, right=1.05 * _far(found))
    axes.set_xlabel("KL(policy || reference), nats per sequence")
    axes.set_ylabel("gold reward: mean probability of positive")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    count = len(found["seeds"])
    title = "one seed" if count == 1 else f"{count} seeds: mean, and its 95 % interval"
    axes.legend(frameon=False, fontsize=9, loc="lower right", title=title, title_fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _frontiers(
    found: Mapping[str, Any], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The frontier of every seed at the same divergences, as far as all of them reach."""
    planes = {
        seed: (
            _plane([p for p in found["points"][name] if p["seed"] == seed]),
            own["reference"]["gold"],
        )
        for seed, own in found["seeds"].items()
    }
    reach = min(max(kl for kl, _ in points) for points, _ in planes.values())
    # Hulls bend at their points.
    bends = [hull(points, start)[:, 0] for points, start in planes.values()]
    grid = np.unique(np.concatenate([np.linspace(0.0, reach, 200), *bends]))
    grid = grid[grid <= reach]
    edges = [np.interp(grid, *hull(points, start).T) for points, start in planes.values()]
    return grid, np.stack(edges)


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
        if len(found["seeds"]) > 1:
            own = found["summaries"][name]
            errors = [_error(one) for one in (*own["frontier"], own["greatest_gold"])]
            table.add_row("", *errors, style="dim")
    console = Console(stderr=True)
    console.print(table)
    for other in ("ppo-learned", "ppo-gold"):
        chance = found["improvement"]["over"][other]
        if chance["interval"] is not None:
            low, high = chance["interval"]
            console.print(
                f"probability that DPO earns more than {SERIES[other]} at the same divergence: "
                f"{chance['probability']:.2f} [{low:.2f}, {high:.2f}]"
            )


def _error(summary: Mapping[str, Any] | None) -> str:
    return "" if summary is None else f"±{summary['standard_error']:.3f}"
