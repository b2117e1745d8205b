"""Over-optimisation: PPO on a reward model until what was meant is lost, and remedies for it.

    1. tune a language model on openings of film reviews: the reference
    2. continue openings; the gold scorer compares continuations; a share of its answers is flipped
    3. learn reward models from 100 to 6,000 of these comparisons, and from those of one size the
       further members of an ensemble
    4. best of n by every reward model, and PPO on every reward model without a KL penalty
    5. PPO on two proxies that nobody learned: the number of words, and a count of positive words
    6. from the reward model of one size, PPO with each remedy: a KL penalty, a budget, an
       ensemble (mean, lowest, mean less variance), clipped scores, an early stop
    7. measure every policy while it learns: proxy, gold reward, and the truth, which is positive
       and fluent (:mod:`tether.studies.overoptimisation_truth`)

Source:
    Gao et al., "Scaling laws for reward model overoptimization" (2022); Coste et al., "Reward model
    ensembles help mitigate overoptimization" (2023), whose labels are wrong with probability 0.25.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from tether.errors import UserError
from tether.language.data.tokens import Pair
from tether.language.evaluation.texts import distinct, words_of
from tether.language.evaluation.win_rate import outcomes
from tether.language.methods.best_of_n import best_of_n_kl, expected_best_of_n
from tether.language.methods.rlhf.rewards import Ensemble
from tether.language.models.ensemble import Combine, combined
from tether.language.models.files import find_folder
from tether.language.models.from_run import is_run, load_reward_model, open_model
from tether.language.models.language_model import LanguageModel
from tether.language.models.scoring import Scorer, score_texts
from tether.language.reviews.prompts import lexicon_scorer
from tether.learning.output.metrics import read_metrics
from tether.learning.seeding import Stream, derived_seed, generator
from tether.learning.storage.durable import write_json
from tether.studies import overoptimisation_report as report
from tether.studies import sentiment_runs as runs
from tether.studies.command_line import carry_out
from tether.studies.language_runs import Watch, frozen, in_stages, learn
from tether.studies.overoptimisation_truth import fluency_of_people, judge
from tether.studies.sentiment import SentimentConfig, measure, pairs_in
from tether.studies.trials import Result, Trial

REFERENCE: Final = "reference"
BEST_OF: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_HELD_OUT: Final = 0.1
"""The share of the rankings on which reward models are measured."""


class OveroptimisationConfig(SentimentConfig):
    """Settings of the study; the defaults take about an hour on two cores."""

    prompts: int = Field(default=2400, ge=2)
    """Prompts whose continuations are compared; a tenth of them is held out."""
    ppo_learning_rate: float = Field(default=3e-4, gt=0)
    """The step size of PPO: twice the other studies', so that policies go past 30 nats soon."""
    episodes: int = Field(default=2048, ge=1)
    """Completions that PPO samples in training."""
    comparisons: tuple[int, ...] = (100, 300, 1000, 3000, 6000)
    """How many comparisons the reward models learn from; each learns from the first of them."""
    flipped: float = Field(default=0.25, ge=0, lt=0.5)
    """The share of the comparisons whose answer is the wrong one."""
    remedy_comparisons: int = Field(default=300, ge=2)
    """The reward model on which the remedies are tried: its number of comparisons."""
    members: int = Field(default=5, ge=2)
    """Reward models in the ensemble, all of the same comparisons."""
    fluency: str = REFERENCE
    """The model that says how fluent a text is: reference, the tuned model itself; or a larger one,
    such as smollm2-135m-instruct, which takes much longer."""
    measurements: int = Field(default=8, ge=2)
    """How often each policy is measured while it trains."""
    best_of_prompts: int = Field(default=32, ge=2)
    """Held-out prompts for best-of-n, each sampled 256 times."""
    kl_coefficient: float = Field(default=0.1, gt=0)
    """The KL coefficient of the remedy `kl-penalty`."""
    budget: float = Field(default=5.0, gt=0)
    """The divergence of a sequence, in nats, at which the remedy with a budget ends."""
    clip: float = Field(default=0.5, gt=0)
    """The limit of the clipped scores, in standard deviations of the reward model's scores."""
    variance_weight: float = Field(default=0.5, ge=0)
    """The weight of the ensemble's variance."""
    patience: int = Field(default=2, ge=1)
    """Measurements without a new best truth after which the early stop ends training."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if not self.comparisons or min(self.comparisons) < 2:
            raise ValueError(f"comparisons is {self.comparisons}; expected numbers of at least 2")
        if self.remedy_comparisons not in self.comparisons:
            raise ValueError(
                f"remedy_comparisons is {self.remedy_comparisons}, which is not one of comparisons "
                f"{self.comparisons}"
            )
        learned = self.prompts - math.ceil(_HELD_OUT * self.prompts)
        most = learned * math.comb(self.samples, 2)
        if most < max(self.comparisons):
            raise ValueError(
                f"comparisons has {max(self.comparisons)}, and {self.prompts} prompts give at most "
                f"{most} to learn from; raise prompts or samples"
            )
        return self


class Arm(NamedTuple):
    """A training by PPO.

    Attributes:
        size: comparisons of its reward models.
        members: how many of them it is paid by.
        combine: how they become one.
        settings: of PPO; there is no KL penalty unless they have one.
        written: the proxy that is written by hand, in place of reward models.
    """

    size: int = 0
    members: int = 1
    combine: Combine = "mean"
    settings: Mapping[str, float] = {}
    written: Literal["words", "lexicon"] | None = None


def arms(config: OveroptimisationConfig) -> dict[str, Arm]:
    """Every training, by name: one for each proxy, and one for each remedy."""
    one, all_members = config.remedy_comparisons, config.members
    return {
        **{f"ppo-{size}": Arm(size) for size in sorted(config.comparisons, reverse=True)},
        # All other scores have a deviation of about 1 as they come.
        "words": Arm(written="words", settings={"normalize_score": True}),
        "lexicon": Arm(written="lexicon"),
        "kl-penalty": Arm(one, settings={"beta": config.kl_coefficient}),
        "budget": Arm(one, settings={"kl_budget": config.budget}),
        "ensemble-mean": Arm(one, all_members, "mean"),
        "ensemble-lowest": Arm(one, all_members, "lowest"),
        "ensemble-mean-variance": Arm(one, all_members, "mean-variance"),
        "clip": Arm(one, settings={"clip_score": config.clip}),
    }


def run(
    config: OveroptimisationConfig, out: Path, *, workers: int = 2, cluster: str | None = None
) -> dict[str, Any]:
    """Carries out what is left of the study in `out`, draws it and tabulates it.

    Args:
        config: the settings; those of an earlier start in `out`.
        out: the study's folder.
        workers: policies that learn side by side.
        cluster: ``local`` or the address of a Ray cluster that does them in their place.

    Returns:
        What ``overoptimisation.json`` says.

    Raises:
        UserError: `out` holds a study with other settings, or cannot be written, or the seeds are
            of two kinds, or too few continuations differ.
    """
    if config.fluency != REFERENCE and not is_run(config.fluency):
        # Before anything is written, and before the user is kept waiting.
        find_folder(config.fluency)
    stages = (*runs.to_a_reward_model(tune)[:2], reward_models, sweep)
    said, results = in_stages(config, out, stages, workers=workers, cluster=cluster)
    return report.write(out, config.dump(), said, results)


def reward_models(settings: Mapping[str, Any]) -> list[Trial]:
    """A reward model of each size, and the further members; those that take longest first."""
    config = OveroptimisationConfig.load(settings)
    wanted = [(size, 0) for size in sorted(config.comparisons, reverse=True)]
    wanted += [(config.remedy_comparisons, member) for member in range(1, config.members)]
    return [
        Trial(name_of(size, member), learn_reward, {**settings, "size": size, "member": member})
        for size, member in wanted
    ]


def name_of(size: int, member: int) -> str:
    """The trial of a reward model."""
    return f"reward-{size}" if member == 0 else f"reward-{size}-{member}"


def sweep(settings: Mapping[str, Any]) -> list[Trial]:
    """Best of n, which takes longest, and every training."""
    config = OveroptimisationConfig.load(settings)
    trainings = [Trial(name, reinforce, {**settings, "arm": name}) for name in arms(config)]
    return [Trial("best-of-n", choose, settings), *trainings]


def tune(settings: Mapping[str, Any], place: Path) -> Result:
    """The reference, and how fluent people are to the reader."""
    config = OveroptimisationConfig.load(settings)
    tuned = runs.tune(config, place, positive=None)
    bar = fluency_of_people(
        tuned.tokenizer,
        _reader(config, tuned),
        count=config.test_prompts,
        new_tokens=config.new_tokens,
        seed=config.seed,
    )
    # The trials after this one read it.
    write_json(place / "fluency.json", {"bar": bar})
    return {"bar": bar}


def learn_reward(settings: Mapping[str, Any], place: Path) -> Result:
    """A reward model of the first comparisons, some flipped; its accuracy on others as they are."""
    config = OveroptimisationConfig.load_part(settings)
    rankings = runs.rankings_of(place)
    cut = len(rankings) - math.ceil(_HELD_OUT * len(rankings))
    learned, held_out = pairs_in(rankings[:cut]), pairs_in(rankings[cut:])
    size = settings["size"]
    if len(learned) < size:
        raise UserError(
            f"{config.prompts} prompts gave {len(learned):,} comparisons of continuations that "
            f"differ, fewer than {size:,}; raise prompts"
        )
    seed = derived_seed(config.seed, Stream.MEMBERS, settings["member"]) % 2**31
    pairs = flip(learned[:size], config.flipped, config.seed)
    runs.learn_reward(config, place, pairs, held_out=0.0, seed=seed)
    model = load_reward_model(place / "run", device=config.device)
    scores = model([item for pair in held_out for item in pair.as_completions()]).reshape(-1, 2)
    right = outcomes(scores[:, 0], scores[:, 1])
    return {"accuracy": float(right.mean()), "held_out": len(held_out)}


def flip(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
    """The pairs, of which about a share has its completions in the wrong order.

    Whether the i-th pair is flipped depends on the seed and i alone, so that more pairs begin with
    fewer.
    """
    draws = generator(seed, Stream.FLIPPED_LABELS).random(len(pairs))
    return [
        Pair(pair.prompt_ids, pair.rejected_ids, pair.chosen_ids) if draw < share else pair
        for draw, pair in zip(draws, pairs, strict=True)
    ]


def reinforce(settings: Mapping[str, Any], place: Path) -> Result:
    """PPO on a proxy, measured from the reference to the end."""
    config = OveroptimisationConfig.load_part(settings)
    arm = arms(config)[settings["arm"]]
    reference = frozen(runs.tuned_run(place), device=config.device)
    scorer = _proxy(config, arm, reference, place)
    measured = _Measurement(config, reference, scorer, place)
    watch = Watch(max(1, config.episodes // config.measurements), measured)
    policy = learn(
        place / "run",
        "rlhf",
        runs.ppo_config(config, **{"beta": 0.0, **arm.settings}),
        config.setup(runs.tuned_run(place)),
        runs.ppo_prompts(config, reference.tokenizer),
        total_steps=config.episodes,
        watch=watch,
        scorer=scorer,
    )
    rows = [{"step": 0, **measured(reference)}, *watch.rows]
    last = int(list(read_metrics(place / "run" / "metrics.jsonl"))[-1]["step"])
    if rows[-1]["step"] < last:
        rows.append({"step": last, **measured(policy)})
    return {"points": rows}


def _proxy(
    config: OveroptimisationConfig, arm: Arm, reference: LanguageModel, place: Path
) -> Scorer:
    if arm.written is not None:
        function = lexicon_scorer() if arm.written == "lexicon" else _count_words
        return score_texts(reference.tokenizer, function)
    models = [
        load_reward_model(place.parent / name_of(arm.size, member) / "run", device=config.device)
        for member in range(arm.members)
    ]
    return Ensemble(models, arm.combine, variance_weight=config.variance_weight)


def _count_words(texts: Sequence[str]) -> list[int]:
    return [len(words_of(text)) for text in texts]


class _Measurement:
    """What is measured of a policy, always on the same prompts and with the same random numbers."""

    def __init__(
        self, config: OveroptimisationConfig, reference: LanguageModel, scorer: Scorer, place: Path
    ) -> None:
        self.config, self.reference, self.scorer = config, reference, scorer
        self.reader, self.bar = _reader(config, reference), _bar(place)
        self.prompts = config.held_out_prompts(reference.tokenizer)

    def __call__(self, policy: LanguageModel) -> dict[str, float]:
        """Means, and for gold reward and truth those of every other prompt, and of the rest.

        ``distinct`` is the share of distinct pairs of words in all continuations together.
        """
        config = self.config
        found = measure(
            policy,
            self.reference,
            self.prompts,
            new_tokens=config.new_tokens,
            seed=derived_seed(config.seed, Stream.MEASUREMENT),
        )
        seen = judge(self.reference.tokenizer, found.completions, self.reader, self.bar)
        halves = {
            f"{name}_{half}": float(values[start::2].mean())
            for name, values in (("log_odds", seen.log_odds), ("truth", seen.truth))
            for start, half in enumerate(("even", "odd"))
        }
        return {
            **found.summary(),
            "distinct": distinct(seen.said, 2) or 0.0,
            "proxy": float(np.asarray(self.scorer(found.completions), float).mean()),
            "fluency": float(seen.fluency.mean()),
            "fluent": float(seen.fluent.mean()),
            "truth": float(seen.truth.mean()),
            **halves,
        }


def choose(settings: Mapping[str, Any], place: Path) -> Result:
    """Best of n by every reward model and ensemble, for every n from one set of samples."""
    config = OveroptimisationConfig.load_part(settings)
    reference = frozen(runs.tuned_run(place), device=config.device)
    most = max(BEST_OF)
    sampled = runs.samples_to_choose_from(
        config, reference, prompts=config.best_of_prompts, samples=most
    )
    seen = judge(reference.tokenizer, sampled, _reader(config, reference), _bar(place))

    def scores_of(size: int, member: int) -> Any:
        model = load_reward_model(
            place.parent / name_of(size, member) / "run", device=config.device
        )
        return np.asarray(model(sampled), np.float64)

    proxies = {f"{size}": scores_of(size, 0) for size in config.comparisons}
    members = [proxies[f"{config.remedy_comparisons}"]]
    members += [scores_of(config.remedy_comparisons, member) for member in range(1, config.members)]
    for combine in ("mean", "lowest", "mean-variance"):
        together = combined(np.stack(members), combine, config.variance_weight)
        proxies[f"ensemble-{combine}"] = together
    points = {}
    for name, proxy in proxies.items():
        table = {"proxy": proxy, "log_odds": seen.log_odds, "truth": seen.truth}
        points[name] = [
            {
                "n": n,
                "kl": float(best_of_n_kl(n)),
                **{
                    key: float(
                        expected_best_of_n(
                            proxy.reshape(-1, most), n, values.reshape(-1, most)
                        ).mean()
                    )
                    for key, values in table.items()
                },
            }
            for n in BEST_OF
        ]
    return {"points": points}


def _reader(config: OveroptimisationConfig, reference: LanguageModel) -> LanguageModel:
    if config.fluency == REFERENCE:
        return reference
    return open_model(config.fluency, device=config.device)


def _bar(place: Path) -> float:
    found = json.loads((place.parent / "sft" / "fluency.json").read_text(encoding="utf-8"))
    return float(found["bar"])


def command(arguments: Sequence[str]) -> None:
    """`tether study overoptimisation`."""
    carry_out(
        "overoptimisation",
        "Optimize learned rewards until the true reward falls, and compare remedies.",
        OveroptimisationConfig,
        run,
        report.show,
        arguments,
        workers="Policies that learn side by side, each on one core; 1 on a GPU.",
    )
