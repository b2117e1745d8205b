"""What a completion is worth: the protocol of rewards, and functions of texts as rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tether.errors import UserError
from tether.language.data.prompt_rows import PromptRows
from tether.language.data.tokens import Completion
from tether.language.models.reward_function import FunctionScorer, RewardFunction

Scorer: TypeAlias = Callable[[Sequence[Completion]], ArrayLike]
"""One number for each completion, higher is better; a `RewardModel` is one."""


class Reading(NamedTuple):
    """What a scorer of several members says of N completions.

    Attributes:
        total: what counts; (N,).
        members: each member's scores, NaN where it does not apply; (members, N).
        spread: the standard deviation of the scores of an ensemble, (N,); NaN where fewer than two
            members have one, or the members are no ensemble.
    """

    total: NDArray[np.float64]
    members: NDArray[np.float64]
    spread: NDArray[np.float64]


@runtime_checkable
class JointScorer(Protocol):
    """A scorer of several members, whose own scores are worth knowing.

    Attributes:
        names: of the members, distinct.
    """

    names: tuple[str, ...]

    def __call__(self, items: Sequence[Completion], /) -> ArrayLike:
        """What the members' scores come to; (N,)."""
        ...

    def read(self, items: Sequence[Completion]) -> Reading:
        """What the members say of completions, and what it comes to."""
        ...


def score_function(
    tokenizer: Any,
    function: Callable[..., Any],
    *,
    prompts: Sequence[str] | None = None,
    timeout: float | None = None,
    **columns: Sequence[Any],
) -> Scorer:
    """A scorer of completions from a reward function with TRL's convention.

    Args:
        tokenizer: turns ids back into text; special tokens are left out.
        function: ``(prompts, completions, **columns)`` to a list of numbers; see
            :mod:`tether.language.models.reward_function`.
        prompts: as they were written; None: they are decoded from their tokens.
        timeout: seconds that a call may take; None: as long as it likes.
        **columns: what else the function takes, one value for each of `prompts`.

    Raises:
        UserError: the function takes something that is not given, or columns come without prompts
            or in another number.
    """
    reward = RewardFunction(function)
    reward.check([*columns], "what is given")
    if prompts is None:
        if columns:
            raise UserError(f"{', '.join(columns)} is given without prompts; give prompts= too")
        return FunctionScorer(reward, tokenizer, None, timeout)
    for name, values in columns.items():
        if len(values) != len(prompts):
            raise UserError(
                f"{name} has {len(values)} values for {len(prompts)} prompts; expected one for each"
            )
    rows = PromptRows([*columns])
    for place, prompt in enumerate(prompts):
        rows.add(prompt, {name: values[place] for name, values in columns.items()})
    return FunctionScorer(reward, tokenizer, rows, timeout)


def score_texts(
    tokenizer: Any,
    function: Callable[[Sequence[str]], ArrayLike],
    *,
    with_prompt: bool = True,
) -> Scorer:
    """A scorer of completions from a function of texts, such as a sentiment classifier.

    Args:
        tokenizer: turns ids back into text; special tokens are left out.
        function: scores a list of texts.
        with_prompt: let it read the prompt too, as one text with the completion.
    """

    def score(completions: Sequence[Completion]) -> ArrayLike:
        texts = [
            tokenizer.decode(
                [*(item.prompt_ids if with_prompt else ()), *item.completion_ids],
                skip_special_tokens=True,
            )
            for item in completions
        ]
        return function(texts)

    return score
