"""A policy as an ONNX graph: normalization, network and action mapping in one file.

Input: ``observation``, a batch of flattened observations (B, D), or of images (B, H, W, C) uint8.
Outputs: ``action``, the most probable action as the environment takes it (B, *action shape), and
what the distribution is made of: ``mean`` and ``log_std`` (B, A), or ``logits``, one for each
choice of each component.

The graph does what :meth:`tether.control.policy.Policy.predict` does, in the same precisions.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tether.arguments import say
from tether.control.distributions import ActionHead
from tether.control.envs.spaces import space_to_json
from tether.control.export.card import write_policy_card
from tether.control.export.onnx_check import largest_difference
from tether.control.networks import Activation, Network, convolution_strides
from tether.control.normalization import ObservationNormalizer
from tether.control.policy import Policy, PolicySpec
from tether.control.training import load
from tether.errors import UserError
from tether.learning.export_options import ExportOptions
from tether.learning.run import Run
from tether.version import __version__

FILE: Final = "policy.onnx"

_OPSET: Final = 17
_IR_VERSION: Final = 8  # what onnxruntime 1.13 and later read
_CHECKED: Final = 1000

Array = NDArray[Any]


def write(run: Run, folder: Path, options: ExportOptions, env: Any) -> dict[str, Any]:
    """Writes ``policy.onnx`` and a card; checks the graph where onnxruntime is installed.

    Returns:
        ``largest_difference`` from NumPy and ``checked`` observations, if there was a check.

    Raises:
        UserError: a policy that ONNX cannot express.
    """
    policy = load(run.path)
    metadata = {
        "method": run.method,
        "env": str(run.spec.get("env") or run.spec.get("env_name") or ""),
        "run": run.path.absolute().name,
        "created": run.created,
    }
    (folder / FILE).write_bytes(to_onnx(policy, metadata).SerializeToString(deterministic=True))
    write_policy_card(run, folder, file=FILE)
    return _check(policy, folder / FILE)


def to_onnx(policy: Policy, metadata: dict[str, str] | None = None) -> onnx.ModelProto:
    """The policy as an ONNX model; see this module's description for its input and outputs.

    Args:
        policy: any that tether's own networks make up.
        metadata: texts that the file keeps beside the spaces.

    Raises:
        UserError: the policy's network is one of the user's own.
    """
    spec, graph = policy.spec, _Graph()
    if not isinstance(policy.parameters.network, Network):
        raise UserError(
            "the policy's network is not one of tether's, so it cannot be written as ONNX; export "
            "it with the library that it was made with"
        )
    observation = spec.observation_space
    x = _normalized("observation", policy.normalizer, spec, graph)
    outputs = _network(x, policy.parameters.network, spec, graph)
    raw = _distribution(outputs, policy.parameters.log_std, spec.head, graph)
    action = _environment_action(_mode(outputs, spec.head, graph), spec.head, graph)
    graph.add("Identity", [action], output="action")
    space = spec.head.space
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "policy",
            [_value("observation", np.dtype(observation.dtype), observation.shape)],
            [
                _value("action", np.dtype(space.dtype), space.shape or ()),
                *(_value(name, np.dtype(np.float32), (spec.head.outputs,)) for name in raw),
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        producer_name="tether",
        producer_version=__version__,
        ir_version=_IR_VERSION,
    )
    spaces = {
        "observation_space": json.dumps(space_to_json(spec.source_space)),
        "action_space": json.dumps(space_to_json(space)),
    }
    helper.set_model_props(model, {"tether": __version__, **spaces, **(metadata or {})})
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and constants under way; every value gets a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: Array | np.generic) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, kind: str, inputs: list[str], *, output: str = "", **attributes: Any) -> str:
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def cast(self, x: str, dtype: Any) -> str:
        return self.add("Cast", [x], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def reshape(self, x: str, shape: tuple[int, ...]) -> str:
        return self.add("Reshape", [x, self.constant(np.array([-1, *shape], np.int64))])


def _normalized(
    x: str, normalizer: ObservationNormalizer | None, spec: PolicySpec, graph: _Graph
) -> str:
    """What :meth:`Policy.normalize` gives, float32; images as numbers in [0, 1]."""
    if len(spec.observation_space.shape) == 3:
        return graph.add("Div", [graph.cast(x, np.float32), graph.constant(np.float32(255.0))])
    if normalizer is None:
        return graph.cast(x, np.float32)
    # In float64 throughout, as NumPy does it: a large mean would cancel most of a float32.
    moments = normalizer.moments
    centred = graph.add("Sub", [graph.cast(x, np.float64), graph.constant(moments.mean)])
    inverse = 1.0 / np.sqrt(moments.variance + 1e-8)
    scaled = graph.add("Mul", [centred, graph.constant(inverse)])
    clipped = graph.add("Min", [scaled, graph.constant(np.float64(normalizer.clip))])
    clipped = graph.add("Max", [clipped, graph.constant(np.float64(-normalizer.clip))])
    return graph.cast(clipped, np.float32)


def _network(x: str, network: Network, spec: PolicySpec, graph: _Graph) -> str:
    """What :func:`tether.control.networks.forward` gives, (B, outputs)."""
    if network.convolutions:
        strides = convolution_strides(spec.observation_space.shape)
        # ONNX has channels first, in images and in kernels.
        x = graph.add("Transpose", [x], perm=[0, 3, 1, 2])
        for (weight, bias), stride in zip(network.convolutions, strides, strict=True):
            kernel = graph.constant(np.asarray(weight).transpose(3, 2, 0, 1))
            inputs = [x, kernel, graph.constant(np.asarray(bias))]
            x = graph.add("Relu", [graph.add("Conv", inputs, strides=[stride, stride])])
        x = graph.add("Flatten", [graph.add("Transpose", [x], perm=[0, 2, 3, 1])])
    *hidden, last = network.dense
    for weight, bias in hidden:
        x = _activated(_dense(x, weight, bias, graph), spec.activation, graph)
    return _dense(x, *last, graph)


def _activated(x: str, activation: Activation, graph: _Graph) -> str:
    """One of :data:`tether.control.networks._ACTIVATIONS`."""
    if activation == "leaky_relu":
        return graph.add("LeakyRelu", [x], alpha=0.01)
    if activation == "silu":
        return graph.add("Mul", [x, graph.add("Sigmoid", [x])])
    if activation == "gelu":
        return _gelu(x, graph)
    names = {"tanh": "Tanh", "relu": "Relu", "elu": "Elu"}
    return graph.add(names[activation], [x])


def _gelu(x: str, graph: _Graph) -> str:
    """By tanh: the operator of its own came with a later opset."""

    def times(one: str, other: str | float) -> str:
        factor = other if isinstance(other, str) else graph.constant(np.float32(other))
        return graph.add("Mul", [one, factor])

    cube = times(times(x, x), x)
    inner = times(graph.add("Add", [x, times(cube, 0.044715)]), math.sqrt(2 / math.pi))
    raised = graph.add("Add", [graph.add("Tanh", [inner]), graph.constant(np.float32(1.0))])
    return times(times(x, raised), 0.5)


def _dense(x: str, weight: Any, bias: Any, graph: _Graph) -> str:
    inputs = [x, graph.constant(np.asarray(weight)), graph.constant(np.asarray(bias))]
    return graph.add("Gemm", inputs)


def _distribution(outputs: str, log_std: Any, head: ActionHead, graph: _Graph) -> list[str]:
    """Names the distribution's parameters as outputs; returns the names."""
    if not head.scales:
        return [graph.add("Identity", [outputs], output="logits")]
    mean = graph.add("Identity", [outputs], output="mean")
    shape = graph.add("Shape", [outputs])
    spread = graph.constant(np.asarray(log_std, np.float32))
    return [mean, graph.add("Expand", [spread, shape], output="log_std")]


