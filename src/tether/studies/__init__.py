"""Studies: results of the lecture's papers, reproduced from nothing by one command each."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tether.errors import UserError


class Study(NamedTuple):
    """What a study shows in one line, and the function that takes its arguments."""

    summary: str
    function: str


STUDIES: dict[str, Study] = {
    "figure3": Study(
        "six methods on seven MuJoCo tasks (Schulman et al. 2017, PPO, figure 3)",
        "tether.studies.figure3:command",
    ),
    "table1": Study(
        "PPO's surrogates: no clip, clip, adaptive and fixed penalty (the same, table 1)",
        "tether.studies.table1:command",
    ),
    "christiano": Study(
        "350, 700 and 1,400 comparisons against the true reward (Christiano et al. 2017)",
        "tether.studies.christiano:command",
    ),
    "backflip": Study(
        "a Hopper learns to flip from 900 comparisons (Christiano et al. 2017, section 3.2)",
        "tether.studies.backflip:command",
    ),
    "careless": Study(
        "what the mistakes of a teacher cost (Lee et al. 2021, B-Pref)",
        "tether.studies.careless:command",
    ),
    "variance": Study(
        "variance of the policy gradient under each of the lecture's weights",
        "tether.studies.variance:command",
    ),
    "lambda": Study(
        "bias and variance of generalized advantage estimation (Schulman et al. 2016)",
        "tether.studies.gae_lambda:command",
    ),
    "cliff": Study(
        "steps too large and too small: plain gradient against trust region",
        "tether.studies.cliff:command",
    ),
    "clip": Study(
        "the clipped surrogate for both signs of the advantage (the same, figure 1)",
        "tether.studies.clip:command",
    ),
    "hacking": Study(
        "reward hacking: shown in four environments, detected, and mitigated",
        "tether.studies.hacking:command",
    ),
    "frontier": Study(
        "reward against divergence: DPO, PPO and baselines (Rafailov et al. 2023, figure 2)",
        "tether.studies.frontier:command",
    ),
    "overoptimisation": Study(
        "gold reward against divergence, its peak, and what moves it (Gao et al. 2022)",
        "tether.studies.overoptimisation:command",
    ),
    "labeller": Study(
        "every way to ask a small judge, beside human labels (Lee et al. 2023, RLAIF, table 2)",
        "tether.studies.labeller:command",
    ),
    "rlaif": Study(
        "labels by an AI beside true ones, at equal divergence (Lee et al. 2023, RLAIF)",
        "tether.studies.rlaif:command",
    ),
    "harmless": Study(
        "harmless answers and refusals before and after alignment, by people's harm scores",
        "tether.studies.harmless:command",
    ),
    "three-steps": Study(
        "base model, SFT, PPO on a reward model, DPO (Ouyang et al. 2022, in miniature)",
        "tether.studies.three_steps:command",
    ),
}


def find_study(name: str) -> Callable[[Sequence[str]], None]:
    """The function that carries out a study.

    Raises:
        UserError: no such study; names the closest.
    """
    if name not in STUDIES:
        close = difflib.get_close_matches(name, STUDIES, n=1)
        advice = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(STUDIES)}"
        raise UserError(f"unknown study {name!r}; {advice}")
    module, function = STUDIES[name].function.split(":")
    found: Callable[[Sequence[str]], None] = getattr(importlib.import_module(module), function)
    return found
