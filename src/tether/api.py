"""tether from Python: one family of functions for policies and for language models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tether.engines import engine_of_method, engine_of_run
from tether.errors import UserError

if TYPE_CHECKING:
    from tether.control.evaluation import Evaluation
    from tether.learning.seeds import Seeds
    from tether.learning.training import Trained


def train(
    method: str | type[Any],
    env: Any = None,
    *,
    seeds: Sequence[int] | None = None,
    **arguments: Any,
) -> Trained | Seeds[Any] | Any:
    """Trains a policy or a language model in a new run folder.

    ``tether.train("ppo", env="HalfCheetah-v5")``, or
    ``tether.train("dpo", model="tiny", data="pairs.jsonl")``.

    Args:
        method: a name that ``tether methods`` lists, or a learner class.
        env: for a policy: a Gymnasium id, an environment, or a function that makes one.
        seeds: train once for each of these seeds, in one folder.
        **arguments: for every method: ``out``, ``total_steps``, ``seed``, ``callbacks``, ``sinks``,
            ``checkpoint_every``, ``progress``, as
            :meth:`tether.learning.engine.Engine.train` describes them; for a policy those of
            :meth:`tether.control.training.ControlEngine.prepare`; for a language model those of
            :meth:`tether.language.runs.training.LanguageEngine.prepare`; and the method's own
            settings.

    Returns:
        What was trained, with ``run`` (the folder), ``metrics``, and ``policy`` or
        ``language_model``; with `seeds` one of them for each.

    Raises:
        UserError: anything that the user can correct; one line.
    """
    engine = engine_of_method(method)
    if env is not None:
        if "env" not in engine.takes:
            raise UserError(
                f"{method} trains a language model and takes no env; give model= and data="
            )
        arguments["env"] = env
    if seeds is None:
        return engine.train(method, **arguments)
    from tether.learning.seeds import train_seeds

    return train_seeds(engine, method, seeds, **arguments)


def resume(run: str | Path, **arguments: Any) -> Trained | Seeds[Any] | Any:
    """Continues a run from its newest checkpoint, bit for bit; or every seed of a folder.

    Args:
        run: the folder.
        **arguments: ``total_steps``, ``callbacks``, ``sinks``, ``checkpoint_every``, ``progress``,
            as :meth:`tether.learning.engine.Engine.resume` describes them; and the objects that
            the run was started from, such as ``env``, ``model``, ``data`` or ``method``.

    Raises:
        UserError: anything that the user can correct; one line.
    """
    engine = engine_of_run(run)
    from tether.learning.seeds import is_seeds_folder, resume_seeds

    if is_seeds_folder(run):
        return resume_seeds(engine, run, **arguments)
    return engine.resume(run, **arguments)


def load(run: str | Path, **arguments: Any) -> Any:
    """What a run has learned, from its newest checkpoint.

    Args:
        run: the run's folder; or a file of :meth:`tether.control.policy.Policy.save`, or a folder
            that :func:`tether.export` wrote of a policy.
        **arguments: for a policy with a network of your own ``network``; for a language model
            ``device``, and ``model`` and ``tokenizer`` if the run
            was started from a model object.

    Returns:
        A :class:`tether.control.policy.Policy`, which needs neither its environment nor JAX; a
        :class:`tether.language.models.language_model.LanguageModel`; or a
        :class:`tether.language.models.reward_model.RewardModel`.

    Raises:
        UserError: not a run, or nothing is saved in it yet.
    """
    path = Path(run)
    if (path.is_dir() and not (path / "run.json").exists()) or path.is_file():
        # What Policy.save or tether.export wrote of a policy.
        from tether.control.training import load as load_policy

        return load_policy(run, **arguments)
    return engine_of_run(run).load(run, **arguments)


def evaluate(run: str | Path, **arguments: Any) -> Evaluation:
    """Plays whole episodes with a run's policy.

    See :func:`tether.control.training.evaluate_run`.
    """
    from tether.control.training import evaluate_run

    return evaluate_run(run, **arguments)


def generate(model: Any, prompts: str | Sequence[str], **arguments: Any) -> list[str]:
    """Answers prompts with a language model.

    See :func:`tether.language.runs.answers.answer_prompts`.
    """
    from tether.language.runs.answers import answer_prompts

    return answer_prompts(model, prompts, **arguments)
