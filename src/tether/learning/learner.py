"""What the one loop asks of a method: four members, and nothing about how it learns.

What only some learners have is a protocol of its own, which the engine looks for.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Scalar: TypeAlias = int | float | str | bool | None
StateValue: TypeAlias = (
    "dict[str, StateValue] | NDArray[Any] | np.generic | Scalar | Sequence[StateValue]"
)
State: TypeAlias = dict[str, "StateValue"]
"""A nested dict whose leaves are NumPy arrays, int, float, str, bool, None, or lists of these."""

Metrics: TypeAlias = dict[str, float | int]
"""Named numbers of one iteration, such as ``return/mean``, ``policy/kl`` or ``loss/value``.

A name is ``group/quantity``. Names under ``time/`` tell of the clock and are the only ones that
may differ between two runs of one seed. ``step`` is taken: it is the learner's ``steps``.
"""


class Learner(Protocol):
    """A method in the middle of learning.

    ``Run.train`` calls nothing but these four members, so anything that has them (PPO on a robot,
    DPO on a language model, the cross-entropy method) is logged, checkpointed, interrupted and
    resumed alike.
    """

    @property
    def steps(self) -> int:
        """Units of experience consumed so far: environment steps, pairs, episodes. Never falls."""
        ...

    def iterate(self) -> Metrics:
        """Does one unit of learning (collect, estimate, update) and returns its measurements.

        Raises:
            tether.errors.NonFiniteError: if a loss, gradient or parameter became NaN or Inf.
        """
        ...

    def state(self) -> State:
        """Returns everything that decides the future: the next ``iterate`` depends on nothing else.

        That is parameters, optimizer, normalizers, every random generator, the physics state of
        the environments, data order and ``steps``. Calling it must change nothing.
        """
        ...

    def restore(self, state: State) -> None:
        """Becomes the learner that returned ``state``, bit for bit."""
        ...


@runtime_checkable
class Finishes(Protocol):
    """A learner that may have nothing left to learn before its budget is used up."""

    @property
    def finished(self) -> bool:
        """Whether more iterations would change nothing."""
        ...


@runtime_checkable
class HasOrigins(Protocol):
    """A learner that was given more by name than its model and its data, such as reward models.

    Attributes:
        origins: digests by name; a resumed run must find the same.
    """

    origins: Mapping[str, str]
