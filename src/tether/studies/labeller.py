"""Every way to ask a small model for labels, beside human labels and beside the paper's table.

Sentences of film reviews are paired, one whose writer liked the film with one whose writer did
not, in random order: which is the more positive is what people have said. A model labels the pairs
in every style of prompt; agreement, position, calibration and speed of each are measured on
held-out sentences. The number of solved examples, the long or the short preamble and the
temperature of the soft labels are chosen on other sentences.

Source:
    Lee et al., "RLAIF: Scaling reinforcement learning from human feedback with AI feedback" (2023),
    section 3.1 and table 2 (agreement of prompting styles), appendix (position bias).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from pydantic import Field

from tether.language.judge.backends import Backend
from tether.language.judge.judges import Judge
from tether.language.judge.labelling import Pair, label
from tether.language.judge.opening import JudgeSettings, open_backend, open_settings
from tether.language.judge.questions import FIELDS, open_attribute
from tether.language.models.files import SMOLLM2
from tether.language.reviews.prompts import load_reviews
from tether.learning.config import Config
from tether.learning.seeding import Stream, generator
from tether.studies import labeller_report as report
from tether.studies.command_line import carry_out
from tether.studies.trials import Result, Trial, run_trials


class Style(NamedTuple):
    """A way to ask, and what it is called.

    Attributes:
        title: in the table.
        settings: of the judge.
        pairs: the setting that says how many pairs it labels.
        chosen: whether it is a candidate on the development sentences.
    """

    title: str
    settings: dict[str, Any]
    pairs: str = "pairs"
    chosen: bool = False


STYLES: Final[dict[str, Style]] = {
    "pointwise-0": Style("each alone, 0-shot", {"shots": 0}, chosen=True),
    "pointwise-2": Style("each alone, 2-shot", {"shots": 2}, chosen=True),
    "pointwise-4": Style("each alone, 4-shot", {"shots": 4}, chosen=True),
    "pointwise-8": Style("each alone, 8-shot", {"shots": 8}, chosen=True),
    "pointwise-4-detailed": Style(
        "each alone, 4-shot, detailed", {"shots": 4, "detailed": True}, chosen=True
    ),
    "rating": Style("each alone, 1 to 10", {"mode": "rating", "shots": 0}, "together"),
    "pairwise-0": Style("pairs, 0-shot", {"mode": "pairwise", "shots": 0}, "together"),
    "pairwise-2": Style("pairs, 2-shot", {"mode": "pairwise", "shots": 2}, "together"),
    "pairwise-2-plain": Style(
        "pairs, 2-shot, plain text",
        {"mode": "pairwise", "shots": 2, "layout": "plain"},
        "together",
    ),
    "pairwise-detailed": Style(
        "pairs, 0-shot, detailed", {"mode": "pairwise", "shots": 0, "detailed": True}, "together"
    ),
    "pairwise-principles": Style(
        "pairs, 0-shot, principles",
        {"mode": "pairwise", "shots": 0, "principles": True},
        "together",
    ),
    "pairwise-cot": Style(
        "pairs, 0-shot, chain of thought",
        {"mode": "pairwise", "shots": 0, "cot": True, "reason_tokens": 48},
        "reasoned",
    ),
    "pointwise-cot": Style(
        "each alone, 0-shot, chain of thought",
        {"shots": 0, "cot": True, "reason_tokens": 48},
        "reasoned",
    ),
}
"""Every style, in the order of the table."""


class LabellerConfig(Config):
    """Settings of the study."""

    model: str = SMOLLM2
    """The model that judges, named as for `tether judge`."""
    pairs: int = Field(200, ge=4)
    """Held-out pairs for each style that reads one text at a time."""
    together: int = Field(80, ge=4)
    """Held-out pairs for each style that reads two texts at once, or gives points."""
    reasoned: int = Field(30, ge=4)
    """Held-out pairs that are labelled with a chain of thought."""
    development: int = Field(60, ge=4)
    """Pairs of other sentences on which shots, preamble and temperature are chosen."""
    source: Literal["rotten_tomatoes", "imdb"] = "rotten_tomatoes"
    """rotten_tomatoes has single sentences, imdb whole reviews, of which 40 words are read."""
    styles: tuple[str, ...] = tuple(STYLES)
    """The styles that are tried."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Decides the pairs and their order."""


