"""What the language benchmark's measurements say: medians, ratios, agreement, tables.

    python benchmarks/language_report.py results/language.json docs/benchmarks-language.md

puts the table into the page, between its two marks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from language_jobs import UNITS
from rich.console import Console
from rich.table import Table

NAMES = {
    "tether": "tether",
    "tether_separate": "tether, separate critic",
    "trl": "TRL, defaults",
    "trl_best": "TRL, best",
}
TITLES = {
    "dpo": "DPO",
    "sft": "instruction tuning",
    "rlhf": "RLHF with PPO",
    "rlhf_chat": "RLHF, answers that end",
    "generate": "sampling",
}
EPOCHS = (1, 3)
"""Passes over the data among which the reference's answers, computed once, are shared out."""


def summarize(
    measurements: list[dict[str, Any]], peak_flops_per_second: float
) -> dict[str, dict[str, Any]]:
    """Method -> contender -> medians over its turns; and how tether compares to each.

    Args:
        measurements: of every turn.
        peak_flops_per_second: what utilization is a share of.

    Returns:
        Rows with `rate` (units/s; median, min, max), `utilization`, memory and start-up; for DPO
        `rate_with_reference`, by epochs; under "ratios" tether's rate over the other's, and its
        memory over the other's; under "losses" the largest difference of DPO's losses at any step.
    """
    summary: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(m["method"] for m in measurements):
        rows = summary[method] = {}
        for name in NAMES:
            mine = [m for m in measurements if (m["method"], m["contender"]) == (method, name)]
            if mine:
                rows[name] = _row(mine, peak_flops_per_second)
        own = rows.get("tether")
        if own is None:
            continue
        rows["ratios"] = {
            name: {
                key: own[key] / row[key]
                for key in ("rate", "peak_memory_mb", "device_memory_mb")
                if row.get(key)
            }
            | _ratios_with_reference(own, row)
            for name, row in rows.items()
            if name != "tether"
        }
        if method == "dpo":
            rows["losses"] = _loss_differences([m for m in measurements if m["method"] == method])
    return summary


def _row(mine: list[dict[str, Any]], peak: float) -> dict[str, Any]:
    rates = [m["rate"] for m in mine]
    row: dict[str, Any] = {
        "rate": median(rates),
        "min": min(rates),
        "max": max(rates),
        "turns": len(rates),
        "options": mine[-1]["options"],
        "utilization": median(m["rate"] * m["flops_per_unit"] for m in mine) / peak,
    }
    for key in ("peak_memory_mb", "device_memory_mb", "startup_seconds", "wall_seconds"):
        if key in mine[0]:
            row[key] = median(m[key] for m in mine)
    if "preparation_seconds_per_pair" in mine[0]:
        cost = median(m["preparation_seconds_per_pair"] for m in mine)
        row["preparation_seconds_per_pair"] = cost
        row["rate_with_reference"] = {
            str(epochs): 1.0 / (1.0 / row["rate"] + cost / epochs) for epochs in EPOCHS
        }
    return row


