"""A language model on this machine as a judge: what all questions share is read once.

The tokens that every question of a kind begins with (preamble and solved examples) are read once
and their keys and values kept; each question then reads only its own. Questions are batched by
length. Answer words of several tokens are summed exactly: a word's probability is the product of
its tokens', and a word that begins another does not have the other's.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tether.errors import JudgeError, NonFiniteError, UserError
from tether.language.data.templates import Template
from tether.language.judge.backends import Cost, LogProbs, Sides
from tether.language.judge.questions import Reading
from tether.language.models.generation import generate
from tether.language.models.key_value_cache import can_repeat, forget, new_cache, repeated
from tether.language.models.language_model import LanguageModel
from tether.language.models.unembedding import Unembedding

TOKENS: Final = {"cpu": 512}
"""Tokens of a batch on a device, what is shared not counted: as many as keep it busy. Fewer rows
are of more nearly one length, and what fills up rows is read for nothing."""

_MOST_TOKENS: Final = 8192

_SHORTEST_PREFIX: Final = 8


class CausalLM:
    """A causal language model as a backend.

    Attributes:
        name: of the model.
        digest: of its parameters.
        only_chat: False.
        cost: readings and seconds so far.
    """

    only_chat = False

    def __init__(self, model: LanguageModel, name: str, digest: str, *, cache: bool = True) -> None:
        """Takes a loaded model.

        Args:
            model: it is only read.
            name: short.
            digest: equal for equal models.
            cache: keep what all questions begin with; without, each is read as a whole.
        """
        self.name = name
        self.digest = digest
        self.cost = Cost()
        self._model = model
        self._plain = Template(model.tokenizer, "plain")
        self._chat = Template(model.tokenizer, "chat")
        self._unembed = Unembedding.of(model.head)
        self._caches = cache and can_repeat(model.causal_lm.config)
        self._prefix: tuple[int, ...] = ()
        self._prefix_cache: Any = None

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was taught to answer messages."""
        return self._model.tokenizer.chat_template is not None

    def answer(self, readings: Sequence[Reading], sides: Sides) -> list[LogProbs | JudgeError]:
        """See :class:`tether.language.judge.backends.Backend`.

        Raises:
            UserError: two answer words are the same tokens.
        """
        began = time.monotonic()
        words = self._words(sides)
        found: list[LogProbs | JudgeError | None] = [None] * len(readings)
        rows: list[tuple[int, list[int]]] = []
        room = max(map(len, words))
        for place, reading in enumerate(readings):
            try:
                rows.append((place, self._ids(reading, room)))
            except UserError as error:
                found[place] = JudgeError(str(error))
        groups = np.cumsum([0, *(len(side) for side in sides)])
        most = TOKENS.get(self._model.device.type, _MOST_TOKENS)
        for batch, shared in _batches(rows, self._prefix, most):
            said = self._read([ids for _, ids in batch], shared, words)
            for (place, ids), row in zip(batch, said, strict=True):
                self.cost.prompt_tokens += len(ids) - len(shared)
                if np.isnan(row).any():
                    found[place] = JudgeError(
                        f"the model {self.name} gives probabilities that are not numbers"
                    )
                    continue
                found[place] = np.array(
                    [
                        np.logaddexp.reduce(row[start:stop])
                        for start, stop in itertools.pairwise(groups)
                    ]
                )
        self.cost.requests += len(rows)
        self.cost.seconds += time.monotonic() - began
        return [item for item in found if item is not None]

    def reason(
        self, readings: Sequence[Reading], *, most: int, temperature: float, seeds: Sequence[int]
    ) -> list[str | JudgeError]:
        """See :class:`tether.language.judge.backends.Backend`."""
        began = time.monotonic()
        found: list[str | JudgeError | None] = [None] * len(readings)
        places, prompts = [], []
        for place, reading in enumerate(readings):
            try:
                prompts.append(self._ids(reading, most))
                places.append(place)
            except UserError as error:
                found[place] = JudgeError(str(error))
        try:
            answers = generate(
                self._model,
                prompts,
                max_new_tokens=most,
                temperature=temperature,
                seeds=[seeds[place] for place in places],
                stop_ids=self._chat.stop_ids,
            )
        except NonFiniteError as error:
            raise JudgeError(str(error)) from error
        for place, answer in zip(places, answers, strict=True):
            found[place] = self._plain.decode(answer.completion_ids)
            self.cost.completion_tokens += len(answer.completion_ids)
        self.cost.requests += len(places)
        self.cost.seconds += time.monotonic() - began
        return [item for item in found if item is not None]

    def _ids(self, reading: Reading, room: int) -> list[int]:
        if reading.turns:
            ids = self._chat.prompt_ids(reading.turns)
            ids += self._chat.continuation(reading.text, literal=True) if reading.text else []
        else:
            ids = self._plain.prompt_ids(reading.text)
        if len(ids) + room > self._model.context:
            raise JudgeError(
                f"the question takes {len(ids)} tokens and the answer {room}, and the context of "
                f"the judge {self.name} is {self._model.context}; shorten the texts (max_words), "
                "show fewer shots, or choose another model"
            )
        return ids

    def _words(self, sides: Sides) -> list[tuple[int, ...]]:
        words = [
            tuple(self._plain.continuation(word, literal=True)) for side in sides for word in side
        ]
        texts = [word for side in sides for word in side]
        for place, ids in enumerate(words):
            if ids in words[:place]:
                raise UserError(
                    f"the answer words {texts[words.index(ids)]!r} and {texts[place]!r} are the "
                    f"same tokens for {self.name}; give other words"
                )
        return words

    def share(self, readings: Sequence[Reading]) -> None:
        """Keeps what these readings begin with, to be read once for all that begin with it.

        It is chosen here and not from what happens to be asked together, so that the same
        questions have the same answers to the last bit wherever a training is resumed.
        """
        rows = [self._ids(reading, 1) for reading in readings]
        first, last = min(rows), max(rows)
        length = 0
        # One token at least has to be read anew, for its hidden state.
        while length < min(map(len, rows)) - 1 and first[length] == last[length]:
            length += 1
        pays = self._caches and length >= _SHORTEST_PREFIX
        self._prefix, self._prefix_cache = tuple(first[: length if pays else 0]), None

    @torch.no_grad()
    def _read(
        self, rows: Sequence[list[int]], shared: tuple[int, ...], words: Sequence[tuple[int, ...]]
    ) -> NDArray[np.float64]:
        """Log-probabilities of words, (B, W), each without those that begin with it."""
        model = self._model
        own = [row[len(shared) :] for row in rows]
        width = max(map(len, own))
        lengths = torch.tensor([len(row) for row in own], device=model.device)
        ids = torch.full((len(own), width), model.pad_id)
        for place, row in enumerate(own):
            ids[place, : len(row)] = torch.tensor(row)
        ids = ids.to(model.device)
        steps = torch.arange(width, device=model.device)
        mask = torch.ones((len(own), len(shared) + width), dtype=torch.bool, device=model.device)
        mask[:, len(shared) :] = steps < lengths[:, None]
        positions = (len(shared) + steps).expand(len(own), width)
        stems = _stems(words)
        cache = self._begin(shared, len(own), width + max(map(len, stems)))
        if cache is None and len(stems) > 1:
            cache = new_cache(model.causal_lm.config)
        hidden = model.hidden_states(ids, mask, positions, cache)
        last = hidden[torch.arange(len(own), device=model.device), lengths - 1]
        after: dict[tuple[int, ...], Tensor] = {(): self._log_probs(last)}
        for stem in stems[1:]:
            told = torch.tensor(stem, device=model.device).expand(len(own), len(stem))
            more = torch.cat([mask, mask.new_ones(told.shape)], dim=-1)
            places = (len(shared) + lengths)[:, None] + torch.arange(len(stem), device=model.device)
            tail = model.hidden_states(told, more, places, cache)[:, -1]
            after[stem] = self._log_probs(tail)
            forget(cache, len(shared) + width)
        return exact_words(words, {stem: _numpy(rest, words, stem) for stem, rest in after.items()})

    def _begin(self, shared: tuple[int, ...], rows: int, room: int) -> Any:
        if not shared:
            return None
        if self._prefix_cache is None:
            ids = torch.tensor([shared], device=self._model.device)
            self._prefix_cache = new_cache(self._model.causal_lm.config)
            positions = torch.arange(len(shared), device=self._model.device)[None]
            everything = torch.ones_like(ids).bool()
            self._model.hidden_states(ids, everything, positions, self._prefix_cache)
        return repeated(self._prefix_cache, rows, room)

    def _log_probs(self, hidden: Tensor) -> Tensor:
        return self._unembed(hidden).log_softmax(-1)


