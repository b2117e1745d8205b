"""`tether demo`: control and language from nothing, on one small machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tether.arguments import parse, print_json, say


@dataclass(frozen=True)
class DemoOptions:
    """A cheetah learns to run by PPO; a language model is aligned in three steps, and by DPO."""

    out: Path = Path("runs/demo")
    """The folder of the demonstration; one that was interrupted there is continued, and a finished
    one is shown again."""
    part: Literal["both", "control", "language"] = "both"
    """What to show: a policy for an environment, a language model, or both."""
    total_steps: int = 300_000
    """Environment steps of the cheetah's training."""
    seed: int = 0
    """Decides everything random."""
    json: bool = False
    """Prints one JSON object as the last line of stdout."""


def demo(arguments: Sequence[str]) -> None:
    """`tether demo`."""
    options = parse(DemoOptions, arguments, prog="tether demo")
    parts: dict[str, Callable[[DemoOptions], dict[str, Any]]] = {
        "control": _control,
        "language": _language,
    }
    found = {}
    for name, show in parts.items():
        if options.part in ("both", name):
            found[name] = show(options)
    if options.json:
        print_json(found)


def _control(options: DemoOptions) -> dict[str, Any]:
    from tether.control.demo import show

    found = show(
        options.out / "control",
        env="HalfCheetah-v5",
        total_steps=options.total_steps,
        seed=options.seed,
    )
    taught = options.out / "taught"
    say(
        "teach a policy yourself, with no reward but your answers about pairs of clips:\n"
        f"  tether prefer --env Hopper-v5 --teacher human --out {taught}\n"
        f"  tether label {taught}    (in a second terminal)"
    )
    return found


def _language(options: DemoOptions) -> dict[str, Any]:
    from tether.studies import three_steps, three_steps_report
    from tether.studies.language_runs import folder_of

    say("\nand now language: a base model; then SFT, PPO on a reward model, and DPO")
    folder = options.out / "language"
    found = three_steps.run(
        three_steps.ThreeStepsConfig(seeds=f"{options.seed}-{options.seed}"), folder
    )
    three_steps_report.show(found)
    say(f"talk with it: tether chat {folder / folder_of(options.seed) / 'ppo' / 'run'}")
    return found
