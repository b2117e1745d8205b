"""The reward model: a language model that answers with a number instead of a next token."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tether.errors import UserError
from tether.language.data.batches import PromptAndCompletion
from tether.language.data.tokens import Completion, TokenBatch, collate
from tether.language.models.ensemble import VARIANCE_WEIGHT, Combine, combined
from tether.language.models.language_model import LanguageModel, ScalarHead
from tether.language.models.logprobs import hidden_states
from tether.language.runtime.state import load_parameters, parameters_digest, parameters_to_state
from tether.learning.learner import State
from tether.learning.seeding import Stream, derived_seed

_FIRST: Final = "default"
"""What peft calls the adapter a model is loaded with."""


class RewardModel:
    """r(x, y) = gain (w . h + b) + bias, with h the hidden state of the completion's last token.

    With several members each has a head of its own, and an adapter of its own where the language
    model has adapters; without adapters the heads share one trunk. What members disagree about,
    they have not learned.

    Attributes:
        language_model: the trunk.
        heads: one for each member.
        gain: factor of each member, (N,) float64; 1 until :meth:`normalize`.
        bias: what is added for each member, (N,) float64; 0 until :meth:`normalize`.
        combine: how members become one score.
        variance_weight: what a unit of their variance costs, where `combine` is "mean-variance".

    Source:
        InstructGPT (Ouyang et al. 2022), section 3.5, "Reward modeling"; the normalization of gain
        and bias is that of Ziegler et al., "Fine-Tuning Language Models from Human Preferences"
        (2019), section 2.1. Ensembles: Coste et al., "Reward Model Ensembles Help Mitigate
        Overoptimization" (2023), section 3, where "lowest" is called worst-case and "mean-variance"
        uncertainty-weighted optimization.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        members: int = 1,
        combine: Combine = "mean",
        variance_weight: float = VARIANCE_WEIGHT,
        seed: int = 0,
    ) -> None:
        """Puts new heads (and, beside the first, new adapters) on a language model.

        Args:
            language_model: changed in place where adapters are added.
            members: how many.
            combine: "mean"; "lowest", which trusts the most sceptical; or "mean-variance", the mean
                less the variance times `variance_weight`.
            variance_weight: see `combine`.
            seed: of the heads' and adapters' first values.

        Raises:
            UserError: no members.
        """
        if members < 1:
            raise UserError(f"members is {members}; expected at least 1")
        self.language_model = language_model
        self.combine = combine
        self.variance_weight = variance_weight
        self.heads = nn.ModuleList(
            ScalarHead(
                language_model.hidden_size, "reward", seed=derived_seed(seed, Stream.HEADS, member)
            )
            for member in range(members)
        ).to(language_model.device)
        self.gain = np.ones(members)
        self.bias = np.zeros(members)
        self.adapters = [_FIRST, *(f"member{member}" for member in range(1, members))]
        if not language_model.has_adapter or members == 1:
            self.adapters = []
        for member, name in list(enumerate(self.adapters))[1:]:
            _add_adapter(language_model.model, name, derived_seed(seed, Stream.ADAPTERS, member))

    @property
    def members(self) -> int:
        """N, how many there are."""
        return len(self.heads)

    def groups(self) -> list[list[nn.Parameter]]:
        """Parameters that learn, by those that learn together: members, or one shared trunk."""
        if not self.adapters:
            return [[*self.language_model.trainable_parameters(), *self.heads.parameters()]]
        named = [(n, p) for n, p in self.language_model.model.named_parameters() if p.requires_grad]
        return [
            [*(p for n, p in named if f".{adapter}." in n), *head.parameters()]
            for adapter, head in zip(self.adapters, self.heads, strict=True)
        ]

    def raw(self, batch: TokenBatch, member: int = 0) -> Tensor:
        """One member's scores w . h + b of the completions in a batch; differentiable, (I,)."""
        batch = batch.to(self.language_model.device)
        with self._active(member):
            hidden = hidden_states(self.language_model, batch)
        scores: Tensor = self.heads[member](batch.at_last(hidden))
        return scores

    @torch.no_grad()
    def member_scores(
        self, items: Sequence[PromptAndCompletion], *, batch_size: int = 32, raw: bool = False
    ) -> NDArray[np.float64]:
        """Each member's normalized scores.

        Args:
            items: Completions or the like: prompt_ids and completion_ids.
            batch_size: rows read at a time.
            raw: leave gain and bias out, so that sigmoid of a difference is a probability.

        Returns:
            (B, N).
        """
        scores = np.zeros((len(items), self.members))
        order = sorted(range(len(items)), key=lambda i: -_length(items[i]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = collate([items[row] for row in rows], pad_id=self.language_model.pad_id)
            for member, found in enumerate(self._raw_of_each(batch)):
                scores[rows, member] = found.double().cpu().numpy()
        return scores if raw else scores * self.gain + self.bias

    def __call__(
        self, items: Sequence[PromptAndCompletion], *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Rewards of completions, (B,); see :meth:`score`."""
        scores = self.member_scores(items, batch_size=batch_size)
        return self.together(scores)

    def together(self, scores: NDArray[np.float64]) -> NDArray[np.float32]:
        """What the members' scores, (B, N) as of :meth:`member_scores`, come to; (B,)."""
        return combined(scores.T, self.combine, self.variance_weight).astype(np.float32)

    def combining(self, combine: Combine, variance_weight: float) -> Self:
        """The same reward model, with another way to make one score of its members'."""
        other = copy.copy(self)
        other.combine, other.variance_weight = combine, variance_weight
        return other

    def score(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        batch_size: int = 32,
    ) -> NDArray[np.float32]:
        """Rewards of completions; without gradients.

        Args:
            prompt_ids: B prompts.
            completion_ids: B completions, each with its end-of-sequence token if it has one: the
                last token is where the reward is read.
            batch_size: rows read at a time.

        Returns:
            (B,), in standard deviations of the samples the model was normalized on.

        Raises:
            UserError: numbers that differ, an empty prompt or completion, or one too long.
        """
        if len(prompt_ids) != len(completion_ids):
            raise UserError(
                f"there are {len(prompt_ids)} prompts and {len(completion_ids)} completions; "
                "expected one completion for each prompt"
            )
        pairs = zip(prompt_ids, completion_ids, strict=True)
        items = [Completion(tuple(prompt), tuple(completion)) for prompt, completion in pairs]
        longest = max(map(_length, items), default=0)
        if longest > self.language_model.context:
            raise UserError(
                f"a prompt and its completion take {longest} tokens; the reward model's context is "
                f"{self.language_model.context}: shorten them"
            )
        return self(items, batch_size=batch_size)

    def normalize(self, items: Sequence[PromptAndCompletion], *, batch_size: int = 32) -> None:
        """Sets gain and bias so that every member has mean 0 and deviation 1 on some samples.

        Differences of scores are all that preferences teach; their level and, among members, their
        scale are arbitrary. A known scale gives a KL penalty its meaning.

        Args:
            items: at least two different completions, best sampled from the reference policy.
            batch_size: rows read at a time.

        Raises:
            UserError: the samples all score the same.
        """
        scores = self.member_scores(items, batch_size=batch_size, raw=True)
        deviation = scores.std(axis=0)
        different = {(tuple(item.prompt_ids), tuple(item.completion_ids)) for item in items}
        # Equal completions may differ by rounding, so their deviation alone would not tell.
        if len(different) < 2 or not np.all(deviation > 0):
            raise UserError(
                f"the {len(items)} samples to normalize on all score the same; give at least two "
                "different completions"
            )
        self.gain = 1.0 / deviation
        self.bias = -scores.mean(axis=0) / deviation

    def state(self) -> State:
        """Heads, what learns of the trunk, gain and bias."""
        return {
            "modules": {
                "model": parameters_to_state(self.language_model.model),
                "heads": parameters_to_state(self.heads),
            },
            "method": self.normalization(),
        }

    def normalization(self) -> State:
        """Gain and bias as a state."""
        return {"gain": self.gain.copy(), "bias": self.bias.copy()}

    def restore(self, state: State) -> Self:
        """Takes up the reward model in a learner's state, or in what :meth:`state` returned."""
        saved: Any = state
        load_parameters(self.language_model.model, saved["modules"]["model"])
        load_parameters(self.heads, saved["modules"]["heads"])
        self.gain = np.array(saved["method"]["gain"], np.float64)
        self.bias = np.array(saved["method"]["bias"], np.float64)
        return self

    @property
    def normalized(self) -> bool:
        """Whether :meth:`normalize` was called, here or where the model was learned."""
        return not (np.all(self.gain == 1.0) and np.all(self.bias == 0.0))

    def digest(self) -> str:
        """Equal if and only if all that decides a score is: base, adapters, heads, gain, bias."""
        modules = (self.language_model.model, self.heads)
        learned = [
            (name, parameter)
            for module in modules
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]
        base = self.language_model.origin if self.language_model.has_adapter else ""
        seal = hashlib.sha256(f"{base} {parameters_digest(learned)}".encode())
        seal.update(self.gain.tobytes() + self.bias.tobytes())
        if self.combine == "mean-variance":
            seal.update(f"{self.combine} {self.variance_weight!r}".encode())
        return seal.hexdigest()

    def _raw_of_each(self, batch: TokenBatch) -> Iterator[Tensor]:
        """Every member's raw scores; a trunk that they share is read once."""
        if self.adapters:
            yield from (self.raw(batch, member) for member in range(self.members))
            return
        batch = batch.to(self.language_model.device)
        last = batch.at_last(hidden_states(self.language_model, batch))
        yield from (head(last) for head in self.heads)

    @contextmanager
    def _active(self, member: int) -> Iterator[None]:
        if not self.adapters:
            yield
            return
        model = self.language_model.model
        model.set_adapter(self.adapters[member])
        try:
            yield
        finally:
            # Choosing an adapter froze the others, which learn and are saved no less.
            model.set_requires_grad(self.adapters, True)


def _add_adapter(model: Any, name: str, seed: int) -> None:
    settings = copy.deepcopy(model.peft_config[_FIRST])
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        model.add_adapter(name, settings)
    model.set_requires_grad([*model.peft_config], True)
    model.eval()


def _length(item: PromptAndCompletion) -> int:
    return len(item.prompt_ids) + len(item.completion_ids)
