"""Judges by name and by settings, as the command line and rewards give them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from tether.errors import UserError
from tether.language.judge.backends import Backend
from tether.language.judge.causal_lm import CausalLM
from tether.language.judge.judges import Judge, Style
from tether.language.judge.questions import ATTRIBUTES, open_attribute
from tether.language.judge.server import Connection, Server, is_url
from tether.language.models.files import SMOLLM2, TINY, find_folder, load_config
from tether.language.models.from_run import is_run, open_model, origin_of
from tether.language.models.given import GivenModel, given_model
from tether.language.runtime.paths import lasting
from tether.learning.config import Config, When

_NAME: Final = re.compile(
    r"judge:(?P<attribute>[^@]+?)(@(?P<model>.+?))?(?P<settings>(,[a-z_]+=[^,=]*)*)"
)
_USUAL_SHOTS: Final = 4


class JudgeSettings(Config):
    """Who judges, and how it is asked."""

    applies: ClassVar[dict[str, When]] = {
        "reasons": When("cot", True),
        "reason_tokens": When("cot", True),
        "reason_temperature": When("cot", True),
    }

    model: str = SMOLLM2
    """The model that judges: smollm2-135m-instruct, tiny, a folder, an id of the Hugging Face hub,
    a run, or the URL of an OpenAI-compatible server, such as http://localhost:8000/v1."""
    attribute: str = "positive"
    """What is judged: positive (a film review), harmless or helpful (an answer), or a TOML file
    with questions of your own."""
    mode: Literal["pointwise", "pairwise", "rating"] = "pointwise"
    """pointwise reads each text by itself and gives the log-odds of yes; pairwise reads two texts,
    in both orders; rating reads each text by itself and gives the expected number of points."""
    shots: int | None = Field(None, ge=0)
    """The number of solved examples that the judge reads first; if not given 4, or as many as the
    attribute has."""
    detailed: bool = False
    """Explains the attribute to the judge at length."""
    principles: bool = False
    """Puts one of the attribute's principles before each question."""
    cot: bool = False
    """Chain of thought: the judge first writes reasons, then its verdict is read."""
    reasons: int = Field(1, ge=1)
    """Self-consistency: the number of reasons that are sampled for each verdict; their
    probabilities are averaged."""
    reason_tokens: int = Field(96, ge=1)
    """The most tokens of a reason."""
    reason_temperature: float = Field(1.0, ge=0)
    """The sampling temperature of reasons."""
    temperature: float | None = Field(None, gt=0)
    """Log-odds are divided by it before they become labels; below 1 labels are nearer to 0 and 1.
    The attribute's own if not given."""
    layout: Literal["plain", "chat", "auto"] = "auto"
    """plain lets the model continue a text, chat lets it answer a message; auto does what the
    attribute's file says. Servers are always asked in chat."""
    max_words: int | None = Field(None, ge=1)
    """The most words of each text that the judge reads; none reads all."""
    name: str | None = None
    """The judge's name, as the annotator of its labels; made of model, attribute and mode if not
    given."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """The data type of the judge's parameters; auto takes that of its files, or float32 where the
    processor has no instructions for a shorter one."""
    device: str = "cpu"
    """Where the judge is placed, such as cpu or cuda."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Decides the reasons that are sampled."""
    server_model: str | None = None
    """A server's model, by the name that the server gives it; its only one if not given."""
    key_variable: str | None = None
    """The name of the environment variable that holds the server's key, such as OPENAI_API_KEY."""
    timeout: float = Field(60.0, gt=0)
    """The seconds that a server may take for one answer."""
    retries: int = Field(5, ge=0)
    """The number of times that a request that failed is sent again, after growing pauses."""
    concurrency: int = Field(8, ge=1)
    """The number of requests that a server is sent at once."""

    @field_validator("model", "attribute")
    @classmethod
    def _found_again(cls, given: str) -> str:
        # Wherever a run is resumed from, it must find its judge.
        if is_url(given) or given in ATTRIBUTES:
            return given
        path = Path(given)
        return str(path.resolve()) if path.is_file() else lasting(given, (SMOLLM2, TINY))

    @model_validator(mode="after")
    def _server_settings(self) -> Self:
        for name in ("server_model", "key_variable"):
            if getattr(self, name) is not None and not is_url(self.model):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, and the model {self.model!r} is no "
                    "server's URL; leave it out, or give --model http://..."
                )
        return self


def open_judge(
    model: str | Path | GivenModel | None = None,
    attribute: str | Path = "positive",
    *,
    tokenizer: Any = None,
    **settings: Any,
) -> Judge:
    """Opens a judge.

    Args:
        model: a name, a folder, a run, the URL of a server, or a loaded model; None:
            ``smollm2-135m-instruct``.
        attribute: ``positive``, ``harmless``, ``helpful``, or a TOML file.
        tokenizer: of a ``transformers`` model.
        **settings: see :class:`JudgeSettings`.

    Raises:
        UserError: no such model or attribute, or settings that do not fit them.
    """
    given, name = given_model(SMOLLM2 if model is None else model, tokenizer)
    named = {} if name is None else {"model": name}
    return open_settings(
        JudgeSettings.load({**named, "attribute": str(attribute), **settings}),
        None if given is None else CausalLM(given, given.name, origin_of(given)),
    )


