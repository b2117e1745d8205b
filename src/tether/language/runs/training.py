"""The language engine: load the model and the data, build a learner, from settings or a record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from tether.errors import RunError, UserError
from tether.language.data.sources import MOVIE_REVIEWS, DataLike
from tether.language.data.tokens import Truncation
from tether.language.learners.language_learner import LanguageLearner
from tether.language.methods import METHODS, LanguageMethod
from tether.language.methods.rlhf.given_rewards import Reward
from tether.language.models.files import SMOLLM2, TINY
from tether.language.models.from_run import (
    Setup,
    load_language_model,
    load_reward_model,
    setup_of,
)
from tether.language.models.given import GivenModel, given_model
from tether.language.models.language_model import LanguageModel
from tether.language.runs.prepare import ModelAndData, prepare
from tether.language.runs.rewards import (
    opened,
    opened_again,
    passed_on,
    recorded_in,
    with_rewards_opened,
)
from tether.language.runtime.out_of_memory import explaining_out_of_memory
from tether.language.runtime.paths import expanded, is_file, lasting
from tether.language.runtime.processes import Leader, follow, join, processes
from tether.learning.config import Config
from tether.learning.engine import Engine, Prepared, Trained, check_total_steps
from tether.learning.learner import HasOrigins, Learner, Metrics
from tether.learning.methods import check_learner_class
from tether.learning.run import Run
from tether.preferences.places import is_store, lasting_place

__all__ = ["ENGINE", "TrainedModel", "configure", "load", "resume", "train"]


@dataclass
class TrainedModel(Trained):
    """A finished training of a language model.

    Attributes:
        language_model: as it is now.
        examples: records that were learned from.
        truncation: what was cut to fit.
    """

    language_model: LanguageModel = None  # type: ignore[assignment]
    examples: int = 0
    truncation: Truncation = field(default_factory=Truncation)
    progress_metric: str = "loss"

    def summary(self) -> dict[str, Any]:
        """What the command line prints with --json."""
        return {
            **super().summary(),
            "model": self.language_model.name,
            "examples": self.examples,
            "dropped": self.truncation.dropped,
        }

    def score(self) -> str:
        """The loss or the reward, in a few words."""
        names = (self.progress_metric, "held_out/loss")
        found = dict.fromkeys(name for name in names if name in self.metrics)
        texts = [f"{name} {self.metrics[name]:.4g}" for name in found]
        return "; ".join(texts) + (" (in the last batch)" if len(texts) == 1 else "")


@dataclass
class PreparedModel(Prepared[LanguageLearner]):
    """A prepared training, with the model and the data it was built from."""

    source: ModelAndData = None  # type: ignore[assignment]


class LanguageEngine(Engine[LanguageLearner, TrainedModel]):
    """Trains causal language models and reward models."""

    name: ClassVar[str] = "language"
    methods: ClassVar[Mapping[str, LanguageMethod]] = METHODS

    def configure(
        self, method: str | type[Any], settings: Mapping[str, Any] | None = None
    ) -> Config:
        """The validated settings of `method`.

        Raises:
            UserError: unknown method or setting, or a bad value.
        """
        config_class: type[Config] = self.find(method)[1].config_class
        return config_class.load(settings or {})

    def about(self, name: str, kind: Any) -> LanguageMethod:
        """What a method learns from; of a class from outside, its attribute ``about``."""
        found = METHODS.get(name)
        return kind.about if found is None else found

    def prepare(
        self,
        method: str | type[Any],
        *,
        model: str | Path | GivenModel | None = None,
        tokenizer: Any = None,
        data: DataLike = MOVIE_REVIEWS,
        epochs: float = 1.0,
        total_steps: int | None = None,
        config: Config | None = None,
        reward: Reward | Sequence[Reward] | None = None,
        given: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> PreparedModel:
        """Loads the model and the data, and builds the learner.

        Args:
            method: one of :data:`tether.language.methods.METHODS`, or a class that derives from
                :class:`tether.language.learners.language_learner.LanguageLearner`.
            model: ``tiny``, ``smollm2-135m-instruct``, a folder, a hub id, a run; or a loaded
                model: a ``transformers`` model (with `tokenizer`) or a :class:`LanguageModel`.
            tokenizer: of a ``transformers`` model.
            data: ``movie-reviews``, a file, a hub id, a store of comparisons, a `datasets` object,
                a list of dicts, or token records (:mod:`tether.language.data.tokens`).
            epochs: passes over the data.
            total_steps: examples, comparisons or episodes instead; rounded up to whole batches.
            config: the method's resolved settings, instead of those among `settings`.
            reward: of a method that has rewards: a name (see
                :class:`tether.language.methods.rlhf.reward_settings.RewardSettings`), a function
                ``(prompts, completions, **columns)`` that returns a list of numbers, a reward
                model, or a list of these.
            given: further arguments of the learner.
            **settings: fields of :class:`tether.language.models.from_run.Setup` and of the method's
                config.

        Raises:
            UserError: anything that the user can correct; one line.
        """
        name, kind = self.find(method)
        loaded, model = given_model(model, tokenizer)
        if model is not None:
            # Wherever the run is resumed from, it must find its models and data again.
            settings["model"] = lasting(model, (TINY, SMOLLM2))
        named = {key: settings.pop(key) for key in [*settings] if key in Setup.model_fields}
        if "pretraining_data" in settings:
            settings["pretraining_data"] = _name_of(settings["pretraining_data"])
        rewards = opened(reward, kind.config_class, config, given or {}, name)
        if config is None:
            if rewards.names:
                settings["reward"] = rewards.names
            config = kind.config_class.load(settings)
        elif settings:
            raise UserError(f"config is given, and {', '.join(settings)} too; give one of them")
        setup = Setup.load({**named, "data": _name_of(data)}, source="setup")
        if not (math.isfinite(epochs) and epochs > 0):
            raise UserError(f"epochs is {epochs}; expected above 0")
        if total_steps is not None:
            check_total_steps(total_steps)
        config, rewards = recorded_in(config, rewards, data, given or {})
        about = self.about(name, kind)
        join()
        with processes().leader_first():
            source = prepare(about, setup, data, config, loaded, rewards.functions)
        # An episode is a step, and a prompt may have several.
        steps = len(source.data) * getattr(config, "samples_per_prompt", 1)
        total = total_steps or math.ceil(epochs * steps)
        more = {**(given or {}), **passed_on(rewards, source)}
        learner = _build(kind, config, source, setup, total, more)
        spec = {
            "setup": {**setup.dump(), **({"model": None} if loaded is not None else {})},
            "template": source.template,
            "digest": source.digest,
            "origins": _origins(source, learner),
        }
        subject = Path(source.language_model.name).name
        return PreparedModel(
            method=name,
            config=config,
            learner=learner,
            total_steps=total,
            seed=setup.seed,
            subject=subject,
            spec=spec,
            progress_metric=about.progress_metric,
            source=source,
        )

    def rebuild(  # type: ignore[override]
        self,
        run: Run,
        *,
        total_steps: int,
        method: type[Any] | None = None,
        model: GivenModel | None = None,
        tokenizer: Any = None,
        data: DataLike | None = None,
        reward: Reward | Sequence[Reward] | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> PreparedModel:
        """Loads a run's model and data and builds its learner again.

        Args:
            run: the run.
            total_steps: the budget.
            method: the learner class, if the run was trained by one from outside tether.
            model: the model, needed only if the run was started from an object.
            tokenizer: of a ``transformers`` model.
            data: the data, needed only if the run was started from an object.
            reward: the rewards, needed only if some of them are functions or model objects.
            given: further arguments of the learner.

        Raises:
            UserError: the data, the model or the rewards are missing, or no longer what they were.
        """
        kind = self.find_again(run, method)
        setup = setup_of(run)
        loaded, _ = given_model(model, tokenizer)
        if loaded is None and run.spec["setup"]["model"] is None:
            raise UserError(
                f"run {run.path} was started from a model object, not a name; pass the same model "
                "as model="
            )
        source = data if data is not None else setup.data
        if source is None:
            raise UserError(
                f"run {run.path} was started from a data object, not a file; pass the same data as "
                "data="
            )
        source_name = run.path / "run.json"
        config = kind.config_class.load(run.config, source=source_name, recorded=True)
        rewards = opened_again(reward, config, run, given or {})
        about = self.about(run.method, kind)
        join()
        with processes().leader_first():
            found = prepare(about, setup, source, config, loaded, rewards.functions)
        if found.digest != run.spec["digest"]:
            raise UserError(
                f"the data {setup.data or 'given'} are not those that run {run.path} began with; "
                "put them back, or start a new run"
            )
        more = {**(given or {}), **passed_on(rewards, found)}
        learner = _build(kind, config, found, setup, total_steps, more)
        _check_origins(run, about, _origins(found, learner))
        return PreparedModel(
            method=run.method,
            config=config,
            learner=learner,
            total_steps=total_steps,
            seed=setup.seed,
            subject="",
            progress_metric=about.progress_metric,
            source=found,
        )

    def opened(self, method: str | type[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with reward functions in place of their names."""
        name, kind = self.find(method)
        return with_rewards_opened(kind.config_class, arguments, name)

    def finished(self, prepared: Prepared[LanguageLearner], training: Trained) -> TrainedModel:
        """Adds the model, and what of the data was used."""
        assert isinstance(prepared, PreparedModel)
        own = {f.name: getattr(training, f.name) for f in fields(training)}
        return TrainedModel(
            **own,
            language_model=prepared.source.language_model,
            examples=len(prepared.source.data),
            truncation=prepared.source.truncation,
            progress_metric=prepared.progress_metric,
        )

    @contextmanager
    def driving(self, prepared: Prepared[LanguageLearner]) -> Iterator[Learner]:
        """Leads the other processes, if there are any, and explains a lack of memory."""
        learner = prepared.learner
        leader = Leader(learner) if processes().count > 1 else None
        try:
            with explaining_out_of_memory(prepared.config, lambda: _where(learner)):
                yield leader or learner
        finally:
            if leader is not None:
                leader.dismiss()

    @property
    def leads(self) -> bool:
        """Whether this is the first of the processes that train together."""
        return processes().leads

    def agree(self, folder: Path) -> Path:
        """The folder, as the first process names it."""
        return Path(processes().gather(str(folder))[0])

    def follow(self, prepared: Prepared[LanguageLearner]) -> Metrics:
        """What the other processes do while the first one trains."""
        with explaining_out_of_memory(prepared.config, lambda: _where(prepared.learner)):
            return follow(prepared.learner)

    def load(self, run: str | Path, **arguments: Any) -> Any:
        """The language model or the reward model; see :func:`load`."""
        return load(run, **arguments)

    def subject(self, arguments: Mapping[str, Any]) -> str:
        """The model's name."""
        model = arguments.get("model", TINY)
        return Path(model).name if isinstance(model, str | Path) else "model"

    def remarks(self, prepared: Prepared[LanguageLearner]) -> Sequence[str]:
        """What was left out of the data."""
        assert isinstance(prepared, PreparedModel)
        source = prepared.source
        skipped = [f"{source.skipped:,} bad rows were left out"] if source.skipped else []
        size = getattr(prepared.config, "batch_size", 1)
        if prepared.total_steps <= size:
            skipped.append(
                f"{prepared.total_steps:,} examples in batches of {size} make a single update; "
                "lower --batch-size, or train for more --epochs"
            )
        return [*skipped, *([str(source.truncation)] if source.truncation else [])]

    def check_class(self, method: type[Any]) -> None:
        """Checks that a class has what this engine calls."""
        members = ("config_class", "about", "steps", "iterate", "state", "restore", "origins")
        # Instances have it; a class that derives from LanguageLearner need not.
        needed = [m for m in members if m != "origins" or not issubclass(method, LanguageLearner)]
        base = "tether.language.learners.language_learner.LanguageLearner"
        check_learner_class(method, needed, base)


