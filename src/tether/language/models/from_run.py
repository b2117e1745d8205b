"""What a run of a language method starts from: a model, data, and how they meet."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from tether.errors import RunError, UserError
from tether.language.data.templates import Kind, Template
from tether.language.models.ensemble import VARIANCE_WEIGHT
from tether.language.models.files import SMOLLM2, TINY
from tether.language.models.given import adapted
from tether.language.models.language_model import (
    DTYPES,
    LanguageModel,
    LoraSettings,
    from_parts,
    load_model,
    merged,
)
from tether.language.models.reward_model import RewardModel
from tether.language.runtime.paths import is_file
from tether.language.runtime.processes import processes
from tether.language.runtime.state import load_parameters, parameters_digest
from tether.learning.config import Config, When
from tether.learning.run import Run
from tether.learning.seeding import Stream, derived_seed

logger = logging.getLogger(__name__)


ENGINE_NAME = "language"
"""What ``run.json`` records of runs of this package."""


class Setup(Config):
    """The model and the data; the run saves them, so that it can be resumed."""

    applies: ClassVar[dict[str, When]] = {"lora_alpha": When("lora", unless=None)}

    model: str | None = "tiny"
    """The model to train: tiny, smollm2-135m-instruct, a folder, an id of the Hugging Face hub, or
    a run whose model training continues from."""
    data: str | None = "movie-reviews"
    """The data: movie-reviews, a .jsonl or .parquet file, or a data set of the Hugging Face hub
    (owner/name or owner/name:config)."""
    split: str = "train"
    """The split of a data set of the hub; for movie-reviews, train or held_out."""
    limit: int | None = Field(None, ge=1)
    """Reads at most this many rows."""
    skip_bad: bool = False
    """Leaves out rows that cannot be used, instead of stopping at the first one."""
    template: Literal["auto", "plain", "chat"] = "auto"
    """plain gives the model the text of a prompt as it is; chat puts prompts through the model's
    chat template as the user's messages; auto takes chat for lists of messages, and for any prompt
    if the model has a chat template."""
    max_length: int | None = Field(None, ge=2)
    """The most tokens that a prompt and its completion may have together; the length of the model's
    context if not given."""
    max_prompt: int | None = Field(None, ge=1)
    """The most tokens that a prompt may have; longer prompts lose their beginning."""
    max_completion: int | None = Field(None, ge=1)
    """The most tokens that a completion may have; longer completions lose their end."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """The data type of the model's parameters. bfloat16 takes half the memory of float32 and is
    often faster. Adapters of an earlier run are merged in float32 and then converted to this
    type."""
    device: str = "cpu"
    """Where the model is placed, such as cpu or cuda."""
    lora: int | None = Field(None, ge=1)
    """The rank of low-rank adapters (LoRA), which are then the only parameters trained; none trains
    every parameter."""
    lora_alpha: float | None = Field(None, gt=0)
    """The scale of the adapters; twice the rank if not given."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Decides everything random: the same seed gives the same numbers."""

    def lora_settings(self) -> LoraSettings | None:
        """The adapters' settings, if there are to be any."""
        if self.lora is None:
            return None
        return LoraSettings(rank=self.lora, alpha=self.lora_alpha or 2.0 * self.lora)

    def load_model(self, given: LanguageModel | None = None) -> LanguageModel:
        """The model, as training begins with it.

        Args:
            given: a model that is loaded already; None: the one that is named.

        Raises:
            UserError: there is no such model, or none is named.
        """
        if given is not None:
            origin = given.origin or origin_of(given)
            model = adapted(given, self.lora_settings(), seed=self.seed)
            return dataclasses.replace(model, origin=origin)
        if self.model is None:
            raise UserError("the run was started from a model object; pass the same as model=")
        return open_model(
            self.model,
            dtype=self.dtype,
            device=processes().device(self.device),
            lora=self.lora_settings(),
            seed=derived_seed(self.seed, Stream.ADAPTERS, 0),
        )


def open_model(
    name: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    lora: LoraSettings | None = None,
    seed: int = 0,
) -> LanguageModel:
    """A model by name, or the one that a run has trained, its adapters merged; with its origin.

    Merging is exact to the rounding of float32; a narrower `dtype` then rounds once more.

    Args:
        name: as for :func:`tether.language.models.language_model.load_model`, or a run's folder.
        dtype: of the parameters.
        device: where to put it.
        lora: adapters to put on.
        seed: of the adapters' first values.

    Raises:
        UserError: no such model, or a run that holds none.
    """
    if not is_run(name):
        opened = load_model(name, dtype=dtype, device=device, lora=lora, seed=seed)
        origin = origin_of(opened)
    else:
        trained = load_language_model(name, device=device)
        # Before the merger, whose rounding depends on the machine.
        origin = origin_of(trained)
        model = merged(trained)
        # Not its buffers: rotary frequencies stay float32 whatever the parameters are.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(DTYPES[dtype])
        opened = from_parts(model, trained.tokenizer, str(name), lora=lora, seed=seed)
    return dataclasses.replace(opened, origin=origin)


