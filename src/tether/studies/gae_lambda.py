"""What lambda of generalized advantage estimation trades: bias of the gradient for variance.

    delta_t = r_t + gamma V'(s_{t+1}) - V'(s_t)
    A_t     = sum_l (gamma lambda)^l delta_{t+l}
    g_B     = 1/B sum over B episodes of  sum_t gamma^t grad log pi(a_t|s_t) A_t

V' is a critic with an error: V plus independent normal noise in every state, in units of the root
mean square of V. At lambda = 1 the advantage is a return minus a baseline, so the critic's error
leaves the gradient's mean as it is; at lambda = 0 it is all there is.

The bias is exact: the expected advantage of every state and action is solved for. The variance is
that of sampled episodes, with advantages by :func:`tether.objectives.gae`. The mean squared error
of a gradient of B episodes is the squared bias plus 1/B of one episode's variance. Environments and
policies are those of :mod:`tether.studies.variance`.

Source:
    Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation"
    (2016), equations 16 to 18 and section 4; PPO (2017), algorithm 1 ("advantage estimates").
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field

from tether import objectives
from tether.learning.config import Config
from tether.learning.reports.plots import COLOURS
from tether.learning.storage.durable import write_json
from tether.studies.command_line import carry_out
from tether.studies.finite_mdp import (
    Episodes,
    Table,
    discounted_visits,
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
from tether.studies.variance import POLICIES, ROWS, titles_of

BATCHES: Final = (16, 256, 4096)
"""Episodes in a gradient, for which the table has the best lambda."""


class LambdaConfig(Config):
    """Settings of the study."""

    env: str = "FrozenLake-v1"
    """Gymnasium id of an environment with a table of transitions, such as FrozenLake-v1."""
    step_costs: tuple[float, ...] = Field(default=(0.0, 0.1), min_length=1)
    """What every step costs: 0 leaves FrozenLake its one reward at the goal."""
    gamma: float = Field(default=0.99, gt=0, lt=1)
    """Discount per step."""
    lambdas: tuple[float, ...] = Field(
        default=(0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0), min_length=1
    )
    """The lambdas, each from 0 to 1."""
    critic_errors: tuple[float, ...] = Field(default=(0.0, 0.1, 0.3, 1.0), min_length=1)
    """Standard deviations of the critic's error, in units of the root mean square of V."""
    critics: int = Field(default=4, ge=1)
    """Critics drawn for each error; bias and variance are their mean."""
    episodes: int = Field(default=4096, ge=2)
    """Episodes of each policy, from which the variance is measured."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Decides everything random."""


def expected_advantage(
    table: Table, policy: np.ndarray, critic: np.ndarray, gamma: float, lam: float
) -> np.ndarray:
    """E[A_t | s, a] of generalized advantage estimation with a critic (S,), exactly, (S, A)."""
    delta = table.reward + gamma * table.follows @ critic - critic[:, None]
    follows = np.einsum("sa,sat->st", policy, table.follows)
    later = np.linalg.solve(np.eye(len(critic)) - gamma * lam * follows, (policy * delta).sum(-1))
    found: np.ndarray = delta + gamma * lam * table.follows @ later
    return found


def expected_gradient(
    table: Table, policy: np.ndarray, critic: np.ndarray, gamma: float, lam: float
) -> np.ndarray:
    """E[g_B], exactly, (S, A)."""
    advantage = expected_advantage(table, policy, critic, gamma, lam)
    centred = advantage - (policy * advantage).sum(-1, keepdims=True)
    visits = discounted_visits(table, policy, gamma)
    gradient: np.ndarray = visits[:, None] * policy * centred
    return gradient


def sampled_gradients(
    policy: np.ndarray, episodes: Episodes, critic: np.ndarray, gamma: float, lam: float
) -> np.ndarray:
    """Each episode's estimate, (E, S, A), with advantages by :func:`tether.objectives.gae`."""
    value = critic[episodes.state]
    last = episodes.alive & ~np.roll(episodes.alive, -1, 0)
    last[-1] = episodes.alive[-1]
    advantage = objectives.gae(
        episodes.reward,
        value,
        np.roll(value, -1, 0),
        terminated=last,
        done=last,
        gamma=gamma,
        lam=lam,
        mask=episodes.alive,
    )
    later = gamma ** np.arange(len(value))[:, None]
    return score_sums(policy, episodes.state, episodes.action, later * advantage)


