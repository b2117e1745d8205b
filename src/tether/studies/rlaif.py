"""RLAIF: policies from a judge's labels beside policies from true ones, at equal divergence.

From one SFT model:

    gold       a reward model of comparisons labelled by the gold scorer, then PPO: RLHF
    distilled  a reward model of the same comparisons labelled by a judge, then PPO
    direct     PPO on the judge's own score of each completion
    dpo        DPO on the judge's labels
    null       a reward model of labels that always say "the first", then PPO: must earn nothing

A training ends as soon as its policy is a given number of nats away from SFT, so that no arm wins
by having gone further. The gold scorer and VADER compare the policies on held-out prompts: no judge
has learned from either, and no arm from VADER. The judge never evaluates.

Source:
    Lee et al., "RLAIF: Scaling reinforcement learning from human feedback with AI feedback" (2023),
    sections 2 and 4: distilled and direct RLAIF against RLHF and SFT.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field, field_validator

from tether.language.evaluation.texts import words_of
from tether.language.judge.judgements import with_cache
from tether.language.judge.opening import lasting_judge_name
from tether.language.judge.reward import JudgeReward, check_judge
from tether.language.methods.dpo.losses import DPOConfig
from tether.language.models.from_run import load_reward_model
from tether.language.models.language_model import LanguageModel
from tether.language.models.scoring import Scorer, score_function
from tether.language.reviews.prompts import prefixes
from tether.language.reviews.vader import vader_scores
from tether.learning.seeding import Stream, derived_seed
from tether.studies import rlaif_report as report
from tether.studies import sentiment_runs as runs
from tether.studies.command_line import carry_out
from tether.studies.language_runs import Stage, Watch, frozen, in_stages, learn
from tether.studies.rlaif_labels import (
    PAIRS,
    Labeller,
    label_comparisons,
    labelled_pairs,
    read_comparisons,
    sample_comparisons,
    write_comparisons,
)
from tether.studies.rlaif_report import POLICIES
from tether.studies.sentiment import SentimentConfig, measure
from tether.studies.trials import Result, Trial

LABELLERS: Final[dict[str, Labeller]] = {"gold": "gold", "distilled": "ai", "null": "null"}
"""Of the arms that learn a reward model: whose labels it learns."""
SHOWN: Final = 3
"""Prompts whose answers are kept beside the numbers."""


class RLAIFConfig(SentimentConfig):
    """Settings of the study; the defaults are meant for 45 minutes of two cores."""

    prompts: int = Field(default=900, ge=2)
    """Prompts whose continuations are compared, each with the next. The judge reads each
    continuation once, at 7 to 30 texts a second on one core."""
    held_out_pairs: int = Field(default=150, ge=2)
    """Pairs of continuations of other prompts, on which labels and reward models are measured."""
    reward_epochs: float = Field(default=3.0, gt=0)
    """Passes of the reward models over the pairs."""
    judge: str = "judge:positive,shots=0"
    """Who labels, and who rewards directly: judge:ATTRIBUTE, judge:FILE.toml or
    judge:ATTRIBUTE@MODEL, as for `tether rlhf --reward`. On samples of a small policy, solved
    examples made the judge prefer short texts."""
    direct_episodes: int = Field(default=1920, ge=1)
    """The most completions that the arm `direct` samples, each of which the judge reads."""
    kl_target: float = Field(default=4.0, gt=0)
    """The divergence from SFT, in nats per sequence, at which each training ends."""
    kl_prompts: int = Field(default=64, ge=2)
    """Prompts on which the divergence is measured while a policy learns."""
    kl_every: int = Field(default=2, ge=1)
    """Iterations between two measurements of the divergence."""
    ppo_beta: float = Field(default=0.05, gt=0)
    """PPO's KL coefficient to SFT. Raising it keeps the policy closer."""
    dpo_beta: float = Field(default=0.05, gt=0)
    """The strength of DPO's KL constraint. Raising it keeps the policy closer."""
    dpo_epochs: float = Field(default=3.0, gt=0)
    """The most passes of DPO over the pairs."""

    @field_validator("judge")
    @classmethod
    def _found_again(cls, given: str) -> str:
        # A study that goes on from another folder must find its judge.
        return lasting_judge_name(given)


