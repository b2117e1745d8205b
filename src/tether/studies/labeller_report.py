"""What the labeller study found: a table beside the paper's, a figure, one file with all of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tether.errors import UserError
from tether.language.judge.audit import agreement, calibration_error
from tether.learning.reports.plots import COLOURS
from tether.learning.storage.durable import write_json

TEMPERATURES: Final = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.25, 1.5, 2.0)
"""Those that are tried on the development sentences."""

PAPER: Final = {
    "summaries": {
        "base, 0-shot": 0.761,
        "detailed, 8-shot": 0.698,
        "detailed, chain of thought, 0-shot": 0.780,
    },
    "helpful answers": {"base, 0-shot": 0.678, "the best style": 0.691},
    "harmless answers": {"base, 0-shot": 0.694, "the best style": 0.721},
    "size of the judge (summaries)": {"L": 0.780, "S": 0.738, "XS": 0.627},
    "same position after the swap": {"L": 0.18, "S": 0.21, "XS": 0.56},
}
"""Agreement with people, and position bias, of PaLM 2 (Lee et al. 2023, table 2 and appendix)."""

_DRAWN: Final = ("pointwise-0", "pointwise-4", "pairwise-0")
_MODES: Final = {"pointwise": "each alone", "rating": "each alone, points", "pairwise": "pairs"}


def check_styles(names: Sequence[str], known: Mapping[str, Any]) -> None:
    """Raises UserError unless every name is a style, and there is one."""
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = repr(unknown[0]) if unknown else "empty"
        raise UserError(f"styles is {what}; expected some of {', '.join(known)}")


def write(
    out: Path,
    settings: Mapping[str, Any],
    titles: Mapping[str, str],
    results: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Gathers the trials, writes ``labeller.json`` and ``labeller.png``; returns the former."""
    development = {
        name: results[f"{name}-development"] for name in titles if f"{name}-development" in results
    }
    chosen, temperatures = choose(development)
    rows = {}
    for name, title in titles.items():
        held_out = results[f"{name}-held_out"]
        rows[name] = {
            "title": title,
            "chosen": name == chosen,
            **measured(held_out, temperatures.get(name, 1.0)),
        }
    found = {
        "settings": dict(settings),
        "chosen": chosen,
        "development": {
            name: {
                "agreement": measured(result, 1.0)["agreement"],
                "temperature": temperatures[name],
            }
            for name, result in development.items()
        },
        "styles": rows,
        "paper": PAPER,
    }
    write_json(out / "labeller.json", found)
    draw(found, out / "labeller.png")
    return found


def choose(
    development: Mapping[str, Mapping[str, Any]],
) -> tuple[str | None, dict[str, float]]:
    """The style that agrees most on the development sentences, and each style's temperature.

    A temperature is the one under which the human labels are likeliest.
    """
    temperatures = {
        name: min(TEMPERATURES, key=lambda t, r=result: _loss(r, t))  # type: ignore[misc]
        for name, result in development.items()
    }
    if not development:
        return None, {}
    # Of equals the first, which has the fewest shots.
    best = max(development, key=lambda name: measured(development[name], 1.0)["agreement"])
    return best, temperatures


def labels_of(result: Mapping[str, Any], temperature: float) -> NDArray[np.float64]:
    """Probability that the first of each pair is better, (N,)."""
    one, other = np.array(result["judgements"], np.float64)[:, [0, 2]].T / temperature
    if result["mode"] == "pairwise":
        return 0.5 * (_sigmoid(one) + 1.0 - _sigmoid(other))
    return _sigmoid(one - other)


