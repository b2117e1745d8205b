"""The control part of `tether demo`: from nothing to a running cheetah, and how it got there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tether.arguments import say
from tether.control import training
from tether.errors import UserError
from tether.learning.reports.plots import learning_curves


def show(out: Path, *, env: str, total_steps: int, seed: int) -> dict[str, Any]:
    """Trains PPO, evaluates it, draws its learning curve and films it, all in one run folder.

    Args:
        out: the run's folder; an earlier one there is resumed, or shown again.
        env: Gymnasium id.
        total_steps: environment steps of a new run.
        seed: of a new run, and of the film.

    Returns:
        The run's summary, with ``evaluation`` and the places of ``curve`` and ``film``.
    """
    if (out / "run.json").exists():
        say(f"going on with {out}")
        trained = training.resume(out)
    else:
        trained = training.train("ppo", env=env, total_steps=total_steps, seed=seed, out=out)
    evaluation = training.evaluate_run(out).summary()
    curve: Path | None = None
    try:
        curve = learning_curves([out], out / "curve.png", metric="return/mean")
    except UserError as error:
        # A short training ends before the first episode does.
        say(f"no learning curve: {error}")
    film: Path | None = out / "film.mp4"
    try:
        from tether.control.video import film as record

        record(out, out / "film.mp4", seed=seed)
    except UserError as error:
        # A machine without a renderer still gets its policy.
        say(f"no film: {error}")
        film = None
    summary = {
        **trained.summary(),
        "evaluation": evaluation,
        "curve": str(curve) if curve else None,
        "film": str(film) if film else None,
    }
    _table(env, summary)
    return summary


def _table(env: str, summary: dict[str, Any]) -> None:
    evaluation = summary["evaluation"]
    table = Table(title=f"PPO on {env}", show_header=False)
    table.add_row("steps", f"{summary['steps']:,}")
    table.add_row("steps per second", f"{summary['steps_per_second']:,.0f}")
    table.add_row(
        f"return, {evaluation['episodes']} episodes",
        f"{evaluation['return_mean']:.0f} +- {evaluation['return_std']:.0f}",
    )
    for name, key in (("run", "run"), ("learning curve", "curve"), ("film", "film")):
        table.add_row(name, str(summary[key]))
    Console(stderr=True).print(table)
