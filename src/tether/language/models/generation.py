"""Sampling completions: cached, batched, and each row with its own random numbers.

What a row says depends on its prompt, its seed and the settings, never on the other rows: every row
has a stream of uniform numbers, and token t is the inverse of the distribution function at number
t. Splitting or reordering a batch changes nothing but the last bits of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tether.errors import NonFiniteError, UserError
from tether.language.data.records import Completion, Ids, Prompt, located
from tether.language.models.key_value_cache import new_cache
from tether.language.models.language_model import LanguageModel
from tether.language.models.unembedding import Unembedding


def generate(
    language_model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Sequence[int] | None = None,
    seeds: int | Sequence[int] = 0,
    batch_size: int = 64,
    on_token: Callable[[int, int], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Continues each prompt until a stop token or `max_new_tokens`.

    Prompts are batched by length; a row that has ended leaves its batch; equal prompts in a batch
    are read once.

    Args:
        language_model: what to sample from.
        prompts: token ids of each prompt, at least one; the same prompt may come several times.
        max_new_tokens: most tokens of a completion, the stop token included.
        temperature: divides the logits; below 1 the model plays safer, 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens only; None: among all. A policy's samples must
            come from its whole distribution, so training leaves this and `top_p` off.
        top_p: sample among the fewest likeliest tokens that together have probability p or more.
        stop_ids: tokens that end a completion, as its last; None: the model's own.
        seeds: one for each prompt; or one number s, from which prompt i gets (s, i).
        batch_size: most rows at once. More: faster, and more memory.
        on_token: called with the index of a prompt and a new token, as they come.
        on_batch: called with the number of completions that are done, after each batch.

    Returns:
        A completion for each prompt, in order; `finished` says whether its last token is a stop
        token.

    Raises:
        UserError: a bad setting, an empty prompt, or one that leaves no room in the context.
        NonFiniteError: the model gives logits that are NaN or infinite.

    Source:
        Top-k: Fan et al., "Hierarchical Neural Story Generation" (2018), section 5.4; top-p:
        Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020), section 3.1.
    """
    settings = _Settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_ids=tuple(language_model.stop_ids if stop_ids is None else stop_ids),
    )
    _check_settings(settings, batch_size)
    checked = _checked(prompts, language_model, max_new_tokens)
    streams = _streams(seeds, len(checked))
    # Longest first: rows of one batch are of nearly one length, and memory runs out at once or
    # never. Equal prompts stay side by side.
    first: dict[Ids, int] = {}
    for index, prompt in enumerate(checked):
        first.setdefault(prompt, index)
    order = sorted(range(len(checked)), key=lambda i: (-len(checked[i]), first[checked[i]], i))
    done: dict[int, Completion] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = _Batch(
            language_model,
            settings,
            rows,
            [checked[i] for i in rows],
            [streams[i] for i in rows],
            on_token,
        )
        done.update(zip(rows, batch.run(), strict=True))
        if on_batch is not None:
            on_batch(len(done))
    return [done[index] for index in range(len(checked))]


@dataclass(frozen=True, slots=True)
class _Settings:
    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    stop_ids: tuple[int, ...]


