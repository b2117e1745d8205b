"""Commands about runs of any method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from tether.arguments import parse, print_json, say
from tether.errors import UserError


@dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves of runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path = Path("curves.png")
    """The picture: .png, .svg or .pdf."""
    metric: str = "return/mean"
    """What to draw, as metrics.jsonl names it."""
    by: str | None = None
    """Group runs by env, method or folder (that they lie in): mean and range."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


@dataclass(frozen=True)
class ReportOptions:
    """Write a page on one run or several: settings, curves, samples. It needs no other file."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path | None = None
    """The page; report.html in the run's folder, or for several runs in this one."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


def report(arguments: Sequence[str]) -> None:
    """`tether report RUN...`."""
    options = parse(ReportOptions, arguments, prog="tether report")
    if not options.runs:
        raise UserError("no runs given; usage: tether report RUN... --out report.html")
    from tether.learning.output.report import write_report

    path = write_report(options.runs, options.out)
    say(f"written: {path}")
    if options.json:
        print_json({"report": str(path), "runs": [str(run) for run in options.runs]})


def plot(arguments: Sequence[str]) -> None:
    """`tether plot RUN...`."""
    options = parse(PlotOptions, arguments, prog="tether plot")
    if not options.runs:
        raise UserError("no runs given; usage: tether plot RUN... --out curves.png")
    from tether.learning.output.plots import learning_curves

    path = learning_curves(options.runs, options.out, metric=options.metric, by=options.by)
    say(f"drawn: {path}")
    if options.json:
        print_json({"plot": str(path), "runs": [str(run) for run in options.runs]})
