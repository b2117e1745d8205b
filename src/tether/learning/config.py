"""Settings that check themselves: one frozen model per method, unknown keys forbidden.

A method's settings derive from :class:`Config`. Each field has a docstring beneath it, which the
command line shows as help::

    class PPOConfig(Config):
        epsilon: float = Field(0.2, gt=0, lt=1)
        \"\"\"Clip range of the probability ratio. Larger: bolder updates. Usually 0.1 to 0.3.\"\"\"

A setting that only some choices of another setting use is named in ``applies``, so that a value
which would do nothing is refused::

        applies = {"kl_target": When("kl_controller", "adaptive")}
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import ErrorDetails

from tether.errors import UserError
from tether.learning.foreign_names import in_tethers_words

_RECORDED: Final = "recorded"


class When(NamedTuple):
    """A setting's use depends on another setting.

    Attributes:
        setting: name of the other setting; None: this method never uses the value.
        values: the value of `setting`, or a tuple of them, with which the dependent one is used.
        unless: instead of `values`: the one value of `setting` with which it is not used.
    """

    setting: str | None
    values: Any = ()
    unless: Any = ()


class Config(BaseModel):
    """Base of all settings: frozen, finite, defaults checked, unknown keys an error.

    A mistake raises a one-line :class:`tether.errors.UserError`, from Python as from a file. So
    does a setting that is given, is not its default, and is not used beside the other settings.

    Attributes:
        applies: the settings that are not always used, and when they are; of several conditions
            all have to hold. A class adds to what its bases say.
    """

    applies: ClassVar[Mapping[str, When | tuple[When, ...]]] = {}

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    def __init__(self, /, **data: Any) -> None:
        """Checks the values."""
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise UserError(_one_line(type(self), error)) from None

    # Validation of files and of nested settings then goes past this __init__, so that an error
    # keeps its full location.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="after")
    def _all_are_used(self, info: ValidationInfo) -> Self:
        if (info.context or {}).get(_RECORDED):
            return self
        for name, conditions in _conditions(type(self)).items():
            value = getattr(self, name)
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if name not in self.model_fields_set or value == default:
                continue
            for condition in (conditions,) if isinstance(conditions, When) else conditions:
                if (problem := _unused(self, condition)) is not None:
                    raise ValueError(f"{name} is {_shown(value)}, which {problem}")
        return self

    @classmethod
    def load(
        cls,
        data: Mapping[str, Any],
        *,
        source: str | Path | None = None,
        recorded: bool = False,
    ) -> Self:
        """Settings from a mapping, such as what :meth:`dump` gave.

        Args:
            data: values by field name, nested as the fields are.
            source: where they come from (a file), named in errors.
            recorded: they are a run's record, which an earlier version may have written: values
                that are not used are no mistake of the user's.

        Raises:
            UserError: an unknown key (with the closest known one), or a bad value.
        """
        try:
            return cls.model_validate(dict(data), context={_RECORDED: recorded})
        except ValidationError as error:
            raise UserError(_one_line(cls, error, source)) from None

    @classmethod
    def load_part(cls, data: Mapping[str, Any]) -> Self:
        """Settings from a mapping that holds others beside them, such as those of a trial.

        Raises:
            UserError: as :meth:`load`.
            KeyError: a field is missing.
        """
        return cls.load({name: data[name] for name in cls.model_fields})

    @classmethod
    def load_toml(cls, path: str | Path, **overrides: Any) -> Self:
        """Settings from a TOML file; ``overrides`` win over the file, the file over defaults.

        Raises:
            UserError: no such file, not TOML, an unknown key, or a bad value.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read config {path}: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"config {path} is not valid TOML: {error}") from error
        return cls.load({**data, **overrides}, source=path)

    def dump(self) -> dict[str, Any]:
        """The settings as JSON-able values; ``load`` of them gives an equal config."""
        return self.model_dump(mode="json")


def _conditions(model: type[Config]) -> dict[str, When | tuple[When, ...]]:
    found: dict[str, When | tuple[When, ...]] = {}
    for base in reversed(model.__mro__):
        found |= base.__dict__.get("applies", {})
    return found


def _unused(config: Config, condition: When) -> str | None:
    """Why a setting with this condition is not used, and what to do; None: it is used."""
    if condition.setting is None:
        return "this method does not use; leave it out"
    other = getattr(config, condition.setting)
    if condition.values == ():
        if other != condition.unless:
            return None
        change = f"change {condition.setting}"
    else:
        values = condition.values if isinstance(condition.values, tuple) else (condition.values,)
        if other in values:
            return None
        *first, last = map(_shown, values)
        change = f"choose {condition.setting} {' or '.join([', '.join(first), last][not first :])}"
    return f"{condition.setting} {other!r} does not use; leave it out, or {change}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _one_line(
    model: type[BaseModel], error: ValidationError, source: str | Path | None = None
) -> str:
    problems = error.errors(include_url=False)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    place = "" if source is None else f"{source}: "
    return f"{place}{_problem(model, problems[0])}{more}"


def _problem(model: type[BaseModel], problem: ErrorDetails) -> str:
    location = problem["loc"]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        advice = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key {key!r}; {in_tethers_words(str(location[-1]), known) or advice}"
    if problem["type"] == "missing":
        return f"the required key {key!r} is missing"
    message = problem["msg"]
    for lead, replacement in (("Input should be ", "expected "), ("Value error, ", "")):
        if message.startswith(lead):
            message = replacement + message.removeprefix(lead)
    if problem["type"] == "too_short":
        message = f"expected at least {problem['ctx']['min_length']}"
    message = " ".join(message.split())
    if not location:
        return message
    value = repr(problem["input"])
    return f"{key} is {value if len(value) <= 80 else value[:77] + '...'}; {message}"


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names of the (nested) model at a location, as far as it can be followed."""
    fields = model.model_fields
    for part in location:
        field = fields.get(str(part))
        inner = None if field is None else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return sorted(fields)
        fields = inner.model_fields
    return sorted(fields)
