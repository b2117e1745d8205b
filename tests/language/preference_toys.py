"""A teacher who likes one token, and what it says about random completions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from random_models import EOS, VOCABULARY, language_model

from tether.language.data.tokens import Pair, Ranking
from tether.language.learners.means import Means
from tether.language.models.language_model import LanguageModel, LoraSettings

LIKED = 7
LORA = LoraSettings(rank=4, alpha=8.0)


def model(lora: bool = False, dtype: torch.dtype = torch.float32, **settings: Any) -> LanguageModel:
    """A Llama small enough to learn the teacher's taste in seconds."""
    return language_model("llama", dtype=dtype, lora=LORA if lora else None, **settings)


def exact(lora: bool = False, **settings: Any) -> LanguageModel:
    """A model that computes in float64 throughout."""
    return language_model("gpt2", lora=LORA if lora else None, **settings)


def ids(draw: np.random.Generator, length: int) -> tuple[int, ...]:
    """Any tokens but the liked one and the end of sequence."""
    tokens = draw.integers(2, VOCABULARY - 1, size=length)
    return tuple(int(token) + (token >= LIKED) for token in tokens)


def answer(draw: np.random.Generator, liked: int) -> tuple[int, ...]:
    """A completion of 2 to 5 tokens, some of them the liked one, and the end of sequence."""
    length = int(draw.integers(max(liked, 2), 6))
    tokens = [*ids(draw, length - liked), *[LIKED] * liked]
    return (*(tokens[i] for i in draw.permutation(length)), EOS)


def pairs(
    count: int, seed: int = 0, *, labels: Sequence[float] = (1.0,), prompts: int | None = None
) -> list[Pair]:
    """Comparisons by the liked token; where the label is below 1/2 the worse one comes first.

    Args:
        count: how many.
        seed: decides them.
        labels: taken in turn.
        prompts: how many different prompts; None: each its own.
    """
    draw = np.random.default_rng(seed)
    texts = [ids(draw, int(draw.integers(1, 6))) for _ in range(prompts or count)]
    made = []
    for index in range(count):
        label = labels[index % len(labels)]
        better, worse = answer(draw, 1), answer(draw, 0)
        first, second = (better, worse) if label >= 0.5 else (worse, better)
        made.append(Pair(texts[index % len(texts)], first, second, label))
    return made


def rankings(count: int, seed: int = 0, k: int = 4) -> list[Ranking]:
    """K completions, those with more of the liked token first."""
    draw = np.random.default_rng([seed, 1])
    return [
        Ranking(
            ids(draw, int(draw.integers(1, 6))),
            tuple(answer(draw, liked) for liked in range(k - 1, -1, -1)),
        )
        for _ in range(count)
    ]


def gradients(learner: Any, rows: Sequence[int], member: int = 0) -> dict[str, torch.Tensor]:
    """The gradient that a batch gives a learner, by module and parameter."""
    for module in learner.modules.values():
        module.zero_grad(set_to_none=True)
    learner.accumulate(member, rows, Means())
    return {
        f"{name}.{parameter_name}": parameter.grad.clone()
        for name, module in learner.modules.items()
        for parameter_name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def assert_close(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Equal keys, and values equal but for rounding."""
    assert found.keys() == expected.keys()
    assert any(torch.as_tensor(value).abs().max() > 1e-6 for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(
            torch.as_tensor(found[name]),
            torch.as_tensor(value),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def equal_states(one: Any, other: Any) -> bool:
    """Whether two states hold the same bits."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal_states(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal_states, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return bool(one == other)


def without_time(metrics: dict[str, Any]) -> dict[str, Any]:
    """Measurements but those of the clock."""
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}
