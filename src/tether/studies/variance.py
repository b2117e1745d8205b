"""The lecture's "high variance in gradients", measured.

    g_B = 1/B sum over B episodes of  sum_t gamma^t grad log pi(a_t|s_t) w_t

Every weight w gives the same gradient in expectation:

    return          the discounted return of the whole episode, from its first step
    reward-to-go    what followed the action, G_t
    Q               Q(s_t, a_t), exact
    reward-to-go - V    G_t - V(s_t), V exact: what a perfect critic makes of G_t
    advantage       A(s_t, a_t) = Q - V, exact

The task is a Gymnasium environment with a table of transitions (FrozenLake), so Q, V and the true
gradient are solved for, and both bias and variance can be computed exactly: once with its one
reward at the goal, once with a cost of every step. The policy is a softmax over a table of logits;
it is measured untrained, and half-way to the best.

Source:
    Sutton et al., "Policy gradient methods" (2000), theorem 1; Schulman et al., "High-Dimensional
    Continuous Control Using Generalized Advantage Estimation" (2016), section 2, for the weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from pydantic import Field, model_validator

from tether import objectives
from tether.learning.config import Config
from tether.learning.reports.plots import COLOURS
from tether.learning.storage.durable import write_json
from tether.studies.command_line import carry_out
from tether.studies.finite_mdp import (
    Episodes,
    Table,
    best_return,
    half_way,
    sample,
    score_sums,
    softmax,
    table_of,
    true_gradient,
    values,
)
from tether.studies.provenance import protocol
from tether.studies.trials import Result, Trial, run_trials

WEIGHTS: Final = {
    "return": "return of the episode",
    "reward-to-go": "reward-to-go",
    "q": "Q(s, a)",
    "baseline": "reward-to-go - V(s)",
    "advantage": "A(s, a) = Q - V",
}
POLICIES: Final = {"start": "untrained", "half-way": "half-way to the best"}
ROWS: Final = 1024
"""Episodes sampled side by side."""


class VarianceConfig(Config):
    """Settings of the study."""

    env: str = "FrozenLake-v1"
    """The Gymnasium id of an environment with a table of transitions, such as FrozenLake-v1."""
    step_costs: tuple[float, ...] = Field(default=(0.0, 0.1), min_length=1)
    """Costs of every step to compare: 0 leaves FrozenLake its single reward at the goal."""
    gamma: float = Field(default=0.99, gt=0, lt=1)
    """The discount factor per step."""
    batch_sizes: tuple[int, ...] = Field(default=(1, 2, 4, 8, 16, 32, 64, 128, 256), min_length=1)
    """Numbers of episodes in a gradient estimate."""
    episodes: int = Field(default=16_384, ge=2)
    """Episodes of each policy; a batch size divides them into independent estimates."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decides everything random."""

    @model_validator(mode="after")
    def _two_estimates(self) -> Self:
        for size in self.batch_sizes:
            if not 1 <= size <= self.episodes // 2:
                raise ValueError(
                    f"batch_sizes has {size}; {self.episodes} episodes give two estimates, the "
                    f"fewest that have a variance, for sizes from 1 to {self.episodes // 2}"
                )
        return self


def gradients(
    table: Table, policy: np.ndarray, episodes: Episodes, gamma: float
) -> dict[str, np.ndarray]:
    """Each episode's estimate of dJ/dlogits under every weight, (E, S, A)."""
    v, q = values(table, policy, gamma)
    state, action, alive = episodes.state, episodes.action, episodes.alive
    to_go = objectives.discounted_return(episodes.reward, gamma)
    weights = {
        "return": np.broadcast_to(to_go[0], to_go.shape),
        "reward-to-go": to_go,
        "q": q[state, action],
        "baseline": to_go - v[state],
        "advantage": (q - v[:, None])[state, action],
    }
    later = gamma ** np.arange(len(state))[:, None]
    found = {}
    for name, weight in weights.items():
        # The whole return already counts rewards from the episode's first step.
        discounted = weight if name == "return" else later * weight
        found[name] = score_sums(policy, state, action, np.where(alive, discounted, 0.0))
    return found


