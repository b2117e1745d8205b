"""Language models of a few tokens, small enough to enumerate everything they can say."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tether.language.data.tokens import Completion, Example, Prompt
from tether.language.learners.means import Means
from tether.language.learners.rollout import Episodes
from tether.language.methods.rlhf.learner import RLHFConfig, RLHFLearner
from tether.language.models.adapters import with_lora
from tether.language.models.language_model import LanguageModel, LoraSettings

EOS = 1
LIKED = 3
VOCABULARY = 8
LORA = LoraSettings(rank=2, alpha=4.0)

# Four ways to advantages, two critics, with and without adapters.
KINDS = {
    "shared critic": {},
    "separate critic": {"critic": "separate"},
    "reinforce": {"estimator": "reinforce"},
    "rloo": {"estimator": "rloo", "samples_per_prompt": 4},
    "grpo": {"estimator": "grpo", "samples_per_prompt": 4},
    "pretraining": {"pretraining_coefficient": 2.0},
}
TEXTS = [Example((2, 4), (5, 6, EOS)), Example((7,), (2, 2, 2, EOS)), Example((3,), (EOS,))]


def llama(seed: int = 0, vocabulary: int = VOCABULARY, **settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            **{
                "vocab_size": vocabulary,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": 32,
                "initializer_range": 0.2,
                "bos_token_id": None,
                "eos_token_id": EOS,
                "pad_token_id": None,
                **settings,
            }
        )
    )


def gpt2(seed: int = 0, vocabulary: int = VOCABULARY) -> GPT2LMHeadModel:
    """Computes in its own dtype throughout; Llama's normalizations are float32 whatever it is."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=32,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=EOS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def wrapped(model: Any, *, lora: bool = False) -> LanguageModel:
    """A model as the language room knows it; there are no texts, so no tokenizer."""
    model = model.eval()
    parameter = next(model.parameters())
    return LanguageModel(
        model=with_lora(model, LORA, name="miniature", seed=0) if lora else model,
        tokenizer=None,
        name="miniature",
        device=parameter.device,
        dtype=parameter.dtype,
        pad_id=0,
        eos_id=EOS,
        context=32,
    )


def exact(seed: int = 0, vocabulary: int = VOCABULARY, *, lora: bool = False) -> LanguageModel:
    """In float64, where two ways to compute one thing agree to ten digits."""
    return wrapped(gpt2(seed, vocabulary).double(), lora=lora)


def count_liked(items: Sequence[Completion]) -> np.ndarray:
    """The gold score: how often the liked token was said."""
    return np.array([item.completion_ids.count(LIKED) for item in items], np.float64)


PROMPTS = [Prompt((2,)), Prompt((4, 5)), Prompt((6, 2, 7)), Prompt((5,))]


def learner(
    language_model: LanguageModel | None = None,
    *,
    scorer: Any = count_liked,
    prompts: Sequence[Prompt] = PROMPTS,
    seed: int = 0,
    total_steps: int = 160,
    pretraining: Any = None,
    **settings: Any,
) -> RLHFLearner:
    chosen = {
        "batch_size": 16,
        "minibatch_size": 8,
        "micro_batch_size": 3,
        "max_new_tokens": 6,
        "learning_rate": 1e-2,
        "ppo_epochs": 2,
        **settings,
    }
    return RLHFLearner(
        RLHFConfig(**chosen),
        wrapped(llama()) if language_model is None else language_model,
        prompts,
        seed=seed,
        total_steps=total_steps,
        scorer=scorer,
        pretraining=pretraining,
    )


def moved(made: RLHFLearner, seed: int = 3, by: float = 0.2) -> RLHFLearner:
    """The same learner with its policy and critic pushed away from where they began."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in made.modules.values():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.add_(by * noise.to(parameter.dtype))
    return made


def plain_log_probs(language_model: LanguageModel, item: Completion, temperature: float) -> Tensor:
    """log pi of a completion's tokens, (C,), by one unpadded pass over everything."""
    ids = torch.tensor([[*item.prompt_ids, *item.completion_ids]])
    positions = torch.arange(ids.shape[1])[None]
    hidden = language_model.hidden_states(ids, torch.ones_like(ids), positions)
    log_p = torch.log_softmax(language_model.head(hidden[0]) / temperature, dim=-1)
    first = len(item.prompt_ids)
    return torch.stack([log_p[i - 1, ids[0, i]] for i in range(first, ids.shape[1])])


def everything(prompt: Sequence[int], vocabulary: int, longest: int) -> Iterator[Completion]:
    """Every completion there is: up to the end of sequence, or cut off at `longest`."""
    others = [token for token in range(vocabulary) if token != EOS]
    for length in range(1, longest + 1):
        for start in itertools.product(others, repeat=length - 1):
            yield Completion(tuple(prompt), (*start, EOS), finished=True)
            if length == longest:
                for last in others:
                    yield Completion(tuple(prompt), (*start, last), finished=False)


def episodes_of(items: Sequence[Completion], scores: Any = None) -> Episodes:
    """A rollout that said these completions; the gold score if none is given."""
    given = count_liked(items) if scores is None else np.asarray(scores, np.float64)
    return Episodes(list(items), np.zeros(len(items), np.int64), given)


def gradient_of(made: RLHFLearner, episodes: Any, **changes: Any) -> dict[str, Tensor]:
    """What one minibatch of all episodes adds to the gradients, by parameter."""
    rows = list(range(len(episodes.completions)))
    measured = changes.get("measured")
    if measured is None:
        measured = made.updater.measure(episodes, [rows])
    estimate = changes.get("estimate")
    if estimate is None:
        estimate = made.estimate(0, episodes, measured, made.score(episodes))
    for module in made.modules.values():
        module.zero_grad(set_to_none=True)
    made.updater.gradient(0, episodes, measured, estimate, made.beta, rows, Means())
    return gradients(made)


def gradients(made: RLHFLearner) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": parameter.grad.clone()
        for name, module in made.modules.items()
        for key, parameter in module.named_parameters()
        if parameter.grad is not None
    }
