"""What an evaluation measured, attribute by attribute, each with what it can't tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple


class Attribute(NamedTuple):
    """A number about a policy.

    Attributes:
        title: what a reader calls it, with its unit.
        cannot_tell: one sentence.
    """

    title: str
    cannot_tell: str


ATTRIBUTES: Final[dict[str, Attribute]] = {
    "win_rate": Attribute(
        "win rate",
        "It can't tell by how much an answer is better, nor whether anyone but the reward finds it "
        "better.",
    ),
    "length_controlled": Attribute(
        "win rate at equal length",
        "It can't tell length from what length stands for: an answer may be longer for a good "
        "reason.",
    ),
    "score": Attribute(
        "score",
        "It can't tell what the reward does not read, and a policy that was trained on this reward "
        "has learned what pleases it.",
    ),
    "fluency": Attribute(
        "fluency, nats per token",
        "It can't tell sense from routine: a stock phrase is the most fluent text there is.",
    ),
    "length": Attribute("length, words", "It can't tell whether the words were needed."),
    "distinct_1": Attribute(
        "distinct words",
        "It can't tell variety from nonsense, and falls with the number and the length of the "
        "answers.",
    ),
    "distinct_2": Attribute(
        "distinct bigrams",
        "It can't tell variety from nonsense, and falls with the number and the length of the "
        "answers.",
    ),
    "profanity": Attribute(
        "profane words in 1,000",
        "It can't tell a quotation from an insult, and knows no slurs and no language but English.",
    ),
    "refusals": Attribute(
        "refusal rate",
        "It can't tell whether declining was right, and knows an answer that declines by its "
        "wording alone.",
    ),
}
"""By their names in what an evaluation found, in the order in which a page shows them."""


def attributes(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was found, as :mod:`tether.learning.output.evaluations` keeps it.

    Args:
        found: as :func:`tether.language.evaluation.policy.evaluate_policy` returns it.

    Returns:
        One row for each attribute that was measured.
    """
    rival = found.get("against") or {}
    rows = []
    for name, attribute in ATTRIBUTES.items():
        if found.get(name) is None:
            continue
        value = float(found[name])
        interval = found.get("interval") if name == "win_rate" else None
        if name == "score" and found.get("score_error") is not None:
            reach = 1.96 * float(found["score_error"])
            interval = [value - reach, value + reach]
        rows.append(
            {
                "name": name,
                "title": attribute.title,
                "value": value,
                "interval": interval,
                "other": rival.get(name),
                "cannot_tell": attribute.cannot_tell,
            }
        )
    return rows
