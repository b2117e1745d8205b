"""What the study of over-optimisation found: curves, turns, fits, a figure and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tether.learning.storage.durable import write_json
from tether.studies.overoptimisation_figure import draw
from tether.studies.overoptimisation_fits import Form, early_stop, fit, turn
from tether.studies.statistics import summarize
from tether.studies.trials import Result

TURNED: Final = ("log_odds", "truth")
"""Measures whose turn is reported."""
ENDS: Final = ("kl", "proxy", "log_odds", "gold", "fluent", "truth", "distinct")
"""Measures of a training's last policy."""
STOP: Final = "early-stop"


def write(
    out: Path,
    settings: Mapping[str, Any],
    protocol: Mapping[str, Any],
    results: Mapping[int, Mapping[str, Result]],
) -> dict[str, Any]:
    """Gathers the trials of every seed, writes ``overoptimisation.json`` and ``.png``.

    Returns:
        What the former says. ``ppo`` has every training, and the early stop that follows from one:
        ``seeds`` with each seed's curve (``points``), ``turn`` and ``fit``; ``turn``, what gold
        reward and truth have lost at the end since their peak, ``end``, ``rise`` of the truth over
        the reference at the end, each with its interval over seeds; ``fit`` of all seeds' points
        together. ``best_of_n`` has ``points``, means over seeds, and ``fit`` for every reward
        model. ``accuracy`` is that of the reward models on held-out comparisons.
    """
    first = next(iter(results.values()))
    seeds = list(results)
    trained = [name for name, result in first.items() if name != "best-of-n" and "points" in result]
    ppo = {name: _arm([results[seed][name]["points"] for seed in seeds], seeds) for name in trained}
    plain = f"ppo-{settings['remedy_comparisons']}"
    ppo[STOP] = _stopped(ppo[plain], int(settings["patience"]))
    found = {
        "settings": dict(settings),
        "protocol": dict(protocol),
        "fluent": summarize([results[seed]["sft"]["bar"] for seed in seeds]),
        "accuracy": {
            name: summarize([results[seed][name]["accuracy"] for seed in seeds])
            for name, result in first.items()
            if "accuracy" in result
        },
        "best_of_n": {
            name: _best_of_n([results[seed]["best-of-n"]["points"][name] for seed in seeds])
            for name in first["best-of-n"]["points"]
        },
        "ppo": ppo,
    }
    write_json(out / "overoptimisation.json", found)
    draw(found, out / "overoptimisation.png")
    return found


def titles(found: Mapping[str, Any]) -> dict[str, str]:
    """What the trainings are called, in the order of the table."""
    settings = found["settings"]
    of = {
        "words": "the number of words",
        "lexicon": "positive words − negative ones",
        "kl-penalty": f"β = {settings['kl_coefficient']:g}",
        "budget": f"budget of {settings['budget']:g} nats",
        "ensemble-mean": f"mean of {settings['members']}",
        "ensemble-lowest": f"lowest of {settings['members']}",
        "ensemble-mean-variance": f"mean − {settings['variance_weight']:g} variance",
        "clip": f"scores within ±{settings['clip']:g}",
        STOP: "early stop, by the truth",
    }
    sizes = [name for name in found["ppo"] if name.startswith("ppo-")]
    plain = {name: f"{int(name[4:]):,} comparisons" for name in sorted(sizes, key=_size)}
    return {**plain, **{name: of[name] for name in of if name in found["ppo"]}}


def _size(name: str) -> int:
    return int(name.rpartition("-")[2])


def _arm(curves: Sequence[Sequence[Mapping[str, float]]], seeds: Sequence[int]) -> dict[str, Any]:
    """A training of every seed."""
    own: dict[str, dict[str, Any]] = {
        str(seed): {
            "points": list(rows),
            "turn": {measure: turn(rows, measure) for measure in TURNED},
            "fit": {m: _fit([rows], m, "rl") for m in TURNED},
        }
        for seed, rows in zip(seeds, curves, strict=True)
    }
    return {
        "seeds": own,
        "turn": {m: summarize([one["turn"][m] for one in own.values()]) for m in TURNED},
        "end": {name: summarize([rows[-1][name] for rows in curves]) for name in ENDS},
        "rise": summarize([rows[-1]["truth"] - rows[0]["truth"] for rows in curves]),
        "peak_kl": summarize([_peak_kl(one["fit"]["truth"]) for one in own.values()]),
        "fit": {m: _fit(curves, m, "rl") for m in TURNED},
    }


