"""InstructGPT in miniature: a base model, the three steps that align it, and DPO's short cut.

    0. base: a language model that continues film reviews, of whatever mood
    1. SFT:  tuned on demonstrations, openings of reviews whose authors liked the film
    2. RM:   a reward model of comparisons between what SFT writes, by the gold scorer
    3. PPO:  SFT, moved by that reward on a tether to SFT;  DPO: moved by the comparisons directly

All four answer the same held-out prompts, and the gold scorer, which none of them ever saw, judges.

Source:
    Ouyang et al., "Training language models to follow instructions with human feedback" (2022),
    figure 2; Rafailov et al., "Direct Preference Optimization" (2023).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field

from tether.language.methods.dpo.losses import DPOConfig
from tether.language.models.from_run import load_reward_model
from tether.language.models.language_model import LanguageModel
from tether.learning.reports.plots import COLOURS
from tether.learning.seeding import Stream, derived_seed
from tether.learning.storage.durable import write_json
from tether.studies import sentiment
from tether.studies import sentiment_runs as runs
from tether.studies.command_line import carry_out
from tether.studies.sentiment import SentimentConfig, pairs_in
from tether.studies.trials import Result, Trial, run_trials

POLICIES: Final = {"base": "base", "sft": "SFT", "ppo": "SFT + RM + PPO", "dpo": "SFT + DPO"}
SHOWN: Final = 3
"""Prompts whose answers are shown beside the numbers."""


class ThreeStepsConfig(SentimentConfig):
    """Settings of the three steps."""

    ppo_beta: float = Field(default=0.05, gt=0)
    """PPO's KL coefficient to the tuned model. Raising it keeps the policy closer."""
    dpo_beta: float = Field(default=0.1, gt=0)
    """The strength of DPO's KL constraint. Raising it keeps the policy closer."""


def run(
    config: ThreeStepsConfig, out: Path, *, workers: int = 2, cluster: str | None = None
) -> dict[str, Any]:
    """Carries out what is left of the study in `out`.

    Args:
        config: the settings; those of an earlier start in `out`.
        out: the study's folder.
        workers: policies that learn side by side.
        cluster: ``local`` or the address of a Ray cluster that does them in their place.

    Returns:
        What ``three-steps.json`` says.

    Raises:
        UserError: `out` holds a study with other settings, or cannot be written.
    """
    settings = config.dump()
    results: dict[str, Result] = {}
    for name, function in (("sft", tune), ("rankings", runs.compare), ("reward", runs.score)):
        results |= run_trials([Trial(name, function, settings)], out, cluster=cluster)
    last = [Trial("ppo", reinforce, settings), Trial("dpo", prefer, settings)]
    run_trials(last, out, workers=workers, cluster=cluster)
    results |= run_trials([Trial("judgement", judge, settings)], out, cluster=cluster)
    found = {
        "settings": settings,
        "pairs": results["rankings"]["pairs"],
        "reward_model_accuracy": results["reward"]["accuracy"],
        **results["judgement"],
    }
    write_json(out / "three-steps.json", found)
    draw(found, out / "three-steps.png")
    return found


def tune(settings: Mapping[str, Any], place: Path) -> Result:
    """Step 1: imitate those who liked the film."""
    runs.tune(ThreeStepsConfig.load(settings), place, positive=True)
    return {}


def reinforce(settings: Mapping[str, Any], place: Path) -> Result:
    """Step 3: PPO on the learned reward."""
    config = ThreeStepsConfig.load(settings)
    rewards = load_reward_model(place.parent / "reward" / "run", device=config.device)
    runs.learn(
        place / "run",
        "rlhf",
        runs.ppo_config(config, beta=config.ppo_beta),
        config.setup(runs.tuned_run(place)),
        runs.ppo_prompts(config, rewards.language_model.tokenizer),
        total_steps=config.episodes,
        scorer=rewards,
    )
    return {}


def prefer(settings: Mapping[str, Any], place: Path) -> Result:
    """Steps 2 and 3 in one: DPO."""
    config = ThreeStepsConfig.load(settings)
    pairs = pairs_in(runs.rankings_of(place))
    runs.learn(
        place / "run",
        "dpo",
        DPOConfig.load({**config.optimization(), "beta": config.dpo_beta}),
        config.setup(runs.tuned_run(place)),
        pairs,
        total_steps=len(pairs),
    )
    return {}


def judge(settings: Mapping[str, Any], place: Path) -> Result:
    """All policies on the same held-out prompts, before the gold scorer."""
    config = ThreeStepsConfig.load(settings)
    reference = runs.frozen(runs.tuned_run(place), device=config.device)
    prompts = config.held_out_prompts(reference.tokenizer)
    measured = {
        name: sentiment.measure(
            _policy(config, name, place),
            reference,
            prompts,
            new_tokens=config.new_tokens,
            # Each policy draws numbers of its own, or those alike would tie.
            seed=derived_seed(config.seed, Stream.MEASUREMENT, number),
        )
        for number, name in enumerate(POLICIES)
    }
    own = measured["sft"]
    return {
        "policies": {
            name: {**one.summary(), "win_rate": win_rate(one.log_odds, own.log_odds)}
            for name, one in measured.items()
        },
        "samples": [
            {"prompt": reference.tokenizer.decode(prompts[i], skip_special_tokens=True)}
            | {name: one.texts[i] for name, one in measured.items()}
            for i in range(SHOWN)
        ],
    }


def win_rate(one: Any, other: Any) -> float:
    """Share of prompts on which `one` scores higher; equal scores count half."""
    one, other = np.asarray(one), np.asarray(other)
    return float(np.mean((one > other) + 0.5 * (one == other)))


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Gold reward and win rate of the four, as bars."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    policies = found["policies"]
    figure, panels = plt.subplots(1, 2, figsize=(8.0, 3.4), layout="constrained", sharey=True)
    titles = {"gold": "probability of positive, gold", "win_rate": "win rate against SFT"}
    labels = [f"{POLICIES[name]}\n{policies[name]['kl']:.1f} nats" for name in policies]
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        values = [policies[name][key] for name in policies]
        errors = [policies[name]["gold_error"] for name in policies] if key == "gold" else None
        bars = axes.barh(labels, values, xerr=errors, color=COLOURS[: len(values)], height=0.6)
        axes.bar_label(bars, fmt="%.2f", padding=6)
        axes.set_xlim(0.0, 1.1)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    panels[1].axvline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(found: Mapping[str, Any]) -> None:
    """Numbers and a few texts, on stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="base, SFT, PPO and DPO on held-out prompts, before the gold scorer")
    for column in ("policy", "positive", "win rate against SFT", "KL to SFT, nats"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, row in found["policies"].items():
        table.add_row(
            POLICIES[name],
            f"{row['gold']:.3f} +- {row['gold_error']:.3f}",
            f"{row['win_rate']:.2f}",
            f"{row['kl']:.2f}",
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


def command(arguments: Sequence[str]) -> None:
    """`tether study three-steps`."""
    carry_out(
        "three-steps",
        "The three steps of InstructGPT, and DPO, in miniature and side by side.",
        ThreeStepsConfig,
        run,
        show,
        arguments,
        workers="Policies that learn side by side, each on one core; 1 on a GPU.",
        left="runs, figure and numbers: {out}",
    )


def _policy(config: ThreeStepsConfig, name: str, place: Path) -> LanguageModel:
    if name == "base":
        return config.setup().load_model()
    return runs.frozen(place.parent / name / "run", device=config.device)
