"""The methods, by the names the command line knows; each module is loaded when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tether.learning.methods import Method


@dataclass(frozen=True)
class LanguageMethod(Method):
    """A method that trains a language model, and which data it learns from.

    Attributes:
        formats: keys of :data:`tether.language.data.formats.FORMATS`, best first.
        prompts_only: it answers them itself.
        pairs_only: a ranking counts as all its pairs.
        needs: formats that take a setting, as (its name, its value).
        has_reference: it looks back to the model that it began with.
    """

    formats: tuple[str, ...] = ()
    progress_metric: str = "loss"
    prompts_only: bool = False
    pairs_only: bool = False
    needs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    has_reference: bool = True


METHODS: dict[str, LanguageMethod] = {
    "sft": LanguageMethod(
        "tether.language.methods.sft",
        "SFTLearner",
        "supervised instruction tuning on demonstrations (Ouyang et al. 2022)",
        formats=("conversation", "demonstration", "text"),
        has_reference=False,
    ),
    "reward": LanguageMethod(
        "tether.language.methods.reward",
        "RewardLearner",
        "reward model from comparisons or rankings (Ouyang et al. 2022)",
        formats=("comparison", "labelled", "ranked"),
        progress_metric="reward/accuracy",
        has_reference=False,
    ),
    "rlhf": LanguageMethod(
        "tether.language.methods.rlhf.learner",
        "RLHFLearner",
        "PPO against a reward, with a KL penalty to the reference (Ouyang et al. 2022)",
        formats=("question", "conversation"),
        progress_metric="reward/mean",
        prompts_only=True,
    ),
    "dpo": LanguageMethod(
        "tether.language.methods.dpo.learner",
        "DPOLearner",
        "direct preference optimization on comparisons (Rafailov et al. 2023)",
        formats=("comparison", "labelled", "ranked", "judged"),
        progress_metric="reward/accuracy",
        pairs_only=True,
        needs={"judged": ("loss", "kto")},
    ),
}
