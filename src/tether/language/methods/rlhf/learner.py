"""RLHF: InstructGPT's third step, a language model moved by PPO towards what scores well.

    for each iteration:
        y ~ pi_old(.|x) for a batch of prompts x;  s = score(x, y)
        r_t = -beta (log pi_old(y_t|x, y_<t) - log ref(y_t|x, y_<t)),  plus s on the last token
        advantages A: GAE with a critic, or REINFORCE, RLOO, GRPO without one
        K epochs of minibatch Adam on  E[min(r A, clip(r, 1 - eps, 1 + eps) A)]

Every log-probability comes from one scorer (:mod:`tether.language.models.logprobs`), the old ones
in the very micro-batches of the first epoch, so the first ratio is 1 to the last bit. Losses are
summed over micro-batches and divided once by the minibatch's count, so their size changes no
gradient.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from tether import objectives
from tether.errors import NonFiniteError, UserError
from tether.language.data.prompt_rows import PromptRows
from tether.language.data.tokenize import digest
from tether.language.data.tokens import Example, Prompt, check_records
from tether.language.learners.language_learner import LanguageLearner
from tether.language.learners.rollout import EpisodeCollector, Episodes
from tether.language.learners.sample_table import SampledCompletion, SampleTable
from tether.language.methods.rlhf import advantages
from tether.language.methods.rlhf.config import RLHFConfig
from tether.language.methods.rlhf.critic import build_critic
from tether.language.methods.rlhf.given_rewards import GivenRewards
from tether.language.methods.rlhf.rewards import (
    check_readable,
    digests,
    members_of,
    open_pretraining,
    open_scorer,
    warn_of_scale,
)
from tether.language.methods.rlhf.update import Measured, Update
from tether.language.models.language_model import LanguageModel
from tether.language.models.scoring import Scorer
from tether.learning.callbacks import Callback
from tether.learning.config import Config
from tether.learning.learner import Metrics, State

__all__ = ["RLHFConfig", "RLHFLearner"]

COLUMNS: Final = "a column of the data"
"""What a run calls the digest of the other columns among its origins, as errors say it."""


class RLHFLearner(LanguageLearner):
    """A language model on a tether: rewarded for its score, charged for leaving the reference.

    Attributes:
        config: the settings.
        language_model: the policy, trained in place.
        modules: what learns, by name.
        beta: current KL coefficient.
        origins: digests of the reward models and pretraining texts that `config` names.
        samples: the last iteration's completions.

    Source:
        InstructGPT (Ouyang et al. 2022), section 3.5 and equation 2; Ziegler et al., "Fine-tuning
        language models from human preferences" (2019), section 2.
    """

    config: RLHFConfig
    config_class: ClassVar[type[Config]] = RLHFConfig

    def __init__(
        self,
        config: RLHFConfig,
        language_model: LanguageModel,
        data: Sequence[Prompt],
        *,
        seed: int,
        total_steps: int,
        scorer: Scorer | None = None,
        rewards: GivenRewards | None = None,
        rows: PromptRows | None = None,
        pretraining: Sequence[Example] | None = None,
    ) -> None:
        """Takes the policy, which it trains in place.

        Args:
            config: the settings.
            language_model: the policy; with an adapter, only that is trained, and the reference is
                the model without it.
            data: prompts that leave room for a completion.
            seed: decides everything random.
            total_steps: episodes the run is meant to take, for the schedule.
            scorer: what a completion is worth, from its tokens; None: what `config.reward` names.
            rewards: the rewards that `config.reward` names, where some of them are objects.
            rows: the prompts and columns that reward functions read, a row for each of `data`.
            pretraining: texts for PPO-ptx; None: what `config.pretraining_data` names.

        Raises:
            UserError: data, rewards or pretraining texts that are missing or do not fit.
        """
        super().__init__(config, language_model, seed=seed, total_steps=total_steps)
        origins: dict[str, str] = {}
        if scorer is None:
            scorer = open_scorer(config, language_model, rewards, rows)
            warn_of_scale(config)
            origins |= digests(scorer, config.reward)
            if rows is not None and rows.digest is not None:
                origins[COLUMNS] = rows.digest
        self.collector = EpisodeCollector(config, language_model, data, scorer, seed=seed)
        check_readable(scorer, language_model, self.collector.longest)
        self.critic = None
        if config.estimator == "gae":
            several = members_of(scorer)
            only = several[0] if len(several) == 1 else scorer
            self.critic = build_critic(
                language_model, only, trunk=config.critic, start=config.critic_start
            )
            self.modules["critic"] = self.critic
        texts: Sequence[Example] = ()
        if config.pretraining_coefficient:
            if pretraining is None:
                pretraining = open_pretraining(config, language_model)
                origins[config.pretraining_data] = digest(pretraining)
            texts = pretraining
            check_records(
                texts,
                vocabulary=language_model.vocabulary,
                context=language_model.context,
                source="pretraining",
            )
        self.updater = Update(
            config, language_model, self.critic, texts, seed=seed, total_steps=total_steps
        )
        self.origins = origins
        self.beta = config.beta
        self.gain, self.bias = 1.0, 0.0
        self.samples: list[SampledCompletion] = []
        self._before: State | None = None
        self._over_budget = False

    @property
    def steps(self) -> int:
        """Episodes so far."""
        return self.collector.count

    @property
    def finished(self) -> bool:
        """Whether the budget of divergence is spent."""
        return self._over_budget

    def callbacks(self) -> list[Callback]:
        """What a run of this learner should keep beside numbers: some of its completions."""
        count = self.config.kept_samples
        return [SampleTable(self.language_model.tokenizer, count=count)] if count else []

    def iterate(self) -> Metrics:
        """One rollout and its updates.

        Raises:
            RewardError: a reward failed or returned something unusable; nothing has moved.
            NonFiniteError: a score, reward, loss or gradient is NaN or infinite; nothing has moved
                since the last good minibatch.
            UserError: no completion of the first batch ended, or all scored alike where scores
                are to be normalized, so that nothing could be learned.
        """
        began, steps = time.perf_counter(), self.steps
        episodes = self.collector.collect()
        collected = time.perf_counter()
        epochs = self.updater.minibatches()
        measured = self.updater.measure(episodes, epochs[0])
        score = self.score(episodes)
        kl = objectives.kl_k1(measured.log_prob - measured.reference_log_prob, measured.mask).sum(1)
        metrics: Metrics = {}
        if not self._undone(float(kl.mean())):
            estimate = self.estimate(steps, episodes, measured, score)
            metrics = self.updater.run(steps, episodes, measured, estimate, self.beta, epochs)
            if self.critic is not None:
                metrics["value/explained_variance"] = float(
                    objectives.explained_variance(measured.value, estimate.target, measured.mask)
                )
        metrics |= {
            "reward/mean": float(episodes.scores.mean()),
            "reward/std": float(episodes.scores.std()),
            "reward/total": float((score - self.beta * kl).mean()),
            "kl/sequence": float(kl.mean()),
            "kl/coefficient": self.beta,
            "policy/entropy": float(objectives.masked_mean(measured.entropy, measured.mask)),
            "tokens/length": float(episodes.lengths.mean()),
            "episode/eos_fraction": float(episodes.finished.mean()),
            "data/epoch": self.steps / (len(self.collector.prompts) * self._group_size),
        }
        for name, scores in episodes.members.items():
            if len(there := scores[~np.isnan(scores)]):
                metrics[f"reward/{name}/mean"] = float(there.mean())
                metrics[f"reward/{name}/std"] = float(there.std())
        if len(there := episodes.spread[~np.isnan(episodes.spread)]):
            metrics["reward/ensemble_std"] = float(there.mean())
        self._adapt(float(metrics["kl/sequence"]))
        self.samples = [
            SampledCompletion(*row)
            for row in zip(episodes.completions, episodes.scores.tolist(), kl.tolist(), strict=True)
        ]
        ended = time.perf_counter()
        metrics["time/tokens_per_second"] = float(episodes.lengths.sum()) / (ended - began)
        metrics["time/generation_seconds"] = collected - began - episodes.scoring_seconds
        metrics["time/scoring_seconds"] = episodes.scoring_seconds
        metrics["time/update_seconds"] = ended - collected
        return metrics

    def score(self, episodes: Episodes) -> Tensor:
        """The scores that enter the reward: normalized, and fixed where a completion was cut off.

        Returns:
            (N,).

        Raises:
            UserError: see :meth:`iterate`.
        """
        config, first = self.config, self.updater.count == 0
        if config.missing_eos_score is not None and first and not episodes.finished.any():
            raise UserError(
                f"none of the first {len(episodes.completions)} completions ended within "
                f"max_new_tokens={config.max_new_tokens}, so all would score missing_eos_score="
                f"{config.missing_eos_score:g} and nothing could be learned; raise max_new_tokens, "
                "or give missing_eos_score none"
            )
        if config.normalize_score and first:
            deviation = float(episodes.scores.std())
            # Equal numbers may differ from their own mean by rounding.
            if deviation <= 1e-6 * float(np.abs(episodes.scores).max()):
                raise UserError(
                    f"normalize_score is on, but the first {len(episodes.completions)} completions "
                    f"all score {episodes.scores[0]:g}; look at the reward, or turn it off"
                )
            self.gain, self.bias = 1.0 / deviation, -float(episodes.scores.mean()) / deviation
        score = episodes.scores * self.gain + self.bias
        if config.clip_score is not None:
            score = np.clip(score, -config.clip_score, config.clip_score)
        if config.missing_eos_score is not None:
            score = np.where(episodes.finished, score, config.missing_eos_score)
        wide = torch.promote_types(self.language_model.dtype, torch.float32)
        return torch.from_numpy(score).to(self.language_model.device, wide)

    @torch.no_grad()
    def estimate(
        self, steps: int, episodes: Episodes, measured: Measured, score: Tensor
    ) -> advantages.Estimate:
        """Advantages, and the critic's targets, by the chosen estimator.

        Args:
            steps: the learner's steps, named in errors.
            episodes: the rollout.
            measured: what policy, reference and critic say of it.
            score: of each completion, (N,).

        Raises:
            NonFiniteError: a reward or value is NaN or infinite.
        """
        config, mask = self.config, measured.mask
        beta = 0.0 if config.estimator == "grpo" else self.beta
        reward = advantages.token_rewards(
            measured.log_prob, measured.reference_log_prob, score, beta, mask
        )
        sums = torch.where(mask, reward + measured.value, 0.0).sum(1)
        bad = torch.nonzero(~torch.isfinite(sums)).flatten().tolist()
        if bad:
            raise NonFiniteError(
                f"the reward or value became {float(sums[bad[0]])} at step {steps} in "
                f"{episodes.named(bad)}; lower learning_rate ({config.learning_rate:g})"
            )
        if config.whiten_reward:
            reward = advantages.whiten_keeping_mean(reward, mask)
        if config.estimator == "rloo":
            return advantages.rloo(reward, mask, group_size=self._group_size)
        if config.estimator == "grpo":
            return advantages.grpo(reward, mask, group_size=self._group_size)
        if config.estimator == "gae":
            found = advantages.actor_critic(
                reward, measured.value, mask, gamma=config.gamma, lam=config.lam
            )
        else:
            found = advantages.reinforce(reward, mask, gamma=config.gamma)
        if config.whiten_advantage:
            return found._replace(advantage=objectives.normalize_advantage(found.advantage, mask))
        return found

    def state(self) -> State:
        """Parameters, optimizers, and the counters from which everything random follows."""
        budget = {"before": self._before, "over_budget": self._over_budget}
        return {
            **({} if self.config.kl_budget is None else budget),
            "modules": self.modules_state(),
            "update": self.updater.state(),
            "collector": self.collector.state(),
            "beta": self.beta,
            "gain": self.gain,
            "bias": self.bias,
        }

    def restore(self, state: State) -> None:
        """Undoes :meth:`state`: training continues with the same numbers."""
        saved: Any = state
        self.restore_modules(saved["modules"])
        self.updater.restore(saved["update"])
        self.collector.restore(saved["collector"])
        self.beta = float(saved["beta"])
        self.gain, self.bias = float(saved["gain"]), float(saved["bias"])
        self._before = saved.get("before")
        self._over_budget = bool(saved.get("over_budget", False))

    @property
    def _group_size(self) -> int:
        return self.config.samples_per_prompt

    def _undone(self, kl: float) -> bool:
        """Takes back the last update, if it has gone beyond the budget of divergence."""
        budget = self.config.kl_budget
        if budget is None:
            return False
        self._over_budget = kl > budget
        if self._over_budget and self._before is not None:
            self.restore_modules(self._before)
        elif not self._over_budget:
            self._before = self.modules_state()
        return self._over_budget

    def _adapt(self, kl: float) -> None:
        """Moves beta so that the divergence of a sequence comes to `kl_target`."""
        config = self.config
        if config.kl_controller == "adaptive":
            self.beta = float(
                objectives.ziegler_adaptive_beta(
                    self.beta, kl, config.kl_target, config.batch_size, config.kl_horizon
                )
            )