def _stopped(plain: Mapping[str, Any], patience: int) -> dict[str, Any]:
    """The early stop of the trainings that were not stopped."""
    own = {
        seed: early_stop(one["points"], "truth", patience) for seed, one in plain["seeds"].items()
    }
    start = {seed: one["points"][0]["truth"] for seed, one in plain["seeds"].items()}
    return {
        "seeds": own,
        "turn": {"truth": summarize([one["turn"] for one in own.values()])},
        "end": {
            name: summarize([one[name] for one in own.values()])
            for name in ("kl", "proxy", "log_odds", "truth")
        },
        "rise": summarize([one["truth"] - start[seed] for seed, one in own.items()]),
    }


def _best_of_n(curves: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Best of n by one reward model: means over the seeds, and the fit of all of them."""
    return {
        "points": [
            {
                "n": rows[0]["n"],
                **{
                    key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "n"
                },
            }
            for rows in zip(*curves, strict=True)
        ],
        "gain": summarize([rows[-1]["log_odds"] - rows[0]["log_odds"] for rows in curves]),
        "fit": {measure: _fit(curves, measure, "best-of-n") for measure in TURNED},
    }


def _fit(
    curves: Sequence[Sequence[Mapping[str, float]]], measure: str, form: Form
) -> dict[str, Any] | None:
    """The form through the points of some curves, each counted from its own start."""
    rows = [(row["kl"], row[measure] - curve[0][measure]) for curve in curves for row in curve]
    kl, reward = np.array(rows, float).T
    return fit(kl, reward, form)


def _peak_kl(found: Mapping[str, Any] | None) -> float | None:
    return None if found is None else found["peak_kl"]


def show(found: Mapping[str, Any]) -> None:
    """Trainings and best of n as tables on stderr."""
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True)
    several = len(found["protocol"]["seeds"]) > 1
    table = Table(title="PPO: the last policy, and what the truth has lost since its peak")
    heads = ("KL, nats", "proxy", "gold, log-odds", "distinct-2", "truth", "lost", "fit's peak, KL")
    table.add_column("PPO")
    for column in heads:
        table.add_column(column, justify="right")
    for name, title in titles(found).items():
        one = found["ppo"][name]
        shown = ("kl", "proxy", "log_odds", "distinct", "truth")
        cells = [_cell(one["end"][key]) if key in one["end"] else "" for key in shown]
        lost = _cell(one["turn"]["truth"], interval=several)
        table.add_row(title, *cells, lost, _peak_of(one.get("fit")))
    console.print(table)
    chosen = Table(title="best of n: gold log-odds, counted from n = 1")
    chosen.add_column("reward model")
    points = next(iter(found["best_of_n"].values()))["points"]
    for row in points:
        chosen.add_column(f"{row['n']}", justify="right")
    chosen.add_column("fit's peak, KL", justify="right")
    for name, one in found["best_of_n"].items():
        start = one["points"][0]["log_odds"]
        golds = [f"{row['log_odds'] - start:.2f}" for row in one["points"]]
        label = f"{int(name):,} comparisons" if name.isdigit() else name.replace("-", " ", 1)
        chosen.add_row(label, *golds, _peak_of(one["fit"], "log_odds"))
    console.print(chosen)


def _peak_of(fits: Mapping[str, Any] | None, measure: str = "truth") -> str:
    own = None if fits is None else fits[measure]
    if own is None:
        return ""
    if own["peak_kl"] is None:
        return "none"
    return f"{own['peak_kl']:.1f}" if own["seen"] else f"({own['peak_kl']:.3g})"


def _cell(summary: Mapping[str, Any], *, interval: bool = False) -> str:
    if summary["mean"] is None:
        return ""
    if interval and summary["mean_interval"] is not None:
        low, high = summary["mean_interval"]
        return f"{summary['mean']:.3f} [{low:.3f}, {high:.3f}]"
    error = summary["standard_error"]
    return f"{summary['mean']:.3g}" + ("" if error is None else f" ± {error:.2g}")
