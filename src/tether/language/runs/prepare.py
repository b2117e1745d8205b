"""What a learner is built from: a model, and data as the tokens that the model reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from tether.errors import UserError
from tether.language.data.formats import FORMATS, Conversation, Samples, read_data
from tether.language.data.prompt_rows import NO_COLUMNS, PromptRows
from tether.language.data.sources import MOVIE_REVIEWS, DataLike
from tether.language.data.templates import Kind, Template
from tether.language.data.tokenize import TokenRecord, digest, fit, tokenize
from tether.language.data.tokens import Prompt, Truncation
from tether.language.learners.splitting import split
from tether.language.methods import LanguageMethod
from tether.language.models.from_run import Setup, is_run, open_run, with_template
from tether.language.models.language_model import LanguageModel
from tether.language.models.reward_function import RewardFunction
from tether.language.reviews.prompts import Split, prefixes

logger = logging.getLogger(__name__)

PREFIXES = 4096
"""Beginnings of film reviews to continue, unless a limit says otherwise."""

MOST_REVIEWS_HELD_OUT = 256
"""Film reviews to measure on, at most."""


@dataclass(frozen=True)
class ModelAndData:
    """What a learner is built from.

    Attributes:
        rows: the prompts as they were written and the columns that reward functions take, one row
            for each record of `data`; None where there is no such function or no such text.
    """

    about: LanguageMethod
    language_model: LanguageModel
    template: Kind
    data: Sequence[TokenRecord]
    held_out: Sequence[TokenRecord]
    truncation: Truncation
    skipped: int
    rows: PromptRows | None = None

    @property
    def digest(self) -> str:
        """Equal if and only if all the data are."""
        return digest([*self.data, *self.held_out])


def prepare(
    about: LanguageMethod,
    setup: Setup,
    data: DataLike,
    config: Any,
    given: LanguageModel | None = None,
    functions: Sequence[RewardFunction] = (),
) -> ModelAndData:
    """Reads the data, loads the model, and brings both together.

    Args:
        about: what the method learns from.
        setup: the settings of model and data.
        data: see :func:`tether.language.data.sources.open_source`; or token records, which are
            taken as they are.
        config: the method's settings.
        given: a model that is loaded already; None: the one that `setup` names.
        functions: reward functions, which read prompts and columns of the data.

    Raises:
        UserError: no such data or model, a bad row, nothing that fits, or a reward function that
            takes what the data do not have.
    """
    if _are_records(data):
        _check_functions(functions, (), "data that are tokens")
        records = cast(Sequence[TokenRecord], data)
        return _from_records(about, setup, records, config, given)
    reviews = isinstance(data, str) and data == MOVIE_REVIEWS
    share = 0.0 if about.prompts_only else float(config.held_out)
    if reviews and about.prompts_only:
        samples = None
        kind: Kind = "plain"
        _check_functions(functions, (), MOVIE_REVIEWS)
        if setup.template == "chat":
            raise UserError(
                f"template is 'chat', but the prompts of {MOVIE_REVIEWS} are beginnings of texts; "
                "expected plain or auto"
            )
    else:
        # Data that cannot be used are refused before a model is loaded.
        samples = read_data(
            data,
            about.formats,
            split=setup.split,
            limit=setup.limit,
            skip_bad=setup.skip_bad,
        )
        _check_needs(about, samples, config)
        _check_functions(functions, samples.source.columns, samples.name)
        kind = _template(setup, samples)
    language_model = setup.load_model(given)
    kind = _chat_if_it_can(kind, setup, samples, language_model)
    _check_rewards(config, kind)
    model, template = with_template(language_model, kind)
    answers = config.max_new_tokens if about.prompts_only else 0
    reader = _Reader(setup, template, model.context, about, reserved=answers)
    rows = None
    if samples is None:
        count = setup.limit or PREFIXES
        part = cast(Split, setup.split)
        ids = prefixes(model.tokenizer, count, split=part, seed=setup.seed)
        records, truncation = reader.fit([Prompt(tuple(i)) for i in ids], MOVIE_REVIEWS)
    else:
        if functions:
            rows = PromptRows(
                samples.source.columns,
                chat=kind == "chat",
                keeps=lambda name: any(function.keeps(name) for function in functions),
            )
        records, truncation = reader.read(samples, rows)
    held_out: Sequence[TokenRecord] = ()
    if reviews and share and setup.split == "train":
        count = min(MOST_REVIEWS_HELD_OUT, max(1, round(share * len(records))))
        held_out, _ = reader.read(read_data(data, about.formats, split="held_out", limit=count))
    elif share and len(records) > 1:
        records, held_out = split(records, share)
    skipped = samples.skipped if samples is not None else 0
    return ModelAndData(about, model, kind, records, held_out, truncation, skipped, rows)


def _are_records(data: DataLike) -> bool:
    return (
        isinstance(data, Sequence)
        and not isinstance(data, str)
        and len(data) > 0
        and isinstance(data[0], get_args(TokenRecord))
    )


def _from_records(
    about: LanguageMethod,
    setup: Setup,
    data: Sequence[TokenRecord],
    config: Any,
    given: LanguageModel | None,
) -> ModelAndData:
    """Token records as they are; they have to fit the model's context."""
    kind: Kind = "chat" if setup.template == "chat" else "plain"
    model, _ = with_template(setup.load_model(given), kind)
    share = 0.0 if about.prompts_only else float(config.held_out)
    records, held_out = split(data, share) if share and len(data) > 1 else (list(data), [])
    return ModelAndData(about, model, kind, records, held_out, Truncation(len(data)), 0)