def run(
    config: RLAIFConfig, out: Path, *, workers: int = 2, cluster: str | None = None
) -> dict[str, Any]:
    """Carries out what is left of the study in `out`.

    Args:
        config: the settings; those of an earlier start in `out`.
        out: the study's folder.
        workers: trials side by side.
        cluster: ``local`` or the address of a Ray cluster that does them in their place.

    Returns:
        What ``rlaif.json`` says.

    Raises:
        UserError: `out` holds a study with other settings, or cannot be written, or the seeds are
            of two kinds, or there is no such judge.
    """
    check_judge(config.judge)
    vader_scores([])
    stages: tuple[Stage, ...] = (
        lambda settings: [Trial("sft", runs.tune_on_praise, settings)],
        lambda settings: [Trial("pairs", compare, settings)],
        # The judge takes longer than anything else, and only some arms wait for it.
        lambda settings: [
            Trial("labels", ask, settings),
            *(Trial(f"reward-{arm}", score, {**settings, "arm": arm}) for arm in ("gold", "null")),
        ],
        lambda settings: [
            Trial("ppo-direct", reinforce, {**settings, "arm": "direct"}),
            Trial("reward-distilled", score, {**settings, "arm": "distilled"}),
            *(Trial(f"ppo-{arm}", reinforce, {**settings, "arm": arm}) for arm in ("gold", "null")),
            Trial("dpo", prefer, settings),
        ],
        lambda settings: [Trial("ppo-distilled", reinforce, {**settings, "arm": "distilled"})],
        lambda settings: [Trial("measurement", compare_policies, settings)],
    )
    said, results = in_stages(config, out, stages, workers=workers, cluster=cluster)
    return report.write(out, config.dump(), said, results)


