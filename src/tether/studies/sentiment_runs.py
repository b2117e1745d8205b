"""Steps that the sentiment studies share: tuning, comparisons, reward models, PPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tether.language.data.tokens import Completion, Pair, Prompt, Ranking
from tether.language.methods.reward import RewardConfig
from tether.language.methods.rlhf.learner import RLHFConfig
from tether.language.methods.sft import SFTConfig
from tether.language.models.generation import generate
from tether.language.models.language_model import LanguageModel
from tether.language.reviews.prompts import prefixes
from tether.learning.output.metrics import read_metrics
from tether.learning.seeding import Stream, derived_seed
from tether.studies.language_runs import Stage, frozen, learn
from tether.studies.sentiment import (
    SentimentConfig,
    openings,
    pairs_in,
    read_rankings,
    sample_rankings,
    write_rankings,
)
from tether.studies.trials import Result, Trial, TrialFunction


def to_a_reward_model(tune: TrialFunction) -> tuple[Stage, ...]:
    """The stages that every study begins with: a tuned model, rankings, a reward model."""
    return (
        lambda settings: [Trial("sft", tune, settings)],
        lambda settings: [Trial("rankings", compare, settings)],
        lambda settings: [Trial("reward", score, settings)],
    )


def tune(config: SentimentConfig, place: Path, *, positive: bool | None) -> LanguageModel:
    """Tunes the base on openings of reviews: of those who liked the film, or of everybody."""
    setup = config.setup()
    demonstrations = openings(
        setup.load_model().tokenizer,
        config.demonstrations,
        tokens=8 + config.new_tokens,
        positive=positive,
        seed=config.seed,
    )
    return learn(
        place / "run",
        "sft",
        SFTConfig.load({**config.optimization(), "held_out": 0.0}),
        setup,
        demonstrations,
        total_steps=len(demonstrations),
        progress=True,
    )


def tune_on_praise(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: the base imitates those who liked the film."""
    tune(SentimentConfig.load_part(settings), place, positive=True)
    return {}


def compare(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: continuations by the tuned model, ranked by the gold scorer."""
    config = SentimentConfig.load_part(settings)
    model = frozen(tuned_run(place), device=config.device)
    prompts = prefixes(model.tokenizer, config.prompts, split="train", seed=config.seed)
    rankings = sample_rankings(
        model,
        prompts,
        samples=config.samples,
        new_tokens=config.new_tokens,
        seed=derived_seed(config.seed, Stream.COMPARED_SAMPLES),
    )
    write_rankings(place / "rankings.jsonl", rankings)
    return {"pairs": len(pairs_in(rankings))}


def score(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: a reward model of these rankings; its accuracy on a tenth of them, held out."""
    config = SentimentConfig.load_part(settings)
    rankings = rankings_of(place)
    learn_reward(config, place, rankings, held_out=0.1, seed=config.seed)
    last = list(read_metrics(place / "run" / "metrics.jsonl"))[-1]
    return {"accuracy": last["held_out/reward/accuracy"]}


def learn_reward(
    config: SentimentConfig,
    place: Path,
    data: Sequence[Ranking] | Sequence[Pair],
    *,
    held_out: float,
    seed: int,
) -> None:
    """Learns a reward model, from the tuned model, in ``place/run``.

    Args:
        config: the study's settings.
        place: the folder of a trial.
        data: rankings or comparisons.
        held_out: the share of them that is measured on.
        seed: of the head's first values and of the order of the data.
    """
    learn(
        place / "run",
        "reward",
        reward_config(config, held_out=held_out),
        config.setup(tuned_run(place), seed=seed),
        data,
        total_steps=round((1.0 - held_out) * len(data) * config.reward_epochs),
        progress=True,
    )


def reward_config(config: SentimentConfig, **more: Any) -> RewardConfig:
    """A reward model, learned in many small steps."""
    return RewardConfig.load(
        {
            **config.optimization(),
            "batch_size": config.reward_batch_size,
            "learning_rate": config.reward_learning_rate,
            **more,
        }
    )


def ppo_config(config: SentimentConfig, **more: Any) -> RLHFConfig:
    """PPO on short continuations, which need not end."""
    return RLHFConfig.load(
        {
            **config.optimization(),
            "minibatch_size": config.batch_size // 2,
            "learning_rate": config.ppo_learning_rate,
            "schedule": "constant",
            "ppo_epochs": 2,
            "max_new_tokens": config.new_tokens,
            "missing_eos_score": None,
            **more,
        }
    )


def ppo_prompts(config: SentimentConfig, tokenizer: Any) -> list[Prompt]:
    """Prefixes for PPO to continue; other draws than those that were compared."""
    count = min(config.episodes, 20_000)
    seed = derived_seed(config.seed, Stream.PPO_PROMPTS)
    ids = prefixes(tokenizer, count, split="train", seed=seed)
    return [Prompt(tuple(i)) for i in ids]


def samples_to_choose_from(
    config: SentimentConfig, policy: LanguageModel, *, prompts: int, samples: int
) -> list[Completion]:
    """Completions of held-out prompts, those of a prompt side by side, for best-of-n.

    Args:
        config: the study's settings.
        policy: what to sample from.
        prompts: how many.
        samples: completions of each prompt.
    """
    asked = config.held_out_prompts(policy.tokenizer)[:prompts]
    return generate(
        policy,
        [prompt for prompt in asked for _ in range(samples)],
        max_new_tokens=config.new_tokens,
        seeds=derived_seed(config.seed, Stream.BEST_OF_N),
        batch_size=samples,
    )


def tuned_run(place: Path) -> Path:
    """Where the tuned model is, seen from the folder of another trial."""
    return (place.parent / "sft" / "run").resolve()


def rankings_of(place: Path) -> list[Ranking]:
    """The rankings, seen from the folder of another trial."""
    return read_rankings(place.parent / "rankings" / "rankings.jsonl")
