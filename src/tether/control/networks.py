"""Networks as plain pytrees, with one forward pass for NumPy and JAX.

Acting needs one forward pass per environment step on a handful of rows, where NumPy is several
times quicker than dispatching a compiled function; learning needs gradients, so JAX. Both run the
same text below: a network is a tuple of layers and the array's own type picks the library. A
deployed policy therefore needs no JAX at all unless it looks at images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tether.errors import BadEnvironmentError

Array = Any  # numpy.ndarray or jax.Array: the forward pass accepts either


Activation = Literal["tanh", "relu", "leaky_relu", "elu", "silu", "gelu"]
"""Names of the functions between dense layers, as JAX and PyTorch call them."""


class Layer(NamedTuple):
    """A dense layer, `weight` (in, out), `bias` (out,), or a convolution (h, w, in, out)."""

    weight: Array
    bias: Array


class Network(NamedTuple):
    """Convolutions (none for vectors) followed by dense layers."""

    convolutions: tuple[Layer, ...]
    dense: tuple[Layer, ...]


# Kernel and stride of each convolution: Mnih et al. (2015), the encoder Gymnasium users expect.
CONVOLUTIONS = ((8, 4, 32), (4, 2, 64), (3, 1, 64))
SMALL_CONVOLUTIONS = ((3, 1, 16), (3, 2, 32))
SMALLEST_IMAGE = 5


def orthogonal(rng: np.random.Generator, shape: tuple[int, int], gain: float) -> np.ndarray:
    """A float32 matrix with orthonormal rows or columns, times `gain` (Saxe et al. 2014)."""
    rows, columns = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q = q * np.sign(np.diag(r))
    return np.asarray(gain * (q if rows >= columns else q.T), np.float32)


def init_network(
    rng: np.random.Generator,
    observation_shape: tuple[int, ...],
    hidden: Sequence[int],
    outputs: int,
    output_gain: float,
) -> Network:
    """A fresh network with orthogonal weights (gain sqrt 2 but for the last layer) and no bias.

    Args:
        rng: source of the weights.
        observation_shape: (D,) for vectors, (H, W, C) for images.
        hidden: widths of the hidden dense layers.
        outputs: width of the last layer.
        output_gain: gain of the last layer; 0.01 starts a policy near its mean action, worth +66 %
            on Humanoid (Andrychowicz et al. 2020, section 3.2).

    Raises:
        BadEnvironmentError: the image is smaller than the encoder's kernels reach.
    """
    convolutions: list[Layer] = []
    width = math.prod(observation_shape)
    if len(observation_shape) == 3:
        height, breadth, channels = observation_shape
        if min(height, breadth) < SMALLEST_IMAGE:
            raise BadEnvironmentError(
                f"image observations of {height} x {breadth} pixels are too small for the "
                f"convolutions; expected at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE}; wrap the "
                "environment with gymnasium.wrappers.FlattenObservation"
            )
        for kernel, stride, filters in _convolutions_for(observation_shape):
            weight = orthogonal(rng, (kernel * kernel * channels, filters), math.sqrt(2))
            convolutions.append(
                Layer(
                    weight.reshape(kernel, kernel, channels, filters),
                    np.zeros(filters, np.float32),
                )
            )
            height, breadth = (height - kernel) // stride + 1, (breadth - kernel) // stride + 1
            channels = filters
        width = height * breadth * channels
    dense = []
    sizes = [width, *hidden]
    for fan_in, fan_out in itertools.pairwise(sizes):
        dense.append(
            Layer(orthogonal(rng, (fan_in, fan_out), math.sqrt(2)), np.zeros(fan_out, np.float32))
        )
    dense.append(
        Layer(orthogonal(rng, (sizes[-1], outputs), output_gain), np.zeros(outputs, np.float32))
    )
    return Network(tuple(convolutions), tuple(dense))


def forward(network: Network, observation: Array, activation: Activation = "tanh") -> Array:
    """Outputs of `network` for a batch: (B, D) or (B, H, W, C) uint8 -> (B, outputs), float32.

    `activation` follows every hidden dense layer; convolutions are followed by ReLU.
    """
    if isinstance(observation, np.ndarray) and not network.convolutions:
        xp: Any = np
    else:
        from jax import numpy as jnp

        xp = jnp
    x, bend = observation, _ACTIVATIONS[activation]
    if network.convolutions:
        x = encode(network.convolutions, x)
    for weight, bias in network.dense[:-1]:
        x = bend(xp, x @ weight + bias)
    weight, bias = network.dense[-1]
    return x @ weight + bias


def _gelu(xp: Any, x: Array) -> Array:
    # The approximation by tanh of Hendrycks and Gimpel (2016): NumPy has no error function.
    return 0.5 * x * (1.0 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


_ACTIVATIONS: dict[Activation, Callable[[Any, Array], Array]] = {
    "tanh": lambda xp, x: xp.tanh(x),
    "relu": lambda xp, x: xp.maximum(x, 0.0),
    "leaky_relu": lambda xp, x: xp.maximum(x, 0.01 * x),
    "elu": lambda xp, x: xp.where(x > 0, x, xp.expm1(xp.minimum(x, 0.0))),
    # x sigmoid(x), with a sigmoid that cannot overflow.
    "silu": lambda xp, x: 0.5 * x * (1.0 + xp.tanh(0.5 * x)),
    "gelu": _gelu,
}


def convolution_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of the convolutions that see images of `shape` (H, W, C)."""
    return tuple(stride for _, stride, _ in _convolutions_for(shape))


def _convolutions_for(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    return CONVOLUTIONS if min(shape[:2]) >= 36 else SMALL_CONVOLUTIONS


def encode(convolutions: tuple[Layer, ...], image: Array) -> Array:
    """Features (B, D) of images (B, H, W, C) uint8."""
    import jax
    from jax import lax
    from jax import numpy as jnp

    x = jnp.asarray(image, jnp.float32) / 255.0
    for (weight, bias), (_, stride, _) in zip(
        convolutions, _convolutions_for(image.shape[1:]), strict=True
    ):
        x = lax.conv_general_dilated(
            x, weight, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + bias)
    return x.reshape(x.shape[0], -1)
