"""How parameters move: AdamW, warm-up and decay, clipping, and float32 copies of short floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from tether.errors import NonFiniteError
from tether.language.runtime.processes import processes
from tether.language.runtime.state import load_optimizer, optimizer_to_state
from tether.learning.config import Config
from tether.learning.learner import Metrics, State


class OptimizationConfig(Config):
    """Settings of every method that follows a gradient."""

    batch_size: int = Field(16, ge=1)
    """Examples or pairs in a gradient step. More examples give steadier and fewer steps (usual: 8
    to 128)."""
    micro_batch_size: int = Field(8, ge=1)
    """Rows that the model reads at a time. Fewer rows need less memory; the gradient stays the same
    up to rounding (about 1 % with bfloat16 parameters)."""
    learning_rate: float = Field(2e-5, gt=0)
    """AdamW's largest step size (usual: 1e-6 to 1e-4; for LoRA and very small models 1e-4 to
    1e-3)."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the step size falls after the warm-up: to zero at the end of the run, along a line or a
    cosine, or not at all."""
    warmup: float = Field(0.05, ge=0, le=1)
    """The fraction of the run in which the step size rises from zero."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay, multiplied by the step size; it applies to matrices and not
    to vectors (usual: 0 to 0.1)."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay rate for the mean of the gradients."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's decay rate for the mean of the squared gradients (usual: 0.95 to 0.999)."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """AdamW adds this to the denominator, so that it never divides by zero."""
    max_gradient_norm: float | None = Field(1.0, gt=0)
    """Gradients with a larger norm are scaled down to this norm; none never scales them."""


class Optimizer:
    """AdamW over some parameters, by a schedule that depends on the learner's steps alone.

    Parameters in bfloat16 or float16 have a float32 copy that moves in their place: a step of
    1e-5 would be lost in the rounding of most of them.

    Source:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2; float32
        copies as in Micikevicius et al., "Mixed Precision Training" (2018), section 3.1.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], config: OptimizationConfig, total_steps: int
    ) -> None:
        """Takes the parameters to move and the learner steps of the whole run."""
        self.config = config
        self.total_steps = total_steps
        self.parameters = list(parameters)
        self._moving = [
            p if torch.finfo(p.dtype).bits >= 32 else p.detach().float() for p in self.parameters
        ]
        self._copied = [
            (p, m) for p, m in zip(self.parameters, self._moving, strict=True) if p is not m
        ]
        matrices = [p for p in self._moving if p.ndim >= 2]
        vectors = [p for p in self._moving if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        # One pass over memory in place of a dozen, where torch has it.
        fused = all(p.device.type in ("cpu", "cuda") for p in self._moving)
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            fused=fused,
        )
        # Made now, not between the first gradients, in whose place nothing larger would fit later:
        # a tenth less memory.
        for p in self._moving:
            self._adam.state[p] = {
                "step": torch.zeros((), device=p.device if fused else None),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }

    def learning_rate(self, steps: int) -> float:
        """The step size of an update that starts at `steps` learner steps.

        It rises in proportion over the warm-up, counted at the end of the update, so that the
        first is not lost, then falls by the schedule, counted at its beginning.
        """
        config = self.config
        warm = config.warmup * self.total_steps
        rise = min(1.0, (steps + config.batch_size) / warm) if warm else 1.0
        left = max(1.0, self.total_steps - warm)
        done = min(1.0, max(0.0, steps - warm) / left)
        fall = {
            "constant": 1.0,
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
        }[config.schedule]
        return config.learning_rate * rise * fall

    def update(self, steps: int, examples: str = "the batch") -> Metrics:
        """One step along the gradients that were summed up, by all processes; clears them.

        Args:
            steps: the learner's steps so far.
            examples: what the gradient comes from, named if it is not finite.

        Raises:
            NonFiniteError: the gradient is NaN or infinite; no parameter has moved.
        """
        return update_together([self], steps, examples)[0]

    def clip(self) -> float:
        """Adds up the gradients of all processes, and shortens them; returns their norm before."""
        for parameter, copy in self._copied:
            copy.grad = None if parameter.grad is None else parameter.grad.float()
        processes().add_up_gradients(self._moving)
        most = self.config.max_gradient_norm
        return float(nn.utils.clip_grad_norm_(self._moving, math.inf if most is None else most))

    def step(self, steps: int) -> float:
        """One step along clipped gradients, which it clears; returns the step size."""
        rate = self.learning_rate(steps)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        with torch.no_grad():
            for parameter, copy in self._copied:
                parameter.copy_(copy)
        self.clear()
        return rate

    def clear(self) -> None:
        """Forgets all gradients."""
        for parameter in (*self.parameters, *self._moving):
            parameter.grad = None

    def state(self) -> State:
        """The moments, and the float32 copies."""
        copies: State = {
            str(i): copy.cpu().numpy().copy() for i, (_, copy) in enumerate(self._copied)
        }
        return {"adam": optimizer_to_state(self._adam), "copies": copies}

    def restore(self, state: State) -> None:
        """Becomes the optimizer that returned `state`."""
        restored: Any = state
        load_optimizer(self._adam, restored["adam"])
        with torch.no_grad():
            for index, (_, copy) in enumerate(self._copied):
                copy.copy_(torch.from_numpy(restored["copies"][str(index)]))


def update_together(
    optimizers: Sequence[Optimizer], steps: int, examples: str = "the batch"
) -> list[Metrics]:
    """One step of each, or of none.

    Args:
        optimizers: of different parameters.
        steps: the learner's steps so far.
        examples: what the gradients come from, named if one is not finite.

    Returns:
        Of each, the gradient's norm and the step size.

    Raises:
        NonFiniteError: a gradient is NaN or infinite; no parameter has moved.
    """
    norms = [optimizer.clip() for optimizer in optimizers]
    for norm in norms:
        if not math.isfinite(norm):
            for optimizer in optimizers:
                optimizer.clear()
            raise NonFiniteError(
                f"the gradient's norm became {norm} at step {steps}, from {examples}; lower the "
                "learning rate"
            )
    return [
        {"optimizer/gradient_norm": norm, "optimizer/learning_rate": optimizer.step(steps)}
        for optimizer, norm in zip(optimizers, norms, strict=True)
    ]
