"""From words to a run: load the model and the data, build the learner, train, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tether.arguments import say
from tether.errors import RunError, UserError
from tether.language.material import Material, prepare
from tether.language.memory import memory_told
from tether.language.methods import METHODS, find_method
from tether.language.models import LanguageModel
from tether.language.places import expanded, is_file, lasting
from tether.language.pretrained import SMOLLM2, TINY
from tether.language.processes import Leader, follow, join, processes
from tether.language.setup import (
    ROOM,
    Setup,
    load_language_model,
    load_reward_model,
    open_run,
    setup_of,
)
from tether.language.sources import MOVIE_REVIEWS, DataLike
from tether.language.tokens import Truncation
from tether.learning.callbacks import BaseCallback, Callback
from tether.learning.config import Config
from tether.learning.learner import Learner, Metrics
from tether.learning.loop import check_every
from tether.learning.machine import peak_memory_mb
from tether.learning.metrics import read_metrics
from tether.learning.run import Run

__all__ = [
    "Trained",
    "configure",
    "load_language_model",
    "load_reward_model",
    "resume",
    "train",
]


@dataclass
class Trained:
    """A finished training.

    Attributes:
        run: the run's folder.
        method: its name.
        language_model: as it is now.
        steps: examples, comparisons or episodes in all.
        seconds: time spent training in this process, without start-up.
        metrics: the last iteration's measurements.
        examples: records that were learned from.
        truncation: what was cut to fit.
        steps_here: steps taken in this process.
    """

    run: Path
    method: str
    language_model: LanguageModel
    steps: int
    seconds: float
    metrics: Metrics
    examples: int
    truncation: Truncation
    steps_here: int

    def summary(self) -> dict[str, Any]:
        """What the command line prints with --json."""
        return {
            "run": str(self.run),
            "method": self.method,
            "model": self.language_model.name,
            "steps": self.steps,
            "seconds": self.seconds,
            "steps_per_second": self.steps_here / self.seconds if self.seconds else 0.0,
            "examples": self.examples,
            "dropped": self.truncation.dropped,
            "metrics": {k: v if math.isfinite(v) else None for k, v in self.metrics.items()},
            "peak_memory_mb": peak_memory_mb(),
        }


def configure(method: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The validated settings of `method`.

    Raises:
        UserError: unknown method or setting, or a bad value.
    """
    config_class: type[Config] = find_method(method).config_class
    return config_class.load(settings or {})