ENGINE = LanguageEngine()
train, resume, configure = ENGINE.train, ENGINE.resume, ENGINE.configure


def load(
    run: str | Path,
    *,
    device: str | None = None,
    model: GivenModel | None = None,
    tokenizer: Any = None,
) -> Any:
    """What a run has learned: a language model, or of a run of ``reward`` a reward model.

    Args:
        run: the run's folder.
        device: where to put it; where the run had it if not given.
        model: the model that the run began with, if that was an object and no name.
        tokenizer: of a ``transformers`` model.

    Raises:
        UserError: not such a run, or nothing is saved in it yet.
    """
    given, name = given_model(model, tokenizer)
    if name is not None:
        raise UserError(f"model is {name!r}; expected a loaded model, or nothing")
    found = load_reward_model if ENGINE.open(run).method == "reward" else load_language_model
    return found(run, device=device, given=given)


def _build(
    kind: Any,
    config: Config,
    source: ModelAndData,
    setup: Setup,
    total_steps: int,
    given: Mapping[str, Any],
) -> LanguageLearner:
    _check_shares(config, processes().count)
    more: dict[str, Any] = {"seed": setup.seed, "total_steps": total_steps, **given}
    if not source.about.prompts_only:
        more["held_out"] = source.held_out
    # A learner may make something that is kept in the user's cache, such as the sentiment scorer.
    with processes().leader_first():
        learner: LanguageLearner = kind(config, source.language_model, source.data, **more)
    return learner


