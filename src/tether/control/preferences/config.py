"""Settings of learning from comparisons, and of the on-policy method that learns beneath them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, PositiveInt, SerializeAsAny, ValidationInfo, model_validator

from tether.control.learner import OnPolicyConfig, OnPolicyLearner
from tether.control.methods import METHODS
from tether.control.networks import Activation
from tether.control.preferences.inputs import Inputs
from tether.control.preferences.queries import Selection
from tether.control.preferences.reward_model import LARGEST_L2, RewardSettings
from tether.learning.config import Config, When
from tether.learning.foreign_names import in_tethers_words
from tether.learning.methods import find_method

NOT_ON_POLICY: Final = ("prefer", "bc", "cem", "actor-critic")
FEW: Final = 3
"""Components of an action up to which the whole exploration bonus counts."""


class PreferConfig(Config):
    """Settings of learning from comparisons; those of the on-policy method are given beside them.

    The latter are kept in `policy`.
    """

    labels: int = Field(700, ge=1)
    """Comparisons to learn from, in all. A person answers one in 3 to 5 seconds."""
    policy_method: str = "ppo"
    """The on-policy method that learns from the learned reward."""
    first_labels: float = Field(0.1, gt=0, le=1)
    """The share of the labels that come from the untrained policy; 1 asks for all of them before
    training (the paper's offline ablation)."""
    label_decay_steps: int | None = Field(None, ge=1)
    """The other labels come at a rate proportional to c / (T + c) at step T; this is c, a fifth of
    the training if not given. Lowering it asks for more of them early."""
    queries: Selection = "disagreement"
    """How segments are chosen: uniform (at random); disagreement (where the ensemble's members
    differ the most); entropy (where the ensemble is least sure); coverage (far from all that was
    asked)."""
    candidates: int = Field(10, ge=1)
    """Candidates for each query that is chosen."""
    items: int = Field(2, ge=2, le=9)
    """Segments in a query. With more than two the teacher ranks them."""
    segment_steps: int | None = Field(None, ge=1)
    """Steps of a segment; 1.5 seconds, but 15 to 60 steps and at most half of an episode, if none
    is given."""
    random_steps: int | None = Field(None, ge=1)
    """Environment steps of the untrained policy, from which the first segments are cut; enough for
    segments that do not overlap, but at most a tenth of the training, if none is given."""
    recent_steps: int = Field(20_000, ge=1)
    """Later segments are cut from so many of the newest environment steps."""
    queue: int = Field(20, ge=1)
    """Queries that wait for people, beyond what is due, so that nobody waits for a query."""
    termination: Literal["auto", "keep", "continue"] = "auto"
    """Whether the task may end episodes, which would reveal its reward: continue (they go on where
    the task would have ended them), keep, or auto (continue where it is possible)."""
    termination_reward: float = 0.0
    """What each step earns after which the task would have ended an episode, in place of its own
    reward."""
    termination_steps: int | None = Field(None, ge=1)
    """After so many of these steps the episode is cut, as by a time limit; if not given, as many as
    a segment has or usually has. The paper never cuts. With fewer, segments are short episodes of
    unequal lengths, from whose comparison the worth of lying on the ground cannot be learned."""
    torque_cost: bool = True
    """Keeps the task's cost of torques; the paper removes it."""
    ensemble: int = Field(3, ge=1)
    """Networks of the reward model."""
    reward_hidden: tuple[PositiveInt, ...] = (64, 64)
    """Widths of the hidden layers of each of them."""
    reward_learning_rate: float = Field(1e-3, gt=0)
    """Adam's step size for the reward model (usual: 3e-4 to 3e-3)."""
    reward_minibatch_size: int = Field(16, ge=1)
    """Comparisons in a gradient step of the reward model."""
    first_fit_steps: int = Field(1000, ge=1)
    """Gradient steps on the first labels before training begins."""
    refits: int = Field(40, ge=0)
    """How often the reward model goes on learning while the policy trains. Raising it uses new
    labels sooner and takes longer."""
    refit_steps: int = Field(100, ge=1)
    """Gradient steps on all labels each time."""
    reward_l2: float = Field(0.01, ge=0, le=LARGEST_L2)
    """The initial L2 coefficient of the reward model, which is adapted to keep validation loss /
    training loss between 1.1 and 1.5, but never above 0.02; 0: none."""
    reward_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the reward model's hidden units that each gradient step leaves out."""
    error_share: float = Field(0.1, ge=0, lt=1)
    """Share of the answers to two segments that the model assumes to be random."""
    reward_inputs: Inputs = "state-action"
    """What the reward model sees of a step: state, state-action (the paper's), or transition
    (state, action and what followed)."""
    exploration_bonus: float = Field(0.03, ge=0)
    """Added to the weight of the entropy bonus of ppo, ppo-kl and vpg, which have none by default:
    a reward that is not yet right would else end exploration before it is. With n > 3 components in
    an action it is 3 / n of this."""
    learn_from: Literal["comparisons", "returns", "reward"] = "comparisons"
    """What the policy learns from: comparisons; returns, a reward model that is fitted to the
    segments' true sums of rewards (an ablation); or reward, the true reward itself (what the others
    are measured against)."""
    store: bool = False
    """Also keeps segments and answers in RUN/preferences.sqlite where the teacher is not a person;
    people's are kept in any case."""
    oracle_beta: float | None = Field(None, gt=0)
    """The oracle's rationality per unit of reward: it prefers the first segment with probability
    sigmoid(beta (its sum - the other's)); always what is better, if none is given."""
    oracle_gamma: float = Field(1.0, gt=0, le=1)
    """Below 1 the oracle is myopic: it weighs the last steps of a segment most."""
    oracle_mistake: float = Field(0.0, ge=0, le=1)
    """Probability with which the oracle says the opposite."""
    oracle_skip: float = Field(0.0, ge=0)
    """The oracle cannot tell if both sums are below this share of the average."""
    oracle_equal: float = Field(0.0, ge=0)
    """The oracle calls a tie if the sums differ by less than this share of the average."""
    policy: SerializeAsAny[OnPolicyConfig] = OnPolicyConfig.load({})
    """Settings of `policy_method`."""

    applies: ClassVar[Mapping[str, When | tuple[When, ...]]] = {
        "candidates": When("queries", ("disagreement", "entropy", "coverage")),
        "termination_reward": When("termination", ("auto", "continue")),
        "termination_steps": When("termination", ("auto", "continue")),
        "error_share": When("learn_from", "comparisons"),
    }

    @model_validator(mode="before")
    @classmethod
    def _with_policy(cls, values: Any, info: ValidationInfo) -> Any:
        """Moves what is not its own into `policy`, and checks it there."""
        if not isinstance(values, Mapping):
            return values
        recorded = bool((info.context or {}).get("recorded"))
        if recorded and "reward_inputs" not in values:
            values = _as_recorded_before(values)
        own = {name: value for name, value in values.items() if name in cls.model_fields}
        others = {name: value for name, value in values.items() if name not in own}
        kind = on_policy_method(str(own.get("policy_method", "ppo")))
        policy = own.get("policy", {})
        if isinstance(policy, OnPolicyConfig) and not others:
            return {**own, "policy": policy}
        given = policy.model_dump() if isinstance(policy, Config) else dict(policy)
        for name in others:
            if name not in kind.config_class.model_fields:
                raise ValueError(
                    _unknown(name, [*cls.model_fields, *kind.config_class.model_fields])
                )
        return {**own, "policy": kind.config_class.load({**given, **others}, recorded=recorded)}

    def exploring(self, components: int) -> OnPolicyConfig:
        """The method's settings with the exploration bonus, for actions of so many components."""
        weight = "entropy_coefficient"
        field = type(self.policy).model_fields.get(weight)
        if field is None or field.default:
            return self.policy
        total = getattr(self.policy, weight) + self.exploration_bonus * min(1.0, FEW / components)
        return self.policy.model_copy(update={weight: total})

    @property
    def hidden(self) -> tuple[int, ...]:
        """Of the policy."""
        return self.policy.hidden

    @property
    def activation(self) -> Activation:
        """Of the policy."""
        return self.policy.activation

    @property
    def reward_settings(self) -> RewardSettings:
        """What the reward model takes of them."""
        return RewardSettings(
            members=self.ensemble,
            hidden=self.reward_hidden,
            learning_rate=self.reward_learning_rate,
            minibatch_size=self.reward_minibatch_size,
            l2=self.reward_l2,
            dropout=self.reward_dropout,
            error=self.error_share,
            regress=self.learn_from == "returns",
        )


def on_policy_method(name: str) -> type[OnPolicyLearner]:
    """The learner class of a method that learns from rollouts of its own policy.

    Raises:
        UserError: no such method.
        ValueError: it is not one of these.
    """
    known = {each: method for each, method in METHODS.items() if each not in NOT_ON_POLICY}
    if name in NOT_ON_POLICY:
        raise ValueError(
            f"the method {name} does not learn from rollouts of its own policy, which a learned "
            f"reward needs; choose one of {', '.join(known)}"
        )
    kind: type[OnPolicyLearner] = find_method(known, name)
    return kind


def _as_recorded_before(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run from before `reward_inputs` and `exploration_bonus`."""
    known = {name: value for name, value in values.items() if name != "next_observation"}
    followed = values.get("next_observation", False)
    inputs = "transition" if followed else "state-action"
    return {**known, "reward_inputs": inputs, "exploration_bonus": 0.0}


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(known))}"
    return f"unknown key {name!r}; {in_tethers_words(name, known) or hint}"
