"""Layers that remember less: the same numbers forward, and only inputs kept for the way back.

Autograd keeps what every operation took in. A normalization thus keeps its input and what it
becomes half-way, a gated MLP four arrays of its inner width where two determine the rest. What is
made again here is cheap beside the matrix products: it costs nothing that can be measured, and
saves about two fifths of a Llama's activations.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def make_lean(model: nn.Module) -> int:
    """Has the normalizations and gated MLPs of a model keep only their inputs, in place.

    A kind of layer is replaced if it has the parts of Llama's, and gives the very bits that are
    computed here; whatever else it is, it stays as it is.

    Args:
        model: any.

    Returns:
        How many layers were replaced.
    """
    fits: dict[type[nn.Module], bool] = {}
    replaced = 0
    for module in model.modules():
        forward = _lean_forward(module)
        if forward is None:
            continue
        kind = type(module)
        if kind not in fits:
            fits[kind] = _same_bits(module, forward)
        if fits[kind]:
            module.forward = MethodType(forward, module)
            replaced += 1
    return replaced


def _lean_forward(module: nn.Module) -> Callable[[Any, Tensor], Tensor] | None:
    if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
        return _norm_forward
    if all(type(getattr(module, name, None)) is nn.Linear for name in _LINEAR):
        return _mlp_forward if hasattr(module, "act_fn") else None
    return None


@torch.no_grad()
def _same_bits(module: Any, forward: Callable[[Any, Tensor], Tensor]) -> bool:
    weight = module.weight if hasattr(module, "weight") else module.gate_proj.weight
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 4, weight.shape[-1], generator=generator).to(weight)
    outputs: Tensor = module(inputs)
    return torch.equal(outputs, forward(module, inputs))


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    normal: Tensor = _RMSNorm.apply(  # type: ignore[no-untyped-call]
        hidden_states, self.weight, self.variance_epsilon
    )
    return normal


_LINEAR = ("gate_proj", "up_proj", "down_proj")


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    linear = [getattr(self, name) for name in _LINEAR]
    if any(type(part) is not nn.Linear or part.bias is not None for part in linear):
        # Adapters were put on, which have parts of their own to run.
        gate, up, down = linear
        plain: Tensor = down(self.act_fn(gate(x)) * up(x))
        return plain
    gated: Tensor = _GatedMLP.apply(  # type: ignore[no-untyped-call]
        x, *(part.weight for part in linear), self.act_fn
    )
    return gated


class _RMSNorm(torch.autograd.Function):
    """y = w n with n = x s, s = (mean x^2 + epsilon)^(-1/2), all but w in float32.

    With h = w dL/dy: dL/dx = s (h - n mean(h n)), dL/dw = sum of n dL/dy over the tokens.

    Source:
        Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), equation 4, in the steps
        and precisions of transformers' Llama.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.to(torch.float32)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normal = x.to(torch.float32) * scale
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normal).flatten(0, -2).sum(0).to(weight.dtype)
        slope = (grad * weight).to(torch.float32)
        along = torch.linalg.vecdot(slope, normal).unsqueeze(-1) / x.shape[-1]
        slope = slope.sub_(normal.mul_(along)).mul_(scale)
        return slope.to(x.dtype), grad_weight, None


class _GatedMLP(torch.autograd.Function):
    """y = (act(x G^T) * x U^T) D^T; act and its product are made again on the way back.

    Source:
        Shazeer, "GLU Variants Improve Transformer" (2020), equation 6.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        act: Callable[[Tensor], Tensor],
    ) -> Tensor:
        linear = nn.functional.linear
        gated, lifted = linear(x, gate), linear(x, up)
        ctx.save_for_backward(x, gate, up, down, gated, lifted)
        ctx.act = act
        active = act(gated)
        # In place unless the activation does nothing: one array of the inner width less.
        return linear(active * lifted if active is gated else active.mul_(lifted), down)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, down, gated, lifted = (t.flatten(0, -2) for t in ctx.saved_tensors)
        to_x, to_gate, to_up, to_down = ctx.needs_input_grad[:4]
        flat = grad.flatten(0, -2)
        with torch.enable_grad():
            gated = gated.detach().requires_grad_()
            active: Tensor = ctx.act(gated)
        inner = flat @ down
        grad_down = flat.T @ (active.detach() * lifted) if to_down else None
        (grad_gated,) = torch.autograd.grad(active, gated, inner * lifted)
        grad_lifted = inner.mul_(active.detach())
        return (
            (grad_gated @ gate).addmm_(grad_lifted, up).view_as(grad) if to_x else None,
            grad_gated.T @ x if to_gate else None,
            grad_lifted.T @ x if to_up else None,
            grad_down,
            None,
        )
