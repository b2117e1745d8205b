"""What RLHF is given by name: rewards to please, and texts not to forget."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tether.errors import UserError
from tether.language.data.tokens import Completion, Example
from tether.language.methods.rlhf.config import LEXICON, SENTIMENT, RLHFConfig
from tether.language.models.language_model import LanguageModel, same_tokens
from tether.language.models.reward_model import Combine, RewardModel
from tether.language.models.scoring import Scorer, score_texts

logger = logging.getLogger(__name__)


class Ensemble:
    """Several scorers as one.

    Source:
        Coste et al., "Reward model ensembles help mitigate overoptimization" (2023), section 3,
        where "lowest" is called worst-case optimization.
    """

    def __init__(self, scorers: Sequence[Scorer], combine: Combine = "mean") -> None:
        """Joins scorers.

        Args:
            scorers: at least one, of comparable scales.
            combine: "mean", or "lowest", which trusts the most sceptical.

        Raises:
            UserError: no scorers, or another way to combine.
        """
        if not scorers:
            raise UserError("an ensemble of no scorers cannot score; give at least one")
        if combine not in ("mean", "lowest"):
            raise UserError(f"combine is {combine!r}; expected 'mean' or 'lowest'")
        self.scorers = tuple(scorers)
        self.combine = combine

    def __call__(self, items: Sequence[Completion]) -> NDArray[np.float64]:
        """The members' mean or lowest scores; (N,)."""
        scores = np.stack([np.asarray(scorer(items), np.float64) for scorer in self.scorers])
        combined: NDArray[np.float64] = (
            scores.mean(axis=0) if self.combine == "mean" else scores.min(axis=0)
        )
        return combined


def open_scorer(
    names: Sequence[str], language_model: LanguageModel, combine: Combine = "mean"
) -> Scorer:
    """The scorer that goes by a name; several make an ensemble.

    Args:
        names: runs of `tether reward`, or sentiment, or lexicon.
        language_model: whose tokens and device they share.
        combine: see :class:`Ensemble`.

    Raises:
        UserError: neither a known name nor a run of `tether reward`.
    """
    scorers = [_open(name, language_model) for name in names]
    return scorers[0] if len(scorers) == 1 else Ensemble(scorers, combine)


def digests(scorer: Scorer, names: Sequence[str]) -> dict[str, str]:
    """Of each reward model, by its name, all that decides its scores."""
    members = scorer.scorers if isinstance(scorer, Ensemble) else (scorer,)
    return {
        name: member.digest()
        for name, member in zip(names, members, strict=True)
        if isinstance(member, RewardModel)
    }


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
    members = scorer.scorers if isinstance(scorer, Ensemble) else (scorer,)
    for member in members:
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
    if not is_run(name):
        raise UserError(
            f"reward is {name!r}, which is no folder of a run; expected one of `tether reward`, "
            f"{SENTIMENT} or {LEXICON}"
        )
    return load_reward_model(name, device=str(language_model.device))
