"""Runs of the sentiment studies: the steps they share, and policies watched while they learn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tether.language.data.tokens import Pair, Prompt, Ranking
from tether.language.methods.reward import RewardConfig
from tether.language.methods.rlhf.learner import RLHFConfig
from tether.language.methods.sft import SFTConfig
from tether.language.models.files import find_folder
from tether.language.models.from_run import Setup, is_run, load_language_model
from tether.language.models.language_model import LanguageModel
from tether.language.reviews.prompts import prefixes
from tether.language.runs.training import ENGINE
from tether.learning.callbacks import BaseCallback, RunView
from tether.learning.config import Config
from tether.learning.learner import Learner, Metrics
from tether.learning.output.metrics import read_metrics
from tether.learning.seeding import Stream, derived_seed
from tether.learning.seeds import parse_seeds
from tether.learning.storage.durable import replaced
from tether.studies.provenance import kind_of, protocol
from tether.studies.sentiment import (
    SentimentConfig,
    openings,
    pairs_in,
    read_rankings,
    sample_rankings,
    write_rankings,
)
from tether.studies.trials import Result, Trial, TrialFunction, run_trials

Stage: TypeAlias = Callable[[dict[str, Any]], Sequence[Trial]]
"""From the settings of one seed to its trials, which may read what the seed's earlier stages left
beside their folders."""


def to_a_reward_model(tune: TrialFunction) -> tuple[Stage, ...]:
    """The stages that every study begins with: a tuned model, rankings, a reward model."""
    return (
        lambda settings: [Trial("sft", tune, settings)],
        lambda settings: [Trial("rankings", compare, settings)],
        lambda settings: [Trial("reward", score, settings)],
    )


def in_stages(
    config: SentimentConfig,
    out: Path,
    stages: Sequence[Stage],
    *,
    workers: int,
    cluster: str | None,
) -> tuple[dict[str, Any], dict[int, dict[str, Result]]]:
    """Carries out the stages of every seed, one stage after the other.

    Returns:
        The protocol, see :func:`tether.studies.provenance.protocol`, and results by seed and trial.

    Raises:
        UserError: as :func:`tether.studies.trials.run_trials`, or there is no such model, or the
            seeds are of two kinds.
    """
    seeds = parse_seeds(config.seeds)
    kind_of(seeds)
    begun = any((out / folder_of(seed)).exists() for seed in seeds)
    if not begun and not is_run(config.model):
        # Before anything is written, and before the user is kept waiting.
        find_folder(config.model)
    results: dict[int, dict[str, Result]] = {seed: {} for seed in seeds}
    for stage in stages:
        found = for_each_seed(config, out, stage, workers=workers, cluster=cluster)
        for seed, own in found.items():
            results[seed] |= own
    folders = [out / folder_of(seed) / name for seed, own in results.items() for name in own]
    return protocol(seeds, folders), results


def for_each_seed(
    config: SentimentConfig,
    out: Path,
    parts: Stage,
    *,
    workers: int,
    cluster: str | None,
) -> dict[int, dict[str, Result]]:
    """Carries out a stage of the experiment of every seed, each in a folder ``seed-K``.

    Args:
        config: the study's settings.
        out: its folder.
        parts: the stage.
        workers: trials side by side.
        cluster: of :func:`tether.studies.trials.run_trials`.

    Returns:
        Results by seed and trial.

    Raises:
        UserError: as :func:`tether.studies.trials.run_trials`.
    """
    stage = {seed: parts(config.of_seed(seed).dump()) for seed in parse_seeds(config.seeds)}
    gpus = float(config.device.startswith("cuda"))
    trials = [
        dataclasses.replace(trial, name=f"{folder_of(seed)}/{trial.name}", gpus=gpus)
        for seed, own in stage.items()
        for trial in own
    ]
    done = run_trials(trials, out, workers=workers, cluster=cluster)
    return {
        seed: {trial.name: done[f"{folder_of(seed)}/{trial.name}"] for trial in own}
        for seed, own in stage.items()
    }


def folder_of(seed: int) -> str:
    """Where a seed's experiment lies in the study's folder."""
    return f"seed-{seed}"


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


def compare(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: continuations by the tuned model, ranked by the gold scorer."""
    config = shared(settings)
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
    config = shared(settings)
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
    setup = config.setup(tuned_run(place))
    learn(
        place / "run",
        "reward",
        RewardConfig.load(
            {
                **config.optimization(),
                "batch_size": config.reward_batch_size,
                "learning_rate": config.reward_learning_rate,
                "held_out": held_out,
            }
        ),
        setup.model_copy(update={"seed": seed}),
        data,
        total_steps=round((1.0 - held_out) * len(data) * config.reward_epochs),
        progress=True,
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


def shared(settings: Mapping[str, Any]) -> SentimentConfig:
    """The part of a study's settings that all studies have."""
    return SentimentConfig.load({name: settings[name] for name in SentimentConfig.model_fields})


def tuned_run(place: Path) -> Path:
    """Where the tuned model is, seen from the folder of another trial."""
    return (place.parent / "sft" / "run").resolve()


def rankings_of(place: Path) -> list[Ranking]:
    """The rankings, seen from the folder of another trial."""
    return read_rankings(place.parent / "rankings" / "rankings.jsonl")


class Watch(BaseCallback):
    """Measures the policy now and then while it learns; keeps the rows in ``measured.jsonl``.

    Attributes:
        rows: what was measured, each with its ``step``.
    """

    def __init__(
        self, every: int, measurement: Callable[[LanguageModel], Mapping[str, float]]
    ) -> None:
        """Measures whenever training passes a multiple of so many steps.

        Args:
            every: distance between measurements, in learner steps.
            measurement: a function of the policy alone.
        """
        self.every = every
        self.measurement = measurement
        self.rows: list[dict[str, float]] = []
        self._previous = 0

    def on_start(self, run: RunView, learner: Learner) -> None:
        """Takes up what was measured before, up to where a resumed run stands."""
        self._previous = learner.steps
        path = run.path / "measured.jsonl"
        if path.exists():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self.rows = [row for row in rows if row["step"] <= learner.steps]

    def on_iteration(self, run: RunView, learner: Learner, metrics: Metrics) -> bool | None:
        """Measures, if it is time."""
        passed = learner.steps // self.every > self._previous // self.every
        self._previous = learner.steps
        if passed:
            model: LanguageModel = getattr(learner, "language_model")  # noqa: B009
            self.rows.append({"step": learner.steps, **self.measurement(model)})
            with replaced(run.path / "measured.jsonl") as file:
                file.write("".join(json.dumps(row) + "\n" for row in self.rows).encode())
        return None


def learn(
    folder: Path,
    method: str,
    config: Config,
    setup: Setup,
    data: Sequence[Any],
    *,
    total_steps: int,
    watch: Watch | None = None,
    progress: bool = False,
    **given: Any,
) -> LanguageModel:
    """Trains by a method in a run folder, from the start or from where it stopped.

    Args:
        folder: of the run; it can then be used like any other (``tether generate FOLDER``).
        method: its name.
        config: its settings.
        setup: the model to begin with.
        data: token records.
        total_steps: of the learner.
        watch: measures meanwhile.
        progress: show progress on stderr.
        **given: further arguments of the learner.

    Returns:
        The model as it became.
    """
    how: dict[str, Any] = {
        "data": data,
        "given": given,
        "callbacks": [] if watch is None else [watch],
        "progress": progress,
        "keep_checkpoints": 1,
        "sinks": (),
    }
    if (folder / "run.json").exists():
        return ENGINE.resume(folder, **how).language_model
    settings = {**setup.model_dump(), "config": config, "total_steps": total_steps, "out": folder}
    return ENGINE.train(method, **{**settings, **how}).language_model


def frozen(run: Path, *, device: str) -> LanguageModel:
    """A run's model, to compare others with."""
    return dataclasses.replace(load_language_model(run, device=device), frozen=True)
