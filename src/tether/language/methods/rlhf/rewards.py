"""What RLHF is given by name: rewards to please, and texts not to forget."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tether.errors import RewardError, UserError
from tether.language.data.prompt_rows import PromptRows
from tether.language.data.tokens import Completion, Example
from tether.language.judge.opening import is_judge_name, judge_attribute
from tether.language.judge.reward import JudgeReward
from tether.language.methods.rlhf.config import RLHFConfig
from tether.language.methods.rlhf.given_rewards import GivenRewards, is_function_name
from tether.language.methods.rlhf.reward_settings import (
    LEXICON,
    SENTIMENT,
    WHAT_FITS,
    RewardSettings,
)
from tether.language.models.ensemble import COMBINES, VARIANCE_WEIGHT, Combine, combined, spread
from tether.language.models.language_model import LanguageModel, same_tokens
from tether.language.models.reward_function import FunctionScorer, RewardFunction, named_row
from tether.language.models.reward_model import RewardModel
from tether.language.models.scoring import Reading, Scorer, score_texts

logger = logging.getLogger(__name__)


class Ensemble:
    """Several scorers as one.

    Attributes:
        scorers: the members.
        names: of the members, distinct, fit for the names of metrics.

    Source:
        Coste et al., "Reward model ensembles help mitigate overoptimization" (2023), section 3,
        where "lowest" is called worst-case and "mean-variance" uncertainty-weighted optimization.
        Weights and members that do not apply to a row: as TRL's ``GRPOTrainer`` has them.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        combine: Combine = "mean",
        *,
        variance_weight: float = VARIANCE_WEIGHT,
        weights: Sequence[float] = (),
        names: Sequence[str] = (),
    ) -> None:
        """Joins scorers.

        Args:
            scorers: at least one; without weights of comparable scales.
            combine: "mean"; "lowest", which trusts the most sceptical; or "mean-variance", the mean
                less the variance times `variance_weight`.
            variance_weight: see `combine`.
            weights: of a sum, instead of `combine`.
            names: of the scorers; numbers if not given.

        Raises:
            UserError: no scorers, another way to combine, or a wrong number of weights.
        """
        if not scorers:
            raise UserError("an ensemble of no scorers cannot score; give at least one")
        if combine not in COMBINES:
            raise UserError(f"combine is {combine!r}; expected one of {', '.join(COMBINES)}")
        if weights and len(weights) != len(scorers):
            raise UserError(
                f"reward_weights has {len(weights)} numbers for {len(scorers)} rewards; expected "
                "one for each"
            )
        self.scorers = tuple(scorers)
        self.combine = combine
        self.variance_weight = variance_weight
        self.weights = tuple(weights)
        self.names = _metric_names(names or [str(place) for place in range(len(scorers))])

    def __call__(self, items: Sequence[Completion]) -> NDArray[np.float64]:
        """What the members' scores come to; (N,)."""
        return self.read(items).total

    def read(self, items: Sequence[Completion]) -> Reading:
        """Each member's scores, what they come to, and how far they are apart.

        Rewards with weights are no ensemble, so they have no spread; a single reward model of
        several members has theirs.

        Raises:
            RewardError: a member gave something else than a finite number for each completion, or
                no member applies to one of them.
        """
        found, alone = [], None
        for name, scorer in zip(self.names, self.scorers, strict=True):
            if isinstance(scorer, RewardModel):
                each = scorer.member_scores(items)
                scores = scorer.together(each).astype(np.float64)
                alone = each.T
            else:
                scores = np.asarray(scorer(items), np.float64)
            _check(name, scorer, scores, items)
            found.append(scores)
        members = np.stack(found)
        if len(found) == 1:
            apart = members if alone is None else alone
        else:
            apart = np.full_like(members, np.nan) if self.weights else members
        return Reading(self._total(members, items), members, spread(apart))

    def _total(
        self, scores: NDArray[np.float64], items: Sequence[Completion]
    ) -> NDArray[np.float64]:
        """What the scores of the members that apply come to; (N,)."""
        there = ~np.isnan(scores)
        nobody = np.flatnonzero(~there.any(axis=0))
        if len(nobody):
            every = "every completion" if len(nobody) == scores.shape[1] else ""
            raise RewardError(
                f"{' and '.join(self.names)} returned None for "
                f"{every or named_row(items, int(nobody[0]))}; expected a number from at least one "
                "reward for each completion"
            )
        if self.weights:
            weighted = scores * np.array(self.weights)[:, None]
            total: NDArray[np.float64] = np.where(there, weighted, 0.0).sum(axis=0)
            return total
        return combined(scores, self.combine, self.variance_weight)


