"""The comparisons that the reward model learns from, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from tether.learning.seeding import Stream, generator

_ARRAYS: Final = ("inputs", "mask", "label", "returns", "draws")


class Compared(NamedTuple):
    """An answered query.

    Attributes:
        key: the answer's own name.
        segments: K arrays (T, D), T up to L; of a ranking, the best first.
        label: the probability that the first is better.
        returns: K true sums of rewards, NaN where they are not known.
    """

    key: str
    segments: Sequence[np.ndarray]
    label: float
    returns: Sequence[float]


class Comparisons:
    """C answered queries about K segments each, of L steps at most.

    Each member of the ensemble learns from draws of its own: it draws each comparison as often as a
    Poisson variable of mean 1 says, which is what |D| draws with replacement come to. What it has
    not drawn, 1/e of all, is held out for its validation. A comparison keeps its draws while others
    come and go, so that none moves from one side to the other.

    Attributes:
        inputs: (C, K, L, D) float32, of the reward model; zero after a segment's end.
        mask: (C, K, L) bool, where a segment has steps.
        label: (C,) float32, the probability that the first is better; rankings are stored with
            their best segment first and have 1 here.
        returns: (C, K) float64, the true sums of rewards, NaN where they are not known.
        draws: (C, M) int64, how often each member draws it.
        keys: (C,), the answers' own names.

    Source:
        Christiano et al. (2017), section 2.2.3; Oza and Russell, "Online bagging and boosting"
        (2001), for the Poisson variable.
    """

    def __init__(
        self, items: int, steps: int, width: int, *, members: int, seed: int, expected: int = 0
    ) -> None:
        """No comparisons yet.

        Args:
            items: K.
            steps: L.
            width: D.
            members: M.
            seed: decides the draws.
            expected: how many comparisons there will be, so that arrays of this size are compiled.
        """
        self._expected = expected
        self.inputs = np.zeros((0, items, steps, width), np.float32)
        self.mask = np.zeros((0, items, steps), bool)
        self.label = np.zeros(0, np.float32)
        self.returns = np.zeros((0, items))
        self.draws = np.zeros((0, members), np.int64)
        self.keys: list[str] = []
        self.version = 0
        self._members, self._seed, self._count = members, seed, 0

    @property
    def capacity(self) -> int:
        """Rows that compiled functions get: what is expected, doubled until it suffices."""
        rows = -(-max(self._expected, 1) // 128) * 128
        while rows < len(self):
            rows *= 2
        return rows

    def __len__(self) -> int:
        return len(self.keys)

    def extend(self, new: Sequence[Compared]) -> None:
        """Takes in comparisons; what is there already, by its key, stays as it is."""
        there = set(self.keys)
        new = [one for one in new if one.key not in there]
        if not new:
            return
        inputs = np.zeros((len(new), *self.inputs.shape[1:]), np.float32)
        mask = np.zeros((len(new), *self.mask.shape[1:]), bool)
        draws = np.zeros((len(new), self._members), np.int64)
        for row, one in enumerate(new):
            for k, segment in enumerate(one.segments):
                inputs[row, k, : len(segment)] = segment
                mask[row, k, : len(segment)] = True
            rng = generator(self._seed, Stream.REWARD_BOOTSTRAP, self._count + row)
            draws[row] = rng.poisson(1.0, self._members)
        self._count += len(new)
        self.inputs = np.concatenate([self.inputs, inputs])
        self.mask = np.concatenate([self.mask, mask])
        self.label = np.append(self.label, np.array([one.label for one in new], np.float32))
        self.returns = np.concatenate([self.returns, np.array([one.returns for one in new])])
        self.draws = np.concatenate([self.draws, draws])
        self.keys += [one.key for one in new]
        self.version += 1

    def remove(self, key: str) -> bool:
        """Takes a comparison out again; whether it was there."""
        if key not in self.keys:
            return False
        row = self.keys.index(key)
        for name in _ARRAYS:
            setattr(self, name, np.delete(getattr(self, name), row, axis=0))
        del self.keys[row]
        self.version += 1
        return True

    @property
    def weights(self) -> np.ndarray:
        """How often each member learns from each comparison, (M, C).

        A member that has drawn nothing, of a handful of comparisons, learns from all of them.
        """
        drawn = self.draws.T
        return np.where(drawn.any(axis=1, keepdims=True), drawn, 1)

    def order(self, rng: np.random.Generator, steps: int, size: int) -> np.ndarray:
        """Rows for `steps` minibatches of each member, (steps, M, size), of its own draws only."""
        chosen = []
        for weight in self.weights:
            drawn = np.repeat(np.arange(len(self)), weight)
            passes = -(-steps * size // len(drawn))
            rows = np.concatenate([rng.permutation(drawn) for _ in range(passes)])
            chosen.append(rows[: steps * size].reshape(steps, size))
        return np.stack(chosen, axis=1).astype(np.int32)

    def state(self) -> dict[str, Any]:
        """All of it."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return {**arrays, "keys": list(self.keys), "count": self._count}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        for name in _ARRAYS:
            setattr(self, name, np.asarray(state[name]))
        self.keys = list(state["keys"])
        self._count = int(state["count"])
        self.version += 1
