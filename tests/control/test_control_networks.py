"""The forward pass against sums written out, and the initial weights against their definition."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from scipy import signal

from tether.control.networks import Network, forward, init_network, orthogonal
from tether.errors import BadEnvironmentError


def random_network(shape: tuple[int, ...], outputs: int = 3) -> Network:
    """A network whose biases are not zero, so that leaving one out shows."""
    rng = np.random.default_rng(0)
    network = init_network(rng, shape, (16, 8), outputs, output_gain=1.0)
    return jax.tree.map(
        lambda leaf: leaf if leaf.ndim > 1 else rng.normal(size=leaf.shape).astype(np.float32),
        network,
    )


def dense_by_hand(network: Network, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    for i, (weight, bias) in enumerate(network.dense):
        x = np.einsum("bi,io->bo", x, weight) + bias
        if i < len(network.dense) - 1:
            x = np.tanh(x)
    return x


def convolutions_by_hand(network: Network, image: np.ndarray, strides: list[int]) -> np.ndarray:
    x = image / 255.0
    for (weight, bias), stride in zip(network.convolutions, strides, strict=True):
        maps = [
            [
                sum(
                    signal.correlate2d(row[:, :, c], weight[:, :, c, o], "valid")
                    for c in range(weight.shape[2])
                )[::stride, ::stride]
                + bias[o]
                for o in range(weight.shape[3])
            ]
            for row in x
        ]
        x = np.maximum(np.moveaxis(np.array(maps), 1, -1), 0)
    return x.reshape(len(image), -1)


def test_vectors_in_numpy_and_jax() -> None:
    network = random_network((5,))
    observation = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
    here, there = forward(network, observation), jax.jit(forward)(network, jnp.asarray(observation))
    assert isinstance(here, np.ndarray)
    assert here.dtype == np.float32 == there.dtype
    np.testing.assert_allclose(here, dense_by_hand(network, observation), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "kernels", "strides", "features"),
    [
        # Mnih et al. (2015): 84x84x4 becomes 20x20x32, 9x9x64, 7x7x64.
        ((84, 84, 4), [(8, 4, 32), (4, 32, 64), (3, 64, 64)], [4, 2, 1], 3136),
        ((36, 50, 1), [(8, 1, 32), (4, 32, 64), (3, 64, 64)], [4, 2, 1], 1 * 2 * 64),
        ((8, 11, 3), [(3, 3, 16), (3, 16, 32)], [1, 2], 2 * 4 * 32),
        ((5, 5, 1), [(3, 1, 16), (3, 16, 32)], [1, 2], 32),
    ],
)
def test_images(
    shape: tuple[int, int, int],
    kernels: list[tuple[int, int, int]],
    strides: list[int],
    features: int,
) -> None:
    network = random_network(shape)
    assert [layer.weight.shape for layer in network.convolutions] == [
        (size, size, channels, filters) for size, channels, filters in kernels
    ]
    assert network.dense[0].weight.shape == (features, 16)
    image = np.random.default_rng(1).integers(0, 256, (2, *shape), np.uint8)
    expected = dense_by_hand(network, convolutions_by_hand(network, image, strides))
    np.testing.assert_allclose(forward(network, image), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 4, 1), (100, 2, 3)])
def test_an_image_too_small_for_the_encoder_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(BadEnvironmentError, match=f"{shape[0]} x {shape[1]}.*at least 5 x 5"):
        init_network(np.random.default_rng(0), shape, (8,), 2, output_gain=1.0)


@pytest.mark.parametrize(("rows", "columns"), [(7, 4), (4, 7), (5, 5), (1, 6)])
def test_orthogonal_matrices_are_orthonormal(rows: int, columns: int) -> None:
    matrix = orthogonal(np.random.default_rng(0), (rows, columns), 1.5)
    assert matrix.shape == (rows, columns)
    assert matrix.dtype == np.float32
    gram = matrix.T @ matrix if rows >= columns else matrix @ matrix.T
    np.testing.assert_allclose(gram, 1.5**2 * np.eye(min(rows, columns)), atol=1e-5)


def test_orthogonal_matrices_lean_nowhere() -> None:
    # Without the sign correction Householder's QR gives one-sided entries.
    rng = np.random.default_rng(0)
    corner = np.array([orthogonal(rng, (4, 3), 1.0)[0, 0] for _ in range(2000)])
    assert abs(corner.mean()) < 4 * corner.std() / math.sqrt(2000)
    # A column is a uniform point on the sphere in 4 dimensions: each entry has variance 1/4.
    assert corner.var() == pytest.approx(0.25, rel=0.1)


def test_initial_gains() -> None:
    network = init_network(np.random.default_rng(0), (9, 9, 2), (16, 12), 3, output_gain=0.01)
    layers = [*network.convolutions, *network.dense]
    for i, (weight, bias) in enumerate(layers):
        gain = 0.01 if i == len(layers) - 1 else math.sqrt(2)
        flat = weight.reshape(-1, weight.shape[-1])
        singular = np.linalg.svd(flat, compute_uv=False)
        np.testing.assert_allclose(singular, gain, rtol=1e-4)
        np.testing.assert_array_equal(bias, np.zeros(weight.shape[-1], np.float32))
