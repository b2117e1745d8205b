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
from tether.language.judge.reward import JudgeReward, is_judge_name
from tether.language.methods.rlhf.config import RLHFConfig
from tether.language.methods.rlhf.given_rewards import GivenRewards, is_function_name
from tether.language.methods.rlhf.reward_settings import (
    LEXICON,
    SENTIMENT,
    WHAT_FITS,
    RewardSettings,
)
from tether.language.models.language_model import LanguageModel, same_tokens
from tether.language.models.reward_function import FunctionScorer, RewardFunction, named_row
from tether.language.models.reward_model import Combine, RewardModel
from tether.language.models.scoring import Scorer, score_texts

logger = logging.getLogger(__name__)


class Ensemble:
    """Several scorers as one.

    Attributes:
        scorers: the members.
        names: of the members, distinct, fit for the names of metrics.

    Source:
        Coste et al., "Reward model ensembles help mitigate overoptimization" (2023), section 3,
        where "lowest" is called worst-case optimization. Weights and members that do not apply to
        a row: as TRL's ``GRPOTrainer`` has them.
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        combine: Combine = "mean",
        *,
        weights: Sequence[float] = (),
        names: Sequence[str] = (),
    ) -> None:
        """Joins scorers.

        Args:
            scorers: at least one; without weights of comparable scales.
            combine: "mean", or "lowest", which trusts the most sceptical.
            weights: of a sum, instead of `combine`.
            names: of the scorers; numbers if not given.

        Raises:
            UserError: no scorers, another way to combine, or a wrong number of weights.
        """
        if not scorers:
            raise UserError("an ensemble of no scorers cannot score; give at least one")
        if combine not in ("mean", "lowest"):
            raise UserError(f"combine is {combine!r}; expected 'mean' or 'lowest'")
        if weights and len(weights) != len(scorers):
            raise UserError(
                f"reward_weights has {len(weights)} numbers for {len(scorers)} rewards; expected "
                "one for each"
            )
        self.scorers = tuple(scorers)
        self.combine = combine
        self.weights = tuple(weights)
        self.names = _metric_names(names or [str(place) for place in range(len(scorers))])

    def __call__(self, items: Sequence[Completion]) -> NDArray[np.float64]:
        """What the members' scores come to; (N,)."""
        return self.total(self.members(items), items)

    def members(self, items: Sequence[Completion]) -> NDArray[np.float64]:
        """Each member's scores, NaN where a function does not apply; (members, N).

        Raises:
            RewardError: a member gave something else than a finite number for each completion.
        """
        found = []
        for name, scorer in zip(self.names, self.scorers, strict=True):
            scores = np.asarray(scorer(items), np.float64)
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
            found.append(scores)
        return np.stack(found)

    def total(
        self, scores: NDArray[np.float64], items: Sequence[Completion]
    ) -> NDArray[np.float64]:
        """The weighted sum, the mean or the lowest of the members that apply; (N,).

        Args:
            scores: as :meth:`members` gives them.
            items: the completions, named in errors.

        Raises:
            RewardError: no member applies to one of the completions.
        """
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
        elif self.combine == "mean":
            total = np.where(there, scores, 0.0).sum(axis=0) / there.sum(axis=0)
        else:
            total = np.where(there, scores, np.inf).min(axis=0)
        return total


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
        UserError: there is no reward, or a name is neither known nor a run of `tether reward`.
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
    return Ensemble(
        scorers, settings.reward_combine, weights=settings.reward_weights, names=given.names
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
            short = f"judge.{Path(name.partition(':')[2].partition('@')[0]).stem}"
        else:
            short = name.replace(":", ".") if is_function_name(name) else Path(name).name
        safe = re.sub(r"[^\w.-]+", "-", short).replace("-.", ".").replace(".-", ".").strip("-.")
        copies = [safe or "reward", *(f"{safe or 'reward'}-{i}" for i in range(2, len(names) + 1))]
        found.append(next(copy for copy in copies if copy not in found))
    return tuple(found)
