"""Next-token prediction from a blank model, as a learner of the one loop."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tether.errors import NonFiniteError, UserError
from tether.language.pretraining.perplexity import (
    held_out_figures,
    next_token_log_probs,
    windows_of,
)
from tether.language.reviews.corpus import Review
from tether.learning.config import Config
from tether.learning.learner import Metrics, State
from tether.objectives import masked_negative_log_likelihood


class PretrainingConfig(Config):
    """Shape of the model and how it learns; the defaults are those of ``tiny``."""

    vocabulary: int = Field(default=4096, ge=300, le=65536)
    """Tokens of the byte-level BPE vocabulary. More: shorter texts, a larger model. 2k to 50k."""
    width: int = Field(default=256, ge=8)
    """Size of the residual stream; a multiple of heads. Cost grows with its square."""
    layers: int = Field(default=4, ge=1)
    """Transformer blocks. Cost grows in proportion."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of each block; width / heads is usually 32 to 128."""
    feed_forward: int = Field(default=640, ge=8)
    """Width of each block's gated feed-forward layer; usually 2.5 to 4 times the width."""
    context: int = Field(default=256, ge=2)
    """Most tokens the model sees at once."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one update. More: steadier but fewer updates. For tiny models 2k to 32k."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """AdamW's step size at its peak. Tiny models bear 1e-3 to 5e-3, large ones 1e-4."""
    warmup: float = Field(default=0.02, ge=0, lt=1)
    """Share of the budget over which the learning rate rises; then it falls along a cosine."""
    final_learning_rate: float = Field(default=0.02, ge=0, le=1)
    """Where the cosine ends, as a share of the peak. Usually 0 to 0.1."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Pull of matrices to zero. Usually 0 to 0.1."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """A longer gradient is shortened to this."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the matrix products; parameters and their moments are always float32."""
    updates_per_iteration: int = Field(default=20, ge=1)
    """Updates between two lines of metrics."""
    evaluate_every: int = Field(default=10, ge=1)
    """Iterations between two measurements on held-out reviews."""
    evaluate_reviews: int = Field(default=200, ge=1)
    """Held-out reviews in each measurement; the export measures all of them."""


