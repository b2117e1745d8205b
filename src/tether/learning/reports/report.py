"""A page on runs that needs no other file: what was asked, how it went, what it said."""

import base64
import html
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tether.errors import UserError
from tether.learning.output.evaluations import read_evaluations
from tether.learning.output.metrics import read_metrics
from tether.learning.output.samples import SAMPLES_FILE, read_samples
from tether.learning.reports import attributes
from tether.learning.reports.plots import COLOURS, step_label
from tether.learning.reports.report_style import STYLE
from tether.learning.run import Run
from tether.learning.storage.durable import replaced, write_error
from tether.version import __version__

_HEADLINES: Final = ("return/mean", "reward/mean", "reward/accuracy", "held_out/loss", "loss")
_POINTS: Final = 500
"""Of a curve; a picture shows no more, and a page of a million iterations must stay small."""
_MOMENTS: Final = 5
_PER_MOMENT: Final = 4
_LONGEST: Final = 300
_CURVE: Final = (3.6, 2.1)
_HEADLINE: Final = (9.0, 3.0)

Row = Mapping[str, float]


@dataclass(frozen=True)
class _Shown:
    """A run as the page shows it."""

    run: Run
    name: str
    colour: str
    rows: Sequence[Row]
    samples: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]


def write_report(runs: Sequence[str | Path], path: str | Path | None = None) -> Path:
    """Writes one HTML page on one run or several, with all pictures inside.

    It shows the settings (where several runs differ is marked), every measurement as a curve, what
    evaluations found, and some of the samples a run kept, from its beginning to its end. Runs may
    still be training.

    Args:
        runs: run folders.
        path: the page; None: ``report.html`` in the run's folder, for several runs in the working
            folder.

    Returns:
        The page.

    Raises:
        UserError: no runs, one that cannot be read, or a page that cannot be written.
    """
    if not runs:
        raise UserError("no runs to report on; give at least one run folder")
    shown = [
        _look(folder, name, COLOURS[i % len(COLOURS)])
        for i, (folder, name) in enumerate(zip(runs, _names(runs), strict=True))
    ]
    if path is None:
        path = Path(runs[0]) / "report.html" if len(shown) == 1 else Path("report.html")
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            file.write(_page(shown).encode())
    except OSError as error:
        raise write_error(path, error) from error
    return path


def _look(folder: str | Path, name: str, colour: str) -> _Shown:
    run = Run.open(folder)
    rows = read_metrics(run.metrics_path) if run.metrics_path.exists() else []
    kept = read_samples(run.path) if (run.path / SAMPLES_FILE).exists() else []
    return _Shown(run, name, colour, rows, kept, read_evaluations(run.path))


def _names(runs: Sequence[str | Path]) -> list[str]:
    """Short names that tell the runs apart."""
    paths = [Path(folder).resolve() for folder in runs]
    short = [path.name for path in paths]
    return [
        name if short.count(name) == 1 else f"{path.parent.name}/{name}"
        for name, path in zip(short, paths, strict=True)
    ]


