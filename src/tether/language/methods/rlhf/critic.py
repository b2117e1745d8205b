"""The critic of RLHF: what the rest of a completion will bring, read beside each token's choice."""

from __future__ import annotations

import copy
import dataclasses
from typing import Literal, cast

import torch
from torch import Tensor, nn

from tether.errors import UserError
from tether.language.data.tokens import TokenBatch
from tether.language.models.language_model import LanguageModel, ScalarHead
from tether.language.models.logprobs import hidden_states
from tether.language.models.reward_model import RewardModel
from tether.language.models.scoring import Scorer


class Critic(nn.Module):
    """V(x, y_<t) = w . h_t + b, with h_t the hidden state from which y_t is chosen.

    Attributes:
        head: w and b.
        trunk: the model that gives h_t, if not the policy itself.
    """

    def __init__(self, head: ScalarHead, trunk: LanguageModel | None) -> None:
        """Joins a head and, unless the policy's is shared, a trunk."""
        super().__init__()
        self.head = head
        self.trunk = trunk
        if trunk is not None:
            # Registers the parameters; a LanguageModel is no module.
            self.model = trunk.model

    def forward(self, batch: TokenBatch, policy_hidden: Tensor) -> Tensor:
        """Values of the states in which the scored tokens were chosen.

        Args:
            batch: I completions of at most C tokens, on the critic's device.
            policy_hidden: (B, T, H) the policy's hidden states of this batch; read only where the
                trunk is shared.

        Returns:
            (I, C), float32 or wider; 0 where `batch.mask` is false.
        """
        hidden = policy_hidden if self.trunk is None else hidden_states(self.trunk, batch)
        return batch.by_completion(self.head(batch.at_sources(hidden)))


def build_critic(
    language_model: LanguageModel,
    scorer: Scorer,
    *,
    trunk: Literal["shared", "separate"],
    start: Literal["zero", "reward"],
) -> Critic:
    """A critic for a policy.

    Args:
        language_model: the policy.
        scorer: what rewards it; the critic may begin as a copy of a reward model.
        trunk: "shared": the policy's own; "separate": a copy, of the policy or the reward model,
            of which only what learns takes memory (beside adapters nothing else is copied).
        start: "zero": every value is 0; "reward": the separate critic begins as the reward model,
            normalization included.

    Raises:
        UserError: a start from a reward model where there is none, or none that fits.

    Source:
        Zero: Ziegler et al. (2019), in their code. Reward: InstructGPT (2022), appendix C.4.
    """
    wide = torch.promote_types(language_model.dtype, torch.float32)
    if start == "zero":
        head = ScalarHead(language_model.hidden_size, "value")
        own = None if trunk == "shared" else _copied(language_model)
    else:
        if not isinstance(scorer, RewardModel):
            raise UserError(
                "critic_start is 'reward', but the scorer is no reward model; expected 'zero'"
            )
        if scorer.language_model.device != language_model.device:
            raise UserError(
                f"the policy is on {language_model.device} and the reward model on "
                f"{scorer.language_model.device}; a critic that begins as a copy of it needs both "
                "on one device"
            )
        own = _copied(scorer.language_model)
        if scorer.adapters:
            own.model.set_adapter(scorer.adapters[0])
            for other in scorer.adapters[1:]:
                own.model.delete_adapter(other)
        head = cast(ScalarHead, copy.deepcopy(scorer.heads[0]))
        _absorb(head, float(scorer.gain[0]), float(scorer.bias[0]))
    return Critic(head.to(language_model.device, wide).requires_grad_(True), own)


def _copied(language_model: LanguageModel) -> LanguageModel:
    """A copy whose parameters learn by themselves; what does not learn is shared."""
    same = {id(p): p for p in language_model.model.parameters() if not p.requires_grad}
    head = language_model.head.weight
    if head is not language_model.causal_lm.get_input_embeddings().weight:
        # The critic has no use for the vocabulary.
        same[id(head)] = nn.Parameter(head.detach(), requires_grad=False)
    model = copy.deepcopy(language_model.model, dict(same))
    return dataclasses.replace(language_model, model=model)


@torch.no_grad()
def _absorb(head: ScalarHead, gain: float, bias: float) -> None:
    """Makes gain (w . h + b) + bias the head's own."""
    head.weight.mul_(gain)
    head.bias.mul_(gain).add_(bias)
