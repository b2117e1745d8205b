"""What a labelling says about its judge: position, certainty, agreement, calibration, length."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tether.language.judge.judges import Judge, Judgement

logger = logging.getLogger(__name__)

BINS: Final = 10
"""Of the calibration error, over probabilities from 0 to 1."""

MOST_SAME: Final = 0.5
"""The share of pairs where one place wins both orders, above which a judge is not to be used."""

LEAST_MASS: Final = 0.5
"""The probability of the answer words below which they are not what the judge wants to say."""


@dataclass(frozen=True)
class Failure:
    """A pair without a label, and why; the texts are not repeated."""

    place: str
    reason: str


@dataclass
class Observations:
    """What is known of each labelled pair.

    Attributes:
        labels: probability that the first is better.
        judgements: two for each label: both orders of a pair, or both texts.
        human: the human label, NaN where there is none.
        longer_first: 1 where the first is longer, 0 where the second is, NaN where equal.
        failures: pairs without a label.
    """

    labels: list[float] = field(default_factory=list)
    judgements: list[tuple[Judgement, Judgement]] = field(default_factory=list)
    human: list[float] = field(default_factory=list)
    longer_first: list[float] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(
        self,
        label: float,
        judgements: tuple[Judgement, Judgement],
        texts: tuple[str, str],
        human: float | None,
    ) -> None:
        """Takes one pair."""
        self.labels.append(label)
        self.judgements.append(judgements)
        self.human.append(np.nan if human is None else human)
        lengths = [len(text.split()) for text in texts]
        longer = np.nan if lengths[0] == lengths[1] else float(lengths[0] > lengths[1])
        self.longer_first.append(longer)


def audit(judge: Judge, seen: Observations) -> dict[str, Any]:
    """The audit of a labelling, ready for JSON.

    Returns:
        ``judge``, ``digest``, ``mode``; ``pairs`` and ``failed``; ``first_place`` (share of
        readings in which the text in the first place won) and ``same_position`` (share of pairs
        where the same place won after the swap), None for judges that read texts by themselves;
        ``mass`` and ``mass_tenth`` (mean and tenth percentile of the answer words' probability);
        ``agreement`` with its 95 % interval, ``calibration_error`` and ``human_labels``, None
        without human labels; ``prefers_longer`` beside ``people_prefer_longer``; ``cost``.
    """
    labels = np.array(seen.labels)
    found: dict[str, Any] = {
        "judge": judge.name,
        "digest": judge.digest,
        "mode": judge.mode,
        "temperature": judge.temperature,
        "pairs": len(labels),
        "failed": [vars(failure) for failure in seen.failures],
        **positions(judge, seen.judgements),
        **agreement(labels, np.array(seen.human)),
        **lengths(labels, np.array(seen.human), np.array(seen.longer_first)),
        "cost": judge.backend.cost.as_json(),
    }
    if len(labels):
        masses = np.array([one.mass for pair in seen.judgements for one in pair])
        found["mass"], found["mass_tenth"] = float(masses.mean()), float(np.quantile(masses, 0.1))
        found["certainty"] = float(np.maximum(labels, 1 - labels).mean())
    found["warnings"] = _warnings(found)
    return found


def positions(
    judge: Judge, judgements: Sequence[tuple[Judgement, Judgement]]
) -> dict[str, float | None]:
    """How much the place of a text decides, where two are read together."""
    if judge.mode != "pairwise" or not judgements:
        return {"first_place": None, "same_position": None}
    first = np.array([[one.value > 0 for one in pair] for pair in judgements])
    return {
        "first_place": float(first.mean()),
        "same_position": float((first[:, 0] == first[:, 1]).mean()),
    }


def agreement(labels: ArrayLike, human: ArrayLike) -> dict[str, Any]:
    """Agreement and calibration where people have decided.

    Args:
        labels: probability that the first is better, (N,).
        human: the same of people; NaN or 0.5 where they have not decided, (N,).
    """
    p, h = np.asarray(labels, np.float64), np.asarray(human, np.float64)
    known = ~np.isnan(h) & (h != 0.5)
    if not known.any():
        none = dict.fromkeys(("agreement", "agreement_interval", "calibration_error"))
        return {**none, "human_labels": 0}
    p, right = p[known], h[known] > 0.5
    same = np.where(p == 0.5, 0.5, (p > 0.5) == right)
    return {
        "agreement": float(same.mean()),
        "agreement_interval": wilson(float(same.sum()), len(same)),
        "calibration_error": calibration_error(p, right),
        "human_labels": len(same),
    }


def calibration_error(labels: ArrayLike, right: ArrayLike) -> float:
    """Expected calibration error of probabilities that the first of two is better.

    ECE = sum_b n_b / n |mean label in bin b - share of the first being better in bin b|

    Each pair is seen from both sides, so that it does not matter which text came first.

    Args:
        labels: (N,) in [0, 1].
        right: (N,) whether the first is better.

    Source:
        Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
        binning" (2015), with bins of equal width.
    """
    p, truth = np.asarray(labels, np.float64), np.asarray(right, np.float64)
    p, truth = np.concatenate([p, 1 - p]), np.concatenate([truth, 1 - truth])
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    return float(
        sum(
            (place == b).mean() * abs(p[place == b].mean() - truth[place == b].mean())
            for b in range(BINS)
            if (place == b).any()
        )
    )


def lengths(
    labels: NDArray[np.float64], human: NDArray[np.float64], longer_first: NDArray[np.float64]
) -> dict[str, float | None]:
    """How often the longer text wins, for the judge and for people."""

    def share(sides: NDArray[np.float64]) -> float | None:
        known = ~np.isnan(sides) & (sides != 0.5) & ~np.isnan(longer_first)
        if not known.any():
            return None
        return float(((sides[known] > 0.5) == (longer_first[known] > 0.5)).mean())

    return {"prefers_longer": share(labels), "people_prefer_longer": share(human)}


def wilson(successes: float, trials: int) -> list[float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z, p = 1.959964, successes / trials
    middle = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    reach = z * sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return [max(middle - reach, 0.0), min(middle + reach, 1.0)]


def lines(found: Mapping[str, Any]) -> list[str]:
    """The audit for people; no text that was judged is repeated."""
    said = [f"judge {found['judge']} labelled {found['pairs']:,} pairs"]
    if found["failed"]:
        first = found["failed"][0]
        said.append(
            f"  left out: {len(found['failed'])}, the first is {first['place']}: {first['reason']}"
        )
    if found["same_position"] is not None:
        said.append(
            f"  position: the first place wins {found['first_place']:.0%} of the readings; the "
            f"same place wins after the swap in {found['same_position']:.0%} of the pairs"
        )
    if "mass" in found:
        said.append(
            f"  probability of the answer words: {found['mass']:.2f} on average, above "
            f"{found['mass_tenth']:.2f} in nine of ten readings"
        )
    if found["agreement"] is not None:
        low, high = found["agreement_interval"]
        said.append(
            f"  agreement with {found['human_labels']:,} human labels: {found['agreement']:.3f} "
            f"({low:.3f} to {high:.3f}); calibration error {found['calibration_error']:.3f}"
        )
    if found["prefers_longer"] is not None:
        people = found["people_prefer_longer"]
        beside = "" if people is None else f", people's in {people:.0%}"
        said.append(
            f"  the longer text is the judge's choice in {found['prefers_longer']:.0%}{beside}"
        )
    cost = found["cost"]
    if cost["requests"]:
        rate = cost["requests"] / max(cost["seconds"], 1e-9)
        said.append(
            f"  cost: {cost['requests']:,} readings ({cost['retries']:,} repeated), "
            f"{cost['prompt_tokens']:,} tokens read, {cost['completion_tokens']:,} written, "
            f"{rate:.1f} readings a second"
        )
    return said


def _warnings(found: Mapping[str, Any]) -> list[str]:
    said = []
    same, mass = found["same_position"], found.get("mass")
    if same is not None and same > MOST_SAME:
        said.append(
            f"same_position is {same:.2f}, above {MOST_SAME}: the place of a text decides more "
            "than the text; use mode pointwise, or another judge"
        )
    if mass is not None and mass < LEAST_MASS:
        said.append(
            f"mass is {mass:.2f}, below {LEAST_MASS}: the judge would rather say something else "
            "than the answer words; change the template, show more shots, or use another judge"
        )
    return said
