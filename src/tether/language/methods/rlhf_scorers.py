"""What RLHF is given by name: rewards to please, and texts not to forget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tether.errors import UserError
from tether.language.methods.best_of_n import Scorer, score_texts
from tether.language.methods.rlhf_config import LEXICON, SENTIMENT, RLHFConfig
from tether.language.models import LanguageModel
from tether.language.reward_model import Combine, RewardModel
from tether.language.tokens import Completion, Example


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


def open_scorer(config: RLHFConfig, language_model: LanguageModel) -> Scorer:
    """The scorer that a config names.

    Raises:
        UserError: neither a known name nor a run of `tether reward`.
    """
    scorers = [_open(name, language_model) for name in config.reward]
    return scorers[0] if len(scorers) == 1 else Ensemble(scorers, config.reward_combine)


def open_pretraining(config: RLHFConfig, language_model: LanguageModel) -> list[Example]:
    """The texts that a config names, as tokens, cut to the model's context.

    Raises:
        UserError: no such data, or none that can be continued.
    """
    from tether.language.data import read_data
    from tether.language.examples import fit, tokenize
    from tether.language.templates import Template

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
        UserError: they have different vocabularies, or too small a context.
    """
    members = scorer.scorers if isinstance(scorer, Ensemble) else (scorer,)
    for member in members:
        if not isinstance(member, RewardModel):
            continue
        reader = member.language_model
        if reader.vocabulary != language_model.vocabulary:
            raise UserError(
                f"the policy {language_model.name!r} has {language_model.vocabulary} tokens and "
                f"the reward model {reader.name!r} {reader.vocabulary}; expected one vocabulary: "
                "train the reward model from the same base, or score texts"
            )
        if longest > reader.context:
            raise UserError(
                f"a prompt and its completion may take {longest} tokens; the context of the reward "
                f"model {reader.name!r} is {reader.context}: shorten prompts or max_new_tokens"
            )


def _open(name: str, language_model: LanguageModel) -> Scorer:
    from tether.language.setup import is_run, load_reward_model

    if name in (SENTIMENT, LEXICON):
        from tether.language.reviews import gold_scorer, lexicon_scorer

        function = gold_scorer().log_odds if name == SENTIMENT else lexicon_scorer()
        return score_texts(language_model.tokenizer, function)
    if not is_run(name):
        raise UserError(
            f"reward is {name!r}, which is no folder of a run; expected one of `tether reward`, "
            f"{SENTIMENT} or {LEXICON}"
        )
    return load_reward_model(name, device=str(language_model.device))