@dataclass(frozen=True)
class _Reader:
    """Samples to records that fit."""

    setup: Setup
    template: Template
    context: int
    method: LanguageMethod
    reserved: int = 0

    def read(
        self, samples: Samples, rows: PromptRows | None = None
    ) -> tuple[list[TokenRecord], Truncation]:
        records = tokenize(
            samples,
            self.template,
            prompts_only=self.method.prompts_only,
            pairs_only=self.method.pairs_only,
            rows=rows,
        )
        return self.fit(records, samples.name)

    def fit(
        self, records: Sequence[TokenRecord], name: str
    ) -> tuple[list[TokenRecord], Truncation]:
        setup = self.setup
        # A bare prompt is given room for one token; what is reserved has that one in it.
        room = self.context - max(0, self.reserved - 1)
        return fit(
            records,
            name,
            context=min(setup.max_length or room, room),
            max_prompt=setup.max_prompt,
            max_completion=setup.max_completion,
        )


def _check_needs(about: LanguageMethod, samples: Samples, config: Any) -> None:
    name, value = about.needs.get(samples.format, (None, None))
    if name is not None and (found := getattr(config, name)) != value:
        columns = ", ".join(FORMATS[samples.format].columns)
        raise UserError(
            f"{name} is {found!r}, which cannot learn from the columns {columns} of the data "
            f"{samples.name}; expected {name} {value}"
        )


def _check_functions(
    functions: Sequence[RewardFunction], columns: Sequence[str], name: str
) -> None:
    others = [column for column in columns if column not in NO_COLUMNS]
    for function in functions:
        function.check(others, name)


def _template(setup: Setup, samples: Samples) -> Kind:
    if samples.format == "text":
        if setup.template == "chat":
            raise UserError(
                f"template is 'chat', but the data {samples.name} are texts without prompts; "
                "expected plain or auto"
            )
        return "plain"
    # How a run has learned to answer is how it is asked.
    learned = _learned_template(setup)
    kind: Kind = learned or "plain"
    if setup.template != "auto":
        kind = setup.template
    else:
        _, first = next(iter(samples), (None, None))
        prompt = getattr(first, "prompt", "")
        if isinstance(first, Conversation) or not isinstance(prompt, str):
            kind = "chat"
        elif not prompt:
            # Texts that are compared or judged as they are answer nobody.
            return "plain"
    if learned not in (None, kind):
        logger.warning(
            "warning: run %s has learned from %s prompts, and these are %s: what it has learned "
            "may be lost on them",
            *(setup.model, learned, kind),
        )
    return kind


def _learned_template(setup: Setup) -> Kind | None:
    if setup.model is None or not is_run(setup.model):
        return None
    kind: Kind = open_run(setup.model).spec["template"]
    return kind


def _chat_if_it_can(
    kind: Kind, setup: Setup, samples: Samples | None, model: LanguageModel
) -> Kind:
    """The template chat where prompts of plain text meet a model with a chat template.

    It is asked through that template when it is used, so what it learns has to pass through it.
    """
    automatic = setup.template == "auto" and _learned_template(setup) is None
    if not automatic or samples is None or samples.format == "text":
        return kind
    _, first = next(iter(samples), (None, None))
    prompted = bool(getattr(first, "prompt", ""))
    return "chat" if prompted and model.tokenizer.chat_template else kind


def _check_rewards(config: Any, kind: Kind) -> None:
    for name in getattr(config, "reward", ()):
        learned = open_run(name).spec.get("template", kind) if is_run(name) else kind
        if learned != kind:
            raise UserError(
                f"the reward model {name} has learned from {learned} prompts, and these are "
                f"{kind}; expected template {learned}, or another reward"
            )
