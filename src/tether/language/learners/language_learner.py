"""What every learner of a language model shares: what it takes, and what of it is saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn

from tether.language.data.tokens import Record, check_records
from tether.language.learners.splitting import split
from tether.language.models.language_model import LanguageModel
from tether.language.runtime.state import load_parameters, parameters_to_state
from tether.learning.config import Config
from tether.learning.learner import Metrics, State

R = TypeVar("R", bound=Record)


class LanguageLearner(ABC):
    """A language model in the middle of learning.

    Attributes:
        config: the method's settings.
        language_model: trained in place.
        seed: decides everything random.
        total_steps: steps the run is meant to take, for schedules.
        modules: what learns, by name.
        origins: digests of what else was given by name, such as reward models.
    """

    config: Any
    config_class: ClassVar[type[Config]]

    def __init__(
        self, config: Any, language_model: LanguageModel, *, seed: int, total_steps: int
    ) -> None:
        """Takes the model, which it trains in place.

        Args:
            config: the method's settings.
            language_model: with an adapter, only that is trained.
            seed: decides everything random.
            total_steps: steps the run is meant to take, for schedules.
        """
        self.config = config
        self.language_model = language_model
        self.seed = seed
        self.total_steps = total_steps
        self.modules: dict[str, nn.Module] = {"model": language_model.model}
        self.origins: Mapping[str, str] = {}

    @property
    @abstractmethod
    def steps(self) -> int:
        """Examples, comparisons or episodes consumed so far."""

    @abstractmethod
    def iterate(self) -> Metrics:
        """One unit of learning."""

    @abstractmethod
    def state(self) -> State:
        """Everything that decides the future; ``modules`` is :meth:`modules_state`."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Undoes :meth:`state`: training continues with the same numbers."""

    def modules_state(self) -> State:
        """The parameters of all modules, by the modules' names."""
        return {name: parameters_to_state(module) for name, module in self.modules.items()}

    def restore_modules(self, state: Any) -> None:
        """Undoes :meth:`modules_state`."""
        for name, module in self.modules.items():
            load_parameters(module, state[name])


class RecordLearner(LanguageLearner, Generic[R]):
    """A learner whose experience is a list of records, some of them held out to measure on.

    Attributes:
        data: what is learned from.
        held_out: what is measured on; may be empty.
    """

    def __init__(
        self,
        config: Any,
        language_model: LanguageModel,
        data: Sequence[R],
        *,
        seed: int,
        total_steps: int,
        held_out: Sequence[R] | None = None,
    ) -> None:
        """Takes the model, which it trains in place, and the records.

        Args:
            config: the method's settings, with the share ``held_out``.
            language_model: with an adapter, only that is trained.
            data: records that fit the model's context.
            seed: decides everything random.
            total_steps: records the run is meant to take, for schedules.
            held_out: records to measure on; None: `config.held_out` of `data` is split off.

        Raises:
            UserError: no data, or some that does not fit the model.
        """
        super().__init__(config, language_model, seed=seed, total_steps=total_steps)
        for source, records in (("data", data), ("held_out", held_out)):
            if source == "data" or records:
                check_records(
                    records or (),
                    vocabulary=language_model.vocabulary,
                    context=language_model.context,
                    source=source,
                )
        # One record alone is learned from rather than measured.
        share = config.held_out if len(data) > 1 else 0.0
        self.data, self.held_out = (
            split(data, share) if held_out is None else (list(data), list(held_out))
        )
        self._steps = 0
        self._iterations = 0

    @property
    def steps(self) -> int:
        """Records consumed so far."""
        return self._steps
