"""Heads that read a language model's hidden state as one number."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from tether.errors import UserError


class ScalarHead(nn.Module):
    """One number from a hidden state: a reward, or a value. Always computed in float32.

    r = w . h + b

    Source:
        InstructGPT (2022), section 3.5, "with the final unembedding layer removed"; the initial
        spread 1 / sqrt(H + 1) of a reward head is that of Ziegler et al., "Fine-Tuning Language
        Models from Human Preferences" (2019), in their code.
    """

    def __init__(self, hidden_size: int, kind: Literal["reward", "value"], *, seed: int = 0):
        """A new head.

        Args:
            hidden_size: H.
            kind: "reward": weights of standard deviation 1 / sqrt(H + 1); "value": all zero. A
                value head that starts from a reward model's is a deep copy of it.
            seed: of the weights.

        Raises:
            UserError: another kind.
        """
        super().__init__()
        if kind not in ("reward", "value"):
            raise UserError(f"kind is {kind!r}; expected 'reward' or 'value'")
        weight = torch.zeros(hidden_size)
        if kind == "reward":
            generator = torch.Generator().manual_seed(seed)
            weight.normal_(0.0, 1.0 / math.sqrt(hidden_size + 1), generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """Scores of hidden states: (..., H) to (...), float32."""
        return hidden.to(self.weight.dtype) @ self.weight + self.bias
