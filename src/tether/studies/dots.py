"""Every seed as a dot, beside what the seeds say together; for the figures of all studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def draw_dots(
    axes: Any,
    place: float,
    scores: Sequence[float | None],
    summary: Mapping[str, Any],
    colour: str,
    *,
    width: float = 0.6,
    horizontal: bool = False,
) -> None:
    """Draws the scores of some seeds at one place of an axis.

    Dots are the seeds, spread a little so that equal ones can be told apart; the short line is
    their mean and the bar behind it the 95 % interval of that mean.

    Args:
        axes: of matplotlib.
        place: on the axis of places.
        scores: one for each seed; None is not drawn.
        summary: of the scores, by :func:`tether.studies.statistics.summarize`.
        colour: of all of it.
        width: of the place, in units of its axis.
        horizontal: scores lie on the x axis, places on the y axis.
    """
    there = [score for score in scores if score is not None]
    if not there:
        return

    def plot(at: Any, values: Any, *style: Any, **more: Any) -> None:
        pair = (values, at) if horizontal else (at, values)
        axes.plot(*pair, *style, color=colour, **more)

    if summary["mean_interval"] is not None:
        plot(
            [place] * 2, summary["mean_interval"], lw=5, alpha=0.3, solid_capstyle="butt", zorder=2
        )
    half = width / 2
    plot([place - half, place + half], [summary["mean"]] * 2, lw=1.6, zorder=4)
    # Neighbours in rank go to different sides.
    order = np.argsort(np.argsort(there, kind="stable"), kind="stable")
    spread = place + 0.28 * width * np.array([-1.0, 1.0, 0.0])[order % 3] * (len(there) > 1)
    plot(spread, there, "o", ms=2.8, alpha=0.75, mew=0, zorder=3)
