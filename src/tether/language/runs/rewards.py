"""The rewards of a run: from what is given to what is recorded, and back when it is resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from tether.errors import UserError
from tether.language.data.sources import DataLike
from tether.language.methods.rlhf.given_rewards import GivenRewards, Reward
from tether.language.methods.rlhf.reward_settings import RewardSettings
from tether.language.runs.prepare import ModelAndData
from tether.learning.config import Config
from tether.learning.run import Run

C = TypeVar("C", bound=Config)


def opened(
    reward: Reward | Sequence[Reward] | None,
    config_class: type[Config],
    config: Config | None,
    given: Mapping[str, Any],
    method: str,
) -> GivenRewards:
    """The rewards that a user gives, functions imported; before anything is loaded or written.

    Args:
        reward: as an argument of its own.
        config_class: of the method's settings.
        config: resolved settings, which may name rewards.
        given: further arguments of the learner, among them perhaps a `scorer` instead.
        method: its name.

    Returns:
        None of them where nothing is given.

    Raises:
        UserError: a method without rewards, rewards given twice, or one that is none.
    """
    if not issubclass(config_class, RewardSettings):
        if reward is not None:
            raise UserError(f"reward is given, and {method} has none; leave it out, or train rlhf")
        return GivenRewards((), ())
    named = config.reward if isinstance(config, RewardSettings) else ()
    if reward is not None and "scorer" in given:
        raise UserError("reward and scorer are both given; give one of them")
    if reward is not None and named:
        raise UserError("config names a reward, and reward is given too; give one of them")
    if "scorer" in given:
        return GivenRewards((), ())
    return GivenRewards.of(named if reward is None else reward)


def recorded_in(
    config: C, rewards: GivenRewards, data: DataLike, given: Mapping[str, Any]
) -> tuple[C, GivenRewards]:
    """Settings that name the rewards, with the default of the data where none are given.

    Raises:
        UserError: the method needs a reward, and the data have no default.
    """
    if not isinstance(config, RewardSettings) or "scorer" in given:
        return config, rewards
    if not rewards.names:
        config = config.with_default(data)
        return config, GivenRewards.of(config.reward)
    if config.reward != rewards.names:
        config = type(config).load({**config.dump(), "reward": rewards.names}, recorded=True)
    return config, rewards


def opened_again(
    reward: Reward | Sequence[Reward] | None,
    config: Config,
    run: Run,
    given: Mapping[str, Any],
) -> GivenRewards:
    """The rewards of a run that is resumed; nothing is imported that only its record names.

    Raises:
        UserError: functions or models are not given again, or are others.
    """
    if not isinstance(config, RewardSettings):
        if reward is not None:
            raise UserError(f"reward is given, and the run {run.path} of {run.method} has none")
        return GivenRewards((), ())
    if "scorer" in given:
        return GivenRewards((), ())
    return GivenRewards.again(config.reward, reward, run.path)


def with_rewards_opened(
    config_class: type[Config], arguments: Mapping[str, Any], method: str
) -> dict[str, Any]:
    """The arguments of a training, with reward functions in place of their names."""
    found = dict(arguments)
    config, given = found.get("config"), found.get("given") or {}
    rewards = opened(found.get("reward"), config_class, config, given, method)
    if rewards.functions:
        found["reward"] = rewards.as_list()
        if isinstance(config, RewardSettings) and config.reward:
            values = {**config.dump(), "reward": ()}
            found["config"] = type(config).load(values, recorded=True)
    return found


def passed_on(rewards: GivenRewards, source: ModelAndData) -> dict[str, Any]:
    """What a learner has to be given beside its settings, which name the other rewards."""
    objects = any(item is not None for item in rewards.objects)
    return {"rewards": rewards, "rows": source.rows} if objects else {}
