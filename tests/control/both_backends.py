"""One environment on both backends, step by step."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tether.control.envs import Step, make


def equal_steps(
    name: str, steps: int, fields: Sequence[str], **arguments: Any
) -> Iterator[tuple[Step, Step]]:
    """Random actions in three simulations; `fields` have the same bits after each.

    Yields:
        The step of backend mujoco, and that of Gymnasium.
    """
    fast, plain = (
        make(name, 3, backend=backend, max_episode_steps=steps, **arguments)
        for backend in ("mujoco", "gymnasium")
    )
    np.testing.assert_array_equal(fast.reset(3), plain.reset(3))
    rng = np.random.default_rng(0)
    for _ in range(steps):
        action = rng.uniform(-1, 1, (3, *fast.action_space.shape)).astype(np.float32)
        ours, theirs = fast.step(action), plain.step(action)
        for field in fields:
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), field)
        yield ours, theirs