def exact_words(
    words: Sequence[tuple[int, ...]], after: dict[tuple[int, ...], dict[int, NDArray[np.float64]]]
) -> NDArray[np.float64]:
    """Log-probability of each word and of no longer one, from those of tokens after stems.

    P(word) = prod_t P(token_t | tokens before it) - sum of P(longer words that begin with it)

    Args:
        words: token ids.
        after: for each stem, of the tokens that matter, log P(token | stem), (B,).

    Returns:
        (B, W); -inf where nothing is left of a word.
    """
    whole = {
        word: np.sum([after[word[:place]][word[place]] for place in range(len(word))], axis=0)
        for word in words
    }
    found = []
    for word in words:
        value = np.asarray(whole[word], np.float64)
        # A longer word that begins a still longer one holds the latter's probability already.
        longer = [w for w in words if len(w) > len(word) and w[: len(word)] == word]
        longer = [w for w in longer if not any(w[: len(o)] == o for o in longer if o != w)]
        if longer:
            rest = np.logaddexp.reduce(np.stack([whole[w] for w in longer]), axis=0)
            with np.errstate(divide="ignore"):
                value = value + np.log(np.maximum(-np.expm1(np.minimum(rest - value, 0.0)), 0.0))
        found.append(value)
    return np.stack(found, axis=-1)


def _numpy(
    log_probs: Tensor, words: Sequence[tuple[int, ...]], stem: tuple[int, ...]
) -> dict[int, NDArray[np.float64]]:
    size = len(stem)
    tokens = {word[size] for word in words if len(word) > size and word[:size] == stem}
    return {token: log_probs[:, token].double().cpu().numpy() for token in tokens}


def _stems(words: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """What has to be read before the last token of each word can be: nothing, or its beginnings."""
    found = {word[:size] for word in words for size in range(len(word))}
    return sorted(found, key=lambda stem: (len(stem), stem))


def _batches(
    rows: Sequence[tuple[int, list[int]]], prefix: tuple[int, ...], most: int
) -> Iterator[tuple[list[tuple[int, list[int]]], tuple[int, ...]]]:
    """Rows of nearly one length together, the longest first, with what they share."""
    size = len(prefix)
    like = [row for row in rows if len(row[1]) > size and tuple(row[1][:size]) == prefix]
    places = {place for place, _ in like}
    for some, shared in ((like, prefix), ([r for r in rows if r[0] not in places], ())):
        batch: list[tuple[int, list[int]]] = []
        for row in sorted(some, key=lambda row: (-len(row[1]), row[0])):
            width = len(batch[0][1]) - len(shared) if batch else 0
            if batch and width * (len(batch) + 1) > most:
                yield batch, shared
                batch = []
            batch.append(row)
        if batch:
            yield batch, shared