def train(
    method: str,
    *,
    data: DataLike = MOVIE_REVIEWS,
    epochs: float = 1.0,
    total_steps: int | None = None,
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    sinks: Sequence[str] = ("tensorboard",),
    checkpoint_every: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> Trained:
    """Align a language model: ``train("sft", model="tiny", data="answers.jsonl")``.

    Args:
        method: one of :data:`tether.language.methods.METHODS`.
        data: ``movie-reviews``, a file, a hub id, a `datasets` object, or a list of dicts.
        epochs: passes over the data.
        total_steps: examples, comparisons or episodes instead; rounded up to whole batches.
        out: the run's folder, new or empty; ``runs/METHOD-MODEL-SEED-TIME`` when not given.
        callbacks: see :mod:`tether.learning.callbacks`.
        sinks: where metrics go beside metrics.jsonl: "tensorboard", "wandb", "trackio".
        checkpoint_every: save whenever training passes a multiple of so many steps; every minute
            in any case.
        progress: show progress on stderr.
        **settings: fields of :class:`tether.language.setup.Setup` and of the method's config.

    Raises:
        UserError: anything the user can mend; one line.
    """
    named = {name: settings.pop(name) for name in [*settings] if name in Setup.model_fields}
    # Wherever the run is resumed from, it must find its models and data again.
    if "model" in named:
        named["model"] = lasting(named["model"], (TINY, SMOLLM2))
    if "pretraining_data" in settings:
        settings["pretraining_data"] = _name_of(settings["pretraining_data"])
    config = configure(method, settings)
    setup = Setup.load({**named, "data": _name_of(data)}, source="setup")
    if not (math.isfinite(epochs) and epochs > 0):
        raise UserError(f"epochs is {epochs}; expected above 0")
    if total_steps is not None and total_steps < 1:
        raise UserError(f"total_steps is {total_steps}; expected at least 1")
    check_every(checkpoint_every)
    group = join()
    with group.leader_first():
        material = prepare(method, setup, data, config)
    if progress and group.leads:
        _tell(material)
    _check_shares(config, group.count)
    # An episode is a step, and a prompt may have several.
    steps = len(material.data) * getattr(config, "samples_per_prompt", 1)
    total = total_steps or math.ceil(epochs * steps)
    folder = Path(out) if out is not None else _default_folder(method, setup)
    folder = Path(group.gather(str(folder))[0])
    learner = _build(method, config, material, setup, total)
    if not group.leads:
        return _followed(folder, method, learner, material)
    spec = {
        "room": ROOM,
        "setup": setup.dump(),
        "template": material.template,
        "total_steps": total,
        "digest": material.digest,
        "origins": _origins(material, learner),
    }
    # Only now, or a mistake that a learner finds would leave a folder in the way of its mend.
    with Run.create(folder, method=method, config=config.dump(), spec=spec) as run:
        return _train(run, learner, material, total, callbacks, sinks, checkpoint_every, progress)


def resume(
    run: str | Path,
    *,
    data: DataLike | None = None,
    total_steps: int | None = None,
    callbacks: Sequence[Callback] = (),
    sinks: Sequence[str] = ("tensorboard",),
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> Trained:
    """Go on with a run where its newest checkpoint left off, bit for bit.

    Args:
        run: the run's folder.
        data: the data, needed only if the run was started from an object.
        total_steps: a new budget; the run's own when not given.
        callbacks: as in :func:`train`.
        sinks: as in :func:`train`.
        checkpoint_every: as in :func:`train`.
        progress: as in :func:`train`.

    Raises:
        UserError: not such a run, or its data, its model or its rewards are no longer what they
            were.
    """
    opened = open_run(run)
    setup = setup_of(opened)
    source = data if data is not None else setup.data
    if source is None:
        raise UserError(
            f"run {opened.path} was made from an object, not a file; pass the same as data="
        )
    total = total_steps if total_steps is not None else int(opened.spec["total_steps"])
    if total < 1:
        raise UserError(f"total_steps is {total}; expected at least 1")
    config = configure(opened.method, opened.config)
    group = join()
    with group.leader_first():
        material = prepare(opened.method, setup, source, config)
    _check_shares(config, group.count)
    if material.digest != opened.spec["digest"]:
        raise UserError(
            f"the data {setup.data or 'given'} are not those that run {opened.path} began with; "
            "put them back, or start a new run"
        )
    learner = _build(opened.method, config, material, setup, total)
    _check_origins(opened, _origins(material, learner))
    if not group.leads:
        if opened.checkpoints():
            learner.restore(opened.load())
        return _followed(opened.path, opened.method, learner, material)
    with opened:
        opened.resume(learner)
        return _train(
            opened, learner, material, total, callbacks, sinks, checkpoint_every, progress
        )


def _build(method: str, config: Any, material: Material, setup: Setup, total_steps: int) -> Learner:
    given: dict[str, Any] = {"seed": setup.seed, "total_steps": total_steps}
    if not METHODS[method].prompts_only:
        given["held_out"] = material.held_out
    # A learner may make something that is kept in the user's cache, such as the sentiment scorer.
    with processes().leader_first():
        learner: Learner = find_method(method)(
            config, material.language_model, material.data, **given
        )
    return learner


def _origins(material: Material, learner: Learner) -> dict[str, str]:
    """Digests of the model, and of what else a learner was given by name beside the data."""
    return {"model": material.language_model.origin, **getattr(learner, "origins", {})}


def _check_origins(run: Run, found: Mapping[str, str]) -> None:
    origins = dict(run.spec.get("origins", {}))
    if run.method in _WITHOUT_REFERENCE and setup_of(run).lora is None and run.checkpoints():
        # The checkpoint holds every parameter, and nothing looks back to where they began.
        origins.pop("model", None)
    for name, began in origins.items():
        if found.get(name) != began:
            what = f"the model {setup_of(run).model}" if name == "model" else name
            raise RunError(
                f"{what} is no longer what it was when run {run.path} began with it; put it back, "
                "or start a new run"
            )


def _check_shares(config: Any, count: int) -> None:
    for name in ("batch_size", "minibatch_size"):
        size = getattr(config, name, count)
        if size < count:
            raise UserError(
                f"{name} is {size}; expected at least {count}, one for each of the processes"
            )


_WITHOUT_REFERENCE = frozenset({"sft", "reward"})


class _Clock(BaseCallback):
    """Notes where this process began."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.steps = 0

    def on_start(self, run: Run, learner: Learner) -> None:
        self.start = time.perf_counter()
        self.steps = learner.steps


def _train(
    run: Run,
    learner: Learner,
    material: Material,
    total_steps: int,
    callbacks: Sequence[Callback],
    sinks: Sequence[str],
    checkpoint_every: int | None,
    progress: bool,
) -> Trained:
    clock = _Clock()
    # A learner may keep more than numbers: completions to look at.
    kept: Sequence[Callback] = getattr(learner, "callbacks", tuple)()
    leader = Leader(learner) if processes().count > 1 else None
    try:
        with _memory_told(learner):
            metrics = run.train(
                leader or learner,
                total_steps,
                checkpoint_every=checkpoint_every,
                callbacks=(clock, *kept, *callbacks),
                sinks=sinks,
                progress=progress,
                progress_metric=METHODS[run.method].progress_metric,
            )
    finally:
        if leader is not None:
            leader.dismiss()
    if not metrics and run.metrics_path.exists():
        # Nothing was left to do: the run's last measurements still stand.
        for row in read_metrics(run.metrics_path)[-1:]:
            metrics = {name: value for name, value in row.items() if name != "step"}
    return _trained(run.path, run.method, learner, material, metrics, clock)


def _followed(folder: Path, method: str, learner: Learner, material: Material) -> Trained:
    """What the other processes do while the first one trains."""
    clock = _Clock()
    clock.steps = learner.steps
    with _memory_told(learner):
        metrics = follow(learner)
    return _trained(folder, method, learner, material, metrics, clock)


def _memory_told(learner: Learner) -> AbstractContextManager[None]:
    config = getattr(learner, "config", None)
    return memory_told(config, lambda: f"at step {learner.steps} (the last checkpoint is intact)")


def _trained(
    folder: Path,
    method: str,
    learner: Learner,
    material: Material,
    metrics: Metrics,
    clock: _Clock,
) -> Trained:
    return Trained(
        run=folder,
        method=method,
        language_model=material.language_model,
        steps=learner.steps,
        seconds=time.perf_counter() - clock.start,
        metrics=metrics,
        examples=len(material.data),
        truncation=material.truncation,
        steps_here=learner.steps - clock.steps,
    )


def _tell(material: Material) -> None:
    if material.skipped:
        say(f"{material.skipped:,} bad rows were left out")
    if material.truncation:
        say(str(material.truncation))


def _name_of(data: DataLike) -> str | None:
    if not isinstance(data, str | Path):
        return None
    return str(expanded(data).resolve()) if is_file(data) else str(data)


def _default_folder(method: str, setup: Setup) -> Path:
    """A fresh folder's name under ./runs."""
    model = Path(setup.model).name
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in model)
    return Path("runs") / f"{method}-{name}-{setup.seed}-{datetime.now():%Y%m%d-%H%M%S}"