def measure(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: for one policy, error and direction of the estimates at every batch size."""
    config = VarianceConfig.load_part(settings)
    table = table_of(config.env, settings["step_cost"])
    logits = np.zeros(table.reward.shape)
    if settings["policy"] == "half-way":
        logits = half_way(table, config.gamma)
    policy = softmax(logits)
    truth = true_gradient(table, policy, config.gamma)
    size = float(np.square(truth).sum())
    rng = np.random.default_rng(config.seed)
    each: dict[str, list[np.ndarray]] = {name: [] for name in WEIGHTS}
    for start in range(0, config.episodes, ROWS):
        episodes = sample(table, policy, min(ROWS, config.episodes - start), rng)
        for name, found in gradients(table, policy, episodes, config.gamma).items():
            each[name].append(found)
    points: dict[str, list[dict[str, float]]] = {}
    for name, parts in each.items():
        flat = np.concatenate(parts).reshape(config.episodes, -1)
        points[name] = [
            {"batch_size": b, **_quality(_batches(flat, b), truth, size)}
            for b in config.batch_sizes
        ]
    v, _ = values(table, policy, config.gamma)
    return {
        "return": float(table.start @ v),
        "best": best_return(table, config.gamma),
        "gradient_norm": size**0.5,
        "points": points,
    }


def _batches(each: np.ndarray, size: int) -> np.ndarray:
    """Means over disjoint batches of episodes: (E, P) to (E // size, P)."""
    whole = len(each) // size * size
    means: np.ndarray = each[:whole].reshape(-1, size, each.shape[1]).mean(1)
    return means


def _quality(several: np.ndarray, truth: np.ndarray, size: float) -> dict[str, float]:
    """Variance and squared bias in units of |grad J|^2, and the mean cosine with the truth."""
    mean = several.mean(0)
    norms = np.linalg.norm(several, axis=-1) * size**0.5
    along = several @ truth.ravel()
    return {
        "variance": float(several.var(0, ddof=1).sum() / size),
        "squared_bias": float(np.square(mean - truth.ravel()).sum() / size),
        # An episode without reward may say nothing at all: no direction, cosine 0.
        "cosine": float(np.divide(along, norms, out=np.zeros_like(along), where=norms > 0).mean()),
    }


def run(
    config: VarianceConfig, out: Path, *, workers: int = 2, cluster: str | None = None
) -> dict[str, Any]:
    """Measures what is left, writes ``variance.json`` and ``variance.png``; returns the former.

    Raises:
        UserError: an environment without a table, or `out` holds a study with other settings.
    """
    table_of(config.env)
    trials = [
        Trial(f"{name}-{cost:g}", measure, {**config.dump(), "policy": name, "step_cost": cost})
        for cost in config.step_costs
        for name in POLICIES
    ]
    results = run_trials(trials, out, workers=workers, cluster=cluster)
    titles = titles_of(config.step_costs)
    found = {
        "settings": config.dump(),
        "protocol": protocol([config.seed], [out / trial.name for trial in trials]),
        "titles": titles,
        "policies": results,
        "episodes_needed": needed(results),
    }
    write_json(out / "variance.json", found)
    draw(found, out / "variance.png")
    return found


def titles_of(step_costs: Sequence[float]) -> dict[str, str]:
    """What each trial of a policy at a step cost is called in a figure, by the trial's name."""
    return {
        f"{name}-{cost:g}": f"{label}, "
        + (f"a step costs {cost:g}" if cost else "reward at the goal")
        for cost in step_costs
        for name, label in POLICIES.items()
    }


def needed(results: Mapping[str, Result]) -> dict[str, dict[str, float]]:
    """How many times the episodes of the advantage each weight needs for the same variance.

    The variance of a mean falls as 1 / B, so B times the variance is one number for every weight;
    its mean over the batch sizes is compared.
    """
    ratios = {}
    for policy, result in results.items():
        per_episode = {
            name: float(np.mean([p["batch_size"] * p["variance"] for p in points]))
            for name, points in result["points"].items()
        }
        ratios[policy] = {
            name: value / per_episode["advantage"] for name, value in per_episode.items()
        }
    return ratios


def draw(found: Mapping[str, Any], path: Path) -> None:
    """For each policy, variance and direction of the estimate against episodes."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    titles = found["titles"]
    figure, panels = plt.subplots(
        2, len(titles), figsize=(3.6 * len(titles), 6.6), layout="constrained", squeeze=False
    )
    for column, (policy, title) in zip(panels.T, titles.items(), strict=True):
        result = found["policies"][policy]
        for (name, label), colour in zip(WEIGHTS.items(), COLOURS, strict=False):
            points = result["points"][name]
            sizes = [p["batch_size"] for p in points]
            style = {"color": colour, "marker": "o", "ms": 3.5, "lw": 1.5, "label": label}
            column[0].plot(sizes, [p["variance"] for p in points], **style)
            column[1].plot(sizes, [p["cosine"] for p in points], **style)
        for axes in column:
            axes.set_xscale("log", base=2)
        column[0].set_yscale("log")
        column[0].set_title(
            f"{title}\nreturn {result['return']:.2f} of {result['best']:.2f}", fontsize=10
        )
        column[0].axhline(1.0, color="0.5", lw=0.8, ls=":")
        column[1].set_ylim(-0.05, 1.02)
        column[1].set_xlabel("episodes in a gradient estimate")
    panels[0, 0].set_ylabel("variance / |true gradient|^2")
    panels[1, 0].set_ylabel("mean cosine with the true gradient")
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(WEIGHTS), frameon=False)
    for axes in panels.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(found: Mapping[str, Any]) -> None:
    """On stderr: how many times the episodes each weight needs."""
    from rich.console import Console
    from rich.table import Table as Rows

    rows = Rows(title="episodes needed for the same variance, as a multiple of the advantage's")
    rows.add_column("weight of grad log pi", overflow="fold")
    for title in found["titles"].values():
        rows.add_column(title, justify="right", overflow="fold")
    for name, label in WEIGHTS.items():
        rows.add_row(label, *(f"{found['episodes_needed'][p][name]:,.1f}" for p in found["titles"]))
    Console(stderr=True).print(rows)


def command(arguments: Sequence[str]) -> None:
    """`tether study variance`."""
    carry_out(
        "variance",
        "Measure the variance of the policy gradient under each of the lecture's weights.",
        VarianceConfig,
        run,
        show,
        arguments,
        workers="Policies measured side by side.",
    )