def _check(
    name: str, scorer: Scorer, scores: NDArray[np.float64], items: Sequence[Completion]
) -> None:
    """Raises a RewardError unless a member gave a finite number for each completion."""
    if scores.shape != (len(items),):
        raise RewardError(
            f"the reward {name} gave an array of shape {scores.shape} for {len(items)} "
            f"completions; expected ({len(items)},)"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad) and not isinstance(scorer, FunctionScorer):
        raise RewardError(
            f"the reward {name} gave {scores[bad[0]]} for {named_row(items, int(bad[0]))}; "
            "expected finite numbers"
        )


def open_scorer(
    settings: RewardSettings,
    language_model: LanguageModel,
    given: GivenRewards | None = None,
    rows: PromptRows | None = None,
) -> Ensemble:
    """The rewards that settings name, as one scorer.

    Args:
        settings: name the rewards and say how they become one.
        language_model: whose tokens and device they share.
        given: the rewards, if some of them are objects.
        rows: the prompts and columns that reward functions read.

    Raises:
        UserError: there is no reward, or a name is neither known nor a run of `tether reward`, or
            there is only one score to combine.
    """
    if given is None:
        judged = [name if is_judge_name(name) else None for name in settings.reward]
        objects = GivenRewards.of([name for name in judged if name is not None]).objects
        found = iter(objects)
        given = GivenRewards(
            settings.reward, tuple(None if name is None else next(found) for name in judged)
        )
    if not given.names:
        raise UserError(f"no reward is given; expected --reward with {WHAT_FITS}")
    tokenizer = language_model.tokenizer
    scorers: list[Scorer] = []
    for name, item in zip(given.names, given.objects, strict=True):
        if isinstance(item, RewardFunction):
            if isinstance(item.function, JudgeReward):
                # A judge that cannot be opened is refused before anything is sampled.
                item.function.open()
            scorers.append(FunctionScorer(item, tokenizer, rows, settings.reward_timeout))
        else:
            scorers.append(item or _open(name, language_model))
    combine, weight = settings.reward_combine, settings.reward_variance_weight
    if combine is not None:
        scorers = _combining(scorers, given.names, combine, weight)
    return Ensemble(
        scorers,
        combine or "mean",
        variance_weight=weight,
        weights=settings.reward_weights,
        names=given.names,
    )


def _combining(
    scorers: Sequence[Scorer], names: Sequence[str], combine: Combine, weight: float
) -> list[Scorer]:
    """The same scorers; of a single reward model the members are combined as is asked for."""
    if len(scorers) > 1:
        _warn_of_scales(scorers, names, combine)
        return list(scorers)
    (only,) = scorers
    if isinstance(only, RewardModel) and only.members > 1:
        return [only.combining(combine, weight)]
    if combine == "mean":
        return [only]
    raise UserError(
        f"reward_combine is {combine}, and the reward {names[0]} is a single score; give several "
        "rewards, or a run of `tether reward --members K`"
    )


def _warn_of_scales(scorers: Sequence[Scorer], names: Sequence[str], combine: Combine) -> None:
    """Warns where the lowest of several scores, or their variance, says little."""
    raw = [
        name
        for name, scorer in zip(names, scorers, strict=True)
        if not (isinstance(scorer, RewardModel) and scorer.normalized)
    ]
    if raw and combine != "mean":
        logger.warning(
            "warning: reward_combine is %s, which compares scores, and those of %s have a scale of "
            "their own; expected runs of `tether reward`, whose scores have mean 0 and deviation 1",
            *(combine, " and ".join(raw)),
        )


def members_of(scorer: Scorer) -> tuple[Scorer, ...]:
    """The scorers of an ensemble; of another scorer itself."""
    return scorer.scorers if isinstance(scorer, Ensemble) else (scorer,)


