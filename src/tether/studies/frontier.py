"""The frontier of reward and divergence: the DPO paper's controlled sentiment experiment.

    1. tune a language model on openings of film reviews: the reference
    2. continue prefixes of 2 to 8 tokens; the gold scorer says which of two continuations is better
    3. learn a reward model from these pairs
    4. sweep: PPO on the learned reward, PPO on the gold reward, DPO, IPO, tuning on the preferred,
       unlikelihood, best of N
    5. measure every policy, again and again while it learns: gold reward against exact KL

A method is good if it earns more for the same divergence.

Source:
    Rafailov et al., "Direct Preference Optimization" (2023), section 6.1, figure 2 (left), and
    appendix C.1, whose sweeps these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field

from tether.language.methods.best_of_n import (
    best_of_n_kl,
    expected_best_of_n,
    observed_best_of_n_kl,
)
from tether.language.methods.dpo.losses import DPOConfig
from tether.language.models.from_run import load_reward_model
from tether.language.models.language_model import LanguageModel
from tether.language.reviews.prompts import gold_scorer
from tether.learning.seeding import Stream, derived_seed
from tether.studies import frontier_report as report
from tether.studies import sentiment_runs as runs
from tether.studies.command_line import carry_out
from tether.studies.language_runs import Watch, frozen, in_stages, learn
from tether.studies.sentiment import (
    Measured,
    SentimentConfig,
    gold_rewards,
    measure,
    pairs_in,
    texts_of,
)
from tether.studies.trials import Result, Trial

BETAS: Final = (0.05, 0.1, 1.0, 5.0)
KL_TARGETS: Final = (3.0, 6.0, 9.0, 12.0)
ALPHAS: Final = (0.05, 0.1, 0.5, 1.0)
BEST_OF: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class FrontierConfig(SentimentConfig):
    """Settings of the experiment; the paper compares continuations of 25,000 prefixes."""

    demonstrations: int = Field(default=6400, ge=1)
    """Openings of reviews that the reference is tuned on."""
    prompts: int = Field(default=2400, ge=2)
    """Prompts whose continuations are compared."""
    episodes: int = Field(default=3840, ge=1)
    """Completions that PPO samples in training."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes of the offline methods over the pairs."""
    measurements: int = Field(default=5, ge=1)
    """How often each policy is measured while it trains."""
    best_of_prompts: int = Field(default=256, ge=2)
    """Held-out prompts for best-of-N, each sampled 128 times."""


def run(
    config: FrontierConfig, out: Path, *, workers: int = 2, cluster: str | None = None
) -> dict[str, Any]:
    """Carries out what is left of the study in `out`, draws it and tabulates it.

    Args:
        config: the settings; those of an earlier start in `out`.
        out: the study's folder.
        workers: policies that learn side by side.
        cluster: ``local`` or the address of a Ray cluster that does them in their place.

    Returns:
        What ``frontier.json`` says.

    Raises:
        UserError: `out` holds a study with other settings, or cannot be written, or the seeds are
            of two kinds.
    """
    stages = (*runs.to_a_reward_model(tune), sweep)
    said, results = in_stages(config, out, stages, workers=workers, cluster=cluster)
    return report.write(out, config.dump(), said, results)


def sweep(settings: Mapping[str, Any]) -> list[Trial]:
    """Every policy of the figure, those that take longest first."""
    trials = []
    for reward in ("learned", "gold"):
        for target in KL_TARGETS:
            more = {"reward": reward, "kl_target": target}
            trials.append(Trial(f"ppo-{reward}-{target:g}", reinforce, {**settings, **more}))
    for loss in ("dpo", "ipo"):
        for beta in BETAS:
            more = {"loss": loss, "beta": beta}
            trials.append(Trial(f"{loss}-{beta:g}", prefer, {**settings, **more}))
    for alpha in ALPHAS:
        more = {"loss": "unlikelihood", "unlikelihood_alpha": alpha}
        trials.append(Trial(f"unlikelihood-{alpha:g}", prefer, {**settings, **more}))
    trials.append(Trial("preferred_ft", prefer, {**settings, "loss": "preferred_ft"}))
    trials.append(Trial("best-of-n", choose, settings))
    return trials