def _mode(outputs: str, head: ActionHead, graph: _Graph) -> str:
    """The most probable stored action (B, ...): :meth:`Distribution.mode`."""
    if head.scales:
        return outputs
    if not head.sizes:
        return graph.add("Greater", [outputs, graph.constant(np.float32(0.0))])
    blocks = [f"block_{i}" for i in range(len(head.sizes))]
    sizes = graph.constant(np.array(head.sizes, np.int64))
    graph.nodes.append(helper.make_node("Split", [outputs, sizes], blocks, axis=1))
    choices = [graph.add("ArgMax", [block], axis=1, keepdims=1) for block in blocks]
    return graph.add("Concat", choices, axis=1)


def _environment_action(action: str, head: ActionHead, graph: _Graph) -> str:
    """A stored action as the environment wants it: :meth:`ActionHead.to_environment`."""
    space = head.space
    shape = space.shape or ()
    if isinstance(space, gym.spaces.Box):
        wide = np.result_type(np.float32, space.dtype)
        if head.units is not None:
            wide = np.dtype(np.float64)
            action = graph.cast(action, wide)
            action = graph.add("Mul", [action, graph.constant(head.units.half_range)])
            action = graph.add("Add", [action, graph.constant(head.units.center)])
        action = graph.cast(graph.reshape(action, shape), wide)
        action = graph.add("Max", [action, graph.constant(space.low.astype(wide))])
        action = graph.add("Min", [action, graph.constant(space.high.astype(wide))])
        return graph.cast(action, space.dtype)
    action = graph.reshape(action, shape)
    if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        start = np.asarray(space.start, np.int64)
        action = graph.add("Add", [action, graph.constant(start)])
    return graph.cast(action, space.dtype)


def _value(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    kind: int = helper.np_dtype_to_tensor_dtype(dtype)
    if kind == TensorProto.UNDEFINED:
        raise UserError(f"ONNX has no numbers of the type {dtype} of the policy's {name}")
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])


def _check(policy: Policy, file: Path) -> dict[str, Any]:
    try:
        difference = largest_difference(policy, file, count=_CHECKED)
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        say("onnxruntime is not installed, so the ONNX file was not compared with the policy")
        return {}
    say(
        f"{FILE} agrees with the policy on {_CHECKED:,} observations; the largest difference of "
        f"the distribution's parameters is {difference:.2g}"
    )
    return {"checked": _CHECKED, "largest_difference": difference}
