"""Batches: records laid out as rows of tokens, and where in them each scored token stands.

Three layouts, one scorer. A :class:`TokenBatch` says for every scored token which position predicts
it, and to which place of the scorer's result it goes, so the scorer needs to know nothing of
padding, of prompts that several completions share, or of several examples in one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tether.errors import UserError

Side: TypeAlias = Literal["left", "right"]


class PromptAndCompletion(Protocol):
    """What a batch is made of: a Completion, an Example, or anything with these two."""

    @property
    def prompt_ids(self) -> Sequence[int]:
        """At least one token."""
        ...

    @property
    def completion_ids(self) -> Sequence[int]:
        """At least one token."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class TokenBatch:
    """Rows of tokens for one forward pass, and the completions in them.

    B rows of T tokens hold I completions of at most C tokens, of which N tokens are scored. In the
    plain layout a row holds one completion, so I = B.

    Attributes:
        input_ids: (B, T) token ids; any id where there is padding.
        attention_mask: (B, T) true at real tokens; or, where rows hold several completions,
            (B, 1, T, T) true where the query (third axis) may look at the key (fourth).
        position_ids: (B, T) place of each token in its own text; 0 at padding.
        completion_mask: (B, T) true at scored tokens.
        mask: (I, C) the same, completion by completion: column c is a completion's token c, so
            completions begin at column 0. False where a shorter completion has ended, and at
            tokens its loss mask leaves out.
        token_index: (N,) where the scored tokens are in ``input_ids.flatten()``.
        source_index: (N,) the positions whose hidden states predict them.
        slot_index: (N,) their places in ``mask.flatten()``.
        last_index: (I,) where the last token of each completion is in ``input_ids.flatten()``.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    completion_mask: Tensor
    mask: Tensor
    token_index: Tensor
    source_index: Tensor
    slot_index: Tensor
    last_index: Tensor

    @property
    def completions(self) -> int:
        """I, how many completions there are."""
        return self.mask.shape[0]

    @property
    def tokens(self) -> int:
        """N, how many tokens are scored: what a loss is normalized by."""
        return self.token_index.shape[0]

    @property
    def targets(self) -> Tensor:
        """Ids of the scored tokens; (N,)."""
        return self.input_ids.flatten()[self.token_index]

    def at_sources(self, hidden: Tensor) -> Tensor:
        """From (B, T, H), what stands where each scored token is predicted; (N, H)."""
        return hidden.flatten(0, 1).index_select(0, self.source_index)

    def at_last(self, hidden: Tensor) -> Tensor:
        """From (B, T, H), what stands at the last token of each completion; (I, H)."""
        return hidden.flatten(0, 1).index_select(0, self.last_index)

    def by_completion(self, values: Tensor) -> Tensor:
        """One value per scored token, (N,), laid out like `mask`, (I, C), with 0 elsewhere."""
        flat = values.new_zeros(self.mask.numel())
        return flat.index_copy(0, self.slot_index, values).view(self.mask.shape)

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        if self.input_ids.device == torch.device(device):
            return self
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)}
        return type(self)(**moved)


def collate(
    items: Sequence[PromptAndCompletion], *, pad_id: int, side: Side = "left"
) -> TokenBatch:
    """One item per row; the usual layout.

    Args:
        items: Completions, Examples or the like. An Example's loss mask is heeded.
        pad_id: any id of the vocabulary; what it is changes nothing.
        side: where prompts are padded: "left", so that completions begin in one column (and cached
            generation can go on from the last one), or "right", with all padding at the end.

    Raises:
        UserError: no items, or a side that is neither.
    """
    if side not in ("left", "right"):
        raise UserError(f"side is {side!r}; expected 'left' or 'right'")
    longest = max((len(item.prompt_ids) for item in items), default=0)
    layout = _Layout()
    for item in items:
        row = layout.row(longest - len(item.prompt_ids) if side == "left" else 0)
        layout.place(row, item, layout.prompt(row, item.prompt_ids))
    return layout.batch(pad_id)


def collate_shared(groups: Sequence[Sequence[PromptAndCompletion]], *, pad_id: int) -> TokenBatch:
    """One group per row: completions of the same prompt, which is read once for all of them.

    A completion sees the prompt and itself. Completions come out group by group, as in
    ``collate([item for group in groups for item in group], ...)``, with the same log-probabilities.
    A row is as long as the prompt and all its completions; for P prompt and R completion tokens,
    pairs cost (P + 2R) / (2P + 2R) of the plain layout.

    Args:
        groups: items with equal prompts; their number may differ between groups.
        pad_id: any id of the vocabulary.

    Raises:
        UserError: no groups, an empty group, or different prompts in one.

    Source:
        Wang and Hegde, "Accelerating Direct Preference Optimization with Prefix Sharing" (2024),
        section 3, for two completions.
    """
    longest = max((len(group[0].prompt_ids) for group in groups if group), default=0)
    layout = _Layout(apart=True)
    for index, group in enumerate(groups):
        prompts = {tuple(item.prompt_ids) for item in group}
        if len(prompts) != 1:
            raise UserError(
                f"group {index} has {len(prompts)} different prompts; expected completions of one"
            )
        row = layout.row(longest - len(group[0].prompt_ids))
        end = layout.prompt(row, group[0].prompt_ids)
        for item in group:
            layout.place(row, item, end)
    return layout.batch(pad_id)


def collate_packed(rows: Sequence[Sequence[PromptAndCompletion]], *, pad_id: int) -> TokenBatch:
    """Several items per row, one after another, none of which sees another.

    Completions come out row by row with the log-probabilities of the plain layout.

    Args:
        rows: items of each row.
        pad_id: any id of the vocabulary.

    Raises:
        UserError: no rows, or an empty one.
    """
    layout = _Layout(apart=True)
    for index, items in enumerate(rows):
        if not items:
            raise UserError(f"row {index} is empty; expected at least one item")
        row = layout.row(0)
        for item in items:
            layout.place(row, item, layout.prompt(row, item.prompt_ids))
    return layout.batch(pad_id)


# What a token belongs to. Prompts and completions are numbered from 1 through the whole batch.
_PAD = 0


@dataclass(frozen=True, slots=True)
class _PromptEnd:
    """A prompt's last token: the column that predicts a completion's first token."""

    column: int
    length: int
    part: int


class _Row:
    def __init__(self, offset: int) -> None:
        self.ids: list[int] = [0] * offset
        self.positions: list[int] = [0] * offset
        self.parts: list[int] = [_PAD] * offset

    def append(self, ids: Sequence[int], first_position: int, part: int) -> int:
        """Returns the column of the first id."""
        start = len(self.ids)
        self.ids.extend(ids)
        self.positions.extend(range(first_position, first_position + len(ids)))
        self.parts.extend([part] * len(ids))
        return start


class _Layout:
    """Rows under construction."""

    def __init__(self, *, apart: bool = False) -> None:
        """`apart`: rows hold several texts, so who may look at whom has to be spelled out."""
        self.apart = apart
        self.rows: list[_Row] = []
        # Of each part: the part it continues (a prompt continues itself).
        self.continues: list[int] = [_PAD]
        # Of each completion: row, first column, column before it, length, loss mask.
        self.completions: list[tuple[int, int, int, int, Sequence[bool] | None]] = []

    def row(self, offset: int) -> int:
        self.rows.append(_Row(offset))
        return len(self.rows) - 1

    def prompt(self, row: int, ids: Sequence[int]) -> _PromptEnd:
        part = len(self.continues)
        self.continues.append(part)
        start = self.rows[row].append(ids, 0, part)
        return _PromptEnd(start + len(ids) - 1, len(ids), part)

    def place(self, row: int, item: PromptAndCompletion, prompt: _PromptEnd) -> None:
        part = len(self.continues)
        self.continues.append(prompt.part)
        start = self.rows[row].append(item.completion_ids, prompt.length, part)
        mask = getattr(item, "loss_mask", None)
        length = len(item.completion_ids)
        self.completions.append((row, start, prompt.column, length, mask))

    def batch(self, pad_id: int) -> TokenBatch:
        if not self.rows:
            raise UserError("there is nothing to put into a batch; expected at least one item")
        width = max(len(row.ids) for row in self.rows)
        ids = _grid([row.ids for row in self.rows], width, pad_id)
        positions = _grid([row.positions for row in self.rows], width, 0)
        parts = _grid([row.parts for row in self.rows], width, _PAD)
        ids[parts == _PAD] = pad_id
        token, source, slot, last = [], [], [], []
        columns = max(length for *_, length, _ in self.completions)
        mask = np.zeros((len(self.completions), columns), bool)
        for index, (row, start, before, length, loss_mask) in enumerate(self.completions):
            where = np.arange(length)
            mask[index, :length] = True if loss_mask is None else loss_mask
            where = where[mask[index, :length]]
            token.append(row * width + start + where)
            source.append(row * width + np.where(where == 0, before, start + where - 1))
            slot.append(index * columns + where)
            last.append(row * width + start + length - 1)
        scored = np.zeros(ids.size, bool)
        scored[np.concatenate(token)] = True
        return TokenBatch(
            input_ids=_tensor(ids),
            attention_mask=self._attention(_tensor(parts)),
            position_ids=_tensor(positions),
            completion_mask=_tensor(scored.reshape(ids.shape)),
            mask=_tensor(mask),
            token_index=_tensor(np.concatenate(token)),
            source_index=_tensor(np.concatenate(source)),
            slot_index=_tensor(np.concatenate(slot)),
            last_index=_tensor(np.asarray(last, np.int64)),
        )

    def _attention(self, parts: Tensor) -> Tensor:
        if not self.apart:
            return parts != _PAD
        continues = torch.tensor(self.continues)[parts]
        queries, keys = parts[:, :, None], parts[:, None, :]
        # Padding looks at padding: a row of attention that may look at nothing would be NaN.
        allowed = (queries == keys) | (continues[:, :, None] == keys)
        return allowed.tril().unsqueeze(1)


def _grid(rows: Sequence[Sequence[int]], width: int, fill: int) -> NDArray[np.int64]:
    grid = np.full((len(rows), width), fill, np.int64)
    for index, row in enumerate(rows):
        grid[index, : len(row)] = row
    return grid


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
