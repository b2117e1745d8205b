"""The order in which examples are met: every one once in an epoch, a function of the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tether.errors import UserError
from tether.learning.learner import State
from tether.learning.seeding import VERSION, Stream, generator

_BATCHES_PER_POOL = 32


class Order:
    """Batches of rows, epoch after epoch.

    An epoch's order follows from the seed and the epoch's number, so what has to be remembered is
    only how far it has come.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        member: int = 0,
        bucket: bool = False,
    ) -> None:
        """The first epoch is about to begin.

        Args:
            lengths: tokens of each row.
            batch_size: rows in a batch; the last of an epoch may have fewer.
            seed: decides the order.
            member: which of several learners of one run meets the rows, each in another order.
            bucket: put rows of about one length together, so that little is padded: the shuffled
                rows are cut into pools of 32 batches, each sorted by length, and the batches are
                shuffled.

        Raises:
            UserError: there are no rows.
        """
        if not lengths:
            raise UserError("there are no examples to learn from")
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._member = member
        self._bucket = bucket
        self._start(0, 0)

    def next(self) -> list[int]:
        """The rows of the next batch."""
        if self._batch == len(self._batches):
            self._start(self.epoch + 1, 0)
        rows = self._batches[self._batch]
        self._batch += 1
        return list(rows)

    def state(self) -> State:
        """How far it has come."""
        return {"streams": VERSION, "epoch": self.epoch, "batch": self._batch}

    def restore(self, state: State) -> None:
        """Goes on where the order that returned `state` stood."""
        restored: Any = state
        # The orders of the first checkpoints, which do not say it, cannot be drawn any more.
        _ = restored["streams"]
        self._start(int(restored["epoch"]), int(restored["batch"]))

    def _start(self, epoch: int, batch: int) -> None:
        self.epoch = epoch
        self._batch = batch
        random = generator(self._seed, Stream.DATA_ORDER, self._member, epoch)
        order = random.permutation(len(self._lengths))
        size = self._batch_size
        if self._bucket:
            pool = size * _BATCHES_PER_POOL
            pools = [order[i : i + pool] for i in range(0, len(order), pool)]
            order = np.concatenate(
                [rows[np.argsort(self._lengths[rows], kind="stable")] for rows in pools]
            )
        batches = [order[i : i + size].tolist() for i in range(0, len(order), size)]
        if self._bucket:
            batches = [batches[i] for i in random.permutation(len(batches))]
        self._batches: list[list[int]] = batches