def measured(result: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    """Agreement, calibration, position, certainty and speed of a style."""
    labels = labels_of(result, temperature)
    judged = np.array(result["judgements"], np.float64)
    human = np.array(result["first_better"])
    first = judged[:, [0, 2]] > 0
    pairwise = result["mode"] == "pairwise"
    bins = []
    sure, right = np.maximum(labels, 1 - labels), (labels > 0.5) == (human > 0.5)
    for low in np.arange(0.5, 1.0, 0.1):
        inside = (sure >= low) & (sure < low + 0.1 + 1e-9 * (low > 0.85))
        if inside.any():
            shares = [float(sure[inside].mean()), float(right[inside].mean()), int(inside.sum())]
            bins.append(shares)
    return {
        "mode": result["mode"],
        "pairs": len(labels),
        "failed": result["failed"],
        **{k: v for k, v in agreement(labels, human).items() if k != "human_labels"},
        "calibration_error_as_it_comes": calibration_error(labels_of(result, 1.0), human > 0.5),
        "temperature": temperature,
        "first_place": float(first.mean()) if pairwise else None,
        "same_position": float((first[:, 0] == first[:, 1]).mean()) if pairwise else None,
        "mass": float(judged[:, [1, 3]].mean()),
        "calibration": bins,
        "texts_per_second": _rate(result, "seconds"),
        "texts_per_core_second": _rate(result, "core_seconds"),
    }


def _rate(result: Mapping[str, Any], seconds: str) -> float | None:
    """Texts judged in a second; a pair's two readings have judged two texts."""
    if not result[seconds] or not result["readings"]:
        return None
    # With reasons every text is read twice.
    each = 1 + result["reasons"]
    return float(result["readings"] / each / result[seconds])


def _loss(result: Mapping[str, Any], temperature: float) -> float:
    labels = np.clip(labels_of(result, temperature), 1e-9, 1 - 1e-9)
    human = np.array(result["first_better"])
    return float(-np.mean(human * np.log(labels) + (1 - human) * np.log(1 - labels)))


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    value: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * x))
    return value


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Agreement of every style with its interval; how often soft labels are right."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    rows = found["styles"]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.5, 0.36 * len(rows) + 1.6), layout="constrained", width_ratios=(3, 2)
    )
    colours = dict(zip(_MODES, COLOURS, strict=False))
    for place, row in enumerate(rows.values()):
        low, high = row["agreement_interval"]
        value, colour = row["agreement"], colours[row["mode"]]
        left.plot([low, high], [place, place], color=colour, lw=1.6)
        left.plot(value, place, "o", color=colour, ms=6)
        left.text(1.02, place, f"{value:.3f}", va="center", fontsize=9)
    left.set_yticks(range(len(rows)), [row["title"] for row in rows.values()], fontsize=9)
    left.invert_yaxis()
    left.axvline(0.5, color="0.6", lw=0.8, ls=":")
    left.set_xlim(0.2, 1.0)
    left.set_title("agreement with people, held-out pairs, 95 % interval", fontsize=10)
    right.plot([0.5, 1], [0.5, 1], color="0.6", lw=0.8, ls=":")
    for name, colour in zip(_DRAWN, COLOURS, strict=False):
        if name in rows:
            sure, hits, _ = np.array(rows[name]["calibration"]).T
            error = rows[name]["calibration_error"]
            right.plot(sure, hits, "o-", color=colour, label=f"{rows[name]['title']} ({error:.2f})")
    right.set_xlabel("certainty of the label")
    right.set_title("share that is right (calibration error)", fontsize=10)
    right.set_xlim(0.48, 1.02)
    right.set_ylim(0.3, 1.02)
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False, fontsize=9, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(found: Mapping[str, Any]) -> None:
    """The table, and the paper's, on stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"labels by {found['settings']['model']}, beside people's")
    for column in ("style", "pairs", "agreement", "same place", "mass", "ECE", "texts/s", "a core"):
        table.add_column(column, justify="left" if column == "style" else "right")
    for row in found["styles"].values():
        low, high = row["agreement_interval"]
        same = row["same_position"]
        rates = [row[f"texts_per_{unit}"] for unit in ("second", "core_second")]
        table.add_row(
            row["title"] + " *" * row["chosen"],
            str(row["pairs"]),
            f"{row['agreement']:.3f} ({low:.2f}-{high:.2f})",
            "" if same is None else f"{same:.0%}",
            f"{row['mass']:.2f}",
            f"{row['calibration_error']:.3f}",
            *("" if rate is None else f"{rate:.1f}" for rate in rates),
        )
    paper = Table(title="the paper's judges (PaLM 2, Lee et al. 2023)")
    for column in ("what", "style", "value"):
        paper.add_column(column, justify="right" if column == "value" else "left")
    for what, values in found["paper"].items():
        for style, value in values.items():
            paper.add_row(what, style, f"{value:.3f}")
    # Where the output is no terminal, eighty columns would fold every cell.
    console = Console(stderr=True, width=max(Console(stderr=True).width, 110))
    console.print(table)
    console.print("* chosen on other sentences; ECE is the calibration error of the soft labels")
    console.print(paper)
