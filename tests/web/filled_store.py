"""A store with real segments: a random policy in MuJoCo environments, with qpos and qvel.

As a program: ``python tests/web/filled_store.py labels.sqlite --pairs 40 --env Hopper-v5``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from tether.preferences.items import Segment, Text
from tether.preferences.records import Query
from tether.preferences.store import Store


def random_segments(env: str, count: int, steps: int, *, seed: int = 0) -> list[Segment]:
    """Segments of a random policy, each from the beginning of an episode of its own."""
    world = gym.make(env, disable_env_checker=True)
    inner: Any = world.unwrapped
    world.action_space.seed(seed)
    found = []
    for i in range(count):
        observation, _ = world.reset(seed=1000 * seed + i)
        rows: list[tuple[Any, ...]] = []
        terminated = False
        while len(rows) < steps and not terminated:
            before = (observation, inner.data.qpos.copy(), inner.data.qvel.copy())
            action = world.action_space.sample()
            observation, reward, terminated, _, _ = world.step(action)
            rows.append((*before, action, reward))
        seen, qpos, qvel, action, reward = (np.array(column) for column in zip(*rows, strict=True))
        found.append(
            Segment(
                env=env,
                observation=seen,
                action=action,
                qpos=qpos,
                qvel=qvel,
                reward=reward.astype(np.float64),
                dt=float(inner.dt),
                origin="random",
                terminated=bool(terminated),
            )
        )
    world.close()
    return found


def add_pairs(store: Store, items: list[Any], *, source: str = "random-policy") -> list[str]:
    """One query for each two items."""
    ids = store.add_items(items)
    pairs = zip(ids[::2], ids[1::2], strict=True)
    return store.add_queries(Query(items=pair, source=source) for pair in pairs)


def texts(count: int) -> list[Text]:
    """Completions of one prompt, with what a page must not interpret in them."""
    return [
        Text(
            [{"role": "user", "content": "What makes a good film? <b>Be brief.</b>"}],
            f"Answer {i}: a story, and <script>document.title='hacked'</script> people.\n" * 3,
        )
        for i in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--texts", action="store_true")
    given = parser.parse_args()
    with Store.open(given.store) as store:
        if given.texts:
            add_pairs(store, texts(2 * given.pairs))
        else:
            add_pairs(store, random_segments(given.env, 2 * given.pairs, given.steps))
        print(store.counts())


if __name__ == "__main__":
    main()
