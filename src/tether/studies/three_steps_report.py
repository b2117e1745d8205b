"""What the study of the three steps found: numbers, a figure, and a few texts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from tether.learning.reports.plots import COLOURS
from tether.learning.storage.durable import write_json
from tether.studies.dots import draw_dots
from tether.studies.statistics import probability_of_improvement, summarize
from tether.studies.trials import Result

POLICIES: Final = {"base": "base", "sft": "SFT", "ppo": "SFT + RM + PPO", "dpo": "SFT + DPO"}
MEASURES: Final = ("gold", "win_rate", "kl")


def write(
    out: Path,
    settings: Mapping[str, Any],
    protocol: Mapping[str, Any],
    results: Mapping[int, Mapping[str, Result]],
) -> dict[str, Any]:
    """Gathers the trials of every seed, writes ``three-steps.json`` and ``three-steps.png``.

    Returns:
        What the former says. Numbers of a policy are means over the seeds; ``summaries`` says how
        sure they are, ``seeds`` has each seed's own, with standard errors over its prompts.
        ``samples`` are texts of the first seed.
    """
    seeds = list(results)
    judged = {seed: results[seed]["judgement"]["policies"] for seed in seeds}
    policies = {}
    for name in POLICIES:
        own = {str(seed): judged[seed][name] for seed in seeds}
        means = {
            key: float(np.mean([one[key] for one in own.values()])) for key in own[str(seeds[0])]
        }
        summaries = {
            measure: summarize([one[measure] for one in own.values()]) for measure in MEASURES
        }
        policies[name] = {**means, "summaries": summaries, "seeds": own}
    gold = {name: {"": [judged[seed][name]["gold"] for seed in seeds]} for name in POLICIES}
    found = {
        "settings": dict(settings),
        "protocol": dict(protocol),
        "pairs": float(np.mean([results[seed]["rankings"]["pairs"] for seed in seeds])),
        "reward_model_accuracy": float(
            np.mean([results[seed]["reward"]["accuracy"] for seed in seeds])
        ),
        "policies": policies,
        "improvement": {
            "of": "ppo",
            "over": {
                name: probability_of_improvement(gold["ppo"], gold[name])
                for name in POLICIES
                if name != "ppo"
            },
        },
        "samples": results[seeds[0]]["judgement"]["samples"],
    }
    write_json(out / "three-steps.json", found)
    draw(found, out / "three-steps.png")
    return found


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Gold reward, win rate and divergence of the four; every seed a dot."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    policies = found["policies"]
    figure, panels = plt.subplots(1, 3, figsize=(9.6, 2.9), layout="constrained", sharey=True)
    titles = {
        "gold": "probability of positive, gold",
        "win_rate": "win rate against SFT",
        "kl": "KL to SFT, nats",
    }
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        for place, (name, colour) in enumerate(zip(policies, COLOURS, strict=False)):
            summary = policies[name]["summaries"][key]
            scores = [one[key] for one in policies[name]["seeds"].values()]
            axes.barh(place, summary["mean"], 0.62, color=colour, alpha=0.22, lw=0)
            draw_dots(axes, place, scores, summary, colour, horizontal=True)
            axes.annotate(
                f"{summary['mean']:.2f}" if key != "kl" else f"{summary['mean']:.1f}",
                (1.01, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=8,
            )
        axes.set_xlim(left=0.0)
        if key != "kl":
            axes.set_xlim(right=1.02)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(policies)), [POLICIES[name] for name in policies])
    panels[0].invert_yaxis()
    panels[1].axvline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    grey = "0.4"
    handles = [
        Line2D([], [], color=grey, marker="o", ms=3.5, lw=0, label="a seed"),
        Line2D([], [], color=grey, marker="|", ms=10, mew=2, lw=0, label="mean"),
        Patch(color=grey, alpha=0.3, lw=0, label="95 % interval of the mean"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(found: Mapping[str, Any]) -> None:
    """Numbers and a few texts, on stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="gold scores of held-out prompts; win rate and KL are against SFT")
    for column in ("policy", "positive", "95 %", "win rate", "KL, nats"):
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for name, row in found["policies"].items():
        gold, kl = row["summaries"]["gold"], row["summaries"]["kl"]
        table.add_row(
            POLICIES[name],
            f"{gold['mean']:.3f}{_error(gold, 3)}",
            _interval(gold),
            f"{row['win_rate']:.2f}{_error(row['summaries']['win_rate'], 2)}",
            f"{kl['mean']:.2f}{_error(kl, 2)}",
        )
    texts = Table(title="what they write", show_lines=True)
    for column in ("prompt", *POLICIES.values()):
        texts.add_column(column)
    for sample in found["samples"]:
        start = len(sample["prompt"])
        texts.add_row(
            sample["prompt"].strip(), *("..." + sample[name][start:] for name in POLICIES)
        )
    console = Console(stderr=True)
    console.print(table)
    console.print(texts)
    chance = found["improvement"]["over"]["dpo"]
    if chance["interval"] is not None:
        low, high = chance["interval"]
        console.print(
            f"probability that a seed's PPO earns more than another's DPO: "
            f"{chance['probability']:.2f} [{low:.2f}, {high:.2f}]"
        )


def _error(summary: Mapping[str, Any], digits: int) -> str:
    error = summary["standard_error"]
    return "" if error is None else f" ± {error:.{digits}f}"


def _interval(summary: Mapping[str, Any]) -> str:
    interval = summary["mean_interval"]
    return "" if interval is None else f"{interval[0]:.3f} … {interval[1]:.3f}"