def _page(shown: Sequence[_Shown]) -> str:
    methods = list(dict.fromkeys(one.run.method for one in shown))
    title = f"{', '.join(methods)}: " + (shown[0].name if len(shown) == 1 else f"{len(shown)} runs")
    parts = [
        f"<h1>{_text(title)}</h1>",
        _overview(shown),
        _curves(shown),
        *(_evaluations(one, alone=len(shown) == 1) for one in shown if one.evaluations),
        *(_sample_table(one, alone=len(shown) == 1) for one in shown if one.samples),
        _settings(shown),
        f"<footer>tether {_text(__version__)}</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body><main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def _overview(shown: Sequence[_Shown]) -> str:
    headline = _headline(_metrics(shown))
    lines = []
    for one in shown:
        last = one.rows[-1] if one.rows else {}
        steps = f"{int(last['step']):,}" if last else "none yet"
        cells = [
            f'<span class="dot" style="background:{one.colour}"></span>{_text(one.name)}',
            _text(one.run.method),
            _text(one.run.created.replace("T", " ").replace("+00:00", " UTC")),
            _text(steps),
            _text(_duration(last.get("time/seconds", math.nan))),
        ]
        if headline:
            values = _curve(one.rows, headline)[1]
            cells.append(_text(_number(float(values[-1])) if len(values) else ""))
        lines.append(cells)
    heads = ["run", "method", "begun", "steps", "time"] + ([headline] if headline else [])
    return _table(heads, lines)


def _curves(shown: Sequence[_Shown]) -> str:
    names = _metrics(shown)
    if not names:
        return "<p>Nothing has been measured yet.</p>"
    headline = _headline(names)
    parts = ["<h2>Curves</h2>"]
    if headline:
        parts.append(_picture(shown, headline, _HEADLINE))
    clocks = [name for name in names if name.startswith("time/")]
    others = [name for name in names if name != headline and name not in clocks]
    for group, heading in ((others, None), (clocks, "Clock")):
        if not group:
            continue
        grid = f'<div class="grid">{"".join(_picture(shown, n, _CURVE) for n in group)}</div>'
        if heading:
            grid = f"<details><summary>{heading}</summary>{grid}</details>"
        parts.append(grid)
    return "\n".join(parts)


def _picture(shown: Sequence[_Shown], metric: str, size: tuple[float, float]) -> str:
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    # Text stays text, so the browser draws it sharply and the page stays small.
    with plt.rc_context({"svg.fonttype": "none", "font.size": 8, "font.family": "sans-serif"}):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        for one in shown:
            steps, values = _thinned(*_curve(one.rows, metric))
            mark = "o" if len(values) == 1 else None
            axes.plot(steps, values, color=one.colour, lw=1.3, marker=mark, ms=3)
        axes.xaxis.set_major_formatter(lambda x, _: step_label(x))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        image = io.BytesIO()
        figure.savefig(image, format="svg", metadata={"Date": None})
        plt.close(figure)
    source = base64.b64encode(image.getvalue()).decode()
    return (
        f"<figure><figcaption>{_text(metric)}</figcaption>"
        f'<img alt="{_text(metric)} against steps" src="data:image/svg+xml;base64,{source}">'
        "</figure>"
    )


def _evaluations(one: _Shown, *, alone: bool) -> str:
    """What evaluations found, the latest first, each with what it can't tell."""
    parts = [f"<h2>{_text('Evaluation' if alone else f'Evaluation of {one.name}')}</h2>"]
    for evaluation in reversed(one.evaluations):
        heads, rows = attributes.table(evaluation)
        parts.append(f"<p>{_text(attributes.caption(evaluation))}</p>")
        parts.append(_table(heads, [[_text(cell) for cell in row] for row in rows]))
    return "\n".join(parts)


def _sample_table(one: _Shown, *, alone: bool) -> str:
    """Samples of a few moments, evenly spaced from the first to the last."""
    steps = sorted({row.get("step", 0) for row in one.samples})
    chosen = [
        steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, _MOMENTS).round().astype(int))
    ]
    rows = [
        row
        for step in chosen
        for row in [r for r in one.samples if r.get("step", 0) == step][:_PER_MOMENT]
    ]
    # Ids are for machines.
    columns = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if not name.endswith("_ids")
    ]
    lines = [[_cell(name, row.get(name)) for name in columns] for row in rows]
    heading = "Samples" if alone else f"Samples of {one.name}"
    return f'<h2>{_text(heading)}</h2>\n<div class="samples">{_table(columns, lines)}</div>'


def _settings(shown: Sequence[_Shown]) -> str:
    flat = [
        dict(_flat({**one.run.config, **{f"run.{k}": v for k, v in one.run.spec.items()}}))
        for one in shown
    ]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    lines, marks = [], []
    for name in names:
        values = [_value(settings[name]) if name in settings else "" for settings in flat]
        lines.append([_text(name), *(_cell(name, value) for value in values)])
        marks.append(len(set(values)) > 1)
    heads = ["setting", *(("value",) if len(shown) == 1 else (one.name for one in shown))]
    return f"<h2>Settings</h2>\n{_table(heads, lines, marks)}"


def _table(
    heads: Sequence[str], lines: Sequence[Sequence[str]], marks: Sequence[bool] | None = None
) -> str:
    """An HTML table; cells are HTML, heads are text."""
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    body = []
    for i, cells in enumerate(lines):
        mark = ' class="differs"' if marks is not None and marks[i] else ""
        body.append(f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(name: str, value: Any) -> str:
    if isinstance(value, float):
        return _text(_number(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return _text(f"{value:,}" if name == "step" else str(value))
    text = value if isinstance(value, str) else _value(value)
    if len(text) > _LONGEST:
        begun = f"{_text(text[:_LONGEST])}…"
        return f"<details><summary>{begun}</summary>{_text(text)}</details>"
    return _text(text)


def _metrics(shown: Sequence[_Shown]) -> list[str]:
    """Names of all measurements, in alphabetical order."""
    names = {name for one in shown for row in one.rows for name in row} - {"step"}
    return sorted(n for n in names if any(len(_curve(one.rows, n)[0]) for one in shown))


def _headline(names: Iterable[str]) -> str | None:
    there = set(names)
    return next((name for name in _HEADLINES if name in there), None)


def _curve(rows: Sequence[Row], metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = [(r["step"], r[metric]) for r in rows if math.isfinite(r.get(metric, math.nan))]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def _thinned(
    steps: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of neighbours, where there are more points than a picture can show."""
    if len(steps) <= _POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), _POINTS + 1).astype(int)
    counts = np.diff(edges)
    return (
        np.add.reduceat(steps, edges[:-1]) / counts,
        np.add.reduceat(values, edges[:-1]) / counts,
    )


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _text(text: str) -> str:
    """Text as HTML: what a model or a user wrote is shown, never interpreted."""
    return html.escape(text)