class _Batch:
    """Rows that are decoded together."""

    def __init__(
        self,
        language_model: LanguageModel,
        settings: _Settings,
        indices: Sequence[int],
        prompts: Sequence[Ids],
        streams: Sequence[np.random.Generator],
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        self.language_model = language_model
        self.settings = settings
        self.indices = indices
        self.prompts = prompts
        self.on_token = on_token
        self.completions: list[list[int]] = [[] for _ in prompts]
        numbers = np.stack([stream.random(settings.max_new_tokens) for stream in streams])
        self.uniforms = torch.from_numpy(numbers).to(language_model.device)

    @torch.no_grad()
    def run(self) -> list[Completion]:
        model, settings = self.language_model, self.settings
        stops = torch.tensor(settings.stop_ids, dtype=torch.int64, device=model.device)
        unembed = Unembedding.of(model.head)
        hidden, mask, cache = self._read_prompts()
        positions = mask.sum(-1)
        alive = torch.arange(len(self.prompts), device=model.device)
        for step in range(settings.max_new_tokens):
            tokens = choose(
                unembed(hidden),
                self.uniforms[alive, step],
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
            )
            self._take(alive, tokens)
            going = ~torch.isin(tokens, stops)
            if step + 1 == settings.max_new_tokens or not going.any():
                break
            if not going.all():
                alive, tokens, positions = alive[going], tokens[going], positions[going]
                mask = mask[going]
                cache.batch_select_indices(going.nonzero().squeeze(-1))
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
            hidden = model.hidden_states(tokens[:, None], mask, positions[:, None], cache)[:, -1]
            positions = positions + 1
        return [
            Completion(prompt, tuple(ids), finished=ids[-1] in settings.stop_ids)
            for prompt, ids in zip(self.prompts, self.completions, strict=True)
        ]

    def _read_prompts(self) -> tuple[Tensor, Tensor, Any]:
        """Last hidden state (B, H), mask of real tokens (B, P), and the filled cache of each row.

        Equal prompts are read once, and their cache is copied.
        """
        model = self.language_model
        distinct = list(dict.fromkeys(self.prompts))
        width = max(map(len, distinct))
        ids = torch.full((len(distinct), width), model.pad_id)
        mask = torch.zeros((len(distinct), width), dtype=torch.bool)
        for row, prompt in enumerate(distinct):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = True
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = new_cache(model.causal_lm.config)
        ids, mask, positions = (t.to(model.device) for t in (ids, mask, positions))
        hidden = model.hidden_states(ids, mask, positions, cache)[:, -1]
        if len(distinct) < len(self.prompts):
            place = {prompt: row for row, prompt in enumerate(distinct)}
            rows = torch.tensor([place[prompt] for prompt in self.prompts], device=model.device)
            cache.batch_select_indices(rows)
            hidden, mask = hidden[rows], mask[rows]
        return hidden, mask, cache

    def _take(self, alive: Tensor, tokens: Tensor) -> None:
        vocabulary = self.language_model.vocabulary
        for row, token in zip(alive.tolist(), tokens.tolist(), strict=True):
            if token == vocabulary:
                raise NonFiniteError(
                    f"the logits became NaN or infinite after {len(self.completions[row])} tokens "
                    f"of the answer to prompts[{self.indices[row]}]; the model is damaged, or too "
                    "large for its dtype: try float32 or bfloat16"
                )
            self.completions[row].append(token)
            if self.on_token is not None:
                self.on_token(self.indices[row], token)


def choose(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """One token of each row: the inverse of its cumulative distribution at a uniform number.

    y = min{v : F(v) > u F(V)},  F(v) = sum_{w <= v} softmax(logits / temperature)_w

    Args:
        logits: (B, V).
        uniforms: (B,) in [0, 1), float64.
        temperature: 0 takes the likeliest token, the first of equals.
        top_k: keep the k likeliest; of equals at the edge, no more than fit.
        top_p: keep the fewest likeliest whose probabilities reach p; after `top_k`.

    Returns:
        (B,) int64; V, which is no token, where logits are NaN or all infinite.
    """
    if temperature == 0.0:
        most, likeliest = logits.max(-1)
        return torch.where(most.isfinite(), likeliest, logits.shape[-1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        most, where = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter_(-1, where, most)
    probabilities = logits.softmax(-1)
    if top_p is not None:
        ordered, where = probabilities.sort(dim=-1, descending=True, stable=True)
        # A token stays if those before it have not reached p yet; so the first always does.
        beyond = ordered.cumsum(-1) - ordered >= top_p
        probabilities = probabilities.masked_fill(beyond.scatter(-1, where, beyond), 0.0)
    # Adding 50,000 float32 probabilities would misplace the tail by more than rare tokens have.
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1]
    # u F(V) may round up to F(V), behind the last token.
    threshold = torch.minimum(uniforms * total, total.nextafter(total.new_zeros(())))
    chosen = torch.searchsorted(cumulative, threshold[:, None], right=True).squeeze(-1)
    return torch.where(total.isfinite(), chosen, logits.shape[-1])


def _check_settings(settings: _Settings, batch_size: int) -> None:
    for name, value in (("max_new_tokens", settings.max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}; expected at least 1")
    if not 0.0 <= settings.temperature < float("inf"):
        raise UserError(f"temperature is {settings.temperature}; expected 0 (greedy) or more")
    if settings.top_k is not None and settings.top_k < 1:
        raise UserError(f"top_k is {settings.top_k}; expected at least 1, or None for all tokens")
    if settings.top_p is not None and not 0.0 < settings.top_p <= 1.0:
        raise UserError(f"top_p is {settings.top_p}; expected above 0 and at most 1, or None")


def _checked(
    prompts: Sequence[Sequence[int]], language_model: LanguageModel, max_new_tokens: int
) -> list[Ids]:
    checked = []
    for index, ids in enumerate(prompts):
        with located(f"prompts[{index}]"):
            prompt = Prompt(tuple(ids)).prompt_ids
            if max(prompt) >= language_model.vocabulary:
                raise UserError(
                    f"id {max(prompt)} is outside the vocabulary of {language_model.vocabulary}; "
                    "tokenize with the model's tokenizer"
                )
            if len(prompt) + max_new_tokens > language_model.context:
                raise UserError(
                    f"{len(prompt)} tokens and {max_new_tokens} new ones do not fit the model's "
                    f"context of {language_model.context}; shorten the prompt or lower "
                    "max_new_tokens"
                )
        checked.append(prompt)
    return checked


def _streams(seeds: int | Sequence[int], count: int) -> list[np.random.Generator]:
    if isinstance(seeds, int | np.integer):
        entropy: list[Any] = [[int(seeds), index] for index in range(count)]
    else:
        entropy = [int(seed) for seed in seeds]
    if len(entropy) != count:
        raise UserError(
            f"there are {len(entropy)} seeds for {count} prompts; expected one for each"
        )
    try:
        return [np.random.default_rng(seed) for seed in entropy]
    except ValueError:
        raise UserError(f"seeds are {seeds!r:.60}; expected integers of at least 0") from None
