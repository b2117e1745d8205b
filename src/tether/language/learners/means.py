"""Means of measurements over micro-batches and processes."""

from __future__ import annotations

from torch import Tensor, stack

from tether.language.runtime.processes import processes
from tether.learning.learner import Metrics


class Means:
    """Means of measurements: summed where they arise, read from the device all at once.

    Numbers that are at hand already stay apart from tensors, wherever those are. Of several
    processes that learn together, each measures its share.
    """

    def __init__(self) -> None:
        """Nothing measured yet."""
        self._sums: dict[str, tuple[Tensor | float, float]] = {}

    def add(self, name: str, total: Tensor | float, count: float = 1) -> None:
        """Takes in a sum of `count` values, a number or a tensor without axes."""
        if isinstance(total, Tensor):
            total = total.detach()
        if name in self._sums:
            before, counted = self._sums[name]
            total, count = before + total, counted + count
        self._sums[name] = (total, count)

    def read(self) -> Metrics:
        """The mean of each measurement of at least one value."""
        counted = {name: pair for name, pair in self._sums.items() if pair[1]}
        # float64 keeps a count of tokens whole, and adds up micro-batches without rounding.
        waiting = [total.double() for total, _ in counted.values() if isinstance(total, Tensor)]
        arrived = iter(stack(waiting).tolist() if waiting else ())
        own = {
            name: [next(arrived) if isinstance(total, Tensor) else total, count]
            for name, (total, count) in counted.items()
        }
        sums: dict[str, list[float]] = {}
        for part in processes().gather(own):
            for name, (total, count) in part.items():
                before = sums.get(name, [0.0, 0.0])
                sums[name] = [before[0] + total, before[1] + count]
        return {name: total / count for name, (total, count) in sums.items()}
