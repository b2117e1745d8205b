"""Settings check themselves and say in one line what is wrong."""

import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from tether.errors import UserError
from tether.learning import Config
from tether.learning.config import When


class Optimizer(Config):
    learning_rate: float = Field(3e-4, gt=0)
    """Step size of Adam."""

    name: Literal["adam", "sgd"] = "adam"


class Settings(Config):
    """Settings of a test."""

    epsilon: float = Field(0.2, gt=0, lt=1)
    """Clip range of the probability ratio. Larger: bolder updates."""

    sizes: tuple[int, ...] = (64, 64)
    epochs: int = Field(10, ge=1)
    target: float | None = None
    optimizer: Optimizer = Optimizer()

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if self.target is not None and self.target < self.epsilon:
            raise ValueError("target is below epsilon; raise target")
        return self


class Required(Config):
    data: str


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_docstrings_become_descriptions() -> None:
    assert Settings.model_fields["epsilon"].description == (
        "Clip range of the probability ratio. Larger: bolder updates."
    )
    assert Optimizer.model_fields["learning_rate"].description == "Step size of Adam."


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().epsilon = 0.3  # type: ignore[misc]


@given(
    epsilon=st.floats(1e-300, 1, exclude_max=True),
    sizes=st.lists(st.integers(), max_size=3),
    rate=st.floats(1e-300, allow_infinity=False),
    name=st.sampled_from(["adam", "sgd"]),
)
def test_dump_through_json_gives_equal_settings(epsilon, sizes, rate, name) -> None:
    settings = Settings(
        epsilon=epsilon, sizes=tuple(sizes), optimizer=Optimizer(learning_rate=rate, name=name)
    )
    assert Settings.load(json.loads(json.dumps(settings.dump()))) == settings


def test_a_file_is_read_and_overrides_win(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("epsilon = 0.1\nsizes = [32]\n[optimizer]\nlearning_rate = 1\n")
    settings = Settings.load_toml(path, epsilon=0.3)
    assert settings == Settings(epsilon=0.3, sizes=(32,), optimizer=Optimizer(learning_rate=1.0))
    assert Settings.load_toml(path).epsilon == 0.1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epsilom = 0.1", "unknown key 'epsilom'; did you mean 'epsilon'?"),
        (
            "zzz = 1",
            "unknown key 'zzz'; known keys: epochs, epsilon, optimizer, sizes, target",
        ),
        (
            "[optimizer]\nlearning_rates = 1",
            "unknown key 'optimizer.learning_rates'; did you mean 'learning_rate'?",
        ),
        ("epsilon = 1.5", "epsilon is 1.5; expected less than 1"),
        ("epsilon = nan", "epsilon is nan; expected a finite number"),
        ("epsilon = inf", "epsilon is inf; expected a finite number"),
        ("epochs = 2.5", "epochs is 2.5; expected a valid integer, got a number with a fractional"),
        ("epochs = 'ten'", "epochs is 'ten'; expected a valid integer"),
        ("sizes = [1, 'x']", "sizes.1 is 'x'; expected a valid integer"),
        ("optimizer = 3", "optimizer is 3; expected a valid dictionary or instance of Optimizer"),
        ("[optimizer]\nname = 'adamw'", "optimizer.name is 'adamw'; expected 'adam' or 'sgd'"),
        ("[optimizer]\nlearning_rate = 0", "optimizer.learning_rate is 0; expected greater than 0"),
        ("target = 0.1", "target is below epsilon; raise target"),
        ("epsilom = 1\nepochs = 0", "(and 1 more)"),
    ],
)
def test_mistakes_in_a_file_are_told_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        Settings.load_toml(path)
    message = one_line(caught)
    assert message.startswith(f"{path}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"epsilon = ", "is not valid TOML: Invalid value (at end of document)"),
        (b"\xff\xfe", "is not valid TOML"),
        (b"a = " + b"[" * 5000, "is not valid TOML"),
    ],
)
def test_files_that_are_not_toml_are_told(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        Settings.load_toml(tmp_path / "c.toml")
    assert expected in one_line(caught)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read config .*none.toml: No such file"):
        Settings.load_toml(tmp_path / "none.toml")


def test_mistakes_from_python_are_user_errors_too() -> None:
    with pytest.raises(UserError, match=r"^epsilon is 2; expected less than 1$"):
        Settings(epsilon=2)
    with pytest.raises(UserError, match=r"^unknown key 'lr'"):
        Settings(optimizer=Optimizer(lr=1))  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"^the required key 'data' is missing$"):
        Required()  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"^epsilon is nan"):
        Settings(epsilon=math.nan)


def test_a_bad_default_is_a_defect_found_at_once() -> None:
    class Wrong(Config):
        epochs: int = Field(0, ge=1)

    with pytest.raises(UserError, match="epochs is 0"):
        Wrong()


class _Chosen(Config):
    applies: ClassVar[dict[str, When | tuple[When, ...]]] = {
        "margin": When("loss", ("hinge", "squared")),
        "slope": (When("loss", "hinge"), When("rounds", unless=0)),
        "never": When(None),
    }

    loss: str = "hinge"
    rounds: int = 0
    margin: float = 1.0
    slope: float = 2.0
    never: int = 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"loss": "log", "margin": 0.3},
            "margin is 0.3, which loss 'log' does not use; leave it out, or choose loss hinge or "
            "squared",
        ),
        (
            {"rounds": 1, "loss": "log", "slope": 1.0},
            "slope is 1.0, which loss 'log' does not use; leave it out, or choose loss hinge",
        ),
        (
            {"slope": 1.0},
            "slope is 1.0, which rounds 0 does not use; leave it out, or change rounds",
        ),
        ({"never": 4}, "never is 4, which this method does not use; leave it out"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(given: dict[str, Any], message: str):
    for make in (_Chosen.load, lambda values: _Chosen(**values)):
        with pytest.raises(UserError) as raised:
            make(given)
        assert str(raised.value) == message
    assert _Chosen.load(given, recorded=True).dump() == {**_Chosen().dump(), **given}


def test_defaults_and_what_is_used_may_be_given():
    _Chosen(loss="log", margin=1.0)
    _Chosen(loss="squared", margin=0.3)
    _Chosen(rounds=2, slope=1.0)
    # What was saved holds every setting.
    assert _Chosen.load(_Chosen(loss="log").dump()) == _Chosen(loss="log")


def test_a_class_adds_to_what_its_bases_say():
    class Derived(_Chosen):
        applies: ClassVar[dict[str, When | tuple[When, ...]]] = {"extra": When("loss", "log")}
        extra: int = 0

    with pytest.raises(UserError, match="extra is 1"):
        Derived(extra=1)
    with pytest.raises(UserError, match="margin is 2"):
        Derived(loss="log", extra=1, margin=2.0)
