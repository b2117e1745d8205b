"""What the RLAIF study found: win rates of every policy against every other, and a figure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tether.language.evaluation.win_rate import length_controlled, win_rate
from tether.learning.reports.plots import COLOURS
from tether.learning.storage.durable import write_json
from tether.studies.dots import draw_dots
from tether.studies.statistics import summarize
from tether.studies.trials import Result

ARMS: Final = {
    "gold": "gold labels, RM, PPO",
    "distilled": "AI labels, RM, PPO",
    "direct": "judge in the loop, PPO",
    "dpo": "AI labels, DPO",
    "null": "always-first labels, RM, PPO",
}
POLICIES: Final = {"sft": "SFT", **ARMS}
EVALUATORS: Final = {"gold": "gold scorer", "vader": "VADER"}
MEASURES: Final = ("positive", "vader", "kl", "words")


def write(
    out: Path,
    settings: Mapping[str, Any],
    protocol: Mapping[str, Any],
    results: Mapping[int, Mapping[str, Result]],
) -> dict[str, Any]:
    """Gathers the trials of every seed, writes ``rlaif.json`` and ``rlaif.png``.

    Returns:
        What the former says: ``policies``, each with its ``summaries`` over the seeds and every
        seed's own means; ``win_rates`` by evaluator, policy and rival; ``distilled_against_gold``
        and ``against_sft``, the same for the comparisons that matter most; ``labels``, the judge's
        agreement with the gold scorer; ``reward_models``.
    """
    seeds = list(results)
    said = {seed: results[seed]["measurement"]["policies"] for seed in seeds}
    rates = win_rates(said)
    found = {
        "settings": dict(settings),
        "protocol": dict(protocol),
        "policies": {
            name: {
                "title": title,
                **_over_seeds({seed: said[seed][name] for seed in seeds}),
                **_divergence(name, results, float(settings["kl_target"])),
            }
            for name, title in POLICIES.items()
        },
        "win_rates": rates,
        "against_sft": {e: {arm: rates[e][arm]["sft"] for arm in ARMS} for e in EVALUATORS},
        "distilled_against_gold": {e: rates[e]["distilled"]["gold"] for e in EVALUATORS},
        "labels": _labels([results[seed]["labels"] for seed in seeds]),
        "reward_models": {
            arm: summarize([results[seed][f"reward-{arm}"]["accuracy"] for seed in seeds])
            for arm in ("gold", "distilled", "null")
        },
        "samples": results[seeds[0]]["measurement"]["samples"],
    }
    write_json(out / "rlaif.json", found)
    draw(found, out / "rlaif.png")
    return found


def win_rates(
    said: Mapping[int, Mapping[str, Mapping[str, Sequence[float]]]],
) -> dict[str, dict[str, dict[str, Any]]]:
    """How often each policy's continuation is better than each other's of the same prompt.

    Args:
        said: by seed and policy the scores of each evaluator and the ``words``, one for a prompt.

    Returns:
        By evaluator, policy and rival: ``win_rate``, ties counting half, with its bootstrap
        ``interval`` over seeds and prompts, ``n`` and ``ties``; and ``length_controlled``.
    """
    first = next(iter(said.values()))
    groups = [seed for seed, own in said.items() for _ in own["sft"]["words"]]

    def every(name: str, key: str) -> NDArray[np.float64]:
        return np.concatenate([np.asarray(own[name][key], float) for own in said.values()])

    def rate(evaluator: str, one: str, other: str) -> dict[str, Any]:
        ours, theirs = every(one, evaluator), every(other, evaluator)
        return {
            **win_rate(ours, theirs, groups=groups),
            "length_controlled": length_controlled(
                ours, theirs, every(one, "words"), every(other, "words")
            ),
        }

    return {
        evaluator: {
            one: {other: rate(evaluator, one, other) for other in first if other != one}
            for one in first
        }
        for evaluator in EVALUATORS
    }


def _over_seeds(own: Mapping[int, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    means = {
        str(seed): {key: float(np.mean(values[key])) for key in MEASURES}
        for seed, values in own.items()
    }
    summaries = {key: summarize([one[key] for one in means.values()]) for key in MEASURES}
    return {"summaries": summaries, "seeds": means}


def _divergence(
    name: str, results: Mapping[int, Mapping[str, Result]], target: float
) -> dict[str, Any]:
    """The measurements along an arm's training, and on how many seeds it got as far as it should.

    A training that never got to the target ended with its budget.
    """
    if name == "sft":
        return {}
    trial = name if name == "dpo" else f"ppo-{name}"
    paths = {str(seed): own[trial]["path"] for seed, own in results.items()}
    reached = sum(any(row["kl"] >= target for row in path) for path in paths.values())
    return {"paths": paths, "reached_target": reached}


def _labels(said: Sequence[Result]) -> dict[str, Any]:
    audits = [one["held_out"] for one in said]
    found = {
        name: summarize([one[name] for one in audits])
        for name in ("agreement", "calibration_error", "mass", "certainty")
    }
    return {
        "judge": audits[0]["judge"],
        "pairs": sum(one["human_labels"] for one in audits),
        **found,
        "readings": sum(one["paid"] for one in said),
        "seconds": sum(one["seconds"] for one in said),
    }


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Gold and divergence of every policy, win rates against SFT, and each against each."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1, 4, figsize=(13.2, 3.5), layout="constrained", width_ratios=(1, 0.8, 1, 1.25)
    )
    for axes, key, title in (
        (panels[0], "positive", "probability of positive, gold"),
        (panels[1], "kl", "KL to SFT, nats"),
    ):
        _draw_policies(axes, found, key)
        axes.set_title(title, fontsize=10)
    panels[1].axvline(found["settings"]["kl_target"], color="0.6", lw=0.8, ls=":")
    panels[1].set_yticklabels([])
    _draw_rates(panels[2], found)
    _draw_matrix(panels[3], found)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_policies(axes: Any, found: Mapping[str, Any], key: str) -> None:
    for place, (name, colour) in enumerate(zip(POLICIES, COLOURS, strict=False)):
        policy = found["policies"][name]
        summary = policy["summaries"][key]
        scores = [one[key] for one in policy["seeds"].values()]
        axes.barh(place, summary["mean"], 0.62, color=colour, alpha=0.22, lw=0)
        draw_dots(axes, place, scores, summary, colour, horizontal=True)
    axes.set_xlim(left=0.0)
    axes.set_yticks(range(len(POLICIES)), list(POLICIES.values()), fontsize=9)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_rates(axes: Any, found: Mapping[str, Any]) -> None:
    for shift, (evaluator, marker) in enumerate(zip(EVALUATORS, "os", strict=True)):
        for place, arm in enumerate(ARMS):
            one = found["against_sft"][evaluator][arm]
            low, high = one["interval"]
            at, colour = place + 0.24 * shift - 0.12, COLOURS[place + 1]
            axes.plot([low, high], [at, at], color=colour, lw=2, alpha=0.5)
            axes.plot(one["win_rate"], at, marker, color=colour, ms=4.5)
            if place == 0:
                axes.plot([], [], marker, color="0.4", ms=4.5, label=EVALUATORS[evaluator])
    axes.axvline(0.5, color="0.6", lw=0.8, ls=":")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(len(ARMS) - 0.5, -0.5)
    axes.set_yticks(range(len(ARMS)), list(ARMS), fontsize=9)
    axes.set_title("win rate against SFT, 95 %", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_matrix(axes: Any, found: Mapping[str, Any]) -> None:
    """A row's win rate against a column, by the gold scorer and in smaller print by VADER."""
    rates, names = found["win_rates"], list(POLICIES)
    grid = np.full((len(names), len(names)), np.nan)
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            if one != other:
                grid[i, j] = rates["gold"][one][other]["win_rate"]
                axes.text(j, i - 0.16, f"{grid[i, j]:.2f}", ha="center", va="center", fontsize=8)
                vader = rates["vader"][one][other]["win_rate"]
                axes.text(j, i + 0.24, f"{vader:.2f}", ha="center", va="center", fontsize=6)
    axes.imshow(grid, cmap="PuOr_r", vmin=0.0, vmax=1.0, alpha=0.55, aspect="auto")
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=30)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title("row beats column: gold, below it VADER", fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def show(found: Mapping[str, Any]) -> None:
    """Numbers on stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="held-out prompts; every training ends at one divergence from SFT")
    for column in ("policy", "positive", "KL, nats", "words", "against SFT, gold", "VADER"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, row in found["policies"].items():
        own = row["summaries"]
        rates = [
            "" if name == "sft" else rate_text(found["against_sft"][evaluator][name])
            for evaluator in EVALUATORS
        ]
        table.add_row(
            POLICIES[name],
            f"{own['positive']['mean']:.3f}",
            f"{own['kl']['mean']:.2f}",
            f"{own['words']['mean']:.1f}",
            *rates,
        )
    console = Console(stderr=True)
    console.print(table)
    for line in lines(found):
        console.print(line, highlight=False)


def lines(found: Mapping[str, Any]) -> list[str]:
    """What the table leaves out, for a reader."""
    labels, models = found["labels"], found["reward_models"]
    said = [
        f"judge {labels['judge']}: agrees with the gold scorer on "
        f"{labels['agreement']['mean']:.3f} of {labels['pairs']:,} held-out pairs; "
        f"{labels['readings'] / max(labels['seconds'], 1e-9):.1f} texts a second",
        "reward models agree with the gold scorer on: "
        + ", ".join(f"{arm} {one['mean']:.3f}" for arm, one in models.items()),
    ]
    for evaluator, title in EVALUATORS.items():
        one = found["distilled_against_gold"][evaluator]
        said.append(f"AI labels against gold labels, by {title}: {rate_text(one)}, n {one['n']:,}")
    short = [
        f"{name} ({row['reached_target']} of {len(row['paths'])})"
        for name, row in found["policies"].items()
        if "paths" in row and row["reached_target"] < len(row["paths"])
    ]
    if short:
        said.append(
            f"not as far from SFT as {found['settings']['kl_target']:g} nats on every seed: "
            f"{', '.join(short)}; the comparison is not at equal divergence for these"
        )
    return said


def rate_text(one: Mapping[str, Any]) -> str:
    """A win rate with its interval."""
    low, high = one["interval"]
    return f"{one['win_rate']:.2f} [{low:.2f}, {high:.2f}]"
