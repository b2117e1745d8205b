"""Texts as rows of tokens for learning a language: no padding to speak of, no token seen twice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tether.errors import UserError


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens and what comes after each of them; shape (B, L) each.

    Attributes:
        inputs: token ids, padded on the right, where causal attention cannot see.
        targets: the next token's id at each position.
        mask: true where there is a next token.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    mask: NDArray[np.bool_]

    @property
    def tokens(self) -> int:
        """How many tokens are predicted."""
        return int(self.mask.sum())


@dataclass(frozen=True, slots=True)
class Windows:
    """Pieces of documents, none longer than the context, with the token that follows each.

    One row holds (a piece of) one document, so attention never crosses from one into another, and
    a batch holds rows of nearly one length, so little is padded.

    Attributes:
        ids: the tokens of all documents, one after the other.
        starts: where each window begins in `ids`.
        lengths: how many tokens each window predicts.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """How many tokens one pass over the windows predicts."""
        return int(self.lengths.sum())

    def plan(
        self, batch_tokens: int, random: np.random.Generator | None
    ) -> list[NDArray[np.int64]]:
        """The windows of each batch in one pass, every window once.

        Args:
            batch_tokens: room of a batch, rows times the longest row.
            random: shuffles windows of equal length, then batches; None leaves them sorted.
        """
        shuffled = np.arange(len(self.starts))
        if random is not None:
            random.shuffle(shuffled)
        order = shuffled[np.argsort(-self.lengths[shuffled], kind="stable")]
        batches = []
        first = 0
        while first < len(order):
            rows = max(1, batch_tokens // int(self.lengths[order[first]]))
            batches.append(order[first : first + rows])
            first += rows
        if random is not None:
            batches = [batches[i] for i in random.permutation(len(batches))]
        return batches

    def batch(self, rows: NDArray[np.int64], pad_id: int) -> Batch:
        """The batch of the windows `rows`."""
        lengths = self.lengths[rows]
        position = np.arange(int(lengths.max()))
        mask = position < lengths[:, None]
        where = np.where(mask, self.starts[rows][:, None] + position, 0)
        inputs = np.where(mask, self.ids[where], pad_id).astype(np.int64)
        targets = np.where(mask, self.ids[where + 1], pad_id).astype(np.int64)
        return Batch(inputs, targets, mask)

    def batches(self, batch_tokens: int, pad_id: int) -> Iterator[Batch]:
        """One pass in a fixed order."""
        for rows in self.plan(batch_tokens, None):
            yield self.batch(rows, pad_id)


def cut_windows(documents: Sequence[Sequence[int]], context: int) -> Windows:
    """Cuts documents into windows that together predict every token but each document's first.

    A window's last target is the next window's first input, so a long document loses context at
    the cuts, but no token is skipped and none counts twice.

    Args:
        documents: token ids, with their beginning and end-of-sequence tokens, at least 2 each.
        context: most tokens a window may hold.

    Raises:
        UserError: no documents, a document of one token, or a context below 1.
    """
    if context < 1 or not documents or min(map(len, documents)) < 2:
        raise UserError(
            f"{len(documents)} documents and a context of {context}; expected a context of at "
            "least 1 and documents of at least 2 tokens"
        )
    starts: list[int] = []
    lengths: list[int] = []
    offset = 0
    for document in documents:
        for start in range(0, len(document) - 1, context):
            starts.append(offset + start)
            lengths.append(min(context, len(document) - 1 - start))
        offset += len(document)
    ids = np.fromiter((token for d in documents for token in d), dtype=np.int32, count=offset)
    return Windows(ids, np.asarray(starts, np.int64), np.asarray(lengths, np.int64))