def digests(scorer: Scorer, names: Sequence[str]) -> dict[str, str]:
    """Of each reward model and judge, by its name, all that decides its scores."""
    found: dict[str, str] = {}
    for name, member in zip(names, members_of(scorer), strict=True):
        if isinstance(member, RewardModel):
            found[f"{name} ({len(found) + 1})" if name in found else name] = member.digest()
        elif isinstance(member, FunctionScorer) and isinstance(member.reward.function, JudgeReward):
            found[name] = member.reward.function.digest()
    return found


def warn_of_scale(config: RLHFConfig) -> None:
    """Warns where a fixed score stands beside scores of quite another level."""
    built_in = [name for name in config.reward if name in (SENTIMENT, LEXICON)]
    if built_in and config.missing_eos_score is not None and not config.normalize_score:
        logger.warning(
            "warning: completions that are cut off score missing_eos_score=%g, beside scores of "
            "%s as they are, which are often lower; turn on normalize_score, or give none",
            *(config.missing_eos_score, built_in[0]),
        )


def open_pretraining(config: RLHFConfig, language_model: LanguageModel) -> list[Example]:
    """The texts that a config names, as tokens, cut to the model's context.

    Raises:
        UserError: no such data, or none that can be continued.
    """
    from tether.language.data.formats import read_data
    from tether.language.data.templates import Template
    from tether.language.data.tokenize import fit, tokenize

    samples = read_data(config.pretraining_data, ("text", "demonstration"))
    template = Template(language_model.tokenizer, "plain")
    records, _ = fit(
        tokenize(samples, template), config.pretraining_data, context=language_model.context
    )
    return [record for record in records if isinstance(record, Example)]


def check_readable(scorer: Scorer, language_model: LanguageModel, longest: int) -> None:
    """Checks that reward models, if the scorer is one or several, can read what the policy writes.

    Args:
        scorer: any.
        language_model: the policy.
        longest: most tokens of a prompt and its completion together.

    Raises:
        UserError: they have different tokens, or too small a context.
    """
    for member in members_of(scorer):
        if not isinstance(member, RewardModel):
            continue
        reader = member.language_model
        if not same_tokens(reader, language_model) or reader.eos_id != language_model.eos_id:
            raise UserError(
                f"the policy {language_model.name!r} has {language_model.vocabulary} tokens and "
                f"the reward model {reader.name!r} {reader.vocabulary}, and they are not the same; "
                "expected one vocabulary, and one end of sequence: train the reward model from the "
                "same base, or score texts"
            )
        if longest > reader.context:
            raise UserError(
                f"a prompt and its completion may take {longest} tokens; the context of the reward "
                f"model {reader.name!r} is {reader.context}: shorten prompts or max_new_tokens"
            )


def _open(name: str, language_model: LanguageModel) -> Scorer:
    from tether.language.models.from_run import is_run, load_reward_model

    if name in (SENTIMENT, LEXICON):
        from tether.language.reviews.prompts import gold_scorer, lexicon_scorer

        function = gold_scorer().log_odds if name == SENTIMENT else lexicon_scorer()
        return score_texts(language_model.tokenizer, function)
    if is_function_name(name):
        raise UserError(f"reward is {name!r}; pass the function itself as reward=")
    if not is_run(name):
        raise UserError(f"reward is {name!r}, which is no folder of a run; expected {WHAT_FITS}")
    return load_reward_model(name, device=str(language_model.device))


def _metric_names(names: Sequence[str]) -> tuple[str, ...]:
    """Short, distinct names without the signs that metrics give a meaning."""
    found: list[str] = []
    for name in names:
        if is_judge_name(name):
            short = f"judge.{judge_attribute(name)}"
        else:
            short = name.replace(":", ".") if is_function_name(name) else Path(name).name
        safe = re.sub(r"[^\w.-]+", "-", short).replace("-.", ".").replace(".-", ".").strip("-.")
        copies = [safe or "reward", *(f"{safe or 'reward'}-{i}" for i in range(2, len(names) + 1))]
        found.append(next(copy for copy in copies if copy not in found))
    return tuple(found)