def _ratios_with_reference(own: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    key = "rate_with_reference"
    if key not in own or key not in other:
        return {}
    return {key: {epochs: rate / other[key][epochs] for epochs, rate in own[key].items()}}


def _loss_differences(measurements: list[dict[str, Any]]) -> dict[str, float]:
    """The largest absolute difference to tether's losses, over all turns and steps."""
    losses = {(m["turn"], m["contender"]): m["losses"] for m in measurements}
    largest: dict[str, float] = {}
    for (turn, name), values in losses.items():
        own = losses.get((turn, "tether"))
        if name == "tether" or own is None:
            continue
        apart = max(abs(a - b) for a, b in zip(own, values, strict=True))
        largest[name] = max(apart, largest.get(name, 0.0))
    return largest


def _cells(name: str, rows: dict[str, Any]) -> list[str]:
    row, ratios = rows[name], rows.get("ratios", {}).get(name, {})
    digits = 0 if row["rate"] >= 100 else 2
    memory = "device_memory_mb" if "device_memory_mb" in row else "peak_memory_mb"
    return [
        NAMES[name],
        f"{row['rate']:,.{digits}f}",
        f"{row['min']:,.{digits}f}–{row['max']:,.{digits}f}",
        f"{ratios['rate']:.2f}" if ratios else "",
        f"{row['utilization']:.0%}",
        f"{row[memory]:,.0f}",
        f"{ratios[memory]:.2f}" if ratios else "",
        f"{row['startup_seconds']:.0f}",
    ]


HEADINGS = (
    "contender",
    "rate",
    "min–max",
    "tether / it",
    "utilization",
    "memory MB",
    "tether's / its",
    "start-up s",
)


def _title(method: str) -> str:
    return f"{TITLES[method]}, {UNITS[method]}/s"


def _order(rows: dict[str, Any]) -> list[str]:
    return [name for name in NAMES if name in rows]


def notes(results: dict[str, Any]) -> list[str]:
    """What the table cannot say: the reference's share, how equal the losses are, what is best."""
    lines = []
    summary = results["summary"]
    for name, ratio in summary.get("dpo", {}).get("ratios", {}).items():
        for epochs, value in ratio.get("rate_with_reference", {}).items():
            passes = "one epoch" if epochs == "1" else f"{epochs} epochs"
            lines.append(
                f"DPO with the reference's answers counted over {passes}: {value:.2f} times "
                f"{NAMES[name]}"
            )
    for name, apart in summary.get("dpo", {}).get("losses", {}).items():
        lines.append(f"DPO losses, largest difference to {NAMES[name]} at any step: {apart:.1e}")
    for method, chosen in results["selection"].items():
        if method in summary and chosen["best"]:
            lines.append(f"TRL's best for {TITLES[method]}: {chosen['best']}")
    return lines


def print_table(results: dict[str, Any], console: Console | None = None) -> None:
    """One table, everything side by side."""
    table = Table(
        title=f"{results['model']}, {results['device']}, {results['dtype']}: medians of "
        f"{results['turns']} alternating turns",
        caption="Start-up: all wall time outside the timed window, the first step included.",
    )
    table.add_column("method", no_wrap=True)
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for method, rows in results["summary"].items():
        for index, name in enumerate(_order(rows)):
            style = "bold" if name == "tether" else ""
            title = "" if index else _title(method)
            table.add_row(title, *_cells(name, rows), style=style)
        table.add_section()
    console = console or Console()
    # In a pipe rich assumes 80 columns, which would break the numbers over lines.
    console.width = max(console.width, 150)
    console.print(table)
    for line in notes(results):
        console.print(line)


def markdown(results: dict[str, Any]) -> str:
    """The same table for the documentation."""
    lines = [
        "| method | " + " | ".join(HEADINGS) + " |",
        "|---|---|" + "---:|" * (len(HEADINGS) - 1),
    ]
    for method, rows in results["summary"].items():
        for index, name in enumerate(_order(rows)):
            cells = ["" if index else _title(method), *_cells(name, rows)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {line}" for line in notes(results))]) + "\n"


MARKS = ("<!-- table -->", "<!-- end of table -->")


def fill(page: Path, results: dict[str, Any]) -> None:
    """Replace what stands between the marks of a page by the table, and where it was measured."""
    host, text = results["machine"], page.read_text()
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    place = (
        f"{results['model']}, {results['dtype']}, {results['device']}: {host['cpu']}, "
        f"{host['cores']} cores, {host['date'][:10]}; medians of {results['turns']} alternating "
        "turns."
    )
    page.write_text(f"{before}{MARKS[0]}\n{place}\n\n{markdown(results)}{MARKS[1]}{after}")


if __name__ == "__main__":
    fill(Path(sys.argv[2]), json.loads(Path(sys.argv[1]).read_text()))