def compare(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: continuations by SFT, in pairs, some of them held out."""
    config = SentimentConfig.load_part(settings)
    held_out = int(settings["held_out_pairs"])
    model = frozen(runs.tuned_run(place), device=config.device)
    comparisons = sample_comparisons(
        model,
        prefixes(model.tokenizer, config.prompts + held_out, split="train", seed=config.seed),
        samples=config.samples,
        new_tokens=config.new_tokens,
        held_out=held_out,
        seed=derived_seed(config.seed, Stream.COMPARED_SAMPLES),
    )
    write_comparisons(place / PAIRS, comparisons)
    return {
        "pairs": sum(not row.held_out for row in comparisons),
        "first_better": float(np.mean([row.gold for row in comparisons])),
    }


def ask(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: the judge's labels of all comparisons, each text read once."""
    config = RLAIFConfig.load(settings)
    model = config.setup(runs.tuned_run(place)).load_model()
    judge = JudgeReward(config.judge).open()
    comparisons = read_comparisons(place.parent / "pairs" / PAIRS)
    began = time.monotonic()
    found = label_comparisons(judge, model.tokenizer, comparisons, place)
    return {**found, "seconds": time.monotonic() - began}


def score(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: a reward model of one labeller's labels, measured on held-out pairs."""
    config = SentimentConfig.load_part(settings)
    labeller = LABELLERS[settings["arm"]]
    pairs = labelled_pairs(place.parent / "pairs", place.parent / "labels", labeller)
    run = place / "run"
    learn(
        run,
        "reward",
        runs.reward_config(config, held_out=0.0),
        config.setup(runs.tuned_run(place)),
        pairs,
        total_steps=round(len(pairs) * config.reward_epochs),
        progress=True,
    )
    rewards = load_reward_model(run, device=config.device)
    measured = labelled_pairs(place.parent / "pairs", None, "gold", held_out=True)
    scores = np.asarray(
        rewards([item for pair in measured for item in pair.as_completions()]), np.float64
    ).reshape(-1, 2)
    gold = np.array([pair.label for pair in measured])
    # Equal scores have guessed.
    right = 0.5 + 0.5 * np.sign(scores[:, 0] - scores[:, 1]) * np.sign(gold - 0.5)
    return {
        "accuracy": float(right[gold != 0.5].mean()) if (gold != 0.5).any() else None,
        "mean_label": float(np.mean([pair.label for pair in pairs])),
    }


def reinforce(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: PPO on what an arm is rewarded by, until the policy is far enough away."""
    config, arm = RLAIFConfig.load_part(settings), settings["arm"]
    reference = frozen(runs.tuned_run(place), device=config.device)
    watch = _until_far_enough(config, reference, config.batch_size)
    episodes = config.direct_episodes if arm == "direct" else config.episodes
    began = time.monotonic()
    learn(
        place / "run",
        "rlhf",
        # Scores of every arm begin with one deviation, so that the KL coefficient means the same.
        runs.ppo_config(config, beta=config.ppo_beta, normalize_score=True),
        config.setup(runs.tuned_run(place)),
        runs.ppo_prompts(config, reference.tokenizer),
        total_steps=episodes,
        watch=watch,
        scorer=_scorer(config, arm, reference, place),
    )
    return {"path": watch.rows, "seconds": time.monotonic() - began}


def prefer(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: DPO on the judge's soft labels, until the policy is far enough away."""
    config = RLAIFConfig.load_part(settings)
    reference = frozen(runs.tuned_run(place), device=config.device)
    pairs = labelled_pairs(place.parent / "pairs", place.parent / "labels", "ai")
    watch = _until_far_enough(config, reference, config.batch_size)
    began = time.monotonic()
    learn(
        place / "run",
        "dpo",
        DPOConfig.load({**config.optimization(), "beta": config.dpo_beta, "schedule": "constant"}),
        config.setup(runs.tuned_run(place)),
        pairs,
        total_steps=round(config.dpo_epochs * len(pairs)),
        watch=watch,
    )
    return {"path": watch.rows, "seconds": time.monotonic() - began}


def compare_policies(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: all policies on the same held-out prompts, by evaluators nothing learned from."""
    config = RLAIFConfig.load(settings)
    reference = frozen(runs.tuned_run(place), device=config.device)
    prompts = config.held_out_prompts(reference.tokenizer)
    policies, texts = {}, {}
    for number, name in enumerate(POLICIES):
        one = measure(
            frozen(place.parent / run_of(name) / "run", device=config.device),
            reference,
            prompts,
            new_tokens=config.new_tokens,
            # Each policy draws numbers of its own, or those alike would tie.
            seed=derived_seed(config.seed, Stream.MEASUREMENT, number),
        )
        said = [
            reference.tokenizer.decode(list(item.completion_ids), skip_special_tokens=True)
            for item in one.completions
        ]
        policies[name] = {
            "positive": one.gold.tolist(),
            "gold": one.log_odds.tolist(),
            "vader": vader_scores(one.texts).tolist(),
            "kl": one.kl.tolist(),
            "words": [len(words_of(text)) for text in said],
        }
        texts[name] = said[:SHOWN]
    shown = [
        {"prompt": reference.tokenizer.decode(prompts[i], skip_special_tokens=True)}
        | {name: own[i] for name, own in texts.items()}
        for i in range(min(SHOWN, len(prompts)))
    ]
    return {"policies": policies, "samples": shown}


def run_of(policy: str) -> str:
    """The trial that trains a policy."""
    return policy if policy in ("sft", "dpo") else f"ppo-{policy}"


def command(arguments: Sequence[str]) -> None:
    """`tether study rlaif`."""
    carry_out(
        "rlaif",
        "Policies from a judge's labels beside policies from true ones, at equal divergence.",
        RLAIFConfig,
        run,
        report.show,
        arguments,
        workers="Trials side by side, each on one core; 1 on a GPU.",
        left="runs, figure and numbers: {out}",
    )


def _scorer(config: RLAIFConfig, arm: str, reference: LanguageModel, place: Path) -> Scorer:
    if arm != "direct":
        return load_reward_model(place.parent / f"reward-{arm}" / "run", device=config.device)
    reward = JudgeReward(config.judge)
    # What was judged since the last checkpoint is not judged again after an interruption.
    with_cache(reward.open(), place)
    return score_function(reference.tokenizer, reward)


def _until_far_enough(config: RLAIFConfig, reference: LanguageModel, batch: int) -> Watch:
    """Measures the divergence on prompts of its own, and ends the training at the target."""
    seed = derived_seed(config.seed, Stream.MEASUREMENT, len(POLICIES))
    prompts = prefixes(reference.tokenizer, config.kl_prompts, split="train", seed=seed)

    def divergence(policy: LanguageModel) -> dict[str, float]:
        found = measure(policy, reference, prompts, new_tokens=config.new_tokens, seed=seed)
        return {"kl": float(found.kl.mean()), "gold": float(found.gold.mean())}

    return Watch(
        config.kl_every * batch, divergence, until=lambda row: row["kl"] >= config.kl_target
    )
