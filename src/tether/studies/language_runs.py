"""Studies of language: their settings, their stages seed by seed, and the trainings in them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

from tether.language.models.files import find_folder
from tether.language.models.from_run import Setup, is_run, load_language_model
from tether.language.models.language_model import LanguageModel
from tether.language.runs.training import ENGINE
from tether.learning.callbacks import BaseCallback, RunView
from tether.learning.config import Config
from tether.learning.learner import Learner, Metrics
from tether.learning.seeds import parse_seeds
from tether.learning.storage.durable import replaced
from tether.learning.storage.folder import RunFolder
from tether.studies.provenance import kind_of, protocol
from tether.studies.seed_list import SeedList
from tether.studies.trials import Result, Trial, run_trials


class LanguageStudyConfig(Config):
    """The settings that every study of language models has."""

    model: str = "tiny"
    """The base model: tiny, smollm2-135m-instruct, a folder, or an id of the Hugging Face hub."""
    device: str = "cpu"
    """Where models are placed, such as cpu or cuda."""
    seeds: SeedList = "0-2"
    """Seeds, such as 0-2 or 0,3,7; each decides everything random of a whole experiment: texts,
    comparisons, trainings and samples. Seeds from 1000 on are for development."""

    @property
    def seed(self) -> int:
        """The seed, of settings that have one; those of every trial do.

        Raises:
            ValueError: there are several.
        """
        (seed,) = parse_seeds(self.seeds)
        return seed

    def of_seed(self, seed: int) -> Self:
        """The same settings with one of the seeds."""
        return self.model_copy(update={"seeds": f"{seed}-{seed}"})

    def setup(self, model: str | Path | None = None, **more: Any) -> Setup:
        """The model to begin with; None: the base.

        Args:
            model: a name or a run.
            **more: further fields.
        """
        return Setup.load(
            {
                "model": str(model or self.model),
                "data": None,
                "device": self.device,
                "seed": self.seed,
                **more,
            }
        )


Stage: TypeAlias = Callable[[dict[str, Any]], Sequence[Trial]]
"""From the settings of one seed to its trials, which may read what the seed's earlier stages left
beside their folders."""


def in_stages(
    config: LanguageStudyConfig,
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
    config: LanguageStudyConfig,
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


class Watch(BaseCallback):
    """Measures the policy now and then while it learns; keeps the rows in ``measured.jsonl``.

    Attributes:
        rows: what was measured, each with its ``step``.
    """

    def __init__(
        self,
        every: int,
        measurement: Callable[[LanguageModel], Mapping[str, float]],
        *,
        until: Callable[[Mapping[str, float]], bool] | None = None,
    ) -> None:
        """Measures whenever training passes a multiple of so many steps.

        Args:
            every: distance between measurements, in learner steps.
            measurement: a function of the policy alone.
            until: ends the training at the first row for which it is true; None: nothing does.
        """
        self.every = every
        self.measurement = measurement
        self.until = until
        self.rows: list[dict[str, float]] = []
        self._previous = 0

    def on_start(self, run: RunView, learner: Learner) -> None:
        """Takes up what was measured before, up to where a resumed run stands."""
        self._previous = learner.steps
        self.rows = [row for row in _measured_in(run.path) if row["step"] <= learner.steps]

    def on_iteration(self, run: RunView, learner: Learner, metrics: Metrics) -> bool | None:
        """Measures, if it is time; False once the training is to end."""
        passed = learner.steps // self.every > self._previous // self.every
        self._previous = learner.steps
        if not passed:
            return None
        model: LanguageModel = getattr(learner, "language_model")  # noqa: B009
        self.rows.append({"step": learner.steps, **self.measurement(model)})
        with replaced(run.path / "measured.jsonl") as file:
            file.write("".join(json.dumps(row) + "\n" for row in self.rows).encode())
        return False if self.until is not None and self.until(self.rows[-1]) else None

    def ended(self, folder: Path) -> bool:
        """Whether a run has ended by `until`, its last policy saved; takes up its rows if so."""
        rows = _measured_in(folder)
        if self.until is None or not rows or not self.until(rows[-1]):
            return False
        saved = RunFolder.open(folder).newest_good()
        if saved is None or saved[1].steps != rows[-1]["step"]:
            return False
        self.rows = rows
        return True


def _measured_in(folder: Path) -> list[dict[str, float]]:
    path = folder / "measured.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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
        if watch is not None and watch.ended(folder):
            return load_language_model(folder, device=setup.device)
        return ENGINE.resume(folder, **how).language_model
    settings = {**setup.model_dump(), "config": config, "total_steps": total_steps, "out": folder}
    return ENGINE.train(method, **{**settings, **how}).language_model


def frozen(run: Path, *, device: str) -> LanguageModel:
    """A run's model, to compare others with."""
    return dataclasses.replace(load_language_model(run, device=device), frozen=True)
