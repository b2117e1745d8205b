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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from tether.language.evaluation.win_rate import outcomes
from tether.language.methods.dpo.losses import DPOConfig
from tether.language.models.from_run import load_reward_model
from tether.language.models.language_model import LanguageModel
from tether.learning.seeding import Stream, derived_seed
from tether.studies import sentiment
from tether.studies import sentiment_runs as runs
from tether.studies import three_steps_report as report
from tether.studies.command_line import carry_out
from tether.studies.language_runs import Stage, frozen, in_stages, learn
from tether.studies.sentiment import SentimentConfig, pairs_in
from tether.studies.three_steps_report import POLICIES
from tether.studies.trials import Result, Trial

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
        UserError: `out` holds a study with other settings, or cannot be written, or the seeds are
            of two kinds.
    """
    stages: tuple[Stage, ...] = (
        *runs.to_a_reward_model(runs.tune_on_praise),
        lambda settings: [Trial("ppo", reinforce, settings), Trial("dpo", prefer, settings)],
        lambda settings: [Trial("judgement", judge, settings)],
    )
    said, results = in_stages(config, out, stages, workers=workers, cluster=cluster)
    return report.write(out, config.dump(), said, results)


def reinforce(settings: Mapping[str, Any], place: Path) -> Result:
    """Step 3: PPO on the learned reward."""
    config = ThreeStepsConfig.load(settings)
    rewards = load_reward_model(place.parent / "reward" / "run", device=config.device)
    learn(
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
    learn(
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
    reference = frozen(runs.tuned_run(place), device=config.device)
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
            name: {**one.summary(), "win_rate": float(outcomes(one.log_odds, own.log_odds).mean())}
            for name, one in measured.items()
        },
        "samples": [
            {"prompt": reference.tokenizer.decode(prompts[i], skip_special_tokens=True)}
            | {name: one.texts[i] for name, one in measured.items()}
            for i in range(SHOWN)
        ],
    }


def command(arguments: Sequence[str]) -> None:
    """`tether study three-steps`."""
    carry_out(
        "three-steps",
        "The three steps of InstructGPT, and DPO, in miniature and side by side.",
        ThreeStepsConfig,
        run,
        report.show,
        arguments,
        workers="Policies that learn side by side, each on one core; 1 on a GPU.",
        left="runs, figure and numbers: {out}",
    )


def _policy(config: ThreeStepsConfig, name: str, place: Path) -> LanguageModel:
    if name == "base":
        return config.setup().load_model()
    return frozen(place.parent / name / "run", device=config.device)
