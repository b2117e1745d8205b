"""What the study of figure 3 found: a table, and one file with all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tether.learning.reports.plots import step_label
from tether.learning.storage.durable import write_json
from tether.studies.control_trials import by_cell, mean_and_deviation, normalize
from tether.studies.figure3_plots import draw, draw_over_tasks
from tether.studies.published import REWARD_CHANGES, SOURCES, task
from tether.studies.statistics import probability_of_improvement, summarize, summarize_tasks
from tether.studies.trials import Result, Trial, with_settings


def write(
    out: Path,
    settings: Mapping[str, Any],
    protocol: Mapping[str, Any],
    trials: Sequence[Trial],
    results: Mapping[str, Result],
) -> dict[str, Any]:
    """Gathers the trials and draws them.

    Writes ``figure3.json``, ``figure3.png`` and, of several tasks or methods,
    ``figure3-methods.png``.

    Args:
        out: the study's folder.
        settings: of the study.
        protocol: what :func:`tether.studies.provenance.protocol` says of the trials.
        trials: the trainings.
        results: theirs, and those of ``random-ENV``, the return of a random policy on each task.

    Returns:
        What ``figure3.json`` says.
    """
    cells = by_cell(results, trials)
    envs, methods = settings["envs"], settings["methods"]
    scores = {env: {m: _score(cells[m, env]) for m in methods} for env in envs}
    random = {env: results[f"random-{env}"]["return"] for env in envs}
    found = {
        "settings": dict(settings),
        "protocol": dict(protocol),
        "sources": [source._asdict() for source in SOURCES],
        "reward_changes": REWARD_CHANGES,
        "hours_of_training": sum(r.get("seconds", 0.0) for r in results.values()) / 3600,
        "scores": scores,
        "random": random,
        **_over_tasks(scores, random, methods),
        "trials": with_settings(trials, results),
    }
    write_json(out / "figure3.json", found, indent=None)
    draw(found, out / "figure3.png")
    if len(envs) > 1 or len(methods) > 1:
        draw_over_tasks(found, out / "figure3-methods.png")
    return found


def _score(seeds: Sequence[Result]) -> dict[str, Any]:
    """What the seeds say; of those that diverged the end of their curve counts.

    ``final_std`` and ``last_tenth_std`` are population deviations over the seeds.
    """
    finals = [r.get("final", r["last_100"]) for r in seeds]
    tenths = [r["last_tenth"] for r in seeds]
    final, final_std = mean_and_deviation(finals)
    last_tenth, last_tenth_std = mean_and_deviation(tenths)
    return {
        "final": final,
        "final_std": final_std,
        "last_tenth": last_tenth,
        "last_tenth_std": last_tenth_std,
        "finals": finals,
        "diverged": sum("diverged" in r for r in seeds),
        "summary": summarize(finals),
    }


def _over_tasks(
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]],
    random: Mapping[str, float],
    methods: Sequence[str],
) -> dict[str, Any]:
    """Methods over all tasks, with scores of 0 for a random policy and 1 for the best training.

    ``improvement`` compares the first method, ``ppo`` if it is there, with each of the others, by
    scores that are not normalized.
    """
    finals = {
        method: {
            env: [score for score in scores[env][method]["finals"] if score is not None]
            for env in scores
        }
        for method in methods
    }
    best = {
        env: max((s for method in methods for s in finals[method][env]), default=random[env])
        for env in scores
    }
    normalized = {
        method: {
            env: [normalize(score, random[env], best[env]) for score in own]
            for env, own in by_env.items()
        }
        for method, by_env in finals.items()
    }
    first = "ppo" if "ppo" in methods else methods[0]
    return {
        "best": best,
        "normalized": normalized,
        "over_tasks": {method: summarize_tasks(normalized[method]) for method in methods},
        "improvement": {
            "of": first,
            "over": {
                other: probability_of_improvement(finals[first], finals[other])
                for other in methods
                if other != first
            },
        },
    }


def show(found: Mapping[str, Any]) -> None:
    """The table on stderr: a row for each task and method, with what others published."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    steps = step_label(found["settings"]["steps"])
    scores = Table(title=f"return after {steps} steps", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    others = Table(title="beside published scores", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    headings = {
        scores: ("seeds", "evaluated", "95 %", "IQM"),
        others: ("evaluated", "last tenth", *(s["heading"] for s in found["sources"])),
    }
    for table, names in headings.items():
        table.add_column("task", overflow="fold")
        table.add_column("method", no_wrap=True)
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
    for env, methods in found["scores"].items():
        for method, score in methods.items():
            published = [s["scores"].get(task(env), {}).get(method) for s in found["sources"]]
            summary = score["summary"]
            first, last = next(iter(methods)), list(methods)[-1]
            begin = (task(env) if method == first else "", method)
            scores.add_row(
                *begin,
                str(summary["n"]),
                _cell(score),
                _interval(summary["mean_interval"]),
                number(summary["iqm"]),
                end_section=method == last,
            )
            others.add_row(
                *begin,
                *(number(value) for value in (score["final"], score["last_tenth"], *published)),
                end_section=method == last,
            )
    console = Console(stderr=True)
    console.print(scores)
    console.print(others)
    console.print(
        "evaluated: whole episodes of the last policy, most probable actions, mean ± standard "
        "error of the seeds; 95 %: bootstrap interval of that mean; IQM: interquartile mean; last "
        "tenth: of the learning curve, with sampled actions."
    )
    for source in found["sources"]:
        console.print(
            f"{source['title']}: {source['versions']}, {source['seeds']} seeds, {source['score']}."
        )
    if len(found["scores"]) > 1:
        for method, summary in found["over_tasks"].items():
            console.print(
                f"{method}, over {len(found['scores'])} tasks, a random policy 0 and the best "
                f"training 1: {estimate(summary, 'mean')}, IQM {estimate(summary, 'iqm')}"
            )
    for other, chance in found["improvement"]["over"].items():
        if chance["probability"] is not None:
            span = "" if chance["interval"] is None else _span(chance["interval"])
            console.print(
                f"probability that {found['improvement']['of']} is better than {other}: "
                f"{chance['probability']:.2f}{span}"
            )


def estimate(summary: Mapping[str, Any], name: str) -> str:
    """Mean or IQM of normalized scores with its interval, such as 0.81 [0.75, 0.86]."""
    if summary[name] is None:
        return "no score"
    interval = summary[f"{name}_interval"]
    return f"{summary[name]:.2f}" + ("" if interval is None else _span(interval))


def _span(interval: Sequence[float]) -> str:
    return f" [{interval[0]:.2f}, {interval[1]:.2f}]"


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{number(interval[0])} … {number(interval[1])}"


def _cell(score: Mapping[str, Any]) -> str:
    diverged = f", {score['diverged']} diverged" if score["diverged"] else ""
    if score["final"] is None:
        return f"no episode{diverged}"
    error = score["summary"]["standard_error"]
    spread = "" if error is None else f" ± {number(error)}"
    return f"{number(score['final'])}{spread}{diverged}"


def number(score: float | None) -> str:
    """A score to the digits that mean something; nothing for None."""
    if score is None:
        return ""
    return f"{score:,.1f}" if abs(score) < 100 else f"{score:,.0f}"
