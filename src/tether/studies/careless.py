"""What the mistakes of a teacher cost a policy that learns from its comparisons.

    for each seed, task and share of mistakes:
        train on a reward learned from an oracle that says the opposite that often
        evaluate the last policy in whole episodes, by the true reward
    beside a training on the true reward

The reward model takes a tenth of all answers for a coin's toss, whatever the teacher is like, as
the paper's does; with `--known-mistakes` it is given the teacher's own share.

Source:
    Christiano et al., "Deep reinforcement learning from human preferences" (2017), section 2.2.3;
    Lee et al., "B-Pref" (2021), figure 2 (mistake).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from tether.studies import comparison_report as report
from tether.studies.command_line import carry_out
from tether.studies.comparison_trials import (
    TRUE,
    ComparisonConfig,
    Training,
    Variant,
    carried_out,
    trainings,
)


class CarelessConfig(ComparisonConfig):
    """Settings of the study; a part of it has fewer tasks, shares or seeds, and is kept."""

    envs: tuple[str, ...] = Field(
        default=("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"), min_length=1
    )
    """Tasks, as Gymnasium ids."""
    mistakes: tuple[float, ...] = Field(default=(0.0, 0.1, 0.2, 0.3), min_length=1)
    """Shares of the answers in which the teacher says the opposite."""
    labels: int = Field(default=700, ge=1)
    """The teacher's labels."""
    known_mistakes: bool = False
    """Gives the reward model the teacher's share of mistakes (twice as many are random), in place
    of a tenth of random answers whatever the teacher does."""

    @field_validator("mistakes")
    @classmethod
    def _below_half(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        for share in shares:
            if not 0 <= share < 0.5:
                raise ValueError(f"mistakes has {share}; expected shares from 0 to below 0.5")
        return shares


def run(
    config: CarelessConfig,
    out: Path,
    *,
    workers: int = 2,
    cluster: str | None = None,
    known: Sequence[Path] = (),
) -> dict[str, Any]:
    """Trains what is left, draws the curves and tabulates them.

    Args:
        config: the settings.
        out: the study's folder; trainings that are there already are not done again.
        workers: trainings side by side.
        cluster: ``local`` or the address of a Ray cluster that does them in their place.
        known: JSON files of earlier results, whose trainings are not done again.

    Returns:
        What ``careless.json`` says.

    Raises:
        UserError: as :func:`tether.studies.christiano.run`.
    """
    chosen = trials(config)
    protocol, results = carried_out(
        config, chosen, out, workers=workers, cluster=cluster, known=known
    )
    found = report.gather(config.dump(), protocol, chosen, results)
    curves = {TRUE: "true reward", **{f"{m:.0%}": f"{m:.0%} mistakes" for m in config.mistakes}}
    return report.write(out / "careless.json", found, config.envs, curves)


def trials(config: CarelessConfig) -> list[Training]:
    """Every training with its variant and task, seed by seed."""
    variants = {TRUE: Variant(config.envs, {"learn_from": "reward"})}
    for share in config.mistakes:
        settings: dict[str, Any] = {"labels": config.labels, "oracle_mistake": share}
        if config.known_mistakes:
            # A coin's toss is wrong half of the time.
            settings["error_share"] = 2 * share
        variants[f"{share:.0%}"] = Variant(config.envs, settings)
    return trainings(config, variants)


def show(found: Mapping[str, Any]) -> None:
    """The table on stderr."""
    report.show(found, lambda variant: variant if variant == TRUE else f"{variant} mistakes")


def command(arguments: Sequence[str]) -> None:
    """`tether study careless`."""
    carry_out(
        "careless",
        "Learn from a teacher that is wrong in some of its answers.",
        CarelessConfig,
        run,
        show,
        arguments,
        workers="Trainings side by side.",
        known=True,
    )
