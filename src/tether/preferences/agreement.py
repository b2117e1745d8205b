"""How far annotators agree with each other, beyond what chance would give.

Judgements are the pairs of items that are compared: the first is better, the second is, or it is a
tie. A ranking of K items is the K (K - 1) / 2 judgements of its pairs. What nobody could tell is
missing. Where an annotator gave a probability, its side counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tether.errors import UserError
from tether.preferences.records import Answer

FIRST: Final = 0
TIE: Final = 1
SECOND: Final = 2


@dataclass(frozen=True)
class PairAgreement:
    """How far two annotators agree.

    Attributes:
        first: one of them.
        second: the other.
        judgements: that both have given.
        same: share of them that are equal, in [0, 1].
        kappa: Cohen's kappa: 1 is full agreement, 0 what chance gives; NaN if both always gave the
            same one answer, so that nothing can be said about chance.
    """

    first: str
    second: str
    judgements: int
    same: float
    kappa: float


@dataclass(frozen=True)
class Agreement:
    """How far all annotators agree.

    Attributes:
        judgements: that at least two annotators have given.
        same: share of pairs of annotators who gave the same judgement, in [0, 1]; NaN: no such
            pair.
        alpha: Krippendorff's alpha for nominal judgements: 1 is full agreement, 0 what chance
            gives; NaN if there is nothing to compare.
        pairs: every two annotators who have judged something in common.
    """

    judgements: int
    same: float
    alpha: float
    pairs: tuple[PairAgreement, ...]


def agreement(answers: Iterable[Answer]) -> Agreement:
    """Compares annotators by what they say of the same queries.

    Args:
        answers: those that stand, as ``(answer for _, answer in store.standing())``.
    """
    judgements: dict[str, dict[tuple[str, int, int], int]] = {}
    for answer in answers:
        for unit, label in _judgements(answer):
            judgements.setdefault(answer.annotator, {})[unit] = label
    names = sorted(judgements)
    units = sorted({unit for given in judgements.values() for unit in given})
    table = [[judgements[name].get(unit) for unit in units] for name in names]
    pairs = tuple(
        _pair(names[i], names[j], table[i], table[j])
        for i, j in itertools.combinations(range(len(names)), 2)
        if _both(table[i], table[j])
    )
    compared = sum(pair.judgements for pair in pairs)
    return Agreement(
        judgements=sum(sum(row[u] is not None for row in table) > 1 for u in range(len(units))),
        same=sum(p.same * p.judgements for p in pairs) / compared if compared else math.nan,
        alpha=krippendorff_alpha(table) if pairs else math.nan,
        pairs=pairs,
    )


def cohen_kappa(first: Sequence[int], second: Sequence[int]) -> float:
    """Cohen's kappa: (p_o - p_e) / (1 - p_e), with the share p_o of equal labels.

    Args:
        first: labels 0, 1, ... that one annotator gave.
        second: those of the other, of the same things in the same order.

    Returns:
        At most 1; NaN if both always gave the same one label.

    Raises:
        UserError: nothing to compare, or lists of different lengths.

    Source:
        Cohen, "A coefficient of agreement for nominal scales" (1960).
    """
    if len(first) != len(second) or not first:
        raise UserError(
            f"{len(first)} and {len(second)} labels; expected two lists of the same length, not "
            "empty"
        )
    size = max(*first, *second) + 1
    shares = np.zeros((size, size))
    np.add.at(shares, (np.asarray(first), np.asarray(second)), 1 / len(first))
    observed, chance = float(np.trace(shares)), float(shares.sum(1) @ shares.sum(0))
    return math.nan if math.isclose(chance, 1.0) else (observed - chance) / (1 - chance)


def krippendorff_alpha(labels: Sequence[Sequence[int | None]]) -> float:
    """Krippendorff's alpha for nominal labels, by the package `krippendorff`.

    Args:
        labels: one row for each annotator, one column for each judgement; None: not given.

    Returns:
        At most 1; NaN if all labels are the same one.

    Raises:
        UserError: the package is missing.

    Source:
        Krippendorff, "Computing Krippendorff's alpha-reliability" (2011).
    """
    try:
        import krippendorff
    except ModuleNotFoundError as error:
        raise UserError(
            "the agreement of annotators needs krippendorff, which is not installed; run: pip "
            "install 'tether-rl[label]'"
        ) from error
    table = np.array([[np.nan if x is None else x for x in row] for row in labels], np.float64)
    if len(np.unique(table[~np.isnan(table)])) < 2:
        return math.nan
    return float(krippendorff.alpha(table, level_of_measurement="nominal"))


def _judgements(answer: Answer) -> Iterator[tuple[tuple[str, int, int], int]]:
    if answer.preference is not None:
        side = (answer.preference > 0.5) - (answer.preference < 0.5)
        yield (answer.query, 0, 1), {1: FIRST, 0: TIE, -1: SECOND}[side]
    elif answer.ranking is not None:
        place = {item: rank for rank, item in enumerate(answer.ranking)}
        for i, j in itertools.combinations(range(len(place)), 2):
            yield (answer.query, i, j), FIRST if place[i] < place[j] else SECOND


def _both(first: Sequence[int | None], second: Sequence[int | None]) -> list[tuple[int, int]]:
    return [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]


def _pair(
    first: str, second: str, one: Sequence[int | None], other: Sequence[int | None]
) -> PairAgreement:
    both = _both(one, other)
    mine, theirs = [a for a, _ in both], [b for _, b in both]
    return PairAgreement(
        first=first,
        second=second,
        judgements=len(both),
        same=sum(a == b for a, b in both) / len(both),
        kappa=cohen_kappa(mine, theirs),
    )
