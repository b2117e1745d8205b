"""Demonstrators whose skill is known, and folders of what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from chain_environment import FORWARD, Chain

from tether.control.demonstrations import EPISODES, FACTS, Recorder
from tether.control.distributions import action_head
from tether.control.envs import Step
from tether.control.evaluation import evaluate
from tether.control.networks import Layer, Network
from tether.control.policy import Policy, PolicyParameters, PolicySpec
from tether.learning import load_checkpoint, save_checkpoint


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


def chain_folder(folder: Path, episodes: int = 10, mistakes: float = 0.0) -> Path:
    """The best policy of the chain, which presses the wrong button now and then and stays put."""
    rng = np.random.default_rng(0)
    given = []
    for _ in range(episodes):
        wrong = rng.random(5) < mistakes
        given.append((np.eye(5, dtype=np.float32), np.array(FORWARD) ^ wrong))
    return write(folder, Chain.observation_space, Chain.action_space, given)


def damage(folder: Path, how: str) -> None:
    """Do to a folder of the chain what `how` says."""
    state, info = load_checkpoint(folder / EPISODES)
    arrays: dict[str, Any] = dict(state)
    if how == "truncated":
        content = (folder / EPISODES).read_bytes()
        (folder / EPISODES).write_bytes(content[: len(content) // 2])
        return
    if how == "missing":
        (folder / EPISODES).unlink()
        return
    if how in ("facts", "list", "future"):
        text = (folder / FACTS).read_text()
        cut = {"facts": text[:40], "list": "[]"}.get(
            how, text.replace('"format": 1', '"format": 7')
        )
        (folder / FACTS).write_text(cut)
        return
    if how == "nan":
        arrays["observation"][13, 2] = np.nan
    elif how == "ragged":
        arrays["action"] = arrays["action"][:-1]
    elif how == "empty":
        arrays = {name: array[:0] for name, array in arrays.items()}
    elif how == "empty episode":
        arrays["length"] = np.append(arrays["length"], 0)
    elif how == "choice":
        arrays["action"][7] = 2
    elif how == "fraction":
        arrays["action"] = arrays["action"] + 0.5
    elif how == "narrow":
        arrays["observation"] = arrays["observation"][:, :4]
    elif how == "no action":
        del arrays["action"]
    save_checkpoint(folder / EPISODES, arrays, info)


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
