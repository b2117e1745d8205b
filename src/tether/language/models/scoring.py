"""What a completion is worth: the protocol of rewards, and functions of texts as rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from numpy.typing import ArrayLike

from tether.language.data.tokens import Completion

Scorer: TypeAlias = Callable[[Sequence[Completion]], ArrayLike]
"""One number for each completion, higher is better; a `RewardModel` is one."""


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
