"""Demonstrators whose skill is known, and folders of what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tether.control.demonstrations import Recorder
from tether.control.distributions import action_head
from tether.control.envs import Step
from tether.control.evaluation import evaluate
from tether.control.networks import Layer, Network
from tether.control.policy import Policy, PolicyParameters, PolicySpec


def write(
    folder: Path, observation_space: Any, action_space: Any, episodes: list[tuple[Any, Any]]
) -> Path:
    """Record episodes, each flat observations (T, ...) and actions (T, ...)."""
    recorder = Recorder(folder)
    for observations, actions in episodes:
        for t, (seen, done) in enumerate(zip(observations, actions, strict=True)):
            row, last = np.asarray(seen)[None], np.array([t == len(observations) - 1])
            recorder.before(row, np.asarray(done)[None])
            step = Step(row, np.ones(1), last, np.zeros(1, bool), row, np.zeros(1, bool))
            recorder.after(step, np.ones(1, bool))
    recorder.save(env="Known", source_space=observation_space, head=action_head(action_space))
    return folder


def balancer(env: Any) -> Policy:
    """A CartPole controller by hand: push to where the pole leans and falls. Returns 500."""
    spec = PolicySpec.of(env.source_observation_space, env.action_space, (), False)
    right = np.float32([0.1, 0.5, 8.0, 2.0])
    weight = np.stack([-right, right], axis=1)
    network = Network((), (Layer(weight, np.zeros(2, np.float32)),))
    return Policy(spec, PolicyParameters(network, np.zeros(0, np.float32)), None)


def record(policy: Policy, env: Any, folder: Path, episodes: int) -> np.ndarray:
    """Play and record whole episodes; their returns."""
    recorder = Recorder(folder)
    result = evaluate(policy, env, episodes=episodes, seed=7, recorder=recorder)
    recorder.save(env=env.id, source_space=policy.spec.source_space, head=policy.spec.head)
    return result.returns