def measure(settings: Mapping[str, Any], place: Path) -> Result:
    """A trial: for one policy, squared bias and variance at every lambda and critic's error."""
    config = LambdaConfig.load_part(settings)
    table = table_of(config.env, settings["step_cost"])
    logits = np.zeros(table.reward.shape)
    if settings["policy"] == "half-way":
        logits = half_way(table, config.gamma)
    policy = softmax(logits)
    truth = true_gradient(table, policy, config.gamma)
    size = float(np.square(truth).sum())
    v, _ = values(table, policy, config.gamma)
    visits = discounted_visits(table, policy, config.gamma)
    unit = float(np.sqrt(np.average(np.square(v), weights=visits)))
    rng = np.random.default_rng(config.seed)
    noise = rng.standard_normal((config.critics, len(v)))
    parts = [
        sample(table, policy, min(ROWS, config.episodes - start), rng)
        for start in range(0, config.episodes, ROWS)
    ]
    points: dict[str, list[dict[str, float]]] = {}
    for error in config.critic_errors:
        critics = v + error * unit * (noise if error else noise[:1])
        found = []
        for lam in config.lambdas:
            bias, variance = [], []
            for critic in critics:
                mean = expected_gradient(table, policy, critic, config.gamma, lam)
                bias.append(np.square(mean - truth).sum() / size)
                each = np.concatenate(
                    [sampled_gradients(policy, e, critic, config.gamma, lam) for e in parts]
                )
                variance.append(each.var(0, ddof=1).sum() / size)
            found.append(
                {
                    "lambda": lam,
                    "squared_bias": float(np.mean(bias)),
                    "variance_of_one_episode": float(np.mean(variance)),
                }
            )
        points[f"{error:g}"] = found
    return {"return": float(table.start @ v), "gradient_norm": size**0.5, "points": points}


def run(
    config: LambdaConfig, out: Path, *, workers: int = 2, cluster: str | None = None
) -> dict[str, Any]:
    """Measures what is left, writes ``lambda.json`` and ``lambda.png``; returns the former.

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
        "best_lambda": best_lambda(results),
    }
    write_json(out / "lambda.json", found)
    draw(found, out / "lambda.png")
    return found


def squared_error(point: Mapping[str, float], batch: int) -> float:
    """E|g_B - grad J|^2 / |grad J|^2 of a gradient of `batch` episodes."""
    return point["squared_bias"] + point["variance_of_one_episode"] / batch


def best_lambda(results: Mapping[str, Result]) -> dict[str, dict[str, dict[str, float]]]:
    """For each policy, critic's error and batch size the lambda of the smallest squared error."""
    return {
        policy: {
            error: {
                str(batch): min(points, key=lambda point: squared_error(point, batch))["lambda"]
                for batch in BATCHES
            }
            for error, points in result["points"].items()
        }
        for policy, result in results.items()
    }


def draw(found: Mapping[str, Any], path: Path) -> None:
    """For each policy bias and variance, and what both together come to, against lambda."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    titles = found["titles"]
    batch = BATCHES[1]
    figure, panels = plt.subplots(
        2, len(titles), figsize=(3.6 * len(titles), 6.6), layout="constrained", squeeze=False
    )
    for column, (policy, title) in zip(panels.T, titles.items(), strict=True):
        for (error, points), colour in zip(
            found["policies"][policy]["points"].items(), COLOURS, strict=False
        ):
            x = [p["lambda"] for p in points]
            style = {"color": colour, "lw": 1.5, "marker": "o", "ms": 3}
            name = "exact critic" if error == "0" else f"critic's error {error}"
            if error != "0":
                column[0].plot(x, [p["squared_bias"] for p in points], ls="--", **style)
            column[0].plot(x, [p["variance_of_one_episode"] / batch for p in points], **style)
            total = [squared_error(p, batch) for p in points]
            column[1].plot(x, total, label=name, **style)
            best = int(np.argmin(total))
            column[1].plot(x[best], total[best], marker="*", ms=12, color=colour, ls="none")
        column[0].set_title(title, fontsize=10)
        column[1].set_xlabel("lambda")
        for axes in column:
            axes.set_yscale("log")
        column[0].set_ylim(bottom=1e-5)
    panels[0, 0].set_ylabel("squared bias (dashed) and\nvariance (solid)")
    panels[1, 0].set_ylabel("mean squared error")
    figure.suptitle(
        f"Gradient of {batch} episodes, in units of the true gradient's squared length", fontsize=11
    )
    handles = panels[1, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]), frameon=False)
    for axes in panels.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(found: Mapping[str, Any]) -> None:
    """On stderr: the best lambda for each critic and batch size."""
    from rich.console import Console
    from rich.table import Table as Rows

    rows = Rows(title=f"lambda of the smallest squared error, for {BATCHES} episodes in a gradient")
    rows.add_column("critic's error")
    for title in found["titles"].values():
        rows.add_column(title, justify="right")
    for error in found["settings"]["critic_errors"]:
        best = (found["best_lambda"][policy][f"{error:g}"] for policy in found["titles"])
        rows.add_row(f"{error:g}", *(", ".join(f"{b[str(n)]:g}" for n in BATCHES) for b in best))
    Console(stderr=True).print(rows)


def command(arguments: Sequence[str]) -> None:
    """`tether study lambda`."""
    carry_out(
        "lambda",
        "Measure what lambda of generalized advantage estimation trades: bias for variance.",
        LambdaConfig,
        run,
        show,
        arguments,
        workers="Policies measured side by side.",
    )
