"""PPO's table 1: what keeps the new policy near the old one, and how much it matters.

    for each surrogate: none, clipped at epsilon, penalized with adaptive or fixed beta
        train on seven tasks, three seeds each, all else equal
        score a training by the mean return of its last 100 episodes,
        scaled on each task so that a random policy has 0 and the best of all has 1

Source:
    Schulman et al., "Proximal Policy Optimization Algorithms" (2017), section 6.1, table 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field, field_validator

from tether.learning.config import Config
from tether.learning.reports.plots import COLOURS
from tether.learning.seeds import parse_seeds
from tether.learning.storage.durable import write_json
from tether.studies.command_line import carry_out
from tether.studies.control_trials import (
    MUJOCO,
    check_envs,
    normalize,
    random_policy,
    training_trial,
)
from tether.studies.dots import draw_dots
from tether.studies.provenance import kind_of, protocol
from tether.studies.published import TABLE_1
from tether.studies.seed_list import SeedList
from tether.studies.statistics import probability_of_improvement, summarize_tasks
from tether.studies.trials import Result, Trial, run_trials, with_settings

VARIANTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "none": ("ppo", {"epsilon": None}),
    **{f"clip-{e:g}": ("ppo", {"epsilon": e}) for e in (0.1, 0.2, 0.3)},
    **{f"adaptive-{d:g}": ("ppo-kl", {"kl_target": d}) for d in (0.003, 0.01, 0.03)},
    **{f"fixed-{b:g}": ("ppo-kl", {"beta": b, "fixed_beta": True}) for b in (0.3, 1.0, 3.0, 10.0)},
}
"""The table's rows: method and what is set over its preset."""

BEST: Final = "clip-0.2"
"""The paper's best row, with which the others are compared."""
LABELS: Final = {
    "none": "no clipping or penalty",
    **{f"clip-{e:g}": f"clipping, epsilon = {e:g}" for e in (0.1, 0.2, 0.3)},
    **{f"adaptive-{d:g}": f"adaptive KL, target = {d:g}" for d in (0.003, 0.01, 0.03)},
    **{f"fixed-{b:g}": f"fixed KL, beta = {b:g}" for b in (0.3, 1.0, 3.0, 10.0)},
}


