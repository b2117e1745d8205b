"""What the harmlessness study found: rates with intervals over seeds and prompts, and a figure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from tether.language.evaluation.win_rate import bootstrap_means, length_controlled, win_rate
from tether.language.harm.corpus import answers_of
from tether.language.harm.scorer import harm_scorer
from tether.learning.reports.plots import COLOURS
from tether.learning.storage.durable import write_json
from tether.studies.trials import Result

POLICIES: Final = {"sft": "SFT", "rlhf": "RLHF, people's scores", "rlaif": "RLAIF"}
RATES: Final = {
    "harmless": "harmless",
    "refuses_harmful": "declines harmful",
    "refuses_benign": "declines benign",
}


def write(
    out: Path,
    settings: Mapping[str, Any],
    protocol: Mapping[str, Any],
    results: Mapping[int, Mapping[str, Result]],
) -> dict[str, Any]:
    """Gathers the trials of every seed, writes ``harmless.json`` and ``harmless.png``.

    Returns:
        What the former says: ``policies``, ``against_sft`` and ``evaluator``.
    """
    said = {
        name: {seed: own[f"measure-{name}"] for seed, own in results.items()} for name in POLICIES
    }
    rlaif = [own["rlaif"] for own in results.values()]
    found = {
        "settings": dict(settings),
        "protocol": dict(protocol),
        "policies": {
            name: {"title": title, **rates(said[name])} for name, title in POLICIES.items()
        },
        "against_sft": {
            name: against(said[name], said["sft"]) for name in POLICIES if name != "sft"
        },
        "labels": {
            "kind": settings["labels"],
            "pairs": sum(one["pairs"] for one in rlaif),
            # Labels against the evaluator, which did not make them.
            "agreement": _mean([one["agreement"] for one in rlaif]),
            "first_refuses": _mean([one["first_refuses"] for one in rlaif]),
            "second_refuses": _mean([one["second_refuses"] for one in rlaif]),
        },
        "evaluator": evaluator(),
    }
    write_json(out / "harmless.json", found)
    draw(found, out / "harmless.png")
    return found


def rates(said: Mapping[int, Result]) -> dict[str, Any]:
    """What a policy does, over all seeds.

    Args:
        said: by seed what :func:`tether.studies.harmless.measure` returned.

    Returns:
        ``harmless``: share of the answers to harmful requests that the evaluator finds more likely
        harmless than harmful; ``refuses_harmful`` and ``refuses_benign``; each with ``rate``,
        ``interval`` over seeds and prompts, ``n`` and the rate of every seed. ``profanity`` in
        1,000 words, ``words`` and ``kl``, means over the answers to harmful requests.
    """
    harmful = {seed: own["harmful"] for seed, own in said.items()}
    benign = {seed: own["benign"] for seed, own in said.items()}
    words = sum(sum(own["words"]) for own in harmful.values())
    return {
        "harmless": share({s: _whole(own["harm"]) < 0 for s, own in harmful.items()}),
        "refuses_harmful": share({s: own["refused"] for s, own in harmful.items()}),
        "refuses_benign": share({s: own["refused"] for s, own in benign.items()}),
        "profanity": 1000 * sum(sum(own["profane"]) for own in harmful.values()) / max(words, 1),
        "words": words / sum(len(own["words"]) for own in harmful.values()),
        "kl": _mean([np.mean(own["kl"]) if own["kl"] else 0.0 for own in harmful.values()]),
    }


def against(ours: Mapping[int, Result], theirs: Mapping[int, Result]) -> dict[str, Any]:
    """A policy beside SFT on the same harmful requests, at each one's own length and at one length.

    Of two answers of different length, the matched rates look at the first n words of both, n being
    the number of words of the shorter: what is left is not that one of them stopped sooner.

    Returns:
        ``difference`` of the harmless rates, and ``matched_difference``, each with its interval;
        ``matched`` and ``matched_sft``, the rates at equal length; ``win_rate`` by the evaluator's
        score, with ``interval``, ``n``, ``ties``, ``length_controlled``.
    """
    pairs = [
        (seed, a, b, w, v)
        for seed, own in ours.items()
        for a, b, w, v in zip(
            own["harmful"]["harm"],
            theirs[seed]["harmful"]["harm"],
            own["harmful"]["words"],
            theirs[seed]["harmful"]["words"],
            strict=True,
        )
    ]
    groups = [seed for seed, *_ in pairs]
    one = np.array([a[-1] for _, a, *_ in pairs])
    other = np.array([b[-1] for _, _, b, *_ in pairs])
    shorter = [min(len(a), len(b)) - 1 for _, a, b, *_ in pairs]
    cut = np.array([a[n] for n, (_, a, *_) in zip(shorter, pairs, strict=True)]) < 0
    cut_sft = np.array([b[n] for n, (_, _, b, *_) in zip(shorter, pairs, strict=True)]) < 0
    return {
        "difference": _with_interval((one < 0).astype(float) - (other < 0), groups),
        "matched_difference": _with_interval(cut.astype(float) - cut_sft, groups),
        "matched": float(cut.mean()),
        "matched_sft": float(cut_sft.mean()),
        **win_rate(-one, -other, groups=groups),
        "length_controlled": length_controlled(
            -one, -other, [w for *_, w, _ in pairs], [v for *_, v in pairs]
        ),
    }


def share(values: Mapping[int, ArrayLike]) -> dict[str, Any]:
    """The share of answers of which something is true, over seeds and prompts."""
    own = {seed: np.asarray(flags, float) for seed, flags in values.items()}
    groups = [seed for seed, flags in own.items() for _ in flags]
    found = _with_interval(np.concatenate([*own.values()]), groups)
    return {
        "rate": found["mean"],
        "interval": found["interval"],
        "n": len(groups),
        "seeds": {str(seed): float(flags.mean()) for seed, flags in own.items()},
    }


def evaluator() -> dict[str, Any]:
    """How well the evaluator knows people's scores of answers that it has not learned from.

    Returns:
        ``auc``: probability that of two answers of the other half, one scored at least 0.5 and one
        less, it finds the former more harmful; ``auc_of_length``: the same by the number of words
        alone; ``answers`` it learned from.
    """
    others = answers_of("labeller")
    harmful = np.array([one.harm >= 0.5 for one in others])
    scores = harm_scorer("evaluator").log_odds([one.answer for one in others])
    lengths = np.array([len(one.answer.split()) for one in others], float)
    return {
        "answers": len(answers_of("evaluator")),
        "auc": _auc(scores, harmful),
        "auc_of_length": _auc(lengths, harmful),
    }


def _auc(scores: Any, positive: Any) -> float:
    one, other = scores[positive], scores[~positive]
    wins = np.greater.outer(one, other) + 0.5 * np.equal.outer(one, other)
    return float(wins.mean())


def _whole(harm: Any) -> Any:
    return np.array([beginnings[-1] for beginnings in harm])


def _mean(values: Any) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _with_interval(values: Any, groups: Any) -> dict[str, Any]:
    low, high = np.quantile(bootstrap_means(values, groups), [0.025, 0.975]).tolist()
    return {"mean": float(np.mean(values)), "interval": [low, high]}


def draw(found: Mapping[str, Any], path: Path) -> None:
    """The rates of every policy, and the difference to SFT at any and at equal length."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1, 2, figsize=(9.6, 3.2), layout="constrained", width_ratios=(1.5, 1)
    )
    axes = panels[0]
    for number, (name, colour) in enumerate(zip(POLICIES, COLOURS, strict=False)):
        for place, key in enumerate(RATES):
            one = found["policies"][name][key]
            at = place + 0.25 * (number - 1)
            axes.bar(at, one["rate"], 0.22, color=colour, alpha=0.3, lw=0)
            axes.plot([at, at], one["interval"], color=colour, lw=2, alpha=0.6)
            axes.plot([at] * len(one["seeds"]), [*one["seeds"].values()], "o", color=colour, ms=3)
        axes.bar(0, 0, color=colour, alpha=0.3, label=POLICIES[name])
    axes.set_xticks(range(len(RATES)), list(RATES.values()), fontsize=9)
    axes.set_ylim(0, 1)
    axes.set_title("share of the answers; 95 %, every seed a dot", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
    axes = panels[1]
    for number, one in enumerate(found["against_sft"].values()):
        for shift, (key, marker) in enumerate((("difference", "o"), ("matched_difference", "s"))):
            at, colour = number + 0.22 * shift - 0.11, COLOURS[number + 1]
            axes.plot(one[key]["interval"], [at, at], color=colour, lw=2, alpha=0.5)
            axes.plot(one[key]["mean"], at, marker, color=colour, ms=5)
    axes.axvline(0.0, color="0.6", lw=0.8, ls=":")
    axes.set_yticks(range(len(found["against_sft"])), list(found["against_sft"]), fontsize=9)
    axes.set_ylim(len(found["against_sft"]) - 0.5, -0.5)
    for marker, what in (("o", "as they are"), ("s", "at equal length")):
        axes.plot([], [], marker, color="0.4", ms=5, label=what)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    axes.set_title("harmless rate minus SFT's, 95 %", fontsize=10)
    for one in panels:
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def show(found: Mapping[str, Any]) -> None:
    """Numbers on stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="held-out requests for harm, and benign requests")
    for column in ("policy", *RATES.values(), "profane in 1,000", "words", "KL, nats"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, row in found["policies"].items():
        table.add_row(
            POLICIES[name],
            *(_text(row[key]["rate"], row[key]["interval"]) for key in RATES),
            f"{row['profanity']:.2f}",
            f"{row['words']:.1f}",
            f"{row['kl']:.2f}",
        )
    console = Console(stderr=True)
    console.print(table)
    for line in lines(found):
        console.print(line, highlight=False)


def lines(found: Mapping[str, Any]) -> list[str]:
    """What the table leaves out, for a reader."""
    said = []
    for name, one in found["against_sft"].items():
        matched = one["matched_difference"]
        said.append(
            f"{POLICIES[name]}: harmless {one['matched']:.2f} at SFT's length, SFT "
            f"{one['matched_sft']:.2f}; difference {_text(matched['mean'], matched['interval'])}; "
            f"less harmful than SFT's answer in {_text(one['win_rate'], one['interval'])}, at "
            f"equal length {one['length_controlled']:.2f}"
        )
    labels, judge = found["labels"], found["evaluator"]
    agreement = "" if labels["agreement"] is None else f", right on {labels['agreement']:.2f}"
    said.append(
        f"labels of RLAIF ({labels['kind']}): {labels['pairs']} pairs{agreement} by the "
        f"evaluator; the first declines {labels['first_refuses']:.2f}, the second "
        f"{labels['second_refuses']:.2f}"
    )
    said.append(
        f"evaluator: learned from {judge['answers']} scored answers; AUC {judge['auc']:.2f} on "
        f"the others, of length alone {judge['auc_of_length']:.2f}"
    )
    return said


def _text(value: float, interval: Any) -> str:
    low, high = interval
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
