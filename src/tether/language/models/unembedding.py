"""Logits in float32 or wider, whatever the precision of the model.

A bfloat16 logit near 30 is a multiple of 1/8, so log-probabilities made of such logits jump by a
tenth of a nat per token, and divergences and ratios with them. The products are those of the same
short numbers; only their sum is kept as it comes out.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn


class Unembedding:
    """z = W h + b, from hidden states h; to be used where nothing asks for gradients."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Takes W, (V, H), and b, (V,), which must not change while this is in use.

        A copy of a short W is made here, once, where the device cannot do without.
        """
        self._wide = torch.promote_types(weight.dtype, torch.float32)
        self._direct = weight.dtype != self._wide and _sums_stay_wide(weight.device, weight.dtype)
        self._weight = weight if self._direct else weight.to(self._wide)
        self._bias = None if bias is None else bias.to(self._wide)

    @classmethod
    def of(cls, head: nn.Linear) -> Unembedding:
        """That of a language model's head."""
        return cls(head.weight, head.bias)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits, (N, V), of hidden states, (N, H)."""
        if not self._direct:
            return nn.functional.linear(hidden.to(self._wide), self._weight, self._bias)
        logits = torch.mm(hidden, self._weight.T, out_dtype=self._wide)
        return logits if self._bias is None else logits.add_(self._bias)


@cache
def _sums_stay_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device multiplies short floats into float32."""
    if device.type == "cpu":
        return False
    one = torch.ones(16, 16, dtype=dtype, device=device)
    try:
        return torch.mm(one, one, out_dtype=torch.float32).dtype == torch.float32
    except (RuntimeError, TypeError, NotImplementedError):
        return False
