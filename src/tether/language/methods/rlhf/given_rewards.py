"""Rewards as users give them: names, Python functions, reward models; and what a run records.

Only what a user names in this process is imported. A run's record alone never is: it says
``module:function``, and whoever resumes the run gives that function again.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from tether.errors import UserError
from tether.language.judge.reward import JudgeReward, is_judge_name, lasting_judge_name
from tether.language.methods.rlhf.reward_settings import LEXICON, SENTIMENT
from tether.language.models.from_run import is_run
from tether.language.models.reward_function import RewardFunction, name_of_function, place_of
from tether.language.models.reward_model import RewardModel
from tether.language.runtime.paths import lasting

Reward: TypeAlias = "str | Path | RewardModel | Callable[..., Any]"
"""A name as ``--reward`` takes it, a reward model, or a function with TRL's convention."""

_FUNCTION: Final = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_<][\w.<>]*")


@dataclass(frozen=True)
class GivenRewards:
    """Rewards in order.

    Attributes:
        names: what the run records of each.
        objects: what each is, or None where its name says it.
    """

    names: tuple[str, ...]
    objects: tuple[RewardFunction | RewardModel | None, ...]

    @property
    def functions(self) -> list[RewardFunction]:
        """The functions among them."""
        return [item for item in self.objects if isinstance(item, RewardFunction)]

    def as_list(self) -> list[Any]:
        """The rewards as :meth:`of` takes them, without anything left to import."""
        return [item or name for name, item in zip(self.names, self.objects, strict=True)]

    @classmethod
    def of(cls, rewards: Reward | Sequence[Reward]) -> GivenRewards:
        """Rewards as a user gives them; ``module:function`` is imported.

        Raises:
            UserError: a module or function that is missing, or something that is no reward.
        """
        several: Any = rewards if isinstance(rewards, list | tuple) else [rewards]
        pairs = [_read(reward) for reward in several]
        return cls(tuple(name for name, _ in pairs), tuple(item for _, item in pairs))

    @classmethod
    def again(
        cls, recorded: Sequence[str], rewards: Reward | Sequence[Reward] | None, run: Path
    ) -> GivenRewards:
        """The rewards of a run that is resumed; what its record cannot hold has to be given.

        Args:
            recorded: the names in the run's record.
            rewards: all of the run's rewards, or those that are objects, in order.
            run: the run's folder, named in errors.

        Raises:
            UserError: they are missing, or are not those that the run began with.
        """
        needed = [name for name in recorded if is_function_name(name)]
        if rewards is None:
            if needed:
                raise UserError(
                    f"run {run} was rewarded by {', '.join(needed)}, which its folder does not "
                    f"hold; pass the same again: tether resume {run} --reward {' '.join(needed)}, "
                    "or reward= in Python"
                )
            return cls(tuple(recorded), tuple(map(_judge, recorded)))
        given = cls.of(rewards)
        if len(given.names) == len(recorded):
            same, objects = _same(given.names, recorded), iter(given.objects)
        else:
            pairs = zip(given.names, given.objects, strict=True)
            chosen = [(name, item) for name, item in pairs if item is not None]
            same = len(chosen) == len(given.names) and _same([n for n, _ in chosen], needed)
            objects = iter(item for _, item in chosen)
        if not same:
            raise UserError(
                f"run {run} was rewarded by {', '.join(recorded)}, and reward is "
                f"{', '.join(given.names)}; pass the same, in the same order"
            )
        full = len(given.names) == len(recorded)
        return cls(
            tuple(recorded),
            tuple(
                next(objects) if full or is_function_name(name) else _judge(name)
                for name in recorded
            ),
        )


def is_function_name(name: str) -> bool:
    """Whether this names a Python object, ``module:function``, rather than a run."""
    return _FUNCTION.fullmatch(name) is not None and not (is_judge_name(name) or is_run(name))


def _same(given: Sequence[str], recorded: Sequence[str]) -> bool:
    """Whether names agree; a function of the program itself has another module when imported."""

    def agrees(one: str, other: str) -> bool:
        modules = {one.partition(":")[0], other.partition(":")[0]}
        last = one.partition(":")[2]
        return one == other or bool(
            "__main__" in modules and last and last == other.partition(":")[2]
        )

    return len(given) == len(recorded) and all(map(agrees, given, recorded))


def _read(reward: Any) -> tuple[str, RewardFunction | RewardModel | None]:
    if isinstance(reward, RewardFunction):
        return reward.name, reward
    if isinstance(reward, RewardModel):
        return name_of_function(reward), reward
    if isinstance(reward, str | Path):
        name = str(reward)
        if is_judge_name(name):
            name = lasting_judge_name(name)
            return name, _judge(name)
        if is_function_name(name):
            return name, RewardFunction(_imported(name), name)
        return lasting(name, (SENTIMENT, LEXICON)), None
    function = RewardFunction(reward)
    return function.name, function


def _judge(name: str) -> RewardFunction | None:
    """The judge that a name means, if it means one."""
    return RewardFunction(JudgeReward(name), name) if is_judge_name(name) else None


def _imported(name: str) -> Any:
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise UserError(
                f"the reward {name} cannot be imported: {error}{place_of(error)}"
            ) from error
        raise UserError(
            f"the reward {name} cannot be imported: there is no module {missing!r} in the current "
            "folder or among the installed packages"
        ) from None
    # Whatever a module of the user's raises is the user's to correct.
    except (Exception, SystemExit) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"the reward {name} cannot be imported: {module_name} raised {text}{place_of(error)}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            public = [n for n in vars(found) if not n.startswith("_")]
            close = difflib.get_close_matches(part, public, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(public[:12])}"
            raise UserError(
                f"the reward {name} cannot be imported: {module_name} has no {part!r}; {hint}"
            )
        found = getattr(found, part)
    return found
