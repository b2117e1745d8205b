"""What RLHF does with a rollout: measure it once, then move policy and critic by minibatches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tether import objectives
from tether.errors import NonFiniteError
from tether.language.data.tokens import Example, TokenBatch, collate
from tether.language.learners.means import Means
from tether.language.learners.optimizer import Optimizer, update_together
from tether.language.learners.rollout import Episodes, shuffled
from tether.language.learners.splitting import micro_batches
from tether.language.methods.rlhf.advantages import Estimate
from tether.language.methods.rlhf.config import RLHFConfig
from tether.language.methods.rlhf.critic import Critic
from tether.language.models.language_model import LanguageModel, reference_of
from tether.language.models.logprobs import hidden_states, score_tokens, token_log_probs
from tether.language.runtime.processes import processes
from tether.learning.learner import Metrics, State
from tether.learning.seeding import Stream, generator

Minibatches = list[list[int]]

# Streams of random numbers beside those of the rollout.


class Measured(NamedTuple):
    """What policy, reference and critic say of a rollout; each (N, T), detached.

    What stands where `mask` is false is never used.
    """

    mask: Tensor
    log_prob: Tensor
    reference_log_prob: Tensor
    entropy: Tensor
    value: Tensor


class Update:
    """The policy, its reference and its critic, and the optimizers that move them.

    Attributes:
        language_model: the policy.
        reference: the policy as it was.
        critic: None for estimators that need none.
        optimizers: the policy's, with a critic that shares its trunk; then a separate critic's.
        count: iterations so far, from which the minibatches follow.
        pretrained: pretraining examples met so far.
    """

    def __init__(
        self,
        config: RLHFConfig,
        language_model: LanguageModel,
        critic: Critic | None,
        pretraining: Sequence[Example],
        *,
        seed: int,
        total_steps: int,
    ) -> None:
        """Takes models, which it moves in place, and texts for PPO-ptx."""
        self.config = config
        self.language_model = language_model
        self.reference = reference_of(language_model)
        self.critic = critic
        self.pretraining = pretraining
        self.seed = seed
        groups = [language_model.trainable_parameters()]
        if critic is not None:
            learning = [p for p in critic.parameters() if p.requires_grad]
            groups = [[*groups[0], *learning]] if critic.trunk is None else [groups[0], learning]
        self.optimizers = [Optimizer(group, config, total_steps) for group in groups]
        self.count = 0
        self.pretrained = 0

    def minibatches(self) -> list[Minibatches]:
        """Rows of each minibatch of each epoch of this iteration."""
        config = self.config
        random = generator(self.seed, Stream.RLHF_MINIBATCHES, self.count)
        orders = [random.permutation(config.batch_size) for _ in range(config.ppo_epochs)]
        return [order.reshape(-1, config.minibatch_size).tolist() for order in orders]

    @torch.no_grad()
    def measure(self, episodes: Episodes, minibatches: Minibatches) -> Measured:
        """What policy, reference and critic say of a rollout, before it moves anything.

        Args:
            episodes: N completions of at most T tokens.
            minibatches: those of the first epoch, N rows in all. A matrix product of other rows
                may round differently in the last bit, so everything is computed in the
                neighbourhoods of the first update, whose ratio is then exactly 1.
        """
        shape = (len(episodes.completions), int(episodes.lengths.max()))
        policy, temperature = self.language_model, self.config.temperature
        found: dict[str, Tensor] = {}
        for minibatch in minibatches:
            for rows, batch in self._micro_batches(episodes, minibatch):
                hidden = hidden_states(policy, batch)
                scores = score_tokens(
                    policy, batch, temperature=temperature, entropy=True, hidden=hidden
                )
                reference, _ = token_log_probs(self.reference, batch, temperature=temperature)
                value = (
                    torch.zeros_like(reference)
                    if self.critic is None
                    else self.critic(batch, hidden)
                )
                entropy: Any = scores.entropy
                parts = Measured(scores.mask, scores.log_probs, reference, entropy, value)
                for name, part in parts._asdict().items():
                    if name not in found:
                        found[name] = part.new_zeros(shape)
                    found[name][rows, : part.shape[1]] = part
        mask = found["mask"].int()
        processes().add_up([mask, *(part for name, part in found.items() if name != "mask")])
        return Measured(**{**found, "mask": mask.bool()})

    def run(
        self,
        steps: int,
        episodes: Episodes,
        measured: Measured,
        estimate: Estimate,
        beta: float,
        epochs: list[Minibatches],
    ) -> Metrics:
        """All gradient steps of one iteration; measurements are means over the last epoch.

        Args:
            steps: the learner's steps before the rollout, for the schedule.
            episodes: the rollout.
            measured: see :meth:`measure`.
            estimate: advantages and targets.
            beta: KL coefficient in GRPO's loss.
            epochs: see :meth:`minibatches`.

        Raises:
            NonFiniteError: a loss or gradient is NaN or infinite; that minibatch moved nothing.
        """
        first_ratio = math.nan
        tally = Means()
        for minibatches in epochs:
            tally = Means()
            for rows in minibatches:
                ratio = self.gradient(steps, episodes, measured, estimate, beta, rows, tally)
                first_ratio = ratio if math.isnan(first_ratio) else first_ratio
                if self.config.pretraining_coefficient:
                    self._pretrain(tally)
                name = episodes.named(rows)
                updates = update_together(self.optimizers, steps, name)
                tally.add("optimizer/gradient_norm", updates[0]["optimizer/gradient_norm"])
                if len(updates) > 1:
                    tally.add("value/gradient_norm", updates[1]["optimizer/gradient_norm"])
        self.count += 1
        rate = updates[0]["optimizer/learning_rate"]
        metrics = {"policy/first_ratio": first_ratio, "optimizer/learning_rate": rate}
        return tally.read() | metrics

    def gradient(
        self,
        steps: int,
        episodes: Episodes,
        measured: Measured,
        estimate: Estimate,
        beta: float,
        rows: Sequence[int],
        tally: Means,
    ) -> float:
        """Adds the gradient of a minibatch's mean loss to what policy and critic have.

        L = -[clipped surrogate] + c_v [clipped value loss] (+ beta [KL penalty] for GRPO)

        c_v is `value_coefficient` where policy and critic share a trunk, else 1.

        Args:
            steps: the learner's steps, named in errors.
            episodes: the rollout.
            measured: see :meth:`measure`.
            estimate: advantages and targets.
            beta: KL coefficient in GRPO's loss.
            rows: the minibatch.
            tally: takes in measurements.

        Returns:
            The ratio pi / pi_old that is farthest from 1.

        Raises:
            NonFiniteError: the loss is NaN or infinite.
        """
        by_token = self.config.normalization == "token"
        count = int(episodes.lengths[rows].sum()) if by_token else len(rows)
        losses, ratios, order = [], [], []
        for part, batch in self._micro_batches(episodes, rows):
            loss, log_ratio = self._losses(part, batch, measured, estimate, beta, tally)
            (loss.sum() / count).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            ratios.append(log_ratio.flatten()[log_ratio.abs().argmax()])
            order.extend(part)
        values, together = torch.cat(losses), torch.stack(ratios)
        bad = []
        if not bool(torch.isfinite(values).all()):
            pairs = zip(order, values.tolist(), strict=True)
            bad = [[row, value] for row, value in pairs if not math.isfinite(value)]
        farthest = float(together[together.abs().argmax()])
        parts = processes().gather([bad, farthest])
        if bad := sorted(pair for found, _ in parts for pair in found):
            for optimizer in self.optimizers:
                optimizer.clear()
            raise NonFiniteError(
                f"the loss became {sum(value for _, value in bad)} at step {steps} in "
                f"{episodes.named([row for row, _ in bad])}; lower learning_rate "
                f"({self.config.learning_rate:g}) or look at the reward's scale"
            )
        return float(np.exp(max((ratio for _, ratio in parts), key=abs)))

    def state(self) -> State:
        """Optimizers and counters; parameters are saved by those who own them."""
        return {
            "optimizers": [optimizer.state() for optimizer in self.optimizers],
            "count": self.count,
            "pretrained": self.pretrained,
        }

    def restore(self, state: State) -> None:
        """Undoes :meth:`state`."""
        saved: Any = state
        for optimizer, moments in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.restore(moments)
        self.count = int(saved["count"])
        self.pretrained = int(saved["pretrained"])

    def _losses(
        self,
        rows: Sequence[int],
        batch: TokenBatch,
        measured: Measured,
        estimate: Estimate,
        beta: float,
        tally: Means,
    ) -> tuple[Tensor, Tensor]:
        """Each completion's loss, summed over its tokens, (b,); and log pi / pi_old, (b, C)."""
        config, mask = self.config, batch.mask
        columns = slice(0, mask.shape[1])
        old, advantage = measured.log_prob[rows, columns], estimate.advantage[rows, columns]
        hidden = hidden_states(self.language_model, batch)
        log_prob = score_tokens(
            self.language_model, batch, temperature=config.temperature, hidden=hidden
        ).log_probs
        log_ratio = torch.where(mask, log_prob - old, 0.0)
        if config.epsilon is None:
            gain = objectives.surrogate(log_ratio, advantage, mask, reduction="none")
        else:
            gain = objectives.clipped_surrogate(
                log_ratio, advantage, config.epsilon, mask, reduction="none"
            )
        loss = -gain.sum(1)
        moved = log_ratio.detach()
        tokens = batch.tokens
        tally.add("policy/approx_kl", objectives.kl_k3(-moved, mask).sum(), tokens)
        outside = objectives.clip_fraction(moved, None, config.epsilon or 0.2, mask)
        tally.add("policy/clip_fraction", outside * tokens, tokens)
        if config.estimator == "grpo" and beta:
            estimator = objectives.kl_k2 if config.kl_estimator == "k2" else objectives.kl_k3
            nats = estimator(log_prob - measured.reference_log_prob[rows, columns], mask)
            # The completions are those of the old policy.
            loss = loss + beta * (moved.exp() * nats).sum(1)
        if self.critic is not None:
            unit = self._value_unit(measured, estimate)
            value = self.critic(batch, hidden) / unit
            target = estimate.target[rows, columns] / unit
            before = measured.value[rows, columns] / unit
            if config.value_epsilon is None:
                error = objectives.value_loss(value, target, mask, reduction="none")
            else:
                error = objectives.clipped_value_loss(
                    value, before, target, config.value_epsilon, mask, reduction="none"
                )
            tally.add("value/loss", error.sum() * unit**2, tokens)
            # A critic apart from the policy moves by itself, and as fast as it can learn.
            weight = config.value_coefficient if self.critic.trunk is None else 1.0
            loss = loss + weight * error.sum(1)
        return loss, moved

    def _value_unit(self, measured: Measured, estimate: Estimate) -> Tensor:
        """What the critic's errors are counted in: their root mean square before the update, or 1.

        Where a nat has become dear, rewards are tens of nats and squared errors hundreds: counted
        in nats, the critic's gradient would take over the trunk and ruin the policy.
        """
        square = (measured.value - estimate.target).square()
        unit: Tensor = objectives.masked_mean(square, measured.mask).sqrt().clamp(min=1.0)
        return unit

    def _pretrain(self, tally: Means) -> None:
        """PPO-ptx: adds the gradient of the mean negative log-likelihood of pretraining tokens."""
        size = self.config.minibatch_size
        numbers = range(self.pretrained, self.pretrained + size)
        rows = shuffled(numbers, len(self.pretraining), self.seed, Stream.PRETRAINING_ORDER)
        examples = [self.pretraining[row] for row in rows]
        self.pretrained += size
        lengths = [len(e.prompt_ids) + len(e.completion_ids) for e in examples]
        pad, device = self.language_model.pad_id, self.language_model.device
        batches = [
            collate([examples[place] for place in places], pad_id=pad).to(device)
            for places in micro_batches(lengths, self.config.micro_batch_size)
        ]
        tokens = sum(
            len(e.completion_ids) if e.loss_mask is None else sum(e.loss_mask) for e in examples
        )
        for batch in batches:
            log_prob, mask = token_log_probs(self.language_model, batch)
            loss = objectives.masked_negative_log_likelihood(log_prob, mask, reduction="sum")
            weight = self.config.pretraining_coefficient / tokens
            (weight * loss).backward()
            tally.add("pretraining/loss", loss, batch.tokens)

    def _micro_batches(
        self, episodes: Episodes, rows: Sequence[int]
    ) -> Iterator[tuple[list[int], TokenBatch]]:
        """Some rows of a rollout at a time, longest first, with their tokens."""
        items = [episodes.completions[row] for row in rows]
        lengths = [len(item.prompt_ids) + len(item.completion_ids) for item in items]
        for places in micro_batches(lengths, self.config.micro_batch_size):
            batch = collate([items[place] for place in places], pad_id=self.language_model.pad_id)
            yield [rows[place] for place in places], batch.to(self.language_model.device)