def run(config: LabellerConfig, out: Path) -> dict[str, Any]:
    """Carries out what is left of the study in `out`.

    Args:
        config: the settings; those of an earlier start in `out`.
        out: the study's folder.

    Returns:
        What ``labeller.json`` says.

    Raises:
        UserError: `out` holds a study with other settings, or cannot be written.
    """
    report.check_styles(config.styles, STYLES)
    trials = []
    for name in config.styles:
        style = STYLES[name]
        if style.chosen:
            trials.append(_trial(config, name, "development", config.development))
        trials.append(_trial(config, name, "held_out", getattr(config, style.pairs)))
    results = run_trials(trials, out)
    titles = {name: STYLES[name].title for name in config.styles}
    return report.write(out, config.dump(), titles, results)


def _trial(config: LabellerConfig, name: str, part: str, pairs: int) -> Trial:
    settings = {
        "model": config.model,
        # Other questions are another trial.
        "questions": _questions(),
        "style": STYLES[name].settings,
        "part": part,
        "pairs": pairs,
        "source": config.source,
        "seed": config.seed,
    }
    return Trial(f"{name}-{part}", ask, settings)


def _questions() -> str:
    """A digest of what judges are asked; temperatures change nothing that they say."""
    asked = open_attribute("positive").dump()
    for mode in FIELDS:
        asked[mode].pop("temperature")
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def ask(settings: Mapping[str, Any], place: Path) -> Result:
    """One style on one part of the sentences."""
    pairs = pairs_of(
        settings["part"], settings["pairs"], source=settings["source"], seed=settings["seed"]
    )
    judge = _judge(settings)
    cost = judge.backend.cost
    before, busy = (cost.requests, cost.seconds), time.process_time()
    done = label(judge, pairs, skip_failed=True, folder=place)
    readings, seconds = cost.requests - before[0], cost.seconds - before[1]
    return {
        "mode": judge.mode,
        "judgements": [[v for one in pair for v in one] for pair in done.seen.judgements],
        "first_better": done.seen.human,
        "longer_first": [None if np.isnan(v) else v for v in done.seen.longer_first],
        "failed": len(done.seen.failures),
        "readings": readings,
        "seconds": seconds,
        "core_seconds": time.process_time() - busy,
        "reasons": judge.style.reasons,
    }


def pairs_of(
    part: str, count: int, *, source: Literal["rotten_tomatoes", "imdb"], seed: int
) -> list[Pair]:
    """Pairs of a positive and a negative text, in random order.

    Args:
        part: ``"development"``, from the reviews that models and scorers learn from (judges have
            learned from none), or ``"held_out"``.
        count: the number of pairs.
        source: of the texts.
        seed: decides the pairs.
    """
    reviews = load_reviews()
    texts = reviews.held_out if part == "held_out" else reviews.train
    random = generator(seed, Stream.COMPARED_SAMPLES, len(part))
    sides = []
    for positive in (True, False):
        own = [r.text for r in texts if r.positive == positive and r.source == source]
        sides.append([own[i] for i in random.permutation(len(own))[:count]])
    found = []
    for number, (good, bad) in enumerate(zip(*sides, strict=True)):
        first = bool(random.integers(2))
        one, other = (good, bad) if first else (bad, good)
        found.append(Pair(f"{part}, pair {number}", "", one, other, float(first)))
    return found


def _judge(settings: Mapping[str, Any]) -> Judge:
    short = {"max_words": 40} if settings["source"] == "imdb" else {}
    wanted = {"model": settings["model"], "temperature": 1.0, **short, **settings["style"]}
    return open_settings(JudgeSettings.load(wanted), _backend(settings["model"]))


@lru_cache(maxsize=1)
def _backend(model: str) -> Backend:
    """Loaded once for all styles that one process asks."""
    return open_backend(JudgeSettings.load({"model": model}))


def command(arguments: Sequence[str]) -> None:
    """`tether study labeller`."""
    carry_out(
        "labeller",
        "Every way to ask a small model for labels, beside human labels and the paper's table.",
        LabellerConfig,
        run,
        report.show,
        arguments,
    )
