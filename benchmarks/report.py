"""What the measurements say: medians, ratios, one table, one picture."""

from __future__ import annotations

import os
import platform
import textwrap
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from contenders import NAMES, PEERS
from rich.console import Console
from rich.table import Table

AGAINST = ("sb3", "sbx", "ceiling", "ceiling_own", "ceiling_numpy")
PACKAGES = ("tether-rl", "equinox", "gymnasium", "jax", "jaxlib", "mujoco", "numpy", "optax")
COLORS = {
    "physics": "#e3e6ea",
    "physics_own": "#e3e6ea",
    "ceiling": "#c3c9d1",
    "ceiling_own": "#c3c9d1",
    "tether": "#0b6e6e",
    "sb3": "#e0a458",
    "sbx": "#c96f4a",
}


def machine() -> dict[str, Any]:
    """What it runs on, and how busy that was before anything was measured."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].split(":", 1)[1].strip() if named else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_average_at_start": [round(load, 2) for load in os.getloadavg()],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Versions of what tether runs on, of those packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def summarize(measurements: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Environment -> contender -> median, spread and cost; and the ratios of tether's median."""
    summary: dict[str, dict[str, Any]] = {}
    for env in dict.fromkeys(m["env"] for m in measurements):
        rows = summary[env] = {}
        for name in NAMES:
            mine = [m for m in measurements if (m["env"], m["contender"]) == (env, name)]
            if not mine:
                continue
            rates = [m["rate"] for m in mine]
            rows[name] = {
                "setting": mine[-1]["setting"],
                "median": median(rates),
                "min": min(rates),
                "max": max(rates),
                "repeats": len(rates),
            }
            for cost in ("peak_memory_mb", "startup_seconds", "wall_seconds"):
                if cost in mine[0]:
                    rows[name][cost] = median(m[cost] for m in mine)
        if "tether" in rows:
            rows["ratios"] = {
                f"tether/{name}": rows["tether"]["median"] / rows[name]["median"]
                for name in AGAINST
                if name in rows
            }
    return summary


def print_table(results: dict[str, Any], console: Console | None = None) -> None:
    """One table, everything side by side."""
    settings = results["settings"]
    table = Table(
        title=f"PPO at the paper's settings: steps per second, median of {settings['repeats']}",
        caption="tether / it: how many times as fast tether is. Start-up: all wall time outside "
        "the timed window, the first iteration included. Memory: peak of all processes.",
    )
    for heading in ("environment", "contender", "layout"):
        table.add_column(heading, no_wrap=True)
    for heading in ("steps/s", "min–max", "tether / it", "memory MB", "start-up s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for env, rows in results["summary"].items():
        for i, (name, row) in enumerate((n, r) for n, r in rows.items() if n != "ratios"):
            ratio = rows.get("ratios", {}).get(f"tether/{name}")
            table.add_row(
                "" if i else env,
                NAMES[name],
                row["setting"],
                f"{row['median']:,.0f}",
                f"{row['min']:,.0f}–{row['max']:,.0f}",
                f"{ratio:.2f}" if ratio else "",
                f"{row['peak_memory_mb']:,.0f}" if "peak_memory_mb" in row else "",
                f"{row['startup_seconds']:.1f}" if "startup_seconds" in row else "",
                style="bold" if name == "tether" else "",
            )
        table.add_section()
    # In a pipe rich assumes 80 columns, which would break the numbers over lines.
    console = console or Console()
    console.width = max(console.width, 126)
    console.print(table)


def plot(results: dict[str, Any], path: Path) -> None:
    """A panel per environment, a bar per contender; whiskers run from the lowest to the highest."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    summary, host = results["summary"], results["machine"]
    figure, axes = plt.subplots(
        1, len(summary), figsize=(1.6 + 3.6 * len(summary), 3.3), squeeze=False, sharey=True
    )
    own = all("ceiling_own" in rows for rows in summary.values())
    physics, ceiling = ("physics_own", "ceiling_own") if own else ("physics", "ceiling")
    shown = [physics, ceiling, "tether", *PEERS]
    labels = {**NAMES, ceiling: "ceiling: a policy acts,\nnothing is learned"}
    for axis, (env, rows) in zip(axes[0], summary.items(), strict=True):
        top = max(rows[name]["max"] for name in shown)
        for y, name in enumerate(shown):
            row = rows[name]
            spread = [[row["median"] - row["min"]], [row["max"] - row["median"]]]
            axis.barh(y, row["median"], height=0.72, color=COLORS[name])
            axis.errorbar(row["median"], y, xerr=spread, color="#444444", linewidth=1, capsize=2.5)
            text = f"{row['median'] / 1000:.1f}k"
            if name in PEERS:
                text += f"   tether is {rows['ratios'][f'tether/{name}']:.1f}× as fast"
            style = {"va": "center", "fontsize": 9, "color": "#222222"}
            if name == "tether":
                style["fontweight"] = "bold"
                share = f"{rows['ratios'][f'tether/{ceiling}']:.0%} of ceiling"
                # Inside the bar where there is room: beside a long bar it would leave the panel.
                if row["median"] > 0.5 * top:
                    axis.text(0.025 * top, y, share, **{**style, "color": "white"})
                else:
                    text += f"   {share}"
            axis.text(row["max"] + 0.025 * top, y, text, **style)
        axis.set_title(env, fontsize=11, loc="left")
        axis.set_xlim(0, 1.22 * top)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", colors="#555555", labelsize=9)
    axes[0][0].set_yticks(range(len(shown)), [labels[name] for name in shown], fontsize=10)
    axes[0][0].invert_yaxis()
    figure.suptitle("PPO at the paper's settings: environment steps per second", x=0.01, ha="left")
    caption = (
        f"{host['cpu']}, {host['cores']} cores. Median of {results['settings']['repeats']} "
        "alternating runs, whiskers min to max; first iteration (compilation) left out for all."
    )
    # About as many characters as a panel is wide.
    caption = "\n".join(textwrap.wrap(caption, 70 * len(summary)))
    figure.supxlabel(caption, fontsize=8.5, color="#555555")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)
