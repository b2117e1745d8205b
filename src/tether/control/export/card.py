"""The card of a policy, as the Hugging Face hub shows it and ranks it by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tether.control.envs.spaces_json import space_from_json, space_in_words
from tether.control.evaluation import Evaluation
from tether.control.methods import METHODS
from tether.learning.reports.model_card import (
    metrics_table,
    portable,
    settings_table,
    steps_of,
    write_card,
)
from tether.learning.run import Run
from tether.version import __version__

_USE: Final = {
    "policy.safetensors": """```python
import tether

policy = tether.load("path/to/this/folder")
action = policy.predict(observation)
```

`tether` is installed by `pip install "tether-rl[control]"`.""",
    "policy.onnx": """```python
import onnxruntime

session = onnxruntime.InferenceSession("policy.onnx")
(action,) = session.run(["action"], {"observation": observations})
```

`observation` is a batch of observations, each flattened as `gymnasium.spaces.flatten` does it
(images stay images). `action` holds one action of the environment for each. Normalization and
action bounds are inside the file. The other outputs are what the distribution is made of.""",
}


def write_policy_card(
    run: Run,
    folder: Path,
    *,
    file: str,
    evaluation: Evaluation | None = None,
    film: bool = False,
) -> None:
    """Writes ``README.md`` of a policy.

    Args:
        run: where the policy comes from.
        folder: where to.
        file: name of the policy's file.
        evaluation: whole episodes, whose mean return becomes the hub's ``mean_reward``.
        film: whether there is a ``replay.mp4``.
    """
    spec = run.spec
    env = str(portable(spec.get("env") or spec.get("env_name") or "an environment"))
    summary = METHODS[run.method].summary if run.method in METHODS else run.method
    steps = steps_of(run)
    metadata: dict[str, Any] = {
        "library_name": "tether-rl",
        "pipeline_tag": "reinforcement-learning",
        "tags": [
            *(env, "reinforcement-learning", "deep-reinforcement-learning", run.method, "tether"),
            *(["onnx"] if file.endswith(".onnx") else []),
        ],
        "model-index": None if evaluation is None else _index(run.method, env, evaluation),
    }
    spaces = [
        f"- {name.replace('_', ' ')}: `{space_in_words(space_from_json(spec['policy'][name]))}`"
        for name in ("observation_space", "action_space")
    ]
    training = {
        "total_steps": spec.get("total_steps"),
        "seed": spec.get("seed"),
        "preset": spec.get("preset"),
        "env_kwargs": spec.get("env_kwargs") or {},
        **run.config,
    }
    sections = [
        f"# {run.method} policy for {env}",
        f"A policy trained with tether for {steps:,} steps by `{run.method}`: {summary}.",
        _score(evaluation),
        "`replay.mp4` shows one episode." if film else "",
        "## Use",
        _USE[file],
        "\n".join(spaces),
        "## Settings",
        settings_table(training),
        "## Last measurements of the training",
        metrics_table(run) or "The run kept none.",
        f"Written by tether {__version__}.",
    ]
    write_card(folder, metadata, sections)


def _score(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return ""
    return (
        f"Mean return over {len(evaluation.returns)} episodes with the most probable actions: "
        f"**{_reward(evaluation)}** (mean +/- standard deviation)."
    )


def _index(method: str, env: str, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The hub's ``model-index``, as Stable-Baselines3's and CleanRL's models have it."""
    task = "reinforcement-learning"
    metric = {
        "type": "mean_reward",
        "value": _reward(evaluation),
        "name": "mean_reward",
        "verified": False,
    }
    result = {
        "task": {"type": task, "name": task},
        "dataset": {"name": env, "type": env},
        "metrics": [metric],
    }
    return [{"name": method, "results": [result]}]


def _reward(evaluation: Evaluation) -> str:
    return f"{evaluation.returns.mean():.2f} +/- {evaluation.returns.std():.2f}"
