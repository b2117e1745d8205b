"""`tether demo`: from nothing to a running cheetah, with everything to look at afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tether.arguments import parse, print_json, say
from tether.control import training
from tether.errors import UserError
from tether.learning.plots import learning_curves


@dataclass(frozen=True)
class DemoOptions:
    """Train PPO on HalfCheetah-v5, evaluate it, draw its learning curve and film it."""

    out: Path = Path("runs/demo")
    """Folder of the run; an earlier demo there is resumed or shown again."""
    env: str = "HalfCheetah-v5"
    """Gymnasium environment id."""
    total_steps: int = 300_000
    """Environment steps to take."""
    seed: int = 0
    """Decides everything random."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


def demo(arguments: Sequence[str]) -> None:
    """`tether demo`."""
    options = parse(DemoOptions, arguments, prog="tether demo")
    out = options.out
    if (out / "run.json").exists():
        say(f"going on with {out}")
        trained = training.resume(out)
    else:
        trained = training.train(
            "ppo", options.env, total_steps=options.total_steps, seed=options.seed, out=out
        )
    evaluation = training.evaluate_run(out).summary()
    curve = learning_curves([out], out / "curve.png")
    film: Path | None = out / "film.mp4"
    try:
        from tether.control.video import film as record

        record(out, out / "film.mp4", seed=options.seed)
    except UserError as error:
        # A machine without a renderer still gets its policy.
        say(f"no film: {error}")
        film = None
    summary = {
        **trained.summary(),
        "evaluation": evaluation,
        "curve": str(curve),
        "film": str(film) if film else None,
    }
    _table(options.env, summary)
    if options.json:
        print_json(summary)


def _table(env: str, summary: dict[str, object]) -> None:
    evaluation = summary["evaluation"]
    assert isinstance(evaluation, dict)
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