def open_settings(settings: JudgeSettings, backend: Backend | None = None) -> Judge:
    """The judge that settings describe.

    Args:
        settings: all of it.
        backend: a model that is open already, in place of the one that is named.

    Raises:
        UserError: no such model or attribute, or settings that do not fit them.
    """
    # What costs nothing to check is checked before a model is loaded.
    attribute = open_attribute(settings.attribute)
    question = attribute.question(settings.mode)
    usual = min(_USUAL_SHOTS, len(question.shots))
    style = Style(
        shots=usual if settings.shots is None else settings.shots,
        detailed=settings.detailed,
        principles=settings.principles,
        reasons=settings.reasons if settings.cot else 0,
        reason_tokens=settings.reason_tokens,
        reason_temperature=settings.reason_temperature,
        layout=None if settings.layout == "auto" else settings.layout,
        max_words=settings.max_words,
        seed=settings.seed,
    )
    Judge.check(attribute, settings.mode, style)
    return Judge(
        attribute,
        settings.mode,
        backend or open_backend(settings),
        style,
        temperature=settings.temperature,
        name=settings.name,
    )


def open_backend(settings: JudgeSettings) -> Backend:
    """The model or server that settings name.

    Raises:
        UserError: there is none.
    """
    if is_url(settings.model):
        return Server(
            Connection(
                settings.model,
                settings.server_model,
                settings.key_variable,
                timeout=settings.timeout,
                retries=settings.retries,
                concurrency=settings.concurrency,
            )
        )
    dtype: str = settings.dtype
    if dtype == "auto":
        dtype = _type_for(settings.model, settings.device)
    model = open_model(settings.model, dtype=dtype, device=settings.device)
    frozen = dataclasses.replace(model, frozen=True)
    short = Path(settings.model).name or settings.model
    return CausalLM(frozen, short, f"{model.origin} {dtype}")


def judge_settings(name: str) -> JudgeSettings:
    """The settings that ``judge:ATTRIBUTE[@MODEL]`` or ``judge:FILE.toml`` name.

    The file holds settings of a judge; an attribute's own file will do as well. Further settings
    may follow, such as ``judge:positive,shots=0``.

    Raises:
        UserError: it is no such name, or there is no such file or setting.
    """
    match = _parts(name)
    named, model = match["attribute"], match["model"]
    given: dict[str, Any] = {} if model is None else {"model": model}
    for one in match["settings"].split(",")[1:]:
        key, value = one.split("=")
        if key in given or key == "attribute":
            raise UserError(f"the judge {name!r} says {key} twice; expected it once")
        given[key] = value
    if named in ATTRIBUTES or not named.endswith(".toml") or _is_attribute(Path(named)):
        return JudgeSettings.load({"attribute": named, **given})
    return JudgeSettings.load_toml(named, **given)


def is_judge_name(name: str) -> bool:
    """Whether a reward is meant to be a judge."""
    return name.startswith("judge:")


def judge_attribute(name: str) -> str:
    """The attribute of a judge's name, or its file without folder and suffix.

    Raises:
        UserError: it names no judge.
    """
    return Path(_parts(name)["attribute"]).stem


def lasting_judge_name(name: str) -> str:
    """The name with full paths, to be found from everywhere.

    Raises:
        UserError: it names no judge.
    """
    match = _parts(name)
    attribute, model = match["attribute"], match["model"]
    if attribute not in ATTRIBUTES and Path(attribute).is_file():
        attribute = str(Path(attribute).resolve())
    there = "" if model is None else f"@{lasting(model, (SMOLLM2, TINY))}"
    return f"judge:{attribute}{there}{match['settings']}"


def _parts(name: str) -> re.Match[str]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"the judge {name!r} names no attribute; expected judge:positive, judge:FILE.toml, "
            "judge:positive@MODEL or judge:positive,shots=0"
        )
    return match


def _is_attribute(path: Path) -> bool:
    import tomllib

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return any(isinstance(table.get(mode), dict) for mode in ("pointwise", "pairwise", "rating"))


def _type_for(model: str, device: str) -> str:
    """The type of the model's files, or a wider one where the processor has no use for it."""
    import torch

    if is_run(model):
        return "float32"
    config = load_config(find_folder(model))
    stored = str(getattr(config, "dtype", None)).removeprefix("torch.")
    if stored not in ("float32", "bfloat16", "float16", "float64"):
        return "float32"
    if device == "cpu" and stored in ("bfloat16", "float16"):
        # Without instructions for it, a product in bfloat16 takes ten times as long.
        quick = torch.cpu.get_capabilities().get("avx512_bf16", False)
        return "bfloat16" if stored == "bfloat16" and quick else "float32"
    return stored
