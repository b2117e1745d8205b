"""Whether an ONNX file does what the policy does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tether.control.distributions import DiagonalGaussian
from tether.control.envs.spaces import flatten_observation
from tether.control.policy import Policy

TOLERANCE: Final = 1e-4
"""Largest difference of a distribution's parameters, relative to the largest where that is over 1.

float32 sums in another order differ by some 1e-6; a wrong graph by far more than this.
"""

_BATCH: Final = 250

Array = NDArray[Any]


def largest_difference(policy: Policy, file: Path, *, count: int, seed: int = 0) -> float:
    """Compares an ONNX file with a policy on random observations.

    Args:
        policy: as it is in tether.
        file: the ONNX file, which onnxruntime runs on the CPU.
        count: how many observations.
        seed: of the observations.

    Returns:
        The largest difference of a mean, log standard deviation or logit.

    Raises:
        RuntimeError: they do not agree: a distribution's parameter differs by more than
            `TOLERANCE`, or an action does that no rounding explains.
        ModuleNotFoundError: onnxruntime is not installed.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        file.read_bytes(), settings, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    largest = 0.0
    observations = random_observations(policy, count, seed=seed)
    for start in range(0, count, _BATCH):
        batch = observations[start : start + _BATCH]
        found = dict(zip(names, session.run(None, {"observation": batch}), strict=True))
        expected = policy.distribution(policy.normalize(batch))
        action = policy.spec.head.to_environment(expected.mode())
        undecided = np.zeros(len(batch), bool)
        if isinstance(expected, DiagonalGaussian):
            log_std = np.broadcast_to(expected.log_std, expected.mean.shape)
            parameters = {"mean": expected.mean, "log_std": log_std}
        else:
            parameters = {"logits": np.asarray(expected.logits)}  # type: ignore[attr-defined]
            # Where two choices are as good as equal, rounding decides.
            undecided = _margins(policy, parameters["logits"]) < TOLERANCE
        for name, value in parameters.items():
            difference = float(np.abs(found[name] - value).max())
            if not difference <= TOLERANCE * max(1.0, float(np.abs(value).max())):
                raise RuntimeError(f"the ONNX file's {name} differs by {difference} from tether's")
            largest = max(largest, difference)
        same = np.isclose(found["action"], action, rtol=1e-3, atol=TOLERANCE)
        same = same.reshape(len(batch), -1).all(axis=1)
        if not np.all(same | undecided) or found["action"].dtype != action.dtype:
            raise RuntimeError("the ONNX file's actions differ from tether's")
    return largest


def random_observations(policy: Policy, count: int, *, seed: int) -> Array:
    """Observations as the policy's network is given them before normalization.

    Half of them are drawn from the observation space, and half, where the policy normalizes, from
    about the mean that it has seen: a space without bounds says little about what is met.

    Returns:
        (count, *policy space), of the policy space's type.
    """
    spec = policy.spec
    source = copy.deepcopy(spec.source_space)
    source.seed(seed)
    rows = np.stack([flatten_observation(source, source.sample()) for _ in range(count)])
    if policy.normalizer is not None:
        moments = policy.normalizer.moments
        rng = np.random.default_rng(seed)
        half = len(rows) // 2
        noise = rng.standard_normal((half, *spec.observation_space.shape))
        rows[:half] = moments.mean + 3.0 * np.sqrt(moments.variance) * noise
    return rows


def _margins(policy: Policy, logits: Array) -> Array:
    """How far each row is from another action, by its closest decision, (B,)."""
    sizes = policy.spec.head.sizes
    if not sizes:
        margins: Array = np.abs(logits).min(axis=1)
        return margins
    stops = np.cumsum(sizes)
    closest = np.full(len(logits), np.inf)
    for stop, size in zip(stops, sizes, strict=True):
        if size > 1:
            block = np.sort(logits[:, stop - size : stop], axis=1)
            closest = np.minimum(closest, block[:, -1] - block[:, -2])
    return closest