def _where(learner: Learner) -> str:
    return f"at step {learner.steps}"


def _origins(source: ModelAndData, learner: Learner) -> dict[str, str]:
    """Digests of the model, and of what else a learner was given by name beside the data."""
    more = learner.origins if isinstance(learner, HasOrigins) else {}
    return {"model": source.language_model.origin, **more}


def _check_origins(run: Run, about: LanguageMethod, found: Mapping[str, str]) -> None:
    origins = dict(run.spec.get("origins", {}))
    setup = setup_of(run)
    if not about.has_reference and setup.lora is None and run.checkpoints():
        # The checkpoint holds every parameter, and nothing looks back to where they began.
        origins.pop("model", None)
    for name, began in origins.items():
        if found.get(name) != began:
            what = f"the model {setup.model}" if name == "model" else name
            raise RunError(
                f"{what} is no longer what it was when run {run.path} began with it; put it back, "
                "or start a new run"
            )


def _check_shares(config: Config, count: int) -> None:
    for name in ("batch_size", "minibatch_size"):
        size = getattr(config, name, count)
        if size < count:
            raise UserError(
                f"{name} is {size}; expected at least {count}, one for each of the processes"
            )


def _name_of(data: DataLike) -> str | None:
    if not isinstance(data, str | Path):
        return None
    if is_store(data):
        return lasting_place(data)
    return str(expanded(data).resolve()) if is_file(data) else str(data)
