"""When labels are asked for, and when the reward model is fitted again."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How many labels, and how many fits, there should have been by a step.

    A share of the labels comes from the untrained policy. The others follow at a rate proportional
    to c / (T + c) at step T, so that the last of them comes when training ends.

    Attributes:
        labels: in all.
        first: how many of them come from the untrained policy.
        begin: the step at which the untrained policy's experience ends.
        total_steps: at which training ends.
        decay_steps: c.
        refits: how often the model is fitted again after its first fit.

    Source:
        Christiano et al. (2017), section 2.2.1 and appendix A.1, where c is 2,000,000.
    """

    labels: int
    first: int
    begin: int
    total_steps: int
    decay_steps: int
    refits: int

    def due(self, steps: int) -> int:
        """Labels that should be there at `steps`."""
        if steps < self.begin:
            return 0
        return self.first + math.floor((self.labels - self.first) * self._share(steps) + 1e-9)

    def fits(self, steps: int) -> int:
        """Fits, the first one not counted, that should be done at `steps`.

        They follow the labels: between any two there are equally many new ones. None falls on the
        end of training, where no policy would learn from it.
        """
        return min(self.refits, math.floor((self.refits + 1) * self._share(steps) + 1e-9))

    def _share(self, steps: int) -> float:
        """The part of the labels after the first that is due at `steps`."""
        span = max(1, self.total_steps - self.begin)
        passed = min(max(0, steps - self.begin), span)
        return math.log1p(passed / self.decay_steps) / math.log1p(span / self.decay_steps)