def origin_of(language_model: LanguageModel) -> str:
    """Digest of the parameters, or of what they were loaded from where adapters lie upon them."""
    named = language_model.model.named_parameters()
    if not language_model.has_adapter:
        return parameters_digest(named)
    if not language_model.origin:
        # Fresh adapters do nothing yet; whatever they lie upon is all there is.
        return parameters_digest((n, p) for n, p in named if ".lora_" not in n)
    learned = parameters_digest((n, p) for n, p in named if ".lora_" in n)
    return hashlib.sha256(f"{language_model.origin} {learned}".encode()).hexdigest()


def load_language_model(
    run: str | Path, *, device: str | None = None, given: LanguageModel | None = None
) -> LanguageModel:
    """The language model in a run's newest checkpoint, ready to generate.

    Args:
        run: the folder of a run of sft, dpo or rlhf.
        device: where to put it; where the run had it if not given.
        given: the model that the run began with, if that was an object and no name.

    Raises:
        UserError: not such a run, nothing is saved in it yet, or it is an adapter for a model that
            has changed.
    """
    opened = open_run(run)
    if opened.method == "reward":
        raise UserError(f"run {run} holds a reward model, which gives scores and no text")
    state: Any = opened.load()
    setup = setup_of(opened)
    if device is not None:
        setup = setup.model_copy(update={"device": device})
    model = setup.load_model(given)
    _check_base(opened, setup, model)
    load_parameters(model.model, state["modules"]["model"])
    return dataclasses.replace(model, name=str(run))


def load_reward_model(
    run: str | Path, *, device: str | None = None, given: LanguageModel | None = None
) -> RewardModel:
    """The reward model in a run's newest checkpoint, ready to score.

    Args:
        run: the folder of a run of reward.
        device: where to put it; where the run had it if not given.
        given: the model that the run began with, if that was an object and no name.

    Raises:
        UserError: not such a run, nothing is saved in it yet, or it is an adapter for a model that
            has changed.
    """
    opened = open_run(run)
    if opened.method != "reward":
        raise UserError(f"run {run} was trained by {opened.method}; expected a run of reward")
    state = opened.load()
    setup = setup_of(opened)
    if device is not None:
        setup = setup.model_copy(update={"device": device})
    config = opened.config
    language_model = setup.load_model(given)
    _check_base(opened, setup, language_model)
    model = RewardModel(
        language_model,
        members=config["members"],
        combine=config["combine"],
        variance_weight=config.get("variance_weight", VARIANCE_WEIGHT),
        seed=setup.seed,
    ).restore(state)
    if config["normalize_samples"] and not model.normalized:
        logger.warning(
            "warning: run %s has not come to its end, where its scores get mean 0 and deviation 1; "
            "finish it: tether resume %s",
            *(run, run),
        )
    return model


def load_with_template(
    name: str | Path, *, dtype: str = "float32", device: str = "cpu"
) -> tuple[LanguageModel, Template]:
    """A model, or a run's, and how to write to it: as in training, else by chat if it has one."""
    if is_run(name):
        model = load_language_model(name, device=device)
        return with_template(model, open_run(name).spec["template"])
    model = load_model(name, dtype=dtype, device=device)
    return with_template(model, "chat" if model.tokenizer.chat_template else "plain")


def with_template(language_model: LanguageModel, kind: Kind) -> tuple[LanguageModel, Template]:
    """A template for a model, and the model stopping where the template ends an answer."""
    template = Template(language_model.tokenizer, kind)
    stops = dict.fromkeys((*language_model.stop_ids, *template.stop_ids))
    return dataclasses.replace(language_model, stop_ids=tuple(stops)), template


def is_run(name: str | Path | None) -> bool:
    """Whether this is the folder of a run, rather than of a model."""
    # A folder of the same name does not hide a model that comes with the package.
    if name is None:
        return False
    return str(name) not in (TINY, SMOLLM2) and is_file(Path(name) / "run.json")


def open_run(run: str | Path) -> Run:
    """Opens a run of this package.

    Raises:
        UserError: a run of something else.
    """
    opened = Run.open(run)
    if opened.engine != ENGINE_NAME:
        raise UserError(
            f"run {run} was trained by {opened.method}; expected a run of sft, reward, rlhf or dpo"
        )
    return opened


def setup_of(run: Run) -> Setup:
    """What a run started from."""
    return Setup.load(run.spec["setup"], source=run.path / "run.json", recorded=True)


def _check_base(run: Run, setup: Setup, model: LanguageModel) -> None:
    began = run.spec.get("origins", {}).get("model", model.origin)
    if model.has_adapter and began != model.origin:
        raise RunError(
            f"run {run.path} holds adapters for the model {setup.model}, which is no longer what "
            "it was; put it back"
        )
