"""A policy as a folder of the Hugging Face hub: policy, card with a score, film, settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from tether.arguments import say
from tether.control.evaluation import EVALUATION_SEED, Evaluation
from tether.control.export.card import write_policy_card
from tether.control.policy import Policy
from tether.control.policy_folder import CONFIG, FORMAT, POLICY
from tether.control.training import evaluate_run, load
from tether.errors import UserError
from tether.learning.export_options import ExportOptions
from tether.learning.reports.model_card import portable, steps_of
from tether.learning.run import Run
from tether.learning.storage.checkpoint import save_checkpoint
from tether.learning.storage.durable import write_json
from tether.version import __version__

FILM: Final = "replay.mp4"

_FRAMES: Final = 500


def write(run: Run, folder: Path, options: ExportOptions, env: Any) -> dict[str, Any]:
    """Writes ``policy.safetensors``, ``config.json``, ``README.md`` and ``replay.mp4``.

    The policy is evaluated in its environment, for the card, and filmed there. An environment
    that cannot be drawn leaves no film.

    Returns:
        The evaluation's summary, and whether there is a film.

    Raises:
        UserError: the environment cannot be made.
    """
    if options.episodes and env is None and run.spec.get("env") is None:
        raise UserError(
            f"run {run.path} was made from a function, so its environment cannot be made again to "
            "evaluate the policy; give env (in Python the function, on the command line an id), or "
            "episodes 0 to leave the evaluation out"
        )
    policy = load(run.path)
    steps = steps_of(run)
    save_checkpoint(folder / POLICY, {"policy": policy.state()}, {"steps": steps})
    write_json(folder / CONFIG, _config(run, policy, steps), indent=2)
    evaluation: Evaluation | None = None
    filmed = False
    if options.episodes:
        evaluation = evaluate_run(run.path, episodes=options.episodes, env=env)
        filmed = _film(run, policy, folder / FILM, env)
    write_policy_card(run, folder, file=POLICY, evaluation=evaluation, film=filmed)
    return {"evaluation": evaluation.summary() if evaluation else None, "film": filmed}


def _config(run: Run, policy: Policy, steps: int) -> dict[str, Any]:
    spec = run.spec
    config: dict[str, Any] = {
        "library": "tether-rl",
        "format": FORMAT,
        "tether": __version__,
        "method": run.method,
        "env": spec.get("env") or spec.get("env_name"),
        "env_kwargs": spec.get("env_kwargs") or {},
        "seed": spec.get("seed"),
        "steps": steps,
        "settings": run.config,
        "policy": policy.spec.to_json(),
    }
    plain: dict[str, Any] = portable(json.loads(json.dumps(config)))
    return plain


def _film(run: Run, policy: Policy, path: Path, env: Any) -> bool:
    """Films one episode; where that is not possible, says why and goes on."""
    from tether.control.video import record_video

    name = env if env is not None else run.spec.get("env")
    try:
        if not isinstance(name, str):
            raise UserError("the environment has no Gymnasium id by which a film could make it")
        record_video(
            policy,
            name,
            path,
            seed=EVALUATION_SEED,
            frames=_FRAMES,
            env_kwargs=dict(run.spec.get("env_kwargs") or {}),
        )
    except UserError as error:
        say(f"the film is left out: {error}")
        return False
    return True
