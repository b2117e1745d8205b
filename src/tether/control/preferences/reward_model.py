"""The reward model: an ensemble of networks that is fitted to comparisons of segments.

    P(first better) = 0.9 sigmoid(sum_t r(s_t, a_t) of the first - the same of the second) + 0.05
    each member learns from its own draws; what it has not drawn validates it
    its L2 coefficient rises while validation loss / training loss > 1.5, and falls below 1.1
    r = the mean over the members of their outputs, each normalized over the steps compared so far

Source:
    Christiano et al., "Deep reinforcement learning from human preferences" (2017), sections 2.2.1
    to 2.2.3 and appendix A.1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import numpy as jnp

from tether import objectives
from tether.control.device import jit, on_cpu
from tether.control.networks import Network, init_network
from tether.control.normalization import RunningMoments
from tether.control.optimizer import adam, moments_from_state, moments_to_state
from tether.control.parameters import network_from_state, network_to_state
from tether.control.preferences.comparisons import Comparisons
from tether.learning.learner import Metrics, State

Array = Any

SCAN = 10
"""Gradient steps in one call of the compiled function, so that it is compiled once."""
CHUNK = 128
"""Comparisons in one call of the compiled evaluation, likewise."""
EVALUATE_EVERY = 50
"""Gradient steps between two looks at the validation loss."""
LOWEST, HIGHEST = 1.1, 1.5
"""The paper's bounds of validation loss / training loss."""
FACTOR = 1.5
"""By which the L2 coefficient changes at a time."""
SMALLEST_L2, LARGEST_L2 = 1e-8, 0.02
"""Bounds of the coefficient. With a hundred answers that never err the rule would raise it until
the networks hardly tell states apart: the training loss falls to that of the assumed errors, and
a validation loss is hardly ever within 1.5 times it."""
NORMALIZED_OVER = 10_000
"""At most so many steps of the comparisons give the mean and variance of the outputs."""


class RewardSettings(NamedTuple):
    """Settings of the reward model.

    Attributes:
        members: networks in the ensemble.
        hidden: widths of their hidden layers.
        learning_rate: of Adam.
        minibatch_size: comparisons in a gradient step.
        l2: the initial coefficient of the squared weights; 0: none, for good.
        dropout: share of hidden units that a gradient step leaves out.
        error: share of answers that are taken for a coin's toss.
        regress: fits the sums to the true sums of rewards by least squares, not to the answers.
    """

    members: int = 3
    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-3
    minibatch_size: int = 32
    l2: float = 0.01
    dropout: float = 0.0
    error: float = 0.1
    regress: bool = False