def tune(settings: Mapping[str, Any], place: Path) -> Result:
    """The reference: the base model after an epoch of review openings."""
    config = FrontierConfig.load(settings)
    tuned = runs.tune(config, place, positive=None)
    return {"measured": _measured(config, tuned, tuned).summary()}


def reinforce(settings: Mapping[str, Any], place: Path) -> Result:
    """PPO on the learned or the gold reward, at one target of the divergence."""
    config = FrontierConfig.load_part(settings)
    reference = frozen(runs.tuned_run(place), device=config.device)
    if settings["reward"] == "gold":
        scorer = gold_rewards(reference)
    else:
        scorer = load_reward_model(place.parent / "reward" / "run", device=config.device)
    watch = _watch(config, reference, config.episodes)
    learn(
        place / "run",
        "rlhf",
        runs.ppo_config(
            config,
            kl_controller="adaptive",
            kl_target=settings["kl_target"],
            # A few thousand episodes leave the controller no time to find a price from far away.
            beta=1.5 / settings["kl_target"],
            kl_horizon=400.0,
        ),
        config.setup(runs.tuned_run(place)),
        runs.ppo_prompts(config, reference.tokenizer),
        total_steps=config.episodes,
        watch=watch,
        scorer=scorer,
    )
    return {"points": watch.rows}


def prefer(settings: Mapping[str, Any], place: Path) -> Result:
    """A policy learned from the pairs alone, by one of the offline losses."""
    config = FrontierConfig.load_part(settings)
    reference = frozen(runs.tuned_run(place), device=config.device)
    pairs = pairs_in(runs.rankings_of(place))
    steps = round(config.epochs * len(pairs))
    watch = _watch(config, reference, steps)
    chosen = {name: settings[name] for name in ("beta", "unlikelihood_alpha") if name in settings}
    learn(
        place / "run",
        "dpo",
        DPOConfig.load(
            {
                **config.optimization(),
                "loss": settings["loss"],
                "schedule": "constant",
                **chosen,
            }
        ),
        config.setup(runs.tuned_run(place)),
        pairs,
        total_steps=steps,
        watch=watch,
    )
    return {"points": watch.rows}


def choose(settings: Mapping[str, Any], place: Path) -> Result:
    """Best of N by the learned and by the gold reward, for every N from one set of samples."""
    config = FrontierConfig.load_part(settings)
    reference = frozen(runs.tuned_run(place), device=config.device)
    rewards = load_reward_model(place.parent / "reward" / "run", device=config.device)
    most = max(BEST_OF)
    sampled = runs.samples_to_choose_from(
        config, reference, prompts=config.best_of_prompts, samples=most
    )
    texts = texts_of(reference, sampled)
    gold = np.asarray(gold_scorer()(texts), np.float64).reshape(-1, most)
    learned = np.asarray(rewards(sampled), np.float64).reshape(-1, most)
    points = []
    for name, scores in (("gold", gold), ("learned", learned)):
        for n in BEST_OF:
            value = expected_best_of_n(scores, n, gold)
            points.append(
                {
                    "reward": name,
                    "n": n,
                    "gold": float(value.mean()),
                    "gold_error": float(value.std() / np.sqrt(len(value))),
                    "kl": float(observed_best_of_n_kl(scores, n).mean()),
                    "bound": float(best_of_n_kl(n)),
                }
            )
    return {"points": points}


def _measured(config: FrontierConfig, policy: LanguageModel, reference: LanguageModel) -> Measured:
    prompts = config.held_out_prompts(reference.tokenizer)
    seed = derived_seed(config.seed, Stream.MEASUREMENT)
    return measure(policy, reference, prompts, new_tokens=config.new_tokens, seed=seed)


def _watch(config: FrontierConfig, reference: LanguageModel, total: int) -> Watch:
    every = max(1, total // config.measurements)
    return Watch(every, lambda policy: _measured(config, policy, reference).summary())


def command(arguments: Sequence[str]) -> None:
    """`tether study frontier`."""
    carry_out(
        "frontier",
        "Reproduce figure 2 (left) of the DPO paper: reward against divergence.",
        FrontierConfig,
        run,
        report.show,
        arguments,
        workers="Policies that learn side by side, each on one core; 1 on a GPU.",
    )