class Table1Config(Config):
    """Settings of the study; a part of it has fewer tasks, rows or seeds, and is kept."""

    envs: tuple[str, ...] = Field(default=MUJOCO, min_length=1)
    """Tasks, as Gymnasium ids."""
    rows: tuple[str, ...] = Field(default=tuple(VARIANTS), min_length=1)
    """Rows of the table: none, clip-0.2, adaptive-0.01, fixed-1, ..."""
    preset: str = "paper"
    """The preset of PPO's settings: paper (table 3 of the paper) or default."""
    seeds: SeedList = "0-2"
    """Seeds of the trainings, such as 0-2 or 0,3,7; from 1000 on they are for development."""
    steps: int = Field(default=1_000_000, ge=1)
    """Environment steps of each training."""
    random_episodes: int = Field(default=100, ge=1)
    """Episodes of the random policy on each task."""

    @field_validator("rows")
    @classmethod
    def _known(cls, rows: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [row for row in rows if row not in VARIANTS]
        if unknown:
            raise ValueError(f"unknown row {unknown[0]!r}; known: {', '.join(VARIANTS)}")
        return rows


def run(
    config: Table1Config,
    out: Path,
    *,
    workers: int = 2,
    cluster: str | None = None,
    known: Sequence[Path] = (),
) -> dict[str, Any]:
    """Trains what is left, scores the rows and draws them.

    Args:
        config: the settings.
        out: the study's folder; trainings that are there already are not done again.
        workers: trainings side by side.
        cluster: ``local`` or the address of a Ray cluster that does them in their place.
        known: JSON files of earlier results, whose trainings are not done again.

    Returns:
        What ``table1.json`` says. A row's ``score_std`` is the population deviation of its score
        over the seeds, ``summary`` what they say over all tasks, and ``improvement`` the
        probability that the row of ``improvement_of`` is better.

    Raises:
        UserError: an unknown task, or `out` holds a training with other settings.
    """
    kind_of(parse_seeds(config.seeds))
    chosen = trials(config)
    check_envs(config.envs)
    begin = [
        Trial(f"random-{env}", random_policy, {"env": env, "episodes": config.random_episodes})
        for env in config.envs
    ]
    # All at once, so that an `out` that holds another study is refused before anything is done.
    results = run_trials(
        [*begin, *(trial for trial, _ in chosen)],
        out,
        workers=workers,
        cluster=cluster,
        known=known,
    )
    said = protocol(parse_seeds(config.seeds), [out / trial.name for trial, _ in chosen])
    found = {"protocol": said, **gather(config, chosen, results)}
    write_json(out / "table1.json", found, indent=None)
    draw(found, out / "table1.png")
    return found


def trials(config: Table1Config) -> list[tuple[Trial, str]]:
    """Every training with its row, seed by seed, so that a part of them is a smaller study."""
    chosen = []
    for seed in parse_seeds(config.seeds):
        for env in config.envs:
            for row in config.rows:
                method, settings = VARIANTS[row]
                trial = training_trial(
                    f"{row}-{env}-{seed}",
                    method,
                    env,
                    seed,
                    steps=config.steps,
                    episodes=1,
                    preset=config.preset,
                    **settings,
                )
                chosen.append((trial, row))
    return chosen


def gather(
    config: Table1Config,
    trials: Sequence[tuple[Trial, str]],
    results: Mapping[str, Result],
) -> dict[str, Any]:
    """Normalizes the scores and averages them.

    A training that diverged counts with its last score, and as a random policy if it had none yet.
    """
    floors = {env: results[f"random-{env}"]["return"] for env in config.envs}
    raw: dict[str, dict[str, list[float]]] = {row: {} for row in config.rows}
    for trial, row in trials:
        env, score = trial.settings["env"], results[trial.name]["last_100"]
        raw[row].setdefault(env, []).append(floors[env] if score is None else score)
    best = {env: max(max(raw[row][env]) for row in config.rows) for env in config.envs}
    normalized = {
        row: {
            env: [normalize(score, floors[env], best[env]) for score in scores]
            for env, scores in raw[row].items()
        }
        for row in config.rows
    }
    best_row = BEST if BEST in config.rows else config.rows[0]
    means = {row: [float(np.mean(s)) for s in normalized[row].values()] for row in config.rows}
    return {
        "settings": config.dump(),
        "improvement_of": best_row,
        "random": floors,
        "best": best,
        "rows": {
            row: {
                "label": LABELS[row],
                "score": float(np.mean(means[row])),
                "score_std": float(np.std(_seed_scores(normalized[row]))),
                "paper": TABLE_1[row],
                "summary": summarize_tasks(normalized[row]),
                "improvement": probability_of_improvement(normalized[best_row], normalized[row])
                if row != best_row
                else None,
                "seed_scores": _seed_scores(normalized[row]),
                "by_task": dict(zip(normalized[row], means[row], strict=True)),
                "returns": raw[row],
            }
            for row in config.rows
        },
        "diverged": [trial.name for trial, _ in trials if "diverged" in results[trial.name]],
        "hours_of_training": sum(r.get("seconds", 0.0) for r in results.values()) / 3600,
        "trials": with_settings([trial for trial, _ in trials], results),
    }


def _seed_scores(by_task: Mapping[str, Sequence[float]]) -> list[float]:
    """Each seed's mean over the tasks."""
    means: list[float] = np.mean(list(by_task.values()), axis=0).tolist()
    return means


def draw(found: Mapping[str, Any], path: Path) -> None:
    """For each row the mean of its seeds with interval, every seed, and the paper's score."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = list(found["rows"].values())
    figure, axes = plt.subplots(figsize=(7.5, 0.42 * len(rows) + 1.2), layout="constrained")
    axes.axvline(0.0, color="0.5", lw=0.8)
    for place, row in enumerate(rows):
        axes.axhline(place, color="0.92", lw=0.8, zorder=0)
        draw_dots(axes, place, row["seed_scores"], row["summary"], COLOURS[0], horizontal=True)
        axes.plot(row["paper"], place, "D", ms=5, color=COLOURS[1], mfc="white", mew=1.4, zorder=5)
        label = f"{row['score']:.2f}".replace("-", "−")
        axes.annotate(
            label, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8
        )
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("mean normalized score (random policy 0, best training 1)")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}".replace("-", "−"))
    axes.spines[["top", "right"]].set_visible(False)
    colour = COLOURS[0]
    handles = [
        Line2D([], [], color=colour, marker="o", ms=3.5, lw=0, label="a seed, over all tasks"),
        Line2D([], [], color=colour, marker="|", ms=10, mew=2, lw=0, label="mean"),
        Patch(color=colour, alpha=0.3, lw=0, label="95 % interval of the mean"),
        Line2D([], [], color=COLOURS[1], marker="D", mfc="white", lw=0, ms=5, label="paper"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(found: Mapping[str, Any]) -> None:
    """The table on stderr."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title="mean normalized score", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("surrogate", no_wrap=True)
    for heading in ("tether", "95 %", "IQM", "P", "paper"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found["rows"].values():
        summary, chance = row["summary"], row["improvement"]
        error, interval = summary["standard_error"], summary["mean_interval"]
        table.add_row(
            row["label"],
            f"{row['score']:.2f}" + ("" if error is None else f" ± {error:.2f}"),
            "" if interval is None else f"{interval[0]:.2f} … {interval[1]:.2f}",
            f"{summary['iqm']:.2f}",
            "" if chance is None else f"{chance['probability']:.2f}",
            f"{row['paper']:.2f}",
        )
    console = Console(stderr=True)
    console.print(table)
    console.print(
        "tether: mean ± standard error; 95 %: stratified bootstrap interval of the mean; P: "
        f"probability that a training of {found['improvement_of']} is better."
    )


def command(arguments: Sequence[str]) -> None:
    """`tether study table1`."""
    carry_out(
        "table1",
        "Reproduce table 1 of the PPO paper: surrogates with and without a clip or a penalty.",
        Table1Config,
        run,
        show,
        arguments,
        workers="Trainings side by side.",
        known=True,
    )
