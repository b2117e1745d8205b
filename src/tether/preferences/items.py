"""What is compared: segments of trajectories, and texts.

Items are named by their content: the same content has the same id, on every machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np

from tether.errors import UserError
from tether.preferences.fields import (
    Array,
    Messages,
    canonical,
    check_array,
    check_text,
    check_whole,
    messages_of,
    number_of,
    plain_json,
)


@dataclass(frozen=True)
class MinariReference:
    """Where in a Minari data set a segment was cut out.

    Attributes:
        dataset_id: such as ``mujoco/hopper/expert-v0``.
        episode: number of the episode in the data set.
        start: first step of the segment, from 0.
        stop: the step after its last.
    """

    dataset_id: str
    episode: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        check_text(self, "dataset_id", empty=False)
        for name in ("episode", "start", "stop"):
            check_whole(self, name)
        if self.stop <= self.start:
            raise UserError(f"stop is {self.stop}; expected more than start, which is {self.start}")


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive steps of one episode, T of them.

    Arrays are copied, and cannot be changed. Two segments are equal when their contents are.

    Attributes:
        env: the environment's id.
        env_kwargs: what the environment was made with.
        observation: what the policy saw before each step; shape (T, *observation).
        action: what it did; shape (T, *action).
        qpos: MuJoCo's positions before each step, to render it later; shape (T, nq).
        qvel: velocities; shape (T, nv).
        reward: the TRUE reward of each step, shape (T,), float64: for oracles and studies only,
            never shown to people.
        dt: seconds of one step of the environment.
        origin: name of the run it comes from.
        step: environment steps that its policy had been trained for.
        terminated: whether the episode terminated at its last step.
        minari: where it comes from, if that is a Minari data set.

    Raises:
        UserError: shapes that do not fit, a NaN or an infinity, no step at all.
    """

    env: str
    observation: Array
    action: Array
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    qpos: Array | None = None
    qvel: Array | None = None
    reward: Array | None = None
    dt: float | None = None
    origin: str = ""
    step: int = 0
    terminated: bool = False
    minari: MinariReference | None = None

    def __post_init__(self) -> None:
        check_text(self, "env", empty=False)
        check_text(self, "origin")
        check_whole(self, "step")
        object.__setattr__(self, "env_kwargs", plain_json("env_kwargs", dict(self.env_kwargs)))
        for name in ARRAYS:
            check_array(self, name)
        length = len(self)
        if length == 0:
            raise UserError("the segment has no steps; expected at least one")
        for name in ARRAYS:
            array = getattr(self, name)
            if array is not None and len(array) != length:
                raise UserError(
                    f"{name} has {len(array)} steps, but observation has {length}; expected as many"
                )
        for name, axes in (("reward", 1), ("qpos", 2), ("qvel", 2)):
            array = getattr(self, name)
            if array is not None and array.ndim != axes:
                raise UserError(f"{name} has the shape {array.shape}; expected {axes} axes")
        if self.dt is not None:
            object.__setattr__(self, "dt", number_of("dt", self.dt))
            if not self.dt > 0:
                raise UserError(f"dt is {self.dt}; expected seconds above 0")
        if self.minari is not None and self.minari.stop - self.minari.start != length:
            raise UserError(
                f"the reference names {self.minari.stop - self.minari.start} steps, but the "
                f"segment has {length}"
            )

    def __len__(self) -> int:
        return len(self.observation)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Segment) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    @cached_property
    def id(self) -> str:
        """32 hexadecimal digits, made of the content."""
        arrays = self.arrays()
        facts = {
            **self.facts(),
            "arrays": [[name, a.dtype.str, list(a.shape)] for name, a in arrays.items()],
        }
        digest = hashlib.sha256(b"segment" + canonical(facts).encode())
        for array in arrays.values():
            digest.update(array.tobytes())
        return digest.hexdigest()[:32]

    def arrays(self) -> dict[str, Array]:
        """Its arrays by name; those it has."""
        found = {name: getattr(self, name) for name in ARRAYS}
        return {name: array for name, array in found.items() if array is not None}

    def facts(self) -> dict[str, Any]:
        """All that is not an array, ready for JSON."""
        facts = {name: getattr(self, name) for name in _SEGMENT_FACTS}
        return facts | {"minari": None if self.minari is None else dict(vars(self.minari))}

    @property
    def true_return(self) -> float:
        """Undiscounted sum of the true reward.

        Raises:
            UserError: the segment does not have its reward.
        """
        if self.reward is None:
            raise UserError(f"segment {self.id} does not have its true reward")
        return float(np.sum(self.reward))


ARRAYS: Final = ("observation", "action", "qpos", "qvel", "reward")
_SEGMENT_FACTS: Final = ("env", "env_kwargs", "dt", "origin", "step", "terminated")


@dataclass(frozen=True)
class Text:
    """A completion and what it answers.

    Attributes:
        prompt: a text, possibly empty, or messages ``{"role": ..., "content": ...}``.
        completion: the answer.

    Raises:
        UserError: an empty completion, or something that is not text.
    """

    prompt: str | Messages
    completion: str

    def __post_init__(self) -> None:
        check_text(self, "completion", empty=False, longest=None, controls=True)
        if isinstance(self.prompt, str):
            check_text(self, "prompt", longest=None, controls=True)
        else:
            object.__setattr__(self, "prompt", messages_of(self.prompt))

    def __hash__(self) -> int:
        return hash(self.id)

    @cached_property
    def id(self) -> str:
        """32 hexadecimal digits, made of the content."""
        content = canonical(self.facts()).encode()
        return hashlib.sha256(b"text" + content).hexdigest()[:32]

    def facts(self) -> dict[str, Any]:
        """Its content, ready for JSON."""
        prompt = self.prompt if isinstance(self.prompt, str) else list(self.prompt)
        return {"prompt": prompt, "completion": self.completion}


Item: TypeAlias = Segment | Text