class RewardModel:
    """An ensemble of networks r(s, a), trained together."""

    def __init__(self, settings: RewardSettings, width: int, rng: np.random.Generator) -> None:
        """Fresh networks for inputs of `width` numbers."""
        self.settings = settings
        members = [
            init_network(rng, (width,), settings.hidden, 1, 0.1) for _ in range(settings.members)
        ]
        self.networks: Network = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
        self._compiled = _compiled(settings)
        self._moments = self._compiled.optimizer.init(self.networks)
        self.l2 = np.full(settings.members, settings.l2, np.float32)
        self.input_moments = RunningMoments((width,))
        self._scale: tuple[np.ndarray, np.ndarray] = (
            np.zeros(width, np.float32),
            np.ones(width, np.float32),
        )
        self.output_moments = RunningMoments((settings.members,))
        self.fits = 0
        self._device: tuple[int, Any] | None = None

    def watch(self, inputs: np.ndarray) -> None:
        """Takes inputs (n, D) into their statistics, which count from the next fit on."""
        self.input_moments.update(inputs)

    def raw(self, inputs: np.ndarray, block: int = 4096) -> np.ndarray:
        """Outputs of every member before normalization, (M, n) float32, for inputs (n, D).

        `block` rows are computed at a time; equal blocks are compiled once.
        """
        rows, parts = len(inputs), []
        for first in range(0, rows, block):
            part = inputs[first : first + block]
            if len(part) < block:
                part = np.concatenate([part, np.zeros((block - len(part), part.shape[1]), "f4")])
            parts.append(np.asarray(self._compiled.outputs(self.networks, part, *self._scale)))
        return np.concatenate(parts, axis=1)[:, :rows]

    def rewards(self, inputs: np.ndarray, block: int = 4096) -> np.ndarray:
        """Rewards, (n,) float64, for inputs (n, D)."""
        return self.normalized(self.raw(inputs, block).astype(float))

    def normalized(self, outputs: np.ndarray) -> np.ndarray:
        """The mean over the members of their normalized outputs, (n,), for (M, n).

        Each member's outputs have mean 0 and variance 1 over the steps of the comparisons that it
        was last fitted to. Over the policy's newest experience they would not do: a pendulum that
        hardly moves any more would be paid for the noise of the networks, at full size.
        """
        mean, variance = self.output_moments.mean, self.output_moments.variance
        return np.asarray(((outputs.T - mean) / np.sqrt(variance + 1e-8)).mean(axis=1))

    def sums(self, segments: np.ndarray, mask: np.ndarray, block: int = 4096) -> np.ndarray:
        """Sums of raw outputs over segments (..., L, D) with mask (..., L), (M, ...)."""
        outputs = self.raw(segments.reshape(-1, segments.shape[-1]), block)
        outputs = outputs.reshape(-1, *mask.shape)
        return np.asarray(np.where(mask, outputs, 0.0).sum(axis=-1))

    def fit(
        self,
        data: Comparisons,
        steps: int,
        rng: np.random.Generator,
        block: int = 4096,
    ) -> Metrics:
        """Goes on learning from all comparisons.

        Args:
            data: at least one comparison.
            steps: gradient steps, rounded up to a multiple of :data:`SCAN`.
            rng: shuffles, and drops units out.
            block: as :meth:`raw` takes it.

        Returns:
            Metrics of the last evaluation.
        """
        mean, variance = self.input_moments.mean, self.input_moments.variance
        self._scale = (
            mean.astype(np.float32),
            (1.0 / np.sqrt(variance + 1e-8)).astype(np.float32),
        )
        arrays = self._on_device(data)
        calls = -(-steps // SCAN)
        order = data.order(rng, calls * SCAN, self.settings.minibatch_size)
        keys = rng.integers(0, 2**32, (calls * SCAN, 2), np.uint32)
        metrics: Metrics = {}
        for done in range(SCAN, calls * SCAN + 1, SCAN):
            rows = slice(done - SCAN, done)
            self.networks, self._moments = self._compiled.steps(
                self.networks,
                self._moments,
                arrays,
                self.l2,
                order[rows],
                keys[rows],
                *self._scale,
            )
            if done % EVALUATE_EVERY == 0 or done == calls * SCAN:
                metrics = self._evaluate(data)
        self.networks = jax.tree.map(np.asarray, self.networks)
        self.fits += 1
        # Outputs have moved as a whole, so what they were before says nothing of how they lie now.
        self.output_moments = RunningMoments((self.settings.members,))
        compared = data.inputs[data.mask]
        compared = compared[:: -(-len(compared) // NORMALIZED_OVER)]
        self.output_moments.update(self.raw(compared, block).astype(float).T)
        return metrics

    def state(self) -> State:
        """Networks, optimizer, coefficients and statistics."""
        return {
            "networks": network_to_state(self.networks),
            "moments": moments_to_state(self._moments),
            "l2": self.l2.copy(),
            "inputs": self.input_moments.state(),
            "scale": list(self._scale),
            "outputs": self.output_moments.state(),
            "fits": self.fits,
        }

    def restore(self, state: Any) -> None:
        """Undo :meth:`state`."""
        self.networks = network_from_state(state["networks"], self.networks)
        self._moments = moments_from_state(self._moments, state["moments"])
        self.l2 = np.asarray(state["l2"])
        self.input_moments.restore(state["inputs"])
        mean, inverse = state["scale"]
        self._scale = (np.asarray(mean), np.asarray(inverse))
        self.output_moments.restore(state["outputs"])
        self.fits = int(state["fits"])
        self._device = None

    def _on_device(self, data: Comparisons) -> Any:
        """Inputs, mask and targets for the compiled steps, padded to the data's capacity."""
        if self._device is None or self._device[0] != data.version:
            arrays = (data.inputs, data.mask, self._targets(data))
            with on_cpu():
                padded = tuple(jnp.asarray(_padded(array, data.capacity)) for array in arrays)
            self._device = (data.version, padded)
        return self._device[1]

    def _targets(self, data: Comparisons) -> np.ndarray:
        """What the sums should be like, (C, K): labels, or true sums in units of their spread."""
        if self.settings.regress:
            known = data.returns
            return np.asarray((known - known.mean()) / (known.std() + 1e-8), np.float32)
        return np.repeat(data.label[:, None], data.inputs.shape[1], axis=1)

    def _evaluate(self, data: Comparisons) -> Metrics:
        """Losses with all units and without L2; adapts the coefficients to them."""
        losses, sums = [], []
        arrays = (data.inputs, data.mask, self._targets(data))
        for first in range(0, len(data), CHUNK):
            part = tuple(_padded(array[first : first + CHUNK], CHUNK) for array in arrays)
            loss, score = self._compiled.evaluate(self.networks, part, *self._scale)
            losses.append(np.asarray(loss))
            sums.append(np.asarray(score))
        loss, score = (np.concatenate(x, axis=1)[:, : len(data)] for x in (losses, sums))
        weight = data.weights
        training = _mean(loss, weight)
        validation = _mean(loss, weight == 0)
        self.l2 = adapted(self.l2, training, validation)
        metrics: Metrics = {
            "reward/loss": float(training.mean()),
            "reward/l2": float(self.l2.mean()),
        }
        known = np.isfinite(validation)
        if known.any():
            metrics["reward/validation_loss"] = float(validation[known].mean())
            metrics["reward/loss_ratio"] = float((validation / training)[known].mean())
        if score.shape[2] == 2:
            sure = (data.label != 0.5) & (weight == 0)
            right = (score[:, :, 0] > score[:, :, 1]) == (data.label > 0.5)
            if sure.any():
                metrics["reward/validation_accuracy"] = float(right[sure].mean())
        return metrics


def adapted(l2: np.ndarray, training: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """L2 coefficients (M,) after a look at the members' losses (M,).

    A member whose validation loss is more than 1.5 times its training loss has learned its own
    draws by heart and gets a larger coefficient; one below 1.1 times gets a smaller one. Where
    nothing is held out (NaN) or the coefficient is 0, nothing changes.
    """
    ratio = validation / training
    factor = np.where(ratio > HIGHEST, FACTOR, np.where(ratio < LOWEST, 1 / FACTOR, 1.0))
    moved = np.clip(l2 * factor, SMALLEST_L2, LARGEST_L2)
    return np.where(l2 > 0, moved, 0.0).astype(np.float32)


def _padded(array: np.ndarray, rows: int) -> np.ndarray:
    filling = np.zeros((rows - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, filling]) if len(filling) else array


def _mean(loss: np.ndarray, weight: np.ndarray) -> np.ndarray:
    total = weight.sum(axis=1)
    found = (loss * weight).sum(axis=1) / np.maximum(total, 1)
    return np.asarray(np.where(total > 0, found, np.nan))


class _Compiled(NamedTuple):
    optimizer: optax.GradientTransformation
    outputs: Callable[..., Array]
    steps: Callable[..., tuple[Any, Any]]
    evaluate: Callable[..., tuple[Array, Array]]


@functools.lru_cache(maxsize=32)
def _compiled(settings: RewardSettings) -> _Compiled:
    optimizer = adam(1e-8, None)
    keep = 1.0 - settings.dropout

    def output(network: Network, x: Array, key: Array | None) -> Array:
        """One member's rewards (n,) of scaled inputs (n, D)."""
        for i, (weight, bias) in enumerate(network.dense[:-1]):
            x = x @ weight + bias
            x = jnp.maximum(x, 0.01 * x)
            if key is not None and settings.dropout:
                stays = jax.random.bernoulli(jax.random.fold_in(key, i), keep, x.shape)
                x = jnp.where(stays, x / keep, 0.0)
        weight, bias = network.dense[-1]
        return (x @ weight + bias)[:, 0]

    def scaled(x: Array, mean: Array, inverse: Array) -> Array:
        return jnp.clip((x - mean) * inverse, -10.0, 10.0)

    def outputs(networks: Network, inputs: Array, mean: Array, inverse: Array) -> Array:
        x = scaled(inputs, mean, inverse)
        return jax.vmap(lambda network: output(network, x, None))(networks)

    def judged(
        network: Network, arrays: Any, key: Array | None, mean: Array, inverse: Array
    ) -> tuple[Array, Array]:
        """One member's losses (B,) and sums (B, K) of B comparisons."""
        inputs, mask, target = arrays
        x = scaled(inputs.reshape(-1, inputs.shape[-1]), mean, inverse)
        rewards = output(network, x, key).reshape(mask.shape)
        sums = jnp.sum(jnp.where(mask, rewards, 0.0), axis=-1)
        if settings.regress:
            loss = jnp.mean((sums - target) ** 2, axis=-1)
        elif mask.shape[1] == 2:
            loss = objectives.bradley_terry(
                sums[:, 0], sums[:, 1], target[:, 0], noise=settings.error, reduction="none"
            )
        else:
            loss = objectives.k_wise(sums, reduction="none")
        return loss, sums

    def total(
        networks: Network, arrays: Any, l2: Array, rows: Array, keys: Array, mean: Array, inv: Array
    ) -> Array:
        def one(network: Network, rows: Array, key: Array) -> Array:
            part = tuple(array[rows] for array in arrays)
            return jnp.mean(judged(network, part, key, mean, inv)[0])

        losses = jax.vmap(one)(networks, rows, keys)
        squares = sum(jnp.sum(layer.weight**2, axis=(1, 2)) for layer in networks.dense)
        return jnp.sum(losses + l2 * squares)

    def steps(
        networks: Network,
        moments: Any,
        arrays: Any,
        l2: Array,
        order: Array,
        keys: Array,
        mean: Array,
        inverse: Array,
    ) -> tuple[Any, Any]:
        def step(carry: Any, chosen: Any) -> Any:
            networks, moments = carry
            rows, key = chosen
            # The members' keys must differ, and this is called for one step at a time.
            keys = jax.random.split(jax.random.wrap_key_data(key), settings.members)
            gradient = jax.grad(total)(networks, arrays, l2, rows, keys, mean, inverse)
            update, moments = optimizer.update(gradient, moments, networks)
            rate = settings.learning_rate
            networks = jax.tree.map(lambda p, u: p - rate * u, networks, update)
            return (networks, moments), None

        return jax.lax.scan(step, (networks, moments), (order, keys))[0]

    def evaluate(
        networks: Network, arrays: Any, mean: Array, inverse: Array
    ) -> tuple[Array, Array]:
        return jax.vmap(lambda network: judged(network, arrays, None, mean, inverse))(networks)

    return _Compiled(optimizer, jit(outputs), jit(steps), jit(evaluate))
