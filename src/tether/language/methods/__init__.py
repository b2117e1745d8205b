"""The methods, by the names the command line knows; each module is loaded when first asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from tether.errors import UserError


class Method(NamedTuple):
    """Where a method lives, what it is in one line, and which data it learns from.

    `formats` are keys of :data:`tether.language.data.formats.FORMATS`, best first; `needs` has
    those that take a setting, as (its name, its value); `prompts_only`: it answers them itself;
    `pairs_only`: a ranking counts as all its pairs.
    """

    module: str
    learner: str
    summary: str
    formats: tuple[str, ...]
    progress_metric: str = "loss"
    prompts_only: bool = False
    pairs_only: bool = False
    needs: Mapping[str, tuple[str, str]] = MappingProxyType({})


METHODS: dict[str, Method] = {
    "sft": Method(
        "tether.language.methods.sft",
        "SFTLearner",
        "supervised instruction tuning on demonstrations (Ouyang et al. 2022)",
        ("conversation", "demonstration", "text"),
    ),
    "reward": Method(
        "tether.language.methods.reward",
        "RewardLearner",
        "reward model from comparisons or rankings (Ouyang et al. 2022)",
        ("comparison", "ranked"),
        "reward/accuracy",
    ),
    "rlhf": Method(
        "tether.language.methods.rlhf.learner",
        "RLHFLearner",
        "PPO against a reward, on a KL tether to the reference (Ouyang et al. 2022)",
        ("question", "conversation"),
        "reward/mean",
        prompts_only=True,
    ),
    "dpo": Method(
        "tether.language.methods.dpo.learner",
        "DPOLearner",
        "direct preference optimization on comparisons (Rafailov et al. 2023)",
        ("comparison", "ranked", "judged"),
        "reward/accuracy",
        pairs_only=True,
        needs={"judged": ("loss", "kto")},
    ),
}


def find_method(name: str) -> Any:
    """The learner class of a method.

    Raises:
        UserError: no such method; names the closest.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        mend = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(METHODS)}"
        raise UserError(f"unknown method {name!r}; {mend}")
    module = importlib.import_module(METHODS[name].module)
    return getattr(module, METHODS[name].learner)
