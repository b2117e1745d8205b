"""Settings of what is rewarded, shared by every method that has a reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final, Self

from pydantic import Field, field_validator, model_validator

from tether.errors import UserError
from tether.language.data.sources import MOVIE_REVIEWS
from tether.language.judge.opening import is_judge_name, lasting_judge_name
from tether.language.models.ensemble import VARIANCE_WEIGHT, Combine
from tether.language.runtime.paths import lasting
from tether.learning.config import Config, When

SENTIMENT: Final = "sentiment"
LEXICON: Final = "lexicon"
WHAT_FITS: Final = (
    "a run of `tether reward`, sentiment or lexicon (for film reviews), judge:NAME (a language "
    "model that judges), or module:function (a Python function of prompts and completions)"
)


class RewardSettings(Config):
    """What decides how good a completion is."""

    applies: ClassVar[dict[str, When | tuple[When, ...]]] = {
        "reward_variance_weight": When("reward_combine", "mean-variance"),
    }

    reward: tuple[str, ...] = ()
    """The reward: runs of `tether reward`; module:function, a Python function (prompts,
    completions, **columns) that returns a list of numbers; judge:positive, judge:harmless,
    judge:helpful or judge:FILE.toml, a language model that judges, with @MODEL for another than
    smollm2-135m-instruct and ,shots=0 for that setting of the judge; sentiment (log-odds that a
    film review is positive); or lexicon (positive words minus negative ones). For movie-reviews it
    is sentiment if not given."""
    reward_weights: tuple[float, ...] = ()
    """Several rewards: their weights in a sum; if not given, reward_combine decides."""
    reward_combine: Combine | None = None
    """How several rewards, or the members of a single run of `tether reward`, become one: mean;
    lowest, which trusts the most sceptical; or mean-variance, the mean minus reward_variance_weight
    times their variance. They must be on one scale, as reward models of `tether reward` are. If not
    given, several rewards become their mean, and a single run combines its members as it was
    trained to."""
    reward_variance_weight: float = Field(default=VARIANCE_WEIGHT, ge=0)
    """The weight of the variance between rewards. Raising it lowers scores where the
    rewards disagree (usual: 0.1 for PPO, 0.5 for best-of-n)."""
    reward_timeout: float | None = Field(None, gt=0)
    """Seconds that one call of a reward function may take before the run stops with an error; none
    waits as long as it takes. With it the function runs in a thread of its own."""

    @field_validator("reward", mode="before")
    @classmethod
    def _found_again(cls, given: Any) -> Any:
        names = [given] if isinstance(given, str | Path) else given
        if not isinstance(names, list | tuple):
            return given
        # Wherever the run is resumed from, it must find its reward models.
        return tuple(
            _lasting(str(name)) if isinstance(name, str | Path) else name for name in names
        )

    @model_validator(mode="after")
    def _weighted(self) -> Self:
        weights, rewards = self.reward_weights, self.reward
        if weights and rewards and len(weights) != len(rewards):
            raise ValueError(
                f"reward_weights has {len(weights)} numbers for {len(rewards)} rewards "
                f"({', '.join(rewards)}); expected one for each"
            )
        if weights and self.reward_combine not in (None, "mean"):
            raise ValueError(
                f"reward_combine is {self.reward_combine}, and reward_weights is given, which "
                "makes a weighted sum; leave one of them out"
            )
        return self

    def with_default(self, data: Any) -> Self:
        """The settings, with sentiment as the reward where film reviews have no other.

        Args:
            data: what is learned from.

        Raises:
            UserError: there is no reward, and the data have no default.
        """
        if self.reward:
            return self
        if not isinstance(data, str) or data != MOVIE_REVIEWS:
            raise UserError(f"no reward is given; expected --reward with {WHAT_FITS}")
        return type(self).load({**self.dump(), "reward": (SENTIMENT,)}, recorded=True)


def _lasting(name: str) -> str:
    if is_judge_name(name):
        return lasting_judge_name(name)
    return lasting(name, (SENTIMENT, LEXICON))