def build_model(
    config: PretrainingConfig, tokenizer: PreTrainedTokenizerFast, seed: int
) -> LlamaForCausalLM:
    """A Llama with fresh float32 parameters and tied embeddings.

    Source:
        Touvron et al., "LLaMA" (2023), section 2.2.
    """
    torch.manual_seed(seed)
    if config.width % config.heads:
        raise UserError(
            f"width is {config.width} and heads {config.heads}; expected a multiple of heads"
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


class Pretraining:
    """Next-token prediction, as a `Learner`; its steps are tokens predicted."""

    def __init__(
        self,
        config: PretrainingConfig,
        tokenizer: PreTrainedTokenizerFast,
        train: Sequence[Review],
        held_out: Sequence[Review],
        *,
        seed: int,
        total_tokens: int,
    ) -> None:
        """Builds model, optimizer and data.

        Args:
            config: the settings.
            tokenizer: one that puts a beginning-of-sequence token before each text.
            train: reviews to learn.
            held_out: reviews to measure on; the first `config.evaluate_reviews` of them.
            seed: decides initial parameters and order of the data.
            total_tokens: budget, over which the learning rate falls.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.model = build_model(config, tokenizer, seed)
        self._seed = seed
        self.total_tokens = total_tokens
        self._windows = windows_of([r.text for r in train], tokenizer, config.context)
        self._held_out = [r.text for r in held_out[: config.evaluate_reviews]]
        self._parameters = dict(self.model.named_parameters())
        self._optimizer = _adamw(self._parameters, config)
        self._tokens = 0
        self._iterations = 0
        self._epoch = 0
        self._position = 0
        self._plan = self._plan_of(0)

    @property
    def steps(self) -> int:
        """Tokens predicted so far."""
        return self._tokens

    def iterate(self) -> Metrics:
        """A few updates; now and then also a measurement on held-out reviews."""
        start = time.perf_counter()
        before = self._tokens
        total_loss = total_norm = 0.0
        self.model.train()
        for _ in range(self.config.updates_per_iteration):
            tokens, loss, norm = self._update()
            total_loss += loss * tokens
            total_norm += norm
        seen = self._tokens - before
        seconds = time.perf_counter() - start
        self._iterations += 1
        metrics: Metrics = {
            "loss/nll": total_loss / seen,
            "policy/gradient_norm": total_norm / self.config.updates_per_iteration,
            "optimizer/learning_rate": self._learning_rate(),
            "data/epoch": self._epoch + self._position / len(self._plan),
            "time/tokens_per_second": seen / seconds,
        }
        if self._iterations % self.config.evaluate_every == 0:
            metrics |= held_out_figures(
                self.model,
                self.tokenizer,
                self._held_out,
                context=self.config.context,
                precision=self.config.precision,
            )
        return metrics

    def state(self) -> State:
        """Parameters, moments, and the place in the data, whose order follows from the seed."""
        moments: dict[str, Any] = {}
        for name, parameter in self._parameters.items():
            kept = self._optimizer.state.get(parameter, {})
            moments[name] = {key: value.numpy().copy() for key, value in kept.items()}
        return {
            "model": {n: p.detach().numpy().copy() for n, p in self._parameters.items()},
            "optimizer": moments,
            "tokens": self._tokens,
            "tokens_per_epoch": self._windows.tokens,
            "iterations": self._iterations,
            "epoch": self._epoch,
            "position": self._position,
        }

    def restore(self, state: State) -> None:
        """Becomes the learner that returned `state`."""
        saved: Any = state
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(saved["model"][name]))
        self._optimizer.state.clear()
        for name, parameter in self._parameters.items():
            kept = {key: torch.from_numpy(value) for key, value in saved["optimizer"][name].items()}
            if kept:
                self._optimizer.state[parameter] = kept
        self._tokens = int(saved["tokens"])
        self._iterations = int(saved["iterations"])
        self._epoch = int(saved["epoch"])
        self._position = int(saved["position"])
        self._plan = self._plan_of(self._epoch)

    def _update(self) -> tuple[int, float, float]:
        if self._position == len(self._plan):
            self._epoch += 1
            self._position = 0
            self._plan = self._plan_of(self._epoch)
        rows = self._plan[self._position]
        self._position += 1
        batch = self._windows.batch(rows, self.tokenizer.pad_token_id)
        log_probs = next_token_log_probs(self.model, batch, precision=self.config.precision)
        loss = masked_negative_log_likelihood(log_probs)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the loss is {value} after {self._tokens:,} tokens; lower the learning rate "
                f"({self.config.learning_rate:g})"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(
            self._parameters.values(), self.config.max_gradient_norm
        )
        self._optimizer.step()
        self._tokens += batch.tokens
        return batch.tokens, value, float(norm)

    def _learning_rate(self) -> float:
        """Linear from 0 to the peak, then a cosine down, over tokens."""
        config = self.config
        done = min(1.0, self._tokens / self.total_tokens)
        # The first update would otherwise be of size zero.
        if done < config.warmup:
            return config.learning_rate * max(done / config.warmup, 0.01)
        falling = 0.5 * (1.0 + math.cos(math.pi * (done - config.warmup) / (1.0 - config.warmup)))
        least = config.final_learning_rate
        return config.learning_rate * (least + (1.0 - least) * falling)

    def _plan_of(self, epoch: int) -> list[NDArray[np.int64]]:
        random = np.random.default_rng([self._seed, epoch])
        return self._windows.plan(self.config.batch_tokens, random)


def _adamw(parameters: Mapping[str, torch.nn.Parameter], config: PretrainingConfig) -> Any:
    """AdamW that leaves the gains of the normalizations alone.

    Source:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2.
    """
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    gains = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
