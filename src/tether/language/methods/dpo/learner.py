"""Direct preference optimization, and its relatives: the same loop with another loss.

    log ref(y|x) of every completion of the data                  (once, before the first update)
    for each batch of B pairs (x, y_w, y_l):
        h = log pi(y|x) - log ref(y|x)                               (of both, summed over tokens)
        L = - mean log sigmoid(beta h_w - beta h_l)
        one AdamW step along the gradient of L

kto also learns from single completions, each found good or bad, held against z >= 0, which is how
far the policy has moved anyway, estimated on prompts beside other prompts' completions.

The reference is never read again after that, and nothing is sampled.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from tether import objectives
from tether.errors import UserError
from tether.language.data.tokens import Completion
from tether.language.learners.means import Means
from tether.language.learners.preference_learner import (
    PreferenceLearner,
    read_length,
)
from tether.language.learners.reference_log_probs import Groups, ReferenceLogProbs, fingerprint
from tether.language.learners.splitting import micro_batches
from tether.language.methods.dpo.losses import (
    DPOConfig,
    LabelledRecord,
    Scores,
    check_records_of,
    measure,
    measure_single,
    mismatched,
    pair_loss,
)
from tether.language.models.language_model import LanguageModel, reference_of
from tether.language.models.logprobs import token_log_probs
from tether.language.runtime.processes import processes
from tether.learning.config import Config
from tether.learning.learner import Metrics, State

_WITHOUT_REFERENCE: Final = ("simpo", "orpo", "unlikelihood", "preferred_ft")
_PREPARED_AT_ONCE: Final = 256


class DPOLearner(PreferenceLearner[LabelledRecord]):
    """Learns a policy from pairs, for kto also from judgements, without reward model or sampling.

    Source:
        Rafailov et al., "Direct Preference Optimization" (2023), equation 7; the other losses as
        named by their equations in `tether.objectives`.
    """

    config: DPOConfig
    config_class: ClassVar[type[Config]] = DPOConfig

    def __init__(
        self,
        config: DPOConfig,
        language_model: LanguageModel,
        data: Sequence[LabelledRecord],
        *,
        seed: int,
        total_steps: int,
        held_out: Sequence[LabelledRecord] | None = None,
        reference: LanguageModel | None = None,
    ) -> None:
        """Takes the model, which it trains in place, and the pairs.

        Args:
            config: the settings.
            language_model: the policy; with an adapter, only that is trained.
            data: pairs that fit the model's context.
            seed: decides everything random.
            total_steps: pairs the run is meant to take, for the schedule.
            held_out: pairs to measure on; None: `config.held_out` of `data` is split off.
            reference: another reference than the policy as it is now.

        Raises:
            UserError: no data, some that does not fit the model, or for kto a single prompt.
        """
        self._reference = reference
        super().__init__(
            config, language_model, data, seed=seed, total_steps=total_steps, held_out=held_out
        )

    def init(self) -> None:
        """Decides who the reference is, and starts with an empty record of what it thinks."""
        config, model = self.config, self.language_model
        check_records_of(config, (*self.data, *self.held_out))
        self._records: list[ReferenceLogProbs] = []
        if config.loss in _WITHOUT_REFERENCE:
            return
        if self._reference is not None:
            self._reference = dataclasses.replace(self._reference, frozen=True)
        elif model.has_adapter or not config.precompute_reference:
            self._reference = reference_of(model)
        key = fingerprint(self._reference or model)
        if config.loss == "kto":
            self._partners = [
                mismatched(records, self.data, context=model.context)
                for records in (self.data, self.held_out)
            ]
        for which, records in enumerate((self.data, self.held_out)):
            groups: Groups = [record.as_completions() for record in records]
            if config.loss == "kto":
                others = self._partners[which]
                groups = [(*group, other) for group, other in zip(groups, others, strict=True)]
            self._records.append(ReferenceLogProbs(groups, key, keep=config.keep_reference))

    def prepare(self) -> Metrics:
        """The reference's opinion of the next few hundred pairs, as long as any are missing."""
        if not self.config.precompute_reference or self._steps:
            return {}
        began = time.perf_counter()
        for records in self._records:
            rows = records.missing[:_PREPARED_AT_ONCE].tolist()
            if rows:
                records.get(rows, self._ask_reference)
                total = sum(len(r.groups) for r in self._records)
                missing = sum(len(r.missing) for r in self._records)
                tokens = sum(_tokens(records.groups[row]) for row in rows)
                return {
                    "reference/done": 1.0 - missing / total,
                    "time/tokens_per_second": tokens / (time.perf_counter() - began),
                }
        return {}

    def accumulate(self, member: int, rows: Sequence[int], means: Means) -> int:
        """Adds the gradient of a batch's mean loss."""
        pairs = [self.data[row] for row in rows]
        return self._read(pairs, self._opinion(0, rows), self._others(0, rows), means, learn=True)

    def evaluate(self, records: Sequence[LabelledRecord]) -> Metrics:
        """What is measured in training, on other pairs; changes nothing.

        Raises:
            UserError: a reference is needed that was not kept for pairs other than `held_out`.
        """
        rows = list(range(len(records)))
        others: Sequence[Completion] = ()
        if list(records) == self.held_out:
            opinion, others = self._opinion(1, rows), self._others(1, rows)
        elif not self._records:
            opinion = torch.zeros(len(records), 2)
        elif self._reference is None:
            raise UserError(
                "the reference model is no longer loaded; give these pairs as held_out, or train "
                "with precompute_reference off"
            )
        else:
            groups: Groups = [record.as_completions() for record in records]
            if self.config.loss == "kto":
                others = mismatched(records, self.data, context=self.language_model.context)
                groups = [(*group, other) for group, other in zip(groups, others, strict=True)]
            opinion = self._ask_reference(groups)
        means = Means()
        with torch.no_grad():
            self._read(records, opinion, others, means, learn=False)
        return means.read()

    def method_state(self) -> State:
        """What the reference said so far."""
        return {"reference": [records.state() for records in self._records]}

    def restore_method(self, state: State) -> None:
        """Undoes :meth:`method_state`."""
        saved: Any = state
        for records, values in zip(self._records, saved["reference"], strict=True):
            records.restore(values)

    def _read(
        self,
        pairs: Sequence[LabelledRecord],
        opinion: Tensor,
        others: Sequence[Completion],
        means: Means,
        *,
        learn: bool,
    ) -> int:
        """One batch: its measurements, and if it is to be learned its gradient."""
        size, device = self.config.micro_batch_size, self.language_model.device
        opinion = opinion.to(device)
        labels = torch.tensor([pair.label for pair in pairs], device=device)
        lengths = [read_length(pair) for pair in pairs]
        point = torch.zeros((), device=device)
        if others:
            with torch.no_grad():
                found = self._score(self.language_model, [[other] for other in others])
            gap = found[:, 0] - opinion[:, -1]
            point = objectives.kto_reference_point(gap)
            means.add("kl/mismatched", gap.sum(), len(pairs))
        for places in micro_batches(lengths, size):
            groups = [pairs[place].as_completions() for place in places]
            log_prob, length = self._sums(self.language_model, groups)
            columns = log_prob.shape[1]
            recorded = opinion[places, :columns].to(log_prob.dtype) if self._records else None
            scores = Scores(log_prob, length, recorded)
            loss, reward = pair_loss(self.config, scores, labels[places], point)
            if learn:
                (loss / len(pairs)).backward()  # type: ignore[no-untyped-call]
            means.add("loss", loss, len(places))
            verdicts = [pairs[place].label for place in places]
            if columns > 1:
                measure(means, scores, reward, verdicts)
            else:
                measure_single(means, scores, reward, verdicts, self.config.strength * point)
        return sum(lengths) + sum(_tokens([other]) for other in others)

    def _opinion(self, which: int, rows: Sequence[int]) -> Tensor:
        if not self._records:
            return torch.zeros(len(rows), 2)
        return self._records[which].get(rows, self._ask_reference)

    def _others(self, which: int, rows: Sequence[int]) -> Sequence[Completion]:
        if self.config.loss != "kto":
            return ()
        return [self._partners[which][row] for row in rows]

    @torch.no_grad()
    def _ask_reference(self, groups: Groups) -> Tensor:
        # Before the first update the policy is its own reference.
        return self._score(self._reference or self.language_model, groups)

    def _score(self, model: LanguageModel, groups: Groups) -> Tensor:
        """Log pi(y|x) of groups of equal size, in micro-batches; (B, size) float64."""
        shape = (len(groups), len(groups[0]))
        log_prob = torch.zeros(shape, dtype=torch.float64, device=model.device)
        lengths = [_tokens(group) for group in groups]
        for places in micro_batches(lengths, self.config.micro_batch_size):
            log_prob[places] = self._sums(model, [groups[p] for p in places])[0].double()
        processes().add_up([log_prob])
        return log_prob

    def _sums(self, model: LanguageModel, groups: Groups) -> tuple[Tensor, Tensor]:
        """Log pi(y|x) summed over tokens, and tokens, of groups of equal size; each (B, size)."""
        log_probs, mask = token_log_probs(model, self.layout(groups))
        shape = (len(groups), len(groups[0]))
        return log_probs.sum(-1).view(shape), mask.sum(-1).view(shape).to(log_probs.dtype)


def _tokens(group: Sequence[Completion]) -> int:
    return len(group[0].prompt_ids) + sum(len(item.completion_ids) for item in group)
