"""Who compares: found by what a user gives, and checked against the environment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tether.control.envs import VectorEnv
from tether.control.named_objects import named_object
from tether.control.preferences.config import PreferConfig
from tether.errors import UserError
from tether.preferences.items import Item, Segment
from tether.preferences.oracle import OracleTeacher
from tether.preferences.records import Answer, Query
from tether.preferences.store import Store
from tether.preferences.teachers import CallableTeacher, FileTeacher, Teacher

HUMAN: Final = "human"
ORACLE: Final = "oracle"
KNOWN: Final = "oracle, human, module:function, or a file of answers (.jsonl or .sqlite)"
_NAMES_A_FUNCTION: Final = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
_PLAYED: Final = 200
"""Steps after which a reward that has never changed is taken for none."""


class RecordedTeacher:
    """Comparisons that a store holds already, segments and all.

    Attributes:
        name: the store's.
    """

    def __init__(self, path: Path) -> None:
        """Reads what counts in the store.

        Raises:
            UserError: no store, or no comparisons of segments in it.
        """
        self.name = path.stem
        self.recorded: list[tuple[Answer, list[Segment]]] = []
        with Store.open(path, create=False) as store:
            for query, answer in store.standing():
                items = store.items(query.items)
                segments = [item for item in items if isinstance(item, Segment)]
                if len(segments) == len(items) and answer.says_something:
                    self.recorded.append((answer, segments))
        if not self.recorded:
            raise UserError(f"{path} holds no answers about segments of an environment")

    def answers(self, queries: Sequence[tuple[Query, Sequence[Item]]]) -> list[Answer | None]:
        """Nothing new."""
        return [None] * len(queries)


def teacher_of(given: Any, config: PreferConfig, seed: int, env: VectorEnv) -> Any:
    """The teacher that a user means.

    Args:
        given: "oracle" (compares by the true reward), "human", ``module:function``, the path of a
            file of answers, a function (see :class:`~tether.preferences.teachers.CallableTeacher`),
            or a :class:`~tether.preferences.teachers.Teacher`.
        config: the settings.
        seed: of an oracle's chances.
        env: the environments.

    Returns:
        A teacher; or :data:`HUMAN`, whose answers come through the run's store.

    Raises:
        UserError: no such teacher, or one that cannot answer here.
    """
    noise = {
        name: getattr(config, f"oracle_{name}")
        for name in ("beta", "gamma", "mistake", "skip", "equal")
    }
    if given == ORACLE:
        return OracleTeacher(seed, **noise)
    for name, value in noise.items():
        if value != PreferConfig.model_fields[f"oracle_{name}"].default:
            raise UserError(
                f"oracle_{name} is {value}, which only the teacher oracle uses; leave it out"
            )
    if given == HUMAN:
        check_drawable(env)
        return HUMAN
    if isinstance(given, str | Path):
        return _named(str(given), config)
    if callable(getattr(given, "answers", None)) and hasattr(given, "name"):
        teacher: Teacher = given
        return teacher
    if callable(given):
        return CallableTeacher(given, name=getattr(given, "__name__", "function"))
    raise UserError(f"teacher is {given!r:.60}; expected {KNOWN}, or a function")


def recorded_teacher(given: Any) -> str | None:
    """How a run records its teacher; None for an object, which no file can hold."""
    if not isinstance(given, str | Path):
        return None
    return str(Path(given).resolve()) if Path(given).is_file() else str(given)


def teacher_again(recorded: str | None, given: Any, run: Path) -> Any:
    """The teacher with which a run goes on.

    A name such as ``module:function`` imports a module and so runs its code. That is done for what
    the user names, never because a file says so.

    Raises:
        UserError: the teacher has to be given again, and is not.
    """
    if given is not None:
        return given
    if recorded is None:
        raise UserError(
            f"run {run} was taught by a Python object, which no file can hold; pass the same one: "
            "tether.resume(run, teacher=...)"
        )
    if _NAMES_A_FUNCTION.match(recorded):
        raise UserError(
            f"run {run} is taught by {recorded}, and a file does not decide what is imported; if "
            f"you trust it, name it yourself: --teacher {recorded}"
        )
    return recorded


def check_comparable(env: VectorEnv, seed: int) -> None:
    """Plays at random for a moment; the environments must be reset afterwards.

    Raises:
        UserError: the reward is the same at every step, so it prefers nothing to anything.
    """
    rng = np.random.default_rng(seed)
    env.action_space.seed(int(rng.integers(2**31)))
    env.reset(int(rng.integers(2**31)))
    first: float | None = None
    for _ in range(_PLAYED):
        reward = env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)])).reward
        first = float(reward[0]) if first is None else first
        if (reward != first).any():
            return
    raise UserError(
        f"{env.id} pays {first:g} at every step, so an oracle cannot say which segment is better; "
        "give another teacher, such as human"
    )


def check_drawable(env: VectorEnv) -> None:
    """Raises UserError unless segments of these environments can be drawn for people."""
    if not hasattr(env, "coordinates"):
        raise UserError(
            f"{env.id} cannot be drawn from what a segment holds, which takes one of tether's own "
            "MuJoCo tasks (`tether envs` lists them); give --teacher oracle or module:function"
        )
    from tether.control.drawing import choose_renderer

    try:
        choose_renderer()
    except UserError as error:
        raise UserError(f"{error}; --teacher oracle works without a renderer") from None


def _named(name: str, config: PreferConfig) -> Teacher:
    path = Path(name)
    if path.suffix in (".sqlite", ".db") and path.exists():
        return RecordedTeacher(path)
    if path.is_file():
        return FileTeacher(path)
    if _NAMES_A_FUNCTION.match(name):
        function = named_object("--teacher", name)
        if not callable(function):
            raise UserError(f"the teacher {name} is {function!r:.60}; expected a function")
        return CallableTeacher(function, name=name.replace(":", "."))
    raise UserError(f"unknown teacher {name!r}; expected {KNOWN}")
